"""The rule that chooses a recipe: what it weighs, that it keeps to the time, what it refuses."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import network, rule, weights
from fieldmark.data import list_photos
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Network
from fieldmark.rule import Device, Facts
from fieldmark.run import Run

FLOWERS = Facts(count=452, classes=4, smallest=113, largest=113, side=240)
CPU = Device("the CPU", "float32", 350.0)


def test_the_facts_are_those_of_the_photos(birds: Path) -> None:
    facts = Facts.of(list_photos(birds), held_out=0.25)
    assert facts == Facts(count=36, classes=4, smallest=9, largest=9, side=32)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("resnet1") else ())
        for name in rule.MULTIPLY_ADDS
    ],
)
@pytest.mark.usefixtures("whole_network")
def test_the_costs_are_those_of_the_networks(name: Network) -> None:
    built = network.build(name, image_size=224, classes=4)
    found = network.cost(built).multiply_adds
    assert rule.MULTIPLY_ADDS[name] == pytest.approx(found, rel=0.01)


def test_more_time_buys_larger_photos_and_more_epochs() -> None:
    found = [rule.recipe_for(FLOWERS, CPU, minutes) for minutes in (1, 3, 10, 60)]
    sides = [each.recipe.image_size for each in found]
    assert sides == sorted(sides)
    assert sides[0] < sides[-1]
    seen = [each.recipe.epochs * each.recipe.image_size**2 for each in found]
    assert seen == sorted(seen)


@given(
    st.integers(2, 10**6),
    st.integers(2, 1000),
    st.integers(16, 4000),
    st.floats(1, 10**6),
    st.floats(0.1, 10**4),
    st.sampled_from(["", "imagenet", "bit.npz"]),
)
def test_any_photos_get_a_recipe_that_keeps_to_the_time(
    count: int, classes: int, side: int, speed: float, minutes: float, start: str
) -> None:
    facts = Facts(count, min(classes, count), 1, count, side)
    found = rule.recipe_for(
        facts, Device("it", "bfloat16", speed), minutes, wishes={"weights": start}
    )
    recipe = found.recipe
    assert recipe.sizes() == tuple(sorted(recipe.sizes()))
    assert recipe.balance == ("weights" if count > 2 else "none")
    assert all(math.isfinite(value) for value in (found.seconds, recipe.learning_rate))
    if recipe.epochs > rule.FEWEST_EPOCHS:
        assert found.seconds <= max(60 * minutes, rule.START + 5) * 1.01
    assert all(reason.endswith(".") for reason in rule.told(found))


def test_what_hangs_on_a_wish_follows() -> None:
    wishes = {"epochs": 1, "image_size": 32, "batch_size": 64, "augment": 0.9, "seed": 7}
    for start in ("", "imagenet"):
        recipe = rule.recipe_for(FLOWERS, CPU, wishes={"weights": start, **wishes}).recipe
        assert recipe.model_dump().items() >= wishes.items()
        assert recipe.warmup < 1
        assert recipe.validate_every == 1
        assert max(recipe.sizes()) == 32


def test_small_photos_are_not_blown_up() -> None:
    small = Facts(count=452, classes=4, smallest=113, largest=113, side=64)
    assert rule.recipe_for(small, CPU, 600).recipe.image_size == 64


def test_weights_are_probed_or_trained_further_as_time_allows() -> None:
    quick = rule.recipe_for(FLOWERS, CPU, 1, wishes={"weights": "imagenet"}).recipe
    assert (quick.network, quick.probe, quick.epochs) == ("resnet50v2", True, 0)
    long = rule.recipe_for(FLOWERS, CPU, 600, wishes={"weights": "imagenet"}).recipe
    assert (long.probe, long.epochs, long.freeze_normalisation) == (True, 20, True)
    grouped = rule.recipe_for(FLOWERS, CPU, 600, wishes={"weights": "BiT-M-R50x1.npz"}).recipe
    assert (grouped.network, grouped.freeze_normalisation) == ("bit_r50x1", False)
    few = Facts(count=8, classes=4, smallest=2, largest=2, side=240)
    assert rule.recipe_for(few, CPU, 600, wishes={"weights": "imagenet"}).recipe.epochs == 0


def test_weights_say_which_network_they_are_of(trained: Run, tmp_path: Path) -> None:
    assert rule.network_of(str(trained.best)) == "small"
    assert rule.network_of("imagenet") == "resnet50v2"
    assert [rule.side_of(each) for each in (str(trained.best), "imagenet", "bit.npz")] == [
        *(32, 299, 224)
    ]
    for name in ("none.h5", "none.keras"):
        with pytest.raises(FieldmarkError, match="There is no file"):
            rule.network_of(str(tmp_path / name))
        (tmp_path / name).write_text("no weights")
    with pytest.raises(FieldmarkError, match="does not say which network it is of"):
        rule.network_of(str(tmp_path / "none.h5"))
    with pytest.raises(FieldmarkError, match=r"none.keras cannot be read"):
        rule.network_of(str(tmp_path / "none.keras"))
    with zipfile.ZipFile(tmp_path / "odd.keras", "w") as archive:
        archive.writestr("config.json", '{"config": {"name": "odd"}}')
    with pytest.raises(FieldmarkError, match="No recipe is chosen for the network 'odd'"):
        rule.recipe_for(FLOWERS, CPU, 10, wishes={"weights": str(tmp_path / "odd.keras")})


def test_a_batch_is_never_larger_than_the_photos() -> None:
    tiny = Facts(count=10, classes=4, smallest=2, largest=2, side=64)  # 4 x 3, of which 8 are left
    for wishes in ({"weights": "imagenet"}, {}):
        assert rule.recipe_for(tiny, CPU, 60, wishes=wishes).recipe.batch_size <= 8


@pytest.mark.parametrize(
    ("seconds", "wishes", "words"),
    [
        (1, {}, "take longer than the time"),
        (600, {}, "epochs of them fit into the time"),
        (1e6, {}, "are enough: more would gain nothing"),
        (600, {"epochs": 3}, "3 epochs of them are asked for"),
    ],
)
def test_why_so_many_epochs(seconds: float, wishes: dict[str, Any], words: str) -> None:
    assert words in " ".join(rule.recipe_for(FLOWERS, CPU, seconds / 60, wishes=wishes).reasons)


def test_weights_downloaded_before_are_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rule.at_hand() == rule.at_hand("resnet26v2_half") == "fractals"
    assert rule.at_hand("small") == rule.at_hand("resnet50v2") == ""
    monkeypatch.setattr(weights, "downloaded", lambda name: name == "resnet50v2")
    assert rule.at_hand() == rule.at_hand("resnet50v2") == "imagenet"
    assert rule.at_hand("resnet26v2_half") == "fractals"
    assert rule.at_hand("small") == rule.at_hand("resnet101v2") == ""


def test_drawings_are_no_photos() -> None:
    """A small rate, a probe and a size of their own go with weights that have seen photos."""
    nothing = rule.recipe_for(FLOWERS, CPU, 10)
    drawn = rule.recipe_for(FLOWERS, CPU, 10, wishes={"weights": "fractals"})
    assert drawn.recipe == nothing.recipe.changed(weights="fractals")
    assert drawn.seconds == nothing.seconds
    assert "from nothing:" in nothing.reasons[0]
    assert "from weights that have learned drawn fractals:" in drawn.reasons[0]


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 1e308])
def test_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(FieldmarkError, match="are no time to train in"):
        rule.recipe_for(FLOWERS, CPU, minutes)


def test_this_machine_is_measured() -> None:
    found = rule.measured()
    assert found.speed > 0.1
    assert found.precision in ("float32", "bfloat16")
