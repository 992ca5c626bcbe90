"""The run folder: every path in it, every read and write of it, and its schema's version.

A run is a folder. Each command reads it and adds its own files; nothing else ties the commands
together. This is the only module that knows the names of the files; `docs/design.md` lists them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark import files, remote, split
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.files import Inside
from fieldmark.images import ImageSpec
from fieldmark.logbook import Epoch
from fieldmark.recipe import Recipe
from fieldmark.split import Record

EXPLANATIONS = "explanations.json"  # in each folder of heat maps
HELD_OUT = ("heatmaps", "held_out")
SCHEMA = 2  # raised when a file of the run changes its meaning


@dataclass(frozen=True)
class Run:
    """A run folder that exists; made by `create` or `open_run`."""

    folder: Path

    recipe = Inside("recipe.json")  # the resolved recipe, every value
    environment = Inside("environment.json")  # versions, device, backend, commit and command line
    classes = Inside("classes.txt")  # the class names, one a line, in the order of the labels
    specification = Inside("image.json")  # how a photo becomes the network's input
    split = Inside("split.csv")  # path, label, split, group and sha256 of every photo
    log = Inside("log.jsonl")  # the figures of the training, one line an epoch
    last = Inside("last", "state.npz")  # all that going on with the training needs
    lock = Inside("last", "lock")  # the file that the process has locked which trains into this run
    probe = Inside("probe.json")  # what logistic regression on the network's features came to
    best = Inside("best.keras")  # the chosen weights: a plain Keras model with logits for output
    # A row a photo that was held out: its class, and a probability of each.
    predictions = Inside("predictions.csv")
    metrics = Inside("metrics.json")  # all figures of the predictions, each with its interval
    # The temperature, and the threshold under which the answer is none of these.
    decision = Inside("decision.json")
    # What was measured to find out why the run is as good or bad as it is.
    diagnosis = Inside("diagnosis.json")
    findings = Inside("findings.json")  # what was found in the photos, with small pictures of them
    # The folder of the maps of photos that were held out.
    explanations = Inside(*HELD_OUT)
    # What was found in the photos that were held out, with the names of their pictures.
    explained = Inside(*HELD_OUT, EXPLANATIONS)
    # The folder of the maps of photos that a user named last.
    explained_photos = Inside("heatmaps", "photos")
    # What the network's head reads of every training photo, to find the nearest by.
    features = Inside("heatmaps", "features.npz")
    exports = Inside("export")  # the folder of the exports, each a folder of its own
    report = Inside("report.html")  # one page with all of it
    card = Inside("README.md")  # the model card, in Markdown
    tensorboard = Inside("tensorboard")  # the folder of what TensorBoard is told
    mlflow = Inside("mlflow.json")  # which run of which MLflow store is told of this one
    figures = Inside("figures")  # the folder of the figures

    def append_log(self, epoch: Epoch) -> None:
        """Add an epoch's line to the log, whole or not at all; then it is on the disk."""
        line = (json.dumps(epoch) + "\n").encode()
        with files.writing(self.log), self.log.open("ab", buffering=0) as log:
            files.append(log, line, sync=True)

    def read_log(self) -> list[Epoch]:
        """Return the figures of every finished epoch."""
        if not self.log.exists():
            return []
        with _kept(self.log):
            # What a crash left of a last line is behind the last line break.
            return [_epoch(line) for line in self.log.read_bytes().split(b"\n")[:-1]]

    def read_probe(self) -> dict[str, Any]:
        """Return the figures of the probe, where there is one."""
        if not self.probe.exists():
            return {}
        with _kept(self.probe):
            figures = json.loads(self.probe.read_bytes())
            if not isinstance(figures, dict):
                raise TypeError("the figures have no names")
            return figures

    def read_recipe(self) -> Recipe:
        """Return the recipe that the run was trained by."""
        with _kept(self.recipe):
            text = self.recipe.read_text(encoding="utf-8")
        try:
            return Recipe.model_validate_json(text)
        except ValueError as error:
            raise FieldmarkError(
                f"{self.recipe} is not a recipe of this version: use the version that wrote it."
            ) from error

    def read_environment(self) -> dict[str, Any]:
        """Return what the run was made with."""
        with _kept(self.environment):
            facts: dict[str, Any] = json.loads(self.environment.read_text(encoding="utf-8"))
        return facts

    def read_source(self) -> Path:
        """Return the folder or the CSV of photos that it was trained from."""
        facts = self.read_environment()
        if not isinstance(facts.get("photos"), str) or "\0" in facts["photos"]:
            raise FieldmarkError(
                f"{self.environment} does not say where the photos are: add their folder as "
                '"photos".'
            )
        return remote.opened(facts["photos"])

    def photo(self, path: str) -> Path:
        """Return where a photo of the split lies; of "", their folder."""
        source = self.read_source()
        return (source.parent if files.is_file(source) else source) / path

    def photo_folders(self) -> list[Path]:
        """Return the folders that hold the photos it was trained on, and must not be written to."""
        source = self.read_source()
        if not files.is_file(source):
            return [source]
        # A CSV may lie in a folder of much else.
        folders = {(source.parent / row.path).parent for row in self.read_split()}
        return sorted(folders - {source.parent})

    def read_decision(self) -> Decision | None:
        """Return temperature and threshold, where they were chosen."""
        if not self.decision.exists():
            return None
        with _kept(self.decision, "`fieldmark evaluate RUN` makes it anew"):
            return Decision.from_json(self.decision.read_bytes())

    def read_classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the labels."""
        with _kept(self.classes):
            # Not splitlines(), which parts names at signs such as the form feed as well.
            text = self.classes.read_text(encoding="utf-8").removesuffix("\n")
            return tuple(text.split("\n")) if text else ()

    def read_split(self) -> tuple[Record, ...]:
        """Return the rows of the split."""
        return split.read(self.split)

    def read_specification(self) -> ImageSpec:
        """Return how a photo becomes the network's input."""
        with _kept(self.specification):
            return ImageSpec.from_json(self.specification.read_text(encoding="utf-8"))


