"""The notebooks without a browser: papermill runs them in order, each in a kernel of its own."""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.manager import KernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.sign import NotebookNotary
from papermill.exceptions import PapermillExecutionError

from sae_lib import progress
from sae_lib.errors import Interrupted, SettingsError, UserError
from sae_lib.formats import about
from suite import drawing, estimate, project
from suite.runs import Run
from suite.watch import Watch, first_line

START_LIMIT = 180  # seconds for a kernel to start and import the library
OUTPUT_LIMIT = 120  # seconds for a finished cell's last output to arrive
SAVE_LIMIT = 60  # seconds for a training to finish its step and save after Ctrl-C
# what a kernel does before its notebook runs; the second line where another one runs meanwhile
START = "from suite import drawing, notebook; drawing.prepare(); del drawing, notebook"
MEANWHILE = "import transformers; transformers.GPT2LMHeadModel; del transformers"  # takes seconds


class _Stalled(UserError):
    """A kernel is idle, but the reply to its cell never came."""


class NotebookError(UserError):
    """A cell raised, or a kernel died or did not start: names notebook, cell and error."""


def notebooks(only: str = "") -> list[Path]:
    """The numbered notebooks without 00, which stands alone, or those numbered in `only`, such
    as "02,03".
    """
    found = sorted((project.root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    numbers = [n.strip().zfill(2) for n in only.split(",") if n.strip()]
    if unknown := set(numbers) - {p.name[:2] for p in found}:
        raise SettingsError(
            f"--only {only}: there is no notebook {', '.join(sorted(unknown))}; there are "
            f"{', '.join(p.stem for p in found)}"
        )
    return [p for p in found if (p.name[:2] in numbers if numbers else p.name[:2] != "00")]


def run_notebooks(
    run: Run, overrides: list[str], only: str, say: Callable[[str], None]
) -> dict[str, float]:
    """Execute the notebooks in order; returns the seconds of each. The first failing cell ends it.

    `say` gets the lines that stay: the estimate, a notebook's log, how long it took.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    chosen = notebooks(only)
    parameters = {
        "profile": run.settings.profile,
        "run_dir": str(run.folder),
        "overrides": overrides,
    }
    text = ["text"] if any(n.name[:2] not in ("00", "01") for n in chosen) else []
    expected = estimate.of_run(run, text + [n.stem for n in chosen])
    say(expected.summary())
    measured: dict[str, float] = {}
    with ExitStack() as stack:
        bars = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drawing.prepare()  # Chromium and the first kernel start beside the text
        kernel = stack.enter_context(_kernel(bars / chosen[0].stem, START))
        if text:  # before the folder is claimed, so that bad text is refused
            with _followed("text", "", bars, expected, measured, say), progress.to(bars / "text"):
                run.path("tokens")
        drawing.works()  # tried once, for all kernels that are yet to start
        drawing.stop()
        run.claim()
        out = run.folder / "notebooks"
        out.mkdir(parents=True, exist_ok=True)
        for i, notebook in enumerate(chosen, 1):
            head, name, following = f"[{i}/{len(chosen)}] ", notebook.stem, None
            takes = about(expected.corrected(name, measured))
            say(f"{head}{name}: about {takes}, log: {out / name}.log")
            if i < len(chosen):  # starts while this notebook runs
                following = stack.enter_context(_kernel(bars / chosen[i].stem, START, MEANWHILE))
            with _followed(name, head, bars, expected, measured, say) as watch:
                try:
                    _execute(notebook, out, parameters, kernel, watch)
                except _Stalled as stalled:
                    say(f"{head}{name}: {stalled}; it starts again")
                    _stop(kernel)
                    kernel = stack.enter_context(_kernel(bars / name, START))
                    _execute(notebook, out, parameters, kernel, watch)
            _stop(kernel)
            kernel = following
            trust(out / notebook.name)
    return {n.stem: measured[n.stem] for n in chosen}


def trust(path: Path) -> None:
    """Sign an executed notebook, so that this user's JupyterLab shows its figures, which are
    scripts. Where Jupyter's folder cannot be written, it stays unsigned.
    """
    with suppress(OSError):
        NotebookNotary().sign(nbformat.read(path, nbformat.NO_CONVERT))


@contextmanager
def _followed(
    name: str,
    head: str,
    bars: Path,
    expected: estimate.Estimate,
    measured: dict[str, float],
    say: Callable[[str], None],
) -> Iterator[Watch]:
    """Shows what goes on, and says and keeps in `measured` how long it took."""
    began = time.perf_counter()

    def left() -> float:
        return expected.left(measured, name, time.perf_counter() - began)

    with Watch(f"{head}{name}", bars / name, say, left) as watch:
        yield watch
    measured[name] = time.perf_counter() - began
    last = len(measured) == len(expected.seconds)
    rest = "" if last else f", about {about(expected.left(measured))} left"
    say(f"{head}{name}: {measured[name]:.0f} s{rest}")


def _execute(
    notebook: Path, out: Path, parameters: dict[str, Any], kernel: KernelManager, watch: Watch
) -> None:
    """One notebook in its kernel; every way in which that can fail is named."""
    watch.pid, log = kernel.provisioner.pid, out / f"{notebook.stem}.log"
    watch.cell, watch.stalled, watch.is_idle = None, False, lambda: _answers(kernel, 2)
    with open(log, "w", encoding="utf-8") as written:
        try:
            papermill.execute_notebook(
                notebook,
                out / notebook.name,
                parameters,
                kernel_name=kernel.kernel_name,
                progress_bar=False,
                stdout_file=written,
                stderr_file=written,
                km=kernel,
                start_timeout=START_LIMIT,
                iopub_timeout=OUTPUT_LIMIT,
                on_cell_execute=watch.cell_started,
            )
        except PapermillExecutionError as error:
            cell = f"cell {error.cell_index + 1} (`{first_line(error.source)}`)"
            raise NotebookError(
                f"{notebook.name}: {cell} raised {error.ename}: {error.evalue}\n"
                f"the executed copy with the whole traceback is {out / notebook.name}, its log "
                f"{log}; "
                "run the same command to continue"
            ) from None
        except KeyboardInterrupt:
            if watch.cell is None:
                raise
            _elsewhere(lambda: _interrupt(kernel))
            raise Interrupted(
                f"{notebook.stem}: interrupted; finished stages and the last training step are "
                "saved; "
                "run the same command to continue"
            ) from None
        except (CellTimeoutError, RuntimeError) as error:
            if watch.stalled:
                raise _Stalled(
                    f"{watch.where()} is done, but its kernel's reply was lost"
                ) from None
            raise NotebookError(
                f"{notebook.name}: {_what_happened(error, kernel, watch)}; its log is {log}; "
                "run the same command to continue"
            ) from None


def _what_happened(error: Exception, kernel: KernelManager, watch: Watch) -> str:
    """A kernel that died, answered nothing, or never started, in words."""
    process = getattr(kernel.provisioner, "process", None)
    status = process.poll() if process else None
    how = f"exit status {status}"
    if status is not None and status < 0:
        how = f"killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            how += ": if you did not, the system, which was out of memory"
    if isinstance(error, DeadKernelError):
        return f"{watch.where()}: its kernel died ({how})"
    if isinstance(error, CellTimeoutError):
        return f"{watch.where()}: its output did not arrive within {OUTPUT_LIMIT} s"
    if status is not None:
        return f"its kernel died while it started ({how})"
    return f"its kernel did not start within {START_LIMIT} s; `make doctor` checks the kernel"


@contextmanager
def _kernel(bar: Path, *lines: str) -> Iterator[KernelManager]:
    """A kernel whose progress bars write to that file; it runs these lines first."""
    client = (
        "jupyter_client.asynchronous.AsyncKernelClient"  # nbclient notices a death with this one
    )
    kernel = KernelManager(kernel_name="python3", client_class=client)
    environment = os.environ | {progress.FILE: str(bar)}
    arguments = [f"--IPKernelApp.exec_lines={line}" for line in lines]
    arguments.append("--IPKernelApp.log_level=ERROR")
    kernel.start_kernel(extra_arguments=arguments, env=environment)
    try:
        yield kernel
    finally:
        if kernel.has_kernel:
            _stop(kernel)


def _answers(kernel: KernelManager, seconds: float) -> bool:
    """Whether the kernel answers in that time, which it does only between two cells."""
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(seconds)
        return True
    except RuntimeError:  # it is busy, or dead
        return False
    finally:
        client.stop_channels()


def _stop(kernel: KernelManager) -> None:
    _elsewhere(lambda: kernel.shutdown_kernel(now=True))


def _elsewhere(function: Callable[[], Any]) -> None:
    """In a thread with its own event loop: after Ctrl-C this one's still waits for the cell."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def _interrupt(kernel: KernelManager) -> None:
    """Pass Ctrl-C on, and give a training the time to finish its step and save."""
    kernel.interrupt_kernel()
    _answers(kernel, SAVE_LIMIT)
