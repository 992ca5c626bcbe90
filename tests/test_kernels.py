"""The fused training step against Keras' own layers, optimisers and training loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import backend, bit, kernels, resnet_v2, steps
from fieldmark.backend import keras

pytestmark = pytest.mark.skipif(
    backend.name != "tensorflow", reason="the kernels are TensorFlow's; elsewhere Keras' own run"
)

CLASSES = 3
LOSS = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)


def small(size: int | None = 40, **options: Any) -> Any:
    """Build a member of the family: a block of each kind, and a second stage."""
    image = keras.layers.Input((size, size, 3))
    x = resnet_v2.body(image, blocks=(2, 1), filters=4, bn_momentum=0.9, **options)
    return keras.Model(image, resnet_v2.head(x, CLASSES))


def unlike() -> Any:
    """Build a network of layers that the kernels must leave alone, or take apart."""
    layers = keras.layers
    image = layers.Input((24, 24, 3))
    x = layers.Rescaling(1 / 2, name="scale")(image)
    x = layers.ZeroPadding2D(((0, 1), (2, 0)))(x)
    x = layers.Conv2D(4, 2)(x)  # an even kernel
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(scale=False)(x)
    padded = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(6, 3, dilation_rate=2)(padded)
    y = layers.Conv2D(6, 5)(padded)
    x = layers.Add()(
        [layers.Conv2D(6, 1, strides=2, groups=2)(x), layers.AveragePooling2D(2, padding="same")(y)]
    )
    x = layers.Add()([layers.ZeroPadding2D(1)(x), layers.ZeroPadding2D(1)(x)])
    x = layers.LayerNormalization()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.0)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(CLASSES)(x))


def batches(count: int, *, size: int = 40, photos: int = 6) -> list[tuple[Any, Any, Any]]:
    """Draw batches of noise with soft labels and uneven weights."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.uniform(-1, 1, (photos, size, size, 3)).astype("float32"),
            rng.dirichlet(np.ones(CLASSES), photos).astype("float32"),
            rng.uniform(0.5, 1.5, photos).astype("float32"),
        )
        for _ in range(count)
    ]


def twins(build: Callable[[], Any]) -> tuple[Any, Any]:
    """Build a network twice with the same random weights, vectors and statistics included."""
    keras.utils.set_random_seed(1)
    one, other = build(), build()
    rng = np.random.default_rng(1)
    weights = [w + rng.uniform(0, 0.5, w.shape) * (w.ndim == 1) for w in one.get_weights()]
    one.set_weights(weights)
    other.set_weights(weights)
    return one, other


