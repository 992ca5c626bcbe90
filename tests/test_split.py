"""Splits: stratified, grouped, stable, Keras' own; what has changed since, and what leaks."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import split
from fieldmark.check import Quick
from fieldmark.data import Photos, list_article, list_photos, sha256s
from fieldmark.errors import FieldmarkError
from fieldmark.split import Changes, Record


def sha(text: object) -> str:
    """Return a hash as of a photo."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def made(labels: Sequence[int], *, names: Iterable[object] = ()) -> tuple[Photos, tuple[str, ...]]:
    """Return photos of these classes that lie nowhere, and their hashes."""
    ids = list(names) or list(range(len(labels)))
    count = max([1, *labels]) + 1
    photos = Photos(
        folder=Path("photos"),
        classes=tuple(f"class {i}" for i in range(count)),
        paths=tuple(f"class {label}/{name}.jpg" for label, name in zip(labels, ids, strict=True)),
        labels=tuple(labels),
    )
    return photos, tuple(sha(name) for name in ids)


def assign(photos: Photos, hashes: Sequence[str], **values: object) -> tuple[Record, ...]:
    """Split with shares that a test does not care about."""
    shares: dict[str, object] = {"validation": 0.2, "test": 0.1, "seed": 1}
    return split.assign(photos, hashes, **(shares | values))  # type: ignore[arg-type]


def counted(records: Iterable[Record]) -> dict[str, Counter[str]]:
    """Count the photos of each class by split."""
    counts = defaultdict[str, Counter[str]](Counter)
    for record in records:
        counts[record.label][record.split] += 1
    return counts


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=60)
SHARES = st.tuples(st.sampled_from((0.0, 0.1, 0.2, 0.25, 0.4)), st.sampled_from((0.0, 0.1, 0.3)))


# ---- strata -------------------------------------------------------------------------------------


@given(LABELS, SHARES, st.integers(0, 3))
def test_single_photos_are_split_exactly(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    validation, test = shares
    photos, hashes = made(labels)
    records = split.assign(photos, hashes, validation=validation, test=test, seed=seed)
    assert [record.path for record in records] == list(photos.paths)
    for label, counts in counted(records).items():
        count = photos.labels.count(photos.classes.index(label))
        asked = {"training": 1 - validation - test, "validation": validation, "test": test}
        parts = [name for name, share in asked.items() if share > 0]
        assert {*counts} <= {*parts}
        assert counts["training"] >= 1
        assert len(+counts) == min(count, len(parts)) or all(
            counts[name] >= 1 for name in parts[: min(count, len(parts))]
        )
        if all(count * asked[name] >= 1 for name in parts):  # no part is filled up by the rule
            assert all(abs(counts[name] - count * asked[name]) < 1 for name in parts)


@pytest.mark.parametrize(
    ("count", "validation", "test", "expected"),
    [
        (10, 0.2, 0.1, (7, 2, 1)),
        (141, 0.2, 0.0, (113, 28, 0)),
        (2, 0.2, 0.1, (1, 1, 0)),
        (3, 0.2, 0.1, (1, 1, 1)),
        (1, 0.4, 0.4, (1, 0, 0)),
        (5, 0.6, 0.0, (2, 3, 0)),
        (1, 0.9, 0.0, (1, 0, 0)),
        (2, 0.1, 0.4, (1, 1, 0)),
        (10, 0.15, 0.15, (7, 2, 1)),
        (15, 0.2, 0.2, (9, 3, 3)),
    ],
)
def test_the_shares_of_a_class(
    count: int, validation: float, test: float, expected: tuple[int, int, int]
) -> None:
    photos, hashes = made([0] * count)
    records = split.assign(photos, hashes, validation=validation, test=test, seed=0)
    counts = Counter(record.split for record in records)
    found = tuple(counts[name] for name in split.SPLITS)
    if count == 2 and test > validation:  # either of the two parts may get the second photo
        assert found in {(1, 1, 0), (1, 0, 1)}
    else:
        assert found == expected


def test_the_place_follows_from_content_and_seed_alone() -> None:
    photos, hashes = made([i % 3 for i in range(60)])
    places = dict(zip(hashes, [r.split for r in assign(photos, hashes)], strict=True))
    order = list(range(60))
    random.Random(0).shuffle(order)
    other = Photos(
        folder=Path("elsewhere"),
        classes=tuple(f"species {2 - i}" for i in range(3)),
        paths=tuple(f"photo {i}.png" for i in range(60)),
        labels=tuple(2 - photos.labels[i] for i in order),
    )
    shuffled = [hashes[i] for i in order]
    again = dict(zip(shuffled, [r.split for r in assign(other, shuffled)], strict=True))
    assert again == places
    reseeded = [record.split for record in assign(photos, hashes, seed=2)]
    assert reseeded != list(places.values())


# ---- groups --------------------------------------------------------------------------------------

GROUPED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=80)


