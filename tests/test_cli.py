"""The command line as a user meets it: help, results, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT, TINY, Command
from fieldmark import cli
from fieldmark.recipe import ARTICLE, Recipe, named

COMMANDS = [
    *("bench", "cache", "check", "compare", "diagnose", "draw", "evaluate", "explain", "export"),
    *("network", "predict", "recipe", "report", "serve", "split", "train", "tune"),
]


def test_every_command_has_help_with_an_example_and_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def help_of(*words: str) -> str:
        cli.app([*words, "--help"], result_action="return_value")
        return capsys.readouterr().out

    overview = help_of()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [name for name in cli.app if not name.startswith("-")]
    assert sorted(commands) == COMMANDS
    for name in commands:
        assert f"│ {name} " in overview
        assert f"Example: fieldmark {name} " in help_of(name)
        assert (ROOT / "docs" / f"{name}.md").exists()
        assert f"fieldmark {name}" in readme


def test_the_reference_of_the_commands_is_generated() -> None:
    """`make docs` writes it."""
    code = "from fieldmark import cli; print(cli.reference(), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_recipe_is_the_flags(fieldmark: Command) -> None:
    words = fieldmark("train", "--help").stdout.replace("│", " ").split()
    text = " ".join(word for word in words if not word.startswith("--no-"))
    for name, field in Recipe.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert str(field.description).replace("`", "") in text


def test_version_and_recipe_print_to_standard_output(fieldmark: Command) -> None:
    assert fieldmark("--version").stdout.strip() == "0.1.0"
    assert tomllib.loads(fieldmark("recipe", "article").stdout) == ARTICLE.model_dump()
    assert fieldmark("recipe").stdout == fieldmark("recipe", "article").stdout
    for words in (("scratch", "--minutes", "5"), ("scratch", "--photos", "photos")):
        done = fieldmark("recipe", *words)
        assert (done.returncode, "give one of both" in done.stderr) == (2, True)


def test_the_completion_knows_the_commands() -> None:
    script = cli.app.generate_completion(shell="bash")
    assert all(name in script for name in COMMANDS)


def test_help_is_coloured_on_a_terminal_only(fieldmark: Command) -> None:
    assert "\x1b[" not in fieldmark("--help").stdout
    assert "\x1b[" in fieldmark("--help", FORCE_COLOR="1").stdout


def test_a_recipe_file_and_flags_make_the_run(
    fieldmark: Command, birds: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.json").write_text(TINY.model_dump_json())
    flags = ["--out", "run", "--recipe", "mine.json", "--epochs", "1", "--language", "zh"]
    done = fieldmark("train", birds, *flags)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    resolved = {**TINY.resolved().model_dump(), "epochs": 1}
    assert json.loads((run / "recipe.json").read_text()) == resolved
    printed = done.stdout
    in_order = (
        "Devices: ",
        "Photos: 48",
        "Classes: Bananaquit, Black Skimmer, Black-throated Bushtit, Cockatoo",
        "training_photos.png",
        "First batch: images (8, 32, 32, 3), labels (8,)",
        "Network: small, 223,940 parameters",
        "epoch 1/1",
        "curves.png",
        "predictions.png",
        "Validation accuracy after epoch 1",
    )
    places = [printed.find(text) for text in in_order]
    assert -1 not in places
    assert places == sorted(places)
    assert "of 8 photos (95 % interval" in printed


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_whoever_reads_along_may_leave(birds: Path, tmp_path: Path, unbuffered: str) -> None:
    """What is asked for is written, and what is found counts."""
    photos = Path(shutil.copytree(birds, tmp_path / "photos"))
    (photos / "Cockatoo" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    words = ["check", "photos", "--csv", "a.csv", "--html", "a.html", "--strict"]
    for command, code in ((words, 1), (["split", str(birds), "--out", "split.csv"], 0)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "fieldmark", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writing)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "a.csv").exists()
    assert (tmp_path / "a.html").exists()


MISTAKES = {
    "train missing --out run --recipe article": "There is no folder missing",
    "train empty --out run --recipe article": "empty is empty",
    "train loose --out run --recipe article": "loose has no sub-folders",
    "train one --out run --recipe article": "holds the one class 'ant'",
    "train gap --out run --recipe article": "No photo was found in gap/bee",
    "train webp --out run --recipe article": "(extensions there: 2 x .webp)",
    "train file --out run --recipe article": "cannot be read as a folder",
    "train broken --out run --recipe article": "20 files are not photos that can be read",
    "train BIRDS --out full --recipe article": "full exists already",
    "train BIRDS --out file/run --recipe article": "file/run cannot be written",
    "train BIRDS --out run --epochs 0 --recipe article": "0 epochs train nothing: give 1 or more",
    "train BIRDS --out run --image-size 8 --recipe article": "--image-size '8': Input should be gr",
    "train BIRDS --out run --learning-rate nan --recipe article": "--learning-rate 'nan': Input sh",
    "train BIRDS --out run --seed -1 --recipe article": "seed '-1': Input should be greater than o",
    "train BIRDS --out run --batch-size 40 --recipe article": "A batch of 40 is larger than the 39",
    "train BIRDS --out run --epochs many --recipe article": "epochs 'many': Input should be a vali",
    "train BIRDS --out run --recipe best": "There is no recipe 'best'",
    "train BIRDS --out run --language fr --recipe article": 'Choose from: "en", "zh"',
    "train BIRDS --out run --show --recipe article": "--show needs a screen",
    "train BIRDS": "Name the run folder to make: --out RUN",
    "train BIRDS --preview x.png --recipe article": "The article's pipeline shows every photo as i",
    "train BIRDS --preview x.bmp --recipe scratch": "x.bmp is no picture's name",
    "train BIRDS --preview empty --recipe scratch": "empty is no picture's name",
    "train BIRDS --out run --augment 0.3 --recipe article": "pipeline knows no --augment: add --pi",
    "train BIRDS --out run --augment 2 --recipe article": "--augment '2': Input should be less tha",
    "train BIRDS --out run --recipe scratch --split nowhere": "There is no split nowhere",
    "train BIRDS --out run --recipe scratch --split file": "file has no columns",
    "train BIRDS --out run --recipe scratch --split full": "full is not a run folder",
    "train BIRDS --out run --recipe scratch --test-split 0.9": "leave no photos to train on",
    "train BIRDS --out run --recipe scratch --group-by photo": "matches no photo's name",
    "train broken --out run --recipe scratch": "broken/ant/1.jpg: is a web page, not a photo",
    "train gap --out run --recipe scratch": "gap/ant/1.jpg: is empty",
    "check missing": "There is no folder missing",
    "check empty": "empty is empty",
    "check BIRDS --csv empty": "empty is a folder",
    "check BIRDS --html BIRDS/x.html": "which are only read: name a place elsewhere",
    "check BIRDS --split nowhere.csv": "There is no split nowhere.csv",
    "split BIRDS": "--out requires an argument",
    "split missing --out s.csv": "There is no folder missing",
    "split one --out s.csv": "No photo in one can be read:",
    "split broken --out s.csv": "broken/ant/0.jpg: is empty",
    "split BIRDS --out BIRDS/s.csv": "which are only read: name a place elsewhere",
    "split BIRDS --out s.csv --test 0.9": "leave no photos to train on",
    "split BIRDS --out s.csv --group-by (": "is not a regular expression",
    "split BIRDS --out s.csv --article --test 0.1": "has neither test photos nor groups",
    "split BIRDS --out file": "file exists and is no split",
    "split BIRDS --out begun/split.csv": "begun/split.csv lies in a run, which keeps the split",
    "split BIRDS --out s.csv --group-by a{99999999999999999999}": "is not a regular expression",
    "train BIRDS --out run --recipe scratch --warmup 100": "nothing of a training of 100",
    "check BIRDS --csv wrong.toml": "wrong.toml exists already, and holds something else",
    "check BIRDS --html wrong.toml": "wrong.toml exists already, and holds something else",
    "network small --image-size 32 --svg wrong.toml": "wrong.toml exists already, and holds",
    "predict run x.jpg --quiet": "There is no photo x.jpg",
    "predict run x.jpg --jsno": "Unknown option: --jsno",
    "split ~nobody-has-this-name/x --out s.csv": "There is no folder ~nobody-has-this-name/x",
    f"check {'x' * 300}": "xxx",
    f"predict {'x' * 300} BIRDS": "xxx",
    "train BIRDS --out run --epoch 3 --recipe article": "Unknown option: --epoch. Did you mean --e",
    "trian BIRDS": 'Unknown command "trian". Did you mean "train"?',
    "recipe best": "There is no recipe 'best'",
    "network vgg": 'Choose from: "article"',
    "network article --image-size 4": "cannot take photos of 4 pixels a side",
    "network small --image-size 32 --svg file/x.svg": "file/x.svg cannot be written",
    "network small --classes 1000000000000": "1000000000000 classes: name at least one",
    "network small --image-size 100000": "Photos of 100000 pixels a side: name 4096 or fewer",
    "network small --image-size 32 --svg empty": "empty is a folder: name a file",
    "draw .": "is the folder that you are in",
    "draw new --size 64.5": "Invalid value for --size",
    "draw full": "full exists already",
    "draw new --size 8": "size is 8",
    "draw new --per-class 0": "per_class is 0: give a whole number from 1 to 9999",
    "train missing --out run": "There is no folder missing",
    "train BIRDS --out run --minutes 0": "0 minutes are no time to train in",
    "train BIRDS --out run --minutes 5 --recipe article": "--minutes are for a recipe that is ch",
    "train BIRDS --out run --weights missing.npz": "There is no file missing.npz",
    "train BIRDS --out run --weights file.pt --recipe finetune": "file.pt is no kind of weights",
    "train BIRDS --out run --network article": "No recipe is chosen for the network 'article'",
    "train BIRDS --out run --recipe scratch --epochs 1": "a warm-up of 2 epochs leaves nothing of",
    "train BIRDS --out run --recipe scratch --batch-size 1": "a batch of one has none to compare",
    "recipe wrong.toml": "wrong.toml is not a recipe: epoch 3: Extra inputs are not permitted",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence(
    line: str,
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("empty", "loose", "one/ant", "gap/ant", "gap/bee", "webp/a", "webp/b", "full"):
        (tmp_path / folder).mkdir(parents=True)
    for kind in ("ant", "bee"):
        (tmp_path / "broken" / kind).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "broken" / kind / f"{number}.jpg").write_text("<html>" * number)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "environment.json").touch()
    (tmp_path / "begun" / "recipe.json").touch()
    for file in ("loose/1.jpg", "one/ant/1.jpg", "gap/ant/1.jpg", "file", "full/x"):
        (tmp_path / file).touch()
    (tmp_path / "wrong.toml").write_text("epoch = 3")
    for file in ("webp/a/1.webp", "webp/b/1.webp"):
        (tmp_path / file).touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.replace("BIRDS", str(birds)).split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert MISTAKES[line] in error
    assert "error: " in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_named(birds: Path, tmp_path: Path) -> None:
    """Without root's right to write everywhere."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    command = [sys.executable, "-m", "fieldmark", "draw", str(closed / "birds"), "--per-class", "1"]
    if os.geteuid() == 0:
        if subprocess.run(["setpriv", "--help"], capture_output=True, check=False).returncode:
            pytest.skip("root may write everywhere, and there is no setpriv to be another user")
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "birds cannot be written (Permission denied)" in done.stderr


