"""A feature clamped while the model runs: the next token, and a continuation beside the one without it."""

from typing import Literal

import ipywidgets as w
import torch
from IPython.display import HTML

from sae_lib.features.clamping import Clamp, next_tokens, side_by_side
from suite.browser.model import Model, said_in
from suite.browser.page import decimal, style_html, template
from suite.browser.table import FeatureTable, open_table
from suite.browser.try_text import PROMPT
from suite.runs import Run

NEXT = 12  # tokens listed, those first whose probability changes most
HOW = {"pin to a value": "pin", "scale by a factor": "scale", "ablate": "ablate"}


def clamp(
    run: Run,
    prompt: str,
    feature: int,
    how: Literal["pin", "scale", "ablate"] = "pin",
    value: float = 0.0,
    name: str = "",
    new_tokens: int = 40,
    temperature: float = 0.8,
    seed: int = 0,
    keep_error: bool = True,
) -> HTML:
    """The clamp panel's result as HTML that needs no kernel; `UserError` as `clamping.clamped`."""
    made = Clamp(feature, how, value)
    return HTML(
        style_html()
        + clamped_html(
            open_table(run, name),
            Model(run, name),
            prompt,
            made,
            new_tokens,
            temperature,
            seed,
            keep_error,
        )
    )


def clamped_html(
    table: FeatureTable,
    model: Model,
    prompt: str,
    made: Clamp,
    new_tokens: int,
    temperature: float,
    seed: int,
    keep_error: bool,
) -> str:
    """Continuations side by side (none for 0 new tokens), both coloured by what the feature does on them unclamped, and the next token's table."""
    parts = (model.hook, model.tokenizer, model.dictionary, prompt, [made])
    after = next_tokens(*parts, k=NEXT, keep_error=keep_error)
    baseline, changed, n_prompt = (
        side_by_side(*parts, new_tokens, temperature, seed, keep_error)
        if new_tokens
        else (torch.zeros(0), torch.zeros(0), 0)
    )

    def tokens(ids: torch.Tensor) -> list[dict]:
        ids = ids.long().tolist()
        values = model.feature_acts(ids)[:, made.feature].clamp_min(0).tolist() if ids else []
        shown = table.tokens(ids, values)
        return [t | {"prompt": i < n_prompt} for i, t in enumerate(shown)]

    maximum = float(table.features["maximum"].iloc[made.feature]) or 1.0
    done = {
        "pin": f"pinned at {decimal(made.value)}",
        "scale": f"times {decimal(made.value)}",
        "ablate": "ablated",
    }[made.how]
    next_ = [
        {
            "token": table.vocabulary.name(int(t["token_id"])),
            "before": float(t["before"]),
            "after": float(t["after"]),
        }
        for t in after.table.head(NEXT).to_dict("records")
    ]
    what = f"{table.kind} {made.feature} {done}" + (
        "" if keep_error else ", what the autoencoder does not explain left out"
    )
    return str(
        template().clamped(
            {
                "baseline": tokens(baseline),
                "clamped": tokens(changed),
                "maximum": maximum,
                "what": what,
                "kl": after.kl,
                "next": next_,
            }
        )
    )


class ClampPanel(w.VBox):
    """Clamp the current feature, or another, in a prompt of one's own."""

    def __init__(self, table: FeatureTable, model: Model):
        self.table, self.model = table, model
        narrow = w.Layout(width="180px")
        self.prompt = w.Textarea(value=PROMPT, layout=w.Layout(width="auto", height="64px"))
        self.feature = w.BoundedIntText(
            min=0, max=len(table) - 1, description=table.kind.capitalize(), layout=narrow
        )
        self.how = w.Dropdown(options=HOW, layout=narrow)
        self.value = w.FloatText(description="Value", layout=narrow)
        self.keep_error = w.Checkbox(
            value=True,
            description="keep the error term",
            tooltip="what the autoencoder does not explain goes on unchanged",
            indent=False,
            layout=narrow,
        )
        self.new_tokens = w.BoundedIntText(40, min=0, max=4096, description="Tokens", layout=narrow)
        self.temperature = w.BoundedFloatText(
            0.8,
            min=0,
            max=5,
            step=0.1,
            description="Temperature",
            style={"description_width": "initial"},
            layout=narrow,
        )
        self.seed = w.BoundedIntText(0, min=0, max=2**31 - 1, description="Seed", layout=narrow)
        self.generate = w.Button(
            description="Generate", button_style="primary", layout=w.Layout(width="110px")
        )
        self.shown = w.HTML()
        self.how.observe(lambda _: self._propose(), "value")
        self.feature.observe(lambda _: self._propose(), "value")
        self.generate.on_click(lambda _: self.run())
        rows = [
            [self.feature, self.how, self.value, self.keep_error],
            [self.new_tokens, self.temperature, self.seed, self.generate],
        ]
        bars = [w.HBox(row, layout=w.Layout(flex_flow="row wrap")) for row in rows]
        super().__init__([self.prompt, *bars, self.shown])
        self._propose()

    def turn(self, number: int) -> None:
        self.feature.value = number

    def _propose(self) -> None:
        """A value that does something: the feature's maximum to pin it at, 0 to silence it by a factor."""
        maximum = float(self.table.features["maximum"].iloc[self.feature.value])
        self.value.value = {"pin": round(maximum, 2), "scale": 2.0, "ablate": 0.0}[self.how.value]
        self.value.disabled = self.how.value == "ablate"

    def run(self) -> None:
        self.generate.disabled = True
        made = Clamp(self.feature.value, self.how.value, self.value.value)
        try:
            with said_in(self.shown, self.model):
                self.shown.value = clamped_html(
                    self.table,
                    self.model,
                    self.prompt.value,
                    made,
                    self.new_tokens.value,
                    self.temperature.value,
                    self.seed.value,
                    self.keep_error.value,
                )
        finally:
            self.generate.disabled = False
