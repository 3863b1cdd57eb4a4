"""The checkout of this project: where the notebooks, the pins and the published report lie."""

import json
import re
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from sae_lib.errors import SettingsError

NAME = "monosemanticity-at-home"


def find() -> Path | None:
    """The checkout around the working directory, or that this environment was installed from."""
    here = Path.cwd()
    for folder in (here, *here.parents, *_installed()):
        try:
            if f'name = "{NAME}"' in (folder / "pyproject.toml").read_text(encoding="utf-8"):
                return folder
        except (OSError, ValueError):
            continue
    return None


def _installed() -> list[Path]:
    """What `pip install -e` recorded (PEP 610)."""
    try:
        record = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return []
    url = urlparse(json.loads(record)["url"]) if record else None
    return [Path(url2pathname(url.path))] if url and url.scheme == "file" else []


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
