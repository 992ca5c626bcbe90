"""Bounds for clients: as flags they reach the server, and what cannot be meant is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from subprocess import CompletedProcess
from typing import Any

import pytest

from fieldmark.bounds import WITHIN, Bounds, flag
from fieldmark.cli import ALLOWED, app
from fieldmark.errors import FieldmarkError


def test_the_flags_are_the_bounds_with_the_same_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[dict[str, Any]] = []
    monkeypatch.setattr("fieldmark.serve.serve", lambda _, **given: served.append(given))
    app(["serve", "model"], result_action="return_value")
    app(["serve", "model", "--photos=3", "--seconds", "2.5"], result_action="return_value")
    first, second = (asdict(each["bounds"]) for each in served)
    assert first == asdict(Bounds()) == asdict(ALLOWED)
    assert second == {**first, "photos": 3, "seconds": 2.5}


def test_the_usual_ones_are_right() -> None:
    Bounds().check()


@pytest.mark.parametrize("name", [each.name for each in fields(Bounds)])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1 << 60])
def test_what_is_no_bound(name: str, value: Any) -> None:
    with pytest.raises(FieldmarkError, match=rf"{flag(name)} \S+ is no bound: give \d+ or more"):
        Bounds(**{name: value}).check()


@pytest.mark.parametrize(("part", "whole"), WITHIN)
def test_what_could_never_be_answered(part: str, whole: str) -> None:
    usual: Any = Bounds()
    Bounds(**{part: getattr(usual, whole), **more(part, whole)}).check()
    with pytest.raises(FieldmarkError, match=rf"{flag(part)} \d+ has no room in {flag(whole)} \d+"):
        Bounds(**{part: getattr(usual, whole) + 1}).check()


def more(part: str, whole: str) -> dict[str, Any]:
    """Return what has to be larger as well, that a part may be as large as the whole."""
    return {name: 1 << 40 for inner, name in WITHIN if inner == part and name != whole}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--photos", "0"], "error: --photos 0 is no bound: give 1 or more."),
        (["--photos", "3.5"], "Invalid value for --photos"),
        (["--photo-bytes", "200000000"], "has no room in --body-bytes 100000000"),
    ],
)
def test_one_sentence_says_what_is_wrong(
    fieldmark: Callable[..., CompletedProcess[str]], words: list[str], sentence: str
) -> None:
    found = fieldmark("serve", "model", *words)
    assert found.returncode == 2
    assert sentence in found.stderr
    assert len(found.stderr.splitlines()) == 1
