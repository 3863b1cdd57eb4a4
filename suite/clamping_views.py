"""What clamping does, as text, tables and figures. Prompts and generated text are data: shown,
never obeyed.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from IPython.display import HTML
from markupsafe import Markup
from pandas.io.formats.style import Styler

from sae_lib.errors import SettingsError
from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp, NextTokens
from sae_lib.figures import PALETTE
from sae_lib.text import markup
from sae_lib.text.display import SIGNS, Vocabulary, isolated, plain
from suite import stages
from suite.browser.table import decimal
from suite.runs import Run, verify

TOKENS = 10  # that the command lists
COLOURS = {"random directions": PALETTE[5], "other features": PALETTE[1], "feature": PALETTE[0]}
MEASURES = {"kl": "KL, nats", "change": "probability gained"}
SIDES = Markup('<div style="display:grid;grid-template-columns:1fr 1fr;gap:1em 1.5em">{}</div>')
SIDE = Markup(
    '<div><b>{}</b><pre style="white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px">'
    '<span style="opacity:.55">{}</span>{}'
    '<span style="background:rgba(209,96,61,.18)">{}</span></pre></div>'
)


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
    values = list(values) * (len(features) if len(values) == 1 else 1)
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
    lines = [described(c) + _maximum(run, c.feature) for c in clamps]
    hook, vocabulary = stages.hook(run), Vocabulary(tokenizer)
    target = clamping.ClampTarget(hook, dictionary, tokenizer)
    found = target.next_tokens(prompt, clamps, TOKENS, keep_error)
    error = "kept" if keep_error else "dropped"
    lines += [f"at {hook.name}, the autoencoder's error {error}", ""]
    lines += [f"next token: KL(before ‖ after) {decimal(found.kl)} nats", ""]
    rows = [("token", "before", "after", "change")]
    for r in found.table.itertuples():
        name = isolated(vocabulary.name(int(r.token_id)))
        before, after = (f"{100 * share:.2f} %" for share in (r.before, r.after))
        rows.append((name, before, after, f"{100 * r.change:+.2f}"))
    width = max(len(name) for name, *_ in rows)
    lines += [f"  {name:{width}}  {b:>9}  {a:>9}  {change:>8}" for name, b, a, change in rows]
    if not new_tokens:
        return "\n".join(lines)
    random = (new_tokens, temperature, seed)
    *sides, length = target.side_by_side(prompt, clamps, *random, keep_error)
    before, after = (ids.tolist() for ids in sides)
    for title, ids in (("without the clamp", before), ("with it", after)):
        text = visible_text(vocabulary, ids).replace("\n", "\n  ")
        lines += ["", f"{title}:", f"  {text}"]
    same = shared(before, after) - length
    parted = "no token differs" if before == after else f"they part after {same} new tokens"
    random = f"the same random numbers (seed {seed}, temperature {temperature:g})"
    return "\n".join([*lines, "", f"{random}: {parted}"])


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
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def visible_text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """Tokens as one text, blanks and line ends as they are; everything else that has no shape as
    a sign.
    """
    data = "".join(map(vocabulary.text, ids)).encode("utf-8", "surrogateescape")
    text = data.decode("utf-8", "surrogateescape")
    return re.sub("[^ \n]+", lambda word: plain(word[0]), text)


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
            cells.append(SIDE.format(head, *(_lines(vocabulary, part) for part in parts)))
    return HTML(SIDES.format(Markup("").join(cells)))


def _lines(vocabulary: Vocabulary, ids: Sequence[int]) -> Markup:
    """Each line isolated, so that right-to-left text in one reorders no other."""
    end = Markup('<span style="opacity:.4">{}</span>\n').format(SIGNS["\n"])
    lines = visible_text(vocabulary, ids).split("\n")
    return end.join(Markup("<bdi>{}</bdi>").format(line) for line in lines)


# --- tables ---


RANGE = "{{{0}[0]:{1}}} ({{{0}[1]:{1}}}\u00a0…\u00a0{{{0}[2]:{1}}})".format  # mean (least … most)
# Tables for display: a column's head, and how its cells are written from a row of the results.
CHOSEN = {
    "feature": "{feature}",
    "chosen": "{chosen}",
    "density": "{density:.2%}",
    "maximum": "{maximum:.3g}",
    "raises": "{raises}",
    "largest push on a logit": "{push:+.2g}",
}
NULLS = {
    "feature": "{feature}",
    "chosen": "{chosen}",
    "value": "{value:.3g}",
    "KL": "{kl:.2g}",
    "KL, random directions": RANGE("nulls[random directions][kl]", ".2g"),
    "KL, other features": RANGE("nulls[other features][kl]", ".2g"),
    "gained": "{gained:+.2%}",
    "gained, random directions": RANGE("nulls[random directions][change]", "+.2%"),
    "gained, other features": RANGE("nulls[other features][change]", "+.2%"),
    "moved most": "{moved}",
}
ABLATED = {
    "feature": "{feature}",
    "places": "{n_active}",
    "active": "{active:+.2g}",
    "95 %": "{low:+.2g} … {high:+.2g}",
    "worse at": "{hurt:.2%}",
    "random": "{null:+.2g} ({null_least:+.2g}\u00a0…\u00a0{null_most:+.2g})",
    "silent": "{silent:+.2g}",
}
ERRORS = {
    "feature": "{feature}",
    "KL, kept": "{kl:.2g}",
    "KL, dropped": "{dropped[kl]:.2g}",
    "gained, kept": "{gained:+.2%}",
    "gained, dropped": "{dropped[gained]:+.2%}",
}


def _table(columns: dict[str, str], rows: Iterable[dict]) -> Styler:
    cells = [{head: cell.format(**row) for head, cell in columns.items()} for row in rows]
    return pd.DataFrame(cells).style.format(escape="html").hide(axis="index")


def chosen_table(context, chosen: dict[int, str]) -> Styler:
    """What is known of the chosen features before anything is clamped; `chosen` says how each
    was.
    """
    rows = []
    for feature, how in chosen.items():
        f, maximum = context.table.loc[feature], context.maximum(feature)
        raised = " ".join(
            isolated(context.vocabulary.name(t)) for t in context.top_logits(feature)[:5]
        )
        push = float(f["maximum"] * f["top_logit_values"][0])
        known = {"chosen": how, "maximum": maximum, "raises": raised, "push": push}
        rows.append(f.to_dict() | known)
    return _table(CHOSEN, rows)


def null_table(held: Iterable[dict]) -> Styler:
    """Rows of `against_null`: KL in nats, and the percentage points that the raised tokens gain.

    Both stand beside mean and range of both nulls.
    """
    rows = []
    for h in held:
        up = [(isolated(m["token"]), "↓↑"[m["after"] > m["before"]]) for m in h["movers"][:3]]
        rows.append(h | {"gained": _gained(h), "moved": "  ".join(map("\u00a0".join, up))})
    return _table(NULLS, rows)


def ablation_table(ablated: pd.DataFrame) -> Styler:
    """Rows of `ablation_losses`, in nats per token."""
    return _table(ABLATED, ablated.to_dict("records"))


def error_table(held: dict[int, dict], dropped: dict[int, dict]) -> Styler:
    """The same clamp with the autoencoder's error kept and dropped: KL in nats, percentage points
    gained.
    """
    rows = (h | {"gained": _gained(h), "dropped": dropped[f]} for f, h in held.items())
    return _table(ERRORS, rows)


def _gained(held: dict) -> float:
    return held["probability_after"] - held["probability_before"]


# --- figures ---


def label(context, feature: int, how: str, tokens: int = 3) -> str:
    """A panel's heading, as plotly's markup: the feature and what it raises."""
    names = [markup.label(context.vocabulary.name(t)) for t in context.top_logits(feature)[:tokens]]
    raised = "  ".join(names)
    return f"feature {feature} ({how})<br><span style='font-size:12px'>raises  {raised}</span>"


def next_tokens_figure(
    vocabulary: Vocabulary, found: dict[str, NextTokens], title: str, rows: int = 6
) -> go.Figure:
    """The tokens whose probability a clamp changed most, before and after: a panel per clamp,
    under its `label`.
    """
    parts = []
    for name, n in found.items():
        table = n.table.head(rows).melt("token_id", ["before", "after"], "clamped", "probability")
        names = [markup.label(vocabulary.name(int(t))) for t in table["token_id"]]
        parts.append(table.assign(token=names, clamp=f"{name}<br>KL {decimal(n.kl)} nats"))
    fig = px.bar(
        pd.concat(parts),
        x="probability",
        y="token",
        color="clamped",
        labels={"clamped": ""},
        facet_col="clamp",
        facet_col_spacing=0.1,
        barmode="group",
        color_discrete_sequence=[PALETTE[5], PALETTE[0]],
    )
    fig.update_yaxes(matches=None, showticklabels=True, autorange="reversed", title="")
    fig.update_xaxes(matches=None, tickformat=".0%", nticks=3)
    return _titled(fig, title)


def sweep_figure(
    spreads: dict[str, pd.DataFrame], maxima: Sequence[float], title: str
) -> go.Figure:
    """KL, and the change of the probability of the feature's top-logit tokens, over the pinned
    value.

    A column per feature, under its `label`; bars reach from the least to the most of the draws.
    """
    parts = []
    for (name, table), maximum in zip(spreads.items(), maxima, strict=True):
        for column, measure in MEASURES.items():
            mean, least, most = (table[column + end] for end in ("", "_least", "_most"))
            part = pd.DataFrame({"mean": mean, "above": most - mean, "below": mean - least})
            part = part.assign(direction=table["direction"], multiple=table["value"] / maximum)
            parts.append(part.assign(feature=name, measure=measure))
    fig = px.line(
        pd.concat(parts),
        x="multiple",
        y="mean",
        color="direction",
        facet_row="measure",
        facet_col="feature",
        facet_col_spacing=0.07,
        error_y="above",
        error_y_minus="below",
        markers=True,
        color_discrete_map=COLOURS,
        labels={"mean": "", "multiple": "multiple of its maximum", "direction": ""},
    )
    fig.update_yaxes(matches=None, showticklabels=True)
    return _titled(fig, title)


def _titled(fig: go.Figure, title: str) -> go.Figure:
    """Plotly's headings of panels are `column=value`; a value may hold "=" too."""
    fig.for_each_annotation(lambda a: a.update(text=a.text.split("=", 1)[1]))
    legend = dict(orientation="h", x=0, y=0, yanchor="bottom", yref="container")
    return fig.update_layout(
        title=dict(text=title, y=0.96), legend=legend, margin=dict(t=125, b=95, r=60)
    )
