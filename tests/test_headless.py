"""Notebooks without a browser: kernels that die or never start, silent cells, the live line, and
the estimate.
"""

import fcntl
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.sign import NotebookNotary

from sae_lib import settings
from suite import estimate, headless, project, stages, watch
from suite.runs import Run
from suite.watch import Watch
from tests import ROOT

PARAMETERS = 'profile: str = "smoke"\nrun_dir: str = ""\noverrides: list = []'


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs notebooks of one code cell each; returns the lines that were said."""

    def run(*sources: str) -> list[str]:
        (tmp_path / "notebooks").mkdir()
        for i, source in enumerate(sources, 1):
            first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
            book = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(source)])
            spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
            book.metadata["kernelspec"] = spec
            nbformat.write(book, tmp_path / "notebooks" / f"{i:02d}_fake.ipynb")
        monkeypatch.setattr(project, "find", lambda: tmp_path)
        monkeypatch.setattr(
            estimate, "of_run", lambda run, names: estimate.Estimate(dict.fromkeys(names, 60.0))
        )
        monkeypatch.setattr(Run, "path", lambda run, stage, name="": None)
        headless.run_notebooks(stages.open_run("smoke", tmp_path / "run"), [], "", said.append)
        return said

    said: list[str] = []
    yield run
    left = [p for p in psutil.Process().children(recursive=True) if "ipykernel" in command_line(p)]
    assert not left, f"kernels left behind: {left}"


@pytest.fixture
def bare_kernels(monkeypatch):
    """Kernels that do not import the library first, which takes seconds."""
    monkeypatch.setattr(headless, "START", "pass")
    monkeypatch.setattr(headless, "MEANWHILE", "pass")


def command_line(process: psutil.Process) -> str:
    """Empty for a process that has ended, also between the listing and the asking."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kernelspec(folder, code: str) -> str:
    """A Jupyter data folder whose python3 kernel runs that code instead."""
    spec = {"argv": [sys.executable, "-c", code], "display_name": "x", "language": "python"}
    (folder / "kernels/python3").mkdir(parents=True)
    (folder / "kernels/python3/kernel.json").write_text(json.dumps(spec))
    return str(folder)


def test_every_notebook_has_a_kernel_of_its_own_and_its_log_is_named(execute, tmp_path):
    write = f"import os; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')"
    imported = "import sys; assert 'suite.notebook' in sys.modules and 'suite' not in dir()"
    said = execute(f"x = 1; {write}", f"assert 'x' not in dir(); {imported}; {write}")
    assert len(set((tmp_path / "pids").read_text().split())) == 2
    assert said[0] == "about 3 min on this machine (text 1 min, 01 1 min, 02 1 min)"
    assert re.fullmatch(r"text: 0 s, about \d+ s left", said[1])
    assert re.fullmatch(r"\[1/2\] 01_fake: about \d+ s, log: .*/notebooks/01_fake.log", said[2])
    assert Path(said[2].split("log: ")[1]).exists()
    assert re.fullmatch(r"\[1/2\] 01_fake: \d+ s, about \d+ s left", said[3])
    assert re.fullmatch(r"\[2/2\] 02_fake: \d+ s", said[5])


def test_jupyter_trusts_what_was_executed_here(execute, tmp_path, monkeypatch, bare_kernels):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    execute("1", "2")
    for path in sorted((tmp_path / "run/notebooks").glob("*.ipynb")):
        book = nbformat.read(path, nbformat.NO_CONVERT)
        assert NotebookNotary().check_signature(book)
        book.cells[-1].source = "3"
        assert not NotebookNotary().check_signature(book)


def test_a_notebook_stays_unsigned_where_jupyter_cannot_write(tmp_path, monkeypatch):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "a.ipynb")
    (tmp_path / "jupyter").touch()  # a file where its folder belongs
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    headless.trust(tmp_path / "a.ipynb")


