"""The plain data of a check: what it counts, how it is put in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.console import many, printable
from fieldmark.findings import (
    ABOUT_CLASSES,
    KINDS,
    Case,
    Finding,
    Interval,
    Report,
    Seen,
    straight,
    wilson,
)


def report(*findings: Finding, files: tuple[Seen, ...] = ()) -> Report:
    return Report(
        source=Path("birds"),
        folder=Path("birds"),
        files=files,
        classes=tuple(sorted({seen.label for seen in files if seen.label})),
        linked=(),
        findings=findings,
        intervals=(),
        assumed=True,
        alike={},
    )


def test_the_kinds_stand_in_order_of_severity() -> None:
    severities = [kind.severity for kind in KINDS.values()]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    assert set(KINDS) >= ABOUT_CLASSES
    for kind in KINDS.values():
        assert not kind.title.endswith(".")
        assert kind.advice.endswith(".")


@pytest.mark.parametrize(
    ("kind", "cases", "count"),
    [
        ("untrainable", [()], ""),
        ("dark", [("a",), ("b",)], "2"),
        ("few", [("one",)], "1 class"),
        ("alike names", [("a", "A"), ("b", "B")], "4 classes"),
        ("conflict", [("a", "b")], "2 in 1 group"),
        ("duplicates", [("a", "b"), ("c", "d", "e")], "5 in 2 groups"),
    ],
)
def test_a_finding_says_how_many(kind: str, cases: list[tuple[str, ...]], count: str) -> None:
    assert Finding(kind, tuple(map(Case, cases))).count == count


def test_the_account_adds_up() -> None:
    files = (
        *(Seen(f"{i}.jpg", label="one") for i in range(1200)),
        Seen("a.txt", kind="skipped", why="is no photo (.txt)"),
        Seen("b.jpg", label="two", kind="unreadable", why="is empty"),
        Seen("c.jpg", label="two"),
    )
    made = report(files=files)
    assert made.account == "1,203 files: 1,201 used, 1 unreadable, 1 skipped"
    assert made.balance == "1,201 photos in 2 classes, from 1 (two) to 1,200 (one)"
    assert report(files=files[-1:]).balance == "1 photo in 1 class"
    assert report().balance == "No class has a photo"


def test_the_verdict_is_the_worst_finding_s() -> None:
    error, warning, note = (
        Finding(kind, (Case(("a",)),)) for kind in ("unreadable", "dark", "hidden")
    )
    assert report().verdict == "birds is in order."
    assert report(note).verdict == "birds is in order; the notes need no action."
    assert report(warning, note).verdict == (
        "birds can be trained on; look at the warning first, for it weakens the result."
    )
    made = report(error, warning, note)
    assert made.verdict == (
        "birds is not ready for training: 1 error and 1 warning; "
        "begin with: photos that cannot be read."
    )
    assert made.serious == (error, warning)


@pytest.mark.parametrize(
    ("photos", "sentence"),
    [
        (113, "113 photos: a result of 80 % means 72 to 86 %"),
        (1, "1 photo: a result of 80 % means 13 to 99 %"),
    ],
)
def test_an_interval_is_said_in_words(photos: int, sentence: str) -> None:
    assert str(Interval("all", photos, *wilson(0.8, photos))) == sentence


@given(share=st.floats(0, 1), count=st.integers(1, 10_000))
def test_the_interval_is_wilson_s(share: float, count: int) -> None:
    from scipy.stats import binomtest

    hits = round(share * count)
    theirs = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_words_for_people() -> None:
    assert many(1, "photo") == "1 photo"
    assert many(2000, "class", "classes") == "2,000 classes"
    assert printable("red \x1b[31m ü") == "red \\x1b[31m ü"


def test_signs_that_join_stay_and_signs_that_turn_are_escaped() -> None:
    persian, family = (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
    )
    for name in (persian, family, "ü", "naïve.jpg"):
        assert printable(name) == straight(name) == name
    for sign in "\u202a\u202e\u2066\u2069":
        escaped = f"a\\u{ord(sign):04x}gpj.exe"
        assert printable(f"a{sign}gpj.exe") == straight(f"a{sign}gpj.exe") == escaped
