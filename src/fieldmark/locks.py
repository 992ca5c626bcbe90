"""Locks on files: who works here alone, and what is in use, among the processes of a machine.

In: the path of a file. Out: a lock, which is the open file's descriptor; `os.close` lets go of it,
and so does the end of the process, however it ends: no lock is ever stale, and none has to be
judged by its age. A lock holds back only those who ask for one. On network file systems that have
no locks an `OSError` is raised.

The library `filelock` (4.2) has no shared lock of this kind: its reader's lock is a SQLite
database, which cannot be opened in a folder that may only be read.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fieldmark import files
from fieldmark.errors import FieldmarkError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PAUSE = 0.2  # seconds between two tries


def exclusive(path: Path, *, create: bool = False) -> int | None:
    """Lock a file against all others; `None` where somebody has it locked."""
    while True:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            if sys.platform == "win32":
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # Windows says that it is not permitted
            os.close(file)
            return None
        except OSError:
            os.close(file)
            raise
        if _is_still(path, file):
            return file
        os.close(file)  # whoever had it locked has removed it


def shared(path: Path) -> int | None:
    """Lock a file as one of its users, for which the right to read it is enough.

    `None` where there is no such file, and on Windows, where none is needed: a folder is not
    renamed or removed as long as one of its files is open or mapped.
    """
    if sys.platform == "win32":
        return None
    else:
        while True:
            try:
                file = os.open(path, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_SH)  # one that removes it has it for a moment
            except OSError:
                os.close(file)
                raise
            if _is_still(path, file):
                return file
            os.close(file)


def in_use(path: Path) -> bool:
    """Say whether any process has a file locked; on Windows, which does not tell, always False."""
    if sys.platform == "win32":
        return False
    try:
        lock = exclusive(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it is another user's: it is not for us to remove
    if lock is not None:
        os.close(lock)
    return lock is None


@contextmanager
def sole(path: Path) -> Iterator[bool]:
    """Give True to the one process that has a lock, False to the others; the file is ours to make.

    It is there only as long as somebody has it locked, or has been killed while he had.
    """
    lock = exclusive(path, create=True)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        if sys.platform == "win32":  # which keeps a file that is open
            os.close(lock)
            with suppress(OSError):
                path.unlink()
        else:  # before the lock is let go of: it may be another's after
            with suppress(OSError):
                path.unlink()
            os.close(lock)


@contextmanager
def awaited(path: Path, *, patience: float = math.inf) -> Iterator[None]:
    """Be the one process that has a lock; after `patience` seconds a TimeoutError."""
    until = time.monotonic() + patience
    while True:
        with sole(path) as ours:
            if ours:
                yield
                return
        if time.monotonic() > until:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(PAUSE)


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Be the one process that has a lock; raise `refusal` as a FieldmarkError where another has."""
    with ExitStack() as held:
        with files.writing(path):  # of the lock alone: what is done meanwhile has its own names
            ours = held.enter_context(sole(path))
        if not ours:
            raise FieldmarkError(refusal)
        yield


def _is_still(path: Path, file: int) -> bool:
    """Say whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
