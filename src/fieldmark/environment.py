"""What a run is made with: versions, device, backend, commit and command line.

In: the folder of photos. Out: plain data for the run's `environment.json`.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from fieldmark import backend, packages, remote

RECORDED = (
    *("fieldmark", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch"),
    *("numpy", "pillow", "pillow-heif", "grain"),
)


def describe(photos: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the run was made with: versions, device, backend, commit, command line."""
    return {
        "command": shlex.join(sys.argv),
        "photos": remote.origin(Path(photos)),
        "commit": commit(),
        "backend": backend.name,
        "gpus": backend.devices(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in RECORDED if (found := packages.installed(name))},
    }


def commit() -> str | None:
    """Return the git commit of fieldmark's own source, where it runs from a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            check=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
