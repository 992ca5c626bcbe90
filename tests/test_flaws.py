"""Each of the article's flaws is one change and no other, and the table says what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark import article, batches, cache, feed, images, network, steps
from fieldmark.backend import keras
from fieldmark.recipe import ARTICLE

FLAWS = Path(__file__).parent.parent / "experiments" / "flaws"
SIZE = (32, 32, 3)
sys.path.insert(0, str(FLAWS))
try:
    networks, exchange, changes, run, softmax = map(
        import_module, ("networks", "exchange", "changes", "run", "softmax")
    )
finally:
    sys.path.remove(str(FLAWS))


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put everything back afterwards that `exchange` may exchange."""
    for module, name in (
        *((images, "ROOM"), (images, "_resized"), (cache, "CODE")),
        *((steps, "training_step"), (batches.Batches, "order")),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setitem(network.BUILDERS, "resnet50v2", network.BUILDERS["resnet50v2"])
    monkeypatch.setitem(network.SCALING, "resnet50v2", "-1..1")


# ---- the network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Any:
    return networks.build(SIZE, 4, flaws=frozenset(), width=4)


def drawn(model: Any) -> list[Any]:
    """Return values for the weights with which every layer has something to say."""
    rng = np.random.default_rng(0)
    return [
        rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else rng.normal(0, 0.05, w.shape)
        for w in model.get_weights()
    ]


def photos() -> Any:
    return np.random.default_rng(1).uniform(0, 255, (2, *SIZE)).astype(np.float32)


def test_with_all_flaws_it_is_the_article() -> None:
    theirs = article.ResNet50V2(SIZE, classes=4)
    ours = networks.build(SIZE, 4, flaws=changes.ARTICLE)
    assert ours.count_params() == theirs.count_params() == 35_969_668
    theirs.set_weights(drawn(theirs))

    def weighed(model: Any, kind: Any) -> list[Any]:
        return [layer for layer in model.layers if isinstance(layer, kind)]

    def number(layer: Any) -> tuple[int, int]:
        """Return the article's place of a layer: `bn7` is behind all `bn_conv3`."""
        return "_" not in layer.name, int(re.findall(r"\d+$", layer.name)[0])

    def place(layer: Any) -> tuple[int, ...]:
        """Return the reference's place, the shortcut last as in the article's numbers."""
        if layer.name in ("post_bn", "conv1_conv", "conv1_bn"):
            return (9 if layer.name == "post_bn" else 0,)
        stage, block, rest = re.findall(r"conv(\d)_block(\d)_(.+)", layer.name)[0]
        return (
            int(stage),
            int(block),
            {"preact_bn": 0, "0_conv": 4}.get(rest) or int(rest[0].replace("p", "0")),
        )

    for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization):
        for one, other in zip(
            sorted(weighed(ours, kind), key=place),
            sorted(weighed(theirs, kind), key=number),
            strict=True,
        ):
            one.set_weights(other.get_weights())
            if kind is keras.layers.BatchNormalization:
                assert (one.epsilon, one.momentum) == (other.epsilon, other.momentum)
            else:
                assert one.kernel_initializer.get_config() == other.kernel_initializer.get_config()
    ours.layers[-1].set_weights(theirs.layers[-1].get_weights())
    found = np.asarray(keras.ops.softmax(ours(photos())))
    np.testing.assert_allclose(found, np.asarray(theirs(photos())), atol=1e-5)
    assert np.ptp(found) > 0.01


def structure(model: Any) -> dict[str, dict[str, Any]]:
    """Return each layer's settings, and which layers it reads."""
    found = {}
    for layer in model.layers:
        reads = layer.input if isinstance(layer.input, list) else [layer.input]
        found[layer.name] = {
            **layer.get_config(),
            "reads": [re.sub(r"input_.*", "image", each._keras_history[0].name) for each in reads],
        }
    return {name: values for name, values in found.items() if "input_" not in name}


