"""The decoded cache: bit for bit what `images.read` gives, whatever happens to it or beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldmark import cache, images
from fieldmark.cache import Cache, Item, build, clear, entries, summary, where
from fieldmark.errors import FieldmarkError
from fieldmark.formats import UnreadableImage
from fieldmark.images import ImageSpec, inspect, read


def spec(size: int = 8, mode: str = "squash", **values: Any) -> ImageSpec:
    return ImageSpec.model_validate(
        {"size": size, "mode": mode, "interpolation": "bilinear", "scaling": "0..255", **values}
    )


def listed(paths: Sequence[Path]) -> list[Item]:
    return [Item(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def is_right(built: Cache, items: Sequence[Item], how: ImageSpec) -> bool:
    """Whether a cache is bit for bit what each photo gives when it is read alone."""
    facts = [inspect(item.path.read_bytes()) for item in items]
    assert built.shapes.tolist() == [[fact.height, fact.width] for fact in facts]
    assert built.shapes.dtype == np.int32
    return len(built) == len(items) and all(
        np.array_equal(row, read(item.path.read_bytes(), how))
        for row, item in zip(built.pixels, items, strict=True)
    )


@pytest.fixture(scope="module")
def photos(birds: Path) -> list[Item]:
    """Twelve drawn photos; for reading only."""
    return listed(sorted(birds.glob("*/*.jpg"))[::4])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an element for each photo that is decoded."""
    calls: list[int] = []
    real = images.read_with_shape

    def counted(content: bytes, how: ImageSpec) -> Any:
        calls.append(len(content))
        return real(content, how)

    monkeypatch.setattr(cache, "images", SimpleNamespace(read_with_shape=counted))
    return calls


def names(place: Path) -> list[str]:
    """What lies in the cache folder, hidden files too."""
    return sorted(os.listdir(place))


# ---- what it gives -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_it_is_what_images_reads(photos: list[Item], place: Path, mode: str) -> None:
    how = spec(24, mode)
    built = build(photos, how, folder=place)
    assert is_right(built, photos, how)
    assert not built.pixels.flags.writeable
    assert built.bytes == sum(file.stat().st_size for file in built.path.iterdir())


def test_it_is_what_images_reads_of_odd_photos(shared_photos: Path, place: Path) -> None:
    readable = []
    for path in sorted(shared_photos.glob("odd/*/*")):
        try:
            read(path.read_bytes(), spec())
        except UnreadableImage:
            continue
        readable.append(path)
    items = listed(readable)
    assert len(items) > 150
    for mode in ("squash", "pad"):
        assert is_right(build(items, spec(16, mode), folder=place), items, spec(16, mode))


