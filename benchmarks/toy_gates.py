"""`make check-toy`: the toy experiments at full size, each outcome held against what it must show.

Gates are on the best of several seeds, on shares with a tolerance and on bounds, never on one seed;
each is one row of a table. They are made for the preset full.
"""

import argparse
import json
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sae_lib.errors import UserError
from sae_lib.progress import tqdm
from sae_lib.toy import metrics
from sae_lib.toy.experiments import DENSITIES, PRESETS, Result
from suite import headless, project, toy_check
from suite.stages import open_run
from suite.toy_results import RUNS, result

log = logging.getLogger(__name__)
Results = Callable[[str], Result | dict]  # experiment name → its result, or its variants' results


def gate(what: str, measured, expected: str, passed) -> dict:
    """One row of the table; numbers shortened to four significant digits."""
    short = [float(f"{x:.4g}") for x in torch.as_tensor(measured).flatten().tolist()]
    measured = short if len(short) > 1 else short[0]
    return {"what": what, "measured": measured, "expected": expected, "passed": bool(passed)}


def within(what: str, values: Tensor, low: float, high: float, expected: str) -> dict:
    """Whether all values lie in [low, high]; no values do not."""
    if not len(values):
        return gate(what, 0.0, f"{expected}; there are none", False)
    ends = values.min().item(), values.max().item()
    return gate(what, ends, expected, ends[0] >= low and ends[1] <= high)


def share(holds: Tensor) -> float:
    """The share of cases that hold; 0 without cases."""
    return holds.float().mean().item() if holds.numel() else 0.0


def at_least(what: str, holds: Tensor, least: float) -> dict:
    """Whether at least that share of the cases holds."""
    found = share(holds)
    return gate(what, found, f"≥ {least}", found >= least)


def introduction(r: Result) -> Iterator[dict]:
    """Two features at p = 1, the pentagon for rare ones."""
    losses, closed = r.losses[0], sum(0.9**i for i in (2, 3, 4)) / 60
    two = (metrics.represented(r.W[0]) == torch.tensor([1, 1, 0, 0, 0]).bool()).all(-1)
    rare = r.p <= 0.0351
    best = r.best_W[rare]
    gaps = torch.cat([metrics.angles(w) for w in best])
    fives = metrics.represented(r.W[rare]).all(-1).float().mean(1)
    off = abs(losses.min().item() / closed - 1)
    yield gate("p = 1: lowest loss", losses.min(), f"{closed:.6f} ± 1 %", off < 0.01)
    yield gate(
        "p = 1: share of seeds that keep the two most important features alone",
        two.float().mean(),
        "≥ 0.25, the lowest loss among them",
        two.float().mean() >= 0.25 and two[losses.argmin()],
    )
    yield within(
        "p ≤ 0.035, best seed: angles between neighbours",
        gaps if len(gaps) == 5 * len(best) else gaps[:0],
        70,
        74,
        "70 … 74 degrees, five features",
    )
    what = "p ≤ 0.035, best seed: "
    yield within(what + "norms", best.norm(dim=-2), 1.13, 1.17, "1.13 … 1.17")
    yield within(what + "D", metrics.dimensionality(best), 0.39, 0.41, "0.39 … 0.41")
    yield within("p ≤ 0.035: share of seeds with all five", fives, 0.4, 1, "≥ 0.4")


def dimensions_filled(r: Result, what: str) -> dict:
    """The bound ΣD ≤ m, and how close training comes to it."""
    sums = metrics.dimensionality(r.W[r.p >= 0.01]).sum(-1) / r.W.shape[-2]
    return within(what, sums, 0.99, 1.0005, "0.99 … 1")


def _represented_by_density(r: Result, reference: tuple[int, ...]) -> Iterator[dict]:
    counts = metrics.represented(r.best_W).sum(-1)
    expected = torch.tensor(reference)[
        torch.tensor([DENSITIES.index(round(p, 4)) for p in r.p.tolist()])
    ]
    close = ((counts / expected - 1).abs() <= 0.2).all()
    yield gate(
        "features represented, best seed, by density",
        counts,
        f"{expected.tolist()} ± 20 %, no step down by more than one",
        close and (counts.diff() >= -1).all(),
    )
    yield dimensions_filled(r, "p ≥ 0.01: ΣD / m, all seeds")


