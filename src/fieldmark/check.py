"""The doctor: a folder of photos -> what is wrong with it, and what to do about each finding.

In: what `list_photos` takes, and a split where there is one. Every file is read once and
accounted for; nothing is written to the folder. Out: a `Report` of `Finding`s, as a table, as a CSV
with a row a file, as one self-contained HTML sheet with thumbnails. `quick` is the part that
`fieldmark train` begins with.

    fieldmark check PHOTOS --split RUN --csv photos.csv --html photos.html --strict
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import math
import os
import shutil
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib.resources import files as packaged
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from PIL import Image
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fieldmark import data, duplicates, files, images, quality, run, split
from fieldmark.console import meter
from fieldmark.data import LeftOut, Photos
from fieldmark.duplicates import Fingerprint
from fieldmark.errors import FieldmarkError
from fieldmark.formats import LIMITS, UnreadableImage
from fieldmark.quality import Measures

Severity = Literal["error", "warning", "note"]
In = TypeVar("In")
Out = TypeVar("Out")

TINY = 64  # pixels: a network's 224 would make more than three of each
EXTREME = 3.0  # long side to short: a crop loses two thirds, squashing triples one side
UNBALANCED = 5.0  # largest class to smallest: of two classes, always naming one is 83 % right
FEW = 5  # validation photos of a class: with fewer each one is worth more than 20 points
FEWEST = 2  # photos of a class: one to train on, one to validate on
VALIDATION = 0.2  # the share that `fieldmark split` holds out, where no split is given
SURE = 1.959964  # standard deviations: 95 % of a normal distribution lie within
RESULT = 0.8  # the accuracy for which an interval is given, as an example
NAMED = 3  # photos that the table names for each finding
NAMED_CLASSES = 10
SHOWN = 60  # photos of a finding that the sheet shows
SHOWN_OF_A_NOTE = 12
PICTURES = 400  # thumbnails in all: about 3 MB
THUMBNAIL = images.ImageSpec(size=160, mode="pad", interpolation="bilinear", scaling="0..255")
BARS = 40  # classes in the sheet's chart

# The formats by the extensions that name them.
NAMES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WebP", ".avif": "AVIF"},
}


@dataclass(frozen=True)
class Seen:
    """One file as it was met."""

    path: str  # relative to the folder, with forward slashes; a CSV's may be absolute
    label: str = ""  # the class; empty: it has none
    split: str = ""  # the part of the split that it lies in; empty: none
    why: str = ""  # why it is not used, a clause: "is cut off"; empty: it is used
    kind: str = "used"  # or "unreadable", "skipped", "hidden"
    bytes: int = 0
    sha256: str = ""
    facts: images.Facts | None = None
    measures: Measures | None = None
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True)
class Case:
    """Photos that show a finding together; of most findings it is one photo."""

    paths: tuple[str, ...]
    what: str = ""  # "is cut off", "the same bytes", "mirrored"


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, with every case of it."""

    kind: str
    severity: Severity
    title: str
    advice: str
    cases: tuple[Case, ...]

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The files concerned, each once."""
        return tuple(dict.fromkeys(path for case in self.cases for path in case.paths))

    @property
    def about_classes(self) -> bool:
        """Whether the paths of the cases are the names of classes."""
        return self.kind in ABOUT_CLASSES

    @property
    def grouped(self) -> bool:
        """Whether the cases are photos that belong side by side."""
        return any(len(case.paths) > 1 for case in self.cases)

    @property
    def count(self) -> str:
        """How many, for people: `6 in 3 groups`."""
        if self.about_classes:
            return _many(len(self.paths), "class", "classes")
        if not self.grouped:
            return f"{len(self.paths):,}" if self.paths else ""
        groups = "1 group" if len(self.cases) == 1 else f"{len(self.cases):,} groups"
        return f"{len(self.paths):,} in {groups}"


@dataclass(frozen=True)
class Interval:
    """What a result of `RESULT` would mean on so many photos."""

    name: str  # "all" or a class
    photos: int
    low: float
    high: float

    def __str__(self) -> str:
        """Write it as one clause."""
        return (
            f"{self.photos:,} photo{'' if self.photos == 1 else 's'}: a result of {RESULT:.0%} "
            f"means {100 * self.low:.0f} to {100 * self.high:.0f} %"
        ).replace("80%", "80 %")


@dataclass(frozen=True)
class Quick:
    """What a training must know of its photos before it begins."""

    hashes: tuple[str, ...]  # sha256, one a photo
    together: tuple[tuple[int, ...], ...]  # groups of equal and nearly equal photos, by index


@dataclass(frozen=True)
class Report:
    """All that was found in a folder of photos; made by `check`."""

    source: Path
    folder: Path
    files: tuple[Seen, ...]  # every file, used or not, sorted by path
    classes: tuple[str, ...]
    linked: tuple[str, ...]
    findings: tuple[Finding, ...]  # the most severe first
    intervals: tuple[Interval, ...]  # of all photos, and of the smallest class
    assumed: bool  # no split was given; the intervals are for a fifth
    alike: dict[str, int]  # a number a group of equal or nearly equal photos, by path

    @property
    def used(self) -> tuple[Seen, ...]:
        """The photos that can be trained on."""
        return tuple(seen for seen in self.files if seen.kind == "used")

    @property
    def serious(self) -> tuple[Finding, ...]:
        """The errors and warnings: what `--strict` exits with 1 for."""
        return tuple(finding for finding in self.findings if finding.severity != "note")

    @property
    def sizes(self) -> dict[str, int]:
        """How many photos of each class are used."""
        counts = Counter(seen.label for seen in self.used)
        return {name: counts[name] for name in self.classes}

    @property
    def account(self) -> str:
        """What became of every file, in one line; the counts add up."""
        counts = Counter(seen.kind for seen in self.files)
        parts = [f"{counts['used']:,} used"]
        parts += [f"{counts[k]:,} {k}" for k in ("unreadable", "skipped", "hidden") if counts[k]]
        line = f"{_many(len(self.files), 'file')}: {', '.join(parts)}"
        return line + (f"; {len(self.linked):,} by symbolic links" if self.linked else "")

    @property
    def balance(self) -> str:
        """How many photos the classes have, in one line."""
        sizes = self.sizes
        if not sizes:
            return "No class has a photo"
        most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        line = f"{_many(len(self.used), 'photo')} in {_many(len(sizes), 'class', 'classes')}"
        if sizes[most] == sizes[least]:
            return line + (f", {sizes[most]:,} in each" if len(sizes) > 1 else "")
        return (
            f"{line}, from {sizes[least]:,} ({_printable(least)}) "
            f"to {sizes[most]:,} ({_printable(most)})"
        )

    @property
    def verdict(self) -> str:
        """How the folder stands, in one sentence."""
        count = Counter(finding.severity for finding in self.findings)
        place = _printable(str(self.source))
        if count["error"]:
            also = f" and {_many(count['warning'], 'warning')}" if count["warning"] else ""
            return (
                f"{place} is not ready for training: {_many(count['error'], 'error')}{also}; "
                f"begin with: {self.findings[0].title[0].lower()}{self.findings[0].title[1:]}."
            )
        if count["warning"]:
            first = (
                "the warning first, for it weakens"
                if count["warning"] == 1
                else f"the {count['warning']} warnings first, for they weaken"
            )
            return f"{place} can be trained on; look at {first} the result."
        return f"{place} is in order" + ("; the notes need no action." if count["note"] else ".")

    def table(self, *, width: int | None = None, colour: bool | None = None) -> str:
        """Return the report for a terminal; as wide as it is, 100 columns where there is none."""
        return _table(self, width=width, colour=colour)

    def write_csv(self, path: Path) -> None:
        """Write a row a file, used or not, whole or not at all."""
        refuse_place(path, self)
        with (
            files.whole_file(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f,
        ):
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(_rows(self))

    def write_html(self, path: Path) -> None:
        """Write the sheet: one file with everything in it, whole or not at all."""
        refuse_place(path, self)
        page = _page(self)
        with files.whole_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


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
    _refuse_outputs([path for path in outputs if path], root, photos, split)
    return examine(photos, source=root, records=records, trouble=trouble)


def examine(
    photos: Photos,
    *,
    source: Path | None = None,
    records: Sequence[split.Record] = (),
    trouble: str = "",
) -> Report:
    """Report on photos that are listed already; `trouble` is why no classifier can be trained."""
    seen = _read(photos, _look, "Checking photos")
    sides = _sides(photos, records)
    seen = [_on_side(each, side) for each, side in zip(seen, sides, strict=True)]
    left = [_left_out(each) for each in photos.left_out if each.kind != "empty"]
    everything = tuple(sorted((*seen, *left), key=lambda each: each.path))
    used = [each for each in seen if each.kind == "used"]
    families = _families(used)
    found = [
        *_listing_findings(photos, trouble),
        *_file_findings(everything),
        *_family_findings(used, families),
        *_split_findings(photos, seen, records),
        *_class_findings(photos, used),
        *_photo_findings(used),
    ]
    return Report(
        source=source or photos.folder,
        folder=photos.folder,
        files=everything,
        classes=photos.classes,
        linked=photos.linked,
        findings=tuple(sorted(filter(None, found), key=_rank)),
        intervals=_intervals(photos.classes, used),
        assumed=not any(sides),
        alike={
            used[i].path: number
            for number, family in enumerate(families, start=1)
            for i in family.members
        },
    )


def quick(photos: Photos) -> Quick:
    """Read all photos once, and refuse what a training would choke on.

    All that cannot be read are named in one `FieldmarkError`, those that are photos by their name
    only too, and so are the classes with fewer than two photos.
    """
    seen = _read(photos, _decoded, "Checking photos")
    bad = [each for each in seen if each.why]
    bad += [_left_out(each) for each in photos.left_out if each.kind == "unreadable"]
    if bad:
        count = "1 file is not a photo" if len(bad) == 1 else f"{len(bad)} files are not photos"
        raise FieldmarkError(
            f"{count} that can be read; move them out of the folder and run again:\n"
            + "\n".join(f"  {photos.folder / each.path}: {each.why}" for each in bad)
        )
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


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was seen in `count` trials; 0 to 1 for none.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return 0.0, 1.0
    spread = SURE**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = SURE / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - reach, middle + reach


def refuse_place(path: Path, report: Report) -> None:
    """Raise where a file would be written among the photos, or over one of them."""
    _refuse_among(path, report.source, report.folder, (seen.path for seen in report.files))


# ---- the listing --------------------------------------------------------------------------------


def _listed(root: Path) -> tuple[Photos, str]:
    """List the photos; where they make no classifier, list them all the same and say why not."""
    try:
        return data.list_photos(root), ""
    except FieldmarkError as error:
        if not root.is_dir():
            raise
        photos = _unsorted(root)
        if not photos.paths and not any(each.kind == "unreadable" for each in photos.left_out):
            raise
        return photos, str(error)


def _unsorted(root: Path) -> Photos:
    """List the photos of a folder that `list_photos` refuses, those in no class folder too."""
    survey = data._survey(root)
    results = data._spread(lambda path: data._examine(root, path), survey.files, "Listing photos")
    found = [path for path, result in zip(survey.files, results, strict=True) if not result]
    labels = [path.rpartition("/")[0] for path in found]
    classes = sorted({*labels})
    others = [*survey.left_out, *(result for result in results if result)]
    return Photos(
        folder=root,
        classes=tuple(classes),
        paths=tuple(found),
        labels=tuple(classes.index(label) for label in labels),
        left_out=tuple(sorted(others, key=lambda each: each.path)),
        linked=tuple(sorted({*survey.links} - {each.path for each in others})),
    )


def _left_out(each: LeftOut) -> Seen:
    return Seen(path=each.path, kind=each.kind, why=each.why)


# ---- reading ------------------------------------------------------------------------------------


def _read(photos: Photos, look: Callable[[Path], Seen], description: str) -> list[Seen]:
    """Look at every photo on many threads; what is kept of each is small."""

    def one(i: int) -> Seen:
        path = photos.paths[i]
        seen = look(photos.folder / path)
        label = photos.classes[photos.labels[i]]
        return _changed(seen, path=path, label=label, kind="unreadable" if seen.why else "used")

    found = []
    with meter(description, len(photos)) as shown:
        for seen in _ahead(one, range(len(photos))):
            found.append(seen)
            shown.advance()
    return found


def _ahead(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Do the work on many threads, a few items ahead; the results in the items' order."""
    threads = os.cpu_count() or 1
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _content(path: Path) -> bytes:
    """Read a file, unless it is larger than any photo may be."""
    if path.stat().st_size > LIMITS.bytes:
        raise UnreadableImage(f"is larger than {LIMITS.bytes / 1e6:g} MB")
    return path.read_bytes()


