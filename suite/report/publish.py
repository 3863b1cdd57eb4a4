"""The report as the repository keeps it: `report.md` and `report.pdf`, with figures and results
beside them in `report/`.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from sae_lib.errors import ArtefactError
from suite import project
from suite.report import pages
from suite.runs import SETTINGS, Run, write_atomically

LARGEST = 4_000_000  # bytes, report, its PDF, figures and results together
LINK = re.compile(r"(?<!\\)\]\(([^()\s]+)\)")


def in_repository(text: str) -> str:
    """The report's text with its figures where the repository keeps them."""
    return re.sub(r"\]\(figures/", "](report/figures/", text)


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
    files = {"report.md": in_repository(text).encode()}
    files[f"report/{SETTINGS}"] = (run.folder / SETTINGS).read_bytes()
    if (paper := source.with_suffix(".pdf")).is_file():
        files["report.pdf"] = paper.read_bytes()
    files |= {f"report/{name}": pages.smaller((run.folder / name).read_bytes()) for name in figures}
    for path in sorted(run.results_folder.glob("*.json")):
        files[f"report/results/{path.name}"] = path.read_bytes()
    if (total := sum(map(len, files.values()))) > LARGEST:
        largest = sorted(files, key=lambda name: -len(files[name]))[:3]
        named = ", ".join(f"{name} {len(files[name]) / 1e6:.2f} MB" for name in largest)
        raise ArtefactError(
            f"the report is {total / 1e6:.2f} MB with its figures and results, the limit for "
            f"publishing is {LARGEST / 1e6:.0f} MB (largest: {named}); nothing was published"
        )
    for name, data in files.items():
        if name.endswith((".md", ".json", ".yaml")) and (found := own_path(data.decode(), run)):
            raise ArtefactError(
                f"{name} holds a path of this machine, {found}: nothing was published; give paths "
                "relative to the repository and run again"
            )
    for folder in ("figures", "results"):
        shutil.rmtree(root / "report" / folder, ignore_errors=True)
    (root / "report.pdf").unlink(missing_ok=True)  # where there is none now, none of before stays
    for name, data in files.items():
        write_atomically(root / name, data)
    return root / "report.md"


def own_path(text: str, run: Run) -> str | None:
    """The first absolute path in `text` that is this machine's own. Others may be there: the corpus
    is full of them.
    """
    here, settings = (
        Path.cwd(),
        json.dumps(run.settings.model_dump(mode="json"), ensure_ascii=False),
    )
    places = (run.folder.resolve(), project.find() or here, here, Path.home(), Path(sys.prefix))
    given = re.findall(r'"(?:files:)?((?:/|[A-Za-z]:[\\/])[^"]*)"', settings)
    for path in sorted({*map(str, places), *given}, key=len, reverse=True):
        if len(path) > 3 and re.search(rf"(?<![\w./]){re.escape(path)}(?![\w.-])", text):
            return path
    return None
