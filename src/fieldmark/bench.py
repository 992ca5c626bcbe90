"""How fast a model answers on this machine, how much memory it takes and how soon it is there.

In: a run, which is measured beside each of its exports, or one export; photos, or none for those
that the run held out, or else drawn ones. Out: a table, the figures as JSON, and `bench.json` in
each export. `fieldmark bench MODEL [PHOTO ...]`

Each model has a process of its own (`stopwatch`). They take turns, so that a busy machine is busy
for all, and ratios are those of one round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.table import Table

from fieldmark import answers, files, sources, threads
from fieldmark.console import meter, printed, say, size
from fieldmark.draw import birds
from fieldmark.errors import FieldmarkError
from fieldmark.formats import UnreadableImage
from fieldmark.images import decode
from fieldmark.manifest import BENCH, MANIFEST
from fieldmark.predict import weights
from fieldmark.run import Run, is_run

STOPWATCH = ("-m", "fieldmark.stopwatch")
ROUNDS = 10
A_ROUND = 20  # photos answered one by one in a round
BATCHES = (1, 8, 32)
STARTS = 3  # processes begun to measure a cold start
PHOTOS = 40  # more are not kept in memory
DRAWN = 500  # pixels, the side of a drawn photo


@dataclass
class Watched:
    """A model in its process, and what it has said of itself."""

    place: Path
    process: subprocess.Popen[str]
    log: IO[str]  # what the process says on standard error
    starts: list[tuple[float, float]]  # seconds and CPU seconds of each cold start
    first: dict[str, Any]
    latencies: list[dict[str, Any]] = field(default_factory=list)  # one a round
    throughputs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by batch size
    last: dict[str, Any] = field(default_factory=dict)

    def ask(self, question: str, number: int = 0) -> dict[str, Any]:
        """Ask for a measurement and wait for it."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        with suppress(BrokenPipeError):  # `heard` says why
            self.process.stdin.write(json.dumps([question, number]) + "\n")
            self.process.stdin.flush()
        return heard(self.place, self.process, self.log)


