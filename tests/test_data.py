"""Every file accounted for, every source that gives classes, and the list against Keras' own."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark.check import quick
from fieldmark.data import (
    LeftOut,
    Photos,
    alike,
    audit,
    left_out,
    list_article,
    list_loose,
    list_photos,
    nested,
    reserved,
    sha256s,
)
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
    photos = list_article(tmp_path)
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
    assert hashes == tuple(
        hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for path in photos.paths
    )


def test_the_audit_names_every_bad_file_at_once(tmp_path: Path) -> None:
    def decode(content: bytes) -> None:
        if content == b"bad":
            raise ValueError("not a photo")

    two_classes(tmp_path)
    (tmp_path / "ant" / "2.png").write_bytes(b"bad")
    (tmp_path / "bee" / "3.png").write_bytes(b"bad")
    (tmp_path / "bee" / "4.png").symlink_to("nowhere")
    with pytest.raises(FieldmarkError) as caught:
        audit(list_article(tmp_path), decode)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("3 files are not photos that can be read")
    assert lines == [
        f"  {tmp_path}/ant/2.png: not a photo",
        f"  {tmp_path}/bee/3.png: not a photo",
        f"  {tmp_path}/bee/4.png: No such file or directory",
    ]


def test_a_folder_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        with pytest.raises(FieldmarkError) as caught:
            list_article(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "There is no folder" in reason(tmp_path / "none")
    assert "Keras' split read folders only: add --pipeline" in reason(photo(tmp_path / "file.png"))
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
    assert len(list_article(folder)) == 3
    assert "cannot be read (File name too long): check the path" in reason(tmp_path / ("x" * 300))


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in ("loose.jpg", "ant/1.webp", "bee/b/2.webp", "bee/README"):
        photo(tmp_path / name)
    assert left_out(list_article(tmp_path)) == "2 x .webp, 1 x .jpg, 1 x no extension"


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    two_classes(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.jpg")
    photos = list_article(tmp_path)
    assert len(photos) == 4
    assert photos.left_out == (LeftOut("ant/pipe.jpg", "unreadable", "is a pipe"),)
    with pytest.raises(FieldmarkError, match=r"pipe\.jpg: is a pipe"):
        audit(photos, lambda content: None)  # Keras would open it
    (tmp_path / "bee" / "2.png").unlink()
    os.mkfifo(tmp_path / "bee" / "2.png")  # in the meantime
    for look in (sha256s, lambda photos: audit(photos, lambda content: None)):
        with pytest.raises(FieldmarkError, match=r"bee/2\.png: is a pipe"):
            look(photos)


def test_a_split_into_folders_is_none_for_keras(tmp_path: Path) -> None:
    for part in ("val", "TRAIN", "test"):
        two_classes(tmp_path / part)
    with pytest.raises(FieldmarkError) as caught:
        list_article(tmp_path)
    assert str(caught.value) == (
        f"In {tmp_path} the folders TRAIN, val and test would be taken for classes: "
        "add --pipeline batches --split stratified."
    )
    (tmp_path / "TRAIN").rename(tmp_path / "trains")
    assert list_article(tmp_path).classes == ("test", "trains", "val")


def test_nothing_may_be_written_where_photos_lie(tmp_path: Path) -> None:
    root, outside = tmp_path / "photos", tmp_path / "outside"
    two_classes(root)
    photo(outside / "cows" / "1.png")
    photo(outside / "3.png")
    (root / "cow").symlink_to(outside / "cows")
    (root / "ant" / "3.png").symlink_to(outside / "3.png")
    expected = (outside / "3.png", outside / "cows", root)
    (tmp_path / "link").symlink_to(root)
    for source in (root, tmp_path / "link"):
        assert reserved(list_photos(source), source) == expected
        assert reserved(list_article(source), source) == expected
    rows = "path,label\nphotos/ant/1.png,a\nphotos/cow/1.png,b\nloose.png,b\n"
    photo(tmp_path / "loose.png")
    labels = table(tmp_path, rows)
    assert reserved(list_photos(labels), labels) == (outside / "cows", root / "ant")


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    tmp_path.chmod(0)
    try:
        if os.access(tmp_path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(FieldmarkError, match="Permission denied"):
            list_article(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("way", ["listed", "entered"])
def test_a_folder_without_rights_is_accounted_for(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_classes(tmp_path)
    photo(tmp_path / "bee" / "shut" / "3.png")

    def closed(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: object, **values: Any) -> Any:
            if Path(str(path)) == tmp_path / "bee" / "shut":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, **values)

        return called

    if way == "listed":
        monkeypatch.setattr(os, "scandir", closed(os.scandir))
    else:
        monkeypatch.setattr(Path, "stat", closed(Path.stat))
    photos = list_photos(tmp_path)
    assert len(photos) == 4
    shut = LeftOut("bee/shut/", "unreadable", "cannot be opened (Permission denied)")
    assert photos.left_out == (shut,)
    assert left_out(photos) == "1 x closed folder"
    assert list_loose(tmp_path).left_out == (shut,)
    with pytest.raises(FieldmarkError, match="shut: cannot be opened"):
        quick(photos)


# ---- every file, by its content ------------------------------------------------------------------

JPEG = b"\xff\xd8\xff\xe0" + bytes(60)
WEBP = b"RIFF\0\0\0\0WEBPVP8 " + bytes(60)


def put(path: Path, content: bytes = JPEG) -> Path:
    """Write a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def reasons(photos: Photos) -> dict[str, tuple[str, str]]:
    """Return kind and reason of each file that is no photo."""
    return {each.path: (each.kind, each.why) for each in photos.left_out}


