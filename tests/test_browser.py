"""The browser: corpus text is shown and never executed; search, sort and turning pages do what they say; values are the table's."""

import html
import re
from html.parser import HTMLParser

import markdown as python_markdown
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbconvert.filters import markdown2html
from tokenizers import Tokenizer, models

from sae_lib.errors import SettingsError
from sae_lib.text import display as visible
from sae_lib.text.markup import span
from sae_lib.text.tokenizer import train_tokenizer
from suite.browser import page, random_draw, rating
from suite.browser import query as language
from suite.browser.rating_panel import RatingPanel
from suite.browser.table import FeatureTable
from suite.browser.widget import LISTED, FeatureBrowser

SCRIPT = "<script>window.hit=1</script>"
IMAGE = '"><img src=x onerror="window.hit=1">'
TEXTS = [
    f"x = {SCRIPT}{IMAGE} & '</table>' {{{{ 7*7 }}}} `tick` **bold** |cell| $x$ <!-- \\",
    "\x00\x07\x1b[31m\r\n\t  leading \x7f \u202egpj.exe\u202c \u200b \ufeff end",
    "שלום עולם مرحبا abc 123",
    "naïve 你好 🙂 e\u0301",
    "import numpy as np\nimport torch\n    return numpy",
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["import numpy as np\nimport torch\n    return numpy\n"] * 20, 290)
    tokenizer.add_tokens([SCRIPT, IMAGE])
    return tokenizer


def make_table(tokenizer, texts, n_features=None, kind="feature"):
    """Feature i fires on text i; beyond the texts: dead. Density and maximum fall, then rise, so that each sort differs."""
    d, rows = n_features or len(texts), []
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    for i, sequence in enumerate(ids):
        for rank in range(min(2, len(sequence))):
            acts = np.zeros(len(sequence), dtype=np.float32)
            acts[rank] = 4.0 + i - rank
            rows.append(
                (i, rank, acts[rank], 0, rank, rank, sequence[rank], np.array(sequence), acts)
            )
    columns = [
        "feature",
        "rank",
        "activation",
        "row",
        "position",
        "focus",
        "token_id",
        "token_ids",
        "activations",
    ]
    alive = np.arange(d) < len(texts)
    up = np.array([[(7 * i + j) % len(tokenizer) for j in range(3)] for i in range(d)])
    features = pd.DataFrame(
        {
            "feature": np.arange(d),
            "density": np.where(alive, (1 + (3 * np.arange(d)) % 5) / 1000, 0.0),
            "n_active": np.where(alive, 1000 * (1 + (3 * np.arange(d)) % 5), 0),
            "maximum": np.where(alive, 4.0 + np.arange(d), 0.0),
            "mean_active": np.where(alive, 1.25, 0.0),
            "top_logits": up.tolist(),
            "top_logit_values": [[0.5, 0.25, 0.125]] * d,
            "bottom_logits": up[:, ::-1].tolist(),
            "bottom_logit_values": [[-0.5, -0.25, -0.0021]] * d,
        }
    )
    return FeatureTable(features, pd.DataFrame(rows, columns=columns), tokenizer, kind)


@pytest.fixture(scope="module")
def table(tokenizer):
    table = make_table(tokenizer, TEXTS)
    table._strongest = table._strongest.copy()
    table.raised[0, 0], table._strongest[0] = (
        len(tokenizer) - 2,
        len(tokenizer) - 1,
    )  # markup as one token, in the list as well
    return table


@pytest.fixture
def tab(chromium):
    tab, requests = chromium.new_page(viewport={"width": 1280, "height": 900}), []
    tab.on("request", lambda r: requests.append(r.url))
    tab.on("console", lambda m: requests.append(m.text) if m.type == "error" else None)
    yield tab
    assert requests == []  # no network, no attempt at one
    tab.close()


# --- text is data ---


