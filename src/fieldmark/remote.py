"""Photos and runs in object stores: what lies at a URL <-> a folder of this machine.

In: a URL that fsspec has a library for, such as `s3://bucket/photos`. Out: `near`, a folder in the
cache with the same files, of which only those are fetched that are new or were changed; `kept`, a
folder to work in, what is new in which goes to the URL whenever its user says so.

    fieldmark train s3://bucket/photos --out s3://bucket/runs/first

An object appears whole or not at all, as files here do. No lock reaches beyond this machine: of two
that train into the same URL the last one to write wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fieldmark import files, locks, packages
from fieldmark.console import many, meter, progress
from fieldmark.errors import FieldmarkError

HANDFUL = 64  # files that are fetched at a time, side by side
KNOWN = "known.json"  # beside a mirror: what lay at the URL when it was fetched
ORIGIN = "url.txt"  # beside a mirror: its URL
LEFT_HERE = ("lock", ".cluster")  # what is of this machine only


def is_url(text: str | os.PathLike[str]) -> bool:
    """Tell whether something is a URL and no path."""
    return "://" in os.fspath(text)


@dataclass(frozen=True)
class Store:
    """What lies below a URL."""

    url: str
    system: Any  # fsspec's file system
    root: str

    @classmethod
    def at(cls, url: str) -> Store:
        """Open the store of a URL; raises a FieldmarkError where its library is missing."""
        packages.require("fsspec", extra="remote", why=f"{url} is a URL, which fsspec reads")
        from fsspec.core import url_to_fs

        with explained(url):
            system, root = url_to_fs(url)
        return cls(url.rstrip("/"), system, str(root).rstrip("/"))

    def files(self) -> dict[str, str]:
        """Return a text for each file by its name below the URL, another one when it changes."""
        with explained(self.url):
            self.system.invalidate_cache()
            found = self.system.find(self.root, detail=True)
        names = {}
        for path, facts in found.items():
            name = str(path).removeprefix(self.root).lstrip("/")
            parts = PurePosixPath(name).parts
            if name and ".." not in parts and not name.startswith("/") and "\\" not in name:
                names[name] = marked(facts)
        return names

    def file(self) -> str:
        """Return the text for the one file that the URL names; raises where nothing is there."""
        with explained(self.url):
            try:
                facts = self.system.info(self.root)
            except FileNotFoundError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None  # that is what fsspec makes of a host without an answer
                facts = {}
        if facts.get("type") != "file":
            raise FieldmarkError(
                f"There is nothing at {self.url}: name a folder that holds something."
            )
        return marked(facts)


def marked(facts: Mapping[str, Any]) -> str:
    """Return a text that changes when a file does."""
    marks = (facts.get(key) for key in ("size", "ETag", "etag", "mtime", "LastModified"))
    return "|".join(str(mark) for mark in marks if mark is not None)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the errors of the many libraries into one sentence."""
    try:
        yield
    except FieldmarkError:
        raise
    except ImportError as error:
        raise FieldmarkError(
            f"{url} cannot be read without a library of its own: {error}."
        ) from error
    except ValueError as error:
        raise FieldmarkError(f"{url} is of no kind that fsspec knows ({error}).") from error
    except Exception as error:  # each store has classes of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise FieldmarkError(
            f"{url} cannot be reached ({reason}): see that it is there, and that this machine has "
            "the key to it."
        ) from error


# ---- to this machine ----------------------------------------------------------------------------


def near(url: str) -> Path:
    """Return a folder of this machine with what lies at a URL; or a file, where that is one.

    Raises a FieldmarkError where nothing is there, or it cannot be had.
    """
    store = Store.at(url)
    if there := store.files():
        return fetched(store, there, mirror(url, "read"))
    mark = store.file()
    above, _, name = store.root.rpartition("/")
    return fetched(Store(url, store.system, above), {name: mark}, mirror(url, "read").parent) / name


def origin(path: Path) -> str:
    """Return the URL that a folder is the mirror of, else its absolute path."""
    note = path.parent / ORIGIN
    if path.is_relative_to(files.cache_folder() / "remote") and note.is_file():
        return note.read_text(encoding="utf-8")
    return str(path.absolute())


def opened(place: str) -> Path:
    """Return the path of what `origin` has named."""
    return near(place) if is_url(place) else Path(place)


