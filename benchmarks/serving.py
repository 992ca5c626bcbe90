r"""What does HTTP cost, how even are the answers, does memory stay, and how fast are others?

In: an export, photos, and for the peers the run that it was made from. Out: a table on standard
output; its last line is JSON.

    python benchmarks/serving.py run/export/openvino photos --run run

- Throughput: 32 clients, each asking again as soon as it is answered, one photo a request as
  multipart/form-data, against the bare engine: the same photos read on as many threads and put
  through it in batches of 16 in one process, without HTTP. They take turns, and each pair has its
  ratio. The clients run on the same cores, and what they take counts against the server.
- Evenness: requests at random times (exponential gaps) at half the rate found before; from the time
  at which a request was due, p99 against p50.
- Memory: the server's resident memory after 1,000 requests, and after `--requests`, or as many as
  there are in `--longest` seconds.
- Peers, with the same weights and the same load: FastAPI with Keras' `predict` as people write it,
  and LitServe with Keras, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fieldmark.console import size
from fieldmark.predict import Classifier

BATCH = 16
CORES = len(os.sched_getaffinity(0))
OURS = """
import sys
from fieldmark.serve import serve
serve(sys.argv[1], port=int(sys.argv[2]))
"""
# As tutorials have it: the photo by Pillow, resized, and `predict` in the handler.
PLAIN = """
import io, json, sys
import keras, numpy as np, uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image

model = keras.models.load_model(sys.argv[1] + "/best.keras")
side = json.load(open(sys.argv[1] + "/image.json"))["size"]
app = FastAPI()

@app.get("/health/ready")
def ready():
    return {"ready": True}

@app.post("/predict")
async def predict(photo: UploadFile = File(...)):
    image = Image.open(io.BytesIO(await photo.read())).convert("RGB").resize((side, side))
    logits = model.predict(np.array(image)[None] / 127.5 - 1, verbose=0)
    return {"class": int(logits[0].argmax())}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
LIT = """
import io, json, sys
import keras, litserve, numpy as np
from PIL import Image

class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = keras.models.load_model(sys.argv[1] + "/best.keras")
        self.side = json.load(open(sys.argv[1] + "/image.json"))["size"]

    def decode_request(self, request):
        image = Image.open(request["photo"].file).convert("RGB").resize((self.side, self.side))
        return np.array(image) / 127.5 - 1

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, inputs):
        return self.model.predict_on_batch(inputs)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"class": int(np.argmax(output))}

if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=16, batch_timeout=0.005), accelerator="cpu", workers_per_device=1
    )
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""


class Load(NamedTuple):
    """What came of a load."""

    rate: float  # answers a second
    seconds: list[float]  # of each answer
    failed: int  # answers that were no 200
    broken: int  # connections that the server closed with a request on its way; asked again
    cpu: float  # of all cores, what the clients took


class Client:
    """A connection that asks one thing after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.request, self.found, self.due = b"", b"", 0.0
        self.connect()

    def connect(self) -> None:
        """Open the connection."""
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request; the connection blocks for a moment where it is large."""
        self.request, self.found, self.due = request, b"", due
        self.socket.sendall(request)

    def answered(self) -> int:
        """Read on, and return the status once the answer is whole; 0 until then."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server has closed a connection")
        self.found += chunk
        head, between, body = self.found.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not between or length is None or len(body) < int(length[1]):
            return 0
        return int(head.split(b" ", 2)[1])


def load(
    port: int,
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float = 1e9,
    count: int = 10**9,
    rate: float | None = None,
) -> Load:
    """Ask for so long or so often; at a rate, or again as soon as there is an answer."""
    rng = random.Random(0)
    idle = [Client(port) for _ in range(clients)]
    waiting = selectors.DefaultSelector()
    for each in idle:
        waiting.register(each.socket, selectors.EVENT_READ, each)
    taken, failed, broken, sent = list[float](), 0, 0, 0
    spent = time.process_time()
    began = due = time.perf_counter()
    everyone = list(idle)
    while True:
        now = time.perf_counter()
        open_yet = now - began < seconds and sent < count
        while idle and open_yet and sent < count and (rate is None or due <= now):
            idle.pop().ask(requests[sent % len(requests)], now if rate is None else due)
            sent += 1
            due += rng.expovariate(rate) if rate is not None else 0
        if not open_yet and len(idle) == clients:
            break
        pause = None if rate is None or not idle or not open_yet else max(due - now, 0)
        for key, _ in waiting.select(pause):
            client: Client = key.data
            try:
                status = client.answered()
            except ConnectionError:  # the server has closed it
                waiting.unregister(client.socket)
                client.socket.close()
                client.connect()
                waiting.register(client.socket, selectors.EVENT_READ, client)
                if client not in idle:  # with a request on its way
                    broken += 1
                    client.ask(client.request, client.due)
                continue
            if status:
                taken.append(time.perf_counter() - client.due)
                failed += status != 200
                idle.append(client)
    whole = time.perf_counter() - began
    for each in everyone:
        each.socket.close()
    spent = time.process_time() - spent
    return Load(len(taken) / whole, taken, failed, broken, spent / whole / CORES)


