"""The attribution graph of a prompt: from its tokens through features to the difference of two
logits at its end (Dunefsky et al. 2024; Ameisen et al. 2025).

With a transcoder in place of the last MLP everything is linear once the attention pattern, the
scales of the norms and which features are active are held. So the difference is a sum of edges into
it, and each edge a product of weight matrices. With an autoencoder of the MLP's neurons the MLP's
gates are held as well, and its output matrix follows the decoder:

    token → logits            past the MLP, straight and through the heads
    token → feature → logits  the same into W_enc, then W_dec and W_U
    other → logits            position embeddings, biases, the skip connection, and the error: what
                              the MLP gives and the features do not
"""

from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from sae_lib.device import upload
from sae_lib.errors import ModelError
from sae_lib.features.attribution import (
    POSITION,
    TOKEN,
    Block,
    held_norm,
    norm_gradient,
    norm_scale,
)
from sae_lib.features.firing import Rows, spread_rows
from sae_lib.progress import tqdm
from sae_lib.sae.transcoder import MLPPair

Array = np.ndarray
ERROR = "the features' error"  # the edge of what they do not reconstruct
EDGES = 10  # from tokens to features, that are ablated together


class LogitGraph(NamedTuple):
    """The edges; `total` is the difference that the model computes."""

    features: Int[Tensor, " n"]  # that are active at the prompt's end, and
    activations: Float[Tensor, " n"]
    from_tokens: Float[Tensor, "n source"]  # what each token adds to a feature's pre-activation
    onward: Float[Tensor, " n"]  # what a unit of a feature adds to the difference
    direct: Float[Tensor, " source"]  # what each token adds to the difference past the MLP
    other: dict[str, float]
    total: float

    @property
    def through_features(self) -> Float[Tensor, " n"]:
        """The edges from features to the logits."""
        return self.activations * self.onward

    @property
    def paths(self) -> Float[Tensor, "n source"]:
        """What a token adds to the difference through a feature."""
        return self.from_tokens * self.onward[:, None]

    @property
    def error(self) -> float:
        """|sum of the edges − total| / sum of their absolute values."""
        edges = torch.cat(
            [self.through_features, self.direct, torch.tensor([*self.other.values()])]
        )
        return (abs(edges.sum() - self.total) / edges.abs().sum().clamp_min(1e-30)).item()


@torch.no_grad()
def logit_graph(
    block: Block, ids: Integer[Array, " position"], better: int, worse: int
) -> LogitGraph:
    """Of the logit of token `better` less that of `worse`, at the end of the prompt `ids`.

    Raises `ModelError` where the block is not the model's last.
    """
    model, sae = block.hook.model, block.sae
    if block.hook.layer < model.config.num_hidden_layers - 1:
        raise ModelError(f"{block.hook.name}: an attribution graph needs the model's last MLP")
    if block.is_transcoder:
        written = torch.nn.Identity()
    else:  # behind the neurons
        written = deepcopy(block.hook.module).float()
    held, end = block.forward(ids[None]), len(ids) - 1
    x, mid, last = (part[0, end] for part in (held.x, held.mid, held.last))
    unembedding = model.get_output_embeddings().weight
    wanted, norm = (unembedding[better] - unembedding[worse]).float(), block.final_norm
    scale = norm_scale(norm, last)
    onto = norm_gradient(norm, wanted, scale)  # what the residual stream adds to the difference

    def difference(residual: Tensor) -> Tensor:
        return (held_norm(norm, residual, scale) * wanted).sum(-1)

    f = sae.encode(x)
    active = f.nonzero().squeeze(1)
    zero = torch.zeros_like(active)
    split = block.split(held, zero, zero + end, active)
    first = torch.zeros(1, dtype=torch.int64, device=x.device)
    own, sources, biases = block.parts(held, first, first + end, difference)
    direct, from_tokens = sources[0, TOKEN].sum(0), split.sources[:, TOKEN].sum(1)
    direct[end] += own[0, TOKEN]
    from_tokens[:, end] += split.own[:, TOKEN]
    positions = own[0, POSITION] + sources[0, POSITION].sum()
    other = {
        "position embeddings": positions,
        "biases": biases[0] + written(sae.b_dec) @ onto,
        "skip connection": (written(sae(x)) - written(sae.decode(f))) @ onto,
        ERROR: (last - mid - written(sae(x))) @ onto,
    }
    other = {name: value.item() for name, value in other.items()}
    onward = (written(sae.W_dec[active]) - written(torch.zeros_like(sae.b_dec))) @ onto
    edges = f[active], from_tokens, onward, direct
    edges = (edge.cpu() for edge in edges)
    return LogitGraph(active.cpu(), *edges, other, difference(last).item())


