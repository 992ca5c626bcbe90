"""Features and the head found for them, against scikit-learn's own pipeline and whole networks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark import features, images, inference, resnet_v2
from fieldmark.augment import Augment
from fieldmark.backend import keras
from fieldmark.batches import Batches
from fieldmark.data import list_photos
from fieldmark.errors import FieldmarkError
from fieldmark.features import Head, probe, regression, set_head
from fieldmark.images import ImageSpec

SPEC = ImageSpec(size=32, mode="squash", interpolation="bilinear", scaling="0..255")


def batches(pixels: Any, labels: Any, classes: int, **options: Any) -> Batches:
    values = {"spec": SPEC, "batch_size": 8, "shuffle": False, **options}
    return Batches(pixels=pixels, labels=np.asarray(labels), classes=classes, **values)


def noise(count: int = 21, classes: int = 3, **options: Any) -> Batches:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    return batches(pixels, np.arange(count) % classes, classes, **options)


@pytest.fixture(scope="module")
def drawn(birds: Path) -> Batches:
    """The drawn birds as they are trained on: shuffled and augmented."""
    listed = list_photos(birds)
    contents = [(listed.folder / path).read_bytes() for path in listed.paths]
    pixels = np.stack([images.read(content, SPEC) for content in contents])
    labels = np.asarray(listed.labels)
    augment = Augment.of(0.5, mixup=0.2)
    shapes = np.full((len(labels), 2), SPEC.size)
    return batches(
        pixels, labels, len(listed.classes), shuffle=True, augment=augment, shapes=shapes
    )


@pytest.fixture(scope="module")
def small() -> Any:
    keras.utils.set_random_seed(1)
    return resnet_v2.Small((32, 32, 3), 4)


def rows_of(count: int, width: int, classes: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Draw features of unlike scales whose means differ from class to class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = rng.normal(0, 1, (classes, width))
    rows = (rng.normal(0, 1, (count, width)) + means[labels]) * rng.uniform(0.01, 10, width)
    return (rows + rng.uniform(-5, 5, width)).astype("float32"), labels


def expected(rows: Any, labels: Any, strength: float, **options: Any) -> Any:
    """Return scikit-learn's own pipeline, fitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regressed = LogisticRegression(C=strength, max_iter=features.ITERATIONS, **options)
    return make_pipeline(StandardScaler(), regressed).fit(rows.astype("float64"), labels)


# ---- features -----------------------------------------------------------------------------------


def test_every_photo_has_its_features_in_its_place(small: Any) -> None:
    source = noise(21)  # in batches of 8: the last one is filled up
    found = features.features(small, source)
    assert found.shape == (21, 256)
    assert found.dtype == np.float32
    pixels = source.pixels.astype("float32")
    below = keras.Model(small.input, small.get_layer("avg_pool").output)
    wanted = keras.ops.convert_to_numpy(below(pixels, training=False))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    one_by_one = features.features(small, replace(source, batch_size=1))
    np.testing.assert_allclose(found, one_by_one, rtol=1e-4, atol=1e-5)


def test_batches_to_train_on_are_taken_as_they_are(small: Any, drawn: Batches) -> None:
    still = replace(drawn, shuffle=False, augment=Augment(), shapes=None)
    wanted = features.features(small, still)
    np.testing.assert_allclose(features.features(small, drawn), wanted, rtol=1e-4, atol=1e-5)
    balanced = replace(drawn, balanced=True, batch_size=7)
    np.testing.assert_allclose(features.features(small, balanced), wanted, rtol=1e-4, atol=1e-5)


def test_a_generator_in_the_network_is_at_rest() -> None:
    image = keras.layers.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    x = keras.layers.Dropout(0.5)(x)
    network = keras.Model(image, keras.layers.Dense(3)(x))
    source = noise(5)
    wanted = source.pixels.mean(axis=(1, 2))
    np.testing.assert_allclose(features.features(network, source), wanted, rtol=1e-5)


def test_features_computed_in_half_precision_are_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = resnet_v2.Small((32, 32, 3), 4)
    finally:
        keras.config.set_dtype_policy("float32")
    assert features.features(network, noise(5)).dtype == np.float32


