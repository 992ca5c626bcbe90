"""Which packages are installed, and the command for one that is not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fieldmark.errors import FieldmarkError


def installed(package: str) -> str | None:
    """Return the version of an installed package, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require(package: str, *, extra: str, why: str) -> None:
    """Raise one sentence with the install command where `package` is not installed."""
    if find_spec(package) is None:
        raise FieldmarkError(
            f"{why}, but {package} is not installed: run  pip install 'fieldmark[{extra}]'"
        )
