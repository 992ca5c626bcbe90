"""A network of residual blocks, as plain data, drawn on one page of SVG.

In: an `Anatomy`, which `fieldmark.network.blocks` reads from a model; nothing here knows Keras.
Out: the text of an SVG file that needs nothing beside it. `fieldmark network article --svg FILE`

The page reads top to bottom, then left to right. The vertical line is the way past the residual
branches: it runs through every shortcut, and each kind of shortcut has its own colour, its own
dashes and its own sign on it. What a block computes stands to the right of it. All lengths are
points: the page is A4 as long as the blocks fit, no text is below 7 points, and beyond about
sixty blocks it grows to A3 and more.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any
from unicodedata import east_asian_width

from fieldmark.anatomy import Anatomy, Block, Part, Shortcut, Stage, Step, by
from fieldmark.console import many

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Noto Sans', sans-serif"
)
INK, QUIET, FRAME, WHITE = "#1b2733", "#51606e", "#93a1ae", "#ffffff"
STRIDE = "#b84300"  # every stride, in a branch and in a shortcut
BANDS = ("#eaf2fb", "#e8f5ec", "#fcf3df", "#f8ebf3", "#eeedfa")  # behind the stages, in turn
TINTS = ("#c9dff5", "#c3e6d0", "#f6dfa6", "#ecc9de", "#d5d2f2")  # their k x k convolutions
# A shortcut's colour and dashes, by the signs on it and whether it has a stride. The colours are
# apart for colour-blind eyes too (after Okabe and Ito), and the signs tell the kinds in grey.
STYLES = {
    ("", False): ("#00805e", ""),
    ("pooling", True): ("#8a6100", "0.1 3.2"),
    ("convolution", False): ("#0a62a8", ""),
    ("convolution", True): (STRIDE, "3.2 2.2"),
    ("pooling convolution", True): ("#8f2f78", "4 2.6 0.1 2.6"),
}
OTHER = ("#4a4a4a", "1.6 2")

A4 = (595.0, 842.0)
FONTS = (10.0, 9.0, 8.0, 7.0)
MARGIN, GUTTER = 18.0, 18.0
TITLE = 42.0  # the height of the title with its line of totals
FOOT = 10.0  # below the columns, where the line turns to the next
LINE = 12.0  # the pitch of the legend's lines
WIDEST = 300.0  # a column need not be wider, however much room there is
BRANCH = 13.0  # from the vertical line to where the residual branch begins
NODE = 4.5  # the radius of the sign of addition


_Lines = tuple[tuple[str, str], ...]  # what stands left and what stands right on each


@dataclass(frozen=True)
class _Row:
    """What takes up one piece of a column: a part, a stage's heading or a block."""

    height: float
    lines: _Lines = ()  # of a part or a heading
    block: Block | None = None
    stage: int = -1  # the band it lies on; none for stem and head


@dataclass(frozen=True)
class _Plan:
    """The page, chosen so that everything fits on it."""

    page: tuple[float, float]
    font: float
    width: float  # of a column
    pitch: float  # from block to block
    columns: tuple[tuple[_Row, ...], ...]


def draw(anatomy: Anatomy, *, title: str) -> str:
    """Return the page as the text of an SVG file; the title stands at its top."""
    plan = _plan(anatomy)
    width = plan.page[0]
    bottom = MARGIN + TITLE + max(map(_height, plan.columns)) + FOOT
    height = bottom + _legend_height(anatomy) + MARGIN  # a short network leaves the page short
    root = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:.6g} {height:.6g}"
    )
    root.attrib |= {"width": f"{width / 72 * 25.4:.0f}mm", "height": f"{height / 72 * 25.4:.0f}mm"}
    root.attrib |= {"role": "img", "aria-labelledby": "title desc", "font-family": FONT}
    _add(root, "title", id="title").text = _clean(title)
    _add(root, "desc", id="desc").text = _clean(_description(anatomy))
    _rect(root, 0, 0, width, height, stroke="none")  # a dark viewer would show through
    _text(root, MARGIN, MARGIN + 15, title, 17, bold=True, room=width - 2 * MARGIN)
    _text(root, MARGIN, MARGIN + 29, _totals(anatomy), 9, fill=QUIET)
    _columns(root, plan, bottom)
    _legend(root, anatomy, width, bottom + 6)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


