"""Counts against counts made by hand, blocks against the papers, and every text in its place."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fieldmark import network
from fieldmark import svg as page
from fieldmark.anatomy import Anatomy, Block, Shortcut, Stage, Step, by
from fieldmark.backend import keras
from fieldmark.errors import FieldmarkError

TABLE = Path(__file__).parent / "article_summary.csv"
SVG = "{http://www.w3.org/2000/svg}"
layers = keras.layers


@pytest.fixture(scope="module")
def article() -> Any:
    return network.build("article", classes=4)


@pytest.fixture(scope="module")
def reference() -> Any:
    """Keras' own; the one of `build` is held equal to it in `test_resnet_v2.py`."""
    return keras.applications.ResNet50V2(weights=None, classes=4)


@pytest.fixture(scope="module")
def article_blocks(article: Any) -> Anatomy:
    return network.blocks(article)


@pytest.fixture(scope="module")
def reference_blocks(reference: Any) -> Anatomy:
    return network.blocks(reference)


# ---------------------------------------------------------------- building


def test_the_smallest_photo_is_taken_and_a_smaller_one_refused() -> None:
    model = network.build("article", image_size=network.SMALLEST, classes=2)
    assert model.output_shape == (None, 2)
    with pytest.raises(FieldmarkError, match="4 pixels a side"):
        network.build("article", image_size=network.SMALLEST - 1)
    assert network.build("small", image_size=1, classes=2).output_shape == (None, 2)
    with pytest.raises(FieldmarkError, match="0 pixels a side"):
        network.build("resnet50v2", image_size=0)


def test_no_class_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(FieldmarkError, match="at least one"):
        network.build("article", classes=0)
    with pytest.raises(FieldmarkError, match="'resnet'"):
        network.build("resnet", classes=4)  # type: ignore[arg-type]


# ---------------------------------------------------------------- counting


def test_cost_of_a_small_network_by_hand() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same"),  # (8, 8, 4) from 3 * 3 * 3 each
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),  # (6, 6, 4) from 3 * 3 each
            layers.Conv2D(8, 3, strides=2, groups=2, padding="same"),  # (3, 3, 8) from 3 * 3 * 2
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),  # 5 from 8 each
        ]
    )
    counted = network.cost(model)
    assert counted.multiply_adds == 8 * 8 * 4 * 27 + 6 * 6 * 4 * 9 + 3 * 3 * 8 * 18 + 5 * 8
    assert counted.trainable == (108 + 4) + (4 + 4) + (36 + 4) + (144 + 8) + (40 + 5)
    assert counted.non_trainable == 4 + 4  # the moving mean and variance
    assert counted.parameters == counted.trainable + counted.non_trainable
    assert str(counted).endswith(f"{counted.multiply_adds:,} multiply-adds a photo")


def test_a_layer_called_twice_costs_twice_and_weighs_once() -> None:
    image = keras.Input((4, 4, 3))
    shared = layers.Conv2D(3, 1, use_bias=False)
    model = keras.Model(image, shared(shared(image)))
    assert network.cost(model).multiply_adds == 2 * 4 * 4 * 9
    assert network.cost(model).parameters == 9


def test_a_layer_shared_by_two_stages_weighs_once() -> None:
    image = x = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 1)
    x = layers.Add()([x, layers.Conv2D(4, 3, padding="same")(shared(x))])
    y = layers.Conv2D(8, 1)(shared(x))
    x = layers.Add()([layers.Conv2D(8, 1)(x), y])
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    found = network.blocks(model)
    assert len(found.stages) == 2
    parts = (found.stem, *found.stages, found.head)
    assert sum(part.parameters for part in parts) == network.cost(model).parameters


def test_a_model_used_as_a_layer_is_looked_into() -> None:
    inner_image = keras.Input((8, 8, 4))
    inner = keras.Model(inner_image, inner_image + layers.Conv2D(4, 3, padding="same")(inner_image))
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, name="stem")(image)
    outer = keras.Model(image, layers.GlobalAveragePooling2D()(inner(x)))
    assert network.cost(outer).multiply_adds == 8 * 8 * 4 * 3 + 8 * 8 * 4 * 36
    found = network.blocks(outer)
    assert [step.name for step in found.stem.steps][1:] == ["stem"]
    assert [block.shortcut.kind for block in found.blocks] == ["identity"]
    assert found.head.steps[-1].kind == "mean over all places"


