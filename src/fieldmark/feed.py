"""What a training is fed with: a recipe and photos -> batches, the split, what a photo becomes.

In: a `Recipe` and a folder or a CSV of photos. Out: a `Feed`, with all that can be wrong about the
photos found before. `article` reads as the article does, with Keras' reader; `batches` reads
through `images`, keeps near duplicates together in the split, and keeps the photos decoded.
`fieldmark train PHOTOS --preview sheet.png` writes what a recipe makes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import article, cache, data, files, split
from fieldmark.augment import Augment, room
from fieldmark.batches import Batches, balancing_weights, preview, require_picture
from fieldmark.check import quick
from fieldmark.console import say
from fieldmark.data import Photos
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.network import SCALING
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import open_run
from fieldmark.split import Record

# What the article's pipeline has a choice in.
THE_ARTICLES = (
    *("network", "weights", "pipeline", "image_size", "validation_split", "split_seed"),
    *("batch_size", "epochs", "learning_rate", "monitor", "seed"),
)


@dataclass(frozen=True)
class Feed:
    """The photos of a training as `fit` takes them, and what is known of them."""

    photos: Photos
    records: tuple[Record, ...]
    specification: ImageSpec  # what a photo becomes outside of the training
    first: tuple[NDArray[Any], NDArray[Any]]  # the first batch: pixels (b, h, w, 3) of 0 to 255
    held_out: Callable[[], NDArray[Any]]  # some validation photos, (up to 8, h, w, 3), 0 to 255
    # Those to train and those to validate on, as Keras' `fit` takes them,
    article: tuple[Any, Any] | None = None
    ours: Ours | None = None  # or these
    # Raises where the article's photos are no longer what they were when it was begun.
    unchanged: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Ours:
    """The batches of our own pipeline."""

    training: Batches  # at the size that the network has outside of the training
    epochs: tuple[Batches, ...]  # those of each epoch; neighbours of one size are the same object
    validation: Batches


def feed(
    recipe: Recipe,
    source: str | os.PathLike[str],
    *,
    outputs: Iterable[Path] = (),
    begun: Sequence[Record] = (),
) -> Feed:
    """Return what the recipe trains on; `outputs` may not lie among the photos.

    `begun` is the split of a training to go on with: every photo must be as it was then.
    """
    recipe = recipe.resolved()
    listed = listing(recipe, source)
    reserved = data.reserved(listed, Path(source))
    for place in outputs:
        files.refuse_among(place, reserved)
    if recipe.pipeline == "article":
        return by_article(recipe, listed, begun)
    files.refuse_among(cache.where(), reserved)
    return by_batches(recipe, listed, begun)


def listing(recipe: Recipe, source: str | os.PathLike[str]) -> Photos:
    """Return the photos of a source as the recipe wants them listed."""
    keras_lists = recipe.pipeline == "article" or recipe.split == "article"
    return data.list_article(source) if keras_lists else data.list_photos(source)


def specification(recipe: Recipe) -> ImageSpec:
    """Return what a photo becomes for the recipe's network outside of training."""
    return ImageSpec(
        size=recipe.image_size,
        mode=recipe.square,
        interpolation="bilinear",
        scaling=SCALING.get(recipe.network, "-1..1"),
    )


def refuse_changed(begun: Sequence[Record], listed: Photos, hashes: Sequence[str]) -> None:
    """Raise where the photos are not those that a training was begun with."""
    if differences := split.changes(begun, listed, hashes):
        raise FieldmarkError(
            f"{split.described(differences).rstrip('.')}: bring back the photos that the run was "
            "begun with, or begin a new run."
        )


# ---- the article's ------------------------------------------------------------------------------


def by_article(recipe: Recipe, listed: Photos, begun: Sequence[Record]) -> Feed:
    """Return the article's batches: Keras' reader and split, the batches frozen after one epoch."""
    _refuse_choices(recipe)
    refuse_few(recipe, len(listed), int(recipe.validation_split * len(listed)))  # as Keras rounds
    article.tensorflow()
    hashes = data.audit(listed, article.decode)
    say(split.listed(listed))
    if begun:
        refuse_changed(begun, listed, hashes)
    records = split.article(
        listed, hashes, validation=recipe.validation_split, seed=recipe.split_seed
    )
    kept = len(listed) * recipe.image_size**2 * 3 * 4 / 1e9  # float32, as the article keeps them
    if kept > 1:
        say(f"All of them are kept in memory, which takes {kept:.1f} GB.")

    def unchanged() -> None:
        refuse_changed(records, listed, data.sha256s(listed))

    training, validation = article.read_photos(listed.folder, recipe)
    refuse_others(records, listed.folder, training=training, validation=validation)
    with article.reading(unchanged):
        images, labels = next(iter(training))
    batches, validation_batches = article.pipeline(training, validation)
    return Feed(
        photos=listed,
        records=records,
        specification=specification(recipe),
        article=(batches, validation_batches),
        unchanged=unchanged,
        first=(np.asarray(images), np.asarray(labels)),
        held_out=lambda: np.concatenate(
            [np.asarray(batch) for batch, _ in validation_batches.take(8)]
        )[:8],
    )


def refuse_others(records: Sequence[Record], folder: Path, **datasets: Any) -> None:
    """Raise where Keras, which lists the folder itself, has found other photos than are split."""
    found = {
        (Path(path).relative_to(folder).as_posix(), part)
        for part, dataset in datasets.items()
        for path in dataset.file_paths
    }
    if found != {(record.path, record.split) for record in records}:
        raise FieldmarkError(
            f"Photos have come to {folder}, or gone, while they were read: wait until it is as it "
            "is to be, and run again."
        )


