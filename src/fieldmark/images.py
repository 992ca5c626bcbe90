"""The one door for photos: bytes -> an upright RGB array -> what the network reads.

In: the content of a file. Out: `decode` gives the photo, `read` the square that an `ImageSpec` asks
for, `scale` the network's input, `inspect` the facts of the header. A file that cannot be read
raises an `UnreadableImage` with the reason. `fieldmark train` and all that looks at photos after it
come through here, and `tests/test_images.py` looks for a second path.

Pillow resizes in whole numbers, so that the processor makes no difference; its version may.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageCms,
    features,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldmark.errors import FieldmarkError
from fieldmark.formats import LIMITS, Limits, Photo, UnreadableImage, named, open_photo

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom

# A JPEG is decoded at 1/2, 1/4 or 1/8 as long as this many of its pixels are left for one of the
# target's on a side. `docs/images.md` has the difference that it makes.
ROOM: float = 2
PADDING = (128, 128, 128)  # the middle grey: 0.004 where black is -1 and white is 1


class ImageSpec(BaseModel):
    """How a photo becomes a network's input; it goes wherever the network goes.

    It has no defaults: those are the recipe's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=1, le=4096)  # pixels, the side of the square
    mode: Literal["squash", "crop", "pad"]
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    scaling: Literal["0..255", "0..1", "-1..1"]  # of black and white in the network's input

    @classmethod
    def from_json(cls, text: str | bytes) -> ImageSpec:
        """Read what `model_dump_json` wrote; raises a `FieldmarkError` for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise FieldmarkError(
                f"This is not the specification of a network's input ({'; '.join(wrong)}): "
                "take the one that was written with the network."
            ) from error


@dataclass(frozen=True)
class Facts:
    """What the header says of a photo."""

    format: str
    width: int  # pixels, of the upright photo
    height: int
    mode: str  # Pillow's word: "RGB", "L" for grey, "P" for a palette, "CMYK"
    bits: int  # a sample
    orientation: int  # EXIF's, 1 to 8
    frames: int
    profile: str  # the colour profile's name for itself; empty: there is none


# ---- what others call ---------------------------------------------------------------------------


def decode(content: bytes, *, at_least: int | None = None, limits: Limits = LIMITS) -> Pixels:
    """Return the upright photo, (h, w, 3), in sRGB and over white.

    A large JPEG is decoded at reduced scale as long as both sides keep `at_least` pixels.
    """
    photo = open_photo(content, limits)
    image, _ = _load(photo, (at_least, at_least) if at_least else photo.image.size)
    return np.array(_upright(_srgb(image, photo.profile), photo.orientation))


def read(content: bytes, spec: ImageSpec, *, limits: Limits = LIMITS) -> Pixels:
    """Return the square that `spec` asks for, (size, size, 3), resized with antialiasing."""
    return read_with_shape(content, spec, limits=limits)[0]


def read_with_shape(
    content: bytes, spec: ImageSpec, *, limits: Limits = LIMITS
) -> tuple[Pixels, tuple[int, int]]:
    """Return what `read` does, and (height, width) of the whole upright photo in its own pixels."""
    photo = open_photo(content, limits)
    shape = _upright_shape(photo)
    width, height = _shrunk(photo.image.size, spec)
    image, box = _load(photo, (int(ROOM * width), int(ROOM * height)))
    # Colours and turning come last, on fewer pixels: the three modes treat both axes alike.
    small = _srgb(_resized(image, box, spec), photo.profile)
    return np.array(_upright(padded(small, spec.size), photo.orientation)), shape


def scale(pixels: Pixels, spec: ImageSpec) -> NDArray[np.float32]:
    """Return pixels as the network's input, of the same shape; float32."""
    values = pixels.astype(np.float32)
    if spec.scaling == "0..1":
        values /= 255
    elif spec.scaling == "-1..1":
        values /= 127.5
        values -= 1
    return values


def inspect(content: bytes, *, limits: Limits = LIMITS) -> Facts:
    """Return the facts of the header; no pixel is decoded."""
    photo = open_photo(content, limits)
    height, width = _upright_shape(photo)
    return Facts(
        format=photo.format,
        width=width,
        height=height,
        mode=photo.image.mode,
        bits=photo.bits,
        orientation=photo.orientation,
        frames=photo.frames,
        profile=_profile_name(photo.profile),
    )


