"""Each library answers as the others do; what it cannot open is one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import engines, manifest, packages
from fieldmark.backend import keras
from fieldmark.decision import SMALLEST
from fieldmark.engines import ENTRY, open_engine
from fieldmark.errors import FieldmarkError
from fieldmark.export import WRITE
from fieldmark.images import ImageSpec
from fieldmark.manifest import Format, Manifest, Proof, Tensor

SIDE, CLASSES = 8, 3


@pytest.fixture(scope="module")
def network() -> Any:
    """From pixels to probabilities, with weights that are no accident."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.RandomNormal(0, 3))(
        x
    )
    return keras.Model(pixels, keras.layers.Softmax(name="probabilities")(logits))


@pytest.fixture(scope="module")
def squares() -> Any:
    return np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)


def described(folder: Path, form: Format, *, side: int = SIDE, classes: int = CLASSES) -> Manifest:
    return Manifest(
        format=form,
        precision="float32",
        classes=tuple("abcdefgh"[:classes]),
        specification=ImageSpec(size=side, mode="crop", interpolation="bilinear", scaling="-1..1"),
        decision=None,
        input=Tensor(name="pixels", type="uint8", shape=(None, side, side, 3)),
        output=Tensor(name="probabilities", type="float32", shape=(None, classes)),
        licence="unknown",
        weights_sha256="0" * 64,
        made_with={},
        files=manifest.contents(folder),
        parity=Proof(photos=0, largest_difference=0, agreement=None),
    )


Written = tuple[Format, Path]


@pytest.fixture(scope="module", params=manifest.FORMATS)
def written(
    request: pytest.FixtureRequest, network: Any, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """A format, and the network in it."""
    form: Format = request.param
    if form != "keras":
        pytest.importorskip("tensorflow")
    for package in (engines.PACKAGE[form][0], *(("tf2onnx",) if form == "onnx" else ())):
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp(form)
    WRITE[form](folder, network, {"classes": '["a", "b", "c"]'})
    return form, folder


def test_it_answers_as_keras_does_however_many_are_asked_at_once(
    written: Written, network: Any, squares: Any
) -> None:
    form, folder = written
    engine = open_engine(folder, described(folder, form))
    assert form != "onnx" or os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    expected = network.predict_on_batch(squares)
    found = engine(squares)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.1  # else any answer would do
    for count in (1, 3, 1, 7):
        np.testing.assert_allclose(engine(squares[:count]), expected[:count], atol=1e-6)
    np.testing.assert_allclose(engine(squares[::2]), expected[::2], atol=1e-6)  # not contiguous
    assert engine(squares[:0]).shape == (0, CLASSES)


def test_an_answer_is_not_overwritten_by_the_next(written: Written, squares: Any) -> None:
    form, folder = written
    engine = open_engine(folder, described(folder, form))
    first = engine(squares[:1])
    kept = first.copy()
    engine(squares[1:2])
    assert (first == kept).all()


def test_it_may_be_asked_from_many_threads(written: Written, squares: Any) -> None:
    form, folder = written
    engine = open_engine(folder, described(folder, form))
    counts = [1 + turn % len(squares) for turn in range(40)]
    expected = engine(squares)
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda count: engine(squares[:count]), counts)]
    for count, found in zip(counts, answers, strict=True):
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_many_may_ask_at_once_where_they_share_the_threads(written: Written, squares: Any) -> None:
    form, folder = written
    engine = open_engine(folder, described(folder, form), streams=2)
    expected = open_engine(folder, described(folder, form))(squares)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(engine, [squares] * 8):
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("precision", "seconds"), [("int8", 0.01), ("int8", 0), ("float32", 0.01)])
def test_where_many_ask_a_slow_network_in_int8_computes_batches_side_by_side(
    written: Written, squares: Any, monkeypatch: pytest.MonkeyPatch, precision: str, seconds: float
) -> None:
    form, folder = written
    monkeypatch.setattr(engines, "seconds_of", lambda *_: seconds)
    monkeypatch.setattr(engines, "processors", lambda: 9)
    it = described(folder, form).model_copy(update={"precision": precision})
    engine, streams = engines.open_for_many(folder, it)
    side_by_side = (form, precision) == ("openvino", "int8") and seconds
    assert streams == (engines.MOST_STREAMS if side_by_side else 1)
    np.testing.assert_allclose(engine(squares), open_engine(folder, it)(squares), atol=1e-6)


def test_a_network_is_timed(squares: Any) -> None:
    def engine(squares: Any) -> Any:
        time.sleep(0.01)
        return squares

    assert 0.01 <= engines.seconds_of(engine, 8) < 1


def test_what_was_opened_stays_when_its_files_are_written_over(
    written: Written, squares: Any, tmp_path: Path
) -> None:
    """By plain `cp`, which writes into the file that is there."""
    form, folder = written
    place = Path(shutil.copytree(folder, tmp_path / "model"))
    engine = open_engine(place, described(place, form))
    before = engine(squares)
    for file in place.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    assert (engine(squares) == before).all()
    assert (engine(squares[:3]) == open_engine(folder, described(folder, form))(squares[:3])).all()


def test_a_signal_is_heard_after_networks_have_gone(written: Written) -> None:
    """OpenVINO gives a thread a stack for signals, and may take it away with the network."""
    form, place = written
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fieldmark.engines import open_engine\n"
        "from fieldmark.manifest import Manifest\n"
        "described = Manifest.model_validate_json(sys.argv[2])\n"
        "networks = [open_engine(Path(sys.argv[1]), described) for _ in range(3)]\n"
        "while networks:\n"
        "    networks.pop(0)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # or it may be ignored\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    asked = [sys.executable, "-c", program, str(place), described(place, form).model_dump_json()]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_threads_may_be_named_where_the_library_has_its_own(written: Written, squares: Any) -> None:
    form, folder = written
    described_ = described(folder, form)
    if form in ("saved_model", "keras"):
        with pytest.raises(FieldmarkError, match="those of the whole process"):
            open_engine(folder, described_, threads=1)
    else:
        found = open_engine(folder, described_, threads=1)(squares)
        np.testing.assert_allclose(found, open_engine(folder, described_)(squares), atol=1e-6)
    with pytest.raises(FieldmarkError, match="0 threads: name at least one"):
        open_engine(folder, described_, threads=0)


@pytest.mark.parametrize("changes", [{"side": 16}, {"classes": 4}], ids=["size", "classes"])
def test_another_size_and_other_classes_than_the_manifest_s(
    written: Written, changes: dict[str, int]
) -> None:
    form, folder = written
    with pytest.raises(FieldmarkError, match="reads 8 x 8 x 3 and answers 3, and the manifest"):
        open_engine(folder, described(folder, form, **changes))


def test_what_the_library_cannot_read(written: Written, tmp_path: Path) -> None:
    form, _ = written
    place = tmp_path / ENTRY[form]
    if form == "saved_model":
        place.mkdir()
        place = place / "saved_model.pb"
    place.write_bytes(b"no model")
    with pytest.raises(FieldmarkError, match=r"cannot be opened by .*export the run anew"):
        open_engine(tmp_path, described(tmp_path, form))


def test_no_probability_is_nothing(squares: Any) -> None:
    engine = engines.finished(lambda _: np.array([[1.0, 0.0]], np.float32), 2)
    assert engine(squares[:1]).tolist() == [[1.0, SMALLEST]]


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(
        FieldmarkError, match=r"not installed: run  pip install 'fieldmark\[onnx\]'"
    ):
        engines.require("onnx")
