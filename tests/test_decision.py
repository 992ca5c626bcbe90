"""A temperature changes how sure an answer is, never which; a threshold, whether there is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.decision import Decision, softened
from fieldmark.errors import FieldmarkError

DECISION = Decision(temperature=2.0, threshold=0.6, coverage=0.95, photos=40)
GOOD = DECISION.model_dump_json()

logits = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5)


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@given(logits, st.floats(0.05, 20))
def test_it_is_the_softmax_of_divided_logits(rows: list[list[float]], temperature: float) -> None:
    values = np.array(rows)
    np.testing.assert_allclose(
        softened(softmax(values), temperature), softmax(values / temperature), atol=1e-9
    )


def test_a_temperature_for_each_photo() -> None:
    given_ = np.array([[0.8, 0.2], [0.8, 0.2]])
    np.testing.assert_allclose(
        softened(given_, np.array([[1.0], [0.5]])), [[0.8, 0.2], [16 / 17, 1 / 17]]
    )


def test_a_probability_of_zero_stays_a_number() -> None:
    found = softened(np.array([[1.0, 0.0], [0.0, 1.0]]), 20.0)
    assert np.isfinite(found).all()
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_what_is_unsure_has_no_answer() -> None:
    rows = np.array([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    calibrated = DECISION.calibrated(rows)
    np.testing.assert_allclose(calibrated[0], [0.75, 0.25])  # 0.9 to 0.1, its root 3 to 1
    assert DECISION.answers(rows).tolist() == [True, False, True]
    assert DECISION.answers(rows[0]).tolist() is True
    exactly = DECISION.model_copy(update={"threshold": float(calibrated[0, 0])})
    assert exactly.answers(rows[:1]).tolist() == [True]


def test_json_brings_it_back() -> None:
    assert Decision.from_json(GOOD) == DECISION
    assert Decision.from_json(GOOD.replace("2.0", "2")) == DECISION


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSON"),
        ("{}", "temperature: Field required"),
        (GOOD.replace("2.0", '"2"'), "temperature"),
        (GOOD.replace("2.0", "0"), "temperature"),
        (GOOD.replace("2.0", "1e-320"), "temperature"),
        (GOOD.replace("2.0", "1e300"), "temperature"),
        (GOOD.replace("2.0", "NaN"), "temperature"),
        (GOOD.replace("0.6", "1.5"), "threshold"),
        (GOOD.replace("0.95", "0"), "coverage"),
        (GOOD.replace("40", "0"), "photos"),
        (GOOD.replace("}", ',"margin":1}'), "margin"),
    ],
)
def test_anything_else_is_one_sentence(text: str, why: str) -> None:
    with pytest.raises(FieldmarkError, match=why) as caught:
        Decision.from_json(text)
    assert str(caught.value).endswith("`fieldmark evaluate RUN` writes them anew.")