# ---------------------------------------------------------------- words


def short(number: int) -> str:
    """Write a count in three figures: `36.0 M`."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + f" {unit}"
    return str(number)


def text_width(words: str, size: float, *, bold: bool = False) -> float:
    """Estimate how wide a text is in a wide sans-serif font (DejaVu Sans), in points."""
    ems = 0.0
    for sign in words:
        if sign in "mwMW×…%@" or east_asian_width(sign) in "WF":
            ems += 1.0
        elif sign in " .,:;·/|!'ijlftrI()[]-":
            ems += 0.4
        else:
            ems += 0.75 if sign.isupper() else 0.58 if sign in "cksvxyz_" else 0.64
    return ems * size * (1.08 if bold else 1.0)


def _fit(words: str, size: float, room: float, *, bold: bool) -> str:
    """Cut a text that is too wide, with an ellipsis."""
    if text_width(words, size, bold=bold) <= room:
        return words
    while words and text_width(words + "…", size, bold=bold) > room:
        words = words[:-1]
    return words + "…"


def _clean(words: str) -> str:
    """Leave out the characters that XML has no way to write."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", words)


def _totals(anatomy: Anatomy) -> str:
    """The line under the title."""
    image = by(anatomy.stem.steps[0].shape, " × ")
    parameters = sum(part.parameters for part in anatomy.parts)
    multiply_adds = sum(part.multiply_adds for part in anatomy.parts)
    return (
        f"input {image}  ·  {many(len(anatomy.blocks), 'residual block')}  ·  "
        f"{parameters:,} parameters  ·  {short(multiply_adds)} multiply-adds a photo"
    )


def _kinds(anatomy: Anatomy) -> list[tuple[Shortcut, int, str]]:
    """One shortcut of each kind, how many there are and the kind in words; the commonest first."""
    found = Counter(block.shortcut.words for block in anatomy.blocks)
    examples = {block.shortcut.words: block.shortcut for block in anatomy.blocks}
    return [(examples[words], number, words) for words, number in found.most_common()]


def _description(anatomy: Anatomy) -> str:
    """The drawing in words, for those who hear it."""
    stages = "; ".join(
        f"stage {number} has {many(len(stage.blocks), 'block')} and ends with "
        f"{by(stage.blocks[-1].shape, ' × ')}"
        for number, stage in enumerate(anatomy.stages, 1)
    )
    shortcuts = "; ".join(f"{number} × {words}" for _, number, words in _kinds(anatomy))
    return f"{_totals(anatomy)}. From stem to head: {stages}. Shortcuts: {shortcuts}."


def _block_words(block: Block) -> str:
    """A block in words, shown where a pointer rests on it."""
    branch = ", ".join(f"{step.words} to {step.shape[-1]}" for step in block.residual)
    return (
        f"block {block.number}, {block.name}, {by(block.shape, ' × ')}: {branch}; "
        f"shortcut: {block.shortcut.words}"
    )


def _part_lines(part: Part, name: str) -> _Lines:
    """The lines of the stem's or the head's box; a normalisation and its ReLU share one."""
    lines = [(name, "")]
    for last, step in zip((None, *part.steps), part.steps, strict=False):
        if last and last.shape == step.shape and not last.kernel and not step.kernel:
            lines[-1] = (f"{lines[-1][0]}, {step.words}", lines[-1][1])
        else:
            words = step.words.replace(", stride ", " /")  # columns may be narrow
            lines.append((words, by(step.shape, " × ")))
    return tuple(lines)


