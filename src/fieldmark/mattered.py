"""Which fields of a recipe mattered in a search: a forest over its trials, and a picture.

In: a `Search`. Out: the importance of each field, beside that of one that is none, and a figure
with each trial over each field. `fieldmark tune PHOTOS --out FOLDER` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fieldmark.plots import COLOURS
from fieldmark.space import Span
from fieldmark.trials import Search, Trial, shown

FEWEST = 10  # trials from which it is said: from fewer a forest learns nothing
OTHERS = "#a3adb2"


class Mattered(NamedTuple):
    """What a forest makes of the trials."""

    share: float  # of the differences between trials that it foresees; 0 or below: none
    # How much less it foresees, as such a share, with a field's values exchanged among the trials.
    fields: dict[str, float]
    chance: float  # the same of a field that is none, drawn at random: the most of several


def mattered(search: Search, *, draws: int = 5) -> Mattered | None:
    """Return which fields mattered, or nothing where there are too few trials to say.

    A random forest (Breiman 2001) foresees a trial's figure from its values, as well as trials that
    a tree has not seen let it; the importances are by permutation. Trials that were stopped early
    count with the figure that they had.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    rows = [trial for trial in search.ended if trial.value is not None]
    names = list(search.plan.space)
    figures = np.array(_figures(rows))
    if len(rows) < FEWEST or np.ptp(figures) == 0:
        return None
    values = np.column_stack([_numbers(search.plan.space[name], name, rows) for name in names])
    found, chances, shares = [], [], []
    for draw in range(draws):
        made_up = np.random.default_rng(draw).random((len(rows), 1))
        forest = RandomForestRegressor(
            100, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=draw
        )
        seen = np.hstack([values, made_up])
        forest.fit(seen, figures)
        by = permutation_importance(forest, seen, figures, n_repeats=5, random_state=draw)
        shares.append(float(forest.oob_score_))
        found.append(by.importances_mean[:-1])
        chances.append(float(by.importances_mean[-1]))
    means = np.mean(found, axis=0).tolist()
    fields = dict(sorted(zip(names, means, strict=True), key=lambda pair: -pair[1]))
    return Mattered(float(np.mean(shares)), fields, max(chances))


def sentence(found: Mattered) -> str:
    """Say it in words."""
    above = [name for name, value in found.fields.items() if value > found.chance]
    if found.share <= 0 or not above:
        return "Which field mattered cannot be told from these trials."
    return (
        f"What mattered more than a field that is none: {', '.join(above)} "
        f"({found.share:.0%} of the differences between trials are foreseen)."
    )


def _numbers(axis: Span | Sequence[Any], name: str, rows: Sequence[Trial]) -> NDArray[np.float64]:
    """Return a field's values as a forest takes them: logarithms, or places among the choices."""
    numbers = np.array(_places(axis, name, rows))
    return np.log10(numbers) if isinstance(axis, Span) and axis.log else numbers


def picture(search: Search, found: Mattered | None) -> Figure:
    """Draw which fields mattered, and each trial's figure over each field."""
    names = list(found.fields) if found else list(search.plan.space)
    cells = len(names) + 1
    columns = min(cells, 4)
    lines = math.ceil(cells / columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * lines), layout="constrained")  # inches
    cellular = [figure.add_subplot(lines, columns, place + 1) for place in range(cells)]
    _bars(cellular[0], found, len(search.ended))
    for axes, name in zip(cellular[1:], names, strict=True):
        _slice(axes, search, name)
    what = "Validation " + search.plan.monitor
    cellular[1].set_ylabel(what)
    handles, labels = cellular[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{what} of {len(search.ended)} trials")
    return figure


def _bars(axes: Axes, found: Mattered | None, trials: int) -> None:
    """Draw the fields' importance, or say why there is none."""
    axes.set_title("What mattered", fontsize="medium")
    if found is None:
        axes.axis("off")
        text = f"{trials} trials do not show it:\n{FEWEST} that differ are the fewest"
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize="small")
        return
    places = range(len(found.fields))
    colours = [
        COLOURS["training"] if value > found.chance else OTHERS for value in found.fields.values()
    ]
    axes.barh(places, [max(value, 0) for value in found.fields.values()], color=colours)
    axes.axvline(max(found.chance, 0), color=COLOURS["validation"], ls="--", lw=1)
    axes.set_yticks(places, list(found.fields), fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(
        f"importance (dashed: of a field that is none)\nforeseen of the differences: "
        f"{max(found.share, 0):.0%}",
        fontsize="small",
    )


def _slice(axes: Axes, search: Search, name: str) -> None:
    """Draw each trial's figure over one field."""
    axis = search.plan.space[name]
    rows = [trial for trial in search.ended if trial.value is not None]
    looks: dict[str, dict[str, Any]] = {
        "done": {"color": COLOURS["training"], "label": "to its end"},
        "stopped": {"color": OTHERS, "label": "stopped early"},
    }
    best = search.best
    for state, look in looks.items():
        of = [each for each in rows if each.state == state]
        axes.scatter(_places(axis, name, of), _figures(of), s=16, **look)
    special = (
        ("the chosen recipe", 0, "s", "validation"),
        ("the best", best.number if best else None, "*", "averaged"),
    )
    for label, number, marker, colour in special:
        of = [each for each in rows if each.number == number]
        axes.scatter(
            _places(axis, name, of), _figures(of), s=90, marker=marker,
            facecolors="none", edgecolors=COLOURS[colour], linewidths=1.5, label=label,
        )  # fmt: skip
    axes.set_title(name, fontsize="medium")
    axes.grid(alpha=0.25)
    if not isinstance(axis, Span):
        order = _order(axis)
        axes.set_xticks(range(len(order)), [shown(each) for each in order])
        axes.set_xlim(-0.5, len(order) - 0.5)
        return
    if axis.log:
        axes.set_xscale("log")
        axes.set_xlim(axis.low / 1.2, axis.high * 1.2)
    else:
        beside = (axis.high - axis.low) / 20
        axes.set_xlim(axis.low - beside, axis.high + beside)


def _order(axis: Sequence[Any]) -> list[Any]:
    numbers = all(isinstance(each, int | float) for each in axis)
    return sorted(axis) if numbers else list(axis)


def _figures(rows: Sequence[Trial]) -> list[float]:
    return [trial.value for trial in rows if trial.value is not None]


def _places(axis: Span | Sequence[Any], name: str, rows: Sequence[Trial]) -> list[float]:
    """Return where on its axis each trial lies."""
    values = [trial.values[name] for trial in rows]
    if isinstance(axis, Span):
        return [float(value) for value in values]
    order = _order(axis)
    return [float(order.index(value)) for value in values]
