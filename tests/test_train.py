"""Training for real, on drawn photos: what the run folder holds, and what stops a training."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from fieldmark import run as runs
from fieldmark import train
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE
from fieldmark.run import Run

BIRDS = ["Bananaquit", "Black Skimmer", "Black-throated Bushtit", "Cockatoo"]


def listing(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_run_holds_all_that_the_design_names(trained: Run) -> None:
    files = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*.*")}
    assert files == {
        "recipe.json",
        "environment.json",
        "classes.txt",
        "image.json",
        "split.csv",
        "log.jsonl",
        "last/state.keras",
        "best.keras",
        "figures/training_photos.png",
        "figures/curves.png",
        "figures/predictions.png",
    }
    assert trained.read_recipe() == TINY.resolved()
    assert list(trained.read_classes()) == BIRDS


def test_the_environment_says_what_made_the_run(trained: Run, birds: Path) -> None:
    facts = json.loads(trained.environment.read_text())
    assert facts["schema"] == runs.SCHEMA
    assert facts["backend"] == keras.backend.backend()
    assert facts["versions"]["keras"] == keras.__version__
    assert facts["photos"] == str(birds)
    assert facts["command"]


def test_the_split_is_written_with_the_hashes(trained: Run, birds: Path) -> None:
    with trained.split.open(newline="") as rows:
        first = next(csv.DictReader(rows))
    assert list(first) == ["path", "label", "split", "group", "sha256"]
    assert first["label"] == "Bananaquit"
    content = (birds / first["path"]).read_bytes()
    assert first["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_log_has_a_line_an_epoch(trained: Run) -> None:
    log = trained.read_log()
    assert [line["epoch"] for line in log] == [1, 2]
    names = {"epoch", "accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert all(set(line) == names for line in log)


def test_the_figures_have_the_article_s_sizes(trained: Run) -> None:
    sizes = {}
    for path in trained.figures.iterdir():
        with Image.open(path) as figure:
            sizes[path.stem] = figure.size
    inch = 150
    assert sizes == {
        "training_photos": (10 * inch, 5 * inch),
        "curves": (12 * inch, 4 * inch),
        "predictions": (10 * inch, 5 * inch),
    }


def test_the_best_weights_load_in_plain_keras(trained: Run, birds: Path) -> None:
    code = (
        "import sys, keras; m = keras.saving.load_model(sys.argv[1]); "
        "assert 'fieldmark' not in sys.modules; "
        "print(m.output_shape, m.layers[-1].activation.__name__)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(trained.best)], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split("\n")[0] == "(None, 4) linear"


def test_the_last_state_holds_the_optimiser_s(trained: Run) -> None:
    state = keras.saving.load_model(trained.last)
    steps = 2 * (40 // TINY.batch_size)  # 40 of 48 photos are for training
    assert int(state.optimizer.iterations) == steps
    best = keras.saving.load_model(trained.best)
    assert best.count_params() == state.count_params()


def test_the_best_epoch_is_kept_and_not_the_last(trained: Run, tmp_path: Path) -> None:
    """Later epochs are given worse figures by hand: the kept weights must stay the first ones."""
    run = runs.create(
        tmp_path / "run",
        recipe=TINY,
        environment={},
        classes=BIRDS,
        specification=trained.read_specification(),
        records=trained.read_split(),
    )
    image = keras.layers.Input((2,))
    model = keras.Model(image, keras.layers.Dense(2, activation="softmax", name="head")(image))
    record = train.Logger(run)
    record.set_model(model)
    record.on_train_begin()
    scores = [(0.5, 1.0), (0.5, 0.9), (0.4, 0.1), (0.5, float("nan"))]
    for epoch, (accuracy, loss) in enumerate(scores):
        model.layers[-1].set_weights([np.full((2, 2), float(epoch)), np.zeros(2)])
        record.on_epoch_begin(epoch)
        record.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": loss})
    assert keras.saving.load_model(run.best).layers[-1].get_weights()[0][0, 0] == 1.0
    assert keras.saving.load_model(run.last).layers[-1].get_weights()[0][0, 0] == 3.0
    assert run.read_log()[3]["val_loss"] is None


def test_the_logits_are_the_network_without_its_softmax() -> None:
    image = keras.layers.Input((3,))
    x = keras.layers.Dense(5, activation="relu")(image)
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax", name="head")(x))
    chosen = train.logits_network(model)
    train.copy_head(model, chosen)
    photos = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    softmax = np.asarray(keras.ops.softmax(chosen(photos)))
    np.testing.assert_allclose(softmax, np.asarray(model(photos)), atol=1e-6)
    assert train.logits_network(chosen) is chosen


def test_the_same_seed_trains_the_same_network_and_the_photos_are_only_read(
    trained: Run, birds: Path, tmp_path: Path
) -> None:
    before = listing(birds)
    again = train.fit(TINY, birds, tmp_path / "run")
    assert listing(birds) == before

    losses, expected = ([line["loss"] for line in run.read_log()] for run in (again, trained))
    np.testing.assert_allclose(np.array(losses, float), np.array(expected, float), rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"batch_size": 41}, "A batch of 41 is larger than the 40 training photos"),
        ({"split": "article", "validation_split": 0.01}, "48 for training and 0 for validation"),
        ({"split": "article", "test_split": 0.1}, "Keras' split has neither test photos"),
        ({"validation_split": 0.5, "test_split": 0.5}, "leave no photos to train on"),
        ({"split": "nowhere.csv"}, "There is no split nowhere.csv"),
        ({"group_by": "(.+"}, "is not a regular expression"),
        ({"pipeline": "article"}, "The article's pipeline knows no --augment"),
    ],
)
def test_values_that_do_not_fit_the_photos_are_refused(
    birds: Path, tmp_path: Path, values: dict[str, float], reason: str
) -> None:
    with pytest.raises(FieldmarkError, match=reason):
        train.fit(TINY.changed(**values), birds, tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_bad_photos_are_all_named_before_the_training(birds: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for species in BIRDS[:2]:
        (photos / species).mkdir(parents=True)
        for photo in sorted((birds / species).iterdir()):
            (photos / species / photo.name).write_bytes(photo.read_bytes())
    cut = photos / BIRDS[0] / "cut.jpg"
    cut.write_bytes((photos / BIRDS[0] / "0000.jpg").read_bytes()[:300])
    (photos / BIRDS[1] / "page.jpg").write_text("<html>")
    with pytest.raises(FieldmarkError) as caught:
        train.fit(TINY, photos, tmp_path / "run")
    assert "2 files are not photos" in str(caught.value)
    assert str(cut) in str(caught.value)
    assert "page.jpg: is a web page, not a photo" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_refused(trained: Run, birds: Path) -> None:
    before = listing(trained.folder)
    with pytest.raises(FieldmarkError, match="exists already"):
        train.fit(TINY, birds, trained.folder)
    assert listing(trained.folder) == before


def test_a_disk_without_room_is_refused_before_the_training(birds: Path, tmp_path: Path) -> None:
    class Huge:
        def count_params(self) -> int:
            return 10**15

    with pytest.raises(FieldmarkError, match=r"the run needs 28000000 GB"):
        train.require_room(tmp_path / "new" / "run", Huge())


def test_a_disk_that_fills_up_keeps_what_was_there(trained: Run, small_disk: Path) -> None:
    """Weights of 80 kB do not fit on what is left of 64 kB, and so the epoch is not in the log."""
    run = runs.create(
        small_disk / "run",
        recipe=TINY,
        environment={},
        classes=BIRDS,
        specification=trained.read_specification(),
        records=trained.read_split(),
    )
    image = keras.layers.Input((100,))
    model = keras.Model(image, keras.layers.Dense(200, activation="softmax", name="head")(image))
    record = train.Logger(run)
    record.set_model(model)
    record.on_train_begin()
    record.on_epoch_begin(0)
    with pytest.raises(FieldmarkError, match=r"state\.keras cannot be written"):
        record.on_epoch_end(0, {"val_accuracy": 0.5, "val_loss": 1.0})
    assert run.read_log() == []
    assert [path.name for path in run.folder.rglob("*.keras")] == []
    assert "holds no weights and can be deleted" in train.kept(run)


def test_a_run_among_the_photos_is_refused(birds: Path) -> None:
    before = listing(birds)
    for out in (birds / "run", birds / BIRDS[0] / "run", birds / ".." / birds.name / "run"):
        with pytest.raises(FieldmarkError, match="lies among the photos"):
            train.fit(TINY, birds, out)
    assert listing(birds) == before


def test_the_figures_are_shown_on_a_screen_only(birds: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="--show needs a screen"):
        train.fit(TINY, birds, tmp_path / "run", show=True)
    assert os.listdir(tmp_path) == []


def test_a_shown_figure_goes_through_matplotlib_s_windows() -> None:
    """With matplotlib's own template of a screen, which has no windows but is no file either."""
    code = (
        "from matplotlib.figure import Figure; from fieldmark import train;"
        "train.require_screen(); train.on_screen(Figure()); print('shown')"
    )
    environment = {**os.environ, "MPLBACKEND": "template"}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "shown\n"


