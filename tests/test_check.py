"""The doctor against folders whose faults are known, because they were planted."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from conftest import TINY
from fieldmark import check as module
from fieldmark import draw, run, split
from fieldmark.check import check, quick
from fieldmark.data import list_photos
from fieldmark.errors import FieldmarkError
from fieldmark.findings import KINDS, Case, Finding, Report
from fieldmark.images import ImageSpec

A, B, C, D = "Bananaquit", "Black Skimmer", "Black-throated Bushtit", "Cockatoo"


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn photos that nothing is wrong with; for reading only."""
    folder = draw.birds(tmp_path_factory.mktemp("clean") / "birds", per_class=10, size=128, seed=5)
    (folder / "field_marks.json").unlink()
    return folder


@pytest.fixture
def birds(clean: Path, tmp_path: Path) -> Path:
    """A copy to plant faults in."""
    return Path(shutil.copytree(clean, tmp_path / "birds"))


def found(report: Report, kind: str) -> set[str]:
    """The paths of a finding; none where it was not made."""
    return {path for finding in report.findings if finding.kind == kind for path in finding.paths}


def finding(report: Report, kind: str) -> Finding:
    return next(finding for finding in report.findings if finding.kind == kind)


def edited(source: Path, out: Path, change: Callable[[Image.Image], Any], **options: Any) -> None:
    with Image.open(source) as image:
        change(image.convert("RGB")).save(out, **options)


# ---- what is planted is found -------------------------------------------------------------------


def test_nothing_is_found_in_a_folder_that_is_in_order(clean: Path) -> None:
    report = check(clean)
    assert [each.kind for each in report.serious] == ["few"]  # two of ten photos to validate on
    assert report.account == "40 files: 40 used"
    assert report.balance == "40 photos in 4 classes, 10 in each"


def plant_copies(birds: Path) -> dict[str, set[frozenset[str]]]:
    """Plant copies of every kind; return the groups by the finding that they belong to."""
    turn = Image.Transpose.FLIP_LEFT_RIGHT
    truth: dict[str, set[frozenset[str]]] = {"duplicates": set(), "near": set(), "conflict": set()}
    for name in (A, B, C, D):
        folder = birds / name
        other = birds / {A: B, B: C, C: D, D: A}[name] / f"from {name}.jpg"
        shutil.copy(folder / "0000.jpg", folder / "copy.jpg")
        shutil.copy(folder / "0001.jpg", other)
        edited(folder / "0002.jpg", folder / "mirror.jpg", lambda im: im.transpose(turn))
        edited(folder / "0003.jpg", folder / "small.png", lambda im: im.resize((96, 96)))
        edited(folder / "0004.jpg", folder / "again.jpg", lambda im: im, quality=60)
        edited(folder / "0005.jpg", folder / "cut.jpg", lambda im: im.crop((6, 4, 124, 122)))
        truth["duplicates"].add(frozenset({f"{name}/0000.jpg", f"{name}/copy.jpg"}))
        truth["conflict"].add(frozenset({f"{name}/0001.jpg", str(other.relative_to(birds))}))
        for number, copy in ((2, "mirror.jpg"), (3, "small.png"), (4, "again.jpg"), (5, "cut.jpg")):
            truth["near"].add(frozenset({f"{name}/000{number}.jpg", f"{name}/{copy}"}))
    return truth


def test_copies_are_found_and_nothing_else(birds: Path) -> None:
    """Precision 1 and recall at least 0.9 over 24 groups; `docs/check.md` states them."""
    truth = plant_copies(birds)
    report = check(birds)
    ours = {
        kind: {frozenset(case.paths) for each in report.findings if each.kind == kind
               for case in each.cases}
        for kind in ("duplicates", "near duplicates", "conflict")
    }  # fmt: skip
    assert ours["duplicates"] == truth["duplicates"]
    assert ours["conflict"] == truth["conflict"]
    hits = ours["near duplicates"] & truth["near"]
    assert len(hits) == len(ours["near duplicates"])
    assert len(hits) >= 0.9 * len(truth["near"])
    kinds = {case.what for case in finding(report, "near duplicates").cases}
    assert {"mirrored", "resized or recompressed", "cropped"} <= kinds
    assert finding(report, "conflict").severity == "error"


