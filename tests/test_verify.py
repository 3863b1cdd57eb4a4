"""What the repository publishes can be checked: the report's lines against its results, and ten of
its numbers against the published weights.
"""

import json
import shutil
import sys

import numpy as np
import pytest

from sae_lib.errors import ArtefactError
from sae_lib.files import RECORD, sha256
from suite import __main__, project, stages, verify
from suite.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A `smoke` run of installed text with its evaluation."""
    overrides = ["sae.compare=[]", "sae.widths=[]", "sae.resampling_inputs=8192"]
    run = stages.open_run("smoke", tmp_path_factory.mktemp("runs") / "smoke", overrides)
    run.results("evaluation")
    return run


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    assert verify.publish_weights(run, root) == root / "report" / "weights"
    shutil.copytree(run.results_folder, root / "report" / "results")
    return root


@pytest.fixture
def checkout(published, tmp_path):
    return shutil.copytree(published, tmp_path / "checkout")


def rewrite(folder, name: str, data: bytes) -> None:
    """Change a published file as a careful forger does: with its hash."""
    path = folder / name
    path.write_bytes(data)
    record = json.loads((folder / RECORD).read_text())
    stat = path.stat()
    record["files"][name] = [stat.st_size, sha256(path, stat.st_size, stat.st_mtime_ns)]
    (folder / RECORD).write_text(json.dumps(record))


def test_the_held_out_tokens_come_out_again_without_the_run(run, checkout):
    folder, tokens = checkout / verify.WEIGHTS, run.get("tokens")
    documents = json.loads((folder / "heldout.json").read_text())
    rows = verify.heldout_ids(run.settings, documents, tokens.tokenizer)
    assert np.array_equal(rows, tokens.rows("heldout", run.settings.lm.context))


def test_ten_numbers_hold(checkout):
    found = list(verify.lines(checkout, seed=1))
    assert len(found) == 10 and all(holds for holds, _ in found), found
    assert all(line.startswith("[OK]") for _, line in found)


@pytest.mark.parametrize("measure", ["ce_spliced", "fvu", "kl", "l0_mean"])
def test_a_tampered_number_is_found(run, checkout, monkeypatch, measure):
    results = Run(run.settings, checkout / "report", {})
    values, main = results.load_results("evaluation"), run.settings.sae.recipe
    values[main][measure] *= 1 + 1.5 * verify.TOLERANCE[measure]
    results.save_results("evaluation", values)  # with its hash
    monkeypatch.setattr(verify, "DRAWN", 100)  # all of them
    wrong = [line for holds, line in verify.lines(checkout, seed=1) if not holds]
    assert len(wrong) == 1 and wrong[0].startswith(f"[FAIL] {measure} of {main}: ")


def test_the_draw_is_the_seeds(checkout):
    drawn = {
        tuple(line.split(":")[0] for _, line in verify.lines(checkout, seed)) for seed in (1, 1, 2)
    }
    assert len(drawn) == 2


def test_what_is_damaged_is_named(checkout, run):
    folder = checkout / verify.WEIGHTS
    weights = folder / "autoencoder" / "sae_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtefactError, match="sae_weights.safetensors is damaged"):
        next(verify.lines(checkout, 1))


def test_text_that_changed_is_named(checkout):
    folder = checkout / verify.WEIGHTS
    documents = json.loads((folder / "heldout.json").read_text())
    documents[3][2] = "0" * 64
    rewrite(folder, "heldout.json", json.dumps(documents).encode())
    with pytest.raises(ArtefactError, match=rf"1 of the {len(documents)} held-out documents"):
        next(verify.lines(checkout, 1))


def test_nothing_published_is_said_in_a_line(tmp_path):
    with pytest.raises(ArtefactError, match="report/weights is missing.*--publish"):
        next(verify.lines(tmp_path, 1))


def test_weights_that_are_too_large_are_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "LARGEST", 1000)
    assert verify.publish_weights(run, tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tampered", [False, True])
def test_the_command_says_the_seed_and_its_status(run, checkout, monkeypatch, capsys, tampered):
    if tampered:
        results = Run(run.settings, checkout / "report", {})
        values = results.load_results("evaluation")
        for name in values[run.settings.sae.recipe], values["neurons"]:
            name |= {
                m: 2 * name[m] for m in verify.TOLERANCE if isinstance(name.get(m), float | int)
            }
        results.save_results("evaluation", values)
    monkeypatch.setattr(project, "root", lambda: checkout)
    monkeypatch.setattr(sys, "argv", ["suite", "verify", "--seed", "7"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == int(tampered)
    lines = capsys.readouterr().out.splitlines()
    assert "--seed 7" in lines[0] and len(lines) == 11