def test_flags_are_to_the_recipe_that_is_named() -> None:
    """Not to the article's, whose ten epochs have no room for a warm-up of twenty."""
    flags = {"warmup": 20.0, "freeze_normalisation": True, "epochs": 0}
    assert cli.RecipeFlags.model_validate(flags).model_dump(include={*flags}) == flags


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("cupy", "The Keras backend 'cupy' is not one that fieldmark knows"),
        (
            "torch",
            "Keras is to compute with torch, which is not installed, and tensorflow is: set "
            "KERAS_BACKEND=tensorflow, or run  pip install 'fieldmark[torch]'",
        ),
    ],
)
def test_a_missing_backend_is_named(
    fieldmark: Command, birds: Path, backend: str, sentence: str
) -> None:
    if backend == "torch":
        try:
            import torch  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("PyTorch is installed here")
    done = fieldmark("train", birds, "--out", "run", KERAS_BACKEND=backend)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_quiet_prints_nothing_and_errors_all_the_same(fieldmark: Command) -> None:
    done = fieldmark("-q", "draw", "birds", "--per-class", "1", "--size", "32")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    again = fieldmark("draw", "birds", "-q")
    assert again.returncode == 2
    assert "birds exists already" in again.stderr


def test_a_file_that_windows_wrote_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "mine.json").write_text(ARTICLE.model_dump_json(), encoding=encoding)
        assert named(str(tmp_path / "mine.json")) == ARTICLE


def test_a_tilde_is_the_home(fieldmark: Command, tmp_path: Path) -> None:
    done = fieldmark("draw", "~/birds", "--per-class", "1", "--size", "32", HOME=str(tmp_path))
    assert done.returncode == 0
    assert (tmp_path / "birds" / "Cockatoo" / "0000.jpg").exists()


def test_a_terminal_without_the_signs_gets_escapes(fieldmark: Command) -> None:
    done = fieldmark("recipe", "鸟", PYTHONIOENCODING="cp1252")
    assert done.returncode == 2
    assert "There is no recipe" in done.stderr


def test_whoever_leaves_a_pipe_gets_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fieldmark recipe article | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is Linux' own")
def test_a_full_standard_output_is_told() -> None:
    command = [sys.executable, "-m", "fieldmark", "recipe", "article"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device): make room.\n"
    )


def test_settings_of_keras_that_do_not_fit_are_named(fieldmark: Command, tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    done = fieldmark("network", "small", KERAS_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "Keras is set to image_data_format channels_first" in done.stderr


def test_verbose_shows_where_an_error_came_from(fieldmark: Command) -> None:
    done = fieldmark("-v", "recipe", "best")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
