"""Run folders that are none, runs that are not there, and stages that are finished."""

from pathlib import Path

import pytest

from sae_lib.model import language_model
from sae_lib.sae import autoencoder
from tests import ROOT
from tests.test_attacks.attack import assert_refused, run_command
from tests.test_attacks.conftest import STAGES, arguments

NO_PLACE = {
    "the root": "/",
    "here": ".",
    "home": str(Path.home()),
    "the repository": str(ROOT),
    "the library": str(ROOT / "sae_lib" / "new"),
    "foreign": "foreign",
    "a file": "foreign/letter.txt",
    "below a file": "foreign/letter.txt/run",
    "a long name": "x" * 300,
}
READING = ["browser", "report", "explain", "clamp word --feature 0 --value 1"]
BAD_TEXT = {"nowhere": None, "empty.txt": "", "small.txt": "few words", "bad.jsonl": '{"text": '}


@pytest.mark.parametrize("command", ["stage corpus", "run"])
@pytest.mark.parametrize("place", NO_PLACE)
def test_a_folder_that_cannot_be_a_run_s_is_refused(place, command, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("dear")
    named = NO_PLACE[place]
    assert_refused([*command.split(), "--profile", "smoke", "--run", named], tmp_path, named)
    assert not Path("/settings.yaml").exists() and not (ROOT / "settings.yaml").exists()


@pytest.mark.parametrize("command", ["stage corpus", "stage sae", "run"])
@pytest.mark.parametrize("text", BAD_TEXT)
def test_bad_text_leaves_nothing_behind(text, command, tmp_path):
    if BAD_TEXT[text] is not None:
        (tmp_path / text).write_text(BAD_TEXT[text])
    given = [*command.split(), "--profile", "smoke", "--set", f"corpus=files:{tmp_path / text}"]
    assert_refused(given, tmp_path, text)


@pytest.mark.parametrize("command", READING)
def test_a_command_that_reads_names_the_runs_there_are(command, finished, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished)
    assert_refused([*command.split(), "--profile", "smoke"], tmp_path, "runs/mine")
    assert_refused([*command.split(), "--profile", "smoke", "--run", "no"], tmp_path, "runs/mine")


@pytest.mark.parametrize("missing", ["tokens", "language_model", "saes"])
@pytest.mark.parametrize("command", ["browser", "clamp word --feature 0 --value 1"])
def test_a_command_that_reads_trains_nothing(command, missing, copied, text_folder):
    (copied / missing).rename(copied / ".gone")
    assert_refused(arguments(command, copied, text_folder), copied.parent, missing)


def test_export_of_nothing_is_refused(finished, tmp_path):
    assert_refused(["export", "runs/no/saes/x", "out"], tmp_path, "runs/no/saes/x")
    (tmp_path / "letter.txt").write_text("dear")
    weights = str(finished / "saes" / "bricken_2023")
    for out in ("/", str(tmp_path), "letter.txt"):
        assert_refused(["export", weights, out], tmp_path, out)


def test_a_finished_stage_loads_no_model(finished, text_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a finished stage loads a model")

    monkeypatch.setattr(language_model, "open_model", refuse)
    monkeypatch.setattr(autoencoder.SparseAutoencoder, "load", refuse)
    for stage in STAGES[:-1]:
        done = run_command(arguments(f"stage {stage}", finished, text_folder), finished.parent)
        assert done.status == 0 and not done.touched, (stage, done.err, done.touched)
