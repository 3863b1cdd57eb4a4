"""The report as the repository keeps it: `report.md`, with its figures and results beside it in
`report/`.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from sae_lib.errors import ArtefactError
from suite import project
from suite.runs import Run, write_atomically

LARGEST = 3_000_000  # bytes, report, figures and results together
LINK = re.compile(r"\]\(([^()\s]+)\)")


def links(text: str) -> list[str]:
    """The targets of links and pictures, outside of code."""
    return LINK.findall(re.sub(r"(?s)(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text))


def publish(run: Run, root: Path) -> Path:
    """Copy the written report to `root`; refuses before it has changed anything."""
    source = run.folder / "report.md"
    text = source.read_text(encoding="utf-8")
    figures = sorted({link for link in links(text) if not re.match(r"https?://|#", link)})
    for link in figures:
        path = run.folder / link
        if not link.startswith("figures/") or ".." in link or not path.is_file():
            raise ArtefactError(
                f"{source} has a broken link, {link}: nothing was published; write the report "
                "again, or run the notebook that makes that figure"
            )
    results = sorted(run.results_folder.glob("*.json"))
    published = re.sub(r"\]\(figures/", "](report/figures/", text)
    files = (
        {"report.md": published.encode()}
        | {f"report/{name}": (run.folder / name).read_bytes() for name in figures}
        | {f"report/results/{p.name}": p.read_bytes() for p in results}
    )
    sizes = {name: len(data) for name, data in files.items()}
    if (total := sum(sizes.values())) > LARGEST:
        largest = ", ".join(
            f"{name} {size / 1e6:.2f} MB"
            for name, size in sorted(sizes.items(), key=lambda x: -x[1])[:3]
        )
        raise ArtefactError(
            f"the report is {total / 1e6:.2f} MB with its figures and results, the limit for "
            f"publishing is {LARGEST / 1e6:.0f} MB (largest: {largest}); nothing was published"
        )
    for name, data in files.items():
        if name.endswith((".md", ".json")) and (found := own_path(data.decode(), run)):
            raise ArtefactError(
                f"{name} holds a path of this machine, {found}: nothing was published; give paths "
                "relative to the repository and run again"
            )
    for folder in ("figures", "results"):
        shutil.rmtree(root / "report" / folder, ignore_errors=True)
    for name, data in files.items():
        write_atomically(root / name, data)
    return root / "report.md"


def own_path(text: str, run: Run) -> str | None:
    """The first absolute path in `text` that is this machine's own. Paths in general may stand
    there: the corpus is full of them.
    """
    own = {
        str(p)
        for p in (
            run.folder.resolve(),
            project.find() or Path.cwd(),
            Path.cwd(),
            Path.home(),
            Path(sys.prefix),
        )
    } | set(_in_settings(run.settings.model_dump(mode="json")))
    for path in sorted(own, key=len, reverse=True):
        if len(path) > 3 and re.search(rf"(?<![\w./]){re.escape(path)}(?![\w.-])", text):
            return path
    return None


def _in_settings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [p for v in value.values() for p in _in_settings(v)]
    path = value.removeprefix("files:") if isinstance(value, str) else ""
    return [path] if os.path.isabs(path) or re.match(r"[A-Za-z]:[\\/]", path) else []
