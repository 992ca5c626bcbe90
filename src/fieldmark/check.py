"""The doctor: a folder of photos -> what is wrong with it, and what to do about each finding.

In: what `list_photos` takes, and a split where there is one. Out: a `Report`, which `sheet` prints
and writes; every file is read once and accounted for, and nothing is written to the folder. `quick`
is the part that `fieldmark train` begins with.

    fieldmark check PHOTOS --split RUN --csv photos.csv --html photos.html --strict
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fieldmark import data, duplicates, files, images, quality, run, split
from fieldmark.console import many
from fieldmark.data import NAMED_PHOTO, Photos
from fieldmark.errors import FieldmarkError
from fieldmark.findings import (
    EXTREME,
    FEW,
    KINDS,
    RESULT,
    TINY,
    Case,
    Finding,
    Interval,
    Report,
    Seen,
    wilson,
)
from fieldmark.formats import LIMITS, UnreadableImage
from fieldmark.sheet import refuse_places
from fieldmark.threads import spread

UNBALANCED = 5.0  # largest class to smallest: of two classes, always naming one is 83 % right
FEWEST = 2  # photos of a class: one to train on, one to validate on
VALIDATION = 0.2  # the share that `fieldmark split` holds out, where no split is given
# What helps where the split is a file, which need not stay as it is.
ANEW = (
    "Write a new split to another file with fieldmark split, which keeps copies and groups "
    "together and gives each class photos to train on."
)


@dataclass(frozen=True)
class Quick:
    """What a training must know of its photos before it begins."""

    hashes: tuple[str, ...]  # sha256, one a photo
    together: tuple[tuple[int, ...], ...]  # groups of equal and nearly equal photos, by index


# ---- what others call ---------------------------------------------------------------------------


def check(
    source: str | os.PathLike[str],
    *,
    split: str | os.PathLike[str] | None = None,
    outputs: Iterable[Path | None] = (),
) -> Report:
    """Read every photo of a folder or a CSV and report what is found.

    `split` is a split's file or a run with one. `outputs` are the files that will be written
    afterwards: a place that cannot be is refused before the work. Raises a `FieldmarkError` where
    there is no photo at all.
    """
    root = Path(source)
    records = _records(Path(split)) if split is not None else ()
    photos, trouble = _listed(root)
    places = [path for path in outputs if path]
    for path in places:
        if run.is_run(path.parent):
            raise FieldmarkError(f"{path} lies in a run: name a file elsewhere.")
    refuse_places(places, root, photos, split)
    return examine(photos, source=root, records=records, trouble=trouble)


def examine(
    photos: Photos,
    *,
    source: Path | None = None,
    records: Sequence[split.Record] = (),
    trouble: str = "",
) -> Report:
    """Report on photos that are listed already; `trouble` is why no classifier can be trained."""
    source = source or photos.folder
    seen = _read(photos, _measured)
    differ = _differences(records, photos, seen)
    seen = _placed(seen, records, differ)
    files = sorted([*seen, *_left_out(photos)], key=lambda each: each.path)
    used = [each for each in seen if each.kind == "used"]
    families = _families(used)
    alike = {used[i].path: n for n, of in enumerate(families, start=1) for i in of.members}
    cut = not records and "validation" not in photos.given  # a training cuts its own
    held_out = _held_out(photos.classes, used, cut=cut)
    found = [
        *_listing_cases(photos, trouble),
        *_file_cases(files),
        *_family_cases(used, families),
        *_group_cases(used, alike),
        *_split_cases(differ),
        *_class_cases(photos.classes, used, held_out),
        *_photo_cases(used),
    ]
    # What folders or a CSV say, a new split would say again.
    advised = dict.fromkeys(("leak", "untaught"), ANEW) if records and not photos.given else {}
    return Report(
        source=source,
        folder=photos.folder,
        files=tuple(files),
        classes=photos.classes,
        linked=photos.linked,
        findings=_findings(found, advised),
        intervals=_intervals(held_out),
        assumed=cut,
        alike=alike,
        reserved=data.reserved(photos, source),
    )


def quick(photos: Photos) -> Quick:
    """Read all photos once, and refuse what a training would choke on.

    All that cannot be read are named in one `FieldmarkError`, those that are photos by their name
    only too, and so are the classes with fewer than two photos.
    """
    seen = _read(photos, _decoded)
    unreadable = [each for each in _left_out(photos) if each.kind == "unreadable"]
    data.refuse_bad(photos, ((each.path, each.why) for each in (*seen, *unreadable)))
    sizes = Counter(photos.labels)
    small = [name for label, name in enumerate(photos.classes) if sizes[label] < FEWEST]
    if small:
        raise FieldmarkError(
            f"{', '.join(small)} in {photos.folder} {'has' if len(small) == 1 else 'have'} fewer "
            f"than {FEWEST} photos, so that none can be held out: add photos, or take the class "
            "away."
        )
    return Quick(
        tuple(each.sha256 for each in seen),
        tuple(family.members for family in _families(seen)),
    )


# ---- the listing --------------------------------------------------------------------------------


def _listed(root: Path) -> tuple[Photos, str]:
    """List the photos; where they make no classifier, list them all the same and say why not."""
    try:
        return data.list_photos(root), ""
    except FieldmarkError as error:
        if not files.is_folder(root):
            raise
        photos = data.list_loose(root)
        if not photos.paths and not any(each.kind == "unreadable" for each in photos.left_out):
            raise
        return photos, _trouble(photos, error)


def _trouble(photos: Photos, error: FieldmarkError) -> str:
    """Say in a line why no classifier can be trained on the photos of a folder."""
    if not photos.paths:
        return "none of its photos can be read"
    if photos.classes == ("",):
        return "the photos lie in the folder itself, in no class folder"
    if len(photos.classes) == 1:
        return f"all photos are of the one class {photos.classes[0]}"
    if any(map(_unwritable, photos.paths)):
        return ""  # they are a finding of their own
    return str(error).partition("\n")[0]


def _left_out(photos: Photos) -> list[Seen]:
    """Return the files that are no photos; an empty folder is no file."""
    return [
        Seen(each.path, kind=each.kind, why=each.why)
        for each in photos.left_out
        if each.kind != "empty"
    ]


def _records(place: Path) -> tuple[split.Record, ...]:
    """Read a split from its file, or from the run that it was made for."""
    return split.read(run.open_run(place).split if files.is_folder(place) else place)


def _unwritable(name: str) -> bool:
    """Say whether a name is one that `list_photos` refuses."""
    return "\n" in name or "\r" in name or any("\ud800" <= sign <= "\udfff" for sign in name)


# ---- reading ------------------------------------------------------------------------------------

Look = Callable[[bytes], Iterator[tuple[str, Any]]]  # a file's content -> fields of `Seen`


def _read(photos: Photos, look: Look) -> list[Seen]:
    """Look at every photo on many threads; what is kept of each is small."""

    def one(i: int) -> Seen:
        path = photos.paths[i]
        label = photos.classes[photos.labels[i]]
        kept: dict[str, Any] = {"label": label}
        if photos.given:
            kept["split"] = photos.given[i]
        if photos.groups:
            kept["group"] = photos.groups[i]
        try:
            content = _content(photos.folder / path)
            kept |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, value in look(content):  # what is found before an error is kept
                kept[name] = value
        except UnreadableImage as error:
            kept |= {"kind": "unreadable", "why": str(error)}
        except OSError as error:
            why = f"cannot be opened ({error.strerror or error})"
            kept |= {"kind": "unreadable", "why": why}
        return Seen(path, **kept)

    return list(spread(one, range(len(photos)), "Checking photos"))


def _content(path: Path) -> bytes:
    """Read a file, unless it is larger than any photo may be, or none: a pipe is never done."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise UnreadableImage(data.SPECIAL.get(stat.S_IFMT(facts.st_mode), "is no file"))
    if facts.st_size > LIMITS.bytes:
        raise UnreadableImage(f"is larger than {LIMITS.bytes / 1e6:g} MB")
    return path.read_bytes()


