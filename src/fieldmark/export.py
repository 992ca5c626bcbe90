"""A run -> a network for another library, proved to answer as the run does.

In: a run, and the photos that it was made from. Out: a folder with the model, `manifest.json` and
`parity.json`; pixels from 0 to 255 go into the graph, probabilities come out, and any number of
photos may go in at once. `Classifier.load` opens the folder, without Keras or TensorFlow where the
format is OpenVINO's, ONNX or LiteRT's.

    fieldmark export RUN --format openvino|onnx|litert|saved_model|keras [--int8]

An export that answers otherwise than the run is removed, and an earlier one stays. The photos are
only read.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldmark import (
    backend,
    engines,
    evaluate,
    files,
    images,
    manifest,
    metrics,
    packages,
)
from fieldmark.backend import keras
from fieldmark.console import meter, say
from fieldmark.engines import ENTRY, Engine
from fieldmark.errors import FieldmarkError
from fieldmark.manifest import MANIFEST, PARITY, Format, Manifest, Precision, Proof, Tensor
from fieldmark.run import Run, open_run
from fieldmark.split import Record
from fieldmark.trained import BATCH, Trained, softmax

TOLERANCE = 1e-4  # of a probability in float32; the formats come to 1e-6
MAX_DROP = 0.01  # of the accuracy, what int8 may cost at most
HELD_OUT = 500  # photos that both networks are asked about, at most
CALIBRATION = 300  # training photos, of all classes alike; NNCF's own choice
MINUTES = 10.0  # that the search for what to leave in float32 may take
RANGES = ("MEAN_MINMAX", "MINMAX")  # NNCF's names: a photo's least and largest, mean or of all
RANKED = (10, 100)  # photos by which it ranks the layers, at least and at most
TIE = 1e-6  # of the photos that are right: what tells two layers apart that cost as many
TIMED = 30  # photos, one at a time
UNKNOWN = "unknown"  # the licence: what holds is the user's to say

ops = keras.ops

INPUT, OUTPUT = "pixels", "probabilities"
KERAS_NAMES: dict[Format, str] = {"saved_model": "tf_saved_model"}  # where it has another
# Whose means add number to number in float32, so that those of a flat photo are 1e-5 off. Those of
# OpenVINO are as well, and 1.5 times as fast as `Steady`: it gets that only where it must.
STEADIED: tuple[Format, ...] = ("onnx", "litert")
SCALES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}
MAKERS: dict[Format, tuple[str, ...]] = {  # what a format is written with, besides Keras
    "openvino": ("openvino",),
    "onnx": ("onnxruntime", "onnx", "tf2onnx"),
    "litert": ("ai_edge_litert",),
    "saved_model": (),
    "keras": (),
}
RECORDED = (
    *("fieldmark", "keras", "tensorflow", "tensorflow-cpu", "openvino", "nncf"),
    *("onnx", "onnxruntime", "tf2onnx", "ai-edge-litert"),
)

T = TypeVar("T")
Squares = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """The photos by which an export is judged, and what the run itself says of them."""

    split: str
    squares: Squares  # (n, size, size, 3), held out
    labels: NDArray[np.int64]  # (n,)
    odd: dict[str, Squares]  # (size, size, 3) each, by what is odd
    reference: Floats  # (n, c)
    odd_reference: tuple[Floats, Floats]  # of the odd ones together, and of each alone


def export(
    folder: str | os.PathLike[str],
    form: Format,
    *,
    int8: bool = False,
    max_drop: float = MAX_DROP,
    minutes: float = MINUTES,
    licence: str = UNKNOWN,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Export a run and return the folder of it, which takes the place of an earlier one.

    `max_drop` is the share of held-out photos that int8 may get wrong more than the run, and
    `minutes` what a search for layers to leave in float32 may take where all in int8 costs more.
    Raises a FieldmarkError where something is missing, where the export does not answer as the run
    does, and where the search finds nothing in its time; nothing is left of it then.
    """
    refuse_asked(form, int8=int8, max_drop=max_drop, minutes=minutes, licence=licence)
    run = open_run(folder)
    precision: Precision = "int8" if int8 else "float32"
    place = Path(out) if out is not None else run.exports / (f"{form}-int8" if int8 else form)
    refuse_place(place, run, form, precision)
    trained = Trained.load(run)
    held = photos_of(run, trained)
    with files.replaced_folder(place, lambda path: ours(path, form, precision)) as fresh:
        say(f"Writing {form}, {precision}")
        facts = facts_of(run, trained, licence)
        if int8:
            small = int8_model(run, trained, held=held, max_drop=max_drop, minutes=minutes)
            save_openvino(fresh, small, facts)
        else:
            WRITE[form](fresh, complete(trained, steady=form in STEADIED), facts)
        describe = partial(described, run=run, trained=trained, facts=facts)
        draft = describe(fresh, form=form, precision=precision)
        report = reported(fresh, draft, trained, held)
        if form == "openvino" and not int8 and worst(report) > TOLERANCE and in_groups(trained):
            say(f"Probabilities differ by {worst(report):.2g}: writing it steadier, and slower")
            WRITE[form](fresh, complete(trained, steady=True), facts)
            draft = describe(fresh, form=form, precision=precision)
            report = reported(fresh, draft, trained, held)
        refuse_unequal(report, place, max_drop if int8 else None)
        final = draft.model_copy(update={"parity": proof(report)})
        (fresh / PARITY).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (fresh / MANIFEST).write_text(final.model_dump_json(indent=2) + "\n", encoding="utf-8")
    say(sentence(report))
    say(f"Export: {place}")
    return place


