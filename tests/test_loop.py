"""The training loop: what it computes, and that a stopped training ends as one never stopped.

As a program, `test_loop.py FOLDER EPOCHS SAVE_EVERY KILL_AT`, it trains the tiny network, goes on
where FOLDER has a state, and kills itself at the write to the disk of that number, if it is not 0.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import files, inference, loop, resnet_v2, state, steps
from fieldmark.augment import Augment
from fieldmark.backend import keras
from fieldmark.batches import Batches
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.logbook import Look, best_of, over
from fieldmark.loop import Keeper, train
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import Run

CLASSES = 3
PLAIN = ARTICLE.changed(pipeline="batches", epochs=99, schedule="cosine", monitor="loss")
# All that has a state of its own is on: moments, averages, schedule, a generator, statistics.
RECIPE = PLAIN.changed(
    optimiser="adamw",
    learning_rate=0.01,
    weight_decay=0.05,
    clip=1.0,
    average=0.8,
    label_smoothing=0.1,
    warmup=0.5,
    statistics=2,
)
PHOTOS = state.digests([("a.jpg", "owl")])


def tiny(seed: int = 1) -> Any:
    """Build a network with normalisation and a generator, small enough to be traced in a second."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = layers.Input((None, None, 3))
    x = layers.Conv2D(6, 4, strides=4, name="conv")(image)
    x = layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = layers.Dropout(0.2, name="dropout")(layers.Activation("relu", name="relu")(x))
    return keras.Model(image, resnet_v2.head(x, CLASSES), name="tiny")


def batches(count: int = 26, *, size: int = 32, **options: Any) -> Batches:
    """Return batches of noise, brighter in one class than in the next."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    noise = rng.integers(0, 128, (count, 32, 32, 3)) + 40 * labels[:, None, None, None]
    return Batches(
        pixels=noise.astype("uint8"),
        labels=labels,
        classes=CLASSES,
        spec=ImageSpec(size=size, mode="squash", interpolation="bilinear", scaling="-1..1"),
        batch_size=8,
        seed=3,
        shapes=np.full((count, 2), 32),
        **options,
    )


def training(epochs: int) -> list[Batches]:
    return [batches(augment=Augment.of(0.3, mixup=0.2))] * epochs


VALIDATION = batches(13, shuffle=False)


def keeper(folder: Path, **values: Any) -> Keeper:
    """Keep everything in a folder, as a run does; the best weights without Keras, which is slow."""
    folder.mkdir(exist_ok=True)
    run = Run(folder)

    def best(network: Any) -> None:
        with files.whole_file(folder / "best.npz") as temporary:
            np.savez(temporary, *network.get_weights())

    kept = Keeper(
        state=folder / "state.npz",
        photos=PHOTOS,
        append=run.append_log,
        mend=partial(state.mend_log, run.log),
        best=best,
    )
    return replace(kept, **values)


def teach(
    folder: Path, epochs: int = 3, *, recipe: Recipe = RECIPE, network: Any = None, **values: Any
) -> loop.Outcome:
    """Train the tiny network into a folder, or go on there."""
    return train(
        tiny() if network is None else network,
        recipe,
        training=training(epochs),
        validation=VALIDATION,
        keeper=keeper(folder, **values),
    )


def log_of(folder: Path) -> list[dict[str, float]]:
    """Return the log, without what it says of the time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in loop.TIMES} for line in lines]


def same(one: Path, other: Path) -> None:
    """Hold two finished trainings equal: log, best weights and state, bit for bit."""
    assert log_of(one) == log_of(other)
    for left, right in (
        (state.read(one / "state.npz")[2], state.read(other / "state.npz")[2]),
        (dict(np.load(one / "best.npz")), dict(np.load(other / "best.npz"))),
    ):
        assert list(left) == list(right)
        for name in left:
            assert left[name].tobytes() == right[name].tobytes(), name


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three epochs that was never stopped, saved at the ends of its epochs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    teach(folder)
    return folder


