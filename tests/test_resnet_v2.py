"""The family against Keras applications, random weights copied over by name."""

import numpy as np
import pytest

from fieldmark import resnet_v2
from fieldmark.backend import keras


@pytest.mark.parametrize("size", [64, 75])
def test_resnet50v2_equals_keras_applications(size: int) -> None:
    shape = (size, size, 3)
    reference = keras.applications.ResNet50V2(
        weights=None, input_shape=shape, classes=5, classifier_activation=None
    )
    network = resnet_v2.ResNet50V2(shape, classes=5)
    assert network.count_params() == reference.count_params()
    rng = np.random.default_rng(0)
    for layer in reference.layers:
        if layer.weights:  # a fresh network's biases and moving statistics are all 0 or 1
            weights = [
                w + rng.uniform(0, 0.5, w.shape) * (w.ndim == 1) for w in layer.get_weights()
            ]
            layer.set_weights(weights)
            network.get_layer(layer.name).set_weights(weights)
    photos = rng.uniform(-1, 1, (2, *shape)).astype("float32")
    expected = np.asarray(reference(photos, training=False))
    found = np.asarray(network(photos, training=False))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_resnet50v2_has_the_published_number_of_parameters() -> None:
    # 23,564,800 below the head (keras.io/api/applications) and 2048 x 4 + 4 in it
    assert resnet_v2.ResNet50V2(classes=4).count_params() == 23_564_800 + 8_196


def test_small_scales_the_pixels_itself_and_gives_logits() -> None:
    network = resnet_v2.Small((32, 32, 3), classes=3)
    assert network.get_layer("scale")(np.array([[0.0, 255.0]])).numpy().tolist() == [[-1.0, 1.0]]
    assert network.layers[-1].activation is keras.activations.linear
    assert network.output_shape == (None, 3)
