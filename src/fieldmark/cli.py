"""The command line: a function a command, each a few lines over the module of the same name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, Token
from pydantic import ValidationError, model_validator
from rich.console import Console
from rich.text import Text

from fieldmark import console, files
from fieldmark.bounds import Bounds
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import SECTIONS, Network, Recipe, named, reasons

FOUND = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
EXIT_CODES = (
    f"Exit codes: 0 done; {BAD_INPUT} bad input, one sentence says what; "
    f"{INTERRUPTED} stopped by Ctrl-C; 1 `--strict` found something, or a mistake of ours, "
    "with a traceback."
)

errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def _path(_: Any, tokens: Sequence[Token]) -> Path:
    """Read a path; a shell leaves the tilde of `--out=~/run` as it is."""
    text = tokens[0].value
    if "://" in text:
        raise FieldmarkError(
            f"{text} is a URL, and a folder or file of this machine is wanted here: copy it first."
        )
    return files.expanded(text)


def _source(hint: Any, tokens: Sequence[Token]) -> Path:
    """Read a path, or fetch what lies at a URL."""
    text = tokens[0].value
    if "://" not in text:
        return _path(hint, tokens)
    from fieldmark import remote

    return remote.near(text)


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts would cut 64.5 to one."""
    return int(tokens[0].value)


Place = Annotated[Path, Parameter(converter=_path)]
Source = Annotated[Path, Parameter(converter=_source)]
Whole = Annotated[int, Parameter(converter=_whole)]


class RecipeFlags(Recipe, strict=False):
    """The recipe's fields as flags: from text, so that "8" becomes 8."""

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> RecipeFlags:
        """Let them pass: the recipe that these are flags to is another than the article's."""
        return self


_section = 0
for _name, _field in RecipeFlags.model_fields.items():
    _section += _name in SECTIONS
    _title = list(SECTIONS.values())[_section - 1]
    _field.metadata.append(Parameter(group=Group(_title, sort_key=_section)))

NO_FLAGS = RecipeFlags.model_validate({})


@dataclass(frozen=True)
class BoundsFlags(Bounds):
    """The bounds of a server as flags.

    Parameters
    ----------
    photo_bytes
        Bytes of a photo.
    pixels
        Pixels of a photo.
    photos
        Photos of a request.
    body_bytes
        Bytes of a request.
    json_bytes
        Bytes of a request in JSON, whose numbers take eight times that in memory.
    waiting
        Photos of all requests that are not answered yet.
    held_bytes
        Bytes of all requests that are in memory.
    connections
        Connections that are open.
    head_bytes
        Bytes of a request's headers.
    head_seconds
        Seconds for the headers to come.
    body_seconds
        Seconds for the rest to come.
    seconds
        Seconds from there to the answer.
    """

    photo_bytes: Whole = Bounds.photo_bytes
    pixels: Whole = Bounds.pixels
    photos: Whole = Bounds.photos
    body_bytes: Whole = Bounds.body_bytes
    json_bytes: Whole = Bounds.json_bytes
    waiting: Whole = Bounds.waiting
    held_bytes: Whole = Bounds.held_bytes
    connections: Whole = Bounds.connections
    head_bytes: Whole = Bounds.head_bytes


ALLOWED = BoundsFlags()