LOST = """
import pathlib
if not pathlib.Path({mark!r}).exists():
    pathlib.Path({mark!r}).touch()
    session = get_ipython().kernel.session
    send = session.send
    lost = lambda stream, m, *a, **k: None if m == "execute_reply" else send(stream, m, *a, **k)
    session.send = lost
"""


@pytest.fixture
def background_job():
    """Ctrl-C is ignored, as in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background_job", "bare_kernels")
def test_a_lost_reply_is_noticed_and_the_notebook_starts_again(execute, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "STALLED", 2)
    monkeypatch.setattr(watch, "AGAIN", 1)
    said = execute(LOST.format(mark=str(tmp_path / "mark")), "x = 1")
    assert any("was lost; it starts again" in line for line in said)
    assert re.fullmatch(r"\[2/2\] 02_fake: \d+ s", said[-1])


@pytest.mark.usefixtures("bare_kernels")
def test_a_cell_that_waits_in_silence_is_left_alone(execute, monkeypatch):
    monkeypatch.setattr(watch, "STALLED", 1)
    monkeypatch.setattr(watch, "AGAIN", 1)
    assert not any("lost" in line for line in execute("import time; time.sleep(8)"))


@pytest.mark.usefixtures("bare_kernels")
def test_a_kernel_that_dies_is_noticed_at_once_and_named(execute):
    began = time.monotonic()
    with pytest.raises(headless.NotebookError) as error:
        execute("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "pass")
    assert time.monotonic() - began < 60
    assert "01_fake.ipynb: cell 3 (`import os, signal`): its kernel died" in str(error.value)
    assert "SIGKILL" in str(error.value) and "out of memory" in str(error.value)


@pytest.mark.parametrize(
    "code, message",
    [
        ("import time; time.sleep(600)", "its kernel did not start within 2 s"),
        ("raise SystemExit(3)", "its kernel died while it started (exit status 3)"),
    ],
)
def test_a_kernel_that_never_starts_is_given_up(execute, tmp_path, monkeypatch, code, message):
    monkeypatch.setenv("JUPYTER_PATH", kernelspec(tmp_path / "jupyter", code))
    monkeypatch.setattr(headless, "START_LIMIT", 2)
    with pytest.raises(headless.NotebookError) as error:
        execute("pass")
    assert message in str(error.value) and error.value.status == 2


@pytest.mark.usefixtures("bare_kernels")
def test_ctrl_c_before_the_first_cell_goes_through_and_leaves_no_kernel(execute, monkeypatch):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(headless.papermill, "execute_notebook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute("pass", "pass")


def watch_of(tmp_path, **how) -> tuple[Watch, list[str], list[float]]:
    said, now = [], [1000.0]
    watch = Watch("[3/6] 03", tmp_path / "bar", said.append, clock=lambda: now[0], **how)
    cell = SimpleNamespace(source="# train\nmake()\nmore()", outputs=[])
    watch.cell_started(cell, 8)
    watch.terminal, watch.pid = False, os.getpid()
    return watch, said, now


def minutes(watch, now, n: int, each=lambda: None) -> None:
    for second in range(60 * n):
        now[0] += 1
        if second % 60 == 59:
            each()
        watch.tick()


def test_without_a_terminal_there_is_one_line_a_minute(tmp_path):
    watch, said, now = watch_of(tmp_path, left=lambda: 540.0)
    state = {"prefix": "lm", "n": 0, "total": 60, "initial": 0, "rate": 0.1, "elapsed": 1}

    def progress():
        state["n"] += 6
        (tmp_path / "bar").write_text(json.dumps(state | {"postfix": "loss=3.1"}))

    minutes(watch, now, 8, progress)
    assert len(said) == 8
    assert said[0] == "[3/6] 03 (9 min left in all): lm 6 of 60, 9 min left, loss=3.1"


def test_a_silent_cell_is_named_with_since_when_and_what_its_kernel_does(tmp_path):
    watch, said, now = watch_of(tmp_path)
    minutes(watch, now, 4)
    assert said[-1] == "[3/6] 03: cell 9 (`make()`)"
    minutes(watch, now, 3)
    assert re.fullmatch(
        r"\[3/6\] 03: cell 9 \(`make\(\)`\); no output or progress since \d\d:\d\d, 7 min ago; "
        r"its kernel uses \d+ % of a core and \d\.\d GB",
        said[-1],
    )
    watch.cell.outputs.append("text")
    minutes(watch, now, 2)
    assert said[-1] == "[3/6] 03: cell 9 (`make()`)"


LIVE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from suite.watch import Watch
from tests import ROOT
with Watch("[1/6] 01_toy", Path("none"), print) as watch:
    for i in range(3):
        watch.cell_started(SimpleNamespace(source="long_name_" * 9, outputs=[]), i)
        time.sleep(0.8)
print("done")
"""


