"""Documents: no copies, no leak between the splits, and one clear message for every bad input."""

import gzip
import importlib.metadata
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sae_lib.errors import CorpusError
from sae_lib.settings import CorpusSettings, load
from sae_lib.text import corpus, hub, installation, text_files
from sae_lib.text.corpus import documents
from sae_lib.text.installation import File, remember


def prose(name: str, lines: int = 12) -> str:
    return "".join(
        f"line {i} of {name}, which nothing else repeats ({name}{i})\n" for i in range(lines)
    )


def from_files(path, **changes) -> list[corpus.Document]:
    return list(documents(CorpusSettings(source=f"files:{path}", **changes), seed=0))


def write_lines(path: Path, items: list) -> Path:
    data = "".join(json.dumps(item) + "\n" for item in items).encode()
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --- files ---


def test_every_kind_of_file_is_read(tmp_path):
    item = {"text": prose("a"), "meta": {"pile_set_name": "FreeLaw"}}
    for name in ("one.jsonl", "two.jsonl.zst", "three.jsonl.gz"):
        write_lines(tmp_path / name, [item | {"text": prose(name)}, prose(name + "2")])
    (tmp_path / "four.json").write_text(json.dumps([{"text": prose("four")}, prose("five")]))
    (tmp_path / "deep").mkdir()
    for suffix in ("txt", "md", "rst", "py"):
        (tmp_path / "deep" / f"x.{suffix}").write_text(prose(suffix))
    pq.write_table(
        pa.table({"text": [prose("p"), prose("q")], "meta": [{"pile_set_name": "ArXiv"}] * 2}),
        tmp_path / "t.parquet",
    )
    (tmp_path / "ignored.png").write_bytes(b"\0\1")
    found = {d.origin: d for d in from_files(tmp_path)}
    assert len(found) == 14
    assert (
        found["two.jsonl.zst: line 1 (FreeLaw)"].kind == "FreeLaw"
        and found["two.jsonl.zst: line 2"].kind == "text"
    )
    assert found["deep/x.md"].text == prose("md") and found["deep/x.md"].kind == "md"
    assert found["t.parquet: row 2 (ArXiv)"].text == prose("q") and found[
        "four.json: item 2"
    ].text == prose("five")
    assert not any(str(tmp_path) in origin for origin in found)


def test_a_glob_reads_what_it_matches(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(prose(name))
    assert {d.origin for d in from_files(tmp_path / "*.txt")} == {"a.txt", "b.txt"}


def test_copies_are_dropped_and_the_split_is_fixed_by_the_seed(tmp_path):
    texts = [prose(f"d{i}") for i in range(200)]
    path = write_lines(
        tmp_path / "a.jsonl",
        [{"text": t} for t in texts + [t.replace(" ", "  ") for t in texts[:100]]],
    )
    found = from_files(path)
    assert len(found) == 200 and len({" ".join(d.text.split()) for d in found}) == 200
    assert found == from_files(path)
    assert sum(d.split == "heldout" for d in found) == pytest.approx(20, abs=2)
    settings = CorpusSettings(source=f"files:{path}")
    other = list(documents(settings, seed=1))
    assert {d.text for d in other if d.split == "heldout"} != {
        d.text for d in found if d.split == "heldout"
    }
    assert [d.text for d in other] != [d.text for d in found] != texts, (
        "the order is shuffled by the seed"
    )


def test_a_corpus_sorted_by_kind_is_mixed(tmp_path):
    items = [
        {"text": prose(f"{kind}{i}"), "meta": {"pile_set_name": kind}}
        for kind in "abcd"
        for i in range(100)
    ]
    first = from_files(write_lines(tmp_path / "a.jsonl", items))[:80]
    assert {kind: sum(d.kind == kind for d in first) > 8 for kind in "abcd"} == dict.fromkeys(
        "abcd", True
    )


def test_held_out_text_stays_near_its_cap(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": prose(f"d{i}")} for i in range(300)])
    held = sum(len(d.text) for d in from_files(path, heldout_tokens=500) if d.split == "heldout")
    assert 0 < held <= 500 * corpus.CHARACTERS_PER_TOKEN + len(prose("d100"))


def test_a_single_long_text_is_cut_into_pieces_that_add_up(tmp_path):
    text = prose("book", 3000)
    (tmp_path / "book.txt").write_text(text)
    found = from_files(tmp_path / "book.txt")
    parts = sorted(found, key=lambda d: int(d.origin.rpartition(" ")[2]))
    assert "".join(d.text for d in parts) == text and all(
        len(d.text) <= text_files.PIECE for d in parts
    )
    assert {d.split for d in found} == {"train", "heldout"}


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "bad \\ud800 half"}\n{"text": "good \\ud83d\\ude00 pair"}\n'
    )
    assert {d.text for d in from_files(tmp_path / "a.jsonl")} == {
        "bad \ufffd half",
        "good \U0001f600 pair",
    }


