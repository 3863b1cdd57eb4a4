"""`report.html`, one file that asks for nothing, and `report.pdf`, the same elements set by
typst.
"""

import io
import re
import tempfile
from html import escape
from pathlib import Path

import matplotlib
import typst
from PIL import Image, UnidentifiedImageError

from suite.inert import inert_html

STYLE = (Path(__file__).parent / "style.css").read_text()
PAPER = (Path(__file__).parent / "paper.typ").read_bytes()
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu; the others come with typst
NOT_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" 
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<nav>{contents}</nav>
<main>
{body}
</main>
</body>
</html>
"""


def html(text: str, folder: Path) -> str:
    """The report as one self-contained page; `folder` is where its `figures/` lie."""
    body, contents = inert_html(text, folder)
    return PAGE.format(title=escape(title(text)), style=STYLE, contents=contents, body=body)


def pdf(text: str, folder: Path) -> bytes:
    """The report typeset. Its elements are handed over as data, and typst reads copies of the
    folder's figures alone.
    """
    body, _ = inert_html(text, folder, inline=False)
    tree = re.sub(NOT_XML, "\N{REPLACEMENT CHARACTER}", f"<report>{body}</report>")
    inputs = {"report": tree, "title": title(text)}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "figures").mkdir()
        for path in folder.glob("figures/*.png"):
            (Path(scratch) / "figures" / path.name).write_bytes(smaller(path.read_bytes()))
        given = {"root": scratch, "font_paths": [FONTS], "sys_inputs": inputs}
        try:
            return typst.compile(PAPER, **given)
        except typst.TypstError:  # floats and page breaks may break its tags: typst/typst#8487
            return typst.compile(PAPER, pdf_tags=False, **given)


def smaller(png: bytes) -> bytes:
    """The picture in at most 64 colours, a quarter of its size; unreadable ones as they are."""
    try:
        picture, out = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    except (UnidentifiedImageError, OSError, ValueError):
        return png
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def title(text: str) -> str:
    lines = (line[2:] for line in text.splitlines() if line.startswith("# "))
    return next(lines, "report").replace("`", "")
