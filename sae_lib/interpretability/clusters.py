"""Which features belong together: groups by decoder direction and firing together, named by what
their rules share, with places on a map.
"""

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float, Int

from sae_lib.features.firing import Rows, firing_tables
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder

Array = np.ndarray
Pairwise = Float[Array, "n n"]
MAX_FEATURES = 8192  # features at most: all pairs of them are compared
COMPONENTS = 50  # of the similarities, in which groups and map are made
MIN_SHARED = 0.2  # share of a group's members from which a value of their rules names it
NULL_DRAWS = 20
UNNAMED = "nothing in common"


def cluster_table(
    scores: pd.DataFrame,
    sae: SparseAutoencoder,
    hook: HookPoint,
    rows: Rows,
    n_clusters: int,
    seed: int,
) -> pd.DataFrame:
    """A row per feature that has a rule: its cluster, the cluster's name, its place on the map (x,
    y) and its rule.

    `scores` are those of the rules; how often features fire together is counted on `rows`.
    """
    if len(scores) > MAX_FEATURES:
        scores = scores.sample(MAX_FEATURES, random_state=seed % 2**32).sort_values("unit")
    features = scores["unit"].to_numpy(copy=True)
    together = firing_together(hook, sae, features, rows)
    similar = similarity(sae.W_dec[features].cpu(), together)
    table = group(similar, scores["values"].map(list).tolist(), n_clusters, seed)
    table.insert(0, "feature", features)
    table["rule"] = scores["rule"].to_numpy()
    return table


def firing_together(
    hook: HookPoint, sae: SparseAutoencoder, features: Int[Array, " n"], rows: Rows
) -> Pairwise:
    """Pearson correlation of whether two features fire, over the tokens of `rows`."""
    fires = firing_tables(hook, {"": sae}, rows)[""][:, features]
    fires.data[:] = 1
    return correlation(fires)


def correlation(fires: scipy.sparse.sparray) -> Pairwise:
    """Pearson correlation between the columns of a table of zeros and ones; 0 for a column that
    never changes.
    """
    tokens = fires.shape[0]
    density = np.asarray(fires.sum(axis=0)).ravel() / tokens
    spread = np.sqrt(density * (1 - density))
    together = (fires.T @ fires).toarray() / tokens - np.outer(density, density)
    return (together / np.maximum(np.outer(spread, spread), 1e-12)).astype(np.float32)


def similarity(W_dec: Float[torch.Tensor, "n d_in"], together: Pairwise) -> Pairwise:
    """The mean of decoder cosine and firing correlation, each from 0 (none or opposed) to 1."""
    unit = torch.nn.functional.normalize(W_dec, eps=1e-8).numpy()
    similar = (np.maximum(unit @ unit.T, 0) + np.maximum(together, 0)) / 2
    np.fill_diagonal(similar, 1.0)
    return similar


def group(similar: Pairwise, values: list[list[str]], clusters: int, seed: int) -> pd.DataFrame:
    """`cluster`, its `name`, and the map's `x` and `y`: Ward's method and t-SNE on the leading
    components of the similarities. Clusters are numbered by falling size.
    """
    n, random = len(similar), {"random_state": seed % 2**32}
    if n < 5:
        one = {"cluster": np.zeros(n, dtype=np.int64), "name": UNNAMED}
        return pd.DataFrame(one | {"x": np.arange(n, dtype=float), "y": 0.0})
    import sklearn  # which takes a while to import

    solver = "randomized" if n > 500 else "dense"
    n_components = min(COMPONENTS, n - 1)
    pca = sklearn.decomposition.KernelPCA(
        n_components, kernel="precomputed", eigen_solver=solver, **random
    )
    components = pca.fit_transform(similar)
    cluster = sklearn.cluster.AgglomerativeClustering(min(clusters, n // 2)).fit_predict(components)
    cluster = np.argsort(np.argsort(-np.bincount(cluster), kind="stable"))[cluster]
    options = random | {"init": "pca", "n_jobs": -1, "max_iter": 500}
    tsne = sklearn.manifold.TSNE(perplexity=min(30, (n - 1) / 3), **options)
    x, y = tsne.fit_transform(components).T
    names = np.array(cluster_names(cluster, values), dtype=object)[cluster]
    return pd.DataFrame({"cluster": cluster, "name": names, "x": x, "y": y})


def cluster_names(cluster: Int[Array, " n"], values: list[list[str]]) -> list[str]:
    """For each cluster up to three of the values that at least `MIN_SHARED` of its members'
    rules ask for, those first that are rarest outside of it.
    """
    asks, known = _table_of_values(values)
    overall, names = asks.mean(axis=0), []
    for c in range(cluster.max() + 1):
        members = asks[cluster == c]
        share, several = members.mean(axis=0), members.sum(axis=0) >= 2
        gain = share * np.log(np.maximum(share, 1e-12) / np.maximum(overall, 1e-12))
        gain = np.where((share >= MIN_SHARED) & several, gain, 0)
        best = [known[i] for i in np.argsort(-gain, kind="stable")[:3] if gain[i] > 0]
        names.append(", ".join(best) or UNNAMED)
    return names


def _table_of_values(values: list[list[str]]) -> tuple[Float[Array, "n value"], Array]:
    """(which feature's rule asks for which value, the values): those that at least two rules ask
    for.
    """
    import sklearn

    binarizer = sklearn.preprocessing.MultiLabelBinarizer(sparse_output=True)
    asks = binarizer.fit_transform(values)
    known = np.flatnonzero(np.asarray(asks.sum(axis=0)) > 1)
    return asks[:, known].toarray().astype(np.float32), binarizer.classes_[known]


def _shared_value(cluster: Int[Array, " n"], asks: Float[Array, "n value"]) -> float:
    """Over features: the mean share of its cluster's members whose rules have the cluster's
    commonest value, over the clusters of two members or more.
    """
    members = [asks[cluster == c] for c in np.unique(cluster) if (cluster == c).sum() > 1]
    commonest = [of_one.mean(axis=0).max(initial=0) for of_one in members]
    return float(np.average(commonest, weights=list(map(len, members)))) if members else 0.0


def summary(table: pd.DataFrame, values: list[list[str]], seed: int) -> dict:
    """Sizes and names of the clusters, and whether they mean anything: how much their members'
    rules share, against the same sizes filled at random.
    """
    cluster, rng = table["cluster"].to_numpy(), np.random.default_rng((seed, 4))
    asks, _ = _table_of_values(values)
    by_chance = [_shared_value(rng.permutation(cluster), asks) for _ in range(NULL_DRAWS)]
    sizes = table.groupby(["cluster", "name"]).size().reset_index(name="size")
    largest = sizes.sort_values("size", ascending=False).head(20)
    return {
        "features": len(table),
        "clusters": len(sizes),
        "named": int((sizes["name"] != UNNAMED).sum()),
        "shared_value": _shared_value(cluster, asks),
        "shared_value_by_chance": np.mean(by_chance),
        "shared_value_by_chance_most": max(by_chance),
        "largest": largest[["cluster", "name", "size"]].to_dict("records"),
    }
