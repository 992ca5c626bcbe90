"""What our training costs over the same training in plain Keras: the article's, on drawn photos.

In: nothing. Both train the network `small` by the article's pipeline on the same photos in one
process, in turn, so that a noisy machine is noisy for both. Out, on standard output: seconds and
CPU seconds of an epoch after the first (which compiles), ours with log, weights and progress
written, theirs with nothing, and the ratio pair by pair.

    python benchmarks/training.py --pairs 3 --epochs 4
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from fieldmark import article, console, reproduction, run, train
from fieldmark.backend import keras
from fieldmark.draw import birds
from fieldmark.feed import specification
from fieldmark.network import build
from fieldmark.recipe import ARTICLE, Recipe


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Takes the time at the end of every epoch, behind the other callbacks' work."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[float, float]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note wall and CPU time."""
        self.times.append((time.monotonic(), time.process_time()))

    def per_epoch(self) -> tuple[float, float]:
        """Return the mean of the epochs after the first: wall seconds, CPU seconds."""
        (wall, cpu), (last_wall, last_cpu) = self.times[0], self.times[-1]
        count = len(self.times) - 1
        return (last_wall - wall) / count, (last_cpu - cpu) / count


def measure(recipe: Recipe, photos: Path, folder: Path | None) -> tuple[float, float]:
    """Return wall and CPU seconds an epoch, with our callbacks where a folder is given."""
    keras.utils.set_random_seed(0)
    training, validation = article.pipeline(*article.read_photos(photos, recipe))
    network = build(recipe.network, image_size=recipe.image_size, classes=4)
    article.compile_network(network, recipe)
    clock = Clock()
    callbacks: list[Any] = [clock]
    with console.meter("Training", recipe.epochs * len(training)) as shown:
        if folder is not None:
            kept = run.create(
                folder,
                recipe=recipe,
                environment={},
                classes=[],
                specification=specification(recipe),
                records=(),
            )
            record = reproduction.Logger(recipe, train.keeper_of(kept), network)
            callbacks = [record, reproduction.Progress(shown, recipe.epochs), clock]
        network.fit(
            training,
            validation_data=validation,
            epochs=recipe.epochs,
            verbose=0,
            callbacks=callbacks,
        )
    return clock.per_epoch()


def main() -> None:
    """Time the pairs and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console.be_quiet()
    recipe = ARTICLE.changed(network="small", image_size=64, batch_size=16, epochs=options.epochs)
    with tempfile.TemporaryDirectory() as temporary:
        photos = birds(Path(temporary) / "birds", per_class=100, size=64)
        ratios = []
        for pair in range(options.pairs):
            ours = measure(recipe, photos, Path(temporary) / f"run{pair}")
            theirs = measure(recipe, photos, None)
            ratios.append((ours[0] / theirs[0], ours[1] / theirs[1]))
            print(
                f"pair {pair}  ours {ours[0]:.2f} s, {ours[1]:.2f} CPU s  "
                f"plain Keras {theirs[0]:.2f} s, {theirs[1]:.2f} CPU s",
                flush=True,
            )
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"ours / plain Keras, median of {len(ratios)}: {wall:.2f} wall, {cpu:.2f} CPU")


if __name__ == "__main__":
    main()
