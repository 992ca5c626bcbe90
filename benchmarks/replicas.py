r"""What does Ray Serve cost, and what do clients feel of a new model and of a replica that dies?

In: an export and photos. Out: a table on standard output; its last line is JSON.

    python benchmarks/replicas.py run/export/openvino photos

- One replica against `fieldmark serve`: the same clients, each asking again as soon as it is
  answered, one photo a request. They take turns, and each pair has its ratio of answers a second,
  of p99, and of processor a request, clients left out. While one is measured the other has nothing
  to do, for which Ray's processes still take a little.
- Two replicas under the same load, and meanwhile three new models by SIGHUP: how many answers were
  no 200 or no answer.
- Two replicas under the same load, of which one is killed: the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from serving import CORES, Load, load, request_of, spread

PLAIN = ("-m", "fieldmark", "serve", "--port", "0")
SHARED = (*PLAIN, "--ray", "--replicas")


@contextmanager
def serving(words: Sequence[str], model: Path) -> Iterator[tuple[int, int]]:
    """Run a server until the block ends; gives its port and its process."""
    process = subprocess.Popen(
        [sys.executable, *words[:3], str(model), *words[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Serving at"):
                yield int(line.split(":")[2].split()[0]), process.pid
                break
        else:
            sys.exit("The server has not started.")
    finally:
        process.terminate()  # it alone: it ends Ray's processes itself
        process.wait(120)


def family(process: int) -> dict[int, tuple[str, float]]:
    """Return all processes of a server, with their names and the seconds that they have taken."""
    found: dict[int, tuple[int, str, float]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(") ")[2].split()
            name = (file.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        taken = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found[int(file.parent.name)] = (int(fields[1]), name, taken)

    def ours(each: int) -> bool:
        return each == process or (each in found and ours(found[each][0]))

    return {each: (name, taken) for each, (_, name, taken) in found.items() if ours(each)}


def processor(process: int) -> float:
    """Return the seconds of processor that a server has taken."""
    return sum(taken for _, taken in family(process).values())


def against_one(asked: argparse.Namespace, requests: Sequence[bytes]) -> dict[str, list[float]]:
    """Compare one replica with the plain server."""
    found: dict[str, list[float]] = {"rate": [], "p99": [], "processor": [], "plain": []}
    with serving(PLAIN, asked.model) as plain, serving((*SHARED, "1"), asked.model) as shared:
        for port, _ in (plain, shared):
            load(port, requests, clients=asked.clients, count=100)
        for _ in range(asked.pairs):
            both = []
            for port, process in (plain, shared):
                before = processor(process)
                under = load(port, requests, clients=asked.clients, seconds=asked.seconds)
                assert not under.failed + under.broken
                cost = (processor(process) - before) / len(under.seconds)
                both.append((under.rate, float(np.percentile(under.seconds, 99)), cost))
            for i, name in enumerate(("rate", "p99", "processor")):
                found[name].append(both[1][i] / both[0][i])
            found["plain"].append(both[0][0])
    print(f"`fieldmark serve`, {asked.clients} clients  {statistics.median(found['plain']):.0f} "
          f"answers/s, n = {asked.pairs} turns of {asked.seconds:g} s")  # fmt: skip
    print(f"one replica: answers/s     {spread(found['rate'])} of it")
    print(f"one replica: p99           {spread(found['p99'])} times it")
    print(f"one replica: processor     {spread(found['processor'])} times it")
    return found


def during(
    port: int, requests: Sequence[bytes], asked: argparse.Namespace, event: Callable[[], None]
) -> Load:
    """Have something happen in the midst of a load."""
    happening = threading.Timer(asked.seconds / 4, event)
    happening.start()
    found = load(port, requests, clients=asked.clients, seconds=2 * asked.seconds)
    happening.join()
    return found


def version(port: int) -> str:
    """Return which model answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/fieldmark") as answer:
        return str(json.load(answer)["versions"][0])


def told(what: str, found: Load) -> dict[str, float]:
    """Print what clients felt."""
    p50, p99 = 1000 * np.percentile(found.seconds, (50, 99))
    most = 1000 * max(found.seconds)
    print(f"{what}: {found.failed} of {len(found.seconds)} answers no 200, {found.broken} broken "
          f"off; p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {most:.0f} ms")  # fmt: skip
    return {"answers": len(found.seconds), "failed": found.failed, "broken": found.broken,
            "p50": p50, "p99": p99, "most": most}  # fmt: skip


def with_two(asked: argparse.Namespace, requests: Sequence[bytes]) -> dict[str, object]:
    """Exchange the model, and kill a replica, under load."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(asked.model, model)
        manifest = model / "manifest.json"
        original = json.loads(manifest.read_text())
        with serving((*SHARED, "2"), model) as (port, process):
            load(port, requests, clients=asked.clients, count=100)
            versions = [version(port)]

            def exchange() -> None:
                for turn in range(3):
                    classes = [f"{each} {turn}" for each in original["classes"]]
                    manifest.write_text(json.dumps({**original, "classes": classes}))
                    os.kill(process, signal.SIGHUP)
                    while (now := version(port)) in versions:  # whichever replica answers
                        time.sleep(0.01)
                    versions.append(now)

            exchanged = told("three new models", during(port, requests, asked, exchange))
            assert len(set(versions)) == 4

            def kill() -> None:
                running = family(process).items()
                os.kill(next(i for i, (name, _) in running if "ServeReplica" in name), 9)

            killed = told("a replica killed", during(port, requests, asked, kill))
    return {"exchanged": exchanged, "killed": killed}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What does Ray Serve cost?")
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5, help="each measurement")
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(asked.photos.rglob("*.jpg"))[:256:4]]
    requests = [request_of(each) for each in photos]
    kilobytes = statistics.mean(map(len, photos)) / 1000
    print(f"{len(photos)} photos of {kilobytes:.0f} kB on average; {CORES} cores")
    found: dict[str, object] = {"cores": CORES, "photos": len(photos)}
    found |= {"one": against_one(asked, requests), **with_two(asked, requests)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
