"""Tables as people save them: every separator and encoding, and the line of what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fieldmark.errors import FieldmarkError
from fieldmark.tables import read_table


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a CSV."""
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_whoever_saved_it(
    end: str, separator: str, encoding: str, tmp_path: Path
) -> None:
    rows = [
        ("Label", " PATH ", "note", "group"),
        ("鳥 b", "é.png", "x", "g"),
        ("", "2.png", "", ""),
    ]
    path = table(tmp_path, end.join(separator.join(row) for row in rows), encoding)
    assert read_table(path, ("path", "label"), ("split", "group")) == [
        (2, {"path": "é.png", "label": "鳥 b", "group": "g"}),
        (3, {"path": "2.png", "label": "", "group": ""}),
    ]


def test_what_excel_writes_before_a_table_is_passed_over(tmp_path: Path) -> None:
    path = table(tmp_path, "sep=;\npath;label\n1.png;a\n")
    assert read_table(path, ("path", "label")) == [(3, {"path": "1.png", "label": "a"})]


def test_the_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,label\n"a\nb",x\n\nc,y\n,\n')
    assert [line for line, _ in read_table(path, ("path", "label"))] == [2, 5]


def test_a_row_may_be_shorter_or_end_in_empty_cells(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,group\n1.png\n2.png,a,g,,\n")
    assert [row for _, row in read_table(path, ("path", "label"), ("group",))] == [
        {"path": "1.png", "label": "", "group": ""},
        {"path": "2.png", "label": "a", "group": "g"},
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no columns path and label in its first line"),
        ("file,label\n", "has no columns path and label in its first line ('file,label')"),
        ("file" * 50_000, "has no columns path and label in its first line"),
        ("path,label,path\n", "has two columns 'path'"),
        ("path,label\nant/1.png,a,b\n", "Line 2 of"),
        ("path,label\n1.png,a\n2.png,a,b\n", "has 3 cells and the first has 2: put a name that"),
        ("path,label\nant/1.png,'a\n\"b", "Line 3 of"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str, tmp_path: Path) -> None:
    path = table(tmp_path, text)
    with pytest.raises(FieldmarkError) as caught:
        read_table(path, ("path", "label"))
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\nant/1.png,Mäuse\n", "latin-1")
    with pytest.raises(FieldmarkError, match=r"Line 2 of .* is not text in UTF-8"):
        read_table(path, ("path", "label"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(FieldmarkError, match="is not text in UTF-8"):
        read_table(path, ("path", "label"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match=r"none\.csv cannot be read \(No such file"):
        read_table(tmp_path / "none.csv", ("path", "label"))
    path = table(tmp_path, "path,label\n")
    path.chmod(0)
    if not os.access(path, os.R_OK):  # the administrator may read everything
        with pytest.raises(FieldmarkError, match="Permission denied"):
            read_table(path, ("path", "label"))
