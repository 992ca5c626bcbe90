"""Photos to answers on several processes or machines, by Ray Data: as `answers`, and as exactly.

In: a run or an export, photos, and how many workers. Out: what `answers` writes down, in the order
in which it is done; with and without workers one goes on with what the other has begun.

    fieldmark predict MODEL FOLDER ... --csv FILE --workers N [--address HOST:PORT]

One task goes through the folders and hands out their paths, a handful at a time and little ahead of
those who take them; each worker reads, decodes and computes on a processor of its own; the rows
come back to this process, which alone writes. That each photo is written once does not rest on Ray:
a photo counts as seen when its row is here, what comes twice is dropped, and what was lost on the
way is handed out again.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import shutil
import sys
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, contextmanager, nullcontext, redirect_stderr
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from fieldmark import answers, cluster
from fieldmark.answers import Account, Look
from fieldmark.console import meter
from fieldmark.errors import FieldmarkError
from fieldmark.ledger import Row, known_as
from fieldmark.manifest import MANIFEST, Manifest
from fieldmark.predict import Classifier
from fieldmark.sources import STANDARD_INPUT, Item, Seen, Sources

HANDFUL = 512  # photos that a worker is given at a time; with 128, Ray took as long as they did
SHARES = 16  # handfuls that each worker is to have at least; then they have fewer photos
FEW = 16  # of a handful that a thread reads at a time
READERS = 4  # threads of a worker that read and decode, some of which wait for a disk
AHEAD = 2  # handfuls that a worker works on: one is read while the other is computed
ON_THE_WAY = 64 << 20  # bytes of paths and answers that wait for somebody
AGAIN = 2  # times that a photo ends its worker when it is alone, before it is given up
ENDS = "ends the process that reads it"
LIGHT = ("openvino", "onnx", "litert")  # formats that compute on as many threads as are said

Found = tuple[list[Row], list[str]]  # what is said of photos, and the paths of what is none


class Listing(NamedTuple):
    """All that another process of this machine needs to go through what a user has named."""

    places: tuple[Path, ...]
    listed: str  # the file that a list on standard input was put into; empty: there is none
    folder: str  # where the user is, from where relative paths go

    def items(self, seen: Seen) -> Iterator[Item]:
        """Yield what is to be looked at and was not seen; it is remembered in `seen`."""
        with ExitStack() as stack:
            stack.enter_context(chdir(self.folder))
            listed = stack.enter_context(Path(self.listed).open("rb")) if self.listed else None
            for item in Sources(self.places, listed):
                if not item.skipped and seen.add(known_as(item.path)):
                    yield item


def predict(
    model: Classifier | str | os.PathLike[str],
    places: Sequence[Path],
    *,
    workers: int,
    address: str = "",
    standard_input: IO[bytes] | None = None,
    **wanted: Any,
) -> Account:
    """Do as `answers.predict` does, which has the other arguments, on so many workers.

    They are processes of this machine or, with an address, of the cluster there. Raises a
    FieldmarkError where there is none, or it has too few slots or does not see the photos.
    """
    cluster.require()
    if workers < 1:
        raise FieldmarkError(f"--workers {workers} is no number of workers: give 1 or more.")
    with ExitStack() as stack:
        listed = None
        if STANDARD_INPUT in places:
            listed = stack.enter_context(tempfile.NamedTemporaryFile())
            shutil.copyfileobj(standard_input or sys.stdin.buffer, listed)
            listed.seek(0)
        listing = Listing(tuple(places), listed.name if listed else "", str(Path.cwd()))
        work = partial(work_there, listing=listing, workers=workers, address=address)
        return answers.predict(model, places, standard_input=listed, work=work, **wanted)


def work_there(
    classifier: Classifier,
    source: Sources,
    seen: Seen,
    account: Account,
    *,
    listing: Listing,
    workers: int,
    address: str,
) -> Generator[list[Row], None, None]:
    """Yield what is said of the photos, a handful at a time, as it comes; see `answers.Work`."""
    left = counted(source, seen, account)
    if not left:
        return
    paths = [classifier.place, *(place for place in listing.places if place != STANDARD_INPUT)]
    with (
        hushed(),
        cluster.joined(address, slots=workers, paths=paths) as ray,
        meter("Predicting", left) as shown,
        explained(ray),
    ):
        while left:
            before = len(seen)
            for rows, others in stream(
                ray, classifier.place, listing, seen, count=left, workers=workers
            ):
                shown.advance(len(rows) + len(others))
                for path in others:
                    if seen.add(known_as(path)):
                        account.leave_out(path)
                yield [row for row in rows if seen.add(known_as(row.path))]
            done = len(seen) - before
            left = counted(source, seen) if done < left else 0
            if left and not done:
                raise FieldmarkError(
                    f"{left:,} photos have not come back from the workers: give the command "
                    "again, which goes on."
                )


def counted(source: Sources, seen: Seen, account: Account | None = None) -> int:
    """Count what was not seen; what is no photo by its name is put in the account."""
    counting, count = seen.copy(), 0
    for item in source:
        if not item.skipped:
            count += counting.add(known_as(item.path))
        elif account is not None:
            account.leave_out(item.path)
    return count


def stream(
    ray: Any, model: Path, listing: Listing, seen: Seen, *, count: int, workers: int
) -> Iterator[Found]:
    """Yield what is said of the photos that were not seen, as the workers have it."""
    from ray import data

    settings(ray, data)
    handful = max(1, min(HANDFUL, -(-count // (workers * SHARES))))
    here = cluster.here(ray)
    begun = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Begun)
    rows = (
        data.from_items([0], override_num_blocks=1)
        .map_batches(
            partial(handed_out, listing=listing, known=ray.put(seen), handful=handful),
            batch_size=1,
            num_cpus=0,  # it mostly waits
            label_selector=here,
        )
        .map_batches(
            Worker,
            fn_constructor_args=[model.absolute(), begun.options(label_selector=here).remote()],
            batch_size=1,
            num_cpus=1,
            runtime_env=environment(model),
            compute=data.ActorPoolStrategy(
                size=workers,
                max_tasks_in_flight_per_actor=AHEAD + 1,
                max_concurrent_calls_per_actor=AHEAD,
                enable_true_multi_threading=True,
            ),
        )
    )
    for batch in rows.iter_batches(batch_size=1, prefetch_batches=1):
        for content in batch["content"]:
            found = pickle.loads(content)  # noqa: S301 - it is from our workers
            if isinstance(found, FieldmarkError):
                raise found
            yield found


def settings(ray: Any, data: Any) -> None:
    """Let Ray Data hand on each row by itself, keep little in memory, and say nothing."""
    # Else it says on standard output, where there may be JSON, that a worker has ended.
    ray._private.worker._worker_logs_enabled = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = data.DataContext.get_current()
    context.target_max_block_size = 1  # byte: each row, which is a handful, makes a block
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=ON_THE_WAY)
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def is_light(model: Path) -> bool:
    """Tell whether it is an export that computes on as many threads as it is told."""
    return (model / MANIFEST).is_file() and Manifest.read(model).format in LIGHT


def environment(model: Path) -> dict[str, Any] | None:
    """Return the environment of workers that have Keras: our library, and one thread each."""
    if is_light(model):
        return None
    from fieldmark import backend

    one = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "NPROC")
    return cluster.environment(KERAS_BACKEND=backend.name, **dict.fromkeys(one, "1"))


@contextmanager
def explained(ray: Any) -> Iterator[None]:
    """Say in a sentence that the cluster was lost; a mistake of ours at a worker stays one."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise FieldmarkError(
            f"The cluster was lost on the way ({' '.join(str(error).split())[:200]}): give the "
            "command again, which goes on."
        ) from error


