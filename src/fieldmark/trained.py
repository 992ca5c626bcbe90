"""A run's trained network with what goes with it: photos in, logits and probabilities out.

In: a run. Out: a `Trained`: the Keras network, its classes, and how it sees a photo; `logits` reads
photos through `images`, on many threads, while the network computes. What judges a run after its
training (`evaluate`, `explain`, `diagnose`) comes through here, so that all of it sees the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import files, images, inference
from fieldmark.backend import keras
from fieldmark.decision import SMALLEST
from fieldmark.errors import FieldmarkError
from fieldmark.formats import UnreadableImage
from fieldmark.images import ImageSpec
from fieldmark.run import Run
from fieldmark.threads import spread
from fieldmark.weights import DAMAGED

BATCH = 32  # photos; larger ones are no faster on a CPU, and take more memory


@dataclass(frozen=True)
class Trained:
    """A trained network, with what it must know to answer."""

    network: Any  # Keras, ends in logits
    classes: tuple[str, ...]
    specification: ImageSpec
    stamp: files.Stamp | None = None  # of its file, from before it was read

    @classmethod
    def load(cls, run: Run) -> Trained:
        """Read the best weights of a run; raises a FieldmarkError where it has none."""
        if not run.best.exists():
            raise FieldmarkError(
                f"{run.folder} has no trained weights: `fieldmark train PHOTOS --out "
                f"{run.folder}` goes on with it, or says why there are none."
            )
        if not os.access(run.best, os.R_OK):
            raise FieldmarkError(files.closed(run.best))
        stamp = files.stamp(run.best)
        try:
            # Plain Keras layers; what is no such thing is refused, not run.
            network = keras.saving.load_model(run.best, compile=False, safe_mode=True)
        except DAMAGED as error:
            raise FieldmarkError(
                f"{run.best} cannot be read as a Keras model: bring back the file that the "
                "training wrote, or train anew."
            ) from error
        classes, answers = run.read_classes(), network.output.shape[-1]
        if not len(set(classes)) == len(classes) == answers:
            raise FieldmarkError(
                f"{run.classes} does not name each of the {answers} classes of {run.best} once: "
                "bring back the files that the training wrote, or train anew."
            )
        return cls(network, classes, run.read_specification(), stamp)

    def refuse_exchanged(self) -> None:
        """Raise where the file is another now than the one that was read."""
        if self.stamp and self.stamp != files.stamp(Path(self.stamp[0])):
            raise FieldmarkError(
                f"{self.stamp[0]} was written anew meanwhile, as by a training that goes on: try "
                "again when that is done."
            )

    @cached_property
    def forward(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """The compiled network: inputs (n, h, w, 3) -> logits (n, c)."""
        return inference.forward(self.network)

    def squares(
        self, photos: Sequence[Path], *, description: str = "Reading photos"
    ) -> NDArray[np.uint8]:
        """Return what the network sees of the photos, (n, size, size, 3), 0 to 255."""
        side = self.specification.size
        nothing = np.zeros((0, side, side, 3), np.uint8)
        return np.concatenate([nothing, *self.stream(photos, description)])

    def square(self, photo: Path) -> NDArray[np.uint8]:
        """Return what the network sees of one photo, (size, size, 3), 0 to 255."""
        try:
            return images.read(photo.read_bytes(), self.specification)
        except UnreadableImage as error:
            raise FieldmarkError(f"{photo} {error}: replace it, or leave it out.") from error
        except OSError as error:
            raise FieldmarkError(
                f"{photo} cannot be opened ({error.strerror or error}): bring it back, or name "
                "where the photos are now."
            ) from error

    def stream(
        self, photos: Sequence[Path], description: str
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Yield what the network sees of the photos in batches, (n, size, size, 3)."""
        with closing(
            spread(lambda i: self.square(photos[i]), range(len(photos)), description)
        ) as found:
            while batch := list(islice(found, BATCH)):
                yield np.stack(batch)

    def logits(
        self, photos: Sequence[Path], *, description: str = "Predicting"
    ) -> NDArray[np.float64]:
        """Return the logits of the photos, (n, c); memory does not grow with their number."""
        nothing = np.zeros((0, len(self.classes)))
        return np.concatenate([nothing, *map(self.of, self.stream(photos, description))])

    def of(self, squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the logits (n, c) of squares (n, size, size, 3)."""
        scaled = images.scale(squares, self.specification)
        return np.asarray(self.forward(scaled), np.float64)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of logits, (n, c) -> (n, c); none of them is 0."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = np.maximum(powers / powers.sum(axis=1, keepdims=True), SMALLEST)
    return found
