"""Pages of features as HTML without a script, for exports and outputs that have no kernel.

Their template is `static.html.j2`, which escapes whatever comes from the corpus.
"""

from collections.abc import Iterable
from pathlib import Path

from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader

from sae_lib.figures import NO_MATHEMATICS
from sae_lib.formats import decimal
from sae_lib.text.display import SIGNS, isolated, plain
from suite.close_reading import in_full
from suite.runs import Run
from suite.table import FeatureTable, open_table

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.globals |= {
    "NO_MATHEMATICS": NO_MATHEMATICS,
    "LINE_END": SIGNS["\n"],
    "decimal": decimal,
    "isolated": isolated,
    "plain": plain,
    "zip": zip,
}
TEMPLATE = ENVIRONMENT.get_template("static.html.j2").module


def static(run: Run, features: Iterable[int], name: str = "", examples: int | None = None) -> HTML:
    """The pages of a few features as HTML that needs no kernel.

    `examples` limits the strongest shown of each and leaves out those over the range.
    """
    return HTML(static_html(open_table(run, name), features, examples))


def static_html(table: FeatureTable, features: Iterable[int], examples: int | None = None) -> str:
    """Several are a strip of which one at a time is open, the first to begin with."""
    pages, numbers = [], list(map(int, features))
    group = f"{table.kind}s {numbers}" if len(numbers) > 1 else ""
    for number in numbers:
        strongest = table.strongest(number)[:examples].itertuples()
        sampled = table.sampled(number)[::-1].itertuples() if examples is None else ()
        known = in_full(table, number)
        known |= {"mean_active": float(table.features["mean_active"].iloc[number])}
        page = TEMPLATE.feature(table, known, strongest, sampled)
        pages.append(TEMPLATE.folded(known, page, group, not pages) if group else page)
    return TEMPLATE.boxed(pages)
