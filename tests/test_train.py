"""Training for real, on drawn photos: what the run folder holds, and what stops a training."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from fieldmark import locks, loop, reproduction, state, train
from fieldmark import run as runs
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch
from fieldmark.recipe import ARTICLE, PROBE, Recipe
from fieldmark.run import Run, create, open_run

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
        "last/state.npz",
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
    names |= {"learning_rate", "photos_per_second"}
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


@pytest.mark.slow
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
    header, _, arrays = state.read(trained.last)
    assert header.epoch == 2
    steps = [values for name, values in arrays.items() if name.endswith("/iteration")]
    assert [int(each) for each in steps] == [2 * (40 // TINY.batch_size)]  # 40 of 48 photos train


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
        ({"accumulate": 11}, "--accumulate 11 is more than the 10 steps of the training"),
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


def test_a_probe_outlives_a_figure_that_cannot_be_written(
    trained: Run,
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"network": "small", "image_size": 32, "batch_size": 8, "weights": str(trained.best)}
    recipe = PROBE.changed(**values)
    keep = train.Album._keep

    def full(self: train.Album, name: str, figure: Any) -> None:
        if name == "predictions":
            raise FieldmarkError("the disk is full")
        keep(self, name, figure)

    with monkeypatch.context() as patched, pytest.raises(FieldmarkError, match="disk is full"):
        patched.setattr(train.Album, "_keep", full)
        train.fit(recipe, birds, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert f"Stopped; {run.best} is kept" in capsys.readouterr().out
    before = [{**line, "seconds": 0} for line in run.read_log()]
    train.fit(recipe, birds, run.folder)
    assert [{**line, "seconds": 0} for line in run.read_log()] == before
    assert (run.figures / "predictions.png").exists()


def test_a_validation_that_is_no_number_has_no_accuracy(trained: Run, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(trained.folder, tmp_path / "run"))
    lost = {"val_loss": None, "val_accuracy": None}
    lines = [{**line, **lost} for line in trained.read_log()]
    text = "".join(
        json.dumps({name: each for name, each in line.items() if "averaged" not in name}) + "\n"
        for line in lines
    )
    run.log.write_text(text)
    said = train.outcome(run)
    assert said.startswith("The validation loss after epoch 2 is no number")
    assert said.endswith("There are no weights whose loss is a number.")
    assert "%" not in said
    first = {**lines[0], "val_loss": 1.0, "val_accuracy": 0.5}
    run.log.write_text(f"{json.dumps(first)}\n{text.splitlines()[1]}\n")
    assert train.outcome(run).endswith("holds epoch 1, the best by validation accuracy: 50.0%.")


def test_a_finished_run_is_said_to_be_so(
    trained: Run, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(trained.folder)
    train.fit(TINY, birds, trained.folder)
    assert listing(trained.folder) == before
    printed = capsys.readouterr().out
    assert "is finished already" in printed
    assert "Validation accuracy after epoch 2" in printed


def test_a_finished_run_is_not_one_of_other_photos(
    trained: Run, birds: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    (photos / BIRDS[1] / "0001.jpg").unlink()
    with pytest.raises(FieldmarkError, match=r"1 missing .*bring back the photos"):
        train.fit(TINY, photos, trained.folder)


def test_a_run_of_another_recipe_is_refused_with_the_difference(trained: Run, birds: Path) -> None:
    before = listing(trained.folder)
    with pytest.raises(FieldmarkError, match=r"another recipe \(epochs 2 there, 3 now\)"):
        train.fit(TINY.changed(epochs=3), birds, trained.folder)
    assert listing(trained.folder) == before


def test_a_folder_of_something_else_is_refused(birds: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(FieldmarkError, match="exists already"):
        train.fit(TINY, birds, tmp_path)
    assert os.listdir(tmp_path) == ["diary.txt"]


def test_a_run_of_another_version_is_refused(trained: Run, birds: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(trained.folder, tmp_path / "run"))
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "schema": 1}))
    with pytest.raises(FieldmarkError, match="has the run schema 1, and this fieldmark reads 2"):
        train.fit(TINY, birds, run.folder)


def stopped(folder: Path, recipe: Recipe, photos: Path, *, after: int) -> None:
    """Train until so many epochs are in the log, and stop as Ctrl-C does."""
    with pytest.MonkeyPatch.context() as patch:

        def append(run: Run, epoch: Epoch, kept: Any = Run.append_log) -> None:
            kept(run, epoch)
            if epoch["epoch"] == after:
                raise KeyboardInterrupt

        patch.setattr(Run, "append_log", append)
        with pytest.raises(KeyboardInterrupt):
            train.fit(recipe, photos, folder)


def same(one: Run, other: Run) -> None:
    """Hold two runs equal: log, best weights and state, bit for bit."""
    logs = [
        [{k: v for k, v in line.items() if k not in loop.TIMES} for line in run.read_log()]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    states = [state.read(run.last)[2] for run in (one, other)]
    assert list(states[0]) == list(states[1])
    for name, values in states[0].items():
        assert values.tobytes() == states[1][name].tobytes(), name
    best = [keras.saving.load_model(run.best).get_weights() for run in (one, other)]
    for ours, theirs in zip(*best, strict=True):
        assert ours.tobytes() == theirs.tobytes()


# The article's training with a network that takes seconds.
LITERAL = ARTICLE.changed(network="small", image_size=32, batch_size=8, epochs=3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [LITERAL, TINY.changed(average=0.9, epochs=3)])
def test_a_stopped_run_is_gone_on_with_and_ends_the_same(
    birds: Path, tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train.fit(recipe, birds, tmp_path / "whole")
    stopped(tmp_path / "run", recipe, birds, after=2)
    assert "epochs finished: 2; the same command goes on" in capsys.readouterr().out
    run = train.fit(recipe, birds, tmp_path / "run")
    assert "Going on after epoch 2." in capsys.readouterr().out
    same(run, whole)
    assert sorted(os.listdir(run.last.parent)) == ["state.npz"]


@pytest.mark.parametrize("what", ["gone", "cut off", "another"])
def test_a_photo_that_changes_before_the_article_has_read_it_is_named(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    learn = reproduction.train

    def late(*given: Any, **named: Any) -> None:
        for photo in (photos / BIRDS[0]).glob("*.jpg"):
            if what == "gone":
                photo.unlink()
            else:
                photo.write_bytes(
                    photo.read_bytes()[:100]
                    if what == "cut off"
                    else (photos / BIRDS[1] / photo.name).read_bytes()
                )
        learn(*given, **named)

    monkeypatch.setattr(reproduction, "train", late)
    with pytest.raises(FieldmarkError, match=rf"{BIRDS[0]}/0\d+\.jpg|changed"):
        train.fit(LITERAL, photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_photos_are_refused_with_the_difference(birds: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    stopped(tmp_path / "run", TINY, photos, after=1)
    (photos / BIRDS[0] / "0000.jpg").rename(photos / BIRDS[0] / "new name.jpg")
    (photos / BIRDS[1] / "0001.jpg").unlink()
    before = listing(tmp_path / "run")
    with pytest.raises(FieldmarkError, match=r"1 missing .*1 moved .*bring back the photos"):
        train.fit(TINY, photos, tmp_path / "run")
    assert listing(tmp_path / "run") == before


def test_two_processes_do_not_train_into_one_run(birds: Path, tmp_path: Path) -> None:
    stopped(tmp_path / "run", TINY, birds, after=1)
    with locks.sole(Run(tmp_path / "run").lock) as ours:
        assert ours
        with pytest.raises(FieldmarkError, match="is being trained by another process"):
            train.fit(TINY, birds, tmp_path / "run")


def test_the_second_of_two_that_begin_is_told_of_the_first(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(out: Path, **what: Any) -> Run:
        create(out, **what)
        return create(out, **what)

    monkeypatch.setattr(train, "create", twice)
    with pytest.raises(FieldmarkError, match="is being trained by another process"):
        train.fit(TINY, birds, tmp_path / "run")
    assert Run(tmp_path / "run").recipe.exists()


def test_what_is_kept_is_said_with_its_own_accuracy(trained: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(trained.folder, tmp_path / "run")))
    first, second = run.read_log()
    better = {**first, "val_accuracy": 0.875}
    lines = [better, {**second, "val_accuracy": 0.75}]
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = train.outcome(run)
    assert "after epoch 2: 75.0%, 6 of 8" in said
    assert said.endswith("holds epoch 1, the best by validation accuracy: 87.5%.")


def test_the_recipe_of_a_run_goes_on_without_being_named(
    trained: Run, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.choose(birds, out=trained.folder) == trained.read_recipe()
    changed = train.choose(birds, out=trained.folder, epochs=9)
    assert changed.epochs == 9
    assert train.choose(birds, out=trained.folder, minutes=1.0) == trained.read_recipe()
    assert "and --minutes changes nothing now." in capsys.readouterr().out


@pytest.mark.slow
def test_a_probe_and_what_begins_with_one(trained: Run, birds: Path, tmp_path: Path) -> None:
    recipe = TINY.changed(weights=str(trained.best), probe=True, epochs=0)
    run = train.fit(recipe, birds, tmp_path / "probe")
    figures = json.loads(run.probe.read_text())
    assert figures["val_accuracy"] == run.read_log()[0]["val_accuracy"]
    head, before = (keras.saving.load_model(each.best).get_weights() for each in (run, trained))
    assert all(np.array_equal(a, b) for a, b in zip(head[:-2], before[:-2], strict=True))
    assert not np.array_equal(head[-2], before[-2])

    recipe = recipe.changed(epochs=1, freeze_normalisation=True, optimiser="adamw")
    fine = train.fit(recipe, birds, tmp_path / "fine")
    assert json.loads(fine.probe.read_text()) | {"seconds": 0} == figures | {"seconds": 0}
    best = keras.saving.load_model(fine.best)
    for layer in best.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            kept = keras.saving.load_model(trained.best).get_layer(layer.name)
            np.testing.assert_array_equal(layer.moving_mean, kept.moving_mean)


def test_a_training_grows_from_small_photos_to_large_ones(birds: Path, tmp_path: Path) -> None:
    recipe = TINY.changed(begin_size=32, end_size=64, image_size=64, validate_every=2)
    run = train.fit(recipe, birds, tmp_path / "run")
    assert ["val_loss" in line for line in run.read_log()] == [False, True]
    assert keras.saving.load_model(run.best).input_shape == (None, None, None, 3)


def test_a_batch_of_one_needs_another_normalisation(birds: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="a batch of one has none to compare"):
        train.fit(TINY.changed(batch_size=1), birds, tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_one_sentence(birds: Path, small_disk: Path) -> None:
    """The figures and the state of a network of 0.2 million parameters do not fit on 64 kB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "require_room", lambda *_, **__: None)
        with pytest.raises(FieldmarkError, match="cannot be written"):
            train.fit(TINY, birds, small_disk / "run")
    assert os.listdir(small_disk) == []


