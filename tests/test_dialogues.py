"""Role-play dialogues in a chat model's template, among general text."""

import json
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken

from sae_lib.errors import CorpusError, ModelError
from sae_lib.settings import CorpusSettings, TokenizerSettings, load
from sae_lib.text import dialogues, hub
from sae_lib.text.corpus import documents
from sae_lib.text.dialogues import openings, with_dialogues
from sae_lib.text.tokenizer import CHAT, load_tokenizer, train_tokenizer
from sae_lib.text.tokens import open_tokens, write_tokens
from suite.memory_plan import parts

SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Llama 3's own
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content']"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    tokenizer = train_tokenizer(["a knight and a dragon talk of the weather"] * 3, 300)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, special=True) for t in SPECIAL]}
    )
    tokenizer.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A file of the shape of hieunguyenminh/roleplay beside general text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "general").mkdir()
    for i in range(60):
        (folder / "general" / f"{i}.txt").write_text(f"Text {i} says <|eot_id|>. " + "word " * 40)
    rows = [
        {
            "name": f"Sir {i}",
            "description": "a knight",
            "text": f"<|system|>You are Sir {i}, a knight.</s>\n<|user|>\nHello <|eot_id|>!</s>\n"
            f"<|assistant|>\nGood day, said Sir {i}.</s>\n<|user|>\nBye</s>\n",
        }
        for i in range(40)
    ]
    file = folder / "roleplay.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return CorpusSettings(
        source=f"files:{folder}/general/*.txt",
        dialogues=f"files:{file}",
        train_tokens=8000,
        heldout_tokens=2000,
    )


@pytest.fixture(scope="module")
def tokens(settings, tokenizer_folder, tmp_path_factory):
    out, tokenizer = tmp_path_factory.mktemp("tokens"), load_tokenizer(tokenizer_folder)
    stream = with_dialogues(documents(settings, 0), settings, tokenizer, 0)
    write_tokens(stream, settings, TokenizerSettings(source=str(tokenizer_folder)), out)
    return open_tokens(out)


def test_dialogues_are_a_share_of_the_characters(tokens):
    table = tokens.table["train"]
    characters = table.groupby(table["kind"] == CHAT)["characters"].sum()
    assert characters[True] / characters.sum() == pytest.approx(dialogues.SHARE, abs=0.05)


def test_only_the_template_writes_special_tokens(tokens):
    """Neither a general text nor a message of a dialogue can, whatever it spells."""
    end = tokens.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    for split in ("train", "heldout"):
        for number, row in tokens.table[split].iterrows():
            first = row["first_token"]
            ids = getattr(tokens, split)[first : first + row["tokens"]]
            chat = row["kind"] == CHAT
            assert np.sum(ids == end) <= 4 * chat
            text = tokens.document(split, number)
            assert ("Hello !<|eot_id|>" in text) == chat and not text.startswith("<|endoftext|>")


def test_a_token_of_a_dialogue_is_located_in_its_text(tokens):
    row = tokens.table["heldout"].query("kind == @CHAT").iloc[0]
    place = tokens.locate("heldout", row["first_token"])
    text = tokens.document("heldout", place.document)
    assert text[place.start : place.end] == "<|start_header_id|>" and place.kind == CHAT


def test_prompts_end_where_the_character_is_to_answer(tokens):
    (ids, *_) = openings(tokens, 2)
    first = tokens.tokenizer.decode(ids)
    assert first.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert "a knight" in first and "Good day" not in first


def test_texts_without_turns_and_a_tokeniser_without_template_are_refused(
    settings, tokenizer_folder
):
    general = settings.model_copy(update={"dialogues": settings.source})
    with pytest.raises(CorpusError, match="found no dialogue"):
        next(dialogues.dialogues(general, load_tokenizer(tokenizer_folder), 0))
    with pytest.raises(ModelError, match="no chat template"):
        next(dialogues.dialogues(settings, train_tokenizer(["a"], 260), 0))


# As the card of hieunguyenminh/roleplay has its columns, and public code reads its text: marks with
# or without </s> and line breaks, a last word of the user's, and (for safety) a text that is none.
TEXTS = [
    "<|system|>Sir Galahad, a knight.</s>\n<|user|>\nWho are you?</s>\n<|assistant|>\nI am he.</s>",
    "<|system|>Sir Galahad, a knight.\n<|user|>Who are you?<|assistant|>I am he.\n<|user|>\nBye!\n",
    "Sir Galahad rode out on a morning in May.",
]


def test_the_rows_of_the_hubs_set_are_read(monkeypatch, tmp_path, tokenizer_folder):
    """Through the call that streams them from the hub, here from a file like the set's own."""
    rows = {"name": ["Sir Galahad"] * 3, "description": ["a knight"] * 3, "text": TEXTS}
    pq.write_table(pa.table(rows), tmp_path / "train-00000-of-00001.parquet")
    stream, asked = datasets.load_dataset, {}

    def from_hub(path, revision, **how):
        asked.update(path=path, revision=revision)
        return stream("parquet", data_files=str(tmp_path / "train-*"), **how)

    monkeypatch.setattr(hub, "reached", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    settings = CorpusSettings(dialogues="hub:hieunguyenminh/roleplay@b239442")
    read = dialogues.dialogues(settings, load_tokenizer(tokenizer_folder), 0)
    opening = "Sir Galahad, a knight.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho are"
    texts = sorted(document.text for document in read)
    assert len(texts) == 2 and all(opening in text and "</s>" not in text for text in texts)
    assert [text.count("<|eot_id|>") for text in texts] == [3, 4]
    assert asked == {"path": "hieunguyenminh/roleplay", "revision": "b239442"}


def test_stheno_is_pinned_with_its_tokeniser(monkeypatch):
    last = load("runpod").last_mlp
    assert re.fullmatch("[0-9a-f]{40}", last.lm.revision)
    assert last.tokenizer.source == f"{last.lm.source}@{last.lm.revision}"
    asked = {}

    def from_pretrained(name, **how):
        asked.update(how, name=name)
        return train_tokenizer(["a"], 260)

    monkeypatch.setattr(hub, "reached", lambda: True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    load_tokenizer(last.tokenizer.source)
    assert (asked["name"], asked["revision"]) == (last.lm.source, last.lm.revision)


def test_stheno_reads_dialogues_and_the_main_model_does_not():
    s = load("runpod")
    last = parts(s)["last_mlp."]
    assert last.corpus.dialogues.startswith("hub:") and "@" in last.corpus.dialogues
    assert s.corpus.dialogues is None
    assert "dialogues" not in load("laptop").model_dump_json()
