"""What a server answers at which address: a `Service` -> an ASGI application.

In: a `Service`, the name that its model goes by, and a key where one is asked for. Out: the
application, and around it what all answers have in common: the key, headers for safety, a line of
log, and the figures that Prometheus reads. Every error is JSON with one sentence. `fieldmark serve`
runs it; `docs/serve.md` lists the addresses.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldmark import tensors
from fieldmark.formats import UnreadableImage, sniff
from fieldmark.predict import Answer
from fieldmark.service import Bounds, Heat, Model, Refusal, Service
from fieldmark.sheet import templates
from fieldmark.uploads import RAW, Gone, photos_of, receive, too_long

log = logging.getLogger("fieldmark.serve")

OPEN = ("/", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")  # to all
SAFE = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
SAFE_BYTES = [(name.encode(), value.encode()) for name, value in SAFE.items()]
JSON_LENGTH = "inference-header-content-length"  # of a body with tensors behind its JSON
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


# ---- what is said in OpenAPI ---------------------------------------------------------------------


class Shown(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class PhotoAnswer(BaseModel):
    """What is said of one photo: its classes, or why it cannot be read."""

    photo: int  # its place in the request, from 0
    label: str | None = None  # null: it is none of these
    none_of_these: bool = False
    top: list[Shown] = []
    error: str | None = None
    code: str | None = None  # of the error, for programs


class ModelName(BaseModel):
    """Which model has answered."""

    name: str
    version: str


class Predicted(BaseModel):
    """What is said of the photos of a request."""

    model: ModelName
    photos: list[PhotoAnswer]


class Peak(BaseModel):
    """Where a map is strongest."""

    down: int  # 0, 1 or 2: which third of the photo
    across: int
    share: float  # of the photo, that is at least half as strong


class Explained(BaseModel):
    """Where in a photo something speaks for a class."""

    model: ModelName
    label: str | None
    none_of_these: bool
    shown: str  # the class whose map it is
    words: str  # the map in a sentence
    peak: Peak | None  # none: nothing speaks for it
    layer: str
    map: list[list[float]]  # a cell of the feature map each, 0 to 1
    png: str  # base64: the photo in grey, the map over it


class Wrong(BaseModel):
    """What is wrong, in one sentence."""

    error: str
    code: str | None = None  # for programs, where the status means several things


class Live(BaseModel):
    """Whether the server is running."""

    live: bool


class Ready(BaseModel):
    """Whether it takes photos."""

    ready: bool


class About(BaseModel):
    """What the protocol asks of a server."""

    name: str
    version: str
    extensions: list[str]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for OpenAPI."""
    return {
        each: {"model": Wrong, "description": HTTPStatus(each).phrase}
        for each in (400, 401, 403, *statuses, 500)
    }


def takes(content: dict[str, Any]) -> dict[str, Any]:
    """Describe the body of a request for OpenAPI, by its types."""
    return {"requestBody": {"required": True, "content": content}}


BYTES = {"schema": {"type": "string", "format": "binary"}}
PHOTOS: dict[str, Any] = {
    RAW: BYTES,
    "image/*": BYTES,
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"photos": {"type": "array", "minItems": 1, "items": BYTES["schema"]}},
            "required": ["photos"],
        }
    },
}
INFER = {
    "application/json": {"schema": tensors.schema()},
    RAW: BYTES,  # JSON, and tensors behind it
}
TOO_LONG = 431  # "Request Header Fields Too Large", RFC 6585
LIMITED = errors(408, 413, 415, 422, 503, 504)


# ---- figures -------------------------------------------------------------------------------------


class Figures:
    """What Prometheus reads; each server has its own."""

    def __init__(self, service: Service, name: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        to: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "fieldmark_requests", "Requests answered.", ["route", "status"], **to
        )
        self.seconds = Histogram(
            "fieldmark_request_seconds",
            "From a request's headers to its answer.",
            ["route"],
            buckets=SECONDS,
            **to,
        )
        self.photos = Counter(
            "fieldmark_photos",
            "Photos answered: a class, none_of_these, error.",
            ["answer"],
            **to,
        )
        batches = Histogram(
            "fieldmark_batch_photos",
            "Photos that went through the network together.",
            buckets=(1, 2, 4, 8, 16, 32),
            **to,
        )
        service.looked_at = batches.observe
        self.swaps = Counter("fieldmark_swaps", "New models: taken, or refused.", ["outcome"], **to)
        self._model = Gauge(
            "fieldmark_model", "The model that answers.", ["name", "version", "backend"], **to
        )
        waiting = Gauge("fieldmark_waiting_photos", "Photos that are not answered yet.", **to)
        waiting.set_function(lambda: service.room.taken)
        held = Gauge("fieldmark_held_bytes", "Bytes of requests in memory.", **to)
        held.set_function(lambda: service.held.taken)
        self.name = name
        self.model(service.model)

    def model(self, model: Model) -> None:
        """Say which model answers from here on."""
        self._model.clear()
        self._model.labels(self.name, model.version, model.classifier.backend).set(1)

    async def text(self) -> bytes:
        """Return them as Prometheus reads them."""
        return generate_latest(self.registry)


