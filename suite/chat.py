"""Chat models: an OpenAI-compatible endpoint, or a local Hugging Face model, asked within the
limits of the settings.

The endpoint comes from the environment: SAE_LLM_BASE_URL, SAE_LLM_MODEL and, where it wants one,
SAE_LLM_API_KEY. The key lives in the header of the HTTP client, whose repr hides it, and is struck
out of whatever the endpoint sends back.
"""

import asyncio
import hashlib
import json
import math
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import tenacity
import torch

from sae_lib.device import seeded
from sae_lib.errors import ChatError, ModelError, shown
from sae_lib.files import append_line
from sae_lib.model.language_model import open_model
from sae_lib.settings import ExplainSettings
from sae_lib.text.tokenizer import load_tokenizer

LARGEST_ANSWER = 4 << 20  # bytes
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts
MAX_FAILURES = 3  # requests in a row without a reply after which the model counts as gone
NAME = r"[\w-]{1,63}(\.[\w-]{1,63})*\.?"
# scheme, a name or an IPv6 address, port, path: no user name, password, query or fragment
ADDRESS = re.compile(
    rf"https?://({NAME}|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{{1,5}}))?(/[^\s?#]*)?", re.I
)
Messages = list[dict[str, str]]


class NotConfigured(Exception):
    """There is no chat model to ask; its text says what to set."""


class LimitReached(Exception):
    """The next request could go over a limit of the settings."""


@dataclass(eq=False)
class NoReply(Exception):
    """One attempt that brought no reply: whether to try `again`, after how many seconds, and
    whether its tokens may be `billed`.
    """

    reason: str
    again: bool = False
    wait: float | None = None
    billed: bool = False


class Reply(NamedTuple):
    """A model's text, and the tokens of the prompt and of the answer; None where the endpoint
    does not count them.
    """

    text: str
    prompt_tokens: int | None
    answer_tokens: int | None


def find(model: str, s: ExplainSettings, device: torch.device) -> "Endpoint | LocalChat":
    """The chat model of `model` and the environment; `NotConfigured` where there is none,
    `ChatError` or `ModelError` where it cannot be used.
    """
    variables = ("SAE_LLM_BASE_URL", "SAE_LLM_API_KEY", "SAE_LLM_MODEL")
    url, key, name = (os.environ.get(variable, "").strip() for variable in variables)
    name = model or name
    if model and os.path.isdir(folder := os.path.expanduser(model)):
        return LocalChat(folder, s.seed, device)
    if not name.isprintable() or len(name) > 200:
        raise ChatError(
            f"--model or SAE_LLM_MODEL: found {shown(name)}; expected a folder or a model's name"
        )
    if not name:
        missing = "SAE_LLM_MODEL is not set" if url else "no chat model is named"
        raise NotConfigured(
            f"{missing}; set SAE_LLM_BASE_URL, SAE_LLM_MODEL and where needed SAE_LLM_API_KEY,"
            " or give --model FOLDER_OR_NAME of a Hugging Face chat model"
        )
    if key and not url:
        raise NotConfigured(
            "SAE_LLM_API_KEY is set but SAE_LLM_BASE_URL, the endpoint to send it to, is not"
        )
    return Endpoint(url, name, key, s.timeout) if url else LocalChat(name, s.seed, device)


