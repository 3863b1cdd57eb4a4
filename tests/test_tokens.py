"""Tokens: every text round-trips, every token knows its characters, and nothing half-written stays
behind.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from sae_lib.errors import ArtefactError, CorpusError, ModelError
from sae_lib.text import hub
from sae_lib.text import tokens as tokens_module
from sae_lib.text.tokenizer import END, exact_encoder, load_tokenizer, separator_id, train_tokenizer
from suite import stages
from suite import text_summary as summary
from suite.runs import Run
from suite.stages import STAGES

SHARED = (
    Path(__file__).resolve().parents[2] / "shared"
)  # development data; tests that need it are skipped where it is absent
GPT2, LLAMA = SHARED / "tokenizers" / "gpt2", SHARED / "models" / "stories260K"
HARD = [
    "naïve €5 → 日本語 🙂🙃\n\n  two  spaces\t",
    f"a {END} b{END}",
    "",
    " ",
    "\n",
    "<|endof",
    "é́" * 7,
    "x" * 500,
    "\r\n\r\n",
]


def texts(n: int = 60) -> list[str]:
    return [
        f"document {i}: the cat {i * i} sat on the mat\n"
        f"while {i} naïve 🙂 dogs sang 日本語 {i * 7}\n" * (3 + i % 4)
        for i in range(n)
    ]


def make_run(folder: Path, documents: list[str], **overrides) -> Run:
    path = folder / "some text.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": t, "meta": {"pile_set_name": "odd" if i % 2 else "even"}}) + "\n"
            for i, t in enumerate(documents)
        )
    )
    set_ = {
        "corpus": f"files:{path}",
        "tokenizer.vocab_size": 300,
        "tokenizer.train_bytes": 10_000,
    } | overrides
    return stages.open_run(
        "smoke", folder / "run", [f"{key}={value}" for key, value in set_.items()]
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tokens_module.Tokens:
    return (make_run(tmp_path_factory.mktemp("tokens"), texts() + HARD)).get("tokens")


@pytest.fixture(scope="module", params=["trained", "gpt2", "llama"])
def tokenizer(request):
    if request.param == "trained":
        return train_tokenizer(texts(), 300)
    path = {"gpt2": GPT2, "llama": LLAMA}[request.param]
    return load_tokenizer(path) if path.exists() else pytest.skip(f"{path} is not here")


# --- tokenisers ---


def characters(text: str, encoded) -> None:
    """Each token's text is its characters; together they are all of the text, in order."""
    end = 0
    for start, stop in encoded.offsets:
        assert start <= end <= stop or start == end, "no character is left out"
        end = stop
    assert end == len(text)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(HARD)
    | st.lists(st.sampled_from([END, "🙂", " ", "the", "\n", "é"])).map("".join)
)
def test_every_text_round_trips_with_exact_characters(tokenizer, text):
    if len(tokenizer) == 512:
        pytest.skip("stories260K has a sentencepiece vocabulary, which writes a space in front")
    encoded = exact_encoder(tokenizer).encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded.ids, clean_up_tokenization_spaces=False) == text
    characters(text, encoded)
    for token_id, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        decoded = tokenizer.decode([token_id])
        if "\ufffd" not in decoded:
            assert decoded == text[start:end]
        else:
            assert end > start


def test_a_separator_written_in_a_text_is_ordinary_text(tokenizer):
    written = tokenizer.eos_token
    encoder, special = exact_encoder(tokenizer), separator_id(tokenizer)
    single = encoder.encode(f"a {written} b", add_special_tokens=False).ids
    batched = encoder.encode_batch_fast([f"a {written} b"], add_special_tokens=False)[0].ids
    assert special not in single and single == batched
    assert tokenizer(written, add_special_tokens=False).input_ids == [special], (
        "the tokeniser itself would have taken it"
    )


def test_spans_keep_their_space_whatever_the_tokeniser_does_afterwards():
    made = train_tokenizer(texts(), 300)
    template = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[(END, made.eos_token_id)]
    )  # as Llama-3 has it
    made.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
    encoded = exact_encoder(made).encode("the  cat sat", add_special_tokens=False)
    assert "".join("the  cat sat"[start:end] for start, end in encoded.offsets) == "the  cat sat"


def test_no_beginning_of_text_is_added(tokenizer):
    assert (
        tokenizer.bos_token_id
        not in exact_encoder(tokenizer).encode("the cat", add_special_tokens=False).ids
    )