def labelled(photos: Photos) -> dict[str, str]:
    """Return the class of each photo."""
    return {p: photos.classes[i] for p, i in zip(photos.paths, photos.labels, strict=True)}


def test_photos_are_known_by_their_content(tmp_path: Path) -> None:
    names = ("ant/1.jpg", "ant/2.txt", "ant/no extension", "bee/1.webp", "bee/photo.JPEG")
    for name in names:
        put(tmp_path / name, WEBP if name.endswith("webp") else JPEG)
    put(tmp_path / "bee" / "2.jpg", b"<!DOCTYPE html><html>")
    put(tmp_path / "bee" / "3.png", b"")
    put(tmp_path / "bee" / "4.NEF", b"II*\0" + bytes(60))
    put(tmp_path / "bee" / "BMW.txt", b"BMW, Audi")
    put(tmp_path / "bee" / "clip.mp4", b"\0\0\0\x18ftypisom" + bytes(60))
    put(tmp_path / "loose.jpg")
    photos = list_photos(tmp_path)
    assert photos.paths == names
    assert reasons(photos) == {
        "bee/2.jpg": ("unreadable", "is a web page, not a photo"),
        "bee/3.png": ("unreadable", "is empty"),
        "bee/4.NEF": ("skipped", "is a camera's raw file: export it as JPEG"),
        "bee/BMW.txt": ("skipped", "is no photo (.txt)"),
        "bee/clip.mp4": ("skipped", "is no photo (.mp4)"),
        "loose.jpg": ("skipped", "is a photo that lies in no class folder"),
    }


def test_a_real_bmp_needs_no_extension(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "ant" / "drawing", format="BMP")
    assert "ant/drawing" in list_photos(tmp_path).paths


def test_what_systems_add_is_skipped(tmp_path: Path) -> None:
    two_classes(tmp_path)
    photos = list_photos(tmp_path).paths
    for name in (
        *(".hidden.jpg", "ant/._1.png", "ant/.DS_Store", "ant/Thumbs.db", "bee/desktop.ini"),
        *("__MACOSX/ant/._1.png", ".git/a/b.png", "bee/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg"),
    ):
        put(tmp_path / name)
    (tmp_path / "cow").mkdir()
    (tmp_path / ".git" / "refs").mkdir()
    listed = list_photos(tmp_path)
    assert listed.paths == photos
    assert {path: kind for path, (kind, _) in reasons(listed).items()} == {
        ".hidden.jpg": "hidden",
        "ant/._1.png": "skipped",
        "ant/.DS_Store": "skipped",
        "ant/Thumbs.db": "skipped",
        "bee/desktop.ini": "skipped",
        "__MACOSX/ant/._1.png": "skipped",
        ".git/a/b.png": "hidden",
        ".git/refs/": "empty",
        "bee/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": "skipped",
        "cow/": "empty",
    }


