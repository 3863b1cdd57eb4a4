"""The feature page's parts: corpus text is shown and never executed; values are the table's;
ratings are kept.
"""

import html
import json
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
from sae_lib.formats import decimal
from sae_lib.text import display as visible
from sae_lib.text.tokenizer import train_tokenizer
from suite import close_reading
from suite.browser import page, rating, single_file
from suite.browser.blocks import Blocks
from suite.markup import span
from suite.report.render import _environment as report_environment
from suite.table import FeatureTable

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
    """Feature i fires on text i; beyond the texts: dead. Density and maximum fall, then rise, so
    that each sort differs.
    """
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


def with_markup_as_a_token(table: FeatureTable, tokenizer) -> FeatureTable:
    """Markup as one token: feature 0 raises it, and is strongest on it in the list as well."""
    table.features.at[0, "top_logits"] = [len(tokenizer) - 2, 1, 2]
    table.examples.loc[table.examples.index[0], "token_id"] = len(tokenizer) - 1
    return table


@pytest.fixture(scope="module")
def table(tokenizer):
    return with_markup_as_a_token(make_table(tokenizer, TEXTS), tokenizer)


def write_page(path, table, rated=dict, **about):
    """`browser.html` of a crafted table, without a model."""
    about = {"title": "t", "facts": "f", "text": "", "temperature": 1, "no_model": "none"} | about
    blocks = Blocks(table, about, rated=rated)
    path.write_text(single_file.page_text(blocks, blocks.names()), encoding="utf-8")
    return path


def open_page(tab, path, address=""):
    tab.goto("about:blank")  # another address of the same file would not load it again
    tab.goto(f"file://{path.resolve()}{address}")
    tab.wait_for_selector("html[data-ready]")


# --- text is data, in pages that need no script ---


@pytest.mark.parametrize("how", ["page", "innerHTML"])
def test_markup_in_the_corpus_is_shown_and_not_executed(tab, table, how):
    content = page.static_html(table, range(len(TEXTS)))
    if how == "page":
        tab.set_content(content)
    else:
        tab.evaluate("content => { document.body.innerHTML = content }", content)
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.hit") is None
    assert tab.locator("script, img, .sae a, .sae iframe").count() == 0
    shown = tab.locator(".sae-text").first.inner_text()
    assert SCRIPT in shown and IMAGE in shown and "{{ 7*7 }}" in shown and "</table>" in shown
    listed = tab.locator(".sae").inner_text()
    assert SCRIPT in listed and IMAGE.replace(" ", "·") in listed


def test_nothing_in_the_page_hides_or_reorders(tab, table):
    tab.set_content(page.static_html(table, range(len(TEXTS))))
    text = tab.locator("body").inner_text() + tab.evaluate(
        "[...document.querySelectorAll('[title]')].map(e => e.title).join('')"
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\ufeff\ud800-\udfff]", text)
    tab.set_content(page.static_html(table, [1]))
    shown = tab.locator(".sae-text").first.inner_text()
    # The three bytes of the mark are three tokens here.
    assert "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31m⟨CR⟩⏎⇥" in shown and "⟨U+202E⟩" not in shown
    assert "⟨e2⟩⟨80⟩⟨ae⟩gpj" in shown


def test_right_to_left_tokens_stand_in_token_order(tab, tokenizer):
    own = train_tokenizer(["שלום עולם"] * 5, 290)  # whole words are tokens
    tab.set_content(page.static_html(make_table(own, ["abc שלום עולם 123 def"]), [0]))
    boxes = tab.evaluate(
        "[...document.querySelectorAll('.sae-text')[0].querySelectorAll('bdi')].map(e => "
        "e.getBoundingClientRect().x)"
    )
    assert len(boxes) > 6 and boxes == sorted(boxes)


