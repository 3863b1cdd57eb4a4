"""Notebook 07: the original against the method it reproduces, one deviation at a time."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sae_lib.checkpoints import CheckpointFolder
from sae_lib.features.firing import Firing, firing, spread_rows
from sae_lib.model.activations import HookPoint, harvest
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import RECIPES, of_recipe, read_recipes
from sae_lib.sae.resampling import silent_on
from sae_lib.settings import SAESettings
from suite import stages, sweep
from suite.original import FACTS
from suite.runs import Run
from suite.sanity import Sanity

OWN = read_recipes(Path(__file__).with_suffix(".yaml"), RECIPES)
BASES = ("original", "method")
OTHER_SEEDS, SHIFT = "method, other seeds", 1000  # the null: nothing differs but the seeds
WIDTHS = (256, 512, 1024)  # of the language model's MLP, to which λ is carried over
NEAR, TRIES = 0.07, 6  # how near every seed comes to the L0, and in how many trainings at most
TURNS = 2  # in which the time of every training is measured
CURVE = 200  # points of a curve that are kept
KEPT, SHOWN = 511, 20  # firings of a feature that the original kept, and examples that are shown


def study(run: Run) -> dict:
    """Make `results/study_deviations.json`: both bases at L0 16 and the rate that is best for them,
    and each with one thing changed, with three seeds; what is measured is kept on the way.
    """
    with sweep.also_known(OWN):
        return sweep.save_study(run, "deviations", Deviations(run).study())


class Deviations:
    """What all contenders are measured on."""

    def __init__(self, run: Run):
        self.run, self.sanity = run, Sanity(run)
        rows = run.get("tokens").rows("train", run.settings.lm.context)
        self.sample_rows = spread_rows(rows, FACTS["dead_sample"])

    def study(self) -> dict:
        hook, rates, tuning, points = stages.hook(self.run), {}, [], []
        for base in BASES:
            grid = sweep.WARD_RATES if base == "original" else sweep.RATES
            given = self.settings(base)
            best, tried = sweep.at_its_best_rate(self.run, hook, given, OWN[base].lr, grid)
            rates[base], tuning = best.lr, tuning + tried
        for name in OWN:
            settings = self.settings(name, lr=rates[base_of(name)])
            points += self.points(self.run, name, settings)
        l1 = next(point["lambda"] for point in points if point["contender"] == "method")
        method = self.settings("method", lr=rates["method"], l1=l1)
        points += self.points(self.run, OTHER_SEEDS, method, SHIFT)
        model = self.other_model("attention", attention="ward_2024")
        points += self.points(model, "method-attention", method)
        return {
            "points": points,
            "tuning": tuning,
            "carried": self.carried(rates),
            "times": self.times(points),
            "models": {"standard": self.loss(self.run), "attention": self.loss(model)},
        }

    def settings(self, name: str, **values) -> SAESettings:
        given = of_recipe(self.run.settings.sae, name)
        return sweep.changed(given, precision="float32", **values)

    def other_model(self, name: str, **lm) -> Run:
        """The run on a language model of its own, which differs in `lm`, on the same text."""
        s = self.run.settings
        settings = s.model_copy(update={"lm": s.lm.model_copy(update=lm)})
        folder = self.run.folder / "deviations" / name
        return Run(settings, folder, self.run.stages, self.run, self.run.reading)

    def points(self, run: Run, name: str, given: SAESettings, shift: int = 0) -> list[dict]:
        """Of every seed, at the λ that brings it to the same L0; the search goes on from the seed
        before.
        """
        hook, found = stages.hook(run), []
        for seed in sweep.SEEDS:
            seeded, record = sweep.at_l0(run, hook, given, sweep.L0, NEAR, TRIES, seed + shift)
            given = sweep.changed(given, l1=seeded.l1)
            made_from = stages.fingerprint_of(run, seeded) | stages.section(run, "interpretability")
            where = f"deviations/{run.folder.name}/{sweep.point_name(seeded)}"
            density = np.array(record["density"])
            more = run.kept_results(
                where, made_from, partial(self.more, run, hook, seeded, density)
            )
            found.append({"contender": name} | sweep.plain_record(record) | more | {"seed": seed})
        return found

    def more(self, run: Run, hook: HookPoint, settings: SAESettings, density: np.ndarray) -> dict:
        """Information of rules; which features look dead by the original's test, and how far
        features differ in norm.
        """
        sae = SparseAutoencoder.load(sweep.folder_of(run, settings), hook.device)
        silent = silent_on(sae, harvest(hook, self.sample_rows).float()).cpu().numpy()
        scores = self.sanity.scores(hook, sae, settings.seed)[2]
        norms = np.quantile(sae.W_dec.norm(dim=1).cpu().numpy(), (0.05, 0.5, 0.95))
        return {
            "information": scores["information"].median(),
            "called_dead": silent.mean(),
            "wrongly": (density > 0)[silent].mean() if silent.any() else None,
            "wrongly_expected": wrongly_called_dead(density, self.sample_rows.size),
            "norms": (norms / norms[1])[[0, 2]].tolist(),
        }

    def carried(self, rates: dict[str, float]) -> list[dict]:
        """λ as it is, at other widths of the layer: what L0 it gives."""
        found = []
        for width in WIDTHS:
            same = width == self.run.settings.lm.d_mlp
            run = self.run if same else self.other_model(f"d_mlp_{width}", d_mlp=width)
            for name in ("original", "original+loss_units", "method"):
                settings = self.settings(name, lr=rates[base_of(name)], seed=sweep.SEEDS[0])
                record = sweep.plain_record(sweep.measure(run, stages.hook(run), settings))
                found.append({"contender": name, "d_mlp": width} | record)
        return found

    def times(self, points: list[dict]) -> list[dict]:
        """Seconds of every contender's training, at its λ of the first seed, in turns: each once,
        then each again.
        """
        first, timed = {p["contender"]: p for p in reversed(points)}, {}
        hook = stages.hook(self.run)
        for name in OWN:
            at = {"lr": first[name]["lr"], "l1": first[name]["lambda"], "seed": sweep.SEEDS[0]}
            timed[name] = self.settings(name, **at)

        def seconds() -> dict:
            return {
                turn: {
                    name: stages.fit(self.run, hook, settings, CheckpointFolder())[1]["seconds"]
                    for name, settings in timed.items()
                }
                for turn in map(str, range(TURNS))
            }

        made_from = {n: stages.fingerprint_of(self.run, of) for n, of in timed.items()}
        return list(self.run.kept_results("deviations/times", made_from, seconds).values())

    def loss(self, run: Run) -> float:
        return run.summary("language_model")["curve"][-1]["heldout"]


def base_of(name: str) -> str:
    return next(base for base in BASES if name.startswith(base))


def wrongly_called_dead(density: Float[np.ndarray, " d_sae"], n: int) -> float | None:
    """Of the features that are silent on `n` activations, the share that fire elsewhere, expected
    from their densities p: Σ_{p > 0} (1 − p)^n over that and the number with p = 0.
    """
    missed = ((1 - density[density > 0]) ** n).sum()
    silent = missed + (density == 0).sum()
    return float(missed / silent) if silent else None


def top_examples(run: Run) -> dict:
    """`first_against_top` of the run's own autoencoder, on held-out text."""
    sae, rows = run.get("autoencoder"), stages.heldout_rows(run, run.settings.evaluation.tokens)
    return first_against_top(firing(stages.hook(run), {"": sae}, rows)[""])


