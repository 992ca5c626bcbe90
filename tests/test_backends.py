"""The three backends: the same networks and weights give the same logits, gradients and steps.

As a program, `test_backends.py IN.npz OUT.npz`, it computes with the backend that KERAS_BACKEND
names: for both families logits in inference, the gradients of the cross-entropy in training, and
all variables after two training steps.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CLASSES, SIZE, PHOTOS = 3, 32, 4
OTHERS = ("jax", "torch")
Arrays = dict[str, Any]


# ---- the networks, built alike on every backend -------------------------------------------------


def of_resnet_v2() -> Any:
    """Build one stage of two blocks, with batch normalisation."""
    from fieldmark import resnet_v2
    from fieldmark.backend import keras

    image = keras.layers.Input((SIZE, SIZE, 3))
    x = resnet_v2.body(image, blocks=(2,), filters=8, bn_momentum=0.9)
    return keras.Model(image, resnet_v2.head(x, CLASSES))


def of_bit() -> Any:
    """Build one stage of two blocks, with group normalisation and standardised kernels."""
    from fieldmark import bit
    from fieldmark.backend import keras

    conv = partial(bit.StdConv2D, use_bias=False)
    norm = partial(keras.layers.GroupNormalization, groups=4, epsilon=1e-5)
    image = keras.layers.Input((SIZE, SIZE, 3))
    x = conv(8, 7, strides=2, name="conv1_conv")(image)
    x = bit.body(x, bit.Parts(conv, conv, norm), blocks=(2,), filters=8)
    return keras.Model(image, bit.top(x, CLASSES))


FAMILIES: dict[str, Callable[[], Any]] = {"resnet_v2": of_resnet_v2, "bit": of_bit}


def given(build: Callable[[], Any], family: str, arrays: Arrays) -> Any:
    """Build a network and give it the weights of the file."""
    network = build()
    network.set_weights([arrays[f"{family}/{i}"] for i in range(len(network.weights))])
    return network


# ---- what a child computes ----------------------------------------------------------------------


def gradients(network: Any, images: Any, labels: Any) -> list[Any]:
    """Return the gradients of the cross-entropy in training, by the backend's own means."""
    from fieldmark import backend
    from fieldmark.backend import keras

    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    if backend.name == "tensorflow":
        import tensorflow as tf

        variables = [variable.value for variable in network.trainable_variables]
        with tf.GradientTape() as tape:
            value = loss(labels, network(images, training=True))
        found = tape.gradient(value, variables)
    elif backend.name == "jax":
        import jax

        def of(trainable: Any) -> Any:
            kept = [variable.value for variable in network.non_trainable_variables]
            logits, _ = network.stateless_call(trainable, kept, images, training=True)
            return loss(labels, logits)

        _, found = jax.jit(jax.value_and_grad(of))([v.value for v in network.trainable_variables])
    else:
        network.zero_grad()
        loss(labels, network(images, training=True)).backward()
        found = [variable.value.grad for variable in network.trainable_variables]
    return [keras.ops.convert_to_numpy(each) for each in found]