@pytest.mark.parametrize(
    "how", ["page", "innerHTML"]
)  # a static page; the way the HTML widget sets its value
def test_markup_in_the_corpus_is_shown_and_not_executed(tab, table, how):
    content = page.static_html(table, range(len(TEXTS)))
    if how == "page":
        tab.set_content(content)
    else:
        tab.evaluate("content => { document.body.innerHTML = content }", content)
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.hit") is None
    assert tab.locator("script, img, .sae-browser a, .sae-browser iframe").count() == 0
    shown = tab.locator("[data-feature='0'] .sae-text").first.inner_text()
    assert SCRIPT in shown and IMAGE in shown and "{{ 7*7 }}" in shown and "</table>" in shown
    listed = tab.locator(".sae-list tbody tr").first.inner_text()
    assert SCRIPT in listed and IMAGE.replace(" ", "·") in listed


def test_nothing_in_the_page_hides_or_reorders(tab, table):
    tab.set_content(page.static_html(table, range(len(TEXTS))))
    text = tab.locator("body").inner_text() + tab.evaluate(
        "[...document.querySelectorAll('[title]')].map(e => e.title).join('')"
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\ufeff\ud800-\udfff]", text)
    shown = tab.locator("[data-feature='1'] .sae-text").first.inner_text()
    assert (
        "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31m⟨CR⟩⏎⇥" in shown and "⟨U+202E⟩" not in shown
    )  # its three bytes are three tokens here
    assert "⟨e2⟩⟨80⟩⟨ae⟩gpj" in shown


def test_right_to_left_tokens_stand_in_token_order(tab, tokenizer):
    own = train_tokenizer(["שלום עולם"] * 5, 290)  # whole words are tokens
    tab.set_content(page.static_html(make_table(own, ["abc שלום עולם 123 def"]), [0]))
    boxes = tab.evaluate(
        "[...document.querySelector('.sae-text').children].map(e => e.getBoundingClientRect().x)"
    )
    assert len(boxes) > 6 and boxes == sorted(boxes)


def test_hover_shows_token_and_value(tab, table):
    tab.set_content(page.static_html(table, [4]))
    strongest = tab.locator(".sae-text bdi:has(b)").first
    assert strongest.get_attribute("title").split() == [table.label(4)[0], "8"]
    colours = tab.evaluate(
        "[...document.querySelector('.sae-text').children].map(e => getComputedStyle(e).backgroundColor)"
    )
    assert colours[0].startswith("rgba(240, 125, 20") and set(colours[1:]) == {"rgba(0, 0, 0, 0)"}


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(tab, table, width):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.set_content(
        '<meta name="viewport" content="width=device-width">' + page.static_html(table, range(5))
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("text", "alone", "in_text"),
    [
        (" import", "·import", " import"),
        ("    x", "····x", "····x"),
        ("a b", "a·b", "a b"),
        ("\n\t\r", "⏎⇥⟨CR⟩", "⏎⇥⟨CR⟩"),
        ("\x00\x7f\x85", "⟨U+0000⟩⟨U+007F⟩⟨U+0085⟩", "⟨U+0000⟩⟨U+007F⟩⟨U+0085⟩"),
        ("\u202e\u200f\u2028", "⟨U+202E⟩⟨U+200F⟩⟨U+2028⟩", "⟨U+202E⟩⟨U+200F⟩⟨U+2028⟩"),
        ("\udce2\udc80", "⟨e2⟩⟨80⟩", "⟨e2⟩⟨80⟩"),
        ("\u0301e\u0301", "◌\u0301e\u0301", "◌\u0301e\u0301"),
        ("<b>&", "<b>&", "<b>&"),
    ],
)
def test_every_character_gets_a_shape(text, alone, in_text):
    assert visible.plain(text, every_blank=True) == alone
    assert visible.plain(text) == in_text


def test_only_stand_ins_are_quiet():
    assert visible.pieces("a\n  b") == ((False, "a"), (True, "⏎··"), (False, "b"))