# ---- what follows from the recipe ----------------------------------------------------------------


def test_the_rate_rises_and_falls() -> None:
    recipe = PLAIN.changed(learning_rate=2.0)
    rates = [loop.learning_rate(recipe, step, total=12, warmup=3) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert rates[7] == pytest.approx(1 + np.cos(np.pi * 4 / 9))
    assert 0 < rates[-1] < 0.1
    constant = recipe.changed(schedule="constant")
    assert loop.learning_rate(constant, 9, total=12, warmup=3) == 2.0
    assert loop.learning_rate(constant, 0, total=12, warmup=3) == 0.5


def line(epoch: int, loss: float | None, accuracy: float, **more: float) -> dict[str, Any]:
    return {"epoch": epoch, "val_loss": loss, "val_accuracy": accuracy, **more}


def test_the_best_is_the_first_of_equals() -> None:
    log = [line(1, None, 0.9), line(2, 0.5, 0.7), line(3, 0.5, 0.8), line(4, 0.4, 0.8)]
    assert best_of([], "loss") is None
    assert best_of(log[:1], "accuracy") is None
    assert best_of(log[:3], "loss") == Look(2, False, 0.5, 0.7)
    assert best_of(log, "loss") == Look(4, False, 0.4, 0.8)
    assert best_of(log[:3], "accuracy") == Look(3, False, 0.5, 0.8)
    assert best_of(log, "accuracy") == Look(4, False, 0.4, 0.8)
    averaged = line(5, 0.6, 0.8, averaged_val_loss=0.3, averaged_val_accuracy=0.7)
    assert best_of([*log, averaged], "loss") == Look(5, True, 0.3, 0.7)
    assert best_of([*log, averaged], "accuracy") == Look(4, False, 0.4, 0.8)


def test_patience_ends_a_training() -> None:
    log = [line(1, 0.5, 0.5), line(2, 0.6, 0.5), line(3, 0.5, 0.5)]
    assert not over(log, PLAIN, 4)
    assert over(log, PLAIN, 3)
    assert over(log, PLAIN.changed(patience=2), 9)
    assert not over(log, PLAIN.changed(patience=3), 9)
    assert over([line(1, None, 0.5)], PLAIN.changed(patience=1), 9)


def test_patience_waits_until_the_validation_was_looked_at() -> None:
    recipe = PLAIN.changed(patience=2, validate_every=4)
    unseen = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)]
    assert not any(over(unseen[:count], recipe, 9) for count in range(4))
    assert not over([*unseen, line(4, 0.5, 0.5), {"epoch": 5, "loss": 1.0}], recipe, 9)
    assert not over([*unseen, line(4, 0.5, 0.5)], recipe, 9)
    assert over([line(1, 0.5, 0.5), *unseen[1:], line(4, 0.6, 0.5)], recipe, 9)


