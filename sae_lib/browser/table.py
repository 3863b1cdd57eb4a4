"""The feature table as the browser needs it: search, sort, and one feature's page as plain data."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.browser.visible import Vocabulary, plain
from sae_lib.features import load_features, make_features
from sae_lib.runs import RECORD, Run
from sae_lib.tokenizer import load_tokenizer

SORTS = {"number": "feature", "density": "density", "maximum": "maximum"}  # shown name → column of features.parquet
SHOWN = {"⏎": "\n", "·": " ", "⇥": "\t"}  # what a reader copies from the page, back to what it stands for


class FeatureTable:
    """Features and examples in the columns of `features.build`; row i is feature i."""

    def __init__(self, features: pd.DataFrame, examples: pd.DataFrame, tokenizer: Any, kind: str = "feature"):
        self.kind, self.vocabulary = kind, Vocabulary(tokenizer)
        self.features, self.examples = features, examples
        self.raised, self.lowered = (np.array(features[f"{end}_logits"].tolist()).reshape(len(features), -1) for end in ("top", "bottom"))
        owner = examples["feature"].to_numpy()
        self._starts = np.searchsorted(owner, np.arange(len(features) + 1))
        self._owner, self._strongest = owner, examples["token_id"].to_numpy()
        self._density, self._maximum = features["density"].to_numpy(), features["maximum"].to_numpy()
        self._lower = [t.casefold() for t in self.vocabulary.texts]

    def __len__(self) -> int:
        return len(self.features)

    def search(self, query: str) -> np.ndarray:
        """Numbers of the features whose strongest tokens or raised logits contain `query` (case apart); `#12`, and also 12, finds feature 12."""
        if query == "":
            return np.arange(len(self))
        number, found = _number(query), np.zeros(len(self), dtype=bool)
        if 0 <= number < len(self):
            found[number] = True
        if number < 0 or not query.startswith("#"):
            wanted = "".join(SHOWN.get(c, c) for c in query).casefold()
            hit = np.array([wanted in text for text in self._lower])
            found[self._owner[_look_up(hit, self._strongest)]] = True
            found |= _look_up(hit, self.raised).any(1)
        return np.flatnonzero(found)

    def matches(self, query: str = "", sort: str = "number", descending: bool = False) -> np.ndarray:
        """`search`, sorted; the dead are last, whichever way, except by number. The feature that `query` names is first."""
        found = self.search(query)
        keys = self.features[SORTS[sort]].to_numpy()[found]
        order = np.argsort(-keys if descending else keys, kind="stable")
        if sort != "number":
            dead = self.features["n_active"].to_numpy()[found][order] == 0
            order = np.concatenate([order[~dead], order[dead]])
        named = found[order] == _number(query)
        return np.concatenate([found[order][named], found[order][~named]])

    def alive(self, at_least: int) -> np.ndarray:
        """Numbers of the features with at least so many activations on the held-out text."""
        return np.flatnonzero(self.features["n_active"].to_numpy() >= at_least)

    def label(self, number: int) -> tuple[str, float, float]:
        """(strongest token, density, maximum) of a feature: its line in the list."""
        start, end = self._starts[number], self._starts[number + 1]
        token = self.vocabulary.name(int(self._strongest[start])) if end > start else ""
        return token, float(self._density[number]), float(self._maximum[number])

    def row(self, number: int) -> dict[str, Any]:
        """A feature in the list: numbers and token names."""
        f = self.features.iloc[number]
        strongest = self._strongest[self._starts[number] : self._starts[number + 1]]
        ids, counts = np.unique(strongest, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        logits = {
            side: [{"token": self.vocabulary.name(t), "value": float(v)} for t, v in zip(ids_.tolist(), f[f"{end}_logit_values"], strict=True)]
            for side, end, ids_ in (("raised", "top", self.raised[number]), ("lowered", "bottom", self.lowered[number]))
        }
        return {
            "number": number,
            "density": float(f["density"]),
            "n_active": int(f["n_active"]),
            "n_tokens": round(f["n_active"] / f["density"]) if f["density"] > 0 else 0,
            "maximum": float(f["maximum"]),
            "mean_active": float(f["mean_active"]),
            "token": self.label(number)[0],
            "top_tokens": [{"token": self.vocabulary.name(int(ids[i])), "count": int(counts[i])} for i in order],
            "n_examples": len(strongest),
            "histogram": [int(c) for c in f["histogram"]] if "histogram" in f and f["histogram"] is not None else [],
        } | logits

    def page(self, number: int, examples: int | None = None) -> dict[str, Any]:
        """A feature's page: its row and its strongest examples, token by token."""
        start, end = self._starts[number], self._starts[number + 1]
        chosen = self.examples.iloc[start:end].head(examples if examples is not None else end - start)
        return self.row(number) | {"examples": [self._example(e) for e in chosen.to_dict("records")]}

    def _example(self, example: dict[str, Any]) -> dict[str, Any]:
        ids, values = np.asarray(example["token_ids"]).tolist(), np.asarray(example["activations"], dtype=float).tolist()
        whole = self.vocabulary.characters(ids)
        tokens = [
            {"text": self.vocabulary.text(t), "name": self.vocabulary.name(t), "value": v, "whole": plain(whole.get(i, "")), "strongest": i == example["focus"]}
            for i, (t, v) in enumerate(zip(ids, values, strict=True))
        ]
        return {"activation": float(example["activation"]), "tokens": tokens}


def open_table(run: Run, name: str = "") -> FeatureTable:
    """The table of one autoencoder (the run's recipe by default) or of the "neurons", made first where it is not there."""
    folder = make_features(run, name)
    return _opened(folder, (folder / RECORD).stat().st_mtime_ns, run.tokens_folder / "tokenizer", "neuron" if name == "neurons" else "feature")


@lru_cache(maxsize=4)
def _opened(folder: Path, made: int, tokenizer: Path, kind: str) -> FeatureTable:
    return FeatureTable(*load_features(folder), load_tokenizer(tokenizer), kind)


def _number(query: str) -> int:
    digits = query.removeprefix("#").strip()
    return int(digits) if digits.isascii() and digits.isdecimal() else -1


def _look_up(hit: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return hit[np.minimum(ids, len(hit) - 1)] & (ids < len(hit))  # a model may have more logits than its tokeniser has tokens
