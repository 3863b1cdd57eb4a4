"""What each toy experiment says, in sentences whose numbers and verdicts are computed from its result."""

from sae_lib.toy.figures import number


def mean(values: list) -> float:
    """Mean of a nested list of numbers."""
    flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
    return sum(flat) / len(flat)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.0f} %"


def interval(share: list[float]) -> str:
    """A share with its 95 % interval."""
    return f"{percent(share[0])} ({percent(share[1])} to {percent(share[2])})"


def introduction(r: dict) -> str:
    """Dense and sparse ends, and what seeds do."""
    counts = [sum(n > 0.5 for n in row) for row in r["norms"]]
    k, n = r["share_of_five"][-1][:2]
    return (
        f"At p = {number(r['p'][0])} the best seed represents {counts[0]} features, and its loss {min(r['losses'][0]):.5f} stands beside the closed form {r['dense_loss_closed_form']:.5f}: the variance of the features left out. "
        f"At p = {number(r['p'][-1])} it represents {counts[-1]}, with norms from {min(r['norms'][-1]):.2f} to {max(r['norms'][-1]):.2f}, dimensionality {mean(r['dimensionality'][-1]):.2f} each, and angles between neighbours from {min(r['gaps'][-1]):.0f}° to {max(r['gaps'][-1]):.0f}°. "
        f"Of {n} seeds there, {k} find all five."
    )


def starting_points(r: dict) -> str:
    """What decides how many seeds find the pentagon."""
    low, high = (
        min(r["rows"], key=lambda x: x["share"][0]),
        max(r["rows"], key=lambda x: x["share"][0]),
    )
    say = lambda x: (  # noqa: E731
        f"{x['fives']} of {x['seeds']} seeds (learning rate {x['lr']:g} for {x['steps']} steps, start ×{x['init_scale']:g}, p = {number(x['p'])})"
    )  # noqa: E731
    return f"The share of seeds with all five features depends on how they are trained: from {say(low)} to {say(high)}. Count seeds before believing one."


def weights_and_norms(small: dict, large: dict, linear: dict) -> str:
    """Counts by density, with and without the ReLU."""
    return (
        f"From p = {number(small['p'][0])} to {number(small['p'][-1])} the number of represented features goes {', '.join(map(str, small['n_represented']))} in {small['m']} dimensions, "
        f"and {', '.join(map(str, large['n_represented']))} in {large['m']}. Without the ReLU it stays at {', '.join(map(str, sorted(set(linear['n_represented']))))}: superposition needs the non-linearity."
    )


def phase_diagram(r: dict) -> str:
    """Shares of the three phases, dense and sparse."""
    cells = [(d, phase) for d, row in zip(r["density"], r["phase"], strict=True) for phase in row]
    both = lambda keep: mean([phase == 1 for d, phase in cells if keep(d)])  # noqa: E731
    return f"Where features are rare (density ≤ 0.18) both share the dimension in {percent(both(lambda d: d <= 0.18))} of the cells; where they are dense (≥ 0.56), in {percent(both(lambda d: d >= 0.56))}: there the more important feature has it alone."


def uniform_superposition(r: dict) -> str:
    """The plateaus."""
    near = min(range(len(r["inverse_density"])), key=lambda i: abs(r["inverse_density"][i] - 2.7))
    kept = r["dimensionality"][near]
    half = sum(abs(d - 0.5) <= 0.02 for d in kept)
    return f"At 1/(1−S) = {r['inverse_density'][near]:.2f} there are {r['dimensions_per_feature'][near]:.3f} dimensions per feature, and {half} of {len(kept)} represented features have Dᵢ within 0.02 of ½: they come in antipodal pairs. The Dᵢ of one model sum to {min(r['sum_dimensionality']):.1f} … {max(r['sum_dimensionality']):.1f}, never more than its {r['m']} dimensions."


