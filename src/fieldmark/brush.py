"""Strokes, and the brush that paints them: what `draw` draws with.

In: strokes, which are outlines and lines with a colour, and where they go. Out: pictures with
relief and light, and for every pixel the field mark that it shows (`fieldmark draw OUT`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Curve = NDArray[np.float64]  # (n, 2), x to the right and y down
Points = Sequence[tuple[float, float]] | Curve
Spot = tuple[float, float] | Curve  # one point
Colour = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]

BLACK: Colour = (38, 37, 40)
WHITE: Colour = (250, 249, 245)


@dataclass(frozen=True)
class Stroke:
    """One thing that is painted, in the colour given; lengths are in the units of the points.

    A `part` is solid and hides what lies under it; a `patch` colours the part painted last, up to
    that part's edge; `lines` are thin and stay on the last part too.
    """

    kind: Literal["part", "patch", "lines"]
    shapes: tuple[Curve, ...]
    colour: Colour
    mark: str = ""  # the field mark that it shows
    soft: float = 0.0  # how far the edge fades
    volume: float = 0.0  # how far the shading of a rounded body reaches in from the edge; 0 is flat
    width: float = 0.0  # of lines
    strength: float = 1.0  # opacity of a patch or of lines
    shadow: bool = False  # darkens what is painted just below it


def curve(points: Points, *, closed: bool = True, steps: int = 6) -> Curve:
    """Run a smooth line through the points (uniform Catmull-Rom spline), `(n * steps, 2)`."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    near = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]], axis=1)  # (n, 4, 2)
    line = (_spline(steps) @ near).reshape(-1, 2)
    return line if closed else np.concatenate([line, p[-1:]])


@cache
def _spline(steps: int) -> Curve:
    """Weights of the four points around each piece of a Catmull-Rom spline, `(steps, 4)`."""
    t = np.arange(steps) / steps
    square, cube = t**2, t**3
    weights = [2 * square - t - cube, 2 - 5 * square + 3 * cube, t + 4 * square - 3 * cube]
    return np.stack([*weights, cube - square], axis=1) / 2


def tube(points: Points, widths: Sequence[float]) -> Curve:
    """Outline of a stroke of changing width along a smooth line; widths are spread over it."""
    line = curve(points, closed=False)
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    place = np.arange(len(line)) * (len(widths) - 1) / (len(line) - 1)
    half = np.interp(place, np.arange(len(widths)), widths)[:, None] / 2
    return np.concatenate([line + across * half, (line - across * half)[::-1]])


def oval(centre: Spot, width: float, height: float) -> Curve:
    """Outline of an ellipse of the full width and height given."""
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    half = np.array([width, height], dtype=np.float64) / 2
    return np.stack([np.cos(t), np.sin(t)], 1) * half + np.array(centre, dtype=np.float64)


def turned(points: Points, angle: float, pivot: Spot = (0.0, 0.0)) -> Curve:
    """Turn points about a pivot, clockwise on screen."""
    middle = np.array(pivot, dtype=np.float64)
    p = np.asarray(points, dtype=np.float64) - middle
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = p[:, 0], p[:, 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], 1) + middle


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """Mix two colours; `share` is how much of the other."""
    r, g, b = (round(u + (v - u) * share) for u, v in zip(one, other, strict=True))
    return r, g, b


def part(outline: Curve, colour: Colour, *, mark: str = "", volume: float = 0.05) -> Stroke:
    """Paint a solid piece."""
    return Stroke("part", (outline,), colour, mark=mark, volume=volume)


def patch(
    points: Points, colour: Colour, *, mark: str = "", soft: float = 0.008, strength: float = 1.0
) -> Stroke:
    """Colour an area of the part below, its outline smoothed."""
    return Stroke("patch", (curve(points),), colour, mark=mark, soft=soft, strength=strength)


def lines(shapes: Sequence[Curve], colour: Colour, width: float, strength: float) -> Stroke:
    """Draw thin lines on the part below."""
    return Stroke("lines", tuple(shapes), colour, width=width, strength=strength)


@dataclass(frozen=True)
class Place:
    """Where a drawing goes: `points @ matrix + shift`."""

    matrix: Curve  # (2, 2)
    shift: Curve  # (2,)

    @staticmethod
    def whole(side: float) -> Place:
        """Stretch the unit square to the canvas."""
        return Place(np.eye(2) * side, np.zeros(2))

    def to(self, points: Curve) -> Curve:
        """Move points."""
        return np.asarray(points @ self.matrix + self.shift)

    def times(self, side: float) -> Place:
        """Go on from the unit square to the canvas."""
        return Place(self.matrix * side, self.shift * side)

    @property
    def unit(self) -> float:
        """Length of one unit of the drawing."""
        (a, b), (c, d) = self.matrix.tolist()
        return float(abs(a * d - b * c) ** 0.5)