@contextmanager
def _kept(
    file: Path, cure: str = "bring back the file that the training wrote, or train anew"
) -> Iterator[None]:
    """Say in a sentence that a file of the run cannot be read."""
    try:
        yield
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "it is damaged"
        raise FieldmarkError(f"{file} cannot be read ({why}): {cure}.") from error


def _epoch(line: bytes) -> Epoch:
    """Read a line of the log; a number that is none, which other programs write, is none here."""
    epoch = json.loads(line, parse_constant=lambda _: None)
    if not isinstance(epoch, dict):
        raise TypeError("it holds no figures")
    if any(isinstance(figure, str | list | dict) for figure in epoch.values()):
        raise TypeError("a figure is no number")
    return epoch


def create(
    folder: str | os.PathLike[str],
    *,
    recipe: Recipe,
    environment: Mapping[str, Any],
    classes: Iterable[str],
    specification: ImageSpec,
    records: Iterable[Record],
) -> Run:
    """Begin a run: write what is known before the first epoch, all of it or nothing."""
    run = Run(Path(folder))
    with files.whole_folder(run.folder) as temporary:
        draft = Run(temporary)
        draft.figures.mkdir()
        draft.last.parent.mkdir()
        draft.recipe.write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.classes.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        facts = json.dumps({"schema": SCHEMA, **environment}, indent=2, ensure_ascii=False)
        # A path that is not UTF-8 becomes an escape, which is JSON's too.
        draft.environment.write_text(facts + "\n", encoding="utf-8", errors="backslashreplace")
        draft.specification.write_text(specification.model_dump_json() + "\n", encoding="utf-8")
        split.write(draft.split, records)
    return run


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a run, of whichever version."""
    run = Run(Path(folder))
    return files.is_file(run.environment) and files.is_file(run.recipe)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Return the run in a folder, refusing a folder that is none or of a newer schema."""
    run = Run(Path(folder))
    try:
        schema = json.loads(run.environment.read_text(encoding="utf-8"))["schema"]
    except PermissionError as error:
        raise FieldmarkError(files.closed(run.environment)) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FieldmarkError(
            f"{run.folder} is not a run folder: `fieldmark train PHOTOS --out RUN` makes one."
        ) from error
    if schema != SCHEMA:
        raise FieldmarkError(
            f"{run.folder} has the run schema {schema}, and this fieldmark reads {SCHEMA}: "
            "use the version that wrote it."
        )
    return run
