"""The table of predictions: a row a photo, with its class and the probability of each.

In: what a network says of photos. Out: `write` puts it down as a CSV, `read` brings it back and
refuses what is damaged. It is the seam of the house: networks stand on one side, and all that
judges them stands on the other and needs numpy alone. `fieldmark evaluate RUN` writes one.

Columns: path, split, label (the class' name), group, sha256, then `p:` and its name for each class.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fieldmark import files
from fieldmark.errors import FieldmarkError

SPLITS = ("training", "validation", "test", "new")  # new: photos of another folder
COLUMNS = ("path", "split", "label", "group", "sha256")
CLASS = "p:"  # how the name of a class' column begins
LEAST = 1e-300  # no probability is written as 0: its logarithm is wanted
SUM = 1e-3  # how far from 1 a row may add up to
ANEW = "`fieldmark evaluate RUN` writes it anew"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of n photos and c classes."""

    classes: tuple[str, ...]  # c names, in the order of the labels
    paths: tuple[str, ...]  # n; as in the run's split, absolute for photos of another folder
    splits: tuple[str, ...]  # n; each one of `SPLITS`
    labels: NDArray[np.int64]  # (n,) the true class of each
    groups: tuple[str, ...]  # n; photos of one group belong together; empty: it stands alone
    sha256: tuple[str, ...]  # n; of the files' bytes
    probabilities: NDArray[np.float64]  # (n, c), rows sum to 1

    def __len__(self) -> int:
        """Return how many photos there are."""
        return len(self.paths)

    def of(self, split: str) -> Predictions:
        """Return the rows of one split."""
        return self.rows(np.array([each == split for each in self.splits], bool))

    def rows(self, chosen: NDArray[np.bool_]) -> Predictions:
        """Return the rows where `chosen`, (n,), is true."""
        where = np.flatnonzero(chosen)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in where),
            splits=tuple(self.splits[i] for i in where),
            labels=self.labels[where],
            groups=tuple(self.groups[i] for i in where),
            sha256=tuple(self.sha256[i] for i in where),
            probabilities=self.probabilities[where],
        )


