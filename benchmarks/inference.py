r"""How fast does one photo become an answer: the article's way, Keras, and the exports of a run.

In: a run, its exports in `RUN/export`, and photos. Out: tables on standard output; the last line is
JSON. All ways take their turns in one process, photo after photo, so that what else the machine
does falls on all alike; each ratio is the middle of the ratios of such pairs.

    fieldmark export RUN --format openvino
    fieldmark export RUN --format openvino --int8
    fieldmark export RUN --format onnx
    python benchmarks/inference.py RUN [--photos 40] [--starts 5] [--threads 1] [--minutes 5]

It ends: each of the three tables has a third of the minutes, and stops after three rounds or more
where that is over; how many there were is said.

- One photo, bytes to answer: reading and computing. "article" is its `model.predict` on a batch of
  one; what it reads is read here as everywhere, in our favour or against it by a millisecond.
- A batch of squares: what one engine computes in int8 against float32.
- Cold start: a process from nothing to its first answer, over the run and over an export.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fieldmark import images
from fieldmark.manifest import MANIFEST
from fieldmark.predict import Classifier
from fieldmark.run import open_run
from fieldmark.trained import Trained

BATCH = 16
LEAST = 3  # rounds
START = """
import sys
from pathlib import Path
from fieldmark.predict import Classifier
Classifier.load(sys.argv[1]).predict([Path(sys.argv[2]).read_bytes()])
"""
Times = dict[str, list[float]]  # seconds, as many of each


def by_turns(
    ways: Mapping[str, Callable[[Any], object]],
    things: list[Any],
    *,
    seconds: float,
    warm: bool = True,
) -> Times:
    """Time each way on each thing, the second time that it is done; the ways take their turns.

    After so many seconds it ends, but not before `LEAST` things.
    """
    end = time.perf_counter() + seconds
    if warm:
        for way in ways.values():
            way(things[0])  # what is compiled at the first call is not counted
    taken: Times = {name: [] for name in ways}
    for count, thing in enumerate(things):
        if count >= LEAST and time.perf_counter() > end:
            break
        for name, way in ways.items():
            if warm:
                way(thing)  # the caches, and the threads that still spin, are another way's
            begun = time.perf_counter()
            way(thing)
            taken[name].append(time.perf_counter() - begun)
    return taken


def ratio(taken: Times, slow: str, fast: str) -> float:
    """Return how many times as fast, as the middle of the pairs."""
    pairs = zip(taken[slow], taken[fast], strict=True)
    return round(median(one / other for one, other in pairs), 2)


def shown(title: str, taken: Times, base: str) -> None:
    """Print a table: the middle, the fastest, and how many times as fast as the base."""
    print(f"\n{title}, n = {len(taken[base])}")
    for name, times in taken.items():
        middle, least = 1000 * median(times), 1000 * min(times)
        faster = ratio(taken, base, name)
        row = f"  {name:24} p50 {middle:9.1f} ms   fastest {least:9.1f} ms   {faster:6.2f} x"
        print(row, flush=True)


def one_photo(
    trained: Trained, exports: Mapping[str, Classifier], photos: list[bytes], *, seconds: float
) -> Times:
    """Time one photo at a time, from its bytes to an answer."""

    def read(content: bytes) -> Any:
        square = images.read(content, trained.specification)
        return images.scale(square[None], trained.specification)

    ways: dict[str, Callable[[bytes], object]] = {
        "article": lambda content: trained.network.predict(read(content), verbose=0),
        "predict_on_batch": lambda content: trained.network.predict_on_batch(read(content)),
        "the run": lambda content: trained.forward(read(content)),
    }
    ways |= {name: alone(classifier) for name, classifier in exports.items()}
    return by_turns(ways, photos, seconds=seconds)


def alone(classifier: Classifier) -> Callable[[bytes], object]:
    """Return a classifier's answer to one photo."""
    return lambda content: classifier.predict([content])


def batches(
    exports: Mapping[str, Classifier], photos: list[bytes], turns: int, *, seconds: float
) -> Times:
    """Time batches of squares; what is read is not counted."""
    any_of = next(iter(exports.values()))
    squares = np.stack([any_of.square(c) for c in islice(cycle(photos), BATCH)])
    ways = {name: each.engine for name, each in exports.items()}
    return by_turns(ways, [squares] * turns, seconds=seconds)


def starts(
    run: Path, exports: Mapping[str, Classifier], photo: Path, times: int, *, seconds: float
) -> Times:
    """Time processes from nothing to their first answer."""

    def started(place: Path) -> Callable[[Any], object]:
        command = [sys.executable, "-c", START, str(place), str(photo)]
        return lambda _: subprocess.run(command, check=True, capture_output=True)

    ways = {"the run": started(run), **{n: started(e.place) for n, e in exports.items()}}
    return by_turns(ways, [None] * times, seconds=seconds, warm=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--turns", type=int, default=15, help="batches")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5, help="in all, more or less")
    parser.add_argument("--threads", type=int, help="of the exports; without, what they take")
    parser.add_argument("--exports", nargs="+", default=[], help="without, all of them")
    asked = parser.parse_args()
    run = open_run(asked.run)
    held = [run.photo(record.path) for record in run.read_split() if record.split != "training"]
    paths = held[:: max(1, len(held) // asked.photos)][: asked.photos]
    photos = [path.read_bytes() for path in paths]
    places = sorted(path.parent for path in run.exports.glob(f"*/{MANIFEST}"))
    exports = {
        place.name: Classifier.load(place, threads=asked.threads)
        for place in places
        if place.name in (asked.exports or [each.name for each in places])
    }
    if not exports:
        sys.exit(f"{run.folder} has no exports: make them, as this file's head says.")
    trained = Trained.load(run)

    seconds = 60 * asked.minutes / 3
    single = one_photo(trained, exports, photos, seconds=seconds)
    shown("One photo, bytes to answer", single, "article")
    # Against the float32 of the same engine, whose name is the other's beginning.
    quick = {n: e for n, e in exports.items() if n.startswith("openvino")} or exports
    base = next(iter(quick))
    many = batches(quick, photos, asked.turns, seconds=seconds)
    shown(f"A batch of {BATCH} squares", many, base)
    cold = starts(  # on all threads
        run.folder, exports, paths[0], asked.starts, seconds=seconds
    )
    shown("Process start to first answer", cold, "the run")
    found = {
        "n": {
            "photos": len(single["article"]),
            "batches": len(many[base]),
            "starts": len(cold["the run"]),
        },
        "batch": BATCH,
        "one_photo": {
            name: {
                "p50_ms": round(1000 * median(times), 2),
                "against_predict": ratio(single, "article", name),
                "against_predict_on_batch": ratio(single, "predict_on_batch", name),
            }
            for name, times in single.items()
        },
        "photos_a_second": {name: round(BATCH / median(t), 1) for name, t in many.items()},
        "throughput_ratio": {name: ratio(many, base, name) for name in many},
        "start_seconds": {name: round(median(t), 2) for name, t in cold.items()},
        "start_share": {name: round(1 / ratio(cold, "the run", name), 3) for name in cold},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
