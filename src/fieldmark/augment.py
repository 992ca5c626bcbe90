"""How a photo is changed before the network sees it: mirrored, cropped, recoloured, erased, mixed.

In: a photo squashed to a square row of bytes, the height and width that it truly has, and a random
generator. Out: `view` gives one square of the network's size, `mix` lays the photos of a batch over
one another. `Augment.of(0.5)` sets all from one number; nothing is done that it does not say.

A view is drawn anew in every epoch. It costs one resampling: the crop is a box of the row, so that
cropping and resizing are the same step and nothing is blurred twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldmark.errors import FieldmarkError
from fieldmark.images import Box, ImageSpec, Pixels, padded

Floats = NDArray[np.float32]

# What full strength is. Half of it is the usual, for a few hundred photos as for a million.
WHOLE = {
    "crop": 0.08,  # Szegedy et al. 2015, Going deeper with convolutions: 8 % of the area and more
    "stretch": 4 / 3,  # the same: width to height from 3/4 to 4/3
    # ImageNet is trained with 0.4 of each, SimCLR (Chen et al. 2020) with 0.8. Brightness and
    # contrast at 0.8 together burned white birds out.
    "brightness": 0.6,
    "contrast": 0.6,
    "saturation": 0.6,
    "erasing": 0.5,  # Zhong et al. 2017, Random erasing: one photo in two
}
# By how much a field may be set by hand.
RANGES = {
    "mirror": (0.0, 1.0),
    "crop": (0.01, 1.0),
    "stretch": (1.0, 4.0),
    "brightness": (0.0, 4.0),
    "contrast": (0.0, 4.0),
    "saturation": (0.0, 4.0),
    "erasing": (0.0, 1.0),
    "mixup": (0.0, 8.0),
    "cutmix": (0.0, 8.0),
}

GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601, Pillow's own
ERASED = (
    0.02,
    0.33,
)  # share of the square, and the shape it has: Zhong et al. 2017, as torchvision
ERASED_STRETCH = 3.3

ROOM = 8 / 7  # what is kept of a photo, in sides of the network's square: 256 pixels for 224


@dataclass(frozen=True)
class Augment:
    """What is done to the photos of a training; without arguments, nothing.

    There is no change of hue, which tells one species from the next.
    """

    mirror: float = 0.0  # share of the photos that are mirrored
    crop: float = 1.0  # the least share of the area that is cut out; 1: nothing is cut off
    stretch: float = 1.0  # the crop is wider than high, or higher than wide, by up to this factor
    brightness: float = 0.0  # 0.6: between 1 / 1.6 and 1.6 times as bright, as often less as more
    contrast: float = 0.0  # the same, of the difference to the photo's mean
    saturation: float = 0.0  # the same, of the difference to grey
    erasing: float = 0.0  # share of the photos in which a rectangle is covered with noise
    mixup: float = 0.0  # alpha of MixUp (Zhang et al. 2017; they take 0.2)
    cutmix: float = 0.0  # alpha of CutMix (Yun et al. 2019; they take 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = RANGES[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise FieldmarkError(
                    f"{field.name} of the augmentation is {value}: "
                    f"give a number from {low:g} to {high:g}."
                )

    @classmethod
    def of(cls, strength: float, *, mixup: float = 0.0, cutmix: float = 0.0) -> Augment:
        """Set everything but the mixing from one number, 0 for nothing to 1.

        In the manner of RandAugment's magnitude (Cubuk et al. 2019), which is one for all too;
        each setting goes from none to `WHOLE`. Raises a FieldmarkError for a number out of range.
        """
        if not 0 <= strength <= 1:
            raise FieldmarkError(
                f"The strength of the augmentation is {strength}: give a number from 0 to 1."
            )
        return cls(
            mirror=0.5 if strength else 0.0,
            crop=1 - strength * (1 - WHOLE["crop"]),
            stretch=WHOLE["stretch"] ** strength,
            brightness=strength * WHOLE["brightness"],
            contrast=strength * WHOLE["contrast"],
            saturation=strength * WHOLE["saturation"],
            erasing=strength * WHOLE["erasing"],
            mixup=mixup,
            cutmix=cutmix,
        )

    @property
    def changes(self) -> bool:
        """Whether a photo is changed, be it mixed or not."""
        return self != Augment(mixup=self.mixup, cutmix=self.cutmix)

    @property
    def mixes(self) -> bool:
        """Whether photos are laid over one another."""
        return bool(self.mixup or self.cutmix)


NONE = Augment()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one view, each in [0, 1): always all, so that each has its own."""

    mirror: float
    area: float
    stretch: float
    left: float
    top: float
    brightness: float
    contrast: float
    saturation: float
    erase: float
    erased_area: float
    erased_stretch: float
    erased_left: float
    erased_top: float


