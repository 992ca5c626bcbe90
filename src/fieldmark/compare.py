"""Is one run better than another? Their predictions of the same photos, compared in pairs.

In: runs with predictions. Out: a `Comparison`: for each run but the first the difference from it,
its interval, the chance of such a difference between equals, and a sentence; `table` writes it for
a terminal. `fieldmark compare RUN RUN...` runs it.

Only photos that no run has trained on count, and of these the ones that all runs have predicted.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from scipy import sparse, stats
from scipy.sparse import csgraph

from fieldmark import predictions
from fieldmark.console import many, printable, printed
from fieldmark.errors import FieldmarkError
from fieldmark.findings import wilson
from fieldmark.metrics import grid, in_words, interval, log_losses, resampled
from fieldmark.predictions import Predictions
from fieldmark.run import Run, open_run

LEVEL = 0.05  # the chance of finding a difference between equals that is put up with
POWER = 0.8  # the chance with which a true difference is to be found
HELD_OUT = ("test", "validation", "new")

Key = tuple[str, str]  # a photo's sha256 and its class


@dataclass(frozen=True)
class Result:
    """How one run does on the photos in common."""

    run: str  # as it was named
    accuracy: float
    low: float  # Wilson's interval
    high: float
    log_loss: float  # of the probabilities as they are, not calibrated


@dataclass(frozen=True)
class Difference:
    """A run against the first one; a positive difference of accuracy is in its favour."""

    run: str
    only_first: int  # photos that the first run alone has right
    only_this: int
    accuracy: float  # the difference, as a share of the photos
    accuracy_low: float | None  # paired bootstrap; None where no drawing makes a difference
    accuracy_high: float | None
    log_loss: float  # the difference; below 0 it is in favour of this run
    log_loss_low: float | None
    log_loss_high: float | None
    p: float  # McNemar's exact test
    p_holm: float  # corrected for the number of comparisons
    detectable: float  # the smallest difference that these photos would mostly have shown
    larger_than_chance: bool
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Runs compared on the photos that all have held out."""

    split: str | None  # of which the photos are; None: all that are held out
    photos: int
    groups: int  # what was drawn: groups of photos, and single ones
    resamples: int
    seed: int
    results: tuple[Result, ...]
    differences: tuple[Difference, ...]  # one a run but the first
    notes: tuple[str, ...]  # what to keep in mind, a sentence each

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    split: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare each run with the first, on the photos that all have held out.

    Photos are the same where their bytes are. With `split` only photos that lie in it in every run.
    Raises a FieldmarkError for runs without predictions, of other classes, or with no photo in
    common.
    """
    names = [os.fspath(run) for run in runs]
    _refuse_asked(names, split, resamples)
    opened = [open_run(name) for name in names]
    tables = [_predictions(run) for run in opened]
    _refuse_other_classes(names, tables)
    chosen = [_chosen(rows, split) for rows in tables]
    _refuse_other_labels(names, chosen)
    keys = [key for key in chosen[0] if all(key in of for of in chosen[1:])]
    trained = _trained(opened)
    kept = [key for key in keys if key[0] not in trained]
    if not kept:
        what = f"{split or 'held-out'} photo"
        raise FieldmarkError(
            (
                f"Of {_listed(names)} one has trained on every {what} that they have in common"
                if keys
                else f"{_listed(names)} have no {what} in common"
            )
            + ": train on the same split (`fieldmark train PHOTOS --split RUN`), then `fieldmark "
            "evaluate` each."
        )
    rows = [[of[key] for key in kept] for of in chosen]
    return _compared(
        names,
        [
            _aligned(table, each, tables[0].classes)
            for table, each in zip(tables, rows, strict=True)
        ],
        split=split,
        resamples=resamples,
        seed=seed,
        left_out=len(keys) - len(kept),
    )


# ---- the photos in common -----------------------------------------------------------------------


def _refuse_asked(names: Sequence[str], split: str | None, resamples: int) -> None:
    if len(names) < 2:
        raise FieldmarkError("A comparison takes two runs or more: name another one.")
    places = [os.path.realpath(name) for name in names]
    twice = next((name for i, name in enumerate(names) if places[i] in places[:i]), None)
    if twice is not None:
        raise FieldmarkError(f"{twice} is named twice: name each run once.")
    if split is not None and split not in HELD_OUT:
        raise FieldmarkError(
            f"No photos of the split {split!r} can be compared: use {', '.join(HELD_OUT[:-1])} or "
            f"{HELD_OUT[-1]}."
        )
    if resamples < 1:
        raise FieldmarkError(f"{resamples} resamples make no interval: take 10000.")


def _predictions(run: Run) -> Predictions:
    if not run.predictions.exists():
        raise FieldmarkError(
            f"{run.folder} has no predictions: `fieldmark evaluate {run.folder}` makes them."
        )
    return predictions.read(run.predictions)


def _refuse_other_classes(names: Sequence[str], tables: Sequence[Predictions]) -> None:
    first = tables[0].classes
    for name, rows in zip(names, tables, strict=True):
        other = sorted({*first} ^ {*rows.classes})
        if other:
            raise FieldmarkError(
                f"{names[0]} and {name} tell different classes apart (one alone knows "
                f"{_listed(other)}): compare runs of the same classes."
            )


def _chosen(rows: Predictions, split: str | None) -> dict[Key, int]:
    """Return the row of each photo that is held out; copies of a photo count once."""
    found: dict[Key, int] = {}
    for each in (split,) if split else HELD_OUT:
        for i, of in enumerate(rows.splits):
            if of == each:
                found.setdefault((rows.sha256[i], rows.classes[rows.labels[i]]), i)
    return found


def _refuse_other_labels(names: Sequence[str], chosen: Sequence[Mapping[Key, int]]) -> None:
    """Raise where a photo is of one class here and of another there."""
    labels = [_labels(of) for of in chosen]
    for name, of in zip(names, labels, strict=True):
        for sha256 in labels[0].keys() & of.keys():
            if labels[0][sha256] != of[sha256]:
                first, other = (" and ".join(sorted(each[sha256])) for each in (labels[0], of))
                raise FieldmarkError(
                    f"The photo with the sha256 {sha256[:12]}... is {first} in {names[0]} and "
                    f"{other} in {name}: decide which is right, and train on the same split."
                )


def _labels(chosen: Mapping[Key, int]) -> dict[str, set[str]]:
    """Return the classes by the photo; one photo may lie in the folders of two."""
    found = defaultdict[str, set[str]](set)
    for sha256, label in chosen:
        found[sha256].add(label)
    return found


def _trained(runs: Sequence[Run]) -> set[str]:
    """Return the sha256 of all photos that any run has trained on."""
    return {
        record.sha256 for run in runs for record in run.read_split() if record.split == "training"
    }


def _aligned(table: Predictions, rows: Sequence[int], classes: tuple[str, ...]) -> Predictions:
    """Return these rows, in this order, with the classes in the order of the first run."""
    order = [table.classes.index(name) for name in classes]
    return Predictions(
        classes=classes,
        paths=tuple(table.paths[i] for i in rows),
        splits=tuple(table.splits[i] for i in rows),
        labels=np.array([order.index(label) for label in table.labels[rows].tolist()], np.int64),
        groups=tuple(table.groups[i] for i in rows),
        sha256=tuple(table.sha256[i] for i in rows),
        probabilities=table.probabilities[np.ix_(rows, order)],
    )


# ---- the comparison -----------------------------------------------------------------------------


def _compared(
    names: Sequence[str],
    tables: Sequence[Predictions],
    *,
    split: str | None,
    resamples: int,
    seed: int,
    left_out: int,
) -> Comparison:
    """Compare tables of the same photos in the same order."""
    right = np.stack([rows.probabilities.argmax(axis=1) == rows.labels for rows in tables])
    losses = np.stack([log_losses(rows.probabilities, rows.labels) for rows in tables])
    members = _units([rows.groups for rows in tables])
    gains = right[1:].astype(np.float64) - right[0]  # (runs - 1, n)
    draws = _drawn(np.concatenate([gains, losses[1:] - losses[0]]), members, resamples, seed)
    wins = [_wins(each, members) for each in gains]
    ps = [mcnemar(*each) for each in wins]
    corrected = holm(ps)
    differences = tuple(
        _difference(
            (names[0], names[i + 1]),
            right[[0, i + 1]],
            losses=losses[i + 1] - losses[0],
            draws=(draws[i], draws[i + len(gains)]),
            wins=wins[i],
            ps=(ps[i], corrected[i]),
            smallest=detectable(wins[i], gains[i], len(gains)),
        )
        for i in range(len(gains))
    )
    return Comparison(
        split=split,
        photos=right.shape[1],
        groups=int(members.max()) + 1,
        resamples=resamples,
        seed=seed,
        results=tuple(map(_result, names, right, losses)),
        differences=differences,
        notes=_notes(tables, left_out),
    )


def mcnemar(first: int, other: int) -> float:
    """Return the two-sided chance of such a count between equals: McNemar (1947), exactly.

    Of what one run alone has right each has half, as a coin falls.
    """
    return float(stats.binomtest(other, first + other).pvalue) if first + other else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Return the chances corrected for their number, in their order: Holm (1979)."""
    found, largest = [1.0] * len(ps), 0.0
    for i, which in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, (len(ps) - i) * ps[which])
        found[which] = min(1.0, largest)
    return found


