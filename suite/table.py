"""The feature table of a run as pages and reports need it: one feature's examples, tokens by
name.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.text.display import Vocabulary, plain
from sae_lib.text.tokenizer import load_tokenizer
from suite.runs import RECORD, Run, verify

SCORES = ["rule", "n_conditions", "balanced_accuracy", "auroc", "information"]
KINDS = {
    "neurons": "neuron",
    "random": "random direction",
    "principal": "principal direction",
}  # name of a table → what its rows are


class FeatureTable:
    """Features and examples in the columns of `feature_table.build`, with scores where there are
    any.

    Row i is feature i. `examples` has the strongest of each feature first (tenth -1), then those
    drawn from each tenth of its range. `scores` has a row for each scored unit of any kind. An
    older table may lack columns.
    """

    def __init__(
        self,
        features: pd.DataFrame,
        examples: pd.DataFrame,
        tokenizer: Any,
        kind: str = "feature",
        scores: pd.DataFrame | None = None,
    ):
        self.medians: dict[str, dict[str, float]] = {}  # kind of unit → median of each score
        if scores is not None:
            own, known = scores.query("kind == @kind"), [c for c in SCORES if c in scores]
            features = features.join(own.set_index("unit")[known], on="feature")
            medians = scores.groupby("kind")[known[3:]].median().T
            self.medians = medians.where(medians.notna(), None).to_dict()
        if "tenth" not in examples:
            examples = examples.assign(tenth=-1, marked=False)
        self.features, self.examples, self.kind = features, examples, kind
        self.vocabulary = Vocabulary(tokenizer)
        owners = examples["feature"].to_numpy()
        self.starts = np.searchsorted(owners, np.arange(len(features) + 1))

    def __len__(self) -> int:
        return len(self.features)

    def alive(self, at_least: int) -> np.ndarray:
        """Numbers of the features with at least so many activations on the held-out text."""
        return np.flatnonzero(self.features["n_active"].to_numpy() >= at_least)

    def of(self, number: int) -> pd.DataFrame:
        """All examples of a feature."""
        return self.examples.iloc[self.starts[number] : self.starts[number + 1]]

    def strongest(self, number: int) -> pd.DataFrame:
        return self.of(number).loc[lambda e: e["tenth"] < 0]

    def sampled(self, number: int) -> pd.DataFrame:
        """The examples drawn at random from each tenth of its range, the lowest tenth first."""
        return self.of(number).loc[lambda e: e["tenth"] >= 0]

    def maximum(self, number: int) -> float:
        """Its maximum; that on marked positions where it fires on no others."""
        f = self.features.iloc[number]
        return float(f["maximum"] or f.get("maximum_all", 0.0))

    def spelled(self, ids: list[int]) -> str:
        return plain(self.vocabulary.joined(ids))


def open_table(run: Run, name: str = "") -> FeatureTable:
    """The table of one autoencoder (the run's recipe by default) or of a baseline, made where it
    is missing.

    With scores where there are some.
    """
    folder, kind = run.path("features", name), KINDS.get(name, "feature")
    scores = run.folder_of("scores", name if kind == "feature" else "")
    scored = kind in ("feature", "neuron") and scores.exists()
    made = tuple((f / RECORD).stat().st_mtime_ns for f in (folder, scores)[: 1 + scored])
    tokenizer = run.tokens_folder / "tokenizer"
    return _opened(made, folder, tokenizer, kind, scores if scored else None)


@lru_cache(maxsize=4)
def _opened(
    made: tuple[int, ...], folder: Path, tokenizer: Path, kind: str, scores: Path | None
) -> FeatureTable:
    scored = None
    if scores:
        verify(scores)
        scored = pd.read_parquet(scores / "scores.parquet")
    tables = (pd.read_parquet(folder / f"{name}.parquet") for name in ("features", "examples"))
    return FeatureTable(*tables, load_tokenizer(tokenizer), kind, scored)
