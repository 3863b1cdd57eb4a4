"""browser.html in Chromium, from disk: search, pages, links, keys; text is data; the model inside agrees with torch."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import DictLoader, Environment, StrictUndefined
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from typer.testing import CliRunner

from sae_lib.features import clamping
from sae_lib.features.clamping import Clamp
from sae_lib.model import language_model
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.text.display import Vocabulary, isolated, pieces, plain
from sae_lib.text.tokenizer import exact_encoder
from suite import stages
from suite.__main__ import app
from suite.browser import page, single_file, single_file_data, single_file_model, template_script
from suite.browser.page import ENVIRONMENT
from suite.browser.table import FeatureTable, open_table
from tests.test_browser import IMAGE, SCRIPT, TEXTS, make_table, tokenizer  # noqa: F401  (the crafted corpus, its tokeniser)

MIXED = [
    "import numpy as np\n\n\n    def f(x):\t\treturn  x_1 + 3.14 # it's we'll they'd 'tis\n",
    "naïve café — „schön“ 你好世界 ١٢٣ Ⅷ ½ x² שלום مرحبا 🙂👩‍👩‍👧 e\u0301 \u200b\ufeff\u0085\u00a0\u3000\u2028 end  ",
    "<|endoftext|>a<|endoftext|> b <script>alert(1)</script>\r\n\x00\x1b[31m",
    "   leading\n \n  and trailing   ",
    "",
]


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
    yield tab
    tab.close()


@pytest.fixture
def tab(chromium):
    """A tab in which nothing is asked of a network, nothing fails and nothing is refused by the page's own policy."""
    tab, wrong = chromium.new_page(viewport={"width": 1280, "height": 900}), []
    tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith("file:") else None)
    tab.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    yield tab
    assert wrong == []
    tab.close()


def open_page(tab, path, address=""):
    tab.goto(f"file://{path.resolve()}{address}")
    tab.wait_for_selector("html[data-ready]")


def number_shown(tab):
    return int(tab.locator("#page [data-feature]").get_attribute("data-feature"))


def turned_to(tab, number):
    tab.wait_for_selector(f"#page [data-feature='{number}']")


# --- the same text as Jinja ---


def test_pages_are_what_jinja_draws(opened, small_run):
    table = open_table(small_run)
    compact = single_file_data.CompactTable(table)
    some = list(range(0, len(table), 8))
    drawn = [json.loads(single_file_data.as_json(compact.page(n, 10, 1))) for n in some]
    assert len(drawn) > 30 and sum(len(p["tenths"]) for p in drawn) > 60
    there = opened.evaluate(
        "numbers => Promise.all(numbers.map(async (n) => sae.template.page('feature', await sae.features.page(n), true).html))",
        some,
    )
    for number, stored, shown in zip(some, drawn, there, strict=True):
        assert str(page.template().page("feature", filled(table, stored), True)) == shown, number


def filled(table, value):
    """Stored pages with their texts' tokens, as the table itself makes them."""
    if isinstance(value, list):
        return [filled(table, v) for v in value]
    if not isinstance(value, dict):
        return value
    if "ids" in value:
        values = np.zeros(len(value["ids"]))
        values[value["at"]] = value["values"]
        return table.tokens(value["ids"], values.tolist(), value["focus"])
    return {key: filled(table, v) for key, v in value.items()}


