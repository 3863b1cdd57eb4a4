"""`report.md` from the template: figures and tables are numbered and remembered, so that the
appendix can trace each of them.
"""

import shlex
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    Undefined,
    UndefinedError,
)

from sae_lib import formats as f
from sae_lib.errors import ArtefactError
from sae_lib.text.markup import block, code, plain, prose, table
from suite import toy_check
from suite.browser import close_reading
from suite.report import content, feature_tables, tables
from suite.runs import Run

TOY_PARTS = (
    ("Five features in two dimensions", "introduction"),
    ("Phases", "phases"),
    ("Geometry", "geometry"),
    ("Neurons", "neurons"),
    ("An autoencoder with a known answer", "autoencoder"),
)
TOY_FIGURES = (
    ("toy_introduction", "Five features in two dimensions, from dense to rare."),
    (
        "toy_weights_and_norms",
        "Twenty features in five dimensions: interference, and which features are represented.",
    ),
    (
        "toy_phase_diagram",
        "Phases: an extra feature ignored, given a dimension, or stored in superposition.",
    ),
    ("toy_plateaus", "Dimensions per feature stick at the fractions of regular figures."),
    ("toy_correlated", "Correlated and anti-correlated features."),
    (
        "toy_absolute_value_large",
        "Neurons computing absolute values for more features than there are neurons.",
    ),
    ("toy_five_cases", "The five cases of unequal density."),
    (
        "toy_autoencoder",
        "Autoencoders on the toy model, with and without resampling: which true directions they "
        "find.",
    ),
    ("toy_shrinkage", "Shrinkage by the L1 penalty."),
)

BOUND = {
    "main_table": tables.main_table,
    "width_table": tables.width_table,
    "resampling_table": tables.resampling_table,
    "last_table": tables.last_table,
    "recipes_study_table": tables.recipes_study_table,
    "saelens_table": tables.saelens_table,
    "widths_study_table": tables.widths_study_table,
    "rates_tried": tables.rates_tried,
    "rules_table": feature_tables.rules_table,
    "rules_compared": feature_tables.rules_compared,
    "explanation_table": feature_tables.explanation_table,
    "clamping_table": feature_tables.clamping_table,
    "clamping_ablation_table": feature_tables.clamping_ablation_table,
}


class Registry:
    """Numbers figures and tables as the template meets them, and remembers what each was made
    from.
    """

    def __init__(self, figures: Path):
        self.folder, self.figures, self.tables = figures, [], []

    def figure(self, name: str, caption: str, results: str) -> str:
        """The picture with its caption, nothing where it was not made."""
        if not (self.folder / f"{name}.png").exists():
            return ""
        number = len(self.figures) + 1
        self.figures.append((f"Figure {number}", f"`figures/{name}.png`", results))
        label = f"Figure {number}. {plain(caption)}"
        return f"![{label}](figures/{name}.png)\n\n*{label}*"

    def table(self, caption: str, results: str, numbered: Any = None) -> str:
        self.tables.append(
            (
                f"Table {len(self.tables) + 1}",
                plain(caption.partition(":")[0].partition(".")[0]),
                results,
            )
        )
        return f"**Table {len(self.tables)}.** {caption}"

    def traceability(self) -> str:
        rows = []
        for what, shown, results in self.tables + self.figures:
            names = results.split(", ")
            rows.append(
                [
                    what.replace(" ", "\u00a0"),
                    shown,
                    ", ".join(f"`{n}.json`" for n in names),
                    ", ".join(
                        dict.fromkeys(content.NOTEBOOK_OF.get(n, "the run itself") for n in names)
                    ),
                ]
            )
        return table(["", "", "results/", "Notebook"], rows, left=4)


