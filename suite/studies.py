"""Questions that one autoencoder cannot answer: recipes and widths at the same L0, over several
seeds, on one language model.
"""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.errors import SettingsError
from sae_lib.features.agreement import matched_correlation, mmcs
from sae_lib.features.firing import firing_tables, spread_rows
from sae_lib.model.activations import ActivationTable, HookPoint, harvest
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import RECIPES, of_recipe, resolve
from sae_lib.settings import SAESettings
from suite import stages, study_figures, sweep
from suite.runs import Run

FRONTIER = (8.0, 32.0)  # further ones
CHECKS = 25  # for stopping early, in the study of the classical recipe
GRID = {
    "l1": (0.25, 0.5, 1.0, 2.0),
    "lr": (0.5, 1.0, 2.0),
}  # times the recipe's λ and learning rate, in the study of the classical recipe
WIDTHS = (512, 1024, 2048, 4096, 8192)
# changes to how features are resampled, each a possible remedy for what that does to the others
HOW = {
    "moments-kept": {"moments": "kept"},
    "rate-warmed-up-again": {"lr_warmup": 0.05},
    "weaker-encoders": {"encoder_scale": 0.02},
}
NULL_SEED = 10_000_019  # far from the seeds that autoencoders start from
# cosine, and share of its activations inside the parent's, from which a feature of a wide
# dictionary counts as part of one of a narrow
CHILD = 0.5
SPLIT_TOKENS = 131_072
GAUSSIAN_WIDTHS = (512, 4096)
GAUSSIAN_TOKENS = 400_000  # activations that the Gaussian imitates, and as many of its own


def study(run: Run, which: str) -> dict:
    """Make `results/study_<which>.json`; trained autoencoders are kept, so that an interrupted
    study goes on.
    """
    studies = {
        "recipes": recipes_study,
        "widths": widths_study,
        "classical": classical_study,
        "resampling": resampling_study,
        "gaussian": gaussian_study,
    }
    run.path("language_model")
    return sweep.save_study(run, which, studies[which](run, stages.hook(run)))


def recipes_study(run: Run, hook: HookPoint) -> dict:
    """Every recipe at the same L0 with its best learning rate, and near two other L0
    with one seed; `ward_2024` also as it was given; bfloat16 against float32.
    """
    base, tuning, chosen = run.settings.sae, [], {}
    for name, recipe in RECIPES.items():
        given = sweep.changed(of_recipe(base, name), precision="float32")
        rates = sweep.WARD_RATES if name == "ward_2024" else sweep.RATES
        best, found = sweep.at_its_best_rate(run, hook, given, recipe.lr, rates)
        tuning += found
        contender = "ward_2024, retuned" if name == "ward_2024" else name
        chosen[contender], _ = sweep.at_l0(run, hook, best, sweep.L0)
    further = list(chosen.values())
    chosen["bricken_2023, bfloat16"] = sweep.changed(chosen["bricken_2023"], precision="bfloat16")
    as_given = sweep.changed(of_recipe(base, "ward_2024"), precision="float32")
    chosen["ward_2024, as given"] = as_given
    points = [
        {"contender": name, "l0": sweep.L0} | record
        for name, settings in chosen.items()
        for record in of_seeds(run, hook, settings)
    ]
    agreement = {name: agreement_of_seeds(run, hook, settings) for name, settings in chosen.items()}
    for settings, l0 in itertools.product(further, FRONTIER):
        sweep.at_l0(run, hook, settings, l0, tries=2, tolerance=0.5)
    for name, settings in chosen.items():
        others = trained_on_the_way(run, settings, points)
        points += [{"contender": name, "l0": None} | record for record in others]
    return {"points": points, "tuning": tuning, "mmcs": agreement}


