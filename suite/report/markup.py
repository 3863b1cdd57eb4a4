"""Text of others inside Markdown: shown as it is, never obeyed. And tables that stay tables."""

import re
from collections.abc import Sequence

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;"}


def plain(value: object) -> str:
    """Any text as one line of Markdown that shows exactly that text: no emphasis, link, HTML or table cell can come of it."""
    text = " ".join(str(value).split())
    text = re.sub(r"[&<>~]", lambda m: ENTITIES[m[0]], text)
    text = re.sub(r"([\\`*\[\]|])|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[#+-]))", r"\1\\", text)


def prose(text: str) -> str:
    """`plain`, but names in backticks stay code: for sentences of our own that the results quote."""
    return "".join(
        part if i % 2 else plain(part)
        for i, part in enumerate(re.split(r"( ?`[\w.]+`[ ,]?)", text))
    )


def code(text: object, every_blank: bool = True) -> str:
    """A code span for text from the corpus, its line ends visible and, where asked, every blank."""
    from sae_lib.text.display import plain as visible
    from suite.browser.random_draw import code as span

    return span(visible(str(text), every_blank=every_blank))


def block(text: str) -> str:
    """A fenced block that nothing inside can close; control and direction marks become signs."""
    from sae_lib.text.display import plain as visible

    shown = re.sub("[^ \n]+", lambda m: visible(m[0]), text).rstrip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}\n{shown}\n{fence}"


def table(header: Sequence[object], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are flush left, the others right. Cells are Markdown already."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {row} has {len(row)} cells, the table {len(header)} columns")
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(str(c).replace("\n", " ") for c in row) + " |"
        for row in (header, rule, *rows)
    )