def _stage_lines(stage: Stage, number: int, *, font: float, room: float) -> _Lines:
    """The heading of a stage; its cost goes on two lines where one is too short for it."""
    heading = f"Stage {number}: {many(len(stage.blocks), 'block')}"
    cost = (
        f"{short(stage.parameters)} parameters",
        f"{short(stage.multiply_adds)} multiply-adds",
    )
    line = " · ".join(cost)
    fits = text_width(line, _small(font)) <= room
    return tuple((words, "") for words in (heading, *((line,) if fits else cost)))


# ---------------------------------------------------------------- layout


def _plan(anatomy: Anatomy) -> _Plan:
    """Choose the smallest page, then the largest type, then the fewest columns that hold it all."""
    for size in count():
        page = (A4[0] * 2 ** (size / 2), A4[1] * 2 ** (size / 2))
        room = page[1] - 2 * MARGIN - TITLE - FOOT - _legend_height(anatomy)
        for font in FONTS:
            needed = max(_needed(block, font) for block in anatomy.blocks)
            most = int((page[0] - 2 * MARGIN + GUTTER) / (needed + GUTTER))
            for number in range(1, most + 1):
                width = min(WIDEST, (page[0] - 2 * MARGIN + GUTTER) / number - GUTTER)
                for spare in range(12, -1, -1):  # points between the blocks, the more the better
                    pitch = _pitch(font) + spare
                    columns = _flow(
                        _rows(anatomy, font=font, width=width, pitch=pitch), room, number
                    )
                    if columns:
                        return _Plan(page, font, width, pitch, columns)
    raise AssertionError  # the pages grow without end


def _needed(block: Block, font: float) -> float:
    """The width of a column in which a block's cells stand at their narrowest."""
    cells = sum(_cell_width(step, font) + font + 5 for step in block.residual)
    tag = text_width(by(block.shape, " × "), font) + 24
    return _spine(font) + BRANCH + max(cells, tag) + 12


def _spine(font: float) -> float:
    """Where the vertical line stands in its column: number and stride of a block are left of it."""
    return 16.2 + 1.4 * font


def _small(font: float) -> float:
    """The type of what is told beside."""
    return max(FONTS[-1], font - 1)


def _pitch(font: float) -> float:
    """The smallest distance from block to block: cells, the way back, the sign of addition."""
    return 1.5 + (2 * font + 5) + (0.8 * font + 1.2) + NODE + 1.5


def _rows(anatomy: Anatomy, *, font: float, width: float, pitch: float) -> list[_Row]:
    """List what stands on the page, in reading order."""

    def part(what: Part, name: str) -> _Row:
        lines = _part_lines(what, name)
        return _Row(len(lines) * (font + 3) + 18, lines)

    rows = [part(anatomy.stem, "Stem")]
    for place, stage in enumerate(anatomy.stages):
        lines = _stage_lines(stage, place + 1, font=font, room=width - _spine(font) - BRANCH - 2)
        rows.append(_Row(len(lines) * (font + 2) + 7, lines, stage=place))
        rows += [_Row(pitch, block=block, stage=place) for block in stage.blocks]
    return [*rows, part(anatomy.head, "Head")]


def _flow(rows: Sequence[_Row], room: float, number: int) -> tuple[tuple[_Row, ...], ...]:
    """Set the rows in at most `number` columns, as even as can be; none if they do not fit."""
    best: tuple[tuple[_Row, ...], ...] = ()
    for height in range(int(room), 0, -1):
        columns = _fill(rows, height)
        if len(columns) > number or max(map(_height, columns)) > height:
            break
        best = columns
    return best


def _fill(rows: Sequence[_Row], room: float) -> tuple[tuple[_Row, ...], ...]:
    """Fill columns of a height from left to right; a heading stays with its first block."""
    columns: list[list[_Row]] = [[]]
    for row, after in zip(rows, (*rows[1:], None), strict=True):
        heading = row.stage >= 0 and not row.block
        needed = row.height + (after.height if heading and after else 0)
        if columns[-1] and _height(columns[-1]) + needed > room:
            columns.append([])
            if row.block:
                again = ((f"Stage {row.stage + 1}, continued", ""),)
                columns[-1].append(_Row(18, again, stage=row.stage))
        columns[-1].append(row)
    return tuple(map(tuple, columns))


