"""Which features belong together: groups by decoder direction and firing together, named by what their rules share, on a map."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import KernelPCA
from sklearn.manifold import TSNE

from sae_lib import figures
from sae_lib.features import evaluation
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import active
from sae_lib.text.markup import label

Array = np.ndarray
MOST = 8192  # features at most: all pairs of them are compared
COMPONENTS = 50  # of the similarities, in which groups and map are made
SHARED = 0.2  # share of a group's members from which a value of their rules names it
NULL_DRAWS = 20
UNNAMED = "nothing in common"


def cluster_table(
    scores: pd.DataFrame,
    sae: SparseAutoencoder,
    hook: HookPoint,
    rows: Int[Array, "row position"],
    n_clusters: int,
    seed: int,
) -> pd.DataFrame:
    """A row per feature that has a rule: its cluster, the cluster's name, its place on the map (x, y) and its rule.

    `scores` are those of the rules; how often features fire together is counted on `rows`.
    """
    if len(scores) > MOST:
        scores = scores.sample(MOST, random_state=seed % 2**32).sort_values("unit")
    features = scores["unit"].to_numpy(copy=True)
    together = firing_together(hook, sae, features, rows)
    similar = similarity(sae.W_dec[features].cpu(), together)
    table = group(similar, [list(v) for v in scores["values"]], n_clusters, seed)
    table.insert(0, "feature", features)
    table["rule"] = scores["rule"].to_numpy()
    return table


def firing_together(
    hook: HookPoint,
    sae: SparseAutoencoder,
    features: Int[Array, " n"],
    rows: Int[Array, "row position"],
) -> Float[Array, "n n"]:
    """Pearson correlation of whether two features fire, over the tokens of `rows`."""
    column = np.full(sae.d_sae, -1)
    column[features] = np.arange(len(features))
    token, unit = [], []
    with torch.no_grad():
        for first, x in evaluation.chunks(hook, rows, "firing together"):
            pairs = active(sae, x)
            found = column[pairs.column.cpu().numpy()]
            token.append(pairs.row.cpu().numpy()[found >= 0] + first)
            unit.append(found[found >= 0])
    token, unit = np.concatenate(token), np.concatenate(unit)
    return correlation(
        scipy.sparse.csr_array(
            (np.ones(len(token), dtype=np.float32), (token, unit)), shape=(rows.size, len(features))
        )
    )


def correlation(fires: scipy.sparse.csr_array) -> Float[Array, "n n"]:
    """Pearson correlation between the columns of a table of zeros and ones; 0 for a column that never changes."""
    tokens = fires.shape[0]
    density = np.asarray(fires.sum(axis=0)).ravel() / tokens
    spread = np.sqrt(density * (1 - density))
    together = (fires.T @ fires).toarray() / tokens - np.outer(density, density)
    return (together / np.maximum(np.outer(spread, spread), 1e-12)).astype(np.float32)


def similarity(
    W_dec: Float[torch.Tensor, "n d_in"], together: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    """The mean of decoder cosine and firing correlation, each from 0 (none or opposed) to 1."""
    unit = (W_dec / W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)).numpy()
    similar = (np.maximum(unit @ unit.T, 0) + np.maximum(together, 0)) / 2
    np.fill_diagonal(similar, 1.0)
    return similar


def group(
    similar: Float[Array, "n n"], values: list[list[str]], clusters: int, seed: int
) -> pd.DataFrame:
    """`cluster`, its `name`, and the map's `x` and `y`: Ward's method and t-SNE on the leading components of the similarities. Clusters are numbered by falling size."""
    n = len(similar)
    if n < 5:
        return pd.DataFrame(
            {
                "cluster": np.zeros(n, dtype=np.int64),
                "name": UNNAMED,
                "x": np.arange(n, dtype=float),
                "y": 0.0,
            }
        )
    components = KernelPCA(
        min(COMPONENTS, n - 1),
        kernel="precomputed",
        eigen_solver="randomized" if n > 500 else "dense",
        random_state=seed % 2**32,
    ).fit_transform(similar)
    cluster = AgglomerativeClustering(min(clusters, n // 2)).fit_predict(components)
    sizes = np.bincount(cluster)
    cluster = np.argsort(np.argsort(-sizes, kind="stable"))[cluster]
    place = TSNE(
        perplexity=min(30, (n - 1) / 3),
        init="pca",
        random_state=seed % 2**32,
        n_jobs=-1,
        max_iter=500,
    ).fit_transform(components)
    names = cluster_names(cluster, values)
    return pd.DataFrame(
        {
            "cluster": cluster,
            "name": [names[c] for c in cluster],
            "x": place[:, 0],
            "y": place[:, 1],
        }
    )


def cluster_names(cluster: Int[Array, " n"], values: list[list[str]]) -> list[str]:
    """For each cluster up to three of the values that at least `SHARED` of its members' rules ask for, those first that are rarest outside of it."""
    fires, known = _table_of_values(values)
    overall = fires.mean(axis=0)
    names = []
    for c in range(cluster.max() + 1):
        members = fires[cluster == c]
        share, counts = members.mean(axis=0), members.sum(axis=0)
        telling = np.where(
            (share >= SHARED) & (counts >= 2),
            share * np.log(np.maximum(share, 1e-12) / np.maximum(overall, 1e-12)),
            0,
        )
        best = [i for i in np.argsort(-telling, kind="stable")[:3] if telling[i] > 0]
        names.append(", ".join(known[i] for i in best) if best else UNNAMED)
    return names


