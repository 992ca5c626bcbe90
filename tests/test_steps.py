"""Several devices of one process, and the kernels of PyTorch and JAX, take the steps of Keras.

TensorFlow's devices are parts of a CPU. PyTorch has one CPU only, which stands in for two: the same
code, with nothing to send. JAX's devices have tests in `test_joint`. As a program,
`test_steps.py OUT.npz`, it computes with the backend that KERAS_BACKEND names; with more words it
is fieldmark on a CPU in two parts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Command

CLASSES = 3
PARTS = 2


# ---- what a child computes ----------------------------------------------------------------------


def normalising() -> Any:
    """Build two stages with batch normalisation, for photos of any size."""
    from fieldmark import resnet_v2
    from fieldmark.backend import keras

    image = keras.layers.Input((None, None, 3))
    x = resnet_v2.body(image, blocks=(1, 1), filters=4, bn_momentum=0.9)
    return keras.Model(image, resnet_v2.head(x, CLASSES))


def half_frozen() -> Any:
    """Build the same with the normalisation of the first stage frozen."""
    from fieldmark.backend import keras

    network = normalising()
    for layer in network.layers[: len(network.layers) // 2]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return network


def standardising() -> Any:
    """Build a stage with the layers of BiT."""
    from fieldmark import bit
    from fieldmark.backend import keras

    conv = partial(bit.StdConv2D, use_bias=False)
    norm = partial(keras.layers.GroupNormalization, groups=4, epsilon=1e-5)
    image = keras.layers.Input((None, None, 3))
    x = bit.body(conv(8, 3, strides=2)(image), bit.Parts(conv, conv, norm), blocks=(2,), filters=8)
    return keras.Model(image, bit.top(x, CLASSES))


def unlike() -> Any:
    """Build a network of layers that kernels must leave alone, or take apart."""
    from fieldmark.backend import keras

    layers = keras.layers
    image = layers.Input((None, None, 3))
    x = layers.Rescaling(1 / 2)(image)
    x = layers.ZeroPadding2D(((0, 1), (2, 0)))(x)
    x = layers.Conv2D(4, 2)(x)  # an even kernel
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.BatchNormalization()(x)
    padded = layers.ZeroPadding2D((1, 2))(x)
    pooled = layers.MaxPooling2D(3, strides=1)(layers.ZeroPadding2D((1, 1))(x))
    x = layers.Add()([layers.Conv2D(6, (3, 5))(padded), layers.Conv2D(6, 1, groups=2)(pooled)])
    x = layers.Add()([layers.ZeroPadding2D(1)(x), layers.Conv2D(6, 1)(layers.ZeroPadding2D(1)(x))])
    x = layers.ReLU()(layers.GroupNormalization(-1)(layers.BatchNormalization()(x)))
    return keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def within() -> Any:
    """Build a network of which layers have layers within them, and one pools over rows alone."""
    from fieldmark.backend import keras

    class Block(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.norm = keras.layers.BatchNormalization()
            self.norm.build(shape)

        def call(self, x: Any) -> Any:  # which says nothing of training
            return self.norm(x)

    layers = keras.layers
    image = layers.Input((None, None, 3))
    x = layers.ZeroPadding2D(1)(Block()(layers.Conv2D(4, 3)(image)))
    x = layers.Permute((3, 1, 2))(x)
    x = layers.MaxPooling2D((2, 1), data_format="channels_first")(x)
    x = layers.Permute((2, 3, 1))(x)
    return keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


# Adam's epsilon is large, as small gradients are rounding and would count in full.
CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "clipped and averaged": (
        normalising,
        "AdamW",
        {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True, "epsilon": 1e-3},
    ),
    "accumulated": (half_frozen, "Adam", {"gradient_accumulation_steps": 2, "epsilon": 1e-3}),
    "of other layers": (unlike, "Adam", {"epsilon": 1e-3}),
    "of layers within layers": (within, "SGD", {}),
    "with momentum": (standardising, "SGD", {"momentum": 0.9, "nesterov": True}),
}

ODD = "clipped and averaged"  # the case of which a batch has another size


def drawn() -> list[tuple[Any, Any, Any]]:
    """Draw batches; the last is of another size, and cannot be shared equally."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.uniform(-1, 1, (photos, side, side, 3)).astype("float32"),
            rng.dirichlet(np.ones(CLASSES), photos).astype("float32"),
            rng.uniform(0.5, 1.5, photos).astype("float32"),
        )
        for photos, side in ((8, 32), (8, 32), (8, 32), (5, 25))
    ]


