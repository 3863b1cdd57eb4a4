"""Blind ratings: how clearly does a page mean one thing, 1 to 5, features and neurons mixed.

The page (app/rate.js) draws them, shows them and sums them up; they are kept here.
"""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from sae_lib.errors import SettingsError
from sae_lib.files import append_line
from suite.original import FACTS
from suite.runs import Run

COLUMNS = ["time", "rater", "seed", "kind", "unit", "rating"]
ORIGINAL = {kind: FACTS[f"{kind}s_by_hand"] for kind in ("feature", "neuron")}  # its means


def ratings_file(run: Run, name: str = "") -> Path:
    return run.folder / "ratings" / f"{name or run.settings.sae.recipe}.csv"


def save_rating(path: Path, rater: str, seed: int, kind: str, unit: int, rating: int) -> None:
    """Append one rating."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    row = [when, rater_name(rater), seed, kind, unit, rating]
    text = pd.DataFrame([row], columns=COLUMNS).to_csv(index=False, header=not path.exists())
    append_line(path, text.rstrip("\n"))


def load_ratings(path: Path) -> pd.DataFrame:
    """The last rating of each unit by each rater and seed; lines that are not whole are left
    out.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()  # each is read on its own: a torn one must not swallow the next
    rows = [row for line in lines for row in csv.reader([line]) if _whole(row)]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"seed": int, "unit": int, "rating": int})
    return table.drop_duplicates(["rater", "seed", "kind", "unit"], keep="last", ignore_index=True)


def _whole(row: list[str]) -> bool:
    numbers = [row[2], *row[4:]] if len(row) == len(COLUMNS) else [""]
    return all(n.isdecimal() for n in numbers) and 1 <= int(row[5]) <= 5


def rater_name(text: str) -> str:
    """A name as it goes into the file; `SettingsError` for an empty or unprintable one."""
    name = text.strip()
    if not name or not name.isprintable() or len(name) > 60 or name[0] in "=+-@":
        raise SettingsError(
            f"rater {name!r}: expected a name of 1 to 60 printable characters "
            "that a spreadsheet does not take for a formula"
        )
    return name
