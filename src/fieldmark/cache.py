"""Photos decoded once: a list of files -> their squares in one memory-mapped file on disk.

In: paths with the sha256 of each file's content, and an `ImageSpec`. Out: a `Cache`, whose
`pixels` are what `images.read` gives for each, read from disk when they are looked at. The same
photos and specification find the same entry again, in every later run: `docs/cache.md` says how
long and where. `fieldmark cache` shows what there is and `fieldmark cache --clear` removes it.

An entry is a folder, named by a hash of all that decides its pixels:

    pixels.npy   (n, size, size, 3) uint8, a plain NumPy file
    index.npy    a row a photo: sha256, height and width of the upright photo, crc32 of its pixels
    entry.json   the specification, the versions of the decoders, the crc32 of index.npy
    lock         locked by each process that uses the entry; its time is that of the last use

Nothing in it is ever changed: an entry appears whole, by a rename, and goes by a rename.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pkgutil
import re
import shutil
import sys
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import features

from fieldmark import files, images, locks
from fieldmark.console import many, say, size
from fieldmark.errors import FieldmarkError
from fieldmark.formats import LIMITS, UnreadableImage
from fieldmark.images import ImageSpec, Pixels
from fieldmark.packages import installed
from fieldmark.threads import spread

LAYOUT = 1  # raised when an entry's files change their meaning
LIMIT = 20_000_000_000  # bytes: 100,000 photos of 256 pixels
PIXELS, INDEX, ENTRY, LOCK = "pixels.npy", "index.npy", "entry.json", "lock"
KEY = re.compile("[0-9a-f]{32}")
OURS = re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.(building|lock|\d+\.\d+\.removed)")
ROW = np.dtype([("sha256", "S64"), ("height", "<i4"), ("width", "<i4"), ("crc32", "<u4")])
CHECKED = 64  # rows that a thread verifies at a time
# Of the code that decodes, read as it is loaded: nobody has to remember to raise a number.
CODE = hashlib.sha256(
    b"".join(pkgutil.get_data("fieldmark", name) or b"" for name in ("images.py", "formats.py"))
).hexdigest()[:16]
POLL = 0.2  # seconds between two looks at whether another run has finished the entry


class Item(NamedTuple):
    """A photo, and the content that it is to have."""

    path: Path
    sha256: str  # of the file's bytes, in hexadecimal


@dataclass(frozen=True, eq=False)
class Cache:
    """The decoded photos of one list, in its order; made by `build`."""

    pixels: Pixels  # (n, size, size, 3), read-only, on disk until it is looked at
    shapes: NDArray[np.int32]  # (n, 2): height and width of each whole upright photo
    path: Path  # of the entry's folder
    bytes: int  # on disk

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.pixels)


@dataclass(frozen=True)
class Entry:
    """What `fieldmark cache` shows of an entry."""

    path: Path
    photos: int
    specification: str  # "256 px, squash, bilinear"; "damaged" where it cannot be read
    bytes: int
    used: datetime  # the last time that a run began to use it
    in_use: bool  # by a process that lives; always False on Windows, which does not tell


# ---- what others call ---------------------------------------------------------------------------


def build(
    items: Sequence[Item],
    spec: ImageSpec,
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Cache:
    """Return the squares of photos, decoding those that no earlier call has decoded.

    `limit` bounds the whole cache, in bytes; the entries that were not used for longest make room.
    Raises a `FieldmarkError` that names every photo that cannot be read or has changed since it
    was hashed, and one where there is no room. The photos are only read.
    """
    if not items:
        raise FieldmarkError("There are no photos to cache: name a folder that holds some.")
    place = where(folder)
    job = _Job(tuple(Item(*item) for item in items), spec, place, _limit(limit))
    waited = False
    with _explained(place):
        while True:
            with suppress(_DamagedError):  # whoever builds looks again, and says it
                if cache := job.find():
                    return cache
            _make_folder(place)
            with _sole_builder(place, job.key) as sole:
                if sole:
                    return job.find_or_build()
            if not waited:
                say("Another run is decoding the same photos: waiting for its cache.")
            waited = True
            time.sleep(POLL)


def where(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: `folder`, else the one of all that fieldmark keeps."""
    return files.cache_folder() if folder is None else Path(folder).absolute()


def entries(folder: str | os.PathLike[str] | None = None) -> list[Entry]:
    """Return what the cache holds, the last used first."""
    place = where(folder)
    with _explained(place):
        found = [_entry(path) for path in filter(_is_entry, _paths(place))]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.used, reverse=True)


