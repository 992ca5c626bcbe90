"""The charts: round ticks, lines with gaps, and markup that is whole whatever the figures are."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.charts import Axis, bars, curve, reliability, risk
from fieldmark.contents import Bin, Figure, Measured, Trade
from test_contents import measured

# ---- axes ---------------------------------------------------------------------------------------


@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1e-6, 1e6),
    most=st.integers(2, 8),
)
def test_ticks_are_round_few_and_inside(low: float, span: float, most: int) -> None:
    axis = Axis(low, low + span, 0, 100)
    if axis.high - axis.low < 1e-6 * max(abs(low), 1):
        return  # no two values that a label could tell apart
    ticks = axis.ticks(most)
    assert 1 <= len({*ticks}) == len(ticks) <= most + 1
    slack = 1e-6 * span + 1e-9
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


@given(first=st.integers(0, 99), epochs=st.integers(1, 10_000))
def test_there_is_no_half_an_epoch(first: int, epochs: int) -> None:
    ticks = Axis(first, first + epochs, 0, 100, whole=True).ticks()
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    axis = Axis(0.01, 1000, 0, 100, logarithmic=True)
    assert axis.ticks() == [0.01, 0.1, 1, 10, 100, 1000]
    assert axis(1) == pytest.approx(40)
    assert axis(0) == 0


# ---- charts -------------------------------------------------------------------------------------


def whole(chart: str) -> ET.Element:
    """Parse a chart; it says what it shows, and every number in it is one."""
    svg = ET.fromstring(chart)
    assert svg.findtext("title")
    assert svg.findtext("desc")
    assert not {"nan", "inf"} & {value for each in svg.iter() for value in each.attrib.values()}
    return svg


def test_a_gap_is_drawn_where_a_figure_was_no_number() -> None:
    log: list[dict[str, Any]] = [{"epoch": i, "loss": None if i == 3 else 1.0} for i in range(1, 6)]
    (line,) = whole(curve(log, "loss")).findall("path[@class='line training']")
    assert line.attrib["d"].count("M") == 2
    assert line.attrib["d"].count("L") == 2
    assert curve(log, "accuracy") == ""
    assert curve(log[:1], "loss") == ""
    assert curve([], "loss") == ""


losses = st.none() | st.floats(-1e30, 1e30).map(lambda value: round(value, 6))


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=9))
def test_any_losses_make_a_curve(pairs: list[tuple[float | None, float | None]]) -> None:
    log = [{"epoch": float(i), "loss": a, "val_loss": b} for i, (a, b) in enumerate(pairs)]
    chart = curve(log, "loss")
    if any(value is not None for pair in pairs for value in pair):
        whole(chart)
    else:
        assert chart == ""


def test_a_long_training_s_line_is_no_finer_than_a_pixel() -> None:
    log = [{"epoch": float(i), "accuracy": i / 10_000} for i in range(10_000)]
    (line,) = whole(curve(log, "accuracy")).findall("path[@class='line training']")
    assert 300 < line.attrib["d"].count("L") < 400


def test_a_bar_is_as_long_as_its_figure_and_one_without_is_left_out() -> None:
    tested = Measured.model_validate(measured(["a", "b"], 10))
    none = Figure(value=None, low=None, high=None, n=0)
    untested = tested.model_copy(update={"figures": {"accuracy": none}})
    svg = whole(bars({"test": tested, "new": untested}))
    track, bar = svg.findall("rect")
    assert float(bar.attrib["width"]) == pytest.approx(0.8 * float(track.attrib["width"]), abs=0.1)
    assert "new" not in str(svg.findtext("desc"))


def test_a_dot_a_bin_and_none_of_nothing() -> None:
    bins = [Bin(low=0.8, high=0.9, n=n, confidence=0.85, accuracy=0.8) for n in (1, 100)]
    small, large = whole(reliability(bins)).findall("circle")
    assert float(small.attrib["r"]) < float(large.attrib["r"])
    assert reliability([]) == ""


def test_the_chosen_threshold_is_marked_where_there_is_one() -> None:
    wrong = Figure(value=0.0, low=0.0, high=None, n=9)
    unknown = Figure(value=None, low=None, high=None, n=0)
    trades = [
        Trade(threshold=0.1, coverage=1.0, risk=wrong),
        Trade(threshold=0.9, coverage=0.0, risk=unknown),
    ]
    marked = "line[@class='chance']"
    assert not whole(risk(trades, None)).findall(marked)
    assert len(whole(risk(trades, 0.9)).findall(marked)) == 1
    assert risk(trades[1:], 0.9) == ""
