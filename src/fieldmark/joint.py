"""One training on several processes or machines, each with its share of every batch.

In: what `train.fit` takes, and how many workers. Out: the same run, with the same losses and
weights to the digits that float32 has: the batch, its normalisation and the steps are those of one
process.

    fieldmark train PHOTOS --out RUN --workers 4 [--address 10.0.0.1:6379]

Ray starts the workers and restarts them, JAX does what they do together. All that goes on from one
start to the next is the run's state: a worker that dies costs the steps since the last one, and
where it does not come back the training goes on with fewer. The first worker writes state and best
weights; log, progress and figures are its driver's, to whom it tells them through a `Board`.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark import backend, cluster, console, loop, mesh, remote, train
from fieldmark.batches import Batches
from fieldmark.console import meter, say
from fieldmark.errors import FieldmarkError
from fieldmark.feed import feed
from fieldmark.loop import Keeper, Signals, Stopped
from fieldmark.recipe import Recipe
from fieldmark.remote import Kept
from fieldmark.run import Run, open_run

IN_VAIN = 5  # starts without a single step between them, after which it is given up
GROWING = 30.0  # seconds from one look for slots that have come back to the next
SILENT = 30  # seconds after which JAX gives up a worker that is not heard; it has 100
NEWS_EVERY = 0.2  # seconds between two looks at what the workers tell
SCRATCH = ".cluster"  # Ray's own notes, in the run, for as long as the workers are at work


@dataclass(frozen=True)
class Team:
    """Who is to train together."""

    workers: int
    address: str = ""  # of a Ray cluster; none: one of this machine
    kept: Kept | None = None  # what the run's folder is kept at, where that is a URL


def fit(
    recipe: Recipe,
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    team: Team,
    **options: Any,
) -> Run:
    """Train as `train.fit` does, whose `options` these are, with several workers.

    Every machine must see `photos` and `out` under the same path. Raises a FieldmarkError too for
    a cluster that is not there or has too few slots, and for a batch that cannot be shared.
    """
    recipe = recipe.resolved()
    refuse(recipe, team)
    place, source = Path(out).absolute(), remote.origin(Path(photos))
    seen = [] if remote.is_url(source) else [Path(source)]
    with cluster.joined(team.address, slots=team.workers, paths=seen) as ray:
        learn = partial(together, ray=ray, team=team, photos=source, out=place)
        return train.fit(recipe, photos, out, learn=learn, **options)


def refuse(recipe: Recipe, team: Team) -> None:
    """Raise for what several workers cannot train."""
    if team.workers < 1:
        raise FieldmarkError(f"--workers {team.workers} is no number of workers: give 1 or more.")
    if recipe.pipeline == "article":
        raise FieldmarkError(
            "The article's pipeline reads for one process: add --pipeline batches, or leave "
            "--workers out."
        )
    if not recipe.epochs:
        raise FieldmarkError(
            "A recipe without epochs has nothing to share: leave --workers out, or give --epochs."
        )
    if recipe.batch_size % team.workers:
        raise FieldmarkError(
            f"A batch of {recipe.batch_size} photos cannot be shared equally by {team.workers} "
            f"workers: take a --batch-size that {team.workers} divides, or other --workers."
        )
    if backend.name != "jax":
        raise FieldmarkError(
            f"Workers train together with JAX, and Keras computes with {backend.name}: "
            "set KERAS_BACKEND=jax, or leave --workers out."
        )


# ---- the driver's side --------------------------------------------------------------------------


def together(
    network: Any,
    recipe: Recipe,
    *,
    training: Sequence[Batches],
    validation: Batches,
    keeper: Keeper,
    ray: Any,
    team: Team,
    photos: str,
    out: Path,
) -> None:
    """Have the workers train, as `loop.train` would, and show what they tell."""
    kept = team.kept if team.kept and team.kept.store else None
    if kept is None:
        cluster.refuse_strange(ray, [out])
    if not keeper.state.exists():  # all begin with the same weights: these
        loop.Course(network, recipe, training, validation, keeper).begin()
    if kept:
        kept.push()
    place = {"num_cpus": 0, "max_concurrency": 4, "label_selector": cluster.here(ray)}
    board = ray.remote(**place)(Board).remote()
    task = {
        "out": kept.store.url if kept and kept.store else str(out),
        "photos": photos,
        "batch_size": recipe.batch_size,
        "save_every": keeper.save_every,
        "board": board,
    }
    with scratch(out) as notes, Signals() as signals, ExitStack() as bars:
        at_work = Background(partial(run_workers, team, task, notes))
        shown = Shown(keeper, bars)
        while True:
            over = not at_work.is_alive()
            for message in ray.get(board.news.remote()):
                shown.hear(message)
            if signals.seen is not None:
                board.stop.remote()
            if over:
                break
            at_work.join(NEWS_EVERY)
    trouble, stopped = ray.get(board.outcome.remote())
    if kept:
        kept.push()
        kept.pull()  # state and best weights
    if trouble:
        raise FieldmarkError(trouble)
    if at_work.error is not None:
        raise at_work.error
    if signals.seen is not None and stopped:
        Stopped(signals.seen).leave()


def run_workers(team: Team, task: dict[str, Any], notes: Path) -> None:
    """Let Ray Train run `work` in every worker, start them again, and look for more."""
    from ray import train as engine
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    graphics = cluster.graphics_for(team.workers)
    DataParallelTrainer(
        work,
        train_loop_config=task,
        scaling_config=engine.ScalingConfig(
            num_workers=(1, team.workers),
            elastic_resize_monitor_interval_s=GROWING,
            use_gpu=bool(graphics),
            resources_per_worker={"CPU": 1, **({"GPU": graphics} if graphics else {})},
            placement_strategy="SPREAD",
        ),
        run_config=engine.RunConfig(
            name="training",
            storage_path=str(notes),
            failure_config=engine.FailureConfig(max_failures=-1),  # `Board.begins` ends it
            worker_runtime_env=cluster.environment(KERAS_BACKEND="jax"),
        ),
    ).fit()


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """Give a folder in the run for Ray's notes, and take it away."""
    folder = out / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)  # of a driver that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Background(threading.Thread):
    """A thread that keeps what it was ended by."""

    def __init__(self, what: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.what = what
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Do it."""
        try:
            self.what()
        except Exception as error:  # raised again by whoever waits
            self.error = error


class Shown:
    """Shows and keeps what the first worker tells."""

    def __init__(self, keeper: Keeper, bars: ExitStack) -> None:
        self.keeper = keeper
        self.bars = bars
        self.meter: console.Meter | None = None

    def hear(self, message: tuple[Any, ...]) -> None:
        """Take one message."""
        kind, *rest = message
        if kind == "say":
            say(*rest)
        elif kind == "begin":
            self.bars.close()
            self.meter = self.bars.enter_context(meter(*rest))
        elif kind == "advance" and self.meter is not None:
            steps, note = rest
            self.meter.advance(steps, note=note)
        elif kind == "append":
            self.keeper.append(*rest)
        elif kind == "mend":
            self.keeper.mend(*rest)


class Board:
    """What workers and driver tell each other; an actor of Ray's beside the driver."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.trouble = ""
        self.last = ""  # what a worker failed with
        self.asked = False
        self.stopped = False
        self.vain = 0

    def begins(self, workers: int) -> bool:
        """Say whether a start is worth it; the first worker asks at each."""
        self.vain += 1
        if self.vain > IN_VAIN and not self.trouble:
            self.trouble = (
                f"The workers failed {IN_VAIN} times without a step ({self.last or 'no reason'}): "
                "mend that; the same command goes on."
            )
        if not self.trouble and workers:
            self.messages.append(("say", f"Workers at work: {workers}"))
        return not self.trouble

    def tell(self, messages: Sequence[tuple[Any, ...]]) -> None:
        """Take what the driver is to hear."""
        self.messages += messages
        if any(message[0] == "advance" for message in messages):
            self.vain = 0

    def news(self) -> list[tuple[Any, ...]]:
        """Return what was not heard yet."""
        found, self.messages = self.messages, []
        return found

    def stop(self) -> None:
        """Have the training stopped."""
        self.asked = True

    def is_to_stop(self) -> bool:
        """Tell whether it is to be stopped."""
        return self.asked

    def end(self, *, trouble: str = "", stopped: bool = False) -> None:
        """Note how it ended."""
        self.trouble = self.trouble or trouble
        self.stopped = self.stopped or stopped

    def failed(self, with_what: str) -> None:
        """Note what a worker failed with; it may be another worker's death."""
        self.last = with_what

    def outcome(self) -> tuple[str, bool]:
        """Return the sentence that ends it all, or none, and whether it was stopped."""
        return self.trouble, self.stopped


# ---- a worker's side ----------------------------------------------------------------------------


def work(task: dict[str, Any]) -> None:
    """Train as one of several; Ray runs this in each of them."""
    import jax
    import ray
    from ray import train as engine
    from ray.train.collective import broadcast_from_rank_zero

    context, board = engine.get_context(), task["board"]
    rank = context.get_world_rank()
    count = mesh.sharing(task["batch_size"], context.get_world_size())
    if rank == 0:
        go_on = ray.get(board.begins.remote(count))
        met: tuple[str, bool] | None = (meeting_point(), go_on)
    else:
        met = None
    address, go_on = broadcast_from_rank_zero(met)
    if rank >= count or not go_on:
        return
    if count > 1:
        listen_at(ray.util.get_node_ip_address())
        jax.distributed.initialize(address, count, rank, heartbeat_timeout_seconds=SILENT)
    try:
        share(task, rank, ray)
    except FieldmarkError as error:
        ray.get(board.end.remote(trouble=str(error)))
    except (KeyboardInterrupt, SystemExit):
        ray.get(board.end.remote(stopped=True))
    except Exception as error:
        board.failed.remote(f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        raise


def meeting_point() -> str:
    """Return an address of this machine at which the workers find each other."""
    from ray.train._internal.utils import get_address_and_port

    host, port = get_address_and_port()
    return f"{host}:{port}"


def listen_at(host: str) -> None:
    """Have JAX's workers on CPUs listen where Ray knows this machine.

    JAX 0.10 lets gloo take what the machine's own name stands for, which on many is 127.0.0.1, and
    has no setting for it: where that changes, a test of three hosts says so.
    """
    from jax._src import xla_bridge

    made = xla_bridge._jax.make_gloo_tcp_collectives
    xla_bridge._jax.make_gloo_tcp_collectives = partial(made, hostname=host)


def share(task: dict[str, Any], rank: int, ray: Any) -> None:
    """Go on with the run from its state, as one of its workers."""
    with remote.kept(task["out"], role=f"worker {rank}") as kept:
        share_in(kept, task, rank, ray)


def share_in(kept: Kept, task: dict[str, Any], rank: int, ray: Any) -> None:
    """Take part in the training of the run in a folder."""
    board = task["board"]
    run = open_run(kept.folder)
    recipe = run.read_recipe()
    console.let_hear(ignore)  # the driver has said what there is to say of the photos
    fed = feed(recipe, remote.opened(task["photos"]), begun=run.read_split())
    if fed.ours is None:
        raise FieldmarkError(f"{run.recipe} is of the article's pipeline, which has no workers.")
    keeper = train.keeper_of(run, save_every=task["save_every"])
    speaker = Speaker(board) if rank == 0 else None
    if speaker:
        console.let_hear(speaker.hear)
        keeper = replace(
            keeper,
            pushed=kept.push,
            append=lambda line: speaker.hear(("append", line)),
            mend=lambda lines: speaker.hear(("mend", lines)),
        )
    else:
        keeper = replace(keeper, save=False, append=ignore, mend=ignore, best=ignore)
    try:
        loop.train(
            train.built(recipe, len(fed.photos.classes)),
            recipe,
            training=fed.ours.epochs,
            validation=fed.ours.validation,
            keeper=keeper,
            poll=Poll(board, ray),
        )
    finally:
        if speaker:
            speaker.flush()


def ignore(_: object) -> None:
    """Leave it to the first worker."""


class Speaker:
    """Tells the board what the first worker shows, a few times a second."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.waiting: list[tuple[Any, ...]] = []
        self.told = time.monotonic()

    def hear(self, message: tuple[Any, ...]) -> None:
        """Take a message; steps are added up."""
        if message[0] == "advance" and self.waiting and self.waiting[-1][0] == "advance":
            message = ("advance", self.waiting.pop()[1] + message[1], message[2])
        self.waiting.append(message)
        if message[0] != "advance" or time.monotonic() - self.told > NEWS_EVERY:
            self.flush()

    def flush(self) -> None:
        """Tell what waits."""
        self.board.tell.remote(self.waiting)
        self.waiting, self.told = [], time.monotonic()


class Poll:
    """Asks, before every step and of all workers at once, whether the training is to stop."""

    def __init__(self, board: Any, ray: Any) -> None:
        self.board, self.ray = board, ray
        self.asked = board.is_to_stop.remote()
        self.stop = False

    def __call__(self) -> None:
        """Raise `Stopped` in every worker, or in none."""
        if self.ray.wait([self.asked], timeout=0)[0]:
            self.stop = self.ray.get(self.asked)
            self.asked = self.board.is_to_stop.remote()
        if mesh.total(np.array([float(self.stop)]))[0]:
            raise Stopped(signal.SIGTERM)
