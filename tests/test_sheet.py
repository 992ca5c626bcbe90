"""A report as text, as rows, as a page: all of it is there, and no name does harm."""

from __future__ import annotations

import csv
import hashlib
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fieldmark import sheet, split
from fieldmark.check import check
from fieldmark.data import list_photos, sha256s
from fieldmark.errors import FieldmarkError
from fieldmark.findings import Case, Finding, Report, Seen
from fieldmark.images import Facts
from fieldmark.sheet import refuse_places, table, write_csv, write_html

A, B, C, D = "Bananaquit", "Black Skimmer", "Black-throated Bushtit", "Cockatoo"


@pytest.fixture
def photos(birds: Path, tmp_path: Path) -> Path:
    """Forty-eight tiny photos, one copied within each class and one into the next class."""
    folder = Path(shutil.copytree(birds, tmp_path / "photos"))
    for name, other in ((A, B), (B, C), (C, D), (D, A)):
        shutil.copy(folder / name / "0000.jpg", folder / name / "copy.jpg")
        shutil.copy(folder / name / "0001.jpg", folder / other / f"from {name}.jpg")
    return folder


# ---- as text ------------------------------------------------------------------------------------


def test_the_table_fits_and_says_what_to_do(photos: Path) -> None:
    (photos / A / ("long " * 40 + ".jpg")).write_bytes(b"")
    report = check(photos)
    for width in (40, 100):
        text = table(report, width=width, colour=False)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
    assert {"error", "warning", "note"} == {each.severity for each in report.findings}
    for each in report.findings:
        assert each.title in text
        assert each.advice.split()[0] in text
    assert "and 53 more (--csv lists all)" in text  # of 56 tiny photos
    assert "\x1b[" in table(report, colour=True)


def test_names_do_nothing_to_the_terminal(photos: Path) -> None:
    (photos / A / "red \x1b[31m.jpg").write_bytes(b"")
    (photos / A / "[bold]markup.jpg").write_bytes(b"")
    (photos / ".hid\x1b[31m").mkdir()
    (photos / ".hid\x1b[31m" / "a.txt").write_text("no photo")
    report = check(photos)
    text = table(report, colour=False)
    assert "\x1b" not in text
    assert "red \\x1b[31m.jpg" in text
    assert "[bold]markup.jpg" in text
    assert "the hidden folder .hid\\x1b[31m" in text
    # A group's name, or a profile's.
    cases = (Case(("a", "b"), "the same group, \x1b[31m"), Case(("c",), "has \u202e"))
    odd = replace(report, findings=(Finding("leak", cases),))
    for written in (table(odd, colour=False), sheet._page(odd)):
        assert not {"\x1b", "\u202e"} & {*written}


@pytest.mark.parametrize(
    ("finding", "lines"),
    [
        (Finding("untrainable", (Case((), "no class"),)), ["no class"]),
        (Finding("dark", tuple(Case((name,)) for name in "abc")), ["a", "b", "c"]),
        (
            Finding("dark", tuple(Case((name,)) for name in "abcde")),
            ["a", "b", "c", "and 2 more (--csv lists all)"],
        ),
        (
            Finding("skipped", tuple(Case((name,), f"is {name > 'a'}") for name in "abcd")),
            ["b is True", "a is False", "and 2 more (--csv lists all)"],
        ),
        (Finding("alike names", (Case(("a", "A")),)), ["a = A"]),
        (
            Finding("few", tuple(Case((str(i),), "has 2") for i in range(11))),
            [*(f"{i} has 2" for i in range(10)), "and 1 more"],
        ),
        (Finding("duplicates", (Case(tuple("abcde"), "x"),)), ["a = b = c and 2 more (x)"]),
    ],
)
def test_some_photos_are_named(finding: Finding, lines: list[str]) -> None:
    assert sheet._examples(finding) == lines


# ---- as CSV -------------------------------------------------------------------------------------


