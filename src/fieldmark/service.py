"""The model that a server has in memory: photos in, answers out, no more than there is room for.

In: what loads a `Classifier`, and photos of many requests at once. Out: a `Service`, whose answers
are awaited. Photos are read on a thread a processor; those that are waiting then go through the
network together, in as many batches at once as the model has streams, and nobody waits for a batch
to fill. What there is no room for is refused at once. A new model takes over when it has been
loaded and tried; photos that were read for the old one are answered by the old one. `fieldmark
serve` puts HTTP before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldmark import engines, images, threads
from fieldmark.bounds import Bounds
from fieldmark.errors import FieldmarkError
from fieldmark.formats import UnreadableImage
from fieldmark.predict import Answer, Classifier

if TYPE_CHECKING:
    from fieldmark.heatmaps import Mapper, Peak

__all__ = ["Bounds", "Heat", "Model", "Refusal", "Room", "Service", "loaded", "tried"]

T = TypeVar("T")

CLOSE_ENOUGH = 1e-3  # to 1, the sum of a photo's probabilities: int8 has 1/256 at a step


class Refusal(Exception):  # noqa: N818 - it is an answer
    """What a client is told in place of an answer: a status of HTTP, and one sentence.

    A `code` is for programs, where the status means several things.
    """

    def __init__(self, status: int, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


@dataclass
class Room:
    """So much of something for all requests together."""

    size: int
    taken: int = 0

    def take(self, count: int) -> None:
        """Take a part; raises a Refusal where it is not free."""
        if self.taken + count > self.size:
            raise Refusal(503, "The server is busy: try again in a second.")
        self.taken += count

    @contextmanager
    def share(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Have a part as long as the block runs; what is given takes more of it."""
        before = [0]

        def more(count: int) -> None:
            self.take(count)
            before[0] += count

        try:
            more(count)
            yield more
        finally:
            self.taken -= before[0]


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier that has answered once, and which one it is."""

    classifier: Classifier
    version: str  # changes with its weights and with whatever else decides an answer

    @property
    def explains(self) -> bool:
        """Whether there can be maps: they are found in the layers of a run's network."""
        return self.classifier.network is not None


@dataclass(frozen=True)
class Heat:
    """Where in a photo something speaks for a class."""

    name: str  # the class
    words: str  # the map, for those who cannot see it
    peak: Peak | None  # the same, for other languages
    layer: str
    values: NDArray[np.float32]  # (h, w), 0 to 1, a cell of the feature map each
    png: bytes  # the square that the network sees, the map over it