def weights_and_norms(r: Result) -> Iterator[dict]:
    """Features represented by density, 20 → 5."""
    yield from _represented_by_density(r, (5, 7, 9, 10, 11, 14, 15))
    D = metrics.dimensionality(r.best_W)[0, :5]
    yield within("p = 1: D of the first five", D, 0.99, 1.01, "0.99 … 1.01")


def weights_and_norms_large(r: Result) -> Iterator[dict]:
    """Features represented by density, 80 → 20."""
    yield from _represented_by_density(r, (20, 27, 33, 41, 50, 57, 62))


def linear_control(r: Result) -> Iterator[dict]:
    """No superposition without ReLU."""
    kept = metrics.represented(r.best_W)
    counts, crowd = kept.sum(-1), metrics.interference(r.best_W)[kept]
    what = "features represented, by density"
    yield gate(what, counts, "5 at every density", (counts == 5).all())
    what = "largest interference of a represented feature"
    yield gate(what, crowd.max() if len(crowd) else 1.0, "< 0.05", (crowd < 0.05).all())


def phase_diagram(r: Result) -> Iterator[dict]:
    """Ignored or dedicated when dense, antipodal when sparse."""
    importance = torch.logspace(-1, 1, round(len(r.p) ** 0.5)).repeat(round(len(r.p) ** 0.5))
    phase, cosine = metrics.phase(r.best_W), metrics.cosines(r.best_W)[:, 0, -1]
    dense = (r.p >= 0.56) & ((importance - 1).abs() > 0.01)
    right = phase == torch.where(importance < 1, 0, 2)
    what = "density ≥ 0.56: share of cells ignored (I < 1) or dedicated (I > 1)"
    yield at_least(what, right[dense], 0.9)
    what = "density ≤ 0.18: share of cells with both features, antipodal"
    yield at_least(what, ((phase == 1) & (cosine < -0.99))[r.p <= 0.18], 0.95)


def uniform_superposition(r: Result) -> Iterator[dict]:
    """The plateaus at one and at one half dimension per feature."""
    W, inverse = r.best_W, 1 / r.p
    ratio, half = metrics.dimensions_per_feature(W), (inverse >= 2.2) & (inverse <= 3.4)
    what = "1/(1−S) ≤ 1.25: dimensions per feature"
    yield within(what, ratio[inverse <= 1.25], 0.95, 1.05, "0.95 … 1.05")
    what = "1/(1−S) from 2.2 to 3.4: dimensions per feature"
    yield within(what, ratio[half], 0.48, 0.55, "0.48 … 0.55")
    D = metrics.dimensionality(W[half])[metrics.represented(W[half])]
    what = "the same: share of features with D within 0.02 of ½"
    yield at_least(what, (D - 0.5).abs() <= 0.02, 0.7)
    yield dimensions_filled(r, "ΣD / m")


def varied_density(r: Result) -> Iterator[dict]:
    """A square becomes a pentagon where the varied feature is as dense as the others."""
    factor, kept = r.p[:, 0] / r.p[:, 1], metrics.represented(r.W)
    usual, rare = (factor >= 0.9) & (factor <= 3), factor <= 0.1
    counts = r.best(kept.sum(-1))[usual]
    what = "factor 1 … 3, best seed: features represented"
    yield within(what, counts, 5, 5, "5: a pentagon")
    low, high = (share(kept[at][..., 0]) for at in (rare, usual))
    yield gate(
        "share of seeds that represent the varied feature, factor ≤ 0.1 and 1 … 3",
        [low, high],
        "≤ 0.25; ≥ 0.6",
        low <= 0.25 and high >= 0.6,
    )


def correlated_pairs(r: Result) -> Iterator[dict]:
    """Orthogonal within a pair."""
    cosine = metrics.set_cosines(r.W, 2)[0].abs()
    largest = r.best(cosine).max()
    yield gate("best seeds: largest within-pair |cosine|", largest, "< 0.02", largest < 0.02)
    yield at_least("all seeds: share of pairs with |cosine| < 0.02", cosine < 0.02, 0.8)