def test_faults_of_single_photos_are_found(birds: Path) -> None:
    """Precision and recall over 28 planted photos among 40."""
    truth: dict[str, set[str]] = {}

    def plant(kind: str, source: Path, change: Callable[[Image.Image], Any]) -> None:
        out = source.with_name(f"{source.stem} {kind}.jpg")
        edited(source, out, change, quality=92)
        truth.setdefault(kind, set()).add(out.relative_to(birds).as_posix())

    for folder in (birds / name for name in (A, B, C, D)):
        plant("blurred", folder / "0000.jpg", lambda im: im.filter(ImageFilter.GaussianBlur(4)))
        plant("dark", folder / "0001.jpg", lambda im: im.point(lambda v: int(v * 0.2)))
        plant("bright", folder / "0002.jpg", lambda im: im.point(lambda v: int(204 + v / 5)))
        plant("faint", folder / "0003.jpg", lambda im: im.point(lambda v: int(110 + v * 0.12)))
        plant("blank", folder / "0004.jpg", lambda im: Image.new("RGB", im.size, (90, 120, 200)))
        plant("tiny", folder / "0005.jpg", lambda im: im.resize((40, 40)))
        plant("extreme", folder / "0006.jpg", lambda im: im.resize((400, 100)))
    report = check(birds)
    ours = {kind: found(report, kind) for kind in truth}
    hits = sum(len(ours[kind] & truth[kind]) for kind in truth)
    assert hits >= 0.95 * sum(map(len, truth.values()))
    assert hits >= 0.95 * sum(map(len, ours.values()))