def test_too_little_memory_leaves_nothing_half_written(birds: Path, tmp_path: Path) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    with pytest.raises(FieldmarkError, match="a batch of 8 photos: try --batch-size 4"):
        train.fit(TINY, birds, tmp_path / "run", learn=exhausted)
    assert os.listdir(tmp_path) == []
    stopped(tmp_path / "run", TINY, birds, after=1)
    with pytest.raises(FieldmarkError, match="does not suffice"):
        train.fit(TINY, birds, tmp_path / "run", learn=exhausted)
    assert Run(tmp_path / "run").last.exists()


def test_a_disk_without_room_is_refused_before_the_training(birds: Path, tmp_path: Path) -> None:
    class Huge:
        def count_params(self) -> int:
            return 10**15

    with pytest.raises(FieldmarkError, match=r"the run needs 28000000 GB"):
        train.require_room(tmp_path / "new" / "run", Huge(), averages=False)


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
    flags = ["--recipe", "scratch", "--network", "small", "--image-size", "32", "--begin-size", "0"]
    flags += ["--end-size", "32", "--epochs", "5000", "--validate-every", "1"]
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
    assert f"epochs finished: {kept}; the same command goes on from the state in run" in printed
    assert keras.saving.load_model(run.best).count_params() > 0
    assert not [path for path in run.folder.rglob("*") if "partial" in path.name]