def differences(one: Any, other: Any) -> set[str]:
    """Return what differs between two networks: `layer.setting`, `+layer` or `-layer`."""
    before, after = structure(one), structure(other)
    shared = before.keys() & after.keys()
    return {
        *(f"-{name}" for name in before.keys() - shared),
        *(f"+{name}" for name in after.keys() - shared),
        *(
            f"{name}.{key}"
            for name in shared
            for key in before[name]
            if before[name][key] != after[name][key]
        ),
    }


def test_without_flaws_it_is_the_reference_as_a_training_begins_with_it() -> None:
    theirs = network.for_training("resnet50v2", image_size=SIZE[0], classes=4)
    ours = networks.build(SIZE, 4, flaws=frozenset())
    assert not differences(ours, theirs)
    assert ours.count_params() == theirs.count_params()
    weights = drawn(theirs)
    for model in (ours, theirs):
        model.set_weights(weights)
    np.testing.assert_array_equal(np.asarray(ours(photos())), np.asarray(theirs(photos())))


BLOCKS = [(s, b) for s, n in enumerate((3, 4, 6, 3), start=2) for b in range(1, n + 1)]
STRIDING = {(2, 3), (3, 4), (4, 6)}
PLAIN = {(s, b) for s, b in BLOCKS if b > 1} - STRIDING
LEARNED = {(2, 1), (3, 1), (4, 1), (5, 1)}


def each(blocks: Any, *names: str) -> set[str]:
    """Write names of layers for each of some blocks."""
    return {name.format(f"conv{s}_block{b}") for s, b in sorted(blocks) for name in names}


NORMALISED = each(BLOCKS, "{}_preact_bn", "{}_1_bn", "{}_2_bn") | {"post_bn"}
NAMED: dict[str, set[str]] = {
    "stem padding": {"conv1_pad.padding"},
    "stem normalisation": {"+conv1_bn", "+conv1_relu", "pool1_pad.reads"},
    "learned shortcuts": each(PLAIN, "+{}_0_conv", "{}_out.reads"),
    "raw shortcuts": each(LEARNED, "{}_0_conv.reads"),
    "biases": each(BLOCKS, "{}_1_conv.use_bias", "{}_2_conv.use_bias"),
    "striding shortcuts": each(STRIDING, "-{}_0_pool", "+{}_0_conv", "{}_out.reads"),
    "epsilon": {f"{name}.epsilon" for name in NORMALISED},
    "fifteen blocks": {
        *each(
            {(4, 6)},
            *("-{}_preact_bn", "-{}_preact_relu", "-{}_1_conv", "-{}_1_bn", "-{}_1_relu"),
            *("-{}_2_pad", "-{}_2_conv", "-{}_2_bn", "-{}_2_relu", "-{}_3_conv", "-{}_0_pool"),
            "-{}_out",
        ),
        *("+conv4_block5_0_pool", "conv4_block5_2_conv.strides", "conv4_block5_out.reads"),
        "conv5_block1_preact_bn.reads",
    },
    "Glorot": {
        *each(BLOCKS, *(f"{{}}_{i}_conv.kernel_initializer" for i in (1, 2, 3))),
        *each(LEARNED, "{}_0_conv.kernel_initializer"),
        "conv1_conv.kernel_initializer",
    },
    "slow statistics": {f"{name}.momentum" for name in NORMALISED},
}


@pytest.mark.parametrize("flaw", NAMED)
def test_a_flaw_of_the_network_changes_what_it_names(flaw: str, narrow: Any) -> None:
    assert set(NAMED) == {*networks.NETWORK, *networks.BEGINNING}
    flawed = networks.build(SIZE, 4, flaws={flaw}, width=4)
    assert differences(narrow, flawed) == NAMED[flaw]


# ---- the training -------------------------------------------------------------------------------

VALUES: dict[str, set[str]] = {
    "squashed photos": {"square"},
    "no augmentation": {"augment"},
    "no decay": {"optimiser", "weight_decay"},
    "constant rate": {"schedule", "warmup"},
    "moving statistics": {"statistics"},
    "few epochs": {"epochs"},
}