def bench(
    model: str | os.PathLike[str], photos: Sequence[Path] = (), *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Measure a model, and the exports of a run; return the figures as plain data.

    Raises a FieldmarkError where the model cannot answer; an export that cannot is left out, and
    that is said.
    """
    if rounds < 1:
        raise FieldmarkError(f"{rounds} rounds: ask for one at least.")
    first = Path(model).absolute()
    with ExitStack() as stack:
        drawn = stack.enter_context(tempfile.TemporaryDirectory())
        source, chosen = _photos(first, photos, Path(drawn))
        shown = {"n": len(chosen), "from": source, "bytes": _mean_size(chosen)}
        watched = [stack.enter_context(_watched(first, chosen))]
        for place in _exports(first):
            try:
                watched.append(stack.enter_context(_watched(place, chosen)))
            except FieldmarkError as error:
                say(f"Left out: {error}")
        _measure(watched, rounds)
    facts = {
        "photos": shown,
        "rounds": rounds,
        "processors": threads.processors(),
        "machine": platform.platform(),
        "python": platform.python_version(),
    }
    figures = [_figures(each, watched[0]) for each in watched]
    for each, found in zip(watched, figures, strict=True):
        if not is_run(each.place):
            try:
                files.write_json(each.place / BENCH, {**facts, **found})
            except FieldmarkError as error:
                say(f"The figures are not kept with the export: {error}")
    return {**facts, "models": figures}


def table(found: dict[str, Any]) -> str:
    """Lay out the figures for a terminal."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    titles = ("p50 ms", "p99 ms", "reading", "CPU ms", "times", *(f"{b}/s" for b in BATCHES))
    grid.add_column("model", overflow="fold")
    for title in (*titles, "memory", "disk", "start s"):
        grid.add_column(title, justify="right", no_wrap=True)
    for each in found["models"]:
        one, many = each["one_photo"], each["batches"]
        grid.add_row(
            each["name"],
            *(f"{one[name]:.1f}" for name in ("p50_ms", "p99_ms", "reading_ms", "cpu_ms")),
            f"{one['times_as_fast']:.2f}",
            *(f"{many[str(b)]['photos_per_second']:.0f}" for b in BATCHES),
            size(each["memory"]["resident"]) if each["memory"]["resident"] else "",
            size(each["disk"]),
            f"{each['cold_start']['seconds']:.1f}",
        )
    photos, one = found["photos"], found["models"][0]["one_photo"]
    return printed(
        [
            grid,
            "",
            f"{one['n']} answers of {photos['n']} photos ({photos['from']}, "
            f"{size(photos['bytes'])} each) in {found['rounds']} rounds, all models in turn, "
            f"{found['processors']} processors",
            "p50, p99: from a file's bytes to the answer; reading: the part until it is decoded; "
            "CPU: of all cores, mean",
            f"times: as fast as the first, rounds paired; {', '.join(f'{b}/s' for b in BATCHES)}: "
            "photos a second in batches, decoded before",
            "start: from a new process to its first answer",
        ]
    )


# ---- what is measured ---------------------------------------------------------------------------


def _photos(model: Path, named: Sequence[Path], drawn: Path) -> tuple[str, list[Path]]:
    """Return where the photos are from, and some of them: named, held out by the run, or drawn."""
    if named:
        with sources.opened(named, BytesIO()) as items:
            found = list(islice((Path(item.path) for item in items if _readable(item)), PHOTOS))
        if not found:
            raise FieldmarkError(f"{named[0]} holds no photo: name one, or a folder of them.")
        return "named", found
    for place in (model, model.parent.parent):  # an export lies in its run
        if is_run(place):
            run = Run(place)
            rows = [row.path for row in run.read_split() if row.split != "training"]
            there = [file for file in map(run.photo, rows) if files.is_file(file)]
            if there:
                return "held out", there[:: -(-len(there) // PHOTOS)]
    return "drawn", sorted(birds(drawn / "birds", per_class=5, size=DRAWN).rglob("*.jpg"))


def _readable(item: sources.Item) -> bool:
    """Tell whether a file is a photo; raises a FieldmarkError for one that was named and is not."""
    try:
        content = None if item.skipped else answers.content(item)
        if content is not None:
            decode(content)
    except (UnreadableImage, OSError) as error:
        if item.named:
            raise FieldmarkError(f"{item.path} {error}: name another photo.") from error
        return False
    return content is not None


def _exports(model: Path) -> list[Path]:
    """Return the folders of a run's exports."""
    folder = Run(model).exports
    if not is_run(model) or not folder.is_dir():
        return []
    return sorted(place for place in folder.iterdir() if (place / MANIFEST).is_file())


def _mean_size(photos: Sequence[Path]) -> int:
    return round(statistics.mean(photo.stat().st_size for photo in photos))


# ---- measuring ----------------------------------------------------------------------------------


@contextmanager
def _watched(place: Path, photos: Sequence[Path]) -> Iterator[Watched]:
    """Start a model some times, and give the last of its processes."""
    starts = list[tuple[float, float]]()
    with ExitStack() as stack:
        for _ in range(STARTS):
            stack.close()  # the one before
            began = time.perf_counter()
            process, log = stack.enter_context(_process(place, photos))
            first = heard(place, process, log)
            starts.append((time.perf_counter() - began, first["cpu"]))
        yield Watched(place, process, log, starts, first)


@contextmanager
def _process(
    place: Path, photos: Sequence[Path]
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Start a stopwatch; at the end of the block it is told to end and waited for."""
    words = [sys.executable, *STOPWATCH, str(place), *map(str, photos)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            yield process, log
        finally:
            with suppress(BrokenPipeError):  # it ended before; `heard` says so
                process.stdin.close()


def heard(place: Path, process: subprocess.Popen[str], log: IO[str]) -> dict[str, Any]:
    """Return the next line of a stopwatch; raises a FieldmarkError where it has ended."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    line = process.stdout.readline()
    if not line:
        process.wait()
        log.seek(0)
        said = log.read().strip().splitlines() or [f"its process ended with {process.returncode}."]
        raise FieldmarkError(said[-1] if "Error" not in said[-1] else f"{place}: {said[-1]}")
    found: dict[str, Any] = json.loads(line)
    return found


def _measure(watched: Sequence[Watched], rounds: int) -> None:
    """Let all models answer in turn; the first round of single photos warms up and is left out."""
    with meter("Measuring", (rounds + 1) * len(watched)) as shown:
        for i in range(rounds + 1):
            for each in watched[:: 1 if i % 2 else -1]:
                latency = each.ask("latency", A_ROUND)
                if i:
                    each.latencies.append(latency)
                for batch in BATCHES if i else ():
                    each.throughputs.setdefault(batch, []).append(each.ask("throughput", batch))
                shown.advance(note=each.place.name)
    for each in watched:
        each.last = each.ask("memory")


def _figures(each: Watched, first: Watched) -> dict[str, Any]:
    """Return all figures of a model."""
    whole = np.array([found["whole"] for found in each.latencies])  # (rounds, photos), seconds
    reference = np.array([found["whole"] for found in first.latencies])
    reading = np.array([found["reading"] for found in each.latencies])
    backend = each.first["backend"]
    return {
        "name": f"the run ({backend})" if is_run(each.place) else each.place.name,
        "model": str(each.place),
        "backend": backend,
        "one_photo": {
            "p50_ms": 1000 * float(np.quantile(whole, 0.5)),
            "p99_ms": 1000 * float(np.quantile(whole, 0.99)),
            "reading_ms": 1000 * float(np.quantile(reading, 0.5)),
            "cpu_ms": 1000 * sum(found["cpu"] for found in each.latencies) / whole.size,
            "n": whole.size,
            "times_as_fast": float(
                np.median(np.median(reference, axis=1) / np.median(whole, axis=1))
            ),
        },
        "batches": {
            str(batch): {
                "photos_per_second": statistics.median(r["photos"] / r["seconds"] for r in found),
                "cpu_ms": 1000 * statistics.median(r["cpu"] / r["photos"] for r in found),
                "n": sum(r["photos"] for r in found),
            }
            for batch, found in each.throughputs.items()
        },
        "memory": {"resident": each.first["resident"], "peak": each.last["peak"]},  # bytes
        "disk": sum(file.stat().st_size for file in weights(each.place)),  # bytes
        "cold_start": {
            "seconds": statistics.median(seconds for seconds, _ in each.starts),
            "cpu_seconds": statistics.median(cpu for _, cpu in each.starts),
            "n": len(each.starts),
        },
    }
