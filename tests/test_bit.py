"""BiT's networks against timm's, random weights carried over in both directions."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
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
    found: dict[str, Any] = {}
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


def reference_of(timm: Any, name: str, network: Any) -> Any:
    """Build timm's network with the weights of ours, each of its arrays given exactly one."""
    import torch

    reference = getattr(timm, name)(num_classes=7).eval()
    ours = arrays_of(network)
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("batches_tracked")}
    assert {k: tuple(v.shape) for k, v in state.items()} == {k: v.shape for k, v in ours.items()}
    reference.load_state_dict({k: torch.tensor(v) for k, v in ours.items()}, strict=False)
    return reference


@pytest.mark.parametrize(
    ("build", "name"), [(bit.R50x1, "resnetv2_50x1_bit"), (bit.ResNetV2_50, "resnetv2_50")]
)
def test_the_networks_equal_those_of_timm(timm: Any, build: Callable[..., Any], name: str) -> None:
    import torch

    network = shaken(build((None, None, 3), 7))
    reference = reference_of(timm, name, network)
    for size in (224, 107):
        with torch.no_grad():
            expected = reference(torch.tensor(photos(size).transpose(0, 3, 1, 2))).numpy()
        found = keras.ops.convert_to_numpy(network(photos(size), training=False))
        largest = np.abs(expected).max()
        assert largest > 1e-3
        # timm adds 1e-8 to a kernel's variance and BiT 1e-10, which is seen in the fifth digit.
        tolerance = 1e-4 if build is bit.R50x1 else 1e-5
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "name"), [(bit.R50x1, "resnetv2_50x1_bit"), (bit.ResNetV2_50, "resnetv2_50")]
)
def test_with_double_precision_the_feature_maps_are_the_same_to_nine_digits(
    timm: Any, build: Callable[..., Any], name: str
) -> None:
    import torch

    keras.config.set_dtype_policy("float64")
    try:
        network = shaken(build((None, None, 3), 7))
    finally:
        keras.config.set_dtype_policy("float32")
    reference = reference_of(timm, name, network).double()
    reference.load_state_dict(
        {k: torch.tensor(v) for k, v in arrays_of(network).items()}, strict=False
    )
    for module in reference.modules():
        if type(module).__name__ == "StdConv2d":
            module.eps = 1e-10
    ends = [f"conv{i}_block{n}_out" for i, n in zip((2, 3, 4, 5), bit.DEPTHS, strict=True)]
    outputs = [network.get_layer(layer).output for layer in [*ends, "post_relu"]]
    for size in (64, 107):
        image = photos(size).astype("float64")
        with torch.no_grad():
            batch = torch.tensor(image.transpose(0, 3, 1, 2))
            last, maps = reference.forward_intermediates(batch, indices=[1, 2, 3, 4], norm=False)
        found = keras.Model(network.input, outputs)(image, training=False)
        for ours, theirs_ in zip(found, [*maps, last], strict=True):
            wanted = theirs_.numpy().transpose(0, 2, 3, 1)
            np.testing.assert_allclose(
                keras.ops.convert_to_numpy(ours), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max()
            )


def test_the_numbers_of_parameters_are_timm_s(r50x1: Any) -> None:
    # 25.55 million with 1000 classes in timm's results; moving statistics are no parameters there
    below_the_head = 25_549_352 - 2049 * 1000
    assert r50x1.count_params() == below_the_head + 2049 * 7
    network = bit.ResNetV2_50((64, 64, 3), include_top=False)
    trained = sum(int(np.prod(w.shape)) for w in network.trainable_weights)
    assert trained == below_the_head
    assert network.output_shape == (None, 2, 2, 2048)


def test_a_standardised_kernel_has_mean_0_and_variance_1() -> None:
    kernel = np.random.default_rng(0).normal(0.1, 0.02, (3, 3, 16, 8)).astype("float32")
    found = keras.ops.convert_to_numpy(bit.standardised(keras.ops.convert_to_tensor(kernel)))
    wanted = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    again = keras.ops.convert_to_numpy(bit.standardised(keras.ops.convert_to_tensor(found)))
    np.testing.assert_allclose(again, found, atol=1e-5)  # a folded kernel can be loaded again