def trained_on_the_way(run: Run, settings: SAESettings, known: list[dict]) -> list[dict]:
    """The further points of a contender that searches for an L0 have left behind: other λ or k,
    everything else the same.
    """
    recipe = resolve(settings)
    same = {
        "recipe": settings.recipe,
        "d_sae": settings.d_sae,
        "precision": settings.precision,
        "lr": recipe.lr,
        "activations": settings.activations // recipe.batch * recipe.batch,
    }
    taken = [(r["lambda"], r["k"]) for r in known if _agrees(r, same, "activations")]
    found = [r for r in sweep.points(run) if _agrees(r, same)]
    return [r for r in found if (r["lambda"], r["k"]) not in taken]


def _agrees(record: dict, same: dict, *but: str) -> bool:
    return all(record[key] == value for key, value in same.items() if key not in but)


def widths_study(run: Run, hook: HookPoint) -> dict:
    """The run's recipe at several widths and the same L0, each at its best rate: what width buys,
    and which features of a narrow dictionary split in a wider one.
    """
    base, points, agreement, first = run.settings.sae, [], {}, {}
    for width in WIDTHS:
        given = sweep.changed(base, d_sae=width, precision="float32")
        best, _ = sweep.at_its_best_rate(run, hook, given, resolve(given).lr, sweep.RATES)
        settings, _ = sweep.at_l0(run, hook, best, sweep.L0)
        points += of_seeds(run, hook, settings)
        agreement[width] = agreement_of_seeds(run, hook, settings)
        first[width] = sweep.changed(settings, seed=sweep.SEEDS[0])
    splits = [
        {"narrow": a, "wide": b} | splitting(run, hook, first[a], first[b])
        for a, b in [*itertools.pairwise(WIDTHS), (WIDTHS[0], WIDTHS[-2])]
    ]
    return {"points": points, "mmcs": agreement, "splitting": splits}


def gaussian_study(run: Run, hook: HookPoint) -> dict:
    """What width buys on the activations, and on a Gaussian with their mean and covariance: the
    FVU that topk leaves with as many active features, on others than it was trained on.
    """
    given = sweep.changed(of_recipe(run.settings.sae, "topk"), k=int(sweep.L0))
    rows = run.get("tokens").rows("train", run.settings.lm.context)
    x = [harvest(hook, spread_rows(rows, GAUSSIAN_TOKENS)).float()]
    x.append(harvest(hook, stages.heldout_rows(run, SPLIT_TOKENS)).float())
    data, points = {"activations": x, "Gaussian": [like_gaussian(x[0], len(of)) for of in x]}, []
    cases = itertools.product(data.items(), GAUSSIAN_WIDTHS, sweep.SEEDS)
    for (kind, (train, test)), width, seed in cases:
        settings = sweep.changed(given, d_sae=width, seed=seed, precision="float32")
        measured = partial(fvu_left, train, test, settings, rows.shape[1])
        made_from = stages.fingerprint_of(run, settings) | {"data": kind}
        point = run.kept_results(f"gaussian/{kind}-{width}-{seed}", made_from, measured)
        points.append({"data": kind, "d_sae": width, "seed": seed} | point)
    return {"points": points}


