"""Arrays -> matplotlib axes: photo grids and curves. Computes no metric, reads and writes no file.

Figures are made without pyplot's global state, so that nothing appears on a screen or stays in
memory. Text is drawn in fonts that have its signs: matplotlib's own font has no Chinese, and
draws boxes for what it lacks. Sizes and places of the legends are the article's.
"""

from __future__ import annotations

import logging
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from fieldmark.console import shortened

Language = Literal["en", "zh"]

TITLES: dict[Language, dict[str, str]] = {
    "en": {
        "training photos": "Training photos",
        "predictions": "Predictions",
        "accuracy": "Accuracy",
        "loss": "Loss",
        "training": "Training",
        "validation": "Validation",
        "averaged": "Validation, averaged weights",
        "epoch": "Epoch",
    },
    "zh": {
        "training photos": "训练集照片",
        "predictions": "预测结果",
        "accuracy": "准确率",
        "loss": "损失",
        "training": "训练集",
        "validation": "验证集",
        "averaged": "验证集（平均权重）",
        "epoch": "轮次",
    },
}

# Tried before the other installed fonts: made for simplified Chinese, and on most machines.
PREFERRED = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Noto Sans CJK JP",
)

COLOURS = {"training": "#1f6f8b", "validation": "#d1603d", "averaged": "#7a4988"}


class Lettering:
    """Chooses fonts for a figure's texts; `notes` holds what a user should be told, each once."""

    def __init__(self, language: Language = "en") -> None:
        self.notes: list[str] = []
        self.titles = TITLES[language]
        if drawable("".join(self.titles.values())) is None:
            self.titles = TITLES["en"]
            self.notes.append(
                "No installed font has Chinese signs, so the titles are English: "
                "install one, for example Noto Sans CJK."
            )

    def families(self, texts: Iterable[str]) -> list[str]:
        """Return the font families to draw the texts with."""
        return drawable("".join(texts)) or FontProperties().get_family()

    def class_label(self, name: str, number: int) -> str:
        """Return a class' name, or its number where no installed font can draw the name."""
        name = unicodedata.normalize("NFC", name)  # macOS takes letters and their marks apart
        if drawable(name) is not None:
            wide = any(unicodedata.east_asian_width(sign) in "WF" for sign in name)
            width = 13 if wide else 26
            fitting = shortened(name, 2 * width - 4)  # words may leave a line unfilled
            lines = textwrap.wrap(fitting, width, max_lines=2, placeholder="…")
            return "\n".join(lines)
        note = f"No installed font has the signs of {name!r}; the figures say class {number}."
        if note not in self.notes:
            self.notes.append(note)
        return f"class {number}"


def drawable(text: str) -> list[str] | None:
    """Return font families that together have every sign of the text, or none if none do."""
    families = list(FontProperties().get_family())
    missing = _signs(text) - _charmap(font_manager.findfont(FontProperties()))
    for family, path in _installed() if missing else ():
        found = missing & _charmap(path)
        if found:
            families.append(family)
            missing -= found
        if not missing:
            break
    return None if missing else families


def photo_grid(
    photos: Sequence[np.ndarray[Any, Any]], labels: Sequence[str], *, title: str, fonts: list[str]
) -> Figure:
    """Draw up to eight photos, (h, w, 3) of 0 to 255, in two rows of four with their labels."""
    figure = Figure(figsize=(10, 5), layout="constrained")  # inches, as in the article
    figure.suptitle(title, fontfamily=fonts)
    for place, (photo, label) in enumerate(zip(photos[:8], labels[:8], strict=True), start=1):
        axes = figure.add_subplot(2, 4, place)
        axes.imshow(np.clip(photo, 0, 255).astype("uint8"))
        # A class' name may hold dollar signs, between which matplotlib would read a formula.
        axes.set_title(label, fontfamily=fonts, fontsize="medium", parse_math=False)
        axes.axis("off")
    return figure


