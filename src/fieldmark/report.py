"""A run as one page that explains itself, and as a model card.

In: a run folder, of which only files are read, never the photos that it was trained on. Out:
`write` writes an HTML page that needs nothing beside it (`report.html` filled), `write_card` the
card in Markdown (`card.md` filled). What a command has not measured yet is named, with the command.

    fieldmark report RUN
    fieldmark report RUN --card
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from fieldmark import charts, files, split
from fieldmark.console import many, printable, shortened
from fieldmark.contents import (
    Contents,
    Explained,
    Explanations,
    Measured,
    interval,
    percent,
    read,
    valued,
)
from fieldmark.data import Split
from fieldmark.errors import FieldmarkError
from fieldmark.findings import FEW, RESULT, Interval, wilson
from fieldmark.logbook import best_of, looks
from fieldmark.recipe import ARTICLE, SECTIONS, Recipe
from fieldmark.sheet import data_uri, templates

ROWS = 20  # classes that a table shows before the others are folded
CONFUSED = 20  # classes in the confusion matrix
PAIRS = 8  # confused pairs that are put in words
PHOTOS = 24  # explained photos of a kind: mistakes, pairs, right ones
PICTURES = 320  # thumbnails in all: below 3 MB
LARGEST = 20_000_000  # bytes of a picture that is read

# ---- words --------------------------------------------------------------------------------------


class Wording(NamedTuple):
    """How a figure is called."""

    name: str
    meaning: str
    share: bool = True  # written in per cent


FIGURES = {
    "accuracy": Wording("Accuracy", "photos whose class is named"),
    "balanced_accuracy": Wording("Balanced accuracy", "the same, every class counting alike"),
    "macro_precision": Wording("Precision", "of the photos called a class, those that are of it"),
    "macro_recall": Wording("Recall", "of the photos of a class, those that are called it"),
    "macro_f1": Wording("F1", "the harmonic mean of both, over the classes"),
    "macro_roc_auc": Wording(
        "Area under the ROC", "0.5 is chance, 1 tells every class apart", share=False
    ),
    "log_loss": Wording("Log loss", "of the probabilities; less is better", share=False),
    "brier": Wording("Brier score", "their squared error; less is better", share=False),
    "calibration_error": Wording(
        "Calibration error", "how far probabilities are from how often they are right"
    ),
    "calibrated_log_loss": Wording("Log loss, calibrated", "after the temperature", share=False),
    "calibrated_brier": Wording("Brier score, calibrated", "after the temperature", share=False),
    "calibrated_calibration_error": Wording("Calibration error, calibrated", "after it too"),
    "risk_coverage_area": Wording(
        "Area under risk against coverage",
        "less is better: the unsure photos are the wrong ones",
        share=False,
    ),
}


def wording(name: str) -> Wording:
    """Say how a figure is called; one that is not known is called what the file calls it."""
    if found := FIGURES.get(name):
        return found
    if top := re.fullmatch(r"top_(\d+)", name):
        return Wording(f"Top {top[1]}", f"photos whose class is among the first {top[1]} named")
    return Wording(printable(name.replace("_", " ")), "", share=False)


def figures(contents: Contents) -> list[str]:
    """Return the names of the figures, in the order in which a person asks for them."""
    splits = contents.metrics.splits if contents.metrics else {}
    there = dict.fromkeys(name for each in splits.values() for name in each.figures)
    order = list(FIGURES)
    order[2:2] = [name for name in there if name.startswith("top_")]
    return [name for name in dict.fromkeys([*order, *there]) if name in there]


def sentence(contents: Contents) -> str:
    """Say how good a run is, with its interval."""
    if contents.main:
        part, measured = contents.main
        return _judged(part, measured)
    best = best_of(contents.log, contents.recipe.monitor)
    if best is not None:
        count = contents.count("validation")
        low, high = wilson(best.accuracy, count)
        trained = contents.recipe.epochs > 0
        return (
            f"{'In training the best epoch' if trained else 'The classifier'} named "
            f"{percent(best.accuracy)} of {many(count, 'validation photo')} right, which means "
            f"{100 * low:.0f} to {100 * high:.0f} %"
            + (", and flatters a little, as it was chosen by them." if trained else ".")
        )
    return "How good it is is not known yet: no epoch has been validated."


def _judged(part: str, measured: Measured) -> str:
    figure, commonest = measured.figures["accuracy"], measured.commonest
    if figure.value is None:
        return "How good it is cannot be said: no photo was held out."
    says = f"It names {percent(figure.value)} of {many(measured.n, f'{part} photo')} right"
    if figure.low is None or figure.high is None:
        return f"{says}."
    says += (
        f"; of other such photos it would be {100 * figure.low:.0f} to {100 * figure.high:.0f} % "
        f"(95 % interval). Always saying “{printable(commonest.name)}” gets "
        f"{percent(commonest.share)}"
    )
    if figure.low > commonest.share:
        return f"{says}."
    surely_worse = figure.high < commonest.share
    return f"{says}: {'that is better' if surely_worse else 'it is not surely better than that'}."


def _flattered(contents: Contents) -> str:
    """Say what choosing did to the figures of the validation photos; nothing: none was chosen."""
    tried = tuple(looks(contents.log))
    best = best_of(contents.log, contents.recipe.monitor)
    if best is None or len(tried) < 2:
        return ""
    last = next(each for each in reversed(tried) if each.averaged == best.averaged)
    reader = " by the article's reader" if contents.recipe.pipeline == "article" else ""
    return (
        "The validation photos also chose which epoch was kept, so that their figures flatter: "
        f"after the last epoch {percent(last.accuracy)} were right{reader}."
    )


def pairs(measured: Measured) -> list[tuple[str, str, int, int]]:
    """Return the most confused pairs: true class, named class, how often, photos of the class."""
    names = [each.name for each in measured.classes]
    found = [
        (names[i], names[j], count, sum(row))
        for i, row in enumerate(measured.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda each: -each[2])[:PAIRS]


def in_short(contents: Contents) -> str:
    """Say in one sentence what the recipe does."""
    recipe = contents.recipe
    begin = f"the weights of {printable(recipe.weights)}" if recipe.weights else "random weights"
    photos = f"photos of {recipe.image_size} px, {SQUARES[recipe.square]}"
    if not recipe.epochs:
        return (
            f"The network {recipe.network} stays as it came, with {begin}, and a classifier is "
            f"found on its features; {photos}."
        )
    rate = f"{recipe.optimiser} at {recipe.learning_rate:g}, {recipe.schedule}"
    how = f"augmented at {recipe.augment:g}" if recipe.augment else "not augmented"
    return (
        f"The network {recipe.network}, from {begin}, {many(recipe.epochs, 'epoch')} in batches "
        f"of {recipe.batch_size}; {rate}; {photos}, {how}."
    )


SQUARES = {"squash": "squashed", "crop": "cropped", "pad": "padded"}


def uses(contents: Contents) -> list[str]:
    """Return the model card's statements of what it is for."""
    return [
        f"It tells which of {many(len(contents.classes), 'class', 'classes')} a photo shows, for "
        "photos like those that it was trained on: the same kind of camera, distance, place and "
        "season.",
        "It is a help for people who look at the photo too, not for decisions where a mistake does "
        "harm and nobody checks.",
    ]


