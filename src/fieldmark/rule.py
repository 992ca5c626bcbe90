"""The rule that chooses a recipe: photos, machine and minutes in, values and their reasons out.

In the manner of Big Transfer's hyper-rule (Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3;
`bit_hyperrule.py`), which sets resolution, schedule and MixUp from the number and size of the
photos alone. This one knows the time too: it counts what a step costs, measures how fast the
machine multiplies, and spends the minutes. `docs/recipe.md` has the measurements behind the
numbers. `fieldmark train PHOTOS --minutes 10 --out RUN` runs it.
"""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from fieldmark import files, images, kernels, weights
from fieldmark.backend import devices, keras
from fieldmark.console import duration
from fieldmark.data import Photos
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import FINETUNE, PROBE, SCRATCH, Network, Recipe
from fieldmark.run import open_run

MINUTES = 10.0  # that a training may take where nobody says
YEAR = 525_600.0  # minutes

# Multiply-adds of a photo of 224 px (`fieldmark network NAME`); they grow with the square.
MULTIPLY_ADDS: dict[Network, float] = {
    "resnet26v2_half": 0.463e9,
    "resnet50v2": 3.48e9,
    "resnet101v2": 7.19e9,
    "resnet152v2": 10.9e9,
    "resnetv2_50": 4.09e9,
    "bit_r50x1": 4.09e9,
    "small": 0.106e9,
}
# The share of a matrix product's speed that a training step reaches (docs/speed.md), of networks
# whose products are narrow, and of the others.
SHARE = {"resnet26v2_half": 0.4, "small": 0.3}
WIDE = 0.6
HALVED = 1.9  # times as fast in bfloat16, where the machine has it
HANDLING = 0.002  # seconds a photo takes beside: reading it, and the small things of a step
KEEPING = 0.5  # seconds an epoch takes to be kept
STEP = 3  # forward passes that a step costs: forward, and backward to the input and to the weights
LOOKING = 1.1  # times as long, with the looks at the validation photos
START = 20.0  # seconds until the first step: starting, decoding, tracing

# Begin, end and validation side in pixels, the largest first.
SIZES = ((128, 192, 192), (96, 128, 128), (64, 96, 96), (64, 64, 64))
ENOUGH = 40_000  # photos seen in a training from nothing, repetitions counted, before larger ones
MOST_SEEN = 80_000  # beyond that nothing was gained from few photos
FEWEST_EPOCHS = 5
FINETUNING = 20  # epochs, or 10,000 steps where there are many photos; AutoGluon's is 20 too
SAMPLE = 64  # photos whose size is looked at


