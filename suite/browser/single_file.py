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
from typing import Any

import numpy as np
import torch

from sae_lib.errors import CorpusError, SettingsError
from sae_lib.features import feature_table
from sae_lib.features.weights import direct_logits
from sae_lib.formats import decimal
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.progress import tqdm
from sae_lib.sae.dictionaries import Dictionary
from sae_lib.sae.saelens import hook_of, load_any
from sae_lib.settings import FeatureSettings
from sae_lib.text.text_files import read_files
from sae_lib.text.tokenizer import load_tokenizer, separator_id, token_ids
from suite import stages
from suite.browser.blocks import APP, Blocks, heldout, module, of_run
from suite.browser.page_model import model_block, why_not
from suite.runs import Run, write_atomically
from suite.table import FeatureTable

CONTEXT = 128  # tokens of a row where a model has room for them
LIMITS = 10, 1  # true top examples of each feature; examples of each tenth of its range


def write_browser(run: Run, name: str = "") -> Path:
    """Write `browser.html` for the run's recipe, `browser_<name>.html` for another autoencoder or
    "neurons".

    What it needs is made first.
    """
    rated = None if name in feature_table.BASELINES else name
    blocks = of_run(run, name, rated, rows=heldout(run), limits=LIMITS)
    dictionary = run.get("dictionary", name)  # a damaged one is told before the model is loaded
    hook, tokenizer = stages.hook(run), run.get("tokens").tokenizer
    own = name in ("", run.settings.sae.recipe)
    path = run.folder / ("browser.html" if own else f"browser_{name}.html")
    return write_page(path, blocks, hook, dictionary, tokenizer)


def write_page(
    path: Path, blocks: Blocks, hook: HookPoint, dictionary: Dictionary, tokenizer: Any
) -> Path:
    """Write the page with the model and the rows of text inside, or without where the page cannot
    run that model.
    """
    blocks.logits = lambda part: direct_logits(hook, dictionary.W_dec[part])
    blocks.about |= {"no_model": (reason := why_not(hook.model, tokenizer, dictionary))}
    if reason:
        blocks.rows = None
    else:
        blocks.extra["model"] = model_block(hook.model, dictionary, hook.name, tokenizer)
    write_atomically(path, page_text(blocks, tqdm(list(blocks.names()), desc=path.name)))
    return path


def write_any(sae: Path, model: str, text: str, n_tokens: int, path: Path) -> Path:
    """The page of an autoencoder in SAELens' layout, on a local or hub model and files of text.

    Raises `ArtefactError`, `ModelError`, `CorpusError` and `SettingsError`.
    """
    (dictionary, config), tokenizer = load_any(sae), load_tokenizer(model)
    opened = language_model.load(model, 0, torch.device("cpu"))
    hook = hook_of(dictionary, opened, str(config.get("hook_name")))
    context = min(CONTEXT, getattr(hook.model.config, "max_position_embeddings", CONTEXT))
    ids, owners = [], []
    for document, _, origin in read_files(text):
        new = [*token_ids(tokenizer, document), separator_id(tokenizer)]
        ids += new
        owners += [origin] * len(new)
        if len(ids) >= n_tokens:
            break
    n = min(n_tokens, len(ids)) // context
    if not n:
        raise CorpusError(
            f"{text}: found {len(ids)} tokens; expected at least one row of {context}"
        )
    rows, owners = (np.array(part[: n * context]).reshape(n, context) for part in (ids, owners))
    if config.get("prepend_bos") and tokenizer.bos_token_id is not None:
        rows[:, 0] = tokenizer.bos_token_id
    if (found := harvest(hook, rows[:1]).shape[1]) != dictionary.d_in:
        raise SettingsError(
            f"--sae {sae}: found an autoencoder of {dictionary.d_in} dimensions; expected "
            f"{found}, those of {hook.name} in {model}"
        )
    features, examples = feature_table.build(hook, dictionary, rows, tokenizer, FeatureSettings())
    table = FeatureTable(features, examples.to_pandas(), tokenizer)
    said = {
        "title": f"Features of {sae.resolve().name}",
        "facts": f"{decimal(len(table))} features on {config['hook_name']} of {Path(model).name}, "
        f"{decimal(rows.size)} tokens of {text}",
        "text": tokenizer.decode(rows[0, 1:25]),
        "temperature": 0.8,
    }
    small = rows.astype(np.uint16 if rows.max() < 1 << 16 else np.uint32)
    blocks = Blocks(table, said, small, origins=lambda e: owners[e["row"], e["position"]])
    blocks.limits = LIMITS
    return write_page(path, blocks, hook, dictionary, tokenizer)


def page_text(blocks: Blocks, names: Iterable[str]) -> str:
    """The whole file."""
    # no module script: those wait for the whole file, this one draws at once
    script = f'"use strict";\n{{\n{module()}\nmount_file();\n}}\n'
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
