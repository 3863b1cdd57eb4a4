"""Progress bars: drawn for people, written to a file for a headless run, and read back as one
line.
"""

import json

import pytest

from sae_lib import progress
from suite import watch

STATE = {"n": 300, "initial": 100, "elapsed": 40.0, "postfix": "error=0.2, L0=14.6", "rate": None}


@pytest.mark.parametrize(
    "state, line",
    [
        ({"total": 1000}, "bricken_2023 300 of 1,000, 2 min left, error=0.2, L0=14.6"),
        ({"total": 1000, "rate": 35.0}, "bricken_2023 300 of 1,000, 20 s left, error=0.2, L0=14.6"),
        ({"total": 300, "postfix": None}, "bricken_2023 300 of 300"),
        ({"total": None, "postfix": None}, "bricken_2023 300"),
        ({"total": 9, "n": 0, "initial": 0, "postfix": None}, "bricken_2023 0 of 9"),
        (
            {"total": 10**7, "rate": 300.0, "postfix": None},
            "bricken_2023 300 of 10,000,000, 9.3 h left",
        ),
    ],
)
def test_a_bars_state_becomes_one_line(state, line):
    assert watch.describe(STATE | {"prefix": "bricken_2023"} | state) == line


def test_a_bar_is_written_to_its_file_and_not_drawn(tmp_path, monkeypatch, capsys):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.FILE, str(path))
    writes, real = [], progress.os.replace
    monkeypatch.setattr(progress.os, "replace", lambda a, b: writes.append(real(a, b)))
    bar = progress.tqdm(range(100_000), desc="training", disable=None)
    for step in bar:
        if step == 500:
            bar.set_postfix(loss="0.5")
            known = watch.read_state(path)
    assert (known["prefix"], known["n"], known["total"]) == ("training", 0, 100_000)
    assert known["postfix"] == "loss=0.5" and len(writes) <= 4
    assert watch.read_state(path) is None and not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_without_that_variable_bars_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(progress.FILE, raising=False)
    assert list(progress.tqdm(range(3), desc="tokens")) == [0, 1, 2]
    assert "tokens: 100%" in capsys.readouterr().err


def test_a_full_disk_or_a_damaged_file_ends_nothing(tmp_path, monkeypatch):
    path = tmp_path / "gone" / "progress.json"
    monkeypatch.setenv(progress.FILE, str(path))
    assert list(progress.tqdm(range(3))) == [0, 1, 2]
    (tmp_path / "half.json").write_text(json.dumps(STATE)[:20])
    assert watch.read_state(tmp_path / "half.json") is None
