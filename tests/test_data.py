"""The list of photos against Keras' own, and every folder that cannot be trained on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.data import Record, audit, left_out, list_photos, records
from fieldmark.errors import FieldmarkError


def photo(path: Path) -> Path:
    """Write a small photo of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    return path


def two_classes(folder: Path) -> Path:
    """Write a folder of two classes with two photos each."""
    for name in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"):
        photo(folder / name)
    return folder


def test_the_list_is_the_one_of_keras(tmp_path: Path) -> None:
    from fieldmark.backend import keras

    two_classes(tmp_path)
    odd = (
        "ant/b/3.PNG",
        "ant/a/4.jpeg",
        "ant/10.jpg",
        "bee/._1.png",
        "bee/.h/5.bmp",
        "Äh 鳥/x.gif",
    )
    for name in (*odd, "zoo/z.png", ".hidden/1.png", "ant/6.webp", "ant/notes.txt", "top.png"):
        photo(tmp_path / name)
    (tmp_path / "bee" / "linked").symlink_to(tmp_path / "ant")  # a folder that is not followed
    (tmp_path / "cow").symlink_to(tmp_path / "ant")  # a class that is
    photos = list_photos(tmp_path)
    theirs = keras.utils.image_dataset_from_directory(
        str(tmp_path), shuffle=False, image_size=(8, 8), verbose=False
    )
    assert list(photos.classes) == theirs.class_names
    assert [str(tmp_path / path) for path in photos.paths] == theirs.file_paths
    labels = [int(label) for _, batch in theirs for label in batch]
    assert list(photos.labels) == labels


def test_the_audit_returns_the_hashes(tmp_path: Path) -> None:
    photos = list_photos(two_classes(tmp_path))
    hashes = audit(photos, lambda content: None)
    assert hashes == {
        path: hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for path in photos.paths
    }


def test_the_audit_names_every_bad_file_at_once(tmp_path: Path) -> None:
    def decode(content: bytes) -> None:
        if content == b"bad":
            raise ValueError("not a photo")

    two_classes(tmp_path)
    (tmp_path / "ant" / "2.png").write_bytes(b"bad")
    (tmp_path / "bee" / "3.png").write_bytes(b"bad")
    (tmp_path / "bee" / "4.png").symlink_to("nowhere")
    with pytest.raises(FieldmarkError) as caught:
        audit(list_photos(tmp_path), decode)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("3 files are not photos that can be read")
    assert lines == [
        f"  {tmp_path}/ant/2.png: not a photo",
        f"  {tmp_path}/bee/3.png: not a photo",
        f"  {tmp_path}/bee/4.png: No such file or directory",
    ]


def test_the_records_tell_the_split(tmp_path: Path) -> None:
    photos = list_photos(two_classes(tmp_path))
    hashes = dict.fromkeys(photos.paths, "abc")
    rows = records(photos, hashes, ["bee/1.png"])
    assert rows[0] == Record("ant/1.png", "ant", "training", "", "abc")
    assert [row.path for row in rows if row.split == "validation"] == ["bee/1.png"]


def test_a_folder_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        with pytest.raises(FieldmarkError) as caught:
            list_photos(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "There is no folder" in reason(tmp_path / "none")
    assert "cannot be read as a folder (Not a directory)" in reason(photo(tmp_path / "file.png"))
    folder = tmp_path / "photos"
    folder.mkdir()
    assert "is empty" in reason(folder)
    photo(folder / "loose.png")
    assert "has no sub-folders" in reason(folder)
    (folder / "ant").mkdir()
    assert "(extensions there: no files)" in reason(folder)
    for name in ("1.webp", "2.webp", "LICENSE"):
        photo(folder / "ant" / name)
    assert "(extensions there: 2 x .webp, 1 x none)" in reason(folder)
    photo(folder / "ant" / "1.png")
    assert "the one class 'ant'" in reason(folder)
    (folder / "bee").mkdir()
    (folder / "cow").mkdir()
    photo(folder / "cow" / "1.heic")
    assert f"No photo was found in {folder}/bee, {folder}/cow" in reason(folder)
    photo(folder / "bee" / "1.png")
    photo(folder / "cow" / "1\n2.png")
    assert "holds a line break" in reason(folder)
    (folder / "cow" / "1\n2.png").unlink()
    photo(folder / "cow" / "1.png")
    assert len(list_photos(folder)) == 3


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in ("loose.jpg", "ant/1.webp", "bee/b/2.webp", "bee/README"):
        photo(tmp_path / name)
    assert left_out(list_photos(tmp_path)) == "2 x .webp, 1 x .jpg, 1 x no extension"


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    two_classes(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.jpg")
    with pytest.raises(FieldmarkError, match=r"pipe\.jpg: is a pipe"):
        audit(list_photos(tmp_path), lambda content: None)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    tmp_path.chmod(0)
    try:
        if os.access(tmp_path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(FieldmarkError, match="Permission denied"):
            list_photos(tmp_path)
    finally:
        tmp_path.chmod(0o700)
