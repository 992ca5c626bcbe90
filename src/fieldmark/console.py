"""What the user sees while work goes on: messages, and progress with the time left.

Messages go to standard output; progress goes to standard error, so that the output can be piped.
On a terminal progress is a bar; elsewhere (a log file, CI) it is a line every `LINE_EVERY` seconds.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

T = TypeVar("T")

NOTE = Column(ratio=1, no_wrap=True, overflow="ellipsis")
JOINERS = "\u200c\u200d"  # in Persian words and in emoji; they turn nothing around
LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal

progress = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


# What hears all that would be shown, in place of the terminal: ("say", text),
# ("begin", description, total) and ("advance", steps, note).
Listener = Callable[[tuple[Any, ...]], None]
_heard_by: list[Listener] = []


def let_hear(listener: Listener) -> None:
    """Hand all messages and progress from here on to somebody else, who shows them."""
    _heard_by[:] = [listener]


def _told(*message: Any) -> bool:
    """Tell the listener, and say whether there is one."""
    for listener in _heard_by:
        listener(message)
    return bool(_heard_by)


def be_quiet(quiet: bool = True) -> None:
    """Print no messages and show no progress from here on; errors are still printed."""
    progress.quiet = quiet


def say(message: str) -> None:
    """Print one message for the user; while a bar is shown, it goes above the bar."""
    if not progress.quiet and not _told("say", message):
        with suppress(BrokenPipeError):  # whoever read along has left; the work goes on
            print("\n".join(map(printable, message.split("\n"))), flush=True)


def printable(text: str) -> str:
    """Return a text with the signs escaped that would do something to a terminal, or turn it."""
    return "".join(
        sign if sign.isprintable() or sign in JOINERS else escaped(sign) for sign in text
    )


def escaped(sign: str) -> str:
    """Return a sign as Python writes it in a string."""
    return sign.encode("unicode_escape").decode()


def printed(
    parts: Iterable[RenderableType], *, width: int | None = None, colour: bool | None = None
) -> str:
    """Return what rich prints of the parts, for a terminal; without one in 100 columns, no colour.

    Their text is printed as it is: nothing in it is markup.
    """
    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        width=width or (shutil.get_terminal_size((100, 24)).columns if terminal else 100),
        force_terminal=terminal if colour is None else colour,
        no_color=None if colour is None else not colour,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


class Meter:
    """A count on its way to a total, with the time left; obtained from `meter`."""

    def __init__(self, description: str, total: int) -> None:
        self.description = description
        self.total = total
        self.done = 0
        # The pace is taken from the second unit on: the first one often compiles a network.
        self._first: tuple[float, int] | None = None
        self._said = 0.0
        heard = _told("begin", description, total)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("left"),
            # On a narrow terminal it is the note that is cut.
            TextColumn("{task.fields[note]}", markup=False, table_column=NOTE),
            console=progress,
            transient=True,
            expand=True,
            disable=not progress.is_terminal or progress.quiet or heard,
            # A bar prints other output above itself, unless that output goes elsewhere.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self.bar.add_task(description, total=total, note="")

    def advance(self, steps: int = 1, *, note: str = "") -> None:
        """Count `steps` more; `note` is a short text behind the bar, such as the running loss."""
        self.done += steps
        if _told("advance", steps, note):
            return
        self.bar.update(self._task, advance=steps, note=note)
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.done
            self._said = now
        elif not progress.is_terminal and now - self._said > LINE_EVERY and self.done < self.total:
            self._said = now
            began, before = self._first
            left = duration((now - began) / (self.done - before) * (self.total - self.done))
            line = f"{self.description} {self.done}/{self.total}, {left} left  {note}"
            progress.print(line.rstrip(), markup=False)


@contextmanager
def meter(description: str, total: int) -> Iterator[Meter]:
    """Show progress towards `total` for as long as the block runs."""
    shown = Meter(description, total)
    with shown.bar:
        yield shown


def shortened(text: str, most: int) -> str:
    """Cut a text in its middle, so that those which begin alike can still be told apart."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def size(count: int) -> str:
    """Write a number of bytes for people: `147 MB`, `1.2 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 10 * unit or count % unit == 0 else 1}f} {name}"
    return f"{count} bytes"


def many(count: int, one: str, more: str = "") -> str:
    """Write a number of things: `1 photo`, `2 classes`."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def duration(seconds: float) -> str:
    """Write a time for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