def steps(network: Any, images: Any, labels: Any, weights: Any) -> tuple[list[Any], Arrays]:
    """Take two steps with all that AdamW can do; return what they said, and all variables."""
    from fieldmark import kernels, steps
    from fieldmark.backend import keras

    optimiser = keras.optimizers.AdamW(
        0.01,
        weight_decay=0.1,
        global_clipnorm=1.0,
        use_ema=True,
        ema_momentum=0.8,
        # Adam moves a weight by its rate however small the gradient, unless that is far below
        # epsilon: with Keras' 1e-7, gradients that are nothing but rounding would count in full.
        epsilon=1e-3,
    )
    kernels.keep_decay_off(optimiser, network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    step = steps.training_step(network, optimiser, loss=loss)
    said = [list(step(images, labels, weights)) for _ in range(2)]
    found: Arrays = {str(i): values for i, values in enumerate(network.get_weights())}
    with kernels.averaged(optimiser):
        found |= {f"averaged {i}": values for i, values in enumerate(network.get_weights())}
    return said, found


def main(source: Path, target: Path) -> None:
    """Compute everything from the arrays of one file into another."""
    from fieldmark import backend
    from fieldmark.backend import keras

    assert backend.name == os.environ["KERAS_BACKEND"]
    arrays = dict(np.load(source))
    images, labels, weights = (arrays[name] for name in ("images", "labels", "weights"))
    found: Arrays = {}
    for family, build in FAMILIES.items():
        network = given(build, family, arrays)
        logits = network(images, training=False)
        found[f"{family}/logits"] = keras.ops.convert_to_numpy(logits)
        each = gradients(network, images, labels)
        found |= {f"{family}/gradient {i}": values for i, values in enumerate(each)}
        # The moving statistics have moved; the steps begin with those of the file.
        network = given(build, family, arrays)
        found[f"{family}/said"], after = steps(network, images, labels, weights)
        found |= {f"{family}/after {name}": values for name, values in after.items()}
    np.savez(target, **found)


# ---- what the parent compares -------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Arrays]:
    """What a backend has computed, each in a process of its own, all from the same arrays."""
    from fieldmark.backend import keras

    folder = tmp_path_factory.mktemp("backends")
    rng = np.random.default_rng(0)
    arrays: Arrays = {
        "images": rng.uniform(-1, 1, (PHOTOS, SIZE, SIZE, 3)).astype("float32"),
        "labels": np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, PHOTOS)],
        "weights": rng.uniform(0.5, 1.5, PHOTOS).astype("float32"),
    }
    keras.utils.set_random_seed(0)  # some weights hardly move in two steps
    for family, build in FAMILIES.items():
        for i, values in enumerate(build().get_weights()):
            # Biases, scales and statistics are moved away from the 0 and 1 of a fresh network.
            moved = values + rng.uniform(0, 0.5, values.shape) * (values.ndim == 1)
            arrays[f"{family}/{i}"] = moved.astype("float32")
    np.savez(folder / "in.npz", **arrays)
    known: dict[str, Arrays] = {}

    def of(backend: str) -> Arrays:
        if backend not in known:
            if importlib.util.find_spec(backend) is None:
                pytest.skip(f"{backend} is not installed")
            target = folder / f"{backend}.npz"
            done = subprocess.run(
                [sys.executable, __file__, str(folder / "in.npz"), str(target)],
                env={**os.environ, "KERAS_BACKEND": backend},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            known[backend] = dict(np.load(target))
        return known[backend]

    known["in"] = arrays
    return of


def named(arrays: Arrays, prefix: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name.startswith(prefix)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", OTHERS)
def test_the_logits_are_the_same(
    computed: Callable[[str], Arrays], family: str, other: str
) -> None:
    expected, found = computed("tensorflow"), computed(other)
    logits = expected[f"{family}/logits"]
    assert logits.shape == (PHOTOS, CLASSES)
    assert np.ptp(logits, axis=0).max() > 0.01  # the photos are told apart
    np.testing.assert_allclose(found[f"{family}/logits"], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", OTHERS)
def test_the_gradients_are_the_same(
    computed: Callable[[str], Arrays], family: str, other: str
) -> None:
    """To 1e-3 of the largest in each array, and where all are rounding, of next to nothing."""
    expected = named(computed("tensorflow"), f"{family}/gradient ")
    found = named(computed(other), f"{family}/gradient ")
    assert list(found) == list(expected)
    largest = max(np.abs(values).max() for values in expected.values())
    assert largest > 0.01
    for name, values in expected.items():
        # A bias in front of a normalisation has no gradient but what rounding leaves of it.
        tolerance = 1e-3 * np.abs(values).max() + 1e-6 * largest
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", OTHERS)
def test_training_steps_lead_to_the_same_weights(
    computed: Callable[[str], Arrays], family: str, other: str
) -> None:
    expected = named(computed("tensorflow"), f"{family}/after ")
    found = named(computed(other), f"{family}/after ")
    assert list(found) == list(expected)
    count = len(expected) // 2  # the averaged ones come behind
    for i in range(count):
        before = computed("in")[f"{family}/{i}"]
        after, averaged = (expected[f"{family}/after {k}{i}"] for k in ("", "averaged "))
        if before.ndim > 1:  # the steps are fifty times as long as what they may differ by
            assert np.abs(after - before).max() > 0.005
            assert np.abs(after - averaged).max() > 0.0005
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4, err_msg=name)
    said = computed("tensorflow")[f"{family}/said"]
    np.testing.assert_allclose(computed(other)[f"{family}/said"], said, rtol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
