"""Which format a file is in, and how Pillow is made to open it: bytes -> a `Photo`, not decoded.

A file is known by its content, never by its name, and one format's reader of Pillow is asked, none
else. Pillow warns of what it finds odd, and warnings cannot be silenced in one thread alone. So it
is given only what the pixels need: the parts that it warns of (metadata, further frames, sizes) are
read or left out here, before it sees them. `fieldmark.images` is the one that calls this.
"""

from __future__ import annotations

import importlib
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    WebPImagePlugin,
)

from fieldmark.errors import FieldmarkError

CODES = ("damaged", "empty", "no_photo", "too_large")  # of an `UnreadableImage`
LARGEST_PROFILE = 4_000_000  # bytes; a printer's table has 3 million at most
MOST_SCANS = 100  # of a progressive JPEG, which has about 10: each one passes over all pixels


class UnreadableImage(FieldmarkError):  # noqa: N818 - it is what the file is
    """Why a file is not read, as a clause: "is cut off". Whoever knows the file's name adds it.

    `code` says it to programs: one of `CODES`.
    """

    def __init__(self, clause: str, code: str = "damaged") -> None:
        super().__init__(clause)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What a file may ask for at most; it is refused before anything of that size is made."""

    bytes: int = 100_000_000
    pixels: int = 200_000_000  # the largest sensor in a telephone has 199.8 million
    frames: int = 1000  # only the first is read


LIMITS = Limits()


@dataclass(frozen=True)
class Photo:
    """A file whose header is read and whose pixels are not."""

    format: str
    image: ImageFile.ImageFile
    bits: int = 8
    orientation: int = 1
    frames: int = 1
    profile: bytes = b""
    deep: Callable[[], NDArray[np.uint16]] | None = None  # the samples, where Pillow takes 8 of 16
    transparent: tuple[int, ...] | None = None  # PNG's colour that counts as transparent


@contextmanager
def named() -> Iterator[None]:
    """Turn whatever a reader raises into an `UnreadableImage`: they use a dozen exceptions."""
    try:
        yield
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("needs more memory than there is", "too_large") from error
    except (struct.error, IndexError) as error:  # something lies behind the end of the file
        raise UnreadableImage("is cut off") from error
    except Exception as error:
        if "truncated" in str(error).lower():
            raise UnreadableImage("is cut off") from error
        raise UnreadableImage(f"is damaged ({error or type(error).__name__})") from error


# ---- which format it is -------------------------------------------------------------------------

BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# What people have among their photos, by how it begins in small letters.
STRANGERS = (
    (b"<!doctype html", "is a web page, not a photo"),
    (b"<html", "is a web page, not a photo"),
    (b"<svg", "is an SVG drawing, not a photo"),
    (b"<?xml", "is an XML document, not a photo"),
    (b"%pdf", "is a PDF document, not a photo"),
    (b"8bps", "is a Photoshop document: export it as JPEG or PNG"),
    (b"\0\x05\x16\x07", "is a note that macOS keeps about a file, not a photo"),
)


def sniff(content: bytes) -> str:
    """Return the format by how the content begins; the first 256 bytes are enough."""
    if not content:
        raise UnreadableImage("is empty", "empty")
    for beginning, name in BEGINNINGS:
        if content.startswith(beginning):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    if content[4:8] == b"ftyp":
        length = min(int.from_bytes(content[:4]), 256)
        brands = {content[i : i + 4] for i in range(8, length, 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & HEIC_BRANDS:
            return "HEIC"
        raise UnreadableImage("is a video, not a photo", "no_photo")
    head = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, reason in STRANGERS:
        if head.startswith(beginning):
            raise UnreadableImage(reason, "no_photo")
    raise UnreadableImage(f"is in no format that is read ({', '.join(OPENERS)})", "no_photo")


def open_photo(content: bytes, limits: Limits) -> Photo:
    """Open a file within the limits; raises an `UnreadableImage` where it cannot be read."""
    if len(content) > limits.bytes:
        raise UnreadableImage(f"is larger than {limits.bytes / 1e6:g} MB", "too_large")
    opener = OPENERS[sniff(content)]
    with named():
        photo = opener(content, limits)
    if photo.frames > limits.frames:
        raise UnreadableImage(f"is an animation of more than {limits.frames:,} frames", "too_large")
    return photo


def _refuse_large(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise UnreadableImage(
            f"is larger than {limits.pixels / 1e6:g} million pixels ({width} x {height})",
            "too_large",
        )


# ---- one opener a format ------------------------------------------------------------------------


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def getexif(self) -> Image.Exif:
        return Image.Exif()  # Pillow looks for a density there and warns of what is damaged


class _Tiff(TiffImagePlugin.TiffImageFile):
    def load_prepare(self) -> None:
        self.im = Image.new(self.mode, self.size).im  # Pillow would, and warns of large ones
        super().load_prepare()


def _jpeg(content: bytes, limits: Limits) -> Photo:
    """Open a JPEG; of several in one file (MPO) it is the first."""
    image = _Jpeg(BytesIO(content))
    if "progressive" in image.info and content.count(b"\xff\xda") > MOST_SCANS:
        raise UnreadableImage(f"is a JPEG of more than {MOST_SCANS} scans", "too_large")
    return _with_info("JPEG", image, limits)


def _bmp(content: bytes, limits: Limits) -> Photo:
    return _with_info("BMP", BmpImagePlugin.BmpImageFile(BytesIO(content)), limits)


def _png(content: bytes, limits: Limits) -> Photo:
    """Open a PNG by the chunks that its pixels need, their checksums verified."""
    kept, found = [content[:8]], dict[bytes, bytes]()
    for kind, start, end in _png_chunks(content):
        if kind == b"IHDR":
            if found:
                raise UnreadableImage("is damaged (a PNG with a second header)")
            width, height = struct.unpack(">LL", content[start : start + 8])
            _refuse_large(width, height, limits)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(content[start - 4 : end]) != int.from_bytes(content[end : end + 4]):
                raise UnreadableImage(f"is damaged (the checksum of its {kind.decode()} is wrong)")
            if kind != b"tRNS" or found[b"IHDR"][9] == 3:  # the other colour types: see below
                kept.append(content[start - 8 : end + 4])
        if kind != b"IDAT":
            found.setdefault(kind, content[start:end])
    clean = b"".join(kept)
    image = PngImagePlugin.PngImageFile(BytesIO(clean))
    bits, colours = found[b"IHDR"][8:10]
    deep = None
    if (bits, colours) in ((16, 2), (16, 6)):
        deep = _deep(image, PngImagePlugin.PngImageFile(BytesIO(clean)))
    elif (bits, colours) == (16, 4):
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]  # two bytes, two bytes
        deep = partial(_pairs, image)
    transparent = None
    if b"tRNS" in found and colours in (0, 2):
        values = struct.unpack_from(">H" if colours == 0 else ">HHH", found[b"tRNS"])
        stretch = 255 // (2**bits - 1) if bits < 8 else 1  # Pillow stretches these greys
        transparent = tuple(value * stretch for value in values)
    frames = int.from_bytes(found[b"acTL"][:4]) if b"acTL" in found else 1
    orientation = _orientation(found.get(b"eXIf", b""))
    profile = b"" if b"sRGB" in found else _png_profile(found.get(b"iCCP", b""))
    return Photo("PNG", image, bits, orientation, frames, profile, deep, transparent)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG and where its data begins and ends."""
    kind, end = b"", 4
    while kind != b"IEND":
        start = end + 12  # behind the checksum, a length and a kind
        if start > len(content):
            raise UnreadableImage("is cut off")
        kind = content[start - 4 : start]
        end = start + int.from_bytes(content[start - 8 : start - 4])
        if end + 4 > len(content):
            raise UnreadableImage("is cut off")
        yield kind, start, end


