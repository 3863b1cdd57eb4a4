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

from sae_lib import locks, plain_yaml
from sae_lib import settings as settings_module
from sae_lib.errors import ArtefactError, SettingsError, in_plain_words
from sae_lib.settings import Settings

RECORD = "made_from.json"
SETTINGS = "settings.yaml"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """Settings and the folder that everything made from them goes into."""

    settings: Settings
    folder: Path
    parent: "Run | None" = field(default=None, compare=False)
    reading: bool = field(default=False, compare=False)  # nothing is trained for it

    @property
    def root(self) -> Path:
        """The folder that has the settings and the lock: of a child, its parent's."""
        return (self.parent or self).folder

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
        return self.root / "results"

    @contextmanager
    def making(
        self, what: Path | str, made_from: dict[str, Any], cheap: bool = False
    ) -> Iterator[bool]:
        """Whether an artefact (its folder) or results (their name) have yet to be made.

        If so, this process alone writes in the run folder until the block ends; what is there is
        read without a lock. `cheap` things are made for a command that only reads as well.
        """
        if self._is_there(what, made_from):
            yield False
            return
        if self.reading and not cheap:
            name = Path(what).relative_to(self.root) if isinstance(what, Path) else what
            raise ArtefactError(
                f"{self.root} has no {name} yet, and this command trains nothing; make it first "
                f"with `python -m sae_lib run --run {self.root}` and the same --profile and --set"
            )
        with in_plain_words(self.root), locks.locked(self.root):
            self.check_folder()
            missing = not self._is_there(what, made_from)
            missing = missing and not (isinstance(what, Path) and self._take_over(what, made_from))
            yield missing
            self.claim()

    def _is_there(self, what: Path | str, made_from: dict[str, Any]) -> bool:
        if isinstance(what, Path):
            return is_made(what, made_from)
        return self.saved_results(what, made_from) is not None

    def _take_over(self, folder: Path, made_from: dict[str, Any]) -> bool:
        """Whether a run folder beside this one holds the same artefact; it is then hard-linked."""
        if not folder.is_relative_to(self.root):
            return False
        for other in sorted(self.root.parent.glob(f"*/{SETTINGS}")):
            candidate = other.parent / folder.relative_to(self.root)
            with suppress(ArtefactError):
                if candidate != folder and is_made(candidate, made_from):
                    with writing(folder, made_from) as scratch:
                        shutil.copytree(candidate, scratch, copy_function=_link, dirs_exist_ok=True)
                    return True
        return False

    def check_folder(self) -> None:
        """`ArtefactError` where it holds a run of other settings, `SettingsError` for other things."""
        record = self.root / SETTINGS
        if record.exists():
            check_same(self.root, read_yaml(record), self._recorded())
        else:
            check_own(self.root, "--run", SETTINGS, f"*/{RECORD}")

    def claim(self) -> None:
        """Write `settings.yaml`: the folder is this run's from now on."""
        self.check_folder()
        if not (self.root / SETTINGS).exists():
            write_atomically(
                self.root / SETTINGS, yaml.safe_dump(self._recorded(), sort_keys=False)
            )

    def _recorded(self) -> dict[str, Any]:
        return (self.parent or self).settings.model_dump(mode="json")

    def save_results(
        self, name: str, values: dict[str, Any], made_from: dict[str, Any] | None = None
    ) -> Path:
        """Write `results/<name>.json`: the only place the report takes numbers from."""
        self.claim()
        path = self.results_folder / f"{name}.json"
        mark = {"made_from": _digest(made_from)} if made_from else {}
        values = plain(values | mark)
        record = values | {"sha256": _digest(values)}
        write_atomically(
            path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
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
            values = json.loads(path.read_text())
            whole = values.pop("sha256") == _digest(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise ArtefactError(
                f"{path} is damaged or was edited (its hash differs); delete it and run again"
            )
        return values

    def figure(self, fig, name: str, width: int = 900, height: int = 450):
        """Save a plotly figure to `figures/<name>` and return it for display."""
        from sae_lib import figures

        figures.save(fig, self.root / "figures", name, width, height)
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
        return Run(child, self.folder / "last_mlp", parent=self, reading=self.reading)


def open_run(
    profile: str = "laptop",
    run_dir: str | Path = "",
    overrides: list[str] | tuple[str, ...] = (),
    reading: bool = False,
) -> Run:
    """The run of a profile with overrides. Without `run_dir`: `runs/<profile>`, with overrides `runs/<profile>-<hash of them>`.

    Nothing is written before something is made. `reading`: the run has to exist, and nothing is
    trained for it.
    """
    settings = settings_module.load(profile, overrides)
    if run_dir:
        folder = Path(run_dir)
    else:
        changed = settings != settings_module.load(profile)
        digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]
        folder = Path("runs") / (f"{profile}-{digest}" if changed else profile)
    run = Run(settings, folder, reading=reading)
    if reading and not (folder / SETTINGS).exists():
        raise ArtefactError(f"there is no run in {folder}; {_existing(folder.parent)}")
    run.check_folder()
    _check(run)
    return run


def _existing(beside: Path) -> str:
    found = sorted({str(p.parent) for f in (beside, Path("runs")) for p in f.glob(f"*/{SETTINGS}")})
    if not found:
        return "there are none yet; make one with `python -m sae_lib run`"
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    named = ", ".join(found[:8])
    return f"there are: {named}{more}; choose one with --run, and its --profile and --set"


def check_own(folder: Path, option: str, *marks: str) -> None:
    """`SettingsError` where `folder` is not new or empty and holds none of `marks` (globs)."""
    expected = "expected a folder that is new, empty, or of such a run"
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{option} {folder} is a file; {expected}")
    here = folder.resolve()
    if here in (Path("/"), Path.home(), Path.cwd(), ROOT) or here.is_relative_to(ROOT / "sae_lib"):
        raise SettingsError(f"{option} {folder} is no place for results; {expected}")
    if folder.exists() and not any(any(folder.glob(mark)) for mark in marks):
        others = [p.name for p in folder.iterdir() if not p.name.endswith((".lock", ".partial"))]
        if others:
            raise SettingsError(f"{option} {folder} holds other files ({others[0]}); {expected}")


def _check(run: Run) -> None:
    """What settings alone cannot know: device, recipes and hook names, said before anything is made or written."""
    from sae_lib.activations import find_hook
    from sae_lib.device import check_memory, device_of
    from sae_lib.recipes import variants

    device = device_of(run)
    for prefix, part in (("", run.settings), ("last_mlp.", run.last_mlp().settings)):
        try:
            variants(part)
        except SettingsError as error:
            raise SettingsError(f"{prefix}{error}") from None
        if part.lm.source == "train":
            find_hook(part.sae.hook_name, part.lm.architecture, part.lm.n_layer)
            check_memory(part, device, prefix)


def is_made(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether the artefact is there, whole, and from these settings; `ArtefactError` where it is damaged or from others."""
    if not folder.exists():
        return False
    check_same(folder, _record(folder)["settings"], json.loads(json.dumps(made_from)))
    verify(folder)
    return True


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
        found["files"] = {name: (size, digest) for name, (size, digest) in found["files"].items()}
        found["settings"]
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(
            f"{folder} has no readable {RECORD}, so it was not made (whole) by a run; delete the folder and run again"
        ) from None


def verify(folder: Path) -> None:
    """`ArtefactError` that names the first file of an artefact that is not as it was written."""
    for name, (size, digest) in _record(folder)["files"].items():
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


def checkpoints_of(folder: Path) -> Path:
    """Where the training of the artefact `folder` keeps its checkpoints."""
    return folder.with_name(f".{folder.name}.checkpoints")


@contextmanager
def writing(folder: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """A scratch folder that becomes `folder`, with its record, when the block ends without an error.

    Checkpoints of its training are then removed.
    """
    scratch = locks.scratch_name(folder)
    try:
        with in_plain_words(folder):
            scratch.mkdir(parents=True)
            yield scratch
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
            shutil.rmtree(checkpoints_of(folder), ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    scratch = locks.scratch_name(path)
    try:
        with in_plain_words(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(scratch, "wb") as f:
                f.write(content.encode() if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(scratch, path)
    finally:
        with suppress(OSError):
            scratch.unlink()


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
        data = plain_yaml.parse(path.read_text())
    except ValueError:  # UTF-8's errors are such
        data = None
    if not isinstance(data, dict):
        raise ArtefactError(
            f"{path} is not readable as settings; delete the run folder or choose another with --run"
        )
    return data


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
