r"""Make the weights `fractals`: draw fractals, train the network that few photos need on them.

In: nothing. Out: `fractals.weights.h5` in the folder `--out`, in float16, without the classifier,
by the two commands that are printed. What is drawn or trained already is not done again.

    python benchmarks/fractals.py --out build/fractals
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

from fieldmark import weights
from fieldmark.backend import keras
from fieldmark.network import build

DRAW = "--fractals 200 --per-class 100 --size 96"
TRAIN = (
    "--recipe scratch --image-size 96 --begin-size 64 --end-size 96 --epochs 10 --batch-size 32 "
    "--augment 0.2 --precision bfloat16 --validation-split 0.02"
)


def fieldmark(words: str) -> None:
    """Run a command line of fieldmark, and show it."""
    print(f"fieldmark {words}", flush=True)
    subprocess.run([sys.executable, "-m", "fieldmark", *shlex.split(words)], check=True)


def main() -> None:
    """Draw, train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pictures, run = options.out / "pictures", options.out / "run"
    made = options.out / weights.FRACTALS_FILE.name
    options.out.mkdir(parents=True, exist_ok=True)
    if not pictures.exists():
        fieldmark(f"draw {shlex.quote(str(pictures))} {DRAW}")
    fieldmark(f"train {shlex.quote(str(pictures))} {TRAIN} --out {shlex.quote(str(run))}")

    keras.config.set_dtype_policy("float16")
    network = build(weights.FRACTALS_NETWORK, image_size=None, include_top=False)
    weights.load(network, run / "best.keras")
    network.save_weights(made)
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    print(f"{made}: {made.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")


if __name__ == "__main__":
    main()
