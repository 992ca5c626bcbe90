"""How much the clients of a server may ask for: `Bounds`, all of them, and what is wrong with one.

In: the flags of `fieldmark serve`. Out: frozen values, checked. What is beyond a bound is answered
with a status of HTTP and one sentence; `docs/serve.md` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fieldmark.errors import FieldmarkError

if TYPE_CHECKING:
    from fieldmark.formats import Limits

LARGEST = 1 << 50
HEAD = 1024  # bytes: what a browser sends of headers
# What has no room within the other could never be answered.
WITHIN = (
    ("photo_bytes", "body_bytes"),
    ("body_bytes", "held_bytes"),
    ("json_bytes", "held_bytes"),
    ("photos", "waiting"),
)


@dataclass(frozen=True)
class Bounds:
    """What clients may ask for at most, one at a time and all together."""

    photo_bytes: int = 20_000_000
    pixels: int = 50_000_000  # a photo: 150 MB decoded, on each thread that reads
    photos: int = 32  # a request
    body_bytes: int = 100_000_000  # a request
    json_bytes: int = 16_000_000  # a request in JSON, whose numbers take eight times that in memory
    waiting: int = 128  # photos of all requests
    held_bytes: int = 256_000_000  # of all requests
    connections: int = 800
    head_bytes: int = 16_384  # a request's line and headers
    head_seconds: float = 10  # to send them
    body_seconds: float = 30  # to send the rest
    seconds: float = 30  # from there to the answer

    @property
    def limits(self) -> Limits:
        """What one photo may ask for."""
        from fieldmark.formats import Limits  # which opens Pillow, for `--help` in vain

        return Limits(bytes=self.photo_bytes, pixels=self.pixels)

    def check(self) -> None:
        """Raise a FieldmarkError, in the words of the flags, for what cannot be meant."""
        for each in fields(self):
            value, least = getattr(self, each.name), HEAD if each.name == "head_bytes" else 1
            if not (math.isfinite(value) and least <= value <= LARGEST):
                raise FieldmarkError(
                    f"{flag(each.name)} {value:g} is no bound: give {least} or more."
                )
        for part, whole in WITHIN:
            if getattr(self, part) > getattr(self, whole):
                raise FieldmarkError(
                    f"{flag(part)} {getattr(self, part)} has no room in {flag(whole)} "
                    f"{getattr(self, whole)}: give the one less, or the other more."
                )


def flag(name: str) -> str:
    """Return a bound's name on the command line."""
    return "--" + name.replace("_", "-")
