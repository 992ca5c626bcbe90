"""`explain`: which photos it takes, what it writes of them, and what it refuses in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fieldmark import explain as module
from fieldmark import heatmaps, images, plots, predictions
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.explain import choose, explain
from fieldmark.predictions import Predictions
from fieldmark.run import Run
from fieldmark.trained import Trained


def table(run: Run, photos: Path) -> Predictions:
    """What the run says of its validation photos."""
    classifier = Trained.load(run)
    rows = [row for row in run.read_split() if row.split != "training"]
    raised = np.exp(classifier.logits([photos / row.path for row in rows]))
    return Predictions(
        classes=classifier.classes,
        paths=tuple(row.path for row in rows),
        splits=tuple(row.split for row in rows),
        labels=np.array([classifier.classes.index(row.label) for row in rows]),
        groups=tuple(row.group for row in rows),
        sha256=tuple(row.sha256 for row in rows),
        probabilities=raised / raised.sum(axis=1, keepdims=True),
    )


@pytest.fixture(scope="module")
def evaluated(trained: Run, birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run with predictions; for reading only."""
    run = Run(shutil.copytree(trained.folder, tmp_path_factory.mktemp("evaluated") / "run"))
    predictions.write(run.predictions, table(run, birds))
    return run


@pytest.fixture(scope="module")
def explained(evaluated: Run) -> Run:
    """The same with its held-out photos explained; for reading only."""
    assert explain(evaluated.folder) == evaluated.explanations
    return evaluated


@pytest.fixture
def own(explained: Run, tmp_path: Path) -> Run:
    """A copy of it to change."""
    return Run(shutil.copytree(explained.folder, tmp_path / "run"))


