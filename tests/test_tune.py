"""A search from its first trial to the comparison, stopped and killed on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY, Command
from fieldmark import cluster, locks, split, tune, tuner
from fieldmark.attempt import THREADS, Job, course, judged, training
from fieldmark.backend import name as backend
from fieldmark.console import meter
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Recipe, named
from fieldmark.run import open_run
from fieldmark.space import Span
from fieldmark.train import fit
from fieldmark.trials import Plan, Search, Trial, open_search

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("optuna") is None,
    reason="Ray and Optuna, of the extra `cluster`, are not installed",
)

SPACE = {"learning_rate": Span(0.0005, 0.004, log=True), "batch_size": (4, 8)}
FLAGS = (
    *("--network", "small", "--image-size", "32", "--begin-size", "32", "--end-size", "32"),
    *("--batch-size", "8", "--validate-every", "1", "--statistics", "0", "--warmup", "1"),
)


@pytest.fixture
def search(birds: Path, tmp_path: Path) -> Search:
    """A search of the drawn photos, before its first trial."""
    recipe = TINY.changed(monitor="loss", average=0.5, split="stratified")
    plan = Plan(str(birds), {}, backend, {32: recipe}, 32, SPACE)
    found = Search(tmp_path / "search", plan)
    found.folder.mkdir()
    split.write(found.split, tune.prepared(found, birds, ()))
    return found


def folders() -> set[Path]:
    """Return the folders of clusters that are over; those of others may come and go."""
    locked = Path("/tmp").glob(f"{cluster.FOLDER}*/{cluster.LOCK}")
    return {lock.parent for lock in locked if not locks.in_use(lock)}


@pytest.fixture
def clean() -> Iterator[None]:
    """See to it that no folder of Ray's is left that was not there before."""
    before = folders()
    yield
    assert folders() <= before


def point(rate: float = 0.001, batch: int = 8) -> dict[str, Any]:
    return {"learning_rate": rate, "batch_size": batch}


# ---- a trial ------------------------------------------------------------------------------------


def job(search: Search) -> Job:
    return Job(search.plan, search.folder, Path(search.plan.photos), "fieldmark tune")


def test_a_trial_is_a_run_that_train_would_have_made(search: Search, tmp_path: Path) -> None:
    said: list[dict[str, float]] = []
    training(job(search), 0, point(0.002), said.append)
    run = open_run(search.run(0).folder)
    ours = fit(search.plan.recipe(point(0.002)), search.plan.photos, tmp_path / "run")
    times = {"seconds", "photos_per_second"}
    plain = [[{k: v for k, v in line.items() if k not in times} for line in each.read_log()]
             for each in (run, ours)]  # fmt: skip
    assert plain[0] == plain[1]
    assert run.read_split() == ours.read_split()
    assert run.best.exists()
    assert [each["share"] for each in said] == [50, 100]
    trial = judged(search, Trial(0, point(0.002)), "")
    assert trial.state == "done"
    assert trial.value == said[-1]["value"] == trial.loss


@pytest.mark.slow
def test_a_trial_that_was_killed_goes_on_and_says_again_what_it_has_said(search: Search) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    said: list[dict[str, float]] = []

    def heard(each: dict[str, float]) -> None:
        said.append(each)
        if len(said) == 1:
            raise Killed

    training(job(search), 0, point(), lambda _: None)
    with pytest.raises(Killed):
        training(job(search), 1, point(), heard)
    assert len(search.run(1).read_log()) == 1
    assert judged(search, Trial(1, point()), "").state == "stopped"
    training(job(search), 1, point(), heard)
    assert [each["share"] for each in said] == [50, 50, 100]
    whole, parted = (search.run(number).read_log() for number in (0, 1))
    assert [line["val_loss"] for line in whole] == [line["val_loss"] for line in parted]


def test_what_is_wrong_with_a_trial_is_its_result(search: Search) -> None:
    with pytest.raises(FieldmarkError, match="larger than"):
        training(job(search), 0, point(batch=4000), lambda _: None)
    failed = judged(search, Trial(0, point(batch=4000)), "too large")
    assert (failed.state, failed.reason, failed.value) == ("failed", "too large", None)


