"""What a run's files say is read whole, or refused in one sentence that says what makes it anew.

The figures are made up, and consistent: those of the commands that measure have their own tests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fieldmark import files
from fieldmark.contents import Diagnosis, Figure, interval, read, valued
from fieldmark.errors import FieldmarkError
from fieldmark.findings import wilson
from fieldmark.images import ImageSpec
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import Run, create
from fieldmark.split import Record

Json = dict[str, Any]


def jpeg() -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


# ---- runs with all files ------------------------------------------------------------------------


SQUARE = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()


def figure(value: float | None, n: int, interval: str = "wilson") -> Json:
    low, high = (None, None) if value is None else wilson(min(value, 1), n)
    return {"value": value, "low": low, "high": high, "n": n, "interval": interval}


def measured(classes: list[str], n: int) -> Json:
    """Figures of `n` photos a class: of each a fifth is taken for the next class."""
    c, wrong = len(classes), n // 5
    confusion = [[0] * c for _ in classes]
    for i in range(c):
        confusion[i][i] += n - wrong
        confusion[i][(i + 1) % c] += wrong
    names: tuple[str, ...] = (
        "accuracy",
        "balanced_accuracy",
        "macro_precision",
        "macro_recall",
        "macro_f1",
    )
    names += ("log_loss", "brier", "calibration_error", "macro_roc_auc", "risk_coverage_area")
    right = 1 - wrong / n
    return {
        "n": n * c,
        "figures": {
            **{name: figure(right, n * c) for name in names},
            "top_2": figure(1.0, n * c),
            "calibrated_log_loss": figure(None, n * c),
            "some_new_figure": figure(0.25, n * c, "bootstrap"),
        },
        "commonest": {"name": classes[-1], "share": 1 / c},
        "classes": [
            {"name": name, "n": n, "predicted": n} | {
                of: figure(right, n) for of in ("precision", "recall", "f1", "roc_auc")
            }
            for name in classes
        ],
        "confusion": confusion,
        "reliability": [
            {"low": i / 10, "high": (i + 1) / 10, "n": 3 * i, "confidence": i / 10 + 0.05,
             "accuracy": i / 10}
            for i in range(3, 10)
        ],
        "risk_coverage": [
            {"threshold": i / 20, "coverage": 1 - i / 25, "risk": figure(0.2 - i / 200, n * c)}
            for i in range(20)
        ],
        "refused": {"threshold": 0.5, "coverage": figure(0.9, n * c), "accuracy": figure(0.9, n)},
    }  # fmt: skip


def finding(test: str, verdict: str) -> Json:
    return {
        "test": test,
        "question": f"Is {test} as it should be?",
        "measured": f"{test} is 0.25 <b>",
        "expected": "more than 0.8",
        "verdict": verdict,
        "fix": f"train with `--{test}`" if verdict != "fine" else "",
        "figures": {"a": 1.0},
    }


def explained(folder: Path, i: int, why: list[str], classes: list[str]) -> Json:
    (folder / f"{i:04}").mkdir(parents=True)
    names = [f"{i:04}/{each}" for each in ("photo.jpg", "map-0.png", "neighbour-0.jpg")]
    for k, name in enumerate(names):
        Image.new("RGB", (40, 30), (60 * k, 20 * i, 99)).save(folder / name)
    return {
        "path": f"{classes[0]}/{i}.jpg",
        "split": "validation",
        "label": classes[0],
        "predicted": classes[1],
        "why": why,
        "none_of_these": i == 0,
        "probabilities": [[classes[1], 0.7], [classes[0], 0.3]],
        "photo": names[0],
        "maps": [{"class": classes[1], "overlay": names[1], "alt": f"a map for {classes[1]}"}],
        "array": f"{i:04}/maps.npy",
        "neighbours": [
            {"path": "x.jpg", "label": classes[1], "similarity": 0.91, "photo": names[2]}
        ],
    }


def remark(severity: str, paths: list[str], picture: str = "") -> Json:
    return {
        "kind": f"new {severity}",
        "severity": severity,
        "title": f"Photos of {severity} <b>",
        "advice": "Look at `them` <i>.",
        "count": f"{len(paths) + 9}",
        "of": len(paths) + 9,
        "cases": [{"what": f"like {path}", "photos": [{"path": path, "picture": picture}],
                   "hidden": i} for i, path in enumerate(paths)],
    }  # fmt: skip


def fill(run: Run, *, n: int = 10) -> Run:
    """Write what the other commands write."""
    classes = list(run.read_classes())
    measures = {"validation": measured(classes, n), "test": measured(classes, 2 * n)}
    files.write_json(
        run.metrics,
        {
            "classes": classes, "resamples": 1000, "seed": 0, "splits": measures,
            "temperature": figure(1.3, n),
            "decision": {"temperature": 1.3, "threshold": 0.5, "coverage": 0.9, "photos": n},
        },
    )  # fmt: skip
    verdicts = ("fine", "fault", "follows", "note", "not tried")
    findings = [finding(f"test{i}", verdict) for i, verdict in enumerate(verdicts)]
    files.write_json(run.diagnosis, {"findings": findings, "causes": ["test1"]})
    severities = ("error", "warning", "note")
    said = [remark(each, classes[:2], SQUARE if each == "error" else "") for each in severities]
    files.write_json(run.findings, {"account": "9 files", "balance": "9 photos", "findings": said})
    folder = run.explanations
    whys = (["mistake"], ["mistake", "confused: a for b"], ["confused: a for b"], ["right"])
    photos = [explained(folder, i, why, classes) for i, why in enumerate(whys)]
    digest = hashlib.sha256(run.best.read_bytes()).hexdigest() if run.best.exists() else ""
    index = {"layer": "post_relu", "weights_sha256": digest, "photos": photos}
    files.write_json(run.explained, index)
    return run


def made(
    folder: Path,
    classes: tuple[str, ...],
    *,
    recipe: Recipe = ARTICLE,
    log: tuple[Json, ...] = (),
    photos: int = 3,
) -> Run:
    """Make a run with no weights, for what a training of these classes would take long to make."""
    records = [
        Record(
            f"{i}/{k}.jpg",
            name,
            "validation" if k == 1 else "training",
            "",
            hashlib.sha256(b"%d-%d" % (i, k)).hexdigest(),
        )
        for i, name in enumerate(classes)
        for k in range(photos)
    ]
    spec = ImageSpec(size=32, mode="squash", interpolation="bilinear", scaling="0..255")
    run = create(
        folder,
        recipe=recipe.resolved(),
        environment={"command": "fieldmark train <photos>", "photos": str(folder / "none")},
        classes=classes,
        specification=spec,
        records=records,
    )
    for line in log:
        run.append_log(line)
    return run


@pytest.fixture
def full(tmp_path: Path) -> Run:
    """A run of two classes and two epochs, with the files of every command."""
    log = ({"epoch": 1, "loss": 2.0, "accuracy": True}, {"epoch": 2, "loss": float("nan")})
    run = fill(made(tmp_path / "a run", ("a", "b"), log=log))
    files.write_json(run.probe, {"epoch": 0, "val_accuracy": 0.5, "kind": "probe"})
    return run


# ---- what is there ------------------------------------------------------------------------------


def test_what_is_no_finite_number_is_none(full: Run) -> None:
    contents = read(full.folder)
    assert [dict(line) for line in contents.log] == [
        {"epoch": 1, "loss": 2, "accuracy": None},
        {"epoch": 2, "loss": None},
    ]
    assert contents.epochs == 2
    assert contents.probe == {"epoch": 0, "val_accuracy": 0.5, "kind": None}


def test_test_photos_judge_where_there_are_any(full: Run) -> None:
    found = json.loads(full.metrics.read_text(encoding="utf-8"))
    for part in ("test", "validation"):
        main = read(full.folder).main
        assert main is not None
        assert main[0] == part
        found["splits"][part]["n"] = 0
        files.write_json(full.metrics, found)
    assert read(full.folder).main is None


def test_what_nobody_measured_is_none_and_has_a_command(full: Run) -> None:
    made = (full.metrics, full.diagnosis, full.findings, full.explained)
    for file in (*made, full.probe, full.log):
        file.unlink()
    contents = read(full.folder)
    assert contents.found is None
    assert (contents.metrics, contents.diagnosis, contents.explanations) == (None, None, None)
    assert (contents.log, contents.epochs, contents.main, contents.outdated) == ((), 0, None, False)
    assert contents.command("explain") == f"fieldmark explain '{full.folder}'"


def test_the_causes_come_first_in_their_order() -> None:
    findings = [finding(name, "fault") for name in "abc"] + [finding("d", "fine")]
    diagnosis = Diagnosis.model_validate({"findings": findings, "causes": ["c", "x", "d", "b"]})
    assert "".join(each.test for each in diagnosis.faults) == "cba"


def test_a_figure_without_value_is_not_defined() -> None:
    known, unknown = (Figure.model_validate(figure(value, 80)) for value in (0.8, None))
    assert (valued(known), interval(known)) == ("80.0 %", "70.0 to 87.3")
    assert (valued(known, False), interval(known, False)) == ("0.800", "0.700 to 0.873")
    assert (valued(unknown), interval(unknown)) == ("not defined", "")


# ---- what is damaged ----------------------------------------------------------------------------


def drop(found: Json) -> None:
    del found["splits"]["test"]["figures"]["accuracy"]


def shrink(found: Json) -> None:
    found["splits"]["test"]["confusion"].pop()


def rename(found: Json) -> None:
    found["classes"][0] = "another"


def reorder(found: Json) -> None:
    found["splits"]["test"]["classes"].reverse()


def mistype(found: Json) -> None:
    found["splits"]["test"]["n"] = "many"


def unnumber(found: Json) -> None:
    found["splits"]["test"]["figures"]["accuracy"]["value"] = float("nan")


def negate(found: Json) -> None:
    found["splits"]["test"]["confusion"][0][0] = -1


@pytest.mark.parametrize("damage", [drop, shrink, rename, reorder, mistype, unnumber, negate])
def test_damaged_figures_are_one_sentence(full: Run, damage: Callable[[Json], None]) -> None:
    found = json.loads(full.metrics.read_text(encoding="utf-8"))
    damage(found)
    full.metrics.write_text(json.dumps(found), encoding="utf-8")
    refused(full, full.metrics, "evaluate")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"classes": [1]}'])
def test_files_that_are_no_json_are_one_sentence(full: Run, content: bytes) -> None:
    for file, command in (
        (full.explained, "explain"),
        (full.findings, "diagnose"),
        (full.diagnosis, "diagnose"),
        (full.metrics, "evaluate"),
    ):
        file.write_bytes(content)
        refused(full, file, command)


@pytest.mark.parametrize(
    "picture", ["http://there/a.jpg", "javascript:x", SQUARE + '" onload="x', SQUARE + "\n", "x"]
)
def test_a_picture_is_in_the_file_or_it_is_damaged(full: Run, picture: str) -> None:
    found = json.loads(full.findings.read_text(encoding="utf-8"))
    found["findings"][0]["cases"][0]["photos"][0]["picture"] = picture
    files.write_json(full.findings, found)
    refused(full, full.findings, "diagnose")


def refused(run: Run, file: Path, command: str) -> None:
    with pytest.raises(FieldmarkError) as raised:
        read(run.folder)
    said = str(raised.value)
    assert str(file) in said
    assert f"`fieldmark {command} '{run.folder}'` makes it anew" in said
    assert "\n" not in said
    assert len(said) < 500 + len(str(run.folder)) * 2


@pytest.mark.parametrize("content", [b"[1]\n{\n", b"\xff\n", b"", None])
def test_what_the_training_wrote_is_damaged(full: Run, content: bytes | None) -> None:
    kept = [full.recipe, full.specification, full.split]
    kept += [full.log, full.probe] if content else []  # an untrained run has neither
    for file in kept:
        before = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(FieldmarkError) as raised:
            read(full.folder)
        assert "\n" not in str(raised.value)
        file.write_bytes(before)
    read(full.folder)


@pytest.mark.parametrize("content", [b"", b"\xff\n"])
def test_classes_are_names(full: Run, content: bytes) -> None:
    full.classes.write_bytes(content)
    with pytest.raises(FieldmarkError, match=re.escape(str(full.classes))):
        read(full.folder)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="is not a run folder"):
        read(tmp_path)
