"""The surroundings of the drawn birds: what lies behind them, what they stand on, what hides them.

In: the kind of background and a random generator, and never the species, so that no surroundings
give a class away. Out: an image of the backdrop, or strokes in the unit square
(`fieldmark draw OUT`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from fieldmark.brush import (
    WHITE,
    Colour,
    Curve,
    Spot,
    Stroke,
    blend,
    curve,
    lines,
    oval,
    part,
    patch,
    tube,
    turned,
)

Background = Literal["sky", "water", "foliage", "branch"]

BACKGROUNDS: tuple[Background, ...] = ("sky", "water", "foliage", "branch")
FAR = 128  # the backdrop is out of focus: it is painted at this size and enlarged

PLUMAGE: tuple[Colour, ...] = (  # yellow, white, chestnut, black, red, grey
    (246, 208, 50), (244, 242, 234), (160, 86, 44), (44, 42, 46), (214, 70, 44), (120, 122, 128),
)  # fmt: skip


def _between(rng: np.random.Generator, one: Colour, other: Colour) -> Colour:
    return blend(one, other, float(rng.random()))


def _slope(top: Colour, bottom: Colour) -> Image.Image:
    """Fade from one colour down to another."""
    t = np.linspace(0, 1, FAR)[:, None, None]
    rows = np.array(top) + (np.array(bottom) - np.array(top)) * t
    return Image.fromarray(np.broadcast_to(rows, (FAR, FAR, 3)).astype(np.uint8))


def _disc(
    pen: ImageDraw.ImageDraw,
    centre: Spot,
    half: tuple[float, float],
    colour: Colour,
    opacity: float,
) -> None:
    """Draw an ellipse from its centre and its half width and height, in pixels of the backdrop."""
    (x, y), (w, h) = centre, half
    pen.ellipse((x - w, y - h, x + w, y + h), fill=(*colour, round(255 * opacity)))


def backdrop(kind: Background, rng: np.random.Generator) -> Image.Image:
    """Paint what lies behind the bird, out of focus, (FAR, FAR)."""
    if kind == "sky":
        image = _sky(rng)
        _treetops(image, rng)
    elif kind == "water":
        image = _water(rng)
    else:
        image = _bokeh(rng, close=kind == "branch")
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 2.2)))
    if rng.random() < 0.6:
        _colours_of_birds(image, rng)
    return image


def _sky(rng: np.random.Generator) -> Image.Image:
    """Paint a sky with clouds: blue, evening, or overcast."""
    top, low = [
        ((78, 140, 206), (190, 218, 236)),
        ((104, 166, 214), (226, 236, 236)),
        ((118, 132, 176), (246, 206, 164)),
        ((150, 162, 174), (214, 216, 214)),
        ((60, 108, 160), (160, 196, 218)),
    ][rng.integers(5)]
    image = _slope(top, low)
    clouds = Image.new("L", (FAR, FAR))
    pen = ImageDraw.Draw(clouds)
    for _ in range(rng.integers(2, 6)):
        x, y, w = rng.uniform(0, FAR), rng.uniform(0, FAR * 0.8), rng.uniform(10, 34)
        for _ in range(9):
            r = w * rng.uniform(0.2, 0.45)
            cx, cy = x + rng.normal(0, w * 0.6), y - abs(rng.normal(0, w * 0.16))
            pen.ellipse((cx - r * 1.3, cy - r * 0.7, cx + r * 1.3, cy + r * 0.7), fill=215)
    clouds = clouds.filter(ImageFilter.GaussianBlur(rng.uniform(2, 5)))
    shade = ImageChops.offset(clouds.filter(ImageFilter.GaussianBlur(3)), 0, 4)
    image.paste(blend(low, (126, 136, 156), 0.5), None, shade.point([v // 3 for v in range(256)]))
    image.paste(blend((255, 255, 252), low, rng.uniform(0, 0.4)), None, clouds)
    return image


def _treetops(image: Image.Image, rng: np.random.Generator) -> None:
    """Sometimes let distant hills or trees rise into the sky."""
    if rng.random() < 0.5:
        return
    pen = ImageDraw.Draw(image, "RGBA")
    for level in range(2):
        base = FAR * rng.uniform(0.72, 0.9) + 10 * level
        colour = blend(
            _between(rng, (70, 104, 74), (96, 104, 90)), (150, 176, 196), 0.5 - 0.4 * level
        )
        for x in range(-6, FAR + 6, 5):
            _disc(pen, (x, base + 24), (9, 24 + rng.uniform(0, 9)), colour, 1.0)


def _water(rng: np.random.Generator) -> Image.Image:
    """Paint water to a horizon, a far shore at times, and ripples that grow as they come near."""
    image = _sky(rng)
    horizon = int(FAR * rng.uniform(0.08, 0.5))
    deep = _between(rng, (34, 92, 124), (74, 116, 104))
    pale = blend(image.getpixel((FAR // 2, horizon)), deep, rng.uniform(0.2, 0.6))  # type: ignore[arg-type]
    sea = _slope(pale, deep).resize((FAR, FAR - horizon))
    image.paste(sea, (0, horizon))
    pen = ImageDraw.Draw(image, "RGBA")
    if rng.random() < 0.6:
        shore = _between(rng, (74, 96, 70), (196, 178, 136))
        for x in range(-4, FAR + 8, 6):
            _disc(pen, (x, horizon), (8, rng.uniform(1, 5)), shore, 1.0)
        pen.rectangle((0, horizon + 1, FAR, horizon + 6), fill=(*pale, 200))
    bright = blend(pale, (255, 255, 250), rng.uniform(0.3, 0.9))
    for _ in range(130):
        depth = rng.random() ** 1.4
        y = horizon + 2 + depth * (FAR - horizon)
        w = 2 + 15 * depth * rng.uniform(0.4, 1)
        dark = rng.random() < 0.5
        colour = blend(deep, (10, 34, 52), 0.5) if dark else bright
        at, half = (rng.uniform(0, FAR), y), (w, 0.4 + 1.5 * depth)
        _disc(pen, at, half, colour, rng.uniform(0.15, 0.45))
    return image


def _bokeh(rng: np.random.Generator, *, close: bool) -> Image.Image:
    """Paint leaves far out of focus; close by, with boughs and bark among them."""
    one, two = [
        ((46, 84, 40), (126, 156, 74)),
        ((34, 66, 48), (96, 142, 104)),
        ((92, 104, 52), (184, 178, 96)),
        ((70, 62, 44), (150, 136, 98)),
        ((88, 104, 96), (186, 200, 176)),
    ][rng.integers(5)]
    image = _slope(_between(rng, one, two), _between(rng, one, two))
    pen = ImageDraw.Draw(image, "RGBA")
    if close:
        for _ in range(rng.integers(1, 4)):
            bark = blend(_between(rng, (84, 62, 44), (150, 138, 120)), one, 0.3)
            line = tube(rng.uniform(-20, FAR + 20, (3, 2)), [rng.uniform(5, 16), rng.uniform(3, 8)])
            pen.polygon(line.ravel().tolist(), fill=(*bark, 230))
    for _ in range(60):
        r = rng.uniform(2, 13)
        half = (r, r * rng.uniform(0.6, 1))
        leaf = _between(rng, one, two)
        _disc(pen, rng.uniform(0, FAR, 2), half, leaf, rng.uniform(0.15, 0.5))
    for _ in range(rng.integers(4, 16)):  # light through the leaves
        r = rng.uniform(3, 9)
        glow = blend(two, (255, 252, 220), rng.uniform(0.3, 0.8))
        _disc(pen, rng.uniform(0, FAR, 2), (r, r), glow, rng.uniform(0.2, 0.55))
    return image


def _colours_of_birds(image: Image.Image, rng: np.random.Generator) -> None:
    """Hang a twig of blossom, fruit or leaves in the very colours that the birds wear."""
    colour = PLUMAGE[rng.integers(len(PLUMAGE))]
    side = rng.choice([0, FAR])
    ends = [(side, rng.uniform(0, FAR)), (FAR / 2 + rng.normal(0, 20), rng.uniform(0, FAR))]
    middle = np.mean(ends, axis=0) + rng.normal(0, 12, 2)
    twig = curve([ends[0], tuple(middle), ends[1]], closed=False, steps=12)
    pen = ImageDraw.Draw(image, "RGBA")
    pen.line(twig.ravel().tolist(), fill=(84, 70, 52, 220), width=2)
    size = rng.uniform(1.2, 4.0)
    round_ = rng.random() < 0.4  # fruit; else five petals
    for x, y in twig[rng.integers(0, len(twig), rng.integers(5, 16))] + rng.normal(0, 4, (1, 2)):
        cx, cy = x + rng.normal(0, 5), y + rng.normal(0, 5)
        tint = blend(colour, (120, 120, 100), rng.uniform(0, 0.3))
        pen.line((x, y, cx, cy), fill=(96, 100, 60, 200), width=1)
        if round_:
            _disc(pen, (cx, cy), (size * 1.2, size * 1.2), tint, 0.95)
            _disc(pen, (cx - size * 0.4, cy - size * 0.4), (size * 0.35, size * 0.35), WHITE, 0.6)
            continue
        for turn in rng.uniform(0, 1) + np.arange(5) * 2 * np.pi / 5:
            petal = (cx + size * np.cos(turn), cy + size * np.sin(turn))
            _disc(pen, petal, (size * 0.75, size * 0.75), tint, 0.9)
        _disc(pen, (cx, cy), (size * 0.45, size * 0.45), blend(tint, (110, 80, 30), 0.5), 0.9)
    image.paste(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6))))


def perch(kind: Background, foot: Curve, rng: np.random.Generator) -> list[Stroke]:
    """Build what the bird stands on, in the unit square, its top at the foot."""
    if kind == "water":
        return _stone(foot, rng)
    width = {"sky": 0.035, "foliage": 0.05, "branch": 0.11}[kind] * rng.uniform(0.7, 1.3)
    return _bough(foot, width, rng, leaves=0 if kind == "sky" else int(rng.integers(3, 9)))


def _bough(foot: Curve, width: float, rng: np.random.Generator, *, leaves: int) -> list[Stroke]:
    """Grow a branch across the picture through the foot, with bark, side twigs and leaves."""
    x, y = float(foot[0]), float(foot[1]) + width * 0.42
    bark = _between(rng, (92, 70, 50), (156, 146, 130))
    slope = rng.normal(0, 0.16)
    xs = np.array([-0.15, x - 0.25, x, x + 0.25, 1.15])
    ys = y + slope * (xs - x) + rng.normal(0, width * 0.3, 5) * (xs != x)
    line = np.stack([xs, ys], 1)[np.argsort(xs)]
    outline = tube(line, [width * rng.uniform(0.8, 1.3), width, width * rng.uniform(0.6, 1.2)])
    strokes: list[Stroke] = []
    for _ in range(leaves):
        at = rng.uniform(0, 1)
        root = (at, float(np.interp(at, line[:, 0], line[:, 1])))
        way = rng.uniform(0.2, 2.9) * rng.choice([-1, 1])
        strokes += _leaf(root, way, rng.uniform(0.07, 0.2), _green(rng))
    grooves = [curve(line + np.array([0.0, width * t]), closed=False) for t in (-0.25, 0.02, 0.24)]
    return [
        *strokes,
        part(outline, bark, volume=width * 0.35),
        lines(grooves, blend(bark, (40, 32, 26), 0.6), 0.006, 0.5),
    ]


def _stone(foot: Curve, rng: np.random.Generator) -> list[Stroke]:
    """Heap a rock or a sand bank under the foot."""
    x, y = float(foot[0]), float(foot[1]) - 0.012
    colour = _between(rng, (206, 184, 140), (104, 102, 102))
    reach = rng.uniform(0.25, 0.9)
    left, right = y + 0.12 * rng.uniform(0.5, 1.5, 2)
    outline = curve([
        (x - reach, 1.2), (x - reach * 0.8, left), (x - 0.14, y + 0.012), (x, y),
        (x + 0.14, y + 0.012), (x + reach * 0.8, right), (x + reach, 1.2),
    ])  # fmt: skip
    stones = [
        oval((x + rng.uniform(-reach, reach), y + rng.uniform(0.04, 0.4)), s * 2.4, s)
        for s in rng.uniform(0.01, 0.04, 14)
    ]
    dark = blend(colour, (60, 58, 62), 0.5)
    return [
        part(outline, colour, volume=0.05),
        *(patch(s, dark, soft=0.006, strength=0.35) for s in stones),
    ]


def _green(rng: np.random.Generator) -> Colour:
    """Choose a leaf's colour; some leaves are dead, in flower, or pale."""
    if rng.random() < 0.12:
        return [(176, 96, 42), (238, 204, 60), (238, 234, 222)][rng.integers(3)]
    return _between(rng, (52, 98, 40), (136, 164, 66))


