"""The article's network and the article's training, as published, without a switch.

In: a folder of photos, one sub-folder a class. Out: the two data sets, the network and its
compilation, each one step of the article. `fieldmark train PHOTOS --recipe article --out RUN`
takes the steps in order.

The source is a blog post of 2025-03-12, "Week J2: ResNet50V2 in TensorFlow, hard-coded". It
differs from the reference network (He et al. 2016, arXiv:1603.05027, as in Keras applications) in
nine places, `docs/article.md` lists them; here each stands marked with its number, `# oddity 3`.
They are reproduced, not mended. Layer names are the published ones, because `summary.csv`, the
article's own table, is held against this file row by row.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fieldmark import backend, packages
from fieldmark.backend import keras
from fieldmark.console import say

if TYPE_CHECKING:
    from fieldmark.recipe import Recipe

layers = keras.layers


def ResNet50V2(input_shape: tuple[int, int, int] = (224, 224, 3), classes: int = 1000) -> Any:
    """Build the article's network; pixels 0 to 255 in, probabilities out.

    The shape is (height, width, channels); the article's is (224, 224, 3). The output has the
    shape (n, classes) and is a softmax, although the loss is told to expect logits.
    """
    # The article's table prints this name as `input_1`, as Keras 2 gave it.
    image = layers.Input(input_shape, name="input_layer")  # (n, 224, 224, 3)

    x = layers.ZeroPadding2D(1, name="conv1_pad")(image)  # oddity 1: the reference pads by 3
    x = layers.Conv2D(64, 7, strides=2, name="conv1")(x)  # (n, 110, 110, 64)
    x = layers.BatchNormalization(name="bn_conv1")(x)  # oddity 2: none here in the reference
    x = layers.Activation("relu", name="activation")(x)  # oddity 2
    x = layers.ZeroPadding2D(1, name="zero_padding2d")(x)
    x = layers.MaxPooling2D(3, strides=2, name="max_pooling2d")(x)  # (n, 55, 55, 64)

    x = first_block(x)
    x = block(x, project(x, 256, "conv9"), 64, add=2, bn=1, conv=6)
    # oddity 7: a stride in the third block, beside a strided convolution in its shortcut
    x = block(x, project(x, 256, "conv13", strides=2), 64, add=3, bn=4, conv=10, strides=2)
    # (n, 28, 28, 256)
    x = block(x, project(x, 512, "conv17"), 128, add=4, bn=7, conv=14)
    x = block(x, project(x, 512, "conv21"), 128, add=5, bn=10, conv=18)
    x = block(x, project(x, 512, "conv25"), 128, add=6, bn=13, conv=22)
    # oddity 7 again; and the article has no `conv29`
    x = block(x, project(x, 512, "conv30", strides=2), 128, add=7, bn=16, conv=26, strides=2)
    # (n, 14, 14, 512)
    x = block(x, project(x, 1024, "conv34"), 256, add=8, bn=19, conv=31)
    x = block(x, project(x, 1024, "conv38"), 256, add=9, bn=22, conv=35)
    x = block(x, project(x, 1024, "conv42"), 256, add=10, bn=25, conv=39)
    x = block(x, project(x, 1024, "conv46"), 256, add=11, bn=28, conv=43)
    # oddity 5: the reference has a sixth block in this stage
    # oddity 7: here the stride is a 1x1 pooling, named like a convolution, before the convolution
    pooled = layers.MaxPooling2D(1, strides=2, name="conv50")(x)
    x = block(x, project(pooled, 1024, "conv51"), 256, add=12, bn=31, conv=47, strides=2)
    # (n, 7, 7, 1024)
    x = block(x, project(x, 2048, "conv55"), 512, add=13, bn=34, conv=52)
    x = block(x, project(x, 2048, "conv59"), 512, add=14, bn=37, conv=56)
    x = block(x, project(x, 2048, "conv63"), 512, add=15, bn=40, conv=60)

    x = layers.BatchNormalization(name="bn43")(x)
    x = layers.Activation("relu", name="relu46")(x)  # (n, 7, 7, 2048)
    x = layers.GlobalAveragePooling2D(name="global_average_pooling2d")(x)  # (n, 2048)
    x = layers.Flatten(name="flatten")(x)  # changes nothing: the shape is already (n, 2048)
    x = layers.Dense(classes, activation="softmax", name="fc1000")(x)  # (n, classes)
    # oddity 9: 36.0 million parameters for 4 classes, the reference 23.6; 3 and 6 are why
    return keras.Model(image, x, name="ResNet50V2")


def first_block(x: Any) -> Any:
    """Add the first block: as `block`, with the names that the article gives in this one only."""
    y = layers.BatchNormalization(name="bn_stage1_conv2")(x)  # printed `bn_conv2` in the table
    y = layers.Activation("relu", name="activation_1")(y)
    y = layers.Conv2D(64, 1, name="conv2")(y)
    y = layers.BatchNormalization(name="bn_conv3")(y)
    y = layers.Activation("relu", name="activation_2")(y)
    y = layers.ZeroPadding2D(1, name="zero_padding2d_1")(y)
    y = layers.Conv2D(64, 3, name="conv3")(y)
    y = layers.BatchNormalization(name="bn_conv4")(y)
    y = layers.Activation("relu", name="activation_3")(y)
    y = layers.Conv2D(256, 1, name="conv4")(y)
    return layers.Add(name="add1")([y, project(x, 256, "conv5")])


def block(
    x: Any, shortcut: Any, filters: int, *, add: int, bn: int, conv: int, strides: int = 1
) -> Any:
    """Add a pre-activated bottleneck, (n, h, w, c) -> (n, h', w', 4 * filters).

    `add`, `bn` and `conv` are the numbers that the article's names of these layers begin with;
    its numbers of ReLU and padding layers follow from them.

    oddity 6: the convolutions have biases, which the normalisation behind them takes out again.
    oddity 8: the normalisation's epsilon is Keras' default of 0.001, the reference's 1.001e-5.
    """
    y = layers.BatchNormalization(name=f"bn{bn}")(x)
    y = layers.Activation("relu", name=f"relu{bn + 3}")(y)
    y = layers.Conv2D(filters, 1, name=f"conv{conv}")(y)
    y = layers.BatchNormalization(name=f"bn{bn + 1}")(y)
    y = layers.Activation("relu", name=f"relu{bn + 4}")(y)
    y = layers.ZeroPadding2D(1, name=f"pad{add - 1}")(y)
    y = layers.Conv2D(filters, 3, strides=strides, name=f"conv{conv + 1}")(y)
    y = layers.BatchNormalization(name=f"bn{bn + 2}")(y)
    y = layers.Activation("relu", name=f"relu{bn + 5}")(y)
    y = layers.Conv2D(4 * filters, 1, name=f"conv{conv + 2}")(y)
    return layers.Add(name=f"add{add}")([y, shortcut])


def project(x: Any, filters: int, name: str, *, strides: int = 1) -> Any:
    """Take the shortcut through a learned 1x1 convolution.

    oddity 3: the reference has one in the first block of a stage only, and elsewhere none.
    oddity 4: it reads the block's raw input, where the reference's reads the pre-activated one.
    """
    return layers.Conv2D(filters, 1, strides=strides, name=name)(x)


def devices() -> list[str]:
    """Take the article's step 1 and name the devices: memory grows, only the first GPU is used.

    JAX and PyTorch compute on their first GPU by themselves; `backend` lets JAX's memory grow.
    """
    tf = tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    try:
        if backend.name != "tensorflow":
            tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the photos then
        elif gpus:
            tf.config.experimental.set_memory_growth(gpus[0], True)
            tf.config.set_visible_devices(gpus[0], "GPU")
    except RuntimeError:  # only a process in which nothing was computed yet takes these settings
        say("TensorFlow runs already: which GPUs it uses, and their memory, stay as they are.")
    return backend.devices()


def read_photos(folder: str | os.PathLike[str], recipe: Recipe) -> tuple[Any, Any]:
    """Take step 3: the training and the validation photos, as batches of pixels 0 to 255.

    Keras squashes each photo to a square, bilinear and without antialiasing.
    """
    tensorflow()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        training, validation = (
            keras.utils.image_dataset_from_directory(
                os.fspath(folder),
                validation_split=recipe.validation_split,
                subset=subset,
                seed=recipe.split_seed,
                image_size=(recipe.image_size, recipe.image_size),
                batch_size=recipe.batch_size,
            )
            for subset in ("training", "validation")
        )
    say(printed.getvalue().rstrip())
    return training, validation


@contextlib.contextmanager
def reading(unchanged: Callable[[], None]) -> Iterator[None]:
    """Let `unchanged` say which photo TensorFlow has failed at, which seldom names it."""
    try:
        yield
    except tensorflow().errors.OpError:
        unchanged()
        raise


def pipeline(training: Any, validation: Any) -> tuple[Any, Any]:
    """Take step 6. What is shuffled are whole batches: the same photos meet in every epoch."""
    autotune = tensorflow().data.AUTOTUNE
    return (
        training.cache().shuffle(1000).prefetch(autotune),
        validation.cache().prefetch(autotune),
    )


def compile_network(network: Any, recipe: Recipe) -> None:
    """Take step 8. `from_logits=True`, although the network ends in a softmax."""
    network.compile(
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def decode(content: bytes) -> None:
    """Decode a file's bytes as `read_photos` will; raises a `ValueError` with the reason."""
    tf = tensorflow()
    try:
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        # The message stands between TensorFlow's names of the operation.
        reason = re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", error.message)
        raise ValueError(reason) from error


def tensorflow() -> Any:
    """Import TensorFlow, by which the article reads its photos on every backend."""
    packages.require(
        "tensorflow", extra="tensorflow", why="The article reads its photos with TensorFlow"
    )
    import tensorflow as tf  # seconds to import, and absent from other backends

    return tf
