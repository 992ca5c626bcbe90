"""Many workers answer as one process does: every photo once, whoever is killed on the way."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Command
from fieldmark import answers, cluster, lake, packages
from fieldmark.errors import FieldmarkError
from fieldmark.export import export
from fieldmark.predict import Classifier
from fieldmark.run import Run
from fieldmark.sources import Item

if find_spec("ray") is None:  # it is not imported before its environment is set
    pytest.skip("Ray, of the extra `cluster`, is not installed", allow_module_level=True)
pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("tensorflow", reason="an export is written with TensorFlow")

# Ray Data sets its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")


@pytest.fixture(scope="module")
def model(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained.folder, "openvino", out=tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    """A cluster of two slots, for the tests of this module."""
    with lake.hushed(), cluster.joined(slots=2) as ray:
        yield ray


@pytest.fixture
def joined(two: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have it joined in place of a new one."""

    @contextmanager
    def there(address: str, *, slots: int, paths: list[Path]) -> Generator[Any]:
        cluster.refuse_few(two, slots, address, "--workers")
        cluster.refuse_strange(two, paths)
        yield two

    monkeypatch.setattr(cluster, "joined", there)
    return two


@pytest.fixture
def photos(birds: Path, tmp_path: Path) -> Path:
    """Drawn photos, and what else lies about."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i, photo in enumerate(sorted(birds.rglob("*.jpg"))):
        name = os.fsdecode(b"\xff, \n%d.jpg" % i) if i == 5 else f"{i}.jpg"
        (folder / ("deep" if i % 3 else "") / name).symlink_to(photo)
    (folder / "page.jpg").write_bytes(b"<html>")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden").write_text("none")
    (folder / "away.jpg").symlink_to("nowhere")
    return folder


def lines(place: Path) -> list[list[str]]:
    """Return a CSV's rows in an order of their own, the header first."""
    header, *rows = csv.reader(io.StringIO(place.read_bytes().decode(), newline=""))
    return [header, *sorted(rows)]


def facts(account: answers.Account) -> dict[str, Any]:
    return {**vars(account), "named": sorted(account.named, key=lambda row: row.path)}


# ---- as one process does it ----------------------------------------------------------------------


def test_answers_are_those_of_one_process(
    joined: Any, model: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    known = [photos / "0.jpg", photos / "page.jpg"]
    answers.predict(model, known, csv=ours)
    account = lake.predict(model, [photos, known[0]], workers=2, csv=ours)
    assert "Going on: 2 photos" in capfd.readouterr().err
    answers.predict(model, known, csv=theirs)
    assert facts(account) == facts(answers.predict(model, [photos, known[0]], csv=theirs))
    assert lines(ours) == lines(theirs)
    assert len(lines(ours)) == 1 + 48 + 1
    assert account.others == {"no extension": 1, ".txt": 1, ".jpg": 1}
    account = answers.predict(model, [photos], csv=ours)  # one process goes on with the workers'
    assert (account.known, account.answers.total()) == (49, 0)


@pytest.mark.slow
def test_a_list_into_parquet_and_json(
    joined: Any,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(photos)
    names = [*(f"{i}.jpg" for i in range(0, 30, 3)), "page.jpg", "notes.txt", "none.jpg"]
    listed = io.BytesIO("\n".join(names).encode())
    kept, place = tmp_path / "parts", tmp_path / "a.csv"
    account = lake.predict(
        model, [Path("-")], workers=1, parquet=kept, as_json=True, standard_input=listed
    )
    assert (account.answers.total(), account.unreadable) == (10, 3)
    shown, said = capfd.readouterr()
    assert len([line for line in shown.splitlines() if line.startswith('{"path": ')]) == 13
    assert shown.count("\n") == 13
    assert said == ""
    listed.seek(0)
    answers.predict(model, [Path("-")], csv=place, standard_input=listed)
    rows = {row["path"]: row for row in pq.read_table(kept).to_pylist()}
    with place.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = rows.pop(row["path"])
            assert (found["answer"] or "", found["error"] or "") == (row["answer"], row["error"])
            for name in [name for name in row if name.startswith("p:")]:
                assert str(found[name] is None or f"{found[name]:.9g}") in (row[name], "True")
    assert rows == {}
    listed.seek(0)
    account = answers.predict(model, [Path("-")], parquet=kept, standard_input=listed)
    assert account.known == 13
    with pytest.raises(FieldmarkError, match="A CSV or Parquet"):
        answers.predict(model, [photos], parquet=kept, csv=place)


LOADED = """
import sys
from pathlib import Path
from fieldmark.lake import Worker, environment
from fieldmark.sources import Item
model = Path(sys.argv[1])
rows, others = Worker(model, None).all([Item(path) for path in sys.argv[2:]])
print(len(rows), len(others), environment(model))
print(*{name.partition(".")[0] for name, module in sys.modules.items() if module})
"""


def test_a_worker_loads_neither_keras_nor_tensorflow(model: Path, photos: Path) -> None:
    some = [photos / "0.jpg", photos / "3.jpg", photos / "notes.txt"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, model, *some], capture_output=True, text=True, check=True
    )
    told, modules = done.stdout.splitlines()
    assert told == "2 1 None"
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "sklearn", "scipy", "ray"}
    assert set(modules.split()).isdisjoint(heavy)
    assert {"fieldmark", "openvino"} <= set(modules.split())


