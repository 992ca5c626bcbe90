"""How good predictions are: a table of them -> every figure, with its interval and its n.

In: `Predictions`. Out: `decide` finds the temperature and the threshold from the validation photos;
`measure` returns all figures as plain data for a JSON file; `table` writes the important ones for a
terminal. No network is needed. `fieldmark evaluate RUN` runs it, and `docs/evaluate.md` says what
each figure means.

A share of photos has Wilson's interval. All else has a percentile bootstrap's (Efron, 1979): the
photos are drawn anew with replacement, those of a group together, and the figure is computed again.
So each function here takes weights (r, n), a row a drawing: how often it has each photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from scipy import optimize, sparse

from fieldmark.console import many, printable, printed
from fieldmark.decision import LEAST, SMALLEST, Decision, softened
from fieldmark.errors import FieldmarkError
from fieldmark.findings import wilson
from fieldmark.predictions import SPLITS, Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Figure = dict[str, Any]  # value, low, high, n, interval

COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at
FOLDS = 5  # parts in which validation photos are judged by the temperature of the others
ECE_BINS = 15  # of equal width, as Guo et al. (2017) have them
RELIABILITY_BINS = 10
POINTS = 20  # of the curve of risk against coverage
STEPS = 61  # temperatures between which a bootstrap's lowest loss is looked for
ROOM = 4_000_000  # numbers in one array: 32 MB


def measure(
    predictions: Predictions,
    *,
    coverage: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    before: Decision | None = None,
) -> dict[str, Any]:
    """Return every figure of the predictions, by split, as JSON has it.

    Temperature and threshold are those of `before` where there are no validation photos. A figure
    that cannot be had is None: the recall of a class without photos, a calibrated one without a
    temperature, an interval where all photos say the same.
    """
    if resamples < 1:
        raise FieldmarkError(f"{resamples} resamples make no interval: take 1000.")
    validation = predictions.of("validation")
    decision = decide(predictions, coverage=coverage) or before
    return {
        "classes": list(predictions.classes),
        "resamples": resamples,
        "seed": seed,
        "temperature": _temperature_figure(validation, decision, resamples, seed)
        if decision and len(validation)
        else None,
        "decision": decision and decision.model_dump(),
        "splits": {
            split: _measured(predictions.of(split), decision, coverage, resamples, seed)
            for split in SPLITS
            if split in predictions.splits
        },
    }


def decide(predictions: Predictions, *, coverage: float = 0.95) -> Decision | None:
    """Return the temperature and the threshold that the validation photos give; None without any.

    The threshold answers at least the share `coverage` of them.
    """
    if not 0 < coverage <= 1:
        raise FieldmarkError(
            f"The coverage {coverage:g} is no share of photos to answer: take one above 0, up to 1."
        )
    rows = predictions.of("validation")
    return _decided(rows.probabilities, rows.labels, coverage) if len(rows) else None


# ---- the temperature ----------------------------------------------------------------------------


def temperature(probabilities: Floats, labels: Ints) -> float:
    """Return the T at which softmax(log p / T) has the least log loss: Guo et al. (2017).

    Where all photos are right the loss falls for ever with T. So log T has a normal distribution of
    deviation 1 before any photo is seen, which a hundred photos make nothing of.
    """
    found = optimize.minimize_scalar(
        lambda log: float(
            log_losses(softened(probabilities, math.exp(log)), labels).mean()
            + _held_back(log, len(labels))
        ),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def temperatures(probabilities: Floats, labels: Ints, weights: Floats) -> Floats:
    """Return `temperature` for each row of weights, (r,), to about a hundredth."""
    logs = np.linspace(math.log(COLDEST), math.log(HOTTEST), STEPS)
    losses = np.stack([log_losses(softened(probabilities, t), labels) for t in np.exp(logs)])
    total = weights.sum(axis=1, keepdims=True)
    means = weights @ losses.T / total + _held_back(logs, total)  # (r, steps)
    least = means.argmin(axis=1).clip(1, STEPS - 2)
    rows = np.arange(len(weights))
    before, at, behind = (means[rows, least + i] for i in (-1, 0, 1))
    # The lowest point of the parabola through the three.
    shift = _ratio(before - behind, 2 * (before - 2 * at + behind))
    found = logs[least] + np.nan_to_num(shift).clip(-1, 1) * (logs[1] - logs[0])
    return np.asarray(np.exp(found), np.float64)


def _held_back(log: Any, count: Any) -> Any:
    return log**2 / (2 * count)


def _decided(probabilities: Floats, labels: Ints, coverage: float) -> Decision:
    found = temperature(probabilities, labels)
    surest = np.sort(softened(probabilities, found).max(axis=1))[::-1]
    last = surest[math.ceil(coverage * len(surest) - 1e-9) - 1]
    return Decision(
        temperature=found,
        # Rounded down, and never 1: the same photo is to be answered again, to the last digit.
        threshold=min(math.floor(last * 1e6) / 1e6, 1 - 1e-6),
        coverage=coverage,
        photos=len(labels),
    )


def _temperature_figure(rows: Predictions, decision: Decision, resamples: int, seed: int) -> Figure:
    draws = [
        temperatures(rows.probabilities, rows.labels, weights)
        for weights in resampled(units(rows.groups), resamples, seed)
    ]
    return _bootstrapped(decision.temperature, np.concatenate(draws), len(rows))


# ---- figures of weighted photos -----------------------------------------------------------------


def log_losses(probabilities: Floats, labels: Ints) -> Floats:
    """Return minus the logarithm of the true class' probability, (n, c) -> (n,)."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(own, LEAST)))


