"""A network and photos -> what its head reads of each, and the head that logistic regression finds.

In: a functional Keras network whose last layer is its classifier, and the `Batches` of the photos.
Out: `features`, one row a photo, in order; and `probe`, a `Head` that maps such rows to logits,
which `set_head` puts into the network. The photos go through the network once, so that the answer
comes in seconds; training all layers begins with the same head. `docs/probe.md` shows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import inference
from fieldmark.augment import NONE
from fieldmark.backend import keras
from fieldmark.batches import Batches
from fieldmark.console import meter
from fieldmark.errors import FieldmarkError

Floats = NDArray[np.float32]

# The strengths that are tried, as the variance that they expect of a logit over the photos. What
# scikit-learn calls C is that of a weight, so this divided by the number of features: one grid
# serves narrow networks and wide ones.
VARIANCES = (0.1, 1.0, 10.0, 100.0, 1000.0)
UNTRIED = 10.0  # where there are too few photos to try any; the middle one
FOLDS = 5
# The regression is stopped here on purpose: what has not settled by then is hardly held back, and
# the folds tell whether that is any good.
ITERATIONS = 300
# Features of one layer are of one scale: what varies less than this share of the largest of them is
# taken as constant. It would get a large weight on next to nothing, and float32 would add the
# logits up in less than three digits.
CONSTANT = 1e-5


class Head(NamedTuple):
    """A classifier of features, and how it was found."""

    kernel: Floats  # (c, classes)
    bias: Floats  # (classes,)
    strength: float  # scikit-learn's C: the larger, the less the weights are held back
    # The share of photos that are called right by the heads of the others, None where there were
    # too few to hold any out. As the strength was chosen by the same photos, it flatters a little.
    accuracy: float | None

    def logits(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the logits (n, classes) of features (n, c)."""
        return features.astype(np.float64) @ self.kernel + self.bias


def features(network: Any, batches: Batches, *, description: str = "Features") -> Floats:
    """Return what the network's last layer reads of every photo, in order, (n, c).

    Batches to train on are taken without what changes their photos: each once, in its place,
    not augmented. Raises a FieldmarkError where the last layer is no classifier.
    """
    below = keras.Model(network.input, classifier(network).input)
    run = inference.forward(below)
    plain = replace(batches, shuffle=False, balanced=False, augment=NONE)
    found = []
    with meter(description, len(plain)) as shown:
        for images, _, _ in plain.dataset(epochs=1):
            found.append(run(images).astype(np.float32))  # where it computes in half precision
            shown.advance()
    return np.concatenate(found)[: len(plain.labels)]  # the last batch was filled up


