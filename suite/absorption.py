"""The study of feature absorption: recipes at the same L0, over seeds, on exact labels."""

import numpy as np
import pandas as pd

from sae_lib.features.absorption import (
    CARRIED,
    MIN_GAIN,
    MIN_RECALL,
    Fires,
    Half,
    absorption,
    find_pairs,
    label_directions,
    shuffled_labels,
)
from sae_lib.features.firing import firing_tables
from sae_lib.model.activations import harvest, spread
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import of_recipe
from sae_lib.settings import SAESettings
from suite import stages, sweep
from suite.runs import Run
from suite.sanity import Sanity

RECIPES = ("bricken_2023", "topk", "jumprelu", "matryoshka")
DIRECTION_TOKENS = 65_536  # of the learning half, that parents' directions are taken from
EXAMPLES = 6  # pairs of each recipe that are named


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
    about |= {"carried": CARRIED, "min_gain": MIN_GAIN, "min_recall": MIN_RECALL}
    about["d_sae"] = run.settings.sae.d_sae
    run.save_results("study_absorption", {"points": points, "about": sweep.about(run) | about})
    return run.load_results("study_absorption")


class Absorption:
    """The labels of both halves of the held-out text, and the pairs of parents and children."""

    def __init__(self, run: Run):
        self.run, sanity = run, Sanity(run)
        self.halves, self.tasks = sanity.halves, list(sanity.tasks)
        self.ids = tuple(rows.ravel().astype(np.int64) for rows in self.halves.rows)
        labels = zip(*sanity.tasks.values(), strict=True)
        self.labels = tuple(np.array(half).T for half in labels)  # a column lies together
        rows = self.halves.rows[0]
        some = spread(np.arange(len(rows)), max(1, DIRECTION_TOKENS // rows.shape[1]))
        self.x = harvest(stages.hook(run), rows[some]).float().cpu().numpy()
        self.some = (some[:, None] * rows.shape[1] + np.arange(rows.shape[1])).ravel()
        pairs = find_pairs(self.ids, self.labels)
        shuffled = [shuffled_labels(self.ids, self.labels, seed) for seed in sweep.SEEDS]
        along = np.array([self.directions(of, pairs) for of in (self.labels, *shuffled)])
        there = np.isfinite(along).all((0, 2))
        self.pairs = [pair for pair, kept in zip(pairs, there, strict=True) if kept]
        self.along, *null = along[:, there]
        self.null = dict(zip(sweep.SEEDS, null, strict=True))

    def directions(self, labels: tuple[np.ndarray, np.ndarray], pairs: list) -> np.ndarray:
        return label_directions(self.x, self.ids[0][self.some], labels[0][self.some], pairs)

    def table(self, sae: SparseAutoencoder, seed: int) -> pd.DataFrame:
        """`absorption` of all pairs, with shuffled labels of its own for each seed."""
        hook, W_dec = stages.hook(self.run), sae.W_dec.cpu().numpy()
        fires = [Fires(firing_tables(hook, {"": sae}, rows)[""]) for rows in self.halves.rows]
        halves = tuple(map(Half, self.ids, fires, self.labels))
        return absorption(W_dec, self.along, self.null[seed], halves, self.pairs)

    def point(self, settings: SAESettings) -> dict:
        """Of one autoencoder means over pairs whose parent is told, and the most absorbed ones."""
        run, hook = self.run, stages.hook(self.run)
        record = sweep.plain_record(sweep.measure(run, hook, settings))
        folder = sweep.folder_of(run, settings)
        made_from = stages.fingerprint_of(run, settings) | stages.section(run, "interpretability")
        if (found := run.saved_results(f"absorption/{folder.name}", made_from)) is None:
            sae = SparseAutoencoder.load(folder, hook.device)
            table = self.table(sae, settings.seed)
            table = table[table["recall"] >= MIN_RECALL]
            means = {"pairs": len(table)}
            means |= table[["f1", "recall", "rate", "null"]].mean().to_dict()
            examples = table.nlargest(EXAMPLES, "rate").to_dict("records")
            name = run.get("tokens").tokenizer.decode
            for example in examples:
                example["parent"] = self.tasks[example["parent"]]
                example["child"] = name([example["child"]])
            found = means | {"excess": means["rate"] - means["null"], "examples": examples}
            run.save_results(f"absorption/{folder.name}", found, made_from)
        return {"contender": settings.recipe, "seed": settings.seed} | record | found
