"""The article's training in a run: what is kept after each epoch, and what happens without it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import reproduction, state
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.loop import Keeper
from fieldmark.recipe import ARTICLE


def two_places() -> Any:
    """Build a network of one layer, compiled."""
    image = keras.layers.Input((2,))
    network = keras.Model(image, keras.layers.Dense(2, activation="softmax", name="head")(image))
    network.compile("adam", "sparse_categorical_crossentropy")
    return network


def logger(folder: Path, network: Any, log: list[Any]) -> reproduction.Logger:
    keeper = Keeper(
        state=folder / "state.npz",
        photos=state.digests([("a.jpg", "owl")]),
        append=log.append,
        mend=partial(state.mend_log, folder / "log.jsonl"),
        best=lambda model: model.save(folder / "best.keras"),
    )
    return reproduction.Logger(ARTICLE, keeper, network)


def test_the_best_epoch_is_kept_and_not_the_last(tmp_path: Path) -> None:
    network = two_places()
    log: list[Any] = []
    record = logger(tmp_path, network, log)
    scores = [(0.5, 1.0), (0.5, 0.9), (0.4, 0.1), (0.5, float("nan"))]
    for epoch, (accuracy, loss) in enumerate(scores):
        network.layers[-1].set_weights([np.full((2, 2), float(epoch)), np.zeros(2)])
        record.on_epoch_begin(epoch)
        record.on_epoch_end(epoch, {"loss": 1.0, "val_accuracy": accuracy, "val_loss": loss})
    best = keras.saving.load_model(tmp_path / "best.keras")
    assert best.layers[-1].get_weights()[0][0, 0] == 1.0
    header, _, arrays = state.read(tmp_path / "state.npz")
    assert header.epoch == 4
    assert next(iter(arrays.values()))[0, 0] == 3.0
    assert log[3]["val_loss"] is None


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_without_numbers_it_stops_and_keeps_the_last_good_state(tmp_path: Path, what: str) -> None:
    network = two_places()
    log: list[Any] = []
    record = logger(tmp_path, network, log)
    good = {"loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}
    record.on_epoch_begin(0)
    record.on_epoch_end(0, good)
    before = (tmp_path / "state.npz").read_bytes()
    if what == "weights":
        network.layers[-1].set_weights([np.full((2, 2), np.nan), np.zeros(2)])
    else:
        good["loss"] = float("nan")
    record.on_epoch_begin(1)
    with pytest.raises(
        FieldmarkError, match=r"After epoch 2, .* any more; .* keeps epoch 1: begin"
    ):
        record.on_epoch_end(1, good)
    assert (tmp_path / "state.npz").read_bytes() == before
    assert len(log) == 1


def test_a_kill_between_state_and_best_weights_is_made_good(tmp_path: Path) -> None:
    network = two_places()
    log: list[Any] = []
    record = logger(tmp_path, network, log)
    record.on_epoch_begin(0)
    record.on_epoch_end(0, {"loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0})
    (tmp_path / "best.keras").unlink()
    again = logger(tmp_path, two_places(), [])
    assert again.resume() == 1
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1
    best = keras.saving.load_model(tmp_path / "best.keras")
    for ours, theirs in zip(best.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_logits_are_the_network_without_its_softmax() -> None:
    image = keras.layers.Input((3,))
    x = keras.layers.Dense(5, activation="relu")(image)
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax", name="head")(x))
    chosen = reproduction.logits_network(model)
    reproduction.copy_head(model, chosen)
    photos = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    softmax = np.asarray(keras.ops.softmax(chosen(photos)))
    np.testing.assert_allclose(softmax, np.asarray(model(photos)), atol=1e-6)
