r"""How fast workers answer a lake of photos, beside one process and the bare engine; how flat.

In: nothing, or an export and the drawn photos' side. Draws photos, trains a tiny network for one
epoch, exports it, and makes folders of links to the photos. Each way is measured in processes of
its own, in turn. Out, on standard output: photos a second as medians over the rounds, from the
first row to the last and with the start and the end; processor time a photo of all processes that
take part; and what the process that writes has in memory at two sizes of folder. All is deleted.

    python benchmarks/lake.py --photos 20000 --lake 200000 --rounds 3

The bare engine computes squares that lie in memory ready, on all cores, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark import answers, console, draw, lake
from fieldmark.predict import Classifier

BARE, ALONE = "the bare engine", "one process"
MARK = "FIELDMARK_LAKE"  # in the environment of all that take part
PER_CLASS = 24  # photos drawn; the links go to them in turn


def make(place: Path, *, side: int, network: int) -> Path:
    """Draw photos of so many pixels, and return an export of a network that sees so many."""
    from fieldmark.export import export
    from fieldmark.recipe import ARTICLE
    from fieldmark.train import fit

    photos = draw.birds(place / "drawn", per_class=PER_CLASS, size=side)
    recipe = ARTICLE.changed(
        network="small", pipeline="batches", image_size=network, batch_size=16, epochs=1
    )
    return export(fit(recipe, photos, place / "run").folder, "openvino")


def linked(place: Path, folder: Path, count: int) -> Path:
    """Make a folder of so many links, 1,000 in each below it."""
    drawn = sorted((place / "drawn").rglob("*.jpg"))
    for i in range(count):
        below = folder / f"{i // 1000:04}"
        if i % 1000 == 0:
            below.mkdir(parents=True)
        os.symlink(drawn[i % len(drawn)], f"{below}/{i:07}.jpg")  # noqa: PTH211 - `Path` keeps names
    return folder


# ---- in a process of its own --------------------------------------------------------------------


def bare(model: Path, folder: Path, count: int) -> dict[str, Any]:
    """Compute squares that are there."""
    classifier = Classifier.load(model)
    some = sorted(folder.rglob("*.jpg"))[: answers.BATCH]
    squares = np.stack([classifier.square(path.read_bytes()) for path in some])
    classifier.engine(squares)
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(-(-count // len(squares))):
        classifier.engine(squares)
    seconds = time.perf_counter() - began
    return {"steady": count / seconds, "spent": (time.process_time() - busy) / count}


def predicted(model: Path, folder: Path, count: int, workers: int) -> dict[str, Any]:
    """Predict a folder into a CSV, and watch it from the first rows to the last."""
    first: dict[str, float] = {}
    memory: list[float] = []
    busy: list[tuple[float, int]] = []  # seconds of processor, rows
    rows = 0

    def watched(found: Iterator[Any], size: Any) -> Iterator[Any]:
        nonlocal rows
        for each in found:
            if not first:
                first.update(at=time.perf_counter(), rows=size(each))
            rows += size(each)
            if len(memory) <= 20 * rows // count:  # twenty times on the way
                memory.append(resident())
                busy.append((spent(), rows))
            if rows >= count:
                first.update(last=time.perf_counter())
            yield each

    out = folder.parent / f"{folder.name}-{workers}.csv"
    began = time.perf_counter()
    if workers:
        stream = lake.stream
        lake.stream = lambda *a, **k: watched(stream(*a, **k), lambda f: len(f[0]))
        account = lake.predict(model, [folder], workers=workers, csv=out)
    else:
        account = answers.predict(
            Classifier.load(model),
            [folder],
            csv=out,
            work=lambda *a: watched(answers.work_here(*a), len),  # type: ignore[arg-type]
        )
    seconds = time.perf_counter() - began
    assert account.answers.total() == count, account
    with out.open("rb") as file:
        assert sum(1 for _ in file) == count + 1
    out.unlink()
    # Workers that are gone have taken theirs along: until the most was counted.
    (busy_first, rows_first), (busy_last, rows_last) = busy[0], max(busy)
    return {
        "steady": (count - first["rows"]) / (first["last"] - first["at"]),
        "whole": count / seconds,
        "spent": (busy_last - busy_first) / (rows_last - rows_first),
        "memory": memory,
        "peak": status("VmHWM"),
    }


def status(name: str) -> float:
    """Return a figure of this process' memory, in MB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition(f"{name}:")[2].split()[0]) / 1e3