def test_the_values_are_the_tables_own(opened, small_run):
    table = open_table(small_run)
    number = int(table.alive(50)[0])
    here, there = table.page(number, 10, 1), opened.evaluate("n => sae.features.page(n)", number)
    assert len(there["examples"]) == len(here["examples"]) <= 10 and [
        len(t["examples"]) for t in there["tenths"]
    ] == [1] * len(here["tenths"])
    for a, b in zip(here["examples"], there["examples"], strict=True):
        np.testing.assert_allclose(
            [t["value"] for t in a["tokens"]], [t["value"] for t in b["tokens"]], rtol=1e-5
        )
        assert [{k: v for k, v in t.items() if k != "value"} for t in a["tokens"]] == [
            {k: v for k, v in t.items() if k != "value"} for t in b["tokens"]
        ]
    np.testing.assert_allclose(
        [here["density"], here["maximum"], here["mean_active"]],
        [there["density"], there["maximum"], there["mean_active"]],
        rtol=1e-5,
    )


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
    for name in ("decimal", "percent", "signed"):
        signs = (1,) if name == "percent" else (1, -1)
        given_ = [sign * x for x in numbers for sign in signs if x > 0 or sign > 0]
        assert opened.evaluate(f"xs => xs.map(sae.filters.{name})", given_) == [
            getattr(page, name)(x) for x in given_
        ]
    pairs = [[float(a), float(b)] for a, b in rng.uniform(-1, 4, (300, 2))] + [[0.5, 1.0], [1, 0]]
    assert opened.evaluate(
        "xs => xs.map(([a, b]) => [sae.filters.shade(a, b), sae.filters.tone(a, b)])", pairs
    ) == [[page.shade(a, b), page.tone(a, b)] for a, b in pairs]
    counts = [[int(a), int(max(a, b))] for a, b in rng.integers(0, 5000, (300, 2))] + [[0, 0]]
    assert opened.evaluate("xs => xs.map(([a, b]) => sae.filters.bar(a, b))", counts) == [
        page.bar(a, b) for a, b in counts
    ]


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
    assert opened.evaluate(
        "([s, b]) => JSON.parse(s).map((t) => sae.filters.pieces(t, b))", [sent, every_blank]
    ) == [[[q, t] for q, t in pieces(x, every_blank)] for x in texts]
    assert opened.evaluate(
        "s => JSON.parse(s).map((t) => sae.filters.isolated(sae.plain(t)))", sent
    ) == [isolated(plain(x)) for x in texts]


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


def compiled(tab, template, call, *values):
    """(what Jinja makes of a macro, what the page makes of it)."""
    environment = Environment(
        loader=DictLoader({"t": template}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    expected = str(getattr(environment.get_template("t").module, call)(*values))
    script = template_script.javascript(environment, "t")
    runtime = "\n".join((single_file.APP / name).read_text() for name in ("text.js", "template.js"))
    source = f"(values) => {{ const CONSTANTS = {{}}, UNICODE = {{}};\n{runtime}\nreturn ({script}).{call}(...values).html; }}"
    return expected, tab.evaluate(source, list(values))


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ("{{ x }} {{ x ~ '<b>' }} {{ [x, 1]|join('<') }}", ["<script>&\"'"]),
        (
            "{% for a in x if a > 1 %}{{ loop.index }}:{{ a }}{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}",
            [[1, 2, 3]],
        ),
        ("{% for a in x %}{% else %}none{% endfor %}", [[]]),
        ("{% set y = 1 %}{% for a in x %}{% set y = y + a %}{{ y }} {% endfor %}{{ y }}", [[4, 5]]),
        ("{% if x %}yes{% elif x is none %}none{% else %}no{% endif %}", [None]),
        ("{% if x %}yes{% elif x is none %}none{% else %}no{% endif %}", [[]]),
        ("{% if x == 'a' or x in ['b', 'c'] and not x == 'c' %}yes{% else %}no{% endif %}", ["c"]),
        ("{{ x.a if x.b is defined else x.a|default(3) }} {{ x.c|default('<') }}", [{"a": 5}]),
        (
            "{{ x / 4 }} {{ 40 - 40 * x / 8 }} {{ x // 3 }} {{ -x }} {{ x / 1000000 }} {{ (x / 3)|round(2) }}",
            [8],
        ),
        ("{{ x[1:3]|length }} {{ x[-1] }} {{ x|max }} {{ x|first }} {{ x|sum }}", [[3, 1, 2, 7]]),
        (
            "{% for a, b in x %}{{ a|capitalize }}={{ b|upper }};{% endfor %}",
            [[["ab", "c"], ["d", "e"]]],
        ),
        ("{{ true }} {{ none }} {{ 1.5 }} {{ 1 < x <= 2 }}", [2]),
    ],
)
def test_the_compiled_template_does_as_jinja(opened, body, values):
    expected, found = compiled(opened, "{% macro m(x) %}" + body + "{% endmacro %}", "m", *values)
    assert expected == found


