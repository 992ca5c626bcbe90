"""The shapes and colours of the four species, and the poses that they take.

In: a pose and a random generator for the plumage. Out: a `Bird`, the strokes in the order in which
they are painted, and the point where the feet stand. All birds face right, x runs to the right and
y down, and a body is about one unit long; `draw` places and paints them (`fieldmark draw OUT`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fieldmark.brush import (
    BLACK,
    WHITE,
    Colour,
    Curve,
    Points,
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

SHADE: Colour = (70, 74, 88)  # the far wing is partly in it


@dataclass(frozen=True)
class Pose:
    """How the bird holds itself; angles in radians, positive turns clockwise on screen."""

    name: Literal["perched", "wing raised", "flying"]
    tilt: float
    head: float
    tail: float
    wing: float  # 0..1 through the wing beat, or how far it is raised
    crest: float  # 0 laid back .. 1 raised
    stretch: float  # width over height; below 1 the bird is turned a little towards us


@dataclass(frozen=True)
class Wing:
    """What opens a species' wing."""

    shoulder: tuple[float, float]
    span: float
    chord: float  # depth from the leading to the trailing edge
    pointed: float  # 0 for a broad hand, 1 for a long narrow one
    colour: Colour
    edge: Colour  # of the feathers
    covert: Colour  # the small feathers over the bases of the long ones
    mark: str = ""


@dataclass(frozen=True)
class Bird:
    """One bird in its parts; `in_pose` puts them together."""

    body: list[Stroke]  # with head and tail
    folded: list[Stroke]  # the near wing, closed
    wing: Wing
    legs: list[Stroke]
    foot: tuple[float, float]  # where it stands
    upright: float  # slope of the body when the species sits, radians


def in_pose(bird: Bird, pose: Pose) -> list[Stroke]:
    """Put the parts together, the farthest first, with wings and legs as the pose has them."""
    if pose.name == "perched":
        return [*bird.legs, *bird.body, *bird.folded]
    far = replace(
        bird.wing,
        shoulder=(bird.wing.shoulder[0] + 0.05, bird.wing.shoulder[1] - 0.02),
        span=bird.wing.span * 0.92,
        colour=blend(bird.wing.colour, SHADE, 0.22),
        covert=blend(bird.wing.covert, SHADE, 0.22),
    )
    if pose.name == "wing raised":
        angle = np.radians(118 + 30 * pose.wing)
        near, far = (replace(w, span=w.span * 0.85) for w in (bird.wing, far))
        return [*spread_wing(far, angle - 0.35), *bird.legs, *bird.body, *spread_wing(near, angle)]
    beat = [72, 128, 232, 250]  # degrees; up for most of the time, else down, hardly ever level
    angle = np.radians(np.interp(pose.wing, [0, 0.7, 0.7001, 1], beat))
    apart = 0.5 * np.sign(np.sin(angle))
    level = angle + bird.upright  # the body is turned level to fly, but not its wings
    return [*spread_wing(far, level - apart), *bird.body, *spread_wing(bird.wing, level)]


def gaze(pose: Pose, upright: float) -> float:
    """Angle of the head to the body: in flight it is bent back, to look ahead."""
    return pose.head - (0.75 * upright if pose.name == "flying" else 0.0)


def folded_wing(
    upper: Points, lower: Points, colour: Colour, edge: Colour, *, mark: str = ""
) -> list[Stroke]:
    """Close the wing: a blade between two edges that run from the shoulder to the tip."""
    top, bottom = curve(upper, closed=False), curve(lower, closed=False)
    between = [top + (bottom - top) * t for t in np.linspace(0.14, 0.9, 7)]
    start = len(top) * 2 // 5  # the long feathers show behind the coverts
    front = [np.stack([line[k] for line in between]) for k in range(4, start + 2, 3)]
    blade = np.concatenate([top, bottom[::-1]])
    return [
        replace(part(blade, colour, mark=mark), shadow=True),
        lines([line[start:] for line in between], blend(colour, BLACK, 0.75), 0.011, 0.5),
        lines([line[start:] + np.array([0.0, 0.011]) for line in between], edge, 0.008, 0.55),
        lines([curve(f + np.array([0.012, 0.0]), closed=False) for f in front], edge, 0.008, 0.3),
    ]


