"""What a run looks at in a photo, and which training photos it takes it to be like.

In: a run, and photos, or none for the held-out photos that are most worth a look. Out: a folder
with `explanations.json`, and for each photo the square that the network sees, a heat map over it
for each class, the maps as an array, and the nearest training photos; and one sheet of it all.
`fieldmark explain RUN [PHOTO ...] [--class NAME ...] [--out FOLDER]`

The photos are only read. The folder is replaced as a whole, and only once the new one is complete.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldmark import data, files, heatmaps, images, plots, predictions
from fieldmark.console import say
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.heatmaps import Floats, Mapper, Peak
from fieldmark.plots import Explained, Lettering
from fieldmark.predictions import Predictions
from fieldmark.run import EXPLANATIONS, Run, open_run
from fieldmark.split import Record
from fieldmark.trained import Trained, softmax

MISTAKES = 12  # held-out photos that are furthest from their class
PAIRS = 3  # pairs of classes that are taken for one another most often,
OF_A_PAIR = 4  # and photos of each
RIGHT = 4  # photos that are surest and right: what it looks like when all is well
NEIGHBOURS = 4
NAMED = 5  # probabilities that are written down
LONGEST = 28  # signs of a file's name; for a longer one the sheet has the number of its folder
ON_THE_SHEET = 40  # photos; more make a picture that few programs open

SHEET = "sheet.png"
WRITTEN = re.compile(r"photo\.jpg|maps\.npy|map-\d+\.png|neighbour-\d+\.jpg")  # of one photo


@dataclass(frozen=True)
class Asked:
    """A photo that is to be explained, and what is known of it."""

    path: str  # as it is written down
    file: Path
    sha256: str
    split: str = "new"
    label: str | None = None
    why: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()  # whose maps are wanted besides the most probable ones'


class Training(NamedTuple):
    """The training photos that are still there, and their places in feature space."""

    folder: Path
    records: tuple[Record, ...]  # m of them
    directions: Floats  # (m, k), of length 1

    def nearest(self, features: NDArray[Any], *, sha256: str) -> list[tuple[Record, float]]:
        """Return the photos nearest to one with features (k,), each with its cosine similarity.

        The photo of that sha256 is left out: a training photo is nearest to itself.
        """
        similarities = self.directions @ normalised(features[None])[0]
        found = []
        for place in np.argsort(-similarities, kind="stable"):
            if self.records[place].sha256 != sha256:
                # Rounding brings equal photos to a little more than 1.
                found.append((self.records[place], min(1.0, float(similarities[place]))))
            if len(found) == NEIGHBOURS:
                break
        return found


@dataclass(frozen=True)
class Means:
    """All that an explanation is made with."""

    classifier: Trained
    mapper: Mapper
    decision: Decision | None
    training: Training
    top: int


def explain(
    run_folder: str | os.PathLike[str],
    photos: Sequence[Path] = (),
    *,
    classes: Sequence[str] = (),
    top: int = 1,
    out: Path | None = None,
) -> Path:
    """Explain the photos, or the held-out ones most worth a look, and return the folder of it.

    `photos` are files, and folders of them. Each gets the maps of its `top` most probable classes
    and of `classes`; a held-out one that of its true class too. Raises a `FieldmarkError` where
    there is nothing to explain with or no such photo or class, and then leaves all as it was.
    """
    run = open_run(run_folder)
    wanted = numbers(run.read_classes(), classes)
    if top < 1:
        raise FieldmarkError(f"Maps of {top} classes: name at least one.")
    place = out or (run.explained_photos if photos else run.explanations)
    refuse_place(place, run, photos)
    asked = named(photos, run) if photos else worth_a_look(run)
    classifier = Trained.load(run)
    mapper = Mapper.of(classifier.network)
    digest = sha256_of(run.best)
    means = Means(
        classifier,
        mapper,
        run.read_decision(),
        training_photos(run, classifier, mapper, weights=digest),
        top,
    )
    asked = [replace(each, classes=(*each.classes, *wanted)) for each in asked]
    with files.replaced_folder(place, ours) as folder:
        entries = list(written(folder, asked, means))
        index = {"layer": mapper.layer, "weights_sha256": digest, "photos": entries}
        files.write_json(folder / EXPLANATIONS, index)
        draw_sheet(folder, entries, classifier.classes)
    say(f"Explained: {len(entries)} photos, in {place}")
    return place


# ---- which photos -------------------------------------------------------------------------------


def named(places: Sequence[Path], run: Run) -> list[Asked]:
    """Return the photos that a user names; of a photo that the run knows, what it knows."""
    found: list[Path] = []
    for place in places:
        if files.is_folder(place):
            found += photos_in(place)
        elif files.is_file(place):
            found.append(place)
        else:
            raise FieldmarkError(f"There is no photo {place}: name one, or a folder of them.")
    known = {row.sha256: row for row in run.read_split()}
    asked = []
    for file in dict.fromkeys(path.absolute() for path in found):
        one = Asked(str(file), file, sha256_of(file))
        row = known.get(one.sha256)
        asked.append(replace(one, split=row.split, label=row.label) if row else one)
    return asked


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of a folder and of those below it, sorted."""
    listed = data.list_loose(folder)
    # Where some lie deeper, it leaves those out that lie in no class' folder.
    loose = [each for each in listed.left_out if each.why == data.LOOSE]
    others = replace(listed, left_out=tuple({*listed.left_out} - {*loose}))
    if not_read := data.left_out(others):
        say(f"Not read in {folder}: {not_read}")
    paths = sorted([*listed.paths, *(each.path for each in loose)])
    if not paths:
        raise FieldmarkError(f"{folder} holds no photo: name one, or a folder of them.")
    return [folder / path for path in paths]


