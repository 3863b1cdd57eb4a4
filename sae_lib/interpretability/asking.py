"""Requests to a chat model: cached, retried where that may help, and never beyond the limits of the settings."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import tenacity

from sae_lib.errors import ChatError
from sae_lib.interpretability.chat import Endpoint, LocalChat, Messages, NoReply, Reply, encodable
from sae_lib.settings import ExplainSettings

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts
IN_A_ROW = 3  # requests without a reply after which the model counts as gone


class LimitReached(Exception):
    """The next request could go over a limit of the settings."""


class Chat:
    """Queries a model through the cache, retries where that may help, and stops before a limit of the settings is passed."""

    def __init__(self, model: Endpoint | LocalChat, s: ExplainSettings, cache: "Cache"):
        self.model, self.s, self.cache = model, s, cache
        self.requests = self.cached = self.prompt_tokens = self.answer_tokens = 0
        self.no_reply: Counter[str] = Counter()  # by reason
        self._heard, self._failed_in_a_row = False, 0
        self._attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(s.attempts),
            wait=_wait,
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, NoReply) and error.again
            ),
            reraise=True,
        )

    @property
    def cost(self) -> float | None:
        """Spent so far, in the currency of the prices; None without prices."""
        return (
            self._price(self.prompt_tokens, self.answer_tokens)
            if self.s.price_prompt is not None
            else None
        )

    def ask(self, prompt: str) -> str | None:
        """The model's text, or None where none came (counted in `no_reply`); `LimitReached`, and `ChatError` where the model is gone."""
        messages = [{"role": "user", "content": prompt}]
        key = hashlib.sha256(
            json.dumps(
                [self.model.name, messages, self.s.answer_tokens, self.s.temperature]
            ).encode()
        ).hexdigest()
        if (known := self.cache.get(key)) is not None:
            self.cached += 1
            return known
        try:
            reply = self._attempts(self._attempt, messages)
        except NoReply as error:
            self.no_reply[str(error)] += 1
            self._failed_in_a_row += 1
            if not self._heard or self._failed_in_a_row >= IN_A_ROW:
                raise ChatError(
                    f"{self.model.name} at {self.model.where} does not reply: {error}"
                ) from None
            return None
        self._heard, self._failed_in_a_row = True, 0
        self.cache.put(key, self.model.name, reply)
        return reply.text

    def _attempt(self, messages: Messages) -> Reply:
        estimate = math.ceil(
            len(messages[0]["content"].encode()) / 3
        )  # tokens, where nobody counts them
        self._check(estimate, self.s.answer_tokens)
        self.requests += 1
        try:
            reply = self.model.send(messages, self.s.answer_tokens, self.s.temperature)
        except NoReply as error:
            if error.billed:
                self.prompt_tokens, self.answer_tokens = (
                    self.prompt_tokens + estimate,
                    self.answer_tokens + self.s.answer_tokens,
                )
            raise
        self.prompt_tokens += estimate if reply.prompt_tokens is None else reply.prompt_tokens
        self.answer_tokens += (
            math.ceil(len(reply.text.encode()) / 3)
            if reply.answer_tokens is None
            else reply.answer_tokens
        )
        return reply

    def _check(self, prompt_tokens: int, answer_tokens: int) -> None:
        tokens = (self.prompt_tokens + prompt_tokens, self.answer_tokens + answer_tokens)
        for name, would_be, limit in (
            ("requests", self.requests + 1, self.s.max_requests),
            ("tokens", sum(tokens), self.s.max_tokens),
            ("cost", self._price(*tokens), self.s.max_cost),
        ):
            if limit is not None and would_be > limit:
                raise LimitReached(
                    f"the limit explain.max_{name}={limit:g} is reached after {self.requests} requests and {self.prompt_tokens + self.answer_tokens} tokens"
                )

    def _price(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (
            prompt_tokens * (self.s.price_prompt or 0) + answer_tokens * (self.s.price_answer or 0)
        ) / 1e6


class Cache:
    """Replies by the hash of what was asked of whom: a file of JSON lines to write to, and further ones that are only read."""

    def __init__(self, file: Path, others: tuple[Path, ...] = ()):
        self.file, self.replies = file, {}
        for path in (*others, file):
            for line in path.read_bytes().splitlines() if path.exists() else ():
                try:
                    entry = json.loads(line)
                    self.replies[entry["key"]] = encodable(str(entry["text"]))
                except (ValueError, LookupError, TypeError, RecursionError):
                    continue  # a line cut off by a kill: it is asked again

    def get(self, key: str) -> str | None:
        return self.replies.get(key)

    def put(self, key: str, model: str, reply: Reply) -> None:
        self.replies[key] = reply.text
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "model": model} | reply._asdict()).encode()
        with open(self.file, "ab+") as f:
            if f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n":
                line = b"\n" + line
            f.write(line + b"\n")


def _wait(state: tenacity.RetryCallState) -> float:
    """The wait that the endpoint requested, else about 1, 2, 4 … seconds, randomised so that many clients do not return together."""
    asked = state.outcome.exception().wait
    return min(
        LONGEST_WAIT,
        tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
        if asked is None
        else asked,
    )