def spread_wing(wing: Wing, angle: float) -> list[Stroke]:
    """Open the wing: a fan of flight feathers on an arm, its coverts laid over their bases.

    `angle` is that of the wing's long axis above the horizontal (counter-clockwise).
    """
    span, chord, pointed, edge, mark = wing.span, wing.chord, wing.pointed, wing.edge, wing.mark
    side = 1.0 if np.sin(angle) >= 0 else -1.0  # the trailing edge is on the tail's side
    along = np.array([np.cos(angle), -np.sin(angle)])
    behind = side * np.array([-np.sin(angle), -np.cos(angle)])

    def at(u: float | Curve, v: float | Curve) -> Curve:
        place = np.multiply.outer(np.asarray(u), along) + np.multiply.outer(np.asarray(v), behind)
        return np.asarray(place + np.array(wing.shoulder), dtype=np.float64)

    vanes: list[Curve] = []
    for s in np.linspace(0, 1, 12):  # from the innermost feather to the outermost
        hand = max(0.0, (s - 0.45) / 0.55)  # 0 on the arm, 1 at the last primary
        root = at(span * min(0.5, 0.04 + 0.7 * s), -0.03 * span * hand)
        # From straight back to nearly along the wing.
        way = np.radians(100 - 90 * hand ** (0.85 - 0.5 * pointed))
        reach = chord + (0.52 * span - chord) * hand ** (0.5 + 0.7 * pointed)
        tip = root + reach * (np.cos(way) * along + np.sin(way) * behind)
        bulge = 0.05 * reach * (along * np.sin(way) - behind * np.cos(way))
        middle = root + (tip - root) * 0.5 + bulge
        vanes.append(curve(np.stack([root, middle, tip]), closed=False))
    tips = np.stack([vane[-1] for vane in vanes])[::-1]
    roots = np.stack([vane[0] for vane in vanes])[::-1]
    middle = (tips[1:] + tips[:-1]) / 2
    notches = middle + 0.10 * ((roots[1:] + roots[:-1]) / 2 - middle)
    trailing = np.concatenate([np.stack([tips[:-1], notches], 1).reshape(-1, 2), tips[-1:]])
    front = at(span * np.array([0.0, 0.2, 0.42, 0.55]), span * np.array([0.02, -0.06, -0.1, -0.08]))
    outline = curve(np.concatenate([front, trailing, at(-0.03 * span, 0.3 * chord)[None]]), steps=4)
    cover = at(
        span * np.array([-0.06, 0.2, 0.42, 0.68, 0.62, 0.45, 0.25, 0.0]),
        np.array([-0.1, -0.15, -0.16, -0.10, 0.0, 0.2, 0.5, 0.6]) * chord,
    )
    rows = [
        curve(at(span * np.array([0.02, 0.22, 0.42, 0.6]), chord * np.array(d)), closed=False)
        for d in ((0.14, 0.08, -0.04, -0.14), (0.32, 0.24, 0.06, -0.07), (0.54, 0.44, 0.18, 0.0))
    ]
    return [
        part(outline, wing.colour, mark=mark),
        lines(vanes, blend(wing.colour, BLACK, 0.7), 0.011, 0.5),
        lines([vane + 0.012 * along for vane in vanes], edge, 0.009, 0.5),
        patch(cover, wing.covert, mark=mark, soft=0.02, strength=0.85),
        lines(rows, edge, 0.009, 0.45),
    ]


