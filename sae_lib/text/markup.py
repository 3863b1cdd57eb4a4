"""Text of others inside Markdown: shown as it is, never obeyed. And tables that stay tables."""

import base64
import re
import xml.etree.ElementTree as etree
from collections.abc import Sequence
from html import escape
from pathlib import Path

import markdown
from markdown.extensions import Extension
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
    return "".join(
        part if i % 2 else plain(part)
        for i, part in enumerate(re.split(r"( ?`[\w.]+`[ ,]?)", text))
    )


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
    return "\n".join(
        "| " + " | ".join(str(c).replace("\n", " ") for c in row) + " |"
        for row in (header, rule, *rows)
    )


def inert_html(text: str, folder: Path, inline: bool = True) -> tuple[str, str]:
    """(body, contents) of Markdown as HTML in which nothing can run, whatever the text.

    Pictures come from `folder`/figures: `inline` they are data URIs, else paths.
    """
    md = markdown.Markdown(
        extensions=["tables", "fenced_code", "sane_lists", "toc", Inert(folder, inline)],
        extension_configs={"toc": {"toc_depth": "2-2"}},
    )
    return md.convert(text), md.toc


class Inert(Extension):
    """Raw HTML is shown, not obeyed; links lead to the web, to a place in the page or to a figure;
    pictures become data URIs.
    """

    def __init__(self, folder: Path, inline: bool):
        super().__init__()
        self.folder, self.inline = folder, inline

    def extendMarkdown(self, md):  # noqa: N802 (the package's own name)
        md.preprocessors.deregister("html_block")
        for name in ("html", "autolink", "automail"):
            md.inlinePatterns.deregister(name)
        md.treeprocessors.register(_Links(md, self.folder, self.inline), "links", 0)


class _Links(Treeprocessor):
    def __init__(self, md, folder: Path, inline: bool):
        super().__init__(md)
        self.folder, self.inline = folder, inline

    def run(self, root):
        for element in root.iter():
            href = element.get("href")
            if href is not None and not re.match(r"(https?://|#|figures/)", href):
                del element.attrib["href"]
            if element.tag == "img":
                self.picture(element)
        for parent in list(root.iter()):
            for child in [c for c in parent if c.tag == "table"]:
                self.wrap(parent, child)

    def picture(self, image) -> None:
        """The picture, or its path; a path out of the figures' folder is dropped."""
        path = self.folder / image.get("src", "")
        if not path.is_file() or (self.folder / "figures").resolve() not in path.resolve().parents:
            image.set("src", "data:,")
        elif self.inline:
            data = base64.b64encode(path.read_bytes()).decode()
            image.set("src", f"data:image/png;base64,{data}")

    def wrap(self, parent, table) -> None:
        """A wide table scrolls by itself instead of widening the page."""
        box = etree.Element("div", {"class": "table"})
        box.tail, table.tail = table.tail, None
        parent[list(parent).index(table)] = box
        box.append(table)
