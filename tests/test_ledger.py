"""The CSV of answers: whole rows wherever it is cut, each photo once, another model refused."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import ledger
from fieldmark.errors import FieldmarkError
from fieldmark.ledger import Row, known_as, opened

CLASSES = ("rose, red", "=tulip")


def written(path: Path, rows: list[Row], *, model: str = "m") -> dict[str, str]:
    """Add the rows that are not there yet; return what was there."""
    had = dict[str, str]()
    with opened(path, classes=CLASSES, model=model, had=had.__setitem__) as book:
        for row in rows:
            if known_as(row.path) not in had:
                book.add([row])
    return had


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))


def answer(path: str) -> Row:
    return Row(path, CLASSES[1], np.array([1 / 3, 2 / 3]))


def test_a_row_a_photo_with_all_probabilities(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    rows = [
        answer("/a.jpg"),
        Row("/b.jpg", None, np.array([0.5, 1e-30])),
        Row("/c.jpg", error='is "cut" off'),
    ]
    assert written(place, rows) == {}
    assert table(place) == [
        ["path", "answer", "probability", "error", "p:rose, red", "p:=tulip", "model:m"],
        ["/a.jpg", "'=tulip", "0.666666667", "", "0.333333333", "0.666666667", ""],
        ["/b.jpg", "none of these", "0.5", "", "0.5", "1e-30", ""],
        ["/c.jpg", "", "", 'is "cut" off', "", "", ""],
    ]
    assert written(place, []) == {"/a.jpg": "", "/b.jpg": "", "/c.jpg": 'is "cut" off'}


def test_a_quote_too_many_does_not_take_the_rows_behind_it(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    written(place, [answer(f"/{i}.jpg") for i in range(5)])
    content = place.read_bytes().replace(b"/1.jpg", b'/1".jpg')
    place.write_bytes(content)
    with pytest.raises(FieldmarkError, match=r"Row 3 of .* is damaged: take it out"):
        written(place, [answer("/9.jpg")])
    assert place.read_bytes() == content


PATHS = st.lists(st.text(min_size=1, max_size=8), unique_by=known_as, max_size=6)


@given(paths=PATHS, cut=st.floats(0, 1), errors=st.sets(st.integers(0, 5)))
def test_a_csv_that_is_cut_anywhere_is_gone_on_with(
    paths: list[str], cut: float, errors: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("cut") / "a.csv"
    rows = [
        Row(path, error=f"is\n{path}") if i in errors else answer(path)
        for i, path in enumerate(paths)
    ]
    written(place, rows)
    whole = place.read_bytes()
    content = whole[: round(cut * len(whole))]
    place.write_bytes(content)
    had = written(place, rows)
    assert place.read_bytes() == whole
    assert [*had] == [known_as(path) for path in paths[: len(had)]]
    assert len(table(place)) == len(paths) + 1


def test_a_cut_costs_one_row_at_most(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    rows = [answer(f'/{i} "\r\n".jpg') for i in range(5)]
    written(place, rows)
    whole = place.read_bytes()
    ends = [len(whole) - len(ledger._line(ledger._cells(rows[-1], 2))), len(whole)]
    for cut in range(*ends):
        place.write_bytes(whole[:cut])
        assert len(written(place, [])) == 4
        assert place.read_bytes() == whole[: ends[0]]


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xd8\xff\xe0" * 1000, b"path,answer\r\n"])
def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "a.csv"
    place.write_bytes(content)
    with pytest.raises(FieldmarkError, match="was not begun by this model"):
        written(place, [answer("/a.jpg")])
    assert place.read_bytes() == content


def test_changed_line_ends_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    written(path, [answer("/a.jpg")])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    before = path.read_bytes()
    with pytest.raises(FieldmarkError, match="has changed the line ends"):
        written(path, [answer("/b.jpg")])
    assert path.read_bytes() == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    written(place, [answer("/a.jpg")])
    before = place.read_bytes()
    with pytest.raises(FieldmarkError, match="was not begun by this model"):
        written(place, [answer("/b.jpg")], model="other")
    assert place.read_bytes() == before


@pytest.mark.parametrize("bad", ["/x.jpg,rose\r\n", "\0" * 200_000])
def test_a_damaged_row_is_named(tmp_path: Path, bad: str) -> None:
    place = tmp_path / "a.csv"
    written(place, [answer("/a.jpg")])
    with place.open("ab") as file:
        file.write(bad.encode())
    before = place.read_bytes()
    with pytest.raises(FieldmarkError, match=r"Row 3 of .*a\.csv is damaged"):
        written(place, [answer("/b.jpg")])
    assert place.read_bytes() == before


def test_two_processes_do_not_write_one_csv(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    code = (
        "import sys; from pathlib import Path; from fieldmark.ledger import opened\n"
        f"with opened(Path({str(place)!r}), classes=('a',), model='m', had=print):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(FieldmarkError, match="is being written by another process"):
            written(place, [])
        other.communicate()


def test_a_full_disk_leaves_whole_rows(small_disk: Path) -> None:
    place = small_disk / "a.csv"
    rows = [answer(f"/{'x' * 1000}/{i}.jpg") for i in range(100)]
    with pytest.raises(FieldmarkError, match="cannot be written"):
        written(place, rows)
    assert os.stat(place).st_size < 65536  # noqa: PTH116
    assert 50 < len(table(place)) < 100


@pytest.mark.parametrize(("name", "message"), [("", "is a folder"), ("no/a.csv", "no folder")])
def test_a_place_that_is_none_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(FieldmarkError, match=message):
        written(tmp_path / name, [])
