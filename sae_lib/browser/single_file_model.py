"""The language model and the autoencoder for the one-file browser: int8 with a scale per row, and the tokeniser's merges.

The page runs them in plain JavaScript (app/model.js), so only the model that this project trains fits: GPT-2's shape with one
layer and ReLU. `why_not` says what else a run holds; then the page is written without a model and says so.
"""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.browser.single_file_data import with_binary
from sae_lib.dictionaries import Dictionary
from sae_lib.visible import Vocabulary

LEVELS = 127


def why_not(model: Any, tokenizer: Any) -> str:
    """Empty where the page can run the model; else the reason, as the end of a sentence."""
    c = model.config
    if c.model_type != "gpt2" or c.n_layer != 1:
        return f"it is a {c.model_type} model of {c.num_hidden_layers} layers, and the page runs only GPT-2's shape with one layer"
    if (
        c.activation_function != "relu"
        or not c.scale_attn_weights
        or c.scale_attn_by_inverse_layer_idx
    ):
        return f"its activation function is {c.activation_function} or its attention is scaled otherwise, and the page runs only ReLU and plain attention"
    return _why_not_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))


def _why_not_tokenizer(described: dict[str, Any]) -> str:
    pre, bpe = described["pre_tokenizer"] or {}, described["model"]
    plain = (
        pre.get("type") == "ByteLevel"
        and pre.get("use_regex", True)
        and not pre.get("add_prefix_space")
        and described["normalizer"] is None
    )
    unusual = [
        key
        for key in (
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "ignore_merges",
            "byte_fallback",
            "dropout",
        )
        if bpe.get(key)
    ]
    flagged = any(
        token["lstrip"] or token["rstrip"] or token["single_word"]
        for token in described["added_tokens"]
    )
    if bpe.get("type", "BPE") != "BPE" or "merges" not in bpe or not plain or unusual or flagged:
        return "its tokeniser is no byte-level BPE with GPT-2's splitting rule, and the page runs only that"
    return ""


def quantised(
    weight: Float[Tensor, "row column"],
) -> tuple[Int8[np.ndarray, "row column"], Float[np.ndarray, " row"]]:
    """(levels, scale of each row): weight ≈ levels · scale, off by at most half a scale."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8).numpy(), scale.float().numpy()


def matrices(model: Any, dictionary: Dictionary) -> dict[str, Float[Tensor, "row column"]]:
    """Every matrix as [out, in] or [entry, d], so that a row is what one output, token or feature reads or writes."""
    block = model.transformer.h[0]
    found = {
        "token_embedding": model.transformer.wte.weight,
        "position_embedding": model.transformer.wpe.weight,
        "attention_in": block.attn.c_attn.weight.T,  # Conv1D stores [in, out]
        "attention_out": block.attn.c_proj.weight.T,
        "mlp_in": block.mlp.c_fc.weight.T,
        "mlp_out": block.mlp.c_proj.weight.T,
    }
    if not model.config.tie_word_embeddings:
        found["head"] = model.lm_head.weight
    if isinstance(dictionary, SparseAutoencoder):
        found |= {"W_enc": dictionary.W_enc.T, "W_dec": dictionary.W_dec}
    return {name: weight.detach().float().cpu() for name, weight in found.items()}


def vectors(model: Any, dictionary: Dictionary) -> dict[str, Float[Tensor, " n"]]:
    block, top = model.transformer.h[0], model.transformer.ln_f
    found = {
        "attention_in_bias": block.attn.c_attn.bias,
        "attention_out_bias": block.attn.c_proj.bias,
        "mlp_in_bias": block.mlp.c_fc.bias,
        "mlp_out_bias": block.mlp.c_proj.bias,
        "norm_1": block.ln_1.weight,
        "norm_1_bias": block.ln_1.bias,
        "norm_2": block.ln_2.weight,
        "norm_2_bias": block.ln_2.bias,
        "norm_final": top.weight,
        "norm_final_bias": top.bias,
    }
    if isinstance(dictionary, SparseAutoencoder):
        found |= {"b_enc": dictionary.b_enc, "b_dec": dictionary.b_dec}
        if dictionary.architecture == "jumprelu":
            found["threshold"] = dictionary.threshold
    return {name: vector.detach().float().cpu() for name, vector in found.items()}


def model_block(model: Any, dictionary: Dictionary, hook_name: str, tokenizer: Any) -> bytes:
    """Header (JSON, its length before it), then float32 vectors and scales, then int8 matrices."""
    c, floats, levels, layout = model.config, [], [], {}
    for name, vector in vectors(model, dictionary).items():
        layout[name] = [vector.numel()]
        floats.append(vector.numpy())
    for name, weight in matrices(model, dictionary).items():
        q, scale = quantised(weight)
        layout[name] = list(q.shape)
        floats.append(scale)
        levels.append(q)
    header = {
        "layout": layout,
        "heads": c.n_head,
        "epsilon": c.layer_norm_epsilon,
        "context": c.n_positions,
        "hook": hook_name.removeprefix("blocks.0."),
        "architecture": dictionary.architecture
        if isinstance(dictionary, SparseAutoencoder)
        else "neurons",
        "k": getattr(dictionary, "k", 0),
        "d_sae": dictionary.d_sae,
        "tokenizer": tokenizer_data(tokenizer),
    }
    return with_binary(header, *floats, *levels)


def tokenizer_data(tokenizer: Any) -> dict[str, Any]:
    """Merges as (left id, right id, merged id) in the order of their rank, the token of each byte, and the added tokens.

    As everywhere in this project (`tokenizer.exact_encoder`) special tokens in a text are ordinary text, so they are left out.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    ids, merges = described["model"]["vocab"], described["model"]["merges"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    vocabulary, added = Vocabulary(tokenizer), described["added_tokens"]
    byte_ids = {
        b[0]: i
        for i, b in enumerate(vocabulary.bytes)
        if len(b) == 1 and i not in {t["id"] for t in added}
    }
    return {
        "merges": [n for left, right in pairs for n in (ids[left], ids[right], ids[left + right])],
        "bytes": [byte_ids[b] for b in range(256)],
        "added": [[t["content"], t["id"]] for t in added if not t["special"]],
        "end": tokenizer.eos_token_id,
    }
