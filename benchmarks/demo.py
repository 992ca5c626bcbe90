"""How well the demo does, over several seeds, beside logistic regression on the same photos.

In: nothing. Each seed draws its own photos and trains for a minute and a half, as `make demo` does.
Out, on standard output: the validation accuracy of each seed, and mean and standard deviation.

    python benchmarks/demo.py --per-class 150 --seeds 5
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from raw_pixels import accuracy, pixels

from fieldmark import console
from fieldmark.draw import birds
from fieldmark.train import choose, fit

MINUTES = 1.5  # as the Makefile's


def main() -> None:
    """Train once a seed and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--per-class", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    console.be_quiet()
    network, raw = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            began = time.monotonic()
            photos = birds(
                Path(temporary) / f"birds{seed}", per_class=options.per_class, size=64, seed=seed
            )
            recipe = choose(photos, minutes=MINUTES, seed=seed)
            run = fit(recipe, photos, Path(temporary) / f"run{seed}")
            seconds = time.monotonic() - began
            network.append(run.read_log()[-1]["averaged_val_accuracy"] or 0.0)
            raw.append(accuracy(*pixels(photos, blank=False), seed))
            figures = f"network {network[-1]:.3f}, {seconds:.0f} s  raw pixels {raw[-1]:.3f}"
            print(f"seed {seed}  {figures}", flush=True)
    for name, scores in (("network", network), ("raw pixels", raw)):
        print(
            f"{name:10}  mean {np.mean(scores):.3f}  sd {np.std(scores, ddof=1):.3f}  "
            f"n {len(scores)}  chance 0.250"
        )


if __name__ == "__main__":
    main()
