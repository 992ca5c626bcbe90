"""How long a folder of photos takes to be listed, hashed and split, and with how much memory.

In: nothing. Makes folders of photos under a temporary place: some drawn JPEGs over and over, each
with a tail of random bytes behind the photo, so that no two files are the same. Each folder is
measured in processes of their own, after one reading that leaves it in the system's memory as far
as that goes. Out, on standard output: seconds of each step, MB a second, and the peak memory; two
sizes of folder show what of it grows. The folders are deleted.

    python benchmarks/listing.py --photos 5000 50000 --megabytes 0.1 --rounds 3
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fieldmark import console, draw
from fieldmark.data import list_photos, sha256s
from fieldmark.split import assign, write

CLASSES = 50
DRAWN = 20


def make(folder: Path, photos: int, size: int) -> None:
    """Write `photos` files of `size` bytes, in `CLASSES` folders."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWN):
        file = io.BytesIO()
        draw.picture("Bananaquit", size=200, rng=rng)[0].save(file, "JPEG")
        drawn.append(file.getvalue())
    for i in range(photos):
        path = folder / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = drawn[i % DRAWN]
        path.write_bytes(photo + rng.bytes(max(16, size - len(photo))))


def measure(folder: Path) -> dict[str, float]:
    """List, hash and split; return the seconds of each and the memory in MB."""
    console.be_quiet()
    before = peak()
    times = [time.perf_counter()]
    photos = list_photos(folder)
    times.append(time.perf_counter())
    hashes = sha256s(photos)
    times.append(time.perf_counter())
    records = assign(photos, hashes, validation=0.2, test=0.1, seed=0)
    write(folder.with_suffix(".csv"), records)
    times.append(time.perf_counter())
    steps = dict(zip(("list", "hash", "split"), np.diff(times).tolist(), strict=True))
    return {**steps, "processor": time.process_time(), "before": before, "peak": peak()}


def peak() -> float:
    """Return the most memory that this process has had, in MB."""
    # Not getrusage, which on Linux counts what the process had before it became this program.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def report(folder: Path, rounds: int) -> None:
    """Measure a folder `rounds` times, each in a process of its own, and print the medians."""
    sizes = [file.stat().st_size for file in folder.glob("*/*")]
    for file in folder.glob("*/*"):
        file.read_bytes()
    words = [sys.executable, __file__, "--measure", str(folder)]
    runs = [
        json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
        for _ in range(rounds)
    ]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    totals = [run["list"] + run["hash"] + run["split"] for run in runs]
    seconds, gigabytes = statistics.median(totals), sum(sizes) / 1e9
    print(
        f"{len(sizes):,} photos, {gigabytes:.2f} GB, {rounds} rounds: "
        f"list {middle['list']:.1f} s, hash {middle['hash']:.1f} s, split {middle['split']:.1f} s; "
        f"together {seconds:.1f} s ({min(totals):.1f} to {max(totals):.1f}), "
        f"{sum(sizes) / 1e6 / seconds:.0f} MB/s, {10 * seconds / gigabytes:.0f} s for 10 GB; "
        f"processor {middle['processor']:.1f} s; "
        f"memory {middle['before']:.0f} MB at first, {middle['peak']:.0f} MB at most"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--megabytes", type=float, default=0.1, help="of each photo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(f"{os.cpu_count()} processors, {CLASSES} classes")
    for photos in arguments.photos:
        place = Path(tempfile.mkdtemp(prefix="listing-"))
        try:
            make(place / "photos", photos, int(arguments.megabytes * 1e6))
            report(place / "photos", arguments.rounds)
        finally:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
