"""Runs are compared on the photos that both have held out, and chance is given its due."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fieldmark import compare, predictions, run
from fieldmark.compare import Comparison
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.predictions import Predictions
from fieldmark.recipe import ARTICLE
from fieldmark.split import Record

SPEC = ImageSpec(size=32, mode="squash", interpolation="bilinear", scaling="0..255")
CLASSES = ("ant", "bee")

Made = Callable[..., str]


def sha256(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Make a run whose predictions are right or wrong as told, photo by photo, and name it."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        right: Sequence[bool] | NDArray[np.bool_],
        *,
        first: int = 0,
        split: str = "validation",
        classes: tuple[str, ...] = CLASSES,
        groups: Sequence[str] = (),
        trained: Sequence[int] = (),
        flipped: Sequence[int] = (),
        sure: float = 0.8,
    ) -> str:
        count = len(right)
        labels = [CLASSES[(i % 2) ^ (i in flipped)] for i in range(first, first + count)]
        photos = [f"{i}.jpg" for i in range(first, first + count)]
        folder = run.create(
            Path(name),
            recipe=ARTICLE,
            environment={},
            classes=classes,
            specification=SPEC,
            records=[Record("t.jpg", "ant", "training", "", sha256(9999))]
            + [Record(f"t{i}.jpg", "ant", "training", "", sha256(i)) for i in trained],
        )
        numbers = np.array([classes.index(label) for label in labels])
        own = np.where(np.asarray(right, bool), sure, 1 - sure)
        given_ = np.tile(((1 - own) / (len(classes) - 1))[:, None], (1, len(classes)))
        given_[np.arange(count), numbers] = own
        table = Predictions(
            classes=classes,
            paths=tuple(photos),
            splits=(split,) * count,
            labels=numbers,
            groups=tuple(groups or [""] * count),
            sha256=tuple(map(sha256, range(first, first + count))),
            probabilities=given_,
        )
        predictions.write(folder.predictions, table)
        return name

    return make


def quick(*names: str, split: str | None = None) -> Comparison:
    return compare.compare(names, split=split, resamples=500)


def pattern(both: int, only_first: int, only_other: int, neither: int) -> tuple[list[bool], ...]:
    """Return what two runs have right, so many photos of each kind."""
    first = [True] * both + [True] * only_first + [False] * (only_other + neither)
    other = [True] * both + [False] * only_first + [True] * only_other + [False] * neither
    return first, other


# ---- the figures --------------------------------------------------------------------------------


def test_a_difference_larger_than_chance_is_said(made: Made) -> None:
    first, other = pattern(60, 4, 20, 16)
    found = quick(made("a", first), made("b", other))
    assert (found.photos, found.groups, found.notes) == (100, 100, ())
    assert [each.accuracy for each in found.results] == [0.64, 0.8]
    (each,) = found.differences
    assert (each.only_first, each.only_this) == (4, 20)
    assert each.accuracy == pytest.approx(0.16)
    assert each.accuracy_low is not None
    assert each.accuracy_high is not None
    assert 0.05 < each.accuracy_low < 0.09
    assert 0.22 < each.accuracy_high < 0.28
    assert each.p == each.p_holm == pytest.approx(stats.binomtest(4, 24).pvalue)
    assert each.log_loss == pytest.approx(-0.16 * np.log(0.8 / 0.2))
    assert each.larger_than_chance
    assert each.sentence == (
        "b is better than a by 16.0 points on the same 100 photos, which is more than chance makes "
        "(p = 0.0015)."
    )
    # The other way round it is the same, and the first run is the better one.
    (back,) = quick("b", "a").differences
    assert back.accuracy == -each.accuracy
    assert back.p == each.p
    assert back.sentence == each.sentence


def test_a_difference_that_chance_makes_says_what_would_have_shown(made: Made) -> None:
    first, other = pattern(70, 9, 13, 8)
    (each,) = quick(made("a", first), made("b", other)).differences
    assert not each.larger_than_chance
    assert each.accuracy_low is not None
    assert each.accuracy_low < 0
    assert each.sentence == (
        "b is 4.0 points above a on the same 100 photos, which chance makes too (p = 0.52); a true "
        f"difference of about {100 * each.detectable:.1f} points would show in four of five such "
        "sets of photos."
    )
    assert 0.1 < each.detectable < 0.2


def test_runs_that_are_right_on_the_same_photos_differ_in_nothing(made: Made) -> None:
    first, _ = pattern(9, 3, 0, 0)
    (each,) = quick(made("a", first), made("b", first)).differences
    assert (each.p, each.accuracy, each.log_loss) == (1, 0, 0)
    assert (each.accuracy_low, each.log_loss_low, each.larger_than_chance) == (None, None, False)
    assert each.sentence.startswith("b has as many right as a on the same 12 photos; a true diff")


def test_of_several_runs_each_is_held_against_the_first(made: Made) -> None:
    first, other = pattern(50, 4, 15, 3)
    runs = [made("a", first), made("b", other), made("c", first), made("d", other, sure=0.99)]
    found = quick(*runs)
    assert [each.run for each in found.differences] == ["b", "c", "d"]
    b, c, d = found.differences
    assert b.p == d.p == pytest.approx(0.0192, abs=1e-4)
    assert b.p_holm == d.p_holm == pytest.approx(3 * b.p)
    assert c.p_holm == 1
    assert not b.larger_than_chance  # alone it would be
    assert b.accuracy == d.accuracy
    assert b.log_loss != d.log_loss
    (alone,) = quick("a", "b").differences
    assert alone.larger_than_chance
    text = compare.table(found, width=100)
    assert "(Holm)" in text
    assert "(Holm)" not in compare.table(quick("a", "b"))
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["differences"][1]["run"] == "c"


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_fall_of_coins(first: int, other: int) -> None:
    count = first + other
    ways = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    expected = ways[ways <= ways[other] * (1 + 1e-7)].sum()
    assert compare.mcnemar(first, other) == pytest.approx(expected)


def test_holm_is_as_published() -> None:
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.5]) == [0.5]
    assert compare.holm([0.6, 0.9]) == [1.0, 1.0]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 4))
def test_a_detectable_difference_is_mostly_found(first: int, other: int, comparisons: int) -> None:
    gains = np.concatenate([np.full(first, -1.0), np.full(other, 1.0), np.zeros(80)])
    found = compare.detectable((first, other), gains, comparisons)
    level = 0.05 / comparisons
    m = max(first + other, next(m for m in range(99) if 2 * 0.5**m <= level))
    share = (found * len(gains) / m + 1) / 2
    shows = [compare.mcnemar(m - k, k) <= level and k > m / 2 for k in range(m + 1)]
    power = stats.binom.pmf(np.arange(m + 1), m, min(share, 1))[shows].sum()
    assert power == pytest.approx(0.8, abs=1e-6) or (found == 1 and power <= 0.8)


def test_the_photos_of_a_group_have_one_voice(made: Made) -> None:
    # Twelve copies of one photo, on which b alone is right, say little.
    first, other = pattern(20, 1, 12, 5)
    groups = [""] * 21 + ["g"] * 12 + [""] * 5
    apart = quick(made("a", first), made("b", other)).differences[0]
    # It is enough that one of the runs knows of the group.
    found = quick("a", made("c", other, groups=groups))
    together = found.differences[0]
    assert found.groups == 27
    assert apart.larger_than_chance
    assert not together.larger_than_chance
    assert together.p == 1
    assert together.accuracy == apart.accuracy
    assert together.accuracy_low is not None
    assert together.accuracy_low <= 0 < (apart.accuracy_low or 0)
    assert "27 groups" in compare.table(found)


def test_what_groups_and_photos_say_against_each_other_is_not_sure(made: Made) -> None:
    first, other = pattern(5, 12, 20, 0)
    (each,) = quick(made("a", first), made("b", other, groups=[""] * 17 + ["g"] * 20)).differences
    assert each.accuracy > 0
    assert each.p < 0.05  # twelve voices to one
    assert not each.larger_than_chance


# ---- the photos ---------------------------------------------------------------------------------


def test_only_photos_that_both_hold_out_count(made: Made) -> None:
    made("a", [True] * 10)
    made("b", [False] * 10, first=4, trained=[2])
    found = quick("a", "b")
    assert (found.photos, found.notes) == (6, ())
    made("c", [True] * 10, first=4, split="new", trained=[5])
    found = quick("a", "c")  # which has trained on one of its new photos
    assert found.photos == 5
    assert found.notes == (
        "1 photo left out, as a run has trained on it.",
        "5 photos validated some runs and not all: a run that has chosen its best epoch by a photo "
        "has a small advantage on it.",
    )
    assert "Note: 1 photo left out" in compare.table(found)
    made("d", [True] * 10, split="training")
    with pytest.raises(FieldmarkError, match="a, d have no held-out photo in common"):
        quick("a", "d")


@pytest.mark.parametrize("large", [8, 20])
def test_where_large_groups_weigh_against_most_neither_is_better(made: Made, large: int) -> None:
    first, other = pattern(0, large, 8, 0)
    groups = ["g"] * large + [""] * 8
    (found,) = quick(made("a", first, groups=groups), made("b", other, groups=groups)).differences
    assert found.p == pytest.approx(2 * 10 / 2**9)  # eight of nine groups
    assert not found.larger_than_chance
    assert "differ by more than chance makes (p = 0.039) on the same" in found.sentence
    assert "but not to one side" in found.sentence


def test_a_split_can_be_named(made: Made) -> None:
    made("a", [True] * 4, split="test")
    made("b", [True] * 4, split="test")
    made("c", [True] * 4)
    assert quick("a", "b", split="test").photos == 4
    assert quick("a", "c").photos == 4
    with pytest.raises(
        FieldmarkError, match="a, c have no test photo in common: train on the same"
    ):
        quick("a", "c", split="test")


def test_the_classes_may_stand_in_another_order(made: Made) -> None:
    first, other = pattern(6, 1, 2, 1)
    made("a", first)
    made("b", other)
    made("c", other, classes=("bee", "ant"))
    for one, two in zip(quick("a", "b").results, quick("a", "c").results, strict=True):
        assert (one.accuracy, one.log_loss) == (two.accuracy, two.log_loss)


def test_copies_of_a_photo_count_once(made: Made) -> None:
    made("a", [True] * 6)
    made("b", [True] * 6)
    for name in ("a", "b"):
        path = run.open_run(name).predictions
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([*lines, lines[1].replace("0.jpg", "copy.jpg")]) + "\n")
    assert quick("a", "b").photos == 6


def test_what_cannot_be_compared_is_one_sentence(made: Made, tmp_path: Path) -> None:
    made("a", [True] * 8)
    made("far", [True] * 8, first=100)
    made("other", [True] * 8, flipped=[3])
    made("three", [True] * 8, classes=("ant", "bee", "[b]cat\x1b"))
    made("taught", [True] * 8, trained=range(8))
    made("bare", [True] * 8)
    run.open_run("bare").predictions.unlink()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    for names, sentence in {
        ("a",): "A comparison takes two runs or more",
        ("a", "far"): r"a, far have no held-out photo in common: train on the same split "
        r"\(`fieldmark train PHOTOS --split RUN`\)",
        ("a", "taught"): "Of a, taught one has trained on every held-out photo",
        ("a", "other"): r"sha256 000000000000\.\.\. is bee in a and ant in other: decide which",
        ("a", "three"): r"different classes apart \(one alone knows \[b\]cat\\x1b\)",
        ("a", "bare"): "bare has no predictions: `fieldmark evaluate bare` makes them",
        ("a", "none"): "none is not a run folder",
        ("a", "link"): "link is named twice",
        ("a", "loop"): "loop is not a run folder",
    }.items():
        with pytest.raises(FieldmarkError, match=sentence):
            quick(*names)
    made("b", [True] * 8)
    with pytest.raises(FieldmarkError, match="No photos of the split 'training' can be compared"):
        quick("a", "b", split="training")
    with pytest.raises(FieldmarkError, match="0 resamples make no interval"):
        compare.compare(["a", "b"], resamples=0)


def test_the_table_fits_and_names_do_nothing_to_the_terminal(made: Made) -> None:
    first, other = pattern(6, 1, 2, 1)
    found = quick(made("[bold]a", first), made("red \x1b[31m" + "long " * 20, other))
    text = compare.table(found, width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "[bold]a" in text
    assert "10 held-out photos in common" in text
    assert "+10.0 (" in text
    assert "the same 10 photos" in text.replace("\n", " ")