def test_hover_shows_token_and_value(tab, table):
    tab.set_content(page.static_html(table, [4]))
    strongest = tab.locator(".sae-text bdi:has(b)").first
    name = table.vocabulary.name(int(table.strongest(4)["token_id"].iloc[0]))
    assert strongest.get_attribute("title").split() == [name, "8"]
    colours = tab.evaluate(
        "[...document.querySelector('.sae-text').querySelectorAll('bdi')].map(e => "
        "getComputedStyle(e).backgroundColor)"
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


# --- the full table ---


@pytest.fixture(scope="module")
def full(tokenizer):
    """The table with every column of `features.build` and scores; feature 1 has no score,
    feature 5 is dead.
    """
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
            "kind": "feature",
            "unit": [0, 2, 3, 4],
            "rule": ["after <b>`x`", "none", "none", "a digit"],
            "n_conditions": [1, 2, 3, 4],
            "balanced_accuracy": [0.9, 0.8, 0.7, 0.6],
            "auroc": [0.5, 0.95, 0.6, 0.7],
        }
    )
    return FeatureTable(plain.features.assign(**columns), examples, tokenizer, scores=scores)


@pytest.fixture(scope="module")
def full_tab(chromium, full, tokenizer, tmp_path_factory):
    """The page of the full table, with other features to be rated that look the same at another
    scale.
    """
    path = tmp_path_factory.mktemp("full") / "browser.html"
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    open_page(
        tab, write_page(path, full, lambda: {"feature": full, "neuron": disguised(full, tokenizer)})
    )
    yield tab
    tab.close()


def drawn(tab, number: int) -> str:
    script = "n => sae.app.features.page(n).then((p) => sae.page_html(sae.app.features, p).text)"
    return tab.evaluate(script, number)


def shown_text(page_html: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", page_html)))


def test_the_page_shows_the_whole_table(full_tab):
    text = shown_text(drawn(full_tab, 0))
    for part in (
        "on marked positions 12.5 %",
        "numpy 2.5 ",
        "before an active token <|endoftext|> 77 ! 66",
        "decoder direction 41 +0.8 42 -0.3",
        "Correlated neurons 43 +0.7",
        "after <b>`x` ",
        "accuracy 0.9 , AUROC 0.5",
    ):
        assert part in text, part
    assert re.search(r"Nearest [a-z ]+ 1 \S+ \+0.9 2 \S+ -0.1", text)
    assert text.index("9 to 10 25 % of its activations 9.5 marked") < text.index(
        "0 to 1 50 % of its activations 0.5 "
    )
    assert text.count("marked") == 2  # the share in the head, and the one marked example
    assert "AUROC" not in drawn(full_tab, 1)
    links = re.findall('href="([^"]*)"', drawn(full_tab, 0))
    neurons = [f"#view=compare&pins=0,neuron-{n}" for n in (41, 42, 43)]
    assert list(map(html.unescape, links)) == ["#feature=1", "#feature=2", *neurons]


def test_the_static_page_shows_rule_and_scores(full):
    text = shown_text(page.static_html(full, [0]))
    assert "Rule: after <b>`x` (balanced accuracy 0.9, AUROC 0.5)" in text
    assert text.count(" marked") == 1 and "Rule" not in page.static_html(full, [1])


def test_limits_leave_out_what_is_over_the_range(full):
    assert "Over the whole range" in page.static_html(full, [0])
    one = page.static_html(full, [0], examples=1)
    assert "Over the whole range" not in one and one.count('class="sae-text"') == 1
    blocks = {limits: Blocks(full, {}, limits=limits)("feature-0") for limits in (None, (1, 0))}
    heads = [json.loads(b[4 : 4 + int.from_bytes(b[:4], "little")]) for b in blocks.values()]
    of_0 = [[e for e in head["examples"] if e["feature"] == 0] for head in heads]
    assert [[e["tenth"] for e in own] for own in of_0] == [[-1, -1, 0, 9], [-1]]


def test_only_true_top_examples_are_in_the_gallery(full):
    examples = close_reading.entry(full, 0)["examples"]
    assert [e["activation"] for e in examples] == [4.0, 3.0]


# --- search and sort ---


def found(tab, query: str, sort: str = "feature", descending: bool = False) -> list[int]:
    script = "([q, s, d]) => sae.matches(sae.app.features, q, s, d).then((r) => r.found)"
    return tab.evaluate(script, [query, sort, descending])


def problem(tab, query: str) -> str:
    script = "q => sae.matches(sae.app.features, q).then((r) => r.problem)"
    return tab.evaluate(script, query)


@pytest.mark.parametrize(
    ("query", "expected"),
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
        ('"', {0}),
    ],
)
def test_queries(full_tab, query, expected):
    assert set(found(full_tab, query)) == expected


