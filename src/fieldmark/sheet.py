"""A check's report, written down: for a terminal, as a CSV, as one HTML page with the photos.

In: a `Report`. Out: `table` returns text, `write_csv` writes a row a file, `write_html` a page that
needs nothing beside it (`sheet.html` filled). None of them writes among the photos.

    fieldmark check PHOTOS --csv photos.csv --html photos.html
"""

from __future__ import annotations

import base64
import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fieldmark import data, files, images
from fieldmark.console import meter, printable, printed
from fieldmark.data import Photos
from fieldmark.errors import FieldmarkError
from fieldmark.findings import Case, Finding, Report, Seen, straight
from fieldmark.formats import UnreadableImage
from fieldmark.quality import Measures

if TYPE_CHECKING:
    from jinja2 import Environment

# ---- as text ------------------------------------------------------------------------------------

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
NAMED = 3  # photos that the table names for each finding
NAMED_CLASSES = 10


def table(report: Report, *, width: int | None = None, colour: bool | None = None) -> str:
    """Return the report for a terminal; as wide as it is, 100 columns where there is none."""
    parts: list[RenderableType] = [report.account, report.balance, *_interval_lines(report)]
    if report.findings:
        parts += ["", _findings_table(report), Text("\nWhat to do", "bold"), *_advice(report)]
    return printed([*parts, "", report.verdict], width=width, colour=colour)


def _interval_lines(report: Report) -> list[str]:
    """Say how sure a result can be."""
    if not report.intervals:
        return []
    everything, least = report.intervals
    held = "a fifth" if report.assumed else "the split's part"
    lines = [f"Validating on {held}, {everything}"]
    means = str(least) if least.photos else "no photo: nothing is said of it"
    return [*lines, f"On the smallest class of it, {printable(least.name)}, {means}"]