def test_a_trained_tokeniser_has_the_size_asked_for_and_survives_its_folder(tmp_path):
    made = train_tokenizer(texts(), 300)
    assert len(made) == 300 and made.eos_token == made.bos_token == END
    made.save_pretrained(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert [loaded(t).input_ids for t in texts(5)] == [made(t).input_ids for t in texts(5)]
    assert (
        loaded.eos_token == END
        and load_tokenizer(str(tmp_path / "t")).eos_token_id == made.eos_token_id
    )


def test_missing_tokenisers_say_what_to_do(tmp_path, monkeypatch):
    for source in (str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(ModelError, match="no such folder"):
            load_tokenizer(source)
    with pytest.raises(ModelError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)

    def unreachable(*_, local_files_only):
        assert local_files_only, "only what is in the cache, without a minute of retries"
        raise OSError("We couldn't connect to 'https://hub'")

    monkeypatch.setattr(hub, "reached", lambda: False)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(ModelError, match="cannot be reached; offline"):
        load_tokenizer("some/model")

    def gated(*_, **__):
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr(hub, "reached", lambda: True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", gated)
    with pytest.raises(ModelError, match="HF_TOKEN"):
        load_tokenizer("some/model")


# --- the artefact ---


def test_documents_are_joined_by_the_separator(opened):
    end = separator_id(opened.tokenizer)
    for split in ("train", "heldout"):
        ids, table = np.asarray(getattr(opened, split)), opened.table[split]
        assert (ids == end).sum() == len(table) and ids[-1] == end
        first, length = table["first_token"].to_numpy(), table["tokens"].to_numpy()
        assert (
            first[0] == 0
            and (first[1:] == (first + length)[:-1]).all()
            and first[-1] + length[-1] == len(ids)
        )
        for document in range(len(table)):
            inside = ids[first[document] : first[document] + length[document] - 1]
            assert opened.tokenizer.decode(inside) == opened.document(split, document)
    found = {
        opened.document(s, d) for s in ("train", "heldout") for d in range(len(opened.table[s]))
    }
    assert found == {t for t in texts() + HARD if t.strip()}, "every text is in one split, once"


def test_every_token_knows_its_document_and_characters(opened):
    ids, end = opened.heldout, separator_id(opened.tokenizer)
    before = 0
    for index, token_id in enumerate(ids):
        place = opened.locate("heldout", index)
        text = opened.document("heldout", place.document)
        if token_id == end:
            assert (place.start, place.end, before) == (len(text), len(text), len(text))
            before = 0
            continue
        decoded = opened.tokenizer.decode([token_id])
        assert place.origin.startswith("some text.jsonl: line ") and place.kind in ("odd", "even")
        assert (
            decoded == text[place.start : place.end]
            or "\ufffd" in decoded
            and place.end > place.start
        )
        assert place.start <= before <= place.end
        before = place.end
    with pytest.raises(IndexError):
        opened.locate("heldout", len(ids))


def test_rows_are_views_of_the_tokens_in_order(opened):
    rows = opened.rows("train", 16)
    assert rows.shape == (len(opened.train) // 16, 16) and np.shares_memory(rows, opened.train)
    assert (rows.reshape(-1) == opened.train[: rows.size]).all()
    with pytest.raises(CorpusError, match="too few for one row of lm.context=1000000"):
        opened.rows("train", 1_000_000)


def test_caps_are_kept_to_the_token(tmp_path):
    made = (
        make_run(tmp_path, texts(200), **{"corpus.train_tokens": 1234, "corpus.heldout_tokens": 77})
    ).get("tokens")
    assert (len(made.train), len(made.heldout)) == (1234, 77)
    last = made.locate("train", 1233)
    assert 0 <= last.start <= last.end <= len(made.document("train", last.document))
    assert summary.read(made)["train"]["tokens"] == 1234


def test_the_vocabulary_decides_the_type(tmp_path, opened, monkeypatch):
    def large(texts, vocab_size):
        tokenizer = train_tokenizer(texts, vocab_size)
        tokenizer.add_tokens([f"extra{i}" for i in range(1 << 16)])
        return tokenizer

    assert opened.train.dtype == np.uint16
    monkeypatch.setattr(tokens_module, "train_tokenizer", large)
    made = make_run(tmp_path, texts()).get("tokens")
    assert made.train.dtype == np.uint32 and made.locate("train", len(made.train) - 1)


def test_the_same_settings_are_made_once_and_give_the_same_files(tmp_path):
    run = make_run(tmp_path, texts())
    folder = run.path("tokens")
    record = (folder / "made_from.json").read_bytes()
    stamp = (folder / "train.npy").stat().st_mtime_ns
    assert run.path("tokens") == folder and (folder / "train.npy").stat().st_mtime_ns == stamp
    again = Run(run.settings, tmp_path / "again", STAGES).path("tokens")
    assert (again / "made_from.json").read_bytes() == record, "digests and all"
    assert stages.tokens_fingerprint(run) == json.loads(record)["settings"]
    with open(folder / "train.npy", "r+b") as f:
        f.truncate(200)
    with pytest.raises(ArtefactError, match="damaged"):
        run.path("tokens")


def test_nothing_is_left_half_written(tmp_path):
    run = make_run(tmp_path, texts())
    with open(tmp_path / "some text.jsonl", "a") as f:
        f.write("{broken\n")
    with pytest.raises(CorpusError, match="line 61"):
        run.path("tokens")
    assert not run.tokens_folder.exists()


def test_no_held_out_text_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stages,
        "documents",
        lambda *_: iter([tokens_module.Document("some text", "text", "x", "train")]),
    )
    with pytest.raises(CorpusError, match="no heldout text"):
        (make_run(tmp_path, texts())).path("tokens")


def test_a_tampered_document_is_noticed(tmp_path):
    made = (make_run(tmp_path, texts())).get("tokens")
    table = pq.read_table(made.folder / "documents.parquet").to_pandas()
    table["text"] = "other " + table["text"]
    table.to_parquet(made.folder / "documents.parquet")
    with pytest.raises(ArtefactError, match="do not match its text"):
        made.locate("train", 0)


def test_summary_counts_what_is_there(opened):
    found = summary.read(opened)
    for split in ("train", "heldout"):
        part, table = found[split], opened.table[split]
        ids = np.asarray(getattr(opened, split))
        assert part["documents"] == len(table) and part["tokens"] == len(ids)
        assert sum(k["tokens"] for k in part["kinds"].values()) == len(ids) and set(
            part["kinds"]
        ) <= {"odd", "even"}
        assert part["characters"] == sum(len(opened.document(split, d)) for d in range(len(table)))
        top = part["most_frequent"][0]
        assert top["count"] == (ids == top["id"]).sum() == np.bincount(ids).max() and top[
            "token"
        ] == opened.tokenizer.decode([top["id"]])
        assert part["length_quantiles"]["1.0"] == table["tokens"].to_numpy().max()
    assert "user's files" in found["what"]


def test_the_installation_writes_a_manifest_without_machine_paths(tmp_path):
    import hashlib

    run = stages.open_run(
        "smoke",
        tmp_path / "run",
        ["corpus.train_tokens=60000", "corpus.heldout_tokens=12000", "tokenizer.vocab_size=400"],
    )
    made = run.get("tokens")
    manifest = pq.read_table(made.folder / "manifest.parquet").to_pandas()
    assert (
        len(manifest) == sum(len(t) for t in made.table.values())
        and (manifest["path"].str.match(r"^[^/].*")).all()
    )
    assert not set(manifest[manifest.split == "train"].distribution) & set(
        manifest[manifest.split == "heldout"].distribution
    )
    place = made.locate("heldout", 0)
    text = made.document("heldout", place.document)
    row = manifest[manifest.sha256 == hashlib.sha256(text.encode()).hexdigest()].iloc[0]
    assert place.origin == f"{row.distribution} {row.version}: {row.path}" and row.bytes == len(
        text.encode()
    )
    for path in [*made.folder.glob("*.json"), *made.folder.glob("tokenizer/*.json")]:
        assert str(Path.home()) not in path.read_text() and str(tmp_path) not in path.read_text(), (
            path.name
        )
    assert sum(summary.read(made)["heldout"]["distributions"].values()) == len(made.heldout)
    said = re.search(r"(\d+) % of its tokens are prose", summary.read(made)["what"])
    assert 0 < int(said[1]) < 100


def test_another_tokeniser_is_taken_from_its_folder(tmp_path):
    if not LLAMA.exists():
        pytest.skip(f"{LLAMA} is not here")
    made = (make_run(tmp_path, texts(), **{"tokenizer.source": LLAMA})).get("tokens")
    end = 0
    for index in range(50):  # sentencepiece: the space before the first word has no characters
        place = made.locate("train", index)
        assert place.start == end or place.start < end == place.end
        end = place.end
        shown = made.tokenizer.convert_ids_to_tokens(int(made.train[index])).replace("▁", " ")
        assert (
            "<0x" in shown
            or shown.strip() == made.document("train", 0)[place.start : place.end].strip()
        )
    assert made.tokenizer.bos_token_id not in np.asarray(made.train)