@dataclass(eq=False)
class Waiting:
    """A photo on its way to the network."""

    model: Model
    square: NDArray[np.uint8]  # (size, size, 3)
    answer: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Service:
    """One model, its threads and its queue; made in a running event loop, and closed there."""

    def __init__(self, load: Callable[[], Classifier], *, bounds: Bounds, batch: int = 16) -> None:
        self.bounds = bounds
        self.batch = batch
        self.room = Room(bounds.waiting)
        self.held = Room(bounds.held_bytes)
        self.stopping = False
        self.looked_at: Callable[[int], None] = lambda _: None  # told the size of every batch
        self._load = load
        self._queue: deque[Waiting] = deque()
        self._woken = asyncio.Event()  # there is a photo, or a stream is free
        self._readers = ThreadPoolExecutor(threads.processors(), "reader")
        self._at_work: set[asyncio.Task[None]] = set()
        self._swapping = asyncio.Lock()
        self._explainer: Explainer | None = None
        self.model = tried(load(), batch)
        # The network has threads of its own.
        self._engine = ThreadPoolExecutor(engines.MOST_STREAMS, "engine")
        self._artist = ThreadPoolExecutor(1, "artist")
        self._task = asyncio.create_task(self._work())

    @property
    def ready(self) -> bool:
        """Whether it takes photos, and will go on to."""
        return not self.stopping and not self._task.done()

    async def swap(self) -> Model:
        """Load the model anew and let it take over; raises a FieldmarkError where it cannot."""
        async with self._swapping:
            loop = asyncio.get_running_loop()
            # A thread of its own: the readers and the engine go on meanwhile.
            with ThreadPoolExecutor(1, "loader") as loader:
                model = await loop.run_in_executor(loader, loaded, self._load, self.batch)
            self.model = model
            self._explainer = None
            return model

    async def close(self) -> None:
        """Stop, with nothing in the queue any more."""
        self.stopping = True
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._readers.shutdown()
        self._engine.shutdown()
        self._artist.shutdown()

    async def read(self, model: Model, photo: bytes) -> NDArray[np.uint8]:
        """Return the square of a photo; raises an UnreadableImage."""
        specification, limits = model.classifier.specification, self.bounds.limits
        return await self.aside(partial(images.read, photo, specification, limits=limits))

    async def aside(self, work: Callable[[], T]) -> T:
        """Do something that takes its time, on a thread that else reads photos."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def predict(
        self, photos: Sequence[bytes]
    ) -> tuple[Model, list[Answer | UnreadableImage]]:
        """Return an answer for each photo, or why it is none, and the model that gave them."""
        model = self.model
        with self.room.share(len(photos)):
            return model, list(await asyncio.gather(*(self._one(model, each) for each in photos)))

    async def predict_squares(self, model: Model, squares: NDArray[np.uint8]) -> list[Answer]:
        """Return an answer for each square, (n, size, size, 3)."""
        with self.room.share(len(squares)):
            return list(await asyncio.gather(*(self._ask(model, each) for each in squares)))

    async def explain(self, photo: bytes, name: str | None) -> tuple[Model, Answer, Heat]:
        """Return an answer, and the map of a class; without a name, of the most probable one.

        Raises an UnreadableImage, and a Refusal where there is no such class or can be no map.
        """
        model = self.model
        classes = model.classifier.classes
        if name is not None and name not in classes:
            raise Refusal(
                422, "The model has no such class: ask it for those that it has.", "no_such_class"
            )
        if not model.explains:
            raise Refusal(
                501,
                "An exported model has no feature map to draw: serve the run that it was exported "
                "from.",
            )
        with self.room.share(1):
            square = await self.read(model, photo)
            answer = await self._ask(model, square)
            shown = name or classes[int(answer.probabilities.argmax())]
            work = partial(self._drawn, model, square, shown)
            return (
                model,
                answer,
                await asyncio.get_running_loop().run_in_executor(self._artist, work),
            )

    async def _one(self, model: Model, photo: bytes) -> Answer | UnreadableImage:
        try:
            return await self._ask(model, await self.read(model, photo))
        except UnreadableImage as error:
            return error

    async def _ask(self, model: Model, square: NDArray[np.uint8]) -> Answer:
        waiting = Waiting(model, square)
        self._queue.append(waiting)
        self._woken.set()
        return await waiting.answer

    async def _work(self) -> None:
        """Have what is in the queue answered, as many batches at once as the model has streams."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if not self._queue:
                continue
            streams = self._queue[0].model.classifier.streams
            # A stream that is at work finds its share when it is free.
            share = min(self.batch, -(-len(self._queue) // streams))
            while len(self._at_work) < streams and (batch := self._taken(share)):
                task = asyncio.create_task(self._answer(batch))
                self._at_work.add(task)
                task.add_done_callback(self._done)
                if self._queue and self._queue[0].model is not batch[0].model:
                    self._woken.set()  # the next model has other streams
                    break

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        """Have photos answered together."""
        loop, engine = asyncio.get_running_loop(), batch[0].model.classifier.answers
        try:
            self.looked_at(len(batch))
            squares = np.stack([each.square for each in batch])  # (n, size, size, 3)
            answers = await loop.run_in_executor(self._engine, engine, squares)
        except Exception as error:  # whoever asked is told; the next go on
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for each, answer in zip(batch, answers, strict=True):
            if not each.answer.done():
                each.answer.set_result(answer)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._at_work.remove(task)
        self._woken.set()

    def _taken(self, most: int) -> list[Waiting]:
        """Take the next photos of one model off the queue, those left out that nobody waits for."""
        batch: list[Waiting] = []
        while self._queue and len(batch) < most:
            if batch and self._queue[0].model is not batch[0].model:
                break
            each = self._queue.popleft()
            if not each.answer.done():
                batch.append(each)
        return batch

    def _drawn(self, model: Model, square: NDArray[np.uint8], name: str) -> Heat:
        """Draw a map."""
        if self._explainer is None or self._explainer.model is not model:
            self._explainer = Explainer.of(model)
        return self._explainer.heat(square, name)


# ---- models -------------------------------------------------------------------------------------


def loaded(load: Callable[[], Classifier], batch: int) -> Model:
    """Load a model that is to take over, and try it.

    Raises a FieldmarkError, whatever a damaged model makes of its reader: the old one goes on.
    """
    try:
        return tried(load(), batch)
    except FieldmarkError:
        raise
    except Exception as error:
        raise FieldmarkError(
            f"The new model cannot be loaded ({type(error).__name__}: {error}): put a whole one "
            "there, and send SIGHUP again."
        ) from error


def tried(classifier: Classifier, batch: int = 1) -> Model:
    """Have a classifier answer grey squares; raises a FieldmarkError where no answer comes of it.

    The batches are of all sizes' kinds, so that whatever is compiled for a size is compiled now.
    """
    side = classifier.specification.size
    for count in sorted({1, min(2, batch), batch}):
        grey = np.full((count, side, side, 3), 128, np.uint8)
        found = classifier.engine(grey)
        wanted = (count, len(classifier.classes))
        sums = found.sum(axis=1) if found.shape == wanted else np.zeros(1)
        if not (np.isfinite(found).all() and np.abs(sums - 1).max() < CLOSE_ENOUGH):
            raise FieldmarkError(
                f"{classifier.place} gives no probabilities of its {wanted[1]} classes: it is "
                "damaged, so export or train it anew."
            )
        classifier.answers(grey)
    return Model(classifier, classifier.identity())


@dataclass(frozen=True, eq=False)
class Explainer:
    """What draws the maps of a run."""

    model: Model
    mapper: Mapper

    @classmethod
    def of(cls, model: Model) -> Explainer:
        """Find the feature map of a model's network; raises a Refusal where it has none."""
        from fieldmark.heatmaps import Mapper

        try:
            return cls(model, Mapper.of(model.classifier.network))
        except FieldmarkError as error:
            raise Refusal(
                501, "The model's network is not built so that maps are found."
            ) from error

    def heat(self, square: NDArray[np.uint8], name: str) -> Heat:
        """Return the map of a class over a square (size, size, 3)."""
        from fieldmark.explain import described
        from fieldmark.heatmaps import Peak, maps, overlay

        classifier = self.model.classifier
        place = np.array([classifier.classes.index(name)])
        feature_map = self.mapper(images.scale(square[None], classifier.specification))
        values = maps(feature_map, self.mapper.kernel, place).values[0, 0]  # (h, w)
        enlarged = self.mapper.enlarged(values, len(square))
        drawn = BytesIO()
        Image.fromarray(overlay(square, enlarged)).save(drawn, "PNG")
        peak = Peak.of(enlarged)
        words = described(name, peak)
        return Heat(name, words, peak, self.mapper.layer, values, drawn.getvalue())
