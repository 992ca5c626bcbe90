"""The folder of a search: what is searched, each trial with what it came to, the best recipe.

In: a folder. Out: a `Search`, which is kept in it whole after each change, so that a search that
was killed is gone on with; beside it a table as CSV, the best recipe as TOML, and the picture of
what mattered. `fieldmark tune PHOTOS --out FOLDER` makes one.

| file | what |
| --- | --- |
| `tune.json` | the plan and the trials: all that going on needs |
| `split.csv` | which photos train and which validate, the same in all trials |
| `trials/NNN/` | a run folder a trial; 000 is the recipe that was chosen |
| `trials.csv` | a row a trial |
| `best.toml` | the recipe of the best trial that was trained to its end |
| `mattered.png` | which fields mattered, and each trial's figure over each field |
| `comparison.json` | the best against the chosen one, on the photos held out |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fieldmark import files, space
from fieldmark.console import duration, many, printed
from fieldmark.errors import FieldmarkError
from fieldmark.files import Inside
from fieldmark.metrics import grid
from fieldmark.recipe import Recipe
from fieldmark.run import Run
from fieldmark.space import Space

SCHEMA = 1  # raised when `tune.json` changes its meaning
SHOWN = 10  # trials in the printed table; the CSV has all

State = Literal["begun", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Plan:
    """What is searched: the same from the first trial to the last."""

    photos: str
    asked: Mapping[str, Any]  # what the command said, which must be the same to go on
    backend: str
    bases: Mapping[int, Recipe]  # the recipe chosen for each image size
    side: int  # the image size of the recipe that was chosen
    space: Space

    @property
    def chosen(self) -> Recipe:
        """The recipe that all is compared with: trial 0."""
        return self.bases[self.side]

    @property
    def monitor(self) -> Literal["loss", "accuracy"]:
        """What is to become better."""
        return self.chosen.monitor

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe at a point of the space; raise a FieldmarkError where it is none."""
        side = values.get("image_size", self.side)
        return self.bases.get(side, self.chosen).changed(**values)


@dataclass(frozen=True)
class Trial:
    """A training of the search."""

    number: int
    values: Mapping[str, Any]  # of the fields that are searched
    state: State = "begun"
    value: float | None = None  # the best of what is monitored
    epoch: int = 0  # that has it, counted from 1
    averaged: bool = False
    loss: float | None = None  # of that epoch, on the validation photos
    accuracy: float | None = None
    epochs: int = 0  # that were trained
    seconds: float = 0.0
    reason: str = ""  # why it failed

    def better(self, than: Trial, monitor: str) -> bool:
        """Tell whether it is the better one."""
        if self.value is None or than.value is None:
            return self.value is not None
        if monitor == "accuracy" and self.value == than.value:  # as the trainer has it
            return (self.loss or 0.0) < (than.loss or 0.0)
        return self.value < than.value if monitor == "loss" else self.value > than.value


@dataclass
class Search:
    """A search under way, and its folder."""

    folder: Path
    plan: Plan
    trials: list[Trial] = field(default_factory=list)

    split = Inside("split.csv")  # the split that all trials have
    table = Inside("trials.csv")  # a row a trial
    recipe = Inside("best.toml")  # the best recipe
    picture = Inside("mattered.png")  # what mattered
    comparison = Inside("comparison.json")  # the best against the chosen one
    scratch = Inside("ray")  # what Ray writes for itself, of no use afterwards

    def run(self, number: int) -> Run:
        """Return the run of a trial, which may not be there yet."""
        return Run(self.folder / "trials" / f"{number:03}")

    @property
    def ended(self) -> list[Trial]:
        """The trials that are over."""
        return [trial for trial in self.trials if trial.state != "begun"]

    @property
    def best(self) -> Trial | None:
        """The best trial of those that were trained to their end; the first of equals."""
        best: Trial | None = None
        for trial in self.trials:
            if trial.state == "done" and trial.value is not None:
                best = trial if best is None or trial.better(best, self.plan.monitor) else best
        return best

    def begin(self, values: Mapping[str, Any]) -> Trial:
        """Add a trial."""
        trial = Trial(len(self.trials), dict(values))
        self.trials.append(trial)
        self.save()
        return trial

    def end(self, trial: Trial) -> None:
        """Put down what a trial came to, with the table and the best recipe."""
        self.trials[trial.number] = trial
        self.save()
        self.tell()

    def tell(self) -> None:
        """Write the table and the best recipe."""
        with files.whole_file(self.table) as temporary:
            write_csv(self, temporary)
        if self.best is not None:
            with files.whole_file(self.recipe) as temporary:
                temporary.write_text(toml(self), encoding="utf-8")

    def save(self) -> None:
        """Write what going on needs, whole or not at all."""
        plan = {
            **asdict(replace(self.plan, bases={}, space={})),
            "bases": {str(side): each.model_dump() for side, each in self.plan.bases.items()},
            "space": space.as_json(self.plan.space),
        }
        content = {"schema": SCHEMA, "plan": plan, "trials": [asdict(each) for each in self.trials]}
        files.write_json(_file(self.folder), content)