def tail(
    points: Points, widths: Sequence[float], colour: Colour, edge: Colour, *, mark: str = ""
) -> list[Stroke]:
    """Draw the tail along a line, with the edges of its feathers."""
    shape = tube(points, widths)
    half = len(shape) // 2
    left, right = shape[:half], shape[half:][::-1]
    vanes = [left + (right - left) * t for t in (0.25, 0.5, 0.75)]
    return [part(shape, colour, mark=mark, volume=0.03), lines(vanes, edge, 0.008, 0.5)]


def eye(centre: Curve, size: float, *, iris: Colour = (28, 22, 20)) -> list[Stroke]:
    """Draw the eye with its point of light."""
    pupil = 0.62 if sum(iris) > 200 else 0.9  # of a pale eye one sees the ring
    light = centre + size * np.array([0.14, -0.18])
    return [
        part(oval(centre, size, size), iris, volume=0.0),
        part(oval(centre, size * pupil, size * pupil), (14, 12, 14), volume=0.0),
        part(oval(light, size * 0.3, size * 0.3), WHITE, volume=0.0),
    ]


def legs(hips: Points, foot: tuple[float, float], width: float, colour: Colour) -> list[Stroke]:
    """Draw a leg from each hip down to the perch, and its toes."""
    strokes = []
    for k, (x, y) in enumerate(hips):
        end = (foot[0] + 0.07 * (k - 0.5), foot[1])
        knee = ((x + end[0]) / 2 - 0.012, (y + end[1]) / 2)
        pieces = [tube([(x, y), knee, end], [width, width * 0.8, width])]
        for toe in (-0.045, 0.045, 0.075):
            ahead = (end[0] + toe * 0.6, end[1] - 0.004)
            pieces.append(
                tube([end, ahead, (end[0] + toe, end[1] + 0.018)], [width, width * 0.9, width / 2])
            )
        shade = blend(colour, BLACK, 0.25 * (k == 0))  # the far leg is the darker
        strokes += [part(piece, shade, volume=0.0) for piece in pieces]
    return strokes