def briers(probabilities: Floats, labels: Ints) -> Floats:
    """Return the squared distance from the truth, over all classes: Brier (1950). 0 to 2, (n,)."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray((probabilities**2).sum(axis=1) - own**2 + (1 - own) ** 2)


def ranks(probabilities: Floats, labels: Ints) -> Ints:
    """Return the place of the true class among all, 0 for the first, (n,); `argmax` has it at 0."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > own) | ((probabilities == own) & earlier)
    return np.asarray(ahead.sum(axis=1), np.int64)


def mean(scores: Floats, weights: Floats) -> Floats:
    """Return the mean of scores (n,) for each row of weights, (r,)."""
    return _ratio(weights @ scores, weights.sum(axis=1))


class ByClass(NamedTuple):
    """Figures of each class, (r, c); NaN where there is nothing to divide by."""

    precision: Floats  # of those called so, how many are
    recall: Floats  # of those that are, how many are called so
    f1: Floats


def by_class(labels: Ints, predicted: Ints, classes: int, weights: Floats) -> ByClass:
    """Return precision, recall and F1 of each class."""
    right = _totals(weights, labels, predicted == labels, classes)
    true, called = (_totals(weights, of, 1.0, classes) for of in (labels, predicted))
    return ByClass(_ratio(right, called), _ratio(right, true), _ratio(2 * right, true + called))


