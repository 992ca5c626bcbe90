"""A training step of TensorFlow on a CPU: the passes that Keras makes one by one, in fused kernels.

In: what `steps.training_step` takes. Out: a function that takes the step, compiled from kernels
that TensorFlow has and Keras 3 does not use:

- batch normalisation in one kernel forward, together with the ReLU behind it, and one backward,
  where Keras makes some ten passes from `tf.nn.moments` and `tf.nn.batch_normalization`;
- a 1x1 convolution, forward and for the gradient of its weights, as the matrix product that it is;
- padding left to the convolution behind it, where that has a stride of 1;
- in bfloat16, where that is asked for, all between the first convolution and the mean over places;
- the optimiser's update of a variable in one kernel.

The mathematics is Keras' own, and `tests/test_kernels.py` holds it equal. What every other step
shares with it, precision and averages, is here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fieldmark import backend
from fieldmark.backend import keras

layers, ops = keras.layers, keras.ops


class Figures(NamedTuple):
    """What one step says: the loss before its update, and the share of photos called right."""

    loss: float
    accuracy: float


Step = Callable[[Any, Any, Any], Figures]
Precision = Literal["float32", "bfloat16"]


def fits(network: Any, optimiser: Any) -> bool:
    """Tell whether the fused step does all that Keras' own would do for this network.

    It adds no penalties of layers to the loss, and it does not scale the loss for float16.
    """
    single = all(
        layer.variable_dtype == layer.compute_dtype == "float32" for layer in network.layers
    )
    return single and straight(network) and not optimiser.loss_scale_factor


def straight(network: Any) -> bool:
    """Tell whether `forward` can run a network.

    Each layer must stand in it once, take what others put out and nothing else, and ask for no
    penalty, neither on its weights nor on its output.
    """
    functional = type(keras.Model(network.input, network.output))
    if type(network) is not functional or network.losses:
        return False
    known = {id(network.input)}
    for layer in network.layers[1:]:  # the first is the input; Keras lists them in order
        node, *others = layer._inbound_nodes
        arguments = node.arguments
        # Keras notes `mask=None` of normalisation; any other keyword `forward` would leave out.
        named = any(value is not None for value in arguments.kwargs.values())
        if others or len(arguments.args) != 1 or named:
            return False
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        as_list = isinstance(arguments.args[0], list) == isinstance(layer.input, list)
        if len(node.input_tensors) != len(given) or not as_list:
            return False
        if layer.activity_regularizer or adds_loss(layer):
            return False
        if any(id(x) not in known for x in given):
            return False
        known.add(id(layer.output))
    return id(network.output) in known


def adds_loss(layer: Any) -> bool:
    """Tell whether the code of a layer that is not Keras' own asks for a penalty of its input."""
    own = (kind for kind in type(layer).__mro__ if not kind.__module__.startswith("keras."))
    codes = (getattr(each, "__code__", None) for kind in own for each in vars(kind).values())
    return any("add_loss" in code.co_names for code in codes if code)


# What computes in bfloat16 where that is asked for: all between the photo's scaling and the mean
# over the places. Those two and the classifier behind them cost nothing and need the digits.
HALVED = (
    layers.Activation,
    layers.Add,
    layers.BatchNormalization,
    layers.Conv2D,
    layers.GroupNormalization,
    layers.MaxPooling2D,
    layers.ReLU,
    layers.ZeroPadding2D,
)


@contextmanager
def computing(network: Any, precision: Precision) -> Iterator[None]:
    """Let the layers of the network compute in this precision for as long as this lasts.

    That is Keras' mixed precision: variables stay as they are, and a layer casts what it reads.
    """
    found = [
        (layer, layer.dtype_policy)
        for layer in network.layers
        if precision == "bfloat16"
        and isinstance(layer, HALVED)
        and layer.compute_dtype == "float32"
        and layer.output is not network.output
    ]
    try:
        for layer, _ in found:
            layer.dtype_policy = "mixed_bfloat16"
        yield
    finally:
        for layer, policy in found:
            layer.dtype_policy = policy


PROCESSOR = Path("/proc/cpuinfo")  # Linux has it, and names what the processor can do