def bananaquit(pose: Pose, rng: np.random.Generator) -> Bird:
    """Grey-black above with a white brow, grey throat, yellow belly and a thin curved bill."""
    slate = blend((52, 54, 60), (96, 94, 92), rng.uniform())
    cap = blend(slate, BLACK, 0.6)
    yellow = blend((250, 216, 48), (214, 168, 70), rng.uniform())
    grey = blend((150, 152, 154), (112, 114, 120), rng.uniform())
    edge = blend(slate, WHITE, 0.35)
    upright, foot = 0.5, (0.0, 0.41)

    def head(points: Points) -> Curve:
        return turned(points, gaze(pose, upright), (0.16, -0.2))

    def on_tail(points: Points) -> Curve:
        return turned(points, pose.tail, (-0.28, 0.12))

    crown = [(0.365, -0.29), (0.325, -0.385), (0.23, -0.43), (0.11, -0.39)]
    back = [(0.01, -0.28), (-0.11, -0.12), (-0.24, 0.06), (-0.33, 0.17)]
    under = [(-0.25, 0.24), (-0.13, 0.285), (0.03, 0.275), (0.17, 0.19), (0.26, 0.05)]
    chin = [(0.285, -0.1), (0.345, -0.215)]
    body = curve(np.concatenate([head(crown), back, under, head(chin)]))
    strokes = [
        *tail(on_tail([(-0.26, 0.1), (-0.38, 0.25), (-0.5, 0.41)]),
              [0.1, 0.1, 0.11, 0.11, 0.08], slate, edge),
        patch(on_tail([(-0.5, 0.47), (-0.46, 0.4), (-0.56, 0.36), (-0.6, 0.45)]), WHITE),
        part(body, slate, volume=0.10),
        patch(
            [(0.3, 0.0), (0.12, -0.03), (0.0, 0.05), (-0.16, 0.12), (-0.28, 0.22), (-0.2, 0.34),
             (0.1, 0.36), (0.3, 0.16)],
            yellow, mark="belly", soft=0.018,
        ),
        patch([(-0.3, 0.34), (-0.16, 0.33), (-0.2, 0.22), (-0.32, 0.2)], WHITE, soft=0.03,
              strength=0.7),
        patch([(-0.2, -0.04), (-0.31, 0.09), (-0.36, 0.19), (-0.27, 0.17), (-0.17, 0.05)], yellow,
              soft=0.012),
        patch(head([(0.36, -0.24), (0.26, -0.23), (0.12, -0.15), (0.08, -0.04), (0.2, 0.035),
                    (0.33, 0.01), (0.36, -0.12)]), grey, mark="throat", soft=0.012),
        patch(head([(0.40, -0.27), (0.36, -0.40), (0.22, -0.47), (0.05, -0.42), (-0.03, -0.27),
                    (0.06, -0.2), (0.2, -0.235), (0.34, -0.25)]), cap, soft=0.01),
        patch(head([(0.372, -0.305), (0.31, -0.35), (0.2, -0.365), (0.1, -0.325), (0.0, -0.235),
                    (0.1, -0.265), (0.2, -0.305), (0.3, -0.3)]), WHITE, mark="brow", soft=0.004),
        *eye(head([(0.262, -0.272)])[0], 0.05),
        part(head(tube([(0.335, -0.262), (0.415, -0.268), (0.47, -0.242), (0.505, -0.19)],
                       [0.055, 0.033, 0.02, 0.006])), (26, 25, 27), mark="bill", volume=0.012),
        lines([head(curve([(0.35, -0.256), (0.415, -0.262), (0.465, -0.238)], closed=False))],
              (110, 108, 108), 0.005, 0.6),
    ]  # fmt: skip
    wing = Wing((0.07, -0.1), 0.62, 0.26, 0.35, slate, edge, slate)
    closed = folded_wing(
        [(0.13, -0.15), (0.02, -0.18), (-0.13, -0.04), (-0.27, 0.12), (-0.36, 0.26)],
        [(0.13, -0.13), (0.1, 0.0), (-0.04, 0.09), (-0.2, 0.18), (-0.36, 0.26)],
        slate, edge,
    )  # fmt: skip
    closed.append(patch([(-0.02, 0.055), (-0.07, 0.025), (-0.11, 0.06), (-0.06, 0.095)], WHITE))
    standing = legs([(-0.06, 0.26), (0.02, 0.26)], foot, 0.022, (52, 52, 56))
    return Bird(strokes, closed, wing, standing, foot, upright)


