"""The browser's widget in a real JupyterLab: a server, a kernel and headless Chromium, on a run whose corpus holds markup."""

import csv
import html
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
import torch

from sae_lib.features import clamping
from sae_lib.features import feature_table as features
from sae_lib.features.clamping import Clamp
from suite import browser, stages
from suite.browser import context, page, try_text
from suite.browser.model import Model
from suite.browser.table import open_table

ROOT = Path(__file__).resolve().parents[1]
MARKUP = '<script>window.hit=1</script> "><img src=x onerror="window.hit=1">\n'
OVERRIDES = [
    "corpus.train_tokens=40000",
    "corpus.heldout_tokens=12000",
    "lm.train_tokens=30000",
    "sae.activations=12000",
    "sae.resampling=false",
    "sae.compare=[]",
    "sae.widths=[]",
    "evaluation.tokens=8192",
    "evaluation.loss_tokens=2048",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained run, a third of whose text is markup that would run if it were not text."""

    folder = tmp_path_factory.mktemp("lab")
    (folder / "text").mkdir()
    stdlib = Path(os.__file__).parent
    for path in (
        p for name in ("json", "http", "html", "logging") for p in (stdlib / name).rglob("*.py")
    ):
        (folder / "text" / f"{path.parent.name}_{path.name}").write_text(
            path.read_text(encoding="utf-8")[:20_000], encoding="utf-8"
        )
    for i in range(40):
        (folder / "text" / f"markup{i}.txt").write_text(
            f"import page{i}\n" + MARKUP * 40, encoding="utf-8"
        )
    run = stages.open_run("smoke", folder / "run", [f"corpus=files:{folder / 'text'}", *OVERRIDES])
    for name in ("", "neurons"):
        run.path("features", name)
    return run


@pytest.fixture(scope="module")
def lab(run):
    """The address of a notebook with one cell that opens the run's browser, in a JupyterLab of its own."""
    import nbformat

    home = run.folder.parent
    code = f"""
from suite import browser
from suite.stages import open_run
browser.widget(open_run("smoke", {str(run.folder)!r}, {[f"corpus=files:{home / 'text'}", *OVERRIDES]!r}))"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code.strip())],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, home / "browser.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, own = (
        secrets.token_hex(16),
        {
            name: str(home / name.lower())
            for name in (
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_RUNTIME_DIR",
                "JUPYTERLAB_SETTINGS_DIR",
                "IPYTHONDIR",
            )
        },
    )
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home}",
        f"--IdentityProvider.token={token}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--FileContentsManager.delete_to_trash=False",
    ]
    environment = os.environ | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address, ends = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(
                    f"{address}/api/status?token={token}", timeout=5
                ) as answer:
                    assert json.load(answer)["started"]
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < ends, (
                    f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}"
                )
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
    tab.wait_for_function(
        "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'",
        timeout=60_000,
    )
    tab.keyboard.press("Control+Enter")
    tab.locator("[data-feature]").first.wait_for(timeout=120_000)
    yield tab
    tab.close()


# --- what the panels compute, without a page ---


@pytest.fixture(scope="module")
def model(run):
    return Model(run)


def test_own_text_has_the_activations_of_the_model(run, model):
    table, text = open_table(run), "import json\n<|endoftext|> x"
    ids, cut = model.encoded(text)
    assert (
        cut == 0 and len(ids) > 6 and model.tokenizer.eos_token_id not in ids
    )  # typed, it is text
    direct = run.get("autoencoder").encode(model.hook.activations(torch.tensor([ids]))[0])
    acts = model.feature_acts(ids)
    assert torch.allclose(acts, direct, atol=1e-5)
    rows = try_text.strongest_per_token(table, ids, acts, 3)
    assert [r["name"] for r in rows] == [table.vocabulary.name(t) for t in ids]
    for row, values in zip(rows, direct, strict=True):
        assert [s["number"] for s in row["strongest"]] == values.topk(3).indices[
            values.topk(3).values > 0
        ].tolist()
    number = int(direct.max(0).values.argmax())
    shown = browser.own_text(run, text, [number]).data
    assert (
        f"strongest here <b>{page.decimal(float(direct[:, number].max()))}</b>" in shown
        and 'class="sae-per-token"' in shown
    )
    assert 'class="sae-text"' not in browser.own_text(run, "").data  # nothing typed yet
    assert (
        model.encoded("x y " * 100)[0] == model.encoded("x y " * 200)[0]
        and model.encoded("x y " * 100)[1] > 0
    )


def test_the_open_panel_follows_the_page(run, model):
    widget = browser.widget(run)
    _, try_panel, clamp_panel, _ = widget.panels.children
    widget.panels.selected_index = 1
    try_panel.text.value = "import json " * 40
    assert "64 tokens" in try_panel.note.value
    number = next(n for (_, n) in dict(try_panel.list.options).values() if n != widget.current)
    try_panel.list.value = next(v for v in dict(try_panel.list.options).values() if v[1] == number)
    assert widget.current == number and f"<b>{number}</b>" in try_panel.shown.value
    try_panel.text.value = ""
    assert try_panel.shown.value == "" and try_panel.list.options == ()
    widget.panels.selected_index = 2
    assert clamp_panel.feature.value == number and clamp_panel.value.value == round(
        float(widget.table.features["maximum"][number]), 2
    )
    clamp_panel.how.value = "ablate"
    assert clamp_panel.value.disabled and clamp_panel.value.value == 0


def test_the_whole_row_agrees_with_the_example_and_the_ablation(run, model):
    table = open_table(run)
    number = int(table.alive(200)[0])
    for index in (0, len(table.all_examples(number)) - 1):  # a true top one; one from a tenth
        example = table.all_examples(number).iloc[index]
        ids = model.row(int(example["row"]))
        text = context.whole(table, model, number, index, ablate=True)
        first, second = (
            re.findall(r'<bdi title="([^"]*)"', part) for part in text.split("Change of the loss")
        )
        assert len(first) == len(second) == len(ids) == 64
        assert (
            first[example["position"]].split()[-1] == page.decimal(float(example["activation"]))
            or "part of" in first[example["position"]]
        )
        effect = features.ablation_effect(model.hook, model.dictionary, ids, number)
        assert [t.split()[-2] for t in second] == [page.signed(float(v)) for v in effect]
        assert effect.abs().max() > 0
    assert "Change of the loss" not in browser.whole_context(run, number).data


def test_clamped_sides_are_those_of_clamping(run, model):
    number = int(open_table(run).alive(100)[0])
    made = Clamp(number, "pin", 30.0)
    shown = browser.clamp(run, "import js", number, "pin", 30.0, new_tokens=8, seed=3).data
    parts = (model.hook, model.tokenizer, model.dictionary, "import js", [made])
    sides = clamping.side_by_side(*parts, 8, 0.8, 3)
    baseline, clamped = re.findall(r'<div class="sae-text" dir="ltr">(.*?)</div>', shown, re.DOTALL)
    vocabulary = open_table(run).vocabulary
    for text, ids in ((baseline, sides[0]), (clamped, sides[1])):
        titles = [
            html.unescape(t).strip("\u2068\u2069").split("  ")[0]
            for t in re.findall(r'title="([^"]*)"', text)
        ]
        assert (
            titles == [vocabulary.name(t) for t in ids.tolist()]
            and text.count("sae-prompt") == sides[2]
        )
    table = clamping.next_tokens(*parts, k=12).table
    assert (
        page.percent(float(table["before"][0])) in shown
        and f"feature {number} pinned at 30" in shown
    )
    silent = browser.clamp(run, "import js", number, "scale", 1.0, new_tokens=0).data
    assert 'class="sae-sides"' not in silent and "KL(as it is ‖ clamped) 0 nats" in silent


# --- in JupyterLab ---


def number_shown(tab) -> int:
    return int(tab.locator("[data-feature]").first.get_attribute("data-feature"))


def turned_from(tab, number: int) -> int:
    tab.wait_for_function(
        "n => document.querySelector('[data-feature]')?.dataset.feature !== n", arg=str(number)
    )
    return number_shown(tab)


def opened(tab, title: str):
    """The panel of that title, opened."""
    heading = tab.locator(".jupyter-widget-Collapse-header", has_text=title)
    heading.click()
    return heading.locator("xpath=..")


def test_search_finds_and_the_page_turns(tab, run):
    found = open_table(run).matches('text:"<script>" density<90%', "density", descending=True)
    assert len(found) > 2
    search, first = tab.get_by_role("textbox", name="Search"), number_shown(tab)
    other = next(n for n in range(256) if n not in (first, *found[:2]))
    search.fill(f"#{other}")
    assert turned_from(tab, first) == other
    search.fill('text:"<script>" density<90%')
    assert turned_from(tab, other) == found[0]
    assert "<script>" in tab.locator("[data-feature]").first.inner_text()
    tab.get_by_role("button", name="Next").click()
    assert turned_from(tab, found[0]) == found[1]
    tab.get_by_role("button", name="Previous").click()
    assert turned_from(tab, found[1]) == found[0]
    tab.locator(
        "button", has_text=re.compile(r"^\d+  .* \d\.\d\d$")
    ).first.click()  # the nearest feature
    assert turned_from(tab, found[0]) == open_table(run).page(int(found[0]))["near"][0]["number"]


def test_hover_shows_values(tab):
    tab.get_by_role("textbox", name="Search").fill("text:import active>5")
    tab.locator(".sae-examples .sae-text bdi[style] b").first.wait_for()
    titles = tab.locator(".sae-examples .sae-text bdi:has(b)").evaluate_all(
        "tokens => tokens.map(t => t.title)"
    )
    values = [float(re.search(r"([\d.]+)(\s+\(part of .*\))?$", t)[1]) for t in titles]
    assert values and values == sorted(values, reverse=True) and min(values) > 0


def test_own_text_shows_activations_and_turns_the_page(tab):
    panel = opened(tab, "Try your own text")
    before = number_shown(tab)
    panel.locator("textarea").fill("import json\n" + MARKUP)
    panel.locator("option").first.wait_for(state="attached")
    assert MARKUP.strip() in panel.locator(".sae-text").inner_text().replace("⏎", "\n")
    numbers = panel.locator("option").evaluate_all(
        "lines => lines.map(l => parseInt(l.textContent.slice(16).trim().split(/\\s+/)[0]))"
    )
    other = next(i for i, n in enumerate(numbers) if n != before)
    panel.locator("select").select_option(index=other)
    assert turned_from(tab, before) == numbers[other]
    panel.locator(
        ".sae-text bdi[style]"
    ).first.wait_for()  # coloured by the feature that is strong there


def test_a_whole_row_is_opened(tab):
    panel = opened(tab, "Whole context")
    panel.locator("select").select_option(index=0)
    panel.locator(".sae-text").first.wait_for()
    assert panel.locator(".sae-text bdi").count() == 64  # the whole row
    panel.get_by_label("change of the loss").check()
    panel.locator("h4").wait_for()
    assert panel.locator(".sae-text").nth(1).locator("bdi[title$=nats]").count() == 64


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
        assert (
            not re.search("feature|neuron|density", shown, re.IGNORECASE)
            and panel.locator("section").get_attribute("data-feature") == ""
        )
        panel.get_by_role("button", name=re.compile(f"^{i} ")).click()
    panel.locator(".js-plotly-plot .bars").first.wait_for()
    assert "features 4.08" in panel.locator(".js-plotly-plot").inner_text()
    rows = list(csv.DictReader(path.open()))
    assert [int(r["rating"]) for r in rows] == [1, 2, 3, 4] and {r["rater"] for r in rows} == {
        "R. <b>"
    }
    assert sorted(r["kind"] for r in rows) == ["feature", "feature", "neuron", "neuron"]


def test_nothing_from_the_corpus_ran(tab):
    assert tab.evaluate("window.hit") is None
    assert tab.locator(".sae-browser script, .sae-browser img").count() == 0
