"""What more machines gain in a training: a model of a step, held against 1, 2 and 4 processes.

In: nothing. Out, on standard output: what is measured here, what the model says of the same, and
what it says of 8, 64 and 512 GPUs. `docs/scale.md` has its words and its figures.

    python benchmarks/scale.py measure --steps 8
    python benchmarks/scale.py predict

A step is the longer one of two that go on at a time: reading the next photos, and computing, which
is followed by the sum of all gradients. Each normalisation waits for a sum of its own, of a few
kilobytes, forward and backward; there it is the way that takes time, not the bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

NETWORK, SIDE, BATCH = "resnet26v2_half", 96, 32  # of what is measured
SUMS = 4  # of a normalisation: mean and variance, and the gradients of both


@dataclass(frozen=True)
class Work:
    """What a step has to do."""

    parameters: int
    normalisations: int  # layers
    batch: int  # photos of all processes together


@dataclass(frozen=True)
class Machine:
    """What it is done with."""

    seconds_per_photo: float  # of computing, forward and backward, on one device
    seconds_per_step: float  # of computing, whatever the number of photos
    read_per_second: float  # photos, of the processor cores that a device has
    bandwidth: float  # bytes a second that a device sends while it receives as many
    latency: float  # seconds of one hop
    devices: int | None = None  # so many compute at a time; none: all


def all_reduce(size: float, count: int, machine: Machine) -> float:
    """Return the seconds of a sum over a ring (Patarasuk and Yuan 2009, section 3)."""
    if count == 1:
        return 0.0
    hops = 2 * (count - 1)
    return hops * machine.latency + hops / count * size / machine.bandwidth


def small_sum(count: int, machine: Machine) -> float:
    """Return the seconds of a sum of a few bytes over a tree (Thakur et al. 2005, section 4)."""
    return 2 * math.ceil(math.log2(count)) * machine.latency if count > 1 else 0.0


def parts(work: Work, machine: Machine, count: int) -> dict[str, float]:
    """Return the seconds of each part of a step on so many devices."""
    share = work.batch / count
    turns = count / min(count, machine.devices or count)  # where fewer compute at a time
    return {
        "read": share / machine.read_per_second * turns,
        "compute": (share * machine.seconds_per_photo + machine.seconds_per_step) * turns,
        "normalise": SUMS * work.normalisations * small_sum(count, machine),
        "gradients": all_reduce(4 * work.parameters, count, machine),
    }


def step(work: Work, machine: Machine, count: int) -> float:
    """Return the seconds of a step."""
    found = parts(work, machine, count)
    return max(found["read"], found["compute"] + found["normalise"] + found["gradients"])


# ---- measured -----------------------------------------------------------------------------------


def measure(steps: int) -> None:
    """Measure 1, 2 and 4 processes here, fit the model to 1 and 2, and hold it against 4."""
    found = {count: processes(count, steps, BATCH) for count in (1, 2, 4)}
    half = processes(1, steps, BATCH // 2)
    facts = found[1]
    whole, part = facts["step"], half["step"]
    per_photo = (whole - part) / (BATCH / 2)
    latency = found[2]["small"] / 2
    size = 4 * facts["parameters"]
    machine = Machine(
        seconds_per_photo=per_photo,
        seconds_per_step=max(0.0, whole - per_photo * BATCH),
        read_per_second=facts["read"],
        bandwidth=size / max(1e-9, found[2]["large"] - 2 * latency),
        latency=latency,
        devices=int(facts["devices"]),
    )
    work = Work(int(facts["parameters"]), int(facts["normalisations"]), BATCH)
    print(f"{NETWORK}, {SIDE} px, batch {BATCH}, medians of {steps}")
    print(f"machine: {machine}")
    print("processes  measured s  model s  ratio  " + "  ".join(parts(work, machine, 1)))
    for count, each in found.items():
        said = step(work, machine, count)
        shares = "  ".join(f"{value:.3f}" for value in parts(work, machine, count).values())
        print(f"{count:9}  {each['step']:10.3f}  {said:7.3f}  {each['step'] / said:5.2f}  {shares}")
    print(json.dumps({str(count): each for count, each in found.items()}))


def processes(count: int, steps: int, batch: int) -> dict[str, float]:
    """Train for some steps with so many processes of this machine; return the first one's times."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    words = [str(value) for value in (count, port, steps, batch)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "worker", str(rank), *words],
            env={**os.environ, "KERAS_BACKEND": "jax"},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(count)
    ]
    said = started[0].communicate()[0].decode()
    for process in started:
        process.wait()
    return dict(json.loads(said.splitlines()[-1]))