def worth_a_look(run: Run) -> list[Asked]:
    """Return the held-out photos that `choose` takes, as far as they are still there."""
    if not run.predictions.exists():
        raise FieldmarkError(
            f"{run.folder} has no predictions to choose photos from: "
            f"`fieldmark evaluate {run.folder}` makes them."
        )
    table = predictions.read(run.predictions)
    if table.classes != run.read_classes():
        raise FieldmarkError(
            f"{run.predictions} is of other classes than the run: "
            f"`fieldmark evaluate {run.folder}` makes it anew."
        )
    folder = run.photo("")
    asked = [
        Asked(
            path=table.paths[i],
            file=folder / table.paths[i],
            sha256=table.sha256[i],
            split=table.splits[i],
            label=table.classes[table.labels[i]],
            why=why,
            classes=(int(table.labels[i]),),
        )
        for i, why in choose(table).items()
    ]
    if not asked:
        raise FieldmarkError(
            f"{run.predictions} holds no photo that was held out: "
            f"name photos, or make it anew with `fieldmark evaluate {run.folder}`."
        )
    there = [each for each in asked if same(each.file, each.sha256)]
    if not there:
        raise FieldmarkError(
            f"None of the held-out photos is in {folder} any more as it was: bring them back, or "
            f"say in {run.environment} where the photos are now."
        )
    if len(there) < len(asked):
        say(
            f"Left out: {len(asked) - len(there)} held-out photos that are gone from {folder}, or "
            "are others than when they were predicted."
        )
    return there


def same(file: Path, sha256: str) -> bool:
    """Tell whether a photo is there, and is the one that it was."""
    return files.is_file(file) and sha256_of(file) == sha256


def choose(table: Predictions) -> dict[int, tuple[str, ...]]:
    """Return the rows most worth a look, each with the reasons why, in their order.

    They are the worst mistakes, some of each of the pairs that are confused most, and the surest
    that are right; of validation and test photos only.
    """
    held_out = [i for i, part in enumerate(table.splits) if part in ("validation", "test")]
    answers = table.probabilities.argmax(axis=1)
    of_truth = table.probabilities[np.arange(len(table)), table.labels]
    wrong = sorted(
        (i for i in held_out if answers[i] != table.labels[i]), key=lambda i: float(of_truth[i])
    )
    right = sorted(
        (i for i in held_out if answers[i] == table.labels[i]), key=lambda i: -float(of_truth[i])
    )
    found: dict[int, tuple[str, ...]] = dict.fromkeys(wrong[:MISTAKES], ("mistake",))
    pairs = Counter((int(table.labels[i]), int(answers[i])) for i in wrong)
    for pair, _ in pairs.most_common(PAIRS):
        truth, answer = (table.classes[number] for number in pair)
        for i in [i for i in wrong if (table.labels[i], answers[i]) == pair][:OF_A_PAIR]:
            found[i] = (*found.get(i, ()), f"confused: {truth} for {answer}")
    return found | dict.fromkeys(right[:RIGHT], ("right",))


