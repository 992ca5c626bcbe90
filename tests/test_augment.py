"""What changes a photo, changes it as it says, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fieldmark import augment, images
from fieldmark.augment import ERASED, NONE, Augment, Draws, crop, erased, mix, room, view
from fieldmark.errors import FieldmarkError

MODES = ("squash", "crop", "pad")
UNIT = st.floats(0, 1, exclude_max=True)
DRAWS = st.builds(Draws, *[UNIT] * 13)


def spec(size: int = 32, mode: str = "squash") -> images.ImageSpec:
    return images.ImageSpec.model_validate(
        {"size": size, "mode": mode, "interpolation": "bilinear", "scaling": "0..255"}
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def row(side: int = 40, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture, (side, side, 3)."""
    small = rng(seed).integers(60, 196, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def off(ours: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.abs(ours.astype(float) - truth).mean())


# ---- strength -----------------------------------------------------------------------------------


def test_no_strength_is_nothing() -> None:
    assert Augment.of(0) == NONE
    assert not NONE.changes
    assert not NONE.mixes
    assert np.array_equal(view(row(32), spec(32)), row(32))


@given(st.floats(0, 1), st.floats(0, 1))
def test_every_setting_grows_with_the_strength(first: float, second: float) -> None:
    weak, strong = (Augment.of(s) for s in sorted((first, second)))
    assert strong.crop <= weak.crop
    for name in ("mirror", "stretch", "brightness", "contrast", "saturation", "erasing"):
        assert getattr(strong, name) >= getattr(weak, name)


def test_views_move_away_from_the_photo_as_the_strength_grows() -> None:
    def distance(strength: float) -> float:
        setting = replace(Augment.of(strength), mirror=0.0)
        seen = [view(row(), spec(), augment=setting, rng=rng(i)) for i in range(40)]
        return float(np.mean([off(one, view(row(), spec())) for one in seen]))

    distances = [distance(strength) for strength in (0.01, 0.3, 0.6, 1)]
    assert distances == sorted(distances)
    assert distances[0] < 2 < distances[2]


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(FieldmarkError, match=f"{strength}: give a number from 0 to 1"):
        Augment.of(strength)


@pytest.mark.parametrize("name", augment.RANGES)
def test_a_setting_out_of_range_is_refused(name: str) -> None:
    low, high = augment.RANGES[name]
    for value in (low - 0.1, high + 0.1):
        with pytest.raises(FieldmarkError, match=f"{name} of the augmentation is {value}"):
            Augment(**{name: value})


def test_a_change_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="random generator"):
        view(row(), spec(), augment=Augment.of(0.5))


# ---- one photo ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (250, 250), (60, 600)], ids=str)
def test_unaugmented_it_is_nearly_what_images_reads(mode: str, shape: tuple[int, int]) -> None:
    picture = Image.fromarray(row(64)).resize(shape[::-1], Image.Resampling.BICUBIC)
    file = BytesIO()
    picture.save(file, "PNG")
    squashed = images.read(file.getvalue(), spec(55))
    seen = view(squashed, spec(48, mode), shape=shape)
    assert off(seen, images.read(file.getvalue(), spec(48, mode))) < 1.0


def test_unaugmented_real_photos_are_nearly_what_images_reads(shared_photos: Path) -> None:
    """The figures of `docs/batches.md` are of all flowers; these are a few."""
    photos = [path.read_bytes() for path in sorted(shared_photos.glob("flowers/*/*.jpg"))[::75]]
    for mode in MODES:
        differences = []
        for content in photos:
            facts = images.inspect(content)
            squashed = images.read(content, room(spec(224, mode)))
            seen = view(squashed, spec(224, mode), shape=(facts.height, facts.width))
            differences.append(off(seen, images.read(content, spec(224, mode))))
        assert np.mean(differences) < 2.5


