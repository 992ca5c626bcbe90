"""The open inference protocol's bodies: whatever comes, it is read or refused with a sentence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import tensors
from fieldmark.service import Bounds, Refusal

BOUNDS = Bounds(photos=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=20,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["photos", "pixels"]) | st.text(max_size=3),
        "shape": st.lists(st.integers(-2, 4), max_size=4) | st.just([1, 2, 2, 3]) | JSON,
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | JSON,
        "data": st.lists(st.integers(-1, 256), min_size=11, max_size=13)
        | st.lists(st.sampled_from(["", "AAAA", "%"]), max_size=4)
        | JSON,
    },
    optional={
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 20)}) | JSON
    },
)


def read(body: bytes, length: int | None = None) -> tensors.Asked | None:
    try:
        return tensors.asked(body, length, bounds=BOUNDS, side=2)
    except Refusal as refusal:
        assert refusal.status in (400, 413)
        assert str(refusal).endswith(".")
        return None


@given(tensor=TENSORS, rest=JSON)
def test_any_json_is_read_or_refused(tensor: dict[str, Any], rest: Any) -> None:
    for content in ({"inputs": [tensor]}, {"inputs": [tensor], "outputs": rest}, rest):
        found = read(json.dumps(content).encode())
        if found is not None and isinstance(found.photos, np.ndarray):
            assert found.photos.shape[1:] == (2, 2, 3)
            assert found.photos.dtype == np.uint8


@given(body=st.binary(max_size=100), length=st.none() | st.integers(0, 100))
def test_any_bytes_are_refused(body: bytes, length: int | None) -> None:
    assert read(body, length) is None


@given(photos=st.lists(st.binary(max_size=9), min_size=1, max_size=3), cut=st.integers(0, 3))
def test_binary_photos_come_back_or_are_cut_off(photos: list[bytes], cut: int) -> None:
    tail = b"".join(len(each).to_bytes(4, "little") + each for each in photos)
    tail = tail[: len(tail) - cut]
    tensor = {"name": "photos", "shape": [len(photos)], "datatype": "BYTES",
              "parameters": {"binary_data_size": len(tail)}}  # fmt: skip
    text = json.dumps({"inputs": [tensor]}).encode()
    found = read(text + tail, len(text))
    if cut == 0:
        assert found is not None
        assert found.photos == photos
    else:
        assert found is None


@pytest.mark.parametrize(
    ("kind", "value", "becomes"),
    [("u1", 7, 7), ("<f4", 6.6, 7), ("<f4", 254.4, 254), ("<f4", 255, 255)],
)
def test_pixels_are_whole_numbers_in_the_end(kind: str, value: float, becomes: int) -> None:
    tail = np.full(12, value, kind).tobytes()
    datatype = "UINT8" if kind == "u1" else "FP32"
    tensor = {"name": "pixels", "shape": [1, 2, 2, 3], "datatype": datatype,
              "parameters": {"binary_data_size": len(tail)}}  # fmt: skip
    text = json.dumps({"inputs": [tensor]}).encode()
    found = read(text + tail, len(text))
    assert found is not None
    assert isinstance(found.photos, np.ndarray)
    assert (found.photos == becomes).all()


@pytest.mark.parametrize(("shape", "nest"), [([2], False), ([2, 1], False), ([2, 1], True)])
def test_photos_in_json_may_be_nested_as_their_shape(shape: list[int], nest: bool) -> None:
    data = [[each] if nest else each for each in ("AAAA", "BBBB")]
    tensor = {"name": "photos", "shape": shape, "datatype": "BYTES", "data": data}
    found = tensors.asked(json.dumps({"inputs": [tensor]}).encode(), None, bounds=Bounds(), side=8)
    assert found.photos == [bytes(3), b"\x04\x10A"]


def test_the_schema_stands_alone() -> None:
    assert "$ref" not in json.dumps(tensors.schema())
    assert "$defs" not in tensors.schema()
