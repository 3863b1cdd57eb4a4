"""Tables as a reader sees them: plain names for columns and autoencoders, three significant
digits.
"""

import re
from collections.abc import Sequence
from numbers import Real

import pandas as pd

from sae_lib.formats import NONE, count, interval, number, percent, short

SHARES = {
    "recovered_zero": "loss recovered (zero ablation)",
    "recovered_mean": "loss recovered (mean ablation)",
    "recovered_mean_interval": "95 % interval",
    "behind": "behind the features by",
    "dead_share": "dead",
    "density": "density",
    "density_median": "median density",
    "least": "least of the seeds",
    "most": "most of the seeds",
    "called_dead": "called dead by the original's test",
    "wrongly": "of those, fire elsewhere",
    "wrongly_expected": "… as their densities predict",
    "information": "information explained",
    "balanced_accuracy": "balanced accuracy",
    "explained": "explained",
    "active_share": "share of active neurons",
    "share": "share",
    "positive": "share above zero",
}
NAMES = SHARES | {
    "l0_mean": "L0",
    "l0_median": "L0, median",
    "fvu": "FVU",
    "mse": "squared error",
    "kl": "KL, nats",
    "auroc": "AUROC",
    "d_sae": "features",
    "lambda": "λ",
    "lr": "learning rate",
    "mmcs": "MMCS",
    "mmcs_null": "MMCS, null",
    "mmcs_data": "MMCS, data",
    "matched_data": "matched, data",
    "n_prompts": "prompts",
    "length_median": "length, median",
    "length_max": "length, most",
    "vocabulary_used": "tokens of the vocabulary used",
    "prompt_tokens": "tokens of the prompt",
    "token_id": "token's number",
    "strongest_neuron": "strongest neuron",
}
NO_BREAK = "\u00a0"  # at which no line ends
IDS = ("feature", "neuron", "unit", "token_id", "strongest_neuron", "seed")  # no quantities
SET = ("lambda", "k", "lr")  # as they were chosen; a recipe may lack one
VARIANTS = {r"-no_resampling$": ", no resampling", r"-d_sae_(\d+)$": r", \1 features"}


def variant(name: str) -> str:
    """The name of one of a run's autoencoders as text: `bricken_2023, 512 features`."""
    for pattern, plain in VARIANTS.items():
        name = re.sub(pattern, plain, name)
    return name


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table in words: every cell as text, and the first column at the head of the rows where
    they are only numbered. Columns without any value are left out.
    """
    if isinstance(table.index, pd.RangeIndex) and not table.index.name:
        table = table.set_index(table.columns[0])
    head = table.index.name
    shown = {c: [cell(c, value) for value in table[c]] for c in table.columns}
    rows = [cell(head, value) for value in table.index]
    found = pd.DataFrame({c: cells for c, cells in shown.items() if {*cells} != {NONE}}, rows)
    return found.rename(columns=NAMES).rename_axis(columns=NAMES.get(head, head))


def cell(column: object, value: object) -> str:
    """One value of a column as text."""
    if isinstance(value, str):
        return variant(value)
    if isinstance(value, Sequence):
        return interval(*value, percent if column in SHARES else number)
    if isinstance(value, bool) or not isinstance(value, Real):
        return {True: "yes", False: "no", None: NONE}.get(value, str(value))
    if column in IDS:
        return str(value)
    if pd.isna(value) or (column in SET and value == 0):
        return NONE
    if column in SHARES:
        return percent(float(value)).replace(" ", NO_BREAK)
    if float(value).is_integer():
        return count(float(value))
    return short(float(value), 3) if column in SET else number(float(value))
