"""Sanity baselines: what an autoencoder has to beat before its features are believed.

All are autoencoders with the same number of active features per token, by construction (topk), and
those that are trained saw the same number of activations. The first three keep a part of their
weights random (Korznikov et al. 2026, Sanity Checks for Sparse Autoencoders), two stand on a
language model that was not trained (Heap et al. 2025), and three are not trained at all.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from sae_lib.device import device_of
from sae_lib.errors import SettingsError
from sae_lib.features import clamping, evaluation
from sae_lib.features.firing import by_feature, firing_tables, spread_rows
from sae_lib.files import digest
from sae_lib.interpretability import probing, scoring
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.sae import directions
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.initialise import SOFT_FROZEN
from sae_lib.sae.recipes import of_recipe
from sae_lib.settings import SAESettings
from suite import stages
from suite.runs import Run

SEEDS = (0, 1, 2)
L0 = 16  # of all of them, where no autoencoder is given
UNITS = 200  # drawn of each, for rules …
CLAMPED = 40  # … and for clamping,
CLAMP_ROWS = 8  # at positions in so many rows of text
SAMPLE = 8192  # training activations that directions are taken from and scaled on
# nats per token that ablating the hook to its mean must cost: below there is no loss to recover
MIN_DAMAGE = 0.01
# name → (what is frozen, which language model)
TRAINED = {
    "trained": (None, ""),
    "frozen decoder": ("decoder", ""),
    "soft-frozen decoder": ("soft_decoder", ""),
    "frozen encoder": ("encoder", ""),
    "fresh language model": (None, "fresh"),
    "fresh but for embeddings": (None, "embeddings"),
}
DIRECTIONS = ("neurons, the strongest", "principal directions", "random directions")
EMBEDDINGS = {"wte", "wpe", "embed_tokens", "lm_head"}  # parts of the names of such weights


def study(run: Run, folder: Path | None = None) -> dict:
    """Make `results/study_sanity.json`: every contender with every seed. An autoencoder in SAELens'
    layout in `folder` is compared with baselines at its L0, else one that is trained like them.

    Every measured point is kept, so that an interrupted study goes on.
    """
    sanity, points, k = Sanity(run), [], L0
    if folder:
        hook = sanity.hook("", 0)
        given, d_in = SparseAutoencoder.load(folder, hook.device), sanity.sample(hook).shape[1]
        if given.d_in != d_in:
            raise SettingsError(
                f"--sae {folder}: found activations of {given.d_in} dimensions; expected those of"
                f" {hook.name}, {d_in}"
            )
        points = [sanity.measure("", given, seed) | {"contender": folder.name} for seed in SEEDS]
        k = max(1, round(points[0]["l0"]))
    for seed in SEEDS:
        points += [sanity.point(name, k, seed) for name in (*TRAINED, *DIRECTIONS)]
    about = {
        "corpus": run.settings.corpus.source.rpartition("/")[2],
        "activations": run.settings.sae.activations,
        "d_sae": run.settings.sae.d_sae,
        "k": k,
        "seeds": len(SEEDS),
        "tasks": len(sanity.tasks),
        "units": UNITS,
        "clamped": CLAMPED,
        "probe_features": probing.K,
        "soft_frozen": SOFT_FROZEN,
    }
    subject = folder.name if folder else "trained"
    run.save_results("study_sanity", {"points": points, "subject": subject, "about": about})
    return run.load_results("study_sanity")


class Sanity:
    """What all contenders of a run are measured on."""

    def __init__(self, run: Run):
        self.run, self.halves = run, stages.split_heldout(run)
        self.rows = run.get("tokens").rows("heldout", run.settings.lm.context)
        raw = tuple(text.encoding.value[text.codes] for text in self.halves.texts)
        attributes = self.halves.writer.attributes
        self.tasks = probing.tasks(raw, self.halves.kinds, attributes)
        self.hook = cache(self._hook)

    def _hook(self, model: str, seed: int) -> HookPoint:
        """Where the autoencoders read: the run's language model, or a fresh one."""
        trained, s = stages.hook(self.run), self.run.settings
        if not model:
            return trained
        tokenizer, device = self.run.get("tokens").tokenizer, device_of(s.device)
        fresh = language_model.untrained(s.lm, tokenizer, seed, device)
        if model == "embeddings":
            keep_embeddings(fresh, trained.model)
        return stages.hook_of(self.run, fresh)

    def sample(self, hook: HookPoint) -> Float[Tensor, "n d_in"]:
        """Training activations."""
        rows = self.run.get("tokens").rows("train", self.run.settings.lm.context)
        return harvest(hook, spread_rows(rows, SAMPLE)).float()

    def point(self, name: str, k: int, seed: int) -> dict:
        """A contender, made and measured where that has not been done."""
        s = self.run.settings
        frozen, model = TRAINED.get(name, (None, ""))
        values = {"k": k, "frozen": frozen, "seed": seed}
        settings = of_recipe(s.sae, "topk").model_copy(update=values)
        made_from = stages.fingerprint_of(self.run, settings) | {"contender": name}
        made_from |= s.model_dump(mode="json", include={"evaluation", "interpretability"})

        def measured() -> dict:
            sae = self._made(name, settings, model, seed)
            return {"contender": name} | self.measure(model, sae, seed)

        where = f"sanity/{digest(made_from)[:12]}"
        return self.run.kept_results(where, made_from, measured)

    def _made(self, name: str, settings: SAESettings, model: str, seed: int) -> SparseAutoencoder:
        hook = self.hook(model, seed)
        if name in DIRECTIONS:
            x = self.sample(hook)
            along = (
                directions.coordinate_directions(x.shape[1], x.device),
                directions.principal_directions(x),
                directions.random_directions(x, settings.d_sae, seed),
            )[DIRECTIONS.index(name)]
            return directions.keep_largest(along, settings.k, x)
        folder = self.run.folder / "sanity" / f"{name.replace(' ', '_')}-{settings.k}-{seed}"
        stages.make_other_autoencoder(self.run, hook, settings, folder, model)
        return SparseAutoencoder.load(folder, hook.device)

    def measure(self, model: str, sae: SparseAutoencoder, seed: int) -> dict:
        """The four measures, on held-out text: `recovered`, the loss recovered against mean
        ablation (None where ablating costs less than `MIN_DAMAGE`); `information`, the median that
        rules explain of `UNITS` features drawn; `probing`, the mean AUROC of k-sparse probes;
        `clamping`, the mean share of random directions that a clamped feature beats.
        """
        s, hook = self.run.settings, self.hook(model, seed)
        tokens = s.evaluation.model_copy(update={"tokens": s.interpretability.tokens})
        found = evaluation.evaluate(hook, {"": sae}, self.rows, tokens)[""]
        fired, often, scores = self.scores(hook, sae, seed)
        maxima = {int(i): float(fired[0][:, [i]].max()) for i in often[:CLAMPED]}
        rows = spread_rows(self.rows, CLAMP_ROWS * s.lm.context)
        ranks = clamping.clamp_ranks(clamping.HeldoutPositions(hook, rows), sae, maxima, seed)
        damage = found["ce_mean"] - found["ce_clean"]
        return {
            "seed": seed,
            "l0": found["l0_mean"],
            "dead_share": found["dead_share"],
            "recovered": found["recovered_mean"] if damage >= MIN_DAMAGE else None,
            "information": scores["information"].median(),
            "probing": np.mean(list(probing.probe(fired, self.tasks, seed).values())),
            "clamping": ranks["rank"].mean(),
        }

    def scores(
        self, hook: HookPoint, sae: SparseAutoencoder, seed: int
    ) -> tuple[list[csc_array], np.ndarray, pd.DataFrame]:
        """(where features fire in both halves [token, feature], those that fire often enough in an
        order drawn, how well rules predict the first `UNITS`: `scoring.score_units`).
        """
        s, halves = self.run.settings.interpretability, self.halves
        fired = [firing_tables(hook, {"": sae}, rows)[""] for rows in halves.rows]
        pairs = scoring.tokens_of(zip(*map(by_feature, fired), strict=True))
        units = scoring.Units("unit", np.arange(sae.d_sae), pairs)
        rng = np.random.default_rng((seed, 6))
        often = rng.permutation(units.often_active(s.min_active))
        drawn = often[:UNITS]
        units = scoring.Units("unit", drawn, [pairs[i] for i in drawn])
        return fired, often, scoring.score_units(units, halves, s)


@torch.no_grad()
def keep_embeddings(fresh: torch.nn.Module, trained: torch.nn.Module) -> None:
    """Copy embeddings of tokens and positions, and the unembedding, into a fresh model."""
    own = dict(trained.named_parameters())
    for name, parameter in fresh.named_parameters():
        if EMBEDDINGS & set(name.split(".")):
            parameter.copy_(own[name])