def _measured(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield all that is reported of a photo."""
    yield "facts", images.inspect(content)
    pixels = images.decode(content, at_least=quality.SIDE)
    yield "measures", quality.measure(pixels)
    yield "fingerprint", duplicates.fingerprint(pixels)


def _decoded(content: bytes) -> Iterator[tuple[str, Any]]:
    """Decode a photo as small as may be, only to know whether it can be and is there twice."""
    pixels = images.decode(content, at_least=2 * duplicates.SIDE)
    yield "fingerprint", duplicates.fingerprint(pixels)


# ---- the split ----------------------------------------------------------------------------------


def _differences(
    records: Sequence[split.Record], photos: Photos, seen: Sequence[Seen]
) -> split.Changes:
    """Compare a split, where there is one, with the photos."""
    # A photo that cannot be read has a finding of its own, and may have no hash.
    was = {record.path: record.sha256 for record in records}
    hashes = [each.sha256 or was.get(each.path, "") for each in seen]
    return split.changes(records, photos, hashes) if records else split.Changes()


def _placed(seen: list[Seen], records: Sequence[split.Record], differ: split.Changes) -> list[Seen]:
    """Give each photo the side and the group that a split has for it; new ones have none.

    A photo is known by its path and content, then by its content, as `fieldmark split` knows it
    when it extends a split; an altered one by its path.
    """
    if not records:
        return seen
    was = {record.path: record for record in records}
    came = {new: old for old, new in differ.moved}
    # Of a content on several sides training counts, and so comes last.
    by_side = sorted(records, key=lambda record: -split.SPLITS.index(record.split))
    by_content = {record.sha256: record for record in by_side}
    placed = []
    for each in seen:
        record = was.get(came.get(each.path, each.path))
        if each.sha256 and not (record and record.sha256 == each.sha256):
            record = by_content.get(each.sha256, record)
        side, group = (record.split, record.group) if record else ("", "")
        placed.append(replace(each, split=side, group=group or each.group))
    return placed


# ---- the same photo twice -----------------------------------------------------------------------

WORDS = {"resized": "resized or recompressed"}  # what `duplicates` calls resized is either


@dataclass(frozen=True)
class _Family:
    """Photos that are the same, or nearly; the indices are of the photos used."""

    members: tuple[int, ...]
    near: bool  # not all of them have the same bytes
    what: str  # "the same bytes", "mirrored"


def _families(used: Sequence[Seen]) -> list[_Family]:
    """Find the photos that are the same, or nearly."""
    by_hash = defaultdict[str, list[int]](list)
    for i, seen in enumerate(used):
        by_hash[seen.sha256].append(i)
    # One photo of each content is enough to compare.
    first = [(of[0], print_) for of in by_hash.values() if (print_ := used[of[0]].fingerprint)]
    twins = duplicates.twins([print_ for _, print_ in first])
    pairs = [(of[0], other) for of in by_hash.values() for other in of[1:]]
    pairs += [(first[twin.first][0], first[twin.second][0]) for twin in twins]
    kinds = defaultdict[int, set[str]](set)
    for twin in twins:
        kinds[first[twin.first][0]].add(twin.kind)
        kinds[first[twin.second][0]].add(twin.kind)
    families = []
    for members in duplicates.groups(len(used), pairs):
        near = {WORDS.get(kind, kind) for i in members for kind in kinds[i]}
        same = len({used[i].sha256 for i in members}) < len(members)
        words = (["the same bytes"] if same else []) + sorted(near)
        families.append(_Family(members, bool(near), ", ".join(words)))
    return families


# ---- the findings -------------------------------------------------------------------------------

Cases = Iterator[tuple[str, Case]]  # each with the kind of its finding


def _findings(cases: Iterable[tuple[str, Case]], advised: Mapping[str, str]) -> tuple[Finding, ...]:
    """Put the cases of each kind together, the most severe kind first."""
    by_kind = defaultdict[str, list[Case]](list)
    for kind, case in cases:
        by_kind[kind].append(case)
    return tuple(
        Finding(kind, tuple(by_kind[kind]), advised.get(kind, ""))
        for kind in sorted(by_kind, key=list(KINDS).index)
    )


def _listing_cases(photos: Photos, trouble: str) -> Cases:
    """Yield what the listing alone shows."""
    if trouble:
        yield "untrainable", Case((), trouble)
    for path in filter(_unwritable, photos.paths):
        yield "unwritable", Case((path,))
    for path in photos.linked:
        yield "linked", Case((path,))
    for each in photos.left_out:
        if each.kind == "empty":
            yield "empty", Case((each.path,))
    for name in data.nested(photos):
        if name:
            yield "nested", Case((name,))
    for names in data.alike(photos.classes):
        yield "alike names", Case(names)


def _file_cases(files: Iterable[Seen]) -> Cases:
    """Yield the files that are not used, those of one reason together."""
    for seen in sorted(files, key=lambda seen: seen.why):
        if seen.why == data.LOOSE:
            yield "loose", Case((seen.path,))
        elif seen.kind != "used":
            yield seen.kind, Case((seen.path,), seen.why)


def _family_cases(used: Sequence[Seen], families: Iterable[_Family]) -> Cases:
    """Yield conflicts, leaks, and the duplicates that are neither."""
    for family in families:
        of = [used[i] for i in family.members]
        conflict = len({seen.label for seen in of}) > 1
        leak = len({seen.split for seen in of if seen.split}) > 1
        if conflict:
            yield "conflict", Case(_apart(of, "label"), family.what)
        if leak:
            yield "leak", Case(_apart(of, "split"), family.what)
        if not conflict and not leak:
            paths = tuple(seen.path for seen in of)
            yield "near duplicates" if family.near else "duplicates", Case(paths, family.what)


def _apart(of: Sequence[Seen], by: str) -> tuple[str, ...]:
    """Return the paths, first one a class or side: those are what there is to compare."""
    first = {getattr(seen, by): seen.path for seen in reversed(of) if getattr(seen, by)}
    return tuple(dict.fromkeys((*sorted(first.values()), *(seen.path for seen in of))))


def _group_cases(used: Iterable[Seen], alike: Mapping[str, int]) -> Cases:
    """Yield the groups that lie on two sides, but for those that are copies and a leak already."""
    by_group = defaultdict[str, list[Seen]](list)
    for seen in used:
        if seen.group and seen.split:
            by_group[seen.group].append(seen)
    for name, of in by_group.items():
        copies = {alike.get(seen.path, 0) for seen in of}
        if len({seen.split for seen in of}) > 1 and (0 in copies or len(copies) > 1):
            yield "leak", Case(_apart(of, "split"), f"the same group, {name}")


def _split_cases(differ: split.Changes) -> Cases:
    """Yield what differs between a split and the photos."""
    for what, paths in (
        ("is new", differ.new),
        ("has another content", differ.altered),
        ("is missing", differ.missing),
    ):
        for path in paths:
            yield "changed", Case((path,), what)
    for old, new in differ.moved:
        yield "changed", Case((new,), f"was {old}")
    for path in differ.relabelled:
        yield "changed", Case((path,), "has another class")


def _class_cases(
    classes: Sequence[str], used: Sequence[Seen], held_out: Mapping[str, int]
) -> Cases:
    """Yield what is wrong with the sizes of the classes."""
    if len(classes) < 2:
        return  # that is a finding of its own
    sizes = Counter(seen.label for seen in used)
    # A photo that no split has yet goes where its class lacks one.
    to_train = {seen.label for seen in used if seen.split in ("training", "")}
    for name in classes:
        if not sizes[name]:
            yield "unread", Case((name,))
        elif name not in to_train:
            yield "untaught", Case((name,), f"has {many(sizes[name], 'photo')}, none to train on")
        elif sizes[name] < FEWEST:
            yield "lonely", Case((name,))
        elif held_out[name] < FEW:
            yield "few", Case((name,), f"has {held_out[name]} to validate on")
    if sizes and max(sizes.values()) >= UNBALANCED * min(sizes.values()):
        most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        what = f"has {many(sizes[least], 'photo')}, {most} {sizes[most]:,}"
        yield "unbalanced", Case((least,), what)


def _photo_cases(used: Iterable[Seen]) -> Cases:
    """Yield what each photo shows by itself."""
    for seen in used:
        for kind, what in _oddities(seen):
            yield kind, Case((seen.path,), what)


def _oddities(seen: Seen) -> Iterator[tuple[str, str]]:
    """Yield the kinds of finding that a photo shows by itself, each with its particulars."""
    facts = seen.facts
    if not facts or not seen.measures:
        return
    short, long = sorted((facts.width, facts.height))
    for fault in quality.faults(seen.measures):
        # On a photo of few pixels every edge is as wide as it is; that it is small is said anyway.
        if fault != "blurred" or short >= TINY:
            yield fault, ""
    size = f"{facts.width} x {facts.height}"
    suffix = PurePosixPath(seen.path).suffix.lower()
    if short < TINY:
        yield "tiny", f"is {size}"
    if long > EXTREME * short:
        yield "extreme", f"is {size}"
    if suffix and NAMED_PHOTO.get(suffix) != facts.format:
        yield "misnamed", f"says {NAMED_PHOTO.get(suffix, suffix)} and is {facts.format}"
    if facts.orientation != 1:
        yield "rotated", f"has orientation {facts.orientation}"
    if facts.bits > 8:
        yield "deep", f"has {facts.bits} bits"
    if facts.mode == "CMYK":
        yield "CMYK", ""
    if facts.frames > 1:
        yield "animated", f"has {facts.frames:,} frames"
    if facts.profile and "srgb" not in facts.profile.casefold():
        yield "profile", f"has {facts.profile}"


# ---- how sure a result can be -------------------------------------------------------------------


def _held_out(classes: Sequence[str], used: Iterable[Seen], *, cut: bool) -> dict[str, int]:
    """Return how many photos of each class there are to validate on.

    Where they are still to be `cut` it is a fifth of those to train on, and one at least of two, as
    `fieldmark split` has it.
    """
    sides = ("training", "") if cut else ("validation",)
    counts = Counter(seen.label for seen in used if seen.split in sides)
    if not cut:
        return {name: counts[name] for name in classes}
    return {name: max(round(VALIDATION * counts[name]), int(counts[name] > 1)) for name in classes}


def _intervals(held_out: Mapping[str, int]) -> tuple[Interval, ...]:
    """Return what a result means on all validation photos, and on the smallest class'."""
    if len(held_out) < 2 or not sum(held_out.values()):
        return ()
    least = min(held_out, key=held_out.__getitem__)
    pairs = (("all", sum(held_out.values())), (least, held_out[least]))
    return tuple(Interval(name, count, *wilson(RESULT, count)) for name, count in pairs)
