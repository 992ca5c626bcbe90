"""An export answers as its run does, says so, and is nowhere where it does not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import backend, engines, files, images, manifest, packages, reproduction, train
from fieldmark import export as module
from fieldmark import network as networks
from fieldmark.backend import keras
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.export import balanced, compared, drop, export, odd_photos, photos_of, refuse_unequal
from fieldmark.images import ImageSpec
from fieldmark.manifest import MANIFEST, PARITY, Format, Manifest
from fieldmark.recipe import Network
from fieldmark.run import Run
from fieldmark.trained import Trained, softmax

DECISION = Decision(temperature=1.5, threshold=0.3, coverage=0.95, photos=9)

pytest.importorskip("tensorflow", reason="an export is written with TensorFlow")
pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A finished run, to write into."""
    shutil.copytree(trained.folder, tmp_path / "run")
    found = Run(tmp_path / "run")
    files.write_json(found.decision, DECISION.model_dump())
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
    assert described.weights_sha256 == files.sha256_of(run.best)
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
    model = engines.core().read_model(place / "model.xml")
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


def test_the_others_have_the_names_too(run: Run) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai_edge_litert is not installed")
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from ai_edge_litert.interpreter import Interpreter

    place = export(run.folder, "litert")
    (signature,) = Interpreter(str(place / "model.tflite")).get_signature_list().values()
    assert signature == {"inputs": ["pixels"], "outputs": ["probabilities"]}
    place = export(run.folder, "saved_model")
    graph = tensorflow.saved_model.load(str(place / "model")).signatures["serving_default"]
    assert list(graph.structured_input_signature[1]) == ["pixels"]
    assert list(graph.structured_outputs) == ["probabilities"]


# ---- equal in every format ----------------------------------------------------------------------


def flat_squares(side: int) -> Any:
    """Return squares of one colour each."""
    return np.stack([np.full((side, side, 3), grey, np.uint8) for grey in (0, 77, 128, 255)])


def normalised_network() -> Any:
    """Build a network in which groups of a photo of one colour have next to no variance."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    x = image = keras.Input((None, None, 3))  # of photos of any size, as some runs are
    for _ in range(2):
        x = layers.Conv2D(32, 1)(x)
        x = layers.GroupNormalization(8, epsilon=1e-5, gamma_initializer="he_normal")(x)
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    heavy = keras.initializers.RandomNormal(0, 1)
    return keras.Model(image, layers.Dense(3, kernel_initializer=heavy)(x))


def exact(network: Any, images: Any) -> Any:
    """Return the probabilities of a network computed in float64."""

    def in_float64(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    image = keras.Input(network.input_shape[1:], dtype="float64")
    copy = keras.models.clone_model(network, input_tensors=image, clone_function=in_float64)
    copy.set_weights(network.get_weights())
    return softmax(np.asarray(copy(images)))


def test_group_normalisation_is_near_the_exact_one(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    network, side = normalised_network(), 64
    squares = flat_squares(side)
    expected = exact(network, squares / 127.5 - 1)
    spec = ImageSpec(size=side, mode="crop", interpolation="bilinear", scaling="-1..1")
    trained = Trained(network, ("a", "b", "c"), spec)
    off = {}
    for steady in (False, True):
        module.WRITE["onnx"](tmp_path, module.complete(trained, steady=steady), {})
        engine, *_ = engines.OPEN["onnx"](tmp_path / "model.onnx", 1, 1)
        off[steady] = abs(np.array(engine(squares), np.float64) - expected).max()
    assert off[True] < 3e-5
    assert off[False] > 3 * off[True]  # else ONNX Runtime has mended it, and `Steady` may go


def test_steady_is_keras_s_own_elsewhere() -> None:
    network = normalised_network()
    photos = np.random.default_rng(0).normal(size=(3, 16, 24, 3)).astype(np.float32)[:, :, :16]
    steady = module.steadied(network, 16)
    assert sum(isinstance(layer, module.Steady) for layer in steady.layers) == 2
    np.testing.assert_allclose(steady(photos), network(photos), atol=1e-5)


def test_openvino_is_steadied_where_that_is_needed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = normalised_network()
    network.save(run.best)
    run.classes.write_text("a\nb\nc\n")
    monkeypatch.setattr("fieldmark.evaluate.own", lambda _, **__: [])  # the odd photos are enough
    plain = module.compared
    off = iter([2e-4, 0.0])

    def found(*what: Any) -> dict[str, Any]:
        report = plain(*what)
        report["odd"]["largest_difference"] += next(off)
        return report

    monkeypatch.setattr(module, "compared", found)
    place = export(run.folder, "openvino")
    assert "writing it steadier, and slower" in capsys.readouterr().out
    model = engines.core().read_model(place / "model.xml")
    assert "ReduceSum" in {node.get_type_name() for node in model.get_ops()}
    assert Manifest.read(place).parity.largest_difference < module.TOLERANCE


SIZES: dict[Network, int] = {"article": 64, "resnet50v2": 64, "resnetv2_50": 64, "bit_r50x1": 64}


@pytest.fixture(scope="module", params=SIZES)
def of_family(
    request: pytest.FixtureRequest, trained: Run, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run of a whole network with random weights, and the statistics that come of them."""
    place = tmp_path_factory.mktemp(request.param) / "run"
    shutil.copytree(trained.folder, place)
    run, side = Run(place), SIZES[request.param]
    keras.utils.set_random_seed(3)
    network = reproduction.logits_network(
        networks.build(request.param, image_size=side, classes=len(run.read_classes()))
    )
    noise = np.random.default_rng(0)
    kind = keras.layers.BatchNormalization
    normalising = [layer for layer in network.layers if isinstance(layer, kind)]
    for layer in normalising:
        gamma, beta, *_ = layer.weights
        gamma.assign(noise.normal(1, 0.1, gamma.shape))
        beta.assign(noise.normal(0, 0.1, beta.shape))
        layer.momentum = 0.0
    scaling = networks.SCALING.get(request.param, "-1..1")
    span = {"-1..1": (-1, 1), "0..1": (0, 1), "0..255": (0, 255)}[scaling]
    network(noise.uniform(*span, (8, side, side, 3)), training=True)
    for layer in normalising:
        layer.momentum = 0.99
    train.save_best(run, network)
    spec = run.read_specification().model_copy(update={"size": side, "scaling": scaling})
    run.specification.write_text(spec.model_dump_json())
    return run


