"""Explanations by a chat model, over real HTTP: right and wrong answers, malformed ones and
none; the split, the limits, the cache.
"""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lib import settings
from sae_lib.errors import ChatError, SettingsError
from sae_lib.features.firing import Firing
from sae_lib.interpretability import explain
from sae_lib.interpretability.explain import HeldoutText, Unit, Window, draw_unit
from sae_lib.model.activations import harvest
from sae_lib.text.display import Vocabulary
from sae_lib.text.tokenizer import train_tokenizer
from suite import chat, stages
from suite import explain as suite_explain
from suite.runs import Run
from suite.stages import STAGES
from tests.chat_server import KEY, serving, wait_until
from tests.conftest import SHARED

FEATURES = 3
OWN = {"features": FEATURES, "examples": 6, "test_examples": 4, "batch": 3}


@pytest.fixture(scope="module")
def base(small_run, tmp_path_factory) -> Run:
    """The small run in a folder of its own, with its feature table."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    shutil.copytree(small_run.folder, folder, copy_function=os.link)
    (folder / "settings.yaml").unlink()  # those of this run are others
    shutil.rmtree(folder / "features", ignore_errors=True)  # and other tests may have made these
    short = settings.FeatureSettings(
        top_k=10, context=8, after=4
    )  # the small run's features fire often; in short excerpts some are silent
    run = Run(
        with_settings(small_run, **OWN).model_copy(update={"features": short}), folder, STAGES
    )
    run.path("features")
    return run


def text_of(run):
    s = run.settings
    tokens, n_tokens = run.get("tokens"), s.evaluation.tokens
    return HeldoutText(tokens, s.lm.context, n_tokens, s.features, s.explain.seed)


def with_settings(run, **values):
    return run.settings.model_copy(update={"explain": settings.ExplainSettings(**values)})


def changed(run, **values) -> Run:
    """The run with other settings of `explain`, which its folder is then said to be made with."""
    (run.folder / "settings.yaml").unlink(missing_ok=True)
    return dataclasses.replace(run, settings=with_settings(run, **values))


@pytest.fixture
def run(base, tmp_path) -> Run:
    """A copy of it for one test."""
    shutil.copytree(base.folder, tmp_path / "run", copy_function=os.link)
    return Run(base.settings, tmp_path / "run", STAGES)


@pytest.fixture(scope="module")
def units(base):
    return suite_explain.units_of(base, base.settings.sae.recipe, FEATURES)


@pytest.fixture(scope="module")
def vocabulary(base):
    return Vocabulary(base.get("tokens").tokenizer)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.01)
    with serving() as endpoint:
        for name, value in {
            "SAE_LLM_BASE_URL": endpoint.url,
            "SAE_LLM_MODEL": "oracle",
            "SAE_LLM_API_KEY": KEY,
        }.items():
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture(scope="module")
def oracle(base, units, vocabulary):
    """A script that explains a unit by its name, and of an excerpt under that name knows what is
    right (else no).
    """
    s, names, truth = base.settings.explain, {}, {}
    for unit in (u for of_kind in units.values() for u in of_kind):
        name = f"{unit.kind} {unit.index}"
        names[
            explain.prompt(
                "explain",
                [explain.shown(vocabulary, w, w.on) for w in unit.shown],
            )
        ] = name
        for test in explain.TESTS:
            rng = np.random.default_rng((s.seed, unit.index))
            for question in explain.questions(test, vocabulary, unit, s.test_examples, rng):
                truth[name, question.text] = question.truth

    def script(prompt, number=0):
        if prompt in names:
            return names[prompt]
        name = re.search(r"like this:\n(.*)\n", prompt)[1]
        return str([int(truth.get((name, text), False)) for text in excerpts(prompt)])

    return script


def excerpts(prompt):
    return re.findall(r"^\d+: (.*)$", prompt, re.MULTILINE)


def quiet(*said):
    pass


def test_right_answers_score_one_and_other_ones_explanations_chance(run, endpoint, oracle):
    endpoint.script, said = oracle, []
    results = suite_explain.explain(run, say=said.append)
    kinds = results["kinds"]
    assert (
        list(kinds) == ["feature", "swapped", "neuron_matched", "neuron"]
        and results["stopped"] is None
    )
    for kind in ("feature", "neuron_matched"):
        assert (
            kinds[kind]["detection"]
            == kinds[kind]["fuzzing"]
            == {"mean": 1.0, "low": 1.0, "high": 1.0, "units": FEATURES}
        )
    assert (
        kinds["swapped"]["detection"]["mean"] == kinds["swapped"]["fuzzing"]["mean"] == 0.5
    )  # nothing is known under that name: all no
    assert (
        results["unparsed"] == 0
        and results["requests"] == len(endpoint.requests)
        and results["from_cache"] == 0
    )
    table = pd.read_parquet(stages.explanations_file(run))
    assert {"feature", "explanation", "detection", "fuzzing", "n", "unparsed"} <= set(table.columns)
    of_features = table[table["kind"] == "feature"]
    assert (
        of_features["n"].between(12, 16).all()
        and (of_features["explanation"] == [f"feature {i}" for i in of_features["feature"]]).all()
    )
    assert len(said) == 1 and "feature detection 1.00" in said[0] and "0 of" in said[0]


def test_wrong_answers_score_zero(run, endpoint, oracle):
    endpoint.script = lambda prompt, number: (
        oracle(prompt).translate(str.maketrans("01", "10"))
        if "Answer with a list" in prompt
        else oracle(prompt)
    )
    results = suite_explain.explain(run, say=quiet)
    assert (
        results["kinds"]["feature"]["detection"]["mean"]
        == results["kinds"]["feature"]["fuzzing"]["mean"]
        == 0
    )


def test_malformed_answers_and_none_are_counted_and_the_rest_is_scored(run, endpoint, oracle):
    lost, broken = (
        [],
        [
            "yes, no, yes",
            "[]",
            "[1, 0, 1, 0, 1, 0]",
            "[2, 1, 1]",
            "",
            (500, ""),
            (200, "<html>"),
            "close",
        ],
    )

    def script(prompt, number):
        if (
            "Answer with a list" in prompt
            and len(lost) < len(broken)
            and number % 3 == 0
            or (lost and lost[-1][0] == prompt)
        ):
            if not lost or lost[-1][0] != prompt:
                lost.append((prompt, broken[len(lost)]))
            return lost[-1][1]
        return oracle(prompt)

    endpoint.script = script
    run = changed(run, **OWN, attempts=2)
    results = suite_explain.explain(run, say=quiet)
    assert len(lost) == len(broken) and results["unparsed"] == sum(
        len(excerpts(prompt)) for prompt, _ in lost
    )
    assert (
        results["kinds"]["feature"]["detection"]["mean"]
        == results["kinds"]["neuron_matched"]["fuzzing"]["mean"]
        == 1
    )
    assert (
        sum(results["without_reply"].values()) == 3
    )  # the 500, the page and the closed connection
    table = pd.read_parquet(stages.explanations_file(run))
    assert table["unparsed"].sum() == results["unparsed"] and table["n"].sum() == results["n"]


def test_a_unit_without_an_explanation_is_counted_and_not_tested(run, endpoint, oracle):
    endpoint.script = lambda prompt, number: oracle(prompt) if number != 1 else "<think>what could"
    results = suite_explain.explain(run, say=quiet)
    assert {kind: v["unexplained"] for kind, v in results["kinds"].items()} == {
        "feature": 1,
        "swapped": 1,
        "neuron_matched": 0,
        "neuron": 0,
    }
    assert results["kinds"]["feature"]["detection"]["units"] == FEATURES - 1


def test_a_second_run_asks_nothing(run, endpoint, oracle):
    endpoint.script = oracle
    first = suite_explain.explain(run, say=quiet)
    sent = len(endpoint.requests)
    assert suite_explain.explain(run, say=quiet) == first
    (run.results_folder / "explanations.json").unlink()
    again = suite_explain.explain(run, say=quiet)
    assert (
        again["kinds"] == first["kinds"]
        and (again["requests"], again["from_cache"]) == (0, sent)
        and len(endpoint.requests) == sent
    )


def test_a_limit_ends_it_with_what_was_scored_and_a_higher_one_goes_on(run, endpoint, oracle):
    endpoint.script = oracle
    limited = changed(run, **OWN, max_requests=9 + 10)  # the explanations, and the first tests
    said = []
    results = suite_explain.explain(limited, say=said.append)
    assert (
        len(endpoint.requests) == 19
        and "max_requests=19" in results["stopped"]
        and "max_requests=19" in said[0]
    )
    assert (
        results["kinds"]["feature"]["detection"]["mean"] == 1
        and results["kinds"]["feature"]["units"] == 1
    )
    assert pd.read_parquet(stages.explanations_file(run))["n"].between(0, 16).all()
    whole = suite_explain.explain(changed(run, **OWN), say=quiet)
    assert (
        whole["stopped"] is None
        and whole["from_cache"] == 19
        and len(endpoint.requests) == 19 + whole["requests"]
    )


def test_replies_of_a_run_beside_are_taken_over(run, endpoint, oracle):
    endpoint.script = oracle
    sent = suite_explain.explain(run, say=quiet)["requests"]
    shutil.copytree(
        run.folder,
        beside := run.folder.with_name("beside"),
        ignore=shutil.ignore_patterns("explanations*"),
    )
    results = suite_explain.explain(Run(run.settings, beside, STAGES), say=quiet)
    assert (results["requests"], results["from_cache"]) == (0, sent)


def test_an_endpoint_that_goes_away_leaves_what_was_scored(run, endpoint, oracle):
    endpoint.script = lambda prompt, number: oracle(prompt) if number <= 20 else "close"
    run = changed(run, **OWN, attempts=1)
    with pytest.raises(ChatError, match="run the same command to continue"):
        suite_explain.explain(run, say=quiet)
    saved = run.load_results("explanations")
    assert (
        "does not reply" in saved["stopped"] and saved["kinds"]["feature"]["detection"]["mean"] == 1
    )
    endpoint.script = oracle
    assert suite_explain.explain(run, say=quiet)["from_cache"] == 20


def test_an_endpoint_that_refuses_leaves_nothing(run, endpoint):
    endpoint.script = lambda prompt, number: (401, "who are you?")
    with pytest.raises(ChatError, match="SAE_LLM_API_KEY"):
        suite_explain.explain(run, say=quiet)
    assert (
        not stages.explanations_file(run).exists()
        and not (run.results_folder / "explanations.json").exists()
    )


def test_ratings_are_asked_for_where_wanted(run, endpoint, oracle):
    endpoint.script = lambda prompt, number: "4" if "one digit" in prompt else oracle(prompt)
    results = suite_explain.explain(changed(run, **OWN, rating=True), say=quiet)
    assert (
        results["kinds"]["feature"]["rating"]["mean"]
        == results["kinds"]["neuron"]["rating"]["mean"]
        == 4
    )


def test_the_key_is_in_no_file(run, endpoint, oracle, capfd):
    endpoint.script = lambda prompt, number: f"{KEY} {oracle(prompt)}"
    suite_explain.explain(run, say=print)
    assert endpoint.headers[0][1]["Authorization"].endswith(KEY)
    made = [p for p in run.folder.rglob("*") if p.is_file()]
    assert stages.explanations_file(run) in made and not [
        p for p in made if KEY.encode() in p.read_bytes()
    ]
    assert KEY not in "".join(capfd.readouterr()) and not any(
        KEY in str(text) for text in pd.read_parquet(stages.explanations_file(run))["explanation"]
    )


# --- the excerpts ---


def test_no_document_and_no_excerpt_is_in_both_halves(units, base):
    text = text_of(base)
    every = [u for of_kind in units.values() for u in of_kind]
    explained = {w.document for u in every for w in u.shown}
    tested = {w.document for u in every for w in u.active + u.silent}
    assert explained and tested and not explained & tested
    assert not text.for_tests[list(explained)].any() and text.for_tests[list(tested)].all()
    for u in every:
        of_shown = {w.ids for w in u.shown}
        assert not of_shown & {w.ids for w in u.active + u.silent}
        for windows in (u.shown, u.active, u.silent):
            assert len({w.ids for w in windows}) == len(windows)


def test_excerpts_fire_where_the_autoencoder_says(units, base, hook):
    text, sae = text_of(base), base.get("autoencoder")
    acts = sae.encode(harvest(hook, text.rows).float()).numpy()
    for u in units["feature"]:
        fires = Firing(np.flatnonzero(acts[:, u.index] > 0), acts[acts[:, u.index] > 0, u.index])
        assert u.density == len(fires.token) / text.rows.size
        possible = {text.window(t, fires) for t in fires.token.tolist()}
        assert (
            set(u.shown) | set(u.active) <= possible
            and all(any(w.on) for w in u.shown + u.active)
            and not any(any(w.on) for w in u.silent)
        )
        strongest = [
            t
            for t in fires.token[np.argsort(-fires.value, kind="stable")]
            if not text.for_tests[text.document.ravel()[t]] and t % text.rows.shape[1]
        ]
        assert u.shown[0] == text.window(int(strongest[0]), fires)
        assert (len(u.shown), len(u.active)) == (6, 8)
        assert 2 <= len(u.silent) <= 4  # a unit that fires on most of the text is silent in few


def test_excerpts_stay_in_their_document(base, units):
    tokens = base.get("tokens")
    text = text_of(base)
    documents = {}
    for u in units["feature"]:
        for w in u.shown + u.active + u.silent:
            if w.document not in documents:
                first, length = (
                    tokens.table["heldout"][name][w.document] for name in ("first_token", "tokens")
                )
                documents[w.document] = tokens.heldout[first : first + length].tolist()
            ids = documents[w.document]
            assert any(tuple(ids[i : i + len(w.ids)]) == w.ids for i in range(len(ids)))
            assert len(w.ids) <= text.s.context + 1 + text.s.after


def test_an_excerpt_ends_with_its_document(base):
    tokens, nowhere = base.get("tokens"), Firing(np.zeros(0, dtype=int), np.zeros(0))
    rows = tokens.rows("heldout", base.settings.lm.context)
    text = HeldoutText(tokens, rows.shape[1], rows.size, base.settings.features, 0)
    row, last = np.argwhere(np.diff(text.document, axis=1))[0].tolist()
    before, behind = (text.window(row * rows.shape[1] + last + i, nowhere) for i in (0, 1))
    assert (
        before.ids == tuple(rows[row, max(0, last - 8) : last + 1].tolist())
        and before.ids[-1] == tokens.tokenizer.eos_token_id
    )
    assert (
        behind.ids == tuple(rows[row, last + 1 : last + 6].tolist())
        and behind.document == before.document + 1
    )


def test_excerpts_where_it_is_silent_do_not_depend_on_what_explains_it(base):
    text, s = text_of(base), base.settings.explain
    token = np.arange(5, text.rows.size, 400)
    one, other = (
        draw_unit(text, "feature", 3, Firing(token, value), s)
        for value in (np.arange(1.0, len(token) + 1), np.arange(len(token), 0.0, -1))
    )
    assert one.silent == other.silent and one.shown != other.shown


def test_matched_neurons_are_the_strongest_at_the_features_density(units):
    for feature, matched, neuron in zip(
        units["feature"], units["neuron_matched"], units["neuron"], strict=True
    ):
        assert matched.index == neuron.index and matched.density == min(
            feature.density, neuron.density
        )


def test_repeated_text_is_not_tested(base):
    text, s = text_of(base), base.settings.explain
    text.rows = np.tile(
        text.rows[:1], (len(text.rows), 1)
    )  # all rows alike, so every excerpt at a place is the same text
    text.document = np.tile(
        np.arange(len(text.rows), dtype=np.int32)[:, None] % len(text.for_tests),
        (1, text.rows.shape[1]),
    )
    token = np.arange(30, text.rows.size, text.rows.shape[1])
    unit = draw_unit(text, "feature", 0, Firing(token, np.ones(len(token))), s)
    assert len(unit.shown) == 1 and unit.active == [] and unit.repeated == 1


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 9))
def test_wrong_marks_are_as_many_and_none_is_right(on, seed):
    window = Window(tuple(range(len(on))), tuple(on), 0)
    marks = explain.misplaced(window, np.random.default_rng(seed))
    assert not any(m and o for m, o in zip(marks, on, strict=True)) and sum(marks) == min(
        sum(on), len(on) - sum(on)
    )


# --- what is shown, and what is read ---


def test_an_excerpt_is_one_line_of_plain_text():
    tokenizer = train_tokenizer(["abc " * 9], 260)
    ids = tokenizer("a⟦x⟧\n\x1b[31m 你 {n} ignore all", add_special_tokens=False)["input_ids"]
    text = explain.shown(Vocabulary(tokenizer), Window(tuple(ids), (False,) * len(ids), 0))
    assert text == "a[x]⏎⟨U+001B⟩[31m 你 {n} ignore all"
    window = Window(tuple(tokenizer("a你b")["input_ids"]), (False, True, False, False, False), 0)
    assert explain.shown(Vocabulary(tokenizer), window, window.on) == "a⟦⟨e4⟩⟧⟨bd⟩⟨a0⟩b"
    assert explain.prompt("detection", [text, "b"], "{excerpts}").count("{n} ignore") == 1


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("[1,0,1]", [True, False, True]),
        ("```json\n[1, 0, 1]\n```", [True, False, True]),
        ("Excerpt [1] fits, so: [ 0,0 ,1 ].", [False, False, True]),
        ("[1, 1, 1] no, wait: [0, 0, 0]", [False] * 3),
        ("<think>[1, 1, 1]</think>[0, 0, 1]", [False, False, True]),
        ("<think>[1, 1, 1]", None),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("[1, 0, 10]", None),
        ("[1, , 1]", None),
        ("1, 0, 1", None),
        ("", None),
        (None, None),
        ("[" * 9999, None),
    ],
)
def test_answers_are_read_or_not_but_never_guessed(reply, read):
    assert explain.read_answers(reply, 3) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("4", 4),
        (" 5.", 5),
        ("Rating: 2", 2),
        ("<think>1</think>3", 3),
        ("0", None),
        ("6", None),
        ("4.5", None),
        ("4 or 5", None),
        ("-1", None),
        ("", None),
        (None, None),
    ],
)
def test_ratings_are_read(reply, read):
    assert explain.read_rating(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (" the word\n'if' ", "the word 'if'"),
        ("Explanation: dots", "dots"),
        ("<think>hm</think>dots", "dots"),
        ("x" * 999, "x" * 400),
        (" \n", None),
        (None, None),
    ],
)
def test_explanations_are_read(reply, read):
    assert explain.read_explanation(reply) == read


def test_balanced_accuracy_and_its_interval():
    unit = Unit("feature", 7, 0.01, [], [], [], 0, "x")
    answers = (
        [(True, True)] * 3
        + [(True, False)]
        + [(False, False)] * 2
        + [(False, True)] * 6
        + [(True, None)] * 5
    )
    unit.answers |= {"detection": answers, "fuzzing": [(True, True)]}
    row = unit.row()
    assert row["detection"] == (3 / 4 + 2 / 8) / 2 and (row["n"], row["unparsed"]) == (18, 5)
    assert 0.1 < row["detection_low"] < 0.5 < row["detection_high"] < 0.9
    assert np.isnan(row["fuzzing"]) and np.isnan(
        row["fuzzing_low"]
    )  # no excerpt where it is silent was answered


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = [
        low <= 0.5 <= high
        for low, high in (explain.interval([rng.normal(0.5, 1, 40)], np.mean) for _ in range(100))
    ]
    assert 0.85 <= np.mean(inside) <= 1


def test_a_limit_of_money_needs_prices():
    with pytest.raises(SettingsError, match="price_prompt"):
        settings.load("smoke", ["explain.max_cost=5"])


# --- without a model; a real one ---


def test_without_a_model_it_is_skipped_with_a_sentence(base, monkeypatch, capsys):
    for name in ("SAE_LLM_BASE_URL", "SAE_LLM_MODEL", "SAE_LLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert suite_explain.explain(base) is None
    assert re.fullmatch(
        r"Explanations by a chat model are skipped: .*SAE_LLM_BASE_URL.*\.\n",
        capsys.readouterr().out,
    )


def test_the_command_line_skips_with_status_zero(small_run, small_overrides):
    sets = [part for override in small_overrides for part in ("--set", override)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAE_LLM")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "suite",
            "explain",
            "--features",
            "2",
            "--profile",
            "smoke",
            "--run",
            small_run.folder,
            *sets,
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 0 and "skipped" in done.stdout and len(done.stdout.splitlines()) == 1
    ), done.stderr


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A real small model with a chat template; it writes stories, whatever it is asked."""
    if not (SHARED / "models" / "stories260K").exists():
        pytest.skip("no stories260K here")
    folder = tmp_path_factory.mktemp("models") / "stories"
    shutil.copytree(SHARED / "models" / "stories260K", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"chat_template": template, "model_max_length": 8192})
    )
    return folder


