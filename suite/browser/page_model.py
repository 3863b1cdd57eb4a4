"""The language model and the autoencoder for `browser.html`: int8 with a scale per row, and the
tokeniser's merges.

The page runs them in plain JavaScript (app/model.js), so only the model that this project trains
fits: GPT-2's shape with one layer and ReLU. `why_not` says what else a run holds; then the page
is written without a model.
"""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Dictionary
from sae_lib.sae.transcoder import Transcoder
from suite.browser.packing import with_binary

LEVELS = 127
UNUSUAL = "continuing_subword_prefix end_of_word_suffix ignore_merges byte_fallback dropout".split()


def why_not(model: Any, tokenizer: Any, dictionary: Dictionary) -> str:
    """Empty where the page can run both models; else the reason, as the end of a sentence."""
    c = model.config
    if isinstance(dictionary, Transcoder):
        return "the features are a transcoder's, and the page runs only autoencoders"
    if c.model_type != "gpt2" or c.n_layer != 1:
        found = f"it is a {c.model_type} model of {c.num_hidden_layers} layers"
        return f"{found}, and the page runs only GPT-2's shape with one layer"
    plain = c.scale_attn_weights and not c.scale_attn_by_inverse_layer_idx
    if c.activation_function != "relu" or not plain:
        found = f"its activation function is {c.activation_function} or its attention is scaled"
        return f"{found} otherwise, and the page runs only ReLU and plain attention"
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    splitter, bpe = saved["pre_tokenizer"] or {}, saved["model"]
    expected = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
    fits = all(({"use_regex": True} | splitter).get(k) == v for k, v in expected.items())
    unusual = [bpe.get(key) for key in UNUSUAL] + [
        token[flag]
        for token in saved["added_tokens"]
        for flag in ("lstrip", "rstrip", "single_word")
    ]
    if not fits or saved["normalizer"] or bpe.get("merges") is None or any(unusual):
        found = "its tokeniser is no byte-level BPE with GPT-2's splitting rule"
        return f"{found}, and the page runs only that"
    return ""


def quantised(
    weight: Float[Tensor, "row column"],
) -> tuple[Int8[np.ndarray, "row column"], Float[np.ndarray, " row"]]:
    """(levels, scale of each row): weight ≈ levels · scale, off by at most half a scale."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8).numpy(), scale.float().numpy()


def weights(model: Any, dictionary: Dictionary) -> dict[str, Tensor]:
    """All weights by name; a matrix is [out, in] or [entry, d], so that its rows are one output's
    or one entry's.
    """
    found = {}
    for name, weight in model.named_parameters():  # a tied head is not among them
        conv1d = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        short = name.removeprefix("transformer.").removeprefix("h.0.")
        found[short] = weight.T if conv1d else weight  # Conv1D stores [in, out]
    if isinstance(dictionary, SparseAutoencoder):
        found |= dict(dictionary.named_parameters())
    else:  # neurons or directions as an autoencoder; of neurons what is below zero counts too
        W = dictionary.W_dec
        found |= {"W_enc_T": W, "W_dec": W, "b_enc": W.new_zeros(len(W))}
        found["b_dec"] = getattr(dictionary, "centre", W.new_zeros(W.shape[1]))
        found["threshold"] = getattr(dictionary, "threshold", W.new_full((len(W),), -torch.inf))
    return {name: weight.detach().float().cpu() for name, weight in found.items()}


def merges(saved: dict[str, Any]) -> dict[str, list]:
    """Of a byte-level BPE the ids of the 256 bytes, its merges as [left, right, both], and the
    tokens that stand for a text.
    """
    ids, pairs = saved["model"]["vocab"], saved["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    letters = bytes_to_unicode()
    added = [[t["content"], t["id"]] for t in saved["added_tokens"] if not t["special"]]
    return {
        "bytes": [ids.get(letters[byte]) for byte in range(256)],
        "merges": [[ids[left], ids[right], ids[left + right]] for left, right in pairs],
        "added": added,
    }


def model_block(model: Any, dictionary: Dictionary, hook_name: str, tokenizer: Any) -> bytes:
    """Header, then float32 vectors and scales of matrices' rows, then int8 matrices, all in the
    header's order.
    """
    c, floats, levels, layout = model.config, [], [], {}
    for name, weight in weights(model, dictionary).items():
        layout[name] = list(weight.shape)
        vector = weight.numpy()
        if weight.dim() == 2:
            matrix, vector = quantised(weight)
            levels.append(matrix)
        floats.append(vector)
    header = {
        "layout": layout,
        "heads": c.n_head,
        "epsilon": c.layer_norm_epsilon,
        "n_positions": c.n_positions,
        "hook": hook_name.removeprefix("blocks.0."),
        "architecture": getattr(dictionary, "architecture", "neurons"),
        "k": getattr(dictionary, "k", 0),
        "tokenizer": merges(json.loads(tokenizer.backend_tokenizer.to_str())),
        "end": tokenizer.eos_token_id,
    }
    return with_binary(header, *floats, *levels)
