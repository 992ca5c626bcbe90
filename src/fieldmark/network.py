"""A network's size, its cost and its residual blocks, and a drawing of them on one page.

In: a Keras model with a graph, whatever its layers are called. Out: its parameters and
multiply-adds (`cost`), its stem, stages, blocks and head as plain data (`blocks`), and one page of
SVG (`draw`). `fieldmark network article --svg network.svg`

The analysis reads connections only. An addition of two tensors closes a residual block; the last
tensor that both depend on is the fork; of the two ways from there, the one with the k x k
convolution is the residual branch and the other the shortcut. Blocks that follow one another and
end in as many channels are a stage: a stride may stand at either end of one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fieldmark import article, bit, files, resnet_v2
from fieldmark import svg as page
from fieldmark.anatomy import Anatomy, Block, Part, Shortcut, Stage, Step
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Network

LARGEST = 4096  # pixels a side: beyond it one photo's first maps take gigabytes
MOST_CLASSES = 100_000  # ImageNet's full tree has 21,841
SMALLEST = 5  # the article's: padded by 1 on both sides, 5 pixels just fill the stem's 7x7 kernel

# Where black and white lie in what a network reads.
SCALING: dict[str, Literal["0..255", "-1..1"]] = {"article": "0..255", "small": "0..255"}

layers = keras.layers
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
NORMALISATIONS = (layers.BatchNormalization, layers.GroupNormalization, layers.LayerNormalization)
ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU)
# Products of what is computed: layers, and operations of `keras.ops`, whose classes are private.
PRODUCTS = (layers.Dot, layers.Attention, layers.AdditiveAttention)
PRODUCT_NAMES = ("Conv", "ConvTranspose", "Dot", "Einsum", "Inner", "Matmul", "Outer", "Tensordot")
# The word that the drawing uses for a layer; one that is not here keeps its class' name.
KINDS: tuple[tuple[Any, str], ...] = (
    (layers.InputLayer, "input"),
    (DEPTHWISE, "depthwise convolution"),
    (CONVOLUTIONS, "convolution"),
    (layers.MaxPooling2D, "max pooling"),
    (layers.AveragePooling2D, "average pooling"),
    (layers.GlobalAveragePooling2D, "mean over all places"),
    (layers.GlobalMaxPooling2D, "maximum over all places"),
    (NORMALISATIONS, "normalisation"),
    (layers.ZeroPadding2D, "zero padding"),
    (layers.Dense, "dense"),
)


@dataclass(frozen=True)
class Cost:
    """What a network weighs, and what one photo costs it.

    A multiply-add is one multiplication with its addition, in a convolution or a dense layer.
    Biases, normalisations, activations, poolings and the additions of the shortcuts are not
    counted: the convention of He et al. 2015 (arXiv:1512.03385, table 1, there called FLOPs).
    """

    parameters: int
    trainable: int
    non_trainable: int
    multiply_adds: int

    def __str__(self) -> str:
        """Write the counts in two lines for people."""
        trainable = f"{self.trainable:,} trainable, {self.non_trainable:,} not"
        return (
            f"{self.parameters:,} parameters ({trainable})\n"
            f"{self.multiply_adds:,} multiply-adds a photo"
        )


@dataclass(frozen=True)
class _Node:
    """One call of one layer: which earlier nodes it reads, and what shape it gives."""

    layer: Any
    sources: tuple[int, ...]
    shape: tuple[int | None, ...]  # without the batch
    parameters: int  # that no earlier node has brought in


BUILDERS: dict[Network, Callable[..., Any]] = {
    "article": article.ResNet50V2,
    "small": resnet_v2.Small,
    "resnet26v2_half": resnet_v2.ResNet26V2Half,
    "resnet50v2": resnet_v2.ResNet50V2,
    "resnet101v2": resnet_v2.ResNet101V2,
    "resnet152v2": resnet_v2.ResNet152V2,
    "bit_r50x1": bit.R50x1,
    "resnetv2_50": bit.ResNetV2_50,
}


def build(
    name: Network, *, image_size: int | None = 224, classes: int = 1000, **options: Any
) -> Any:
    """Build a network by its name, untrained, for square photos of `image_size` pixels.

    Without a size it takes photos of any. `options` are the ones that the network has. Raises
    FieldmarkError for an unknown name and for a size or count that the network cannot take.
    """
    if name not in BUILDERS:
        raise FieldmarkError(f"No network is called {name!r}: choose {', '.join(BUILDERS)}.")
    smallest = SMALLEST if name == "article" else 1
    if image_size is not None and image_size < smallest:
        raise FieldmarkError(
            f"The network {name!r} cannot take photos of {image_size} pixels a side: "
            f"name a size of {smallest} or more (224 is the custom)."
        )
    if image_size is not None and image_size > LARGEST:
        raise FieldmarkError(f"Photos of {image_size} pixels a side: name {LARGEST} or fewer.")
    if not 1 <= classes <= MOST_CLASSES:
        raise FieldmarkError(f"{classes} classes: name at least one and at most {MOST_CLASSES}.")
    shape = (image_size, image_size, 3)
    return BUILDERS[name](shape, classes, **options)


def for_training(name: Network, *, image_size: int | None, classes: int) -> Any:
    """Build a network as a training that is not the article's begins with it.

    Blocks begin as nothing but their shortcuts, kernels as He et al. 2015 (arXiv:1502.01852) draw
    them for ReLU, and the normalisation's moving statistics follow within some thirty steps, of
    which a few hundred photos have as many an epoch (`resnet_v2.Options`).
    """
    options = {"bn_momentum": 0.9, "zero_init_residual": True, "initializer": "he_normal"}
    if name in ("article", "small", "bit_r50x1"):  # the literal one, and two that have no choice
        options = {}
    return build(name, image_size=image_size, classes=classes, **options)


def summary(model: Any) -> str:
    """Return Keras' table of the layers, 100 columns wide wherever it goes."""
    lines: list[str] = []
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # where there is no terminal, the table would be cut at 80
    try:
        model.summary(print_fn=lines.append, line_length=100)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(lines).rstrip()


