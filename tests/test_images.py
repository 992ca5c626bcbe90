"""Photos in: every kind of file against its truth, bad ones against their reasons."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, features
from pydantic import ValidationError

from conftest import ROOT
from fieldmark.errors import FieldmarkError
from fieldmark.formats import Limits, UnreadableImage
from fieldmark.images import Facts, ImageSpec, decode, inspect, read, scale

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112
# What brings a picture that is upright to how it lies in a file of each orientation.
LAID = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def spec(size: int = 32, mode: str = "squash", **values: Any) -> ImageSpec:
    return ImageSpec.model_validate(
        {"size": size, "mode": mode, "interpolation": "bilinear", "scaling": "0..255", **values}
    )


def blocks(height: int = 48, width: int = 64, *, seed: int = 0) -> Pixels:
    """A picture of 16 x 16 blocks, each of one colour, which JPEG keeps well; (h, w, 3)."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3))
    return np.kron(colours, np.ones((16, 16, 1))).astype(np.uint8)


def saved(picture: Pixels | Image.Image, form: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(samples: NDArray[Any], colours: int, *more: bytes, interlace: int = 0) -> bytes:
    """A PNG of samples of 8 or 16 bits, (h, w, c), written by hand; `more` stands before them."""
    height, width = samples.shape[:2]
    bits = 8 * samples.dtype.itemsize
    header = struct.pack(">LLBBBBB", width, height, bits, colours, 0, 0, interlace)
    rows = samples.astype(f">u{samples.dtype.itemsize}")
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", header), *more, chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(content: bytes, **options: Any) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(content, **options)
    return str(caught.value)


def off(ours: NDArray[Any], truth: NDArray[Any]) -> float:
    """The mean difference in grey levels; the shapes are equal."""
    assert ours.shape == truth.shape
    return float(np.abs(ours.astype(float) - truth).mean())


# ---- the specification ---------------------------------------------------------------------------


def test_a_specification_survives_json() -> None:
    first = spec(224, "pad", interpolation="lanczos", scaling="-1..1")
    assert ImageSpec.from_json(first.model_dump_json()) == first
    assert json.loads(first.model_dump_json()) == {
        "size": 224,
        "mode": "pad",
        "interpolation": "lanczos",
        "scaling": "-1..1",
    }


@pytest.mark.parametrize(
    "change",
    [{"size": "224"}, {"size": 224.0}, {"size": 0}, {"mode": "stretch"}, {"colour": "RGB"}],
    ids=str,
)
def test_a_specification_refuses_what_it_does_not_know(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**change)
    with pytest.raises(FieldmarkError, match=next(iter(change))):
        ImageSpec.from_json(json.dumps({**spec().model_dump(), **change}))
    with pytest.raises(ValidationError):
        spec().size = 8


@pytest.mark.parametrize(
    ("scaling", "low", "high"), [("0..255", 0, 255), ("0..1", 0, 1), ("-1..1", -1, 1)]
)
def test_scaling_takes_black_and_white_to_the_ends(scaling: str, low: int, high: int) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    scaled = scale(levels, spec(scaling=scaling))
    assert scaled.dtype == np.float32
    assert scaled.shape == levels.shape
    assert scaled.min() == low
    assert scaled.max() == high
    np.testing.assert_allclose(np.diff(scaled.ravel()), (high - low) / 255, rtol=1e-4)
    assert levels[-1, -1, 0] == 255  # not written to


# ---- upright -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", LAID)
def test_every_orientation_comes_upright(orientation: int, form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    truth = blocks()
    laid = Image.fromarray(np.ascontiguousarray(LAID[orientation](truth)))
    if form == "TIFF":
        content = saved(laid, form, tiffinfo={ORIENTATION: orientation})
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        content = saved(laid, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert off(decode(content), truth) < (0.001 if form in ("PNG", "TIFF", "WEBP") else 4)
    facts = inspect(content)
    assert (facts.width, facts.height) == (64, 48)
    assert facts.orientation == orientation
    for mode in ("squash", "crop", "pad"):
        # Turned last, the two passes of resizing come in the other order: one level at most.
        ours, upright = read(content, spec(mode=mode)), read(saved(truth, "PNG"), spec(mode=mode))
        assert off(ours, upright) < (0.6 if form in ("PNG", "TIFF", "WEBP") else 4)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"Exif\0\0MM\0*\0\0\0\xff", b"no EXIF at all"])
def test_damaged_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        assert off(decode(saved(blocks(), form, exif=exif, quality=95)), blocks()) < 12


# ---- colours -------------------------------------------------------------------------------------


def test_cmyk_and_ycck_have_their_colours() -> None:
    truth = blocks()
    inks = Image.fromarray(truth).convert("CMYK")
    cmyk = saved(inks, "JPEG", quality=95, subsampling=0)
    assert inspect(cmyk).mode == "CMYK"
    assert off(decode(cmyk), truth) < 4

    # The planes of a YCCK are those of a CMYK whose inks, taken for RGB, became YCbCr.
    *colours, black = inks.split()
    planes = Image.merge("RGB", colours).convert("YCbCr").split()
    inverted = [plane.point(lambda level: 255 - level) for plane in planes]
    ycck = bytearray(saved(Image.merge("CMYK", [*inverted, black]), "JPEG", quality=95))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the marker that says so
    assert off(decode(bytes(ycck)), truth) < 4


def sixteen(channels: int) -> NDArray[np.uint16]:
    """All 65,536 levels, (256, 256, c), in another order in each channel."""
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    turned = (levels, levels.T, levels[::-1, ::-1], np.roll(levels, 99))
    return np.stack(turned[:channels], axis=-1)


def eight(samples: NDArray[np.uint16]) -> NDArray[np.float64]:
    """The truth: 65535 is to 255 as the value is to the level, the nearest is taken."""
    return np.floor(samples / 257 + 0.5)


@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (2, 3)], ids=["grey", "RGB"])
def test_a_png_of_16_bits_is_scaled_to_the_nearest_of_8(colours: int, channels: int) -> None:
    samples = sixteen(channels)
    content = png(samples, colours)
    assert inspect(content).bits == 16
    np.testing.assert_array_equal(decode(content), np.broadcast_to(eight(samples), (256, 256, 3)))


