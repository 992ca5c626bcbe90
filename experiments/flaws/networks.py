"""The network between the article's and the reference, each of the article's oddities by itself.

In: the shape of a photo, the number of classes, and the names of the flaws that the network has.
Out: a functional Keras network that ends in logits. With all of `NETWORK` it is the article's but
for the softmax, with none `fieldmark.resnet_v2.ResNet50V2`; `tests/test_flaws.py` holds both by
parameters and by outputs. The layers bear the reference's names.

The article's ninth oddity is the number of its parameters, which follows from the others.
"""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import Any

from fieldmark.backend import keras

layers = keras.layers

# By the numbers of the facts table in `docs/article.md`.
NETWORK = (
    "stem padding",  # 1
    "stem normalisation",  # 2
    "learned shortcuts",  # 3, of the blocks that neither begin a stage nor stride
    "raw shortcuts",  # 4
    "fifteen blocks",  # 5
    "biases",  # 6
    "striding shortcuts",  # 7; the places of the strides are the reference's: a stage's last block
    "epsilon",  # 8
)
# How a network begins, and how its normalisation follows.
BEGINNING = ("Glorot", "slow statistics")


def build(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    flaws: Set[str],
    width: int = 64,
) -> Any:
    """Build the network, (n, h, w, 3) -> logits (n, classes); `width` is the first stage's."""
    conv = partial(layers.Conv2D, kernel_initializer=initialiser(flaws))
    image = layers.Input(input_shape)
    x = layers.ZeroPadding2D(1 if "stem padding" in flaws else 3, name="conv1_pad")(image)
    x = conv(width, 7, strides=2, name="conv1_conv")(x)
    if "stem normalisation" in flaws:
        x = activated(x, "conv1", flaws)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, blocks in enumerate((3, 4, 5 if "fifteen blocks" in flaws else 6, 3)):
        for number in range(1, blocks + 1):
            x = block(
                x,
                width * 2**stage,
                first=number == 1,
                strides=2 if number == blocks and stage < 3 else 1,
                flaws=flaws,
                name=f"conv{stage + 2}_block{number}",
            )
    x = activated(x, "post", flaws)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(classes, dtype="float32", name="predictions")(x)
    return keras.Model(image, x, name="flawed")


def block(x: Any, filters: int, *, first: bool, strides: int, flaws: Set[str], name: str) -> Any:
    """Add a pre-activated bottleneck, (n, h, w, c) -> (n, h/strides, w/strides, 4 * filters)."""
    conv = partial(layers.Conv2D, kernel_initializer=initialiser(flaws))
    biased = "biases" in flaws
    preact = activated(x, f"{name}_preact", flaws)
    if first or ("striding shortcuts" if strides > 1 else "learned shortcuts") in flaws:
        # The article's twelfth block pools by 1x1 before a convolution without a stride; that is
        # the same numbers.
        read = x if "raw shortcuts" in flaws else preact
        shortcut = conv(4 * filters, 1, strides=strides, name=f"{name}_0_conv")(read)
    elif strides > 1:
        shortcut = layers.MaxPooling2D(1, strides=strides, name=f"{name}_0_pool")(x)
    else:
        shortcut = x
    y = conv(filters, 1, use_bias=biased, name=f"{name}_1_conv")(preact)
    y = activated(y, f"{name}_1", flaws)
    y = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(y)
    y = conv(filters, 3, strides=strides, use_bias=biased, name=f"{name}_2_conv")(y)
    y = activated(y, f"{name}_2", flaws)
    start = initialiser(flaws) if "Glorot" in flaws else "zeros"
    y = layers.Conv2D(4 * filters, 1, kernel_initializer=start, name=f"{name}_3_conv")(y)
    return layers.Add(name=f"{name}_out")([shortcut, y])


def activated(x: Any, name: str, flaws: Set[str]) -> Any:
    """Add normalisation and ReLU."""
    x = layers.BatchNormalization(
        epsilon=1e-3 if "epsilon" in flaws else 1.001e-5,
        momentum=0.99 if "slow statistics" in flaws else 0.9,
        name=f"{name}_bn",
    )(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def initialiser(flaws: Set[str]) -> str:
    """Return Keras' name of what the convolutions begin with."""
    return "glorot_uniform" if "Glorot" in flaws else "he_normal"
