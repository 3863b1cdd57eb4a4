"""Chat models: an OpenAI-compatible endpoint, or a local Hugging Face model.

The endpoint comes from the environment: SAE_LLM_BASE_URL, SAE_LLM_MODEL and, where it wants one, SAE_LLM_API_KEY. The key lives in the
header of the HTTP client, whose repr hides it, and is struck out of whatever the endpoint sends back.
"""

import asyncio
import json
import os
import re
import threading
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import torch

from sae_lib.errors import ChatError, ModelError, shown
from sae_lib.settings import ExplainSettings

LARGEST_ANSWER = 4 << 20  # bytes
HOST = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?|[0-9a-f:.]+")  # a name, or an IPv6 address
Messages = list[dict[str, str]]


class NotConfigured(Exception):
    """There is no chat model to ask; its text says what to set."""


class NoReply(Exception):
    """One attempt that brought no reply: whether to try `again`, after how many seconds, and whether its tokens may be `billed`."""

    def __init__(
        self, reason: str, again: bool = False, wait: float | None = None, billed: bool = False
    ):
        super().__init__(reason)
        self.again, self.wait, self.billed = again, wait, billed


class Reply(NamedTuple):
    """A model's text, and the tokens of the prompt and of the answer; None where the endpoint does not count them."""

    text: str
    prompt_tokens: int | None
    answer_tokens: int | None


def find(model: str, s: ExplainSettings, device: torch.device) -> "Endpoint | LocalChat":
    """The chat model of `model` and the environment; `NotConfigured` where there is none, `ChatError` or `ModelError` where it cannot be used."""
    url, key = (
        os.environ.get(name, "").strip() for name in ("SAE_LLM_BASE_URL", "SAE_LLM_API_KEY")
    )
    named = model or os.environ.get("SAE_LLM_MODEL", "").strip()
    if model and os.path.isdir(folder := os.path.expanduser(model)):
        return LocalChat(folder, s.seed, device)
    if not named.isprintable() or len(named) > 200:
        raise ChatError(
            f"--model or SAE_LLM_MODEL: found {shown(named)}; expected a folder or a model's name"
        )
    if not named:
        missing = "SAE_LLM_MODEL is not set" if url else "no chat model is named"
        raise NotConfigured(
            f"{missing}; set SAE_LLM_BASE_URL, SAE_LLM_MODEL and where needed SAE_LLM_API_KEY, or give --model FOLDER_OR_NAME of a Hugging Face chat model"
        )
    if key and not url:
        raise NotConfigured(
            "SAE_LLM_API_KEY is set but SAE_LLM_BASE_URL, the endpoint to send it to, is not"
        )
    return Endpoint(url, named, key, s.timeout) if url else LocalChat(named, s.seed, device)


