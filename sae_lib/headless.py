"""The notebooks without a browser: papermill runs them in order, each with its own log and executed copy."""

import ast
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from papermill.exceptions import PapermillExecutionError

from sae_lib.errors import Interrupted, SettingsError, UserError
from sae_lib.runs import Run
from sae_lib.settings_errors import shown
from sae_lib.tokens import make_tokens

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]
PATIENCE = 60  # seconds for a kernel to answer


class NotebookError(UserError):
    """A notebook's cell raised: names the notebook, the cell and the error."""


def notebooks(only: str = "") -> list[Path]:
    """The numbered notebooks without 00, which stands alone, or those numbered in `only`, such as "02,03"."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    numbers = [n.strip().zfill(2) for n in only.split(",") if n.strip()]
    if unknown := set(numbers) - {p.name[:2] for p in found}:
        raise SettingsError(
            f"--only {only}: there is no notebook {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in found)}"
        )
    return [p for p in found if (p.name[:2] in numbers if numbers else p.name[:2] != "00")]


def check_parameters(chosen: list[Path], parameters: dict[str, Any]) -> None:
    """papermill only warns of a parameter that a notebook does not have, and takes one of any type; here both are errors."""
    for notebook in chosen:
        known = papermill.inspect_notebook(notebook)
        for name, value in parameters.items():
            if name not in known:
                raise SettingsError(
                    f"{notebook.name} has no parameter {shown(name)}; it has {', '.join(known)}"
                )
            default = ast.literal_eval(known[name]["default"])
            if type(value) is not type(default) and not (type(default), type(value)) == (
                float,
                int,
            ):
                raise SettingsError(
                    f"-p {name}={shown(value)}: expected a value like {shown(default)}, as in {notebook.name}"
                )


def run_notebooks(
    run: Run, overrides: list[str], only: str, extra: dict[str, Any], say: Callable[[str], None]
) -> dict[str, float]:
    """Execute the notebooks in order; returns the seconds of each. The first failing cell ends it with a `NotebookError`."""
    chosen, seconds = notebooks(only), {}
    parameters = {
        "profile": run.settings.profile,
        "run_dir": str(run.folder),
        "overrides": list(overrides),
    } | extra
    check_parameters(chosen, extra)
    if any(path.name[:2] != "01" for path in chosen):
        make_tokens(run)  # so that bad text is refused before anything else is done
    run.claim()
    out = run.folder / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with (
        _kernel() if run.settings.profile == "smoke" else nullcontext() as shared
    ):  # to start one and import torch takes longer than a notebook's work there
        for i, notebook in enumerate(chosen, 1):
            say(f"[{i}/{len(chosen)}] {notebook.stem} …")
            began = time.perf_counter()
            with (
                open(out / f"{notebook.stem}.log", "w", encoding="utf-8") as log,
                nullcontext(shared) if shared else _kernel() as kernel,
            ):
                try:
                    papermill.execute_notebook(
                        notebook,
                        out / notebook.name,
                        parameters,
                        kernel_name="python3",
                        progress_bar=False,
                        stdout_file=log,
                        stderr_file=log,
                        km=kernel,
                    )
                except PapermillExecutionError as error:
                    raise NotebookError(_failure(notebook, error, out)) from None
                except KeyboardInterrupt:
                    _elsewhere(lambda kernel=kernel: _interrupt(kernel))
                    raise Interrupted(
                        f"{notebook.stem}: interrupted; finished stages and the last training step are saved; run the same command to continue"
                    ) from None
                if shared:
                    _forget_everything(kernel)
            seconds[notebook.stem] = time.perf_counter() - began
            say(f"[{i}/{len(chosen)}] {notebook.stem}: {seconds[notebook.stem]:.0f} s")
    return seconds


@contextmanager
def _kernel() -> Iterator[KernelManager]:
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(extra_arguments=KERNEL_ARGUMENTS)
    try:
        yield kernel
    finally:
        _elsewhere(lambda: kernel.shutdown_kernel(now=True))


@contextmanager
def _ready(kernel: KernelManager) -> Iterator[BlockingKernelClient]:
    """A client of the kernel, once its cell is done."""
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        yield client
    finally:
        client.stop_channels()


def _forget_everything(kernel: KernelManager) -> None:
    """No name of one notebook reaches the next."""
    with _ready(kernel) as client:
        client.execute_interactive("%reset -f", silent=True, timeout=PATIENCE)


def _elsewhere(function: Callable[[], Any]) -> None:
    """In a thread with an event loop of its own: after Ctrl-C this one's still waits for the cell."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def _interrupt(kernel: KernelManager) -> None:
    """Pass Ctrl-C on, and give a training the time to finish its step and save."""
    kernel.interrupt_kernel()
    with suppress(RuntimeError), _ready(kernel):
        pass


def _failure(notebook: Path, error: PapermillExecutionError, out: Path) -> str:
    first = error.source.strip().splitlines()[0] if error.source.strip() else ""
    return (
        f"{notebook.name}: cell {error.cell_index + 1} (`{first}`) raised {error.ename}: {error.evalue}\n"
        f"the executed copy with the whole traceback is {out / notebook.name}, its log {out / (notebook.stem + '.log')}; run the same command to continue"
    )