def test_the_validation_is_looked_at_now_and_then(tmp_path: Path) -> None:
    outcome = teach(tmp_path / "run", 5, recipe=PLAIN.changed(validate_every=2))
    assert [line["epoch"] for line in outcome.log if "val_loss" in line] == [2, 4, 5]
    assert outcome.best is not None
    assert outcome.best.epoch in (2, 4, 5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_decay_is_kept_off_vectors(name: Any) -> None:
    network = tiny()
    optimiser = loop.optimiser_of(RECIPE.changed(optimiser=name), network)
    decayed = [v.path for v in network.trainable_variables if optimiser._use_weight_decay(v)]
    assert decayed == ["conv/kernel", "predictions/kernel"]
    assert loop.optimiser_of(PLAIN.changed(optimiser=name), network).global_clipnorm is None


# ---- what is computed ---------------------------------------------------------------------------


def test_a_training_learns_and_says_so(whole: Path) -> None:
    log = log_of(whole)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert log[2]["loss"] < log[0]["loss"]
    assert log[2]["val_accuracy"] > 0.6
    assert set(json.loads((whole / "log.jsonl").read_text().splitlines()[0])) == {
        *("epoch", "loss", "accuracy", "learning_rate", "val_loss", "val_accuracy"),
        *("averaged_val_loss", "averaged_val_accuracy", "photos_per_second", "seconds"),
    }


def test_the_best_weights_have_the_best_figure(whole: Path) -> None:
    network = tiny(seed=2)
    with np.load(whole / "best.npz") as opened:
        network.set_weights([opened[name] for name in opened])
    found = inference.evaluate(inference.forward(network), VALIDATION)
    best = best_of(log_of(whole), "loss")
    assert best is not None
    assert found.loss == best.loss


def test_the_best_network_is_plain_keras(tmp_path: Path) -> None:
    path = tmp_path / "chosen.keras"
    teach(tmp_path / "run", 1, best=lambda network: network.save(path))
    with zipfile.ZipFile(path) as archive:
        assert "optimizer" not in archive.read("config.json").decode()
    assert keras.saving.load_model(path).name == "tiny"


def test_a_training_stops_where_nothing_becomes_better(tmp_path: Path) -> None:
    recipe = PLAIN.changed(optimiser="sgd", learning_rate=1e-30, patience=2)
    outcome = teach(tmp_path / "run", 9, recipe=recipe)
    assert outcome.stopped
    # The moving statistics move all the same; the loss that they give is the best at some time.
    assert outcome.best is not None
    assert len(outcome.log) == outcome.best.epoch + 2 < 9
    again = teach(tmp_path / "run", 9, recipe=recipe)  # nothing is left to be done
    assert (again.best, again.log) == (outcome.best, outcome.log)


def test_accumulated_gradients_are_those_of_a_larger_batch() -> None:
    images, labels, _ = training(1)[0].batch(0, 0)

    def taught(recipe: Recipe, size: int) -> Any:
        keras.utils.set_random_seed(1)
        image = keras.layers.Input((32, 32, 3))
        x = keras.layers.Conv2D(4, 8, strides=8)(image)
        network = keras.Model(image, resnet_v2.head(x, CLASSES))
        optimiser = loop.optimiser_of(recipe, network)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        step = steps.training_step(network, optimiser, loss=loss)
        for i in range(0, 8, size):
            step(images[i : i + size], labels[i : i + size], np.ones(size, "float32"))
        return network.get_weights()

    recipe = PLAIN.changed(optimiser="sgd", learning_rate=0.1, clip=0.5, weight_decay=0.1)
    for one, other in zip(taught(recipe, 8), taught(recipe.changed(accumulate=2), 4), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_training_without_numbers_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    recipe = PLAIN.changed(optimiser="sgd", schedule="constant", warmup=1.0).model_copy(
        update={"learning_rate": 1e25}  # a recipe does not let one that large in
    )
    with pytest.raises(FieldmarkError) as caught:
        teach(tmp_path / "run", recipe=recipe, save_every=0)
    assert "After step 1 of epoch 1, the loss is no number any more; " in str(caught.value)
    assert "state.npz keeps step 1 of epoch 1: begin a new run with a sm" in str(caught.value)
    header, _, arrays = state.read(tmp_path / "run" / "state.npz")
    assert (header.epoch, header.step) == (0, 1)
    assert all(np.isfinite(values).all() for values in arrays.values())


def test_weights_without_numbers_are_never_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    course = loop.Course(tiny(), RECIPE, training(2), VALIDATION, keeper(folder))
    course.save()
    before = (folder / "state.npz").read_bytes()
    course.header = replace(course.header, step=1)
    weights = course.network.get_weights()
    course.network.set_weights([*weights[:-1], weights[-1] * np.nan])
    with pytest.raises(FieldmarkError) as caught:
        course.save()
    assert "predictions/bias has values that are no numbers any more" in str(caught.value)
    assert "state.npz keeps step 0 of epoch 1: begin a new run" in str(caught.value)
    assert (folder / "state.npz").read_bytes() == before
    assert os.listdir(folder) == ["state.npz"]


# ---- stopped and gone on from -------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(whole: Path, tmp_path: Path) -> None:
    teach(tmp_path / "run", save_every=0)
    same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "error", "calls"),
    [(signal.SIGINT, KeyboardInterrupt, 2), (signal.SIGTERM, SystemExit, 1)],
)
def test_a_signal_saves_and_leaves(
    whole: Path, tmp_path: Path, number: int, error: type[BaseException], calls: int
) -> None:
    """Once in the midst of an epoch, and once in the midst of an evaluation."""
    folder = tmp_path / "run"
    before = signal.getsignal(number)
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, handler)  # whoever runs the tests may have it ignored
    try:
        for reached in range(calls):
            course = loop.Course(tiny(), RECIPE, training(3), VALIDATION, keeper(folder))
            if reached:
                course.resume()
            inner = course.step if reached == 0 else course.forward
            counted = itertools.count(1)

            def stopping(*args: Any, inner: Any = inner, counted: Any = counted) -> Any:
                if next(counted) == 2:
                    os.kill(os.getpid(), number)
                return inner(*args)

            setattr(course, "step" if reached == 0 else "forward", stopping)
            with pytest.raises(error) as caught, pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "Course", lambda *args, course=course: course)
                teach(folder)
            if isinstance(caught.value, SystemExit):
                assert caught.value.code == 143
            header, *_ = state.read(folder / "state.npz")
            assert (header.epoch, header.step) == ((0, 2) if reached == 0 else (0, 3))
            assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    teach(folder)
    same(folder, whole)