def test_byte_level_tokens_are_the_bytes_of_the_text(tokenizer):
    vocabulary = visible.Vocabulary(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(vocabulary.bytes[i] for i in ids) == text.encode()


def test_parts_of_a_character_know_the_whole(tokenizer):
    vocabulary, ids = (
        visible.Vocabulary(tokenizer),
        tokenizer("a你🙂", add_special_tokens=False)["input_ids"],
    )
    assert vocabulary.characters(ids) == {
        1: "你",
        2: "你",
        3: "你",
        4: "🙂",
        5: "🙂",
        6: "🙂",
        7: "🙂",
    }
    assert vocabulary.characters(ids[:3]) == {}  # cut: no character
    assert [vocabulary.name(i) for i in ids[:4]] == ["a", "⟨e4⟩", "⟨bd⟩", "⟨a0⟩"]
    assert "⟨#5000⟩" == vocabulary.name(
        5000
    )  # a model's logits may outnumber its tokeniser's tokens


def test_sentencepiece_tokens():
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"▁the": 0, "<0xE4>": 1, "cat": 2}, unk_token="cat"))
    vocabulary = visible.Vocabulary(PreTrainedTokenizerFast(tokenizer_object=words))
    assert [vocabulary.name(i) for i in range(3)] == ["·the", "⟨e4⟩", "cat"]


# --- search, sort ---


def test_search_finds_tokens_logits_and_numbers(tokenizer):
    table = make_table(tokenizer, TEXTS, 60)
    by_token = {
        n
        for n in range(5)
        if "imp"
        in tokenizer.decode(
            [int(t) for t in table.examples.loc[table.examples.feature == n, "token_id"]]
        )
    }
    by_logit = {
        n for n in range(60) if any("imp" in tokenizer.decode([t]) for t in table.raised[n])
    }
    assert 4 in by_token and by_logit - by_token  # both kinds are there to be found
    assert set(table.search("imp")) == set(table.search("IMP")) == {*by_token, *by_logit}
    assert (
        list(table.search("#12")) == [12]
        and 12 in table.search("12")
        and list(table.search("#60")) == []
    )
    assert len(table.search("")) == 60 and len(table.search("no such token")) == 0
    assert len(table.matches("2")) > 1  # a token may hold the digits too
    assert [table.matches("2", "number", down)[0] for down in (True, False)] == [
        2,
        2,
    ]  # the feature named comes first
    newline = table.search("⏎")  # as copied from the page
    assert len(newline) and set(newline) == set(table.search('"\n"'))


def test_logits_without_a_token_do_not_break_the_search(tokenizer):
    table = make_table(tokenizer, TEXTS)
    table.raised[:] = len(tokenizer) + 7
    assert len(table.search("import")) and "⟨#" in page.page_html(table.kind, table.page(2))
    assert len(table.search(IMAGE)) == 0  # the last token is none of theirs


@pytest.mark.parametrize(
    ("sort", "column"), [("density", "density"), ("maximum", "maximum"), ("number", "feature")]
)
@pytest.mark.parametrize("descending", [True, False])
def test_sort(tokenizer, sort, column, descending):
    table = make_table(tokenizer, TEXTS, 8)
    order = table.matches("", sort, descending)
    assert sorted(order) == list(range(8))
    shown = order if sort == "number" else order[:5]
    keys = table.features[column].to_numpy()[shown]
    assert (np.diff(keys) < 0).all() if descending else (np.diff(keys) > 0).all()
    assert sort == "number" or set(order[5:]) == {5, 6, 7}  # the dead come last either way


# --- the widget, driven from Python ---


def number_shown(browser):
    return int(re.search(r'data-feature="(\d+)"', browser.page.value)[1])


