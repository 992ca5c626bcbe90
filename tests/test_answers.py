"""Photos to answers: every photo once, whatever they are called or hold, stopped and gone on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fieldmark import answers, images
from fieldmark.answers import Account, predict
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.predict import Classifier
from fieldmark.run import Run

SPEC = images.ImageSpec(size=8, mode="squash", interpolation="bilinear", scaling="0..1")
RED, GREEN, BLUE = (240, 0, 0), (0, 240, 0), (0, 0, 240)


def by_colour(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A photo is of the class whose colour it has."""
    means = squares.mean(axis=(1, 2)) + 1.0
    return np.asarray(means / means.sum(axis=1, keepdims=True), np.float64)


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    """One that needs no network."""
    run = Run(tmp_path / "model")
    run.folder.mkdir()
    for file in (run.environment, run.recipe, run.best):
        file.write_text("what makes it a run")
    return Classifier(run.folder, "fake", ("red", "green", "blue"), SPEC, None, by_colour)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos in two folders, and what lies among them."""
    folder = tmp_path / "photos"
    painted(folder / "a" / "1.png", RED)
    painted(folder / "a" / "2.jpg", GREEN)
    painted(folder / "b" / "3.png", BLUE)
    (folder / "b" / "4.jpg").write_bytes(b"<html>")
    (folder / "b" / "notes.txt").write_text("none")
    (folder / ".hidden").mkdir()
    painted(folder / ".hidden" / "5.png", RED)
    return folder


def painted(place: Path, colour: tuple[int, int, int]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), colour).save(place)
    return place


def rows(place: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(place.read_bytes().decode(), newline="")))


def by_name(place: Path) -> dict[str, str]:
    return {Path(row["path"]).name: row["answer"] or row["error"] for row in rows(place)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- what comes out -----------------------------------------------------------------------------


def test_a_line_a_photo_for_people(
    classifier: Classifier, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account = predict(classifier, [photos / "a" / "1.png", photos / "b"], top=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["red", f"{photos}/a/1.png", "red", "0.992", "green", "0.004"],
        ["blue", f"{photos}/b/3.png", "blue", "0.992", "red", "0.004"],
        ["-", f"{photos}/b/4.jpg", *["is", "a", "web", "page,", "not", "a", "photo"]],
    ]
    assert {line.index(str(photos)) for line in lines} == {len("none of these  ")}
    assert str(account).splitlines() == [
        "Predicted: 2 photos",
        "          1  red",
        "          1  blue",
        "Not read: 1 x .txt",
        "Not readable: 1 photos",
    ]


def test_what_is_in_the_user_s_folder_is_named_from_there(
    classifier: Classifier,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos)
    predict(classifier, [Path("a/1.png")])
    assert capsys.readouterr().out.split()[:2] == ["red", "a/1.png"]


def test_json_is_an_object_a_photo_and_nothing_else(
    classifier: Classifier, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    odd = photos / os.fsdecode(b"\xff\n.png")
    painted(photos / "a" / "1.png", RED).rename(odd)
    predict(classifier, [photos], as_json=True, top=1, csv=tmp_path / "a.csv")
    predict(classifier, [photos], as_json=True, csv=tmp_path / "a.csv")  # all are there already
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        {"path": str(odd), "answer": "red", "probabilities": [["red", 0.991769547]]},
        {
            "path": f"{photos}/a/2.jpg",
            "answer": "green",
            "probabilities": told[1]["probabilities"],
        },
        {
            "path": f"{photos}/b/3.png",
            "answer": "blue",
            "probabilities": [["blue", 0.991769547]],
        },
        {"path": f"{photos}/b/4.jpg", "error": "is a web page, not a photo"},
    ]
    assert rows(tmp_path / "a.csv")[0]["path"] == f"{photos}/\\udcff\n.png"


def test_a_decision_refuses_what_is_unsure(
    classifier: Classifier, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsure = replace(
        classifier, decision=Decision(temperature=2, threshold=0.9, coverage=0.9, photos=9)
    )
    painted(photos / "a" / "6.png", (200, 190, 180))
    predict(unsure, [photos / "a"], csv=tmp_path / "a.csv", sort_into=tmp_path / "out")
    assert by_name(tmp_path / "a.csv")["6.png"] == "none of these"
    assert (tmp_path / "out" / "none_of_these" / "6.png").is_file()
    predict(unsure, [photos / "a" / "6.png"], as_json=True)
    assert json.loads(capsys.readouterr().out)["answer"] is None


def test_a_csv_holds_the_classifier_s_own_probabilities(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    account = predict(classifier, [photos], csv=tmp_path / "a.csv")
    found = rows(tmp_path / "a.csv")
    assert [row["answer"] for row in found] == ["red", "green", "blue", ""]
    for row in found[:3]:
        (answer,) = classifier.predict([Path(row["path"]).read_bytes()])
        assert [float(row[f"p:{name}"]) for name in classifier.classes] == pytest.approx(
            answer.probabilities.tolist()
        )
    assert str(account).splitlines()[-1] == f"  {photos}/b/4.jpg is a web page, not a photo"


@pytest.mark.parametrize("how", ["copy", "hardlink", "symlink"])
def test_photos_are_sorted_and_stay(
    classifier: Classifier, photos: Path, tmp_path: Path, how: Any
) -> None:
    before = contents(photos)
    predict(classifier, [photos], sort_into=tmp_path / "out", sort_as=how)
    assert contents(tmp_path / "out") == {
        "red/1.png": before["a/1.png"],
        "green/2.jpg": before["a/2.jpg"],
        "blue/3.png": before["b/3.png"],
    }
    assert contents(photos) == before


def test_a_list_on_standard_input_names_photos(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    names = [photos / "a" / "1.png", photos / "none.png", photos / "b" / "notes.txt", photos]
    names += [photos / "a" / "1.png"]  # again
    predict(
        classifier,
        [Path("-")],
        csv=tmp_path / "a.csv",
        standard_input=io.BytesIO("\n".join(map(str, names)).encode()),
    )
    assert by_name(tmp_path / "a.csv") == {
        "1.png": "red",
        "none.png": "cannot be opened (No such file or directory)",
        "notes.txt": "is no photo (.txt)",
        "photos": "is a folder",
    }
    assert len(rows(tmp_path / "a.csv")) == 4


def test_what_is_no_photo_stops_nothing(
    classifier: Classifier, tmp_path: Path, shared_photos: Path
) -> None:
    account = predict(classifier, [shared_photos / "odd"], csv=tmp_path / "a.csv")
    listed = [p for p in (shared_photos / "odd").rglob("*") if p.is_file()]
    assert account.answers.total() + account.unreadable + account.others.total() == len(listed)
    assert account.unreadable > 30
    assert len(account.named) == answers.NAMED


def test_pipes_and_links_that_lead_nowhere_are_left_out(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    os.mkfifo(photos / "pipe.jpg")
    (photos / "away.jpg").symlink_to("nowhere")
    (photos / "round.jpg").symlink_to("round.jpg")
    account = predict(classifier, [photos], csv=tmp_path / "a.csv")
    assert account.others == {".jpg": 3, ".txt": 1, "no extension": 1}
    assert len(rows(tmp_path / "a.csv")) == 4


def test_a_file_that_is_too_large_is_not_read(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    with (photos / "a" / "1.png").open("r+b") as file:
        file.truncate(101_000_000)
    predict(classifier, [photos / "a"], csv=tmp_path / "a.csv")
    assert by_name(tmp_path / "a.csv")["1.png"] == "has more than 100,000,000 bytes"


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["csv", "sort_into"])
def test_nothing_is_written_among_the_photos(
    classifier: Classifier, photos: Path, name: str
) -> None:
    before = contents(photos)
    out: dict[str, Any] = {name: photos / "b" / "new"}
    over: dict[str, Any] = {name: photos / "a" / "1.png"}
    with pytest.raises(FieldmarkError, match="only read"):
        predict(classifier, [photos], **out)
    with pytest.raises(FieldmarkError, match="only read"):
        predict(classifier, [photos / "a" / "1.png"], **over)
    assert contents(photos) == before


@pytest.mark.parametrize("how", ["listed", "named", "folder"])
def test_photos_are_not_sorted_into_a_folder_that_they_lie_in(
    classifier: Classifier, photos: Path, how: str
) -> None:
    named = sorted(photos.rglob("*.png"))
    before = contents(photos)
    names = "\n".join(map(str, named)).encode() if how == "listed" else b""
    places = {"listed": [Path("-")], "named": named, "folder": [photos / "a"]}[how]
    with pytest.raises(FieldmarkError, match="photos are only read: write elsewhere"):
        predict(classifier, places, sort_into=photos, standard_input=io.BytesIO(names))
    assert contents(photos) == before
    predict(classifier, places, csv=photos / "a.csv", standard_input=io.BytesIO(names))  # beside


def test_a_name_that_no_file_can_have_stops_nothing(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    names = f"{photos / 'a' / '1.png'}\n".encode() * 5000 + b"a\0b.jpg\n"
    predict(classifier, [Path("-")], csv=tmp_path / "a.csv", standard_input=io.BytesIO(names))
    assert "cannot be opened" in (tmp_path / "a.csv").read_text()


def test_without_standard_input_photos_are_predicted(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert predict(classifier, [photos], csv=tmp_path / "a.csv").answers.total() == 3


@pytest.mark.parametrize("leads_to", ["out", "out/red", ".", "out/rose/later"])
@pytest.mark.parametrize("name", ["csv", "sort_into"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there yet"])
def test_no_link_among_the_photos_leads_to_what_is_written(
    classifier: Classifier, photos: Path, leads_to: str, name: str, there: bool
) -> None:
    around = photos.parent / "around"
    (around / "other").mkdir(parents=True)
    if there or name == "csv":
        painted(around / "out" / "red" / "old.png", (200, 0, 0))
        (around / leads_to).mkdir(parents=True, exist_ok=True)
    (photos / "a" / "link").symlink_to(around / leads_to)
    (photos / "b" / "link").symlink_to(around / "other")  # leads past it
    before = contents(around)
    # A CSV is written in it, photos are sorted into it.
    out: dict[str, Any] = {name: around / ("out/red/a.csv" if name == "csv" else "out")}
    if name == "csv" and leads_to == "out/rose/later":
        assert predict(classifier, [photos], **out).answers.total() == 3  # it leads past the CSV
        return
    with pytest.raises(FieldmarkError, match=r"a/link, among the photos, is a link that leads to"):
        predict(classifier, [photos], **out)
    written = contents(around)
    assert written.pop("out/red/a.csv", b"path,").count(b"\n") <= 1  # no photo is in it
    assert written == before


def test_no_class_at_all_is_refused(classifier: Classifier, photos: Path) -> None:
    with pytest.raises(FieldmarkError, match="name at least one"):
        predict(classifier, [photos], top=0)


def test_another_model_does_not_go_on(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    predict(classifier, [photos / "a"], csv=place)
    before = place.read_bytes()
    decision = Decision(temperature=1, threshold=0.5, coverage=0.9, photos=9)
    others = [replace(classifier, backend="other"), replace(classifier, decision=decision)]
    others += [replace(classifier, specification=SPEC.model_copy(update={"mode": "pad"}))]
    for other in others:
        with pytest.raises(FieldmarkError, match="was not begun by this model"):
            predict(other, [photos], csv=place)
    Run(classifier.place).best.write_bytes(b"others")
    with pytest.raises(FieldmarkError, match="was not begun by this model"):
        predict(classifier, [photos], csv=place)
    assert place.read_bytes() == before


# ---- stopped and gone on with -------------------------------------------------------------------


def test_a_csv_is_gone_on_with_and_has_each_photo_once(
    classifier: Classifier, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a.csv"
    predict(classifier, [photos / "b"], csv=place)
    account = predict(classifier, [photos, photos / "b", photos / "a" / "1.png"], csv=place)
    assert (account.known, account.unreadable, account.answers.total()) == (2, 1, 2)
    assert "Going on: 2 photos" in capsys.readouterr().err
    found = [row["path"] for row in rows(place)]
    assert sorted(found) == sorted({*found})
    assert [*by_name(place)] == ["3.png", "4.jpg", "1.png", "2.jpg"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
        ).filter(lambda name: len(name.encode()) < 200 and not name.startswith(".")),
        unique=True,
        min_size=1,
        max_size=5,
    ),
    cut=st.floats(0, 1),
)
def test_names_of_all_kinds_and_a_cut_anywhere(
    names: list[str], cut: float, classifier: Classifier, tmp_path_factory: pytest.TempPathFactory
) -> None:
    around = tmp_path_factory.mktemp("around")
    painted(around / "photo.png", GREEN)
    (around / "photos").mkdir()
    for name in names:
        (around / "photos" / name).symlink_to(around / "photo.png")
    place = around / "a.csv"
    predict(classifier, [around / "photos"], csv=place)
    whole = place.read_bytes()
    place.write_bytes(whole[: round(cut * len(whole))])
    predict(classifier, [around / "photos"], csv=place)
    assert sorted(Path(row["path"]).name for row in rows(place)) == sorted(names)
    assert {row["answer"] for row in rows(place)} == {"green"}


SLOWLY = """
import sys, time
from pathlib import Path
from test_answers import SPEC, by_colour
from fieldmark.answers import predict
from fieldmark.predict import Classifier

