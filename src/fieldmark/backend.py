"""Keras, imported after making sure that the library it computes with is installed.

Keras computes with TensorFlow, JAX or PyTorch. It takes the one named in the environment
variable `KERAS_BACKEND`, else the one in `~/.keras/keras.json`, else TensorFlow. Modules here say
`from fieldmark.backend import keras`; where the backend is missing they get one sentence with the
command that installs it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fieldmark import packages
from fieldmark.errors import FieldmarkError

BACKENDS = ("tensorflow", "jax", "torch")
OWN = "FIELDMARK_OWN"  # set in the environment of the command's processes
# What Keras and TensorFlow load at their import, where it is installed, for helpers of theirs that
# no command calls: a third of the time until one begins.
UNUSED = ("jax", "matplotlib.pyplot", "pandas", "sklearn")


def chosen() -> str:
    """Name the backend that Keras will take: the environment, its own settings, TensorFlow."""
    named = os.environ.get("KERAS_BACKEND")
    if named:
        return named
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        settings = json.loads((home / "keras.json").read_text(encoding="utf-8"))
        return str(settings.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


@contextmanager
def _without_notices() -> Iterator[None]:
    """Keep off the terminal what TensorFlow 2.21 writes at its import, whatever its log level.

    It writes past Python, so the process' error output is turned away meanwhile; `-v` shows it.
    What goes wrong is raised all the same.
    """
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Keep `UNUSED` from being imported in a process of the command; else they may be wanted."""
    kept_off = []
    if OWN in os.environ:
        kept_off = [each for each in UNUSED if each != name and each not in sys.modules]
    sys.modules.update(dict.fromkeys(kept_off))  # type: ignore[arg-type]  # as if not installed
    try:
        yield
    finally:
        for each in kept_off:
            del sys.modules[each]


name = chosen()
if name not in BACKENDS:
    raise FieldmarkError(
        f"The Keras backend {name!r} is not one that fieldmark knows: "
        f"set KERAS_BACKEND to one of {', '.join(BACKENDS)}."
    )
if find_spec(name) is None and (others := [each for each in BACKENDS if find_spec(each)]):
    raise FieldmarkError(
        f"Keras is to compute with {name}, which is not installed, and {others[0]} is: set "
        f"KERAS_BACKEND={others[0]}, or run  pip install 'fieldmark[{name}]'"
    )
packages.require(name, extra=name, why=f"Keras is to compute with {name}")
# TensorFlow writes its start-up notices below this level to the terminal on every import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# JAX would else take three quarters of a GPU's memory at once; the article lets it grow.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# PyTorch's threads wait for each other in a busy loop of milliseconds, which on shared cores takes
# the time away from those who are waited for. A shorter one costs nothing where nobody shares.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["KERAS_BACKEND"] = name

with _without_notices(), _without_unused():
    import keras  # only now is it known that this import can work

if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0":
    # Each forward pass is a function of its own, which TensorFlow takes for one traced anew.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
name = keras.config.backend()  # where Keras was imported before, its choice stands
for setting, found, wanted in (
    ("image_data_format", keras.config.image_data_format(), "channels_last"),
    ("floatx", keras.config.floatx(), "float32"),
):
    if found != wanted:
        raise FieldmarkError(
            f"Keras is set to {setting} {found}, and fieldmark needs {wanted}: "
            "change it in ~/.keras/keras.json."
        )

__all__ = [
    "BACKENDS",
    "devices",
    "enough_memory",
    "keras",
    "name",
    "seed",
    "without_gradients",
]


def seed(number: int) -> None:
    """Seed all that is random in Keras, numpy and Python.

    Keras imports TensorFlow for it on every backend, where that is installed.
    """
    with _without_notices():
        keras.utils.set_random_seed(number)


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Turn each library's word for memory that does not suffice into one sentence.

    They share no class: TensorFlow raises ResourceExhaustedError, JAX a JaxRuntimeError that
    begins with RESOURCE_EXHAUSTED, PyTorch OutOfMemoryError, and for a CPU's memory a RuntimeError.
    """
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__} {error}"
        signs = ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "MemoryError")
        # PyTorch's words for a CPU's, on Windows and on Linux, and for a GPU's.
        words = ("not enough memory", "can't allocate memory", "out of memory")
        if not any(sign in said for sign in (*signs, *words)):
            raise
        advice = "take a smaller --image-size"
        if batch_size > 1:
            half = batch_size // 2
            advice = f"try --batch-size {half} (with --accumulate 2 an update stays as it is)"
        raise FieldmarkError(
            f"The memory does not suffice for a batch of {batch_size} photos: {advice}."
        ) from error


def without_gradients() -> Any:
    """Return a context in which PyTorch keeps nothing for gradients; the others do so anyway."""
    if name != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def devices() -> list[str]:
    """Name the GPUs that the backend sees, all of them; none on a machine without."""
    if name == "tensorflow":
        import tensorflow as tf

        return [gpu.name for gpu in tf.config.list_physical_devices("GPU")]
    if name == "jax":
        import jax

        return [str(device) for device in jax.devices() if device.platform != "cpu"]
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
