"""The values of a run: the article's, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, RECIPES, Recipe, named


def test_the_article_is_as_published() -> None:
    assert ARTICLE.model_dump() == {
        "network": "article",
        "weights": "",
        "probe": False,
        "freeze_normalisation": False,
        "pipeline": "article",
        "image_size": 224,
        "begin_size": 0,
        "end_size": 0,
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
        "label_smoothing": 0.0,
        "weight_decay": 0.0,
        "accumulate": 1,
        "optimiser": "adam",
        "schedule": "constant",
        "warmup": 0.0,
        "clip": 0.0,
        "average": 0.0,
        "precision": "float32",
        "validate_every": 1,
        "statistics": 0,
        "monitor": "accuracy",
        "patience": 0,
        "balance": "none",
        "seed": 0,
    }


def test_every_field_has_a_reason() -> None:
    fields = Recipe.model_fields
    assert all(len(field.description or "") > 20 for field in fields.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(tmp_path: Path, name: str) -> None:
    recipe = named(name).changed(group_by='(.+)"\\\\__é')
    for file, text in (("mine.json", recipe.model_dump_json()), ("mine.toml", str(recipe))):
        (tmp_path / file).write_text(text, encoding="utf-8")
        assert named(str(tmp_path / file)) == recipe


def test_the_photos_grow_by_steps() -> None:
    grows = ARTICLE.changed(begin_size=96, end_size=160, epochs=7)
    assert grows.sizes() == (96, 96, 96, 128, 128, 160, 160)
    assert grows.changed(begin_size=160, end_size=96, epochs=3).sizes() == (160, 128, 96)
    assert grows.changed(epochs=2).sizes() == (128, 160)
    assert grows.changed(begin_size=100, epochs=3).sizes() == (100, 132, 160)
    assert ARTICLE.sizes() == (224,) * 10


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epochs": 0}, "0 epochs train nothing"),
        ({"warmup": 10.0}, "a warm-up of 10 epochs leaves nothing of a training of 10"),
        ({"begin_size": 16}, "begin_size 16 is too small"),
        ({"freeze_normalisation": True}, "no normalisation to freeze without weights"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: Input should be greater than 0"),
        ({"average": 1.0}, "--average 1.0: Input should be less than 1"),
        ({"accumulate": 0}, "--accumulate 0: Input should be greater than or equal to 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(FieldmarkError, match=reason):
        ARTICLE.changed(**values)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        ARTICLE.epochs = 3
    assert ARTICLE.changed(epochs=3).epochs == 3
    assert ARTICLE.epochs == 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"epochs": -1}', "epochs -1: Input should be greater than or equal to 0"),
        ('{"epochs": "3"}', "epochs '3': Input should be a valid integer"),
        ('{"epoch": 3}', "epoch 3: Extra inputs are not permitted"),
        ('{"image_size": 8}', "image_size 8: Input should be greater than or equal to 32"),
        ('{"network": "vgg"}', "network 'vgg': Input should be 'article', 'resnet50v2'"),
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
    with pytest.raises(FieldmarkError, match="no recipe 'best': name one of article, scratch"):
        named("best")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("epochs = 3.5", "epochs 3.5: Input should be a valid integer"),
        ("epoch = 3", "epoch 3: Extra inputs are not permitted"),
        ("epochs", "Expected '='"),
    ],
)
def test_a_wrong_toml_is_refused_with_its_reason(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(FieldmarkError) as caught:
        named(str(file))
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from(["any.json", "any.toml", "any"]))
def test_any_file_is_a_recipe_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    file = tmp_path_factory.mktemp("recipes") / name
    file.write_bytes(content)
    try:
        assert isinstance(named(str(file)), Recipe)
    except FieldmarkError as error:
        assert name in str(error)
