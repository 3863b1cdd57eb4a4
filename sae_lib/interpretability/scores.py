"""What the rule scores say: medians and differences between kinds with bootstrap intervals."""

from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float

MEASURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "information": "information explained",
}
AVERAGES = {"median": np.median, "mean": np.mean}
DRAWS = 2000  # of the bootstrap
EXAMPLES = 8  # rules per kind in the results


def summary(scores: pd.DataFrame, seed: int) -> dict:
    """By kind: n, median and mean of each measure with 95 % intervals over units (bootstrap),
    rules as examples; and how far features are above each other kind.
    """
    rng = np.random.default_rng((seed, 3))
    scored, draws, differences = {}, {}, {}
    for kind, table in scores.groupby("kind", sort=False):
        n = len(table)
        scored[kind] = {
            "n": n,
            "density_median": table["density"].median(),
            "conditions_mean": table["n_conditions"].mean(),
            "context_share": table["context"].mean(),
        }
        chosen = rng.integers(n, size=(DRAWS, n))
        for measure, (average, of) in product(MEASURES, AVERAGES.items()):
            values, name = table[measure].to_numpy(), f"{measure}_{average}"
            draws[kind, name] = of(values[chosen], axis=1)
            interval = _interval(draws[kind, name])
            scored[kind] |= {name: of(values), f"{name}_interval": interval}
        shown = table.sample(min(EXAMPLES, n), random_state=seed % 2**32)
        scored[kind]["examples"] = shown[["unit", "rule", *MEASURES, "density"]].to_dict("records")
    for kind, name in draws:
        ours = "feature_strong" if kind.endswith("_strong") else "feature"
        if kind != ours and ours in scored:
            differences.setdefault(f"{ours} - {kind}", {})[name] = {
                "difference": scored[ours][name] - scored[kind][name],
                "interval": _interval(draws[ours, name] - draws[kind, name]),
            }
    return {"scores": scored, "differences": differences}


def _interval(draws: Float[np.ndarray, " draw"]) -> list[float]:
    return np.quantile(draws, [0.025, 0.975]).tolist()