def _findings_table(report: Report) -> Table:
    """Lay out the findings, a line each: how severe, how many, what."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("severity", no_wrap=True)
    grid.add_column("how many", justify="right", no_wrap=True)
    grid.add_column("finding", overflow="fold")
    for finding in report.findings:
        severity = Text(finding.severity, COLOURS[finding.severity])
        grid.add_row(severity, finding.count, finding.title)
    return grid


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
    single = not finding.grouped and not finding.about_classes
    if single and len(cases) > NAMED:
        shown = _one_a_reason(cases)
    else:
        shown = cases[: NAMED_CLASSES if finding.about_classes else NAMED]
    lines = [_case_text(case) for case in shown]
    more = len(cases) - len(shown)
    # The CSV has a row a file, not a row a class.
    where = "" if finding.about_classes else " (--csv lists all)"
    return lines + ([f"and {more:,} more{where}"] if more else [])


def _one_a_reason(cases: Iterable[Case]) -> Sequence[Case]:
    """Choose `NAMED` of many single photos: one a reason, the commonest reason first."""
    by = defaultdict[str, list[Case]](list)
    for case in cases:
        by[case.what].append(case)
    alike = sorted(by.values(), key=len, reverse=True)[:NAMED]
    return alike[0][:NAMED] if len(alike) == 1 else [of[0] for of in alike]


def _case_text(case: Case) -> str:
    if len(case.paths) < 2:
        return " ".join(map(printable, filter(None, (*case.paths, case.what))))
    names = " = ".join(printable(path) for path in case.paths[:NAMED])
    more = len(case.paths) - NAMED
    others = f" and {more:,} more" if more > 0 else ""
    return names + others + (f" ({printable(case.what)})" if case.what else "")


# ---- as CSV -------------------------------------------------------------------------------------

COLUMNS = (
    *("path", "label", "split", "findings", "why", "alike", "bytes", "sha256"),
    *(field.name for field in (*fields(images.Facts), *fields(Measures))),
)
OWN = ("path,label,split,findings", "<!DOCTYPE html>")  # as what is written here begins
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so


def write_csv(report: Report, path: Path) -> None:
    """Write a row a file, used or not, and a row for what else was found; whole or not at all."""
    _refuse_place(path, report)
    with (
        files.whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f,
    ):
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(_rows(report))


def _rows(report: Report) -> Iterator[dict[str, object]]:
    """Yield a row a file, in the order of the paths."""
    kinds = defaultdict[str, list[str]](list)
    others = dict[str, str]()  # what is no file here: missing photos, empty folders
    there = {seen.path for seen in report.files}
    for finding in report.findings:
        for case in () if finding.about_classes else finding.cases:
            for path in case.paths:
                kinds[path].append(finding.kind)
                if path not in there:
                    others[path] = case.what
    for seen in report.files:
        measures = asdict(seen.measures) if seen.measures else {}
        yield {
            "path": _cell(seen.path, "./"),
            "label": _cell(seen.label),
            "split": seen.split,
            "findings": ";".join(dict.fromkeys(kinds[seen.path])),
            "why": _cell(printable(seen.why)),
            "alike": report.alike.get(seen.path, ""),
            "bytes": seen.bytes or "",
            "sha256": seen.sha256,
            **(asdict(seen.facts) if seen.facts else {}),
            **({"profile": _cell(printable(seen.facts.profile))} if seen.facts else {}),
            **{name: f"{value:.4g}" for name, value in measures.items()},
        }
    for path, what in others.items():
        row = {"path": _cell(path, "./"), "why": _cell(printable(what))}
        yield {**row, "findings": ";".join(dict.fromkeys(kinds[path]))}


def _cell(text: str, before: str = "'") -> str:
    """Keep a spreadsheet from computing a text, or showing it turned.

    Before a path goes `./`, for `./=1` is the same path as `=1`.
    """
    return straight(before + text if text.startswith(FORMULA) else text)


# ---- as a page ----------------------------------------------------------------------------------


class Room(NamedTuple):
    """How many photos are shown."""

    finding: int  # of each error and each warning
    note: int  # of each note
    all: int  # of all findings together


ROOM = Room(finding=60, note=12, all=400)  # the page's: about 3 MB
THUMBNAIL = images.ImageSpec(size=160, mode="pad", interpolation="bilinear", scaling="0..255")
BARS = 40  # classes in the page's chart


def write_html(report: Report, path: Path) -> None:
    """Write one page with everything in it, whole or not at all."""
    _refuse_place(path, report)
    page = _page(report)
    with files.whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _page(report: Report) -> str:
    """Fill the template."""
    sizes = report.sizes
    template = templates().get_template("sheet.html")
    return template.render(
        report=report,
        intervals=_interval_lines(report),
        sections=sections(report, ROOM),
        sizes=sorted(sizes.items(), key=lambda size: (-size[1], size[0]))[:BARS],
        most=max(sizes.values(), default=0) or 1,
        more_classes=max(0, len(sizes) - BARS),
    )


def templates(*, autoescape: bool = True) -> Environment:
    """Return what finds and fills the templates of the package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=autoescape,  # noqa: S701 - Markdown is escaped in other ways
        loader=PackageLoader("fieldmark", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment


@dataclass(frozen=True)
class Photo:
    """A photo in the sheet."""

    path: str
    seen: Seen | None  # none: it is a class, or a file that is gone
    picture: str  # a data URI, or empty


@dataclass(frozen=True)
class Shown:
    """A case in the sheet; `hidden` of its photos are left out."""

    what: str
    photos: tuple[Photo, ...]
    hidden: int


@dataclass(frozen=True)
class Section:
    """A finding in the sheet, as far as there is room."""

    finding: Finding
    cases: tuple[Shown, ...]

    @property
    def shown(self) -> int:
        """How many photos, or classes, of the finding are shown."""
        return len({photo.path for case in self.cases for photo in case.photos})

    @property
    def pictured(self) -> bool:
        """Whether there is anything to look at; else the names alone make a list."""
        return any(photo.picture for case in self.cases for photo in case.photos)


def sections(report: Report, room: Room) -> list[Section]:
    """Choose what of each finding is shown, each photo with its thumbnail."""
    by_path = {seen.path: seen for seen in report.files}
    pictures: dict[str, str] = {}

    def photo(path: str, finding: Finding) -> Photo:
        seen = None if finding.about_classes else by_path.get(path)
        if not seen:
            return Photo(path, None, "")
        if path not in pictures:
            pictures[path] = data_uri(report.folder / path) if seen.kind == "used" else ""
        return Photo(path, seen, pictures[path])

    rooms = _rooms(report.findings, room)
    chosen = []
    with meter("Making thumbnails", sum(rooms)) as shown:
        for finding, most in zip(report.findings, rooms, strict=True):
            cases = []
            left = most
            for case in finding.cases[: most or 1]:
                paths = case.paths[: max(left, 0)]
                left -= len(paths)
                if not paths and case.paths:
                    break
                photos = tuple(photo(path, finding) for path in paths)
                cases.append(Shown(case.what, photos, len(case.paths) - len(paths)))
                shown.advance(len(paths))
            chosen.append(Section(finding, tuple(cases)))
    return chosen


def _rooms(findings: Iterable[Finding], room: Room) -> list[int]:
    """Share the thumbnails out; the first findings, which are the most severe, come first."""
    rooms, left = list[int](), room.all
    for finding in findings:
        most = room.note if finding.severity == "note" else room.finding
        rooms.append(min(len(finding.paths), most, left))
        left -= rooms[-1]
    return rooms


def data_uri(path: Path) -> str:
    """Return a photo as a small JPEG in a data URI; empty where it cannot be read any more."""
    try:
        square, shape = images.read_with_shape(path.read_bytes(), THUMBNAIL)
    except (UnreadableImage, OSError):
        return ""
    # The padding beside the photo goes.
    side = THUMBNAIL.size
    height, width = (max(1, round(side * length / max(shape))) for length in shape)
    top, left = (side - height) // 2, (side - width) // 2
    file = io.BytesIO()
    photo = Image.fromarray(square[top : top + height, left : left + width])
    photo.save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# ---- where it may be written --------------------------------------------------------------------


def refuse_places(
    places: Sequence[Path],
    source: Path,
    photos: Photos,
    split: str | os.PathLike[str] | None = None,
) -> None:
    """Raise for a place that cannot be written to; what reads for long asks before it does."""
    reserved = data.reserved(photos, source)
    paths = [*photos.paths, *(each.path for each in photos.left_out)]
    for path in places:
        if split is not None and os.path.realpath(path) == os.path.realpath(split):
            raise FieldmarkError(f"{path} is the split itself: name another file.")
        _refuse_over(path, source, photos.folder, paths, reserved)
        files.require_folder(path.parent)
    if len({os.path.realpath(path) for path in places}) < len(places):
        raise FieldmarkError(f"{places[0]} cannot be both the CSV and the sheet: name two files.")


def _refuse_place(path: Path, report: Report) -> None:
    paths = (seen.path for seen in report.files)
    _refuse_over(path, report.source, report.folder, paths, report.reserved)


def _refuse_over(
    path: Path, source: Path, folder: Path, photos: Iterable[str], reserved: Iterable[Path]
) -> None:
    """Raise where a file would lie in a folder of photos, or be written over what is read."""
    files.refuse_among(path, reserved)
    try:
        there = path.stat()
    except OSError:
        return  # there is nothing to write over
    # The folder of a CSV is not reserved, and may hold photos.
    for each in (source, *(folder / name for name in photos)):
        with suppress(OSError):  # it is gone
            if os.path.samestat(there, each.stat()):
                raise FieldmarkError(
                    f"{path} is one of the files that are checked: name another file."
                )
    files.refuse_another(path, *OWN)
