"""The training loop: a network and its batches -> trained weights, killed and gone on from at will.

In: a functional Keras network that ends in logits, a `Recipe`, of which all that decides the result
beside network and batches is read, the `Batches` of every epoch, those to validate on, and a
`Keeper`, which says where the state lies and what else is to be kept. Out: an `Outcome`; on the way
a line of figures for each finished epoch, and the best weights. Where there is a state the training
goes on from it, and on one machine and backend it ends with the same bits as if it had never been
stopped. `fieldmark train PHOTOS --out RUN` runs it; `docs/resume.md` says what
is kept and what is promised.
"""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import backend, kernels, mesh, steps
from fieldmark.backend import keras
from fieldmark.batches import Batch, Batches
from fieldmark.console import Meter, duration, meter, say
from fieldmark.errors import FieldmarkError
from fieldmark.inference import (
    Evaluation,
    evaluate,
    forward,
    statistics,
    training_forward,
    values_of,
)
from fieldmark.logbook import Epoch, Look, best_of, looked_at, over
from fieldmark.packages import installed
from fieldmark.recipe import Recipe
from fieldmark.state import Header, read, refuse_other, sweep, write

MOMENTUM = 0.9  # of SGD: Sutskever et al. 2013 and everyone since

# What a line of the log says of the time, and no two runs say alike.
TIMES = ("seconds", "photos_per_second")


@dataclass(frozen=True)
class Keeper:
    """Where a training's state lies, what it is of, and whom to tell what."""

    state: Path
    photos: NDArray[np.uint64]  # `state.digests` of the split
    append: Callable[[Epoch], None]  # adds one line to the log
    mend: Callable[[Sequence[Epoch]], None]  # makes the log hold these lines and no others
    best: Callable[[Any], None]  # keeps the weights of the network that it is given
    save_every: float = 300.0  # seconds between two states
    pushed: Callable[[], None] = lambda: None  # is told that something new is kept
    save: bool = True  # the state is this process' to write: of several, one does


class Outcome(NamedTuple):
    """What a training came to."""

    log: tuple[Epoch, ...]
    best: Look | None  # none where no evaluation gave a number
    stopped: bool  # before its last epoch, as nothing became better


def train(
    network: Any,
    recipe: Recipe,
    *,
    training: Sequence[Batches],
    validation: Batches,
    keeper: Keeper,
    poll: Callable[[], None] | None = None,
) -> Outcome:
    """Train the network to the end of the recipe, or go on with it from the state that is there.

    `training` has the batches of each epoch; their size may change from epoch to epoch. SIGINT
    and SIGTERM save the state and leave by KeyboardInterrupt and SystemExit(143); `poll` is asked
    in their place, and raises `Stopped` to have the same. Raises a
    FieldmarkError for a state that does not match, a disk that is full, and a loss or weights that
    are no numbers any more; the state of before is kept then. A state is of one process alone:
    whoever calls this sees to it that no other one trains into the same place.
    """
    course = Course(network, recipe, training, validation, keeper)
    sweep(keeper.state)
    if keeper.state.exists():
        course.resume()
    with Signals() as signals:
        try:
            course.run(poll or signals.poll)
            (poll or signals.poll)()  # the last epoch may have ended since it came
        except Stopped as stopped:
            course.save()
            stopped.leave()
    best = best_of(course.header.log, recipe.monitor)
    done = course.header.epoch
    return Outcome(tuple(course.header.log), best, done < len(training))


# ---- what follows from the recipe ---------------------------------------------------------------


def optimiser_of(recipe: Recipe, network: Any) -> Any:
    """Return Keras' optimiser of the recipe, built for the network's trainable variables."""
    options: dict[str, Any] = {
        "weight_decay": recipe.weight_decay or None,
        "global_clipnorm": recipe.clip or None,
        "gradient_accumulation_steps": recipe.accumulate if recipe.accumulate > 1 else None,
    }
    if recipe.average:
        # Keras averages at each batch: so long as an update is made of several, each counts less.
        momentum = recipe.average ** (1 / recipe.accumulate)
        options |= {"use_ema": True, "ema_momentum": momentum}
    if recipe.optimiser == "sgd":
        options |= {"momentum": MOMENTUM, "nesterov": True}
    elif recipe.optimiser == "adamw":
        options["weight_decay"] = recipe.weight_decay  # AdamW takes no None
    kinds = {
        "adamw": keras.optimizers.AdamW,
        "adam": keras.optimizers.Adam,
        "sgd": keras.optimizers.SGD,
    }
    # The rate is a variable of the optimiser; the loop sets it before each step.
    optimiser = kinds[recipe.optimiser](float(recipe.learning_rate), **options)
    if recipe.weight_decay:
        kernels.keep_decay_off(optimiser, network)
    optimiser.build(network.trainable_variables)
    return optimiser