def cost(model: Any) -> Cost:
    """Count a model's parameters, and the multiply-adds of one photo.

    Raises FieldmarkError where the model's image size is open, or a layer multiplies in a way that
    is not known here: a count that leaves something out would look like a whole one.
    """
    nodes = _trace(model)
    return Cost(
        parameters=model.count_params(),
        trainable=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        non_trainable=sum(math.prod(weight.shape) for weight in model.non_trainable_weights),
        multiply_adds=sum(map(_multiply_adds, nodes)),
    )


def blocks(model: Any) -> Anatomy:
    """Find a model's stem, its stages of residual blocks, and its head.

    The parts are cut at each stage's last addition, so that their parameters and multiply-adds
    sum to the model's. Shapes are (height, width, channels). Raises FieldmarkError where there is
    no residual block, or where channels come first.
    """
    nodes = _trace(model)
    if any(getattr(node.layer, "data_format", None) == "channels_first" for node in nodes):
        raise FieldmarkError(
            f"{model.name} has its channels first, and only networks with channels last can be "
            "drawn: build it after  keras.config.set_image_data_format('channels_last')"
        )
    above = _ancestors(nodes)
    found = _residual_blocks(nodes, above)
    if not found:
        raise FieldmarkError(
            f"{model.name} has no residual block: no addition joins two ways from one tensor, so "
            "there is nothing to draw block by block."
        )
    seen = above[found[0].entry]
    stem = _part(nodes, seen)
    stages = []
    for _, members in groupby(found, key=lambda one: one.block.shape[-1]):
        group = list(members)
        end = above[group[-1].place]
        part = _part(nodes, end & ~seen)
        stages.append(Stage(tuple(one.block for one in group), part.parameters, part.multiply_adds))
        seen |= end
    return Anatomy(stem, tuple(stages), _part(nodes, ~seen))


