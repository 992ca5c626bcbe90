"""What the decoded cache costs and gives, beside the article's float32 `cache()`.

In: nothing. Reads the flowers of `../shared/data` where they are, else drawn photos. Each memory
is measured in a process of its own, by what the kernel says of it (Linux): anonymous memory, which
nobody else can have, and memory that maps a file, which the kernel takes back when it needs it.
The rates take turns in one process. Out, on standard output: bytes and memory a photo, and photos
a second of building, finding again and reading at random.

    python benchmarks/cache.py --photos 400 --rounds 5
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fieldmark import cache, console, draw, images

FLOWERS = Path(__file__).parents[2] / "shared" / "data" / "flowers"
FLOAT32 = 224 * 224 * 3 * 4  # bytes of a photo in the article's cache
SIDES = (224, 256)


def spec(size: int) -> images.ImageSpec:
    """Return the specification of the whole photo at a size."""
    return images.ImageSpec(size=size, mode="squash", interpolation="bilinear", scaling="0..255")


def listed(folder: Path) -> list[cache.Item]:
    """Return all photos of a folder with their hashes."""
    paths = sorted(folder.glob("*/*.jpg"))
    return [cache.Item(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def prepared(folder: Path, count: int) -> None:
    """Fill a folder with `count` photos of two classes or more."""
    flowers = sorted(FLOWERS.glob("*/*.jpg"))
    if not flowers:
        draw.birds(folder, per_class=count // 4, size=500)
        return
    for file in flowers[:: max(1, len(flowers) // count)][:count]:
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).symlink_to(file)


# ---- memory -------------------------------------------------------------------------------------


def memory() -> tuple[int, int]:
    """Return this process' anonymous and file-backed bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (x.split(":") for x in lines)}
    return sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]


def ours(folder: Path, place: Path, size: int) -> None:
    """Print what a cache that was built before adds to the memory when all of it is read."""
    items = listed(folder)
    console.be_quiet()
    before = memory()
    built = cache.build(items, spec(size), folder=place)
    total = sum(int(row.sum()) for row in built.pixels)
    after = memory()
    print(len(items), *(b - a for a, b in zip(before, after, strict=True)), built.bytes, total)


def article(folder: Path) -> None:
    """Print what the article's cache adds to the memory."""
    import keras

    photos = keras.utils.image_dataset_from_directory(
        folder, image_size=(224, 224), batch_size=8, shuffle=False, verbose=False
    )
    count = len(photos.file_paths)
    for _ in photos.take(4):  # what reading takes by itself
        pass
    before = memory()
    kept = photos.cache()
    for _ in range(2):
        total = sum(float(np.sum(batch)) for batch, _ in kept)
    after = memory()
    print(count, *(b - a for a, b in zip(before, after, strict=True)), 0, int(total))


def measured(*words: str | Path) -> list[int]:
    """Run one of the two above in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return [int(word) for word in done.stdout.splitlines()[-1].split()]


def memories(folder: Path, place: Path) -> None:
    """Print the memory a photo, ours beside the article's."""
    head = f"{'on disk':>10}{'anonymous':>11}{'file':>10}{'of float32':>12}"
    print(f"\n{'bytes a photo':30}{head}")
    count, anonymous, file, *_ = measured("article", folder)
    show = "{:30}{:10,}{:11,}{:10,}{:12.3f}  n = {}"
    name = "the article's cache(), 224 px"
    print(
        show.format(name, 0, anonymous // count, file // count, anonymous / count / FLOAT32, count)
    )
    for size in SIDES:
        cache.build(listed(folder), spec(size), folder=place)
        count, anonymous, file, disk, _ = measured("ours", folder, place, str(size))
        each = (disk // count, anonymous // count, file // count)
        print(show.format(f"fieldmark, {size} px", *each, disk / count / FLOAT32, count))


# ---- rates --------------------------------------------------------------------------------------


def one(path: str, how: images.ImageSpec) -> bytes:
    """Read one photo, as a process of a pool does."""
    return images.read(Path(path).read_bytes(), how).tobytes()


def rates(folder: Path, place: Path, rounds: int) -> None:
    """Print photos a second of each way, and the ratio to a plain loop in the same round."""
    items, how = listed(folder), spec(256)
    paths = [str(item.path) for item in items]
    cores = len(os.sched_getaffinity(0))
    random = np.random.default_rng(0).permutation(len(items))

    def loop() -> None:
        for path in paths:
            one(path, how)

    def threads() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(one, paths, [how] * len(paths)))

    def build() -> None:
        cache.clear(place)
        cache.build(items, how, folder=place)

    def again() -> None:
        cache.build(items, how, folder=place)

    def file() -> Path:
        return cache.entries(place)[0].path / "pixels.npy"

    def read() -> None:
        pixels = np.load(file(), mmap_mode="r")
        for i in random:
            np.array(pixels[i])

    def forget() -> None:
        """Make the kernel drop the file from memory, which it does where nobody maps it."""
        with file().open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    with ProcessPoolExecutor(cores) as pool:

        def processes() -> None:
            list(pool.map(one, paths, [how] * len(paths), chunksize=8))

        ways: dict[str, Callable[[], None]] = {
            "images.read in a loop": loop,
            f"the same, {cores} threads": threads,
            f"the same, {cores} processes": processes,
            "cache.build": build,
            "cache.build, built earlier": again,
            "rows at random": read,
            "rows at random, from the disk": read,
        }
        processes()  # they start, and import
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                if name.endswith("disk"):
                    forget()
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    print(f"\n256 px, n = {len(items)}, {rounds} rounds{'':12}photos/s  ratio to the loop (range)")
    loops = seconds["images.read in a loop"]
    for name, spent in seconds.items():
        ratios = sorted(a / b for a, b in zip(loops, spent, strict=True))
        print(
            f"{name:36}{len(items) / statistics.median(spent):12,.0f}  "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    size = 256 * 256 * 3 * len(items) / 1e9
    print(f"verified at {size / statistics.median(seconds['cache.build, built earlier']):.1f} GB/s")


def main(words: Sequence[str]) -> None:
    """Run the benchmark, or the one measurement that it asks of another process."""
    warnings.simplefilter("ignore")
    if words[:1] == ["article"]:
        return article(Path(words[1]))
    if words[:1] == ["ours"]:
        return ours(Path(words[1]), Path(words[2]), int(words[3]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    console.be_quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder, place = Path(temporary, "photos"), Path(temporary, "cache")
        prepared(folder, arguments.photos)
        memories(folder, place)
        rates(folder, place, arguments.rounds)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