def test_ctrl_c_ends_cleanly_and_says_what_was_kept(birds: Path, tmp_path: Path) -> None:
    # Whoever runs the tests in the background may have the signal ignored, and hand that on.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from fieldmark.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "train", str(birds), "--out", "run"]
    flags = ["--recipe", "small", "--image-size", "32", "--epochs", "5000"]
    process = subprocess.Popen(
        [*command, *flags],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 240
    try:
        while not (log.exists() and log.read_text().count("\n") > 1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in printed + errors
    run = runs.open_run(tmp_path / "run")
    kept = len(run.read_log())
    assert f"epochs finished: {kept}; run keeps log.jsonl, best.keras, last/state.keras" in printed
    assert keras.saving.load_model(run.best).count_params() > 0
    assert not [path for path in run.folder.rglob("*") if "partial" in path.name]


WITHOUT_TENSORFLOW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError("not here")
sys.meta_path.insert(0, Absent())
from fieldmark.__main__ import main
main()
"""


@pytest.mark.slow
def test_jax_trains_without_tensorflow(birds: Path, tmp_path: Path) -> None:
    pytest.importorskip("jax")
    flags = ["--recipe", "small", "--image-size", "32", "--epochs", "1"]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, "train", str(birds), "--out", "run", *flags],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        check=True,
    )
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["backend"] == "jax"


@pytest.mark.slow
def test_the_article_trains(birds: Path, tmp_path: Path) -> None:
    recipe = ARTICLE.changed(image_size=32, batch_size=13, epochs=1)
    run = train.fit(recipe, birds, tmp_path / "run")
    best = keras.saving.load_model(run.best)
    assert best.count_params() == 35_969_668
    assert best.layers[-1].activation is keras.activations.linear
    assert len(run.read_log()) == 1
