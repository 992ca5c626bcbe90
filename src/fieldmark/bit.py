"""ResNet-V2 as in Big Transfer (`bit_pytorch/models.py`) and timm (`timm/models/resnetv2.py`).

After Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning"
(arXiv:1912.11370). In: the shape of a photo and the number of classes. Out: a functional Keras
model whose output is logits, or without its top a feature map. The tests copy random weights over
from timm and hold the outputs equal.

It differs from `resnet_v2.py` in this: a stage's stride is in its *first* block, on the 3x3
convolution and on the projection beside it; no convolution has a bias. There are two of it, and
their normalisation is the one choice: `R50x1` normalises groups of channels and standardises its
kernels, so that it knows no batch statistics and small batches do not hurt it; `ResNetV2_50` is
timm's with batch normalisation. Layers are named as in `resnet_v2.py`, with `norm` for `bn`.

A standardised kernel takes a layer that plain Keras does not have. `folded` gives the same network
with the standardised kernels in plain convolutions: that is what is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fieldmark.backend import keras

layers = keras.layers
ops = keras.ops

DEPTHS = (3, 4, 6, 3)  # blocks a stage, of 50 layers


class Parts(NamedTuple):
    """The layers that a network is made of, each to be called with a name and what it lacks."""

    conv: Callable[..., Any]
    last: Callable[..., Any]  # the last convolution of a block
    norm: Callable[..., Any]


def R50x1(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    include_top: bool = True,
    initializer: str = "he_normal",
) -> Any:
    """Build BiT R50x1, timm's `resnetv2_50x1_bit`; pixels -1 to 1 in, logits (n, classes) out.

    There is no `zero_init_residual`: a standardised kernel has a variance of 1 whatever its scale,
    and at zero its gradient would be multiplied by 1 / sqrt(1e-10).
    """
    conv = partial(StdConv2D, use_bias=False, kernel_initializer=initializer)
    norm = partial(layers.GroupNormalization, groups=32, epsilon=1e-5)
    image = layers.Input(input_shape)
    x = conv(64, 7, strides=2, name="conv1_conv")(layers.ZeroPadding2D(3, name="conv1_pad")(image))
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)  # (n, h/4, w/4, 64)
    x = body(x, Parts(conv, conv, norm))
    return keras.Model(image, top(x, classes) if include_top else x, name="bit_r50x1")


def ResNetV2_50(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    include_top: bool = True,
    bn_momentum: float = 0.9,
    zero_init_residual: bool = False,
    initializer: str = "he_normal",
) -> Any:
    """Build timm's `resnetv2_50`; pixels -1 to 1 in, logits (n, classes) out.

    The arguments are those of `resnet_v2.Options`. The momentum of 0.9 is what PyTorch calls 0.1.
    """
    conv = partial(layers.Conv2D, use_bias=False, kernel_initializer=initializer)
    last = partial(conv, kernel_initializer="zeros") if zero_init_residual else conv
    norm = partial(layers.BatchNormalization, epsilon=1e-5, momentum=bn_momentum)
    image = layers.Input(input_shape)
    x = conv(64, 7, strides=2, name="conv1_conv")(layers.ZeroPadding2D(3, name="conv1_pad")(image))
    # PyTorch's pooling takes the border for minus infinity, and BiT's for zero: with no activation
    # before it, that differs. Keras does as PyTorch on both sides only where the stride is 1.
    x = layers.MaxPooling2D(3, strides=1, padding="same", name="pool1_pool")(x)
    x = layers.MaxPooling2D(1, strides=2, name="pool1_stride")(x)  # (n, h/4, w/4, 64)
    x = body(x, Parts(conv, last, norm))
    return keras.Model(image, top(x, classes) if include_top else x, name="resnetv2_50")


def body(x: Any, parts: Parts, *, blocks: tuple[int, ...] = DEPTHS, filters: int = 64) -> Any:
    """Add the stages, (n, h/4, w/4, filters) -> (n, h/32, w/32, c) for four of them.

    Stage i has `blocks[i]` blocks, and twice the width of the one before it; `filters` is the
    width of the first. Every stage but the first begins with a stride of 2.
    """
    for i, depth in enumerate(blocks):
        for j in range(1, depth + 1):
            x = block(
                x,
                parts,
                filters=filters * 2**i,
                strides=2 if j == 1 and i > 0 else 1,
                project=j == 1,
                name=f"conv{i + 2}_block{j}",
            )
    return activated(x, parts, "post")


def block(x: Any, parts: Parts, *, filters: int, strides: int, project: bool, name: str) -> Any:
    """Add a pre-activated bottleneck, (n, h, w, c) -> (n, h/strides, w/strides, 4 * filters).

    The shortcut is the input itself, and in a stage's first block a learned projection of the
    pre-activated input.
    """
    preact = activated(x, parts, f"{name}_preact")
    shortcut = x
    if project:
        shortcut = parts.conv(4 * filters, 1, strides=strides, name=f"{name}_0_conv")(preact)
    y = parts.conv(filters, 1, name=f"{name}_1_conv")(preact)
    y = activated(y, parts, f"{name}_1")
    # With a stride, Keras' "same" would pad one side more than the other.
    y = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(y)
    y = parts.conv(filters, 3, strides=strides, name=f"{name}_2_conv")(y)
    y = activated(y, parts, f"{name}_2")
    y = parts.last(4 * filters, 1, name=f"{name}_3_conv")(y)
    return layers.Add(name=f"{name}_out")([shortcut, y])


def activated(x: Any, parts: Parts, name: str) -> Any:
    """Add normalisation and ReLU."""
    return layers.Activation("relu", name=f"{name}_relu")(parts.norm(name=f"{name}_norm")(x))


def top(x: Any, classes: int) -> Any:
    """Classify the mean of the places, (n, h, w, c) -> logits (n, classes)."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    # Logits stay in float32 under mixed precision, where a softmax would saturate.
    return layers.Dense(classes, dtype="float32", name="predictions")(x)


