"""Replicas under use: a real cluster of this machine, a proxy on loopback, requests all along."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra cluster is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Counted
from prometheus_client.parser import text_string_to_metric_families

import served
from conftest import Command
from fieldmark.errors import FieldmarkError
from fieldmark.replicas import AWAY, BUSY, LOST, Count, Front, merged, reason
from fieldmark.run import Run
from fieldmark.service import Bounds, Refusal
from served import BLACK, GREEN, RED, Answer, photo, together

if not Path("/proc/self/stat").exists():
    pytest.skip("the processes of a server are read from /proc", allow_module_level=True)

# The same fake model as in the other server's tests; its file `weights` decides on its version.
HEAD, _, TAIL = served.PROGRAM.partition("def opened(")
MORE = """
more = options.get("more", {})
if "pace" in more:
    more["pace"] = Pace(*more["pace"])
"""
PROGRAM = (
    HEAD.replace("fieldmark.serve import serve", "fieldmark.replicas import Pace, serve")
    + MORE
    + TAIL[TAIL.index("bounds = ") :].replace("load=load)", "load=load, **more)")
)
KEY = "gar nicht geheim"
SMALL = {"photo_bytes": 300_000, "body_bytes": 400_000, "held_bytes": 1_000_000, "photos": 4,
         "waiting": 6, "seconds": 20}  # fmt: skip


class Replicas(served.Server):
    """A server with replicas: of the fake model, or what a command line has."""

    def __init__(self, folder: Path, *, words: Sequence[str] = (), **options: Any) -> None:
        self.folder = folder
        if not words:
            folder.mkdir(exist_ok=True)
            (folder / "weights").write_text("first")
        fake = ["-c", PROGRAM, str(folder), json.dumps(options)]
        self.process = subprocess.Popen(
            [sys.executable, *(("-m", "fieldmark", *words) if words else fake)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FIELDMARK_API_KEY": KEY},
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self.logged = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        for line in self.process.stdout:
            if line.startswith("Serving at http://127.0.0.1:"):
                self.port = int(line.split(":")[2].split()[0])
                break
        else:
            self.stop()
            raise AssertionError("".join(self.lines))
        self.wait_for("started")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask with the key."""
        return super().ask(method, path, body, headers={"x-api-key": KEY, **(headers or {})})

    def change(self, weights: str, event: str) -> dict[str, Any]:
        """Put another model there, and wait for what becomes of it."""
        before = sum(each["event"] == event for each in self.log())
        (self.folder / "weights").write_text(weights)
        self.process.send_signal(signal.SIGHUP)
        return self.wait_for(event, before + 1)

    def replicas(self) -> dict[str, int]:
        """How many requests each replica has answered."""
        found: Counter[str] = Counter()
        for name, value in self.figures().items():
            if name.startswith("fieldmark_model{"):
                found[labels(name)["replica"]] += 0
            elif name.startswith("fieldmark_requests_total{"):
                found[labels(name)["replica"]] += int(value)
        return dict(found)

    def waiting(self, count: int) -> None:
        """Wait until so many photos are in the replicas."""
        while True:
            figures = self.figures().items()
            if sum(n for name, n in figures if "waiting_photos" in name) >= count:
                return

    def within(self) -> dict[int, str]:
        """All processes that have come of this one, and what they are called."""
        parents, names = {}, {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                number, _, rest = file.read_text().partition(" (")
                names[int(number)] = (file.parent / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has just ended
                continue
            parents[int(number)] = int(rest.rpartition(") ")[2].split()[1])
        found: dict[int, str] = {}
        for each in parents:
            above = each
            while above := parents.get(above, 0):
                if above == self.process.pid:
                    found[each] = names[each]
        return found

    def serving(self) -> set[int]:
        """The processes that are replicas."""
        return {each for each, name in self.within().items() if "ServeReplica" in name}


def labels(name: str) -> dict[str, str]:
    """Return the labels of a figure's name."""
    inner = name.partition("{")[2].rstrip("}")
    return dict(each.replace('"', "").split("=", 1) for each in inner.split(","))


class Load:
    """Requests all along on some connections, and what came of each."""

    def __init__(self, server: Replicas, clients: int = 6, content: bytes = b"") -> None:
        self.content = content or photo(RED)
        self.server = server
        self.found: list[tuple[int, str]] = []  # status, and the version or the sentence
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def client(self) -> None:
        """Ask again and again; a broken connection counts as a failure."""
        kept = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        headers = {"x-api-key": KEY, "content-type": "image/jpeg"}
        while not self.over.is_set():
            try:
                kept.request("POST", "/predict", self.content, headers)
                response = kept.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.found.append((0, repr(error)))
                kept.close()
            else:
                said = answer["error"] if "error" in answer else answer["model"]["version"]
                self.found.append((response.status, said))
        kept.close()

    def more(self, count: int) -> None:
        """Wait for so many answers from here on."""
        wanted = len(self.found) + count
        while len(self.found) < wanted:
            time.sleep(0.01)

    def __enter__(self) -> Load:
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for each in self.threads:
            each.join()


def gone(processes: set[int]) -> set[int]:
    """Wait a little for processes to end, and return those that do not."""
    for _ in range(200):
        processes = {each for each in processes if Path(f"/proc/{each}").exists()}
        if not processes:
            break
        time.sleep(0.1)
    return processes


def folders(server: Replicas) -> list[Path]:
    """Return what its cluster has in the folder for temporary things."""
    return list(Path("/tmp").glob(f"ray*/session_*_{server.process.pid}"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas, for all tests that do not need their own; nothing is left of them."""
    running = Replicas(
        tmp_path_factory.mktemp("served") / "model", bounds=SMALL, more={"replicas": "2"}
    )
    try:
        assert len(folders(running)) == 1
        yield running
        processes = set(running.within())
        code = running.stop()
        assert code == 0
        assert gone(processes) == set()
        assert folders(running) == []
    finally:
        running.stop(signal.SIGKILL)


# ---- the same application ------------------------------------------------------------------------


@pytest.mark.slow
def test_answers_are_those_of_one_server(server: Replicas) -> None:
    found = server.predict(photo(RED), b"no photo")
    assert found.status == 200
    first, second = found.json["photos"]
    assert first["label"] == "red"
    assert "in no format that is read" in second["error"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-security-policy"].startswith("default-src 'none'")
    page = server.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert server.ask("GET", "/v2/models/fieldmark").json["parameters"]["explains"] is False
    assert server.ask("HEAD", "/health/ready").body == b""
    assert "/predict" in server.ask("GET", "/openapi.json").json["paths"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 422, "is empty"),
        (b"%PDF-1.7 ...", 415, "is a PDF document"),
        (b"\xff\xd8\xff" + b"\0" * 300_000, 413, "0.3 MB at most"),
        (photo(BLACK), 500, "made a mistake"),
    ],
)
@pytest.mark.slow
def test_errors_are_those_of_one_server(
    server: Replicas, content: bytes, status: int, said: str
) -> None:
    found = server.predict(content)
    assert found.status == status
    assert said in found.error


@pytest.mark.slow
def test_a_key_is_asked_for(server: Replicas) -> None:
    assert server.predict(photo(RED), **{"x-api-key": "other"}).status == 401
    assert server.ask("GET", "/metrics", headers={"x-api-key": ""}).status == 401
    assert server.ask("GET", "/health/ready", headers={"x-api-key": ""}).status == 200


@pytest.mark.slow
def test_the_figures_are_those_of_all_replicas(server: Replicas) -> None:
    before = sum(server.replicas().values())
    for _ in range(20):
        assert server.predict(photo(GREEN)).status == 200
    after = server.replicas()
    assert len(after) == 2
    assert min(after.values()) > 0
    assert sum(after.values()) == before + 21  # with the question for the figures before


@pytest.mark.slow
def test_over_the_bounds_it_is_busy_and_nothing_is_lost(server: Replicas) -> None:
    """Two replicas with room for six photos each."""
    with server.held():
        threads, answers = together(lambda: server.predict(photo(RED)), 60)
        while len(answers) < 48:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert Counter(each.status for each in answers) == {200: 12, 503: 48}
    for each in answers:
        if each.status == 503:
            assert each.error == BUSY
            assert each.headers["retry-after"] == "1"
            assert each.headers["x-content-type-options"] == "nosniff"


# ---- a new model ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_model_takes_over_and_no_request_fails(server: Replicas) -> None:
    before = server.predict(photo(RED)).json["model"]["version"]
    processes = server.serving()
    with Load(server) as load:
        load.more(30)
        swapped = server.change("second", "swapped")
        at = len(load.found)
        load.more(30)
    assert swapped["replicas"] == 2
    assert {status for status, _ in load.found} == {200}
    assert {version for _, version in load.found[:20]} == {before}
    assert {version for _, version in load.found} == {before, swapped["version"]}
    # Those that were on their way may still be of the old one.
    assert {version for _, version in load.found[at + 6 :]} == {swapped["version"]}
    assert server.serving() == processes


@pytest.mark.parametrize("weights", ["cut off", "crash", "nan"])
@pytest.mark.slow
def test_a_damaged_model_is_refused_and_the_old_one_goes_on(server: Replicas, weights: str) -> None:
    before = server.predict(photo(RED)).json["model"]["version"]
    with Load(server, clients=2) as load:
        refused = server.change(weights, "swap refused")
        load.more(4)
    assert refused["reason"].endswith(".")
    assert refused["version"] == before
    assert set(load.found) == {(200, before)}


# ---- a replica that dies -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_replica_is_killed_and_requests_go_on(server: Replicas) -> None:
    """What it had is answered by 503, to be sent again; another takes its place."""
    server.change("third", "swapped")
    version = server.predict(photo(RED)).json["model"]["version"]
    before = server.serving()
    with Load(server) as load:
        load.more(20)
        os.kill(min(before), signal.SIGKILL)
        while len(after := server.serving() - {min(before)}) < 2:
            time.sleep(0.1)
        while len(server.replicas()) < 2:
            time.sleep(0.1)
        load.more(30)
    assert len(after - before) == 1
    statuses = Counter(status for status, _ in load.found)
    assert set(statuses) <= {200, 503}
    assert statuses[503] <= len(load.threads)  # what was on its way, once
    assert {said for status, said in load.found if status == 503} <= {LOST}
    assert {said for status, said in load.found if status == 200} == {version}
    assert {status for status, _ in load.found[-20:]} == {200}


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_has_come_is_answered_at_the_end(server: Replicas) -> None:
    """The last of those that share the server: it is stopped."""
    processes = set(server.within())
    with server.held():
        threads, answers = together(lambda: server.predict(photo(GREEN)), 6)
        server.waiting(6)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        while server.ask("GET", "/health/live").status != 503:
            time.sleep(0.05)
        assert server.ask("GET", "/health/live").error == AWAY
    for thread in threads:
        thread.join()
    assert [each.status for each in answers] == [200] * 6
    assert server.process.wait(60) == 0
    assert gone(processes) == set()
    assert folders(server) == []


# ---- the number of replicas, a cluster that is there, a real model -------------------------------


@pytest.mark.slow
def test_more_requests_have_more_replicas(tmp_path: Path) -> None:
    """One replica, then two, then one again; no request fails on the way."""
    server = Replicas(tmp_path / "model", delay=0.1, more={"replicas": "1-2", "pace": [0.5, 1.0]})
    try:
        assert len(server.replicas()) == 1
        with Load(server, clients=24) as load:
            while len(server.replicas()) < 2:
                time.sleep(0.2)
            load.more(48)
        many = load.found
        with Load(server, clients=1) as load:
            while len(server.replicas()) > 1:
                time.sleep(0.2)
            load.more(4)
        assert {status for status, _ in many + load.found} == {200}
        assert server.stop() == 0
    finally:
        server.stop(signal.SIGKILL)


@contextmanager
def cluster(folder: Path, slots: int) -> Iterator[str]:
    """A cluster of one's own that is there already; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    words = ["start", "--head", "--node-ip-address=127.0.0.1", f"--port={address[10:]}"]
    words += [f"--num-cpus={slots}", f"--temp-dir={folder}", "--include-dashboard=false", "--block"]
    head = subprocess.Popen(
        [*ray, *words],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            assert head.poll() is None
            try:
                socket.create_connection(("127.0.0.1", int(address[10:]))).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


@pytest.mark.slow
def test_a_cluster_that_is_there_is_left_as_it_was(tmp_path: Path, fieldmark: Command) -> None:
    with (
        TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
        cluster(Path(folder), 2) as address,
    ):
        first = Replicas(tmp_path / "model", more={"address": address, "replicas": "1"})
        try:
            assert first.predict(photo(RED)).status == 200
            with pytest.raises(AssertionError, match="serves something already"):
                Replicas(tmp_path / "other", more={"address": address})
            with pytest.raises(AssertionError, match="has 2 slots and --replicas needs 3"):
                Replicas(tmp_path / "other", more={"address": address, "replicas": "3"})
            with pytest.raises(AssertionError, match="has 1 slots free and --replicas needs 2"):
                Replicas(tmp_path / "other", more={"address": address, "replicas": "2"})
            assert first.predict(photo(RED)).status == 200
            assert first.stop() == 0
        finally:
            first.stop(signal.SIGKILL)
        again = Replicas(tmp_path / "model", more={"address": address, "replicas": "2"})
        try:
            assert len(again.replicas()) == 2
            assert again.stop() == 0
        finally:
            again.stop(signal.SIGKILL)


@pytest.mark.slow
def test_an_export_is_served_and_exchanged(trained: Run, birds: Path, tmp_path: Path) -> None:
    """By the command, as a user has it: the answers are the model's, before and after."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from fieldmark.export import export
    from fieldmark.predict import Classifier

    model = tmp_path / "model"
    shutil.copytree(export(trained.folder, "openvino"), model)
    content = next(birds.rglob("*.jpg")).read_bytes()
    server = Replicas(model, words=["serve", str(model), "--ray", "--port", "0"])
    try:
        for turn in range(2):
            (wanted,) = Classifier.load(model).predict([content])
            (found,) = server.predict(content).json["photos"]
            best = max(zip(wanted.probabilities, Classifier.load(model).classes, strict=True))
            assert found["top"][0]["name"] == best[1]
            assert found["top"][0]["probability"] == pytest.approx(best[0], abs=1e-5)
            if turn == 0:
                manifest = model / "manifest.json"
                changed = json.loads(manifest.read_text())
                changed["classes"] = [f"new {each}" for each in changed["classes"]]
                with Load(server, content=content) as load:
                    load.more(10)
                    manifest.write_text(json.dumps(changed))
                    server.process.send_signal(signal.SIGHUP)
                    server.wait_for("swapped")
                    load.more(10)
                assert {status for status, _ in load.found} == {200}
                assert len({version for _, version in load.found}) == 2
        assert server.stop() == 0
    finally:
        server.stop(signal.SIGKILL)


# ---- without a cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ray", "--replicas", "0"], "--replicas 0 is no number of replicas"),
        (["--ray", "--replicas", "4-1"], "--replicas 4-1 is no number of replicas"),
        (["--ray", "--replicas", "many"], "--replicas many is no number of replicas"),
        (["--replicas", "2"], "say --ray too"),
        (["--address", "10.0.0.1:6379"], "say --ray too"),
        (["--ray", "--name", "a/b"], "is to be part of addresses"),
        (["--ray", "--port", "70000"], "There is no port 70000"),
        (["--ray"], "is neither a run nor an export"),
    ],
)
def test_bad_input_is_a_sentence(fieldmark: Command, words: list[str], said: str) -> None:
    done = fieldmark("serve", "nothing", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_no_cluster_at_the_address_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="There is no cluster at 127"):
        Replicas(tmp_path / "model", more={"address": "127.0.0.1:1"})


@pytest.mark.parametrize(("text", "found"), [("1", (1, 1)), ("12", (12, 12)), ("2-5", (2, 5))])
def test_a_number_of_replicas(text: str, found: tuple[int, int]) -> None:
    assert Count.of(text) == found


@pytest.mark.parametrize("text", ["", "0", "-1", "3-2", "0-2", "1-", "1.5", "1-2-3", "²", "99999"])
def test_no_number_of_replicas(text: str) -> None:
    with pytest.raises(FieldmarkError, match="is no number of replicas"):
        Count.of(text)


def test_figures_of_several_replicas_are_told_apart() -> None:
    registry = CollectorRegistry()
    asked = Counted("asked", "Asked.", ["route"], registry=registry)
    asked.labels("/predict").inc(3)
    Histogram("took", "Took.", buckets=(1, 2), registry=registry).observe(1.5)
    one = generate_latest(registry).decode()
    asked.labels("/predict").inc(4)
    found = merged([("b", generate_latest(registry).decode()), ("a", one)]).decode()
    assert found.count("# HELP asked_total") == 1
    families = {each.name: each for each in text_string_to_metric_families(found)}
    totals = {
        each.labels["replica"]: each.value
        for each in families["asked"].samples
        if each.name == "asked_total"
    }
    assert totals == {"a": 3, "b": 7}
    counts = [each for each in families["took"].samples if each.name == "took_bucket"]
    assert [(each.labels["replica"], each.labels["le"], each.value) for each in counts] == [
        *(("a", "1.0", 0), ("a", "2.0", 1), ("a", "+Inf", 1)),
        *(("b", "1.0", 0), ("b", "2.0", 1), ("b", "+Inf", 1)),
    ]


def test_the_reason_is_the_last_line() -> None:
    assert reason("Traceback:\n  File\nfieldmark.errors.FieldmarkError: It is cut off.\n") == (
        "It is cut off."
    )
    assert reason("") == "no reason is given."


# ---- before Ray's proxy --------------------------------------------------------------------------


def passed(app: Any, *, body: tuple[bytes, ...] = (b"",), front: Front | None = None) -> Any:
    """Return the status, headers and JSON that come of a request with an application behind."""
    sent: list[Any] = []
    chunks = [{"type": "http.request", "body": each, "more_body": True} for each in body]

    async def receive() -> Any:
        return chunks.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run((front or Front(app, Bounds()))(scope, receive, send))
    start, *rest = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(each.get("body", b"") for each in rest)


def saying(status: int | None, *headers: tuple[bytes, bytes]) -> Any:
    """An application that reads a body to its third part and says something, or nothing."""

    async def app(_: Any, receive: Any, send: Any) -> None:
        for _each in range(3):
            try:
                await receive()
            except (IndexError, Refusal):  # Ray's ends where it can read no more
                break
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": [*headers]})
            await send({"type": "http.response.body", "body": b"theirs"})

    return app


@pytest.mark.parametrize(
    ("status", "sentence"), [(None, LOST), (404, AWAY), (503, BUSY), (408, BUSY), (500, BUSY)]
)
def test_what_ray_says_is_put_into_our_words(status: int | None, sentence: str) -> None:
    found, headers, body = passed(saying(status))
    assert found == 503
    assert json.loads(body) == {"error": sentence}
    assert headers["retry-after"] == "1"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_what_a_replica_says_is_left_as_it_is(status: int) -> None:
    own = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"ours"))
    found, headers, body = passed(saying(status, *own))
    assert (found, body) == (status, b"theirs")
    assert headers["cache-control"] == "ours"


def test_what_waits_in_the_proxy_is_bounded() -> None:
    front = Front(saying(None), Bounds(held_bytes=10))
    for _ in range(3):  # room is given back
        found, _, body = passed(None, body=(b"12345", b"123456"), front=front)
        assert found == 503
        assert json.loads(body) == {"error": BUSY}
    assert passed(None, body=(b"12345", b"12345", b""), front=front)[2].count(b"send it again") == 1
    none = Front(saying(200), Bounds(connections=0))
    assert json.loads(passed(None, front=none)[2]) == {"error": BUSY}
