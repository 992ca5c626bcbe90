"""What a classifier says of photos, as many as there are: photos -> a table, files, JSON, folders.

In: a run or an export of one, and what `sources` makes of photos, folders and lists. Out: a line a
photo for people or as JSON on standard output, a row a photo in a `ledger` or in `parts`, and
copies or links sorted into a folder for each class.

    fieldmark predict MODEL PHOTO|FOLDER|- ... [--csv FILE | --parquet DIR] [--json] ...

Photos are read and decoded on many threads while the classifier computes. Nothing that is kept
grows with their number but 8 bytes each. The photos are only read, and one that cannot be is
listed with the reason while the others go on.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

from fieldmark import data, ledger, parts, sorting, sources
from fieldmark.console import printable, progress
from fieldmark.errors import FieldmarkError
from fieldmark.formats import LIMITS, UnreadableImage
from fieldmark.ledger import NONE, Row
from fieldmark.predict import Classifier
from fieldmark.sorting import How
from fieldmark.sources import Item, Seen, Sources
from fieldmark.threads import spread

BATCH = 32  # photos; larger ones are no faster on a CPU, and take more memory
HANDFUL = 4  # photos that a thread reads at a time: some are ready when a batch has been computed
NAMED = 20  # unreadable photos that are named at the end; the CSV has all
KINDS = 100  # extensions of other files that are counted apart

Write = Callable[[Sequence[Row]], None]
# Who reads and computes: yields what is said of the photos that were not seen before. It remembers
# those in `Seen`, and counts in the account what is no photo.
Work = Callable[[Classifier, Sources, Seen, "Account"], Generator[list[Row], None, None]]


@dataclass
class Account:
    """How many photos got which answer."""

    known: int = 0  # photos that had been predicted before
    answers: Counter[str] = field(default_factory=Counter)  # by class, and `NONE`
    unreadable: int = 0  # those that are known included
    named: list[Row] = field(default_factory=list)  # some that could not be read
    most_named: int = 0
    others: Counter[str] = field(default_factory=Counter)  # files that are no photos, by extension

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows."""
        for row in rows:
            if row.probabilities is None:
                self.unreadable += 1
                self.named += [row] if len(self.named) < self.most_named else []
            else:
                self.answers[NONE if row.label is None else row.label] += 1

    def leave_out(self, path: str) -> None:
        """Count a file that is no photo."""
        kind = PurePath(path).suffix.lower() or "no extension"
        self.others[kind if kind in self.others or len(self.others) < KINDS else "others"] += 1

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"Predicted: {self.answers.total():,} photos"]
        lines += [f"  {count:>9,}  {printable(name)}" for name, count in self.answers.most_common()]
        if self.known:
            lines.append(f"Known already: {self.known:,} photos")
        if self.others:
            kinds = ", ".join(f"{n:,} x {kind}" for kind, n in self.others.most_common())
            lines.append(f"Not read: {printable(kinds)}")
        if self.unreadable:
            lines.append(f"Not readable: {self.unreadable:,} photos")
            lines += [printable(f"  {row.path} {row.error}") for row in self.named]
            more = self.unreadable - len(self.named)
            lines += [f"  and {more:,} more"] if more and self.named else []
        return "\n".join(lines)


def predict(
    model: Classifier | str | os.PathLike[str],
    places: Sequence[Path],
    *,
    csv: Path | None = None,
    parquet: Path | None = None,
    as_json: bool = False,
    top: int = 3,
    sort_into: Path | None = None,
    sort_as: How = "copy",
    standard_input: IO[bytes] | None = None,
    work: Work | None = None,
) -> Account:
    """Predict all photos of the places, write down what is asked for, and return an account.

    Without `csv`, `parquet`, `as_json` and `sort_into` the answers are printed for people; `top` is
    how many classes that and JSON name. What exists of the first two is gone on with. Without a
    `work` this process does it. Raises a FieldmarkError where a place is not there, or what is to
    be written would lie among the photos.
    """
    if top < 1:
        raise FieldmarkError(f"The {top} most probable classes: name at least one.")
    if csv is not None and parquet is not None:
        raise FieldmarkError("A CSV or Parquet: one of them says which photos were had, not both.")
    kept = csv or parquet
    for_people = kept is None and sort_into is None and not as_json
    account, seen = Account(most_named=0 if for_people or as_json else NAMED), Seen()
    with ExitStack() as stack:
        written = [place for place in (kept, sort_into) if place is not None]
        source = stack.enter_context(
            sources.opened(places, standard_input or piped(), written=written)
        )
        classifier = model if isinstance(model, Classifier) else Classifier.load(model)
        writers: list[Write] = [account.add]
        if as_json:
            writers.append(partial(_print_json, classes=classifier.classes, top=top))
        if for_people:
            writers.append(partial(_print_line, classes=classifier.classes, top=top))
        if sort_into is not None:
            writers.append(partial(_sort, target=sorting.Target(sort_into, sort_as)))
        if kept is not None:  # the last: a photo that is in it has been dealt with
            book = stack.enter_context(
                (ledger if parquet is None else parts).opened(
                    kept,
                    classes=classifier.classes,
                    model=classifier.identity(),
                    had=partial(_had, account=account, seen=seen),
                )
            )
            writers.append(book.add)
            if account.known:
                progress.print(
                    f"Going on: {account.known:,} photos are in {kept} and are left as they are.",
                    markup=False,
                )
        done = stack.enter_context(closing((work or work_here)(classifier, source, seen, account)))
        for rows in done:
            for write in writers:
                write(rows)
    return account


def piped() -> IO[bytes]:
    """Return standard input; an empty one where the process was given none."""
    return sys.stdin.buffer if sys.stdin is not None else BytesIO()


