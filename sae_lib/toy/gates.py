"""What the full toy experiments must show: best of k seeds, shares with tolerance, bounds. Each gate is one row of a table."""

from collections.abc import Callable

Results = Callable[[str], dict]  # experiment name → its result


def gate(experiment: str, what: str, measured, expected: str, passed: bool) -> dict:
    """One row of the table; numbers shortened to four significant digits."""
    short = (
        [float(f"{x:.4g}") for x in measured]
        if isinstance(measured, list | tuple)
        else float(f"{measured:.4g}")
    )
    return {
        "experiment": experiment,
        "what": what,
        "measured": short,
        "expected": expected,
        "passed": bool(passed),
    }


def between(values: list[float], low: float, high: float) -> bool:
    """Whether all values lie in [low, high]; an empty list does not."""
    return bool(values) and min(values) >= low and max(values) <= high


def ends(values: list[float]) -> list[float]:
    """Smallest and largest."""
    return [min(values), max(values)]


def introduction(r: Results) -> list[dict]:
    """Two features at p = 1, the pentagon for rare ones."""
    x, name = r("introduction"), "introduction"
    losses, closed = x["losses"][0], x["dense_loss_closed_form"]
    top_two = [kept == [1, 1, 0, 0, 0] for kept in x["kept_sets"][0]]
    rare = [i for i, p in enumerate(x["p"]) if p <= 0.0351]
    gaps, norms, D = (
        [v for i in rare for v in x[key][i]] for key in ("gaps", "norms", "dimensionality")
    )
    fives = [share[0] / share[1] for i, share in enumerate(x["share_of_five"]) if i in rare]
    return [
        gate(
            name,
            "p = 1: lowest loss",
            min(losses),
            f"{closed:.6f} ± 1 %",
            abs(min(losses) / closed - 1) < 0.01,
        ),
        gate(
            name,
            "p = 1: share of seeds that keep the two most important features alone",
            sum(top_two) / len(top_two),
            "≥ 0.25, the lowest loss among them",
            sum(top_two) >= len(top_two) / 4 and top_two[losses.index(min(losses))],
        ),
        gate(
            name,
            "p ≤ 0.035, best seed: angles between neighbours",
            ends(gaps),
            "70 … 74 degrees, five features",
            between(gaps, 70, 74) and len(gaps) == 5 * len(rare),
        ),
        gate(
            name,
            "p ≤ 0.035, best seed: norms",
            ends(norms),
            "1.13 … 1.17",
            between(norms, 1.13, 1.17),
        ),
        gate(name, "p ≤ 0.035, best seed: D", ends(D), "0.39 … 0.41", between(D, 0.39, 0.41)),
        gate(
            name, "p ≤ 0.035: share of seeds with all five", ends(fives), "≥ 0.4", min(fives) >= 0.4
        ),
    ]


def weights(r: Results) -> list[dict]:
    """Features represented by density; the bound ΣD ≤ m and how close training comes; no superposition without ReLU."""
    rows = []
    for name, reference in (
        ("weights_and_norms", (5, 7, 9, 10, 11, 14, 15)),
        ("weights_and_norms_large", (20, 27, 33, 41, 50, 57, 62)),
    ):
        x = r(name)
        m, counts = x["m"], x["n_represented"]
        close = all(abs(c / k - 1) <= 0.2 for c, k in zip(counts, reference, strict=True))
        sums = [
            s / m
            for p, row in zip(x["p"], x["sum_dimensionality"], strict=True)
            if p >= 0.01
            for s in row
        ]
        rows += [
            gate(
                name,
                "features represented, best seed, by density",
                counts,
                f"{list(reference)} ± 20 %, no step down by more than one",
                close and all(b >= a - 1 for a, b in zip(counts, counts[1:], strict=False)),
            ),
            gate(
                name,
                "p ≥ 0.01: ΣD / m, all seeds",
                ends(sums),
                "0.99 … 1",
                between(sums, 0.99, 1.0005),
            ),
        ]
    x = r("weights_and_norms")
    rows.append(
        gate(
            "weights_and_norms",
            "p = 1: D of the first five",
            ends(x["dimensionality"][0][:5]),
            "0.99 … 1.01",
            between(x["dimensionality"][0][:5], 0.99, 1.01),
        )
    )
    x = r("linear_control")
    crowd = [
        i
        for row, norms in zip(x["interference"], x["norms"], strict=True)
        for i, n in zip(row, norms, strict=True)
        if n > 0.5
    ]
    rows.append(
        gate(
            "linear_control",
            "features represented, by density",
            x["n_represented"],
            "5 at every density",
            set(x["n_represented"]) == {5},
        )
    )
    rows.append(
        gate(
            "linear_control",
            "largest interference of a represented feature",
            max(crowd),
            "< 0.05",
            max(crowd) < 0.05,
        )
    )
    return rows


