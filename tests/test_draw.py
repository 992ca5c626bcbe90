"""The drawn birds: their folder, their repeatability, and above all the truth about them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from fieldmark import draw
from fieldmark.draw import birds, compose, decode_mask, encode_mask, picture
from fieldmark.errors import FieldmarkError
from fieldmark.scenery import BACKGROUNDS
from fieldmark.species import SPECIES

SIZE = 48
PER_CLASS = 6
FIELD_MARKS = {
    "Bananaquit": {"bill", "brow", "throat", "belly"},
    "Black Skimmer": {"bill", "upperparts", "underparts"},
    "Black-throated Bushtit": {"cap", "mask", "throat", "breast_band", "tail"},
    "Cockatoo": {"crest", "bill"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "birds"
    return birds(out, per_class=PER_CLASS, size=SIZE, seed=3)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "field_marks.json").read_text(encoding="utf-8"))
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(n) for n in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


@cache
def scenes(species: str) -> list[tuple[Image.Image, draw.Truth]]:
    """Six birds as they are before the camera alters their colours."""
    return [compose(species, size=96, rng=np.random.default_rng([11, k])) for k in range(6)]


def colours(species: str, mark: str) -> NDArray[np.float64]:
    """Mean over the birds of the median colour in a mark, (3,)."""
    medians = [
        np.median(np.asarray(image)[decode_mask(truth["field_marks"][mark]["mask"])], axis=0)
        for image, truth in scenes(species)
    ]
    return np.asarray(np.mean(medians, axis=0), dtype=np.float64)


def test_the_folder_holds_four_classes_and_the_truth(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [*SPECIES, "field_marks.json"]
    for species in SPECIES:
        names = sorted(path.name for path in (folder / species).iterdir())
        assert names == [f"{k:04d}.jpg" for k in range(PER_CLASS)]
    assert list(SPECIES) == sorted(SPECIES)


def test_photos_are_plain_jpegs_of_the_size(folder: Path) -> None:
    for path in folder.glob("*/*.jpg"):
        with Image.open(path) as photo:
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (SIZE, SIZE))
            assert not photo.getexif()


def test_the_table_says_what_made_it(folder: Path, truth: dict[str, Any]) -> None:
    photos = truth.pop("photos")
    assert truth == {"schema": 1, "size": SIZE, "seed": 3, "pillow": PIL.__version__}
    truth["photos"] = photos
    assert {folder / name for name in photos} == set(folder.glob("*/*.jpg"))
    for name, photo in photos.items():
        assert photo["species"] == name.split("/")[0]
        assert photo["background"] in BACKGROUNDS


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = birds(tmp_path / "again", per_class=PER_CLASS, size=SIZE, seed=3)
    assert hashes(again) == hashes(folder)


def test_another_seed_gives_other_photos(folder: Path, tmp_path: Path) -> None:
    other = birds(tmp_path / "other", per_class=1, size=SIZE, seed=4)
    assert not set(hashes(other).values()) & set(hashes(folder).values())


def test_fewer_photos_are_the_first_of_more(folder: Path, tmp_path: Path) -> None:
    few = hashes(birds(tmp_path / "few", per_class=2, size=SIZE, seed=3))
    del few["field_marks.json"]
    assert few.items() <= hashes(folder).items()


def test_no_two_photos_are_alike(folder: Path) -> None:
    assert len(set(hashes(folder).values())) == len(SPECIES) * PER_CLASS + 1


def test_a_bird_stays_in_its_place_at_another_size() -> None:
    for species in SPECIES:
        small, large = (
            compose(species, size=size, rng=np.random.default_rng(8))[1] for size in (64, 128)
        )
        assert (small["background"], small["pose"]) == (large["background"], large["pose"])
        assert np.allclose(np.array(small["bird"]["box"]) * 2, large["bird"]["box"], atol=3)


def test_masks_agree_with_their_boxes(truth: dict[str, Any]) -> None:
    for photo in truth["photos"].values():
        bird = decode_mask(photo["bird"]["mask"])
        assert bird.shape == (SIZE, SIZE)
        assert box_of(bird) == photo["bird"]["box"]
        assert photo["field_marks"].keys() <= FIELD_MARKS[photo["species"]]
        for mark in photo["field_marks"].values():
            mask = decode_mask(mark["mask"])
            assert box_of(mask) == mark["box"]
            assert not (mask & ~bird).any()


def test_every_photo_shows_a_field_mark_even_when_tiny() -> None:
    for species in SPECIES:
        for k in range(15):
            _, truth = compose(species, size=32, rng=np.random.default_rng([5, k]))
            assert truth["field_marks"]


def test_every_field_mark_is_drawn(truth: dict[str, Any]) -> None:
    seen: dict[str, set[str]] = {species: set() for species in SPECIES}
    for photo in truth["photos"].values():
        seen[photo["species"]] |= photo["field_marks"].keys()
    assert seen == FIELD_MARKS


def test_a_bird_fills_much_of_the_photo(truth: dict[str, Any]) -> None:
    for photo in truth["photos"].values():
        left, top, right, bottom = photo["bird"]["box"]
        assert 0.4 * SIZE < max(right - left, bottom - top) <= SIZE


@pytest.mark.parametrize(("species", "mark"), [("Bananaquit", "belly"), ("Cockatoo", "crest")])
def test_yellow_marks_are_yellow(species: str, mark: str) -> None:
    red, green, blue = colours(species, mark)
    assert red > green > blue + 60


@pytest.mark.parametrize("mark", ["cap", "breast_band"])
def test_chestnut_marks_are_chestnut(mark: str) -> None:
    red, green, blue = colours("Black-throated Bushtit", mark)
    assert red > green + 40
    assert green > blue


@pytest.mark.parametrize(
    ("species", "dark", "light"),
    [
        ("Black Skimmer", "upperparts", "underparts"),
        ("Bananaquit", "bill", "brow"),
        ("Bananaquit", "throat", "brow"),
        ("Black-throated Bushtit", "throat", "cap"),
        ("Black-throated Bushtit", "mask", "breast_band"),
        ("Cockatoo", "bill", "crest"),
    ],
)
def test_dark_marks_are_darker_than_light_ones(species: str, dark: str, light: str) -> None:
    assert colours(species, dark).mean() + 25 < colours(species, light).mean()


def test_surroundings_are_drawn_before_the_species_is_looked_at() -> None:
    for seed in range(6):
        drawn = [
            compose(species, size=32, rng=np.random.default_rng(seed))[1] for species in SPECIES
        ]
        assert len({(t["background"], t["pose"], t["mirrored"]) for t in drawn}) == 1


def test_no_class_has_a_background_of_its_own() -> None:
    n = 150  # a class
    counts = []
    for c in range(len(SPECIES)):
        kinds: Counter[str] = Counter()
        for k in range(n):  # as `birds` and `compose` take them
            scene, _ = np.random.default_rng([0, c, k]).spawn(2)
            world, *_ = scene.spawn(4)
            kinds[BACKGROUNDS[world.integers(len(BACKGROUNDS))]] += 1
        counts.append([kinds[kind] for kind in BACKGROUNDS])
    expected = n / len(BACKGROUNDS)
    chi_square = float(((np.array(counts) - expected) ** 2 / expected).sum())
    assert chi_square < 32.9  # 99.9 % point with 4 * 3 = 12 degrees of freedom


def test_the_counts_above_are_those_of_the_photos(truth: dict[str, Any]) -> None:
    for c, species in enumerate(SPECIES):
        for k in range(PER_CLASS):
            scene, _ = np.random.default_rng([3, c, k]).spawn(2)
            world, *_ = scene.spawn(4)
            kind = BACKGROUNDS[world.integers(len(BACKGROUNDS))]
            assert truth["photos"][f"{species}/{k:04d}.jpg"]["background"] == kind


def test_a_picture_is_the_photo_of_the_set(folder: Path) -> None:
    drawn, _ = picture("Cockatoo", size=SIZE, rng=np.random.default_rng([3, 3, 1]))
    with Image.open(folder / "Cockatoo" / "0001.jpg") as written:
        assert np.array_equal(np.asarray(drawn), np.asarray(written))


@settings(deadline=None)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_a_mask_survives_its_encoding(mask: NDArray[np.bool_]) -> None:
    rle = encode_mask(mask)
    assert sum(rle["counts"]) == mask.size
    assert np.array_equal(decode_mask(rle), mask)


def test_the_encoding_is_that_of_coco() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)  # columns: 00, 10, 11
    assert encode_mask(mask) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert encode_mask(~mask) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}


@given(st.lists(st.integers(0, 9), max_size=6))
def test_a_broken_encoding_is_refused(counts: list[int]) -> None:
    if sum(counts) == 20:
        counts = [*counts, 1]
    with pytest.raises(FieldmarkError, match="draw the set again"):
        decode_mask({"size": [4, 5], "counts": counts})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_class", 0),
        ("per_class", 10_000),
        ("size", 31),
        ("size", 1025),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, name: str, value: int) -> None:
    values = {"per_class": 1, "size": 32, "seed": 0, name: value}
    with pytest.raises(FieldmarkError, match=f"{name} is {value}: give a whole number from"):
        birds(tmp_path / "birds", **values)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FieldmarkError, match="not overwritten"):
        birds(tmp_path, per_class=1, size=32)
    with pytest.raises(FieldmarkError, match="not overwritten"):
        birds(tmp_path / "mine.txt", per_class=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    assert birds(tmp_path / "birds", per_class=1, size=32) == tmp_path / "birds"
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FieldmarkError, match=r"birds cannot be written"):
        birds(tmp_path / "file" / "birds", per_class=1, size=32)


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (OSError(28, "No space left on device"), FieldmarkError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_half_written_is_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
    expected: type[BaseException],
) -> None:
    whole, calls = draw.photograph, []

    def fails_later(image: Image.Image, rng: np.random.Generator) -> bytes:
        calls.append(1)
        if len(calls) == 3:
            raise trouble
        return whole(image, rng)

    monkeypatch.setattr(draw, "photograph", fails_later)
    with pytest.raises(expected):
        birds(tmp_path / "birds", per_class=2, size=32)
    assert not list(tmp_path.iterdir())