# ---- reading ------------------------------------------------------------------------------------


class Look(NamedTuple):
    """A file that was read."""

    path: str
    square: NDArray[np.uint8] | None = None  # (size, size, 3); none: it cannot be read
    why: str = ""  # the reason, a clause; empty: it is no photo and not meant as one


class _Waiting(Collection[Item]):
    """The files that are still to be looked at, each once; they are counted, and never listed."""

    def __init__(self, source: Sources, seen: Seen, account: Account) -> None:
        self._source, self._seen, self._account = source, seen, account
        counting = seen.copy()
        self._count = sum(
            not item.skipped and counting.add(ledger.known_as(item.path)) for item in source
        )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for item in self._source:
            if item.skipped:
                self._account.leave_out(item.path)
            elif self._seen.add(ledger.known_as(item.path)):
                yield item

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)


def _had(path: str, error: str, *, account: Account, seen: Seen) -> None:
    """Count a row that the CSV has already."""
    seen.add(path)
    account.known += 1
    account.unreadable += bool(error)


def work_here(
    classifier: Classifier, source: Sources, seen: Seen, account: Account
) -> Generator[list[Row], None, None]:
    """Yield what is said of the photos, a batch at a time, in their order; see `Work`."""
    items = _Waiting(source, seen, account)
    read = partial(look, classifier=classifier)
    with closing(spread(read, items, "Predicting", handful=HANDFUL)) as looks:
        while some := list(islice(looks, BATCH)):
            rows, others = answered(classifier, some)
            for path in others:
                account.leave_out(path)
            yield rows


def answered(classifier: Classifier, looks: Sequence[Look]) -> tuple[list[Row], list[str]]:
    """Return what is said of the photos, and the paths of those that are none."""
    squares = [each.square for each in looks if each.square is not None]
    found = iter(classifier.answers(np.stack(squares)) if squares else [])
    rows, others = list[Row](), list[str]()
    for each in looks:
        if each.square is not None:
            answer = next(found)
            rows.append(Row(each.path, answer.label, answer.probabilities))
        elif each.why:
            rows.append(Row(each.path, error=each.why))
        else:
            others.append(each.path)
    return rows, others


def look(item: Item, *, classifier: Classifier) -> Look:
    """Read a file and make of it what the classifier sees."""
    try:
        photo = content(item)
        return Look(item.path, None if photo is None else classifier.square(photo))
    except UnreadableImage as error:
        return Look(item.path, why=str(error))
    except ValueError as error:  # a zero within its name
        return Look(item.path, why=f"cannot be opened ({error})")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and not item.named:
            return Look(item.path)  # a link that leads nowhere
        return Look(item.path, why=f"cannot be opened ({error.strerror or error})")


def content(item: Item) -> bytes | None:
    """Return a photo's bytes; none: it is no photo and not meant as one.

    Raises an UnreadableImage with the reason, or an OSError. Of what is no photo only the beginning
    is read.
    """
    if item.why:
        raise UnreadableImage(item.why)
    suffix = os.path.splitext(item.path)[1].lower()  # noqa: PTH122
    # Not by `Path`, which interns each name: memory grew by 110 bytes a photo.
    facts = os.stat(item.path)  # noqa: PTH116
    why, meant = data.SPECIAL.get(stat.S_IFMT(facts.st_mode), ""), item.named
    if not why:
        with open(item.path, "rb", buffering=0) as file:  # noqa: PTH123
            head = file.read(data.HEAD)
            why = data.why_strange(head, suffix)
            if not why and facts.st_size > LIMITS.bytes:
                raise UnreadableImage(f"has more than {LIMITS.bytes:,} bytes")
            if not why:
                return head + file.readall()
        meant |= suffix in data.NAMED_PHOTO
    if meant:
        raise UnreadableImage(why)
    return None


# ---- writing ------------------------------------------------------------------------------------


def _print_line(rows: Sequence[Row], *, classes: Sequence[str], top: int) -> None:
    """Print a line a photo: its answer, the most probable classes, its path."""
    names = [printable(name) for name in classes]
    width = max(map(cell_len, [*names, NONE]))
    for row in rows:
        path = printable(_from_here(row.path))
        if row.probabilities is None:
            print(f"{'-':{width}}  {path} {printable(row.error)}")
            continue
        answer = NONE if row.label is None else printable(row.label)
        likely = "  ".join(
            f"{names[i]} {row.probabilities[i]:.3f}" for i in _likeliest(row.probabilities, top)
        )
        print(f"{answer}{' ' * (width - cell_len(answer))}  {path}  {likely}")
    sys.stdout.flush()


def _print_json(rows: Sequence[Row], *, classes: Sequence[str], top: int) -> None:
    """Print a JSON object a photo, one a line."""
    for row in rows:
        told: dict[str, Any] = {"path": row.path}
        if row.probabilities is None:
            told["error"] = row.error
        else:
            told["answer"] = row.label
            told["probabilities"] = [
                [classes[i], float(f"{row.probabilities[i]:.9g}")]
                for i in _likeliest(row.probabilities, top)
            ]
        # A path that is not UTF-8 becomes an escape, which is JSON's too.
        print(json.dumps(told, ensure_ascii=False).encode(errors="backslashreplace").decode())
    sys.stdout.flush()


def _likeliest(probabilities: NDArray[np.float64], top: int) -> list[int]:
    return [int(i) for i in np.argsort(-probabilities, kind="stable")[:top]]


def _from_here(path: str) -> str:
    """Return a path relative to the folder that the user is in, where it lies there."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))  # noqa: PTH109, PTH118 - text


def _sort(rows: Sequence[Row], *, target: sorting.Target) -> None:
    for row in rows:
        if row.probabilities is not None:
            target.put(row.path, row.label)
