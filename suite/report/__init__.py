"""The report of a run: Markdown, HTML and PDF from `results/*.json`, and its copy in the repository."""

from pathlib import Path

from suite import locks, studies, study_figures
from suite.report import content, pages, publish, render
from suite.runs import Run, write_atomically

__all__ = ["publish_report", "write_report"]


def write_report(run: Run) -> Path:
    """Write `report.md`, `report.html` and, where Chromium is there, `report.pdf` into the run folder; returns the Markdown's path.

    `ArtefactError` where a result is missing that the report stands on; other missing results are said in their section.
    """
    with locks.locked(run.root):
        return _write(run)


def _write(run: Run) -> Path:
    content.load(run)  # so that what is missing or damaged is said before anything is drawn
    path, page = run.folder / "report.md", run.folder / "report.html"
    for name, fig in study_figures.drawn(
        {which: studies.found(run, which) for which in studies.STUDIES}
    ).items():
        run.figure(fig, name)
    text = render.markdown(run)
    write_atomically(path, text)
    write_atomically(page, pages.html(text, run.folder))
    pages.pdf(page, run.folder / "report.pdf")
    return path


def publish_report(run: Run, root: Path = publish.ROOT) -> Path:
    """Write the report and copy it to `report.md`, `report/figures` and `report/results` of the repository.

    `ArtefactError`, with nothing changed, where that would be over 3 MB, has a broken link, or holds a path of this machine.
    """
    write_report(run)
    return publish.publish(run, root)
