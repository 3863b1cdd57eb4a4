"""A blind test of names: one reader names units from their strongest examples, others match the
names to examples that the first has not seen. Features and neurons are mixed.

The primary measure is the share of named features that are matched from examples of the whole
range, one of each tenth; strongest examples flatter, weak ones alone are the hardest.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sae_lib.errors import UserError
from sae_lib.files import write_atomically
from sae_lib.user_input import parse_yaml
from suite.close_reading import draw, shortened
from suite.markup import plain, span
from suite.runs import Run
from suite.table import FeatureTable, open_table

UNITS = 20  # of each kind
KINDS = {"features": "", "neurons": "neurons"}  # and the names of their tables
SEEN = 10  # strongest examples that the first reader sees; as many are kept for the others
NONE = "none"
DRAWS = 100_000  # random matchings, for what chance gives
SHEETS = {
    "range": "one of each tenth of its range, from the top",
    "strong": "its strongest, unseen so far",
    "weak": "up to two of each of its five lowest tenths, from the top of these",
}
ASKED = """# {title}

{n} units of a language model follow, features and neurons mixed. The marked token carries the
activation; `·` is a blank, `⏎` a line end.
{task}

"""
NAME = f"""Give each a name of at most six words that would let somebody else recognise it, or
`{NONE}`. Write `names.yaml` beside this file, a list in the order of the units, a line for each:
`- the name`."""
MATCH = """At the end are {n} names in another order, by somebody who saw other examples of the same
units. Every name belongs to one unit. Write `{file}.yaml` beside this file, a list in the order of
the units, a line for each with the number of its name: `- 17`. Examples shown: {shown}."""


def proceed(run: Run, folder: Path, by: str, seed: int) -> str:
    """The next step of the test in `folder`: the sheet to name from, the sheets to match, or
    `results/study_blind.json`. Returns what was written and what has to be done.

    `UserError` where an answer is missing or is none of those asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    units, rng = _units(run, seed), np.random.default_rng((seed, 1))
    if not (folder / "names.yaml").exists():
        return _sheet(folder / "names.md", "What do these units mean?", NAME, units, _strong(0))
    names = _answers(folder / "names.yaml", len(units))
    named = {i: str(name) for i, name in enumerate(names, 1) if str(name).lower().strip() != NONE}
    shown = [units[i - 1] for i in rng.permutation(sorted(named))]
    order = rng.permutation(sorted(named)).tolist()  # of the names
    listed = "".join(f"{k}. {plain(named[i])}\n" for k, i in enumerate(order, 1))
    matched, said = {}, []
    for sheet, what in SHEETS.items():
        if not (folder / f"match_{sheet}.yaml").exists():
            task = MATCH.format(n=len(named), file=f"match_{sheet}", shown=what)
            examples = {"range": _range(10, 1), "strong": _strong(1), "weak": _range(5, 2)}[sheet]
            path = folder / f"match_{sheet}.md"
            said.append(_sheet(path, "Which name is whose?", task, shown, examples, listed))
            continue
        answers = _answers(folder / f"match_{sheet}.yaml", len(shown))
        matched[sheet] = [
            (u["kind"], order[name - 1] == u["item"])
            for u, name in zip(shown, answers, strict=True)
        ]
    if said:
        return "\n".join(said)
    found = {"by": by, "seed": seed, "units": UNITS, "kinds": _score(units, matched)}
    run.save_results("study_blind", found)
    return f"study: {run.results_folder / 'study_blind.json'}"


def _units(run: Run, seed: int) -> list[dict[str, Any]]:
    """The units in the order of the first sheet."""
    tables = {kind: open_table(run, name) for kind, name in KINDS.items()}
    drawn = [(kind, n) for kind, table in tables.items() for n in draw(table, UNITS, seed)]
    mixed = np.random.default_rng(seed).permutation(len(drawn))
    units = [drawn[i] for i in mixed]
    return [
        {"item": i, "kind": kind, "number": n, "table": tables[kind]}
        for i, (kind, n) in enumerate(units, 1)
    ]


def _strong(odd: int):
    """Every other one of the strongest examples."""

    def shown(table: FeatureTable, number: int) -> list[dict[str, Any]]:
        rows = table.strongest(number)[odd : 2 * SEEN : 2]
        return [shortened(table, e) for e in rows.itertuples()]

    return shown


def _range(tenths: int, of_each: int):
    """Examples from so many of the lowest tenths of the range."""

    def shown(table: FeatureTable, number: int) -> list[dict[str, Any]]:
        rows = table.sampled(number)
        rows = rows[rows["tenth"] < tenths].groupby("tenth").head(of_each)
        return [shortened(table, e) for e in rows[::-1].itertuples()]

    return shown


def _sheet(path: Path, title: str, task: str, units: list, examples, names: str = "") -> str:
    parts = [ASKED.format(title=title, n=len(units), task=task)]
    for k, unit in enumerate(units, 1):
        parts.append(f"## {k}\n\n")
        for e in examples(unit["table"], unit["number"]):
            parts.append(f"- {span(e['before'])}**{span(e['token'])}**{span(e['after'])}\n")
        parts.append("\n")
    if names:
        parts.append(f"## The names\n\n{names}")
    write_atomically(path, "".join(parts))
    return f"written: {path}; answer it as its first lines say, and give the same command again"


def _answers(path: Path, n: int) -> list[Any]:
    """A value for each of `n` units."""
    try:
        answers = parse_yaml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    names = path.stem == "names"
    complete = isinstance(answers, list) and len(answers) == n
    if not complete or not (names or all(type(of) is int and 1 <= of <= n for of in answers)):
        what = "names" if names else f"numbers of names, from 1 to {n}"
        raise UserError(f"{path} is no list of {n} {what}, one for each unit in their order")
    return answers


def _score(units: list, matched: dict[str, list[tuple[str, bool]]]) -> dict[str, Any]:
    """By kind: how many were named and, by sheet, how many matched, what chance gives, and the
    probability that a random matching has as many.
    """
    found, rng = {}, np.random.default_rng(0)
    n = len(next(iter(matched.values())))
    by_chance = rng.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1) == np.arange(n)
    for kind in KINDS:
        found[kind] = {"drawn": sum(u["kind"] == kind for u in units)}
        for sheet, answers in matched.items():
            of_kind = np.array([k == kind for k, _ in answers])
            right = sum(ok for k, ok in answers if k == kind)
            hits = by_chance[:, of_kind].sum(axis=1)
            found[kind] |= {"named": int(of_kind.sum())}
            found[kind][sheet] = {
                "right": right,
                "expected": float(hits.mean()),
                "p": float((hits >= right).mean()),
            }
    return found