def values(flaws: Any) -> dict[str, Any]:
    return dict(changes.recipe(flaws, seed=0, side=224, epochs=10).model_dump())


def test_the_articles_values_are_the_articles() -> None:
    found, theirs = values(changes.ARTICLE), ARTICLE.model_dump()
    unlike = {name for name in found if found[name] != theirs[name]}
    assert unlike == {"network", "pipeline", "split"}


@pytest.mark.parametrize("flaw", sorted(changes.ARTICLE | {"double softmax"}))
def test_a_flaw_changes_the_values_that_it_names(flaw: str) -> None:
    with_it, without = values(changes.ARTICLE), values(changes.ARTICLE - {flaw})
    assert {name for name in with_it if with_it[name] != without[name]} == VALUES.get(flaw, set())


def test_every_flaw_is_somewhere_in_the_code_that_trains() -> None:
    """So that no name is misspelt, and a comparison one of a training with itself."""
    code = "".join((FLAWS / f"{name}.py").read_text() for name in ("networks", "exchange"))
    code += (FLAWS / "changes.py").read_text().split("def recipe")[1]
    named = frozenset().union(*(change.flaws for change in changes.CHANGES))
    assert named == changes.ARTICLE | {"double softmax"}
    for flaw in named:
        assert re.search(rf'"{flaw}"[^,]* in flaws', code), flaw


def test_frozen_batches_are_the_same_photos_in_another_order() -> None:
    pixels = np.zeros((22, 32, 32, 3), np.uint8)
    spec = images.ImageSpec(size=32, mode="squash", interpolation="bilinear", scaling="0..255")
    fed = batches.Batches(pixels, np.arange(22) % 2, 2, spec, 4, seed=7)
    exchange.exchange(frozenset({"frozen batches"}))
    met = [fed.order(epoch).reshape(5, 4) for epoch in range(3)]
    groups = [{frozenset(batch) for batch in epoch.tolist()} for epoch in met]
    assert groups[0] == groups[1] == groups[2]
    assert len(groups[0]) == 5
    assert met[1].tolist() != met[2].tolist()
    still = batches.Batches(pixels, np.arange(22) % 2, 2, spec, 4, shuffle=False)
    assert still.order(0).tolist() == list(range(22))


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_the_skipping_reader_is_the_articles(mode: Any) -> None:
    tf = pytest.importorskip("tensorflow")
    photo = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    file = png(photo)
    spec = images.ImageSpec(size=32, mode=mode, interpolation="bilinear", scaling="0..255")
    smooth = images.read(file, spec)
    exchange.exchange(frozenset({"skipping reader"}))
    seen = photo if mode == "squash" else photo[:, 20:110]
    theirs = tf.image.resize(seen, (32, 32), "bilinear", antialias=False).numpy()
    found = images.read(file, spec).astype(float)
    assert np.abs(found - theirs).max() <= 1
    assert np.abs(found - smooth).mean() > 20
    assert "sampled" in cache.CODE


def png(pixels: Any) -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def test_raw_pixels_are_what_the_network_is_fed() -> None:
    assert feed.specification(changes.recipe({}, seed=0, side=32, epochs=1)).scaling == "-1..1"
    exchange.exchange(frozenset({"raw pixels"}))
    assert feed.specification(changes.recipe({}, seed=0, side=32, epochs=1)).scaling == "0..255"


@pytest.mark.parametrize("softmaxes", [1, 2])
def test_the_double_softmax_is_one(softmaxes: int) -> None:
    features, labels, kernel = softmax.batch()
    image = keras.layers.Input((4, 4, 1))
    flat = keras.layers.Flatten()(image)
    model = keras.Model(image, keras.layers.Dense(4, use_bias=False)(flat))
    model.set_weights([kernel])
    if softmaxes == 2:
        exchange.exchange(frozenset({"double softmax"}))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    step = steps.training_step(model, keras.optimizers.SGD(1.0), loss=loss)
    truth = np.eye(4, dtype=np.float32)[labels]
    found = step(features.reshape(32, 4, 4, 1), truth, np.ones(32, np.float32))
    expected_loss, expected_gradient = softmax.expected(softmaxes)
    assert found.loss == pytest.approx(expected_loss, rel=1e-4)
    moved = np.linalg.norm(model.get_weights()[0] - kernel)
    assert moved == pytest.approx(expected_gradient, rel=1e-3)


