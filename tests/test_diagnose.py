"""Each fault, planted in a run that has none, is named, and no other is."""

from __future__ import annotations

import colorsys
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import Command
from fieldmark import diagnose, split, train
from fieldmark.contents import Remarks, read
from fieldmark.data import list_photos, sha256s
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import Run

pytestmark = pytest.mark.usefixtures("whole_network")

HEALTHY = ARTICLE.changed(
    network="small",
    pipeline="batches",
    image_size=32,
    batch_size=16,
    epochs=4,
    optimiser="adamw",
    learning_rate=0.003,
    schedule="cosine",
    validation_split=0.4,
    split="stratified",
    statistics=8,
)


def coloured(folder: Path, per_class: int, *, colour: float = 0.5) -> Path:
    """Make photos of four classes that are told apart by their colour, beside noise."""
    rng = np.random.default_rng(0)
    for label in range(4):
        place = folder / f"colour {label}"
        place.mkdir(parents=True)
        ground = 255 * np.array(colorsys.hsv_to_rgb(label / 4, colour, 0.7))
        for number in range(per_class):
            # Large spots, by which photos are told apart, and no two are near duplicates.
            spots = np.kron(rng.normal(size=(8, 8, 1)), np.ones((4, 4, 1)))
            pixels = ground + 40 * spots + rng.normal(scale=10, size=(32, 32, 3))
            photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            photo.save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that are easy to tell apart; for reading only."""
    return coloured(tmp_path_factory.mktemp("coloured") / "photos", 70)


@pytest.fixture(scope="module")
def healthy(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without a fault; for reading only."""
    return train.fit(HEALTHY, photos, tmp_path_factory.mktemp("healthy") / "run")


@pytest.fixture
def run(healthy: Run, tmp_path: Path) -> Run:
    """A copy of it, to plant a fault in."""
    return Run(Path(shutil.copytree(healthy.folder, tmp_path / "run")))


def causes(run: Run) -> list[str]:
    """Diagnose a run, and return the faults."""
    found = diagnose.diagnose(run.folder)
    written = json.loads(run.diagnosis.read_text())
    assert {each["test"] for each in written["findings"]} == {*diagnose.QUESTIONS}
    named = [each.test for each in found if each.verdict == "fault"]
    assert written["causes"] == named
    return named


def remarks(run: Run) -> Remarks:
    """Return what was found in the photos, as a report reads it."""
    found = read(run.folder).found
    assert found is not None
    return found


def test_a_loss_of_zero_is_no_fall(run: Run) -> None:
    """A network may know its photos so well; 0 / 0 is no number, and no JSON."""
    epochs = [{**epoch, "loss": 0.0} for epoch in run.read_log()]
    run.log.write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))
    found = diagnose.unfinished(diagnose.Case(run))
    assert "fell by 0%" in found.measured
    assert found.verdict == "fine"


def test_a_run_without_a_fault_has_none(run: Run) -> None:
    assert causes(run) == []
    found = remarks(run)
    assert found.account == "280 files: 280 used"
    assert [(each.kind, each.of) for each in found.of("error", "warning")] == [("tiny", 280)]
    (tiny,) = found.findings
    assert (tiny.shown, tiny.pictured) == (diagnose.PICTURES.finding, True)


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, "fine"), (0.01, "fault")], ids=["far off", "of another range"]
)
def test_only_what_beats_guessing_was_trained_on(share: float, verdict: str) -> None:
    """Of a network that is far off, smaller numbers make less; that says nothing of its range."""
    measured = {"0..255": 308.7, "0..1": 11.7, "-1..1": 12.6}  # of an article's two epochs
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 40)
    spec = ImageSpec(size=32, mode="crop", interpolation="bilinear", scaling="0..255")

    def answers(_: object, spec: ImageSpec) -> SimpleNamespace:
        return SimpleNamespace(losses=share * measured[spec.scaling] * noise)

    case: Any = SimpleNamespace(
        classes=4,
        classifier=SimpleNamespace(specification=spec),
        run=SimpleNamespace(specification=Path("image.json")),
        validation=None,
        answers=answers,
    )
    assert diagnose.input_range(case).verdict == verdict


@pytest.mark.slow
def test_a_file_of_any_name_beside_the_photos_is_told(tmp_path: Path) -> None:
    photos = coloured(tmp_path / "photos", 12)
    odd = os.fsencode(photos) + b"/colour 0/<b>\xff\n.txt"
    Path(os.fsdecode(odd)).write_text("no photo")
    run = train.fit(HEALTHY.changed(epochs=1), photos, tmp_path / "run")
    diagnose.diagnose(run.folder)
    (skipped,) = remarks(run).of("note")
    assert skipped.cases[0].photos[0].path == "colour 0/<b>\\udcff\\n.txt"


