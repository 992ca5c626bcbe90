"""Shares of every class by units: exact for single photos, near for groups, and none is parted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import strata
from fieldmark.data import Split
from fieldmark.strata import Unit

SHARES: dict[Split, Fraction] = {
    "training": Fraction(7, 10),
    "validation": Fraction(2, 10),
    "test": Fraction(1, 10),
}


def units_of(sizes: Sequence[int]) -> list[Unit]:
    """Return units of so many photos, one after the other."""
    units, at = [], 0
    for size in sizes:
        key = hashlib.sha256(str(at).encode()).hexdigest()
        units.append(Unit(tuple(range(at, at + size)), key, ""))
        at += size
    return units


def fill(
    units: Sequence[Unit], labels: Sequence[int], places: Sequence[Split | None] = ()
) -> tuple[Split, ...]:
    """Fill the shares, of all photos."""
    free = [None] * len(labels)
    counted = [True] * len(labels)
    return strata.fill(units, labels, places or free, SHARES, counted=counted)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(1, 3), st.data())
def test_no_unit_is_parted_and_none_that_has_a_place_is_moved(
    sizes: list[int], classes: int, data: st.DataObject
) -> None:
    units = units_of(sizes)
    labels = data.draw(st.tuples(*[st.integers(0, classes - 1)] * sum(sizes)))
    places: list[Split | None] = []
    for size in sizes:
        places += [data.draw(st.sampled_from((None, *SHARES)))] * size
    filled = fill(units, labels, places)
    assert all(len({filled[i] for i in unit.members}) == 1 for unit in units)
    assert all(place in (None, filled[i]) for i, place in enumerate(places))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (10, (7, 2, 1)), (101, (71, 20, 10))],
)
def test_single_photos_fill_the_shares_exactly(count: int, expected: tuple[int, ...]) -> None:
    counts = Counter(fill(units_of([1] * count), [0] * count))
    assert tuple(counts[split] for split in SHARES) == expected


def test_what_has_a_place_counts_towards_the_shares() -> None:
    places: list[Split | None] = ["validation", "validation", *[None] * 8]
    filled = fill(units_of([1] * 10), [0] * 10, places)
    assert filled[:2] == ("validation", "validation")
    assert Counter(filled) == {"training": 7, "validation": 2, "test": 1}


def test_what_is_not_counted_lies_outside_of_the_shares() -> None:
    taken: list[Split] = ["test"] * 20
    places: list[Split | None] = [*taken, *[None] * 10]
    counted = [False] * 20 + [True] * 10
    shares: dict[Split, Fraction] = {"training": Fraction(4, 5), "validation": Fraction(1, 5)}
    filled = strata.fill(units_of([1] * 30), [0] * 30, places, shares, counted=counted)
    assert Counter(filled) == {"test": 20, "training": 8, "validation": 2}


def test_a_class_that_is_missing_in_a_part_gets_a_unit_of_another() -> None:
    filled = fill(units_of([30, 1, 1, 1]), [0] * 30 + [1, 1, 1])
    assert {filled[i] for i in (30, 31, 32)} == {*SHARES}
    assert {*filled[:30]} == {"training"}  # there is one unit of class 0, and training needs it
