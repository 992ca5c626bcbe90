"""Every figure is scikit-learn's or the definition's; intervals and calibration keep their word."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from fieldmark import metrics
from fieldmark.decision import softened
from fieldmark.errors import FieldmarkError
from fieldmark.metrics import Floats, Ints, decide, measure, table
from fieldmark.predictions import Predictions

HASH = "0" * 64


def predicted(
    probabilities: Floats,
    labels: Sequence[int] | Ints,
    split: str | Sequence[str] = "test",
    *,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Predictions:
    count, classes = probabilities.shape
    return Predictions(
        classes=tuple(names or (f"class {k}" for k in range(classes))),
        paths=tuple(f"{i}.jpg" for i in range(count)),
        splits=(split,) * count if isinstance(split, str) else tuple(split),
        labels=np.asarray(labels, np.int64),
        groups=tuple(groups or [""] * count),
        sha256=(HASH,) * count,
        probabilities=probabilities,
    )


def drawn(
    count: int, classes: int, *, seed: int = 0, temperature: float = 1.0, signal: float = 1.5
) -> tuple[Floats, Ints]:
    """Return probabilities that are right as often as they say, then sharpened or softened."""
    generator = np.random.default_rng(seed)
    honest = softened(np.exp(signal * generator.normal(size=(count, classes))), 1.0)
    labels = (honest.cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    return softened(honest, 1 / temperature), labels.clip(0, classes - 1)


@st.composite
def weighted(draw: st.DrawFn) -> tuple[Floats, Ints, Floats]:
    """Draw probabilities (n, c), with ties, labels (n,) and two rows of weights, whole or not."""
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([3, 1000]))  # few levels make ties
    raw = generator.integers(1, levels + 1, size=(count, classes)).astype(np.float64)
    weights = generator.integers(1, 4, size=(2, count)).astype(np.float64)
    if draw(st.booleans()):
        weights = generator.random((2, count)) + 0.01
    labels = generator.integers(draw(st.integers(1, classes)), size=count)
    return raw / raw.sum(axis=1, keepdims=True), labels, weights


# ---- the figures --------------------------------------------------------------------------------


@given(weighted())
def test_classes_are_judged_as_scikit_learn_does(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    classes, called = probabilities.shape[1], probabilities.argmax(axis=1)
    found = metrics.by_class(labels, called, classes, weights)
    for row, each in enumerate(weights):
        theirs = sklearn.precision_recall_fscore_support(
            labels, called, labels=range(classes), sample_weight=each, zero_division=np.nan
        )
        for ours, expected in zip(found, theirs, strict=False):
            np.testing.assert_allclose(ours[row], expected, atol=1e-12)


@given(weighted())
def test_means_over_classes_are_scikit_learn_s(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    called = probabilities.argmax(axis=1)
    there = np.unique(labels)  # a mean over classes without photos would say nothing
    judged = metrics._Judged(labels, called, probabilities, None, None)
    found = metrics._scores(judged, weights)
    for row, each in enumerate(weights):
        options: dict[str, Any] = {"labels": there, "average": "macro", "zero_division": 0}
        options["sample_weight"] = each
        expected = {
            "macro_precision": sklearn.precision_score(labels, called, **options),
            "macro_recall": sklearn.recall_score(labels, called, **options),
            "balanced_accuracy": sklearn.recall_score(labels, called, **options),
            "macro_f1": sklearn.f1_score(labels, called, **options),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][row], value, atol=1e-12)


@given(weighted())
def test_areas_under_the_roc_are_scikit_learn_s(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    found = metrics.roc_aucs(labels, probabilities, weights)
    for row, each in enumerate(weights):
        for k in range(probabilities.shape[1]):
            true = labels == k
            if true.all() or not true.any():
                assert np.isnan(found[row, k])
            else:
                expected = sklearn.roc_auc_score(true, probabilities[:, k], sample_weight=each)
                np.testing.assert_allclose(found[row, k], expected, atol=1e-9)


@given(weighted())
def test_losses_are_scikit_learn_s(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    every = range(probabilities.shape[1])
    losses = metrics.mean(metrics.log_losses(probabilities, labels), weights)
    briers = metrics.mean(metrics.briers(probabilities, labels), weights)
    for row, each in enumerate(weights):
        expected = sklearn.log_loss(labels, probabilities, labels=every, sample_weight=each)
        np.testing.assert_allclose(losses[row], expected)
        truth = np.eye(len(every))[labels]
        squares = ((probabilities - truth) ** 2).sum(axis=1)
        np.testing.assert_allclose(briers[row], np.average(squares, weights=each))


@given(weighted())
def test_shares_are_scikit_learn_s(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, _ = case
    figures = measure(predicted(probabilities, labels), resamples=1)["splits"]["test"]["figures"]
    called = probabilities.argmax(axis=1)
    assert figures["accuracy"]["value"] == pytest.approx(sklearn.accuracy_score(labels, called))
    # Where classes are equally probable scikit-learn takes the last for the first.
    untied = [len(np.unique(row)) == len(row) for row in probabilities]
    if all(untied) and probabilities.shape[1] > 2:
        expected = sklearn.top_k_accuracy_score(
            labels, probabilities, k=2, labels=range(probabilities.shape[1])
        )
        assert figures["top_2"]["value"] == pytest.approx(expected)


@given(weighted())
def test_the_first_rank_is_the_answer(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, _ = case
    first = metrics.ranks(probabilities, labels) == 0
    np.testing.assert_array_equal(first, probabilities.argmax(axis=1) == labels)


@given(weighted())
def test_the_calibration_error_is_its_definition(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = metrics.calibration_error(sure, right, weights)
    for row, each in enumerate(weights):
        total = 0.0
        for k in range(15):
            here = (sure > k / 15) & (sure <= (k + 1) / 15)
            if here.any():
                gap = np.average(right[here], weights=each[here]) - np.average(
                    sure[here], weights=each[here]
                )
                total += abs(gap) * each[here].sum() / each.sum()
        np.testing.assert_allclose(found[row], total, atol=1e-12)


@given(weighted())
def test_the_area_of_risk_is_its_definition(case: tuple[Floats, Ints, Floats]) -> None:
    probabilities, labels, weights = case
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = metrics.risk_coverage_area(sure, right, weights)
    for row, each in enumerate(weights):
        risks = [np.average(~right[sure >= s], weights=each[sure >= s]) for s in sure]
        np.testing.assert_allclose(found[row], np.average(risks, weights=each), atol=1e-12)


@given(weighted(), st.integers(0, 99))
def test_a_photo_drawn_twice_counts_twice_and_one_not_drawn_is_not_there(
    case: tuple[Floats, Ints, Floats], seed: int
) -> None:
    probabilities, labels, _ = case
    count = len(labels)
    (weights,) = metrics.resampled(np.arange(count), 1, seed)
    assert weights.sum() == count
    again = np.repeat(np.arange(count), weights[0].astype(int))

    def scores(rows: NDArray[np.intp], weights: Floats) -> dict[str, Floats]:
        given_ = probabilities[rows]
        judged = metrics._Judged(labels[rows], given_.argmax(axis=1), given_, given_, None)
        return metrics._scores(judged, weights)

    ours, theirs = scores(np.arange(count), weights), scores(again, np.ones((1, count)))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9, err_msg=name)


# ---- intervals ----------------------------------------------------------------------------------


def test_groups_are_drawn_together() -> None:
    members = metrics.units(("a", "", "a", "", "b", "b"))
    assert members.tolist() == [0, 1, 0, 2, 3, 3]
    (weights,) = metrics.resampled(members, 200, 0)
    assert weights.shape == (200, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 4], weights[:, 5])
    assert (weights[:, 1] != weights[:, 3]).any()
    assert (weights[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()


def test_copies_do_not_make_a_figure_surer() -> None:
    probabilities, labels = drawn(60, 3)
    once = predicted(probabilities, labels)
    copied = predicted(
        np.repeat(probabilities, 5, axis=0),
        np.repeat(labels, 5),
        groups=[f"g{i // 5}" for i in range(300)],
    )
    loose = replace(copied, groups=("",) * 300)
    alone, together, apart = (
        measure(rows)["splits"]["test"]["figures"]["log_loss"] for rows in (once, copied, loose)
    )
    assert together == pytest.approx({**alone, "n": 300})
    assert apart["high"] - apart["low"] < 0.6 * (together["high"] - together["low"])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth = float(metrics.log_losses(*drawn(200_000, 3, seed=7)).mean())
    held = 0
    for seed in range(100):
        probabilities, labels = drawn(80, 3, seed=1000 + seed)
        losses = metrics.log_losses(probabilities, labels)
        (weights,) = metrics.resampled(np.arange(80), 400, seed)
        low, high = metrics.interval(metrics.mean(losses, weights))
        assert low is not None
        assert high is not None
        held += low <= truth <= high
    assert 87 <= held <= 99  # of 100; 95 are meant


def test_the_same_seed_gives_the_same_figures_and_splits_do_not_touch() -> None:
    probabilities, labels = drawn(40, 3)
    splits = ["validation"] * 20 + ["test"] * 20
    rows = predicted(probabilities, labels, splits)
    first = measure(rows, resamples=50)
    assert first == measure(rows, resamples=50)
    assert first != measure(rows, resamples=50, seed=1)
    alone = measure(rows.of("test"), resamples=50)["splits"]["test"]["figures"]
    for name in ("accuracy", "macro_f1", "log_loss", "macro_roc_auc"):
        assert alone[name] == first["splits"]["test"]["figures"][name]


# ---- temperature and threshold ------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted: float) -> None:
    probabilities, labels = drawn(3000, 4, temperature=planted)
    measured = measure(predicted(probabilities, labels, "validation"), resamples=200)
    figure = measured["temperature"]
    assert figure["value"] == pytest.approx(planted, rel=0.08)
    assert figure["low"] < planted < figure["high"]
    assert figure["high"] - figure["low"] < 0.25 * planted
    figures = measured["splits"]["validation"]["figures"]
    assert figures["calibrated_calibration_error"]["value"] < 0.03
    if planted != 1.0:
        assert figures["calibration_error"]["value"] > 0.06
        assert figures["calibrated_log_loss"]["value"] < figures["log_loss"]["value"]
    text = table(measured)
    words = {0.5: "is less sure than", 1.0: "is about as sure as", 3.0: "is surer than"}
    assert words[planted] in text.replace("\n", " ")


def test_a_network_that_is_far_too_sure_is_said_to_be_so() -> None:
    probabilities = np.tile([1.0, 1e-38], (40, 1))
    measured = measure(predicted(probabilities, [0, 1] * 20, "validation"), resamples=200)
    assert measured["temperature"]["value"] == pytest.approx(20, rel=0.01)
    assert "the highest that is tried" in table(measured)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.2, 5))
def test_a_temperature_never_makes_its_own_photos_worse(
    seed: int, count: int, planted: float
) -> None:
    probabilities, labels = drawn(count, 3, seed=seed, temperature=planted)
    found = metrics.temperature(probabilities, labels)
    before = metrics.log_losses(probabilities, labels).mean()
    assert metrics.log_losses(softened(probabilities, found), labels).mean() <= before + 1e-9
    quick = metrics.temperatures(probabilities, labels, np.ones((1, count)))
    assert quick[0] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("right", [True, False])
def test_photos_that_are_all_right_or_all_wrong_give_a_sane_temperature(right: bool) -> None:
    probabilities = np.tile([0.9, 0.1], (10, 1))
    decision = decide(predicted(probabilities, [0 if right else 1] * 10, "validation"))
    assert decision is not None
    assert 0.2 < decision.temperature < 10  # it is not at an end of what is looked at
    assert decision.answers(probabilities).all()
    # What is far less sure than all that were seen has no answer.
    assert not decision.answers(np.array([[0.6, 0.4]])).any()


@given(st.integers(1, 60), st.floats(0.05, 1.0), st.integers(0, 100))
def test_the_threshold_answers_what_it_was_asked_to(count: int, coverage: float, seed: int) -> None:
    probabilities, labels = drawn(count, 3, seed=seed)
    decision = decide(predicted(probabilities, labels, "validation"), coverage=coverage)
    assert decision is not None
    assert (decision.coverage, decision.photos) == (coverage, count)
    answered = int(decision.answers(probabilities).sum())
    assert answered >= coverage * count - 1e-9
    assert answered - 1 < coverage * count  # and none more, as there are no ties
    rounded = np.array([[float(f"{p:.9g}") for p in row] for row in probabilities])
    np.testing.assert_array_equal(decision.answers(rounded), decision.answers(probabilities))


def test_only_validation_photos_decide() -> None:
    probabilities, labels = drawn(90, 3)
    splits = ["validation"] * 30 + ["test"] * 30 + ["new"] * 30
    rows = predicted(probabilities, labels, splits)
    decision = decide(rows)
    assert decision == decide(rows.of("validation"))
    other = replace(rows, labels=np.where(np.arange(90) < 30, labels, (labels + 1) % 3))
    assert decide(other) == decision
    assert decide(rows.of("test")) is None
    measured = measure(rows, resamples=20)
    assert decision is not None
    assert measured["decision"] == decision.model_dump()
    refused = measured["splits"]["test"]["refused"]
    assert refused["threshold"] == decision.threshold
    answered = decision.answers(probabilities[30:60])
    assert refused["coverage"]["value"] == pytest.approx(answered.mean())
    assert refused["accuracy"]["n"] == answered.sum()


def test_validation_photos_are_calibrated_without_their_own_part() -> None:
    # Noise, and so few photos that a temperature found on them flatters.
    gains = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        probabilities = softened(np.exp(2 * generator.normal(size=(12, 2))), 1.0)
        labels = generator.integers(2, size=12)
        rows = predicted(probabilities, labels, "validation")
        decision = decide(rows)
        assert decision is not None
        flattered = metrics.log_losses(decision.calibrated(probabilities), labels).mean()
        crossed, answered = metrics._crossed(rows, 0.95, 0)
        assert crossed is not None
        assert answered is not None
        gains.append(metrics.log_losses(crossed, labels).mean() - flattered)
        found = measure(rows, resamples=1)["splits"]["validation"]
        assert found["figures"]["calibrated_log_loss"]["value"] == pytest.approx(
            metrics.log_losses(crossed, labels).mean()
        )
        assert found["refused"]["coverage"]["value"] == pytest.approx(answered.mean())
    assert np.mean(gains) > 0.01


def test_copies_in_a_group_do_not_help_each_other() -> None:
    generator = np.random.default_rng(0)
    probabilities = softened(np.exp(2 * generator.normal(size=(10, 2))), 1.0)
    labels = generator.integers(2, size=10)
    groups = [f"g{i}" for i in range(10)]
    rows = predicted(
        np.repeat(probabilities, 3, axis=0),
        np.repeat(labels, 3),
        groups=np.repeat(groups, 3).tolist(),
    )
    crossed, _ = metrics._crossed(rows, 0.95, 0)
    assert crossed is not None
    for copy in (1, 2):  # one temperature for all of a group
        np.testing.assert_array_equal(crossed[::3], crossed[copy::3])


# ---- the rest of a split ------------------------------------------------------------------------


def test_a_split_adds_up() -> None:
    probabilities, labels = drawn(300, 3, temperature=2)
    of = measure(predicted(probabilities, labels, "validation"), resamples=50)["splits"][
        "validation"
    ]
    confusion = np.array(of["confusion"])
    np.testing.assert_array_equal(
        confusion, sklearn.confusion_matrix(labels, probabilities.argmax(axis=1))
    )
    assert [each["n"] for each in of["classes"]] == confusion.sum(axis=1).tolist()
    assert [each["predicted"] for each in of["classes"]] == confusion.sum(axis=0).tolist()
    assert sum(each["n"] for each in of["reliability"]) == of["n"] == 300
    for each in of["reliability"]:
        assert each["low"] < each["confidence"] <= each["high"]
    most = max(of["classes"], key=lambda each: each["n"])
    assert of["commonest"] == {"name": most["name"], "share": most["n"] / 300}
    points = of["risk_coverage"]
    assert len(points) == 20
    assert [each["coverage"] for each in points] == sorted(each["coverage"] for each in points)
    assert points[-1]["coverage"] == 1
    accuracy = of["figures"]["accuracy"]["value"]
    assert points[-1]["risk"]["value"] == pytest.approx(1 - accuracy)
    assert points[0]["risk"]["value"] < points[-1]["risk"]["value"]
    assert list(of["figures"])[:2] == ["accuracy", "top_2"]
    for figure in of["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def figures_of(node: Any) -> list[dict[str, Any]]:
    """Return every figure, at whatever depth."""
    if isinstance(node, dict):
        here = [node] if "interval" in node else []
        return here + [each for value in node.values() for each in figures_of(value)]
    return [each for value in node for each in figures_of(value)] if isinstance(node, list) else []


@settings(max_examples=30)
@given(weighted(), st.lists(st.sampled_from(["", "a", "b"]), min_size=30, max_size=30))
def test_small_tables_give_numbers_or_nothing(
    case: tuple[Floats, Ints, Floats], groups: list[str]
) -> None:
    probabilities, labels, _ = case
    splits = [("validation", "test", "training", "new")[i % 4] for i in range(len(labels))]
    rows = predicted(probabilities, labels, splits, groups=groups[: len(labels)])
    measured = measure(rows, resamples=10)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert list(measured["splits"]) == [
        split for split in ("training", "validation", "test", "new") if split in splits
    ]
    for figure in figures_of(measured):
        assert (figure["low"] is None) == (figure["high"] is None)
        if figure["value"] is not None and figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert "nan" not in table(measured)


def test_one_photo_is_told_as_such() -> None:
    measured = measure(predicted(np.array([[0.2, 0.8, 0.0]]), [1], "validation"), resamples=10)
    of = measured["splits"]["validation"]
    assert of["figures"]["accuracy"]["low"] == pytest.approx(0.2065, abs=1e-4)
    assert of["figures"]["log_loss"]["value"] == pytest.approx(-math.log(0.8))
    assert of["figures"]["log_loss"]["low"] is None
    assert of["figures"]["calibrated_log_loss"]["value"] is None  # there are no others
    assert of["figures"]["macro_roc_auc"]["value"] is None
    absent, there, _ = of["classes"]
    assert absent["recall"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "interval": "wilson",
    }
    assert absent["f1"]["value"] is None
    assert there["recall"]["value"] == there["f1"]["value"] == 1
    assert measured["temperature"]["low"] is None
    assert "100.0 % (20.7 to 100.0)" in table(measured)


def test_a_class_that_is_never_called_has_no_precision_and_counts_in_the_mean() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    of = measure(predicted(probabilities, [0, 0, 1, 1]), resamples=10)["splits"]["test"]
    assert of["classes"][1]["precision"]["value"] is None
    assert of["classes"][1]["f1"]["value"] == 0
    assert of["figures"]["macro_precision"]["value"] == pytest.approx(0.25)
    assert of["figures"]["calibrated_brier"]["value"] is None  # without validation photos
    assert of["refused"] is None


def test_what_cannot_be_asked_for_is_one_sentence() -> None:
    rows = predicted(np.array([[0.5, 0.5]]), [0])
    for coverage in (0.0, 1.01, math.nan):
        with pytest.raises(FieldmarkError, match="is no share of photos to answer"):
            measure(rows, coverage=coverage)
    with pytest.raises(FieldmarkError, match="0 resamples make no interval"):
        measure(rows, resamples=0)


# ---- for a terminal -----------------------------------------------------------------------------


def test_the_table_says_what_matters() -> None:
    probabilities, labels = drawn(200, 3, temperature=2)
    rows = predicted(probabilities, labels, ["validation"] * 120 + ["test"] * 80)
    measured = measure(rows, resamples=100)
    text = table(measured, width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert max(map(len, table(measured, width=40).splitlines())) <= 40
    assert "validation, 120 photos" in text
    assert "test, 80 photos" in text
    accuracy = measured["splits"]["test"]["figures"]["accuracy"]
    low, high = accuracy["low"], accuracy["high"]
    assert f"{100 * accuracy['value']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in text
    assert "Test, by class" in text  # not those of the validation photos
    pairs = np.array(measured["splits"]["test"]["confusion"])
    np.fill_diagonal(pairs, 0)
    true, called = np.unravel_index(pairs.argmax(), pairs.shape)
    assert f"class {true} called class {called}: {pairs.max()} of" in text
    assert f"below {measured['decision']['threshold']:.3g}" in text
    assert table({**measured, "splits": {}}) == "No photos are judged."
    assert "calibrated" not in table(measure(rows.of("test"), resamples=10))


def test_names_do_nothing_to_the_terminal() -> None:
    probabilities, labels = drawn(30, 3)
    names = ["[bold]a", "red \x1b[31m", "turned \u202e"]
    text = table(measure(predicted(probabilities, labels, names=names), resamples=10))
    assert not {"\x1b", "\u202e"} & {*text}
    assert "[bold]a" in text
    assert "red \\x1b[31m" in text


def test_many_classes_are_told_in_short() -> None:
    probabilities, labels = drawn(400, 100, signal=3)
    measured = measure(predicted(probabilities, labels), resamples=10)
    assert len(measured["splits"]["test"]["classes"]) == 100
    text = table(measured, width=100)
    assert "the 15 with the lowest F1 of 100; metrics.json has all" in text
    assert len(text.splitlines()) < 45
    assert "more pairs" in text
    assert "among the first 5" in text