@contextmanager
def running(program: str, place: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server until the block ends; gives its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "server.py"  # LitServe's workers import it
        file.write_text(program)
        process = subprocess.Popen(
            [sys.executable, str(file), str(place), str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            for _ in range(1200):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
                if process.poll() is not None:
                    sys.exit(f"The server has ended with {process.returncode}.")
            yield port, process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def request_of(photo: bytes) -> bytes:
    """Return a whole request with one photo in a form."""
    body = (
        b"--edge\r\nContent-Disposition: form-data; name=\"photo\"; filename=\"photo.jpg\"\r\n"
        b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n--edge--\r\n"
    )  # fmt: skip
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
    head += f"boundary=edge\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def bare(classifier: Classifier, photos: Sequence[bytes], seconds: float) -> float:
    """Return how many photos a second are read and computed without a server."""
    done, began = 0, time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        batches = [photos[i : i + BATCH] for i in range(0, len(photos), BATCH)]
        ahead = [pool.submit(classifier.square, each) for each in batches[0]]
        turn = 0
        while time.perf_counter() - began < seconds:
            squares = np.stack([each.result() for each in ahead])
            turn += 1
            ahead = [pool.submit(classifier.square, each) for each in batches[turn % len(batches)]]
            classifier.answers(squares)
            done += len(squares)
        whole = time.perf_counter() - began
    return done / whole


def alone(classifier: Classifier, photos: Sequence[bytes], seconds: float) -> float:
    """Return how many photos a second are computed that have been read before."""
    squares = np.stack([classifier.square(each) for each in photos[:BATCH]])
    classifier.answers(squares)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        classifier.answers(squares)
        done += len(squares)
    return done / (time.perf_counter() - began)


def resident(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process, bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


def processor(process: int) -> float:
    """Return the seconds of processor that a process has taken, and those of its session."""
    taken = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        fields = rest.split()
        if process in (int(fields[3]), int(name.split()[0])):
            taken += int(fields[11]) + int(fields[12])
    return taken / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> str:
    """Write a median with its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def against_the_bare_engine(
    asked: argparse.Namespace, photos: Sequence[bytes], requests: Sequence[bytes]
) -> dict[str, object]:
    """Measure throughput and evenness."""
    classifier = Classifier.load(asked.model)
    ratios, rates, bares, costs = list[float](), list[float](), list[float](), list[float]()
    with running(OURS, asked.model) as (port, process):
        load(port, requests, clients=asked.clients, seconds=2)
        for _ in range(asked.pairs):
            before = processor(os.getpid())
            bares.append(bare(classifier, photos, asked.seconds))
            plain = (processor(os.getpid()) - before) / bares[-1]
            before = processor(process.pid)
            under = load(port, requests, clients=asked.clients, seconds=asked.seconds)
            assert not under.failed + under.broken
            rates.append(under.rate)
            ratios.append(under.rate / bares[-1])
            costs.append(plain / ((processor(process.pid) - before) / under.rate))
        print(
            f"the engine alone           {alone(classifier, photos, asked.seconds):8.0f} photos/s"
        )
        print(f"bare, photos read          {statistics.median(bares):8.0f} photos/s")
        print(f"server, {asked.clients} clients         {statistics.median(rates):8.0f} photos/s")
        print(f"ratio                      {spread(ratios)}, n = {len(ratios)} pairs")
        print(f"ratio of processor time    {spread(costs)}, n = {len(costs)} pairs")
        print(f"of the cores, the clients took {under.cpu:.1%}")
        evenness = []
        for _ in range(asked.pairs):
            half = statistics.median(rates) / 2
            under = load(port, requests, clients=asked.clients, seconds=asked.seconds, rate=half)
            p50, p99 = np.percentile(under.seconds, (50, 99))
            evenness.append((1000 * p50, 1000 * p99, p99 / p50, len(under.seconds)))
    middle = sorted(evenness, key=lambda each: each[2])[len(evenness) // 2]
    print(f"half load                  p50 {middle[0]:.1f} ms, p99 {middle[1]:.1f} ms, "
          f"n = {middle[3]}")  # fmt: skip
    print(f"p99 / p50                  {spread([each[2] for each in evenness])}")
    return {"throughput": rates, "bare": bares, "ratio": ratios, "processor": costs,
            "half_load": evenness}  # fmt: skip


def memory(asked: argparse.Namespace, requests: Sequence[bytes]) -> list[int]:
    """Measure the resident memory after 1,000 requests and after all."""
    with running(OURS, asked.model) as (port, process):
        load(port, requests, clients=asked.clients, count=1000)
        early = resident(process)
        under = load(
            port,
            requests,
            clients=asked.clients,
            count=asked.requests - 1000,
            seconds=asked.longest,
        )
        late = resident(process)
    count = 1000 + len(under.seconds)
    print(f"memory after 1,000 requests {size(early)}, after {count:,} {size(late)}: "
          f"{late / early - 1:+.1%}")  # fmt: skip
    return [early, late, count]


class Turn(NamedTuple):
    """A peer and ours, one after the other."""

    theirs: float  # answers a second
    ours: float
    their_cost: float  # seconds of processor for an answer
    our_cost: float


def against(
    name: str, program: str, asked: argparse.Namespace, requests: Sequence[bytes]
) -> list[Turn]:
    """Measure a peer and ours in turns; meanwhile the other stands still."""
    broken = 0

    def measured(port: int, process: subprocess.Popen[bytes]) -> tuple[float, float]:
        nonlocal broken
        os.killpg(process.pid, signal.SIGCONT)
        load(port, requests, clients=asked.clients, count=64)
        before = processor(process.pid)
        found = load(port, requests, clients=asked.clients, seconds=asked.seconds)
        cost = (processor(process.pid) - before) / len(found.seconds)
        os.killpg(process.pid, signal.SIGSTOP)
        broken += found.failed + found.broken
        return found.rate, cost

    turns = []
    with running(program, asked.run) as theirs, running(OURS, asked.model) as ours:
        for process in (theirs[1], ours[1]):
            os.killpg(process.pid, signal.SIGSTOP)
        for _ in range(3):
            (their_rate, their_cost), before = measured(*theirs), broken
            our_rate, our_cost = measured(*ours)
            assert broken == before, "ours has broken off requests"
            turns.append(Turn(their_rate, our_rate, their_cost, our_cost))
        for process in (theirs[1], ours[1]):
            os.killpg(process.pid, signal.SIGCONT)
    faster = spread([each.ours / each.theirs for each in turns])
    cheaper = spread([each.their_cost / each.our_cost for each in turns])
    print(f"{name}: {statistics.median(each.theirs for each in turns):.0f} photos/s; "
          f"ours is {faster} times as fast, a photo takes it {cheaper} times less of the "
        f"processor, n = 3 turns; "
          f"{broken} of theirs were broken off")  # fmt: skip
    return turns


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What does HTTP cost? See the head of this file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--run", type=Path, help="the run, for the peers")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8, help="each measurement")
    parser.add_argument("--pairs", type=int, default=5, help="0: leave them out")
    parser.add_argument("--requests", type=int, default=20_000, help="for memory; 0: leave it out")
    parser.add_argument("--longest", type=float, default=240, help="seconds, for memory")
    asked = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(asked.photos.rglob("*.jpg"))[:256:4]]
    requests = [request_of(each) for each in photos]
    found: dict[str, object] = {"cores": CORES, "photos": len(photos)}
    kilobytes = statistics.mean(map(len, photos)) / 1000
    print(f"{len(photos)} photos of {kilobytes:.0f} kB on average; {CORES} cores")
    if asked.pairs:
        found |= against_the_bare_engine(asked, photos, requests)
    if asked.requests:
        found["memory"] = memory(asked, requests)
    if asked.run:
        found["FastAPI"] = against("FastAPI, Keras predict", PLAIN, asked, requests)
        if find_spec("litserve"):
            found["LitServe"] = against("LitServe, Keras", LIT, asked, requests)
        else:
            print("LitServe is not installed: pip install litserve")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
