"""A search for a better recipe than the one that the rule chooses: trainings, many at a time.

In: a folder of photos and how many trainings. Out: the folder of `trials.py`, with a table of all,
a picture of what mattered, and the best recipe, compared with the chosen one on the photos held
out. Killed at any time it goes on by the same command.

    fieldmark tune PHOTOS --out FOLDER --trials 30 --minutes 5

What Ray Tune and Optuna do of that is in `tuner.py`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fieldmark import (
    backend,
    cluster,
    data,
    files,
    locks,
    mattered,
    packages,
    rule,
    space,
    split,
    train,
    tuner,
    weights,
)
from fieldmark.attempt import Job, judged, trained
from fieldmark.compare import compare
from fieldmark.console import Meter, duration, meter, say
from fieldmark.errors import FieldmarkError
from fieldmark.evaluate import evaluate
from fieldmark.feed import feed
from fieldmark.recipe import Recipe, named
from fieldmark.rule import Chosen, Device, Facts
from fieldmark.split import Record
from fieldmark.threads import processors
from fieldmark.trials import (
    Plan,
    Search,
    Trial,
    figures,
    is_search,
    open_search,
    sentence,
    table,
)

TRIALS = 30  # three times the random ones that TPE begins with


def tune(
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    count: int = TRIALS,
    workers: int | None = None,
    minutes: float | None = None,
    recipe: str = "",
    values: Mapping[str, Any] | None = None,
    space_file: Path | None = None,
    address: str = "",
    keep: bool = False,
) -> Search:
    """Search for a better recipe and return the search, or go on with the one in `out`.

    `count` trials are trained in all, `workers` at a time: as many as there are processors, or
    slots in the cluster at `address`. The recipe to begin with is `recipe`, or chosen for `minutes`
    of training; `values` of it are settled. Weights of trials that are not the best are removed but
    with `keep`. Raises a FieldmarkError before anything is written where something stands in the
    way. Ctrl-C and SIGTERM leave; the same call goes on.
    """
    if count < 2:
        raise FieldmarkError(f"--trials {count} compares nothing: give 2 or more.")
    if workers is not None and workers < 1:
        raise FieldmarkError(f"--workers {workers} is no number of workers: give 1 or more.")
    cluster.require()
    packages.require("optuna", extra="cluster", why="Optuna says what to try next")
    photos, folder = Path(photos).absolute(), Path(out).absolute()
    asked = {
        "minutes": minutes,
        "recipe": named(recipe).model_dump() if recipe else None,
        "values": dict(values or {}),
        "space": space.text(space_file) if space_file else None,
    }
    if is_search(folder):
        search = open_search(folder)
        refuse_other(search, asked, backend.name, count)
        begun = split.read(search.split)
    else:
        files.refuse_existing(folder)
        plan = planned(
            photos,
            asked,
            recipe=recipe,
            space_file=space_file,
            at_once=workers or processors(),
            count=count,
        )
        search, begun = Search(folder, plan), ()
    records = prepared(search, photos, begun)
    busy = f"{folder} is being searched by another process: wait for it, or give another --out."
    if not begun:
        if is_search(folder):
            raise FieldmarkError(busy)
        with files.whole_folder(folder) as temporary:
            draft = Search(temporary, search.plan)
            split.write(draft.split, records)
            draft.save()
    with locks.alone(folder / "lock", busy):
        try:
            if len(search.ended) < count:
                searched(search, photos, count, workers=workers, address=address, keep=keep)
        except FieldmarkError:
            if not begun and not search.trials:
                shutil.rmtree(folder)  # made by this call, and nothing was learned
            raise
        except (KeyboardInterrupt, SystemExit):
            say(kept(search, count))
            raise
        finally:
            shutil.rmtree(search.scratch, ignore_errors=True)
        concluded(search, photos)
    return search


def refuse_other(search: Search, asked: Mapping[str, Any], backend: str, count: int) -> None:
    """Raise where a search is another one than what is asked for now."""
    before = search.plan.asked
    unlike = [name for name in asked if before.get(name) != asked[name]]
    if unlike:
        flags = {"values": "values of the recipe"}
        what = ", ".join(flags.get(name, f"--{name}") for name in unlike)
        raise FieldmarkError(
            f"{search.folder} was begun with other {what}: give the same, or another --out."
        )
    if search.plan.backend != backend:
        raise FieldmarkError(
            f"{search.folder} was begun with {search.plan.backend}, and Keras computes with "
            f"{backend}: set KERAS_BACKEND={search.plan.backend}, or give another --out."
        )
    if count < len(search.trials):
        raise FieldmarkError(
            f"{search.folder} has {len(search.trials)} trials already: give --trials "
            f"{len(search.trials)} or more, or another --out."
        )


def kept(search: Search, count: int) -> str:
    """Say what a search that was stopped holds."""
    best = f"; the best so far: {search.recipe}" if search.best else ""
    return (
        f"Stopped; trials finished: {len(search.ended)} of {count}{best}; the same command goes "
        f"on from {search.folder}."
    )


# ---- before the first trial ---------------------------------------------------------------------


def planned(
    photos: Path,
    asked: Mapping[str, Any],
    *,
    recipe: str,
    space_file: Path | None,
    at_once: int,
    count: int,
) -> Plan:
    """Choose the recipe to begin with, and what is searched around it."""
    values = asked["values"]
    held_out = values.get("validation_split", 0.2) + values.get("test_split", 0.0)
    facts = rule.Facts.of(data.list_photos(photos), held_out=held_out)
    if recipe:
        if asked["minutes"] is not None:
            raise FieldmarkError("--minutes are for a recipe that is chosen: leave --recipe out.")
        chosen = named(recipe).changed(**values)
        refuse_untunable(chosen)
        bases = {chosen.image_size: chosen}
    else:
        found, bases = choices(facts, rule.measured(), asked["minutes"], values)
        chosen = found.recipe
        for reason in found.reasons:
            say(reason)
        refuse_untunable(chosen)
        single = rule.START + max(found.seconds - rule.START, 0) * processors()
        say(
            f"A training on one processor may take about {duration(single)}: {count} of them, "
            f"{at_once} at a time, {duration(single * count / at_once)}, and less as the worse "
            "ones are stopped early."
        )
    bases = {side: local(each) for side, each in bases.items()}
    if space_file is not None:
        fields = space.read(space_file, chosen, settled=values)
    else:
        fields = space.default(chosen, sides=list(bases), settled=values, most=facts.count)
    if not fields:
        raise FieldmarkError("All fields are settled, and nothing is left to search: settle fewer.")
    say(f"Searched: {', '.join(fields)}")
    return Plan(str(photos), asked, backend.name, bases, chosen.image_size, fields)


def choices(
    facts: Facts, device: Device, minutes: float | None, values: Mapping[str, Any]
) -> tuple[Chosen, dict[int, Recipe]]:
    """Return what the rule chooses, and the recipe for each image size that the minutes allow."""
    minutes = rule.MINUTES if minutes is None else minutes
    wishes = {"weights": rule.at_hand(values.get("network", "")), **values}
    found = rule.recipe_for(facts, device, minutes, wishes=wishes)
    bases = {found.recipe.image_size: found.recipe}
    settled = {"image_size", "begin_size", "end_size", "epochs"} & set(values)
    if not settled and not rule.of_photos(found.recipe.weights):  # those have a size of their own
        for *_, side in rule.sides(facts, 0):
            other = rule.recipe_for(facts, device, minutes, wishes={**wishes, "image_size": side})
            if other.seconds <= max(found.seconds, minutes * 60) * 1.1:
                bases.setdefault(side, other.recipe)
    return found, bases


def refuse_untunable(recipe: Recipe) -> None:
    """Raise for a recipe that has nothing to search."""
    if recipe.pipeline != "batches":
        raise FieldmarkError(
            "The article's pipeline has next to nothing to search: add --pipeline batches, or "
            "take another --recipe."
        )
    if recipe.epochs == 0:
        raise FieldmarkError(
            "The recipe trains no epoch, only a classifier on features, which leaves nothing to "
            "search: give more --minutes, or --recipe finetune."
        )


def local(recipe: Recipe) -> Recipe:
    """Return the recipe with paths that mean the same in another process."""
    changes = {}
    if recipe.weights not in ("", *weights.WORDS):
        changes["weights"] = str(files.expanded(recipe.weights).absolute())
    if recipe.split not in ("auto", "article", "stratified"):
        changes["split"] = str(files.expanded(recipe.split).absolute())
    return recipe.changed(**changes).resolved()


def prepared(search: Search, photos: Path, begun: Sequence[Record]) -> Sequence[Record]:
    """Look at all that a trial needs, so that it is refused once and not by each; keep it decoded.

    Returns the split.
    """
    recipe = search.plan.chosen
    fed = feed(recipe, photos, outputs=[search.folder], begun=begun)
    model = train.built(recipe, len(fed.photos.classes))
    if recipe.weights:
        weights.load(model, recipe.weights)
    return fed.records


# ---- the search ---------------------------------------------------------------------------------


def searched(
    search: Search, photos: Path, count: int, *, workers: int | None, address: str, keep: bool
) -> None:
    """Train until so many trials are over."""
    shutil.rmtree(search.scratch, ignore_errors=True)  # of a search that was killed
    slots = workers if workers is not None else 1 if address else processors()
    with (
        left_alike() as handler,
        cluster.heeded(tuner.SETTINGS),
        cluster.joined(address, slots=slots, paths=[photos, search.folder]) as ray,
    ):
        handler()
        at_once = workers or (cluster.slots_of(ray) if address else slots)
        gpus = ray.cluster_resources().get("GPU", 0)
        job = Job(search.plan, search.folder, photos, shlex.join(sys.argv))
        with meter("Trials", count) as shown, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray and Optuna say to their own callers
            shown.advance(len(search.ended))
            tuner.tuner(
                search,
                partial(trained, job),
                resources={"cpu": 1, **({"gpu": min(1, gpus / at_once)} if gpus else {})},
                count=count,
                at_once=at_once,
                ended=tuner.Here(partial(ended, search, shown, keep)),
            ).fit()
    if len(search.ended) < count:
        raise FieldmarkError(
            f"{count - len(search.ended)} of {count} trials have not ended: the same command goes "
            "on with them."
        )


@contextmanager
def left_alike() -> Iterator[Callable[[], None]]:
    """Let SIGTERM end the search as it ends every command.

    Ray takes the signal for itself when it is started, after which the call that is given brings
    the handler back; and whatever the handler raises, Ray leaves with a code of its own.
    """
    before = signal.getsignal(signal.SIGTERM)

    def bring_back() -> None:
        with suppress(ValueError, TypeError):  # not the main thread, or not Python's handler
            signal.signal(signal.SIGTERM, before)

    try:
        yield bring_back
    except SystemExit as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    finally:
        bring_back()


def ended(search: Search, shown: Meter, keep: bool, number: int, failure: str) -> None:
    """Put down what a trial came to, say so, and remove weights that nobody wants."""
    trial = judged(search, search.trials[number], failure)
    search.end(trial)
    if not keep:
        tidy(search)
    say(sentence(trial))
    best = search.best
    shown.advance(note=f"best: trial {best.number}, {figures(best)}" if best else "")


def tidy(search: Search) -> None:
    """Remove the weights of all trials that are over but the best one and the chosen recipe's."""
    wanted = {0, search.best.number if search.best else 0}
    for trial in search.ended:
        if trial.number not in wanted:
            run = search.run(trial.number)
            for file in (run.best, run.last):
                file.unlink(missing_ok=True)


