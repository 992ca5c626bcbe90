"""Tables that people write: a CSV -> its rows, each with the line that it begins on.

In: a CSV as any program saves it, separated by commas, semicolons or tabs, in UTF-8 or UTF-16.
Out: the cells by their columns' names; what is wrong with the file is an error that names the line.
The lists of photos and the splits are read by this.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fieldmark.errors import FieldmarkError


def read_table(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV by their columns, each with the line that it begins on.

    Separators are commas, semicolons or tabs; UTF-8 or UTF-16. Columns may stand in any order, in
    upper or lower case; those not asked for are left out. Empty rows are too. Raises a
    `FieldmarkError` that names the line.
    """
    text = _text(path)
    skipped = 0
    if text[:4].casefold() == "sep=":  # a line that Excel writes for itself
        _, _, text = text.partition("\n")
        skipped = 1
    separator, columns = _header(path, text, required)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    wanted = {name: columns.index(name) for name in (*required, *optional) if name in columns}
    rows = []
    line = skipped + 1
    try:
        for number, cells in enumerate(reader):
            if number and any(cells):
                if len(cells) > len(columns) and any(cells[len(columns) :]):
                    raise FieldmarkError(
                        f"Line {line} of {path} has {len(cells)} cells and the first has "
                        f"{len(columns)}: put a name that holds the separator in quotes."
                    )
                there = dict(enumerate(cells))  # a row may end before the last columns
                rows.append((line, {name: there.get(i, "") for name, i in wanted.items()}))
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        raise FieldmarkError(
            f"Line {line} of {path} is not CSV ({error}): mend its quotes."
        ) from error
    return rows


def columns(path: Path, required: Sequence[str]) -> list[str]:
    """Return the names in a CSV's first line; raises a FieldmarkError where it lacks one."""
    _, names = _header(path, _text(path), required)
    return names


def _text(path: Path) -> str:
    """Return a CSV's text; its encoding is told by how it begins."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FieldmarkError(f"{path} cannot be read ({error.strerror}).") from error
    encoding = "utf-8"
    if content.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:2]:  # its first sign is a letter of the columns' names
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FieldmarkError(
            f"Line {line} of {path} is not text in UTF-8 or UTF-16: "
            "name a folder or a CSV, and save a CSV as UTF-8."
        ) from error


def _header(path: Path, text: str, required: Sequence[str]) -> tuple[str, list[str]]:
    """Return the separator by which the first line has the columns required, and all its names."""
    first = text.partition("\n")[0].partition("\r")[0]
    for separator in ",;\t":
        try:
            cells = next(csv.reader([first], delimiter=separator), [])
        except csv.Error:  # it is longer than any header
            continue
        columns = [cell.strip().casefold() for cell in cells]
        if {*required} <= {*columns}:
            break
    else:
        raise FieldmarkError(
            f"{path} has no columns {', '.join(required[:-1])} and {required[-1]} "
            f"in its first line ({first[:60]!r}): name a folder, or a CSV that has them."
        )
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise FieldmarkError(f"{path} has two columns {twice[0]!r}: take one away.")
    return separator, columns