def error_text(error: CycloptsError) -> Text:
    """Write a mistake in the command line as one sentence."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return Text(f"error: {reasons(cause, flags=True)}.")
    return Text(f"error: {error}")


app = App(
    name="fieldmark",
    help="From a folder of photos to an image classifier that is trained, checked, "
    "understood and deployed.",
    help_epilogue=EXIT_CODES,
    version=lambda: version("fieldmark"),
    suppress_keyboard_interrupt=False,
    error_formatter=error_text,
    error_console=errors,
    help_format="markdown",
)
app.register_install_completion_command()


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False,
) -> None:
    """Run a command.

    Parameters
    ----------
    quiet
        Print errors only.
    verbose
        Print TensorFlow's own messages too, and the traceback of an error.
    """
    console.be_quiet(quiet)
    if verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    if tokens[:1] == ("predict",):  # a list on standard input; what else has a hyphen is an option
        tokens = tuple("./-" if word == "-" else word for word in tokens)
    try:
        app(tokens)
    except FieldmarkError as error:
        if verbose:
            errors.print_exception()
        errors.print(f"error: {error}", markup=False)
        sys.exit(BAD_INPUT)


@app.command(help_epilogue="Example: `fieldmark check photos --csv photos.csv --html photos.html`")
def check(
    photos: Source,
    /,
    *,
    split: Place | None = None,
    csv: Place | None = None,
    html: Place | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Look for what is wrong with a folder of photos, and say what to do about it.

    Parameters
    ----------
    photos
        The folder, or a CSV with the columns path and label. It is only read.
    split
        A split's file, or a run, to look for the same photo on two of its sides.
    csv
        Write a row a photo into this file.
    html
        Write a page with the photos of each finding side by side into this file.
    strict
        Exit with 1 where there are errors or warnings.
    """
    from fieldmark import sheet
    from fieldmark.check import check as examine

    report = examine(photos, split=split, outputs=(csv, html))
    if csv is not None:
        sheet.write_csv(report, csv)
    if html is not None:
        sheet.write_html(report, html)
    with contextlib.suppress(BrokenPipeError):  # whoever read along has left; what is found counts
        print(sheet.table(report), flush=True)
    if csv is not None:
        console.say(f"Rows: {csv}")
    if html is not None:
        console.say(f"Sheet: {html}")
    if strict and report.serious:
        sys.exit(FOUND)


