"""Two processes against one with the double batch: the same training, on differently drawn text."""

import atexit
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sae_lib.checkpoints import CheckpointFolder, drop, steps
from sae_lib.errors import SettingsError
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine import distributed
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.engine.split import SplitFeatures
from sae_lib.sae.recipes import BRICKEN_2023
from sae_lib.settings import SAESettings
from tests.test_training import ROWS, VOCABULARY, SyntheticHook

HELD_OUT = np.random.default_rng(1).integers(0, VOCABULARY, (64, 32))

PLAIN = {
    "d_sae": 64,
    "activations": 120_000,
    "l1": 0.4,
    "buffer_rows": 50,
    "dead_window": 5000,
    "resampling_inputs": 2000,
    "log_every": 20,
    "lr": 3e-3,
}
CASES = {
    "plain": PLAIN,
    "harsh": PLAIN
    | {"activations": 40_000, "dead_window": 2000, "l1": 4.0, "lr": 0.02},  # features die
    "batchtopk": PLAIN | {"activations": 80_000, "recipe": "batchtopk", "l1": None, "k": 2},
    "clipped": PLAIN | {"activations": 80_000, "recipe": "april_2024", "l1": 1.0},
    "stopping": PLAIN | {"lr": 0.05, "patience": 2, "check_every": 25, "resampling": False},
}
SPLIT_PLAIN = {
    "d_sae": 64,
    "batch": 50,
    "activations": 1500,
    "buffer_rows": 49,
    "log_every": 1,
    "resampling": False,
    "dead_window": 200,
    "checkpoint_every": 10,
}
SPLIT = {
    "standard": {},
    "topk": {
        "recipe": "topk",
        "k": 3,
        "dead_window": 50,
    },  # with dead features, and the loss that is for them
    "batchtopk": {"recipe": "batchtopk", "k": 3},
    "jumprelu": {"recipe": "jumprelu"},
}
CLIPPED = {"recipe": "april_2024"}
ROOT = Path(__file__).parents[1]
X = torch.randn(40, 16, generator=torch.Generator().manual_seed(5))


def autoencoder() -> SparseAutoencoder:
    return training.initialise(BRICKEN_2023, X.mean(0), 64, 0)


def one_of_two(folder: str) -> None:
    """What each process of the test runs."""
    ended = Path(folder) / f"ended-{os.environ['RANK']}"  # functions run last in, first out
    atexit.register(lambda: ended.write_text(str(not dist.is_initialized())))
    distributed.start()
    torch.set_num_threads(1)
    rank, size = distributed.rank_and_world_size()
    for case, changes in CASES.items():
        out, heldout = Path(folder) / case / str(rank), HELD_OUT if "patience" in changes else None
        sae, summary = training.fit(
            SyntheticHook(),
            ROWS,
            SAESettings(**changes, batch=50),
            0,
            CheckpointFolder(Path(folder) / "scratch" / case),
            heldout=heldout,
        )
        sae.save(out, {})
        (out / "training.json").write_text(json.dumps(summary))
    split_features(Path(folder) / "split", rank)
    sae = autoencoder()
    gradients(sae, X[rank::size], BRICKEN_2023.objective(16))
    distributed.average_gradients(list(sae.parameters()))
    save_file(
        {name: p.grad for name, p in sae.named_parameters()},
        Path(folder) / f"gradients-{rank}.safetensors",
    )
    together = torch.tensor([distributed.any_process(rank == 1), distributed.any_process(False)])
    save_file({"together": together}, Path(folder) / f"flags-{rank}.safetensors")