def test_the_course_is_the_best_so_far_at_each_look() -> None:
    log = [
        {"epoch": 1.0, "loss": 1.0},
        {"epoch": 2.0, "val_loss": 0.9, "val_accuracy": 0.5},
        {"epoch": 3.0, "val_loss": 0.7, "val_accuracy": 0.5, "averaged_val_loss": 0.6,
         "averaged_val_accuracy": 0.4},
        {"epoch": 4.0, "val_loss": 0.8, "val_accuracy": 0.6},
    ]  # fmt: skip
    recipe = TINY.changed(epochs=8, monitor="loss")
    assert list(course(log, recipe)) == [
        {"share": 25, "value": 0.9},
        {"share": 37.5, "value": 0.6},
        {"share": 50, "value": 0.6},
    ]
    assert [each["value"] for each in course(log, recipe.changed(monitor="accuracy"))] == [
        0.5, 0.5, 0.6,
    ]  # fmt: skip


# ---- Ray's and Optuna's parts, told of what has been --------------------------------------------


def ended(search: Search, *values: float) -> None:
    """Add trials that are over, with runs whose loss stays the same from look to look."""
    for value in values:
        trial = search.begin(point(0.001 + len(search.trials) / 10_000))
        recipe = search.plan.recipe(trial.values)
        run = search.run(trial.number)
        run.folder.mkdir(parents=True)
        run.recipe.write_text(recipe.model_dump_json())
        run.environment.write_text("{}")
        for epoch in range(1, 3):
            run.append_log({"epoch": epoch, "val_loss": value, "val_accuracy": 0.5})
        search.end(replace(trial, state="done", value=value, loss=value, accuracy=0.5))


def test_the_first_trial_is_the_chosen_recipe(search: Search) -> None:
    found = tuner.suggester(search)
    assert found.suggest("a") == {"number": 0, "values": point()}
    second = found.suggest("b")
    assert second["number"] == 1
    assert second["values"] != point()
    assert 0.0005 <= second["values"]["learning_rate"] <= 0.004
    assert [trial.state for trial in search.trials] == ["begun", "begun"]


def test_a_search_that_goes_on_knows_its_trials_and_ends_the_open_ones(search: Search) -> None:
    ended(search, 0.5, 0.4)
    search.end(replace(search.begin(point(0.003)), state="failed", reason="too large"))
    open_one = search.begin(point(0.0033, 4))
    found = tuner.suggester(open_search_of(search))
    study = found._ot_study
    told = [(each.params, each.value) for each in study.trials if each.state.is_finished()]
    assert told == [(point(0.001), 0.5), (point(0.0011), 0.4), (point(0.003), None)]
    assert found.suggest("a") == {"number": open_one.number, "values": point(0.0033, 4)}
    assert found.suggest("b")["number"] == 4


def open_search_of(search: Search) -> Search:
    search.save()
    return open_search(search.folder)


def test_the_worse_half_is_stopped_and_the_chosen_recipe_never(search: Search) -> None:
    from types import SimpleNamespace

    def decided(halving: Any, number: int, value: float, share: float = 50) -> str:
        trial = SimpleNamespace(trial_id=f"t{number}", config={"number": number})
        halving.on_trial_add(None, trial)
        return str(halving.on_trial_result(None, trial, {"share": share, "value": value}))

    ended(search, 0.5, 0.4, 0.3)
    halving = tuner.scheduler(search)
    assert decided(halving, 3, 0.45) == "STOP"
    assert decided(halving, 4, 0.35) == "CONTINUE"
    assert decided(halving, 5, 0.9, share=10) == "CONTINUE"  # too early to tell
    assert decided(halving, 0, 9.0) == "CONTINUE"


def test_the_weights_of_losers_are_removed(search: Search) -> None:
    ended(search, 0.5, 0.3, 0.4)
    for trial in search.trials:
        for file in (search.run(trial.number).best, search.run(trial.number).last):
            file.parent.mkdir(exist_ok=True)
            file.write_text("weights")
    tune.tidy(search)
    kept = [(search.run(n).best.exists(), search.run(n).last.exists()) for n in range(3)]
    assert kept == [(True, True), (True, True), (False, False)]


