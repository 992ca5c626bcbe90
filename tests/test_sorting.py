"""Sorted photos: every one arrives, none is moved or written over, no class' name leads astray."""

from __future__ import annotations

import errno
import filecmp
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fieldmark.errors import FieldmarkError
from fieldmark.sorting import NONE, How, Target, folder_name

HOWS: list[How] = ["copy", "hardlink", "symlink"]


def photo(folder: Path, name: str, content: bytes) -> str:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return str(place)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("how", HOWS)
def test_names_that_collide_get_a_number_and_twice_makes_nothing_twice(
    tmp_path: Path, how: How
) -> None:
    photos = [photo(tmp_path / "in", f"{i}/a.b.jpg", b"%d" % i) for i in range(3)]
    target = Target(tmp_path / "out", how)
    for _ in range(2):
        for path in photos:
            target.put(path, "rose")
        target.put(photos[0], None)
    assert contents(tmp_path / "out") == {
        "rose/a.b.jpg": b"0",
        "rose/a.b-2.jpg": b"1",
        "rose/a.b-3.jpg": b"2",
        f"{NONE}/a.b.jpg": b"0",
    }
    assert len(contents(tmp_path / "in")) == 3
    place = tmp_path / "out" / "rose" / "a.b-2.jpg"
    assert place.is_symlink() is (how == "symlink")
    assert place.samefile(photos[1]) is (how != "copy")


@pytest.mark.parametrize("how", HOWS)
def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How
) -> None:
    path = photo(tmp_path / "in", "a.jpg", b"ours")
    lexists = os.path.lexists

    def looked(place: Path) -> bool:
        found = lexists(place)
        if not found and Path(place).name == "a.jpg":
            photo(tmp_path / "out", "rose/a.jpg", b"theirs")
        return found

    monkeypatch.setattr(os.path, "lexists", looked)
    Target(tmp_path / "out", how).put(path, "rose")
    assert contents(tmp_path / "out") == {"rose/a.jpg": b"theirs", "rose/a-2.jpg": b"ours"}


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = photo(tmp_path / "in", "a.jpg", b"new")
    photo(tmp_path / "out", "rose/a.jpg", b"old")
    (tmp_path / "out" / "rose" / "a-2.jpg").symlink_to("nowhere")
    (tmp_path / "out" / "rose" / "a-3.jpg").mkdir()
    Target(tmp_path / "out", "copy").put(path, "rose")
    assert contents(tmp_path / "out") == {"rose/a.jpg": b"old", "rose/a-4.jpg": b"new"}


def test_a_link_to_a_photo_is_sorted_as_the_photo(tmp_path: Path) -> None:
    path = photo(tmp_path / "in", "a.jpg", b"content")
    link = tmp_path / "in" / "b.jpg"
    link.symlink_to(path)
    for how in HOWS:
        Target(tmp_path / how, how).put(str(link), "rose")
        assert contents(tmp_path / how) == {"rose/b.jpg": b"content"}
    assert not (tmp_path / "hardlink" / "rose" / "b.jpg").is_symlink()


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".jpg", "é" * 125 + ".jpg", "x." + "y" * 250, "x" * 100 + "." + "y" * 150]
)
@pytest.mark.parametrize("how", HOWS)
def test_a_long_name_is_cut(tmp_path: Path, name: str, how: How) -> None:
    target = Target(tmp_path / "out", how)
    for i in range(2):
        target.put(photo(tmp_path / str(i), name, b"%d" % i), "rose")
    assert sorted(contents(tmp_path / "out").values()) == [b"0", b"1"]


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    Target(tmp_path / "out", "copy").put(photo(tmp_path / "in", name, b"a"), "rose")
    assert contents(tmp_path / "out") == {f"rose/{name}": b"a"}


def test_the_photos_own_folder_is_refused(tmp_path: Path) -> None:
    path = photo(tmp_path, "rose/a.jpg", b"content")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(FieldmarkError, match="photos are only read"):
        Target(tmp_path / "link", "copy").put(path, "rose")
    assert contents(tmp_path) == {"rose/a.jpg": b"content"}