def worker(rank: int, count: int, port: int, steps: int, batch: int) -> None:
    """Be one of several processes, and say as the first one how long things take.

    A device is a core: a process that may take all of them would leave a second one none.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    import jax
    import numpy as np

    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    from fieldmark import loop, mesh, train
    from fieldmark.augment import Augment
    from fieldmark.backend import keras
    from fieldmark.batches import Batches
    from fieldmark.feed import specification
    from fieldmark.recipe import SCRATCH
    from fieldmark.steps import training_step

    recipe = SCRATCH.changed(network=NETWORK, image_size=SIDE, batch_size=batch)
    network = train.built(recipe, 4)
    optimiser = loop.optimiser_of(recipe, network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    take = training_step(network, optimiser, loss=loss)
    rng = np.random.default_rng(0)
    side = recipe.image_size
    batches = Batches(
        pixels=rng.integers(0, 256, (4 * batch, side, side, 3), np.uint8),
        labels=np.arange(4 * batch) % 4,
        classes=4,
        spec=specification(recipe),
        batch_size=batch,
        shapes=np.full((4 * batch, 2), side),
        augment=Augment.of(0.5),
    )
    took, read = [], []
    for number in range(steps + 2):
        began = time.perf_counter()
        found = batches.batch(number // 4, number % 4, process=rank, processes=count)
        seen = time.perf_counter()
        take(*found)
        took.append(time.perf_counter() - seen)
        read.append((seen - began) / len(found[0]))
    parameters = network.count_params()
    where = mesh.layout(1)
    facts = {
        "step": statistics.median(took[2:]),
        "read": 1 / statistics.median(read[2:]),
        "parameters": parameters,
        "normalisations": sum(
            isinstance(layer, keras.layers.BatchNormalization) for layer in network.layers
        ),
        "devices": len(cores),
    }
    for name, size, times in (("small", 256, 100), ("large", parameters, 1)):
        values = mesh.rows(np.ones((1, size), np.float32), where.rows)

        @partial(jax.jit, out_shardings=where.whole)
        def total(x: Any, times: int = times) -> Any:
            """Sum rows across processes, one sum after another as in a step."""
            for _ in range(times):
                x = x + 1e-3 * x.sum(axis=0)
            return x.sum(axis=0)

        each = []
        for _ in range(steps + 2):
            began = time.perf_counter()
            total(values).block_until_ready()
            each.append((time.perf_counter() - began) / (times + 1))
        facts[name] = statistics.median(each[2:])
    print(json.dumps(facts), flush=True)


# ---- said of what is not here -------------------------------------------------------------------

DECODED = 338.0  # photos/s of a core that decodes a JPEG of 0.07 MB (docs/images.md)
RESNET50 = Work(parameters=25_600_000, normalisations=49, batch=0)
WITHIN = (225e9, 5e-6)  # NVLink 4: bytes a second each way for a GPU, seconds of a small message
A_HOST = 8  # GPUs
# The same for what leads out of a host, all its cards together: a ring crosses it once.
LINKS = {
    "InfiniBand NDR, a card a GPU": (8 * 50e9, 5e-6),
    "Ethernet, 100 Gbit/s a host": (12.5e9, 20e-6),
    "Ethernet, 10 Gbit/s a host": (1.25e9, 50e-6),
}


def predict(per_gpu: int, rate: float, cores: int, read: float) -> None:
    """Say what the model says of GPUs."""
    print(f"{per_gpu} photos a GPU and step, {rate:g} photos/s a GPU alone, ", end="")
    print(f"{cores} cores a GPU of {read:g} photos/s each")
    print(f"{'link':30} GPUs   photos/s  of ideal  step ms  gradients ms  normalise ms  bound by")
    for name, (bandwidth, latency) in LINKS.items():
        for count in (8, 64, 512):
            alone = count <= A_HOST
            link = WITHIN if alone else (min(bandwidth, WITHIN[0]), max(latency, WITHIN[1]))
            if alone and name != next(iter(LINKS)):
                continue  # one host is one host
            machine = Machine(1 / rate, 0.0, cores * read, *link)
            work = Work(RESNET50.parameters, RESNET50.normalisations, per_gpu * count)
            found, seconds = parts(work, machine, count), step(work, machine, count)
            pace = work.batch / seconds
            rest = found["normalise"] + found["gradients"]
            bound = "reading" if seconds == found["read"] else "computing"
            if bound == "computing" and rest > found["compute"]:
                bound = "the network"
            print(
                f"{'NVLink, one host' if alone else name:30} {count:4}  {pace:9,.0f}  "
                f"{pace / (count * rate):8.2f}  {1000 * seconds:7.1f}  "
                f"{1000 * found['gradients']:12.1f}  {1000 * found['normalise']:12.1f}  {bound}"
            )
    for what, each in (("from the cache", read), ("decoded each time", DECODED)):
        print(
            f"{what}, reading is the limit from {cores * each:,.0f} photos/s a GPU on; "
            f"{rate:g} take {rate / each:.1f} cores"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--steps", type=int, default=8)
    predicting = commands.add_parser("predict")
    predicting.add_argument("--per-gpu", type=int, default=256)
    predicting.add_argument("--rate", type=float, default=2500)
    predicting.add_argument("--cores", type=int, default=14)
    predicting.add_argument("--read", type=float, default=900)  # docs/batches.md
    one = commands.add_parser("worker")
    one.add_argument("numbers", type=int, nargs=5)
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.steps)
    elif options.command == "predict":
        predict(options.per_gpu, options.rate, options.cores, options.read)
    else:
        worker(*options.numbers)


if __name__ == "__main__":
    main()
