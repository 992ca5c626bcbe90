"""Several workers train what one process would, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Command, free_port

pytest.importorskip("ray", reason="Ray, of the extra `cluster`, is not installed")
pytest.importorskip("jax", reason="workers train with JAX, which is not installed")

from fieldmark import joint, mesh, state
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, SCRATCH

# Plain SGD, as Adam makes a step of its own size of a gradient that is nothing but rounding.
VALUES = {
    "network": "small",
    "image-size": "32",
    "begin-size": "32",
    "end-size": "32",
    "batch-size": "8",
    "epochs": "3",
    "warmup": "1",
    "optimiser": "sgd",
    "learning-rate": "0.0001",
    "validate-every": "1",
}
JAX = {"KERAS_BACKEND": "jax"}
WORDS = ["--recipe", "scratch", *(word for n, v in VALUES.items() for word in (f"--{n}", v))]


def agree(one: Path, other: Path) -> None:
    """Hold two runs equal, to the digits that float32 has."""
    lines = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    assert [line["epoch"] for line in lines[0]] == [line["epoch"] for line in lines[1]] == [1, 2, 3]
    for a, b in zip(*lines, strict=True):
        for name in ("loss", "val_loss", "averaged_val_loss", "learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    (a_header, _, a_arrays), (b_header, _, b_arrays) = (
        state.read(run / "last" / "state.npz") for run in (one, other)
    )
    assert (a_header.epoch, a_header.step) == (b_header.epoch, b_header.step) == (3, 0)
    for name, values in a_arrays.items():
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(values / scale, b_arrays[name] / scale, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def alone(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the recipe."""
    run = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(
        [sys.executable, "-m", "fieldmark", "train", str(birds), "--out", str(run), *WORDS],
        env={**os.environ, **JAX},
        capture_output=True,
        check=True,
    )
    return run


def left_behind() -> set[str]:
    return {path.name for path in Path("/tmp").glob("ray*")}


@pytest.mark.slow
def test_two_workers_train_what_one_process_would(
    fieldmark: Command, birds: Path, alone: Path, tmp_path: Path
) -> None:
    before = left_behind()
    found = fieldmark("train", birds, "--out", "run", "--workers", "2", *WORDS, **JAX)
    assert found.returncode == 0, found.stderr
    assert "Workers at work: 2" in found.stdout
    assert found.stdout.count("epoch 2/3") == 1
    agree(alone, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in alone.iterdir()
    }
    assert left_behind() <= before
    # It is a run like any other: one process goes on with it, and finds it finished.
    again = fieldmark("train", birds, "--out", "run", *WORDS, **JAX)
    assert "finished already" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "4"])
def test_any_number_of_workers_trains_the_same(
    workers: str, fieldmark: Command, birds: Path, alone: Path, tmp_path: Path
) -> None:
    found = fieldmark("train", birds, "--out", "run", "--workers", workers, *WORDS, **JAX)
    assert found.returncode == 0, found.stderr
    agree(alone, tmp_path / "run")


# ---- killed -------------------------------------------------------------------------------------

OTHERS = {"validate-every": "20", "save-every": "1"}
LONG = ["--recipe", "scratch"]
for name, value in {**VALUES, **OTHERS}.items():
    LONG += [f"--{name}", value] if name != "epochs" else []


