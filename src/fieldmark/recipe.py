"""The values of a training run: all of them, their defaults and their reasons, in one place.

In: nothing, or a JSON file. Out: a frozen `Recipe`. `fieldmark recipe article` prints one; the
fields become the flags of `fieldmark train`.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldmark.errors import FieldmarkError


class Recipe(BaseModel):
    """What a training run does; the defaults are the article's. Wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    network: Literal["article", "small"] = Field(
        "article",
        description="The article's ResNet50V2, or a small ResNet-V2 for a first look in a minute.",
    )
    pipeline: Literal["article", "batches"] = Field(
        "article",
        description="`article`: Keras' reader, kept as float32, in batches that never change. "
        "`batches`: read upright and antialiased, kept as bytes, drawn anew into batches and "
        "augmented in every epoch.",
    )
    image_size: int = Field(
        224,
        ge=32,
        le=1024,
        description="Side of the square that a photo is resized to, in pixels. "
        "The article's 224 is ImageNet's custom; the time of a step grows with the square.",
    )
    square: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="How a photo becomes a square: its sides stretched, as the article does, "
        "its middle, or the whole of it with grey beside.",
    )
    batch_size: int = Field(
        8,
        ge=1,
        le=4096,
        description="Photos a step. The article's 8 fits any memory, "
        "but gives noisy batch statistics.",
    )
    epochs: int = Field(
        10, ge=1, le=100_000, description="Passes over the training photos. The article's 10."
    )
    learning_rate: float = Field(
        0.001, gt=0, le=10, description="Step size of Adam. The article's, and Adam's default."
    )
    split: str = Field(
        "auto",
        min_length=1,
        description="`article`: Keras' own, by chance alone. `stratified`: each class in its "
        "share, near duplicates and groups together. `auto`: the one that goes with the pipeline. "
        "Or the `split.csv` or the run to take it from; photos that are new there are added.",
    )
    validation_split: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the photos kept for validation. The article's 80/20.",
    )
    test_split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the photos kept for the last word, which the training never sees. "
        "The article keeps none.",
    )
    group_by: str = Field(
        "",
        description="Pattern on a file's name; photos for which its first group is the same "
        "are never parted: `(.+)__` for `owl__12.jpg`.",
    )
    split_seed: int = Field(
        123,
        ge=0,
        lt=2**32,
        description="Number that decides which photos are for validation. The article's 123.",
    )
    augment: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Strength of mirroring, cropping, colours and erasing, drawn anew for each "
        "photo in each epoch. The article has none.",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=8,
        description="Alpha of MixUp, which lays two photos over one another; 0.2 is its authors'. "
        "The article has none.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=8,
        description="Alpha of CutMix, which sets a part of one photo into another; 1 is its "
        "authors'. The article has none.",
    )
    balance: Literal["none", "weights", "sampling"] = Field(
        "none",
        description="What makes up for classes of unequal size: a weight for each photo, "
        "or photos of small classes seen more often. The article has nothing.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Number that the initial weights, the order of the photos and their "
        "augmentation are drawn from. The article sets none.",
    )

    def changed(self, **values: Any) -> Recipe:
        """Return this recipe with other values, validated again."""
        return Recipe.model_validate({**self.model_dump(), **values})

    def resolved(self) -> Recipe:
        """Return this recipe with every choice made that it leaves open."""
        if self.split != "auto":
            return self
        return self.changed(split="article" if self.pipeline == "article" else "stratified")


ARTICLE = Recipe.model_validate({})

# A network of 0.2 million parameters and batches that change, for a first look in a minute.
SMALL = ARTICLE.changed(
    network="small",
    pipeline="batches",
    image_size=64,
    batch_size=16,
    epochs=20,
    augment=0.3,
)

RECIPES = {"article": ARTICLE, "small": SMALL}


def named(name: str) -> Recipe:
    """Return the recipe of that name, or of the JSON file at that path."""
    if name in RECIPES:
        return RECIPES[name]
    try:
        content = Path(name).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise FieldmarkError(
            f"There is no recipe {name!r}: name one of {', '.join(RECIPES)}, or a JSON file "
            "(`fieldmark recipe article` prints one to start from)."
        ) from error
    except (OSError, ValueError) as error:
        raise FieldmarkError(f"{name} cannot be read ({error}): name a JSON file.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's `>`
        content = content.decode("utf-16", errors="replace").encode()
    try:
        return Recipe.model_validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise FieldmarkError(f"{name} is not a recipe: {reasons(error)}.") from error


def reasons(error: ValidationError, *, flags: bool = False) -> str:
    """Write what pydantic refused as one clause: `epochs 0: Input should be greater than ...`.

    With `flags`, fields are called as on the command line.
    """
    clauses = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        if flags and field:
            field = "--" + field.replace("_", "-")
        value = f" {problem['input']!r}" if field else ""
        clauses.append(f"{field}{value}: {problem['msg']}".lstrip(": "))
    return "; ".join(clauses)
