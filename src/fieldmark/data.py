"""Where the photos are and what they are called: a folder or a CSV -> `Photos`.

In: `FOLDER/CLASS/photo.jpg`, or the same below `train`, `val` and `test`, or a CSV with the columns
`path` and `label`. Out: `Photos`, with every photo and its class, and every other file with the
reason why it is none. Which files are photos is told by how they begin, never by their names.
`list_article` lists what Keras' `image_dataset_from_directory` does instead, in its order. All is
only read. `fieldmark check`, `split` and `train` begin with this.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Literal

from fieldmark.console import many
from fieldmark.errors import FieldmarkError
from fieldmark.formats import OPENERS, UnreadableImage, sniff
from fieldmark.tables import read_table
from fieldmark.threads import spread

Split = Literal["training", "validation", "test"]
Kind = Literal["hidden", "skipped", "unreadable", "empty"]

# What Keras' reader lists, by extension alone (keras/src/utils/image_dataset_utils.py).
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")

# Names that say photo, and of which format: where the content says otherwise, its owner will want
# to know.
NAMED_PHOTO = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WebP", ".avif": "AVIF"},
}
# Cameras' raw files begin as a TIFF or as a video does, and are neither.
RAW = frozenset((".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mrw", ".nef"))
RAW |= frozenset((".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".x3f"))
# What systems put among photos, in small letters.
SYSTEM_FILES = {
    ".ds_store": "is macOS' own note about the folder",
    "desktop.ini": "is Windows' own note about the folder",
    "ehthumbs.db": "is Windows' own store of thumbnails",
    "thumbs.db": "is Windows' own store of thumbnails",
}
SYSTEM_FOLDERS = {
    "__macosx": "which macOS adds to archives",
    "$recycle.bin": "which is Windows' bin",
    "system volume information": "which is Windows' own",
    "lost+found": "which is the file system's own",
    "@eadir": "which is a file server's own",
}
SPECIAL = {
    stat.S_IFIFO: "is a pipe",  # to read it would wait for ever
    stat.S_IFSOCK: "is a socket",
    stat.S_IFBLK: "is a device",
    stat.S_IFCHR: "is a device",
    stat.S_IFDIR: "is a folder",
}
LOOSE = "is a photo that lies in no class folder"  # why `LeftOut`
HEAD = 256  # bytes: all that `sniff` looks at
HANDFUL = 16  # files that a thread reads at a time: most are small, or only begun
BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # lengths in bytes that a BMP's header can have

# The words by which folders and CSV files name the three parts of a split, in small letters.
SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What to do where Keras' reader and split cannot be had.
INSTEAD = "add --pipeline batches --split stratified"
SHOWN = 100  # lines of a CSV that are named in one error


@dataclass(frozen=True)
class LeftOut:
    """A file, or an empty folder, that is no photo for us; `why` is a clause: "is hidden"."""

    path: str  # relative to the folder, with forward slashes
    kind: Kind  # "unreadable": it is called a photo; "skipped": it is something else
    why: str


@dataclass(frozen=True)
class Photos:
    """The photos of a source: `labels[i]` is the index in `classes` of the photo `paths[i]`."""

    folder: Path  # of a CSV, the one that it lies in
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the folder, with forward slashes; a CSV's may be absolute
    labels: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()  # every other file below the folder, or in the CSV
    given: tuple[Split, ...] = ()  # the split that the source says, one a photo; or empty
    groups: tuple[str, ...] = ()  # a CSV's column `group`, one a photo, "" for none; or empty
    linked: tuple[str, ...] = ()  # the symbolic links followed, to photos and to folders of them

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.paths)


# ---- what others call ---------------------------------------------------------------------------


def list_photos(source: str | os.PathLike[str]) -> Photos:
    """List the photos of a folder or a CSV, sorted by class, then by path.

    A photo's class is the folder that holds it, by its path under the source, or under its folders
    `train`, `val` and `test`. Raises a `FieldmarkError` where there are not two classes.
    """
    root = Path(source)
    return _from_csv(root) if stat.S_ISREG(mode_of(root)) else _from_folder(root)


def list_loose(folder: str | os.PathLike[str]) -> Photos:
    """List all photos of a folder, whether or not they make classes.

    It is for one that `list_photos` refuses. Photos in the folder itself are left out where others
    lie deeper; where none do, they are of the class "". Raises a `FieldmarkError` where the folder
    cannot be read.
    """
    root = Path(folder)
    survey, found, others = _sorted_out(root)
    loose = [path for path in found if "/" not in path]
    if len(loose) < len(found):
        others += [LeftOut(path, "skipped", LOOSE) for path in loose]
        found = [path for path in found if "/" in path]
    labels = [path.rpartition("/")[0] for path in found]
    number = {name: i for i, name in enumerate(sorted({*labels}))}
    return Photos(
        folder=root,
        classes=tuple(number),
        paths=tuple(found),
        labels=tuple(number[label] for label in labels),
        left_out=tuple(sorted(others, key=lambda each: each.path)),
        linked=_followed(survey, others),
    )


def list_article(folder: str | os.PathLike[str], *, instead: str = INSTEAD) -> Photos:
    """List what Keras' `image_dataset_from_directory` lists, in its order.

    Classes are the sub-folders; files are known by their extensions, and a class' sub-folders are
    searched too. Raises a `FieldmarkError` where the folder cannot be trained on, or is none, or is
    a split into folders, which Keras would take for classes; it says what to do `instead`.
    """
    root = Path(folder)
    if stat.S_ISREG(mode_of(root)):
        raise FieldmarkError(
            f"{root} cannot be read as a folder, and the article's reader and Keras' split read "
            f"folders only: {instead}."
        )
    names = [entry.name for entry in _entries(root) if _is_class(entry)]
    files = {name: _files(root / name) for name in names}
    photos, special = dict[str, list[str]](), list[LeftOut]()
    for name in names:
        named = [file for file in files[name] if file.lower().endswith(EXTENSIONS)]
        whys = [_special(root / name / file) for file in named]
        photos[name] = [file for file, why in zip(named, whys, strict=True) if not why]
        # Keras would open these too, and wait for ever.
        special += [
            LeftOut(f"{name}/{file}", "unreadable", why)
            for file, why in zip(named, whys, strict=True)
            if why
        ]
    paths = [f"{name}/{file}" for name in names for file in photos[name]]
    if parts := _given(paths):
        raise FieldmarkError(
            f"In {root} the folders {_listed(_in_order(parts))} would be taken for classes: "
            f"{instead}."
        )
    _refuse_unusable(root, files, photos)
    _refuse_unwritable(root, [*names, *paths])
    loose = sorted(entry.name for entry in root.iterdir() if stat.S_ISREG(mode_of(entry)))
    apart = {*paths, *(each.path for each in special)}
    others = [f"{name}/{file}" for name in names for file in sorted(files[name])]
    return Photos(
        folder=root,
        classes=tuple(names),
        paths=tuple(paths),
        labels=tuple(label for label, name in enumerate(names) for _ in photos[name]),
        left_out=(
            *(LeftOut(name, "skipped", "lies in no class folder") for name in loose),
            *special,
            *(
                LeftOut(path, "skipped", "has no extension that Keras reads")
                for path in others
                if path not in apart
            ),
        ),
        linked=tuple(
            path for path in (*names, *paths) if stat.S_ISLNK(mode_of(root / path, follow=False))
        ),
    )


def reserved(photos: Photos, source: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return where nothing may be written, for `files.refuse_among`: photos are only read.

    Of a folder that is all of it; of a CSV the folders of its photos, but not its own. What the
    links lead to that were followed is too, be it a folder or a photo.
    """
    own = _real(photos.folder)
    places = {own}
    if stat.S_ISREG(mode_of(Path(source))):
        folders = {path.rpartition("/")[0] for path in photos.paths}
        places = {_real(photos.folder / folder) for folder in folders} - {own}
    places |= {_real(photos.folder / path) for path in photos.linked}
    return tuple(sorted(places))


