"""The study of feature absorption: recipes at the same L0, over seeds, on exact labels."""

from functools import cache

import numpy as np
import pandas as pd

from sae_lib.features.absorption import (
    CARRIED,
    MIN_GAIN,
    Fires,
    Half,
    absorption,
    find_pairs,
    label_directions,
    shuffled_labels,
)
from sae_lib.features.firing import firing_tables
from sae_lib.model.activations import harvest
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import of_recipe
from sae_lib.settings import SAESettings
from suite import stages, sweep
from suite.runs import Run
from suite.sanity import Sanity

RECIPES = ("bricken_2023", "topk", "jumprelu", "matryoshka")
DIRECTION_TOKENS = 65_536  # of the learning half, that parents' directions are taken from
EXAMPLES = 6  # pairs of each recipe that are named
# labels of both halves, their pairs, and a direction of each pair
Described = tuple[tuple[np.ndarray, np.ndarray], list[tuple[int, int]], np.ndarray]


def study(run: Run) -> dict:
    """Make `results/study_absorption.json`: every recipe at the study's L0 with three seeds.
    Trained autoencoders and measured points are kept, so that an interrupted study goes on.
    """
    run.path("language_model")
    absorbed, hook, points = Absorption(run), stages.hook(run), []
    for recipe in RECIPES:
        given = sweep.changed(of_recipe(run.settings.sae, recipe), precision="float32")
        settings, _ = sweep.at_l0(run, hook, given, sweep.L0)
        points += [absorbed.point(sweep.changed(settings, seed=seed)) for seed in sweep.SEEDS]
    about = {"pairs": len(absorbed.pairs), "parents": len({parent for parent, _ in absorbed.pairs})}
    about |= {"carried": CARRIED, "min_gain": MIN_GAIN, "d_sae": run.settings.sae.d_sae}
    run.save_results("study_absorption", {"points": points, "about": sweep.about(run) | about})
    return run.load_results("study_absorption")


class Absorption:
    """The labels of both halves of the held-out text, and the pairs of parents and children."""

    def __init__(self, run: Run):
        self.run, sanity = run, Sanity(run)
        self.halves, self.tasks = sanity.halves, list(sanity.tasks)
        self.ids = tuple(rows.ravel().astype(np.int64) for rows in self.halves.rows)
        labels = zip(*sanity.tasks.values(), strict=True)
        labels = tuple(np.array(half).T for half in labels)  # a column lies together
        context = run.settings.lm.context
        few = self.halves.rows[0][: DIRECTION_TOKENS // context]
        self.x = harvest(stages.hook(run), few).float().cpu().numpy()
        self.exact, self.shuffled = self.described(labels), cache(self._shuffled)
        self.pairs = self.exact[1]

    def described(self, labels: tuple[np.ndarray, np.ndarray]) -> Described:
        """Labels with their pairs and those pairs' `label_directions`: the same for every
        autoencoder.
        """
        pairs = find_pairs(self.ids, labels)
        return labels, pairs, label_directions(self.x, self.ids[0], labels[0], pairs)

    def _shuffled(self, seed: int) -> Described:
        return self.described(shuffled_labels(self.ids, self.exact[0], seed))

    def tables(self, sae: SparseAutoencoder, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """`absorption` of all pairs, and of those of shuffled labels."""
        hook, W_dec, found = stages.hook(self.run), sae.W_dec.cpu().numpy(), []
        fires = [Fires(firing_tables(hook, {"": sae}, rows)[""]) for rows in self.halves.rows]
        for labels, pairs, directions in (self.exact, self.shuffled(seed)):
            halves = tuple(map(Half, self.ids, fires, labels))
            found.append(absorption(W_dec, directions, halves, pairs))
        return tuple(found)

    def point(self, settings: SAESettings) -> dict:
        """Means over pairs of one autoencoder, and those pairs where most is absorbed."""
        run, hook = self.run, stages.hook(self.run)
        record = sweep.plain_record(sweep.measure(run, hook, settings))
        folder = sweep.folder_of(run, settings)
        made_from = stages.fingerprint_of(run, settings) | stages.section(run, "interpretability")
        if (found := run.saved_results(f"absorption/{folder.name}", made_from)) is None:
            sae = SparseAutoencoder.load(folder, hook.device)
            table, null = self.tables(sae, settings.seed)
            means = table[["f1", "recall", "rate"]].mean().to_dict()
            means |= {"null": null["rate"].mean(), "null_pairs": len(null)}
            examples = table.nlargest(EXAMPLES, "rate").to_dict("records")
            name = run.get("tokens").tokenizer.decode
            for example in examples:
                example["parent"] = self.tasks[example["parent"]]
                example["child"] = name([example["child"]])
            found = means | {"excess": means["rate"] - means["null"], "examples": examples}
            run.save_results(f"absorption/{folder.name}", found, made_from)
        return {"contender": settings.recipe, "seed": settings.seed} | record | found