@pytest.mark.parametrize(("colours", "channels"), [(4, 2), (6, 4)], ids=["grey", "RGB"])
def test_a_png_of_16_bits_with_alpha_lies_over_white(colours: int, channels: int) -> None:
    samples = sixteen(channels)
    levels, alpha = eight(samples[..., :-1]), eight(samples[..., -1:]) / 255
    truth = np.broadcast_to(levels * alpha + 255 * (1 - alpha), (256, 256, 3))
    assert np.abs(decode(png(samples, colours)) - truth).max() < 1


def tiff(
    samples: NDArray[np.uint16], order: str, compression: int, more: dict[int, int] | None = None
) -> bytes:
    """A TIFF of 16-bit RGB, (h, w, 3), written by hand: Pillow writes none."""
    height, width = samples.shape[:2]
    data = samples.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    tags = {256: width, 257: height, 259: compression, 262: 2, 277: 3, 278: height, 279: len(data)}
    tags |= more or {}
    behind = 8 + 2 + 12 * (len(tags) + 2) + 4  # where what has no room in the directory begins
    rows = [(tag, 4, 1, value) for tag, value in tags.items()]
    rows += [(258, 3, 3, behind), (273, 4, 1, behind + 6)]  # the bits a sample; the pixels
    directory = b"".join(struct.pack(order + "HHLL", *row) for row in sorted(rows))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "LH", 8, len(rows))
    return head + directory + bytes(4) + struct.pack(order + "HHH", 16, 16, 16) + data


@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_is_scaled_to_the_nearest_of_8(order: str, compression: int) -> None:
    content = tiff(sixteen(3), order, compression)
    assert inspect(content).bits == 16
    np.testing.assert_array_equal(decode(content), eight(sixteen(3)))
    grey = saved(Image.fromarray(sixteen(1)[..., 0]), "TIFF")
    truth = np.broadcast_to(eight(sixteen(1)), (256, 256, 3))
    np.testing.assert_array_equal(decode(grey), truth)


