"""Clamps as people see them: the text of `python -m suite clamp`, and what notebook 06 draws. Generated text is data: shown, never obeyed."""

import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import takewhile

import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML
from pandas.io.formats.style import Styler
from plotly.subplots import make_subplots

from sae_lib.errors import SettingsError
from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp, NextTokens
from sae_lib.features.clamping_effects import ClampContext
from sae_lib.figures import PALETTE
from sae_lib.formats import small
from sae_lib.text import markup
from sae_lib.text.display import SIGNS, Vocabulary, isolated, plain
from suite import stages
from suite.browser.page import decimal, percent
from suite.runs import Run, verify

STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;font-size:13px;line-height:1.5;margin:0"
COLOURS = {"random directions": PALETTE[5], "other features": PALETTE[1], "feature": PALETTE[0]}


def clamps_of(
    features: Sequence[int], how: str, values: Sequence[float], positions: Sequence[int] = ()
) -> list[Clamp]:
    """Clamps from a command line: one value for all features or one for each; `SettingsError` where they do not fit."""
    if how == "ablate":
        if values:
            raise SettingsError(
                f"--value {values[0]:g}: ablating sets the feature to 0 and takes no value; leave it out, or use --how pin"
            )
        values = [0.0]
    if len(values) not in (1, len(features)):
        raise SettingsError(
            f"--how {how} needs one --value for all features, or one for each of the {len(features)}; found {len(values)}"
        )
    values = list(values) * (len(features) if len(values) == 1 else 1)
    clamps = [
        Clamp(f, how, v, tuple(positions) or None) for f, v in zip(features, values, strict=True)
    ]
    clamping.check_values(clamps)
    return clamps


def command(
    run: Run,
    prompt: str,
    clamps: Sequence[Clamp],
    keep_error: bool,
    new_tokens: int,
    temperature: float,
    seed: int,
    k: int = 10,
) -> str:
    """What `python -m suite clamp` prints: the next token before and after, KL, and both continuations."""
    dictionary, tokenizer = run.get("autoencoder"), run.get("tokens").tokenizer
    clamping.check(dictionary, clamps)
    lines = [described(c) + _maximum(run, c.feature) for c in clamps]
    hook = stages.hook(run)
    vocabulary = Vocabulary(tokenizer)
    found = clamping.next_tokens(hook, tokenizer, dictionary, prompt, clamps, k, keep_error)
    lines += [
        f"at {hook.name}, the autoencoder's error {'kept' if keep_error else 'dropped'}",
        "",
    ]
    lines += [f"next token: KL(before ‖ after) {decimal(found.kl)} nats", ""]
    rows = [
        (
            isolated(vocabulary.name(int(r.token_id))),
            _percent(r.before),
            _percent(r.after),
            f"{100 * r.change:+.2f}",
        )
        for r in found.table.itertuples()
    ]
    width = max(len(name) for name, *_ in rows)
    lines += [
        f"  {name:{width}}  {before:>9}  {after:>9}  {change:>8}"
        for name, before, after, change in [("token", "before", "after", "change"), *rows]
    ]
    if new_tokens:
        baseline, changed, length = clamping.side_by_side(
            hook, tokenizer, dictionary, prompt, clamps, new_tokens, temperature, seed, keep_error
        )
        for title, ids in (("without the clamp", baseline), ("with it", changed)):
            lines += [
                "",
                f"{title}:",
                *("  " + line for line in visible_text(vocabulary, ids.tolist()).split("\n")),
            ]
        same = shared(baseline[length:].tolist(), changed[length:].tolist())
        whole = same == len(baseline) - length == len(changed) - length
        lines += [
            "",
            f"the same random numbers (seed {seed}, temperature {temperature:g}): "
            + ("no token differs" if whole else f"they part after {same} new tokens"),
        ]
    return "\n".join(lines)


def described(clamp: Clamp) -> str:
    """`feature 123 pinned to 8 at every position`."""
    done = {
        "pin": f"pinned to {clamp.value:g}",
        "scale": f"scaled by {clamp.value:g}",
        "ablate": "ablated",
    }[clamp.how]
    where = (
        "every position"
        if clamp.positions is None
        else f"position {', '.join(map(str, clamp.positions))}"
    )
    return f"feature {clamp.feature} {done} at {where}"


def _maximum(run: Run, feature: int) -> str:
    """What a value can be measured against, where the feature table is made."""
    path = run.folder / "features" / run.settings.sae.recipe / "features.parquet"
    if not path.exists():
        return ""
    verify(path.parent)
    return f" (its maximum on held-out text: {decimal(float(pd.read_parquet(path, columns=['maximum'])['maximum'][feature]))})"


