"""Blurred, dark, bright and empty photos: cleanvision's verdicts beside ours, on planted faults.

In: a number of photos a set; drawn birds of 128 and 224 pixels, and, where the folder of real
photos is named, flowers and birds. Every fault is planted into every photo. Out, on standard
output: for each fault and set the share of photos in which each of the two finds it (recall), for
the untouched photos the share called faulty (false alarms), and precision over all.

    python experiments/against_cleanvision.py --photos 40 --real FOLDER

FOLDER holds `flowers` and `birds`, each with a sub-folder a class. cleanvision 0.3.7 is the peer.
Its functions are called on the photo that we decoded; its `Imagelab` calls the same ones. This file
is not called `cleanvision.py`, for then Python would take it for the package.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cleanvision.issue_managers.image_property import (
    BlurrinessProperty,
    calc_entropy,
    calc_percentile_brightness,
)
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from fieldmark import console, draw, images, quality

Pixels = NDArray[Any]
BLUR = BlurrinessProperty()
KINDS = ("blurred", "dark", "bright", "empty")


def ours(pixels: Pixels) -> set[str]:
    """Return our verdicts; faint and blank count as empty, as cleanvision's low information."""
    empty = {"blank": "empty", "faint": "empty"}
    return {empty.get(fault, fault) for fault in quality.faults(quality.measure(pixels))}


def theirs(pixels: Pixels) -> set[str]:
    """Return cleanvision's verdicts, by the thresholds of its `ImagePropertyIssueManager`."""
    image = Image.fromarray(pixels)
    low, high = calc_percentile_brightness(image, [5, 99])
    blur: dict[str, Any] = BLUR.calculate(image)
    sharp = 1 - np.exp(-0.01 * blur["blurriness"])
    spread = 1 - np.exp(-0.01 * blur["blurriness_grayscale_std"])
    verdicts = {
        "blurred": min(sharp + (spread if spread > 0.18 else 0), 1) < 0.29,
        "dark": high < 0.32,
        "bright": 1 - low < 0.05,
        "empty": 0.1 * calc_entropy(image) < 0.3,
    }
    return {kind for kind, is_so in verdicts.items() if is_so}


def gaussian(radius: float) -> Callable[[Pixels], Pixels]:
    """Blur; the radius is in pixels of a photo whose short side has 256."""

    def plant(photo: Pixels) -> Pixels:
        filtering = ImageFilter.GaussianBlur(radius * min(photo.shape[:2]) / 256)
        return np.asarray(Image.fromarray(photo).filter(filtering))

    return plant


def shaken(length: float) -> Callable[[Pixels], Pixels]:
    """Blur along a line, in a direction by chance; the length is in pixels of 256."""
    rng = np.random.default_rng(7)

    def plant(photo: Pixels) -> Pixels:
        total = np.zeros(photo.shape, np.float64)
        steps = max(2, round(length * min(photo.shape[:2]) / 256))
        angle = rng.uniform(0, np.pi)
        for t in np.linspace(-steps / 2, steps / 2, steps + 1):
            move = (t * np.sin(angle), t * np.cos(angle), 0)
            total += ndimage.shift(photo.astype(float), move, order=1, mode="nearest")
        mean: Pixels = total / (steps + 1)
        return mean

    return plant


def flat(noise: float) -> Callable[[Pixels], Pixels]:
    """Put one colour by chance in place of the photo, with noise."""
    rng = np.random.default_rng(8)
    return lambda photo: rng.integers(0, 256, 3) + rng.normal(0, noise, photo.shape)


def between(white: float, share: float) -> Callable[[Pixels], Pixels]:
    """Mix a photo with a grey level."""
    return lambda photo: white + (photo.astype(float) - white) * (1 - share)


def curve(power: float, gain: float = 1) -> Callable[[Pixels], Pixels]:
    """Change the exposure."""
    return lambda photo: gain * 255 * (photo / 255) ** power