def anticorrelated_pairs(variants: dict[str, Result]) -> Iterator[dict]:
    """Antipodal within a pair."""
    for start, least in (("xavier", 0.4), ("small", 0.6)):
        r = variants[start]
        cosine = metrics.set_cosines(r.W, 2)[0]
        what = f"{start} start, best seeds: within-pair cosine"
        yield within(what, r.best(cosine), -1.001, -0.98, "−1 … −0.98")
        what = f"{start} start: share of runs with both pairs antipodal"
        yield at_least(what, (cosine < -0.98).all(-1), least)


def correlated_sets(variants: dict[str, Result]) -> Iterator[dict]:
    """Sets lie side by side, each with an orthogonal basis of its own."""
    inside, across = (c.mean(-1) for c in metrics.set_cosines(variants["3x2"].W, 2))
    what = "3 × 2 → 2: share of runs with features of a set closer than features of different sets"
    yield at_least(what, inside > across, 0.9)
    inside, across = (c.abs().mean(-1) for c in metrics.set_cosines(variants["2x10"].W, 10))
    what = "2 × 10 → 10: mean |cosine| within a set / across sets"
    yield within(what, inside / across, 0, 0.25, "≤ 0.25 (each set its own orthogonal basis)")


def learning_dynamics(r: Result) -> Iterator[dict]:
    """Features settle in antipodal pairs while the loss falls."""
    loss, W = r.measured["loss_by_step"][:, 0], r.W[0, 0]
    D = metrics.dimensionality(W)[metrics.represented(W)]
    fall, half = loss[-1] / loss[0], share((D - 0.5).abs() <= 0.03)
    yield gate(
        "loss at the end / at the start; share of features with D within 0.03 of ½ at the end",
        [fall, half],
        "< 0.8; ≥ 0.5",
        fall < 0.8 and half >= 0.5,
    )


def adversarial(r: Result) -> Iterator[dict]:
    """Vulnerability rises with features per dimension."""
    density = 1 / metrics.dimensions_per_feature(r.W)
    found = torch.corrcoef(torch.stack([r.measured["same_inputs"].flatten(), density.flatten()]))
    found = found[0, 1]
    what = "correlation of vulnerability with features per dimension"
    yield gate(what, found, "≥ 0.8", found >= 0.8)


def privileged_basis(r: Result) -> Iterator[dict]:
    """Monosemantic neurons where features are dense."""
    best = metrics.monosemantic(r.W).sum(-1).amax(1)
    yield gate(
        "monosemantic neurons, best of the seeds, by density",
        best,
        "5 at the densest, 0 at the sparsest, no step up by more than one",
        best[0] == 5 and best[-1] == 0 and (best.diff() <= 1).all(),
    )


def absolute_value(r: Result) -> Iterator[dict]:
    """Two neurons for each feature."""
    solved = metrics.solves_absolute_value(r.W, r.W_out) & (r.losses < 1e-6)
    what = "seeds with one positive and one negative neuron for each feature"
    what += ", |w1·w2| = 1 ± 0.02, loss < 1e-6"
    yield gate(what, solved.sum(), f"at least one of {solved.numel()}", solved.any())


def absolute_value_large(r: Result) -> Iterator[dict]:
    """Monosemantic neurons give way to shared ones."""
    found = metrics.monosemantic(r.W).float().mean((1, 2))
    yield gate(
        "share of monosemantic neurons by density",
        found,
        "≥ 0.8 at p = 1, ≤ 0.1 at p ≤ 0.01, falling",
        found[0] >= 0.8 and (found[r.p <= 0.011] <= 0.1).all() and (found.diff() <= 0.02).all(),
    )