def test_the_file_is_one_that_numpy_reads(photos: list[Item], place: Path) -> None:
    built = build(photos, spec(), folder=place)
    loaded = np.load(built.path / "pixels.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(loaded, built.pixels)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that many examples share."""
    return tmp_path_factory.mktemp("kept")


@settings(max_examples=40)
@given(chosen=st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_any_list_of_photos_is_right_whatever_was_built_before(
    chosen: list[int], photos: list[Item], kept: Path
) -> None:
    items = [photos[i] for i in chosen]  # in any order, equal ones too
    assert is_right(build(items, spec(), folder=kept, limit=5000), items, spec())


def test_the_photos_are_not_touched(photos: list[Item], birds: Path, place: Path) -> None:
    def state() -> list[tuple[Path, int, int]]:
        return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(birds.rglob("*"))]

    before = state()
    build(photos, spec(), folder=place)
    clear(place)
    assert state() == before


def test_no_photos_are_refused(place: Path) -> None:
    with pytest.raises(FieldmarkError, match="no photos"):
        build([], spec(), folder=place)


# ---- decoded once --------------------------------------------------------------------------------


def test_a_second_time_nothing_is_decoded(
    photos: list[Item], place: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = build(photos, spec(), folder=place)
    assert f"Cache: 12 photos, 3.9 kB in {first.path}\n" in capsys.readouterr().out
    assert len(decoded) == 12
    again = build(photos, spec(scaling="-1..1"), folder=place)
    assert f"in {first.path}, built earlier" in capsys.readouterr().out
    assert again.path == first.path
    assert len(decoded) == 12


def test_added_photos_alone_are_decoded(
    photos: list[Item], place: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    build(photos[:7], spec(), folder=place)
    items = [photos[11], *photos[3:9]]
    assert is_right(build(items, spec(), folder=place), items, spec())
    assert len(decoded) == 7 + 3
    assert "(4 copied from an earlier cache)" in capsys.readouterr().out
    build(items, spec(9), folder=place)  # of another size there is none
    assert len(decoded) == 10 + 7


def test_equal_photos_are_decoded_once(
    photos: list[Item], place: Path, tmp_path: Path, decoded: list[int]
) -> None:
    twin = tmp_path / "twin.jpg"
    shutil.copy(photos[0].path, twin)
    items = [photos[0], photos[1], Item(twin, photos[0].sha256)]
    built = build(items, spec(), folder=place)
    assert len(decoded) == 2
    np.testing.assert_array_equal(built.pixels[0], built.pixels[2])


def changed_version(monkeypatch: pytest.MonkeyPatch) -> Any:
    real = cache.decoders()
    monkeypatch.setattr(cache, "decoders", lambda: {**real, "pillow": "0.9"})


@pytest.mark.parametrize(
    "change",
    [
        lambda items, how, _: (items, how.model_copy(update={"size": 9})),
        lambda items, how, _: (items, how.model_copy(update={"mode": "crop"})),
        lambda items, how, _: (items, how.model_copy(update={"interpolation": "lanczos"})),
        lambda items, how, _: (items[1:], how),
        lambda items, how, _: (items[::-1], how),
        lambda items, how, patch: (items, how, changed_version(patch)),
        lambda items, how, patch: (items, how, patch.setattr(cache, "LAYOUT", 2)),
        lambda items, how, patch: (items, how, patch.setattr(cache, "CODE", "0")),
    ],
    ids=["size", "mode", "interpolation", "photos", "order", "Pillow", "layout", "code"],
)
def test_whatever_decides_the_pixels_makes_another_entry(
    photos: list[Item], place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]
) -> None:
    first = build(photos, spec(), folder=place)
    items, how, *_ = change(photos, spec(), monkeypatch)
    assert build(items, how, folder=place).path != first.path


def test_no_row_is_taken_from_another_decoder(
    photos: list[Item], place: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(photos, spec(), folder=place)
    changed_version(monkeypatch)
    build(photos[1:], spec(), folder=place)
    assert len(decoded) == 12 + 11


# ---- photos that cannot be used ------------------------------------------------------------------


def test_all_photos_that_cannot_be_used_are_named_at_once(
    photos: list[Item], place: Path, tmp_path: Path
) -> None:
    changed, gone, text = (tmp_path / name for name in ("changed.jpg", "gone.jpg", "text.jpg"))
    shutil.copy(photos[0].path, changed)
    shutil.copy(photos[1].path, gone)
    text.write_text("<html>")
    items = [*photos[4:], *listed([changed, gone, text])]
    shutil.copy(photos[2].path, changed)
    gone.unlink()
    with pytest.raises(FieldmarkError) as refused:
        build(items, spec(), folder=place)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("3 photos cannot be used; ")
    assert lines[1:] == [
        f"  {changed}: has changed since it was listed",
        f"  {gone}: No such file or directory",
        f"  {text}: is a web page, not a photo",
    ]
    assert names(place) == []


def test_a_file_that_has_grown_large_is_not_read_into_memory(
    photos: list[Item], place: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(FieldmarkError, match=r"large\.jpg: is larger than 100 MB"):
        build([Item(large, photos[0].sha256)], spec(), folder=place)


def test_an_interrupted_build_leaves_nothing(
    photos: list[Item], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(images, "read_with_shape", interrupted)
        build(photos, spec(), folder=place)
    assert names(place) == []
    assert is_right(build(photos, spec(), folder=place), photos, spec())


# ---- more than one process -----------------------------------------------------------------------

CHILD = r"""
import sys, time
from pathlib import Path
from fieldmark import images
from fieldmark.cache import Item, build

real = images.read_with_shape
def slow(content, how):
    time.sleep(float(sys.argv[2]))
    sys.stdout.write("decoded\n")  # at once: there are several threads
    return real(content, how)
images.read_with_shape = slow
items = [Item(Path(path), sha256) for path, sha256 in (x.rsplit(maxsplit=1) for x in sys.stdin)]
how = images.ImageSpec(size=8, mode="squash", interpolation="bilinear", scaling="0..255")
built = build(items, how, folder=sys.argv[1])
print(built.pixels.tobytes().hex(), flush=True)
time.sleep(float(sys.argv[3]))
"""


def child(
    items: Sequence[Item], place: Path, *, each: float = 0.0, after: float = 0.0
) -> subprocess.Popen[str]:
    """Build in a process of its own, `each` seconds a photo; then hold the cache for `after`."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place), str(each), str(after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.writelines(f"{item.path} {item.sha256}\n" for item in items)
    process.stdin.close()
    return process


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout
    with process.stdout:
        yield from map(str.strip, process.stdout)
    assert process.wait() == 0


def kill(process: subprocess.Popen[str]) -> None:
    """End a process in a way that it does not notice: SIGKILL, where there is that."""
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def begun(place: Path) -> None:
    """Wait until somebody builds."""
    end = time.monotonic() + 20
    while not list(place.glob(".*.building/pixels.npy")):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_two_builders_one_decodes_and_the_other_waits(photos: list[Item], place: Path) -> None:
    said = [list(lines(p)) for p in [child(photos, place, each=0.1) for _ in range(2)]]
    assert sum(line == "decoded" for of_one in said for line in of_one) == 12
    assert said[0][-1] == said[1][-1] == build(photos, spec(), folder=place).pixels.tobytes().hex()
    assert len(names(place)) == 1


def test_builders_of_different_photos_do_not_wait(photos: list[Item], place: Path) -> None:
    slow = child(photos, place, each=1)
    begun(place)
    build(photos[:2], spec(), folder=place)
    assert slow.poll() is None
    kill(slow)


@pytest.mark.parametrize("first", [0, 5], ids=["the same again", "others"])
def test_a_killed_builder_leaves_nothing_that_stays(
    photos: list[Item], place: Path, first: int
) -> None:
    killed = child(photos, place, each=0.3)
    begun(place)
    assert entries(place) == []
    kill(killed)
    assert [name.endswith(".building") for name in names(place)] == [True, False]
    built = build(photos[first:], spec(), folder=place)
    assert is_right(built, photos[first:], spec())
    assert names(place) == [built.path.name]


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps what is mapped by itself")
def test_what_another_process_uses_is_not_removed(photos: list[Item], place: Path) -> None:
    holder = child(photos, place, after=60)
    assert holder.stdout
    while holder.stdout.readline().startswith(("decoded", "Cache")):
        pass
    assert [entry.in_use for entry in entries(place)] == [True]
    assert clear(place) == 0
    with pytest.raises(FieldmarkError, match=r"of which 3\.9 kB are in use"):
        build(photos[:9], spec(), folder=place, limit=5000)
    kill(holder)
    assert [entry.in_use for entry in entries(place)] == [False]
    assert clear(place) > 0
    assert names(place) == []


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps what is mapped")
def test_pixels_stay_when_their_entry_is_removed(photos: list[Item], place: Path) -> None:
    pixels = build(photos, spec(), folder=place).pixels
    shutil.rmtree(place)
    np.testing.assert_array_equal(pixels[3], read(photos[3].path.read_bytes(), spec()))


# ---- damage --------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["pixels.npy", "index.npy", "entry.json"]),
    where_at=st.floats(0, 1, exclude_max=True),
    how=st.sampled_from(["flipped", "cut", "longer"]),
)
def test_whatever_is_damaged_the_pixels_are_right(
    photos: list[Item], kept: Path, name: str, where_at: float, how: str
) -> None:
    items = photos[:4]
    path = build(items, spec(), folder=kept).path
    content = bytearray((path / name).read_bytes())
    at = int(where_at * len(content))
    if how == "flipped":
        content[at] ^= 1
    elif how == "cut":
        del content[at:]
    else:
        content += b"\0"
    (path / name).write_bytes(content)
    assert is_right(build(items, spec(), folder=kept), items, spec())


def flip(file: Path) -> None:
    """Change one bit of a file, not far from its end."""
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path / "pixels.npy"), "a checksum of the photos 1 to 12 is wrong"),
        (lambda path: flip(path / "index.npy"), "the checksum of index.npy is wrong"),
        (lambda path: os.truncate(path / "pixels.npy", 999), "has 999 bytes and should have"),
        (lambda path: (path / "entry.json").write_text("[]"), "entry.json cannot be read"),
        (lambda path: (path / "entry.json").unlink(), "entry.json: No such file or directory"),
        (lambda path: (path / "pixels.npy").unlink(), "pixels.npy: No such file or directory"),
    ],
)
def test_a_damaged_entry_is_built_again_and_it_is_said(
    photos: list[Item],
    place: Path,
    damage: Callable[[Path], object],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = build(photos, spec(), folder=place).path
    damage(path)
    assert is_right(build(photos, spec(), folder=place), photos, spec())
    said = capsys.readouterr().out
    assert said.count(f"The cache {path} is damaged (") == 1
    assert reason in said
    assert names(place) == [path.name]


def test_another_list_under_its_name_is_damage(photos: list[Item], place: Path) -> None:
    wanted = build(photos, spec(), folder=place).path
    other = build(photos[::-1], spec(), folder=place).path
    shutil.rmtree(wanted)
    other.rename(wanted)
    assert is_right(build(photos, spec(), folder=place), photos, spec())


def test_a_damaged_row_is_not_copied(photos: list[Item], place: Path, decoded: list[int]) -> None:
    flip(build(photos[:4], spec(), folder=place).path / "pixels.npy")
    assert is_right(build(photos[:5], spec(), folder=place), photos[:5], spec())
    assert len(decoded) == 4 + 2


# ---- bounds --------------------------------------------------------------------------------------


def built_at(seconds: int, items: Sequence[Item], how: ImageSpec, place: Path) -> Path:
    """Build an entry and let go of it; it was last used `seconds` after an hour ago."""
    path = build(items, how, folder=place).path
    at = time.time() - 3600 + seconds
    os.utime(path / "lock", (at, at))
    return path


def test_what_was_not_used_for_longest_makes_room(photos: list[Item], place: Path) -> None:
    a, b, c = (built_at(i, photos[:6], spec(8 + i), place) for i in range(3))
    size = max(entry.bytes for entry in entries(place))
    build(photos[:6], spec(8), folder=place)  # used again
    new = build(photos[:6], spec(7), folder=place, limit=3 * size).path
    assert {entry.path for entry in entries(place)} == {a, c, new}
    assert not b.exists()


def test_what_holds_photos_that_are_wanted_goes_last(
    photos: list[Item], place: Path, decoded: list[int]
) -> None:
    useful = built_at(0, photos[:6], spec(), place)
    useless = built_at(1, photos[:6], spec(7), place)
    size = sum(entry.bytes for entry in entries(place))
    decoded.clear()
    build(photos[:7], spec(), folder=place, limit=int(1.4 * size))
    assert useful.exists()
    assert not useless.exists()
    assert len(decoded) == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps what is mapped by itself")
def test_what_is_in_use_is_not_removed(photos: list[Item], place: Path) -> None:
    held = build(photos[:6], spec(), folder=place).pixels[2:]  # a part is enough
    built_at(0, photos[:6], spec(9), place)
    size = max(entry.bytes for entry in entries(place))
    build(photos[6:], spec(), folder=place, limit=2 * size)
    assert [entry.in_use for entry in entries(place)].count(True) == 1
    with pytest.raises(FieldmarkError, match="are in use"):
        build(photos[6:], spec(9), folder=place, limit=2 * size - 1000)
    del held
    build(photos[6:], spec(9), folder=place, limit=2 * size - 1000)


def test_what_is_larger_than_the_limit_is_refused_before_anything_is_removed(
    photos: list[Item], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(photos, spec(), folder=place).path
    with pytest.raises(FieldmarkError) as refused:
        build(photos, spec(64), folder=place, limit=100_000)
    assert str(refused.value) == (
        "The cache of 12 photos of 64 pixels needs 148 kB, and all caches together may take "
        "100 kB: allow more with FIELDMARK_CACHE_LIMIT=1 (in GB), or use smaller images."
    )
    monkeypatch.setenv("FIELDMARK_CACHE_LIMIT", "0.0001")
    with pytest.raises(FieldmarkError, match="needs 148 kB"):
        build(photos, spec(64), folder=place)
    assert names(place) == [old.name]


@pytest.mark.parametrize("text", ["much", "nan", "inf", "1e999", "-1"])
def test_a_limit_that_is_no_number_is_refused(
    text: str, photos: list[Item], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE_LIMIT", text)
    with pytest.raises(FieldmarkError, match="number of gigabytes"):
        build(photos, spec(), folder=place)


def test_a_disk_too_small_is_said_before_anything_is_decoded(
    photos: list[Item], small_disk: Path, decoded: list[int]
) -> None:
    with pytest.raises(FieldmarkError, match=rf"needs 148 kB, and {small_disk} has \d\d kB left"):
        build(photos, spec(64), folder=small_disk)
    assert decoded == []
    assert names(small_disk) == []


def test_old_entries_make_room_on_a_full_disk(photos: list[Item], small_disk: Path) -> None:
    old = built_at(0, photos, spec(28), small_disk)
    assert is_right(build(photos, spec(30), folder=small_disk), photos, spec(30))
    assert not old.exists()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    photos: list[Item], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(FieldmarkError, match=r"cannot be used \(No space left on device\)"):
        build(photos, spec(64), folder=small_disk)
    assert names(small_disk) == []


def test_a_cache_that_may_only_be_read_is_used(photos: list[Item], small_disk: Path) -> None:
    build(photos, spec(), folder=small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert is_right(build(photos, spec(), folder=small_disk), photos, spec())
    with pytest.raises(FieldmarkError, match=r"cannot be used \(Read-only file system\)"):
        build(photos, spec(9), folder=small_disk)
    assert clear(small_disk) == 0
    assert "3.9 kB" in summary(small_disk)


def test_a_place_that_is_no_folder_is_refused(photos: list[Item], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(FieldmarkError, match=r"The cache folder .*file.* cannot be used"):
            build(photos, spec(), folder=place)


# ---- the folder ----------------------------------------------------------------------------------


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: list[Item]) -> None:
    monkeypatch.delenv("FIELDMARK_CACHE", raising=False)
    assert where().name == "fieldmark"
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "named"))
    assert where() == tmp_path / "named"
    assert where(tmp_path) == tmp_path
    assert build(photos, spec()).path.parent == tmp_path / "named"
    if os.name == "posix":
        assert (tmp_path / "named").stat().st_mode & 0o777 == 0o700


def test_it_is_shown_and_cleared(photos: list[Item], place: Path) -> None:
    assert summary(place).endswith(
        "0 entries, 0 bytes of at most 20 GB (FIELDMARK_CACHE_LIMIT, in GB)"
    )
    path = built_at(0, photos, spec(), place)
    (built_at(1, photos, spec(9), place) / "entry.json").write_text("{")
    head, damaged, whole, total = summary(place).splitlines()
    assert head.startswith(f"{place} ")
    assert "damaged" in damaged
    assert " ".join(whole.split()).startswith(
        f"{path.name[:8]} 12 photos 3.9 kB 8 px, squash, bilinear 20"
    )
    assert total.startswith("2 entries, ")
    size = sum(entry.bytes for entry in entries(place))
    assert clear(place) == size
    assert entries(place) == []
    assert names(place) == []


def test_clearing_removes_nothing_else(photos: list[Item], place: Path, tmp_path: Path) -> None:
    """Somebody may name a folder as the cache in which other things lie."""
    build(photos, spec(), folder=place)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.jpg").touch()
    others = ["notes.txt", ".profile", "a" * 31, "g" * 32, f".{'a' * 32}.txt"]
    for name in others:
        (place / name).write_text("mine")
    (place / ("b" * 32)).symlink_to(outside)
    (place / ("c" * 32) / "artifacts").mkdir(parents=True)  # as of an MLflow run
    (place / ("c" * 32) / "lock").touch()
    (place / ("d" * 32)).write_text("mine")
    assert len(entries(place)) == 1
    assert clear(place) > 0
    assert names(place) == sorted([*others, *(sign * 32 for sign in "bcd")])
    assert names(place / ("c" * 32)) == ["artifacts", "lock"]
    assert names(outside) == ["photo.jpg"]


def test_nothing_is_there_and_nothing_is_made(place: Path) -> None:
    assert entries(place) == []
    assert clear(place) == 0
    assert not place.exists()


def test_an_entry_says_what_made_it(photos: list[Item], place: Path) -> None:
    about = json.loads((build(photos, spec(), folder=place).path / "entry.json").read_text())
    assert about["photos"] == 12
    assert about["decoders"] == cache.decoders()
    assert "scaling" not in about
