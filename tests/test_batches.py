"""A batch follows from seed, epoch and step: whoever makes it, wherever it is started."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark import images
from fieldmark.augment import NONE, Augment
from fieldmark.batches import Batch, Batches, balancing_weights, preview
from fieldmark.errors import FieldmarkError

SPEC = images.ImageSpec(size=16, mode="crop", interpolation="bilinear", scaling="-1..1")
MIXED = Augment.of(0.7, mixup=0.4, cutmix=1.0)


def batches(count: int = 22, classes: int = 3, **values: Any) -> Batches:
    """Photos of one brightness each, so that a photo can be told by its pixels."""
    pixels = np.empty((count, 20, 20, 3), np.uint8)
    pixels[:] = np.arange(count)[:, None, None, None]
    standard: dict[str, Any] = {
        "pixels": pixels,
        "labels": np.arange(count) % classes,
        "classes": classes,
        "spec": SPEC,
        "batch_size": 4,
        "shapes": np.stack([np.arange(count) % 7 + 10, np.arange(count) % 5 + 10], 1),
    }
    return Batches(**{**standard, **values})


def seen(made: Batches, epoch: int, step: int) -> list[int]:
    """Tell which photos an unaugmented batch holds."""
    pixels = (made.batch(epoch, step)[0][:, 0, 0, 0] + 1) * 127.5
    return [round(float(value)) for value in pixels]


def epoch_of(made: Batches, epoch: int) -> list[int]:
    return [photo for step in range(len(made)) for photo in seen(made, epoch, step)]


def same(first: Batch, second: Batch) -> bool:
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape
        for a, b in zip(first, second, strict=True)
    )


# ---- one batch, however it is made -------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
@pytest.mark.parametrize("start", [(0, 0), (1, 3)], ids=str)
def test_threads_and_the_start_make_no_difference(threads: int, start: tuple[int, int]) -> None:
    made = batches(augment=MIXED, class_weights=(1.0, 2.0, 0.5))
    alone = [made.batch(*divmod(i, 5)) for i in range(start[0] * 5 + start[1], 15)]
    read = list(made.dataset(epochs=3, start=start, threads=threads))
    assert len(read) == len(alone) == 15 - start[0] * 5 - start[1]
    assert all(same(a, b) for a, b in zip(alone, read, strict=True))


def test_worker_processes_make_no_difference(tmp_path: Path) -> None:
    made = batches(augment=MIXED)
    np.save(tmp_path / "rows.npy", made.pixels)
    mapped = replace(made, pixels=np.load(tmp_path / "rows.npy", mmap_mode="r"))
    alone = [made.batch(*divmod(i, 5)) for i in range(7, 15)]
    read = list(mapped.dataset(epochs=3, start=(1, 2), workers=2))
    assert len(read) == 8
    assert all(same(a, b) for a, b in zip(alone, read, strict=True))


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([NONE, Augment.of(0.5), MIXED, Augment(mixup=0.2), Augment(cutmix=1.0)]),
    st.integers(1, 5),
    st.integers(0, 3),
)
@settings(max_examples=40)
def test_the_shares_of_all_processes_are_the_batch(
    processes: int, augment: Augment, share: int, epoch: int
) -> None:
    """Odd shares too, in which a photo's neighbour is another process'."""
    made = batches(
        count=41, batch_size=processes * share, augment=augment, class_weights=(0.1, 1.0, 3.0)
    )
    step = epoch % len(made)
    whole = made.batch(epoch, step)
    shares = [made.batch(epoch, step, process=i, processes=processes) for i in range(processes)]
    assert all(len(part[0]) == share for part in shares)
    joined = tuple(np.concatenate(parts) for parts in zip(*shares, strict=True))
    assert same(whole, joined)  # type: ignore[arg-type]


def test_a_process_reads_its_share_of_every_batch() -> None:
    made = batches(augment=MIXED)
    read = list(made.dataset(epochs=1, process=1, processes=2))
    assert all(same(part, made.batch(0, i, process=1, processes=2)) for i, part in enumerate(read))


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    first, second = batches(augment=MIXED, balanced=True), batches(augment=MIXED, balanced=True)
    for epoch in range(6):
        second.batch(epoch, 0)
    assert same(first.batch(4, 2), second.batch(4, 2))
    assert same(first.batch(0, 1), second.batch(0, 1))


@pytest.mark.parametrize("augment", [Augment.of(0.5), Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_other_seeds_epochs_and_steps_give_other_batches(augment: Augment) -> None:
    # All photos are the same noise, so that only what is done to them can differ.
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    made = batches(pixels=noise[np.arange(22) % 2], augment=augment, seed=1)
    places = [(made, 0, 0), (made, 0, 1), (made, 1, 0), (replace(made, seed=2), 0, 0)]
    contents = {one.batch(epoch, step)[0].tobytes() for one, epoch, step in places}
    assert len(contents) == 4


# ---- what is in it -------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_a_photo_is_seen_once_an_epoch(count: int, size: int, seed: int, epoch: int) -> None:
    if size > count:
        with pytest.raises(FieldmarkError, match=f"larger than the {count} photos"):
            batches(count, batch_size=size)
        return
    made = batches(count, batch_size=size, seed=seed)
    photos = [photo for step in range(len(made)) for photo in seen(made, epoch, step)]
    assert len(photos) == count - count % size
    assert len(set(photos)) == len(photos)


def test_each_epoch_has_new_batches_and_leaves_others_out() -> None:
    made = batches(24, batch_size=4)
    groups = [
        {frozenset(seen(made, epoch, step)) for step in range(len(made))} for epoch in range(2)
    ]
    assert not groups[0] & groups[1]
    left_out = {frozenset(range(23)) - set(epoch_of(batches(23), epoch)) for epoch in range(9)}
    assert len(left_out) > 4
    assert epoch_of(made, 0) != epoch_of(replace(made, seed=1), 0)


@given(st.integers(1, 30), st.integers(1, 12))
def test_an_evaluation_sees_every_photo_in_order(count: int, size: int) -> None:
    made = batches(count, batch_size=size, shuffle=False, class_weights=(1.0, 2.0, 3.0))
    for epoch in (0, 5):
        assert epoch_of(made, epoch)[:count] == list(range(count))
    weights = np.concatenate([made.batch(0, step)[2] for step in range(len(made))])
    assert len(weights) % size == 0
    whole = len(weights) / count  # the mean over rows is the mean over photos
    assert weights[:count] == pytest.approx([whole * (1 + i % 3) for i in range(count)])
    assert not weights[count:].any()
    assert all(made.batch(0, step)[0].shape == (size, 16, 16, 3) for step in range(len(made)))


def test_squares_that_were_read_for_the_network_are_given_as_they_are() -> None:
    squares = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    made = batches(6, pixels=squares, shapes=None, shuffle=False)
    given_images = np.concatenate([made.batch(0, step)[0] for step in range(2)])
    assert np.array_equal(given_images[:6], images.scale(squares, SPEC))


def test_labels_and_weights() -> None:
    made = batches(class_weights=(0.5, 1.0, 2.0))
    for step in range(len(made)):
        pixels, labels, weights = made.batch(0, step)
        assert {pixels.dtype, labels.dtype, weights.dtype} == {np.dtype(np.float32)}
        truth = [photo % 3 for photo in seen(made, 0, step)]
        assert labels.argmax(1).tolist() == truth
        assert labels.sum(1).tolist() == [1] * 4
        assert weights.tolist() == [(0.5, 1.0, 2.0)[label] for label in truth]


@given(st.integers(0, 2**32 - 1))
def test_mixed_labels_sum_to_one_and_weights_are_mixed_with_them(seed: int) -> None:
    weigh = (0.5, 1.0, 2.0)
    _, labels, weights = batches(augment=MIXED, seed=seed, class_weights=weigh).batch(0, 0)
    assert labels.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
    assert weights == pytest.approx(labels @ np.array(weigh), abs=1e-6)


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=6),
    st.integers(1, 8),
    st.integers(0, 50),
    st.integers(0, 100),
)
def test_balanced_each_class_is_drawn_equally_often(
    counts: list[int], size: int, first: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    made = batches(
        len(labels),
        classes=len(counts),
        labels=labels,
        batch_size=min(size, len(labels)),
        balanced=True,
        seed=seed,
    )
    orders = [made.order(epoch) for epoch in range(first, first + 3)]
    for order in (*orders, np.concatenate(orders)):  # in an epoch, and in several
        drawn = np.bincount(labels[order], minlength=len(counts))
        assert drawn.max() - drawn.min() <= 1
        assert len(order) % made.batch_size == 0


def test_balanced_no_photo_comes_again_before_all_of_its_class() -> None:
    labels = np.repeat([0, 1], [3, 17])
    made = batches(20, classes=2, labels=labels, balanced=True)
    drawn = Counter(np.concatenate([made.order(epoch) for epoch in range(17)]).tolist())
    for label in (0, 1):
        times = [drawn[photo] for photo in np.flatnonzero(labels == label).tolist()]
        assert max(times) - min(times) <= 1


def test_balancing_weights() -> None:
    weights = balancing_weights(np.repeat([0, 1], [30, 10]), 2)
    assert weights == pytest.approx((40 / 60, 40 / 20))
    with pytest.raises(FieldmarkError, match="Class 1, counted from 0, has no photos"):
        balancing_weights(np.zeros(3, np.int64), 2)


def test_people_are_shown_what_the_network_sees() -> None:
    made = batches(augment=MIXED)
    images_given, labels, _ = made.batch(1, 2)
    pixels, shown = made.seen(1, 2)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - (images_given + 1) * 127.5).max() <= 0.51
    assert np.array_equal(shown, labels)
    assert np.array_equal(made.seen(1, 2, first=1, last=3)[0], pixels[1:3])


# ---- memory maps ---------------------------------------------------------------------------------


def test_a_memory_map_is_read_and_handed_on_by_name(tmp_path: Path) -> None:
    made = batches(augment=MIXED)
    file = tmp_path / "rows.npy"
    np.save(file, made.pixels)
    kept = file.read_bytes()
    mapped = replace(made, pixels=np.load(file, mmap_mode="r"))
    again = pickle.loads(pickle.dumps(mapped))
    assert len(pickle.dumps(mapped)) < len(pickle.dumps(made)) / 4
    assert isinstance(again.pixels, np.memmap)
    assert all(same(again.batch(0, i), made.batch(0, i)) for i in range(len(made)))
    assert file.read_bytes() == kept


def test_a_part_of_a_memory_map_is_handed_on_whole(tmp_path: Path) -> None:
    made = batches()
    np.save(tmp_path / "rows.npy", np.concatenate([made.pixels + 99, made.pixels]))
    mapped = replace(made, pixels=np.load(tmp_path / "rows.npy", mmap_mode="r")[22:])
    again = pickle.loads(pickle.dumps(mapped))
    assert same(again.batch(0, 0), made.batch(0, 0))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"batch_size": 23}, "larger than the 22 photos to train on: choose a batch size of at"),
        ({"batch_size": 0}, "A batch of 0 photos is none"),
        ({"classes": 1, "labels": np.zeros(22, np.int64)}, "There is one class only"),
        ({"labels": np.arange(22) % 4}, "Labels go from 0 to 3: give numbers from 0 to 2"),
        ({"labels": np.arange(5) % 3}, "22 photos and 5 labels"),
        ({"pixels": np.zeros((22, 4, 5, 3), np.uint8)}, "uint8 .22, 4, 5, 3.: give"),
        ({"pixels": np.zeros((22, 4, 4, 3), np.float32)}, "float32"),
        ({"shapes": None}, "squares of 20 pixels and the network reads 16"),
        ({"shapes": np.ones((22, 3), np.int64)}, "A shape is missing"),
        ({"seed": -1}, "The seed is -1"),
        ({"balanced": True, "labels": np.arange(22) % 2}, "Class 2, counted from 0, has no photos"),
        ({"balanced": True, "shuffle": False}, "Photos in their order"),
        ({"augment": Augment(mixup=1.0), "shuffle": False}, "nor mixed"),
        ({"class_weights": (1.0, 2.0)}, "give 3 numbers"),
        ({"class_weights": (1.0, 2.0, -1.0)}, "none of them negative"),
        (
            {"pixels": np.zeros((0, 4, 4, 3), np.uint8), "labels": np.zeros(0, np.int64)},
            "There are no photos",
        ),
    ],
    ids=str,
)
def test_what_no_batches_can_be_made_of_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(FieldmarkError, match=why):
        batches(**change)


def test_places_that_do_not_exist_are_refused() -> None:
    made = batches()
    with pytest.raises(FieldmarkError, match="no step 5 of epoch 0"):
        made.batch(0, 5)
    with pytest.raises(FieldmarkError, match="cannot be shared equally by 3 processes"):
        made.dataset(epochs=1, processes=3)
    with pytest.raises(FieldmarkError, match="no process 2 of 2"):
        made.batch(0, 0, process=2, processes=2)
    for start in ((0, 5), (1, 0), (-1, 0), (0, -1)):
        with pytest.raises(FieldmarkError, match="1 epochs of 5 steps cannot start at step"):
            made.dataset(epochs=1, start=start)


# ---- training ------------------------------------------------------------------------------------

FIT = """
import sys

