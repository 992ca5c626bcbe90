"""Work on many threads: in order, a bounded way ahead, and ended at once where it has to end."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from fieldmark import threads
from fieldmark.threads import spread


@pytest.mark.parametrize("handful", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_the_results_are_in_the_order_of_the_items(count: int, handful: int) -> None:
    def work(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    found = list(spread(work, range(count), "Squaring", handful=handful))
    assert found == [i * i for i in range(count)]


def test_any_collection_will_do() -> None:
    assert list(spread(str.upper, {"a": 1, "b": 2}, "Shouting")) == ["A", "B"]


def test_several_threads_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "processors", lambda: 3)
    together = threading.Barrier(3, timeout=20)
    assert len(list(spread(lambda _: together.wait(), range(9), "Meeting"))) == 9


def test_it_keeps_a_little_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "processors", lambda: 2)
    begun: list[int] = []
    ahead = threads.LOOK_AHEAD * 2 * 5
    with closing(spread(begun.append, range(1000), "Counting", handful=5)) as results:
        for taken, _ in enumerate(results, start=1):
            time.sleep(0.001)
            assert len(begun) <= taken + ahead
            if taken == 200:
                break
    assert len(begun) <= 200 + ahead


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_in_its_turn_and_ends_the_work(error: type[BaseException]) -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise error
        return i

    found: list[int] = []
    with pytest.raises(error):
        for result in spread(work, range(10_000), "Failing"):
            found.append(result)
    assert found == [0, 1, 2]
    assert len(begun) < 5000
    rested = len(begun)
    time.sleep(0.05)
    assert len(begun) == rested


def test_whoever_leaves_early_waits_for_what_was_begun_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "processors", lambda: 2)
    before = set(threading.enumerate())
    begun: list[int] = []
    both, go_on = threading.Barrier(3, timeout=20), threading.Event()

    def work(i: int) -> None:
        if i:
            begun.append(i)
            both.wait()
            go_on.wait(20)

    # As Ctrl-C does it, which is raised where the results are taken.
    with pytest.raises(KeyboardInterrupt), closing(spread(work, range(1000), "Waiting")) as results:
        next(results)
        both.wait()
        threading.Timer(0.5, go_on.set).start()
        raise KeyboardInterrupt
    assert go_on.is_set()
    assert sorted(begun) == [1, 2]
    assert {each for each in threading.enumerate() if "ThreadPool" in each.name} <= before