def test_the_live_line_is_rewritten_in_place_and_fits_the_terminal():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", LIVE], stdout=theirs, env=env) as process:
        os.close(theirs)
        output = b""
        while b"done" not in output:
            output += os.read(ours, 4096)
    assert process.returncode == 0
    *drawn, last = output.decode().split("\r\x1b[2K")
    assert len(drawn) >= 4 and not any("\n" in line for line in drawn)
    assert all(len(line) <= 39 for line in drawn) and {"cell 1", "cell 3"} <= {
        found for line in drawn for found in re.findall(r"cell \d", line)
    }
    assert last.strip() == "done"


NAMES = ["text"] + [p.stem for p in headless.notebooks()]
GROWS = [
    "lm.train_tokens=20000000",
    "sae.activations=4000000",
    "sae.widths=[512,8192]",
    "corpus.train_tokens=99000000",
    "evaluation.tokens=1200000",
    "interpretability.tokens=400000",
    "last_mlp.sae.activations=8000000",
    "last_mlp.lm.train_tokens=9000000",
    "clamping.rows=99",
    "toy.preset=full",
]


@pytest.fixture
def unit_kernels(monkeypatch):
    monkeypatch.setattr(
        estimate,
        "KERNELS",
        {
            "python": lambda device: 5e-4,
            "pass": lambda device: 7e-8,
            "product": lambda device: 3e-3,
        },
    )


def of(*overrides, profile="laptop", folder="nowhere"):
    run = Run(settings.load(profile, overrides), Path(folder), stages.STAGES)
    return estimate.of_run(run, NAMES)


@pytest.mark.parametrize("override", GROWS)
def test_the_estimate_grows_with_the_settings(override, unit_kernels):
    less, more = of().seconds, of(override).seconds
    assert all(more[n] >= less[n] for n in NAMES) and sum(more.values()) > sum(less.values())
    assert all(0 < s < math.inf for s in more.values())


def test_what_is_made_takes_no_time(unit_kernels, tmp_path):
    (tmp_path / "language_model").mkdir()
    (tmp_path / "tokens").mkdir()
    whole, rest = of().seconds, of(folder=tmp_path).seconds
    assert rest["text"] == 0 and rest["02_activations"] < 10 < whole["02_activations"]
    assert rest["03_sae_training"] == whole["03_sae_training"]


def test_the_rest_is_corrected_by_what_was_measured():
    expected = estimate.Estimate({"a": 100.0, "b": 100.0, "c": 200.0})
    assert expected.left({}) == 400 and expected.left({"a": 100.0}) == 300
    assert expected.left({"a": 300.0}) == 600  # (300 + 100) / (100 + 100) times as long
    assert expected.left({"a": 300.0}, "b", 150.0) == 450
    assert expected.left({"a": 100.0}, "b", 300.0) == pytest.approx(200 * 500 / 300)  # late already


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_the_kernels_are_timed_within_seconds(profile):
    began = time.process_time()
    found = of(profile=profile)
    assert all(0 < s < math.inf for s in found.seconds.values())
    assert time.process_time() - began < 15 and "about" in found.summary()