def markdown(run: Run) -> str:
    """The report of a run as Markdown, from its results alone."""
    values = content.context(run)
    registry = Registry((run.parent or run).folder / "figures")
    try:
        text = _template().render(
            values,
            this=values,
            prompts_of=(values["activations"] or {}).get("prompts"),
            toy_parts=TOY_PARTS,
            toy_figures=TOY_FIGURES,
            full_figures=toy_check.copy_published_figures(run.folder / "figures"),
            tab=registry.table,
            figure=registry.figure,
            traceability=registry.traceability,
            missing=missing,
            record=tables.record_table,
            times=times,
            prompt_table=prompt_table,
            rows_table=rows_table,
            gate_table=gate_table,
            kind_table=tables.kind_table,
            length_table=tables.length_table,
            event_table=tables.event_table,
            original_table=original_table,
            compared=lambda one, other: tables.compared(values, one, other),
            read_closely=lambda entry: feature_tables.read_closely(values, entry),
            **{name: (lambda make=make: make(values)) for name, make in BOUND.items()},
        )
    except (UndefinedError, KeyError) as error:
        raise ArtefactError(
            f"no report: a results file of {run.folder / 'results'} lacks a value ({error}); it "
            "was made by another version: run its notebook again"
        ) from None
    return tidy(text)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = [
        getattr(f, name)
        for name in (
            "count",
            "number",
            "exact",
            "percent",
            "nats",
            "small",
            "millions",
            "duration",
            "gib",
        )
    ]
    named = {made.__name__: made for made in (*filters, plain, prose, code, block, gallery)} | {
        "shell": shlex.quote,
        "python": repr,
    }
    environment.filters |= {name: _of_defined(made) for name, made in named.items()}
    return environment.get_template("template.md.j2")


def _of_defined(made: Callable[..., str]) -> Callable[..., str]:
    """A filter that no value can pass which the results do not have."""

    def checked(value: Any, *more: Any) -> str:
        if isinstance(value, Undefined):
            str(value)  # StrictUndefined raises, and names it
        return made(value, *more)

    return checked


def missing(name: str) -> str:
    """One sentence for a section whose results are not there."""
    notebook = content.NOTEBOOK_OF[name]
    return (
        f"*Notebook `{notebook}` has not run, or did not finish, so this part of the report is "
        f"missing (`python -m suite run --only {notebook[:2]}` makes it).*"
    )


def gallery(entry: dict[str, Any], kind: str = "Feature") -> str:
    return close_reading.markdown(entry).replace("**Feature ", f"**{kind} ", 1)


def times(seconds: dict[str, float]) -> str:
    rows = [[f"`{name}`", f.duration(value)] for name, value in seconds.items()]
    return table(["Notebook", "Time"], [*rows, ["**all**", f.duration(sum(seconds.values()))]])


def prompt_table(prompts: dict[str, Any]) -> str:
    rows = []
    for name, part in prompts.items():
        rows.append(
            [
                name,
                f.count(part["texts"]),
                f.count(part["tokens"]),
                f.count(part["length_median"]),
                f.count(part["length_max"]),
                f.percent(part["active_share"]),
            ]
        )
    return table(["", "Texts", "Tokens", "Median length", "Longest", "Active neurons"], rows)


def rows_table(rows: list[dict[str, Any]]) -> str:
    return table(
        list(map(plain, rows[0])),
        [[plain(v) for v in row.values()] for row in rows],
        left=len(rows[0]),
    )


def gate_table(gates: list[dict[str, Any]]) -> str:
    """Expected outcomes and what was measured."""
    rows = []
    for g in gates:
        measured = g["measured"] if isinstance(g["measured"], list) else [g["measured"]]
        rows.append(
            [
                plain(g["experiment"]),
                plain(g["what"]),
                ", ".join(f.small(x) for x in measured),
                plain(g["expected"]),
                "yes" if g["passed"] else "**no**",
            ]
        )
    return table(["Experiment", "What", "Measured", "Expected", "Came out"], rows, left=5)


def original_table() -> str:
    facts = content.ORIGINAL["facts"]
    return table(
        ["Fact", "Value", "Source in its repository"],
        [[plain(v["what"]), f.exact(v["value"]), plain(v["source"])] for v in facts.values()],
        left=3,
    )


def tidy(text: str) -> str:
    """At most one blank line in a row, outside of fenced blocks."""
    lines, fence = [], ""
    for line in text.split("\n"):
        line = line if fence else line.rstrip()
        if not fence and line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
        elif fence and line.rstrip() == fence:
            fence = ""
        if line or fence or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n") + "\n"
