"""The folder of a search: kept whole, read back, told to people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fieldmark import space
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import SCRATCH, named
from fieldmark.trials import Plan, Search, State, Trial, is_search, open_search, sentence, table

SPACE = space.default(SCRATCH, settled=("average",))
POINT = space.point(SPACE, SCRATCH)
SMALL = SCRATCH.changed(image_size=96, begin_size=64, end_size=96, epochs=200)


def search_in(folder: Path, *trials: Trial, monitor: str = "loss") -> Search:
    """Return a search with these trials."""
    bases = {128: SCRATCH.changed(monitor=monitor), 96: SMALL.changed(monitor=monitor)}
    plan = Plan("photos", {"values": {}}, "jax", bases, 128, SPACE)
    folder.mkdir(exist_ok=True)
    return Search(folder, plan, list(trials))


def trial(
    number: int, loss: float, *, state: State = "done", values: Mapping[str, object] | None = None
) -> Trial:
    """Return a trial that is over."""
    point = {**POINT, **(values or {})}
    return Trial(number, point, state, loss, 7, True, loss, 1 - loss, 10, 12.5)


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    search = search_in(tmp_path / "s", trial(0, 0.5), Trial(1, POINT, "failed", reason='a, "b"'))
    assert not is_search(search.folder)
    search.save()
    assert is_search(search.folder)
    assert open_search(search.folder) == search


def test_a_search_that_is_damaged_or_newer_is_refused(tmp_path: Path) -> None:
    search = search_in(tmp_path / "s")
    search.save()
    file = search.folder / "tune.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), "schema": 99}))
    with pytest.raises(FieldmarkError, match="schema 99"):
        open_search(search.folder)
    file.write_text(whole[:-20])
    with pytest.raises(FieldmarkError, match="cannot be read"):
        open_search(search.folder)


@pytest.mark.parametrize(
    ("part", "content"),
    [("space", []), ("bases", []), ("side", 64), ("asked", None), ("trials", [{"number": 0}])],
)
def test_a_search_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, part: str, content: object
) -> None:
    search = search_in(tmp_path / "s", trial(0, 0.5))
    search.save()
    file = search.folder / "tune.json"
    whole = json.loads(file.read_text())
    (whole if part == "trials" else whole["plan"])[part] = content
    file.write_text(json.dumps(whole))
    with pytest.raises(FieldmarkError, match="cannot be read"):
        open_search(search.folder)


def test_the_values_of_a_trial_are_of_the_space(tmp_path: Path) -> None:
    search = search_in(tmp_path / "s", Trial(0, {}))
    search.save()
    with pytest.raises(FieldmarkError, match="cannot be read"):
        open_search(search.folder)


def test_the_best_was_trained_to_its_end(tmp_path: Path) -> None:
    lower = trial(2, 0.1, state="stopped")
    search = search_in(tmp_path / "s", trial(0, 0.5), trial(1, 0.4), lower, trial(3, 0.4))
    assert search.best is not None
    assert search.best.number == 1  # the first of equals
    assert search_in(tmp_path / "t", lower, Trial(1, POINT)).best is None


def test_by_accuracy_the_loss_decides_among_equals(tmp_path: Path) -> None:
    rows = [Trial(n, POINT, "done", 0.9, loss=0.5 - n / 10, accuracy=0.9) for n in range(2)]
    best = search_in(tmp_path / "s", *rows, monitor="accuracy").best
    assert best is not None
    assert best.number == 1


def test_the_end_of_a_trial_leaves_table_and_recipe(tmp_path: Path) -> None:
    search = search_in(tmp_path / "s", trial(0, 0.5))
    search.end(trial(0, 0.5))
    assert named(str(search.recipe)) == SCRATCH
    for _ in range(2):
        search.begin(POINT)
    search.end(trial(2, 0.25, values={"augment": 0.75, "mixup": 0.2}))
    better = named(str(search.recipe))
    assert better == SCRATCH.changed(augment=0.75, mixup=0.2)
    assert "Trial 2 of 2" in search.recipe.read_text()
    rows = list(csv.DictReader(search.table.read_text(encoding="utf-8").splitlines()))
    assert [(row["trial"], row["state"], row["augment"]) for row in rows] == [
        ("0", "done", "0.5"),
        ("2", "done", "0.75"),
    ]
    assert open_search(search.folder).trials[1].state == "begun"


def test_an_image_size_brings_its_own_epochs(tmp_path: Path) -> None:
    plan = search_in(tmp_path / "s").plan
    found = plan.recipe({"image_size": 96, "augment": 0.1})
    assert found == SMALL.changed(augment=0.1)
    assert plan.recipe({}) == SCRATCH
    with pytest.raises(FieldmarkError, match="--augment 2"):
        plan.recipe({"augment": 2.0})


def test_the_table_has_the_chosen_recipe_however_bad_it_is(tmp_path: Path) -> None:
    trials = [trial(0, 0.9), *(trial(n, n / 100) for n in range(1, 15))]
    trials.append(Trial(15, POINT, "failed", reason="too large"))
    text = table(search_in(tmp_path / "s", *trials))
    words = [line.split()[0] for line in text.splitlines() if line]
    numbers = [word for word in words[1:] if word.isdigit()]
    assert numbers == [str(n) for n in (*range(1, 11), 0)]
    assert "16 trials, 0 stopped early, 1 failed" in text


def test_a_line_says_what_came_of_a_trial() -> None:
    assert "the chosen recipe" in sentence(trial(0, 0.5))
    stopped = sentence(trial(3, 0.5, state="stopped", values={"mixup": 0.2}))
    assert "stopped early" in stopped
    assert "mixup 0.2" in stopped
    assert "too large" in sentence(Trial(4, POINT, "failed", reason="too large"))