def test_grey_palette_and_alpha_lie_over_white() -> None:
    picture = blocks()
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L"))
    alpha = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    share = alpha[..., None] / 255
    over = picture * share + 255 * (1 - share)
    np.testing.assert_array_equal(decode(saved(grey, "PNG")), np.stack([grey] * 3, -1))
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        rgba = Image.merge("RGBA", [*image.split(), Image.fromarray(alpha)])
        assert np.abs(decode(saved(rgba, form, **options)) - over).max() <= 1
    both = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    flat = grey[..., None] * share + 255 * (1 - share)
    assert np.abs(decode(saved(both, "PNG")) - flat).max() <= 1

    palette = image.quantize(64)
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(saved(palette, form)), palette.convert("RGB"))
    first = int(np.asarray(palette)[0, 0])
    truth = np.array(palette.convert("RGB"))
    truth[np.asarray(palette) == first] = 255
    for form in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(saved(palette, form, transparency=first)), truth)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_one_transparent_grey_of_a_png_becomes_white(bits: int) -> None:
    levels = np.arange(64).reshape(8, 8) % 2**bits
    packed = "".join(f"{level:0{bits}b}" for level in levels.ravel())
    width = 8 * bits // 8  # bytes a row
    data = int(packed, 2).to_bytes(8 * width)
    rows = b"".join(b"\0" + data[i : i + width] for i in range(0, len(data), width))
    header = struct.pack(">LLBBBBB", 8, 8, bits, 0, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"tRNS", struct.pack(">H", 1)),
        chunk(b"IDAT", zlib.compress(rows)),
    )
    ours = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    truth = np.where(levels == 1, 255, np.floor(levels * 255 / (2**bits - 1) + 0.5))
    np.testing.assert_array_equal(ours, np.stack([truth] * 3, -1))


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_the_one_transparent_colour_of_a_png_becomes_white(kind: str) -> None:
    samples = blocks().astype(kind) * (257 if kind == "u2" else 1)
    samples[0, 0] += 1 if kind == "u2" else 0  # the same in 8 bits, and not transparent
    key = samples[0, 1]
    content = png(samples, 2, chunk(b"tRNS", struct.pack(">HHH", *key)))
    truth = blocks().astype(int)
    truth[(samples == key).all(axis=-1)] = 255
    np.testing.assert_array_equal(decode(content), truth)


def test_an_animation_gives_its_first_frame() -> None:
    first, second = Image.fromarray(blocks()), Image.fromarray(blocks(seed=1))
    forms: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    for form, options in forms.items():
        content = saved(first, form, save_all=True, append_images=[second, first], **options)
        np.testing.assert_array_equal(decode(content), first)
        assert inspect(content).frames == (1 if form == "TIFF" else 3)
    gif = saved(first.quantize(64), "GIF", save_all=True, append_images=[second.quantize(64)])
    np.testing.assert_array_equal(decode(gif), first.quantize(64).convert("RGB"))
    assert inspect(gif).frames == 2
    assert reason(gif, limits=Limits(frames=1)) == "is an animation of more than 1 frames"


# ---- colour profiles -----------------------------------------------------------------------------

# Display P3's primaries, adapted to D50, as columns of the matrix to XYZ; and sRGB's.
P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
WHITE = np.array([0.9642, 1.0, 0.8249])


