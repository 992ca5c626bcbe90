r"""Are the heat maps right? Against drawn birds, of which it is known where every field mark is.

In: a run of drawn birds. Out: three tables on standard output, each figure with its n and a 95 %
interval. The photos are drawn anew with another seed, so that the run has seen none of them.

    fieldmark draw build/birds --per-class 100 --size 128
    fieldmark train build/birds --out build/birds-run --minutes 4 --image-size 128
    python benchmarks/heatmaps.py build/birds-run

- Pointing game (Zhang et al. 2018, arXiv:1608.00507): the share of maps whose peak lies in the box
  of a field mark, or of the bird; and the share of a map's mass that lies in the bird's box. Beside
  it the middle of the photo (for the mass a bell around it) and a map that is the same everywhere.
- Sanity check (Adebayo et al. 2018, arXiv:1810.03292): the rank correlation of the maps with those
  of a network whose weights are drawn anew, which says nothing of the photo.
- Deletion (Petsiuk et al. 2018, arXiv:1806.07421): the probability of the predicted class while the
  photo's places are painted over, those first where the map is strongest; the area under that
  curve, 0 to 1, is smaller the better the map names what the decision hangs on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import spearmanr

from fieldmark import draw, heatmaps, images
from fieldmark.backend import keras
from fieldmark.console import meter
from fieldmark.findings import wilson
from fieldmark.heatmaps import Floats, Geometry, Mapper
from fieldmark.run import open_run
from fieldmark.trained import Trained

RESAMPLES = 2000
PATCH = 16  # of a square's side are painted over at a time, in both directions
STEPS = 16
Order = Callable[[int], NDArray[np.float64]]  # a photo's number -> how early each place goes


class Birds(NamedTuple):
    """Drawn photos and what is known of them; boxes are left, top, right, bottom, 0 to 1."""

    photos: list[bytes]
    labels: NDArray[np.intp]  # (n,)
    birds: NDArray[np.float64]  # (n, 4)
    marks: list[NDArray[np.float64]]  # n times (marks, 4)


def drawn(classes: Sequence[str], *, per_class: int, size: int, seed: int) -> Birds:
    """Draw photos that no run has seen, unless it was drawn with the same seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = draw.birds(Path(temporary) / "birds", per_class=per_class, size=size, seed=seed)
        known = json.loads((folder / "field_marks.json").read_text())["photos"]
        if {truth["species"] for truth in known.values()} != {*classes}:
            sys.exit("This run is not of the drawn birds: train one, as this file's head says.")
        return Birds(
            [(folder / path).read_bytes() for path in known],
            np.array([classes.index(truth["species"]) for truth in known.values()]),
            np.array([truth["bird"]["box"] for truth in known.values()]) / size,
            [
                np.array([mark["box"] for mark in truth["field_marks"].values()]).reshape(-1, 4)
                / size
                for truth in known.values()
            ],
        )


class Seen(NamedTuple):
    """Photos as the network sees them, and what it makes of them."""

    squares: NDArray[np.uint8]  # (n, side, side, 3)
    feature_maps: Floats  # (n, h, w, k)
    logits: NDArray[np.float64]  # (n, c)


def seen(classifier: Trained, mapper: Mapper, birds: Birds, side: int) -> Seen:
    """Show the network the photos as squares of `side` pixels."""
    spec = classifier.specification.model_copy(update={"size": side})
    squares = np.stack([images.read(photo, spec) for photo in birds.photos])
    found = []
    with meter(f"Squares of {side}", len(squares)) as shown:
        for batch in batches(squares):
            found.append(mapper(images.scale(batch, spec)))
            shown.advance(len(batch))
    feature_maps = np.concatenate(found)
    return Seen(squares, feature_maps, mapper.logits(feature_maps))


