"""A network outside of the training step: its compiled pass, and what it comes to on photos.

In: a functional Keras network that ends in logits, and `Batches`. Out: `forward`, the pass as a
function of images; `evaluate`, loss and accuracy as exact means over photos; `statistics`, which
lets normalisation have those of the weights as they are. `docs/resume.md` says what the trainer
makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import backend, jax_kernels, kernels, mesh, torch_kernels
from fieldmark.backend import keras
from fieldmark.batches import Batches


class Evaluation(NamedTuple):
    """The means over the photos that a network is tried on."""

    loss: float  # cross-entropy, without label smoothing
    accuracy: float


def forward(network: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the compiled network outside of training: images (n, h, w, 3) -> logits (n, c)."""
    if backend.name == "jax":
        return spread(network)
    if backend.name == "torch" and kernels.straight(network):
        return lambda images: keras.ops.convert_to_numpy(torch_kernels.forward(network, images))
    if backend.name != "tensorflow" or backend.devices():
        return lambda images: np.asarray(network.predict_on_batch(images))
    run = compiled(network, training=False)
    return lambda images: run(images).numpy()


def training_forward(network: Any) -> Callable[[NDArray[Any]], object]:
    """Return the network as it runs in training; its moving statistics move.

    Of several processes each gives it its share of the images.
    """
    if backend.name == "tensorflow":
        return compiled(network, training=True)
    if backend.name == "jax":
        return spread_training(network)

    def run(images: NDArray[Any]) -> object:
        with backend.without_gradients():
            return network(images, training=True)

    return run


def compiled(network: Any, *, training: bool) -> Callable[[NDArray[Any]], Any]:
    """Compile a network's pass with TensorFlow; it is traced at the first call."""
    import tensorflow as tf

    # Open sizes, and no XLA, for the reasons that the training step has.
    signature = [tf.TensorSpec((None, None, None, network.input.shape[-1]), tf.float32)]
    return tf.function(  # type: ignore[no-any-return]
        lambda images: network(images, training=training),
        input_signature=signature,
        autograph=False,
        jit_compile=False,
    )


def spread(network: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Compile a network's pass with JAX, on all devices of this process."""
    import jax

    parts = (network.trainable_variables, network.non_trainable_variables)
    call = jax_kernels.stateless(network)
    run = jax.jit(lambda state, images: call(*state, images, training=False)[0])

    def forward(images: NDArray[Any]) -> NDArray[Any]:
        where = mesh.layout(len(images), alone=True)
        state = tuple(mesh.values(part, where.whole) for part in parts)
        return np.asarray(run(state, mesh.rows(np.asarray(images), where.rows)))

    return forward


def spread_training(network: Any) -> Callable[[NDArray[Any]], object]:
    """Compile a network's pass in training with JAX, on all devices of all processes."""
    import jax

    parts = (network.trainable_variables, network.non_trainable_variables)
    call = jax_kernels.stateless(network)
    run = jax.jit(lambda state, images: call(*state, images, training=True)[1])

    def forward(images: NDArray[Any]) -> None:
        where = mesh.layout(len(images))
        state = tuple(mesh.values(part, where.whole) for part in parts)
        mesh.assign(parts[1], run(state, mesh.rows(np.asarray(images), where.rows)))

    return forward


def evaluate(
    run: Callable[[NDArray[Any]], NDArray[Any]],
    batches: Batches,
    *,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Return the exact means over the photos, weighed as the batches say.

    Of several processes each runs its share of every batch.
    """
    process, processes = mesh.processes()
    loss = right = weight = 0.0
    for images, labels, weights in batches.dataset(epochs=1, process=process, processes=processes):
        poll()
        logits = run(images).astype(np.float64)
        with np.errstate(
            invalid="ignore"
        ):  # of logits that are no numbers, the loss is none either
            logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        share = weights.astype(np.float64)
        there = share > 0  # what fills up the last batch may be any number, or none
        loss -= float((share * (labels * logs).sum(axis=1))[there].sum())
        right += float((share * (logits.argmax(axis=1) == labels.argmax(axis=1)))[there].sum())
        weight += float(share.sum())
    loss, right, weight = mesh.total(np.array([loss, right, weight])).tolist()
    return Evaluation(loss / weight, right / weight)


@contextmanager
def statistics(
    network: Any,
    batches: Batches,
    epoch: int,
    count: int,
    *,
    run: Callable[[NDArray[Any]], object] | None = None,
) -> Iterator[None]:
    """Let normalisation have the statistics of `count` batches of the training meanwhile.

    `run` is a `training_forward` that nobody else calls.

    Taken with the weights as they are now, they are those of all photos of the batches together
    (Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, section 3); moving ones follow weights
    that have been. 0 leaves the moving ones. Afterwards everything is as it was before.
    """
    found = [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not count or not found:
        yield
        return
    kept = [(each, np.array(values_of(each))) for each in network.non_trainable_variables]
    try:
        for layer, (mean, variance) in zip(
            found,
            measured(found, batches, epoch, count, run=run or training_forward(network)),
            strict=True,
        ):
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
        yield
    finally:
        for variable, values in kept:
            variable.assign(values)


def measured(
    found: Sequence[Any],
    batches: Batches,
    epoch: int,
    count: int,
    *,
    run: Callable[[NDArray[Any]], object],
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return mean and variance of what comes to each of the layers in the first batches."""
    count = min(count, len(batches))
    process, processes = mesh.processes()
    # The means, and the means of the squares, summed over the batches.
    sums: list[list[Any]] = [[0.0, 0.0] for _ in found]
    momenta = [layer.momentum for layer in found]
    try:
        for layer in found:
            layer.momentum = 0.0  # so that the moving statistics are the last batch's
        for step in range(count):
            images, *_ = batches.batch(epoch, step, process=process, processes=processes)
            run(images)  # traced, where it is, with this momentum
            for total, layer in zip(sums, found, strict=True):
                mean = values_of(layer.moving_mean).astype(np.float64)
                total[0] = total[0] + mean
                total[1] = total[1] + values_of(layer.moving_variance) + mean**2
    finally:
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum
    means = [(mean / count, square / count) for mean, square in sums]
    return [(mean, np.maximum(square - mean**2, 0)) for mean, square in means]


def values_of(variable: Any) -> NDArray[Any]:
    """Return a variable's values as numpy has them."""
    return np.asarray(keras.ops.convert_to_numpy(variable))