def test_macros_escape_once_and_take_defaults(opened):
    template = "{% macro inner(a, b='<i>') %}<u>{{ a }}{{ b }}</u>{% endmacro %}\n{% macro outer(x) %}\n  {% set y = inner(x, b='&') %}\n{{ inner(x) }}{{ y }}\n{% endmacro %}"
    expected, found = compiled(opened, template, "outer", "<script>")
    assert expected == found and "<script>" not in found and found.count("<u>") == 2


@pytest.mark.parametrize(
    "body",
    [
        "{{ x|safe }}",
        "{{ x.upper() }}",
        "{% autoescape false %}{{ x }}{% endautoescape %}",
        "{{ nobody }}",
        "{{ x|sort }}",
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_line(body):
    environment = Environment(
        loader=DictLoader({"t": "\n{% macro m(x) %}" + body + "{% endmacro %}"}), autoescape=True
    )
    with pytest.raises(template_script.UnsupportedTemplate, match="t, line 2: "):
        template_script.javascript(environment, "t")


def test_every_filter_of_the_template_is_in_the_page(opened):
    mine = {
        name
        for name in {**ENVIRONMENT.filters, **ENVIRONMENT.globals}
        if name not in {**Environment().filters, **Environment().globals}
    }
    assert mine <= set(opened.evaluate("Object.keys(sae.filters)"))


# --- text is data ---


@pytest.fixture(scope="module")
def crafted(tokenizer, tmp_path_factory):  # noqa: F811
    table = make_table(tokenizer, TEXTS, 8)
    table._strongest = table._strongest.copy()
    table.raised[0, 0], table._strongest[0] = (
        len(tokenizer) - 2,
        len(tokenizer) - 1,
    )  # markup as one token, in the list as well
    path = tmp_path_factory.mktemp("crafted") / "browser.html"
    fields = {"text": SCRIPT, "temperature": "1", "context": "8"}
    path.write_text(
        single_file.page_text(
            table, f"run {IMAGE}", f"facts {SCRIPT}", "", f"it is {SCRIPT}", fields
        ),
        encoding="utf-8",
    )
    return path


def test_nothing_from_the_corpus_is_executed(tab, crafted):
    open_page(tab, crafted, "#feature=0")
    tab.wait_for_selector("[data-feature='0']")
    tab.wait_for_timeout(100)
    assert (
        tab.evaluate("window.hit") is None
        and tab.locator("img, iframe, #page script, #rows script").count() == 0
    )
    shown = tab.locator("#page .sae-text").first.inner_text()
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
            "[...document.querySelectorAll('[title]')].map(e => e.title).join('')"
        )
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\ufeff\ud800-\udfff]", text)
        boxes = tab.evaluate(
            "[...document.querySelector('#page .sae-text').children].map(e => [e.getBoundingClientRect().y, e.getBoundingClientRect().x])"
        )
        assert boxes == sorted(boxes)  # right-to-left words stand in the order of the tokens