def phases(r: Results) -> list[dict]:
    """Ignored or dedicated when dense, antipodal when sparse."""
    x, name = r("phase_diagram"), "phase_diagram"
    cells = [
        (d, i, x["phase"][a][b], x["cosine"][a][b])
        for a, d in enumerate(x["density"])
        for b, i in enumerate(x["importance"])
    ]
    dense = [
        phase == (0 if i < 1 else 2) for d, i, phase, _ in cells if d >= 0.56 and abs(i - 1) > 0.01
    ]
    sparse = [phase == 1 and cosine < -0.99 for d, _, phase, cosine in cells if d <= 0.18]
    return [
        gate(
            name,
            "density ≥ 0.56: share of cells ignored (I < 1) or dedicated (I > 1)",
            sum(dense) / len(dense),
            "≥ 0.9",
            sum(dense) >= 0.9 * len(dense),
        ),
        gate(
            name,
            "density ≤ 0.18: share of cells with both features, antipodal",
            sum(sparse) / len(sparse),
            "≥ 0.95",
            sum(sparse) >= 0.95 * len(sparse),
        ),
    ]


def uniform(r: Results) -> list[dict]:
    """The plateaus at one and at one half dimension per feature."""
    x, name = r("uniform_superposition"), "uniform_superposition"
    points = list(
        zip(x["inverse_density"], x["dimensions_per_feature"], x["dimensionality"], strict=True)
    )
    one = [y for s, y, _ in points if s <= 1.25]
    half = [y for s, y, _ in points if 2.2 <= s <= 3.4]
    D = [d for s, _, kept in points if 2.2 <= s <= 3.4 for d in kept]
    near = sum(abs(d - 0.5) <= 0.02 for d in D) / len(D)
    sums = [s / x["m"] for s in x["sum_dimensionality"]]
    return [
        gate(
            name,
            "1/(1−S) ≤ 1.25: dimensions per feature",
            ends(one),
            "0.95 … 1.05",
            between(one, 0.95, 1.05),
        ),
        gate(
            name,
            "1/(1−S) from 2.2 to 3.4: dimensions per feature",
            ends(half),
            "0.48 … 0.55",
            between(half, 0.48, 0.55),
        ),
        gate(
            name, "the same: share of features with D within 0.02 of ½", near, "≥ 0.7", near >= 0.7
        ),
        gate(name, "ΣD / m", ends(sums), "0.99 … 1", between(sums, 0.99, 1.0005)),
    ]


def sets(r: Results) -> list[dict]:
    """One density varied; correlated and anti-correlated features."""
    x = r("varied_density")
    best = [
        row[losses.index(min(losses))]
        for row, losses in zip(x["n_represented"], x["losses"], strict=True)
    ]
    usual = [b for f, b in zip(x["factor"], best, strict=True) if 0.9 <= f <= 3]
    kept = lambda low, high: [  # noqa: E731
        share
        for f, share in zip(x["factor"], x["varied_represented"], strict=True)
        if low <= f <= high
    ]  # noqa: E731
    rare, common = kept(0, 0.1), kept(0.9, 3)
    rows = [
        gate(
            "varied_density",
            "factor 1 … 3, best seed: features represented",
            ends(usual),
            "5: a pentagon",
            between(usual, 5, 5),
        ),
        gate(
            "varied_density",
            "share of seeds that represent the varied feature, factor ≤ 0.1 and 1 … 3",
            [sum(rare) / len(rare), sum(common) / len(common)],
            "≤ 0.25; ≥ 0.6",
            sum(rare) <= 0.25 * len(rare) and sum(common) >= 0.6 * len(common),
        ),
    ]
    x = r("correlated_pairs")
    bests = [
        abs(c)
        for row, losses in zip(x["within_cosine"], x["losses"], strict=True)
        for c in row[losses.index(min(losses))]
    ]
    orthogonal = [abs(c) < 0.02 for row in x["within_cosine"] for pair in row for c in pair]
    rows += [
        gate(
            "correlated_pairs",
            "best seeds: largest within-pair |cosine|",
            max(bests),
            "< 0.02",
            max(bests) < 0.02,
        ),
        gate(
            "correlated_pairs",
            "all seeds: share of pairs with |cosine| < 0.02",
            sum(orthogonal) / len(orthogonal),
            "≥ 0.8",
            sum(orthogonal) >= 0.8 * len(orthogonal),
        ),
    ]
    for start, least in (("xavier", 0.4), ("small", 0.6)):
        x = r("anticorrelated_pairs")[start]
        bests = [
            c
            for row, losses in zip(x["within_cosine"], x["losses"], strict=True)
            for c in row[losses.index(min(losses))]
        ]
        antipodal = [max(pairs) < -0.98 for row in x["within_cosine"] for pairs in row]
        rows += [
            gate(
                "anticorrelated_pairs",
                f"{start} start, best seeds: within-pair cosine",
                ends(bests),
                "−1 … −0.98",
                between(bests, -1.001, -0.98),
            ),
            gate(
                "anticorrelated_pairs",
                f"{start} start: share of runs with both pairs antipodal",
                sum(antipodal) / len(antipodal),
                f"≥ {least}",
                sum(antipodal) >= least * len(antipodal),
            ),
        ]
    x = r("correlated_sets")
    side = [
        w > a
        for wr, ar in zip(x["3x2"]["within_cosine"], x["3x2"]["across_cosine"], strict=True)
        for w, a in zip(wr, ar, strict=True)
    ]
    ratio = [
        w / a
        for wr, ar in zip(
            x["2x10"]["within_abs_cosine"], x["2x10"]["across_abs_cosine"], strict=True
        )
        for w, a in zip(wr, ar, strict=True)
    ]
    rows += [
        gate(
            "correlated_sets",
            "3 × 2 → 2: share of runs with features of a set closer than features of different sets",
            sum(side) / len(side),
            "≥ 0.9",
            sum(side) >= 0.9 * len(side),
        ),
        gate(
            "correlated_sets",
            "2 × 10 → 10: mean |cosine| within a set / across sets",
            ends(ratio),
            "≤ 0.25 (each set its own orthogonal basis)",
            max(ratio) <= 0.25,
        ),
    ]
    return rows