def test_a_second_signal_does_not_wait() -> None:
    signals = loop.Signals()
    signals.poll()
    signals.handle(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        signals.handle(signal.SIGINT, None)


def test_what_does_not_match_is_refused(whole: Path) -> None:
    before = (whole / "state.npz").read_bytes()
    with pytest.raises(FieldmarkError, match=r"learning_rate 0\.01 there, 0\.1 now"):
        teach(whole, recipe=RECIPE.changed(learning_rate=0.1))
    with pytest.raises(FieldmarkError, match="1 are new or changed, 1 are gone"):
        teach(whole, photos=state.digests([("b.jpg", "owl")]))
    with pytest.raises(FieldmarkError, match="is of another network or optimiser"):
        teach(whole, network=resnet_v2.Small((32, 32, 3), CLASSES))
    assert (whole / "state.npz").read_bytes() == before


def test_a_full_disk_leaves_a_state_to_go_on_from(
    whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    """The disk has room for the first states, and then for none."""
    folder = small_disk / "run"

    def fill(_: Any) -> None:
        free = os.statvfs(small_disk)
        (small_disk / "filled").write_bytes(b"." * max(free.f_bavail * free.f_bsize - 4096, 0))

    with pytest.raises(FieldmarkError, match=r"state\.npz cannot be written \(No space left"):
        teach(folder, best=fill)
    header, *_ = state.read(folder / "state.npz")
    assert header.epoch == 1
    (small_disk / "filled").unlink()
    teach(folder)
    same(folder, whole)


def test_the_size_of_photos_may_change_between_epochs(tmp_path: Path) -> None:
    def progressive(folder: Path, stop: int = 0) -> None:
        small = batches(size=16, augment=Augment.of(0.3))
        sizes = [small, small, *training(2)]
        kept = keeper(folder)
        course = loop.Course(tiny(), RECIPE, sizes, VALIDATION, kept)
        counted = itertools.count(1)

        def poll() -> None:
            if next(counted) == stop:
                raise loop.Stopped(signal.SIGINT)

        if kept.state.exists():
            course.resume()
        try:
            course.run(poll)
        except loop.Stopped:
            course.save()

    progressive(tmp_path / "one")
    for stop in (5, 9, 14, 0):
        progressive(tmp_path / "other", stop)
    same(tmp_path / "one", tmp_path / "other")


class Killed(BaseException):
    """What stops a training where nothing may be tidied up."""


def count_writes(patch: pytest.MonkeyPatch, act: Callable[[], None], at: int) -> None:
    """Have `act` done at a write to the disk: before one of its parts, its sync, its renaming."""
    counted = itertools.count(1)

    def counting(inner: Callable[..., Any]) -> Callable[..., Any]:
        def counts(*args: Any, **options: Any) -> Any:
            if next(counted) == at:
                act()
            return inner(*args, **options)

        return counts

    for owner, name in ((zipfile.ZipFile, "writestr"), (os, "fsync"), (Path, "replace")):
        patch.setattr(owner, name, counting(getattr(owner, name)))


def test_broken_off_at_any_write_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    """Nothing is tidied up either, as after a kill; `test_killed` kills for real."""
    rng = random.Random(5)

    def kill() -> None:
        raise Killed

    folder, kills = tmp_path / "run", 0
    for _ in range(8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *args, **options: None)
            patch.setattr(state, "sweep", lambda path: None)
            count_writes(patch, kill, rng.randint(1, 90))
            try:
                teach(folder, save_every=0)
            except Killed:
                kills += 1
            else:
                break
    assert kills > 3
    teach(folder, save_every=0)
    same(folder, whole)
    assert not [name for name in os.listdir(folder) if name.startswith(".state")]


def child(folder: Path, *, epochs: int, save_every: float = 0.0, kill_at: int = 0) -> Any:
    """Train in a process of its own; 0 kills nothing."""
    words = [str(folder), str(epochs), str(save_every), str(kill_at)]
    return subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.DEVNULL)


def finish(process: Any) -> int:
    try:
        return int(process.wait(timeout=300))
    finally:
        process.kill()


def written(folder: Path) -> tuple[int, int] | None:
    """Return what tells one state file from the next."""
    try:
        found = (folder / "state.npz").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def kill_within(folder: Path, epochs: int, seconds: float) -> bool:
    """Kill a training so many seconds after the first state that it writes."""
    before, process = written(folder), child(folder, epochs=epochs)
    try:
        while written(folder) == before:
            if process.poll() is not None:
                return False
            time.sleep(0.005)
        time.sleep(seconds)
    finally:
        process.kill()
    return finish(process) == -signal.SIGKILL


def killed_and_whole(tmp_path: Path, *, epochs: int, kills: int, seconds: float) -> None:
    """Kill a training at random, every other time in a save, and compare it with a whole one."""
    rng = random.Random(7)
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    undisturbed = child(whole, epochs=epochs, save_every=1e9)
    done = 0
    for attempt in range(kills):
        if attempt % 2:
            at = rng.randint(2, 30 + int(600 * seconds))
            done += finish(child(folder, epochs=epochs, kill_at=at)) == -signal.SIGKILL
        else:
            done += kill_within(folder, epochs, rng.uniform(0, seconds))
    assert done == kills, f"{done} of {kills} kills came before the end: give more epochs"
    assert state.read(folder / "state.npz")[0].epoch < epochs
    assert finish(child(folder, epochs=epochs)) == 0
    assert finish(undisturbed) == 0
    same(whole, folder)
    print(f"{done} kills in {epochs} epochs")


posix = pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")


@posix
def test_killed(tmp_path: Path) -> None:
    killed_and_whole(tmp_path, epochs=40, kills=2, seconds=0.1)


@posix
@pytest.mark.slow
def test_killed_many_times(tmp_path: Path) -> None:
    killed_and_whole(tmp_path, epochs=400, kills=24, seconds=0.5)


@posix
@pytest.mark.slow
def test_killed_on_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    killed_and_whole(tmp_path, epochs=100, kills=4, seconds=0.2)


if __name__ == "__main__":
    place, number, every, fatal = sys.argv[1:]
    count_writes(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL), int(fatal))
    teach(Path(place), int(number), save_every=float(every))