def curves(
    log: Sequence[Mapping[str, float | None]], *, titles: Mapping[str, str], fonts: list[str]
) -> Figure:
    """Draw accuracy and loss over the epochs, for training and validation."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # inches, as in the article
    left, right = figure.subplots(1, 2)
    curve(left, log, "accuracy", titles=titles, fonts=fonts, legend="lower right")
    curve(right, log, "loss", titles=titles, fonts=fonts, legend="upper right")
    return figure


def curve(
    axes: Axes,
    log: Sequence[Mapping[str, float | None]],
    figure_of: Literal["accuracy", "loss"],
    *,
    titles: Mapping[str, str],
    fonts: list[str],
    legend: Literal["lower right", "upper right"],
) -> None:
    """Draw one figure of the log over the epochs, for training and validation."""
    for split, prefix in (("training", ""), ("validation", "val_"), ("averaged", "averaged_val_")):
        key = f"{prefix}{figure_of}"
        lines = [line for line in log if key in line]  # not every epoch is validated
        epochs = np.array([line["epoch"] for line in lines], dtype=float)
        values = np.array([line[key] for line in lines], dtype=float)  # none becomes not-a-number
        if lines:
            marker = "o" if len(lines) <= 30 else ""
            colour = COLOURS[split]
            axes.plot(epochs, values, marker=marker, ms=4, color=colour, label=titles[split])
    axes.set_title(titles[figure_of], fontfamily=fonts)
    axes.set_xlabel(titles["epoch"], fontfamily=fonts)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.legend(loc=legend, prop=FontProperties(family=fonts))


class Explained(NamedTuple):
    """A row of the sheet: a photo, where it says what, and what was learned from that is like it.

    Pictures are (h, w, 3) of 0 to 255; a probability is 0 to 1.
    """

    photo: np.ndarray[Any, Any]
    title: str
    maps: Sequence[tuple[np.ndarray[Any, Any], str]]  # with the class that each is of
    answer: str
    classes: Sequence[tuple[str, float]]  # the most probable ones, the first first
    neighbours: Sequence[tuple[np.ndarray[Any, Any], str]]


def explanations(rows: Sequence[Explained], *, fonts: list[str]) -> Figure:
    """Draw a row for each photo: the photo, its maps, its classes as bars, the nearest photos.

    All is laid out in inches on one pair of axes: hundreds of small ones take seconds to draw.
    """
    side, small, gap, titles = 1.9, 1.35, 0.2, 0.5  # titles have up to three lines
    apart = 0.4  # a neighbour's name is wider than its picture
    maps, near = max(len(row.maps) for row in rows), max(len(row.neighbours) for row in rows)
    width = (side + gap) * (1 + maps) + 2.4 + gap + (small + apart) * near + gap
    height = (side + titles + gap / 2) * len(rows) + gap / 2
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    words: Any = {"fontsize": 8, "fontfamily": fonts, "parse_math": False, "va": "bottom"}

    def picture(image: np.ndarray[Any, Any], title: str, left: float, size: float) -> None:
        extent = (left, left + size, top + size, top)
        axes.imshow(image, extent=extent, interpolation="bilinear", interpolation_stage="rgba")
        axes.text(left + size / 2, top - 0.04, title, ha="center", **words)

    for number, row in enumerate(rows):
        top, left = (side + titles + gap / 2) * number + titles, gap
        for image, title in ((row.photo, row.title), *row.maps):
            picture(image, title, left, side)
            left += side + gap
        left = gap + (side + gap) * (1 + maps)
        axes.text(left + 1.2, top - 0.04, row.answer, ha="center", **words)
        for place, (name, probability) in enumerate(row.classes):
            foot = top + 0.17 + side / 5 * place  # five fit, the most probable one above
            colour = COLOURS["training"] if place == 0 else "#a3adb2"
            axes.barh(foot + 0.08, 2.4 * probability, 0.1, left, color=colour)
            line = shortened(name.replace("\n", " "), len(name.split("\n")[0]))
            axes.text(left, foot, line, **words)
            axes.text(left + 2.4, foot, f"{probability:.1%}", ha="right", **words)
        left += 2.4 + gap
        for image, title in row.neighbours:
            picture(image, title, left, small)
            left += small + apart
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure


def _signs(text: str) -> set[int]:
    """Return the code points that need a glyph: no spaces, joiners or variation selectors."""
    return {
        ord(sign)
        for sign in text
        if not (
            sign.isspace() or unicodedata.category(sign) == "Cf" or "\ufe00" <= sign <= "\ufe0f"
        )
    }


def _installed() -> Iterable[tuple[str, str]]:
    """Yield family and file of the installed fonts, the preferred ones first."""
    fonts = font_manager.fontManager.ttflist
    rank = {family: place for place, family in enumerate(PREFERRED)}
    chosen = sorted(fonts, key=lambda font: (rank.get(font.name, len(rank)), font.name))
    # matplotlib brings a font of last resort along, which draws every sign as a box.
    return ((font.name, font.fname) for font in chosen if not font.name.startswith("Last Resort"))


@cache
def _charmap(path: str) -> frozenset[int]:
    """Return the code points that a font file has a glyph for."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged font is no font
        logging.getLogger(__name__).debug("cannot read the font %s", path)
        return frozenset()
