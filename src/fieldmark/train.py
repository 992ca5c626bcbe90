"""fit(recipe, photos, out): a folder of photos -> a run folder with a trained network.

In: a `Recipe` and a folder or a CSV of photos with their classes. Out: the run folder of
`docs/design.md`. All that can be wrong is found before the first step of training, and a run that
exists is gone on with. `fieldmark train PHOTOS --out RUN` runs it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fieldmark import (
    article,
    backend,
    bit,
    data,
    environment,
    features,
    files,
    inference,
    locks,
    logbook,
    loop,
    network,
    plots,
    reproduction,
    rule,
    state,
    trackers,
    weights,
)
from fieldmark.backend import keras
from fieldmark.console import many, say, size
from fieldmark.errors import FieldmarkError
from fieldmark.feed import (
    Feed,
    Ours,
    feed,
    listing,
    refuse_changed,
    require_preview,
    write_preview,
)
from fieldmark.findings import wilson
from fieldmark.images import scale
from fieldmark.logbook import Epoch
from fieldmark.loop import Keeper
from fieldmark.plots import Language, Lettering
from fieldmark.recipe import Recipe
from fieldmark.run import Run, create, is_run, open_run
from fieldmark.trained import Trained

Learn = Callable[..., object]  # as `loop.train`
SAVE_EVERY = 300.0  # seconds between two states within an epoch


def fit(
    recipe: Recipe,
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preview: Path | None = None,
    language: Language = "en",
    show: bool = False,
    save_every: float = SAVE_EVERY,
    tensorboard: bool = False,
    mlflow: str = "",
    learn: Learn = loop.train,
    pushed: Callable[[], None] = lambda: None,
) -> Run:
    """Train by the recipe and return the run, or go on with the one in `out`.

    The photos are only read. `preview` is a file for a sheet of what the network will see;
    `save_every` are the seconds between two states. `tensorboard` has the training told to the one,
    `mlflow` to the store of that address: `docs/trackers.md`. `learn` trains in place of
    `loop.train`; `pushed` is told whenever something new is kept. Raises a `FieldmarkError` before
    anything is written where a photo, the folder `out`, a value of the recipe or the run that is
    there stands in the way. Ctrl-C and SIGTERM save the state and leave.
    """
    recipe = recipe.resolved()
    trackers.require(tensorboard=tensorboard, mlflow=mlflow)
    begun = begun_run(Path(out), recipe)
    if begun is not None and finished(begun):
        return retold(begun, photos, preview=preview, tensorboard=tensorboard, mlflow=mlflow)
    if show:
        require_screen()
    if preview is not None:
        require_preview(recipe, preview)
    backend.seed(recipe.seed)

    found = article.devices() if recipe.pipeline == "article" else backend.devices()
    say(f"Devices: {', '.join(found) or 'no GPU, computing on the CPU'}")
    fed = feed(
        recipe,
        photos,
        outputs=[
            Path(out),
            *([preview] if preview else []),
            *trackers.places(Path(out), mlflow=mlflow),
        ],
        begun=begun.read_split() if begun else (),
    )
    if preview is not None:
        write_preview(fed, preview)
    say(f"Classes: {', '.join(fed.photos.classes)}")
    model = built(recipe, len(fed.photos.classes))
    if begun is None:
        require_room(Path(out), model, averages=bool(recipe.average))
    if recipe.weights and not (begun and begun.last.exists()):
        weights.load(model, recipe.weights)
    followers = trackers.connect(Path(out), tensorboard=tensorboard, mlflow=mlflow)
    busy = f"{out} is being trained by another process: wait for it, or give another --out."
    run = begun or begin(out, recipe, photos, fed, busy)
    with locks.alone(run.lock, busy):
        try:
            album = Album(run, Lettering(language), fed.photos.classes, show=show)
            with (
                trackers.told(run, followers) as audience,
                backend.enough_memory(recipe.batch_size),
            ):
                keeper = replace(
                    keeper_of(run, save_every=save_every), append=audience.append, pushed=pushed
                )
                teach(model, recipe, fed, album, keeper, learn=learn)
                audience.finish(outcome(run))
        except (KeyboardInterrupt, SystemExit):
            say(kept(run))
            raise
        except FieldmarkError:  # a full disk, too little memory, a loss that is no number
            if begun is None and not (run.last.exists() or run.best.exists()):
                shutil.rmtree(run.folder)  # made by this call, and nothing was learned
            else:
                say(kept(run))
            raise
    say(outcome(run))
    return run


def retold(
    run: Run,
    photos: str | os.PathLike[str],
    *,
    preview: Path | None,
    tensorboard: bool,
    mlflow: str,
) -> Run:
    """Say what a run came to that is finished, and tell trackers what they do not have of it."""
    recipe = run.read_recipe()
    listed = listing(recipe, photos)
    refuse_changed(run.read_split(), listed, data.sha256s(listed))
    if preview is not None:
        preview_only(recipe, photos, preview)
    say(f"{run.folder} is finished already; give another --out to train anew.")
    if tensorboard or mlflow:
        files.require_folder(run.folder)
        reserved = [*data.reserved(listed, Path(photos)), *run.photo_folders()]
        for place in trackers.places(run.folder, mlflow=mlflow):
            files.refuse_among(place, reserved)
    followers = trackers.connect(run.folder, tensorboard=tensorboard, mlflow=mlflow)
    with trackers.told(run, followers) as audience:
        audience.finish(outcome(run))
    say(outcome(run))
    return run


# ---- what a run is begun with -------------------------------------------------------------------


def choose(
    photos: str | os.PathLike[str],
    *,
    minutes: float | None = None,
    out: Path | None = None,
    **values: Any,
) -> Recipe:
    """Return the recipe of the run in `out`, else the one chosen for photos, machine and minutes.

    `values` of the recipe are settled, and the rest follows; the reasons are said.
    """
    if out is not None and is_run(out):
        recipe = open_run(out).read_recipe().changed(**values)
        if minutes is not None:
            epochs = many(recipe.epochs, "epoch")
            say(f"Note: {out} was begun with {epochs}, and --minutes changes nothing now.")
        return recipe
    held_out = values.get("validation_split", 0.2) + values.get("test_split", 0.0)
    found = rule.recipe_for(
        rule.Facts.of(data.list_photos(photos), held_out=held_out),
        rule.measured(),
        rule.MINUTES if minutes is None else minutes,
        wishes={"weights": rule.at_hand(values.get("network", "")), **values},
    )
    for line in rule.told(found):
        say(line)
    return found.recipe


def begun_run(out: Path, recipe: Recipe) -> Run | None:
    """Return the run in `out` that is to be gone on with, or nothing where a new one is to be made.

    Raises a FieldmarkError for a folder of anything else, and for a run of another recipe.
    """
    if not is_run(out):
        files.refuse_existing(out)
        return None
    run = open_run(out)
    before, now = run.read_recipe().model_dump(), recipe.model_dump()
    names = [name for name in now if before[name] != now[name]]
    changed = [f"{name} {before[name]} there, {now[name]} now" for name in names]
    if changed:
        raise FieldmarkError(
            f"{out} is of another recipe ({'; '.join(changed)}): give the values that it was begun "
            "with, or another --out."
        )
    return run


def begin(
    out: str | os.PathLike[str],
    recipe: Recipe,
    photos: str | os.PathLike[str],
    fed: Feed,
    busy: str,
) -> Run:
    """Make a run; raise `busy` where another process has made one there meanwhile."""
    try:
        return create(
            out,
            recipe=recipe,
            environment=environment.describe(photos),
            classes=fed.photos.classes,
            specification=fed.specification,
            records=fed.records,
        )
    except FieldmarkError as error:
        raise FieldmarkError(busy) if is_run(out) else error from error


def finished(run: Run) -> bool:
    """Tell whether a run was trained to its end and drawn."""
    recipe = run.read_recipe()
    log = run.read_log()
    done = bool(log) and (not recipe.epochs or logbook.over(log, recipe, recipe.epochs))
    return done and (run.figures / "predictions.png").exists()


def built(recipe: Recipe, classes: int) -> Any:
    """Build the recipe's network, for one size of photos or for any."""
    sizes = {recipe.image_size, *recipe.sizes()}
    side = recipe.image_size if len(sizes) == 1 else None
    if recipe.pipeline == "article":
        return network.build(recipe.network, image_size=side, classes=classes)
    # The article's network ends in a softmax, and our loss is of logits.
    model = reproduction.logits_network(
        network.for_training(recipe.network, image_size=side, classes=classes)
    )
    kind = keras.layers.BatchNormalization
    normalised = [layer for layer in model.layers if isinstance(layer, kind)]
    if normalised and recipe.batch_size == 1 and not recipe.freeze_normalisation and recipe.epochs:
        raise FieldmarkError(
            f"{recipe.network} normalises over the photos of a batch, and a batch of one has none "
            "to compare: give --batch-size 8 or more, or take --network bit_r50x1."
        )
    if recipe.freeze_normalisation:
        for layer in normalised:
            layer.trainable = False
    return model


