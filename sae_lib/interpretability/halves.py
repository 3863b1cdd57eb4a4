"""Held-out text in two halves by document: rules are learned from one and scored on the other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from sae_lib.errors import CorpusError
from sae_lib.interpretability.rule_text import RuleWriter
from sae_lib.interpretability.rules import Encoding, Text
from sae_lib.interpretability.token_attributes import raw_values
from sae_lib.runs import Run
from sae_lib.tokens import open_tokens
from sae_lib.visible import Vocabulary

Array = np.ndarray


@dataclass(frozen=True)
class Halves:
    """The learning half and the scoring half, in this order: rows of token ids [row, position], and their tokens for rules."""

    rows: tuple[Array, Array]
    texts: tuple[Text, Text]
    documents: tuple[int, int]
    writer: RuleWriter


def half_of_documents(
    lengths: Int[Array, " document"], rng: np.random.Generator
) -> Int[Array, " document"]:
    """0 or 1 for each document: in random order, each goes to the half that has fewer tokens."""
    half, size = np.zeros(len(lengths), dtype=np.int64), [0, 0]
    for document in rng.permutation(len(lengths)):
        half[document] = int(size[1] < size[0])
        size[half[document]] += lengths[document]
    return half


def rows_of_half(half: Int[Array, " n"], context: int, which: int) -> Bool[Array, " row"]:
    """Which rows of `context` tokens lie in one half with every token: the model reads across documents, so a mixed row belongs to neither."""
    return (half[: len(half) // context * context].reshape(-1, context) == which).all(1)


def split(run: Run) -> Halves:
    """The run's held-out text in two halves, of each at most `interpretability.tokens` in rows drawn at random; `CorpusError` where a half has none."""
    s, tokens, context = run.settings.interpretability, open_tokens(run), run.settings.lm.context
    rng = np.random.default_rng((run.settings.seed if s.seed is None else s.seed, 1))
    table, vocabulary = tokens.table["heldout"], Vocabulary(tokens.tokenizer)
    lengths, firsts = table["tokens"].to_numpy(), table["first_token"].to_numpy()
    document_half = half_of_documents(lengths, rng)
    half, rows = np.repeat(document_half, lengths), tokens.rows("heldout", context)
    drawn = []
    for which in (0, 1):
        found = np.flatnonzero(rows_of_half(half, context, which))
        if len(found) == 0:
            raise CorpusError(
                f"interpretability: the held-out text has {len(lengths)} document(s), too few for two halves with at least a row of "
                f"lm.context={context} each; give more text (corpus.heldout_tokens)"
            )
        drawn.append(
            np.sort(rng.choice(found, min(len(found), max(1, s.tokens // context)), replace=False))
        )
    raw = raw_values(
        np.asarray(tokens.heldout, dtype=np.int64),
        firsts,
        context,
        vocabulary,
        set(tokens.tokenizer.all_special_ids),
    )
    raw = [raw[(chosen[:, None] * context + np.arange(context)).ravel()] for chosen in drawn]
    encoding = Encoding.of(raw[0])
    texts = tuple(Text(encoding.encode(part), encoding) for part in raw)
    return Halves(
        tuple(rows[chosen] for chosen in drawn),
        texts,
        (int((document_half == 0).sum()), int((document_half == 1).sum())),
        RuleWriter(encoding, vocabulary),
    )
