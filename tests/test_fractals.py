"""Drawn fractals: their folder, their repeatability, and that each shows something."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark import fractals
from fieldmark.errors import FieldmarkError

KINDS, PER_CLASS, SIZE = 4, 12, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "fractals"
    return fractals.draw(out, kinds=KINDS, per_class=PER_CLASS, size=SIZE, seed=3)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


def test_a_folder_a_kind(folder: Path) -> None:
    assert [*hashes(folder)] == [
        f"{kind:04d}/{k:04d}.jpg" for kind in range(KINDS) for k in range(PER_CLASS)
    ]
    assert len({*hashes(folder).values()}) == KINDS * PER_CLASS
    with Image.open(folder / "0000" / "0000.jpg") as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_a_picture_follows_from_seed_kind_and_number(folder: Path, tmp_path: Path) -> None:
    fewer = fractals.draw(tmp_path / "fewer", kinds=2, per_class=3, size=SIZE, seed=3)
    assert hashes(fewer).items() <= hashes(folder).items()
    other = fractals.draw(tmp_path / "other", kinds=2, per_class=3, size=SIZE, seed=4)
    assert not {*hashes(other).values()} & {*hashes(folder).values()}


@given(st.integers(0, 2**63 - 1), st.integers(32, 80))
@settings(max_examples=20, deadline=None)
def test_every_kind_shows_something(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    kind = fractals.kind_of(rng)
    assert np.linalg.norm(kind.matrices, 2, axis=(1, 2)).max() < 1  # no chain runs away
    assert kind.shares.sum() == pytest.approx(1)
    points, maps = fractals.reached(kind, rng, chains=20)
    assert np.isfinite(points).all()
    assert {*maps.tolist()} <= {*range(len(kind.shifts))}
    pixels = np.asarray(fractals.picture(kind, size=size, rng=rng))
    assert pixels.shape == (size, size, 3)
    assert pixels.std() > 2


@pytest.mark.parametrize(
    ("name", "value"), [("kinds", 1), ("per_class", 0), ("size", 16), ("seed", -1)]
)
def test_values_out_of_range(name: str, value: int, tmp_path: Path) -> None:
    values = {"kinds": 2, "per_class": 1, "size": 32, "seed": 0, name: value}
    with pytest.raises(FieldmarkError, match=f"{value}: give a whole number"):
        fractals.draw(tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_what_lies_there_stays(folder: Path) -> None:
    before = hashes(folder)
    with pytest.raises(FieldmarkError, match="already"):
        fractals.draw(folder, kinds=2, per_class=1, size=32)
    assert hashes(folder) == before