def close(found: Any, expected: Any, *, part: float) -> None:
    """Hold two lists of arrays equal to a part of the largest value in each."""
    for one, other in zip(map(np.asarray, found), map(np.asarray, expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=part * max(np.abs(other).max(), 0.05))


@pytest.mark.parametrize("build", [small, unlike])
@pytest.mark.parametrize("frozen", ["nothing", "the first", "normalisation"])
def test_outputs_gradients_and_statistics_are_keras_own(
    build: Callable[[], Any], frozen: str
) -> None:
    import tensorflow as tf

    network = twins(build)[0]
    normal = [each for each in network.layers if type(each) is keras.layers.BatchNormalization]
    # A frozen normalisation uses its moving statistics in training too.
    for layer in {"nothing": [], "the first": network.layers[:8], "normalisation": normal}[frozen]:
        layer.trainable = False
    (images, labels, weights), *_ = batches(1, size=network.input.shape[1])
    values = [variable.value for variable in network.trainable_variables]

    def outcome(run: Callable[[], Any]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = run()
            loss = LOSS(labels, logits, sample_weight=weights)
        return logits, tape.gradient(loss, values)

    statistics: list[Any] = []

    def ours() -> Any:
        logits, found = kernels.forward(network, tf.constant(images))
        statistics.extend(found)
        return logits

    logits, gradients = outcome(ours)
    moved = {id(old): (old - (old - new) * share).numpy() for old, new, share in statistics}
    expected, true_gradients = outcome(lambda: network(images, training=True))
    close([logits], [expected], part=1e-5)
    close(gradients, true_gradients, part=1e-4)
    assert len(moved) == 2 * sum(each.trainable and each.scale for each in normal)
    for value in (variable.value for variable in network.non_trainable_variables):
        if id(value) in moved:
            np.testing.assert_allclose(value, moved[id(value)], rtol=1e-5, atol=1e-6)


def wide() -> Any:
    """Build a network with a convolution of many filters."""
    layers = keras.layers
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.Conv2D(8, 1)(image))
    x = layers.Conv2D(kernels.MANY_FILTERS, (3, 5))(layers.ZeroPadding2D((1, 2))(x))
    return keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def standardised() -> Any:
    """Build a network with the layers of BiT: standardised kernels, normalised groups."""
    layers = keras.layers
    image = layers.Input((40, 40, 3))
    conv = partial(bit.StdConv2D, use_bias=False)
    norm = partial(layers.GroupNormalization, groups=4, epsilon=1e-5)
    x = conv(8, 3, strides=2)(layers.Rescaling(2.0)(image))
    x = bit.body(x, bit.Parts(conv, conv, norm), blocks=(1, 1), filters=8)
    return keras.Model(image, bit.top(x, CLASSES))


@pytest.mark.parametrize("build", [small, unlike, wide, standardised])
def test_bfloat16_gives_nearly_the_gradients_of_float32(build: Callable[[], Any]) -> None:
    import tensorflow as tf

    network = twins(build)[0]
    (images, labels, weights), *_ = batches(1, size=network.input.shape[1])
    values = [variable.value for variable in network.trainable_variables]

    def forward() -> Any:
        logits, statistics = kernels.forward(network, tf.constant(images))
        assert {batch.dtype for _, batch, _ in statistics} <= {tf.float32}
        return logits

    def outcome(precision: kernels.Precision, run: Callable[[], Any]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            with kernels.computing(network, precision):
                logits = run()
            loss = LOSS(labels, logits, sample_weight=weights)
        gradients = tape.gradient(loss, values)
        assert {each.dtype for each in [logits, loss, *gradients]} == {tf.float32}
        return logits, np.concatenate([np.ravel(each) for each in gradients])

    logits, gradient = outcome("bfloat16", forward)
    true_logits, true_gradient = outcome("float32", forward)
    close([logits], [true_logits], part=5e-2)
    error = np.linalg.norm(gradient - true_gradient)
    assert 0 < error < 0.3 * np.linalg.norm(true_gradient)
    # Keras' own mixed precision is no nearer.
    _, own = outcome("bfloat16", lambda: network(images, training=True))
    assert error < 1.2 * np.linalg.norm(own - true_gradient)


def test_a_network_trained_in_bfloat16_is_a_plain_one_of_float32(tmp_path: Path) -> None:
    network, other = twins(small)
    figures = []
    plan: list[tuple[Any, kernels.Precision]] = [(network, "bfloat16"), (other, "float32")]
    for each, precision in plan:
        optimiser = OPTIMISERS["adamw"]()
        step = steps.training_step(each, optimiser, loss=LOSS, precision=precision)
        figures.append([step(*batch).loss for batch in batches(4) * 5])
        assert {str(v.dtype) for v in [*each.variables, *optimiser.variables[2:]]} == {"float32"}
        assert {layer.compute_dtype for layer in each.layers} == {"float32"}
    np.testing.assert_allclose(figures[0], figures[1], rtol=0.05)
    assert figures[0] != figures[1]
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    assert {layer.dtype_policy.name for layer in again.layers} == {"float32"}
    images = batches(1)[0][0]
    close([again(images)], [network(images)], part=1e-6)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : avx amx_bf16 amx_tile", "bfloat16"), ("flags : avx512_bf16 amx_tile", "float32")],
)
def test_bfloat16_is_fast_where_the_processor_has_a_unit_for_it(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "devices", list)
    monkeypatch.setattr(kernels, "PROCESSOR", tmp_path / "cpuinfo")
    assert kernels.fast_precision() == "float32"  # the machine does not say
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n", encoding="ascii")
    assert kernels.fast_precision() == expected


OPTIMISERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(0.003, epsilon=1e-5),
    "adamw": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.0, 80, warmup_target=0.001, warmup_steps=20),
        weight_decay=0.1,
        epsilon=1e-5,  # else the rounding in a gradient that should be 0 becomes a whole step
        global_clipnorm=0.5,
        use_ema=True,
        ema_momentum=0.9,
    ),
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.02, momentum=0.9, use_ema=True),
    "nesterov": lambda: keras.optimizers.SGD(
        0.002, momentum=0.9, nesterov=True, weight_decay=1e-2, global_clipnorm=0.5
    ),
    "not fused": lambda: keras.optimizers.Adam(0.003, amsgrad=True, clipnorm=1.0),
    "not fused, accumulating": lambda: keras.optimizers.AdamW(
        0.003, gradient_accumulation_steps=3, global_clipnorm=0.5, use_ema=True
    ),
    "not known": lambda: keras.optimizers.RMSprop(0.003),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_hundred_updates_are_the_optimisers_own(name: str) -> None:
    """The same gradients to both, so that nothing but the update can differ."""
    import tensorflow as tf

    shapes = [(3, 3, 4, 8), (8,), (16, 5), (5,)]
    rng = np.random.default_rng(2)
    start = [rng.normal(size=shape).astype("float32") for shape in shapes]
    variables, others = (
        [keras.Variable(s, name=f"v{i}") for i, s in enumerate(start)] for _ in "ab"
    )
    optimisers = []
    for each in (variables, others):
        optimiser = OPTIMISERS[name]()
        optimiser.exclude_from_weight_decay(var_list=[each[1], each[3]])
        optimiser.build(each)
        optimisers.append(optimiser)
    assert kernels.fusable(optimisers[0], variables) == (not name.startswith("not"))

    @tf.function(jit_compile=False)  # type: ignore[untyped-decorator]
    def both(*gradients: Any) -> None:
        kernels.update(optimisers[0], gradients, variables)
        optimisers[1].apply(gradients, others)

    for _ in range(100):
        both(*(tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes))
    assert int(optimisers[0].iterations) == 100 // (optimisers[0].gradient_accumulation_steps or 1)
    # The kernel takes 1 - 0.999 in float32, 1.3e-5 off; Keras in float64.
    close(variables, others, part=3e-5)
    close(optimisers[0].variables, optimisers[1].variables, part=3e-5)