def clear(folder: str | os.PathLike[str] | None = None) -> int:
    """Remove all entries that no process uses, and nothing else; return the bytes freed."""
    place = where(folder)
    with _explained(place):
        freed = _sweep(place)
        return freed + sum(_remove(entry.path) for entry in entries(place))


def summary(folder: str | os.PathLike[str] | None = None) -> str:
    """Return a table of what the cache holds, for people."""
    place = where(folder)
    held = entries(place)
    lines = [f"{place} (FIELDMARK_CACHE names another place)"]
    for entry in held:
        used = f"{entry.used:%Y-%m-%d %H:%M}" + (", in use" if entry.in_use else "")
        lines.append(
            f"  {entry.path.name[:8]}  {entry.photos:>9,} photos  {size(entry.bytes):>7}  "
            f"{entry.specification:26}  {used}"
        )
    total = size(sum(entry.bytes for entry in held))
    count = many(len(held), "entry", "entries")
    limit = f"{size(_limit(None))} (FIELDMARK_CACHE_LIMIT, in GB)"
    return "\n".join([*lines, f"{count}, {total} of at most {limit}"])


# ---- an entry that is asked for -----------------------------------------------------------------


class _DamagedError(Exception):
    """What is wrong with an entry, as a clause."""


class _Row(NamedTuple):
    pixels: Pixels  # (size, size, 3)
    shape: tuple[int, int]  # height and width of the upright photo
    crc32: int
    copied: bool


@dataclass(frozen=True)
class _Opened:
    cache: Cache
    index: NDArray[Any]  # (n,) of ROW
    about: dict[str, Any]  # what entry.json says


