"""Files written whole or not at all, and what their records say."""

import math
import os
from pathlib import Path
from typing import Any

from sae_lib.errors import ArtefactError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    with open(scratch, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, path)


def check_same(where: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """`ArtefactError` naming the settings that differ between what is on disk and what is requested."""
    found, wanted = _flat(found), _flat(wanted)
    differ = [k for k in sorted(found | wanted) if found.get(k) != wanted.get(k)]
    if differ:
        shown = "; ".join(
            f"{k}: {found.get(k)!r} in the folder, {wanted.get(k)!r} now" for k in differ[:4]
        )
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise ArtefactError(
            f"{where} was made with other settings ({shown}{more}); choose another folder with --run, or delete this one"
        )


def plain(value: Any) -> Any:
    """numpy and torch scalars and arrays as plain Python with seven significant digits, for JSON; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {
        k: v
        for key, value in data.items()
        for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }
