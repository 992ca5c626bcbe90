"""An exported network, opened in the library that runs it: squares in, probabilities out.

In: an export's folder and its `Manifest`, verified. Out: an `Engine`. OpenVINO, ONNX Runtime and
LiteRT are opened without Keras and TensorFlow; the two formats of Keras and TensorFlow need them.

An engine may be called from several threads at once. It computes in float32 where the processor
would be faster, and further from the run, in bfloat16.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark import packages
from fieldmark.decision import SMALLEST
from fieldmark.errors import FieldmarkError
from fieldmark.manifest import Format, Manifest
from fieldmark.threads import processors

# Squares (n, size, size, 3), 0 to 255 -> the network's own probabilities (n, c).
Engine = Callable[[NDArray[np.uint8]], NDArray[np.float64]]

Shape = tuple[int | None, ...]
Opened = tuple[Callable[[NDArray[np.uint8]], Any], Shape, Shape]  # and the input's, the output's

MOST_STREAMS = 4
SLOW = 0.004  # seconds for a photo on one thread
TRIES = 5
MODEL = "model"
ENTRY: dict[Format, str] = {  # what of the model's files is opened
    "openvino": f"{MODEL}.xml",
    "onnx": f"{MODEL}.onnx",
    "litert": f"{MODEL}.tflite",
    "saved_model": MODEL,
    "keras": f"{MODEL}.keras",
}
PACKAGE: dict[Format, tuple[str, str]] = {  # what opens it, and the extra that has it
    "openvino": ("openvino", "openvino"),
    "onnx": ("onnxruntime", "onnx"),
    "litert": ("ai_edge_litert", "litert"),
    "saved_model": ("tensorflow", "tensorflow"),
    "keras": ("keras", "tensorflow"),
}


def open_engine(
    folder: Path, manifest: Manifest, *, threads: int | None = None, streams: int = 1
) -> Engine:
    """Open an export's model, to compute on so many threads, or on as many as the library takes.

    OpenVINO computes so many batches at once as there are `streams`, each on its share of them.
    Raises a FieldmarkError where the library is missing, cannot read the file, or the file is of
    another size of photos or count of classes than the manifest.
    """
    if threads is not None and threads < 1:
        raise FieldmarkError(f"{threads} threads: name at least one.")
    require(manifest.format)
    path = folder / ENTRY[manifest.format]
    try:
        run, inputs, outputs = OPEN[manifest.format](path, threads, streams)
    except FieldmarkError:
        raise
    except Exception as error:  # each library has classes of its own
        reason = " ".join(str(error).split())[:200]
        raise FieldmarkError(
            f"{path} cannot be opened by {PACKAGE[manifest.format][0]} ({reason}): install the "
            "version that the manifest names, or export the run anew."
        ) from error
    side, classes = manifest.specification.size, len(manifest.classes)
    if inputs[1:] != (side, side, 3) or outputs[1:] != (classes,):
        raise FieldmarkError(
            f"{path} reads {_by(inputs)} and answers {_by(outputs)}, and the manifest says "
            f"{side} x {side} x 3 and {classes}: export the run anew."
        )
    return finished(run, classes)


def open_for_many(folder: Path, manifest: Manifest) -> tuple[Engine, int]:
    """Open an export's model for many who ask at once; also return how many batches at a time.

    In int8 threads that share a photo wait for each other, which is better done by none: where a
    photo takes its time, each thread has a batch of its own, and where it does not, one does it
    all. In float32 all are worth it. docs/serve.md has the figures.
    """
    if (manifest.format, manifest.precision) != ("openvino", "int8"):
        return open_engine(folder, manifest), 1
    alone = open_engine(folder, manifest, threads=1)
    if seconds_of(alone, manifest.specification.size) < SLOW:
        return alone, 1
    streams = min(processors(), MOST_STREAMS)
    return open_engine(folder, manifest, streams=streams), streams


def seconds_of(engine: Engine, side: int) -> float:
    """Return how long a grey square takes, at best."""
    grey = np.full((1, side, side, 3), 128, np.uint8)
    times = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        engine(grey)
        times.append(time.perf_counter() - begun)
    return min(times)


def finished(run: Callable[[NDArray[np.uint8]], Any], classes: int) -> Engine:
    """Return an engine over what a library computes."""

    def engine(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        if not len(squares):
            return np.zeros((0, classes))
        found = np.array(run(np.ascontiguousarray(squares)), np.float64)  # a copy
        return np.maximum(found, SMALLEST)

    return engine


def require(form: Format) -> None:
    """Raise where the library of a format is not installed."""
    package, extra = PACKAGE[form]
    packages.require(package, extra=extra, why=f"The export is for {package}")


def _by(shape: Shape) -> str:
    return " x ".join("any" if side is None else str(side) for side in shape[1:])


# ---- the libraries ------------------------------------------------------------------------------


def openvino() -> Any:
    """Return OpenVINO, which is not let to report each import and each conversion to its makers.

    It and NNCF go without the package that does so where that is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as library

    return library


