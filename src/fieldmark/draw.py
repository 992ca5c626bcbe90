"""Draw a data set of four bird species in which the place of every field mark is known.

In: a folder that does not exist yet (or is empty), the number of photos a class, their size and a
seed. Out: `OUT/<species>/0000.jpg`, ... and `OUT/field_marks.json`, which holds for each photo the
box and mask of the bird and of each visible field mark. The same seed gives the same bytes on one
version of Pillow.

    fieldmark draw OUT --per-class 60 --size 128 --seed 0
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TypedDict

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from fieldmark.brush import Painting, Place, Stroke, turned
from fieldmark.console import meter
from fieldmark.errors import FieldmarkError
from fieldmark.files import whole_folder
from fieldmark.scenery import BACKGROUNDS, backdrop, occluders, perch
from fieldmark.species import SPECIES, Pose, in_pose

Box = list[int]  # left, top, right, bottom in pixels; right and bottom are the first ones outside

IN_FLIGHT = {"sky": 0.5, "water": 0.4, "foliage": 0.1, "branch": 0.1}  # of any species
COVERED = 0.25  # a pixel of the photo belongs to a mark that covers this much of it


class Mask(TypedDict):
    """COCO's uncompressed run-length encoding: runs down the columns, the first one of zeros."""

    size: list[int]  # height, width
    counts: list[int]


class Region(TypedDict):
    """Where something is in the photo, its visible part only."""

    box: Box
    mask: Mask


class Truth(TypedDict):
    """What is known of one photo."""

    species: str
    background: str
    pose: str
    mirrored: bool
    bird: Region
    field_marks: dict[str, Region]


def birds(
    folder: str | os.PathLike[str], *, per_class: int = 60, size: int = 128, seed: int = 0
) -> Path:
    """Draw the four species, `per_class` photos of `size` pixels each, and return the folder.

    Photo k of a class depends on the seed, the class and k alone: fewer photos are the first of
    more. Raises a FieldmarkError for a value out of range, and for a folder that holds something
    already or cannot be written; then nothing is left behind.
    """
    folder = Path(folder)
    require_within("per_class", per_class, 1, 9999)
    require_within("size", size, 32, 1024)
    require_within("seed", seed, 0, 2**63 - 1)
    photos: dict[str, Truth] = {}
    with whole_folder(folder) as part, meter("Drawing", per_class * len(SPECIES)) as progress:
        for c, species in enumerate(SPECIES):
            (part / species).mkdir()
            for k in range(per_class):
                rng = np.random.default_rng([seed, c, k])
                jpeg, photos[f"{species}/{k:04d}.jpg"] = _photo(species, size, rng)
                (part / species / f"{k:04d}.jpg").write_bytes(jpeg)
                progress.advance()
        table = {"schema": 1, "size": size, "seed": seed, "pillow": PIL.__version__}
        text = json.dumps({**table, "photos": photos}, separators=(",", ":"))
        (part / "field_marks.json").write_text(text, encoding="utf-8")
    return folder


def require_within(name: str, value: int, low: int, high: int) -> None:
    """Raise a FieldmarkError for a value out of range."""
    if not low <= value <= high:
        raise FieldmarkError(f"{name} is {value}: give a whole number from {low} to {high}.")


def picture(species: str, *, size: int, rng: np.random.Generator) -> tuple[Image.Image, Truth]:
    """Draw one photo of the species, as `birds` writes it, and what is known of it."""
    jpeg, truth = _photo(species, size, rng)
    return Image.open(io.BytesIO(jpeg)), truth


def decode_mask(rle: Mask) -> NDArray[np.bool_]:
    """Turn a run-length encoding into a mask, (h, w)."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if len(flat) != height * width:
        raise FieldmarkError(
            f"A mask of {height} x {width} pixels has runs for {len(flat)}; draw the set again."
        )
    return flat.reshape((height, width), order="F")


def encode_mask(mask: NDArray[np.bool_]) -> Mask:
    """Turn a mask, (h, w), into COCO's uncompressed run-length encoding."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(flat[1:] != flat[:-1])  # where a run ends
    counts = np.diff(np.concatenate([[0], turns, [mask.size]]))
    return {"size": [int(n) for n in mask.shape], "counts": [int(n) for n in counts]}


def _photo(species: str, size: int, rng: np.random.Generator) -> tuple[bytes, Truth]:
    """Compose a scene and photograph it: the JPEG file and what is known of it."""
    scene, camera = rng.spawn(2)
    image, truth = compose(species, size=size, rng=scene)
    return photograph(image, camera), truth


# ---------------------------------------------------------------------------------------------
# The photo
# ---------------------------------------------------------------------------------------------


