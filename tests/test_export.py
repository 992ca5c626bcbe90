"""An export answers as its run does, says so, and is nowhere where it does not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import backend, engines, images, manifest
from fieldmark import export as module
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.export import balanced, compared, drop, export, odd_photos, photos_of, refuse_unequal
from fieldmark.images import ImageSpec
from fieldmark.manifest import MANIFEST, PARITY, Manifest
from fieldmark.run import Run
from fieldmark.trained import Trained

DECISION = Decision(temperature=1.5, threshold=0.3, coverage=0.95, photos=9)

pytest.importorskip("tensorflow", reason="an export is written with TensorFlow")
pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A finished run, to write into."""
    shutil.copytree(trained.folder, tmp_path / "run")
    found = Run(tmp_path / "run")
    found.write_json(found.decision, DECISION.model_dump())
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- what is written ----------------------------------------------------------------------------


def test_it_is_described_and_proved(run: Run, birds: Path) -> None:
    before = everything(birds)
    place = export(run.folder, "openvino", licence="CC0-1.0")
    assert place == run.exports / "openvino"
    assert sorted(path.name for path in place.iterdir()) == sorted(
        [MANIFEST, PARITY, "model.xml", "model.bin"]
    )
    described = Manifest.read(place)
    described.verify(place)
    assert described.classes == run.read_classes()
    assert described.specification == run.read_specification()
    assert described.decision == DECISION
    assert described.licence == "CC0-1.0"
    assert described.weights_sha256 == manifest.sha256_of(run.best)
    assert set(described.files) == {"model.xml", "model.bin"}

    report = json.loads((place / PARITY).read_text())
    held = [record for record in run.read_split() if record.split == "validation"]
    of, odd = report["held_out"], report["odd"]
    assert of["n"] == len(held) == described.parity.photos
    assert 0 < of["largest_difference"] < module.TOLERANCE
    assert 0 < odd["largest_difference"] < module.TOLERANCE
    assert of["agreement"]["value"] == odd["agreement"]["value"] == 1
    assert of["accuracy"]["run"] == of["accuracy"]["export"]
    assert of["drop"]["value"] == 0
    assert {*odd["photos"]} == {*odd_photos()}
    assert report["bytes"] == sum(c.bytes for c in described.files.values())
    assert report["latency"]["export_p50_ms"] > 0
    assert everything(birds) == before

    # The model holds the facts itself, and takes any number of photos.
    model = engines.openvino().Core().read_model(place / "model.xml")
    said = {
        name: model.get_rt_info(["fieldmark", name]).astype(str)
        for name in ("classes", "specification", "decision", "licence", "weights_sha256")
    }
    assert tuple(json.loads(said["classes"])) == run.read_classes()
    assert ImageSpec.from_json(said["specification"]) == run.read_specification()
    assert Decision.from_json(said["decision"]) == DECISION
    assert said["licence"] == "CC0-1.0"
    assert model.input(0).names == {"pixels"}
    assert model.output(0).names == {"probabilities"}
    assert model.input(0).partial_shape[0].is_dynamic


def test_the_accuracy_is_that_of_the_run(run: Run) -> None:
    trained = Trained.load(run)
    held = photos_of(run, trained)
    records = {record.sha256: record for record in run.read_split()}
    right = [
        trained.of(trained.square(run.photo(record.path))[None])[0].argmax()
        == trained.classes.index(record.label)
        for record in records.values()
        if record.split == "validation"
    ]
    found = compared(module.of_run(trained), trained, held)
    assert found["held_out"]["accuracy"]["run"]["value"] == pytest.approx(np.mean(right))
    assert found["held_out"]["largest_difference"] == 0


def test_onnx_s_model_holds_the_facts_and_names(run: Run) -> None:
    for package in ("onnxruntime", "onnx", "tf2onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    place = export(run.folder, "onnx")
    session = onnxruntime.InferenceSession(str(place / "model.onnx"))
    said = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(said["classes"])) == run.read_classes()
    assert Decision.from_json(said["decision"]) == DECISION
    source, target = session.get_inputs()[0], session.get_outputs()[0]
    assert (source.name, source.type) == ("pixels", "tensor(uint8)")
    assert source.shape == ["photos", 32, 32, 3]
    assert (target.name, target.shape) == ("probabilities", ["photos", 4])


