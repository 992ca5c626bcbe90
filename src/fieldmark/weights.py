"""Weights from outside: a file of another program's arrays -> a network's weights.

In: a network, and a file or one of two words. Out: the network's arrays are replaced, all of
them or none, and what was loaded is reported. `docs/weights.md` says which files there are.

    imagenet        Keras' own file for `resnet_v2`, downloaded once
    fractals        our own for `resnet26v2_half`, which has learned drawings; it lies beside this
    .keras          a network that Keras 3 saved; only its arrays are read, nothing in it is run
    .weights.h5     the weights that Keras 3 saved
    .h5             a network or its weights, as older versions of Keras saved them
    .npz            Big Transfer's own files, for `bit.R50x1`
    .safetensors    timm's files, for both networks of `bit`

A reader gives the arrays under our names, `layer/array`. Each must fit one of the network's, and
each of the network's must get one: nothing is left over and nothing is missing, but for the head
where the number of classes differs, and for arrays that Keras does not keep.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import h5py
import numpy as np
from numpy.typing import NDArray

from fieldmark import files, packages
from fieldmark.backend import keras
from fieldmark.console import meter, say
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Network

Arrays = dict[str, NDArray[Any]]

# Where Keras applications finds its files, and their MD5: with the top, and without
# (`keras/src/applications/resnet.py` of Keras 3.15). Nobody publishes a longer hash of them.
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
IMAGENET_MD5 = {
    "resnet50v2": ("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
    "resnet101v2": ("6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"),
    "resnet152v2": ("a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"),
}
IMAGENET_CLASSES = 1000

FRACTALS_NETWORK: Network = "resnet26v2_half"
FRACTALS_FILE = Path(__file__).with_name("fractals.weights.h5")  # `benchmarks/fractals.py` made it

WORDS = ("imagenet", "fractals")  # that stand for files
HEAD = "predictions"  # the classifier's layer, here and in Keras applications
OLD_HEAD = "probs"  # its name when Keras' files were made (keras-applications 1.0.8)
LARGEST = 2_000_000_000  # bytes; the largest published file for these networks has 0.3e9
TIMEOUT = 30  # seconds without a byte from the server
MIB = 1 << 20
# What Keras and the libraries under it raise for a file that is damaged, or is another.
DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    MemoryError,
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Loaded:
    """What `load` did."""

    path: Path  # of the file
    arrays: int  # as many of the network's were replaced
    head: bool  # whether the classifier was among them
    left: tuple[str, ...]  # the arrays of a classifier that is not used


def load(network: Any, source: str | os.PathLike[str]) -> Loaded:
    """Replace the weights of a network by those in a file, or by those of `WORDS`.

    The head is left as it is where the file has none, or one for another number of classes, and
    that is said. Raises FieldmarkError, with the network unchanged, for a file that is missing,
    damaged, of another network or of a kind not read here, and where a download fails.
    """
    head = _head(network)
    if source == "imagenet":
        with_top = head is not None and head.units == IMAGENET_CLASSES
        path = download(network.name, include_top=with_top)
    elif source == "fractals":
        path = _fractals(network.name)
    else:
        path = files.expanded(source)
    found = read(path)
    ours, numbers = {}, {}
    for layer in network.layers:
        for i, variable in enumerate(layer.weights):
            ours[f"{layer.name}/{variable.name}"] = variable
            numbers[f"{layer.name}/{i}"] = f"{layer.name}/{variable.name}"
    found = {numbers.get(name, name): array for name, array in found.items()}

    prefix = f"{HEAD if head is None else head.name}/"
    theirs = next((a.shape[-1:] for name, a in found.items() if name.startswith(prefix)), ())
    with_head = head is not None and theirs == (head.units,)
    left: list[str] = []
    if not with_head:
        left = [name for name in found if name.startswith(prefix)]
        found = {name: array for name, array in found.items() if name not in left}
        ours = {name: variable for name, variable in ours.items() if not name.startswith(prefix)}
    _refuse_misfits(path, network.name, found, {name: tuple(v.shape) for name, v in ours.items()})
    for name, variable in ours.items():
        variable.assign(found[name].astype("float32"))
    if head is not None and not with_head:
        has = f"{theirs[0]} classes and the network {head.units}" if theirs else "no classifier"
        say(f"{path.name} has {has}: all but the classifier was loaded, and that starts untrained.")
    return Loaded(path, len(ours), with_head, tuple(left))


def require_there(path: Path) -> None:
    """Raise a FieldmarkError where there is no such file of weights."""
    files.require_file(
        path, f"There is no file {path}: name a file of weights, or {' or '.join(WORDS)}."
    )


def read(path: Path) -> Arrays:
    """Read a file's arrays under our names, `layer/array`; of Keras 3's files `layer/0`, `layer/1`.

    The kind of file is told by its suffix. Nothing of it is run, and no pickle is read. Raises
    FieldmarkError where the file is missing, damaged, too large or of another kind.
    """
    reader = next((READERS[kind] for kind in READERS if path.name.lower().endswith(kind)), None)
    if reader is None:
        raise FieldmarkError(
            f"{path} is no kind of weights that is read here: name a file that ends in "
            f"{', '.join(READERS)}. (A .pt, .pth, .bin or .pkl can run code when it is read; most "
            "are published as .safetensors too.)"
        )
    require_there(path)
    with _reading(path):
        arrays = reader(path)
    if not arrays:
        raise FieldmarkError(f"{path} holds no weights: name another file.")
    for name, array in arrays.items():
        if array.dtype.kind not in "fV" or array.dtype.type is np.void:  # bfloat16 is a V too
            raise FieldmarkError(
                f"{path} cannot be used: its array {name} is of {array.dtype} and not of "
                "floating-point numbers."
            )
        if not np.isfinite(array.astype("float32")).all():
            raise FieldmarkError(
                f"{path} cannot be used: its array {name} has values that are no finite numbers."
            )
    return arrays


# The four readers of Keras' files and the two of other programs.


def _read_keras(path: Path) -> Arrays:
    """Read a `.keras` file: a zip with the weights as `model.weights.h5`."""
    with zipfile.ZipFile(path) as archive:
        _limit(path, archive.getinfo("model.weights.h5").file_size)
        return _read_h5(path, io.BytesIO(archive.read("model.weights.h5")))


def _read_h5(path: Path, content: IO[bytes] | None = None) -> Arrays:
    """Read an HDF5 file of Keras 3, or of the older layout that Keras' ImageNet files have."""
    with h5py.File(content or path, "r") as file:
        if "layers" in file:
            return _keras3(path, _child(file, "layers"))
        return _keras2(path, _child(file, "model_weights") if "model_weights" in file else file)


