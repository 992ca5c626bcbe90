"""Make the generated pages and pictures of the docs anew: `make docs`, which runs the demo first.

Out: `docs/cli.md` from the command line's own code, and the pictures that the tool draws.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark import cli, draw, fractals, network, species, train
from fieldmark.recipe import SCRATCH

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
TILE = 224  # pixels


def contact_sheet(columns: int, *, seed: int) -> Image.Image:
    """Draw a row of photos for each species."""
    sheet = Image.new("RGB", (columns * TILE, len(species.SPECIES) * TILE))
    for row, name in enumerate(species.SPECIES):
        for column in range(columns):
            rng = np.random.default_rng([seed, row, column])
            photo, _ = draw.picture(name, size=TILE, rng=rng)
            sheet.paste(photo, (column * TILE, row * TILE))
    return sheet


def fractal_sheet(kinds: int, columns: int) -> Image.Image:
    """Draw a row of pictures for each of the first kinds that the weights have learned."""
    rows = []
    for number in range(kinds):
        kind = fractals.kind_of(np.random.default_rng([0, number]))
        rngs = (np.random.default_rng([0, number, column]) for column in range(columns))
        pictures = [np.asarray(fractals.picture(kind, size=96, rng=rng)) for rng in rngs]
        rows.append(np.hstack(pictures))
    return Image.fromarray(np.vstack(rows))


def main() -> None:
    """Write each file."""
    (DOCS / "cli.md").write_text(cli.reference(), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    contact_sheet(6, seed=2).resize((1008, 672)).save(PICTURES / "drawn_birds.jpg", quality=88)
    fractal_sheet(6, 10).save(PICTURES / "drawn_fractals.jpg", quality=86)
    demo = DOCS.parent / "build" / "demo"
    with Image.open(demo / "run" / "figures" / "predictions.png") as figure:
        figure.convert("RGB").resize((1000, 500)).save(PICTURES / "predictions.jpg", quality=86)
    sheet = demo / "preview.png"
    seen = SCRATCH.changed(begin_size=64, end_size=64, image_size=64, mixup=0.2, cutmix=1.0)
    train.preview_only(seen, demo / "birds", sheet)
    with Image.open(sheet) as figure:
        figure.convert("RGB").resize((1000, 900)).save(PICTURES / "preview.jpg", quality=84)
    for name in ("article", "resnet50v2"):
        network.draw(network.build(name, classes=4), PICTURES / f"network_{name}.svg")


if __name__ == "__main__":
    main()
