"""What the rule scores say: medians and differences between kinds with bootstrap intervals."""

import numpy as np
import pandas as pd
from jaxtyping import Float

MEASURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "information": "information explained",
}
UNMATCHED = {"neuron", "principal", "untrained"}  # compared at whatever densities they have
# the most that quartiles of the densities of two kinds may differ by, as a factor, to count as
# equal
DENSITY_TOLERANCE = 1.25
DRAWS = 2000  # of the bootstrap
EXAMPLES = 8  # rules per kind in the results


def summary(scores: pd.DataFrame, seed: int) -> dict:
    """By kind: n, median of each measure with its 95 % interval over units (bootstrap), rules as
    examples; how far features are above each other kind; and whether densities match.
    """
    rng = np.random.default_rng((seed, 3))
    scored, draws, differences = {}, {}, {}
    for kind, table in scores.groupby("kind", sort=False):
        n = len(table)
        scored[kind] = {
            "n": n,
            "density_median": table["density"].median(),
            "conditions_mean": table["n_conditions"].mean(),
        }
        chosen = rng.integers(n, size=(DRAWS, n))
        for measure in MEASURES:
            values, name = table[measure].to_numpy(), f"{measure}_median"
            draws[kind, name] = np.median(values[chosen], axis=1)
            interval = _interval(draws[kind, name])
            scored[kind] |= {name: np.median(values), f"{name}_interval": interval}
        shown = table.sample(min(EXAMPLES, n), random_state=seed % 2**32)
        scored[kind]["examples"] = shown[["unit", "rule", *MEASURES, "density"]].to_dict("records")
    for kind, name in draws:
        ours = _compared_with(kind)
        if kind != ours and ours in scored:
            differences.setdefault(f"{ours} - {kind}", {})[name] = {
                "difference": scored[ours][name] - scored[kind][name],
                "interval": _interval(draws[ours, name] - draws[kind, name]),
            }
    return {"scores": scored, "differences": differences, "density_match": density_match(scores)}


def _compared_with(kind: str) -> str:
    return "feature_strong" if kind.endswith("_strong") else "feature"


def density_match(scores: pd.DataFrame) -> dict:
    """By kind that is meant to be as dense as features: quartiles of the densities of its scored
    units and of the features', the largest factor between two quartiles, and whether that is
    within `DENSITY_TOLERANCE`.
    """
    by_kind = scores.groupby("kind", sort=False)["density"]
    quartiles = {kind: d.quantile([0.25, 0.5, 0.75]).to_numpy() for kind, d in by_kind}
    found = {}
    for kind, own in quartiles.items():
        features = quartiles.get(_compared_with(kind), own)
        if kind not in UNMATCHED and features is not own:
            factor = float(np.exp(np.abs(np.log(own / features)).max()))
            sides = {"quartiles": own.tolist(), "features": features.tolist()}
            found[kind] = sides | {"factor": factor, "matched": factor <= DENSITY_TOLERANCE}
    return found


def _interval(draws: Float[np.ndarray, " draw"]) -> list[float]:
    return np.quantile(draws, [0.025, 0.975]).tolist()
