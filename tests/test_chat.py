"""Asking a chat model over real HTTP: right and broken answers, none at all, limits, the cache,
and a key that is nowhere to be seen.
"""

import json
import logging
import time
import traceback

import pytest
import torch

from sae_lib.errors import ChatError, ModelError
from sae_lib.model import language_model
from sae_lib.settings import ExplainSettings, LanguageModelSettings
from sae_lib.text.tokenizer import train_tokenizer
from suite import chat
from suite.chat import Cache, Chat, LimitReached
from tests.chat_server import KEY, completion, serving

CPU = torch.device("cpu")
NAMES = ("SAE_LLM_BASE_URL", "SAE_LLM_MODEL", "SAE_LLM_API_KEY")


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.01)
    with serving() as endpoint:
        for name, value in zip(NAMES, (endpoint.url, "tester", KEY), strict=True):
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture
def ask(endpoint, tmp_path):
    """A function (**settings) -> Chat at the endpoint."""
    return lambda **settings: Chat(
        chat.find("", s := ExplainSettings(**settings), CPU), s, Cache(tmp_path / "replies.jsonl")
    )


def test_a_request_is_what_the_protocol_says(endpoint, ask):
    talk = ask(answer_tokens=7)
    assert talk.ask("how?") == "hello"
    assert endpoint.requests == [
        {
            "model": "tester",
            "messages": [{"role": "user", "content": "how?"}],
            "stream": False,
            "max_tokens": 7,
            "temperature": 0.0,
        }
    ]
    path, headers = endpoint.headers[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (talk.requests, talk.prompt_tokens, talk.answer_tokens) == (1, 100, 10)
    assert talk.spent()["cost"] is None


def test_without_a_key_none_is_sent_and_temperature_may_be_left_out(endpoint, ask, monkeypatch):
    monkeypatch.delenv("SAE_LLM_API_KEY")
    ask(temperature=None).ask("how?")
    assert (
        "Authorization" not in endpoint.headers[0][1] and "temperature" not in endpoint.requests[0]
    )


TROUBLES = {
    "429": (429, "{}"),
    "429 that says when": (429, "{}", {"Retry-After": "0"}),
    "500": (500, "oops"),
    "503 with HTML": (503, "<html>busy</html>"),
    "closed": "close",
    "no such parameter": (
        400,
        json.dumps(
            {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}}
        ),
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_passing_trouble_passes(endpoint, ask, trouble):
    endpoint.script = lambda prompt, number: trouble if number == 1 else "fine"
    talk = ask()
    assert talk.ask("how?") == "fine" and talk.requests == 2 and not talk.no_reply


def test_newer_models_call_the_limit_otherwise(endpoint, ask):
    endpoint.script = lambda prompt, number: (
        TROUBLES["no such parameter"] if number == 1 else "fine"
    )
    ask(answer_tokens=9).ask("how?")
    assert (
        "max_tokens" not in endpoint.requests[1]
        and endpoint.requests[1]["max_completion_tokens"] == 9
    )


def test_retry_after_is_heeded_within_bounds(endpoint, ask, monkeypatch):
    waits = []
    monkeypatch.setattr(chat, "LONGEST_WAIT", 5.0)
    endpoint.script = lambda prompt, number: {
        1: (429, "", {"Retry-After": "3"}),
        2: (429, "", {"Retry-After": "900"}),
    }.get(number, "fine")
    talk = ask()
    talk._attempts.sleep = waits.append
    assert talk.ask("how?") == "fine" and waits == [3.0, 5.0]


BROKEN = {
    "hang": ("hang", "no answer within 0.3 s"),
    "drip": ("drip", "no answer within 0.3 s"),
    "drip headers": ("drip headers", "no answer within 0.3 s"),
    "closed": ("close", "connection failed"),
    "500": ((500, "boom"), "status 500: boom"),
    "HTML": ((200, "<html>"), "not a chat completion"),
    "no choices": ((200, '{"choices": []}'), "not a chat completion"),
    "null": ((200, '{"choices": [{"message": {"content": null}}]}'), "not a chat completion"),
    "list": ((200, "[1]"), "not a chat completion"),
    "deep": ((200, "[" * 100_000), "not a chat completion"),
    "huge": ((200, b" " * 5_000_000), "more than"),
    "bad request": ((400, '{"error": {"message": "too long"}}'), "status 400: too long"),
}


@pytest.mark.parametrize(("answer", "said"), BROKEN.values(), ids=BROKEN)
def test_no_reply_is_counted_and_the_next_is_asked(endpoint, ask, answer, said):
    endpoint.script = lambda prompt, number: answer if "bad" in prompt else "fine"
    talk, start = ask(timeout=0.3, attempts=2), time.monotonic()
    assert [talk.ask(p) for p in ("good", "bad", "good again")] == ["fine", None, "fine"]
    assert talk.no_reply.total() == 1 and said in next(iter(talk.no_reply))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("answer", "said"), BROKEN.values(), ids=BROKEN)
def test_an_endpoint_that_never_replies_is_an_error(endpoint, ask, answer, said):
    endpoint.script = lambda prompt, number: answer
    with pytest.raises(ChatError, match=said):
        ask(timeout=0.3, attempts=2).ask("how?")
    assert len(endpoint.requests) <= 2


def test_an_endpoint_that_is_gone_is_an_error(endpoint, ask):
    endpoint.script = lambda prompt, number: "fine" if number == 1 else "close"
    talk = ask(attempts=1)
    assert [talk.ask(p) for p in "abc"] == ["fine", None, None]
    with pytest.raises(ChatError, match="does not reply"):
        talk.ask("d")


def test_nobody_listening(endpoint, ask, monkeypatch):
    monkeypatch.setenv("SAE_LLM_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ChatError, match="connection failed"):
        ask(attempts=2).ask("how?")


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, "SAE_LLM_API_KEY"),
        (403, "SAE_LLM_API_KEY"),
        (404, "SAE_LLM_BASE_URL"),
        (302, "SAE_LLM_BASE_URL"),
    ],
)
def test_what_no_retry_can_fix_is_said_at_once(endpoint, ask, status, named):
    endpoint.script = lambda prompt, number: (
        status,
        f'{{"error": {{"message": "wrong {KEY}"}}}}',
        {"Location": endpoint.url},
    )
    with pytest.raises(ChatError, match=rf"(?s)status {status}.*{named}"):
        ask().ask("how?")
    assert len(endpoint.requests) == 1