def batches(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the rows 32 at a time."""
    for start in range(0, len(rows), 32):
        yield rows[start : start + 32]


def interval(values: NDArray[np.float64]) -> str:
    """Write a mean with its 95 % interval: the bootstrap's over photos."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def share(hits: NDArray[np.bool_]) -> str:
    """Write a share with its 95 % interval: Wilson's."""
    low, high = wilson(float(hits.mean()), len(hits))
    return f"{hits.mean():.3f} ({low:.3f} to {high:.3f})"


# ---- where the maps point -----------------------------------------------------------------------


def pointing(name: str, heats: Floats, birds: Birds) -> str:
    """Write the row of maps (n, side, side): peak in a mark, peak in the bird, mass in the bird."""
    n, side, _ = heats.shape
    rows, columns = np.unravel_index(heats.reshape(n, -1).argmax(axis=1), (side, side))
    peaks = (np.stack([columns, rows], axis=1) + 0.5) / side  # (n, 2)
    marks = np.array(
        [in_any(p[None], boxes)[0] for p, boxes in zip(peaks, birds.marks, strict=True)]
    )
    bird = np.array([in_any(p[None], [box])[0] for p, box in zip(peaks, birds.birds, strict=True)])
    mass = np.array([mass_in(h, box) for h, box in zip(heats, birds.birds, strict=True)])
    return f"| {name} | {share(marks)} | {share(bird)} | {interval(mass)} |"


def in_any(points: NDArray[np.float64], boxes: Iterable[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Tell which of the points (m, 2) lie in any of the boxes (4,)."""
    found = np.zeros(len(points), bool)
    for box in boxes:
        found |= ((box[:2] <= points) & (points < box[2:])).all(axis=1)
    return found


def mass_in(heat: Floats, box: NDArray[np.float64]) -> float:
    """Return the share of a map that lies in a box; of a map of nothing, none does."""
    left, top, right, bottom = np.round(box * len(heat)).astype(int)
    return float(heat[top:bottom, left:right].sum() / max(float(heat.sum()), 1e-12))


def chance(birds: Birds, side: int) -> str:
    """Write the row of a map that is the same everywhere, its peak any pixel."""
    middles = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)  # (side side, 2)
    marks = np.array([in_any(grid, boxes).mean() for boxes in birds.marks])
    areas = (birds.birds[:, 2] - birds.birds[:, 0]) * (birds.birds[:, 3] - birds.birds[:, 1])
    return f"| the same everywhere | {interval(marks)} |" + f" {interval(areas)} |" * 2


def evenly(values: Floats, side: int) -> Floats:
    """Enlarge maps as if their cells were spread evenly over the square, which they are not."""
    cells = values.shape[-1]
    rows = heatmaps.interpolation((np.arange(cells) + 0.5) * side / cells - 0.5, side)
    return np.asarray(rows @ values @ rows.T, np.float32)


def bell(count: int, side: int) -> Floats:
    """Return maps with a bell around the middle, a quarter of the side wide."""
    away = (np.arange(side) + 0.5) / side - 0.5
    one = np.exp(-(away**2) / (2 * 0.25**2))
    return np.broadcast_to(np.outer(one, one).astype(np.float32), (count, side, side))


def point(classifier: Trained, mapper: Mapper, birds: Birds, factors: Sequence[float]) -> Seen:
    """Print the table of the pointing game; return the photos at the run's own size."""
    print(f"\nn = {len(birds.photos)}; maps of the true class")
    print("| map | peak in a field mark | peak in the bird | mass in the bird |")
    print("| --- | --- | --- | --- |")
    size = classifier.specification.size
    first = seen(classifier, mapper, birds, size)
    values = heatmaps.maps(first.feature_maps, mapper.kernel, birds.labels[:, None]).values[:, 0]
    print(pointing("ours", mapper.enlarged(values, size), birds))
    print(pointing("cells spread evenly instead", evenly(values, size), birds))
    centred = mapper.kernel - mapper.kernel.mean(axis=1, keepdims=True)
    against = heatmaps.maps(first.feature_maps, centred, birds.labels[:, None]).values[:, 0]
    print(pointing("less the mean of all classes", mapper.enlarged(against, size), birds))
    print(pointing("the middle", bell(len(values), size), birds))
    print(chance(birds, size))
    views = between(classifier, mapper, first.squares)
    values = heatmaps.maps(views, mapper.kernel, birds.labels[:, None]).values[:, 0]
    half = Geometry(mapper.geometry.start, mapper.geometry.stride // 2)
    rows = heatmaps.interpolation(half.centres(values.shape[1]), size)
    finer = np.asarray(rows @ values @ rows.T, np.float32)
    print(pointing("four views, half a cell apart", finer, birds))
    accuracies = [
        (f"fed {size} pixels", first.feature_maps.shape[1], first.logits),
        ("four views", values.shape[1], mapper.logits(views)),
    ]
    for factor in factors if mapper.network.input_shape[1] is None else ():
        side = round(size * factor)
        large = seen(classifier, mapper, birds, side)
        values = heatmaps.maps(large.feature_maps, mapper.kernel, birds.labels[:, None]).values[
            :, 0
        ]
        print(pointing(f"fed {side} pixels", mapper.enlarged(values, side), birds))
        accuracies.append((f"fed {side} pixels", values.shape[1], large.logits))
    for name, cells, logits in accuracies:
        right = logits.argmax(axis=1) == birds.labels
        print(f"{name}: {cells} x {cells} cells, accuracy {share(right)}")
    return first


def between(classifier: Trained, mapper: Mapper, squares: NDArray[np.uint8]) -> Floats:
    """Return feature maps of twice as many cells a side, half as far apart, (n, 2 h, 2 w, k).

    The network sees each photo four times, moved by half a cell; its border is drawn out.
    """
    side, move = squares.shape[1], mapper.geometry.stride // 2
    wider = np.pad(squares, ((0, 0), (0, move), (0, move), (0, 0)), mode="edge")
    rows = []
    for down in (0, move):
        columns = []
        for across in (0, move):
            moved = wider[:, down : down + side, across : across + side]
            spec = classifier.specification
            found = [mapper(images.scale(batch, spec)) for batch in batches(moved)]
            columns.append(np.concatenate(found))  # (n, h, w, k)
        rows.append(np.stack(columns, axis=3))  # (n, h, w, 2, k)
    views = np.stack(rows, axis=2)  # (n, h, 2, w, 2, k)
    n, h, _, w, _, k = views.shape
    return views.reshape(n, 2 * h, 2 * w, k)


# ---- are they the network's ---------------------------------------------------------------------


def sanity(classifier: Trained, mapper: Mapper, own: Seen, redraws: int) -> None:
    """Print the rank correlations with maps of weights drawn anew."""
    classes = own.logits.argmax(axis=1)[:, None]
    values = heatmaps.maps(own.feature_maps, mapper.kernel, classes).values[:, 0]
    print(f"\nn = {len(values)}, {redraws} redraws each; maps of the predicted class")
    print("| weights drawn anew | rank correlation | its size | maps of nothing |")
    print("| --- | --- | --- | --- |")
    for name, whole in (("all", True), ("the classifier's only", False)):
        found, nothing = [], 0
        for redraw in range(redraws):
            keras.utils.set_random_seed(redraw)
            anew = Mapper.of(keras.models.clone_model(mapper.network))
            feature_maps = own.feature_maps
            if whole:
                spec = classifier.specification
                rows = [anew(images.scale(batch, spec)) for batch in batches(own.squares)]
                feature_maps = np.concatenate(rows)
            others = heatmaps.maps(feature_maps, anew.kernel, classes).values[:, 0]
            flat = np.ptp(others, axis=(1, 2)) == 0
            nothing += int(flat.sum())
            found.append(
                [
                    np.nan if dull else spearmanr(a.ravel(), b.ravel()).statistic
                    for a, b, dull in zip(values, others, flat, strict=True)
                ]
            )
        table = np.array(found)  # (redraws, n)
        some = ~np.isnan(table).all(axis=0)
        signed = np.nanmean(table[:, some], axis=0)
        size = np.nanmean(np.abs(table[:, some]), axis=0)
        print(f"| {name} | {interval(signed)} | {interval(size)} | {nothing} of {table.size} |")


# ---- does the decision hang on them -------------------------------------------------------------


def delete(classifier: Trained, mapper: Mapper, own: Seen) -> None:
    """Print the areas under the deletion curves of four orders."""
    n, side = own.squares.shape[:2]
    answers = own.logits.argmax(axis=1)
    values = heatmaps.maps(own.feature_maps, mapper.kernel, answers[:, None]).values[:, 0]
    heats = mapper.enlarged(values, side)
    middle = bell(1, side)[0]
    rng = np.random.default_rng(0)
    noise = rng.random((n, PATCH, PATCH))
    orders: dict[str, Order] = {
        "the map's strongest first": lambda i: patches(heats[i]),
        "the middle first": lambda _: patches(middle),
        "by chance": lambda i: noise[i],
        "the map's weakest first": lambda i: -patches(heats[i]),
    }
    print(f"\nn = {n}; {STEPS} steps of {PATCH * PATCH // STEPS} places; the predicted class")
    print("| painted over | area under the probability | less than by chance |")
    print("| --- | --- | --- |")
    areas = {
        name: np.array(
            [
                area(classifier, own.squares[i], order(i), int(answers[i]))
                for i in track(range(n), f"Deleting, {name}")
            ]
        )
        for name, order in orders.items()
    }
    for name, found in areas.items():
        print(f"| {name} | {interval(found)} | {interval(areas['by chance'] - found)} |")


def patches(heat: Floats) -> NDArray[np.float64]:
    """Return the mean of a map (side, side) in each place, (PATCH, PATCH)."""
    edges = np.linspace(0, len(heat), PATCH + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(heat.astype(np.float64), edges[:-1], 0), edges[:-1], 1)
    return np.asarray(sums / np.outer(np.diff(edges), np.diff(edges)), np.float64)


def area(
    classifier: Trained, square: NDArray[np.uint8], early: NDArray[np.float64], answer: int
) -> float:
    """Return the area under the class' probability while the places are painted over.

    The paint is the photo's mean colour; the places with the largest `early` go first.
    """
    side = len(square)
    edges = np.linspace(0, side, PATCH + 1).round().astype(int)
    place = np.searchsorted(edges, np.arange(side), side="right") - 1  # of each row and column
    rank = np.empty(early.size, int)
    rank[np.argsort(-early.ravel(), kind="stable")] = np.arange(early.size)
    ranks = rank.reshape(early.shape)[place][:, place]  # (side, side)
    gone = ranks[None] < np.linspace(0, early.size, STEPS + 1)[:, None, None]
    paint = square.mean(axis=(0, 1)).round().astype(np.uint8)
    painted = np.where(gone[..., None], paint, square[None])  # (STEPS + 1, side, side, 3)
    logits = classifier.of(painted)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = raised[:, answer] / raised.sum(axis=1)
    return float(np.trapezoid(probabilities, dx=1 / STEPS))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="a run of drawn birds")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="another one than the run's photos had")
    parser.add_argument("--factors", type=float, nargs="*", default=[1.5, 2], help="larger squares")
    parser.add_argument("--redraws", type=int, default=5)
    options = parser.parse_args()
    classifier = Trained.load(open_run(options.run))
    mapper = Mapper.of(classifier.network)
    birds = drawn(
        classifier.classes,
        per_class=options.per_class,
        size=max(128, classifier.specification.size),
        seed=options.seed,
    )
    print(f"{mapper.network.name}, {mapper.layer}, {classifier.specification}")
    own = point(classifier, mapper, birds, options.factors)
    sanity(classifier, mapper, own, options.redraws)
    delete(classifier, mapper, own)


if __name__ == "__main__":
    main()
