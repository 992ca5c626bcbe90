"""Photos kept as bytes -> the batches that a network is trained on, each a function of its place.

In: the pixels of all photos in one array (or a memory map), their labels, how the network wants to
see them, and what changes them. Out: `Batches.batch(epoch, step)`, the images, labels and weights
of one step, which follow from the seed, the epoch and the step alone; `Batches.dataset`, the same
read ahead by threads or processes, which Keras' `fit` takes on TensorFlow, JAX and PyTorch; and
`preview`, a sheet of what the network will see.

    fieldmark train PHOTOS --pipeline batches --augment 0.5 --preview sheet.png
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldmark import files
from fieldmark.augment import NONE, Augment, mix, view
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec, scale

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Batch: TypeAlias = tuple[Floats, Floats, Floats]

# What a random generator is for: no two of them draw the same numbers.
ORDER, VIEW, MIX, CLASS = range(4)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a training, or of an evaluation with `shuffle=False`.

    Batch `step` of an epoch does not depend on the ones before it, nor on who asks for it.
    """

    pixels: NDArray[np.uint8]  # (n, r, r, 3), may be a memory map; it is only ever read
    labels: Integers  # (n,), 0 to classes - 1
    classes: int
    spec: ImageSpec
    batch_size: int
    seed: int = 0
    # (n, 2), height and width of the photos that the rows are squashed from. None: the rows are
    # squares of the network's size as `images.read` gives them.
    shapes: NDArray[np.integer[Any]] | None = None
    augment: Augment = NONE
    # True: new batches in each epoch, and an incomplete last one is left out. False: the photos in
    # their order, the last batch filled up with photos of weight 0, as a batch of another size
    # would have the network compiled again.
    shuffle: bool = True
    balanced: bool = False  # each class is drawn equally often; needs `shuffle`
    class_weights: tuple[float, ...] | None = None
    _orders: dict[int, Integers] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _refuse_wrong(self)

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        count = len(self.labels)
        return count // self.batch_size if self.shuffle else -(-count // self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        """Hand a memory map to a worker process by its file's name, not by its content."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        state["_orders"] = {}
        if (place := _place(self.pixels)) is not None:
            state["pixels"] = place
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the memory map again, for reading."""
        if isinstance(state["pixels"], dict):
            state["pixels"] = np.memmap(mode="r", **state["pixels"])
        self.__dict__.update(state)

    def order(self, epoch: int) -> Integers:
        """Return the photos of an epoch in the order in which they are seen; numbers of rows."""
        known = self._orders.get(epoch)
        if known is not None:
            return known
        if not self.shuffle:
            order = np.arange(len(self.labels))
        elif self.balanced:
            order = _balanced(self, epoch)
        else:
            order = _rng(self.seed, ORDER, epoch).permutation(len(self.labels))
            order = order[: len(self) * self.batch_size]
        # Kept for the steps to come. Threads may do this twice, with the same result.
        if len(self._orders) > 2:
            self._orders.clear()
        order.setflags(write=False)
        self._orders[epoch] = order
        return order

    def batch(self, epoch: int, step: int, *, process: int = 0, processes: int = 1) -> Batch:
        """Return the images, labels and weights of one step; process `process` gets its share.

        Images are float32 (b, size, size, 3), scaled as the specification says; labels float32
        (b, classes), each summing to one; weights float32 (b,). The shares of all processes, one
        after another, are the batch of a single one, bit for bit.
        """
        if epoch < 0 or not 0 <= step < len(self):
            raise FieldmarkError(
                f"There is no step {step} of epoch {epoch}: "
                f"an epoch has the steps 0 to {len(self) - 1}."
            )
        share = _share(self.batch_size, process, processes)
        return self.rows(epoch, step, share * process, share * (process + 1))

    def rows(self, epoch: int, step: int, first: int, last: int) -> Batch:
        """Return the rows `first` to `last` (exclusive) of a batch."""
        low, high = first, last
        if self.augment.mixes:  # a neighbour is needed, even where it is another process' photo
            low, high = first - first % 2, min(last + last % 2, self.batch_size)
        places = np.arange(low, high) + step * self.batch_size
        order = self.order(epoch)
        chosen = order[places % len(order)]
        images = scale(self._views(epoch, places, chosen), self.spec)
        labels = np.zeros((len(chosen), self.classes), np.float32)
        labels[np.arange(len(chosen)), self.labels[chosen]] = 1
        if self.augment.mixes:
            mix(images, labels, self.augment, _rng(self.seed, MIX, epoch, step))
        weights = (places < len(order)).astype(np.float32)
        if not self.shuffle:  # so that a mean over rows, which Keras takes, is one over photos
            weights *= len(self) * self.batch_size / len(order)
        if self.class_weights is not None:
            weights *= (labels * np.array(self.class_weights, np.float32)).sum(1)
        asked = slice(first - low, last - low)
        return images[asked], labels[asked], weights[asked]

    def seen(
        self, epoch: int, step: int, *, first: int = 0, last: int | None = None
    ) -> tuple[NDArray[np.uint8], Floats]:
        """Return rows of a batch for people: pixels (b, size, size, 3) of 0 to 255, and labels."""
        plain = replace(self, spec=self.spec.model_copy(update={"scaling": "0..255"}))
        images, labels, _ = plain.rows(epoch, step, first, last or self.batch_size)
        return images.round().astype(np.uint8), labels

    def _views(self, epoch: int, places: Integers, chosen: Integers) -> NDArray[np.uint8]:
        """Return what the network sees of the chosen photos, (b, size, size, 3)."""
        if self.shapes is None and not self.augment.changes:
            return self.pixels[chosen]
        size = self.spec.size
        views = np.empty((len(chosen), size, size, 3), np.uint8)
        for seen, place, row in zip(views, places.tolist(), chosen.tolist(), strict=True):
            height, width = (1, 1) if self.shapes is None else self.shapes[row].tolist()
            seen[:] = view(
                self.pixels[row],
                self.spec,
                augment=self.augment,
                rng=_rng(self.seed, VIEW, epoch, place) if self.augment.changes else None,
                shape=None if self.shapes is None else (height, width),
            )
        return views

    def dataset(
        self,
        *,
        epochs: int,
        start: tuple[int, int] = (0, 0),
        process: int = 0,
        processes: int = 1,
        threads: int = 2,
        workers: int = 0,
    ) -> Any:
        """Return a Grain dataset of all batches from `start`, (epoch, step), to the last epoch.

        `threads` compute ahead in this process, or `workers` processes do; 0 of both computes a
        batch when it is asked for. Neither changes what is in a batch.
        """
        import grain

        source = _Source(self, epochs, start, process, processes)
        if workers:
            from absl import flags

            # Grain 0.2.18 reads a flag of its own here, and fails in a program that has parsed
            # none (google/grain#1355, mended after it).
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            # Each worker makes every n-th batch, alone, and one ahead.
            reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            return grain.MapDataset.source(source).to_iter_dataset(reading).mp_prefetch(options)
        # Grain's own choice is 16 threads and 500 batches, which are gigabytes.
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return grain.MapDataset.source(source).to_iter_dataset(reading)


class _Source:
    """The batches of several epochs as one sequence, for Grain; element i follows from i alone."""

    def __init__(
        self, batches: Batches, epochs: int, start: tuple[int, int], process: int, processes: int
    ) -> None:
        steps = len(batches)
        epoch, step = start
        self.first = epoch * steps + step
        self.length = epochs * steps - self.first
        if min(epoch, step) < 0 or step >= steps or self.length < 1:
            raise FieldmarkError(
                f"A training of {epochs} epochs of {steps} steps cannot start at "
                f"step {step} of epoch {epoch}, both counted from 0."
            )
        _share(batches.batch_size, process, processes)
        self.batches = batches
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Batch:
        epoch, step = divmod(self.first + int(index), len(self.batches))
        return self.batches.batch(epoch, step, process=self.process, processes=self.processes)


def balancing_weights(labels: Integers, classes: int) -> tuple[float, ...]:
    """Return a weight a class with which all classes count alike and a photo 1 on average.

    n / (classes * count), as scikit-learn's `class_weight="balanced"`.
    """
    counts = np.bincount(labels, minlength=classes)
    _refuse_empty(counts)
    return tuple((len(labels) / (classes * counts)).tolist())


def _rng(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Return the generator of one purpose and place."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *place)))


def _balanced(batches: Batches, epoch: int) -> Integers:
    """Return the photos of an epoch that draws each class equally often, or one photo less.

    Over all epochs the classes take turns. Each class goes through its photos in an order of its
    own, and through all of them before one comes again.
    """
    length = len(batches) * batches.batch_size
    drawn = []
    for label in range(batches.classes):
        photos = np.flatnonzero(batches.labels == label)
        # Turn t of all epochs belongs to class t % classes.
        first, last = (
            -(-(turn - label) // batches.classes) for turn in (epoch * length, (epoch + 1) * length)
        )
        for time in range(first // len(photos), -(-last // len(photos))):
            order = _rng(batches.seed, CLASS, label, time).permutation(photos)
            begin = time * len(photos)
            drawn.append(order[max(0, first - begin) : last - begin])
    return _rng(batches.seed, ORDER, epoch).permutation(np.concatenate(drawn))


def _share(batch_size: int, process: int, processes: int) -> int:
    """Return how many photos of a batch each process gets."""
    if not 0 <= process < processes:
        raise FieldmarkError(
            f"There is no process {process} of {processes}: they are counted from 0."
        )
    if batch_size % processes:
        raise FieldmarkError(
            f"A batch of {batch_size} photos cannot be shared equally by {processes} processes: "
            f"choose a batch size that {processes} divides."
        )
    return batch_size // processes


def _place(pixels: NDArray[np.uint8]) -> dict[str, Any] | None:
    """Return where a whole memory map lies; None for any other array."""
    if not isinstance(pixels, np.memmap) or not isinstance(pixels.base, mmap.mmap):
        return None
    if pixels.filename is None or not pixels.flags.c_contiguous:
        return None
    return {
        "filename": str(pixels.filename),
        "dtype": pixels.dtype,
        "offset": pixels.offset,
        "shape": pixels.shape,
    }


def _refuse_wrong(batches: Batches) -> None:
    """Raise a FieldmarkError for what no batches can be made of."""
    for wrong, what in chain(_wrong_arrays(batches), _wrong_values(batches)):
        if wrong:
            raise FieldmarkError(what)
    if batches.balanced:
        _refuse_empty(np.bincount(batches.labels, minlength=batches.classes))


def _wrong_arrays(batches: Batches) -> Iterator[tuple[bool, str]]:
    """Yield what is wrong or not with the photos, and what to say of it."""
    pixels, count, side = batches.pixels, len(batches.labels), batches.pixels.shape[1:2]
    square = pixels.dtype == np.uint8 and pixels.shape[1:] == (*side, *side, 3)
    yield not square, f"Photos are given as {pixels.dtype} {pixels.shape}: give (n, r, r, 3) bytes."
    yield (
        len(pixels) != count,
        f"There are {len(pixels)} photos and {count} labels: give each photo one.",
    )
    yield not count, "There are no photos to make batches of: name a folder that holds some."
    shapes, size = batches.shapes, batches.spec.size
    if shapes is None:
        yield (
            side != (size,),
            f"The photos are squares of {side[0]} pixels and the network reads {size}: "
            "read them at that size, or give the shapes that they were squashed from.",
        )
    else:
        wrong = shapes.shape != (count, 2) or shapes.min() < 1
        yield wrong, "A shape is missing: give each photo the height and width that it has."


def _wrong_values(batches: Batches) -> Iterator[tuple[bool, str]]:
    """Yield what is wrong or not with labels and settings, and what to say of it."""
    labels, classes, size = batches.labels, batches.classes, batches.batch_size
    yield classes < 2, "There is one class only: a classifier needs photos of at least two."
    yield (
        bool(labels.min() < 0 or labels.max() >= classes),
        f"Labels go from {labels.min()} to {labels.max()}: give numbers from 0 to {classes - 1}.",
    )
    yield size < 1, f"A batch of {size} photos is none: give 1 or more."
    yield (
        batches.shuffle and size > len(labels),
        f"A batch of {size} photos is larger than the {len(labels)} photos to train on: "
        f"choose a batch size of at most {len(labels)}.",
    )
    yield batches.seed < 0, f"The seed is {batches.seed}: give 0 or more."
    yield (
        not batches.shuffle and (batches.balanced or batches.augment.mixes),
        "Photos in their order are neither drawn equally often from each class nor mixed: "
        "leave that to the training.",
    )
    weights = batches.class_weights
    yield (
        weights is not None and (len(weights) != classes or min(weights) < 0),
        f"Class weights are {weights}: give {classes} numbers, none of them negative.",
    )


def _refuse_empty(counts: Integers) -> None:
    """Raise where a class has no photos to balance it with."""
    if not counts.all():
        raise FieldmarkError(
            f"Class {int(np.argmin(counts))}, counted from 0, has no photos to train on, so that "
            "the classes cannot be balanced: add some, or leave the class out."
        )


# ---- the sheet ----------------------------------------------------------------------------------

SHOWN, VIEWS = 6, 7  # photos a sheet, and views of each beside the unchanged one
SEARCHED = 200  # epochs in which the views of a photo are looked for


def preview(batches: Batches, path: Path, *, classes: Sequence[str]) -> list[str]:
    """Write a sheet of what the network will see; return what to tell the user of its lettering.

    Each row is one photo: as it is unaugmented, then as the first epochs show it, taken out of the
    batches themselves, with its label. The suffix of `path` is the format: .png, .jpg, .pdf, .svg.
    Raises a FieldmarkError for another suffix or a place that cannot be written.
    """
    from fieldmark import plots

    require_picture(path)
    lettering = plots.Lettering()
    names = [lettering.class_label(name, label) for label, name in enumerate(classes)]
    rows = [
        [(pixels, _label(label, names)) for pixels, label in _looks(batches, photo)]
        for photo in _chosen(batches)
    ]
    figure = sheet(rows, fonts=lettering.families(names))
    with files.whole_file(path) as partial:
        figure.savefig(partial, dpi=150)
    return lettering.notes


SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def require_picture(path: Path) -> None:
    """Raise where the suffix of a path is not one of a picture that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise FieldmarkError(
            f"{path} is no picture's name: give one that ends in {', '.join(SUFFIXES)}."
        )