@contextmanager
def hushed() -> Iterator[None]:
    """Keep off the terminal what Ray's C++ says there; what we print is seen."""
    sys.stderr.flush()
    with open(os.dup(2), "w", 1, errors="backslashreplace") as ours, open(os.devnull, "wb") as none:  # noqa: PTH123
        shown = redirect_stderr(ours) if sys.stderr is sys.__stderr__ else nullcontext()
        os.dup2(none.fileno(), 2)
        try:
            with shown:
                yield
        finally:
            os.dup2(ours.fileno(), 2)


# ---- in the workers -----------------------------------------------------------------------------


def handed_out(
    _: Any, *, listing: Listing, known: Any, handful: int
) -> Iterator[dict[str, list[bytes]]]:
    """Yield the photos that are to be looked at, a handful in a row."""
    import ray

    items = listing.items(ray.get(known).copy())
    while some := list(islice(items, handful)):
        # Small, as Ray keeps it to the end, in case that something is to be done again.
        yield {"content": [zlib.compress(pickle.dumps(some), 1)]}


class Begun:
    """What was begun and not ended, in a process that outlives those who work."""

    def __init__(self) -> None:
        self.times = Counter[str]()

    def begin(self, name: str) -> int:
        """Count a beginning; return how many there were before it."""
        self.times[name] += 1
        return self.times[name] - 1

    def end(self, name: str) -> None:
        """Forget it."""
        self.times.pop(name, None)


