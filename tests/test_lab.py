"""The browser's widget in a real JupyterLab: a server, a kernel and headless Chromium, on a run
whose corpus holds markup.
"""

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

import numpy as np
import pytest
import torch

from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp
from suite import browser, stages
from suite.browser import page
from suite.browser.kernel import PER_TOKEN, Model
from suite.table import open_table

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
    """The address of a notebook with one cell that opens the run's browser, in a JupyterLab of
    its own.
    """
    import nbformat

    home = run.folder.parent
    code = f"""
from suite import browser
from suite.stages import open_run
run = open_run("smoke", {str(run.folder)!r}, {[f"corpus=files:{home / 'text'}", *OVERRIDES]!r})
page = browser.widget(run)
display(page)
browser.widget(run, "neurons")"""
    turn = "was = page.selected\npage.selected = 9\nprint('selected was', was)"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in (code, turn)],
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
    tab.locator("#start.shown .card").first.wait_for(timeout=120_000)
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
        cut == 0 and len(ids) > 6 and model.target.tokenizer.eos_token_id not in ids
    )  # typed, it is text
    direct = run.get("autoencoder").encode(model.target.hook.activations(torch.tensor([ids]))[0])
    number = int(direct.max(0).values.argmax())
    found = model.activations(text, number)
    np.testing.assert_allclose(found["values"], direct[:, number], atol=1e-5)
    for pairs, values in zip(found["strongest"], direct, strict=True):
        top = values.topk(PER_TOKEN)
        assert [n for n, _ in pairs] == top.indices[top.values > 0].tolist()
    shown = browser.own_text(run, text, [number]).data
    assert f"strongest here {page.decimal(direct[:, number].max().item())} of" in shown
    assert shown.count("<div><bdi>") == len(ids)
    assert table.vocabulary.name(ids[0]) in shown
    assert "<bdi" not in browser.own_text(run, "").data  # nothing typed yet
    assert (
        model.encoded("x y " * 100)[0] == model.encoded("x y " * 200)[0]
        and model.encoded("x y " * 100)[1] > 0
    )


def test_the_whole_row_agrees_with_the_example_and_the_ablation(run, model):
    table = open_table(run)
    number = int(table.alive(200)[0])
    for index, examples in ((0, table.strongest(number)), (-1, table.sampled(number)[::-1])):
        example = examples.iloc[index]  # a true top one; one from a tenth
        found = model.context(int(example["row"]), number, ablate=True)
        assert len(found["ids"]) == len(found["values"]) == len(found["effects"]) == 64
        at = found["values"][example["position"]]
        assert at == pytest.approx(float(example["activation"]), rel=1e-4)
        ids = torch.from_numpy(model.rows[int(example["row"])].astype("int64"))
        assert found["ids"] == ids.tolist()
        effect = clamping.ablation_effect(model.target.hook, model.target.dictionary, ids, number)
        np.testing.assert_allclose(found["effects"], effect, atol=1e-6)
        assert effect.abs().max() > 0
    assert model.context(0, number, ablate=False)["effects"] == []


def test_clamped_sides_are_those_of_clamping(run, model):
    number = int(open_table(run).alive(100)[0])
    clamp = {"feature": number, "how": "pin", "value": 30.0}
    found = model.clamp("import js", [clamp], new_tokens=8, seed=3)
    target = model.target
    *sides, prompt = target.side_by_side("import js", [Clamp(**clamp)], 8, 0.8, 3)
    assert [side["ids"] for side in found["sides"]] == [ids.tolist() for ids in sides]
    assert found["prompt"] == prompt
    own = model.activations("import js", number)["values"]
    assert found["sides"][0]["values"][:prompt] == pytest.approx(own, abs=1e-5)
    after = target.next_tokens("import js", [Clamp(**clamp)], k=12)
    first = after.table.iloc[0]
    assert found["kl"] == after.kl and len(found["next"]) == 12
    assert found["next"][0] == (first["token_id"], first["before"], first["after"])
    assert len(found["null"]) == 3 and min(found["null"]) > 0
    silent = model.clamp("import js", [clamp | {"how": "scale", "value": 1.0}])
    assert silent["sides"] == [] and silent["kl"] == 0 and max(silent["null"]) < 1e-9
    two = [Clamp(**clamp), Clamp((number + 1) % 256, "pin", 5.0)]
    both = model.clamp("import js", [vars(c) for c in two])
    assert both["kl"] == pytest.approx(target.next_tokens("import js", two).kl)


