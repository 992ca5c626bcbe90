"""What a search may change of a recipe: its fields, each with what it may be, and why.

In: the recipe that was chosen for the photos, or a TOML file. Out: a `Space`, field by field a
`Span` of numbers or a tuple of choices. The value that the recipe has is always within, so that a
search can begin with it. `fieldmark tune PHOTOS --space FILE` takes such a file:

    learning_rate = { low = 1e-4, high = 1e-2, log = true }
    augment = { low = 0.0, high = 1.0 }
    optimiser = ["adamw", "adam"]
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Recipe, utf8


class Span(NamedTuple):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False  # drawn by their order of magnitude
    whole: bool = False


Choices = tuple[Any, ...]
Space = Mapping[str, Span | Choices]

# What must be the same in all trials, or their figures could not be compared.
FIXED = (
    *("pipeline", "split", "validation_split", "test_split", "group_by", "split_seed"),
    *("monitor", "seed"),
)


def _rates(recipe: Recipe) -> Span:
    return Span(recipe.learning_rate / 8, min(recipe.learning_rate * 8, 10.0), log=True)


def _reaches(recipe: Recipe) -> Choices:
    """Return averages that reach back a quarter as far, as far, and four times as far."""
    if not recipe.average:
        return (0.0, 0.98)
    forgets = 1 - recipe.average
    return tuple(round(1 - min(forgets * by, 0.9), 4) for by in (4, 1, 0.25))


def _batches(recipe: Recipe) -> Choices:
    return tuple(sorted({max(4, recipe.batch_size // 2), recipe.batch_size, recipe.batch_size * 2}))


# Field -> what it may be, from the recipe chosen, and the reason for it. Left out are `optimiser`
# (Keras' Adam with a decay is AdamW; SGD wants other rates), and what costs time only: `epochs`
# and `network` follow from the minutes.
SEARCHED: dict[str, tuple[Callable[[Recipe], Span | Choices], str]] = {
    "learning_rate": (
        _rates,
        "an eighth to eight times: beyond, a training diverges or does not get there",
    ),
    "weight_decay": (
        # No decay at all has no order of magnitude.
        lambda r: Span(0.001, 0.5, log=True) if r.weight_decay else (0.0, 0.005, 0.05),
        "less than 0.001 takes nothing away in a short training, and 0.5 is ten times the custom",
    ),
    "augment": (lambda _: Span(0.0, 1.0), "all that there is, from none to the strongest"),
    "mixup": (lambda _: (0.0, 0.2), "none, or its authors' value"),
    "cutmix": (lambda _: (0.0, 1.0), "none, or its authors' value"),
    "label_smoothing": (
        lambda _: Span(0.0, 0.2),
        "none to twice the custom; more hides the classes from one another",
    ),
    "batch_size": (_batches, "half, as many, twice: noisier statistics against fewer steps"),
    "average": (_reaches, "an average that reaches back a quarter as far, as far, or four times"),
}


def default(
    recipe: Recipe, *, sides: Sequence[int] = (), settled: Collection[str] = (), most: int = 4096
) -> Space:
    """Return what is searched around a recipe that was chosen, but for what a user has settled.

    `sides` are the image sizes to choose from; fewer than two are no choice. `most` are the photos
    that there are for a batch.
    """
    found: dict[str, Span | Choices] = {
        name: axis(recipe) for name, (axis, _) in SEARCHED.items() if name not in settled
    }
    if len(sides) > 1 and "image_size" not in settled:
        found["image_size"] = tuple(sorted(sides))
    if "batch_size" in found:
        found["batch_size"] = tuple(size for size in _batches(recipe) if size <= most)
    return with_point(found, recipe)


def read(path: Path, recipe: Recipe, *, settled: Collection[str] = ()) -> Space:
    """Return the space in a TOML file, widened to hold the recipe; raise a FieldmarkError."""
    try:
        content = tomllib.loads(text(path))
    except (ValueError, RecursionError) as error:
        raise FieldmarkError(f"{path} cannot be read ({error}): name a TOML file.") from error
    space = {}
    for name, written in content.items():
        try:
            space[name] = _axis(name, written)
            _refuse(name, space[name], recipe, settled)
        except (FieldmarkError, TypeError, ValueError) as error:
            raise FieldmarkError(f"{path} is no search space: {str(error).rstrip('.')}.") from error
    if not space:
        raise FieldmarkError(f"{path} has no field to search: name one of {', '.join(SEARCHED)}.")
    return with_point(space, recipe)


def text(path: Path) -> str:
    """Return the text of a file; raise a FieldmarkError where it is none."""
    try:
        return utf8(path.read_bytes()).decode()
    except (OSError, ValueError) as error:
        raise FieldmarkError(f"{path} cannot be read ({error}): name a TOML file.") from error


def _axis(name: str, written: Any) -> Span | Choices:
    """Return what a file says of a field."""
    if isinstance(written, list) and len(written) > 1:
        return tuple(dict.fromkeys(written))
    if not isinstance(written, dict) or not {"low", "high"} <= set(written) <= {*Span._fields[:3]}:
        raise FieldmarkError(
            f"{name} is neither a list of two values or more, nor "
            "{ low = ..., high = ..., log = ... }"
        )
    ends = (written["low"], written["high"])
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise FieldmarkError(f"{name} has a low or a high that is no number")
    if not isinstance(written.get("log", False), bool):
        raise FieldmarkError(f"{name} has a log that is neither true nor false")
    whole = all(isinstance(end, int) for end in ends)
    field = Recipe.model_fields.get(name)
    span = Span(**written, whole=whole and field is not None and field.annotation is int)
    if not span.low < span.high or (span.log and span.low <= 0):
        raise FieldmarkError(
            f"{name} goes from {span.low} to {span.high}: give a low below the high"
            + ", and above 0 with log" * span.log
        )
    return span


def _refuse(name: str, axis: Span | Choices, recipe: Recipe, settled: Collection[str]) -> None:
    """Raise where a field cannot be searched, or cannot be what the space says."""
    if name not in Recipe.model_fields:
        raise FieldmarkError(f"a recipe has no {name}")
    if name in FIXED:
        raise FieldmarkError(f"{name} must be the same in all trials")
    if name in settled:
        raise FieldmarkError(
            f"{name} is settled on the command line as well: leave it out of one of them"
        )
    for value in axis[:2] if isinstance(axis, Span) else axis:
        recipe.changed(**{name: value})


def with_point(space: Space, recipe: Recipe) -> Space:
    """Return the space, widened where the recipe lies outside of it."""
    found: dict[str, Span | Choices] = {}
    for name, axis in space.items():
        value = getattr(recipe, name)
        if not isinstance(axis, Span):
            found[name] = axis if value in axis else (value, *axis)
        elif axis.log and value <= 0:  # none at all has no order of magnitude
            raise FieldmarkError(
                f"{name} is {value:g} in the recipe to begin with, which no log scale has: give it "
                "another value, or a space without log."
            )
        else:
            found[name] = axis._replace(low=min(axis.low, value), high=max(axis.high, value))
    return MappingProxyType(found)


def point(space: Space, recipe: Recipe) -> dict[str, Any]:
    """Return where in the space a recipe lies."""
    return {name: getattr(recipe, name) for name in space}


def rounded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point with numbers that people can read, within the space."""
    found = dict(values)
    for name, axis in space.items():
        if isinstance(axis, Span) and not axis.whole:
            found[name] = min(max(float(f"{values[name]:.3g}"), axis.low), axis.high)
    return found


def as_json(space: Space) -> dict[str, Any]:
    """Return it as plain data."""
    return {
        name: axis._asdict() if isinstance(axis, Span) else list(axis)
        for name, axis in space.items()
    }


def from_json(content: Mapping[str, Any]) -> Space:
    """Return the space that `as_json` has written."""
    return {
        name: Span(**axis) if isinstance(axis, dict) else tuple(axis)
        for name, axis in content.items()
    }
