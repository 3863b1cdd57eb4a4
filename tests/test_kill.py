"""Ctrl-C, and `kill -9` at random moments, then the same command: the weights are those of a run
that was left alone, bit for bit.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT

FILES = ("language_model/model.safetensors", "saes/bricken_2023/sae_weights.safetensors")


def hear_interrupts() -> None:
    """A shell's background job is started with SIGINT ignored, and the tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder, overrides, every=("lm.checkpoint_every=7", "sae.checkpoint_every=5")):
    command = [
        sys.executable,
        "-m",
        "suite",
        "stage",
        "sae",
        "--profile",
        "smoke",
        "--run",
        str(folder),
    ]
    sets = [part for override in [*overrides, *every] for part in ("--set", override)]
    return subprocess.Popen(
        [*command, *sets],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_interrupts,
    )


def kill_after(process, folder, training: str, checkpoints: int, seconds: float) -> bool:
    """`kill -9` once so many new checkpoints of that training have been seen, and a moment
    later; whether it was still training.
    """
    there = lambda: {p.name for p in folder.rglob("step-*.json") if training in p.parent.name}  # noqa: E731
    before, seen = there() if folder.exists() else set(), set()
    while process.poll() is None and len(seen) < checkpoints:
        seen |= there() - before
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return bool(there())


def read_until(process, text: str) -> str:
    """What the process has printed, a second after that text."""
    output, deadline = "", time.monotonic() + 300
    while text not in output and time.monotonic() < deadline and (more := process.stdout.read(1)):
        output += more
    time.sleep(1)
    return output


def test_killed_runs_end_with_the_same_weights(small_run, small_overrides, tmp_path):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    trainings = ("language_model", "language_model", "bricken_2023")
    for attempt in range(3):  # a training may end before the kill
        folder = tmp_path / f"broken{attempt}"
        if all(
            kill_after(
                start(folder, small_overrides),
                folder,
                training,
                chance.randint(1, 3),
                chance.uniform(0, 0.1),
            )
            for training in trainings
        ):
            break
    else:
        pytest.fail(f"no kill within each training (seed {seed})")
    last = start(folder, small_overrides)
    assert last.wait(600) == 0, last.stdout.read()
    for file in FILES:
        whole = (small_run.folder / file).read_bytes()
        assert whole == (folder / file).read_bytes(), f"{file} differs (seed {seed})"
    assert not list(folder.rglob(".*.partial")) and not list(folder.rglob("step-*"))


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(small_overrides, tmp_path):
    process = start(
        tmp_path,
        small_overrides,
        (
            "lm.checkpoint_every=1000000",
            "sae.checkpoint_every=1000000",
            "lm.train_tokens=100000000",
        ),
    )
    output = read_until(process, "language model:")
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "run the same command to continue" in rest, output + rest
    assert len(list((tmp_path / ".language_model.checkpoints").glob("step-*.safetensors"))) == 1


def test_ctrl_c_in_the_autoencoder_s_training_does_the_same(small_run, small_overrides, tmp_path):
    shutil.copytree(
        small_run.folder,
        tmp_path / "runs" / "r",
        ignore=shutil.ignore_patterns("settings.yaml", "saes", "results", "figures", "features"),
    )
    process = start(
        tmp_path / "runs" / "r",
        small_overrides,
        ("sae.checkpoint_every=1000000", "sae.activations=100000000"),
    )
    output = read_until(process, "bricken_2023:")
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "bricken_2023: interrupted; step" in rest, output + rest
    assert len(list((tmp_path / "runs" / "r" / "saes").rglob("step-*.safetensors"))) == 1


def test_ctrl_c_reaches_a_training_inside_a_notebook(small_overrides, tmp_path):
    overrides = [*small_overrides, "lm.checkpoint_every=10", "lm.train_tokens=100000000"]
    command = [
        sys.executable,
        "-m",
        "suite",
        "run",
        "--profile",
        "smoke",
        "--only",
        "02",
        "--run",
        str(tmp_path),
        *(part for o in overrides for part in ("--set", o)),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    steps = lambda: sorted(  # noqa: E731
        int(p.stem.removeprefix("step-"))
        for p in (tmp_path / ".language_model.checkpoints").glob("step-*.json")
    )  # noqa: E731
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not steps():
        time.sleep(0.05)
    at = steps()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=90)[0]
    assert (
        process.returncode == 130
        and "02_activations: interrupted" in output
        and "Traceback" not in output
    ), output
    assert (
        at
        and steps()[-1] > at[-1]
        and json.loads((tmp_path / "notebooks" / "02_activations.ipynb").read_text())["cells"]
    )