@app.command(help_epilogue="Example: `fieldmark split photos --out split.csv --test 0.1`")
def split(
    photos: Source,
    /,
    *,
    out: Place,
    validation: float = 0.2,
    test: float = 0.0,
    group_by: str = "",
    seed: Whole = 123,
    article: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say on paper which photos train, which validate and which test.

    Parameters
    ----------
    photos
        The folder, or a CSV with the columns path and label. It is only read.
    out
        The file to write. One that exists is extended: the photos in it keep their places.
    validation
        Share of each class to validate on.
    test
        Share of each class for the last word.
    group_by
        Pattern on a file's name; photos for which its first group is the same are never parted:
        `(.+)__` for `owl__12.jpg`.
    seed
        The same number splits the same photos alike.
    article
        Take Keras' own split instead, file for file: by chance alone.
    """
    from fieldmark.check import quick
    from fieldmark.run import is_run
    from fieldmark.split import make

    if is_run(out.parent):
        raise FieldmarkError(
            f"{out} lies in a run, which keeps the split that it was trained on: name a file "
            "elsewhere."
        )
    make(
        photos,
        out,
        validation=validation,
        test=test,
        seed=seed,
        group_by=group_by or None,
        keras=article,
        look=quick,
    )


@app.command(help_epilogue="Example: `fieldmark cache --clear`")
def cache(*, clear: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show the photos that are kept decoded, where they lie and how much they take.

    Parameters
    ----------
    clear
        Remove them, but for those that a running training uses.
    """
    from fieldmark import cache as kept

    if clear:
        console.say(f"Freed: {console.size(kept.clear())}")
    print(kept.summary())


@app.command(
    help_epilogue="Example: `fieldmark train photos --recipe article --out runs/first --epochs 3`"
)
def train(
    photos: Source,
    /,
    *,
    out: str | None = None,
    preview: Place | None = None,
    recipe: str = "",
    minutes: float | None = None,
    values: Annotated[RecipeFlags, Parameter(name="*")] = NO_FLAGS,
    language: Literal["en", "zh"] = "en",
    show: Annotated[bool, Parameter(negative=())] = False,
    save_every: float = 300.0,
    workers: Whole | None = None,
    address: str = "",
    tensorboard: Annotated[bool, Parameter(negative=())] = False,
    mlflow: str = "",
) -> None:
    """Train a network on a folder of photos, or go on with a training that was stopped.

    Parameters
    ----------
    photos
        The folder, with one sub-folder of photos for each class, or a CSV with the columns path
        and label. It is only read. A URL such as `s3://bucket/photos` is fetched first.
    out
        The run folder to make. One that exists is gone on with. It may be a URL.
    preview
        Write a sheet of what the network will see into this file; without `--out` that is all.
    recipe
        `article`, `scratch` (no weights to start from), `probe` (a classifier on the features of
        `--weights`), `finetune` (all layers from there), or a TOML or JSON file. Without one it is
        chosen for the photos, the machine and the time, and said with its reasons. The flags below
        change single values; the defaults shown are the article's.
    minutes
        Time that the training may take, where the recipe is chosen: about 10 unless said.
    language
        The language of the figures' titles.
    show
        Show the figures on the screen too; each waits until it is closed.
    save_every
        Seconds from one state on the disk to the next; the end of an epoch always has one.
    workers
        Train with so many processes, each with its share of every batch, on JAX.
    address
        The Ray cluster that the workers are of, such as `10.0.0.1:6379`; without one they are
        processes of this machine.
    tensorboard
        Write what TensorBoard shows of the training, as it goes on, into the run.
    mlflow
        Tell an MLflow store of the training as it goes on: `local` for a file beside the run,
        `sqlite:///FILE`, or the address of a server.
    """
    if out is None and preview is None:
        raise FieldmarkError("Name the run folder to make: --out RUN.")
    changes = values.model_dump(include=values.model_fields_set)
    if recipe:
        chosen = named(recipe).changed(**changes)
    if workers is not None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    elif address:
        raise FieldmarkError("--address is of a cluster for --workers: give their number too.")
    from fieldmark import joint, remote
    from fieldmark import train as trainer

    with remote.kept(out or "") as kept:
        folder = kept.folder if out else None
        if not recipe:
            chosen = trainer.choose(photos, minutes=minutes, out=folder, **changes)
        elif minutes is not None:
            raise FieldmarkError("--minutes are for a recipe that is chosen: leave --recipe out.")
        if folder is None:
            trainer.preview_only(chosen, photos, preview or Path())
            return
        team = None if workers is None else joint.Team(workers, address, kept)
        fit = trainer.fit if team is None else partial(joint.fit, team=team)
        fit(
            chosen,
            photos,
            folder,
            preview=preview,
            language=language,
            show=show,
            save_every=save_every,
            tensorboard=tensorboard,
            mlflow=mlflow,
            pushed=kept.push,
        )


@app.command(help_epilogue="Example: `fieldmark tune photos --out found --trials 30 --minutes 5`")
def tune(
    photos: Source,
    /,
    *,
    out: Place,
    trials: Whole = 30,
    workers: Annotated[int | None, Parameter(converter=_whole)] = None,
    minutes: float | None = None,
    recipe: str = "",
    values: Annotated[RecipeFlags, Parameter(name="*")] = NO_FLAGS,
    space: Place | None = None,
    address: str = "",
    keep: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Search for a better recipe than the chosen one, or go on with a search that was stopped.

    Parameters
    ----------
    photos
        The folder, or a CSV with the columns path and label. It is only read.
    out
        The folder to make: a table, a picture, the best recipe, a run a trial. One that exists is
        gone on with.
    trials
        How many trainings in all; the first one is by the recipe that is chosen.
    workers
        How many at a time, each on one processor: as many as there are unless said.
    minutes
        Time that one training may take, as for `train`: about 10 unless said.
    recipe
        What to begin with, in place of the one that is chosen. The flags below settle single
        values, which are not searched then.
    space
        A TOML file with the fields to search.
    address
        The Ray cluster to work on, such as `10.0.0.1:6379`; without one, this machine.
    keep
        Keep the weights of all trials, not only of the best one and the first one.
    """
    from fieldmark.tune import tune as search

    search(
        photos,
        out,
        count=trials,
        workers=workers,
        minutes=minutes,
        recipe=recipe,
        values=values.model_dump(include=values.model_fields_set),
        space_file=space,
        address=address,
        keep=keep,
    )


@app.command(help_epilogue="Example: `fieldmark evaluate runs/first`")
def evaluate(run: Place, photos: Place | None = None, /, *, coverage: float = 0.95) -> None:
    """Predict the photos that a run has held out, and say how good it is, with intervals.

    Parameters
    ----------
    run
        The run folder; `predictions.csv`, `metrics.json` and `decision.json` are written into it.
    photos
        A folder or a CSV of other photos with their classes, or where the run's own are now. What
        the run was trained on is left out.
    coverage
        Share of the validation photos that are to be answered. The others are taken for none of
        the classes, and so are photos that the network is no surer of.
    """
    from fieldmark import metrics
    from fieldmark.evaluate import evaluate as judge

    print(metrics.table(judge(run, photos, coverage=coverage)))


@app.command(help_epilogue="Example: `fieldmark compare runs/first runs/second`")
def compare(
    *runs: Place,
    split: Literal["validation", "test", "new"] | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say whether runs differ by more than chance on the photos that all have held out.

    Parameters
    ----------
    runs
        Two run folders or more, each evaluated before; the others are compared with the first.
    split
        Take the photos of this split only.
    json
        Print the figures as JSON.
    """
    from json import dumps

    from fieldmark.compare import compare as judge
    from fieldmark.compare import table

    found = judge(runs, split=split)
    print(dumps(found.as_json(), indent=2, ensure_ascii=False) if json else table(found))


@app.command(help_epilogue="Example: `fieldmark diagnose runs/first`")
def diagnose(run: Place, /) -> None:
    """Find out by measurement what is wrong with a run, and say what to do about it.

    Parameters
    ----------
    run
        The run folder; `diagnosis.json` and `findings.json` are written into it. Its photos are
        to be where they were.
    """
    from fieldmark.diagnose import diagnose as examine
    from fieldmark.diagnose import table

    print(table(examine(run)))


@app.command(help_epilogue="Example: `fieldmark explain runs/first`")
def explain(
    run: Place,
    /,
    *photos: Place,
    classes: Annotated[list[str] | None, Parameter(name="--class", negative=())] = None,
    top: Whole = 1,
    out: Place | None = None,
) -> None:
    """Show where in photos a run sees what it answers, and which training photos are like them.

    Parameters
    ----------
    run
        The run folder.
    photos
        Photos, or folders of them. Without any, the mistakes of `fieldmark evaluate` are shown,
        the pairs of classes that are confused most, and some photos that are right.
    classes
        A class to show the map of as well; may be given several times.
    top
        How many of the most probable classes to show the map of.
    out
        The folder to write, in place of one in the run.
    """
    from fieldmark.explain import explain as show

    folder = show(run, photos, classes=classes or (), top=top, out=out)
    console.say(f"Sheet: {folder / 'sheet.png'}")


@app.command(help_epilogue="Example: `fieldmark report runs/first`")
def report(
    run: Place,
    /,
    *,
    out: Place | None = None,
    card: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write all that a run's files say on one page, to be opened in a browser.

    Parameters
    ----------
    run
        The run folder. What `evaluate`, `diagnose` and `explain` have written is in the report.
    out
        The file to write, in place of one in the run.
    card
        Write the model card instead, in Markdown as the Hugging Face hub has it.
    """
    from fieldmark import report as reporter

    place = reporter.write_card(run, out=out) if card else reporter.write(run, out=out)
    console.say(f"{'Card' if card else 'Report'}: {place}")


@app.command(help_epilogue="Example: `fieldmark export runs/first --format openvino --int8`")
def export(
    run: Place,
    /,
    *,
    format: Literal["openvino", "onnx", "litert", "saved_model", "keras"] = "openvino",  # noqa: A002 - the flag's name
    int8: Annotated[bool, Parameter(negative=())] = False,
    max_drop: float = 0.01,
    minutes: float = 10.0,
    licence: str = "unknown",
    out: Place | None = None,
) -> None:
    """Write a run's network for another library, proved to answer as the run does.

    Parameters
    ----------
    run
        The run folder. Its photos are to be where they were: the proof is made on them.
    format
        `openvino` is the quickest on most processors; `onnx` and `litert` go nearly anywhere;
        `saved_model` is TensorFlow's, `keras` plain Keras with scaling and softmax inside.
    int8
        Compute in whole numbers of 8 bits, calibrated on training photos: several times as fast.
    max_drop
        Share of the held-out photos that int8 may get wrong more often than the run does.
    minutes
        Time to find out what is to stay in float32, where all in int8 would cost more.
    licence
        What others may do with the model; written beside it.
    out
        The folder to write, in place of one in the run.
    """
    from fieldmark.export import export as write

    write(run, format, int8=int8, max_drop=max_drop, minutes=minutes, licence=licence, out=out)


@app.command(help_epilogue="Example: `fieldmark predict runs/first photos --csv answers.csv`")
def predict(
    model: Source,
    /,
    *photos: Source,
    csv: Place | None = None,
    parquet: Place | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    top: Whole = 3,
    sort_into: Place | None = None,
    sort_as: Literal["copy", "symlink", "hardlink"] = "copy",
    workers: Whole | None = None,
    address: str = "",
    strict: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say what is on photos, as many as there are.

    Parameters
    ----------
    model
        A run, or an export of one, which needs no Keras.
    photos
        Photos, folders of them, or `-` for a list on standard input: a path a line, or separated
        by NUL. They are only read.
    csv
        Write a row a photo into this file. One that exists is gone on with: photos that are in it
        are left as they are.
    parquet
        Write them into this folder, as Parquet, in place of a CSV; it is gone on with as well.
    json
        Print a line of JSON a photo.
    top
        How many classes are named for a photo.
    sort_into
        Copy each photo into a folder for its class, in this one; none is moved.
    sort_as
        Link the photos there in place of copying them.
    workers
        Read and compute with so many processes, each on a processor of its own.
    address
        The Ray cluster that the workers are of, such as `10.0.0.1:6379`; without one they are
        processes of this machine.
    strict
        Exit with 1 where a photo could not be read.
    """
    from fieldmark import answers, lake

    if address and workers is None:
        raise FieldmarkError("--address is of a cluster for --workers: give their number too.")
    answer = answers.predict
    if workers is not None:
        answer = partial(lake.predict, workers=workers, address=address)
    account = answer(
        model,
        photos,
        csv=csv,
        parquet=parquet,
        as_json=json,
        top=top,
        sort_into=sort_into,
        sort_as=sort_as,
    )
    print(account, file=sys.stderr if json else sys.stdout)
    if strict and account.unreadable:
        sys.exit(FOUND)


@app.command(help_epilogue="Example: `fieldmark bench runs/first`")
def bench(model: Place, /, *photos: Place, rounds: Whole = 10) -> None:
    """Measure how fast a model answers on this machine, and each export of a run beside it.

    Parameters
    ----------
    model
        A run with its exports, or one export, into which `bench.json` is written.
    photos
        Photos to measure with. Without any: some that the run held out, or drawn ones.
    rounds
        How often all models take their turn. The last line printed is JSON.
    """
    from json import dumps

    from fieldmark.bench import bench as measure
    from fieldmark.bench import table

    found = measure(model, photos, rounds=rounds)
    print(table(found))
    print(dumps(found, ensure_ascii=False))


@app.command(help_epilogue="Example: `fieldmark serve runs/first/export/openvino-int8`")
def serve(
    model: Source,
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    name: str = "fieldmark",
    ray: Annotated[bool, Parameter(negative=())] = False,
    replicas: str | None = None,
    address: str = "",
    bounds: Annotated[
        BoundsFlags, Parameter(name="*", group=Group("What clients may ask for at most"))
    ] = ALLOWED,
) -> None:
    """Answer photos over HTTP, and show a page for them, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    model
        A run, or an export of one. SIGHUP lets what lies there by then take over.
    host
        The address to listen at; `0.0.0.0` lets other machines in.
    port
        The port to listen at.
    name
        What the model is called in addresses, as the open inference protocol has them.
    ray
        Answer by several processes, on one machine or many, by Ray Serve.
    replicas
        How many with `--ray`: 1 unless said, or as many as the requests need, such as `1-4`.
    address
        The Ray cluster to serve in, such as `10.0.0.1:6379`; without one it is this machine.
    """
    bounds.check()
    if not ray:
        if address or replicas is not None:
            raise FieldmarkError("--replicas and --address are for a server by Ray: say --ray too.")
        from fieldmark.serve import serve as listen

        listen(model, host=host, port=port, name=name, bounds=bounds)
        return
    from fieldmark import cluster

    cluster.require()
    from fieldmark.replicas import serve as share

    share(
        model,
        replicas=replicas or "1",
        address=address,
        host=host,
        port=port,
        name=name,
        bounds=bounds,
    )


@app.command(help_epilogue="Example: `fieldmark recipe scratch > mine.toml`")
def recipe(
    name: str | None = None,
    /,
    *,
    photos: Place | None = None,
    minutes: float | None = None,
) -> None:
    """Print a recipe as TOML, to be changed and given to `train --recipe FILE`.

    Parameters
    ----------
    name
        `article`, which it is unless said, `scratch`, `probe`, `finetune`, or a TOML or JSON file,
        which is checked and completed.
    photos
        Print the one that is chosen for these photos instead.
    minutes
        Time that its training may take: about 10 unless said.
    """
    if photos is None and minutes is None:
        print(named(name or "article"))
        return
    if photos is None or name is not None:
        raise FieldmarkError(
            "A recipe is named, or chosen with --photos, and --minutes, for them: give one of both."
        )
    from fieldmark.train import choose

    print(choose(photos, minutes=minutes))


@app.command(help_epilogue="Example: `fieldmark network article --classes 4 --svg network.svg`")
def network(
    name: Network,
    /,
    *,
    image_size: Whole = 224,
    classes: Whole = 1000,
    svg: Place | None = None,
) -> None:
    """Print a network's layers, its parameters and its multiply-adds; draw it on one page.

    Parameters
    ----------
    name
        `article`: the article's ResNet50V2; `resnet50v2` and deeper: the reference, as in Keras
        applications; `bit_r50x1` and `resnetv2_50`: the other published ResNet-V2, with group and
        with batch normalisation; `resnet26v2_half`: for few photos; `small`: for tests.
    image_size
        Side of the photos, in pixels.
    classes
        How many classes it tells apart.
    svg
        Draw the network block by block into this file.
    """
    from fieldmark.network import build, cost, draw, summary

    model = build(name, image_size=image_size, classes=classes)
    print(summary(model))
    print(cost(model))
    if svg is not None:
        draw(model, svg)
        console.say(f"Drawing: {svg}")


@app.command(help_epilogue="Example: `fieldmark draw birds --per-class 100 --size 64`")
def draw(
    out: Place,
    /,
    *,
    per_class: Whole = 60,
    size: Whole = 128,
    seed: Whole = 0,
    fractals: Whole = 0,
) -> None:
    """Draw photos of four bird species in which the place of every field mark is known.

    Parameters
    ----------
    out
        The folder to make, with one sub-folder for each species and `field_marks.json`.
    per_class
        Photos of each species.
    size
        Side of a photo, in pixels.
    seed
        The same number draws the same photos.
    fractals
        Draw so many kinds of fractals in place of birds: what the weights `fractals` have learned.
    """
    if fractals:
        from fieldmark.fractals import draw as draw_fractals

        folder = draw_fractals(out, kinds=fractals, per_class=per_class, size=size, seed=seed)
    else:
        from fieldmark.draw import birds

        folder = birds(out, per_class=per_class, size=size, seed=seed)
    console.say(f"{(fractals or 4) * per_class} photos in {folder}")


def reference() -> str:
    """Return the commands' reference as Markdown; `make docs` writes it to `docs/cli.md`."""
    # cyclopts links to this heading by another name than GitHub gives it.
    commands = app.generate_docs(
        heading_level=2, flatten_commands=True, usage_name="fieldmark"
    ).replace("(#fieldmark-install", "(#fieldmark---install")
    return f"# Commands\n\nGenerated by `make docs`.\n\n{EXIT_CODES}\n\n{commands.rstrip()}\n"


def main(words: Sequence[str] | None = None) -> None:
    """Run a command line, the process' own where no other is given."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that the terminal lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app.meta(sys.argv[1:] if words is None else words)
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(INTERRUPTED)
    except OSError as error:  # a file's has become a sentence: this is standard output's
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        _write_no_more(error)
    finally:
        with contextlib.suppress(ValueError):  # no more to be left in order
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as error:
                _write_no_more(error)


def _write_no_more(error: OSError) -> None:
    """Leave standard output alone: whoever read along has left, or there is no room."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        errors.print(f"error: standard output cannot be written ({error.strerror}): make room.")
        sys.exit(BAD_INPUT)