def _look(path: Path) -> Seen:
    """Measure a photo, or say why it cannot be read."""
    kept: dict[str, Any] = {"path": ""}
    try:
        content = _content(path)
        kept |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        kept["facts"] = images.inspect(content)
        pixels = images.decode(content, at_least=quality.SIDE)
        kept["measures"] = quality.measure(pixels)
        kept["fingerprint"] = duplicates.fingerprint(pixels)
    except UnreadableImage as error:
        kept["why"] = str(error)
    except OSError as error:
        kept["why"] = f"cannot be opened ({error.strerror or error})"
    return Seen(**kept)


def _decoded(path: Path) -> Seen:
    """Decode a photo as small as may be, only to know whether it can be and is there twice."""
    try:
        content = _content(path)
        pixels = images.decode(content, at_least=2 * duplicates.SIDE)
    except UnreadableImage as error:
        return Seen("", why=str(error))
    except OSError as error:
        return Seen("", why=f"cannot be opened ({error.strerror or error})")
    return Seen(
        "",
        sha256=hashlib.sha256(content).hexdigest(),
        fingerprint=duplicates.fingerprint(pixels),
    )


def _changed(seen: Seen, **values: Any) -> Seen:
    return Seen(**{field.name: getattr(seen, field.name) for field in fields(Seen)} | values)