# ---- the application -----------------------------------------------------------------------------


@dataclass
class Note:
    """What the line of log says of a request besides."""

    photos: int = 0


@dataclass(frozen=True)
class Desk:
    """What the answers to all addresses need."""

    service: Service
    name: str
    figures: Figures

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Bound the time from the whole request to its answer."""
        seconds = self.service.bounds.seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Refusal(
                504, f"There was no answer within {seconds:g} seconds: try again later."
            ) from None

    def count(self, request: Request, answers: Sequence[Answer | UnreadableImage]) -> None:
        """Note what has become of the photos."""
        request.scope["fieldmark"].photos = len(answers)
        for each in answers:
            if isinstance(each, UnreadableImage):
                kind = "error"
            else:
                kind = "none_of_these" if each.label is None else "class"
            self.figures.photos.labels(kind).inc()


def application(service: Service, *, name: str, figures: Figures, key: str | None) -> ASGIApp:
    """Return what answers every request."""
    app = FastAPI(
        title="fieldmark",
        summary="Photos in, classes out.",
        version=version("fieldmark"),
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    desk = Desk(service, name, figures)
    for router in (plain(desk), watched(desk), protocol(desk)):
        app.include_router(router)
    app.exception_handler(Refusal)(refused)
    app.exception_handler(HTTPException)(no_such)
    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(Gone)(gone)
    app.exception_handler(Exception)(mistake)
    return Guard(app, service, figures, key)


def plain(desk: Desk) -> APIRouter:
    """Return the page, and what it asks."""
    router = APIRouter()
    service, bounds = desk.service, desk.service.bounds
    page, policy = page_of(desk.name, bounds.photos, bounds.photo_bytes)

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, headers={"content-security-policy": policy}, media_type="text/html")

    @router.post(
        "/predict", responses=LIMITED, response_model=Predicted, openapi_extra=takes(PHOTOS)
    )
    async def predict(
        request: Request, top: Annotated[int, Query(ge=1, le=10_000)] = 5
    ) -> Response:
        """Name the class of a photo, or of several; one that cannot be read has an error."""
        async with photos_of(request, bounds, service.held) as photos:
            async with desk.answering():
                model, answers = await service.predict(photos)
            desk.count(request, answers)
            if len(answers) == 1 and isinstance(answers[0], UnreadableImage):
                raise unreadable(photos[0], answers[0])
        classes = model.classifier.classes
        rows = [{"photo": i, **said(each, classes, top)} for i, each in enumerate(answers)]
        return told({"model": {"name": desk.name, "version": model.version}, "photos": rows})

    @router.post(
        "/explain",
        responses={
            **LIMITED,
            **errors(501),
            200: {"content": {"image/png": BYTES}, "description": "As the header accept asks."},
        },
        response_model=Explained,
        openapi_extra=takes(PHOTOS),
    )
    async def explain(
        request: Request,
        shown: Annotated[str | None, Query(alias="class", max_length=1000)] = None,
    ) -> Response:
        """Show where in a photo something speaks for a class; by default the most probable one."""
        async with photos_of(request, bounds, service.held) as photos:
            if len(photos) != 1:
                raise Refusal(422, "One photo at a time is explained: send one.", "too_many_photos")
            try:
                async with desk.answering():
                    model, answer, heat = await service.explain(photos[0], shown)
            except UnreadableImage as error:
                desk.count(request, [error])
                raise unreadable(photos[0], error) from error
        desk.count(request, [answer])
        if "image/png" in request.headers.get("accept", ""):
            return Response(heat.png, media_type="image/png")
        return told(explained(desk.name, model, answer, heat))

    return router


def watched(desk: Desk) -> APIRouter:
    """Return what watches over a server asks of it."""
    router = APIRouter()
    service = desk.service

    @router.get("/health/live", response_model=Live)
    @router.get("/v2/health/live", response_model=Live)
    async def live() -> Response:
        """Tell that the server is running."""
        return told({"live": True})

    @router.get("/health/ready", response_model=Ready, responses={503: {"model": Ready}})
    @router.get("/v2/health/ready", response_model=Ready, responses={503: {"model": Ready}})
    async def ready() -> Response:
        """Tell whether it takes photos."""
        return told({"ready": service.ready}, 200 if service.ready else 503)

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **errors()})
    async def metrics() -> Response:
        """Give the figures that Prometheus reads."""
        return Response(await desk.figures.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router


def protocol(desk: Desk) -> APIRouter:
    """Return the addresses of the open inference protocol."""
    router = APIRouter(prefix="/v2")
    service, bounds = desk.service, desk.service.bounds
    here = f"/models/{desk.name}"

    @router.get("", responses=errors(), response_model=About)
    async def about() -> Response:
        """Say what server this is."""
        facts = {"name": "fieldmark", "version": version("fieldmark")}
        return told({**facts, "extensions": ["binary_tensor_data"]})

    @router.get(here, responses=errors(), response_model=dict[str, Any])
    async def model() -> Response:
        """Say what goes in and what comes out, and which classes there are."""
        now = service.model
        return told(tensors.metadata(now, name=desk.name))

    @router.get(
        f"{here}/ready", responses={**errors(), 503: {"model": Ready}}, response_model=Ready
    )
    async def ready() -> Response:
        """Tell whether the model takes photos."""
        return told({"name": desk.name, "ready": service.ready}, 200 if service.ready else 503)

    @router.post(
        f"{here}/infer",
        responses=LIMITED,
        response_model=dict[str, Any],
        openapi_extra=takes(INFER),
    )
    async def infer(request: Request) -> Response:
        """Answer photos, or pixels of the size that the network reads."""
        given = request.headers.get(JSON_LENGTH)
        if given is not None and not (given.isdecimal() and len(given) < 12):
            raise Refusal(400, f"The header {JSON_LENGTH} is the number of bytes of JSON.")
        length = None if given is None else int(given)
        if length is not None and length > bounds.json_bytes:
            raise too_long(bounds.json_bytes)
        body = bytearray()
        with service.held.share() as take:
            most = bounds.json_bytes if length is None else bounds.body_bytes
            await receive(request, body.extend, take, most=most, bounds=bounds)
            async with desk.answering():
                now = service.model
                side = now.classifier.specification.size
                read = partial(tensors.asked, bytes(body), length, bounds=bounds, side=side)
                asked = await service.aside(read)
                answers: Sequence[Answer | UnreadableImage]
                if isinstance(asked.photos, list):
                    now, answers = await service.predict(asked.photos)
                else:
                    answers = await service.predict_squares(now, asked.photos)
            desk.count(request, answers)
        readable = []
        for i, each in enumerate(answers):
            if isinstance(each, UnreadableImage):  # a tensor has no place for it
                raise Refusal(422, f"Photo {i} {each}.", each.code)
            readable.append(each)
        content, before = tensors.answered(
            asked.request, name=desk.name, model=now, answers=readable
        )
        if before is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={JSON_LENGTH: str(before)}, media_type=RAW)

    return router


# ---- errors --------------------------------------------------------------------------------------


async def refused(_: Request, refusal: Exception) -> Response:
    """Answer what was refused."""
    status, code = getattr(refusal, "status", 500), getattr(refusal, "code", "")
    return wrong(status, str(refusal), code=code)


async def no_such(_: Request, error: Exception) -> Response:
    """Answer where there is no such address, or not for this method."""
    status = getattr(error, "status_code", 500)
    sentence = {
        404: "There is nothing at this address: GET /openapi.json lists what there is.",
        405: "This address takes another method: the header allow names it.",
    }.get(status, f"{HTTPStatus(status).phrase}.")
    return wrong(status, sentence, dict(getattr(error, "headers", None) or {}))


async def invalid(_: Request, error: Exception) -> Response:
    """Answer where a parameter is none."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    return wrong(422, f"{first['loc'][-1]}: {first['msg']}.")


