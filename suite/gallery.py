"""Kinds of features and their shares, features worth a look beside a uniform draw, and one token
followed from neurons to features and their sources: plain data for the report.
"""

from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from scipy.sparse import csc_array

from sae_lib.features.attribution import Block, draw_places, feature_kinds, path_table
from sae_lib.features.circuits import against_text, cards
from sae_lib.features.firing import Rows, firing_tables, spread_rows
from sae_lib.files import read_record
from sae_lib.model.activations import harvest
from sae_lib.sae.directions import random_directions, thresholded
from sae_lib.text.tokenizer import token_ids
from suite import close_reading, stages
from suite.circuits import HEAVY
from suite.runs import Run
from suite.table import FeatureTable, open_table
from suite.why import SUMS, firing

DRAWN = 768  # features of the whole dictionary, whose kinds are counted
NULL = 256  # random directions
FIRINGS, RARE = 8, 10  # looked at of each; below so many nothing is said of a feature
OWN, MANY, LIFT = 0.5, 20, 4.0
KINDS = {
    "token": "its own token brings at least half of the push",
    "context": f"it fires on at least {MANY} different tokens, and its own brings less than half",
    "continuation": "one of the ten tokens that it raises follows at least four times as often "
    "as on average",
    "none found": "none of these",
    "too rare": f"it fires fewer than {RARE} times on this text",
}
CARDS, RANKED = 20, 500  # of each list; best features whose kinds are looked at for it
SOURCES, NEURONS = 3, 10
SAMPLE = 32_768  # activations that the thresholds of random directions are taken from
TEXT, TOKEN = (
    "def load(path):\n    with open(path) as file:\n        return json.load(file)\n",
    "return",
)


def summary(run: Run) -> dict[str, Any]:
    """All of this, for `results/gallery.json`; `autoencoder` is the hash of its weights."""
    sae, hook, seed = run.get("autoencoder"), stages.hook(run), run.settings.seed
    rows = stages.heldout_rows(run, min(run.settings.evaluation.tokens, stages.CIRCUIT_TOKENS))
    block, rng = Block(hook, sae), np.random.default_rng((seed, 21))
    fired = firing_tables(hook, {"": sae}, rows)[""]
    of = table_of_kinds(block, fired, rows, rng.permutation(sae.d_sae)[:DRAWN], seed)
    x = harvest(hook, spread_rows(rows, SAMPLE)).float()
    density = of.loc[~of["too rare"], "n"] / rows.size
    null = random_directions(x, NULL, seed)
    null = thresholded(null.at_density(x, torch.tensor(rng.choice(density, NULL))))
    by_chance = firing_tables(hook, {"": null}, rows)[""]
    by_chance = table_of_kinds(Block(hook, null), by_chance, rows, np.arange(NULL), seed)
    ranked = run.get("circuits")["cards"]  # with the scores that the table then has
    table = open_table(run)
    best = ranked["feature"][ranked["rank"].notna()][:RANKED].to_numpy()
    drawn = np.array(close_reading.draw(table, CARDS, seed))
    shown = table_of_kinds(block, fired, rows, np.unique([*best, *drawn]), seed)
    by_rank = shown.loc[best]
    chosen = {kind: best[by_rank[kind].to_numpy()][:CARDS] for kind in ("token", "context")}
    chosen["drawn"] = drawn
    weights = read_record(run.path("autoencoder"))["files"]["sae_weights.safetensors"][1]
    return {
        "autoencoder": weights,
        "tokens": rows.size,
        "definitions": KINDS,
        "kinds": {"features": _shares(of), "random directions": _shares(by_chance)},
        "cards": {
            name: _cards(table, ranked, shown.loc[features]) for name, features in chosen.items()
        },
        "token": on_token(run, table),
    }


def table_of_kinds(
    block: Block, fired: csc_array, rows: Rows, units: np.ndarray, seed: int
) -> pd.DataFrame:
    """A row per unit of the block's autoencoder, which fires as `fired` [token, unit] says: its
    firings `n`, on how many different tokens `n_tokens`, its shares of the push and what follows
    where it fires often enough, and a column of truth for each of `KINDS`.
    """
    ids, ends = rows.ravel(), fired.indptr
    tokens = {u: ids[fired.indices[ends[u] : ends[u + 1]]] for u in units}
    counts = {u: (len(of), len(np.unique(of))) for u, of in tokens.items()}
    table = pd.DataFrame.from_dict(counts, orient="index", columns=["n", "n_tokens"])
    enough = table.index[table["n"] >= RARE].to_numpy(copy=True)
    if len(enough):
        found = cards(against_text(block, fired, rows, enough)).set_axis(enough)
        places = draw_places(fired, rows.shape[1], seed, FIRINGS, enough)
        shares = feature_kinds(path_table(block, rows, places, seed)).drop(columns="kind")
        table = table.join(found).join(shares)
    table = table.reindex(columns=table.columns.union(["own", "lift"], sort=False))
    context = (table["n_tokens"] >= MANY) & (table["own"] < OWN)
    kinds = {
        "token": table["own"] >= OWN,
        "context": context,
        "continuation": table["lift"] >= LIFT,
    }
    table = table.assign(**kinds, **{"too rare": table["n"] < RARE})
    return table.assign(**{"none found": ~table[[*kinds, "too rare"]].any(axis=1)})