class Worker:
    """A process that reads, decodes and computes."""

    def __init__(self, model: Path, begun: Any) -> None:
        self.begun = begun
        self.wrong: FieldmarkError | None = None
        try:
            self.classifier = Classifier.load(model, threads=1 if is_light(model) else None)
        except FieldmarkError as error:  # which Ray would make a long text of
            self.wrong = FieldmarkError(f"On {platform.node()}: {error}")
        self.pool = ThreadPoolExecutor(READERS)
        self.alone = threading.Lock()  # one computes while another reads

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Answer handfuls of photos."""
        if self.wrong is not None:
            return {"content": [pickle.dumps(self.wrong)]}
        handfuls = [pickle.loads(zlib.decompress(content)) for content in batch["content"]]  # noqa: S301
        return {"content": [pickle.dumps(self.answer(items)) for items in handfuls]}

    def answer(self, items: list[Item]) -> Found:
        """Answer a handful; where it was begun before and not ended, one by one."""
        import ray

        handful = f"{len(items)} {items[0].path}"
        if ray.get(self.begun.begin.remote(handful)):
            found = together(self.one(item) for item in items)
        else:
            found = self.all(items)
        self.begun.end.remote(handful)
        return found

    def all(self, items: list[Item]) -> Found:
        """Answer photos, which many threads read."""
        some = [items[i : i + FEW] for i in range(0, len(items), FEW)]
        looks = [look for looks in self.pool.map(self.looks, some) for look in looks]
        return together(
            self.answered(looks[i : i + answers.BATCH]) for i in range(0, len(looks), answers.BATCH)
        )

    def one(self, item: Item) -> Found:
        """Answer a photo while no other is worked on: it is to blame if the process ends."""
        import ray

        with self.alone:
            if ray.get(self.begun.begin.remote(item.path)) >= AGAIN:
                return [Row(item.path, error=ENDS)], []
            found = answers.answered(self.classifier, self.looks([item]))
            ray.get(self.begun.end.remote(item.path))
        return found

    def looks(self, items: list[Item]) -> list[Look]:
        """Read and decode photos."""
        return [answers.look(item, classifier=self.classifier) for item in items]

    def answered(self, looks: list[Look]) -> Found:
        """Compute."""
        with self.alone:
            return answers.answered(self.classifier, looks)


def together(found: Iterable[Found]) -> Found:
    """Return several as one."""
    rows, others = list[Row](), list[str]()
    for some, paths in found:
        rows += some
        others += paths
    return rows, others
