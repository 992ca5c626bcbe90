"""A run -> why it is as good or as bad as it is: tests, each with what was measured and expected.

In: a run and its photos. Out: `diagnosis.json`, a `Finding` a test, with a verdict and what to do,
and `findings.json`, what a check finds in the photos and which labels the others contradict.
Nothing is concluded from the recipe alone: the tests measure on the trained weights, on the log,
and on a few steps of training from the beginning. What fails is a fault of its own, or it follows
from another fault that explains it; only faults are causes.

    fieldmark diagnose RUN
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from fieldmark import (
    article,
    backend,
    check,
    data,
    features,
    files,
    images,
    inference,
    loop,
    network,
    reproduction,
    sheet,
    split,
    steps,
    train,
    weights,
)
from fieldmark.backend import keras
from fieldmark.batches import Batches
from fieldmark.console import meter, printable, printed
from fieldmark.contents import Pictured, Remark, Remarks, Together
from fieldmark.errors import FieldmarkError
from fieldmark.feed import batches_of, listing, refuse_changed
from fieldmark.findings import wilson
from fieldmark.images import ImageSpec
from fieldmark.logbook import best_of
from fieldmark.run import Run, open_run
from fieldmark.trained import Trained, softmax

Verdict = Literal["fault", "follows", "note", "not tried", "fine"]

BATCH = 32  # photos that go through the network at once
SAMPLE = 1000  # photos that are looked at of the training, and of the validation
RESAMPLES = 2000
SURE = 0.01  # what is less probable than this is called chance no more
WORSE = 0.9  # share of the validation loss that new statistics must come below, to matter
STEPS = 30  # of training on one batch; enough for each healthy network that was tried
LEARNED = 0.5  # share of the first loss that one batch must come below
FACTORS = (0.1, 0.01, 10.0, 100.0)  # of the learning rate, tried in turn where it does not learn
AGAIN = 0.5  # share of the pairs of a batch that may meet again
STILL = 0.05  # share by which the loss may still fall at the end of a training
KNOWN = 0.9  # accuracy on its training photos from which on a network has learned them
MISLABELLED = 0.03  # share of labels; below it the search's own mistakes are as many
MOSTLY = (
    2 / 3
)  # of the mistakes that contradict their labels, where it is the labels that are wrong
LEAKED = 0.02  # share of the held-out photos; below it no figure changes that is not noise anyway
DEAD = 0.5  # share of a layer's channels that may be silent for every photo
GAP = 0.1  # of accuracy, by which training photos may be ahead
WIDE = 0.1  # half of an accuracy's interval, from where on it says little
ANSWERABLE = 5  # validation photos of a class from which on it should be an answer
PICTURES = sheet.Room(finding=16, note=4, all=96)  # of the findings that are kept: about 700 kB


@dataclass(frozen=True)
class Finding:
    """What one test came to."""

    test: str
    measured: str
    expected: str
    verdict: Verdict
    fix: str = ""  # where something is wrong
    figures: Mapping[str, float] = field(default_factory=dict)


# What each test asks, in the order in which they are told.
QUESTIONS = {
    "numbers": "Was the loss a number in every epoch?",
    "head": "Do the loss and the head of the network match?",
    "reading": "Does the saved network do what the log says?",
    "input": "Are the photos in the range that the network was trained on?",
    "statistics": "Do the statistics of the normalisation fit the weights?",
    "learning rate": "Is the learning rate one that learns?",
    "one batch": "Can the network learn one batch by heart?",
    "frozen batches": "Are batches drawn anew in every epoch?",
    "unfinished": "Had the training come to its end?",
    "label errors": "Are the labels right?",
    "leaks": "Are held-out photos in the training?",
    "dead units": "Do all parts of the network take part?",
    "shuffled labels": "Is it better than with labels that mean nothing?",
    "never predicted": "Is every class an answer?",
    "gap": "Does it know its training photos by heart?",
    "validation size": "Are there enough validation photos to see a difference?",
}
UNTRAINED = ("numbers", "head", "learning rate", "one batch", "unfinished")
# What a test that fails may follow from.
FOLLOWS_FROM: dict[str, tuple[str, ...]] = {
    "reading": ("input", "statistics"),
    "statistics": ("input",),
    "one batch": ("learning rate",),
    "unfinished": ("numbers", "head", "learning rate", "one batch"),
    "dead units": ("numbers", "learning rate", "input", "statistics"),
    "shuffled labels": (*UNTRAINED, "reading", "input", "statistics", "dead units"),
    "label errors": (*UNTRAINED, "shuffled labels"),
    "gap": ("reading", "input", "statistics", "label errors", "dead units", "shuffled labels"),
    "never predicted": (
        *(*UNTRAINED, "reading", "input", "statistics", "dead units", "shuffled labels"),
    ),
}


def diagnose(folder: str | os.PathLike[str]) -> tuple[Finding, ...]:
    """Test a run, write what was found, and return it, the faults first.

    Raises a FieldmarkError for a run without weights, and where its photos are gone or changed;
    the run stays as it was.
    """
    run = open_run(folder)
    files.require_folder(run.folder)  # before the minutes that it takes
    case = Case(run)
    found: list[Finding] = []
    with meter("Testing", len(TESTS)) as shown:
        for test in TESTS:
            found += test(case)
            shown.advance(note=QUESTIONS[found[-1].test])
    case.classifier.refuse_exchanged()
    findings = explained(found)
    told = [{"question": QUESTIONS[each.test], **asdict(each)} for each in findings]
    causes = [each.test for each in findings if each.verdict == "fault"]
    files.write_json(run.findings, remarks(case, findings).model_dump())
    files.write_json(run.diagnosis, {"findings": told, "causes": causes})
    return findings


# ---- what is tested -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Some photos as the network sees them."""

    paths: tuple[str, ...]  # n, as in the split
    squares: NDArray[np.uint8]  # (n, size, size, 3)
    labels: NDArray[np.int64]  # (n,)


