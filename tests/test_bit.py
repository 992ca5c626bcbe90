"""BiT's networks against timm's, random weights carried over in both directions."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import bit
from fieldmark.backend import keras

# timm's module of a layer of ours, within a block and outside of one.
IN_BLOCK = {
    "preact_norm": "norm1",
    "0_conv": "downsample.conv",
    "1_conv": "conv1",
    "1_norm": "norm2",
    "2_conv": "conv2",
    "2_norm": "norm3",
    "3_conv": "conv3",
}
OUTSIDE = {"conv1_conv": "stem.conv", "post_norm": "norm", "predictions": "head.fc"}


class Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which timm imports and these networks do not use.

    There is no torchvision that goes with every build of PyTorch for processors.
    """

    class Module(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            # A class for timm to derive from, each of whose attributes is its own name.
            return type("Any", (type,), {"__getattr__": lambda _, name: name})(name, (), {})

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        return Torchvision.Module(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
    """Timm's module of these networks, where timm and PyTorch are installed."""
    pytest.importorskip("torch", reason="the reference is timm on PyTorch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("the reference is timm, which is not installed")
    finder = Torchvision()
    sys.meta_path.append(finder)  # behind the others: an installed torchvision is taken
    import timm.models.resnetv2

    yield timm.models.resnetv2
    sys.meta_path.remove(finder)


def theirs(name: str) -> str:
    """Translate a layer's name into that of timm's module."""
    match = re.fullmatch(r"conv(\d)_block(\d+)_(.+)", name)
    if match is None:
        return OUTSIDE[name]
    return f"stages.{int(match[1]) - 2}.blocks.{int(match[2]) - 1}.{IN_BLOCK[match[3]]}"


def arrays_of(network: Any) -> dict[str, Any]:
    """Return a network's weights under timm's names and in PyTorch's order of axes."""
    found = {}
    for layer in network.layers:
        arrays = layer.get_weights()
        names: tuple[str, ...] = ("weight", "bias")
        if isinstance(layer, keras.layers.BatchNormalization):
            names = (*names, "running_mean", "running_var")
        elif isinstance(layer, keras.layers.Dense):
            arrays[0] = arrays[0].T[:, :, None, None]
        elif isinstance(layer, keras.layers.Conv2D):
            arrays[0] = arrays[0].transpose(3, 2, 0, 1)
        found |= {f"{theirs(layer.name)}.{n}": a for n, a in zip(names, arrays, strict=False)}
    return found


def shaken(network: Any, seed: int = 0) -> Any:
    """Move biases, scales and statistics away from the 0 and 1 of a fresh network."""
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        layer.set_weights(
            [w + rng.uniform(0, 0.5, w.shape) * (w.ndim == 1) for w in layer.get_weights()]
        )
    return network


@pytest.fixture(scope="module")
def r50x1() -> Any:
    return shaken(bit.R50x1((None, None, 3), 7))


def photos(size: int, n: int = 2) -> Any:
    return np.random.default_rng(size).uniform(-1, 1, (n, size, size, 3)).astype("float32")


@pytest.mark.parametrize(
    ("build", "name"), [(bit.R50x1, "resnetv2_50x1_bit"), (bit.ResNetV2_50, "resnetv2_50")]
)
def test_the_networks_equal_those_of_timm(timm: Any, build: Callable[..., Any], name: str) -> None:
    import torch

    network = shaken(build((None, None, 3), 7))
    reference = getattr(timm, name)(num_classes=7).eval()
    ours = arrays_of(network)
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("batches_tracked")}
    assert {k: tuple(v.shape) for k, v in state.items()} == {k: v.shape for k, v in ours.items()}
    reference.load_state_dict({k: torch.tensor(v) for k, v in ours.items()}, strict=False)
    features = keras.Model(network.input, network.get_layer("post_relu").output)
    for size in (224, 107):
        with torch.no_grad():
            batch = torch.tensor(photos(size).transpose(0, 3, 1, 2))
            expected = reference(batch).numpy()
            expected_map = reference.forward_features(batch).numpy().transpose(0, 2, 3, 1)
        # timm adds 1e-8 to a kernel's variance and BiT 1e-10, which is seen in the fifth digit.
        tolerance = 3e-5 if build is bit.R50x1 else 1e-5
        for found, wanted in (
            (network(photos(size), training=False), expected),
            (features(photos(size), training=False), expected_map),
        ):
            largest = np.abs(wanted).max()
            assert largest > 1e-3
            np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=tolerance * largest)


def test_r50x1_equals_timm_exactly_with_the_same_epsilon(timm: Any, r50x1: Any) -> None:
    import torch

    reference = timm.resnetv2_50x1_bit(num_classes=7).eval()
    reference.load_state_dict({k: torch.tensor(v) for k, v in arrays_of(r50x1).items()})
    for module in reference.modules():
        if type(module).__name__ == "StdConv2d":
            module.eps = 1e-10
    with torch.no_grad():
        wanted = reference(torch.tensor(photos(107).transpose(0, 3, 1, 2))).numpy()
    found = np.asarray(r50x1(photos(107), training=False))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


def test_the_numbers_of_parameters_are_timm_s(r50x1: Any) -> None:
    # 25.55 million with 1000 classes in timm's results; moving statistics are no parameters there
    below_the_head = 25_549_352 - 2049 * 1000
    assert r50x1.count_params() == below_the_head + 2049 * 7
    network = bit.ResNetV2_50((64, 64, 3), include_top=False)
    trained = sum(int(np.prod(w.shape)) for w in network.trainable_weights)
    assert trained == below_the_head
    assert network.output_shape == (None, 2, 2, 2048)
    assert bit.R50x1((64, 64, 3), include_top=False, pooling="avg").output_shape == (None, 2048)


def test_a_standardised_kernel_has_mean_0_and_variance_1() -> None:
    kernel = np.random.default_rng(0).normal(3, 0.02, (3, 3, 16, 8)).astype("float32")
    found = np.asarray(bit.standardised(keras.ops.convert_to_tensor(kernel)))
    wanted = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    again = np.asarray(bit.standardised(keras.ops.convert_to_tensor(found)))
    np.testing.assert_allclose(again, found, atol=1e-5)  # a folded kernel can be loaded again


def test_a_kernel_s_scale_and_shift_change_nothing() -> None:
    layer = bit.StdConv2D(4, 3, use_bias=False)
    image = photos(16, 1)
    before = np.asarray(layer(image))
    layer.set_weights([3 * layer.get_weights()[0] + 1])
    np.testing.assert_allclose(np.asarray(layer(image)), before, atol=1e-4)


def test_what_is_saved_folded_loads_without_us(r50x1: Any, tmp_path: Path) -> None:
    plain = bit.folded(r50x1)
    assert not any(isinstance(layer, bit.StdConv2D) for layer in plain.layers)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in r50x1.layers]
    plain.save(tmp_path / "plain.keras")
    code = """
import sys, keras, numpy
network = keras.saving.load_model(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("fieldmark")]
numpy.save(sys.argv[3], numpy.asarray(network(numpy.load(sys.argv[2]), training=False)))
"""
    import subprocess

    np.save(tmp_path / "in.npy", photos(75))
    words = [str(tmp_path / name) for name in ("plain.keras", "in.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=tmp_path)
    wanted = np.asarray(r50x1(photos(75), training=False))
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_network_in_training_is_saved_and_loaded_with_its_own_layer(tmp_path: Path) -> None:
    image = keras.layers.Input((16, 16, 3))
    network = keras.Model(image, bit.StdConv2D(4, 3, name="conv")(image))
    network.save(tmp_path / "training.keras")
    again = keras.saving.load_model(tmp_path / "training.keras")
    assert type(again.get_layer("conv")) is bit.StdConv2D
    np.testing.assert_array_equal(np.asarray(again(photos(16))), np.asarray(network(photos(16))))


def test_options_reach_the_layers() -> None:
    network = bit.ResNetV2_50((32, 32, 3), 4, bn_momentum=0.95, zero_init_residual=True)
    assert {layer.momentum for layer in network.layers if hasattr(layer, "momentum")} == {0.95}
    last = [layer for layer in network.layers if layer.name.endswith("_3_conv")]
    assert len(last) == 16
    assert not any(np.any(layer.get_weights()[0]) for layer in last)
    assert network.get_layer("conv2_block1_2_conv").kernel_initializer.scale == 2.0  # he_normal


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy: str) -> None:
    image = photos(32, 1)
    single = bit.R50x1((32, 32, 3), 4)
    keras.config.set_dtype_policy(policy)
    try:
        mixed = bit.R50x1((32, 32, 3), 4)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(single.get_weights())
    found, wanted = np.asarray(mixed(image)), np.asarray(single(image))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