def facts_of(run: Run, trained: Trained, licence: str) -> dict[str, str]:
    """Return what goes into the model itself, where its format has a place for it."""
    decision = run.read_decision()
    return {
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "specification": trained.specification.model_dump_json(),
        "decision": decision.model_dump_json() if decision else "null",
        "licence": licence,
        "weights_sha256": files.sha256_of(run.best),
    }


def described(
    folder: Path,
    *,
    run: Run,
    trained: Trained,
    facts: dict[str, str],
    form: Format,
    precision: Precision,
) -> Manifest:
    """Return the manifest of the files in a folder, with nothing proved yet."""
    side = trained.specification.size
    return Manifest(
        format=form,
        precision=precision,
        classes=trained.classes,
        specification=trained.specification,
        decision=run.read_decision(),
        input=Tensor(name=INPUT, type="uint8", shape=(None, side, side, 3)),
        output=Tensor(name=OUTPUT, type="float32", shape=(None, len(trained.classes))),
        licence=facts["licence"],
        weights_sha256=facts["weights_sha256"],
        made_with={name: v for name in RECORDED if (v := packages.installed(name))},
        files=manifest.contents(folder),
        parity=Proof(photos=0, largest_difference=0, agreement=None),
    )


# ---- what is refused before anything is done ----------------------------------------------------


def refuse_asked(
    form: Format, *, int8: bool, max_drop: float, minutes: float, licence: str
) -> None:
    """Raise for what cannot be had, and for packages that are not installed."""
    if form not in manifest.FORMATS:
        raise FieldmarkError(
            f"There is no format {form!r}: name one of {', '.join(manifest.FORMATS)}."
        )
    if int8 and form != "openvino":
        raise FieldmarkError(
            f"There is no int8 for {form}: its accuracy and its gain are proved for openvino only, "
            "so name that, or leave int8 out."
        )
    if not 0 <= max_drop < 1:
        raise FieldmarkError(f"A drop of {max_drop:g} is no share: give 0 or more, below 1.")
    if not 0 < minutes < math.inf:
        raise FieldmarkError(f"{minutes:g} minutes are no time to search in: give more than 0.")
    if not licence.isprintable():
        raise FieldmarkError(f"The licence {licence!r} is no text: name one as SPDX does.")
    if form != "keras":
        why = f"The export for {form} is written with TensorFlow"
        packages.require("tensorflow", extra="tensorflow", why=why)
        if backend.name != "tensorflow":
            raise FieldmarkError(
                f"Keras computes with {backend.name}, and an export is written with TensorFlow: "
                "set KERAS_BACKEND=tensorflow, whatever the run was trained with."
            )
    for package in (*MAKERS[form], *(("nncf",) if int8 else ())):
        extra = engines.PACKAGE[form][1]
        packages.require(package, extra=extra, why=f"The export for {form} needs {package}")