@given(st.integers(0, 2**32), st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 40))
def test_mirrored_is_exactly_the_mirror_image(
    seed: int, mode: str, height: int, width: int
) -> None:
    plain = Augment(crop=0.3, stretch=1.3, brightness=0.4, saturation=0.4, contrast=0.4)
    seen = [
        view(row(), spec(31, mode), augment=setting, rng=rng(seed), shape=(height, width))
        for setting in (plain, replace(plain, mirror=1.0))
    ]
    assert np.array_equal(seen[0][:, ::-1], seen[1])


@given(DRAWS, st.floats(0.01, 1), st.floats(1, 4), st.floats(0.05, 20))
def test_a_crop_lies_in_the_photo(
    draws: Draws, least: float, stretch: float, aspect: float
) -> None:
    setting = Augment(crop=least, stretch=stretch)
    left, top, right, bottom = crop(aspect, setting, draws)
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    shape = (right - left) / (bottom - top) * aspect  # true width to height
    assert 1 / stretch - 1e-6 <= shape <= stretch + 1e-6
    fits = min(1.0, shape / aspect) * min(1.0, aspect / shape)  # the largest of that shape
    share = (right - left) * (bottom - top) / fits
    assert least - 1e-6 <= share <= 1 + 1e-6


def test_crops_keep_true_proportions() -> None:
    """A circle in a photo twice as wide as high stays one, wherever it is cut out."""
    y, x = np.mgrid[0:100, 0:200]
    disc = np.where((x - 100) ** 2 + (y - 50) ** 2 < 30**2, 255, 0).astype(np.uint8)
    photo = Image.fromarray(np.repeat(disc[..., None], 3, axis=2))
    squashed = np.asarray(photo.resize((100, 100), Image.Resampling.BILINEAR))
    setting = Augment(crop=0.999)
    seen = view(squashed, spec(100, "crop"), augment=setting, rng=rng(), shape=(100, 200))
    columns, rows = ((seen[..., 0] > 127).sum(axis).max() for axis in (0, 1))
    assert abs(int(columns) - int(rows)) <= 2


def test_padding_stays_grey_and_the_crop_fills_its_part() -> None:
    setting = Augment(crop=0.5, stretch=1.2, brightness=0.5)
    for i in range(10):
        seen = view(row(), spec(32, "pad"), augment=setting, rng=rng(i), shape=(10, 40))
        grey = (seen == images.PADDING).all((1, 2))
        assert grey[0]
        assert grey[-1]
        assert 4 <= np.count_nonzero(~grey) <= 12


@given(DRAWS, st.integers(8, 300))
def test_what_is_erased_lies_in_the_square_and_has_its_size(draws: Draws, size: int) -> None:
    (top, left), (bottom, right) = erased(size, draws)
    assert 0 <= top < bottom <= size
    assert 0 <= left < right <= size
    share = (bottom - top) * (right - left) / size**2
    slack = 2 / size + 1 / size**2  # both sides are rounded
    # A long rectangle may be cut off at the square's side, and is smaller then.
    assert share <= ERASED[1] + slack
    if bottom - top < size and right - left < size:
        assert share >= ERASED[0] - slack


def test_erasing_covers_a_rectangle_and_leaves_the_rest() -> None:
    shares = []
    for i in range(60):
        seen = view(row(64), spec(64), augment=Augment(erasing=1.0), rng=rng(i))
        changed = (seen != row(64)).any(-1)
        inside = changed[changed.any(1)][:, changed.any(0)]
        assert inside.mean() > 0.99  # noise hits the pixel's own colour now and then
        shares.append(changed.mean())
    assert 0.015 < min(shares) < max(shares) < 0.35
    assert np.mean(shares) == pytest.approx(np.mean(ERASED), abs=0.04)