def test_buttons_and_list_turn_the_page(tokenizer):
    browser = FeatureBrowser(make_table(tokenizer, TEXTS, 8))
    browser.sort.value, browser.direction.value = "maximum", "largest first"
    browser.list.value = 4
    assert number_shown(browser) == 4
    seen = []
    for _ in range(3):
        browser.next.click()
        seen.append(number_shown(browser))
    assert seen == [3, 2, 1] and browser.list.value == 1
    browser.previous.click()
    assert number_shown(browser) == browser.current == 2
    for _ in range(5):
        before = browser.current
        browser.random.click()
        assert (
            number_shown(browser) == browser.current != before and browser.current < 5
        )  # never the same again, never a dead one
    browser.list.value = 7
    assert "Dead" in browser.page.value


def test_search_in_the_widget(tokenizer):
    browser = FeatureBrowser(make_table(tokenizer, TEXTS, 60))
    browser.search.value = "#12"
    assert (
        number_shown(browser) == 12
        and [n for _, n in browser.list.options] == [12]
        and "1 of 60 features" in browser.count.value
    )
    browser.search.value = "i"
    assert (
        len(browser.matches) > 2 and browser.current == browser.matches[0]
    )  # the best match, not what happened to be shown
    browser.next.click()
    shown = browser.current
    browser.sort.value = "maximum"
    assert browser.current == shown == browser.list.value  # sorting keeps the page
    browser.search.value = "im"
    assert shown in browser.matches and browser.current == browser.matches[0]
    browser.search.value = "no such token"
    assert (
        "Nothing matches" in browser.page.value
        and browser.next.disabled
        and browser.list.options == ()
    )
    browser.search.value = ""
    assert len(browser.list.options) == 60 and not browser.next.disabled


def test_a_long_list_shows_the_part_around_the_page(tokenizer):
    browser = FeatureBrowser(make_table(tokenizer, TEXTS, 3 * LISTED))
    browser.sort.value, browser.direction.value = "number", "smallest first"
    assert [n for _, n in browser.list.options] == list(
        range(LISTED)
    ) and "600" in browser.count.value
    browser.show(LISTED - 1)
    browser.next.click()
    assert (
        number_shown(browser) == browser.list.value == LISTED
        and len(browser.list.options) == LISTED
    )


# --- the full table ---


@pytest.fixture(scope="module")
def full(tokenizer):
    """The table with every column of `features.build` and scores; feature 1 has no score, feature 5 is dead."""
    plain = make_table(tokenizer, TEXTS, 6)
    d, word = 6, tokenizer(" numpy", add_special_tokens=False)["input_ids"][0]
    columns = {
        "histogram": [[8, 4, 0, 1]] * d,
        "tenths": [[0.5, 0.25] + [0.0] * 7 + [0.25]] * d,
        "maximum_all": [10.0] * d,
        "marked_share": [0.125, 0, 0, 0, 0, 0],
        "top_tokens": [[word]] + [[]] * (d - 1),
        "top_token_means": [[2.5]] + [[]] * (d - 1),
        "top_token_counts": [[1234]] + [[]] * (d - 1),
        "before_tokens": [[0, 1]] * d,
        "before_counts": [[77, 66]] * d,
        "near_features": [[(i + 1) % d, (i + 2) % d] for i in range(d)],
        "near_cosines": [[0.9, -0.1]] * d,
        "aligned_neurons": [[41, 42]] * d,
        "aligned_values": [[0.8, -0.3]] * d,
        "correlated_neurons": [[43]] * d,
        "correlated_values": [[0.7]] * d,
    }
    top = plain.examples.assign(tenth=-1, marked=False)
    drawn = top[top["rank"] == 0]
    samples = [
        drawn.assign(tenth=tenth, marked=tenth == 9, activation=tenth + 0.5) for tenth in (0, 9)
    ]
    examples = pd.concat([top, *samples]).sort_values(
        ["feature", "tenth", "rank"], ignore_index=True
    )
    scores = pd.DataFrame(
        {
            "unit": [0, 2, 3, 4],
            "rule": ["after <b>`x`", "none", "none", "a digit"],
            "n_conditions": [1, 2, 3, 4],
            "balanced_accuracy": [0.9, 0.8, 0.7, 0.6],
            "auroc": [0.5, 0.95, 0.6, 0.7],
        }
    )
    return FeatureTable(plain.features.assign(**columns), examples, tokenizer, scores=scores)