def without_training(folder: str) -> None:
    """Search with trials that train nothing: 1 is killed each time, 2 once, 3 fails, 4 is bad.

    To be called in a process of its own: Ray keeps the environment that it is imported in.
    """
    search = open_search(Path(folder))

    def work(config: dict[str, Any]) -> None:
        import os

        from ray import tune as ray_tune

        number = config["number"]
        run = search.run(number)
        again = run.folder.exists()
        run.folder.mkdir(parents=True, exist_ok=True)
        if number == 1 or (number == 2 and not again):
            os._exit(9)
        if number == 3:
            ray_tune.report({"failure": "too large"})
            return
        run.recipe.write_text(search.plan.recipe(config["values"]).model_dump_json())
        run.environment.write_text("{}")
        for epoch in (1, 2):
            loss = 9.0 if number == 4 else 1.0 - number / 10
            run.append_log({"epoch": epoch, "val_loss": loss, "val_accuracy": 0.5})
            ray_tune.report({"share": 50.0 * epoch, "value": loss})

    os.environ.update(tuner.SETTINGS)
    with cluster.joined(slots=1), meter("Trials", 6) as shown:
        heard = tuner.Here(partial(tune.ended, search, shown, False))
        tuner.tuner(search, work, resources={"cpu": 1}, count=6, at_once=1, ended=heard).fit()


@pytest.mark.slow
def test_ray_runs_the_trials_starts_killed_ones_again_and_stops_the_worse(
    search: Search, clean: None
) -> None:
    search.save()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import test_tune as t; t.without_training({str(search.folder)!r})",
        ],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = open_search(search.folder)
    states = {trial.number: trial.state for trial in found.trials}
    assert states == {0: "done", 1: "failed", 2: "done", 3: "failed", 4: "stopped", 5: "done"}
    assert found.trials[1].reason == "its process ended 4 times"
    assert found.trials[3].reason == "too large"
    assert found.trials[4].epochs == 1
    assert found.best is not None
    assert found.best.number == 5


