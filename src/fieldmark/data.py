"""A folder of photos -> the list of them -> an audit -> the written split.

In: `FOLDER/CLASS/photo.jpg`, a sub-folder a class. Out: `Photos`, with every file that the
training will read, in the order of Keras' `image_dataset_from_directory`; and `Record`s, the rows
of `split.csv`. The folder is only read. `fieldmark train` begins with this.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fieldmark.console import track
from fieldmark.errors import FieldmarkError

# What Keras' reader lists, by extension alone (keras/src/utils/image_dataset_utils.py).
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class Photos:
    """The photos of a folder: `labels[i]` is the index in `classes` of the photo `paths[i]`."""

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the folder, with forward slashes
    labels: tuple[int, ...]
    left_out: tuple[str, ...] = ()  # files in the folder that no class or no extension speaks for

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.paths)


@dataclass(frozen=True)
class Record:
    """One row of `split.csv`."""

    path: str  # relative to the folder of photos
    label: str  # the class' name
    split: Literal["training", "validation"]
    group: str  # photos of one group never part; empty: the photo stands alone
    sha256: str  # of the file's bytes


def list_photos(folder: str | os.PathLike[str]) -> Photos:
    """List the photos of a folder with one sub-folder a class.

    Classes and files come in sorted order; a class' sub-folders are searched too. Raises a
    `FieldmarkError` where the folder cannot be trained on.
    """
    root = Path(folder)
    try:
        names = sorted(entry.name for entry in root.iterdir() if _is_class(entry))
        empty = not any(root.iterdir())
    except FileNotFoundError as error:
        raise FieldmarkError(f"There is no folder {root}: check the path.") from error
    except OSError as error:
        raise FieldmarkError(
            f"{root} cannot be read as a folder ({error.strerror}): "
            "name a folder with one sub-folder of photos for each class."
        ) from error
    if empty:
        raise FieldmarkError(
            f"{root} is empty: put the photos of each class into a sub-folder of its own."
        )
    files = {name: _files(root / name) for name in names}
    photos = {name: [f for f in files[name] if f.lower().endswith(EXTENSIONS)] for name in names}
    _refuse_unusable(root, files, photos)
    _refuse_unwritable(root, photos)
    return Photos(
        folder=root,
        classes=tuple(names),
        paths=tuple(f"{name}/{file}" for name in names for file in photos[name]),
        labels=tuple(label for label, name in enumerate(names) for _ in photos[name]),
        left_out=(
            *sorted(entry.name for entry in root.iterdir() if entry.is_file()),
            *(f"{name}/{f}" for name in names for f in sorted({*files[name]} - {*photos[name]})),
        ),
    )


def left_out(photos: Photos) -> str:
    """Say which kinds of files in the folder are not read: `3 x .webp, 1 x .txt`."""
    kinds = Counter(Path(path).suffix.lower() or "no extension" for path in photos.left_out)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def audit(photos: Photos, decode: Callable[[bytes], object]) -> dict[str, str]:
    """Read and decode every photo; return the sha256 of each path.

    `decode` is the reader that the training will use, and raises a `ValueError` with the reason
    where it cannot. All files that fail are named in one `FieldmarkError`.
    """

    def examine(path: str) -> tuple[str, str | None]:
        try:
            if stat.S_ISFIFO((photos.folder / path).stat().st_mode):
                return "", "is a pipe"  # to read it would wait for ever
            content = (photos.folder / path).read_bytes()
            decode(content)
        except OSError as error:
            return "", error.strerror or str(error)
        except ValueError as error:
            return "", str(error)
        return hashlib.sha256(content).hexdigest(), None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(track(pool.map(examine, photos.paths), "Checking photos", len(photos)))
    bad = [
        f"  {photos.folder / path}: {why}"
        for path, (_, why) in zip(photos.paths, results, strict=True)
        if why
    ]
    if bad:
        count = "1 file is not a photo" if len(bad) == 1 else f"{len(bad)} files are not photos"
        raise FieldmarkError(
            f"{count} that can be read; move them out of the folder and run again:\n"
            + "\n".join(bad)
        )
    return {path: sha256 for path, (sha256, _) in zip(photos.paths, results, strict=True)}


def records(
    photos: Photos, hashes: dict[str, str], validation: Iterable[str]
) -> tuple[Record, ...]:
    """Return the rows of `split.csv`, sorted by path; `validation` are the paths held out."""
    held_out = frozenset(validation)
    return tuple(
        Record(
            path=path,
            label=photos.classes[label],
            split="validation" if path in held_out else "training",
            group="",
            sha256=hashes[path],
        )
        for path, label in zip(photos.paths, photos.labels, strict=True)
    )


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _files(folder: Path) -> list[str]:
    """List all files below a folder, relative to it, in the order of Keras' reader."""

    def refuse(error: OSError) -> None:
        raise FieldmarkError(
            f"{error.filename} cannot be read ({error.strerror}): change its rights."
        ) from error

    steps = os.walk(folder, onerror=refuse)
    return [
        Path(root, file).relative_to(folder).as_posix()
        for root, _, files in sorted(steps, key=lambda step: step[0])
        for file in sorted(files)
    ]


def _refuse_unusable(root: Path, files: dict[str, list[str]], photos: dict[str, list[str]]) -> None:
    """Raise where there are not two classes with photos in each."""
    if not files:
        raise FieldmarkError(
            f"{root} has no sub-folders: put the photos of each class into one of its own."
        )
    if not any(photos.values()):
        found = Counter(Path(f).suffix.lower() or "none" for fs in files.values() for f in fs)
        seen = ", ".join(f"{count} x {suffix}" for suffix, count in found.most_common(5))
        raise FieldmarkError(
            f"No photo was found in {root} (extensions there: {seen or 'no files'}): "
            f"use {', '.join(EXTENSIONS)}."
        )
    if len(photos) == 1:
        raise FieldmarkError(
            f"{root} holds the one class {next(iter(photos))!r}: "
            "a classifier needs two, add a sub-folder."
        )
    without = [name for name, of_class in photos.items() if not of_class]
    if without:
        raise FieldmarkError(
            f"No photo was found in {', '.join(str(root / name) for name in without)}: "
            "add photos, or take the sub-folder away."
        )


def _refuse_unwritable(root: Path, photos: dict[str, list[str]]) -> None:
    """Raise for names that no text file can hold, one name a line."""
    for name in (name for kind, of_class in photos.items() for name in (kind, *of_class)):
        if "\n" in name or "\r" in name or any("\ud800" <= sign <= "\udfff" for sign in name):
            raise FieldmarkError(
                f"The name {name!r} in {root} holds a line break or is not UTF-8: rename it."
            )