def require_room(out: Path, model: Any, *, averages: bool) -> None:
    """Raise where the disk has no room for the run's weights.

    The best weights are 4 bytes a parameter and the state 12, with Adam's two moments, and 4 more
    with averages; while one is replaced it is there twice.
    """
    needed = model.count_params() * (4 + 2 * (16 if averages else 12))
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise FieldmarkError(
            f"{place} has {size(free)} free and the run needs {size(needed)}: "
            "free some room, or put --out on another disk."
        )


# ---- the training -------------------------------------------------------------------------------


def teach(
    model: Any, recipe: Recipe, fed: Feed, album: Album, keeper: Keeper, *, learn: Learn
) -> None:
    """Take the article's steps 4 to 11: look, compile, fit, curves, predictions."""
    run = album.run
    images, labels = fed.first
    if not run.last.exists():
        album.photos("training_photos", "training photos", images, labels)
        say(f"First batch: images {tuple(images.shape)}, labels {tuple(labels.shape)}")
    if fed.article is not None:
        say(network.summary(model))
        reproduction.train(
            model, recipe, datasets=fed.article, keeper=keeper, unchanged=fed.unchanged
        )
    elif fed.ours is not None:
        say(f"Network: {recipe.network}, {model.count_params():,} parameters")
        if recipe.probe and not run.last.exists():
            groups = [row.group or row.path for row in fed.records if row.split == "training"]
            probe(model, recipe, fed.ours, run, groups=groups)
        if recipe.epochs:
            learn(
                model,
                recipe,
                training=fed.ours.epochs,
                validation=fed.ours.validation,
                keeper=keeper,
            )
    if recipe.epochs:
        album.curves(run.read_log())
    images = fed.held_out()
    seen = scale(images, fed.specification)
    if fed.article is not None:
        numbers = predict_singly(model, seen)
    else:
        best = Trained.load(run).network if run.best.exists() else model
        numbers = inference.forward(best)(seen).argmax(axis=1).tolist()
    album.photos("predictions", "predictions", images, numbers)


