"""What is wrong with a photo, against faults that were planted."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fieldmark import draw, images
from fieldmark.quality import BLANK, faults, measure

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Pixels]:
    """Drawn photos of 128 and of 224 pixels."""
    folder = tmp_path_factory.mktemp("quality")
    small = draw.birds(folder / "small", per_class=8, size=128, seed=1)
    large = draw.birds(folder / "large", per_class=4, size=224, seed=2)
    paths = sorted([*small.glob("*/*.jpg"), *large.glob("*/*.jpg")])
    return [images.decode(path.read_bytes()) for path in paths]


def through_jpeg(pixels: NDArray[np.generic]) -> Pixels:
    """Save and read a photo, as a planted fault would come."""
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return images.decode(file.getvalue(), at_least=256)


def blurred(pixels: Pixels, radius: float) -> Pixels:
    """Blur by a Gaussian; the radius is in pixels of a photo of 256."""
    filtering = ImageFilter.GaussianBlur(radius * min(pixels.shape[:2]) / 256)
    return through_jpeg(np.asarray(Image.fromarray(pixels).filter(filtering)))


def share(photos: list[Pixels], fault: str) -> float:
    return float(np.mean([fault in faults(measure(photo)) for photo in photos]))


def test_good_photos_have_no_faults(photos: list[Pixels]) -> None:
    """The drawn camera is out of focus now and then, which is true of it."""
    found = [fault for photo in photos for fault in faults(measure(photo))]
    assert len(found) <= 0.07 * len(photos)
    assert set(found) <= {"blurred"}


@pytest.mark.parametrize(("radius", "least"), [(4, 0.85), (6, 0.95), (8, 0.95), (12, 0.9)])
def test_blur_is_found(photos: list[Pixels], radius: float, least: float) -> None:
    assert share([blurred(photo, radius) for photo in photos], "blurred") >= least


def test_a_sharp_bird_before_a_blurred_background_is_sharp(photos: list[Pixels]) -> None:
    mixed = []
    for photo in photos:
        soft = np.array(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(8)))
        height, width = photo.shape[:2]
        middle = np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        soft[middle] = photo[middle]
        mixed.append(through_jpeg(soft))
    assert share(mixed, "blurred") <= 0.1


def test_a_photo_of_more_pixels_is_judged_as_a_network_sees_it() -> None:
    """Four times as many pixels on a side that show no more are no blur."""
    photo = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    large = photo.repeat(4, axis=0).repeat(4, axis=1)
    assert measure(large) == measure(photo)


@pytest.mark.parametrize("factor", [0.25, 0.15, 0.08])
def test_dark_photos_are_found(photos: list[Pixels], factor: float) -> None:
    dark = [through_jpeg(photo * factor) for photo in photos]
    assert share(dark, "dark") + share(dark, "blank") == 1


def test_white_photos_are_found(photos: list[Pixels]) -> None:
    white = [through_jpeg(255 - (255 - photo) * 0.2) for photo in photos]
    assert share(white, "bright") == 1


def test_mist_is_found(photos: list[Pixels]) -> None:
    mist = [through_jpeg(128 + (photo.astype(float) - 128) * 0.12) for photo in photos]
    assert share(mist, "faint") >= 0.95


@pytest.mark.parametrize("noise", [0, 2, 5, 10])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 60), (90, 120, 200)])
def test_one_colour_is_blank_whatever_the_noise(noise: int, colour: tuple[int, ...]) -> None:
    grain = np.random.default_rng(noise).normal(0, noise, (224, 300, 3))
    assert faults(measure(through_jpeg(colour + grain))) == ("blank",)


def test_a_small_bird_in_the_sky_is_not_blank() -> None:
    sky = np.full((256, 256, 3), (120, 170, 220), np.uint8)
    sky[100:112, 60:72] = 40
    assert measure(sky).span > 2 * BLANK
    assert "blank" not in faults(measure(sky))


def test_a_red_rose_is_neither_dark_nor_bright() -> None:
    ramp = np.zeros((128, 128, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(60, 255, 128)
    assert set(faults(measure(ramp))).isdisjoint({"dark", "bright", "blank"})


def test_a_step_is_sharp_and_a_ramp_is_not() -> None:
    step = np.zeros((64, 64, 3), np.uint8)
    step[32:, :] = 200
    step[:, 32:] = 255 - step[:, 32:]
    assert measure(step).sharpness == pytest.approx(1)
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (1, 128, 3))
    assert measure(ramp).sharpness == pytest.approx(0.25, rel=1e-4)
    assert faults(measure(ramp)) == ("blurred",)


@settings(max_examples=60)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    seed=st.integers(0, 99),
    flat=st.booleans(),
)
def test_every_shape_is_measured(height: int, width: int, seed: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if flat:
        pixels[:] = pixels[0, 0]
    measures = measure(pixels)
    assert 0 <= measures.span <= 255.01
    assert 0 <= measures.darkest <= measures.brightest <= 255
    assert 0 <= measures.contrast <= 255
    assert math.isnan(measures.sharpness) or 0 < measures.sharpness <= 1.0001
    assert (faults(measures) == ("blank",)) >= flat


def test_a_panorama_is_measured_in_little_memory() -> None:
    measures = measure(np.zeros((2, 500_000, 3), np.uint8))
    assert faults(measures) == ("blank",)


def test_real_photos_are_taken_for_good(shared_photos: Path) -> None:
    paths = sorted([*shared_photos.glob("birds/*/*"), *shared_photos.glob("flowers/*/*")])[::12]
    found = [faults(measure(images.decode(path.read_bytes(), at_least=256))) for path in paths]
    assert found == [()] * len(paths)
