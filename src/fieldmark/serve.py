"""`fieldmark serve`: a model behind HTTP, in one process, until it is told to stop.

In: a run or an export, where to listen, and bounds for what clients may ask. Out: answers.
`SIGTERM` and Ctrl-C end it once every request that has come is answered; `SIGHUP` lets the model
that lies there by then take over, if it is a whole one. `service` holds the model, `endpoints` says
what is answered at which address, and here is what lies below: connections that are slow, too many,
or no HTTP; signals; and the log, a line of JSON an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import uvicorn
from h11 import IDLE, SEND_BODY
from uvicorn.protocols.http.h11_impl import H11Protocol

from fieldmark.console import say
from fieldmark.endpoints import SAFE, TOO_LONG, Figures, application, long_head
from fieldmark.errors import FieldmarkError
from fieldmark.predict import Classifier
from fieldmark.service import Bounds, Service

KEY = "FIELDMARK_API_KEY"
NAME = "fieldmark"
BACKLOG = 2048  # connections that wait to be taken
GRACE = 0.3  # seconds, at the end, for what is on its way on connections that are open
LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("fieldmark.serve")


def serve(
    place: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = NAME,
    bounds: Bounds | None = None,
    batch: int = 16,
    load: Callable[[], Classifier] | None = None,
) -> None:
    """Serve a model until a signal ends it.

    `load` is what loads it, for tests. Raises a FieldmarkError where the model cannot be loaded,
    the address cannot be had, the name is none, or the key in the environment is empty.
    """
    key = checked(name)
    with listening(host, port) as listener:
        asyncio.run(
            run(
                listener,
                load or (lambda: Classifier.load(place, many=True)),
                name=name,
                key=key,
                bounds=bounds or Bounds(),
                batch=batch,
            )
        )


def checked(name: str) -> str | None:
    """Return the key that the environment has; raises where it or the model's name is none."""
    if not re.fullmatch(r"(?!\.\.?$)[\w.-]+", name, re.ASCII):
        raise FieldmarkError(f"The name {name} is to be part of addresses: take letters and -.")
    key = os.environ.get(KEY)
    if key is None:
        return None
    key = key.strip()  # a file of secrets may end its line
    if not key:
        raise FieldmarkError(f"{KEY} is empty: set it to a key, or unset it.")
    if not key.isprintable():
        raise FieldmarkError(f"{KEY} has what no header can carry: take letters and digits.")
    return key


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that is bound, before a model is loaded in vain."""
    if not 0 <= port < 65_536:
        raise FieldmarkError(f"There is no port {port}: take one from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise FieldmarkError(f"There is no address {host} with port {port}: {error}.") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with bound(host, port):
            listener.bind(address)
        yield listener


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[None]:
    """Turn an error of the operating system at a socket into one sentence."""
    try:
        yield
    except OSError as error:
        raise FieldmarkError(
            f"{host}:{port} cannot be listened at ({error}): choose another with --port."
        ) from error


async def run(
    listener: socket.socket,
    load: Callable[[], Classifier],
    *,
    name: str,
    key: str | None,
    bounds: Bounds,
    batch: int,
) -> None:
    """Serve at a socket until a signal comes."""
    loop = asyncio.get_running_loop()
    swaps: set[asyncio.Task[str]] = set()  # a task that nobody holds may vanish

    def hang_up() -> None:
        task = loop.create_task(swap(service, figures))
        swaps.add(task)
        task.add_done_callback(swaps.discard)

    on_signal("SIGHUP", hang_up)  # also one that comes while it loads
    service = Service(load, bounds=bounds, batch=batch)
    figures = Figures(service, name)
    with logged():
        config = uvicorn.Config(
            application(service, name=name, figures=figures, key=key),
            http=Connection.within(bounds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=bounds.head_bytes,
            backlog=BACKLOG,
            timeout_graceful_shutdown=int(bounds.body_seconds + bounds.seconds) + 1,
        )
        server = Server(config)

        def stop() -> None:
            service.stopping = True
            server.should_exit = True

        on_signal("SIGTERM", stop)
        on_signal("SIGINT", stop)
        host, port = listener.getsockname()[:2]
        with bound(host, port):  # another one may have come first
            listener.listen(BACKLOG)  # who comes from here on is answered
        if key is None and host not in LOOPBACK:
            say(f"Whoever reaches {host} may send photos: set {KEY} to ask for a key.")
        say(f"Serving at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C to stop)")
        log.info("started", extra={"facts": facts(service)})
        try:
            await server.serve(sockets=[listener])
        finally:
            await service.close()
            log.info("stopped")


def on_signal(name: str, action: Callable[[], None]) -> None:
    """Have the running loop do something at a signal; on Windows Ctrl-C ends the server at once."""
    if hasattr(signal, name):  # Windows has no SIGHUP
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), action)


async def swap(service: Service, figures: Figures) -> str:
    """Let the model that lies there now take over, if it is a whole one; else return why not."""
    try:
        figures.model(await service.swap())
    except FieldmarkError as error:
        figures.swaps.labels("refused").inc()
        log.error("swap refused", extra={"facts": {"reason": str(error), **facts(service)}})  # noqa: TRY400 - the reason is all of it
        return str(error)
    figures.swaps.labels("taken").inc()
    log.info("swapped", extra={"facts": facts(service)})
    return ""


def facts(service: Service) -> dict[str, Any]:
    """Return which model answers."""
    model = service.model
    return {"version": model.version, "backend": model.classifier.backend}


class Server(uvicorn.Server):
    """uvicorn's server; signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take the connections that have come, and no others; then see to the end of them."""
        await asyncio.sleep(0)
        await super().shutdown(sockets)