def keeper_of(run: Run, *, save_every: float = SAVE_EVERY) -> Keeper:
    """Say where a run's training is kept."""
    rows = (astuple(record) for record in run.read_split())
    return Keeper(
        state=run.last,
        photos=state.digests(rows),
        append=run.append_log,
        mend=partial(state.mend_log, run.log),
        best=partial(save_best, run),
        save_every=save_every,
    )


def save_best(run: Run, model: Any) -> None:
    """Write the best weights as plain Keras, whole or not at all; then they are on the disk."""
    if any(isinstance(layer, bit.StdConv2D) for layer in model.layers):
        model = bit.folded(model)
    with files.whole_file(run.best) as temporary:
        model.save(temporary)
        state.sync(temporary)
        for file in (run.predictions, run.metrics, run.decision, run.diagnosis):
            file.unlink(missing_ok=True)  # they are of other weights


def probe(model: Any, recipe: Recipe, ours: Ours, run: Run, *, groups: Sequence[str]) -> None:
    """Give the network the head of logistic regression on its features, and say how good it is.

    `groups` has a name for each training photo; those of one name are never parted. Without epochs
    that is all, and goes into log and best weights.
    """
    began = time.monotonic()
    head = features.probe(
        model,
        ours.training,
        weighted=recipe.balance != "none",
        seed=recipe.seed,
        groups=np.array(groups),
    )
    features.set_head(model, head)
    loss, accuracy = inference.evaluate(inference.forward(model), ours.validation)
    line: Epoch = {
        "epoch": 0,
        "val_loss": loss,
        "val_accuracy": accuracy,
        "seconds": round(time.monotonic() - began, 3),
    }
    files.write_json(
        run.probe, {**line, "strength": head.strength, "cross_validated": head.accuracy}
    )
    say(f"Probe: a classifier on the features as they are gets {accuracy:.1%} of the validation.")
    if not recipe.epochs:
        save_best(run, model)
        state.mend_log(run.log, [line])


# ---- figures and words ------------------------------------------------------------------------