def test_the_policy_lets_no_other_script_run(chromium, written):
    tab, refused = chromium.new_page(), []
    tab.on("console", lambda m: refused.append(m.text))
    open_page(tab, written)
    tab.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s); }"
    )
    tab.evaluate(
        "() => { const s = document.createElement('div'); s.innerHTML = '<img src=x onerror=\"window.hit = 2\">'; document.body.append(s); }"
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


def test_the_search_finds_what_the_labs_search_finds(opened, small_run):
    table = open_table(small_run)
    queries = [
        "import",
        "self",
        '" self"',
        "·self",
        "12",
        "#12",
        "density<1%",
        "density>0.01 self",
        "before:self",
        "raises:re",
        "lowers:e",
        "token:def",
        "maximum>=2 active<100",
        "none such",
        "auroc>0.5",
    ]
    queries += ['text:"self."', "text:import density<5%", "x=1", ""]
    for query in queries:
        for sort, column in (("density", "density"), ("number", "feature"), ("maximum", "maximum")):
            here = [int(n) for n in table.matches(query, sort, True)]
            there = opened.evaluate(
                "([q, c]) => sae.matches(sae.features, q, c, true)", [query, column]
            )
            if query.startswith("text:"):
                assert there and set(there) <= set(here), query  # the page holds fewer examples
            else:
                assert here == there, (query, sort)


def test_search_sort_and_buttons_turn_the_page(tab, written, small_run):
    table = open_table(small_run)
    open_page(tab, written)
    by_density = [int(n) for n in table.matches("", "density", True)]
    turned_to(tab, by_density[0])
    tab.click("#next")
    turned_to(tab, by_density[1])
    assert tab.url.endswith(f"#feature={by_density[1]}")
    tab.click("#previous")
    turned_to(tab, by_density[0])
    tab.click("#random")
    tab.wait_for_function(f"() => location.hash !== '#feature={by_density[0]}'")
    tab.go_back()
    turned_to(tab, by_density[0])
    tab.go_forward()
    tab.wait_for_function(
        f"() => !document.querySelector(\"#page [data-feature='{by_density[0]}']\")"
    )
    assert table.features.n_active[number_shown(tab)] > 0
    tab.select_option("#sort", "maximum")
    tab.click("#direction")
    smallest = [int(n) for n in table.matches("self", "maximum", False)]
    tab.fill("#query", "self")
    turned_to(tab, smallest[0])
    assert f"{len(smallest)} of {len(table)}" in tab.locator("#count").inner_text()
    assert [
        int(r.inner_text().split()[0]) for r in tab.locator("[role=option]").all()[:8]
    ] == smallest[:8]
    tab.locator("[role=option]").nth(3).click()
    turned_to(tab, smallest[3])
    tab.fill("#query", "no such token")
    tab.wait_for_function("() => document.querySelector('#count').textContent.startsWith('none')")
    assert tab.locator("#next").is_disabled()
    tab.fill("#query", "text:self")
    tab.wait_for_function("() => /^[1-9]/.test(document.querySelector('#count').textContent)")


def test_deep_links_and_links_between_features(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[-1])
    open_page(tab, written, f"#feature={number}")
    assert number_shown(tab) == number and tab.title().startswith(f"feature {number} ")
    near = tab.locator("#page a[href^='#feature=']").first
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
    strongest = table.page(number, 1, 0)["examples"][0]
    assert page.decimal(strongest["activation"]) in tab.locator(
        "#page .sae-examples bdi:has(b)"
    ).first.get_attribute("title")


def test_keys(tab, written, small_run):
    order = [int(n) for n in open_table(small_run).matches("", "density", True)]
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
    tab.locator("[role=option]").nth(2).tap()
    tab.wait_for_selector("#page h3")
    assert tab.locator("#list").is_hidden()
    for view in ("feature", "try", "list"):
        tab.tap(f"nav a[data-view={view}]")
        tab.wait_for_function("v => document.body.dataset.view === v", arg=view)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.tap("nav a[data-view=feature]")
    tab.locator("#page .sae-text bdi").first.tap()
    assert tab.locator("#bubble").inner_text().strip()  # a tap shows what hovering would
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.querySelector('.sae-browser')).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] > light[1] + 300) == (scheme == "dark") and abs(light[0] - light[1]) > 300
    context.close()


# --- the model inside ---


@pytest.fixture(scope="module")
def inside(small_run):
    """(model, autoencoder) with the weights that the page holds: int8 times the scale of the row."""
    model, sae = (
        language_model.open_model(str(small_run.folder / "language_model")),
        SparseAutoencoder.load(small_run.path("autoencoder")),
    )
    with torch.no_grad():
        for weight in single_file_model.matrices(model, sae).values():
            q, scale = single_file_model.quantised(weight)
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
            opened.evaluate("t => sae.trial.model.tokenizer.encode(t)", text)
            == exact_encoder(tokenizer).encode(text, add_special_tokens=False).ids
        ), text


@given(texts=st.lists(st.text(max_size=20), min_size=10, max_size=40))
@settings(max_examples=20, deadline=None)
def test_any_text_is_tokenised_alike(opened, small_run, texts):
    encoder = exact_encoder(small_run.get("tokens").tokenizer)
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    assert opened.evaluate("ts => ts.map((t) => sae.trial.model.tokenizer.encode(t))", texts) == [
        encoder.encode(t, add_special_tokens=False).ids for t in texts
    ]


def ids_of(run, n):
    return run.get("tokens").rows("heldout", n)[0].astype(int).tolist()