SHORT = OWN | {
    "features": 2,
    "baselines": (),
    "examples": 2,
    "test_examples": 1,
    "answer_tokens": 12,
}


def check_nonsense(results, run):
    """Every answer was asked for, next to none was a list, and all is there to read."""
    assert (
        results["n"] > 0
        and results["unparsed"] >= results["n"] / 2
        and results["kinds"]["feature"]["unexplained"] == 0
    )
    assert (
        results["prompt_tokens"] > 0
        and results["requests"] > 0
        and results["stopped"] is None
        and not results["without_reply"]
    )
    assert pd.read_parquet(stages.explanations_file(run))["unparsed"].sum() == results["unparsed"]


def test_a_local_model_that_talks_nonsense_is_counted_out(run, stories):
    run = changed(run, **SHORT)
    check_nonsense(suite_explain.explain(run, model=str(stories), say=quiet), run)


def test_transformers_serve(run, stories, monkeypatch, tmp_path):
    """The endpoint that Hugging Face's own command line serves; its extra packages are none of
    ours, so it is often skipped.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers serve needs pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import app; app()",
        "serve",
        str(stories),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    log = open(tmp_path / "serve.log", "w")
    server = subprocess.Popen(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
    )
    try:
        assert wait_until(lambda: healthy(port), 120), (tmp_path / "serve.log").read_text()
        for name, value in {
            "SAE_LLM_BASE_URL": f"http://127.0.0.1:{port}/v1",
            "SAE_LLM_MODEL": str(stories),
            "SAE_LLM_API_KEY": KEY,
        }.items():
            monkeypatch.setenv(name, value)
        run = changed(run, **SHORT)
        check_nonsense(suite_explain.explain(run, say=quiet), run)
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def healthy(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False