def divide() -> None:
    """Make several devices of TensorFlow's CPU."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * PARTS
    tf.config.set_logical_device_configuration(cpu, parts)


def main(target: Path) -> None:
    """Take the steps of every case in every way, and in Keras' own; then ask for answers."""
    from fieldmark import backend, inference, jax_kernels, lockstep, steps
    from fieldmark.backend import keras

    if backend.name == "tensorflow":
        divide()
        assert lockstep.devices() == [f"cpu:{i}" for i in range(PARTS)]
        ways = {"lockstep": steps.training_step, "keras": steps.plain_step}
    elif backend.name == "jax":
        ways = {"kernels": steps.training_step, "keras": steps.plain_step}
    else:
        two = partial(lockstep.lockstep, places=["cpu", "cpu"])
        ways = {"lockstep": two, "kernels": steps.training_step, "keras": steps.plain_step}
    kernels = "torch_kernels" if backend.name == "torch" else "steps"
    modules = {"lockstep": "lockstep", "kernels": kernels, "keras": "steps"}
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    found: dict[str, Any] = {}
    for case, (build, kind, options) in CASES.items():
        batches = drawn()
        if case != ODD or backend.name == "jax":
            batches.pop()  # all is traced again for its size
        for way, make in ways.items():
            keras.utils.set_random_seed(1)
            network = build()
            optimiser = getattr(keras.optimizers, kind)(0.01, **options)
            optimiser.build(network.trainable_variables)
            if way == "lockstep" and not lockstep.fits(network, optimiser):
                continue
            step = make(network, optimiser, loss=loss)
            if backend.name == "jax":
                assert jax_kernels.stateless(network).func is jax_kernels.forward
            assert step.__module__ == f"fieldmark.{modules[way]}"
            found[f"{case}/{way}/said"] = np.array([step(*batch) for batch in batches])
            answer = inference.forward(network) if way == "kernels" else network.predict_on_batch
            found[f"{case}/{way}/answers"] = np.concatenate([answer(x) for x, *_ in batches])
            for number, variable in enumerate((*network.variables, *optimiser.variables)):
                found[f"{case}/{way}/{number}"] = keras.ops.convert_to_numpy(variable)
    np.savez(target, **found)


# ---- what the parent compares -------------------------------------------------------------------


# On JAX, which compiles for a minute, `test_backends` holds the steps of the family equal.
@pytest.fixture(
    scope="module", params=["tensorflow", "torch", pytest.param("jax", marks=pytest.mark.slow)]
)
def computed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a backend has computed, in a process of its own."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    target = tmp_path_factory.mktemp("lockstep") / "out.npz"
    done = subprocess.run(
        [sys.executable, __file__, str(target)],
        env={**os.environ, "KERAS_BACKEND": request.param},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(target))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["lockstep", "kernels"])
def test_every_way_takes_the_steps_of_keras(computed: dict[str, Any], way: str, case: str) -> None:
    names = [name for name in computed if name.startswith(f"{case}/{way}/")]
    if not names:
        pytest.skip("TensorFlow's kernels and JAX's devices have modules of tests of their own")
    assert len(names) > 10
    for name in names:
        expected = computed[name.replace(f"/{way}/", "/keras/")]
        tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(computed[name], expected, rtol=0, atol=tolerance, err_msg=name)