def refuse_place(place: Path, run: Run, form: Format, precision: Precision) -> None:
    """Raise where the export would be among photos, or over something else."""
    files.refuse_among(place, run.photo_folders())
    files.refuse_replacing(place, partial(ours, form=form, precision=precision))


def ours(place: Path, form: Format, precision: Precision) -> bool:
    """Tell whether a folder holds an export of the same kind, so that it may be replaced."""
    if files.is_link(place) or not files.is_file(place / MANIFEST):
        return False
    try:
        found = Manifest.read(place)
    except FieldmarkError:
        return False
    names = {MANIFEST, PARITY, manifest.BENCH, *(Path(name).parts[0] for name in found.files)}
    same = (found.format, found.precision) == (form, precision)
    return same and all(each.name in names for each in place.iterdir())


# ---- the photos ---------------------------------------------------------------------------------


def photos_of(run: Run, trained: Trained) -> Held:
    """Return the photos to judge by: validation photos, test ones where there are none."""
    rows = evaluate.own(run, remedy="")
    split = next((name for name in evaluate.HELD_OUT if any(r.split == name for r in rows)), "")
    rows = [row for row in rows if row.split == split]
    chosen = np.random.default_rng(0).permutation(len(rows))[:HELD_OUT]
    rows = [rows[place] for place in sorted(chosen)]
    squares = trained.squares([run.photo(row.path) for row in rows])
    odd = {
        name: images.read(content, trained.specification) for name, content in odd_photos().items()
    }
    reference = answered(of_run(trained), squares)
    return Held(
        split=split,
        squares=squares,
        labels=evaluate.labels_of(run, rows),
        odd=odd,
        reference=reference,
        odd_reference=in_both_ways(of_run(trained), odd),
    )