def _height(rows: Sequence[_Row]) -> float:
    return sum(row.height for row in rows)


# ---------------------------------------------------------------- columns


def _columns(root: ET.Element, plan: _Plan, bottom: float) -> None:
    """Draw all columns, and the line from the foot of each to the head of the next."""
    top, pitch = MARGIN + TITLE, plan.width + GUTTER
    x = (plan.page[0] - len(plan.columns) * pitch + GUTTER) / 2
    end = top
    for rows in plan.columns:
        if rows is not plan.columns[0]:
            turn, spine = x - GUTTER / 2, x + _spine(plan.font)
            corners = [(spine - pitch, end), (spine - pitch, bottom - 3), (turn, bottom - 3)]
            _track(root, [*corners, (turn, top - 6), (spine, top - 6), (spine, top + 1)])
            _arrow(root, spine, top + 1)
        end = _column(root, rows, plan=plan, x=x, y=top)
        x += pitch


def _column(root: ET.Element, rows: Sequence[_Row], *, plan: _Plan, x: float, y: float) -> float:
    """Draw a column whose upper left corner is given; return where its vertical line ends."""
    end = y
    for stage, group in groupby(rows, key=lambda row: row.stage):
        members = list(group)
        if stage >= 0:
            band = BANDS[stage % len(BANDS)]
            _rect(root, x, y, plan.width, _height(members) - 3, rx=5, fill=band, stroke="none")
        for row in members:
            if row.block:
                tint = TINTS[stage % len(TINTS)]
                end = _block(root, row.block, plan=plan, tint=tint, x=x, y=y, end=end)
            elif stage < 0:
                end = _box(root, row, plan=plan, x=x, y=y, end=end)
            else:
                _heading(root, row, plan=plan, x=x, y=y)
            y += row.height
    return end


def _box(root: ET.Element, row: _Row, *, plan: _Plan, x: float, y: float, end: float) -> float:
    """Draw the stem or the head: a line of text for each step, its shape at the right."""
    if end < y:  # it is not the first in its column: something leads here
        y += 8
        spine = x + _spine(plan.font)
        _line(root, spine, end, spine, y)
        _arrow(root, spine, y)
    font, height = plan.font, len(row.lines) * (plan.font + 3) + 8
    group = _add(root, "g", class_="part")
    _rect(group, x, y, plan.width, height, rx=5)
    for number, (words, shape) in enumerate(row.lines, 1):
        base = y + 2 + number * (font + 3)
        room = plan.width - 24 - text_width(shape, font)
        _text(group, x + 8, base, words, font, bold=number == 1, room=room)
        _text(group, x + plan.width - 8, base, shape, font, fill=QUIET, anchor="end")
    return y + height


def _heading(root: ET.Element, row: _Row, *, plan: _Plan, x: float, y: float) -> None:
    """Write a stage's heading beside the vertical line."""
    x += _spine(plan.font) + BRANCH
    (words, _), *costs = row.lines
    _text(root, x, y + 5 + plan.font, words, plan.font, bold=True)
    for number, (cost, _) in enumerate(costs, 2):
        base = y + 4 + number * (plan.font + 2)
        _text(root, x, base, cost, _small(plan.font), fill=QUIET)