def test_broken_files_are_found_with_their_reasons(birds: Path) -> None:
    whole = (birds / A / "0000.jpg").read_bytes()
    (birds / A / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (birds / A / "empty.jpg").write_bytes(b"")
    (birds / B / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (birds / B / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    report = check(birds)
    reasons = {case.paths[0]: case.what for case in finding(report, "unreadable").cases}
    assert set(reasons) == {f"{A}/cut.jpg", f"{A}/empty.jpg", f"{B}/page.jpg", f"{B}/noise.png"}
    assert reasons[f"{A}/cut.jpg"] == "is cut off"
    assert reasons[f"{A}/empty.jpg"] == "is empty"
    assert reasons[f"{B}/page.jpg"] == "is a web page, not a photo"
    assert "4 unreadable" in report.account


def test_a_pipe_in_a_photo_s_place_is_not_waited_for(birds: Path) -> None:
    photos = list_photos(birds)
    (birds / A / "0000.jpg").unlink()
    os.mkfifo(birds / A / "0000.jpg")
    with pytest.raises(FieldmarkError, match=r"0000\.jpg: is a pipe"):
        quick(photos)


def test_a_name_without_an_extension_says_no_format(birds: Path) -> None:
    (birds / A / "0000.jpg").rename(birds / A / "bare")
    (birds / A / "0001.jpg").rename(birds / A / "called.png")
    (birds / A / "0002.jpg").rename(birds / A / "called.dat")
    report = check(birds)
    assert {case.paths[0]: case.what for case in finding(report, "misnamed").cases} == {
        f"{A}/called.png": "says PNG and is JPEG",
        f"{A}/called.dat": "says .dat and is JPEG",
    }


def test_a_file_larger_than_any_photo_is_not_read(birds: Path) -> None:
    with (birds / A / "huge.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(200_000_000)  # a hole, which takes no room on the disk
    case = finding(check(birds), "unreadable").cases[0]
    assert case.what == "is larger than 100 MB"


def test_notes_name_what_other_readers_trip_over(birds: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = birds / A / "0001.jpg"
    edited(source, birds / A / "turned.jpg", lambda im: im.rotate(90), exif=exif)
    edited(source, birds / A / "misnamed.png", lambda im: im.rotate(180), format="JPEG")
    edited(source, birds / A / "print.jpg", lambda im: im.rotate(20).convert("CMYK"))
    deep = np.random.default_rng(0).integers(0, 2**16, (128, 128), dtype=np.uint16)
    Image.fromarray(deep).save(birds / A / "deep.png")
    with Image.open(source) as image:
        frames = [image.rotate(30), image.rotate(60)]
        frames[0].save(birds / A / "moving.gif", save_all=True, append_images=frames[1:])
    report = check(birds)
    for kind, name in (
        ("rotated", "turned.jpg"),
        ("misnamed", "misnamed.png"),
        ("CMYK", "print.jpg"),
        ("deep", "deep.png"),
        ("animated", "moving.gif"),
    ):
        assert found(report, kind) == {f"{A}/{name}"}, kind
        assert finding(report, kind).severity == "note"


# ---- classes ------------------------------------------------------------------------------------


def test_the_sizes_of_classes_are_looked_at(birds: Path) -> None:
    for path in sorted((birds / A).iterdir())[1:]:
        path.unlink()
    report = check(birds)
    assert found(report, "lonely") == {A}
    assert found(report, "unbalanced") == {A}
    assert found(report, "few") == {B, C, D}
    assert report.verdict.startswith(f"{birds} is not ready for training: 1 error and 2 warnings")


def test_classes_that_cannot_be_trained_on_are_errors(birds: Path, tmp_path: Path) -> None:
    for path in (birds / A).iterdir():
        path.write_bytes(path.read_bytes()[:300])
    report = check(birds)
    assert found(report, "unread") == {A}
    assert not found(report, "lonely")
    shutil.copytree(birds, tmp_path / "parted" / "train")
    shutil.copytree(birds, tmp_path / "parted" / "val")
    shutil.rmtree(tmp_path / "parted" / "train" / B)
    report = check(tmp_path / "parted")
    assert finding(report, "untaught").cases[0].paths == (B,)
    assert finding(report, "untaught").cases[0].what == "has 10 photos, none to train on"
    assert finding(report, "untaught").severity == "error"
    assert "another file" not in finding(report, "untaught").advice
    made = [
        replace(record, split="validation") if record.label == C else record
        for record in records(birds)
    ]
    split.write(tmp_path / "split.csv", made)
    report = check(birds, split=tmp_path / "split.csv")
    assert found(report, "untaught") == {C}
    assert "another file" in finding(report, "untaught").advice


def test_names_that_some_systems_take_for_one(birds: Path) -> None:
    shutil.copytree(birds / D, birds / D.lower())
    (birds / A / "young").mkdir()
    shutil.copy(birds / A / "0000.jpg", birds / A / "young")
    report = check(birds)
    assert found(report, "alike names") == {D, D.lower()}
    assert found(report, "nested") == {A}


def test_a_folder_that_cannot_be_trained_on_is_reported_all_the_same(birds: Path) -> None:
    report = check(birds / A)
    assert report.findings[0].kind == "untrainable"
    assert "in no class folder" in report.findings[0].cases[0].what
    assert len(report.used) == 10
    for name in (B, C, D):
        shutil.rmtree(birds / name)
    shutil.copy(birds / A / "0000.jpg", birds / "loose.jpg")
    report = check(birds)
    assert [each.kind for each in report.findings] == ["untrainable", "loose"]
    assert report.findings[0].cases[0].what == f"all photos are of the one class {A}"
    assert len(report.used) == 10


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="There is no folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(FieldmarkError, match="is empty"):
        check(tmp_path)
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(FieldmarkError, match="no sub-folders"):
        check(tmp_path)


# ---- splits -------------------------------------------------------------------------------------


def records(folder: Path, **places: str) -> tuple[split.Record, ...]:
    """A split of all photos: into training, but for the ones whose names are given."""
    photos = list_photos(folder)
    return tuple(
        split.Record(
            path=path,
            label=path.split("/")[0],
            split=places.get(Path(path).stem, "training"),  # type: ignore[arg-type]
            group="",
            sha256=hashlib.sha256((folder / path).read_bytes()).hexdigest(),
        )
        for path in photos.paths
    )


def test_leaks_are_found_by_a_split_s_file(birds: Path, tmp_path: Path) -> None:
    turn = Image.Transpose.FLIP_LEFT_RIGHT
    shutil.copy(birds / A / "0000.jpg", birds / A / "copy.jpg")
    edited(birds / B / "0001.jpg", birds / B / "mirror.jpg", lambda im: im.transpose(turn))
    edited(birds / C / "0002.jpg", birds / C / "same side.jpg", lambda im: im.resize((90, 90)))
    held = {"copy": "validation", "mirror": "test", "0009": "validation"}
    split.write(tmp_path / "split.csv", records(birds, **held))
    report = check(birds, split=tmp_path / "split.csv")
    groups = {frozenset(case.paths) for case in finding(report, "leak").cases}
    assert groups == {
        frozenset({f"{A}/0000.jpg", f"{A}/copy.jpg"}),
        frozenset({f"{B}/0001.jpg", f"{B}/mirror.jpg"}),
    }
    assert found(report, "near duplicates") == {f"{C}/0002.jpg", f"{C}/same side.jpg"}
    assert report.intervals[0].photos == 5  # four times 0009, and the copy


def test_leaks_are_found_by_folders(birds: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(birds, tmp_path / "parted" / part)
    for path in (tmp_path / "parted" / "val").glob("*/*.jpg"):
        if path.name > "0001.jpg":
            path.unlink()
    report = check(tmp_path / "parted")
    assert len(finding(report, "leak").cases) == 8
    assert not found(report, "duplicates")


def test_a_leak_is_found_after_renaming(birds: Path, tmp_path: Path) -> None:
    turn = Image.Transpose.FLIP_LEFT_RIGHT
    shutil.copy(birds / A / "0000.jpg", birds / A / "copy.jpg")
    edited(birds / B / "0001.jpg", birds / B / "mirror.jpg", lambda im: im.transpose(turn))
    split.write(tmp_path / "split.csv", records(birds, copy="validation", mirror="test"))
    (birds / A / "copy.jpg").rename(birds / A / "again.jpg")
    shutil.copy(birds / B / "mirror.jpg", birds / B / "third.jpg")  # it is not in the split
    (birds / B).rename(birds / "renamed")
    report = check(birds, split=tmp_path / "split.csv")
    groups = {frozenset(case.paths) for case in finding(report, "leak").cases}
    assert groups == {
        frozenset({f"{A}/0000.jpg", f"{A}/again.jpg"}),
        frozenset(f"renamed/{name}.jpg" for name in ("0001", "mirror", "third")),
    }
    sides = {seen.path: seen.split for seen in report.files}
    assert sides["renamed/third.jpg"] == "test"
    assert report.intervals[0].photos == 1
    assert not report.assumed


def test_an_altered_photo_stays_on_its_side_and_a_new_one_has_none(
    birds: Path, tmp_path: Path
) -> None:
    split.write(tmp_path / "split.csv", records(birds, **{"0009": "validation"}))
    edited(birds / A / "0009.jpg", birds / A / "0009.jpg", lambda im: im.rotate(180))
    edited(birds / A / "0001.jpg", birds / A / "new.jpg", lambda im: im.rotate(90))
    (birds / B / "0009.jpg").write_bytes(b"\xff\xd8\xff")
    sides = {seen.path: seen.split for seen in check(birds, split=tmp_path / "split.csv").files}
    assert sides[f"{A}/0009.jpg"] == "validation"
    assert sides[f"{B}/0009.jpg"] == "validation"  # it cannot be read
    assert sides[f"{A}/new.jpg"] == ""


def test_groups_on_two_sides_are_leaks(birds: Path, tmp_path: Path) -> None:
    rows = [
        f"birds/{A}/000{i}.jpg,bee,{'val' if i > 3 else 'train'},nest {i % 4}" for i in range(5)
    ]
    rows += [f"birds/{B}/000{i}.jpg,wasp,train," for i in range(5)]
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,split,group\n" + "\n".join(rows), encoding="utf-8")
    (case,) = finding(check(listing), "leak").cases
    assert case == Case((f"birds/{A}/0000.jpg", f"birds/{A}/0004.jpg"), "the same group, nest 0")
    # Copies that are called a group are one leak, not two.
    shutil.copy(birds / A / "0000.jpg", birds / A / "copy.jpg")
    groups = {"0000": "alike", "copy": "alike", "0001": "nest", "0002": "nest"}
    made = [
        replace(record, group=record.label + groups.get(Path(record.path).stem, record.path))
        for record in records(birds, copy="test", **{"0002": "validation"})
    ]
    split.write(tmp_path / "split.csv", made)
    report = check(birds, split=tmp_path / "split.csv")
    whats = sorted(case.what for case in finding(report, "leak").cases)
    assert whats == ["the same bytes", *(f"the same group, {name}nest" for name in (A, B, C, D))]
    assert "another file" in finding(report, "leak").advice


def test_the_first_paths_of_a_case_are_of_different_classes_and_sides(
    birds: Path, tmp_path: Path
) -> None:
    for i in range(4):
        shutil.copy(birds / A / "0000.jpg", birds / A / f"copy {i}.jpg")
    shutil.copy(birds / A / "0000.jpg", birds / D / "copy 3.jpg")
    held = {"copy 3": "validation"}
    split.write(tmp_path / "split.csv", records(birds, **held))
    report = check(birds, split=tmp_path / "split.csv")
    conflict, leak = (finding(report, kind).cases[0].paths for kind in ("conflict", "leak"))
    assert conflict[:2] == (f"{A}/0000.jpg", f"{D}/copy 3.jpg")
    assert leak[:2] == (f"{A}/0000.jpg", f"{A}/copy 3.jpg")
    assert len(conflict) == len(leak) == 6


def test_validation_is_cut_from_training_where_only_a_test_is_given(
    birds: Path, tmp_path: Path
) -> None:
    shutil.copytree(birds, tmp_path / "parted" / "train")
    (tmp_path / "parted" / "test").mkdir()
    for name in (A, B, C, D):
        of = tmp_path / "parted" / "test" / name
        shutil.copytree(birds / name, of)
        for path in of.iterdir():
            edited(path, path, lambda im: im.rotate(90))
    for path in sorted((tmp_path / "parted" / "train" / A).iterdir())[2:]:
        path.unlink()
    report = check(tmp_path / "parted")
    assert report.assumed
    least, everything = report.intervals[1], report.intervals[0]
    assert (least.name, least.photos, everything.photos) == (A, 1, 7)
    whats = {case.paths[0]: case.what for case in finding(report, "few").cases}
    assert whats[A] == "has 1 to validate on"
    assert "take the copies away" in KINDS["leak"].advice.lower()


def test_a_split_is_taken_from_a_run(birds: Path, tmp_path: Path) -> None:
    made = run.create(
        tmp_path / "run",
        recipe=TINY,
        environment={},
        classes=(A, B, C, D),
        specification=ImageSpec(size=32, mode="crop", interpolation="bilinear", scaling="-1..1"),
        records=records(birds, **{"0009": "validation"}),
    )
    assert check(birds, split=made.folder).intervals[0].photos == 4


def test_photos_that_are_not_as_the_split_says(birds: Path, tmp_path: Path) -> None:
    split.write(tmp_path / "split.csv", records(birds))
    (birds / A / "0000.jpg").rename(birds / A / "moved.jpg")
    (birds / B / "0000.jpg").unlink()
    edited(birds / C / "0000.jpg", birds / C / "0000.jpg", lambda im: im.rotate(180))
    edited(birds / D / "0000.jpg", birds / D / "new.jpg", lambda im: im.rotate(90))
    report = check(birds, split=tmp_path / "split.csv")
    whats = {case.paths[0]: case.what for case in finding(report, "changed").cases}
    assert whats == {
        f"{A}/moved.jpg": f"was {A}/0000.jpg",
        f"{B}/0000.jpg": "is missing",
        f"{C}/0000.jpg": "has another content",
        f"{D}/new.jpg": "is new",
    }


# ---- the account --------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["a.jpg", "b.png", ".hidden", "._a.jpg", "Thumbs.db", "notes.txt", "empty.jpg", "ü ñ.jpg", "x"]
)
PLACES = st.sampled_from(["", "one/", "two/", "two/deep/", ".secret/", "__MACOSX/"])


@settings(max_examples=40)
@given(st.sets(st.tuples(PLACES, NAMES), min_size=1, max_size=25))
def test_every_file_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, clean: Path, there: set[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    photo = (clean / A / "0000.jpg").read_bytes()
    for place, name in there:
        (folder / place).mkdir(parents=True, exist_ok=True)
        content = photo if name.endswith(("a.jpg", "b.png", "ñ.jpg")) else b""
        (folder / place / name).write_bytes(content)
    try:
        report = check(folder)
    except FieldmarkError:
        aside = (".secret/", "__MACOSX/")
        if any(
            place not in aside and name in ("a.jpg", "b.png", "ü ñ.jpg") for place, name in there
        ):
            raise
        return  # there is no photo at all
    on_disk = {
        (Path(root) / name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
    }
    assert {seen.path for seen in report.files} == on_disk
    assert len(report.files) == len(on_disk)
    counts = re.findall(r"(\d+) (?:used|unreadable|skipped|hidden)", report.account)
    assert sum(map(int, counts)) == len(on_disk)


def test_names_that_no_csv_can_hold_are_all_named(birds: Path) -> None:
    for name in ("line\nbreak.jpg", os.fsdecode(b"latin \xe4.jpg")):
        (birds / A / "0000.jpg").rename(birds / A / name)
        shutil.copy(birds / A / "0001.jpg", birds / A / "0000.jpg")
    report = check(birds)
    assert found(report, "unwritable") == {f"{A}/line\nbreak.jpg", f"{A}/latin \udce4.jpg"}
    assert not any(each.kind == "untrainable" for each in report.findings)


def test_links_to_folders_count_what_lies_behind_them(birds: Path, tmp_path: Path) -> None:
    (birds / A).rename(tmp_path / "elsewhere")
    (birds / A).symlink_to(tmp_path / "elsewhere")
    (birds / A / "notes.txt").write_text("no photo")
    report = check(birds)
    assert report.account == "41 files: 40 used, 1 skipped; 10 by symbolic links"
    with pytest.raises(FieldmarkError, match="among the photos"):
        check(birds, outputs=[tmp_path / "elsewhere" / "a.csv"])


def test_links_are_followed_and_said(birds: Path) -> None:
    (birds / A / "link.jpg").symlink_to(birds / B / "0000.jpg")
    report = check(birds)
    assert found(report, "linked") == {f"{A}/link.jpg"}
    assert report.account == "41 files: 41 used; 1 by symbolic links"
    assert found(report, "conflict") == {f"{A}/link.jpg", f"{B}/0000.jpg"}


def test_a_place_to_write_to_is_refused_before_the_work(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "examine", lambda *_, **__: pytest.fail("it was read"))
    split.write(tmp_path / "split.csv", records(birds))
    for place in (birds / "a.csv", tmp_path / "no" / "a.csv", tmp_path / "split.csv"):
        with pytest.raises(FieldmarkError):
            check(birds, split=tmp_path / "split.csv", outputs=[None, place])
    (tmp_path / "run").mkdir()
    for name in ("environment.json", "recipe.json"):
        (tmp_path / "run" / name).write_text('{"schema": 2}')
    with pytest.raises(FieldmarkError, match="lies in a run: name a file elsewhere"):
        check(birds, outputs=[tmp_path / "run" / "split.csv"])
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(FieldmarkError, match="cannot be both the CSV and the sheet"):
        check(birds, outputs=[tmp_path / "loop.csv"] * 2)


def test_a_csv_of_photos_is_checked(birds: Path, tmp_path: Path) -> None:
    lines = [f"birds/{A}/000{i}.jpg,bee,train" for i in range(5)]
    lines += [f"birds/{B}/000{i}.jpg,wasp,val" for i in range(5)]
    lines += [f"birds/{A}/copy.jpg,bee,val"]
    shutil.copy(birds / A / "0000.jpg", birds / A / "copy.jpg")
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,split\n" + "\n".join(lines), encoding="utf-8")
    report = check(listing)
    assert report.sizes == {"bee": 6, "wasp": 5}
    assert len(finding(report, "leak").cases) == 1
    shutil.copy(birds / A / "0000.jpg", tmp_path / "beside.jpg")
    with listing.open("a", encoding="utf-8") as file:
        file.write("\nbeside.jpg,bee,train\n")
    for place in (listing, tmp_path / "beside.jpg"):
        with pytest.raises(FieldmarkError, match="one of the files"):
            check(listing, outputs=[place])
    with pytest.raises(FieldmarkError, match="among the photos"):
        check(listing, outputs=[birds / B / "a.csv"])


# ---- what `train` begins with -------------------------------------------------------------------


def test_quick_returns_the_hashes(clean: Path) -> None:
    photos = list_photos(clean)
    truth = [hashlib.sha256((clean / path).read_bytes()).hexdigest() for path in photos.paths]
    assert list(quick(photos).hashes) == truth
    assert quick(photos).together == ()


def test_quick_says_which_photos_belong_together(birds: Path) -> None:
    plant_copies(birds)
    photos = list_photos(birds)
    together = {frozenset(photos.paths[i] for i in group) for group in quick(photos).together}
    assert frozenset({f"{A}/0000.jpg", f"{A}/copy.jpg"}) in together
    assert frozenset({f"{B}/0002.jpg", f"{B}/mirror.jpg"}) in together


def test_quick_names_all_that_a_training_would_choke_on(birds: Path) -> None:
    for name in (A, B):
        whole = (birds / name / "0003.jpg").read_bytes()
        (birds / name / "0003.jpg").write_bytes(whole[: len(whole) // 3])
    photos = list_photos(birds)
    (birds / C / "0001.jpg").unlink()
    with pytest.raises(FieldmarkError) as caught:
        quick(photos)
    text = str(caught.value)
    assert text.startswith("3 files are not photos that can be read")
    assert f"{A}/0003.jpg: is cut off" in text
    assert f"{B}/0003.jpg: is cut off" in text
    assert f"{C}/0001.jpg: cannot be opened" in text


def test_quick_refuses_a_class_of_one_photo(birds: Path) -> None:
    for path in sorted((birds / A).iterdir())[1:]:
        path.unlink()
    with pytest.raises(FieldmarkError, match=f"^{A} in .* has fewer than 2 photos"):
        quick(list_photos(birds))


# ---- real photos --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exif", "modes", "broken"])
def test_odd_files_are_all_accounted_for(name: str, shared_photos: Path) -> None:
    folder = shared_photos / "odd" / name
    assert len(check(folder).files) == sum(path.is_file() for path in folder.rglob("*"))