def numbers(known: tuple[str, ...], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of classes by their names; raises a FieldmarkError for an unknown one."""
    for name in classes:
        if name not in known:
            raise FieldmarkError(f"The run has no class {name!r}: it has {', '.join(known)}.")
    return tuple(known.index(name) for name in classes)


# ---- the training photos ------------------------------------------------------------------------


def training_photos(run: Run, classifier: Trained, mapper: Mapper, *, weights: str) -> Training:
    """Return the training photos with their features, which are kept in the run.

    They are computed for photos that are new, and for all where the weights are others than those
    of the sha256 `weights`. Photos that are gone, or are others than they were, are left out, and
    that is said.
    """
    folder = run.photo("")
    listed = [row for row in run.read_split() if row.split == "training"]
    known = kept_features(run.features, weights)
    there = tuple(
        row
        for row in listed
        if files.is_file(folder / row.path)
        and (row.sha256 in known or same(folder / row.path, row.sha256))
    )
    if len(there) < len(listed):
        say(
            f"{len(listed) - len(there)} of {len(listed)} training photos are gone from {folder}, "
            "or are others than they were, and are no one's neighbours."
        )
    fresh = {row.sha256: row.path for row in there if row.sha256 not in known}
    if fresh:
        spots = [folder / path for path in fresh.values()]
        found = [
            heatmaps.pooled(mapper(images.scale(batch, classifier.specification)))
            for batch in classifier.stream(spots, "Features of training photos")
        ]
        known |= dict(zip(fresh, np.concatenate(found).astype(np.float32), strict=True))
        try:
            keep_features(run.features, weights, known)
        except FieldmarkError as error:
            say(f"The features are not kept for the next time: {error}")
    width = mapper.kernel.shape[0]
    rows = np.array([known[row.sha256] for row in there], np.float32).reshape(len(there), width)
    return Training(folder, there, normalised(rows))


def kept_features(file: Path, weights: str) -> dict[str, Floats]:
    """Return the features that are kept of photos, by their sha256; none that others computed."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            if str(kept["weights"]) != weights:
                return {}
            return dict(zip(kept["photos"].tolist(), kept["features"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent or damaged
        return {}


def keep_features(file: Path, weights: str, features: dict[str, Floats]) -> None:
    """Write features by their photos' sha256, with that of the weights that they are of."""
    with files.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(file) as temporary:
        rows = np.stack(list(features.values()))
        np.savez(temporary, weights=weights, photos=np.array(list(features)), features=rows)


def normalised(rows: NDArray[Any]) -> Floats:
    """Return rows (m, k) of length 1; one that is all zeros stays so."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


# ---- what is written ----------------------------------------------------------------------------


def written(folder: Path, asked: Sequence[Asked], means: Means) -> Iterator[dict[str, Any]]:
    """Write what explains each photo into a folder of its own; yield what there is to it."""

    @lru_cache(256)  # one is often near to many
    def neighbour(record: Record) -> NDArray[np.uint8] | None:
        spot = means.training.folder / record.path
        # Another photo's features are not those by which it is near.
        return means.classifier.square(spot) if same(spot, record.sha256) else None

    number, others = 0, set[str]()
    for batch in means.classifier.stream([each.file for each in asked], "Explaining"):
        maps = means.mapper(images.scale(batch, means.classifier.specification))
        for square, feature_map in zip(batch, maps, strict=True):
            here = folder / f"{number:04d}"
            here.mkdir()
            save(here / "photo.jpg", square)
            entry = explained(here, asked[number], square, feature_map, means)
            features = heatmaps.pooled(feature_map[None])[0]
            near = means.training.nearest(features, sha256=asked[number].sha256)
            for k, (record, similarity) in enumerate(near):
                shown = neighbour(record)
                if shown is None:
                    others.add(record.path)
                    continue
                photo = here / f"neighbour-{k}.jpg"
                save(photo, shown)
                entry["neighbours"].append(
                    {
                        "path": record.path,
                        "label": record.label,
                        "similarity": similarity,
                        "photo": f"{here.name}/{photo.name}",
                    }
                )
            yield entry
            number += 1
    if others:
        say(
            f"Left out: {len(others)} neighbours that are others in {means.training.folder} than "
            "when the run was trained on them."
        )


def explained(
    here: Path, asked: Asked, square: NDArray[np.uint8], feature_map: Floats, means: Means
) -> dict[str, Any]:
    """Write a photo's maps and return what `explanations.json` says of it, but its neighbours.

    `square` is (size, size, 3) and `feature_map` (h, w, k).
    """
    names, mapper = means.classifier.classes, means.mapper
    probabilities = softmax(mapper.logits(feature_map[None]))  # (1, c)
    none = False
    if means.decision:
        none = not means.decision.answers(probabilities)[0]
        probabilities = means.decision.calibrated(probabilities)
    order = np.argsort(-probabilities[0], kind="stable")
    classes = list(dict.fromkeys([*order[: means.top].tolist(), *asked.classes]))
    found = heatmaps.maps(feature_map[None], mapper.kernel, np.array([classes]))
    evidence = found.values[0] * found.strengths[0, :, None, None]
    np.save(here / "maps.npy", evidence.astype(np.float32))
    enlarged = mapper.enlarged(found.values[0], len(square))  # (q, size, size)
    maps = []
    for k, number in enumerate(classes):
        save(here / f"map-{k}.png", heatmaps.overlay(square, enlarged[k]))
        alt = described(names[number], Peak.of(enlarged[k]))
        maps.append({"class": names[number], "overlay": f"{here.name}/map-{k}.png", "alt": alt})
    return {
        "path": asked.path,
        "split": asked.split,
        "label": asked.label,
        "predicted": names[order[0]],
        "why": list(asked.why),
        "none_of_these": bool(none),
        "probabilities": [[names[i], float(probabilities[0, i])] for i in order[:NAMED]],
        "photo": f"{here.name}/photo.jpg",
        "maps": maps,
        "array": f"{here.name}/maps.npy",
        "neighbours": [],
    }


def described(name: str, peak: Peak | None) -> str:
    """Say in words what a map of a class shows."""
    if peak is None:
        return f"Nothing in the photo speaks for {name}."
    down = ("upper", "middle", "lower")[peak.down]
    across = ("left", "middle", "right")[peak.across]
    place = "middle" if down == across else f"{down} {across}"
    return (
        f"What speaks for {name} is strongest in the {place} of the photo; "
        f"{peak.share:.0%} of it is at least half as strong."
    )


def draw_sheet(folder: Path, entries: Sequence[dict[str, Any]], classes: tuple[str, ...]) -> None:
    """Draw the sheet from what was written."""
    lettering = Lettering()
    labels = {name: lettering.class_label(name, i) for i, name in enumerate(classes)}
    shown = entries[:ON_THE_SHEET]
    if len(shown) < len(entries):
        say(f"The sheet shows the first {len(shown)} of {len(entries)} photos.")
    rows = [row_of(folder, entry, labels) for entry in shown]
    for note in lettering.notes:
        say(note)
    texts = [text for row in rows for text in words_of(row)]
    figure = plots.explanations(rows, fonts=lettering.families(texts))
    figure.savefig(folder / SHEET, dpi=110)


def row_of(folder: Path, entry: dict[str, Any], labels: dict[str, str]) -> Explained:
    """Return the sheet's row of a photo; `labels` has what can be drawn of each class' name."""

    def picture(path: str) -> NDArray[np.uint8]:
        return images.decode((folder / path).read_bytes())

    truth = labels.get(entry["label"], entry["label"])
    file = Path(entry["path"]).name
    title = [file if len(file) <= LONGEST and plots.drawable(file) else Path(entry["photo"]).parent]
    if truth is not None:
        title.append(f"{truth} ({entry['split']})")
    return Explained(
        photo=picture(entry["photo"]),
        title="\n".join(map(str, title)),
        maps=[
            (picture(each["overlay"]), f"what speaks for\n{labels[each['class']]}")
            for each in entry["maps"]
        ],
        answer="none of these" if entry["none_of_these"] else outcome(entry),
        classes=[(labels[name], probability) for name, probability in entry["probabilities"]],
        neighbours=[
            (
                picture(each["photo"]),
                f"{labels.get(each['label'], each['label'])}\nsimilarity {each['similarity']:.2f}",
            )
            for each in entry["neighbours"]
        ],
    )


def outcome(entry: dict[str, Any]) -> str:
    """Say whether a photo is called right, where that is known."""
    if entry["label"] is None:
        return ""
    return "right" if entry["label"] == entry["predicted"] else "wrong"


def words_of(row: Explained) -> Iterator[str]:
    """Yield all that is written in a row of the sheet."""
    yield row.title
    yield row.answer
    for _, title in (*row.maps, *row.neighbours):
        yield title
    for name, probability in row.classes:
        yield f"{name}{probability:.1%}"


# ---- files --------------------------------------------------------------------------------------


def save(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture in the format of its name."""
    Image.fromarray(picture).save(path, quality=90)


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file's bytes."""
    try:
        return files.sha256_of(file)
    except OSError as error:
        raise FieldmarkError(
            f"{file} cannot be opened ({error.strerror or error}): bring it back, or name others."
        ) from error


def refuse_place(place: Path, run: Run, photos: Sequence[Path]) -> None:
    """Raise where the explanations would lie among photos, or replace what is none of ours."""
    named = (folder for folder in photos if files.is_folder(folder))
    files.refuse_among(place, [*run.photo_folders(), *named])
    files.refuse_replacing(place, ours)


def ours(place: Path) -> bool:
    """Tell whether a folder holds explanations and nothing else, so that it may be replaced."""
    if files.is_link(place) or not files.is_file(place / EXPLANATIONS):
        return False
    return all(
        each.name in (EXPLANATIONS, SHEET) or _is_of_a_photo(each) for each in place.iterdir()
    )


def _is_of_a_photo(place: Path) -> bool:
    """Tell whether a folder holds what explains a photo: its number is no proof of it."""
    if not place.name.isdecimal() or files.is_link(place) or not files.is_folder(place):
        return False
    return all(WRITTEN.fullmatch(each.name) for each in place.iterdir())