def black_skimmer(pose: Pose, rng: np.random.Generator) -> Bird:
    """Black above, white below, long and low; the knife of the lower bill outruns the upper."""
    black = blend((34, 33, 36), (86, 76, 70), rng.uniform() ** 1.5)
    white = blend(WHITE, (222, 214, 200), rng.uniform())
    red = blend((222, 62, 38), (196, 84, 46), rng.uniform())
    edge = blend(black, WHITE, 0.4)
    upright, foot = 0.05, (-0.02, 0.3)

    def head(points: Points) -> Curve:
        return turned(points, gaze(pose, upright), (0.22, -0.08))

    crown = [(0.415, -0.145), (0.375, -0.235), (0.28, -0.27), (0.16, -0.225)]
    back = [(0.04, -0.14), (-0.14, -0.11), (-0.34, -0.05), (-0.5, 0.02)]
    under = [(-0.54, 0.06), (-0.38, 0.125), (-0.14, 0.19), (0.08, 0.18), (0.23, 0.1)]
    chin = [(0.31, 0.0), (0.39, -0.05)]
    body = curve(np.concatenate([head(crown), back, under, head(chin)]))
    mantle = [(0.2, -0.13), (0.08, -0.07), (-0.12, -0.01), (-0.36, 0.04), (-0.56, 0.06),
              (-0.6, -0.06), (-0.3, -0.16), (0.0, -0.24), (0.16, -0.24)]  # fmt: skip
    gape = rng.uniform(0.0, 0.035)  # it opens the bill a little at times
    lower = head([(0.37, -0.08), (0.53, gape / 2 - 0.04), (0.68, gape), (0.83, gape + 0.06)])
    upper = head([(0.375, -0.125), (0.48, -0.118), (0.56, -0.088), (0.63, -0.04)])
    strokes = [
        *tail(turned([(-0.42, 0.05), (-0.54, 0.06), (-0.65, 0.075)], pose.tail, (-0.42, 0.05)),
              [0.1, 0.11, 0.06], white, (150, 148, 146)),
        part(body, white, mark="underparts", volume=0.10),
        patch(mantle, black, mark="upperparts", soft=0.012),
        patch(head([(0.35, -0.165), (0.335, -0.29), (0.24, -0.31), (0.08, -0.25), (0.02, -0.13),
                    (0.12, -0.075), (0.24, -0.085), (0.32, -0.115)]),
              black, mark="upperparts", soft=0.008),
        part(tube(lower, [0.06, 0.052, 0.042, 0.012]), red, mark="bill", volume=0.015),
        patch(oval(lower[3], 0.54, 0.3), BLACK, mark="bill", soft=0.02),
        part(tube(upper, [0.085, 0.06, 0.036, 0.01]), red, mark="bill", volume=0.015),
        patch(oval(upper[3] + np.array([0.03, 0.01]), 0.32, 0.2), BLACK, mark="bill", soft=0.02),
        *eye(head([(0.315, -0.155)])[0], 0.036),
    ]  # fmt: skip
    wing = Wing((0.08, -0.06), 1.12, 0.25, 1.0, black, edge, blend(black, BLACK, 0.5), "upperparts")
    closed = folded_wing(
        [(0.16, -0.1), (0.0, -0.14), (-0.25, -0.1), (-0.5, -0.03), (-0.76, 0.04)],
        [(0.16, -0.08), (0.1, 0.05), (-0.15, 0.1), (-0.46, 0.075), (-0.76, 0.04)],
        black, edge, mark="upperparts",
    )  # fmt: skip
    trail = curve([(0.08, 0.035), (-0.05, 0.075), (-0.2, 0.09), (-0.36, 0.08)], closed=False)
    closed.append(lines([trail], white, 0.02, 0.9))
    standing = legs([(-0.08, 0.17), (0.0, 0.17)], foot, 0.028, red)
    return Bird(strokes, closed, wing, standing, foot, upright)