@given(GROUPED, SHARES, st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79)), max_size=8))
def test_what_belongs_together_stays_together(
    rows: list[tuple[int, int]], shares: tuple[float, float], pairs: list[tuple[int, int]]
) -> None:
    photos, hashes = made([label for label, _ in rows], names=[i % 70 for i in range(len(rows))])
    groups = [f"group {group}" if group else "" for _, group in rows]
    twins = [pair for pair in pairs if max(pair) < len(rows)]
    validation, test = shares
    records = split.assign(
        photos, hashes, validation=validation, test=test, seed=0, groups=groups, twins=twins
    )
    assert split.leaks(records, twins) == ()
    for field in ("group", "sha256"):
        sides = defaultdict[str, set[str]](set)
        for record in records:
            sides[getattr(record, field)].add(record.split)
        assert all(len(of) == 1 for key, of in sides.items() if key)
    assert all(records[a].split == records[b].split for a, b in twins)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), SHARES)
def test_groups_within_classes_fill_every_part_that_they_can(
    groups: list[int], shares: tuple[float, float]
) -> None:
    labels = [group % 2 for group in groups]
    photos, hashes = made(labels)
    names = [str(group) for group in groups]
    validation, test = shares
    records = split.assign(photos, hashes, validation=validation, test=test, seed=0, groups=names)
    wanted = 1 + (validation > 0) + (test > 0)
    for label, counts in counted(records).items():
        units = {n for n, label_ in zip(names, labels, strict=True) if f"class {label_}" == label}
        assert counts["training"] > 0
        assert len(+counts) == min(wanted, len(units))


def test_groups_come_as_near_to_the_shares_as_they_can() -> None:
    photos, hashes = made([0] * 90 + [1] * 50)
    groups = [f"species {i // 5}" for i in range(140)]
    counts = counted(assign(photos, hashes, groups=groups))
    # 90: 63, 18 and 9 are wanted, 65, 15 and 10 or 60, 20 and 10 can be had; 50: 35, 10 and 5.
    assert counts["class 0"] in (
        {"training": 65, "validation": 15, "test": 10},
        {"training": 60, "validation": 20, "test": 10},
    )
    assert counts["class 1"] == {"training": 35, "validation": 10, "test": 5}


def test_a_group_has_a_name_in_the_split() -> None:
    photos, _ = made([0, 0, 0, 0, 1, 1, 1])
    hashes = [sha(i) for i in (0, 0, 1, 2, 3, 4, 5)]
    records = assign(photos, hashes, groups=["", "", "a", "b", "b", "c", ""], twins=[(2, 3)])
    alike = f"alike-{sha(0)[:12]}"
    assert [record.group for record in records] == [alike, alike, *["a + b"] * 3, "c", ""]


def test_the_groups_of_a_csv_count_too() -> None:
    photos, hashes = made([i % 2 for i in range(40)])
    photos = replace(photos, groups=tuple(f"g{i // 4}" for i in range(40)))
    records = assign(photos, hashes)
    assert [record.group for record in records] == list(photos.groups)
    assert split.leaks(records) == ()


def test_the_species_of_real_birds_are_not_parted(shared_photos: Path, tmp_path: Path) -> None:
    records = split.make(
        shared_photos / "birds", tmp_path / "split.csv", test=0.15, group_by="(.+)__"
    )
    sides = defaultdict[str, set[str]](set)
    for record in records:
        sides[Path(record.path).name.partition("__")[0]].add(record.split)
    assert len(sides) == 101
    assert {len(of) for of in sides.values()} == {1}
    assert split.read(tmp_path / "split.csv") == records
    for label, counts in counted(records).items():
        assert all(counts[name] for name in split.SPLITS), label
        units = Counter(r.group for r in records if r.label == label)
        off = counts["validation"] - 0.2 * counts.total()
        assert abs(off) <= max(units.values()), label


