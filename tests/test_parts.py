"""A folder of Parquet: whole parts wherever it is stopped, each photo once, others refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fieldmark import parts
from fieldmark.errors import FieldmarkError
from fieldmark.ledger import Row
from fieldmark.parts import opened

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

CLASSES = ("rose, red", "=tulip")
ROWS = [
    Row("/a.jpg", CLASSES[1], np.array([1 / 3, 2 / 3])),
    Row("/b\udcff.jpg", None, np.array([0.5, 1e-30])),
    Row("/c.jpg", error="is cut off"),
]


def written(folder: Path, rows: list[Row], *, model: str = "m") -> dict[str, str]:
    """Add rows; return what was there."""
    had = dict[str, str]()
    with opened(folder, classes=CLASSES, model=model, had=had.__setitem__) as book:
        for row in rows:
            book.add([row])
    return had


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_said_as_columns(tmp_path: Path) -> None:
    assert written(tmp_path / "out", ROWS) == {}
    assert names(tmp_path / "out") == ["part-000000.parquet"]
    assert pq.read_table(tmp_path / "out").to_pylist() == [
        {
            **{"path": "/a.jpg", "answer": "=tulip", "probability": 2 / 3, "error": None},
            **{"p:rose, red": 1 / 3, "p:=tulip": 2 / 3},
        },
        {
            **{"path": "/b\\udcff.jpg", "answer": "none of these", "probability": 0.5},
            **{"error": None, "p:rose, red": 0.5, "p:=tulip": 1e-30},
        },
        {
            **{"path": "/c.jpg", "answer": None, "probability": None, "error": "is cut off"},
            **{"p:rose, red": None, "p:=tulip": None},
        },
    ]


def test_it_is_gone_on_with(tmp_path: Path) -> None:
    written(tmp_path, ROWS[:2])
    begun = tmp_path / ".part-000001.77.partial.parquet"
    begun.write_bytes(b"half of one")  # as a killed process leaves it
    assert written(tmp_path, []) == {"/a.jpg": "", "/b\\udcff.jpg": ""}
    assert written(tmp_path, ROWS[2:]) == {"/a.jpg": "", "/b\\udcff.jpg": ""}
    assert names(tmp_path) == ["part-000000.parquet", "part-000001.parquet"]
    assert written(tmp_path, [])["/c.jpg"] == "is cut off"


def test_rows_wait_for_each_other_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS", 2)
    with opened(tmp_path, classes=CLASSES, model="m", had=lambda *_: None) as book:
        counts = []
        for row in ROWS:
            book.add([row])
            counts.append(len([*tmp_path.glob("*.parquet")]))
        assert counts == [0, 1, 1]
        monkeypatch.setattr(parts, "SECONDS", -1.0)
        book.add([ROWS[0]])
        assert len([*tmp_path.glob("*.parquet")]) == 2
    assert pq.read_table(tmp_path).num_rows == 4


def test_stopped_it_has_what_was_added(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with opened(tmp_path, classes=CLASSES, model="m", had=lambda *_: None) as book:
            book.add(ROWS)
            raise KeyboardInterrupt
    assert pq.read_table(tmp_path).num_rows == 3


def test_what_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "out", ROWS)
    with pytest.raises(FieldmarkError, match=r"part-000000\.parquet was not written by this model"):
        written(tmp_path / "out", ROWS, model="other")
    with opened(tmp_path / "out", classes=CLASSES, model="m", had=lambda *_: None):
        with pytest.raises(FieldmarkError, match="is being written by another process"):
            written(tmp_path / "out", [])
    part = tmp_path / "out" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(FieldmarkError, match=r"part-000000\.parquet cannot be read .* take it"):
        written(tmp_path / "out", [])
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "none" / "out"):
        with pytest.raises(FieldmarkError, match="cannot be written"):
            written(place, [])