@pytest.mark.slow
def test_a_run_answers_by_keras_in_each_worker(
    joined: Any, trained: Run, photos: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    lake.predict(trained.folder, [photos], workers=2, csv=ours)
    answers.predict(trained.folder, [photos], csv=theirs)
    ours_by, theirs_by = ({row[0]: row for row in lines(place)} for place in (ours, theirs))
    assert ours_by.keys() == theirs_by.keys()
    for path, row in ours_by.items():
        assert row[1] == theirs_by[path][1]
        assert row[4:8] == theirs_by[path][4:8] or np.array(row[4:8], float) == pytest.approx(
            np.array(theirs_by[path][4:8], float), abs=1e-5
        )


# ---- what is lost, what comes twice --------------------------------------------------------------


def test_what_was_lost_is_handed_out_again_and_what_comes_twice_is_dropped(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = list[list[str]]()

    def stream(*words: Any, **_: Any) -> Iterator[lake.Found]:
        """Lose every other photo, and say the others twice."""
        place, listing, seen = words[1:]
        classifier = Classifier.load(place)
        items = list(listing.items(seen.copy()))
        rounds.append([item.path for item in items])
        looks = [answers.look(item, classifier=classifier) for item in items[::2]]
        found = answers.answered(classifier, looks)
        yield found
        yield found

    @contextmanager
    def there(*_: Any, **__: Any) -> Generator[Any]:
        none = type("None", (Exception,), {})
        yield SimpleNamespace(exceptions=SimpleNamespace(RayTaskError=none, RayError=none))

    monkeypatch.setattr(lake, "stream", stream)
    monkeypatch.setattr(cluster, "joined", there)
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    account = lake.predict(model, [photos], workers=2, csv=ours)
    assert facts(account) == facts(answers.predict(model, [photos], csv=theirs))
    assert lines(ours) == lines(theirs)
    assert [len(each) for each in rounds] == [51, 25, 12, 6, 3, 1]
    monkeypatch.setattr(lake, "stream", lambda *_, **__: iter([([], [])]))
    with pytest.raises(FieldmarkError, match="51 photos have not come back"):
        lake.predict(model, [photos], workers=2, csv=tmp_path / "more.csv")


def heavy(place: Path, count: int) -> Path:
    """Make a folder of photos that take a while to read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (1500, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(place / "large.jpg")
    (place / "photos").mkdir()
    for i in range(count):
        (place / "photos" / f"{i:02}.jpg").symlink_to(place / "large.jpg")
    return place / "photos"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return heavy(tmp_path, 64)


def test_a_worker_that_is_killed_loses_and_repeats_nothing(
    joined: Any, model: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, stream = set[int](), lake.stream

    def watched(*words: Any, **more: Any) -> Iterator[lake.Found]:
        for found in stream(*words, **more):
            yield found
            if not killed:
                killed.update(working())
                for process in list(killed)[:1]:
                    os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(lake, "stream", watched)
    account = lake.predict(model, [large], workers=2, csv=tmp_path / "a.csv")
    assert len(killed) == 2
    assert (account.answers.total(), account.unreadable) == (64, 0)
    rows = lines(tmp_path / "a.csv")[1:]
    assert len(rows) == len({row[0] for row in rows}) == 64


def working() -> list[int]:
    """Return the processes of our workers."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::MapWorker(MapBatches(Worker"):
                found.append(int(place.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
def test_a_photo_that_ends_its_worker_is_listed(
    joined: Any, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frail(lake.Worker):
        """One that a photo is too much for."""

        def looks(self, items: list[Item]) -> list[answers.Look]:
            if any(item.path.endswith("/15.jpg") for item in items):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().looks(items)

    monkeypatch.setattr(lake, "Worker", Frail)
    account = lake.predict(model, [photos], workers=1, csv=tmp_path / "a.csv")
    assert (account.answers.total(), account.unreadable) == (47, 2)
    rows = {Path(row[0]).name: row for row in lines(tmp_path / "a.csv")[1:]}
    assert rows["15.jpg"][3] == lake.ENDS
    assert len(rows) == 49


@pytest.mark.slow
def test_killed_and_given_again_it_goes_on_and_leaves_nothing(
    model: Path, large: Path, tmp_path: Path, fieldmark: Command
) -> None:
    words = ["predict", model, large, "--csv", tmp_path / "a.csv", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "fieldmark", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        place = tmp_path / "a.csv"
        while not place.exists() or place.read_bytes().count(b"\r\n") < 5:
            assert process.poll() is None
        family = below(process.pid)
        opened = [place.readlink() for place in Path(f"/proc/{process.pid}/fd").iterdir()]
        (folder,) = {each.with_suffix("") for each in opened if each.suffix == cluster.LOCK}
        process.kill()
    assert len(family) > 5
    assert folder.is_dir()  # nobody was left to take it away
    done = fieldmark(*words)
    assert done.returncode == 0
    assert "Going on: " in done.stderr
    rows = lines(tmp_path / "a.csv")[1:]
    assert len(rows) == len({row[0] for row in rows}) == 64
    assert not folder.with_suffix(cluster.LOCK).exists()
    for _ in range(240):  # Ray's agents say to a cluster that is gone that it is, for a minute
        if not any(Path(f"/proc/{process}").exists() for process in family):
            break
        time.sleep(1)
    assert not [process for process in family if Path(f"/proc/{process}").exists()]
    cluster.sweep(folder.parent)
    assert not folder.exists()


def below(process: int) -> list[int]:
    """Return the processes that a process has begun, and those that these have."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(child) for place in children for child in place.read_text().split()]
    return found + [each for child in found for each in below(child)]


# ---- what is refused -----------------------------------------------------------------------------


def test_what_does_not_fit_is_one_sentence(
    joined: Any, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(workers: int, why: str) -> None:
        with pytest.raises(FieldmarkError, match=why) as caught:
            lake.predict(model, [photos], workers=workers, csv=tmp_path / "a.csv")
        assert "\n" not in str(caught.value)

    class Bare(lake.Worker):
        """One where the library is missing."""

        def __init__(self, *_: Any) -> None:
            self.wrong = FieldmarkError("On that machine: there is no library.")

    refused(0, "--workers 0 is no number of workers")
    refused(1000, "slots and --workers needs 1000")
    monkeypatch.setattr(lake, "Worker", Bare)
    refused(1, "^On that machine: there is no library.$")
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    refused(1, r"ray is not installed: run  pip install 'fieldmark\[cluster\]'")


def test_the_command_refuses_in_a_sentence(fieldmark: Command, model: Path, photos: Path) -> None:
    for more, why in (
        (("--address", "127.0.0.1:1"), "--address is of a cluster for --workers"),
        (("--workers", "1.5"), "1.5"),
        (("--workers", "1", "--address", "127.0.0.1:1"), "There is no cluster at 127.0.0.1:1"),
    ):
        done = fieldmark("predict", model, photos, *more)
        assert done.returncode == 2
        assert why in done.stderr
        assert "Traceback" not in done.stderr
