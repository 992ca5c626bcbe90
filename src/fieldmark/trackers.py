"""A training told live to the programs that people watch trainings with: TensorBoard and MLflow.

In: a run, and which of the two are asked for. Out: the recipe, what the run was made with, the
figures of each epoch as it ends, the run's figures as they are drawn, the best weights and the
outcome; for TensorBoard as a folder in the run, for MLflow in a store or on a server. Both are
extras and are imported only where they are asked for. `fieldmark train PHOTOS --out RUN
--tensorboard --mlflow local` runs it; `docs/trackers.md` says who receives what.

A tracker is told what the run has and it has not: so it makes no difference whether the training is
its first, is gone on with, or goes on without a tracker for a while.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fieldmark import files, packages
from fieldmark.console import say
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch
from fieldmark.run import Run

LOCAL = "local"  # the word for a store beside the run
EXPERIMENT = "fieldmark"  # where the variable MLFLOW_EXPERIMENT_NAME names no other
DATABASE = "sqlite:///"
LONGEST = 5000  # signs of a tag; MLflow 3 takes 8000, others less

# MLflow reports its use to its makers and tries seven times, for minutes, to reach a server that
# is gone; whoever has set these variables knows why.
MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


# ---- what is asked for --------------------------------------------------------------------------


def require(*, tensorboard: bool, mlflow: str) -> None:
    """Raise a FieldmarkError where an extra is missing or the address is none, before all else."""
    if tensorboard:
        packages.require(
            "tensorboard", extra="tensorboard", why="--tensorboard writes what it shows"
        )
    if not mlflow:
        return
    if mlflow != LOCAL and not is_address(mlflow):
        raise FieldmarkError(
            f"{mlflow} is no address of an MLflow store: give --mlflow {LOCAL}, "
            f"{DATABASE}FILE or http://HOST:PORT."
        )
    if "@" in urlsplit(mlflow).netloc:
        raise FieldmarkError(
            f"The address of {shown(mlflow)} holds a name or a password, which would be kept with "
            "the run: give them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    web = urlsplit(mlflow).scheme in ("http", "https")
    for package in ("mlflow",) if web else ("mlflow", "sqlalchemy", "alembic"):
        packages.require(package, extra="mlflow", why="--mlflow tells MLflow of the training")


def is_address(text: str) -> bool:
    """Tell whether a text may be the address of a store."""
    try:
        return bool(urlsplit(text).scheme) and "://" in text
    except ValueError:  # a bracket that is not closed
        return False


def places(out: Path, *, mlflow: str) -> list[Path]:
    """Name the file of the local store that is asked for, if any, of a run to be made in `out`."""
    address = address_of(mlflow, out)
    return [_file(address)] if address.startswith(DATABASE) else []


def connect(out: Path, *, tensorboard: bool, mlflow: str) -> list[Tracker]:
    """Return those that are asked for; a FieldmarkError says why MLflow's store does not answer.

    A local store that is not there yet is made.
    """
    found: list[Tracker] = [TensorBoard()] if tensorboard else []
    return found + ([MLflow(mlflow, address_of(mlflow, out))] if mlflow else [])


def address_of(mlflow: str, out: Path) -> str:
    """Return the address of an MLflow store, of the local one too: a file beside the run."""
    if mlflow != LOCAL:
        return mlflow
    return f"{DATABASE}{(out.absolute().parent / 'mlflow.db').as_posix()}"


def shown(address: str) -> str:
    """Write an address for people, without a password that may be in it."""
    if address.startswith(DATABASE):  # a file's name may have any sign
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _file(address: str) -> Path:
    """Return the file of an SQLite store's address."""
    return Path(address.removeprefix(DATABASE))


# ---- what is told -------------------------------------------------------------------------------


def parameters(run: Run) -> dict[str, str | int | float | bool]:
    """Return the recipe, all fields; of a file on this machine the name alone."""
    values: dict[str, Any] = run.read_recipe().model_dump()
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in values.items()
    }