def _shares(table: pd.DataFrame) -> dict[str, Any]:
    """Of each kind its share, with a 95 % interval (Wilson), and its share of those units that fire
    often enough to say.
    """
    often = ~table["too rare"]
    found: dict[str, Any] = {"n": len(table), "often": int(often.sum())}
    for kind in KINDS:
        share = scipy.stats.binomtest(int(table[kind].sum()), len(table))
        interval = share.proportion_ci(method="wilson")
        found[kind] = {"share": table[kind].mean(), "interval": list(interval)}
        found[kind]["of_often"] = table.loc[often, kind].mean()
    return found


def agreement(examples: pd.DataFrame, lower: int = close_reading.LOWER) -> pd.DataFrame:
    """By feature: the share of its strongest examples on the token that is most frequent among
    them, and of those from its `lower` lowest tenths on the same token.
    """
    top, low = examples[examples["tenth"] < 0], examples[examples["tenth"].between(0, lower - 1)]
    token = top.groupby("feature")["token_id"].agg(lambda ids: ids.mode().iloc[0])
    shares = {
        name: (part["token_id"] == part["feature"].map(token)).groupby(part["feature"]).mean()
        for name, part in (("top_share", top), ("lower_share", low))
    }
    return pd.DataFrame(shares)


def _cards(table: FeatureTable, ranked: pd.DataFrame, kinds: pd.DataFrame) -> list[dict[str, Any]]:
    examples = table.examples[table.examples["feature"].isin(kinds.index)]
    ranks = ranked.set_index("feature")[["rank", "score"]]
    scores = table.features[["rule", "information"]]
    found = kinds.join(ranks).join(scores).join(agreement(examples))
    listed = []
    for number, row in found.iterrows():
        card = row.to_dict() | {"feature": int(number)}
        card["kinds"] = [kind for kind in KINDS if row[kind]]
        for name in ("fires_on", "raises"):
            ids = row.get(name)
            known = isinstance(ids, list)
            card[name] = [table.vocabulary.name(int(i)) for i in ids] if known else []
        card["rule"] = card["rule"] if isinstance(card["rule"], str) else ""
        full = close_reading.in_full(table, int(number))
        card["examples"] = full["examples"][:2]
        card["low"] = full["tenths"][-close_reading.LOWER :: 2]
        listed.append(card)
    return listed


def on_token(run: Run, table: FeatureTable) -> dict[str, Any]:
    """One token of a text: its strongest features, each with its sources; and of its ten strongest
    neurons the one whose strongest examples are on the most different tokens.
    """
    sae, tokenizer, hook = run.get("autoencoder"), run.get("tokens").tokenizer, stages.hook(run)
    ids = token_ids(tokenizer, TEXT)
    words = [tokenizer.decode([i]).strip() for i in ids]
    at = words.index(TOKEN) if TOKEN in words else len(ids) // 2
    x = hook.activations(torch.tensor([ids], device=hook.device))[0, at].float()
    f = sae.encode(x[None])[0]
    strongest = f.topk(min(SOURCES, int((f > 0).sum()))).indices.tolist()
    neurons = open_table(run, "neurons")
    entries = [
        close_reading.in_full(neurons, j) for j in x.topk(min(NEURONS, len(x))).indices.tolist()
    ]
    chosen = max(entries, key=lambda e: len(e["top_tokens"]))
    j = chosen["feature"]
    adds = f * sae.W_dec[:, j]
    of_length = sae.W_dec[:, j] / sae.W_dec.norm(dim=1).clamp_min(1e-12)
    return {
        "text": TEXT,
        "token": table.vocabulary.name(ids[at]),
        "active": int((f > 0).sum()),
        "features": [_with_sources(run, table, i, at, f[i].item()) for i in strongest],
        "neuron": chosen
        | {
            "value": x[j].item(),
            "explained": (adds.sum() + sae.b_dec[j]).item(),
            "carriers": [
                {"feature": i, "adds": adds[i].item()} for i in adds.topk(SOURCES).indices.tolist()
            ],
            "writers": int((of_length.abs() >= HEAVY).sum()),
        },
    }


def _with_sources(run: Run, table: FeatureTable, i: int, at: int, value: float) -> dict[str, Any]:
    parts = firing(run, i, TEXT, at).parts.dropna(subset="share")
    parts = parts[~parts["part"].isin(SUMS)]
    largest = parts.reindex(parts["adds"].abs().sort_values(ascending=False).index)[:SOURCES]
    sources = largest[["part", "adds", "share"]].to_dict("records")
    return close_reading.entry(table, i) | {"value": value, "sources": sources}