def shown_text(page_html: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", page_html)))


def test_the_page_shows_the_whole_table(full):
    text = shown_text(page.page_html("feature", full.page(0)))
    for part in (
        "on marked positions 12.5 %",
        "numpy 2.5 ",
        "Before it <|endoftext|> 77 ! 66",
        "Neurons 41 +0.8 42 -0.3",
        "Correlated 43 +0.7",
        "after <b>`x` ",
        "accuracy 0.9 , AUROC 0.5",
    ):
        assert part in text
    assert re.search(r"Nearest 1 \S+ \+0.9 2 \S+ -0.1", text)
    assert text.index("9 to 10 25 % of its activations 9.5 marked") < text.index(
        "0 to 1 50 % of its activations 0.5 "
    )
    assert text.count("marked") == 2  # the share in the head, and the one marked example
    assert "AUROC" not in page.page_html("feature", full.page(1))


def test_only_the_one_file_browser_gets_links(full):
    assert re.findall('href="([^"]*)"', page.page_html("feature", full.page(0), links=True)) == [
        "#feature=1",
        "#feature=2",
    ]
    assert "<a" not in page.page_html("feature", full.page(0)) + page.static_html(full, [0])


def test_limits_leave_out_what_is_over_the_range(full):
    assert [len(t["examples"]) for t in full.page(0)["tenths"]] == [1, 1] and full.page(0, 1, 0)[
        "tenths"
    ] == []
    assert [len(full.page(0, n)["examples"]) for n in (0, 1, None)] == [0, 1, 2]
    assert "Over the whole range" in page.static_html(
        full, [0]
    ) and "Over the whole range" not in page.static_html(full, [0], examples=1)


def test_only_true_top_examples_are_in_the_gallery(full):
    assert [e["activation"] for e in random_draw.entry(full, 0)["examples"]] == [4.0, 3.0]
    assert full.label(0)[0] == full.vocabulary.name(int(full.examples["token_id"].iloc[0]))


def test_buttons_turn_to_the_nearest(full):
    browser = FeatureBrowser(full)
    browser.show(0)
    assert [b.description.split()[0] for b in browser.near if b.layout.display != "none"] == [
        "1",
        "2",
    ]
    browser.near[1].click()
    assert number_shown(browser) == browser.current == 2 and browser.near[0].number == 3
    browser.search.value = "no such token"
    assert all(b.layout.display == "none" for b in browser.near)


# --- the query language ---


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("auroc>0.55", {2, 3, 4}),
        ("auroc>0.55 accuracy<=0.7", {3, 4}),
        ("density<0.15%", {0, 5}),
        ("density>=0.1% density<=0.001", {0}),
        ("ACTIVE=0", {5}),
        ("number>3", {4, 5}),
        ("#2 auroc>0.9", {2}),
        ("#1 auroc>0", set()),  # feature 1 has no score
        ("marked>10%", {0}),
        ("rule:digit", {4}),
        ("rule:<B>", {0}),
        ("token:numpy", {0, 4}),  # by mean; among the strongest
        ('text:"as np"', {4}),
        ('text:"as np" auroc<0.5', set()),
        ('before:" "', set()),
        ("before:endoftext number<2", {0, 1}),
        ("densty<0.1%", set()),  # no such field: a text, which nothing contains
        ('"', {0}),
    ],
)
def test_queries(full, query, found):
    assert set(full.search(query).tolist()) == found


def test_a_blank_before_the_first_word_belongs_to_it(full):
    parts = [language.parse(q) for q in (" numpy", '" numpy"', "·numpy", "text:⏎x", "numpy  as")]
    assert parts[0] == parts[1] == parts[2] == [language.Text("", " numpy")]
    assert parts[3] == [language.Text("text", "\nx")] and parts[4] == [
        language.Text("", "numpy"),
        language.Text("", "as"),
    ]