@pytest.mark.slow
@pytest.mark.parametrize("form", manifest.FORMATS)
def test_the_article_s_network_and_the_family_are_equal(of_family: Run, form: Format) -> None:
    for package in (engines.PACKAGE[form][0], *module.MAKERS[form]):
        pytest.importorskip(package, reason=f"{package} is not installed")
    place = export(of_family.folder, form)
    report = json.loads((place / PARITY).read_text())
    assert report["held_out"]["agreement"]["value"] == 1
    worst = max(report[photos]["largest_difference"] for photos in ("held_out", "odd"))
    trained = Trained.load(of_family)
    own = module.in_groups(trained) and form in ("keras", "saved_model")  # of Keras' own kernels
    assert worst < (1e-4 if own else 5e-5)  # what is allowed, or half of it
    answers = module.of_run(trained)(photos_of(of_family, trained).squares)
    assert np.ptp(answers, axis=0).max() > 1e-3  # else any answer would do


# ---- int8 ---------------------------------------------------------------------------------------


def test_int8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed")
    monkeypatch.setattr(
        module, "mixed", lambda *_, **__: pytest.fail("nothing is to be looked for")
    )
    engines.core()
    monkeypatch.setattr(engines.openvino(), "Core", lambda: pytest.fail("another core"))
    place = export(run.folder, "openvino", int8=True, max_drop=0.9)
    assert place == run.exports / "openvino-int8"
    assert Manifest.read(place).precision == "int8"
    model = engines.core().read_model(place / "model.xml")
    assert "FakeQuantize" in {node.get_type_name() for node in model.get_ops()}
    assert model.has_rt_info(["fieldmark", "classes"])
    report = json.loads((place / PARITY).read_text())
    assert 1e-4 < report["held_out"]["largest_difference"] < 0.9  # it is not the float32 one


