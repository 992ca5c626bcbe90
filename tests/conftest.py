"""What the tests share: drawn photos, one small trained run, and a way to run the command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from fieldmark import console, draw
from fieldmark.recipe import ARTICLE
from fieldmark.run import Run

ROOT = Path(__file__).parent.parent
# Neither the terminal nor the settings of whoever runs the tests are to be felt in them.
for name in ("FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)
os.environ["MPLBACKEND"] = "agg"
# Processes begin as those of the command do, and have a core each.
os.environ["FIELDMARK_OWN"] = "1"
for name in ("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Compiling is most of what JAX does in the tests.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
HOMES = {name: tempfile.mkdtemp(prefix="fieldmark-") for name in ("KERAS_HOME", "FIELDMARK_CACHE")}
os.environ.update(HOMES)


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    for home in HOMES.values():
        shutil.rmtree(home, ignore_errors=True)


# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Real photos lie beside the checkout of some developers; a user has none.
SHARED = ROOT.parent / "shared" / "data"


def half_as_deep(input_shape: tuple[int, int, int], classes: int) -> Any:
    """Build the network "small" with one block a stage: tracing it is most of what tests do."""
    from fieldmark import resnet_v2
    from fieldmark.backend import keras

    image = keras.layers.Input(input_shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    x = resnet_v2.body(x, blocks=(1, 1, 1), filters=16, bn_momentum=0.9)
    return keras.Model(image, resnet_v2.head(x, classes), name="small")


def pytest_collection_finish() -> None:
    """Build it in this process, where Keras is needed; a command in its own has the whole."""
    if "fieldmark.network" in sys.modules:
        sys.modules["fieldmark.network"].BUILDERS["small"] = half_as_deep


@pytest.fixture(scope="module")
def whole_network() -> Iterator[None]:
    """Build all of "small" in this process too."""
    from fieldmark import network, resnet_v2

    network.BUILDERS["small"] = resnet_v2.Small
    yield
    network.BUILDERS["small"] = half_as_deep


# Seconds, not minutes: small photos, two epochs of five steps.
TINY = ARTICLE.changed(
    network="small", pipeline="batches", image_size=32, batch_size=8, epochs=2, augment=0.3
)


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn photos of four classes; for reading only."""
    return draw.birds(tmp_path_factory.mktemp("drawn") / "birds", per_class=12, size=32)


@pytest.fixture(scope="session")
def trained(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the small network on the drawn photos; for reading only."""
    from fieldmark import network
    from fieldmark.train import fit

    before = network.BUILDERS["small"]
    network.BUILDERS["small"] = half_as_deep  # whichever test asks for it first
    try:
        return fit(TINY, birds, tmp_path_factory.mktemp("runs") / "run")
    finally:
        network.BUILDERS["small"] = before


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    """Undo a test's `--quiet`."""
    yield
    console.be_quiet(False)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fieldmark(tmp_path: Path) -> Command:
    """Run the command line as a user does: a process of its own, in an empty folder."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fieldmark", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def shared_photos() -> Path:
    """The folder of real photos, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real photos at {SHARED}")
    return SHARED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, for a test of a disk that fills up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
