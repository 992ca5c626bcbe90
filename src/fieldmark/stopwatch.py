"""One model in a process of its own, which measures itself when it is asked to.

In: a model and photos on the command line, then a question a line on standard input. Out: a line of
JSON as soon as there is the first answer, and one for each question. It imports what answering
takes and nothing else, so that the time until the first line is a cold start. `bench` runs it:

    python -m fieldmark.stopwatch MODEL PHOTO ...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark.errors import FieldmarkError
from fieldmark.predict import Classifier

LEAST = 0.3  # seconds that a throughput is measured for at least


def answered(classifier: Classifier, photos: Sequence[bytes]) -> Iterator[Any]:
    """Yield what is to be printed: after the first answer, then for each line of standard input."""
    classifier.predict(photos[:1])
    yield {"backend": classifier.backend, "cpu": time.process_time(), **memory()}
    squares = [classifier.square(photo) for photo in photos]
    for line in sys.stdin:
        question, number = json.loads(line)
        if question == "latency":
            yield latency(classifier, photos, number)
        elif question == "throughput":
            rows = [squares[i % len(squares)] for i in range(number)]
            yield throughput(classifier, np.stack(rows))
        else:
            yield memory()


def latency(classifier: Classifier, photos: Sequence[bytes], number: int) -> dict[str, Any]:
    """Answer photos one by one: seconds from bytes to the answer, and to the square, of each."""
    whole, reading = list[float](), list[float]()
    spent = time.process_time()
    for i in range(number):
        began = time.perf_counter()
        square = classifier.square(photos[i % len(photos)])
        read = time.perf_counter()
        classifier.answers(square[None])
        whole.append(time.perf_counter() - began)
        reading.append(read - began)
    return {"whole": whole, "reading": reading, "cpu": time.process_time() - spent}


def throughput(classifier: Classifier, batch: NDArray[np.uint8]) -> dict[str, Any]:
    """Answer a batch of squares over and over, after once to warm up: how many photos, seconds."""
    classifier.answers(batch)
    photos, spent, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < LEAST:
        classifier.answers(batch)
        photos += len(batch)
    seconds = time.perf_counter() - began
    return {"photos": photos, "seconds": seconds, "cpu": time.process_time() - spent}


def memory() -> dict[str, int | None]:
    """Return the bytes of memory that the process has and has had at most, where Linux tells."""
    found: dict[str, int | None] = {"resident": None, "peak": None}
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                kilobytes = int(value.split()[0])
                found["resident" if name == "VmRSS" else "peak"] = 1024 * kilobytes
    return found


def main(place: str, *photos: str) -> None:
    """Load the model, answer, and print a line of JSON for each answer."""
    try:
        contents = [Path(photo).read_bytes() for photo in photos]
        for found in answered(Classifier.load(place), contents):
            print(json.dumps(found), flush=True)
    except FieldmarkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