def _block(
    root: ET.Element,
    block: Block,
    *,
    plan: _Plan,
    tint: str,
    x: float,
    y: float,
    end: float,
) -> float:
    """Draw a block below the point where the last one ended; return where this one does."""
    font, spine = plan.font, x + _spine(plan.font)
    start = spine + BRANCH
    spare = plan.pitch - _pitch(font)
    top = y + 1.5 + 0.35 * spare  # of the cells
    middle = top + font + 2.5
    foot = top + 2 * font + 5 + 0.8 * font + 1.2 + 0.25 * spare  # of the sign of addition
    fork = top + (font + 2 if block.shortcut.preactivation else 1)

    group = _add(root, "g", class_="block")
    _add(group, "title").text = _clean(_block_words(block))
    _line(group, spine, end, spine, fork)
    if block.shortcut.preactivation:
        _ramp(group, spine, top + 1, font)
    _shortcut(group, block.shortcut, start=(spine, fork), end=(spine, foot - NODE), size=font)
    _path(group, "M", spine, fork, "C", spine + 9, fork, start - 8, middle, start, middle)
    _add(group, "circle", cx=spine, cy=fork, r=1.9, fill=INK)
    right = x + plan.width - 5
    last = _branch(group, block, tint=tint, x=start, right=right - 6, top=top, font=font)
    _way_back(group, block, start=(last, middle), end=(spine, foot), right=right, font=font)
    _sum(group, spine, foot)
    _text(group, x + 3, top + 2.5, str(block.number), min(font, 8), bold=True)
    return foot + NODE


def _shortcut(
    parent: ET.Element,
    shortcut: Shortcut,
    *,
    start: tuple[float, float],
    end: tuple[float, float],
    size: float,
) -> None:
    """Draw the line past the residual branch in the style of its kind, with its signs on it."""
    signs = [
        next((sign for sign in ("pooling", "convolution") if step.kind.endswith(sign)), "other")
        for step in shortcut.steps
    ]
    key = (" ".join(signs), any(step.stride for step in shortcut.steps))
    colour, dashes = STYLES.get(key, OTHER)
    width = 1.7 if signs else 2.8
    paint: dict[str, Any] = {"stroke": colour, "stroke_width": width}
    if dashes:
        paint |= {"stroke_dasharray": dashes, "stroke_linecap": "round"}
    _line(parent, *start, *end, **paint)
    for number, (sign, step) in enumerate(zip(signs, shortcut.steps, strict=True)):
        part = (number + 0.5) / len(signs)
        x, y = (a + part * (b - a) for a, b in zip(start, end, strict=True))
        _sign(parent, sign, x=x, y=y, colour=colour, size=size)
        if step.stride and start[0] == end[0]:  # the legend's line is level: no room beside it
            edge, small = x - size / 2 - 1.5, min(size, 8)
            stride = f"/{step.stride}"
            _text(parent, edge, y + 3, stride, small, bold=True, fill=STRIDE, anchor="end")


def _branch(
    parent: ET.Element,
    block: Block,
    *,
    tint: str,
    x: float,
    right: float,
    top: float,
    font: float,
) -> float:
    """Draw the residual branch as cells between `x` and `right`; return where the last ends."""
    widths = [_cell_width(step, font) for step in block.residual]
    spare = (right - x - sum(widths) - (font + 5) * len(widths)) / max(1, len(widths))
    middle = top + font + 2.5
    for step, width in zip(block.residual, widths, strict=True):
        joint, cell = font + 5 + 0.35 * spare, width + 0.65 * spare
        _line(parent, x, middle, x + joint, middle)
        if step.before:
            _ramp(parent, x + joint / 2, middle, font)
        else:
            _arrow(parent, x + joint, middle, -90)
        _cell(parent, step, tint=tint, x=x + joint, y=top, width=cell, font=font)
        x += joint + cell
    return x


def _cell_texts(step: Step) -> tuple[str, str]:
    """What stands in a step's cell, above and below."""
    plain = step.kind == "convolution"
    return by(step.kernel), str(step.shape[-1]) if plain else step.kind.split()[0]


def _cell_width(step: Step, font: float) -> float:
    above, below = _cell_texts(step)
    above += f" /{step.stride}" * bool(step.stride)
    return max(text_width(above, font, bold=True), text_width(below, font)) + 6