# ---- the split ----------------------------------------------------------------------------------


def _records(place: Path) -> tuple[split.Record, ...]:
    """Read a split from its file, or from the run that it was made for."""
    return split.read(run.open_run(place).split if place.is_dir() else place)


def _sides(photos: Photos, records: Sequence[split.Record]) -> list[str]:
    """Return the part of the split of each photo, "" for none; records come before folders."""
    place = {record.path: record.split for record in records}
    if place:
        return [place.get(path, "") for path in photos.paths]
    return list(photos.given) or [""] * len(photos)


def _on_side(seen: Seen, side: str) -> Seen:
    return _changed(seen, split=side) if side else seen


def _split_findings(
    photos: Photos, seen: Sequence[Seen], records: Sequence[split.Record]
) -> Iterator[Finding | None]:
    """Yield what differs between a split and the photos."""
    if not records:
        return
    # A photo that cannot be read has a finding of its own, and may have no hash.
    was = {record.path: record.sha256 for record in records}
    hashes = [each.sha256 or was.get(each.path, "") for each in seen]
    differ = split.changes(records, photos, hashes)
    cases = [
        *(Case((path,), "is new") for path in differ.new),
        *(Case((path,), "has another content") for path in differ.altered),
        *(Case((path,), "is missing") for path in differ.missing),
        *(Case((new,), f"was {_printable(old)}") for old, new in differ.moved),
        *(Case((path,), "has another class") for path in differ.relabelled),
    ]
    yield _finding("changed", cases)


