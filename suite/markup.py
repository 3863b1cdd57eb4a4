"""Text of others inside Markdown: shown as it is, never obeyed."""

import re
from html import escape

from sae_lib.text.display import isolated
from sae_lib.text.display import plain as visible

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;"}


def plain(value: object) -> str:
    """Any text as one line of Markdown that shows exactly that text: no emphasis, link, HTML or
    table cell can come of it.
    """
    text = isolated(visible(" ".join(str(value).split())))
    text = re.sub(r"[&<>~]", lambda m: ENTITIES[m[0]], text)
    text = re.sub(r"([\\`*\[\]|])|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[#+-]))", r"\1\\", text)


def prose(text: str) -> str:
    """`plain`, but names in backticks stay code: for our own sentences that the results quote."""
    parts = re.split(r"( ?`[\w.]+`,? ?)", text)
    return "".join(part if i % 2 else plain(part) for i, part in enumerate(parts))


def code(text: object, every_blank: bool = True) -> str:
    """A code span for text from the corpus, with visible line ends and, by default, blanks."""
    return span(visible(str(text), every_blank=every_blank))


def span(text: str) -> str:
    """A code span that shows `text` and nothing else, whatever it contains; empty for no text.
    Renderers cut blanks at its ends: they become ·.
    """
    if not text:
        return ""
    text = isolated(re.sub("^ | $", "·", text))
    fence = _fence(text, 1)
    padding = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def label(text: str, length: int = 1000) -> str:
    """Text for a label of plotly, which reads some HTML and, between dollar signs, mathematics:
    cut, and neither of them.
    """
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return escape(isolated(visible(cut)), quote=False).replace("$", "&#36;")


def block(text: str) -> str:
    """A fenced block that nothing inside can close; control and direction marks become signs."""
    shown = re.sub("[^ \n]+", lambda m: visible(m[0]), text).rstrip("\n")
    fence = _fence(shown, 3)
    return f"{fence}\n{shown}\n{fence}"


def _fence(text: str, least: int) -> str:
    """Backticks that nothing in the text can close."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)
