"""The body of a request -> the photos in it, within bounds, in memory only.

In: a request whose body is the bytes of one photo, or multipart/form-data in which each part is
one. Out: the photos' bytes, in order. Nothing is written to a disk, and no name of a file is looked
at. A body that is too long, too slow or no such thing raises a `Refusal` as soon as that is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fieldmark.service import Bounds, Refusal, Room

RAW = "application/octet-stream"


class Gone(Exception):  # noqa: N818 - it is what the client is
    """The client has left before it sent all."""


@asynccontextmanager
async def photos_of(request: Request, bounds: Bounds, held: Room) -> AsyncIterator[list[bytes]]:
    """Give the photos of a request as long as they are used.

    `held` is the room for the bytes of all requests.
    """
    kind, options = parse_options_header(request.headers.get("content-type", RAW))
    with held.share() as take:
        if kind == b"multipart/form-data":
            parts = Parts(options.get(b"boundary", b""), bounds)
            await receive(request, parts.write, take, most=bounds.body_bytes, bounds=bounds)
            yield parts.photos()
        elif kind.startswith(b"image/") or kind == RAW.encode():
            photo = bytearray()
            await receive(request, photo.extend, take, most=bounds.photo_bytes, bounds=bounds)
            yield [bytes(photo)]
        else:
            raise Refusal(
                415,
                "Send one photo as it is (application/octet-stream or image/jpeg), or several as "
                "the parts of multipart/form-data.",
            )


async def receive(
    request: Request,
    write: Callable[[bytes], object],
    take: Callable[[int], None],
    *,
    most: int,
    bounds: Bounds,
) -> None:
    """Hand a body on as it comes, after its room is taken.

    Raises a Refusal where it has more than `most` bytes or takes too long.
    """
    if int(request.headers.get("content-length", 0)) > most:  # h11 has seen that it is a number
        raise too_long(most)
    count = 0
    try:
        async with asyncio.timeout(bounds.body_seconds):
            async for chunk in request.stream():
                count += len(chunk)
                if count > most:
                    raise too_long(most)
                take(len(chunk))
                write(chunk)
    except TimeoutError:
        raise Refusal(
            408, f"The request did not come within {bounds.body_seconds:g} seconds: send less."
        ) from None
    except ClientDisconnect:
        raise Gone from None


def too_long(most: int) -> Refusal:
    """Return what is said of a body, or a part of one, of more than `most` bytes."""
    sentence = f"A request of this kind may have {most / 1e6:g} MB at most."
    return Refusal(413, sentence, "request_too_large")


def broken() -> Refusal:
    """Return what is said of a form that is none, anew: raised again, one keeps what it saw."""
    return Refusal(400, "The multipart/form-data is cut off or damaged: send it anew.")


class Parts:
    """The parts of a multipart body as far as they have come: each is a photo."""

    def __init__(self, boundary: bytes, bounds: Bounds) -> None:
        self.bounds = bounds
        self.found: list[bytearray] = []
        self.ended = False
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_part_data": self._add,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except (FormParserError, ValueError) as error:
            raise broken() from error

    def write(self, chunk: bytes) -> None:
        """Read on; raises a Refusal."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise broken() from error

    def photos(self) -> list[bytes]:
        """Return the content of each part, once all has come."""
        if not self.ended:
            raise broken()
        if not self.found:
            raise Refusal(422, "There is no photo in the request.", "empty")
        return [bytes(photo) for photo in self.found]

    def _begin(self) -> None:
        if len(self.found) == self.bounds.photos:
            raise Refusal(
                413, f"A request may have {self.bounds.photos} photos at most.", "too_many_photos"
            )
        self.found.append(bytearray())

    def _add(self, data: bytes, start: int, end: int) -> None:
        if len(self.found[-1]) + end - start > self.bounds.photo_bytes:
            raise Refusal(
                413, f"A photo may have {self.bounds.photo_bytes / 1e6:g} MB at most.", "too_large"
            )
        self.found[-1] += data[start:end]

    def _end(self) -> None:
        self.ended = True
