"""How Keras is imported, and what is said of memory that does not suffice."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

import keras
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
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
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


def test_keras_is_kept_from_loading_what_no_command_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setenv(backend.OWN, "1")
    with pytest.raises(ImportError, match="pandas"), backend._without_unused():
        import_module("pandas")
    assert "pandas" not in sys.modules
    monkeypatch.delenv(backend.OWN)
    with backend._without_unused():  # somebody else's process may want it of Keras
        assert "pandas" not in sys.modules


def test_the_command_s_keras_loads_none_of_it() -> None:
    code = (
        "import sys, fieldmark.backend as b; print(*{*b.UNUSED} & {*sys.modules});"
        "import sklearn, pandas; print(b.keras.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, backend.OWN: "1", "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["", keras.__version__]