def autoencoder(r: dict) -> Iterator[dict]:
    """Ground truth: resampling decides."""
    n, found, without = r["instances"], r["with"], r["without"]
    for name, word, bound in (("with", "≥ 10", 10), ("without", "≤ 4", 4)):
        k = r[name]["all_five"]
        what = f"instances of {n} with all five directions, {name} resampling"
        passed = k >= bound * n / 16 if name == "with" else k <= bound * n / 16
        yield gate(what, k, f"{word} of 16", passed)
    dead = found["dead"], without["dead"]
    what = "dead latents with resampling, without"
    yield gate(what, dead, "≤ 2; ≥ 10 of 80", dead[0] <= 2 and dead[1] >= 10)
    what = "output norm / input norm with resampling"
    yield within(what, found["norm_ratio"], 0, 0.75, "< 0.75: L1 shrinks")


GATES = (
    *(introduction, weights_and_norms, weights_and_norms_large, linear_control, phase_diagram),
    *(uniform_superposition, varied_density, correlated_pairs, anticorrelated_pairs),
    *(correlated_sets, learning_dynamics, adversarial, privileged_basis, absolute_value),
    *(absolute_value_large, autoencoder),
)


def all_gates(results: Results) -> list[dict]:
    """The whole table."""
    return [{"experiment": g.__name__, **row} for g in GATES for row in g(results(g.__name__))]


def gates_table(rows: list[dict]) -> str:
    """The gates as a Markdown table."""
    lines = ["| experiment | what | measured | expected | |", "|---|---|---|---|---|"]
    for row in rows:
        values = row["measured"] if isinstance(row["measured"], list) else [row["measured"]]
        measured = ", ".join(f"{v:.4g}" for v in values)
        what, expected = (row[key].replace("|", "∣") for key in ("what", "expected"))
        verdict = "pass" if row["passed"] else "FAIL"
        lines.append(f"| {row['experiment']} | {what} | {measured} | {expected} | {verdict} |")
    return "\n".join(lines) + "\n"


def check(folder: Path, preset: str = "full") -> bool:
    """Run every experiment, write `gates.json` and `gates.md`, draw the figures of notebook 01.

    Returns whether all gates passed. An interrupted check continues with the experiments that are
    missing. Each experiment runs on one thread, so as many run at once as torch has threads.
    """
    start = time.perf_counter()
    opened = open_run("laptop", str(folder), overrides := [f"toy.preset={preset}"])
    opened.claim()  # so that an interrupted check finds its folder again
    get = partial(result, preset=preset, folder=opened.folder / "toy")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(torch.get_num_threads(), spawn) as pool:
        runs = [pool.submit(get, name) for name in RUNS]  # the first two take longest
        for done in tqdm(as_completed(runs), desc="toy experiments", total=len(runs)):
            done.result()
    rows = all_gates(get)
    passed = sum(row["passed"] for row in rows)
    recipes = [{"recipe": name, **row} for name, row in get("recipes").items()]
    summary = {"preset": preset, "passed": passed, "gates": rows, "recipes": recipes}
    (folder / "gates.md").write_text(gates_table(rows))
    headless.run_notebooks(opened, overrides, "01", log.info)
    found = opened.load_results("toy")
    summary |= {key: found[key] for key in ("cases", "observations", "mechanism")}
    (folder / "gates.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    taken = time.perf_counter() - start
    log.info("toy check: %d of %d gates passed in %.0f s", passed, len(rows), taken)
    return passed == len(rows)


def publish(folder: Path) -> Path:
    """Keep a full check in the checkout: its gates, and the figures that the report shows."""
    to = project.root() / "report" / "toy"
    (to / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copy2(folder / "gates.json", to / "gates.json")
    for name in toy_check.PUBLISHED_FIGURES:
        shutil.copy2(folder / "figures" / f"{name}.png", to / "figures" / f"{name}.png")
    return to


def main() -> None:
    parser = argparse.ArgumentParser("make check-toy", description="The toy models' known results")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/toy"), help="folder for what is made"
    )
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument(
        "--publish", action="store_true", help="also copy gates and figures to ./report/toy/"
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        passed = check(given.out, given.preset)
    except UserError as error:
        sys.exit(f"error: {error}")
    if given.publish:
        print(f"published: {publish(given.out)}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