def write(path: Path, predictions: Predictions) -> None:
    """Write the table as a CSV in UTF-8, whole or not at all; 9 significant digits."""
    try:
        with (
            files.whole_file(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as f,
        ):
            writer = csv.writer(f)
            writer.writerow([*COLUMNS, *(CLASS + name for name in predictions.classes)])
            for i, row in enumerate(np.maximum(predictions.probabilities, LEAST).tolist()):
                writer.writerow(
                    (
                        _guarded(predictions.paths[i], "./"),
                        predictions.splits[i],
                        _guarded(predictions.classes[predictions.labels[i]], "'"),
                        _guarded(predictions.groups[i], "'"),
                        predictions.sha256[i],
                        *(f"{p:.9g}" for p in row),
                    )
                )
    except UnicodeEncodeError as error:
        raise FieldmarkError(
            f"{path} cannot hold the name {error.object!r}, which is not UTF-8: rename the photo, "
            "or the folder above it."
        ) from error


def read(path: Path) -> Predictions:
    """Return the table in a CSV; raises a `FieldmarkError` that names what is damaged."""
    rows = _rows(path)
    _, header = next(rows, (1, []))
    columns, classes = _columns(path, header)
    number = {name: i for i, name in enumerate(classes)}
    texts, labels, probabilities = list[dict[str, str]](), list[int](), list[NDArray[np.float64]]()
    lines = dict[tuple[str, str], int]()
    for line, cells in rows:
        where = f"Line {line} of {path}"
        if len(cells) != len(header):
            raise FieldmarkError(
                f"{where} has {len(cells)} cells and the first has {len(header)}: {ANEW}."
            )
        row = {name: cells[i] for name, i in columns.items()}
        row["path"] = _bare(row["path"], "./")
        row["label"], row["group"] = _bare(row["label"], "'"), _bare(row["group"], "'")
        _refuse_row(where, row, number)
        first = lines.setdefault((row["split"], row["path"]), line)
        if first != line:
            raise FieldmarkError(
                f"Lines {first} and {line} of {path} are both about the {row['split']} photo "
                f"{row['path']}: {ANEW}."
            )
        texts.append(row)
        labels.append(number[row["label"]])
        probabilities.append(_numbers(where, cells[len(COLUMNS) :], classes))
    if not texts:
        raise FieldmarkError(f"{path} has no rows: {ANEW}.")
    return Predictions(
        classes=classes,
        paths=tuple(row["path"] for row in texts),
        splits=tuple(row["split"] for row in texts),
        labels=np.array(labels, np.int64),
        groups=tuple(row["group"] for row in texts),
        sha256=tuple(row["sha256"] for row in texts),
        probabilities=np.stack(probabilities),
    )


# ---- parts of reading ---------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each row begins on, and its cells; lines without any are left out."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:  # spreadsheets add a mark before it
            reader = csv.reader(f, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except FileNotFoundError as error:
        raise FieldmarkError(f"There is no {path}: `fieldmark evaluate RUN` writes it.") from error
    except OSError as error:
        raise FieldmarkError(f"{path} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise FieldmarkError(f"{path} is not text in UTF-8: {ANEW}.") from error
    except csv.Error as error:
        raise FieldmarkError(f"Line {line} of {path} is not CSV ({error}): {ANEW}.") from error


def _columns(path: Path, header: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return where the columns before the classes are, and the names of the classes."""
    before, behind = header[: len(COLUMNS)], header[len(COLUMNS) :]
    if {*before} != {*COLUMNS}:
        missing = [name for name in COLUMNS if name not in before]
        raise FieldmarkError(
            f"{path} lacks {', '.join(missing)} among the first {len(COLUMNS)} columns of its "
            f"first line: {ANEW}."
        )
    strange = next((name for name in behind if not name.startswith(CLASS)), None)
    if strange is not None:
        raise FieldmarkError(
            f"{path} has the column {strange!r}, which is none of a class ({CLASS}NAME): {ANEW}."
        )
    classes = tuple(name.removeprefix(CLASS) for name in behind)
    if len(classes) < 2:
        count = "one column of a class" if classes else "no columns of classes"
        raise FieldmarkError(f"{path} has {count} ({CLASS}NAME), and two are the least: {ANEW}.")
    if len({*classes}) < len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise FieldmarkError(f"{path} has two columns of the class {twice!r}: {ANEW}.")
    return {name: i for i, name in enumerate(before)}, classes


def _refuse_row(where: str, row: dict[str, str], number: dict[str, int]) -> None:
    """Raise a FieldmarkError for a row that says nothing, or nothing known, of a photo."""
    if not row["path"]:
        raise FieldmarkError(f"{where} names no photo: {ANEW}.")
    if row["split"] not in SPLITS:
        raise FieldmarkError(
            f"{where} has the split {row['split']!r}, which is none of {', '.join(SPLITS)}: {ANEW}."
        )
    if row["label"] not in number:
        raise FieldmarkError(
            f"{where} has the class {row['label']!r}, which no column is about: {ANEW}."
        )
    if not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
        raise FieldmarkError(f"{where} has the sha256 {row['sha256']!r}, which is none: {ANEW}.")


def _numbers(where: str, cells: list[str], classes: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the probabilities of a row, (c,)."""
    found = list[float]()
    for cell, name in zip(cells, classes, strict=True):
        try:
            found.append(float(cell))
        except ValueError:
            found.append(np.nan)
        if not 0 <= found[-1] <= 1:  # which NaN is not either
            raise FieldmarkError(
                f"{where} has the probability {cell!r} of {name}, "
                f"which is no number from 0 to 1: {ANEW}."
            )
    if abs(sum(found) - 1) > SUM:
        raise FieldmarkError(
            f"{where} has probabilities that add up to {sum(found):.6g} instead of 1: {ANEW}."
        )
    return np.array(found, np.float64)


# ---- what a spreadsheet would compute -----------------------------------------------------------

FORMULA = r"[=+\-@\t\r]"  # a spreadsheet computes what begins so


def _guarded(text: str, before: str) -> str:
    """Put a sign before what a spreadsheet would compute, in a way that `_bare` can undo.

    Before a path it is `./`, for `./=1` is the same path as `=1`. What looks guarded already gets
    another one, so that nothing is lost.
    """
    looks = re.match(f"(?:{re.escape(before)})*{FORMULA}", text)
    return before + text if looks else text


def _bare(cell: str, before: str) -> str:
    """Return the text that `_guarded` made a cell of."""
    looks = re.match(f"(?:{re.escape(before)})+{FORMULA}", cell)
    return cell.removeprefix(before) if looks else cell
