"""fit(recipe, photos, out): a folder of photos -> a run folder with a trained network.

In: a `Recipe` and a folder or a CSV of photos with their classes. Out: the run folder of
`docs/design.md`. `fieldmark train PHOTOS --recipe article --out RUN` runs it: the article's steps
in their order, with all that can be wrong found before the first step of training.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fieldmark import article, backend, environment, files, plots
from fieldmark.backend import keras
from fieldmark.console import Meter, duration, meter, say, size
from fieldmark.errors import FieldmarkError
from fieldmark.feed import Feed, feed, require_preview, write_preview
from fieldmark.findings import wilson
from fieldmark.images import scale
from fieldmark.network import build, summary
from fieldmark.plots import Language, Lettering
from fieldmark.recipe import Recipe
from fieldmark.run import Epoch, Run, create


def fit(
    recipe: Recipe,
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preview: Path | None = None,
    language: Language = "en",
    show: bool = False,
) -> Run:
    """Train by the recipe and return the run; the photos are only read.

    `preview` is a file for a sheet of what the network will see.

    Raises a `FieldmarkError` before anything is written where a photo, the folder `out` or a
    value of the recipe stands in the way. Ctrl-C keeps what the finished epochs left.
    """
    files.refuse_existing(Path(out))
    if show:
        require_screen()
    if preview is not None:
        require_preview(recipe, preview)
    recipe = recipe.resolved()
    keras.utils.set_random_seed(recipe.seed)

    found = article.devices() if recipe.pipeline == "article" else backend.devices()
    say(f"Devices: {', '.join(found) or 'no GPU, computing on the CPU'}")
    fed = feed(recipe, photos, outputs=[Path(out), *([preview] if preview else [])])
    if preview is not None:
        write_preview(fed, preview)
    say(f"Classes: {', '.join(fed.photos.classes)}")
    network = build(recipe.network, image_size=recipe.image_size, classes=len(fed.photos.classes))
    require_room(Path(out), network)

    run = create(
        out,
        recipe=recipe,
        environment=environment.describe(photos),
        classes=fed.photos.classes,
        specification=fed.specification,
        records=fed.records,
    )
    try:
        album = Album(run, Lettering(language), fed.photos.classes, show=show)
        teach(network, recipe, fed, album)
    except (KeyboardInterrupt, FieldmarkError):  # a disk that fills up is one of the latter
        say(kept(run))
        raise
    say(outcome(run))
    return run


def teach(network: Any, recipe: Recipe, fed: Feed, album: Album) -> None:
    """Take the article's steps 4 to 11: look, compile, fit, curves, predictions."""
    images, labels = fed.first
    album.photos("training_photos", "training photos", images, labels)
    say(f"First batch: images {tuple(images.shape)}, labels {tuple(labels.shape)}")
    say(summary(network))
    steps = validation_steps = None  # the article's batches end with the epoch, ours do not
    if recipe.pipeline == "article":
        article.compile_network(network, recipe)
    else:
        network = logits_network(network)
        compile_network(network, recipe)
        steps, validation_steps = fed.steps, fed.validation_steps
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    say(f"Training {epochs} of {fed.steps} steps; the first step takes longest.")
    with meter("Training", recipe.epochs * fed.steps) as shown, expected_warning():
        network.fit(
            fed.training,
            validation_data=fed.validation,
            epochs=recipe.epochs,
            steps_per_epoch=steps,
            validation_steps=validation_steps,
            shuffle=False,  # the pipeline does
            verbose=0,
            callbacks=[Logger(album.run), Progress(shown, recipe.epochs)],
        )
    album.curves(album.run.read_log())
    images = fed.held_out()
    numbers = predict_singly(network, scale(images, fed.specification))
    album.photos("predictions", "predictions", images, numbers)


def compile_network(network: Any, recipe: Recipe) -> None:
    """Set optimiser, loss and accuracy for batches with labels (b, classes) and weights (b,)."""
    network.compile(
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
    )


