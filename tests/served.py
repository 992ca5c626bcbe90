"""A server in a process of its own, over a model of three colours; and how to ask it."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

COLOURS = ("red", "grün <b>&amp;", "蓝")

# What the process runs. A photo is called by its strongest colour, if that is strong enough. Its
# file `weights` decides what becomes of it when it is loaded anew.
PROGRAM = r"""
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.predict import Classifier
from fieldmark.serve import serve
from fieldmark.service import Bounds

place, options = Path(sys.argv[1]), json.loads(sys.argv[2])
hold = place / "hold"


def engine(squares):
    while hold.exists():
        time.sleep(0.005)
    time.sleep(options.get("delay", 0))
    mean = squares.reshape(len(squares), -1, 3).mean(1).astype(float) / 255
    if (mean.sum(1) == 0).any():
        raise RuntimeError("black is too much for it")
    return mean / mean.sum(1, keepdims=True)


def load():
    if options.pop("hang_up", False):
        os.kill(os.getpid(), signal.SIGHUP)
    text = (place / "weights").read_text()
    if text == "cut off":
        raise FieldmarkError("The model is cut off: export it anew.")
    if text == "crash":
        raise KeyError("weights")
    made = engine if text != "nan" else lambda squares: np.full((len(squares), 3), np.nan)
    return Classifier(
        place=place, backend="fake",
        classes=("rot" if text == "renamed" else "red", "grün <b>&amp;", "蓝"),
        specification=ImageSpec(size=8, mode="squash", interpolation="bilinear", scaling="0..255"),
        decision=Decision(temperature=1.0, threshold=0.6, coverage=0.9, photos=10), engine=made,
    )


def opened(event, facts):
    if event in ("open", "os.open", "tempfile.mkstemp", "os.mkdir", "sqlite3.connect"):
        sys.stderr.write(f"OPENED {facts[0]}\n")


if options.get("watched"):
    import fieldmark.serve as module

    say = module.say

    def watched(text):
        say(text)
        sys.addaudithook(opened)

    module.say = watched
bounds = Bounds(**options.get("bounds", {}))
serve(place, port=options.get("port", 0), batch=4, bounds=bounds, load=load)
"""


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is to be JSON."""
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error."""
        content = self.json
        assert set(content) - {"code"} == {"error"}
        sentence: str = content["error"]
        assert sentence.endswith(".")
        assert "Traceback" not in sentence
        return sentence


class Server:
    """A running server."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        if not (folder / "weights").exists():
            (folder / "weights").write_text("first")
        environment = {**os.environ, **options.pop("environment", {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self.logged = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        line = self.process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:"), (line, self.lines)
        self.port = int(line.split(":")[2].split()[0])
        self.wait_for("started")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.logged:
                self.lines.append(line)
                self.logged.notify_all()

    def log(self) -> list[dict[str, Any]]:
        """The events so far."""
        with self.logged:
            return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until an event is in the log so many times, and return the last one."""
        with self.logged:
            done = self.logged.wait_for(
                lambda: sum(f'"event": "{event}"' in line for line in self.lines) >= count, 60
            )
        assert done, (event, self.lines[-5:])
        return [each for each in self.log() if each["event"] == event][-1]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def predict(self, *photos: bytes, path: str = "/predict", **headers: str) -> Answer:
        """Send one photo as it is, or several in parts."""
        if len(photos) == 1:
            named = {"content-type": "image/jpeg", **headers}
            return self.ask("POST", path, photos[0], headers=named)
        body, kind = form(*photos)
        return self.ask("POST", path, body, headers={"content-type": kind, **headers})

    def raw(self, *sent: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            for each in sent:
                connection.sendall(each)
            return received(connection)

    def figures(self) -> dict[str, float]:
        """What Prometheus reads."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the network compute nothing meanwhile."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def waiting(self, count: int) -> None:
        """Wait until so many photos are in the server."""
        for _ in range(2000):
            if self.figures()["fieldmark_waiting_photos"] >= count:
                return
        raise AssertionError(self.figures())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and return how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the connection is closed."""
    found = b""
    while True:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not chunk:
            return found
        found += chunk


def answer(connection: socket.socket) -> bytes:
    """Return one answer, of a connection that stays open."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    head, _, body = found.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", head)
    while len(body) < int(length):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def together(work: Callable[[], Answer], count: int) -> tuple[list[threading.Thread], list[Answer]]:
    """Ask many times at once, each on a thread; the answers are there when the threads end."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def photo(
    colour: tuple[int, int, int], kind: str = "JPEG", size: tuple[int, int] = (20, 16)
) -> bytes:
    """Return a photo of one colour."""
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, kind)
    return content.getvalue()


def pixels(*colours: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return squares of one colour each, (n, 8, 8, 3)."""
    return np.stack([np.broadcast_to(np.array(each, np.uint8), (8, 8, 3)) for each in colours])


RED, GREEN, GREY, BLACK = (230, 20, 20), (20, 230, 20), (128, 128, 128), (0, 0, 0)


def form(*photos: bytes, names: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """Return a multipart body and its type."""
    parts = b""
    for i, each in enumerate(photos):
        name = names[i] if names else f"{i}.jpg"
        parts += b"--edge\r\n"
        parts += f'Content-Disposition: form-data; name="p"; filename="{name}"\r\n\r\n'.encode()
        parts += each + b"\r\n"
    return parts + b"--edge--\r\n", "multipart/form-data; boundary=edge"
