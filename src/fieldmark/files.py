"""Files and folders that appear whole or not at all, and where those lie that are kept.

The content is written under a temporary name beside the final one and renamed when it is
complete, so that a full disk, a crash or Ctrl-C never leaves half a file that looks like a whole.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fieldmark.errors import FieldmarkError

Stamp = tuple[str, int, int, int]  # a file's path, number, bytes and time


class _Folder(Protocol):
    @property
    def folder(self) -> Path: ...


class Inside:
    """The path of what lies in the folder that an object is about: `recipe = Inside("a.json")`."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts

    def __get__(self, owner: _Folder, kind: type) -> Path:
        """Return the path in the owner's folder."""
        return owner.folder.joinpath(*self.parts)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends without an error.

    The temporary name keeps the suffix, by which Keras and matplotlib choose a format.
    """
    if is_folder(path) or not path.name:
        raise FieldmarkError(f"{path} is a folder: name a file.")
    with writing(path):
        if path.exists() and not path.is_file():  # a device would be replaced, not written to
            raise FieldmarkError(f"{path} is a device or a pipe: name a file.")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; text that is not UTF-8 becomes JSON's escapes."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_all(file: io.RawIOBase, content: bytes | memoryview) -> None:
    """Write all: a disk that is nearly full takes a part, and then raises."""
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) or 0 :]


def append(file: io.RawIOBase, content: bytes, *, sync: bool = False) -> None:
    """Write all of it at the file's end, or nothing; with `sync` it is on the disk then."""
    end = file.seek(0, os.SEEK_END)
    try:
        write_all(file, content)
        if sync:
            os.fsync(file.fileno())
    except BaseException:
        file.truncate(end)
        raise


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system knows how."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network file systems have no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` when the block ends without an error.

    `path` may be an empty folder already, nothing else.
    """
    refuse_existing(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())  # mkdtemp lets in its owner only
            if path.is_dir():
                path.rmdir()  # it is empty; not every system renames onto a folder
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replaced_folder(path: Path, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes `path` when the block ends without an error.

    What is there goes only then, and only where it is `ours`; it comes back where the new folder
    cannot take over.
    """
    refuse_replacing(path, ours)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    before = path.with_name(f".{path.name}.{os.getpid()}.old")
    with whole_folder(fresh) as temporary, writing(path):
        yield temporary
    with writing(path):
        try:
            if ours(path):
                path.replace(before)
            elif path.is_dir():
                path.rmdir()  # it is empty; not every system renames onto a folder
            fresh.replace(path)
        except BaseException:
            if before.exists() and not path.exists():
                before.replace(path)
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        shutil.rmtree(before, ignore_errors=True)


def refuse_replacing(path: Path, ours: Callable[[Path], bool]) -> None:
    """Raise where `path` is something else than a folder of `ours` or a new one."""
    _refuse_here(path)
    if not ours(path):
        refuse_existing(path)


def _refuse_here(path: Path) -> None:
    with writing(path):
        if os.path.realpath(path) == str(Path.cwd()):
            raise FieldmarkError(f"{path} is the folder that you are in: name a new one.")


def refuse_existing(path: Path) -> None:
    """Raise where `path` is a file, a folder that holds anything, or in a place not writable."""
    _refuse_here(path)
    with writing(path):
        if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
            raise FieldmarkError(
                f"{path} exists already and is not overwritten: "
                "name another folder, or move this one away."
            )
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_folder(folder: Path) -> None:
    """Raise where a folder that a file is to be written into is not there, or not writable."""
    with writing(folder):
        if not folder.is_dir():
            raise FieldmarkError(f"There is no folder {folder}: make it first.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_another(path: Path, *beginnings: str) -> None:
    """Raise where a file that begins otherwise would be written over: it is none of ours."""
    if not is_file(path):
        return
    with suppress(OSError), path.open("rb") as file:  # whoever writes says what is wrong
        begins = file.read(200).removeprefix(codecs.BOM_UTF8).decode(errors="replace")
        if begins and not begins.startswith(beginnings):
            raise FieldmarkError(
                f"{path} exists already, and holds something else than what is written here: name "
                "another file, or move this one away."
            )


def refuse_among(place: Path, folders: Iterable[Path]) -> None:
    """Raise where a file or folder would be written into, or over, one of these: they are read.

    Symbolic links are followed on both sides, so that no way leads in.
    """
    with writing(place):
        real = Path(os.path.realpath(place))
        for folder in folders:
            if real.is_relative_to(os.path.realpath(folder)):
                raise FieldmarkError(
                    f"{place} lies among the photos of {folder}, which are only read: "
                    "name a place elsewhere."
                )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one sentence that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FieldmarkError(
            f"{path} cannot be written ({reason}): name a place with room and the right to write."
        ) from error


def is_file(path: Path) -> bool:
    """Tell whether a file is there; where nobody may look, none is."""
    return os.path.isfile(path)  # noqa: PTH113 - Path's own raises there


def require_file(path: Path, otherwise: str) -> None:
    """Raise `otherwise` where there is no such file, and the reason where nobody may look."""
    try:
        there = stat.S_ISREG(path.stat().st_mode)
    except PermissionError as error:
        raise FieldmarkError(closed(path)) from error
    except (OSError, ValueError):  # of a name that none can have
        there = False
    if not there:
        raise FieldmarkError(otherwise)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content; raises an OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def closed(path: Path) -> str:
    """Say that a file may not be read."""
    return f"{path} cannot be read (Permission denied): change its rights, or those of its folder."


def stamp(path: Path) -> Stamp | None:
    """Return what changes when a file is exchanged or written; of one that is gone, nothing."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns


def is_link(path: Path) -> bool:
    """Tell whether a link is there; where nobody may look, none is."""
    return os.path.islink(path)  # noqa: PTH114 - Path's own raises there


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; where nobody may look, none is."""
    return os.path.isdir(path)  # noqa: PTH112 - Path's own raises there


def expanded(place: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder for a tilde that stands for one, else as it is."""
    return Path(os.path.expanduser(place))  # noqa: PTH111 - Path's own refuses other tildes


def cache_folder() -> Path:
    """Return where fieldmark keeps what can be had again: photos decoded, weights downloaded.

    It is the folder that FIELDMARK_CACHE names, or the system's place for caches.
    """
    if named := os.environ.get("FIELDMARK_CACHE"):
        return expanded(named).absolute()
    import platformdirs

    return platformdirs.user_cache_path("fieldmark", appauthor=False)


def _umask() -> int:
    """Return the process' umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
