"""Two processes on one run folder: one writes, the other waits, or is refused."""

import fcntl
import os
import signal
import subprocess
import sys
import time

from sae_lib import files
from suite import locks
from tests import ROOT
from tests.test_attacks.attack import assert_refused
from tests.test_attacks.conftest import arguments

MAKER = """
import sys, time
from pathlib import Path
from sae_lib.settings import load
from suite import runs
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
run = runs.Run(load("smoke"), folder, {})
with run.making(folder / "tokens", {"a": 1}) as missing:
    if missing:
        with runs.writing(folder / "tokens", {"a": 1}) as out:
            (out / "data").write_text("x" * 1000)
            with open(log, "a") as f:
                f.write("made\\n")
            while len(sys.argv) > 3 and not Path(sys.argv[3]).exists():
                time.sleep(0.02)
assert runs.is_made(folder / "tokens", {"a": 1})
"""


def start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_four_processes_make_one_artefact(tmp_path):
    log = tmp_path / "log"
    given = ("-c", MAKER, str(tmp_path / "run"), str(log), str(tmp_path / "go"))
    four = [start(*given) for _ in range(4)]
    wait_for(log)
    time.sleep(2)  # for the others to come
    (tmp_path / "go").touch()
    said = [p.communicate(timeout=60)[1] for p in four]
    assert [p.returncode for p in four] == [0] * 4, said
    assert log.read_text() == "made\n", "only one of them made it"
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"tokens", "settings.yaml"}


def test_the_second_process_says_whom_it_waits_for(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start("-c", MAKER, str(run), str(log), str(tmp_path / "go"))
    wait_for(log)
    second = start("-c", MAKER, str(run), str(log))
    said = second.stderr.readline()
    assert f"waiting for process {first.pid} on " in said and " since 20" in said
    (tmp_path / "go").touch()
    assert second.communicate(timeout=60)[1] == "" and log.read_text() == "made\n"
    assert first.wait(60) == second.returncode == 0


def test_a_killed_process_leaves_a_lock_and_scratch_that_the_next_one_takes_over(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start("-c", MAKER, str(run), str(log), "never")
    wait_for(log)
    assert not any(run.glob("tokens")) and len(list(run.glob(".tokens.*.partial"))) == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start("-c", MAKER, str(run), str(log))
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 0 and f"process {first.pid} on " in said, said
    assert "ended without finishing" in said
    assert {p.name for p in run.iterdir()} == {"tokens", "settings.yaml"}


def test_two_runs_of_other_settings_do_not_share_a_new_folder(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start("-c", MAKER, str(run), str(log), str(tmp_path / "go"))
    wait_for(log)
    other = MAKER.replace('load("smoke")', 'load("smoke", ["seed=5"])')
    second = start("-c", other, str(run), str(log))
    assert "waiting for" in second.stderr.readline()
    (tmp_path / "go").touch()
    said = second.communicate(timeout=60)[1]
    assert first.wait(60) == 0 and second.returncode == 1 and "seed: 0 in" in said, said


def test_a_second_headless_run_ends_at_once(tmp_path, text_folder):
    code = (
        "import sys, time; from pathlib import Path; from suite import locks\n"
        "with locks.locked(Path(sys.argv[1]), locks.HEADLESS): time.sleep(600)"
    )
    run = tmp_path / "run"
    first = start("-c", code, str(run))
    try:
        wait_for(run / locks.HEADLESS)
        time.sleep(0.5)
        assert_refused(arguments("run", run, text_folder), tmp_path, f"process {first.pid} on ")
    finally:
        first.kill()
        first.communicate()


def test_the_lock_is_re_entrant_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "run"
    with locks.locked(folder), locks.locked(folder):
        held = (folder / locks.WRITER).read_text()
        assert held.startswith(f"process {os.getpid()} on ")
        busy = start(
            "-c",
            "import sys; from pathlib import Path; from suite import locks\n"
            "with locks.locked(Path(sys.argv[1]), wait=False): pass",
            str(folder),
        )
        assert f"process {os.getpid()} on " in busy.communicate(timeout=60)[1]
        assert busy.returncode == 1
    assert not (tmp_path / "new").exists()


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(3):
        with locks.locked(tmp_path):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1


def test_scratch_of_the_living_stays(tmp_path):
    mine = files.scratch_name(tmp_path / "x")
    mine.write_text("being written")
    elsewhere = tmp_path / ".x.other-host.1.abcdef.partial"
    elsewhere.write_text("being written elsewhere")
    with locks.locked(tmp_path):
        pass
    assert mine.exists() and elsewhere.exists()
