"""What was wrong with the article: each of its flaws taken out of it, and put into the reference.

In: a folder of photos, one sub-folder a class; without one, birds are drawn. Out: a line a training
in `results.jsonl`, with its log, recipe, environment and the hash of the source, and the table.
Each training is `fieldmark train` in a process of its own, by way of `exchange.py`. What is in the
file is not trained again, so that the same command goes on with what was stopped:

    python experiments/flaws/run.py train flowers --name flowers4 --take 141 \
        --classes daisy dandelion roses sunflowers --out build/flaws
    python experiments/flaws/run.py train --out build/flaws
    python experiments/flaws/run.py table --out build/flaws

That is the small version, of 96 pixels; the full one, for a GPU, is `--side 224`, on JAX or PyTorch
with KERAS_BACKEND set. `--width 32` is a network of half the article's width: a third of the work.
`--core 1` keeps to one core. `table` writes Markdown, of every set of photos and sizes there is.

A difference is paired: the same seed, split and photos, with the flaw and without. Its interval is
Student's over the seeds, of which there must be three. Photos within a pair are not counted as
independent trials: they are the same ones, and one network called them all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from changes import BASES, CHANGES, Change, recipe

from fieldmark.console import duration
from fieldmark.files import whole_folder
from fieldmark.findings import wilson
from fieldmark.run import open_run

HERE = Path(__file__).parent
SETTING = ("photos", "side", "width", "epochs", "precision", "backend")
LOGGED = ("loss", "accuracy", "val_loss", "val_accuracy")  # of an epoch; the rest is the machine's
Line = dict[str, Any]

# ---- training -----------------------------------------------------------------------------------


class Training(NamedTuple):
    """One line to be of the results."""

    name: str
    flaws: frozenset[str]
    seed: int


def queue(seeds: Sequence[int], only: Sequence[str]) -> Iterator[Training]:
    """Yield all trainings, seed by seed, none twice; the two bases come first."""
    chosen = [change for change in CHANGES if not only or change.name in only]
    for seed in seeds:
        seen: set[frozenset[str]] = set()
        wanted = list(BASES.items())
        for change in chosen:
            for base, flaws in BASES.items():
                sign = "-" if flaws & change.flaws else "+"
                wanted.append((f"{base} {sign} {change.name}", change.other(flaws)))
        for name, flaws in wanted:
            if flaws not in seen:
                yield Training(name, flaws, seed)
                seen.add(flaws)


def train(training: Training, photos: Path, setting: Line, out: Path) -> Line | None:
    """Train in a process of its own; return its figures, or none where the loss was no number."""
    run = out / "runs" / f"{setting['photos']} {training.seed} {training.name}".replace(" ", "_")
    shutil.rmtree(run, ignore_errors=True)  # of a training that was stopped
    run.parent.mkdir(parents=True, exist_ok=True)
    values = recipe(
        training.flaws,
        seed=training.seed,
        **{name: setting[name] for name in ("side", "epochs", "precision")},
    )
    file = run.with_suffix(".json")
    file.write_text(values.model_dump_json())
    command = [sys.executable, str(HERE / "exchange.py"), ",".join(sorted(training.flaws))]
    command += [str(setting["width"]), "train", str(photos), "--recipe", str(file)]
    began = time.monotonic()
    with run.with_suffix(".txt").open("w") as told:
        process = subprocess.Popen(
            [*command, "--out", str(run)], stdout=told, stderr=subprocess.STDOUT
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    if os.waitstatus_to_exitcode(status):
        said = run.with_suffix(".txt").read_text()
        if "the loss is no number" in said:
            return None
        sys.exit(f"{training.name} failed:\n{said}")
    found = open_run(run)
    environment = json.loads(found.environment.read_text())
    log = [
        {name: value and round(value, 5) for name, value in line.items() if name in LOGGED}
        for line in found.read_log()
    ]
    line = {
        "accuracy": log[-1]["val_accuracy"],
        "loss": log[-1]["val_loss"],
        "validation": sum(row.split == "validation" for row in found.read_split()),
        "cpu": round(used.ru_utime + used.ru_stime, 1),
        "wall": round(time.monotonic() - began, 1),
        "log": log,
        "recipe": values.model_dump(),
        "environment": {
            k: v for k, v in environment.items() if k not in ("command", "photos", "machine")
        },
    }
    shutil.rmtree(run)  # all that is wanted of it is in the line
    return line


def train_all(options: argparse.Namespace) -> None:
    """Train whatever is missing."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
        threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(threads, "1"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    setting = {
        "photos": options.name,
        **{name: getattr(options, name) for name in SETTING[1:-1]},
        "backend": backend,
    }
    photos = selection(options)
    file = options.out / "results.jsonl"
    done = {key(line) for line in read(file)}
    wanted = list(queue(options.seeds, options.only))
    left = [one for one in wanted if key(setting, one.flaws, one.seed) not in done]
    print(f"{len(wanted)} trainings, {len(left)} of them to do", flush=True)
    took: list[float] = []
    for place, training in enumerate(left, start=1):
        began = time.monotonic()
        found = train(training, photos, setting, options.out)
        line = {
            **setting,
            "name": training.name,
            "seed": training.seed,
            "flaws": sorted(training.flaws),
            **(found or {"accuracy": None, "loss": None}),
            "source": source(),
        }
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        took.append(time.monotonic() - began)
        rest = statistics.median(took) * (len(left) - place)
        figures = "a loss was no number"
        if line["accuracy"] is not None and found:
            figures = f"accuracy {found['accuracy']:.3f}, loss {found['loss']:.3f}"
        print(
            f"{place}/{len(left)} {training.name}, seed {training.seed}: {figures}, "
            f"{took[-1]:.0f} s; {duration(rest)} left",
            flush=True,
        )


def selection(options: argparse.Namespace) -> Path:
    """Return the folder to train on: linked from the first photos of some classes, or drawn."""
    folder: Path = options.out / options.name
    if folder.exists():
        return folder
    if options.photos is None:
        words = ["draw", str(folder), "--per-class", "100", "--size", str(2 * options.side)]
        subprocess.run([sys.executable, "-m", "fieldmark", *words], check=True)
        return folder
    names = options.classes or sorted(e.name for e in options.photos.iterdir() if e.is_dir())
    with whole_folder(folder) as partial:
        for name in names:
            (partial / name).mkdir()
            for photo in sorted((options.photos / name).iterdir())[: options.take or None]:
                (partial / name / photo.name).symlink_to(photo.absolute())
    return folder


def source() -> str:
    """Return a hash of all code that a training runs."""
    ours = [HERE / f"{name}.py" for name in ("changes", "exchange", "networks")]
    files = [*ours, *(HERE.parents[1] / "src" / "fieldmark").glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def key(line: Line, flaws: frozenset[str] | None = None, seed: int = 0) -> tuple[Any, ...]:
    """Return what no two lines have in common."""
    setting = tuple(line[name] for name in SETTING)
    if flaws is None:
        return (*setting, frozenset(line["flaws"]), line["seed"])
    return (*setting, flaws, seed)


def read(file: Path) -> list[Line]:
    """Return the lines of the results, none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ---- the table ----------------------------------------------------------------------------------


class Difference(NamedTuple):
    """What the flaw does: with it less without it, the mean over the seeds."""

    mean: float
    low: float  # of a 95 % interval; minus infinity of fewer than three seeds
    high: float
    n: int

    def __str__(self) -> str:
        """Write it for people."""
        if not self.n:
            return ""
        interval = f" ({self.low:+.2f} to {self.high:+.2f})" if math.isfinite(self.low) else ""
        return f"{self.mean:+.2f}{interval}"


def difference(values: Sequence[float]) -> Difference:
    """Return the mean of paired differences with Student's interval (Student 1908)."""
    from scipy import stats

    if not values:
        return Difference(math.nan, -math.inf, math.inf, 0)
    mean = statistics.mean(values)
    if len(values) < 3:
        return Difference(mean, -math.inf, math.inf, len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return Difference(mean, mean - reach, mean + reach, len(values))


def effect(lines: Sequence[Line], change: Change, base: str, figure: str) -> Difference:
    """Return what a change does to a figure in one of the bases; `lines` are of one setting."""
    if change.other(BASES[base]) == BASES[base]:
        return difference([])
    found = {(frozenset(line["flaws"]), line["seed"]): line[figure] for line in lines}
    sides = sorted((BASES[base], change.other(BASES[base])), key=lambda flaws: -len(flaws))
    pairs = [
        [found.get((flaws, seed)) for flaws in sides] for seed in {line["seed"] for line in lines}
    ]
    return difference([a - b for a, b in pairs if a is not None and b is not None])


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Write what every change does, in Markdown; `lines` are of one setting."""
    yield (
        "| flaw | what it is | expected | in the article: accuracy | loss | "
        "in the reference: accuracy | loss | n |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    rows = []
    for change in CHANGES:
        found = [
            effect(lines, change, base, figure) for base in BASES for figure in ("accuracy", "loss")
        ]
        there = [each.mean for each in found[::2] if each.n]
        if there:
            counts = sorted({each.n for each in found[::2]})
            n = " and ".join(str(found[place].n) for place in (0, 2)[: len(counts)])
            cells = (change.name, change.says, change.expected, *found, n)
            rows.append((statistics.mean(there), f"| {' | '.join(map(str, cells))} |"))
    for _, row in sorted(rows):
        yield row


def sides(lines: Sequence[Line]) -> Iterator[str]:
    """Write what the two bases come to, and the two flaws that the logs alone tell of."""
    for name, flaws in BASES.items():
        found = [
            {**line, "log": [epoch for epoch in line["log"] if epoch["val_loss"] is not None]}
            for line in lines
            if frozenset(line["flaws"]) == flaws and line["accuracy"] is not None
        ]
        if not found:
            continue
        scores = [line["accuracy"] for line in found]
        count = found[0]["validation"]
        low, high = wilson(statistics.mean(scores), count)
        best = [
            max(line["log"], key=lambda e: (e["val_accuracy"], -e["val_loss"])) for line in found
        ]
        kept = difference(
            [line["accuracy"] - b["val_accuracy"] for line, b in zip(found, best, strict=True)]
        )
        steps = [
            abs(later["val_accuracy"] - before["val_accuracy"])
            for line in found
            for before, later in zip(line["log"], line["log"][1:], strict=False)
        ]
        small = sum(step < (high - low) / 2 for step in steps)
        yield (
            f"- The {name}: accuracy {statistics.mean(scores):.3f} after the last epoch "
            f"({', '.join(f'{score:.3f}' for score in scores)}; n = {len(found)}), loss "
            f"{statistics.mean(line['loss'] for line in found):.3f}. Last epoch kept and not the "
            f"best: {kept}, at most, as the best is picked on the same photos. {count} validation "
            f"photos: one accuracy's interval is {100 * (high - low):.0f} points wide (Wilson), "
            f"and {small} of {len(steps)} changes from epoch to epoch are less than half of that."
        )


def show(options: argparse.Namespace) -> None:
    """Print the tables of all settings in the results."""
    lines = read(options.out / "results.jsonl")
    settings = dict.fromkeys(tuple(line[name] for name in SETTING) for line in lines)
    for setting in settings:
        these = [line for line in lines if tuple(line[name] for name in SETTING) == setting]
        photos, side, width, epochs, precision, backend = setting
        print(
            f"\n### {photos}, {side} px, {width} filters in the first stage, {epochs} epochs, "
            f"{precision} on {backend}; {len(these)} trainings\n"
        )
        print("\n".join(sides(these)), end="\n\n")
        print(
            "Validation accuracy and loss after the last epoch, with the flaw less without it: the "
            "mean over n seeds, and its 95 % interval from three seeds on. The worst first.\n"
        )
        print("\n".join(table(these)))


def main() -> None:
    """Train, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("photos", type=Path, nargs="?", help="without any, birds are drawn")
    parser.add_argument("--out", type=Path, required=True, help="where the results are")
    parser.add_argument("--name", default="birds", help="what the results call the photos")
    parser.add_argument("--classes", nargs="*", default=[])
    parser.add_argument("--take", type=int, default=0, help="photos a class; 0: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], choices=[c.name for c in CHANGES])
    parser.add_argument("--side", type=int, default=96, help="pixels; 224 is the article's")
    parser.add_argument("--width", type=int, default=64, help="64 is the article's")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.what == "train":
        train_all(options)
    show(options)


if __name__ == "__main__":
    main()