# ---- the same photo twice -----------------------------------------------------------------------


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
        near = {kind for i in members for kind in kinds[i]}
        same = len({used[i].sha256 for i in members}) < len(members)
        words = (["the same bytes"] if same else []) + sorted(near)
        families.append(_Family(members, bool(near), ", ".join(words)))
    return families


def _family_findings(used: Sequence[Seen], families: Iterable[_Family]) -> Iterator[Finding | None]:
    """Yield conflicts, leaks, and the duplicates that are neither."""
    cases = defaultdict[str, list[Case]](list)
    for family in families:
        of = [used[i] for i in family.members]
        serious = {
            "conflict": len({seen.label for seen in of}) > 1,
            "leak": len({seen.split for seen in of if seen.split}) > 1,
        }
        kinds = [kind for kind, is_so in serious.items() if is_so]
        for kind in kinds or ["near duplicates" if family.near else "duplicates"]:
            cases[kind].append(Case(tuple(seen.path for seen in of), family.what))
    for kind in ("conflict", "leak", "duplicates", "near duplicates"):
        yield _finding(kind, cases[kind])


# ---- the findings -------------------------------------------------------------------------------

# What each finding is called, how severe it is and what to do about it; this is their order too.
KINDS: dict[str, tuple[Severity, str, str]] = {
    "untrainable": (
        "error",
        "No classifier can be trained on this folder as it is",
        "Sort the photos into one sub-folder a class, or list them in a CSV with the columns path "
        "and label; the line beside it says what is missing.",
    ),
    "unreadable": (
        "error",
        "Photos that cannot be read",
        "Fetch or export them again, or move them out of the folder; Keras' reader stops at the "
        "first one without naming it.",
    ),
    "conflict": (
        "error",
        "The same photo in two classes",
        "Decide which class is right and take the others away: the network is taught both.",
    ),
    "leak": (
        "error",
        "The same photo on two sides of the split",
        "Split again with fieldmark split, which keeps copies together, or take the copies "
        "away: what was trained on cannot test.",
    ),
    "lonely": (
        "error",
        "Classes of a single photo",
        "Add photos or take the class away: one photo cannot both train and validate.",
    ),
    "changed": (
        "warning",
        "Photos that are not as the split says",
        "Write the split again with fieldmark split, or bring the photos back that it was "
        "written for.",
    ),
    "loose": (
        "warning",
        "Photos that lie in no class folder",
        "Move them into the folder of their class: they are not used.",
    ),
    "duplicates": (
        "warning",
        "The same file more than once",
        "Keep one of each group: the others teach nothing and, parted by a split, flatter the "
        "result.",
    ),
    "near duplicates": (
        "warning",
        "Nearly the same photo more than once",
        "Look at the groups and keep the best of each, or let fieldmark split keep "
        "them on one side.",
    ),
    "few": (
        "warning",
        "Classes too small to evaluate",
        f"Add photos: with fewer than {FEW} to validate on, one photo more or less is over 20 "
        "points of that class' accuracy.",
    ),
    "unbalanced": (
        "warning",
        "Classes of very different sizes",
        "Look at the accuracy of each class, not at one figure for all; add photos to the small "
        "classes, or weight them.",
    ),
    "alike names": (
        "warning",
        "Classes whose names differ only in case or in spelling of the same letters",
        "Rename or merge them: on macOS and Windows they are one folder.",
    ),
    "nested": (
        "warning",
        "Classes whose folder holds the folders of other classes",
        "Move the photos or the folders so that each class has a folder of its own; Keras' reader "
        "would take all below a folder for one class.",
    ),
    "blank": (
        "warning",
        "Photos with nothing on them",
        "Look at them and take them away if they show nothing of their class.",
    ),
    "dark": (
        "warning",
        "Photos that are almost black",
        "Look at them and brighten or take away those on which you cannot tell the class.",
    ),
    "bright": (
        "warning",
        "Photos that are almost white",
        "Look at them and take away those on which you cannot tell the class.",
    ),
    "faint": (
        "warning",
        "Photos with hardly any contrast",
        "Look at them and take away those on which you cannot tell the class.",
    ),
    "blurred": (
        "warning",
        "Photos that are sharp nowhere",
        "Look at them and take away those on which you cannot tell the class.",
    ),
    "tiny": (
        "warning",
        f"Photos of less than {TINY} pixels on a side",
        "Use larger versions where there are any, or train at a small image size.",
    ),
    "extreme": (
        "warning",
        f"Photos more than {EXTREME:g} times as long as wide",
        "Crop them to what matters: squashing distorts them, and a central crop loses most.",
    ),
    "skipped": (
        "note",
        "Files that are no photos",
        "Nothing, unless you expected one of them to be used.",
    ),
    "hidden": (
        "note",
        "Hidden files",
        "Nothing, unless you expected one of them to be used.",
    ),
    "linked": (
        "note",
        "Symbolic links, which were followed",
        "Nothing; keep in mind that a copy of the folder may lose what they lead to.",
    ),
    "empty": (
        "note",
        "Empty folders",
        "Nothing, unless there should be photos in them: they make no class.",
    ),
    "misnamed": (
        "note",
        "Photos whose name says another format than their content",
        "Nothing for fieldmark, which goes by the content; rename them for programs that go by "
        "the name.",
    ),
    "rotated": (
        "note",
        "Photos that are stored turned, with the turn in their EXIF data",
        "Nothing for fieldmark, which turns them upright; Keras' reader does not.",
    ),
    "deep": (
        "note",
        "Photos of 16 bits a colour",
        "Nothing for fieldmark, which takes the nearest of 8 bits; other readers cut or clip them.",
    ),
    "CMYK": (
        "note",
        "Photos in the colours of print (CMYK)",
        "Nothing for fieldmark, which converts them; other readers may refuse or invert them.",
    ),
    "animated": (
        "note",
        "Files of several frames or pages",
        "Nothing, if the first is the one that counts: only that is read.",
    ),
    "profile": (
        "note",
        "Photos with a colour profile other than sRGB",
        "Nothing for fieldmark, which converts them; other readers show other colours.",
    ),
}
ABOUT_CLASSES = {"lonely", "few", "unbalanced", "alike names", "nested"}
ORDER = {kind: place for place, kind in enumerate(KINDS)}
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
LOOSE = "is a photo that lies in no class folder"  # as `data` says it