def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.jpg")
    (tmp_path / "ant" / "to a pipe.jpg").symlink_to("pipe.jpg")
    (tmp_path / "ant" / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "ant" / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "ant" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as end:
        monkeypatch.chdir(tmp_path)  # the name of a socket may be 108 bytes long
        end.bind("ant/socket.jpg")
    found = reasons(list_photos(tmp_path))
    assert {path.removeprefix("ant/"): why for path, (_, why) in found.items()} == {
        "pipe.jpg": "is a pipe",
        "to a pipe.jpg": "is a pipe",
        "nowhere.jpg": "is a link that leads nowhere",
        "circle.jpg": "is a link that leads nowhere",
        "null.jpg": "is a device",
        "socket.jpg": "is a socket",
    }


def test_links_are_followed_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "photos"
    two_classes(root)
    photo(outside / "cows" / "1.png")
    photo(outside / "cows" / "deep" / "2.png")
    (root / "ant" / "3.png").symlink_to("1.png")
    (root / "a cow").symlink_to(outside / "cows")
    (root / "b cow").symlink_to(outside / "cows")
    (root / "bee" / "home").symlink_to(root)
    (root / "bee" / "up").symlink_to(tmp_path)
    (outside / "cows" / "around").symlink_to(outside / "cows")
    (root / "aa").symlink_to(root / "ant")  # its name comes first, and the real folder wins
    photos = list_photos(root)
    assert labelled(photos) == {
        "ant/1.png": "ant",
        "ant/2.png": "ant",
        "ant/3.png": "ant",
        "bee/1.png": "bee",
        "bee/2.png": "bee",
        "a cow/1.png": "a cow",
        "a cow/deep/2.png": "a cow/deep",
    }
    assert photos.linked == ("a cow", "ant/3.png")
    assert {path: why for path, (_, why) in reasons(photos).items()} == {
        "a cow/around": "leads to a cow, listed already",
        "aa": "leads to ant, listed already",
        "b cow": "leads to a cow, listed already",
        "bee/home": "leads to this very folder, listed already",
        "bee/up": "leads to a folder around this one",
    }


ODD_NAMES = (
    "1.jpg",
    "2.PNG",
    "a b.webp",
    "Äh 鳥.gif",
    ".h.jpg",
    "._1.jpg",
    "Thumbs.db",
    "n.txt",
    "x",
)
ODD_FOLDERS = ("ant", "Ant", "a b", ".git", "__MACOSX", "train", "val", "鳥")
CONTENTS = (JPEG, WEBP, b"", b"text", b"<html>", b"BM")
PLACES = st.tuples(
    st.lists(st.sampled_from(ODD_FOLDERS), max_size=3),
    st.sampled_from(ODD_NAMES),
    st.sampled_from(("file", "file", "folder", "link", "pipe", "link to a folder")),
    st.sampled_from(CONTENTS),
)


@settings(max_examples=100)
@given(st.lists(PLACES, max_size=14))
def test_the_counts_add_up_to_what_is_on_disk(
    entries: list[tuple[list[str], str, str, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = two_classes(Path(name))
        for folders, file, kind, content in entries:
            path = root.joinpath(*folders, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or path.is_symlink():
                continue
            if kind == "folder":
                path.mkdir()
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "file":
                path.write_bytes(content)
            else:
                path.symlink_to(root / ("ant" if "folder" in kind else "ant/1.png"))
        photos = list_photos(root)
        disk = set()
        for folder, folders, files in os.walk(root):
            place = Path(folder)
            links = [each for each in folders if (place / each).is_symlink()]
            disk |= {(place / each).relative_to(root).as_posix() for each in files + links}
            if not files and not folders:
                disk.add(f"{place.relative_to(root).as_posix()}/")
        # All links lead inside, so that none is entered.
        accounted = [*photos.paths, *(each.path for each in photos.left_out)]
        assert Counter(accounted) == Counter(disk)


# ---- classes -------------------------------------------------------------------------------------


def test_nested_folders_are_classes_of_their_own(tmp_path: Path) -> None:
    for name in ("a/left/1.jpg", "b/left/1.jpg", "b/1.jpg", "bc/1.jpg"):
        put(tmp_path / name)
    photos = list_photos(tmp_path)
    assert photos.classes == ("a/left", "b", "b/left", "bc")
    assert nested(photos) == ("b",)


def test_a_plain_folder_gives_the_classes_of_keras(birds: Path) -> None:
    ours, theirs = list_photos(birds), list_article(birds)
    assert (ours.classes, ours.paths, ours.labels) == (theirs.classes, theirs.paths, theirs.labels)


def test_names_that_look_alike_stay_apart(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "Rotk\u00e9") for form in ("NFC", "NFD"))
    for name in (composed, parted, "Ant", "ant", "bee"):
        put(tmp_path / name / "1.jpg")
    if len(list(tmp_path.iterdir())) < 5:
        pytest.skip("this file system takes them for the same")
    photos = list_photos(tmp_path)
    assert len(photos.classes) == 5
    assert {*alike(photos.classes)} == {("Ant", "ant"), tuple(sorted((composed, parted)))}
    assert len(alike(photos.paths)) == 2


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "val", "test"), ["training", "validation", "test"]),
        (("Training", "VALIDATION"), ["training", "validation"]),
        (("train", "testing"), ["training", "test"]),
        (("TRAIN", "valid"), ["training", "validation"]),
    ],
)
def test_folders_may_give_the_split(
    folders: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    for folder in folders:
        for name in ("a/left/1.jpg", "b/1.jpg"):
            put(tmp_path / folder / name, JPEG + folder.encode())
    put(tmp_path / folders[0] / "loose.jpg")
    (tmp_path / "empty").mkdir()
    photos = list_photos(tmp_path)
    assert photos.classes == ("a/left", "b")
    split = dict(zip(photos.paths, photos.given, strict=True))
    assert [split[f"{folder}/b/1.jpg"] for folder in folders] == words
    assert LeftOut(
        f"{folders[0]}/loose.jpg", "skipped", "is a photo that lies in no class folder"
    ) in (photos.left_out)


@pytest.mark.parametrize("folders", [("train", "valley"), ("val", "test"), ("train", "val", "c")])
def test_other_folders_are_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    for folder in folders:
        put(tmp_path / folder / "a" / "1.jpg")
    photos = list_photos(tmp_path)
    assert photos.classes == tuple(sorted(f"{folder}/a" for folder in folders))
    assert photos.given == ()


def test_a_folder_without_two_classes_is_refused(tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        with pytest.raises(FieldmarkError) as caught:
            list_photos(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "There is no folder" in reason(tmp_path / "none")
    root = tmp_path / "photos"
    root.mkdir()
    assert "is empty" in reason(root)
    put(root / "loose.jpg")
    assert "has no sub-folders" in reason(root)
    put(root / "ant" / "notes.txt", b"text")
    assert "(extensions there: 1 x .txt): use JPEG, PNG" in reason(root)
    put(root / "ant" / "1.jpg")
    assert "the one class 'ant'" in reason(root)
    put(root / "bee" / "1\n2.jpg")
    assert "holds a line break" in reason(root)
    (root / "bee" / "1\n2.jpg").rename(root / "bee" / "Icon\r")
    (root / "bee" / "Icon\r").write_bytes(b"no photo")
    put(root / "bee" / "1.jpg")
    assert len(list_photos(root)) == 2
    (root / "bee" / os.fsdecode(b"\xff.jpg")).write_bytes(JPEG)
    assert "is not UTF-8" in reason(root)
    put(root / "two\nlines" / "1.jpg")
    put(root / "two\nlines" / "2.jpg")
    assert reason(root).splitlines() == [
        f"2 names in {root} hold line breaks or are not UTF-8: rename them:",
        "  'two\\nlines'",
        "  'bee/\\udcff.jpg'",
    ]
    assert "cannot be read (File name too long): check the path" in reason(tmp_path / ("x" * 300))
    for name in ("train/1.jpg", "val/2.jpg"):
        put(tmp_path / "unsorted" / name)
    assert "lie in no class folders: sort them" in reason(tmp_path / "unsorted")


# ---- hashes --------------------------------------------------------------------------------------


def test_the_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    photos = list_photos(two_classes(tmp_path))
    assert sha256s(photos) == tuple(
        hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for path in photos.paths
    )
    for name in ("ant/1.png", "bee/2.png"):
        (tmp_path / name).unlink()
    with pytest.raises(FieldmarkError) as caught:
        sha256s(photos)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("2 files are not photos that can be read")
    assert lines == [
        f"  {tmp_path}/ant/1.png: No such file or directory",
        f"  {tmp_path}/bee/2.png: No such file or directory",
    ]


# ---- a CSV ---------------------------------------------------------------------------------------


def table(folder: Path, text: str) -> Path:
    """Write a CSV beside the photos."""
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_gives_labels_splits_and_groups(tmp_path: Path) -> None:
    two_classes(tmp_path)
    rows = [
        ("Label", "PATH", "note", "split", "group"),
        ("鳥", "ant/2.png", "x", "val", ""),
        ("a b", "./ant/1.png", "", "Train", "g"),
        ("鳥", str(tmp_path / "bee" / "1.png"), "", "test", "g"),
        ("", "", "", "", ""),
        ("a b", "bee\\2.png", "", "training", ""),
    ]
    photos = list_photos(table(tmp_path, "\n".join(",".join(row) for row in rows)))
    assert labelled(photos) == {
        "ant/1.png": "a b",
        "bee/2.png": "a b",
        f"{tmp_path}/bee/1.png": "鳥",
        "ant/2.png": "鳥",
    }
    assert dict(zip(photos.paths, photos.given, strict=True))["ant/2.png"] == "validation"
    assert dict(zip(photos.paths, photos.groups, strict=True))["ant/1.png"] == "g"
    assert (photos.folder, photos.left_out) == (tmp_path, ())
    assert len(sha256s(photos)) == 4


def test_what_a_csv_names_and_is_no_photo_is_left_out(tmp_path: Path) -> None:
    two_classes(tmp_path)
    put(tmp_path / "bad.jpg", b"")
    path = table(tmp_path, "sep=;\npath;label\nant/1.png;a\nant/1.png;a\nbee/1.png;b\nbad.jpg;b\n")
    photos = list_photos(path)
    assert photos.paths == ("ant/1.png", "bee/1.png")
    assert photos.left_out == (LeftOut("bad.jpg", "unreadable", "is empty"),)
    put(tmp_path / "notes.txt", b"text")
    os.mkfifo(tmp_path / "pipe")
    rows = "ant/1.png,a\nbee/1.png,b\nnotes.txt,a\npipe,b\n"
    listed = list_photos(table(tmp_path, "path,label\n" + rows))
    assert reasons(listed) == {
        "notes.txt": ("unreadable", "is no photo (.txt)"),
        "pipe": ("unreadable", "is a pipe"),
    }
    with pytest.raises(FieldmarkError, match=r"notes\.txt: is no photo"):
        quick(listed)
    assert (photos.given, photos.groups) == ((), ())


def test_a_photo_named_in_two_ways_is_one(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "deep").symlink_to(tmp_path / "ant")
    rows = [
        *("ant/../bee/1.png,b", "./bee/1.png,b", f"{tmp_path}/bee/1.png,b", "bee//1.png,b"),
        *("lists/deep/../bee/2.png,b", "ant/1.png,a", "lists/deep/1.png,a"),
    ]
    photos = list_photos(table(tmp_path, "\n".join(["path,label", *rows])))
    # To go up from where a link leads is not to go back.
    assert photos.paths == ("ant/1.png", "bee/1.png", "lists/deep/../bee/2.png")
    with pytest.raises(FieldmarkError, match=r"lines 2 and 3: bee/1\.png has the label 'b', then"):
        list_photos(table(tmp_path, "path,label\nant/../bee/1.png,b\nbee/1.png,a\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "path,label\nhttps://a.org/1.jpg,a\nno.png,a\n",
            "line 2: https://a.org/1.jpg is a web address: fetch the photo first",
        ),
        ("path,label\nbad.png,a\n", "bad.png: is empty"),
        ("file,label\n", "has no columns path and label in its first line ('file,label')"),
        ("path,label\n", "names no photo"),
        ("path,label\nant/1.png,a\nbee/1.png,\n", "line 3: bee/1.png has no label"),
        ("path,label\nant/1.png,a\nant/2.png,a\n", "the one class 'a'"),
        ("path,label\nant/1.png,a\nant/./1.png,b\n", "lines 2 and 3: ant/1.png has the label 'a'"),
        ("path,label,split\nant/1.png,a,dev\n", "line 2: the split 'dev' is unknown"),
        ("path,label,split\nant/1.png,a,val\nant/2.png,a,\n", "line 3: it has no split"),
        (
            "path,label\nno.png,a\nant/1.png,a\nneither.png,b\n",
            "names 2 photos that are not there",
        ),
    ],
)
def test_a_csv_that_is_wrong_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    two_classes(tmp_path)
    put(tmp_path / "bad.png", b"")
    path = table(tmp_path, text)
    with pytest.raises(FieldmarkError) as caught:
        list_photos(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_all_missing_files_of_a_csv_are_named_by_their_lines(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,a\n" for i in range(102))
    with pytest.raises(FieldmarkError) as caught:
        list_photos(table(tmp_path, "path,label\n" + rows))
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  line 2: {tmp_path}/0.png"
    assert lines[100:] == [f"  line 101: {tmp_path}/99.png", "  and 2 more"]


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="is not text in UTF-8"):
        list_photos(photo(tmp_path / "bird.png"))
