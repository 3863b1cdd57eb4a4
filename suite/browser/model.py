"""What the browser's panels ask of the model behind a feature table."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import ipywidgets as w
import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lib.errors import UserError
from sae_lib.model.activations import HookPoint
from sae_lib.sae.dictionaries import Dictionary
from sae_lib.text.tokenizer import token_ids
from suite import stages
from suite.runs import Run


class Model:
    """Language model, dictionary and tokeniser of a run, loaded when they are first needed: most readers only turn pages."""

    def __init__(self, run: Run, name: str = ""):
        self.run, self.name = run, name or run.settings.sae.recipe

    @cached_property
    def hook(self) -> HookPoint:
        return stages.hook(self.run, self.name)

    @property
    def opened(self) -> bool:
        return "hook" in vars(self)

    @cached_property
    def dictionary(self) -> Dictionary:
        return self.run.get("dictionary", self.name)

    @cached_property
    def tokenizer(self):
        return self.run.get("tokens").tokenizer

    def encoded(self, text: str) -> tuple[list[int], int]:
        """(token ids, how many were cut off because the model's context is full)."""
        ids = token_ids(self.tokenizer, text)
        room = self.hook.model.config.max_position_embeddings
        return ids[:room], max(0, len(ids) - room)

    def row(self, number: int) -> Int[torch.Tensor, " position"]:
        """The token ids of a row of the text that the table was made from."""
        rows = stages.heldout_rows(self.run, self.run.settings.evaluation.tokens)
        return torch.from_numpy(rows[number].astype(np.int64))

    @torch.no_grad()
    def feature_acts(self, ids: list[int]) -> Float[torch.Tensor, "position d_sae"]:
        """Activations of all features on every token of one text: [position, d_sae]."""
        acts = self.hook.activations(torch.tensor([ids], device=self.hook.device))[0].float()
        return self.dictionary.encode(acts).cpu()


def note(text: str) -> str:
    """A line of small print between controls; `text` is ours, and markup."""
    return f'<div class="sae-browser sae-note">{text}</div>'


@contextmanager
def said_in(output: w.HTML, model: Model | None = None) -> Iterator[None]:
    """What the user can fix is said in the panel: an exception in a widget's callback would end in a log that nobody opens."""
    if model and not model.opened:
        output.value = note("Opening the model …")
    try:
        yield
    except (UserError, OSError) as error:  # a rating that cannot be written must not be lost unseen
        output.value = f'<p class="sae-browser sae-error">{html.escape(str(error))}</p>'
