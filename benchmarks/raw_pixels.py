"""How far raw pixels alone go on the drawn birds: logistic regression on 32 x 32 pixels.

In: nothing; sets are drawn into a temporary folder, one a seed. Out, on standard output: the
accuracy on photos held out, for the whole photo and with the bird blanked out (the surroundings
alone should say nothing about the species), as mean and standard deviation over the seeds.

    python benchmarks/raw_pixels.py --per-class 60 --size 64 --seeds 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fieldmark.draw import birds

SIDE = 32
GREY = (128, 128, 128)


def blanked(photo: Image.Image, box: list[int]) -> Image.Image:
    """Hide the bird under a grey square, for the shape of its box would name the species."""
    left, top, right, bottom = box
    half = (
        max(right - left, bottom - top) / 2 + photo.width / 12
    )  # blur and JPEG spread its colours
    x, y = (left + right) / 2, (top + bottom) / 2
    hidden = photo.copy()
    hidden.paste(GREY, (int(x - half), int(y - half), int(x + half + 1), int(y + half + 1)))
    return hidden


def pixels(folder: Path, *, blank: bool) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Read a drawn set as raw pixels, (n, 32 * 32 * 3), and its classes, (n,)."""
    photos = json.loads((folder / "field_marks.json").read_text(encoding="utf-8"))["photos"]
    rows = []
    for name, truth in photos.items():
        photo = Image.open(folder / name).convert("RGB")
        if blank:
            photo = blanked(photo, truth["bird"]["box"])
        small = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # Pillow's is antialiased
        rows.append(np.asarray(small, dtype=np.float32).ravel())
    return np.stack(rows), np.array([truth["species"] for truth in photos.values()])


def accuracy(x: NDArray[np.float32], y: NDArray[np.str_], seed: int) -> float:
    """Fit on 80 %, with the penalty chosen there by 5-fold cross-validation; score on the rest."""
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=seed
    )
    model = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        {"logisticregression__C": [1e-5, 1e-4, 1e-3, 1e-2]},
        cv=5,
    )
    return float(model.fit(train_x, train_y).score(test_x, test_y))


def main() -> None:
    """Draw a set a seed, measure, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            folder = birds(
                Path(temporary) / str(seed),
                per_class=options.per_class,
                size=options.size,
                seed=seed,
            )
            for blank, scores in found.items():
                scores.append(accuracy(*pixels(folder, blank=blank), seed))
    for blank, scores in found.items():
        spread = np.std(scores, ddof=1) if len(scores) > 1 else float("nan")
        what = "bird blanked out" if blank else "whole photo"
        print(
            f"{what:17} mean {np.mean(scores):.3f}  sd {spread:.3f}  n {len(scores)}  chance 0.250"
        )


if __name__ == "__main__":
    main()
