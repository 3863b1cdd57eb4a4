"""What the text of a run is, in numbers: documents, kinds, lengths, most frequent tokens; and the
manifest of what was read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template

from sae_lib.files import write_atomically
from sae_lib.settings import CorpusSettings
from sae_lib.text.installation import KINDS, PROSE
from sae_lib.text.tokens import Tokens

QUANTILES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
ORIGIN = "(?P<distribution>.*) (?P<version>[^ ]+): (?P<path>.*)"
FREQUENT = 30
KIND_NAMES = {kind: of_kind.get("name", kind) for kind, of_kind in KINDS.items()}
CHUNK = 1 << 24
MISSING = {
    "monology/pile-uncopyrighted": "The Pile without Books3, BookCorpus2, OpenSubtitles, "
    "YTSubtitles and OWT2"
}
SENTENCE = Template(Path(__file__).with_suffix(".j2").read_text("utf-8"))


def write(corpus: CorpusSettings, tokens: Tokens) -> None:
    """Write `summary.json`, and for the installation `manifest.parquet`, beside the tokens."""
    manifest, (source, _, name) = [], corpus.source.partition(":")
    values: dict[str, Any] = {"source": source, "vocabulary": len(tokens.tokenizer)}
    for split, table in tokens.table.items():
        values[split] = _statistics(table, np.asarray(getattr(tokens, split)), tokens.tokenizer)
        if source == "installation":
            parts = table["origin"].str.extract(ORIGIN)
            sizes = table["tokens"].groupby(parts["distribution"]).sum()
            values[split]["distributions"] = sizes.sort_values(ascending=False).to_dict()
            manifest.append(table.join(parts))
    known = {"kind_names": KIND_NAMES, "prose_kinds": PROSE, "missing": MISSING, "name": name}
    values["what"] = SENTENCE.render(values, revision=corpus.revision, **known)
    if manifest:
        columns = ["distribution", "version", "path", "kind", "split", "bytes", "sha256"]
        rows = pd.concat(manifest)[columns].sort_values(["distribution", "path"])
        rows.to_parquet(tokens.folder / "manifest.parquet", compression="zstd", index=False)
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomically(tokens.folder / "summary.json", text + "\n")


def _statistics(table: pd.DataFrame, ids: np.ndarray, tokenizer) -> dict[str, Any]:
    kinds = table.groupby("kind").agg(documents=("tokens", "size"), tokens=("tokens", "sum"))
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for start in range(0, len(ids), CHUNK):  # bincount makes 64-bit copies of what it counts
        counts += np.bincount(ids[start : start + CHUNK], minlength=len(tokenizer))
    used = pd.Series(counts)[counts > 0]
    frequent = used.nlargest(FREQUENT).rename_axis("id").reset_index(name="count")
    frequent["token"] = [tokenizer.decode([i]) for i in frequent["id"]]
    frequent["share"] = frequent["count"] / len(ids)
    return {
        "documents": len(table),
        "tokens": len(ids),
        "characters": int(table["characters"].sum()),
        "kinds": kinds.sort_values("tokens", ascending=False).to_dict("index"),
        "length_quantiles": table["tokens"].quantile(QUANTILES).rename(index=str).to_dict(),
        "vocabulary_used": len(used),
        "most_frequent": frequent.to_dict("records"),
    }


def read(tokens: Tokens) -> dict[str, Any]:
    """Statistics of the text for the report."""
    return json.loads((tokens.folder / "summary.json").read_text())
