"""A run's page and card: all is there, every name is harmless, and a browser finds no fault."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark import files, report, split
from fieldmark.console import printable
from fieldmark.contents import read
from fieldmark.errors import FieldmarkError
from fieldmark.findings import wilson
from fieldmark.recipe import ARTICLE, PROBE, Recipe
from fieldmark.report import write, write_card
from fieldmark.run import Run
from fieldmark.split import Record
from test_contents import Json, fill, made
from test_sheet import Page, page

ODD = (
    "<script>alert(1)</script>",
    "\"quoted\" 'name' & more: [x](http://a.b) | *bold* `code`",
    "- key: value # no comment",
    "银喉长尾山雀",
    "נחליאלי לבן \u202eturned",
    "🐦 emoji {{ 7 * 7 }} {% raw %}",
    "a name that is very long, " * 6 + "and ends",
    "www.example.org/$x$_~y~^2",
)


@pytest.fixture(scope="session")
def whole(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trained run with the files of every command; for reading only."""
    return fill(Run(Path(shutil.copytree(
        trained.folder, tmp_path_factory.mktemp("whole") / "birds run"
    ))))  # fmt: skip


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> Run:
    """The same, to change."""
    return Run(Path(shutil.copytree(whole.folder, tmp_path / "run")))


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of classes with the oddest names, with the files of every command."""
    log = tuple(
        {"epoch": i, "loss": 3.0 / i, "accuracy": i / 9, "val_loss": None if i == 4 else 900 / i**3}
        for i in range(1, 9)
    )
    folder = tmp_path_factory.mktemp("odd") / "odd <b>'\"run"
    return fill(made(folder, ODD, log=log))


# ---- the page -----------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_the_page_holds_every_answer_and_nothing_else_changes(copy: Run) -> None:
    before = state(copy.folder)
    assert write(copy.folder) == copy.report
    text = copy.report.read_text(encoding="utf-8")
    ours = page(copy.report)
    assert {path: of for path, of in state(copy.folder).items() if path in before} == before
    assert state(copy.folder).keys() - before.keys() == {str(copy.report)}
    low, high = wilson(0.8, 80)
    for said in (
        f"It names 80.0 % of 80 test photos right; of other such photos it would be {100 * low:.0f}"
        f" to {100 * high:.0f} % (95 % interval).",
        "gets 25.0 %",
        "Test1: test1 is 0.25 <b>",
        "9 files. 9 photos.",
        "Photos of error <b>: 11",
        "Look at them <i>.",
        "like Black Skimmer and 1 more",
        "2 of 11 are shown",
        "What needs no action: 1 note",
        "What to do: train with --test1",
        "What is fine: 1 test",
        f"({100 * low:.1f} to {100 * high:.1f})",
        "Bananaquit taken for Black Skimmer: 4 of 20 photos (20 %)",
        "temperature of 1.30",
        "Below a probability of 50.0 % it answers “none of these”",
        "not defined",
        "some new figure",
        "Top 2",
        "the layer post_relu",
        "small",
        "tensorflow",
    ):
        assert said in ours.text.replace("\N{NO-BREAK SPACE}", " "), said
    for question in report.QUESTIONS.values():
        assert ours.text.count(question) == 2  # in the list and above its answer
    pictures = [attributes for tag, attributes in ours.tags if tag == "img"]
    assert len(pictures) == 4 * 3 + 2
    assert all(str(each["src"]).startswith("data:image/jpeg;base64,") for each in pictures)
    assert sum(not each["alt"] for each in pictures) == 2  # their names stand below them
    for outside in ("http://", "https://", "url(", "<script", "onload", "@import"):
        assert outside not in text
    assert "yet" not in ours.text.replace("has not been measured yet", "")


def test_headings_tables_and_ids_are_in_order(whole: Run, tmp_path: Path) -> None:
    ours = page(write(whole.folder, out=tmp_path / "page.html"))
    levels = [int(tag[1]) for tag, _ in ours.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    tags = [tag for tag, _ in ours.tags]
    assert tags.count("table") == tags.count("caption") > 4
    assert all("scope" in attributes for tag, attributes in ours.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in ours.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    links = [str(each["href"])[1:] for tag, each in ours.tags if tag == "a"]
    labels = [
        label
        for _, each in ours.tags
        for label in str(each.get("aria-labelledby") or "").split()
    ]  # fmt: skip
    assert {*links, *labels} <= {*ids}
    charts = [each for tag, each in ours.tags if tag == "svg"]
    assert len(charts) == 5
    assert all(each["role"] == "img" and each["aria-labelledby"] for each in charts)


def test_odd_names_are_text_and_nothing_more(odd: Run, tmp_path: Path) -> None:
    path = write(odd.folder, out=tmp_path / "page.html")
    ours, text = page(path), path.read_text(encoding="utf-8")
    assert not {"script", "b", "raw"} & {tag for tag, _ in ours.tags}
    assert "\u202e" not in text
    for name in ODD:
        assert printable(name) in ours.text
    assert "{{ 7 * 7 }}" in ours.text
    assert "on a logarithmic scale" in ours.text  # the loss falls from 900 to 2


@pytest.mark.parametrize("part", ["metrics", "diagnosis", "findings", "explanations"])
def test_what_is_not_there_says_which_command_makes_it(copy: Run, part: str) -> None:
    commands = {
        "metrics": "evaluate", "diagnosis": "diagnose", "findings": "diagnose",
        "explanations": "explain",
    }  # fmt: skip
    file: Path = getattr(copy, part)
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    ours = page(write(copy.folder))
    said = re.findall(r"fieldmark (\w+) \S+ does it", ours.text)
    assert {*said} == {commands[part]}
    assert len(said) == (5 if part == "metrics" else 1)


def test_a_run_that_was_only_trained_gives_a_page_and_a_card(trained: Run, tmp_path: Path) -> None:
    ours = page(write(trained.folder, out=tmp_path / "page.html"))
    assert "In training the best epoch named" in ours.text
    assert "flatters a little" in ours.text
    assert sum(tag == "svg" for tag, _ in ours.tags) == 2
    card = write_card(trained.folder, tmp_path / "card.md").read_text(encoding="utf-8")
    assert "model-index" not in card
    assert "Not measured yet" in card
    assert not trained.report.exists()


NOTHING = {"epoch": 0, "val_loss": 9.0, "val_accuracy": 0.0}
LINE = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}


@pytest.mark.parametrize(
    ("recipe", "log", "said"),
    [
        (PROBE, (NOTHING,), "There was no training"),
        (PROBE, (NOTHING,), "The classifier named 0.0 % of 2 validation photos right, which means"),
        (ARTICLE, (), "No epoch is finished yet"),
        (ARTICLE, (), "The training is not finished: 0 of 10 epochs are done"),
        (ARTICLE, (LINE,), "There is one epoch only"),
        (ARTICLE, (LINE, {**LINE, "epoch": 2}), "Every value is the article's"),
        (ARTICLE, ({"epoch": 1, "loss": None}, {"epoch": 2, "loss": None}), "no epoch has been"),
        (
            ARTICLE,
            ({"epoch": 1, "loss": float("nan")}, {**LINE, "epoch": 2, "loss": float("inf")}),
            "The training is not finished: 2 of 10",
        ),
    ],
)
def test_every_state_of_a_training_gives_a_page(
    tmp_path: Path, recipe: Recipe, log: tuple[Json, ...], said: str
) -> None:
    run = made(tmp_path / "run", ("a", "b"), recipe=recipe, log=log)
    assert said in page(write(run.folder)).text.replace("\N{NO-BREAK SPACE}", " ")
    write_card(run.folder)
    fill(run)
    page(write(run.folder))
    assert run.card.read_text(encoding="utf-8")


@pytest.mark.parametrize("photos", [1, 2])
def test_a_photo_a_class_gives_a_page(tmp_path: Path, photos: int) -> None:
    run = fill(made(tmp_path / "run", ("a", "b", "c"), photos=photos), n=1)
    ours = page(write(run.folder))
    assert "No photo was taken for one of another class" in ours.text
    assert "3 classes have fewer than 5 photos to be judged by" in ours.text


def test_many_classes_are_shortened_and_none_is_lost(tmp_path: Path) -> None:
    classes = tuple(f"class {i:03}" for i in range(130))
    run = fill(made(tmp_path / "run", classes))
    ours = page(write(run.folder))
    assert "The 20 most confused classes are shown, 110 are not." in ours.text
    assert ours.text.count("The other 110 classes") == 2
    assert all(name in ours.text for name in classes)
    main = read(run.folder).main
    assert main is not None
    for row in report.matrix(main[1]).rows:
        assert sum(count for count, _, _ in row.cells) + row.others == 20
    assert run.report.stat().st_size < 1_000_000


def test_the_split_s_leaks_and_copies_are_said(copy: Run) -> None:
    records = list(copy.read_split())
    a = next(i for i, each in enumerate(records) if each.split == "training")
    b = next(i for i, each in enumerate(records) if each.split == "validation")
    records[b] = Record(records[b].path, records[b].label, "validation", "", records[a].sha256)
    split.write(copy.split, records)
    ours = page(write(copy.folder))
    assert "1 pair on two sides, the same bytes" in ours.text
    assert "1 photo is a copy of others, byte for byte" in ours.text


def test_choosing_flatters_where_something_was_chosen(copy: Run) -> None:
    assert "chose which epoch was kept" in report._flattered(read(copy.folder))
    first = copy.read_log()[0]
    only = {name: value for name, value in first.items() if not name.startswith("averaged_")}
    copy.log.write_text(json.dumps(only) + "\n")
    assert report._flattered(read(copy.folder)) == ""


def test_calibration_is_judged_by_its_interval_as_evaluate_does(copy: Run) -> None:
    found = json.loads(copy.metrics.read_text(encoding="utf-8"))
    for low, high, words in (
        (0.5, 1.2, "It is about as sure as it is right"),
        (1.1, 1.9, "It is too sure of itself"),
        (0.5, 0.9, "It is too modest"),
    ):
        found["temperature"] |= {"value": 0.8, "low": low, "high": high}
        files.write_json(copy.metrics, found)
        assert words in page(write(copy.folder)).text


def test_better_than_always_the_commonest_is_not_claimed_without_reason(copy: Run) -> None:
    found = json.loads(copy.metrics.read_text(encoding="utf-8"))
    for share, said in ((0.75, "it is not surely better than that"), (0.99, "that is better")):
        found["splits"]["test"]["commonest"]["share"] = share
        files.write_json(copy.metrics, found)
        assert f"{100 * share:.1f} %: {said}" in report.sentence(read(copy.folder))


# ---- pictures -----------------------------------------------------------------------------------


def test_pictures_that_are_damaged_or_elsewhere_are_left_out(copy: Run, tmp_path: Path) -> None:
    folder = copy.explanations
    (folder / "0000" / "photo.jpg").write_bytes(b"no photo")
    (folder / "0001" / "photo.jpg").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    index = copy.explained
    found = json.loads(index.read_text(encoding="utf-8"))
    found["photos"][2]["photo"] = "../../../secret.png"
    found["photos"][3]["photo"] = str(tmp_path / "secret.png")
    index.write_text(json.dumps(found), encoding="utf-8")
    ours = page(write(copy.folder))
    assert "4 pictures could not be read and are left out" in ours.text
    assert ours.text.count("picture not there") == 4
    assert sum(tag == "img" for tag, _ in ours.tags) == 2 + 8


def test_the_page_has_room_for_so_many_pictures(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PICTURES", 5)
    ours = page(write(copy.folder))
    assert sum(tag == "img" for tag, _ in ours.tags) == 2 + 5
    assert "could not be read" not in ours.text


def test_maps_of_other_weights_are_said_to_be_so(copy: Run) -> None:
    assert "of other weights" not in page(write(copy.folder)).text
    with copy.best.open("ab") as file:
        file.write(b"x")
    assert "of other weights" in page(write(copy.folder)).text


# ---- what is written ----------------------------------------------------------------------------


def test_nothing_is_written_of_what_is_damaged(copy: Run) -> None:
    copy.metrics.write_text("{", encoding="utf-8")
    for writes in (write, write_card):
        with pytest.raises(FieldmarkError, match="is damaged"):
            writes(copy.folder)
    assert not copy.report.exists()
    assert not copy.card.exists()


def test_nothing_is_written_over_the_run_or_among_the_photos(copy: Run, birds: Path) -> None:
    before = state(copy.folder)
    for out in (copy.metrics, copy.best, copy.folder / "new.html", copy.card):
        with pytest.raises(FieldmarkError, match="which is only read"):
            write(copy.folder, out=out)
    with pytest.raises(FieldmarkError, match="among the photos"):
        write(copy.folder, out=birds / "page.html")
    with pytest.raises(FieldmarkError, match="There is no folder"):
        write(copy.folder, out=copy.folder.parent / "no" / "page.html")
    with pytest.raises(FieldmarkError, match="which is only read"):
        write_card(copy.folder, copy.report)
    assert state(copy.folder) == before


def test_a_list_of_photos_is_not_written_over(copy: Run, tmp_path: Path) -> None:
    facts = copy.read_environment() | {"photos": str(tmp_path / "photos.csv")}
    files.write_json(copy.environment, facts)
    (tmp_path / "photos.csv").write_text("path,label\n")
    first = tmp_path / copy.read_split()[0].path
    first.parent.mkdir(parents=True)
    for out in (tmp_path / "photos.csv", first):
        with pytest.raises(FieldmarkError, match="name another file"):
            write(copy.folder, out=out)
    assert write(copy.folder, out=tmp_path / "page.html").is_file()


# ---- the card -----------------------------------------------------------------------------------


def front(card: str) -> Any:
    """Return the card's front matter as a YAML parser reads it."""
    head, rest = card.removeprefix("---\n").split("\n---\n", 1)
    assert rest.startswith("\n# ")
    yaml = pytest.importorskip("yaml", reason="no YAML parser is installed")
    return yaml.safe_load(head)