def facts(run: Run) -> dict[str, str]:
    """Return what the run is made with and of; nothing that names a folder of this machine."""
    made_with = json.loads(run.environment.read_text(encoding="utf-8"))
    classes = run.read_classes()
    sides = sorted(Counter(row.split for row in run.read_split()).items())
    found = {
        "fieldmark": made_with["versions"].get("fieldmark", "unknown"),
        "commit": made_with["commit"] or "unknown",
        "backend": made_with["backend"],
        "gpus": ", ".join(made_with["gpus"]) or "none",
        "classes": f"{len(classes)}: {', '.join(classes)}",
        "photos": ", ".join(f"{n} {side}" for side, n in sides),
    }
    return {name: value[:LONGEST] for name, value in found.items()}


class Tracker(ABC):
    """One that is told of a run; whatever it raises ends that, and not the training."""

    name: str

    def __init__(self) -> None:
        # What it has been told, now or earlier: an epoch by its number, all else by its name.
        self.told: set[int | str] = set()

    @abstractmethod
    def begin(self, run: Run) -> None:
        """Find its place for the run, or make it, and learn what it has been told."""

    @abstractmethod
    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an epoch, all at once."""

    @abstractmethod
    def figure(self, picture: Path, *, epoch: int) -> None:
        """Take a PNG that was drawn after an epoch."""

    @abstractmethod
    def outcome(self, sentence: str, weights: Path, *, epoch: int) -> None:
        """Take what the training came to, and its best weights where there are any."""

    @abstractmethod
    def end(self, status: str) -> None:
        """Be told that the training has ended: FINISHED, FAILED or KILLED, as MLflow says it."""

    def follow(self, run: Run) -> None:
        """Take all epochs and figures of the run that it has not been told of."""
        log = run.read_log()
        for line in log:
            number = int(line["epoch"] or 0)
            if number not in self.told:
                figures = {n: v for n, v in line.items() if n != "epoch" and v is not None}
                self.epoch(number, figures)
                self.told.add(number)
        for picture in sorted(run.figures.glob("[!.]*.png")):  # a dot begins what is half written
            if picture.stem not in self.told:
                self.figure(picture, epoch=last(log))
                self.told.add(picture.stem)

    def finish(self, run: Run, sentence: str) -> None:
        """Take all that there is of a run that has come to its end."""
        self.follow(run)
        if "outcome" not in self.told:
            short = sentence.replace(f"{run.folder}{os.sep}", "")
            self.outcome(short, run.best, epoch=last(run.read_log()))
            self.told.add("outcome")


def last(log: list[Epoch]) -> int:
    """Return the number of the last finished epoch."""
    return int(log[-1]["epoch"] or 0) if log else 0


class Audience:
    """The trackers of a run; one that fails is said and told no more."""

    def __init__(self, run: Run, trackers: list[Tracker]) -> None:
        self.run = run
        self.trackers = trackers

    def append(self, line: Epoch) -> None:
        """Add an epoch's line to the run's log, and tell it."""
        self.run.append_log(line)
        self.tell(lambda tracker: tracker.follow(self.run))

    def finish(self, sentence: str) -> None:
        """Tell what the training came to."""
        self.tell(lambda tracker: tracker.finish(self.run, sentence))

    def tell(self, what: Callable[[Tracker], None]) -> None:
        """Tell each tracker something."""
        for tracker in tuple(self.trackers):
            try:
                what(tracker)
            except Exception as error:  # whatever a server, a disk or a library has come to
                self.trackers.remove(tracker)
                say(
                    f"{tracker.name} is told no more ({reason(error)}). The training goes on; "
                    "the same command tells it later what it has missed."
                )


@contextmanager
def told(run: Run, trackers: list[Tracker]) -> Iterator[Audience]:
    """Let trackers follow a run for as long as the block runs, and tell them how it ended."""
    audience = Audience(run, trackers)
    audience.tell(lambda tracker: tracker.begin(run))
    audience.tell(lambda tracker: tracker.follow(run))
    status = "FINISHED"
    try:
        yield audience
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        audience.tell(lambda tracker: tracker.end(status))


def reason(error: Exception) -> str:
    """Write an error of somebody else's on one short line."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:160]}…"


