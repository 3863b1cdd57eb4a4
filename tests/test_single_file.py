"""browser.html in Chromium, from disk: search, pages, links, keys; text is data; the model
inside agrees with torch.
"""

import json
import re
from functools import partial
from xml.etree import ElementTree

import markdown as python_markdown
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from typer.testing import CliRunner

from sae_lib.errors import ArtefactError, SettingsError
from sae_lib.features import clamping
from sae_lib.features.attribution import Block
from sae_lib.features.clamping import Clamp, ClampTarget
from sae_lib.features.weights import direct_logits
from sae_lib.formats import decimal
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae import saelens
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Neurons
from sae_lib.text.display import Vocabulary, isolated, plain
from sae_lib.text.tokenizer import exact_encoder
from suite import stages
from suite.__main__ import app
from suite.browser import page, page_model, single_file
from suite.browser.kernel import Model
from suite.table import FeatureTable, open_table
from tests.conftest import SHARED
from tests.test_browser import (  # noqa: F401  (the crafted corpus, its tokeniser)
    IMAGE,
    SCRIPT,
    TEXTS,
    found,
    make_table,
    open_page,
    tokenizer,
    with_markup_as_a_token,
    write_page,
)

MIXED = [
    "import numpy as np\n\n\n    def f(x):\t\treturn  x_1 + 3.14 # it's we'll they'd 'tis\n",
    "naïve café — „schön“ 你好世界 ١٢٣ Ⅷ ½ x² שלום مرحبا 🙂👩‍👩‍👧 e\u0301 "
    "\u200b\ufeff\u0085\u00a0\u3000\u2028 end  ",
    "<|endoftext|>a<|endoftext|> b <script>alert(1)</script>\r\n\x00\x1b[31m",
    "   leading\n \n  and trailing   ",
    "",
]
STAND_INS = r"([⏎⇥·]|⟨CR⟩|⟨[0-9a-f]{2}⟩|⟨U\+[0-9A-F]{4,6}⟩)+"  # all that is ever quiet


@pytest.fixture(scope="module")
def written(small_run, small_overrides):
    """The page of the small run, from the command line."""
    overrides = [part for o in small_overrides for part in ("--set", o)]
    result = CliRunner().invoke(
        app, ["browser", "--profile", "smoke", "--run", str(small_run.folder), *overrides]
    )
    assert (
        result.exit_code == 0 and f"browser: {small_run.folder / 'browser.html'}" in result.output
    )
    return small_run.folder / "browser.html"


@pytest.fixture(scope="module")
def opened(chromium, written):
    """One tab that stays: for what only asks the page questions."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    open_page(tab, written, "#view=try")
    tab.wait_for_selector("#tried .strip")
    assert worker(tab).evaluate("engine.model !== undefined")
    yield tab
    tab.close()


def worker(tab):
    """Where the page's model runs."""
    return tab.workers[0]


def number_shown(tab):
    return int(tab.locator("#page [data-feature]").get_attribute("data-feature"))


def turned_to(tab, number):
    tab.wait_for_selector(f"#page [data-feature='{number}']")


def by_density(table) -> list[int]:
    """The densest first, the dead last."""
    dead = table.features["n_active"] == 0
    return np.lexsort((-table.features["density"], dead)).tolist()


def listed(tab) -> list[int]:
    """The numbers of the list, in its order."""
    return tab.evaluate("sae.app.list.found")


# --- the same values and text as in Python ---


def test_the_values_are_the_tables_own(opened, small_run):
    table = open_table(small_run)
    for number in table.alive(50)[::10].tolist():
        f, there = (
            table.features.iloc[number],
            opened.evaluate("n => sae.app.features.page(n)", number),
        )
        top, samples = table.strongest(number)[:10], table.sampled(number)
        samples = samples.drop_duplicates("tenth")[::-1]
        for mine, shown in ((top, there["examples"]), (samples, there["samples"])):
            assert [e["ids"] for e in shown] == [ids.tolist() for ids in mine["token_ids"]]
            assert [e["tenth"] for e in shown] == mine["tenth"].tolist()
            for e, values in zip(shown, mine["activations"], strict=True):
                np.testing.assert_allclose(e["values"], values, rtol=1e-6)
        for column in ("density", "maximum", "mean_active", "histogram", "near_cosines"):
            np.testing.assert_allclose(there[column], f[column], rtol=1e-5)
        hook, sae, _ = _parts(small_run)
        effects = direct_logits(hook, sae.W_dec[[number]])
        bars = opened.evaluate("n => sae.app.features.logits(n)", number)
        assert sum(bars["counts"]) == effects.numel() and len(bars["counts"]) == 40
        ends = [effects.min().item(), effects.max().item()]
        np.testing.assert_allclose([bars["low"], bars["high"]], ends, rtol=1e-4)


def test_filters_give_the_same_text(opened):
    rng = np.random.default_rng(0)
    numbers = [
        0.0,
        0.125,
        1.125,
        1.135,
        2.5,
        99.95,
        99.97,
        100.5,
        101.5,
        0.5,
        1234567.0,
        9.995,
        0.09995,
        5e-7,
        1e-9,
        12.25,
        0.0625,
        3.0,
        250.0,
        1.0,
    ]
    numbers += [float(x) for x in np.float32(10.0 ** rng.uniform(-7, 6, 1000))] + (
        rng.integers(1, 4000, 500) / 16
    ).tolist()
    written = {  # as the pages without a script write it
        "decimal": decimal,
        "percent": lambda x: f"{decimal(100 * x)} %",
        "signed": lambda x: ("-" if x < 0 else "+") + decimal(abs(x)),
    }
    for name, write in written.items():
        signs = (1,) if name == "percent" else (1, -1)
        given_ = [sign * x for x in numbers for sign in signs if x > 0 or sign > 0]
        shown = opened.evaluate(f"xs => xs.map(sae.{name})", given_)
        assert shown == [write(x) for x in given_]


@given(
    texts=st.lists(st.text(st.characters(codec=None), max_size=12), min_size=20, max_size=60),
    every_blank=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_pieces_of_any_text_are_the_same(opened, texts, every_blank):
    texts = [t.encode("utf-8", "replace").decode() for t in texts] + [
        b"\xe2\x80a\xff".decode("utf-8", "surrogateescape")
    ]
    sent = json.dumps(texts)
    cut = opened.evaluate(
        "([s, b]) => JSON.parse(s).map((t) => sae.pieces(t, b))", [sent, every_blank]
    )
    assert ["".join(t for _, t in of) for of in cut] == [plain(x, every_blank) for x in texts]
    assert all(re.fullmatch(STAND_INS, t) for of in cut for quiet, t in of if quiet)
    assert opened.evaluate("s => JSON.parse(s).map((t) => sae.isolated(sae.plain(t)))", sent) == [
        isolated(plain(x)) for x in texts
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n  b", [[False, "a"], [True, "⏎··"], [False, "b"]]),
        ("a b\t", [[False, "a b"], [True, "⇥"]]),
        ("\r\u202ec\x00", [[True, "⟨CR⟩⟨U+202E⟩"], [False, "c"], [True, "⟨U+0000⟩"]]),
        ("\udce2\u0301e\u0301", [[True, "⟨e2⟩"], [False, "\u0301e\u0301"]]),
        ("\u0301·⏎", [[False, "◌\u0301·⏎"]]),
    ],
)
def test_stand_ins_alone_are_quiet(opened, text, expected):
    found = opened.evaluate("s => sae.pieces(JSON.parse(s))", json.dumps(text))
    assert [list(piece) for piece in found] == expected


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_characters_out_of_parts_are_the_same(opened, tokenizer, data):  # noqa: F811
    text = data.draw(st.text(st.sampled_from("a é你🙂שx\u202e"), max_size=10))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][data.draw(st.integers(0, 3)) :] + [
        9999
    ]
    vocabulary = Vocabulary(tokenizer)
    found = opened.evaluate(
        "([texts, ids]) => [...new sae.Vocabulary(JSON.parse(texts)).characters(ids)]",
        [json.dumps(vocabulary.texts), ids],
    )
    assert dict(found) == vocabulary.characters(ids)


