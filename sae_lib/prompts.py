"""A prompt corpus: prompts, the text a model generates from them, and the activations of every token of both."""

from pathlib import Path

import numpy as np
import pandas as pd

from sae_lib import language_model
from sae_lib.activations import HookPoint, generate
from sae_lib.errors import ArtefactError
from sae_lib.runs import Run, writing
from sae_lib.tokens import open_tokens


def make_prompt_corpus(run: Run) -> Path:
    """Generate from each of `settings.prompts.prompts`; writes `texts.parquet`, `tokens.parquet` and `activations.npy`.

    Row i of `activations.npy` [n, d_in] belongs to row i of `tokens.parquet` (prompt, position, token, generated or not).
    """
    folder, s = run.folder / "prompts", run.settings
    made_from = language_model.lm_made_from(run) | {
        "prompts": s.prompts.model_dump(mode="json"),
        "hook_name": s.sae.hook_name,
    }
    with run.making(folder, made_from) as missing:
        if missing:
            _make(run, folder, made_from)
    return folder


def _make(run: Run, folder: Path, made_from: dict) -> None:
    s = run.settings
    language_model.make_language_model(run)
    tokenizer, hook = (
        open_tokens(run).tokenizer,
        HookPoint(language_model.load(run), s.sae.hook_name),
    )
    texts, tokens, activations = [], [], []
    for number, prompt in enumerate(s.prompts.prompts):
        ids, acts, prompt_length = generate(
            hook, tokenizer, prompt, s.prompts.new_tokens, s.prompts.temperature, s.seed + number
        )
        ids = ids.tolist()
        texts.append(
            {
                "prompt": number,
                "text": tokenizer.decode(ids),
                "continuation": tokenizer.decode(ids[prompt_length:]),
                "prompt_tokens": prompt_length,
                "tokens": len(ids),
            }
        )
        tokens += [
            {
                "prompt": number,
                "position": i,
                "token_id": t,
                "token": tokenizer.decode([t]),
                "generated": i >= prompt_length,
            }
            for i, t in enumerate(ids)
        ]
        activations.append(acts.float().cpu().numpy())
    with writing(folder, made_from) as out:
        pd.DataFrame(texts).to_parquet(out / "texts.parquet")
        pd.DataFrame(tokens).to_parquet(out / "tokens.parquet")
        np.save(out / "activations.npy", np.concatenate(activations))


def load_prompt_corpus(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """(texts, tokens, activations [n, d_in] as a memory map), aligned row by row."""
    texts, tokens = (
        pd.read_parquet(folder / "texts.parquet"),
        pd.read_parquet(folder / "tokens.parquet"),
    )
    activations = np.load(folder / "activations.npy", mmap_mode="r")
    if len(activations) != len(tokens):
        raise ArtefactError(
            f"{folder}: {len(activations)} rows of activations for {len(tokens)} tokens, so it is damaged; delete the folder and run again"
        )
    return texts, tokens, activations


def summary(folder: Path) -> dict:
    """Texts, tokens, lengths, the share of active neurons, and the most frequent tokens, of prompts and of what was generated."""
    texts, tokens, activations = load_prompt_corpus(folder)
    result = {}
    for name, part in (
        ("prompt", tokens[~tokens["generated"]]),
        ("generated", tokens[tokens["generated"]]),
    ):
        lengths = part.groupby("prompt").size()
        result[name] = {
            "texts": len(texts),
            "tokens": len(part),
            "length_median": float(lengths.median()),
            "length_max": int(lengths.max()),
            "active_share": float((activations[part.index] > 0).mean()),
            "most_frequent": part["token"].value_counts().head(10).to_dict(),
        }
    return result