def bushtit(pose: Pose, rng: np.random.Generator) -> Bird:
    """A round ball with a long tail: chestnut cap, black mask and throat, white moustache."""
    chestnut = blend((176, 84, 34), (152, 98, 60), rng.uniform())
    grey = blend((118, 124, 136), (98, 100, 100), rng.uniform())
    white = blend(WHITE, (232, 222, 204), rng.uniform())
    edge = blend(grey, WHITE, 0.4)
    upright, foot = 0.4, (0.03, 0.39)

    def head(points: Points) -> Curve:
        return turned(points, gaze(pose, upright), (0.06, -0.1))

    crown = [(0.285, -0.185), (0.24, -0.3), (0.12, -0.365), (-0.02, -0.33)]
    back = [(-0.12, -0.22), (-0.2, -0.08), (-0.25, 0.06), (-0.25, 0.16)]
    under = [(-0.16, 0.245), (-0.02, 0.295), (0.14, 0.265), (0.25, 0.16), (0.29, 0.03)]
    chin = [(0.285, -0.05), (0.29, -0.11)]
    body = curve(np.concatenate([head(crown), back, under, head(chin)]))
    line = turned([(-0.2, 0.1), (-0.4, 0.25), (-0.6, 0.385), (-0.78, 0.5)], pose.tail, (-0.2, 0.1))
    strokes = [
        *tail(line, [0.08, 0.085, 0.09, 0.06], blend(grey, BLACK, 0.45), WHITE, mark="tail"),
        part(body, white, volume=0.11),
        patch([(0.02, -0.35), (-0.04, -0.12), (-0.06, 0.06), (-0.24, 0.2), (-0.34, 0.1),
               (-0.28, -0.2), (-0.1, -0.36)], grey, soft=0.02),
        patch([(0.33, -0.02), (0.2, 0.045), (0.06, 0.02), (-0.03, 0.0), (-0.1, 0.1), (-0.16, 0.2),
               (-0.14, 0.3), (-0.04, 0.26), (0.04, 0.13), (0.18, 0.12), (0.31, 0.09)],
              chestnut, mark="breast_band", soft=0.018),
        patch(head([(0.33, -0.12), (0.2, -0.13), (0.06, -0.1), (-0.02, -0.03), (0.08, 0.035),
                    (0.2, 0.04), (0.31, -0.01)]), white, soft=0.008),
        patch(head([(0.3, -0.075), (0.22, -0.085), (0.155, -0.045), (0.18, 0.005), (0.25, 0.015),
                    (0.31, -0.02)]), BLACK, mark="throat", soft=0.005),
        patch(head([(0.31, -0.17), (0.3, -0.32), (0.14, -0.42), (-0.06, -0.38), (-0.13, -0.22),
                    (-0.04, -0.19), (0.1, -0.225), (0.25, -0.215)]),
              chestnut, mark="cap", soft=0.008),
        patch(head([(0.31, -0.175), (0.25, -0.225), (0.15, -0.245), (0.03, -0.225), (-0.12, -0.2),
                    (-0.13, -0.1), (-0.02, -0.1), (0.1, -0.13), (0.22, -0.135), (0.3, -0.135)]),
              BLACK, mark="mask", soft=0.006),
        *eye(head([(0.175, -0.192)])[0], 0.062, iris=(240, 226, 150)),
        part(head(curve([(0.262, -0.18), (0.325, -0.163), (0.378, -0.125), (0.325, -0.112),
                         (0.262, -0.108)])), (30, 29, 31), volume=0.012),
    ]  # fmt: skip
    wing = Wing((0.0, -0.06), 0.58, 0.25, 0.2, grey, edge, grey)
    closed = folded_wing(
        [(0.04, -0.08), (-0.06, -0.13), (-0.18, -0.02), (-0.28, 0.12), (-0.38, 0.24)],
        [(0.04, -0.06), (0.03, 0.05), (-0.06, 0.13), (-0.2, 0.19), (-0.38, 0.24)],
        grey, edge,
    )  # fmt: skip
    standing = legs([(-0.02, 0.27), (0.06, 0.27)], foot, 0.02, (150, 96, 62))
    return Bird(strokes, closed, wing, standing, foot, upright)