@pytest.mark.parametrize("nearer", module.RANGES)
def test_of_two_ways_to_cut_activations_the_nearer_stays(
    nearer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = dict.fromkeys(module.RANGES, (0.7, 0.3))
    answers |= {nearer: (0.85, 0.15), "exact": (0.9, 0.1)}
    monkeypatch.setattr(module, "quantised", lambda _model, _photos, ranges: ranges)
    monkeypatch.setattr(
        engines, "compiled", lambda name: lambda squares: [answers[name]] * len(squares)
    )
    assert module.nearest("exact", np.zeros((40, 8, 8, 3), np.uint8), 2) == (nearer, nearer)


def too_dear_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all in int8 lose most photos, whatever it loses."""
    first = [{"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}]
    found = module.accuracies
    monkeypatch.setattr(
        module, "accuracies", lambda *what: {"drop": first.pop()} if first else found(*what)
    )


@pytest.mark.slow
def test_int8_leaves_in_float32_what_costs_most(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed")
    too_dear_at_first(monkeypatch)
    looked = []
    plain = module.validated

    def worse(model: Any, pairs: Any) -> tuple[float, list[float]]:
        """Find the float32 network right and the first one in int8 wrong, all others right."""
        looked.append(len(pairs := [*pairs]))
        _, scores = plain(model, pairs)
        right = float(sum(count == len(pairs) for count in looked) != 2)
        return right, [right for _ in scores]

    monkeypatch.setattr(module, "validated", worse)
    place = export(run.folder, "openvino", int8=True, max_drop=0.5)
    assert "looking for what to leave in float32" in capsys.readouterr().out
    assert len(looked) > 10  # network after network
    kinds = ("Convolution", "MatMul")
    model = engines.core().read_model(place / "model.xml")
    layers = [node for node in model.get_ops() if node.get_type_name() in kinds]
    whole = [n for n in layers if n.input_value(1).get_node().get_type_name() == "Constant"]
    assert 0 < len(whole) < len(layers)  # some in float32, the others in int8


@pytest.mark.slow
def test_int8_s_search_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed")
    too_dear_at_first(monkeypatch)
    with pytest.raises(
        FieldmarkError,
        match=r"within 0.001 minutes: give the search more --minutes, allow int8 more with",
    ):
        export(run.folder, "openvino", int8=True, max_drop=0.5, minutes=0.001)
    assert not [*run.exports.iterdir()]


def test_photos_are_as_many_as_the_time_allows() -> None:
    def count(seconds: float) -> int:
        return module.affordable(seconds=seconds, layers=50, compiling=2, looking=0.1)

    assert count(50 * (2 + 40 * 0.1)) == 40
    assert (count(1), count(1e6)) == module.RANKED


def test_layers_that_cost_as_many_photos_are_told_apart() -> None:
    pairs = [(np.array([[0.2, 0.8]]), 1), (np.array([[0.4, 0.6]]), 0)]
    accuracy, scores = module.validated(lambda square: square[None], pairs)
    assert accuracy == pytest.approx(0.5, abs=2 * module.TIE)
    assert scores[0] > 1 > scores[1] > 0


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
    facts = run.read_environment()
    (tmp_path / "list.csv").write_text("path,label\n")
    shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
    files.write_json(run.environment, {**facts, "photos": str(tmp_path / "list.csv")})
    with pytest.raises(FieldmarkError, match="among the photos"):
        export(run.folder, "keras", out=tmp_path / "Cockatoo" / "out")


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
        ("openvino", {"int8": True, "minutes": 0}, "0 minutes are no time"),
        ("openvino", {"int8": True, "minutes": float("nan")}, "are no time"),
    ],
)
def test_what_cannot_be_had(run: Run, form: Any, options: Any, sentence: str) -> None:
    with pytest.raises(FieldmarkError, match=sentence):
        export(run.folder, form, **options)
    assert not run.exports.exists()


def test_without_a_package_or_tensorflow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "nncf" else name)
    with pytest.raises(FieldmarkError, match=r"nncf is not installed.*fieldmark\[openvino\]"):
        export(run.folder, "openvino", int8=True)
    monkeypatch.setattr(backend, "name", "jax")
    with pytest.raises(FieldmarkError, match="set KERAS_BACKEND=tensorflow"):
        export(run.folder, "openvino")


def test_without_photos_and_without_weights(run: Run, tmp_path: Path) -> None:
    facts = run.read_environment()
    files.write_json(run.environment, {**facts, "photos": str(tmp_path / "gone")})
    with pytest.raises(FieldmarkError, match=r"are not where they were, .*: bring them back\.$"):
        export(run.folder, "openvino")
    run.best.unlink()
    with pytest.raises(FieldmarkError, match="has no trained weights"):
        export(run.folder, "openvino")
    with pytest.raises(FieldmarkError, match="is not a run folder"):
        export(tmp_path, "openvino")
    assert not run.exports.exists()