# --- text is data ---


@pytest.fixture(scope="module")
def crafted(tokenizer, tmp_path_factory):  # noqa: F811
    table = with_markup_as_a_token(make_table(tokenizer, TEXTS, 8), tokenizer)
    about = {"title": f"run {IMAGE}", "facts": f"facts {SCRIPT}", "no_model": f"it is {SCRIPT}"}
    path = tmp_path_factory.mktemp("crafted") / "browser.html"
    return write_page(path, table, text=SCRIPT, **about)


def test_nothing_from_the_corpus_is_executed(tab, crafted):
    open_page(tab, crafted, "#feature=0")
    tab.wait_for_selector("[data-feature='0']")
    tab.wait_for_timeout(100)
    assert (
        tab.evaluate("window.hit") is None
        and tab.locator("main img, main iframe, main script").count() == 0
    )
    shown = tab.locator("#page .text").first.inner_text()
    assert SCRIPT in shown and IMAGE in shown and "{{ 7*7 }}" in shown and "</table>" in shown
    assert IMAGE.replace(" ", "·") in tab.locator("#row-0").inner_text()
    assert (
        IMAGE in tab.locator("h1").inner_text() and SCRIPT in tab.locator("header p").inner_text()
    )
    tab.click("nav a[data-view=try]")
    assert (
        "The language model is not in this page: it is <script>"
        in tab.locator("#model-note").inner_text()
        and tab.locator("#model").is_hidden()
    )


def test_nothing_in_the_page_hides_or_reorders(tab, crafted):
    open_page(tab, crafted)
    for number in range(5):
        tab.evaluate(f"location.hash = '#feature={number}'")
        turned_to(tab, number)
        text = tab.locator("body").inner_text() + tab.evaluate(
            "[...sae.app.root.querySelectorAll('[title]')].map(e => e.title).join('')"
        )
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\ufeff\ud800-\udfff]", text)
        boxes = tab.evaluate(  # where each token begins
            "[...sae.app.root.querySelector('#page .text').children].map(e => "
            "e.getClientRects()[0]).map(box => [box.y, box.x])"
        )
        assert boxes == sorted(boxes)  # right-to-left words stand in the order of the tokens


def test_the_policy_lets_no_other_script_run(chromium, written):
    tab, refused = chromium.new_page(), []
    tab.on("console", lambda m: refused.append(m.text))
    open_page(tab, written)
    tab.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1'; "
        "document.body.append(s); }"
    )
    tab.evaluate(
        "() => { sae.app.$('page').innerHTML = '<img src=x onerror=\"window.hit = 3\">'; }"
    )
    tab.evaluate(
        "() => { const s = document.createElement('div'); s.innerHTML = '<img src=x "
        'onerror="window.hit = 2">\'; document.body.append(s); }'
    )
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.hit") is None and any(
        "Content Security Policy" in text for text in refused
    )
    assert (
        tab.evaluate("() => fetch('https://example.org').then(() => 'sent', () => 'refused')")
        == "refused"
    )
    tab.close()


# --- list, search, pages ---


def test_the_search_finds_what_the_table_holds(opened, small_run):
    table = open_table(small_run)
    f, vocabulary = table.features, table.vocabulary
    assert found(opened, "") == f["feature"].tolist()
    expected = f.query("density < 0.01 and maximum >= 2")["feature"].tolist()
    assert found(opened, "density<1% maximum>=2") == expected
    for field, column in (("raises", "top_logits"), ("before", "before_tokens")):
        hit = [any("self" in vocabulary.texts[t].casefold() for t in ids) for ids in f[column]]
        assert found(opened, f"{field}:self") == np.flatnonzero(hit).tolist()
    texts = table.examples["token_ids"].map(lambda ids: table.spelled(ids.tolist()))
    owners = set(table.examples.loc[texts.str.contains("self", regex=False), "feature"])
    there = found(opened, "text:self")
    assert there and set(there) <= owners  # the page holds fewer examples
    assert found(opened, "", "density", True) == by_density(table)


def test_all_texts_are_read_before_somebody_searches_them(opened, small_run):
    opened.wait_for_function("() => sae.source.warmed")
    opened.evaluate("() => sae.source.warmed")
    table = open_table(small_run)
    number = int(table.alive(50)[0])
    n, there = worker(opened).evaluate("n => [engine.found.length, engine.found[n]]", number)
    text = table.spelled(table.strongest(number).iloc[0]["token_ids"].tolist()).lower()
    assert n == len(table) and plain(there).startswith(text)
    assert "reading" not in opened.locator("#count").inner_text()


def test_search_sort_and_buttons_turn_the_page(tab, written, small_run):
    table = open_table(small_run)
    open_page(tab, written, "#view=feature")
    order = listed(tab)  # the clearest first
    turned_to(tab, order[0])
    tab.click("#next")
    turned_to(tab, order[1])
    assert tab.url.endswith(f"#feature={order[1]}")
    tab.click("#previous")
    turned_to(tab, order[0])
    tab.click("#random")
    tab.wait_for_function(f"() => location.hash !== '#feature={order[0]}'")
    tab.go_back()
    turned_to(tab, order[0])
    tab.go_forward()
    tab.wait_for_function(
        f"() => !sae.app.root.querySelector(\"#page [data-feature='{order[0]}']\")"
    )
    assert table.features.n_active[number_shown(tab)] > 0
    tab.click("#heads [data-sort=maximum]")
    tab.wait_for_function("() => sae.app.$('heads').innerText.includes('maximum ↓')")
    assert listed(tab) == found(tab, "", "maximum", True)
    tab.click("#heads [data-sort=maximum]")  # again: the other way round
    smallest = found(tab, "self", "maximum", False)
    tab.fill("#query", "self")
    turned_to(tab, smallest[0])
    assert f"{len(smallest)} of {len(table)}" in tab.locator("#count").inner_text()
    assert [
        int(r.inner_text().split()[0]) for r in tab.locator("#rows [role=option]").all()[:8]
    ] == smallest[:8]
    tab.locator("#rows [role=option]").nth(3).click()
    turned_to(tab, smallest[3])
    assert "q=self" in tab.url and "sort=maximum-up" in tab.url  # as a colleague will see it
    tab.fill("#query", "no such token")
    tab.wait_for_function("() => sae.app.$('count').textContent.startsWith('none')")
    assert tab.locator("#next").is_disabled()
    tab.fill("#query", "text:self")
    tab.wait_for_function("() => /^[1-9]/.test(sae.app.$('count').textContent)")


def test_the_start_says_what_is_there(tab, written, small_run):
    """One sentence, a legend, clear features, and as many of an honest draw."""
    open_page(tab, written)
    start = tab.locator("#start")
    assert "A feature is a direction" in start.inner_text() and "line end" in start.inner_text()
    clear, drawn = (
        [int(href.split("=")[1]) for href in of.locator(".card").evaluate_all(HREFS)]
        for of in start.locator(".two-lists > section").all()
    )
    often = np.flatnonzero(open_table(small_run).features["n_active"] >= 100)
    assert len(clear) == len(drawn) == 6 and set(clear + drawn) <= set(often.tolist())
    assert listed(tab)[0] == clear[0] and listed(tab)[0] != by_density(open_table(small_run))[0]
    tokens = start.locator(".two-lists > section").first.locator(".card b").all_inner_texts()
    assert len(set(tokens)) == 6
    start.locator(".card").first.click()
    turned_to(tab, clear[0])


