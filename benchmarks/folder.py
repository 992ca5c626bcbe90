r"""How fast a folder of photos becomes a CSV of answers, ours beside the usual loop of Keras.

In: a run, exports of it, and a folder of photos (JPEG or PNG, which is what Keras lists). Out, on
standard output: photos a second and CPU seconds a photo as medians over the rounds, and the ratio
to Keras' loop round by round. All take turns in one process, each with its model loaded before; a
first round warms up and is left out. It ends after `--rounds`, or with the round in which
`--minutes` are over.

    fieldmark export runs/first --format openvino --int8
    python benchmarks/folder.py runs/first runs/first/export/openvino-int8 --photos photos

The loop is what people write: `image_dataset_from_directory`, `model.predict` a batch, a row a
photo. `predict` of the whole dataset at once is beside it, which is kinder to Keras.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fieldmark import answers, console
from fieldmark.backend import keras
from fieldmark.predict import Classifier
from fieldmark.run import Run, open_run

LOOP = "Keras, a loop"
BATCH = 32
Way = Callable[[Path, Path], None]  # photos, the CSV


class Keras:
    """The run's network as Keras' own tools use it."""

    def __init__(self, run: Run) -> None:
        self.network = keras.saving.load_model(run.best, compile=False)
        self.classes = run.read_classes()
        self.specification = run.read_specification()

    def dataset(self, photos: Path) -> Any:
        """Return the photos as batches of the network's input."""
        side = self.specification.size
        found = keras.utils.image_dataset_from_directory(
            photos, labels=None, shuffle=False, image_size=(side, side), batch_size=BATCH, verbose=0
        )
        white, black = {"0..255": (255, 0), "0..1": (1, 0), "-1..1": (1, -1)}[
            self.specification.scaling
        ]
        paths = found.file_paths
        scaled = found.map(lambda batch: batch / 255 * (white - black) + black)
        scaled = scaled.prefetch(tf.data.AUTOTUNE)
        scaled.file_paths = paths
        return scaled

    def loop(self, photos: Path, out: Path) -> None:
        """Predict batch by batch."""
        dataset = self.dataset(photos)
        found = [self.network.predict(batch, verbose=0) for batch in dataset]
        self.write(out, dataset.file_paths, np.concatenate(found))

    def at_once(self, photos: Path, out: Path) -> None:
        """Predict the dataset in one call."""
        dataset = self.dataset(photos)
        self.write(out, dataset.file_paths, self.network.predict(dataset, verbose=0))

    def write(self, out: Path, paths: Iterable[str], logits: Any) -> None:
        """Write a row a photo."""
        probabilities = tf.nn.softmax(logits).numpy()
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "answer", *self.classes])
            for path, row in zip(paths, probabilities, strict=True):
                writer.writerow([path, self.classes[row.argmax()], *row.tolist()])


def ours(place: Path) -> Way:
    """Return what `fieldmark predict` does, with the model loaded."""
    classifier = Classifier.load(place)

    def way(photos: Path, out: Path) -> None:
        answers.predict(classifier, [photos], csv=out)

    return way


def main() -> None:
    """Let all ways take turns, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("exports", type=Path, nargs="*")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    console.be_quiet()
    theirs = Keras(open_run(options.run))
    ways: dict[str, Way] = {LOOP: theirs.loop, "Keras, at once": theirs.at_once}
    ways["fieldmark, the run"] = ours(options.run)
    ways |= {f"fieldmark, {place.name}": ours(place) for place in options.exports}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    photos, end = 0, time.perf_counter() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as temporary:
        for i in range(options.rounds + 1):
            if i > 1 and time.perf_counter() > end:
                break
            for name in list(ways)[:: 1 if i % 2 else -1]:
                out = Path(temporary) / "answers.csv"
                out.unlink(missing_ok=True)
                began, busy = time.perf_counter(), time.process_time()
                ways[name](options.photos, out)
                if i:
                    seconds[name].append(time.perf_counter() - began)
                    spent[name].append(time.process_time() - busy)
                rows = len(out.read_text(encoding="utf-8").splitlines()) - 1
                assert photos in (0, rows), f"{name} has {rows} rows, others {photos}"
                photos = rows
    cores = len(os.sched_getaffinity(0))
    rounds, load = len(seconds[LOOP]), os.getloadavg()[0]
    print(f"{photos} photos, {rounds} rounds, {cores} cores; load {load:.1f}")
    print("| way | photos/s | CPU ms a photo | times as fast, wall | times as fast, CPU |")
    print("| --- | --- | --- | --- | --- |")
    for name in ways:
        print(
            f"| {name} | {photos / statistics.median(seconds[name]):.1f} "
            f"| {1000 * statistics.median(spent[name]) / photos:.2f} "
            f"| {ratio(seconds[LOOP], seconds[name])} | {ratio(spent[LOOP], spent[name])} |"
        )


def ratio(reference: list[float], other: list[float]) -> str:
    """Write the median of the rounds' ratios, and the lowest and the highest."""
    found = sorted(a / b for a, b in zip(reference, other, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


if __name__ == "__main__":
    main()
