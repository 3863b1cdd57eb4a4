"""The report of a run: Markdown, HTML and PDF from `results/*.json`, and its copy in the
repository.
"""

import logging
from pathlib import Path

import plotly.graph_objects as go
import typst

from suite import deviations_views, locks, project, sanity_views, study_figures, verify
from suite.report import content, pages, publish, render
from suite.report.first_figure import named_densities
from suite.runs import Run, write_atomically

log = logging.getLogger(__name__)
__all__ = ["publish_report", "write_report"]


def write_report(run: Run) -> Path:
    """Write `report.md`, `report.html` and `report.pdf` into the run folder; returns the Markdown's
    path.

    `ArtefactError` where a result is missing that the report needs; other missing results are
    said in their section.
    """
    with locks.locked(run.root):
        return _write(run)


def _write(run: Run) -> Path:
    results = content.load(run)  # what is missing or damaged is said before anything is drawn
    path = run.folder / "report.md"
    studies = study_figures.load_studies(run)
    figures = of_studies(studies)
    if results["gallery"]:
        main = run.settings.sae.recipe
        figures["density_named"] = named_densities(results["evaluation"], main, results["gallery"])
    for name, fig in figures.items():
        if fig is not None:
            run.figure(fig, name)
    text = render.markdown(run)
    write_atomically(path, text)
    write_atomically(path.with_suffix(".html"), pages.html(text, run.folder))
    try:
        write_atomically(path.with_suffix(".pdf"), pages.pdf(text, run.folder))
    except typst.TypstError as error:
        path.with_suffix(".pdf").unlink(missing_ok=True)
        log.warning("no report.pdf: %s", error.message)
    return path


def of_studies(studies: dict[str, dict | None]) -> dict[str, go.Figure]:
    """The figure of every study that is there and has one, by its name in the report."""
    more = {
        "sanity": sanity_views.figure,
        "deviations": deviations_views.figure,
        "full_budget": deviations_views.full_figure,
    }
    drawn = {f"study_{of}": draw(studies[of]) for of, draw in more.items() if studies[of]}
    return study_figures.study_figures(studies) | drawn


def publish_report(run: Run, root: Path | None = None) -> Path:
    """Write the report and copy it to `report.md`, `report/figures` and `report/results` of the
    checkout, or of `root`; and the weights that `verify` needs to `report/weights`.

    `ArtefactError`, with nothing changed, where that would be over 3 MB, has a broken link, or
    holds a path of this machine.
    """
    root = root or project.root()
    write_report(run)
    path = publish.publish(run, root)
    if (run.folder / "language_model").is_dir():
        verify.publish_weights(run, root)
    return path
