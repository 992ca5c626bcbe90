"""Which photos train, which validate, which test: `Photos` -> `Record`s, the rows of a split.

In: the photos, the sha256 of each, what may not be parted (near duplicates, groups), and an earlier
split where there is one. Out: a row a photo, written as a CSV. `assign` makes the split,
stratified and grouped; `article` makes Keras' own. `changes` says which photos are others since,
`leaks` which lie on two sides. `fieldmark split PHOTOS --out split.csv` runs `make`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.cells import cell_len

from fieldmark import data, duplicates, files, strata, tables
from fieldmark.console import many, printable, say
from fieldmark.data import (
    Photos,
    Split,
    alike,
    list_article,
    list_photos,
    nested,
    sha256s,
    split_word,
    taken_for_classes,
)
from fieldmark.errors import FieldmarkError
from fieldmark.strata import Unit

SPLITS: tuple[Split, ...] = ("training", "validation", "test")
NAMED = 5  # names that a sentence gives before it counts the rest
ROWS = 50  # classes that a table shows before it counts the rest

ALIKE = "alike-"  # how the name of a group begins that only contents make


class Looked(Protocol):
    """What is known of photos that were read; `check.Quick` is one."""

    @property
    def hashes(self) -> Sequence[str]:
        """The sha256, one a photo."""

    @property
    def together(self) -> Sequence[Sequence[int]]:
        """Groups of equal and nearly equal photos, by index."""


Look = Callable[[Photos], Looked]


@dataclass(frozen=True)
class Record:
    """One row of a split."""

    path: str  # relative to the folder of photos, or absolute
    label: str  # the class' name
    split: Split
    group: str  # photos of one group never part; empty: the photo stands alone
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class Leak:
    """Two photos on two sides of a split that belong together."""

    first: str  # path
    second: str
    why: str  # "the same bytes", "the same group" or "nearly the same photo"
    splits: tuple[Split, Split]


@dataclass(frozen=True)
class Changes:
    """What is different about the photos since a split was written."""

    altered: tuple[str, ...] = ()  # the same path, another content
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()  # the same content, from this path to that one
    relabelled: tuple[str, ...] = ()  # the same content, another class

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(astuple(self))


# ---- making a split -----------------------------------------------------------------------------


def make(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 123,
    group_by: str | None = None,
    keras: bool = False,
    look: Look | None = None,
) -> tuple[Record, ...]:
    """Split the photos of a folder or a CSV, write the split to `out`, and say what it is.

    Where `out` exists it is extended: the photos in it keep their places. `look` reads the photos
    and finds near duplicates; without it they are only hashed. `keras` takes Keras' own split
    instead of ours.
    """
    path, shares = Path(out), {"validation": validation, "test": test}
    refuse_shares(validation, test)
    if keras and (test or group_by):
        raise FieldmarkError(
            "Keras' split has neither test photos nor groups: "
            "leave --test and --group-by out, or leave --article out."
        )
    _refuse_place(path, Path(source))
    before = _earlier(path, keras=keras)
    photos = list_article(source, instead="leave --article out") if keras else list_photos(source)
    files.refuse_among(path, data.reserved(photos, source))
    names = by_pattern(photos.paths, group_by) if group_by else ()
    say(listed(photos))
    looked = look(photos) if look else None
    hashes = looked.hashes if looked else sha256s(photos)
    together = looked.together if looked and not keras else ()
    if keras:
        records = article(photos, hashes, validation=validation, seed=seed)
    else:
        records = assign(
            photos,
            hashes,
            **shares,
            seed=seed,
            groups=names,
            twins=together,
            before=before,
        )
    write(path, records)
    if before:
        kept = many(len(before), "photo")
        say(f"{path} exists: its {kept} keep their places; new ones fill up the shares of all.")
        if differences := changes(before, photos, hashes):
            say(described(differences))
        if note := ungrouped(before, photos, differences, names):
            say(f"Note: {note}")
    say(table(records))
    for warning in warnings(records, together, shares, extended=bool(before)):
        say(f"Note: {warning}")
    say(f"Split: {path}")
    return records


def assign(
    photos: Photos,
    hashes: Sequence[str],
    *,
    validation: float,
    test: float,
    seed: int,
    groups: Sequence[str] = (),
    twins: Sequence[Sequence[int]] = (),
    before: Sequence[Record] = (),
) -> tuple[Record, ...]:
    """Place every photo, in the order of the photos; the shares are of each class.

    `hashes` and `groups` are one a photo, `twins` holds the indices of photos that belong
    together, `before` is an earlier split whose photos keep their places, and its groups hold. What
    folders or a CSV say comes first; a part that they lack and that is asked for is cut from their
    training photos.
    `docs/split.md` has the rules.
    """
    refuse_shares(validation, test)
    if photos.given and "training" not in photos.given:
        raise FieldmarkError(
            f"No photo of {photos.folder} is given to training: say which ones are."
        )
    shares = _shares(photos, validation, test)
    said = (groups, photos.groups)
    units = _units(hashes, said, _recorded(photos, hashes, before), twins, seed)
    kept, likely = _kept(photos, hashes, before, shares)
    # A given split is final: there photos follow only to the parts that are still to be made.
    places = _follow(units, kept, likely, shares if photos.given else SPLITS)
    # Of a split that is given, only the training photos are cut.
    counted = [not photos.given or given == "training" for given in photos.given or photos.paths]
    filled = strata.fill(units, photos.labels, places, shares, counted=counted)
    names = {i: unit.name for unit in units for i in unit.members}
    return tuple(
        Record(
            path=path,
            label=photos.classes[photos.labels[i]],
            split=filled[i],
            group=names[i],
            sha256=hashes[i],
        )
        for i, path in enumerate(photos.paths)
    )


def article(
    photos: Photos, hashes: Sequence[str], *, validation: float, seed: int
) -> tuple[Record, ...]:
    """Return Keras' own split of what `list_article` lists, file for file, without TensorFlow.

    `image_dataset_from_directory` shuffles all files by the seed and holds the last ones out
    (`index_directory` and `get_training_or_validation_split` in keras/src/utils/dataset_utils.py,
    Keras 3.15). It has no strata, no groups and no test photos.
    """
    held_out = int(validation * len(photos))
    if not 0 < held_out < len(photos):
        raise FieldmarkError(
            f"A validation share of {validation:g} leaves {held_out} of {len(photos)} photos to "
            "validate on: take a share between 0 and 1 that leaves some on both sides."
        )
    if not 0 <= seed < 2**32:
        raise FieldmarkError(f"The seed {seed} is none for Keras: take 0 to {2**32 - 1}.")
    order = list(range(len(photos)))
    # The generator that Keras uses; numpy's newer ones shuffle otherwise.
    np.random.RandomState(seed).shuffle(order)
    chosen = frozenset(order[-held_out:])
    return tuple(
        Record(
            path=path,
            label=photos.classes[photos.labels[i]],
            split="validation" if i in chosen else "training",
            group="",
            sha256=hashes[i],
        )
        for i, path in enumerate(photos.paths)
    )


def by_pattern(paths: Sequence[str], pattern: str) -> tuple[str, ...]:
    """Return the group of each path: what a regular expression finds in the file's name.

    It is the first part in brackets, or all that matches; "" where nothing does. Raises a
    `FieldmarkError` for a pattern that is none, matches nothing or makes one group of all.
    """
    try:
        expression = re.compile(unicodedata.normalize("NFC", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise FieldmarkError(
            f"--group-by {pattern!r} is not a regular expression ({error}): "
            "'(.+)__' takes what stands before two underscores."
        ) from error
    groups = []
    for path in paths:
        name = unicodedata.normalize("NFC", path.rpartition("/")[2])
        found = expression.search(name)
        groups.append((found[1 if expression.groups else 0] or "") if found else "")
    if not any(groups):
        raise FieldmarkError(
            f"--group-by {pattern!r} matches no photo's name, such as {paths[0]!r}: change it."
        )
    if len(paths) > 1 and len({*groups}) == 1:
        raise FieldmarkError(
            f"--group-by {pattern!r} puts all {len(paths)} photos into the group {groups[0]!r}, "
            "which cannot be split: let it match what differs between groups."
        )
    return tuple(groups)


def refuse_shares(validation: float, test: float) -> None:
    """Raise for shares that leave nothing to train on."""
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise FieldmarkError(
            f"Shares of {validation:g} for validation and {test:g} for test leave no photos to "
            "train on: take shares from 0 on that come to less than 1 together."
        )


# ---- reading, writing, comparing ----------------------------------------------------------------


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a split as a CSV, whole or not at all."""
    with (
        files.whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as f,
    ):
        writer = csv.DictWriter(f, [each.name for each in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def read(path: Path) -> tuple[Record, ...]:
    """Return the rows of a split; raises a `FieldmarkError` that names what is wrong, and where."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError as error:
        raise FieldmarkError(f"There is no split {path}: `fieldmark split` writes one.") from error
    except OSError as error:
        raise FieldmarkError(
            f"{path} cannot be read ({error.strerror}): check the path."
        ) from error
    if kind in data.SPECIAL:
        raise FieldmarkError(f"{path} {data.SPECIAL[kind]}: name a file.")
    names = [each.name for each in fields(Record)]
    records, lines = list[Record](), dict[str, int]()
    for line, row in tables.read_table(path, names):
        if not row["path"] or not row["label"]:
            raise FieldmarkError(f"Line {line} of {path} lacks a path or a label: fill it in.")
        word = split_word(row["split"])
        if word is None:
            raise FieldmarkError(
                f"Line {line} of {path} has the split {row['split']!r}: "
                f"use {', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
            )
        if not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
            raise FieldmarkError(
                f"Line {line} of {path} has the sha256 {row['sha256']!r}, which is none: "
                "take the split as it was written."
            )
        first = lines.setdefault(row["path"], line)
        if first != line:
            raise FieldmarkError(
                f"Lines {first} and {line} of {path} are about one photo, {row['path']}: "
                "take one of them away."
            )
        records.append(Record(**{**row, "split": word}))  # type: ignore[arg-type]
    if not records:
        raise FieldmarkError(f"{path} holds no photo: `fieldmark split` writes a split.")
    return tuple(records)


def changes(records: Sequence[Record], photos: Photos, hashes: Sequence[str]) -> Changes:
    """Compare a split with the photos as they are now."""
    was = {record.path: record for record in records}
    now = dict(zip(photos.paths, hashes, strict=True))
    label = {path: photos.classes[i] for path, i in zip(photos.paths, photos.labels, strict=True)}
    same = {path for path, sha256 in now.items() if path in was and was[path].sha256 == sha256}
    gone = defaultdict[str, list[str]](list)  # contents that are no longer where they were
    for path in sorted(was.keys() - same, reverse=True):
        gone[was[path].sha256].append(path)
    moved = []
    for path in sorted(now.keys() - same):
        if gone[now[path]]:
            moved.append((gone[now[path]].pop(), path))
    left, come = {old for old, _ in moved} | same, {new for _, new in moved} | same
    altered = (now.keys() - come) & (was.keys() - left)
    stayed = [*((path, path) for path in same), *moved]
    return Changes(
        altered=tuple(sorted(altered)),
        missing=tuple(sorted(was.keys() - left - altered)),
        new=tuple(sorted(now.keys() - come - altered)),
        moved=tuple(moved),
        relabelled=tuple(sorted(new for old, new in stayed if was[old].label != label[new])),
    )


def leaks(records: Sequence[Record], twins: Sequence[Sequence[int]] = ()) -> tuple[Leak, ...]:
    """Return pairs that belong together and lie on two sides.

    `twins` holds indices of near duplicates, as pairs or groups. Of many photos that belong
    together each one off the training side is paired with one on it.
    """
    found: dict[tuple[int, int], Leak] = {}
    for why, together in (
        ("the same bytes", _alike([record.sha256 for record in records])),
        ("nearly the same photo", twins),
        ("the same group", _alike([record.group for record in records])),
    ):
        for members in together:
            home = min(members, key=lambda i: (SPLITS.index(records[i].split), records[i].path))
            for i in members:
                if records[i].split != records[home].split:
                    sides = (records[home].split, records[i].split)
                    leak = Leak(records[home].path, records[i].path, why, sides)
                    found.setdefault((home, i), leak)
    return tuple(found.values())


# ---- for people ---------------------------------------------------------------------------------


def listed(photos: Photos) -> str:
    """Say what a source holds, and what of it is odd."""
    text = f"Photos: {len(photos)} in {len(photos.classes)} classes"
    if others := data.left_out(photos):
        text += f" (not read: {others})"
    if photos.given:
        parts = Counter(photos.given)
        shown = ", ".join(f"{parts[split]} {split}" for split in SPLITS if parts[split])
        text += f"; their split is given: {shown}"
    notes = [note] if (note := taken_for_classes(photos)) else []
    notes += [f"{name} is a class, and holds folders that are classes" for name in nested(photos)]
    notes += [
        f"{', '.join(names)} are {len(names)} classes whose names some systems take for the same"
        for names in alike(photos.classes)
    ]
    return "\n".join([text, *(f"Note: {note}." for note in notes)])


def table(records: Sequence[Record]) -> str:
    """Return a table of photos, class by split."""
    counts = Counter((record.label, record.split) for record in records)
    classes = sorted({record.label for record in records})
    shown = [split for split in SPLITS if split != "test" or any(s == "test" for _, s in counts)]
    rows = [["class", *shown, "all"]]
    for label in classes[:ROWS]:
        numbers = [counts[label, split] for split in shown]
        rows.append([printable(label), *map(str, numbers), str(sum(numbers))])
    if len(classes) > ROWS:
        rows.append([f"and {len(classes) - ROWS} more", *("" for _ in shown), ""])
    sums = [sum(counts[label, split] for label in classes) for split in shown]
    rows.append(["all", *map(str, sums), str(len(records))])
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0]
        + " " * (widths[0] - cell_len(row[0]))
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def warnings(
    records: Sequence[Record],
    groups: Sequence[Sequence[int]] = (),
    shares: Mapping[str, float] | None = None,
    *,
    extended: bool = False,
) -> tuple[str, ...]:
    """Return what whoever trains by a split should know, a sentence each.

    `groups` holds the indices of near duplicates; `shares` are those of validation and test that
    were asked for: of these parts it is said where they are empty, which in a split that was
    `extended` has another reason.
    """
    there = {(record.label, record.split) for record in records}
    classes = sorted({record.label for record in records})
    parts = {record.split for record in records}
    notes = []
    for split in SPLITS:
        without = [label for label in classes if (label, split) not in there]
        if split in parts and without:
            notes.append(f"no {split} photos in {_some(without)}.")
        elif split not in parts and (shares or {}).get(split, 0):
            grouped = any(record.group for record in records)
            why = "the groups are too large" if grouped else "the photos are too few"
            why = "those of the earlier split keep their places" if extended else why
            notes.append(f"no {split} photos: {why}.")
    labels = defaultdict[str, set[str]](set)
    for record in records:
        labels[record.group].add(record.label)
    across = sorted(group for group, of in labels.items() if group and len(of) > 1)
    if across:
        notes.append(f"{many(len(across), 'group')} of more than one class: {_some(across)}.")
    pairs = defaultdict[str, list[str]](list)
    for leak in leaks(records, groups):
        sides = f"{leak.first} ({leak.splits[0]}), {leak.second} ({leak.splits[1]})"
        pairs[leak.why].append(sides)
    for why, shown in pairs.items():
        notes.append(f"{many(len(shown), 'pair')} on two sides, {why}: {_some(shown, '; ')}.")
    return tuple(notes)


def described(differences: Changes) -> str:
    """Say in one sentence what has changed since a split was written; "" where nothing has."""
    moves = [f"{old} -> {new}" for old, new in differences.moved]
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for names, what in (
            (differences.new, "new"),
            (differences.altered, "altered"),
            (differences.missing, "missing"),
            (moves, "moved"),
            (differences.relabelled, "in another class"),
        )
        if names
    ]
    return f"Photos since the split was written: {'; '.join(parts)}." if parts else ""


def ungrouped(
    records: Sequence[Record], photos: Photos, differences: Changes, groups: Sequence[str]
) -> str:
    """Say where the groups of an earlier split are unknown for new photos; "" where they are not.

    `groups` are those that `by_pattern` found.
    """
    named = any(record.group and not record.group.startswith(ALIKE) for record in records)
    if named and differences.new and not groups and not photos.groups:
        return "the earlier split was grouped: give --group-by again, or new photos stand alone."
    return ""


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - NAMED
    return separator.join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


# ---- what must not be parted --------------------------------------------------------------------


def _units(
    hashes: Sequence[str],
    said: Sequence[Sequence[str]],
    recorded: Sequence[str],
    twins: Iterable[Sequence[int]],
    seed: int,
) -> list[Unit]:
    """Join the photos that share content, the name of a group, or a near duplicate.

    `said` are the groups that the pattern and the CSV give, `recorded` those of an earlier split.
    """
    named = defaultdict[str, list[int]](list)
    for names in (*said, recorded):
        for i, name in enumerate(names):
            if name:
                named[name].append(i)
    pairs = (
        (first, other)
        for together in (_alike(hashes), named.values(), twins)
        for first, *others in together
        for other in others
    )
    members = duplicates.groups(len(hashes), pairs)
    joined = {i for of in members for i in of}
    members += [(i,) for i in range(len(hashes)) if i not in joined]
    return [_unit(of, hashes, said, recorded, seed) for of in members]


def _unit(
    members: tuple[int, ...],
    hashes: Sequence[str],
    said: Sequence[Sequence[str]],
    recorded: Sequence[str],
    seed: int,
) -> Unit:
    smallest = min(hashes[i] for i in members)
    found = set[str]()
    for i in members:
        own = {of[i] for of in said if of and of[i]}
        # What was recorded may be the name of several groups: it serves where nothing else is said.
        found |= own or {name for name in recorded[i : i + 1] if not name.startswith(ALIKE)} - {""}
    names = sorted(found)
    name = names[0] if names else f"{ALIKE}{smallest[:12]}" if len(members) > 1 else ""
    if len(names) > 1:  # near duplicates tie these groups together
        name = " + ".join(names) if len(names) < 4 else f"{name} + {len(names) - 1} more"
    key = hashlib.sha256(f"{seed}:{smallest}".encode()).hexdigest()
    return Unit(members, key, name)


def _alike(values: Sequence[str]) -> list[list[int]]:
    """Return the indices of equal values, where there are two and they are not empty."""
    indices = defaultdict[str, list[int]](list)
    for i, value in enumerate(values):
        if value:
            indices[value].append(i)
    return [of for of in indices.values() if len(of) > 1]


# ---- what has its place already -----------------------------------------------------------------


def _recorded(photos: Photos, hashes: Sequence[str], before: Sequence[Record]) -> list[str]:
    """Return the group that an earlier split has for each photo: by its content, then its path."""
    if not before:
        return []
    there = {*hashes}
    by_content = {record.sha256: record.group for record in before}
    # Whose content lies elsewhere now was moved, and another photo has its path.
    by_path = {record.path: record.group for record in before if record.sha256 not in there}
    return [
        by_content.get(sha256, by_path.get(path, ""))
        for path, sha256 in zip(photos.paths, hashes, strict=True)
    ]


def _shares(photos: Photos, validation: float, test: float) -> dict[Split, Fraction]:
    """Return the share of each part that is still to be made; training is always among them."""
    asked = {"validation": validation, "test": test}
    cut: dict[Split, Fraction] = {
        split: Fraction(str(asked[split]))  # 0.2 is a fifth, which no binary number is
        for split in SPLITS[1:]
        if asked[split] and split not in photos.given
    }
    return {"training": 1 - sum(cut.values(), Fraction(0)), **cut}


def _kept(
    photos: Photos, hashes: Sequence[str], before: Sequence[Record], shares: dict[Split, Fraction]
) -> tuple[list[Split | None], list[Split | None]]:
    """Return the place that each photo has for certain, and the one that its path has had."""
    by_both = {(record.path, record.sha256): record.split for record in before}
    by_path = {record.path: record.split for record in before}
    by_content = defaultdict[str, set[Split]](set)
    for record in before:
        by_content[record.sha256].add(record.split)
    kept = list[Split | None]()
    for i, (path, sha256) in enumerate(zip(photos.paths, hashes, strict=True)):
        sides = by_content.get(sha256, set())
        place = by_both.get((path, sha256)) or ("training" if len(sides) > 1 else None)
        place = place or next(iter(sides), None)
        if photos.given:  # comes first; of the training photos a part may have been cut before
            free = photos.given[i] == "training" and len(shares) > 1
            place = (place if place in shares else None) if free else photos.given[i]
        kept.append(place)
    return kept, [by_path.get(path) for path in photos.paths]


def _follow(
    units: Iterable[Unit],
    kept: Sequence[Split | None],
    likely: Sequence[Split | None],
    parts: Collection[Split],
) -> list[Split | None]:
    """Place new photos beside those of their unit that have a place.

    Of a unit that lies on two sides, or not in `parts`, they go to training. A photo that was
    altered stays where its path was, if no other photo of its unit says otherwise.
    """
    places = list(kept)
    for unit in units:
        new = [i for i in unit.members if places[i] is None]
        sides = {place for i in unit.members if (place := kept[i])}
        sides = sides or {place for i in new if (place := likely[i])}
        if new and sides:
            place = sides.pop() if len(sides) == 1 else "training"
            for i in new:
                places[i] = place if place in parts else "training"
    return places


# ---- what `make` refuses ------------------------------------------------------------------------


def _earlier(path: Path, *, keras: bool) -> tuple[Record, ...]:
    """Return the split that is to be extended, where there is one."""
    if not path.exists():
        return ()
    if keras:
        raise FieldmarkError(
            f"{path} exists already, and Keras' split cannot be extended: name another file."
        )
    with files.writing(path), path.open("rb") as file:
        head = file.read(1000).replace(b"\0", b"").lower()  # it may be in UTF-16
    if b"sha256" not in head:
        raise FieldmarkError(f"{path} exists and is no split: name another file.")
    known = {field.name for field in fields(Record)}
    if own := [name for name in tables.columns(path, ("path", "sha256")) if name not in known]:
        raise FieldmarkError(
            f"{path} exists and has columns that no split has ({', '.join(own)}), which would be "
            "lost: name another file."
        )
    return read(path)


def _refuse_place(out: Path, source: Path) -> None:
    """Raise where no split can be written, or over the list of photos."""
    with files.writing(out):
        try:
            kind = stat.S_IFMT(out.stat().st_mode)
        except FileNotFoundError:
            kind = 0
        if kind in data.SPECIAL:
            raise FieldmarkError(f"{out} {data.SPECIAL[kind]}: name a file.")
        if os.path.realpath(out) == os.path.realpath(source):
            raise FieldmarkError(f"{out} is the list of photos itself: name another file.")
    files.require_folder(out.parent)