def test_the_kernel_answers_every_question_and_every_error(run):
    widget, sent = browser.widget(run), []
    widget.send = lambda answer, buffers: sent.append((answer, buffers))

    def ask(question, **arguments):
        message = {"id": "7", "question": question, "arguments": arguments}
        widget._handle_custom_msg(message, [])
        answer, buffers = sent.pop()
        assert answer.pop("id") == "7" and not sent
        return answer, buffers

    answer, (index,) = ask("block", name="index")
    shown = json.loads(index)
    assert answer == {} and len(shown["features"]) == 256 and shown["rated"]
    rate = {"seed": 1, "kind": "feature", "unit": 3, "rating": 4}
    assert ask("rate", rater="tester", **rate) == ({"answer": None}, [])
    saved = ask("ratings")[0]["answer"]
    assert saved == [{"rater": "tester", **rate}]
    assert "printable" in ask("rate", rater=" ", **rate)[0]["error"]
    clamp = {"feature": 999, "how": "pin", "value": 1.0}
    assert "0 to 255" in ask("clamp", text="a", clamps=[clamp])[0]["error"]
    assert "empty" in ask("clamp", text="", clamps=[clamp | {"feature": 1}])[0]["error"]
    assert "no question" in ask("__class__")[0]["error"]
    json.dumps(ask("activations", text="import", feature=3)[0], allow_nan=False)
    (run.folder / "ratings" / "bricken_2023.csv").unlink()
    assert ask("notes")[0]["answer"] == {}
    assert ask("note", notes={"3": {"name": "<b>"}})[0] == {"answer": None}
    assert ask("notes")[0]["answer"] == {"3": {"name": "<b>"}}
    (run.folder / "ratings" / "notes-bricken_2023.json").unlink()
    hit = [n for n, text in enumerate(widget.texts) if "<script>" in text]
    assert ask("texts", wanted="<script>")[0]["answer"] == hit and len(hit) > 0
    widget.address = "q=import&feature=12&view=try"
    assert widget.selected == 12
    widget.selected = 5
    assert widget.address == "feature=5"


def test_where_there_is_no_kernel_the_widget_is_a_page(run):
    bundle, _ = browser.widget(run)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"].count("data-feature") == 3 and "<script" not in bundle["text/html"]


# --- in JupyterLab ---


class Widget:
    """The first of the notebook's two widgets. Playwright looks into shadow roots by itself."""

    def __init__(self, tab):
        self.tab, self.page = tab, tab.locator(".jp-OutputArea-output:has(#query)").first

    def __call__(self, selector: str):
        return self.page.locator(selector)

    @property
    def number(self) -> int:
        return int(self("#page [data-feature]").get_attribute("data-feature"))

    def turned_to(self, number: int) -> None:
        self(f"#page [data-feature='{number}']").wait_for()

    def view(self, name: str) -> None:
        self(f"nav a[data-view={name}]").click()


@pytest.fixture(scope="module")
def widget(tab):
    return Widget(tab)


def test_search_finds_and_the_page_turns(widget, run):
    table = open_table(run)
    spelled = table.examples["token_ids"].map(lambda ids: table.spelled(ids.tolist()))
    hit = spelled.str.casefold().str.contains("<script>", regex=False)
    owners = table.features.loc[table.examples.loc[hit, "feature"].unique()]
    owners = owners.query("density < 0.9").sort_values(
        ["density", "feature"], ascending=[False, True]
    )
    found = owners["feature"].tolist()
    assert len(found) > 2
    widget("#heads [data-sort=density]").click()
    other = next(n for n in range(256) if n not in found[:2])
    widget("#query").fill(f"#{other}")
    widget.turned_to(other)
    widget("#query").fill('text:"<script>" density<90%')
    widget.turned_to(found[0])
    assert "<script>" in widget("#page").inner_text()
    widget("#next").click()
    widget.turned_to(found[1])
    widget("#previous").click()
    widget.turned_to(found[0])
    near = int(table.features["near_features"][found[0]][0])
    widget("#page dl a").first.click()
    widget.turned_to(near)
    assert "#" not in widget.tab.url  # the notebook's address is its own


