"""Files and folders that appear whole or not at all, on a disk that fills up too."""

import os
from pathlib import Path

import pytest

from fieldmark import files
from fieldmark.errors import FieldmarkError
from fieldmark.files import cache_folder, refuse_existing, whole_file, whole_folder


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_one_before_it(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_file_that_fills_the_disk_leaves_the_one_before_it(small_disk: Path) -> None:
    path = small_disk / "notes.txt"
    path.write_text("old")
    with pytest.raises(FieldmarkError, match=r"notes\.txt cannot be written \(No space left"):
        with whole_file(path) as temporary:
            temporary.write_bytes(b"x" * 100_000)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["notes.txt"]


def test_a_folder_that_fills_the_disk_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(FieldmarkError, match=r"run cannot be written \(No space left"):
        with whole_folder(small_disk / "run") as temporary:
            (temporary / "a").write_text("fits")
            (temporary / "b").write_bytes(b"x" * 100_000)
    assert os.listdir(small_disk) == []


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with whole_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"
    assert os.listdir(path.parent) == ["run"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run") as temporary:
        (temporary / "a").touch()
    (tmp_path / "run" / "a").unlink()
    with whole_folder(tmp_path / "run") as temporary:
        (temporary / "b").touch()
    assert os.listdir(tmp_path / "run") == ["b"]


def test_what_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FieldmarkError, match="exists already and is not overwritten"):
            refuse_existing(path)
    refuse_existing(tmp_path / "new")


def test_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FieldmarkError, match="is the folder that you are in"):
        refuse_existing(Path())


def test_a_file_needs_a_name_that_is_no_folder_s(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/"), Path()):
        with pytest.raises(FieldmarkError, match="is a folder: name a file"):
            with whole_file(path):
                pass


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FieldmarkError, match="cannot be written"):
        with whole_folder(tmp_path / "file" / "run"):
            pass


def test_what_is_kept_lies_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDMARK_CACHE", "kept")
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.setenv("FIELDMARK_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"
    for none in ("", None):
        if none is None:
            monkeypatch.delenv("FIELDMARK_CACHE")
        else:
            monkeypatch.setenv("FIELDMARK_CACHE", none)
        assert cache_folder().is_absolute()
        assert "fieldmark" in cache_folder().parts


def test_only_a_tilde_that_means_a_home_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert files.expanded("~/a") == Path("/home/me/a")
    for name in ("~x.jpg", "~nobody-has-this-name/a", "a/~"):
        assert files.expanded(name) == Path(name)


def test_where_nobody_may_look_nothing_is(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 300)  # Path's own raises
    assert not files.is_file(long)
    assert not files.is_folder(long)


def test_a_file_that_is_needed_is_missed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for none in (tmp_path / "none", tmp_path, tmp_path / "loop"):
        with pytest.raises(FieldmarkError, match="name another"):
            files.require_file(none, "There is none: name another.")
    (tmp_path / "file").touch()
    files.require_file(tmp_path / "file", "")


def test_a_file_that_was_exchanged_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.stamp(path) is None
    path.write_text("a")
    before = files.stamp(path)
    assert before == files.stamp(path)
    (tmp_path / "other").write_text("b")
    (tmp_path / "other").replace(path)
    assert files.stamp(path) != before


def test_only_what_is_ours_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    files.refuse_another(path, "path,label")  # it is not there
    for ours in (b"", b"path,label,split\n", b"\xef\xbb\xbfpath,label\n"):
        path.write_bytes(ours)
        files.refuse_another(path, "path,label")
    path.write_bytes(b"name,weight\n")
    with pytest.raises(FieldmarkError, match=r"a\.csv exists already, and holds something else"):
        files.refuse_another(path, "path,label", "<svg")


def test_a_device_and_a_pipe_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path(os.devnull)):
        with pytest.raises(FieldmarkError, match="is a device or a pipe"), whole_file(place):
            pass
        assert not place.is_file()