def _keras3(path: Path, group: Any) -> Arrays:
    """Read `.../vars/0`, `.../vars/1`, where `vars` bears the name of the layer."""
    arrays: Arrays = {}
    for parts, dataset in _datasets(path, group):
        if "seed_generator" in parts:  # the state of an augmentation's dice
            continue
        layer = dataset.parent.attrs.get("name")
        if parts[-2:-1] != ("vars",) or not isinstance(layer, str):
            raise FieldmarkError(
                f"{path} does not name its layers, as files of the first versions of Keras 3: "
                "load it with those and save it again with a newer one."
            )
        _add(path, arrays, f"{layer}/{parts[-1]}", dataset[()])
    return arrays


def _keras2(path: Path, group: Any) -> Arrays:
    """Read `layer/layer/kernel:0`; within a nested network there are more parts before these."""
    arrays: Arrays = {}
    for parts, dataset in _datasets(path, group):
        layer, name = parts[-2] if len(parts) > 1 else "", parts[-1].partition(":")[0]
        _add(path, arrays, f"{HEAD if layer == OLD_HEAD else layer}/{name}", dataset[()])
    return arrays


def _datasets(path: Path, group: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each data set below a group with the parts of its name; no link is followed.

    A link, an external or a virtual data set can name another file on the disk.
    """
    total, seen = 0, set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), group)]
    while waiting:
        parts, parent = waiting.pop()
        for name in parent:
            item = _child(parent, name)
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:  # a group may hold itself
                    raise ValueError(f"{name} is there twice")
                seen.add(address)
                waiting.append(((*parts, name), item))
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(f"{name} is kept in another file")
                total += math.prod(item.shape) * item.dtype.itemsize
                _limit(path, total)
                yield (*parts, name), item


def _child(group: Any, name: str) -> Any:
    """Return what a group holds under a name, unless that is a link."""
    if group.get(name, getlink=True, getclass=True) is not h5py.HardLink:
        raise ValueError(f"{name} is a link")
    return group[name]


def _read_npz(path: Path) -> Arrays:
    """Read Big Transfer's `.npz`; names as in `bit_pytorch/models.py`, kernels (h, w, in, out)."""
    with zipfile.ZipFile(path) as archive:
        _limit(path, sum(member.file_size for member in archive.infolist()))
    arrays: Arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            # Some of the files count: `standardized_conv2d_17` for `standardized_conv2d`.
            plain = re.sub(r"(standardized_conv2d|group_norm)_\d+", r"\1", name)
            array = file[name]
            layer = _bit_layer(plain.removeprefix("resnet/"))
            if layer is None:
                raise FieldmarkError(
                    f"{path} is not one of Big Transfer's files: "
                    f"its array {name} is none of that network."
                )
            if layer.startswith(HEAD) and array.ndim == 4:  # a 1x1 convolution
                array = array[0, 0]
            _add(path, arrays, layer, array if array.ndim in (2, 4) else array.reshape(-1))
    return arrays


def _bit_layer(name: str) -> str | None:
    """Translate Big Transfer's name of an array into ours; None where it has no such array."""
    if name in BIT_NAMES:
        return BIT_NAMES[name]
    match = re.fullmatch(r"block(\d)/unit(\d\d)/([abc])/(.+)", name)
    if match is None:
        return None
    layer = BIT_LAYERS.get((match[3], match[4].rpartition("/")[0]))
    array = {"kernel": "kernel", "gamma": "gamma", "beta": "beta"}.get(name.rpartition("/")[2])
    if layer is None or array is None:
        return None
    return f"conv{int(match[1]) + 1}_block{int(match[2])}_{layer}/{array}"


BIT_NAMES = {
    "root_block/standardized_conv2d/kernel": "conv1_conv/kernel",
    "group_norm/gamma": "post_norm/gamma",
    "group_norm/beta": "post_norm/beta",
    "head/conv2d/kernel": f"{HEAD}/kernel",
    "head/conv2d/bias": f"{HEAD}/bias",
}
BIT_LAYERS = {
    ("a", "group_norm"): "preact_norm",
    ("a", "proj/standardized_conv2d"): "0_conv",
    ("a", "standardized_conv2d"): "1_conv",
    ("b", "group_norm"): "1_norm",
    ("b", "standardized_conv2d"): "2_conv",
    ("c", "group_norm"): "2_norm",
    ("c", "standardized_conv2d"): "3_conv",
}


def _read_safetensors(path: Path) -> Arrays:
    """Read timm's `.safetensors`; names of `timm/models/resnetv2.py`, kernels (out, in, h, w)."""
    packages.require(
        "safetensors", extra="safetensors", why=f"{path.name} is read with safetensors"
    )
    from safetensors import SafetensorError, safe_open

    _limit(path, path.stat().st_size)  # nothing in it is compressed
    arrays: Arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # the file is no dictionary
                if name.endswith(".num_batches_tracked"):
                    continue  # PyTorch's count of steps, which Keras does not keep
                layer = _timm_layer(name)
                if layer is None:
                    raise FieldmarkError(
                        f"{path} is not one of timm's resnetv2: "
                        f"its array {name} is none of that network."
                    )
                array = file.get_tensor(name)
                if layer == f"{HEAD}/kernel":  # (classes, in) or a 1x1 convolution
                    array = array.reshape(array.shape[:2]).T
                _add(path, arrays, layer, array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
    except SafetensorError as error:
        raise ValueError(error) from error
    return arrays


def _timm_layer(name: str) -> str | None:
    """Translate timm's name of an array into ours; None where it has no such array."""
    module, _, array = name.rpartition(".")
    match = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", module)
    layer = TIMM_LAYERS.get(match[3]) if match else TIMM_NAMES.get(module)
    if layer is None:
        return None
    if match:
        layer = f"conv{int(match[1]) + 2}_block{int(match[2]) + 1}_{layer}"
    ours = (TIMM_NORM if layer.endswith("norm") else TIMM_CONV).get(array)
    return ours and f"{layer}/{ours}"


TIMM_NAMES = {"stem.conv": "conv1_conv", "norm": "post_norm", "head.fc": HEAD}
TIMM_LAYERS = {
    "norm1": "preact_norm",
    "downsample.conv": "0_conv",
    "conv1": "1_conv",
    "norm2": "1_norm",
    "conv2": "2_conv",
    "norm3": "2_norm",
    "conv3": "3_conv",
}
TIMM_CONV = {"weight": "kernel", "bias": "bias"}
TIMM_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}

READERS: dict[str, Callable[[Path], Arrays]] = {
    ".keras": _read_keras,
    ".weights.h5": _read_h5,
    ".h5": _read_h5,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _add(path: Path, arrays: Arrays, name: str, array: Any) -> None:
    """Put an array into the dictionary, once."""
    if name in arrays:
        raise FieldmarkError(f"{path} has two arrays {name}: name a file of one network.")
    arrays[name] = np.asarray(array)  # a text alone is none


def _limit(path: Path, size: int) -> None:
    """Refuse more bytes than any of these networks has, before they are read."""
    if size > LARGEST:
        raise FieldmarkError(
            f"{path} holds more than {LARGEST / 1e9:.0f} GB of arrays, "
            "far more than any network here: name another file."
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged file into one sentence."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FieldmarkError(
            f"{path} cannot be read as weights ({reason}): get the file again, or name another."
        ) from error


def _head(network: Any) -> Any | None:
    """Find the classifier: a dense layer at the end."""
    last = network.layers[-1]
    return last if isinstance(last, keras.layers.Dense) else None


def _refuse_misfits(
    path: Path, network: str, found: Arrays, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise where an array is missing, left over or of another shape."""
    both = found.keys() & shapes.keys()
    misshapen = [
        f"{name} is {found[name].shape} and not {shapes[name]}"
        for name in shapes
        if name in both and found[name].shape != shapes[name]
    ]
    wrong = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for what, names in (
            ("missing", [name for name in shapes if name not in both]),
            ("left over", [name for name in found if name not in both]),
            ("of another shape", misshapen),
        )
        if names
    ]
    if wrong:
        raise FieldmarkError(
            f"The weights in {path} are not those of the network {network}; of their arrays are "
            f"{', '.join(wrong)}. Name the network that they were made for, or other weights."
        )


def _fractals(name: str) -> Path:
    """Return the file that comes with fieldmark; raise for a network that it is not of."""
    if name != FRACTALS_NETWORK:
        raise FieldmarkError(
            f"The weights fractals are of the network {FRACTALS_NETWORK} and not of {name}: name "
            "that network, or a file of weights."
        )
    return FRACTALS_FILE


# Keras' files for ImageNet.


def download(name: str, *, include_top: bool) -> Path:
    """Fetch Keras' ImageNet file for a network of `resnet_v2`, or find it where it was put.

    It is kept in `folder()`, and each time held against its MD5. Raises FieldmarkError.
    """
    if name not in IMAGENET_MD5:
        raise FieldmarkError(
            f"Keras has no ImageNet weights of the network {name}, but of "
            f"{', '.join(IMAGENET_MD5)}: name one of these networks, or a file of weights."
        )
    path = _place(name, include_top=include_top)
    md5 = IMAGENET_MD5[name][0 if include_top else 1]
    if path.is_file():
        with path.open("rb") as file:
            if hashlib.file_digest(file, _md5).hexdigest() == md5:
                return path
        say(f"{path} is damaged: it is downloaded again.")
    _fetch(f"{IMAGENET_URL}/{path.name}", path, md5=md5)
    return path


def downloaded(name: str) -> bool:
    """Tell whether Keras' ImageNet file of a network is here already."""
    return name in IMAGENET_MD5 and _place(name, include_top=False).is_file()


def _place(name: str, *, include_top: bool) -> Path:
    """Return where Keras' ImageNet file of a network is kept."""
    top = "" if include_top else "_notop"
    return folder() / f"{name}_weights_tf_dim_ordering_tf_kernels{top}.h5"


def folder() -> Path:
    """Say where downloads are kept."""
    return files.cache_folder() / "weights"


def _fetch(url: str, path: Path, *, md5: str) -> None:
    """Download a file whole, with the right hash, or not at all."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    digest = _md5()
    with files.whole_file(path) as temporary, temporary.open("wb") as file:
        for part in _parts(url, path):
            file.write(part)
            digest.update(part)
        if digest.hexdigest() != md5:
            raise FieldmarkError(
                f"{url} gave a file whose MD5 is {digest.hexdigest()} and not {md5}, so that it is "
                f"not used: try again, or put the right file at {path}."
            )


def _parts(url: str, path: Path) -> Iterator[bytes]:
    """Yield what a server sends, with progress."""
    _refuse_insecure(url)
    opener = urllib.request.build_opener(_Redirects)
    received = 0
    try:
        with opener.open(url, timeout=TIMEOUT) as response:
            length = int(response.headers.get("Content-Length", 0))
            with meter(f"{path.name}, MiB", math.ceil(length / MIB)) as shown:
                while part := response.read(MIB):
                    received += len(part)
                    _limit(path, received)
                    yield part
                    shown.advance()
        if received < length:
            raise EOFError(f"it ended after {received:,} of {length:,} bytes")  # noqa: TRY301
    except (OSError, HTTPException, EOFError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise FieldmarkError(
            f"{url} could not be downloaded ({reason}): connect this machine to the internet and "
            f"try again, or download it elsewhere and put it at {path}."
        ) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server that says where else the file is, as long as that is secure."""

    def redirect_request(  # noqa: PLR0917  # urllib says what it is given
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _refuse_insecure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_insecure(url: str) -> None:
    """Raise for anything but https; within this machine, http will do."""
    parts = urlsplit(url)
    within = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not within:
        raise FieldmarkError(f"{url} is not downloaded, as the way there is not secure: use https.")


def _md5() -> Any:
    """Start an MD5: Keras publishes no other hash. It finds damage; https says whose file it is."""
    return hashlib.md5(usedforsecurity=False)