def _chosen(batches: Batches) -> list[int]:
    """Return photos to show, of as many classes as there are rows."""
    order = batches.order(0)
    taken: list[int] = []
    for time in range(SHOWN):
        for label in range(batches.classes):
            taken += order[batches.labels[order] == label][time : time + 1].tolist()
    return list(dict.fromkeys(taken))[:SHOWN]


def _looks(batches: Batches, photo: int) -> Iterator[tuple[NDArray[np.uint8], Floats]]:
    """Yield the pixels and label of a photo: unaugmented, then as the epochs show it."""
    still = replace(batches, augment=NONE, shuffle=False, balanced=False, batch_size=1)
    wanted = [(still, 0, photo)]
    for epoch in range(SEARCHED):
        places = np.flatnonzero(batches.order(epoch) == photo).tolist()
        wanted += [(batches, epoch, place) for place in places]
        if len(wanted) > VIEWS:
            break
    for source, epoch, place in wanted[: 1 + VIEWS]:
        step, row = divmod(place, source.batch_size)
        pixels, labels = source.seen(epoch, step, first=row, last=row + 1)
        yield pixels[0], labels[0]


def _label(label: Floats, names: Sequence[str]) -> str:
    """Write a label: `owl`, or `70 % owl, 30 % wren`."""
    there = [i for i in np.argsort(-label, kind="stable").tolist() if label[i] >= 0.005]
    if len(there) == 1:
        return str(names[there[0]])
    return "\n".join(f"{100 * label[i]:.0f} % {names[i]}" for i in there)


def sheet(rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], *, fonts: list[str]) -> Any:
    """Draw rows of photos, (h, w, 3), with their labels."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.8 * len(rows)), layout="constrained")  # inches
    figure.suptitle("Left: without augmentation. Beside it: as the network sees it.", fontsize=8)
    for i, row in enumerate(rows):
        for j, (pixels, label) in enumerate(row, start=1):
            axes = figure.add_subplot(len(rows), columns, i * columns + j)
            axes.imshow(pixels)
            axes.set_title(label, fontfamily=fonts, fontsize=7, parse_math=False)
            axes.axis("off")
    return figure