HREFS = "cards => cards.map(card => card.getAttribute('href'))"


def test_relevance_and_the_reasons_for_it(tab, written, small_run):
    table = open_table(small_run)
    open_page(tab, written)
    frequent = [table.strongest(n)["token_id"].mode()[0] for n in listed(tab)[:100]]
    names = [table.vocabulary.name(int(token)) for token in frequent]
    word = next(name[1:] for name in names if re.fullmatch("·[a-z]{3,}", name))
    tab.fill("#query", word)
    tab.wait_for_selector(".chip")
    rows = tab.locator("#rows [role=option]")
    assert rows.first.locator(".chip").inner_text() == "strongest"
    first = table.strongest(listed(tab)[0])["token_id"]
    assert f" {word}" in {table.vocabulary.text(int(token)) for token in first}
    places = [PLACES.index(place) for place in reasons(rows)]
    assert places[0] == 0 and np.mean(np.diff(places) < 0) < 0.3  # the better reasons first
    for query, message in (
        ("densty<0.1%", "no field densty; did you mean density?"),
        ("#99999", "no feature 99999: there are 256, numbered from 0"),
        ("txt:self", "no place txt; did you mean text?"),
    ):
        tab.fill("#query", query)
        tab.wait_for_function("m => sae.app.$('count').textContent === m", arg=message)


PLACES = ("strongest", "high on", "raises", "rule")


def reasons(rows) -> list[str]:
    said = [row.locator(".chip").first.inner_text() for row in rows.all()]
    return [next(place for place in PLACES if place in text) for text in said]


def test_deep_links_and_links_between_features(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[-1])
    open_page(tab, written, f"#feature={number}")
    assert number_shown(tab) == number and tab.title().startswith(f"feature {number} ")
    near = tab.locator("#page dl a[href^='#feature=']").first
    other = int(near.get_attribute("href").split("=")[1])
    near.click()
    turned_to(tab, other)
    tab.go_back()
    turned_to(tab, number)
    for wrong, named in (("999999", "999\u2009999"), ("-1", "-1"), ("<img>", "<img>")):
        tab.evaluate("h => { location.hash = h }", f"#feature={wrong}")
        tab.get_by_text(f"There is no feature {named}").wait_for()
        assert "256, numbered 0 to 255" in tab.locator("#page").inner_text()
    tab.evaluate("h => { location.hash = h }", "#nothing")
    tab.wait_for_selector("#start.shown")


