"""How fast batches are made, beside how fast ResNet50V2 trains on them.

In: nothing. Reads the flowers of `../shared/data` where they are, else draws birds, and keeps them
squashed to 256 pixels in a memory map in a temporary folder, warm. In each round the network trains
for some steps on batches of eight at 224 pixels, with Keras on TensorFlow, and every way of making
batches takes its turn. Out, on standard output: photos a second of wall time, and of one core's
time, as medians over the rounds; and how many times as many as are trained on, by wall time, round
by round, the median, the lowest and the highest.

    python benchmarks/batches.py --rounds 5
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from numpy.typing import NDArray

from fieldmark import draw, images
from fieldmark.augment import NONE, Augment, room, view
from fieldmark.batches import Batches

FLOWERS = Path(__file__).parents[2] / "shared" / "data" / "flowers"
SIZE, BATCH = 224, 8
SPEC = images.ImageSpec(size=SIZE, mode="crop", interpolation="bilinear", scaling="-1..1")
ALL = Augment.of(0.5)
TRAINING = "ResNet50V2 trains, batch 8"

# Yields batches for as long as it is asked to.
Reader = Callable[[], Iterator[Any]]


def cached(folder: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], Any]:
    """Return a memory map of squashed photos, their shapes and labels."""
    source = FLOWERS if FLOWERS.is_dir() else draw.birds(folder / "birds", size=500, per_class=20)
    squash = room(SPEC)
    every = sorted(source.glob("*/*.jpg"))
    chosen = every[:: max(1, len(every) // count)][:count]
    contents = [photo.read_bytes() for photo in chosen]
    np.save(folder / "rows.npy", np.stack([images.read(content, squash) for content in contents]))
    facts = [images.inspect(content) for content in contents]
    names = sorted({photo.parent.name for photo in chosen})
    return (
        np.load(folder / "rows.npy", mmap_mode="r"),
        np.array([(fact.height, fact.width) for fact in facts]),
        np.array([names.index(photo.parent.name) for photo in chosen]),
    )


def ours(batches: Batches, *, threads: int = 0, workers: int = 0) -> Reader:
    """Read by Grain, batch by batch."""
    return lambda: iter(batches.dataset(epochs=1000, threads=threads, workers=workers))


def by_hand(batches: Batches) -> Reader:
    """Make one batch after another, without Grain."""
    return lambda: (batches.batch(*divmod(i, len(batches))) for i in itertools.count())


def photo_by_photo(batches: Batches, threads: int) -> Reader:
    """Let Grain shuffle, augment in threads and collect the photos."""
    import grain

    assert batches.shapes is not None
    shapes = batches.shapes

    def seen(row: int, rng: np.random.Generator) -> tuple[Any, Any]:
        height, width = shapes[row].tolist()
        pixels = view(
            batches.pixels[row], SPEC, augment=batches.augment, rng=rng, shape=(height, width)
        )
        return pixels, np.eye(batches.classes, dtype=np.float32)[batches.labels[row]]

    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads * BATCH)
    photos = grain.MapDataset.range(len(batches.labels)).seed(0).shuffle().repeat(1000)
    photos = photos.random_map(seen).to_iter_dataset(reading).batch(BATCH, drop_remainder=True)
    return lambda: iter(photos.map(lambda pair: (images.scale(pair[0], SPEC), pair[1])))


def threads_alone(batches: Batches, threads: int) -> Reader:
    """Look ahead with Python's own threads."""
    from concurrent.futures import ThreadPoolExecutor

    def read() -> Iterator[Any]:
        with ThreadPoolExecutor(threads) as pool:
            places = (divmod(i, len(batches)) for i in itertools.count())
            waiting = [pool.submit(batches.batch, *next(places)) for _ in range(2 * threads)]
            try:
                while True:
                    waiting.append(pool.submit(batches.batch, *next(places)))
                    yield waiting.pop(0).result()
            finally:
                pool.shutdown(cancel_futures=True)

    return read


