"""`python -m suite verify`: numbers of the committed report, computed again from the weights that
are published beside it and from text that the installed packages hold.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sae_lib import formats
from sae_lib.device import device_of
from sae_lib.errors import ArtefactError, SettingsError
from sae_lib.features import evaluation
from sae_lib.features.firing import spread_rows
from sae_lib.files import read_record, verify
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Neurons
from sae_lib.settings import Settings
from sae_lib.text.installation import installed_files, read_text
from sae_lib.text.tokenizer import exact_encoder, load_tokenizer, separators
from suite.runs import Run, writing

WEIGHTS = Path("report", "weights")
LARGEST = 15_000_000  # bytes
DRAWN = 10  # numbers
TOKENS = 262_144  # held-out tokens that firing is counted on, spread evenly over the report's
# By how much of itself a number may differ: weights are rounded to bfloat16 here, firing is counted
# on a sample, and another processor adds in another order.
TOLERANCE = {
    "ce_clean": 0.002,
    "ce_spliced": 0.002,
    "ce_zero": 0.005,
    "ce_mean": 0.005,
    "recovered_zero": 0.005,
    "recovered_mean": 0.005,
    "kl": 0.05,
    "fvu": 0.03,
    "mse": 0.03,
    "l0_mean": 0.03,
    "l0_median": 0.07,
    "density_median": 0.05,
}
OF_NEURONS = ("l0_mean", "l0_median", "density_median")  # the others are 0 or 1 by construction


class Number(NamedTuple):
    """A number of the report: of which dictionary, which measure, and its value there."""

    of: str
    measure: str
    value: float


# --- publishing ---


def publish_weights(run: Run, root: Path) -> Path | None:
    """Copy the language model, its tokeniser and the run's autoencoder, rounded to bfloat16, to
    `report/weights` of `root`, with their hashes and a list of the held-out documents. None, and
    nothing there, where that is over 15 MB or the text is not that of an installation.
    """
    folder, tokens = root / WEIGHTS, run.get("tokens")
    shutil.rmtree(folder, ignore_errors=True)
    sources = {"language_model": "model.safetensors", "autoencoder": "sae_weights.safetensors"}
    sizes = [(run.path(stage) / name).stat().st_size // 2 for stage, name in sources.items()]
    if run.settings.corpus.source != "installation" or sum(sizes) > LARGEST:
        return None
    table = tokens.table["heldout"]
    with writing(folder, {"settings": run.settings.model_dump(mode="json")}) as out:
        for stage, name in sources.items():
            (out / stage).mkdir()
            config = "config.json" if stage == "language_model" else "cfg.json"
            shutil.copy2(run.path(stage) / config, out / stage)
            weights = {k: w.bfloat16() for k, w in load_file(run.path(stage) / name).items()}
            save_file(weights, out / stage / name, {"format": "pt"})
        tokens.tokenizer.save_pretrained(out / "tokenizer")
        documents = table[["origin", "kind", "sha256"]].values.tolist()
        (out / "heldout.json").write_text(json.dumps(documents, indent=0))
    return folder


# --- computing again ---


def heldout_ids(s: Settings, documents: list[list[str]], tokenizer: Any) -> np.ndarray:
    """The held-out tokens, from the documents that the installed packages hold; `ArtefactError`
    where one of them is not what it was.
    """
    wanted = {(origin, kind) for origin, kind, _ in documents}
    files = {(f.origin, f.kind): f for f in installed_files() if (f.origin, f.kind) in wanted}
    texts, differ = [], []
    for origin, kind, digest in documents:
        file = files.get((origin, kind))
        text = read_text(file, s.corpus.max_file_bytes) if file else None
        if hashlib.sha256((text or "").encode()).hexdigest() != digest:
            differ.append(origin)
        texts.append(text or "")
    if differ:
        raise ArtefactError(
            f"{len(differ)} of the {len(documents)} held-out documents are not what they were, "
            f"the first {differ[0]}; install the versions of requirements.txt and constraints.txt "
            "(make install) and try again"
        )
    encoded = exact_encoder(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    between = separators(tokenizer)
    ids = np.concatenate([[*e.ids, *between] for e in encoded])[: s.corpus.heldout_tokens]
    return ids[: len(ids) // s.lm.context * s.lm.context].reshape(-1, s.lm.context)


def reported(root: Path, s: Settings) -> list[Number]:
    """The numbers of the committed report that can be computed again, in a fixed order."""
    published = Run(s, root / "report", {}, reading=True)
    found, main = published.load_results("evaluation"), s.sae.recipe
    measures = {main: tuple(TOLERANCE), "neurons": OF_NEURONS}
    return [Number(of, name, found[of][name]) for of, names in measures.items() for name in names]


@torch.no_grad()
def computed(folder: Path, s: Settings) -> dict[str, dict]:
    """What `evaluation` measures with the published weights, by dictionary."""
    device = device_of(s.device)
    model = language_model.load(str(folder / "language_model"), s.lm.context, device)
    hook = HookPoint(model, s.sae.hook_name)
    sae = SparseAutoencoder.load(folder / "autoencoder", device)
    documents = json.loads((folder / "heldout.json").read_text())
    rows = heldout_ids(s, documents, load_tokenizer(folder / "tokenizer"))
    dictionaries = {s.sae.recipe: sae, "neurons": Neurons(sae.d_in, device)}
    tokens = min(TOKENS, s.evaluation.tokens)
    fired, mean = evaluation.density_and_error(hook, dictionaries, spread_rows(rows, tokens))
    chosen = spread_rows(rows, s.evaluation.loss_tokens)
    losses = evaluation.loss_recovered(hook, {s.sae.recipe: sae}, chosen, mean)
    return {of: found | losses.get(of, {}) for of, found in fired.items()}


def lines(root: Path, seed: int) -> Iterator[tuple[bool, str]]:
    """Ten numbers of the report, drawn by the seed: whether each lies within its tolerance, and a
    line that says so.
    """
    folder = root / WEIGHTS
    if not folder.is_dir():
        raise ArtefactError(
            f"{folder} is missing, so there is nothing to compute from; publish a laptop run "
            "first: python -m suite report --publish"
        )
    verify(folder)
    try:
        s = Settings.model_validate(read_record(folder)["settings"]["settings"])
    except (LookupError, ValueError):
        raise SettingsError(
            f"{folder} was published by another version of the suite; publish again: "
            "python -m suite report --publish"
        ) from None
    numbers = reported(root, s)
    drawn = random.Random(seed).sample(numbers, min(DRAWN, len(numbers)))
    found = computed(folder, s)
    for of, measure, value in drawn:
        ours = found[of][measure]
        right = abs(ours - value) <= TOLERANCE[measure] * abs(value)
        yield (
            right,
            f"{'[OK]  ' if right else '[FAIL]'} {measure} of {of}: {formats.small(value)} in the "
            f"report, {formats.small(ours)} here (within {formats.percent(TOLERANCE[measure])})",
        )