def probe(
    network: Any,
    training: Batches,
    *,
    weighted: bool = False,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Head:
    """Return the head that logistic regression finds for the network on the training photos.

    The arguments are those of `regression`; `groups` has one entry a photo of the batches.
    """
    return regression(
        features(network, training),
        training.labels,
        classes=training.classes,
        weighted=weighted,
        seed=seed,
        groups=groups,
    )


def regression(
    rows: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    *,
    classes: int,
    weighted: bool = False,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Head:
    """Return the head that logistic regression finds for features (n, c) and labels (n,).

    Its strength is the one with the least cross-entropy on photos held out, in turns; `seed` says
    which. With `weighted` all classes count alike. Photos with the same entry in `groups`, (n,),
    are held out together: near duplicates on both sides would let the weakest strength win.
    Raises a FieldmarkError for features that are no numbers and for a class without photos.
    """
    rows = np.asarray(rows, np.float64)
    refuse_wrong(rows, labels, classes)
    parts = list(folds(rows, labels, seed=seed, groups=groups))
    if not parts:
        return fitted(rows, labels, UNTRIED, weighted=weighted)
    held_out = np.concatenate([held for _, held in parts])
    truth = labels[held_out]
    # So that `weighted` chooses by what it minimises.
    shares = 1 / np.bincount(truth, minlength=classes).clip(1)[truth] if weighted else None
    tried = []
    for variance in VARIANCES:
        logits = np.concatenate(
            [
                fitted(rows[kept], labels[kept], variance, weighted=weighted).logits(rows[held])
                for kept, held in parts
            ]
        )
        losses = cross_entropy(logits, truth)
        right = float((logits.argmax(axis=1) == truth).mean())
        tried.append((float(np.average(losses, weights=shares)), variance, right))
    _, variance, right = min(tried)  # of equals the one that holds back most
    return fitted(rows, labels, variance, weighted=weighted)._replace(accuracy=right)


def set_head(network: Any, head: Head) -> None:
    """Put the head into the network's last layer."""
    layer = classifier(network)
    if tuple(layer.kernel.shape) != head.kernel.shape:
        ours, theirs = (
            f"{shape[0]} features and {shape[1]} classes"
            for shape in (head.kernel.shape, layer.kernel.shape)
        )
        raise FieldmarkError(
            f"The head is for {ours} and the network has {theirs}: "
            "use it for the network and the classes that it was found with."
        )
    layer.set_weights([head.kernel, head.bias])


# ---- parts --------------------------------------------------------------------------------------


def classifier(network: Any) -> Any:
    """Return the network's last layer, which must be a Dense one with a bias."""
    layer = network.layers[-1]
    if not isinstance(layer, keras.layers.Dense) or layer.bias is None:
        raise FieldmarkError(
            f"The last layer of {network.name} is {layer.name}, which is no classifier with a "
            "bias: build the network with its top."
        )
    return layer


def refuse_wrong(rows: NDArray[np.float64], labels: NDArray[np.integer[Any]], classes: int) -> None:
    """Raise a FieldmarkError for what no head can be found for."""
    broken = int((~np.isfinite(rows).all(axis=1)).sum())
    if broken:
        raise FieldmarkError(
            f"The network's features of {broken} of {len(rows)} photos are no finite numbers: "
            "its weights are damaged or were trained too fast, so load others."
        )
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise FieldmarkError(
            f"Class {int(np.argmin(counts))}, counted from 0, has no photos to find a head with: "
            "add some, or leave the class out."
        )


def folds(
    rows: NDArray[np.float64],
    labels: NDArray[np.integer[Any]],
    *,
    seed: int,
    groups: NDArray[Any] | None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield which photos are kept and which are held out, each photo at most once."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    counts = np.bincount(labels)
    count = min(FOLDS, int(counts.min()))
    if groups is not None:
        count = min(count, len(np.unique(groups)))
    if count < 2:
        return
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=count, shuffle=True, random_state=seed)
    for kept, held in splitter.split(rows, labels, groups):
        # Groups can put a whole class into one fold, or leave a fold with nothing.
        if len(held) and np.bincount(labels[kept], minlength=len(counts)).all():
            yield kept, held


def fitted(
    rows: NDArray[np.float64],
    labels: NDArray[np.integer[Any]],
    variance: float,
    *,
    weighted: bool,
) -> Head:
    """Return the head of one strength; all classes have photos.

    The regression sees standardised features, so that it holds all of them back alike. With
    z = (x - mean) / spread, logits z W + b are x (W / spread) + (b - mean (W / spread)).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    varies = spread > CONSTANT * np.abs(rows).max()
    strength = variance / max(int(varies.sum()), 1)
    kernel = np.zeros((rows.shape[1], int(labels.max()) + 1))
    if varies.any():
        regressed = LogisticRegression(
            C=strength,
            class_weight="balanced" if weighted else None,
            max_iter=ITERATIONS,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regressed.fit((rows[:, varies] - mean[varies]) / spread[varies], labels)
        weights, bias = regressed.coef_.T, regressed.intercept_  # (c, classes), (classes,)
        if weights.shape[1] == 1:  # of two classes scikit-learn has the difference alone
            weights, bias = weights * [-0.5, 0.5], bias * [-0.5, 0.5]
        kernel[varies] = weights / spread[varies, None]
    else:  # nothing tells the photos apart; how frequent a class is, still says something
        counts = np.bincount(labels)
        bias = np.log(counts / len(labels)) * (not weighted)
    rounded = kernel.astype(np.float32)
    # Of the rounded kernel, so that its rounding is not multiplied by the mean.
    bias = bias - mean @ rounded
    return Head(rounded, bias.astype(np.float32), strength, None)


def cross_entropy(
    logits: NDArray[np.float64], labels: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the cross-entropy of each row of logits, (n, classes) -> (n,)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    logs = np.log(np.exp(logits).sum(axis=1))
    return np.asarray(logs - logits[np.arange(len(labels)), labels], np.float64)
