"""Which files are meant: every one once, in order, as `data` has it, and no memory for them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import data, sources
from fieldmark.errors import FieldmarkError
from fieldmark.sources import Item, Seen, opened, walk


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def below(folder: Path, *, skipped: bool = False) -> list[str]:
    return [os.path.relpath(item.path, folder) for item in walk(folder) if item.skipped is skipped]


def listed(content: bytes, places: list[Path] | None = None) -> list[Item]:
    with opened(places or [Path("-")], io.BytesIO(content)) as found:
        once = list(found)
        assert list(found) == once  # it can be gone through twice
    return once


def test_a_folder_is_walked_through_in_order(tmp_path: Path) -> None:
    touched(tmp_path, "b/2.jpg", "b/1.jpg", "a/x/3.jpg", "a/4.jpg", "5.jpg")
    assert below(tmp_path) == ["5.jpg", "a/4.jpg", "a/x/3.jpg", "b/1.jpg", "b/2.jpg"]


def test_what_is_hidden_or_the_system_s_is_skipped_and_told(tmp_path: Path) -> None:
    touched(
        tmp_path, "a.jpg", ".hidden.jpg", "Thumbs.db", "._a.jpg", ".git/b.jpg", "__MACOSX/c.jpg"
    )
    assert below(tmp_path) == ["a.jpg"]
    assert sorted(below(tmp_path, skipped=True)) == sorted(
        [".hidden.jpg", "Thumbs.db", "._a.jpg", ".git", "__MACOSX"]
    )


def test_links_are_followed_after_all_others_and_each_folder_is_entered_once(
    tmp_path: Path,
) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    touched(photos, "z/1.jpg")
    touched(other, "2.jpg")
    (photos / "a").symlink_to(other)
    (photos / "b").symlink_to(photos / "z")  # entered already
    (photos / "c").symlink_to(tmp_path)  # around it
    (photos / "3.jpg").symlink_to(other / "2.jpg")
    assert below(photos) == ["3.jpg", "z/1.jpg", "a/2.jpg"]


def test_what_is_above_a_link_is_above_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path, "here/1.jpg", "there/in/2.jpg", "there/3.jpg")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "in")
    monkeypatch.chdir(tmp_path / "here")
    for places, expected in (
        (["link/.."], ["there/3.jpg", "there/in/2.jpg"]),
        (["../here/link/.."], ["there/3.jpg", "there/in/2.jpg"]),
        (["link/../3.jpg", "link/2.jpg"], ["there/3.jpg", "here/link/2.jpg"]),
    ):
        with opened([Path(place) for place in places], io.BytesIO()) as found:
            assert [os.path.relpath(item.path, tmp_path) for item in found] == expected
    items = listed(b"link/../3.jpg\nlink/2.jpg\n")
    assert [os.path.relpath(item.path, tmp_path) for item in items] == expected


def test_it_lists_the_files_that_the_training_s_listing_accounts_for(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.jpg", "a/.h", "b/c/2.png", "b/3.txt", ".d/4.jpg", "desktop.ini")
    (tmp_path / "b" / "away").symlink_to("nowhere")
    (tmp_path / "l").symlink_to(tmp_path / "a")
    account = data.list_loose(tmp_path)
    looked_into = {*account.paths, *(each.path for each in account.left_out)}
    ours = {*below(tmp_path), *below(tmp_path, skipped=True)}
    assert ours - looked_into == {".d"}  # it names what lies below
    assert looked_into - ours == {".d/4.jpg", "l"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_told_by_rights(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.jpg", "2.jpg")
    (tmp_path / "a").chmod(0)
    try:
        items = list(walk(tmp_path))
    finally:
        (tmp_path / "a").chmod(0o755)
    assert [bool(item.why) for item in items] == [False, True]


def test_a_folder_that_cannot_be_opened_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path, "a/1.jpg", "2.jpg")
    real = os.scandir

    def scandir(place: str) -> object:
        if place.endswith("a"):
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(walk(tmp_path))[1:] == [
        Item(f"{tmp_path}/a/", why="cannot be opened (Permission denied)")
    ]


def test_a_very_large_folder_is_taken_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SORTED", 3)
    names = [f"{i}.jpg" for i in range(20)]
    touched(tmp_path, *names)
    assert sorted(below(tmp_path)) == sorted(names)


def test_places_are_taken_in_their_order(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.jpg", "2.txt", "3.jpg")
    found = listed(f"{tmp_path}/3.jpg\n".encode(), [tmp_path / "2.txt", Path("-"), tmp_path / "a"])
    assert found == [
        Item(f"{tmp_path}/2.txt", named=True),
        Item(f"{tmp_path}/3.jpg", named=True),
        Item(f"{tmp_path}/a/1.jpg"),
    ]


def test_a_list_s_paths_are_relative_to_where_its_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert listed(b"a.jpg\r\n\nb/../c.jpg") == [
        Item(f"{tmp_path}/a.jpg", named=True),
        Item(f"{tmp_path}/c.jpg", named=True),
    ]


NAMES = st.lists(
    st.binary(min_size=1, max_size=40).filter(lambda name: not {*name} & {*b"\0\n\r"}), min_size=1
)


@given(names=NAMES, separator=st.sampled_from([b"\n", b"\0"]), chunk=st.integers(2, 30))
def test_a_list_is_split_where_it_should_be(
    names: list[bytes], separator: bytes, chunk: int
) -> None:
    content = separator.join(names)
    if separator == b"\0":
        content = b"\0" + content  # it is told by a NUL near the beginning
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        found = listed(content)
    assert found == [
        Item(os.path.abspath(os.fsdecode(name)), named=True)  # noqa: PTH100
        for name in names
    ]


@pytest.mark.parametrize(
    ("places", "message"),
    [([], "Name photos"), (["nothing.jpg"], "There is no photo nothing.jpg")],
)
def test_what_is_not_there_is_refused(places: list[str], message: str) -> None:
    with (
        pytest.raises(FieldmarkError, match=message),
        opened([Path(place) for place in places], io.BytesIO()),
    ):
        pass


@given(paths=st.lists(st.text(st.characters(codec="utf-8"), max_size=3)), recent=st.integers(1, 5))
def test_seen_knows_each_path_that_it_was_told(paths: list[str], recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "RECENT", recent)
        seen, told = Seen(), set[str]()
        for path in paths:
            assert seen.add(path) is (path not in told)
            told.add(path)
        assert len(seen) == len(told)
        other = seen.copy()
        assert other.add("another path")
        assert len(seen) == len(told)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_that_windows_wrote_is_read(encoding: str) -> None:
    names = [f"/photos/Möwe 鸟 {i}.jpg" for i in range(3000)]  # more than a chunk
    content = "\r\n".join(names).encode(encoding)
    assert [item.path for item in listed(content)] == names
