"""Locks: one alone or many together, in one process and in several, and none outlives its owner."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fieldmark import locks
from fieldmark.errors import FieldmarkError

posix = pytest.mark.skipif(os.name != "posix", reason="Windows keeps what is open by itself")

CHILD = r"""
import sys
from pathlib import Path
from fieldmark import locks
from fieldmark.errors import FieldmarkError
held = getattr(locks, sys.argv[1])(Path(sys.argv[2]))
print(held is not None, flush=True)
sys.stdin.read()
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    """Lock a file in a process of its own, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """End a process in a way that it does not notice: SIGKILL, where there is that."""
    process.kill()
    process.communicate()


def locked(path: Path) -> int:
    """Lock a file that nobody has locked."""
    lock = locks.exclusive(path)
    assert lock is not None
    return lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "lock").touch()
    return tmp_path / "lock"


def test_one_alone_has_it(path: Path) -> None:
    lock = locked(path)
    assert locks.exclusive(path) is None
    os.close(lock)
    os.close(locked(path))


def test_a_file_is_made_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.exclusive(tmp_path / "new")
    lock = locks.exclusive(tmp_path / "new", create=True)
    assert lock is not None
    os.close(lock)


@posix
def test_many_have_it_together(path: Path) -> None:
    held = [locks.shared(path) for _ in range(3)]
    for lock in held:
        assert locks.in_use(path)
        assert locks.exclusive(path) is None
        assert lock is not None
        os.close(lock)
    assert not locks.in_use(path)
    os.close(locked(path))


@pytest.mark.parametrize("kind", ["exclusive", pytest.param("shared", marks=posix)])
def test_a_lock_ends_with_its_process(kind: str, path: Path) -> None:
    other = holder(kind, path)
    assert locks.exclusive(path) is None
    kill(other)
    os.close(locked(path))


@posix
def test_asking_who_uses_a_file_locks_nobody_out(path: Path) -> None:
    lock = locks.shared(path)
    assert locks.in_use(path)
    assert lock is not None
    os.close(lock)
    assert not locks.in_use(path)
    assert not locks.in_use(path)


@posix
def test_what_is_not_there_is_used_by_nobody(tmp_path: Path) -> None:
    assert locks.shared(tmp_path / "none") is None
    assert not locks.in_use(tmp_path / "none")
    (tmp_path / "file").touch()
    assert locks.shared(tmp_path / "file" / "lock") is None


@posix
def test_the_lock_of_a_file_that_was_replaced_counts_for_nothing(path: Path) -> None:
    old = locked(path)
    path.unlink()
    path.touch()
    os.close(locked(path))
    os.close(old)


@posix
def test_whoever_waits_for_a_file_that_goes_is_told(path: Path) -> None:
    lock = locked(path)
    found: list[int | None] = [-1]
    waiting = threading.Thread(target=lambda: found.append(locks.shared(path)))
    waiting.start()
    path.rename(path.with_name("away"))
    os.close(lock)
    waiting.join(20)
    assert found == [-1, None]


@posix
def test_the_right_to_read_is_enough_to_share(path: Path) -> None:
    path.chmod(0o400)
    lock = locks.shared(path)
    assert lock is not None
    assert locks.in_use(path)
    os.close(lock)


@posix
def test_a_disk_that_may_only_be_read_has_locks(small_disk: Path) -> None:
    (small_disk / "lock").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    lock = locks.shared(small_disk / "lock")
    assert lock is not None
    os.close(lock)
    with pytest.raises(OSError, match="Read-only"):
        locks.exclusive(small_disk / "lock")


def test_the_sole_one_cleans_up_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.sole(path) as first:
        assert first
        with locks.sole(path) as second:
            assert not second
        assert path.exists()
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt), locks.sole(path):
        raise KeyboardInterrupt
    assert not path.exists()
    path.touch()  # of one that was killed
    with locks.sole(path) as again:
        assert again
    assert not path.exists()


def test_who_is_not_alone_is_refused(tmp_path: Path) -> None:
    with locks.alone(tmp_path / "lock", "Somebody is at it."):
        with pytest.raises(FieldmarkError, match=r"^Somebody is at it\.$"):
            with locks.alone(tmp_path / "lock", "Somebody is at it."):
                pass
    with pytest.raises(FieldmarkError, match=r"none.*lock cannot be written"):
        with locks.alone(tmp_path / "none" / "lock", ""):
            pass


def test_an_error_of_the_work_is_not_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), locks.alone(tmp_path / "lock", ""):
        (tmp_path / "other").read_bytes()
    assert not (tmp_path / "lock").exists()


def test_of_many_at_once_one_is_the_sole(tmp_path: Path) -> None:
    """However often the file comes and goes, no two have it together."""
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with locks.sole(tmp_path / "lock") as sole:
                if sole:
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1
    assert not (tmp_path / "lock").exists()
