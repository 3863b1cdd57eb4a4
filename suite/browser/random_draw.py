"""A random draw of features for the report and for naming by eye: plain data, and its Markdown."""

from typing import Any

import numpy as np

from sae_lib.features.evaluation import ALIVE
from sae_lib.text.display import plain
from sae_lib.text.markup import span
from suite.browser.page import decimal, percent, signed
from suite.browser.table import FeatureTable, open_table
from suite.runs import Run

EXAMPLES, BEFORE, AFTER, LOGITS = 5, 12, 6, 6


def gallery(run: Run, n: int = 5, seed: int = 0, name: str = "") -> list[dict[str, Any]]:
    """`n` features drawn at random among those with at least `evaluation.ALIVE` activations on the evaluation text; fewer where there are fewer."""
    return draw(open_table(run, name), n, seed)


def draw(table: FeatureTable, n: int, seed: int) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed).permutation(table.alive(ALIVE))[:n]
    return [entry(table, number) for number in drawn.tolist()]


def entry(table: FeatureTable, number: int) -> dict[str, Any]:
    """One feature as plain data, for `results/*.json`; all texts are made visible, none is escaped."""
    page = table.page(number, EXAMPLES, 0)
    return {
        "feature": page["number"],
        "density": page["density"],
        "n_active": page["n_active"],
        "maximum": page["maximum"],
        "top_tokens": page["strongest_on"][:LOGITS],
        "n_examples": page["n_examples"],
        "raised": page["raised"][:LOGITS],
        "lowered": page["lowered"][:LOGITS],
        "examples": [shortened(e) for e in page["examples"]],
    }


def markdown(entry: dict[str, Any]) -> str:
    """A gallery entry as Markdown. Everything from the corpus stands in code spans, where neither Markdown nor HTML means anything."""
    tokens = ", ".join(f"{span(t['token'])} {t['count']}" for t in entry["top_tokens"])
    raised = ", ".join(f"{span(r['token'])} {signed(r['value'])}" for r in entry["raised"])
    lines = [
        f"**Feature {entry['feature']}**: density {percent(entry['density'])} ({decimal(entry['n_active'])} activations), maximum {decimal(entry['maximum'])}",
        "",
        f"Strongest on {tokens} of the top {entry['n_examples']}; raises {raised}",
        "",
    ]
    for e in entry["examples"]:
        lines.append(
            f"- {decimal(e['activation'])}: {span(e['before'])}**{span(e['token'])}**{span(e['after'])}"
        )
    return "\n".join(lines) + "\n"


def shortened(example: dict[str, Any]) -> dict[str, Any]:
    tokens = example["tokens"]
    focus = next(i for i, t in enumerate(tokens) if t["strongest"])
    before, after = tokens[max(0, focus - BEFORE) : focus], tokens[focus + 1 : focus + 1 + AFTER]
    return {
        "before": _joined(before),
        "token": tokens[focus]["name"],
        "after": _joined(after),
        "activation": example["activation"],
    }


def _joined(tokens: list[dict[str, Any]]) -> str:
    """Neighbouring tokens as one text: what they spell together is a character again."""
    data = b"".join(t["text"].encode("utf-8", "surrogateescape") for t in tokens)
    return plain(data.decode("utf-8", "surrogateescape"))