@cache
def core() -> Any:
    """Return OpenVINO's core, the one of this process; a model's file may change once it is read.

    Each core with a network gives the thread that made it a stack for signals and, when it goes,
    the one from before; cores that go in the order in which they came leave one that is freed, and
    the next signal ends the process. (OpenVINO 2026.4, `SigAltStackSetup` in its CPU plugin.)
    """
    found = openvino().Core()
    # Else the weights stay in the file: who writes there changes the answers, or ends the process.
    found.set_property({"ENABLE_MMAP": False})
    return found


def compiled(
    model: Any, threads: int | None = None, streams: int = 1
) -> Callable[[NDArray[np.uint8]], Any]:
    """Compile an OpenVINO model for so many batches at once, each as soon as may be."""
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Else bfloat16 where the processor has it: probabilities were off by 0.002.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if streams > 1:
        settings["NUM_STREAMS"] = streams
    network = core().compile_model(model, "CPU", settings)
    own = threading.local()  # a request computes one batch at a time

    def run(squares: NDArray[np.uint8]) -> Any:
        if not hasattr(own, "request"):
            own.request = network.create_infer_request()
        return own.request.infer([squares], share_inputs=True)[0]

    return run


def _openvino(path: Path, threads: int | None, streams: int) -> Opened:
    model = core().read_model(path)
    inputs, outputs = (
        tuple(None if side.is_dynamic else side.get_length() for side in port.partial_shape)
        for port in (model.input(0), model.output(0))
    )
    return compiled(model, threads, streams), inputs, outputs


def _onnx(path: Path, threads: int | None, _: int) -> Opened:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its makers
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source, target = session.get_inputs()[0], session.get_outputs()[0]
    inputs, outputs = (
        tuple(side if isinstance(side, int) else None for side in port.shape)
        for port in (source, target)
    )
    return lambda squares: session.run([target.name], {source.name: squares})[0], inputs, outputs


def _litert(path: Path, threads: int | None, _: int) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    # By its path the weights would stay in the file, as with OpenVINO.
    interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    inputs, outputs = (_open_sides(port["shape_signature"]) for port in (source, target))
    alone = threading.Lock()  # an interpreter has one set of arrays

    def run(squares: NDArray[np.uint8]) -> Any:
        with alone:
            if tuple(interpreter.get_input_details()[0]["shape"]) != squares.shape:
                interpreter.resize_tensor_input(source["index"], squares.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(source["index"], squares)
            interpreter.invoke()
            return interpreter.get_tensor(target["index"])

    return run, inputs, outputs


def _saved_model(path: Path, threads: int | None, _: int) -> Opened:
    _refuse_threads(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    graph = tf.saved_model.load(str(path)).signatures["serving_default"]
    (name, source), *_ = graph.structured_input_signature[1].items()
    ((answer, target),) = graph.structured_outputs.items()
    return (
        lambda squares: graph(**{name: tf.constant(squares)})[answer].numpy(),
        _open_sides(source.shape),
        _open_sides(target.shape),
    )


def _keras(path: Path, threads: int | None, _: int) -> Opened:
    _refuse_threads(threads)
    from fieldmark.backend import keras

    network = keras.saving.load_model(path, compile=False, safe_mode=True)
    return (
        network.predict_on_batch,
        _open_sides(network.input.shape),
        _open_sides(network.output.shape),
    )


def _open_sides(shape: Sequence[int | None]) -> Shape:
    """Return a shape in which a length that is open is none."""
    return tuple(None if side is None or side < 0 else int(side) for side in shape)


def _refuse_threads(threads: int | None) -> None:
    if threads is not None:
        raise FieldmarkError(
            "The threads of Keras and TensorFlow are those of the whole process: leave the number "
            "out, or export for openvino, onnx or litert."
        )


OPEN: dict[Format, Callable[[Path, int | None, int], Opened]] = {
    "openvino": _openvino,
    "onnx": _onnx,
    "litert": _litert,
    "saved_model": _saved_model,
    "keras": _keras,
}
