"""Why a feature fires on a text: the table of `python -m suite why`, and a figure of it."""

from textwrap import indent
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from sae_lib.errors import SettingsError
from sae_lib.features import clamping
from sae_lib.features.attribution import Block, Split
from sae_lib.figures import PALETTE
from sae_lib.formats import decimal, percent, signed
from sae_lib.text.display import Vocabulary, isolated
from suite import markup, stages
from suite.charts import AGAINST
from suite.runs import Run

SHOWN, HEADS, NEURONS = 8, 3, 5  # source tokens, heads of each and neurons that are listed
SUMS = ["push: all of these", "biases", "pre-activation: push + biases"]
NOTE = """
At {}. Exact with the attention pattern, the norms' scales and the MLP's
gates of this place held. A share is a part of the push, which stands against the biases."""


class Firing(NamedTuple):
    """One place in a text: the token there and its position, whether the feature fires, its split,
    and a table of the parts: part, adds, share (of the push), through (which heads).
    """

    token: str
    position: int
    fires: bool
    split: Split
    parts: pd.DataFrame


def firing(run: Run, feature: int, text: str, position: int | None = None) -> Firing:
    """Why a feature fires, or does not, at a position of a text; by default where its
    pre-activation is largest. Errors as `clamping.check` and `clamping.ClampTarget.encode`.
    """
    hook, sae, tokenizer = stages.hook(run), run.get("autoencoder"), run.get("tokens").tokenizer
    clamping.check([clamping.Clamp(feature)], sae)
    block, ids = Block(hook, sae), clamping.ClampTarget(hook, sae, tokenizer).encode(text)
    n, held = ids.shape[1], block.forward(ids.cpu().numpy())
    if position is not None and not -n <= position < n:
        raise SettingsError(
            f"--position {position}: the text has {n} token(s), so positions go from 0 to {n - 1}"
        )
    at = sae.pre_activations(held.x[0])[:, feature].argmax().item()
    at = at if position is None else position % n
    split = block.split(held, *torch.tensor([[0], [at], [feature]]))
    names = [isolated(Vocabulary(tokenizer).name(token)) for token in ids[0].tolist()]
    fires = sae.encode(held.x[0])[at, feature].item() > 0
    return Firing(names[at], at, fires, split, _parts(names, at, split, hook.layer))


def _parts(names: list[str], at: int, split: Split, layer: int) -> pd.DataFrame:
    token, position = split.own[0].tolist()
    own = "own token" if layer == 0 else "what the layers below left at"
    parts = {f"{own} `{names[at]}`": (token, "")}
    if position:
        parts[f"own position {at}"] = (position, "")
    added = split.sources[0].sum(0).T.cpu().numpy()[: at + 1]  # [source, head]
    order = np.argsort(-np.abs(added.sum(1)), kind="stable")
    for source in order[:SHOWN]:
        heads = np.argsort(-np.abs(added[source]), kind="stable")[:HEADS]
        through = ", ".join(f"head {head} {signed(added[source, head])}" for head in heads)
        where = f"{at - source} before" if source < at else "itself"
        parts[f"token {source} `{names[source]}` ({where})"] = (added[source].sum(), through)
    if len(rest := order[SHOWN:]):
        parts[f"{len(rest)} other tokens"] = (added[rest].sum(), "")
    push, biases = split.push.item(), split.biases.item()
    parts |= {
        sum_: (adds, "") for sum_, adds in zip(SUMS, (push, biases, push + biases), strict=True)
    }
    table = pd.DataFrame([*parts.values()], columns=["adds", "through"])
    shown = (np.arange(len(table)) < len(table) - 2) & (push > 0)
    return table.assign(part=[*parts], share=(table["adds"] / push).where(shown))


def why(run: Run, feature: int, text: str, position: int | None = None) -> str:
    """What `python -m suite why` prints."""
    found = firing(run, feature, text, position)
    total, neurons = found.split.total.item(), found.split.neurons[0]
    does = f"fires with {decimal(total)}" if found.fires else "does not fire"
    where = "" if position is not None else ", where its pre-activation is largest"
    largest = neurons.abs().topk(min(NEURONS, len(neurons))).indices.tolist()
    carried = ", ".join(f"neuron {j} {signed(neurons[j].item())}" for j in largest)
    parts = found.parts.assign(
        adds=found.parts["adds"].map(signed),
        share=found.parts["share"].map(percent, na_action="ignore").fillna(""),
    )
    for text_column in ("part", "through"):
        parts[text_column] = parts[text_column].str.ljust(parts[text_column].str.len().max())
    table = parts[["part", "adds", "share", "through"]].to_string(index=False)
    return "\n".join(
        [
            f"feature {feature} {does} at token {found.position}, `{found.token}`{where}\n",
            indent(table, "  "),
            f"\nmost of it is carried by {carried}",
            NOTE.format(stages.hook(run).name),
        ]
    )


def figure(found: Firing, feature: int) -> go.Figure:
    """What each part of one firing adds, in a bar."""
    table = found.parts[found.parts["part"] != SUMS[0]]
    parts = table.iloc[:-2]
    most = parts.loc[parts["adds"].idxmax()]
    title = f"Feature {feature} at token {found.position}: most is added by"
    title += f" {markup.label(most['part'], 40)} ({signed(most['adds'])})"
    colours = np.where(table["adds"] < 0, AGAINST, PALETTE[0])
    bars = go.Bar(
        x=table["adds"], y=table["part"].map(markup.label), orientation="h", textposition="outside"
    )
    fig = go.Figure(bars.update(marker_color=colours, text=table["adds"].map(signed)))
    fig.update_yaxes(autorange="reversed")
    low, high = min(0, table["adds"].min()), max(0, table["adds"].max())
    fig.update_xaxes(range=[low - 0.12 * (high - low), high + 0.12 * (high - low)])  # numbers fit
    return fig.update_layout(title=title, xaxis_title="adds to the pre-activation")