def like_gaussian(x: Float[Tensor, "n d"], n: int) -> Float[Tensor, "m d"]:
    """`n` draws of the Gaussian with the mean and covariance of the rows of `x`."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    generator = torch.Generator().manual_seed(NULL_SEED + n)
    drawn = torch.randn(n, len(values), generator=generator).to(x.device)
    return x.mean(0) + (drawn * values.clamp_min(0).sqrt()) @ vectors.T


@torch.no_grad()
def fvu_left(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"], settings: SAESettings, context: int
) -> dict:
    """Train on activations that are given; the FVU on others."""
    table = ActivationTable(train)
    with torch.enable_grad():
        sae, _ = training.fit(table, table.rows(context), settings, settings.seed)
    left = sum((part - sae(part)).square().sum() for part in test.split(8192))
    return {"fvu": float(left / (test - test.mean(0)).square().sum())}


def classical_study(run: Run, hook: HookPoint) -> dict:
    """Tied weights, L1 and early stopping, 2 and 4 times as wide as the input: λ and learning
    rate judged by FVU + L0 / d_in, then seeds of the best.
    """
    base, recipe = run.settings.sae, RECIPES["tied"]
    d_in = hook.activations(torch.zeros(1, 1, dtype=torch.long, device=hook.device)).shape[-1]
    check_every = max(1, base.activations // recipe.batch // CHECKS)
    given = sweep.changed(of_recipe(base, "tied"), seed=sweep.SEEDS[0], check_every=check_every)

    def trained(rate: float) -> sweep.Trained:
        found = []
        for times, l1 in itertools.product((2, 4), GRID["l1"]):
            values = {
                "d_sae": times * d_in,
                "l1": recipe.l1 * l1,
                "lr": sweep.rounded(recipe.lr * rate),
            }
            settings = sweep.changed(given, **values)
            record = sweep.plain_record(sweep.measure(run, hook, settings))
            score = record["choosing"]["fvu"] + record["choosing"]["l0_mean"] / d_in
            found.append((settings, record | {"score": score}))
        return found

    tried = sweep.until_the_best_is_inside(GRID["lr"], trained, lambda record: -record["score"])
    best, _ = min(tried, key=lambda pair: pair[1]["score"])
    return {
        "points": [record for _, record in tried],
        "best": of_seeds(run, hook, best),
        "mmcs": agreement_of_seeds(run, hook, best),
        "d_in": d_in,
    }


def resampling_study(run: Run, hook: HookPoint) -> dict:
    """The run's recipe from either start, with resampling and without it, at the λ that brings
    it, with resampling, to the same L0 from that start: what is dead at the end and along the way,
    and the differences that resampling makes. From the independent start also with each of `HOW`.
    """
    base, points, curves = sweep.changed(run.settings.sae, resampling=True), [], []
    if resolve(base).resampling is None:
        raise SettingsError(f"study resampling: recipe {base.recipe} resamples nothing")
    found = {
        start: sweep.at_l0(run, hook, sweep.changed(base, init=start), sweep.L0)[0]
        for start in study_figures.STARTS
    }
    for start, on, seed in itertools.product(found, (False, True), sweep.SEEDS):
        at = base.resample_at if on else None
        settings = sweep.changed(found[start], resampling=on, resample_at=at, seed=seed)
        point, curve = resampled(run, hook, settings)
        cell = {"start": start, "resampling": on, "seed": seed}
        points.append(point | cell)
        curves += [cell | at_step for at_step in curve]
    variants, recipe = [], RECIPES[base.recipe]
    how = {
        name: replace(recipe, name=name, resampling=replace(recipe.resampling, **change))
        for name, change in HOW.items()
    }
    with sweep.also_known(how):
        for name, seed in itertools.product(how, sweep.SEEDS):
            settings = sweep.changed(found["independent"], recipe=name, seed=seed)
            variants.append(resampled(run, hook, settings)[0] | {"how": name})
    study = {"points": points, "curves": curves, "window": base.dead_window // 4}
    study |= {"variants": variants, "how": study_figures.how_differences(points, variants)}
    return study | {"differences": study_figures.resampling_differences(points)}


def resampled(run: Run, hook: HookPoint, settings: SAESettings) -> tuple[dict, list[dict]]:
    """A point, with how many features were resampled, and the squared error and L0 [before, after]
    the last time, {"disturbed"}; and which share is silent along the way.
    """
    record = sweep.plain_record(sweep.measure(run, hook, settings))
    summary = stages.read_summary(sweep.folder_of(run, settings))
    events, batch = summary["resampling"], summary["recipe"]["batch"]
    last = next((e for e in reversed(events) if e["resampled"]), None)
    record |= {"resampled": sum(event["resampled"] for event in events), "disturbed": last}
    silent = ((p["step"] * batch, p["silent_quarter"]) for p in summary["curve"])
    return record, [{"activations": seen, "silent": share} for seen, share in silent]


def of_seeds(run: Run, hook: HookPoint, settings: SAESettings) -> list[dict]:
    measured = (
        sweep.measure(run, hook, sweep.changed(settings, seed=seed)) for seed in sweep.SEEDS
    )
    return [sweep.plain_record(record) for record in measured]


def agreement_of_seeds(run: Run, hook: HookPoint, settings: SAESettings) -> dict:
    """Between the living features of every two seeds: MMCS, both ways {"pairs", "mean"}, and one
    to one {"matched"}. The same with as many random directions {"null"} and activations around
    their mean {"data", "matched_data"} in place of the other seed's.
    """
    living = [
        living_directions(run, hook, sweep.changed(settings, seed=seed)) for seed in sweep.SEEDS
    ]
    pairs = [mmcs(a, b) for a, b in itertools.permutations(living, 2)]
    random = torch.randn(living[0].shape, generator=torch.Generator().manual_seed(NULL_SEED))
    x = harvest(hook, stages.heldout_rows(run, SPLIT_TOKENS)).float().cpu()
    drawn = np.random.default_rng(NULL_SEED).choice(len(x), min(len(x), len(random)), replace=False)
    data = x[drawn] - x.mean(0)
    matched = [matched_correlation(a, b) for a, b in itertools.combinations(living, 2)]
    return {
        "pairs": pairs,
        "mean": float(np.mean(pairs)),
        "null": mmcs(living[0], random),
        "data": mmcs(living[0], data),
        "matched": float(np.mean(matched)),
        "matched_data": matched_correlation(living[0], data),
    }


def living_directions(
    run: Run, hook: HookPoint, settings: SAESettings
) -> Float[Tensor, "alive d_in"]:
    alive = torch.tensor(sweep.measure(run, hook, settings)["density"]) > 0
    return SparseAutoencoder.load(sweep.folder_of(run, settings)).W_dec[alive]


@torch.no_grad()
def splitting(run: Run, hook: HookPoint, narrow: SAESettings, wide: SAESettings) -> dict:
    """Which features of the narrow dictionary have several parts in the wide one.

    A wide feature is part of its nearest narrow one (decoder cosine) if that cosine is at least
    `CHILD` and the narrow one is active on at least that share of the tokens on which it is. The
    null takes another narrow feature of similar density in its nearest one's place.
    """
    pair = [SparseAutoencoder.load(sweep.folder_of(run, s), hook.device) for s in (narrow, wide)]
    rows = stages.heldout_rows(run, SPLIT_TOKENS)
    fired = list(firing_tables(hook, dict(zip("ab", pair, strict=True)), rows).values())
    fires = [table.astype(bool).astype(np.float32) for table in fired]
    together = (fires[0].T @ fires[1]).toarray()
    n_narrow, n_wide = (np.diff(table.indptr) for table in fired)
    unit = [normalize(sae.W_dec, eps=1e-8) for sae in pair]
    cosine, parent = (found.cpu().numpy() for found in (unit[1] @ unit[0].T).max(1))
    by_density = n_narrow.argsort(kind="stable")
    neighbour = np.empty_like(by_density)
    neighbour[by_density] = np.roll(by_density, 1)
    judged, alive = n_wide >= 10, n_narrow > 0
    is_part, null = (
        judged
        & (cosine >= CHILD)
        & (together[of, np.arange(len(n_wide))] >= CHILD * np.maximum(n_wide, 1))
        for of in (parent, neighbour[parent])
    )
    parts = np.bincount(parent[is_part], minlength=len(n_narrow))

    def strongest(which: int, feature: np.integer) -> str:
        token = fired[which][:, [feature]].argmax()
        return run.get("tokens").tokenizer.decode([int(rows.flat[token])])

    examples = []
    for feature in (-parts).argsort(kind="stable")[:6]:
        children = np.flatnonzero(is_part & (parent == feature))
        shown = [strongest(1, child) for child in children[:8]]
        known = {"feature": int(feature), "token": strongest(0, feature)}
        examples.append(known | {"parts": shown, "n_parts": int(parts[feature])})
    of_living = parts[alive]
    means = {
        "parts_share": is_part[judged],
        "null_share": null[judged],
        "split_share": of_living >= 2,
        "kept_share": of_living == 1,
        "lost_share": of_living == 0,
        "mean_parts": of_living,
    }
    return {name: values.mean() for name, values in means.items()} | {"examples": examples}