def limits(contents: Contents) -> list[str]:
    """Return the model card's statements of what it cannot do."""
    said = [
        "It knows its classes and nothing else: a photo of any other thing is called one of them."
    ]
    if contents.metrics and contents.metrics.decision:
        said = [
            "It knows its classes and nothing else: of other things it often names one of them, "
            "although it answers “none of these” below "
            f"{percent(contents.metrics.decision.threshold, 0)}."
        ]
    said.append(
        f"It has learned from {many(contents.count('training'), 'photo')} only; what they do not "
        "show it has never seen."
    )
    if contents.main:
        part, measured = contents.main
        said.append(
            f"Its figures come from {many(measured.n, f'{part} photo')}, and hold within "
            "their intervals for photos of the same collection, not for others."
        )
        few = sum(each.n < FEW for each in measured.classes)
        if few:
            verb = "has" if few == 1 else "have"
            said.append(
                f"{many(few, 'class', 'classes')} {verb} fewer than {FEW} photos to be judged by: "
                "next to nothing is known of how well it names them."
            )
        never = sum(each.n > 0 and each.recall.value == 0 for each in measured.classes)
        if never:
            said.append(f"{many(never, 'class was', 'classes were')} never named rightly.")
        if part == "validation" and contents.recipe.epochs:
            said += filter(None, [_flattered(contents)])
    else:
        said.append("How good it is has not been measured yet.")
    if contents.diagnosis and contents.diagnosis.faults:
        tests = ", ".join(each.test for each in contents.diagnosis.faults)
        said.append(f"The diagnosis names faults that are to be mended first: {tests}.")
    return said