def test_colours_change_as_their_formulas_say() -> None:
    """Against numpy, operation by operation, in floating point."""
    setting = Augment(brightness=0.4, saturation=0.5, contrast=0.3)
    draws = rng(3).random(13)
    b, s, c = (1.4 ** (2 * draws[5] - 1), 1.5 ** (2 * draws[7] - 1), 1.3 ** (2 * draws[6] - 1))
    x = b * row(32).astype(float)
    grey = (x @ augment.GREY)[..., None]
    x = grey + s * (x - grey)
    mean = b * row(32)[::8, ::8].mean((0, 1)) @ augment.GREY
    x = mean + c * (x - mean)
    seen = view(row(32), spec(32), augment=setting, rng=rng(3))
    assert np.abs(seen - x.clip(0, 255)).max() <= 0.51


def test_one_setting_leaves_the_draws_of_the_others() -> None:
    plain = view(row(), spec(), augment=Augment(crop=0.4), rng=rng(5))
    erasing = view(row(), spec(), augment=Augment(crop=0.4, erasing=1.0), rng=rng(5))
    assert (plain == erasing).all(-1).mean() > 0.6


def test_the_row_is_not_written_to() -> None:
    given_row = row()
    kept = given_row.copy()
    given_row.flags.writeable = False
    for mode in MODES:
        seen = view(given_row, spec(40, mode), augment=Augment.of(1), rng=rng(), shape=(30, 50))
        seen[:] = 0
    assert np.array_equal(given_row, kept)


# ---- one batch ----------------------------------------------------------------------------------


def batch(count: int = 6, seed: int = 0) -> tuple[augment.Floats, augment.Floats]:
    photos = rng(seed).normal(size=(count, 16, 16, 3)).astype(np.float32)
    return photos, np.eye(count, dtype=np.float32)


@given(st.integers(0, 2**32), st.sampled_from([(0.2, 0), (0, 1.0), (0.4, 1.0), (8, 0), (0, 8)]))
def test_labels_are_mixed_as_the_pixels_are(seed: int, alphas: tuple[float, float]) -> None:
    photos, labels = batch()
    before = photos.copy()
    mix(photos, labels, Augment(mixup=alphas[0], cutmix=alphas[1]), rng(seed))
    assert labels.sum(1) == pytest.approx(np.ones(6), abs=1e-6)
    assert (labels >= 0).all()
    own = labels.diagonal()
    assert own == pytest.approx(np.full(6, own[0]), abs=1e-6)  # one share for the whole batch
    faded = (
        own[:, None, None, None] * before
        + (1 - own[:, None, None, None]) * before[[1, 0, 3, 2, 5, 4]]
    )
    if not np.allclose(photos, faded, atol=1e-5):  # then it was CutMix
        kept = (photos == before).all(-1).mean((1, 2))
        assert kept == pytest.approx(own, abs=1e-6)
        assert alphas[1] > 0
    # Nothing is lost: a pair holds what it held.
    sums = photos.reshape(3, 2, -1).sum(1)
    assert np.allclose(sums, before.reshape(3, 2, -1).sum(1), atol=1e-5)


def test_mixup_leaves_each_row_mostly_its_own_photo() -> None:
    for seed in range(20):
        photos, labels = batch(seed=seed)
        mix(photos, labels, Augment(mixup=1.0), rng(seed))
        assert (labels.diagonal() >= 0.5).all()


def test_the_last_of_an_odd_number_stays_alone() -> None:
    photos, labels = batch(5)
    before = photos.copy()
    mix(photos, labels, Augment(mixup=1.0), rng())
    assert np.array_equal(photos[4], before[4])
    assert labels[4].tolist() == [0, 0, 0, 0, 1]
    assert not np.array_equal(photos[3], before[3])


def test_a_coin_decides_between_the_two() -> None:
    faded = 0
    for seed in range(100):
        photos, labels = batch()
        before = photos.copy()
        mix(photos, labels, Augment(mixup=1.0, cutmix=1.0), rng(seed))
        faded += not (photos == before).all(-1).any() and labels[0, 0] < 1
    assert 30 < faded < 70
