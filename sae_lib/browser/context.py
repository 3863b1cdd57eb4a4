"""The whole row of text around an example, and what ablating the feature there does to the loss on each of its tokens."""

import ipywidgets as w
from IPython.display import HTML

from sae_lib import features
from sae_lib.browser.model import Model, note, said_in
from sae_lib.browser.page import decimal, style_html, template
from sae_lib.browser.table import FeatureTable, open_table
from sae_lib.runs import Run
from sae_lib.visible import isolated


def whole_context(
    run: Run, feature: int, example: int = 0, name: str = "", ablate: bool = False
) -> HTML:
    """The whole row around a feature's example (0 is the strongest) as HTML that needs no kernel; `ablate` adds the change of the loss."""
    return HTML(
        style_html() + whole(open_table(run, name), Model(run, name), feature, example, ablate)
    )


def whole(table: FeatureTable, model: Model, number: int, example: int, ablate: bool) -> str:
    chosen = table.all_examples(number).iloc[example]
    row, position = int(chosen["row"]), int(chosen["position"])
    ids = model.row(row)
    values = features.row_activations(model.hook, model.dictionary, ids, number)
    tokens = table.tokens(ids.tolist(), values.clamp_min(0).tolist(), position)
    effects = (
        features.ablation_effect(model.hook, model.dictionary, ids, number).tolist()
        if ablate
        else [0.0] * len(ids)
    )
    shown = {
        "row": row,
        "position": position,
        "activation": float(chosen["activation"]),
        "maximum": float(table.features["maximum"].iloc[number]) or float(chosen["activation"]),
        "tokens": [
            token | {"effect": effect} for token, effect in zip(tokens, effects, strict=True)
        ],
        "ablated": ablate,
        "total": sum(effects),
        "largest": max(map(abs, effects)),
    }
    return str(template().whole(shown))


class Context(w.VBox):
    """Choose an example of the current feature and see its whole row."""

    def __init__(self, table: FeatureTable, model: Model):
        self.table, self.model, self.number, self._busy = table, model, 0, False
        self.list = w.Select(rows=6, layout=w.Layout(width="auto"))
        self.list.add_class("sae-browser-list")
        self.ablate = w.Checkbox(description="change of the loss when ablated", indent=False)
        self.shown = w.HTML()
        self.list.observe(lambda _: self.look(), "value")
        self.ablate.observe(lambda _: self.look(), "value")
        super().__init__([self.list, self.ablate, self.shown])

    def turn(self, number: int) -> None:
        """List another feature's examples; none is open."""
        self.number, self._busy = number, True
        self.list.value = None
        self.list.options = [
            (self._label(e), i)
            for i, e in enumerate(self.table.all_examples(number).to_dict("records"))
        ]
        self.list.value, self._busy = None, False
        self.shown.value = note("Choose an example.") if self.list.options else ""

    def look(self) -> None:
        if not self._busy and self.list.value is not None:
            with said_in(self.shown, self.model):
                self.shown.value = whole(
                    self.table, self.model, self.number, self.list.value, self.ablate.value
                )

    def _label(self, example: dict) -> str:
        tenth = example.get("tenth", -1)
        where = f"top {example['rank'] + 1}" if tenth < 0 else f"tenth {tenth + 1}"
        token = self.table.vocabulary.name(int(example["token_id"]))
        return f"{where:<9} {decimal(example['activation']):>6}  {isolated(token)}{'  marked' if example.get('marked') else ''}".replace(
            " ", "\xa0"
        )
