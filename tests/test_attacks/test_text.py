"""Text that cannot be read, or would be waited for or unpacked for ever: each a line that names
file and place.
"""

import gzip
import itertools
import json
import os
import socket
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sae_lib.errors import CorpusError, ModelError
from sae_lib.settings import CorpusSettings
from sae_lib.text import installation, text_files, tokenizer
from sae_lib.text.corpus import documents
from tests.test_attacks.attack import assert_refused

LINE = b'{"text": "a document that is long enough to be told from the others: %d"}\n'
LINES = b"".join(LINE % i for i in range(1200))
UTF16 = "a text in two bytes a character\n" * 9


def zst(data: bytes, block: int = 1 << 20) -> bytes:
    """One frame whose blocks end every `block` bytes."""
    writer = zstandard.ZstdCompressor().compressobj()
    blocks = (
        writer.compress(data[i : i + block]) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for i in range(0, len(data), block)
    )
    return b"".join(blocks) + writer.flush()


def cut_at_a_block(data: bytes) -> bytes:
    """Two thirds of a frame: all its blocks are whole, and only its end is missing."""
    writer = zstandard.ZstdCompressor().compressobj()
    return writer.compress(data[: 2 * len(data) // 3]) + writer.flush(
        zstandard.COMPRESSOBJ_FLUSH_BLOCK
    )


def parquet(columns: dict | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def unchecked(values: list[bytes]) -> pa.Array:
    """Bytes that say of themselves that they are strings."""
    array = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def encrypted() -> bytes:
    data = parquet({"text": ["a", "b"]})
    return b"PARE" + data[4:-4] + b"PARE"


def pile(kinds: pa.Array) -> dict:
    return {
        "text": ["a text", "another"],
        "meta": pa.StructArray.from_arrays([kinds], ["pile_set_name"]),
    }


DUPLICATED = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
LATIN = "caf\xe9 ".encode("latin-1")
WHOLE = parquet({"text": [f"text {i}" for i in range(500)]})
FIRST = b'{"text": "fine"}\n'

# name of the file, its content, what the message must name beside the file
FILES = [
    ("empty.txt", b"", "empty"),
    ("empty.jsonl", b"", "empty"),
    ("empty.parquet", b"", "empty"),
    ("empty.jsonl.zst", b"", "empty"),
    ("blank.txt", b" \n\t\n", "0 document"),
    ("only_bom.txt", b"\xef\xbb\xbf", "0 document"),
    ("one.jsonl", FIRST, "1 document"),
    ("copies.jsonl", FIRST * 50, "1 document"),
    ("nul.txt", b"abc\0def", "offset 3"),
    ("nul.jsonl", FIRST + b'{"text": "a\0"}\n', "line 2"),
    ("latin.txt", LATIN, "0xe9 at offset 3"),
    ("latin.md", b"\xef\xbb\xbf" + b"fine " * 5 + LATIN, "not UTF-8"),
    ("latin.jsonl", FIRST + b'{"text": "\xe9"}\n', "line 2"),
    ("latin.json", b'["\xe9"]', "not UTF-8"),
    ("latin.jsonl.gz", gzip.compress(FIRST + b'{"text": "\xe9"}\n'), "line 2"),
    ("latin.jsonl.zst", zst(FIRST + b'{"text": "\xe9"}\n'), "line 2"),
    ("overlong.txt", b"\xc0\xaf", "0xc0"),
    ("surrogate.txt", b"\xed\xa0\x80", "0xed"),
    ("cut_character.txt", "é".encode()[:1], "0xc3"),
    ("utf16le.txt", UTF16.encode("utf-16"), "UTF-16"),
    ("utf16be.md", b"\xfe\xff" + UTF16.encode("utf-16-be"), "UTF-16"),
    ("utf16.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
    ("utf16_bare.txt", UTF16.encode("utf-16-le"), "zero byte at offset 1"),
    ("utf32.txt", UTF16.encode("utf-32-be"), "zero byte"),
    ("open.jsonl", FIRST + b'{"text": "b"\n', "line 2: malformed JSON"),
    ("two.jsonl", b'{"text": "a"} {"text": "b"}\n', "line 1: malformed JSON"),
    ("single.jsonl", b"{'text': 'a'}\n", "malformed JSON"),
    ("bom_inside.jsonl", FIRST + b'\xef\xbb\xbf{"text": "b"}\n', "line 2: malformed JSON"),
    ("open.json", b'[{"text": "a"}, ', "malformed JSON"),
    ("two.json", b'{"text": "a"}\n{"text": "b"}\n', "malformed JSON"),
    ("deep.json", b"[" * 200_000, "nested too deeply"),
    ("deep.jsonl", FIRST + b'{"text": ' + b'{"a":' * 100_000 + b"\n", "line 2"),
    ("digits.jsonl", FIRST + b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "line 2"),
    ("digits.json", b"[" + b"9" * 100_000 + b"]", "digits"),
    ("negative.json", b"[-" + b"9" * 4301 + b"]", "digits"),
    ("number.jsonl", b'{"text": 7}\n', "text a int"),
    ("null.jsonl", b'{"text": null}\n', "NoneType"),
    ("list.jsonl", b'{"text": ["a"]}\n', "text a list"),
    ("bare.jsonl", b"7\n", "found int"),
    ("nan.jsonl", b"NaN\n", "found float"),
    ("body.jsonl", b'{"body": "a"}\n', "'body'"),
    ("key.jsonl", b'{"\\ud800\\u202e": "a"}\n', "ud800"),
    ("keys.jsonl", json.dumps(dict.fromkeys(map(str, range(5000)))).encode(), "4992 more"),
    ("long_key.jsonl", json.dumps({"k" * 10**6: 1}).encode(), "kkk"),
    ("none.json", b"{}", "none"),
    ("item.json", b'["a", {"text": "b"}, []]', "item 3"),
    ("no.jsonl.zst", b"no zstd at all", "cannot be read"),
    ("half.jsonl.zst", zst(LINES)[:-20], "cannot be read"),
    ("block.jsonl.zst", cut_at_a_block(LINES), "Truncated"),
    ("second.jsonl.zst", zst(LINES) + cut_at_a_block(LINES), "Truncated"),
    ("tail.jsonl.zst", zst(LINES) + b"tail!", "cannot be read"),
    ("gzipped.jsonl.zst", gzip.compress(LINES), "cannot be read"),
    ("no.jsonl.gz", b"no gzip at all", "cannot be read"),
    ("half.jsonl.gz", gzip.compress(LINES)[:-9], "Truncated"),
    ("second.jsonl.gz", gzip.compress(LINES) + gzip.compress(LINES)[:90], "Truncated"),
    ("sum.jsonl.gz", gzip.compress(LINES)[:-8] + bytes(8), "cannot be read"),
    ("bomb.jsonl.gz", gzip.compress(b" " * (1 << 25)), "500 bytes"),
    ("bomb.json.zst", zst(b" " * (1 << 25), 1 << 25), "500 bytes"),
    ("bomb.jsonl.zst", zst((b" " * 4095 + b"\n") * (1 << 13), 1 << 25), "500 bytes"),
    ("no.parquet", b"PAR1 no parquet at all PAR1", "cannot be read"),
    ("half.parquet", WHOLE[: len(WHOLE) // 2], "cannot be read"),
    ("data.parquet", WHOLE[:40] + bytes(200) + WHOLE[240:], "cannot be read"),
    ("encrypted.parquet", encrypted(), "cannot be read"),
    ("body.parquet", parquet({"body": ["a"]}), "body"),
    ("twice.parquet", parquet(DUPLICATED), "text, text"),
    ("columns.parquet", parquet({f"c{i}": ["a"] for i in range(900)}), "892 more"),
    ("number.parquet", parquet({"text": [1, 2]}), "int64"),
    ("bytes.parquet", parquet({"text": [b"a", b"b"]}), "binary"),
    ("struct.parquet", parquet({"text": [{"a": "b"}]}), "struct"),
    ("list.parquet", parquet({"text": [["a"], ["b"]]}), "list"),
    ("dates.parquet", parquet({"text": pa.array([2**62], pa.timestamp("us"))}), "timestamp"),
    ("null.parquet", parquet({"text": ["a", None]}), "row 2"),
    ("rows.parquet", parquet({"text": pa.array([], pa.string())}), "0 document"),
    ("utf8.parquet", parquet({"text": unchecked([b"fine", b"\xe9"])}), "row 2, text: not UTF-8"),
    ("kind.parquet", parquet(pile(unchecked([b"a", b"\xff"]))), "row 2, meta.pile_set_name"),
    ("kinds.parquet", parquet(pile(pa.array([1, 2]))), "meta.pile_set_name holds int64"),
    ("x.docx", b"PK", ".docx"),
    ("no_suffix", b"text", "no suffix"),
    ("text.zip", b"PK", ".zip"),
    ("text.txt.gz", gzip.compress(b"text"), ".gz"),
]


def refused(where: object) -> str:
    """The message of the `CorpusError` that reading `where` ends with."""
    with pytest.raises(CorpusError) as error:
        list(documents(CorpusSettings(source=f"files:{where}"), 0))
    said = str(error.value)
    assert said.isprintable() and len(said) < 600, said
    return said


@pytest.mark.parametrize(("name", "content", "names"), FILES, ids=[name for name, *_ in FILES])
def test_a_file_is_refused_by_name_and_place(name, content, names, tmp_path):
    (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name)
    assert name in said and names in said, said
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_command_line_says_it_in_one_line_and_claims_no_folder(tmp_path):
    (tmp_path / "deep.json").write_bytes(b"[" * 200_000)
    assert_refused(["stage", "corpus", "--set", "corpus=files:deep.json"], tmp_path, "deep.json")


WHERE = [
    ("~nosuchuser/text", "~nosuchuser"),
    ("a" * 300 + ".txt", "too long"),
    ("b" * 300 + "/a", "too long"),
    ("*a/" * 90 + "*.txt", "none of its 0"),
    ("/".join("a" * 3000), "too long"),
    ("a\0b.txt", "does not exist"),
    ("a\ud800.txt", "does not exist"),
    ("a\n\u202eb.txt", "does not exist"),
    ("https://example.org/x.jsonl", "address"),
    ("file:///etc/hostname", "address"),
    ("s3://bucket/*.parquet", "address"),
    (" ", "does not exist"),
    ("missing", "does not exist"),
    ("missing/*.txt", "none of its 0"),
    ("*.nothing", "none of its 0"),
    ("[a-", "none of its 0"),
    ("a**b/*.txt", "a**b"),
    ("pipe.txt", "special file"),
    ("socket.txt", "special file"),
    ("/dev/zero", "special file"),
    ("folder.jsonl", "none of its 1"),
    ("loop/**/*.txt", "none of its 0"),
    ("dangling.txt", "does not exist"),
    ("itself.txt", "does not exist"),
    ("special", "none of its 0"),
]


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """Pipes, sockets, links in circles, a folder with a file's name."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ("folder.jsonl", "loop", "loop/a", "loop/b", "special"):
        (folder / name).mkdir()
    (folder / "folder.jsonl" / "x.png").write_bytes(b"x")
    for i, (place, target) in enumerate(itertools.product(("a", "b"), ("..", "../a", "../b"))):
        (folder / "loop" / place / f"link{i}").symlink_to(target)
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / "special" / "pipe.jsonl")
    (folder / "special" / "zero.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a socket's address is at most 107 bytes
        bound.bind("socket.txt")
    (folder / "dangling.txt").symlink_to("nowhere")
    (folder / "itself.txt").symlink_to("itself.txt")
    return folder


@pytest.mark.parametrize(("where", "names"), WHERE, ids=[ascii(where)[:40] for where, _ in WHERE])
def test_a_place_without_text_is_refused(where, names, odd_folder, monkeypatch):
    monkeypatch.chdir(odd_folder)
    began = time.monotonic()
    with pytest.raises(CorpusError) as error:
        list(text_files.read_files(where))
    said = str(error.value)
    assert names in said and said.isprintable() and len(said) < 600, said
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "source", ["~nosuchuser/gpt2", "./" + "a" * 300, "a" * 5000, "no/such/folder"]
)
def test_a_tokeniser_that_cannot_be_there(source):
    with pytest.raises(ModelError, match=r"tokenizer\.source") as error:
        tokenizer.load_tokenizer(source)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


def test_one_line_or_file_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST", 1000)
    (tmp_path / "a.jsonl").write_bytes(FIRST + b'{"text": "' + b"a" * 1000 + b'"}\n')
    assert "a.jsonl: line 2: over 1,000 bytes" in refused(tmp_path / "a.jsonl")
    for name in ("a.txt", "a.json"):
        (tmp_path / name).write_bytes(b'"' + b"a" * 1000 + b'"')
        assert f"{name}: over 1,000 bytes" in refused(tmp_path / name)


def test_a_folder_has_a_largest_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_FILES", 3)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    assert "over 3 files" in refused(tmp_path)


# --- what must be read to its end ---

GOOD = [
    ("frames.jsonl.zst", zst(LINES[: len(LINES) // 2]) + zst(LINES[len(LINES) // 2 :])),
    ("skipped.jsonl.zst", (0x184D2A50).to_bytes(4, "little") + b"\5\0\0\0hello" + zst(LINES)),
    ("members.jsonl.gz", gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:])),
    ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
    ("bom.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + LINES)),
    ("windows.jsonl", LINES.replace(b"\n", b"\r\n\r\n")),
    ("no_end.jsonl", LINES[:-1]),
    ("bom.json", b"\xef\xbb\xbf[" + LINES[:-1].replace(b"\n", b",") + b"]"),
]


@pytest.mark.parametrize(("name", "content"), GOOD, ids=[name for name, _ in GOOD])
def test_all_documents_are_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    found = list(text_files.read_files(str(tmp_path / name)))
    assert [text for text, *_ in found] == [json.loads(line)["text"] for line in LINES.splitlines()]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert [text for text, *_ in text_files.read_files(str(tmp_path / "a.txt"))] == ["abc"]


def test_what_is_not_asked_for_may_be_broken(tmp_path):
    """Dates out of range and bytes that are no text in other columns; dictionaries; a kind that
    is missing.
    """
    dates = pa.array([2**62, None], pa.timestamp("us"))
    meta = pa.StructArray.from_arrays(
        [pa.array(["Law", None]), dates, unchecked([b"\xff", b"\xfe"])],
        ["pile_set_name", "date", "bytes"],
    )
    columns = {"text": pa.array(["a", "b"]).dictionary_encode(), "meta": meta, "when": dates}
    (tmp_path / "a.parquet").write_bytes(parquet(columns))
    assert list(text_files.read_files(str(tmp_path / "a.parquet"))) == [
        ("a", "Law", "a.parquet: row 1 (Law)"),
        ("b", "text", "a.parquet: row 2"),
    ]


def test_names_and_kinds_can_be_shown_whatever_they_are(tmp_path):
    strange = os.fsdecode(b"caf\xe9\n\x1b.jsonl")
    kind = json.dumps("a\ud800\u202e\n" + "k" * 500)
    (tmp_path / strange).write_text(f'{{"text": "a", "meta": {{"pile_set_name": {kind}}}}}\n')
    ((_, kind, origin),) = text_files.read_files(str(tmp_path))
    assert kind == "a\ufffd\ufffd\ufffd" + "k" * 96
    assert origin == f"caf\ufffd\ufffd\ufffd.jsonl: line 1 ({kind})"


def test_an_empty_file_among_others_is_left_out(tmp_path):
    (tmp_path / "__init__.py").touch()
    (tmp_path / "a.py").write_text("a = 1\n")
    assert [name for *_, name in text_files.read_files(str(tmp_path))] == ["a.py"]


def test_a_folder_behind_a_link_is_read_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("a text")
    (tmp_path / "a" / "again").symlink_to(".")
    for where in (tmp_path, tmp_path / "**" / "*.txt"):
        assert [name for *_, name in text_files.read_files(str(where))] == ["a/x.txt"]


def test_a_broken_distribution_is_left_out_of_the_installation(tmp_path, monkeypatch, caplog):
    for name, record in {"good": "g.py,,500\n", "bad": "b.py,,many\n", "worse": "\xff\n"}.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_bytes(record.encode("latin-1"))
    monkeypatch.setattr(installation.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(installation.site, "getsitepackages", list)
    found = [f.origin for f in installation.installed_files() if f.distribution != "Python"]
    assert found == ["good 1.0: g.py"]
    assert "bad is left out" in caplog.text and "worse is left out" in caplog.text


def test_a_pipe_in_the_installation_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.py")
    file = installation.File("d", "1", tmp_path, "x.py", "py", 500)
    assert installation.read_text(file, 1000) is None
    assert installation.kind_of(os.fsdecode(b"\xff.py")) is None
