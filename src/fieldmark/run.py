"""The run folder: every path in it, every read and write of it, and its schema's version.

A run is a folder. Each command reads it and adds its own files; nothing else ties the commands
together. This is the only module that knows the names of the files; `docs/design.md` lists them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark import files, split
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.recipe import Recipe
from fieldmark.split import Record

SCHEMA = 2  # raised when a file of the run changes its meaning

# An epoch's figures by their names in Keras; none where the figure was no finite number.
Epoch = Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run folder that exists; made by `create` or `open_run`."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every value."""
        return self.folder / "recipe.json"

    @property
    def environment(self) -> Path:
        """Versions, device, backend, commit and command line."""
        return self.folder / "environment.json"

    @property
    def classes(self) -> Path:
        """The class names, one a line, in the order of the labels."""
        return self.folder / "classes.txt"

    @property
    def specification(self) -> Path:
        """How a photo becomes the network's input."""
        return self.folder / "image.json"

    @property
    def split(self) -> Path:
        """Path, label, split, group and sha256 of every photo."""
        return self.folder / "split.csv"

    @property
    def log(self) -> Path:
        """The figures of the training, one line an epoch."""
        return self.folder / "log.jsonl"

    @property
    def last(self) -> Path:
        """All that going on with the training needs."""
        return self.folder / "last" / "state.npz"

    @property
    def lock(self) -> Path:
        """The file that the process has locked which trains into this run."""
        return self.last.parent / "lock"

    @property
    def probe(self) -> Path:
        """What logistic regression on the network's features came to."""
        return self.folder / "probe.json"

    @property
    def best(self) -> Path:
        """The chosen weights: a plain Keras model with logits for output."""
        return self.folder / "best.keras"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.folder / "figures"

    def append_log(self, epoch: Epoch) -> None:
        """Add an epoch's line to the log, whole or not at all; then it is on the disk."""
        line = (json.dumps(epoch) + "\n").encode()
        with files.writing(self.log), self.log.open("ab", buffering=0) as log:
            end = log.tell()
            try:
                while line:  # a disk that is nearly full takes a part, and then raises
                    line = line[log.write(line) :]
                os.fsync(log.fileno())
            except BaseException:
                log.truncate(end)
                raise

    def read_log(self) -> list[Epoch]:
        """Return the figures of every finished epoch."""
        if not self.log.exists():
            return []
        # What a crash left of a last line is behind the last line break.
        return [json.loads(line) for line in self.log.read_bytes().split(b"\n")[:-1]]

    def read_recipe(self) -> Recipe:
        """Return the recipe that the run was trained by."""
        try:
            return Recipe.model_validate_json(self.recipe.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FieldmarkError(
                f"{self.recipe} is not a recipe of this version: use the version that wrote it."
            ) from error

    def write_probe(self, figures: Mapping[str, Any]) -> None:
        """Write what the probe came to."""
        with files.whole_file(self.probe) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    def read_classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the labels."""
        # Not splitlines(), which parts names at signs such as the form feed as well.
        return tuple(self.classes.read_text(encoding="utf-8").split("\n")[:-1])

    def read_split(self) -> tuple[Record, ...]:
        """Return the rows of the split."""
        return split.read(self.split)

    def read_specification(self) -> ImageSpec:
        """Return how a photo becomes the network's input."""
        return ImageSpec.from_json(self.specification.read_text(encoding="utf-8"))


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
    return run.environment.is_file() and run.recipe.is_file()


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Return the run in a folder, refusing a folder that is none or of a newer schema."""
    run = Run(Path(folder))
    try:
        schema = json.loads(run.environment.read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(
            f"{run.folder} is not a run folder: `fieldmark train PHOTOS --out RUN` makes one."
        ) from error
    if schema != SCHEMA:
        raise FieldmarkError(
            f"{run.folder} has the run schema {schema}, and this fieldmark reads {SCHEMA}: "
            "use the version that wrote it."
        )
    return run