sys.modules.update(dict.fromkeys({absent!r}))  # as if they were not installed
import keras
import numpy as np
from fieldmark.augment import Augment
from fieldmark.batches import Batches
from fieldmark.images import ImageSpec

rng = np.random.default_rng(0)
labels = np.arange(26) % 2
pixels = (rng.integers(0, 100, (26, 12, 12, 3)) + 120 * labels[:, None, None, None]).astype("uint8")
spec = ImageSpec(size=8, mode="squash", interpolation="bilinear", scaling="-1..1")
made = Batches(
    pixels, labels, 2, spec, 4, shapes=np.full((26, 2), 9), augment=Augment.of(0.2, mixup=0.1)
)
valid = Batches(pixels[:10], labels[:10], 2, spec, 4, shapes=np.full((10, 2), 9), shuffle=False)

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
loss = keras.losses.CategoricalCrossentropy(from_logits=True)
model.compile(
    keras.optimizers.Adam(0.02), loss,
    weighted_metrics=[keras.metrics.CategoricalCrossentropy(from_logits=True), "accuracy"],
)
model.optimizer.build(model.trainable_variables)
start = model.get_weights()
found = model.fit(
    made.dataset(epochs=5, start=(1, 0), threads=1),
    steps_per_epoch=len(made), epochs=5, initial_epoch=1, shuffle=False, verbose=0,
    validation_data=valid.dataset(epochs=1), validation_steps=len(valid),
).history
assert int(model.optimizer.iterations) == 4 * 6, model.optimizer.iterations
assert len(found["loss"]) == len(found["val_loss"]) == 4, found
assert found["val_accuracy"][-1] > 0.9, found

