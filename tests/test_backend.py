"""What is said of memory that does not suffice, in the words of each library."""

from __future__ import annotations

import pytest

from fieldmark import backend
from fieldmark.errors import FieldmarkError


class ResourceExhaustedError(Exception):
    """TensorFlow's has this name."""


class OutOfMemoryError(RuntimeError):
    """PyTorch's has this name."""


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhaustedError("OOM when allocating tensor with shape[64,224,224,64]"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 822083584 bytes."),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_says_which_batch_size_to_try(error: Exception) -> None:
    with (
        pytest.raises(FieldmarkError, match=r"batch of 64 photos: try --batch-size 32 \(with"),
        backend.enough_memory(64),
    ):
        raise error
    with (
        pytest.raises(FieldmarkError, match="batch of 1 photos: take a smaller --image-size"),
        backend.enough_memory(1),
    ):
        raise error


def test_tensorflow_s_own_error_is_known() -> None:
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(FieldmarkError, match="does not suffice"), backend.enough_memory(8):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), backend.enough_memory(8):
        _ = 1 / 0