def _finding(kind: str, cases: Iterable[Case]) -> Finding | None:
    """Make a finding of its cases; none of none."""
    found = tuple(cases)
    severity, title, advice = KINDS[kind]
    return Finding(kind, severity, title, advice, found) if found else None


def _rank(finding: Finding) -> tuple[int, int]:
    return SEVERITIES.index(finding.severity), ORDER[finding.kind]


def _listing_findings(photos: Photos, trouble: str) -> Iterator[Finding | None]:
    """Yield what the listing alone shows."""
    yield _finding("untrainable", [Case((), trouble)] if trouble else [])
    yield _finding("linked", [Case((path,)) for path in photos.linked])
    empty = [Case((each.path,)) for each in photos.left_out if each.kind == "empty"]
    yield _finding("empty", empty)
    yield _finding("nested", [Case((name,)) for name in data.nested(photos) if name])
    yield _finding("alike names", [Case(names) for names in data.alike(photos.classes)])


def _file_findings(everything: Sequence[Seen]) -> Iterator[Finding | None]:
    """Yield the files that are not used, those of one reason together."""
    cases = defaultdict[str, list[Case]](list)
    for seen in sorted(everything, key=lambda seen: seen.why):
        if seen.kind != "used":
            kind = "loose" if seen.why == LOOSE else seen.kind
            cases[kind].append(Case((seen.path,), "" if kind == "loose" else seen.why))
    for kind in ("unreadable", "loose", "skipped", "hidden"):
        yield _finding(kind, cases[kind])


