"""A run is judged on photos that it has not seen, whatever they are called, wherever they lie."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Command
from fieldmark import draw, evaluate, export, inference, predictions, split, train
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.run import Run
from fieldmark.trained import Trained


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the trained run, to write into."""
    return Run(Path(shutil.copytree(trained.folder, tmp_path / "run")))


def test_what_was_held_out_is_predicted_as_the_training_saw_it(run: Run) -> None:
    found = evaluate.evaluate(run.folder)
    table = predictions.read(run.predictions)
    rows = [row for row in run.read_split() if row.split == "validation"]
    assert table.paths == tuple(row.path for row in rows)
    assert set(table.splits) == {"validation"}
    assert np.allclose(table.probabilities.sum(axis=1), 1)
    # The log has the accuracy of the same weights, of its best epoch.
    right = float((table.probabilities.argmax(axis=1) == table.labels).mean())
    logged = [
        line[name] for line in run.read_log() for name in line if name.endswith("val_accuracy")
    ]
    assert max(value for value in logged if value is not None) == pytest.approx(right)
    assert found["splits"]["validation"]["figures"]["accuracy"]["value"] == pytest.approx(right)
    assert json.loads(run.metrics.read_text()) == found
    assert Decision.from_json(run.decision.read_text()).photos == len(rows)


def test_an_export_with_another_threshold_is_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.decision.unlink(missing_ok=True)
    place = export.export(run.folder, "keras")
    evaluate.evaluate(run.folder)
    assert f"{place} has another temperature and threshold, or none: `fieldmark export" in (
        capsys.readouterr().out
    )
    export.export(run.folder, "keras")
    (run.exports / "notes").mkdir()
    capsys.readouterr()
    evaluate.evaluate(run.folder)
    assert "another temperature" not in capsys.readouterr().out


def test_the_classifier_answers_as_the_network_does(run: Run) -> None:
    classifier = Trained.load(run)
    photos = [run.photo(row.path) for row in run.read_split()][:5]
    squares = classifier.squares(photos)
    assert squares.shape == (5, 32, 32, 3)
    expected = inference.forward(classifier.network)(squares.astype(np.float32))  # 0 to 255
    assert np.allclose(classifier.logits(photos), expected, atol=1e-5)
    assert classifier.logits([]).shape == (0, 4)


def test_photos_of_another_folder_are_known_by_their_content(
    run: Run, birds: Path, tmp_path: Path
) -> None:
    rows = run.read_split()
    other = draw.birds(tmp_path / "other", per_class=3, size=32, seed=9)
    trained = next(row for row in rows if row.split == "training")
    held_out = next(row for row in rows if row.split == "validation")
    shutil.copy(birds / trained.path, other / trained.label / "seen before.jpg")
    shutil.copy(birds / held_out.path, other / held_out.label / "held out.jpg")
    evaluate.evaluate(run.folder, other)
    table = predictions.read(run.predictions)
    assert table.splits.count("new") == 12
    assert not any("seen before" in path for path in table.paths)
    assert table.splits[table.paths.index(str(other / held_out.label / "held out.jpg"))] == (
        "validation"
    )
    # The others that were held out come along, so that figures of one do not pass for those of all.
    assert table.splits.count("validation") == sum(row.split == "validation" for row in rows)
    before = run.predictions.read_bytes()
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": str(tmp_path / "gone")}))
    with pytest.raises(FieldmarkError, match="are not where they were"):
        evaluate.evaluate(run.folder, other)
    assert run.predictions.read_bytes() == before


def test_new_photos_alone_leave_the_decision_as_it_was(run: Run, tmp_path: Path) -> None:
    evaluate.evaluate(run.folder)
    decision = run.decision.read_bytes()
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": str(tmp_path / "gone")}))
    other = draw.birds(tmp_path / "other", per_class=3, size=32, seed=9)
    assert {*evaluate.evaluate(run.folder, other)["splits"]} == {"new"}
    assert run.decision.read_bytes() == decision
    found = json.loads(run.metrics.read_text())
    assert found["decision"] == json.loads(decision)
    assert found["temperature"] is None  # of which an interval could be had
    assert found["splits"]["new"]["figures"]["calibrated_log_loss"] is not None


def test_the_same_bytes_on_both_sides_count_as_trained_on(
    run: Run, birds: Path, tmp_path: Path
) -> None:
    rows = list(run.read_split())
    at = next(i for i, row in enumerate(rows) if row.split == "validation")
    trained = next(row for row in rows if row.split == "training")
    leaked = Path(shutil.copytree(birds, tmp_path / "leaked"))
    shutil.copy(leaked / trained.path, leaked / rows[at].path)
    rows[at] = replace(rows[at], sha256=trained.sha256)
    split.write(run.split, rows)
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": str(leaked)}))
    assert trained.sha256 not in {row.sha256 for row in evaluate.given(run, leaked)}
    assert len(evaluate.own(run)) == sum(row.split == "validation" for row in rows) - 1


