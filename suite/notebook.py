"""What every notebook's set-up cell needs: the run, and a line of versions."""

import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML, display
from transformers.utils.logging import disable_progress_bar

from sae_lib import figures  # sets the plotly look and renderer
from sae_lib.formats import decimal
from suite import project, stages
from suite.inert import inert_html
from suite.markup import code
from suite.runs import Run

for option in ("display.html.use_mathjax", "styler.html.mathjax"):
    pd.set_option(option, False)  # text in tables is text
pd.set_option("display.float_format", decimal)


def start(profile: str, run_dir: str = "", overrides: list[str] | None = None) -> Run:
    """Open the run and show versions, device and folder. In JupyterLab, too, paths are relative
    to the repository.
    """
    if (root := project.find()) and Path.cwd() == root / "notebooks":
        os.chdir(root)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if profile != "runpod":  # small models are read at once
        disable_progress_bar()
    run = stages.open_run(profile, run_dir, overrides or [])
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens")
    )
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    say(
        f"Python {platform.python_version()}, {packages} · {where} · profile {code(profile)} · run "
        f"folder {code(run.folder, False)}"
    )
    return run


def say(text: str) -> None:
    """Show Markdown in which nothing runs, whatever it holds, and no dollar sign begins
    mathematics.

    So that text of others also reads as what it is, put it through `markup.code`, `plain` or
    `block`.
    """
    body, _ = inert_html(text, Path.cwd())
    display(HTML(f'<div class="{figures.NO_MATHEMATICS}">{body}</div>'))
