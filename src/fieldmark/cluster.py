"""A Ray cluster to work on: joined where there is one, else started for as long as the work lasts.

In: an address, or none, how many slots the work needs, and the paths that every machine must see.
Out: Ray, connected and ready to be given work. What does not fit is refused before any work is
given: no cluster at the address, other versions there, too few slots, a path that is not seen.

    fieldmark train PHOTOS --out RUN --workers 4 --address 10.0.0.1:6379

Without an address a cluster of this machine alone is started, and stopped afterwards: no process
and no folder is left. Ray's reports to its makers are switched off.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from fieldmark import locks, packages, threads
from fieldmark.console import progress
from fieldmark.errors import FieldmarkError

# What must be the same on all machines, or they would not compute the same.
COMPARED = ("fieldmark", "keras", "jax", "numpy", "pillow")
PATIENCE = 60.0  # seconds that a machine of the cluster has to answer
KNOCK = 5.0  # seconds that the address has
FOLDER = "ray-fieldmark-"  # how the folder of a cluster of this machine begins
LOCK = ".lock"  # and the file beside it, which whoever works has locked

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray's own next default: work that asks for no GPU is not kept from seeing those there are.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # So long a training waits for slots, one of which may just be lost; then fewer workers start.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
MOST = 8  # workers for each processor of one machine: each has a library of 0.5 GB in memory


class Machine(NamedTuple):
    """What a machine of the cluster says of itself."""

    name: str
    versions: dict[str, str]
    unseen: tuple[str, ...]  # of the paths asked for


def require() -> None:
    """Raise where Ray is not installed."""
    packages.require("ray", extra="cluster", why="Work on several processes is Ray's")


@contextmanager
def joined(
    address: str = "",
    *,
    slots: int,
    option: str = "--workers",
    paths: Sequence[Path] = (),
) -> Iterator[Any]:
    """Give `ray`, connected to the cluster at an address, else to one of this machine.

    `slots` is how many pieces of work run at a time; a cluster that is started here has enough, up
    to `MOST`. `paths` must be seen, the same, by all machines. Raises a FieldmarkError where
    something of that is not so.
    """
    if slots < 1:
        raise FieldmarkError(f"{option} {slots} is no number of workers: give 1 or more.")
    most = MOST * threads.processors()
    if not address and slots > most:
        raise FieldmarkError(
            f"{option} {slots} is more than one machine of {most // MOST} processors can feed: "
            f"give at most {most}, or name a cluster of several with --address."
        )
    require()
    with heeded(settings(address)):
        import ray

        with connection(ray, address, slots):
            try:
                refuse_few(ray, slots, address, option)
                refuse_strange(ray, paths)
                yield ray
            finally:
                ray.shutdown()


@contextmanager
def heeded(settings: dict[str, str]) -> Iterator[None]:
    """Have Ray find settings in the environment, where it has no others."""
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    read_again()
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def read_again() -> None:
    """Have Ray read its environment, as it does by itself only when it is imported."""
    raylet: Any = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def connection(ray: Any, address: str, slots: int) -> Iterator[None]:
    """Connect Ray, and take away afterwards what was made for it."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address:
        with explained(address):
            refuse_silent(address)
            ray.init(address=address, **quiet)
        yield
        return
    with temporary_folder() as folder:
        try:
            processors = max(slots, os.cpu_count() or 1)
            # Not on standard output, where there may be answers as JSON.
            progress.print(f"Starting a cluster of this machine, with {processors} slots")
            with in_time():
                ray.init(
                    address="local",
                    num_cpus=processors,
                    include_dashboard=False,
                    _temp_dir=str(folder),
                    **quiet,
                )
            yield
        finally:
            ray.shutdown()