@dataclass(frozen=True)
class Answers:
    """What a network answers for photos, and what is inside it then."""

    logits: NDArray[np.float64]  # (n, c)
    features: NDArray[np.float32]  # (n, f), what the classifier reads
    strongest: NDArray[np.float32]  # (n, u), the highest place of each channel of each ReLU
    labels: NDArray[np.int64]  # (n,), the true ones

    @property
    def accuracy(self) -> float:
        """The share of photos that are called right."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    @property
    def losses(self) -> NDArray[np.float64]:
        """The cross-entropy of each photo, (n,)."""
        logits = self.logits
        if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
            logits = np.log(logits.clip(1e-38))  # they are probabilities
        return features.cross_entropy(logits, self.labels)


@dataclass(frozen=True)
class Contradicted:
    """A photo whose label the classifiers of the other photos contradict."""

    path: str
    label: str
    rather: str  # the class that they call it


class Case:
    """A run under examination; what more than one test needs is computed once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe = run.read_recipe()
        self.log = run.read_log()
        if not self.log:
            raise FieldmarkError(
                f"{run.folder} has not finished an epoch yet: the `fieldmark train` that began it "
                "goes on with it."
            )
        self.classifier = Trained.load(run)
        self.classes = len(self.classifier.classes)
        self.records = run.read_split()
        source = run.read_source()
        self.listed = listing(self.recipe, source)
        self.found = check.examine(self.listed, source=source, records=self.records)
        bad = (each for each in self.found.files if each.kind == "unreadable")
        data.refuse_bad(self.listed, ((each.path, each.why) for each in bad))
        hashes = {each.path: each.sha256 for each in self.found.files}
        refuse_changed(self.records, self.listed, [hashes[path] for path in self.listed.paths])
        self.contradicted: list[Contradicted] = []  # what `label_errors` finds

    @cached_property
    def together(self) -> list[list[int]]:
        """The groups of equal and nearly equal photos, by their rows in the split."""
        number = {row.path: i for i, row in enumerate(self.records)}
        groups = defaultdict[int, list[int]](list)
        for path, group in self.found.alike.items():
            groups[group].append(number[path])
        return [*groups.values()]

    @cached_property
    def training(self) -> Shown:
        """Training photos, as they are outside of the training."""
        return self.shown("training")

    @cached_property
    def validation(self) -> Shown:
        """Validation photos."""
        return self.shown("validation")

    @cached_property
    def held_out(self) -> Answers:
        """What the network answers for the validation photos."""
        return self.answers(self.validation)

    @cached_property
    def learned(self) -> Answers:
        """What the network answers for the training photos."""
        return self.answers(self.training)

    @cached_property
    def relus(self) -> list[Any]:
        """The ReLUs of the network that have maps."""
        return [layer for layer in self.classifier.network.layers if is_relu(layer)]

    @cached_property
    def inside(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """The network as one compiled pass that tells what is inside, too."""
        model = self.classifier.network
        highest = [keras.layers.GlobalMaxPooling2D()(layer.output) for layer in self.relus]
        told = [model.output, features.classifier(model).input, *highest]
        return inference.forward(keras.Model(model.input, keras.layers.Concatenate()(told)))

    def shown(self, part: str) -> Shown:
        """Read photos of one side of the split, drawn at random where there are many."""
        rows = [row for row in self.records if row.split == part]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
        rows = [rows[i] for i in chosen]
        return Shown(
            tuple(row.path for row in rows),
            self.classifier.squares([self.run.photo(row.path) for row in rows]),
            np.array([self.classifier.classes.index(row.label) for row in rows], np.int64),
        )

    def answers(self, shown: Shown, specification: ImageSpec | None = None) -> Answers:
        """Return what the network answers for photos, scaled as its specification says."""
        spec = specification or self.classifier.specification
        parts = np.array_split(shown.squares, math.ceil(len(shown.labels) / BATCH))
        told = np.concatenate([self.inside(images.scale(part, spec)) for part in parts])
        width = features.classifier(self.classifier.network).input.shape[-1]
        ends = [self.classes, self.classes + width]
        logits, rows, strongest = np.split(told, ends, axis=1)
        return Answers(logits.astype(np.float64), rows, strongest, shown.labels)

    def batches(self, shown: Shown, batch_size: int) -> Batches:
        """Return photos as batches, each photo once."""
        return Batches(
            pixels=shown.squares,
            labels=shown.labels,
            classes=self.classes,
            spec=self.classifier.specification,
            batch_size=min(batch_size, len(shown.labels)),
        )


# ---- the tests: of the training -----------------------------------------------------------------


def numbers(case: Case) -> Finding:
    """Look for epochs whose loss was no number."""
    names = ("loss", "val_loss", "averaged_val_loss")
    lost = [line["epoch"] for line in case.log if any(line.get(name, 0) is None for name in names)]
    return Finding(
        "numbers",
        f"no number in epoch {lost[0]:.0f}" if lost else f"a number in all {len(case.log)} epochs",
        "a number in every epoch",
        "fault" if lost else "fine",
        "a lower --learning-rate, --clip 1 and --precision float32",
        {"epochs": len(lost)},
    )


def learning(case: Case) -> tuple[Finding, Finding]:
    """Train on one batch from the beginning, at the recipe's rate and, where it fails, at others.

    Leslie Smith's range test (2017, arXiv:1506.01186) in few steps: what learns one batch at
    another rate only, has the wrong one.
    """
    if not case.recipe.epochs:
        why = "only the classifier was found, no layer was trained"
        return untried("learning rate", why), untried("one batch", why)
    try:
        trial = Trial(case)
    except FieldmarkError as error:  # the weights that it began with are gone
        return untried("learning rate", str(error)), untried("one batch", str(error))
    rate = case.recipe.learning_rate
    first, tried = trial.loss, {1.0: trial.after(rate)}
    for factor in FACTORS:
        if min(tried.values()) >= LEARNED * first:
            tried[factor] = trial.after(rate * factor)
    works = min(tried, key=lambda factor: tried[factor])
    learns = tried[works] < LEARNED * first
    told = ", ".join(f"{last:.3f} at a rate of {rate * f:.2g}" for f, last in tried.items())
    measured = f"its loss is {first:.3f} at the beginning; after {STEPS} steps {told}"
    expected = f"below {LEARNED * first:.3f} at the recipe's rate"
    figures = {"first": first, **{f"{rate * factor:.2g}": last for factor, last in tried.items()}}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    return (
        Finding(
            "learning rate",
            measured,
            expected,
            "fault" if learns and works != 1.0 else "fine",
            f"--learning-rate {rate * works:.2g}",
            figures,
        ),
        Finding(
            "one batch",
            measured,
            expected,
            "fine" if learns else "fault",
            "what it is asked for cannot be learned: lower --label-smoothing and --weight-decay, "
            "and look at the weights that it starts from",
            figures,
        ),
    )


class Trial:
    """The recipe's network at its beginning, and what a few steps on one batch make of it."""

    def __init__(self, case: Case) -> None:
        recipe = case.recipe
        backend.seed(recipe.seed)
        built = train.built(recipe, case.classes)
        if recipe.weights:
            weights.load(built, recipe.weights)
        # The article's too ends in logits here: `head` tells what its loss makes of a softmax.
        model = reproduction.logits_network(built)
        self.optimiser = loop.optimiser_of(recipe, model)
        smoothed = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        )
        self.step = steps.training_step(model, self.optimiser, loss=smoothed)
        size = min(max(recipe.batch_size, 8), 16)
        self.batch = case.batches(case.training, size).batch(0, 0)
        variables = [*model.variables, *self.optimiser.variables]
        self.beginning = [(each, np.array(inference.values_of(each))) for each in variables]
        self.loss = self.after(0.0, steps=1)

    def after(self, rate: float, *, steps: int = STEPS) -> float:
        """Return the batch's loss in the last of some steps from the beginning."""
        for variable, value in self.beginning:
            variable.assign(value)
        self.optimiser.learning_rate.assign(rate)
        last = math.inf
        for _ in range(steps):
            last = self.step(*self.batch).loss
            if not math.isfinite(last):
                return math.inf
        return last


