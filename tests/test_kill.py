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


@pytest.mark.parametrize("seed", [0])
def test_killed_runs_end_with_the_same_weights(small_overrides, tmp_path, seed):
    began = time.monotonic()
    whole = start(tmp_path / "a" / "whole", small_overrides)
    assert whole.wait(600) == 0, whole.stdout.read()
    seconds, chance = time.monotonic() - began, random.Random(seed)
    killed = 0
    for _ in range(KILLS):
        broken = start(tmp_path / "b" / "broken", small_overrides)
        try:
            broken.wait(seconds * chance.uniform(0.4, 0.9))
            break  # done before its time came
        except subprocess.TimeoutExpired:
            broken.send_signal(signal.SIGKILL)
            broken.wait()
            killed += 1
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
