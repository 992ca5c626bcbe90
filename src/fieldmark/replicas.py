"""A model behind HTTP in several processes, on one machine or many: Ray Serve's replicas of it.

In: a run or an export, and how many replicas, or from how many to how many. Out: the application
that `fieldmark serve` has, with the same addresses, limits, key and errors; Ray Serve starts the
replicas, shares the requests out among them, and replaces one that has died. The figures at
`/metrics` are those of all replicas. SIGHUP lets the model that lies there by then take over, one
replica after the other, and loses no request. Until Ctrl-C or SIGTERM.

    fieldmark serve run/export/openvino --ray --replicas 1-4 --address 10.0.0.1:6379

What is Ray's: its proxy takes the connections, one on each machine that has a replica. What it says
itself, as where a replica has died with a request, is put into our words here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from fieldmark import cluster
from fieldmark.console import say
from fieldmark.endpoints import SAFE, SAFE_BYTES, Figures, application, wrong
from fieldmark.errors import FieldmarkError
from fieldmark.predict import Classifier
from fieldmark.serve import KEY, LOOPBACK, NAME, checked, listening, logged, swap
from fieldmark.service import Bounds, Model, Refusal, Room, Service, loaded, tried

QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # Ray notes addresses
APP = "fieldmark"  # what Ray calls it
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # what Ray's proxy is to put before itself
BOUNDS = "FIELDMARK_BOUNDS"  # tells the proxy
UP_AFTER = 10.0  # seconds of more requests than the replicas are there for, before there are more
DOWN_AFTER = 300.0  # of fewer
HEALTHY = 2.0  # seconds between questions whether a replica is well
PATIENCE = 60.0  # seconds for the replicas to say something of themselves
TRIES = 5
WATCH = 5.0  # seconds between questions whether all replicas have the same model

BUSY = "The server is busy: try again in a second."
LOST = "What had the request has ended: send it again."
MARK = b"x-content-type-options"  # is in each answer of a replica
STRANGE = "A replica has found another model there: send SIGHUP once it lies there for all."
AWAY = "The server is starting or stopping: try again in a second."

log = logging.getLogger("fieldmark.serve")


class Count(NamedTuple):
    """How many replicas: at least, and at most."""

    least: int
    most: int

    @classmethod
    def of(cls, text: str) -> Count:
        """Read `3` or `1-4`; raises a FieldmarkError for anything else."""
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text, re.ASCII)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise FieldmarkError(
                f"--replicas {text} is no number of replicas: give one, such as 2, or the fewest "
                "and the most, such as 1-4."
            )
        return cls(least, most)


class Pace(NamedTuple):
    """How quickly the number of replicas follows the requests, seconds."""

    up: float = UP_AFTER
    down: float = DOWN_AFTER


class Said(NamedTuple):
    """What a replica says of itself."""

    version: str
    backend: str
    refusal: str  # why it has not the version that is wanted


@dataclass(frozen=True)
class Opener:
    """What opens a model in whatever process."""

    place: str

    def __call__(self) -> Classifier:
        """Open it."""
        return Classifier.load(self.place)


@dataclass(frozen=True)
class Wanted:
    """What each replica is to be."""

    load: Callable[[], Classifier]
    name: str
    key: str | None
    bounds: Bounds
    batch: int


def serve(
    place: str | os.PathLike[str],
    *,
    replicas: str = "1",
    address: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = NAME,
    bounds: Bounds | None = None,
    batch: int = 16,
    load: Callable[[], Classifier] | None = None,
    pace: Pace = Pace(),  # noqa: B008 - it is frozen
) -> None:
    """Serve a model by replicas, in the cluster at an address or one of this machine.

    `load` is what loads it, for tests. Raises a FieldmarkError where `fieldmark.serve` would, and
    where there is no such cluster, or it has too few slots, does not see the model, or serves
    something else.
    """
    count = Count.of(replicas)
    key = checked(name)
    folder = Path(place).absolute()
    wanted = Wanted(load or Opener(str(folder)), name, key, bounds or Bounds(), batch)
    port = free(host, port)
    model = tried(wanted.load(), batch)  # a damaged one is refused before a process is started
    with (
        cluster.joined(address, slots=count.most, option="--replicas", paths=[folder]) as ray,
        logged(),
    ):
        refuse_full(ray, count, address)
        with listened(host, port, wanted.bounds, address) as ray_serve:
            Running(ray_serve, wanted, count, pace).run(model, host=host, port=port)


def free(host: str, port: int) -> int:
    """Return a port that can be listened at; raises a FieldmarkError where that one cannot."""
    with listening(host, port) as listener:
        found: int = listener.getsockname()[1]
        return found


def refuse_full(ray: Any, count: Count, address: str) -> None:
    """Raise where other work has the slots, for which the replicas would wait without an end."""
    there = int(ray.available_resources().get("CPU", 0))
    if there < count.least:
        raise FieldmarkError(
            f"The cluster at {address} has {there} slots free and --replicas needs {count.least}: "
            "ask for fewer, or wait until other work there has ended."
        )


@contextlib.contextmanager
def listened(host: str, port: int, bounds: Bounds, address: str) -> Iterator[Any]:
    """Have Ray Serve listen at an address, and end all of it afterwards."""
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray_serve.status().proxies:
        raise FieldmarkError(
            f"The cluster at {address} serves something already: end that first with  "
            "serve shutdown  there, or take another cluster."
        )
    variables = {
        CALLBACK: f"{__name__}.{front.__name__}",
        BOUNDS: json.dumps(asdict(bounds)),
    }
    try:
        ray_serve.start(
            http_options={"host": host, "port": port, "request_timeout_s": patience(bounds)},
            logging_config=QUIET,
            controller_options={"runtime_env": {"env_vars": variables}},
        )
        yield ray_serve
    finally:
        with unhurried():
            if APP in ray_serve.status().applications:
                ray_serve.delete(APP)  # what has come is answered first
            ray_serve.shutdown()


def patience(bounds: Bounds) -> float:
    """Return for how many seconds a request may be on its way, from its headers on."""
    return bounds.body_seconds + bounds.seconds + 1


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Leave a second Ctrl-C alone while things are put away."""
    numbers = [getattr(signal, each) for each in ("SIGTERM", "SIGINT", "SIGHUP")
               if hasattr(signal, each)]  # fmt: skip
    before = {each: signal.signal(each, signal.SIG_IGN) for each in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Running:
    """The replicas, as the process sees them that has started them."""

    def __init__(self, ray_serve: Any, wanted: Wanted, count: Count, pace: Pace) -> None:
        self.ray_serve = ray_serve
        self.wanted = wanted
        self.hung_up: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be filled by a signal
        self.handle: Any = None
        self.version = ""
        self.told: set[str] = set()
        bounds = wanted.bounds
        self.deployment = ray_serve.deployment(
            name="model",
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=bounds.connections,  # a replica refuses what it has no room for
            max_queued_requests=bounds.connections,  # Ray counts those that it is about to hand on
            backpressure_config={"retry_after_s": 1},
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=patience(bounds),
            health_check_period_s=HEALTHY,
            max_constructor_retry_count=3,
            logging_config=QUIET,
            **scale(count, pace, wanted.batch),
        )(ray_serve.ingress()(Replica))

    def run(self, model: Model, *, host: str, port: int) -> None:
        """Serve until a signal ends it."""
        for word in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, word), signal.default_int_handler)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: self.hung_up.put(None))
        self.version = model.version
        self.deploy()
        if self.wanted.key is None and host not in LOOPBACK:
            say(f"Whoever reaches {host} may send photos: set {KEY} to ask for a key.")
        say(f"Serving at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C to stop)")
        log.info("started", extra={"facts": facts(self.everyone())})
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                try:
                    self.hung_up.get(timeout=WATCH)
                except queue.Empty:
                    self.watch()
                else:
                    self.roll()
        log.info("stopping")

    def deploy(self) -> None:
        """Have Ray Serve start the replicas, and wait for them."""
        try:
            self.handle = self.ray_serve.run(self.deployment.bind(self.wanted), name=APP)
        except RuntimeError as error:
            raise FieldmarkError(f"The replicas cannot be started: {reason(str(error))}") from error

    def roll(self) -> None:
        """Let the model that lies there now take over, if it is a whole one."""
        refusal = ""
        try:
            self.version = loaded(self.wanted.load, self.wanted.batch).version
        except FieldmarkError as error:
            refusal = str(error)
        found = self.everyone(again=True)
        if not refusal and {each.version for each in found} != {self.version}:
            refusal = next(
                (each.refusal for each in found if each.refusal), "No replica answers: try again."
            )
        if refusal:
            log.error("swap refused", extra={"facts": {"reason": refusal, **facts(found)}})
        else:
            log.info("swapped", extra={"facts": facts(found)})

    def watch(self) -> None:
        """Tell replicas that have come meanwhile which version is wanted."""
        found = self.everyone()
        told = {each.refusal for each in found if each.refusal}
        if told - self.told:
            log.error("replicas differ", extra={"facts": {"reason": max(told), **facts(found)}})
        self.told = told

    def everyone(self, *, again: bool = False) -> list[Said]:
        """Ask all replicas for the version that is wanted, and return what each says."""
        from ray.exceptions import RayError

        for _ in range(TRIES):
            with contextlib.suppress(RayError, TimeoutError):  # one has just died
                asked = self.handle.broadcast("take", self.version, again)
                return [Said(*each) for each in asked.results(timeout_s=PATIENCE)]
        return []