def test_the_page_computes_what_torch_computes(opened, small_run, inside):
    from sae_lib.model.activations import HookPoint

    model, sae = inside
    ids = ids_of(small_run, small_run.settings.lm.context)
    hook = HookPoint(model, small_run.settings.sae.hook_name)
    with torch.no_grad():
        logits, x = model(torch.tensor([ids])).logits[0], hook.activations(torch.tensor([ids]))[0]
        acts = sae.encode(x)
        with clamping.clamped(hook, sae, [Clamp(3, "pin", 2.5)]):
            clamped = model(torch.tensor([ids])).logits[0]
    there = opened.evaluate(
        """(ids) => { const m = sae.trial.model, x = m.hooked(ids), d = x.length / ids.length, rows = ids.map((_, t) => x.slice(t * d, (t + 1) * d));
        return { logits: m.run(ids, undefined, false).map((l) => [...l]), x: rows.map((r) => [...r]), acts: rows.map((r) => [...m.features(r, d)]),
                 one: rows.map((r) => m.feature(r, d, 3)), clamped: m.run(ids, m.clamp(3, 2.5), false).map((l) => [...l]) }; }""",
        ids,
    )
    for name, expected in (
        ("logits", logits),
        ("x", x),
        ("acts", acts),
        ("one", acts[:, 3]),
        ("clamped", clamped),
    ):
        np.testing.assert_allclose(np.array(there[name]), expected.numpy(), atol=1e-3, err_msg=name)
    assert (clamped - logits).abs().max() > 0.1


def test_int8_changes_little(small_run, inside):
    """Against the weights as trained: activations correlate, and the next token's distribution moves by a hundredth of a nat at most."""
    from sae_lib.model.activations import HookPoint

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
        """() => { const m = sae.trial.model, ids = m.tokenizer.encode('import os'), make = (seed, change) => m.generate(ids, 10, 0.8, seed, change);
        return [make(0), make(0), make(1), make(0, m.clamp(3, 0)), make(0, (x) => {}), ids.length, m.context]; }"""
    )
    assert made[0] == made[1] == made[4] != made[2] and len(made[0]) <= made[5] + 10
    assert opened.evaluate("() => sae.trial.model.generate([0], 10000, 0.8, 0).length") <= made[6]


def test_own_text_and_clamping_in_the_page(tab, written, small_run):
    number = int(open_table(small_run).alive(50)[0])
    open_page(tab, written, f"#feature={number}")
    tab.click("#try-it")
    tab.wait_for_selector("#per-token tbody tr")
    tab.fill("#text", "import json\nself.assertEqual(1, <b>2</b>)")
    tab.wait_for_function(
        "() => document.querySelector('#tried').innerText.includes('assertEqual')"
    )
    text = tab.locator("#tried .sae-text")
    assert "<b>2</b>" in text.inner_text() and tab.locator("#tried b b").count() == 0
    ids = tab.evaluate("sae.trial.ids")
    assert (
        tab.locator("#per-token tbody tr").count() == text.locator("bdi").count() == len(ids)
        and f"{len(ids)} tokens" in tab.locator("#tokens").inner_text()
    )
    link = tab.locator("#per-token a[href^='#feature=']").first
    other = int(link.get_attribute("href").split("=")[1])
    link.click()  # another feature, the same text
    tab.wait_for_function(
        f"() => document.querySelector('#clamp-name').textContent === 'feature {other}'"
    )
    assert (
        tab.url.endswith(f"#feature={other}&view=try")
        and tab.locator("#tried bdi[style]").count() > 0
    )
    before = tab.locator("#clamped table").inner_text()
    tab.fill("#value-number", "50")
    tab.wait_for_function(
        "old => document.querySelector('#clamped table').innerText !== old", arg=before
    )
    with_50 = tab.locator("#clamped").inner_text()
    hook_run = clamping.next_tokens(
        *_parts(small_run), tab.locator("#text").input_value(), [Clamp(other, "pin", 50.0)]
    )
    shown = float(re.search(r"KL\(as it is ‖ clamped\) ([\d.]+) nats", with_50)[1])
    assert shown == pytest.approx(hook_run.kl, rel=0.1)  # int8 against float
    tab.click("#generate")
    tab.wait_for_selector("#clamped .sae-sides")
    sides = tab.locator("#clamped .sae-sides .sae-text").all_inner_texts()
    assert len(sides) == 2 and sides[0] != sides[1] and all("assertEqual" in side for side in sides)
    tab.fill("#text", "word " * 300)
    tab.wait_for_function(
        f"() => document.querySelector('#tokens').textContent.includes('reads the first {small_run.settings.lm.context}')"
    )
    tab.click("#generate")
    tab.wait_for_function("() => document.querySelector('#said').textContent.includes('shorten')")
    tab.fill("#text", "")
    tab.wait_for_function("() => document.querySelector('#tokens').textContent === '0 tokens'")
    assert tab.locator("#clamped tbody tr").count() > 0