def resident() -> float:
    """Return what this process has in memory, in MB."""
    return status("VmRSS")


def spent() -> float:
    """Return the processor's seconds of this process and of all that began with it.

    Ray's processes have other parents, and the mark; its workers have written over theirs, and have
    those for parents.
    """
    mark = f"{MARK}={os.environ[MARK]}\0".encode()
    ours, parents, ticks = set[int](), dict[int, int](), dict[int, int]()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            facts = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            process = int(place.name)
            parents[process], ticks[process] = int(facts[1]), int(facts[11]) + int(facts[12])
            if mark in (place / "environ").read_bytes():
                ours.add(process)
        except OSError:  # it has ended, or is somebody else's
            continue
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks.get(process, 0) for process in ours) / os.sysconf("SC_CLK_TCK")


# ---- all together -------------------------------------------------------------------------------


def measured(model: Path, folder: Path, count: int, way: str) -> dict[str, Any]:
    """Measure a way in a process of its own."""
    words = [sys.executable, __file__, "--measure", str(model), str(folder), str(count), way]
    marked = os.environ | {MARK: uuid.uuid4().hex}
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, env=marked)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print a row a way."""
    print("| way | photos/s, first row to last | photos/s, all | processor ms a photo |")
    print("| --- | --- | --- | --- |")
    for way, rounds in found.items():
        steady = [each["steady"] for each in rounds]
        whole = statistics.median([each.get("whole", 0) for each in rounds])
        busy = statistics.median([each["spent"] for each in rounds])
        print(
            f"| {way} | {statistics.median(steady):,.0f} ({min(steady):,.0f} to "
            f"{max(steady):,.0f}) | {f'{whole:,.0f}' if whole else '-'} | {1000 * busy:.2f} |"
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=20_000, help="for the throughput")
    parser.add_argument("--lake", type=int, default=200_000, help="for the memory; 0: leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=128, help="of the drawn photos, in pixels")
    parser.add_argument("--network", type=int, default=32, help="the side that the network sees")
    parser.add_argument("--model", type=Path, help="an export to measure with")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model, folder, count, way = options.measure
        console.be_quiet()
        if way == BARE:
            found = bare(Path(model), Path(folder), int(count))
        else:
            workers = 0 if way == ALONE else int(way.split()[0])
            found = predicted(Path(model), Path(folder), int(count), workers)
        print(json.dumps(found))
        return
    place = Path(tempfile.mkdtemp(prefix="lake-"))
    console.be_quiet()
    try:
        made = make(place, side=options.side, network=options.network)
        run(place, options.model or made, options)
    finally:
        shutil.rmtree(place)


def run(place: Path, model: Path, options: argparse.Namespace) -> None:
    """Measure throughput and memory, and print them."""
    cores = len(os.sched_getaffinity(0))
    print(
        f"{options.photos:,} photos of {options.side} px, {options.rounds} rounds, {cores} cores; "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    photos = linked(place, place / "photos", options.photos)
    ways = [BARE, ALONE, *(f"{n} workers" for n in options.workers)]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for i in range(options.rounds):
        for way in ways[:: 1 if i % 2 else -1]:
            found[way].append(measured(model, photos, options.photos, way))
    table(found)
    if not options.lake:
        return
    way = ways[-1]
    for count, folder in (
        (options.photos, photos),
        (options.lake, linked(place, place / "lake", options.lake)),
    ):
        told = measured(model, folder, count, way)
        at = told["memory"]
        print(
            f"{count:,} photos, {way}: the writing process has {at[0]:.0f} MB at the first rows, "
            f"{at[len(at) // 4]:.0f} after a quarter, {at[-1]:.0f} at the last, "
            f"{told['peak']:.0f} at most; {told['steady']:,.0f} photos/s, {told['whole']:,.0f} "
            "with start and end"
        )


if __name__ == "__main__":
    main()