def _percent(probability: float) -> str:
    return f"{100 * probability:.2f} %"


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def visible_text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """Tokens as one text, blanks and line ends as they are and everything else that has no shape as a sign; a character of several tokens is whole."""
    text = b"".join(vocabulary.text(t).encode("utf-8", "surrogateescape") for t in ids).decode(
        "utf-8", "surrogateescape"
    )
    return re.sub("[^ \n]+", lambda word: plain(word[0]), text)


def chosen_table(context: ClampContext, chosen: dict[int, str]) -> Styler:
    """What is known of the chosen features before anything is clamped; `chosen` says how each was."""
    rows = []
    for feature, how in chosen.items():
        f = context.table.loc[feature]
        raised = " ".join(isolated(context.vocabulary.name(t)) for t in context.top_logits(feature)[:5])
        push = _signed(f["maximum"] * f["top_logit_values"][0])
        rows.append(
            {
                "feature": feature,
                "chosen": how,
                "density": percent(float(f["density"])),
                "maximum": decimal(context.maximum(feature)),
                "raises": raised,
                "largest push on a logit": push,
            }
        )
    return _table(rows)


def null_table(held: Sequence[dict]) -> Styler:
    """Rows of `against_null` for display: KL in nats, and the percentage points that the raised tokens gain, beside mean and range of both nulls."""
    rows = []
    for h in held:
        row = {
            "feature": h["feature"],
            "chosen": h["chosen"],
            "value": decimal(h["value"]),
            "KL": _nats(h["kl"]),
        }
        row |= {f"KL, {name}": _range(null["kl"], _nats) for name, null in h["nulls"].items()}
        row |= {"gained": _points(h["probability_after"] - h["probability_before"])}
        row |= {
            f"gained, {name}": _range(null["change"], _points) for name, null in h["nulls"].items()
        }
        moved = [
            f"{isolated(m['token'])}\u00a0{'↑' if m['after'] > m['before'] else '↓'}"
            for m in h["movers"][:3]
        ]
        rows.append(row | {"moved most": "  ".join(moved)})
    return _table(rows)


def ablation_table(ablated: pd.DataFrame) -> Styler:
    """Rows of `ablation_losses` for display, in nats per token."""
    rows = []
    for a in ablated.to_dict("records"):
        row = {
            "feature": a["feature"],
            "places": a["n_active"],
            "active": _signed(a["active"]),
            "95 %": f"{_signed(a['low'])} … {_signed(a['high'])}",
        }
        row |= {
            "worse at": percent(a["hurt"]),
            "random": _range([a["null"], a["null_least"], a["null_most"]], _signed),
            "silent": _signed(a["silent"]),
        }
        rows.append(row)
    return _table(rows)


def error_table(held: dict[int, dict], dropped: dict[int, dict]) -> Styler:
    """The same clamp with the autoencoder's error kept and dropped: KL in nats, percentage points gained."""
    rows = []
    for feature, h in held.items():
        row = {
            "feature": feature,
            "KL, kept": _nats(h["kl"]),
            "KL, dropped": _nats(dropped[feature]["kl"]),
        }
        gained = h["probability_after"] - h["probability_before"]
        rows.append(
            row
            | {
                "gained, kept": _points(gained),
                "gained, dropped": _points(dropped[feature]["gained"]),
            }
        )
    return _table(rows)


def _table(rows: list[dict]) -> Styler:
    return pd.DataFrame(rows).style.format(escape="html").hide(axis="index")


def _range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    mean, least, most = map(shown, values)
    return f"{mean} ({least}\u00a0…\u00a0{most})"


def _nats(x: float) -> str:
    return small(x, 2).replace(" ", "\u00a0")


def _signed(x: float) -> str:
    return f"{'−' if x < 0 else '+'}{_nats(abs(x))}" if x else "0"


def _points(share: float) -> str:
    return _signed(100 * share)


def label(context: ClampContext, feature: int, how: str, tokens: int = 3) -> str:
    """A panel's heading, as plotly's markup: the feature and what it raises."""
    raised = "  ".join(
        markup.label(context.vocabulary.name(t)) for t in context.top_logits(feature)[:tokens]
    )
    return f"feature {feature} ({how})<br><span style='font-size:12px'>raises  {raised}</span>"


