"""How good one photo is: is anything on it, is it too dark or too bright, is it blurred?

In: a decoded photo, (h, w, 3) uint8, as `images.decode(content, at_least=SIDE)` gives it. Out:
`Measures`, five numbers, and by `faults` the names of what is wrong. `fieldmark check` asks this of
every photo. The thresholds are chosen on planted faults: `docs/check.md` has precision and recall,
`experiments/against_cleanvision.py` the measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Fault = Literal["blank", "dark", "bright", "faint", "blurred"]
Grid = NDArray[np.float32]

SIDE = 256  # pixels of the short side at which photos are judged: about what a network sees
LONGEST = 2048  # pixels: a panorama costs no more than eight photos
GRID = 32  # cells on a side, over which noise averages out and a small bird does not
REACH = 4  # pixels over which an edge's rise is looked at
EDGES = 0.98  # the steepest fiftieth of a photo are its edges
SHARPEST = 0.9  # a tenth of them is enough: what is sharp somewhere is not blurred
STEEP = 8.0  # grey levels over REACH: below, it is noise or sky
FEWEST = 16  # edges, fewer say nothing

# The thresholds, each in a gap between good photos and planted faults.
BLANK = 12.0  # grey levels of span; noise of 10 levels on one colour spans 9, dark photos 14
DARK = 80.0  # levels: 99 % of the photo are below in all three colours
BRIGHT = 175.0  # levels: 99 % of the photo are above in all three colours
FAINT = 40.0  # grey levels between the darkest and the brightest hundredth
BLURRED = 0.4  # part of a rise; the softest of 1255 real photos has 0.48, a ramp 0.25


@dataclass(frozen=True)
class Measures:
    """What is measured of a photo; grey levels from 0 to 255."""

    span: float  # between the extremes of any one colour, over GRID x GRID averages
    darkest: float  # the level that the least of the colours is below in 1 % of the pixels
    brightest: float  # the level that the greatest is above in 1 %; a red rose is not dark
    contrast: float  # between the grey levels that 1 % are below and 1 % above
    sharpness: float  # the part of an edge's rise that one pixel takes; nan: no edges


def measure(pixels: NDArray[np.uint8]) -> Measures:
    """Measure a photo, (h, w, 3)."""
    blocks = _blocks(pixels)
    grey = blocks @ np.array([0.299, 0.587, 0.114], np.float32)  # (h, w), ITU-R BT.601
    ratio = min(1.0, SIDE / min(grey.shape))
    height, width = (round(length * ratio) for length in grey.shape)
    small = _averaged(_averaged(grey, height).T, width).T  # (height, width)
    # Two by two: numpy reduces an axis of three slowly.
    red, green, blue = (blocks[:, :, channel] for channel in range(3))
    # The less sharp axis counts: a shake of the camera blurs one and leaves the other.
    return Measures(
        span=_span(blocks),
        darkest=_level(np.minimum(np.minimum(red, green), blue), 0.01),
        brightest=_level(np.maximum(np.maximum(red, green), blue), 0.99),
        contrast=_level(small, 0.99) - _level(small, 0.01),
        sharpness=float(np.fmin(_sharpness(small), _sharpness(small.T))),
    )


def faults(measures: Measures) -> tuple[Fault, ...]:
    """Name what is wrong with a photo.

    A photo that is blank, dark, bright or faint is called that alone: it has no edges to judge.
    """
    if measures.span < BLANK:
        return ("blank",)
    if measures.brightest < DARK:
        return ("dark",)
    if measures.darkest > BRIGHT:
        return ("bright",)
    if measures.contrast < FAINT:
        return ("faint",)
    return ("blurred",) if measures.sharpness < BLURRED else ()


def _blocks(pixels: NDArray[np.uint8]) -> Grid:
    """Average whole blocks of pixels, as many as leave SIDE of them on the short side, (h, w, 3).

    numpy needs no copy of a large photo in floating point for that.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    rows, columns = (max(1, short // SIDE, length // LONGEST) for length in (height, width))
    if rows == columns == 1:
        return pixels.astype(np.float32)
    whole = pixels[: height // rows * rows, : width // columns * columns]
    parts = whole.reshape(height // rows, rows, width // columns, columns, 3)
    averaged: Grid = parts.mean(axis=(1, 3), dtype=np.float32)
    return averaged


def _averaged(values: Grid, cells: int) -> Grid:
    """Average rows to fewer, over the exact area of each cell: (h, w) to (cells, w)."""
    rows = len(values)
    if cells >= rows:
        return values
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0, dtype=np.float64)])
    ends = np.linspace(0, rows, cells + 1)
    whole = np.minimum(ends.astype(int), rows - 1)
    part = (ends - whole)[:, None]
    averaged: Grid = np.diff(sums[whole] + part * values[whole], axis=0) * (cells / rows)
    return averaged


def _span(blocks: Grid) -> float:
    """Return the largest difference in any one colour between two cells of a grid."""
    cells = blocks
    for axis in (0, 1):
        starts = np.linspace(0, cells.shape[axis], GRID, endpoint=False).astype(int)
        starts = np.unique(starts)
        widths = np.diff([*starts, cells.shape[axis]])
        cells = np.add.reduceat(cells, starts, axis=axis)
        cells /= widths[:, None, None] if axis == 0 else widths[:, None]
    return float(np.ptp(cells, axis=(0, 1)).max())


def _level(values: Grid, share: float) -> float:
    """Return the level below which this share of the values lies."""
    counts = np.cumsum(np.bincount(values.astype(np.uint8).ravel(), minlength=256))
    return float(np.searchsorted(counts, share * counts[-1]))


def _sharpness(grey: Grid) -> float:
    """Return the part of a rise over REACH pixels, down the columns, that one pixel takes.

    A step takes all of it in one pixel: 1. A ramp takes a REACH-th in each: 0.25. So contrast
    cancels out. Only the steepest places count, and the sharpest of those, so that a blurred
    background does no harm. It is the edge's width of Marziliano et al. (2002), "A no-reference
    perceptual blur metric", without following each edge to its ends.
    """
    if len(grey) <= REACH:
        return math.nan
    step = np.abs(np.diff(grey, axis=0))
    rise = np.abs(grey[REACH:] - grey[:-REACH])
    steep = rise >= max(STEEP, float(np.quantile(rise, EDGES)))
    if np.count_nonzero(steep) < FEWEST:
        return math.nan
    steepest = np.max([step[i : i + len(rise)] for i in range(REACH)], axis=0)
    part = np.minimum(steepest[steep] / rise[steep], 1)  # noise can rise and fall within REACH
    return float(np.quantile(part, SHARPEST))