class Logger(keras.callbacks.Callback):  # type: ignore[misc]
    """After each epoch: a line in the log, the last state, and the weights if they are the best."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Make the network that `best.keras` is saved from; it shares the trained layers."""
        self.chosen = logits_network(self.model)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take the time."""
        self.began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Keep the epoch's weights and write it down; what is in the log is on the disk."""
        seconds = round(time.monotonic() - self.began, 3)
        figures = {name: finite(value) for name, value in sorted((logs or {}).items())}
        finished: Epoch = {"epoch": epoch + 1, **figures, "seconds": seconds}
        with files.whole_file(self.run.last) as temporary:
            self.model.save(temporary)
        if best_epoch([*self.run.read_log(), finished]) == epoch + 1:
            copy_head(self.model, self.chosen)
            with files.whole_file(self.run.best) as temporary:
                self.chosen.save(temporary)
        self.run.append_log(finished)


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows the steps done and the time left, and prints the epoch's figures."""

    def __init__(self, shown: Meter, epochs: int) -> None:
        super().__init__()
        self.shown = shown
        self.epochs = epochs
        self.diverged = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take the time and the epoch's number."""
        self.began = time.monotonic()
        self.epoch = f"epoch {epoch + 1}/{self.epochs}"

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Move on one step."""
        values = logs or {}
        note = "  ".join(f"{name} {float(value):.3f}" for name, value in sorted(values.items()))
        self.shown.advance(note=f"{self.epoch}  {note}")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Print the figures in the article's order."""
        values = logs or {}
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        figures = "  ".join(f"{name} {values[name]:.3f}" for name in names)
        say(f"{self.epoch}  {duration(time.monotonic() - self.began)}  {figures}")
        if not math.isfinite(values["loss"]) and not self.diverged:
            self.diverged = True
            say("The loss is no number any more: stop, and take a smaller --learning-rate.")


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


def require_room(out: Path, network: Any) -> None:
    """Raise where the disk has no room for the run's weights.

    The best weights are 4 bytes a parameter and the last state 12, with Adam's two moments; while
    one is replaced it is there twice.
    """
    needed = network.count_params() * (4 + 12 + 12)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise FieldmarkError(
            f"{place} has {size(free)} free and the run needs {size(needed)}: "
            "free some room, or put --out on another disk."
        )


def predict_singly(network: Any, images: np.ndarray[Any, Any]) -> list[int]:
    """Predict photos (n, h, w, 3) one by one as the article does; return the class numbers."""
    return [int(np.argmax(network.predict(image[None], verbose=0))) for image in images]


def logits_network(network: Any) -> Any:
    """Return a network that ends before the softmax; all layers but the last are shared."""
    head = network.layers[-1]
    if head.activation is keras.activations.linear:
        return network
    logits = keras.layers.Dense(head.units, dtype="float32", name=head.name)
    return keras.Model(network.input, logits(head.input), name=network.name)


def copy_head(network: Any, chosen: Any) -> None:
    """Copy the weights of the last layer from the trained network to `logits_network`'s."""
    chosen.layers[-1].set_weights(network.layers[-1].get_weights())


@contextmanager
def expected_warning() -> Iterator[None]:
    """Silence Keras' word on the article's softmax before a loss of logits: it is known.

    On TensorFlow in float32 Keras finds the logits behind the softmax and nothing else happens;
    `docs/article.md` says what happens elsewhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*from_logits=True")
        yield


def best_epoch(log: Sequence[Epoch]) -> float | None:
    """Return the number of the epoch with the highest accuracy, and among equals lowest loss."""

    def merit(epoch: Epoch) -> tuple[float, float]:
        loss = epoch["val_loss"]
        return epoch["val_accuracy"] or 0.0, -math.inf if loss is None else -loss

    return max(log, key=merit)["epoch"]


def kept(run: Run) -> str:
    """Say what a run that was stopped holds."""
    there = [path for path in (run.log, run.best, run.last) if path.exists()]
    if not there:
        return (
            f"Stopped before the end of the first epoch; {run.folder} holds no weights "
            "and can be deleted."
        )
    names = ", ".join(str(path.relative_to(run.folder)) for path in there)
    return f"Stopped; epochs finished: {len(run.read_log())}; {run.folder} keeps {names}."


def outcome(run: Run) -> str:
    """Say what the training came to on the validation photos."""
    log = run.read_log()
    accuracy = log[-1]["val_accuracy"] or 0.0
    held_out = Counter(row.label for row in run.read_split() if row.split == "validation")
    count = held_out.total()
    right = round(accuracy * count)
    low, high = wilson(right / count, count)
    commonest = max(held_out.values())
    return (
        f"Validation accuracy after epoch {len(log)}: {accuracy:.1%}, {right} of {count} photos "
        f"(95 % interval {low:.0%} to {high:.0%}; "
        f"always the commonest class: {commonest / count:.0%}). "
        f"{run.best} holds epoch {best_epoch(log)}."
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


def finite(value: float) -> float | None:
    """Return a number for JSON, which has none for infinity and not-a-number."""
    return float(value) if math.isfinite(value) else None
