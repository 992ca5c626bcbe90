"""Three hosts on one machine, whose links are cut, slowed and brought back while they work.

Each host is a network namespace with a link to a common bridge; the first is the head of a Ray
cluster, the others its workers, whose Ray is started again whenever it ends, as a service would.

    python -m pytest tests/test_hosts.py -s     # says what each disturbance cost
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

import pytest

from fieldmark.export import export
from fieldmark.run import Run
from test_joint import JAX, VALUES, epochs, wait_until
from test_lake import heavy, lines

pytestmark = pytest.mark.slow

NAMES = ("head", "one", "two")
PORT = 6379
PHOTOS = 600
# Ray takes a host for dead after half a minute; here after some seconds.
QUICKLY = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Hosts:
    """The three hosts and what runs on them."""

    def __init__(self, place: Path) -> None:
        self.tag = f"fm{os.getpid() % 10_000}"
        self.place = place  # short: sockets lie in it
        self.environment = {
            **os.environ,
            **QUICKLY,
            **JAX,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token_hex(32),
        }
        self.services: list[subprocess.Popen[bytes]] = []

    def address(self, name: str) -> str:
        return f"10.199.77.{1 + NAMES.index(name)}"

    def link(self, name: str) -> str:
        return f"{self.tag}{name}"

    def build(self) -> None:
        run("ip", "link", "add", self.tag, "type", "bridge")
        run("ip", "link", "set", self.tag, "up")
        for name in NAMES:
            inside = ("ip", "-n", self.link(name))
            run("ip", "netns", "add", self.link(name))
            run("ip", "link", "add", self.link(name), "type", "veth", "peer", "name", "eth0",
                "netns", self.link(name))  # fmt: skip
            run("ip", "link", "set", self.link(name), "master", self.tag, "up")
            run(*inside, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")

    def start(self) -> None:
        """Start Ray on all three."""
        head = f"--head --port {PORT} --num-cpus 0 --include-dashboard false"
        head += f" --temp-dir {self.place} --disable-usage-stats"
        self.serve("head", head)
        time.sleep(8)
        for name in NAMES[1:]:
            self.serve(name, f"--address {self.address('head')}:{PORT} --num-cpus 1")
        program = (
            "import ray\nray.init(address='auto', logging_level=50, log_to_driver=False)\n"
            "print('slots', int(ray.cluster_resources().get('CPU', 0)))"
        )

        def complete() -> bool:
            asked = self.on("head", [sys.executable, "-c", program])
            try:
                return b"slots 2" in asked.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:
                asked.kill()
                asked.communicate()
                return False

        wait_until(complete, 300)

    def serve(self, name: str, words: str) -> None:
        ray = f"{sys.executable} -m ray.scripts.scripts start --block"
        script = (
            f"while true; do {ray} {words} --node-ip-address {self.address(name)}; sleep 1; done"
        )
        self.services.append(self.on(name, ["sh", "-c", script]))

    def on(self, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run a command on a host, in a process group of its own."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.link(name), *words],
            env=self.environment,
            stdout=subprocess.PIPE if words[0] != "sh" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if words[0] != "sh" else subprocess.DEVNULL,
            start_new_session=True,
        )

    def fieldmark(self, *words: str) -> subprocess.Popen[bytes]:
        """Run a command on the head, with two workers."""
        cluster = ["--workers", "2", "--address", f"{self.address('head')}:{PORT}"]
        return self.on("head", [sys.executable, "-m", "fieldmark", *words, *cluster])

    def cut(self, name: str) -> None:
        run("ip", "link", "set", self.link(name), "down")

    def mend(self, name: str) -> None:
        run("ip", "link", "set", self.link(name), "up")

    def slow(self, name: str, rate: str) -> None:
        """Let no more than so many bits a second through to a host."""
        run("tc", "qdisc", "replace", "dev", self.link(name), "root", "tbf", "rate", rate,
            "burst", "32kb", "latency", "400ms")  # fmt: skip

    def quicken(self, name: str) -> None:
        run("tc", "qdisc", "del", "dev", self.link(name), "root")

    def remove(self) -> None:
        for service in self.services:
            os.killpg(service.pid, signal.SIGKILL)
            service.wait()
        for name in NAMES:
            found = subprocess.run(
                ["ip", "netns", "pids", self.link(name)], capture_output=True, check=False
            )
            for number in found.stdout.split():
                os.kill(int(number), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", self.link(name)], check=False)
        subprocess.run(["ip", "link", "del", self.tag], check=False)
        shutil.rmtree(self.place, ignore_errors=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts with Ray on them."""
    pytest.importorskip("ray", reason="Ray, of the extra `cluster`, is not installed")
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need `ip` and its rights")
    made = Hosts(Path(f"/tmp/fm{os.getpid()}"))
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode()}")
        made.start()
        yield made
    finally:
        made.remove()