def next_tokens_figure(
    vocabulary: Vocabulary, found: dict[str, NextTokens], title: str, rows: int = 6
) -> go.Figure:
    """The tokens whose probability a clamp changed most, before and after: a panel per clamp, under its `label`."""
    fig = make_subplots(1, len(found), horizontal_spacing=0.1, subplot_titles=list(found))
    for column, n in enumerate(found.values(), 1):
        table = n.table.head(rows)
        for side, colour in (("before", PALETTE[5]), ("after", PALETTE[0])):
            legend = dict(name=side, legendgroup=side, showlegend=column == 1)
            fig.add_bar(
                y=list(range(len(table))),
                x=table[side].tolist(),
                orientation="h",
                marker_color=colour,
                **legend,
                row=1,
                col=column,
            )
        names = [markup.label(vocabulary.name(int(t))) for t in table["token_id"]]
        fig.update_yaxes(
            autorange="reversed",
            tickvals=list(range(len(table))),
            ticktext=names,
            row=1,
            col=column,
        )
        fig.update_xaxes(
            title=f"KL {decimal(n.kl)} nats",
            tickformat=".0%",
            rangemode="tozero",
            nticks=4,
            row=1,
            col=column,
        )
    return fig.update_layout(**_layout(title), bargap=0.25)


def side_by_side_html(
    vocabulary: Vocabulary, pairs: dict[str, tuple[Sequence[int], Sequence[int], int]]
) -> HTML:
    """Continuations without and with a clamp in two columns, the prompt in grey and what differs shaded; by title (baseline, clamped, prompt length)."""
    cells = []
    for title, (baseline, changed, length) in pairs.items():
        same = length + shared(baseline[length:], changed[length:])
        texts = [
            (f"<b>{escape(side)}</b>", ids)
            for side, ids in (("without", baseline), (f"with {title}", changed))
        ]
        for head, ids in texts:
            prompt, alike, differs = (
                _html(vocabulary, part) for part in (ids[:length], ids[length:same], ids[same:])
            )
            text = f'<span style="opacity:.55">{prompt}</span>{alike}<span style="background:rgba(209,96,61,.18)">{differs}</span>'
            cells.append(f'<div>{head}<pre style="{STYLE}">{text}</pre></div>')
    return HTML(
        f'<div style="display:grid;grid-template-columns:1fr 1fr;gap:1em 1.5em;max-width:1000px">{"".join(cells)}</div>'
    )


def _html(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    end = f'<span style="opacity:.4">{SIGNS[chr(10)]}</span>\n'
    return end.join(
        f"<bdi>{escape(line)}</bdi>" for line in visible_text(vocabulary, ids).split("\n")
    )


def sweep_figure(
    spreads: dict[str, pd.DataFrame], maxima: Sequence[float], title: str
) -> go.Figure:
    """KL, and the change of the probability of the feature's top-logit tokens, over the pinned value: a column per feature, under its `label`,
    both nulls as mean and range."""
    fig = make_subplots(
        2,
        len(spreads),
        shared_xaxes=True,
        vertical_spacing=0.08,
        horizontal_spacing=0.07,
        column_titles=list(spreads),
    )
    for column, (table, maximum) in enumerate(zip(spreads.values(), maxima, strict=True), 1):
        for row, measure in enumerate(("kl", "change"), 1):
            for name, colour in COLOURS.items():
                part = table[table["direction"] == name]
                x, once = (part["value"] / maximum).tolist(), row == 1 and column == 1
                if name != "feature":
                    band = (
                        part[f"{measure}_most"].tolist() + part[f"{measure}_least"].tolist()[::-1]
                    )
                    fig.add_scatter(
                        x=x + x[::-1],
                        y=band,
                        fill="toself",
                        mode="none",
                        fillcolor=colour,
                        opacity=0.18,
                        hoverinfo="skip",
                        showlegend=False,
                        row=row,
                        col=column,
                    )
                line = dict(color=colour, width=3 if name == "feature" else 1.5)
                fig.add_scatter(
                    x=x,
                    y=part[measure].tolist(),
                    mode="lines+markers",
                    line=line,
                    name=name,
                    legendgroup=name,
                    showlegend=once,
                    row=row,
                    col=column,
                )
    fig.update_yaxes(rangemode="tozero", row=1)
    fig.update_yaxes(tickformat=".2~%", row=2)
    fig.update_yaxes(title="KL, nats", row=1, col=1)
    fig.update_yaxes(title="probability gained", row=2, col=1)
    fig.add_annotation(
        text="value, in multiples of the feature's maximum",
        x=0.5,
        y=-0.09,
        xref="paper",
        yref="paper",
        yanchor="top",
        showarrow=False,
    )
    return fig.update_layout(**_layout(title))


def _layout(title: str) -> dict:
    return dict(
        title=dict(text=title, y=0.96),
        legend=dict(orientation="h", x=1, xanchor="right", y=1.24, yanchor="bottom", yref="paper"),
        margin=dict(t=115, b=70),
    )