def test_sigterm_ends_a_search_as_it_ends_every_command() -> None:
    def ours(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(SystemExit) as caught, tune.left_alike() as bring_back:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray takes it
            bring_back()
            assert signal.getsignal(signal.SIGTERM) is ours
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise SystemExit(1)  # as Ray leaves
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 1}, "--trials 1"),
        ({"workers": 0}, "--workers 0"),
        ({"recipe": "article"}, "--pipeline batches"),
        ({"recipe": "scratch", "minutes": 3.0}, "leave --recipe out"),
        ({"minutes": 0.0}, "0 minutes"),
        ({"recipe": "none"}, "no recipe 'none'"),
        ({"recipe": "scratch", "space_file": Path("none.toml")}, "none.toml cannot be read"),
        ({"recipe": "scratch", "values": {"batch_size": 4000}}, "larger than the"),
    ],
)
def test_bad_input_is_one_sentence(
    options: dict[str, Any], said: str, birds: Path, tmp_path: Path
) -> None:
    with pytest.raises(FieldmarkError, match=re.escape(said)) as caught:
        tune.tune(birds, tmp_path / "found", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    probe = named("probe")
    with pytest.raises(FieldmarkError, match="no epoch"):
        tune.refuse_untunable(probe)


def test_a_folder_of_something_else_is_refused(birds: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FieldmarkError, match="exists already"):
        tune.tune(birds, tmp_path, recipe="scratch")
    with pytest.raises(FieldmarkError, match="only read"):
        tune.tune(birds, birds / "found", recipe="scratch", values={"image_size": 32})


def test_another_search_is_not_gone_on_with(search: Search) -> None:
    ended(search, 0.5, 0.4)
    asked: dict[str, Any] = {"minutes": 5.0, "recipe": None, "values": {}, "space": None}
    search.plan = replace(search.plan, asked=asked)
    tune.refuse_other(search, asked, backend, 2)
    for other, said in (({"minutes": 4.0}, "--minutes"), ({"space": "x = [1]"}, "--space"),
                        ({"values": {"augment": 1.0}}, "values of the recipe")):  # fmt: skip
        with pytest.raises(FieldmarkError, match=f"other {said}"):
            tune.refuse_other(search, {**asked, **other}, backend, 2)
    with pytest.raises(FieldmarkError, match="2 trials already"):
        tune.refuse_other(search, asked, backend, 1)
    with pytest.raises(FieldmarkError, match="KERAS_BACKEND"):
        tune.refuse_other(search, asked, "another", 2)


def test_other_photos_are_refused(search: Search, tmp_path: Path) -> None:
    from fieldmark import draw

    others = draw.birds(tmp_path / "others", per_class=12, size=32, seed=1)
    with pytest.raises(FieldmarkError, match="bring back the photos"):
        tune.prepared(search, others, split.read(search.split))


def test_two_do_not_search_the_same(search: Search, birds: Path) -> None:
    Search(search.folder, replace(search.plan, asked={"values": {}})).save()
    with locks.sole(search.folder / "lock"), pytest.raises(FieldmarkError, match="another process"):
        tune.tune(birds, search.folder, count=2)


def test_the_second_of_two_that_begin_is_told_of_the_first(
    search: Search, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: Any) -> list[split.Record]:
        shutil.copytree(search.folder, tmp_path / "other")
        return []

    search.save()
    monkeypatch.setattr(tune, "prepared", meanwhile)
    with pytest.raises(FieldmarkError, match="another process"):
        tune.tune(birds, tmp_path / "other", count=2, values={"image_size": 32, "epochs": 1})


# ---- the verdict --------------------------------------------------------------------------------


def test_no_gain_is_said(search: Search) -> None:
    ended(search, 0.3, 0.4)
    assert search.best is not None
    said = tune.verdict(search, Path(search.plan.photos), search.best)
    assert said.startswith("Nothing was better than the recipe that was chosen")


def test_nothing_but_failures_is_an_error(search: Search) -> None:
    for _ in range(2):
        search.end(replace(search.begin(point()), state="failed", reason="too large."))
    with pytest.raises(FieldmarkError, match=r"No trial was trained to its end \(too large\)\.$"):
        tune.concluded(search, Path(search.plan.photos))


def test_the_best_is_compared_with_the_chosen_one(search: Search) -> None:
    training(job(search), 0, point(), lambda _: None)
    training(job(search), 1, point(0.003), lambda _: None)
    for number in range(2):
        trial = judged(search, search.begin(point(0.001 + 0.002 * number)), "")
        search.end(replace(trial, value=1.0 - number))
    assert search.best is not None
    said = tune.verdict(search, Path(search.plan.photos), search.best)
    assert said.startswith("Trial 1")
    assert "the chosen recipe" in said
    assert "flatters" in said
    assert str(search.folder) not in said
    assert search.comparison.exists()


# ---- the whole ----------------------------------------------------------------------------------


def words(birds: Path, *more: str, epochs: int = 2) -> list[str]:
    flags = [*FLAGS, "--epochs", str(epochs), "--workers", "1"]
    return ["tune", str(birds), "--out", "found", "--recipe", "scratch", *flags, *more]


@pytest.mark.slow
def test_a_search_leaves_table_picture_and_a_recipe_to_train_by(
    birds: Path, tmp_path: Path, fieldmark: Command, clean: None
) -> None:
    done = fieldmark(*words(birds, "--trials", "2"))
    assert done.returncode == 0, done.stderr
    found = open_search(tmp_path / "found")
    assert [trial.number for trial in found.ended] == [0, 1]
    assert found.trials[0].state == "done"
    assert re.search(r"^trial 0 .*\(the chosen recipe\)$", done.stdout, re.MULTILINE)
    assert found.table.read_text().count("\n") == 3
    assert found.picture.stat().st_size > 10_000
    assert not found.scratch.exists()
    assert found.run(0).best.exists()
    best = found.best
    assert best is not None
    recipe = named(str(found.recipe))
    assert recipe == found.plan.recipe(best.values)
    threads = {name: os.environ.get(name, value) for name, value in THREADS.items()}
    done = fieldmark("train", birds, "--recipe", found.recipe, "--out", "run", **threads)
    assert done.returncode == 0, done.stderr
    logs = [run.read_log() for run in (found.run(best.number), open_run(tmp_path / "run"))]
    losses = [[line["val_loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    # The same command has nothing to do but what a kill has kept from being written; fewer trials
    # are refused.
    found.table.unlink()
    found.recipe.write_text("half")
    again = fieldmark(*words(birds, "--trials", "2"))
    assert again.returncode == 0
    assert "Starting a cluster" not in again.stdout
    assert found.table.read_text().count("\n") == 3
    assert named(str(found.recipe)) == recipe
    fewer = fieldmark(*words(birds, "--trials", "2", "--augment", "0.1"))
    assert fewer.returncode == 2
    assert "other values of the recipe" in fewer.stderr


def test_a_cluster_that_is_not_there(
    birds: Path, tmp_path: Path, fieldmark: Command, clean: None
) -> None:
    done = fieldmark(*words(birds, "--address", "127.0.0.1:1"))
    assert done.returncode == 2
    assert "There is no cluster at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "found").exists()


# ---- killed -------------------------------------------------------------------------------------


def children(parent: int) -> Iterator[tuple[int, str]]:
    """Yield all processes below one, with their command lines."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if above == parent:
            yield int(entry.name), line
            yield from children(int(entry.name))


def wait(until: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 1800  # far beyond a crowded machine
    while not until():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.05)


@contextmanager
def begun(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldmark", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def epochs(search: Path, number: int) -> int:
    log = search / "trials" / f"{number:03}" / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def wait_for_all(numbers: Iterable[int]) -> None:
    """Wait until processes are gone."""
    left = set(numbers)
    deadline = time.monotonic() + 600
    while left and time.monotonic() < deadline:
        left = {number for number in left if Path(f"/proc/{number}").exists()}
        time.sleep(0.1)
    assert not left


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_killed_trials_and_searches_go_on(birds: Path, tmp_path: Path, fieldmark: Command) -> None:
    before = folders()
    line = words(birds, "--trials", "3", epochs=12)
    found = tmp_path / "found"
    with begun(tmp_path, *line) as process:
        wait(lambda: epochs(found, 0) >= 2, process)
        below = list(children(process.pid))
        worker = [pid for pid, name in below if name.startswith("ray::ImplicitFunc")]
        assert len(worker) == 1
        os.kill(worker[0], signal.SIGKILL)
        at = epochs(found, 0)
        wait(lambda: epochs(found, 0) > at, process)  # it has been started again, and goes on
        wait(lambda: epochs(found, 1) >= 1, process)
        below += children(process.pid)
    first = open_search(found).trials
    assert [trial.state for trial in first] == ["done", "begun"]
    assert first[0].epochs == 12
    wait_for_all(pid for pid, _ in below)

    with begun(tmp_path, *line) as process:
        wait(lambda: epochs(found, 1) >= 3, process)
        below = list(children(process.pid))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 143, said
    assert "the same command goes on" in said
    assert not (found / "ray").exists()
    wait_for_all(pid for pid, _ in below)

    done = fieldmark(*line)
    assert done.returncode == 0, done.stderr
    last = open_search(found)
    assert last.trials[:1] == first[:1]
    assert last.trials[1].values == first[1].values
    assert [trial.state != "begun" for trial in last.trials] == [True] * 3
    assert folders() <= before  # what SIGKILL has left is swept by the next search
    assert [line["epoch"] for line in last.run(0).read_log()] == list(range(1, 13))


def test_paths_mean_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate({"weights": "w.keras", "split": "split.csv"})
    found = tune.local(recipe)
    assert Path(found.weights).is_absolute()
    assert Path(found.split).is_absolute()
    assert tune.local(TINY.changed(weights="imagenet")).weights == "imagenet"