@pytest.mark.parametrize("name", ["adamw", pytest.param("nesterov", marks=pytest.mark.slow)])
def test_a_hundred_steps_are_keras_own(name: str) -> None:
    network, other = twins(small)
    optimisers = []
    for each in (network, other):
        optimiser = OPTIMISERS[name]()
        kernels.keep_decay_off(optimiser, each)
        optimisers.append(optimiser)
    ours = kernels.fused_step(network, built(optimisers[0], network), LOSS)
    theirs = steps.plain_step(other, optimisers[1], LOSS)
    drawn = batches(4)
    found = np.array([ours(*batch) for batch in drawn * 25])
    expected = np.array([theirs(*batch) for batch in drawn * 25])
    # Keras itself, its weights changed by 1e-7, ends 0.0006 apart in the loss and 0.005 in the
    # output: sooner or later a ReLU falls on the other side.
    np.testing.assert_allclose(found[:25], expected[:25], rtol=1e-4)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-2)
    images = drawn[0][0]
    close([network(images)], [other(images)], part=2e-2)


def built(optimiser: Any, network: Any) -> Any:
    """Build the optimiser for the network's variables."""
    optimiser.build(network.trainable_variables)
    return optimiser


def test_a_change_of_size_is_not_traced_again() -> None:
    network = small()
    traced = []

    def loss(labels: Any, logits: Any, sample_weight: Any) -> Any:
        traced.append(1)
        return LOSS(labels, logits, sample_weight=sample_weight)

    step = steps.training_step(network, keras.optimizers.SGD(0.1), loss=loss)
    for size, photos in [(40, 4), (64, 4), (40, 3), (33, 2)]:
        assert np.isfinite(step(*batches(1, size=size, photos=photos)[0]).loss)
    assert len(traced) == 1