def neurons(r: Results) -> list[dict]:
    """Dynamics, adversarial examples, privileged basis and the absolute-value model."""
    x = r("learning_dynamics")
    D = [[d for d in row if d > 0] for row in x["dimensionality"]]
    final = sum(abs(d - 0.5) <= 0.03 for d in D[-1]) / max(len(D[-1]), 1)
    a = r("adversarial")["same_inputs"]["correlation"]
    p, w, big = r("privileged_basis"), r("absolute_value"), r("absolute_value_large")
    best = [max(row) for row in p["monosemantic"]]
    share = big["monosemantic_share"]
    return [
        gate(
            "learning_dynamics",
            "loss at the end / at the start; share of features with D within 0.03 of ½ at the end",
            [x["loss"][-1] / x["loss"][0], final],
            "< 0.8; ≥ 0.5",
            x["loss"][-1] < 0.8 * x["loss"][0] and final >= 0.5,
        ),
        gate(
            "adversarial",
            "correlation of vulnerability with features per dimension",
            a,
            "≥ 0.8",
            a >= 0.8,
        ),
        gate(
            "privileged_basis",
            "monosemantic neurons, best of the seeds, by density",
            best,
            "5 at the densest, 0 at the sparsest, no step up by more than one",
            best[0] == 5
            and best[-1] == 0
            and all(b <= a + 1 for a, b in zip(best, best[1:], strict=False)),
        ),
        gate(
            "absolute_value",
            "seeds with one positive and one negative neuron for each feature, |w1·w2| = 1 ± 0.02, loss < 1e-6",
            w["solved"][0],
            f"at least one of {w['solved'][1]}",
            w["solved"][0] >= 1,
        ),
        gate(
            "absolute_value_large",
            "share of monosemantic neurons by density",
            share,
            "≥ 0.8 at p = 1, ≤ 0.1 at p ≤ 0.01, falling",
            share[0] >= 0.8
            and max(share[4:]) <= 0.1
            and all(b <= a + 0.02 for a, b in zip(share, share[1:], strict=False)),
        ),
    ]


def autoencoder(r: Results) -> list[dict]:
    """Ground truth: resampling decides."""
    x, name = r("autoencoder"), "autoencoder"
    n = x["instances"]
    ratio = x["with"]["norm_ratio"]
    return [
        gate(
            name,
            f"instances of {n} with all five directions, with resampling",
            x["with"]["all_five"][0],
            "≥ 10 of 16",
            x["with"]["all_five"][0] >= 10 / 16 * n,
        ),
        gate(
            name,
            f"instances of {n} with all five directions, without",
            x["without"]["all_five"][0],
            "≤ 4 of 16",
            x["without"]["all_five"][0] <= 4 / 16 * n,
        ),
        gate(
            name,
            "dead latents with resampling, without",
            [x["with"]["dead_latents"][0], x["without"]["dead_latents"][0]],
            "≤ 2; ≥ 10 of 80",
            x["with"]["dead_latents"][0] <= 2 and x["without"]["dead_latents"][0] >= 10,
        ),
        gate(
            name,
            "output norm / input norm with resampling",
            ends(ratio),
            "< 0.75: L1 shrinks",
            max(ratio) < 0.75,
        ),
    ]


def all_gates(r: Results) -> list[dict]:
    """The whole table."""
    return [
        row
        for part in (introduction, weights, phases, uniform, sets, neurons, autoencoder)
        for row in part(r)
    ]