def svg(model: Any, *, title: str) -> str:
    """Draw a model block by block: one page of SVG that needs nothing beside it."""
    return page.draw(blocks(model), title=title)


def draw(model: Any, file: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Write the drawing to a file, whole or not at all; without a title it bears the model's name.

    Raises FieldmarkError where the file cannot be written.
    """
    files.refuse_another(Path(file), "<svg", "<?xml")
    drawing = svg(model, title=title or model.name)
    with files.whole_file(Path(file)) as temporary:
        temporary.write_text(drawing, encoding="utf-8")


def _trace(model: Any) -> list[_Node]:
    """List the calls of a model's layers, each after those that it reads."""
    nodes: list[_Node] = []
    _follow(model, nodes, ())
    return nodes


def _follow(model: Any, nodes: list[_Node], entries: Sequence[int]) -> list[int]:
    """Add a model's calls to `nodes` and return the places of its outputs there.

    `entries` are the places of what is fed to it, where it is itself a layer of another model:
    its own layers then stand in its place.
    """
    try:
        graph = keras.Model(model.inputs, model.outputs)  # so a Sequential has a graph too
    except (AttributeError, ValueError) as error:
        raise FieldmarkError(
            f"{model.name} has no graph of layers to read: build it with Keras' functional "
            "interface, or call it on a photo first where it is a Sequential."
        ) from error
    places = dict(zip(map(id, graph.inputs), entries, strict=False))
    # Keras has no public way from a tensor to the call that made it; its own `plot_model` reads
    # private lists as well. Depth counts from the outputs, so the deepest calls come first.
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for call in graph._nodes_by_depth[depth]:
            if call.is_input and id(call.output_tensors[0]) in places:
                continue  # what is fed to the model stands in its place
            sources = tuple(places[id(tensor)] for tensor in call.input_tensors)
            ends: Iterable[int]
            if isinstance(call.operation, keras.Model):
                ends = _follow(call.operation, nodes, sources)
            else:
                ends = repeat(len(nodes))
                layer = call.operation
                again = any(node.layer is layer for node in nodes)
                parameters = 0 if again or not hasattr(layer, "weights") else layer.count_params()
                shape = call.output_tensors[0].shape[1:]
                nodes.append(_Node(layer, sources, shape, parameters))
            places |= zip(map(id, call.output_tensors), ends, strict=False)
    return [places[id(tensor)] for tensor in graph.outputs]


def _multiply_adds(node: _Node) -> int:
    """Count a node's multiply-adds: the values it gives, times those that each is summed from."""
    layer = node.layer
    terms: int
    if isinstance(layer, (*CONVOLUTIONS, layers.Dense)):
        # The kernel is (..., input channels of one group, filters): each value is a sum over all
        # but the filters, and groups are in it already.
        terms = math.prod(layer.kernel.shape[:-1])
    elif isinstance(layer, DEPTHWISE):
        terms = math.prod(layer.kernel.shape[:-2])  # each channel by itself
    elif (
        isinstance(layer, PRODUCTS)
        or type(layer).__name__ in PRODUCT_NAMES
        or any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
    ):
        raise FieldmarkError(
            f"The multiply-adds of layer {layer.name} ({type(layer).__name__}) cannot be counted: "
            "known are convolutions, depthwise convolutions and dense layers."
        )
    else:
        return 0
    sizes = [size for size in node.shape if size is not None]
    if len(sizes) < len(node.shape):
        raise FieldmarkError(
            f"The multiply-adds of layer {layer.name} depend on the size of the photo, which the "
            "network leaves open: build it for one size."
        )
    return terms * math.prod(sizes)


def _ancestors(nodes: Sequence[_Node]) -> list[int]:
    """Give each node's ancestors and itself as a set of bits: bit 3 stands for node 3."""
    above: list[int] = []
    for place, node in enumerate(nodes):
        bits = 1 << place
        for source in node.sources:
            bits |= above[source]
        above.append(bits)
    return above


class _Found(NamedTuple):
    """A residual block and where it lies: its raw input and its addition."""

    entry: int
    place: int
    block: Block


def _residual_blocks(nodes: Sequence[_Node], above: Sequence[int]) -> list[_Found]:
    """Find the additions of two tensors that depend on a common one, in order."""
    found: list[_Found] = []
    for place, node in enumerate(nodes):
        # By name, so that `keras.layers.Add`, `keras.ops.add` and a plain `+` are all found; a
        # constant added (`x + 1`) is no second source.
        if type(node.layer).__name__ == "Add" and len(node.sources) == 2:
            one, other = node.sources
            if above[one] & above[other]:
                found.append(_residual_block(nodes, above, place, number=len(found) + 1))
    return found


def _residual_block(
    nodes: Sequence[_Node], above: Sequence[int], place: int, *, number: int
) -> _Found:
    """Describe the block that the addition at `place` closes."""
    one, other = nodes[place].sources
    fork = (above[one] & above[other]).bit_length() - 1  # the last that both depend on
    ways = [
        [nodes[at] for at in range(fork + 1, end + 1) if above[end] >> at & above[at] >> fork & 1]
        for end in (one, other)
    ]
    shortcut, residual = sorted(ways, key=_weight)
    entry = fork
    preactivation: tuple[str, ...] = ()
    if isinstance(nodes[fork].layer, ACTIVATIONS):
        before = nodes[fork].sources[0]
        if isinstance(nodes[before].layer, NORMALISATIONS):
            entry = nodes[before].sources[0]
            preactivation = (_kind(nodes[before]), _kind(nodes[fork]))
    return _Found(
        entry,
        place,
        Block(
            number=number,
            name=nodes[place].layer.name,
            residual=_convolutions(residual),
            shape=nodes[place].shape,
            shortcut=Shortcut(tuple(map(_step, shortcut)), preactivation),
        ),
    )


def _weight(way: Sequence[_Node]) -> tuple[bool, int, int]:
    """Rank the two ways through a block: the residual branch is the heavier one."""
    kernels = [layer.kernel_size for layer in (node.layer for node in way) if _convolves(layer)]
    return any(max(kernel) > 1 for kernel in kernels), len(kernels), len(way)


def _convolves(layer: Any) -> bool:
    return isinstance(layer, (*CONVOLUTIONS, *DEPTHWISE))


def _convolutions(way: Sequence[_Node]) -> tuple[Step, ...]:
    """Keep the convolutions and poolings of a branch, each with what it has gone through before."""
    steps = []
    before: list[_Node] = []
    for node in way:
        if isinstance(node.layer, (*NORMALISATIONS, *ACTIVATIONS)):
            before.append(node)
        elif hasattr(node.layer, "strides"):
            steps.append(replace(_step(node), before=tuple(map(_kind, before))))
            before = []
    return tuple(steps)


def _part(nodes: Sequence[_Node], bits: int) -> Part:
    """Sum up the nodes in a set of bits."""
    members = [node for place, node in enumerate(nodes) if bits >> place & 1]
    return Part(
        steps=tuple(map(_step, members)),
        parameters=sum(node.parameters for node in members),
        multiply_adds=sum(map(_multiply_adds, members)),
    )


def _step(node: _Node) -> Step:
    layer = node.layer
    kernel = getattr(layer, "kernel_size", getattr(layer, "pool_size", ()))
    fused = getattr(layer, "activation", None) if not isinstance(layer, ACTIVATIONS) else None
    return Step(
        name=layer.name,
        kind=_kind(node),
        kernel=tuple(kernel),
        strides=tuple(getattr(layer, "strides", ())),
        shape=node.shape,
        activation="" if fused in (None, keras.activations.linear) else fused.__name__,
    )


def _kind(node: _Node) -> str:
    """Name what a layer does, in the drawing's words."""
    layer = node.layer
    if isinstance(layer, ACTIVATIONS):
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
        return "ReLU" if name == "relu" else str(name)
    return next((word for kind, word in KINDS if isinstance(layer, kind)), type(layer).__name__)