def test_a_blank_before_the_first_word_belongs_to_it(full_tab):
    queries = [" numpy", '" numpy"', "·numpy", "text:⏎x", "numpy  as"]
    parts = full_tab.evaluate("qs => qs.map(sae.parse_query)", queries)
    assert parts[0] == parts[1] == parts[2] == [{"place": "", "wanted": " numpy"}]
    assert parts[3] == [{"place": "text", "wanted": "\nx"}]
    assert [p["wanted"] for p in parts[4]] == ["numpy", "as"]


@pytest.fixture(scope="module")
def plain_tab(chromium, tokenizer, tmp_path_factory):
    """The page of a table of an older run, 60 features without scores; a logit without a token."""
    table = make_table(tokenizer, TEXTS, 60)
    table.features.at[2, "top_logits"] = [len(tokenizer) + 7] * 3
    tab = chromium.new_page()
    open_page(tab, write_page(tmp_path_factory.mktemp("plain") / "browser.html", table))
    yield tab, table
    tab.close()


def test_search_finds_tokens_logits_and_numbers(plain_tab, tokenizer):
    tab, table = plain_tab
    decoded = [tokenizer.decode([t]) for t in range(len(tokenizer))]
    strongest = table.examples.groupby("feature")["token_id"]
    by_token = {n for n, ids in strongest if any("imp" in decoded[t] for t in ids)}
    logits = [[t for t in ids if t < len(decoded)] for ids in table.features["top_logits"]]
    by_logit = {n for n, ids in enumerate(logits) if any("imp" in decoded[t] for t in ids)}
    assert 4 in by_token and by_logit - by_token  # both kinds are there to be found
    assert set(found(tab, "imp")) == set(found(tab, "IMP")) == {*by_token, *by_logit}
    assert found(tab, "#12") == [12] and 12 in found(tab, "12") and found(tab, "#60") == []
    assert len(found(tab, "")) == 60 and found(tab, "no such token") == []
    assert len(found(tab, "2")) > 1  # a token may hold the digits too
    assert [found(tab, "2", "feature", down)[0] for down in (True, False)] == [2, 2]
    newline = found(tab, "⏎")  # as copied from the page
    assert newline and newline == found(tab, '"\n"')
    assert "⟨#" in drawn(tab, 2)


def test_scores_that_are_not_there_match_nothing(plain_tab):
    tab, _ = plain_tab
    assert found(tab, "auroc>0") == []
    heads = tab.locator("#heads button").evaluate_all("bs => bs.map(b => b.dataset.sort)")
    assert heads == ["feature", "relevance", "maximum", "density"]
    assert problem(tab, "auroc>0") == "no auroc here: these features have no such number"


@pytest.mark.parametrize("column", ["density", "maximum", "feature"])
@pytest.mark.parametrize("descending", [True, False])
def test_sort(plain_tab, column, descending):
    tab, table = plain_tab
    order = found(tab, "", column, descending)
    assert sorted(order) == list(range(60))
    shown = order if column == "feature" else order[:5]
    keys = table.features[column].to_numpy()[shown]
    assert (np.diff(keys) < 0).all() if descending else (np.diff(keys) > 0).all()
    assert column == "feature" or set(order[5:]) == set(range(5, 60))  # the dead come last


