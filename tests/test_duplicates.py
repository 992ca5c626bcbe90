"""Near duplicates: planted copies are found, other photos are not, and nothing odd breaks it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fieldmark import draw, duplicates, images
from fieldmark.duplicates import Fingerprint, Twin, fingerprint, groups, twins

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Pixels]:
    """Two hundred drawn birds of four species, by the same hand."""
    folder = draw.birds(tmp_path_factory.mktemp("drawn") / "birds", per_class=50, size=128)
    return [images.decode(file.read_bytes()) for file in sorted(folder.glob("*/*.jpg"))]


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return images.decode(file.getvalue())


def resized(pixels: Pixels, share: float) -> Pixels:
    height, width, _ = pixels.shape
    return np.array(Image.fromarray(pixels).resize((int(width * share), int(height * share))))


def cropped(
    pixels: Pixels, top: float = 0, bottom: float = 0, left: float = 0, right: float = 0
) -> Pixels:
    height, width, _ = pixels.shape
    rows = slice(round(top * height), round((1 - bottom) * height))
    return pixels[rows, round(left * width) : round((1 - right) * width)]


def smooth(seed: int, side: int = 64) -> Pixels:
    """A picture of random waves: as different from the next as photos are."""
    rng = np.random.default_rng(seed)
    waves = np.cos(np.pi * np.arange(12)[:, None] * (np.arange(side) + 0.5) / side)
    levels = waves.T @ (rng.normal(size=(12, 12)) / (1 + np.hypot(*np.mgrid[:12, :12]))) @ waves
    return np.stack([(128 + 30 * levels).clip(0, 255)] * 3, axis=2).astype(np.uint8)


# ---- the fingerprint ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (33, 47), (5, 3), (1, 1), (1, 70), (70, 1)])
def test_a_square_is_the_mean_of_what_it_covers(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    # 32 times as many pixels a side can be cut into 32 squares without cutting one.
    large = np.kron(pixels.astype(np.float64), np.ones((32, 32, 1)))
    blocks = large.reshape(32, shape[0], 32, shape[1], 3).mean(axis=(1, 3))
    levels = np.frombuffer(fingerprint(pixels).luminance, np.uint8).reshape(32, 32)
    assert np.abs(blocks @ [0.299, 0.587, 0.114] - levels).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_an_even_photo_keeps_its_level(level: int) -> None:
    pixels = np.full((37, 501, 3), level, np.uint8)
    assert set(fingerprint(pixels).luminance) == {level}


# ---- what is found ------------------------------------------------------------------------------

COPIES: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    "half the size": ("resized", lambda p: resized(p, 0.5)),
    "a quarter of the size": ("resized", lambda p: jpeg(resized(p, 0.25), 90)),
    "larger": ("resized", lambda p: resized(p, 1.5)),
    "quality 30": ("resized", lambda p: jpeg(p, 30)),
    "quality 10": ("resized", lambda p: jpeg(p, 10)),
    "darker": ("resized", lambda p: (p * 0.8).astype(np.uint8)),
    "mirrored": ("mirrored", lambda p: p[:, ::-1]),
    "cropped at the left": ("cropped", lambda p: cropped(p, left=0.1)),
    "cropped at the top": ("cropped", lambda p: cropped(p, top=0.1)),
    "cropped at all sides": ("cropped", lambda p: cropped(p, 0.1, 0.1, 0.1, 0.1)),
    "cropped unevenly": ("cropped", lambda p: cropped(p, 0.04, 0.09, 0.0, 0.06)),
    "cropped, resized, quality 30": (
        "cropped",
        lambda p: jpeg(resized(cropped(p, right=0.1), 0.5), 30),
    ),
    "mirrored, cropped, resized, quality 30": (
        "mirrored",
        lambda p: jpeg(resized(cropped(p, bottom=0.1)[:, ::-1], 0.5), 30),
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_planted_copies_are_found_and_named(drawn: list[Pixels], name: str) -> None:
    kind, copy = COPIES[name]
    chosen = range(0, len(drawn), 5)
    prints = [fingerprint(p) for p in [*drawn, *(copy(drawn[i]) for i in chosen)]]
    found = {(twin.first, twin.second): twin for twin in twins(prints)}
    planted = {(i, len(drawn) + k) for k, i in enumerate(chosen)}
    assert found.keys() <= planted  # no two birds of the set are taken for each other
    assert len(found) >= 0.95 * len(planted)
    assert sum(twin.kind == kind for twin in found.values()) >= 0.95 * len(found)
    assert all(0.9 <= twin.likeness <= 1 for twin in found.values())


def test_drawn_birds_are_no_copies_of_each_other(drawn: list[Pixels]) -> None:
    assert twins([fingerprint(pixels) for pixels in drawn]) == []


def test_a_symmetrical_photo_is_called_resized_not_mirrored() -> None:
    half = smooth(3)
    both = np.concatenate([half, half[:, ::-1]], axis=1)
    found = twins([fingerprint(both), fingerprint(resized(both, 0.7))])
    assert [(twin.first, twin.second, twin.kind) for twin in found] == [(0, 1, "resized")]


def test_copies_of_copies_form_one_group(drawn: list[Pixels]) -> None:
    cut = cropped(drawn[0], left=0.09)
    prints = [fingerprint(p) for p in [drawn[0], drawn[1], cut, cropped(cut, top=0.1)]]
    pairs = [(twin.first, twin.second) for twin in twins(prints)]
    assert groups(4, pairs) == [(0, 2, 3)]


def test_real_photos(shared_photos: Path) -> None:
    """All pairs among the real birds, looked at by eye: two, and both are the same photo."""
    files = sorted((shared_photos / "birds").glob("*/*.jpg"))
    prints = [fingerprint(images.decode(file.read_bytes(), at_least=64)) for file in files]
    found = [(files[twin.first].stem, files[twin.second].stem) for twin in twins(prints)]
    assert found == [
        ("EUROPEAN_TURTLE_DOVE__3", "EUROPEAN_TURTLE_DOVE__5"),
        ("BAIKAL_TEAL__4", "BAIKAL_TEAL__5"),
    ]


# ---- photos with little in them -----------------------------------------------------------------


def gradient(across: float, down: float, size: int = 64) -> Pixels:
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    return np.stack([128 + across * (x - 0.5) + down * (y - 0.5)] * 3, axis=2).astype(np.uint8)


def sea(horizon: float, sky: int = 190, size: int = 64) -> Pixels:
    y = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j][0]
    return np.stack([np.where(y < horizon, sky, 70)] * 3, axis=2).astype(np.uint8)


def test_photos_with_nothing_to_recognise_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    noisy = [rng.normal(200, 4, (90, 90, 3)).astype(np.uint8) for _ in range(3)]
    even = [np.full((50, 50, 3), level, np.uint8) for level in (0, 0, 128, 255)]
    skies = [gradient(0, -90), gradient(0, -100), gradient(20, -90), gradient(60, 60)]
    seas = [sea(0.5), sea(0.52), sea(0.5, sky=220), sea(0.45)]
    assert twins([fingerprint(p) for p in [*noisy, *even, *skies, *seas]]) == []


def test_of_a_slanted_edge_more_is_demanded() -> None:
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    edges = [np.where(y + slope * x < place, 200, 60) for slope, place in ((0.3, 0.6), (0.4, 0.7))]
    levels = [np.stack([edge] * 3, axis=2).astype(np.uint8) for edge in edges]
    demanded = duplicates._demanded(
        np.stack(
            [
                np.frombuffer(fingerprint(p).luminance, np.uint8).reshape(32, 32)
                for p in [*levels, smooth(1)]
            ]
        )
    )
    assert demanded[2] == pytest.approx(duplicates.ALIKE)
    assert demanded[:2].min() > 0.94


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_photos_have_no_pairs(count: int) -> None:
    assert twins([fingerprint(smooth(0))] * count) == []


def test_photos_of_one_pixel_and_of_extreme_shapes() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 1), (1, 5000), (5000, 1), (2, 3000), (3000, 2)]
    prints = [fingerprint(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in shapes]
    assert twins(prints) == []
    banner = rng.integers(0, 256, (2, 3000, 3), dtype=np.uint8)
    banner[:] = np.repeat(smooth(5)[:2, :60].astype(np.uint8), 50, axis=1)
    twins([*prints, fingerprint(banner), fingerprint(banner[:, ::-1])])  # it ends


# ---- the search ---------------------------------------------------------------------------------


def brute_force(prints: list[Fingerprint]) -> set[tuple[int, int]]:
    """Compare every photo and its mirror image with every window of every other."""
    pictures = np.stack([np.frombuffer(p.luminance, np.uint8).reshape(32, 32) for p in prints])
    demanded = duplicates._demanded(pictures)
    windows = [duplicates._described(pictures, window) for window in duplicates.WINDOWS]
    found = set()
    for shown in (pictures, pictures[:, :, ::-1]):
        described = duplicates._described(shown, duplicates.WINDOWS[0])
        for a, b in itertools.permutations(range(len(prints)), 2):
            apart = [float(np.linalg.norm(window[a] - described[b])) for window in windows]
            start = np.array([np.argmin(apart)])
            _, likeness = duplicates._fitted(pictures[[a]], shown[[b]], start)
            if min(apart) <= duplicates.NEAR and likeness[0] >= max(demanded[[a, b]]):
                found.add((min(a, b), max(a, b)))
    return found


def changed(pixels: Pixels, change: tuple[bool, float, float, float, float, int]) -> Pixels:
    mirror, top, bottom, left, right, quality = change
    pixels = cropped(pixels, top, bottom, left, right)
    return jpeg(pixels[:, ::-1] if mirror else pixels, quality)


cuts = st.floats(0, 0.15)
changes = st.tuples(st.booleans(), cuts, cuts, cuts, cuts, st.integers(10, 95))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 3), changes), min_size=2, max_size=6))
def test_the_search_finds_what_a_comparison_of_all_pairs_finds(photos: list[Any]) -> None:
    prints = [fingerprint(changed(smooth(seed), change)) for seed, change in photos]
    prints = list(dict.fromkeys(prints))
    assert {(twin.first, twin.second) for twin in twins(prints)} == brute_force(prints)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), changes), min_size=2, max_size=7), st.randoms())
def test_the_order_of_the_photos_changes_nothing(photos: list[Any], random: Any) -> None:
    prints = [fingerprint(changed(smooth(seed), change)) for seed, change in photos]
    prints = list(dict.fromkeys(prints))
    order = list(range(len(prints)))
    random.shuffle(order)
    mixed = [
        Twin(min(a, b), max(a, b), twin.kind, twin.likeness)
        for twin in twins([prints[i] for i in order])
        for a, b in [(order[twin.first], order[twin.second])]
    ]
    assert sorted(mixed, key=lambda twin: (twin.first, twin.second)) == twins(prints)


def test_many_copies_of_one_photo_make_few_pairs() -> None:
    """A placeholder that a download left behind a hundred times, and its mirror image."""
    one, two = fingerprint(smooth(1)), fingerprint(smooth(1)[:, ::-1])
    found = twins([one, two] + [one] * 100 + [two] * 100)
    assert len(found) == 201
    assert groups(202, ((t.first, t.second) for t in found)) == [tuple(range(202))]


def test_more_photos_than_are_looked_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [fingerprint(smooth(seed)) for seed in range(40)]
    prints += [fingerprint(jpeg(smooth(seed), 30)) for seed in range(40)]
    whole = twins(prints)
    monkeypatch.setattr(duplicates, "STEP", 7)
    monkeypatch.setattr(duplicates, "PART", 3)
    assert [(t.first, t.second) for t in whole] == [(i, 40 + i) for i in range(40)]
    parts = twins(prints)
    assert [(t.first, t.second, t.kind) for t in parts] == [
        (t.first, t.second, t.kind) for t in whole
    ]
    np.testing.assert_allclose([t.likeness for t in parts], [t.likeness for t in whole], atol=1e-5)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31), st.integers(0, 255)), max_size=4),
    st.integers(0, 255),
    st.integers(0, len(duplicates.WINDOWS) - 1),
)
def test_a_window_without_anything_in_it_can_be_fitted(
    dots: list[tuple[int, int, int]], level: int, window: int
) -> None:
    pictures = np.full((2, 32, 32), level, np.uint8)
    for row, column, value in dots:
        pictures[0, row, column] = value
    for a, b in itertools.product(range(2), repeat=2):
        edges, likeness = duplicates._fitted(pictures[[a]], pictures[[b]], np.array([window]))
        assert np.isfinite(edges).all()
        assert -1.001 <= likeness[0] <= 1.001


# ---- groups -------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.data())
def test_groups_are_the_connected_components(count: int, data: st.DataObject) -> None:
    place = st.integers(0, max(0, count - 1))
    pairs = data.draw(st.lists(st.tuples(place, place), max_size=12 if count else 0))
    reached = np.eye(count, dtype=bool)
    for a, b in pairs:
        reached[a, b] = reached[b, a] = True
    for _ in range(count):
        reached = reached @ reached
    expected = {tuple(np.flatnonzero(row).tolist()) for row in reached}
    assert groups(count, pairs) == sorted(group for group in expected if len(group) > 1)
