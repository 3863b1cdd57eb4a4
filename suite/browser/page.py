"""Pages of features as HTML without a script, for exports and outputs that no kernel stands
behind.

Whatever comes from the corpus is escaped: `Markup.format` escapes all that it is given.
"""

from collections.abc import Iterable, Sequence

import pandas as pd
from IPython.display import HTML
from markupsafe import Markup

from sae_lib.figures import NO_MATHEMATICS
from sae_lib.text.display import Vocabulary, isolated, plain
from suite.browser.close_reading import in_full
from suite.browser.table import FeatureTable, Number, decimal, open_table, percent, signed
from suite.runs import Run

DARKEST = 0.62  # opacity of the strongest colour: text stays readable on it, on white and on black
ACTIVE, LOSS = ("240,125,20", ""), ("208,60,60", "50,110,200")  # colours above and below zero
STYLE = Markup("""<style>
.sae { max-width: 1100px; font-size: 14px; line-height: 1.5; margin-bottom: 20px }
.sae .sae-text, .sae code { font-family: monospace; font-size: 12.5px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0 0 4px }
.sae small, .sae-prompt { opacity: 0.65 } .sae h3, .sae h4, .sae p { margin: 4px 0 }
.sae bdi > b { border-bottom: 2px solid }
</style>""")


def static(run: Run, features: Iterable[int], name: str = "", examples: int | None = None) -> HTML:
    """The pages of a few features as HTML that needs no kernel.

    `examples` limits the strongest shown of each and leaves out those over the range.
    """
    return HTML(static_html(open_table(run, name), features, examples))


def static_html(table: FeatureTable, features: Iterable[int], examples: int | None = None) -> str:
    return boxed(*(feature_html(table, int(number), examples) for number in features))


def boxed(*parts: str) -> str:
    """Markup in a box with its style, where no dollar sign begins mathematics."""
    box = Markup('{}<div class="sae {}">{}</div>')
    return str(box.format(STYLE, NO_MATHEMATICS, Markup("").join(parts)))


def feature_html(table: FeatureTable, number: int, examples: int | None) -> Markup:
    f, known = table.features.iloc[number], in_full(table, number)
    head = Markup('<h3 data-feature="{0}">{1} {0}</h3>')
    parts = [head.format(number, table.kind.capitalize())]
    lines = [facts(f)]
    if known["score"]["rule"]:
        scores = "Rule: {rule} (balanced accuracy {balanced_accuracy:.3g}, AUROC {auroc:.3g})"
        lines.append(scores.format(**known["score"]))
    if on := known["top_tokens"]:
        lines.append("Strongest on " + ", ".join("{token} {count}".format(**t) for t in on))
    for end in ("raised", "lowered"):
        moved = [f"{isolated(t['token'])} {signed(t['value'])}" for t in known[end]]
        lines.append(f"Logits {end}: {', '.join(moved)}")
    parts += [Markup("<p>{}</p>").format(line) for line in lines]
    parts += [example_html(table, e) for e in table.strongest(number)[:examples].itertuples()]
    if examples is None and len(table.sampled(number)):
        parts.append(Markup("<h4>Over the whole range, drawn at random</h4>"))
        parts += [example_html(table, e) for e in table.sampled(number)[::-1].itertuples()]
    return Markup("").join(parts)


def facts(f: pd.Series) -> str:
    """A feature's numbers in a line."""
    if not f["n_active"]:
        return "Dead: silent on the whole evaluation text."
    tokens = decimal(round(f["n_active"] / f["density"]))
    return (
        f"density {percent(f['density'])} ({decimal(f['n_active'])} of {tokens} tokens), "
        f"maximum {decimal(f['maximum'])}, mean when active {decimal(f['mean_active'])}"
    )


def example_html(table: FeatureTable, e) -> Markup:
    """One example of `FeatureTable.examples`, coloured on the scale of its feature."""
    ids, maximum = [int(t) for t in e.token_ids], table.maximum(e.feature)
    text = tokens_html(table.vocabulary, ids, e.activations, maximum, e.focus)
    shown = Markup('<div class="sae-text"><small>{}{}</small> {}</div>')
    return shown.format(decimal(float(e.activation)), " marked" if e.marked else "", text)


def tokens_html(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    values: Iterable[Number],
    largest: float,
    focus: int = -1,
    colours: tuple[str, str] = ACTIVE,
) -> Markup:
    """Tokens coloured by their values; the one at `focus` stands out. Point at one for name and
    value.
    """
    whole, parts = vocabulary.characters(list(ids)), []
    for i, (token, value) in enumerate(zip(ids, map(float, values), strict=True)):
        colour, share = colours[value < 0], min(1.0, abs(value) / largest) if largest > 0 else 0.0
        hint = f"{isolated(vocabulary.name(token))}  {decimal(value)}"
        if i in whole:
            hint += f"  (part of {isolated(plain(whole[i]))})"
        text = plain(vocabulary.text(token), every_blank=i == focus)
        shown = Markup("<b>{}</b>" if i == focus else "{}").format(text)
        tone = Markup(' style="background-color:rgba({},{:.2f})"').format(colour, DARKEST * share)
        style = tone if colour and share > 0.02 else ""
        parts.append(Markup('<bdi title="{}"{}>{}</bdi>').format(hint, style, shown))
    return Markup("").join(parts)
