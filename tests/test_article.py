"""The article's network against its published table, row by row, and its training's oddities."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import article, console
from fieldmark.backend import keras
from fieldmark.recipe import ARTICLE

TABLE = Path(__file__).parent / "article_summary.csv"
# Two names that the article's table prints otherwise than its code gives them in Keras 3.
PRINTED = {"input_layer": "input_1", "bn_stage1_conv2": "bn_conv2"}


@pytest.fixture(scope="module")
def network() -> Any:
    return article.ResNet50V2((224, 224, 3), classes=4)


def row(layer: Any) -> dict[str, str]:
    """Write a layer as a row of the article's table."""
    shape = layer.output.shape[1:]
    tensors = layer.input if isinstance(layer.input, list) else [layer.input]
    nodes = [tensor._keras_history.operation.name for tensor in tensors]
    is_input = isinstance(layer, keras.layers.InputLayer)
    return {
        "layer": PRINTED.get(layer.name, layer.name),
        "type": type(layer).__name__,
        "output_shape": "x".join(map(str, shape)),
        "params": str(layer.count_params()),
        "connected_to": "" if is_input else " ".join(PRINTED.get(name, name) for name in nodes),
    }


def test_all_rows_of_the_published_table(network: Any) -> None:
    with TABLE.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 193
    assert [row(layer) for layer in network.layers] == table


def test_the_published_totals(network: Any) -> None:
    trainable = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    assert network.count_params() == 35_969_668
    assert trainable == 35_927_172
    assert network.count_params() - trainable == 42_496


def test_the_table_is_the_shared_one(shared_photos: Path) -> None:
    shared = shared_photos.parent / "article" / "summary.csv"
    assert TABLE.read_bytes() == shared.read_bytes()


def test_the_article_s_defaults() -> None:
    network = article.ResNet50V2()
    assert network.input_shape == (None, 224, 224, 3)
    assert network.output_shape == (None, 1000)


def test_oddity_8_the_normalisation_has_the_defaults_of_keras(network: Any) -> None:
    found = {
        (layer.epsilon, layer.momentum)
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert found == {(0.001, 0.99)}


def test_oddity_6_every_convolution_has_a_bias(network: Any) -> None:
    convolutions = [x for x in network.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) == 61
    assert all(layer.use_bias for layer in convolutions)


def test_the_compilation_is_the_article_s(network: Any) -> None:
    article.compile_network(network, ARTICLE)
    assert isinstance(network.optimizer, keras.optimizers.Adam)
    assert float(network.optimizer.learning_rate) == pytest.approx(0.001)
    assert isinstance(network.loss, keras.losses.SparseCategoricalCrossentropy)
    assert network.loss.from_logits


def test_what_keras_counts_is_printed_unless_quiet(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    article.read_photos(birds, ARTICLE)
    assert "Using 39 files for training." in capsys.readouterr().out
    console.be_quiet()
    article.read_photos(birds, ARTICLE)
    assert capsys.readouterr() == ("", "")


def test_the_split_is_the_one_of_keras(birds: Path) -> None:
    recipe = ARTICLE.changed(image_size=32)
    training, validation = article.read_photos(birds, recipe)
    for ours, subset in ((training, "training"), (validation, "validation")):
        theirs = keras.utils.image_dataset_from_directory(
            str(birds), validation_split=0.2, seed=123, subset=subset, image_size=(32, 32)
        )
        assert ours.file_paths == theirs.file_paths
        assert ours.class_names == theirs.class_names


def test_the_pipeline_freezes_the_batches(birds: Path) -> None:
    """The article shuffles after batching: the same photos meet in every epoch."""
    training, _ = article.pipeline(*article.read_photos(birds, ARTICLE.changed(image_size=32)))

    def epoch() -> tuple[list[float], set[float]]:
        sums = [float(np.asarray(images).sum()) for images, _ in training]
        return sums, set(sums)

    epochs = [epoch() for _ in range(3)]
    assert epochs[0][1] == epochs[1][1] == epochs[2][1]
    assert len({tuple(order) for order, _ in epochs}) > 1


@pytest.mark.parametrize(
    "name", ["zero_bytes.jpg", "truncated.jpg", "web_page.jpg", "truncated_image.png"]
)
def test_broken_files_are_refused_with_a_reason(shared_photos: Path, name: str) -> None:
    content = (shared_photos / "odd" / "broken" / name).read_bytes()
    with pytest.raises(ValueError, match=r"^[A-Zj].*[^\]]$"):
        article.decode(content)


def test_a_photo_decodes_and_nothing_does_not(birds: Path) -> None:
    article.decode(next(birds.rglob("*.jpg")).read_bytes())
    with pytest.raises(ValueError, match="Input is empty"):
        article.decode(b"")


PROBE = """
import warnings; warnings.simplefilter("ignore")
import numpy as np
from scipy.special import log_softmax
from fieldmark import article, recipe
from fieldmark.backend import keras
image = keras.layers.Input((4,))
network = keras.Model(image, keras.layers.Dense(4, activation="softmax")(image))
article.compile_network(network, recipe.ARTICLE)
rng = np.random.default_rng(0)
x, y = rng.normal(0, 5, (32, 4)).astype("float32"), rng.integers(0, 4, 32)
kernel, bias = network.layers[-1].get_weights()
once = log_softmax(x @ kernel + bias, axis=1)
twice = log_softmax(np.exp(once), axis=1)
found = network.evaluate(x, y, verbose=0)[0]
print(found, *(-log[np.arange(32), y].mean() for log in (once, twice)))
"""


@pytest.mark.parametrize(("backend", "softmaxes"), [("tensorflow", 1), ("jax", 2), ("torch", 2)])
def test_the_loss_on_a_softmax_depends_on_the_backend(backend: str, softmaxes: int) -> None:
    """TensorFlow finds the logits behind the softmax; elsewhere a second softmax is taken."""
    pytest.importorskip(backend)
    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    found, once, twice = map(float, probe.stdout.split())
    assert once - twice > 0.5
    assert found == pytest.approx(once if softmaxes == 1 else twice, rel=1e-4)