# All that has a state of its own is on.
EVERYTHING = TINY.changed(
    begin_size=32,
    end_size=64,
    image_size=64,
    epochs=8,
    augment=0.5,
    mixup=0.2,
    cutmix=1.0,
    balance="sampling",
    optimiser="adamw",
    weight_decay=0.05,
    label_smoothing=0.1,
    schedule="cosine",
    warmup=1.0,
    clip=1.0,
    average=0.9,
    statistics=2,
    validate_every=2,
    monitor="loss",
    patience=6,
)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_not_been(
    birds: Path, tmp_path: Path
) -> None:
    """As a user has it: the command is killed, and typed again."""
    (tmp_path / "all.json").write_text(EVERYTHING.model_dump_json())
    command = [sys.executable, "-m", "fieldmark", "train", str(birds), "--recipe", "all.json"]

    def begin(folder: str) -> subprocess.Popen[bytes]:
        line = [*command, "--out", folder, "--save-every", "0"]  # a save is the likeliest moment
        return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert begin("whole").wait() == 0
    whole = time.monotonic() - began
    moments = random.Random(7)
    kills = 0
    while kills < 20:
        process = begin(f"run{kills // 5}")  # a training is killed up to five times
        try:
            process.wait(moments.uniform(0.3, 0.8) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
            shutil.rmtree(tmp_path / f"run{kills // 5}")  # it was too quick: another one
    for number in range(4):
        assert begin(f"run{number}").wait() == 0
        same(Run(tmp_path / f"run{number}"), Run(tmp_path / "whole"))


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import ModuleSpec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":  # PyTorch asks where it is, and may
            return ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError("not here")
    exec_module = create_module
sys.meta_path.insert(0, Absent())
from fieldmark.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_other_backends_train_without_tensorflow(birds: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    flags = ["--recipe", "scratch", "--network", "small", "--image-size", "32", "--begin-size", "0"]
    flags += ["--end-size", "32", "--epochs", "1", "--warmup", "0"]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, "train", str(birds), "--out", "run", *flags],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": name},
        check=True,
    )
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["backend"] == name


@pytest.mark.slow
def test_the_article_trains(birds: Path, tmp_path: Path) -> None:
    recipe = ARTICLE.changed(image_size=32, batch_size=13, epochs=1)
    run = train.fit(recipe, birds, tmp_path / "run")
    best = keras.saving.load_model(run.best)
    assert best.count_params() == 35_969_668
    assert best.layers[-1].activation is keras.activations.linear
    assert len(run.read_log()) == 1
