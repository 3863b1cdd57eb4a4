"""Markdown as HTML in which nothing can run, whatever the text."""

import base64
import re
from pathlib import Path

import markdown
from markdown.treeprocessors import Treeprocessor


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

    def picture(self, source: str) -> str:
        """The picture, or its path; nothing for a path out of the figures' folder."""
        path = self.folder / source
        if not path.is_file() or (self.folder / "figures").resolve() not in path.resolve().parents:
            return "data:,"
        data = base64.b64encode(path.read_bytes()).decode()
        return f"data:image/png;base64,{data}" if self.inline else source
