"""One folder per run: artefacts written whole or not at all, each with a record of the settings
it was made from.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sae_lib.checkpoints import CheckpointFolder
from sae_lib.device import keep_freed_memory
from sae_lib.errors import ArtefactError, Interrupted, SettingsError, in_plain_words
from sae_lib.files import (
    RECORD,
    check_same,
    digest,
    plain,
    read_record,
    scratch_name,
    sha256,
    verify,
    write_atomically,
)
from sae_lib.sae.engine import distributed
from sae_lib.settings import Settings
from sae_lib.user_input import parse_yaml
from suite import locks, project

SETTINGS = "settings.yaml"


@dataclass(frozen=True)
class Stage:
    """One row of the table of what a run can make: an artefact (a folder), results (JSON) from it,
    or both.

    Every function takes the run and a name (of an autoencoder or baseline) first; `make` then fills
    a scratch folder (and where the stage `trains`, it gets a folder for checkpoints), `load` reads
    the artefact's. `needed` says whether this run makes it at all.
    """

    folder: str = ""  # in the run folder; {name} is replaced by the name
    # what has to be made first: stages, or a function that gives (stage, name) pairs
    inputs: tuple[str, ...] | Callable[["Run", str], list[tuple[str, str]]] = ()
    fingerprint: Callable[["Run", str], dict[str, Any]] | None = None  # settings it depends on
    make: Callable[..., None] | None = None
    load: Callable[["Run", str, Path | None], Any] | None = None
    measure: Callable[["Run", str], dict[str, Any]] | None = None  # values of its results
    results: str = ""  # name of its results
    needed: Callable[["Run"], bool] | None = None
    cheap: bool = False  # made for commands that only read, too
    keep: bool = False  # stays in memory once loaded
    trains: bool = False
    together: bool = False  # made by all processes of torchrun


@dataclass(frozen=True)
class Run:
    """Settings, the folder that everything made from them goes into, and the table of what can
    be made.
    """

    settings: Settings
    folder: Path
    stages: Mapping[str, Stage] = field(compare=False, repr=False)
    parent: "Run | None" = field(default=None, compare=False)
    reading: bool = field(default=False, compare=False)  # nothing is trained for it
    _loaded: dict = field(default_factory=dict, init=False, compare=False, repr=False)

    def path(self, stage: str, name: str = "") -> Path:
        """The folder of a stage's artefact, made with its results (and all that it needs) where
        they are not there; that of its results where it has no artefact.
        """
        row = self.stages[stage]
        folder = self._made(stage, name) if row.folder else self.results_folder
        if row.results:
            self.results(stage, name)
        return folder

    def get(self, stage: str, name: str = "") -> Any:
        """What a stage makes, loaded (or its results, where that is all it makes); made first
        where it is not there.
        """
        row, name = self.stages[stage], name or self.settings.sae.recipe
        if row.load is None:
            return self.results(stage, name)
        folder = self._made(stage, name) if row.folder else None
        if (stage, name) in self._loaded:
            return self._loaded[stage, name]
        loaded = row.load(self, name, folder)
        if row.keep:
            self._loaded[stage, name] = loaded
        return loaded

    def results(self, stage: str, name: str = "") -> dict[str, Any]:
        """A stage's results, measured and saved where they are not there."""
        row, name = self.stages[stage], name or self.settings.sae.recipe
        where, made_from = self.results_name(row.results, name), row.fingerprint(self, name)
        if not row.folder:
            self._make_inputs(row, name)  # and verify them: the results are about these
        return self.kept_results(where, made_from, partial(row.measure, self, name))

    def _make_inputs(self, row: Stage, name: str) -> None:
        """What the stage needs, in order: so the folder is claimed once the text was found good."""
        if callable(row.inputs):
            for stage, of in row.inputs(self, name):
                self.path(stage, of)
        else:
            for stage in row.inputs:
                self.path(stage)

    def summary(self, stage: str, name: str = "") -> dict[str, Any]:
        """What a training measured: curves, seconds, rates; see `language_model.train` and
        `training.fit`.
        """
        return json.loads((self.folder_of(stage, name) / "training.json").read_text())

    def folder_of(self, stage: str, name: str = "") -> Path:
        if stage == "tokens":
            return self.tokens_folder
        name = name or self.settings.sae.recipe
        return self.folder / self.stages[stage].folder.format(name=name)

    def results_name(self, base: str, name: str = "") -> str:
        """That of the main run's own autoencoder is plain; others say of which run and
        autoencoder they are.
        """
        of = [self.folder.name] if self.parent else []
        of += [name] if name and name != self.settings.sae.recipe else []
        return "_".join([base, *of])

    def _made(self, stage: str, name: str) -> Path:
        row, folder = self.stages[stage], self.folder_of(stage, name)
        if row.needed and not row.needed(self):
            return folder
        name = name or self.settings.sae.recipe
        made_from, rank = row.fingerprint(self, name), distributed.rank_and_world_size()[0]
        in_order = distributed.first_process_first if row.together else nullcontext
        with ExitStack() as stack:
            with in_order():
                if not self._is_there(folder, made_from):
                    self._make_inputs(row, name)
                missing = stack.enter_context(self.making(folder, made_from, row.cheap))
            if missing:
                what = name if "{name}" in row.folder else row.folder.replace("_", " ")
                training = trains(what, folder, made_from)
                store = [stack.enter_context(training)] if row.trains else []
                out = writing(folder, made_from) if rank == 0 else nullcontext(folder)
                row.make(self, name, stack.enter_context(out), *store)
        with in_order():
            return folder

    @property
    def root(self) -> Path:
        """The folder that has the settings and the lock: of a child, its parent's."""
        return (self.parent or self).folder

    @property
    def tokens_folder(self) -> Path:
        """Where the tokens lie; a child with its parent's corpus and tokeniser shares them."""
        mine, parents = self.settings, self.parent and self.parent.settings
        same = parents and (parents.corpus, parents.tokenizer) == (mine.corpus, mine.tokenizer)
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
                f"with `python -m suite run --run {self.root}` and the same --profile and --set"
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
        """Whether a run folder beside this one holds the same artefact, which then is this one's
        too (by hard links).
        """
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
        """`ArtefactError` where the folder holds a run of other settings, `SettingsError` where
        it holds something else.
        """
        record = self.root / SETTINGS
        if record.exists():
            check_same(self.root, read_yaml(record), self._recorded())
        elif self.reading:
            raise ArtefactError(f"there is no run in {self.root}; {_existing(self.root.parent)}")
        else:
            check_own(self.root, "--run", SETTINGS, f"*/{RECORD}", "last_mlp")

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
        mark = {"made_from": digest(made_from)} if made_from else {}
        values = plain(values | mark)
        record = values | {"sha256": digest(values)}
        write_atomically(
            path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
        return path

    def kept_results(
        self, name: str, made_from: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The results of that name from these settings, measured and saved where they are not
        there.
        """
        with self.making(name, made_from) as missing:
            if missing:
                self.save_results(name, measure(), made_from)
        return self.saved_results(name, made_from)

    def saved_results(self, name: str, made_from: dict[str, Any]) -> dict[str, Any] | None:
        """The results of that name if they come from these settings, else None: they have to be
        made (again).
        """
        values = self.find_results(name) or {}
        return values if values.pop("made_from", None) == digest(made_from) else None

    def find_results(self, name: str) -> dict[str, Any] | None:
        """The results of that name, None where there are none."""
        there = (self.results_folder / f"{name}.json").exists()
        return self.load_results(name) if there else None

    def load_results(self, name: str) -> dict[str, Any]:
        path = self.results_folder / f"{name}.json"
        if not path.exists():
            raise ArtefactError(f"{path} is missing: run the notebook or stage that makes it first")
        try:
            values = json.loads(path.read_text())
            whole = values.pop("sha256") == digest(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise ArtefactError(
                f"{path} is damaged or was edited (its hash differs); delete it and run again"
            )
        return values

    def figure(self, fig, name: str, width: int = 900, height: int = 450):
        """Save a plotly figure to `figures/<name>` and return it for display."""
        from suite import drawing

        drawing.save(fig, self.root / "figures", name, width, height)
        return fig

    def last_mlp(self) -> "Run":
        """The run of notebook 05: the same corpus, another model and hook, in a folder inside
        this one.
        """
        if "last_mlp" not in self._loaded:
            child, folder = last_mlp_settings(self.settings), self.folder / "last_mlp"
            self._loaded["last_mlp"] = Run(child, folder, self.stages, self, self.reading)
        return self._loaded["last_mlp"]


def last_mlp_settings(s: Settings) -> Settings:
    """Those of the run of notebook 05 inside a run of these settings."""
    own = s.last_mlp
    tokens = {"train_tokens": own.train_tokens or s.corpus.train_tokens}
    tokens |= {"dialogues": own.dialogues}
    changes = {
        "lm": own.lm,
        "sae": own.sae,
        "tokenizer": own.tokenizer or s.tokenizer,
        "corpus": s.corpus.model_copy(update=tokens),
    }
    return s.model_copy(update=changes)


def settings_hash(settings: Settings) -> str:
    """What names the folder of a run with overrides."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]


def _existing(beside: Path) -> str:
    found = sorted({str(p.parent) for f in (beside, Path("runs")) for p in f.glob(f"*/{SETTINGS}")})
    if not found:
        return "there are none yet; make one with `python -m suite run`"
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return (
        f"there are: {', '.join(found[:8])}{more}; choose one with --run, and its --profile "
        "and --set"
    )


def check_own(folder: Path, option: str, *marks: str) -> None:
    """`SettingsError` where `folder` is not new or empty and holds none of `marks` (globs): it
    is somebody else's.
    """
    here, own = folder.resolve(), [Path(str(resources.files(p))) for p in ("sae_lib", "suite")]
    places = (Path("/"), Path.home(), Path.cwd(), project.find())
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if not name.endswith((".lock", ".partial"))]
    why = ""
    if folder.exists() and not folder.is_dir():
        why = "is a file"
    elif here in places or any(here.is_relative_to(package) for package in own):
        why = "is no place for results"
    elif others and not any(any(folder.glob(mark)) for mark in marks):
        why = f"holds other files ({others[0]})"
    if why:
        expected = "expected a folder that is new, empty, or of such a run"
        raise SettingsError(f"{option} {folder} {why}; {expected}")


def is_made(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether the artefact is there, whole, and from these settings; `ArtefactError` where it is
    damaged or from others.
    """
    if not folder.exists():
        return False
    check_same(folder, read_record(folder)["settings"], json.loads(json.dumps(made_from)))
    verify(folder)
    return True


@contextmanager
def writing(folder: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """A scratch folder that becomes `folder`, with its record, when the block ends without an
    error; its checkpoints then go.
    """
    scratch = scratch_name(folder)
    try:
        with in_plain_words(folder):
            scratch.mkdir(parents=True)
            yield scratch
            files = {}
            for path in sorted(p for p in scratch.rglob("*") if p.is_file() and p.name != RECORD):
                size, when = path.stat().st_size, path.stat().st_mtime_ns
                files[str(path.relative_to(scratch))] = (size, sha256(path, size, when))
            record = {"settings": made_from, "files": files}
            write_atomically(scratch / RECORD, json.dumps(record, indent=1))
            os.replace(scratch, folder)
            shutil.rmtree(checkpoints_of(folder), ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_parsed = lru_cache(parse_yaml)  # what a run reads again and again takes 20 ms to parse


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file, which are shared and not to be changed."""
    try:
        data = _parsed(path.read_text())
    except ValueError:  # UTF-8's errors are such
        data = None
    if not isinstance(data, dict):
        raise ArtefactError(
            f"{path} is not readable as settings; delete the run folder or choose another with "
            "--run"
        )
    return data


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def finish_the_step(what: str) -> Iterator[threading.Event]:
    """Inside, Ctrl-C or SIGTERM sets the event, so that a loop can finish its step and save; a
    second one interrupts at once.

    Where the block ends without a step to stop at, `Interrupted` says so: no Ctrl-C is lost.
    """
    pressed = threading.Event()

    def on_interrupt(*_: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # signals are caught only there
        yield pressed
        return
    before = {s: signal.signal(s, on_interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed.is_set():
        raise Interrupted(
            f"{what}: interrupted, but finished; run the same command to continue after it"
        )


def checkpoints_of(folder: Path) -> Path:
    """Where the training of the artefact `folder` keeps its checkpoints."""
    return folder.with_name(f".{folder.name}.checkpoints")


@contextmanager
def trains(what: str, folder: Path, made_from: dict[str, Any]) -> Iterator[CheckpointFolder]:
    """Around a training: where it keeps checkpoints; Ctrl-C asks it to write one and stop."""
    keep_freed_memory()
    with finish_the_step(what) as interrupted:
        yield CheckpointFolder(checkpoints_of(folder), made_from, interrupted)