@contextmanager
def in_time() -> Iterator[None]:
    """Say in a sentence that Ray has given up to start; it does so after 30 seconds."""
    try:
        yield
    except Exception as error:  # it has no class of its own
        if "timed out during startup" not in str(error):
            raise
        raise FieldmarkError(
            "Ray has not started within half a minute, so busy is this machine: wait, and give "
            "the command again."
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder for a cluster; those of processes that were killed are taken away as well.

    Ray's own place would be shared with everybody's; its sockets bear no long path.
    """
    around = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())  # noqa: S108
    sweep(around)
    with ExitStack() as held:
        while not held.enter_context(locks.sole(lock := around / f"{FOLDER}{token_hex(4)}{LOCK}")):
            continue  # somebody sweeps at this moment
        folder = lock.with_suffix("")
        folder.mkdir(0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sweep(around)  # what outlives a killed process for a while may have written again


def sweep(around: Path) -> None:
    """Take away the folders of clusters that nobody has locked."""
    for place in around.glob(f"{FOLDER}*"):
        with suppress(OSError), locks.sole(place.with_suffix(LOCK)) as ours:
            if ours:
                shutil.rmtree(place.with_suffix(""), ignore_errors=True)


def settings(address: str) -> dict[str, str]:
    """Return what Ray is to find in the environment.

    A cluster that is there is shown the token that this machine has for it; one that is started
    here lets in nobody but us, by a token of its own, which Ray would else leave in a file.
    """
    mine = os.environ.get("RAY_AUTH_TOKEN")
    if not address:
        return {**SETTINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": mine or token_hex(32)}
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return {**SETTINGS, **({"RAY_AUTH_MODE": "token"} if mine or kept.is_file() else {})}


def refuse_silent(address: str) -> None:
    """Raise a ConnectionError where nobody listens at an address; Ray tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Say in a sentence why a cluster cannot be joined."""
    try:
        yield
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise FieldmarkError(
            f"The cluster at {address} runs another Ray or Python than this machine's Ray "
            f"{packages.installed('ray')} and Python {platform.python_version()}: "
            "install the same on both."
        ) from error
    except (OSError, OverflowError, ValueError) as error:
        raise FieldmarkError(
            f"There is no cluster at {address}, or it has another token: start one with  "
            "ray start --head  there, and give the address that it says, such as 10.0.0.1:6379, "
            "and in RAY_AUTH_TOKEN what  ray get-auth-token  says there."
        ) from error


def here(ray: Any) -> dict[str, str]:
    """Return Ray's `label_selector` of this machine, for what is to be lost with it alone."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def slots_of(ray: Any) -> int:
    """Return how many slots, which are Ray's CPUs, the cluster has."""
    return int(ray.cluster_resources().get("CPU", 0))


def graphics_for(workers: int) -> int:
    """Return how many GPUs of the cluster each worker gets; none where they are too few."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0)) // workers


def refuse_few(ray: Any, slots: int, address: str, option: str) -> None:
    """Raise where the cluster has fewer slots than the work needs."""
    there = slots_of(ray)
    if there < slots:
        raise FieldmarkError(
            f"The cluster at {address} has {there} slots and {option} needs {slots}: "
            "ask for fewer, or let more machines join it."
        )


def refuse_strange(ray: Any, paths: Sequence[Path]) -> None:
    """Raise where a machine has other versions or does not see a path, and name it."""
    ours = versions()
    for machine in machines(ray, paths):
        unlike = [n for n in COMPARED if machine.versions.get(n) != ours.get(n)]
        if unlike:
            named = ", ".join(
                f"{n} {machine.versions.get(n, 'none')} there, {ours.get(n, 'none')} here"
                for n in unlike
            )
            raise FieldmarkError(
                f"{machine.name} has other versions ({named}): install the same on all machines."
            )
        if machine.unseen:
            raise FieldmarkError(
                f"{machine.name} does not see {', '.join(machine.unseen)}: put it where all "
                "machines find it under the same path, such as a shared folder."
            )


def machines(ray: Any, paths: Sequence[Path]) -> list[Machine]:
    """Ask each machine of the cluster what it is and sees."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = [str(path.absolute()) for path in paths]
    asked = ray.remote(num_cpus=0)(itself)
    answers = {
        node["NodeManagerAddress"]: asked.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(wanted)
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }
    found = []
    for name, answer in answers.items():
        try:
            found.append(ray.get(answer, timeout=PATIENCE))
        except ray.exceptions.RayError as error:
            raise FieldmarkError(
                f"The machine {name} of the cluster does not answer, or has no fieldmark: see that "
                f"it runs and has fieldmark {packages.installed('fieldmark')}."
            ) from error
    return found


def itself(paths: Sequence[str]) -> Machine:
    """Say what this machine has, and which of the paths it does not see."""
    unseen = tuple(path for path in paths if not os.path.exists(path))  # noqa: PTH110
    return Machine(platform.node(), versions(), unseen)


def versions() -> dict[str, str]:
    """Return the versions here of what must be the same everywhere."""
    return {name: found for name in COMPARED if (found := packages.installed(name))}


def environment(**variables: str) -> dict[str, Any]:
    """Return Ray's `runtime_env` with which a worker has these variables, and ours."""
    return {"env_vars": {**SETTINGS, **variables}}