def sets(varied: dict, pairs: dict, anti: dict, correlated: dict) -> str:
    """Varied density, correlated, anti-correlated."""
    orthogonal = [abs(c) < 0.1 for row in pairs["within_cosine"] for pair in row for c in pair]
    share = lambda x: mean([max(p) < -0.98 for row in x["within_cosine"] for p in row])  # noqa: E731
    first = next(
        (f for f, s in zip(varied["factor"], varied["varied_represented"], strict=True) if s > 0.5),
        None,
    )
    return (
        f"The varied feature is represented by most seeds {'from ×' + number(first) + ' on' if first else 'at no density tried'}. Correlated features end nearly orthogonal (|cosine| < 0.1 in {percent(mean(orthogonal))} of the pairs); "
        f"anti-correlated ones end antipodal in {percent(share(anti['xavier']))} of the runs, and in {percent(share(anti['small']))} when the weights start at a quarter of the size. "
        f"In two sets of ten, |cosine| is {mean(correlated['2x10']['within_abs_cosine']):.2f} within a set and {mean(correlated['2x10']['across_abs_cosine']):.2f} across: each set has its own orthogonal basis, and only sets interfere."
    )


def neurons(privileged: dict, small: dict, large: dict) -> str:
    """Privileged basis and absolute value."""
    k, n = small["solved"][:2]
    return (
        f"With a ReLU on the hidden layer, the best seed has {max(privileged['monosemantic'][0])} monosemantic neurons of 5 at p = {number(privileged['p'][0])} and {max(privileged['monosemantic'][-1])} at {number(privileged['p'][-1])}. "
        f"|x| through two neurons per feature is solved exactly by {k} of {n} seeds. With 100 features and 40 neurons the monosemantic share falls from {percent(large['monosemantic_share'][0])} at p = {number(large['p'][0])} to {percent(large['monosemantic_share'][-1])} at {number(large['p'][-1])}."
    )


def dynamics(learning: dict, attack: dict) -> str:
    """Learning dynamics and adversarial examples."""
    kept = [d for d in learning["dimensionality"][-1] if d > 0]
    return f"The loss falls from {learning['loss'][0]:.3f} to {learning['loss'][-1]:.3f} while {len(kept)} features appear one after another. Attacked on the same inputs, models with more features per dimension lose more (correlation {attack['same_inputs']['correlation']:.2f}); at each model's own density the correlation is {attack['own_density']['correlation']:.2f}, because empty inputs are safe behind negative biases."


def five_cases(r: dict) -> list[dict]:
    """One row per statement of the talk: in which density ranges it holds, in which not."""
    table = []
    for claim in dict.fromkeys(o["claim"] for o in r["observations"]):
        mine = [o for o in r["observations"] if o["claim"] == claim]
        where = lambda verdict: (  # noqa: E731
            "; ".join(
                f"p {number(o['low'])}–{number(o['high'])}: {interval(o['share'])}"
                for o in mine  # noqa: B023
                if o["holds"] == verdict
            )
            or "nowhere"
        )  # noqa: B023, E731
        measure = "seeds with five" if "five" in claim else "represented features in superposition"
        table.append(
            {
                "the talk says": claim,
                "measured": f"share of {measure}",
                "holds": where(True),
                "does not hold": where(False),
            }
        )
    return table


def dropout(r: dict) -> str:
    """4.1."""
    last, first = r["rates"][-1], r["rates"][0]
    low, null, zero = (
        mean(last["alignment"]),
        mean(last["rotated"]),
        mean(first["alignment"]) - mean(first["rotated"]),
    )
    word = "less" if low < null - 0.02 else "more" if low > null + 0.02 else "about as much"
    return f"At dropout {last['rate']:g} the largest share of a feature on one neuron is {low:.2f}, against {null:.2f} for the same weights rotated at random ({zero:+.2f} without dropout): features lie on single neurons {word} than chance. The model represents {mean(last['n_represented']):.1f} features instead of {mean(first['n_represented']):.1f}: dropout pays for redundancy with features."


def square(r: dict) -> str:
    """4.3."""
    a, s = r["abs"], r["square"]
    return f"At p = {number(r['p'][0])}, {percent(mean(a['monosemantic_share'][0]))} of the neurons serve one feature for |x| and {percent(mean(s['monosemantic_share'][0]))} for x²; at p = {number(r['p'][-1])}, {percent(mean(a['monosemantic_share'][-1]))} and {percent(mean(s['monosemantic_share'][-1]))}. Unexplained variance at p = {number(r['p'][0])}: {percent(mean(a['unexplained'][0]))} for |x|, {percent(mean(s['unexplained'][0]))} for x², which two straight pieces cannot follow."


