"""`Classifier`, the one door to predictions: photos in, answers out, over a run or an export of it.

In: a run's folder, or a folder that `fieldmark export` wrote. Out: a `Classifier` with its classes,
how it sees a photo, and when it refuses to answer. Over an export neither Keras nor TensorFlow is
imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import engines, files, images
from fieldmark.decision import Decision
from fieldmark.engines import Engine
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.manifest import MANIFEST, Manifest

__all__ = ["Answer", "Classifier", "Engine"]


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a photo."""

    label: str | None  # none: it is none of these
    probabilities: NDArray[np.float64]  # (c,), calibrated where there is a decision


@dataclass(frozen=True)
class Classifier:
    """A trained network in whatever engine, with what it must know to answer."""

    place: Path  # the run or the export
    backend: str  # "keras", or what the export is for
    classes: tuple[str, ...]
    specification: ImageSpec
    decision: Decision | None
    engine: Engine
    streams: int = 1  # how many batches it is best asked for at once
    network: Any = None  # Keras', of a run
    stamp: tuple[files.Stamp, ...] = ()  # of its files, from before they were read

    @classmethod
    def load(
        cls, place: str | os.PathLike[str], *, threads: int | None = None, many: bool = False
    ) -> Classifier:
        """Open a run or an export; raises a FieldmarkError for anything else.

        `threads` is how many an export may compute on; without, its library takes what there is.
        With `many`, which takes all threads, it is for many who ask at once, and may take longer
        for one who asks alone.
        """
        folder = Path(place)
        if files.is_file(folder / MANIFEST):
            found = cls._of_export(folder, threads, many)
        elif threads is not None:
            raise FieldmarkError(
                f"{folder} is no export, and Keras takes its threads from the whole process: "
                "leave the number out, or `fieldmark export` the run first."
            )
        else:
            found = cls._of_run(folder)
        found.refuse_exchanged()
        return found

    @classmethod
    def _of_export(cls, folder: Path, threads: int | None, many: bool) -> Classifier:
        stamp = stamped(folder)
        manifest = Manifest.read(folder)
        manifest.verify(folder)
        if many:
            engine, streams = engines.open_for_many(folder, manifest)
        else:
            engine, streams = engines.open_engine(folder, manifest, threads=threads), 1
        return cls(
            place=folder,
            backend=manifest.format,
            classes=manifest.classes,
            specification=manifest.specification,
            decision=manifest.decision,
            engine=engine,
            streams=streams,
            stamp=stamp,
        )

    @classmethod
    def _of_run(cls, folder: Path) -> Classifier:
        from fieldmark.run import is_run, open_run

        if not is_run(folder):  # before Keras, which takes seconds, is imported
            raise FieldmarkError(
                f"{folder} is neither a run nor an export of one: `fieldmark train PHOTOS --out "
                "RUN` makes the one, `fieldmark export RUN` the other."
            )
        run = open_run(folder)
        stamp = stamped(run.folder)
        from fieldmark.trained import Trained, softmax

        trained = Trained.load(run)
        return cls(
            place=run.folder,
            backend="keras",
            classes=trained.classes,
            specification=trained.specification,
            decision=run.read_decision(),
            engine=lambda squares: softmax(trained.of(squares)),
            network=trained.network,
            stamp=stamp,
        )

    def refuse_exchanged(self) -> None:
        """Raise where the files are others now than those that were read."""
        if self.stamp and stamped(self.place) != self.stamp:
            raise FieldmarkError(
                f"{self.place} was exchanged while it was read: try again when it lies there whole."
            )

    def identity(self) -> str:
        """Return 16 digits that change with the weights and with all else that makes an answer."""
        facts = hashlib.sha256()
        for part in (self.backend, *self.classes, self.specification):
            facts.update(f"{part}\0".encode())
        facts.update(repr(self.decision).encode())
        for file in weights(self.place):
            with file.open("rb") as opened:
                facts.update(hashlib.file_digest(opened, "sha256").digest())
        self.refuse_exchanged()
        return facts.hexdigest()[:16]

    def square(self, content: bytes) -> NDArray[np.uint8]:
        """Return what the network sees of a photo; raises an UnreadableImage with the reason."""
        return images.read(content, self.specification)

    def answers(self, squares: NDArray[np.uint8]) -> list[Answer]:
        """Return an answer for each square, (n, size, size, 3)."""
        found = self.engine(squares)
        if self.decision is None:
            calm, certain = found, np.ones(len(found), bool)
        else:
            calm, certain = self.decision.calibrated(found), self.decision.answers(found)
        names = [self.classes[place] for place in calm.argmax(axis=1)]
        return [
            Answer(name if sure else None, row)
            for name, sure, row in zip(names, certain, calm, strict=True)
        ]

    def predict(self, photos: Sequence[bytes]) -> list[Answer]:
        """Return an answer for each photo, which is a file's content."""
        return self.answers(np.stack([self.square(photo) for photo in photos]))


def weights(place: Path) -> list[Path]:
    """Return the files of a run or an export that hold the network: what is said of it is JSON."""
    if not files.is_file(place / MANIFEST):  # an export is opened without what runs are made of
        from fieldmark.run import Run, is_run

        if is_run(place):
            return [Run(place).best]
    return sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".json")


def stamped(place: Path) -> tuple[files.Stamp, ...]:
    """Return what changes when a file that holds the network is exchanged or written."""
    stamps = map(files.stamp, weights(place))
    return tuple(each for each in stamps if each)  # whoever reads it says what is wrong with it