def _class_findings(photos: Photos, used: Sequence[Seen]) -> Iterator[Finding | None]:
    """Yield what is wrong with the sizes of the classes."""
    if len(photos.classes) < 2:
        return  # that is a finding of its own
    sizes = Counter(seen.label for seen in used)
    lonely = {name: _many(sizes[name], "photo") for name in photos.classes if sizes[name] < FEWEST}
    yield _finding("lonely", [Case((name,), f"has {size}") for name, size in lonely.items()])
    held_out = _held_out(photos.classes, used)
    few = [name for name in photos.classes if held_out[name] < FEW and name not in lonely]
    yield _finding("few", [Case((name,), f"has {held_out[name]} to validate on") for name in few])
    filled = {name: size for name, size in sizes.items() if size}
    if filled and max(filled.values()) >= UNBALANCED * min(filled.values()):
        most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        what = f"has {_many(filled[least], 'photo')}, {_printable(most)} {filled[most]:,}"
        yield _finding("unbalanced", [Case((least,), what)])


def _photo_findings(used: Sequence[Seen]) -> Iterator[Finding | None]:
    """Yield what each photo shows by itself."""
    cases = defaultdict[str, list[Case]](list)
    for seen in used:
        for kind, what in _oddities(seen):
            cases[kind].append(Case((seen.path,), what))
    for kind in KINDS:
        yield _finding(kind, cases[kind])


def _oddities(seen: Seen) -> Iterator[tuple[str, str]]:
    """Yield the kinds of finding that a photo shows by itself, each with its particulars."""
    facts = seen.facts
    if not facts or not seen.measures:
        return
    short, long = sorted((facts.width, facts.height))
    # On a photo of few pixels every edge is as wide as it is; that it is small is said anyway.
    unjudged = {"blurred"} if short < TINY else set[str]()
    yield from ((fault, "") for fault in quality.faults(seen.measures) if fault not in unjudged)
    size = f"{facts.width} x {facts.height}"
    suffix = PurePosixPath(seen.path).suffix.lower()
    if short < TINY:
        yield "tiny", f"is {size}"
    if long > EXTREME * short:
        yield "extreme", f"is {size}"
    if NAMES.get(suffix) != facts.format:
        yield "misnamed", f"is {facts.format}"
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


def _held_out(classes: Sequence[str], used: Sequence[Seen]) -> dict[str, int]:
    """Return how many photos of each class there are to validate on; a fifth where none is said."""
    parted = any(seen.split for seen in used)
    counts = Counter(seen.label for seen in used if not parted or seen.split == "validation")
    return {name: counts[name] if parted else round(VALIDATION * counts[name]) for name in classes}


def _intervals(classes: Sequence[str], used: Sequence[Seen]) -> tuple[Interval, ...]:
    """Return what a result means on all validation photos, and on the smallest class'."""
    held_out = _held_out(classes, used)
    if len(classes) < 2 or not sum(held_out.values()):
        return ()
    least = min(held_out, key=held_out.__getitem__)
    pairs = (("all", sum(held_out.values())), (least, held_out[least]))
    return tuple(Interval(name, count, *wilson(RESULT, count)) for name, count in pairs)


# ---- as text ------------------------------------------------------------------------------------

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _table(report: Report, *, width: int | None, colour: bool | None) -> str:
    """Write the report for a terminal."""
    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        width=width or (shutil.get_terminal_size((100, 24)).columns if terminal else 100),
        force_terminal=terminal if colour is None else colour,
        no_color=None if colour is None else not colour,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    console.print(_printable(report.account))
    console.print(report.balance)
    for line in _interval_lines(report):
        console.print(line)
    if report.findings:
        console.print()
        console.print(_findings_table(report))
        console.print("\nWhat to do", style="bold")
        for part in _advice(report):
            console.print(part)
    console.print()
    console.print(report.verdict)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _interval_lines(report: Report) -> list[str]:
    """Say how sure a result can be."""
    if not report.intervals:
        return []
    everything, least = report.intervals
    held = "a fifth" if report.assumed else "the split's part"
    lines = [f"Validating on {held}, {everything}"]
    means = str(least) if least.photos else "no photo: nothing is said of it"
    return [*lines, f"On the smallest class of it, {_printable(least.name)}, {means}"]


