"""The code blocks of the README and the docs run, and their links lead somewhere.

In a `console` block a line that begins with `$` is a command. Trainings are made short: one epoch
on small photos.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from fieldmark import cli, draw

PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = {"--epochs": "3", "--image-size": "32", "--batch-size": "32"}
# These train the article's network, or take step after step on a run, which takes minutes even so.
SLOW = (
    *("README.md", "article.md", "train.md", "evaluate.md", "diagnose.md", "explain.md"),
    *("report.md", "trackers.md", "predict.md", "bench.md", "batches.md", "network.md"),
    *("probe.md", "recipe.md", "resume.md", "speed.md", "weights.md"),
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of a page's code blocks."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """Return the command lines of a page's console blocks."""
    shown = [text for language, text in blocks(page) if language == "console"]
    lines = [line for text in shown for line in text.splitlines() if line.startswith("$ ")]
    return [re.sub(r" +#.*", "", line[2:]) for line in lines]


def shortened(command: str) -> str:
    """Make a training short, where it does not say how long it is."""
    if not command.startswith("fieldmark train"):
        return command
    return command + "".join(f" {k} {v}" for k, v in SHORT.items() if k not in command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_the_command_line_knows(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command.split(" > ")[0])
        if words[0] == "fieldmark" and len(words) > 1 and not words[1].startswith("-"):
            cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert "://" in link or target.exists(), link
        if anchor and "://" not in link:
            assert anchor in anchors(target), link


def test_the_chinese_readme_has_the_same_code() -> None:
    ours, theirs = (
        [line for _, text in blocks(ROOT / name) for line in text.splitlines()]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert ours == theirs


def runs(page: Path) -> list[tuple[str, str]]:
    """Return what can be run of a page: its commands, then its Python blocks."""
    ours = [shortened(line) for line in commands(page) if line.startswith("fieldmark")]
    return [("sh", line) for line in ours] + [
        block for block in blocks(page) if block[0] == "python"
    ]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else (), id=page.name)
        for page in PAGES
        if runs(page) and page.name not in ("README.zh-CN.md", "cli.md")
    ],
)
def test_the_code_runs(page: Path, tmp_path: Path) -> None:
    if page.name != "README.md":  # it draws its own
        draw.birds(tmp_path / "photos", per_class=12, size=32)
    for language, text in runs(page):
        python = [sys.executable, "-c", text]
        words = ["sh", "-c", text.replace("fieldmark", f"{sys.executable} -m fieldmark", 1)]
        done = subprocess.run(
            python if language == "python" else words,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