@dataclass(frozen=True)
class _Job:
    items: tuple[Item, ...]
    spec: ImageSpec
    place: Path
    limit: int  # bytes

    @cached_property
    def kind(self) -> dict[str, Any]:
        """All that decides the pixels of one photo. Scaling does not: it comes after them."""
        geometry = self.spec.model_dump(exclude={"scaling"})
        return {"layout": LAYOUT, **geometry, "decoders": decoders()}

    @cached_property
    def key(self) -> str:
        """The entry's name."""
        lines = [json.dumps(self.kind, sort_keys=True), *(item.sha256 for item in self.items)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    @cached_property
    def hashes(self) -> NDArray[np.bytes_]:
        return np.array([item.sha256 for item in self.items], "S64")  # (n,)

    def is_kind(self, opened: _Opened) -> bool:
        """Say whether an entry's photos have the pixels that this one's would have."""
        return all(opened.about.get(name) == value for name, value in self.kind.items())

    @property
    def path(self) -> Path:
        return self.place / self.key

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.items), self.spec.size, self.spec.size, 3

    @cached_property
    def bytes(self) -> int:
        """What the entry takes, but for the few hundred bytes of entry.json."""
        return len(_header(self.shape)) + int(np.prod(self.shape)) + ROW.itemsize * len(self.items)

    def find(self) -> Cache | None:
        """Return the entry if it is there and whole; raises `_DamagedError` where it is not whole.

        It is read from end to end for this, which brings it into memory for the first epoch too.
        """
        opened = _open(self.path)
        if opened is None:
            return None
        if not self.is_kind(opened) or not np.array_equal(opened.index["sha256"], self.hashes):
            raise _DamagedError("it holds other photos than its name says")
        _verify(opened)
        with suppress(OSError):  # a cache that somebody else keeps may be used
            os.utime(self.path / LOCK)
        self.tell(opened.cache, ", built earlier")
        return opened.cache

    def find_or_build(self) -> Cache:
        """Return the entry; to be called by the one process that may build it."""
        damage = None
        try:
            if cache := self.find():  # another run finished it a moment ago
                return cache
        except _DamagedError as error:
            damage = str(error)
        if damage:  # not before the error is gone, which still holds the mapped file
            say(f"The cache {self.path} is damaged ({damage}): it is built again.")
            _remove(self.path, even_in_use=True)
        _sweep(self.place, but=self.key)
        self.make_room()
        draft = self.place / f".{self.key}.building"
        draft.mkdir()
        copied = self.fill(draft)
        files.sync_folder(draft)
        # Before it can be seen: others may be looking for what to remove.
        mark = locks.shared(draft / LOCK)
        try:
            draft.replace(self.path)
            files.sync_folder(self.place)
            opened = _open(self.path)
        finally:
            if mark is not None:
                os.close(mark)
        if opened is None:
            raise FieldmarkError(f"{self.path} was removed by somebody: run again.")
        self.tell(opened.cache, f" ({copied:,} copied from an earlier cache)" if copied else "")
        return opened.cache

    def tell(self, cache: Cache, how: str) -> None:
        say(f"Cache: {many(len(cache), 'photo')}, {size(cache.bytes)} in {cache.path}{how}")

    def make_room(self) -> None:
        """Remove what was not used for longest, as much as is needed, or say what is missing.

        What holds some of these photos goes last: from there they need not be decoded again.
        """
        held = entries(self.place)
        taken = sum(_bytes(path) for path in _paths(self.place))
        removable = sum(entry.bytes for entry in held if not entry.in_use)
        free = shutil.disk_usage(self.place).free
        self.refuse_too_large(taken - removable, free + removable)  # before anything is removed
        useful = {path for path, _ in self.relatives()}
        for entry in sorted(held, key=lambda entry: (entry.path in useful, entry.used)):
            if taken + self.bytes <= self.limit and self.bytes <= free:
                return
            taken -= _remove(entry.path)
            free = shutil.disk_usage(self.place).free
        self.refuse_too_large(taken, free)  # some may have come into use meanwhile

    def refuse_too_large(self, taken: int, free: int) -> None:
        """Raise unless the entry fits beside the bytes that are taken, and into those free."""
        what = f"The cache of {len(self.items):,} photos of {self.spec.size} pixels"
        needed = size(self.bytes)
        if taken + self.bytes > self.limit:
            used = f", of which {size(taken)} are in use" if taken else ""
            raise FieldmarkError(
                f"{what} needs {needed}, and all caches together may take {size(self.limit)}"
                f"{used}: allow more with FIELDMARK_CACHE_LIMIT="
                f"{-(-(taken + self.bytes) // 1_000_000_000)} (in GB), or use smaller images."
            )
        if self.bytes > free:
            raise FieldmarkError(
                f"{what} needs {needed}, and {self.place} has {size(free)} left: make room "
                "there, or name a folder on another disk with FIELDMARK_CACHE."
            )

    def relatives(self) -> Iterator[tuple[Path, _Opened]]:
        """Yield the entries of the same kind that hold some of these photos."""
        for path in filter(_is_entry, _paths(self.place)):
            opened = None
            with suppress(_DamagedError, OSError):
                opened = _open(path)
            if opened and self.is_kind(opened):
                shared = np.isin(opened.index["sha256"], self.hashes)
                if shared.any():
                    yield path, opened

    def fill(self, draft: Path) -> int:
        """Write all files of the entry into a folder; return how many photos were copied."""
        places: dict[str, list[int]] = {}  # where each content goes: equal photos are read once
        for i, item in enumerate(self.items):
            places.setdefault(item.sha256, []).append(i)
        known = {
            sha256.decode(): (opened, i)
            for _, opened in self.relatives()
            for i, sha256 in enumerate(opened.index["sha256"])
        }

        def row(sha256: str) -> _Row | str:
            if sha256 in known and (copy := _copy(*known[sha256])):
                return copy
            return _read(self.items[places[sha256][0]], self.spec)

        index = np.zeros(len(self.items), ROW)
        header = _header(self.shape)
        side = 3 * self.spec.size**2
        wrong: list[str] = []
        copied = 0
        with (
            (draft / PIXELS).open("wb", buffering=0) as file,
            closing(spread(row, places, "Decoding photos")) as rows,
        ):
            files.write_all(file, header)
            file.truncate(len(header) + side * len(self.items))  # others count it as full
            for result, at in zip(rows, places.values(), strict=True):
                if isinstance(result, str):
                    wrong += [f"  {self.items[i].path}: {result}" for i in at]
                    continue
                copied += len(at) * result.copied
                for i in at:
                    index[i] = (self.items[i].sha256, *result.shape, result.crc32)
                    file.seek(len(header) + side * i)
                    files.write_all(file, result.pixels.data)
            if wrong:
                raise FieldmarkError(_refusal(wrong))
            os.fsync(file.fileno())
        content = io.BytesIO()
        np.save(content, index, allow_pickle=False)
        about = {**self.kind, "photos": len(self.items), "index": zlib.crc32(content.getvalue())}
        for name, data in (
            (INDEX, content.getvalue()),
            (ENTRY, (json.dumps(about, indent=2) + "\n").encode()),
            (LOCK, b""),
        ):
            with (draft / name).open("wb", buffering=0) as small:
                files.write_all(small, data)
                os.fsync(small.fileno())
        return copied


def decoders() -> dict[str, str | None]:
    """Return the versions of all that turns a file into pixels, our own code included."""
    names = ("libjpeg_turbo", "jpg", "webp", "avif", "libtiff", "littlecms2")
    libraries = {name: features.version(name) for name in names}
    readers = {name: installed(name) for name in ("pillow", "pillow-heif")}
    return {**libraries, **readers, "code": CODE}