# ---- what it came to ----------------------------------------------------------------------------


def concluded(search: Search, photos: Path) -> None:
    """Print the table, draw what mattered, and compare the best recipe with the chosen one."""
    best = search.best
    if best is None:
        reasons = "; ".join(dict.fromkeys(trial.reason for trial in search.trials if trial.reason))
        raise FieldmarkError(f"No trial was trained to its end ({reasons.rstrip('.')}).")
    search.tell()  # a kill may have come before it
    say(table(search))
    say("")
    found = mattered.mattered(search)
    with files.whole_file(search.picture) as temporary:
        mattered.picture(search, found).savefig(temporary, dpi=110)
    say(verdict(search, photos, best))
    if found is not None:
        say(mattered.sentence(found))
    say(f"Table: {search.table}")
    say(f"Figure: {search.picture}")
    say(f"Recipe: {search.recipe} (fieldmark train PHOTOS --recipe {search.recipe} --out RUN)")


def verdict(search: Search, photos: Path, best: Trial) -> str:
    """Say whether the search found anything, by the photos held out that both have predicted."""
    if best.number == 0:
        return (
            f"Nothing was better than the recipe that was chosen ({figures(best)}): keep it. "
            "No gain is a result."
        )
    runs = [search.run(number) for number in (0, best.number)]
    if search.trials[0].value is None:
        return (
            f"The chosen recipe failed ({search.trials[0].reason.rstrip('.')}); trial "
            f"{best.number} is the best of the others: {figures(best)}."
        )
    for run in runs:
        if not run.predictions.exists():
            evaluate(run.folder, None if run.read_source() == photos else photos)
    part = "test" if search.plan.chosen.test_split else "validation"
    said = compare([run.folder for run in runs], split=part)
    files.write_json(search.comparison, said.as_json())
    names = (f"Trial {best.number}", "the chosen recipe")
    text = said.differences[0].sentence
    for run, name in zip(runs[::-1], names, strict=True):
        text = text.replace(str(run.folder), name)
    flatters = (
        "These test photos had no part in the search."
        if part == "test"
        else "It was picked of all trials by these photos, which flatters it: train both with "
        "another --split-seed before you trust in a gain."
    )
    return f"{text[0].upper()}{text[1:]} {flatters}"
