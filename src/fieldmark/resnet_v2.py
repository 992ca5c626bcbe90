"""ResNet-V2 as in Keras applications (`keras/src/applications/resnet.py`).

After He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027). In: the
shape of a photo and the number of classes. Out: a functional Keras model whose output is logits,
or without its top a feature map. Layers bear the names of Keras applications, so that weights can
be copied over by name; the tests do so and hold outputs and feature maps equal. `bit.py` is the
other published ResNet-V2. `fieldmark network resnet50v2` prints one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypedDict, Unpack

from fieldmark.backend import keras

layers = keras.layers

# Blocks a stage (He et al. 2015, arXiv:1512.03385, table 1); the first is of no paper.
DEPTHS = {
    "resnet26v2_half": (2, 2, 2, 2),
    "resnet50v2": (3, 4, 6, 3),
    "resnet101v2": (3, 4, 23, 3),
    "resnet152v2": (3, 8, 36, 3),
}


class Options(TypedDict, total=False):
    """What may be chosen about a network besides its depth; none of it changes a shape within.

    `include_top=False` leaves the classifier off, and `classes` then says nothing: the output is
    the feature map (n, h/32, w/32, 2048).
    `bn_momentum` is the share of the old value that a moving statistic keeps at each step.
    `zero_init_residual` starts the last convolution of every block at zero, so that the untrained
    network passes on what its shortcuts give (Goyal et al. 2017, arXiv:1706.02677, section 5.1,
    who start a block's last normalisation at zero: a pre-activated block ends in a convolution).
    `initializer` is Keras' name of the one that convolutions start from.
    """

    include_top: bool
    bn_momentum: float
    zero_init_residual: bool
    initializer: str


def ResNet50V2(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    **options: Unpack[Options],
) -> Any:
    """Build the network of 50 layers; pixels -1 to 1 in, logits (n, classes) out."""
    return network("resnet50v2", input_shape, classes=classes, **options)


def ResNet101V2(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    **options: Unpack[Options],
) -> Any:
    """Build the network of 101 layers; pixels -1 to 1 in, logits (n, classes) out."""
    return network("resnet101v2", input_shape, classes=classes, **options)


def ResNet152V2(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    **options: Unpack[Options],
) -> Any:
    """Build the network of 152 layers; pixels -1 to 1 in, logits (n, classes) out."""
    return network("resnet152v2", input_shape, classes=classes, **options)


def Small(input_shape: tuple[int, int, int] = (64, 64, 3), classes: int = 1000) -> Any:
    """Build a network for a first look in a minute; pixels 0 to 255 in, logits (n, classes) out.

    It has three stages of two blocks, a quarter as wide. The normalisation's moving statistics
    follow within some thirty steps: a first look has few hundred.
    """
    image = layers.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    x = body(x, blocks=(2, 2, 2), filters=16, bn_momentum=0.9)
    return keras.Model(image, head(x, classes), name="small")


def ResNet26V2Half(
    input_shape: tuple[int | None, int | None, int] = (128, 128, 3),
    classes: int = 1000,
    **options: Unpack[Options],
) -> Any:
    """Build a network for a few hundred photos; pixels -1 to 1 in, logits (n, classes) out.

    It has two blocks a stage, half as wide as the others: 3.5 million parameters, and an eighth of
    the multiply-adds of 50 layers. `docs/recipe.md` has what that is good for.
    """
    return network("resnet26v2_half", input_shape, classes=classes, filters=32, **options)


def network(
    name: str,
    input_shape: tuple[int | None, int | None, int],
    *,
    classes: int,
    include_top: bool = True,
    bn_momentum: float = 0.99,
    zero_init_residual: bool = False,
    initializer: str = "glorot_uniform",
    filters: int = 64,
) -> Any:
    """Build the network of that name in `DEPTHS`; the defaults are Keras applications'."""
    image = layers.Input(input_shape)
    x = body(
        image,
        blocks=DEPTHS[name],
        filters=filters,
        bn_momentum=bn_momentum,
        zero_init_residual=zero_init_residual,
        initializer=initializer,
    )
    if include_top:
        x = head(x, classes)
    return keras.Model(image, x, name=name)


def body(
    image: Any,
    *,
    blocks: tuple[int, ...],
    filters: int,
    bn_momentum: float = 0.99,
    zero_init_residual: bool = False,
    initializer: str = "glorot_uniform",
) -> Any:
    """Add all below the head, (n, h, w, 3) -> (n, h/32, w/32, c) for four stages.

    Stage i has `blocks[i]` blocks, and twice the width of the one before it; `filters` is the
    width of the first. Every stage but the last ends with a stride of 2.
    """
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = layers.Conv2D(filters, 7, strides=2, kernel_initializer=initializer, name="conv1_conv")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)  # (n, h/4, w/4, filters)
    for i, depth in enumerate(blocks):
        last = i == len(blocks) - 1
        for j in range(1, depth + 1):
            x = block(
                x,
                filters * 2**i,
                strides=2 if j == depth and not last else 1,
                project=j == 1,
                bn_momentum=bn_momentum,
                zero_init_residual=zero_init_residual,
                initializer=initializer,
                name=f"conv{i + 2}_block{j}",
            )
    return activated(x, "post", bn_momentum)


def block(
    x: Any,
    filters: int,
    *,
    strides: int,
    project: bool,
    bn_momentum: float,
    zero_init_residual: bool,
    initializer: str,
    name: str,
) -> Any:
    """Add a pre-activated bottleneck, (n, h, w, c) -> (n, h/strides, w/strides, 4 * filters).

    The shortcut is the input itself, or where the block strides a 1x1 pooling of it; in a stage's
    first block it is a learned projection, and that one reads the pre-activated input. The
    convolutions that a normalisation follows have no bias.
    """
    conv = partial(layers.Conv2D, kernel_initializer=initializer)
    start = "zeros" if zero_init_residual else initializer
    preact = activated(x, f"{name}_preact", bn_momentum)
    if project:
        shortcut = conv(4 * filters, 1, strides=strides, name=f"{name}_0_conv")(preact)
    elif strides > 1:
        shortcut = layers.MaxPooling2D(1, strides=strides, name=f"{name}_0_pool")(x)
    else:
        shortcut = x
    y = conv(filters, 1, use_bias=False, name=f"{name}_1_conv")(preact)
    y = activated(y, f"{name}_1", bn_momentum)
    y = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(y)
    y = conv(filters, 3, strides=strides, use_bias=False, name=f"{name}_2_conv")(y)
    y = activated(y, f"{name}_2", bn_momentum)
    y = layers.Conv2D(4 * filters, 1, kernel_initializer=start, name=f"{name}_3_conv")(y)
    return layers.Add(name=f"{name}_out")([shortcut, y])


def activated(x: Any, name: str, bn_momentum: float) -> Any:
    """Add normalisation and ReLU; the epsilon is Keras applications'."""
    x = layers.BatchNormalization(epsilon=1.001e-5, momentum=bn_momentum, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def head(x: Any, classes: int) -> Any:
    """Average over the places, (n, h, w, c) -> (n, c), and classify -> logits (n, classes)."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    # Logits stay in float32 under mixed precision, where a softmax would saturate.
    return layers.Dense(classes, dtype="float32", name="predictions")(x)