def _cell(
    parent: ET.Element, step: Step, *, tint: str, x: float, y: float, width: float, font: float
) -> None:
    """Draw one convolution: kernel and stride above, channels below."""
    group = _add(parent, "g", class_="cell")
    fill = tint if max(step.kernel, default=1) > 1 else WHITE
    frame = {"stroke": STRIDE, "stroke_width": 1.3} if step.stride else {}
    _rect(group, x, y, width, 2 * font + 5, rx=3, fill=fill, **frame)
    above, below = _cell_texts(step)
    middle = x + width / 2
    text = _text(group, middle, y + font + 0.5, above, font, bold=True, anchor="middle")
    if step.stride:
        _add(text, "tspan", fill=STRIDE, dx=0.3 * font).text = f"/{step.stride}"
    _text(group, middle, y + 2 * font + 2, below, font, anchor="middle")


def _way_back(
    parent: ET.Element,
    block: Block,
    *,
    start: tuple[float, float],
    end: tuple[float, float],
    right: float,
    font: float,
) -> None:
    """Draw the line from the last cell to the addition, with the shape and the name on it."""
    (x, y), (spine, foot) = start, end
    shape = by(block.shape, " × ")
    tag, wide = spine + 12, text_width(shape, font) + 2
    base = foot + 0.35 * font
    _path(parent, "M", x, y, "H", right - 3, "Q", right, y, right, y + 3)
    _path(parent, "M", right, y + 3, "V", foot - 3, "Q", right, foot, right - 3, foot)
    line, width = right - 3, text_width(block.name, font)
    if tag + wide + width + 22 <= line:
        _line(parent, line, foot, line - 6, foot)
        _text(parent, line - 8 - width / 2, base, block.name, font, fill=QUIET, anchor="middle")
        line -= width + 10
    _line(parent, line, foot, spine + NODE, foot)
    _arrow(parent, spine + NODE - 0.5, foot, 90)
    group = _add(parent, "g", class_="shape")
    _rect(group, tag, foot - font / 2 - 1, wide, font + 2, rx=font / 2 + 1)
    _text(group, tag + wide / 2, base, shape, font, anchor="middle")


# ---------------------------------------------------------------- legend


def _legend_height(anatomy: Anatomy) -> float:
    """The height of the legend: a heading, a line for each entry, a note."""
    return LINE * (max(len(_kinds(anatomy)), 4) + 2)


def _legend(root: ET.Element, anatomy: Anatomy, width: float, y: float) -> None:
    """Explain the shortcuts, with their number, at the left and all other signs at the right."""
    left, right, size = MARGIN, width - MARGIN - 195, 8.5
    _text(root, left, y + LINE - 3, "Shortcuts", size + 1, bold=True)
    for number, (shortcut, times, words) in enumerate(_kinds(anatomy), 1):
        at = y + (number + 0.5) * LINE
        _shortcut(root, shortcut, start=(left + 1, at), end=(left + 37, at), size=7)
        _text(root, left + 57, at + 3, str(times), size, bold=True, anchor="end")
        _text(root, left + 63, at + 3, words, size, room=right - left - 70)
    _text(root, right, y + LINE - 3, "Signs", size + 1, bold=True)
    _sum(root, right + 12, y + 1.5 * LINE)
    _ramp(root, right + 12, y + 2.5 * LINE, 8)
    _rect(root, right + 5, y + 3.5 * LINE - 4.5, 14, 9, rx=2, fill=TINTS[0])
    _text(root, right + 12, y + 4.5 * LINE + 3, "/2", 8, bold=True, fill=STRIDE, anchor="middle")
    before = {step.before for block in anatomy.blocks for step in block.residual}
    before |= {block.shortcut.preactivation for block in anatomy.blocks}
    entries = (
        "sum of the two branches",
        " or ".join(sorted(", ".join(words) for words in before - {()})) or "activation",
        "kernel wider than one pixel",
        "stride 2, halves height and width",
    )
    for number, words in enumerate(entries, 1):
        _text(root, right + 26, y + (number + 0.5) * LINE + 3, words, size, room=169)
    note = (
        "In a cell: the kernel above, the channels below. "
        "Multiply-adds: those of convolutions and dense layers, for one photo."
    )
    _text(root, left, y + _legend_height(anatomy) - 3, note, 7.5, fill=QUIET)


