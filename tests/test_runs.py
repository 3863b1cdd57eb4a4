"""Run folders: whole artefacts or none, and a clear word when one is damaged or from other
settings.
"""

import json

import pytest

from sae_lib.errors import ArtefactError
from suite import runs, stages


def make(folder, settings, content="x" * 100):
    with runs.writing(folder, settings) as out:
        (out / "data.bin").write_text(content)


def test_an_artefact_is_ready_once_written(tmp_path):
    folder, settings = tmp_path / "tokens", {"corpus": {"source": "files:a", "tokens": 5}}
    assert not runs.is_made(folder, settings)
    make(folder, settings)
    assert runs.is_made(folder, settings)


def test_a_failing_stage_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.writing(tmp_path / "tokens", {}) as out:
        (out / "half").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_named(tmp_path):
    make(tmp_path / "tokens", {"corpus": {"source": "files:a", "tokens": 5}})
    with pytest.raises(ArtefactError, match=r"corpus.tokens: 5 in the folder, 6 now.*--run"):
        runs.is_made(tmp_path / "tokens", {"corpus": {"source": "files:a", "tokens": 6}})


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "record"])
def test_damage_is_found_and_the_file_named(tmp_path, damage):
    folder = tmp_path / "tokens"
    make(folder, {"a": 1})
    data = folder / "data.bin"
    if damage == "truncate":
        data.write_text("x" * 99)
    elif damage == "flip":
        data.write_text("x" * 99 + "y")
    elif damage == "delete":
        data.unlink()
    else:
        (folder / runs.RECORD).write_text("{")
    with pytest.raises(ArtefactError, match=runs.RECORD if damage == "record" else "data.bin"):
        runs.is_made(folder, {"a": 1})


def test_a_run_folder_of_other_settings_is_refused(tmp_path):
    stages.open_run("smoke", tmp_path / "run", ["sae.d_sae=64"]).claim()
    with pytest.raises(ArtefactError, match="sae.d_sae: 64 in the folder, 128 now"):
        stages.open_run("smoke", tmp_path / "run", ["sae.d_sae=128"])


def test_overrides_get_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, changed = stages.open_run("smoke"), stages.open_run("smoke", "", ["sae.d_sae=64"])
    assert (
        plain.folder.name == "smoke"
        and changed.folder.name.startswith("smoke-")
        and changed.folder != plain.folder
    )


def test_results_are_plain_json_and_know_what_they_were_made_from(tmp_path):
    import numpy as np

    run = stages.open_run("smoke", tmp_path / "run")
    run.save_results("x", {"a": np.float32(0.1), "b": np.arange(3), "c": float("nan")}, {"seed": 0})
    assert json.loads((tmp_path / "run/results/x.json").read_text())["a"] == pytest.approx(0.1)
    assert run.saved_results("x", {"seed": 0}) == {
        "a": pytest.approx(0.1),
        "b": [0, 1, 2],
        "c": None,
    }
    assert run.saved_results("x", {"seed": 1}) is None


def is_made(run, folder, settings) -> bool:
    with run.making(folder, settings) as missing:
        return not missing


def test_the_same_artefact_is_taken_over_from_a_run_beside_it(tmp_path):
    one, two = (
        stages.open_run("smoke", tmp_path / "one"),
        stages.open_run("smoke", tmp_path / "two", ["sae.d_sae=64"]),
    )
    one.claim()
    make(one.folder / "tokens", {"a": 1})
    assert (
        is_made(two, two.folder / "tokens", {"a": 1})
        and (two.folder / "tokens/data.bin").read_text() == "x" * 100
    )
    assert not is_made(two, two.folder / "language_model", {"a": 1})
    three = stages.open_run("smoke", tmp_path / "three")
    assert not is_made(three, three.folder / "tokens", {"a": 2})
    (one.folder / "tokens/data.bin").unlink()
    assert runs.is_made(two.folder / "tokens", {"a": 1}), "each run folder stays whole by itself"


def test_a_damaged_artefact_is_not_taken_over(tmp_path):
    one, two = (
        stages.open_run("smoke", tmp_path / "one"),
        stages.open_run("smoke", tmp_path / "two"),
    )
    one.claim()
    make(one.folder / "tokens", {"a": 1})
    (one.folder / "tokens/data.bin").write_text("short")
    assert not is_made(two, two.folder / "tokens", {"a": 1})
