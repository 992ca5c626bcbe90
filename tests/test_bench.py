"""What a bench measures, of whom, with which photos; and that no process outlives it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fieldmark import bench, draw
from fieldmark.errors import FieldmarkError
from fieldmark.run import Run

# Tells times that are known: of a place called half, half of them; one called broken fails.
FAKE = """
import json, os, sys
place, *photos = sys.argv[1:]
name = os.path.basename(place)
open(os.environ["TOLD"], "a").write(f"{name} {os.getpid()} {len(photos)}\\n")
if name == "broken":
    sys.exit("No such library: install it.")
if name == "crashing":
    raise MemoryError("none left")
scale = 0.5 if name == "half" else 1.0
print(json.dumps({"backend": "fake", "cpu": 0.25, "resident": 10_000_000, "peak": 1}), flush=True)
for line in sys.stdin:
    question, number = json.loads(line)
    if question == "latency":
        told = {"whole": [0.010 * scale] * (number - 1) + [0.050 * scale],
                "reading": [0.002] * number, "cpu": 0.020 * number}
    elif question == "throughput":
        told = {"photos": 10 * number, "seconds": scale, "cpu": number}
    else:
        told = {"resident": 11_000_000, "peak": 12_000_000}
    print(json.dumps(told), flush=True)
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which each fake stopwatch leaves name, process and count of photos."""
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setattr(bench, "STOPWATCH", ("-c", FAKE))
    monkeypatch.setattr(bench, "weights", lambda place: sorted(place.glob("*.bin")))
    return tmp_path / "told"


@pytest.fixture
def own(trained: Run, tmp_path: Path) -> Run:
    """A copy of the run to change."""
    return Run(shutil.copytree(trained.folder, tmp_path / "run"))


def exported(run: Run, name: str) -> Path:
    place = run.exports / name
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (place / "model.bin").write_bytes(b"x" * 1000)
    return place


def starts(told: Path) -> list[list[str]]:
    return [line.split() for line in told.read_text().splitlines()]


def test_a_run_is_measured_beside_its_exports(
    own: Run, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half, broken = exported(own, "half"), exported(own, "broken")
    (own.exports / "no export").mkdir()
    found = bench.bench(own.folder, rounds=2)
    first, second = found["models"]
    assert (first["name"], second["name"]) == ("the run (fake)", "half")
    assert second["one_photo"] == {
        "p50_ms": pytest.approx(5),
        "p99_ms": pytest.approx(25),
        "reading_ms": pytest.approx(2),
        "cpu_ms": pytest.approx(20),
        "n": 2 * bench.A_ROUND,
        "times_as_fast": pytest.approx(2),
    }
    assert second["batches"]["8"] == {
        "photos_per_second": pytest.approx(160),
        "cpu_ms": pytest.approx(100),
        "n": 160,
    }
    assert second["memory"] == {"resident": 10_000_000, "peak": 12_000_000}
    assert second["disk"] == 1000
    assert second["cold_start"]["n"] == bench.STARTS
    assert second["cold_start"]["cpu_seconds"] == 0.25
    assert "Left out: No such library: install it." in capsys.readouterr().out
    kept = json.loads((half / "bench.json").read_text())
    assert kept == {**{k: v for k, v in found.items() if k != "models"}, **second}
    assert not (broken / "bench.json").exists()
    assert not [*own.folder.glob("*bench*")]
    table = bench.table(found)
    assert table.splitlines()[2].split()[:7] == ["half", "5.0", "25.0", "2.0", "20.0", "2.00", "20"]
    assert "40 answers of" in table
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_process_has_ended(own: Run, told: Path) -> None:
    exported(own, "broken")
    bench.bench(own.folder, rounds=1)
    names = [name for name, _, _ in starts(told)]
    assert names == ["run"] * bench.STARTS + ["broken"]
    for _, process, _ in starts(told):
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "^No such library: install it"), ("crashing", "crashing: MemoryError: none left")],
)
def test_a_model_that_cannot_answer_is_named(own: Run, told: Path, name: str, message: str) -> None:
    with pytest.raises(FieldmarkError, match=message):
        bench.bench(exported(own, name), rounds=1)


def test_a_model_whose_process_has_died_is_named(
    own: Run, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory is short, while another model has its turn."""

    def measure(watched: Sequence[bench.Watched], _: int) -> None:
        watched[0].process.kill()
        watched[0].process.wait()
        watched[0].ask("latency", 1)

    monkeypatch.setattr(bench, "_measure", measure)
    with pytest.raises(FieldmarkError, match="its process ended with -9"):
        bench.bench(own.folder, rounds=1)


