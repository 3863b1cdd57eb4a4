"""browser.html in Chromium, from disk: search, pages, links, keys; text is data; the model
inside agrees with torch.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from typer.testing import CliRunner

from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp, ClampTarget
from sae_lib.formats import decimal
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.text.display import Vocabulary, isolated, plain
from sae_lib.text.tokenizer import exact_encoder
from suite import stages
from suite.__main__ import app
from suite.browser import page, page_model, single_file
from suite.browser.kernel import Model
from suite.browser.table import FeatureTable, open_table
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
    tab.wait_for_selector("#per-token table")
    assert tab.evaluate("sae.source.model !== undefined")
    yield tab
    tab.close()


def number_shown(tab):
    return int(tab.locator("#page [data-feature]").get_attribute("data-feature"))


def turned_to(tab, number):
    tab.wait_for_selector(f"#page [data-feature='{number}']")


def by_density(table) -> list[int]:
    """The order in which the page lists features at first."""
    dead = table.features["n_active"] == 0
    return np.lexsort((-table.features["density"], dead)).tolist()


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
        boxes = tab.evaluate(
            "[...sae.app.root.querySelector('#page .text').children].map(e => "
            "[e.getBoundingClientRect().y, e.getBoundingClientRect().x])"
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


def test_search_sort_and_buttons_turn_the_page(tab, written, small_run):
    table = open_table(small_run)
    open_page(tab, written)
    order = by_density(table)
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
    tab.select_option("#sort", "maximum")
    tab.click("#direction")
    smallest = found(tab, "self", "maximum", False)
    tab.fill("#query", "self")
    turned_to(tab, smallest[0])
    assert f"{len(smallest)} of {len(table)}" in tab.locator("#count").inner_text()
    assert [
        int(r.inner_text().split()[0]) for r in tab.locator("#rows [role=option]").all()[:8]
    ] == smallest[:8]
    tab.locator("#rows [role=option]").nth(3).click()
    turned_to(tab, smallest[3])
    tab.fill("#query", "no such token")
    tab.wait_for_function("() => sae.app.$('count').textContent.startsWith('none')")
    assert tab.locator("#next").is_disabled()
    tab.fill("#query", "text:self")
    tab.wait_for_function("() => /^[1-9]/.test(sae.app.$('count').textContent)")


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
    for wrong in ("#feature=999999", "#feature=-1", "#feature=<img>", "#nothing"):
        tab.evaluate("h => { location.hash = h }", wrong)
        assert number_shown(tab) >= 0


def test_hover_shows_the_value(tab, written, small_run):
    table = open_table(small_run)
    number = int(table.alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    strongest = tab.locator("#page .examples bdi:has(b)").first
    assert page.decimal(table.maximum(number)) in strongest.get_attribute("title")


def test_keys(tab, written, small_run):
    order = by_density(open_table(small_run))
    open_page(tab, written)
    turned_to(tab, order[0])
    for key, number in (("ArrowRight", 1), ("j", 2), ("ArrowLeft", 1), ("k", 0)):
        tab.keyboard.press(key)
        turned_to(tab, order[number])
    tab.keyboard.press("/")
    tab.keyboard.type("#7j")  # letters typed in the field turn no page
    assert tab.locator("#query").input_value() == "#7j"
    tab.keyboard.press("Backspace")
    tab.keyboard.press("Enter")
    turned_to(tab, 7)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(chromium, written, scheme):
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme
    )
    tab = context.new_page()
    open_page(tab, written)
    tab.locator("#rows [role=option]").nth(2).tap()
    tab.wait_for_selector("#page h3")
    assert tab.locator("#list").is_hidden()
    for view in ("feature", "try", "context", "rate", "list"):
        tab.tap(f"nav a[data-view={view}]")
        tab.wait_for_function("v => sae.app.view === v", arg=view)
        wide = (
            "[document.documentElement, ...sae.app.root.querySelectorAll('section')].map(e => "
            "e.scrollWidth)"
        )
        assert max(tab.evaluate(wide)) <= 390
    tab.tap("nav a[data-view=feature]")
    tab.locator("#page .text bdi").first.tap()
    assert tab.locator("#bubble").inner_text().strip()  # a tap shows what hovering would
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
            opened.evaluate("t => sae.source.model.tokenizer.encode(t)", text)
            == exact_encoder(tokenizer).encode(text, add_special_tokens=False).ids
        ), text


@given(texts=st.lists(st.text(max_size=20), min_size=10, max_size=40))
@settings(max_examples=20, deadline=None)
def test_any_text_is_tokenised_alike(opened, small_run, texts):
    encoder = exact_encoder(small_run.get("tokens").tokenizer)
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    assert opened.evaluate("ts => ts.map((t) => sae.source.model.tokenizer.encode(t))", texts) == [
        encoder.encode(t, add_special_tokens=False).ids for t in texts
    ]


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
    there = opened.evaluate(
        """([ids, n]) => { const m = sae.source.model, rows = m.rows_at_hook(ids);
        return { logits: m.run(ids, undefined, false).map((l) => [...l]),
                 x: rows.map((r) => [...r]), acts: rows.map((r) => [...m.features(r)]),
                 one: m.on_rows(rows, n) }; }""",
        [ids, feature],
    )
    for name, expected in (("logits", logits), ("x", x), ("acts", acts), ("one", acts[:, feature])):
        np.testing.assert_allclose(np.array(there[name]), expected.numpy(), atol=1e-3, err_msg=name)
    for how, value, keep_error in CLAMPS:
        with clamping.clamped(hook, sae, [Clamp(feature, how, value)], keep_error):
            with torch.no_grad():
                clamped = model(torch.tensor([ids])).logits[0]
        script = (
            "([ids, clamp, keep]) => { const m = sae.source.model; return m.run(ids, "
            "m.clamped(clamp, keep), false).map((l) => [...l]); }"
        )
        clamp = {"feature": feature, "how": how, "value": value}
        shown = opened.evaluate(script, [ids, clamp, keep_error])
        np.testing.assert_allclose(np.array(shown), clamped.numpy(), atol=1e-3, err_msg=how)
        assert (clamped - logits).abs().max() > 1e-3


def test_the_whole_row_of_an_example_is_shown(tab, written, small_run, inside):
    model, sae = inside
    table, hook = open_table(small_run), HookPoint(model, small_run.settings.sae.hook_name)
    number = int(table.alive(200)[0])
    open_page(tab, written, f"#feature={number}")
    tab.locator("#page .tenths .value a").first.click()
    tab.wait_for_selector("#whole .text")
    tab.check("#ablate")
    tab.wait_for_selector("#whole h4")
    example = table.sampled(number).iloc[-1]
    example = table.sampled(number).query("tenth == @example.tenth").iloc[0]
    ids = stages.heldout_rows(small_run, small_run.settings.evaluation.tokens)[example["row"]]
    ids = torch.from_numpy(ids.astype(np.int64))
    there = tab.evaluate(
        "g => sae.source.ask('context', g)",
        {"row": int(example["row"]), "feature": number, "ablate": True},
    )
    assert there["ids"] == ids.tolist() and tab.locator("#whole .text").count() == 2
    expected = clamping.ablation_effect(hook, sae, ids, number)
    np.testing.assert_allclose(there["effects"], expected, atol=1e-3)
    assert tab.locator("#whole .text").first.locator("bdi").count() == len(ids)
    assert f"row {example['row']}" in tab.locator("#whole").inner_text()


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


def test_generation_is_seeded_and_shares_its_noise(opened):
    made = opened.evaluate(
        """() => { 
        const m = sae.source.model, ids = m.tokenizer.encode('import os');
        const make = (seed, change, heat = 0.8) => m.generate(ids, 10, heat, seed, change);
        return [make(0), make(0), make(1), make(0, m.clamped({feature: 3, how: 'ablate'})),
                make(0, (x) => {}), ids.length, m.n_positions, make(0, undefined, 0),
                make(1, undefined, 0)]; }"""
    )
    assert made[0] == made[1] == made[4] != made[2] and len(made[0]) <= made[5] + 10
    assert made[7] == made[8]  # at temperature 0 the seed does not matter
    assert opened.evaluate("() => sae.source.model.generate([0], 10000, 0.8, 0).length") <= made[6]


def test_own_text_and_clamping_in_the_page(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    tab.click("#try-it")
    tab.wait_for_selector("#per-token tbody tr")
    tab.fill("#text", "import json\nself.assertEqual(1, <b>2</b>)")
    tab.wait_for_function("() => sae.app.$('tried').innerText.includes('assertEqual')")
    text = tab.locator("#tried .text")
    assert "<b>2</b>" in text.inner_text() and tab.locator("#tried b b").count() == 0
    ids = tab.evaluate("sae.app.try.ids")
    assert (
        tab.locator("#per-token tbody tr").count() == text.locator("bdi").count() == len(ids)
        and f"{len(ids)} tokens" in tab.locator("#tokens").inner_text()
    )
    link = tab.locator("#per-token a[href^='#feature=']").first
    other = int(link.get_attribute("href").split("=")[1])
    link.click()  # another feature, the same text
    tab.wait_for_function(f"() => sae.app.$('clamp-name').textContent === 'feature {other}'")
    assert (
        tab.url.endswith(f"#feature={other}&view=try")
        and tab.locator("#tried bdi[style]").count() > 0
    )
    before = tab.locator("#clamped table").inner_text()
    tab.fill("#value-number", "50")
    tab.wait_for_function(
        "old => sae.app.$('clamped').querySelector('table').innerText !== old", arg=before
    )
    with_50 = tab.locator("#clamped").inner_text()
    target = ClampTarget(*_parts(small_run))
    hook_run = target.next_tokens(tab.locator("#text").input_value(), [Clamp(other, "pin", 50.0)])
    shown = float(re.search(r"KL\(as it is ‖ clamped\) ([\d.]+) nats", with_50)[1])
    assert shown == pytest.approx(hook_run.kl, rel=0.1)  # int8 against float
    tab.click("#generate")
    tab.wait_for_selector("#clamped .sides")
    sides = tab.locator("#clamped .sides .text").all_inner_texts()
    assert len(sides) == 2 and sides[0] != sides[1] and all("assertEqual" in side for side in sides)
    tab.fill("#text", "word " * 300)
    tab.wait_for_function(
        "() => sae.app.$('tokens').textContent.includes('reads the first "
        f"{small_run.settings.lm.context}')"
    )
    tab.click("#generate")
    tab.wait_for_function("() => sae.app.$('clamp-note').textContent.includes('shorten')")
    tab.fill("#text", "")
    tab.wait_for_function("() => sae.app.$('tokens').textContent === '0 tokens'")
    tab.click("#generate")
    tab.wait_for_function("() => sae.app.$('clamp-note').textContent.includes('is empty')")


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
    assert page_model.why_not(model, tokenizer) == ""
    llama = language_model.build(
        small_run.settings.lm.model_copy(update={"architecture": "llama", "n_layer": 2}), 300, 0
    )
    assert "llama model of 2 layers" in page_model.why_not(llama, tokenizer)
    model.config.activation_function = "gelu_new"
    assert "gelu_new" in page_model.why_not(model, tokenizer)
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a"))
    )
    model.config.activation_function = "relu"
    assert "no byte-level BPE" in page_model.why_not(model, words)


def test_neurons_have_a_page_of_their_own(tab, small_run):
    path = single_file.write_browser(small_run, "neurons")
    assert path == small_run.folder / "browser_neurons.html"
    open_page(tab, path, "#feature=5&view=try")
    tab.wait_for_selector("#per-token tbody tr")
    assert "neuron 5" in tab.locator("#tried").inner_text()
    ids = tab.evaluate("sae.app.try.ids")
    x = tab.evaluate(
        "ids => [...sae.source.model.features(sae.source.model.rows_at_hook(ids)[0])]", ids
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
    given_ = {"text": "import os", "clamp": clamp, "new_tokens": 4}
    here, there = model.clamp(**given_), ask(opened, "clamp", given_)
    assert here.keys() == there.keys() and here["prompt"] == there["prompt"]
    assert here["kl"] == pytest.approx(there["kl"], rel=0.1)
    assert [len(side["ids"]) for side in there["sides"]] == [here["prompt"] + 4] * 2
    top = [{t: after for t, _, after in answer["next"]} for answer in (here, there)]
    assert all(top[0][t] == pytest.approx(top[1][t], abs=0.02) for t in top[0].keys() & top[1])
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
    tab.select_option("#sort", "auroc")
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
