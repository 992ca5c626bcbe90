"""Where in a photo a network sees what speaks for a class: Grad-CAM, and a picture of it.

In: a functional Keras network that ends in a mean over all places and a Dense layer, and its
inputs. Out: `Mapper`, which finds the last feature map by its layer's name and computes it; `maps`,
the heat map of any class; `overlay`, a map over its photo. `fieldmark explain RUN` makes them.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs the channels of the last feature map A by
the mean gradient of the class' logit, sums them up, and keeps what is positive. In these networks
the logit of class c is bias[c] + mean over the places of A @ kernel[:, c]. So its gradient is
kernel[:, c] / (h w) at each of the h w places, and the map is relu(A @ kernel[:, c]) but for that
factor: class activation mapping (Zhou et al. 2016, arXiv:1512.04150). No backend's gradient is
needed; the tests hold the maps against those of all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from fieldmark import inference
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError

Floats = NDArray[np.float32]

layers = keras.layers
# What may stand between the mean and the Dense layer: outside of training they change no value.
PASSED_ON = (layers.Flatten, layers.Dropout)

# Dark to bright in even steps, whatever colours an eye can tell apart; it lies over a grey photo,
# so that a colour is the map's and never the photo's.
COLOURS = "inferno"
OPAQUE = 0.7  # how much of the photo is covered where the map is strongest
CONTOUR = 0.5  # a white line runs where the map is this share of its peak
GREYS = (40, 200)  # black and white in the grey photo, so that neither is taken for map or line


class Geometry(NamedTuple):
    """Where the cells of a feature map lie: the centre of cell i is at pixel start + stride * i.

    Pixels are counted by their centres, from 0.
    """

    start: float
    stride: int

    def centres(self, cells: int) -> NDArray[np.float64]:
        """Return the pixels at the centres of so many cells in a row."""
        return self.start + self.stride * np.arange(cells, dtype=np.float64)


class Maps(NamedTuple):
    """Heat maps of n photos for q classes each."""

    values: Floats  # (n, q, h, w), 0 to 1; the peak of each is 1, or nothing speaks for the class
    # What the peak says for the class, (n, q): were it so everywhere, the logit would be this above
    # the bias. 0 where nothing speaks for it.
    strengths: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mapper:
    """A network's last feature map, and what its classifier reads of it; made by `of`."""

    network: Any
    features: Any  # the layer whose output is the last feature map
    kernel: Floats  # (k, c), the classifier's
    bias: Floats  # (c,)
    geometry: Geometry  # of the feature map's cells

    @classmethod
    def of(cls, network: Any) -> Mapper:
        """Find the last feature map.

        Raises a FieldmarkError for a network that ends otherwise, or whose weights are damaged.
        """
        made_by = producers(network)
        classifier = network.layers[-1]
        if not isinstance(classifier, layers.Dense):
            raise unlike(network)
        below = made_by.get(id(classifier.input))
        while isinstance(below, PASSED_ON):
            below = made_by.get(id(below.input))
        if not isinstance(below, layers.GlobalAveragePooling2D):
            raise unlike(network)
        features = made_by.get(id(below.input))
        if features is None:
            raise unlike(network)
        kernel = inference.values_of(classifier.kernel).astype(np.float32)
        bias = np.zeros(kernel.shape[1], np.float32)
        if classifier.use_bias:
            bias = inference.values_of(classifier.bias).astype(np.float32)
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise damaged(f"weights of its layer {classifier.name}")
        return cls(network, features, kernel, bias, traced(network, features, made_by))

    @property
    def layer(self) -> str:
        """The name of the layer whose output is the last feature map."""
        return str(self.features.name)

    @cached_property
    def forward(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """The compiled network below the mean: inputs (n, h, w, 3) -> feature maps."""
        return inference.forward(keras.Model(self.network.input, self.features.output))

    def __call__(self, inputs: NDArray[Any]) -> Floats:
        """Return the last feature map of inputs (n, h, w, 3), (n, h', w', k).

        Raises a FieldmarkError where it holds anything but finite numbers.
        """
        found = self.forward(inputs).astype(np.float32)
        if not np.isfinite(found).all():
            raise damaged(f"values of its feature map {self.layer}")
        return found

    def logits(self, feature_map: Floats) -> NDArray[np.float64]:
        """Return the logits (n, c), before any softmax, of feature maps (n, h', w', k)."""
        return pooled(feature_map) @ self.kernel + self.bias

    def enlarged(self, values: Floats, side: int) -> Floats:
        """Return maps (..., h', w') of squares of `side` pixels in their size, (..., side, side).

        Bilinear between the centres of the cells. These are not spread evenly over the square: a
        convolution that pads all sides alike and strides begins at the border, and the cells of
        the family lie at pixels 0, 32, 64, ...
        """
        rows, columns = (
            interpolation(self.geometry.centres(cells), side) for cells in values.shape[-2:]
        )
        return np.asarray(rows @ values @ columns.T, np.float32)


class Peak(NamedTuple):
    """Where a map (side, side) is strongest, and how much of it is at least half as strong."""

    down: int  # 0, 1 or 2: which third of the photo
    across: int
    share: float

    @classmethod
    def of(cls, heat: Floats) -> Peak | None:
        """Return the peak of a map; of one that is nothing everywhere, none."""
        if not heat.any():
            return None
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        share = float((heat >= CONTOUR).mean())
        return cls(3 * int(row) // len(heat), 3 * int(column) // len(heat), share)


def pooled(feature_map: Floats) -> NDArray[np.float64]:
    """Return the mean over the places of feature maps (n, h, w, k), (n, k)."""
    return np.asarray(feature_map.mean(axis=(1, 2), dtype=np.float64))


def maps(feature_map: Floats, kernel: Floats, classes: NDArray[np.integer[Any]]) -> Maps:
    """Return the heat maps of feature maps (n, h, w, k) for the class numbers (n, q).

    `kernel`, (k, c), is the classifier's. A row of class numbers alone, (q,), is for all photos.
    """
    asked = np.broadcast_to(classes, (len(feature_map), np.shape(classes)[-1]))
    weights = kernel.T.astype(np.float64)[asked]  # (n, q, k)
    evidence = np.einsum("nhwk,nqk->nqhw", feature_map.astype(np.float64), weights, optimize=True)
    found = np.maximum(evidence, 0)  # what speaks against the class is left out
    peaks = found.max(axis=(2, 3), keepdims=True)
    values = np.divide(found, peaks, out=np.zeros_like(found), where=peaks > 0)
    return Maps(values.astype(np.float32), peaks[..., 0, 0])


def overlay(square: NDArray[np.uint8], heat: Floats) -> NDArray[np.uint8]:
    """Return a photo (h, w, 3) in grey with a map (h, w), 0 to 1, in colour over it.

    The stronger the map, the brighter its colour and the less of the photo is seen through it. A
    map of nothing leaves the grey photo.
    """
    light = square @ np.array((0.299, 0.587, 0.114)) / 255  # ITU-R BT.601
    grey = (GREYS[0] + light * (GREYS[1] - GREYS[0]))[..., None]
    colours = 255 * colormaps[COLOURS](heat)[..., :3]  # (h, w, 3)
    mixed = grey + OPAQUE * heat[..., None] * (colours - grey)
    mixed[outline(heat >= CONTOUR)] = 255
    return np.asarray(np.round(mixed), np.uint8)


# ---- parts --------------------------------------------------------------------------------------


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the border pixels of a region, (h, w); the edge of the square is no border."""
    around = np.pad(inside, 1, mode="edge")
    core = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~core


def interpolation(centres: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return what each of `side` pixels in a row takes of each cell, (side, cells).

    Outside of the outermost centres it is the outermost cell.
    """
    pixels = np.arange(side)
    columns = [np.interp(pixels, centres, one) for one in np.eye(len(centres))]
    return np.stack(columns, axis=1)


def unlike(network: Any) -> FieldmarkError:
    """Say that a network is not built as it must be for its maps to be found."""
    return FieldmarkError(
        f"The network {network.name} is no plain graph of layers that ends in a mean over all "
        "places and a Dense layer, and its maps are found by that: take one of those that "
        "`fieldmark network --help` names."
    )


def damaged(what: str) -> FieldmarkError:
    """Say that a network computes no numbers."""
    return FieldmarkError(
        f"The network has {what} that are no finite numbers: it is damaged or was trained too "
        "fast, so take another run."
    )


def producers(network: Any) -> dict[int, Any]:
    """Return the layer that makes each tensor of a functional network, by the tensor's `id`."""
    try:
        return {id(layer.output): layer for layer in network.layers}
    except AttributeError as error:  # Keras' word for layers that were never put into a graph
        raise unlike(network) from error


def traced(network: Any, features: Any, made_by: Mapping[int, Any]) -> Geometry:
    """Follow a layer back to the photo and add up paddings, kernels and strides.

    After Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks"
    (distill.pub). All ways through a residual block are centred alike, so one of them suffices.
    Sides are taken to be equal. `made_by` is what `producers` returns.
    """
    way = [features]
    while not isinstance(way[-1], layers.InputLayer):
        source = way[-1].input
        maker = made_by.get(id(source[0] if isinstance(source, list) else source))
        if maker is None or maker in way:  # a layer that is called twice
            raise unlike(network)
        way.append(maker)
    start, stride = 0.0, 1
    for layer in reversed(way):
        if isinstance(layer, layers.ZeroPadding2D):
            start -= layer.padding[0][0] * stride
        size = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
        if size is None:
            continue
        reach = (size[0] - 1) * getattr(layer, "dilation_rate", (1,))[0]  # pixels between the ends
        step = layer.strides[0]
        # "same" pads so that a side that the stride divides gives all its places.
        before = max(reach + 1 - step, 0) // 2 if layer.padding == "same" else 0
        start += (reach / 2 - before) * stride
        stride *= step
    return Geometry(start, stride)
