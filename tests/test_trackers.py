"""What TensorBoard and MLflow themselves read of what they were told."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TINY
from fieldmark import backend, cli, packages, trackers
from fieldmark.errors import FieldmarkError
from fieldmark.logbook import Epoch
from fieldmark.run import Run
from fieldmark.state import mend_log
from fieldmark.trackers import Audience, TensorBoard, Tracker
from fieldmark.train import fit

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
pytest.importorskip("alembic", reason="the extra `mlflow` is not installed")

pytestmark = [
    # MLflow 3.17 with SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def watched(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that both were told of, with the store beside it; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("where_the_user_is"))
        folder = tmp_path_factory.mktemp("runs") / "watched"
        made = fit(TINY, birds, folder, tensorboard=True, mlflow="local")
        assert list(Path.cwd().iterdir()) == []  # MLflow's own default is to write here
    return made


@pytest.fixture
def store(watched: Run, tmp_path: Path) -> str:
    """A store of its own, copied: to make one takes MLflow six seconds."""
    shutil.copy(watched.folder.parent / "mlflow.db", tmp_path)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def finished(watched: Run, tmp_path: Path) -> Run:
    """A run that nobody was told of."""
    ours = shutil.ignore_patterns(watched.tensorboard.name, watched.mlflow.name)
    return Run(shutil.copytree(watched.folder, tmp_path / "run", ignore=ours))


def seen(made: Run) -> Any:
    """Return what TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(made.tensorboard), size_guidance={"tensors": 0, "images": 0})
    return read.Reload()


def stored(made: Run, address: str, name: str) -> tuple[Any, Any]:
    """Return MLflow's client of a store, and what it has of a run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    return client, client.get_run(json.loads(made.mlflow.read_text())[name])


def beside(made: Run) -> str:
    """Return the address of the store beside a run."""
    return f"sqlite:///{made.folder.parent / 'mlflow.db'}"


def figures(log: list[Epoch]) -> dict[str, list[tuple[int, float]]]:
    """Return the figures of a log as both show them: of each name its epochs and values."""
    return {
        name: [
            (int(line["epoch"] or 0), value) for line in log if (value := line[name]) is not None
        ]
        for name in log[0]
        if name != "epoch"
    }


def curves_of(made: Run) -> dict[str, list[tuple[int, float]]]:
    read = seen(made)
    return {n: [(e.step, e.value) for e in read.Scalars(n)] for n in read.Tags()["scalars"]}


def close(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Compare curves; TensorBoard keeps numbers in single precision."""
    return found.keys() == expected.keys() and all(
        found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected[name]]
        for name in expected
    )


def history(client: Any, told: Any) -> dict[str, list[tuple[int, float]]]:
    """Return all values that MLflow has: what was told twice is in it twice."""
    return {
        name: [
            (each.step, each.value) for each in client.get_metric_history(told.info.run_id, name)
        ]
        for name in told.data.metrics
    }


# ---- what they receive --------------------------------------------------------------------------


def test_tensorboard_reads_the_curves_of_the_log(watched: Run) -> None:
    assert close(curves_of(watched), figures(watched.read_log()))


def test_tensorboard_reads_the_figures_as_they_are(watched: Run) -> None:
    read = seen(watched)
    assert sorted(read.Tags()["images"]) == ["curves", "predictions", "training_photos"]
    (drawn,) = read.Images("curves")
    assert drawn.encoded_image_string == (watched.figures / "curves.png").read_bytes()
    assert drawn.step == 2
    assert (drawn.width, drawn.height) == size_of(watched.figures / "curves.png")
    assert read.Images("training_photos")[0].step == 1  # told with the first epoch, not at the end


