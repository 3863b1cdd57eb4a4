"""Feature pages and lists as HTML, from one template; whatever comes from the corpus is escaped there."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sae_lib.browser.table import FeatureTable, open_table
from sae_lib.runs import Run
from sae_lib.visible import isolated, pieces

DARKEST = 0.62  # opacity of the strongest colour: text stays readable on it, on white and on black


def static(run: Run, features: Iterable[int], name: str = "", examples: int | None = None) -> HTML:
    """A list and the pages of a few features as HTML that needs no kernel; `examples` limits the strongest shown of each and leaves out those over the range."""
    return HTML(static_html(open_table(run, name), features, examples))


def static_html(table: FeatureTable, features: Iterable[int], examples: int | None = None) -> str:
    features = [int(f) for f in features]
    rows, pages = (
        [table.row(f) for f in features],
        [table.page(f, examples, 0 if examples is not None else None) for f in features],
    )
    return str(template().static(table.kind, rows, pages))


def page_html(kind: str, page: dict[str, Any], links: bool = False) -> str:
    """A page of `FeatureTable.page`, without the style sheet."""
    return str(template().page(kind, page, links))


def style_html() -> str:
    return str(template().style())


def percent(share: float) -> str:
    """A share as `0.213 %`, three significant digits and never an exponent."""
    return f"{decimal(100 * share)} %"


def decimal(x: float) -> str:
    """Three significant digits, never an exponent; thousands apart by a thin space."""
    if x == 0 or abs(x) >= 100:
        return f"{x:,.0f}".replace(",", "\u2009")
    return np.format_float_positional(x, precision=3, fractional=False, trim="-")


def signed(x: float) -> str:
    """`decimal` with its sign: +0.31, -0.0021."""
    return ("-" if x < 0 else "+") + decimal(abs(x))


def shade(value: float, maximum: float) -> str:
    """Opacity of a token's colour; empty where the feature is silent."""
    return f"{DARKEST * min(1.0, value / maximum):.2f}" if value > 0 and maximum > 0 else ""


def bar(count: int, tallest: int) -> float:
    """Height of a bar of the histogram, out of 40, on a logarithmic scale: the few strong activations are what one looks for."""
    return round(40 * math.log1p(count) / math.log1p(tallest), 1) if tallest > 0 else 0.0


def tone(value: float, largest: float) -> str:
    """Opacity of a signed quantity's colour; empty where it is next to nothing."""
    return shade(abs(value), largest) if abs(value) > 0.02 * largest else ""


def template():
    """The template's macros, as functions."""
    return ENVIRONMENT.get_template("template.html").module


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
ENVIRONMENT.filters |= {
    "percent": percent,
    "decimal": decimal,
    "signed": signed,
    "pieces": pieces,
    "isolated": isolated,
}
ENVIRONMENT.globals |= {"shade": shade, "bar": bar, "tone": tone}
