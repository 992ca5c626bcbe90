"""A run -> its predictions on photos that were held out, and all figures of them.

In: a run, and photos of another folder where there are some. Out: `predictions.csv`, a row a photo
with a probability a class; from it alone `metrics.json`, and `decision.json` with the temperature
and the threshold that were chosen on the validation photos. No photo that was trained on is ever
counted: they are told by their content.

    fieldmark evaluate RUN [PHOTOS]
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import data, files, metrics, predictions
from fieldmark.console import say
from fieldmark.errors import FieldmarkError
from fieldmark.manifest import Manifest
from fieldmark.predictions import Predictions
from fieldmark.run import Run, open_run
from fieldmark.split import Record
from fieldmark.trained import Trained, softmax

HELD_OUT = ("validation", "test")
NEW = "new"  # the split of photos that the run does not know
COVERAGE = 0.95  # share of the validation photos that are answered; the others are none of these
MOVED = ", or name the folder that has all of them now, `fieldmark evaluate {} PHOTOS`"


class Row(NamedTuple):
    """A photo to predict, and what is known of it."""

    path: str  # as in the split, or absolute
    label: str
    split: str
    group: str
    sha256: str


def evaluate(
    folder: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None = None,
    *,
    coverage: float = COVERAGE,
) -> dict[str, Any]:
    """Predict what was held out, and `photos` beside, and return the figures that are written.

    The run's own photos are looked for where they were when it was trained, and in `photos`; what
    lies there and is of the run's training photos is left out. Raises a FieldmarkError for a class
    that the run does not know and where there is nothing to predict; the run stays as it was.
    """
    if not 0 < coverage <= 1:
        raise FieldmarkError(f"A coverage of {coverage:g} is no share: give more than 0, up to 1.")
    run = open_run(folder)
    files.require_folder(run.folder)
    classifier = Trained.load(run)
    rows = own(run) if photos is None else given(run, photos)
    if not rows:
        raise FieldmarkError(
            f"There is no photo to evaluate {run.folder} on: name a folder of others, "
            f"`fieldmark evaluate {run.folder} PHOTOS`."
        )
    table = predicted(run, classifier, rows)
    judged = "validation" in table.splits  # else what was decided before stands
    classifier.refuse_exchanged()
    before = None if judged else run.read_decision()
    found = metrics.measure(table, coverage=coverage, before=before)
    predictions.write(run.predictions, table)
    files.write_json(run.metrics, found)
    if judged:
        files.write_json(run.decision, found["decision"])
        tell_of_exports(run)
    return found


def tell_of_exports(run: Run) -> None:
    """Name the exports that answer by another temperature and threshold than the run does now."""
    now = run.read_decision()
    for place in sorted(run.exports.iterdir()) if run.exports.is_dir() else ():
        try:
            export = Manifest.read(place)
        except FieldmarkError:  # it is said where that export is used
            continue
        if export.decision != now:
            flags = f"--format {export.format}{' --int8' * (export.precision == 'int8')}"
            say(
                f"{place} has another temperature and threshold, or none: "
                f"`fieldmark export {run.folder} {flags}` makes it anew."
            )


def own(run: Run, *, elsewhere: Collection[str] = (), remedy: str = MOVED) -> list[Row]:
    """Return the photos that the run holds out; raise where they are not what they were.

    Those of the sha256 in `elsewhere` are left out, as they were found at another place, and those
    of which the same bytes were trained on. `remedy` is what helps beside bringing them back.
    """
    records = run.read_split()
    trained = {record.sha256 for record in records if record.split == "training"}
    asked = [record for record in records if record.split in HELD_OUT]
    held_out = [record for record in asked if record.sha256 not in trained]
    if leaked := len(asked) - len(held_out):
        say(f"{leaked} of the photos held out were trained on too: they are left out.")
    rows = [as_row(record) for record in held_out if record.sha256 not in elsewhere]
    gone = [row.path for row in rows if not files.is_file(run.photo(row.path))]
    if gone:
        files.require_file(
            run.photo(gone[0]),
            f"{len(gone)} of the {len(held_out)} photos that {run.folder} holds out are not where "
            f"they were, {run.photo(gone[0])} among them: bring them back"
            f"{remedy.format(run.folder)}.",
        )
    listed = data.Photos(run.photo(""), (), tuple(row.path for row in rows), ())
    for row, sha256 in zip(rows, data.sha256s(listed), strict=True):
        if row.sha256 != sha256:
            raise FieldmarkError(
                f"{run.photo(row.path)} is another photo than when {run.folder} was trained: "
                "bring the old one back, or train anew."
            )
    return rows


def given(run: Run, photos: str | os.PathLike[str]) -> list[Row]:
    """Return the photos of another place, and what the run holds out, all of it or nothing.

    The run's own are known by their content, and may lie there or where they were. Where none of
    them is left the new ones are judged alone, with the temperature and threshold of before.
    """
    listed = data.list_photos(photos)
    known = set(run.read_classes())
    if unknown := [name for name in listed.classes if name not in known]:
        raise FieldmarkError(
            f"{listed.folder} has {', '.join(unknown)}, which {run.folder} does not know: "
            f"name photos of {', '.join(sorted(known))}."
        )
    # Of the same bytes on two sides of the split, what was trained on counts.
    records = {
        record.sha256: record
        for record in sorted(run.read_split(), key=lambda record: record.split == "training")
    }
    new, held_out, trained = [], dict[str, Row](), 0
    for path, label, sha256 in zip(listed.paths, listed.labels, data.sha256s(listed), strict=True):
        record = records.get(sha256)
        place = str((listed.folder / path).absolute())
        if record is None:
            new.append(Row(place, listed.classes[label], NEW, "", sha256))
        elif record.split in HELD_OUT:
            held_out.setdefault(sha256, as_row(record)._replace(path=place))
        else:
            trained += 1
    if trained:
        say(f"{trained} of the photos were trained on and say nothing: they are left out.")
    try:
        rest = own(run, elsewhere=held_out)
    except FieldmarkError as error:
        if held_out:  # figures of some of them would pass for those of all
            raise
        say(f"Note: {error}")
        rest = []
    return [*held_out.values(), *rest, *new]


def as_row(record: Record) -> Row:
    """Return a row of the split as one to predict."""
    return Row(record.path, record.label, record.split, record.group, record.sha256)


def labels_of(run: Run, rows: Sequence[Row]) -> NDArray[np.int64]:
    """Return the number of each row's class, (n,); raise for a class that the run does not know."""
    number = {name: label for label, name in enumerate(run.read_classes())}
    if unknown := sorted({row.label for row in rows} - {*number}):
        raise FieldmarkError(
            f"{run.split} has photos of {', '.join(unknown)}, which {run.classes} does not name: "
            "bring back the files that the training wrote, or train anew."
        )
    return np.array([number[row.label] for row in rows], np.int64)


def predicted(run: Run, classifier: Trained, rows: Sequence[Row]) -> Predictions:
    """Return the rows with the probabilities that the classifier gives each class."""
    labels = labels_of(run, rows)
    logits = classifier.logits([run.photo(row.path) for row in rows])
    if not np.isfinite(logits).all():
        raise FieldmarkError(
            f"{run.best} answers with no numbers: its weights are damaged, so train anew."
        )
    return Predictions(
        classes=classifier.classes,
        paths=tuple(row.path for row in rows),
        splits=tuple(row.split for row in rows),
        labels=labels,
        groups=tuple(row.group for row in rows),
        sha256=tuple(row.sha256 for row in rows),
        probabilities=softmax(logits),
    )