def mirror(url: str, role: str) -> Path:
    """Return where the files of a URL lie on this machine; the name's end is the URL's."""
    digest = hashlib.sha256(f"{role} {url.rstrip('/')}".encode()).hexdigest()[:32]
    return files.cache_folder() / "remote" / digest / PurePosixPath(url.rstrip("/")).name


def fetched(store: Store, there: Mapping[str, str], folder: Path) -> Path:
    """Bring a folder to what lies in the store, and return it."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locks.awaited(folder.parent / "lock"):
        known_file = folder.parent / KNOWN
        with files.whole_file(folder.parent / ORIGIN) as partial:
            partial.write_text(store.url, encoding="utf-8")
        known = json.loads(known_file.read_text()) if known_file.exists() else {}
        wanted = [
            name
            for name, mark in there.items()
            if known.get(name) != mark or not (folder / name).is_file()
        ]
        for name in known.keys() - there.keys():
            (folder / name).unlink(missing_ok=True)
        if wanted:
            progress.print(f"Fetching {many(len(wanted), 'file')} of {store.url}", markup=False)
        done = {name: known[name] for name in known.keys() & there.keys() - {*wanted}}
        with meter("Fetching", len(wanted)) as shown:
            for at in range(0, len(wanted), HANDFUL):
                some = wanted[at : at + HANDFUL]
                _fetch(store, some, folder)
                done |= {name: there[name] for name in some}
                files.write_json(known_file, done)
                shown.advance(len(some))
    return folder


def _fetch(store: Store, names: list[str], folder: Path) -> None:
    """Fetch a handful of files, each whole or not at all."""
    partials = [folder / f"{name}.{os.getpid()}.partial" for name in names]
    with files.writing(folder):
        for partial in partials:
            partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with explained(store.url):
            store.system.get([f"{store.root}/{name}" for name in names], [str(p) for p in partials])
        with files.writing(folder):
            for name, partial in zip(names, partials, strict=True):
                partial.replace(folder / name)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


# ---- from this machine --------------------------------------------------------------------------


@dataclass
class Kept:
    """A folder to work in, and the URL that it is kept at; obtained from `kept`."""

    folder: Path
    store: Store | None  # none: the folder is all there is
    pushed: dict[str, tuple[int, int]] = field(default_factory=dict)

    def push(self) -> None:
        """Bring what is new or changed to the URL, what was changed first going first.

        What is changed first is what the rest leans on: the state comes before the log.
        """
        if self.store is None:
            return
        for name, facts in sorted(self._facts().items(), key=lambda item: item[1][1]):
            if self.pushed.get(name) != facts:
                with explained(self.store.url):
                    self.store.system.put_file(str(self.folder / name), f"{self.store.root}/{name}")
                self.pushed[name] = facts

    def pull(self) -> None:
        """Bring the folder to what others have put at the URL."""
        if self.store is None:
            return
        there = self.store.files()
        if there:
            fetched(self.store, there, self.folder)
        self.pushed = {name: facts for name, facts in self._facts().items() if name in there}

    def _facts(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file of the folder that is to be kept."""
        found = {}
        for path in self.folder.rglob("*"):
            parts = path.relative_to(self.folder).parts
            if path.is_file() and not any(
                part in LEFT_HERE or ".partial" in part for part in parts
            ):
                facts = path.stat()
                found["/".join(parts)] = (facts.st_size, facts.st_mtime_ns)
        return found


@contextmanager
def kept(place: str | os.PathLike[str], *, role: str = "work") -> Iterator[Kept]:
    """Give a folder to work in: the place itself, or where it is a URL, one that is kept there.

    What lies at the URL is fetched first, and what is new goes there in the end, whatever happens.
    Raises a FieldmarkError where another process of this machine works there in the same role.
    """
    if not is_url(place):
        yield Kept(files.expanded(place), None)
        return
    url = os.fspath(place)
    work = Kept(mirror(url, role), Store.at(url))
    above = work.folder.parent
    with files.writing(above):
        above.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{url} is worked on by another process: wait for it."
    with locks.alone(above.with_suffix(".lock"), busy):
        shutil.rmtree(above, ignore_errors=True)  # what lies at the URL is what counts
        try:
            work.pull()
            yield work
            work.push()
        except BaseException:
            with suppress(FieldmarkError):  # what is on its way says more
                work.push()
            raise
        finally:
            shutil.rmtree(above, ignore_errors=True)