@pytest.mark.parametrize(
    ("descending", "order"), [(True, [2, 4, 3, 0, 1, 5]), (False, [0, 3, 4, 2, 1, 5])]
)
def test_sorted_by_score_those_without_are_last(full_tab, descending, order):
    assert found(full_tab, "", "auroc", descending) == order


# --- blind ratings ---


def test_the_draw_mixes_alive_units_of_both_kinds(full_tab):
    units = {"feature": list(range(21)), "neuron": list(range(30, 51))}
    script = "([units, n, seed]) => sae.draw_blind(units, n, seed).map((i) => [i.kind, i.unit])"
    draws = [
        [tuple(item) for item in full_tab.evaluate(script, [units, n, seed])]
        for n, seed in ((5, 0), (5, 0), (5, 1), (8, 0))
    ]
    assert draws[0] == draws[1] != draws[2] and set(draws[0]) < set(draws[3])
    assert [sum(kind == k for k, _ in draws[0]) for kind in units] == [5, 5]
    kinds = [kind for kind, _ in draws[0]]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))
    assert len(full_tab.evaluate(script, [units, 99, 0])) == 42


def disguised(full, tokenizer):
    """The same examples at another scale, number, density, with other neighbours, neurons and
    scores.
    """
    frame, examples = (
        full.features.drop(columns=["rule", "n_conditions", "balanced_accuracy", "auroc"]),
        full.examples.copy(),
    )
    frame = frame.assign(
        density=0.3,
        n_active=199,
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
    return FeatureTable(frame, examples, tokenizer, "neuron")


def test_a_blind_page_does_not_give_its_kind_away(full_tab):
    script = (
        "kind => sae.app.features.page(0, kind).then((p) => sae.page_html(sae.app.features, "
        "p, 3).text)"
    )
    blind = [full_tab.evaluate(script, kind) for kind in ("feature", "neuron")]
    assert blind[0] == blind[1] and "Unit 3" in blind[0] and 'data-feature=""' in blind[0]
    hidden = "density|neuron|feature(?!=)"
    assert ">100<" in blind[0] and not re.search(hidden, shown_text(blind[0]), re.IGNORECASE)


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


def test_ratings_are_summed_up_by_kind(full_tab):
    ratings = [
        {"kind": kind, "unit": unit, "rating": rating}
        for kind, unit, rating in [
            *[("feature", 1, 5), ("feature", 1, 3), ("feature", 2, 4), ("feature", 3, 4)],
            *[("neuron", i, (1, 5)[i % 2]) for i in range(100)],
        ]
    ]
    shown = shown_text(full_tab.evaluate("r => sae.app.rate.summary(r).text", ratings))
    assert "features 4 4.00 ± 0.00 4.08" in shown  # unit 1 counts once, as 4
    assert "neurons 100 3.00 ± 0.39 2.19" in shown  # 1.96 standard errors


@pytest.mark.parametrize("stored", [True, False])
def test_a_stopped_session_goes_on_and_back_corrects(tab, tokenizer, tmp_path, stored):
    tables = {kind: make_table(tokenizer, TEXTS, 5, kind) for kind in ("feature", "neuron")}
    path = write_page(tmp_path / "b.html", tables["feature"], lambda: tables, title=f"{stored}")
    if not stored:  # a browser that keeps nothing for files
        tab.add_init_script("delete Window.prototype.localStorage")
    note, kept = tab.locator("#rate-note"), "() => sae.source.ratings()"

    def begin(rater="me"):
        tab.fill("#rater", rater)
        tab.fill("#each", "3")
        tab.click("#begin")

    def rate(value, then):
        tab.click(f"[data-rating='{value}']")
        tab.wait_for_function(f"() => sae.app.$('rate-note').textContent.startsWith({then!r})")

    open_page(tab, path, "#view=rate")
    begin(" ")
    tab.wait_for_function("() => sae.app.$('rate-note').textContent.includes('printable')")
    begin('A "B", <b>')
    for value in (1, 2, 3):
        rate(value, f"{value + 1} of 6")
    shown = tab.evaluate("sae.app.rate.items")
    tab.click("#back")
    tab.wait_for_function("() => sae.app.$('rate-note').textContent.startsWith('3 of 6')")
    rate(5, "4 of 6")
    ratings = {(r["kind"], r["unit"]): r["rating"] for r in tab.evaluate(kept)}
    assert [ratings[i["kind"], i["unit"]] for i in shown[:3]] == [1, 2, 5] and len(ratings) == 3
    if stored:  # another day
        open_page(tab, path, "#view=rate")
        begin('A "B", <b>')
        tab.wait_for_function("() => sae.app.$('rate-note').textContent.startsWith('4 of 6')")
        assert tab.evaluate("sae.app.rate.items[3]") not in shown[:3]
    for then in ("5 of 6", "6 of 6", "All 6"):
        rate(4, then)
    assert "All 6 are rated" in note.inner_text() and tab.locator("#scale").is_hidden()
    assert "features" in tab.locator("#unit").inner_text()
    tab.click("nav a[data-view=start]")
    with tab.expect_download() as download:
        tab.click("button[data-act=export]")
    table = pd.DataFrame(json.loads(download.value.path().read_text())["ratings"])
    assert len(table) == 6 and set(table["rater"]) == {'A "B", <b>'}
    assert set(table["kind"]) == {"feature", "neuron"}


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
    assert page.static_html(table, [4], examples=1).count('class="sae-text"') == 1


def test_of_several_static_pages_one_at_a_time_is_open(tab, table):
    tab.set_content(page.static_html(table, [0, 2, 4]))
    opened = "[...document.querySelectorAll('details')].map(d => d.open)"
    assert tab.evaluate(opened) == [True, False, False]
    tab.locator("summary").nth(2).click()
    assert tab.evaluate(opened) == [False, False, True]
    assert "import" in tab.locator("summary").nth(2).inner_text()
    assert SCRIPT in tab.locator("summary").first.inner_text()
    assert "<details" not in page.static_html(table, [0])


def test_a_histogram_is_drawn_where_there_is_one(full_tab, plain_tab):
    assert "<svg" not in drawn(plain_tab[0], 0)
    heights = re.findall(r'<rect[^>]*height="([\d.]+)"', drawn(full_tab, 0))
    assert heights == ["50.0", "36.6", "0.0", "15.8"]  # log(1 + count)


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
    assert decimal(x) == text


def test_the_draw_is_seeded_and_leaves_rare_features_out(tokenizer):
    table = make_table(tokenizer, TEXTS, 300)
    table.features.loc[:250, "n_active"] = 100
    table.features.loc[7, "n_active"] = 99
    draws = [close_reading.draw(table, 20, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 20
    everything = close_reading.draw(table, 999, 0)
    assert sorted(everything) == [n for n in range(251) if n != 7]


def test_characters_are_whole_again_around_the_strongest_token(table):
    second = close_reading.entry(table, 3)["examples"][
        1
    ]  # "naïve", strongest on a; ï is two tokens
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
def test_corpus_text_cannot_break_the_examples_of_a_card(table, render):
    tables = report_environment().get_template("tables.md.j2").module
    for entry in (close_reading.entry(table, n) for n in range(len(TEXTS))):
        read = Reader(render(tables.firings(entry["examples"])))
        assert read.tags <= {"p", "strong", "code", "ul", "li"}
        assert read.bold == [span(e["token"]).strip("` ") for e in entry["examples"]]
        assert len(entry["examples"]) == 2
    assert SCRIPT in "".join(
        e["before"] + e["token"] + e["after"] for e in close_reading.entry(table, 0)["examples"]
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