def _findings_table(report: Report) -> Table:
    """Lay out the findings, a line each: how severe, how many, what."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("severity", no_wrap=True)
    table.add_column("how many", justify="right", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for finding in report.findings:
        severity = Text(finding.severity, COLOURS[finding.severity])
        table.add_row(severity, finding.count, finding.title)
    return table


def _advice(report: Report) -> Iterator[RenderableType]:
    """Yield what to do about each finding, and some of the photos that it is about."""
    for finding in report.findings:
        yield Text(f"\n{finding.title}", f"bold {COLOURS[finding.severity]}")
        yield Padding(finding.advice, (0, 0, 0, 2))
        for line in _examples(finding):
            yield Padding(Text(line, "dim", overflow="fold"), (0, 0, 0, 4))


def _examples(finding: Finding) -> list[str]:
    """Return some lines that name photos of a finding."""
    cases = finding.cases
    if len(cases) > NAMED and not finding.grouped and not finding.about_classes:
        return _by_reason(cases)
    named = NAMED_CLASSES if finding.about_classes else NAMED
    lines = [_case_text(case) for case in cases[:named]]
    more = len(cases) - named
    # The CSV has a row a file, not a row a class.
    where = "" if finding.about_classes else " (--csv lists all)"
    return lines + ([f"and {more:,} more{where}"] if more > 0 else [])


def _by_reason(cases: Sequence[Case]) -> list[str]:
    """Name one photo a reason, the commonest reason first, for many single photos."""
    by = defaultdict[str, list[Case]](list)
    for case in cases:
        by[case.what].append(case)
    lines, left = [], len(cases)
    for of in sorted(by.values(), key=len, reverse=True)[:NAMED]:
        named = of[: NAMED if len(by) == 1 else 1]
        lines += [_case_text(case) for case in named]
        left -= len(named)
    return [*lines, f"and {left:,} more (--csv lists all)"]


def _case_text(case: Case) -> str:
    if len(case.paths) < 2:
        name = _printable(case.paths[0]) if case.paths else ""
        return f"{name} {case.what}".strip() if not name or case.what else name
    shown = " = ".join(_printable(path) for path in case.paths[:NAMED])
    more = len(case.paths) - NAMED
    text = shown + (f" and {more:,} more" if more > 0 else "")
    return text + (f" ({case.what})" if case.what else "")


def _printable(name: str) -> str:
    """Return a name with the signs escaped that would do something to a terminal."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name
    )


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


# ---- as CSV -------------------------------------------------------------------------------------