def _parts(run):

    return (
        stages.hook(run),
        run.get("tokens").tokenizer,
        run.get("autoencoder"),
    )


# --- what is left out, and where it goes ---


def test_a_model_that_the_page_cannot_run_is_left_out_with_a_sentence(small_run):
    model, tokenizer = (  # noqa: F811
        language_model.open_model(str(small_run.folder / "language_model")),
        small_run.get("tokens").tokenizer,
    )  # noqa: F811
    assert single_file_model.why_not(model, tokenizer) == ""
    llama = language_model.build(
        small_run.settings.lm.model_copy(update={"architecture": "llama", "n_layer": 2}), 300, 0
    )
    assert "llama model of 2 layers" in single_file_model.why_not(llama, tokenizer)
    model.config.activation_function = "gelu_new"
    assert "gelu_new" in single_file_model.why_not(model, tokenizer)
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a"))
    )
    model.config.activation_function = "relu"
    assert "no byte-level BPE" in single_file_model.why_not(model, words)


def test_neurons_have_a_page_of_their_own(tab, small_run):
    path = single_file.write_browser(small_run, "neurons")
    assert path == small_run.folder / "browser_neurons.html"
    open_page(tab, path, "#feature=5&view=try")
    tab.wait_for_selector("#per-token tbody tr")
    assert "neuron 5" in tab.locator("#tried").inner_text()
    x = tab.evaluate(
        "[...sae.trial.model.features(sae.trial.x.subarray(0, sae.trial.d), sae.trial.d)]"
    )
    hook, tokenizer, _ = _parts(small_run)  # noqa: F811
    expected = hook.activations(torch.tensor([tab.evaluate("sae.trial.ids")]))[0, 0]
    np.testing.assert_allclose(x, expected, atol=0.05)


def test_a_table_of_an_older_run_is_drawn_without_what_it_lacks(tab, tokenizer, tmp_path):  # noqa: F811
    path = tmp_path / "browser.html"
    path.write_text(
        single_file.page_text(
            make_table(tokenizer, TEXTS, 8),
            "t",
            "f",
            "",
            "it is none",
            {"text": "", "temperature": "1", "context": "8"},
        )
    )
    open_page(tab, path, "#feature=4")
    assert (
        tab.locator("#page .sae-tenths").count() == 0
        and "AUROC" not in tab.locator("#heads").inner_text()
    )
    tab.evaluate("location.hash = '#feature=7'")
    turned_to(tab, 7)
    assert "Dead" in tab.locator("#page").inner_text()


def test_the_page_is_one_file_without_addresses(written):
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", written.read_text(encoding="utf-8"))
    assert not list(written.parent.glob("*.partial"))


def test_scores_are_searched_sorted_and_shown(tab, tokenizer, tmp_path):  # noqa: F811
    import pandas as pd

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
    path.write_text(
        single_file.page_text(
            table, "t", "f", "", "it is none", {"text": "", "temperature": "1", "context": "8"}
        ),
        encoding="utf-8",
    )
    open_page(tab, path)
    tab.select_option("#sort", "auroc")
    tab.wait_for_function("() => document.querySelector('[role=option]').id === 'row-3'")
    assert [r.get_attribute("id") for r in tab.locator("[role=option]").all()[:5]] == [
        f"row-{i}" for i in (3, 1, 2, 4, 0)
    ]
    tab.fill("#query", "auroc>0.65 rule:<b>")
    tab.wait_for_function("() => document.querySelector('#count').textContent.startsWith('3 of 8')")
    assert number_shown(tab) == 3 and tab.locator("[role=option]").count() == 3
    assert (
        "token is <b>3</b>" in tab.locator(".sae-rule").inner_text()
        and "0.95" in tab.locator("#row-3").inner_text()
    )
