"""A network and its training step on PyTorch, in the kernels that PyTorch has for them.

In: what `steps.training_step` takes. Out: a function that takes the step, or the network outside of
training. Keras computes on PyTorch as it does everywhere, from small parts; here instead

- a convolution reads photos as they lie, channels last, where Keras copies them there and back, and
  one of 1x1 is the matrix product that it is;
- normalisation is one kernel forward and one backward, of batches and of groups;
- padding is left to the convolution behind it;
- Adam is PyTorch's fused one, on the moments of Keras' optimiser.

What is here without a kernel is called as it is. The mathematics is Keras' own, and
`tests/test_steps.py` holds it equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from fieldmark import backend, bit, kernels
from fieldmark.backend import keras
from fieldmark.kernels import Figures, Padded, Precision, Statistics, Step, computed, filled

layers, ops = keras.layers, keras.ops


def native_step(
    network: Any, optimiser: Any, loss: Any, *, precision: Precision = "float32"
) -> Step:
    """Return the step in PyTorch's kernels; the optimiser must be built."""
    import torch

    trained = network.trainable_variables
    update = updating(optimiser, trained)

    def step(images: Any, labels: Any, weights: Any) -> Figures:
        labels = ops.convert_to_tensor(labels)
        with kernels.computing(network, precision):
            logits, statistics = kernels.forward(network, ops.convert_to_tensor(images), called)
        value = loss(labels, logits, sample_weight=ops.convert_to_tensor(weights))
        leaves = [variable.value for variable in trained]
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        with torch.no_grad():
            update(gradients)
            for moving, batch, share in statistics:
                moving.lerp_(batch, share)
            right = (logits.argmax(-1) == labels.argmax(-1)).float().mean()
        return Figures(value.item(), right.item())

    return step


# ---- forward ------------------------------------------------------------------------------------


def forward(network: Any, images: Any) -> Any:
    """Run a network that is `straight` outside of training, (n, h, w, 3) -> its output."""
    with backend.without_gradients():
        return kernels.forward(network, ops.convert_to_tensor(images), called, training=False)[0]


def called(layer: Any, x: Any, statistics: Statistics) -> Any:
    """Return the layer's output, from a kernel where one fits exactly."""
    if type(layer) is layers.ZeroPadding2D and layer.data_format == "channels_last":
        return Padded(filled(x), layer.padding)
    kind = type(layer)
    if kind in (layers.Conv2D, bit.StdConv2D) and kernels.plain_convolution(layer):
        return convolution(layer, x)
    x = filled(x)
    # PyTorch's kernel refuses a single value a channel.
    several = kind is layers.BatchNormalization and x.numel() > x.shape[-1]
    if several and kernels.plain_normalisation(layer):
        return normalisation(layer, x, statistics)
    if kind is layers.GroupNormalization and plain_groups(layer):
        return group_normalisation(layer, x)
    if kind is layers.MaxPooling2D and kernels.plain_pooling(layer):
        return pooling(layer, x)
    return kernels.own(layer, x, statistics)


def nchw(x: Any) -> Any:
    """Return (n, h, w, c) as PyTorch's functions take it, without moving anything."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    """Return (n, c, h, w) as Keras has it."""
    return x.permute(0, 2, 3, 1)


def convolution(layer: Any, x: Any) -> Any:
    """Convolve (n, h, w, c) -> (n, h', w', filters)."""
    import torch

    padding = (0, 0)
    if isinstance(x, Padded):
        if all(before == after for before, after in x.padding):
            padding = (x.padding[0][0], x.padding[1][0])
        x = x.x if any(padding) else filled(x)
    x = computed(layer, x)
    kernel = computed(layer, bit.kernel_of(layer))
    bias = computed(layer, layer.bias) if layer.use_bias else None
    if layer.kernel_size == layer.strides == (1, 1) and not any(padding):
        return torch.nn.functional.linear(x, kernel.reshape(kernel.shape[2:]).T, bias)
    on_cpu = kernel.device.type == "cpu"
    kernel = turned()(kernel) if on_cpu else kernel.permute(3, 2, 0, 1)
    return nhwc(torch.nn.functional.conv2d(nchw(x), kernel, bias, layer.strides, padding))


@lru_cache
def turned() -> Callable[[Any], Any]:
    """Return the function from a kernel (h, w, c, filters) to PyTorch's (filters, c, h, w).

    Place by place: on a CPU PyTorch turns matrices more than twice as fast as what has more axes.
    """
    import torch

    class Turned(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_: Any, kernel: Any) -> Any:
            height, width, channels, filters = kernel.shape
            found = kernel.new_empty(filters, height, width, channels)
            for i, j in product(range(height), range(width)):
                found[:, i, j] = kernel[i, j].T.contiguous()
            return found.permute(0, 3, 1, 2)

        @staticmethod
        def backward(_: Any, gradient: Any) -> Any:
            filters, channels, height, width = gradient.shape
            found = gradient.new_empty(height, width, channels, filters)
            for i, j in product(range(height), range(width)):
                found[i, j] = gradient[:, :, i, j].contiguous().T
            return found

    return Turned.apply  # type: ignore[no-any-return]


def normalisation(layer: Any, x: Any, statistics: Statistics) -> Any:
    """Normalise (n, h, w, c) over all but the channels, and note the batch's statistics."""
    import torch

    fixed = statistics is None or kernels.frozen(layer)
    moving = layer.moving_mean.value, layer.moving_variance.value
    # With a momentum of 1 the kernel leaves the batch's own statistics there.
    mean, variance = moving if fixed else map(torch.zeros_like, moving)
    y = torch.nn.functional.batch_norm(
        nchw(computed(layer, x)),
        mean,
        variance,
        layer.gamma.value,
        layer.beta.value,
        training=not fixed,
        momentum=1.0,
        eps=layer.epsilon,
    )
    if statistics is not None and not fixed:
        # The kernel normalises by the biased variance, as Keras does, but returns the unbiased one;
        # Keras moves towards the biased one.
        count = x.numel() // x.shape[-1]
        biased = variance * ((count - 1) / count)
        share = 1 - layer.momentum
        statistics += [(moving[0], mean, share), (moving[1], biased, share)]
    return nhwc(y)


