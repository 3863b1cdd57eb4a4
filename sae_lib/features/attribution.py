"""Why does a feature fire? The exact split of a firing into what its token, its position, every
(head, source token) and the biases add.

Inside one block, everything between the residual stream and a feature's pre-activation is linear
once three things of that place are held as they are: the attention pattern, the scales of the two
norms (what each divides by), and the gates of the MLP (what each neuron's inner activation is
multiplied by: 0 or 1 of a ReLU, the gate's activation of a gated MLP). So the pre-activation is a
sum. For a feature with encoder column w at position p, with the residual stream before the block
r = Σ_k r_k (streams k: token embedding and position embedding in layer 0 of GPT-2; elsewhere all of
it is the first, which in deeper layers is what the layers below have left at a token):

    z = Σ_k r_k[p]·e + Σ_{k, head, source s ≤ p} A[head, p, s] · v_k[s, head]·c[head] + biases
    e = N₂ᵀ W_in (gate[p] ⊙ w)       what a unit of the residual stream at p adds to z
    c[head] = W_O[head] e            what a unit of a head's value adds
    v_k[s, head] = (N₁ r_k[s]) W_V[head]
    biases = b_enc − b_dec·w + (gate ⊙ w)·b_in + β₂·(W_in (gate ⊙ w)) + (b_O + (b_V + β₁ W_V) W_O)·e

N r = weight ⊙ r / scale, of r minus its mean in a LayerNorm, and β is a norm's bias. A transcoder
reads the MLP's input itself: its e is N₂ᵀ w, and no gate is held.

The biases mostly act as a threshold that the other parts, the *push*, have to overcome. So a
part's **share** is what it adds divided by the push: z − biases. Shares add up to 1; a part that
holds back has a negative one. Where the push is not above zero there are no shares (NaN).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Integer
from scipy.sparse import csc_array
from torch import Tensor, nn

from sae_lib.device import upload
from sae_lib.errors import ModelError
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.transcoder import Transcoder

# The modules of a block by what they do here: norm, attention, its values and output, norm, and
# what the MLP's gates multiply.
MODULES = {
    "gpt2": "ln_1 attn attn.c_attn attn.c_proj ln_2 mlp.c_fc",
    "llama": "input_layernorm self_attn self_attn.v_proj self_attn.o_proj post_attention_layernorm"
    " mlp.up_proj",
}
ROWS_AT_ONCE = 64  # whose attention patterns exist at a time
TOKEN, POSITION = 0, 1  # the streams
NEAR = 16  # ranks of frequency in which two tokens count as equally frequent
# A feature is of the first kind that applies; shares of its whole push over a sample of firings.
KINDS = {
    "token": "own token ≥ 90 % of the push",
    "position": "position embeddings ≥ 50 %, its own and those that heads bring",
    "bigram": "own and previous token together ≥ 90 %",
    "induction-like": "earlier copies of the own token, and what followed them, ≥ 25 %",
    "wider context": "all others",
}
PARTS = ["own", "previous", "repeats", "positions", "others"]  # they add up to the push
Rows = Integer[np.ndarray, "row position"]  # token ids
Places = pd.DataFrame  # row, position and feature of each firing to look at, ordered by row


def draw_places(
    table: csc_array, length: int, seed: int, n: int, features: Iterable[int] | None = None
) -> Places:
    """`n` of the firings in a table [token, feature] of rows of `length` tokens, drawn evenly; or
    up to `n` of each of some features.
    """
    rng, groups = np.random.default_rng(seed), [np.arange(table.nnz)]
    if features is not None:
        groups = [np.arange(*table.indptr[feature : feature + 2]) for feature in features]
    chosen = np.concatenate([rng.permutation(group)[:n] for group in groups])
    row, position = np.divmod(table.indices[chosen].astype(np.int64), length)
    feature = np.searchsorted(table.indptr, chosen, side="right") - 1
    places = pd.DataFrame({"row": row, "position": position, "feature": feature})
    return places.sort_values([*places], ignore_index=True)


@dataclass(frozen=True)
class Held:
    """What a forward pass holds fixed and carries, for some rows of text. A source is a position,
    or BOS where the model is given one before every row.
    """

    streams: Float[Tensor, "2 row position d_model"]  # they add up to the block's input
    values: Float[Tensor, "2 row source head d_head"]  # v above, of each stream
    pattern: Float[Tensor, "row head query source"]
    scale: Float[Tensor, "row position 1"]  # 1 / what the norm before the MLP divides by
    gate: Float[Tensor, "row position d_mlp"]
    x: Float[Tensor, "row position d_in"]  # what the autoencoder encodes
    mid: Float[Tensor, "row position d_model"]  # the residual stream before the MLP
    last: Float[Tensor, "row position d_model"]  # and what the model's final norm is given


@dataclass(frozen=True)
class Split:
    """The parts of pre-activations. `total` is what the autoencoder computes, from the same pass
    but not from the parts; `neurons` is the other split, f = Σ x_j w_j + (b_enc − b_dec·w), by the
    neurons that carry it.
    """

    total: Float[Tensor, " n"]
    own: Float[Tensor, "n stream"]
    sources: Float[Tensor, "n stream head source"]
    biases: Float[Tensor, " n"]
    neurons: Float[Tensor, "n d_in"]

    @property
    def push(self) -> Float[Tensor, " n"]:
        return self.own.sum(1) + self.sources.sum((1, 2, 3))

    @property
    def error(self) -> Float[Tensor, " n"]:
        """|sum of the parts − total| / sum of their absolute values."""
        size = self.own.abs().sum(1) + self.sources.abs().sum((1, 2, 3)) + self.biases.abs()
        return (self.push + self.biases - self.total).abs() / size.clamp_min(1e-30)


class Block:
    """The block whose MLP an autoencoder reads, or whose MLP a transcoder stands for. `ModelError`
    where its hook is not an MLP's hook_post.
    """

    def __init__(self, hook: HookPoint, sae: SparseAutoencoder):
        if not hook.name.endswith("mlp.hook_post"):
            raise ModelError(
                f"the autoencoder reads {hook.name}; a firing can be split for autoencoders of an"
                " MLP's neurons, blocks.*.mlp.hook_post"
            )
        self.hook, self.sae, base = hook, sae, hook.model.base_model
        family = "gpt2" if hasattr(base, "h") else "llama"
        self.module = (base.h if family == "gpt2" else base.layers)[hook.layer]
        self.wpe = base.wpe.weight if family == "gpt2" and hook.layer == 0 else None
        self.names, self.n_heads = MODULES[family].split(), hook.model.config.num_attention_heads
        # a copy of the weights in which sums are exact, whatever precision the model has
        exact = deepcopy(self.module).float().requires_grad_(False)
        modules = map(exact.get_submodule, self.names)
        self.norm1, _, self.to_values, self.output, self.norm2, self.inner = modules
        self.is_transcoder = isinstance(sae, Transcoder)
        final_norm = base.ln_f if family == "gpt2" else base.norm
        self.watched = [*map(self.module.get_submodule, self.names), hook.module, final_norm]
        self.final_norm = deepcopy(final_norm).float().requires_grad_(False)
        self.value_bias = self._values(torch.zeros_like(self.norm1.weight), 1.0)
        self.attention_bias = self.output(self.value_bias.flatten())  # of any pattern

    @torch.no_grad()
    def forward(self, rows: Rows) -> Held:
        """One pass, with the attention computed so that its pattern can be seen."""
        tokens = upload(rows.astype(np.int64), self.hook.device)
        with _watched(self.watched) as seen, _eager(self.hook.model):
            self.hook.hidden(tokens)
        (r, _), (_, (_, pattern)), _, _, (mid, normed), (_, inner), (x, _), (last, _) = (
            seen.values()
        )
        r, x, inner, mid, last = (part.float() for part in (r, x, inner, mid, last))
        positions = torch.zeros_like(r)
        if self.wpe is not None:
            positions += self.wpe[: r.shape[1]]
        scale = norm_scale(self.norm1, r)
        streams = torch.stack([r - positions, positions])
        values = self._values(streams, scale) - self.value_bias
        gate = torch.where(inner == 0, 0.0, x / inner)
        x = normed.float() if self.is_transcoder else x
        first = self.hook.n_before
        own = (part[:, first:] for part in (norm_scale(self.norm2, mid), gate, x, mid, last))
        return Held(streams[:, :, first:], values, pattern[:, :, first:].float(), *own)

    def _values(self, r: Tensor, scale: Tensor | float) -> Float[Tensor, "*n head d_head"]:
        """Of every head; GPT-2's projection makes queries and keys before them, and with grouped
        queries several heads read the same.
        """
        d_head = self.module.get_submodule(self.names[1]).head_dim
        values = self.to_values(held_norm(self.norm1, r, scale))[..., -self.n_heads * d_head :]
        values = values.unflatten(-1, (-1, d_head))
        return values.repeat_interleave(self.n_heads // values.shape[-2], dim=-2)

    @torch.no_grad()
    def split(
        self,
        held: Held,
        row: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        feature: Int[Tensor, " n"],
    ) -> Split:
        """The parts of the pre-activation of a feature at each place, a row of `held` and a
        position in it.
        """
        x, w = held.x[row, position], self.sae.W_enc_T[feature]
        b_enc, gate = self.sae.b_enc[feature], held.gate[row, position]

        def pre_activation(mid: Tensor) -> Tensor:
            read = held_norm(self.norm2, mid, held.scale[row, position])
            read = read if self.is_transcoder else gate * self.inner(read)
            return (self.sae.encoded_part(read) * w).sum(1) + b_enc

        own, sources, biases = self.parts(held, row, position, pre_activation)
        total = (self.sae.encoded_part(x) * w).sum(1) + b_enc
        return Split(total, own, sources, biases, x * w)

    @torch.no_grad()
    def parts(
        self,
        held: Held,
        row: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        affine: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(own, sources, biases) as in a `Split`, of a number that is an `affine` function of the
        residual stream before the MLP at each place. That map, and the one behind the heads, have
        biases as their values at 0, and as gradients what a unit adds. What BOS brings counts
        with the biases.
        """
        mid = torch.zeros_like(held.mid[row, position], requires_grad=True)
        heads = mid.new_zeros(len(row), *held.values.shape[-2:]).requires_grad_()
        with torch.enable_grad():
            z = affine(mid + self.output(heads.flatten(1)))
            effect, through = torch.autograd.grad(z.sum(), (mid, heads))
        own = torch.einsum("knd,nd->nk", held.streams[:, row, position], effect)
        sources = own.new_empty(*own.shape, *held.pattern.shape[1::2])
        for of in row.unique():
            n = row == of
            carried = torch.einsum("kshd,nhd->nkhs", held.values[:, of], through[n])
            sources[n] = carried * held.pattern[of, :, position[n]].transpose(0, 1)[:, None]
        biases = z.detach() + (self.value_bias * through).sum((1, 2))
        bos, sources = sources.tensor_split([self.hook.n_before], dim=3)
        return own, sources, biases + bos.sum((1, 2, 3))


