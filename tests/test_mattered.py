"""Which fields mattered: known ones are found, and chance is not taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fieldmark.mattered import mattered, picture, sentence
from fieldmark.trials import Search
from test_trials import search_in, trial


def drawn(folder: Path, count: int, *, effect: float) -> Search:
    """Return trials in which the loss follows the rate's logarithm, and chance."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        rate = float(10 ** random.uniform(-3.5, -2))
        loss = 0.5 + effect * (np.log10(rate) + 2.5) ** 2 + random.normal(0, 0.01)
        values = {"augment": float(random.random()), "mixup": float(random.choice((0.0, 0.2)))}
        rows.append(trial(number, float(loss), values={"learning_rate": rate, **values}))
    return search_in(folder, *rows)


def test_the_field_that_decides_comes_first(tmp_path: Path) -> None:
    found = mattered(drawn(tmp_path / "s", 24, effect=0.5))
    assert found is not None
    assert next(iter(found.fields)) == "learning_rate"
    assert found.fields["learning_rate"] > 5 * found.chance
    assert found.share > 0.5
    assert "learning_rate" in sentence(found)


def test_chance_is_not_taken_for_a_field(tmp_path: Path) -> None:
    found = mattered(drawn(tmp_path / "s", 24, effect=0.0))
    assert found is not None
    assert found.share <= 0
    assert "cannot be told" in sentence(found)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_picture_has_a_place_for_each_field(tmp_path: Path, count: int) -> None:
    search = drawn(tmp_path / "s", count, effect=0.5)
    found = mattered(search)
    assert (found is None) == (count < 10)
    figure = picture(search, found)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "What mattered"
    assert set(titles[1:]) == set(search.plan.space)
    figure.savefig(tmp_path / "picture.png")
    assert all(len(axes.collections) == 4 for axes in figure.axes[1:])


def test_trials_that_are_all_alike_say_nothing(tmp_path: Path) -> None:
    assert mattered(search_in(tmp_path / "s", *(trial(n, 0.5) for n in range(12)))) is None