def test_other_weights_make_an_evaluation_anew_necessary(run: Run) -> None:
    evaluate.evaluate(run.folder)
    train.save_best(run, Trained.load(run).network)
    assert not run.predictions.exists()
    assert not run.metrics.exists()
    assert not run.decision.exists()


def test_weights_that_were_written_meanwhile_are_not_those_that_were_judged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*what: Any) -> Any:
        train.save_best(run, Trained.load(run).network)
        return predicted(*what)

    predicted = evaluate.predicted
    monkeypatch.setattr(evaluate, "predicted", meanwhile)
    with pytest.raises(FieldmarkError, match="was written anew meanwhile"):
        evaluate.evaluate(run.folder)
    assert not run.metrics.exists()


def test_a_damaged_file_of_the_run_is_one_sentence(run: Run, tmp_path: Path) -> None:
    evaluate.evaluate(run.folder)
    found = evaluate.evaluate(run.folder)
    classes = run.classes.read_text()
    run.classes.write_text(classes.removesuffix("\n"))  # as some editors do
    assert evaluate.evaluate(run.folder) == found
    first, *rest = classes.splitlines(keepends=True)
    for damaged in ("".join(rest), classes + "Owl\n", first + classes, ""):
        run.classes.write_text(damaged)
        with pytest.raises(FieldmarkError, match="does not name each of the 4 classes of"):
            evaluate.evaluate(run.folder)
    run.classes.write_text("".join(["Owl\n", *rest]))
    with pytest.raises(FieldmarkError, match=f"has photos of {first.strip()}, which"):
        evaluate.evaluate(run.folder)
    run.classes.write_text(classes)
    content = bytearray(run.best.read_bytes())
    content[len(content) // 2] ^= 1
    run.best.write_bytes(content)
    with pytest.raises(FieldmarkError, match="cannot be read as a Keras model"):
        evaluate.evaluate(run.folder)
    run.decision.write_bytes(b"\xff\xfe")  # which an evaluation would write anew
    with pytest.raises(FieldmarkError, match=r"no temperature and threshold|cannot be read"):
        run.read_decision()


def test_photos_that_were_moved_are_found_where_they_are_now(
    run: Run, birds: Path, tmp_path: Path
) -> None:
    before = evaluate.evaluate(run.folder)
    moved = Path(shutil.copytree(birds, tmp_path / "moved"))
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": str(tmp_path / "gone")}))
    with pytest.raises(
        FieldmarkError, match=r"folder that has all of them now, `fieldmark evaluate .* PHO"
    ):
        evaluate.evaluate(run.folder)
    assert evaluate.evaluate(run.folder, moved)["splits"] == before["splits"]


def test_bad_input_leaves_the_run_as_it_was(
    run: Run, birds: Path, tmp_path: Path, fieldmark: Command
) -> None:
    evaluate.evaluate(run.folder)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    strange = draw.birds(tmp_path / "strange", per_class=2, size=32)
    (strange / "Cockatoo").rename(strange / "<b>Emu")
    single = tmp_path / "single"
    shutil.copytree(birds / "Cockatoo", single / "Cockatoo")
    damaged = Path(shutil.copytree(birds, tmp_path / "damaged"))
    (damaged / "Cockatoo" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    for photos, message in (
        (strange, "has <b>Emu, which"),
        (single, "one class"),
        (damaged, "broken.jpg"),
        (tmp_path / "nothing", "nothing"),
    ):
        with pytest.raises(FieldmarkError, match=re.escape(message)):
            evaluate.evaluate(run.folder, photos)
    done = fieldmark("evaluate", run.folder, strange)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    with pytest.raises(FieldmarkError, match="is no share"):
        evaluate.evaluate(run.folder, coverage=0)
    now = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert now == before


def test_a_photo_that_is_another_one_now_is_refused(birds: Path, run: Run, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": str(photos)}))
    rows = run.read_split()
    held_out = next(row for row in rows if row.split == "validation")
    trained = next(row for row in rows if row.split == "training")
    shutil.copy(photos / trained.path, photos / held_out.path)
    with pytest.raises(FieldmarkError, match="is another photo than when"):
        evaluate.evaluate(run.folder)
    assert not run.predictions.exists()