def _file(folder: Path) -> Path:
    return folder / "tune.json"


def is_search(folder: Path) -> bool:
    """Tell whether a folder holds a search."""
    return files.is_file(_file(folder))


def open_search(folder: Path) -> Search:
    """Return the search in a folder; raise a FieldmarkError where it cannot be read."""
    try:
        content = json.loads(_file(folder).read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA:
            plan = content["plan"]
            plan["bases"] = {
                int(side): Recipe.model_validate(each) for side, each in plan["bases"].items()
            }
            plan["space"] = space.from_json(plan["space"])
            return whole(Search(folder, Plan(**plan), [Trial(**t) for t in content["trials"]]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FieldmarkError(
            f"{_file(folder)} cannot be read: put a copy of it back, or begin a new search."
        ) from error
    raise FieldmarkError(
        f"{_file(folder)} has the schema {content['schema']}, and this fieldmark reads {SCHEMA}: "
        "use the version that wrote it."
    )


def whole(search: Search) -> Search:
    """Return a search that was read; raise a ValueError where its parts do not fit."""
    plan = search.plan
    named = [set(trial.values) for trial in search.trials]
    if not isinstance(plan.asked, dict) or plan.side not in plan.bases:
        raise ValueError("it does not say what was asked for")
    if any(names != set(plan.space) for names in named):
        raise ValueError("a trial is of another space")
    return search


# ---- for people ---------------------------------------------------------------------------------


def write_csv(search: Search, path: Path) -> None:
    """Write a row for each trial that is over."""
    facts = ("value", "epoch", "averaged", "loss", "accuracy", "epochs", "seconds")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", *facts, *search.plan.space, "reason"])
        for trial in search.ended:
            figures = (getattr(trial, name) for name in facts)
            values = (trial.values[name] for name in search.plan.space)
            writer.writerow([trial.number, trial.state, *figures, *values, trial.reason])


def toml(search: Search) -> str:
    """Write the best recipe as `train --recipe` takes it, with where it comes from."""
    best = search.best
    if best is None:
        raise FieldmarkError("No trial was trained to its end.")
    which = "the recipe that was chosen" if best.number == 0 else "found by `fieldmark tune`"
    return (
        f"# Trial {best.number} of {len(search.ended)}, {which}: {figures(best)}.\n"
        "# It was picked by these validation photos, which flatters it.\n\n"
        f"{search.plan.recipe(best.values)}\n"
    )


def figures(trial: Trial) -> str:
    """Say how good a trial is."""
    if trial.loss is None or trial.accuracy is None:
        return trial.reason or "no figure"
    return (
        f"validation loss {trial.loss:.3f}, accuracy {trial.accuracy:.1%}, epoch {trial.epoch}"
        + " averaged" * trial.averaged
    )


def sentence(trial: Trial) -> str:
    """Write a line for a trial that is over."""
    names = {"done": "", "stopped": "  stopped early", "failed": "  failed"}
    values = "  ".join(f"{name} {shown(value)}" for name, value in trial.values.items())
    what = "the chosen recipe" if trial.number == 0 else values
    epochs = f"{many(trial.epochs, 'epoch')} in {duration(trial.seconds)}"
    return f"trial {trial.number}{names[trial.state]}  {figures(trial)}  {epochs}  ({what})"


def shown(value: object) -> str:
    """Write a value of a recipe in a few signs."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(search: Search) -> str:
    """Return the best trials for a terminal, the chosen recipe among them."""
    rest = [trial for trial in search.ended if trial.value is not None]
    rest.sort(key=lambda each: (each.state != "done", _merit(each, search.plan.monitor)))
    rows = [*rest[:SHOWN], *(each for each in rest[SHOWN:] if each.number == 0)]
    lines = grid()
    names = {"learning_rate": "rate", "weight_decay": "decay", "label_smoothing": "smoothing"}
    head = ("trial", "loss", "accuracy", "epochs")
    for name in (*head, *(names.get(each, each) for each in search.plan.space)):
        lines.add_column(name.replace("_", "\n"), justify="right")
    for trial in rows:
        mark = "stopped " * (trial.state == "stopped")
        lines.add_row(
            f"{trial.number}",
            f"{trial.loss:.3f}",
            f"{trial.accuracy:.1%}",
            f"{mark}{trial.epochs}",
            *(shown(trial.values[name]) for name in search.plan.space),
        )
    states = [trial.state for trial in search.ended]
    counts = f"{len(states)} trials, {states.count('stopped')} stopped early, "
    counts += f"{states.count('failed')} failed; trial 0 is the recipe that was chosen"
    return printed([counts, "", lines])


def _merit(trial: Trial, monitor: str) -> float:
    value = trial.value or 0.0
    return value if monitor == "loss" else -value