@torch.no_grad()
def change_without(
    block: Block,
    ids: Integer[Array, " position"],
    tokens: tuple[int, int],
    graph: LogitGraph,
    removed: Bool[Tensor, "n source"],
) -> float:
    """By how much the difference of the logits of two tokens changes when the `removed` edges from
    tokens to features are, and the model runs again: features may stop, and the final norm is free.
    """
    transcoder, pair, features = block.sae, MLPPair(block.hook), graph.features
    z = graph.activations - (graph.from_tokens * removed).sum(1)
    threshold = transcoder.threshold[features].cpu() if hasattr(transcoder, "threshold") else 0.0
    moved = (z * (z > threshold) - graph.activations).to(pair.device) @ transcoder.W_dec[features]

    def change(both: Tensor) -> Tensor:
        output = both[..., transcoder.d_in :].clone()
        output[0, -1] += moved.to(output.dtype)
        return output

    given = upload(ids[None].astype(np.int64), pair.device)
    with pair.replaced(change):
        changed = pair.logits(given, slice(-1, None))[0, 0].float()
    better, worse = (changed[token] for token in tokens)
    return (better - worse).item() - graph.total


def most_probable(block: Block, ids: Integer[Array, " position"]) -> tuple[int, int]:
    """The two tokens that the model thinks likeliest to follow."""
    given = upload(ids[None].astype(np.int64), block.hook.device)
    with torch.no_grad():
        return tuple(block.hook.logits(given, slice(-1, None))[0, 0].topk(2).indices.tolist())


def graph_study(block: Block, rows: Rows, prompts: int, seed: int) -> pd.DataFrame:
    """A row per prompt, the beginning of a row of text up to a random position, for the two tokens
    that are likeliest to follow: `error` of the sum, and the change of the difference without the
    `EDGES` token–feature edges whose paths are largest (`top`, `top_predicted` with all held), and
    without as many others (`random`). `features`, `tokens` and `unexplained` are shares of the
    edges' absolute sum.
    """
    rng, records = np.random.default_rng((seed, 13)), []
    for row in tqdm(spread_rows(rows, prompts * rows.shape[1]), desc="attribution graphs"):
        ids = row[: rng.integers(rows.shape[1] // 2, rows.shape[1])].astype(np.int64)
        tokens = most_probable(block, ids)
        graph = logit_graph(block, ids, *tokens)
        order = graph.paths.abs().flatten().argsort(descending=True)
        k = min(EDGES, len(order) // 2)
        others = order[k:][graph.paths.flatten()[order[k:]] != 0]
        chosen = {"top": order[:k], "random": torch.from_numpy(rng.permutation(others.numpy())[:k])}
        record = {"error": graph.error}
        for name, edges in chosen.items():
            removed = torch.zeros(len(order), dtype=torch.bool).index_fill(0, edges, True)
            removed = removed.view_as(graph.paths)
            record[name] = change_without(block, ids, tokens, graph, removed)
        record["top_predicted"] = -graph.paths.flatten()[chosen["top"]].sum().item()
        sizes = {"features": graph.through_features, "tokens": graph.direct}
        sizes |= {name: torch.tensor(value) for name, value in graph.other.items()}
        sizes = {name: edges.abs().sum().item() for name, edges in sizes.items()}
        record |= {"features": sizes["features"], "tokens": sizes["tokens"]}
        record |= {"unexplained": sizes[ERROR]}
        records.append(record | {"all": sum(sizes.values())})
    table = pd.DataFrame(records)
    shares = ["features", "tokens", "unexplained"]
    return table.assign(**table[shares].div(table.pop("all"), axis=0))
