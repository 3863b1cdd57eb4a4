"""`browser.html`: all features, their search, and the model itself in one file that opens from disk with nothing installed.

Sources in `app/`: page.html and app.css, and the scripts that are joined in the order of `SCRIPTS`. Data lie in the page as deflated
base64: an index that is read at once, the pages in chunks that are inflated when somebody turns to them, the model when a text is
tried. The Content-Security-Policy allows this one script by its hash and no connection at all.
"""

import html
import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from string import Template

from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary, Neurons
from suite.browser import page, query
from suite.browser.single_file_data import (
    CHUNK,
    as_json,
    id_type,
    index,
    packed,
    pages,
    unicode_classes,
    with_binary,
)
from suite.browser.single_file_model import model_block, why_not
from suite.browser.table import SORTS, FeatureTable, open_table
from suite.browser.template_script import javascript
from suite.runs import Run, write_atomically

APP = Path(__file__).parent / "app"
SCRIPTS = (
    "text.js",
    "template.js",
    "data.js",
    "query.js",
    "tokenizer.js",
    "model.js",
    "app.js",
    "try.js",
)


def write_browser(run: Run, name: str = "") -> Path:
    """Write `browser.html` for the run's recipe, `browser_<name>.html` for another autoencoder or the "neurons"; what it needs is made first."""
    table, tokenizer = open_table(run, name), run.get("tokens").tokenizer
    dictionary = (
        Neurons(table.features.shape[0]) if name == "neurons" else run.get("autoencoder", name)
    )
    model = run.get("language_model")
    path = run.folder / (
        f"browser_{name}.html" if name not in ("", run.settings.sae.recipe) else "browser.html"
    )
    reason = why_not(model, tokenizer)
    inside = (
        ""
        if reason
        else packed(model_block(model, dictionary, run.settings.sae.hook_name, tokenizer))
    )
    write_atomically(
        path,
        page_text(
            table, title(run, name), facts(run, table, dictionary), inside, reason, settings_of(run)
        ),
    )
    return path


def title(run: Run, name: str) -> str:
    return (
        f"{'Neurons' if name == 'neurons' else 'Features'} of run {run.folder.resolve().name}"
        + (f", {name or run.settings.sae.recipe}" if name != "neurons" else "")
    )


def facts(run: Run, table: FeatureTable, dictionary: Dictionary) -> str:
    where = f"{run.settings.sae.hook_name} ({page.decimal(dictionary.d_in)} dimensions)"
    return f"{page.decimal(len(table))} {table.kind}s on {where}, {page.decimal(run.settings.evaluation.tokens)} held-out tokens"


def settings_of(run: Run) -> dict[str, str]:
    """What stands in the fields of the part where a text is tried."""
    s = run.settings
    return {
        "text": "\n".join(s.prompts.prompts),
        "temperature": f"{s.prompts.temperature:g}",
        "context": str(s.lm.context),
    }


def page_text(
    table: FeatureTable, title: str, facts: str, model: str, no_model: str, fields: dict[str, str]
) -> str:
    """The whole page; `model` is the packed model, or empty where `no_model` says why there is none."""
    script, style = (
        _script(table, title, bool(model)),
        (APP.parent / "style.css").read_text() + (APP / "app.css").read_text(),
    )
    note = (
        f"The language model is not in this page: {no_model}." if no_model else "Reading the model…"
    )
    blocks = [("model-data", model)] if model else []
    blocks += [
        (f"pages-{i}", packed(with_binary(*chunk)))
        for i, chunk in enumerate(pages(table, lambda chunks: tqdm(chunks, desc="browser.html")))
    ]
    shown = {"title": title, "facts": facts, "help": query.HELP} | fields
    return Template((APP / "page.html").read_text()).substitute(
        {key: html.escape(text) for key, text in shown.items()},
        model_note=f'<p id="model-note" class="note">{html.escape(note)}</p>',
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src-elem {_hash(style)}; style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        index=packed(as_json(index(table))),
        vocabulary=packed(as_json(table.vocabulary.texts)),
        blocks="\n".join(
            f'<script type="text/plain" id="{name}">{data}</script>' for name, data in blocks
        ),
    )


def _script(table: FeatureTable, title: str, model: bool) -> str:
    """The page's only script: constants from Python, the sources, the template as functions."""
    constants = {
        "darkest": page.DARKEST,
        "chunk": CHUNK,
        "id_bytes": id_type(table)().itemsize,
        "kind": table.kind,
        "title": title,
        "model": model,
        "fields": query.FIELDS,
        "places": query.PLACES,
        "sorts": [[shown, column] for shown, column in SORTS.items() if column in table.features],
    }
    classes = ", ".join(f"{name}: /{pattern}/u" for name, pattern in unicode_classes().items())
    sources = "\n".join((APP / name).read_text() for name in SCRIPTS)
    template = javascript(page.ENVIRONMENT, "template.html")
    text = json.dumps(constants).replace("<", "\\u003c")
    return f'(() => {{\n"use strict";\nconst CONSTANTS = {text};\nconst UNICODE = {{ {classes} }};\n{sources}\nconst template = {template};\nstart();\n}})();\n'


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
