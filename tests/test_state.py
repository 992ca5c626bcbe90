"""The file that a training goes on from: whole, checked, and of this training only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import state
from fieldmark.errors import FieldmarkError
from fieldmark.state import Header

RECIPE = {"epochs": 3, "learning_rate": 0.1, "sizes": (96, 128)}
HEADER = Header(
    recipe=RECIPE,
    epoch=2,
    step=5,
    loss=0.1 + 0.2,
    accuracy=1.5,
    seconds=3.25,
    log=({"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": None}),
    made_with={"backend": "tensorflow", "keras": "3"},
)
PHOTOS = state.digests([("a.jpg", "owl"), ("b.jpg", "wren"), ("\udcff.jpg", "wren")])
ARRAYS = {
    "network/0000/conv/kernel": np.linspace(0, 1, 12, dtype="float32").reshape(3, 4),
    "optimiser/0000/iteration": np.array(7, "int64"),
    "optimiser/0001/none": np.zeros((0, 3), "float32"),
}


def save(path: Path, header: Header = HEADER, **arrays: Any) -> None:
    state.write(path, header, photos=PHOTOS, arrays=({**ARRAYS, **arrays}).items())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save(path)
    header, photos, arrays = state.read(path)
    assert (header.epoch, header.step, header.loss, header.accuracy) == (2, 5, 0.1 + 0.2, 1.5)
    assert header.seconds == 3.25
    assert tuple(header.log) == HEADER.log
    assert header.recipe == {**RECIPE, "sizes": [96, 128]}
    assert np.array_equal(photos, PHOTOS)
    assert list(arrays) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values, strict=True)


def test_numpy_alone_opens_it_and_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    save(tmp_path / "one.npz")
    save(tmp_path / "other.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as opened:
        assert opened["network/0000/conv/kernel"].shape == (3, 4)
        assert opened["header"].tobytes().startswith(b'{"format": 1')


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FieldmarkError, match=r"state\.npz is damaged and nothing can go on"):
            state.read(path)


def test_an_altered_byte_is_refused_or_alters_nothing(tmp_path: Path) -> None:
    """Some bytes of a zip, such as a file's date, say nothing of what is in it."""
    path = tmp_path / "state.npz"
    save(path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            header, photos, arrays = state.read(path)
        except FieldmarkError:
            refused += 1
            continue
        assert header.log == [dict(line) for line in HEADER.log]
        assert np.array_equal(photos, PHOTOS)
        assert all(np.array_equal(arrays[name], values) for name, values in ARRAYS.items())
    assert refused > len(whole) / 3 * 0.7


def test_entries_of_two_states_do_not_mix(tmp_path: Path) -> None:
    """Each entry is whole in itself, with a valid sum of its own in the zip."""
    path = tmp_path / "state.npz"
    save(path)
    with np.load(path) as opened:
        entries = dict(opened)
    np.savez(path, **{**entries, "optimiser/0000/iteration": np.array(8)})
    with pytest.raises(FieldmarkError, match="is damaged"):
        state.read(path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.npz"
    monkeypatch.setattr(state, "FORMAT", 2)
    save(path)
    monkeypatch.undo()
    with pytest.raises(FieldmarkError, match="has the format 2, and this fieldmark reads 1"):
        state.read(path)


def test_what_raises_in_the_middle_leaves_the_earlier_state(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save(path)
    before = path.read_bytes()

    def broken() -> Iterator[tuple[str, Any]]:
        yield from ARRAYS.items()
        raise FieldmarkError("no number")

    with pytest.raises(FieldmarkError, match="no number"):
        state.write(path, HEADER, photos=PHOTOS, arrays=broken())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_full_disk_leaves_the_earlier_state(small_disk: Path) -> None:
    path = small_disk / "state.npz"
    save(path)
    with pytest.raises(FieldmarkError, match=r"state\.npz cannot be written \(No space left"):
        save(path, big=np.zeros(100_000))
    assert state.read(path)[0].epoch == 2
    assert os.listdir(small_disk) == ["state.npz"]


def test_a_folder_that_may_only_be_read_leaves_the_earlier_state(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.npz"
    path.parent.mkdir()
    save(path)
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(FieldmarkError, match=r"state\.npz cannot be written"):
            save(path)
        assert state.read(path)[0].epoch == 2
    finally:
        path.parent.chmod(0o700)


def refuse(recipe: dict[str, Any], photos: Any, backend: str = "tensorflow") -> None:
    header = Header(recipe={**RECIPE, "sizes": [96, 128]}, made_with={"backend": "tensorflow"})
    state.refuse_other(
        Path("state.npz"), (header, PHOTOS), recipe=recipe, photos=photos, backend=backend
    )


def test_the_same_training_is_not_refused() -> None:
    refuse(RECIPE, PHOTOS)


def test_what_differs_is_said() -> None:
    other = {"epochs": 4, "sizes": (96, 128), "mixup": 0.2}
    words = r"\(epochs 3 there, 4 now; learning_rate 0.1 there, None now; mixup None there, 0.2 now"
    with pytest.raises(FieldmarkError, match=words):
        refuse(other, PHOTOS)
    changed = state.digests([("a.jpg", "owl"), ("b.jpg", "owl"), ("c.jpg", "owl")])
    with pytest.raises(FieldmarkError, match="2 are new or changed, 2 are gone or changed"):
        refuse(RECIPE, changed)
    with pytest.raises(FieldmarkError, match="is of the same photos in another order"):
        refuse(RECIPE, PHOTOS[::-1])
    with pytest.raises(FieldmarkError, match="set KERAS_BACKEND=tensorflow"):
        refuse(RECIPE, PHOTOS, backend="jax")


@pytest.mark.parametrize(
    "there",
    ["", '{"epoch": 1}\n', '{"epoch": 1}\n{"epo', '{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n'],
)
def test_the_log_becomes_what_the_state_says(tmp_path: Path, there: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(there)
    state.mend_log(log, [{"epoch": 1}, {"epoch": 2}])
    assert log.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_a_log_that_is_right_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    state.mend_log(log, [])
    assert not log.exists()
    log.write_text('{"epoch": 1}\n')
    log.chmod(0o400)
    before = log.stat().st_mtime_ns
    state.mend_log(log, [{"epoch": 1}])
    assert log.stat().st_mtime_ns == before


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    for name in (".state.12.partial.npz", ".state.9.partial.npz", ".best.9.partial.keras", "a.npz"):
        (tmp_path / name).touch()
    state.sweep(tmp_path / "state.npz")
    assert sorted(os.listdir(tmp_path)) == [".best.9.partial.keras", "a.npz"]
    state.sweep(tmp_path / "nowhere" / "state.npz")