def held_norm(norm: nn.Module, r: Tensor, scale: Tensor | float) -> Tensor:
    """A LayerNorm or RMSNorm that divides by what it is told."""
    bias = getattr(norm, "bias", None)
    normed = centred(norm, r) * scale * norm.weight
    return normed if bias is None else normed + bias


def norm_gradient(norm: nn.Module, wanted: Tensor, scale: Tensor) -> Tensor:
    """What a unit of its input adds to the norm's output along `wanted`."""
    return centred(norm, norm.weight * wanted) * scale


def centred(norm: nn.Module, r: Tensor) -> Tensor:
    return r - r.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else r


def norm_scale(norm: nn.Module, r: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n 1"]:
    eps = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
    return (centred(norm, r).pow(2).mean(-1, keepdim=True) + eps).rsqrt()


@contextmanager
def _watched(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple]]:
    """By module, in their order, its first argument and output of the next forward pass."""
    seen = dict.fromkeys(modules)

    def keep(module, args, output) -> None:
        seen[module] = (args[0] if args else None, output)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(keep))
        yield seen


@contextmanager
def _eager(model) -> Iterator[None]:
    """Faster kinds of attention do not give their pattern."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def place_numbers(places: Places) -> tuple[Int[Tensor, " n"], ...]:
    """(row, position, feature) of each."""
    return tuple(torch.from_numpy(places[["row", "position", "feature"]].to_numpy().T.copy()))


def path_table(block: Block, rows: Rows, places: Places, seed: int = 0) -> pd.DataFrame:
    """`places` with activation (before the ReLU, the sum), biases, error, and `PARTS` of the push.

    `own`: the token there, directly and through heads that look at their own place. `previous`: the
    token before; `repeats`: those before that which are the same token as at the place or follow
    one; `others`: all other tokens; all through heads. `positions`: all position embeddings.
    `repeats_null`: `repeats` with the own token of another place, drawn at random.
    """
    frames, rng, number = [], np.random.default_rng((seed, 8)), np.arange(rows.shape[1])
    for chunk, part in places.groupby(places["row"] // ROWS_AT_ONCE):
        first = chunk * ROWS_AT_ONCE
        row, position, feature = place_numbers(part)
        held = block.forward(rows[first : first + ROWS_AT_ONCE])
        split = block.split(held, row - first, position, feature)
        text, at = rows[part["row"]], part["position"].to_numpy()[:, None]
        own, sources = split.own.cpu().numpy(), split.sources.sum(2).cpu().numpy()
        token, ids = sources[:, TOKEN], np.take_along_axis(text, at, 1)
        columns = {"own": own[:, TOKEN] + token[number == at]}
        columns["previous"] = (token * (number == at - 1)).sum(1)
        columns["positions"] = own[:, POSITION] + sources[:, POSITION].sum(1)
        for name, of in (("repeats", ids), ("repeats_null", rng.permutation(ids))):
            same = text == of
            same[:, 1:] |= same[:, :-1]
            columns[name] = (token * (same & (number < at - 1))).sum(1)
        before = (token * (number < at - 1)).sum(1)
        columns["others"] = before - columns["repeats"]
        columns["activation"] = split.total.cpu().numpy()
        columns |= {name: getattr(split, name).cpu().numpy() for name in ("biases", "error")}
        frames.append(part.assign(**columns))
    return pd.concat(frames, ignore_index=True)


def feature_kinds(paths: pd.DataFrame) -> pd.DataFrame:
    """A row per feature of a `path_table`: the shares of `PARTS` and of `repeats_null` in the sum
    over its places, and its kind (`KINDS`; "none" where the push is not above zero).
    """
    sums = paths.groupby("feature")[[*PARTS, "repeats_null"]].sum()
    push = sums[PARTS].sum(axis=1)
    shares = sums.div(push.where(push > 0), axis=0)
    own, previous, repeats, positions, _ = (shares[part] for part in PARTS)
    holds = (own >= 0.9, positions >= 0.5, own + previous >= 0.9, repeats >= 0.25, push > 0)
    return shares.assign(kind=np.select(holds, list(KINDS), "none"))


def replaced_sources(block: Block, rows: Rows, places: Places, seed: int = 0) -> pd.DataFrame:
    """What becomes of a firing when its top source token, that before its own whose parts are the
    largest, is replaced by a random one of the same frequency (`NEAR` ranks); and, as the null,
    when another source is, drawn at random. Places with fewer than two tokens before are left out.

    A row per place: activation, and for `top` and `other`: `predicted_*`, the change of the
    pre-activation with pattern, scale and gates held; `actual_*`, that when the model runs on the
    changed text.
    """
    rng, frames = np.random.default_rng((seed, 9)), []
    occurring, counts = np.unique(rows, return_counts=True)
    by_count = occurring[np.argsort(counts, kind="stable")]
    rank, near = pd.Series(np.arange(len(by_count)), by_count), min(NEAR, len(by_count) // 2)
    places = places[places["position"] > 1]
    for start in range(0, len(places), ROWS_AT_ONCE):
        part = places[start : start + ROWS_AT_ONCE]
        ids, at, n = rows[part["row"]], part["position"].to_numpy(), torch.arange(len(part))
        _, position, feature = place_numbers(part)
        held = block.forward(ids)
        split = block.split(held, n, position, feature)
        strength = split.sources.sum((1, 2)).cpu().numpy()
        strength[np.arange(rows.shape[1]) >= at[:, None]] = -np.inf
        top, columns = strength.argmax(1), {"activation": split.total.cpu()}
        for name, source in (("top", top), ("other", (top + rng.integers(1, at)) % at)):
            changed, ranks = ids.copy(), rank[ids[n, source]].to_numpy()
            step = rng.integers(1, near + 1, len(n)) * rng.choice((-1, 1), len(n))
            inside = (ranks + step >= 0) & (ranks + step < len(by_count))
            changed[n, source] = by_count[np.where(inside, ranks + step, ranks - step)]
            after = block.forward(changed)
            predicted = block.split(replace(held, values=after.values), n, position, feature)
            actual = block.split(after, n, position, feature)
            columns[f"predicted_{name}"] = (predicted.push - split.push).cpu()
            columns[f"actual_{name}"] = (actual.total - split.total).cpu()
        frames.append(pd.DataFrame(columns, dtype=float))
    return pd.concat(frames, ignore_index=True)