@keras.saving.register_keras_serializable("fieldmark")
class StdConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """A convolution whose kernel is standardised each time that it is used."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve; under mixed precision the kernel is standardised in float32 all the same."""
        exact = keras.backend.result_type(self.compute_dtype, "float32")
        kernel = standardised(ops.cast(kernel, exact))
        return super().convolution_op(inputs, ops.cast(kernel, self.compute_dtype))


def kernel_of(layer: Any) -> Any:
    """Return the kernel (h, w, in, out) that a convolution multiplies by."""
    kernel = layer.kernel.value
    return standardised(kernel) if isinstance(layer, StdConv2D) else kernel


def standardised(kernel: Any) -> Any:
    """Shift and scale a kernel (h, w, in, out) to mean 0 and variance 1 for each channel out.

    Weight standardisation (Qiao et al. 2019, arXiv:1903.10520); the epsilon is BiT's, timm's 1e-8.
    """
    centred = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
    variance = ops.mean(ops.square(centred), axis=(0, 1, 2), keepdims=True)
    return centred * ops.rsqrt(variance + 1e-10)


def folded(network: Any) -> Any:
    """Copy a functional network, with plain convolutions where it standardises its kernels.

    The copy gives the same outputs, is saved as a plain `.keras` and loads with no code of ours. It
    is for inference: what is trained further in it is no longer standardised.
    """

    def plain(layer: Any) -> Any:
        kind = layers.Conv2D if isinstance(layer, StdConv2D) else type(layer)
        return kind.from_config(layer.get_config())

    image = layers.Input(
        batch_shape=network.input_shape, dtype=network.input.dtype, name=network.layers[0].name
    )
    copy = keras.models.clone_model(network, input_tensors=image, clone_function=plain)
    for ours, theirs in zip(network.layers, copy.layers, strict=True):
        arrays = ours.get_weights()
        if isinstance(ours, StdConv2D):
            arrays[0] = ops.convert_to_numpy(standardised(ops.convert_to_tensor(arrays[0])))
        theirs.set_weights(arrays)
    return copy