def test_lone_surrogates_in_a_reply_do_no_harm(endpoint, ask):
    endpoint.script = lambda prompt, number: (200, completion("x")[1].replace('"x"', '"a\\ud83db"'))
    assert ask().ask("how?") == "a?b"


# --- the key ---


def test_the_key_is_in_no_text(endpoint, ask, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    talk = ask(attempts=1)
    endpoint.script = lambda prompt, number: {
        1: f"your key is {KEY}",
        2: (500, KEY),
        3: (401, f'{{"error": "{KEY}"}}'),
    }[number]
    assert talk.ask("a") == "your key is [key]" and talk.ask("b") is None
    with pytest.raises(ChatError) as error:
        talk.ask("c")
    texts = [
        caplog.text,
        "".join(traceback.format_exception(error.value)),
        str(talk.no_reply),
        (tmp_path / "replies.jsonl").read_text(),
    ]
    texts += [
        repr(x)
        for x in (
            talk,
            vars(talk),
            talk.model,
            vars(talk.model),
            talk.model._http,
            talk.model._http.headers,
            talk.s,
        )
    ]
    assert not [t for t in texts if KEY in t]


@pytest.mark.parametrize(
    "key", [f"{KEY}\n{KEY}", f"{KEY} x", f"{KEY}é", f"{KEY}\x00x"[:-2] + "\x07x"]
)
def test_a_malformed_key_is_refused_and_not_shown(endpoint, monkeypatch, key):
    monkeypatch.setenv("SAE_LLM_API_KEY", key)
    with pytest.raises(ChatError, match="SAE_LLM_API_KEY") as error:
        chat.find("", ExplainSettings(), CPU)
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v1",
        "https://host/v1?key=hunter2",
        "ftp://hunter2/v1",
        "hunter2",
        "http://",
        "http://host:hunter2/v1",
        "http://[hunter2/v1",
    ],
)
def test_a_malformed_address_is_refused_and_not_shown(endpoint, monkeypatch, url):
    monkeypatch.setenv("SAE_LLM_BASE_URL", url)
    with pytest.raises(ChatError, match="SAE_LLM_BASE_URL") as error:
        chat.find("", ExplainSettings(), CPU)
    assert "hunter2" not in str(error.value)


# --- limits ---


def test_the_limit_of_requests_counts_every_attempt(endpoint, ask):
    endpoint.script = lambda prompt, number: "fine" if number < 3 else (500, "")
    talk = ask(max_requests=4)
    assert [talk.ask(p) for p in "ab"] == ["fine", "fine"]
    with pytest.raises(LimitReached, match="max_requests=4"):
        talk.ask("c")
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 400}, {"max_cost": 4e-4, "price_prompt": 1.0, "price_answer": 1.0}]
)
def test_the_limits_of_tokens_and_money_hold_before_a_request_is_sent(endpoint, ask, settings):
    talk = ask(answer_tokens=50, **settings)
    with pytest.raises(
        LimitReached, match=f"max_{'tokens' if 'max_tokens' in settings else 'cost'}"
    ):
        for i in range(100):
            talk.ask(f"{i}")
    assert (
        talk.prompt_tokens + talk.answer_tokens == 110 * len(endpoint.requests)
        and len(endpoint.requests) == 4
    )  # 4 · 110 + 51 > 400 after the 4th


