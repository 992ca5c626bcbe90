"""The run folder: what is written can be read, and what is no run is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.recipe import ARTICLE
from fieldmark.run import Run, create, open_run
from fieldmark.split import Record

SPEC = ImageSpec(size=224, mode="squash", interpolation="bilinear", scaling="0..255")

# What a file or a class can be called: anything but line breaks and half signs.
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0/"), min_size=1)


def new_run(folder: Path, classes: tuple[str, ...] = ("ant", "bee"), path: str = "1.jpg") -> Run:
    """Create a run of one photo a class."""
    return create(
        folder,
        recipe=ARTICLE,
        environment={"a": 1},
        classes=classes,
        specification=SPEC,
        records=[Record(f"{name}/{path}", name, "training", "", "0" * 64) for name in classes],
    )


def test_a_run_can_be_read_again(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert open_run(tmp_path / "run") == run
    assert run.read_recipe() == ARTICLE
    assert run.read_classes() == ("ant", "bee")
    assert [record.label for record in run.read_split()] == ["ant", "bee"]
    assert run.read_specification() == SPEC
    assert json.loads(run.environment.read_text()) == {"schema": 2, "a": 1}
    assert run.read_log() == []
    assert os.listdir(tmp_path) == ["run"]


@given(kind=names, path=names)
def test_any_name_survives(tmp_path_factory: pytest.TempPathFactory, kind: str, path: str) -> None:
    run = new_run(tmp_path_factory.mktemp("any") / "run", classes=(kind, "x" + kind), path=path)
    assert run.read_classes() == (kind, "x" + kind)
    assert run.read_split()[0].path == f"{kind}/{path}"


def test_the_log_grows_by_a_line_an_epoch(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for epoch in (1, 2):
        run.append_log({"epoch": epoch, "loss": 0.5})
    assert run.log.read_text() == '{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.5}\n'
    assert [line["epoch"] for line in run.read_log()] == [1, 2]


def test_a_log_on_a_full_disk_keeps_whole_lines(small_disk: Path) -> None:
    run = new_run(small_disk / "run")
    run.append_log({"epoch": 1})
    with pytest.raises(FieldmarkError, match="No space left"):
        run.append_log({"x" * 100_000: 2})
    assert run.log.read_text() == '{"epoch": 1}\n'


def test_half_a_last_line_of_the_log_is_no_epoch(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.append_log({"epoch": 1})
    with run.log.open("a") as log:
        log.write('{"epoch": ')
    assert run.read_log() == [{"epoch": 1}]


def test_an_existing_run_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with pytest.raises(FieldmarkError, match="exists already"):
        new_run(tmp_path / "run", classes=("cow", "dog"))
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="is not a run folder"):
        open_run(tmp_path)
    run = new_run(tmp_path / "run")
    run.environment.write_text("{")
    with pytest.raises(FieldmarkError, match=r"environment.json"):
        run.read_environment()
    with pytest.raises(FieldmarkError, match="is not a run folder"):
        open_run(run.folder)
    run.environment.write_text('{"schema": 2}')
    assert open_run(run.folder) == run
    run.recipe.write_text('{"epochs": "many"}')
    with pytest.raises(FieldmarkError, match=r"recipe.json is not a recipe of this version"):
        run.read_recipe()
    run.environment.write_text('{"schema": 99}')
    with pytest.raises(FieldmarkError, match="schema 99, and this fieldmark reads 2"):
        open_run(run.folder)


def test_a_log_holds_numbers(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for figure in ('"x"', "[1]", "{}"):
        run.log.write_text(f'{{"epoch": 1, "loss": {figure}}}\n')
        with pytest.raises(FieldmarkError, match=r"log\.jsonl"):
            run.read_log()


def test_photos_lie_at_no_place_with_a_zero_in_it(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    facts = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps({**facts, "photos": "a\0b"}))
    with pytest.raises(FieldmarkError, match="does not say where the photos are"):
        run.read_source()


@pytest.mark.parametrize("content", [b"[1]\n", b"garbage\n", b"\xff\n", None])
def test_what_is_gone_or_damaged_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    run = new_run(tmp_path / "run")
    reads: dict[Path, Callable[[], object]] = {
        run.log: run.read_log,
        run.specification: run.read_specification,
        run.recipe: run.read_recipe,
    }
    if content in (b"\xff\n", None):
        reads[run.classes] = run.read_classes
    for file, read in reads.items():
        if content is None:
            file.unlink(missing_ok=True)
            if file == run.log:  # no epoch is finished yet
                assert read() == []
                continue
        else:
            file.write_bytes(content)
        with pytest.raises(FieldmarkError) as raised:
            read()
        assert "\n" not in str(raised.value)


def test_what_is_no_number_in_the_log_is_none(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.log.write_bytes(b'{"epoch": 1, "loss": NaN, "val_loss": -Infinity, "accuracy": 0.5}\n')
    assert run.read_log() == [{"epoch": 1, "loss": None, "val_loss": None, "accuracy": 0.5}]
