"""The maps against real gradients, on every backend; where they lie; how they look.

As a program, `test_heatmaps.py IN.npz OUT.npz`, it finds the maps of the networks below with the
backend that KERAS_BACKEND names, and the same by that backend's gradients.
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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from fieldmark import heatmaps
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.heatmaps import Geometry, Mapper

CLASSES, SIZE, PHOTOS = 3, 32, 4
layers = keras.layers


# ---- the networks -------------------------------------------------------------------------------


def of_resnet_v2() -> Any:
    """Build one stage of two blocks and the family's head."""
    from fieldmark import resnet_v2

    image = layers.Input((SIZE, SIZE, 3))
    x = resnet_v2.body(image, blocks=(2,), filters=8, bn_momentum=0.9)
    return keras.Model(image, resnet_v2.head(x, CLASSES))


def of_bit() -> Any:
    """Build one stage of two blocks with group normalisation, as it is saved: folded."""
    from fieldmark import bit

    conv = partial(bit.StdConv2D, use_bias=False)
    norm = partial(layers.GroupNormalization, groups=4, epsilon=1e-5)
    image = layers.Input((SIZE, SIZE, 3))
    x = conv(8, 7, strides=2, name="conv1_conv")(image)
    x = bit.body(x, bit.Parts(conv, conv, norm), blocks=(2,), filters=8)
    return bit.folded(keras.Model(image, bit.top(x, CLASSES)))


def like_article() -> Any:
    """Build the article's end: a Flatten behind the mean, and a softmax in the last layer."""
    image = layers.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 7, strides=4, activation="relu", name="relu46")(image)
    x = layers.Flatten()(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="fc1000")(x))


NETWORKS: dict[str, Callable[[], Any]] = {
    "resnet_v2": of_resnet_v2,
    "bit": of_bit,
    "article": like_article,
}


def by_gradient(network: Any, feature_map: Any, number: int) -> Any:
    """Return Grad-CAM by its own formula and the backend's gradient, (n, h, w), not scaled."""
    from fieldmark import backend
    from fieldmark.reproduction import copy_head, logits_network

    whole = logits_network(network)
    copy_head(network, whole)
    tail = keras.Model(Mapper.of(network).features.output, whole.output)
    if backend.name == "tensorflow":
        import tensorflow as tf

        found = tf.convert_to_tensor(feature_map)
        with tf.GradientTape() as tape:
            tape.watch(found)
            logit = tail(found, training=False)[:, number]
        gradient = tape.gradient(logit, found).numpy()
    elif backend.name == "jax":
        import jax

        def summed(given: Any) -> Any:
            return tail(given, training=False)[:, number].sum()

        gradient = np.asarray(jax.jit(jax.grad(summed))(feature_map))
    else:
        import torch

        found = torch.tensor(feature_map, requires_grad=True)
        tail(found, training=False)[:, number].sum().backward()
        assert found.grad is not None
        gradient = found.grad.numpy()
    weights = gradient.mean(axis=(1, 2))  # (n, k)
    return np.maximum(np.einsum("nhwk,nk->nhw", feature_map, weights), 0)


