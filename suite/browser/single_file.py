"""`browser.html`: all features, their search, and the model itself in one file that opens from
disk.

The page's module (see `suite.browser`) and its blocks lie in the file, the blocks deflated, as
base64; they are inflated when the page asks for them. The Content-Security-Policy allows this one
script by its hash, a Worker of its text, and no connection.
"""

import html
import zlib
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from string import Template

from sae_lib.progress import tqdm
from suite.browser.blocks import APP, Blocks, about, heldout, module, origins, rated_tables
from suite.browser.page_model import model_block, why_not
from suite.browser.table import open_table
from suite.runs import Run, write_atomically

LIMITS = 10, 1  # true top examples of each feature; examples of each tenth of its range


def write_browser(run: Run, name: str = "") -> Path:
    """Write `browser.html` for the run's recipe, `browser_<name>.html` for another autoencoder or
    "neurons".

    What it needs is made first.
    """
    table, tokenizer = open_table(run, name), run.get("tokens").tokenizer
    dictionary, model = run.get("dictionary", name), run.get("language_model")
    reason, extra, rows = why_not(model, tokenizer), {}, None
    if not reason:
        inside = model_block(model, dictionary, run.settings.sae.hook_name, tokenizer)
        extra, rows = {"model": inside}, heldout(run)
    rated = dict if table.kind != "feature" else lambda: rated_tables(run, name)
    said = about(run, name, table) | {"no_model": reason}
    blocks = Blocks(table, said, rows, rated, origins(run), LIMITS, extra)
    own = name in ("", run.settings.sae.recipe)
    path = run.folder / ("browser.html" if own else f"browser_{name}.html")
    write_atomically(path, page_text(blocks, tqdm(list(blocks.names()), desc=path.name)))
    return path


def page_text(blocks: Blocks, names: Iterable[str]) -> str:
    """The whole file."""
    script = f"{module()}\nmount_file();\n"
    style = "body { margin: 0 } main { height: 100dvh }"
    data = [
        f'<script type="text/plain" id="{name}">{packed(blocks(name))}</script>' for name in names
    ]
    return Template((APP / "page.html").read_text()).substitute(
        title=html.escape(blocks.about["title"]),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src-elem {_hash(style)}; "
        "style-src-attr 'unsafe-inline'; worker-src blob:; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        blocks="\n".join(data),
    )


def packed(content: bytes) -> str:
    """Deflated, as base64: the page inflates it with the browser's own DecompressionStream."""
    return b64encode(zlib.compress(content, 9)).decode()


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