# ---- one photo ----------------------------------------------------------------------------------


def _read(item: Item, spec: ImageSpec) -> _Row | str:
    """Decode a photo, or say as a clause why it cannot be used."""
    try:
        with Path(item.path).open("rb") as file:
            content = file.read(LIMITS.bytes + 1)
        whole = len(content) <= LIMITS.bytes
        if whole and hashlib.sha256(content).hexdigest() != item.sha256:
            return "has changed since it was listed"
        pixels, shape = images.read_with_shape(content, spec)
    except OSError as error:
        return error.strerror or str(error)
    except UnreadableImage as error:
        return str(error)
    return _Row(pixels, shape, zlib.crc32(pixels.data), copied=False)


def _copy(opened: _Opened, i: int) -> _Row | None:
    """Take a photo from another entry; `None` where its pixels are damaged."""
    pixels = opened.cache.pixels[i].copy()
    at = opened.index[i]
    if zlib.crc32(pixels.data) != at["crc32"]:
        return None
    return _Row(pixels, (int(at["height"]), int(at["width"])), int(at["crc32"]), copied=True)


def _refusal(wrong: Sequence[str]) -> str:
    one = len(wrong) == 1
    return (
        f"{many(len(wrong), 'photo')} cannot be used; "
        f"put {'it' if one else 'them'} right or move {'it' if one else 'them'} out of the folder, "
        "and run again:\n" + "\n".join(wrong)
    )


# ---- an entry's files ---------------------------------------------------------------------------


def _header(shape: Sequence[int]) -> bytes:
    """Return what a NumPy file of uint8 begins with."""
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _open(path: Path) -> _Opened | None:
    """Open an entry and mark it as in use; `None` where there is none.

    Raises `_DamagedError` unless all but the pixels is sound. The mark lasts as long as any view of
    the pixels.
    """
    lock = locks.shared(path / LOCK)
    if lock is None and not path.is_dir():
        return None
    try:
        if lock is None and sys.platform != "win32":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), LOCK)  # noqa: TRY301
        opened = _map(path)
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        if isinstance(error, FileNotFoundError) and not path.is_dir():
            return None  # removed while it was being opened
        if isinstance(error, OSError) and not isinstance(error, PermissionError):
            name = Path(error.filename or "").name
            raise _DamagedError(f"{name}: {error.strerror or error}") from error
        raise
    if lock is not None:
        weakref.finalize(opened.cache.pixels.base, os.close, lock)
    return opened


def _map(path: Path) -> _Opened:
    """Read an entry's files and map its pixels; raises `_DamagedError` where they do not fit."""
    content = (path / INDEX).read_bytes()
    try:
        about = json.loads((path / ENTRY).read_bytes())
        shape = (about["photos"], about["size"], about["size"], 3)
        header = _header(shape)
        whole = len(header) + int(np.prod(shape))
        checksum = about["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{ENTRY} cannot be read") from error
    if zlib.crc32(content) != checksum:
        raise _DamagedError(f"the checksum of {INDEX} is wrong")
    index = np.load(io.BytesIO(content), allow_pickle=False)
    if index.shape != shape[:1] or index.dtype != ROW:
        raise _DamagedError(f"{INDEX} has other rows than {ENTRY} says")
    with (path / PIXELS).open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != whole:
            raise _DamagedError(f"{PIXELS} has {found:,} bytes and should have {whole:,}")
        if file.read(len(header)) != header:
            raise _DamagedError(f"{PIXELS} does not begin as it should")
    # A memory map of NumPy's knows its file, by which a worker process opens it again.
    pixels = np.memmap(path / PIXELS, np.uint8, "r", len(header), shape)
    shapes = np.stack([index["height"], index["width"]], axis=1).astype(np.int32)
    return _Opened(Cache(pixels, shapes, path, _bytes(path)), index, about)


def _verify(opened: _Opened) -> None:
    """Raise `_DamagedError` unless the checksum of every row is right.

    The file is read beside the mapping, so that the process does not seem to hold all of it.
    """
    pixels, path = opened.cache.pixels, opened.cache.path / PIXELS
    side = int(np.prod(pixels.shape[1:]))
    start = len(_header(pixels.shape))

    def sound(first: int) -> bool:
        expected = opened.index["crc32"][first : first + CHECKED]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start + side * first)
                return all(zlib.crc32(file.read(side)) == crc32 for crc32 in expected)
        except OSError:  # the disk fails there
            return False

    firsts = range(0, len(pixels), CHECKED)
    with closing(spread(sound, firsts, "Checking the cache")) as results:
        for first, is_sound in zip(firsts, results, strict=True):
            if not is_sound:
                last = min(first + CHECKED, len(pixels))
                raise _DamagedError(f"a checksum of the photos {first + 1} to {last} is wrong")


