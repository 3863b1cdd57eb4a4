"""One folder per run: artefacts written whole or not at all, each with a record of the settings it was made from."""

import ctypes
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sae_lib import settings as settings_module
from sae_lib.errors import ArtefactError, SettingsError
from sae_lib.settings import Settings

RECORD = "made_from.json"


@dataclass(frozen=True)
class Run:
    """Settings and the folder that everything made from them goes into."""

    settings: Settings
    folder: Path
    parent: "Run | None" = field(default=None, compare=False)

    @property
    def tokens_folder(self) -> Path:
        """Where the tokens lie; a child with its parent's corpus and tokeniser shares them."""
        same = self.parent and (self.parent.settings.corpus, self.parent.settings.tokenizer) == (
            self.settings.corpus,
            self.settings.tokenizer,
        )
        return (self.parent if same else self).folder / "tokens"

    @property
    def results_folder(self) -> Path:
        return (self.parent or self).folder / "results"

    def is_made(self, folder: Path, made_from: dict[str, Any]) -> bool:
        """`is_made`, or taken over (hard links) from a run folder beside this one that holds the same artefact."""
        root = (self.parent or self).folder
        if is_made(folder, made_from):
            return True
        for other in (
            sorted(root.parent.glob("*/settings.yaml")) if folder.is_relative_to(root) else ()
        ):
            candidate = other.parent / folder.relative_to(root)
            with suppress(ArtefactError):
                if candidate != folder and is_made(candidate, made_from):
                    with writing(folder, made_from) as scratch:
                        shutil.copytree(candidate, scratch, copy_function=_link, dirs_exist_ok=True)
                    return True
        return False

    def save_results(
        self, name: str, values: dict[str, Any], made_from: dict[str, Any] | None = None
    ) -> Path:
        """Write `results/<name>.json`: the only place the report takes numbers from."""
        path = self.results_folder / f"{name}.json"
        mark = {"made_from": _digest(made_from)} if made_from else {}
        write_atomically(
            path,
            json.dumps(plain(values | mark), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        )
        return path

    def saved_results(self, name: str, made_from: dict[str, Any]) -> dict[str, Any] | None:
        """The results of that name if they come from these settings, else None: they have to be made (again)."""
        path = self.results_folder / f"{name}.json"
        if not path.exists():
            return None
        values = self.load_results(name)
        return values if values.pop("made_from", None) == _digest(made_from) else None

    def load_results(self, name: str) -> dict[str, Any]:
        path = self.results_folder / f"{name}.json"
        if not path.exists():
            raise ArtefactError(f"{path} is missing: run the notebook or stage that makes it first")
        try:
            return json.loads(path.read_text())
        except ValueError:
            raise ArtefactError(
                f"{path} is damaged (not valid JSON); delete it and run again"
            ) from None

    def figure(self, fig, name: str, width: int = 900, height: int = 450):
        """Save a plotly figure to `figures/<name>` and return it for display."""
        from sae_lib import figures

        figures.save(fig, (self.parent or self).folder / "figures", name, width, height)
        return fig

    def last_mlp(self) -> "Run":
        """The run of notebook 05: the same corpus, another model and hook, in a folder inside this one."""
        s = self.settings
        corpus = s.corpus.model_copy(
            update={"train_tokens": s.last_mlp.train_tokens or s.corpus.train_tokens}
        )
        child = s.model_copy(
            update={
                "lm": s.last_mlp.lm,
                "sae": s.last_mlp.sae,
                "tokenizer": s.last_mlp.tokenizer or s.tokenizer,
                "corpus": corpus,
            }
        )
        return Run(child, self.folder / "last_mlp", parent=self)


def open_run(
    profile: str = "laptop", run_dir: str | Path = "", overrides: list[str] | tuple[str, ...] = ()
) -> Run:
    """The run of a profile with overrides. Without `run_dir`: `runs/<profile>`, with overrides `runs/<profile>-<hash of them>`."""
    settings = settings_module.load(profile, overrides)
    if run_dir:
        folder = Path(run_dir)
    else:
        changed = settings != settings_module.load(profile)
        digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]
        folder = Path("runs") / (f"{profile}-{digest}" if changed else profile)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--run {folder} is a file; expected a folder (it is made if missing)")
    _check(settings, folder)
    record = folder / "settings.yaml"
    wanted = settings.model_dump(mode="json")
    if record.exists():
        check_same(folder, read_yaml(record), wanted)
    else:
        write_atomically(record, yaml.safe_dump(wanted, sort_keys=False))
    return Run(settings, folder)


def _check(settings: Settings, folder: Path) -> None:
    """What settings alone cannot know: device, recipes and hook names, said before anything is made or written."""
    from sae_lib.activations import find_hook
    from sae_lib.device import device_of
    from sae_lib.recipes import variants

    device_of(Run(settings, folder))
    for prefix, part in (("", settings), ("last_mlp.", Run(settings, folder).last_mlp().settings)):
        try:
            variants(part)
        except SettingsError as error:
            raise SettingsError(f"{prefix}{error}") from None
        if part.lm.source == "train":
            find_hook(part.sae.hook_name, part.lm.architecture, part.lm.n_layer)


def is_made(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether the artefact is there, whole, and from these settings; `ArtefactError` where it is damaged or from others."""
    if not folder.exists():
        return False
    record = folder / RECORD
    try:
        found = json.loads(record.read_text())
        found["settings"], found["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(
            f"{folder} has no readable {RECORD}, so no run finished it; delete the folder and run again"
        ) from None
    check_same(folder, found["settings"], json.loads(json.dumps(made_from)))
    for name, (size, digest) in found["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            has = f"{path.stat().st_size} bytes" if path.exists() else "nothing"
            raise ArtefactError(
                f"{path} is damaged: {has} where {size} bytes were written; delete {folder} and run again"
            )
        if _sha256(path, size, path.stat().st_mtime_ns) != digest:
            raise ArtefactError(
                f"{path} is damaged: its content changed since it was written; delete {folder} and run again"
            )
    return True


@contextmanager
def writing(folder: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """A scratch folder that becomes `folder`, with its record, when the block ends without an error."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    files = sorted(p for p in scratch.rglob("*") if p.is_file() and p.name != RECORD)
    digests = {
        str(p.relative_to(scratch)): (
            p.stat().st_size,
            _sha256(p, p.stat().st_size, p.stat().st_mtime_ns),
        )
        for p in files
    }
    write_atomically(
        scratch / RECORD, json.dumps({"settings": made_from, "files": digests}, indent=1)
    )
    os.replace(scratch, folder)


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


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
        assert isinstance(data, dict)
        return data
    except (yaml.YAMLError, UnicodeDecodeError, AssertionError):
        raise ArtefactError(
            f"{path} is not readable as settings; delete the run folder or choose another with --run"
        ) from None


def keep_freed_memory() -> None:
    """Tell glibc to keep what a training step frees: giving it back and faulting it in again costs a CPU step a tenth of its time."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: all blocks come from the heap, those above 32 MiB too
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: which is not trimmed


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime: int) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {
        k: v
        for key, value in data.items()
        for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _digest(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(made_from), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """numpy and torch scalars and arrays as plain Python with seven significant digits, for JSON; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else value
