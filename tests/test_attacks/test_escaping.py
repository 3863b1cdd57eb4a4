"""One run on text, kinds, file names and prompts that all try to become markup, on a machine
without a browser: every page of it, looked at in one.

Nothing may run, be asked of the network, link to a script or turn into mathematics; and the text is
there to be read.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import markdown
import nbformat
import pytest
from nbconvert import HTMLExporter

from suite import headless, markup, stages
from suite.inert import inert_html
from suite.report import publish
from tests import ROOT
from tests.test_attacks.test_no_browser import PNG, assert_plain, hide_browsers

SCRIPT = "<script>window.hit=1</script>"
PAYLOADS = [
    SCRIPT,
    "</script></style></textarea>--><svg onload=window.hit=2>",
    '"><img src=x onerror="window.hit=3">',
    "[link](javascript:window.hit=4)",
    '<a href="javascript:window.hit=5">link</a>',
    "<iframe srcdoc='<script>parent.hit=6</script>'></iframe>",
    "![picture](http://evil.example/x.png) <img src=//evil.example/y.png>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "<base href=http://evil.example/><link rel=stylesheet href=z.css>",
    "$E=mc^2$ and $$x$$ ` <img src=x onerror=window.hit=7> ` $$y$$",
    "\\(a\\) \\[b\\] \\begin{equation}c\\end{equation}",
    "`one` ``two`` | three | four {{ 7*7 }} %{x} **bold** <b>bold</b>",
    "\u202eright to left\u202c \u05d0\u05d1\u05d2 \x1b[31mred\x07 \u200b",
    "\n```\n</code></pre></div><script>window.hit=8</script>\n",
    "\n# heading\n\n| a | b |\n| --- | --- |\n<div onclick=window.hit=9>",
    "[r]: javascript:window.hit=10\n[r] <javascript:window.hit=11>",
]
SMALL = [
    "corpus.train_tokens=40000",
    "corpus.heldout_tokens=12000",
    "tokenizer.train_bytes=100000",
    "tokenizer.vocab_size=600",
    "lm.train_tokens=40000",
    "sae.activations=20000",
    "sae.resampling_inputs=2048",
    "sae.compare=[]",
    "sae.widths=[]",
    "evaluation.tokens=10000",
    "evaluation.loss_tokens=2048",
    "interpretability.tokens=6000",
    "last_mlp.lm.train_tokens=20000",
    "last_mlp.sae.activations=10000",
    "last_mlp.sae.resampling_inputs=2048",
]
OUR_OWN = {"cdnjs.cloudflare.com", "cdn.jsdelivr.net", "unpkg.com"}  # nbconvert's template asks

LOOK = """() => {
  const shown = new Set(["PRE", "CODE", "SCRIPT", "STYLE", "TEXTAREA"]), mathematics = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    let ignored = !n.parentElement.closest(".jp-OutputArea-output");
    for (let e = n.parentElement; e; e = e.parentElement)
      ignored ||= shown.has(e.tagName) || e.classList.contains("tex2jax_ignore");
    if (!ignored && /\\$|\\\\[([]|\\\\begin/.test(n.data)) mathematics.push(n.data.slice(0, 80));
  }
  const links = [...document.querySelectorAll("[href], [src], [action]")];
  return {
    hit: window.hit ?? null,
    mathematics,
    links: links.map((e) => e.href?.baseVal ?? e.href ?? e.src ?? e.action)
      .filter((u) => /^(javascript|vbscript|data:text)/i.test(u) || u.includes("evil.example")),
    odd: document.querySelectorAll("[srcdoc], [onclick], [onload], [onerror], base, iframe").length,
  };
}"""


def overrides(text: Path) -> list[str]:
    return [*SMALL, f"corpus=files:{text}", f"prompts.prompts={json.dumps(PAYLOADS[:6])}"]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Path:
    """The folder of a run, with a report and a browser page."""
    folder = tmp_path_factory.mktemp("poisoned")
    text = folder / "text"
    text.mkdir()
    names = [
        "<img src=x onerror=window.hit=20>",
        "[x](javascript:window.hit=21) $a$ `b | c",
        "\x1b\u202e",
    ]
    for n, name in enumerate(names):
        lines = []
        for i in range(80):
            chosen = [PAYLOADS[(i * k + n) % len(PAYLOADS)] for k in (1, 3, 5, 7)]
            kind = PAYLOADS[(i + n) % len(PAYLOADS)]
            body = "\n".join(
                f"{p} in document {i} of {n}, line {j}" for j, p in enumerate(chosen * 3)
            )
            lines.append(json.dumps({"text": body, "meta": {"pile_set_name": kind}}))
        (text / f"{name}.jsonl").write_text("\n".join(lines))
    sets = [part for o in overrides(text) for part in ("--set", o)]
    run = folder / "run <img src=x onerror=window.hit=30> $x$"
    done = subprocess.run(
        [sys.executable, "-m", "suite", "run", "--profile", "smoke", "--run", run, *sets],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": hide_browsers(folder)},
        capture_output=True,
        text=True,
        timeout=1200,  # a minute where nothing else runs
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("Chromium draws no figures") == 1
    return run


def test_without_a_browser_the_report_has_figures_on_every_page_that_has_one(poisoned):
    links = publish.links((poisoned / "report.md").read_text())
    drawn = sorted(link for link in links if link.endswith(".png"))
    assert len(drawn) > 20
    for link in drawn:
        assert (poisoned / link).read_bytes().startswith(PNG)
    assert_plain(poisoned / "figures" / "density.png")
    # The text's own backticks hide some links from that search.
    assert (poisoned / "report.html").read_text().count('src="data:image/png') >= len(drawn)
    paper = (poisoned / "report.pdf").read_bytes()
    assert paper.startswith(b"%PDF") and paper.count(b"/Subtype/Image") >= len(drawn)


@pytest.fixture
def look(chromium, tmp_path):
    """Opens HTML as a file and says what happened in it."""
    tab, asked, dialogs = chromium.new_page(viewport={"width": 1200, "height": 900}), [], []
    tab.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    tab.on("request", lambda r: asked.append(r.url))
    tab.route(re.compile("^https?:"), lambda route: route.abort())

    def look(html: str | Path, own: frozenset | set = frozenset()) -> str:
        page = html
        if isinstance(html, str):
            page = tmp_path / "page.html"
            page.write_text(html, encoding="utf-8")
        tab.goto(page.as_uri(), wait_until="domcontentloaded")
        tab.wait_for_timeout(500)
        found = tab.evaluate(LOOK)
        assert found == {"hit": None, "mathematics": [], "links": [], "odd": 0}, found
        assert dialogs == []
        hosts = {
            urlsplit(u).hostname for u in asked if not u.startswith(("file:", "data:", "blob:"))
        }
        assert hosts <= own, hosts
        return tab.locator("body").inner_text()

    look.tab = tab
    yield look
    tab.close()


@pytest.mark.parametrize("name", [n.stem for n in headless.notebooks()])
def test_an_executed_notebook_is_inert(poisoned, look, name):
    notebook = nbformat.read(poisoned / "notebooks" / f"{name}.ipynb", 4)
    body, _ = HTMLExporter().from_notebook_node(notebook)
    shown = look(body, OUR_OWN)
    assert "run <img src=x onerror=window.hit=30> $x$" in shown
    if name.startswith("02"):
        assert SCRIPT in shown and "[link](javascript:window.hit=4)" in shown
    assert "&lt;" not in shown and "&#" not in shown


def test_no_notebook_but_the_toy_models_shows_markdown_that_is_obeyed(poisoned):
    for notebook in headless.notebooks()[1:]:
        executed = nbformat.read(poisoned / "notebooks" / notebook.name, 4)
        outputs = [o for c in executed.cells for o in c.get("outputs", ())]
        assert not any("text/markdown" in o.get("data", {}) for o in outputs), notebook.name


def test_the_report_is_inert(poisoned, look):
    assert SCRIPT in look(poisoned / "report.html")
    text = (poisoned / "report.md").read_text()
    assert SCRIPT in look(markdown.markdown(text, extensions=["tables", "fenced_code"]))


def test_the_browser_page_is_inert(poisoned, look):
    look(poisoned / "browser.html")
    assert "window.hit" in look.tab.locator(".app").inner_text()


def test_every_page_and_panel_of_the_file_is_inert(poisoned, look):
    """The page in its shadow root: each feature, a text of one's own, a whole context, blind
    pages.
    """
    look(poisoned / "browser.html")
    tab = look.tab
    tab.wait_for_selector("html[data-ready]")
    assert "run <img src=x onerror=window.hit=30> $x$" in tab.locator("h1").inner_text()
    shown = ""
    for number in range(0, tab.evaluate("sae.app.features.count"), 3):
        tab.evaluate("n => sae.app.show(n)", number)
        shown += tab.locator("#page").inner_text()
    assert "window.hit" in shown
    tab.evaluate("location.hash = '#feature=1&view=try'")
    tab.fill("#text", SCRIPT + PAYLOADS[2])
    tab.locator("#tried .live").filter(has_text="window.hit=3").wait_for()
    tab.click("#generate")
    tab.wait_for_selector("#clamped .sides")
    tab.evaluate("location.hash = '#feature=1&view=rate'")
    tab.fill("#rater", SCRIPT[:50])
    tab.click("#begin")
    tab.wait_for_function("() => sae.app.$('rate-note').textContent.startsWith('1 of')")
    odd = (
        "script, img, iframe, svg:not(.spark, .histogram *, #map), base, meta, link, [onclick],"
        " [onload], [onerror]"
    )
    assert tab.locator("main").locator(odd).count() == 0
    assert tab.evaluate(LOOK)["hit"] is None
    hrefs = tab.evaluate(
        "[...sae.app.root.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href'))"
    )
    assert all(re.fullmatch(r"#[\w=&%+.,-]*", href) for href in hrefs)


def test_the_widget_without_a_kernel_is_inert(poisoned, look):
    from suite.browser import static, widget

    run = stages.open_run("smoke", poisoned, overrides(poisoned.parent / "text"))
    bundle, _ = widget(run)._repr_mimebundle_()
    assert "density" in look(bundle["text/html"])
    assert "window.hit" in look(static(run, range(40)).data)
    notebook = nbformat.read(poisoned / "notebooks" / "04_feature_browser.ipynb", 4)
    of_widgets = [c.outputs for c in notebook.cells if "browser.widget(" in c.source]
    assert len(of_widgets) == 2
    for outputs in of_widgets:  # pages that an export shows, in place of a widget
        assert "mean when active" in outputs[0]["data"]["text/html"]
        assert not any("widget-view" in kind for o in outputs for kind in o["data"])


@pytest.mark.parametrize("text", PAYLOADS)
def test_said_text_shows_itself_and_nothing_else(text, look):
    said = f"a {markup.plain(text)} b {markup.code(text)} c\n\n{markup.block(text)}\n\n{text}"
    body, _ = inert_html(said, Path("/nowhere"))
    assert not re.search(r"<(script|img src=[^d]|svg|iframe|meta|base|link|div on|b>)", body)
    shown = look(body)
    assert "&lt;" not in shown


def test_a_label_of_a_figure_is_no_markup():
    assert markup.label("<b>$x$</b> \x1b") == "&lt;b&gt;&#36;x&#36;&lt;/b&gt; ⟨U+001B⟩"
    assert markup.label("a" * 50, 10) == "a" * 9 + "…"