# What is planted, and what it should be called.
PLANTS: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    **{f"Gaussian blur, radius {r}": ("blurred", gaussian(r)) for r in (2, 3, 4, 6, 8, 12)},
    **{f"shaken by {n}": ("blurred", shaken(n)) for n in (8, 16, 24)},
    **{f"levels times {f}": ("dark", curve(1, f)) for f in (0.35, 0.25, 0.15, 0.08)},
    **{f"levels to the power of {g}": ("dark", curve(g)) for g in (3, 5, 8)},
    **{f"levels times {g}, clipped": ("bright", curve(1, g)) for g in (3, 5, 8)},
    **{f"{s:.0%} of the way to white": ("bright", between(255, s)) for s in (0.7, 0.85)},
    **{f"contrast times {1 - s:.2g}": ("empty", between(128, s)) for s in (0.75, 0.85, 0.92)},
    **{f"one colour, noise of {n}": ("empty", flat(n)) for n in (0, 2, 5, 10, 20)},
}


def through_jpeg(pixels: Pixels) -> Pixels:
    """Save and read a photo, as a faulty one would come."""
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return images.decode(file.getvalue(), at_least=quality.SIDE)


def sets(photos: int, real: Path | None, drawn: Path) -> dict[str, list[Path]]:
    """Return the photos of each set, drawn ones and, where there are any, real ones."""
    found = {}
    for size in (128, 224):
        birds = draw.birds(drawn / str(size), per_class=-(-photos // 4), size=size, seed=size)
        found[f"drawn {size}"] = sorted(birds.glob("*/*.jpg"))
    for folder in (real / "flowers", real / "birds") if real else ():
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        order = np.random.default_rng(1).permutation(len(paths))
        found[folder.name] = [paths[i] for i in order]
    return found


def main() -> None:
    """Plant, ask both, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--real", type=Path)
    options = parser.parse_args()
    console.be_quiet()
    tally: dict[tuple[str, str, str], list[bool]] = {}
    alarms: dict[tuple[str, str], list[set[str]]] = {}
    seconds = {"ours": 0.0, "cleanvision": 0.0}

    def ask(pixels: Pixels) -> dict[str, set[str]]:
        verdicts = {}
        for name, judge in (("ours", ours), ("cleanvision", theirs)):
            began = time.process_time()
            verdicts[name] = judge(pixels)
            seconds[name] += time.process_time() - began
        return verdicts

    asked = 0
    with tempfile.TemporaryDirectory() as temporary:
        for group, paths in sets(options.photos, options.real, Path(temporary)).items():
            for k, path in enumerate(paths):
                content = path.read_bytes()
                whole = images.decode(content)
                for name, verdict in ask(images.decode(content, at_least=quality.SIDE)).items():
                    alarms.setdefault((group, name), []).append(verdict)
                asked += 1
                if k >= options.photos:
                    continue  # of the real sets all are asked for false alarms
                for plant, (kind, make) in PLANTS.items():
                    asked += 1
                    # A fault may be called by a graver one's name: what is blank is not dark too.
                    names = {kind, "empty"} if kind in ("dark", "bright") else {kind}
                    for name, verdict in ask(through_jpeg(make(whole))).items():
                        tally.setdefault((plant, group, name), []).append(bool(verdict & names))
    report(tally, alarms)
    for name, spent in seconds.items():
        print(f"{name}: {1000 * spent / asked:.1f} ms of one core a photo, n {asked}")


def report(
    tally: dict[tuple[str, str, str], list[bool]], alarms: dict[tuple[str, str], list[set[str]]]
) -> None:
    """Print the shares found, and the false alarms."""
    groups = list(dict.fromkeys(group for _, group, _ in tally))
    judges = ("ours", "cleanvision")
    print("| planted | " + " | ".join(groups) + " |")
    print("| --- |" + " --- |" * len(groups))
    for plant in PLANTS:
        cells = [
            " / ".join(f"{np.mean(tally[plant, group, judge]):.2f}" for judge in judges)
            for group in groups
        ]
        print(f"| {plant} | " + " | ".join(cells) + " |")
    for kind in KINDS:
        cells = [
            " / ".join(
                f"{sum(kind in verdict for verdict in alarms[group, judge])}" for judge in judges
            )
            + f" of {len(alarms[group, 'ours'])}"
            for group in groups
        ]
        print(f"| untouched, called {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
