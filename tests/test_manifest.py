"""A manifest comes back as it was, and one that is damaged, or a file that is, is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fieldmark import manifest
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec
from fieldmark.manifest import MANIFEST, Manifest, Proof, Tensor, contents

SIDE = 8


def described(folder: Path, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": "onnx",
        "precision": "float32",
        "classes": ("ant", "bee"),
        "specification": ImageSpec(
            size=SIDE, mode="crop", interpolation="bilinear", scaling="-1..1"
        ),
        "decision": Decision(temperature=1.5, threshold=0.4, coverage=0.95, photos=20),
        "input": Tensor(name="pixels", type="uint8", shape=(None, SIDE, SIDE, 3)),
        "output": Tensor(name="probabilities", type="float32", shape=(None, 2)),
        "licence": "CC-BY-4.0",
        "weights_sha256": "0" * 64,
        "made_with": {"keras": "3.15.1"},
        "files": contents(folder),
        "parity": Proof(photos=20, largest_difference=1e-7, agreement=1.0),
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    (tmp_path / "model" / "variables" / "variables.index").write_bytes(b"an index")
    written = described(tmp_path)
    (tmp_path / MANIFEST).write_text(written.model_dump_json())
    return tmp_path


def test_it_comes_back_as_it_was(folder: Path) -> None:
    found = Manifest.read(folder)
    assert found == described(
        folder, files={k: v for k, v in contents(folder).items() if k != MANIFEST}
    )
    assert set(found.files) == {"model.onnx", "model/variables/variables.index"}
    found.verify(folder)


def test_classes_of_any_name_come_back(folder: Path) -> None:
    names = ("ant", " ant", 'a "b", c', "夜鹭", "\x0c\u2028", "null", "../ant")
    out = Tensor(name="probabilities", type="float32", shape=(None, len(names)))
    written = described(folder, classes=names, output=out)
    assert Manifest.model_validate_json(written.model_dump_json()) == written


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"a grape"),  # as long
        lambda path: path.write_bytes(b"a graph and more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["exchanged", "longer", "empty", "gone"],
)
@pytest.mark.parametrize("name", ["model.onnx", "model/variables/variables.index"])
def test_a_file_that_is_not_the_one_is_named(folder: Path, name: str, spoil: Any) -> None:
    spoil(folder / name)
    with pytest.raises(FieldmarkError, match=f"{name} (is not the file|cannot be read)"):
        Manifest.read(folder).verify(folder)


def test_a_file_far_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(FieldmarkError, match="is not the file"):
        Manifest.read(folder).verify(folder)


Content_ = dict[str, Any]


def shorter(content: Content_) -> None:
    content["classes"].pop()


def twice(content: Content_) -> None:
    content["classes"][1] = content["classes"][0]


def another_side(content: Content_) -> None:
    content["specification"]["size"] = 2 * SIDE


def unknown(content: Content_) -> None:
    content["format"] = "pickle"


def newer(content: Content_) -> None:
    content["schema_version"] = 2


def further(content: Content_) -> None:
    content["command"] = "rm"


def no_hash(content: Content_) -> None:
    content["files"]["model.onnx"]["sha256"] = "f00"


def no_number(content: Content_) -> None:
    content["decision"]["temperature"] = "1.5"


@pytest.mark.parametrize(
    "spoil",
    [shorter, twice, another_side, unknown, newer, further, no_hash, no_number],
    ids=lambda spoil: spoil.__name__,
)
def test_a_manifest_that_cannot_be_is_refused(folder: Path, spoil: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    spoil(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FieldmarkError, match=r"is damaged, or of another version .*export the run"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/../../b",
        "",
        ".",
        "a//b",
        "./a",
        "C:\\model",
        "a\\..\\b",
        "a\0",
    ],
)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][name] = content["files"].pop("model.onnx")
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FieldmarkError, match="is damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_manifest_is_refused(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(FieldmarkError, match="is damaged"):
        Manifest.read(folder)


def test_one_too_large_and_one_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LONGEST", 100)
    with pytest.raises(FieldmarkError, match="too large for a manifest"):
        Manifest.read(folder)
    with pytest.raises(FieldmarkError, match="name the folder that `fieldmark export` wrote"):
        Manifest.read(folder / "model")
