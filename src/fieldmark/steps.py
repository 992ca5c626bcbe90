"""The training step: one batch into a network, on whatever the backend finds to compute with.

In: a functional Keras network, a Keras optimiser and a Keras loss. Out: a function that takes one
step on a batch. It changes the variables of that network and that optimiser and adds nothing to
either, so what is saved afterwards is plain Keras on any backend.

- TensorFlow on a CPU: fused kernels, see `kernels`.
- PyTorch: its kernels, see `torch_kernels`.
- JAX: one compiled function on all devices of all processes, see `mesh` and `jax_kernels`.
- TensorFlow and PyTorch with several GPUs: layer by layer on all of them, see `lockstep`.
- Else Keras' own step.

The mathematics is Keras' own, whichever it is, and a batch is one batch: its normalisation and its
mean are those of all its photos, however many devices share them. `docs/speed.md` has the figures;
`python benchmarks/train_step.py` measures them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fieldmark import backend, jax_kernels, kernels, lockstep, mesh, torch_kernels
from fieldmark.backend import keras
from fieldmark.kernels import Figures, Precision, Step


def training_step(
    network: Any, optimiser: Any, *, loss: Any, precision: Precision = "float32"
) -> Step:
    """Return the function `step(images, labels, weights)` that trains the network by one batch.

    It takes float32 arrays: images (n, h, w, 3) as the network takes them, labels (n, classes) as
    shares of 1, and a weight for each photo, (n,). The loss is a Keras loss, summed with the
    weights and divided by n. n, h and w may change from step to step; the first step compiles.
    The optimiser is built for the variables that are trainable now: after freezing or thawing
    layers, take a new optimiser and a new step. With `use_ema` the averages of the weights stay
    in the optimiser, see `kernels.averaged`.

    With "bfloat16" the body of the network computes in that on every backend, see
    `kernels.HALVED`. Variables, moving statistics, head, loss and optimiser stay in float32, and so
    does the network outside of the step. `kernels.fast_precision` tells where it pays.
    """
    if not optimiser.built:
        optimiser.build(network.trainable_variables)
    if backend.name == "jax":
        make = plain_step if optimiser.loss_scale_factor else spread_step
        return make(network, optimiser, loss, precision=precision)
    places = lockstep.devices()
    if len(places) > 1 and lockstep.fits(network, optimiser):
        return lockstep.lockstep(network, optimiser, loss, places=places, precision=precision)
    if not kernels.fits(network, optimiser):
        return plain_step(network, optimiser, loss, precision=precision)
    if backend.name == "torch":
        return torch_kernels.native_step(network, optimiser, loss, precision=precision)
    make = plain_step if backend.devices() else kernels.fused_step
    return make(network, optimiser, loss, precision=precision)


def plain_step(
    network: Any, optimiser: Any, loss: Any, *, precision: Precision = "float32"
) -> Step:
    """Return Keras' own step, whichever the backend."""
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    network.compile(optimizer=optimiser, loss=loss, metrics=[accuracy])

    def step(images: Any, labels: Any, weights: Any) -> Figures:
        network.reset_metrics()  # else they are means over all steps so far
        with kernels.computing(network, precision):  # around each step: it may be traced
            found = network.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
        return Figures(float(found["loss"]), float(found["accuracy"]))

    return step


def spread_step(
    network: Any, optimiser: Any, loss: Any, *, precision: Precision = "float32"
) -> Step:
    """Return JAX's step on all devices; each process gives it its share of a batch."""
    import jax

    run = jax_kernels.stateless(network)
    parts = (network.trainable_variables, network.non_trainable_variables, optimiser.variables)

    def compute(
        trained: Any, others: Any, images: Any, labels: Any, weights: Any
    ) -> tuple[Any, Any]:
        logits, others, penalties = run(trained, others, images, training=True)
        value = loss(labels, logits, sample_weight=weights) + sum(penalties)
        right = (logits.argmax(axis=-1) == labels.argmax(axis=-1)).mean()
        return value, (others, right)

    def update(state: Any, images: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        trained, others, kept = state
        (value, (others, right)), gradients = jax.value_and_grad(compute, has_aux=True)(
            trained, others, images, labels, weights
        )
        trained, kept = optimiser.stateless_apply(kept, gradients, trained)
        return (trained, others, kept), (value, right)

    @lru_cache
    def compiled(where: mesh.Layout) -> Any:
        return jax.jit(update, donate_argnums=0, out_shardings=where.whole)

    def step(images: Any, labels: Any, weights: Any) -> Figures:
        where = mesh.layout(len(images))
        state = tuple(mesh.values(part, where.whole) for part in parts)
        with kernels.computing(network, precision):  # it may be traced
            state, (value, right) = compiled(where)(
                state, *(mesh.rows(each, where.rows) for each in (images, labels, weights))
            )
        for part, found in zip(parts, state, strict=True):
            mesh.assign(part, found)
        return Figures(float(value), float(right))

    return step
