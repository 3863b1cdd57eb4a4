"""Ctrl-C, and `kill -9` at random moments, then the same command: the weights are those of a run that was left alone, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from sae_lib.headless import ROOT

KILLS = 3
FILES = ("language_model/model.safetensors", "saes/bricken_2023/sae_weights.safetensors")


def start(folder, overrides, every=("lm.checkpoint_every=7", "sae.checkpoint_every=5")):
    command = [sys.executable, "-m", "sae_lib", "stage", "sae", "--profile", "smoke", "--run", str(folder)]
    sets = [part for override in [*overrides, *every] for part in ("--set", override)]
    return subprocess.Popen([*command, *sets], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_after(process, folder, checkpoints: int, seconds: float) -> bool:
    """`kill -9` once so many new checkpoints have been seen, and a moment later; whether it was still running."""
    steps = lambda: {(p.parent.name, p.name) for p in folder.rglob("step-*.json")}  # noqa: E731
    before, seen = steps() if folder.exists() else set(), set()
    while process.poll() is None and len(seen) < checkpoints:
        seen |= steps() - before
        time.sleep(0.002)
    time.sleep(seconds)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


@pytest.mark.parametrize("seed", [0])
def test_killed_runs_end_with_the_same_weights(small_overrides, tmp_path, seed):
    whole, chance = start(tmp_path / "a" / "whole", small_overrides), random.Random(seed)
    assert whole.wait(600) == 0, whole.stdout.read()
    killed = sum(kill_after(start(tmp_path / "b" / "broken", small_overrides), tmp_path / "b" / "broken", chance.randint(1, 4), chance.uniform(0, 0.2)) for _ in range(KILLS))
    last = start(tmp_path / "b" / "broken", small_overrides)
    assert killed and last.wait(600) == 0, last.stdout.read()
    for file in FILES:
        assert (tmp_path / "a" / "whole" / file).read_bytes() == (tmp_path / "b" / "broken" / file).read_bytes(), f"{file} differs after {killed} kills (seed {seed})"
    assert not list((tmp_path / "b" / "broken").rglob(".*.partial")) and not list((tmp_path / "b" / "broken").rglob("step-*"))


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(small_overrides, tmp_path):
    process = start(tmp_path, small_overrides, ("lm.checkpoint_every=1000000", "sae.checkpoint_every=1000000", "lm.train_tokens=100000000"))
    deadline = time.monotonic() + 300
    output = ""
    while "language model:" not in output and time.monotonic() < deadline:
        output += process.stdout.read(1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "the same command goes on" in rest, output + rest
    assert len(list((tmp_path / ".language_model.checkpoints").glob("step-*.safetensors"))) == 1
