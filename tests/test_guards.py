"""What keeps the house in order: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from conftest import ROOT

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "fieldmark"


def imports(name: str) -> set[str]:
    """Return the modules of fieldmark that a module imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "fieldmark":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "fieldmark" and len(parts) > 1}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldmark."):
            found.add(str(node.module).removeprefix("fieldmark."))
    return found


def test_imports_go_down_in_rank() -> None:
    rows = re.findall(r"^\| (\d+) \| (`.*?`) \|", DESIGN, re.MULTILINE)
    rank = {name: int(number) for number, names in rows for name in re.findall(r"\w+", names)}
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert modules == set(rank)
    upward = [f"{a} -> {b}" for a in modules for b in imports(a) if rank[b] >= rank[a]]
    assert upward == []


@pytest.mark.parametrize(
    "words", ["import fieldmark", "from fieldmark import cli; cli.app(['-h'])"]
)
def test_the_package_and_its_help_load_nothing_heavy(words: str) -> None:
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "sklearn", "scipy", "PIL"}
    heavy |= {"fastapi", "starlette", "uvicorn", "grain", "imagehash", "jinja2"}
    heavy |= {"tensorboard", "mlflow", "sqlalchemy", "cleanlab", "pandas"}
    heavy |= {"openvino", "onnxruntime", "nncf"}
    code = f"import sys\ntry:\n    {words}\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "fieldmark" in loaded
    assert loaded.isdisjoint(heavy)


def test_no_recipe_of_the_run_folder_s_names_elsewhere() -> None:
    """`run` is the only module that knows the names of a run's files."""
    names = (
        *("recipe.json", "environment.json", "classes.txt", "image.json", "log.jsonl"),
        *("state.npz", "best.keras", "predictions.csv", "metrics.json", "decision.json"),
        *("diagnosis.json", "explanations.json", "heatmaps"),
    )
    for path in SOURCE.glob("*.py"):
        if path.stem == "run":
            continue
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert constants.isdisjoint(names), path.name
