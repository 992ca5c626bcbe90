"""The command line: a function a command, each a few lines over the module of the same name."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from fieldmark import console
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Recipe, named, reasons

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

errors = Console(stderr=True, highlight=False, soft_wrap=True)


class RecipeFlags(Recipe, strict=False):
    """The recipe's fields as flags: from text, so that "8" becomes 8."""


def error_text(error: CycloptsError) -> Text:
    """Write a mistake in the command line as one sentence."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return Text(f"error: {reasons(cause)}.")
    return Text(f"error: {error}")


app = App(
    name="fieldmark",
    help="From a folder of photos to an image classifier that is trained, checked, "
    "understood and deployed.",
    help_epilogue="Exit codes: 0 done, 2 bad input (one sentence says what), 130 stopped by Ctrl-C.",
    version=lambda: version("fieldmark"),
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
        import os

        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    app(tokens, exit_on_error=True)


@app.command(
    help_epilogue="Example: `fieldmark train photos --recipe article --out runs/first --epochs 3`"
)
def train(
    photos: Path,
    /,
    *,
    out: Path,
    recipe: str = "article",
    values: Annotated[RecipeFlags, Parameter(name="*", group="Recipe")] = RecipeFlags(),
    language: Literal["en", "zh"] = "en",
    show: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train a network on a folder of photos.

    Parameters
    ----------
    photos
        The folder, with one sub-folder of photos for each class. It is only read.
    out
        The run folder to make.
    recipe
        `article`, or a JSON file with a recipe's values. The flags below change single ones.
    language
        The language of the figures' titles.
    show
        Show the figures on the screen too; each waits until it is closed.
    """
    chosen = named(recipe).changed(**values.model_dump(include=values.model_fields_set))
    from fieldmark.train import fit

    fit(chosen, photos, out, language=language, show=show)


@app.command(help_epilogue="Example: `fieldmark recipe article > mine.json`")
def recipe(name: str = "article", /) -> None:
    """Print a recipe as JSON, to be changed and given to `train --recipe FILE`.

    Parameters
    ----------
    name
        `article`, or a JSON file, which is checked and completed.
    """
    print(named(name).model_dump_json(indent=2))


def main() -> None:
    """Run the command line; mistakes of the user end in one sentence, never in a traceback."""
    try:
        app.meta()
    except FieldmarkError as error:
        errors.print(f"error: {error}", markup=False, style=None)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
