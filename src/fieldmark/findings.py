"""What a check finds, as plain data: files, findings, intervals, and the `Report` of them all.

In: what `check` saw. Out: a `Report`, which adds up and sums up in sentences, and `KINDS`, the
table of all that can be found, with what to do about it. `sheet` writes a report down;
`fieldmark check PHOTOS` makes and prints one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

from fieldmark.console import escaped, many, printable
from fieldmark.duplicates import Fingerprint
from fieldmark.images import Facts
from fieldmark.quality import Measures

Severity = Literal["error", "warning", "note"]

TINY = 64  # pixels: a network's 224 would make more than three of each
EXTREME = 3.0  # long side to short: a crop loses two thirds, squashing triples one side
FEW = 5  # validation photos of a class: with fewer each one is worth more than 20 points
SURE = 1.959964  # standard deviations: 95 % of a normal distribution lie within
RESULT = 0.8  # the accuracy for which an interval is given, as an example


class Kind(NamedTuple):
    """What all findings of a kind have in common."""

    severity: Severity
    title: str
    advice: str


# What is said of more than one kind.
LOOK = "Look at them and take away those on which you cannot tell the class."
EXPECTED = "Nothing, unless you expected one of them to be used."

# The findings stand in this order, the most severe first.
KINDS = {
    "untrainable": Kind(
        "error",
        "No classifier can be trained on this folder as it is",
        "Sort the photos into one sub-folder a class, or list them in a CSV with the columns path "
        "and label; the line beside it says what is missing.",
    ),
    "unwritable": Kind(
        "error",
        "Names that no CSV can hold",
        "Rename these files or the folders above them: in UTF-8, and without line breaks.",
    ),
    "unreadable": Kind(
        "error",
        "Photos that cannot be read",
        "Fetch or export them again, or move them out of the folder; Keras' reader stops at the "
        "first one without naming it.",
    ),
    "conflict": Kind(
        "error",
        "The same photo in two classes",
        "Decide which class is right and take the others away: the network is taught both.",
    ),
    "leak": Kind(
        "error",
        "The same photo or group on two sides of the split",
        "Take the copies away, and bring each group to one side: what was trained on cannot test.",
    ),
    "unread": Kind(
        "error",
        "Classes without a photo that can be read",
        "Fetch or export their photos again, or take the class away.",
    ),
    "untaught": Kind(
        "error",
        "Classes without a photo to train on",
        "Move some of their photos to the training side, or take the class away: fieldmark train "
        "refuses them.",
    ),
    "lonely": Kind(
        "error",
        "Classes of a single photo",
        "Add photos or take the class away: one photo cannot both train and validate.",
    ),
    "changed": Kind(
        "warning",
        "Photos that are not as the split says",
        "Write the split again with fieldmark split, or bring the photos back that it was "
        "written for.",
    ),
    "loose": Kind(
        "warning",
        "Photos that lie in no class folder",
        "Move them into the folder of their class: they are not used.",
    ),
    "duplicates": Kind(
        "warning",
        "The same file more than once",
        "Keep one of each group: the others teach nothing and, parted by a split, flatter the "
        "result.",
    ),
    "near duplicates": Kind(
        "warning",
        "Nearly the same photo more than once",
        "Look at the groups and keep the best of each, or let fieldmark split keep "
        "them on one side.",
    ),
    "few": Kind(
        "warning",
        "Classes too small to evaluate",
        f"Add photos: with fewer than {FEW} to validate on, one photo more or less is over 20 "
        "points of that class' accuracy.",
    ),
    "unbalanced": Kind(
        "warning",
        "Classes of very different sizes",
        "Look at the accuracy of each class, not at one figure for all; add photos to the small "
        "classes, or weight them.",
    ),
    "alike names": Kind(
        "warning",
        "Classes whose names differ only in case or in spelling of the same letters",
        "Rename or merge them: on macOS and Windows they are one folder.",
    ),
    "nested": Kind(
        "warning",
        "Classes whose folder holds the folders of other classes",
        "Move the photos or the folders so that each class has a folder of its own; Keras' reader "
        "would take all below a folder for one class.",
    ),
    "blank": Kind(
        "warning",
        "Photos with nothing on them",
        "Look at them and take them away if they show nothing of their class.",
    ),
    "dark": Kind(
        "warning",
        "Photos that are almost black",
        "Look at them and brighten or take away those on which you cannot tell the class.",
    ),
    "bright": Kind(
        "warning",
        "Photos that are almost white",
        LOOK,
    ),
    "faint": Kind(
        "warning",
        "Photos with hardly any contrast",
        LOOK,
    ),
    "blurred": Kind(
        "warning",
        "Photos that are sharp nowhere",
        LOOK,
    ),
    "tiny": Kind(
        "warning",
        f"Photos of less than {TINY} pixels on a side",
        "Use larger versions where there are any, or train at a small image size.",
    ),
    "extreme": Kind(
        "warning",
        f"Photos more than {EXTREME:g} times as long as wide",
        "Crop them to what matters: squashing distorts them, and a central crop loses most.",
    ),
    "skipped": Kind(
        "note",
        "Files that are no photos",
        EXPECTED,
    ),
    "hidden": Kind(
        "note",
        "Hidden files",
        EXPECTED,
    ),
    "linked": Kind(
        "note",
        "Symbolic links, which were followed",
        "Nothing; keep in mind that a copy of the folder may lose what they lead to.",
    ),
    "empty": Kind(
        "note",
        "Empty folders",
        "Nothing, unless there should be photos in them: they make no class.",
    ),
    "misnamed": Kind(
        "note",
        "Photos whose name says another format than their content",
        "Nothing for fieldmark, which goes by the content; rename them for programs that go by "
        "the name.",
    ),
    "rotated": Kind(
        "note",
        "Photos that are stored turned, with the turn in their EXIF data",
        "Nothing for fieldmark, which turns them upright; Keras' reader does not.",
    ),
    "deep": Kind(
        "note",
        "Photos of 16 bits a colour",
        "Nothing for fieldmark, which takes the nearest of 8 bits; other readers cut or clip them.",
    ),
    "CMYK": Kind(
        "note",
        "Photos in the colours of print (CMYK)",
        "Nothing for fieldmark, which converts them; other readers may refuse or invert them.",
    ),
    "animated": Kind(
        "note",
        "Files of several frames or pages",
        "Nothing, if the first is the one that counts: only that is read.",
    ),
    "profile": Kind(
        "note",
        "Photos with a colour profile other than sRGB",
        "Nothing for fieldmark, which converts them; other readers show other colours.",
    ),
}
ABOUT_CLASSES = {"unread", "untaught", "lonely", "few", "unbalanced", "alike names", "nested"}

TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they show what follows in another order


@dataclass(frozen=True)
class Seen:
    """One file as it was met."""

    path: str  # relative to the folder, with forward slashes; a CSV's may be absolute
    label: str = ""  # the class; empty: it has none
    split: str = ""  # the part of the split that it lies in; empty: none
    group: str = ""  # what must not be parted has one name; empty: it stands alone
    why: str = ""  # why it is not used, a clause: "is cut off"; empty: it is used
    kind: str = "used"  # or "unreadable", "skipped", "hidden"
    bytes: int = 0
    sha256: str = ""
    facts: Facts | None = None
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

    kind: str  # one of `KINDS`
    cases: tuple[Case, ...]
    advised: str = ""  # instead of the kind's advice, where the case is another

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity

    @property
    def title(self) -> str:
        """What it is called."""
        return KINDS[self.kind].title

    @property
    def advice(self) -> str:
        """What to do about it."""
        return self.advised or KINDS[self.kind].advice

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The files concerned, or the names of the classes, each once."""
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
            return many(len(self.paths), "class", "classes")
        if not self.grouped:
            return f"{len(self.paths):,}" if self.paths else ""
        return f"{len(self.paths):,} in {many(len(self.cases), 'group')}"


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
            f"{many(self.photos, 'photo')}: a result of {100 * RESULT:.0f} % "
            f"means {100 * self.low:.0f} to {100 * self.high:.0f} %"
        )