def shared_value(cluster: Int[Array, " n"], values: list[list[str]]) -> float:
    """Over features: the mean share of its cluster's other members whose rules have the cluster's commonest value, where that many clusters have two members."""
    fires, _ = _table_of_values(values)
    commonest = [
        (fires[cluster == c].mean(axis=0).max(), (cluster == c).sum())
        for c in np.unique(cluster)
        if (cluster == c).sum() > 1
    ]
    return (
        float(
            np.average([share for share, _ in commonest], weights=[size for _, size in commonest])
        )
        if commonest
        else 0.0
    )


def _table_of_values(values: list[list[str]]) -> tuple[Array, list[str]]:
    """(which feature's rule asks for which value, the values): those that at least two rules ask for."""
    names, counts = np.unique([v for of_one in values for v in of_one], return_counts=True)
    known = {str(v): i for i, v in enumerate(names[counts > 1])}
    table = np.zeros((len(values), max(1, len(known))), dtype=np.float32)
    for row, of_one in enumerate(values):
        table[row, [known[v] for v in of_one if v in known]] = 1
    return table, list(known) or [UNNAMED]


def summary(table: pd.DataFrame, values: list[list[str]], seed: int) -> dict:
    """Sizes and names of the clusters, and whether they mean anything: how much their members' rules share, against the same sizes filled at random."""
    cluster, rng = table["cluster"].to_numpy(), np.random.default_rng((seed, 4))
    by_chance = [shared_value(rng.permutation(cluster), values) for _ in range(NULL_DRAWS)]
    sizes = table.groupby(["cluster", "name"]).size().reset_index(name="size")
    return {
        "features": len(table),
        "clusters": len(sizes),
        "size_median": sizes["size"].median(),
        "size_largest": sizes["size"].max(),
        "named": int((sizes["name"] != UNNAMED).sum()),
        "shared_value": shared_value(cluster, values),
        "shared_value_by_chance": np.mean(by_chance),
        "shared_value_by_chance_most": max(by_chance),
        "largest": sizes.sort_values("size", ascending=False)
        .head(20)[["cluster", "name", "size"]]
        .to_dict("records"),
    }


def cluster_map(table: pd.DataFrame, labels: int = 14) -> go.Figure:
    """Every feature as a point with its rule on hover; colours repeat, the `labels` largest named clusters are written on the map."""
    text = [
        f"feature {f}<br>cluster {c}: {label(n, 80)}<br>{label(r, 160)}"
        for f, c, n, r in table[["feature", "cluster", "name", "rule"]].itertuples(index=False)
    ]
    colours = [figures.PALETTE[c % len(figures.PALETTE)] for c in table["cluster"]]
    marker = {"size": 5, "color": colours, "opacity": 0.75}
    fig = go.Figure(
        go.Scatter(
            x=table["x"],
            y=table["y"],
            mode="markers",
            marker=marker,
            text=text,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    named = table[table["name"] != UNNAMED]
    for cluster in named["cluster"].value_counts().index[:labels]:
        members = named[named["cluster"] == cluster]
        place, name = members[["x", "y"]].median(), label(members["name"].iloc[0], 40)
        fig.add_annotation(
            x=place["x"],
            y=place["y"],
            text=name,
            showarrow=False,
            bgcolor="rgba(255,255,255,0.75)",
            font={"size": 11},
        )
    fig.update_layout(
        title="Features by decoder direction and firing together (t-SNE); clusters named by what their rules share",
        hoverlabel={"align": "left"},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return fig