def test_the_csv_has_a_row_a_file(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / D, photos / "=1+1")
    (photos / A / "broken.jpg").write_bytes(b"")
    (photos / A / 'a, "b".jpg').write_bytes((photos / A / "0002.jpg").read_bytes())
    report = check(photos)
    write_csv(report, tmp_path / "photos.csv")
    with (tmp_path / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(report.files) == sum(path.is_file() for path in photos.rglob("*"))
    assert all((photos / path).is_file() for path in rows)
    cells = [cell for row in rows.values() for cell in row.values()]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    copy = rows[f'{A}/a, "b".jpg']
    assert copy["findings"] == "duplicates;tiny"
    assert copy["alike"] == rows[f"{A}/0002.jpg"]["alike"] != ""
    assert rows[f"{A}/broken.jpg"]["why"] == "is empty"
    first = rows[f"{A}/0000.jpg"]
    assert (first["width"], first["height"], first["format"]) == ("32", "32", "JPEG")
    assert first["sha256"] == hashlib.sha256((photos / A / "0000.jpg").read_bytes()).hexdigest()
    assert 0 < float(first["sharpness"]) <= 1


def test_the_csv_has_a_row_for_what_is_gone_or_empty(photos: Path, tmp_path: Path) -> None:
    listed = list_photos(photos)
    split.write(tmp_path / "split.csv", split.article(
        listed, sha256s(listed), validation=0.2, seed=1
    ))  # fmt: skip
    for i in range(2, 7):
        (photos / A / f"000{i}.jpg").unlink()
    (photos / "empty").mkdir()
    report = check(photos, split=tmp_path / "split.csv")
    write_csv(report, tmp_path / "photos.csv")
    with (tmp_path / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    named = {path for each in report.findings if not each.about_classes for path in each.paths}
    assert named <= rows.keys()
    gone = rows[f"{A}/0004.jpg"]
    assert (gone["findings"], gone["why"], gone["bytes"]) == ("changed", "is missing", "")
    assert rows["empty/"]["findings"] == "empty"


def test_no_cell_computes_or_turns_around() -> None:
    facts = Facts("JPEG", 9, 9, "RGB", 8, 1, 1, profile='=HYPERLINK("x")')
    seen = Seen("+\u202egpj.jpg", label="@b", why="=1+\x1b", facts=facts)
    report = Report(
        source=Path("p"),
        folder=Path("p"),
        files=(seen,),
        classes=("@b",),
        linked=(),
        findings=(),
        intervals=(),
        assumed=True,
        alike={},
    )
    (row,) = sheet._rows(report)
    assert row["path"] == "./+\\u202egpj.jpg"
    assert row["label"] == "'@b"
    assert row["why"] == "'=1+\\x1b"
    assert row["profile"] == '\'=HYPERLINK("x")'


# ---- as a page ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page holds, and checks that its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_one_file_and_escapes_names(photos: Path, tmp_path: Path) -> None:
    evil = photos / "<script>alert(1)"
    shutil.copytree(photos / D, evil)
    (evil / "\" onerror='x'>.jpg").write_bytes((photos / A / "0000.jpg").read_bytes())
    report = check(photos)
    write_html(report, tmp_path / "sheet.html")
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    ours = page(tmp_path / "sheet.html")
    names = [tag for tag, _ in ours.tags]
    assert "script" not in names
    assert names.count("html") == names.count("main") == names.count("h1") == 1
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    pictures = [attributes for tag, attributes in ours.tags if tag == "img"]
    assert len(pictures) > 20
    for attributes in pictures:
        assert set(attributes) == {"src", "alt"}
        assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert attributes["alt"]
    for each in report.findings:
        assert each.title in ours.text
        assert each.advice in ours.text
    ids = [attributes["id"] for _, attributes in ours.tags if "id" in attributes]
    links = [str(attributes["href"])[1:] for tag, attributes in ours.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    assert "<script>alert(1)/" in ours.text  # as text


def test_the_page_is_bounded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "ROOM", sheet.ROOM._replace(all=6))
    write_html(check(photos), tmp_path / "sheet.html")
    ours = page(tmp_path / "sheet.html")
    assert sum(tag == "img" for tag, _ in ours.tags) == 6
    assert "the first 6 are shown" in ours.text
    assert "none are shown" in ours.text


def test_a_photo_that_is_gone_has_no_picture(photos: Path, tmp_path: Path) -> None:
    report = check(photos)
    (photos / A / "copy.jpg").unlink()
    write_html(report, tmp_path / "sheet.html")
    ours = page(tmp_path / "sheet.html")
    assert f"{A}/copy.jpg" in ours.text
    assert f"{A}/copy.jpg" not in [attributes.get("alt") for _, attributes in ours.tags]


@pytest.mark.parametrize("name", ["exif", "modes", "broken"])
def test_odd_photos_make_a_page_and_rows(name: str, shared_photos: Path, tmp_path: Path) -> None:
    report = check(shared_photos / "odd" / name)
    write_html(report, tmp_path / "sheet.html")
    page(tmp_path / "sheet.html")
    write_csv(report, tmp_path / "photos.csv")
    with (tmp_path / "photos.csv").open(encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == len(report.files)


# ---- where it may be written --------------------------------------------------------------------


def test_nothing_is_written_among_the_photos(photos: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in photos.rglob("*")
        }

    before = state()
    link = tmp_path / "way in"
    link.symlink_to(photos)
    report, listed = check(photos), list_photos(photos)
    for place in (photos / "a.csv", photos / A / "a.html", link / "a.csv"):
        with pytest.raises(FieldmarkError, match="among the photos"):
            refuse_places([place], photos, listed)
    with pytest.raises(FieldmarkError, match="among the photos"):
        write_csv(report, photos / "a.csv")
    with pytest.raises(FieldmarkError, match="among the photos"):
        write_html(report, link / "a.html")
    with pytest.raises(FieldmarkError, match="There is no folder"):
        refuse_places([tmp_path / "no" / "a.csv"], photos, listed)
    with pytest.raises(FieldmarkError, match="name two files"):
        refuse_places([tmp_path / "a", tmp_path / "a"], photos, listed)
    with pytest.raises(FieldmarkError, match="the split itself"):
        refuse_places([tmp_path / "split.csv"], photos, listed, tmp_path / "split.csv")
    assert state() == before
