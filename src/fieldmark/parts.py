"""A folder of Parquet files of answers that is added to part by part, and gone on with.

In: the answers of a classifier, batch by batch. Out: `part-000000.parquet` and so on, each there
whole or not at all: the columns of a `ledger` with numbers as numbers, nothing where there is no
answer, and in its metadata which model it was. `fieldmark predict MODEL FOLDER --parquet DIR`
writes one, and whatever reads Parquet reads the folder as one table.

A part is written when it has `ROWS` rows or its first one has waited for `SECONDS`, so that a crash
costs no more than that, and there are not very many files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldmark import files, locks, packages
from fieldmark.errors import FieldmarkError
from fieldmark.ledger import COLUMNS, NONE, Row, known_as
from fieldmark.predictions import CLASS

ROWS = 10_000
SECONDS = 60.0
MODEL = b"fieldmark.model"  # the metadata that says which model
LOCK = ".lock"  # what begins with a dot is no part, for others neither
BEGUN = ".part-*.parquet"  # what was being written when a process was killed


class Parts:
    """A folder that is open and locked; obtained from `opened`."""

    def __init__(self, folder: Path, classes: Sequence[str], model: str) -> None:
        import pyarrow as pa

        self.folder = folder
        self._model = model
        texts = [(name, pa.float64() if name == "probability" else pa.string()) for name in COLUMNS]
        numbers = [(CLASS + name, pa.float64()) for name in classes]
        self._schema = pa.schema(texts + numbers, {MODEL: model.encode()})
        self._next = 0
        self._rows: list[Row] = []
        self._since = 0.0

    def go_on(self, had: Callable[[str, str], None]) -> None:
        """Call `had(path, error)` for each row that is there.

        Raises a FieldmarkError for a part that is damaged or was written by another model.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for begun in self.folder.glob(BEGUN):
            begun.unlink()
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                with pq.ParquetFile(path) as part:
                    if not part.schema_arrow.equals(self._schema, check_metadata=True):
                        raise FieldmarkError(
                            f"{path} was not written by this model, or holds no answers: name "
                            "another folder, or move this one away."
                        )
                    for some in part.iter_batches(ROWS, columns=["path", "error"]):
                        for known, error in zip(*some.to_pydict().values(), strict=True):
                            had(known, error or "")
            except (pa.ArrowException, OSError) as error:
                raise FieldmarkError(
                    f"{path} cannot be read ({' '.join(str(error).split())[:200]}): take it out, "
                    "and its photos are predicted again."
                ) from error
            self._next = max(self._next, number_of(path) + 1)

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows, and write those that have waited long enough."""
        now = time.monotonic()
        if not self._rows:
            self._since = now
        self._rows += rows
        if len(self._rows) >= ROWS or now - self._since > SECONDS:
            self.write()

    def write(self) -> None:
        """Write the rows that wait as one more part."""
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(columns(self._rows, len(self._schema) - len(COLUMNS)), self._schema)
        with files.whole_file(self.folder / f"part-{self._next:06}.parquet") as temporary:
            pq.write_table(table, temporary)
        self._next += 1
        self._rows = []


@contextmanager
def opened(
    folder: Path, *, classes: Sequence[str], model: str, had: Callable[[str, str], None]
) -> Iterator[Parts]:
    """Open a folder of parts, or begin one, for as long as the block runs; see `ledger.opened`.

    However the block ends, the rows that were added are written.
    """
    packages.require("pyarrow", extra="cluster", why="Parquet is written by pyarrow")
    with files.writing(folder):
        folder.mkdir(exist_ok=True)
    busy = f"{folder} is being written by another process: wait until it is done."
    with locks.alone(folder / LOCK, busy):
        parts = Parts(folder, classes, model)
        parts.go_on(had)
        try:
            yield parts
        finally:
            parts.write()


# ---- parts of parts -----------------------------------------------------------------------------


def columns(rows: Sequence[Row], classes: int) -> list[list[Any]]:
    """Return rows as columns, in the schema's order."""
    known = [None if row.probabilities is None else row.probabilities.tolist() for row in rows]
    return [
        [known_as(row.path) for row in rows],
        [
            None if row.probabilities is None else NONE if row.label is None else row.label
            for row in rows
        ],
        [None if each is None else max(each) for each in known],
        [known_as(row.error) if row.probabilities is None else None for row in rows],
        *([None if each is None else each[i] for each in known] for i in range(classes)),
    ]


def number_of(path: Path) -> int:
    """Return a part's number; -1 for a name that others gave."""
    digits = path.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1