BAD = {
    "missing.txt": (None, ["missing.txt", "does not exist"]),
    "empty.txt": (b"", ["empty.txt is empty"]),
    "blank.txt": (b" \n\n", ["blank.txt", "0 document"]),
    "binary.txt": (b"abc\0def", ["binary.txt", "binary", "offset 3"]),
    "latin.txt": (
        "caf\xe9".encode("latin-1"),
        ["latin.txt", "not UTF-8", "0xe9 at offset 3", "iconv"],
    ),
    "latin.jsonl": (
        b'{"text": "\xc3\xa9"}\n{"text": "\xe9"}\n',
        ["latin.jsonl: line 2", "offset 25"],
    ),
    "broken.jsonl": (
        b'{"text": "a"}\n\n{"text": "b"\n',
        ["broken.jsonl: line 3", "malformed JSON"],
    ),
    "keys.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', ["keys.jsonl: line 2", "'body'", '"text"']),
    "number.jsonl": (b'{"text": 7}\n', ["number.jsonl: line 1", '"text"']),
    "list.json": (b'["a", 7]', ["list.json: item 2", "int"]),
    "x.docx": (b"PK", ["x.docx", "'.docx'", ".jsonl.zst"]),
    "x.jsonl.zst": (b"no zstd at all", ["x.jsonl.zst", "cannot be read"]),
    "cut.jsonl.zst": (
        zstandard.ZstdCompressor().compress(b'{"text": "abc"}\n' * 9999)[:-20],
        ["cut.jsonl.zst"],
    ),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "abc"}\n')[:-9], ["cut.jsonl.gz", "cannot be read"]),
    "x.parquet": (b"PAR1 not", ["x.parquet", "cannot be read"]),
    "one.jsonl": (b'{"text": "a"}\n', ["1 document", "at least 2"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_message(tmp_path, name):
    content, expected = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as error:
        from_files(tmp_path / name)
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_or_glob_without_text_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for where in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(CorpusError, match="can be read; expected .txt, .md"):
            from_files(where)


def test_parquet_without_a_text_column(tmp_path):
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="columns body; expected one named text"):
        from_files(tmp_path / "a.parquet")


@pytest.mark.parametrize("source", ["", "internet", "files:", "hub:", "http://x"])
def test_an_unknown_source_lists_the_three(source):
    with pytest.raises(CorpusError, match="installation, files:PATH_OR_GLOB or hub:DATASET"):
        list(documents(CorpusSettings(source=source), 0))


# --- the hub ---


def test_the_hub_streams_through_the_same_call(tmp_path):
    items = [{"text": prose(f"d{i}"), "meta": {"pile_set_name": "ab"[i % 2]}} for i in range(200)]
    path = write_lines(tmp_path / "a.jsonl.zst", items + items[:50])
    settings = CorpusSettings(source="hub:x", shuffle_buffer=50)
    found = list(corpus._from_hub("x", settings, 0, path="json", data_files=str(path)))
    assert {d.text for d in found} == {item["text"] for item in items} and len(found) == 200
    assert 5 <= sum(d.split == "heldout" for d in found) <= 40
    assert found[0].origin != "x: document 0 (a)" and {d.kind for d in found} == {"a", "b"}
    one = next(d for d in found if d.text == prose("d7"))
    assert one.origin == "x: document 7 (b)"
    again = list(corpus._from_hub("x", settings, 0, path="json", data_files=str(path)))
    assert again == found


def test_a_hub_set_of_stories_has_no_kinds_and_needs_none(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": prose(f"d{i}")} for i in range(30)])
    settings = CorpusSettings(source="hub:roneneldan/TinyStories", shuffle_buffer=50)
    found = list(corpus._from_hub("x", settings, 0, path="json", data_files=str(path)))
    assert len(found) == 30 and len({d.kind for d in found}) == 1
    assert next(d for d in found if d.text == prose("d7")).origin == "x: document 7"


def error_named(name: str, message: str, base: type = Exception) -> Exception:
    return type(name, (base,), {})(message)


PRIVATE = (
    "401 Client Error. If you are trying to access a private or gated repo, make sure you are "
    "authenticated."
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)"),
            "corpus=installation",
        ),
        (
            error_named("DatasetNotFoundError", "Dataset 'x' is a gated dataset on the Hub."),
            "HF_TOKEN",
        ),
        (
            error_named(
                "GatedRepoError", PRIVATE, error_named("RepositoryNotFoundError", "").__class__
            ),
            "accept its terms",
        ),
        (error_named("RepositoryNotFoundError", PRIVATE), "spelling"),
        (
            error_named(
                "DatasetNotFoundError",
                "Dataset 'x' doesn't exist on the Hub or cannot be accessed.",
            ),
            "spelling",
        ),
        (ValueError("Unknown split 'train'"), "Unknown split 'train'"),
    ],
)
def test_hub_problems_say_what_to_do(monkeypatch, error, expected):
    def fail(**_):
        raise error

    monkeypatch.setattr(hub, "reached", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(CorpusError, match="hub:x/y") as caught:
        list(documents(CorpusSettings(source="hub:x/y"), 0))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch):
    monkeypatch.setattr(hub, "reached", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", lambda **_: pytest.fail("asked all the same"))
    with pytest.raises(CorpusError, match="hub:x/y: the hub cannot be reached; offline, use"):
        list(documents(CorpusSettings(source="hub:x/y"), 0))


def test_the_revision_reaches_the_hub(monkeypatch):
    asked = {}

    def fail(**arguments):
        asked.update(arguments)
        raise ValueError("enough")

    monkeypatch.setattr(hub, "reached", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(CorpusError):
        list(documents(CorpusSettings(source="hub:x/y", revision="abc"), 0))
    assert (asked["path"], asked["revision"], asked["streaming"]) == ("x/y", "abc", True)


# --- this installation ---


def fake_files(folder: Path, content: dict[str, dict[str, str]]) -> list[File]:
    files = []
    for distribution, texts in content.items():
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            kind = "py" if path.endswith(".py") else installation.kind_of(path)
            files.append(File(distribution, "1.0", folder, path, kind, len(text)))
    return files


def test_kinds_by_path():
    kinds = {
        "a/x.py": "docstrings",
        "pydoc_data/topics.py": None,
        "a/x.pyi": "pyi",
        "a/x.cuh": "header",
        "a/README.md": "markdown",
        "x-1.dist-info/METADATA": "metadata",
        "x-1.dist-info/licenses/COPYING.lesser": "licence",
        "a/LICENSE": "licence",
        "a/licence.txt": "licence",
        "a/license.py": "py",
        "x-1.dist-info/RECORD": None,
        "x-1.dist-info/top_level.txt": None,
        "a/x.so": None,
        "a/x.js": None,
    }
    assert {path: installation.kind_of(path) for path in kinds} == kinds


SOURCE = '''# Copyright 2020 Somebody Who Wrote This
# Licensed under a licence that says who may do what with it,
# and which stands at the beginning of every file.
r"""Opens files of measurements, and says clearly what is wrong with one that it cannot read.

    The second paragraph is moved to the left.
"""

TEMPLATE = """
Dear {name}, this string is used by the program, so that it is no docstring, however long it is.
"""


def read(path):
    """Short."""
    x = 1  # of the first sample
    # The file is read twice, because the number of its
    # columns is only known when the last line was seen,
    # and memory for all of them is needed before.
    return """also no docstring, because the program gives it back to whoever called the function"""


def table():
    """{(1, 2): [3, 4], (5, 6): [7, 8], (9, 0): [1, 2], (3, 4): [5, 6], (7, 8): [9, 0]}"""
'''


def test_docstrings_and_comments_are_taken_from_code_and_nothing_else():
    lines = installation.docstrings_and_comments(SOURCE).split("\n")
    assert lines == [
        "Opens files of measurements, and says clearly what is wrong with one that it cannot read.",
        "",
        "The second paragraph is moved to the left.",
        "",
        "The file is read twice, because the number of its",
        "columns is only known when the last line was seen,",
        "and memory for all of them is needed before.",
        "",
    ]


def test_a_python_file_gives_code_or_prose_metadata_its_description(tmp_path):
    (tmp_path / "x.py").write_text(SOURCE)
    (tmp_path / "METADATA").write_text("Name: x\n\n" + prose("x"))

    def text(path: str, kind: str) -> str:
        return installation.read_text(File("d", "1", tmp_path, path, kind, 1), 10_000)

    assert text("x.py", "py") == SOURCE
    assert text("x.py", "docstrings") == installation.docstrings_and_comments(SOURCE)
    assert text("METADATA", "metadata") == prose("x")


def test_the_documentation_of_the_language_is_read(monkeypatch):
    files = [f for f in installation.installed_files() if installation.TOPICS in f.path]
    assert len(files) > 50 and all(f.kind == "docstrings" for f in files)
    (assertion,) = (f for f in files if f.path.endswith("#assert"))
    assert installation.read_text(assertion, 60_000).startswith('The "assert" statement')


def test_at_least_half_of_the_default_text_is_prose():
    budget = load("laptop").corpus.max_kind_bytes
    settings = load("smoke").corpus.model_copy(update={"max_kind_bytes": budget})
    small = {kind: size // 20 for kind, size in budget.items()}
    read = installation.read_installation(small, 0.1, settings.max_file_bytes, 0)
    for split in ("train", "heldout"):
        size = Counter()
        for file, text, of in read:
            size[file.kind in installation.PROSE] += (of == split) * len(text)
        assert size[True] >= 0.5 * size.total(), split


def test_only_files_inside_the_installation_are_listed(tmp_path):
    info = tmp_path / "demo-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.2\n")
    (info / "RECORD").write_text(
        "demo/a.py,sha256=x,500\n../../../bin/demo.py,,500\n../e.py,,500\n/home/me/b.py,,500\ndemo/../../c.py,,500\ndemo/d.py,,9\n"
    )
    distribution = importlib.metadata.Distribution.at(info)
    assert [f.origin for f in installation._recorded_files("demo", distribution)] == [
        "demo 1.2: demo/a.py"
    ]
    assert not installation._from_local_folder(distribution)
    (info / "direct_url.json").write_text(
        '{"url": "file:///home/me/demo", "dir_info": {"editable": true}}'
    )
    assert installation._from_local_folder(distribution)


def test_near_copies_are_dropped():
    seen, text = set(), prose("a", 40)
    assert remember(text, seen)
    assert not remember(text, seen)
    assert not remember("# vendored\n" + text.replace("\n", "\r\n"), seen)
    assert not remember(prose("a", 21) + prose("b", 20), seen), "over half known"
    assert remember(prose("a", 15) + prose("c", 25), seen), "under half known"


def test_data_minified_and_binary_files_are_not_read(tmp_path):
    bad = {
        "m.py": "x=1;" * 400,
        "t.py": "1234, 5678,\n" * 100,
        "n.py": prose("a") + "\0",
        "s.py": "a = 1\n",
    }
    for file in fake_files(tmp_path, {"d": bad}):
        assert installation.read_text(file, 10_000) is None, file.path
    (tmp_path / "l.py").write_bytes(("é" * 300 + "\n").encode("latin-1"))
    assert installation.read_text(File("d", "1", tmp_path, "l.py", "py", 301), 10_000) is None
    (good,) = fake_files(tmp_path, {"d": {"g.py": prose("g", 50)}})
    cut = installation.read_text(good, 700)
    assert (
        cut.endswith("\n") and len(cut) <= 700 and prose("g", 50).startswith(cut) and len(cut) > 600
    )


def test_large_distributions_fill_only_what_small_ones_leave(tmp_path):
    content = {"big": {f"big/{i}.py": prose(f"big{i}") for i in range(100)}}
    content |= {
        f"small{k}": {f"s{k}/{i}.py": prose(f"small{k}_{i}") for i in range(3)} for k in range(5)
    }
    size = len(prose("big10"))
    chosen = installation.choose(fake_files(tmp_path, content), {"py": 25 * size}, 10_000, set(), 0)
    count = {name: sum(f.distribution == name for f, _ in chosen) for name in content}
    assert all(count[f"small{k}"] == 3 for k in range(5)) and 6 <= count["big"] <= 12


@pytest.fixture(scope="module")
def installed() -> list[corpus.Document]:
    return list(documents(load("smoke").corpus, 0))


def test_the_installation_is_split_by_distribution_without_leaks(installed):
    named = {
        split: {d.origin.rpartition(": ")[0] for d in installed if d.split == split}
        for split in ("train", "heldout")
    }
    assert (
        len(named["heldout"]) >= 5
        and len(named["train"]) >= 20
        and not named["train"] & named["heldout"]
    )
    assert any(name.startswith("Python 3") for name in named["train"])
    train_lines = {
        line.strip() for d in installed if d.split == "train" for line in d.text.split("\n")
    }
    for d in installed:
        lines = {line.strip() for line in d.text.split("\n") if len(line.strip()) >= 20}
        assert d.split == "train" or len(lines & train_lines) < 0.5 * len(lines), (
            f"{d.origin} leaks"
        )


def test_the_installation_keeps_its_budget_and_order(installed):
    settings = load("smoke").corpus
    for kind, budget in settings.max_kind_bytes.items():
        assert (
            sum(len(d.text.encode()) for d in installed if d.kind == kind and d.split == "train")
            <= budget + settings.max_file_bytes
        )
    assert {d.kind for d in installed} == set(settings.max_kind_bytes)
    assert all(len(d.text.encode()) <= settings.max_file_bytes for d in installed)
    assert [d.origin for d in documents(settings, 0)] == [d.origin for d in installed]
    assert {d.kind for d in installed[: len(installed) // 4]} == set(settings.max_kind_bytes), (
        "shuffled"
    )


def test_an_unknown_kind_of_file_is_named():
    with pytest.raises(CorpusError, match="names javascript; expected .*header"):
        list(documents(CorpusSettings(max_kind_bytes={"javascript": 1}), 0))
