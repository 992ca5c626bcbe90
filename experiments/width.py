"""`fieldmark`, with a network of another width or depth in the place of `resnet26v2_half`.

In: the width of the first stage, the blocks of the stages, and a command line of `fieldmark`. It
is how the width was chosen; `LOG.md` has what was seen.

    python experiments/width.py 32 2,2,2,2 train flowers4 --recipe scratch --out build/width32
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Literal

from fieldmark import cli, network, resnet_v2

NAME: Literal["resnet26v2_half"] = "resnet26v2_half"


def main() -> None:
    """Exchange the network and run the command."""
    width, blocks, *words = sys.argv[1:]
    resnet_v2.DEPTHS[NAME] = tuple(int(count) for count in blocks.split(","))  # type: ignore[assignment]
    network.BUILDERS[NAME] = partial(resnet_v2.network, NAME, filters=int(width))
    cli.main(words)


if __name__ == "__main__":
    main()