def left_out(photos: Photos) -> str:
    """Say which kinds of files in the folder are not read: `3 x .webp, 1 x .txt`."""
    files = [each.path for each in photos.left_out if each.kind != "empty"]
    kinds = Counter(
        "closed folder" if path.endswith("/") else _suffix(path) or "no extension" for path in files
    )
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def nested(photos: Photos) -> tuple[str, ...]:
    """Return the classes whose folder holds the folders of other classes: `a` beside `a/b`."""
    around = {str(above) for name in photos.classes for above in PurePosixPath(name).parents}
    return tuple(name for name in photos.classes if name in around)


def taken_for_classes(photos: Photos) -> str:
    """Say which folders are called like the parts of a split and give none; nothing: none are."""
    tops = {name.partition("/")[0] for name in photos.classes}
    parts = [top for top in tops if split_word(top)]
    words = {split_word(top) for top in parts}
    if photos.given or "training" not in words or len(words) == 1 or len(parts) == len(tops):
        return ""
    if {path.partition("/")[0] for path in photos.paths} != tops:
        return ""  # the words are labels of a CSV
    others = sorted(tops - {*parts})
    return (
        f"{_listed(_in_order(parts))} are taken for classes, because {_listed(others)} "
        f"{'holds' if len(others) == 1 else 'hold'} photos too"
    )


