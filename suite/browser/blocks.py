"""The data of the page in named blocks of bytes, the same for the notebook and for
`browser.html`.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.features.evaluation import ALIVE
from sae_lib.formats import decimal
from sae_lib.text.display import SHAPELESS
from suite import stages
from suite.browser import rating
from suite.browser.packing import as_json, with_binary
from suite.browser.table import FeatureTable, open_table
from suite.runs import Run

APP = Path(__file__).parent / "app"
CHUNK, ROWS = 64, 512  # features whose pages are in one block; rows of text in one
LISTS = ("top_tokens", "before_tokens", "top_logits", "bottom_logits")  # that the search looks into
SCRIPTS = "html text table query tokenizer model sources feature_page app try rate context".split()


@dataclass
class Blocks:
    """Blocks of one table, made when they are asked for.

    `about` is what the page says of itself. `rated` gives the tables that blind ratings draw
    from, by kind. `limits` are the strongest examples of a feature and those of each tenth that
    go into its page; None means all of them.
    """

    table: FeatureTable
    about: dict[str, Any]
    rows: np.ndarray | None = None
    rated: Callable[[], dict[str, FeatureTable]] = dict
    limits: tuple[int, int] | None = None
    extra: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, name: str) -> bytes:
        if name in self.extra:
            return self.extra[name]
        if name == "index":
            sizes = {"kind": self.table.kind, "chunk": CHUNK, "rows": ROWS}
            rated = {"rated": self.rated is not dict}
            rated |= {"original_ratings": rating.ORIGINAL, "features": listed(self.table)}
            return as_json(self.about | sizes | rated).encode()
        if name == "vocabulary":
            return json.dumps(self.table.vocabulary.texts).encode()
        if name == "rating":
            tables = self.rated().items()
            return as_json({kind: t.alive(ALIVE).tolist() for kind, t in tables}).encode()
        kind, _, at = name.rpartition("-")
        if kind == "rows":
            part = self.rows[int(at) * ROWS :][:ROWS]
            return with_binary({"context": part.shape[1], "count": part.size}, part.ravel())
        table = self.table if kind == self.table.kind else self.rated()[kind]
        return pages(table, int(at), self.limits)

    def names(self) -> Iterator[str]:
        """All of them, those first that a page asks for first."""
        yield from ("index", "vocabulary", "rating")
        parts = {
            kind: -(-len(table) // CHUNK)
            for kind, table in ({self.table.kind: self.table} | self.rated()).items()
        }
        parts["rows"] = 0 if self.rows is None else -(-len(self.rows) // ROWS)
        for kind, n in parts.items():
            yield from (f"{kind}-{at}" for at in range(n))
        yield from self.extra


def about(run: Run, name: str, table: FeatureTable) -> dict[str, Any]:
    """What the page says of itself, and what its fields hold at first."""
    s = run.settings
    of = f", {name or s.sae.recipe}" if table.kind == "feature" else ""
    return {
        "title": f"{table.kind.capitalize()}s of run {run.folder.resolve().name}{of}",
        "facts": f"{decimal(len(table))} {table.kind}s on {s.sae.hook_name}, "
        f"{decimal(s.evaluation.tokens)} held-out tokens",
        "text": "\n".join(s.prompts.prompts),
        "temperature": s.prompts.temperature,
    }


def rated_tables(run: Run, name: str) -> dict[str, FeatureTable]:
    return {"feature": open_table(run, name), "neuron": open_table(run, "neurons")}


def heldout(run: Run) -> np.ndarray:
    """The rows of text that the feature table was made from."""
    return stages.heldout_rows(run, run.settings.evaluation.tokens)


def listed(table: FeatureTable) -> pd.DataFrame:
    """What the list, the search and the sorting need of each feature."""
    features, examples = table.features, table.examples
    strongest = examples[examples["tenth"] < 0].groupby("feature")["token_id"].unique()
    columns = [c for c in features if c in LISTS or features[c].dtype != object]
    return features[columns].assign(strongest=strongest.reindex(features["feature"]).to_numpy())


def pages(table: FeatureTable, at: int, limits: tuple[int, int] | None) -> bytes:
    """`CHUNK` features with their examples; of these the activations and the token ids as binary
    numbers.
    """
    first, last = at * CHUNK, min((at + 1) * CHUNK, len(table))
    examples = table.examples.iloc[table.starts[first] : table.starts[last]]
    if limits:
        nth = examples.groupby(["feature", "tenth"]).cumcount()
        examples = examples[nth < np.where(examples["tenth"] < 0, *limits)]
    texts = examples[["activations", "token_ids"]]
    activations, ids = (np.concatenate([np.zeros(0), *texts[column]]) for column in texts)
    id_type = np.uint16 if ids.max(initial=0) < 1 << 16 else np.uint32
    shown = examples.drop(columns=texts.columns).assign(length=texts["token_ids"].map(len))
    head = {"features": table.features.iloc[first:last], "examples": shown}
    return with_binary(head, activations.astype(np.float32), ids.astype(id_type))


@lru_cache(maxsize=1)
def module() -> str:
    """The page's JavaScript: its sources joined, in one scope, with `mount` and anywidget's
    `render` exported.
    """
    classes = ", ".join(f"{name}: /[{ranges}]/u" for name, ranges in unicode_classes().items())
    sources = [(APP / f"{name}.js").read_text() for name in SCRIPTS]
    style = json.dumps((APP / "style.css").read_text())
    return "\n".join([f"const UNICODE = {{ {classes} }}, STYLE = {style};", *sources])


def unicode_classes() -> dict[str, str]:
    """What `text.display` asks of Unicode, as ranges, so that a browser with other tables shows
    the same text.
    """
    tests = {
        "shapeless": lambda c: unicodedata.category(c) in SHAPELESS,
        "combining": lambda c: unicodedata.combining(c) > 0,
        "right_to_left": lambda c: unicodedata.bidirectional(c) in ("R", "AL", "AN"),
    }
    found = {}
    for name, test in tests.items():
        member = np.array([False, *(test(chr(i)) for i in range(sys.maxunicode + 1)), False])
        edges = np.flatnonzero(member[1:] != member[:-1]).reshape(-1, 2)
        found[name] = "".join(f"\\u{{{a:x}}}-\\u{{{b - 1:x}}}" for a, b in edges.tolist())
    return found
