"""What lies at a URL is had here, and kept there; a real S3 server answers on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from fieldmark import remote
from fieldmark.errors import FieldmarkError

fsspec = pytest.importorskip("fsspec", reason="fsspec, of the extra `remote`, is not installed")

WORDS = (
    *("--recipe", "scratch", "--network", "small", "--image-size", "32", "--begin-size", "32"),
    *("--end-size", "32", "--batch-size", "8", "--epochs", "2", "--warmup", "1"),
)


@pytest.fixture
def shelf() -> Iterator[Any]:
    """The store in memory that fsspec has, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))


def listed(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_lies_at_a_url_is_fetched_once(shelf: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.pipe({"/photos/a/1.jpg": b"one", "/photos/b/2.jpg": b"two"})
    folder = remote.near("memory://photos")
    assert folder.name == "photos"
    assert listed(folder) == {"a/1.jpg": b"one", "b/2.jpg": b"two"}
    assert "Fetching 2 files of memory://photos" in capsys.readouterr().err
    assert remote.near("memory://photos/") == folder
    assert capsys.readouterr().err == ""
    assert remote.origin(folder) == "memory://photos"


def test_only_what_was_changed_is_fetched_again(
    shelf: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.pipe({"/photos/1.jpg": b"one", "/photos/2.jpg": b"two", "/photos/3.jpg": b"three"})
    remote.near("memory://photos")
    shelf.pipe({"/photos/2.jpg": b"another"})
    shelf.rm("/photos/3.jpg")
    capsys.readouterr()
    assert listed(remote.near("memory://photos")) == {"1.jpg": b"one", "2.jpg": b"another"}
    assert "Fetching 1 file of" in capsys.readouterr().err


def test_a_single_file_is_had_as_one(shelf: Any) -> None:
    shelf.pipe({"/photos/list.csv": b"path,label\n", "/photos/other.csv": b""})
    found = remote.near("memory://photos/list.csv")
    assert found.read_bytes() == b"path,label\n"
    assert not (found.parent / "other.csv").exists()


class Bare(BaseHTTPRequestHandler):
    """A server that has one file, and lists nothing."""

    def do_GET(self) -> None:
        there = self.path == "/sets/photos.csv"
        self.send_response(200 if there else 404)
        self.send_header("content-length", "11" if there else "0")
        self.end_headers()
        if there and self.command == "GET":
            self.wfile.write(b"path,label\n")

    do_HEAD = do_GET  # noqa: N815 - http.server calls it so

    def log_message(self, *_: object) -> None:
        pass


def test_a_single_file_needs_no_listing(shelf: Any) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp, with which fsspec reads HTTP, is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), Bare) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/sets"
        assert remote.near(f"{url}/photos.csv").read_bytes() == b"path,label\n"
        with pytest.raises(FieldmarkError, match=f"There is nothing at {url}/other.csv"):
            remote.near(f"{url}/other.csv")
        http.shutdown()
    with pytest.raises(FieldmarkError, match=f"{url}/other.csv cannot be reached"):
        remote.near(f"{url}/other.csv")


def test_a_name_that_leads_out_is_left_there(shelf: Any, tmp_path: Path) -> None:
    shelf.store.update({"/photos/../../evil": shelf.open("/photos/x", "wb")})
    shelf.pipe({"/photos/1.jpg": b"one"})
    assert set(remote.Store.at("memory://photos").files()) == {"1.jpg", "x"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nothing", "There is nothing at memory://nothing"),
        ("nonsense://x", "is of no kind that fsspec knows"),
        ("gs://bucket/x", "cannot be read without a library of its own"),
    ],
)
def test_what_cannot_be_had(url: str, said: str, shelf: Any) -> None:
    with pytest.raises(FieldmarkError, match=said):
        remote.near(url)


def test_a_folder_is_kept_at_its_url(shelf: Any) -> None:
    with remote.kept("memory://runs/first") as work:
        work.folder.mkdir(parents=True, exist_ok=True)
        (work.folder / "state").write_text("1")
        (work.folder / ".log.1.partial").write_text("half")
        (work.folder / "lock").write_text("")
        work.push()
        assert shelf.cat("/runs/first/state") == b"1"
        (work.folder / "state").write_text("22")
        (work.folder / "log").write_text("line")
    assert not work.folder.exists()
    assert {name: shelf.cat(name) for name in shelf.find("/runs/first")} == {
        "/runs/first/state": b"22",
        "/runs/first/log": b"line",
    }
    with remote.kept("memory://runs/first") as work:
        assert listed(work.folder) == {"state": b"22", "log": b"line"}