# ---- planted in the run's files -----------------------------------------------------------------


def edit(run: Run, change: Callable[[keras.Model], None]) -> None:
    """Change the saved network."""
    model = keras.saving.load_model(run.best)
    change(model)
    model.save(run.best)


def no_number(run: Run) -> None:
    lines = run.read_log()
    lines[1] = {**lines[1], "loss": None}
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def softmax(run: Run) -> None:
    def change(model: keras.Model) -> None:
        model.layers[-1].activation = keras.activations.softmax

    edit(run, change)


def classes_in_another_order(run: Run) -> None:
    names = run.read_classes()
    run.classes.write_text("".join(f"{name}\n" for name in (names[1], names[0], *names[2:])))


def other_range(run: Run) -> None:
    specification = run.read_specification().model_copy(update={"scaling": "-1..1"})
    run.specification.write_text(specification.model_dump_json())


def stale(run: Run) -> None:
    def change(model: keras.Model) -> None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_variance.assign(layer.moving_variance * 6)

    edit(run, change)


def silent(run: Run) -> None:
    def change(model: keras.Model) -> None:
        kernel = np.abs(model.layers[-1].get_weights()[0]).sum(axis=1)
        last = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
        beta = np.array(last[-1].beta)
        # Those that say least, so that the answers stay as they are.
        beta[np.argsort(kernel)[: int(0.6 * len(kernel))]] = -100
        last[-1].beta.assign(beta)

    edit(run, change)


PLANTED = {
    "numbers": no_number,
    "reading": classes_in_another_order,
    "input": other_range,
    "statistics": stale,
    "dead units": silent,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("input", "dead units") else ())
        for name in PLANTED
    ],
)
def test_a_fault_of_the_run_is_named_and_no_other(name: str, run: Run) -> None:
    PLANTED[name](run)
    assert causes(run) == [name]


@pytest.mark.slow
def test_a_softmax_before_a_loss_of_logits_is_harmless_on_tensorflow_alone(run: Run) -> None:
    """Keras finds the logits behind it there, and on JAX the loss is of a double softmax."""
    softmax(run)
    assert causes(run) == []
    pytest.importorskip("jax", reason="JAX is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", "diagnose", str(run.folder)],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "Cause: head.", done.stderr


# ---- planted in the training --------------------------------------------------------------------