# ---------------------------------------------------------------- shapes


def _add(parent: ET.Element, tag: str, **attributes: Any) -> ET.Element:
    """Add an element; `stroke_width` is written `stroke-width`, a length to a hundredth."""
    written = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.2f}"
        for name, value in attributes.items()
    }
    return ET.SubElement(parent, tag, written)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    words: str,
    size: float,
    *,
    bold: bool = False,
    fill: str = INK,
    anchor: str = "start",
    room: float = math.inf,
) -> ET.Element:
    """Write a text on its base line, cut to the room that it has."""
    weight = "bold" if bold else "normal"
    text = _add(
        parent, "text", x=x, y=y, font_size=size, font_weight=weight, fill=fill, text_anchor=anchor
    )
    text.text = _fit(_clean(words), size, room, bold=bold)
    return text


def _rect(
    parent: ET.Element, x: float, y: float, width: float, height: float, **paint: Any
) -> None:
    paint = {"fill": WHITE, "stroke": FRAME, "stroke_width": 0.8} | paint
    _add(parent, "rect", x=x, y=y, width=width, height=height, **paint)


def _line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, **paint: Any) -> None:
    _add(parent, "line", x1=x1, y1=y1, x2=x2, y2=y2, **{"stroke": INK, "stroke_width": 1.1} | paint)


def _path(parent: ET.Element, *words: str | float) -> None:
    """Draw a path; its words may be numbers."""
    d = " ".join(word if isinstance(word, str) else f"{word:.2f}" for word in words)
    _add(parent, "path", d=d, fill="none", stroke=INK, stroke_width=1.1)


def _track(parent: ET.Element, points: Sequence[tuple[float, float]]) -> None:
    """Draw a line of upright and level pieces through the points, with round corners."""
    words: list[str | float] = ["M", *points[0]]
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        near, far = (
            (x + max(-4.0, min(4.0, to_x - x)), y + max(-4.0, min(4.0, to_y - y)))
            for to_x, to_y in (before, after)
        )
        words += ["L", *near, "Q", x, y, *far]
    _path(parent, *words, "L", *points[-1])


def _arrow(parent: ET.Element, x: float, y: float, turn: int = 0) -> None:
    """Draw an arrow's head, its tip at the point, downwards and then turned clockwise."""
    place = f"translate({x:.2f},{y:.2f}) rotate({turn})"
    _add(parent, "path", d="M0,0 L-2.2,-4.4 L2.2,-4.4 Z", fill=INK, transform=place)


def _ramp(parent: ET.Element, x: float, y: float, size: float) -> None:
    """Draw the sign of normalisation and activation: the graph of a ReLU, in a square."""
    half = size / 2
    _rect(parent, x - half, y - half, size, size, rx=1.5, stroke=INK)
    ramp = (x - 0.6 * half, y + 0.4 * half, "H", x, "L", x + 0.6 * half, y - 0.5 * half)
    _path(parent, "M", *ramp)


def _sign(parent: ET.Element, sign: str, *, x: float, y: float, colour: str, size: float) -> None:
    """Draw a shortcut's sign: a square for a convolution, a circle for a pooling, or a diamond."""
    paint: dict[str, Any] = {"fill": WHITE, "stroke": colour, "stroke_width": 1.5}
    if sign == "pooling":
        _add(parent, "circle", cx=x, cy=y, r=size / 2 - 0.3, **paint)
        return
    if sign == "other":
        paint["transform"] = f"rotate(45 {x:.2f} {y:.2f})"
    side = size - 0.8
    _rect(parent, x - side / 2, y - side / 2, side, side, **paint)


def _sum(parent: ET.Element, x: float, y: float) -> None:
    """Draw the sign of addition."""
    _add(parent, "circle", cx=x, cy=y, r=NODE - 0.5, fill=WHITE, stroke=INK, stroke_width=1.1)
    _line(parent, x - 2.2, y, x + 2.2, y)
    _line(parent, x, y - 2.2, x, y + 2.2)
