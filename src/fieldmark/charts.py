"""The charts of a report, as SVG that stands in its HTML.

In: the log's epochs, and figures of `contents`. Out: Markup that holds no colour, only the classes
that the page's style knows, and a title and a text that are read out in its place. What there is
nothing to draw of is empty.

    from fieldmark.charts import curve
    curve(contents.log, "accuracy")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from fieldmark.console import many
from fieldmark.contents import Bin, Measured, Part, Trade, interval, percent, valued
from fieldmark.findings import wilson
from fieldmark.logbook import Epoch

WIDE, HIGH = 400.0, 260.0  # of a chart's own units, about a pixel each on a phone
LEFT, RIGHT, TOP, BOTTOM = 46.0, WIDE - 12.0, 34.0, HIGH - 40.0  # of the plot
POINTS = 400  # of a curve; more are finer than a pixel

Point = tuple[float, float | None]

# ---- axes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Values along one side of a chart."""

    low: float
    high: float
    start: float  # where `low` lies, in the chart's units
    end: float
    label: str = ""
    shares: bool = False  # written in per cent
    logarithmic: bool = False
    whole: bool = False  # there is nothing between whole numbers

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values to label, `most` of them at most."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers[:: math.ceil(len(powers) / most)]]
        least = (self.high - self.low) / most
        magnitude = 10.0 ** math.floor(math.log10(least))
        rounds = (1, 2, 5, 10) if self.whole else (1, 2, 2.5, 5, 10)
        step = next(magnitude * k for k in rounds if magnitude * k >= least * 0.999)
        step = max(step, 1) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]

    def labelled(self) -> Iterator[tuple[float, str]]:
        """Yield where each tick lies, and its text."""
        for value in self.ticks():
            yield self(value), percent(value, 0) if self.shares else f"{value:g}"


def across(low: float, high: float, label: str, *, shares: bool = False) -> Axis:
    """Make the axis that lies; what is no share on it is an epoch."""
    return Axis(low, high, LEFT, RIGHT, label, shares, whole=not shares)


def upward(
    low: float, high: float, label: str, *, shares: bool = False, logarithmic: bool = False
) -> Axis:
    """Make the axis that stands."""
    return Axis(low, high, BOTTOM, TOP, label, shares, logarithmic)


# ---- what a chart is drawn with -----------------------------------------------------------------


def _chart(
    key: str,
    inside: Iterable[Markup],
    x: Axis,
    y: Axis,
    *,
    title: str,
    text: str,
    legend: Iterable[str] = (),
) -> Markup:
    """Draw axes, and what is inside; `legend` holds the styles of lines, which are their names."""
    parts = list[Markup]()
    for at, tick in y.labelled():
        parts += [_line(LEFT, at, RIGHT, at, "grid"), _text(LEFT - 6, at + 4, tick, "end")]
    for at, tick in x.labelled():
        parts += [_line(at, BOTTOM, at, BOTTOM + 4, "axis"), _text(at, BOTTOM + 17, tick)]
    parts.append(_line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"))
    parts.append(_text((LEFT + RIGHT) / 2, HIGH - 6, x.label, kind="label"))
    named = [*_legend(legend)] or [_text(LEFT - 36, TOP - 16, y.label, "start", kind="label")]
    return _picture(key, [*parts, *named, *inside], HIGH, title=title, text=text)


def _picture(key: str, parts: Iterable[Markup], height: float, *, title: str, text: str) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="{0}-title {0}-text" '
        'viewBox="0 0 {1:g} {2:g}"><title id="{0}-title">{3}</title>'
        '<desc id="{0}-text">{4}</desc>{5}</svg>'
    ).format(key, WIDE, height, title, text, Markup("").join(parts))


def _legend(styles: Iterable[str]) -> Iterator[Markup]:
    """Lay the lines' names side by side above the plot."""
    at = LEFT
    for style in styles:
        yield _line(at, 14, at + 26, 14, f"line {style}")
        yield _sign(style, at + 13, 14)
        yield _text(at + 32, 18, style, "start")
        at += 50 + 6.6 * len(style)  # an average letter of 12 px


