"""ResNet-V2 as in Keras applications (`keras/src/applications/resnet.py`).

After He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027). In: the
shape of a photo and the number of classes. Out: a functional Keras model whose output is logits.
Layers bear the names of Keras applications, so that weights can be copied over by name; the tests
do so and hold the outputs equal. `fieldmark network resnet50v2` prints one.
"""

from __future__ import annotations

from typing import Any

from fieldmark.backend import keras

layers = keras.layers


def ResNet50V2(input_shape: tuple[int, int, int] = (224, 224, 3), classes: int = 1000) -> Any:
    """Build the network of 50 layers; pixels -1 to 1 in, logits (n, classes) out."""
    image = layers.Input(input_shape)
    x = body(image, blocks=(3, 4, 6, 3), filters=64)
    return keras.Model(image, head(x, classes), name="resnet50v2")


def Small(input_shape: tuple[int, int, int] = (64, 64, 3), classes: int = 1000) -> Any:
    """Build a network for a first look in a minute; pixels 0 to 255 in, logits (n, classes) out.

    It has three stages of two blocks, a quarter as wide. The normalisation's moving statistics
    follow within some thirty steps: a first look has few hundred.
    """
    image = layers.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    x = body(x, blocks=(2, 2, 2), filters=16, bn_momentum=0.9)
    return keras.Model(image, head(x, classes), name="small")


def body(image: Any, *, blocks: tuple[int, ...], filters: int, bn_momentum: float = 0.99) -> Any:
    """Add all below the head, (n, h, w, 3) -> (n, h/32, w/32, c) for four stages.

    Stage i has `blocks[i]` blocks, and twice the width of the one before it; `filters` is the
    width of the first. Every stage but the last ends with a stride of 2.
    """
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = layers.Conv2D(filters, 7, strides=2, name="conv1_conv")(x)
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
                name=f"conv{i + 2}_block{j}",
            )
    return activated(x, "post", bn_momentum)


def block(
    x: Any, filters: int, *, strides: int, project: bool, bn_momentum: float, name: str
) -> Any:
    """Add a pre-activated bottleneck, (n, h, w, c) -> (n, h/strides, w/strides, 4 * filters).

    The shortcut is the input itself, or where the block strides a 1x1 pooling of it; in a stage's
    first block it is a learned projection, and that one reads the pre-activated input.
    """
    preact = activated(x, f"{name}_preact", bn_momentum)
    if project:
        shortcut = layers.Conv2D(4 * filters, 1, strides=strides, name=f"{name}_0_conv")(preact)
    elif strides > 1:
        shortcut = layers.MaxPooling2D(1, strides=strides, name=f"{name}_0_pool")(x)
    else:
        shortcut = x
    y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_1_conv")(preact)
    y = activated(y, f"{name}_1", bn_momentum)
    y = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(y)
    y = layers.Conv2D(filters, 3, strides=strides, use_bias=False, name=f"{name}_2_conv")(y)
    y = activated(y, f"{name}_2", bn_momentum)
    y = layers.Conv2D(4 * filters, 1, name=f"{name}_3_conv")(y)
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