def test_int8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed")
    calls = []
    plain = module.quantised

    def noted(*what: Any, **options: Any) -> Any:
        calls.append({*options})
        return plain(*what, **options)

    monkeypatch.setattr(module, "quantised", noted)
    place = export(run.folder, "openvino", int8=True, max_drop=0.5)
    assert place == run.exports / "openvino-int8"
    assert Manifest.read(place).precision == "int8"
    model = engines.openvino().Core().read_model(place / "model.xml")
    assert "FakeQuantize" in {node.get_type_name() for node in model.get_ops()}
    assert model.has_rt_info(["fieldmark", "classes"])
    report = json.loads((place / PARITY).read_text())
    assert 1e-4 < report["held_out"]["largest_difference"] < 0.5  # it is not the float32 one
    assert calls == [set()]

    # Where all in int8 costs too much, the layers are chosen by the photos held out.
    worse = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    first = [worse]
    found = module.accuracies
    monkeypatch.setattr(
        module,
        "accuracies",
        lambda *what: {"drop": first.pop()} if first else found(*what),
    )
    export(run.folder, "openvino", int8=True, max_drop=0.5)
    assert calls[1:] == [set(), {"held", "max_drop"}]


# ---- what is not equal is not there -------------------------------------------------------------


def test_one_that_answers_otherwise_is_removed_and_an_earlier_one_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run.folder, "keras")
    before = everything(run.folder)
    scale, offset = module.SCALES[run.read_specification().scaling]
    monkeypatch.setitem(module.SCALES, run.read_specification().scaling, (scale * 1.1, offset))
    with pytest.raises(
        FieldmarkError, match="answers otherwise than the run: probabilities differ"
    ):
        export(run.folder, "keras")
    assert everything(run.folder) == before
    out = run.folder.parent / "elsewhere"
    with pytest.raises(FieldmarkError, match="answers otherwise"):
        export(run.folder, "keras", out=out)
    assert not out.exists()
    assert [path.name for path in run.folder.parent.iterdir()] == ["run"]


def report_of(**changes: Any) -> dict[str, Any]:
    held = {"split": "validation", "n": 100, "largest_difference": 1e-6}
    lost = {"value": 0.02, "low": -0.01, "high": 0.05, "n": 100}
    odd = {"largest_difference": 1e-6, "photos": {"grey": 0.0, "CMYK": 1e-6}}
    return {"format": "onnx", "held_out": {**held, "drop": lost}, "odd": {**odd, **changes}}


def test_int8_may_cost_so_much_and_no_more() -> None:
    refuse_unequal(report_of(), Path("out"), 0.02)
    with pytest.raises(
        FieldmarkError, match=r"costs 2.0% \(-1.0% to 5.0%, n = 100\) of the accuracy, 1.0% is"
    ):
        refuse_unequal(report_of(), Path("out"), 0.01)


@pytest.mark.parametrize("worst", [2e-4, float("nan")])
def test_an_odd_photo_alone_is_enough(worst: float) -> None:
    worst = module.largest(np.array([worst]))
    changed = report_of(largest_difference=worst, photos={"grey": 0.0, "CMYK": worst})
    with pytest.raises(FieldmarkError, match="on the odd photo 'CMYK'"):
        refuse_unequal(changed, Path("out"), None)
    refuse_unequal(report_of(), Path("out"), None)


def test_a_drop_and_its_interval() -> None:
    before = np.array([True] * 80 + [False] * 20)
    after = before.copy()
    after[:5] = False  # lost
    after[-2:] = True  # won
    found = drop(before, after)
    # By hand: (5.5 - 2.5) / 102, and 1.96 sqrt(8 - 9 / 102) / 102.
    assert found["value"] == pytest.approx(0.03)
    assert found["low"] == pytest.approx(0.02941 - 0.05405, abs=1e-4)
    assert found["high"] == pytest.approx(0.02941 + 0.05405, abs=1e-4)
    assert drop(before[:0], after[:0])["value"] is None


