"""The code of `docs/library.md` runs, in order, as a reader would run it."""

import os
import re
from pathlib import Path

from suite import stages

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


def test_the_code_of_the_page_runs(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "open_run", lambda profile: small_run)
    found: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, os.fspath(PAGE), "exec"), found)
    assert found["found"].sum() > 50, "of 64 directions"
    one, other = found["living"]
    agree = found["matched_correlation"]
    assert agree(one, other) > agree(one, found["null"]) + 0.1
    assert found["measures"]["sae"]["l0_mean"] > 0
    assert 0.5 < found["score"].auroc <= 1