def size_of(picture: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(picture) as opened:
        return opened.size


def test_tensorboard_reads_recipe_environment_and_outcome(watched: Run) -> None:
    from tensorboard.plugins.hparams import metadata

    read = seen(watched)
    content = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    info = metadata.parse_session_start_info_plugin_data(content)
    found = {
        name: getattr(value, str(value.WhichOneof("kind"))) for name, value in info.hparams.items()
    }
    assert found == watched.read_recipe().model_dump()
    made_with = text_of(read, "made with")
    assert f"    backend: {backend.name}\n" in made_with
    assert "    classes: 4: Bananaquit, Black Skimmer" in made_with
    assert "    photos: 40 training, 8 validation" in made_with
    outcome = text_of(read, "outcome")
    assert "    Validation accuracy after epoch 2" in outcome
    assert f"    model: {watched.best.name}" in outcome


def text_of(read: Any, tag: str) -> str:
    (event,) = read.Tensors(tag)
    assert read.summary_metadata[tag].plugin_data.plugin_name == "text"
    return str(event.tensor_proto.string_val[0].decode())


def test_mlflow_reads_all_of_it(watched: Run) -> None:
    client, told = stored(watched, beside(watched), "local")
    assert told.info.status == "FINISHED"
    assert told.info.run_name == "watched"
    recipe = watched.read_recipe().model_dump()
    assert told.data.params == {name: str(value) for name, value in recipe.items()}
    assert history(client, told) == figures(watched.read_log())
    assert told.data.tags["backend"] == backend.name
    assert told.data.tags["photos"] == "40 training, 8 validation"
    assert told.data.tags["outcome"].startswith("Validation accuracy after epoch 2")
    assert told.data.tags["mlflow.note.content"] == told.data.tags["outcome"]
    number = told.info.run_id
    drawn = {Path(each.path).name for each in client.list_artifacts(number, "figures")}
    assert drawn == {path.name for path in watched.figures.iterdir()}
    model = client.download_artifacts(number, f"model/{watched.best.name}")
    assert Path(model).read_bytes() == watched.best.read_bytes()


def test_neither_is_told_of_this_machine(watched: Run, birds: Path) -> None:
    _, told = stored(watched, beside(watched), "local")
    sent = json.dumps([told.data.params, told.data.tags]).encode()
    (events,) = watched.tensorboard.iterdir()
    for content in (sent, events.read_bytes()):
        for place in (birds, watched.folder, Path.home()):
            assert str(place).encode() not in content
    assert str(birds).encode() not in (watched.folder.parent / "mlflow.db").read_bytes()
    assert events.name.removeprefix("events.out.tfevents.").isdigit()  # no name of the machine


def test_of_a_file_in_the_recipe_the_name_alone(finished: Run, tmp_path: Path) -> None:
    recipe = TINY.changed(split=str(tmp_path / "secret" / "split.csv"))
    finished.recipe.write_text(recipe.model_dump_json())
    assert trackers.parameters(finished)["split"] == "split.csv"


# ---- gone on with -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_that_is_gone_on_with_goes_on_in_the_same_place(
    birds: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Audience, line: Epoch) -> None:
        append(self, line)
        raise KeyboardInterrupt

    append = Audience.append
    monkeypatch.setattr(Audience, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, birds, tmp_path / "run", tensorboard=True, mlflow=store)
    made = Run(tmp_path / "run")
    client, told = stored(made, store, store)
    assert told.info.status == "KILLED"
    assert history(client, told) == figures(made.read_log())  # live: the first epoch is there
    assert close(curves_of(made), figures(made.read_log()))

    monkeypatch.undo()
    fit(TINY, birds, made.folder, tensorboard=True, mlflow=store)
    client, again = stored(made, store, store)
    assert again.info.run_id == told.info.run_id
    assert again.info.status == "FINISHED"
    assert len(made.read_log()) == 2
    assert history(client, again) == figures(made.read_log())
    assert close(curves_of(made), figures(made.read_log()))
    assert len(list(made.tensorboard.iterdir())) == 2