# ---- an earlier split ----------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=15), max_size=8),
    SHARES,
)
def test_adding_photos_moves_none(
    additions: list[list[tuple[int, int]]], shares: tuple[float, float]
) -> None:
    validation, test = shares
    labels, groups = [0, 1, 0, 1], ["", "", "", ""]
    before: tuple[Record, ...] = ()
    for added in additions:
        labels += [label for label, _ in added]
        groups += [f"g{group}" if group else "" for _, group in added]
        photos, hashes = made(labels)
        after = split.assign(
            photos, hashes, validation=validation, test=test, seed=0, groups=groups, before=before
        )
        assert [r.split for r in after[: len(before)]] == [r.split for r in before]
        assert split.leaks(after) == ()
        before = after


@given(st.lists(st.integers(5, 30), min_size=1, max_size=6), SHARES)
def test_a_class_that_grows_keeps_its_shares(steps: list[int], shares: tuple[float, float]) -> None:
    validation, test = shares
    before: tuple[Record, ...] = ()
    for count in (sum(steps[: i + 1]) for i in range(len(steps))):
        photos, hashes = made([0] * count)
        before = split.assign(
            photos, hashes, validation=validation, test=test, seed=0, before=before
        )
        counts = Counter(record.split for record in before)
        # What rounding up gave to a part while the class was small, it keeps.
        assert abs(counts["validation"] - validation * count) <= 1
        assert abs(counts["test"] - test * count) <= 1


def test_new_photos_go_where_their_near_duplicates_are() -> None:
    photos, hashes = made([0] * 20)
    before = assign(photos, hashes)
    held_out = [i for i, record in enumerate(before) if record.split == "validation"]
    train = next(i for i, record in enumerate(before) if record.split == "training")
    grown, more = made([0] * 23)
    twins = [(held_out[0], 20), (held_out[1], train, 21)]
    after = assign(grown, more, before=before, twins=twins)
    assert after[20].split == "validation"
    assert after[21].split == "training"  # its unit lies on two sides already
    assert after[:20] == tuple(
        replace(record, group=after[i].group) for i, record in enumerate(before)
    )
    found = split.leaks(after, twins)
    assert [(leak.why, leak.splits) for leak in found] == [
        ("nearly the same photo", ("training", "validation"))
    ]
    assert any(
        "on two sides, nearly the same photo" in note for note in split.warnings(after, twins)
    )


def test_near_duplicates_follow_to_a_part_that_is_no_longer_asked_for() -> None:
    photos, hashes = made([0] * 20)
    before = assign(photos, hashes)
    i = next(i for i, record in enumerate(before) if record.split == "test")
    grown, more = made([0] * 21)
    assert assign(grown, more, test=0.0, before=before, twins=[(i, 20)])[20].split == "test"


def test_recorded_groups_hold_without_their_pattern() -> None:
    photos, hashes = made([0] * 40)
    groups = [f"owl {i // 4}" for i in range(40)]
    before = assign(photos, hashes, groups=groups)
    grown, more = made([0] * 44)
    for seen in (["owl 3", *[""] * 3], [""] * 4):
        after = assign(grown, more, before=before, groups=[""] * 40 + seen)
        assert after[:40] == before
        assert split.leaks(after) == ()
        assert after[40].group == seen[0]
    # Of one group is also what was altered, moved, or is a near duplicate of a photo that it has.
    other = [sha("altered"), *more[1:]]
    paths = [*grown.paths[:1], "moved.jpg", *grown.paths[2:]]
    after = assign(replace(grown, paths=tuple(paths)), other, before=before, twins=[(2, 43)])
    assert [after[i].group for i in (0, 1, 2, 43)] == ["owl 0"] * 4
    assert len({after[i].split for i in (0, 1, 2, 3, 43)}) == 1
    # What lies at the path of one that was moved is another photo.
    swapped = [*hashes[:3], sha("another"), *hashes[4:], hashes[3]]
    after = assign(made([0] * 41)[0], swapped, before=before)
    assert (after[3].group, after[40].group) == ("", "owl 0")


