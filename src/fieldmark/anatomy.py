"""A network of residual blocks, as plain data: stem, stages of blocks, head.

`fieldmark.network` reads it from a model, `fieldmark.svg` draws it; nothing here knows Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One layer: what it does (`kind`), with which kernel and strides, and what shape it gives."""

    name: str
    kind: str
    kernel: tuple[int, ...]  # empty where there is none
    strides: tuple[int, ...]
    shape: tuple[int | None, ...]  # (height, width, channels)
    activation: str = ""  # one that is part of the layer
    before: tuple[str, ...] = ()  # normalisation and activation since the last convolution

    @property
    def stride(self) -> str:
        """The stride as `2`, `2×1` where its sides differ, nothing where it is 1."""
        sides = sorted(set(self.strides), reverse=True)
        return "" if sides in ([], [1]) else str(sides[0]) if len(sides) == 1 else by(self.strides)

    @property
    def words(self) -> str:
        """The layer in words: `3×3 convolution, stride 2`."""
        one = set(self.kernel) == {1}  # and of one value the maximum and the mean are the same
        kind = "pooling" if one and self.kind.endswith("pooling") else self.kind
        what = " ".join(filter(None, (by(self.kernel), kind)))
        stride = f"stride {self.stride}" if self.stride else ""
        return ", ".join(filter(None, (what, stride, self.activation)))


@dataclass(frozen=True)
class Shortcut:
    """What a block's input goes through on its way past the residual branch."""

    steps: tuple[Step, ...]
    preactivation: tuple[str, ...]  # what that input went through first; empty where it is raw

    @property
    def kind(self) -> str:
        """`identity`, or its steps: `1×1 pooling, stride 2, then 1×1 convolution`."""
        return ", then ".join(step.words for step in self.steps) or "identity"

    @property
    def words(self) -> str:
        """Its kind and which tensor it reads: `identity of the raw input`."""
        comma = "," * (", " in self.kind)
        return f"{self.kind}{comma} of the {'pre-activated' if self.preactivation else 'raw'} input"


@dataclass(frozen=True)
class Block:
    """A residual block: two branches and the addition, whose layer's name it bears."""

    number: int  # from 1, through all stages
    name: str
    residual: tuple[Step, ...]  # the convolutions, and poolings where there are any
    shape: tuple[int | None, ...]  # after the addition
    shortcut: Shortcut


@dataclass(frozen=True)
class Part:
    """The stem or the head, step by step."""

    steps: tuple[Step, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Stage:
    """Blocks that follow one another and end in as many channels."""

    blocks: tuple[Block, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Anatomy:
    """A whole network."""

    stem: Part
    stages: tuple[Stage, ...]
    head: Part

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all stages, in order."""
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def parts(self) -> tuple[Part | Stage, ...]:
        """Stem, stages and head; their parameters and multiply-adds sum to the network's."""
        return (self.stem, *self.stages, self.head)


def by(sizes: Sequence[int | None], sign: str = "×") -> str:
    """Join sizes as people write them, `3×3`; an open one is a question mark."""
    return sign.join("?" if size is None else str(size) for size in sizes)