def frozen_batches(case: Case) -> Finding:
    """Count how many photos that meet in a batch meet again in the next epoch."""
    first, second = two_epochs(case)
    met, meet = (
        {frozenset(pair) for batch in epoch for pair in combinations(batch, 2)}
        for epoch in (first, second)
    )
    again = len(met & meet) / max(1, len(met))
    others = max(1, sum(map(len, first)) - 1)
    chance = (max(map(len, first)) - 1) / others
    return Finding(
        "frozen batches",
        f"{again:.0%} of the pairs that meet in a batch meet again in the next epoch",
        f"{chance:.0%}, as by chance",
        "fault" if again > AGAIN > chance else "fine",
        "--pipeline batches draws them anew; in a pipeline of your own, shuffle before you batch",
        {"again": again, "chance": chance},
    )


def two_epochs(case: Case) -> list[list[list[Hashable]]]:
    """Return which photos meet in the batches of two epochs: epochs of batches of photos."""
    if case.recipe.pipeline == "article":
        training, _ = article.pipeline(*article.read_photos(case.listed.folder, case.recipe))
        # Keras tells no names; photos of the same pixels are the same photo.
        return [
            [[hash(photo.tobytes()) for photo in np.asarray(batch)] for batch, _ in training]
            for _ in range(2)
        ]
    batches, _ = batches_of(case.recipe, case.listed, case.records)
    size = batches.batch_size
    return [
        [batches.order(epoch)[step * size :][:size].tolist() for step in range(len(batches))]
        for epoch in range(2)
    ]


