"""Questions that one autoencoder cannot answer: recipes and widths at the same L0, over several
seeds, on one language model.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.features import evaluation
from sae_lib.features.firing import batches
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.recipes import RECIPES, of_recipe, resolve
from sae_lib.settings import SAESettings
from suite import stages, sweep
from suite.runs import Run

SEEDS = (0, 1, 2)
NEAR = 0.2  # of log L0: rates that come no nearer are not compared
L0 = 16.0  # at which everything is compared
FRONTIER = (8.0, 32.0)  # further ones
RATES = (0.5, 1.0, 2.0)  # times a recipe's learning rate; the best one at that L0 is kept
WARD_RATES = (10.0, 30.0)  # times ward_2024's, which is far from done at its own
CHECKS = 25  # for stopping early, in the study of the classical recipe
GRID = {
    "l1": (0.25, 0.5, 1.0, 2.0),
    "lr": (0.5, 1.0, 2.0),
}  # times the recipe's λ and learning rate, in the study of the classical recipe
WIDTHS = (512, 1024, 2048, 4096, 8192)
NULL_SEED = 10_000_019  # far from the seeds that autoencoders start from
# cosine, and share of its activations inside the parent's, from which a feature of a wide
# dictionary counts as part of one of a narrow
CHILD = 0.5
SPLIT_TOKENS = 131_072


def study(run: Run, which: str) -> dict:
    """Make `results/study_<which>.json`; trained autoencoders are kept, so that an interrupted
    study goes on.
    """
    run.path("language_model")
    hook = stages.hook(run)
    results = {"recipes": recipes_study, "widths": widths_study, "classical": classical_study}[
        which
    ](run, hook)
    run.save_results(f"study_{which}", results | {"about": about(run)})
    return run.load_results(f"study_{which}")


def about(run: Run) -> dict:
    """What a study was made on."""
    tokens = {
        "lm_tokens": run.summary("language_model")["tokens"],
        "heldout_tokens": run.settings.evaluation.tokens,
    }
    return {
        "corpus": run.settings.corpus.source.rpartition("/")[2],
        "activations": run.settings.sae.activations,
        "l0": L0,
        "seeds": len(SEEDS),
    } | tokens


def recipes_study(run: Run, hook: HookPoint) -> dict:
    """Every recipe at the same L0 with the best of three learning rates, and near two other L0
    with one seed; `ward_2024` also as it was given; bfloat16 against float32.
    """
    base, points, tuning, chosen = run.settings.sae, [], [], {}
    for name in RECIPES:
        given = of_recipe(base, name).model_copy(update={"precision": "float32"})
        rates = [RECIPES[name].lr * r for r in (WARD_RATES if name == "ward_2024" else RATES)]
        found = [
            at_l0(run, hook, given.model_copy(update={"lr": rate}), L0, tolerance=0.15)
            for rate in rates
        ]
        tuning += [plain_record(record) for _, record in found]
        best = max(
            found,
            key=lambda f: (abs(math.log(f[1]["l0_mean"] / L0)) < NEAR, f[1]["recovered_mean"]),
        )[0]
        chosen["ward_2024, retuned" if name == "ward_2024" else name] = at_l0(run, hook, best, L0)[
            0
        ]
    chosen["bricken_2023, bfloat16"] = chosen["bricken_2023"].model_copy(
        update={"precision": "bfloat16"}
    )
    chosen["ward_2024, as given"] = of_recipe(base, "ward_2024").model_copy(
        update={"precision": "float32"}
    )
    for name, settings in chosen.items():
        points += [
            {"contender": name, "l0": L0} | record for record in of_seeds(run, hook, settings)
        ]
    agreement = {name: agreement_of_seeds(run, hook, settings) for name, settings in chosen.items()}
    for (name, settings), l0 in itertools.product(chosen.items(), FRONTIER):
        if name in ("ward_2024, as given", "bricken_2023, bfloat16"):
            continue
        at_l0(run, hook, settings, l0, tries=2, tolerance=0.5)
    for name, settings in chosen.items():
        points += [
            {"contender": name, "l0": None} | record
            for record in trained_on_the_way(run, settings, points)
        ]
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
    found = [
        plain_record(run.load_results(f"sweep/{path.stem}"))
        for path in sorted((run.results_folder / "sweep").glob("*.json"))
    ]
    taken = {(r["recipe"], r["lambda"], r["k"], r["lr"], r["precision"], r["d_sae"]) for r in known}
    return [
        r
        for r in found
        if all(r[k] == v for k, v in same.items())
        and (r["recipe"], r["lambda"], r["k"], r["lr"], r["precision"], r["d_sae"]) not in taken
    ]


def widths_study(run: Run, hook: HookPoint) -> dict:
    """The run's recipe at several widths and the same L0: what width buys, and which features of
    a narrow dictionary split in a wider one.
    """
    points, agreement, chosen = [], {}, {}
    for width in WIDTHS:
        chosen[width], _ = at_l0(
            run,
            hook,
            run.settings.sae.model_copy(update={"d_sae": width, "precision": "float32"}),
            L0,
        )
        points += of_seeds(run, hook, chosen[width])
        agreement[width] = agreement_of_seeds(run, hook, chosen[width])
    seeds = {
        width: settings.model_copy(update={"seed": SEEDS[0]}) for width, settings in chosen.items()
    }
    splits = [
        {"narrow": a, "wide": b} | splitting(run, hook, seeds[a], seeds[b])
        for a, b in [*itertools.pairwise(WIDTHS), (WIDTHS[0], WIDTHS[-2])]
    ]
    return {"points": points, "mmcs": agreement, "splitting": splits}


def classical_study(run: Run, hook: HookPoint) -> dict:
    """Tied weights, L1 and early stopping, 2 and 4 times as wide as the input: λ and learning
    rate judged by FVU + L0 / d_in, then seeds of the best.
    """
    d_in, recipe, grid = hook_width(hook), RECIPES["tied"], {}
    check_every = max(1, run.settings.sae.activations // recipe.batch // CHECKS)
    for times, l1, rate in itertools.product((2, 4), GRID["l1"], GRID["lr"]):
        settings = of_recipe(run.settings.sae, "tied").model_copy(
            update={
                "d_sae": times * d_in,
                "l1": recipe.l1 * l1,
                "lr": recipe.lr * rate,
                "seed": SEEDS[0],
                "check_every": check_every,
            }
        )
        grid[settings] = sweep.measure(run, hook, settings)
    score = lambda record: record["fvu"] + record["l0_mean"] / d_in  # noqa: E731
    best = min(grid, key=lambda settings: score(grid[settings]))
    points = [plain_record(r) | {"score": score(r)} for r in grid.values()]
    return {
        "points": points,
        "best": of_seeds(run, hook, best),
        "mmcs": agreement_of_seeds(run, hook, best),
        "patience": recipe.patience,
        "check_every": check_every,
        "d_in": d_in,
    }


def at_l0(
    run: Run,
    hook: HookPoint,
    settings: SAESettings,
    l0: float,
    tolerance: float = 0.05,
    tries: int = 4,
) -> tuple[SAESettings, dict]:
    """The settings with λ (or k) such that the held-out L0 is within `tolerance` of `l0`, or as
    near as `tries` trainings come; and that training's record.

    log L0 falls about linearly with log λ: a first guess from the recipe's λ, then secants.
    """
    settings = settings.model_copy(update={"seed": SEEDS[0]})
    if resolve(settings).k:
        settings = settings.model_copy(update={"k": round(l0)})
        return settings, sweep.measure(run, hook, settings)
    tried: list[tuple[float, float, SAESettings, dict]] = []  # log λ, log(L0 / l0)
    log_l1, slope = math.log(resolve(settings).l1) - math.log(l0 / L0), -1.0
    for _ in range(tries):
        candidate = settings.model_copy(update={"l1": float(f"{math.exp(log_l1):.4g}")})
        record = sweep.measure(run, hook, candidate)
        tried.append((log_l1, math.log(max(record["l0_mean"], 1e-2) / l0), candidate, record))
        tried.sort(key=lambda t: abs(t[1]))
        if abs(tried[0][1]) <= math.log1p(tolerance):
            break
        if len(tried) > 1 and tried[0][0] != tried[1][0]:
            slope = min(-0.3, max(-4.0, (tried[1][1] - tried[0][1]) / (tried[1][0] - tried[0][0])))
        log_l1 = tried[0][0] - tried[0][1] / slope
    return tried[0][2], tried[0][3]


def of_seeds(run: Run, hook: HookPoint, settings: SAESettings) -> list[dict]:
    return [
        plain_record(sweep.measure(run, hook, settings.model_copy(update={"seed": seed})))
        for seed in SEEDS
    ]


def agreement_of_seeds(run: Run, hook: HookPoint, settings: SAESettings) -> dict:
    """MMCS between the living features of every two seeds, both ways; and with as many random
    directions: {"pairs", "mean", "null"}.
    """
    living = [
        living_directions(run, hook, settings.model_copy(update={"seed": seed})) for seed in SEEDS
    ]
    pairs = [evaluation.mmcs(a, b) for a, b in itertools.permutations(living, 2)]
    random = torch.randn(living[0].shape, generator=torch.Generator().manual_seed(NULL_SEED))
    return {
        "pairs": pairs,
        "mean": float(np.mean(pairs)),
        "null": evaluation.mmcs(living[0].cpu(), random),
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
    together, n_wide, n_narrow, tokens_of = _together(hook, pair, rows, run.get("tokens").tokenizer)
    unit = [sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8) for sae in pair]
    cosine, parent = (unit[1] @ unit[0].T).cpu().max(1)
    inside = lambda parents: together[parents, torch.arange(len(parents))] / n_wide.clamp_min(1)  # noqa: E731
    fired = n_wide >= 10
    is_part = fired & (cosine >= CHILD) & (inside(parent) >= CHILD)
    by_density = n_narrow.argsort()
    neighbour = torch.empty_like(by_density)
    neighbour[by_density] = by_density.roll(1)
    null = fired & (cosine >= CHILD) & (inside(neighbour[parent]) >= CHILD)
    parts = torch.bincount(parent[is_part], minlength=len(n_narrow))
    alive = n_narrow > 0
    most = parts.argsort(descending=True)[:6].tolist()
    shown = [
        {
            "feature": f,
            "token": tokens_of(0, f),
            "parts": [
                tokens_of(1, c)
                for c in torch.nonzero((parent == f) & is_part).flatten().tolist()[:8]
            ],
            "n_parts": int(parts[f]),
        }
        for f in most
    ]
    return {
        "parts_share": share(is_part[fired]),
        "null_share": share(null[fired]),
        "split_share": share(parts[alive] >= 2),
        "kept_share": share(parts[alive] == 1),
        "lost_share": share(parts[alive] == 0),
        "mean_parts": parts[alive].float().mean().item(),
        "examples": shown,
    }


def _together(
    hook: HookPoint, pair: list[SparseAutoencoder], rows: np.ndarray, tokenizer
) -> tuple[Float[Tensor, "narrow wide"], Tensor, Tensor, Callable[[int, int], str]]:
    """Tokens on which a narrow and a wide feature are both active; on which each is; and a
    function that names the token a feature is strongest on.
    """
    together = scipy.sparse.csr_array((pair[0].d_sae, pair[1].d_sae), dtype=np.float32)
    counts, best = (
        [torch.zeros(sae.d_sae) for sae in pair],
        [np.zeros((2, sae.d_sae)) for sae in pair],
    )
    for batch in batches(hook, dict(zip("ab", pair, strict=True)), rows, "splitting"):
        ones = []
        for side, (name, sae) in enumerate(zip("ab", pair, strict=True)):
            row, column, value = batch.arrays(name)
            fires = (np.ones(len(row), np.float32), (row, column))
            ones.append(scipy.sparse.csr_array(fires, (len(batch.x), sae.d_sae)))
            counts[side] += torch.bincount(batch.pairs[name].column, minlength=sae.d_sae).cpu()
            order = value.argsort(kind="stable")
            column, value, token = column[order], value[order], row[order] + batch.first
            larger = value > best[side][0, column]
            best[side][:, column[larger]] = value[larger], token[larger]
        together = together + ones[0].T @ ones[1]
    flat = rows.reshape(-1)
    return (
        torch.from_numpy(together.toarray()),
        counts[1],
        counts[0],
        lambda side, feature: tokenizer.decode([int(flat[int(best[side][1, feature])])]),
    )


def share(of: Bool[Tensor, " n"]) -> float:
    return of.float().mean().item()


def plain_record(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("density", "made_from")}


def hook_width(hook: HookPoint) -> int:
    return hook.activations(torch.zeros(1, 1, dtype=torch.long, device=hook.device)).shape[-1]
