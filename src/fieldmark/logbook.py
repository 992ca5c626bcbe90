"""What the log of a training says: which of its weights are the best, and whether it is over.

In: the lines of the log, an epoch each, as `run.log.jsonl` and the state hold them. Out: the
weights that were looked at, the best of them, and the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from fieldmark.recipe import Recipe

Monitor = Literal["loss", "accuracy"]

# An epoch's figures by their names in Keras; none where a figure was no finite number.
Epoch = Mapping[str, float | None]


class Look(NamedTuple):
    """What the validation photos said of an epoch's weights, or of their averages."""

    epoch: int  # counted from 1
    averaged: bool
    loss: float
    accuracy: float

    def value(self, monitor: Monitor) -> float:
        """Return what the recipe monitors."""
        return self.loss if monitor == "loss" else self.accuracy


def looks(log: Sequence[Epoch]) -> Iterator[Look]:
    """Yield all weights that were looked at and gave numbers: in their order, raw ones first."""
    for line in log:
        for prefix in ("", "averaged_"):
            loss, accuracy = (line.get(f"{prefix}val_{name}") for name in ("loss", "accuracy"))
            if loss is not None and accuracy is not None:
                yield Look(int(line["epoch"] or 0), bool(prefix), loss, accuracy)


def best_of(log: Sequence[Epoch], monitor: Monitor) -> Look | None:
    """Return the best weights by the log: the first of equals, raw before averaged.

    By accuracy the lower loss decides among equals. A figure that is no number is never the best.
    """

    def merit(look: Look) -> tuple[float, float]:
        return (-look.loss, 0.0) if monitor == "loss" else (look.accuracy, -look.loss)

    return max(looks(log), key=merit, default=None)


def looked_at(epoch: int, recipe: Recipe, epochs: int) -> bool:
    """Tell whether the validation photos are looked at after an epoch, counted from 0."""
    return (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == epochs


def over(log: Sequence[Epoch], recipe: Recipe, epochs: int) -> bool:
    """Tell whether a training with this log is at its end."""
    if len(log) >= epochs:
        return True
    if not recipe.patience or not log or "val_loss" not in log[-1]:
        return False  # what was not looked at may be better
    best = best_of(log, recipe.monitor)
    return len(log) - (best.epoch if best else 0) >= recipe.patience