def test_scores_that_are_not_there_match_nothing(tokenizer):
    table = make_table(tokenizer, TEXTS)
    assert len(table.search("auroc>0")) == 0 and table.sorts == ["number", "density", "maximum"]


@pytest.mark.parametrize(
    ("descending", "order"), [(True, [2, 4, 3, 0, 1, 5]), (False, [0, 3, 4, 2, 1, 5])]
)
def test_sorted_by_score_those_without_are_last(full, descending, order):
    assert full.matches("", "auroc", descending).tolist() == order


@given(
    examples=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 5), max_size=5)), max_size=8
    ),
    wanted=st.text(alphabet="abé", min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_the_index_of_texts_finds_what_a_plain_search_finds(examples, wanted):
    texts = ["a", "b", "ab", "É", "\udcc3", "\udca9"]  # the last two: é in parts
    examples.sort(key=lambda e: e[0])
    made = language.ExampleTexts(
        [np.array(ids, dtype=np.uint16) for _, ids in examples],
        np.array([owner for owner, _ in examples], dtype=int),
        texts,
    )
    spelled = [
        "".join(texts[i].casefold() for i in ids).encode("utf-8", "surrogateescape")
        for _, ids in examples
    ]
    assert made.owners(wanted) == sorted(
        {owner for (owner, _), s in zip(examples, spelled, strict=True) if wanted.encode() in s}
    )


# --- blind ratings ---


def test_the_draw_mixes_alive_units_of_both_kinds(tokenizer):
    tables = {kind: make_table(tokenizer, TEXTS, 40, kind) for kind in ("feature", "neuron")}
    for table in tables.values():
        table.features.loc[:20, "n_active"] = 100
    draws = [rating.draw_blind(tables, n, seed) for n, seed in ((5, 0), (5, 0), (5, 1), (8, 0))]
    assert draws[0] == draws[1] != draws[2] and set(draws[0]) < set(draws[3])
    assert [sum(kind == k for k, _ in draws[0]) for kind in tables] == [5, 5]
    assert [kind for kind, _ in draws[0]] not in (
        ["feature"] * 5 + ["neuron"] * 5,
        ["neuron"] * 5 + ["feature"] * 5,
    )
    assert (
        len(rating.draw_blind(tables, 99, 0)) == 42
        and max(n for _, n in rating.draw_blind(tables, 99, 0)) == 20
    )


def test_a_blind_page_does_not_give_its_kind_away(full, tokenizer):
    """The same examples at another scale, number, density, with other neighbours, neurons and scores: the same page."""
    frame, examples = (
        full.features.drop(columns=["rule", "n_conditions", "balanced_accuracy", "auroc"]),
        full._all.copy(),
    )
    frame = frame.assign(
        density=0.3,
        n_active=99,
        mean_active=7.0,
        maximum=frame["maximum"] * 4,
        maximum_all=40.0,
        marked_share=0.5,
        near_features=[[5]] * 6,
        near_cosines=[[0.1]] * 6,
        aligned_neurons=[[0]] * 6,
        histogram=[[1, 1]] * 6,
        tenths=[[0.1] * 10] * 6,
        top_tokens=[[]] * 6,
        before_counts=[[9, 8]] * 6,
        top_logit_values=[[5, 4, 3]] * 6,
        bottom_logit_values=[[-5, -4, -3]] * 6,
        aligned_values=[[1]] * 6,
        top_token_means=[[]] * 6,
        top_token_counts=[[]] * 6,
    )
    examples["activation"], examples["activations"] = (
        examples["activation"] * 4,
        [a * 4 for a in examples["activations"]],
    )
    other = FeatureTable(frame, examples, tokenizer, "neuron")
    blind = [page.page_html("unit", rating.blinded(table.page(0), 3)) for table in (full, other)]
    assert blind[0] == blind[1] and "Unit 3" in blind[0] and 'data-feature=""' in blind[0]
    assert ">100<" in blind[0] and not re.search(
        "density|neuron|feature(?!=)", shown_text(blind[0]), re.IGNORECASE
    )


def test_ratings_survive_a_torn_line_and_the_last_one_counts(tmp_path):
    path = tmp_path / "ratings" / "a.csv"
    assert rating.load_ratings(path).empty
    rating.save_rating(path, 'A "B", <b>', 0, "feature", 7, 2)
    with path.open("a") as f:
        f.write('2024-01-01T00:00:00,"A ""B')  # killed while it wrote
    for unit, value in ((9, 5), (7, 4)):
        rating.save_rating(path, 'A "B", <b>', 0, "feature", unit, value)
    kept = rating.load_ratings(path)
    assert kept[["rater", "seed", "kind", "unit", "rating"]].to_numpy().tolist() == [
        ['A "B", <b>', 0, "feature", 9, 5],
        ['A "B", <b>', 0, "feature", 7, 4],
    ]
    assert (
        path.read_text().splitlines()[0] == "time,rater,seed,kind,unit,rating"
        and len(path.read_text().splitlines()) == 5
    )


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "=1+1", "x" * 61])
def test_names_that_break_a_spreadsheet_are_refused(name):
    with pytest.raises(SettingsError, match="1 to 60 printable"):
        rating.rater_name(name)


