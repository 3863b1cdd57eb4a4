"""Role-play dialogues as a chat model reads them: in its own template, mixed with general text."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sae_lib.errors import CorpusError, ModelError
from sae_lib.settings import CorpusSettings
from sae_lib.text import corpus
from sae_lib.text.tokenizer import CHAT, exact_encoder
from sae_lib.text.tokens import Document, Tokens

SHARE = 0.15  # of the characters; 25 M tokens use up the 15 MB of the set that `runpod` names
TURN = re.compile(r"<\|(system|user|assistant)\|>")  # before each message in a set's text
END_OF_TURN = "</s>"
TOKENS = ("train_tokens", "heldout_tokens")


def with_dialogues(
    general: Iterator[Document], settings: CorpusSettings, tokenizer: Any, seed: int
) -> Iterator[Document]:
    """The general text with `SHARE` of dialogues in between, while there are any."""
    chats, characters, chatted = dialogues(settings, tokenizer, seed), 0, 0
    for document in general:
        while chatted < SHARE * (characters + chatted) and (chat := next(chats, None)):
            chatted += len(chat.text)
            yield chat
        characters += len(document.text)
        yield document


def dialogues(settings: CorpusSettings, tokenizer: Any, seed: int) -> Iterator[Document]:
    """The documents of `settings.dialogues`, hub:NAME@COMMIT or files:PATH, in the template; those
    that are no dialogue are left out, and `CorpusError` is raised where all are.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "corpus.dialogues: the tokeniser has no chat template; expected that of a chat model,"
            " or leave dialogues out"
        )
    (source, _, revision), found = settings.dialogues.partition("@"), False
    own = {"source": source, "revision": revision or None, "dialogues": None}
    own |= {name: max(1, round(SHARE * getattr(settings, name))) for name in TOKENS}
    for document in corpus.documents(settings.model_copy(update=own), seed):
        turns = messages(document.text)
        if len(turns) > 1:
            found = True
            yield replace(document, text=in_template(turns, tokenizer), kind=CHAT)
    if not found:
        raise CorpusError(
            f"{source}: found no dialogue; expected texts with <|system|>, <|user|> and"
            " <|assistant|> before their messages"
        )


def messages(text: str) -> list[dict[str, str]]:
    """The messages of a text such as "<|user|>Hello</s><|assistant|>…"; what stands before the
    first mark is none.
    """
    _, *parts = TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": r, "content": m.strip().removesuffix(END_OF_TURN).strip()} for r, m in turns]


def in_template(turns: list[dict[str, str]], tokenizer: Any) -> str:
    """As the model reads them, without the BOS that stands before every row anyway. What looks like
    a special token within a message is taken out: only the template writes those.
    """
    special = sorted({str(t) for t in tokenizer.added_tokens_decoder.values()}, key=len)[::-1]
    marks = re.compile("|".join(map(re.escape, special)))
    turns = [turn | {"content": marks.sub("", turn["content"])} for turn in turns]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return text.removeprefix(tokenizer.bos_token or "")


def openings(tokens: Tokens, n: int) -> list[list[int]]:
    """The beginnings of held-out dialogues, as tokens, each to where the character is to answer
    first: prompts. None where the text has no dialogues.
    """
    table, found = tokens.table["heldout"], []
    for number in table.index[table["kind"] == CHAT]:
        answer = beginning_of_answer(tokens.tokenizer)
        before, mark, _ = tokens.document("heldout", number).partition(answer)
        if mark and len(found) < n:
            encoder = exact_encoder(tokens.tokenizer, True)
            found.append(encoder.encode(before + mark, add_special_tokens=False).ids)
    return found


def beginning_of_answer(tokenizer: Any) -> str:
    """What the template writes there."""
    turn = [{"role": "user", "content": "x"}]
    without, asking = (
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=asked)
        for asked in (False, True)
    )
    return asking.removeprefix(without)