# ---- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the confusion matrix: photos of one class, by what they are called."""

    name: str
    cells: tuple[tuple[int, float, bool], ...]  # photos, their share of the row, rightly so
    others: int  # called a class that is not shown


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix, shortened to the most confused classes where there are many."""

    rows: tuple[Row, ...]
    hidden: int  # classes


def matrix(measured: Measured) -> Matrix:
    """Choose the classes of the confusion matrix, in the order of the labels."""
    counts = measured.confusion
    everything = range(len(counts))
    mistakes = [
        sum(counts[i]) + sum(row[i] for row in counts) - 2 * counts[i][i] for i in everything
    ]
    shown = sorted(sorted(everything, key=lambda i: -mistakes[i])[:CONFUSED])
    rows = []
    for i in shown:
        total = sum(counts[i])
        cells = tuple((counts[i][j], counts[i][j] / (total or 1), i == j) for j in shown)
        others = total - sum(count for count, _, _ in cells)
        rows.append(Row(measured.classes[i].name, cells, others))
    return Matrix(tuple(rows), len(counts) - len(shown))


def parts(contents: Contents) -> list[Split]:
    """Return the parts of the split that have photos."""
    return [part for part in split.SPLITS if contents.count(part)]


def sizes(contents: Contents) -> list[tuple[str, list[int]]]:
    """Return each class with its photos in each of the `parts`."""
    there = parts(contents)
    counts = Counter((record.label, record.split) for record in contents.records)
    return [(name, [counts[name, part] for part in there]) for name in contents.classes]


def remarks(contents: Contents) -> list[str]:
    """Return what the split itself says of leaks, copies and classes without photos."""
    records = contents.records
    said = [note[0].upper() + note[1:] for note in split.warnings(records)]
    copies = sum(n - 1 for n in Counter(each.sha256 for each in records if each.sha256).values())
    if copies:
        said.append(
            f"{many(copies, 'photo')} {'is a copy' if copies == 1 else 'are copies'} of "
            "others, byte for byte."
        )
    grouped = [each.group for each in records if each.group]
    if grouped:
        said.append(
            f"{many(len(grouped), 'photo')} in {many(len({*grouped}), 'group')} belong together, "
            "as near duplicates or by their names."
        )
    return said


class Value(NamedTuple):
    """A value of the recipe beside the article's."""

    name: str
    section: str  # empty: the same as above
    value: str
    article: str
    same: bool  # as in the article
    why: str


def values(recipe: Recipe) -> list[Value]:
    """Return every value of the recipe."""
    ours, theirs = recipe.model_dump(), ARTICLE.resolved().model_dump()
    return [
        Value(
            name,
            SECTIONS.get(name, ""),
            _value(ours[name]),
            _value(theirs[name]),
            ours[name] == theirs[name],
            of.description or "",
        )
        for name, of in Recipe.model_fields.items()
    ]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else printable(str(value)) or "none"