@dataclass(frozen=True)
class Facts:
    """What the rule asks about the photos."""

    count: int  # to train on
    classes: int
    smallest: int  # photos of the smallest class, and of the largest
    largest: int
    side: int  # median of the shorter sides, pixels

    @classmethod
    def of(cls, listed: Photos, *, held_out: float) -> Facts:
        """Read them from a listing; the size of some of its photos stands for all."""
        sizes = Counter(listed.labels).values()
        every = max(1, len(listed.paths) // SAMPLE)
        sides = [
            min(found.width, found.height)
            for path in listed.paths[::every]
            if (found := _inspected(listed.folder / path)) is not None
        ]
        kept = 1 - held_out
        return cls(
            count=max(1, round(len(listed.paths) * kept)),
            classes=len(listed.classes),
            smallest=max(1, round(min(sizes) * kept)),
            largest=round(max(sizes) * kept),
            side=round(median(sides)) if sides else 224,
        )


@dataclass(frozen=True)
class Device:
    """What the rule asks about the machine."""

    name: str
    precision: kernels.Precision  # the one that it computes fast
    speed: float  # of a matrix product in float32, GFLOP/s


class Chosen(NamedTuple):
    """A recipe, why it is this one, and what it will take."""

    recipe: Recipe
    reasons: tuple[str, ...]
    seconds: float


def measured() -> Device:
    """Measure this machine, in about a second."""
    side = 2048
    matrix = keras.ops.ones((side, side))
    best = 0.0
    for _ in range(4):  # the first one starts the threads
        began = time.perf_counter()
        product = keras.ops.matmul(matrix, matrix)
        float(keras.ops.convert_to_numpy(product[0, 0]))  # waits until it is there
        best = max(best, 2 * side**3 / (time.perf_counter() - began) / 1e9)
    names = devices()
    return Device(names[0] if names else "the CPU", kernels.fast_precision(), best)


def recipe_for(
    photos: Facts,
    device: Device,
    minutes: float = MINUTES,
    *,
    wishes: Mapping[str, Any] = MappingProxyType({}),
) -> Chosen:
    """Choose a recipe for these photos that takes about so many minutes on this machine.

    `wishes` are values of a recipe that are settled already; what hangs on them follows. Without
    `weights` among them the training begins from nothing (`at_hand` names some). Raises a
    FieldmarkError for minutes that are none, and for wishes that cannot be met.
    """
    if not 0 < minutes <= YEAR:
        raise FieldmarkError(
            f"{minutes:g} minutes are no time to train in: give more than 0, and a year at most."
        )
    seconds = max(minutes * 60 - START, 5.0)
    choose = _with_weights if of_photos(wishes.get("weights", "")) else _without_photos
    return choose(photos, device, seconds, wishes)


# ---- without photos of others -------------------------------------------------------------------


def _without_photos(
    photos: Facts, device: Device, seconds: float, wishes: Mapping[str, Any]
) -> Chosen:
    """Choose resolution and epochs for a network that has seen drawings at most."""
    name = network_named(wishes.get("network", weights.FRACTALS_NETWORK))
    for sizes in sides(photos, wishes.get("image_size", 0)):
        epoch = _epoch(photos, device, name, sizes)
        if seconds / epoch * photos.count >= ENOUGH:
            break
    begin, end, side = sizes
    fitting, enough = int(seconds / epoch), int(MOST_SEEN / photos.count)
    epochs = wishes.get("epochs", max(min(fitting, enough), FEWEST_EPOCHS))
    why = f"{epochs} epochs of them fit into the time"
    if epochs > fitting:
        why = f"{epochs} epochs of them, fewer than which teach little, take longer than the time"
    elif epochs < fitting:
        why = f"{epochs} epochs of them are enough: more would gain nothing"
    if "epochs" in wishes:
        why = f"{epochs} epochs of them are asked for"
    batch = wishes.get("batch_size", _batch(photos))
    steps = epochs * max(1, photos.count // batch)
    values = {
        "network": name,
        "begin_size": begin,
        "end_size": end,
        "image_size": side,
        "epochs": epochs,
        "batch_size": batch,
        "warmup": round(min(5.0, epochs / 20), 2),
        "augment": 0.5 if epochs >= 20 else 0.3,
        "average": _average(steps),
        "validate_every": max(1, epochs // 15),
        "balance": _balance(photos),
    }
    recipe = SCRATCH.changed(**{**values, **wishes})
    start = "weights that have learned drawn fractals" if recipe.weights else "nothing"
    reasons = (
        f"Network {name}, from {start}: no weights of photos are at hand (--weights imagenet "
        "fetches some).",
        f"Photos of {begin} to {end} pixels, {side} in the end: those here have {photos.side}, and "
        f"{why}.",
        f"Batches of {batch}: {steps:,} steps for {photos.count:,} photos.",
        *_shared_reasons(recipe, photos, device),
    )
    return Chosen(recipe, reasons, START + epochs * epoch)


# ---- from weights -------------------------------------------------------------------------------


def _with_weights(
    photos: Facts, device: Device, seconds: float, wishes: Mapping[str, Any]
) -> Chosen:
    """Choose between a classifier on the features as they are and training all layers."""
    start = wishes["weights"]
    name = network_named(wishes.get("network") or network_of(start))
    grouped = name == "bit_r50x1"  # it has no batch statistics
    side = wishes.get("image_size") or side_of(start)
    precision = wishes.get("precision", device.precision)
    epoch = _epoch(photos, device, name, (side, side, side), halved=precision != "float32")
    features = epoch / STEP * 1.3
    values = {"network": name, "image_size": side, "balance": _balance(photos)}
    epochs = wishes.get("epochs", int(min((seconds - features) / epoch, FINETUNING)))
    too_few = photos.count < 5 * photos.classes
    if "epochs" not in wishes and (epochs < 3 or too_few):
        why = "three epochs of all layers do not fit into the time"
        if too_few:
            why = "so few photos would be learned by heart"
        values["batch_size"] = min(PROBE.batch_size, _surely(photos))
        recipe = PROBE.changed(**{**values, **wishes})
        reasons = (
            f"Network {name} from {start}, as it is, and logistic regression on its features: "
            f"{why}.",
            *_shared_reasons(recipe, photos, device),
        )
        return Chosen(recipe, reasons, START + features)
    batch = wishes.get("batch_size", _batch(photos))
    values |= {
        "epochs": epochs,
        "batch_size": batch,
        "warmup": round(epochs / 10, 2),
        "freeze_normalisation": not grouped,
        "average": _average(epochs * (photos.count // batch)),
        "precision": precision,
    }
    recipe = FINETUNE.changed(**{**values, **wishes})
    reasons = (
        f"Network {name} from {start}: first logistic regression on its features, then all layers "
        f"for {epochs} epochs.",
        f"Photos of {side} pixels, at which such weights do best.",
        "Its normalisation groups channels and needs no batch statistics."
        if grouped
        else "Its normalisation keeps the statistics that it came with.",
        *_shared_reasons(recipe, photos, device),
    )
    return Chosen(recipe, reasons, START + features + epochs * epoch)


def at_hand(network: str = "") -> str:
    """Name the weights for a network, or for any, that are on this machine already, or none."""
    if weights.downloaded(network or "resnet50v2"):
        return "imagenet"
    return "fractals" if network in ("", weights.FRACTALS_NETWORK) else ""


def of_photos(start: str) -> bool:
    """Tell whether weights have seen photos, so that little is left to learn."""
    return start not in ("", "fractals")


def network_of(start: str) -> str:
    """Tell from weights which network they are of; raise a FieldmarkError where they do not say."""
    if start == "imagenet":
        return "resnet50v2"
    path = files.expanded(start)
    if path.suffix.lower() == ".npz":
        return "bit_r50x1"
    if path.suffix.lower() == ".safetensors":
        arrays = weights.read(path)
        return "resnetv2_50" if any("moving" in name for name in arrays) else "bit_r50x1"
    weights.require_there(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("config.json"))["config"]["name"])
    except weights.DAMAGED as error:
        if path.suffix.lower() == ".keras":
            weights.read(path)  # which says what is wrong with one that is damaged
        raise FieldmarkError(
            f"{start} does not say which network it is of: add --network."
        ) from error


def side_of(start: str) -> int:
    """Return the side of the photos that weights do best on, in pixels.

    A run has it beside its weights; of other files it is the custom of their publishers.
    """
    if start == "imagenet":
        return FINETUNE.image_size
    try:
        return open_run(files.expanded(start).parent).read_specification().size
    except FieldmarkError:
        return 224


def network_named(name: str) -> Network:
    """Return the name of a network that a recipe can be chosen for."""
    for known in get_args(Network):
        if name == known and known in MULTIPLY_ADDS:
            return known  # type: ignore[no-any-return]
    raise FieldmarkError(
        f"No recipe is chosen for the network {name!r}: name one of {', '.join(MULTIPLY_ADDS)}, "
        "or a recipe."
    )


# ---- both ---------------------------------------------------------------------------------------


def sides(photos: Facts, wish: int) -> list[tuple[int, int, int]]:
    """Return begin, end and validation sides to choose from, the largest first."""
    if wish:
        return [(_even(wish * 3 / 4), _even(wish), wish)]
    return [sizes for sizes in SIZES if sizes[-1] <= max(photos.side * 1.25, SIZES[-1][-1])]


def _even(side: float) -> int:
    """Return the nearest multiple of 32, which every stage halves without a rest."""
    return max(32, round(side / 32) * 32)


def _epoch(
    photos: Facts,
    device: Device,
    name: Network,
    sizes: tuple[int, int, int],
    *,
    halved: bool = False,
) -> float:
    """Return the seconds of an epoch, the mean over its sides."""
    begin, end, _ = sizes
    sides = range(begin, end + 1, 32)
    area = sum(side**2 for side in sides) / len(sides) / 224**2
    operations = 2 * STEP * MULTIPLY_ADDS[name] * area * photos.count
    speed = device.speed * 1e9 * SHARE.get(name, WIDE) * (HALVED if halved else 1)
    return (operations / speed + photos.count * HANDLING) * LOOKING + KEEPING


def _batch(photos: Facts) -> int:
    """Return the photos of a step: about thirty steps an epoch, of 8 to 128 photos each."""
    return min(128, max(8, 1 << round(math.log2(photos.count / 30 + 1))), _surely(photos))


def _surely(photos: Facts) -> int:
    """Return how many photos there are to train on at least: a class may hold out one more."""
    return max(1, photos.count - photos.classes)


def _average(steps: int) -> float:
    """Return the share of the old average in the new one: it reaches back a twentieth of all."""
    return round(1 - 1 / min(500, max(10, steps / 20)), 4)


def _balance(photos: Facts) -> str:
    """Weigh classes where the largest has more than twice the photos of the smallest."""
    return "weights" if photos.largest > 2 * photos.smallest else "none"


def _shared_reasons(recipe: Recipe, photos: Facts, device: Device) -> list[str]:
    """Say what follows from the machine and from the sizes of the classes."""
    reasons = []
    if recipe.balance == "weights":
        reasons.append(
            f"Classes have {photos.smallest} to {photos.largest} photos: each photo is weighed, so "
            "that all count alike."
        )
    if recipe.precision != "float32":
        reasons.append(f"Products in {recipe.precision}, which {device.name} computes faster.")
    return reasons


def told(chosen: Chosen) -> list[str]:
    """Write a choice for people, a line each."""
    about = f"It will take about {duration(chosen.seconds)} (--minutes sets how long it may)."
    return [*chosen.reasons, about]


def _inspected(path: Path) -> images.Facts | None:
    """Look at a photo's head; what is wrong with it is found later, with all the others."""
    try:
        return images.inspect(path.read_bytes())
    except (OSError, FieldmarkError):
        return None
