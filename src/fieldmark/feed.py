"""What a training is fed with: a recipe and photos -> batches, the split, what a photo becomes.

In: a `Recipe` and a folder or a CSV of photos. Out: a `Feed`, with all that can be wrong about the
photos found before. `article` reads as the article does, with Keras' reader; `batches` reads
through `images`, keeps near duplicates together in the split, and keeps the photos decoded.
`fieldmark train PHOTOS --preview sheet.png` writes what a recipe makes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import article, cache, data, split
from fieldmark.augment import Augment, room
from fieldmark.batches import Batches, balancing_weights, preview
from fieldmark.check import quick
from fieldmark.console import say
from fieldmark.data import Photos
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.network import SCALING
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import open_run
from fieldmark.split import Record

# What the article's pipeline has no choice in.
NOT_THE_ARTICLES = (
    *("square", "split", "test_split", "group_by", "augment", "mixup", "cutmix", "balance"),
)


@dataclass(frozen=True)
class Feed:
    """The photos of a training as `fit` takes them, and what is known of them."""

    photos: Photos
    records: tuple[Record, ...]
    specification: ImageSpec  # what a photo becomes outside of the training
    training: Any  # what Keras' `fit` takes
    validation: Any
    steps: int  # batches an epoch
    validation_steps: int
    first: tuple[NDArray[Any], NDArray[Any]]  # the first batch: pixels (b, h, w, 3) of 0 to 255
    held_out: Callable[[], NDArray[Any]]  # some validation photos, (up to 8, h, w, 3), 0 to 255


def feed(recipe: Recipe, source: str | os.PathLike[str]) -> Feed:
    """Return what the recipe trains on."""
    return (
        by_article(recipe, source) if recipe.pipeline == "article" else by_batches(recipe, source)
    )


def specification(recipe: Recipe) -> ImageSpec:
    """Return what a photo becomes for the recipe's network outside of training."""
    return ImageSpec(
        size=recipe.image_size,
        mode=recipe.square,
        interpolation="bilinear",
        scaling=SCALING[recipe.network],
    )


# ---- the article's ------------------------------------------------------------------------------


def by_article(recipe: Recipe, source: str | os.PathLike[str]) -> Feed:
    """Return the article's batches: Keras' reader and split, the batches frozen after one epoch."""
    _refuse_choices(recipe)
    listed = data.list_article(source)
    refuse_few(recipe, len(listed), int(recipe.validation_split * len(listed)))  # as Keras rounds
    article.tensorflow()
    hashes = data.audit(listed, article.decode)
    say(split.listed(listed))
    records = split.article(
        listed, hashes, validation=recipe.validation_split, seed=recipe.split_seed
    )
    kept = len(listed) * recipe.image_size**2 * 3 * 4 / 1e9  # float32, as the article keeps them
    if kept > 1:
        say(f"All of them are kept in memory, which takes {kept:.1f} GB.")
    training, validation = article.read_photos(source, recipe)
    images, labels = next(iter(training))
    batches, validation_batches = article.pipeline(training, validation)
    return Feed(
        photos=listed,
        records=records,
        specification=specification(recipe),
        training=batches,
        validation=validation_batches,
        steps=len(batches),
        validation_steps=len(validation_batches),
        first=(np.asarray(images), np.asarray(labels)),
        held_out=lambda: np.concatenate(
            [np.asarray(batch) for batch, _ in validation_batches.take(8)]
        )[:8],
    )


def _refuse_choices(recipe: Recipe) -> None:
    """Raise where the recipe changes what the article's pipeline does not know."""
    changed = [name for name in NOT_THE_ARTICLES if getattr(recipe, name) != getattr(ARTICLE, name)]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise FieldmarkError(
            f"The article's pipeline knows no {flags}: add --pipeline batches, or leave it out."
        )


# ---- ours ---------------------------------------------------------------------------------------


def by_batches(recipe: Recipe, source: str | os.PathLike[str]) -> Feed:
    """Return batches that are drawn anew in every epoch, of photos that are decoded once."""
    listed = data.list_article(source) if recipe.split == "article" else data.list_photos(source)
    say(split.listed(listed))
    records = placed(recipe, listed)
    say(split.table(records))
    for warning in split.warnings(records):
        say(f"Note: {warning}")
    training, validation = batches_of(recipe, listed, records)
    images, labels = training.seen(0, 0)
    return Feed(
        photos=listed,
        records=records,
        specification=specification(recipe),
        training=training.dataset(epochs=recipe.epochs),
        validation=validation.dataset(epochs=1),
        steps=len(training),
        validation_steps=len(validation),
        first=(images, labels.argmax(axis=1)),
        held_out=lambda: np.array(validation.pixels[:8]),
    )