QUICK = "validation size"  # one that is trained for; all of them are minutes
RECIPES: dict[str, list[dict[str, Any]]] = {
    "learning rate": [{"learning_rate": 3e-7}, {"learning_rate": 10.0}],
    "one batch": [{"label_smoothing": 0.97}],
    "unfinished": [
        {"learning_rate": 3e-5, "schedule": "constant", "epochs": epochs} for epochs in (1, 3, 6)
    ],
    "validation size": [{"validation_split": 0.05}],
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param(name, values, marks=() if name == QUICK else pytest.mark.slow)
        for name, of in RECIPES.items()
        for values in of
    ],
)
def test_a_fault_of_the_recipe_is_named_and_no_other(
    name: str, values: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    assert causes(train.fit(HEALTHY.changed(**values), photos, tmp_path / "run")) == [name]


@pytest.mark.slow
def test_frozen_batches_are_named_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    recipe = ARTICLE.changed(network="small", image_size=32, validation_split=0.4, epochs=8)
    assert causes(train.fit(recipe, photos, tmp_path / "run")) == ["frozen batches"]


# ---- planted in the photos ----------------------------------------------------------------------


def mislabelled(folder: Path) -> Recipe:
    """Move one photo in eight to the next class."""
    coloured(folder, 70)
    for label in range(4):
        for number in range(0, 70, 8):
            photo = folder / f"colour {label}" / f"{number:03}.png"
            photo.rename(folder / f"colour {(label + 1) % 4}" / f"from {label} {number}.png")
    return HEALTHY


def meaningless(folder: Path) -> Recipe:
    """Deal the photos out to the classes by chance."""
    coloured(folder, 70)
    every = sorted(folder.glob("*/*.png"))
    places = np.random.default_rng(0).permutation(len(every))
    for place, photo in zip(places.tolist(), every, strict=True):
        photo.rename(folder / f"colour {place % 4}" / f"{photo.parent.name} {photo.name}")
    return HEALTHY.changed(epochs=8)  # after four it is called unfinished, and the rest follows


def leaked(folder: Path) -> Recipe:
    """Give a few validation photos a copy in the training."""
    coloured(folder, 70)
    listed = list_photos(folder)
    rows = split.assign(listed, sha256s(listed), validation=0.4, test=0.0, seed=0)
    for row in [row for row in rows if row.split == "validation"][::20]:
        copy = folder / row.label / f"copy {Path(row.path).name}"
        shutil.copy(folder / row.path, copy)
        rows = (*rows, replace(row, path=f"{row.label}/{copy.name}", split="training"))
    split.write(folder.parent / "split.csv", rows)
    return HEALTHY.changed(split=str(folder.parent / "split.csv"))


def unseen(folder: Path) -> Recipe:
    """Give the photos of one class to a fifth, which has too few to be told from it."""
    coloured(folder, 90)
    (folder / "rare").mkdir()
    for number in range(12):
        photo = folder / "colour 0" / f"{number:03}.png"
        photo.rename(folder / "rare" / photo.name)
    return HEALTHY.changed(validation_split=0.45)


def few(folder: Path) -> Recipe:
    """Leave next to nothing to learn from, and learn it by heart."""
    coloured(folder, 50, colour=0.07)
    return HEALTHY.changed(validation_split=0.6, epochs=30)


PHOTOS = {
    "label errors": mislabelled,
    "shuffled labels": meaningless,
    "leaks": leaked,
    "never predicted": unseen,
    "gap": few,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_a_fault_of_the_photos_is_named_and_no_other(name: str, tmp_path: Path) -> None:
    if name == "label errors":
        pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    recipe = PHOTOS[name](tmp_path / "photos")
    run = train.fit(recipe, tmp_path / "photos", tmp_path / "run")
    assert causes(run) == [name]
    kept = {each.kind: each for each in remarks(run).findings}
    assert ("leak" in kept) == (name == "leaks")
    if name == "shuffled labels":  # a network that knows nothing accuses no label
        assert "contradicted" not in kept
    if name == "label errors":
        shown = [case.photos[0] for case in kept["contradicted"].cases]
        assert sum("from " in each.path for each in shown) > len(shown) / 2
        assert kept["contradicted"].of >= len(shown) == diagnose.PICTURES.finding
        assert all(each.picture for each in shown)


# ---- bad input ----------------------------------------------------------------------------------


def test_a_run_that_cannot_be_diagnosed_is_refused_in_one_sentence(
    run: Run, tmp_path: Path, fieldmark: Command
) -> None:
    shutil.copy(run.log, tmp_path / "log")
    run.log.write_text("")
    with pytest.raises(FieldmarkError, match="has not finished an epoch"):
        diagnose.diagnose(run.folder)
    shutil.copy(tmp_path / "log", run.log)
    run.best.write_bytes(b"no model")
    with pytest.raises(FieldmarkError, match="cannot be read as a Keras model"):
        diagnose.diagnose(run.folder)
    run.best.unlink()
    with pytest.raises(FieldmarkError, match="has no trained weights"):
        diagnose.diagnose(run.folder)
    assert not run.diagnosis.exists()
    done = fieldmark("diagnose", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not a run folder" in done.stderr


def test_photos_that_changed_are_refused(healthy: Run, tmp_path: Path) -> None:
    photos = coloured(tmp_path / "photos", 12)
    run = train.fit(HEALTHY.changed(epochs=1), photos, tmp_path / "run")
    photo = run.photo(run.read_split()[0].path)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    with pytest.raises(FieldmarkError, match=photo.name):
        diagnose.diagnose(run.folder)


def test_a_fault_that_another_explains_is_no_cause() -> None:
    found = [
        diagnose.Finding("shuffled labels", "chance", "more", "fault"),
        diagnose.Finding("learning rate", "1.4", "0.7", "fault", "--learning-rate 0.001"),
        diagnose.Finding("leaks", "none", "none", "fine", "split anew"),
    ]
    told = diagnose.explained(found)
    assert [(each.test, each.verdict) for each in told] == [
        ("learning rate", "fault"),
        ("shuffled labels", "follows"),
        ("leaks", "fine"),
    ]
    assert told[1].fix == "mend first: learning rate"
    assert told[2].fix == ""
    text = diagnose.table(told, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.endswith("Cause: learning rate.")


def test_what_follows_can_be_followed_to_its_cause() -> None:
    """No two tests explain each other, so that a fault always leaves a cause."""
    for test, causes in diagnose.FOLLOWS_FROM.items():
        assert {test, *causes} <= {*diagnose.QUESTIONS}
        assert all(test not in diagnose.FOLLOWS_FROM.get(cause, ()) for cause in causes)


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_the_interval_of_a_difference_holds_it(n: int, m: int, p: float, q: float) -> None:
    first, second = round(p * n) / n, round(q * m) / m
    low, high = diagnose.newcombe((first, n), (second, m))
    assert -1 <= low <= first - second <= high <= 1