def slowly(squares):
    print("computing", flush=True)
    time.sleep(0.02)
    return by_colour(squares)

place, photos, csv, out = map(Path, sys.argv[1:])
classifier = Classifier(place, "fake", ("red", "green", "blue"), SPEC, None, slowly)
predict(classifier, [photos], csv=csv, sort_into=out)
"""


def test_killed_at_any_moment_each_photo_is_in_the_csv_once(
    classifier: Classifier, tmp_path: Path
) -> None:
    photo = painted(tmp_path / "photo.png", RED)
    folder = tmp_path / "photos"
    for i in range(400):
        (folder / str(i % 7)).mkdir(parents=True, exist_ok=True)
        (folder / str(i % 7) / f"{i // 7}.png").symlink_to(photo)
    place = tmp_path / "a.csv"
    places = [classifier.place, folder, place, tmp_path / "out"]
    words = [sys.executable, "-c", SLOWLY, *map(str, places)]
    sizes = list[int]()
    for batches in (1, 3, 2):
        with subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        ) as process:
            assert process.stdout is not None
            for _ in range(batches):
                assert process.stdout.readline() == b"computing\n"
            process.send_signal(signal.SIGKILL)
        sizes.append(place.stat().st_size)
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    account = predict(classifier, [folder], csv=place, sort_into=tmp_path / "out")
    assert account.known >= 32 * 3
    assert account.known + account.answers.total() == 400
    found = [row["path"] for row in rows(place)]
    assert len({*found}) == len(found) == 400


# ---- how it works -------------------------------------------------------------------------------


def test_photos_are_read_while_the_classifier_computes(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(answers.BATCH + 5):
        painted(tmp_path / "photos" / f"{i}.png", RED)
    read, enough = 0, threading.Event()

    def square(self: Classifier, content: bytes) -> NDArray[np.uint8]:
        nonlocal read
        read += 1
        if read > answers.BATCH:
            enough.set()
        return images.read(content, SPEC)

    def engine(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert enough.wait(30), "nobody reads"
        return by_colour(squares)

    monkeypatch.setattr(Classifier, "square", square)
    account = predict(
        replace(classifier, engine=engine), [tmp_path / "photos"], csv=tmp_path / "a.csv"
    )
    assert account.answers == {"red": answers.BATCH + 5}


def test_an_account_counts_no_more_than_some_kinds() -> None:
    account = Account()
    for i in range(answers.KINDS + 50):
        account.leave_out(f"a.{i}")
    assert len(account.others) == answers.KINDS + 1
    assert account.others["others"] == 50


def test_a_run_answers_as_its_network_does(trained: Run, birds: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    account = predict(trained.folder, [birds], csv=place)
    assert account.answers.total() == len(rows(place)) == 48
    classifier = Classifier.load(trained.folder)
    some = rows(place)[::5]
    for row, answer in zip(
        some, classifier.predict([Path(row["path"]).read_bytes() for row in some]), strict=True
    ):
        ours = [float(row[f"p:{name}"]) for name in classifier.classes]
        assert ours == pytest.approx(answer.probabilities.tolist(), abs=1e-6)


def test_a_run_is_known_by_its_weights(trained: Run, tmp_path: Path) -> None:
    own = Run(shutil.copytree(trained.folder, tmp_path / "run"))
    first = Classifier.load(trained.folder).identity()
    assert Classifier.load(own.folder).identity() == first  # it was only moved
    own.log.write_text("")
    assert Classifier.load(own.folder).identity() == first
    own.decision.write_text(
        Decision(temperature=1, threshold=0.5, coverage=0.9, photos=9).model_dump_json()
    )
    assert Classifier.load(own.folder).identity() != first


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_memory_does_not_grow_with_the_photos(
    classifier: Classifier, birds: Path, tmp_path: Path
) -> None:
    drawn = sorted(birds.rglob("*.jpg"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20_000):
        (folder / f"{i}.jpg").symlink_to(drawn[i % len(drawn)])
    after: list[int] = []

    def engine(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        after.append(resident())
        return by_colour(squares)

    account = predict(replace(classifier, engine=engine), [folder], csv=tmp_path / "a.csv")
    assert account.answers.total() == 20_000
    # Of 15,000 photos the paths alone would be over 2 MB, the squares 3, and pathlib's interned
    # names 1.6.
    assert after[-1] - after[len(after) // 4] < 1_000_000