def detectable(wins: tuple[int, int], gains: NDArray[np.float64], comparisons: int) -> float:
    """Return the smallest difference that the test would find in four of five such sets of photos.

    It is for the number of photos seen on which the runs differ, or for the fewest that can show
    anything. With m of them the one run must have k; it mostly does where its share of them, q, is
    such that 80 % of binomial counts reach k. The difference is then m (2 q - 1) of all photos.
    """
    level = LEVEL / comparisons  # the strictest of Holm's
    fewest = math.ceil(math.log2(2 / level))  # where all of them speak for one run
    m = max(sum(wins), fewest)
    k = int(stats.binom.isf(level / 2, m, 0.5)) + 1
    share = float(stats.beta.ppf(POWER, k, m - k + 1))
    # Photos of one group speak with one voice; how many of them one voice stands for:
    weight = np.abs(gains).sum() / sum(wins) if sum(wins) else 1.0
    return min(1.0, float(weight * m * (2 * share - 1) / len(gains)))


def _units(groups: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the number of what each photo belongs to; groups of all runs hold, (n,)."""
    count = len(groups[0])
    pairs = []
    for of in groups:
        first: dict[str, int] = {}
        pairs += [(i, first.setdefault(group, i)) for i, group in enumerate(of) if group]
    here, there = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(here)), (here, there)), shape=(count, count))
    return np.asarray(csgraph.connected_components(graph, directed=False)[1], np.int64)


def _wins(gains: NDArray[np.float64], members: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many groups are in favour of the first run, and how many of the other.

    Photos of a group are not independent, so that it has one voice: that of most of them.
    """
    sums = np.bincount(members, gains)
    return int((sums < 0).sum()), int((sums > 0).sum())


def _drawn(
    scores: NDArray[np.float64], members: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean of each row of scores (s, n) in each drawing of photos, (s, resamples)."""
    found = [
        scores @ weights.T / weights.sum(axis=1) for weights in resampled(members, resamples, seed)
    ]
    return np.concatenate(found, axis=1)


def _result(name: str, right: NDArray[np.bool_], losses: NDArray[np.float64]) -> Result:
    accuracy = float(right.mean())
    low, high = wilson(accuracy, len(right))
    return Result(name, accuracy, max(low, 0.0), min(high, 1.0), float(losses.mean()))


def _difference(
    names: tuple[str, str],
    right: NDArray[np.bool_],
    *,
    losses: NDArray[np.float64],
    draws: tuple[NDArray[np.float64], NDArray[np.float64]],
    wins: tuple[int, int],
    ps: tuple[float, float],
    smallest: float,
) -> Difference:
    """Put together what is known of a run, the second, against the first; `right` is (2, n)."""
    (low, high), (loss_low, loss_high) = map(interval, draws)
    gain = float(right[1].mean() - right[0].mean())
    # Groups have a voice each: where few large ones outweigh them in photos, nothing is sure.
    sure = ps[1] < LEVEL and gain * (wins[1] - wins[0]) > 0
    return Difference(
        run=names[1],
        only_first=int((right[0] & ~right[1]).sum()),
        only_this=int((right[1] & ~right[0]).sum()),
        accuracy=gain,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=float(losses.mean()),
        log_loss_low=loss_low,
        log_loss_high=loss_high,
        p=ps[0],
        p_holm=ps[1],
        detectable=smallest,
        larger_than_chance=sure,
        sentence=_sentence(names, right.shape[1], gain, p=ps[1], sure=sure, smallest=smallest),
    )


def _sentence(
    names: tuple[str, str], photos: int, gain: float, *, p: float, sure: bool, smallest: float
) -> str:
    """Say whether the difference is larger than chance."""
    first, other = map(printable, names)
    same = f"on the same {many(photos, 'photo')}"
    points = f"{100 * abs(gain):.1f} points"
    shown = (
        f"a true difference of about {100 * smallest:.1f} points would show in four of five such "
        "sets of photos."
    )
    if sure:
        better, worse = (other, first) if gain > 0 else (first, other)
        return (
            f"{better} is better than {worse} by {points} {same}, "
            f"which is more than chance makes ({_chance(p)})."
        )
    if p < LEVEL:
        return (
            f"{first} and {other} differ by more than chance makes ({_chance(p)}) {same}, but not "
            "to one side: more groups of photos are in favour of one, more photos not."
        )
    if not gain:
        return f"{other} has as many right as {first} {same}; {shown}"
    return (
        f"{other} is {points} {'above' if gain > 0 else 'below'} {first} {same}, which chance "
        f"makes too ({_chance(p)}); {shown}"
    )


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _notes(tables: Sequence[Predictions], left_out: int) -> tuple[str, ...]:
    """Return what whoever reads the comparison should keep in mind."""
    notes = []
    if left_out:
        notes.append(
            f"{many(left_out, 'photo')} left out, as a run has trained on "
            f"{'it' if left_out == 1 else 'them'}."
        )
    chosen_by = np.array([[of == "validation" for of in rows.splits] for rows in tables])
    uneven = int((chosen_by.any(axis=0) & ~chosen_by.all(axis=0)).sum())
    if uneven:
        notes.append(
            f"{many(uneven, 'photo')} validated some runs and not all: a run that has chosen its "
            "best epoch by a photo has a small advantage on it."
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(map(printable, names[:3])) + (f" and {more} more" if more > 0 else "")


# ---- for a terminal -----------------------------------------------------------------------------


def table(comparison: Comparison, *, width: int | None = None) -> str:
    """Return a comparison for a terminal; as wide as it is, or 100 columns."""
    first = comparison.results[0].run
    held_out = f"{comparison.split or 'held-out'} photo"
    parts: list[RenderableType] = [
        f"{many(comparison.photos, held_out)} in common"
        + (
            f", {many(comparison.groups, 'group')}" if comparison.groups < comparison.photos else ""
        ),
        "",
        _results_table(comparison),
        "",
        f"Against {printable(first)}",
        _differences_table(comparison),
        "",
        *(each.sentence for each in comparison.differences),
        *(f"Note: {note}" for note in comparison.notes),
    ]
    return printed(parts, width=width)


def _results_table(comparison: Comparison) -> RenderableType:
    shown = grid()
    shown.add_column("run", overflow="fold")
    shown.add_column("accuracy (95 %)")
    shown.add_column("log loss", justify="right")
    for each in comparison.results:
        figure = {"value": each.accuracy, "low": each.low, "high": each.high}
        shown.add_row(printable(each.run), in_words(figure, percent=True), f"{each.log_loss:.3f}")
    return shown


def _differences_table(comparison: Comparison) -> RenderableType:
    several = len(comparison.differences) > 1
    shown = grid()
    shown.add_column("run", overflow="fold")
    shown.add_column("points of\naccuracy (95 %)", no_wrap=True)
    for name in ("only it\nright", "only the\nfirst", "p\n(Holm)" if several else "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("log loss\n(95 %)", no_wrap=True)
    for each in comparison.differences:
        shown.add_row(
            printable(each.run),
            _signed(100 * each.accuracy, each.accuracy_low, each.accuracy_high, 100, 1),
            f"{each.only_this:,}",
            f"{each.only_first:,}",
            "< 0.001" if each.p_holm < 0.001 else f"{each.p_holm:.3f}",
            _signed(each.log_loss, each.log_loss_low, each.log_loss_high, 1, 3),
        )
    return shown


def _signed(value: float, low: float | None, high: float | None, times: int, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} ({times * low:+.{digits}f} to {times * high:+.{digits}f})"