async def gone(_: Request, __: Exception) -> Response:
    """Answer where nobody is there to read it."""
    return wrong(400, "The request was not sent to its end.")


async def mistake(_: Request, __: Exception) -> Response:
    """Answer where the mistake is ours; the server raises it on, so that the log has it."""
    return wrong(500, "The server made a mistake, which its log describes: try another photo.")


class Guard:
    """What all answers have in common: the key, headers for safety, a line of log, figures."""

    def __init__(self, app: ASGIApp, service: Service, figures: Figures, key: str | None) -> None:
        self.app = app
        self.service = service
        self.figures = figures
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()
        status = 500

        async def safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                own = {name for name, _ in headers}
                headers += [(name, value) for name, value in SAFE_BYTES if name not in own]
                if self.service.stopping:  # the client is to ask somebody else
                    headers.append((b"connection", b"close"))
            await send(message)

        note = Note()
        # The server leaves the body of an answer to HEAD out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, "method": method, "fieldmark": note}
        try:
            refusal = self.refusal(scope)
            if refusal is None:
                await self.app(inner, receive, safely)
            else:
                await refusal(inner, receive, safely)
        finally:
            taken = time.perf_counter() - began
            # Never the address itself, which may be anything.
            route = getattr(inner.get("route"), "path", "other")
            self.figures.requests.labels(route, status).inc()
            self.figures.seconds.labels(route).observe(taken)
            facts = {"method": method if method in ("GET", "POST") else "other", "route": route}
            facts |= {"status": status, "milliseconds": round(1000 * taken, 1)}
            log.info("request", extra={"facts": {**facts, "photos": note.photos}})

    def refusal(self, scope: Scope) -> Response | None:
        """Return what is said to whoever may not ask."""
        # The server itself sees to what comes in parts; this is of what one packet has brought.
        head = [scope.get("raw_path") or b"", scope["query_string"], *chain(*scope["headers"])]
        if sum(map(len, head)) > self.service.bounds.head_bytes:
            return wrong(TOO_LONG, long_head(self.service.bounds))
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "") == "cross-site":
            return wrong(403, "Another site's page may not send photos here.")
        if self.key is None or scope["path"] in OPEN:
            return None
        bearer = headers.get("authorization", "")
        given = headers.get("x-api-key") or re.sub(r"^bearer +", "", bearer, flags=re.IGNORECASE)
        if hmac.compare_digest(given.encode("latin-1"), self.key):  # as starlette decodes them
            return None
        say = {"www-authenticate": "Bearer"}
        return wrong(401, "The key is missing or wrong: send it as authorization: Bearer KEY.", say)