def split_features(folder: Path, rank: int) -> None:
    """The cases of `SPLIT`: the first is trained again from where both parts had a checkpoint."""
    distributed.TEAM = SplitFeatures()
    for case, changes in SPLIT.items():
        store = CheckpointFolder(folder / "scratch" / case)
        settings = SAESettings(**SPLIT_PLAIN | changes)
        sae, summary = training.fit(SyntheticHook(), ROWS, settings, 0, store)
        if rank == 0:
            sae.save(folder / case, {})
            (folder / case / "training.json").write_text(json.dumps(summary))
    if rank == 1:  # as if it had died while the other wrote its last checkpoint
        part = folder / "scratch" / "standard" / "part-1-of-2"
        drop(part, steps(part)[-1:])
    store = CheckpointFolder(folder / "scratch" / "standard")
    settings = SAESettings(**SPLIT_PLAIN | SPLIT["standard"])
    sae, summary = training.fit(SyntheticHook(), ROWS, settings, 0, store)
    if rank == 0:
        sae.save(folder / "again", {})
    with pytest.raises(SettingsError, match="grad_clip cannot be split"):
        training.fit(SyntheticHook(), ROWS, SAESettings(**SPLIT_PLAIN | CLIPPED), 0)
    distributed.TEAM = distributed.Replicas()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    code = f"from tests.test_distributed import one_of_two; one_of_two({str(folder)!r})"
    (folder / "main.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(folder / "main.py"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def summary_of(two, case, rank=0):
    return json.loads((two / case / str(rank) / "training.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_both_processes_end_with_the_same_weights(two, case):
    first, second = (SparseAutoencoder.load(two / case / rank) for rank in "01")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert summary_of(two, case, 0)["resampling"] == summary_of(two, case, 1)["resampling"]


def test_features_that_died_in_all_processes_are_resampled(two):
    assert sum(event["resampled"] for event in summary_of(two, "harsh")["resampling"]) > 0


def test_the_averaged_gradient_is_that_of_the_double_batch(two):
    sae = autoencoder()
    gradients(sae, X, BRICKEN_2023.objective(16))
    for rank in "01":
        for name, averaged in load_file(two / f"gradients-{rank}.safetensors").items():
            torch.testing.assert_close(
                averaged, dict(sae.named_parameters())[name].grad, rtol=1e-5, atol=1e-6
            )


def test_a_flag_of_one_process_is_up_in_all(two):
    assert [load_file(two / f"flags-{rank}.safetensors")["together"].tolist() for rank in "01"] == [
        [True, False]
    ] * 2


def test_the_process_group_ends_before_the_interpreter(two):
    assert [(two / f"ended-{rank}").read_text() for rank in "01"] == ["True", "True"]


def test_both_stop_early_at_the_same_step(two):
    first, second = (summary_of(two, "stopping", rank) for rank in (0, 1))
    assert first["activations"] == second["activations"] < 120_000
    assert [c["step"] for c in first["checks"]] == [c["step"] for c in second["checks"]]


@pytest.mark.parametrize("case", ["plain", "batchtopk", "clipped"])
def test_the_loss_curve_is_that_of_one_process_with_the_double_batch(two, tmp_path, case):
    hook = SyntheticHook()
    sae, alone = training.fit(hook, ROWS, SAESettings(**CASES[case], batch=100), 0)
    summary = summary_of(two, case)
    assert [p["step"] for p in summary["curve"]] == [p["step"] for p in alone["curve"]] and summary[
        "activations"
    ] == alone["activations"]
    for quantity in ("squared_error", "l1", "l0"):
        both, one = (torch.tensor([p[quantity] for p in s["curve"]]) for s in (summary, alone))
        assert abs(both.mean() - one.mean()) / one.mean() < 0.1, quantity
        assert case == "batchtopk" or ((both - one).abs() / one).mean() < 0.1, (
            quantity
        )  # its small errors differ from batch to batch
    assert (
        abs(hook.recovered(SparseAutoencoder.load(two / case / "0")) - hook.recovered(sae)) < 0.15
    )


@pytest.mark.parametrize("case", SPLIT)
def test_split_features_are_trained_like_those_of_one_process(two, case):
    alone, summary = training.fit(
        SyntheticHook(), ROWS, SAESettings(**SPLIT_PLAIN | SPLIT[case]), 0
    )
    both = json.loads((two / "split" / case / "training.json").read_text())
    for quantity in ("squared_error", "l1", "l0", "silent"):
        ours, expected = ([p[quantity] for p in s["curve"]] for s in (both, summary))
        assert ours == pytest.approx(expected, rel=1e-5), quantity
    assert both["curve"][-1]["silent"] > 0 or case != "topk"
    whole = SparseAutoencoder.load(two / "split" / case).state_dict()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-4, atol=1e-4)


def test_split_features_go_on_from_the_newest_step_that_all_have(two):
    one, other = (SparseAutoencoder.load(two / "split" / name) for name in ("standard", "again"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_another_stage_is_refused(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "--",
        "suite",
        "stage",
        "lm",
        "--profile",
        "smoke",
        "--run",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        done.returncode != 0
        and "only the stage sae runs in several processes" in done.stdout + done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_the_command_line_under_torchrun_makes_one_whole_artefact(small_overrides, tmp_path):
    """Both processes come to the same folders at once: one makes them, the other finds them."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "--",
        "suite",
        "stage",
        "sae",
        "--profile",
        "smoke",
    ]
    sets = [part for override in small_overrides for part in ("--set", override)]
    done = subprocess.run(
        [*command, "--run", str(tmp_path / "run"), *sets],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SparseAutoencoder.load(tmp_path / "run/saes/bricken_2023").d_sae == 256
    assert done.stdout.count("sae: ") == 2