def test_a_class_s_folder_that_is_a_link_elsewhere_is_refused(tmp_path: Path) -> None:
    path = photo(tmp_path / "photos", "owl/a.jpg", b"content")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rose").symlink_to(tmp_path / "photos" / "tulip")
    (tmp_path / "photos" / "tulip").mkdir()
    with pytest.raises(FieldmarkError, match=r"rose is a link that leads out of .*out: take it"):
        Target(tmp_path / "out", "copy").put(path, "rose")
    assert contents(tmp_path / "photos") == {"owl/a.jpg": b"content"}
    (tmp_path / "link").symlink_to(tmp_path / "out")  # the whole may be a link
    Target(tmp_path / "link", "copy").put(path, "owl")
    assert (tmp_path / "out" / "owl" / "a.jpg").exists()


def test_a_copy_has_its_name_and_its_content_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment the process ends in, there is no empty file of a photo's name."""
    path = photo(tmp_path / "in", "a.jpg", b"content")

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("link", "unlink"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, name, ended)
            patched.setattr(Path, "unlink", ended)  # where the process is killed, none is called
            Target(tmp_path / name, "copy").put(path, "rose")
        there = tmp_path / name / "rose" / "a.jpg"
        assert not there.exists() or there.read_bytes() == b"content"


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for number in range(2):
        path = photo(tmp_path / str(number), "a.jpg", b"%d" % number)
        Target(tmp_path / "out", "copy").put(path, "rose")
    assert contents(tmp_path / "out") == {"rose/a.jpg": b"0", "rose/a-2.jpg": b"1"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = photo(tmp_path / "in", "a.jpg", b"content")
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(FieldmarkError, match=r"out.rose cannot be written"):
        Target(tmp_path / "out", "copy").put(path, "rose")


def test_a_hard_link_to_another_file_system_is_refused(small_disk: Path, tmp_path: Path) -> None:
    path = photo(tmp_path, "a.jpg", b"content")
    with pytest.raises(FieldmarkError, match="--sort-as copy"):
        Target(small_disk / "out", "hardlink").put(path, "rose")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("rose", "rose"),
        ("dog rose (white)", "dog rose (white)"),
        ("玫瑰", "玫瑰"),
        ("birds/owl", "birds%2Fowl"),
        ("birds%2Fowl", "birds%252Fowl"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("", "%"),
        ("-rf", "%2Drf"),
        ("a\nb", "a%0Ab"),
        ("CON", "%43ON"),
        ("none_of_these", "%6Eone_of_these"),
    ],
)
def test_a_class_s_name_becomes_a_folder_s(label: str, name: str) -> None:
    assert folder_name(label) == name


LABELS = st.text(st.characters(codec="utf-8"), max_size=300) | st.text("./%\\", max_size=4)


@given(one=LABELS, other=LABELS)
@example(one="x" * 300, other="x" * 301)
@example(one="a/b", other="a%2Fb")
def test_each_class_has_a_folder_of_its_own_just_below(
    one: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert (folder_name(one) == folder_name(other)) is (one == other)
    around = tmp_path_factory.mktemp("around")
    folder = around / folder_name(one)
    folder.mkdir()
    assert [*around.iterdir()] == [folder]
    assert folder_name(one) != NONE
    assert len(os.fsencode(folder_name(one))) < 200


def test_a_link_to_a_photo_of_another_user_has_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"a")
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(FieldmarkError, match="of another user: add --sort-as copy"):
        Target(tmp_path / "out", "hardlink").put(str(photo), "rose")


def test_a_file_of_another_user_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> bool:
        raise PermissionError

    photo, taken = tmp_path / "a.jpg", tmp_path / "out" / "rose" / "a.jpg"
    photo.write_bytes(b"a")
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"b")
    monkeypatch.setattr(filecmp, "cmp", refused)
    Target(tmp_path / "out", "copy").put(str(photo), "rose")
    assert taken.read_bytes() == b"b"
    assert len(list(taken.parent.iterdir())) == 2