# ---- parts ---------------------------------------------------------------------------------------


def long_head(bounds: Bounds) -> str:
    """Say that headers are too long."""
    return f"A request's headers may have {bounds.head_bytes} bytes at most."


def told(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="replace")
    return Response(text, status, headers, "application/json")


def wrong(
    status: int, sentence: str, headers: dict[str, str] | None = None, *, code: str = ""
) -> Response:
    """Return an error in JSON; of one that passes, when to try again."""
    later = {"retry-after": "1"} if status == 503 else {}
    content = {"error": sentence, **({"code": code} if code else {})}
    return told(content, status, {**later, **(headers or {})})


def unreadable(photo: bytes, error: UnreadableImage) -> Refusal:
    """Return what is said of a single photo that cannot be read."""
    try:
        sniff(photo)
        status = 422
    except UnreadableImage:
        status = 415 if photo else 422
    return Refusal(status, f"The photo {error}.", error.code)


def said(answer: Answer | UnreadableImage, classes: tuple[str, ...], top: int) -> dict[str, Any]:
    """Return what is said of one photo."""
    if isinstance(answer, UnreadableImage):
        return {"error": f"The photo {answer}.", "code": answer.code}
    order = answer.probabilities.argsort()[::-1][:top]
    return {
        "label": answer.label,
        "none_of_these": answer.label is None,
        "top": [{"name": classes[i], "probability": float(answer.probabilities[i])} for i in order],
    }


def explained(name: str, model: Model, answer: Answer, heat: Heat) -> dict[str, Any]:
    """Return what is said of a map."""
    return {
        "model": {"name": name, "version": model.version},
        "label": answer.label,
        "none_of_these": answer.label is None,
        "shown": heat.name,
        "words": heat.words,
        "peak": heat.peak._asdict() if heat.peak else None,
        "layer": heat.layer,
        "map": [[round(float(each), 4) for each in row] for row in heat.values],
        "png": base64.b64encode(heat.png).decode(),
    }


def page_of(name: str, photos: int, photo_bytes: int) -> tuple[str, str]:
    """Return the page, and the policy by which a browser runs its script and no other."""
    page = templates().get_template("page.html").render(
        model=name, photos=photos, photo_bytes=photo_bytes
    )  # fmt: skip

    def hashes(tag: Literal["script", "style"]) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in found)
        return " ".join(f"'sha256-{each.decode()}'" for each in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy
