"""What a training is fed with: the splits, what stays together, and the pixels, for real photos."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from fieldmark import data, feed, images
from fieldmark.backend import keras
from fieldmark.data import Photos, list_photos
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import ARTICLE, Recipe
from fieldmark.run import Run
from fieldmark.split import Record

SMALL_ARTICLE = ARTICLE.changed(network="small", image_size=32)
MINE = TINY.resolved()


def placed(recipe: Recipe, listed: Photos) -> tuple[Record, ...]:
    """Return the split without the groups of copies."""
    return feed.placed(recipe, listed)[0]


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


def test_a_photo_that_comes_while_the_article_s_are_read_is_no_other_split(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    audit = data.audit

    def slowly(listed: data.Photos, decode: Any) -> Any:
        found = audit(listed, decode)
        shutil.copy(photos / listed.paths[0], (photos / listed.paths[0]).with_name("new.jpg"))
        return found

    monkeypatch.setattr(data, "audit", slowly)
    with pytest.raises(FieldmarkError, match=rf"^Photos have come to {photos}, or gone, while"):
        feed.feed(SMALL_ARTICLE, photos)


def test_the_article_s_batches_stay_the_same_and_ours_do_not(birds: Path) -> None:
    def content(images: np.ndarray) -> bytes:
        return np.sort(np.asarray(images).ravel()).tobytes()

    article = feed.feed(SMALL_ARTICLE, birds).article
    assert article is not None
    theirs = article[0]
    first, second = ({content(images) for images, _ in theirs} for _ in range(2))
    assert first == second
    fed = feed.feed(TINY.changed(augment=0.0), birds)
    assert fed.ours is not None
    one, other = fed.ours.epochs
    assert one is other
    seen = [{content(one.batch(epoch, step)[0]) for step in range(len(one))} for epoch in (0, 1)]
    assert not seen[0] & seen[1]


def test_near_duplicates_are_never_parted(more: Path) -> None:
    pairs = []
    for photo in sorted(more.glob("*/000[0-5].jpg")):
        copy = photo.with_name(f"copy-{photo.name}")
        with Image.open(photo) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy, quality=60)
        pairs.append([path.relative_to(more).as_posix() for path in (photo, copy)])
    assert len(pairs) == 24
    records = {row.path: row for row in placed(MINE.changed(test_split=0.2), list_photos(more))}
    for one, other in pairs:
        assert records[one].split == records[other].split
        assert records[one].group == records[other].group != ""
    assert {row.split for row in records.values()} == {"training", "validation", "test"}


def test_groups_by_name_are_never_parted(more: Path) -> None:
    for i, photo in enumerate(sorted(more.glob("*/*.jpg"))):
        photo.rename(photo.with_name(f"place{i % 6}__{i}.jpg"))
    records = placed(MINE.changed(group_by="(.+)__"), list_photos(more))
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
    records = placed(MINE.changed(split=str(trained.folder)), list_photos(more))
    was = {row.path: row.split for row in trained.read_split()}
    now = {row.path: row.split for row in records}
    assert all(now[path] == was[path] for path in now.keys() & was.keys())
    said = capsys.readouterr().out
    names = [path.relative_to(more).as_posix() for path in (gone, altered)]
    assert f"1 new (Cockatoo/new.png); 1 altered ({names[1]}); 1 missing ({names[0]})" in said


def test_validation_sees_what_images_reads_bit_for_bit(birds: Path) -> None:
    recipe = MINE.changed(square="crop")
    listed = list_photos(birds)
    training, validation = feed.batches_of(recipe, listed, placed(recipe, listed))
    records = [row for row in placed(recipe, listed) if row.split == "validation"]
    spec = feed.specification(recipe)
    for pixels, row in zip(validation.pixels, records, strict=True):
        assert np.array_equal(pixels, images.read((birds / row.path).read_bytes(), spec))
    assert training.pixels.shape[1] > spec.size  # room for crops
    plain, _ = feed.batches_of(MINE.changed(augment=0.0), listed, placed(recipe, listed))
    assert plain.pixels.shape[1] == spec.size


def test_classes_are_balanced_where_asked_for(more: Path) -> None:
    for photo in sorted((more / "Cockatoo").iterdir())[4:]:
        photo.unlink()
    listed = list_photos(more)
    records = placed(MINE, listed)

    def share(balance: str) -> tuple[float, float]:
        batches, _ = feed.batches_of(MINE.changed(balance=balance), listed, records)
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
        for row in placed(MINE, listed)
    ]
    with pytest.raises(FieldmarkError, match="Cockatoo has no photo to train on"):
        feed.batches_of(MINE, listed, records)


def test_nothing_is_written_among_the_photos(
    more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = sorted(more.glob("*/*.jpg"))[0]
    (tmp_path / "way-in").symlink_to(photo.parent)
    before = {path: path.read_bytes() for path in more.rglob("*.jpg")}
    for place in (photo, more / "new.png", tmp_path / "way-in" / "new.jpg"):
        with pytest.raises(FieldmarkError, match="lies among the photos"):
            feed.feed(TINY, more, outputs=[place])
    monkeypatch.setenv("FIELDMARK_CACHE", str(more / "cache"))
    with pytest.raises(FieldmarkError, match="lies among the photos"):
        feed.feed(TINY, more)
    assert {path: path.read_bytes() for path in more.rglob("*.*") if path.is_file()} == {
        **before,
        more / "field_marks.json": (more / "field_marks.json").read_bytes(),
    }


def test_the_figure_of_predictions_shows_several_classes(birds: Path) -> None:
    fed = feed.feed(TINY, birds)
    shown = fed.held_out()
    held_out = [row for row in fed.records if row.split == "validation"]
    squares = {
        images.read((birds / row.path).read_bytes(), fed.specification).tobytes(): row.label
        for row in held_out
    }
    assert len({squares[photo.tobytes()] for photo in shown}) > 2


def test_batches_of_the_cache_go_to_a_worker_by_their_file_s_name(birds: Path) -> None:
    fed = feed.feed(TINY, birds)
    assert fed.ours is not None
    batches = fed.ours.training
    sent = pickle.dumps(batches)
    assert len(sent) < batches.pixels.nbytes / 10
    there = pickle.loads(sent)
    for one, other in zip(batches.batch(1, 2), there.batch(1, 2), strict=True):
        assert np.array_equal(one, other)


def test_what_keras_prints_of_the_validation_is_exact_over_the_photos(birds: Path) -> None:
    """With eight photos in batches of three, the last of which is filled up."""
    recipe = MINE.changed(batch_size=3)
    listed = list_photos(birds)
    _, validation = feed.batches_of(recipe, listed, placed(recipe, listed))
    assert len(validation.labels) == 8
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64)(image))
    network = keras.Model(image, keras.layers.Dense(4)(x))
    network.compile(
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
    )
    found = network.evaluate(
        validation.dataset(epochs=1), steps=len(validation), verbose=0, return_dict=True
    )
    logits = network.predict(validation.pixels.astype("float32"), verbose=0).astype(float)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), validation.labels]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    right = (logits.argmax(axis=1) == validation.labels).mean()
    assert found["accuracy"] == pytest.approx(right, abs=1e-6)


def test_without_a_word_the_split_goes_with_the_pipeline() -> None:
    assert ARTICLE.resolved().split == "article"
    assert ARTICLE.changed(pipeline="batches").resolved().split == "stratified"
    assert ARTICLE.changed(split="mine.csv").resolved().split == "mine.csv"
