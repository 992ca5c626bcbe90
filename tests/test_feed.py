"""What a training is fed with: the splits, what stays together, and the pixels, for real photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from fieldmark import feed, images
from fieldmark.backend import keras
from fieldmark.data import list_photos
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import Run
from fieldmark.split import Record

SMALL_ARTICLE = ARTICLE.changed(network="small", image_size=32)


def of(records: tuple[Record, ...], part: str) -> list[str]:
    """Return the paths of one part of a split."""
    return [record.path for record in records if record.split == part]


@pytest.fixture
def more(birds: Path, tmp_path: Path) -> Path:
    """A copy of the drawn photos that may be changed."""
    return Path(shutil.copytree(birds, tmp_path / "photos"))


@pytest.mark.parametrize("recipe", [SMALL_ARTICLE, TINY.changed(split="article")])
def test_the_article_s_split_is_the_one_of_keras_file_for_file(birds: Path, recipe: Recipe) -> None:
    fed = feed.feed(recipe, birds)
    for part in ("training", "validation"):
        theirs = keras.utils.image_dataset_from_directory(
            str(birds), validation_split=0.2, seed=123, subset=part, verbose=False
        )
        assert sorted(theirs.file_paths) == [str(birds / path) for path in of(fed.records, part)]


def test_the_article_s_batches_stay_the_same_and_ours_do_not(birds: Path) -> None:
    def content(images: np.ndarray) -> bytes:
        return np.sort(np.asarray(images).ravel()).tobytes()

    theirs = feed.feed(SMALL_ARTICLE, birds).training
    first, second = ({content(images) for images, _ in theirs} for _ in range(2))
    assert first == second
    fed = feed.feed(TINY.changed(augment=0.0), birds)
    ours = [content(images) for images, _, _ in fed.training]
    assert len(ours) == 2 * fed.steps
    assert not {*ours[: fed.steps]} & {*ours[fed.steps :]}


def test_near_duplicates_are_never_parted(more: Path) -> None:
    pairs = []
    for photo in sorted(more.glob("*/000[0-5].jpg")):
        copy = photo.with_name(f"copy-{photo.name}")
        with Image.open(photo) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy, quality=60)
        pairs.append([path.relative_to(more).as_posix() for path in (photo, copy)])
    assert len(pairs) == 24
    records = {
        row.path: row for row in feed.placed(TINY.changed(test_split=0.2), list_photos(more))
    }
    for one, other in pairs:
        assert records[one].split == records[other].split
        assert records[one].group == records[other].group != ""
    assert {row.split for row in records.values()} == {"training", "validation", "test"}


def test_groups_by_name_are_never_parted(more: Path) -> None:
    for i, photo in enumerate(sorted(more.glob("*/*.jpg"))):
        photo.rename(photo.with_name(f"place{i % 6}__{i}.jpg"))
    records = feed.placed(TINY.changed(group_by="(.+)__"), list_photos(more))
    sides = {(row.group, row.split) for row in records}
    assert len(sides) == len({group for group, _ in sides}) == 6
    assert {side for _, side in sides} == {"training", "validation"}


def test_a_split_is_handed_on_and_what_has_changed_is_said(
    trained: Run, more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, altered, *_ = sorted(more.glob("*/*.jpg"))
    gone.unlink()
    Image.new("RGB", (32, 32), "teal").save(altered)
    Image.new("RGB", (32, 32), "navy").save(more / "Cockatoo" / "new.png")
    capsys.readouterr()
    records = feed.placed(TINY.changed(split=str(trained.folder)), list_photos(more))
    was = {row.path: row.split for row in trained.read_split()}
    now = {row.path: row.split for row in records}
    assert all(now[path] == was[path] for path in now.keys() & was.keys())
    said = capsys.readouterr().out
    names = [path.relative_to(more).as_posix() for path in (gone, altered)]
    assert f"1 new (Cockatoo/new.png); 1 altered ({names[1]}); 1 missing ({names[0]})" in said


def test_validation_sees_what_images_reads_bit_for_bit(birds: Path) -> None:
    recipe = TINY.changed(square="crop")
    listed = list_photos(birds)
    training, validation = feed.batches_of(recipe, listed, feed.placed(recipe, listed))
    records = [row for row in feed.placed(recipe, listed) if row.split == "validation"]
    spec = feed.specification(recipe)
    for pixels, row in zip(validation.pixels, records, strict=True):
        assert np.array_equal(pixels, images.read((birds / row.path).read_bytes(), spec))
    assert training.pixels.shape[1] > spec.size  # room for crops
    plain, _ = feed.batches_of(TINY.changed(augment=0.0), listed, feed.placed(recipe, listed))
    assert plain.pixels.shape[1] == spec.size


def test_classes_are_balanced_where_asked_for(more: Path) -> None:
    for photo in sorted((more / "Cockatoo").iterdir())[4:]:
        photo.unlink()
    listed = list_photos(more)
    records = feed.placed(TINY, listed)

    def share(balance: str) -> tuple[float, float]:
        batches, _ = feed.batches_of(TINY.changed(balance=balance), listed, records)
        drawn = [batches.batch(epoch, step) for epoch in range(8) for step in range(len(batches))]
        labels = np.concatenate([labels for _, labels, _ in drawn])
        weights = np.concatenate([weights for _, _, weights in drawn])
        return labels[:, 3].mean(), (labels[:, 3] * weights).sum() / weights.sum()

    count, weight = share("none")
    assert count == weight < 0.15
    count, weight = share("weights")
    assert count < 0.15
    assert weight == pytest.approx(0.25, abs=0.05)
    count, weight = share("sampling")
    assert count == weight == pytest.approx(0.25, abs=0.02)


def test_a_class_without_training_photos_is_named(birds: Path) -> None:
    listed = list_photos(birds)
    records = [
        Record(row.path, row.label, "validation", "", row.sha256)
        if row.label == "Cockatoo"
        else row
        for row in feed.placed(TINY, listed)
    ]
    with pytest.raises(FieldmarkError, match="Cockatoo has no photo to train on"):
        feed.batches_of(TINY, listed, records)
