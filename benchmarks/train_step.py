"""What a training step of a ResNet-V2 costs: ours, Keras' own, and timm's on PyTorch.

In: nothing; photos are noise. Each contestant lives in a process of its own; all take a step in
turn, so that a noisy machine is noisy for all. Out, on standard output: the first step (tracing and
compiling, without imports and building), then wall and CPU seconds of a step, the ratio to
keras.applications pair by pair, and what share of the matrix product's speed is reached, measured
in the same turns.

    python benchmarks/train_step.py --batch 8 32 --rounds 10
    python benchmarks/train_step.py --network narrow --size 96 --batch 16 32 --rounds 30

The narrow network is of the size that recipes take for few photos: four stages of two blocks, half
as wide as ResNet50V2. It is none of keras.applications', whose place the same network takes with
Keras' own step. timm's network takes part where `torch` and `timm` are installed. `--only` names
contestants. KERAS_BACKEND=torch or jax puts ours and Keras' own on that; `taskset -c 0` in front
leaves all of them one core.
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
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple
from unittest.mock import MagicMock

import numpy as np

CLASSES = 4


class Time(NamedTuple):
    """What a step, or a matrix product, took."""

    wall: float
    cpu: float


class Task(NamedTuple):
    """What to train, and on how many photos of which size a step."""

    network: Literal["resnet50v2", "narrow"]
    size: int
    photos: int


def our_network(task: Task) -> Any:
    """Build the network of fieldmark's."""
    from fieldmark import resnet_v2
    from fieldmark.backend import keras

    shape = (task.size, task.size, 3)
    if task.network == "resnet50v2":
        return resnet_v2.ResNet50V2(shape, CLASSES)
    image = keras.layers.Input(shape)
    x = resnet_v2.body(image, blocks=(2, 2, 2, 2), filters=32)
    return keras.Model(image, resnet_v2.head(x, CLASSES), name="narrow")


def batch(task: Task) -> tuple[Any, Any, Any]:
    """Draw images (n, s, s, 3), one-hot labels (n, 4) and weights (n,)."""
    size, photos = task.size, task.photos
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (photos, size, size, 3)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, photos)]
    return images, labels, np.ones(photos, "float32")


def keras_applications(task: Task) -> Callable[[], Any]:
    """Train as Keras' user does: applications, Adam, compile, a batch at a time."""
    from fieldmark.backend import keras

    shape = (task.size, task.size, 3)
    network = our_network(task)
    if task.network == "resnet50v2":
        network = keras.applications.ResNet50V2(
            weights=None, classes=CLASSES, input_shape=shape, classifier_activation=None
        )
    network.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images, labels, weights = batch(task)
    return lambda: network.train_on_batch(images, labels, sample_weight=weights)


def ours(
    task: Task,
    *,
    decay: bool = False,
    extras: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Callable[[], Any]:
    """Train by the fused step, with Adam; with decay; with `extras` clipping and averaging too."""
    from fieldmark import kernels, steps
    from fieldmark.backend import keras

    network = our_network(task)
    optimiser = keras.optimizers.Adam(1e-3)
    if decay or extras:
        more = {"global_clipnorm": 1.0, "use_ema": True} if extras else {}
        optimiser = keras.optimizers.AdamW(1e-3, **more)
        kernels.keep_decay_off(optimiser, network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    step = steps.training_step(network, optimiser, loss=loss, precision=precision)
    arrays = batch(task)
    return lambda: step(*arrays)


def timm_eager(task: Task, *, compiled: bool = False) -> Callable[[], Any]:
    """Train timm's network as a good PyTorch user does: channels last, a fused AdamW."""
    import torch

    do_without_torchvision()
    import timm

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = timm.create_model("resnetv2_50", num_classes=CLASSES)
    network = network.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0, fused=True)
    if compiled:
        network = torch.compile(network)
    images, labels, _ = batch(task)
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


def timm_compiled(task: Task) -> Callable[[], Any]:
    """Train timm's network, compiled."""
    return timm_eager(task, compiled=True)


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


def matrix_product(_task: Task) -> Callable[[], Any]:
    """Multiply two square matrices, `PRODUCT` operations: the ceiling of any step."""
    import tensorflow as tf

    a, b = tf.random.normal((2, 4096, 4096))
    return lambda: tf.matmul(a, b).numpy()[0, 0]


PRODUCT = 2 * 4096**3

CONTESTANTS: dict[str, Callable[[Task], Callable[[], Any]]] = {
    "keras.applications, Adam": keras_applications,
    "ours, Adam": ours,
    "ours, AdamW": partial(ours, decay=True),
    "ours, AdamW, clipping, averaging": partial(ours, extras=True),
    "the same in bfloat16": partial(ours, extras=True, precision="bfloat16"),
    "timm resnetv2_50, eager": timm_eager,
    "timm resnetv2_50, compiled": timm_compiled,
    "matrix product": matrix_product,
}
BASE, CEILING = "keras.applications, Adam", "matrix product"


def operations(task: Task) -> float:
    """Count the floating-point operations of a step: three times the convolutions of a forward.

    Only products within convolutions and the classifier count; the first convolution needs no
    gradient of its input.
    """
    from fieldmark.backend import keras

    total = 0.0
    for layer in our_network(task).layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = np.prod(layer.output.shape[1:-1], dtype=float)
            passes = 2 if layer.name == "conv1_conv" else 3
            total += passes * 2 * places * np.prod(layer.kernel.shape, dtype=float)
    return total * task.photos


def live(name: str, task: Task, parent: Connection) -> None:
    """Build a contestant and take a step whenever told to; send what it took."""
    step = CONTESTANTS[name](task)
    began = Time(time.perf_counter(), time.process_time())
    while True:
        step()
        now = Time(time.perf_counter(), time.process_time())
        parent.send(Time(now.wall - began.wall, now.cpu - began.cpu))
        if not parent.recv():
            return
        began = Time(time.perf_counter(), time.process_time())


def contest(names: list[str], task: Task, rounds: int) -> dict[str, list[Time]]:
    """Return for each contestant its first step, a second to warm up, and one a round."""
    context = multiprocessing.get_context("spawn")
    children: dict[str, tuple[Connection, Any]] = {}
    times: dict[str, list[Time]] = {}
    for name in names:  # one after another: the first steps compete with nobody
        here, there = context.Pipe()
        child = context.Process(target=live, args=(name, task, there), daemon=True)
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


def table(times: dict[str, list[Time]], task: Task) -> None:
    """Print a row for each contestant; ratios are medians of pairs taken in the same round."""
    work = operations(task)
    print(
        f"\n{task.network}, {task.size} px, batch {task.photos}, {work / 1e9:.0f} GFLOP a step, "
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
        line += f"{task.photos / wall:10.2f}"
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
    parser.add_argument("--network", choices=["resnet50v2", "narrow"], default="resnet50v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options = parser.parse_args()
    left_out = missing()
    if options.network == "narrow":
        left_out |= {name: "it has no such network" for name in CONTESTANTS if "timm" in name}
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    names = [name for name in CONTESTANTS if name in options.only and name not in left_out]
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    for photos in options.batch:
        task = Task(options.network, options.size, photos)
        table(contest(names, task, options.rounds), task)


if __name__ == "__main__":
    main()