def plain_groups(layer: Any) -> bool:
    """Tell whether a GroupNormalization is one that `group_normalisation` computes."""
    return layer.axis in (-1, 3) and layer.scale and layer.center and len(layer.input.shape) == 4


def group_normalisation(layer: Any, x: Any) -> Any:
    """Normalise (n, h, w, c) over the places and channels of each group of each photo."""
    import torch

    x, gamma, beta = (computed(layer, each) for each in (x, layer.gamma, layer.beta))
    groups = x.shape[-1] if layer.groups == -1 else layer.groups
    return nhwc(torch.nn.functional.group_norm(nchw(x), groups, gamma, beta, layer.epsilon))


def pooling(layer: Any, x: Any) -> Any:
    """Take the highest of each window, (n, h, w, c) -> (n, h', w', c)."""
    import torch

    return nhwc(torch.nn.functional.max_pool2d(nchw(x), layer.pool_size, layer.strides))


# ---- the update ---------------------------------------------------------------------------------


def updating(optimiser: Any, variables: Sequence[Any]) -> Callable[[Sequence[Any]], None]:
    """Return what `optimiser.apply` does to the variables, by PyTorch's fused Adam if it is that.

    Keras' order is kept: clip, decay, update, average, count.
    """
    # Of a class of Keras' own for PyTorch; what a user derives from it may do anything.
    known = {type(keras.optimizers.Adam()), type(keras.optimizers.AdamW())}
    if type(optimiser) not in known or not kernels.plain_options(optimiser, variables):
        return lambda gradients: optimiser.apply(gradients, variables)
    adam = fused_adam(optimiser, variables)

    def update(gradients: Sequence[Any]) -> None:
        if optimiser.global_clipnorm:
            gradients = clipped(gradients, optimiser.global_clipnorm)
        count = int(optimiser.iterations.value)
        # PyTorch adds its epsilon after the correction of the second moment, Keras before.
        epsilon = optimiser.epsilon / (1 - optimiser.beta_2 ** (count + 1)) ** 0.5
        for group in adam.param_groups:
            group.update(lr=float(optimiser.learning_rate), eps=epsilon)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.value.grad = None if gradient is None else gradient.contiguous()
            adam.state[variable.value]["step"].fill_(count)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if optimiser.use_ema:
            share = 1 - optimiser.ema_momentum if count else 1.0
            for variable in variables:
                place = kernels.index(optimiser, variable)
                average = optimiser._model_variables_moving_average[place].value
                average.lerp_(variable.value, share)
        optimiser.iterations.assign_add(1)

    return update


def fused_adam(optimiser: Any, variables: Sequence[Any]) -> Any:
    """Return PyTorch's fused Adam, whose moments are those of Keras' optimiser."""
    import torch

    decay = optimiser.weight_decay or 0.0
    kept: dict[float, list[Any]] = {}
    for variable in variables:
        of = decay if decay and optimiser._use_weight_decay(variable) else 0.0
        kept.setdefault(of, []).append(variable.value)
    adam = torch.optim.AdamW(
        [{"params": values, "weight_decay": of} for of, values in kept.items()],
        betas=(optimiser.beta_1, optimiser.beta_2),
        fused=True,
    )
    for variable in variables:
        place = kernels.index(optimiser, variable)
        adam.state[variable.value] = {
            "step": torch.zeros((), device=variable.value.device),
            "exp_avg": optimiser._momentums[place].value,
            "exp_avg_sq": optimiser._velocities[place].value,
        }
    return adam


def clipped(gradients: Sequence[Any], limit: float) -> list[Any]:
    """Scale gradients down to a norm over all of them, as Keras does."""
    import torch

    there = [gradient for gradient in gradients if gradient is not None]
    norm = torch.nn.utils.get_total_norm(there)
    scale = limit / torch.clamp(norm, min=limit) + (norm - norm)  # no number where that is none
    return [None if gradient is None else gradient * scale for gradient in gradients]