def compose(species: str, *, size: int, rng: np.random.Generator) -> tuple[Image.Image, Truth]:
    """Paint bird and surroundings without the camera's doing: no colour cast, blur or noise.

    All but the plumage is drawn before the species is looked at, from generators of its own, so
    that no background, pose, size or place belongs to one class more than to another.
    """
    world, stance, plumage, cover = rng.spawn(4)
    background = BACKGROUNDS[world.integers(len(BACKGROUNDS))]
    side = max(192, 2 * size)  # painted large, for smooth edges
    slant = world.uniform(-0.7, 0.7)  # the sun stands above, to one side
    sun = (float(np.sin(slant)), -float(np.cos(slant)))
    image = backdrop(background, world).resize((side, side), Image.Resampling.BICUBIC)

    pose = _pose(stance, IN_FLIGHT[background])
    mirrored = bool(stance.random() < 0.5)
    bird = SPECIES[species](pose, plumage)
    strokes = in_pose(bird, pose)
    flying = pose.name == "flying"
    tilt = pose.tilt + (bird.upright if flying else 0.0)
    place = _placed(strokes, tilt, pose.stretch, mirrored=mirrored, rng=stance)

    if not flying:
        foot = place.to(np.array([bird.foot]))[0]
        Painting(side, sun).paint(perch(background, foot, world), Place.whole(side)).onto(image)
    painting = Painting(side, sun).paint(strokes, place.times(side))
    painting.ruffle(stance).onto(image)
    label = _cover(image, painting, cover, sun) if cover.random() < 0.35 else painting.label

    return image.resize((size, size), Image.Resampling.LANCZOS), {
        "species": species,
        "background": background,
        "pose": pose.name,
        "mirrored": mirrored,
        "bird": _region(_seen(label.point([0] + [255] * 255), size)),
        "field_marks": _marks(label, painting.marks, size),
    }


def photograph(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Light the scene, take it with an imperfect camera, and return the JPEG file."""
    size = image.width
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.65, 1.15))
    softness = float(rng.choice([0.0, 0.004, 0.008]) * rng.uniform(0.5, 1.3)) * size
    if softness > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(softness))
    pixels = np.asarray(image, dtype=np.float32)  # (h, w, 3)
    warmth = rng.normal(0, 0.09)
    cast = np.exp(np.array([warmth, rng.normal(0, 0.02), -warmth]) + rng.normal(0.0, 0.2))
    across = np.linspace(-1, 1, size, dtype=np.float32)
    dx, dy = rng.normal(0, 0.16, 2)
    light = 1 + dx * across[None, :] + dy * across[:, None]
    light -= rng.uniform(0, 0.14) * (across[None, :] ** 2 + across[:, None] ** 2)
    pixels = pixels * (np.clip(light, 0.35, 1.5)[..., None] * cast).astype(np.float32)
    haze = rng.uniform(0, 0.18) if rng.random() < 0.4 else 0.0
    pixels += haze * (rng.uniform(110, 225) - pixels)
    over = np.maximum(pixels - 205, 0)
    pixels -= over * over / (over + 50)  # towards 255 and never beyond: no burnt white
    quality = int(rng.integers(60, 96))
    # The noise comes last: all before it is the same at every size.
    pixels += rng.uniform(0.5, 5) * rng.standard_normal(pixels.shape, dtype=np.float32)
    file = io.BytesIO()
    photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    photo.save(file, "JPEG", quality=quality, subsampling=2)
    return file.getvalue()


def _pose(rng: np.random.Generator, in_flight: float) -> Pose:
    """Choose how the bird holds itself."""
    drawn = rng.random()
    flying = drawn < in_flight
    raised = not flying and drawn > 1 - 0.18 * (1 - in_flight)
    return Pose(
        name="flying" if flying else "wing raised" if raised else "perched",
        tilt=float(rng.normal(0, 0.16)),
        head=float(rng.normal(0, 0.17)),
        tail=float(rng.normal(0, 0.14)),
        wing=float(rng.random()),
        crest=float(rng.beta(0.8, 0.7)),
        stretch=float(rng.uniform(0.84, 1.06)),
    )


def _placed(
    strokes: list[Stroke], tilt: float, stretch: float, *, mirrored: bool, rng: np.random.Generator
) -> Place:
    """Choose place and scale in the unit square: the bird's longer side is 0.54 to 0.92 of it."""
    matrix = turned(np.eye(2), tilt) @ np.diag([-stretch if mirrored else stretch, 1.0])
    points = np.concatenate([s for stroke in strokes for s in stroke.shapes]) @ matrix
    low, high = points.min(0), points.max(0)
    reach = rng.uniform(0.54, 0.92)
    scale = reach / float((high - low).max())
    room = max(0.0, 1.06 - reach) / 2  # up to 3 % may stick out
    centre = 0.5 + rng.uniform(-room, room, 2)
    return Place(matrix * scale, centre - (low + high) / 2 * scale)


def _cover(
    image: Image.Image, painting: Painting, rng: np.random.Generator, sun: tuple[float, float]
) -> Image.Image:
    """Put leaves or reeds before the bird, unless they would hide too much; return the labels."""
    side = image.width
    front = Painting(side, sun).paint(occluders(rng), Place.whole(side))
    label = painting.label.copy()
    label.paste(0, None, front.alpha)
    before, after = painting.label.histogram(), label.histogram()
    seen = [after[k] > 0.5 * before[k] for k in range(2, len(painting.marks) + 2) if before[k]]
    if sum(after[1:]) < 0.7 * sum(before[1:]) or 2 * sum(seen) < len(seen):
        return painting.label
    front.onto(image, soft=rng.uniform(0.5, 2.0) * side / 256)
    return label


def _seen(mask: Image.Image, size: int) -> NDArray[np.bool_]:
    """Bring a mask of the canvas to the photo's pixels, (size, size)."""
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX)) >= COVERED * 255


def _region(seen: NDArray[np.bool_]) -> Region:
    """Write down a mask, (h, w), that is not empty."""
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return {"box": [int(n) for n in box], "mask": encode_mask(seen)}


def _marks(label: Image.Image, names: list[str], size: int) -> dict[str, Region]:
    """Measure each field mark; one that cannot be seen is left out."""
    masks = {
        name: _seen(label.point([255 * (v == k) for v in range(256)]), size)
        for k, name in enumerate(names, start=2)
    }
    return {name: _region(mask) for name, mask in sorted(masks.items()) if mask.any()}