# ---- TensorBoard --------------------------------------------------------------------------------


class TensorBoard(Tracker):
    """Writes a folder that TensorBoard reads, with its own messages and without TensorFlow.

    Its own writer is not used: it writes in a thread, whose errors nobody catches, imports
    TensorFlow where that is installed, and puts the machine's name into the file's.
    """

    name = "TensorBoard"

    def begin(self, run: Run) -> None:
        """Begin a file of its own after those that are there."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        run.tensorboard.mkdir(exist_ok=True)
        # TensorBoard takes files with this word in their names, and reads them in their order.
        before = sorted(run.tensorboard.glob("events.out.tfevents.*"))
        self.file = run.tensorboard / f"events.out.tfevents.{time.time_ns():020d}"
        self._write(Event(file_version="brain.Event:2"))
        for event in (event for path in before for event in _events(path)):
            tags = {value.tag for value in event.summary.value}
            self.told |= {event.step} if "seconds" in tags else tags
        if "made with" not in self.told:
            folder = run.folder.absolute()
            # Runs of one name are taken for one another and averaged.
            name = f"{folder.parent.name}/{folder.name}"
            self._write(Event(summary=hparams_pb(parameters(run), trial_id=name)))
            self._text("made with", "\n".join(f"{n}: {v}" for n, v in facts(run).items()))
        say(f"TensorBoard: tensorboard --logdir {run.folder.parent}")

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Write an epoch as one record, which is there whole or not at all."""
        self._values([{"tag": n, "simple_value": v} for n, v in figures.items()], epoch=number)

    def figure(self, picture: Path, *, epoch: int) -> None:
        """Write a PNG as it is."""
        content = picture.read_bytes()
        width, height = struct.unpack_from(">II", content, 16)  # the PNG's first chunk has them
        image = {"width": width, "height": height, "colorspace": 4, "encoded_image_string": content}
        self._values([{"tag": picture.stem, "image": image}], epoch=epoch)

    def outcome(self, sentence: str, weights: Path, *, epoch: int) -> None:
        """Write the sentence; the weights lie in the folder above."""
        there = f"model: {weights.name}, in the run's folder" if weights.exists() else "no model"
        self._text("outcome", f"{sentence}\n{there}", epoch=epoch)

    def end(self, status: str) -> None:
        """Do nothing: TensorBoard knows no end."""

    def _text(self, tag: str, text: str, *, epoch: int = 0) -> None:
        """Write lines of text, set as code: TensorBoard takes text for Markdown."""
        code = "\n".join(f"    {line}" for line in text.splitlines())
        tensor = {"dtype": "DT_STRING", "string_val": [code.encode("utf-8", "replace")]}
        metadata = {"plugin_data": {"plugin_name": "text"}, "data_class": "DATA_CLASS_TENSOR"}
        self._values([{"tag": tag, "tensor": tensor, "metadata": metadata}], epoch=epoch)

    def _values(self, values: list[dict[str, Any]], *, epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(step=epoch, summary={"value": values}))

    def _write(self, event: Any) -> None:
        """Add a record to the file; whoever watches sees it then."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        with self.file.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _events(path: Path) -> Iterator[Any]:
    """Yield the records of one of our files, without half a one that a kill has left.

    A record is its length (8 bytes), a checksum (4), the content, and a checksum (4).
    """
    from tensorboard.compat.proto.event_pb2 import Event

    content, at = path.read_bytes(), 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + 12 + length + 4
        if end > len(content):
            return
        yield Event.FromString(content[at + 12 : end - 4])
        at = end


# ---- MLflow -------------------------------------------------------------------------------------


class MLflow(Tracker):
    """Tells an MLflow store, a database or a server, by MLflow's client.

    `store` is the address as it was given, under which the run remembers its number there;
    `address` is the whole one. Raises a FieldmarkError where the store does not answer.
    """

    name = "MLflow"

    def __init__(self, store: str, address: str) -> None:
        super().__init__()
        for variable, value in MANNERS.items():
            os.environ.setdefault(variable, value)
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells each step of a new database
        self.store, self.address = store, address
        kept = _prepared(address) if address.startswith(DATABASE) else None
        try:
            self.client = MlflowClient(address)
            self.experiment = self._experiment(kept)
        except Exception as error:
            raise FieldmarkError(
                f"MLflow's store {shown(address)} does not answer ({reason(error)}): "
                "start it, or give another --mlflow."
            ) from error

    def _experiment(self, kept: str | None) -> str:
        """Return the number of the experiment in which the runs are, made where it is not there."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=kept))

    def begin(self, run: Run) -> None:
        """Go on with the run that the store has of this one, or make it."""
        from mlflow.entities import Param, RunTag

        numbers = json.loads(run.mlflow.read_text("utf-8")) if run.mlflow.exists() else {}
        self.run_id = numbers.get(self.store, "")
        if self.run_id and self._there():
            self.client.update_run(self.run_id, status="RUNNING")
            self.told |= self._told_before()
        else:
            files.require_folder(run.folder)  # else its number would be forgotten
            made = self.client.create_run(self.experiment, run_name=run.folder.absolute().name)
            self.run_id = made.info.run_id
            files.write_json(run.mlflow, {**numbers, self.store: self.run_id})
        # Equal ones are taken again: what a kill has cut off between these lines is made good.
        self.client.log_batch(
            self.run_id,
            params=[Param(name, str(value)) for name, value in parameters(run).items()],
            tags=[RunTag(name, value) for name, value in facts(run).items()],
        )
        say(f"MLflow: run {self.run_id} in {shown(self.address)}")

    def _there(self) -> bool:
        """Tell whether the store still has the run."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(self.run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _told_before(self) -> set[int | str]:
        """Return what the store has of the run."""
        epochs = {metric.step for metric in self.client.get_metric_history(self.run_id, "seconds")}
        figures = {
            Path(each.path).stem for each in self.client.list_artifacts(self.run_id, "figures")
        }
        tags = set(self.client.get_run(self.run_id).data.tags)
        return epochs | figures | (tags & {"outcome"})

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Log an epoch in one call, with the epoch as the step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, number) for name, value in figures.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def figure(self, picture: Path, *, epoch: int) -> None:  # noqa: ARG002 - artifacts have no step
        """Log a PNG as an artifact."""
        self.client.log_artifact(self.run_id, str(picture), "figures")

    def outcome(self, sentence: str, weights: Path, *, epoch: int) -> None:  # noqa: ARG002
        """Log the best weights, then the sentence, which is the run's description too."""
        if weights.exists():
            self.client.log_artifact(self.run_id, str(weights), "model")
        self.client.set_tag(self.run_id, "mlflow.note.content", sentence)
        self.client.set_tag(self.run_id, "outcome", sentence)

    def end(self, status: str) -> None:
        """Give the run its status."""
        self.client.set_terminated(self.run_id, status)


def _prepared(address: str) -> str:
    """Return where the files of an SQLite store lie: beside it, wherever the user is.

    Raises a FieldmarkError where there can be none; MLflow would try for minutes.
    """
    place = _file(address).absolute()
    if {"?", "%"} & set(str(place)):
        raise FieldmarkError(
            f"{place} has a ? or a %, and MLflow would take another file: rename it."
        )
    with files.writing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
    files.require_folder(place.parent)
    with files.writing(place), place.open("ab+") as file:
        file.seek(0)
        if file.read(6) not in (b"", b"SQLite"):
            raise FieldmarkError(
                f"{place} is no SQLite database: give another file to --mlflow {DATABASE}FILE."
            )
    return (place.parent / "mlartifacts").as_uri()
