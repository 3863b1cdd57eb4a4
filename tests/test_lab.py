"""The browser's widget in a real JupyterLab: a server, a kernel and headless Chromium, on a run whose corpus holds markup."""

import csv
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKUP = '<script>window.hit=1</script> "><img src=x onerror="window.hit=1">\n'
OVERRIDES = [
    "corpus.train_tokens=60000", "corpus.heldout_tokens=12000", "lm.train_tokens=40000", "sae.activations=20000",
    "sae.compare=[]", "sae.widths=[]", "evaluation.tokens=8192", "evaluation.loss_tokens=2048",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained run, a third of whose text is markup that would run if it were not text."""
    from sae_lib import features
    from sae_lib.runs import open_run

    folder = tmp_path_factory.mktemp("lab")
    (folder / "text").mkdir()
    stdlib = Path(os.__file__).parent
    for path in (p for name in ("json", "http", "html", "logging") for p in (stdlib / name).rglob("*.py")):
        (folder / "text" / f"{path.parent.name}_{path.name}").write_text(path.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    for i in range(40):
        (folder / "text" / f"markup{i}.txt").write_text(f"import page{i}\n" + MARKUP * 40, encoding="utf-8")
    run = open_run("smoke", folder / "run", [f"corpus=files:{folder / 'text'}", *OVERRIDES])
    for name in ("", "neurons"):
        features.make_features(run, name)
    return run


@pytest.fixture(scope="module")
def lab(run):
    """The address of a notebook with one cell that opens the run's browser, in a JupyterLab of its own."""
    import nbformat

    home = run.folder.parent
    code = f"""
from sae_lib import browser
from sae_lib.runs import open_run
browser.widget(open_run("smoke", {str(run.folder)!r}, {[f"corpus=files:{home / 'text'}", *OVERRIDES]!r}))"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.strip())], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, home / "browser.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, own = secrets.token_hex(16), {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={home}", f"--IdentityProvider.token={token}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               "--FileContentsManager.delete_to_trash=False"]  # fmt: skip
    environment = os.environ | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        address, ends = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5) as answer:
                    assert json.load(answer)["started"]
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < ends, f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}"
                time.sleep(0.2)
        yield f"{address}/lab/tree/browser.ipynb?token={token}"
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def tab(chromium, lab):
    """The notebook with its cell run and the widget in it."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(lab)
    tab.locator(".jp-Notebook .cm-content").first.click(timeout=60_000)
    tab.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'", timeout=60_000)
    tab.keyboard.press("Control+Enter")
    tab.locator("[data-feature]").first.wait_for(timeout=120_000)
    yield tab
    tab.close()


def number_shown(tab) -> int:
    return int(tab.locator("[data-feature]").first.get_attribute("data-feature"))


def turned_from(tab, number: int) -> int:
    tab.wait_for_function("n => document.querySelector('[data-feature]')?.dataset.feature !== n", arg=str(number))
    return number_shown(tab)


def opened(tab, title: str):
    """The panel of that title, opened."""
    heading = tab.locator(".jupyter-widget-Collapse-header", has_text=title)
    heading.click()
    return heading.locator("xpath=..")


def test_search_finds_and_the_page_turns(tab, run):
    first = number_shown(tab)
    tab.get_by_role("textbox", name="Search").fill('text:"<script>" density<50%')
    tab.wait_for_function("document.querySelector('.jp-OutputArea').innerText.match(/of\\s256\\sfeatures/)")
    shown = number_shown(tab)
    tab.get_by_role("button", name="Next").click()
    after = turned_from(tab, shown)
    tab.get_by_role("button", name="Previous").click()
    assert turned_from(tab, after) == shown
    assert "<script>" in tab.locator("[data-feature]").first.inner_text()
    tab.get_by_role("textbox", name="Search").fill(f"#{(first + 1) % 256}")
    assert turned_from(tab, shown) == (first + 1) % 256


def test_hover_shows_values(tab):
    tab.get_by_role("textbox", name="Search").fill("text:import active>5")
    tab.locator(".sae-examples .sae-text bdi[style] b").first.wait_for()
    titles = tab.locator(".sae-examples .sae-text bdi:has(b)").evaluate_all("tokens => tokens.map(t => t.title)")
    values = [float(re.search(r"([\d.]+)(\s+\(part of .*\))?$", t)[1]) for t in titles]
    assert values and values == sorted(values, reverse=True) and min(values) > 0


def test_own_text_shows_activations_and_turns_the_page(tab):
    panel = opened(tab, "Try your own text")
    before = number_shown(tab)
    panel.locator("textarea").fill("import json\n" + MARKUP)
    panel.locator("option").first.wait_for(state="attached")
    assert MARKUP.strip() in panel.locator(".sae-text").inner_text().replace("⏎", "\n")
    numbers = panel.locator("option").evaluate_all("lines => lines.map(l => parseInt(l.textContent.slice(16).trim().split(/\\s+/)[0]))")
    other = next(i for i, n in enumerate(numbers) if n != before)
    panel.locator("select").select_option(index=other)
    assert turned_from(tab, before) == numbers[other]
    panel.locator(".sae-text bdi[style]").first.wait_for()  # coloured by the feature that is strong there


def test_clamping_shows_both_sides(tab):
    panel = opened(tab, "Clamp")
    panel.get_by_role("button", name="Generate").click()
    panel.locator(".sae-next tbody tr").first.wait_for(timeout=30_000)
    assert panel.locator(".sae-sides .sae-text").count() == 2 and "KL" in panel.inner_text()
    panel.locator("textarea").fill("")
    panel.get_by_role("button", name="Generate").click()
    panel.get_by_text("the prompt is empty").wait_for()


def test_ratings_are_saved_and_summed_up(tab, run):
    path = run.folder / "ratings" / "bricken_2023.csv"
    panel = opened(tab, "Rate, blind")
    panel.get_by_label("Your name").fill("R. <b>")
    panel.get_by_label("Of each kind").fill("2")
    panel.get_by_label("Of each kind").press("Tab")
    panel.get_by_role("button", name="Begin").click()
    for i in range(1, 5):
        panel.get_by_text(re.compile(rf"^{i} of \d")).wait_for()
        shown = panel.locator("section").inner_text()
        assert not re.search("feature|neuron|density", shown, re.IGNORECASE) and panel.locator("section").get_attribute("data-feature") == ""
        panel.get_by_role("button", name=re.compile(f"^{i} ")).click()
    panel.locator(".js-plotly-plot .bars").first.wait_for()
    assert "original 4.08" in panel.locator(".js-plotly-plot").inner_text()
    rows = list(csv.DictReader(path.open()))
    assert [int(r["rating"]) for r in rows] == [1, 2, 3, 4] and {r["rater"] for r in rows} == {"R. <b>"}
    assert sorted(r["kind"] for r in rows) == ["feature", "feature", "neuron", "neuron"]


def test_nothing_from_the_corpus_ran(tab):
    assert tab.evaluate("window.hit") is None
    assert tab.locator(".sae-browser script, .sae-browser img").count() == 0