class Endpoint:
    """`/chat/completions` under a base URL such as https://host/v1. Redirects are not followed: the key goes nowhere else."""

    def __init__(self, base_url: str, model: str, key: str, timeout: float):
        try:
            parts = urlsplit(base_url)
            well_formed = (
                parts.scheme in ("http", "https")
                and HOST.fullmatch(parts.hostname or "")
                and parts.port != 0
                and base_url.isprintable()
                and not (parts.username or parts.password or parts.query or parts.fragment)
            )
            self.where = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        except ValueError:
            well_formed = False
        if not well_formed:  # what it holds is not shown: it may be a password
            raise ChatError(
                "SAE_LLM_BASE_URL: expected something like https://host/v1, without a user name, password or query (a key belongs in SAE_LLM_API_KEY)"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ChatError(
                "SAE_LLM_API_KEY contains characters that no key has (spaces, line breaks or non-ASCII letters); set it again"
            )
        self.name, self.timeout, self._limit_name = model, timeout, "max_tokens"
        self._clean = lambda text: text.replace(key, "[key]") if key else text
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout
        )
        self._loop = asyncio.new_event_loop()  # its own, as a notebook's is already running
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __repr__(self) -> str:
        return f"Endpoint({self.where}, {self.name})"

    def send(self, messages: Messages, answer_tokens: int, temperature: float | None) -> Reply:
        """One attempt; raises `NoReply`, or `ChatError` where no further request can succeed either."""
        body = {
            "model": self.name,
            "messages": messages,
            "stream": False,
            self._limit_name: answer_tokens,
        }
        request = asyncio.run_coroutine_threadsafe(
            self._post(body if temperature is None else body | {"temperature": temperature}),
            self._loop,
        )
        try:
            status, headers, content = request.result(self.timeout)
        except (httpx2.TimeoutException, TimeoutError):
            raise NoReply(f"no answer within {self.timeout:g} s", again=True, billed=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise NoReply(
                self._clean(f"the connection failed ({str(error) or type(error).__name__})"),
                again=True,
            ) from None
        finally:
            request.cancel()  # without effect on one that is done
        if status == 200:
            return self._reply(content)
        said = f"status {status}{self._said(content)}"
        if status in (408, 425, 429) or status >= 500:
            raise NoReply(said, again=True, wait=_seconds(headers.get("retry-after", "")))
        if status == 400 and "max_completion_tokens" in said and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # what OpenAI's newer models call it
            raise NoReply(said, again=True, wait=0)
        if status in (400, 413, 422):
            raise NoReply(said)
        hint = (
            "check SAE_LLM_API_KEY"
            if status in (401, 403)
            else "check SAE_LLM_BASE_URL (it often ends in /v1) and the model's name"
        )
        raise ChatError(f"{self.where} with model {self.name}: {said}; {hint}")

    async def _post(self, body: dict) -> tuple[int, httpx2.Headers, bytes]:
        """(status, headers, content) of an answer that is not too large."""
        content = bytearray()
        url = f"{self.where}/chat/completions"
        async with self._http.stream("POST", url, json=body) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > LARGEST_ANSWER:
                    raise NoReply(f"an answer of more than {LARGEST_ANSWER} bytes", billed=True)
        return response.status_code, response.headers, bytes(content)

    def _reply(self, content: bytes) -> Reply:
        try:
            data = json.loads(content)
            text = data["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise NoReply("the answer is not a chat completion", billed=True)
        usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
        counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        return Reply(
            encodable(self._clean(text)),
            *(n if type(n) is int and n >= 0 else None for n in counts),
        )

    def _said(self, content: bytes) -> str:
        """What an error answer says, in one short line."""
        text = content.decode("utf-8", "replace")
        try:
            error = json.loads(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        line = " ".join(self._clean(text).split())[:300]
        return f": {line}" if line.isprintable() and line else ""


class LocalChat:
    """A Hugging Face chat model in this process, from a folder or by its hub name."""

    where = "this machine"

    def __init__(self, source: str, seed: int, device: torch.device):
        from sae_lib.model.language_model import open_model
        from sae_lib.text.tokenizer import load_tokenizer

        self.name, self.seed = source, seed
        self._model, self._tokenizer = open_model(source, device).eval(), load_tokenizer(source)
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"model {source} has no chat template, so it is not a chat model; choose one that was trained to follow instructions"
            )

    @torch.no_grad()
    def send(self, messages: Messages, answer_tokens: int, temperature: float | None) -> Reply:
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        length, longest = (
            inputs["input_ids"].shape[1],
            getattr(self._model.config, "max_position_embeddings", None),
        )
        if longest and length + answer_tokens > longest:
            raise NoReply(
                f"a prompt of {length} tokens and an answer of {answer_tokens} (explain.answer_tokens) exceed the model's context of {longest}"
            )
        sampling = (
            {"do_sample": True, "temperature": temperature}
            if (temperature or 0) > 1e-3  # below, logits / temperature overflow
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        with torch.random.fork_rng(
            devices=[self._model.device] if self._model.device.type == "cuda" else []
        ):
            torch.manual_seed(self.seed)
            out = self._model.generate(
                **inputs,
                max_new_tokens=answer_tokens,
                pad_token_id=self._tokenizer.eos_token_id,
                **sampling,
            )[0, length:]
        return Reply(
            encodable(self._tokenizer.decode(out, skip_special_tokens=True)), length, len(out)
        )


def _seconds(text: str) -> float | None:
    """Of a Retry-After header; None where it gives a date or nothing."""
    return float(text) if text.isdecimal() else None


def encodable(text: str) -> str:
    """Lone surrogates, which JSON can spell and UTF-8 cannot, replaced."""
    return text.encode("utf-8", "replace").decode()