MEASURES = tuple(field.name for field in fields(Measures))
FACTS = tuple(field.name for field in fields(images.Facts))
COLUMNS = (
    *("path", "label", "split", "findings", "why", "alike", "bytes", "sha256"),
    *FACTS,
    *MEASURES,
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so


def _rows(report: Report) -> Iterator[dict[str, object]]:
    """Yield a row a file, in the order of the paths."""
    kinds = defaultdict[str, list[str]](list)
    for finding in report.findings:
        for path in () if finding.about_classes else finding.paths:
            kinds[path].append(finding.kind)
    for seen in report.files:
        measures = asdict(seen.measures) if seen.measures else {}
        yield {
            "path": _cell(seen.path, "./"),
            "label": _cell(seen.label, "'"),
            "split": seen.split,
            "findings": ";".join(kinds[seen.path]),
            "why": seen.why,
            "alike": report.alike.get(seen.path, ""),
            "bytes": seen.bytes or "",
            "sha256": seen.sha256,
            **(asdict(seen.facts) if seen.facts else {}),
            **{name: f"{value:.4g}" for name, value in measures.items()},
        }


def _cell(name: str, before: str) -> str:
    """Keep a spreadsheet from computing a name: `./=1` is the same path as `=1`."""
    return before + name if name.startswith(FORMULA) else name


# ---- as a sheet ---------------------------------------------------------------------------------


def _page(report: Report) -> str:
    """Fill the template."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = _printable
    template = packaged("fieldmark").joinpath("check.html").read_text(encoding="utf-8")
    sizes = report.sizes
    return environment.from_string(template).render(
        report=report,
        counts=Counter(finding.severity for finding in report.findings),
        intervals=_interval_lines(report),
        sections=_sections(report),
        sizes=sorted(sizes.items(), key=lambda size: (-size[1], size[0]))[:BARS],
        most=max(sizes.values(), default=0) or 1,
        more_classes=max(0, len(sizes) - BARS),
    )


@dataclass(frozen=True)
class _Photo:
    """A photo in the sheet."""

    path: str
    seen: Seen | None  # none: it is a class, or a file that is gone
    picture: str  # a data URI, or empty


@dataclass(frozen=True)
class _Shown:
    """A case in the sheet; `hidden` of its photos are left out."""

    what: str
    photos: tuple[_Photo, ...]
    hidden: int


@dataclass(frozen=True)
class _Section:
    """A finding in the sheet, as far as there is room."""

    finding: Finding
    cases: tuple[_Shown, ...]

    @property
    def shown(self) -> int:
        """How many photos, or classes, of the finding are shown."""
        return len({photo.path for case in self.cases for photo in case.photos})

    @property
    def pictured(self) -> bool:
        """Whether there is anything to look at; else the names alone make a list."""
        return any(photo.picture for case in self.cases for photo in case.photos)


def _sections(report: Report) -> list[_Section]:
    """Choose what of each finding is shown, each photo with its thumbnail."""
    by_path = {seen.path: seen for seen in report.files}
    pictures: dict[str, str] = {}

    def photo(path: str, finding: Finding) -> _Photo:
        seen = None if finding.about_classes else by_path.get(path)
        if not seen:
            return _Photo(path, None, "")
        if path not in pictures:
            usable = seen.kind == "used"
            pictures[path] = _thumbnail(report.folder / path, seen) if usable else ""
        return _Photo(path, seen, pictures[path])

    rooms = _rooms(report.findings)
    sections = []
    with meter("Making thumbnails", sum(rooms)) as shown:
        for finding, room in zip(report.findings, rooms, strict=True):
            cases = []
            left = room
            for case in finding.cases[: room or 1]:
                paths = case.paths[: max(left, 0)]
                left -= len(paths)
                if not paths and case.paths:
                    break
                photos = tuple(photo(path, finding) for path in paths)
                cases.append(_Shown(case.what, photos, len(case.paths) - len(paths)))
                shown.advance(len(paths))
            sections.append(_Section(finding, tuple(cases)))
    return sections


def _rooms(findings: Iterable[Finding]) -> list[int]:
    """Share the thumbnails out; the first findings, which are the most severe, come first."""
    rooms, left = list[int](), PICTURES
    for finding in findings:
        most = SHOWN_OF_A_NOTE if finding.severity == "note" else SHOWN
        rooms.append(min(len(finding.paths), most, left))
        left -= rooms[-1]
    return rooms


def _thumbnail(path: Path, seen: Seen) -> str:
    """Return a photo as a small JPEG in a data URI; empty where it cannot be read any more."""
    try:
        square = images.read(_content(path), THUMBNAIL)
    except (UnreadableImage, OSError):
        return ""
    if seen.facts:  # the padding beside the photo goes
        side = THUMBNAIL.size
        longest = max(seen.facts.width, seen.facts.height)
        height = max(1, round(side * seen.facts.height / longest))
        width = max(1, round(side * seen.facts.width / longest))
        top, left = (side - height) // 2, (side - width) // 2
        square = square[top : top + height, left : left + width]
    file = io.BytesIO()
    Image.fromarray(square).save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# ---- where it may be written --------------------------------------------------------------------


def _refuse_outputs(
    outputs: Sequence[Path],
    root: Path,
    photos: Photos,
    split_place: str | os.PathLike[str] | None,
) -> None:
    """Raise for a place that cannot be written to, before the work is done."""
    paths = [*photos.paths, *(each.path for each in photos.left_out)]
    for path in outputs:
        _refuse_among(path, root, photos.folder, paths)
        if split_place is not None and path.resolve() == Path(split_place).resolve():
            raise FieldmarkError(f"{path} is the split itself: name another file.")
        with files.writing(path):
            if not path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise FieldmarkError(f"{outputs[0]} cannot be both the CSV and the sheet: name two files.")


def _refuse_among(path: Path, root: Path, folder: Path, photos: Iterable[str]) -> None:
    """Raise where a file would lie in the folder of photos, or be written over one of them."""
    place = path.resolve()
    if root.is_dir() and place.is_relative_to(folder.resolve()):
        raise FieldmarkError(
            f"{path} lies among the photos, which are only read: name a file outside of {root}."
        )
    if place == root.resolve() or any(place == (folder / name).resolve() for name in photos):
        raise FieldmarkError(f"{path} is one of the files that are checked: name another file.")