@given(GROUPED, SHARES, st.lists(st.booleans(), min_size=80, max_size=80))
def test_what_was_recorded_is_never_parted(
    rows: list[tuple[int, int]], shares: tuple[float, float], said: list[bool]
) -> None:
    photos, hashes = made([label for label, _ in rows])
    names = [f"g{group}" if group else "" for _, group in rows]
    half = len(rows) // 2
    some = replace(photos, paths=photos.paths[:half], labels=photos.labels[:half])
    asked = {"validation": shares[0], "test": shares[1]}
    before = assign(some, hashes[:half], groups=names[:half], **asked)
    groups = [name if of else "" for name, of in zip(names, said, strict=False)]
    after = assign(photos, hashes, groups=groups, before=before, **asked)
    assert [r.split for r in after[:half]] == [r.split for r in before]
    assert [r.group for r in after[:half]] == [r.group for r in before]
    assert split.leaks(after) == ()


def test_moved_and_altered_photos_stay() -> None:
    photos, hashes = made([0] * 10 + [1] * 10)
    before = assign(photos, hashes)
    i = next(i for i, record in enumerate(before) if record.split == "validation")
    j = next(i for i, record in enumerate(before) if record.split == "test")
    paths = [*photos.paths]
    paths[i] = "class 0/another name.jpg"
    others = list(hashes)
    others[j] = sha("altered")
    after = assign(replace(photos, paths=tuple(paths)), others, before=before)
    assert [record.split for record in after] == [record.split for record in before]


def test_a_split_by_folders_is_taken_as_given() -> None:
    photos, hashes = made([i % 2 for i in range(40)])
    words = ["test" if i < 10 else "training" for i in range(40)]
    photos = replace(photos, given=tuple(words))  # type: ignore[arg-type]
    records = assign(photos, hashes)
    assert [r.split == "test" for r in records] == [word == "test" for word in words]
    # A fifth of the 30 training photos is cut for the validation that is missing.
    assert counted(records)["class 0"] == {"training": 12, "validation": 3, "test": 5}
    again = assign(photos, hashes, before=records, seed=7)
    assert again == records
    # What lies on both sides of a given split stays there and is reported.
    leaky = assign(photos, [hashes[0] if i == 20 else h for i, h in enumerate(hashes)])
    assert (leaky[0].split, leaky[20].split) == ("test", "training")
    assert [leak.why for leak in split.leaks(leaky)] == ["the same bytes"]
    whole = replace(photos, given=("training", "validation") * 20)
    assert [r.split for r in assign(whole, hashes, test=0.0)] == list(whole.given)
    with pytest.raises(FieldmarkError, match="No photo of photos is given to training"):
        assign(replace(photos, given=("test",) * 40), hashes)


# ---- Keras' own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 123, 2**32 - 1])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.03])
def test_the_article_s_split_is_keras_own(birds: Path, seed: int, share: float) -> None:
    from fieldmark.backend import keras

    photos = list_article(birds)
    ours = split.article(photos, sha256s(photos), validation=share, seed=seed)
    theirs = dict[str, str]()
    for subset in ("training", "validation"):
        dataset = keras.utils.image_dataset_from_directory(
            str(birds), validation_split=share, subset=subset, seed=seed, verbose=False
        )
        theirs |= {str(Path(path).relative_to(birds)): subset for path in dataset.file_paths}
    assert {record.path: record.split for record in ours} == theirs


def test_what_keras_cannot_split_is_refused() -> None:
    photos, hashes = made([0, 1, 0, 1])
    for share in (0.0, 0.2, 1.0, -0.5):
        with pytest.raises(FieldmarkError, match="take a share between 0 and 1"):
            split.article(photos, hashes, validation=share, seed=0)
    for seed in (-1, 2**32):
        with pytest.raises(FieldmarkError, match="is none for Keras"):
            split.article(photos, hashes, validation=0.5, seed=seed)


# ---- groups by a pattern -------------------------------------------------------------------------


