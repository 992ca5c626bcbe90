"""Which photos are meant: photos, folders, a list on standard input -> a stream of their paths.

In: what a user names. Out: an `Item` for each file, one after the other, so that a folder of a
million photos takes no more memory than one of ten. `Seen` remembers in 8 bytes a path which were
had before. No file is opened here but the list. `fieldmark predict MODEL PHOTO|FOLDER|- ...`

Hidden files, what systems put among photos, and links are as `data` has them: links are followed,
and each folder is entered once. A link that leads to where answers are written is refused.
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fieldmark import data, files
from fieldmark.errors import FieldmarkError

STANDARD_INPUT = Path("-")
SORTED = 10_000  # entries of one folder that are brought into order; more are taken as they come
RECENT = 1 << 13  # paths that `Seen` keeps apart before it sorts them in
CHUNK = 1 << 16  # bytes of a list that are read at a time


class Item(NamedTuple):
    """A file that may be a photo."""

    path: str  # absolute
    named: bool = False  # by its user, who means it as a photo
    why: str = ""  # why it cannot be one, a clause; empty: who opens it learns that
    skipped: bool = False  # it is none and never was meant as one: hidden, or a system's own


def absolute(path: str) -> str:
    """Return an absolute path without `..`; links stay what they are but before that.

    What is above a link is above the folder that it leads to.
    """
    parts = Path(path).parts if os.pardir in path else ()
    if os.pardir in parts:
        above = len(parts) - parts[::-1].index(os.pardir)
        path = str(Path(os.path.realpath(Path(*parts[:above])), *parts[above:]))
    return os.path.abspath(path)  # noqa: PTH100 - which follows no link


class Seen:
    """Which paths were had before; they are told by 64 bits, so a million take 8 MB.

    That two of a million paths have the same bits happens once in forty million folders.
    """

    def __init__(self) -> None:
        self._settled = np.zeros(0, np.uint64)  # sorted
        self._recent = set[int]()

    def __len__(self) -> int:
        """Count the paths."""
        return len(self._settled) + len(self._recent)

    def add(self, path: str) -> bool:
        """Remember a path; say whether it is a new one."""
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        place = int(np.searchsorted(self._settled, np.uint64(key)))
        there = place < len(self._settled) and int(self._settled[place]) == key
        if there or key in self._recent:
            return False
        self._recent.add(key)
        if len(self._recent) == RECENT:
            fresh = np.fromiter(self._recent, np.uint64, RECENT)
            self._settled = np.sort(np.concatenate([self._settled, fresh]), kind="stable")
            self._recent = set()
        return True

    def copy(self) -> Seen:
        """Return another that goes on from here by itself."""
        other = Seen()
        other._settled, other._recent = self._settled, {*self._recent}
        return other


class Sources:
    """What a user has named; made by `opened`, iterated as often as wanted."""

    def __init__(
        self, places: Sequence[Path], listed: IO[bytes] | None, *, written: Sequence[Path] = ()
    ) -> None:
        self.places = places
        self.written = written
        self._listed = listed

    def __iter__(self) -> Iterator[Item]:
        """Yield every file, in the order of the places; one that is named twice comes twice."""
        for place in self.places:
            if place == STANDARD_INPUT:
                if self._listed is not None:
                    yield from map(self._apart, _named_in(self._listed))
            elif place.is_dir():
                yield from walk(place, written=self.written)
            else:
                path = absolute(os.fspath(place))
                yield self._apart(Item(path, named=True))

    def _apart(self, item: Item) -> Item:
        """Return a photo that was named; raise where it lies in a folder that is written."""
        _refuse_within(os.path.dirname(item.path), self.written)  # noqa: PTH120 - many photos
        return item


@contextmanager
def opened(
    places: Sequence[Path], standard_input: IO[bytes], *, written: Sequence[Path] = ()
) -> Iterator[Sources]:
    """Give what a user has named, for as long as the block runs.

    A list on standard input (`-`) is read to its end first and put on the disk: who goes through it
    twice can say how much is left. Raises a FieldmarkError for a place that is not there, or where
    one of `written`, which the answers go to, lies in it or is linked to.
    """
    if not places:
        raise FieldmarkError("Name photos, folders of them, or - for a list on standard input.")
    for place in places:
        if place != STANDARD_INPUT and not os.path.lexists(place):
            raise FieldmarkError(f"There is no photo {place}: name one, or a folder of them.")
        if place.is_dir() and not os.access(place, os.R_OK | os.X_OK):
            raise FieldmarkError(f"{place} cannot be read: change its rights.")
    for folder in filter(Path.is_dir, places):
        _refuse_within(os.fspath(folder), written)
    for place in written:
        files.refuse_among(place, [each for each in places if each != STANDARD_INPUT])
    if STANDARD_INPUT not in places:
        yield Sources(places, None, written=written)
        return
    with tempfile.TemporaryFile() as listed:
        while chunk := standard_input.read(CHUNK):
            listed.write(chunk)
        yield Sources(places, listed, written=written)


def walk(folder: Path, *, written: Sequence[Path] = ()) -> Iterator[Item]:
    """Yield every file of a folder and of those below it; links to folders come after all others.

    A folder that cannot be opened is an item with a reason, its path ends in a slash. Raises a
    FieldmarkError for a link that leads to one of `written`.
    """
    around = {data.identity_of(above) for above in folder.resolve().parents}
    entered = set[tuple[int, int]]()
    pending, links = [absolute(os.fspath(folder))], list[str]()
    while pending or links:
        linked = not pending
        place = heapq.heappop(links) if linked else pending.pop()
        folders = list[str]()
        try:
            identity = data.identity_of(Path(place))
            if identity in around or identity in entered:
                continue
            entered.add(identity)
            if linked:
                _refuse_way(place, written)
            with os.scandir(place) as entries:
                for entry in _in_order(entries):
                    real_folder = entry.is_dir(follow_symlinks=False)
                    if data.why_aside(entry.name, real_folder):
                        yield Item(entry.path, skipped=True)
                    elif real_folder:
                        folders.append(entry.path)
                    elif not entry.is_symlink():
                        yield Item(entry.path)
                    elif stat.S_ISDIR(mode := data.mode_of(Path(entry.path))):
                        heapq.heappush(links, entry.path)
                    else:
                        if not mode:  # it leads nowhere yet
                            _refuse_way(entry.path, written)
                        yield Item(entry.path)
        except OSError as error:
            yield Item(f"{place}{os.sep}", why=f"cannot be opened ({error.strerror or error})")
        pending += sorted(folders, reverse=True)


def _refuse_way(link: str, written: Sequence[Path]) -> None:
    """Raise where a link leads to something that is written, around it or into it.

    What is written there would be taken for photos to answer, and those are only read.
    """
    target = Path(os.path.realpath(link))
    for place in written:
        real = Path(os.path.realpath(place))
        if real.is_relative_to(target) or target.is_relative_to(real):
            raise FieldmarkError(
                f"{link}, among the photos, is a link that leads to {place}, which is written: "
                "write elsewhere, or take the link away."
            )


def _refuse_within(folder: str, written: Sequence[Path]) -> None:
    """Raise where photos lie in a folder that is written: copies of them would lie among them."""
    for place in written:
        if _real(folder).is_relative_to(_real(os.fspath(place))):
            raise FieldmarkError(
                f"The photos of {folder} lie in {place}, which is written, and photos are only "
                "read: write elsewhere."
            )


@lru_cache(maxsize=1024)
def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


def _in_order(entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    """Yield a folder's entries by name, or as they come where they are very many."""
    left = iter(entries)
    first = list(islice(left, SORTED))
    if len(first) < SORTED:
        first.sort(key=lambda entry: entry.name)
    return chain(first, left)


def _named_in(listed: IO[bytes]) -> Iterator[Item]:
    """Yield the photos of a list: one a line, or separated by NUL, as `find -print0` has them."""
    chunks = _utf8(listed)
    first = next(chunks, b"")
    separator = b"\0" if b"\0" in first else b"\n"
    rest = b""
    for chunk in chain([first], chunks):
        *whole, rest = (rest + chunk).split(separator)
        yield from _items(whole, separator)
    yield from _items([rest], separator)


def _utf8(listed: IO[bytes]) -> Iterator[bytes]:
    """Yield a list's content without a mark, in UTF-8 where it is in PowerShell's UTF-16."""
    listed.seek(0)
    chunks = iter(partial(listed.read, CHUNK), b"")
    first = next(chunks, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        yield from (decoder.decode(chunk).encode() for chunk in chain([first], chunks))
    else:
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from chunks


def _items(names: Iterable[bytes], separator: bytes) -> Iterator[Item]:
    for name in names:
        bare = name if separator == b"\0" else name.removesuffix(b"\r")  # as Windows ends lines
        if bare:
            yield Item(absolute(os.fsdecode(bare)), named=True)