class Album:
    """Draws the figures of a run into its folder, and on the screen where asked to."""

    def __init__(
        self, run: Run, lettering: Lettering, classes: tuple[str, ...], *, show: bool
    ) -> None:
        self.run = run
        self.lettering = lettering
        self.labels = [lettering.class_label(name, i) for i, name in enumerate(classes)]
        self.show = show
        for note in lettering.notes:
            say(note)

    def photos(self, name: str, title: str, images: Any, numbers: Any) -> None:
        """Draw a grid of photos, (n, h, w, 3), with the names of their class numbers, (n,)."""
        labels = [self.labels[number] for number in numbers]
        title = self.lettering.titles[title]
        fonts = self.lettering.families([title, *labels])
        self._keep(
            name, plots.photo_grid(list(np.asarray(images)), labels, title=title, fonts=fonts)
        )

    def curves(self, log: Sequence[Epoch]) -> None:
        """Draw accuracy and loss over the epochs."""
        titles = self.lettering.titles
        fonts = self.lettering.families(titles.values())
        self._keep("curves", plots.curves(log, titles=titles, fonts=fonts))

    def _keep(self, name: str, figure: Figure) -> None:
        path = self.run.figures / f"{name}.png"
        with files.whole_file(path) as temporary:
            figure.savefig(temporary, dpi=150)
        say(f"Figure: {path}")
        if self.show:
            on_screen(figure)


def preview_only(recipe: Recipe, photos: str | os.PathLike[str], preview: Path) -> None:
    """Write a sheet of what the network would see, and train nothing."""
    require_preview(recipe, preview)
    write_preview(feed(recipe, photos, outputs=[preview]), preview)


def predict_singly(network: Any, images: np.ndarray[Any, Any]) -> list[int]:
    """Predict photos (n, h, w, 3) one by one as the article does; return the class numbers."""
    return [int(np.argmax(network.predict(image[None], verbose=0))) for image in images]


def kept(run: Run) -> str:
    """Say what a run that was stopped holds."""
    if not run.last.exists() and run.best.exists():  # of a probe, which has no steps
        return f"Stopped; {run.best} is kept, and the same command does what is left."
    if not run.last.exists():
        return f"Stopped before anything was learned; {run.folder} holds no weights."
    return (
        f"Stopped; epochs finished: {len(run.read_log())}; the same command goes on from the state "
        f"in {run.folder}."
    )


def outcome(run: Run) -> str:
    """Say what the training came to on the validation photos."""
    log, recipe = run.read_log(), run.read_recipe()
    last = next(line for line in reversed(log) if "val_accuracy" in line)
    averaged = "averaged_val_accuracy" in last
    accuracy = last["averaged_val_accuracy" if averaged else "val_accuracy"]
    best = logbook.best_of(log, recipe.monitor)
    holds = "There are no weights whose loss is a number."
    if best is not None:
        holds = f"{run.best} holds {'the averages of ' if best.averaged else ''}epoch {best.epoch}"
        if (best.epoch, best.averaged) != (last["epoch"], averaged):
            holds += f", the best by validation {recipe.monitor}: {best.accuracy:.1%}"
        holds += "."
    if accuracy is None:
        return (
            f"The validation loss after epoch {last['epoch']} is no number: begin another run with "
            f"a smaller --learning-rate. {holds}"
        )
    if not recipe.epochs:
        holds = f"{run.best} holds it."
    held_out = Counter(row.label for row in run.read_split() if row.split == "validation")
    count = held_out.total()
    right = round(accuracy * count)
    low, high = wilson(right / count, count)
    commonest = max(held_out.values())
    return (
        f"Validation accuracy after epoch {last['epoch']}{', averaged weights' * averaged}: "
        f"{accuracy:.1%}, {right} of {count} photos "
        f"(95 % interval {low:.0%} to {high:.0%}; "
        f"always the commonest class: {commonest / count:.0%}). {holds}"
    )


def require_screen() -> None:
    """Raise where matplotlib has no screen to show a figure on."""
    import matplotlib.pyplot as plt  # opens a screen where there is one

    if plt.get_backend().lower() == "agg":
        raise FieldmarkError(
            "--show needs a screen, and matplotlib finds none: leave it out, "
            "the figures are files in the run folder."
        )


def on_screen(figure: Figure) -> None:
    """Show a figure in a window and wait until it is closed, as the article does."""
    import matplotlib.pyplot as plt

    plt.figure(figure)  # hands the figure over to pyplot's windows
    plt.show()
    plt.close(figure)
