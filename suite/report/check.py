"""`python -m suite report --check`: the committed report is what its template makes of the
committed results.
"""

import re
import shutil
import tempfile
from pathlib import Path

from sae_lib.errors import ArtefactError
from sae_lib.settings import Settings
from suite.report import publish, render
from suite.runs import SETTINGS, Run, read_yaml

NUMBER = re.compile(r"\d[\d.,]*")
NUMBERED = re.compile(r"\*\*(Table \d+)\.\*\*|^\*(Figure \d+)\.")


def check(root: Path) -> int:
    """The number of lines of `report.md` of the checkout `root`, each of which follows from
    `report/results`; `ArtefactError` names the first that does not, or what is missing.
    """
    given, made = _lines(root / "report.md"), rendered(root).splitlines()
    by_shape, known = {NUMBER.sub("#", line): line for line in made}, set(made)
    differ = [n for n, line in enumerate(given) if line not in known]
    numbers = [n for n in differ if NUMBER.sub("#", given[n]) in by_shape]
    if numbers:
        n = numbers[0]
        ours = by_shape[NUMBER.sub("#", given[n])]
        pairs = zip(NUMBER.findall(given[n]), NUMBER.findall(ours), strict=True)
        shown, right = next((a, b) for a, b in pairs if a != b)
        raise ArtefactError(
            f"report.md, line {n + 1}, says {shown} where {_source(given, n)} says {right} "
            f"({len(numbers)} such lines); write the report again: python -m suite report --publish"
        )
    if differ or given != made:
        where = f", line {differ[0] + 1}" if differ else ""
        raise ArtefactError(
            f"report.md{where}, is not what this version's template makes of report/results; "
            "write the report again: python -m suite report --publish"
        )
    return len(given)


def rendered(root: Path) -> str:
    """`report.md` from the published settings and results alone."""
    folder = root / "report"
    settings = published_settings(folder / SETTINGS)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(settings, Path(scratch), {}, reading=True)
        for part in ("results", "figures"):
            shutil.copytree(folder / part, run.folder / part)
        return publish.in_repository(render.markdown(run))


def published_settings(path: Path) -> Settings:
    _lines(path)
    try:
        return Settings.model_validate(read_yaml(path))
    except ValueError as error:
        raise ArtefactError(
            f"{path} holds settings of another version ({str(error).splitlines()[0]}); publish "
            "the report again: python -m suite report --publish"
        ) from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path} cannot be read ({type(error).__name__}); publish a report first: "
            "python -m suite report --publish"
        ) from None


def _source(lines: list[str], at: int) -> str:
    """The results files that the provenance names for the table or figure at or above a line."""
    named = (NUMBERED.search(line) for line in reversed(lines[: at + 1]))
    number = next((m[1] or m[2] for m in named if m), "")
    row = re.search(rf"(?m)^\| {number}".replace(" ", "[ \u00a0]") + r" \|.*", "\n".join(lines))
    files = re.findall(r"`(\w+\.json)`", row[0]) if number and row else []
    return " and ".join(f"report/results/{name}" for name in files) or "report/results"
