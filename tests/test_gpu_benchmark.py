import json
import time

import pytest

from benchmarks import gpu, rehearsal
from sae_lib.model import activations
from sae_lib.sae import initialise


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_call_runs_to_its_end_in_miniature(part, tmp_path):
    """No GPU was at hand: the benchmark itself must at least not be what fails on one."""
    found = gpu.main([part, "--tiny", "--device", "cpu", "--out", str(tmp_path)])
    cases = {name: case for name, case in found.items() if name not in ("machine", "torch")}
    failed = {name: case for name, case in cases.items() if {"failed", "left out"} & set(case)}
    assert not failed and len(cases) >= 2
    assert json.loads((tmp_path / "gpu.json").read_text())[part].keys() == found.keys()
    assert len((tmp_path / "gpu.log").read_text().splitlines()) == len(cases)


def test_the_rehearsal_goes_through_its_parts_in_miniature(tmp_path, monkeypatch):
    """Killed after its first checkpoint, resumed and measured; at the true shape by hand."""
    monkeypatch.setattr(activations, "REFERENCE_TOKENS", 256)  # which it sets itself, for good
    monkeypatch.setattr(initialise, "STATISTICS_ROWS", 4)
    found = {
        part: rehearsal.main([part, "--tiny", "--folder", str(tmp_path)])
        for part in ("write", *rehearsal.PARTS)
    }
    assert found["write"]["shards"] == 5 and found["train"]["checkpoint"]["step"] == 2
    assert [point["step"] for point in found["resume"]["curve"]] == [4]
    assert 0 < found["evaluate"]["fvu"] < 1
    assert json.loads((tmp_path / "rehearsal.json").read_text()).keys() > found.keys()


def test_time_that_is_up_and_a_case_that_fails_are_told(tmp_path):
    log = gpu.Log(tmp_path, "original", minutes=1)
    log.measure("one", lambda: 1 / 0)
    log.ends = 0.0
    log.measure("two", dict)
    found = json.loads((tmp_path / "gpu.json").read_text())["original"]
    assert found["one"] == {"failed": "ZeroDivisionError: division by zero"}
    assert found["two"] == {"left out": "no time left"}


def test_a_case_that_does_not_end_is_stopped(tmp_path):
    log = gpu.Log(tmp_path, "checks", minutes=1)
    with gpu.time_limit(0.002):
        log.measure("slow", lambda: time.sleep(60))
    found = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert found["slow"] == {"failed": "TimeoutError: stopped after 0.002 minutes"}