def facts(found: Sequence[Said]) -> dict[str, Any]:
    """Return which model answers, in how many replicas."""
    return {
        "version": ", ".join(sorted({each.version for each in found})),
        "backend": found[0].backend if found else "",
        "replicas": len(found),
    }


def scale(count: Count, pace: Pace, batch: int) -> dict[str, Any]:
    """Say to Ray how many replicas there are to be; more, where a second batch waits in each."""
    if count.least == count.most:
        return {"num_replicas": count.least}
    return {
        "autoscaling_config": {
            "min_replicas": count.least,
            "max_replicas": count.most,
            "target_ongoing_requests": batch,
            "upscale_delay_s": pace.up,
            "downscale_delay_s": pace.down,
        }
    }


def reason(text: str) -> str:
    """Return the last line of a traceback, which says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else "no reason is given"
    return f"{last.rstrip('.')}."


# ---- in a process of its own ---------------------------------------------------------------------


class Replica:
    """One of the processes that answer."""

    async def __init__(self, wanted: Wanted) -> None:  # type: ignore[misc]
        self.ending = contextlib.ExitStack()
        self.ending.enter_context(logged())
        self.service = Service(wanted.load, bounds=wanted.bounds, batch=wanted.batch)
        self.figures = Together(self.service, wanted.name)
        self.answering = application(
            self.service, name=wanted.name, figures=self.figures, key=wanted.key
        )
        self.asked = ""  # the version that was wanted last,
        self.refusal = ""  # and why it has not taken over
        log.info("replica started")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Ray Serve hands the requests to."""
        return Alive(self.answering, self.close)

    async def close(self) -> None:
        """End, with nothing to answer any more."""
        await self.service.close()
        log.info("replica stopped")
        self.ending.close()

    async def take(self, version: str, again: bool) -> tuple[str, str, str]:
        """Let a version take over, and say which one answers then, and why it is not that one.

        It is loaded beside the old one, which answers meanwhile, and goes on where the new one is
        damaged. What was in vain is not tried again unless that is asked.
        """
        if version != self.service.model.version and (again or version != self.asked):
            self.asked = version
            self.refusal = await swap(self.service, self.figures)
        model = self.service.model
        refusal = "" if model.version == version else self.refusal or STRANGE
        return model.version, model.classifier.backend, refusal

    async def check_health(self) -> None:
        """Raise where it takes no photos any more, so that Ray replaces it."""
        if not self.service.ready:
            raise RuntimeError("The replica takes no photos any more.")

    async def counted(self) -> tuple[str, str]:
        """Return who this is, and its own figures."""
        from ray import serve as ray_serve

        context = ray_serve.get_replica_context()
        return context.replica_id.unique_id, generate_latest(self.figures.registry).decode()


