"""Two processes against one with the double batch: the same training, on differently drawn text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_lib import training
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.settings import SAESettings
from tests.test_training import ROWS, SyntheticHook

CHANGES = {"d_sae": 64, "activations": 120_000, "l1": 0.4, "buffer_rows": 50, "dead_window": 5000, "resampling_inputs": 2000, "log_every": 20, "lr": 3e-3}
ROOT = Path(__file__).parents[1]


def one_of_two(folder: str) -> None:
    """What each process of the test runs."""
    from sae_lib import distributed

    distributed.start()
    torch.set_num_threads(1)
    sae, summary = training.fit(SyntheticHook(), ROWS, SAESettings(**CHANGES, batch=50), 0, Path(folder) / "scratch", {})
    rank, _ = distributed.place()
    sae.save(Path(folder) / str(rank), {})
    (Path(folder) / str(rank) / "training.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    code = f"from tests.test_distributed import one_of_two; one_of_two({str(folder)!r})"
    (folder / "main.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(folder / "main.py")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_both_processes_end_with_the_same_weights(two):
    first, second = (SparseAutoencoder.load(two / rank) for rank in "01")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_loss_curve_is_that_of_one_process_with_the_double_batch(two, tmp_path):
    hook = SyntheticHook()
    sae, alone = training.fit(hook, ROWS, SAESettings(**CHANGES, batch=100), 0, tmp_path, {})
    summary = json.loads((two / "0" / "training.json").read_text())
    assert [p["step"] for p in summary["curve"]] == [p["step"] for p in alone["curve"]] and summary["activations"] == alone["activations"]
    for quantity in ("squared_error", "l1", "l0"):
        both, one = (torch.tensor([p[quantity] for p in s["curve"]]) for s in (summary, alone))
        assert ((both - one).abs() / one).mean() < 0.1, quantity
    assert abs(hook.recovered(SparseAutoencoder.load(two / "0")) - hook.recovered(sae)) < 0.15


def test_the_command_line_under_torchrun_makes_one_whole_artefact(small_overrides, tmp_path):
    """Both processes come to the same folders at once: one makes them, the other finds them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "sae_lib", "stage", "sae", "--profile", "smoke"]
    sets = [part for override in small_overrides for part in ("--set", override)]
    done = subprocess.run([*command, "--run", str(tmp_path / "run"), *sets], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SparseAutoencoder.load(tmp_path / "run/saes/bricken_2023").d_sae == 256
    assert done.stdout.count("sae: ") == 2
