"""Role-play dialogues in a chat model's template, among general text."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken

from sae_lib.errors import CorpusError, ModelError
from sae_lib.settings import CorpusSettings, TokenizerSettings, load
from sae_lib.text import dialogues
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


def test_a_text_without_turns_and_a_tokeniser_without_template_are_refused(settings, tmp_path):
    with pytest.raises(CorpusError, match="found no dialogue"):
        dialogues.messages("Once upon a time", "a.jsonl: line 1")
    with pytest.raises(ModelError, match="no chat template"):
        next(dialogues.dialogues(settings, train_tokenizer(["a"], 260), 0))


def test_stheno_reads_dialogues_and_the_main_model_does_not():
    s = load("runpod")
    last = parts(s)["last_mlp."]
    assert last.corpus.dialogues.startswith("hub:") and "@" in last.corpus.dialogues
    assert s.corpus.dialogues is None
    assert "dialogues" not in load("laptop").model_dump_json()
