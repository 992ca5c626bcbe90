"""Photos sorted into a folder for each class: copies of them or links to them, never moved.

In: a photo and its class. Out: `FOLDER/CLASS/photo.jpg`; what is none of the classes goes into
`FOLDER/none_of_these`. A name that is taken gets a number, unless what has it is that very photo:
sorting twice makes nothing twice. `fieldmark predict MODEL PHOTOS --sort-into FOLDER`
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Literal

from fieldmark import files
from fieldmark.errors import FieldmarkError

How = Literal["copy", "hardlink", "symlink"]

NONE = "none_of_these"
NO_HARD_LINK = {errno.EXDEV: "on another file system", errno.EPERM: "of another user"}
LONGEST = 160  # bytes of a name; systems take 255, a number and a temporary name are added
LONGEST_SUFFIX = 40  # bytes of what is behind its last dot
# Signs that some system does not allow in a name, or that mean something to it; "%" escapes them.
UNSAFE = re.compile(r'[\x00-\x1f\x7f%/\\:*?"<>|]|^[. ~-]|[. ]$')
# Names that Windows keeps for its devices, and our own.
TAKEN = re.compile(rf"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?|{NONE}", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A folder to sort into, and how."""

    folder: Path
    how: How

    def put(self, photo: str, label: str | None) -> None:
        """Sort one photo, whose path is absolute; without a label it is none of the classes.

        Raises a FieldmarkError where that would be among the photos, or cannot be written.
        """
        folder = self.folder / (NONE if label is None else folder_name(label))
        if _real(os.path.dirname(photo)) == _real(str(folder)):  # noqa: PTH120 - many photos
            raise FieldmarkError(
                f"{folder} is where {photo} lies, and photos are only read: sort into a new folder."
            )
        if not Path(_real(str(folder))).is_relative_to(_real(str(self.folder))):
            raise FieldmarkError(
                f"{folder} is a link that leads out of {self.folder}: take it away, or sort into a "
                "new folder."
            )
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for place in _names(folder, os.path.basename(photo)):  # noqa: PTH119
            if self._made(photo, place) or self._is_there(photo, place):
                return

    def _made(self, photo: str, place: Path) -> bool:
        """Copy or link a photo to a name, unless that is taken; say whether it is there now."""
        if os.path.lexists(place):
            return False
        try:
            if self.how == "symlink":
                place.symlink_to(photo)
            elif self.how == "hardlink":
                os.link(os.path.realpath(photo), place)
            else:
                _copied(photo, place)
        except FileExistsError:
            return False
        except OSError as error:
            reason = NO_HARD_LINK.get(error.errno or 0, "")
            if reason and self.how == "hardlink":
                raise FieldmarkError(
                    f"{place} cannot be a hard link to a photo {reason}: "
                    "add --sort-as copy, or symlink."
                ) from error
            with files.writing(place):
                raise
        return True

    def _is_there(self, photo: str, place: Path) -> bool:
        """Say whether what has a name is this photo."""
        if self.how == "symlink":
            return place.is_symlink() and os.readlink(place) == photo  # noqa: PTH115 - text
        if place.is_symlink() or not place.is_file():
            return False
        if self.how == "hardlink":
            return place.samefile(photo)
        try:
            return filecmp.cmp(photo, place, shallow=False)
        except PermissionError:  # another user's
            return False


def _copied(photo: str, place: Path) -> None:
    """Copy a photo to a name; raises FileExistsError where that is taken."""
    temporary = place.with_name(f".{place.stem}.{os.getpid()}.partial{place.suffix}")
    try:
        shutil.copy2(photo, temporary)
        try:
            os.link(temporary, place)  # takes the name and has the content in one step
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            place.open("xb").close()
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def folder_name(label: str) -> str:
    """Return a class' name as a folder's: no two classes have the same one.

    What a system could object to is written as in web addresses: `birds/owl` is `birds%2Fowl`. A
    name that is too long ends in a hash instead.
    """
    name = UNSAFE.sub(lambda found: _escaped(found[0]), label) or "%"
    if TAKEN.fullmatch(name):
        name = _escaped(name[0]) + name[1:]
    return _shortened(name, f"%{hashlib.sha256(label.encode()).hexdigest()[:12]}")


def _escaped(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode())


def _shortened(name: str, end: str, longest: int = LONGEST) -> str:
    """Return a name that is not too long; one that is, is cut and gets another end."""
    content = os.fsencode(name)
    return name if len(content) <= longest else content[:longest].decode(errors="ignore") + end


def _names(folder: Path, name: str) -> Iterator[Path]:
    """Yield the names that a photo may get, one after the other."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    stem, suffix = _shortened(stem, ""), _shortened(suffix, "", LONGEST_SUFFIX)
    yield folder / f"{stem}{suffix}"
    for number in count(2):
        yield folder / f"{stem}-{number}{suffix}"


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