def fast_precision() -> Precision:
    """Tell whether bfloat16 is what this machine computes fast: a newer GPU, or a CPU with AMX.

    Without hardware of its own for it, bfloat16 is slower than float32. Where the machine does not
    say, the answer is float32.
    """
    if backend.devices():
        return "bfloat16" if halves_on_gpu() else "float32"
    if backend.name == "jax":  # XLA gains nothing from it on a CPU
        return "float32"
    try:
        flags = PROCESSOR.read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        return "float32"
    return "bfloat16" if re.search(r"\bamx_bf16\b", flags) else "float32"


def halves_on_gpu() -> bool:
    """Tell whether the backend's GPUs, all of them, multiply in bfloat16."""
    # NVIDIA's do from compute capability 8.0 on, Ampere of 2020.
    if backend.name == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(each.get("compute_capability", (0, 0)) >= (8, 0) for each in details)
    if backend.name == "jax":
        import jax

        found = [each for each in jax.devices() if each.platform != "cpu"]
        return all(
            each.platform == "tpu" or float(getattr(each, "compute_capability", 0)) >= 8
            for each in found
        )
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def fused_step(
    network: Any, optimiser: Any, loss: Any, *, precision: Precision = "float32"
) -> Step:
    """Return the step in TensorFlow's fused kernels."""
    import tensorflow as tf

    variables = network.trainable_variables

    def compute(images: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            with computing(network, precision):
                logits, statistics = forward(network, images)
            value = loss(labels, logits, sample_weight=weights)
        gradients = tape.gradient(value, [variable.value for variable in variables])
        # The kernel's ReLU makes 0 of what is no number. The statistics before it still show it,
        # and where frozen normalisation has none, the weights do.
        looked_at = [batch for _, batch, _ in statistics]
        if any(frozen(layer) for layer in network.layers):
            looked_at += [tf.convert_to_tensor(variable.value) for variable in variables]
        update(optimiser, gradients, variables)
        for moving, batch, share in statistics:
            moving.assign_sub((moving - batch) * share)
        seen = tf.add_n([tf.reduce_sum(each) for each in looked_at] or [0.0])
        value = tf.where(tf.math.is_nan(seen), seen, value)
        right = tf.equal(tf.argmax(logits, axis=-1), tf.argmax(labels, axis=-1))
        return value, tf.reduce_mean(tf.cast(right, tf.float32))

    compiled = traced(compute, network)

    def step(images: Any, labels: Any, weights: Any) -> Figures:
        value, accuracy = compiled(images, labels, weights)
        return Figures(float(value), float(accuracy))

    return step


def traced(compute: Callable[..., Any], network: Any) -> Callable[..., Any]:
    """Have TensorFlow trace a function of images, labels and weights for a network.

    Sizes stay open: a change of resolution or a smaller last batch is not traced again. XLA is off:
    on a CPU its convolutions take twice as long.
    """
    import tensorflow as tf

    signature = [
        tf.TensorSpec((None, None, None, network.input.shape[-1]), tf.float32),
        tf.TensorSpec((None, network.output.shape[-1]), tf.float32),
        tf.TensorSpec((None,), tf.float32),
    ]
    run: Callable[..., Any] = tf.function(
        compute, input_signature=signature, autograph=False, jit_compile=False
    )
    return run


class Padded(NamedTuple):
    """A tensor (n, h, w, c) and the zeros to put around it, left to whoever reads it."""

    x: Any
    padding: tuple[tuple[int, int], tuple[int, int]]  # rows above and below, columns beside


def filled(x: Any) -> Any:
    """Return what a layer put out, or several did, with the zeros that were left to the next."""
    if isinstance(x, list):
        return [filled(each) for each in x]
    return ops.pad(x.x, [(0, 0), *x.padding, (0, 0)]) if isinstance(x, Padded) else x


def computed(layer: Any, x: Any) -> Any:
    """Return a tensor or a variable in the precision in which a layer computes."""
    return ops.cast(getattr(x, "value", x), layer.compute_dtype)


# A moving statistic, the batch's value of it, and the share of the way to go towards that.
Statistic = tuple[Any, Any, float]
Statistics = list[Statistic] | None  # where a layer notes them; none outside of training


def forward(
    network: Any, images: Any, call: Callable[..., Any] | None = None, *, training: bool = True
) -> tuple[Any, list[Statistic]]:
    """Run a network that is `straight` -> its output, and the statistics still to be moved.

    Layers without a kernel here are called as they are; `call` has other kernels. Outside of
    training there are no statistics.
    """
    run: Callable[..., Any] = call or called
    values = {id(network.input): images}
    statistics: Statistics = [] if training else None
    for layer in network.layers[1:]:  # the first is the input; Keras lists them in order
        many = isinstance(layer.input, list)
        inputs = [values[id(tensor)] for tensor in (layer.input if many else [layer.input])]
        given = inputs if many else inputs[0]
        values[id(layer.output)] = run(layer, given, statistics)
    return filled(values[id(network.output)]), statistics or []


def called(layer: Any, x: Any, statistics: list[Statistic]) -> Any:
    """Return the layer's output in training, from a kernel where one fits exactly."""
    if type(layer) is layers.ZeroPadding2D and layer.data_format == "channels_last":
        return Padded(filled(x), layer.padding)
    if type(layer) is layers.Conv2D and plain_convolution(layer):
        return convolution(layer, x)
    x = filled(x)
    if type(layer) is layers.BatchNormalization and plain_normalisation(layer):
        return normalisation(layer, x, statistics)
    return own(layer, x, statistics)


def own(layer: Any, x: Any, statistics: Statistics) -> Any:
    """Return the layer's own output."""
    return layer(x, training=statistics is not None)


def plain_convolution(layer: Any) -> bool:
    """Tell whether a Conv2D is one that `convolution` computes."""
    return (
        layer.variable_dtype == "float32"
        and layer.data_format == "channels_last"
        and layer.padding == "valid"
        and layer.groups == 1
        and not layer.lora_enabled
        and layer.dilation_rate == (1, 1)
        and layer.activation is keras.activations.linear
    )


def convolution(layer: Any, x: Any) -> Any:
    """Convolve (n, h, w, c) -> (n, h', w', filters)."""
    import tensorflow as tf

    kernel = tf.cast(layer.kernel.value, layer.compute_dtype)
    bias = tf.cast(layer.bias.value, layer.compute_dtype) if layer.use_bias else None
    scheme = "VALID"
    if not isinstance(x, Padded):
        x = tf.cast(x, layer.compute_dtype)
    else:
        x = x._replace(x=tf.cast(x.x, layer.compute_dtype))
        around = tuple((size // 2, size // 2) for size in layer.kernel_size)
        odd = all(size % 2 for size in layer.kernel_size)
        if layer.strides == (1, 1) and odd and x.padding == around:
            x, scheme = x.x, "SAME"
        else:
            # Not as the convolution's own explicit padding: its gradients run outside oneDNN.
            x = filled(x)
    single = layer.kernel_size == layer.strides == (1, 1)
    many = scheme == "SAME" and layer.filters >= MANY_FILTERS
    if layer.compute_dtype == "bfloat16" and (single or many):
        y = by_products(x, kernel)
    elif single:
        return pointwise(x, kernel, bias)
    else:
        y = tf.nn.conv2d(x, kernel, layer.strides, scheme)
    return y if bias is None else tf.nn.bias_add(y, bias)


# In bfloat16 oneDNN is slow at the gradient of the weights where few places of the photo are left,
# and that is where networks have many filters.
MANY_FILTERS = 256


def pointwise(x: Any, kernel: Any, bias: Any) -> Any:
    """Convolve by 1x1, (n, h, w, c) -> (n, h, w, filters), as a matrix product.

    So is the gradient of the weights. That of the input stays a convolution: its matrix product
    has a transposed right side, which oneDNN multiplies up to a third more slowly.
    """
    import tensorflow as tf

    channels, filters = kernel.shape[2:]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def product(x: Any, kernel: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        shape = tf.shape(x)
        rows = tf.reshape(x, (-1, channels))

        def gradients(upstream: Any) -> tuple[Any, Any]:
            to_x = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=shape,
                filter=kernel,
                out_backprop=tf.reshape(upstream, tf.concat([shape[:-1], [filters]], 0)),
                strides=[1, 1, 1, 1],
                padding="VALID",
            )
            to_kernel = tf.matmul(rows, upstream, transpose_a=True)
            return to_x, to_kernel[None, None]

        return tf.matmul(rows, kernel[0, 0]), gradients

    y = product(x, kernel)
    if bias is not None:  # in rows still: only so are the two one kernel
        y = tf.nn.bias_add(y, bias)
    return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [filters]], 0))


