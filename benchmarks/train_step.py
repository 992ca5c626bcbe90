"""What a training step of ResNet50V2 costs: ours, Keras' own, and timm's on PyTorch.

In: nothing; photos are noise. Each contestant lives in a process of its own; all take a step in
turn, so that a noisy machine is noisy for all. Out, on standard output: the first step (tracing and
compiling, without imports and building), then wall and CPU seconds of a step, the ratio to
keras.applications pair by pair, and what share of the matrix product's speed is reached, measured
in the same turns.

    python benchmarks/train_step.py --batch 8 32 --rounds 10

timm's network takes part where `torch` and `timm` are installed. `--only` names contestants.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np

CLASSES = 4


class Time(NamedTuple):
    """What a step, or a matrix product, took."""

    wall: float
    cpu: float


def batch(size: int, photos: int) -> tuple[Any, Any, Any]:
    """Draw images (n, s, s, 3), one-hot labels (n, 4) and weights (n,)."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (photos, size, size, 3)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, photos)]
    return images, labels, np.ones(photos, "float32")


def keras_applications(size: int, photos: int) -> Callable[[], Any]:
    """Train as Keras' user does: applications, Adam, compile, a batch at a time."""
    from fieldmark.backend import keras

    network = keras.applications.ResNet50V2(
        weights=None, classes=CLASSES, input_shape=(size, size, 3), classifier_activation=None
    )
    network.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images, labels, weights = batch(size, photos)
    return lambda: network.train_on_batch(images, labels, sample_weight=weights)


