"""The study of universality: do language models that differ in nothing but their seed learn the
same features, and are the features that they share the better ones?

Every language model reads the same text, and has its own autoencoders, all with the same number of
active features per token. A feature is as universal as the best correlation of its activations with
a feature of another model, on the same held-out tokens (as in Bricken et al. 2023), also after
regressing out the current token: two features of the same token agree without any model.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array, diags_array

from sae_lib.device import device_of
from sae_lib.errors import SettingsError
from sae_lib.features.agreement import Best, best_correlations, carriers
from sae_lib.features.clamping import ablation_losses
from sae_lib.features.firing import ALIVE, firing_tables, spread_rows
from sae_lib.files import digest
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions
from sae_lib.sae.directions import thresholded
from sae_lib.sae.recipes import of_recipe
from suite import runs, sanity, stages, study_figures, sweep
from suite.runs import Run

MODELS = (0, 1, 2, 3)  # language models, by what is added to the run's seed: the first is its own
AUTOENCODERS = (0, 1)  # seeds of autoencoders on each
ABLATED_TOKENS, ABLATED_ROWS = 65_536, 32  # a feature is ablated in so many rows at most, of these


def study(run: Run) -> dict:
    """Make `results/study_universality.json`. What belongs to one language model's features is
    measured together and kept, so that an interrupted study goes on.
    """
    if run.settings.lm.source != "train":
        raise SettingsError(
            f"study universality: found lm.source {run.settings.lm.source}; expected `train`, for"
            " it trains language models of other seeds"
        )
    run.path("language_model")
    shared = Universality(run)
    about = {"seeds": len(MODELS), "autoencoders": len(AUTOENCODERS), "tokens": shared.ids.size}
    about |= {"l0": sanity.L0, "units": sanity.UNITS, "universal": study_figures.UNIVERSAL}
    found = {"points": [shared.point(m) for m in MODELS], "about": sweep.about(run) | about}
    found["carriers"] = pd.DataFrame([shared.carriers(m) for m in MODELS]).mean().to_dict()
    run.save_results("study_universality", found)
    return run.load_results("study_universality")


class Universality(sanity.Sanity):
    """The language models, and where their features fire in the learning half of the held-out
    text. A model is trained ("") or "fresh", and has a seed.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self.ids = self.halves.rows[0].ravel().astype(np.int64)
        self.table = cache(self._table)

    def _hook(self, model: str, seed: int) -> HookPoint:
        run, s = self.run, self.run.settings
        if model or seed == MODELS[0]:
            return super()._hook(model, seed)
        folder = run.folder / "universality" / f"language_model-{seed}"
        made_from = stages.model_fingerprint(run) | {"other_seed": seed}
        with run.making(folder, made_from) as missing:
            if missing:
                with runs.trains(f"language model {seed}", folder, made_from) as store:
                    with runs.writing(folder, made_from) as out:
                        stages.make_language_model(run, "", out, store, s.seed + seed)
        model = language_model.load(str(folder), s.lm.context, device_of(s.device))
        return HookPoint(model, s.sae.hook_name)

    def autoencoder(self, model: str, seed: int, sae_seed: int) -> SparseAutoencoder:
        """That of a model, trained where that has not been done."""
        settings = of_recipe(self.run.settings.sae, "topk")
        settings = sweep.changed(settings, k=sanity.L0, seed=sae_seed)
        name, hook = f"{model or 'trained'}-{seed}", self.hook(model, seed)
        folder = self.run.folder / "universality" / f"{name}-{sanity.L0}-{sae_seed}"
        stages.make_other_autoencoder(self.run, hook, settings, folder, name)
        return SparseAutoencoder.load(folder, hook.device)

    def _table(self, units: str, seed: int, sae_seed: int = 0) -> csc_array:
        """Where the features of a model, or its "neurons", fire [token, unit]; nowhere if they do
        so too rarely to be compared.
        """
        model = "" if units == "neurons" else units
        made = self.neurons(seed) if model != units else self.autoencoder(model, seed, sae_seed)
        table = firing_tables(self.hook(model, seed), {"": made}, self.halves.rows[0])[""]
        enough = (np.diff(table.indptr) >= ALIVE).astype(np.float32)
        table = (table @ diags_array(enough)).tocsc()
        table.eliminate_zeros()
        return table

    def neurons(self, seed: int) -> SparseAutoencoder:
        """As many units as a trained model's features, each a neuron above the threshold at which
        it is as dense as one of them.
        """
        x, table = self.sample(self.hook("", seed)), self.table("", seed)
        often = np.diff(table.indptr)
        density = torch.from_numpy(often[often > 0] / len(self.ids)).float()
        drawn = np.random.default_rng((seed, 15)).permutation(len(density)) % x.shape[1]
        own = Directions(torch.eye(x.shape[1], device=x.device)[drawn], torch.zeros_like(x[0]))
        return thresholded(own.at_density(x, density))

    def other_text(self, table: csc_array) -> csc_array:
        """The table with the rows of text in another order."""
        tokens = np.arange(len(self.ids)).reshape(self.halves.rows[0].shape)
        return table.tocsr()[np.random.default_rng(16).permutation(tokens).ravel()].tocsc()

    def pairs(self, seed: int) -> Iterator[tuple[str, csc_array, csc_array]]:
        """Which of a model's tables is compared with which, and what of `COMPARED` that is."""
        own = [self.table("", seed, a) for a in AUTOENCODERS]
        for pair in permutations(own, 2):
            yield "ceiling", *pair
        for other in (m for m in MODELS if m != seed):
            theirs = [self.table("", other, a) for a in AUTOENCODERS]
            fresh = self.table("fresh", other)
            for pair in zip(own, theirs, strict=True):
                yield "models", *pair
            yield "shuffled", own[0], self.other_text(theirs[0])
            yield "neurons", self.table("neurons", seed), self.table("neurons", other)
            yield "fresh", self.table("fresh", seed), fresh
            yield "trained_and_fresh", own[0], fresh

    def carriers(self, seed: int) -> dict[str, float]:
        """How a trained model's features are spread over its neurons."""
        alive = torch.from_numpy(np.diff(self.table("", seed).indptr) > 0)
        return carriers(self.autoencoder("", seed, 0).W_dec.cpu()[alive], seed)

    def quality(self, seed: int) -> pd.DataFrame:
        """Of some features of a trained model: the information that rules explain of when they
        fire; the loss (nats per token) that ablating them where they fire costs beyond that of a
        random direction; their density. All in the other half of the text.
        """
        hook, sae = self.hook("", seed), self.autoencoder("", seed, 0)
        scores = self.scores(hook, sae, seed)[2].set_index("unit")[["information", "density"]]
        rows = spread_rows(self.halves.rows[1], ABLATED_TOKENS)
        costs = ablation_losses(hook, sae, rows, list(scores.index), ABLATED_ROWS, 1, seed)
        costs = costs.set_index("feature")
        return scores.assign(ablation=costs["active"] - costs["null"])

    def point(self, seed: int) -> dict:
        """One trained model's features: how universal they are, and what goes with that."""
        made_from = stages.fingerprint_of(self.run, of_recipe(self.run.settings.sae, "topk"))
        made_from |= stages.section(self.run, "interpretability")
        made_from |= {"k": sanity.L0, "models": MODELS, "autoencoders": AUTOENCODERS, "seed": seed}

        def measured() -> dict:
            found: dict[str, list[tuple[Best, Best]]] = defaultdict(list)
            for name, *tables in self.pairs(seed):
                found[name].append(best_correlations(*tables, self.ids))
            # with the first autoencoder of every other model
            universality = np.mean(found["models"][:: len(AUTOENCODERS)], axis=0)[1]
            units = self.quality(seed)
            units = units.assign(universality=universality[units.index])
            compared = {name: summarised(best) for name, best in found.items()}
            return {"seed": seed, "compared": compared, "links": links(units)}

        return self.run.kept_results(f"universality/{digest(made_from)[:12]}", made_from, measured)


def summarised(best: list[tuple[Best, Best]]) -> dict[str, float]:
    """Of correlations raw and without the token: means over features and pairs, and shares of
    those that are universal.
    """
    columns = map(np.concatenate, zip(*best, strict=True))
    table = pd.DataFrame(dict(zip(("raw", "residual"), columns, strict=True)))
    shares = (table >= study_figures.UNIVERSAL).sum() / table.count()
    return table.mean().to_dict() | shares.add_suffix("_share").to_dict()


def links(units: pd.DataFrame) -> dict[str, dict]:
    """How the universality of features goes with each quality: Spearman's correlation, the same
    with the density held, and the quality's medians in the least and the most universal third.
    """
    found = {}
    for quality in study_figures.QUALITIES:
        of = units[["universality", quality, "density"]].dropna()
        (_, xy, xz), (_, _, yz), _ = of.corr("spearman").to_numpy()
        held = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
        order = of["universality"].rank(pct=True)
        thirds = {"least": of[order <= 1 / 3], "most": of[order > 2 / 3]}
        found[quality] = {name: third[quality].median() for name, third in thirds.items()}
        found[quality] |= {"spearman": xy, "density_held": held, "units": len(of)}
    return found
