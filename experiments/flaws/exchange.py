"""`fieldmark`, with some of the article's flaws in its network, its reader and its batches.

In: the names of the flaws, joined by commas, and a command line of `fieldmark`; the flaws that are
values of a recipe are given there (`changes.recipe`). `run.py` calls this for each training:

    python experiments/flaws/exchange.py "biases,frozen batches" train photos --recipe r.json ...

Two things are left out that a training of minutes does not need and that cost more than its steps:
the state to go on from, and the best weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Set
from typing import Any, Literal

import networks
import numpy as np
from PIL import Image

from fieldmark import batches, cache, cli, images, kernels, loop, network, steps
from fieldmark.backend import keras

NAME: Literal["resnet50v2"] = (
    "resnet50v2"  # what the recipe calls the network, whatever flaws it has
)


def exchange(flaws: Set[str], *, width: int = 64) -> None:
    """Let this process' `fieldmark` have the flaws."""

    def builder(shape: tuple[int | None, int | None, int], classes: int, **_: Any) -> Any:
        return networks.build(shape, classes, flaws=flaws, width=width)

    network.BUILDERS[NAME] = builder
    if "raw pixels" in flaws:
        network.SCALING[NAME] = "0..255"
    if "frozen batches" in flaws:
        batches.Batches.order = frozen  # type: ignore[method-assign]
    if "skipping reader" in flaws:
        images.ROOM = 1e6  # a JPEG is decoded whole, and so are thumbnails of it
        images._resized = sampled
        cache.CODE += " sampled"  # so that nobody else finds these pixels
    if "double softmax" in flaws:
        steps.training_step = doubling(steps.training_step)


def keep_nothing() -> None:
    """Let a training write its log, and neither state nor weights."""

    def nothing(*_: object) -> None:
        pass

    loop.Course.save = nothing  # type: ignore[method-assign, assignment]
    loop.Course.keep_best = nothing  # type: ignore[method-assign, assignment]


# ---- batches ------------------------------------------------------------------------------------

fresh = batches.Batches.order


def frozen(self: batches.Batches, epoch: int) -> batches.Integers:
    """Return an epoch's order in which the photos of the first epoch's batches meet again."""
    if not self.shuffle:
        return fresh(self, epoch)
    first = fresh(self, 0).reshape(len(self), self.batch_size)
    return first[np.random.default_rng((self.seed, epoch)).permutation(len(self))].reshape(-1)


# ---- the reader ---------------------------------------------------------------------------------


def sampled(image: Image.Image, box: images.Box, spec: images.ImageSpec) -> Image.Image:
    """Resize as Keras' reader does: bilinear between the four nearest pixels, all others unseen."""
    width, height = box[2:]
    if spec.mode == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    size = (spec.size, spec.size)
    return image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


# ---- the loss -----------------------------------------------------------------------------------


class DoubleSoftmax(keras.losses.Loss):  # type: ignore[misc]
    """Cross-entropy of a softmax of probabilities.

    It is the article's loss wherever Keras does not find the logits behind the softmax.
    """

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def call(self, labels: Any, logits: Any) -> Any:
        """Return a loss for each photo, (n,)."""
        # Times one, else TensorFlow's Keras finds the logits here too.
        return self.loss.call(labels, keras.ops.softmax(logits) * 1.0)


def doubling(step: Callable[..., kernels.Step]) -> Callable[..., kernels.Step]:
    """Return a `training_step` whose loss is of a double softmax."""

    def doubled(network: Any, optimiser: Any, *, loss: Any, **options: Any) -> kernels.Step:
        return step(network, optimiser, loss=DoubleSoftmax(loss), **options)

    return doubled


def main() -> None:
    """Exchange and run the command."""
    flaws, width, *words = sys.argv[1:]
    exchange(frozenset(flaws.split(",")), width=int(width))
    keep_nothing()
    cli.main(words)


if __name__ == "__main__":
    main()