def test_what_cannot_be_counted_is_refused() -> None:
    image = keras.Input((8, 8, 3))
    with pytest.raises(FieldmarkError, match="Conv2DTranspose"):
        network.cost(keras.Model(image, layers.Conv2DTranspose(2, 3)(image)))
    rows = layers.Reshape((64, 3))(image)
    for product in (
        layers.Dot(axes=2)([rows, rows]),
        layers.Attention()([rows, rows]),
        keras.ops.matmul(rows, keras.ops.transpose(rows, (0, 2, 1))),
        keras.ops.einsum("nij,nkj->nik", rows, rows),
    ):
        with pytest.raises(FieldmarkError, match="cannot be counted"):
            network.cost(keras.Model(image, product))
    free = keras.Input((None, None, 3))
    with pytest.raises(FieldmarkError, match="leaves open"):
        network.cost(keras.Model(free, layers.Conv2D(2, 3)(free)))

    class Opaque(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(FieldmarkError, match="no graph"):
        network.cost(Opaque())


def test_cost_of_the_article_from_its_own_table(article: Any) -> None:
    """Each convolution there has a bias a channel; the rest of its parameters is its kernel."""
    total = 0
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            *places, channels = map(int, row["output_shape"].split("x"))
            if row["type"] == "Conv2D":
                total += places[0] * places[1] * (int(row["params"]) - channels)
            elif row["type"] == "Dense":
                total += int(row["params"]) - channels
    counted = network.cost(article)
    assert counted.multiply_adds == total == 5_030_974_208
    assert counted == network.Cost(35_969_668, 35_927_172, 42_496, total)


def test_cost_of_the_reference_from_the_paper(reference: Any) -> None:
    """Table 1 of He et al. 2015, but for Keras' strides: on the last block of three stages."""
    total = 112**2 * 64 * 7 * 7 * 3
    width, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        middle, out = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            last = block == blocks - 1 and stage < 3
            after = size // 2 if last else size
            total += size**2 * width * middle
            total += after**2 * middle * (9 * middle + out)
            total += size**2 * width * out if block == 0 else 0
            width, size = out, after
    total += 2048 * 4
    assert network.cost(reference).multiply_adds == total == 3_480_215_552


def test_the_parts_sum_to_the_whole(
    article: Any, article_blocks: Anatomy, reference: Any, reference_blocks: Anatomy
) -> None:
    for model, found in ((article, article_blocks), (reference, reference_blocks)):
        counted = network.cost(model)
        assert sum(part.parameters for part in found.parts) == counted.parameters
        assert sum(part.multiply_adds for part in found.parts) == counted.multiply_adds


# ---------------------------------------------------------------- blocks


def shapes(found: Anatomy) -> list[tuple[int | None, ...]]:
    return [block.shape for block in found.blocks]


def strided(found: Anatomy) -> list[int]:
    return [b.number for b in found.blocks if any(step.stride == "2" for step in b.residual)]


def test_blocks_of_the_article(article_blocks: Anatomy) -> None:
    found = article_blocks
    assert [len(stage.blocks) for stage in found.stages] == [3, 4, 5, 3]
    assert [block.name for block in found.blocks] == [f"add{n}" for n in range(1, 16)]
    assert strided(found) == [3, 7, 12]
    assert not any(block.shortcut.preactivation for block in found.blocks)
    kinds = {block.number: block.shortcut.kind for block in found.blocks}
    assert kinds.pop(3) == kinds.pop(7) == "1×1 convolution, stride 2"
    assert kinds.pop(12) == "1×1 pooling, stride 2, then 1×1 convolution"
    assert set(kinds.values()) == {"1×1 convolution"}
    assert shapes(found)[:4] == [(55, 55, 256), (55, 55, 256), (28, 28, 256), (28, 28, 512)]
    # Oddity 2: the reference has no normalisation in its stem.
    assert [step.kind for step in found.stem.steps] == [
        *("input", "zero padding", "convolution", "normalisation", "ReLU"),
        *("zero padding", "max pooling"),
    ]
    assert found.head.steps[-1].words == "dense, softmax"


def test_blocks_of_the_reference(reference_blocks: Anatomy) -> None:
    """He et al. 2016: an identity in all blocks but a stage's first and, in Keras, its last."""
    found = reference_blocks
    assert [len(stage.blocks) for stage in found.stages] == [3, 4, 6, 3]
    assert strided(found) == [3, 7, 13]
    assert Counter(block.shortcut.words for block in found.blocks) == {
        "identity of the raw input": 16 - 4 - 3,
        "1×1 convolution of the pre-activated input": 4,
        "1×1 pooling, stride 2, of the raw input": 3,
    }
    assert [stage.blocks[0].shortcut.kind for stage in found.stages] == ["1×1 convolution"] * 4
    assert [len(stage.blocks[0].shortcut.preactivation) for stage in found.stages] == [2] * 4
    assert [step.kind for step in found.stem.steps][2:] == [
        *("convolution", "zero padding", "max pooling")
    ]


def test_a_residual_branch_step_by_step(article_blocks: Anatomy) -> None:
    one, two, three = article_blocks.blocks[2].residual
    assert [step.name for step in (one, two, three)] == ["conv10", "conv11", "conv12"]
    assert [step.kernel for step in (one, two, three)] == [(1, 1), (3, 3), (1, 1)]
    assert [step.stride for step in (one, two, three)] == ["", "2", ""]
    assert two.shape == (28, 28, 64)
    assert {step.before for step in (one, two, three)} == {("normalisation", "ReLU")}


@pytest.mark.usefixtures("whole_network")
def test_blocks_of_the_small_network() -> None:
    model = network.build("small", image_size=64, classes=4)
    found = network.blocks(model)
    assert [len(stage.blocks) for stage in found.stages] == [2, 2, 2]
    assert strided(found) == [2, 4]
    assert found.stem.steps[1].kind == "Rescaling"
    check(page.draw(found, title="small"), found)


def test_other_residual_networks() -> None:
    """Basic blocks activated after the sum (He et al. 2015), written with a plus, and a scale."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image + 1.0)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(y) + x)
    y = layers.Conv2D(16, 3, strides=(2, 1), padding="same", activation="relu")(x)
    y = layers.Conv2D(16, 3, padding="same")(y)
    gate = layers.Dense(16, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    short = layers.BatchNormalization()(layers.Conv2D(16, 1, strides=(2, 1))(x))
    x = layers.ReLU()(layers.Add(name="second")([short, layers.Multiply()([y, gate])]))
    found = network.blocks(keras.Model(image, layers.Dense(4)(layers.Flatten()(x))))
    assert [len(stage.blocks) for stage in found.stages] == [1, 1]
    assert [block.shortcut.words for block in found.blocks] == [
        "identity of the raw input",
        "1×1 convolution, stride 2×1, then normalisation, of the raw input",
    ]
    assert [step.kernel for step in found.blocks[1].residual] == [(3, 3), (3, 3)]
    assert found.blocks[1].shape == (8, 16, 16)
    check(page.draw(found, title="basic"), found)


def test_a_network_without_blocks_cannot_be_drawn_but_counted() -> None:
    image = keras.Input((8, 8, 3))
    plain = keras.Model(image, layers.Conv2D(2, 3)(image), name="plain")
    with pytest.raises(FieldmarkError, match="plain has no residual block"):
        network.svg(plain, title="plain")
    assert network.cost(plain).multiply_adds == 6 * 6 * 2 * 27


def test_channels_first_are_refused() -> None:
    image = keras.Input((3, 8, 8))
    x = layers.ZeroPadding2D(1, data_format="channels_first")(image)
    with pytest.raises(FieldmarkError, match="channels first"):
        network.blocks(keras.Model(image, x))


# ---------------------------------------------------------------- drawing


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def words(text: ET.Element) -> str:
    """A text with its parts, a space between them."""
    return " ".join(part.strip() for part in text.itertext() if part.strip())


def text_box(text: ET.Element) -> Box:
    """What a text covers: capitals and digits are 0.73 of the size high, tails 0.2 deep."""
    x, y, size = (float(text.get(name, "")) for name in ("x", "y", "font-size"))
    width = page.text_width(words(text), size, bold=text.get("font-weight") == "bold")
    left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "")]
    return Box(left, y - 0.73 * size, left + width, y + 0.2 * size)


def rect_box(rect: ET.Element) -> Box:
    x, y, w, h = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
    return Box(x, y, x + w, y + h)


def groups(root: ET.Element, kind: str) -> Iterator[ET.Element]:
    return (group for group in root.iter(f"{SVG}g") if group.get("class") == kind)


def check(drawing: str, anatomy: Anatomy) -> ET.Element:
    """Hold the drawing against its subject: all blocks, all texts, each in its place."""
    root = ET.fromstring(drawing)
    sheet = Box(*map(float, root.get("viewBox", "").split()))
    texts = list(root.iter(f"{SVG}text"))
    boxes = [text_box(text) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert sheet.holds(box), words(text)
        assert float(text.get("font-size", "")) >= 7, words(text)
    for (one, box), (other, second) in combinations(zip(texts, boxes, strict=True), 2):
        assert not box.meets(second), (words(one), words(other))
    for kind in ("cell", "shape", "part"):
        for group in groups(root, kind):
            frame = group.find(f"{SVG}rect")
            assert frame is not None
            assert sheet.holds(rect_box(frame))
            assert all(rect_box(frame).holds(text_box(t)) for t in group.iter(f"{SVG}text"))
    drawn = list(groups(root, "block"))
    assert len(drawn) == len(anatomy.blocks)
    for group, block in zip(drawn, anatomy.blocks, strict=True):
        told = [words(text) for text in group.iter(f"{SVG}text")]
        assert {str(block.number), by(block.shape, " × ")} <= set(told)
        cells = [[words(t) for t in cell.iter(f"{SVG}text")] for cell in groups(group, "cell")]
        assert cells == [
            [by(s.kernel) + f" /{s.stride}" * bool(s.stride), str(s.shape[-1])]
            for s in block.residual
        ]
    return root


def test_the_drawing_of_the_article(article: Any, article_blocks: Anatomy) -> None:
    root = check(network.svg(article, title="The article"), article_blocks)
    told = [words(text) for text in root.iter(f"{SVG}text")]
    assert told[0] == root.findtext(f"{SVG}title") == "The article"
    assert "35,969,668 parameters  ·  5.03 G multiply-adds a photo" in told[1]
    assert {"110 × 110 × 64", "normalisation, ReLU", "dense, softmax"} <= set(told)
    assert told[told.index("12", told.index("Shortcuts")) + 1] == "1×1 convolution of the raw input"
    assert not any("…" in text for text in told)
    description = root.findtext(f"{SVG}desc", "")
    assert "1 × 1×1 pooling, stride 2, then 1×1 convolution, of the raw input" in description
    assert root.get("width") == "210mm"


def longer(anatomy: Anatomy, copies: int) -> Anatomy:
    """The same network with its third stage's middle blocks so many times."""
    first, second, third, fourth = anatomy.stages
    blocks = (third.blocks[0], *third.blocks[1:-1] * copies, third.blocks[-1])
    stages = (first, second, replace(third, blocks=blocks), fourth)
    numbers = iter(range(1, 10_000))
    renumbered = [
        replace(stage, blocks=tuple(replace(b, number=next(numbers)) for b in stage.blocks))
        for stage in stages
    ]
    return replace(anatomy, stages=tuple(renumbered))


@pytest.mark.parametrize(
    ("copies", "number", "width"), [(1, 16, "210mm"), (9, 48, "210mm"), (40, 172, "420mm")]
)
def test_a_network_of_any_depth_fits_on_its_page(
    reference_blocks: Anatomy, copies: int, number: int, width: str
) -> None:
    anatomy = longer(reference_blocks, copies)
    assert len(anatomy.blocks) == number
    root = check(page.draw(anatomy, title="deep"), anatomy)
    assert root.get("width") == width


def test_each_kind_of_shortcut_looks_different_without_its_colour() -> None:
    looks = [(signs, dashes) for (signs, _), (_, dashes) in page.STYLES.items()]
    assert len(set(looks)) == len(looks)
    colours = [colour for colour, _ in (*page.STYLES.values(), page.OTHER)]
    assert len(set(colours)) == len(colours)


def test_hostile_names_are_written_as_text(reference_blocks: Anatomy) -> None:
    hostile = '</text><script>alert("é鳥 & \x00\x1b")</script>' + "long " * 40
    step = Step(hostile, hostile, (3, 3), (1, 1), (7, 7, 64), hostile)
    block = Block(1, hostile, (), (7, 7, 64), Shortcut((step,), (hostile, hostile)))
    stem = replace(reference_blocks.stem, steps=(*reference_blocks.stem.steps, step))
    anatomy = Anatomy(stem, (Stage((block,), 1, 1),), reference_blocks.head)
    root = check(page.draw(anatomy, title=hostile), anatomy)
    assert root.find(f".//{SVG}script") is None
    assert root.findtext(f"{SVG}title", "").startswith('</text><script>alert("é鳥 & ")</script>')


def test_the_drawing_is_written_whole_or_not_at_all(article: Any, tmp_path: Path) -> None:
    file = tmp_path / "network.svg"
    network.draw(article, file)
    assert ET.parse(file).getroot().findtext(f"{SVG}title") == article.name
    network.draw(article, file, title="again")
    assert [path.name for path in tmp_path.iterdir()] == ["network.svg"]
    with pytest.raises(FieldmarkError, match="cannot be written"):
        network.draw(article, tmp_path / "nowhere" / "network.svg")
