"""Weights from outside: every array accounted for, and every kind of damage refused."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import test_bit
from fieldmark import bit, cli, files, fractals, resnet_v2, weights
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.run import open_run

timm = test_bit.timm  # the fixture


def small(classes: int = 3, seed: int = 1) -> Any:
    """Build a network of two blocks, with layers named as in the family."""
    keras.utils.set_random_seed(seed)
    image = keras.layers.Input((32, 32, 3))
    x = resnet_v2.body(image, blocks=(1, 1), filters=8)
    network = keras.Model(image, resnet_v2.head(x, classes), name="small")
    return test_bit.shaken(network, seed)


@pytest.fixture(scope="module")
def target() -> Any:
    """The network that refused weights were meant for; it stays as it is."""
    return small()


def assert_same(part: Any, whole: Any) -> None:
    """Hold the weights of one network against those of the same layers in another."""
    for layer in part.layers:
        if layer.weights:
            for a, b in zip(
                layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(a, b)


def below_head(network: Any) -> Any:
    return keras.Model(network.input, network.get_layer("avg_pool").output)


def write_old_h5(path: Path, network: Any, *, head: str = "probs") -> None:
    """Write a network's weights in the layout of Keras' ImageNet files."""
    with h5py.File(path, "w") as file:
        names = [head if layer.name == "predictions" else layer.name for layer in network.layers]
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for name, layer in zip(names, network.layers, strict=True):
            group = file.create_group(name)
            arrays = [f"{name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [array.encode() for array in arrays]
            for array, values in zip(arrays, layer.get_weights(), strict=True):
                group[array] = values


def write_npz(path: Path, network: Any, *, numbered: bool = False) -> None:
    """Write a network of `bit` under the names of `bit_pytorch/models.py`."""
    places = {"conv1": "root_block", "post": "", "predictions": "head"}
    units = {
        "preact_norm": "a/group_norm",
        "0_conv": "a/proj/standardized_conv2d",
        "1_conv": "a/standardized_conv2d",
        "1_norm": "b/group_norm",
        "2_conv": "b/standardized_conv2d",
        "2_norm": "c/group_norm",
        "3_conv": "c/standardized_conv2d",
    }
    arrays: dict[str, Any] = {}
    for layer in network.layers:
        values = layer.get_weights()
        kind = "group_norm" if layer.name.endswith("norm") else "standardized_conv2d"
        names = ("gamma", "beta") if layer.name.endswith("norm") else ("kernel", "bias")
        if layer.name == "predictions":
            kind, values[0] = "conv2d", values[0][None, None]
        if "_block" in layer.name:
            stage, block, rest = layer.name.split("_", 2)
            unit = f"unit{int(block.removeprefix('block')):02d}"
            module = f"block{int(stage[-1]) - 1}/{unit}/{units.get(rest, rest)}"
        else:
            module = f"{places.get(layer.name.split('_')[0], layer.name)}/{kind}".strip("/")
        if numbered:
            module = module.replace("standardized_conv2d", "standardized_conv2d_17")
        arrays |= {f"resnet/{module}/{n}": v for n, v in zip(names, values, strict=False)}
    np.savez(path, **arrays)


# Keras' files.


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".h5", "old.h5"])
def test_keras_files_are_loaded(kind: str, tmp_path: Path) -> None:
    source, network, path = small(), small(seed=2), tmp_path / f"a{kind}"
    source.compile("adam", "mse")
    if kind == "old.h5":
        write_old_h5(path, source)
        keras.models.clone_model(source).load_weights(path)  # Keras takes it for one of its own
    elif kind == ".weights.h5":
        source.save_weights(path)
    else:
        source.save(path)
    done = weights.load(network, path)
    assert_same(source, network)
    assert (done.arrays, done.head, done.left) == (len(network.weights), True, ())


@pytest.mark.parametrize("kind", [".keras", "old.h5"])
def test_the_head_is_left_out_where_the_classes_differ(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, network, path = small(), small(classes=5, seed=2), tmp_path / f"a{kind}"
    head = network.get_layer("predictions").get_weights()
    write_old_h5(path, source) if kind == "old.h5" else source.save(path)
    done = weights.load(network, path)
    assert not done.head
    assert len(done.left) == 2
    assert all(name.startswith("predictions/") for name in done.left)
    assert "has 3 classes and the network 5" in capsys.readouterr().out
    kept = network.get_layer("predictions").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(head, kept, strict=True))
    assert_same(below_head(network), source)


def test_a_file_without_a_head_and_a_network_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, network = small(), small(seed=2)
    body = keras.Model(source.input, source.get_layer("post_relu").output)
    body.save(tmp_path / "body.keras")
    done = weights.load(network, tmp_path / "body.keras")
    assert (done.head, done.left) == (False, ())
    assert "body.keras has no classifier" in capsys.readouterr().out
    assert_same(body, network)
    source.save(tmp_path / "whole.keras")
    ours = keras.Model(network.input, network.get_layer("post_relu").output)
    assert len(weights.load(ours, tmp_path / "whole.keras").left) == 2
    assert capsys.readouterr().out == ""


def test_resnet50v2_takes_the_arrays_of_keras_applications(tmp_path: Path) -> None:
    reference = keras.applications.ResNet50V2(weights=None, include_top=False)
    write_old_h5(tmp_path / "notop.h5", test_bit.shaken(reference))
    network = resnet_v2.ResNet50V2((64, 64, 3), include_top=False)
    assert weights.load(network, tmp_path / "notop.h5").arrays == len(reference.weights)
    assert_same(network, reference)


def test_code_in_a_keras_file_is_not_run(tmp_path: Path) -> None:
    image = keras.layers.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda x: x, name="code")(image)
    source = small()
    evil = keras.Model(image, source(x))
    evil.save(tmp_path / "evil.keras")
    with pytest.raises(ValueError, match="Lambda"):
        keras.saving.load_model(tmp_path / "evil.keras")
    network = small(seed=2)
    weights.load(network, tmp_path / "evil.keras")  # the arrays are there; the code is not read
    assert_same(source, network)


# Files of BiT and timm.


@pytest.mark.parametrize("numbered", [False, True])
def test_big_transfer_s_files_are_loaded(numbered: bool, tmp_path: Path) -> None:
    source, network = test_bit.small(), test_bit.small()
    network.set_weights([w + 1 for w in network.get_weights()])
    write_npz(tmp_path / "a.npz", source, numbered=numbered)
    done = weights.load(network, tmp_path / "a.npz")
    assert (done.arrays, done.head) == (len(network.weights), True)
    assert_same(source, network)


def test_the_whole_of_r50x1_is_loaded(tmp_path: Path) -> None:
    source, network = bit.R50x1(classes=2), bit.R50x1((64, 64, 3), classes=3)
    write_npz(tmp_path / "R50x1.npz", source)
    assert weights.load(network, tmp_path / "R50x1.npz").arrays == len(network.weights) - 2
    assert_same(below_head(network), source)


@pytest.mark.parametrize("build", [bit.R50x1, bit.ResNetV2_50])
def test_timm_s_files_are_loaded(timm: Any, build: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="it reads timm's files")
    from safetensors.torch import save_file

    source, network = test_bit.shaken(build((64, 64, 3), 7)), build((64, 64, 3), 7)
    name = "resnetv2_50x1_bit" if build is bit.R50x1 else "resnetv2_50"
    reference = test_bit.reference_of(timm, name, source)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    done = weights.load(network, tmp_path / "model.safetensors")
    assert (done.arrays, done.head) == (len(network.weights), True)
    assert_same(source, network)


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    pytest.importorskip("safetensors", reason="it reads timm's files")
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def test_timm_s_names_are_translated(tmp_path: Path) -> None:
    source, network = test_bit.small(), test_bit.small()
    network.set_weights([w + 1 for w in network.get_weights()])
    arrays = test_bit.arrays_of(source)
    count = {"norm.num_batches_tracked": np.array(7)}
    write_safetensors(tmp_path / "a.safetensors", arrays | count)
    weights.load(network, tmp_path / "a.safetensors")
    assert_same(source, network)
    half = {name: array.astype("float16") for name, array in arrays.items()}
    write_safetensors(tmp_path / "half.safetensors", half)
    weights.load(network, tmp_path / "half.safetensors")
    kernel = network.get_layer("conv1_conv").get_weights()[0]
    original = source.get_layer("conv1_conv").get_weights()[0]
    np.testing.assert_allclose(kernel, original, rtol=1e-3, atol=1e-7)  # float16 in between


# What is refused.


def refused(network: Any, path: Path, *words: str) -> None:
    before = [w.copy() for w in network.get_weights()]
    with pytest.raises(FieldmarkError) as caught:
        weights.load(network, path)
    assert str(caught.value).endswith((".", ")"))
    for word in (*words, str(path)):
        assert word in str(caught.value)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fractals_come_with_fieldmark(target: Any) -> None:
    network = resnet_v2.ResNet26V2Half((64, 64, 3), classes=3)
    done = weights.load(network, "fractals")
    assert (done.head, done.left) == (False, ())
    page = Path(__file__).parents[1] / "docs" / "weights.md"
    assert files.sha256_of(done.path) in page.read_text(encoding="utf-8")
    with pytest.raises(FieldmarkError, match="are of the network resnet26v2_half and not of small"):
        weights.load(target, "fractals")


def test_fractals_tell_kinds_apart_that_they_never_saw() -> None:
    """By the nearest mean of four others' features; twelve kinds of another seed than theirs."""
    kinds = [fractals.kind_of(np.random.default_rng([1, number])) for number in range(12)]
    photos = np.stack(
        [
            np.asarray(fractals.picture(kind, size=64, rng=np.random.default_rng([1, number, k])))
            for number, kind in enumerate(kinds)
            for k in range(8)
        ]
    ).astype("float32")

    def told_apart(network: Any) -> float:
        found = below_head(network).predict_on_batch(photos / 127.5 - 1).reshape(12, 8, -1)
        found = found / np.linalg.norm(found, axis=-1, keepdims=True)
        likeness = found[:, 4:] @ found[:, :4].mean(1).T
        return float((likeness.argmax(-1) == np.arange(12)[:, None]).mean())

    keras.utils.set_random_seed(0)
    network = resnet_v2.ResNet26V2Half((64, 64, 3), classes=3)
    before = told_apart(network)
    weights.load(network, "fractals")
    assert told_apart(network) > max(0.6, 1.5 * before)