def placed(recipe: Recipe, listed: Photos) -> tuple[Record, ...]:
    """Return the split that the recipe asks for; all photos are read, and all bad ones named."""
    shares = {"validation": recipe.validation_split, "test": recipe.test_split}
    split.refuse_shares(**shares)
    if recipe.split == "article":
        if recipe.test_split or recipe.group_by:
            raise FieldmarkError(
                "Keras' split has neither test photos nor groups: leave --test-split and "
                "--group-by out, or take --split stratified."
            )
        refuse_few(recipe, len(listed), int(recipe.validation_split * len(listed)))
        looked = quick(listed)
        return split.article(
            listed, looked.hashes, validation=recipe.validation_split, seed=recipe.split_seed
        )
    before = () if recipe.split == "stratified" else split.read(split_file(recipe.split))
    groups = split.by_pattern(listed.paths, recipe.group_by) if recipe.group_by else ()
    looked = quick(listed)
    if before and (differences := split.changes(before, listed, looked.hashes)):
        say(split.described(differences))
    return split.assign(
        listed,
        looked.hashes,
        **shares,
        seed=recipe.split_seed,
        groups=groups,
        twins=looked.together,
        before=before,
    )


def split_file(place: str) -> Path:
    """Return the file of a split that is named by itself or by the run that it was made for."""
    path = Path(place).expanduser()
    if not path.exists():
        raise FieldmarkError(
            f"There is no split {place}: name `article`, `stratified`, a file that "
            "`fieldmark split` wrote, or a run."
        )
    return open_run(path).split if path.is_dir() else path


def batches_of(
    recipe: Recipe, listed: Photos, records: Sequence[Record]
) -> tuple[Batches, Batches]:
    """Return the batches to train on and those to validate on, from the cache of decoded photos."""
    number = {name: label for label, name in enumerate(listed.classes)}
    parts = {
        part: [record for record in records if record.split == part]
        for part in ("training", "validation")
    }
    refuse_few(recipe, len(records), len(parts["validation"]), len(parts["training"]))
    spec = specification(recipe)
    augment = Augment.of(recipe.augment, mixup=recipe.mixup, cutmix=recipe.cutmix)
    wanted = {"training": room(spec) if augment.changes else spec, "validation": spec}
    kept, labels = {}, {}
    for part, rows in parts.items():
        items = [cache.Item(listed.folder / row.path, row.sha256) for row in rows]
        kept[part] = cache.build(items, wanted[part])
        labels[part] = np.array([number[row.label] for row in rows])
    sizes = np.bincount(labels["training"], minlength=len(listed.classes))
    if not sizes.all():
        raise FieldmarkError(
            f"{listed.classes[int(np.argmin(sizes))]} has no photo to train on: add photos, "
            "or change the split."
        )
    weights = None
    if recipe.balance == "weights":
        weights = balancing_weights(labels["training"], len(listed.classes))
    training = Batches(
        pixels=kept["training"].pixels,
        labels=labels["training"],
        classes=len(listed.classes),
        spec=spec,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        shapes=kept["training"].shapes if augment.changes else None,
        augment=augment,
        balanced=recipe.balance == "sampling",
        class_weights=weights,
    )
    validation = Batches(
        pixels=kept["validation"].pixels,
        labels=labels["validation"],
        classes=len(listed.classes),
        spec=spec,
        batch_size=recipe.batch_size,
        shuffle=False,
    )
    return training, validation


def sheet(recipe: Recipe, source: str | os.PathLike[str], path: Path) -> None:
    """Write a sheet of what the network will see of the photos, without training."""
    if recipe.pipeline == "article":
        raise FieldmarkError(
            "The article's pipeline shows every photo as it is: add --pipeline batches, "
            "or leave --preview out."
        )
    listed = data.list_article(source) if recipe.split == "article" else data.list_photos(source)
    training, _ = batches_of(recipe, listed, placed(recipe, listed))
    for note in preview(training, path, classes=listed.classes):
        say(note)
    say(f"Preview: {path}")


# ---- what both refuse ---------------------------------------------------------------------------


def refuse_few(recipe: Recipe, count: int, validation: int, training: int | None = None) -> None:
    """Raise where the photos are too few for the split or for a batch."""
    training = count - validation if training is None else training
    if validation == 0 or training == 0:
        raise FieldmarkError(
            f"{count} photos leave {training} for training and {validation} for validation: "
            "add photos, or change --validation-split."
        )
    if recipe.batch_size > training:
        raise FieldmarkError(
            f"A batch of {recipe.batch_size} is larger than the {training} training photos: "
            "take a smaller --batch-size."
        )
