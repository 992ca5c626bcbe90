"""The article's training by Keras' own `fit`, written into a run epoch by epoch, and gone on with.

In: the article's datasets, a network, the recipe and a `Keeper`. Out: the trained network, a line
of the log for each epoch, the best weights and the state. The steps are the article's and nothing
else is done to it; what is added looks on. `fieldmark train PHOTOS --recipe article --out RUN`
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fieldmark import article, state
from fieldmark.backend import keras
from fieldmark.console import Meter, duration, meter, say
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch, best_of
from fieldmark.loop import Keeper, lost, made_with, place, restore, values
from fieldmark.recipe import Recipe
from fieldmark.state import Header


def train(
    network: Any,
    recipe: Recipe,
    *,
    datasets: tuple[Any, Any],
    keeper: Keeper,
    unchanged: Callable[[], None] = lambda: None,
) -> None:
    """Take the article's steps 8 and 9, or go on with them after the last epoch in the state.

    The photos are read in the first epoch here; `unchanged` raises where they are other ones then.
    """
    training, validation = datasets
    article.compile_network(network, recipe)
    record = Logger(recipe, keeper, network, unchanged)
    done = 0
    state.sweep(keeper.state)
    with article.reading(unchanged):
        if keeper.state.exists():
            done = record.resume()
            replay(training, epochs=done)
        with meter("Training", recipe.epochs * len(training)) as shown, expected_warning():
            if done:
                shown.advance(done * len(training))
            network.fit(
                training,
                validation_data=validation,
                initial_epoch=done,
                epochs=recipe.epochs,
                shuffle=False,  # the pipeline does
                verbose=0,
                callbacks=[record, Progress(shown, recipe.epochs)],
            )


def replay(training: Any, *, epochs: int) -> None:
    """Bring the article's pipeline to where it stood after so many epochs of `fit`.

    Which photos meet in a batch was settled by the first reading, and the order of the batches
    hangs on how many readings were begun: two an epoch on TensorFlow, of which Keras reads one
    (`_enumerate_iterator` in `keras/src/trainers/epoch_iterator.py` of Keras 3.15).
    """
    for _ in range(epochs):
        for _ in training:
            pass
        iter(training)


class Logger(keras.callbacks.Callback):  # type: ignore[misc]
    """After each epoch: the state, the weights if they are the best, and a line in the log."""

    def __init__(
        self,
        recipe: Recipe,
        keeper: Keeper,
        network: Any,
        unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.unchanged: Callable[[], None] | None = unchanged
        self.recipe = recipe
        self.keeper = keeper
        self.set_model(network)
        network.optimizer.build(network.trainable_variables)
        # `best.keras` is saved from it; it shares the trained layers.
        self.chosen = logits_network(network)
        self.header = Header(recipe=recipe.model_dump(), made_with=made_with())

    def resume(self) -> int:
        """Put everything where the state left it; return how many epochs are done."""
        header = restore(self.model, self.model.optimizer, self.recipe, self.keeper)
        self.header = header
        self.keeper.mend(header.log)
        self.keep_best()  # a kill may have come between the state and it
        if header.epoch < self.recipe.epochs:
            say(f"Going on after epoch {header.epoch}.")
        return header.epoch

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take the time."""
        self.began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Keep the epoch's weights and write it down; what is in the log is on the disk."""
        seconds = round(time.monotonic() - self.began, 3)
        figures = {name: finite(value) for name, value in sorted((logs or {}).items())}
        if figures["loss"] is None:
            raise FieldmarkError(self.lost("the loss is no number"))
        if self.unchanged:
            self.unchanged()
            self.unchanged = None  # the photos are in memory from now on
        finished: Epoch = {"epoch": epoch + 1, **figures, "seconds": seconds}
        header = replace(self.header, epoch=epoch + 1, log=(*self.header.log, finished))
        arrays = values(self.model, self.model.optimizer, lost=self.lost)
        state.write(self.keeper.state, header, photos=self.keeper.photos, arrays=arrays)
        self.header = header
        self.keep_best()
        self.keeper.append(finished)

    def lost(self, what: str) -> str:
        """Say that the training cannot go on, and what is kept."""
        done = len(self.header.log)
        kept = place(done, 0) if self.keeper.state.exists() else None
        return lost(what, after=place(done + 1, 0), kept=kept, state=self.keeper.state)

    def keep_best(self) -> None:
        """Keep the weights where the last epoch is the best."""
        best = best_of(self.header.log, self.recipe.monitor)
        if best is not None and best.epoch == self.header.epoch:
            copy_head(self.model, self.chosen)
            self.keeper.best(self.chosen)


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows the steps done and the time left, and prints the epoch's figures."""

    def __init__(self, shown: Meter, epochs: int) -> None:
        super().__init__()
        self.shown = shown
        self.epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take the time and the epoch's number."""
        self.began = time.monotonic()
        self.epoch = f"epoch {epoch + 1}/{self.epochs}"

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Move on one step."""
        found = logs or {}
        note = "  ".join(f"{name} {float(value):.3f}" for name, value in sorted(found.items()))
        self.shown.advance(note=f"{self.epoch}  {note}")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Print the figures in the article's order."""
        found = logs or {}
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        figures = "  ".join(f"{name} {found[name]:.3f}" for name in names)
        say(f"{self.epoch}  {duration(time.monotonic() - self.began)}  {figures}")


def logits_network(network: Any) -> Any:
    """Return a network that ends before the softmax; all layers but the last are shared."""
    head = network.layers[-1]
    if head.activation is keras.activations.linear:
        return keras.Model(network.input, network.output, name=network.name)
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


def finite(value: float) -> float | None:
    """Return a number for JSON, which has none for infinity and not-a-number."""
    return float(value) if math.isfinite(value) else None
