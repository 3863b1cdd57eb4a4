"""The whole job as its user starts it: one command, the report at its end, and bad input
answered in one line.
"""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch

from sae_lib.errors import SettingsError
from suite import headless, project, stages
from tests import ROOT
from tests.test_attacks.attack import assert_refused, run_command


def sae_lib(*arguments, **environment):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "400"} | environment
    env.pop("LOKY_MAX_CPU_COUNT", None)  # as its user has it: rules are learned on all cores
    return subprocess.run(
        [sys.executable, "-m", "suite", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def stage(name, folder, *more):
    return ["stage", name, "--profile", "smoke", "--run", str(folder), *more]


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = sae_lib("run", "--profile", "smoke", "--run", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_one_command_ends_with_a_report(smoke_run):
    folder, done = smoke_run
    assert f"report: {folder}/report.md" in done.stdout
    report = (folder / "report.md").read_text()
    results = json.loads((folder / "results/evaluation.json").read_text())
    assert f"{results['bricken_2023']['l0_mean']:.1f}" in report and len(report) > 5000


def test_every_notebook_ran_and_left_a_log(smoke_run):
    folder, _ = smoke_run
    for notebook in headless.notebooks():
        executed = nbformat.read(folder / "notebooks" / notebook.name, 4)
        assert all(c.get("execution_count") for c in executed.cells if c.cell_type == "code"), (
            notebook.name
        )
        assert (folder / "notebooks" / f"{notebook.stem}.log").exists()


def test_every_notebook_with_figures_carries_plotly(smoke_run):
    """Each has a kernel of its own, so that none relies on the plotly.js that an earlier one
    showed.
    """
    folder, _ = smoke_run
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        text = path.read_text()
        assert "Plotly.newPlot" in text and "plotly.js v" in text, path.name


def test_each_resampling_is_recorded_and_off_where_it_is_off(smoke_run):
    folder, _ = smoke_run
    events = {
        name: json.loads((folder / f"saes/{name}/training.json").read_text())["resampling"]
        for name in ("bricken_2023", "bricken_2023-no_resampling", "ward_2024")
    }
    assert len(events["bricken_2023"]) == 3 and events["bricken_2023-no_resampling"] == []
    keys = {"step", "dead", "resampled", "squared_error", "l0"}
    assert all(keys == set(e) for e in events["bricken_2023"])


def test_a_finished_stage_is_not_done_again(smoke_run):
    folder, _ = smoke_run
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/**/made_from.json")}
    done = run_command(stage("features", folder), folder)
    assert done.status == 0, done.err
    assert before
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*/**/made_from.json")}


def test_other_settings_in_the_same_folder_are_refused(smoke_run):
    folder, _ = smoke_run
    done = run_command(stage("sae", folder, "--set", "sae.d_sae=100"), folder)
    assert done.status == 2
    assert "sae.d_sae: 256 in the folder, 100 now" in done.err and "--run" in done.err


def test_a_truncated_artefact_is_refused_by_name(smoke_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(smoke_run[0], folder)
    weights = folder / "saes/bricken_2023/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run_command(stage("sae", folder), folder)
    assert done.status == 2 and str(weights) in done.err and "damaged" in done.err


BAD = {
    "missing corpus": (["--set", "corpus=files:no/such/folder"], "no/such/folder"),
    "empty corpus": (["--set", "corpus=files:{tmp}/empty.txt"], "empty.txt"),
    "binary corpus": (["--set", "corpus=files:{tmp}/binary.txt"], "binary.txt"),
    "not UTF-8": (["--set", "corpus=files:{tmp}/latin.txt"], "latin.txt"),
    "malformed JSON line": (["--set", "corpus=files:{tmp}/bad.jsonl"], "line 2"),
    "too small": (["--set", "corpus=files:{tmp}/small.txt"], "text"),
    "unknown source": (["--set", "corpus=ftp:x"], "installation"),
    "unknown recipe": (["--set", "sae.recipe=magic"], "bricken_2023"),
    "d_sae": (["--set", "sae.d_sae=0"], "sae.d_sae"),
    "unknown hook": (["--set", "sae.hook_name=blocks.0.mlp.hook_pots"], "blocks.0.mlp.hook_post"),
    "unknown device": (["--set", "device=gpu"], "cpu"),
    "hook of the deep model": (["--set", "last_mlp.lm.n_layer=2"], "blocks.1.mlp.hook_post"),
    "unknown setting": (["--set", "sae.widht=3"], "sae.widht"),
    "unknown profile": (["--profile", "desktop"], "smoke, laptop, runpod"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "latin.txt").write_bytes("Übergrößenträger\n".encode("latin-1") * 50)
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "small.txt").write_text("a few words\n")
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line_and_status_2(case, bad_files, tmp_path):
    arguments, named = BAD[case]
    arguments = [a.format(tmp=bad_files) for a in arguments]
    if "--profile" not in arguments:
        arguments += ["--profile", "smoke"]
    assert_refused(["stage", "sae", "--run", str(tmp_path / "run"), *arguments], tmp_path, named)


def test_a_process_ends_with_one_clear_line_and_status_2(tmp_path):
    hub = ("--set", "corpus=hub:monology/pile-uncopyrighted")  # which cannot be reached
    done = sae_lib("stage", "sae", "--run", tmp_path / "run", "--profile", "smoke", *hub)
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ") and "hub" in message and "Traceback" not in done.stderr
    made = [p for p in (tmp_path / "run").glob("*") if p.is_dir()]
    assert not made, f"half-written: {made}"


def test_only_names_the_notebooks_there_are(tmp_path):
    assert_refused(["run", "--only", "77", "--run", str(tmp_path / "a")], tmp_path, "77")
    with pytest.raises(SettingsError, match="01_toy_superposition"):
        headless.notebooks("99")


def test_a_failing_cell_stops_the_run_with_its_notebook_cell_and_error(
    tmp_path, monkeypatch, small_run, small_overrides
):
    (tmp_path / "notebooks").mkdir()
    for name, source in (
        ("01_fine", "x = 1"),
        ("02_broken", "y = 1\n1 / 0"),
        ("03_never", "z = 1"),
    ):
        cells = [
            nbformat.v4.new_code_cell(
                'profile: str = "smoke"\nrun_dir: str = ""\noverrides: list = []',
                metadata={"tags": ["parameters"]},
            )
        ]
        notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(source)])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(project, "find", lambda: tmp_path)
    for lines in ("START", "MEANWHILE"):  # kernels without the library, whose import takes seconds
        monkeypatch.setattr(headless, lines, "pass")
    shutil.copytree(small_run.path("tokens"), tmp_path / "run" / "tokens")
    run, said = stages.open_run("smoke", tmp_path / "run", small_overrides), []
    with pytest.raises(
        headless.NotebookError, match=r"02_broken.ipynb: cell \d+ .*y = 1.*ZeroDivisionError"
    ):
        headless.run_notebooks(run, [], "", said.append)
    assert (tmp_path / "run/notebooks/02_broken.ipynb").exists() and not (
        tmp_path / "run/notebooks/03_never.ipynb"
    ).exists()
    assert any("01_fine: " in line for line in said)


def test_notebooks_are_committed_clean():
    for path in headless.notebooks():
        notebook = nbformat.read(path, 4)
        code = [c for c in notebook.cells if c.cell_type == "code"]
        assert not any(c.outputs or c.execution_count for c in code), f"{path.name} has outputs"
        assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1, (
            f"{path.name}: one cell tagged parameters"
        )
        assert all(len(c.source.splitlines()) <= 30 for c in code), (
            f"{path.name}: a cell of over 30 lines"
        )


@pytest.mark.parametrize(("profile", "threads"), [("smoke", 1), ("laptop", 2)])
def test_small_products_run_on_one_thread(tmp_path, profile, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        stages.open_run(profile, tmp_path / "run")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