def test_hover_shows_the_value(tab, written, small_run):
    table = open_table(small_run)
    number = int(table.alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    strongest = tab.locator("#page .examples .text bdi:has(b)").first
    assert page.decimal(table.maximum(number)) in strongest.get_attribute("title")


def test_keys(tab, written, small_run):
    open_page(tab, written, "#view=feature")
    order = listed(tab)
    turned_to(tab, order[0])
    for key, number in (("ArrowRight", 1), ("j", 2), ("ArrowLeft", 1), ("k", 0)):
        tab.keyboard.press(key)
        turned_to(tab, order[number])
    tab.keyboard.press("s")  # a star
    tab.wait_for_selector(".actions >> text=★ starred")
    tab.keyboard.press("/")
    tab.keyboard.type("#7j")  # letters typed in the field turn no page
    assert tab.locator("#query").input_value() == "#7j"
    tab.keyboard.press("Backspace")
    tab.keyboard.press("Enter")
    turned_to(tab, 7)


def test_an_example_opens_and_its_tokens_are_chosen_with_the_keyboard(tab, written, small_run):
    number = int(open_table(small_run).alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.locator("#page .value button").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".expanded .live")
    example = open_table(small_run).strongest(number).iloc[0]
    text = tab.locator(".expanded").inner_text()
    assert f"row {example['row']}" in text and f"position {example['position']}" in text
    assert ".py" in text  # the document
    tab.locator(".expanded .live").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    tab.wait_for_function("() => sae.app.root.querySelector('.here').innerText.includes('here')")
    assert "loss when ablated" in tab.locator(".here").first.inner_text()
    tab.locator(".expanded .live bdi").nth(int(example["position"])).click()
    assert number in [int(n) for n in tab.locator(".here a").all_inner_texts()]
    address = tab.url  # names the example, and opens it again
    open_page(tab, written, address[address.index("#") :])
    tab.wait_for_selector(".expanded .live")


def test_bars_of_the_histogram_choose_examples(tab, written, small_run):
    number = int(open_table(small_run).alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.locator(".histogram button").nth(2).click()
    shown = tab.locator("#page tbody[data-tenth]:visible")
    assert shown.evaluate_all("bs => bs.map(b => b.dataset.tenth)") in (["2"], [])
    assert tab.locator("#page .examples").is_hidden()
    tab.locator(".histogram button").nth(2).click()
    assert tab.locator("#page .examples").is_visible() and shown.count() > 1


def test_the_map_is_a_second_index_and_writes_the_query(tab, written, small_run):
    table = open_table(small_run)
    open_page(tab, written)
    box = tab.locator("#map").bounding_box()

    def at(x, y):  # shares of the map
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    tab.fill("#query", "density<1% self")
    tab.wait_for_function("() => sae.app.list.found.length < 256")
    tab.mouse.move(*at(0.5, 0.2))
    tab.mouse.down()
    tab.mouse.move(*at(0.8, 0.7), steps=3)
    tab.mouse.up()
    tab.wait_for_function("() => sae.app.$('query').value.startsWith('self density>=')")
    field, low, high, score, least, most = re.fullmatch(
        r"self (density)>=([\d.]+)% density<=([\d.]+)% (\w+)>=([\d.]+)%? \4<=([\d.]+)%?",
        tab.locator("#query").input_value(),
    ).groups()
    tab.wait_for_function("() => sae.app.list.parts.length === 5")
    f = table.features.query(
        "@low <= 100 * density <= @high", local_dict={"low": float(low), "high": float(high)}
    )
    assert set(listed(tab)) <= set(f["feature"]) and float(least) < float(most)
    tab.fill("#query", "")
    tab.wait_for_function("() => sae.app.list.found.length === 256")
    number = listed(tab)[0]
    x, y = tab.evaluate("n => sae.app.map.place(n)", number)
    tab.mouse.click(*at(x / 400, y / 132))
    tab.wait_for_selector("#page [data-feature]")
    near = tab.evaluate("n => sae.app.map.place(n)", number_shown(tab))
    np.testing.assert_allclose(near, (x, y), atol=2)


def test_histograms_are_side_by_side_and_saved_as_svg(tab, written, small_run):
    number = int(open_table(small_run).alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.wait_for_selector(".logits svg")
    left, right = (f.bounding_box() for f in tab.locator(".histograms figure").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    for button in tab.locator(".histograms button[data-act=svg]").all():
        with tab.expect_download() as download:
            button.click()
        drawing = ElementTree.parse(download.value.path()).getroot()
        bars = drawing.findall("{http://www.w3.org/2000/svg}rect")
        assert drawing.tag.endswith("svg") and len(bars) == 40
        assert "rgb(240, 125, 20)" in bars[0].get("style")


def test_names_and_stars_are_kept_searched_and_exported(tab, written):
    open_page(tab, written, "#feature=3")
    tab.fill(".actions [data-act=name]", "<b>my</b> words")
    tab.keyboard.press("Tab")
    tab.click(".actions button[data-act=star]")
    tab.wait_for_selector(".actions >> text=★ starred")
    assert "<b>my</b> words feature 3" in tab.locator("#page h2").inner_text()
    tab.fill(".actions [data-act=lists]", "<i>seen</i>, to check")
    tab.keyboard.press("Tab")
    open_page(tab, written)  # another day
    assert found(tab, "name:words") == found(tab, "star=1") == [3]
    assert found(tab, "list:check") == found(tab, 'list:"to check"') == [3]
    links = tab.locator("#kept a").all_inner_texts()
    assert [" ".join(link.split()) for link in links] == [
        "★ (1)",
        "<i>seen</i> (1)",
        "to check (1)",
    ]
    tab.fill("#query", "words")
    tab.wait_for_function("() => sae.app.list.found.length === 1")
    assert "in its name" in tab.locator("#row-3 .chip").inner_text()
    tab.click("nav a[data-view=start]")
    with tab.expect_download() as download:
        tab.click("button[data-act=export]")
    kept = json.loads(download.value.path().read_text())
    lists = ["<i>seen</i>", "to check"]
    assert kept["notes"] == {"3": {"name": "<b>my</b> words", "star": True, "lists": lists}}
    assert kept["lists"] == {name: [3] for name in lists}
    assert kept["ratings"] == [] and "small" in kept["title"]


def test_what_a_chat_model_said_is_shown_and_found(tab, tokenizer, tmp_path):  # noqa: F811
    table = make_table(tokenizer, TEXTS, 8)
    said = {"explanations": {"2": f"Hebrew, {SCRIPT}"}}
    open_page(tab, write_page(tmp_path / "b.html", table, **said), "#feature=2")
    assert f"A chat model says: Hebrew, {SCRIPT}" in tab.locator("#page").inner_text()
    assert found(tab, "explanation:hebrew") == [2]


HEADINGS = """() => [...sae.app.root.querySelectorAll('h1, h2, h3, h4')]
    .filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]))"""
NAMELESS = """() => [...sae.app.root.querySelectorAll('button, a, input, select, textarea')]
    .filter((e) => e.checkVisibility())
    .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
    .map((e) => e.outerHTML)"""
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    const own = e ? rgb(getComputedStyle(e).backgroundColor) : [255, 255, 255];
    if (own[3] === undefined || !e) return own;
    const below = behind(e.parentElement ?? e.getRootNode().host);
    return below.slice(0, 3).map((v, i) => v * (1 - own[3]) + own[i] * own[3]);
  };
  const poor = [];
  for (const e of sae.app.root.querySelectorAll('*')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.disabled || e.closest('style, option')) continue;
    const [a, b] = [rgb(getComputedStyle(e).color), behind(e)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([e.outerHTML.slice(0, 90), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_can_be_read_and_named(chromium, written, small_run, scheme):
    """Contrast of 4.5 to 1, headings without gaps, a name for whatever can be used."""
    tab = chromium.new_context(color_scheme=scheme).new_page()
    number = int(open_table(small_run).alive(200)[0])
    for view in ("", "&view=start", "&view=try", f"&view=compare&pins={number}", "&view=rate"):
        open_page(tab, written, f"#feature={number}{view}")
        if not view:
            tab.locator("#page .value button").first.click()
            tab.wait_for_selector(".expanded h4")
        if "try" in view:
            tab.wait_for_selector("#clamped .sides")
            tab.wait_for_selector("#graph svg")
        levels = tab.evaluate(HEADINGS)
        assert levels[0] == 1 and max(np.diff(levels), default=0) <= 1, (view, levels)
        assert tab.evaluate(NAMELESS) == []
        assert tab.evaluate(CONTRAST) == [], view
    tab.context.close()


def test_pinned_features_and_neurons_are_side_by_side(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    tab.click(".actions button[data-act=pin]")
    tab.fill("#pins", f"{number}, neuron-5")
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => sae.app.root.querySelectorAll('#pinned h2').length === 2")
    heads = tab.locator("#pinned h2").all_inner_texts()
    assert heads == [f"Feature {number}", "Neuron 5"] and "neuron-5" in tab.url
    left, right = (article.bounding_box() for article in tab.locator("#pinned article").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    tab.locator("#pinned button[data-act=pin]").first.click()
    tab.wait_for_function("() => sae.app.root.querySelectorAll('#pinned h2').length === 1")


def test_a_page_is_copied_as_markdown_in_which_nothing_is_markup(tab, crafted):
    open_page(tab, crafted, "#feature=0")
    tab.evaluate("sae.app.copy = (text) => { globalThis.copied = text; }")
    tab.click("button[data-act=markdown]")
    copied = tab.evaluate("copied")
    assert copied.startswith("### feature 0\n") and SCRIPT in copied
    tags = python_markdown.markdown(copied)
    assert "<script" not in tags and "<img" not in tags and "&lt;script&gt;" in tags
    tab.click("button[data-act=link]")
    assert tab.evaluate("copied") == tab.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(chromium, written, scheme):
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme
    )
    tab = context.new_page()
    open_page(tab, written, "#view=list")
    tab.locator("#rows [role=option]").nth(2).tap()
    tab.wait_for_selector("#page h2")
    assert tab.locator("#list").is_hidden()
    for view in ("feature", "try", "compare", "rate", "start", "list"):
        tab.tap(f"nav a[data-view={view}]")
        tab.wait_for_function("v => sae.app.view === v", arg=view)
        wide = (
            "[document.documentElement, ...sae.app.root.querySelectorAll('section')].map(e => "
            "e.scrollWidth)"
        )
        assert max(tab.evaluate(wide)) <= 390
    tab.tap("nav a[data-view=feature]")
    tab.locator("#page .examples .text").first.tap()
    tab.locator(".expanded .live bdi").first.tap()
    assert tab.locator(".here").first.inner_text().strip()  # a tap shows what hovering would
    ink, paper = tab.evaluate(
        "[getComputedStyle(sae.app.$('page')).color, "
        "getComputedStyle(sae.app.host).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] > light[1] + 300) == (scheme == "dark") and abs(light[0] - light[1]) > 300
    context.close()


# --- the model inside ---


@pytest.fixture(scope="module")
def inside(small_run):
    """(model, autoencoder) with the weights that the page holds: int8 times the scale of the
    row.
    """
    model, sae = (
        language_model.open_model(str(small_run.folder / "language_model")),
        SparseAutoencoder.load(small_run.path("autoencoder")),
    )
    with torch.no_grad():
        for weight in page_model.weights(model, sae).values():
            if weight.dim() == 1:
                continue
            q, scale = page_model.quantised(weight)
            assert (
                np.abs(q).max() == 127
                and (np.abs(q * scale[:, None] - weight.numpy()) <= 0.5001 * scale[:, None]).all()
            )
            weight.copy_(torch.from_numpy(q * scale[:, None]))
    return model.eval(), sae


def test_the_tokeniser_is_the_projects_own(opened, small_run):
    tokenizer = small_run.get("tokens").tokenizer  # noqa: F811
    texts = MIXED + [
        small_run.get("tokens").tokenizer.decode(
            small_run.get("tokens").train[i : i + 400].astype(int)
        )
        for i in range(0, 20_000, 2000)
    ]
    for text in texts:
        assert (
            worker(opened).evaluate("t => engine.model.tokenizer.encode(t)", text)
            == exact_encoder(tokenizer).encode(text, add_special_tokens=False).ids
        ), text


@given(texts=st.lists(st.text(max_size=20), min_size=10, max_size=40))
@settings(max_examples=20, deadline=None)
def test_any_text_is_tokenised_alike(opened, small_run, texts):
    encoder = exact_encoder(small_run.get("tokens").tokenizer)
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    assert worker(opened).evaluate(
        "ts => ts.map((t) => engine.model.tokenizer.encode(t))", texts
    ) == [encoder.encode(t, add_special_tokens=False).ids for t in texts]


def ids_of(run, n):
    return run.get("tokens").rows("heldout", n)[0].astype(int).tolist()


CLAMPS = [("pin", 2.5, True), ("scale", -3.0, True), ("ablate", 0.0, True), ("pin", 2.5, False)]


def test_the_page_computes_what_torch_computes(opened, small_run, inside):
    model, sae = inside
    ids = ids_of(small_run, small_run.settings.lm.context)
    hook = HookPoint(model, small_run.settings.sae.hook_name)
    with torch.no_grad():
        logits, x = model(torch.tensor([ids])).logits[0], hook.activations(torch.tensor([ids]))[0]
        acts = sae.encode(x)
    feature = int(acts.amax(0).argmax())
    there = worker(opened).evaluate(
        """([ids, n]) => { const m = engine.model, rows = m.rows_at_hook(ids);
        return { logits: m.run(ids, undefined, false).map((l) => [...l]),
                 x: rows.map((r) => [...r]), acts: rows.map((r) => [...m.features(r)]),
                 one: rows.map((r) => m.feature(r, n)) }; }""",
        [ids, feature],
    )
    for name, expected in (("logits", logits), ("x", x), ("acts", acts), ("one", acts[:, feature])):
        np.testing.assert_allclose(np.array(there[name]), expected.numpy(), atol=1e-3, err_msg=name)
    for how, value, keep_error in CLAMPS:
        with clamping.clamped(hook, sae, [Clamp(feature, how, value)], keep_error):
            with torch.no_grad():
                clamped = model(torch.tensor([ids])).logits[0]
        script = (
            "([ids, clamp, keep]) => { const m = engine.model; return m.run(ids, "
            "m.clamped([clamp], keep), false).map((l) => [...l]); }"
        )
        clamp = {"feature": feature, "how": how, "value": value}
        shown = worker(opened).evaluate(script, [ids, clamp, keep_error])
        np.testing.assert_allclose(np.array(shown), clamped.numpy(), atol=1e-3, err_msg=how)
        assert (clamped - logits).abs().max() > 1e-3


def test_the_page_says_why_a_feature_fires_as_the_library_does(opened, small_run, inside):
    model, sae = inside
    ids = ids_of(small_run, small_run.settings.lm.context)
    block = Block(HookPoint(model, small_run.settings.sae.hook_name), sae)
    held = block.forward(np.array([ids]))
    firing = sae.encode(held.x[0]).nonzero()
    places = firing[torch.randperm(len(firing), generator=torch.Generator().manual_seed(0))[:8]]
    for position, feature in [*places.tolist(), [0, 3], [len(ids) - 1, 3]]:
        split = block.split(held, *torch.tensor([[0], [position], [feature]]))
        given_ = {"ids": ids, "feature": feature, "position": position}
        there = worker(opened).evaluate("g => engine.model.why(g)", given_)
        parts = split.sources[0].sum(0).T[: position + 1]
        scale = parts.abs().sum().item() + split.own.abs().sum().item()
        near = {"atol": 1e-4 * scale, "rtol": 0}
        np.testing.assert_allclose(there["total"], split.total.item(), **near)
        np.testing.assert_allclose(there["own"], split.own[0].numpy(), **near)
        np.testing.assert_allclose(there["sources"], parts.numpy(), **near)
    seconds = worker(opened).evaluate(
        "g => { const t = performance.now(); for (let i = 0; i < 5; i++) engine.model.why(g);"
        " return (performance.now() - t) / 5000; }",
        {"ids": ids, "feature": feature, "position": len(ids) - 1},
    )
    assert seconds < 0.5  # 0.05 in a laptop run's page where nothing else computes


def test_why_here_is_shown_under_examples_and_own_text(tab, written, small_run):
    number = int(open_table(small_run).alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.locator("#page .examples .value button").first.click()
    tab.wait_for_selector(".expanded .why table")
    rows = tab.locator(".expanded .why tbody tr").all_inner_texts()
    assert rows[0].startswith("own token") and rows[-1].startswith("biases")
    values = [
        float(re.search(r"[+-][\d.\u2009]+", row.split("\t")[1])[0].replace("\u2009", ""))
        for row in rows
    ]
    total = tab.locator(".expanded .why h4").inner_text().split(" is at ")[1].split(" ")[0]
    assert sum(values) == pytest.approx(float(total), abs=0.02 * sum(map(abs, values)))
    assert "head " in tab.locator(".expanded .why tbody").inner_text()
    tab.locator(".expanded .live bdi").first.click()
    tab.wait_for_function(
        "() => sae.app.$('page').querySelectorAll('.expanded .why tbody tr').length === 4"
    )  # the first token: itself, its position, one source and the biases
    open_page(tab, written, f"#feature={number}&view=try&text=def main")
    tab.wait_for_selector("#tried .strip")
    assert tab.locator("#tried > *").first.inner_text().startswith("The strongest features")
    tab.locator("#tried .live bdi").first.click()
    tab.wait_for_selector("#tried .why table")
    tab.wait_for_selector("#graph svg")  # what follows the first token
    tab.wait_for_function("() => sae.app.$('graph').innerText.includes('Choose another token')")
    drawn = tab.locator("#graph svg a")
    assert 0 < drawn.count() <= 8 and tab.locator("#graph svg path").count() > 4
    href = drawn.first.get_attribute("href")
    drawn.first.click()
    tab.wait_for_selector(f"#clamps a[href='{href}']")


def test_the_whole_row_of_an_example_is_shown(tab, written, small_run, inside):
    model, sae = inside
    table, hook = open_table(small_run), HookPoint(model, small_run.settings.sae.hook_name)
    number = int(table.alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.locator("#page .tenths .value button").first.click()
    tab.wait_for_selector(".expanded h4")
    example = table.sampled(number).iloc[-1]
    example = table.sampled(number).query("tenth == @example.tenth").iloc[0]
    ids = stages.heldout_rows(small_run, small_run.settings.evaluation.tokens)[example["row"]]
    ids = torch.from_numpy(ids.astype(np.int64))
    there = tab.evaluate(
        "g => sae.source.ask('context', g)",
        {"row": int(example["row"]), "feature": number, "ablate": True},
    )
    assert there["ids"] == ids.tolist() and tab.locator(".expanded .text").count() == 2
    expected = clamping.ablation_effect(hook, sae, ids, number)
    np.testing.assert_allclose(there["effects"], expected, atol=1e-3)
    assert tab.locator(".expanded .text").first.locator("bdi").count() == len(ids)
    assert f"row {example['row']}" in tab.locator(".expanded").inner_text()


def test_int8_changes_little(small_run, inside):
    """Against the weights as trained: activations correlate, and the next token's distribution
    moves by a hundredth of a nat at most.
    """
    model, sae = inside
    float_model, float_sae = (
        language_model.open_model(str(small_run.folder / "language_model")),
        small_run.get("autoencoder"),
    )
    rows = torch.from_numpy(
        small_run.get("tokens").rows("heldout", small_run.settings.lm.context)[:16].astype(np.int64)
    )
    with torch.no_grad():
        p, q = float_model(rows).logits.log_softmax(-1), model(rows).logits.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        name = small_run.settings.sae.hook_name
        f, g = (
            s.encode(HookPoint(m, name).activations(rows)).flatten()
            for m, s in ((float_model, float_sae), (model, sae))
        )
    assert kl < 0.01 and torch.corrcoef(torch.stack([f, g]))[0, 1] > 0.99


def test_what_was_read_is_not_read_again_and_is_sent_ahead(opened, small_run):
    ids = ids_of(small_run, small_run.settings.lm.context)
    whole, kept, again, parts, answer = worker(opened).evaluate(
        """ids => {
        const m = engine.model, kept = {}, now = performance.now;
        const rows = (acts) => acts.map((row) => [...row]);
        const whole = [...m.run(ids)[0]];
        let last;
        for (const n of [5, 6, ids.length]) last = m.run(ids.slice(0, n), undefined, true, kept)[0];
        m.acts([...ids.slice(0, 9), 1, 2, 3]); // typed into the middle
        const typed = rows(m.acts(ids)), parts = [];
        m.cache = [];
        const fresh = rows(m.acts(ids)), text = 'import os\\nimport re', feature = 3;
        let clock = 0;
        performance.now = () => (clock += 1000);
        m.cache = [];
        const answer = m.activations({ text, feature }, (part) => parts.push(part));
        performance.now = now;
        return [whole, [...last], [typed, fresh], parts, answer]; }""",
        ids,
    )
    np.testing.assert_allclose(kept, whole, atol=1e-4)
    np.testing.assert_allclose(*again, atol=1e-4)
    assert len(parts) == len(answer["ids"]) - 1
    for n, part in enumerate(parts, 1):  # so much is known; the rest is silent
        assert part["ids"] == answer["ids"] and part["values"][:n] == answer["values"][:n]
        assert part["strongest"][:n] == answer["strongest"][:n] and not any(part["strongest"][n:])


def test_generation_is_seeded_and_shares_its_noise(opened):
    made = worker(opened).evaluate(
        """() => { 
        const m = engine.model, ids = m.tokenizer.encode('import os');
        const make = (seed, change, heat = 0.8) => m.generate(ids, 10, heat, seed, change);
        return [make(0), make(0), make(1), make(0, m.clamped([{feature: 3, how: 'ablate'}])),
                make(0, (x) => {}), ids.length, m.n_positions, make(0, undefined, 0),
                make(1, undefined, 0)]; }"""
    )
    assert made[0] == made[1] == made[4] != made[2] and len(made[0]) <= made[5] + 10
    assert made[7] == made[8]  # at temperature 0 the seed does not matter
    assert (
        worker(opened).evaluate("() => engine.model.generate([0], 10000, 0.8, 0).length") <= made[6]
    )


def test_own_text_and_clamping_in_the_page(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    tab.click("#try-it")  # one click: the model writes, as it is and with the feature held
    tab.wait_for_selector("#clamped .sides")
    tab.fill("#text", "import json\nself.assertEqual(1, <b>2</b>)")
    tab.wait_for_function("() => sae.app.$('tried').innerText.includes('assertEqual')")
    text = tab.locator("#tried .live")
    assert "<b>2</b>" in text.inner_text() and tab.locator("#tried .text b b").count() == 0
    ids = tab.evaluate("sae.app.try.ids")
    strip = tab.locator("#tried .strip")
    assert strip.locator("thead th").count() == text.locator("bdi").count() == len(ids)
    assert f"{len(ids)} tokens" in tab.locator("#tokens").inner_text()
    assert 0 < strip.locator("tbody tr").count() <= 12
    strip.locator("thead th").nth(2).click()
    cells = strip.locator("tbody tr:not(.chosen) td[data-token='2']").evaluate_all(
        "tds => tds.map((td) => [td.closest('tr').querySelector('a').textContent, td.title])"
    )
    on = {n for n, value in cells if value != "0"}
    assert on and on <= set(tab.locator("#tried .here a").all_inner_texts())  # no tooltip needed
    link = strip.locator(f"a[href^='#feature=']:not([href='#feature={number}'])").first
    other = int(link.get_attribute("href").split("=")[1])
    link.click()  # another feature, the same text
    tab.wait_for_selector(f"#clamps a[href='#feature={other}']")
    assert f"#feature={other}&view=try" in tab.url and tab.locator("#tried bdi[style]").count() > 0
    tab.fill("#clamps input[type=number]", "50")
    tab.wait_for_function("() => sae.app.$('clamped').innerText.includes('held at 50')")
    assert f"clamps={other}%3Apin%3A50" in tab.url
    with_50 = tab.locator("#clamped").inner_text()
    target = ClampTarget(*_parts(small_run))
    hook_run = target.next_tokens(tab.locator("#text").input_value(), [Clamp(other, "pin", 50.0)])
    shown = float(re.search(r"KL\(baseline ‖ clamped\) ([\d.]+) nats", with_50)[1])
    assert shown == pytest.approx(hook_run.kl, rel=0.1)  # int8 against float
    assert float(re.search(r"random directions of the same norm: ([\d.]+)", with_50)[1]) > 0
    columns = tab.locator("#clamped .sides > span").all_inner_texts()
    assert len(columns) == 24 and tab.locator("#clamped .parts").count() == 1
    tab.fill("#text", "word " * 300)
    tab.wait_for_function(
        "() => sae.app.$('tokens').textContent.includes('reads the first "
        f"{small_run.settings.lm.context}')"
    )
    tab.wait_for_function("() => sae.app.$('clamp-note').textContent.includes('shorten')")
    tab.fill("#text", "")
    tab.wait_for_function("() => sae.app.$('tokens').textContent === '0 tokens'")
    tab.click("#generate")
    tab.wait_for_function("() => sae.app.$('clamp-note').textContent.includes('is empty')")


def test_several_features_are_held_and_the_address_says_so(tab, written, small_run):
    first, second = open_table(small_run).alive(50)[:2].tolist()
    open_page(tab, written, f"#feature={first}&view=try&text=import+json")
    tab.wait_for_selector("#clamped .sides")
    assert tab.locator("#text").input_value() == "import json"
    tab.evaluate(f"sae.app.go({{ feature: {second}, view: 'try', clamps: '{first}:pin:9' }})")
    tab.wait_for_selector(f"#clamps a[href='#feature={first}']")
    tab.click("#add-clamp")
    tab.wait_for_function("() => sae.app.$('clamped').innerText.includes(', feature')")
    assert tab.locator("#clamps [data-clamp]").count() == 2
    clamps = [Clamp(first, "pin", 9.0), Clamp(second, "pin", shown_value(tab))]
    expected = ClampTarget(*_parts(small_run)).next_tokens("import json", clamps).kl
    kl = re.search(r"clamped\) ([\d.]+) nats", tab.locator("#clamped").inner_text())[1]
    assert float(kl) == pytest.approx(expected, rel=0.1)
    state = tab.url[tab.url.index("#") :]  # what a colleague is sent
    open_page(tab, written, state)
    tab.wait_for_selector("#clamped .sides")
    assert tab.locator("#clamps [data-clamp]").count() == 2
    tab.locator("#clamps [data-remove]").first.click()
    tab.wait_for_function("() => !sae.app.$('clamped').innerText.includes(', feature')")


def shown_value(tab) -> float:
    return float(tab.locator("#clamps input[type=number]").nth(1).input_value())


def _parts(run):

    return (
        stages.hook(run),
        run.get("autoencoder"),
        run.get("tokens").tokenizer,
    )


# --- what is left out, and where it goes ---


def test_a_model_that_the_page_cannot_run_is_left_out_with_a_sentence(small_run):
    model, tokenizer = (  # noqa: F811
        language_model.open_model(str(small_run.folder / "language_model")),
        small_run.get("tokens").tokenizer,
    )  # noqa: F811
    assert page_model.why_not(model, tokenizer, Neurons(4)) == ""
    llama = language_model.build(
        small_run.settings.lm.model_copy(update={"architecture": "llama", "n_layer": 2}), 300, 0
    )
    assert "llama model of 2 layers" in page_model.why_not(llama, tokenizer, Neurons(4))
    model.config.activation_function = "gelu_new"
    assert "gelu_new" in page_model.why_not(model, tokenizer, Neurons(4))
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a"))
    )
    model.config.activation_function = "relu"
    assert "no byte-level BPE" in page_model.why_not(model, words, Neurons(4))


def test_any_autoencoder_has_a_page(tab, small_run, text_folder, tmp_path):
    """One command: a folder in SAELens' layout, a language model, and files."""
    command = ["browser", "--sae", str(small_run.path("autoencoder"))]
    command += ["--model", str(small_run.folder / "language_model"), "--text", str(text_folder)]
    out = tmp_path / "any.html"
    result = CliRunner().invoke(app, [*command, "--tokens", "8192", "--out", str(out)])
    assert result.exit_code == 0, result.output
    open_page(tab, out)
    assert "256 features" in tab.locator("#count").inner_text()
    tab.locator("#start .card").first.click()
    tab.locator("#page .value button").first.click()
    tab.wait_for_selector(".expanded h4")  # the model and the text are inside
    assert "json_" in tab.locator(".expanded").inner_text() or ".py" in (
        tab.locator(".expanded").inner_text()
    )
    missing = CliRunner().invoke(app, command[:-2])
    assert missing.exit_code != 0 and "--text is missing" in str(missing.exception)
    short = CliRunner().invoke(
        app, [*command[:-1], str(next(text_folder.iterdir())), "--tokens", "9"]
    )
    assert "expected at least one row" in str(short.exception)


def test_an_autoencoder_of_another_models_layer_is_shown_without_the_model(tab, tmp_path):
    """A Llama of five layers: the page says what it leaves out."""
    if not (MODEL := SHARED / "models" / "stories260K").exists():
        pytest.skip("no stories260K here")
    torch.manual_seed(0)
    sae = SparseAutoencoder(64, 96)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.normal_()
    sae.save(tmp_path / "mine", {"hook_name": "blocks.2.hook_resid_post", "prepend_bos": True})
    (tmp_path / "text.txt").write_text("Once upon a time there was a <b>cat</b>. " * 200)
    out = tmp_path / "any.html"
    single_file.write_any(tmp_path / "mine", str(MODEL), str(tmp_path / "text.txt"), 2000, out)
    open_page(tab, out, "#view=try")
    assert "llama model of 5 layers" in tab.locator("#model-note").inner_text()
    tab.click("nav a[data-view=feature]")
    tab.locator("#page .value button").first.click()
    tab.get_by_text("The whole text needs the language model").wait_for()
    other = SparseAutoencoder(32, 96)
    other.save(tmp_path / "other", {"hook_name": "blocks.2.hook_resid_post"})
    with pytest.raises(SettingsError, match="found an autoencoder of 32 dimensions; expected 64"):
        single_file.write_any(tmp_path / "other", str(MODEL), str(tmp_path / "text.txt"), 2000, out)


# what differs from a standard autoencoder: keys of its cfg.json
SAVED = {
    "standard": {},
    "without b_dec": {"apply_b_dec_to_input": False},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "k": 6},
    "topk by norm": {"architecture": "topk", "k": 6, "rescale_acts_by_decoder_norm": True},
    "gated": {"architecture": "gated"},
    "gated without b_dec": {"architecture": "gated", "apply_b_dec_to_input": False},
    "batchtopk": {"architecture": "batchtopk", "rescale_acts_by_decoder_norm": True},
    "matryoshka": {"architecture": "matryoshka_batchtopk"},
    "transcoder": {"architecture": "transcoder", "apply_b_dec_to_input": False},
    "jumprelu transcoder": {"architecture": "jumprelu_transcoder", "apply_b_dec_to_input": False},
}
N_SAVED = 48  # features of each


def saved_by_saelens(folder, d_in: int, **more) -> tuple[dict, dict]:
    """(configuration, tensors) of such a folder, written. The weights are whole numbers of int8
    times a scale, so that the page has the same ones.
    """
    config = {"architecture": "standard", "d_in": d_in, "d_sae": N_SAVED, "dtype": "float32"}
    hook = "mlp.hook_in" if "transcoder" in str(more.get("architecture")) else "mlp.hook_post"
    config |= {"metadata": {"hook_name": f"blocks.0.{hook}", "sae_lens_version": "6.54.12"}} | more
    random = torch.Generator().manual_seed(0)

    def whole(*shape):
        levels = torch.randint(-127, 128, shape, generator=random)
        levels[:, 0] = 127
        return levels * torch.rand(shape[0], 1, generator=random) / 127

    vector = partial(torch.randn, generator=random)
    tensors = {"W_enc": whole(N_SAVED, d_in).T, "W_dec": whole(N_SAVED, d_in)}
    tensors |= {"b_dec": 0.1 * vector(d_in), "b_enc": vector(N_SAVED)}
    name = config["architecture"] or ""
    if "jumprelu" in name:
        tensors["threshold"] = vector(N_SAVED)  # below zero too
    elif "batchtopk" in name:
        tensors["topk_threshold"] = torch.tensor(0.7, dtype=torch.double)
    elif name == "gated":
        tensors |= {"b_mag": tensors.pop("b_enc"), "b_gate": vector(N_SAVED)}
        tensors["r_mag"] = 0.3 * vector(N_SAVED)
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    return config, tensors


def encoded_by_saelens(x, config: dict, t: dict):
    """Features as `encode` of SAELens 6.54's classes computes them."""
    x = x - t["b_dec"] if config.get("apply_b_dec_to_input", True) else x
    if config["architecture"] == "gated":
        magnitude = (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        return magnitude * (x @ t["W_enc"] + t["b_gate"] > 0)
    z = x @ t["W_enc"] + t["b_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        z = z * t["W_dec"].norm(dim=-1)
    if "k" in config:
        top = z.topk(config["k"])
        return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())
    return z.relu() * (z > t.get("threshold", t.get("topk_threshold", torch.tensor(0.0))))


@pytest.mark.parametrize("which", SAVED)
def test_every_architecture_of_saelens_has_a_page(tab, small_run, text_folder, tmp_path, which):
    """The library and the page compute what SAELens' formulas say; a transcoder has a page without
    the model.
    """
    transcoder, s = "transcoder" in which, small_run.settings.lm
    of = saved_by_saelens(tmp_path / "sae", s.d_model if transcoder else s.d_mlp, **SAVED[which])
    sae, _ = saelens.load_any(tmp_path / "sae")
    x = torch.randn(64, sae.d_in, generator=torch.Generator().manual_seed(1))
    expected = encoded_by_saelens(x, *of)
    assert 0.05 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-4, atol=1e-4)
    norm = of[1]["W_dec"].norm(dim=1) if "rescale_acts_by_decoder_norm" in of[0] else 1.0
    decoded = expected / norm @ of[1]["W_dec"] + of[1]["b_dec"]
    torch.testing.assert_close(sae(x), decoded, rtol=1e-4, atol=1e-4)
    out = tmp_path / "page.html"
    command = ["browser", "--sae", str(tmp_path / "sae"), "--text", str(text_folder)]
    command += ["--model", str(small_run.folder / "language_model"), "--tokens", "2048"]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.exception
    open_page(tab, out, "#view=try")
    if transcoder:
        assert "the features are a transcoder's" in tab.locator("#model-note").inner_text()
        tab.click("nav a[data-view=feature]")
        tab.wait_for_selector("#page .examples")
        return
    tab.wait_for_selector("#tried .strip")
    there = worker(tab).evaluate(IN_PAGE, tab.evaluate("sae.app.features.row(3)"))
    x, *shown = (torch.tensor(part) for part in there)
    for acts in shown:
        torch.testing.assert_close(
            acts[:, :N_SAVED], encoded_by_saelens(x, *of), rtol=1e-4, atol=1e-4
        )


IN_PAGE = """(ids) => {
    const m = engine.model, rows = m.rows_at_hook(ids), all = rows.map((x) => m.features(x));
    const one = rows.map((x) => Array.from({ length: 48 }, (_, n) => m.feature(x, n)));
    return [rows, all, one].map((part) => part.map((row) => [...row])); }"""


def test_a_transcoders_features_are_read_where_the_mlp_reads(small_run, tmp_path):
    of = {"architecture": "transcoder", "apply_b_dec_to_input": False}
    saved_by_saelens(tmp_path / "sae", small_run.settings.lm.d_model, **of)
    sae, config = saelens.load_any(tmp_path / "sae")
    model, seen = stages.hook(small_run).model, []
    ids = torch.tensor([ids_of(small_run, 32)])
    with model.transformer.h[0].ln_2.register_forward_hook(lambda *a: seen.append(a[2])):
        model(ids)
    for name in (config["hook_name"], "blocks.0.ln2.hook_normalized"):
        hook = saelens.hook_of(sae, model, name)
        torch.testing.assert_close(hook.activations(ids), seen[0])
        torch.testing.assert_close(direct_logits(hook, sae.W_dec[:3]), into_logits(model, sae))


def into_logits(model, sae):
    """What the first three features add to the logits, centred, from the residual stream."""
    rows = sae.W_dec[:3] - sae.W_dec[:3].mean(1, keepdim=True)
    logits = (rows * model.transformer.ln_f.weight) @ model.get_output_embeddings().weight.T
    return (logits - logits.mean(1, keepdim=True)).detach()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported; expected one of"),
        ({"architecture": "abstopk", "k": 3}, "architecture 'abstopk' is not supported"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not supported"),
        ({"architecture": "topk"}, "'topk' with its k"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        (
            {"architecture": "gated", "reshape_activations": "hook_z"},
            "is 'hook_z'; expected 'none'",
        ),
        (
            {"architecture": "gated", "d_sae": 7},
            "expected a gated autoencoder of d_in 8 and d_sae 7",
        ),
        ({"architecture": None}, "architecture None is not supported"),
    ],
)
def test_what_cannot_be_read_is_refused_with_one_message(tmp_path, more, message):
    saved_by_saelens(tmp_path / "sae", 8, **({"architecture": "standard"} | more))
    with pytest.raises(ArtefactError, match=message) as refused:
        saelens.load_any(tmp_path / "sae")
    assert str(tmp_path / "sae") in str(refused.value)
    with pytest.raises(ArtefactError, match="is not a readable autoencoder"):
        saelens.load_any(tmp_path)


def test_neurons_have_a_page_of_their_own(tab, small_run):
    path = single_file.write_browser(small_run, "neurons")
    assert path == small_run.folder / "browser_neurons.html"
    open_page(tab, path, "#feature=5&view=try")
    tab.wait_for_selector("#tried .strip")
    assert "neuron 5" in tab.locator("#tried").inner_text()
    ids = tab.evaluate("sae.app.try.ids")
    x = worker(tab).evaluate(
        "ids => [...engine.model.features(engine.model.rows_at_hook(ids)[0])]", ids
    )
    hook, _, tokenizer = _parts(small_run)  # noqa: F811
    expected = hook.activations(torch.tensor([ids]))[0, 0]
    np.testing.assert_allclose(x, expected, atol=0.05)
    tab.click("nav a[data-view=rate]")
    assert "in the page of the features" in tab.locator("#rate").inner_text()


def test_both_sources_give_the_same_answers(opened, small_run):
    """int8 in the page against float32 in the kernel."""
    model, feature = Model(small_run), int(open_table(small_run).alive(50)[0])
    given_ = {"text": MIXED[0] * 20, "feature": feature}
    here, there = model.activations(**given_), ask(opened, "activations", given_)
    assert (here["ids"], here["cut"]) == (there["ids"], there["cut"]) and here["cut"] > 0
    np.testing.assert_allclose(here["values"], there["values"], atol=0.05)
    assert here.keys() == there.keys() and len(there["strongest"]) == len(here["ids"])
    clamp = {"feature": feature, "how": "pin", "value": 20.0}
    given_ = {"text": "import os", "clamps": [clamp], "new_tokens": 4}
    here, there = model.clamp(**given_), ask(opened, "clamp", given_)
    assert here.keys() == there.keys() and here["prompt"] == there["prompt"]
    assert here["kl"] == pytest.approx(there["kl"], rel=0.1)
    assert [len(side["ids"]) for side in there["sides"]] == [here["prompt"] + 4] * 2
    top = [{t: after for t, _, after in answer["next"]} for answer in (here, there)]
    assert all(top[0][t] == pytest.approx(top[1][t], abs=0.02) for t in top[0].keys() & top[1])
    given_ = {"ids": here["sides"][0]["ids"], "feature": feature, "position": 2}
    here, there = model.why(**given_), ask(opened, "why", given_)
    assert here.keys() == there.keys() and len(here["sources"]) == len(there["sources"]) == 3
    assert here["total"] == pytest.approx(there["total"], abs=0.05)
    given_ = {"ids": given_["ids"], "tokens": [40, 41]}
    here, there = model.graph(**given_), ask(opened, "graph", given_)
    assert here.keys() == there.keys() and here["tokens"] == there["tokens"]
    assert here["other"].pop("skip connection") == 0
    assert here["other"].keys() == there["other"].keys()
    scale = 0.05 * max(np.abs(here["direct"]).max(), abs(here["total"]))  # int8 against float32
    for part in ("total", "direct"):
        np.testing.assert_allclose(here[part], there[part], atol=scale)
    edges = [v for _, v, _ in there["features"]] + [*there["direct"], *there["other"].values()]
    assert sum(edges) == pytest.approx(there["total"], abs=1e-4)
    assert here["other"]["biases"] == pytest.approx(there["other"]["biases"], abs=2 * scale)
    given_ = {"row": 3, "feature": feature, "ablate": True}
    here, there = model.context(**given_), ask(opened, "context", given_)
    assert here["ids"] == there["ids"]
    np.testing.assert_allclose(here["effects"], there["effects"], atol=0.05)


def ask(tab, question, given_):  # noqa: F811
    return tab.evaluate("([q, g]) => sae.source.ask(q, g)", [question, given_])


def test_a_table_of_an_older_run_is_drawn_without_what_it_lacks(tab, tokenizer, tmp_path):  # noqa: F811
    path = write_page(tmp_path / "browser.html", make_table(tokenizer, TEXTS, 8))
    open_page(tab, path, "#feature=4")
    assert (
        tab.locator("#page .tenths").count() == 0
        and "AUROC" not in tab.locator("#heads").inner_text()
    )
    tab.evaluate("location.hash = '#feature=7'")
    turned_to(tab, 7)
    assert "Dead" in tab.locator("#page").inner_text()


def test_the_page_is_one_file_without_addresses(written):
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", written.read_text(encoding="utf-8"))
    assert not list(written.parent.glob("*.partial"))


def test_scores_are_searched_sorted_and_shown(tab, tokenizer, tmp_path):  # noqa: F811
    plain_table = make_table(tokenizer, TEXTS, 8)
    scores = pd.DataFrame(
        {
            "kind": "feature",
            "unit": range(5),
            "rule": [f"token is <b>{i}</b>" for i in range(5)],
            "n_conditions": 1,
            "balanced_accuracy": 0.8,
            "auroc": [0.5, 0.9, 0.7, 0.95, 0.6],
        }
    )
    table = FeatureTable(plain_table.features, plain_table.examples, tokenizer, "feature", scores)
    path = tmp_path / "browser.html"
    open_page(tab, write_page(path, table))
    tab.click("#heads [data-sort=auroc]")
    tab.wait_for_function("() => sae.app.root.querySelector('[role=option]').id === 'row-3'")
    assert [r.get_attribute("id") for r in tab.locator("[role=option]").all()[:5]] == [
        f"row-{i}" for i in (3, 1, 2, 4, 0)
    ]
    tab.fill("#query", "auroc>0.65 rule:<b>")
    tab.wait_for_function("() => sae.app.$('count').textContent.startsWith('3 of 8')")
    assert number_shown(tab) == 3 and tab.locator("[role=option]").count() == 3
    assert (
        "token is <b>3</b>" in tab.locator(".rule").inner_text()
        and "0.95" in tab.locator("#row-3").inner_text()
    )
