"""The figures: sizes and legends as the article's, and never a box in place of a sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from fieldmark import plots
from fieldmark.plots import TITLES, Lettering, drawable

LOG: list[dict[str, float | None]] = [
    {"epoch": 1, "accuracy": 0.4, "val_accuracy": 0.3, "loss": 1.5, "val_loss": 2.0},
    {"epoch": 2, "accuracy": 0.6, "val_accuracy": 0.5, "loss": 1.1, "val_loss": None},
]
CHINESE = "".join(TITLES["zh"].values())


def make_font(path: Path, family: str, text: str) -> None:
    """Write a font that has a square for each sign of the text and nothing else."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    signs = {ord(sign): f"u{ord(sign):X}" for sign in text}
    glyphs = [".notdef", *dict.fromkeys(signs.values())]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap(signs)
    font.setupGlyf(dict.fromkeys(glyphs, square))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Leave only the fonts that come with matplotlib; more can be added to the list."""
    here = str(Path(str(font_manager.__file__)).parent)
    own = [f for f in font_manager.fontManager.ttflist if f.fname.startswith(here)]
    assert own
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    return own


@pytest.mark.usefixtures("no_fonts")
def test_without_a_chinese_font_the_titles_are_english_and_that_is_said_once() -> None:
    lettering = Lettering("zh")
    assert lettering.titles == TITLES["en"]
    assert len(lettering.notes) == 1
    assert "No installed font has Chinese signs" in lettering.notes[0]


def test_with_a_chinese_font_the_titles_are_chinese(no_fonts: list[Any], tmp_path: Path) -> None:
    make_font(tmp_path / "han.ttf", "Test Han", CHINESE)
    no_fonts.append(font_manager.FontEntry(fname=str(tmp_path / "han.ttf"), name="Test Han"))
    lettering = Lettering("zh")
    assert lettering.titles == TITLES["zh"]
    assert lettering.notes == []
    assert lettering.families(["训练集"])[-1] == "Test Han"


@pytest.mark.usefixtures("no_fonts")
def test_a_class_that_no_font_can_draw_is_called_by_its_number() -> None:
    lettering = Lettering()
    assert lettering.class_label("Kolibri ø", 0) == "Kolibri ø"
    assert lettering.class_label("鸟", 3) == "class 3"
    assert lettering.class_label("鸟", 3) == "class 3"
    assert lettering.notes == ["No installed font has the signs of '鸟'; the figures say class 3."]


def test_a_long_name_takes_two_lines_at_most() -> None:
    label = Lettering().class_label("Ring-necked Parakeet (Psittacula krameri) " * 4, 0)
    assert [len(line) <= 26 for line in label.split("\n")] == [True, True]
    assert label.startswith("Ring-necked")
    assert label.endswith("krameri)")


def test_long_names_that_begin_alike_stay_apart() -> None:
    names = [f"{'Black-throated Bushtit ' * 3}{kind}" for kind in ("male", "female")]
    labels = {Lettering().class_label(name, 0) for name in names}
    assert len(labels) == 2


def test_joiners_need_no_glyph() -> None:
    assert Lettering().class_label("a\u200db\ufe0f", 0) == "a\u200db\ufe0f"


def test_a_damaged_font_is_passed_over(no_fonts: list[Any], tmp_path: Path) -> None:
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    for name in ("bad.ttf", "gone.ttf"):
        no_fonts.append(font_manager.FontEntry(fname=str(tmp_path / name), name=name))
    assert drawable("鸟") is None


def test_several_scripts_are_put_together(no_fonts: list[Any], tmp_path: Path) -> None:
    for name, text in (("A", "鸟"), ("B", "ወፍ")):
        make_font(tmp_path / f"{name}.ttf", name, text)
        no_fonts.append(font_manager.FontEntry(fname=str(tmp_path / f"{name}.ttf"), name=name))
    assert (drawable("bird 鸟 ወፍ") or [])[-2:] == ["A", "B"]


def test_the_installed_chinese_font_draws_no_box(tmp_path: Path) -> None:
    lettering = Lettering("zh")
    if lettering.notes:
        pytest.skip("no Chinese font is installed")
    figure = plots.photo_grid(
        [np.zeros((4, 4, 3))],
        ["黑喉长尾山雀"],
        title=lettering.titles["training photos"],
        fonts=lettering.families([*lettering.titles.values(), "黑喉长尾山雀"]),
    )
    figure.savefig(tmp_path / "figure.png")  # a missing glyph warns, and warnings are errors here


def test_the_photo_grid_is_the_article_s() -> None:
    photos = [np.full((4, 4, 3), 300.0)] * 12
    figure = plots.photo_grid(photos, ["a"] * 12, title="Photos", fonts=["sans-serif"])
    assert tuple(figure.get_size_inches()) == (10, 5)
    assert len(figure.axes) == 8
    assert all(not axes.axison for axes in figure.axes)
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        assert place.get_geometry()[:2] == (2, 4)
    assert np.max(np.asarray(figure.axes[0].images[0].get_array())) == 255


def test_fewer_photos_than_places_are_drawn() -> None:
    figure = plots.photo_grid([np.zeros((4, 4, 3))], ["a"], title="Photos", fonts=["sans-serif"])
    assert len(figure.axes) == 1


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    figure = plots.photo_grid(
        [np.zeros((4, 4, 3))], [r"$\bird$ $x"], title="Photos", fonts=["sans-serif"]
    )
    figure.savefig(tmp_path / "figure.png")


def test_the_curves_are_the_article_s(tmp_path: Path) -> None:
    figure: Figure = plots.curves(LOG, titles=TITLES["en"], fonts=["sans-serif"])
    assert tuple(figure.get_size_inches()) == (12, 4)
    accuracy, loss = figure.axes
    assert [axes.get_title() for axes in (accuracy, loss)] == ["Accuracy", "Loss"]
    for axes, corner in ((accuracy, "lower right"), (loss, "upper right")):
        assert vars(axes.get_legend())["_loc_real"] == Legend.codes[corner]
    assert [line.get_label() for line in accuracy.lines] == ["Training", "Validation"]
    assert np.asarray(accuracy.lines[1].get_ydata()).tolist() == [0.3, 0.5]
    assert np.isnan(np.asarray(loss.lines[1].get_ydata())[1])
    figure.savefig(tmp_path / "curves.png")