def pair_functions(r: dict, tasks: tuple[str, ...]) -> str:
    """4.5 and 4.6."""
    middle = len(r["neurons"]) // 2
    say = lambda t: (  # noqa: E731
        f"{t}: {percent(mean(r[t]['unexplained'][middle][0]))} unexplained at p = {number(r['p'][0])} and {percent(mean(r[t]['unexplained'][middle][-1]))} at {number(r['p'][-1])}, with {mean(r[t]['pairs_per_neuron'][middle]):.1f} pairs per neuron"
    )  # noqa: E731
    text = f"With one neuron for each of {r['pairs']} pairs, {'; '.join(map(say, tasks))}."
    if "AND" in tasks and mean(r["AND"]["unexplained"][middle][-1]) > 0.5:
        text += " AND of rare inputs is itself so rare (p²) that the model leaves most of it out."
    if "max" in tasks and mean(r["max"]["unexplained"][middle][-1]) < 0.15:
        text += (
            " For rare inputs max(x, y) is nearly x + y, so neurons can be shared at little cost."
        )
    return text


def value_types(r: dict) -> str:
    """4.7–4.9."""
    labels = {
        "uniform": "uniform",
        "upper_half": "[0.5, 1]",
        "discrete": "1, 2, 3",
        "binary": "binary",
    }
    middle = len(r["p"]) // 2
    return (
        f"At p = {number(r['p'][middle])} the seeds represent on average "
        + ", ".join(f"{mean(r[k]['n_represented'][middle]):.1f} ({v})" for k, v in labels.items())
        + f" features; at p = {number(r['p'][-1])}, "
        + ", ".join(f"{mean(r[k]['n_represented'][-1]):.1f}" for k in labels)
        + (
            ". The range of values moves the density where superposition starts, not where it ends."
            if max(abs(mean(r[k]["n_represented"][-1]) - 5) for k in labels) < 0.5
            else "."
        )
    )


def gelu(r: dict) -> str:
    """4.10."""
    low = [mean(g) / mean(x) for g, x in zip(r["gelu"]["loss"], r["relu"]["loss"], strict=True)]
    return (
        f"At p = {number(r['p'][-1])} GELU represents {mean(r['gelu']['n_represented'][-1]):.1f} features and ReLU {mean(r['relu']['n_represented'][-1]):.1f}; its loss is {min(low):.1f} to {max(low):.1f} times ReLU's over the densities."
        + (
            " GELU's smooth foot filters small interference less sharply: superposition is there, but costs more."
            if mean(low) > 1
            else ""
        )
    )


def classification(r: dict) -> str:
    """4.12."""
    told = [max(row) for row in r["classes_told_apart"]]
    return (
        f"Cross-entropy through two dimensions tells apart {told[0]} of 10 classes at p = {number(r['p'][0])} and {told[-1]} at p = {number(r['p'][-1])}, where squared error represents {max(r['squared_represented'][-1])} features"
        + (
            ": a softmax needs only that each direction wins at its own angle, so superposition is easier than for reconstruction."
            if told[-1] > max(r["squared_represented"][-1])
            else "."
        )
    )


def many_hidden(r: dict) -> str:
    """4.13."""
    best = max(range(len(r["p"])), key=lambda i: mean(r["sums"]["same_output_share"][i]))
    return f"At p = {number(r['p'][best])} a neuron's inputs belong to the same output with share {percent(mean(r['sums']['same_output_share'][best]))} where outputs are sums, against {percent(mean(r['separate']['same_output_share'][best]))} with separate outputs and {percent(r['chance'])} by chance{': inputs that feed one output share neurons, because there their interference is harmless' if mean(r['sums']['same_output_share'][best]) > 1.5 * r['chance'] else ''}. Unexplained variance: {percent(mean(r['sums']['unexplained'][best]))} against {percent(mean(r['separate']['unexplained'][best]))}."


def autoencoder(r: dict) -> str:
    """Ground truth and shrinkage."""
    say = lambda k: f"{r[k]['all_five'][0]} of {r['instances']}"  # noqa: E731
    ratio = r["with"]["norm_ratio"]
    return (
        f"All five directions are found by {say('without')} autoencoders without resampling ({r['without']['dead_latents'][0]} of {r['without']['dead_latents'][1]} latents dead), by {say('with')} with it ({r['with']['dead_latents'][0]} dead), "
        f"and by {say('transposed')} when the encoder starts as the decoder's transpose, without any resampling. Latents fire at a rate of {r['with']['median_rate']:.3f} (features: {r['p']:g}), and outputs have {min(ratio):.2f} to {max(ratio):.2f} of the input's norm: each unit of activation costs {r['l1']:g}, so the best reconstruction of a lone feature falls {r['l1']:g} short."
    )