@settings(deadline=None, max_examples=10)  # each is compiled
@given(
    side=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 100),
)
def test_of_equals_the_first_is_the_highest(
    side: tuple[int, int], size: tuple[int, int], strides: tuple[int, int], seed: int
) -> None:
    """XLA's own gradient goes there too."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from fieldmark import jax_kernels

    x = np.random.default_rng(seed).integers(0, 3, (2, *side, 2)).astype("float32")
    around = {"window_dimensions": (1, *size, 1), "window_strides": (1, *strides, 1)}
    theirs, to_theirs = jax.vjp(
        lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, padding="VALID", **around), x
    )
    ours, to_ours = jax.vjp(lambda x: jax_kernels.highest()(x, size, strides), x)
    np.testing.assert_array_equal(ours, theirs)
    upstream = np.arange(ours.size, dtype="float32").reshape(ours.shape)
    np.testing.assert_array_equal(to_ours(upstream)[0], to_theirs(upstream)[0])


def test_a_network_that_is_no_row_of_layers_is_left_to_keras() -> None:
    from fieldmark import kernels
    from fieldmark.backend import keras

    layers = keras.layers

    def graph(body: Callable[[Any], Any]) -> Any:
        image = layers.Input((8, 8, 3))
        return keras.Model(image, body(image))

    twice = layers.Conv2D(3, 1)
    inner = graph(layers.Conv2D(3, 1))
    pairs = layers.MultiHeadAttention(1, 3)

    def attending(x: Any) -> Any:
        x = layers.Reshape((64, 3))(x)
        return pairs(x, x)

    def penalising(layer: Any, x: Any) -> Any:  # when it is called, and not before
        layer.add_loss(keras.ops.mean(x**2))
        return x

    class Scaled(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any, scale: float = 1.0) -> Any:
            return x * scale

    penalised = layers.Conv2D(3, 1, activity_regularizer="l2")
    assert kernels.straight(graph(lambda x: layers.Add()([x, layers.Conv2D(3, 1)(x)])))
    for body in (
        lambda x: twice(twice(x)),
        inner,  # a network within a network
        lambda x: layers.Conv2D(3, 1)(x) + x,
        lambda x: {"logits": layers.Conv2D(3, 1)(x)},
        attending,  # a layer of two inputs
        penalised,
        lambda x: layers.Conv2D(3, 1)(inputs=x),
        lambda x: Scaled()(x, scale=30.0),  # what is given beside the tensor
        type("Penalty", (layers.Layer,), {"call": penalising})(),
    ):
        assert not kernels.straight(graph(body))
    assert not kernels.fits(graph(penalised), keras.optimizers.SGD())
    image = layers.Input((8, 8, 3))
    assert not kernels.straight(type("Own", (keras.Model,), {})(image, layers.Conv2D(3, 1)(image)))


def test_a_network_that_draws_at_random_is_left_to_keras() -> None:
    from fieldmark import lockstep
    from fieldmark.backend import keras

    image = keras.layers.Input((8, 8, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(image))
    network = keras.Model(image, keras.layers.Dense(CLASSES)(x))
    assert not lockstep.fits(network, keras.optimizers.SGD())
    assert lockstep.fits(normalising(), keras.optimizers.SGD())


# Plain SGD, as Adam makes a step of its own size of a gradient that is nothing but rounding.
VALUES = {
    "image-size": "32",
    "epochs": "2",
    "warmup": "1",
    "validate-every": "1",
    "optimiser": "sgd",
    "learning-rate": "0.0001",
}


@pytest.mark.slow
def test_all_devices_of_a_machine_are_used(fieldmark: Command, tmp_path: Path) -> None:
    assert fieldmark("draw", "birds", "--per-class", "10", "--size", "32").returncode == 0
    words = ["train", "birds", "--recipe", "scratch", "--network", "small", "--batch-size", "8"]
    for name, value in VALUES.items():
        words += [f"--{name}", value]
    assert fieldmark(*words, "--out", "one").returncode == 0
    subprocess.run(
        [sys.executable, __file__, *words, "--out", "several"],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    one, several = (
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("one", "several")
    )
    assert [line["epoch"] for line in several] == [1, 2]
    for a, b in zip(one, several, strict=True):
        for name in ("loss", "val_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        divide()
        from fieldmark.cli import main as fieldmark

        fieldmark(sys.argv[1:])