def test_a_network_without_a_classifier_is_refused(small: Any) -> None:
    below = keras.Model(small.input, small.get_layer("avg_pool").output, name="below")
    with pytest.raises(FieldmarkError, match="The last layer of below is avg_pool, which is no"):
        features.features(below, noise(5))
    bare = keras.Model(below.input, keras.layers.Dense(2, use_bias=False)(below.output))
    with pytest.raises(FieldmarkError, match="no classifier with a bias"):
        features.features(bare, noise(5))


# ---- the head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_says_what_scikit_learn_says(classes: int, weighted: bool) -> None:
    rows, labels = rows_of(61, 12, classes)
    rows, labels = rows[5:], labels[5:]  # the classes have unlike numbers of photos
    head = regression(rows, labels, classes=classes, weighted=weighted)
    pipeline = expected(rows, labels, head.strength, class_weight="balanced" if weighted else None)
    assert head.kernel.shape == (12, classes)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    decision = pipeline.decision_function(rows.astype("float64"))
    logits = head.logits(rows)
    if classes == 2:  # one number: the second logit above the first
        logits = logits[:, 1] - logits[:, 0]
        np.testing.assert_allclose(head.kernel.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(logits, decision, rtol=1e-4, atol=1e-4)
    shares = np.exp(-features.cross_entropy(head.logits(rows), labels))
    wanted = pipeline.predict_proba(rows.astype("float64"))[np.arange(len(rows)), labels]
    np.testing.assert_allclose(shares, wanted, rtol=1e-3)


@settings(max_examples=50)
@given(
    count=st.integers(2, 30),
    classes=st.integers(2, 4),
    width=st.integers(1, 6),
    scale=st.floats(1e-6, 1e6),
    offset=st.floats(-100, 100),
    still=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_standardising_can_be_left_to_the_head(
    count: int, classes: int, width: int, scale: float, offset: float, still: int, seed: int
) -> None:
    """At any scale and offset the logits are the pipeline's; constant features change nothing."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count)])
    rows = rng.normal(offset, 1, (len(labels), width + still)) * scale
    rows[:, width:] = offset * scale
    head = features.fitted(rows, labels, 10.0, weighted=False)
    assert head.strength == 10.0 / width
    assert not head.kernel[width:].any()
    varied = rows[:, :width]
    decision = expected(varied, labels, head.strength).decision_function(varied)
    logits = head.logits(rows)
    if classes == 2:
        logits = logits[:, 1] - logits[:, 0]
    # Float32 kernels: seven digits of what is subtracted, which is `offset` times a weight.
    tolerance = 1e-6 * (1 + abs(offset)) * max(1, float(np.abs(decision).max()))
    np.testing.assert_allclose(logits, decision, rtol=1e-4, atol=10 * tolerance)


def test_the_strength_is_the_one_that_holds_good_on_photos_held_out() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    told = rng.normal(0, 0.01, (60, 30)) + labels[:, None]
    head = regression(told, labels, classes=2)
    assert head.accuracy == 1.0
    assert head.strength == pytest.approx(features.VARIANCES[-1] / 30)
    guessed = regression(rng.normal(0, 1, (60, 30)), labels, classes=2)
    assert guessed.strength == pytest.approx(features.VARIANCES[0] / 30)
    assert guessed.accuracy is not None
    assert 0.2 < guessed.accuracy < 0.8


def test_the_same_seed_gives_the_same_head() -> None:
    rows, labels = rows_of(40, 8, 3)
    one, other = (regression(rows, labels, classes=3, seed=4) for _ in range(2))
    assert one.kernel.tobytes() == other.kernel.tobytes()
    assert one[2:] == other[2:]
    folds = [
        [held.tolist() for _, held in features.folds(rows, labels, seed=seed, groups=None)]
        for seed in (4, 5)
    ]
    assert folds[0] != folds[1]
    assert sorted(photo for held in folds[0] for photo in held) == list(range(40))


def test_copies_are_held_out_together() -> None:
    """Ten copies of each photo: apart they are recognised, together nothing is to be learned."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 10)
    labels = groups % 3
    rows = rng.normal(0, 1, (24, 40))[groups] + rng.normal(0, 0.01, (240, 40))
    apart = regression(rows, labels, classes=3)
    together = regression(rows, labels, classes=3, groups=groups)
    assert apart.accuracy == 1.0
    assert together.accuracy is not None
    assert together.accuracy < 0.7
    assert together.strength < apart.strength
    for kept, held in features.folds(rows, labels, seed=0, groups=groups):
        assert not set(groups[kept]) & set(groups[held])


@pytest.mark.parametrize(
    "groups",
    [
        [0, 0, 0, 0, 1, 1, 1, 1],  # a class a group: held out, it is unknown
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
)
def test_groups_that_leave_nothing_to_hold_out(groups: list[int]) -> None:
    rows, labels = rows_of(8, 4, 2)
    labels = np.repeat([0, 1], 4)
    head = regression(rows, labels, classes=2, groups=np.array(groups))
    assert head.accuracy is None
    assert head.strength == features.UNTRIED / 4


def test_few_groups_are_held_out_one_by_one() -> None:
    rows, _ = rows_of(24, 4, 2)
    labels, groups = np.repeat([0, 1], 12), np.repeat(np.arange(4), 6)
    head = regression(rows, labels, classes=2, groups=groups)
    assert head.accuracy is not None


def test_one_photo_of_a_class_is_too_few_to_hold_out() -> None:
    rows, labels = rows_of(7, 4, 3)
    labels = np.array([0, 1, 1, 0, 1, 1, 2])
    head = regression(rows, labels, classes=3)
    assert head.accuracy is None
    assert head.strength == features.UNTRIED / 4
    assert np.isfinite(head.kernel).all()
    two = regression(rows[:2], np.array([0, 1]), classes=2)
    assert two.logits(rows[:2]).argmax(axis=1).tolist() == [0, 1]


def test_weighted_classes_count_alike() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 200 + [1] * 20)
    rows = rng.normal(0, 1, (220, 3)) + labels[:, None]
    called = {
        weighted: regression(rows, labels, classes=2, weighted=weighted).logits(rows).argmax(1)
        for weighted in (False, True)
    }
    assert (called[True] == 1)[labels == 1].mean() > 0.7
    assert (called[True] == 1).sum() > 2 * (called[False] == 1).sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_features_that_never_vary(weighted: bool) -> None:
    rows = np.full((9, 4), 0.1, np.float32)
    labels = np.array([0] * 6 + [1] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = regression(rows, labels, classes=2, weighted=weighted)
    assert not head.kernel.any()
    shares = np.exp(head.bias) / np.exp(head.bias).sum()
    np.testing.assert_allclose(shares, [0.5, 0.5] if weighted else [2 / 3, 1 / 3], rtol=1e-6)


def test_what_no_head_can_be_found_for_is_refused() -> None:
    rows, labels = rows_of(12, 4, 3)
    for value in (np.nan, np.inf, -np.inf):
        broken = rows.copy()
        broken[[3, 5], 1] = value
        with pytest.raises(FieldmarkError, match="features of 2 of 12 photos are no finite num"):
            regression(broken, labels, classes=3)
    with pytest.raises(FieldmarkError, match="Class 3, counted from 0, has no photos"):
        regression(rows, labels, classes=4)


# ---- in the network -----------------------------------------------------------------------------


def test_a_probed_network_gives_the_head_s_logits(small: Any, drawn: Batches) -> None:
    network = keras.models.clone_model(small)
    network.set_weights(small.get_weights())
    head = probe(network, drawn)
    assert head.accuracy is not None
    set_head(network, head)
    still = replace(drawn, shuffle=False, augment=Augment(), shapes=None)
    rows = features.features(network, still)
    run = inference.forward(network)
    found = np.concatenate([run(still.batch(0, i)[0]) for i in range(len(still))])
    np.testing.assert_allclose(
        found[: len(rows)], head.logits(rows), rtol=1e-3, atol=1e-3 * np.abs(found).max()
    )
    # Even features of random weights tell drawn birds apart better than a guess among four.
    assert inference.evaluate(run, still).accuracy > 0.5
    for one, other in zip(network.layers[:-1], small.layers[:-1], strict=True):
        for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_head_of_another_size_is_refused(small: Any) -> None:
    head = Head(np.zeros((9, 4), np.float32), np.zeros(4, np.float32), 1.0, None)
    with pytest.raises(FieldmarkError) as caught:
        set_head(small, head)
    assert "for 9 features and 4 classes and the network has 256 features and 4" in str(
        caught.value
    )