@dataclass(frozen=True)
class Report:
    """All that was found in a folder or a CSV of photos."""

    source: Path
    folder: Path
    files: tuple[Seen, ...]  # every file, used or not, sorted by path
    classes: tuple[str, ...]
    linked: tuple[str, ...]
    findings: tuple[Finding, ...]  # the most severe first
    intervals: tuple[Interval, ...]  # of all photos, and of the smallest class
    assumed: bool  # no validation is given; the intervals are for a fifth of what trains
    alike: dict[str, int]  # a number a group of equal or nearly equal photos, by path
    reserved: tuple[Path, ...] = ()  # the folders in which nothing is written

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
        line = f"{many(len(self.files), 'file')}: {', '.join(parts)}"
        links = {*self.linked}
        linked = sum(not links.isdisjoint(_ways(seen.path)) for seen in self.used) if links else 0
        return line + (f"; {linked:,} by symbolic links" if linked else "")

    @property
    def balance(self) -> str:
        """How many photos the classes have, in one line."""
        sizes = self.sizes
        if not sizes:
            return "No class has a photo"
        most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        line = f"{many(len(self.used), 'photo')} in {many(len(sizes), 'class', 'classes')}"
        if sizes[most] == sizes[least]:
            return line + (f", {sizes[most]:,} in each" if len(sizes) > 1 else "")
        return (
            f"{line}, from {sizes[least]:,} ({printable(least)}) "
            f"to {sizes[most]:,} ({printable(most)})"
        )

    @property
    def verdict(self) -> str:
        """How the folder stands, in one sentence."""
        count = Counter(finding.severity for finding in self.findings)
        place = printable(str(self.source))
        if count["error"]:
            also = f" and {many(count['warning'], 'warning')}" if count["warning"] else ""
            return (
                f"{place} is not ready for training: {many(count['error'], 'error')}{also}; "
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


def straight(text: str) -> str:
    """Return a text with the signs escaped that show what follows in another order."""
    return TURNS.sub(lambda found: escaped(found[0]), text)


def _ways(path: str) -> Iterator[str]:
    """Yield a path and the folders above it."""
    return accumulate(path.split("/"), "{}/{}".format)
