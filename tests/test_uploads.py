"""A form's parts, however it is cut into chunks; what is wrong with it is said each time anew."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.service import Bounds, Refusal
from fieldmark.uploads import Parts
from served import form

BOUNDS = Bounds(photos=3, photo_bytes=40)


@given(
    photos=st.lists(st.binary(max_size=50) | st.just(b"\r\n--edge"), max_size=4),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_parts_come_whole_however_they_are_cut(photos: list[bytes], cuts: list[int]) -> None:
    body, _ = form(*photos)
    places = [0, *sorted(cuts), len(body)]
    parts = Parts(b"edge", BOUNDS)
    try:
        for start, end in pairwise(places):
            parts.write(body[start:end])
        found = parts.photos()
    except Refusal as refusal:
        if refusal.status == 413:
            more = any(len(each) > 40 or b"--edge" in each for each in photos)  # or another part
            assert len(photos) > 3 or more
        elif refusal.status == 422:
            assert photos == []
        else:
            assert any(b"--edge" in each for each in photos)
    else:
        assert found == photos


def test_a_refusal_is_a_new_one_each_time() -> None:
    """One that is raised again and again keeps the frames of all requests before, and grows."""
    refusals = []
    for _ in range(2):
        with pytest.raises(Refusal) as found:
            Parts(b"edge", BOUNDS).photos()
        refusals.append(found.value)
    assert refusals[0] is not refusals[1]