def _refuse_choices(recipe: Recipe) -> None:
    """Raise where the recipe changes what the article's pipeline does not know."""
    plain = ARTICLE.resolved()
    fixed = [name for name in Recipe.model_fields if name not in THE_ARTICLES]
    changed = [name for name in fixed if getattr(recipe, name) != getattr(plain, name)]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise FieldmarkError(
            f"The article's pipeline knows no {flags}: add --pipeline batches, or leave it out."
        )


# ---- ours ---------------------------------------------------------------------------------------


def by_batches(recipe: Recipe, listed: Photos, begun: Sequence[Record]) -> Feed:
    """Return batches that are drawn anew in every epoch, of photos that are decoded once."""
    say(split.listed(listed))
    if begun:
        refuse_changed(begun, listed, quick(listed).hashes)
        records = tuple(begun)
    else:
        records, together = placed(recipe, listed)
        say(split.table(records))
        shares = {"validation": recipe.validation_split, "test": recipe.test_split}
        for warning in split.warnings(records, together, shares):
            say(f"Note: {warning}")
    training, validation = batches_of(recipe, listed, records)
    sizes = recipe.sizes()
    stages = {size: resized(training, size) for size in sizes}
    epochs = tuple(stages[size] for size in sizes)
    steps = sum(map(len, epochs))
    if recipe.epochs and recipe.accumulate > steps:
        raise FieldmarkError(
            f"--accumulate {recipe.accumulate} is more than the {steps} steps of the training, "
            "which would change no weight: give less, or more --epochs."
        )
    images, labels = (epochs or (training,))[0].seen(0, 0)
    some = np.random.default_rng(recipe.seed).permutation(len(validation.pixels))[:8]
    return Feed(
        photos=listed,
        records=records,
        specification=specification(recipe),
        first=(images, labels.argmax(axis=1)),
        held_out=lambda: validation.pixels[some],
        ours=Ours(training, epochs, validation),
    )


def resized(batches: Batches, size: int) -> Batches:
    """Return the same batches in squares of another size."""
    return replace(batches, spec=batches.spec.model_copy(update={"size": size}))


def placed(
    recipe: Recipe, listed: Photos
) -> tuple[tuple[Record, ...], tuple[tuple[int, ...], ...]]:
    """Return the split that the recipe asks for, and the groups of copies by their indices.

    All photos are read for it, and all bad ones named at once.
    """
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
        records = split.article(
            listed, looked.hashes, validation=recipe.validation_split, seed=recipe.split_seed
        )
        return records, looked.together
    before = () if recipe.split == "stratified" else split.read(split_file(recipe.split))
    groups = split.by_pattern(listed.paths, recipe.group_by) if recipe.group_by else ()
    looked = quick(listed)
    if before:
        differences = split.changes(before, listed, looked.hashes)
        if differences:
            say(split.described(differences))
        if note := split.ungrouped(before, listed, differences, groups):
            say(f"Note: {note}")
    records = split.assign(
        listed,
        looked.hashes,
        **shares,
        seed=recipe.split_seed,
        groups=groups,
        twins=looked.together,
        before=before,
    )
    return records, looked.together


def split_file(place: str) -> Path:
    """Return the file of a split that is named by itself or by the run that it was made for."""
    path = files.expanded(place)
    if files.is_folder(path):
        return open_run(path).split
    files.require_file(
        path,
        f"There is no split {place}: name `article`, `stratified`, a file that `fieldmark split` "
        "wrote, or a run.",
    )
    return path


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
    largest = max((spec.size, *recipe.sizes()))
    # Photos that are seen as they are need no room around them.
    views = augment.changes or set(recipe.sizes()) - {spec.size}
    roomy = room(spec.model_copy(update={"size": largest})) if views else spec
    wanted = {"training": roomy, "validation": spec}
    labels = {part: np.array([number[row.label] for row in rows]) for part, rows in parts.items()}
    sizes = np.bincount(labels["training"], minlength=len(listed.classes))
    if not sizes.all():
        raise FieldmarkError(
            f"{listed.classes[int(np.argmin(sizes))]} has no photo to train on: add photos, "
            "or change the split."
        )
    kept = {
        part: cache.build(
            [cache.Item(listed.folder / row.path, row.sha256) for row in rows], wanted[part]
        )
        for part, rows in parts.items()
    }
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
        shapes=kept["training"].shapes if views else None,
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


def require_preview(recipe: Recipe, path: Path) -> None:
    """Raise where no preview can be written, before any photo is read."""
    if recipe.pipeline == "article":
        raise FieldmarkError(
            "The article's pipeline shows every photo as it is: add --pipeline batches, "
            "or leave --preview out."
        )
    require_picture(path)
    files.require_folder(path.parent)


def write_preview(fed: Feed, path: Path) -> None:
    """Write a sheet of what the network will see."""
    if fed.ours is not None:
        shown = (fed.ours.epochs or (fed.ours.training,))[-1]
        for note in preview(shown, path, classes=fed.photos.classes):
            say(note)
        say(f"Preview: {path}")


# ---- what both refuse ---------------------------------------------------------------------------


def refuse_few(recipe: Recipe, count: int, validation: int, training: int | None = None) -> None:
    """Raise where the photos are too few for the split or for a batch."""
    training = count - validation if training is None else training
    if recipe.split not in ("auto", "article", "stratified") and not (validation and training):
        raise FieldmarkError(
            f"{recipe.split} has {training} training and {validation} validation photos: write "
            "another with `fieldmark split`."
        )
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