def keras_layers(batches: Batches) -> Reader:
    """Augment as Keras' guides do: its layers, mapped over batches in `tf.data`."""
    import keras
    import tensorflow as tf

    layers = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomZoom(0.2),
            keras.layers.RandomCrop(SIZE, SIZE),
            keras.layers.RandomBrightness(0.3),
            keras.layers.RandomContrast(0.3),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
        ]
    )
    one_hot = np.eye(batches.classes, dtype=np.float32)[batches.labels]
    photos = tf.data.Dataset.from_tensor_slices((np.asarray(batches.pixels), one_hot))
    photos = photos.shuffle(1000).repeat().batch(BATCH, drop_remainder=True)
    mapped = photos.map(
        lambda x, y: (layers(tf.cast(x, tf.float32), training=True), y), tf.data.AUTOTUNE
    )
    return lambda: mapped.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def trainer(batches: Batches) -> Callable[[int], tuple[float, float]]:
    """Return what trains for so many steps and says how many photos a second, as `pace` does."""
    import keras

    from fieldmark.resnet_v2 import ResNet50V2

    model = ResNet50V2((SIZE, SIZE, 3), batches.classes)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    stored = [batches.batch(0, step) for step in range(4)]
    model.train_on_batch(*stored[0])  # compiles

    def train(steps: int) -> tuple[float, float]:
        wall, own = time.perf_counter(), time.process_time()
        for step in range(steps):
            model.train_on_batch(*stored[step % 4])
        wall, own = time.perf_counter() - wall, time.process_time() - own
        return steps * BATCH / wall, steps * BATCH / own

    return train


def pace(reader: Reader, photos: int) -> tuple[float, float]:
    """Return photos a second of wall time and of this process' own time.

    The first 16 batches are not counted, as threads and processes start.
    """
    batches = reader()
    for _ in range(16):
        next(batches)
    wall, own = time.perf_counter(), time.process_time()
    for _ in range(photos // BATCH):
        next(batches)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    getattr(batches, "close", lambda: None)()
    return photos / wall, photos / own


def report(paces: dict[str, list[tuple[float, float]]]) -> None:
    """Print the medians, and the ratios to the training of the same round."""
    print(f"{'photos a second':42}    wall  of a core  times the training (lowest to highest)")
    for name, values in paces.items():
        wall, own = (statistics.median(column) for column in zip(*values, strict=True))
        pairs = zip(values, paces[TRAINING], strict=True)
        ratios = sorted(ours[0] / training[0] for ours, training in pairs)
        times = f"{statistics.median(ratios):4.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})"
        # What a worker process computes is not in this process' time.
        core = f"{own:9.1f}" if "worker" not in name else f"{'':9}"
        print(f"{name:42}{wall:8.1f}  {core}  {times}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=1600, help="of each way in each round")
    parser.add_argument("--steps", type=int, default=3, help="of the training in each round")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        pixels, shapes, labels = cached(Path(folder), 400)

        def augmented(augment: Augment) -> Batches:
            return Batches(pixels, labels, 5, SPEC, BATCH, shapes=shapes, augment=augment)

        every = augmented(ALL)
        ways = {
            "one batch after another: resized only": by_hand(augmented(NONE)),
            "  crop and mirror": by_hand(augmented(Augment(mirror=0.5, crop=0.5, stretch=4 / 3))),
            "  everything, strength 0.5": by_hand(every),
            "  and MixUp": by_hand(augmented(Augment.of(0.5, mixup=0.2))),
            "  and CutMix": by_hand(augmented(Augment.of(0.5, cutmix=1))),
            "everything, Grain, no thread": ours(every),
            "  1 thread": ours(every, threads=1),
            "  2 threads": ours(every, threads=2),
            "  1 worker process": ours(every, workers=1),
            "  2 worker processes": ours(every, workers=2),
            "  photo by photo, 2 threads": photo_by_photo(every, 2),
            "everything, Python's 2 threads alone": threads_alone(every, 2),
            "Keras' layers in tf.data": keras_layers(every),
        }
        train = trainer(every)
        paces: dict[str, list[tuple[float, float]]] = {TRAINING: []}
        for i in range(arguments.rounds):
            paces[TRAINING].append(train(arguments.steps))
            for name in list(ways)[:: 1 if i % 2 else -1]:
                paces.setdefault(name, []).append(pace(ways[name], arguments.photos))
        report({name: paces[name] for name in (TRAINING, *ways)})


if __name__ == "__main__":
    main()