def first_against_top(fired: list[Firing]) -> dict:
    """Which of the `SHOWN` strongest firings of a feature are among those that are shown when only
    its first `KEPT` are looked at: of features that fire more often.
    """
    often, shared, strongest = 0, [], []
    for unit in fired:
        if len(unit.token) <= KEPT:
            continue
        order = np.argsort(-unit.value, kind="stable")
        often += 1
        shared.append((order[:SHOWN] < KEPT).mean())
        strongest.append(order[0] < KEPT)
    return {
        "often": often / len(fired),
        "shared": float(np.median(shared)) if often else None,
        "strongest": float(np.mean(strongest)) if often else None,
        "kept": KEPT,
        "shown": SHOWN,
    }


def full_budget(run: Run) -> dict:
    """Make `results/study_full_budget.json`: `ward_2024` as it was given, once, on as many
    activations as the original's.
    """
    given = of_recipe(run.settings.sae, "ward_2024")
    settings = sweep.changed(given, precision="float32", activations=FACTS["activations"])
    record = sweep.plain_record(sweep.measure(run, stages.hook(run), settings))
    summary = stages.read_summary(sweep.folder_of(run, settings))
    every = max(1, len(summary["curve"]) // CURVE)
    batch = summary["recipe"]["batch"]
    dead = [
        {"activations": event["step"] * batch, "dead": event["dead"] / settings.d_sae}
        for event in summary["resampling"]
    ]
    curve = [{"activations": p["step"] * batch} | p for p in summary["curve"][::every]]
    return sweep.save_study(run, "full_budget", {"record": record, "dead": dead, "curve": curve})
