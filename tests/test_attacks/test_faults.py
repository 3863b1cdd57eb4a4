"""A full disk, a read-only file system, too little memory, Ctrl-C: one line each."""

import errno
import os
import resource
import shutil
import signal

import pytest
import torch

from sae_lib import errors
from sae_lib.features import evaluation
from sae_lib.features import feature_table as features
from sae_lib.interpretability import clusters
from sae_lib.sae import training
from sae_lib.text import tokens
from suite import stages
from tests.test_attacks.attack import assert_refused, run_command
from tests.test_attacks.conftest import arguments

MADE = {  # stage: what it makes
    "corpus": ("tokens", "settings.yaml"),
    "lm": ("language_model",),
    "sae": ("saes",),
    "features": ("features",),
    "score": ("interpretability",),
    "clusters": ("clusters",),
    "evaluate": ("results/evaluation.json",),
}
PANIC = type("PanicException", (BaseException,), {})
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(autouse=True)
def handlers():
    """SIGINT is ignored, as in a shell's background job; afterwards pytest's handlers are back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def without(run_folder, stage: str) -> None:
    for name in MADE[stage]:
        path = run_folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def raising(error: BaseException):
    def raises(*_, **__):
        raise error

    return raises


def ended(outcome, *words: str, status: int = 2) -> None:
    line = outcome.err.strip().splitlines()[-1]
    assert outcome.status == status and line.startswith("error: "), outcome.err[-1500:]
    assert "Traceback" not in outcome.err and all(word in line for word in words), line
    assert not [name for name in outcome.touched if ".partial" in name or ".lock" in name]


@pytest.mark.parametrize("stage", [stage for stage in MADE if stage != "corpus"])
def test_a_file_that_may_not_grow_is_one_line_and_the_stage_goes_on(stage, copied, text_folder):
    without(copied, stage)
    given = arguments(f"stage {stage}", copied, text_folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        outcome = run_command(given, copied.parent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ended(outcome, str(copied), "larger than", "run the same command")
    assert run_command(given, copied.parent).status == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
)
@pytest.mark.parametrize("command", ["stage corpus", "stage evaluate", "report", "browser"])
def test_what_the_system_refuses_is_one_line(
    command, number, words, copied, text_folder, monkeypatch
):
    if command.startswith("stage"):
        without(copied, command.split()[1])
    monkeypatch.setattr(os, "fsync", raising(OSError(number, os.strerror(number))))
    outcome = run_command(arguments(command, copied, text_folder), copied.parent)
    ended(outcome, words, str(copied))


def test_a_folder_that_cannot_be_made_is_one_line(text_folder, tmp_path, monkeypatch):
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "run"))
    monkeypatch.setattr("suite.locks.Path.mkdir", raising(refused))
    assert_refused(arguments("stage corpus", tmp_path / "run", text_folder), tmp_path, "read-only")


MEMORY = [
    ("corpus", tokens, "train_tokenizer", MemoryError(), "corpus.train_tokens"),
    ("corpus", tokens, "train_tokenizer", PANIC("capacity overflow"), "corpus.train_tokens"),
    ("sae", training, "prepare", RuntimeError(ALLOCATOR), "sae.d_sae"),
    ("sae", training, "prepare", torch.OutOfMemoryError("CUDA out of memory."), "sae.d_sae"),
    ("evaluate", evaluation, "density_and_error", RuntimeError(ALLOCATOR), "evaluation.tokens"),
    ("features", features, "FirstPass", MemoryError("Unable to allocate 3 TiB"), "features.top_k"),
    ("clusters", clusters, "group", MemoryError(), "interpretability.features"),
]


@pytest.mark.parametrize("case", MEMORY)
def test_too_little_memory_names_the_setting(case, copied, text_folder, monkeypatch):
    stage, module, function, error, setting = case
    without(copied, stage)
    monkeypatch.setattr(module, function, raising(error))
    ended(
        run_command(arguments(f"stage {stage}", copied, text_folder), copied.parent),
        "not enough memory",
        setting,
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("No space left on device (os error 28)"), "disk is full"),  # tokenizers
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "cannot be"),
        (OSError("1000 requested and 0 written"), "1000 requested"),  # numpy
        (ValueError("anything else"), None),
        (RuntimeError("shapes cannot be multiplied"), None),
    ],
)
def test_errors_of_libraries_are_told_apart(error, words):
    told = errors.plain(error)
    assert told is None if words is None else words in str(told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["corpus", "evaluate", "features", "clusters"])
def test_ctrl_c_outside_training_is_one_line_and_status_130(
    stage, number, copied, text_folder, monkeypatch
):
    without(copied, stage)
    where = {
        "corpus": (stages, "documents"),
        "evaluate": (evaluation, "density_and_error"),
        "features": (features, "build"),
        "clusters": (clusters, "group"),
    }
    monkeypatch.setattr(*where[stage], lambda *_: os.kill(os.getpid(), number))
    outcome = run_command(arguments(f"stage {stage}", copied, text_folder), copied.parent)
    ended(outcome, "interrupted", "run the same command", status=130)


def test_checkpoints_go_with_the_artefact_however_it_was_made(copied, text_folder):
    left = copied / "saes" / ".bricken_2023.checkpoints"
    without(copied, "sae")
    left.mkdir(parents=True)
    (left / "other").write_text("of another kind of making")
    assert run_command(arguments("stage sae", copied, text_folder), copied.parent).status == 0
    assert not left.exists()