def test_no_rounds_are_refused(own: Run) -> None:
    with pytest.raises(FieldmarkError, match="ask for one"):
        bench.bench(own.folder, rounds=0)


@pytest.mark.parametrize("part", ["", "export/half"])
def test_the_photos_are_those_that_the_run_held_out(own: Run, told: Path, part: str) -> None:
    exported(own, "half")
    held_out = sum(row.split != "training" for row in own.read_split())
    found = bench.bench(own.folder / part, rounds=1)
    assert found["photos"]["from"] == "held out"
    assert found["photos"]["n"] == held_out > 0
    assert {int(count) for _, _, count in starts(told)} == {held_out}


def test_an_export_is_the_same_from_within(
    own: Run, told: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = exported(own, "half")
    (place / "bench.json").mkdir()  # so that nothing can be kept there
    for here, model in ((place, "."), (place.parent, "half")):
        monkeypatch.chdir(here)
        found = bench.bench(model, rounds=1)
        assert found["photos"]["from"] == "held out"
        assert found["models"][0]["name"] == "half"
        assert "The figures are not kept with the export" in capsys.readouterr().out


def test_no_more_photos_than_fit_are_taken_evenly(
    own: Run, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PHOTOS", 3)
    assert bench.bench(own.folder, rounds=1)["photos"]["n"] in (2, 3)


def test_photos_are_drawn_where_there_are_none(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DRAWN", 32)
    alone = exported(Run(tmp_path), "half")
    found = bench.bench(shutil.move(alone, tmp_path / "elsewhere"), rounds=1)
    assert (found["photos"]["from"], found["photos"]["n"]) == ("drawn", 20)


def test_photos_may_be_named(own: Run, told: Path, tmp_path: Path) -> None:
    photos = draw.birds(tmp_path / "birds", per_class=1, size=32)  # a JSON lies among them
    found = bench.bench(own.folder, [photos], rounds=1)
    assert (found["photos"]["from"], found["photos"]["n"]) == ("named", 4)
    with pytest.raises(FieldmarkError, match=r"field_marks\.json is no photo.*another"):
        bench.bench(own.folder, [photos / "field_marks.json"])
    whole = next(photos.rglob("*.jpg"))
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(FieldmarkError, match=rf"{whole.name} is cut off: name another photo\.$"):
        bench.bench(own.folder, [whole])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FieldmarkError, match="holds no photo"):
        bench.bench(own.folder, [tmp_path / "empty"])


@pytest.mark.slow
def test_a_run_s_own_network_is_measured(
    trained: Run, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STARTS", 1)
    monkeypatch.setattr(bench, "A_ROUND", 5)
    found = bench.bench(trained.folder, rounds=2)
    (model,) = found["models"]
    assert model["backend"] == "keras"
    one: dict[str, Any] = model["one_photo"]
    assert 0 < one["reading_ms"] < one["p50_ms"] <= one["p99_ms"]
    assert one["n"] == 10
    assert one["times_as_fast"] == 1
    assert model["disk"] == trained.best.stat().st_size
    assert all(batch["photos_per_second"] > 0 for batch in model["batches"].values())
    if Path("/proc/self/status").exists():
        assert 10_000_000 < model["memory"]["resident"] <= model["memory"]["peak"]


def test_a_model_that_is_none_is_named(birds: Path) -> None:
    with pytest.raises(FieldmarkError, match="is neither a run nor an export"):
        bench.bench(birds, [birds], rounds=1)
