"""Progress with the time left, on a terminal and in a log file; and silence where asked for."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fieldmark import console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_a_time_is_written_for_people(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Bushtit", "Bushtit"),
        ("Black-throated Bushtit male", "Black-thro…htit male"),
        ("Black-throated Bushtit female", "Black-thro…it female"),
    ],
)
def test_what_is_too_long_loses_its_middle(text: str, short: str) -> None:
    assert console.shortened(text, 20) == short


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(console, "progress", Console(file=log, force_terminal=False))
    clock = iter([30.0, 32.0, 42.0, 44.0])  # four steps; the first one compiles
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    meter = console.Meter("Training", 5)
    for loss in (4, 3, 2, 1):
        meter.advance(note=f"loss {loss}")
    assert log.getvalue().splitlines() == ["Training 3/5, 12 s left  loss 2"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "progress", Console(file=screen, force_terminal=True, width=120))
    with console.meter("Training", 2) as meter:
        meter.advance(note="loss [0.5]")
        meter.bar.refresh()
    assert "Training" in screen.getvalue()
    assert "1/2" in screen.getvalue()
    assert "loss [0.5]" in screen.getvalue()


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console.be_quiet()
    console.say("a message")
    with console.meter("Counting", 1) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")
    console.be_quiet(False)
    console.say("[not markup]")
    assert capsys.readouterr().out == "[not markup]\n"


def test_a_message_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("Classes: a\x1b[31mred\nand \u202etxt.b")
    assert capsys.readouterr().out == "Classes: a\\x1b[31mred\nand \\u202etxt.b\n"
