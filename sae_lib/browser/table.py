"""The feature table as the browser needs it: search, sort, and one feature's page as plain data."""

from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.browser import query as language
from sae_lib.features import load_features, make_features
from sae_lib.runs import RECORD, Run, verify
from sae_lib.tokenizer import load_tokenizer
from sae_lib.visible import Vocabulary, plain

# shown name → column; only those that the table has are offered
SORTS = {
    "number": "feature",
    "density": "density",
    "maximum": "maximum",
    "auroc": "auroc",
    "balanced accuracy": "balanced_accuracy",
}
SCORES = ["rule", "n_conditions", "balanced_accuracy", "auroc"]
KINDS = {
    "neurons": "neuron",
    "random": "random direction",
    "principal": "principal direction",
}  # name of a table → what its rows are
TOKENS = 12  # tokens listed that the strongest examples are strongest on


class FeatureTable:
    """Features and examples in the columns of `features.build`, with scores where there are any; row i is feature i.

    Columns that an older table lacks are left out of its pages.
    """

    def __init__(
        self,
        features: pd.DataFrame,
        examples: pd.DataFrame,
        tokenizer: Any,
        kind: str = "feature",
        scores: pd.DataFrame | None = None,
    ):
        self.kind, self.vocabulary = kind, Vocabulary(tokenizer)
        self.features = (
            features
            if scores is None
            else features.join(scores.set_index("unit")[SCORES], on="feature")
        )
        tenth = examples["tenth"].to_numpy() if "tenth" in examples else np.full(len(examples), -1)
        self._all, self.examples, self.samples = (
            examples,
            examples[tenth < 0],
            examples[tenth >= 0],
        )  # the strongest; those drawn from each tenth
        self.raised, self.lowered = (
            np.array(features[f"{end}_logits"].tolist()).reshape(len(features), -1)
            for end in ("top", "bottom")
        )
        owner, everyone = self.examples["feature"].to_numpy(), np.arange(len(features) + 1)
        self._starts, self._sample_starts = (
            np.searchsorted(owner, everyone),
            np.searchsorted(self.samples["feature"].to_numpy(), everyone),
        )
        self._owner, self._strongest = owner, self.examples["token_id"].to_numpy()
        self._density, self._maximum = (
            features["density"].to_numpy(),
            features["maximum"].to_numpy(),
        )
        self._lower = [t.casefold() for t in self.vocabulary.texts]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def sorts(self) -> list[str]:
        return [name for name, column in SORTS.items() if column in self.features]

    @cached_property
    def texts(self) -> language.ExampleTexts:
        return language.ExampleTexts(
            self._all["token_ids"].to_list(), self._all["feature"].to_numpy(), self.vocabulary.texts
        )

    def search(self, query: str) -> np.ndarray:
        """Numbers of the features for which every part of the query holds (see `query.py`); 12 alone is a number and also a text."""
        found = np.ones(len(self), dtype=bool)
        for part in language.parse(query):
            if isinstance(part, language.Comparison):
                column = language.FIELDS[part.field]
                values = (
                    self.features[column].to_numpy()
                    if column in self.features
                    else np.full(len(self), np.nan)
                )
                found &= language.compared(part, values)
            else:
                found &= self._with_text(part)
        if 0 <= _number(query) < len(self):
            found[_number(query)] = True
        return np.flatnonzero(found)

    def _with_text(self, part: language.Text) -> np.ndarray:
        found = np.zeros(len(self), dtype=bool)
        if part.place == "text":
            found[self.texts.owners(part.wanted)] = True
            return found
        hit = np.array([part.wanted in text for text in self._lower])
        if part.place in ("", "token"):
            found[self._owner[_look_up(hit, self._strongest)]] = True
            found |= self._in_lists("top_tokens", hit)
        if part.place in ("", "raises"):
            found |= _look_up(hit, self.raised).any(1)
        if part.place == "lowers":
            found |= _look_up(hit, self.lowered).any(1)
        if part.place == "before":
            found |= self._in_lists("before_tokens", hit)
        if part.place in ("", "rule") and "rule" in self.features:
            found |= (
                self.features["rule"]
                .str.casefold()
                .str.contains(part.wanted, regex=False)
                .fillna(False)
                .to_numpy(dtype=bool)
            )
        return found

    def _in_lists(self, column: str, hit: np.ndarray) -> np.ndarray:
        found = np.zeros(len(self), dtype=bool)
        if column in self.features:
            lists = self.features[column].to_list()
            owner = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
            found[
                owner[
                    _look_up(
                        hit, np.concatenate([np.asarray(ids, dtype=np.int64) for ids in lists])
                    )
                ]
            ] = True
        return found

    def matches(
        self, query: str = "", sort: str = "number", descending: bool = False
    ) -> np.ndarray:
        """`search`, sorted; the dead and those without a score are last, whichever way. The feature that `query` names is first."""
        found = self.search(query)
        keys = self.features[SORTS[sort]].to_numpy(dtype=float)[found]
        dead = (self.features["n_active"].to_numpy()[found] == 0) & (sort != "number")
        order = np.lexsort(
            (-keys if descending else keys, dead)
        )  # NaN, no score, comes after all numbers
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
        """A feature without its examples: numbers and token names. What its table does not have is empty, or 0."""
        f = self.features.iloc[number]
        strongest = self._strongest[self._starts[number] : self._starts[number + 1]]
        ids, counts = np.unique(strongest, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        histogram = [int(c) for c in _list(f, "histogram")]
        return {
            "number": number,
            "blind": False,
            "density": float(f["density"]),
            "n_active": int(f["n_active"]),
            "n_tokens": round(f["n_active"] / f["density"]) if f["density"] > 0 else 0,
            "maximum": float(f["maximum"]),
            "maximum_all": float(f.get("maximum_all", f["maximum"])),
            "marked_share": float(f.get("marked_share", 0.0)),
            "mean_active": float(f["mean_active"]),
            "token": self.label(number)[0],
            "strongest_on": [
                {"token": self._name(ids[i]), "count": int(counts[i])} for i in order[:TOKENS]
            ],
            "n_examples": len(strongest),
            "by_mean": self._named(
                _list(f, "top_tokens"),
                mean=_list(f, "top_token_means"),
                count=_list(f, "top_token_counts"),
            ),
            "before": self._named(_list(f, "before_tokens"), count=_list(f, "before_counts")),
            "raised": self._named(self.raised[number], value=f["top_logit_values"]),
            "lowered": self._named(self.lowered[number], value=f["bottom_logit_values"]),
            "near": [
                n | {"token": self.label(n["number"])[0]}
                for n in _numbered(f, "near_features", "near_cosines")
            ],
            "aligned": _numbered(f, "aligned_neurons", "aligned_values"),
            "correlated": _numbered(f, "correlated_neurons", "correlated_values"),
            "histogram": histogram,
            "tallest": max(histogram, default=0),
            "score": _score(f),
        }

    def page(
        self, number: int, examples: int | None = None, per_tenth: int | None = None
    ) -> dict[str, Any]:
        """A feature's page: its row, its strongest examples and those drawn from each tenth of its range, token by token.

        `examples` and `per_tenth` limit them; None means all that the table has.
        """
        row = self.row(number)
        return row | {
            "examples": [
                self._example(e) for e in self.strongest(number)[:examples].to_dict("records")
            ],
            "tenths": self._tenths(number, row["maximum_all"], per_tenth),
        }

    def strongest(self, number: int) -> pd.DataFrame:
        return self.examples.iloc[self._starts[number] : self._starts[number + 1]]

    def sampled(self, number: int) -> pd.DataFrame:
        """The examples drawn at random from each tenth of a feature's range, in the order of the tenths."""
        return self.samples.iloc[self._sample_starts[number] : self._sample_starts[number + 1]]

    def all_examples(self, number: int) -> pd.DataFrame:
        """The strongest examples of a feature, then those from its tenths, the highest first."""
        return pd.concat([self.strongest(number), self.sampled(number)[::-1]])

    def _tenths(self, number: int, maximum: float, per_tenth: int | None) -> list[dict[str, Any]]:
        """The tenths that have examples, the highest first."""
        shares, tenths = _list(self.features.iloc[number], "tenths"), []
        if per_tenth == 0:
            return []
        for tenth, drawn in groupby(
            self.sampled(number).to_dict("records"), key=lambda e: e["tenth"]
        ):
            share = float(shares[tenth]) if len(shares) else 0.0
            shown = [self._example(e) for e in list(drawn)[:per_tenth]]
            tenths.insert(
                0,
                {
                    "from": maximum * tenth / 10,
                    "to": maximum * (tenth + 1) / 10,
                    "share": share,
                    "examples": shown,
                },
            )
        return tenths

    def _example(self, example: dict[str, Any]) -> dict[str, Any]:
        tokens = self.tokens(
            np.asarray(example["token_ids"]).tolist(),
            np.asarray(example["activations"], dtype=float).tolist(),
            example["focus"],
        )
        return {
            "activation": float(example["activation"]),
            "marked": bool(example.get("marked", False)),
            "tokens": tokens,
        }

    def tokens(self, ids: list[int], values: list[float], focus: int = -1) -> list[dict[str, Any]]:
        """Tokens with their activations as the template draws them; the one at `focus` stands out."""
        whole = self.vocabulary.characters(ids)
        return [
            {
                "text": self.vocabulary.text(t),
                "name": self.vocabulary.name(t),
                "value": v,
                "whole": plain(whole.get(i, "")),
                "strongest": i == focus,
            }
            for i, (t, v) in enumerate(zip(ids, values, strict=True))
        ]

    def _name(self, token_id: Any) -> str:
        return self.vocabulary.name(int(token_id))

    def _named(self, ids: Any, **values: Any) -> list[dict[str, Any]]:
        columns = {key: np.asarray(column).tolist() for key, column in values.items()}
        return [
            {"token": self._name(t)} | {key: column[i] for key, column in columns.items()}
            for i, t in enumerate(ids)
        ]


def open_table(run: Run, name: str = "") -> FeatureTable:
    """The table of one autoencoder (the run's recipe by default) or of one of `features.BASELINES`, made first where it is not there; with scores where they are."""
    folder = make_features(run, name)
    kind = KINDS.get(name, "feature")
    scores = (
        run.folder
        / "interpretability"
        / (run.settings.sae.recipe if kind != "feature" or not name else name)
        / "scores.parquet"
    )
    scored = scores.stat().st_mtime_ns if scores.exists() and kind in ("feature", "neuron") else 0
    return _opened(
        folder,
        (folder / RECORD).stat().st_mtime_ns,
        run.tokens_folder / "tokenizer",
        kind,
        scores,
        scored,
    )


@lru_cache(maxsize=4)
def _opened(
    folder: Path, made: int, tokenizer: Path, kind: str, scores: Path, scored: int
) -> FeatureTable:
    if scored:
        verify(scores.parent)
    table = pd.read_parquet(scores) if scored else None
    return FeatureTable(
        *load_features(folder),
        load_tokenizer(tokenizer),
        kind,
        table[table["kind"] == kind] if table is not None else None,
    )


def _list(f: pd.Series, column: str) -> Any:
    values = f.get(column)
    return [] if values is None else values


def _numbered(f: pd.Series, numbers: str, values: str) -> list[dict[str, Any]]:
    return [
        {"number": int(n), "value": float(v)}
        for n, v in zip(_list(f, numbers), _list(f, values), strict=True)
    ]


def _score(f: pd.Series) -> dict[str, Any]:
    """Rule and scores; an empty rule where the feature has none."""
    if not isinstance(f.get("rule"), str):
        return {"rule": ""}
    return {
        "rule": plain(f["rule"]),
        "n_conditions": int(f["n_conditions"]),
        "balanced_accuracy": float(f["balanced_accuracy"]),
        "auroc": float(f["auroc"]),
    }


def _number(query: str) -> int:
    digits = query.strip().removeprefix("#")
    return int(digits) if digits.isascii() and digits.isdecimal() else -1


def _look_up(hit: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return hit[np.minimum(ids, len(hit) - 1)] & (
        ids < len(hit)
    )  # a model may have more logits than its tokeniser has tokens
