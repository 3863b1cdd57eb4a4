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
from jaxtyping import Float
from torch import Tensor

from sae_lib.features.evaluation import ALIVE
from sae_lib.features.firing import spread_rows
from sae_lib.formats import decimal
from sae_lib.text.display import SHAPELESS
from suite import stages
from suite.browser import rating
from suite.browser.packing import as_json, with_binary
from suite.runs import Run
from suite.table import FeatureTable, open_table

APP = Path(__file__).parent / "app"
CHUNK, ROWS = 64, 512  # features whose pages are in one block; rows of text in one
BARS = 40  # of the histogram of effects on logits
LISTS = ("top_tokens", "before_tokens", "top_logits", "bottom_logits")  # that the search looks into
BEFORE, AFTER = 7, 4  # tokens around the strongest one in the list
MEASURES = {"information": "uncertainty explained", "auroc": "AUROC"}
NULLS = {  # kind of unit that was scored in the same way → what the page calls it
    "feature": "features",
    "neuron_matched": "neurons of equal density",
    "random": "random directions",
    "shuffled": "shuffled labels",
}
SCRIPTS = "html text table query sources feature_page graph list map try rate start app".split()
WORKER = "text tokenizer table model worker".split()  # run beside the page of `browser.html`


@dataclass
class Blocks:
    """Blocks of one table, made when they are asked for.

    `about` is what the page says of itself. `rated` gives the tables that blind ratings draw
    from, by kind. `origins` names the documents of examples. `limits` are the strongest examples of
    a feature and those of each tenth that go into its page; None means all of them. `logits` gives
    what some features' directions add to every token's logit.
    """

    table: FeatureTable
    about: dict[str, Any]
    rows: np.ndarray | None = None
    rated: Callable[[], dict[str, FeatureTable]] = dict
    origins: Callable[[pd.DataFrame], np.ndarray] | None = None
    limits: tuple[int, int] | None = None
    logits: Callable[[slice], Float[Tensor, "n vocab"]] | None = None
    extra: dict[str, bytes] = field(default_factory=dict)

    @property
    def has_logits(self) -> bool:
        """Whether the features have a direct effect on the logits, and a model to ask for it."""
        return self.logits is not None and bool(self.table.features["top_logits"].map(len).any())

    def __call__(self, name: str) -> bytes:
        if name in self.extra:
            return self.extra[name]
        if name == "index":
            sizes = {"kind": self.table.kind, "chunk": CHUNK, "rows": ROWS}
            rated = {"rated": self.rated is not dict}
            rated |= {"original_ratings": rating.ORIGINAL, "medians": medians(self.table)}
            rated |= {"has_logits": self.has_logits}
            return as_json(self.about | sizes | rated | {"features": listed(self.table)}).encode()
        if name == "vocabulary":
            return json.dumps(self.table.vocabulary.texts).encode()
        if name == "rating":
            tables = self.rated().items()
            return as_json({kind: t.alive(ALIVE).tolist() for kind, t in tables}).encode()
        kind, _, at = name.rpartition("-")
        if kind == "rows":
            part = self.rows[int(at) * ROWS :][:ROWS]
            return with_binary({"context": part.shape[1], "count": part.size}, part.ravel())
        if kind == "logits":
            return as_json({"rows": histograms(self.logits(slice_of(int(at))))}).encode()
        table = self.table if kind == self.table.kind else self.rated()[kind]
        return pages(table, int(at), self.limits, self.origins)

    def names(self) -> Iterator[str]:
        """All of them, those first that a page asks for first."""
        yield from ("index", "vocabulary", "rating")
        parts = {
            kind: -(-len(table) // CHUNK)
            for kind, table in ({self.table.kind: self.table} | self.rated()).items()
        }
        parts["logits"] = parts[self.table.kind] if self.has_logits else 0
        parts["rows"] = 0 if self.rows is None else -(-len(self.rows) // ROWS)
        for kind, n in parts.items():
            yield from (f"{kind}-{at}" for at in range(n))
        yield from self.extra


def of_run(run: Run, name: str, rated: str | None, **more: Any) -> Blocks:
    """The blocks of one of a run's tables; `rated` names the autoencoder of blind ratings, None
    where there are none.
    """
    table = open_table(run, name)
    names = {"feature": rated, "neuron": "neurons"}
    if rated is not None:
        more["rated"] = lambda: {kind: open_table(run, of) for kind, of in names.items()}
    return Blocks(table, about(run, name, table), origins=origins(run), **more)


def about(run: Run, name: str, table: FeatureTable) -> dict[str, Any]:
    """What the page says of itself, what its fields hold at first, and what a chat model said."""
    s = run.settings
    of = f", {name or s.sae.recipe}" if table.kind == "feature" else ""
    return {
        "title": f"{table.kind.capitalize()}s of run {run.folder.resolve().name}{of}",
        "facts": f"{decimal(len(table))} {table.kind}s on {s.sae.hook_name}, "
        f"{decimal(s.evaluation.tokens)} held-out tokens",
        "text": "\n".join(s.prompts.prompts),
        "temperature": s.prompts.temperature,
        "explanations": explanations(run, name) if table.kind == "feature" else {},
    }


def explanations(run: Run, name: str) -> dict[str, str]:
    """What a chat model said of features, by number, where one was asked."""
    path = stages.explanations_file(run, name)
    if not path.exists():
        return {}
    said = pd.read_parquet(path).query("kind == 'feature'").dropna(subset="explanation")
    return dict(zip(said["feature"].map(str), said["explanation"], strict=True))


def origins(run: Run) -> Callable[[pd.DataFrame], np.ndarray]:
    """Names the documents that examples are from."""
    documents = spread_rows(stages.heldout_documents(run), run.settings.evaluation.tokens)
    names = run.get("tokens").table["heldout"]["origin"].to_numpy()
    return lambda examples: names[documents[examples["row"], examples["position"]]]


def heldout(run: Run) -> np.ndarray:
    """The rows of text that the feature table was made from."""
    return stages.heldout_rows(run, run.settings.evaluation.tokens)


def listed(table: FeatureTable) -> pd.DataFrame:
    """What the list, the search and the sorting need of each feature: its numbers, the tokens of
    its strongest examples (the most frequent first, with counts), its histogram as digits, and the
    middle of its strongest example.
    """
    features = table.features
    strongest = table.examples.query("tenth < 0")
    tokens = strongest.groupby(["feature", "token_id"], sort=False).size().rename("n")
    tokens = tokens.reset_index().sort_values("n", ascending=False, kind="stable")
    by_feature = tokens.groupby("feature")
    first = strongest.drop_duplicates("feature").set_index("feature")
    columns = [c for c in features if c in LISTS or features[c].dtype != object]
    shown = {
        "strongest": by_feature["token_id"].agg(list),
        "strongest_counts": by_feature["n"].agg(list),
        "snippet": pd.Series({e.Index: snippet(e) for e in first.itertuples()}, dtype=object),
    }
    shown = {name: of.reindex(features["feature"]).to_numpy() for name, of in shown.items()}
    if "histogram" in features:
        counts = np.log1p(np.stack(features["histogram"].to_list()))
        heights = np.ceil(9 * counts / np.maximum(counts.max(1, keepdims=True), 1e-9)).astype(int)
        shown["histogram"] = ["".join(map(str, row)) for row in heights.tolist()]
    shown["clarity"] = clarity(features, by_feature["n"].agg(["first", "sum"]))
    return features[columns].assign(**shown)


def clarity(features: pd.DataFrame, counts: pd.DataFrame) -> np.ndarray:
    """How clear a feature looks: by its rule's score, else by how far its strongest examples agree
    on a token; below -1 where it fires too rarely to be judged.
    """
    counts = counts.reindex(features["feature"])
    looks = (counts["first"] / (counts["sum"] + 1)).fillna(0)
    for score in ("auroc", "information"):
        looks = features[score].fillna(-1) if score in features else looks
    return looks.to_numpy() - 2 * (features["n_active"] < ALIVE).to_numpy()


def medians(table: FeatureTable) -> str:
    """What rules score on units of other kinds, as a sentence; empty where nothing was scored."""
    score = "information" if "information" in table.medians.get("feature", {}) else "auroc"
    factor, unit = (100, " %") if score == "information" else (1, "")
    known = {kind: scores.get(score) for kind, scores in table.medians.items()}
    said = [
        f"{name} {decimal(factor * known[kind])}{unit}"
        for kind, name in NULLS.items()
        if known.get(kind) is not None
    ]
    return f"Medians ({MEASURES[score]}): {', '.join(said)}." if said else ""


def snippet(e) -> list:
    """The focus, the token ids around it, and their activations in ninths of the strongest."""
    first = max(0, e.focus - BEFORE)
    where = slice(first, e.focus + AFTER + 1)
    levels = np.clip(np.ceil(9 * e.activations[where] / e.activation), 0, 9).astype(int)
    return [e.focus - first, e.token_ids[where].tolist(), "".join(map(str, levels))]


def slice_of(at: int) -> slice:
    return slice(at * CHUNK, (at + 1) * CHUNK)


def histograms(values: Float[Tensor, "n vocab"]) -> pd.DataFrame:
    """Of each row its range and how many values lie in each part of it."""
    counted = [np.histogram(row, BARS) for row in values.cpu().numpy()]
    ends = [{"low": edges[0], "high": edges[-1], "counts": n.tolist()} for n, edges in counted]
    return pd.DataFrame(ends)


def pages(
    table: FeatureTable,
    at: int,
    limits: tuple[int, int] | None,
    origins: Callable[[pd.DataFrame], np.ndarray] | None = None,
) -> bytes:
    """`CHUNK` features with their examples; of these the activations and the token ids as binary
    numbers.
    """
    part = table.features.iloc[slice_of(at)]
    first, last = part.index[0], part.index[-1] + 1
    examples = table.examples.iloc[table.starts[first] : table.starts[last]]
    if limits:
        nth = examples.groupby(["feature", "tenth"]).cumcount()
        examples = examples[nth < np.where(examples["tenth"] < 0, *limits)]
    texts = examples[["activations", "token_ids"]]
    activations, ids = (np.concatenate([np.zeros(0), *texts[column]]) for column in texts)
    id_type = np.uint16 if ids.max(initial=0) < 1 << 16 else np.uint32
    shown = examples.drop(columns=texts.columns).assign(length=texts["token_ids"].map(len))
    if origins:
        shown["origin"] = origins(examples)
    head = {"features": part, "examples": shown}
    return with_binary(head, activations.astype(np.float32), ids.astype(id_type))


@lru_cache(maxsize=1)
def module() -> str:
    """The page's JavaScript: its sources joined, in one scope, with `mount` and anywidget's
    `render` exported.
    """
    classes = ", ".join(f"{name}: /[{ranges}]/u" for name, ranges in unicode_classes().items())
    texts = {
        "STYLE": (APP / "style.css").read_text(),
        "FRAME": (APP / "frame.html").read_text(),
        "WORKER": joined(WORKER),
    }
    constants = [f"const {name} = {json.dumps(text)};" for name, text in texts.items()]
    return "\n".join([f"const UNICODE = {{ {classes} }};", *constants, joined(SCRIPTS)])


def joined(names: list[str]) -> str:
    return "\n".join((APP / f"{name}.js").read_text() for name in names)


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