TRAINING = {**VALUES, "epochs": "40", "validate-every": "20", "save-every": "1"}


def train(hosts: Hosts, birds: Path, out: Path) -> subprocess.Popen[bytes]:
    flags = [word for name, value in TRAINING.items() for word in (f"--{name}", value)]
    words = ["train", str(birds), "--out", str(out), "--recipe", "scratch", *flags]
    return hosts.fieldmark(*words)


@contextmanager
def never_left(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process whatever happens."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ends_well(process: subprocess.Popen[bytes], out: Path) -> list[dict[str, float]]:
    said = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, int(TRAINING["epochs"]) + 1))
    return lines


def time_lost(out: Path, process: subprocess.Popen[bytes], since: float) -> float:
    """Wait until the training is past its next epoch; return the seconds since the cut."""
    reached = epochs(out)
    wait_until(lambda: epochs(out) > reached or process.poll() is not None, 300)
    return time.monotonic() - since


def test_a_training_outlives_its_network(hosts: Hosts, birds: Path, tmp_path: Path) -> None:
    whole = ends_well(train(hosts, birds, tmp_path / "whole"), tmp_path / "whole")
    out = tmp_path / "disturbed"
    process = train(hosts, birds, out)
    with never_left(process):
        wait_until(lambda: epochs(out) >= 5, 300)

        hosts.slow("one", "20mbit")
        began, before = time.monotonic(), epochs(out)
        wait_until(lambda: epochs(out) >= before + 3, 300)
        print(f"\n20 Mbit/s: {(time.monotonic() - began) / 3:.1f} s an epoch")
        hosts.quicken("one")

        hosts.cut("one")
        began = time.monotonic()
        time.sleep(2)
        hosts.mend("one")
        print(f"cut for 2 s: {time_lost(out, process, began):.1f} s to the next epoch")

        hosts.cut("one")
        began = time.monotonic()
        print(f"cut for good: {time_lost(out, process, began):.1f} s to the next epoch, with one")
        hosts.mend("one")
        disturbed = ends_well(process, out)
    for one, other in zip(whole, disturbed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)


def rows(place: Path) -> int:
    """Return how many photos are in a CSV."""
    return place.read_bytes().count(b"\r\n") - 1 if place.exists() else 0


def has(place: Path, count: int) -> bool:
    return rows(place) >= count


def test_a_prediction_outlives_its_network(hosts: Hosts, trained: Run, tmp_path: Path) -> None:
    model = export(trained.folder, "openvino", out=tmp_path / "model")
    photos = heavy(tmp_path, PHOTOS)

    def predict(place: Path, *disturbances: Callable[[], None]) -> float:
        """Predict, with a disturbance after each so many photos; return the seconds it took."""
        process = hosts.fieldmark("predict", str(model), str(photos), "--csv", str(place))
        with never_left(process):
            wait_until(partial(has, place, 1), 300)
            began = time.monotonic()
            for number, disturb in enumerate(disturbances, 1):
                wait_until(partial(has, place, number * PHOTOS // 6), 300)
                disturb()
            said = process.communicate(timeout=600)[0].decode()
            assert process.returncode == 0, said
        had = lines(place)[1:]
        assert len(had) == len({row[0] for row in had}) == PHOTOS
        assert not any(row[3] for row in had)  # no errors
        return time.monotonic() - began

    def blink() -> None:
        hosts.cut("one")
        time.sleep(2)
        hosts.mend("one")

    quiet = predict(tmp_path / "whole.csv")
    slow = predict(
        tmp_path / "slow.csv", lambda: hosts.slow("one", "1mbit"), lambda: hosts.quicken("one")
    )
    blinked = predict(tmp_path / "blinked.csv", blink)
    alone = predict(tmp_path / "cut.csv", lambda: hosts.cut("one"))
    hosts.mend("one")
    print(
        f"\n{PHOTOS} photos: {quiet:.1f} s; a sixth of them by 1 Mbit/s: {slow:.1f} s; cut for "
        f"2 s: {blinked:.1f} s; cut for good after a sixth: {alone:.1f} s"
    )
    assert lines(tmp_path / "cut.csv") == lines(tmp_path / "whole.csv")
