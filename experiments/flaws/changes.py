"""The article's flaws, each a named change with a claim; and what a training with some of them is.

In: a set of names. Out: `recipe`, the values that go with it; what is no value of a recipe is
`networks.py`'s and `exchange.py`'s. `ARTICLE` has every flaw that the article has, `REFERENCE`
none of them but the few epochs: each comparison takes one of the two and changes one thing in it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from exchange import NAME
from networks import NETWORK

from fieldmark import recipe as recipes

# The flaws of the training that one side has and the other has not.
TRAINING = (
    *("raw pixels", "frozen batches", "slow statistics", "moving statistics", "Glorot"),
    *("constant rate", "no decay", "no augmentation", "skipping reader", "squashed photos"),
)
# On TensorFlow in float32 the article's loss is of the logits, see `softmax.py`.
ARTICLE = frozenset((*NETWORK, *TRAINING, "few epochs"))
REFERENCE = frozenset({"few epochs"})
BASES = {"article": ARTICLE, "reference": REFERENCE}
SPLITS = (123, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # a split for each seed; the article's first
LONGER = 3  # times as many epochs, where they are not few
Expected = Literal["worse", "same"]


@dataclass(frozen=True)
class Change:
    """Flaws that come and go together, and what having them is said to do to the accuracy."""

    name: str
    says: str  # the claim
    expected: Expected  # by what is known of them, before measuring
    flaws: frozenset[str]

    def other(self, base: Set[str]) -> frozenset[str]:
        """Return what the base becomes: without these flaws where it has them, else with them."""
        return settled(base - self.flaws if base & self.flaws else base | self.flaws)


def settled(flaws: Set[str]) -> frozenset[str]:
    """Return the flaws that a training with these differs by.

    Statistics that are taken anew before each look do not hang on how fast the others move.
    """
    idle = set() if "moving statistics" in flaws else {"slow statistics"}
    return frozenset(flaws - idle)


def one(name: str, says: str, expected: Expected) -> Change:
    """Return the change of a single flaw."""
    return Change(name, says, expected, frozenset({name}))


# In the order in which they are trained: first those from which most is to be learned.
CHANGES = (
    Change("whole network", "all eight of the network together", "same", frozenset(NETWORK)),
    Change("whole training", "all ten of the training together", "worse", frozenset(TRAINING)),
    one("moving statistics", "validation uses statistics of weights that have been", "worse"),
    one("raw pixels", "pixels 0 to 255 where -1 to 1 is expected", "same"),
    one("frozen batches", "the same eight photos meet in every epoch", "worse"),
    one("constant rate", "no warm-up, and no cosine down to nothing", "worse"),
    one("Glorot", "kernels not drawn for ReLU, blocks that do not begin as nothing", "worse"),
    one("double softmax", "the loss takes a second softmax, as on JAX and PyTorch", "worse"),
    one("no augmentation", "every epoch shows the same pixels", "worse"),
    one("no decay", "Adam, where AdamW would pull weights to zero", "same"),
    one("skipping reader", "it looks at four pixels where others average over all", "worse"),
    one("squashed photos", "sides stretched to a square, not the middle cut out", "same"),
    one("slow statistics", "99 % of a moving statistic is kept at a step, not 90 %", "worse"),
    Change(
        "stale statistics",
        "slow and moving statistics together: either mends the other",
        "worse",
        frozenset({"slow statistics", "moving statistics"}),
    ),
    one("stem padding", "by 1 and not by 3: a pixel less, and a border unseen", "same"),
    one("stem normalisation", "normalised and rectified before the first block too", "same"),
    one("learned shortcuts", "no block passes its input on as it is", "worse"),
    one("raw shortcuts", "learned shortcuts read what is not normalised", "same"),
    one("fifteen blocks", "one less in the third stage", "same"),
    one("biases", "before a normalisation, which takes them out again", "same"),
    one("striding shortcuts", "learned where the reference only skips pixels", "same"),
    one("epsilon", "0.001 where the reference has 0.00001", "same"),
    one("few epochs", "a third of them", "worse"),
)


def recipe(
    flaws: Set[str],
    *,
    seed: int,
    side: int,
    epochs: int,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> recipes.Recipe:
    """Return the values of a training; where a flaw is mended they are `recipe.SCRATCH`'s.

    But for the warm-up: ten epochs bear one. Rate, batch and split are the article's on both sides.
    The pipeline is ours on both, so that a flaw of the reader or of the batches is one change.
    """
    mended = recipes.SCRATCH
    epochs *= 1 if "few epochs" in flaws else LONGER
    values: dict[str, object] = {}
    if "squashed photos" not in flaws:
        values["square"] = mended.square
    if "no augmentation" not in flaws:
        values["augment"] = mended.augment
    if "no decay" not in flaws:
        values |= {"optimiser": mended.optimiser, "weight_decay": mended.weight_decay}
    if "constant rate" not in flaws:
        values |= {"schedule": mended.schedule, "warmup": epochs / 10}
    if "moving statistics" not in flaws:
        values["statistics"] = mended.statistics * mended.batch_size // recipes.ARTICLE.batch_size
    return recipes.ARTICLE.changed(
        network=NAME,
        pipeline="batches",
        split="article",
        split_seed=SPLITS[seed],
        seed=seed,
        image_size=side,
        epochs=epochs,
        precision=precision,
        **values,
    )
