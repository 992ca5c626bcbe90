"""The values of a training run: all of them, their defaults and their reasons, in one place.

In: nothing, or a TOML or JSON file. Out: a frozen `Recipe`. `fieldmark recipe scratch` prints one;
the fields become the flags of `fieldmark train`. `rule.py` chooses one for the photos at hand.
"""

from __future__ import annotations

import codecs
import json
import textwrap
import tomllib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fieldmark import files
from fieldmark.errors import FieldmarkError

Network = Literal[
    "article",
    "resnet50v2",
    "resnet101v2",
    "resnet152v2",
    "resnetv2_50",
    "bit_r50x1",
    "resnet26v2_half",
    "small",
]


# The parts of a recipe, each with the field that it begins with.
SECTIONS = {
    "network": "Network",
    "pipeline": "Photos",
    "augment": "Against learning photos by heart",
    "batch_size": "Steps",
    "validate_every": "Which weights are kept",
}


class Recipe(BaseModel):
    """What a training run does; the defaults are the article's. Wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    network: Network = Field(
        "article",
        description="`article`: the article's ResNet50V2. `resnet50v2` and deeper: the reference, "
        "as in Keras applications. `resnetv2_50`, `bit_r50x1`: timm's and Big Transfer's. "
        "`resnet26v2_half`: 26 layers of half the width, for few photos. "
        "`small`: a tiny one.",
    )
    weights: str = Field(
        "",
        description="What to start from: `imagenet`, which is downloaded once; `fractals`, which "
        "`resnet26v2_half` has learned from drawings; or a file of weights (.keras, .h5, .npz, "
        ".safetensors). The article starts from nothing.",
    )
    probe: bool = Field(
        False,
        description="Begin with the classifier that logistic regression finds on the network's "
        "features, which are computed once. The article does not.",
    )
    freeze_normalisation: bool = Field(
        False,
        description="Keep the batch normalisation of `--weights` as it came: the statistics of a "
        "million photos are better than those of a few. The article has none to keep.",
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
    begin_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Side in the first epochs of the training; it grows to `--end-size` by steps "
        "of 32. Small photos are quick, and large ones are learned from them. "
        "0: `--image-size`, as in the article.",
    )
    end_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Side in the last epochs of the training. Crops show things larger than whole "
        "photos do, so that a network does best on photos somewhat larger than its crops. "
        "0: `--image-size`, as in the article.",
    )
    square: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="How a photo becomes a square: its sides stretched, as the article does, "
        "its middle, or the whole of it with grey beside.",
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
    balance: Literal["none", "weights", "sampling"] = Field(
        "none",
        description="What makes up for classes of unequal size: a weight for each photo, "
        "or photos of small classes seen more often. The article has nothing.",
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
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a label that is given to all classes alike; 0.1 is the custom. "
        "The article has none.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Share of the weights that each step takes away, times the learning rate; "
        "never of biases and normalisation. The article has none.",
    )

    batch_size: int = Field(
        8,
        ge=1,
        le=4096,
        description="Photos a step. The article's 8 fits any memory, "
        "but gives noisy batch statistics.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=1024,
        description="Steps whose gradients make one update: a larger batch in the same memory, "
        "but for the batch statistics.",
    )
    epochs: int = Field(
        10,
        ge=0,
        le=100_000,
        description="Passes over the training photos. The article's 10. "
        "0 with `--probe`: the network stays as it came, only the classifier is found.",
    )
    optimiser: Literal["adam", "adamw", "sgd"] = Field(
        "adam",
        description="`adam`: the article's. `adamw`: with a decay that its step sizes do not "
        "change. `sgd`: with Nesterov's momentum of 0.9.",
    )
    learning_rate: float = Field(
        0.001,
        gt=0,
        le=10,
        description="The highest step size. The article's, and Adam's default.",
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="The step size over time: the article's, always the same, or half a cosine "
        "down to nothing.",
    )
    warmup: float = Field(
        0.0,
        ge=0,
        description="Epochs in which the step size rises from nothing. The article has none.",
    )
    clip: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="The longest that all gradients together may be; 1 is the custom. 0: any, as "
        "in the article.",
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the old average in the new one of the weights, at each step; these "
        "averages are tried beside the weights themselves. 0: none, as in the article.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="`bfloat16`: products in half the bits, several times as fast where the "
        "processor has them (a GPU, a Xeon with AMX); weights stay float32, as all is in the "
        "article.",
    )

    validate_every: int = Field(
        1,
        ge=1,
        description="Epochs from one look at the validation photos to the next; the last one is "
        "always looked at. The article's 1.",
    )
    statistics: int = Field(
        0,
        ge=0,
        description="Training batches from which the normalisation's statistics are taken anew "
        "before each look. 0: those that have moved along, as in the article.",
    )
    monitor: Literal["loss", "accuracy"] = Field(
        "accuracy",
        description="What says which epoch is the best, on the validation photos: the loss, which "
        "is finer, or the accuracy, and the loss among equals.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Epochs without a better one after which to stop. 0: never, as the article.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Number that the initial weights, the order of the photos and their "
        "augmentation are drawn from. The article sets none.",
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Recipe:
        """Raise where two values make no sense together."""
        if self.epochs == 0 and not self.probe:
            raise ValueError("0 epochs train nothing: give 1 or more, or probe as well")
        if self.warmup and self.warmup >= self.epochs:
            raise ValueError(
                f"a warm-up of {self.warmup:g} epochs leaves nothing of a training of "
                f"{self.epochs}: give fewer, or more epochs"
            )
        for name in ("begin_size", "end_size"):
            if 0 < getattr(self, name) < 32:
                raise ValueError(f"{name} {getattr(self, name)} is too small: give 32 or more")
        if self.freeze_normalisation and not self.weights:
            raise ValueError("there is no normalisation to freeze without weights to start from")
        return self

    def changed(self, **values: Any) -> Recipe:
        """Return this recipe with other values, validated again; raise a FieldmarkError."""
        try:
            return Recipe.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            raise FieldmarkError(f"{reasons(error, flags=True)}.") from error

    def resolved(self) -> Recipe:
        """Return this recipe with every choice made that it leaves open."""
        if self.split != "auto":
            return self
        return self.changed(split="article" if self.pipeline == "article" else "stratified")

    def sizes(self) -> tuple[int, ...]:
        """Return the side of the training's photos in each epoch, in pixels.

        From `begin_size` to `end_size` by steps of 32, for as many epochs each as can be; what is
        left over goes to the last ones.
        """
        first, last = self.begin_size or self.image_size, self.end_size or self.image_size
        step = 32 if last >= first else -32
        sides = [*range(first, last, step), last][-max(1, self.epochs) :]
        return tuple(sides[epoch * len(sides) // self.epochs] for epoch in range(self.epochs))

    def __str__(self) -> str:
        """Write the recipe as TOML, a comment with the reason above each value."""
        lines = []
        for name, field in type(self).model_fields.items():
            said = textwrap.wrap(field.description or "", 96)
            # What JSON writes of text, numbers, true and false is TOML as well.
            value = json.dumps(getattr(self, name), ensure_ascii=False)
            if name in SECTIONS:
                lines += ["", f"# ---- {SECTIONS[name]}"]
            lines += ["", *(f"# {line}" for line in said), f"{name} = {value}"]
        return "\n".join(lines[1:])


ARTICLE = Recipe.model_validate({})

# No weights to start from. Each value was chosen on flowers and birds, see docs/recipe.md.
SCRATCH = ARTICLE.changed(
    network="resnet26v2_half",
    pipeline="batches",
    image_size=128,
    begin_size=96,
    end_size=128,
    square="crop",
    batch_size=16,
    epochs=100,
    augment=0.5,
    label_smoothing=0.1,
    optimiser="adamw",
    learning_rate=0.002,
    weight_decay=0.05,
    schedule="cosine",
    warmup=2.0,
    clip=1.0,
    average=0.99,
    monitor="loss",
    statistics=8,
    validate_every=4,
)

# Weights are there, time is not: the network as it came, and a classifier on its features.
PROBE = ARTICLE.changed(
    network="resnet50v2",
    weights="imagenet",
    probe=True,
    pipeline="batches",
    image_size=299,  # Keras' weights were trained at 299 px (tensorflow/models#1497)
    square="crop",
    batch_size=16,
    epochs=0,
    monitor="loss",
)

# Weights and time: the same, then all layers at a hundredth of the rate that begins from nothing.
FINETUNE = PROBE.changed(
    freeze_normalisation=True,
    epochs=20,
    augment=0.3,
    label_smoothing=0.1,
    optimiser="adamw",
    learning_rate=5e-5,
    weight_decay=0.05,
    schedule="cosine",
    warmup=1.0,
    clip=1.0,
    average=0.99,
)

RECIPES = {"article": ARTICLE, "scratch": SCRATCH, "probe": PROBE, "finetune": FINETUNE}


def named(name: str) -> Recipe:
    """Return the recipe of that name, or of the TOML or JSON file at that path."""
    if name in RECIPES:
        return RECIPES[name]
    path = files.expanded(name)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FieldmarkError(
            f"There is no recipe {name!r}: name one of {', '.join(RECIPES)}, or a file "
            "(`fieldmark recipe scratch` prints one to start from)."
        ) from error
    except (OSError, ValueError) as error:
        raise FieldmarkError(f"{name} cannot be read ({error}): name a TOML file.") from error
    content = utf8(content)
    try:
        if path.suffix.lower() == ".json":
            return Recipe.model_validate_json(content)
        return Recipe.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        raise FieldmarkError(f"{name} is not a recipe: {reasons(error)}.") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of its letters
        raise FieldmarkError(f"{name} is not a recipe: {error}.") from error


def utf8(content: bytes) -> bytes:
    """Return a text file's bytes in UTF-8 without a mark, whatever editor wrote it."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's `>`
        content = content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)


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
        said = problem["msg"].removeprefix("Value error, ")
        clauses.append(f"{field}{value}: {said}".lstrip(": "))
    return "; ".join(clauses)
