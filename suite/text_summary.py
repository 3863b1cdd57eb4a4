"""What the text of a run is, in numbers: documents, kinds, lengths, most frequent tokens; and the
manifest of what was read.
"""

import json
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.files import write_atomically
from sae_lib.settings import CorpusSettings
from sae_lib.text.installation import KINDS, PROSE
from sae_lib.text.tokens import Tokens

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
FREQUENT = 30
CHUNK = 1 << 24
MISSING = {
    "monology/pile-uncopyrighted": "The Pile without Books3, BookCorpus2, OpenSubtitles, "
    "YTSubtitles and OWT2"
}


def write(corpus: CorpusSettings, tokens: Tokens) -> None:
    """Write `summary.json`, and for the installation `manifest.parquet`, beside the tokens."""
    tables = {split: table.copy() for split, table in tokens.table.items()}
    source, installed = corpus.source.partition(":")[0], corpus.source == "installation"
    values: dict[str, Any] = {"source": source, "vocabulary": len(tokens.tokenizer)}
    for split, table in tables.items():
        values[split] = _statistics(table, np.asarray(getattr(tokens, split)), tokens.tokenizer)
        if installed:
            parts = table["origin"].str.extract(r"^(.*) ([^ ]+): (.*)$")
            table[["distribution", "version", "path"]] = parts
            sizes = table.groupby("distribution")["tokens"].sum().sort_values(ascending=False)
            values[split]["distributions"] = sizes.to_dict()
    values["what"] = _sentence(corpus, values)
    if installed:
        columns = ["distribution", "version", "path", "kind", "split", "bytes", "sha256"]
        manifest = pd.concat(tables.values())[columns].sort_values(["distribution", "path"])
        manifest.to_parquet(tokens.folder / "manifest.parquet", compression="zstd", index=False)
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomically(tokens.folder / "summary.json", text + "\n")


def _statistics(table: pd.DataFrame, ids: np.ndarray, tokenizer) -> dict[str, Any]:
    kinds = table.groupby("kind").agg(documents=("tokens", "size"), tokens=("tokens", "sum"))
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for start in range(0, len(ids), CHUNK):  # bincount makes 64-bit copies of what it counts
        counts += np.bincount(ids[start : start + CHUNK], minlength=len(tokenizer))
    frequent = [i for i in np.argsort(-counts, kind="stable")[:FREQUENT].tolist() if counts[i]]
    return {
        "documents": len(table),
        "tokens": len(ids),
        "characters": int(table["characters"].sum()),
        "kinds": kinds.sort_values("tokens", ascending=False).to_dict("index"),
        "length_quantiles": {str(q): table["tokens"].quantile(q) for q in QUANTILES},
        "vocabulary_used": int((counts > 0).sum()),
        "most_frequent": [
            {
                "id": i,
                "token": tokenizer.decode([i]),
                "count": int(counts[i]),
                "share": counts[i] / len(ids),
            }
            for i in frequent
        ],
    }


def _sentence(corpus: CorpusSettings, values: dict[str, Any]) -> str:
    train, (source, _, name) = values["train"], corpus.source.partition(":")
    kinds = [
        f"{KINDS.get(kind, {}).get('name', kind)} {100 * v['tokens'] / train['tokens']:.0f} %"
        for kind, v in train["kinds"].items()
    ]
    others = " and others" if len(kinds) > 4 else ""
    mix = f"training tokens by kind: {', '.join(kinds[:4])}{others}."
    if source == "installation":
        used, held = (len(values[split]["distributions"]) for split in ("train", "heldout"))
        prose = sum(v["tokens"] for kind, v in train["kinds"].items() if kind in PROSE)
        return (
            f"Text of this Python installation: the standard library and {used - 1} installed "
            f"distributions, {held} further ones held out. {100 * prose / train['tokens']:.0f} % "
            f"of its tokens are prose about software, the others code; {mix}"
        )
    if source == "hub":
        revision = f", revision {corpus.revision}" if corpus.revision else ""
        return f"{MISSING.get(name, name)}, streamed from the Hugging Face hub{revision}; {mix}"
    return f"Text of the user's files; {mix}"


def read(tokens: Tokens) -> dict[str, Any]:
    """Statistics of the text for the report."""
    return json.loads((tokens.folder / "summary.json").read_text())
