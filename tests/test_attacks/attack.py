"""Runs one command in this process and holds it to what bad input must get: status 2, one line,
nothing left behind.
"""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit status, what it printed, and which files it added, changed or
    removed.
    """

    status: int
    out: str
    err: str
    touched: set[str]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `folder` with size and time of change."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        if p.is_file()
        else (0, 0)
        for p in folder.rglob("*")
    }


def run_command(arguments: list[str], folder: Path) -> Outcome:
    """`python -m suite ARGUMENTS` with `folder` as the working directory, without a new process."""
    from suite.__main__ import main

    before, out, err, status = snapshot(folder), io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["suite", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                status = (
                    ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
                )
    after = snapshot(folder)
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return Outcome(status, out.getvalue(), err.getvalue(), touched)


def assert_refused(arguments: list[str], folder: Path, names: str) -> None:
    """Status 2, one line on stderr that contains `names`, no traceback, and nothing written
    below `folder`.
    """
    outcome = run_command(arguments, folder)
    said = outcome.err.strip()
    assert outcome.status == 2, f"status {outcome.status}: {outcome.out[-500:]}{said[-500:]}"
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert names in said, f"{names!r} is not in {said!r}"
    assert len(said) < 1000, said
    assert not outcome.touched, f"left behind: {sorted(outcome.touched)}"