# The weight of 0 takes what fills the last batch out of the metrics.
logits = model.predict(valid.dataset(epochs=1), steps=len(valid), verbose=0)[:10]
chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
truth = -np.log(chances[np.arange(10), labels[:10]]).mean()
assert abs(found["val_categorical_crossentropy"][-1] - truth) < 1e-5, (found, truth)

# The same batches by hand train the same network.
fitted = model.get_weights()
model.set_weights(start)
model.compile(keras.optimizers.Adam(0.02), loss)
for epoch in range(1, 5):
    for step in range(len(made)):
        images, labels, weights = made.batch(epoch, step)
        model.train_on_batch(images, labels, sample_weight=weights)
for ours, theirs in zip(model.get_weights(), fitted):
    assert np.allclose(ours, theirs, atol=1e-5)
print("fitted", keras.backend.backend(), *(name for name in {absent!r} if sys.modules[name]))
"""


@pytest.mark.parametrize(
    ("backend", "absent"),
    [("tensorflow", ()), ("jax", ("tensorflow",)), ("torch", ("tensorflow",))],
)
def test_fit_trains_on_the_batches(backend: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    """Without TensorFlow where Keras computes with something else."""
    pytest.importorskip(backend)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            "-c",
            FIT.replace("{absent!r}", repr(absent)),
        ],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"fitted {backend}\n"
    assert "ran out of data" not in done.stderr


# ---- the sheet -----------------------------------------------------------------------------------


def test_a_sheet_shows_what_the_network_will_see(tmp_path: Path) -> None:
    file = tmp_path / "sheet.jpg"
    assert preview(batches(augment=MIXED), file, classes=["a", "b$c", "c"]) == []
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with Image.open(file) as sheet:
        assert min(sheet.size) > 800
        assert sheet.format == "JPEG"


@pytest.mark.parametrize(
    "values",
    [
        {"balanced": True, "labels": np.repeat([0, 1, 2], [1, 1, 20])},
        {"count": 3, "batch_size": 2},
    ],
    ids=str,
)
def test_a_sheet_is_drawn_of_any_batches(values: dict[str, Any], tmp_path: Path) -> None:
    preview(batches(**values), tmp_path / "sheet.png", classes=["a", "b", "c"])
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_a_sheet_needs_the_name_of_a_picture(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match=r"sheet.txt is no picture's name"):
        preview(batches(), tmp_path / "sheet.txt", classes=["a", "b", "c"])
    with pytest.raises(FieldmarkError, match="cannot be written"):
        preview(batches(), tmp_path / "nowhere" / "sheet.png", classes=["a", "b", "c"])
