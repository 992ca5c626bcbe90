"""A cluster is joined or started, or refused in a sentence; nothing is left of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import pytest

from conftest import Command, free_port
from fieldmark import cluster, locks, packages
from fieldmark.errors import FieldmarkError

pytest.importorskip("ray", reason="Ray, of the extra `cluster`, is not installed")


class Head(NamedTuple):
    """A cluster of two slots, started as its owner would."""

    address: str
    token: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster for the tests of this module."""
    port, token = free_port(), token_hex(32)
    place = Path("/tmp") / f"ray{os.getpid()}"  # its sockets bear no long path
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2"),
            *("--include-dashboard", "false", "--temp-dir", str(place)),
            *("--disable-usage-stats",),
        ],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "runtime started" in line:
            break
    yield Head(f"127.0.0.1:{port}", token)
    process.terminate()
    process.wait(60)
    process.stdout.close()
    subprocess.run(["rm", "-rf", str(place)], check=True)


def asked(words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Join in a process of its own, and say what happened."""
    program = (
        "from pathlib import Path\n"
        "from fieldmark import cluster\n"
        "from fieldmark.errors import FieldmarkError\n"
        "try:\n"
        f"    with cluster.joined({words}) as ray:\n"
        "        print('slots', cluster.slots_of(ray))\n"
        "except FieldmarkError as error:\n"
        "    print('refused:', error)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def left_behind() -> set[Path]:
    """Return the folders of clusters that nobody works in; other tests may have theirs."""
    found = set()
    for place in Path("/tmp").glob(f"{cluster.FOLDER}*"):
        lock = place.with_suffix(cluster.LOCK)
        if place != lock and not (lock.exists() and locks.in_use(lock)) and place.exists():
            found.add(place)
    return found


def test_a_cluster_of_this_machine_is_made_and_taken_away() -> None:
    before = left_behind()
    found = asked("slots=3")
    assert "slots 3" in found.stdout
    assert re.fullmatch(r"Starting a cluster of this machine, with \d+ slots\n", found.stderr)
    assert left_behind() <= before


def test_a_cluster_that_is_there_is_joined_and_left(head: Head) -> None:
    for _ in range(2):
        assert "slots 2" in asked(f"{head.address!r}, slots=2", RAY_AUTH_TOKEN=head.token).stdout


def test_fewer_slots_than_workers(head: Head) -> None:
    said = asked(f"{head.address!r}, slots=3", RAY_AUTH_TOKEN=head.token).stdout
    assert "has 2 slots and --workers needs 3" in said


def test_a_path_that_a_machine_does_not_see(head: Head, tmp_path: Path) -> None:
    words = f"{head.address!r}, slots=1, paths=[Path({str(tmp_path)!r}), Path('/not/there')]"
    said = asked(words, RAY_AUTH_TOKEN=head.token).stdout
    assert "does not see /not/there" in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid:6379", "nonsense", "a:99999"])
def test_no_cluster_at_the_address(address: str) -> None:
    said = asked(f"{address!r}, slots=1").stdout
    assert said.startswith(f"refused: There is no cluster at {address}, ")


def test_no_workers() -> None:
    with (
        pytest.raises(FieldmarkError, match="--workers 9999 is more than one machine of"),
        cluster.joined(slots=9999),
    ):
        pass
    with pytest.raises(FieldmarkError, match="--workers 0 is no number"), cluster.joined(slots=0):
        pass


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {**cluster.versions(), "keras": "3.0.0"}
    there = cluster.Machine("far", theirs, ())
    monkeypatch.setattr(cluster, "machines", lambda *_: [there])
    with pytest.raises(FieldmarkError, match=r"far has other versions \(keras 3.0.0 there, 3"):
        cluster.refuse_strange(None, [])


def test_another_ray_or_python_is_a_sentence() -> None:
    def mismatch() -> None:
        with cluster.explained("there:1"):
            raise RuntimeError("Version mismatch: The cluster was started with: Ray: 1.0")

    with pytest.raises(FieldmarkError, match=f"another Ray .* Python {platform.python_version()}"):
        mismatch()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> Any:
        return None

    monkeypatch.setattr(packages, "find_spec", nothing)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[cluster\]'"):
        cluster.require()


def test_a_machine_without_fieldmark_says_so(fieldmark: Command, birds: Path) -> None:
    found = fieldmark("train", birds, "--out", "run", "--address", "127.0.0.1:1")
    assert found.returncode == 2
    assert "give their number too" in found.stderr