def test_a_finished_run_is_told_late_and_only_once(
    birds: Path, finished: Run, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        fit(TINY, birds, finished.folder, tensorboard=True, mlflow=store)
    client, told = stored(finished, store, store)
    assert history(client, told) == figures(finished.read_log())
    assert close(curves_of(finished), figures(finished.read_log()))
    read = seen(finished)
    assert [len(read.Images(tag)) for tag in read.Tags()["images"]] == [1, 1, 1]
    assert text_of(read, "outcome")
    assert "told no more" not in capsys.readouterr().out


def test_no_store_is_made_among_the_photos_of_a_finished_run(
    finished: Run, birds: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    before = sorted(photos.rglob("*"))
    with pytest.raises(FieldmarkError, match="among the photos"):
        fit(TINY, photos, finished.folder, mlflow=f"sqlite:///{photos / 'mlflow.db'}")
    assert sorted(photos.rglob("*")) == before


def test_a_run_that_was_deleted_in_mlflow_is_made_anew(finished: Run, store: str) -> None:
    for delete in (False, True):
        with trackers.told(finished, [trackers.MLflow(store, store)]) as audience:
            audience.finish("Done.")
        client, told = stored(finished, store, store)
        if not delete:
            client.delete_run(told.info.run_id)
    assert told.info.lifecycle_stage == "active"
    assert history(client, told) == figures(finished.read_log())


@settings(max_examples=12)
@given(part=st.floats(0, 1))
def test_what_a_kill_has_cut_off_is_written_again(
    watched: Run, tmp_path_factory: pytest.TempPathFactory, part: float
) -> None:
    made = Run(shutil.copytree(watched.folder, tmp_path_factory.mktemp("cut") / "run"))
    (events,) = made.tensorboard.iterdir()
    os.truncate(events, int(part * events.stat().st_size))
    with trackers.told(made, [TensorBoard()]) as audience:
        audience.finish("Done.")
    assert close(curves_of(made), figures(made.read_log()))
    read = seen(made)
    assert [len(read.Images(tag)) for tag in read.Tags()["images"]] == [1, 1, 1]
    assert text_of(read, "outcome")


def test_a_figure_that_is_no_number_is_left_out(finished: Run, store: str) -> None:
    line: Epoch = {"epoch": 1, "loss": 0.5, "val_loss": None, "seconds": 1.0}
    mend_log(finished.log, [line])
    with trackers.told(finished, [TensorBoard(), trackers.MLflow(store, store)]):
        pass
    assert curves_of(finished) == {"loss": [(1, 0.5)], "seconds": [(1, 1.0)]}
    assert history(*stored(finished, store, store)) == curves_of(finished)


# ---- what goes wrong ----------------------------------------------------------------------------


class Deaf(Tracker):
    """One that fails at the first epoch."""

    name = "Deaf"
    calls = 0

    def begin(self, run: Run) -> None: ...

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        self.calls += 1
        raise ConnectionError("the server is gone\nand much more")

    def figure(self, picture: Path, *, epoch: int) -> None: ...

    def outcome(self, sentence: str, weights: Path, *, epoch: int) -> None: ...

    def end(self, status: str) -> None: ...


def test_one_that_fails_is_said_once_and_nobody_else_feels_it(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    log = finished.read_log()
    mend_log(finished.log, [])
    deaf = Deaf()
    with trackers.told(finished, [deaf, TensorBoard()]) as audience:
        for line in log:
            audience.append(line)
        audience.finish("Done.")
    said = capsys.readouterr().out
    assert said.count("told no more") == deaf.calls == 1
    assert "Deaf is told no more (the server is gone). The training goes on" in said
    assert finished.read_log() == log
    assert close(curves_of(finished), figures(log))


def test_a_store_that_breaks_loses_nothing(
    finished: Run, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = finished.read_log()
    mend_log(finished.log, log[:1])
    database = store.removeprefix("sqlite:///")
    with trackers.told(finished, [trackers.MLflow(store, store)]) as audience:
        with sqlite3.connect(database) as connection:
            connection.execute("ALTER TABLE metrics RENAME TO elsewhere")
        connection.close()
        audience.append(log[1])
        audience.finish("Done.")
    assert finished.read_log() == log
    assert capsys.readouterr().out.count("MLflow is told no more (") == 1
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO metrics")
    connection.close()
    with trackers.told(finished, [trackers.MLflow(store, store)]) as audience:
        audience.finish("Done.")
    client, told = stored(finished, store, store)
    assert history(client, told) == figures(log)
    assert told.info.status == "FINISHED"


def test_a_folder_that_cannot_be_made_is_said(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.tensorboard.write_text("in the way")
    with trackers.told(finished, [TensorBoard()]) as audience:
        audience.finish("Done.")
    assert capsys.readouterr().out.count("TensorBoard is told no more (") == 1


def test_a_full_disk_ends_tensorboard_and_not_the_training(
    finished: Run, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.tensorboard.symlink_to(small_disk)
    with trackers.told(finished, [TensorBoard()]) as audience:  # the figures do not fit
        audience.finish("Done.")
    assert capsys.readouterr().out.count("TensorBoard is told no more (") == 1
    assert close(curves_of(finished), figures(finished.read_log()))


def unused_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_server_that_is_not_there_is_refused_before_the_training(
    birds: Path, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(FieldmarkError, match="does not answer"):
        fit(TINY, birds, tmp_path / "run", mlflow=address)
    assert not (tmp_path / "run").exists()


def test_addresses_that_are_none_are_refused(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no database")
    for address, words in (
        ("mlflow.db", "no address of an MLflow store"),
        ("http://[::1", "no address of an MLflow store"),
        (f"sqlite:///{file}", "no SQLite database"),
        (f"sqlite:///{tmp_path / '50%' / 'mlflow.db'}", "has a . or a %"),
        ("ftp://example.org", "does not answer"),
        (f"sqlite:///{birds / 'mlflow.db'}", "lies among the photos"),
    ):
        with pytest.raises(FieldmarkError, match=words):
            fit(TINY, birds, tmp_path / "run", mlflow=address)
    assert not (tmp_path / "run").exists()
    assert file.read_text() == "no database"
    with pytest.raises(SystemExit) as left:
        cli.main(["train", str(birds), "--out", str(tmp_path / "run"), "--mlflow", "mlflow.db"])
    assert left.value.code == 2
    assert "give --mlflow local, sqlite:///FILE or http://HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["http://ann:pass-word@127.0.0.1:1/x", "postgresql://ann:pass-word@host/db"]
)
def test_a_password_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(FieldmarkError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        trackers.require(tensorboard=False, mlflow=address)
    assert "pass-word" not in str(raised.value)
    assert "ann" not in str(raised.value)


@pytest.mark.parametrize(
    ("package", "extra"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("alembic", "mlflow")],
)
def test_a_missing_extra_is_named(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    there = importlib.util.find_spec
    without = lambda name: None if name == package else there(name)  # noqa: E731
    monkeypatch.setattr(packages, "find_spec", without)
    with pytest.raises(FieldmarkError, match=rf"pip install 'fieldmark\[{extra}\]'"):
        fit(TINY, birds, tmp_path / "run", tensorboard=True, mlflow="local")
    assert not any(tmp_path.iterdir())


# ---- what it costs who does not ask for it ------------------------------------------------------


def test_nothing_is_imported_but_where_it_is_asked_for() -> None:
    tree = ast.parse(Path(trackers.__file__).read_text(encoding="utf-8"))
    found = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in [*node.names, ast.alias(getattr(node, "module", None) or "")]
    }
    assert "fieldmark.run" in found
    assert not any(name.startswith(("tensorboard", "mlflow")) for name in found)
    assert trackers.connect(Path("run"), tensorboard=False, mlflow="") == []


def test_the_use_of_mlflow_is_reported_to_nobody(watched: Run) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()


# ---- a server -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's own server, on this machine."""
    pytest.importorskip("flask", reason="the whole of mlflow is not installed")
    address = f"http://127.0.0.1:{(port := unused_port())}"
    with (tmp_path / "server.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=1):
                    break
            except OSError:
                assert running.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(1)
        yield address
    finally:
        os.killpg(running.pid, 15)
        running.wait()


@pytest.mark.slow
def test_a_server_is_told_too(server: str, birds: Path, tmp_path: Path) -> None:
    made = fit(TINY, birds, tmp_path / "run", mlflow=server)
    client, told = stored(made, server, server)
    assert told.info.status == "FINISHED"
    assert history(client, told) == figures(made.read_log())
    model = client.download_artifacts(told.info.run_id, f"model/{made.best.name}")
    assert Path(model).read_bytes() == made.best.read_bytes()
