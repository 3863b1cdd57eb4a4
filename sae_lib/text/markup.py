"""Text of others inside Markdown: shown as it is, never obeyed. And tables that stay tables."""

import base64
import re
import xml.etree.ElementTree as etree
from collections.abc import Sequence
from html import escape
from pathlib import Path

import markdown
from markdown.treeprocessors import Treeprocessor

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
    parts = re.split(r"( ?`[\w.]+`[ ,]?)", text)
    return "".join(part if i % 2 else plain(part) for i, part in enumerate(parts))


def code(text: object, every_blank: bool = True) -> str:
    """A code span for text from the corpus, its line ends visible and, where asked, every blank."""
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


def table(header: Sequence[object], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are flush left, the others right. Cells are
    Markdown already.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {row} has {len(row)} cells, the table {len(header)} columns")
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    lines = (" | ".join(map(str, row)).replace("\n", " ") for row in (header, rule, *rows))
    return "\n".join(f"| {line} |" for line in lines)


def inert_html(text: str, folder: Path, inline: bool = True) -> tuple[str, str]:
    """(body, contents) of Markdown as HTML in which nothing can run, whatever the text: raw HTML is
    shown, not obeyed; links lead to the web, to a place in the page or to a figure.

    Pictures come from `folder`/figures: `inline` they are data URIs, else paths.
    """
    md = markdown.Markdown(
        extensions=["tables", "fenced_code", "sane_lists", "toc"],
        extension_configs={"toc": {"toc_depth": "2-2"}},
    )
    md.preprocessors.deregister("html_block")
    for name in ("html", "autolink", "automail"):
        md.inlinePatterns.deregister(name)
    md.treeprocessors.register(_Links(folder, inline), "links", 0)
    return md.convert(text), md.toc


class _Links(Treeprocessor):
    def __init__(self, folder: Path, inline: bool):
        self.folder, self.inline = folder, inline

    def run(self, root):
        for element in list(root.iter()):
            if not re.match(r"(https?://|#|figures/)", element.get("href", "#")):
                del element.attrib["href"]
            if element.tag == "img":
                element.set("src", self.picture(element.get("src", "")))
            for i, table in enumerate(element):
                if table.tag == "table":  # a wide one scrolls by itself and widens no page
                    element[i] = etree.Element("div", {"class": "table"})
                    element[i].tail, table.tail = table.tail, None
                    element[i].append(table)

    def picture(self, source: str) -> str:
        """The picture, or its path; nothing for a path out of the figures' folder."""
        path = self.folder / source
        if not path.is_file() or (self.folder / "figures").resolve() not in path.resolve().parents:
            return "data:,"
        data = base64.b64encode(path.read_bytes()).decode()
        return f"data:image/png;base64,{data}" if self.inline else source
