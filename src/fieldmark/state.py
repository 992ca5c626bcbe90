"""The state of a training: all that going on from it needs, in one file, whole or not at all.

In: where a training stands, and the arrays of its network and optimiser. Out: a file that `write`
replaces and `read` checks; `refuse_other` says in what a training differs from the one that the
file is of; `mend_log` brings the log to what the file says; `sweep` removes what a killed process
was writing. `fieldmark train PHOTOS --out RUN` goes on from the state that it finds.

The file is a plain `.npz`, which numpy opens without fieldmark and without pickle; safetensors
would be one more dependency and has no checksum either. Its entry `header` is JSON, `photos` has a
digest of each row of the split, `checksum` is the SHA-256 of all entries before it, and the others
are the variables.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import files
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch

FORMAT = 1  # raised when an entry changes its meaning

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """Where a training stands and what it is; numbers, words and lists of them, as JSON has."""

    recipe: Mapping[str, Any]  # all values that decide the result
    epoch: int = 0  # epochs that are finished
    step: int = 0  # the next step of the running one; all are taken: its evaluation comes next
    loss: float = 0.0  # sums over the steps of the running epoch
    accuracy: float = 0.0
    seconds: float = 0.0  # that the running epoch has taken
    log: Sequence[Epoch] = ()  # the lines of the finished epochs
    made_with: Mapping[str, str] = field(default_factory=dict)  # backend and versions


def digests(rows: Iterable[Sequence[str]]) -> NDArray[np.uint64]:
    """Return a digest of each row of a split, (n,); the order counts, as batches depend on it."""
    found = [
        hashlib.blake2b("\0".join(row).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for row in rows
    ]
    return np.frombuffer(b"".join(found), "<u8")


def write(
    path: Path,
    header: Header,
    *,
    photos: NDArray[np.uint64],
    arrays: Iterable[tuple[str, NDArray[Any]]],
) -> None:
    """Replace the state in `path`, whole or not at all; then it is on the disk.

    `arrays` are pairs of a name and its values, taken one by one; what it raises leaves the
    earlier state as it was. Raises a FieldmarkError where `path` cannot be written.
    """
    with files.whole_file(path) as temporary:
        checksum = hashlib.sha256()
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

            def add(name: str, values: NDArray[Any]) -> None:
                content = io.BytesIO()
                np.lib.format.write_array(content, np.asarray(values), allow_pickle=False)
                # A date of its own would make the same state another file each time.
                entry = zipfile.ZipInfo(f"{name}.npy")
                archive.writestr(entry, content.getbuffer())
                checksum.update(name.encode() + b"\0")
                checksum.update(content.getbuffer())

            text = json.dumps({"format": FORMAT, **asdict(header)}, allow_nan=False)
            add("header", np.frombuffer(text.encode(), np.uint8))
            add("photos", photos)
            for name, values in arrays:
                add(name, values)
            add("checksum", np.frombuffer(checksum.digest(), np.uint8))
        sync(temporary)
    files.sync_folder(path.parent)


def read(path: Path) -> tuple[Header, NDArray[np.uint64], dict[str, NDArray[Any]]]:
    """Return the header, the digests of the photos and the variables that `write` was given.

    Raises a FieldmarkError for a file that is cut short or altered, or of another version.
    """
    try:
        entries = _checked(path)
        values = json.loads(entries.pop("header").tobytes())
        form = values.pop("format")
        if form == FORMAT:
            return Header(**values), entries.pop("photos"), entries
    except OSError as error:
        reason = error.strerror or str(error)
        raise FieldmarkError(f"{path} cannot be read ({reason}): make it readable.") from error
    except Exception as error:  # whatever the damage made of the file, and the readers of that
        raise FieldmarkError(
            f"{path} is damaged and nothing can go on from it: "
            "put a copy of it back, or begin a new run."
        ) from error
    raise FieldmarkError(
        f"{path} has the format {form}, and this fieldmark reads {FORMAT}: "
        "use the version that wrote it, or begin a new run."
    )


def _checked(path: Path) -> dict[str, NDArray[Any]]:
    """Return the entries of a file in their order, without the checksum, which must be theirs."""
    entries: dict[str, NDArray[Any]] = {}
    checksum, found = hashlib.sha256(), b""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            content = archive.read(entry)
            name = entry.filename.removesuffix(".npy")
            if name == "checksum":
                found = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False).tobytes()
                continue
            checksum.update(name.encode() + b"\0")
            checksum.update(content)
            # Not before the zip's own check of the content: a wrong shape could ask for any memory.
            entries[name] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if found != checksum.digest():
        raise ValueError("the checksum is another")
    return entries


def refuse_other(
    path: Path,
    found: tuple[Header, NDArray[np.uint64]],
    *,
    recipe: Mapping[str, Any],
    photos: NDArray[np.uint64],
    backend: str,
) -> None:
    """Raise a FieldmarkError that says in what a training differs from the one in `path`."""
    header, before = found
    wanted = json.loads(json.dumps(recipe))  # tuples become lists, as in the file
    names = [n for n in {**header.recipe, **wanted} if header.recipe.get(n) != wanted.get(n)]
    if names:
        listed = "; ".join(f"{n} {header.recipe.get(n)} there, {wanted.get(n)} now" for n in names)
        raise FieldmarkError(
            f"{path} is of another recipe ({listed}): give the values that it was begun with, "
            "or begin a new run."
        )
    if not np.array_equal(before, photos):
        new, gone = len(np.setdiff1d(photos, before)), len(np.setdiff1d(before, photos))
        what = "of the same photos in another order or split"
        if new or gone:
            what = f"of other photos ({new} are new or changed, {gone} are gone or changed)"
        raise FieldmarkError(
            f"{path} is {what}: bring back what it was begun with, or begin a new run."
        )
    began = header.made_with.get("backend", backend)
    if began != backend:
        raise FieldmarkError(
            f"{path} was begun with {began}, and Keras computes with {backend}: "
            f"set KERAS_BACKEND={began}, or begin a new run."
        )


def mend_log(path: Path, epochs: Sequence[Epoch]) -> None:
    """Make the log in `path` hold the lines of these epochs and nothing else.

    It writes only where a kill has left a line too few, half a line, or one too many.
    """
    text = "".join(json.dumps(epoch) + "\n" for epoch in epochs).encode()
    if (path.read_bytes() if path.exists() else b"") == text:
        return
    with files.whole_file(path) as temporary:
        temporary.write_bytes(text)
        sync(temporary)
    files.sync_folder(path.parent)


def sync(path: Path) -> None:
    """Bring the content of a file to the disk; it outlives a power cut then.

    To be called before the file gets its name: a name alone may be on the disk first.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sweep(path: Path) -> None:
    """Remove what killed processes were writing to `path`; call it where nobody else writes."""
    begin, end = f".{path.stem}.", f".partial{path.suffix}"  # as `files.whole_file` names them
    for left in path.parent.iterdir() if path.parent.is_dir() else ():
        if left.name.startswith(begin) and left.name.endswith(end):
            with suppress(OSError):
                left.unlink()
