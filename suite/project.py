"""The checkout that one works in: where the notebooks, the pins and the published report lie."""

from pathlib import Path

from sae_lib.errors import SettingsError

NAME = "monosemanticity-at-home"


def find() -> Path | None:
    """The working directory, or the nearest folder above it, that is a checkout of this project;
    None elsewhere.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        try:
            if f'name = "{NAME}"' in (folder / "pyproject.toml").read_text(encoding="utf-8"):
                return folder
        except (OSError, ValueError):
            continue
    return None


def published(what: str) -> Path:
    """Where the checkout keeps its last full run of `what`, for reports of runs that have made
    none.
    """
    return (find() or Path()) / "report" / what


def root() -> Path:
    """`find`, or a `SettingsError` that says where to go."""
    if found := find():
        return found
    raise SettingsError(
        f"{Path.cwd()} is not in a checkout of {NAME}, where the notebooks are; go to its folder "
        "and try again"
    )