@contextmanager
def training(
    birds: Path,
    run: Path,
    *more: str,
    epochs: int = 60,
    said: IO[str] | int = subprocess.PIPE,
    **environment: str,
) -> Iterator[subprocess.Popen[str]]:
    """A long training with two workers, in a process group of its own."""
    words = [sys.executable, "-m", "fieldmark", "train", str(birds), "--out", str(run)]
    process = subprocess.Popen(
        [*words, "--workers", "2", "--epochs", str(epochs), *LONG, *more],
        stdout=said,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **JAX, **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the numbers of the processes that train, which are descendants of the driver."""
    parents, found = {}, []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                parents[int(place.name)] = int(
                    (place / "stat").read_text().rpartition(")")[2].split()[1]
                )
                if b"RayTrainWorker" in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue

    def descends(number: int) -> bool:
        while number > 1:
            if number == process.pid:
                return True
            number = parents.get(number, 0)
        return False

    return [number for number in found if descends(number)]


def wait_until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


def epochs(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_is_killed_costs_steps_and_nothing_else(
    which: int, birds: Path, tmp_path: Path
) -> None:
    with training(birds, tmp_path / "killed") as process:
        wait_until(lambda: epochs(tmp_path / "killed") >= 3)
        os.kill(sorted(workers_of(process))[which], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("Workers at work") == 2
    with training(birds, tmp_path / "whole") as process:
        process.communicate(timeout=300)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    assert [line["epoch"] for line in logs[0]] == list(range(1, 61))
    for killed, whole in zip(*logs, strict=True):
        assert killed["loss"] == pytest.approx(whole["loss"], rel=1e-3)


@pytest.mark.slow
def test_the_driver_stopped_and_killed_goes_on(birds: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", left_behind()
    with training(birds, run) as process:
        wait_until(lambda: epochs(run) >= 2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "the same command goes on" in said
    assert left_behind() <= before
    reached = epochs(run)
    with training(birds, run) as process:
        wait_until(lambda: epochs(run) >= reached + 2)
        process.kill()
    with training(birds, run) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Going on after" in said
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 61))


# ---- a host that comes back ---------------------------------------------------------------------


@contextmanager
def node(*words: str, **environment: str) -> Iterator[None]:
    """A host with one slot, as its owner would start it."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    process = subprocess.Popen(
        [*command, "--disable-usage-stats", "--node-ip-address", "127.0.0.1", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert any("runtime started" in line for line in process.stdout)
        yield
    finally:
        process.terminate()  # and it ends all that it has started
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_a_host_that_comes_back_is_taken_in(birds: Path, tmp_path: Path) -> None:
    place = Path("/tmp") / f"ray_joint{os.getpid()}"  # its sockets bear no long path
    address, run = f"127.0.0.1:{free_port()}", tmp_path / "run"
    secret = {**JAX, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    head = ["--head", "--port", address.rpartition(":")[2], "--temp-dir", str(place)]

    def at_work(*counts: int) -> Callable[[], bool]:
        """Tell whether so many workers were at work in turn, and have trained since."""
        wanted = [f"Workers at work: {count}" for count in counts]

        def found() -> bool:
            said = (tmp_path / "said").read_text()
            assert process.poll() is None, said
            lines = [line for line in said.splitlines() if line.startswith("Workers at work")]
            return lines[-len(wanted) :] == wanted and epochs(run) > reached

        reached = epochs(run)
        return found

    try:
        with (
            node(*head, "--include-dashboard", "false", **secret),
            (tmp_path / "said").open("w") as said,
            ExitStack() as second,
        ):
            second.enter_context(node("--address", address, **secret))
            with training(
                birds, run, "--address", address, epochs=10_000, said=said, **secret
            ) as process:
                wait_until(at_work(2))
                second.close()
                wait_until(at_work(2, 1))
                second.enter_context(node("--address", address, **secret))
                wait_until(at_work(2, 1, 2))
                process.send_signal(signal.SIGTERM)
                assert process.wait(120) == 143
    finally:
        shutil.rmtree(place, ignore_errors=True)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))


# ---- several devices in one process ------------------------------------------------------------


@pytest.mark.slow
def test_all_devices_of_a_machine_are_used(birds: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "fieldmark", "train", str(birds), "--out", str(run), *WORDS],
        env={
            **os.environ,
            **JAX,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        check=True,
    )
    agree(alone, run)


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "3"], "cannot be shared equally by 3 workers"),
        (["--workers", "0"], "--workers 0 is no number of workers"),
        (["--workers", "2", "--pipeline", "article"], "add --pipeline batches"),
        (["--workers", "2", "--address", "127.0.0.1:1"], "There is no cluster at 127.0.0.1:1"),
    ],
)
def test_what_workers_cannot_train(
    words: list[str], said: str, fieldmark: Command, birds: Path, tmp_path: Path
) -> None:
    found = fieldmark("train", birds, "--out", "run", *WORDS, *words, **JAX)
    assert found.returncode == 2
    assert said in found.stderr
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_epochs_has_nothing_to_share() -> None:
    with pytest.raises(FieldmarkError, match="without epochs"):
        joint.refuse(SCRATCH.changed(epochs=0, warmup=0, probe=True), joint.Team(2))


def test_another_backend_is_refused() -> None:
    with pytest.raises(FieldmarkError, match="set KERAS_BACKEND=jax"):
        joint.refuse(ARTICLE.changed(pipeline="batches"), joint.Team(2))


# ---- who hears what -----------------------------------------------------------------------------


@given(st.integers(1, 512), st.integers(1, 64))
def test_as_many_take_part_as_can_share_a_batch(batch_size: int, workers: int) -> None:
    count = mesh.sharing(batch_size, workers)
    assert batch_size % count == 0
    assert 1 <= count <= workers
    assert all(batch_size % more for more in range(count + 1, workers + 1))


def test_a_training_that_never_makes_a_step_is_given_up() -> None:
    board = joint.Board()
    assert all(board.begins(2) for _ in range(joint.IN_VAIN))
    board.failed("ValueError: this")
    assert not board.begins(2)
    sentence, _ = board.outcome()
    assert "ValueError: this" in sentence


def test_a_step_makes_new_starts_worth_it() -> None:
    board = joint.Board()
    for _ in range(3 * joint.IN_VAIN):
        assert board.begins(2)
        board.tell([("advance", 1, "")])