# ---- pictures -----------------------------------------------------------------------------------


@dataclass
class Gallery:
    """Reads the pictures of a run's explanations, as many as there is room for."""

    folder: Path
    left: int  # how many more there is room for
    damaged: int = 0

    def picture(self, name: str) -> str:
        """Return a thumbnail's data URI; empty where it is missing, damaged or elsewhere."""
        if not self.left:
            return ""
        path, address = self.folder / name, ""
        with suppress(OSError, ValueError):  # a name that no system takes
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if inside and path.is_file() and path.stat().st_size <= LARGEST:
                address = data_uri(path)
        if address:
            self.left -= 1
        else:
            self.damaged += 1
        return address


KINDS = (
    ("mistake", "Its worst mistakes", "Wrong, and the surest of it."),
    ("confused", "Its most confused pairs", "What is taken for what most often."),
    ("right", "What it gets right", "For comparison."),
    ("", "Other photos", ""),
)


class Kind(NamedTuple):
    """Explained photos of one kind."""

    title: str
    meaning: str
    photos: list[Explained]
    hidden: int


def kinds(explanations: Explanations) -> Iterator[Kind]:
    """Sort the explained photos: each once, where it says most."""
    left = explanations.photos
    for word, title, meaning in KINDS:
        of = [each for each in left if any(why.startswith(word) for why in each.why or [""])]
        left = [each for each in left if each not in of]
        if of:
            yield Kind(title, meaning, of[:PHOTOS], len(of[PHOTOS:]))


# ---- the page -----------------------------------------------------------------------------------

QUESTIONS = {
    "asked": "What was asked?",
    "data": "What are the photos?",
    "training": "How did the training go?",
    "good": "How good is it?",
    "classes": "Which classes does it confuse?",
    "trust": "Can its probabilities be trusted?",
    "refuse": "What if it may refuse?",
    "photos": "Where does it look, and what does it get wrong?",
    "diagnosis": "Why is it as good, or bad, as it is?",
    "environment": "What was it made with?",
    "card": "What is it for, and what not?",
}