STILL = Draws(*[0.0] * len(fields(Draws)))

# ---- one photo ----------------------------------------------------------------------------------


def room(spec: ImageSpec) -> ImageSpec:
    """Return how to read the rows that `view` takes: whole photos, squashed, a little larger.

    They are resampled once more, which softens them; Lanczos' filter is the sharpest and makes up
    for a part of that. `docs/batches.md` has the difference that is left.
    """
    return spec.model_copy(
        update={"mode": "squash", "size": round(ROOM * spec.size), "interpolation": "lanczos"}
    )


def view(
    row: Pixels,
    spec: ImageSpec,
    *,
    augment: Augment = NONE,
    rng: np.random.Generator | None = None,
    shape: tuple[int, int] | None = None,
) -> Pixels:
    """Return one square for the network, (size, size, 3), of a photo squashed to (r, r, 3).

    `shape` is the photo's true height and width; without it, the row is a square that the network
    is to see as it is. Unaugmented, it is nearly what `images.read` gives. `rng` is needed where
    `augment` changes anything.
    """
    if augment.changes and rng is None:
        raise ValueError("an augmented view needs a random generator")
    draws = Draws(*rng.random(len(fields(Draws))).tolist()) if rng else STILL
    mode = spec.mode if shape else "squash"
    height, width = shape or (1, 1)
    box = crop(width / height if mode == "crop" else 1.0, augment, draws)
    target = (spec.size, spec.size)
    if mode == "pad":
        target = _fitted((box[2] - box[0]) * width, (box[3] - box[1]) * height, spec.size)
    filtering = Image.Resampling[spec.interpolation.upper()]
    side = len(row)
    left, top, right, bottom = (edge * side for edge in box)
    image = Image.fromarray(row).resize(target, filtering, (left, top, right, bottom))
    image = padded(_recoloured(image, row, augment, draws), spec.size)
    if draws.mirror < augment.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.array(image)
    if rng and draws.erase < augment.erasing:
        top_left, bottom_right = erased(spec.size, draws)
        hole = pixels[top_left[0] : bottom_right[0], top_left[1] : bottom_right[1]]
        hole[:] = rng.integers(0, 256, hole.shape, np.uint8)
    return pixels


def crop(aspect: float, augment: Augment, draws: Draws) -> Box:
    """Return left, top, right and bottom of a crop, as shares of the photo's width and height.

    The shape is drawn first, about a square where the photo's `aspect` is its width by its height,
    about the photo's own where that is 1; then the size, as a share of the largest crop of that
    shape that fits; then the place. Inception, and torchvision after it, draw all three at once
    until one fits, ten times at most.
    """
    shape = _factor(augment.stretch - 1, draws.stretch) / aspect
    share = math.sqrt(augment.crop + (1 - augment.crop) * (1 - draws.area))
    width, height = share * min(1.0, shape), share * min(1.0, 1 / shape)
    # Weak crops stay near the middle, which is what `images.read` takes of a long photo; those
    # that may leave out half of the area go anywhere.
    reach = min(1.0, 2 * (1 - augment.crop))
    left = (1 - width) * (0.5 + reach * (draws.left - 0.5))
    top = (1 - height) * (0.5 + reach * (draws.top - 0.5))
    return left, top, min(1.0, left + width), min(1.0, top + height)