# ---- the pixels ---------------------------------------------------------------------------------

# What 16 bits are in 8: 65535 is to 255 as a value is to its level, and the nearest is taken.
NEAREST = ((np.arange(65536) + 128) // 257).astype(np.uint8)
KINDS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"}


def _load(photo: Photo, want: tuple[int, int]) -> tuple[Image.Image, Box]:
    """Decode over white, as it lies in the file, and say which part of that is the photo.

    A JPEG keeps at least `want` pixels, where it has them. At 1/8 of 4001 pixels it has 501, and
    the photo ends at 500.125 of them.
    """
    image = photo.image
    box: Box = (0, 0, *image.size)
    if image.mode not in KINDS:
        raise UnreadableImage(f"holds measurements, not colours ({image.mode})", "no_photo")
    if photo.format == "JPEG" and (drafted := image.draft(None, want)):
        box = drafted[1]
    with named():
        image.load()
        decoded = _eight_bits(photo)
    return _opaque(decoded), box


def _eight_bits(photo: Photo) -> Image.Image:
    """Bring 16 bits a sample to 8, and a colour that counts as transparent to an alpha channel."""
    image: Image.Image = photo.image
    if photo.deep:
        samples: NDArray[Any] = photo.deep()  # (h, w, channels)
    elif photo.transparent or image.mode.startswith("I;16"):
        samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    else:
        return image
    opaque = None
    if photo.transparent:
        differs = np.atleast_3d(samples) != photo.transparent
        opaque = differs.any(axis=-1)  # (h, w)
    if samples.dtype.itemsize == 2:
        samples = NEAREST[samples]
    image = Image.fromarray(samples)
    if opaque is not None:
        image.putalpha(Image.fromarray(opaque))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """Lay a decoded photo over white; grey, RGB or CMYK, still in the colours of its profile."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Bring grey, RGB or CMYK to sRGB."""
    if profile and (transform := _to_srgb(profile, image.mode)):
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings a profile's colours to sRGB; `None` where they are, or it is damaged."""
    if not features.check("littlecms2"):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,  # a transform with a cache is not for many threads
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode != "RGB":
        return transform
    steps = np.mgrid[0:256:15, 0:256:15, 0:256:15].astype(np.uint8).reshape(3, 18, -1)
    probe = np.ascontiguousarray(steps.transpose(1, 2, 0))  # (18, 324, 3)
    moved = np.asarray(transform.apply(Image.fromarray(probe)), np.int16) - probe
    return transform if np.abs(moved).max() > 1 else None  # sRGB itself rounds by one


def _profile_name(profile: bytes) -> str:
    """Return what a colour profile calls itself."""
    if not profile:
        return ""
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError, ImportError):
        return "a profile that cannot be read"


# ---- the geometry -------------------------------------------------------------------------------

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright_shape(photo: Photo) -> tuple[int, int]:
    """Return height and width of the upright photo."""
    width, height = photo.image.size
    return (width, height) if photo.orientation >= 5 else (height, width)  # 5 to 8 lie on the side


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _shrunk(size: tuple[float, float], spec: ImageSpec) -> tuple[int, int]:
    """Return the size at which `spec` shows the whole photo, before anything is cropped."""
    if spec.mode == "squash":
        return spec.size, spec.size
    side = min(size) if spec.mode == "crop" else max(size)
    width, height = (max(1, round(spec.size * length / side)) for length in size)
    return width, height


def _resized(image: Image.Image, box: Box, spec: ImageSpec) -> Image.Image:
    """Resize what lies in `box`, or its middle, to fill the square or, for padding, to fit in."""
    width, height = box[2:]
    target = (spec.size, spec.size)
    if spec.mode == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif spec.mode == "pad":
        target = _shrunk((width, height), spec)
    # It averages to twice the target first: faster where much is left out, and one pixel by 200
    # million never becomes 224 by 200 million.
    filtering = Image.Resampling[spec.interpolation.upper()]
    return image.resize(target, filtering, box, reducing_gap=2.0)


def padded(image: Image.Image, size: int) -> Image.Image:
    """Lay an image that fits into a square in its middle, grey beside it; for `augment` too."""
    if image.size == (size, size):
        return image
    square = Image.new("RGB", (size, size), PADDING)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square