def roc_aucs(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """Return the area under the ROC of each class against all others, (r, c).

    It is the chance that a photo of the class is given more of it than a photo of another: Hanley
    and McNeil (1982). NaN where there are none of either.
    """
    classes = probabilities.shape[1]
    wins = np.full((len(weights), classes), np.nan)
    for k in range(classes):
        given = probabilities[:, k]
        own, others = np.flatnonzero(labels == k), np.flatnonzero(labels != k)
        if not len(own) or not len(others):
            continue
        own = own[np.argsort(given[own])]
        # Each of the others goes half to the first of the class that has as much, half to the first
        # that has more: from there on they are beaten, and what is equal counts half.
        firsts = [np.searchsorted(given[own], given[others], side) for side in ("left", "right")]
        where = (np.concatenate(firsts), np.tile(others, 2))
        halves = sparse.csr_array(
            (np.full(2 * len(others), 0.5), where), shape=(len(own) + 1, len(labels))
        )
        beaten = np.cumsum(halves @ weights.T, axis=0)[:-1]  # (n of the class, r)
        wins[:, k] = (weights.T[own] * beaten).sum(axis=0)
    true = _totals(weights, labels, 1.0, classes)
    return _ratio(wins, true * (weights.sum(axis=1, keepdims=True) - true))


def calibration_error(confidence: Floats, right: Bools, weights: Floats) -> Floats:
    """Return the expected calibration error, (r,): Guo et al. (2017).

    Of the photos whose largest probability lies in one bin, how far is its mean from the share that
    is right; weighted by photos.
    """
    gaps = _totals(weights, _bins(confidence, ECE_BINS), confidence - right, ECE_BINS)
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def risk_coverage_area(confidence: Floats, right: Bools, weights: Floats) -> Floats:
    """Return the area under the curve of risk against coverage, (r,): Geifman and El-Yaniv (2017).

    It is the mean, over the photos, of the share of errors among those at least as sure.
    """
    order = np.argsort(-confidence, kind="stable")
    weights = weights[:, order]
    # Photos that are equally sure are answered together.
    last = np.searchsorted(-confidence[order], -confidence[order], side="right") - 1
    errors = np.cumsum(weights * ~right[order], axis=1)[:, last]
    risks = _ratio(errors, np.cumsum(weights, axis=1)[:, last])
    # Where the surest photos were not drawn there is no risk yet, and no weight either.
    return _ratio((weights * np.nan_to_num(risks)).sum(axis=1), weights.sum(axis=1))


def _totals(weights: Floats, columns: Ints, values: Any, count: int) -> Floats:
    """Add weights times values (n,) up by the column of each photo, (r, n) -> (r, count)."""
    every = np.broadcast_to(np.asarray(values, np.float64), columns.shape)
    where = (columns, np.arange(len(columns)))
    return np.asarray((sparse.csr_array((every, where), shape=(count, len(columns))) @ weights.T).T)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide; NaN where there is nothing to divide by."""
    nothing = np.full(np.shape(above), np.nan)
    return np.asarray(np.divide(above, below, out=nothing, where=below != 0), np.float64)


def _mean_defined(values: Floats) -> Floats:
    """Return the mean over the classes that have a value, (r, c) -> (r,)."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=1), there.sum(axis=1))


def _bins(confidence: Floats, count: int) -> Ints:
    """Return the bin of each, of equal width from 0 to 1; the upper end belongs to it."""
    return np.asarray((np.ceil(confidence * count) - 1).clip(0, count - 1), np.int64)


# ---- drawing photos anew ------------------------------------------------------------------------


def units(groups: Sequence[str]) -> Ints:
    """Return the number of what each photo belongs to, its group or itself, (n,)."""
    numbers: dict[tuple[str, int], int] = {}
    keys = ((group, -1 if group else i) for i, group in enumerate(groups))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def resampled(members: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each photo is drawn, (r, n), `resamples` rows in all; units stay together."""
    generator = np.random.default_rng(seed)
    count = int(members.max()) + 1
    step = max(1, ROOM // len(members))
    for start in range(0, resamples, step):
        drawn = [
            np.bincount(generator.integers(count, size=count), minlength=count)
            for _ in range(min(step, resamples - start))
        ]
        # Turned, for what is done with the weights of one photo is done in all drawings at once.
        yield np.stack(drawn, axis=1)[members].astype(np.float64).T


def interval(draws: Floats) -> tuple[float | None, float | None]:
    """Return the middle 95 % of a bootstrap's figures; None where there are none, or all are one.

    Photos that are all right say nothing, drawn anew, of how many are wrong elsewhere.
    """
    there = draws[~np.isnan(draws)]
    if not len(there) or np.ptp(there) < 1e-12:
        return None, None
    low, high = np.percentile(there, (2.5, 97.5))
    return float(low), float(high)


# ---- one split ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Judged:
    """The photos of a split, and what is decided of them."""

    labels: Ints  # (n,)
    predicted: Ints  # (n,)
    probabilities: Floats  # (n, c)
    calibrated: Floats | None  # (n, c); None: there is no temperature for them
    answered: Bools | None  # (n,)

    @property
    def right(self) -> Bools:
        return np.asarray(self.labels == self.predicted)

    @property
    def confidence(self) -> Floats:
        """The largest probability, calibrated where that can be."""
        known = self.probabilities if self.calibrated is None else self.calibrated
        return np.asarray(known.max(axis=1), np.float64)


def _judged(rows: Predictions, decision: Decision | None, coverage: float, seed: int) -> _Judged:
    """Decide of the photos of a split, those of validation without looking at themselves."""
    given, calibrated, answered = rows.probabilities, None, None
    if decision and rows.splits[0] == "validation":
        calibrated, answered = _crossed(rows, coverage, seed)
    elif decision:
        calibrated, answered = decision.calibrated(given), decision.answers(given)
    return _Judged(rows.labels, given.argmax(axis=1), given, calibrated, answered)


def _crossed(rows: Predictions, coverage: float, seed: int) -> tuple[Floats | None, Bools | None]:
    """Return calibrated probabilities and answers, each photo's decided without its part.

    To fit and to judge on the same photos flatters. None where there is one unit only.
    """
    members = units(rows.groups)
    count = int(members.max()) + 1
    if count < 2:
        return None, None
    # Parts of nearly as many units each.
    part = (np.random.default_rng(seed).permutation(count) % FOLDS)[members]
    calibrated = np.empty_like(rows.probabilities)
    answered = np.empty(len(rows), np.bool_)
    for held in (part == k for k in range(min(FOLDS, count))):
        others = _decided(rows.probabilities[~held], rows.labels[~held], coverage)
        calibrated[held] = others.calibrated(rows.probabilities[held])
        answered[held] = others.answers(rows.probabilities[held])
    return calibrated, answered


def _measured(
    rows: Predictions, decision: Decision | None, coverage: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Return all figures of the photos of one split."""
    judged = _judged(rows, decision, coverage, seed)
    point = _scores(judged, np.ones((1, len(rows))))
    drawn = [_scores(judged, weights) for weights in resampled(units(rows.groups), resamples, seed)]
    draws = {name: np.concatenate([each[name] for each in drawn]) for name in point}
    counts = np.bincount(rows.labels, minlength=len(rows.classes))
    commonest = int(counts.argmax())
    return {
        "n": len(rows),
        "figures": _shares(judged)
        | {
            name: _bootstrapped(value[0], draws[name], len(rows))
            for name, value in point.items()
            if value.ndim == 1
        },
        "commonest": {
            "name": rows.classes[commonest],
            "share": float(counts[commonest] / len(rows)),
        },
        "classes": _classes(rows.classes, judged, point, draws),
        "confusion": _confusion(judged, len(rows.classes)).tolist(),
        "reliability": _reliability(judged),
        "risk_coverage": _curve(judged),
        "refused": _refused(judged, decision),
    }


def _scores(judged: _Judged, weights: Floats) -> dict[str, Floats]:
    """Return what has a bootstrap's interval, (r,), and of each class, (r, c)."""
    labels, given, right = judged.labels, judged.probabilities, judged.right
    found = by_class(labels, judged.predicted, given.shape[1], weights)
    # A class that is never called is no success: its precision counts as 0 in the mean.
    precision = np.where(np.isnan(found.recall), np.nan, np.nan_to_num(found.precision))
    f1 = np.where(np.isnan(found.recall), np.nan, found.f1)
    aucs = roc_aucs(labels, given, weights)
    scores = {
        "balanced_accuracy": _mean_defined(found.recall),
        "macro_precision": _mean_defined(precision),
        "macro_recall": _mean_defined(found.recall),
        "macro_f1": _mean_defined(f1),
        **_probabilistic(given, labels, right, weights),
        "macro_roc_auc": _mean_defined(aucs),
        "risk_coverage_area": risk_coverage_area(judged.confidence, right, weights),
        "f1": found.f1,
        "roc_auc": aucs,
    }
    if judged.calibrated is None:
        missing = np.full(len(weights), np.nan)
        return scores | {f"calibrated_{name}": missing for name in PROBABILISTIC}
    calibrated = _probabilistic(judged.calibrated, labels, right, weights)
    return scores | {f"calibrated_{name}": value for name, value in calibrated.items()}


PROBABILISTIC = ("log_loss", "brier", "calibration_error")


def _probabilistic(
    probabilities: Floats, labels: Ints, right: Bools, weights: Floats
) -> dict[str, Floats]:
    """Return the figures that a temperature changes."""
    figures = (
        mean(log_losses(probabilities, labels), weights),
        mean(briers(probabilities, labels), weights),
        calibration_error(probabilities.max(axis=1), right, weights),
    )
    return dict(zip(PROBABILISTIC, figures, strict=True))


def _shares(judged: _Judged) -> dict[str, Figure]:
    """Return the figures that are shares of the photos."""
    classes, place = judged.probabilities.shape[1], ranks(judged.probabilities, judged.labels)
    shares = {"accuracy": share(judged.right)}
    return shares | {f"top_{k}": share(place < k) for k in (2, 5) if classes > k}


def _classes(
    names: Sequence[str],
    judged: _Judged,
    point: Mapping[str, Floats],
    draws: Mapping[str, Floats],
) -> list[dict[str, Any]]:
    """Return the figures of each class."""
    found = []
    for k, name in enumerate(names):
        true, called = judged.labels == k, judged.predicted == k
        count = int(true.sum())
        found.append(
            {
                "name": name,
                "n": count,
                "predicted": int(called.sum()),
                "precision": share(true[called]),
                "recall": share(called[true]),
                **{
                    each: _bootstrapped(point[each][0, k], draws[each][:, k], count)
                    for each in ("f1", "roc_auc")
                },
            }
        )
    return found


def _confusion(judged: _Judged, classes: int) -> Ints:
    """Return how many photos of each class (rows) are called what (columns), (c, c)."""
    cells = judged.labels * classes + judged.predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _reliability(judged: _Judged) -> list[dict[str, Any]]:
    """Return how sure and how right the photos of each bin are; empty bins are left out."""
    bins = _bins(judged.confidence, RELIABILITY_BINS)
    return [
        {
            "low": k / RELIABILITY_BINS,
            "high": (k + 1) / RELIABILITY_BINS,
            "n": int((bins == k).sum()),
            "confidence": float(judged.confidence[bins == k].mean()),
            "accuracy": float(judged.right[bins == k].mean()),
        }
        for k in np.unique(bins).tolist()
    ]


def _curve(judged: _Judged) -> list[dict[str, Any]]:
    """Return the share of errors among the surest photos, for about twenty shares of them."""
    confidence = judged.confidence
    surest = np.sort(confidence)[::-1]
    ends = {math.ceil(len(surest) * i / POINTS) - 1 for i in range(1, POINTS + 1)}
    thresholds = sorted({float(surest[end]) for end in ends}, reverse=True)
    return [
        {
            "threshold": threshold,
            "coverage": float((confidence >= threshold).mean()),
            "risk": share(~judged.right[confidence >= threshold]),
        }
        for threshold in thresholds
    ]


def _refused(judged: _Judged, decision: Decision | None) -> dict[str, Any] | None:
    """Return how many photos are answered, and how many of these are right."""
    if decision is None or judged.answered is None:
        return None
    return {
        "threshold": decision.threshold,
        "coverage": share(judged.answered),
        "accuracy": share(judged.right[judged.answered]),
    }


def share(true: Bools) -> Figure:
    """Return the share of photos for which something is true, with Wilson's interval."""
    count = len(true)
    if not count:
        return {"value": None, "low": None, "high": None, "n": 0, "interval": "wilson"}
    value = float(true.mean())
    low, high = wilson(value, count)
    # Rounding may put the end of the interval of all, or of none, on the wrong side.
    bounds = {"low": max(min(low, value), 0.0), "high": min(max(high, value), 1.0)}
    return {"value": value, **bounds, "n": count, "interval": "wilson"}


def _bootstrapped(value: float, draws: Floats, count: int) -> Figure:
    """Return a figure with a bootstrap's interval."""
    known = None if np.isnan(value) else float(value)
    low, high = interval(draws)
    if known is not None and low is not None and high is not None:
        # Photos drawn anew have larger calibration errors, and a figure lies in its interval.
        low, high = min(low, known), max(high, known)
    return {"value": known, "low": low, "high": high, "n": count, "interval": "bootstrap"}


# ---- for a terminal -----------------------------------------------------------------------------

IMPORTANT = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "top_2": "among the first 2",
    "top_5": "among the first 5",
    "macro_f1": "F1, mean of classes",
    "macro_roc_auc": "ROC area, mean",
    "log_loss": "log loss",
    "calibrated_log_loss": "  calibrated",
    "calibration_error": "calibration error",
    "calibrated_calibration_error": "  calibrated",
}
IN_PERCENT = {"accuracy", "balanced_accuracy", "top_2", "top_5"}
MATTERS = ("new", "test", "validation", "training")  # whose classes are shown, if there are any
ROWS = 30  # classes that are shown before they are the worst ones only
WORST = 15
PAIRS = 5


def table(measured: Mapping[str, Any], *, width: int | None = None) -> str:
    """Return the important figures for a terminal; as wide as it is, or 100 columns."""
    splits = measured["splits"]
    shown = next((split for split in MATTERS if split in splits), None)
    if shown is None:
        return "No photos are judged."
    parts: list[RenderableType] = [_figures_table(splits), ""]
    parts += _class_lines(shown, splits[shown])
    parts += ["", *_decision_lines(measured)]
    return printed(parts, width=width)


def grid() -> Table:
    """Return an empty table without lines; names in it are to be `printable`."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def in_words(figure: Figure, *, percent: bool) -> str:
    """Write a figure and its interval: `92.0 % (85.4 to 95.7)`; `-` where there is none."""
    if figure["value"] is None:
        return "-"
    times, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    text = f"{times * figure['value']:.{digits}f}{unit}"
    if figure["low"] is None:
        return text
    return f"{text} ({times * figure['low']:.{digits}f} to {times * figure['high']:.{digits}f})"


def _figures_table(splits: Mapping[str, Any]) -> Table:
    """Lay out the figures, a line each, a column a split."""
    shown = grid()
    shown.add_column("95 % intervals")
    for split, of in splits.items():
        shown.add_column(f"{split}, {many(of['n'], 'photo')}")
    for name, title in IMPORTANT.items():
        figures = [of["figures"].get(name, {"value": None}) for of in splits.values()]
        if any(each["value"] is not None for each in figures):
            cells = [in_words(each, percent=name in IN_PERCENT) for each in figures]
            shown.add_row(title, *cells)
        if name == "accuracy":
            shares = [f"{100 * of['commonest']['share']:.1f} %" for of in splits.values()]
            shown.add_row("  one name for all", *shares)
    return shown


def _class_lines(split: str, of: Mapping[str, Any]) -> list[RenderableType]:
    """Lay out the classes of a split, and which are taken for which."""
    classes = of["classes"]
    title = f"{split.capitalize()}, by class"
    if len(classes) > ROWS:
        there = [each for each in classes if each["f1"]["value"] is not None]
        classes = sorted(there, key=lambda each: each["f1"]["value"])[:WORST]
        title += (
            f": the {len(classes)} with the lowest F1 of {len(of['classes']):,}; "
            "metrics.json has all"
        )
    shown = grid()
    shown.add_column("class", overflow="fold")
    for name in ("photos", "called so"):
        shown.add_column(name, justify="right")
    for name in ("recall", "precision", "F1"):
        shown.add_column(name)
    for each in classes:
        shares = [in_words(each[name], percent=True) for name in ("recall", "precision")]
        f1 = "-" if each["f1"]["value"] is None else f"{each['f1']['value']:.3f}"
        counts = (f"{each['n']:,}", f"{each['predicted']:,}")
        shown.add_row(printable(each["name"]), *counts, *shares, f1)
    return [title, shown, *_confused(of)]


def _confused(of: Mapping[str, Any]) -> list[RenderableType]:
    """Say which classes are most often taken for which."""
    confusion = np.array(of["confusion"])
    np.fill_diagonal(confusion, 0)
    pairs = np.argwhere(confusion)
    most = sorted(pairs.tolist(), key=lambda pair: -confusion[tuple(pair)])[:PAIRS]
    if not most:
        return []
    lines: list[RenderableType] = ["", "Most often confused"]
    for true, called in most:
        each, other = of["classes"][true], of["classes"][called]
        count = confusion[true, called]
        lines.append(
            f"  {printable(each['name'])} called {printable(other['name'])}: "
            f"{count:,} of {each['n']:,} ({100 * count / each['n']:.0f} %)"
        )
    more = len(pairs) - len(most)
    return [*lines, *([f"  and {many(more, 'more pair', 'more pairs')}"] if more else [])]


def _decision_lines(measured: Mapping[str, Any]) -> list[str]:
    """Say in words how sure the network is, and when it does not answer."""
    decision, figure = measured["decision"], measured["temperature"]
    if decision is None:
        return ["No validation photos, so no temperature and no threshold for none of these."]
    low, high = figure["low"], figure["high"]
    verdict = "about as sure as it is right"
    if low is not None and low > 1:
        verdict = "surer than it is right"
    elif high is not None and high < 1:
        verdict = "less sure than it is right"
    lines = [
        f"Temperature {in_words(figure, percent=False)}, from "
        f"{many(decision['photos'], 'validation photo')}: the network is {verdict}.",
        "Where the largest calibrated probability is below "
        f"{decision['threshold']:.3g}, the answer is none of these; chosen to answer "
        f"{100 * decision['coverage']:g} % of the validation photos.",
    ]
    if decision["temperature"] > 0.99 * HOTTEST:
        lines.insert(
            1,
            "  That is the highest that is tried: it is so sure that nothing sets it right, and "
            f"what it gives less than {SMALLEST:g} counts as that in the log loss.",
        )
    for split, of in measured["splits"].items():
        if of["refused"]:
            coverage, accuracy = (
                in_words(of["refused"][name], percent=True) for name in ("coverage", "accuracy")
            )
            right = "" if accuracy == "-" else f", of these {accuracy} are right"
            lines.append(f"  {split}: {coverage} are answered{right}")
    return lines