def test_weights_of_another_network_are_refused(target: Any, tmp_path: Path) -> None:
    test_bit.small().save(tmp_path / "bit.keras")
    refused(target, tmp_path / "bit.keras", "network small", "missing", "left over")
    image = keras.layers.Input((32, 32, 3))
    wide = keras.Model(image, resnet_v2.body(image, blocks=(2, 2, 2), filters=16))
    wide.save(tmp_path / "wide.keras")
    kernel = "conv1_conv/kernel is (7, 7, 3, 16) and not (7, 7, 3, 8)"
    refused(target, tmp_path / "wide.keras", "of another shape", kernel)


def test_an_array_too_many_or_too_few_is_refused(target: Any, tmp_path: Path) -> None:
    write_old_h5(tmp_path / "a.h5", small())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["post_bn/post_bn/more:0"] = np.zeros(3)
    refused(target, tmp_path / "a.h5", "1 left over (post_bn/more)")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["post_bn/post_bn/more:0"], file["post_bn/post_bn/gamma:0"]
    refused(target, tmp_path / "a.h5", "1 missing (post_bn/gamma)")


def test_names_of_another_program_are_refused(target: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", some=np.zeros(3))
    refused(target, tmp_path / "a.npz", "not one of Big Transfer's files", "some")
    write_safetensors(tmp_path / "a.safetensors", {"layer1.0.conv1.weight": np.zeros(3)})
    refused(target, tmp_path / "a.safetensors", "not one of timm's resnetv2", "layer1.0")


def test_a_missing_file_and_an_unknown_kind_are_refused(target: Any, tmp_path: Path) -> None:
    refused(target, tmp_path / "none.keras", "There is no file")
    for name in ("a.pth", "b.pkl", "c"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        refused(target, tmp_path / name, ".safetensors")


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".h5", ".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>Not Found</html>", b"PK\x03\x04" + bytes(99)])
def test_a_file_of_something_else_is_refused(
    target: Any, kind: str, content: bytes, tmp_path: Path
) -> None:
    if kind == ".safetensors":
        pytest.importorskip("safetensors", reason="it reads timm's files")
    path = tmp_path / f"a{kind}"
    path.write_bytes(content)
    refused(target, path, "cannot be read as weights")


