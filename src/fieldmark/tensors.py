"""The open inference protocol, version 2, as far as a server of photos has it: JSON and bytes.

In: the body of an `infer` request. Out: `Asked`, the photos or pixels in it and what is wanted of
them; `answered`, the body of the answer; `metadata`, what the protocol asks of a model. After "Open
Inference Protocol" (KServe, 2022), with its extension for binary tensors. A photo is an element of
a BYTES tensor: base64 in JSON, as it is in binary.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldmark.predict import Answer
from fieldmark.service import Bounds, Model, Refusal

PHOTOS, PIXELS = "photos", "pixels"
LENGTH = np.dtype("<u4")  # before each element of a binary BYTES tensor

Parameters = dict[str, Any]


class Tensor(BaseModel):
    """An input: photos, or pixels of the size that the network reads."""

    name: Literal["photos", "pixels"]
    shape: list[int] = Field(max_length=4)
    datatype: Literal["BYTES", "UINT8", "FP32"]
    parameters: Parameters = {}
    data: list[Any] | None = None  # none: it is behind the JSON


class Wanted(BaseModel):
    """An output that is asked for."""

    name: Literal["label", "answered", "probabilities"]
    parameters: Parameters = {}


class Infer(BaseModel):
    """A request of the open inference protocol."""

    model_config = ConfigDict(strict=True)

    id: str | None = Field(default=None, max_length=256)
    parameters: Parameters = {}
    inputs: list[Tensor] = Field(min_length=1, max_length=1)
    outputs: list[Wanted] = Field(default=[], max_length=3)  # all that there are


def schema() -> dict[str, Any]:
    """Return the JSON schema of a request, without references: it goes into another document."""
    whole = Infer.model_json_schema()
    text = json.dumps({name: each for name, each in whole.items() if name != "$defs"})
    for name, each in whole["$defs"].items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(each))
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True)
class Asked:
    """What a request asks."""

    request: Infer
    photos: list[bytes] | NDArray[np.uint8]  # or squares, (n, size, size, 3)


def asked(body: bytes, json_length: int | None, *, bounds: Bounds, side: int) -> Asked:
    """Read a request; the JSON is its first `json_length` bytes, or all of it.

    Raises a Refusal that says what is wrong.
    """
    text = body if json_length is None else body[:json_length]
    try:
        request = Infer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(
            400, f"The request is not as the open inference protocol has it ({place}: "
            f"{first['msg']})."
        ) from error  # fmt: skip
    tensor = request.inputs[0]
    rest = body[len(text) :]
    if (tensor.data is None) != (tensor.parameters.get("binary_data_size") == len(rest) > 0):
        raise Refusal(400, "An input has either data or a binary_data_size, which is all the rest.")
    if (tensor.name == PHOTOS) != (tensor.datatype == "BYTES"):
        raise Refusal(400, "The input photos is BYTES, and pixels is UINT8 or FP32.")
    if tensor.name == PHOTOS:
        return Asked(request, photos(tensor, rest, bounds))
    return Asked(request, pixels(tensor, rest, bounds, side))


def photos(tensor: Tensor, rest: bytes, bounds: Bounds) -> list[bytes]:
    """Return the elements of a BYTES tensor."""
    # Data may be nested as the shape is, or flat, as the protocol has it.
    found = elements(rest) if tensor.data is None else [*map(decoded, flat(tensor.data))]
    if tensor.shape not in ([len(found)], [len(found), 1]):
        raise Refusal(400, f"The shape of photos is [{len(found)}] here, a number for each.")
    if not 1 <= len(found) <= bounds.photos:
        raise Refusal(413 if found else 400, f"A request may have 1 to {bounds.photos} photos.")
    return found


def elements(rest: bytes) -> list[bytes]:
    """Return the elements of a binary BYTES tensor, each behind its length."""
    found, at = [], 0
    while at < len(rest):
        start = at + LENGTH.itemsize
        end = start + int.from_bytes(rest[at:start], "little")
        if start > len(rest) or end > len(rest):
            raise Refusal(400, "The binary photos are cut off.")
        found.append(rest[start:end])
        at = end
    return found


def flat(data: list[Any]) -> list[Any]:
    """Return the elements of lists of one element each."""
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]


def decoded(element: object) -> bytes:
    """Return the bytes of one element in JSON."""
    try:
        if isinstance(element, str):
            return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise Refusal(400, "In JSON each of photos is a string of base64.")


def pixels(tensor: Tensor, rest: bytes, bounds: Bounds, side: int) -> NDArray[np.uint8]:
    """Return squares (n, side, side, 3); FP32 is rounded, for a photo has whole numbers."""
    shape = tensor.shape
    if len(shape) != 4 or shape[1:] != [side, side, 3] or shape[0] < 1:
        raise Refusal(400, f"The shape of pixels is [n, {side}, {side}, 3].")
    if shape[0] > bounds.photos:
        raise Refusal(413, f"A request may have 1 to {bounds.photos} photos.")
    kind = np.dtype("u1" if tensor.datatype == "UINT8" else "<f4")
    wrong = Refusal(400, f"The data of pixels are {math.prod(shape)} numbers from 0 to 255.")
    try:
        values = np.frombuffer(rest, kind) if tensor.data is None else np.asarray(tensor.data)
    except ValueError as error:  # rows of unlike lengths, or half a number
        raise wrong from error
    allowed = "iu" if tensor.datatype == "UINT8" else "iuf"
    if values.size != math.prod(shape) or values.dtype.kind not in allowed:
        raise wrong
    if not (values.min() >= 0 and values.max() <= 255):  # so that no number is none as well
        raise wrong
    squares: NDArray[np.uint8] = np.rint(values).astype(np.uint8).reshape(shape)
    return squares


def answered(
    request: Infer, *, name: str, model: Model, answers: Sequence[Answer]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how much of it is JSON where tensors follow."""
    every: dict[str, tuple[str, NDArray[Any]]] = {
        "label": ("BYTES", np.array([each.label or "" for each in answers], object)),
        "answered": ("BOOL", np.array([each.label is not None for each in answers])),
        "probabilities": ("FP32", np.stack([each.probabilities for each in answers])),
    }
    wanted = request.outputs or [Wanted(name=each) for each in every]  # type: ignore[arg-type]
    outputs, tail = [], b""
    for each in wanted:
        datatype, values = every[each.name]
        output: dict[str, Any] = {
            "name": each.name,
            "shape": [*values.shape],
            "datatype": datatype,
        }
        default = request.parameters.get("binary_data_output", False)
        if each.parameters.get("binary_data", default) is True:
            content = binary(datatype, values)
            output["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    text = json.dumps({**answer, "outputs": outputs}, allow_nan=False).encode()
    return text + tail, len(text) if tail else None


def binary(datatype: str, values: NDArray[Any]) -> bytes:
    """Return a tensor's elements in the protocol's binary form."""
    if datatype == "BYTES":
        texts = [str(each).encode() for each in values]
        return b"".join(len(each).to_bytes(4, "little") + each for each in texts)
    return values.astype("<f4" if datatype == "FP32" else "?").tobytes()


def metadata(model: Model, *, name: str) -> dict[str, Any]:
    """Return what the protocol asks of a model; one of the two inputs is given."""
    classifier = model.classifier
    side, count = classifier.specification.size, len(classifier.classes)
    return {
        "name": name,
        "versions": [model.version],
        "platform": f"fieldmark_{classifier.backend}",
        "inputs": [
            {"name": PHOTOS, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, side, side, 3]},
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "answered", "datatype": "BOOL", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, count]},
        ],
        "parameters": {"classes": [*classifier.classes], "explains": model.explains},
    }
