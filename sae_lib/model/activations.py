"""Activations at one hook point of a Hugging Face model, named as in TransformerLens."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lib.device import made_ahead, on_gpu, upload
from sae_lib.errors import CorpusError, ModelError, SettingsError
from sae_lib.model.left_out import LeftOut, of_kept

Acts = Float[Tensor, "n d_in"]
ActsByRow = Float[Tensor, "row position d_in"]
TokenIds = Int[Tensor, "row position"]
HOOKS = yaml.safe_load(Path(__file__).with_name("hooks.yaml").read_text("utf-8"))
REFERENCE_TOKENS = 8192  # that the median norm is taken from
ROWS_AT_ONCE = 64  # of a harvest on a CPU, in one forward pass …
BYTES_AT_ONCE = 2**31  # … and on a GPU what a layer's activations may take


def find_hook(hook_name: str, family: str, n_layer: int) -> tuple[int, str, str]:
    """(layer, module, input or output) of a hook name; `ModelError` that lists near ones where
    there is none.
    """
    pairs = product(range(n_layer), HOOKS[family].items())
    names = {f"blocks.{layer}.{hook}": (layer, *place) for layer, (hook, place) in pairs}
    if hook_name not in names:
        near = difflib.get_close_matches(hook_name, names, 4, 0.3) or list(names)[:4]
        raise ModelError(
            f"hook name {hook_name!r} does not exist in this {family} model of {n_layer} layer(s);"
            f" similar names: {', '.join(near)}"
        )
    return names[hook_name]


class _Stop(Exception):
    """Ends a forward pass at the hook: what comes after it is not needed."""


class HookPoint:
    """One hook point of a model: read it, stop at it, or replace what passes through it.

    `bos` goes before every row that the model reads, and is nowhere among what comes out: not among
    tokens, activations, logits or what is replaced.
    """

    left_out: LeftOut | None = None

    def __init__(
        self, model: "transformers.PreTrainedModel", hook_name: str, bos: int | None = None
    ):
        self.model, self.name, self.device, self.bos = model, hook_name, model.device, bos
        self.n_before = 0 if bos is None else 1
        family = "gpt2" if hasattr(model, "transformer") else "llama"
        config = model.config
        self.layer, module, self.side = find_hook(hook_name, family, config.num_hidden_layers)
        d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        # eight tensors of the MLP's width, as counted in a gated one with its attention
        self.token_bytes = 8 * (d_mlp or 4 * config.hidden_size) * model.dtype.itemsize
        try:
            self.module: nn.Module = model.get_submodule(module.format(layer=self.layer))
        except AttributeError:
            raise ModelError(
                f"{type(model).__name__} has neither GPT-2's nor Llama's layout; only these two"
                " are supported, each with its head for the next token"
            ) from None
        if any(m.training and isinstance(m, nn.Dropout) and m.p for m in model.modules()):
            raise ModelError("the model is in training mode with dropout; call model.eval() first")

    @torch.no_grad()
    def activations(self, tokens: TokenIds) -> ActsByRow:
        """The hook's activations; the forward pass stops there."""
        captured: list[Tensor] = []

        def stop(x: Tensor) -> None:
            captured.append(x)
            raise _Stop

        with self.replaced(stop), suppress(_Stop):
            self.hidden(tokens)
        return captured[0]

    def hidden(self, tokens: TokenIds) -> Float[Tensor, "row position d_model"]:
        """The model's last hidden states."""
        ids = torch.nn.functional.pad(tokens, (1, 0), value=self.bos) if self.n_before else tokens
        out = self.model.base_model(input_ids=ids, use_cache=False)
        return out.last_hidden_state[:, self.n_before :]

    def logits(
        self, tokens: TokenIds, positions: slice | Tensor = slice(None)
    ) -> Float[Tensor, "row _ vocab"]:
        """The model's logits at these positions."""
        return self.model.get_output_embeddings()(self.hidden(tokens)[:, positions])

    @contextmanager
    def replaced(self, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Run the model with `change` applied to what passes the hook; where it returns None, that
        passes as it is.
        """

        def after_bos(x: Tensor) -> Tensor | None:
            changed = change(x[:, self.n_before :])
            if changed is None or not self.n_before:
                return changed
            return torch.cat([x[:, : self.n_before], changed], 1)

        def pre_hook(module, args):
            changed = after_bos(args[0])
            return None if changed is None else (changed, *args[1:])

        def hook(module, args, output):
            several = isinstance(output, tuple)
            changed = after_bos(output[0] if several else output)
            return (changed, *output[1:]) if several and changed is not None else changed

        if self.side == "input":
            handle = self.module.register_forward_pre_hook(pre_hook)
        else:
            handle = self.module.register_forward_hook(hook)
        with handle:
            yield


class ActivationTable:
    """Stands where a model's hook would: token t has row t of a table. For activations that are
    there already, and for experiments whose ground truth is known.
    """

    left_out: LeftOut | None = None
    n_before = 0  # tokens that stand before every row

    def __init__(self, table: Float[Tensor, "vocab d_in"]):
        if not table.isfinite().all():
            raise ModelError("the table of activations holds NaN or infinity; leave those rows out")
        self.table, self.device = table.detach(), table.device
        self.token_bytes = table[0].nbytes

    def activations(self, tokens: TokenIds) -> ActsByRow:
        return self.table[tokens]

    def rows(self, width: int = 128) -> Int[np.ndarray, "row position"]:
        """All of the table but the rest of the last row, as rows of tokens for training."""
        width = min(width, len(self.table))
        return np.arange(len(self.table) // width * width).reshape(-1, width)


Source = HookPoint | ActivationTable  # what activations come from


class ActivationBuffer:
    """Shuffled batches of activations from **all** positions of randomly drawn rows of text.

    A chunk of `buffer_rows` random rows is harvested and all its positions are shuffled together.
    Which batch comes when depends on the seed and the batch's number alone. So the buffer's whole
    state is `batches_given`, the number of batches handed out so far; one made with that number as
    `start` goes on where the first one stopped.
    """

    def __init__(
        self,
        hook: Source,
        rows: np.ndarray,
        batch: int,
        buffer_rows: int,
        seed: int,
        start: int = 0,
    ):
        per_row = rows.shape[1]
        if rows.size < batch:
            raise CorpusError(
                f"the corpus has {rows.size:,} tokens in whole rows, fewer than one batch of"
                f" {batch} activations (sae.batch); give more text"
            )
        self.hook, self.rows, self.batch, self.seed = hook, rows, batch, seed
        self.buffer_rows = min(buffer_rows, len(rows))
        self.per_chunk = self.buffer_rows * per_row // batch
        if self.per_chunk == 0:
            raise SettingsError(
                f"sae.buffer_rows: {buffer_rows} rows of {per_row} positions are fewer"
                f" activations than one batch of {batch} (sae.batch); expected at least"
                f" {-(-batch // per_row)} rows"
            )
        self.batches_given = start
        # one chunk; written again and again, as fresh memory costs more than the forward pass
        self.store: Tensor | None = None

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        chunk, i = divmod(self.batches_given, self.per_chunk)
        for acts, order in made_ahead(self._chunk, chunk, self.hook.device):
            for j in range(i, self.per_chunk):
                self.batches_given += 1
                chosen = order[j * self.batch : (j + 1) * self.batch]
                yield acts[chosen].float()  # a large model's are bfloat16
            i = 0
            del acts, order  # another chunk is begun now

    def _chunk(self, chunk: int) -> tuple[Acts, Int[Tensor, " n"]]:
        """The activations of the chunk of that number, and the order in which they are handed
        out.
        """
        epoch, part = divmod(chunk, max(1, len(self.rows) // self.buffer_rows))
        shuffled = permutation(len(self.rows), self.seed, epoch)
        drawn = shuffled[part * self.buffer_rows : (part + 1) * self.buffer_rows]
        rng, size = np.random.default_rng((self.seed, epoch, part)), drawn.size * self.rows.shape[1]
        order = upload(rng.permutation(size), self.hook.device)
        rows = self.rows[np.sort(drawn)]
        acts = harvest(self.hook, rows, out=self.store)
        self.store = None if on_gpu(acts.device) else acts  # there the last one is still in use
        kept = kept_of(self.hook, rows, acts)
        return acts, order if kept is None else of_kept(order, kept)


def harvest(hook: Source, rows: np.ndarray, out: Acts | None = None) -> Acts:
    """Activations of all positions of `rows` [row, position], in order, on the model's device;
    into `out` where given.
    """
    tokens, step = upload(rows.astype(np.int64), hook.device), ROWS_AT_ONCE
    if on_gpu(hook.device):
        step = max(1, BYTES_AT_ONCE // (hook.token_bytes * rows.shape[1]))
    for i in range(0, len(rows), step):
        acts = hook.activations(tokens[i : i + step]).flatten(0, 1)
        out = acts.new_empty(rows.size, acts.shape[1]) if out is None else out
        out[i * rows.shape[1] :][: len(acts)] = acts
    return out


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch goes through `n` rows."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def kept_of(hook: Source, rows: np.ndarray, acts: Acts) -> Bool[Tensor, " n"] | None:
    """Which activations of `rows` count; None where all do."""
    return hook.left_out.kept(rows, acts).flatten() if hook.left_out else None


def harvest_kept(hook: Source, rows: np.ndarray) -> Acts:
    """`harvest` in float32, less the activations that do not count where `hook.left_out` is set
    (with `sae.outlier_norm`): those of special tokens, those of a row's first token that no BOS
    stands before, and those of an outlying norm. Fewer than `rows.size` may come of it.
    """
    acts = harvest(hook, rows).float()
    kept = kept_of(hook, rows, acts)
    return acts if kept is None else acts[kept]


def leave_out(
    hook: Source, rows: np.ndarray, special: list[int], ratio: float
) -> Float[Tensor, " n"]:
    """Leave the `special` token ids out of the hook's activations, and what is longer than `ratio`
    times the median norm; gives the norms that this was judged by.
    """
    rows = spread(rows, max(2, REFERENCE_TOKENS // rows.shape[1]))
    norms = harvest(hook, rows).float().norm(dim=1)
    hook.left_out = LeftOut.found(rows, norms, special, not hook.n_before, ratio)
    return norms


def spread(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` rows, evenly spread over the text."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]