def test_what_was_done_is_kept_when_something_goes_wrong(shelf: Any) -> None:
    def fails() -> None:
        with remote.kept("memory://runs/first") as work:
            work.folder.mkdir(parents=True, exist_ok=True)
            (work.folder / "state").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert shelf.cat("/runs/first/state") == b"1"


def test_two_do_not_work_at_one_url(shelf: Any) -> None:
    with remote.kept("memory://runs/first"):
        with remote.kept("memory://runs/first", role="worker 0"):
            pass
        with pytest.raises(FieldmarkError, match="worked on by another process"):
            with remote.kept("memory://runs/first"):
                pass


def test_a_folder_of_this_machine_is_itself(tmp_path: Path) -> None:
    with remote.kept(tmp_path / "run") as work:
        assert work.folder == tmp_path / "run"
        work.push()
    assert remote.origin(tmp_path) == str(tmp_path)
    assert remote.opened(str(tmp_path)) == tmp_path


# ---- a real store -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(birds: Path) -> Iterator[dict[str, str]]:
    """What a process needs to find an S3 server that has the drawn birds."""
    server = pytest.importorskip("moto.server", reason="moto, an S3 server, is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    running = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "0"], stderr=subprocess.PIPE, text=True
    )
    assert server
    assert running.stderr is not None
    address = next(line.split()[-1] for line in running.stderr if "Running on http" in line)
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FSSPEC_S3_ENDPOINT_URL": address,
    }
    program = (
        "import sys, fsspec\n"
        "store = fsspec.filesystem('s3')\n"
        "store.mkdir('lake')\n"
        "store.put(sys.argv[1], 'lake/birds', recursive=True)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(birds)], env={**os.environ, **environment}, check=True
    )
    yield environment
    running.kill()
    running.wait()
    running.stderr.close()


@pytest.mark.slow
def test_a_run_from_a_store_into_a_store(fieldmark: Command, s3: dict[str, str]) -> None:
    words = ("train", "s3://lake/birds", "--out", "s3://lake/runs/first", *WORDS)
    found = fieldmark(*words, **s3)
    assert found.returncode == 0, found.stderr
    assert "Fetching" in found.stderr
    program = "import fsspec; print(*fsspec.filesystem('s3').find('lake/runs/first'))"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **s3},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    names = {name.removeprefix("lake/runs/first/") for name in there}
    assert {"best.keras", "log.jsonl", "last/state.npz", "split.csv", "recipe.json"} <= names
    assert "last/lock" not in names
    assert "finished already" in fieldmark(*words, **s3).stdout
    longer = fieldmark(*words, "--seed", "1", **s3)
    assert longer.returncode == 2
    assert "is of another recipe (seed 0 there, 1 now)" in longer.stderr


@pytest.mark.slow
def test_workers_from_a_store_into_a_store(fieldmark: Command, s3: dict[str, str]) -> None:
    pytest.importorskip("ray", reason="Ray, of the extra `cluster`, is not installed")
    words = ("train", "s3://lake/birds", "--out", "s3://lake/runs/two", "--workers", "2", *WORDS)
    found = fieldmark(*words, **s3, KERAS_BACKEND="jax")
    assert found.returncode == 0, found.stderr
    assert "epoch 2/2" in found.stdout
    assert "finished already" in fieldmark(*words, **s3, KERAS_BACKEND="jax").stdout


def test_a_store_that_does_not_answer(fieldmark: Command) -> None:
    found = fieldmark(
        *("train", "s3://lake/birds", "--out", "run", *WORDS),
        FSSPEC_S3_ENDPOINT_URL="http://127.0.0.1:1",
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_MAX_ATTEMPTS="1",
    )
    assert found.returncode == 2
    assert "s3://lake/birds cannot be reached" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_url_where_a_file_of_this_machine_is_wanted(fieldmark: Command) -> None:
    found = fieldmark("report", "s3://lake/run")
    assert found.returncode == 2
    assert "copy it first" in found.stderr
