"""The checkout of this project: where the notebooks, the pins and the published report lie."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sae_lib.errors import SettingsError

NAME = "monosemanticity-at-home"
PACKAGE = Path(__file__).parent


def find() -> Path | None:
    """The checkout around the working directory, or the one that this package is part of."""
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        try:
            if f'name = "{NAME}"' in (folder / "pyproject.toml").read_text(encoding="utf-8"):
                return folder
        except (OSError, ValueError):
            continue
    return None


def root() -> Path:
    """`find`, or a `SettingsError` that says where to go."""
    if found := find():
        return found
    raise SettingsError(
        f"{Path.cwd()} is not in a checkout of {NAME}, where the notebooks are; go to its folder "
        "and try again"
    )


def published(what: str) -> Path:
    """Where the checkout keeps its last full run of `what`, for reports of runs without one."""
    return (find() or Path()) / "report" / what


def pins(requirements: Path) -> dict[str, str]:
    """The version that is pinned of each package."""
    return dict(re.findall(r"(?m)^([\w.-]+)==([^\s#]+)", requirements.read_text()))


def installed(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
