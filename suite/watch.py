"""What a headless notebook does right now: one live line on a terminal, else one line a minute."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sae_lib.formats import about

EVERY = 60  # seconds between two lines where there is no terminal
QUIET = 300  # seconds without output or progress after which the line says so
STALLED = 60  # seconds without either after which the kernel is asked whether it is still at it
AGAIN = 3  # seconds after which it is asked a second time


def first_line(source: str) -> str:
    """The first line of a cell that is code."""
    lines = (line.strip() for line in source.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")[:50]


def read_state(path: Path) -> dict[str, Any] | None:
    """What the innermost running bar last wrote; None where no bar runs."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def describe(state: dict[str, Any]) -> str:
    """A bar's state in words: description, step of steps, time left, postfix (loss)."""
    n, total, done = state["n"], state["total"], state["n"] - state["initial"]
    rate = state["rate"] or (done / state["elapsed"] if done and state["elapsed"] else None)
    parts = [f"{n:,.0f} of {total:,.0f}" if total else f"{n:,.0f}"]
    if rate and total and total > n:
        parts.append(f"{about((total - n) / rate)} left")
    parts += filter(None, [state["postfix"]])
    return f"{state['prefix'].removesuffix(': ')} {', '.join(parts)}".strip()


class Watch:
    """Follows one notebook from a thread while it runs; `left` gives the seconds the run still
    takes.
    """

    def __init__(
        self,
        name: str,
        bar: Path,
        say: Callable[[str], None],
        left: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.bar, self.say, self.left, self.clock = name, bar, say, left, clock
        self.cell, self.index, self.pid = None, 0, None
        self.is_idle: Callable[[], bool] = lambda: False  # whether the kernel runs no cell
        self.stalled, self.asked = False, clock()
        self.seen, self.active, self.said = None, clock(), clock()
        self.terminal = sys.stdout.isatty()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self.thread.join()
        if self.terminal:
            self._rewrite("")

    def cell_started(self, cell, cell_index: int) -> None:
        """nbclient calls this before it sends a cell to the kernel."""
        self.cell, self.index = cell, cell_index

    def where(self) -> str:
        if self.cell is None:
            return "getting ready"
        return f"cell {self.index + 1} (`{first_line(self.cell.source)}`)"

    def line(self) -> str:
        """Notebook, time left in all, what it does, and for how long it has been silent."""
        state = self.seen[-1]
        parts = [describe(state) if state else self.where()]
        if (quiet := self.clock() - self.active) >= QUIET:
            since = time.strftime("%H:%M", time.localtime(time.time() - quiet))
            where = f" in {self.where()}" if state else ""
            parts.append(f"no output or progress{where} since {since}, {about(quiet)} ago")
            parts.append(self._load())
        left = self.left()
        rest = "" if left is None else f" ({about(left)} left in all)"
        return f"{self.name}{rest}: {'; '.join(filter(None, parts))}"

    def tick(self) -> None:
        outputs = len(self.cell.outputs) if self.cell else 0
        if (seen := (self.index, outputs, read_state(self.bar))) != self.seen:
            self.seen, self.active = seen, self.clock()
        if self.terminal:
            self._rewrite(self.line())
        elif self.clock() - self.said >= EVERY:
            self.said = self.clock()
            self.say(self.line())

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            self.tick()
            if self.clock() - max(self.active, self.asked) >= STALLED and not self.stalled:
                self.asked = self.clock()
                self._ask()

    def _ask(self) -> None:
        """End a kernel that is done with its cell while its reply was lost on its way: the wait for
        the cell ends with it. No signal is used, because a shell's background job ignores Ctrl-C.
        """
        if self.cell is None or not self.is_idle():
            return
        cell = self.index
        if not self.ended.wait(AGAIN) and cell == self.index and self.is_idle():
            self.tick()
            if self.clock() - self.active >= AGAIN and not self.ended.is_set():
                self.stalled = True
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(self.pid).kill()

    def _rewrite(self, line: str) -> None:
        columns = shutil.get_terminal_size().columns
        sys.stdout.write(f"\r\x1b[2K{line[: columns - 1]}")
        sys.stdout.flush()

    def _load(self) -> str:
        """Whether the silent kernel computes or waits."""
        try:
            kernel = psutil.Process(self.pid)
            used, memory = kernel.cpu_percent(0.2), kernel.memory_info().rss
            return f"its kernel uses {used:.0f} % of a core and {memory / 1e9:.1f} GB"
        except psutil.Error:
            return ""