def ours(size: int, photos: int, *, extras: bool = False) -> Callable[[], Any]:
    """Train by the fused step, with Adam; with `extras` decay, clipping and averaging as well."""
    from fieldmark import kernels, resnet_v2
    from fieldmark.backend import keras

    network = resnet_v2.ResNet50V2((size, size, 3), CLASSES)
    optimiser = keras.optimizers.Adam(1e-3)
    if extras:
        optimiser = keras.optimizers.AdamW(1e-3, global_clipnorm=1.0, use_ema=True)
        kernels.keep_decay_off(optimiser, network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    step = kernels.training_step(network, optimiser, loss=loss)
    arrays = batch(size, photos)
    return lambda: step(*arrays)


def ours_with_extras(size: int, photos: int) -> Callable[[], Any]:
    """Train by the fused step with decay off the vectors, clipping by norm, and averaging."""
    return ours(size, photos, extras=True)


def ours_without_clipping(size: int, photos: int) -> Callable[[], Any]:
    """Train by the fused step with decay alone, to tell what clipping and averaging cost."""
    from fieldmark import kernels, resnet_v2
    from fieldmark.backend import keras

    network = resnet_v2.ResNet50V2((size, size, 3), CLASSES)
    optimiser = keras.optimizers.AdamW(1e-3)
    kernels.keep_decay_off(optimiser, network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    step = kernels.training_step(network, optimiser, loss=loss)
    arrays = batch(size, photos)
    return lambda: step(*arrays)


def timm_eager(size: int, photos: int, *, compiled: bool = False) -> Callable[[], Any]:
    """Train timm's network as a good PyTorch user does: channels last, a fused AdamW."""
    import torch

    do_without_torchvision()
    import timm

    torch.set_num_threads(os.cpu_count() or 1)
    network = timm.create_model("resnetv2_50", num_classes=CLASSES)
    network = network.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0, fused=True)
    if compiled:
        network = torch.compile(network)
    images, labels, _ = batch(size, photos)
    photos_nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    photos_nchw = photos_nchw.contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(network(photos_nchw), targets)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def timm_compiled(size: int, photos: int) -> Callable[[], Any]:
    """Train timm's network, compiled."""
    return timm_eager(size, photos, compiled=True)


def do_without_torchvision() -> None:
    """Let timm be imported where torchvision is not installed.

    timm takes a frozen normalisation from it and the names of transforms, none of which its
    ResNet-V2 uses; torchvision has no build for every CPU build of PyTorch.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return
    import torch

    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.ops",
        "torchvision.ops.misc",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ):
        sys.modules[name] = module = MagicMock(name=name, __spec__=None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type(  # type: ignore[attr-defined]
        "FrozenBatchNorm2d", (torch.nn.Module,), {}
    )


def matrix_product(_size: int, _photos: int) -> Callable[[], Any]:
    """Multiply two square matrices, `PRODUCT` operations: the ceiling of any step."""
    import tensorflow as tf

    a, b = tf.random.normal((2, 4096, 4096))
    return lambda: tf.matmul(a, b).numpy()[0, 0]


PRODUCT = 2 * 4096**3

CONTESTANTS: dict[str, Callable[[int, int], Callable[[], Any]]] = {
    "keras.applications, Adam": keras_applications,
    "ours, Adam": ours,
    "ours, AdamW": ours_without_clipping,
    "ours, AdamW, clipping, averaging": ours_with_extras,
    "timm resnetv2_50, eager": timm_eager,
    "timm resnetv2_50, compiled": timm_compiled,
    "matrix product": matrix_product,
}
BASE, CEILING = "keras.applications, Adam", "matrix product"


def operations(size: int, photos: int) -> float:
    """Count the floating-point operations of a step: three times the convolutions of a forward.

    Only products within convolutions and the classifier count; the first convolution needs no
    gradient of its input.
    """
    from fieldmark import resnet_v2
    from fieldmark.backend import keras

    network = resnet_v2.ResNet50V2((size, size, 3), CLASSES)
    total = 0.0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = np.prod(layer.output.shape[1:-1], dtype=float)
            passes = 2 if layer.name == "conv1_conv" else 3
            total += passes * 2 * places * np.prod(layer.kernel.shape, dtype=float)
    return total * photos


def live(name: str, size: int, photos: int, parent: Connection) -> None:
    """Build a contestant and take a step whenever told to; send what it took."""
    step = CONTESTANTS[name](size, photos)
    began = Time(time.perf_counter(), time.process_time())
    while True:
        step()
        now = Time(time.perf_counter(), time.process_time())
        parent.send(Time(now.wall - began.wall, now.cpu - began.cpu))
        if not parent.recv():
            return
        began = Time(time.perf_counter(), time.process_time())


def contest(names: list[str], size: int, photos: int, rounds: int) -> dict[str, list[Time]]:
    """Return for each contestant its first step, a second to warm up, and one a round."""
    context = multiprocessing.get_context("spawn")
    children: dict[str, tuple[Connection, Any]] = {}
    times: dict[str, list[Time]] = {}
    for name in names:  # one after another: the first steps compete with nobody
        here, there = context.Pipe()
        child = context.Process(target=live, args=(name, size, photos, there), daemon=True)
        child.start()
        there.close()
        children[name] = here, child
        times[name] = [here.recv()]
    for _ in range(rounds + 1):
        for name, (pipe, _child) in children.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe, child in children.values():
        pipe.send(False)
        child.join()
    return times


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def table(times: dict[str, list[Time]], size: int, photos: int) -> None:
    """Print a row for each contestant; ratios are medians of pairs taken in the same round."""
    work = operations(size, photos)
    print(
        f"\n{size} px, batch {photos}, {work / 1e9:.0f} GFLOP a step, "
        f"medians of {len(times[next(iter(times))]) - 2} rounds\n"
        f"{'':34}{'first, s':>16}{'step, s':>18}{'photos/s':>10}"
        f"{'times as fast':>18}{'of the ceiling':>18}\n"
        f"{'':34}{'wall':>9}{'CPU':>7}{'wall':>10}{'CPU':>8}{'wall':>10}"
        f"{'wall':>10}{'CPU':>8}{'wall':>10}{'CPU':>8}"
    )
    for name, (first, _warm, *steps) in times.items():
        wall, cpu = median([t.wall for t in steps]), median([t.cpu for t in steps])
        line = f"{name:34}{first.wall:9.1f}{first.cpu:7.1f}{wall:10.3f}{cpu:8.3f}"
        if name == CEILING:
            print(
                f"{line}{'':10}   {PRODUCT / wall / 1e9:.0f} GFLOP/s, "
                f"{PRODUCT / cpu / 1e9:.0f} a CPU second"
            )
            continue
        line += f"{photos / wall:10.2f}"
        if BASE in times:
            line += ratio(times[BASE][2:], steps)
        if CEILING in times:
            ideal = [Time(*(each * work / PRODUCT for each in t)) for t in times[CEILING][2:]]
            line += ratio(ideal, steps)
        print(line)


def ratio(others: list[Time], steps: list[Time]) -> str:
    """Return how many times as fast as the others the steps are, in wall and CPU seconds."""
    pairs = list(zip(others, steps, strict=True))
    wall = median([other.wall / step.wall for other, step in pairs])
    cpu = median([other.cpu / step.cpu for other, step in pairs])
    return f"{wall:10.2f}{cpu:8.2f}"


def missing() -> dict[str, str]:
    """Say which contestants cannot take part, and why."""
    absent = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    if not absent:
        return {}
    reason = f"{' and '.join(absent)} not installed: pip install torch timm"
    return {name: reason for name in CONTESTANTS if name.startswith("timm")}


def main() -> None:
    """Hold a contest for each batch size and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options = parser.parse_args()
    left_out = missing()
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    names = [name for name in CONTESTANTS if name in options.only and name not in left_out]
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    for photos in options.batch:
        table(contest(names, options.size, photos, options.rounds), options.size, photos)


if __name__ == "__main__":
    main()