def profile(primaries: NDArray[np.float64], gamma: float = 2.2) -> bytes:
    """An ICC profile of version 2: three primaries and one gamma."""

    def xyz(values: NDArray[np.float64]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">lll", *(round(65536 * v) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">LH", 1, round(256 * gamma)) + bytes(2)
    name = b"made for a test\0"
    text = b"desc\0\0\0\0" + struct.pack(">L", len(name)) + name + bytes(78)
    text += bytes(-len(text) % 4)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(WHITE)}
    tags |= {kind: xyz(primaries[:, i]) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for kind, value in tags.items():
        table += kind + struct.pack(">LL", at + len(data), len(value))
        data += value
    header = struct.pack(">L4sL4s4s4s12s4s", at + len(data), bytes(4), 0x02100000, b"mntr", b"RGB ",
                         b"XYZ ", bytes(12), b"acsp")  # fmt: skip
    white = struct.pack(">lll", *(round(65536 * v) for v in WHITE))
    header = header + bytes(68 - len(header)) + white + bytes(48)
    return header + struct.pack(">L", len(tags)) + table + data


needs_littlecms = pytest.mark.skipif(
    not features.check("littlecms2"), reason="this Pillow has no littlecms"
)


@needs_littlecms
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_wide_profile_is_brought_to_srgb(form: str) -> None:
    picture = blocks()
    options = {"lossless": True} if form == "WEBP" else {"quality": 98} if form == "JPEG" else {}
    content = saved(picture, form, icc_profile=profile(P3), **options)
    assert inspect(content).profile == "made for a test"
    light = np.linalg.solve(SRGB, P3) @ ((picture / 255) ** 2.2).reshape(-1, 3).T
    light = light.clip(0, 1).T.reshape(picture.shape)
    truth = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert off(decode(content), truth) < (4 if form == "JPEG" else 1)
    assert off(picture, truth) > 4


@needs_littlecms
def test_srgb_and_damaged_profiles_change_nothing() -> None:
    picture = blocks()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for bad in (srgb, b"no profile", profile(P3)[:200], profile(P3)[:300] + bytes(40)):
        np.testing.assert_array_equal(decode(saved(picture, "PNG", icc_profile=bad)), picture)
    grey = Image.fromarray(picture).convert("L")  # a profile of colours in a photo without
    content = saved(grey, "PNG", icc_profile=profile(P3))
    np.testing.assert_array_equal(decode(content), grey.convert("RGB"))
    assert inspect(saved(picture, "PNG", icc_profile=b"none")).profile.startswith("a profile that")


@needs_littlecms
def test_many_threads_read_alike() -> None:
    contents = [
        saved(blocks(seed=i), "JPEG", icc_profile=profile(P3, 1.5 + i / 20)) for i in range(24)
    ]
    alone = [read(content, spec()) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: read(content, spec()), contents * 4))
    for ours, truth in zip(together, alone * 4, strict=True):
        np.testing.assert_array_equal(ours, truth)