def test_a_pattern_finds_groups_in_file_names() -> None:
    paths = ("owls/BARN_OWL__1.jpg", "owls/BARN_OWL__2.jpg", "a__b/x.jpg", "owls/EAGLE_OWL__1.jpg")
    assert split.by_pattern(paths, "(.+)__") == ("BARN_OWL", "BARN_OWL", "", "EAGLE_OWL")
    assert split.by_pattern(paths, "^[A-Z]+") == ("BARN", "BARN", "", "EAGLE")
    assert split.by_pattern(paths, "(?:BARN|(EAGLE))") == ("", "", "", "EAGLE")
    assert split.by_pattern(("a/Re\u0301n_1", "a/R\u00e9n_2", "b/x"), "R\u00e9n") == (
        *["R\u00e9n"] * 2,
        "",
    )


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is not a regular expression"),
        ("jpg$", "puts all 2 photos into the group 'jpg'"),
        ("no such", "matches no photo's name, such as 'a/1.jpg'"),
        ("x*", "matches no photo's name"),
    ],
)
def test_a_bad_pattern_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(FieldmarkError) as caught:
        split.by_pattern(("a/1.jpg", "b/2.jpg"), pattern)
    assert reason in str(caught.value)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (1.0, 0.0), (-0.1, 0.0), (0.0, float("nan"))])
def test_shares_that_leave_nothing_are_refused(shares: tuple[float, float]) -> None:
    photos, hashes = made([0, 1])
    with pytest.raises(FieldmarkError, match="less than 1 together"):
        split.assign(photos, hashes, validation=shares[0], test=shares[1], seed=0)