def _leaf(root: tuple[float, float], way: float, length: float, colour: Colour) -> list[Stroke]:
    """Draw a leaf that grows from its root at an angle, with its middle vein."""
    shape = np.array([(0, 0), (0.25, -0.17), (0.6, -0.2), (0.85, -0.1), (1.0, 0.03), (0.8, 0.1),
                      (0.5, 0.17), (0.2, 0.12)])  # fmt: skip
    vein = turned(np.array([(0, 0), (0.5, -0.02), (0.95, 0.02)]) * length, way) + root
    return [
        part(turned(curve(shape) * length, way) + root, colour, volume=length * 0.12),
        lines([vein], blend(colour, (236, 240, 190), 0.5), length * 0.03, 0.7),
    ]


def occluders(rng: np.random.Generator) -> list[Stroke]:
    """Grow leaves in from an edge of the unit square, or reeds up from below."""
    strokes: list[Stroke] = []
    if rng.random() < 0.45:
        for _ in range(rng.integers(2, 6)):
            x, lean = rng.uniform(0, 1), rng.normal(0, 0.16)
            top = rng.uniform(0.05, 0.7)
            blade = tube([(x, 1.1), (x + lean * 0.3, (top + 1) / 2), (x + lean, top)],
                         [rng.uniform(0.016, 0.034), 0.022, 0.004])  # fmt: skip
            reed = _between(rng, (96, 122, 54), (178, 158, 96))
            strokes.append(part(blade, reed, volume=0.008))
        return strokes
    side, along = rng.integers(4), rng.uniform(0.1, 0.9)
    edge = [(along, -0.04), (1.04, along), (along, 1.04), (-0.04, along)][side]
    inward = [np.pi / 2, np.pi, -np.pi / 2, 0.0][side]
    for _ in range(rng.integers(3, 7)):
        root = (edge[0] + rng.normal(0, 0.09), edge[1] + rng.normal(0, 0.09))
        strokes += _leaf(root, inward + rng.normal(0, 0.6), rng.uniform(0.16, 0.36), _green(rng))
    return strokes
