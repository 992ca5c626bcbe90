"""A training step of TensorFlow or PyTorch on several devices of one process.

In: what `steps.training_step` takes, and the devices. Out: a function that takes the step of one
device: every layer computes on each device in turn, with that one's share of the photos and a copy
of the variables, which lie on the first; the gradients come back by way of the copies.

Batch normalisation is why it goes layer by layer. `tf.distribute.MirroredStrategy` and PyTorch's
`DistributedDataParallel` let each device normalise its own photos, so that the result hangs on how
many devices there are, and Keras' layer joins them on TensorFlow alone. Here the mean and the
variance are those of the batch, on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from fieldmark import backend, kernels, mesh, torch_kernels
from fieldmark.backend import keras
from fieldmark.kernels import Figures, Precision, Statistic, Step

layers, ops = keras.layers, keras.ops
Share = Any  # what one device has: a tensor, (n, h, w, c) with n a part of the batch


def devices() -> list[str]:
    """Name what can share a step, as `keras.device` takes it: the GPUs, else the CPU.

    TensorFlow can divide a CPU into several, which is how this is tested.
    """
    if backend.name == "torch":
        return [f"gpu:{number}" for number, _ in enumerate(backend.devices())] or ["cpu"]
    import tensorflow as tf

    kind = "gpu" if backend.devices() else "cpu"
    return [f"{kind}:{i}" for i, _ in enumerate(tf.config.list_logical_devices(kind.upper()))]


def fits(network: Any, optimiser: Any) -> bool:
    """Tell whether the step does all that Keras' own would do for this network.

    Of all that a layer changes in a step it keeps the moving statistics only.
    """
    return kernels.fits(network, optimiser) and all(
        kernels.plain_normalisation(layer)
        if isinstance(layer, layers.BatchNormalization)
        else len(layer.variables) == len(layer.weights)  # no state of what is drawn at random
        and not (layer.trainable and layer.non_trainable_weights)  # nor a normalisation within
        for layer in network.layers
    )


def lockstep(
    network: Any,
    optimiser: Any,
    loss: Any,
    *,
    places: Sequence[str],
    precision: Precision = "float32",
) -> Step:
    """Return the step on as many of the devices as share a batch equally.

    The optimiser must be built. The network must be one that `fits`.
    """
    trained = network.trainable_variables

    def compute(taken: Sequence[str], images: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        with recorded([variable.value for variable in trained]) as gradients_of:
            with kernels.computing(network, precision):
                logits, statistics = forward(network, images, taken)
            with keras.device(taken[0]):
                labels, weights = (ops.convert_to_tensor(each) for each in (labels, weights))
                value = loss(labels, logits, sample_weight=weights)
                right = ops.equal(ops.argmax(logits, axis=-1), ops.argmax(labels, axis=-1))
        gradients = gradients_of(value)
        with backend.without_gradients():
            optimiser.apply(gradients, trained)
            for moving, batch, share in statistics:
                moving.assign(moving + (batch - moving) * share)
        return ops.stop_gradient(value), ops.mean(ops.cast(right, "float32"))

    @lru_cache
    def compiled(count: int) -> Callable[..., tuple[Any, Any]]:
        run = partial(compute, places[:count])
        if backend.name == "torch":
            return run
        return kernels.traced(run, network)

    def step(images: Any, labels: Any, weights: Any) -> Figures:
        count = mesh.sharing(len(images), len(places))
        value, right = compiled(count)(images, labels, weights)
        return Figures(float(value), float(right))

    return step


def forward(network: Any, images: Any, places: Sequence[str]) -> tuple[Any, list[Statistic]]:
    """Run a functional network in training -> its output, and the statistics still to be moved."""
    each = ops.shape(images)[0] // len(places)
    parts = [images[number * each : (number + 1) * each] for number, _ in enumerate(places)]
    values = {id(network.input): list(map(sent, parts, places))}
    statistics: list[Statistic] = []
    for layer in network.layers[1:]:  # the first is the input; Keras lists them in order
        if isinstance(layer.input, list):
            inputs = [list(xs) for xs in zip(*(values[id(x)] for x in layer.input), strict=True)]
        else:
            inputs = values[id(layer.input)]
        if isinstance(layer, layers.BatchNormalization) and layer.trainable:
            inputs = kernels.filled(list(inputs))
            found = normalised(layer, inputs, places, statistics)
        else:
            found = [called(layer, x, place) for x, place in zip(inputs, places, strict=True)]
        values[id(layer.output)] = found
    return gathered(values[id(network.output)], places), statistics


def called(layer: Any, x: Any, place: str) -> Share:
    """Return the layer's output in training, on the device that has its input."""
    copies = [(variable, sent(variable.value, place)) for variable in layer.variables]
    with keras.device(place), keras.StatelessScope(state_mapping=copies):
        if backend.name == "torch":
            return torch_kernels.called(layer, x, [])
        return kernels.own(layer, x, [])


def normalised(
    layer: Any, inputs: Sequence[Share], places: Sequence[str], statistics: list[Statistic]
) -> list[Share]:
    """Normalise over the photos of all devices, and note the statistics of the batch.

    In float32, as Keras does. The shares are equal: the mean of their means is that of all.
    """

    def mean(parts: Sequence[Share]) -> Any:
        with keras.device(places[0]):
            return ops.mean(ops.stack([sent(part, places[0]) for part in parts]), axis=0)

    def means(function: Callable[[Share, str], Any]) -> list[Any]:
        found = []
        for x, place in zip(inputs, places, strict=True):
            with keras.device(place):
                found.append(ops.mean(function(ops.cast(x, "float32"), place), axis=(0, 1, 2)))
        return found

    centre = mean(means(lambda x, _: x))
    variance = mean(means(lambda x, place: ops.square(x - sent(centre, place))))
    share = 1 - layer.momentum
    statistics += [(layer.moving_mean, centre, share), (layer.moving_variance, variance, share)]
    outputs = []
    for x, place in zip(inputs, places, strict=True):
        copies = [sent(each, place) for each in (centre, variance, layer.beta, layer.gamma)]
        with keras.device(place):
            y = ops.batch_normalization(
                ops.cast(x, "float32"), *copies[:2], -1, *copies[2:], epsilon=layer.epsilon
            )
            outputs.append(ops.cast(y, layer.compute_dtype))
    return outputs


def gathered(parts: Sequence[Share], places: Sequence[str]) -> Any:
    """Return the parts as one, on the first device."""
    with keras.device(places[0]):
        return ops.concatenate([sent(part, places[0]) for part in parts])


def sent(value: Any, place: str) -> Any:
    """Return a tensor or a variable as it lies on a device; its gradient comes back that way."""
    with keras.device(place):
        if backend.name == "torch":
            return ops.convert_to_tensor(value)
        import tensorflow as tf

        return tf.identity(value)


@contextmanager
def recorded(leaves: Sequence[Any]) -> Iterator[Callable[[Any], Sequence[Any]]]:
    """Give the function from what is computed meanwhile to its gradients."""
    if backend.name == "torch":
        import torch

        yield lambda value: torch.autograd.grad(value, leaves, allow_unused=True)
        return
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        yield lambda value: tape.gradient(value, leaves)