# ---- which file it is ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF"])
def test_the_content_says_what_it_is(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    facts = inspect(saved(blocks(), form))
    assert facts.format.upper() == form
    assert (facts.width, facts.height, facts.bits, facts.frames) == (64, 48, 8, 1)
    assert off(decode(saved(blocks(), form)), blocks()) < 20


def test_the_facts_of_a_header() -> None:
    assert inspect(saved(blocks(), "PNG")) == Facts("PNG", 64, 48, "RGB", 8, 1, 1, "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "is a web page, not a photo"),
        (b"\xef\xbb\xbf<html>", "is a web page, not a photo"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "is an SVG drawing, not a photo"),
        (b"%PDF-1.7", "is a PDF document, not a photo"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "is a video, not a photo"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is in no format that is read"),
        (b"text", "is in no format that is read"),
    ],
)
def test_what_is_no_photo_is_named(content: bytes, why: str) -> None:
    assert reason(content).startswith(why)
    with pytest.raises(UnreadableImage, match=why):
        inspect(content)


@pytest.mark.parametrize("form", ["ICO", "ICNS", "EPS", "PPM", "TGA", "PCX", "JPEG2000", "PDF"])
def test_other_formats_of_pillow_stay_shut(form: str) -> None:
    assert "is " in reason(saved(blocks(64, 64), form))


def test_of_several_photos_in_one_jpeg_the_first_is_read() -> None:
    first, second = Image.fromarray(blocks()), Image.fromarray(blocks(seed=1))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    assert inspect(content).format == "JPEG"
    assert off(decode(content), blocks()) < 12


def test_heic_is_read_or_says_what_to_install() -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    if importlib.util.find_spec("pillow_heif") is None:
        assert reason(head) == "is HEIC, which needs: pip install 'fieldmark[heic]'"
        return
    pillow_heif = importlib.import_module("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(blocks())).save(file, quality=95)
    assert off(decode(file.getvalue()), blocks()) < 20
    assert reason(head).startswith("is ")


# ---- limits --------------------------------------------------------------------------------------


def header_only(width: int, height: int) -> bytes:
    size = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def gif_of(width: int, height: int) -> bytes:
    content = bytearray(saved(Image.new("P", (4, 4)), "GIF"))
    at = content.index(b",\0\0\0\0") + 5
    content[at : at + 4] = struct.pack("<HH", width, height)  # the frame, not the screen
    return bytes(content)


BOMBS = {
    "PNG header": header_only(60000, 60000),
    "GIF frame": gif_of(60000, 60000),
    "WebP": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\0\xff\xff\0",
    "BMP": b"BM" + struct.pack("<LLLLLLHHLLLLLL", 54, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_by_its_header(content: bytes) -> None:
    assert reason(content).startswith("is larger than 200 million pixels (6")
    with pytest.raises(UnreadableImage, match="is larger than"):
        inspect(content)


def test_a_bomb_behind_a_small_header_is_refused() -> None:
    small, large = header_only(4, 4), header_only(60000, 60000)
    twice = small[:33] + large[8:33] + small[33:]
    assert reason(twice) == "is damaged (a PNG with a second header)"
    page = tiff(sixteen(3), "<", 8, {322: 60000, 323: 60000})
    assert reason(page).startswith("is larger than 200 million pixels (60000 x 60000)")


def test_the_limits_are_the_callers() -> None:
    content = saved(blocks(), "PNG")
    assert decode(content, limits=Limits(pixels=48 * 64)).shape == (48, 64, 3)
    assert reason(content, limits=Limits(pixels=48 * 64 - 1)).endswith("pixels (64 x 48)")
    assert reason(content, limits=Limits(bytes=len(content) - 1)).endswith(" MB")


def test_many_pixels_within_the_limit_bring_no_warning() -> None:
    """Pillow alone warns at 89 million."""
    row = zlib.compressobj()
    packed = b"".join(row.compress(bytes(1 + 1250)) for _ in range(9500)) + row.flush()
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", 10000, 9500, 1, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert inspect(content).width == 10000
    tiff = saved(Image.new("1", (10000, 9500)), "TIFF", compression="group4")
    assert read(tiff, spec(), limits=Limits(pixels=100_000_000)).shape == (32, 32, 3)


def test_a_real_bomb_takes_no_memory() -> None:
    """400 million black pixels in 1.2 MB, refused in a process that may grow by 50 MB."""
    pytest.importorskip("resource", reason="this system does not count memory")
    code = """
import resource, struct, zlib
from fieldmark.formats import LIMITS, UnreadableImage
from fieldmark.images import read, ImageSpec
def chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
packer = zlib.compressobj()
first, again = (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in "ab")
packed = first + again * 1144 + packer.flush()
header = chunk(b"IHDR", struct.pack(">LLBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
bomb = b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
spec = ImageSpec(size=224, mode="squash", interpolation="bilinear", scaling="0..255")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read(bomb, spec)
except UnreadableImage as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refusal, grown = done.stdout.splitlines()
    assert refusal == "is larger than 200 million pixels (20000 x 20000)"
    assert int(grown) < 50_000 * (1024 if sys.platform == "darwin" else 1)


def test_one_pixel_by_many_makes_no_large_picture_on_the_way() -> None:
    content = saved(Image.new("1", (1, 2_000_000), 1), "PNG")
    assert (read(content, spec(224)) == 255).all()


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    content = saved(blocks(), "JPEG", progressive=True)
    assert decode(content).shape == (48, 64, 3)
    scan = content[content.index(b"\xff\xda") : content.rindex(b"\xff\xda")]
    endless = content[:-2] + scan * 100 + content[-2:]
    assert reason(endless) == "is a JPEG of more than 100 scans"


def test_a_profile_or_text_that_grows_without_end_is_left_alone() -> None:
    endless = zlib.compress(bytes(30_000_000), 9)
    more = chunk(b"iCCP", b"p\0\0" + endless), chunk(b"zTXt", b"t\0\0" + endless)
    np.testing.assert_array_equal(decode(png(blocks(), 2, *more)), blocks())


# ---- broken files --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_refused(form: str, share: float) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    content = saved(noise, form)
    why = reason(content[: int(share * len(content))])
    assert why == "is cut off" or form in ("AVIF", "JPEG", "TIFF")


def test_the_odd_files_are_read_or_refused(shared_photos: Path) -> None:
    files = sorted(path for path in (shared_photos / "odd").rglob("*") if path.is_file())
    refused = set()
    for path in files:
        try:
            square = read(path.read_bytes(), spec())
        except UnreadableImage as error:
            assert str(error).startswith("is ")
            refused.add(path.name)
        else:
            assert square.shape == (32, 32, 3)
    broken_on_purpose = {path.name for path in files if path.name.startswith("x")}
    assert len(broken_on_purpose) == 14
    assert broken_on_purpose <= refused
    assert {"zero_bytes.jpg", "web_page.jpg", "truncated.gif", "truncated.jpg"} <= refused
    readable = {path.name for path in files if path.parent.name != "broken"} - broken_on_purpose
    assert not readable & refused


@pytest.mark.parametrize("side", ["Landscape", "Portrait"])
def test_the_photos_of_each_orientation_look_alike(shared_photos: Path, side: str) -> None:
    folder = shared_photos / "odd" / "exif"
    upright = decode((folder / f"{side}_1.jpg").read_bytes())
    for orientation in range(2, 9):
        assert off(decode((folder / f"{side}_{orientation}.jpg").read_bytes()), upright) < 4


def checksummed(content: bytes) -> bytes:
    """A PNG with its checksums made right, so that a mutation gets past them."""
    fixed, at = content[:8], 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        body = content[at + 4 : end]
        fixed += content[at : at + 4] + body + struct.pack(">L", zlib.crc32(body))
        at = end + 4
    return fixed


def seeds() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    icc = profile(P3)
    return {
        "JPEG": saved(blocks(), "JPEG", exif=exif, icc_profile=icc, quality=60),
        "progressive": saved(blocks(), "JPEG", progressive=True),
        "PNG": saved(blocks(), "PNG", exif=exif, icc_profile=icc),
        "16 bits": png(blocks().astype(np.uint16), 2, chunk(b"tRNS", bytes(6))),
        "palette": saved(Image.fromarray(blocks()).quantize(8), "PNG", transparency=b"\0\x80"),
        "WebP": saved(blocks(), "WEBP", exif=exif, icc_profile=icc, quality=60),
        "lossless": saved(Image.fromarray(blocks()).convert("RGBA"), "WEBP", lossless=True),
    }


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),  # where, as a share of the file
        st.sampled_from(["set", "cut", "put"]),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", seeds())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(edits=EDITS, keep=st.one_of(st.just(1.0), st.floats(0, 1)), repair=st.booleans())
def test_every_mutation_is_read_or_refused(
    name: str, edits: list[tuple[float, Literal["set", "cut", "put"], bytes]], keep: float,
    repair: bool,
) -> None:  # fmt: skip
    content = bytearray(seeds()[name])
    for where, how, data in edits:
        at = int(where * len(content))
        end = at if how == "put" else at + len(data)
        content[at:end] = b"" if how == "cut" else data
    mutated = bytes(content[: round(keep * len(content))])
    if repair and mutated.startswith(b"\x89PNG"):
        mutated = checksummed(mutated)
    small = Limits(pixels=1_000_000)
    try:
        square = read(mutated, spec(16, "crop"), limits=small)
    except UnreadableImage as error:
        assert str(error).startswith(("is ", "holds "))
    else:
        assert square.shape == (16, 16, 3)
        assert inspect(mutated, limits=small).width > 0


# ---- geometry ------------------------------------------------------------------------------------

SPECS = st.builds(
    spec,
    size=st.integers(1, 80),
    mode=st.sampled_from(["squash", "crop", "pad"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
SIDES = st.integers(1, 120)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(width=SIDES, height=SIDES, chosen=SPECS, form=st.sampled_from(["PNG", "JPEG"]))
def test_every_shape_becomes_the_square(
    width: int, height: int, chosen: ImageSpec, form: str
) -> None:
    colour = (200, 128, 40)
    square = read(saved(Image.new("RGB", (width, height), colour), form), chosen)
    assert square.shape == (chosen.size, chosen.size, 3)
    assert square.dtype == np.uint8
    painted = np.abs(square.astype(int) - colour).max(axis=-1) <= 2  # JPEG is off by one or two
    if chosen.mode != "pad":
        assert painted.all()
        return
    assert (painted | (square == 128).all(axis=-1)).all()
    rows, columns = painted.any(axis=1).sum(), painted.any(axis=0).sum()
    longer = max(width, height)
    assert abs(columns - max(1, chosen.size * width / longer)) <= 0.5
    assert abs(rows - max(1, chosen.size * height / longer)) <= 0.5
    # What is left is the same on both sides, but for one pixel.
    first, last = np.flatnonzero(painted.any(axis=0))[[0, -1]]
    assert 0 <= (chosen.size - 1 - last) - first <= 1


@pytest.mark.parametrize("shape", [(96, 32), (32, 96)])
def test_the_crop_is_in_the_middle(shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    middle = tuple(slice(length // 2 - 16, length // 2 + 16) for length in shape)
    picture[middle] = blocks(32, 32)
    np.testing.assert_array_equal(read(saved(picture, "PNG"), spec(32, "crop")), blocks(32, 32))


def test_a_photo_of_the_right_size_is_left_as_it_is() -> None:
    picture = blocks(48, 48)
    for mode in ("squash", "crop", "pad"):
        np.testing.assert_array_equal(read(saved(picture, "PNG"), spec(48, mode)), picture)


def smooth(height: int, width: int) -> Pixels:
    """A picture with detail of many sizes, as photos have; (h, w, 3)."""
    random = np.random.default_rng(1)
    total = np.zeros((height, width, 3))
    for cell in (256, 128, 64, 32, 16, 8):
        noise = random.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, float) * cell
    return (total / 504).astype(np.uint8)


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_a_large_jpeg_read_at_reduced_scale_is_nearly_the_same(mode: str) -> None:
    content = saved(smooth(901, 1203), "JPEG", quality=92)  # no multiple of 8
    assert decode(content, at_least=220).shape == (226, 301, 3)
    assert decode(content, at_least=230).shape == (451, 602, 3)
    assert decode(content).shape == (901, 1203, 3)
    whole = read(saved(decode(content), "PNG"), spec(96, mode))
    assert off(read(content, spec(96, mode)), whole) < 0.5


# ---- the one door --------------------------------------------------------------------------------

# Names by which pictures are read, decoded or brought to size, in any library of the field.
READERS = {
    "decode_image", "decode_jpeg", "decode_png", "decode_bmp", "decode_gif", "decode_webp",
    "image_dataset_from_directory", "imdecode", "imread", "load_img", "resize", "smart_resize",
    "thumbnail", "Image.frombuffer", "Image.frombytes", "Image.open", "ImageFile.Parser", "cv2",
    "imageio", "skimage", "tf.image", "ops.image", "torchvision", "pillow_heif",
}  # fmt: skip
MAY = {
    # It reproduces the article, whose photos come through Keras' own reader.
    "article": {"image_dataset_from_directory", "decode_image"},
    # They paint; what they open and resize, they have painted.
    "draw": {"Image.open", "resize"},
    "brush": {"resize"},
    "scenery": {"resize"},
    "export": {"resize"},
    # It crops and resizes what `images` has read, anew in each epoch.
    "augment": {"resize"},
}


def readers(source: str) -> set[str]:
    """The names of `READERS` that a module uses."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found |= {node.attr, ".".join(ast.unparse(node).split(".")[-2:])}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module).partition(".")[0], *(alias.name for alias in node.names)}
            found |= {f"{str(node.module).rpartition('.')[2]}.{alias.name}" for alias in node.names}
    return found & READERS


def test_no_other_module_reads_photos() -> None:
    for path in sorted((ROOT / "src" / "fieldmark").rglob("*.py")):
        if path.stem not in ("images", "formats"):
            used = readers(path.read_text(encoding="utf-8"))
            assert used <= MAY.get(path.stem, set()), path.name


@pytest.mark.parametrize(
    "source",
    [
        "from PIL import Image\nImage.open(p)",
        "import PIL.Image\nPIL.Image.open(p).resize(s)",
        "from PIL.Image import open",
        "import tensorflow as tf\ntf.image.resize(x, s)",
        "tf.io.decode_jpeg(x)",
        "import cv2",
        "keras.utils.load_img(p)",
        "from keras.utils import load_img",
    ],
)
def test_a_second_path_would_be_found(source: str) -> None:
    assert readers(source)