def learning_rate(recipe: Recipe, step: int, *, total: int, warmup: int) -> float:
    """Return the rate of a step, counted over all epochs from 0; it follows from these alone.

    Linear for the first `warmup` steps, then constant or half a cosine that would reach 0 at step
    `total` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    part = (step - warmup) / (total - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


# ---- the course of a training -------------------------------------------------------------------


class Course:
    """A training under way: its variables, and the header that says where it stands."""

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        training: Sequence[Batches],
        validation: Batches,
        keeper: Keeper,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.training = training
        self.validation = validation
        self.keeper = keeper
        # For whoever saves it: the same layers, but never compiled, so without an optimiser.
        self.bare = keras.Model(network.input, network.output, name=network.name)
        self.optimiser = optimiser_of(recipe, network)
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        )
        self.step = steps.training_step(
            network, self.optimiser, loss=loss, precision=recipe.precision
        )
        self.forward = forward(network)
        self.training_forward = training_forward(network)
        self.before = np.cumsum([0, *map(len, training)]).tolist()  # steps before each epoch
        self.header = Header(recipe=recipe.model_dump(), made_with=made_with())
        self.saved: tuple[int, int] | None = None  # epoch and step of the state on the disk
        self.saved_at = time.monotonic()

    # -- the state

    def save(self) -> None:
        """Write the state; raise a FieldmarkError instead where a variable is no number."""
        at = (self.header.epoch, self.header.step)
        if self.saved != at and self.keeper.save:
            write(
                self.keeper.state,
                self.header,
                photos=self.keeper.photos,
                arrays=values(self.network, self.optimiser, lost=self.lost),
            )
            self.saved = at
            self.keeper.pushed()
        self.saved_at = time.monotonic()

    def lost(self, what: str) -> str:
        """Say that the training cannot go on, and what is kept."""
        at = place(self.header.epoch, self.header.step)
        return lost(what, after=at, kept=self.saved and place(*self.saved), state=self.keeper.state)

    def begin(self) -> None:
        """Write the state before the first step, for others to go on from."""
        self.keeper.state.parent.mkdir(exist_ok=True)
        self.save()

    def resume(self) -> None:
        """Put everything where the state left it, and log and best weights where they belong."""
        keeper = self.keeper
        header = restore(self.network, self.optimiser, self.recipe, keeper)
        self.header = replace(header, made_with=self.header.made_with)
        self.saved = (header.epoch, header.step)
        keeper.mend(header.log)
        best = best_of(header.log, self.recipe.monitor)
        # The state is written before the best weights are: they are still the network's own, and
        # may not have been kept.
        if header.step == 0 and best is not None and best.epoch == header.epoch:
            self.keep_best(best)
        begun = header.epoch or header.step
        if begun and not over(header.log, self.recipe, len(self.training)):
            say(f"Going on after {place(header.epoch, header.step)}.")

    # -- the way

    def run(self, poll: Callable[[], None]) -> None:
        """Train epoch by epoch; `poll` raises where the training is to stop."""
        total = self.before[-1]
        stream = self.stream()
        with meter("Training", total) as shown:
            if done := self.before[self.header.epoch] + self.header.step:
                shown.advance(done)
            while not over(self.header.log, self.recipe, len(self.training)):
                self.teach(stream, shown, poll)
                self.finish(poll)

    def stream(self) -> Iterator[Batch]:
        """Yield the batches that come next, to the end of the last epoch, read ahead."""
        epoch, step = self.header.epoch, self.header.step
        process, processes = mesh.processes()
        if epoch < len(self.training) and step == len(self.training[epoch]):
            epoch, step = epoch + 1, 0
        # Neighbouring epochs of the same batches are read ahead across their border.
        for _, group in groupby(range(epoch, len(self.training)), lambda e: id(self.training[e])):
            epochs = list(group)
            yield from self.training[epochs[0]].dataset(
                epochs=epochs[-1] + 1,
                start=(epochs[0], step),
                process=process,
                processes=processes,
            )
            step = 0

    def teach(self, stream: Iterator[Batch], shown: Meter, poll: Callable[[], None]) -> None:
        """Take the steps that are left of the epoch."""
        epoch, steps = self.header.epoch, len(self.training[self.header.epoch])
        size = self.training[epoch].batch_size
        while self.header.step < steps:
            poll()
            began = time.monotonic()
            rate = self.rate(self.header.step)
            self.optimiser.learning_rate.assign(rate)
            found = self.step(*next(stream))
            if not math.isfinite(found.loss):
                raise FieldmarkError(self.lost("the loss is no number"))
            seconds = time.monotonic() - began
            at = self.header
            self.header = replace(
                at,
                step=at.step + 1,
                loss=at.loss + found.loss,
                accuracy=at.accuracy + found.accuracy,
                seconds=at.seconds + seconds,
            )
            shown.advance(
                note=f"epoch {epoch + 1}/{len(self.training)}  loss {found.loss:.3f}  "
                f"rate {rate:.2g}  {size / seconds:.0f} photos/s"
            )
            if time.monotonic() - self.saved_at >= self.keeper.save_every:
                self.save()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of the running epoch."""
        return learning_rate(
            self.recipe,
            self.before[self.header.epoch] + step,
            total=self.before[-1],
            warmup=round(self.recipe.warmup * self.before[-1] / len(self.training)),
        )

    def finish(self, poll: Callable[[], None]) -> None:
        """End an epoch: evaluate, then write state, best weights and log, in that order.

        A kill between two of them is made good by `resume`, from the state.
        """
        began = time.monotonic()
        line = self.figures()
        at = self.header
        if looked_at(at.epoch, self.recipe, len(self.training)):
            line |= self.evaluations(poll)
        line["seconds"] = round(at.seconds + time.monotonic() - began, 3)
        self.header = replace(
            at,
            epoch=at.epoch + 1,
            step=0,
            loss=0.0,
            accuracy=0.0,
            seconds=0.0,
            log=(*at.log, line),
        )
        self.save()
        best = best_of(self.header.log, self.recipe.monitor)
        if best is not None and best.epoch == self.header.epoch:
            self.keep_best(best)
        self.keeper.append(line)
        self.keeper.pushed()
        say(sentence(line, len(self.training)))

    def figures(self) -> dict[str, float | None]:
        """Return what the epoch's steps have said."""
        at = self.header
        photos = at.step * self.training[at.epoch].batch_size
        return {
            "epoch": at.epoch + 1,
            "loss": at.loss / at.step,
            "accuracy": at.accuracy / at.step,
            "learning_rate": self.rate(at.step - 1),  # of the last step
            "photos_per_second": round(photos / at.seconds, 2) if at.seconds else None,
        }

    def evaluations(self, poll: Callable[[], None]) -> dict[str, float | None]:
        """Return the validation's figures, with the averaged weights beside the raw ones."""
        found: dict[str, float | None] = {}
        for averaged in (False, True)[: 1 + bool(self.recipe.average)]:
            with self.weights(averaged=averaged, epoch=self.header.epoch):
                loss, accuracy = evaluate(self.forward, self.validation, poll=poll)
            prefix = "averaged_" if averaged else ""
            finite = math.isfinite(loss)
            found[f"{prefix}val_loss"] = loss if finite else None
            found[f"{prefix}val_accuracy"] = accuracy if finite else None
        return found

    @contextmanager
    def weights(self, *, averaged: bool, epoch: int) -> Iterator[None]:
        """Let the network have the weights that are evaluated after an epoch, counted from 0."""
        exchanged = kernels.averaged(self.optimiser) if averaged else nullcontext()
        batches, count, run = self.training[epoch], self.recipe.statistics, self.training_forward
        with exchanged, statistics(self.network, batches, epoch, count, run=run):
            yield

    def keep_best(self, best: Look) -> None:
        """Have the best weights kept, which are those of the epoch that has just ended."""
        with self.weights(averaged=best.averaged, epoch=best.epoch - 1):
            self.keeper.best(self.bare)


