"""One training of a search, in a process of its own, which may be killed and started again.

In: a `Job`, a trial's number and its values of the recipe. Out: a run folder, as `fieldmark train`
makes it but for the figures, and a report after each look at the validation photos.
"""

# Keras is imported in functions only: the process imports this module before it is told with how
# many threads it may compute.
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark import locks, split
from fieldmark.console import be_quiet
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch, best_of, over
from fieldmark.recipe import Recipe
from fieldmark.run import create, is_run, open_run
from fieldmark.trials import Plan, Search, Trial

SAVE_EVERY = 60.0  # seconds of a trial that a kill may cost
PATIENCE = 60.0  # seconds for a trial's killed process to be gone

# One thread a trial, in every library that would else take all processors.
THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "NPROC": "1",  # XLA's
}


class Job(NamedTuple):
    """What a trial's process is told."""

    plan: Plan
    folder: Path
    photos: Path
    command: str


def trained(job: Job, config: Mapping[str, Any]) -> None:
    """Train a trial, or go on with it, and report each look at the validation photos to Ray.

    What is wrong with its values is reported too; all else raises, and is tried again.
    """
    from ray import tune as ray_tune

    os.environ.update({name: os.environ.get(name, value) for name, value in THREADS.items()})
    os.environ["KERAS_BACKEND"] = job.plan.backend
    be_quiet()
    try:
        training(job, config["number"], config["values"], ray_tune.report)
    except FieldmarkError as error:
        ray_tune.report({"failure": str(error)})


def training(
    job: Job, number: int, values: Mapping[str, Any], report: Callable[[dict[str, float]], object]
) -> None:
    """Train a trial in its run folder as `fieldmark train` would, or go on with it."""
    from fieldmark import backend, environment, loop, train, weights
    from fieldmark.feed import feed

    search = Search(job.folder, job.plan)
    run = search.run(number)
    recipe = job.plan.recipe(values)
    log = list(run.read_log()) if is_run(run.folder) else []
    for said in course(log, recipe):  # whoever hears of it has been started anew as well
        report(said)
    backend.keras.utils.set_random_seed(recipe.seed)
    fed = feed(recipe, job.photos, begun=split.read(search.split))
    if fed.ours is None:
        raise FieldmarkError("The article's pipeline is not searched.")
    model = train.built(recipe, len(fed.photos.classes))
    if not is_run(run.folder):
        create(
            run.folder,
            recipe=recipe,
            environment={**environment.describe(job.photos), "command": job.command},
            classes=fed.photos.classes,
            specification=fed.specification,
            records=fed.records,
        )
    run = open_run(run.folder)

    def append(line: Epoch) -> None:
        run.append_log(line)
        log.append(line)
        if "val_loss" in line:
            *_, said = ({}, *course(log, recipe))
            report(said)

    with locks.awaited(run.lock, patience=PATIENCE):
        if not run.last.exists():
            if recipe.weights:
                weights.load(model, recipe.weights)
            if recipe.probe:
                groups = [row.group or row.path for row in fed.records if row.split == "training"]
                train.probe(model, recipe, fed.ours, run, groups=groups)
        keeper = replace(train.keeper_of(run, save_every=SAVE_EVERY), append=append)
        with backend.enough_memory(recipe.batch_size):
            loop.train(
                model,
                recipe,
                training=fed.ours.epochs,
                validation=fed.ours.validation,
                keeper=keeper,
            )


# ---- what a run says ---------------------------------------------------------------------------


def course(log: Sequence[Epoch], recipe: Recipe) -> Iterator[dict[str, float]]:
    """Yield what a trial says after each look at the validation photos.

    `share` is how much of the training is done, in hundredths: trainings of different sizes of
    photos have different numbers of epochs, and take the same time.
    """
    for place, line in enumerate(log, start=1):
        best = best_of(log[:place], recipe.monitor)
        if "val_loss" in line and best is not None:
            yield {"share": 100 * place / recipe.epochs, "value": best.value(recipe.monitor)}


def judged(search: Search, trial: Trial, failure: str) -> Trial:
    """Return a trial with what its run came to."""
    run = search.run(trial.number)
    log = run.read_log() if is_run(run.folder) else []
    best = best_of(log, search.plan.monitor)
    trial = replace(
        trial,
        epochs=len(log),
        seconds=round(sum(line.get("seconds") or 0.0 for line in log), 1),
        state="failed",
        reason=failure,
    )
    if best is not None:
        trial = replace(trial, value=best.value(search.plan.monitor), **best._asdict())
    if failure:
        return trial
    if best is None:
        return replace(trial, reason="no loss was a number")
    recipe = run.read_recipe()
    return replace(trial, state="done" if over(log, recipe, recipe.epochs) else "stopped")
