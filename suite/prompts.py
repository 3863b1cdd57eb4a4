"""A prompt corpus: prompts, the text a model generates from them, and the activations of every
token of both.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lib.model.activations import Acts, HookPoint
from sae_lib.model.generation import continuation
from sae_lib.settings import PromptSettings
from sae_lib.text.tokenizer import token_ids


def write_prompt_corpus(
    hook: HookPoint, tokenizer: Any, s: PromptSettings, seed: int, folder: Path
) -> None:
    """Generate from each of `s.prompts`; writes `texts.parquet`, `tokens.parquet` and
    `activations.npy`.

    Row i of `activations.npy` [n, d_in] belongs to row i of `tokens.parquet` (prompt, position,
    token, generated or not).
    """
    texts, tokens, activations = [], [], []
    for number, prompt in enumerate(s.prompts):
        ids, acts, n_prompt = generate(
            hook, tokenizer, prompt, s.new_tokens, s.temperature, seed + number
        )
        ids, n = ids.tolist(), len(ids)
        strings = [tokenizer.decode([i]) for i in ids]
        texts.append(
            {
                "prompt": number,
                "text": tokenizer.decode(ids),
                "continuation": tokenizer.decode(ids[n_prompt:]),
                "prompt_tokens": n_prompt,
                "tokens": n,
            }
        )
        columns = {"prompt": number, "position": range(n), "token_id": ids, "token": strings}
        tokens.append(pd.DataFrame(columns).assign(generated=np.arange(n) >= n_prompt))
        activations.append(acts.float().cpu().numpy())
    pd.DataFrame(texts).to_parquet(folder / "texts.parquet")
    pd.concat(tokens, ignore_index=True).to_parquet(folder / "tokens.parquet")
    np.save(folder / "activations.npy", np.concatenate(activations))


def load_prompt_corpus(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """(texts, tokens, activations [n, d_in] as a memory map), aligned row by row."""
    texts, tokens = (pd.read_parquet(folder / f"{name}.parquet") for name in ("texts", "tokens"))
    return texts, tokens, np.load(folder / "activations.npy", mmap_mode="r")


def summary(folder: Path) -> dict:
    """Texts, tokens, lengths, the share of active neurons, and the most frequent tokens, of
    prompts and of what was generated.
    """
    texts, tokens, activations = load_prompt_corpus(folder)
    result = {}
    for generated, part in tokens.groupby("generated"):
        lengths = part.groupby("prompt").size()
        result["generated" if generated else "prompt"] = {
            "texts": len(texts),
            "tokens": len(part),
            "length_median": float(lengths.median()),
            "length_max": int(lengths.max()),
            "active_share": float((activations[part.index] > 0).mean()),
            "most_frequent": part["token"].value_counts().head(10).to_dict(),
        }
    return result


def generate(
    hook: HookPoint, tokenizer, prompt: str, new_tokens: int, temperature: float, seed: int
) -> tuple[Int[Tensor, " n"], Acts, int]:
    """Sample a continuation: (token ids of prompt and continuation, the hook's activations of
    all of them, prompt length).
    """
    ids = token_ids(tokenizer, prompt) or [tokenizer.eos_token_id]
    how = (new_tokens, temperature, seed, tokenizer.eos_token_id)
    text = continuation(hook, torch.tensor([ids], device=hook.device), *how)
    return text, hook.activations(text[None].to(hook.device))[0], len(ids)
