"""A CSV of answers that is added to row by row, and gone on with where it was stopped.

In: the answers of a classifier, batch by batch. Out: a CSV in UTF-8 with a row a photo: path,
answer, probability, error, then `p:` and its name for each class, and a last column, empty, whose
name says which model it was. `fieldmark predict MODEL FOLDER --csv FILE` writes one.

However the process ends, the file holds whole rows and at most a part of one behind them, which
whoever goes on takes away.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import files, locks
from fieldmark.errors import FieldmarkError
from fieldmark.predictions import CLASS, FORMULA

COLUMNS = ("path", "answer", "probability", "error")
MODEL = "model:"  # how the last column's name begins; the rest says which model
NONE = "none of these"
END = b"\r\n"  # of a row; the csv module then quotes either sign in a cell
LONGEST = 1 << 16  # bytes of a path in a row, more than any system has


class Row(NamedTuple):
    """What is said of a photo: an answer, or why there is none."""

    path: str
    label: str | None = None  # none: it is none of these
    probabilities: NDArray[np.float64] | None = None  # (c,); none: there is an error
    error: str = ""


class Ledger:
    """A CSV that is open and locked; obtained from `opened`."""

    def __init__(self, path: Path, file: io.FileIO, header: Sequence[str]) -> None:
        self.path = path
        self._file = file
        self._header = header

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows behind those that are there: all, or none where the disk is full."""
        classes = len(self._header) - len(COLUMNS) - 1
        with files.writing(self.path):
            files.append(self._file, b"".join(_line(_cells(row, classes)) for row in rows))

    def go_on(self, had: Callable[[str, str], None]) -> None:
        """Read what is there, call `had(path, error)` for each row, and mend the end.

        An empty file gets its header. Raises a FieldmarkError for a file that was not begun by the
        same model, which stays as it is, and for a row that is damaged.
        """
        header = _line(self._header)
        longest = LONGEST + len(header) + 32 * len(self._header)
        records = _records(self._file, longest)
        first, _ = next(records, (b"", False))
        end = 0  # bytes that are whole rows
        if first == header:
            end = len(header)
            for number, (record, whole) in enumerate(records, 2):
                if whole or len(record) > longest:
                    had(*self._read(number, record))
                    end += len(record)
                elif any(len(_parsed(line)) == len(self._header) for line in _within(record)):
                    # By a quote too many: where a process ended, no row is behind the half one.
                    raise self._damaged(number)
        elif first.startswith(header.removesuffix(END) + b"\n"):
            raise FieldmarkError(
                f"Another program has changed the line ends of {self.path}: save it with those of "
                "Windows, CR LF, or name another file."
            )
        elif not header.startswith(first):
            raise FieldmarkError(
                f"{self.path} was not begun by this model, or is no CSV of answers: name another "
                "file, or move this one away."
            )
        with files.writing(self.path):
            self._file.truncate(end)
            if not end:
                files.append(self._file, header)

    def _read(self, number: int, record: bytes) -> tuple[str, str]:
        """Return the path and the error of a row."""
        found = _parsed(record)
        if len(found) != len(self._header):
            raise self._damaged(number)
        return found[0], found[COLUMNS.index("error")]

    def _damaged(self, number: int) -> FieldmarkError:
        return FieldmarkError(
            f"Row {number} of {self.path} is damaged: take it out, and its photo is predicted "
            "again."
        )


@contextmanager
def opened(
    path: Path, *, classes: Sequence[str], model: str, had: Callable[[str, str], None]
) -> Iterator[Ledger]:
    """Open a CSV, or begin one, for as long as the block runs; see `Ledger.go_on` for `had`.

    `model` is a short text that no other model has. Raises a FieldmarkError where the file cannot
    be written or another process does so.
    """
    with files.writing(path):
        files.require_folder(path.parent)
        if path.exists() and not path.is_file():
            raise FieldmarkError(f"{path} is a folder, a device or a pipe: name a file.")
        descriptor = locks.exclusive(path, create=True)
    if descriptor is None:
        raise FieldmarkError(f"{path} is being written by another process: wait until it is done.")
    # Unbuffered: nothing is left to be written by whoever closes it.
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        ledger = Ledger(path, file, [*COLUMNS, *(CLASS + name for name in classes), MODEL + model])
        ledger.go_on(had)
        yield ledger
        with files.writing(path):
            os.fsync(file.fileno())


def known_as(path: str) -> str:
    """Return a path as it is written down; what is not UTF-8 in it is escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


# ---- parts --------------------------------------------------------------------------------------


def _cells(row: Row, classes: int) -> list[str]:
    """Return the cells of a row, the last one empty."""
    path = known_as(row.path)
    if row.probabilities is None:
        return [path, "", "", known_as(row.error), *[""] * classes, ""]
    numbers = row.probabilities.tolist()
    answer = NONE if row.label is None else row.label
    if re.match(FORMULA, answer):  # which a spreadsheet would compute
        answer = f"'{answer}"
    return [path, answer, f"{max(numbers):.9g}", "", *(f"{p:.9g}" for p in numbers), ""]


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _parsed(record: bytes) -> list[str]:
    """Return the cells of a row; none where it is damaged."""
    try:
        (found,) = csv.reader(io.StringIO(record.decode(), newline=""), strict=True)
    except (ValueError, csv.Error):
        return []
    return found


def _within(record: bytes) -> list[bytes]:
    """Return the lines behind a record's first that are ended."""
    return record.split(END)[1:-1]


def _records(file: io.FileIO, longest: int) -> Iterator[tuple[bytes, bool]]:
    """Yield a CSV's rows as they are in the file, and whether each is whole; the last may be half.

    A row ends with a line break before which the quotes are even. What is longer than `longest`
    bytes is none: it is yielded, and nothing after it.
    """
    record = b""
    with open(file.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            record += line
            if record.endswith(END) and record.count(b'"') % 2 == 0:
                yield record, True
                record = b""
            if len(record) > longest:
                break
    if record:
        yield record, False
