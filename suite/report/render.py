"""`report.md` from the template: figures and tables are numbered and remembered, so that the
appendix can trace each of them.
"""

import re
import shlex
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined, UndefinedError

from sae_lib import formats
from sae_lib.errors import ArtefactError
from suite import toy_check
from suite.markup import block, code, plain, prose, span
from suite.report import content
from suite.runs import Run

FORMATS = "count number exact percent nats small millions duration gib signed".split()
FENCED_OR_BLANK = re.compile(
    r"^(?P<fenced>(`{3,})[^\n]*\n.*?^\2)$|[ \t]+$|\n([ \t]*\n){2,}", re.MULTILINE | re.DOTALL
)


def markdown(run: Run) -> str:
    """The report of a run as Markdown, from its results alone."""
    values, folder = content.context(run), run.root / "figures"
    full_figures = toy_check.copy_published_figures(folder)
    values |= {
        "full_figures": full_figures,
        "drawn": {path.stem for path in folder.glob("*.png")},
        "known": {"figures": []},
    }
    template = _environment().get_template("template.md.j2")
    try:
        for _ in range(2):  # the second time, the text knows the numbers of all figures
            values["numbered"] = {"figures": [], "tables": []}
            text = template.render(values, this=values)
            values["known"] = values["numbered"]
    except (UndefinedError, KeyError) as error:
        raise ArtefactError(
            f"no report: a results file of {run.folder / 'results'} lacks a value ({error}); it "
            "was made by another version: run its notebook again"
        ) from None
    return tidy(text)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {name: _typeset(getattr(formats, name)) for name in FORMATS}
    filters |= {
        "plain": plain,
        "prose": prose,
        "code": code,
        "block": block,
        "span": span,
        "shell": shlex.quote,
        "python": repr,
        "written": lambda value, format: _typeset(getattr(formats, format))(value),
        "notebook": lambda name: content.NOTEBOOK_OF.get(name, "the run itself"),
    }
    environment.filters |= {name: _of_defined(made) for name, made in filters.items()}
    return environment


def _typeset(write: Callable[..., str]) -> Callable[..., str]:
    """The same with a minus sign for a hyphen, as in print."""
    return lambda *given: write(*given).replace("-", "\N{MINUS SIGN}")


def _of_defined(made: Callable[..., str]) -> Callable[..., str]:
    """A filter that no value can pass which the results do not have."""

    def checked(value: Any, *more: Any) -> str:
        if isinstance(value, Undefined):
            str(value)  # StrictUndefined raises, and names it
        return made(value, *more)

    return checked


def tidy(text: str) -> str:
    """At most one blank line in a row and no blanks at the end of a line, outside of fenced
    blocks.
    """

    def tidied(found: re.Match) -> str:
        return found["fenced"] or ("\n\n" if "\n" in found[0] else "")

    return FENCED_OR_BLANK.sub(tidied, text).strip("\n") + "\n"