@pytest.mark.parametrize("kind", [".keras", ".h5", ".npz", ".safetensors"])
def test_a_damaged_file_is_refused(target: Any, kind: str, tmp_path: Path) -> None:
    """Cut short anywhere, or with some of its bytes changed, a file never raises anything else."""
    network = test_bit.small()
    path = tmp_path / f"a{kind}"
    if kind == ".npz":
        write_npz(path, network)
    elif kind == ".safetensors":
        write_safetensors(path, test_bit.arrays_of(network))
    else:
        network.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(60):
        if i % 2:
            content = bytearray(whole)
            places = rng.integers(0, len(whole) if i % 4 == 1 else 4000, 20)
            for at in places:
                content[at] = rng.integers(256)
        else:
            content = bytearray(whole[: rng.integers(len(whole))])
        path.write_bytes(content)
        try:
            weights.load(network, path)  # some of the bytes are numbers, or belong to nothing
        except FieldmarkError as error:
            assert str(path) in str(error)
        else:
            assert i % 2


def test_a_pickle_within_an_npz_is_not_read(target: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}, None], dtype=object))
    refused(target, tmp_path / "a.npz", "cannot be read", "allow_pickle=False")


def test_no_other_file_is_read_through_a_link(target: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.zeros(3)
    for name, link in (
        ("external", h5py.ExternalLink(tmp_path / "secret.h5", "kernel")),
        ("soft", h5py.SoftLink("/layers")),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["layers/kernel"] = link
        refused(target, tmp_path / f"{name}.h5", "kernel is a link")
    for name in ("layers", "model_weights"):
        with h5py.File(tmp_path / "top.h5", "w") as file:
            file[name] = h5py.ExternalLink(tmp_path / "secret.h5", "/")
        refused(target, tmp_path / "top.h5", f"{name} is a link")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        place = [(str(tmp_path / "secret.h5"), 0, 12)]
        file.create_dataset("a/kernel", (3,), "float32", external=place)
    refused(target, tmp_path / "raw.h5", "kernel is kept in another file")
    with h5py.File(tmp_path / "round.h5", "w") as file:
        file["a/b/c"] = file.create_group("a/b")
        file["a/b/c2"] = file["a/b"]
    refused(target, tmp_path / "round.h5", "there twice")


def test_a_small_file_with_gigabytes_in_it_is_refused(target: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a/kernel", (10**6, 10**4), "float32", chunks=True, compression="gzip")
    refused(target, tmp_path / "a.h5", "more than 2 GB")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("resnet/group_norm/gamma.npy", header.getvalue())
    refused(target, tmp_path / "a.npz")


def test_numbers_that_are_not_finite_are_refused(target: Any, tmp_path: Path) -> None:
    source = small()
    source.get_layer("post_bn").gamma.assign(np.full(64, np.nan))
    source.save_weights(tmp_path / "nan.weights.h5")
    refused(target, tmp_path / "nan.weights.h5", "no finite numbers")


def test_what_holds_no_numbers_is_refused(target: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["layers"] = np.zeros(3)
    refused(target, tmp_path / "flat.h5")
    pairs = np.zeros(3, [("a", "f4"), ("b", "f4")])
    for name, content in (("whole.h5", np.zeros(3, int)), ("text.h5", "a"), ("pairs.h5", pairs)):
        with h5py.File(tmp_path / name, "w") as file:
            file["post_bn/post_bn/gamma:0"] = content
        refused(target, tmp_path / name, "not of floating-point numbers")


def test_layers_without_names_are_refused(target: Any, tmp_path: Path) -> None:
    small().save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "a") as file:
        del file["layers/dense/vars"].attrs["name"]
    refused(target, tmp_path / "a.weights.h5", "does not name its layers")


# Downloads.


class Server:
    """A server on this machine that gives `content`, or behaves badly."""

    def __init__(self) -> None:
        self.content, self.length, self.status, self.where, self.stalls = b"", 0, 200, "", 0.0
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.send_response(server.status)
                if server.where:
                    self.send_header("Location", server.where)
                self.send_header("Content-Length", str(server.length or len(server.content)))
                self.end_headers()
                time.sleep(server.stalls)
                self.wfile.write(server.content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/resnet"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Keras' server, moved here; it gives the weights of the small network, with 3 classes."""
    served = Server()
    write_old_h5(tmp_path / "top.h5", small())
    served.content = (tmp_path / "top.h5").read_bytes()
    md5 = hashlib.md5(served.content).hexdigest()
    monkeypatch.setattr(weights, "IMAGENET_URL", served.url)
    monkeypatch.setattr(weights, "IMAGENET_MD5", {"small": (md5, md5)})
    monkeypatch.setattr(weights, "IMAGENET_CLASSES", 3)
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_imagenet_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    network = small(seed=2)
    done = weights.load(network, "imagenet")
    assert_same(small(), network)
    assert done.head
    assert done.path == tmp_path / "cache/weights/small_weights_tf_dim_ordering_tf_kernels.h5"
    assert weights.load(network, "imagenet") == done
    assert server.asked == ["/resnet/small_weights_tf_dim_ordering_tf_kernels.h5"]
    weights.load(small(classes=5), "imagenet")
    weights.load(below_head(small()), done.path)
    assert server.asked[1:] == ["/resnet/small_weights_tf_dim_ordering_tf_kernels_notop.h5"]


def test_a_damaged_file_in_the_cache_is_downloaded_again(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights.download("small", include_top=True)
    path.write_bytes(server.content[:-1] + b"!")
    weights.load(small(), "imagenet")
    assert path.read_bytes() == server.content
    assert "is damaged: it is downloaded again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"content": b"something else"}, "gave a file whose MD5 is"),
        ({"length": 10**7}, "of 10,000,000 bytes"),
        ({"status": 404}, "Not Found"),
        ({"stalls": 1.0}, "timed out"),
        ({"status": 302, "where": "http://192.0.2.1/a.h5"}, "not secure"),
        ({"status": 302, "where": "file:///etc/passwd"}, "not allowed"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    wrong: dict[str, Any],
    reason: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "TIMEOUT", 0.3)
    vars(server).update(wrong)
    with pytest.raises(FieldmarkError, match=reason):
        weights.load(small(), "imagenet")
    assert list((tmp_path / "cache/weights").iterdir()) == []


def test_a_redirect_to_a_safe_place_is_followed(server: Server) -> None:
    other = Server()
    other.content = server.content
    server.status, server.where = 302, f"{other.url}/elsewhere"
    assert weights.download("small", include_top=True).read_bytes() == server.content
    assert other.asked == ["/resnet/elsewhere"]
    other.http.shutdown()
    other.http.server_close()


def test_without_a_network_it_says_where_to_put_the_file(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(FieldmarkError, match=r"connect this machine .* put it at .*small_weights"):
        weights.load(small(), "imagenet")


def test_a_cache_that_cannot_be_written_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "file"))
    with pytest.raises(FieldmarkError, match="cannot be written"):
        weights.load(small(), "imagenet")


def test_keras_has_weights_of_its_own_networks_only() -> None:
    with pytest.raises(FieldmarkError, match="no ImageNet weights of the network bit_r50x1"):
        weights.download("bit_r50x1", include_top=True)
    from keras.src.applications import resnet

    assert resnet.BASE_WEIGHTS_PATH.rstrip("/") == weights.IMAGENET_URL
    known = weights.IMAGENET_MD5
    assert {name: resnet.WEIGHTS_HASHES[name] for name in known} == known


def test_the_cache_is_the_system_s_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIELDMARK_CACHE", raising=False)
    assert weights.folder().parts[-2:] == ("fieldmark", "weights")


# From the command line.


def keras_s(folder: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve the network as Keras does the one for ImageNet."""
    write_old_h5(folder / "notop.h5", below_head(source))
    served = Server()
    served.content = (folder / "notop.h5").read_bytes()
    md5 = hashlib.md5(served.content).hexdigest()
    monkeypatch.setattr(weights, "IMAGENET_URL", served.url)
    monkeypatch.setattr(weights, "IMAGENET_MD5", {"resnet50v2": ("", md5)})
    monkeypatch.setenv("FIELDMARK_CACHE", str(folder / "cache"))
    return "imagenet"


def big_transfer_s(folder: Path, source: Any, _: pytest.MonkeyPatch) -> str:
    write_npz(folder / "R50x1.npz", source)
    return str(folder / "R50x1.npz")


def timm_s(folder: Path, source: Any, _: pytest.MonkeyPatch) -> str:
    write_safetensors(folder / "model.safetensors", test_bit.arrays_of(source))
    return str(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build", "write"),
    [
        ("resnet50v2", resnet_v2.ResNet50V2, keras_s),
        ("bit_r50x1", bit.R50x1, big_transfer_s),
        ("bit_r50x1", bit.R50x1, timm_s),
        ("resnetv2_50", bit.ResNetV2_50, timm_s),
    ],
)
def test_a_run_begins_with_weights_from_outside(
    name: str,
    build: Callable[..., Any],
    write: Callable[[Path, Any, pytest.MonkeyPatch], str],
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = test_bit.shaken(build((32, 32, 3), 7))
    found = write(tmp_path, source, monkeypatch)
    words = ["--recipe", "probe", "--network", name, "--image-size", "32", "--weights", found]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(birds), "--out", str(tmp_path / "run"), *words])
    assert ended.value.code == 0
    run = open_run(tmp_path / "run")
    assert run.read_log()[0]["val_accuracy"] is not None
    photos = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype("float32")
    ours, theirs = (
        below_head(network).predict_on_batch(photos)
        for network in (keras.saving.load_model(run.best), source)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