# ---- the runner ---------------------------------------------------------------------------------


def test_the_trainer_gets_the_flawed_network() -> None:
    flaws = frozenset({"biases", "fifteen blocks"})
    exchange.exchange(flaws, width=8)
    found = network.for_training("resnet50v2", image_size=32, classes=4)
    ours = networks.build(SIZE, 4, flaws=flaws, width=8)
    assert not differences(ours, found)
    assert found.count_params() == ours.count_params()


def test_no_training_is_done_twice() -> None:
    found = list(run.queue([0, 1], []))
    assert len({(one.flaws, one.seed) for one in found}) == len(found)
    assert len({(one.name, one.seed) for one in found}) == len(found)
    assert [one.seed for one in found] == sorted(one.seed for one in found)
    for change in changes.CHANGES:
        for base in changes.BASES.values():
            assert (change.other(base), 1) in {(one.flaws, one.seed) for one in found}


def line(flaws: Any, seed: int, accuracy: float, loss: float = 1.0) -> dict[str, Any]:
    return {"flaws": sorted(flaws), "seed": seed, "accuracy": accuracy, "loss": loss}


def test_an_effect_is_with_the_flaw_less_without_it() -> None:
    flaw = next(change for change in changes.CHANGES if change.name == "biases")
    lines = [
        *(line(changes.ARTICLE, seed, 0.5) for seed in range(3)),
        *(line(changes.ARTICLE - {"biases"}, seed, 0.6 + seed / 10) for seed in range(3)),
        *(line(changes.REFERENCE, seed, 0.8) for seed in range(2)),
        *(line(changes.REFERENCE | {"biases"}, seed, 0.7) for seed in range(3)),
    ]
    inside = run.effect(lines, flaw, "article", "accuracy")
    # Student's t for two degrees of freedom is 4.303, the deviation 0.1
    assert inside == pytest.approx((-0.2, -0.2 - 0.2484, -0.2 + 0.2484, 3), abs=1e-4)
    put_back = run.effect(lines, flaw, "reference", "accuracy")
    assert put_back.mean == pytest.approx(-0.1)
    assert put_back.n == 2
    assert str(put_back) == "-0.10"
    rows = list(run.table(lines))
    assert len(rows) == 3
    assert rows[2].startswith("| biases |")
    assert rows[2].endswith("| 3 and 2 |")


def test_the_results_are_of_these_changes() -> None:
    file = FLAWS / "results.jsonl"
    if not file.exists():
        pytest.skip("no results yet")
    for result in map(json.loads, file.read_text().splitlines()):
        assert not set(result["flaws"]) - changes.ARTICLE - {"double softmax"}
        if "recipe" in result:
            expected = changes.recipe(
                set(result["flaws"]),
                **{name: result[name] for name in ("seed", "side", "epochs", "precision")},
            )
            assert result["recipe"] == expected.model_dump()
            assert result["accuracy"] == pytest.approx(result["log"][-1]["val_accuracy"], abs=1e-5)


@pytest.mark.slow
def test_a_training_is_gone_on_with(tmp_path: Path, birds: Path) -> None:
    command = [sys.executable, str(FLAWS / "run.py"), "train", str(birds), "--out", str(tmp_path)]
    command += ["--side", "32", "--width", "8", "--epochs", "1", "--seeds", "0", "--only", "biases"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 trainings, 4 of them to do" in first.stdout
    assert "| biases |" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 trainings, 0 of them to do" in second.stdout
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
