"""`Classifier.load` opens a run and an export of it alike, and an export without Keras."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import engines, files
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.export import export
from fieldmark.manifest import MANIFEST, Format
from fieldmark.predict import Classifier
from fieldmark.run import Run

pytest.importorskip("tensorflow", reason="an export is written with TensorFlow")

LIGHT: tuple[Format, ...] = ("openvino", "onnx", "litert")
NEEDED = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "tf2onnx")}


@pytest.fixture(scope="module")
def run(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(trained.folder, folder)
    found = Run(folder)
    decision = Decision(temperature=2.0, threshold=0.3, coverage=0.9, photos=9)
    files.write_json(found.decision, decision.model_dump())
    return found


@pytest.fixture(scope="module", params=LIGHT)
def exported(request: pytest.FixtureRequest, run: Run) -> Path:
    form: Format = request.param
    for package in NEEDED.get(form, (engines.PACKAGE[form][0],)):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return export(run.folder, form)


@pytest.fixture(scope="module")
def contents(birds: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(birds.glob("*/*.jpg"))[::5]]


def test_an_export_answers_as_its_run(run: Run, exported: Path, contents: list[bytes]) -> None:
    before, after = Classifier.load(run.folder), Classifier.load(str(exported))
    assert before.backend == "keras"
    assert after.backend == exported.name
    assert after.place == exported
    assert after.classes == before.classes
    assert after.specification == before.specification
    assert after.decision == before.decision
    expected, found = before.predict(contents), after.predict(contents)
    for one, other in zip(expected, found, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    assert len({answer.probabilities.tobytes() for answer in found}) > 1
    squares = np.stack([after.square(content) for content in contents])
    np.testing.assert_allclose(after.engine(squares), before.engine(squares), atol=1e-4)


CODE = """
import sys
from pathlib import Path
from fieldmark.predict import Classifier
found = Classifier.load(sys.argv[1], threads=1).predict([Path(sys.argv[2]).read_bytes()])
print(found[0].probabilities.sum())
print(*{name.partition(".")[0] for name, module in sys.modules.items() if module})
"""


def test_an_export_needs_neither_keras_nor_tensorflow(exported: Path, birds: Path) -> None:
    photo = next(birds.glob("*/*.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, exported, photo], capture_output=True, text=True, check=True
    )
    total, modules = done.stdout.splitlines()
    assert float(total) == pytest.approx(1, abs=1e-5)
    loaded = set(modules.split())
    assert {"fieldmark", engines.PACKAGE[exported.name][0]} <= loaded  # type: ignore[index]
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "sklearn", "scipy", "nncf"}
    assert loaded.isdisjoint({*heavy, "openvino_telemetry"})


def test_an_exchanged_model_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(exported, place)
    model = next(path for path in place.iterdir() if path.stem == "model")
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(FieldmarkError, match=f"{model.name} is not the file that was exported"):
        Classifier.load(place)


def test_a_model_that_is_exchanged_while_it_is_read_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(exported, place)
    model = next(path for path in place.iterdir() if path.stem == "model")

    def exchange() -> None:
        shutil.copy(model, tmp_path / "new")
        (tmp_path / "new").replace(model)

    classifier = Classifier.load(place)
    exchange()  # what is hashed now may not be what answers
    with pytest.raises(FieldmarkError, match="copy was exchanged while it was read"):
        classifier.identity()
    assert len(Classifier.load(place).identity()) == 16
    plain = engines.open_engine

    def slowly(*words: Any, **values: Any) -> Any:
        exchange()
        return plain(*words, **values)

    monkeypatch.setattr(engines, "open_engine", slowly)
    with pytest.raises(FieldmarkError, match="copy was exchanged while it was read"):
        Classifier.load(place)


def test_a_manifest_of_other_classes_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(exported, place)
    content = json.loads((place / MANIFEST).read_text())
    content["classes"].append("Dodo")
    (place / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FieldmarkError, match="the output's shape is not that of the classes"):
        Classifier.load(place)
    content["output"]["shape"][1] += 1
    (place / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FieldmarkError, match="answers 4, and the manifest says"):
        Classifier.load(place)


def test_what_is_neither(run: Run, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", run.best):
        with pytest.raises(FieldmarkError, match="is neither a run nor an export of one"):
            Classifier.load(place)
    with pytest.raises(FieldmarkError, match="is no export, and Keras takes its threads from"):
        Classifier.load(run.folder, threads=2)