def test_the_card_s_front_matter_is_yaml_with_the_figures(odd: Run, tmp_path: Path) -> None:
    card = write_card(odd.folder, tmp_path / "card.md").read_text(encoding="utf-8")
    found = front(card)
    assert found["library_name"] == "keras"
    assert found["pipeline_tag"] == "image-classification"
    (model,) = found["model-index"]
    assert model["name"] == odd.folder.name
    values = {
        (result["dataset"]["split"], metric["type"]): metric["value"]
        for result in model["results"]
        for metric in result["metrics"]
    }
    assert values["test", "accuracy"] == 0.8
    assert values["validation", "top_2"] == 1
    assert ("test", "calibrated_log_loss") not in values  # it is not defined


def test_names_are_no_markdown(odd: Run, tmp_path: Path) -> None:
    card = write_card(odd.folder, tmp_path / "card.md").read_text(encoding="utf-8")
    markdown = pytest.importorskip("markdown_it", reason="no Markdown parser is installed")
    body = card.removeprefix("---\n").split("\n---\n", 1)[1]
    parser = markdown.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    html = parser.render(body)
    assert not {"<script", "<a ", "<img", "<em>", "<s>", "<b>"} & {
        tag for tag in ("<script", "<a ", "<img", "<em>", "<s>", "<b>") if tag in html
    }
    ours = Page(html)
    for name in ODD[:-2]:
        assert printable(name) in ours.text
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) > len(ODD)


