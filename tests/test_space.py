"""What a search may change: the fields, their bounds, and the file that names others."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldmark import space
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, FINETUNE, SCRATCH, Recipe
from fieldmark.space import Span


@pytest.mark.parametrize("recipe", [SCRATCH, FINETUNE, ARTICLE], ids=["scratch", "finetune", "art"])
def test_the_recipe_lies_within_and_every_corner_is_a_recipe(recipe: Recipe) -> None:
    found = space.default(recipe, sides=(96, 128))
    assert set(found) == {*space.SEARCHED, "image_size"}
    for name, axis in found.items():
        value = getattr(recipe, name)
        if isinstance(axis, Span):
            assert axis.low <= value <= axis.high
            corners: tuple[object, ...] = axis[:2]
        else:
            assert value in axis
            corners = axis
        for corner in corners:
            recipe.changed(**{name: corner})


def test_what_is_settled_is_not_searched() -> None:
    found = space.default(SCRATCH, sides=(96, 128), settled=("augment", "image_size"))
    assert {"augment", "image_size"}.isdisjoint(found)
    assert "image_size" not in space.default(SCRATCH, sides=(128,))


def test_a_batch_is_not_larger_than_the_photos() -> None:
    assert space.default(SCRATCH, most=20)["batch_size"] == (8, 16)
    assert space.default(SCRATCH)["batch_size"] == (8, 16, 32)


def test_a_file_names_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        "learning_rate = { low = 0.01, high = 0.1, log = true }\n"
        "batch_size = { low = 4, high = 64 }\n"
        'optimiser = ["sgd", "adam"]\n'
    )
    assert space.read(file, SCRATCH) == {
        "learning_rate": Span(0.002, 0.1, log=True),  # widened to the recipe's own
        "batch_size": Span(4, 64, whole=True),
        "optimiser": ("adamw", "sgd", "adam"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no field to search"),
        ("augment = ", "cannot be read"),
        ("augment = 0.5", "augment is neither a list"),
        ("augment = [0.5]", "augment is neither a list"),
        ("augment = { low = 0.1 }", "augment is neither a list"),
        ("augment = { low = 0.1, high = 0.2, whole = true }", "augment is neither a list"),
        ("augment = { low = 0.5, high = 0.1 }", "a low below the high"),
        ("augment = { low = 0.0, high = 0.1, log = true }", "above 0 with log"),
        ('augment = { low = "a", high = "b" }', "no number"),
        ('optimiser = { low = "adam", high = "sgd" }', "no number"),
        ("probe = { low = false, high = true }", "no number"),
        ("clip = { low = 0.5, high = inf }", "no number"),
        ("augment = { low = 0.1, high = 0.2, log = 1 }", "neither true nor false"),
        ("a = " + 5000 * "[" + 5000 * "]", "cannot be read"),
        ("augment = { low = 0.1, high = 7 }", "--augment 7"),
        ('optimiser = ["adam", "lion"]', "--optimiser 'lion'"),
        ("colour = [1, 2]", "a recipe has no colour"),
        ("colour = { low = 1, high = 2 }", "a recipe has no colour"),
        ("seed = [1, 2]", "seed must be the same"),
        ("mixup = { low = 0.1, high = 1.0, log = true }", "mixup is 0 in the recipe"),
        ("cutmix = [0.0, 1.0]", "cutmix is settled"),
    ],
)
def test_a_file_that_is_no_space_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(FieldmarkError, match=said) as caught:
        space.read(file, SCRATCH, settled=("cutmix",))
    assert "\n" not in str(caught.value)
    with pytest.raises(FieldmarkError, match="cannot be read"):
        space.read(tmp_path / "none.toml", SCRATCH)


def test_a_file_may_be_of_any_editor_s_unicode(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text("augment = [0.0, 1.0]  # größer", encoding=encoding)
        assert space.read(file, SCRATCH) == {"augment": (SCRATCH.augment, 0.0, 1.0)}
        assert space.text(file).endswith("größer")
    file.write_bytes(b"# gr\xf6sser")
    with pytest.raises(FieldmarkError, match="cannot be read"):
        space.text(file)


def test_numbers_are_rounded_and_stay_within() -> None:
    whole = Span(1, 9, whole=True)
    axes = {"augment": Span(0.12345, 0.56789), "mixup": (0.0, 0.2), "batch_size": whole}
    for drawn, kept in ((0.12345, 0.12345), (0.2345678, 0.235), (0.567885, 0.56789)):
        found = space.rounded(axes, {"augment": drawn, "mixup": 0.2, "batch_size": 3})
        assert found == {"augment": kept, "mixup": 0.2, "batch_size": 3}


def test_it_comes_back_from_json() -> None:
    found = dict(space.default(SCRATCH, sides=(96, 128)))
    assert space.from_json(space.as_json(found)) == found
