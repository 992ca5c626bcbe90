"""A table of predictions comes back as it was, and what is damaged is one sentence."""

from __future__ import annotations

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import predictions
from fieldmark.errors import FieldmarkError
from fieldmark.predictions import SPLITS, Predictions, read, write

HASH = "0123456789abcdef" * 4
HEADER = "path,split,label,group,sha256,p:ant,p:bee"
ROW = f"a.jpg,test,ant,,{HASH},0.75,0.25"

# All that a file system and a CSV can hold.
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=8
) | st.sampled_from(["=1+1", "'=1", "''-1", "./=1", "././@a", "-", "+a", 'a, "b"', "<b>", "p:a"])


@st.composite
def tables(draw: st.DrawFn) -> Predictions:
    classes = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    paths = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    count = len(paths)

    def each(values: st.SearchStrategy[str]) -> tuple[str, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    logits = draw(
        st.lists(
            st.lists(st.floats(-900, 900), min_size=len(classes), max_size=len(classes)),
            min_size=count,
            max_size=count,
        )
    )
    raised = np.exp(np.array(logits) - np.max(logits, axis=1, keepdims=True))
    label = st.integers(0, len(classes) - 1)
    return Predictions(
        classes=tuple(classes),
        paths=tuple(paths),
        splits=each(st.sampled_from(SPLITS)),
        labels=np.array(draw(st.lists(label, min_size=count, max_size=count)), np.int64),
        groups=each(names | st.just("")),
        sha256=each(st.text("0123456789abcdef", min_size=64, max_size=64)),
        probabilities=raised / raised.sum(axis=1, keepdims=True),
    )


@given(tables())
def test_a_table_comes_back(table: Predictions) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, table)
        back = read(path)
        content = path.read_bytes()
        write(path, back)
        assert path.read_bytes() == content
    for name in ("classes", "paths", "splits", "groups", "sha256"):
        assert getattr(back, name) == getattr(table, name)
    np.testing.assert_array_equal(back.labels, table.labels)
    np.testing.assert_allclose(back.probabilities, table.probabilities, rtol=1e-8, atol=1e-300)
    assert (back.probabilities > 0).all()


@given(tables())
def test_no_cell_of_a_table_computes(table: Predictions) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, table)
        with path.open(encoding="utf-8", newline="") as f:
            cells = [cell for row in csv.reader(f) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


def test_the_file_is_as_the_docs_say(tmp_path: Path) -> None:
    table = Predictions(
        classes=("ant", "=bee"),
        paths=("ant/1.jpg", "=2.jpg"),
        splits=("test", "new"),
        labels=np.array([0, 1]),
        groups=("", "g"),
        sha256=(HASH, HASH),
        probabilities=np.array([[1, 0], [1 / 3, 2 / 3]]),
    )
    write(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == [
        "path,split,label,group,sha256,p:ant,p:=bee",
        f"ant/1.jpg,test,ant,,{HASH},1,1e-300",
        f"./=2.jpg,new,'=bee,g,{HASH},0.333333333,0.666666667",
    ]


def test_the_rows_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n{ROW}\n{ROW.replace('test', 'new')}\nb{ROW}\n", encoding="utf-8")
    table = read(path)  # one photo in two splits is no error
    assert len(table) == 3
    assert table.of("test").paths == ("a.jpg", "ba.jpg")
    assert table.of("test").probabilities.shape == (2, 2)
    assert len(table.of("validation")) == 0


def test_what_a_spreadsheet_saves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    columns = "split,path,sha256,label,group,p:ant,p:bee"
    path.write_bytes(f"\ufeff{columns}\r\ntest,a,{HASH},bee,,0.5,0.5004\r\n\r\n".encode())
    table = read(path)
    assert (table.paths, table.splits, table.labels.tolist()) == (("a",), ("test",), [1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lacks path, split, label, group, sha256 among the first 5 columns"),
        (HEADER.replace("group,", ""), "lacks group among"),
        (HEADER.replace("path", "Pfad"), "lacks path among"),
        (HEADER.partition(",p:")[0], "has no columns of classes"),
        (HEADER.removesuffix(",p:bee"), "has one column of a class"),
        (HEADER + ",p:bee", "has two columns of the class 'bee'"),
        (HEADER + ",notes", "has the column 'notes', which is none of a class"),
        (HEADER, "has no rows: `fieldmark evaluate RUN` writes it anew."),
        (f"{HEADER}\n{ROW},1", "Line 2 of .* has 8 cells and the first has 7"),
        (f"{HEADER}\n{ROW}\n{ROW[:-5]}", "Line 3 of .* has 6 cells and the first has 7"),
        (f"{HEADER}\n{ROW.replace('0.75', 'much')}", "Line 2 .* probability 'much' of ant"),
        (f"{HEADER}\n{ROW.replace('0.75', 'nan')}", "the probability 'nan' of ant"),
        (f"{HEADER}\n{ROW.replace('0.75', '')}", "the probability '' of ant"),
        (f"{HEADER}\n{ROW.replace('0.25', '-0.25')}", "'-0.25' of bee, which is no number from 0"),
        (f"{HEADER}\n{ROW.replace('0.75', '1.25')}", "the probability '1.25' of ant"),
        (f"{HEADER}\n{ROW.replace('0.75', '0.7')}", "add up to 0.95 instead of 1"),
        (f"{HEADER}\n{ROW.replace('ant', 'cat')}", "has the class 'cat', which no column"),
        (f"{HEADER}\n{ROW.replace('test', 'Test')}", "has the split 'Test', which is none of"),
        (f"{HEADER}\n{ROW.removeprefix('a.jpg')}", "Line 2 of .* names no photo"),
        (f"{HEADER}\n{ROW.replace(HASH, HASH[1:])}", "has the sha256 '1234"),
        (f"{HEADER}\n{ROW}\n\n{ROW}", "Lines 2 and 4 of .* are both about the test photo a.jpg"),
        (f'{HEADER}\n"a\nb{ROW[1:]}', "Line 2 of .* is not CSV"),
    ],
)
def test_a_damaged_table_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FieldmarkError, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("`fieldmark evaluate RUN` writes it anew.")


def test_a_table_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match=r"There is no .*: `fieldmark evaluate RUN` writes it"):
        read(tmp_path / "t.csv")
    with pytest.raises(FieldmarkError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "t.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(FieldmarkError, match="is not text in UTF-8"):
        read(tmp_path / "t.csv")


def test_a_name_that_no_csv_can_hold_leaves_nothing(tmp_path: Path) -> None:
    table = Predictions(
        classes=("a", "b"),
        paths=("\udcff.jpg",),
        splits=("new",),
        labels=np.array([0]),
        groups=("",),
        sha256=(HASH,),
        probabilities=np.array([[0.5, 0.5]]),
    )
    with pytest.raises(FieldmarkError, match="not UTF-8: rename"):
        write(tmp_path / "t.csv", table)
    assert list(tmp_path.iterdir()) == []


@given(st.text("'.-=/a", max_size=8), st.sampled_from(["./", "'"]))
def test_a_guard_can_be_undone(text: str, sign: str) -> None:
    assert predictions._bare(predictions._guarded(text, sign), sign) == text