def test_what_is_typed_is_no_shortcut_of_the_notebook(widget):
    cells = widget.tab.locator(".jp-Cell").count()
    widget("#query").click()
    widget.tab.keyboard.press("Control+a")
    widget.tab.keyboard.type("abdd#7")
    assert widget("#query").input_value() == "abdd#7"
    widget("#query").fill("#7")
    widget.turned_to(7)
    widget("#rows").click(position={"x": 5, "y": 5})
    widget("#query").fill("")
    widget("#rows").focus()
    for key in "jkjr":
        widget.tab.keyboard.press(key)
    widget.tab.wait_for_timeout(300)
    assert widget.tab.locator(".jp-Cell").count() == cells


def test_two_widgets_do_not_disturb_each_other(widget):
    second = widget.tab.locator(".jp-OutputArea-output:has(#query)").nth(1)
    second.locator("#query").fill("#3")
    second.locator("#page [data-feature='3']").wait_for()
    assert second.locator("#page h2").inner_text() == "Neuron 3"
    assert widget("#page h2").inner_text().startswith("Feature")
    assert "neurons" in second.locator("#count").inner_text()


def test_hover_shows_values(widget):
    widget("#query").fill("text:import active>5")
    widget(".examples .text bdi[style] b").first.wait_for()
    titles = widget(".examples .text bdi:has(b)").evaluate_all("ts => ts.map(t => t.title)")
    values = [float(re.search(r"([\d.]+)(\s+\(part of .*\))?$", t)[1]) for t in titles]
    assert values and values == sorted(values, reverse=True) and min(values) > 0


def test_own_text_shows_activations_and_turns_the_page(widget):
    widget.view("try")
    widget("#text").fill("import json\n" + MARKUP)
    widget.page.locator("#tried .live").filter(has_text="window.hit").wait_for(timeout=60_000)
    assert MARKUP.strip() in widget("#tried .live").inner_text().replace("⏎", "\n")
    before = widget("#clamps a").first.inner_text()
    links = widget("#tried .strip a").all_inner_texts()
    other = next(i for i, n in enumerate(links) if n != before)
    widget("#tried .strip a").nth(other).click()
    widget.page.locator("#clamps a").filter(has_text=re.compile(f"^{links[other]}$")).wait_for()
    widget("#tried .live bdi[style]").first.wait_for()  # coloured by the feature strong there


def test_clamping_shows_both_sides(widget):
    widget("#generate").click()
    widget(".sides > span").nth(1).wait_for(timeout=30_000)
    assert "KL" in widget("#clamped").inner_text()
    widget("#text").fill("")
    widget("#generate").click()
    widget.page.get_by_text("the prompt is empty").wait_for()


def test_a_whole_row_is_opened(widget):
    widget.view("feature")
    if not widget(".expanded").count():  # a second try finds it open, and a click would close it
        widget("#page .value button").first.click()
    widget(".expanded h4").first.wait_for()  # "why" has a heading of its own, a little later
    assert widget(".expanded .live bdi").count() == 64  # the whole row
    assert widget(".expanded .text").nth(1).locator("bdi[title$=nats]").count() == 64


def test_ratings_are_saved_and_summed_up(widget, run):
    path = run.folder / "ratings" / "bricken_2023.csv"
    widget.view("rate")
    widget("#rater").fill("R. <b>")
    widget("#each").fill("2")
    widget("#begin").click()
    for i in range(1, 5):
        widget.page.get_by_text(re.compile(rf"^{i} of \d")).wait_for(timeout=60_000)
        shown = widget("#unit article")
        hidden = "feature|neuron|density"
        assert not re.search(hidden, shown.inner_text(), re.IGNORECASE)
        assert shown.get_attribute("data-feature") == ""
        widget(f"[data-rating='{i}']").click()
    widget(".ratings").wait_for()
    assert "4.08" in widget(".ratings").inner_text()
    rows = list(csv.DictReader(path.open()))
    assert [int(r["rating"]) for r in rows] == [1, 2, 3, 4] and {r["rater"] for r in rows} == {
        "R. <b>"
    }
    assert sorted(r["kind"] for r in rows) == ["feature", "feature", "neuron", "neuron"]


def test_the_selected_feature_is_a_value_in_python_both_ways(tab, widget):
    widget.view("feature")
    widget("#query").fill("#4")
    widget.turned_to(4)
    tab.locator(".jp-Cell .cm-content").nth(1).click()
    tab.keyboard.press("Control+Enter")
    tab.get_by_text("selected was 4").wait_for(timeout=30_000)
    widget.turned_to(9)


def test_nothing_from_the_corpus_ran(tab, widget):
    assert tab.evaluate("window.hit") is None
    assert widget("script, img, iframe").count() == 0
