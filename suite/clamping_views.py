"""What clamping does, as text, tables and figures. Prompts and generated text are data: shown,
never obeyed.
"""

import os
import re
from collections.abc import Sequence
from textwrap import indent

import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML

from sae_lib.errors import SettingsError
from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp, ClampContext, NextTokens
from sae_lib.figures import PALETTE
from sae_lib.formats import decimal, exact, number, percent, signed
from sae_lib.text.display import Vocabulary, isolated, plain
from suite import markup, stages
from suite.browser.page import ENVIRONMENT, TEMPLATE
from suite.charts import OTHERS, chart
from suite.runs import Run, verify

TOKENS = 10  # that the command lists
COLOURS = {"random directions": PALETTE[5], "other features": OTHERS, "feature": PALETTE[0]}
MEASURES = {"kl": "KL, nats", "change": "probability gained"}


def clamps_of(
    features: Sequence[int], how: str, values: Sequence[float], positions: Sequence[int] = ()
) -> list[Clamp]:
    """Clamps from a command line: one value for all features or one for each; `SettingsError`
    otherwise.
    """
    if how == "ablate":
        if values:
            raise SettingsError(
                f"--value {values[0]:g}: ablating sets the feature to 0 and takes no value; "
                "leave it out, or use --how pin"
            )
        values = [0.0]
    if len(values) not in (1, len(features)):
        raise SettingsError(
            f"--how {how} needs one --value for all features, "
            f"or one for each of the {len(features)}; found {len(values)}"
        )
    values = list(values) * (len(features) // len(values))
    where = tuple(positions) or None
    clamps = [Clamp(f, how, v, where) for f, v in zip(features, values, strict=True)]
    clamping.check(clamps)
    return clamps


def command(
    run: Run,
    prompt: str,
    clamps: Sequence[Clamp],
    keep_error: bool,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """What `python -m suite clamp` prints: the next token before and after, KL, and both
    continuations.
    """
    dictionary, tokenizer = run.get("autoencoder"), run.get("tokens").tokenizer
    clamping.check(clamps, dictionary)
    named = [described(c) + _maximum(run, c.feature) for c in clamps]
    hook, vocabulary = stages.hook(run), Vocabulary(tokenizer)
    target = clamping.ClampTarget(hook, dictionary, tokenizer)
    found = target.next_tokens(prompt, clamps, TOKENS, keep_error)
    names = found.table["token_id"].map(lambda token: isolated(vocabulary.name(int(token))))
    columns = {"token": names.str.ljust(names.str.len().max())}
    for column, written in (("before", "{:.2f} %"), ("after", "{:.2f} %"), ("change", "{:+.2f}")):
        columns[column] = (100 * found.table[column]).map(written.format)
    lines = [
        *named,
        f"at {hook.name}, the autoencoder's error {'kept' if keep_error else 'dropped'}\n",
        f"next token: KL(before ‖ after) {decimal(found.kl)} nats\n",
        indent(pd.DataFrame(columns).to_string(index=False), "  "),
    ]
    if new_tokens:
        random = (new_tokens, temperature, seed)
        *sides, length = target.side_by_side(prompt, clamps, *random, keep_error)
        before, after = (ids.tolist() for ids in sides)
        for title, ids in (("without the clamp", before), ("with it", after)):
            lines += [f"\n{title}:", indent(visible_text(vocabulary, ids), "  ")]
        same = shared(before, after) - length
        parted = "no token differs" if before == after else f"they part after {same} new tokens"
        random = f"the same random numbers (seed {seed}, temperature {temperature:g})"
        lines.append(f"\n{random}: {parted}")
    return "\n".join(lines)


def described(clamp: Clamp) -> str:
    """`feature 123 pinned to 8 at every position`."""
    ways = {"pin": "pinned to {:g}", "scale": "scaled by {:g}", "ablate": "ablated"}
    where = "every position"
    if clamp.positions:
        where = f"position {', '.join(map(str, clamp.positions))}"
    return f"feature {clamp.feature} {ways[clamp.how].format(clamp.value)} at {where}"


def _maximum(run: Run, feature: int) -> str:
    """What a value can be measured against, where the feature table is made."""
    path = run.folder_of("features") / "features.parquet"
    if not path.exists():
        return ""
    verify(path.parent)
    maximum = float(pd.read_parquet(path, columns=["maximum"])["maximum"][feature])
    return f" (its maximum on held-out text: {decimal(maximum)})"


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    return len(os.path.commonprefix([list(a), list(b)]))


def visible_text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """Tokens as one text, blanks and line ends as they are; everything else that has no shape as
    a sign.
    """
    return re.sub("[^ \n]+", lambda word: plain(word[0]), vocabulary.joined(ids))


def side_by_side_html(
    vocabulary: Vocabulary, pairs: dict[str, tuple[Sequence[int], Sequence[int], int]]
) -> HTML:
    """Continuations without and with a clamp in two columns; by title (baseline, clamped, prompt
    length).

    The prompt is grey, and what differs is shaded.
    """
    cells = []
    for title, (baseline, changed, length) in pairs.items():
        same = length + shared(baseline[length:], changed[length:])
        for head, ids in (("without", baseline), (f"with {title}", changed)):
            parts = (ids[:length], ids[length:same], ids[same:])
            cells.append((head, *(visible_text(vocabulary, part) for part in parts)))
    return HTML(TEMPLATE.side_by_side(cells))


# --- tables ---


WRITERS = {"number": number, "percent": percent, "signed": signed}
TABLES = ENVIRONMENT.get_template("clamping.html.j2", globals=WRITERS).module


def table(name: str, *values: object) -> HTML:
    """One of the tables of `clamping.html.j2`: "chosen", "null", "ablation" or "error"."""
    return HTML(getattr(TABLES, f"{name}_table")(*values))


# --- figures ---


def label(context: ClampContext, feature: int, how: str) -> str:
    """A panel's heading, as plotly's markup: the feature and what it raises."""
    names = [markup.label(context.vocabulary.name(t)) for t in context.top_logits(feature)[:3]]
    raised = "  ".join(names)
    return f"feature {feature} ({how})<br><span style='font-size:12px'>raises  {raised}</span>"


def next_tokens_figure(vocabulary: Vocabulary, found: dict[str, NextTokens]) -> go.Figure:
    """The tokens whose probability a clamp changed most, before and after: a panel per clamp,
    under its `label`.
    """
    parts = []
    for name, n in found.items():
        table = n.table.head(6).melt("token_id", ["before", "after"], "clamped", "probability")
        names = [markup.label(vocabulary.name(int(t))) for t in table["token_id"]]
        parts.append(table.assign(token=names, clamp=f"{name}<br>KL {decimal(n.kl)} nats"))
    colours = [PALETTE[5], PALETTE[0]]
    kls = [n.kl for n in found.values()]
    title = "Held at its maximum, a feature moves the next token"
    title += f" by {decimal(min(kls))} to {decimal(max(kls))} nats (KL)"
    fig = chart("next_tokens", pd.concat(parts), color_discrete_sequence=colours)
    return fig.update_layout(title_text=title)


def sweep_figure(spreads: dict[str, pd.DataFrame], maxima: Sequence[float]) -> go.Figure:
    """KL, and the change of the probability of the feature's top-logit tokens, over the pinned
    value.

    A column per feature, under its `label`; bars reach from the least to the most of the draws.
    The title counts features that at the largest value move KL more than every draw of both nulls.
    """
    parts, ahead = [], 0
    for (name, table), maximum in zip(spreads.items(), maxima, strict=True):
        for column, measure in MEASURES.items():
            mean, least, most = (table[column + end] for end in ("", "_least", "_most"))
            part = pd.DataFrame({"mean": mean, "above": most - mean, "below": mean - least})
            part = part.assign(direction=table["direction"], multiple=table["value"] / maximum)
            parts.append(part.assign(feature=name, measure=measure))
        top = table[table["value"] == table["value"].max()].set_index("direction")
        ahead += top.loc["feature", "kl"] > top["kl_most"].drop("feature").max()
        times = exact(round(top["value"].iloc[0] / maximum, 3))
    title = f"By KL, {ahead} of {len(spreads)} features beat every control at {times} × maximum"
    fig = chart("clamp_sweep", pd.concat(parts), color_discrete_map=COLOURS)
    return fig.update_layout(title_text=title)


def ranks_figure(ranks: pd.DataFrame) -> go.Figure:
    """How many of the features of `clamping.clamp_ranks` have which p, and how many by chance."""
    counts = 100 * ranks["p"].round(4).value_counts(normalize=True).sort_index()
    table = counts.rename("share").reset_index()
    step = 1 / (1 + clamping.RANK_DRAWS)
    first = (ranks["p"] < 1.5 * step).mean()
    title = f"{percent(first)} of the features beat all {clamping.RANK_DRAWS} random directions;"
    title += f" by chance it would be {exact(100 * step)} %"
    fig = chart("clamp_ranks", table, color_discrete_sequence=[PALETTE[0]], title=title)
    fig.add_hline(100 * step, line_dash="dash", line_color=PALETTE[5], annotation_text="by chance")
    return fig.update_traces(width=0.8 * step)