# ---- files ---------------------------------------------------------------------------------------


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = (
        Record("a/1, 2.jpg", 'the "a"', "training", "", sha(1)),
        Record("鳥 b/é.jpg", "鳥 b", "validation", "g", sha(2)),
        Record("c/1.jpg", "c", "test", "g", sha(3)),
    )
    path = tmp_path / "split.csv"
    split.write(path, records)
    assert split.read(path) == records
    # A spreadsheet may have written it again.
    text = path.read_text(encoding="utf-8").replace("a/1, 2.jpg", "x").replace(",", ";")
    path.write_bytes(text.encode("utf-16"))
    assert split.read(path) == (replace(records[0], path="x"), *records[1:])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("path,label\na,b\n", "has no columns path, label, split, group and sha256"),
        ("", "has no columns"),
        ("HEAD", "holds no photo"),
        ("HEAD,a,training,,SHA\n", "Line 2 of"),
        ("HEAD1.jpg,a,train,,SHA\n2.jpg,a,dev,,SHA\n", "Line 3 of"),
        ("HEAD1.jpg,a,test,,123\n", "has the sha256 '123'"),
        ("HEAD1.jpg,a,test,,SHA\n1.jpg,a,test,,SHA\n", "are about one photo, 1.jpg"),
        ("HEAD1.jpg,a,test,,SHA,x\n", "has 6 cells"),
    ],
)
def test_a_wrong_split_is_refused(rows: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    head = "path,label,split,group,sha256\n"
    path.write_text(rows.replace("HEAD", head).replace("SHA", sha(0)), encoding="utf-8")
    with pytest.raises(FieldmarkError) as caught:
        split.read(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_no_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match="There is no split"):
        split.read(tmp_path / "none.csv")


# ---- what is different, and what leaks -----------------------------------------------------------


def records_of(**contents: object) -> tuple[Record, ...]:
    """Return rows of a split; a photo's name is `class_number`."""
    return tuple(
        Record(name, name.partition("_")[0], "training", "", sha(content))
        for name, content in contents.items()
    )


def photos_of(**contents: object) -> tuple[Photos, tuple[str, ...]]:
    """Return photos and their hashes, named as in `records_of`."""
    classes = tuple(sorted({name.partition("_")[0] for name in contents}))
    labels = tuple(classes.index(name.partition("_")[0]) for name in contents)
    hashes = tuple(map(sha, contents.values()))
    return Photos(Path("photos"), classes, tuple(contents), labels), hashes


def test_changes_tell_what_is_different() -> None:
    was = records_of(a_1=1, a_2=2, a_3=3, b_1=4, b_2=5, b_3=6)
    assert not split.changes(was, *photos_of(a_1=1, a_2=2, a_3=3, b_1=4, b_2=5, b_3=6))
    found = split.changes(was, *photos_of(a_1=1, a_2="other", a_3=4, b_1=3, c_9=5, d_1=8))
    assert found == Changes(
        altered=("a_2",),
        missing=("b_3",),
        new=("d_1",),
        moved=(("b_1", "a_3"), ("a_3", "b_1"), ("b_2", "c_9")),
        relabelled=("a_3", "b_1", "c_9"),
    )
    assert split.described(found) == (
        "Photos since the split was written: 1 new (d_1); 1 altered (a_2); 1 missing (b_3); "
        "3 moved (b_1 -> a_3, a_3 -> b_1, b_2 -> c_9); 3 in another class (a_3, b_1, c_9)."
    )
    assert split.described(Changes()) == ""


@given(*[st.dictionaries(st.integers(0, 9), st.integers(0, 6), max_size=9)] * 2)
def test_changes_account_for_every_photo(was: dict[int, int], now: dict[int, int]) -> None:
    old = records_of(**{f"a_{name}": content for name, content in was.items()})
    photos, hashes = photos_of(**{f"a_{name}": content for name, content in now.items()})
    found = split.changes(old, photos, hashes)
    same = {name for name in was if was[name] == now.get(name)}
    known = [*found.altered, *found.missing, *(path for path, _ in found.moved)]
    assert sorted(known) == sorted(f"a_{name}" for name in was.keys() - same)
    come = [*found.altered, *found.new, *(path for _, path in found.moved)]
    assert sorted(come) == sorted(f"a_{name}" for name in now.keys() - same)


def test_leaks_are_found() -> None:
    rows = records_of(a_1=1, a_2=1, a_3=2, b_1=3, b_2=4, b_3=5)
    places = ("test", "training", "training", "validation", "training", "training")
    groups = ("", "", "g", "g", "", "")
    rows = tuple(
        replace(row, split=place, group=group)  # type: ignore[arg-type]
        for row, place, group in zip(rows, places, groups, strict=True)
    )
    found = split.leaks(rows, [(3, 4), (4, 5)])
    assert [(leak.first, leak.second, leak.why, leak.splits) for leak in found] == [
        ("a_2", "a_1", "the same bytes", ("training", "test")),
        ("b_2", "b_1", "nearly the same photo", ("training", "validation")),
        ("a_3", "b_1", "the same group", ("training", "validation")),
    ]
    assert split.warnings(rows) == (
        "no validation photos in a.",
        "no test photos in b.",
        "1 group of more than one class: g.",
        "1 pair on two sides, the same bytes: a_2 (training), a_1 (test).",
        "1 pair on two sides, the same group: a_3 (training), b_1 (validation).",
    )


def test_a_part_that_is_empty_is_said_if_it_was_asked_for() -> None:
    photos, hashes = made([0, 0, 0, 1, 1, 1])
    shares = {"validation": 0.0, "test": 0.0}
    assert split.warnings(assign(photos, hashes, **shares), shares=shares) == ()
    shares = {"validation": 0.2, "test": 0.1}
    records = assign(photos, hashes, groups=["a"] * 3 + ["b"] * 3)
    notes = split.warnings(records, shares=shares)
    assert "no test photos: the groups are too large." in notes
    alone, hash_ = made([0])
    assert split.warnings(assign(replace(alone, classes=("a",)), hash_), (), shares) == (
        "no validation photos: the photos are too few.",
        "no test photos: the photos are too few.",
    )
    before = assign(photos, hashes, test=0.0)
    records = assign(photos, hashes, before=before)
    assert split.warnings(records, (), shares, extended=True) == (
        "no test photos: those of the earlier split keep their places.",
    )


def test_the_table_counts_classes_by_split() -> None:
    photos, hashes = made([0] * 10 + [1] * 100)
    photos = replace(photos, classes=("鳥", "bee"))
    assert split.table(assign(photos, hashes)).splitlines() == [
        "class  training  validation  test  all",
        "bee          70          20    10  100",
        "鳥            7           2     1   10",
        "all          77          22    11  110",
    ]
    many, hashes = made([i // 2 for i in range(200)])
    lines = split.table(assign(many, hashes, test=0.0)).splitlines()
    assert lines[0].split() == ["class", "training", "validation", "all"]
    assert len(lines) == 1 + split.ROWS + 2
    assert lines[-2].split() == ["and", "50", "more"]


# ---- the command's work --------------------------------------------------------------------------


def test_a_split_is_made_and_extended(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split.csv"
    some = tmp_path / "some"
    for path in sorted(birds.glob("*/*.jpg")):
        if not path.stem.endswith("7"):
            (some / path.parent.name).mkdir(parents=True, exist_ok=True)
            (some / path.parent.name / path.name).write_bytes(path.read_bytes())
    first = split.make(some, out, test=0.1)
    assert split.read(out) == first
    printed = capsys.readouterr().out
    assert f"Split: {out}" in printed
    assert "Photos since" not in printed
    left = list_photos(birds).paths[0]

    def look(photos: Photos) -> Quick:
        return Quick(sha256s(photos), ((0, len(photos) - 1),))

    second = split.make(birds, out, test=0.1, look=look)
    places = {record.path: record.split for record in first}
    assert all(places.get(record.path, record.split) == record.split for record in second)
    assert len(second) == len(first) + 4
    printed = capsys.readouterr().out
    assert (
        f"{out} exists: its 44 photos keep their places; new ones fill up the shares of all."
        in printed
    )
    assert "4 new (" in printed
    assert second[0].path == left
    assert second[0].group == second[-1].group != ""


def test_keras_split_is_made_by_a_flag(birds: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.csv"
    records = split.make(birds, out, keras=True)
    assert Counter(record.split for record in records) == {"training": 39, "validation": 9}
    with pytest.raises(FieldmarkError, match="cannot be extended"):
        split.make(birds, out, keras=True)
    for values in ({"test": 0.1}, {"group_by": "(.)"}):
        with pytest.raises(FieldmarkError, match="neither test photos nor groups"):
            split.make(birds, tmp_path / "new", keras=True, **values)


def test_no_split_is_written_among_the_photos(tmp_path: Path) -> None:
    for name in ("ant/1.gif", "bee/1.gif"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"GIF89a" + name.encode())
    with pytest.raises(FieldmarkError, match="lies among the photos"):
        split.make(tmp_path, tmp_path / "split.csv")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nant/1.gif,a\nbee/1.gif,b\n", encoding="utf-8")
    with pytest.raises(FieldmarkError, match="is the list of photos itself"):
        split.make(labels, labels)
    assert len(split.make(labels, tmp_path / "split.csv")) == 2


def test_places_where_no_split_can_lie_are_refused_before_any_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "table.csv").write_text("path,label\n", encoding="utf-8")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "empty.csv").touch()
    header = "path,label,split,group,sha256"
    (tmp_path / "more.csv").write_text(f"{header},note\n", encoding="utf-8")
    for name, reason in {
        "none/split.csv": "none: make it first",
        ".": "is a folder: name a file",
        "pipe.csv": "is a pipe: name a file",
        "table.csv": "exists and is no split: name another file",
        "more.csv": r"has columns that no split has \(note\), which would be lost",
        "photo.jpg": "exists and is no split: name another file",
        "empty.csv": "exists and is no split: name another file",
        "photo.jpg/split.csv": r"cannot be written \(Not a directory\)",
        f"{'x' * 300}.csv": r"cannot be written \(File name too long\)",
    }.items():
        with pytest.raises(FieldmarkError, match=reason):
            split.make("no such photos", tmp_path / name)  # which nobody has looked for yet


def test_no_split_is_written_among_the_photos_by_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("photos/ant/1.gif", "elsewhere/bees/1.gif", "elsewhere/2.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"GIF89a" + name.encode())
    root = tmp_path / "photos"
    (root / "bee").symlink_to(elsewhere / "bees")
    (root / "ant" / "2.gif").symlink_to(elsewhere / "2.gif")
    (tmp_path / "way in").symlink_to(root)
    for place in (root / "s.csv", tmp_path / "way in" / "s.csv", elsewhere / "bees" / "s.csv"):
        with pytest.raises(FieldmarkError, match="lies among the photos"):
            split.make(root, place)
        assert not place.exists()
    assert len(split.make(root, elsewhere / "s.csv")) == 3
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nphotos/ant/1.gif,a\nelsewhere/2.gif,b\n", encoding="utf-8")
    for place in (root / "ant" / "s.csv", elsewhere / "new.csv"):
        with pytest.raises(FieldmarkError, match="lies among the photos"):
            split.make(labels, place)


def test_names_that_no_system_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldmarkError, match=r"cannot be read \(File name too long\)"):
        split.read(tmp_path / ("x" * 300))
    with pytest.raises(FieldmarkError, match="is a folder: name a file"):
        split.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FieldmarkError, match="is a pipe: name a file"):
        split.read(tmp_path / "pipe")


def test_a_parent_without_rights_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = tmp_path / "shut"
    real = Path.stat

    def stat(self: Path, **values: bool) -> os.stat_result:
        if self.is_relative_to(shut):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, **values)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(FieldmarkError, match=r"cannot be read \(Permission denied\)"):
        split.read(shut / "split.csv")
    with pytest.raises(FieldmarkError, match=r"cannot be written \(Permission denied\)"):
        split.make(tmp_path, shut / "split.csv")


def test_keras_split_refuses_what_is_split_already(tmp_path: Path) -> None:
    for part in ("train", "Test"):
        for name in ("ant/1.gif", "bee/1.gif"):
            path = tmp_path / part / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"GIF89a" + name.encode())
    with pytest.raises(FieldmarkError) as caught:
        split.make(tmp_path, tmp_path.parent / "split.csv", keras=True)
    assert "the folders train and Test would be taken for classes: leave --article out." in str(
        caught.value
    )


