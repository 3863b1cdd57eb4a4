"""A text of the reader's own: a feature's activation on each token, and the features that are strongest there."""

import time
from collections.abc import Callable, Iterable

import ipywidgets as w
import torch
from IPython.display import HTML
from jaxtyping import Float
from torch import Tensor

from sae_lib.browser.model import Model, note, said_in
from sae_lib.browser.page import decimal, style_html, template
from sae_lib.browser.table import FeatureTable, open_table
from sae_lib.runs import Run
from sae_lib.visible import isolated

PER_TOKEN = 5
PROMPT = "import numpy as np\n"
SLOW = 0.3  # seconds a text may take to be looked at with every key


def own_text(
    run: Run, text: str, features: Iterable[int] = (), name: str = "", per_token: int = PER_TOKEN
) -> HTML:
    """The panel "try your own text" as HTML that needs no kernel: `text` coloured by each of `features`, and the strongest features per token."""
    table, model = open_table(run, name), Model(run, name)
    ids, _ = model.encoded(text)
    acts = model.feature_acts(ids) if ids else torch.zeros(0, len(table))
    parts = [style_html(), *(coloured(table, int(f), ids, acts) for f in features)]
    return HTML(
        "".join(parts)
        + str(
            template().per_token(
                table.kind, strongest_per_token(table, ids, acts, per_token), False
            )
        )
    )


def coloured(
    table: FeatureTable, number: int, ids: list[int], feature_acts: Float[Tensor, "position d_sae"]
) -> str:
    """The text coloured by one feature, on the scale of its page."""
    values = feature_acts[:, number].clamp_min(0).tolist()
    row = table.features.iloc[number]
    maximum = (
        float(row["maximum"]) or float(row.get("maximum_all", 0.0)) or max(values, default=0.0)
    )
    shown = {
        "number": number,
        "maximum": maximum,
        "strongest": max(values, default=0.0),
        "tokens": table.tokens(ids, values),
    }
    return str(template().tried(table.kind, shown))


def strongest_per_token(
    table: FeatureTable,
    ids: list[int],
    feature_acts: Float[Tensor, "position d_sae"],
    k: int = PER_TOKEN,
) -> list[dict]:
    """A row per token: its name and its k strongest features, silent ones left out."""
    values, numbers = feature_acts.topk(min(k, feature_acts.shape[1]), dim=1)
    rows = []
    for token, vs, ns in zip(ids, values.tolist(), numbers.tolist(), strict=True):
        strongest = [
            {"number": n, "value": v, "token": table.label(n)[0] or "dead"}
            for n, v in zip(ns, vs, strict=True)
            if v > 0
        ]
        rows.append({"name": table.vocabulary.name(token), "strongest": strongest})
    return rows


class TryText(w.VBox):
    """Type, and see; a line of the list turns the page to its feature. `choose` is called with the number."""

    def __init__(self, table: FeatureTable, model: Model, choose: Callable[[int], None]):
        self.table, self.model, self.choose, self.number = table, model, choose, 0
        self.ids, self.acts, self._busy = [], torch.zeros(0, len(table)), False
        self.text = w.Textarea(
            placeholder="type or paste a text", layout=w.Layout(width="auto", height="84px")
        )
        self.shown, self.note = w.HTML(), w.HTML()
        self.list = w.Select(rows=12, layout=w.Layout(width="auto"))
        self.list.add_class("sae-browser-list")
        self.text.observe(lambda _: self.look(), "value")
        self.list.observe(self._chosen, "value")
        heading = w.HTML(
            note(
                f"The {PER_TOKEN} strongest {table.kind}s on each token, with their activations and the token each is strongest on; choose a line to turn to its page."
            )
        )
        super().__init__([self.text, self.note, self.shown, heading, self.list])

    def turn(self, number: int) -> None:
        """Colour the text by another feature."""
        self.number = number
        self.shown.value = coloured(self.table, number, self.ids, self.acts) if self.ids else ""

    def look(self) -> None:
        """Run the model on the text and show what it finds."""
        began = time.monotonic()
        with said_in(self.note, self.model):
            self.ids, cut = self.model.encoded(self.text.value)
            self.acts = self.model.feature_acts(self.ids) if self.ids else self.acts[:0]
            self.note.value = (
                note(
                    f"The model's context holds {len(self.ids)} tokens; the last {decimal(cut)} are left out."
                )
                if cut
                else ""
            )
        self.turn(self.number)
        self._busy = True
        self.list.value = None
        self.list.options = [
            line
            for i, row in enumerate(strongest_per_token(self.table, self.ids, self.acts))
            for line in self._lines(i, row)
        ]
        self.list.value = None
        self._busy = False
        self.text.continuous_update = (
            time.monotonic() - began < SLOW
        )  # else it looks when the text loses the focus

    def _lines(self, position: int, row: dict) -> list[tuple[str, tuple[int, int]]]:
        """A line per feature: token (on its first line), number, activation, and the token that the feature is strongest on."""
        lines = []
        for i, s in enumerate(row["strongest"]):
            token = isolated(f"{row['name'] if i == 0 else '':<16.16}")
            label = f"{token} {s['number']:>6} {decimal(s['value']):>6}  {isolated(s['token'])}".replace(
                " ", "\xa0"
            )
            lines.append((label, (position, s["number"])))
        return lines

    def _chosen(self, change: dict) -> None:
        if not self._busy and change["new"] is not None:
            self.choose(change["new"][1])
