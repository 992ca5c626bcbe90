"""A network outside of the training step: exact means, statistics of the weights as they are."""

from __future__ import annotations

import numpy as np
import pytest

from fieldmark import inference
from fieldmark.backend import keras
from test_loop import CLASSES, VALIDATION, tiny, training


def test_an_evaluation_is_the_mean_over_the_photos() -> None:
    network = tiny()
    found = inference.evaluate(inference.forward(network), VALIDATION)
    images = np.concatenate([VALIDATION.batch(0, step)[0] for step in range(2)])[:13]
    logits = np.asarray(network(images, training=False), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(13), VALIDATION.labels]).mean()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.accuracy == pytest.approx((logits.argmax(1) == VALIDATION.labels).mean())


def test_an_evaluation_without_numbers_has_no_figure(recwarn: pytest.WarningsRecorder) -> None:
    found = inference.evaluate(lambda images: np.full((len(images), CLASSES), np.nan), VALIDATION)
    assert np.isnan(found.loss)
    found = inference.evaluate(lambda images: np.full((len(images), CLASSES), np.inf), VALIDATION)
    assert np.isnan(found.loss)
    assert not recwarn.list


def test_statistics_are_those_of_all_photos_of_the_batches() -> None:
    network, source = tiny(), training(1)[0]
    before = [np.array(v) for v in network.variables]
    images = np.concatenate([source.batch(4, step)[0] for step in range(2)])
    before_bn = keras.Model(network.input, network.get_layer("conv").output)
    values = np.asarray(before_bn(images)).reshape(-1, 6)
    with inference.statistics(network, source, 4, 2):
        layer = network.get_layer("bn")
        np.testing.assert_allclose(layer.moving_mean, values.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, values.var(0), rtol=1e-4)
        assert layer.momentum == 0.9
    for variable, values in zip(network.variables, before, strict=True):
        assert np.array(variable).tobytes() == values.tobytes(), variable.path
    with inference.statistics(network, source, 4, 0):
        assert np.asarray(network.get_layer("bn").moving_mean).tolist() == [0] * 6
