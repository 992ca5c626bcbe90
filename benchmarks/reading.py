"""How fast a photo becomes 224 x 224 pixels, ours beside Keras' path, on one core.

In: nothing. Reads the flowers of `../shared/data` where they are, else draws photos of 500 pixels;
and makes JPEGs of 12 megapixels by enlarging some of them, with noise until they are as many bytes
as a camera's. All paths take turns on the same photos in one process, held to one core, so that a
noisy machine is noisy for all. Out, on standard output: photos a second of that core's time as
medians over the rounds, the ratio to Keras' path round by round, and the grey levels that decoding
at reduced scale changes.

    python benchmarks/reading.py --rounds 9
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from fieldmark import draw, images

FLOWERS = Path(__file__).parents[2] / "shared" / "data" / "flowers"
SPEC = images.ImageSpec(size=224, mode="squash", interpolation="bilinear", scaling="0..255")
SIDE = (SPEC.size, SPEC.size)
KERAS = "Keras' path, no antialiasing"
TURN = 30
Reader = Callable[[bytes], object]


def small_photos(count: int) -> tuple[str, list[bytes]]:
    """Return flowers of all classes, or drawn photos, and the word for them."""
    files = sorted(FLOWERS.glob("*/*.jpg"))
    if files:
        return "flowers", [file.read_bytes() for file in files[:: max(1, len(files) // count)]]
    rng = np.random.default_rng(0)
    drawn = [draw.picture("Bananaquit", size=500, rng=rng)[0] for _ in range(min(count, 40))]
    return "drawn photos", [jpeg(photo) for photo in drawn]


def large_photos(contents: Sequence[bytes], count: int) -> list[bytes]:
    """Enlarge photos to 12 megapixels, with a camera's noise; about 2.4 MB each."""
    rng = np.random.default_rng(0)
    large = []
    for content in contents[:: max(1, len(contents) // count)][:count]:
        photo = Image.fromarray(images.decode(content)).resize(
            (4000, 3000), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(photo) + rng.normal(0, 5, (3000, 4000, 3))
        large.append(jpeg(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    return large


def jpeg(photo: Image.Image) -> bytes:
    """Compress a photo as cameras do."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(content: bytes) -> object:
    """Read as fieldmark does."""
    return images.read(content, SPEC)


def keras_path(content: bytes) -> object:
    """Read as `keras.utils.image_dataset_from_directory` does."""
    return tf.image.resize(tf.io.decode_image(content, 3, expand_animations=False), SIDE).numpy()


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])  # type: ignore[untyped-decorator]
def graph(content: object) -> object:
    """Compile Keras' path, as `tf.data` does."""
    decoded = tf.io.decode_image(content, 3, expand_animations=False)
    return tf.image.resize(decoded, SIDE)


def keras_graph(content: bytes) -> object:
    """Read as Keras does, compiled."""
    return graph(content).numpy()


def keras_antialiased(content: bytes) -> object:
    """Read as TensorFlow does when it is told to leave no jagged edges."""
    decoded = tf.io.decode_image(content, 3, expand_animations=False)
    return tf.image.resize(decoded, SIDE, antialias=True).numpy()


def pillow(content: bytes) -> object:
    """Read by Pillow alone, from all pixels."""
    photo = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(photo.resize(SIDE, Image.Resampling.BILINEAR))


def pillow_at_once(content: bytes) -> object:
    """Let libjpeg-turbo scale as far down as it goes without enlarging after: the limit."""
    photo = Image.open(io.BytesIO(content))
    photo.draft("RGB", SIDE)
    return np.asarray(photo.resize(SIDE, Image.Resampling.BILINEAR))


def compare(name: str, contents: Sequence[bytes], paths: dict[str, Reader], rounds: int) -> None:
    """Print photos a second of each path, and the ratio to Keras' in the same round."""
    speeds: dict[str, list[float]] = {path: [] for path in paths}
    for i in range(rounds + 1):
        seconds = dict.fromkeys(paths, 0.0)
        # Turns of 30 photos: shorter ones would find the processor's caches full of another's
        # code, longer ones another load of the machine.
        for first in range(0, len(contents), TURN):
            for path in list(paths)[:: 1 if i % 2 else -1]:
                start = time.process_time()
                for content in contents[first : first + TURN]:
                    paths[path](content)
                seconds[path] += time.process_time() - start
        if i > 0:  # the first round warms up
            for path, spent in seconds.items():
                speeds[path].append(len(contents) / spent)
    megabytes = statistics.mean(map(len, contents)) / 1e6
    print(f"\n{name}: {len(contents)} photos, {megabytes:.2f} MB on average, {rounds} rounds")
    print(f"{'':34}photos/s  ratio to Keras' path (lowest to highest)")
    for path, values in speeds.items():
        ratios = sorted(a / b for a, b in zip(values, speeds[KERAS], strict=True))
        middle = statistics.median(ratios)
        shown = f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{path:34}{statistics.median(values):8.1f}  {shown}")


def differences(contents: Sequence[bytes]) -> None:
    """Print what reduced scale changes, on photos of a camera's own pixels.

    They are small, so that the targets are too: nothing is enlarged, which would hide it.
    """
    print("\ngrey levels that decoding at reduced scale changes (mean over photos; worst photo)")
    kept = images.ROOM
    for room in (2.0, 1.5, 1.0):
        off = []
        for size in (48, 64, 96):
            spec = SPEC.model_copy(update={"size": size})
            for content in contents:
                images.ROOM = 10_000
                whole = images.read(content, spec).astype(int)
                images.ROOM = room
                reduced = images.read(content, spec)
                if (reduced != whole).any():
                    off.append(float(np.abs(reduced - whole).mean()))
        print(
            f"at least {room:.1f} x the target: {np.mean(off):.2f}; {max(off):.2f} (n = {len(off)})"
        )
    images.ROOM = kept


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--photos", type=int, default=150)
    parser.add_argument("--large", type=int, default=6)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    name, small = small_photos(arguments.photos)
    every: dict[str, Reader] = {
        "fieldmark": ours,
        KERAS: keras_path,
        "the same, compiled as a graph": keras_graph,
        "TensorFlow, antialiased": keras_antialiased,
        "Pillow, all pixels": pillow,
    }
    compare(name, small, every, arguments.rounds)
    large = large_photos(small, arguments.large)
    limit: dict[str, Reader] = {"Pillow, scaled by libjpeg-turbo": pillow_at_once}
    compare("12 megapixels", large, every | limit, arguments.rounds)
    differences(small)


if __name__ == "__main__":
    main()