class Endpoint:
    """`/chat/completions` under a base URL such as https://host/v1. Redirects are not followed:
    the key goes nowhere else.
    """

    def __init__(self, base_url: str, model: str, key: str, timeout: float):
        address = ADDRESS.fullmatch(base_url)
        port_exists = address and 0 < int(address["port"] or 80) < 2**16
        if not (port_exists and base_url.isprintable()):
            raise ChatError(  # what it holds is not shown: it may be a password
                "SAE_LLM_BASE_URL: expected something like https://host/v1, without a user name,"
                " password or query (a key belongs in SAE_LLM_API_KEY)"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ChatError(
                "SAE_LLM_API_KEY contains characters that no key has"
                " (spaces, line breaks or non-ASCII letters); set it again"
            )
        self.where, self.name, self.timeout = base_url.rstrip("/"), model, timeout
        self._limit_name = "max_tokens"
        self._clean = lambda text: text.replace(key, "[key]") if key else text
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.AsyncClient(headers=headers, timeout=timeout)
        self._loop = asyncio.new_event_loop()  # its own, as a notebook's is already running
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def send(self, messages: Messages, answer_tokens: int, temperature: float | None) -> Reply:
        """One attempt; raises `NoReply`, or `ChatError` where no further request can succeed
        either.
        """
        body = {"model": self.name, "messages": messages, "stream": False}
        body[self._limit_name] = answer_tokens
        if temperature is not None:
            body["temperature"] = temperature
        request = asyncio.run_coroutine_threadsafe(self._post(body), self._loop)
        try:
            status, wait, content = request.result(self.timeout)
        except (httpx2.TimeoutException, TimeoutError):
            raise NoReply(f"no answer within {self.timeout:g} s", again=True, billed=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            reason = self._clean(str(error) or type(error).__name__)
            raise NoReply(f"the connection failed ({reason})", again=True) from None
        finally:
            request.cancel()  # without effect on one that is done
        if status == 200:
            return self._reply(content)
        error = _inside(content, "error", "message") or _inside(content, "error")
        error = content.decode("utf-8", "replace") if error is None else str(error)
        line = " ".join(self._clean(error).split())[:300]
        said = f"status {status}" + (f": {line}" if line.isprintable() and line else "")
        if status in (408, 425, 429) or status >= 500:
            raise NoReply(said, again=True, wait=float(wait) if wait.isdecimal() else None)
        if status == 400 and "max_completion_tokens" in said and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # what OpenAI's newer models call it
            raise NoReply(said, again=True, wait=0)
        if status in (400, 413, 422):
            raise NoReply(said)
        hint = "check SAE_LLM_BASE_URL (it often ends in /v1) and the model's name"
        hint = "check SAE_LLM_API_KEY" if status in (401, 403) else hint
        raise ChatError(f"{self.where} with model {self.name}: {said}; {hint}")

    async def _post(self, body: dict) -> tuple[int, str, bytes]:
        """(status, retry-after: seconds, a date or nothing, content) of an answer that is not too
        large.
        """
        content, url = bytearray(), f"{self.where}/chat/completions"
        async with self._http.stream("POST", url, json=body) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > LARGEST_ANSWER:
                    raise NoReply(f"an answer of more than {LARGEST_ANSWER} bytes", billed=True)
        return response.status_code, response.headers.get("retry-after", ""), bytes(content)

    def _reply(self, content: bytes) -> Reply:
        text = _inside(content, "choices", 0, "message", "content")
        if not isinstance(text, str):
            raise NoReply("the answer is not a chat completion", billed=True)
        counts = (_inside(content, "usage", f"{of}_tokens") for of in ("prompt", "completion"))
        counts = (n if type(n) is int and n >= 0 else None for n in counts)
        return Reply(encodable(self._clean(text)), *counts)


def _inside(content: bytes, *path: str | int) -> Any:
    """What is at a place in JSON; None where nothing is."""
    try:
        return reduce(getitem, path, json.loads(content))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


class LocalChat:
    """A Hugging Face chat model in this process, from a folder or by its hub name."""

    where = "this machine"

    def __init__(self, source: str, seed: int, device: torch.device):
        self.name, self.seed = source, seed
        self._model, self._tokenizer = open_model(source, device).eval(), load_tokenizer(source)
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"model {source} has no chat template, so it is not a chat model;"
                " choose one that was trained to follow instructions"
            )

    @torch.no_grad()
    def send(self, messages: Messages, answer_tokens: int, temperature: float | None) -> Reply:
        device, tokenizer = self._model.device, self._tokenizer
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(messages, **options).to(device)
        length = inputs["input_ids"].shape[1]
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest and length + answer_tokens > longest:
            raise NoReply(
                f"a prompt of {length} tokens and an answer of {answer_tokens}"
                f" (explain.answer_tokens) exceed the model's context of {longest}"
            )
        sampling = {"do_sample": True, "temperature": temperature}
        if (temperature or 0) <= 1e-3:  # logits / temperature would overflow
            sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampling |= {"max_new_tokens": answer_tokens, "pad_token_id": tokenizer.eos_token_id}
        with seeded(self.seed, device):
            out = self._model.generate(**inputs, **sampling)[0, length:]
        return Reply(encodable(tokenizer.decode(out, skip_special_tokens=True)), length, len(out))


def encodable(text: str) -> str:
    """Lone surrogates, which JSON can spell and UTF-8 cannot, replaced."""
    return text.encode("utf-8", "replace").decode()


class Chat:
    """Queries a model through the cache, retries where that may help, and stops before a limit
    of the settings is passed.
    """

    def __init__(self, model: Endpoint | LocalChat, s: ExplainSettings, cache: "Cache"):
        self.model, self.s, self.cache = model, s, cache
        self.requests = self.cached = self.prompt_tokens = self.answer_tokens = 0
        self.no_reply: Counter[str] = Counter()  # by reason
        self._replied, self._failed_in_a_row = False, 0
        self._attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(s.attempts),
            wait=_wait,
            retry=tenacity.retry_if_exception(lambda error: getattr(error, "again", False)),
            reraise=True,
        )

    def spent(self) -> dict:
        """Requests and tokens so far, and their cost in the currency of the prices; None without
        prices.
        """
        priced = self.s.price_prompt is not None
        return {
            "requests": self.requests,
            "from_cache": self.cached,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "cost": self._price(self.prompt_tokens, self.answer_tokens) if priced else None,
            "without_reply": dict(self.no_reply),
        }

    def ask(self, prompt: str) -> str | None:
        """The model's text, or None where none came (counted in `no_reply`); `LimitReached`, and
        `ChatError` where the model is gone.
        """
        messages = [{"role": "user", "content": prompt}]
        question = [self.model.name, messages, self.s.answer_tokens, self.s.temperature]
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        if key in self.cache.replies:
            self.cached += 1
            return self.cache.replies[key]
        try:
            reply = self._attempts(self._attempt, messages)
        except NoReply as error:
            self.no_reply[error.reason] += 1
            self._failed_in_a_row += 1
            if not self._replied or self._failed_in_a_row >= MAX_FAILURES:
                who = f"{self.model.name} at {self.model.where}"
                raise ChatError(f"{who} does not reply: {error.reason}") from None
            return None
        self._replied, self._failed_in_a_row = True, 0
        self.cache.put(key, self.model.name, reply)
        return reply.text

    def _attempt(self, messages: Messages) -> Reply:
        estimate, limit = _estimate(messages[0]["content"]), self.s.answer_tokens
        self._check(self.prompt_tokens + estimate, self.answer_tokens + limit)
        self.requests += 1
        try:
            reply = self.model.send(messages, limit, self.s.temperature)
        except NoReply as error:
            if error.billed:
                self.prompt_tokens += estimate
                self.answer_tokens += limit
            raise
        text, prompt, answer = reply
        self.prompt_tokens += estimate if prompt is None else prompt
        self.answer_tokens += _estimate(text) if answer is None else answer
        return reply

    def _check(self, *tokens: int) -> None:
        """`LimitReached` if another request, after which so many tokens of prompts and of answers
        are spent, could go over a limit.
        """
        would_be = {"requests": self.requests + 1, "tokens": sum(tokens)}
        for name, value in (would_be | {"cost": self._price(*tokens)}).items():
            limit = getattr(self.s, f"max_{name}")
            if limit is not None and value > limit:
                raise LimitReached(
                    f"the limit explain.max_{name}={limit:g} is reached after {self.requests}"
                    f" requests and {self.prompt_tokens + self.answer_tokens} tokens"
                )

    def _price(self, prompt_tokens: int, answer_tokens: int) -> float:
        prices = (self.s.price_prompt or 0, self.s.price_answer or 0)
        return (prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6


def _estimate(text: str) -> int:
    """Tokens, where nobody counts them."""
    return math.ceil(len(text.encode()) / 3)


def _wait(state: tenacity.RetryCallState) -> float:
    """The wait that the endpoint requested, else about 1, 2, 4 … seconds, randomised so that
    many clients do not return together.
    """
    requested = state.outcome.exception().wait
    if requested is None:
        return tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    return min(LONGEST_WAIT, requested)


class Cache:
    """Replies by the hash of what was asked of whom: a file of JSON lines to write to, and
    further ones that are only read.
    """

    def __init__(self, file: Path, others: tuple[Path, ...] = ()):
        self.file, self.replies = file, {}
        for path in (*others, file):
            for line in path.read_bytes().splitlines() if path.exists() else ():
                key, text = _inside(line, "key"), _inside(line, "text")
                # else a line cut off by a kill: it is asked again
                if isinstance(key, str) and text is not None:
                    self.replies[key] = encodable(str(text))

    def put(self, key: str, model: str, reply: Reply) -> None:
        self.replies[key] = reply.text
        append_line(self.file, json.dumps({"key": key, "model": model} | reply._asdict()))
