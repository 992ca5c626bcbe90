"""Shares of every class, by units that may not be parted: which part each photo goes to.

In: units of photos, the class of each photo, the places that are taken, and the share that each
part is to have. Out: a place for every photo. `split` says what makes a unit and what is taken;
`docs/split.md` has the rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from fieldmark.data import Split


@dataclass(frozen=True)
class Unit:
    """Photos that must not be parted."""

    members: tuple[int, ...]
    key: str  # from the contents and the seed alone: neither names nor order nor machine matter
    name: str  # the group's, for people


def fill(
    units: Sequence[Unit],
    labels: Sequence[int],
    places: Sequence[Split | None],
    shares: Mapping[Split, Fraction],
    *,
    counted: Sequence[bool],
) -> tuple[Split, ...]:
    """Return the places, with one for each unit that had none, so that each class has its shares.

    `labels`, `places` and `counted` are one a photo; a unit has places for all of its photos or
    for none. `shares` are in the order of training, validation and test, and come to 1; photos that
    are not `counted` lie outside of them.
    """
    free = [unit for unit in units if places[unit.members[0]] is None]
    board = _Board(units, labels, [*places], shares, counted)
    board.place(free)
    board.mend(free)
    return tuple(place or "training" for place in board.places)  # all have one by now


@dataclass
class _Board:
    """Where the photos are, while the last ones are placed; `places` is what comes out."""

    units: Sequence[Unit]
    labels: Sequence[int]
    places: list[Split | None]
    shares: Mapping[Split, Fraction]
    counted: Sequence[bool]
    targets: dict[tuple[int, Split], int] = field(default_factory=dict)
    counts: Counter[tuple[int, Split]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Count what is there, and what there should be of each class in each part."""
        photos = Counter(
            label for label, is_counted in zip(self.labels, self.counted, strict=True) if is_counted
        )
        units = Counter(
            label
            for unit in self.units
            for label in {self.labels[i] for i in unit.members if self.counted[i]}
        )
        for label, count in photos.items():
            for split, target in _targets(count, units[label], self.shares).items():
                self.targets[label, split] = target
        for i, place in enumerate(self.places):
            if place and self.counted[i]:
                self.counts[self.labels[i], place] += 1

    def inside(self, unit: Unit) -> Counter[int]:
        """Count a unit's photos by class."""
        return Counter(self.labels[i] for i in unit.members)

    def put(self, unit: Unit, split: Split) -> None:
        """Place a unit, or move it."""
        for i in unit.members:
            if place := self.places[i]:
                self.counts[self.labels[i], place] -= 1
            self.places[i] = split
            self.counts[self.labels[i], split] += 1

    def place(self, units: Iterable[Unit]) -> None:
        """Place the units: the largest first, each where it is wanted most; single photos last."""
        singles = defaultdict[int, list[Unit]](list)
        for unit in sorted(units, key=lambda unit: (-len(unit.members), unit.key)):
            if len(unit.members) == 1:
                singles[self.labels[unit.members[0]]].append(unit)
            else:
                inside = self.inside(unit)
                self.put(unit, max(self.shares, key=lambda split: self.wanted(inside, split)))
        for label, of_class in sorted(singles.items()):
            lacks = {
                split: max(0, self.targets[label, split] - self.counts[label, split])
                for split in self.shares
            }
            number = _apportioned(len(of_class), lacks)
            # By rank, test from one end and validation from the other: so a class that grows
            # moves each border by little.
            test, end = number.get("test", 0), len(of_class) - number.get("validation", 0)
            for rank, unit in enumerate(of_class):
                split: Split = "validation" if rank >= end else "training"
                self.put(unit, "test" if rank < test else split)

    def wanted(self, inside: Counter[int], split: Split) -> Fraction:
        """Say how much nearer to the targets a unit would bring a part, class by class."""
        lacks = {label: self.targets[label, split] - self.counts[label, split] for label in inside}
        sizes = {label: sum(self.targets[label, s] for s in self.shares) for label in inside}
        return sum(
            (Fraction(count * lacks[label], sizes[label]) for label, count in inside.items()),
            Fraction(0),
        )

    def mend(self, units: Sequence[Unit]) -> None:
        """Move a unit where a class is missing in a part and others can spare one of theirs."""
        held = Counter[tuple[int, Split]]()  # units, by class and part
        movable = defaultdict[int, list[Unit]](list)
        for unit in units:
            for label in self.inside(unit):
                movable[label].append(unit)
        for unit in self.units:
            held.update({(self.labels[i], p) for i in unit.members if (p := self.places[i])})
        for split in self.shares:  # training first, for which the others may be emptied
            for label in sorted({*self.labels}):
                if held[label, split]:
                    continue
                spare = [unit for unit in movable[label] if self.spares(unit, held)]
                if not spare and split == "training":
                    spare = movable[label]
                if spare:
                    unit = min(spare, key=lambda unit: (len(unit.members), unit.key))
                    held.subtract({(other, self.at(unit)) for other in self.inside(unit)})
                    self.put(unit, split)
                    held.update({(other, split) for other in self.inside(unit)})

    def spares(self, unit: Unit, held: Counter[tuple[int, Split]]) -> bool:
        """Say whether the part that a unit lies in has others of each of its classes."""
        return all(held[label, self.at(unit)] > 1 for label in self.inside(unit))

    def at(self, unit: Unit) -> Split:
        """Return the part that a unit which was placed here lies in."""
        return self.places[unit.members[0]] or "training"


def _targets(count: int, units: int, shares: Mapping[Split, Fraction]) -> dict[Split, int]:
    """Return how many of a class' photos each part should have, as its units allow.

    The nearest whole numbers; then at least one in training, and if there are units enough in
    validation and in test.
    """
    targets = _apportioned(count, shares)
    fillable = min(len(shares), units)
    for split in shares:  # training first
        filled = sum(1 for target in targets.values() if target)
        if not targets[split] and (split == "training" or filled < fillable):
            donor = max(shares, key=targets.__getitem__)  # of equal ones the first
            targets[donor] -= 1
            targets[split] += 1
    return targets


def _apportioned(count: int, weights: Mapping[Split, Fraction | int]) -> dict[Split, int]:
    """Share a count out by weights: whole parts first, the rest by the largest remainders."""
    total = sum(map(Fraction, weights.values()))
    if not total:
        return {split: count if split == "training" else 0 for split in weights}
    exact = {split: count * Fraction(weight) / total for split, weight in weights.items()}
    parts = {split: int(amount) for split, amount in exact.items()}
    rest = count - sum(parts.values())
    for split in sorted(exact, key=lambda split: parts[split] - exact[split])[:rest]:
        parts[split] += 1
    return parts
