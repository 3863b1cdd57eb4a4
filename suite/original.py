"""The figures of the original that the report and the notebooks quote, each with its source."""

import json
from pathlib import Path

ORIGINAL = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
FACTS = {name: fact["value"] for name, fact in ORIGINAL["facts"].items()}