@pytest.fixture
def quick(own: Run, explained: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The copy, for tests in which the weights stay as they are: the network is loaded once."""
    classifier = loaded(explained.best)
    monkeypatch.setattr(
        Trained, "load", lambda run: replace(classifier, classes=run.read_classes())
    )
    mapper = mapper_of(explained.best)
    monkeypatch.setattr(heatmaps.Mapper, "of", lambda _: mapper)
    return own


@cache
def loaded(best: Path) -> Trained:
    return Trained.load(Run(best.parent))


@cache
def mapper_of(best: Path) -> heatmaps.Mapper:
    return heatmaps.Mapper.of(loaded(best).network)


def index(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "explanations.json").read_text(encoding="utf-8")))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def facts_changed(run: Run, **facts: Any) -> None:
    known = json.loads(run.environment.read_text(encoding="utf-8"))
    run.environment.write_text(json.dumps({**known, **facts}), encoding="utf-8")


# ---- which photos -------------------------------------------------------------------------------


def of(rows: list[tuple[str, int, list[float]]]) -> Predictions:
    """A table of (split, label, probabilities)."""
    return Predictions(
        classes=("a", "b", "c"),
        paths=tuple(f"{i}.jpg" for i in range(len(rows))),
        splits=tuple(split for split, _, _ in rows),
        labels=np.array([label for _, label, _ in rows]),
        groups=("",) * len(rows),
        sha256=("0" * 64,) * len(rows),
        probabilities=np.array([row for _, _, row in rows]),
    )


def test_the_photos_most_worth_a_look() -> None:
    found = choose(
        of(
            [
                ("validation", 0, [0.9, 0.1, 0.0]),
                ("test", 0, [0.4, 0.6, 0.0]),
                ("training", 0, [0.0, 1.0, 0.0]),
                ("new", 0, [0.0, 1.0, 0.0]),
                ("validation", 2, [0.99, 0.0, 0.01]),
                ("validation", 1, [0.0, 1.0, 0.0]),
            ]
        )
    )
    assert list(found.items()) == [
        (4, ("mistake", "confused: c for a")),
        (1, ("mistake", "confused: a for b")),
        (5, ("right",)),
        (0, ("right",)),
    ]


def test_of_many_there_are_so_many_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    rows: list[tuple[str, int, list[float]]] = []
    for truth, answer, count in ((0, 1, 20), (1, 0, 9), (2, 0, 8), (0, 2, 1), (1, 1, 9)):
        for sure in rng.uniform(0.5, 0.99, count):
            row = np.full(3, (1 - sure) / 2)
            row[answer] = sure
            rows.append(("validation", truth, row.tolist()))
    whole = of(rows)
    found = choose(whole)
    losses = -np.log(whole.probabilities[np.arange(len(rows)), whole.labels])
    worst = np.sort(losses)[::-1]
    mistakes = [i for i, why in found.items() if "mistake" in why]
    assert [losses[i] for i in mistakes] == worst[:12].tolist()
    assert list(found)[:12] == mistakes
    for pair in ("a for b", "b for a", "c for a"):
        of_pair = [i for i, why in found.items() if f"confused: {pair}" in why]
        assert len(of_pair) == 4
    assert not any("confused: a for c" in why for why in found.values())
    right = [i for i, why in found.items() if why == ("right",)]
    assert len(right) == 4
    assert [losses[i] for i in right] == np.sort(losses[-9:])[:4].tolist()


# ---- what is written ----------------------------------------------------------------------------


def test_the_held_out_photos_are_explained(explained: Run, birds: Path) -> None:
    found = index(explained.explanations)
    asked = choose(predictions.read(explained.predictions))
    held_out = predictions.read(explained.predictions)
    assert [photo["path"] for photo in found["photos"]] == [held_out.paths[i] for i in asked]
    assert found["layer"] == "post_relu"
    assert found["weights_sha256"] == module.sha256_of(explained.best)
    classifier, mapper = loaded(explained.best), mapper_of(explained.best)
    for (i, why), photo in zip(asked.items(), found["photos"], strict=True):
        assert photo["why"] == list(why)
        assert photo["split"] == "validation"
        assert photo["label"] == held_out.classes[held_out.labels[i]]
        assert photo["predicted"] == held_out.classes[held_out.probabilities[i].argmax()]
        expected = sorted(held_out.probabilities[i], reverse=True)
        np.testing.assert_allclose([p for _, p in photo["probabilities"]], expected, atol=1e-5)
        assert photo["none_of_these"] is False
        classes = [each["class"] for each in photo["maps"]]
        assert classes == list(dict.fromkeys([photo["predicted"], photo["label"]]))
        arrays = np.load(explained.explanations / photo["array"])
        assert arrays.dtype == np.float32
        assert arrays.shape == (len(classes), 2, 2)  # 32 pixels, a stride of 16
        square = classifier.square(birds / photo["path"])
        feature_map = mapper(images.scale(square[None], classifier.specification))
        numbers = np.array([classifier.classes.index(name) for name in classes])
        np.testing.assert_allclose(
            arrays,
            np.maximum((feature_map[0] @ mapper.kernel).transpose(2, 0, 1), 0)[numbers],
            atol=1e-5,
        )
        for each, values in zip(photo["maps"], arrays, strict=True):
            assert each["class"] in each["alt"]
            drawn = images.decode((explained.explanations / each["overlay"]).read_bytes())
            heat = mapper.enlarged(values / max(values.max(), 1e-9), 32)
            np.testing.assert_allclose(drawn, heatmaps.overlay(square, heat), atol=1)
        shown = images.decode((explained.explanations / photo["photo"]).read_bytes())
        assert np.abs(shown.astype(int) - square).mean() < 8  # a JPEG


def test_the_neighbours_are_the_nearest_training_photos(explained: Run, birds: Path) -> None:
    training = {row.path: row for row in explained.read_split() if row.split == "training"}
    classifier, mapper = loaded(explained.best), mapper_of(explained.best)

    def features(path: str) -> NDArray[np.float64]:
        square = classifier.square(birds / path)[None]
        found = mapper(images.scale(square, classifier.specification)).mean(axis=(0, 1, 2))
        return np.asarray(found / np.linalg.norm(found), np.float64)

    directions = {path: features(path) for path in training}
    for photo in index(explained.explanations)["photos"][:3]:
        similar = {path: float(features(photo["path"]) @ d) for path, d in directions.items()}
        near = photo["neighbours"]
        assert len(near) == 4
        expected = sorted(similar.values(), reverse=True)[:4]
        np.testing.assert_allclose([each["similarity"] for each in near], expected, atol=1e-5)
        for each in near:
            assert each["label"] == training[each["path"]].label
            assert abs(similar[each["path"]] - each["similarity"]) < 1e-5
            shown = images.decode((explained.explanations / each["photo"]).read_bytes())
            square = classifier.square(birds / each["path"])
            assert np.abs(shown.astype(int) - square).mean() < 8


def test_named_photos_and_classes(quick: Run, birds: Path, tmp_path: Path) -> None:
    held_out = everything(quick.explanations)
    training = next(row for row in quick.read_split() if row.split == "training")
    folder = tmp_path / "my photos"
    (folder / "deeper").mkdir(parents=True)
    Image.new("RGB", (50, 40), "red").save(folder / "red.jpg")
    Image.new("RGB", (50, 40), "blue").save(folder / "deeper" / "blue.png")
    (folder / "notes.txt").write_text("no photo")
    asked = [birds / training.path, folder, folder / "red.jpg"]
    place = explain(quick.folder, asked, classes=["Cockatoo"], top=2)
    assert place == quick.explained_photos
    photos = index(place)["photos"]
    named = [birds / training.path, folder / "deeper" / "blue.png", folder / "red.jpg"]
    assert [photo["path"] for photo in photos] == [str(path.absolute()) for path in named]
    assert [photo["split"] for photo in photos] == ["training", "new", "new"]
    assert [photo["label"] for photo in photos] == [training.label, None, None]
    for photo in photos:
        first_two = [name for name, _ in photo["probabilities"][:2]]
        expected = list(dict.fromkeys([*first_two, "Cockatoo"]))
        assert [each["class"] for each in photo["maps"]] == expected
        assert photo["why"] == []
    assert training.path not in [each["path"] for each in photos[0]["neighbours"]]  # itself
    assert everything(quick.explanations) == held_out


def test_a_decision_calibrates_and_refuses(quick: Run, birds: Path) -> None:
    decision = Decision(temperature=2.0, threshold=0.999, coverage=0.9, photos=8)
    quick.decision.write_text(decision.model_dump_json(), encoding="utf-8")
    before = index(quick.explanations)["photos"]
    after = index(explain(quick.folder))["photos"]
    for old, new in zip(before, after, strict=True):
        assert new["none_of_these"] is True
        plain = np.array([[p for _, p in old["probabilities"]]])
        expected = decision.calibrated(plain)[0]
        np.testing.assert_allclose([p for _, p in new["probabilities"]], expected, atol=1e-6)


def test_features_are_kept_until_the_weights_change(
    quick: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()
    stream = Trained.stream

    def counted(classifier: Trained, photos: Any, description: str) -> Any:
        read.append(description)
        return stream(classifier, photos, description)

    monkeypatch.setattr(Trained, "stream", counted)
    anew = ["Features of training photos", "Explaining"]
    first = index(explain(quick.folder))
    assert read == ["Explaining"]
    quick.best.write_bytes(quick.best.read_bytes() + b"\0")
    second = index(explain(quick.folder))
    assert read[1:] == anew
    assert second["weights_sha256"] == module.sha256_of(quick.best) != first["weights_sha256"]
    quick.features.write_bytes(quick.features.read_bytes()[:100])  # damaged
    explain(quick.folder)
    assert read[3:] == anew


def test_training_photos_that_are_gone_are_no_neighbours(
    quick: Run, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    facts_changed(quick, photos=str(photos))
    gone = index(quick.explanations)["photos"][0]["neighbours"][0]["path"]
    (photos / gone).unlink()
    found = index(explain(quick.folder))["photos"]
    assert "1 of 40 training photos are gone" in capsys.readouterr().out
    assert all(gone not in [each["path"] for each in photo["neighbours"]] for photo in found)
    for row in quick.read_split():
        if row.split == "training":
            (photos / row.path).unlink(missing_ok=True)
    found = index(explain(quick.folder))["photos"]
    assert all(photo["neighbours"] == [] for photo in found)
    held_out = [photo["path"] for photo in found]
    (photos / held_out[0]).unlink()
    assert [photo["path"] for photo in index(explain(quick.folder))["photos"]] == held_out[1:]
    assert "Left out: 1 held-out photos" in capsys.readouterr().out


def test_photos_that_are_others_since_are_left_out(
    quick: Run, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    facts_changed(quick, photos=str(photos))
    before = index(quick.explanations)["photos"]
    near = before[1]["neighbours"][0]["path"]
    for path in (before[0]["path"], near):
        shutil.copy(photos / before[-1]["path"], photos / path)
    found = index(explain(quick.folder))["photos"]
    said = capsys.readouterr().out
    assert "Left out: 1 held-out photos" in said
    assert "Left out: 1 neighbours that are others" in said
    assert [photo["path"] for photo in found] == [photo["path"] for photo in before[1:]]
    assert all(near not in [each["path"] for each in photo["neighbours"]] for photo in found)


def test_features_are_only_kept_of_the_photos_that_the_training_saw(
    quick: Run, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of others under the same names, or a damaged photo, leaves nothing behind."""
    before = index(quick.explanations)["photos"]
    paths = [row.path for row in quick.read_split() if row.split == "training"]
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        shutil.copy(birds / other, photos / path)
    (photos / paths[0]).write_bytes((birds / paths[0]).read_bytes()[:500])
    source = quick.read_environment()["photos"]
    facts_changed(quick, photos=str(photos))
    quick.features.unlink()
    assert all(not photo["neighbours"] for photo in index(explain(quick.folder))["photos"])
    assert "40 of 40 training photos are gone from" in capsys.readouterr().out
    facts_changed(quick, photos=source)
    assert index(explain(quick.folder))["photos"] == before


def test_where_the_run_cannot_be_written_features_are_not_kept(
    quick: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = index(quick.explanations)["photos"]
    quick.features.unlink()
    quick.features.mkdir()  # nothing can be written there
    assert index(explain(quick.folder, out=tmp_path / "maps"))["photos"] == before
    assert "The features are not kept for the next time" in capsys.readouterr().out


def test_the_paths_of_a_csv_begin_where_it_lies(quick: Run, birds: Path, tmp_path: Path) -> None:
    """The run lies beside the CSV, and that is not among its photos."""
    shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
    (tmp_path / "list.csv").write_text("path,label\n")
    before = index(quick.explanations)
    facts_changed(quick, photos=str(tmp_path / "list.csv"))
    assert quick.photo("") == tmp_path
    assert index(explain(quick.folder)) == before
    with pytest.raises(FieldmarkError, match="among the photos"):
        explain(quick.folder, out=tmp_path / "Cockatoo" / "maps")


def test_any_name_can_stand_on_the_sheet(quick: Run, birds: Path, tmp_path: Path) -> None:
    names = ["$x_1$ & <b>bold</b>", "白头鹎 [red]", "\U00012345", "a" * 60]
    quick.classes.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    photos = [tmp_path / f"{name.replace('/', '-')}.jpg" for name in names]
    for photo in photos:
        shutil.copy(next(birds.glob("*/*.jpg")), photo)
    place = explain(quick.folder, photos, classes=names)
    for photo, entry in zip(photos, index(place)["photos"], strict=True):
        assert {each["class"] for each in entry["maps"]} == {*names}
        assert entry["path"] == str(photo)
    written = {path.name for path in place.rglob("*")}
    assert all(re.fullmatch("[a-z]*[-0-9]*([.][a-z]+)?", name) for name in written)
    with Image.open(place / "sheet.png") as sheet:
        assert sheet.width > 800
        assert np.ptp(np.asarray(sheet.convert("L"))) > 200


def test_a_row_of_the_sheet_holds_what_is_known(
    explained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[Any]()
    sheet = plots.explanations

    def looked(rows: Any, **more: Any) -> Any:
        figure = sheet(rows, **more)
        drawn.append(figure)
        return figure

    monkeypatch.setattr(plots, "explanations", looked)
    entries = index(explained.explanations)["photos"]
    module.draw_sheet(explained.explanations, entries, explained.read_classes())
    axes = drawn[0].axes[0]
    words = {text.get_text() for text in axes.texts}
    for entry in entries:
        assert f"{Path(entry['path']).name}\n{entry['label']} (validation)" in words
        assert f"what speaks for\n{entry['predicted']}" in words
        name, probability = entry["probabilities"][0]
        assert {name, f"{probability:.1%}"} <= words
    count = sum(1 + len(entry["maps"]) + len(entry["neighbours"]) for entry in entries)
    assert len(axes.images) == count


# ---- the folder ---------------------------------------------------------------------------------


def test_the_folder_is_replaced_whole(quick: Run, birds: Path) -> None:
    photos = sorted(birds.glob("*/*.jpg"))
    explain(quick.folder, photos[:3])
    explain(quick.folder, photos[3:4])
    found = everything(quick.explained_photos)
    assert {name.partition("/")[0] for name in found} == {"0000", "explanations.json", "sheet.png"}
    assert sorted(path.name for path in quick.explained_photos.parent.iterdir()) == [
        "features.npz",
        "held_out",
        "photos",
    ]


@pytest.mark.parametrize("stage", ["draw_sheet", "described"])
def test_what_is_there_stays_where_it_cannot_be_finished(
    quick: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(quick.folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, stage, full)
    with pytest.raises(FieldmarkError, match="No space left"):
        explain(quick.folder)
    assert everything(quick.folder) == before


def test_what_is_there_comes_back_where_the_new_cannot_take_over(
    quick: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(quick.folder)
    whole = Path.replace

    def stuck(path: Path, target: Path) -> Path:
        if path.name.endswith(".new") and target == quick.explanations:
            raise PermissionError(13, "Permission denied")
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", stuck)
    with pytest.raises(FieldmarkError, match="Permission denied"):
        explain(quick.folder)
    assert everything(quick.folder) == before


def test_an_own_folder_may_be_replaced_and_another_s_may_not(
    quick: Run, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(birds.glob("*/*.jpg"))
    place = tmp_path / "maps"
    assert explain(quick.folder, [photo], out=place) == place
    assert explain(quick.folder, [photo], out=place) == place
    (place / "letter.txt").write_text("dear")
    before = everything(place)
    with pytest.raises(FieldmarkError, match="is not overwritten"):
        explain(quick.folder, [photo], out=place)
    assert everything(place) == before
    (place / "letter.txt").unlink()
    (place / "2024").mkdir()  # a number, and none of ours
    shutil.copy(photo, place / "2024" / "owl.jpg")
    with pytest.raises(FieldmarkError, match="is not overwritten"):
        explain(quick.folder, [photo], out=place)
    assert (place / "2024" / "owl.jpg").exists()
    shutil.rmtree(place / "2024")
    monkeypatch.chdir(place)
    with pytest.raises(FieldmarkError, match="is the folder that you are in"):
        explain(quick.folder, [photo], out=Path())
    with pytest.raises(FieldmarkError, match="among the photos"):
        explain(quick.folder, [photo], out=birds / "maps")


# ---- bad input ----------------------------------------------------------------------------------

Damage = Callable[[Run, Path], dict[str, Any]]


def without_weights(run: Run, _: Path) -> dict[str, Any]:
    run.best.unlink()
    return {}


def without_predictions(run: Run, _: Path) -> dict[str, Any]:
    run.predictions.unlink()
    return {}


def of_other_classes(run: Run, _: Path) -> dict[str, Any]:
    found = predictions.read(run.predictions)
    predictions.write(run.predictions, replace(found, classes=("w", "x", "y", "z")))
    return {}


def of_no_held_out_photo(run: Run, _: Path) -> dict[str, Any]:
    found = predictions.read(run.predictions)
    predictions.write(run.predictions, replace(found, splits=("new",) * len(found)))
    return {}


def without_photos(run: Run, folder: Path) -> dict[str, Any]:
    facts_changed(run, photos=str(folder / "gone"))
    return {}


def no_such_photo(_: Run, folder: Path) -> dict[str, Any]:
    return {"photos": [folder / "no.jpg"]}


def too_long(_: Run, folder: Path) -> dict[str, Any]:
    return {"photos": [folder / (300 * "x")]}


def too_long_a_place(_: Run, folder: Path) -> dict[str, Any]:
    return {"out": folder / (300 * "x")}


def unreadable(_: Run, folder: Path) -> dict[str, Any]:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return {"photos": [folder / "broken.jpg"]}


def empty(_: Run, folder: Path) -> dict[str, Any]:
    (folder / "empty").mkdir()
    return {"photos": [folder / "empty"]}


def unknown_class(_: Run, __: Path) -> dict[str, Any]:
    return {"classes": ["Dodo"]}


def no_maps(_: Run, __: Path) -> dict[str, Any]:
    return {"top": 0}


def damaged_decision(run: Run, _: Path) -> dict[str, Any]:
    run.decision.write_text('{"temperature": -1}')
    return {}


def damaged_environment(run: Run, _: Path) -> dict[str, Any]:
    run.environment.write_text('{"schema": 2}')
    return {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_weights, "no trained weights"),
        (without_predictions, "`fieldmark evaluate .*` makes them"),
        (of_other_classes, "of other classes"),
        (of_no_held_out_photo, "no photo that was held out"),
        (without_photos, "None of the held-out photos is in"),
        (no_such_photo, "There is no photo .*no.jpg"),
        (too_long, "There is no photo"),
        (too_long_a_place, "File name too long"),
        (unreadable, "broken.jpg .*: replace it"),
        (empty, "empty holds no photo"),
        (unknown_class, "no class 'Dodo': it has Bananaquit, Black Skimmer"),
        (no_maps, "Maps of 0 classes"),
        (damaged_decision, "temperature"),
        (damaged_environment, "does not say where the photos are"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    own: Run, tmp_path: Path, damage: Damage, said: str
) -> None:
    asked = damage(own, tmp_path)
    before = everything(own.folder)
    with pytest.raises(FieldmarkError, match=said) as caught:
        explain(own.folder, **asked)
    assert "\n" not in str(caught.value)
    assert everything(own.folder) == before