def test_tokens_are_estimated_where_the_endpoint_does_not_count_them(endpoint, ask):
    endpoint.script = lambda prompt, number: completion("x" * 30, usage=False)
    talk = ask()
    talk.ask("y" * 300)
    assert (talk.prompt_tokens, talk.answer_tokens) == (100, 10)


def test_an_answer_that_came_too_late_may_have_been_billed(endpoint, ask):
    endpoint.script = lambda prompt, number: "hang" if number == 1 else "fine"
    talk = ask(timeout=0.2, answer_tokens=50)
    talk.ask("y" * 30)
    assert (talk.prompt_tokens, talk.answer_tokens) == (100 + 10, 10 + 50)


# --- the cache ---


def test_nothing_is_asked_twice(endpoint, ask, tmp_path):
    endpoint.script = lambda prompt, number: f"reply {number}"
    assert [ask().ask(p) for p in "aab"] == ["reply 1", "reply 1", "reply 2"]
    assert ask(temperature=1.0).ask("a") == "reply 3"  # other settings, another question
    talk = ask(max_requests=1)
    assert talk.ask("a") == "reply 1" and (talk.requests, talk.cached) == (0, 1)
    assert {
        tuple(json.loads(line)) for line in (tmp_path / "replies.jsonl").read_text().splitlines()
    } == {("key", "model", "text", "prompt_tokens", "answer_tokens")}


@pytest.mark.parametrize(
    "torn",
    [
        '{"key": "a", "te',
        "[]",
        "null",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin1"),
        "{" * 50_000,
    ],
)
def test_a_torn_cache_is_read_as_far_as_it_goes(endpoint, ask, tmp_path, torn):
    ask().ask("a")
    with open(tmp_path / "replies.jsonl", "a") as f:
        f.write(torn)
    ask().ask("b")
    talk = ask()
    assert [talk.ask(p) for p in "ab"] == ["hello", "hello"] and talk.requests == 0


def test_a_cache_may_read_others(endpoint, ask, tmp_path):
    ask().ask("a")
    other = Cache(tmp_path / "new" / "replies.jsonl", (tmp_path / "replies.jsonl",))
    talk = Chat(chat.find("", s := ExplainSettings(), CPU), s, other)
    assert talk.ask("a") == "hello" and talk.requests == 0


# --- which model ---


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "SAE_LLM_BASE_URL"),
        ({"SAE_LLM_API_KEY": KEY}, "SAE_LLM_MODEL"),
        ({"SAE_LLM_BASE_URL": "http://x/v1"}, "SAE_LLM_MODEL is not set"),
        ({"SAE_LLM_API_KEY": KEY, "SAE_LLM_MODEL": "m"}, "SAE_LLM_BASE_URL"),
    ],
)
def test_without_a_model_it_is_said_what_to_set(monkeypatch, environment, said):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(chat.NotConfigured, match=said) as reason:
        chat.find("", ExplainSettings(), CPU)
    assert KEY not in str(reason.value)


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained chat model, small enough to be made here."""
    folder, tokenizer = (
        tmp_path_factory.mktemp("chat"),
        train_tokenizer(["say it again " * 50], 300),
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = LanguageModelSettings(
        architecture="llama", n_layer=1, d_model=16, n_heads=2, d_mlp=32, context=128
    )
    language_model.build(settings, len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
    return folder


def test_a_local_model_answers_through_its_chat_template(folder):
    model = chat.find(str(folder), ExplainSettings(), CPU)
    messages = [{"role": "user", "content": "say it"}]
    reply = model.send(messages, 8, 0.0)
    expected = model._tokenizer("user: say it\nassistant:", add_special_tokens=False)["input_ids"]
    assert reply.prompt_tokens == len(expected) and 1 <= reply.answer_tokens <= 8
    assert model.send(messages, 8, 0.0) == reply
    assert model.send(messages, 8, 1.0) == model.send(messages, 8, 1.0) != reply
    with pytest.raises(chat.NoReply, match="exceed the model's context of 128"):
        model.send([{"role": "user", "content": "say it " * 100}], 8, 0.0)


def test_a_folder_goes_before_the_endpoint_and_a_name_does_not(folder, endpoint):
    assert isinstance(chat.find(str(folder), ExplainSettings(), CPU), chat.LocalChat)
    assert chat.find("other", ExplainSettings(), CPU).name == "other"


def test_a_model_without_a_chat_template_is_refused(folder, tmp_path):
    model = chat.find(str(folder), ExplainSettings(), CPU)
    model._model.save_pretrained(tmp_path)
    model._tokenizer.chat_template = None
    model._tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="chat template"):
        chat.find(str(tmp_path), ExplainSettings(), CPU)