def main(source: Path, target: Path) -> None:
    """Compute the maps of all networks from the arrays of one file into another."""
    arrays = dict(np.load(source))
    found: dict[str, Any] = {}
    for name, build in NETWORKS.items():
        network = build()
        network.set_weights([arrays[f"{name}/{i}"] for i in range(len(network.weights))])
        mapper = Mapper.of(network)
        feature_map = mapper(arrays["images"])
        made = heatmaps.maps(feature_map, mapper.kernel, np.arange(CLASSES))
        found[f"{name}/maps"] = made.values * made.strengths[..., None, None]
        places = feature_map.shape[1] * feature_map.shape[2]
        found[f"{name}/gradients"] = places * np.stack(
            [by_gradient(network, feature_map, number) for number in range(CLASSES)], axis=1
        )
        found[f"{name}/logits"] = mapper.logits(feature_map)
        if keras.config.backend() == "tensorflow":  # the others' are slow to compile
            found[f"{name}/output"] = network.predict_on_batch(arrays["images"])
    np.savez(target, **found)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a backend has computed; the others than TensorFlow each in a process of its own."""
    folder = tmp_path_factory.mktemp("heatmaps")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "images": rng.uniform(-1, 1, (PHOTOS, SIZE, SIZE, 3)).astype("float32")
    }
    for name, build in NETWORKS.items():
        for i, values in enumerate(build().get_weights()):
            # Biases and statistics are moved away from the 0 and 1 of a fresh network.
            moved = values + rng.uniform(0, 0.5, values.shape) * (values.ndim == 1)
            arrays[f"{name}/{i}"] = moved.astype("float32")
    np.savez(folder / "in.npz", **arrays)

    def of(backend: str) -> dict[str, Any]:
        target = folder / f"{backend}.npz"
        if backend == "tensorflow" and not target.exists():
            main(folder / "in.npz", target)
        elif not target.exists():
            if importlib.util.find_spec(backend) is None:
                pytest.skip(f"{backend} is not installed")
            done = subprocess.run(
                [sys.executable, __file__, str(folder / "in.npz"), str(target)],
                env={**os.environ, "KERAS_BACKEND": backend},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        return dict(np.load(target))

    return of


# ---- the mathematics ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_maps_are_those_of_the_backend_s_gradients(
    computed: Callable[[str], dict[str, Any]], backend: str
) -> None:
    if backend == "tensorflow" and keras.config.backend() != backend:
        pytest.skip("the tests run on another backend")
    found, reference = computed(backend), computed("tensorflow")
    for name in NETWORKS:
        maps, gradients = found[f"{name}/maps"], found[f"{name}/gradients"]
        assert maps.shape[:2] == (PHOTOS, CLASSES)
        assert maps.max() > 0.01  # there is something to compare
        assert np.ptp(maps, axis=(2, 3)).max() > 0.01
        np.testing.assert_allclose(maps, gradients, rtol=0, atol=1e-5 * maps.max())
        np.testing.assert_allclose(maps, reference[f"{name}/maps"], rtol=0, atol=1e-4)


def test_the_logits_are_the_network_s_before_any_softmax(
    computed: Callable[[str], dict[str, Any]],
) -> None:
    found = computed("tensorflow")
    for name in ("resnet_v2", "bit"):
        np.testing.assert_allclose(found[f"{name}/logits"], found[f"{name}/output"], atol=1e-5)
    raised = np.exp(found["article/logits"])
    softmax = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, found["article/output"], atol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_the_article_s_own_network_has_maps(kept: bool) -> None:
    from fieldmark.article import ResNet50V2
    from fieldmark.reproduction import logits_network

    network = ResNet50V2((64, 64, 3), 4)
    mapper = Mapper.of(logits_network(network) if kept else network)
    assert mapper.layer == "relu46"
    assert mapper.kernel.shape == (2048, 4)


@given(
    any_array(np.float32, (2, 3, 2, 4), elements=st.floats(0, 2.0**127, width=32)),
    any_array(np.float32, (4, 3), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
)
@settings(max_examples=200)
def test_no_finite_numbers_give_a_map_that_is_none(feature_map: Any, kernel: Any) -> None:
    found = heatmaps.maps(feature_map, kernel, np.array([[0, 2], [1, 1]]))
    assert found.values.shape == (2, 2, 3, 2)
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    assert (found.values >= 0).all()
    peaks = found.values.max(axis=(2, 3))
    assert ((peaks == 1) | ((peaks == 0) & (found.strengths == 0))).all()


def test_a_map_is_where_its_class_is_seen() -> None:
    feature_map = np.zeros((1, 2, 3, 2), np.float32)
    feature_map[0, 0, 1, 0] = 4
    feature_map[0, 1, 2, 0] = 2
    feature_map[0, 1, 0, 1] = 5
    kernel = np.array([[0.5, -1, 0], [0, 2, -3]], np.float32)
    values, strengths = heatmaps.maps(feature_map, kernel, np.array([0, 1, 2]))
    np.testing.assert_array_equal(values[0, 0], [[0, 1, 0], [0, 0, 0.5]])
    np.testing.assert_array_equal(values[0, 1], [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(values[0, 2], np.zeros((2, 3)))
    np.testing.assert_array_equal(strengths, [[2, 10, 0]])


@pytest.mark.parametrize(
    ("layer", "said"), [(1, "feature map relu46"), (-1, "weights of its layer fc1000")]
)
def test_damaged_weights_are_refused(layer: int, said: str) -> None:
    network = like_article()
    kernel, bias = network.layers[layer].get_weights()
    network.layers[layer].set_weights([kernel, bias + np.inf])
    with pytest.raises(FieldmarkError, match=said):
        Mapper.of(network)(np.ones((1, SIZE, SIZE, 3), np.float32))


def end_of(*last: Any) -> Any:
    """Build a network that ends in these layers."""
    image = layers.Input((8, 8, 3))
    x = layers.Conv2D(2, 3)(image)
    for layer in last:
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    "last",
    [
        [layers.Flatten(), layers.Dense(2)],
        [layers.GlobalMaxPooling2D(), layers.Dense(2)],
        [layers.GlobalAveragePooling2D(), layers.Dense(4, "relu"), layers.Dense(2)],
        [layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Softmax()],
        [layers.GlobalAveragePooling2D()],
    ],
)
def test_a_network_that_ends_otherwise_is_refused(last: list[Any]) -> None:
    with pytest.raises(FieldmarkError, match="ends in a mean over all places"):
        Mapper.of(end_of(*last))


def test_a_layer_called_twice_is_refused() -> None:
    twice, ending = layers.Conv2D(2, 1), [layers.GlobalAveragePooling2D(), layers.Dense(2)]
    for last in ([twice, twice], [twice, twice, layers.ReLU()]):
        with pytest.raises(FieldmarkError, match="is no plain graph"):
            Mapper.of(end_of(*last, *ending))


def test_a_network_without_a_graph_is_refused() -> None:
    with pytest.raises(FieldmarkError, match="is no plain graph"):
        Mapper.of(keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(2)]))


# ---- where they lie -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet26v2_half", 128, Geometry(0, 32)),
        ("small", 64, Geometry(0, 16)),
        ("article", 64, Geometry(2, 32)),
        ("resnetv2_50", 64, Geometry(0, 32)),
    ],
)
def test_the_cells_of_the_networks(name: Any, size: int, expected: Geometry) -> None:
    from fieldmark import network

    assert Mapper.of(network.build(name, image_size=size, classes=2)).geometry == expected


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_cell_lies_in_the_middle_of_what_it_sees(padding: str) -> None:
    """The pixels that a cell depends on are found by changing them, one row at a time."""
    image = layers.Input((64, 64, 3))
    x = layers.ZeroPadding2D(2)(image)
    x = layers.Conv2D(2, 5, strides=2, padding=padding, kernel_initializer="ones")(x)
    x = layers.Add()([x, layers.Conv2D(2, 1, kernel_initializer="ones")(x)])
    x = layers.AveragePooling2D(2, strides=2, padding=padding)(x)
    x = layers.Conv2D(2, 3, dilation_rate=2, kernel_initializer="ones")(x)
    network = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    mapper = Mapper.of(network)
    lit = np.zeros((64, 64, 64, 3), np.float32)
    lit[np.arange(64), np.arange(64)] = 1
    seen = mapper(lit)[:, :, 5, 0]  # (64 rows lit, h')
    for cell in (3, 4, 5):  # whose view ends before the border
        rows = np.flatnonzero(seen[:, cell])
        assert len(rows) > 20
        middle = (rows[0] + rows[-1]) / 2
        assert mapper.geometry.centres(cell + 1)[cell] == middle


def test_enlarged_runs_straight_from_cell_to_cell() -> None:
    mapper = Mapper.of(keras.Model(*ends(stride=4, size=9)))
    assert mapper.geometry == Geometry(0, 4)
    heat = np.array([[0, 1, 0], [0, 0, 0], [0.5, 0, 0]], np.float32)
    large = mapper.enlarged(heat, 10)
    assert large.shape == (10, 10)
    np.testing.assert_array_equal(large[:9:4, :9:4], heat)  # exact at the centres
    assert large[0, 2] == 0.5
    assert large[2, 4] == 0.5
    assert large[9, 9] == heat[2, 2]  # beyond the last cell it is the last one
    assert large[9, 0] == heat[2, 0]
    np.testing.assert_array_equal(mapper.enlarged(heat[None, None], 10)[0, 0], large)


def ends(*, stride: int, size: int) -> tuple[Any, Any]:
    """Return input and output of a network whose cells lie at 0, stride, 2 stride, ..."""
    image = layers.Input((size, size, 3))
    x = layers.Conv2D(2, 1, strides=stride)(image)
    return image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))


# ---- the picture --------------------------------------------------------------------------------


def test_an_overlay_shows_photo_map_and_line() -> None:
    square = np.zeros((20, 20, 3), np.uint8)
    square[:, 10:] = 255
    nothing = heatmaps.overlay(square, np.zeros((20, 20), np.float32))
    assert nothing.dtype == np.uint8
    assert (nothing[..., :1] == nothing).all()  # grey
    assert (nothing[:, :10] == heatmaps.GREYS[0]).all()
    assert (nothing[:, 10:] == heatmaps.GREYS[1]).all()
    heat = np.zeros((20, 20), np.float32)
    heat[5:15, 5:15] = 1
    shown = heatmaps.overlay(square, heat)
    np.testing.assert_array_equal(shown[:5], nothing[:5])
    assert (shown[5, 5:15] == 255).all()  # the line
    inside = shown[7:13, 7:13].astype(int)
    assert (inside[..., 0] - inside[..., 2] > 30).all()  # bright in this colour map is yellow
    assert (inside[:, 3:].sum(-1) > inside[:, :3].sum(-1)).all()  # the photo shines through


def test_the_edge_of_the_square_is_no_line() -> None:
    assert not heatmaps.outline(np.ones((4, 5), bool)).any()
    assert not heatmaps.outline(np.zeros((4, 5), bool)).any()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