@given(st.text(max_size=40))
def test_no_name_breaks_out_of_yaml_or_markdown(name: str) -> None:
    quoted = report._quoted(name)
    assert json.loads(quoted) == printable(name)
    assert quoted.isprintable() or {*quoted} & {"\u200c", "\u200d"}
    escaped = report._markdown(name)
    assert not {"\n", "\r"} & {*escaped}
    assert re.sub(r"\\(?=[!-/:-@\[-`{-~])(.)", r"\1", escaped) == printable(name)


def test_the_card_s_code_works(copy: Run, birds: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from fieldmark.trained import Trained, softmax

    card = write_card(copy.folder).read_text(encoding="utf-8")
    ours, keras = (part.split("```")[0] for part in card.split("```python\n")[1:])
    shutil.copy(sorted(birds.rglob("*.jpg"))[0], copy.folder / "photo.jpg")
    monkeypatch.chdir(copy.folder)
    exec(ours.replace('"RUN"', '"."'), {})
    named = capsys.readouterr().out.strip().splitlines()[-1]
    space: Json = {}
    exec(keras, space)
    assert named in copy.read_classes()
    logits = Trained.load(copy).logits([Path("photo.jpg")])
    assert space["probabilities"] == pytest.approx(softmax(logits / 1.3)[0], abs=0.02)


# ---- in a browser -------------------------------------------------------------------------------

WIDTHS = (360, 768, 1400)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window, with axe to ask."""
    for package in ("selenium", "axe_core_python"):
        if not find_spec(package):
            pytest.skip(f"no package {package}")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium with its driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def seen(driver: Any, path: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(path.as_uri())


@pytest.mark.parametrize("kind", ["whole", "trained", "odd"])
def test_a_browser_finds_no_fault(
    browser: Any, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Run = request.getfixturevalue(kind)
    path = write(run.folder, out=tmp_path / "page.html")
    package = find_spec("axe_core_python")
    assert package is not None
    axe = Path(str(package.origin)).with_name("axe.min.js").read_text(encoding="utf-8")
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            seen(browser, path, width, scheme)
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = 1)")
            wide = "return document.documentElement.scrollWidth"
            assert browser.execute_script(wide) <= width, (width, scheme)
            if (width, scheme) not in ((360, "light"), (1400, "dark")):
                continue  # axe takes seconds; what it looks for is in one of these
            browser.execute_script(axe)
            found = browser.execute_async_script(
                "axe.run(document, {resultTypes: ['violations']}).then(arguments[0])"
            )
            worst = [
                (each["id"], each["impact"], each["nodes"][0]["html"][:200], len(each["nodes"]))
                for each in found["violations"]
            ]
            assert not worst, (width, scheme)
    assert browser.get_log("browser") == []