def cockatoo(pose: Pose, rng: np.random.Generator) -> Bird:
    """White all over, with a yellow crest that curls forward and a heavy dark hooked bill."""
    white = blend(WHITE, (226, 214, 190), rng.uniform())
    if rng.uniform() < 0.3:  # a bird in open shade
        white = blend(white, (150, 156, 166), rng.uniform(0.1, 0.6))
    yellow = blend((252, 214, 46), (222, 178, 84), rng.uniform())
    edge = blend(white, (120, 124, 136), 0.5)
    upright, foot = 0.85, (0.02, 0.43)

    def head(points: Points) -> Curve:
        return turned(points, gaze(pose, upright), (0.1, -0.26))

    crown = [(0.285, -0.4), (0.24, -0.495), (0.14, -0.535), (0.02, -0.48)]
    back = [(-0.05, -0.34), (-0.12, -0.16), (-0.21, 0.06), (-0.3, 0.27)]
    under = [(-0.3, 0.38), (-0.15, 0.37), (0.04, 0.29), (0.17, 0.14), (0.235, -0.03)]
    chin = [(0.225, -0.19), (0.25, -0.29)]
    body = curve(np.concatenate([head(crown), back, under, head(chin)]))
    line = turned([(-0.22, 0.26), (-0.34, 0.44), (-0.44, 0.66)], pose.tail, (-0.22, 0.26))
    hook = [(0.235, -0.425), (0.315, -0.445), (0.385, -0.385), (0.39, -0.29), (0.35, -0.215),
            (0.335, -0.275), (0.295, -0.31), (0.245, -0.32)]  # fmt: skip
    strokes = [
        *tail(line, [0.13, 0.15, 0.17, 0.17, 0.1], white, edge),
        patch(turned([(-0.3, 0.36), (-0.2, 0.42), (-0.36, 0.62), (-0.44, 0.6)], pose.tail,
                     (-0.22, 0.26)), yellow, soft=0.04, strength=0.35),
        *crest(pose.crest, yellow, head),
        part(body, white, volume=0.11),
        patch(head([(0.12, -0.37), (0.2, -0.36), (0.19, -0.29), (0.11, -0.3)]), yellow, soft=0.03,
              strength=0.3),
        part(head(curve([(0.25, -0.34), (0.33, -0.32), (0.325, -0.255), (0.26, -0.255)])),
             (52, 54, 60), mark="bill", volume=0.02),
        part(head(curve(hook)), (60, 62, 68), mark="bill", volume=0.03),
        lines([head(curve([(0.28, -0.405), (0.335, -0.375), (0.35, -0.31)], closed=False))],
              (150, 152, 158), 0.012, 0.6),
        part(head(oval((0.19, -0.405), 0.068, 0.062)), blend(white, (196, 208, 222), 0.8),
             volume=0.0),
        *eye(head([(0.19, -0.405)])[0], 0.043),
    ]  # fmt: skip
    wing = Wing((0.02, -0.12), 0.78, 0.34, 0.1, white, edge, white)
    closed = folded_wing(
        [(0.1, -0.19), (-0.03, -0.22), (-0.16, 0.02), (-0.27, 0.27), (-0.37, 0.5)],
        [(0.1, -0.17), (0.11, 0.02), (-0.02, 0.18), (-0.2, 0.34), (-0.37, 0.5)],
        white, edge,
    )  # fmt: skip
    standing = legs([(-0.06, 0.33), (0.02, 0.3)], foot, 0.04, (92, 92, 98))
    return Bird(strokes, closed, wing, standing, foot, upright)


def crest(raised: float, colour: Colour, head: Callable[[Points], Curve]) -> list[Stroke]:
    """Fan the cockatoo's crest: narrow plumes from the crown, their tips curling forward."""
    strokes = []
    for s in np.linspace(1, 0, 6):  # the hindmost first, so that the front lies on top
        root = np.array([0.06 + 0.14 * (1 - s), -0.475 - 0.045 * (1 - s)])
        way = np.radians(np.interp(raised, [0, 1], [166 + 8 * s, 78 + 72 * s]))
        length = (0.25 + 0.07 * np.sin(np.pi * (1 - s * 0.7))) * (0.82 + 0.18 * raised)
        ahead = way - np.radians(35 + 15 * raised)  # forward and up
        step = np.array([np.cos(way), -np.sin(way)]) * length
        curl = np.array([np.cos(ahead), -np.sin(ahead)]) * length
        plume = tube(
            head(np.stack([root, root + 0.45 * step, root + 0.75 * step + 0.08 * curl,
                           root + 0.8 * step + 0.4 * curl])),
            [0.045, 0.062, 0.05, 0.01],
        )  # fmt: skip
        strokes.append(part(plume, blend(colour, (224, 150, 20), 0.3 * s), mark="crest",
                            volume=0.015))  # fmt: skip
    return strokes


SPECIES: dict[str, Callable[[Pose, np.random.Generator], Bird]] = {  # in the order of the classes
    "Bananaquit": bananaquit,
    "Black Skimmer": black_skimmer,
    "Black-throated Bushtit": bushtit,
    "Cockatoo": cockatoo,
}
