"""A network on JAX and a CPU: what XLA computes slowly there, in forms that it is fast at.

In: a functional Keras network. Out: what its `stateless_call` is, computed otherwise. On a CPU XLA
is slow at three things that Keras asks of it:

- a convolution by 1x1 and its gradients, here the matrix products that they are;
- the gradient of the highest of a window, here by the window's places;
- the gradient of normalisation, which reads what comes in over and over, here twice.

What is here without a form is called as it is. The mathematics is Keras' own, and
`tests/test_steps.py` holds it equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce
from itertools import product
from typing import Any

from fieldmark import backend, bit, kernels
from fieldmark.backend import keras
from fieldmark.kernels import Padded, Statistics, computed, filled

layers = keras.layers

Stateless = partial[tuple[Any, Sequence[Any], Sequence[Any]]]


def stateless(network: Any) -> Stateless:
    """Return the network as a function, as its `stateless_call` is with `return_losses`.

    It takes the values of `trainable_variables`, those of `non_trainable_variables`, the images
    and `training`, and returns the logits, the second of them as they are afterwards, and the
    penalties of layers.
    """
    if backend.devices() or not kernels.straight(network):
        return partial(network.stateless_call, return_losses=True)
    return partial(forward, network)


def forward(
    network: Any, trained: Sequence[Any], others: Sequence[Any], images: Any, *, training: bool
) -> tuple[Any, Sequence[Any], Sequence[Any]]:
    """Run a network whose layers ask for no penalties."""
    state = [
        *zip(network.trainable_variables, trained, strict=True),
        *zip(network.non_trainable_variables, others, strict=True),
    ]
    with keras.StatelessScope(state_mapping=state) as scope:
        logits, statistics = kernels.forward(network, images, called, training=training)
        for moving, batch, share in statistics:
            moving.assign(moving * (1 - share) + batch * share)
    return logits, [scope.get_current_value(each) for each in network.non_trainable_variables], []


def called(layer: Any, x: Any, statistics: Statistics) -> Any:
    """Return the layer's output, from a form of its own where one fits exactly."""
    kind = type(layer)
    if kind is layers.ZeroPadding2D and layer.data_format == "channels_last":
        return Padded(filled(x), layer.padding)
    if kind in (layers.Conv2D, bit.StdConv2D) and kernels.plain_convolution(layer):
        return convolution(layer, x)
    x = filled(x)
    moves = kind is layers.BatchNormalization and kernels.plain_normalisation(layer)
    if moves and statistics is not None and not kernels.frozen(layer):
        return normalisation(layer, x, statistics)
    if kind is layers.MaxPooling2D and kernels.plain_pooling(layer):
        return highest()(x, layer.pool_size, layer.strides)
    return kernels.own(layer, x, statistics)


def convolution(layer: Any, x: Any) -> Any:
    """Convolve (n, h, w, c) -> (n, h', w', filters)."""
    from jax import lax

    x, padding = x if isinstance(x, Padded) else (x, ((0, 0), (0, 0)))
    x = computed(layer, x)
    kernel = computed(layer, bit.kernel_of(layer))
    if layer.kernel_size == layer.strides == (1, 1) and padding == ((0, 0), (0, 0)):
        y = lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    else:
        y = lax.conv_general_dilated(
            x, kernel, layer.strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return y + computed(layer, layer.bias) if layer.use_bias else y


def normalisation(layer: Any, x: Any, statistics: list[kernels.Statistic]) -> Any:
    """Normalise (n, h, w, c) over all but the channels, and note the batch's statistics."""
    y, mean, variance = normalised()(
        computed(layer, x), layer.gamma.value, layer.beta.value, layer.epsilon
    )
    share = 1 - layer.momentum
    statistics += [(layer.moving_mean, mean, share), (layer.moving_variance, variance, share)]
    return y


@lru_cache
def normalised() -> Callable[..., Any]:
    """Return the function (x, gamma, beta, epsilon) -> y, mean and biased variance of the batch.

    Nothing comes back through mean and variance, which move the statistics only.
    """
    import jax

    places = (0, 1, 2)

    @partial(jax.custom_vjp, nondiff_argnums=(3,))
    def normalise(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
        return fwd(x, gamma, beta, epsilon)[0]

    def fwd(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
        wide = x.astype("float32")  # Keras does so too
        mean = wide.mean(places)
        variance = ((wide - mean) ** 2).mean(places)
        inverse = jax.lax.rsqrt(variance + epsilon)
        y = (wide - mean) * (inverse * gamma) + beta
        return (y.astype(x.dtype), mean, variance), (x, mean, inverse, gamma)

    def bwd(_: float, kept: Any, upstream: Any) -> Any:
        x, mean, inverse, gamma = kept
        dy, centred = upstream[0].astype("float32"), x.astype("float32") - mean
        count = x.size // x.shape[-1]
        to_beta = dy.sum(places)
        to_gamma = (dy * centred).sum(places) * inverse
        to_x = gamma * inverse * (dy - to_beta / count - centred * (inverse * to_gamma / count))
        return to_x.astype(x.dtype), to_gamma, to_beta

    normalise.defvjp(fwd, bwd)
    return normalise  # type: ignore[no-any-return]


@lru_cache
def highest() -> Callable[..., Any]:
    """Return the function (x, size, strides) -> the highest of each window, (n, h', w', c).

    The gradient goes to the first place of a window that has its highest.
    """
    import jax
    import jax.numpy as jnp

    def places(x: Any, size: tuple[int, int], strides: tuple[int, int]) -> list[Any]:
        """Return the windows' first places, their second ones and so on, each (n, h', w', c)."""
        (height, width), (down, right) = size, strides
        rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // right + 1
        return [
            x[:, i : i + rows * down : down, j : j + columns * right : right][:, :rows, :columns]
            for i, j in product(range(height), range(width))
        ]

    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def pool(x: Any, size: Any, strides: Any) -> Any:
        return reduce(jnp.maximum, places(x, size, strides))

    def fwd(x: Any, size: Any, strides: Any) -> Any:
        y = pool(x, size, strides)
        return y, (x, y)

    def bwd(size: Any, strides: Any, kept: Any, upstream: Any) -> Any:
        x, y = kept
        taken = jnp.zeros(y.shape, bool)
        shares = []
        for place in places(x, size, strides):
            here = (place == y) & ~taken
            taken |= here
            shares.append(jnp.where(here, upstream, 0))
        return jax.linear_transpose(partial(places, size=size, strides=strides), x)(shares)

    pool.defvjp(fwd, bwd)
    return pool  # type: ignore[no-any-return]
