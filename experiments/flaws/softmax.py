"""The article's loss on its softmax, by backend and precision: of the logits, or of two softmaxes?

Out: a Markdown table, a row for each backend that is installed and each precision that it computes
in. All rows are of the same batch and the same weights of one dense layer with the article's
softmax and loss; the gradient is the length of what one step of SGD at rate 1 moves the kernel by.

    python experiments/flaws/softmax.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

BACKENDS = ("tensorflow", "jax", "torch")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def batch() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Return features (32, 16), labels (32,), and a kernel (16, 4) that is sure of itself."""
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (32, 16)).astype(np.float32)
    return features, rng.integers(0, 4, 32), rng.normal(0, 1, (16, 4)).astype(np.float32)


def expected(softmaxes: int) -> tuple[float, float]:
    """Return loss and length of the gradient, computed by hand in float64."""
    features, labels, kernel = (each.astype(np.float64) for each in batch())
    truth = np.eye(4)[labels.astype(int)]  # (32, 4)
    once = softmax(features @ kernel)
    if softmaxes == 1:
        loss, slope = -np.log((once * truth).sum(1)), once - truth
    else:
        twice = softmax(once)
        loss, inner = -np.log((twice * truth).sum(1)), twice - truth
        slope = once * (inner - (inner * once).sum(1, keepdims=True))
    return float(loss.mean()), float(np.linalg.norm(features.T @ slope / len(features)))


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def measure(precision: str) -> None:
    """Print loss, length of the gradient, and Keras' warnings, on the backend of this process."""
    from fieldmark import article, recipe
    from fieldmark.backend import keras

    keras.config.set_dtype_policy(precision)
    features, labels, kernel = batch()
    image = keras.layers.Input((16,))
    head = keras.layers.Dense(4, activation="softmax", use_bias=False)
    network = keras.Model(image, head(image))
    article.compile_network(network, recipe.ARTICLE)
    network.compile(keras.optimizers.SGD(1.0), loss=network.loss, auto_scale_loss=False)
    head.set_weights([kernel])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = network.train_on_batch(features, labels, return_dict=True)["loss"]
    moved = float(np.linalg.norm(head.get_weights()[0] - kernel))
    warned = any("from_logits" in str(each.message) for each in caught)
    print(json.dumps({"loss": float(loss), "gradient": moved, "warned": warned}))


def main() -> None:
    """Measure each in a process of its own, and print the table."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    print(
        "| backend | precision | loss | gradient | Keras warns |\n| --- | --- | --- | --- | --- |"
    )
    for softmaxes, name in ((1, "of the logits"), (2, "of a double softmax")):
        loss, gradient = expected(softmaxes)
        print(f"| {name}, by hand | float64 | {loss:.3f} | {gradient:.3f} | |")
    for backend in filter(find_spec, BACKENDS):
        for precision in PRECISIONS:
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, __file__, precision]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
                print(f"| {backend} | {precision} | does not run: {said} | | |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            figures = f"{found['loss']:.3f} | {found['gradient']:.3f}"
            print(f"| {backend} | {precision} | {figures} | {'yes' if found['warned'] else 'no'} |")


if __name__ == "__main__":
    main()
