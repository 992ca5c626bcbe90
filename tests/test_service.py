"""The model in memory: what waits goes together, what is too much is refused, maps are a run's."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fieldmark import images
from fieldmark.errors import FieldmarkError
from fieldmark.explain import described
from fieldmark.formats import UnreadableImage
from fieldmark.heatmaps import Mapper, Peak, maps
from fieldmark.images import ImageSpec
from fieldmark.predict import Answer, Classifier
from fieldmark.run import Run
from fieldmark.service import Bounds, Refusal, Room, Service, tried
from fieldmark.trained import Trained
from served import GREEN, GREY, RED, photo

SPEC = ImageSpec(size=8, mode="squash", interpolation="bilinear", scaling="0..255")
Floats = NDArray[np.float64]


def by_colour(squares: NDArray[np.uint8]) -> Floats:
    mean = squares.reshape(len(squares), -1, 3).mean(1) + 1.0
    found: Floats = mean / mean.sum(1, keepdims=True)
    return found


def classifier(
    place: Path, engine: Callable[[NDArray[np.uint8]], Floats] = by_colour, streams: int = 1
) -> Classifier:
    return Classifier(
        place=place, backend="fake", classes=("red", "green", "blue"), specification=SPEC,
        decision=None, engine=engine, streams=streams,
    )  # fmt: skip


def used(work: Callable[[Service], Awaitable[Any]], load: Any, **options: Any) -> Any:
    """Do something with a service."""

    async def whole() -> Any:
        service = Service(load, bounds=options.pop("bounds", Bounds()), **options)
        try:
            return await work(service)
        finally:
            await service.close()

    return asyncio.run(whole())


def label(answer: Answer | UnreadableImage) -> str | None:
    assert isinstance(answer, Answer)
    return answer.label


def test_what_waits_goes_through_the_network_together(tmp_path: Path) -> None:
    sizes: list[int] = []

    async def work(service: Service) -> Any:
        service.looked_at = sizes.append
        asked = [service.predict([photo(each)]) for each in (RED, GREEN) * 20]
        return await asyncio.gather(*asked)

    found = used(work, lambda: classifier(tmp_path), batch=8)
    assert [label(answers[0]) for _, answers in found] == ["red", "green"] * 20
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    assert len(sizes) < 40


def test_what_waits_is_shared_out_among_the_streams(tmp_path: Path) -> None:
    """Three batches are computed at once, and never four."""
    sizes, left, together = list[int](), list[int](), threading.Barrier(3)
    free = threading.Semaphore(3)

    def engine(squares: NDArray[np.uint8]) -> Floats:
        if sizes:  # not while the model is tried
            assert free.acquire(blocking=False)
            left.append(len(squares))
            if len(left) <= 3:
                together.wait(timeout=30)
            free.release()
        return by_colour(squares)

    async def work(service: Service) -> Any:
        service.looked_at = sizes.append
        squares = np.full((30, 8, 8, 3), 9, np.uint8)
        return await service.predict_squares(service.model, squares)

    assert len(used(work, lambda: classifier(tmp_path, engine, streams=3), batch=8)) == 30
    assert sizes[:3] == [8, 8, 8]
    assert sum(sizes) == 30


def test_a_new_model_has_streams_of_its_own(tmp_path: Path) -> None:
    """Four batches at once where there was one, and one where there were four."""
    together, alone, batches = threading.Barrier(4), threading.Lock(), list[int]()

    def of(streams: int) -> Classifier:
        def engine(squares: NDArray[np.uint8]) -> Floats:
            if squares.max() == 9:  # not while the model is tried
                batches.append(streams)
                if streams == 4:
                    together.wait(timeout=30)
                else:
                    assert alone.acquire(blocking=False)
                    time.sleep(0.01)
                    alone.release()
            return by_colour(squares)

        return classifier(tmp_path, engine, streams=streams)

    models = iter([of(1), of(4), of(1)])

    async def work(service: Service) -> Any:
        squares = np.full((8, 8, 8, 3), 9, np.uint8)
        first = service.model
        second = await service.swap()
        third = await service.swap()
        asked = [service.predict_squares(model, squares) for model in (first, second, third)]
        await asyncio.gather(*asked)

    (tmp_path / "weights").write_text("same")
    used(work, lambda: next(models), batch=2)
    assert batches == [1] * 4 + [4] * 4 + [1] * 4


def test_what_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    seen: list[int] = []

    async def work(service: Service) -> None:
        service.looked_at = seen.append
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await service.predict([photo(RED)] * 5)
        assert service.room.taken == 0
        await service.predict([photo(GREEN)])

    used(work, lambda: classifier(tmp_path))
    assert sum(seen) == 1


def test_a_room_gives_back_what_it_gave() -> None:
    room = Room(10)
    with room.share(4) as more:
        more(6)
        with pytest.raises(Refusal, match="busy"):
            more(1)
        assert room.taken == 10
    assert room.taken == 0
    with pytest.raises(Refusal), room.share(11):
        pass
    assert room.taken == 0


@pytest.mark.parametrize(
    "engine",
    [
        lambda squares: np.full((len(squares), 3), np.nan),
        lambda squares: np.full((len(squares), 3), 0.5),
        lambda squares: np.full((len(squares), 2), 0.5),
        lambda squares: np.full((1, 3), 1 / 3),
    ],
)
def test_what_gives_no_probabilities_is_no_model(tmp_path: Path, engine: Any) -> None:
    with pytest.raises(FieldmarkError, match="no probabilities of its 3 classes"):
        tried(classifier(tmp_path, engine), 4)


def test_photos_of_the_old_model_are_answered_by_it(tmp_path: Path) -> None:
    """Also where they were waiting when the new one took over, in one batch with the new."""
    weights = tmp_path / "weights"
    weights.write_text("old")

    def load() -> Classifier:
        text = weights.read_text()
        row = [1.0, 0.0, 0.0] if text == "old" else [0.0, 1.0, 0.0]
        return classifier(tmp_path, lambda squares: np.tile(row, (len(squares), 1)))

    async def work(service: Service) -> Any:
        old = service.model
        square = np.zeros((1, 8, 8, 3), np.uint8)
        waiting = [service.predict_squares(old, square) for _ in range(3)]
        weights.write_text("new")
        new = await service.swap()
        waiting += [service.predict_squares(new, square) for _ in range(3)]
        assert old.version != new.version
        return await asyncio.gather(*waiting)

    found = used(work, load)
    assert [answers[0].label for answers in found] == ["red"] * 3 + ["green"] * 3


def test_the_version_is_that_of_all_that_decides(trained: Run, tmp_path: Path) -> None:
    made = classifier(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"1")
    first = made.identity()
    (tmp_path / "bench.json").write_text("{}")  # says something of the model, and decides nothing
    assert made.identity() == first
    (tmp_path / "model.bin").write_bytes(b"2")
    assert made.identity() != first
    of_run = classifier(trained.folder)
    assert of_run.identity() == of_run.identity() != classifier(trained.folder.parent).identity()


def test_a_run_is_explained_as_by_the_command(trained: Run, birds: Path) -> None:
    content = min(birds.rglob("*.jpg")).read_bytes()
    network = Trained.load(trained)
    square = images.read(content, network.specification)

    async def work(service: Service) -> Any:
        return [await service.explain(content, name) for name in (None, network.classes[2])]

    (model, answer, top), (_, _, asked) = used(work, lambda: Classifier.load(trained.folder))
    assert top.name == network.classes[int(answer.probabilities.argmax())]
    assert asked.name == network.classes[2]
    assert model.explains
    mapper = Mapper.of(network.network)
    seen = mapper(images.scale(square[None], network.specification))
    expected = maps(seen, mapper.kernel, np.array([2])).values[0, 0]
    np.testing.assert_allclose(asked.values, expected, atol=1e-4)
    side = network.specification.size
    assert asked.words == described(asked.name, asked.peak)
    assert asked.peak == Peak.of(mapper.enlarged(expected, side))
    with Image.open(io.BytesIO(asked.png)) as drawn:
        assert drawn.size == (side, side)


def test_maps_take_the_network_that_answers(
    trained: Run, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    shutil.copytree(trained.folder, place)
    content = min(birds.rglob("*.jpg")).read_bytes()
    loads = []
    once = Trained.load

    def noted(run: Run) -> Trained:
        loads.append(run)
        return once(run)

    monkeypatch.setattr(Trained, "load", noted)

    async def work(service: Service) -> Any:
        before = await service.explain(content, None)
        Run(place).best.write_bytes(b"another model, for later")
        service._explainer = None
        return before, await service.explain(content, None)

    (_, _, before), (_, _, after) = used(work, lambda: Classifier.load(place))
    assert len(loads) == 1
    np.testing.assert_array_equal(before.values, after.values)


def test_what_cannot_be_explained_is_refused(tmp_path: Path) -> None:
    async def work(service: Service) -> None:
        with pytest.raises(Refusal, match="no such class") as found:
            await service.explain(photo(GREY), "nothing")
        assert found.value.status == 422
        with pytest.raises(Refusal, match="serve the run") as found:
            await service.explain(photo(GREY), None)
        assert found.value.status == 501

    used(work, lambda: classifier(tmp_path))