def test_ratings_are_summed_up_by_kind():
    ratings = pd.DataFrame(
        {
            "kind": ["feature"] * 4 + ["neuron"] * 3,
            "unit": [1, 1, 2, 3, 1, 2, 3],
            "rating": [5, 3, 4, 4, 2, 2, 2],
        }
    )
    found = rating.summary(ratings)
    assert found["feature"] == {
        "n": 3,
        "mean": 4.0,
        "low": 4.0,
        "high": 4.0,
    }  # unit 1 counts once, as 4
    spread = rating.summary(
        pd.DataFrame({"kind": "feature", "unit": range(100), "rating": [1, 5] * 50})
    )["feature"]
    assert (
        abs(spread["mean"] - 3) < 1e-9
        and abs(spread["high"] - 3 - 1.96 * 0.2) < 0.05
        and abs(spread["low"] - 3 + 1.96 * 0.2) < 0.05
    )
    fig = rating.figure(ratings)
    assert [bar.name for bar in fig.data] == [
        "features: mean 4.00 [4.00, 4.00], n = 3",
        "neurons: mean 2.00 [2.00, 2.00], n = 3",
    ]
    assert list(fig.data[0].y) == [0, 0, 25, 50, 25] and {
        a.text for a in fig.layout.annotations
    } == {"the original's features 4.08", "the original's neurons 2.19"}


def rated(panel: RatingPanel, value: int) -> None:
    next(b for b in panel.buttons if b.description.startswith(str(value))).click()


def test_a_stopped_session_goes_on_and_back_corrects(tokenizer, tmp_path):
    tables = {kind: make_table(tokenizer, TEXTS, 5, kind) for kind in ("feature", "neuron")}
    path, shown = tmp_path / "r.csv", []

    def begun() -> RatingPanel:
        panel = RatingPanel(lambda: tables, path)
        panel.rater.value, panel.n.value = "me", 3
        panel.begin.click()
        return panel

    nameless = RatingPanel(lambda: tables, path)
    nameless.begin.click()
    assert "printable" in nameless.note.value and nameless.page.value == ""
    panel = begun()
    for value in (1, 2, 3):
        shown.append(panel.items[panel.at])
        rated(panel, value)
    panel.back.click()
    assert panel.items[panel.at] == shown[-1]
    rated(panel, 5)
    panel = begun()  # another day
    assert (
        panel.at == 3 and panel.items[panel.at] not in shown and "<b>4</b> of 6" in panel.note.value
    )
    for _ in range(3):
        rated(panel, 4)
    kept = rating.load_ratings(path)
    assert len(kept) == 6 and kept.set_index(["kind", "unit"])["rating"].loc[[*shown]].tolist() == [
        1,
        2,
        5,
    ]
    assert (
        panel.page.value == ""
        and "6" in panel.note.value
        and panel.controls.layout.display == "none"
    )