def _png_profile(chunk: bytes) -> bytes:
    """Return the colour profile of a PNG, without the rest of one that grows too large."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], LARGEST_PROFILE)
    except zlib.error:
        return b""


def _gif(content: bytes, limits: Limits) -> Photo:
    """Open the first frame of a GIF: the header, the palette, the transparency and the frame."""
    at = first = 13 + (3 << (content[10] & 7) + 1 if content[10] & 128 else 0)
    control, start, frames = b"", 0, 0
    while at < len(content) and content[at : at + 1] != b";" and frames <= limits.frames:
        if content[at : at + 1] == b",":
            start, frames = start or at, frames + 1
            flags = content[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)
        elif content[at : at + 1] == b"!":
            if content[at + 1] == 0xF9 and not frames:
                control = content[at : at + 8]
            at += 2
        else:
            raise UnreadableImage("is damaged (a GIF with an unknown block)")
        while content[at]:
            at += content[at] + 1
        at += 1
    if not frames:
        raise UnreadableImage("is cut off")
    width, height, left, top, w, h = (
        *struct.unpack_from("<HH", content, 6),
        *struct.unpack_from("<HHHH", content, start + 1),
    )
    width, height = max(width, left + w), max(height, top + h)
    _refuse_large(width, height, limits)
    if control:  # keep the transparency, and not what becomes of the frame before the next one
        control = b"!\xf9\4" + bytes([control[3] & 1]) + control[4:]
    screen = content[:6] + struct.pack("<HH", width, height) + content[10:first]
    image = GifImagePlugin.GifImageFile(BytesIO(screen + control + content[start:]))
    return Photo("GIF", image, frames=frames)


def _webp(content: bytes, limits: Limits) -> Photo:
    """Open a WebP, whose reader makes room for the pixels at once: the size is looked at before."""
    if len(content) < 8 + int.from_bytes(content[4:8], "little"):
        raise UnreadableImage("is cut off")
    if content[12:16] == b"VP8X":
        width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (24, 27))
    elif content[12:16] == b"VP8L":
        both = int.from_bytes(content[21:25], "little")
        width, height = (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", content, 26))
    _refuse_large(width, height, limits)
    return _with_info("WebP", WebPImagePlugin.WebPImageFile(BytesIO(content)), limits)


def _avif(content: bytes, limits: Limits) -> Photo:
    """Open an AVIF without its EXIF block: its own header says how it is turned."""
    content = re.sub(rb"(infe.{8})Exif", rb"\1none", content, flags=re.DOTALL)
    return _with_info("AVIF", AvifImagePlugin.AvifImageFile(BytesIO(content)), limits)


def _heic(content: bytes, limits: Limits) -> Photo:
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise UnreadableImage(
            "is HEIC, which needs: pip install 'fieldmark[heic]'", "no_photo"
        ) from error
    return _with_info("HEIC", plugin.HeifImageFile(BytesIO(content)), limits)


TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 277, 284, 338, 339),  # size, samples, compression
    *(273, 278, 279, 322, 323, 324, 325),  # where the strips or tiles are
    *(317, 320, 347, 529, 530, 531, 532),  # predictor, palette, JPEG tables, YCbCr
}
TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}  # no further format inside, but JPEG
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def _tiff(content: bytes, limits: Limits) -> Photo:
    """Open the first page of a TIFF by the tags that its pixels need, after a look at each."""
    order, at, tags = _directory(content)
    kept, room = [], len(content)
    for tag, (kind, count, value) in sorted(tags.items()):
        if tag not in TIFF_TAGS or kind not in TIFF_SIZES:
            continue
        size = TIFF_SIZES[kind] * count
        room -= size
        place = struct.unpack(order + "L", value)[0] if size > 4 else 0
        if room < 0 or place + size > len(content):
            raise UnreadableImage("is cut off")
        if TiffTags.lookup(tag).length == 1 and count != 1 and kind in (3, 4):
            raise UnreadableImage(f"is damaged (the TIFF tag {tag} has {count} values)")
        kept.append(struct.pack(order + "HHL4s", tag, kind, count, value))
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    clean = content[:at] + directory + content[at + len(directory) :]

    image = _Tiff(BytesIO(clean))
    _refuse_large(*image.size, limits)
    _refuse_large(image.tag_v2.get(322, 1), image.tag_v2.get(323, 1), limits)  # a tile
    compression, photometric, bits = (image.tag_v2.get(tag) for tag in (259, 262, 258))
    if (compression or 1) not in TIFF_COMPRESSIONS:
        raise UnreadableImage(
            f"is a TIFF with compression {compression}, which is not read", "no_photo"
        )
    bits = bits[0] if bits else 1
    raw = _raw(image.tile[0])
    if bits == 12 or (bits == 16 and photometric == 0):
        raise UnreadableImage(
            f"is a TIFF of {bits} bits a sample of a kind that is not read", "no_photo"
        )
    colours = raw[:-1] in ("RGB;16", "RGBX;16", "RGBA;16")
    deep = _deep(image, _Tiff(BytesIO(clean))) if colours else None
    _, length, value = tags.get(34675, (7, 0, bytes(4)))
    (place,) = struct.unpack(order + "L", value)
    profile = content[place : place + min(length, LARGEST_PROFILE)]
    return Photo("TIFF", image, bits, _orientation(content), profile=profile, deep=deep)


OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def _deep(high: ImageFile.ImageFile, low: ImageFile.ImageFile) -> Callable[[], NDArray[np.uint16]]:
    """Return what reads 16-bit colours, of which Pillow keeps the higher bytes.

    `low` is the same file opened again. Read in the other byte order, its lower bytes stand where
    the higher ones are expected.
    """
    for i, tile in enumerate(low.tile):
        raw = _raw(tile)
        other = raw[:-1] + OTHER_ORDER[raw[-1]]
        args = (other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
        low.tile[i] = tile._replace(args=args)
    return lambda: np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def _pairs(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """Return 16-bit grey and alpha, (h, w, 2), that were read as four channels of 8."""
    return np.asarray(image).view(">u2").astype(np.uint16)


def _raw(tile: Any) -> str:
    """Return how Pillow reads a tile: for instance "RGB;16B", big-endian."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _with_info(name: str, image: ImageFile.ImageFile, limits: Limits) -> Photo:
    """Take the orientation and the profile from where Pillow puts them."""
    _refuse_large(*image.size, limits)
    return Photo(
        name,
        image,
        bits=getattr(image, "bits", 8),
        orientation=_orientation(image.info.get("exif") or b""),
        frames=getattr(image, "n_frames", 1),
        profile=image.info.get("icc_profile") or b"",
    )


OPENERS: dict[str, Callable[[bytes, Limits], Photo]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _webp,
    "AVIF": _avif,
    "HEIC": _heic,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}


Tags = dict[int, tuple[int, int, bytes]]  # tag -> type, count, the value or its place


def _directory(tiff: bytes) -> tuple[str, int, Tags]:
    """Return the byte order, the place and the tags of the first directory of a TIFF, or EXIF."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (at,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    rows = [struct.unpack_from(order + "HHL4s", tiff, at + 2 + 12 * i) for i in range(count)]
    return order, at, {tag: (kind, number, value) for tag, kind, number, value in rows}


def _orientation(exif: bytes) -> int:
    """Return EXIF's orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        order, _, tags = _directory(exif.removeprefix(b"Exif\0\0"))
        kind, _, value = tags[0x0112]
        (orientation,) = struct.unpack_from(order + {3: "H", 4: "L"}[kind], value)
    except (KeyError, struct.error):
        return 1
    return int(orientation) if 1 <= orientation <= 8 else 1
