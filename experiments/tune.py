r"""Does a search find a better recipe than the rule's? Both trained anew, where neither was picked.

In: a folder of photos, one sub-folder a class. Out: a line a training in `results.jsonl` in the
folder `--out`, and on standard output what the search promised and what came of it. First
`fieldmark tune` searches. Then the best recipe and the one that the rule chose are trained with
seeds and splits that the search has not seen, each pair on the same ones, and compared on the
photos held out. The photos are the same, so that a little of the flattery stays: a recipe was
picked by some of those that are held out now. What is there is not trained again.

    python experiments/tune.py flowers4 --out build/tune --trials 24 --pairs 3 \
        --flags --image-size 96 --epochs 10
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from fieldmark.compare import compare
from fieldmark.trials import Search, figures, open_search

FIRST = 1000  # the first seed and split: the search has 0 and 123
NAMES = ("chosen", "best")


def run(*words: str | Path) -> float:
    """Run a command of fieldmark; return the CPU seconds that it took."""
    command = [sys.executable, "-m", "fieldmark", *map(str, words)]
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime


def pair(photos: Path, folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """Train both recipes on one split with one seed, and yield what is known of each."""
    seeds = ("--seed", str(FIRST + number), "--split-seed", str(FIRST + number))
    runs = [folder / f"{name}-{number}" for name in NAMES]
    cpu = [
        run("train", photos, "--recipe", folder / f"{name}.toml", "--out", place, *seeds)
        for name, place in zip(NAMES, runs, strict=True)
    ]
    for place in runs:
        run("evaluate", place)
    found = compare([str(place) for place in runs])
    for name, result, seconds in zip(NAMES, found.results, cpu, strict=True):
        yield {
            **{"name": name, "pair": number, "photos": found.photos, "cpu": seconds},
            **{"accuracy": result.accuracy, "log_loss": result.log_loss},
            "sentence": found.differences[0].sentence,
        }


def interval(values: Sequence[float]) -> str:
    """Write a mean with Student's interval of 95 %."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def report(search: Search, results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Write what the search promised, and what came of it."""
    best = search.best
    if best is None:
        raise SystemExit("No trial was trained to its end.")
    states = [trial.state for trial in search.ended]
    seconds = sum(trial.seconds for trial in search.ended)
    yield (
        f"search: {len(states)} trials, {states.count('stopped')} stopped early, "
        f"{seconds:.0f} s of training on one thread each"
    )
    yield f"  trial 0, chosen by the rule: {figures(search.trials[0])}"
    yield f"  trial {best.number}, the best: {figures(best)}"
    if best.number == 0:
        yield "nothing was better than the rule's recipe: there is nothing to compare"
        return
    for name in NAMES:
        of = [each for each in results if each["name"] == name]
        scores = [each["accuracy"] for each in of]
        yield (
            f"{name:8} n = {len(of)}, {of[0]['photos']} photos each: accuracy "
            f"{statistics.mean(scores):.3f} ({' '.join(f'{score:.3f}' for score in scores)}), "
            f"log loss {statistics.mean(each['log_loss'] for each in of):.3f}, "
            f"CPU {statistics.mean(each['cpu'] for each in of):.0f} s"
        )
    by = {(each["name"], each["pair"]): each for each in results}
    pairs = sorted({each["pair"] for each in results})
    for figure in ("accuracy", "log_loss"):
        gains = [by["best", n][figure] - by["chosen", n][figure] for n in pairs]
        yield f"best less chosen, {figure}: {interval(gains)}, n = {len(pairs)} pairs"
    yield from (f"  pair {n}: {by['best', n]['sentence']}" for n in pairs)


def main() -> None:
    """Search, train whatever is missing, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of fieldmark tune")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / "search"
    counts = ("--trials", str(options.trials), "--workers", str(options.workers))
    run("tune", options.photos, "--out", place, *counts, *options.flags)
    search = open_search(place)
    (options.out / "chosen.toml").write_text(f"{search.plan.chosen}\n", encoding="utf-8")
    (options.out / "best.toml").write_bytes(search.recipe.read_bytes())
    file = options.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {each["pair"] for each in results}
    for number in range(options.pairs if search.best and search.best.number else 0):
        if number not in done:
            found = list(pair(options.photos, options.out, number))
            results += found
            with file.open("a") as lines:
                lines.write("".join(json.dumps(each) + "\n" for each in found))
    print("\n".join(report(search, results)))


if __name__ == "__main__":
    main()
