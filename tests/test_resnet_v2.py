"""The family against Keras applications, random weights copied over by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fieldmark import resnet_v2
from fieldmark.backend import keras

FAMILY = {
    50: (resnet_v2.ResNet50V2, keras.applications.ResNet50V2),
    101: (resnet_v2.ResNet101V2, keras.applications.ResNet101V2),
    152: (resnet_v2.ResNet152V2, keras.applications.ResNet152V2),
}


def copy_by_name(reference: Any, network: Any, rng: np.random.Generator) -> None:
    """Give both networks the same weights; in a fresh one biases and statistics are all 0 or 1."""
    weighed = {layer.name for layer in network.layers if layer.weights}
    assert weighed == {layer.name for layer in reference.layers if layer.weights}
    for name in weighed:
        weights = [
            w + rng.uniform(0, 0.5, w.shape) * (w.ndim == 1)
            for w in reference.get_layer(name).get_weights()
        ]
        reference.get_layer(name).set_weights(weights)
        network.get_layer(name).set_weights(weights)


def maps(network: Any, photos: Any) -> dict[str, Any]:
    """Compute the feature map at the end of each block, and the network's output."""
    names = [layer.name for layer in network.layers if layer.name.endswith("_out")]
    outputs = {name: network.get_layer(name).output for name in [*names, "post_relu"]}
    whole = keras.Model(network.input, {**outputs, "output": network.output})
    return {
        name: keras.ops.convert_to_numpy(found)
        for name, found in whole(photos, training=False).items()
    }


@pytest.mark.parametrize(
    ("depth", "size", "top"),
    [
        (50, 224, True),
        (50, 107, True),
        (50, 75, False),
        pytest.param(101, 75, False, marks=pytest.mark.slow),
        pytest.param(101, 64, True, marks=pytest.mark.slow),
        pytest.param(152, 64, True, marks=pytest.mark.slow),
        pytest.param(152, 75, False, marks=pytest.mark.slow),
    ],
)
def test_the_family_equals_keras_applications(depth: int, size: int, top: bool) -> None:
    shape = (size, size, 3)
    ours, theirs = FAMILY[depth]
    reference = theirs(
        weights=None, input_shape=shape, include_top=top, classes=5, classifier_activation=None
    )
    network = ours(shape, classes=5, include_top=top)
    assert network.count_params() == reference.count_params()
    rng = np.random.default_rng(depth)
    copy_by_name(reference, network, rng)
    photos = rng.uniform(-1, 1, (2, *shape)).astype("float32")
    expected, found = maps(reference, photos), maps(network, photos)
    assert len(expected) == len(found) == (depth - 2) // 3 + 2
    for name, values in expected.items():
        largest = np.abs(values).max()
        assert largest > 1e-3
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(50, 25_613_800), (101, 44_675_560), (152, 60_380_648)]
)
def test_the_numbers_of_parameters_are_the_published_ones(depth: int, parameters: int) -> None:
    # as on keras.io/api/applications, with 1000 classes
    network = FAMILY[depth][0]()
    assert network.count_params() == parameters
    assert network.get_layer("predictions").count_params() == 2049 * 1000


def test_without_its_top_a_network_gives_a_map() -> None:
    network = resnet_v2.ResNet50V2((70, 96, 3), include_top=False)
    assert network.output_shape == (None, 3, 3, 2048)


def test_one_network_takes_photos_of_any_size() -> None:
    network = resnet_v2.ResNet50V2((None, None, 3), classes=4)
    for size in (33, 64):
        assert network(np.zeros((1, size, size, 3), "float32")).shape == (1, 4)


def test_the_options_reach_the_layers() -> None:
    network = resnet_v2.ResNet50V2(
        (32, 32, 3), 4, bn_momentum=0.9, zero_init_residual=True, initializer="he_normal"
    )
    assert {layer.momentum for layer in network.layers if hasattr(layer, "momentum")} == {0.9}
    last = [layer for layer in network.layers if layer.name.endswith("_3_conv")]
    assert len(last) == 16
    assert not any(np.any(layer.get_weights()[0]) for layer in last)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer in set(convolutions) - set(last):
        kernel = layer.get_weights()[0]
        wanted = np.sqrt(2 / np.prod(kernel.shape[:3]))  # He et al. 2015, arXiv:1502.01852
        assert kernel.std() == pytest.approx(wanted, rel=0.05)
    # A block's last convolution being zero, the block's output is its shortcut.
    found = maps(network, np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype("float32"))
    np.testing.assert_array_equal(found["conv2_block1_out"], found["conv2_block2_out"])


def test_the_defaults_are_those_of_keras_applications() -> None:
    network, reference = resnet_v2.ResNet50V2(), keras.applications.ResNet50V2(weights=None)
    for theirs in reference.layers:
        if theirs.weights:
            ours, wanted = network.get_layer(theirs.name).get_config(), theirs.get_config()
            for setting in ("momentum", "epsilon", "use_bias", "strides", "padding"):
                assert ours.get(setting) == wanted.get(setting), theirs.name
            kind = (wanted.get("kernel_initializer") or {}).get("class_name")
            assert (ours.get("kernel_initializer") or {}).get("class_name") == kind


@pytest.fixture
def mixed_precision() -> Iterator[None]:
    """Compute in bfloat16 for the length of a test."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("mixed_precision")
def test_logits_are_float32_under_mixed_precision() -> None:
    network = resnet_v2.Small((32, 32, 3), 4)
    assert network.get_layer("post_relu").output.dtype == "bfloat16"
    assert network.output.dtype == "float32"


def test_small_scales_the_pixels_itself_and_gives_logits() -> None:
    network = resnet_v2.Small((32, 32, 3), classes=3)
    scaled = keras.ops.convert_to_numpy(network.get_layer("scale")(np.array([[0.0, 255.0]])))
    assert scaled.tolist() == [[-1.0, 1.0]]
    assert network.layers[-1].activation is keras.activations.linear
    assert network.output_shape == (None, 3)