def test_a_kernel_s_scale_and_shift_change_nothing() -> None:
    layer = bit.StdConv2D(4, 3, use_bias=False)
    image = photos(16, 1)
    before = keras.ops.convert_to_numpy(layer(image))
    layer.set_weights([3 * layer.get_weights()[0] + 1])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(image)), before, atol=1e-4)


def test_a_folded_network_gives_the_same(r50x1: Any) -> None:
    plain = bit.folded(r50x1)
    assert not any(isinstance(layer, bit.StdConv2D) for layer in plain.layers)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in r50x1.layers]
    assert plain.name == r50x1.name
    wanted = keras.ops.convert_to_numpy(r50x1(photos(75), training=False))
    found = keras.ops.convert_to_numpy(plain(photos(75), training=False))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def small() -> Any:
    """Build a network of three blocks of BiT's kind."""
    conv = partial(bit.StdConv2D, use_bias=False)
    norm = partial(keras.layers.GroupNormalization, groups=32, epsilon=1e-5)
    image = keras.layers.Input((None, None, 3))
    x = conv(32, 7, strides=2, name="conv1_conv")(image)
    x = bit.body(x, bit.Parts(conv, conv, norm), blocks=(1, 2), filters=32)
    return shaken(keras.Model(image, bit.top(x, 5), name="small_bit"))


@pytest.mark.slow
def test_what_is_saved_folded_loads_without_us(tmp_path: Path) -> None:
    network = small()
    bit.folded(network).save(tmp_path / "plain.keras")
    np.save(tmp_path / "in.npy", photos(75))
    code = """
import sys, keras, numpy
network = keras.saving.load_model(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("fieldmark")]
found = network(numpy.load(sys.argv[2]), training=False)
numpy.save(sys.argv[3], keras.ops.convert_to_numpy(found))
"""
    words = [str(tmp_path / name) for name in ("plain.keras", "in.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=tmp_path)
    wanted = keras.ops.convert_to_numpy(network(photos(75), training=False))
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_network_in_training_is_saved_and_loaded_with_its_own_layer(tmp_path: Path) -> None:
    image = keras.layers.Input((16, 16, 3))
    network = keras.Model(image, bit.StdConv2D(4, 3, name="conv")(image))
    network.save(tmp_path / "training.keras")
    again = keras.saving.load_model(tmp_path / "training.keras")
    assert type(again.get_layer("conv")) is bit.StdConv2D
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(again(photos(16))),
        keras.ops.convert_to_numpy(network(photos(16))),
    )


def test_options_reach_the_layers() -> None:
    network = bit.ResNetV2_50((32, 32, 3), 4, bn_momentum=0.95, zero_init_residual=True)
    assert {layer.momentum for layer in network.layers if hasattr(layer, "momentum")} == {0.95}
    last = [layer for layer in network.layers if layer.name.endswith("_3_conv")]
    assert len(last) == 16
    assert not any(np.any(layer.get_weights()[0]) for layer in last)
    assert network.get_layer("conv2_block1_2_conv").kernel_initializer.scale == 2.0  # he_normal


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy: str) -> None:
    layer = bit.StdConv2D(8, 3, dtype=policy)
    found = layer(photos(16))
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
    plain = bit.StdConv2D(8, 3)
    plain.build((None, 16, 16, 3))
    plain.set_weights(layer.get_weights())
    wanted = keras.ops.convert_to_numpy(plain(photos(16)))
    error = np.abs(keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")) - wanted).max()
    assert error < 0.01 * np.abs(wanted).max()  # bfloat16 has eight bits


def test_logits_are_float32_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = bit.R50x1((32, 32, 3), 4)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.get_layer("post_relu").output.dtype == "bfloat16"
    assert network.output.dtype == "float32"
