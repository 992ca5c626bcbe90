"""Draw kinds of fractals: things that nobody photographed, to learn seeing from.

In: a folder that does not exist yet (or is empty), how many kinds, pictures of each, their size and
a seed. Out: `OUT/0000/0000.jpg`, ..., a folder a kind. The same seed gives the same bytes on one
version of Pillow and numpy.

    fieldmark draw OUT --fractals 200 --per-class 100 --size 96

A kind is an iterated function system, some affine maps of the plane, with two colours: a picture
shows the points that random chains of the maps reach (Barnsley 1988), before a cloud. That networks
learn to see from such pictures was found by Kataoka et al. (2020, arXiv:2101.08515); how the maps
are drawn so that most are worth looking at, by Anderson and Farrell (2021, arXiv:2110.03091).
"""

from __future__ import annotations

import colorsys
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from fieldmark.console import meter
from fieldmark.draw import require_within
from fieldmark.files import whole_folder

Floats = NDArray[np.float64]

MAPS = (2, 4)  # of a kind
STEPS, SETTLING = 50, 15  # points that a chain gives, behind those it needs to get there
CHAINS = 1 / 8  # a pixel: some six points fall on each
STEEPEST = 0.97  # the most by which a map may lengthen anything: less than 1, or chains run away
CELLS, FILLED = 24, 100  # a kind must reach so many cells of a grid of so many by so many
OWN_HUE = 0.8  # of a kind's pictures; the others have any
QUALITY = 90  # of the JPEG files


@dataclass(frozen=True)
class Kind:
    """Affine maps of the plane, and the hue of what they draw."""

    matrices: Floats  # (maps, 2, 2)
    shifts: Floats  # (maps, 2)
    hue: float
    turn: float  # of the hue, from the first map's part to the last's

    @property
    def shares(self) -> Floats:
        """How often each map is taken, (maps,): by the area that it leaves."""
        areas = np.abs(np.linalg.det(self.matrices)) + 0.02
        return np.asarray(areas / areas.sum())


def draw(
    folder: str | os.PathLike[str], *, kinds: int, per_class: int, size: int, seed: int = 0
) -> Path:
    """Draw so many kinds, `per_class` pictures of `size` pixels each, and return the folder.

    Picture k of a kind depends on the seed, the kind's number and k alone. Raises a FieldmarkError
    for a value out of range, and for a folder that holds something already or cannot be written;
    then nothing is left behind.
    """
    folder = Path(folder)
    require_within("fractals", kinds, 2, 9999)
    require_within("per_class", per_class, 1, 9999)
    require_within("size", size, 32, 1024)
    require_within("seed", seed, 0, 2**63 - 1)
    with whole_folder(folder) as part, meter("Drawing", kinds * per_class) as progress:
        for number in range(kinds):
            kind = kind_of(np.random.default_rng([seed, number]))
            place = part / f"{number:04d}"
            place.mkdir()
            for k in range(per_class):
                image = picture(kind, size=size, rng=np.random.default_rng([seed, number, k]))
                image.save(place / f"{k:04d}.jpg", quality=QUALITY)
                progress.advance()
    return folder


def kind_of(rng: np.random.Generator) -> Kind:
    """Draw maps until they make something that fills a part of the plane."""
    while True:
        kind = Kind(*_maps(rng), hue=rng.uniform(), turn=rng.normal(0, 0.2))
        points, _ = reached(kind, rng, chains=300, steps=30)
        low, high = np.percentile(points, [1, 99], axis=0)
        if (high - low).min() < 0.1:
            continue
        cells = np.clip((points - low) / (high - low) * CELLS, 0, CELLS - 1).astype(int)
        if len(np.unique(cells @ [CELLS, 1])) > FILLED:
            return kind