def unfinished(case: Case) -> Finding:
    """Look whether the training was stopped while it still learned.

    A single epoch shows no fall; there is one wherever the photos are not known by then. What the
    network called right while it was trained counts as well: the saved one may be broken.
    """
    losses = [float(line["loss"] or 0) for line in case.log if line.get("loss") is not None]
    if not losses:
        return untried("unfinished", "no epoch has a loss")
    right = max(case.learned.accuracy, float(case.log[-1].get("accuracy") or 0))
    third = max(1, len(losses) // 3)
    fall, told = 1.0, "there was one epoch"
    if len(losses) > 1:
        before, last = np.mean(losses[-2 * third : -third]), np.mean(losses[-third:])
        fall = float(1 - last / before) if before else 0.0  # all photos are known by heart
        told = f"the training loss fell by {fall:.0%} in the last third of the epochs"
    return Finding(
        "unfinished",
        f"{told}, and the network called {right:.0%} of its training photos right",
        f"a fall by {STILL:.0%} at most, or {KNOWN:.0%} of them",
        "fault" if fall > STILL and right < KNOWN else "fine",
        "more --epochs, or a smaller network, which learns as much in less time",
        {"fall": fall, "training": right},
    )


# ---- the tests: of the trained network ----------------------------------------------------------


def head(case: Case) -> Finding:
    """Compare the loss that the training takes with the cross-entropy of the probabilities."""
    squares, labels = case.validation.squares[:BATCH], case.validation.labels[:BATCH]
    model = case.classifier.network
    if case.recipe.pipeline == "article":
        trained, size = model, case.recipe.image_size
        model = network.build(case.recipe.network, image_size=size, classes=case.classes)
        article.compile_network(model, case.recipe)
        model.set_weights(trained.get_weights())
        loss, truth = model.loss, labels
    else:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        truth = keras.ops.one_hot(labels, case.classes)
    inputs = images.scale(squares, case.classifier.specification)
    with reproduction.expected_warning():
        taken = float(keras.ops.convert_to_numpy(loss(truth, model(inputs, training=False))))
    right = float(case.held_out.losses[: len(labels)].mean())
    return Finding(
        "head",
        f"on {backend.name} the training's loss of {len(labels)} photos is {taken:.3f}, and the "
        f"cross-entropy of their probabilities {right:.3f}",
        "the same, to a hundredth",
        "fine" if abs(taken - right) <= 0.01 * max(1.0, right) else "fault",
        "a network that ends in logits, as in every recipe but the article's, or a loss that is "
        "told to expect probabilities",
        {"taken": taken, "right": right},
    )


def reading(case: Case) -> Finding:
    """Compare what the saved network does now with what the log says of it."""
    best = best_of(case.log, case.recipe.monitor)
    count = len(case.validation.labels)
    if best is None or count < sum(row.split == "validation" for row in case.records):
        return untried("reading", "the log has no accuracy of just these validation photos")
    then = best.accuracy
    now = case.held_out.accuracy
    # Keras' reader, which the article's training has, makes other pixels of a photo than ours.
    most = max(1, round((0.05 if case.recipe.pipeline == "article" else 0.01) * count))
    return Finding(
        "reading",
        f"{now:.3f} of {count} validation photos are called right, and {then:.3f} were when it "
        "was saved",
        f"a difference of {most} photos at most",
        "fault" if round(abs(now - then) * count) > most else "fine",
        f"bring back {case.run.best.name}, {case.run.classes.name} and "
        f"{case.run.specification.name} as the training wrote them, and the Pillow of "
        f"{case.run.environment.name}",
        {"then": then, "now": now, "photos": count},
    )


def input_range(case: Case) -> Finding:
    """Feed the validation photos in each of the ranges that networks are fed with."""
    spec = case.classifier.specification
    losses = {
        scaling: case.answers(case.validation, spec.model_copy(update={"scaling": scaling})).losses
        for scaling in ("0..255", "0..1", "-1..1")
    }
    best = min(losses, key=lambda scaling: float(losses[scaling].mean()))
    low, _ = interval(losses[spec.scaling] - losses[best])
    means = {scaling: float(each.mean()) for scaling, each in losses.items()}
    guessing = math.log(case.classes)  # a network that is far off does better on smaller numbers
    return Finding(
        "input",
        "the validation loss is "
        + ", ".join(f"{mean:.3f} with {scaling}" for scaling, mean in means.items()),
        f"the least with {spec.scaling}, which {case.run.specification.name} says",
        "fault" if best != spec.scaling and low > 0 and means[best] < guessing else "fine",
        f"the network was trained on {best}: say so in {case.run.specification.name}",
        means,
    )


def statistics(case: Case) -> Finding:
    """Take the normalisation's statistics anew over the training photos, and look again."""
    model = case.classifier.network
    if not any(isinstance(each, keras.layers.BatchNormalization) for each in model.layers):
        return untried("statistics", "the network has no batch normalisation")
    batches = case.batches(case.training, BATCH)
    with inference.statistics(model, batches, 0, len(batches)):
        renewed = case.answers(case.validation)
    before, after = case.held_out.losses, renewed.losses
    low, high = interval(before - after)
    stale = low > 0 and after.mean() < WORSE * before.mean()
    return Finding(
        "statistics",
        f"the validation loss is {before.mean():.3f} with those that are saved and "
        f"{after.mean():.3f} with new ones, {low:.3f} to {high:.3f} less; accuracy "
        f"{case.held_out.accuracy:.3f} and {renewed.accuracy:.3f}",
        "about the same",
        "fault" if stale else "fine",
        "--pipeline batches --statistics 8, which takes them anew before each look; and a momentum "
        "of 0.9, as in every network here but the article's",
        {
            "before": float(before.mean()),
            "after": float(after.mean()),
            "accuracy_before": case.held_out.accuracy,
            "accuracy_after": renewed.accuracy,
        },
    )


def dead_units(case: Case) -> Finding:
    """Count the channels of each ReLU that are silent for every training photo."""
    if not case.relus:
        return untried("dead units", "the network has no ReLU")
    silent = case.learned.strongest.max(axis=0) <= 0
    ends = np.cumsum([layer.output.shape[-1] for layer in case.relus])[:-1]
    shares = {
        layer.name: float(part.mean())
        for layer, part in zip(case.relus, np.split(silent, ends), strict=True)
    }
    worst = max(shares, key=lambda name: shares[name])
    return Finding(
        "dead units",
        f"{silent.mean():.0%} of all channels are silent for each of "
        f"{len(case.training.labels)} training photos, and {shares[worst]:.0%} of {worst}, the "
        "most of any layer",
        f"{DEAD:.0%} of a layer at most",
        "fault" if shares[worst] > DEAD else "fine",
        "a lower --learning-rate, or a --warmup: what is silent for every photo learns no more",
        {"all": float(silent.mean()), "worst": shares[worst]},
    )


def is_relu(layer: Any) -> bool:
    """Tell whether a layer is a ReLU over a map."""
    named = getattr(getattr(layer, "activation", None), "__name__", "") == "relu"
    return (named or isinstance(layer, keras.layers.ReLU)) and len(layer.output.shape) == 4


# ---- the tests: of its answers ------------------------------------------------------------------


def shuffled_labels(case: Case) -> Finding:
    """Compare the answers with what they are worth where the labels mean nothing."""
    answers, labels = case.held_out.logits.argmax(axis=1), case.held_out.labels
    right = case.held_out.accuracy
    rng = np.random.default_rng(0)
    chance = np.array([(answers == rng.permutation(labels)).mean() for _ in range(RESAMPLES)])
    probability = float((1 + (chance >= right).sum()) / (1 + RESAMPLES))
    return Finding(
        "shuffled labels",
        f"{right:.3f} of {len(labels)} validation photos are called right, {chance.mean():.3f} "
        f"with shuffled labels; that chance does as well has a probability of {probability:.2g}",
        f"below {SURE:g}",
        "fine" if probability < SURE else "fault",
        "give it more --epochs or --weights to start from; if that does not help, look whether the "
        "photos lie in the right folders, and whether you can tell them apart",
        {"accuracy": right, "chance": float(chance.mean()), "probability": probability},
    )


def never_predicted(case: Case) -> Finding:
    """Look for classes that the network never answers."""
    there = Counter(case.held_out.labels.tolist())
    answered = set(case.held_out.logits.argmax(axis=1).tolist())
    asked = [label for label, count in sorted(there.items()) if count >= ANSWERABLE]
    missing = [case.classifier.classes[label] for label in asked if label not in answered]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return Finding(
        "never predicted",
        f"{', '.join(missing[:5])}{more}: never the answer"
        if missing
        else f"all of {len(asked)} classes with {ANSWERABLE} validation photos or more are",
        "all of them",
        "fault" if missing else "fine",
        "--balance sampling where the class is small; else look at its photos",
        {"missing": len(missing), "asked": len(asked)},
    )


def gap(case: Case) -> Finding:
    """Compare training photos, as they are, with validation photos."""
    ours, theirs = case.learned, case.held_out
    low, high = newcombe((ours.accuracy, len(ours.labels)), (theirs.accuracy, len(theirs.labels)))
    return Finding(
        "gap",
        f"it calls {ours.accuracy:.3f} of {len(ours.labels)} training photos right and "
        f"{theirs.accuracy:.3f} of {len(theirs.labels)} validation photos, {low:.3f} to {high:.3f} "
        "less",
        f"less than {GAP:g}",
        "fault" if low > GAP else "fine",
        "more photos, --weights to start from, or a stronger --augment",
        {"training": ours.accuracy, "validation": theirs.accuracy, "low": low, "high": high},
    )


def validation_size(case: Case) -> Finding:
    """Say how large a difference the validation photos can show."""
    count = sum(row.split == "validation" for row in case.records)
    right = case.held_out.accuracy
    low, high = wilson(right, count)
    half = (high - low) / 2
    names = ("val_accuracy", "averaged_val_accuracy")
    told = [value for line in case.log for name in names if (value := line.get(name)) is not None]
    spread = f"; the epochs of the log are up to {max(told) - told[-1]:.3f} better than its last"
    return Finding(
        "validation size",
        f"of {count} photos, an accuracy of {right:.3f} is one of {low:.3f} to {high:.3f}"
        f"{spread * bool(told)}",
        f"within {WIDE:g} to either side",
        "fault" if half > WIDE else "note" if half > WIDE / 2 else "fine",
        f"take differences below {2 * half:.2f} for none; hold out more photos, or train with "
        "several seeds and splits",
        {"photos": count, "half": half},
    )


# ---- the tests: of the photos -------------------------------------------------------------------


def label_errors(case: Case) -> Finding:
    """Look for labels that classifiers of the other photos contradict.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068) on the network's features. The
    network has seen the wrong labels too, so that some are missed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return untried("label errors", "cleanlab is not there: pip install 'fieldmark[labels]'")
    labels = np.concatenate([case.learned.labels, case.held_out.labels])
    rows = np.concatenate([case.learned.features, case.held_out.features]).astype(np.float64)
    if np.bincount(labels, minlength=case.classes).min() < features.FOLDS:
        return untried("label errors", f"a class has fewer than {features.FOLDS} photos")
    shares = np.zeros((len(labels), case.classes))
    for kept, held in features.folds(rows, labels, seed=0, groups=None):
        found = features.fitted(rows[kept], labels[kept], features.UNTRIED, weighted=False)
        shares[held] = softmax(found.logits(rows[held]))
    wrong = find_label_issues(labels, shares, n_jobs=1)
    # A class that is never the answer contradicts all its labels, and has a test of its own.
    wrong &= np.isin(labels, case.held_out.logits.argmax(axis=1))
    ours, theirs = np.split(wrong, [len(case.learned.labels)])
    # Labels of training photos were learned, right or wrong. Of those that were not, hard photos
    # are contradicted as well, but then the network is mostly unsure where it is wrong.
    mistakes = round((1 - case.held_out.accuracy) * len(theirs))
    case.contradicted = contradicted(case, labels, shares, wrong)
    paths = [each.path for each in case.contradicted]
    such = f": {', '.join(paths[:3])}{' and others' * (len(paths) > 3)}" if paths else ""
    share = float(theirs.mean())
    many = share > MISLABELLED and theirs.sum() >= MOSTLY * mistakes
    return Finding(
        "label errors",
        f"the other photos contradict {theirs.sum()} of {len(theirs)} labels of validation photos, "
        f"of which {mistakes} are called wrong, and {ours.sum()} of {len(ours)} of training "
        f"photos{such}",
        f"{MISLABELLED:.0%} of the validation photos, or fewer than two of three mistakes",
        "fault" if many else "note" if wrong.any() else "fine",
        "look at the photos that are called wrong, and put those right that lie in a wrong folder",
        {"validation": int(theirs.sum()), "training": int(ours.sum()), "mistakes": mistakes},
    )


def contradicted(
    case: Case, labels: NDArray[np.int64], shares: NDArray[np.float64], wrong: NDArray[np.bool_]
) -> list[Contradicted]:
    """Return the photos whose labels are `wrong`, validation photos first, the surest first.

    labels: (n,), those of the training photos before those of the validation photos; shares:
    (n, c), of the classifiers that did not see the photo; wrong: (n,).
    """
    classes = case.classifier.classes
    paths = [*case.training.paths, *case.validation.paths]
    rows = np.flatnonzero(wrong)
    held_out = rows >= len(case.training.paths)
    order = np.lexsort((shares[rows, labels[rows]], ~held_out))
    others = shares.copy()
    others[np.arange(len(labels)), labels] = -1
    return [
        Contradicted(paths[i], classes[labels[i]], classes[others[i].argmax()]) for i in rows[order]
    ]


def leaks(case: Case) -> Finding:
    """Look for held-out photos that are in the training too, as they are or nearly so."""
    found = split.leaks(case.records, case.together)
    held_out = sum(row.split != "training" for row in case.records)
    share = len(found) / held_out
    pair = f", such as {found[0].second} and {found[0].first}" if found else ""
    return Finding(
        "leaks",
        f"{len(found)} of {held_out} held-out photos are there twice{pair}",
        f"none; {LEAKED:.0%} change no figure",
        "fault" if share > LEAKED else "note" if found else "fine",
        "--split stratified keeps such photos on one side; `fieldmark check` shows them",
        {"photos": len(found), "share": share},
    )


def alone(test: Callable[[Case], Finding]) -> Callable[[Case], tuple[Finding, ...]]:
    """Make a test with one finding one of several."""
    return lambda case: (test(case),)


TESTS = (
    *map(alone, (numbers, head, reading, input_range, statistics, dead_units)),
    learning,
    *map(alone, (frozen_batches, unfinished, label_errors, leaks)),
    *map(alone, (shuffled_labels, never_predicted, gap, validation_size)),
)


# ---- from findings to causes --------------------------------------------------------------------


def explained(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Say which faults follow from others; the faults come first, and what is fine last."""
    faults = {each.test for each in found if each.verdict == "fault"}
    told = []
    for each in found:
        causes = sorted(faults & {*FOLLOWS_FROM.get(each.test, ())})
        if each.verdict == "fault" and causes:
            told.append(replace(each, verdict="follows", fix=f"mend first: {', '.join(causes)}"))
        else:
            told.append(each if each.verdict != "fine" else replace(each, fix=""))
    order: tuple[Verdict, ...] = ("fault", "follows", "note", "not tried", "fine")
    ranks = list(QUESTIONS)
    return tuple(sorted(told, key=lambda each: (order.index(each.verdict), ranks.index(each.test))))


def untried(test: str, why: str) -> Finding:
    """Return the finding of a test that could not be made."""
    return Finding(test, why, "", "not tried")


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over photos, (n,), by the bootstrap."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def newcombe(first: tuple[float, int], second: tuple[float, int]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares, each with its count.

    Newcombe (1998), "Interval estimation for the difference between independent proportions",
    method 10: from the Wilson intervals of the two.
    """
    (low, high), (lower, higher) = wilson(*first), wilson(*second)
    apart = first[0] - second[0]
    return (  # rounding may lead out of what a difference can be
        max(-1.0, apart - math.hypot(first[0] - low, higher - second[0])),
        min(1.0, apart + math.hypot(high - first[0], second[0] - lower)),
    )


# ---- what is in the photos ----------------------------------------------------------------------


def remarks(case: Case, findings: Sequence[Finding]) -> Remarks:
    """Return what the check found in the photos, and the labels that the others contradict.

    What a network says of labels counts where nothing else explains that it contradicts them.
    """
    told = [
        Remark(
            kind=section.finding.kind,
            severity=section.finding.severity,
            title=section.finding.title,
            advice=section.finding.advice,
            count=section.finding.count,
            of=len(section.finding.paths),
            cases=[
                Together(
                    what=printable(shown.what),
                    photos=[
                        # A file that is none of the photos may have any name.
                        Pictured(path=printable(of.path), picture=of.picture)
                        for of in shown.photos
                    ],
                    hidden=shown.hidden,
                )
                for shown in section.cases
            ],
        )
        for section in sheet.sections(case.found, PICTURES)
    ]
    verdicts = {each.test: each.verdict for each in findings}
    doubtful = any(verdicts[test] in ("fault", "follows") for test in FOLLOWS_FROM["label errors"])
    if case.contradicted and not doubtful:
        told.insert(sum(each.severity == "error" for each in told), suspicion(case))
    return Remarks(account=case.found.account, balance=case.found.balance, findings=told)


def suspicion(case: Case) -> Remark:
    """Return the labels that the other photos contradict as a finding."""
    cases = [
        Together(
            what=f"in {each.label}, looks like {each.rather}",
            photos=[Pictured(path=each.path, picture=sheet.data_uri(case.run.photo(each.path)))],
            hidden=0,
        )
        for each in case.contradicted[: PICTURES.finding]
    ]
    return Remark(
        kind="contradicted",
        severity="warning",
        title="Photos whose label the other photos contradict",
        advice="Look at them, and move those that lie in a wrong folder; hard photos of the right "
        "class are among them.",
        count=f"{len(case.contradicted):,}",
        of=len(case.contradicted),
        cases=cases,
    )


# ---- for people ---------------------------------------------------------------------------------

COLOURS: dict[Verdict, str] = {
    "fault": "bold red",
    "follows": "yellow",
    "note": "cyan",
    "not tried": "dim",
    "fine": "green",
}


def table(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """Return the findings for a terminal, with what to do."""
    parts: list[RenderableType] = []
    for each in findings:
        line = Text(f"{each.verdict:9}", COLOURS[each.verdict])
        parts.append(line.append(f"  {QUESTIONS[each.test]}", "default"))
        if each.verdict != "fine":
            told = [printable(each.measured)]
            told += [f"Expected: {each.expected}"] if each.expected else []
            told += [f"-> {each.fix}"] if each.fix else []
            parts += [Padding(Text(text), (0, 0, 0, 11)) for text in told]
    return printed([*parts, "", summary(findings)], width=width)


def summary(findings: Sequence[Finding]) -> str:
    """Say in a sentence what is wrong."""
    causes = [each.test for each in findings if each.verdict == "fault"]
    if not causes:
        return f"Nothing is wrong, of {len(findings)} things that were looked at."
    return f"{'Cause' if len(causes) == 1 else 'Causes'}: {', '.join(causes)}."