# ---- network and optimiser in a state -----------------------------------------------------------


def variables(network: Any, optimiser: Any) -> list[tuple[str, Any]]:
    """Return all variables with their names in the state.

    A name has the variable's place, and its path without the numbers that Keras counts up in a
    process, such as the 3 of `adamw_3`.
    """
    parts = (("network", network.variables), ("optimiser", optimiser.variables))
    return [
        (f"{part}/{place:04d}/{re.sub(r'_[0-9]+(?=/|$)', '', variable.path)}", variable)
        for part, found in parts
        for place, variable in enumerate(found)
    ]


def values(
    network: Any, optimiser: Any, *, lost: Callable[[str], str]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the values of all variables, as long as they are finite numbers.

    Raises a FieldmarkError with what `lost` makes of the clause that says which are not.
    """
    for name, variable in variables(network, optimiser):
        found = values_of(variable)
        if not np.isfinite(found).all():
            raise FieldmarkError(lost(f"{variable.path} has values that are no numbers"))
        yield name, found


def restore(network: Any, optimiser: Any, recipe: Recipe, keeper: Keeper) -> Header:
    """Give all variables their values from the state and return its header, or raise.

    A FieldmarkError says in what the state is of another training; nothing is changed then.
    """
    header, photos, arrays = read(keeper.state)
    refuse_other(
        keeper.state,
        (header, photos),
        recipe=recipe.model_dump(),
        photos=keeper.photos,
        backend=backend.name,
    )
    ours = variables(network, optimiser)
    expected = {name: (tuple(each.shape), str(each.dtype)) for name, each in ours}
    found = {name: (each.shape, str(each.dtype)) for name, each in arrays.items()}
    if expected != found:
        unlike = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
        raise FieldmarkError(
            f"{keeper.state} is of another network or optimiser, {unlike} to begin with: "
            "give the values that it was begun with, or begin a new run."
        )
    for name, variable in ours:
        variable.assign(arrays[name])
    if header.made_with != made_with():
        said = ", ".join(f"{name} {version}" for name, version in header.made_with.items())
        say(f"Note: begun with {said}; with other versions the last bits differ.")
    return header


def made_with() -> dict[str, str]:
    """Return the backend and the versions on which the last bits of a training depend."""
    library = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax",), "torch": ("torch",)}
    names = ("keras", *library[backend.name], "numpy", "pillow")
    versions = {name: found for name in names if (found := installed(name))}
    return {"backend": backend.name, **versions}


def lost(what: str, *, after: str, kept: str | None, state: Path) -> str:
    """Say that a training cannot go on, and what is kept."""
    there = f"{state} keeps {kept}" if kept else "no state was kept before"
    return (
        f"After {after}, {what} any more; {there}: begin a new run with a smaller --learning-rate."
    )


def place(epoch: int, step: int) -> str:
    """Write where a training stands for people, who count from 1."""
    return f"step {step} of epoch {epoch + 1}" if step or not epoch else f"epoch {epoch}"


def sentence(line: Epoch, epochs: int) -> str:
    """Write an epoch's line for people."""
    validated = [f"{averaged}val_{n}" for averaged in ("", "averaged_") for n in Evaluation._fields]
    names = ("loss", "accuracy", *validated)
    shown = [(name.replace("_", " "), line[name]) for name in names if name in line]
    figures = "  ".join(f"{n} {'none' if v is None else f'{v:.3f}'}" for n, v in shown)
    seconds, pace = line["seconds"] or 0, line["photos_per_second"] or 0
    return f"epoch {line['epoch']}/{epochs}  {duration(seconds)}  {figures}  {pace:.0f} photos/s"


# ---- signals ------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - it is no error
    """The training is to stop, as a signal asks."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def leave(self) -> None:
        """Leave as the signal would have it."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)  # as a shell says it


class Signals:
    """Waits for SIGINT and SIGTERM; a second one does not wait for the state to be saved."""

    def __init__(self) -> None:
        self.seen: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignored by whoever started this process, for instance in the background of a
                # shell: so it stays.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, _frame: object) -> None:
        """Note the signal for the next `poll`."""
        if self.seen is not None:
            Stopped(number).leave()
        self.seen = number

    def poll(self) -> None:
        """Raise `Stopped` where a signal has come."""
        if self.seen is not None:
            raise Stopped(self.seen)