def erased(size: int, draws: Draws) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the upper left and lower right corner, (row, column) each, of what is covered."""
    low, high = ERASED
    side = size * math.sqrt(low + (high - low) * draws.erased_area)
    root = math.sqrt(_factor(ERASED_STRETCH - 1, draws.erased_stretch))
    width, height = (max(1, round(min(size, length))) for length in (side * root, side / root))
    top = int((size - height + 1) * draws.erased_top)
    left = int((size - width + 1) * draws.erased_left)
    return (top, left), (top + height, left + width)


def _recoloured(image: Image.Image, row: Pixels, augment: Augment, draws: Draws) -> Image.Image:
    """Change brightness, saturation and contrast, in that order, with one matrix and no rounding.

    All three are linear: b x; then grey + s (x - grey); then mean + c (x - mean).
    """
    if not (augment.brightness or augment.contrast or augment.saturation):
        return image
    b = _factor(augment.brightness, draws.brightness)
    s = _factor(augment.saturation, draws.saturation)
    c = _factor(augment.contrast, draws.contrast)
    mean = b * float(row[::8, ::8].mean((0, 1)) @ GREY)  # of the whole photo; a sample does
    matrix = np.empty((3, 4))
    matrix[:, :3] = c * b * (s * np.eye(3) + (1 - s) * GREY)
    matrix[:, 3] = (1 - c) * mean
    return image.convert("RGB", tuple(matrix.ravel().tolist()))


def _factor(most: float, draw: float) -> float:
    """Return a factor between 1 / (1 + most) and 1 + most, as often above 1 as below."""
    return float((1 + most) ** (2 * draw - 1))


def _fitted(width: float, height: float, size: int) -> tuple[int, int]:
    """Return the width and height, whole pixels, at which a crop fits into the square."""
    longer = max(width, height)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))


# ---- one batch ----------------------------------------------------------------------------------


def mix(images: Floats, labels: Floats, augment: Augment, rng: np.random.Generator) -> None:
    """Lay each photo over its neighbour, 0 with 1, 2 with 3, ...: in place, the labels too.

    `images` are (b, h, w, 3) and `labels` (b, classes). MixUp fades the two into one another,
    CutMix swaps a rectangle; where both are on, a coin decides for the batch. One share is drawn
    for all pairs. The last of an odd number stays alone.
    """
    coin, across, down = rng.random(3)
    fade = augment.mixup and (not augment.cutmix or coin < 0.5)
    alpha = augment.mixup if fade else augment.cutmix
    share = float(rng.beta(alpha, alpha))  # of the neighbour
    pairs = len(images) // 2 * 2
    ours, theirs = images[0:pairs:2], images[1:pairs:2]
    if fade:
        share = min(share, 1 - share)  # a pair stays the same pair, and each row shows its photo
        _fade(ours, theirs, share)
    else:
        share = _swap(ours, theirs, share, place=(down, across))
    _fade(labels[0:pairs:2], labels[1:pairs:2], share)


def _fade(ours: Floats, theirs: Floats, share: float) -> None:
    difference = (theirs - ours) * np.float32(share)
    ours += difference
    theirs -= difference


def _swap(ours: Floats, theirs: Floats, share: float, *, place: tuple[float, float]) -> float:
    """Swap a rectangle about `place` and return the share of the photo that it is."""
    sides = ours.shape[1:3]
    box = []
    for length, centre in zip(sides, place, strict=True):
        half = length * math.sqrt(share) / 2
        first, last = round(length * centre - half), round(length * centre + half)
        box.append(slice(max(0, first), min(length, last)))  # what sticks out is cut off
    where = (slice(None), *box)
    kept = ours[where].copy()
    ours[where] = theirs[where]
    theirs[where] = kept
    return float(math.prod(s.stop - s.start for s in box) / math.prod(sides))
