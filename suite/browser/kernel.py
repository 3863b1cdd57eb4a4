"""The page in JupyterLab, and what it asks of the model in the kernel; the same answers as HTML
without a script.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from IPython.display import HTML
from jaxtyping import Float, Int

from sae_lib import progress
from sae_lib.errors import ModelError, UserError
from sae_lib.features import clamping, feature_table
from sae_lib.features.attribution import Block
from sae_lib.features.clamping import Clamp, ClampTarget, HeldoutPositions
from sae_lib.features.logit_graph import logit_graph, most_probable
from sae_lib.features.weights import direct_logits
from sae_lib.files import write_atomically
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.directions import random_directions
from sae_lib.text.tokenizer import token_ids
from suite import stages
from suite.browser import rating
from suite.browser.blocks import heldout, module, of_run
from suite.browser.page import TEMPLATE, static_html
from suite.runs import Run
from suite.table import FeatureTable, open_table

PER_TOKEN = 5  # features named for each token of a text
STRIP = 12  # features that are shown on every token of a text
DRAWS = 3  # random directions that a clamp is held against
IN_GRAPH = 8  # features named in an attribution graph
NEXT = 12  # tokens listed, those first whose probability changes most
FALLBACK = 3  # features shown where the widget cannot be
END = "\uffff"  # between the texts of two examples


class Model:
    """Language model, dictionary and tokeniser of a run, loaded when first needed: most readers
    only turn pages.

    `activations`, `clamp`, `context`, `why` and `graph` are the page's questions.
    """

    def __init__(self, run: Run, name: str = ""):
        self.run, self.name = run, name or run.settings.sae.recipe

    @cached_property
    def target(self) -> ClampTarget:
        """The hook of the language model, the dictionary and the tokeniser."""
        hook, tokens = stages.hook(self.run), self.run.get("tokens")
        return ClampTarget(hook, self.run.get("dictionary", self.name), tokens.tokenizer)

    @cached_property
    def rows(self) -> np.ndarray:
        return heldout(self.run)

    def logits(self, part: slice) -> Float[torch.Tensor, "n vocab"]:
        """What the directions of some features add to every token's logit."""
        return direct_logits(self.target.hook, self.target.dictionary.W_dec[part])

    def encoded(self, text: str) -> tuple[list[int], int]:
        """(token ids, how many were cut off because the model's context is full)."""
        ids = token_ids(self.target.tokenizer, text)
        room = self.target.hook.model.config.max_position_embeddings
        return ids[:room], max(0, len(ids) - room)

    @torch.no_grad()
    def feature_acts(self, ids: list[int]) -> Float[torch.Tensor, "position d_sae"]:
        """Activations of all features on every token of one text."""
        hook, dictionary = self.target.hook, self.target.dictionary
        if not ids:
            return torch.zeros(0, dictionary.d_sae)
        acts = hook.activations(torch.tensor([ids], device=hook.device))[0].float()
        return dictionary.encode(acts).cpu()

    def activations(self, text: str, feature: int) -> dict[str, Any]:
        """A feature on each token of a text, each token's strongest features with their
        activations, and the text's strongest features on every token.
        """
        ids, cut = self.encoded(text)
        acts = self.feature_acts(ids)
        top = acts.amax(0).topk(min(STRIP, acts.shape[1])).indices.tolist() if ids else []
        strip = [(n, acts[:, n].tolist()) for n in top if acts[:, n].any()]
        return {"cut": cut, "strip": strip} | _of_tokens(ids, acts, feature)

    def clamp(
        self,
        text: str,
        clamps: list[dict[str, Any]],
        keep_error: bool = True,
        new_tokens: int = 0,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> dict[str, Any]:
        """The next token before and after, KL beside that of random directions, and (for
        `new_tokens` > 0) two continuations of `prompt` tokens.

        Both continuations have what the first feature does on them when it is not clamped.
        """
        made = [Clamp(**clamp) for clamp in clamps]
        after = self.target.next_tokens(text, made, NEXT, keep_error)
        rows = after.table.head(NEXT)[["token_id", "before", "after"]]
        sides, prompt = [], 0
        if new_tokens:
            *sides, prompt = self.target.side_by_side(
                text, made, new_tokens, temperature, seed, keep_error
            )
        continued = []
        for ids in (side.tolist() for side in sides):
            values = self.feature_acts(ids)[:, made[0].feature].clamp_min(0)
            continued.append({"ids": ids, "values": values.tolist()})
        next_ = list(rows.itertuples(index=False, name=None))
        null = self.random_kl(text, made, keep_error, seed)
        kl = {"kl": after.kl, "null": null}
        return kl | {"next": next_, "sides": continued, "prompt": prompt}

    def random_kl(self, text: str, made: list[Clamp], keep_error: bool, seed: int) -> list[float]:
        """KL of the same changes along random directions of the same norms."""
        ids, dictionary, kl = self.target.encode(text).cpu().numpy(), self.target.dictionary, []
        last = HeldoutPositions(self.target.hook, ids, per_row=1)
        own = dictionary.W_dec[[clamp.feature for clamp in made]]
        for draw in range(DRAWS):
            unit = random_directions(dictionary.W_dec, len(made), seed + draw).W_dec
            random = unit * own.norm(dim=1, keepdim=True)
            how = {"keep_error": keep_error, "directions": random}
            kl.append(last.effect(dictionary, made, **how).kl)
        return kl

    def context(self, row: int, feature: int, ablate: bool) -> dict[str, Any]:
        """A row of held-out text, the features on it, and the change of the loss (nats) when one
        is ablated there.
        """
        ids: Int[torch.Tensor, " position"] = torch.from_numpy(self.rows[row].astype(np.int64))
        parts = (self.target.hook, self.target.dictionary, ids, feature)
        effects = clamping.ablation_effect(*parts).tolist() if ablate else []
        acts = self.feature_acts(ids.tolist())
        return {"effects": effects} | _of_tokens(ids.tolist(), acts, feature)

    @cached_property
    def block(self) -> Block:
        """The block that the features read. `ModelError` where they read no MLP's neurons."""
        dictionary = self.target.dictionary
        if not isinstance(dictionary, SparseAutoencoder):
            raise ModelError(
                "only features of an autoencoder can be split into what makes them fire"
            )
        return Block(self.target.hook, dictionary)

    def why(self, ids: list[int], feature: int, position: int) -> dict[str, Any]:
        """What makes a feature fire, or not, at a place: its pre-activation, what its token and
        position add there, and what every head brings from every token.
        """
        held = self.block.forward(np.array([ids]))
        split = self.block.split(held, *torch.tensor([[0], [position], [feature]]))
        sources = split.sources[0].sum(0).T[: position + 1].tolist()
        return {"total": split.total.item(), "own": split.own[0].tolist(), "sources": sources}

    def graph(self, ids: list[int], tokens: Sequence[int] = ()) -> dict[str, Any]:
        """What adds to the difference of the logits of two tokens after a text, the two likeliest
        unless others are given: the strongest features, each with what comes to it from each
        token, what tokens add past the MLP, and the rest.
        """
        prompt = np.array(ids)
        tokens = tokens or most_probable(self.block, prompt)
        graph = logit_graph(self.block, prompt, *tokens)
        through = graph.through_features
        first, rest = through.abs().argsort(descending=True).tensor_split([IN_GRAPH])
        parts = graph.features[first], through[first], graph.paths[first]
        return {
            "tokens": list(tokens),
            "total": graph.total,
            "features": list(zip(*(part.tolist() for part in parts), strict=True)),
            "direct": graph.direct.tolist(),
            "other": {"other features": through[rest].sum().item()} | graph.other,
        }


def _of_tokens(
    ids: list[int], acts: Float[torch.Tensor, "position d_sae"], feature: int
) -> dict[str, Any]:
    """A feature on each token, and each token's strongest features with their activations."""
    values, numbers = acts.topk(min(PER_TOKEN, acts.shape[1]), dim=1)
    pairs = zip(numbers.tolist(), values.tolist(), strict=True)
    strongest = [[(n, v) for n, v in zip(*row, strict=True) if v > 0] for row in pairs]
    return {"ids": ids, "values": acts[:, feature].clamp_min(0).tolist(), "strongest": strongest}


def widget(run: Run, name: str = "") -> "FeatureBrowser | HTML":
    """The browser of one autoencoder's features (the run's recipe by default), or of one of
    `features.BASELINES`.

    These are "neurons", "random" and "principal". In a headless run: the pages of a few features.
    """
    if progress.FILE in os.environ:
        return HTML(without_kernel(open_table(run, name)))
    return FeatureBrowser(run, name)


def without_kernel(table: FeatureTable) -> str:
    """What is shown instead of the widget where no kernel runs."""
    return static_html(table, table.features["density"].nlargest(FALLBACK).index)


class FeatureBrowser(anywidget.AnyWidget):
    """The page, which asks the kernel; where there is none (an export), the pages of a few
    features. `address` is what it shows, in both directions, and `selected` the feature.
    """

    address = traitlets.Unicode().tag(sync=True)

    def __init__(self, run: Run, name: str = ""):
        self._esm = f"{module()}\nexport default {{ render }};\n"
        super().__init__()
        rated = "" if name in feature_table.BASELINES else name
        self.model, self.blocks = Model(run, name), of_run(run, name, rated)
        self.table, self.blocks.logits = self.blocks.table, self.model.logits
        self.ratings = rating.ratings_file(run, rated)
        self.notes = self.ratings.with_name(f"notes-{name or run.settings.sae.recipe}.json")
        self.on_msg(self._answer)

    @property
    def selected(self) -> int | None:
        """The number of the feature that the page shows; set it to turn the page."""
        number = re.search(r"(?:^|&)feature=(\d+)", self.address)
        return int(number[1]) if number else None

    @selected.setter
    def selected(self, number: int) -> None:
        self.address = f"feature={number}"

    @cached_property
    def texts(self) -> list[str]:
        """Of each feature the texts of all its examples, in lower case."""
        names = self.table.vocabulary.bytes
        of_example = [
            b"".join(map(names.__getitem__, ids)).decode("utf-8", "replace").lower()
            for ids in self.table.examples["token_ids"]
        ]
        starts = self.table.starts
        return [END.join(of_example[a:b]) for a, b in zip(starts, starts[1:], strict=False)]

    def ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The answer to one of the page's questions."""
        if question == "ratings":
            return rating.load_ratings(self.ratings).drop(columns="time").to_dict("records")
        if question == "rate":
            return rating.save_rating(self.ratings, **arguments)
        if question == "notes":
            return json.loads(self.notes.read_text()) if self.notes.exists() else {}
        if question == "note":
            return write_atomically(self.notes, json.dumps(arguments["notes"]))
        if question == "texts":
            return [n for n, text in enumerate(self.texts) if arguments["wanted"] in text]
        if question not in ("activations", "clamp", "context", "why", "graph"):
            raise ValueError(f"{question!r} is no question of the page")
        return getattr(self.model, question)(**arguments)

    def _answer(self, _, message: dict[str, Any], __) -> None:
        answer, buffers = {"id": message["id"]}, []
        try:
            if message["question"] == "block":
                buffers = [self.blocks(**message["arguments"])]
            else:
                answer["answer"] = self.ask(message["question"], message["arguments"])
        except (UserError, OSError) as error:
            answer["error"] = str(error)
        except (
            Exception
        ) as error:  # else the page would wait for ever, and the log is not looked at
            answer["error"] = f"{type(error).__name__}: {error}"
        self.send(answer, buffers)

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return data | {"text/html": without_kernel(self.table)}, metadata


def own_text(run: Run, text: str, features: Iterable[int] = ()) -> HTML:
    """A text of one's own as HTML that needs no kernel: coloured by each of `features`, and the
    strongest per token.
    """
    table, model = open_table(run), Model(run)
    found = model.activations(text, 0)
    by_feature = {number: model.activations(text, number) for number in features}
    return HTML(TEMPLATE.boxed([TEMPLATE.own_text(table, by_feature, found)]))
