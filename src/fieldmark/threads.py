"""Work that many threads share: a function and its items -> the results, in the items' order.

The threads keep a little ahead of whoever takes the results, and no more: however many items there
are, few results wait in memory. What takes its time outside of Python gains by this: reading files,
decoding photos, hashes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fieldmark.console import meter

In = TypeVar("In")
Out = TypeVar("Out")

LOOK_AHEAD = 4  # handfuls a thread: one that takes long does not hold the others up


def spread(
    work: Callable[[In], Out], items: Collection[In], description: str, *, handful: int = 1
) -> Generator[Out, None, None]:
    """Yield `work(item)` for each item, and show how many are done and the time left.

    `handful` items go to a thread at a time: to hand over a single one costs more than to read the
    beginning of a file. An error in `work` is raised in its turn. Then, at Ctrl-C, and when the
    generator is closed, what was not begun is not done, and what was is waited for: take all
    results with `list`, or close it (`contextlib.closing`) where the loop may end early.
    """
    threads = processors()
    left = iter(items)
    waiting: deque[Future[list[Out]]] = deque()
    pool = ThreadPoolExecutor(threads)
    with meter(description, len(items)) as shown:
        try:
            while True:
                while len(waiting) < LOOK_AHEAD * threads and (some := list(islice(left, handful))):
                    waiting.append(pool.submit(_all, work, some))
                if not waiting:
                    return
                results = waiting.popleft().result()
                yield from results
                shown.advance(len(results))
        finally:
            pool.shutdown(cancel_futures=True)


def _all(work: Callable[[In], Out], items: list[In]) -> list[Out]:
    return [work(item) for item in items]


def processors() -> int:
    """Count the processors that this process may use; a container may have fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