# ---- the folder ---------------------------------------------------------------------------------


def test_an_own_export_is_replaced_and_nothing_else(run: Run, birds: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    assert export(run.folder, "keras", out=place) == place
    (place / manifest.BENCH).write_text("{}")
    export(run.folder, "keras", out=place)
    assert not (place / manifest.BENCH).exists()  # it was the other model's
    (place / "letter.txt").write_text("dear")
    before = everything(place)
    with pytest.raises(FieldmarkError, match="is not overwritten"):
        export(run.folder, "keras", out=place)
    (place / "letter.txt").unlink()
    with pytest.raises(FieldmarkError, match="is not overwritten"):
        export(run.folder, "openvino", out=place)
    assert everything(place) == {k: v for k, v in before.items() if k != "letter.txt"}
    with pytest.raises(FieldmarkError, match="among the photos"):
        export(run.folder, "keras", out=birds / "out")


# ---- the photos ---------------------------------------------------------------------------------


def test_the_odd_photos_are_odd_and_can_be_read() -> None:
    photos = odd_photos()
    facts = {name: images.inspect(content) for name, content in photos.items()}
    assert facts["grey"].mode == "L"
    assert facts["CMYK"].mode == "CMYK"
    assert facts["16 bits"].bits == 16
    assert facts["turned by EXIF"].orientation == 6
    assert facts["palette"].mode == "P"
    assert (facts["one pixel"].width, facts["one pixel"].height) == (1, 1)
    assert facts["4000 by 3000"].width == 4000
    spec = ImageSpec(size=32, mode="crop", interpolation="bilinear", scaling="0..1")
    squares = {images.read(content, spec).tobytes() for content in photos.values()}
    assert len(squares) == len(photos)


def test_calibration_takes_of_each_class_alike(run: Run) -> None:
    records = [record for record in run.read_split() if record.split == "training"]
    few = [r for r in records if r.label != records[0].label] + records[:1]
    found = Counter(record.label for record in balanced(few, 13))
    assert found[records[0].label] == 1  # all that there is
    assert sorted(found.values()) == [1, 4, 4, 4]
    assert {*balanced(records, 10**6)} == {*records}


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options", "sentence"),
    [
        ("pickle", {}, "There is no format 'pickle': name one of openvino"),
        ("onnx", {"int8": True}, "no int8 for onnx"),
        ("openvino", {"int8": True, "max_drop": -0.1}, "-0.1 is no share"),
        ("openvino", {"int8": True, "max_drop": float("nan")}, "is no share"),
    ],
)
def test_what_cannot_be_had(run: Run, form: Any, options: Any, sentence: str) -> None:
    with pytest.raises(FieldmarkError, match=sentence):
        export(run.folder, form, **options)
    assert not run.exports.exists()


def test_without_a_package_or_tensorflow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "nncf" else name)
    with pytest.raises(FieldmarkError, match=r"nncf is not installed.*fieldmark\[openvino\]"):
        export(run.folder, "openvino", int8=True)
    monkeypatch.setattr(backend, "name", "jax")
    with pytest.raises(FieldmarkError, match="set KERAS_BACKEND=tensorflow"):
        export(run.folder, "openvino")


def test_without_photos_and_without_weights(run: Run, tmp_path: Path) -> None:
    facts = run.read_environment()
    run.write_json(run.environment, {**facts, "photos": str(tmp_path / "gone")})
    with pytest.raises(FieldmarkError, match="are not where they were"):
        export(run.folder, "openvino")
    run.best.unlink()
    with pytest.raises(FieldmarkError, match="has no trained weights"):
        export(run.folder, "openvino")
    with pytest.raises(FieldmarkError, match="is not a run folder"):
        export(tmp_path, "openvino")
    assert not run.exports.exists()
