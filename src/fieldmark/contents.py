"""What the files of a run say: its photos, its figures, its causes, its explained photos, its log.

In: a run folder. Out: `read` returns its `Contents`; what no command has measured yet is none, and
a damaged file is one sentence that names it, and what makes it anew.

    from fieldmark.contents import read
    part, measured = read("run").main
"""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from fieldmark import files
from fieldmark.console import printable
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.logbook import Epoch
from fieldmark.recipe import Recipe
from fieldmark.run import Run, open_run
from fieldmark.split import Record

Part = Literal["test", "validation", "new", "training"]  # the first there is judges

# ---- figures ------------------------------------------------------------------------------------


class _Part(BaseModel):
    """A part of a file of the run; what it does not know is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Figure(_Part):
    """A measured figure with its 95 % interval; without a value it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int = Field(ge=0)


def percent(share: float, digits: int = 1) -> str:
    """Write a share: `77.7 %`."""
    return f"{100 * share:.{digits}f} %"


def valued(figure: Figure, share: bool = True) -> str:
    """Write a figure without its interval."""
    if figure.value is None:
        return "not defined"
    return percent(figure.value) if share else f"{figure.value:.3f}"


def interval(figure: Figure, share: bool = True) -> str:
    """Write a figure's interval: `69.1 to 84.4`; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    if share:
        return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"
    return f"{figure.low:.3f} to {figure.high:.3f}"


class OneClass(_Part):
    """The figures of one class."""

    name: str
    n: int = Field(ge=0)
    predicted: int = Field(ge=0)
    precision: Figure
    recall: Figure
    f1: Figure
    roc_auc: Figure

    @property
    def order(self) -> tuple[bool, float, str]:
        """Sort by how often it is named rightly, the least first, the unknown last."""
        recall = self.recall.value
        return recall is None, recall or 0.0, self.name


class Commonest(_Part):
    """What always naming one class would get."""

    name: str
    share: float = Field(ge=0, le=1)


class Bin(_Part):
    """Photos of about the same confidence."""

    low: float
    high: float
    n: int = Field(ge=1)
    confidence: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class Trade(_Part):
    """How many photos are answered at a threshold, and how many of those wrongly."""

    threshold: float
    coverage: float = Field(ge=0, le=1)
    risk: Figure


class Refused(_Part):
    """What the chosen threshold came to."""

    threshold: float
    coverage: Figure
    accuracy: Figure


class Measured(_Part):
    """All that was measured on one part of the split."""

    n: int = Field(ge=0)
    figures: dict[str, Figure]
    commonest: Commonest
    classes: list[OneClass]
    confusion: list[list[NonNegativeInt]]
    reliability: list[Bin]
    risk_coverage: list[Trade]
    refused: Refused | None = None


class Metrics(_Part):
    """The file of figures."""

    classes: list[str]
    resamples: int = 0
    temperature: Figure | None = None
    decision: Decision | None = None
    splits: dict[Part, Measured]

    @model_validator(mode="after")
    def _refuse_other_shapes(self) -> Self:
        """Raise where the figures are not of these classes."""
        for name, measured in self.splits.items():
            sides = {len(measured.confusion), *map(len, measured.confusion)}
            names = [each.name for each in measured.classes]
            if names != self.classes or sides != {len(names)}:
                raise ValueError(f"{name} has figures of other classes")
            if "accuracy" not in measured.figures:
                raise ValueError(f"{name} has no accuracy")
        return self


# ---- causes -------------------------------------------------------------------------------------


class Finding(_Part):
    """One test of the diagnosis."""

    test: str
    question: str
    measured: str
    expected: str
    verdict: Literal["fault", "follows", "note", "fine", "not tried"]
    fix: str


class Diagnosis(_Part):
    """The file of what was tried to find out why."""

    findings: list[Finding]
    causes: list[str]

    @property
    def faults(self) -> list[Finding]:
        """The causes, in the order in which they are named."""
        by_test = {each.test: each for each in self.of("fault")}
        named = [by_test.pop(test) for test in self.causes if test in by_test]
        return [*named, *by_test.values()]

    def of(self, *verdicts: str) -> list[Finding]:
        """The findings of some verdicts."""
        return [each for each in self.findings if each.verdict in verdicts]


# ---- the photos ---------------------------------------------------------------------------------


class Pictured(_Part):
    """A photo that a finding is about, or a class."""

    path: str
    picture: str = Field(pattern="^(data:image/jpeg;base64,[A-Za-z0-9+/=]+)?$")  # empty: none


class Together(_Part):
    """Photos that show a finding together; `hidden` of them are not kept."""

    what: str
    photos: list[Pictured]
    hidden: int = Field(ge=0)


class Remark(_Part):
    """One kind of thing that was found in the photos, as far as it is kept."""

    kind: str
    severity: Literal["error", "warning", "note"]
    title: str
    advice: str
    count: str  # "6 in 3 groups"; empty where it is about all of them
    of: int = Field(ge=0)  # photos, or classes, that it is about
    cases: list[Together]

    @property
    def shown(self) -> int:
        """How many of those it is about are kept here."""
        return len({each.path for case in self.cases for each in case.photos})

    @property
    def pictured(self) -> bool:
        """Whether there is anything to look at."""
        return any(each.picture for case in self.cases for each in case.photos)


class Remarks(_Part):
    """The file of what was found in the photos."""

    account: str
    balance: str
    findings: list[Remark]

    def of(self, *severities: str) -> list[Remark]:
        """The findings of some severities."""
        return [each for each in self.findings if each.severity in severities]


# ---- explained photos ---------------------------------------------------------------------------


class Map(_Part):
    """Where the network looked for one class."""

    name: str = Field(alias="class")
    overlay: str
    alt: str


class Neighbour(_Part):
    """A training photo that the network sees nearly alike."""

    path: str
    label: str
    similarity: float
    photo: str


class Explained(_Part):
    """One photo that was held out, with its maps."""

    path: str
    label: str | None
    predicted: str
    why: list[str]
    none_of_these: bool = False
    probabilities: list[tuple[str, float]]
    photo: str
    maps: list[Map]
    neighbours: list[Neighbour]


class Explanations(_Part):
    """The file of explained photos."""

    layer: str
    weights_sha256: str = ""
    photos: list[Explained]


# ---- a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """All that the files of a run say."""

    run: Run
    recipe: Recipe
    environment: Mapping[str, Any]
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    specification: ImageSpec
    log: tuple[Epoch, ...]
    probe: Mapping[str, float | None]
    metrics: Metrics | None
    diagnosis: Diagnosis | None
    found: Remarks | None
    explanations: Explanations | None

    def command(self, verb: str) -> str:
        """Write the command that makes a file of this run."""
        return _command(self.run, verb)

    @property
    def name(self) -> str:
        """What the run is called."""
        return printable(self.run.folder.resolve().name)

    @property
    def main(self) -> tuple[Part, Measured] | None:
        """The part of the split that judges the run: of test photos, where there are any."""
        found = self.metrics.splits if self.metrics else {}
        judges = (part for part in get_args(Part) if part in found and found[part].n)
        return next(((part, found[part]) for part in judges), None)

    def count(self, part: str) -> int:
        """How many photos a part of the split has."""
        return sum(record.split == part for record in self.records)

    @property
    def outdated(self) -> bool:
        """Whether the maps are of other weights than those that are kept now."""
        if not self.explanations or not self.explanations.weights_sha256:
            return False
        try:
            now = files.sha256_of(self.run.best)
        except OSError:  # it was taken away
            return False
        return now != self.explanations.weights_sha256

    @property
    def epochs(self) -> int:
        """How many epochs are finished."""
        return int(self.log[-1]["epoch"] or 0) if self.log else 0


def read(run_folder: str | os.PathLike[str]) -> Contents:
    """Read the files of a run; raises a FieldmarkError that names the one that is damaged."""
    run = open_run(run_folder)
    contents = Contents(
        run=run,
        recipe=run.read_recipe(),
        environment=run.read_environment(),
        classes=run.read_classes(),
        records=run.read_split(),
        specification=run.read_specification(),
        log=tuple(line for line in map(_finite, run.read_log()) if line.get("epoch") is not None),
        probe=_finite(run.read_probe()),
        metrics=_made(run.metrics, Metrics, _command(run, "evaluate")),
        diagnosis=_made(run.diagnosis, Diagnosis, _command(run, "diagnose")),
        found=_made(run.findings, Remarks, _command(run, "diagnose")),
        explanations=_made(run.explained, Explanations, _command(run, "explain")),
    )
    if not contents.classes:
        raise FieldmarkError(
            f"{run.classes} names no class: bring back the file that the training wrote."
        )
    if contents.metrics and contents.metrics.classes != list(contents.classes):
        raise FieldmarkError(
            f"{run.metrics} has figures of other classes than the run: "
            f"`{contents.command('evaluate')}` makes it anew."
        )
    return contents


def _command(run: Run, verb: str) -> str:
    return f"fieldmark {verb} {shlex.quote(printable(str(run.folder)))}"


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def _finite(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the figures; what is no finite number is none."""
    return {
        name: float(value) if type(value) in (int, float) and math.isfinite(value) else None
        for name, value in figures.items()
    }


def _made(path: Path, kind: type[M], command: str) -> M | None:
    """Return what a file says that a command makes, or nothing where it is not there yet."""
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        why = printable(textwrap.shorten(why, 200))
    except OSError as error:
        why = error.strerror or str(error)
    raise FieldmarkError(f"{path} is damaged ({why}): `{command}` makes it anew.")