class Together(Figures):
    """The figures of all replicas, whichever is asked."""

    async def text(self) -> bytes:
        """Return them, each with its replica."""
        from ray import serve as ray_serve

        handle = ray_serve.get_deployment_handle(ray_serve.get_replica_context().deployment)
        found = await handle.broadcast("counted").results_async(timeout_s=PATIENCE)
        return merged(found)


def merged(texts: Iterable[tuple[str, str]]) -> bytes:
    """Return Prometheus' texts of several replicas as one, each sample with its replica's label."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts):
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica}
                whole.add_sample(sample.name, labels, sample.value)

    class Found(CollectorRegistry):
        def collect(self) -> Iterator[Metric]:
            yield from families.values()

    return generate_latest(Found(auto_describe=False))


class Alive:
    """An application that is told when its process ends."""

    def __init__(self, app: ASGIApp, close: Callable[[], Awaitable[None]]) -> None:
        self.app = app
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or see the process begin and end."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


# ---- in Ray's proxy ------------------------------------------------------------------------------


def front() -> list[Middleware]:
    """Return what Ray's proxy puts before itself."""
    return [Middleware(Front, bounds=Bounds(**json.loads(os.environ[BOUNDS])))]


class Front:
    """Before Ray's proxy: bounds on what waits in it, and our words for what it says itself."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self.app = app
        self.requests = Room(bounds.connections)
        self.held = Room(bounds.held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and what comes back."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            with self.requests.share(1), self.held.share() as take:
                refusal = await self.passed_on(scope, receive, send, take)
        except Refusal as error:
            refusal = error
        if refusal is not None:
            await wrong(refusal.status, str(refusal), SAFE)(scope, receive, send)

    async def passed_on(
        self, scope: Scope, receive: Receive, send: Send, take: Callable[[int], None]
    ) -> Refusal | None:
        """Pass a request on; what comes back may be none of ours, and is left to be said."""
        refusal: Refusal | None = Refusal(503, LOST)  # where nothing comes back
        full: Refusal | None = None

        async def bounded() -> Message:
            nonlocal full
            message = await receive()
            try:
                take(len(message.get("body", b"")))
            except Refusal as error:
                full = error
                raise  # Ray takes it for a client that has left
            return message

        async def ours(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                if MARK in own or message["status"] < 400:
                    refusal = None
                    message["headers"] += [each for each in SAFE_BYTES if each[0] not in own]
                else:
                    refusal = Refusal(503, AWAY if message["status"] == 404 else BUSY)
            if refusal is None:
                await send(message)

        await self.app(scope, bounded, ours)
        return refusal and (full or refusal)
