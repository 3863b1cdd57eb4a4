"""No browser, one that dies, one that hangs: figures come out all the same, in time, and no
process stays behind. (test_escaping.py makes a whole run without a browser.)
"""

import re
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import plotly.graph_objects as go
import psutil
import pytest

from suite import drawing

# Seen by every Python that is started: kaleido's search finds FAKE_BROWSER, or nothing.
HIDE = """
import os
from choreographer.browsers.chromium import Chromium
Chromium.find_browser = classmethod(lambda cls, **_: os.environ.get("FAKE_BROWSER"))
"""
PNG = b"\x89PNG"


def hide_browsers(folder: Path) -> str:
    """The PYTHONPATH under which no browser is found."""
    (folder / "sitecustomize.py").write_text(HIDE)
    return str(folder)


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is known yet of Chromium, in this test alone; the folder of its temporary files."""
    monkeypatch.setenv(drawing.STATE, "")
    monkeypatch.delenv(drawing.STATE)
    monkeypatch.setattr(drawing, "_worker", None)
    with tempfile.TemporaryDirectory() as scratch:  # a short path: Chromium puts a socket there
        monkeypatch.setenv("TMPDIR", scratch)
        yield Path(scratch)


@pytest.fixture
def hidden(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", hide_browsers(tmp_path))
    monkeypatch.delenv("FAKE_BROWSER", raising=False)
    return fresh


def gone(text: str, seconds: float = 30) -> bool:
    """Whether soon no living process has `text` in its command line."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines = [
            p.info["cmdline"] or []
            for p in psutil.process_iter(["cmdline", "status"])
            if p.info["status"] != psutil.STATUS_ZOMBIE
        ]
        if not any(text in part for line in lines for part in line):
            return True
        time.sleep(0.1)
    return False


def assert_plain(path) -> None:
    """A picture by matplotlib, and the interactive page beside it."""
    assert path.read_bytes().startswith(PNG)
    assert 'src="plotly.min.js"' in path.with_suffix(".html").read_text()
    assert (path.parent / "plotly.min.js").is_file()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "ChromeNotFoundError"),
        ("exit 1", "BrowserFailed|ChannelClosed"),
        ("sleep 999", "no picture"),
    ],
    ids=["none", "dies", "hangs"],
)
def test_figures_come_out_in_time(hidden, monkeypatch, tmp_path, caplog, script, why):
    if script:
        (tmp_path / "browser").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "browser").chmod(0o755)
        monkeypatch.setenv("FAKE_BROWSER", str(tmp_path / "browser"))
    monkeypatch.setattr(drawing, "PROBE_SECONDS", 5)
    start = time.monotonic()
    for name in ("a", "b"):
        assert_plain(drawing.save(go.Figure(go.Bar(y=[1, 2])), tmp_path, name))
    assert time.monotonic() - start < 30
    (record,) = caplog.records
    assert re.search(why, record.message) and "to fix it: apt-get" in record.message
    assert gone(str(tmp_path)) and gone(str(hidden))


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_browser_that_fails_later(fresh, monkeypatch, tmp_path, caplog, harm):
    fig = go.Figure(go.Bar(y=[1, 2]))
    assert drawing.save(fig, tmp_path, "a").exists() and not (tmp_path / "a.html").exists()
    for process in psutil.Process(drawing._worker.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended with its parent
            process.send_signal(harm)
    monkeypatch.setattr(drawing, "DRAWING_SECONDS", 3)
    for name in ("b", "c"):
        assert_plain(drawing.save(fig, tmp_path, name))
    assert len(caplog.records) == 1
    assert gone(str(fresh))