def _shape(name: str, kind: str, **places: float) -> Markup:
    at = Markup("").join(Markup(' {}="{:.1f}"').format(*place) for place in places.items())
    return Markup('<{} class="{}"{}/>').format(name, kind, at)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return _shape("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return _shape("rect", kind, x=x, y=y, width=width, height=height)


def _circle(x: float, y: float, radius: float, kind: str) -> Markup:
    return _shape("circle", kind, cx=x, cy=y, r=radius)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _path(steps: str, kind: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(kind, steps)


def _joined(points: Iterable[Point]) -> str:
    """Return the steps of a line through points; one that is none leaves a gap."""
    steps, pen = "", "M"
    for x, y in points:
        if y is not None:
            steps += f"{pen}{x:.1f} {y:.1f}"
        pen = "M" if y is None else "L"
    return steps


def _sign(style: str, x: float, y: float) -> Markup:
    """Draw a line's sign, so that no line is told by its colour alone; training has none."""
    if style == "validation":
        return _circle(x, y, 3.2, f"sign {style}")
    if style == "averaged":
        return _path(f"M{x:.1f} {y - 4:.1f}l4 4-4 4-4-4z", f"sign {style}")
    return Markup("")


# ---- the training -------------------------------------------------------------------------------

SERIES = {"training": "", "validation": "val_", "averaged": "averaged_val_"}


def curve(log: Sequence[Epoch], name: Literal["accuracy", "loss"]) -> Markup:
    """Draw one figure of the log over the epochs; empty where there are no two to join."""
    series = dict(_series(log, name))
    values = [value for points in series.values() for _, value in points if value is not None]
    epochs = [epoch for points in series.values() for epoch, _ in points]
    if len({*epochs}) < 2:
        return Markup("")
    x = across(min(epochs), max(epochs), "epoch")
    y = upward(0, 1, name, shares=True) if name == "accuracy" else _losses(min(values), max(values))
    inside, ends = list[Markup](), list[str]()
    for style, points in series.items():
        placed = [(x(epoch), None if value is None else y(value)) for epoch, value in points]
        inside.append(_path(_joined(placed), f"line {style}"))
        if len(points) <= 40:
            inside += [_sign(style, px, py) for px, py in placed if py is not None]
        known = [percent(v) if y.shares else f"{v:.3f}" for _, v in points if v is not None]
        ends.append(f"{style} from {known[0]} to {known[-1]}")
    scale = ", on a logarithmic scale" if y.logarithmic else ""
    return _chart(
        name,
        inside,
        x,
        y,
        title=f"{name.capitalize()} over the epochs{scale}",
        text=f"From epoch {min(epochs):.0f} to {max(epochs):.0f}: {'; '.join(ends)}.",
        legend=series,
    )


def _series(log: Sequence[Epoch], name: str) -> Iterator[tuple[str, list[Point]]]:
    """Yield the style of each line there is, and its points: an epoch and its figure."""
    for style, prefix in SERIES.items():
        key = f"{prefix}{name}"
        # Not every epoch is validated; one whose figure was no number is a gap.
        found = [(line["epoch"] or 0.0, line[key]) for line in log if key in line]
        points = found[:: math.ceil(len(found) / POINTS) or 1]
        if any(value is not None for _, value in points):
            yield style, points


def _losses(low: float, high: float) -> Axis:
    """Make the axis of losses, logarithmic where they fall far."""
    if low > 0 and high > 50 * low:
        powers = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return upward(10.0 ** powers[0], 10.0 ** powers[1], "loss", logarithmic=True)
    return upward(min(0.0, low), max(0.0, 1.04 * high) or 1.0, "loss")


# ---- the figures --------------------------------------------------------------------------------


def bars(splits: Mapping[Part, Measured]) -> Markup:
    """Draw the accuracy of each part as a bar with its interval, against the commonest class."""
    x = Axis(0, 1, 8, WIDE - 22)
    parts, texts, top = list[Markup](), list[str](), 0.0
    for part, measured in splits.items():
        figure, commonest = measured.figures["accuracy"], measured.commonest.share
        if figure.value is None:
            continue
        says = f"{part} photos, n = {measured.n:,}"
        parts.append(_text(x.start, top + 16, says, "start", kind="label"))
        parts.append(_text(x.end, top + 16, valued(figure), "end", kind="strong"))
        middle = top + 36
        for share, kind in ((1, "track"), (figure.value, "bar")):
            parts.append(_rectangle(x.start, middle - 9, x(share) - x.start, 18, kind))
        if figure.low is not None and figure.high is not None:
            low, high = x(figure.low), x(figure.high)
            parts.append(_line(low, middle, high, middle, "whisker"))
            parts += [_line(at, middle - 6, at, middle + 6, "whisker") for at in (low, high)]
        parts.append(_line(x(commonest), middle - 14, x(commonest), middle + 14, "chance"))
        texts.append(
            f"{says}: {valued(figure)}, {interval(figure)} %; the commonest class alone "
            f"{percent(commonest)}"
        )
        top += 58
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(x(value), top + 10, percent(value, 0), "middle" if value else "start"))
    parts.append(_line(8, top + 28, 34, top + 28, "whisker"))
    parts.append(_text(40, top + 32, "95 % interval", "start"))
    parts.append(_line(150, top + 20, 150, top + 36, "chance"))
    parts.append(_text(158, top + 32, "always the commonest class", "start"))
    title = "Accuracy with its 95 % interval"
    return _picture("bars", parts, top + 42, title=title, text="; ".join(texts))


def reliability(bins: Sequence[Bin]) -> Markup:
    """Draw how often photos are named right against how sure the network is."""
    if not bins:
        return Markup("")
    x = across(0, 1, "probability that it gives its answer", shares=True)
    y = upward(0, 1, "right", shares=True)
    inside, texts = [_line(x(0), y(0), x(1), y(1), "ideal")], list[str]()
    most = max(each.n for each in bins)
    for each in bins:
        at, (low, high) = x(each.confidence), wilson(each.accuracy, each.n)
        inside.append(_line(at, y(low), at, y(high), "thin"))
        inside.append(_circle(at, y(each.accuracy), 2.5 + 7 * math.sqrt(each.n / most), "dot"))
        texts.append(
            f"where it says {percent(each.confidence, 0)}, {percent(each.accuracy, 0)} of "
            f"{many(each.n, 'photo')} are right"
        )
    inside.append(_text(x(0.03), y(0.93), "too modest", "start"))
    inside.append(_text(x(0.97), y(0.05), "too sure", "end"))
    title = "How often it is right against how sure it says it is"
    return _chart("reliability", inside, x, y, title=title, text="; ".join(texts))


def risk(trades: Iterable[Trade], chosen: float | None) -> Markup:
    """Draw the share of wrong answers against that of answered photos; one was `chosen`."""
    known = [
        (each.coverage, each.risk.value, each.risk.low or 0.0, each.risk.high or each.risk.value)
        for each in sorted(trades, key=lambda each: each.coverage)
        if each.risk.value is not None
    ]
    if not known:
        return Markup("")
    x = across(0, 1, "photos that are answered", shares=True)
    top = max(0.05, *(high for _, _, _, high in known))
    y = upward(0, min(1.0, top * 1.05), "wrong among them", shares=True)
    line = [(x(share), y(value)) for share, value, _, _ in known]
    above = [(x(share), y(high)) for share, _, _, high in known]
    below = [(x(share), y(low)) for share, _, low, _ in known]
    inside = [
        _path(_joined([*above, *reversed(below)]) + "z", "band"),
        _path(_joined(line), "line validation"),
        *(_circle(px, py, 2.6, "sign validation") for px, py in line),
    ]
    if chosen is not None:
        at, beside, anchor = x(chosen), *((-5, "end") if chosen > 0.5 else (5, "start"))
        inside.append(_line(at, y.start, at, y.end, "chance"))
        inside.append(_text(at + beside, y.end + 10, "chosen threshold", anchor))
    texts = [
        f"answering {percent(share, 0)}, {percent(value)} are wrong"
        for share, value, _, _ in reversed(known)
    ]
    title = "Wrong answers against how many photos are answered"
    return _chart("risk", inside, x, y, title=title, text="; ".join(texts))