def alike(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names that differ only in upper and lower case, or in how Unicode spells them.

    Some file systems tell them apart (Linux), others do not (macOS, Windows).
    """
    spelled = defaultdict[str, list[str]](list)
    for name in names:
        spelled[unicodedata.normalize("NFC", name).casefold()].append(name)
    return tuple(tuple(sorted(same)) for same in spelled.values() if len(same) > 1)


def sha256s(photos: Photos) -> tuple[str, ...]:
    """Return the sha256 of each photo's bytes, in the order of the photos.

    Raises a `FieldmarkError` that names every file that cannot be read.
    """

    def digest(path: str) -> tuple[str, str | None]:
        try:
            if why := _special(photos.folder / path):
                return "", why
            with (photos.folder / path).open("rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), None
        except OSError as error:
            return "", error.strerror or str(error)

    results = list(spread(digest, photos.paths, "Hashing photos", handful=HANDFUL))
    refuse_bad(photos, zip(photos.paths, (why for _, why in results), strict=True))
    return tuple(sha256 for sha256, _ in results)


def audit(photos: Photos, decode: Callable[[bytes], object]) -> tuple[str, ...]:
    """Read and decode every photo; return the sha256 of each.

    `decode` is the reader that the training will use, and raises a `ValueError` with the reason
    where it cannot. All files that fail are named in one `FieldmarkError`, and those that Keras
    would read too and `list_article` has left out.
    """

    def examine(path: str) -> tuple[str, str | None]:
        try:
            if why := _special(photos.folder / path):
                return "", why
            content = (photos.folder / path).read_bytes()
            decode(content)
        except OSError as error:
            return "", error.strerror or str(error)
        except ValueError as error:
            return "", str(error)
        return hashlib.sha256(content).hexdigest(), None

    results = list(spread(examine, photos.paths, "Checking photos"))
    whys = (why for _, why in results)
    unreadable = ((each.path, each.why) for each in photos.left_out if each.kind == "unreadable")
    refuse_bad(photos, (*zip(photos.paths, whys, strict=True), *unreadable))
    return tuple(sha256 for sha256, _ in results)


def refuse_bad(photos: Photos, reasons: Iterable[tuple[str, str | None]]) -> None:
    """Raise one `FieldmarkError` that names all paths for which there is a reason."""
    bad = [f"  {photos.folder / path}: {why}" for path, why in reasons if why]
    if bad:
        count = many(len(bad), "file is not a photo", "files are not photos")
        raise FieldmarkError(
            f"{count} that can be read; move them out of the folder and run again:\n"
            + "\n".join(bad)
        )


def split_word(word: str) -> Split | None:
    """Return the part of a split that a word means, in upper or lower case."""
    return SPLIT_WORDS.get(word.strip().casefold())


# ---- a folder -----------------------------------------------------------------------------------


@dataclass
class _Survey:
    """What a walk through a folder meets, before any file is opened."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to files, and to the folders that it entered
    left_out: list[LeftOut] = field(default_factory=list)


def _from_folder(root: Path) -> Photos:
    """List the photos of a folder of classes, or of a split into folders."""
    if not _entries(root):
        raise FieldmarkError(
            f"{root} is empty: put the photos of each class into a sub-folder of its own."
        )
    survey, found, others = _sorted_out(root)
    given = _given(found)
    rows = []
    for path in found:
        top, _, below = path.partition("/")
        label = (below if given else path).rpartition("/")[0]
        if label:
            rows.append(_Row(label, path, split=given.get(top, "")))
        else:
            others.append(LeftOut(path, "skipped", LOOSE))
    if not rows:
        _refuse_without_photos(root, survey, given, others)
    return _photos(root, rows, others, _followed(survey, others))


def _sorted_out(root: Path) -> tuple[_Survey, list[str], list[LeftOut]]:
    """Walk through a folder and look at every file: what was met, the photos, all others."""
    survey = _survey(root)
    results = _examined(root, survey.files)
    others = [*survey.left_out, *(result for result in results if result)]
    return survey, [p for p, why in zip(survey.files, results, strict=True) if not why], others


def _followed(survey: _Survey, others: Iterable[LeftOut]) -> tuple[str, ...]:
    """Return the links that lead to photos."""
    return tuple(sorted({*survey.links} - {each.path for each in others}))


def _survey(root: Path) -> _Survey:
    """Walk through a folder; each folder is entered once, links to folders after all others."""
    survey = _Survey()
    around = {identity_of(above) for above in root.resolve().parents}
    entered: dict[tuple[int, int], str] = {}
    pending, links = [""], list[str]()  # the links are a heap: their names decide the order
    _entries(root)  # of all folders this is the one that must be open
    while pending or links:
        by_link = not pending
        place = heapq.heappop(links) if by_link else pending.pop()
        try:
            identity, entries = identity_of(root / place), _scan(root / place)
        except OSError as error:
            why = f"cannot be opened ({error.strerror})"
            survey.left_out.append(LeftOut(f"{place}/", "unreadable", why))
            continue
        if identity in around:
            survey.left_out.append(LeftOut(place, "skipped", "leads to a folder around this one"))
            continue
        if identity in entered:
            there = entered[identity] or "this very folder"
            survey.left_out.append(LeftOut(place, "skipped", f"leads to {there}, listed already"))
            continue
        entered[identity] = place
        if by_link:
            survey.links.append(place)
        if place:
            survey.folders.append(place)
        folders, linked = _enter(root, place, entries, survey)
        pending += folders
        for link in linked:
            heapq.heappush(links, link)
    return survey


def _enter(
    root: Path, place: str, entries: Sequence[os.DirEntry[str]], survey: _Survey
) -> tuple[list[str], list[str]]:
    """Add one folder's files to a survey; return its folders, and its links to folders."""
    if not entries:
        survey.left_out.append(LeftOut(f"{place}/", "empty", "is an empty folder"))
    folders, links = [], []
    for entry in entries:
        path = f"{place}/{entry.name}" if place else entry.name
        real_folder = entry.is_dir(follow_symlinks=False)
        if aside := why_aside(entry.name, real_folder):
            if real_folder:
                survey.left_out += _below(root, path, *aside)
            else:
                survey.left_out.append(LeftOut(path, *aside))
        elif real_folder:
            folders.append(path)
        elif entry.is_symlink() and stat.S_ISDIR(mode_of(Path(entry.path))):
            links.append(path)
        else:
            survey.files.append(path)
            if entry.is_symlink():
                survey.links.append(path)
    return folders, links


def why_aside(name: str, folder: bool) -> tuple[Kind, str] | None:
    """Say why a file or a folder of this name is not looked into; none: it is."""
    small = name.casefold()
    if folder and small in SYSTEM_FOLDERS:
        return "skipped", f"lies in {name}, {SYSTEM_FOLDERS[small]}"
    if folder:
        return ("hidden", f"lies in the hidden folder {name}") if name.startswith(".") else None
    if small in SYSTEM_FILES:
        return "skipped", SYSTEM_FILES[small]
    if name.startswith("._"):
        return "skipped", "is a note that macOS keeps about a file"
    return ("hidden", "is hidden") if name.startswith(".") else None


def _below(root: Path, place: str, kind: Kind, why: str) -> Iterator[LeftOut]:
    """Account for all that lies below a folder that is not looked into."""
    shut: list[OSError] = []
    for folder, folders, files in os.walk(root / place, onerror=shut.append):
        here = Path(folder).relative_to(root).as_posix()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (LeftOut(f"{here}/{name}", kind, why) for name in sorted(files + links))
        if not files and not folders:
            yield LeftOut(f"{here}/", "empty", "is an empty folder")
    for error in shut:
        here = Path(error.filename).relative_to(root).as_posix()
        yield LeftOut(f"{here}/", kind, f"{why} and cannot be read ({error.strerror})")


def _examined(folder: Path, paths: Sequence[str]) -> list[LeftOut | None]:
    """Say of each file why it is no photo; none: it is one."""
    look = partial(_examine, folder)
    return list(spread(look, paths, "Listing photos", handful=HANDFUL))


def _examine(folder: Path, path: str) -> LeftOut | None:
    """Say why a file is no photo by its kind and its first bytes; none: it is one."""
    whole = folder / path
    try:
        if special := SPECIAL.get(stat.S_IFMT(whole.stat().st_mode)):
            return LeftOut(path, "skipped", special)
        with whole.open("rb", buffering=0) as file:
            head = file.read(HEAD)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return LeftOut(path, "skipped", "is a link that leads nowhere")
        return LeftOut(path, "unreadable", f"cannot be opened ({error.strerror})")
    suffix = _suffix(path)
    if why := why_strange(head, suffix):
        return LeftOut(path, "unreadable" if suffix in NAMED_PHOTO else "skipped", why)
    return None


def _special(path: Path) -> str:
    """Say why what lies there is not opened, that it is a pipe for one; nothing: it may be."""
    return SPECIAL.get(stat.S_IFMT(mode_of(path)), "")


def mode_of(path: Path, *, follow: bool = True) -> int:
    """Return what `stat` says a path is; 0 where it says nothing: who opens it learns why."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except OSError:
        return 0


def why_strange(head: bytes, suffix: str) -> str:
    """Say why what begins so and has this extension is no photo; nothing: it is one."""
    if suffix in RAW:
        return "is a camera's raw file: export it as JPEG"
    unknown = f"is no photo ({suffix or 'no extension'})"
    try:
        form = sniff(head)
    except UnreadableImage as error:
        return str(error) if suffix in NAMED_PHOTO else unknown
    # A text may begin with the two letters of a BMP as well.
    letters_only = form == "BMP" and int.from_bytes(head[14:18], "little") not in BMP_HEADERS
    return unknown if letters_only and suffix not in NAMED_PHOTO else ""


def _given(paths: Iterable[str]) -> dict[str, Split]:
    """Return what the folders at the top mean, where they are those of a split; else nothing."""
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    words = {top: word for top in tops if (word := split_word(top))}
    parts = {*words.values()}
    return words if len(words) == len(tops) and "training" in parts and len(parts) > 1 else {}


# ---- a CSV --------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Row:
    """A photo on its way into `Photos`; in this order they are listed."""

    label: str
    path: str
    split: Split | Literal[""] = ""
    group: str = ""


def _from_csv(path: Path) -> Photos:
    """List the photos that a CSV names."""
    folder = path.parent
    real = cache(_real)
    table = read_table(path, ("path", "label"), ("split", "group"))
    rows: dict[Path, tuple[int, _Row]] = {}
    wrong, missing = [], []
    splits = any(row.get("split", "").strip() for _, row in table)
    for line, row in table:
        if re.match("[a-z][a-z0-9]+://", row["path"].strip(), re.IGNORECASE):
            address = row["path"].strip()
            wrong.append(f"  line {line}: {address} is a web address: fetch the photo first")
            continue
        there = _place(folder, row["path"], real)
        if there is None:
            missing.append(f"  line {line}: {folder / row['path']}")
            continue
        word = split_word(row["split"]) if splits else ""
        group = row.get("group", "").strip()
        identity = real((folder / there).parent) / PurePosixPath(there).name
        if identity in rows:  # perhaps written in another way
            there = rows[identity][1].path
        made = _Row(row["label"].strip(), there, split=word or "", group=group)
        before = rows.setdefault(identity, (line, made))
        if not made.label:
            wrong.append(f"  line {line}: {there} has no label")
        elif word is None:
            wrong.append(f"  line {line}: {_unknown_split(row['split'])}")
        elif before[1] != made:
            wrong.append(f"  lines {before[0]} and {line}: {_disagreement(before[1], made)}")
    if wrong:
        raise FieldmarkError(f"{path} has to be corrected:\n{_shown(wrong)}")
    if missing:
        count = many(len(missing), "photo that is", "photos that are")
        raise FieldmarkError(
            f"{path} names {count} not there; paths are relative to its folder, or absolute:\n"
            + _shown(missing)
        )
    listed = [row for _, row in rows.values()]
    results = _examined(folder, [row.path for row in listed])
    # Who names a file means it as a photo.
    others = [replace(result, kind="unreadable") for result in results if result]
    kept = [row for row, result in zip(listed, results, strict=True) if not result]
    if not kept:
        bad = _shown([f"  {folder / each.path}: {each.why}" for each in others])
        raise FieldmarkError(
            f"{path} names no photo that can be read: add rows to it"
            + (f".\n{bad}" if bad else ".")
        )
    linked = sorted(row.path for row in kept if (folder / row.path).is_symlink())
    return _photos(folder, kept, others, linked, source=path)


def _place(folder: Path, name: str, real: Callable[[Path], Path]) -> str | None:
    """Return a CSV's path as it is on this system, with forward slashes; none: it is not there.

    What goes up by `..` is shortened, except where a link is on the way.
    """
    for spelling in (name, name.strip(), name.strip().replace("\\", "/")):
        if spelling.strip() and os.path.lexists(folder / spelling):
            there, short = Path(spelling), Path(os.path.normpath(spelling))
            if ".." in there.parts and real((folder / short).parent) == real(
                (folder / there).parent
            ):
                there = short
            return there.as_posix()
    return None


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _unknown_split(word: str) -> str:
    if not word.strip():
        return "it has no split; say one for every photo, or for none"
    return f"the split {word.strip()!r} is unknown: use training, validation or test"


def _disagreement(first: _Row, second: _Row) -> str:
    """Say in what two rows of one photo differ."""
    for name in ("label", "split", "group"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            return f"{first.path} has the {name} {one!r}, then {other!r}"
    return ""


def _shown(lines: Sequence[str]) -> str:
    more = len(lines) - SHOWN
    return "\n".join(lines[:SHOWN]) + (f"\n  and {more:,} more" if more > 0 else "")


# ---- what both share ----------------------------------------------------------------------------


def _photos(
    folder: Path,
    rows: Iterable[_Row],
    others: Iterable[LeftOut],
    linked: Iterable[str],
    source: Path | None = None,
) -> Photos:
    """Put the rows in order, and raise where no classifier can be made of them."""
    ordered = sorted(rows)
    classes = sorted({row.label for row in ordered})
    _refuse_unwritable(source or folder, [*classes, *(row.path for row in ordered)])
    if len(classes) == 1:
        raise FieldmarkError(
            f"{source or folder} holds the one class {classes[0]!r}: "
            "a classifier needs two" + (", add a sub-folder." if source is None else ".")
        )
    number = {name: i for i, name in enumerate(classes)}
    return Photos(
        folder=folder,
        classes=tuple(classes),
        paths=tuple(row.path for row in ordered),
        labels=tuple(number[row.label] for row in ordered),
        left_out=tuple(sorted(others, key=lambda each: each.path)),
        given=tuple(row.split for row in ordered if row.split),  # all have one, or none has
        groups=tuple(row.group for row in ordered) if any(row.group for row in ordered) else (),
        linked=tuple(linked),
    )


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name, or raise a `FieldmarkError`."""
    try:
        return _scan(folder)
    except FileNotFoundError as error:
        raise FieldmarkError(f"There is no folder {folder}: check the path.") from error
    except NotADirectoryError as error:
        raise FieldmarkError(
            f"{folder} cannot be read as a folder ({error.strerror}): "
            "name a folder with one sub-folder of photos for each class."
        ) from error
    except PermissionError as error:
        raise FieldmarkError(
            f"{folder} cannot be read ({error.strerror}): change its rights."
        ) from error
    except OSError as error:
        raise FieldmarkError(
            f"{folder} cannot be read ({error.strerror}): check the path."
        ) from error


def identity_of(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from all others, whatever the path to it."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _refuse_without_photos(
    root: Path, survey: _Survey, given: dict[str, Split], others: Iterable[LeftOut]
) -> None:
    """Raise for a folder in which no photo has a class."""
    bad = [f"  {root / each.path}: {each.why}" for each in others if each.kind == "unreadable"]
    if bad:
        raise FieldmarkError(f"No photo in {root} can be read:\n{_shown(bad)}")
    if given:
        raise FieldmarkError(
            f"The photos in {', '.join(str(root / top) for top in sorted(given))} lie in no class "
            f"folders: sort them into sub-folders ({root / min(given)}/CLASS/photo.jpg), "
            "or name a CSV with the columns path, label and split."
        )
    if not survey.folders:
        raise FieldmarkError(
            f"{root} has no sub-folders: put the photos of each class into one of its own."
        )
    raise FieldmarkError(
        f"No photo was found in the sub-folders of {root} "
        f"(extensions there: {_extensions(file for file in survey.files if '/' in file)}): "
        f"use {', '.join(OPENERS)}."
    )


def _extensions(files: Iterable[str]) -> str:
    found = Counter(_suffix(file) or "none" for file in files)
    seen = ", ".join(f"{count} x {suffix}" for suffix, count in found.most_common(5))
    return seen or "no files"


def _refuse_unwritable(source: Path, names: Iterable[str]) -> None:
    """Raise for names that no text file can hold, one name a line."""
    bad = dict[str, None]()  # of a folder and all that lies in it only the folder
    for name in names:
        if found := re.search("[\n\r\ud800-\udfff]", name):
            bad[name[: found.start()] + name[found.start() :].partition("/")[0]] = None
    if len(bad) == 1:
        raise FieldmarkError(
            f"The name {next(iter(bad))!r} in {source} holds a line break or is not UTF-8: "
            "rename it."
        )
    if bad:
        raise FieldmarkError(
            f"{len(bad)} names in {source} hold line breaks or are not UTF-8: rename them:\n"
            + _shown([f"  {name!r}" for name in bad])
        )


def _in_order(parts: Iterable[str]) -> list[str]:
    """Sort folders that are called like the parts of a split: training comes first."""
    return sorted(parts, key=lambda name: [*SPLIT_WORDS].index(name.strip().casefold()))


def _listed(names: Sequence[str]) -> str:
    """Write names as a sentence does: `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


# ---- the article's reader -----------------------------------------------------------------------


def _is_class(entry: os.DirEntry[str]) -> bool:
    return stat.S_ISDIR(mode_of(Path(entry.path))) and not entry.name.startswith(".")


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
    if not any(root.iterdir()):
        raise FieldmarkError(
            f"{root} is empty: put the photos of each class into a sub-folder of its own."
        )
    if not files:
        raise FieldmarkError(
            f"{root} has no sub-folders: put the photos of each class into one of its own."
        )
    if not any(photos.values()):
        seen = _extensions(file for of_class in files.values() for file in of_class)
        raise FieldmarkError(
            f"No photo was found in {root} (extensions there: {seen}): use {', '.join(EXTENSIONS)}."
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