def test_the_same_seed_gives_the_same_bits() -> None:
    def outcome() -> list[Any]:
        keras.utils.set_random_seed(3)
        network = small()
        optimiser = OPTIMISERS["adamw"]()
        step = steps.training_step(network, optimiser, loss=LOSS)
        found = [step(*batch) for batch in batches(10)]
        values = [np.array(each) for each in [*network.variables, *optimiser.variables]]
        return [np.array(found), *values]

    for one, other in zip(outcome(), outcome(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_no_numbers_show_in_the_loss(frozen: bool) -> None:
    network = small()
    for layer in network.layers:
        layer.trainable = not (frozen and type(layer) is keras.layers.BatchNormalization)
    step = steps.training_step(network, OPTIMISERS["adamw"](), loss=LOSS)
    images, labels, weights = batches(1)[0]
    assert frozen or np.isnan(step(images * np.nan, labels, weights).loss)
    step(images * np.nan, labels, weights)
    assert np.isnan(step(images, labels, weights).loss)


def test_decay_keeps_off_biases_and_normalisation() -> None:
    network = small()
    optimiser = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    kernels.keep_decay_off(optimiser, network)
    optimiser.build(network.trainable_variables)
    before = [np.array(each) for each in network.trainable_variables]
    nothing = [keras.ops.zeros(each.shape) for each in before]
    kernels.update(optimiser, nothing, network.trainable_variables)
    for variable, start in zip(network.trainable_variables, before, strict=True):
        expected = start * 0.95 if variable.name == "kernel" else start
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


def test_averaged_weights_stand_in_for_the_trained_ones_for_a_while() -> None:
    network = small()
    optimiser = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    step = steps.training_step(network, optimiser, loss=LOSS)
    history = []
    for drawn in batches(3):
        step(*drawn)
        history.append([np.array(each) for each in network.trainable_variables])
    averages = [a / 4 + b / 4 + c / 2 for a, b, c in zip(*history, strict=True)]
    with pytest.raises(KeyError), kernels.averaged(optimiser):
        close(network.trainable_variables, averages, part=1e-5)
        raise KeyError  # whatever happens within, the trained weights come back
    for variable, trained in zip(network.trainable_variables, history[-1], strict=True):
        np.testing.assert_array_equal(variable, trained)


PLAIN = """
import sys
import numpy as np
import keras
network = keras.saving.load_model(sys.argv[1])
with np.load(sys.argv[2]) as arrays:
    found = np.asarray(network(arrays["images"]))
    np.testing.assert_allclose(found, arrays["logits"], rtol=1e-4, atol=1e-4)
assert not any(name.startswith("fieldmark") for name in sys.modules)
"""


def test_what_is_saved_loads_in_plain_keras_on_another_backend(tmp_path: Path) -> None:
    network = small()
    step = steps.training_step(network, OPTIMISERS["adamw"](), loss=LOSS)
    images, labels, weights = batches(1)[0]
    step(images, labels, weights)
    network.save(tmp_path / "network.keras")
    np.savez(tmp_path / "arrays.npz", images=images, logits=np.asarray(network(images)))
    subprocess.run(
        [sys.executable, "-c", PLAIN, tmp_path / "network.keras", tmp_path / "arrays.npz"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        check=True,
    )


STEPS = """
import numpy as np
from fieldmark import kernels, resnet_v2, steps
from fieldmark.backend import keras
network = resnet_v2.Small((16, 16, 3), 3)
optimiser = keras.optimizers.AdamW(1e-2, global_clipnorm=1.0, use_ema=True)
kernels.keep_decay_off(optimiser, network)
step = steps.training_step(
    network,
    optimiser,
    loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    precision="bfloat16",
)
rng = np.random.default_rng(0)
images = rng.uniform(0, 255, (6, 16, 16, 3)).astype("float32")
labels = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]
losses = [step(images, labels, np.ones(6, "float32")).loss for _ in range(12)]
assert losses[-1] < losses[0] / 2, losses
trained = np.array(network.trainable_variables[0])
with kernels.averaged(optimiser):
    assert np.abs(np.array(network.trainable_variables[0]) - trained).max() > 0
assert np.array_equal(np.array(network.trainable_variables[0]), trained)
assert {layer.compute_dtype for layer in network.layers} == {"float32"}
"""


# In float32 `test_backends.py` holds their steps equal to TensorFlow's.
@pytest.mark.parametrize("backend_name", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_the_other_backends_take_keras_own_step_in_bfloat16(backend_name: str) -> None:
    pytest.importorskip(backend_name)
    environment = {**os.environ, "KERAS_BACKEND": backend_name}
    subprocess.run([sys.executable, "-c", STEPS], env=environment, check=True)


def test_what_the_fused_step_would_leave_out_is_left_to_keras() -> None:
    adam = keras.optimizers.Adam()
    assert kernels.fits(small(), adam)
    assert not kernels.fits(small(), keras.optimizers.Adam(loss_scale_factor=8.0))
    image = keras.layers.Input((8, 8, 3))
    penalty = keras.layers.Conv2D(2, 1, kernel_regularizer="l2")
    assert not kernels.fits(keras.Model(image, penalty(image)), adam)
    half = keras.layers.Conv2D(2, 1, dtype="mixed_bfloat16")
    assert not kernels.fits(keras.Model(image, half(image)), adam)