def write(run_folder: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page, whole or not at all, and return where it lies."""
    contents = read(run_folder)
    return _written(contents, out, contents.run.report, _page)


def write_card(
    run_folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write the model card, whole or not at all, and return where it lies."""
    contents = read(run_folder)
    return _written(contents, out, contents.run.card, _card)


def _written(
    contents: Contents,
    out: str | os.PathLike[str] | None,
    ours: Path,
    filled: Callable[[Contents], str],
) -> Path:
    """Write what is filled to `out`, or else to `ours`."""
    path = ours if out is None else Path(out)
    _refuse_place(path, contents, ours)
    files.refuse_another(path, "<!DOCTYPE html>", "---\nlicense")
    text = filled(contents)
    with files.whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return path


def _refuse_place(path: Path, contents: Contents, ours: Path) -> None:
    """Raise where the file would replace another of the run, or lie among the photos."""
    files.require_folder(path.parent)
    real = Path(os.path.realpath(path))
    folder = Path(os.path.realpath(contents.run.folder))
    if real.is_relative_to(folder) and real != Path(os.path.realpath(ours)):
        raise FieldmarkError(f"{path} lies in the run, which is only read: name a place elsewhere.")
    source = Path(str(contents.environment.get("photos") or os.devnull))
    if files.is_folder(source):
        files.refuse_among(path, [source])
        return
    # A CSV's photos may lie anywhere, beside other files.
    photos = {os.path.realpath(source.parent / record.path) for record in contents.records}
    if str(real) in photos | {os.path.realpath(source)}:
        raise FieldmarkError(f"{path} is one of the photos, or their list: name another file.")


def _filled(name: str, contents: Contents, *, autoescape: bool = True, **more: Any) -> str:
    """Fill a template with what page and card both say, and with more."""
    environment = templates(autoescape=autoescape)
    environment.filters |= {
        "code": _code,
        "interval": interval,
        "jointed": _jointed,
        "markdown": _markdown,
        "number": "{:,}".format,
        "percent": percent,
        "quoted": _quoted,
        "shortened": shortened,
        "valued": valued,
    }
    environment.globals |= {"many": many, "wording": wording}
    return environment.get_template(name).render(
        contents=contents,
        main=contents.main,
        sentence=sentence(contents),
        in_short=in_short(contents),
        parts=parts(contents),
        sizes=sizes(contents),
        remarks=remarks(contents),
        figures=figures(contents),
        uses=uses(contents),
        limits=limits(contents),
        rows=ROWS,
        **more,
    )


def _page(contents: Contents) -> str:
    """Fill the page."""
    _, measured = contents.main or (None, None)
    metrics, held_out = contents.metrics, contents.count("validation")
    chosen = measured.refused.coverage.value if measured and measured.refused else None
    return _filled(
        "report.html",
        contents,
        questions=QUESTIONS,
        values=values(contents.recipe),
        example=Interval("all", held_out, *wilson(RESULT, held_out)),
        curves=[charts.curve(contents.log, "accuracy"), charts.curve(contents.log, "loss")],
        bars=charts.bars(metrics.splits) if metrics and measured else "",
        matrix=matrix(measured) if measured else None,
        pairs=pairs(measured) if measured else [],
        reliability=charts.reliability(measured.reliability) if measured else "",
        risk=charts.risk(measured.risk_coverage, chosen) if measured else "",
        explained=list(kinds(contents.explanations)) if contents.explanations else [],
        gallery=Gallery(contents.run.explanations, PICTURES),
        facts=_facts(contents.environment),
    )


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the run was made with, a row a fact."""
    rows = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            rows += [(str(key), str(of)) for key, of in value.items()]
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((name, "not known" if value is None else str(value)))
    return rows


def _code(text: str) -> Markup:
    """Escape a text, and set what stands between backticks as code."""
    texts = enumerate(printable(text).split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in texts
    )


def _jointed(text: str) -> Markup:
    """Escape a name, and let a line end behind each of its joints, such as those of a path."""
    parts = re.split(r"(?<=[/_])(?=[^/_])", printable(text))
    return Markup("<wbr>").join(map(escape, parts))


# ---- the card -----------------------------------------------------------------------------------

SCALINGS = {"0..255": "", "0..1": " / 255", "-1..1": " / 127.5 - 1"}
FITTED = {
    "squash": "photo.resize(({0}, {0}), Image.Resampling.{1})",
    "crop": "ImageOps.fit(photo, ({0}, {0}), Image.Resampling.{1})",
    "pad": "ImageOps.pad(photo, ({0}, {0}), Image.Resampling.{1}, color=(128, 128, 128))",
}


def _card(contents: Contents) -> str:
    """Fill the model card."""
    spec, decision = contents.specification, contents.metrics and contents.metrics.decision
    text = _filled(
        "card.md",
        contents,
        autoescape=False,
        decision=decision,
        fitted=FITTED[spec.mode].format(spec.size, spec.interpolation.upper()),
        scaling=SCALINGS[spec.scaling],
    )
    return text.rstrip() + "\n"


def _quoted(text: str) -> str:
    """Write a text as a string of YAML, which JSON's strings are, once nothing in it is odd."""
    return json.dumps(printable(text), ensure_ascii=False)


def _markdown(text: str) -> str:
    """Escape what Markdown, or HTML in it, would read as more than text."""
    return re.sub(r"[\\`*_{}\[\]<>#|~&$@]|:(?=//)|(?<=www)\.", r"\\\g<0>", printable(text))