def _maps(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw matrices, (maps, 2, 2), and shifts, (maps, 2), of which no map lengthens anything.

    The sum of a matrix' larger singular value and twice its smaller, over all maps, tells fractals
    worth looking at from dust and blots (Anderson and Farrell).
    """
    count = int(rng.integers(MAPS[0], MAPS[1] + 1))
    wanted = rng.uniform((5 + count) / 2, (6 + count) / 2)
    while True:
        larger = rng.uniform(0, 1, count)
        smaller = rng.uniform(0, 1, count) * larger
        scale = wanted / (larger + 2 * smaller).sum()
        if larger.max() * scale < STEEPEST:
            break
    stretch = scale * np.stack([larger, smaller], -1)[:, None]  # of each axis
    signs = rng.choice([-1, 1], (count, 1, 2))
    before, after = (turned(angle) for angle in rng.uniform(-np.pi, np.pi, (2, count)))
    return before * stretch @ after * signs, rng.uniform(-1, 1, (count, 2))


def turned(angles: ArrayLike) -> Floats:
    """Return the matrices, (..., 2, 2), that turn the plane by so many radians."""
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)


def reached(
    kind: Kind, rng: np.random.Generator, *, chains: int, steps: int = STEPS
) -> tuple[Floats, NDArray[np.intp]]:
    """Return the points that chains of maps reach, (n, 2), and which map came last, (n,)."""
    taken = rng.choice(len(kind.shifts), (SETTLING + steps, chains), p=kind.shares)
    points = np.zeros((SETTLING + steps, chains, 2))
    point = points[0]
    for step, maps in enumerate(taken):
        matrices = kind.matrices[maps]
        point = matrices[..., 0] * point[:, :1] + matrices[..., 1] * point[:, 1:]
        point += kind.shifts[maps]
        points[step] = point
    return points[SETTLING:].reshape(-1, 2), taken[SETTLING:].ravel()


def picture(kind: Kind, *, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw one picture of a kind: bent, turned and coloured a little, before some cloud."""
    behind = cloud(size, rng)
    things, cover = _thing(_bent(kind, rng), size, rng)
    pixels = behind + (things - behind) * cover
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def cloud(size: int, rng: np.random.Generator) -> Floats:
    """Return noise between two colours, (size, size, 3), whose spectrum falls by some power."""
    across = np.fft.fftfreq(size)
    frequency = np.hypot(across[:, None], across)
    frequency[0, 0] = 1
    waves = rng.normal(size=(2, size, size)) / frequency ** rng.uniform(0.6, 2)
    sums = np.fft.ifft2(waves[0] + 1j * waves[1]).real[..., None]
    noise: Floats = (sums - sums.min()) / np.ptp(sums)
    hue = rng.uniform()
    first, second = (
        _colour(each, rng.uniform(0, 0.8), rng.uniform(0.05, 1))
        for each in (hue, hue + rng.normal(0, 0.2))
    )
    return first + (second - first) * noise


def _bent(kind: Kind, rng: np.random.Generator) -> Kind:
    """Return the kind with maps that are a little others, and at times of another hue."""
    matrices = kind.matrices * rng.uniform(0.94, 1.04, kind.matrices.shape)
    matrices *= min(1.0, STEEPEST / np.linalg.norm(matrices, 2, axis=(1, 2)).max())
    shifts = kind.shifts + rng.normal(0, 0.04, kind.shifts.shape)
    hue = kind.hue + rng.normal(0, 0.06) if rng.random() < OWN_HUE else rng.uniform()
    return Kind(matrices, shifts, hue, kind.turn + rng.normal(0, 0.05))


def _thing(kind: Kind, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return colours, (size, size, 3), and how much of each pixel they cover, (size, size, 1)."""
    points, maps = reached(kind, rng, chains=round(CHAINS * size * size))
    points = points @ turned(rng.normal(0, 0.35)).T
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    reach = rng.uniform(0.6, 1) * size
    corner = rng.uniform(0, size - reach, 2)
    points = (points - (low + high) / 2) / (high - low).max() * reach + corner + reach / 2
    places = np.floor(points).astype(int)
    inside = ((places >= 0) & (places < size)).all(1)
    flat, maps = places[inside] @ [size, 1], maps[inside]

    count = np.bincount(flat, minlength=size * size).reshape(size, size)
    tones = np.bincount(flat, maps / (len(kind.shifts) - 1), size * size).reshape(size, size)
    tone = tones / np.maximum(count, 1)
    near = uniform_filter((count > 0).astype(float), 3, mode="constant")
    tone = uniform_filter(tone, 3, mode="constant") / np.maximum(near, 1e-9)
    shade = np.log1p(9 * uniform_filter(count.astype(float), 3, mode="constant"))
    shade /= shade.max()

    first, last = (
        _colour(hue, rng.uniform(0.3, 1), rng.uniform(0.4, 1))
        for hue in (kind.hue, kind.hue + kind.turn)
    )
    colours = first + (last - first) * np.clip(tone, 0, 1)[..., None]
    light = 0.45 + 0.55 * shade if rng.random() < 0.5 else 1 - 0.55 * shade
    return colours * light[..., None], np.clip(near * 9 / 4, 0, 1)[..., None]


def _colour(hue: float, saturation: float, value: float) -> Floats:
    """Return red, green and blue from 0 to 1; a hue of 1.2 is one of 0.2."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