class Painting:
    """Strokes on a transparent square canvas: colour, opacity, relief, and a label a pixel.

    Label 0 is nothing, 1 the bird (or perch, or leaf), 2 and up are `marks` in their order. The
    relief is kept apart from the colour (128 is a surface that faces us) and lit at the end.
    """

    def __init__(self, side: int, sun: tuple[float, float]) -> None:
        self.side = side
        self.sun = sun
        self.colour = Image.new("RGB", (side, side), (64, 78, 44))  # shows at fading edges only
        self.alpha = Image.new("L", (side, side))
        self.relief = Image.new("L", (side, side), 128)
        self.label = Image.new("L", (side, side))
        self.marks: list[str] = []
        self._part = (Image.new("L", (0, 0)), (0, 0))  # the part painted last, and its place

    def paint(self, strokes: Iterable[Stroke], place: Place) -> Painting:
        """Paint strokes in their order."""
        for stroke in strokes:
            shapes = [place.to(shape) for shape in stroke.shapes]
            points = np.concatenate(shapes)
            margin = 2 + place.unit * (2.5 * stroke.soft + stroke.width + 2.0 * stroke.volume)
            # The box may stick out of the canvas by the margin, for the relief's sake at its edge.
            (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
            left, top = (int(max(v - margin, -margin)) - 1 for v in (x0, y0))
            right, bottom = (int(min(v, self.side) + margin) + 1 for v in (x1, y1))
            if min(right, bottom) <= 0 or max(left, top) >= self.side:
                continue
            box = (left, top, right, bottom)
            mask = self._shape(stroke, [s - (left, top) for s in shapes], box, place.unit)
            if stroke.kind == "part":
                self._solid(stroke, mask, box, place.unit)
            else:
                solid, (x, y) = self._part
                bounds = Image.new("L", mask.size)
                bounds.paste(solid, (x - left, y - top))
                mask = ImageChops.multiply(mask, bounds)
            self.colour.paste(stroke.colour, box, mask)
            if stroke.kind != "lines":
                covers = mask if stroke.kind == "part" else mask.point(HALF)
                self.label.paste(self._number(stroke.mark), box, covers)
        return self

    def ruffle(self, rng: np.random.Generator) -> Painting:
        """Give the surface the fine grain of feathers."""
        cells = (40, 90)  # barbs run along the body, more or less level
        grain = Image.fromarray(rng.normal(128, 7, cells).clip(0, 255).astype(np.uint8))
        grain = grain.resize((self.side, self.side), Image.Resampling.BILINEAR)
        self.relief = ImageChops.add(self.relief, grain, 1, -128)
        return self

    def onto(self, image: Image.Image, *, soft: float = 0.0) -> None:
        """Light the relief and lay the painting on an image; `soft` pixels out of focus."""
        box = self.alpha.getbbox()
        if box is None:
            return
        if soft:  # room for the edge to fade
            room = round(3 * soft)
            box = (box[0] - room, box[1] - room, box[2] + room, box[3] + room)
        alpha, colour, relief = (i.crop(box) for i in (self.alpha, self.colour, self.relief))
        light = Image.merge("RGB", [relief.point(lut) for lut in LIGHT])
        shine = Image.merge("RGB", [relief.point(SHINE)] * 3)
        colour = ImageChops.add(ImageChops.multiply(colour, light), shine)
        if soft:
            alpha = alpha.filter(ImageFilter.GaussianBlur(soft))
        image.paste(colour, box, alpha)

    def _shape(
        self, stroke: Stroke, shapes: list[Curve], box: PixelBox, unit: float
    ) -> Image.Image:
        """Fill the stroke's outlines, or trace its lines, in a mask of the box's size."""
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        pen = ImageDraw.Draw(mask)
        fill = round(255 * stroke.strength)
        for shape in shapes:
            flat = shape.ravel().tolist()
            if stroke.kind == "lines":
                pen.line(flat, fill=fill, width=max(1, round(stroke.width * unit)))
            else:
                pen.polygon(flat, fill=fill)
        if stroke.soft * unit > 0.7:
            mask = mask.filter(ImageFilter.GaussianBlur(stroke.soft * unit))
        return mask

    def _solid(self, stroke: Stroke, mask: Image.Image, box: PixelBox, unit: float) -> None:
        """Cover what is below with a new part, and model its relief."""
        if stroke.shadow:
            reach = 0.022 * unit
            below = ImageChops.offset(mask.filter(ImageFilter.GaussianBlur(reach)), 0, round(reach))
            self.relief.paste(58, box, below.point([round(v * 0.7) for v in range(256)]))
        self.alpha.paste(255, box, mask)
        self._part = (mask, box[:2])
        reach = stroke.volume * unit
        if reach < 0.5:
            self.relief.paste(128, box, mask)
            return
        round_ = mask.filter(ImageFilter.GaussianBlur(reach))
        dx, dy = (round(reach * 0.8 * s) for s in self.sun)
        near, far = ImageChops.offset(round_, -dx, -dy), ImageChops.offset(round_, dx, dy)
        self.relief.paste(ImageChops.subtract(near, far, 1.6, 128), box, mask)

    def _number(self, mark: str) -> int:
        """Label of a mark; 1 for what is no mark."""
        if not mark:
            return 1
        if mark not in self.marks:
            self.marks.append(mark)
        return self.marks.index(mark) + 2


def _lit(value: int, shadow: float) -> int:
    """Light that a surface of this relief sends back; `shadow` is what is left on the dark side."""
    return round(255 * float(np.interp(value, [0, 70, 128, 180], [shadow, 0.74, 0.95, 1.0])))


HALF = [255 * (v > 127) for v in range(256)]
LIGHT = [[_lit(v, dark) for v in range(256)] for dark in (0.40, 0.43, 0.50)]  # cool in the shade
SHINE = [max(0, round((v - 145) * 0.32)) for v in range(256)]