# ---- connections ---------------------------------------------------------------------------------


class Connection(H11Protocol):
    """A connection, which ends where its client sends or reads too slowly, or not HTTP."""

    bounds = Bounds()
    reading: object = None  # what is awaited of the client: IDLE the headers, SEND_BODY the rest
    timer: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None
    leaving = False
    refused = False

    @classmethod
    def within(cls, bounds: Bounds) -> type[Connection]:
        """Return the class of connections within bounds."""
        return type("Connection", (cls,), {"bounds": bounds})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            self.refuse(503, "There are too many connections: try again in a second.")
        else:
            self.watch()

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        if not self.refused:  # else it is read, so that the answer arrives, and forgotten
            super().data_received(data)
            self.watch()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.bounds.head_seconds, self.transport.abort)
        elif self.leaving:
            super().shutdown()
        else:
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self.reading = None
        for timer in (self.timer, self.stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def watch(self) -> None:
        """Give the client its time for the headers, and anew for the body."""
        wanted = self.conn.their_state
        if wanted is self.reading:
            return
        self.reading = wanted
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if wanted is IDLE:
            self.timer = self.loop.call_later(self.bounds.head_seconds, self.too_slow)
        elif wanted is SEND_BODY:  # the application says so before, if it is still reading
            self.timer = self.loop.call_later(
                self.bounds.body_seconds + self.bounds.head_seconds, self.transport.abort
            )

    def too_slow(self) -> None:
        """End a connection whose request does not come."""
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self.refuse(408, "The request's headers took too long: send them at once.")
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """Wait for the client to read, but not for ever."""
        super().pause_writing()
        self.stalled = self.loop.call_later(self.bounds.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self.stalled is not None:
            self.stalled.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """End after the request that is here or on its way."""
        self.leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(GRACE, self.leave)
        else:
            super().shutdown()

    def leave(self) -> None:
        """End, but for a request that has come meanwhile."""
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """Answer what is no HTTP."""
        if len(self.conn.trailing_data[0]) > self.bounds.head_bytes:
            self.refuse(TOO_LONG, long_head(self.bounds))
        else:
            self.refuse(400, "This is no request of HTTP.")

    def refuse(self, status: int, sentence: str) -> None:
        """Answer without the application, unless an answer is on its way, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": sentence}).encode()
            headers = {**SAFE, "content-type": "application/json", "content-length": len(body)}
            headers |= {"connection": "close", **({"retry-after": 1} if status == 503 else {})}
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            phrase = f"HTTP/1.1 {status} \r\n"
            self.transport.write(f"{phrase}{head}\r\n".encode() + body)
        log.info("connection refused", extra={"facts": {"status": status}})
        self.refused = True
        if status == TOO_LONG:  # more is on its way, at which a closed socket would send a reset
            self.transport.write_eof()
        else:
            self.transport.close()
        self.loop.call_later(self.bounds.head_seconds, self.transport.abort)


# ---- the log -------------------------------------------------------------------------------------


class Lines(logging.Formatter):
    """A line of JSON an event: no photo, no name of one, no key, no address that was asked for."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage().strip()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Write what happens to standard error, as long as the block runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    ours = {"fieldmark.serve": logging.INFO, "uvicorn": logging.ERROR, "asyncio": logging.ERROR}
    ours["python_multipart"] = logging.CRITICAL  # its warnings have bytes of the form in them
    for name, level in ours.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for name in ours:
            logging.getLogger(name).removeHandler(handler)