# ---- the cache folder ---------------------------------------------------------------------------


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn an error of the operating system into one sentence that names the cache folder."""
    try:
        yield
    except OSError as error:
        raise FieldmarkError(
            f"The cache folder {place} cannot be used ({error.strerror or error}): name one with "
            "room and the right to write, on a disk of this machine, with FIELDMARK_CACHE."
        ) from error


def _limit(limit: int | None) -> int:
    """Return the bytes that the cache may take."""
    if limit is not None:
        return limit
    text = os.environ.get("FIELDMARK_CACHE_LIMIT")
    if not text:
        return LIMIT
    try:
        allowed = int(float(text) * 1e9)
    except (ValueError, OverflowError):  # what is no number, nan and inf
        allowed = -1
    if allowed < 0:
        raise FieldmarkError(
            f"FIELDMARK_CACHE_LIMIT is {text!r}: set it to a number of gigabytes, such as 20."
        )
    return allowed


def _make_folder(place: Path) -> None:
    """Make the cache folder, for its owner only: photos can be private."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)


def _paths(place: Path) -> list[Path]:
    """List what in the cache folder is ours: entries, and what is being built or removed."""
    try:
        return [path for path in place.iterdir() if _is_ours(path)]
    except FileNotFoundError:
        return []


def _is_ours(path: Path) -> bool:
    """Tell what is ours by its name, and an entry, whose name others may have, by what it holds."""
    if not OURS.fullmatch(path.name) or path.is_symlink():
        return False
    if not _is_entry(path):
        return True
    with suppress(OSError):  # it is a file, or has just gone
        held = {each.name for each in path.iterdir()}
        return bool(held) and held <= {PIXELS, INDEX, ENTRY, LOCK}
    return False


def _is_entry(path: Path) -> bool:
    return bool(KEY.fullmatch(path.name))


def _bytes(path: Path) -> int:
    """Count the bytes of a file, or of the files in a folder."""
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for file in path.iterdir() if path.is_dir() else [path]:
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


def _entry(path: Path) -> Entry | None:
    """Look at an entry; `None` where it has just gone."""
    photos, specification = 0, "damaged"
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((path / ENTRY).read_bytes())
        specification = "{size} px, {mode}, {interpolation}".format(**about)
        photos = int(about["photos"])
    try:
        seen = path / LOCK if (path / LOCK).exists() else path
        used = datetime.fromtimestamp(seen.stat().st_mtime)
    except FileNotFoundError:
        return None
    return Entry(path, photos, specification, _bytes(path), used, locks.in_use(path / LOCK))


def _remove(path: Path, *, even_in_use: bool = False) -> int:
    """Remove an entry; return the bytes freed: none where it is in use or is not ours to remove.

    Processes that use it keep what they have mapped, but on Windows, where it then stays.
    """
    size = _bytes(path)
    lock = None
    try:
        if not even_in_use:
            with suppress(FileNotFoundError):
                lock = locks.exclusive(path / LOCK)
                if lock is None:
                    return 0
        away = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.removed")
        path.replace(away)
    except FileNotFoundError:
        return 0
    except OSError:
        if even_in_use:
            raise
        return 0
    finally:
        if lock is not None:
            os.close(lock)
    shutil.rmtree(away, ignore_errors=True)
    return size


def _sweep(place: Path, *, but: str = "") -> int:
    """Remove what processes that were killed left behind, but for one key; return the bytes freed.

    Who builds holds a lock, which the system lets go of when the process ends, however it ends.
    """
    freed = 0
    for path in _paths(place):
        size = _bytes(path)
        if path.name.endswith(".removed"):
            shutil.rmtree(path, ignore_errors=True)
            freed += size
        elif path.name.startswith(".") and (key := path.name.split(".")[1]) != but:
            with suppress(OSError), _sole_builder(place, key) as sole:
                freed += size if sole else 0
    return freed


@contextmanager
def _sole_builder(place: Path, key: str) -> Iterator[bool]:
    """Give True to the one process that may build an entry, False to the others."""
    draft = place / f".{key}.building"
    with locks.sole(place / f".{key}.lock") as sole:
        try:
            if sole:
                shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
            yield sole
        finally:
            if sole:
                shutil.rmtree(draft, ignore_errors=True)
