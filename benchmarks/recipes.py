r"""The article against our recipes, on the same photos, splits and seeds: accuracy and time.

In: a folder of photos, one sub-folder a class. Out: a line a training in `results.jsonl` in the
folder `--out`, and a table on standard output. Each training is `fieldmark train` in a process of
its own, timed by wall and by the CPU seconds that the system charges to it, start and reading
included. What is in the file already is not trained again, so that it can be stopped at any time,
and one contestant after another can be added.

    python benchmarks/recipes.py flowers --take 141 --classes daisy dandelion roses sunflowers \
        --out build/flowers4 --pairs 5 --only article "10 min" "1 min"

A pair is a seed and a split by Keras' own rule, which both sides get file for file; the first is
the article's own, of seed 123. With `--group-by` the splits are ours, which keep groups together,
and the article is trained over our batches: its network, steps and rate, another reader.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fieldmark.findings import wilson

SPLITS = (123, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # the article's first


def flags_of(name: str, pair: int, group_by: str) -> list[str]:
    """Return what `fieldmark train` is told: `article`, or `3 min` for what it chooses itself."""
    flags = ["--seed", str(pair), "--split-seed", str(SPLITS[pair])]
    if group_by:
        flags += ["--split", "stratified", "--group-by", group_by]
    elif name != "article":
        flags += ["--split", "article"]
    if name == "article":
        ours = ["--pipeline", "batches"] if group_by else []
        return ["--recipe", "article", *ours, *flags]
    words = name.split()
    extra = list(words[2:])  # such as --precision float32
    return ["--minutes", words[0], *extra, *flags]


def train(photos: Path, run: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own; return its figures and what it took."""
    command = [sys.executable, "-m", "fieldmark", "train", str(photos), "--out", str(run), *flags]
    began = time.perf_counter()
    with (run.parent / f"{run.name}.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(command)} failed: {run}.txt says why")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = (run / "split.csv").read_text().splitlines()
    last = next(line for line in reversed(lines) if "val_accuracy" in line)
    count = sum(",validation," in row for row in rows)
    return {
        "accuracy": last.get("averaged_val_accuracy", last["val_accuracy"]),
        "best": max(
            line[name] or 0
            for line in lines
            for name in ("val_accuracy", "averaged_val_accuracy")
            if name in line
        ),
        "validation": count,
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "epochs": len(lines),
        "recipe": json.loads((run / "recipe.json").read_text()),
        "environment": json.loads((run / "environment.json").read_text()),
    }


def selection(photos: Path, classes: Sequence[str], take: int, folder: Path) -> Path:
    """Link the first photos of some classes into a folder, in the order of their names."""
    names = classes or sorted(each.name for each in photos.iterdir() if each.is_dir())
    for name in names:
        (folder / name).mkdir(parents=True)
        for photo in sorted((photos / name).iterdir())[: take or None]:
            (folder / name / photo.name).symlink_to(photo.absolute())
    return folder


def table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Write a row for each contestant; the interval is Wilson's of all validation photos."""
    yield (
        f"{'':28}{'n':>3}{'accuracy':>10}{'sd':>7}{'lowest':>8}{'95 % of all':>14}"
        f"{'wall, s':>9}{'CPU, s':>9}{'epochs':>8}"
    )
    for name in names:
        found = [each for each in results if each["name"] == name]
        if not found:
            continue
        scores = [each["accuracy"] for each in found]
        count = sum(each["validation"] for each in found)
        right = round(sum(each["accuracy"] * each["validation"] for each in found))
        low, high = wilson(right / count, count)
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        yield (
            f"{name:28}{len(found):3}{statistics.mean(scores):10.3f}{spread:7.3f}"
            f"{min(scores):8.3f}{low:8.3f}-{high:.3f}"
            f"{statistics.mean(each['wall'] for each in found):9.0f}"
            f"{statistics.mean(each['cpu'] for each in found):9.0f}"
            f"{statistics.mean(each['epochs'] for each in found):8.0f}"
        )


def main() -> None:
    """Train whatever is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", nargs="*", default=[])
    parser.add_argument("--take", type=int, default=0, help="photos a class; 0: all")
    parser.add_argument("--pairs", type=int, nargs="+", default=[5], help="how many, or which")
    parser.add_argument("--only", nargs="+", default=["article", "10 min", "1 min"])
    parser.add_argument("--group-by", default="")
    options = parser.parse_args()
    pairs = options.pairs if len(options.pairs) > 1 else range(options.pairs[0])
    pairs = dict.fromkeys(pairs)  # so that `--pairs 3 3` is the pair 3 alone
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(each["name"], each["pair"]) for each in results}
    with tempfile.TemporaryDirectory() as temporary:
        photos = selection(
            options.photos, options.classes, options.take, Path(temporary) / "photos"
        )
        for pair in pairs:
            for name in options.only:
                if (name, pair) in done:
                    continue
                run = options.out / f"{name.replace(' ', '-')}-{pair}"
                shutil.rmtree(run, ignore_errors=True)  # of a training that was stopped
                found = train(photos, run, flags_of(name, pair, options.group_by))
                results.append({"name": name, "pair": pair, **found})
                with file.open("a") as lines:
                    lines.write(json.dumps(results[-1]) + "\n")
                print(
                    f"{name}, pair {pair}: {found['accuracy']:.3f} of {found['validation']}, "
                    f"{found['wall']:.0f} s of wall, {found['cpu']:.0f} s of CPU",
                    flush=True,
                )
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    names = list(dict.fromkeys([*options.only, *(each["name"] for each in results)]))
    print("\n".join(table(results, names)))


if __name__ == "__main__":
    main()