def odd_photos() -> dict[str, bytes]:
    """Paint photos of the kinds that are read in other ways than most, each a file's content."""
    y, x = np.mgrid[0:60, 0:80]
    waves = np.stack([x * 3, y * 4, (x + y) * 16 % 256], axis=-1).astype(np.uint8)  # (60, 80, 3)
    colour = Image.fromarray(waves)
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation: to be turned by 90 degrees
    sheer = colour.copy()
    sheer.putalpha(Image.fromarray((x * 3).astype(np.uint8)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "grey": _file(colour.convert("L"), "JPEG"),
        "16 bits": _file(Image.fromarray((x * 800).astype(np.uint16)), "PNG"),
        "CMYK": _file(colour.convert("CMYK"), "JPEG"),
        "turned by EXIF": _file(colour, "JPEG", exif=turned),
        "palette": _file(colour.quantize(16), "GIF"),
        "half transparent": _file(sheer, "PNG"),
        "one pixel": _file(colour.crop((40, 30, 41, 31)), "PNG"),
        "a strip": _file(colour.resize((2000, 3)), "PNG"),
        "4000 by 3000": _file(colour.resize((4000, 3000)), "JPEG"),
        "black": _file(Image.new("RGB", (64, 64)), "PNG"),
        "white": _file(Image.new("RGB", (64, 64), "white"), "PNG"),
        "noise": _file(Image.fromarray(noise), "PNG"),
    }


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def balanced(records: Sequence[Record], count: int) -> list[Record]:
    """Choose so many records, of each class as many as of the others, as far as there are."""
    order = np.random.default_rng(0).permutation(len(records))
    classes: dict[str, list[Record]] = {}
    for place in order:
        classes.setdefault(records[place].label, []).append(records[place])
    turns = chain.from_iterable(zip_longest(*(classes[name] for name in sorted(classes))))
    return [record for record in turns if record is not None][:count]


# ---- the graph ----------------------------------------------------------------------------------


def complete(trained: Trained, *, steady: bool = False) -> Any:
    """Return the network between a layer that scales pixels and one that makes probabilities.

    With `steady` its group normalisation is a `Steady`.
    """
    side, scaling = trained.specification.size, SCALES[trained.specification.scaling]
    steady = steady and in_groups(trained)
    network = steadied(trained.network, side) if steady else trained.network
    pixels = keras.Input((side, side, 3), dtype="uint8", name=INPUT)
    scaled = keras.layers.Rescaling(*scaling, dtype="float32", name="scaling")(pixels)
    logits = network(scaled)
    answers = keras.layers.Softmax(dtype="float32", name=OUTPUT)(logits)
    return keras.Model(pixels, answers, name="fieldmark")


class Steady(keras.layers.GroupNormalization):  # type: ignore[misc]
    """Keras' group normalisation, in an order of adding up that is near the exact one everywhere.

    Keras takes the mean of a group at once, and x * a + (b - mean * a) of each number. ONNX Runtime
    adds the group up number by number in float32, which rounds each time to the same side where all
    numbers are alike, as in a photo of one colour; where a group's variance is small as well, the
    difference of two large numbers is what is left. Here the means are those of rows, and the mean
    is taken off first. `bit_r50x1` with random weights, 224 pixels, against float64: 3e-4 off
    in ONNX as Keras has it, 8e-6 so.
    """

    def call(self, inputs: Any) -> Any:
        """Normalise (n, h, w, c), of which h, w and c are known."""
        _, height, width, channels = inputs.shape
        across = channels // self.groups
        grouped = ops.reshape(inputs, (-1, height, width, self.groups, across))
        centred = grouped - mean_of_groups(grouped)
        scale = ops.rsqrt(mean_of_groups(ops.square(centred)) + self.epsilon)  # (n, 1, 1, g, 1)
        gamma, beta = (ops.reshape(each, (self.groups, across)) for each in (self.gamma, self.beta))
        return ops.reshape(centred * (scale * gamma) + beta, (-1, height, width, channels))


def mean_of_groups(grouped: Any) -> Any:
    """Return the mean of each group, (n, h, w, g, k) -> (n, 1, 1, g, 1): of rows, then of those.

    A row's is written as a sum, because OpenVINO would make one mean of two.
    """
    _, _, width, _, across = grouped.shape
    rows = ops.sum(grouped, axis=(2, 4), keepdims=True) * (1 / (width * across))
    return ops.mean(rows, axis=1, keepdims=True)


def in_groups(trained: Trained) -> bool:
    """Tell whether a network normalises groups of channels."""
    kind = keras.layers.GroupNormalization
    return any(isinstance(layer, kind) for layer in trained.network.layers)


def steadied(network: Any, side: int) -> Any:
    """Return a network whose group normalisation is a `Steady`; all else, and weights, the same."""

    def steady(layer: Any) -> Any:
        group = isinstance(layer, keras.layers.GroupNormalization)
        usual = group and layer.axis == -1 and layer.scale and layer.center
        return (Steady if usual else type(layer)).from_config(layer.get_config())

    image = keras.Input((side, side, 3), name=network.layers[0].name)
    copy = keras.models.clone_model(network, input_tensors=image, clone_function=steady)
    copy.set_weights(network.get_weights())
    return copy


def converted(network: Any, place: Path, form: Format) -> None:
    """Have Keras write a network; its converters warn of their own affairs."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        network(np.zeros((1, *network.input.shape[1:]), np.uint8))  # ONNX wants it called once
        network.export(str(place), format=KERAS_NAMES.get(form, form), verbose=False)


def write_plain(folder: Path, network: Any, _: dict[str, str], *, form: Format) -> None:
    """Write a format that has no place for facts; without a name its output would be `output_0`."""
    named = keras.Model(network.input, {OUTPUT: network.output})
    converted(named, folder / ENTRY[form], form)


def write_keras(folder: Path, network: Any, _: dict[str, str]) -> None:
    """Write Keras' own format, which loads on every backend."""
    network.save(folder / ENTRY["keras"])


def write_onnx(folder: Path, network: Any, facts: dict[str, str]) -> None:
    """Write ONNX, with names for its ends, and the facts in the model."""
    import onnx

    place = folder / ENTRY["onnx"]
    converted(network, place, "onnx")
    model = onnx.load(str(place))
    for port, name in ((model.graph.input[0], INPUT), (model.graph.output[0], OUTPUT)):
        renamed(model.graph, port, name)
        port.type.tensor_type.shape.dim[0].dim_param = "photos"
    onnx.helper.set_model_props(model, facts)
    model.producer_name = "fieldmark"
    onnx.checker.check_model(model)
    onnx.save(model, str(place))


def renamed(graph: Any, port: Any, name: str) -> None:
    """Give an end of an ONNX graph another name, wherever it is used."""
    for node in graph.node:
        for ends in (node.input, node.output):
            for place, end in enumerate(ends):
                if end == port.name:
                    ends[place] = name
    port.name = name


def write_openvino(folder: Path, network: Any, facts: dict[str, str]) -> None:
    """Write OpenVINO's format in float32, with the facts in the model."""
    with openvino_model(network) as model:
        save_openvino(folder, model, facts)


@contextmanager
def openvino_model(network: Any) -> Iterator[Any]:
    """Give the network as OpenVINO's model; its weights lie in a file until the block ends."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / ENTRY["openvino"]
        converted(network, place, "openvino")
        model = engines.core().read_model(place)
        model.input(0).get_tensor().set_names({INPUT})
        model.output(0).get_tensor().set_names({OUTPUT})
        yield model


def save_openvino(folder: Path, model: Any, facts: dict[str, str]) -> None:
    """Write an OpenVINO model with the facts in it."""
    for name, fact in facts.items():
        model.set_rt_info(fact, ["fieldmark", name])
    # Else the weights are rounded to float16.
    place = folder / ENTRY["openvino"]
    try:
        engines.openvino().save_model(model, place, compress_to_fp16=False)
    except RuntimeError as error:  # its word for a full disk, too
        raise OSError(errno.EIO, f"OpenVINO says {error}") from error


Writer = Callable[[Path, Any, dict[str, str]], None]
WRITE: dict[Format, Writer] = {
    "openvino": write_openvino,
    "onnx": write_onnx,
    "litert": lambda *what: write_plain(*what, form="litert"),
    "saved_model": lambda *what: write_plain(*what, form="saved_model"),
    "keras": write_keras,
}


# ---- int8 ---------------------------------------------------------------------------------------


def int8_model(run: Run, trained: Trained, *, held: Held, max_drop: float, minutes: float) -> Any:
    """Return the network as OpenVINO's model in int8, calibrated on training photos.

    Where that costs more accuracy than it may, those layers stay in float32 that cost most of it
    (NNCF's accuracy-aware quantisation), found on the held-out photos.
    """
    if not len(held.squares):
        raise FieldmarkError(
            f"{run.folder} holds no photos out to see what int8 costs: export it without."
        )
    chosen = balanced([r for r in run.read_split() if r.split == "training"], CALIBRATION)
    squares = trained.squares([run.photo(r.path) for r in chosen], description="Calibration")
    with openvino_model(complete(trained)) as model:
        small, ranges = nearest(model, squares, len(trained.classes))
        begun = time.monotonic()
        engine = engines.finished(engines.compiled(small), len(trained.classes))
        compiling = time.monotonic() - begun
        found = answered(engine, held.squares)
        looking = (time.monotonic() - begun - compiling) / len(found)
        lost = accuracies(found, held)["drop"]
        if lost["value"] <= max_drop:
            return small
        say(f"All in int8, it costs {in_points(lost)}: looking for what to leave in float32")
        ranked = affordable(
            seconds=60 * minutes / 2, layers=count_layers(model), compiling=compiling,
            looking=looking,
        )  # fmt: skip
        with deadline(minutes) as check:
            return mixed(
                model, squares, ranges,
                held=held, max_drop=max_drop, ranked=ranked, check=check,
            )  # fmt: skip
    raise AssertionError  # it has returned, or raised


class OutOfTime(Exception):  # noqa: N818 - it is no error
    """The time that a search may take is over."""


@contextmanager
def deadline(minutes: float) -> Iterator[Callable[[], None]]:
    """Give what is to be called again and again: it shows the time, and ends the block at its end.

    Raises a FieldmarkError then.
    """
    begun, last = time.monotonic(), round(60 * minutes)
    with meter("Seconds at most", last) as shown:

        def check() -> None:
            passed = int(time.monotonic() - begun)
            if passed > 60 * minutes:
                raise OutOfTime
            shown.advance(passed - shown.done)

        try:
            yield check
        except OutOfTime:
            raise FieldmarkError(
                f"What to leave in float32 was not found within {minutes:g} minutes: give the "
                "search more --minutes, allow int8 more with --max-drop, or export in float32."
            ) from None


def affordable(*, seconds: float, layers: int, compiling: float, looking: float) -> int:
    """Return by how many photos layers can be ranked in a time, when each is tried once.

    `compiling` is the seconds for a network, `looking` those for a photo; within `RANKED`.
    """
    least, most = RANKED
    return int(np.clip((seconds / layers - compiling) / looking, least, most))


def count_layers(model: Any) -> int:
    """Count the layers of an OpenVINO model that int8 is for."""
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    return sum(node.get_type_name() in kinds for node in model.get_ops()) or 1


class Watched(list[T]):
    """Things that NNCF takes one after the other; each time something is called."""

    def __init__(self, things: Iterable[T], check: Callable[[], None]) -> None:
        super().__init__(things)
        self.check = check

    def __iter__(self) -> Iterator[T]:
        """Yield all of them."""
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: Any) -> Any:
        """Return one of them."""
        self.check()
        return super().__getitem__(place)


def nearest(model: Any, squares: Squares, classes: int) -> tuple[Any, str]:
    """Return an OpenVINO model all in int8, and by which of `RANGES` its activations were cut.

    The mean of the photos' ranges cuts off what is large in a few; the range of all has coarser
    steps. Neither is better for every network, so that the one stays whose answers are nearer those
    in float32, by the mean divergence (Kullback and Leibler 1951) on the calibration photos.
    """

    def answers(network: Any) -> Floats:
        return answered(engines.finished(engines.compiled(network), classes), squares)

    exact = answers(model)
    with meter("Calibrating", len(RANGES) * len(squares)) as shown:
        photos = Watched(singly(squares), lambda: shown.advance(1))
        found = {ranges: quantised(model, photos, ranges) for ranges in RANGES}
    off = {
        ranges: float((exact * np.log(exact / answers(small))).sum(axis=1).mean())
        for ranges, small in found.items()
    }
    best = min(RANGES, key=off.__getitem__)
    return found[best], best


def quantised(model: Any, photos: Sequence[Squares], ranges: str) -> Any:
    """Return an OpenVINO model all in int8."""
    with nncf_alone() as nncf:
        return nncf.quantize(
            model,
            nncf.Dataset(photos),
            advanced_parameters=cut(nncf, ranges),
            **usual(nncf, photos),
        )


def mixed(
    model: Any,
    squares: Squares,
    ranges: str,
    *,
    held: Held,
    max_drop: float,
    ranked: int,
    check: Callable[[], None],
) -> Any:
    """Return an OpenVINO model in int8, but for layers that would cost more than the drop allows.

    `check` is called at each photo.
    """
    pairs = Watched(zip(singly(held.squares), held.labels.tolist(), strict=True), check)
    with nncf_alone() as nncf:
        return nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(Watched(singly(squares), check)),
            nncf.Dataset(pairs, first),
            validated,
            max_drop=max_drop + TIE,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=ranked, num_ranking_workers=1
            ),
            advanced_quantization_parameters=cut(nncf, ranges),
            **usual(nncf, squares),
        )


@contextmanager
def nncf_alone() -> Iterator[Any]:
    """Give NNCF, which draws bars of its own, and prints what could be done next.

    It makes cores as it goes, of which there is to be one; see `engines.core`.
    """
    core = engines.core()
    with (
        mock.patch.multiple(
            engines.openvino(), Core=engines.core, compile_model=core.compile_model
        ),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level("ERROR")
        yield nncf


def cut(nncf: Any, ranges: str) -> Any:
    """Return the parameters by which activations are cut as one of `RANGES` says."""
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, ranges)
    )


def usual(nncf: Any, photos: Sized) -> dict[str, Any]:
    """Return how it is quantised in either way."""
    return {
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "fast_bias_correction": True,
        "subset_size": len(photos),
    }


def singly(squares: Squares) -> list[Squares]:
    """Return each square as a batch of its own, (1, size, size, 3)."""
    return [square[None] for square in squares]


def first(pair: tuple[Squares, int]) -> Squares:
    """Return what goes into the network of a photo and its label."""
    return pair[0]


def validated(model: Any, pairs: Iterable[tuple[Squares, int]]) -> tuple[float, list[float]]:
    """Return a compiled model's accuracy and whether it is right about each photo.

    A little of the right class' probability is in it: layers are ranked by few photos, and many
    cost as many of them.
    """
    scores = []
    for square, label in pairs:
        found = np.asarray(model(square)[0])[0]  # (c,)
        scores.append(float(found.argmax() == label) + TIE * float(found[label]))
    return float(np.mean(scores)), scores


# ---- is it equal? -------------------------------------------------------------------------------


def of_run(trained: Trained) -> Engine:
    """Return the run's own network as an engine."""
    return lambda squares: softmax(trained.of(squares))


def answered(engine: Engine, squares: Squares) -> Floats:
    """Return an engine's probabilities, asked in batches."""
    parts = [engine(squares[at : at + BATCH]) for at in range(0, len(squares), BATCH)]
    return np.concatenate(parts) if parts else engine(squares)


def in_both_ways(engine: Engine, photos: dict[str, Squares]) -> tuple[Floats, Floats]:
    """Return an engine's probabilities of photos, asked together and each alone."""
    squares = np.stack([*photos.values()])
    return answered(engine, squares), np.concatenate([engine(square[None]) for square in squares])


def reported(folder: Path, draft: Manifest, trained: Trained, held: Held) -> dict[str, Any]:
    """Return what `parity.json` says of the model in a folder, opened as a user opens it."""
    return {
        "format": draft.format,
        "precision": draft.precision,
        **compared(engines.open_engine(folder, draft), trained, held),
        "bytes": sum(content.bytes for content in draft.files.values()),
    }


def worst(report: dict[str, Any]) -> float:
    """Return the largest difference of a probability on any of the photos."""
    return float(max(report[photos]["largest_difference"] for photos in ("held_out", "odd")))


def compared(engine: Engine, trained: Trained, held: Held) -> dict[str, Any]:
    """Return what an export says of the photos beside what the run says; JSON-able."""
    found = answered(engine, held.squares)
    odd = in_both_ways(engine, held.odd)
    # Together and alone a run rounds otherwise: with group normalisation, and a photo of one
    # colour, by up to 1e-4. An export that is near either is near enough.
    off = [[abs(one - run).max(axis=1) for run in held.odd_reference] for one in odd]
    differences = np.max([np.minimum(*each) for each in off], axis=0)  # (n,)
    same = odd[0].argmax(axis=1) == held.odd_reference[0].argmax(axis=1)
    return {
        "held_out": {
            "split": held.split,
            "n": len(found),
            "largest_difference": largest(found - held.reference),
            "agreement": metrics.share(found.argmax(axis=1) == held.reference.argmax(axis=1)),
            **accuracies(found, held),
        },
        "odd": {
            "n": len(same),
            "largest_difference": largest(differences),
            "agreement": metrics.share(same),
            "photos": dict(zip(held.odd, map(largest, differences), strict=True)),
        },
        "latency": latencies(engine, trained, held),
    }


def largest(differences: Floats) -> float:
    """Return the largest difference; what is no number is as far off as can be."""
    return float(np.nan_to_num(abs(differences), nan=1.0).max(initial=0.0))


def accuracies(found: Floats, held: Held) -> dict[str, Any]:
    """Return the accuracy of run and export, and what the export loses."""
    mine, its = (each.argmax(axis=1) == held.labels for each in (held.reference, found))
    shares = {"run": metrics.share(mine), "export": metrics.share(its)}
    return {"accuracy": shares, "drop": drop(mine, its)}


def drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the share of photos lost, of the same photos before and after, with its interval.

    Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions": Wald's interval after half a photo was added to each of the four cells.
    """
    if not len(before):
        return {"value": None, "low": None, "high": None, "n": 0, "interval": "agresti-min"}
    lost, won = float((before & ~after).sum()), float((after & ~before).sum())
    count, more, fewer = len(before) + 2, lost + 0.5, won + 0.5
    middle = (more - fewer) / count
    half = 1.96 * np.sqrt((more + fewer) - (more - fewer) ** 2 / count) / count
    return {
        "value": (lost - won) / len(before),
        "low": float(max(middle - half, -1)),
        "high": float(min(middle + half, 1)),
        "n": len(before),
        "interval": "agresti-min",
    }


def latencies(engine: Engine, trained: Trained, held: Held) -> dict[str, Any]:
    """Time one square at a time, run and export by turns; milliseconds, the middle of all."""
    squares = singly(held.squares[:TIMED]) or singly(np.stack([*held.odd.values()]))
    both = {"run": of_run(trained), "export": engine}
    taken: dict[str, list[float]] = {name: [] for name in both}
    for square in squares:
        for name, each in both.items():
            each(square)  # after the other's turn the caches are the other's
            begun = time.perf_counter()
            each(square)
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {
        "n": len(squares),
        **{f"{name}_p50_ms": round(float(np.median(times)), 3) for name, times in taken.items()},
    }


def refuse_unequal(report: dict[str, Any], place: Path, max_drop: float | None) -> None:
    """Raise where an export does not answer as the run does; `max_drop` for int8, else none."""
    of, odd = report["held_out"], report["odd"]
    if max_drop is None:
        most = worst(report)
        if not most <= TOLERANCE:
            named = max(odd["photos"], key=odd["photos"].__getitem__)
            where = f"the odd photo {named!r}" if odd["largest_difference"] == most else of["split"]
            raise FieldmarkError(
                f"The export for {report['format']} answers otherwise than the run: probabilities "
                f"differ by {most:.2g} on {where}, {TOLERANCE:g} is allowed; {place} was not "
                "written, so take another format."
            )
    elif not of["drop"]["value"] <= max_drop:
        raise FieldmarkError(
            f"int8 costs {in_points(of['drop'])} of the accuracy, {max_drop:.1%} is allowed; "
            f"{place} was not written, so allow more with --max-drop, or export in float32."
        )


def proof(report: dict[str, Any]) -> Proof:
    """Return a report in short."""
    of = report["held_out"]
    return Proof(
        photos=of["n"], largest_difference=worst(report), agreement=of["agreement"]["value"]
    )


def in_points(figure: dict[str, Any]) -> str:
    """Write a drop for people."""
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}, n = {figure['n']})"


def sentence(report: dict[str, Any]) -> str:
    """Say what the comparison came to."""
    of, odd, took = report["held_out"], report["odd"], report["latency"]
    parts = [f"probabilities differ by at most {of['largest_difference']:.1g} on {of['n']} photos"]
    parts += [f"{odd['largest_difference']:.1g} on {odd['n']} odd ones"]
    if report["precision"] == "int8" and of["n"]:
        parts += [f"the accuracy drops by {in_points(of['drop'])}"]
    parts += [f"one photo {took['export_p50_ms']:.1f} ms, by the run {took['run_p50_ms']:.1f} ms"]
    return "Compared with the run: " + "; ".join(parts) + f"; {report['bytes'] / 1e6:.1f} MB."