# --- static page and gallery ---


def test_the_static_page_holds_the_true_values(table):
    text = html.unescape(re.sub("<[^>]+>", " ", page.static_html(table, [3, 4])))
    f = table.features.iloc[4]
    assert (
        f.density == 0.003
        and "0.3 %" in text
        and "3\u2009000 of 1\u2009000\u2009000 tokens" in text
    )
    assert re.search(r"maximum\s+8\b", text) and re.search(r"mean when active\s+1\.25", text)
    assert all(v in text for v in ("+0.5", "+0.25", "+0.125", "-0.0021"))
    assert len(re.findall('class="sae-value"', page.static_html(table, [4], examples=1))) == 1


def test_a_histogram_is_drawn_where_there_is_one(tokenizer):
    table = make_table(tokenizer, TEXTS)
    assert "<svg" not in page.page_html(table.kind, table.page(0))
    table.features["histogram"] = [[8, 4, 0, 1]] * len(table)
    assert re.findall(
        r'<rect[^>]*height="([\d.]+)"', page.page_html(table.kind, table.page(0))
    ) == ["40.0", "29.3", "0.0", "12.6"]  # log(1 + count)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (0.00012345, "0.000123"),
        (1234567, "1\u2009234\u2009567"),
        (0.000000912, "0.000000912"),
        (3.14159, "3.14"),
        (99.97, "100"),
    ],
)
def test_numbers_have_no_exponent(x, text):
    assert page.decimal(x) == text


def test_the_draw_is_seeded_and_leaves_rare_features_out(tokenizer):
    table = make_table(tokenizer, TEXTS, 300)
    table.features.loc[:250, "n_active"] = 100
    table.features.loc[7, "n_active"] = 99
    draws = [[e["feature"] for e in random_draw.draw(table, 20, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 20
    everything = [e["feature"] for e in random_draw.draw(table, 999, 0)]
    assert sorted(everything) == [n for n in range(251) if n != 7]


def test_characters_are_whole_again_around_the_strongest_token(table):
    second = random_draw.entry(table, 3)["examples"][1]  # "naïve", strongest on a; ï is two tokens
    assert (second["before"], second["token"], second["after"]) == ("n", "a", "ïve ⟨e4⟩")


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.codes, self.bold, self.open = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if "code" in self.open:
            self.codes[-1] += data
            if "strong" in self.open:
                self.bold.append(data)


RENDERERS = [python_markdown.markdown, markdown2html]


@pytest.mark.parametrize("render", RENDERERS, ids=["markdown", "mistune"])
def test_corpus_text_cannot_break_the_gallery(table, render):
    for entry in (random_draw.entry(table, n) for n in range(len(TEXTS))):
        read = Reader(render(random_draw.markdown(entry)))
        assert read.tags <= {"p", "strong", "code", "ul", "li"}
        assert read.bold == [span(e["token"]).strip("` ") for e in entry["examples"]]
        assert len(entry["examples"]) == 2
    assert SCRIPT in "".join(
        e["before"] + e["token"] + e["after"] for e in random_draw.entry(table, 0)["examples"]
    )


@given(
    text=st.text(
        min_size=1,
        max_size=12,
        alphabet=st.one_of(st.characters(), st.sampled_from("`*_[]<>&|~$\\! #\n·")),
    )
)
@settings(max_examples=150, deadline=None)
def test_a_code_span_shows_exactly_its_text(text):
    text = visible.plain(text)
    for render in RENDERERS:
        read = Reader(render(f"- 1: {span('a')}**{span(text)}**{span(' b')}"))
        assert (
            read.bold == [visible.isolated(re.sub("^ | $", "·", text))]
            and read.codes[0] == "a"
            and read.codes[2] == "·b"
        )
