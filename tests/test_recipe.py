"""The values of a run: the article's, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, RECIPES, Recipe, named


def test_the_article_is_as_published() -> None:
    assert ARTICLE.model_dump() == {
        "network": "article",
        "pipeline": "article",
        "image_size": 224,
        "square": "squash",
        "batch_size": 8,
        "epochs": 10,
        "learning_rate": 0.001,
        "split": "auto",
        "validation_split": 0.2,
        "test_split": 0.0,
        "group_by": "",
        "split_seed": 123,
        "augment": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "balance": "none",
        "seed": 0,
    }


def test_every_field_has_a_reason_and_there_are_twenty_at_most() -> None:
    fields = Recipe.model_fields
    assert len(fields) <= 20
    assert all(len(field.description or "") > 20 for field in fields.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(named(name).model_dump_json())
    assert named(str(file)) == named(name)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        ARTICLE.epochs = 3
    assert ARTICLE.changed(epochs=3).epochs == 3
    assert ARTICLE.epochs == 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"epochs": 0}', "epochs 0: Input should be greater than or equal to 1"),
        ('{"epochs": "3"}', "epochs '3': Input should be a valid integer"),
        ('{"epoch": 3}', "epoch 3: Extra inputs are not permitted"),
        ('{"image_size": 8}', "image_size 8: Input should be greater than or equal to 32"),
        ('{"network": "vgg"}', "network 'vgg': Input should be 'article' or 'small'"),
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(FieldmarkError) as caught:
        named(str(file))
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(FieldmarkError, match="no recipe 'best': name one of article, small"):
        named("best")


@given(st.binary(max_size=200))
def test_any_file_is_a_recipe_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("recipes") / "any.json"
    file.write_bytes(content)
    try:
        assert isinstance(named(str(file)), Recipe)
    except FieldmarkError as error:
        assert "any.json" in str(error)