def test_an_extended_split_tells_of_its_groups(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some, out = tmp_path / "some", tmp_path / "split.csv"
    shutil.copytree(birds, some)
    held_back = sorted(some.glob("*/*.jpg"))[0]
    content = held_back.read_bytes()
    held_back.unlink()
    groups = {r.path: r.group for r in split.make(some, out, group_by="([0-9])[.]")}
    assert all(groups.values())
    capsys.readouterr()
    split.make(some, out)  # nothing is new, and nothing need be said
    assert "--group-by again" not in capsys.readouterr().out
    held_back.write_bytes(content)
    new = held_back.relative_to(some).as_posix()
    again = {record.path: record.group for record in split.make(some, out)}
    assert again == groups | {new: ""}
    note = "Note: the earlier split was grouped: give --group-by again, or new photos stand alone."
    assert note in capsys.readouterr().out
    last = {record.path: record.group for record in split.make(some, out, group_by="([0-9])[.]")}
    assert last == groups | {new: held_back.stem[-1]}
    assert "--group-by again" not in capsys.readouterr().out


def test_what_is_odd_about_a_source_is_said(tmp_path: Path) -> None:
    for name in ("ant/1.gif", "bee/1.gif", "bee/small/1.gif", "bee/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GIF89a" if name.endswith("gif") else b"text")
    assert split.listed(list_photos(tmp_path)) == (
        "Photos: 3 in 3 classes (not read: 1 x .txt)\n"
        "Note: bee is a class, and holds folders that are classes."
    )
    for part in ("train", "val"):
        (tmp_path / "parts" / part).mkdir(parents=True)
        for name in ("ant", "bee"):
            (tmp_path / name).rename(tmp_path / "parts" / part / name)
        if part == "train":
            for name in ("ant", "bee"):
                (tmp_path / name).mkdir()
                (tmp_path / name / "2.gif").write_bytes(b"GIF87a")
    assert split.listed(list_photos(tmp_path / "parts")).startswith(
        "Photos: 5 in 3 classes (not read: 1 x .txt); their split is given: "
        "3 training, 2 validation"
    )


def test_folders_that_look_like_a_split_and_give_none_are_said(tmp_path: Path) -> None:
    for name in ("test/ant/1.gif", "Train/ant/1.gif", "extra/ant/1.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"GIF89a" + name.encode())
    note = "Train and test are taken for classes, because extra holds photos too."
    assert f"Note: {note}" in split.listed(list_photos(tmp_path))
    assert f"Note: {note}" in split.listed(list_article(tmp_path))
    labels = tmp_path / "labels.csv"
    (tmp_path / "extra" / "ant" / "1.gif").rename(tmp_path / "1.gif")
    labels.write_text(
        "path,label\ntest/ant/1.gif,test\nTrain/ant/1.gif,train\n1.gif,bus\n", encoding="utf-8"
    )
    assert "Note" not in split.listed(list_photos(labels))