def by_products(x: Any, kernel: Any) -> Any:
    """Convolve with a stride of 1, (n, h, w, c) -> (n, h, w, filters), zeros around the photo.

    The gradient of the weights is a matrix product for each place of the kernel. Forward it is no
    matrix product, not for 1x1 either: with the bias that takes up to five times as long in
    bfloat16.
    """
    import tensorflow as tf

    height, width, channels, filters = kernel.shape

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolve(x: Any, kernel: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        def gradients(upstream: Any) -> tuple[Any, Any]:
            shape = tf.shape(x)
            to_x = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=shape,
                filter=kernel,
                out_backprop=upstream,
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
            padded = x
            if height > 1 or width > 1:
                padded = tf.pad(x, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
            rows = tf.reshape(upstream, (-1, filters))
            windows = [
                padded[:, i : i + shape[1], j : j + shape[2]]
                for i in range(height)
                for j in range(width)
            ]
            products = [
                tf.matmul(tf.reshape(window, (-1, channels)), rows, transpose_a=True)
                for window in windows
            ]
            return to_x, tf.reshape(tf.stack(products), kernel.shape)

        return tf.nn.conv2d(x, kernel, 1, "SAME"), gradients

    return convolve(x, kernel)


def plain_pooling(layer: Any) -> bool:
    """Tell whether a MaxPooling2D takes the highest of windows that lie within the photo."""
    return bool(layer.padding == "valid" and layer.data_format == "channels_last")


def plain_normalisation(layer: Any) -> bool:
    """Tell whether a BatchNormalization is one that `normalisation` computes."""
    return (
        layer.variable_dtype == "float32"
        and layer.scale
        and layer.center
        and layer.axis in (-1, 3)
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # new in Keras 3.14
        and len(layer.input.shape) == 4
    )


def frozen(layer: Any) -> bool:
    """Tell whether a layer is a BatchNormalization that keeps to its moving statistics."""
    return isinstance(layer, layers.BatchNormalization) and not layer.trainable


def normalisation(layer: Any, x: Any, statistics: list[Statistic]) -> Any:
    """Normalise (n, h, w, c) over all but the channels, and note the batch's statistics."""
    import tensorflow as tf

    x = tf.cast(x, layer.compute_dtype)
    if frozen(layer):
        return frozen_normalisation(layer, x)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=layer.gamma.value,
        offset=layer.beta.value,
        mean=tf.zeros(0),
        variance=tf.zeros(0),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel normalises by the biased variance, as Keras does, but returns the unbiased one;
    # Keras moves towards the biased one.
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    share = 1 - layer.momentum
    statistics.append((layer.moving_mean.value, mean, share))
    statistics.append((layer.moving_variance.value, variance * ((count - 1) / count), share))
    return y


def frozen_normalisation(layer: Any, x: Any) -> Any:
    """Normalise by the moving statistics, which a frozen layer uses in training too."""
    import tensorflow as tf

    gamma, beta, mean, variance = (
        tf.convert_to_tensor(each.value)
        for each in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    scale = tf.cast(gamma * tf.math.rsqrt(variance + layer.epsilon), x.dtype)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalise(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=layer.epsilon,
            is_training=False,
        )
        # TensorFlow's own gradient sums those of gamma and beta too, which nobody asks for.
        return y, lambda upstream: upstream * scale

    return normalise(x)


def keep_decay_off(optimiser: Any, network: Any) -> None:
    """Keep the optimiser's weight decay off biases and normalisation: all that is a vector.

    It must be called before the optimiser is built.
    """
    vectors = [each for each in network.trainable_variables if len(each.shape) < 2]
    optimiser.exclude_from_weight_decay(var_list=vectors)


def update(optimiser: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Apply the gradients as `optimiser.apply` does, in fused kernels where they do the same.

    Keras' order is kept: clip, decay, update, average, count.
    """
    import tensorflow as tf

    pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
    if not fusable(optimiser, variables):
        optimiser.apply(gradients, variables)
        return
    rate = tf.convert_to_tensor(optimiser.learning_rate, tf.float32)
    if optimiser.global_clipnorm:
        limit = optimiser.global_clipnorm
        norm = tf.linalg.global_norm(gradients)
        # A norm that is no finite number makes the weights none either, as in Keras.
        scale = limit * tf.minimum(1 / norm, 1 / limit) + (norm - norm)
        gradients = [gradient * scale for gradient in gradients]
    if optimiser.weight_decay:
        kept = 1 - rate * optimiser.weight_decay
        for variable in variables:
            if optimiser._use_weight_decay(variable):
                # Assigning a product moves it into place; subtracting in place would read twice.
                variable.value.assign(variable.value * kept)
    kernel = sgd if type(optimiser) is keras.optimizers.SGD else adam
    kernel(optimiser, gradients, variables, rate)
    if optimiser.use_ema:
        first = tf.equal(optimiser.iterations.value, 0)
        share = tf.where(first, 1.0, 1 - optimiser.ema_momentum)
        for variable in variables:
            average = optimiser._model_variables_moving_average[index(optimiser, variable)].value
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.handle, alpha=share, delta=average - variable.value
            )
    optimiser.iterations.value.assign_add(1)


def fusable(optimiser: Any, variables: Sequence[Any]) -> bool:
    """Tell whether `update` does all that this optimiser does."""
    kinds = (keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.SGD)
    return type(optimiser) in kinds and plain_options(optimiser, variables)


def plain_options(optimiser: Any, variables: Sequence[Any]) -> bool:
    """Tell whether an optimiser does nothing beyond clipping by the norm of all, and averaging."""
    unlike = (
        "amsgrad",
        "clipnorm",
        "clipvalue",
        "gradient_accumulation_steps",
        "ema_overwrite_frequency",
        "loss_scale_factor",
    )
    return not any(getattr(optimiser, name, None) for name in unlike) and all(
        each.dtype == "float32" and each.constraint is None for each in variables
    )


def index(optimiser: Any, variable: Any) -> int:
    """Return the place of a variable among those that the optimiser was built for."""
    return int(optimiser._get_variable_index(variable))


def adam(optimiser: Any, gradients: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
    """Update by Adam, a kernel for each variable (Kingma and Ba 2015, arXiv:1412.6980).

    The kernel and Keras place epsilon alike, as in the paper's remark before section 2.1.
    """
    import tensorflow as tf

    count = tf.cast(optimiser.iterations.value + 1, tf.float32)
    powers = tf.pow(optimiser.beta_1, count), tf.pow(optimiser.beta_2, count)
    for gradient, variable in zip(gradients, variables, strict=True):
        place = index(optimiser, variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimiser._momentums[place].value.handle,
            v=optimiser._velocities[place].value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=optimiser.beta_1,
            beta2=optimiser.beta_2,
            epsilon=optimiser.epsilon,
            grad=gradient,
        )


def sgd(optimiser: Any, gradients: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
    """Update by gradient descent, with Keras' momentum and Nesterov's where asked for."""
    import tensorflow as tf

    for gradient, variable in zip(gradients, variables, strict=True):
        if not optimiser.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.value.handle, alpha=rate, delta=gradient
            )
            continue
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.value.handle,
            accum=optimiser.momentums[index(optimiser, variable)].value.handle,
            lr=rate,
            grad=gradient,
            momentum=optimiser.momentum,
            use_nesterov=optimiser.nesterov,
        )


@contextmanager
def averaged(optimiser: Any) -> Iterator[None]:
    """Put the averaged weights in the place of the trained ones for as long as this lasts.

    The optimiser must have been made with `use_ema=True`. Moving statistics of normalisation are
    not averaged: they follow the trained weights. Works on every backend.
    """
    exchange(optimiser)
    try:
        yield
    finally:
        exchange(optimiser)


def exchange(optimiser: Any) -> None:
    """Exchange the trained weights and their averages."""
    pairs = zip(
        optimiser._trainable_variables, optimiser._model_variables_moving_average, strict=True
    )
    for variable, average in pairs:
        trained = np.array(variable)  # a copy: a view would change with the variable
        variable.assign(average)
        average.assign(trained)
