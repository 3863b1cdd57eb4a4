"""Text of this Python installation: the corpus that every machine already has. Never a user's own
files.
"""

import csv
import hashlib
import heapq
import importlib.metadata
import inspect
import io
import json
import logging
import os
import platform
import random
import re
import site
import string
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import yaml

TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
KINDS = TABLE["kinds"]
SUFFIXES = {suffix: kind for kind, row in KINDS.items() for suffix in row.get("suffixes", ())}
PROSE = [kind for kind, row in KINDS.items() if row.get("prose")]
# Of the Python files, three in four give their docstrings and comments, the others their code: so
# no line is in the text twice.
DOCSTRINGS_OF = 0.75
TRIPLE_QUOTED = re.compile(r'"{3}(.*?)"{3}', re.DOTALL)
COMMENT = re.compile(r"#.*\n(?:[ \t]*#.*\n){2,}")
DOCSTRINGS_SIZE = 0.2  # of a Python file, about; known only once it is read
SHORTEST_PASSAGE = 80  # characters of a docstring or comment
SENTENCE = string.ascii_letters.encode() + b" \n.," + bytes(range(128, 256))
MARKS = 0.2  # a passage with a larger share of other bytes is code or a table
TOPICS = "pydoc_data/topics.py"  # the standard library's documentation of the language
LICENCE = re.compile(r"(licen[sc]e|copying|notice|third.?party)", re.IGNORECASE)
COPYRIGHT = re.compile(r"licen[sc]e|copyright|all rights reserved", re.IGNORECASE)
STANDARD_LIBRARY = "Python"
# bytes of text; a larger distribution is never held out: training would lose a whole kind with it
GIANT = 5_000_000
SMALLEST_FILE = 200  # bytes
LARGEST_SOURCE = 1_000_000  # bytes of a Python file that are searched for docstrings
NEAR_DUPLICATE = 0.5  # share of a document's lines that were seen before
LONGEST_LINE, MOST_DIGITS = 1000, 0.15  # beyond them a file is minified, or a table of data
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A file that an installed distribution lists, or a part of one that is `text`; `path` is
    relative to `root`, `size` in bytes.
    """

    distribution: str
    version: str
    root: Path
    path: str
    kind: str
    size: int
    text: str = ""

    @property
    def expected_bytes(self) -> float:
        """Of text that it gives, before it is cut."""
        share = DOCSTRINGS_SIZE if self.kind == "docstrings" and not self.text else 1
        return share * self.size

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}: {self.path}"


def installed_files() -> Iterator[File]:
    """Every text file of the standard library and of the installed distributions, in no particular
    order.
    """
    root, python = Path(sysconfig.get_path("stdlib")), platform.python_version()
    for folder, folders, names in os.walk(root):
        folders[:] = [
            f for f in folders if f not in TABLE["not_library"] and not f.startswith("config-")
        ]
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if (kind := kind_of(path)) and (root / path).is_file():
                size = (root / path).stat().st_size
                yield File(STANDARD_LIBRARY, python, root, path, kind, size)
    for name, text in topics.items():
        part = f"{TOPICS}#{name}"
        yield File(STANDARD_LIBRARY, python, root, part, "docstrings", len(text), text)
    seen = set()
    places = map(sysconfig.get_path, ("purelib", "platlib"))
    places = list(dict.fromkeys([*places, *site.getsitepackages()]))
    for distribution in importlib.metadata.distributions(path=places):
        name = distribution.metadata["Name"]
        if not name or name in seen:
            continue
        try:
            if not _from_local_folder(distribution):
                seen.add(name)
                yield from list(_recorded_files(name, distribution))
        except (OSError, ValueError, TypeError, LookupError, csv.Error) as error:
            log.warning("%s is left out: its installation records are broken (%s)", name, error)


def _from_local_folder(distribution: importlib.metadata.Distribution) -> bool:
    """Whether pip installed it from a folder (editable or not): a user's own code."""
    return "dir_info" in json.loads(distribution.read_text("direct_url.json") or "{}")


def _recorded_files(name: str, distribution: importlib.metadata.Distribution) -> Iterator[File]:
    # RECORD is read here, and the version once: `distribution.files` builds a path object per
    # entry, ten times as slow
    version, root = distribution.version, Path(distribution.locate_file(""))
    for row in csv.reader(io.StringIO(distribution.read_text("RECORD") or "")):
        path, size = row[0], int(row[2] or 0) if len(row) > 2 else 0
        outside = path.startswith(("/", "..")) or "/../" in path or ":" in path or "\\" in path
        if not outside and size >= SMALLEST_FILE and (kind := kind_of(path)):
            yield File(name, version, root, path, kind, size)


def kind_of(path: str) -> str | None:
    """The kind of a file by its path, None for one that is no text to read, or whose name cannot be
    shown.
    """
    if not path.isprintable():
        return None
    folder, _, name = path.rpartition("/")
    in_metadata = folder.partition("/")[0].endswith((".dist-info", ".egg-info"))
    suffix = Path(name).suffix.lower()
    licence = LICENCE.match(name) and suffix in ("", ".txt", ".md", ".rst")
    if licence or in_metadata and "licenses/" in path:
        return "licence"
    if in_metadata:
        return "metadata" if name == "METADATA" else None
    if path == TOPICS:
        return None
    kind = SUFFIXES.get(suffix)
    docstrings = kind == "py" and int.from_bytes(_hash(0, path)) < DOCSTRINGS_OF * 2**64
    return "docstrings" if docstrings else kind


def docstrings_and_comments(source: str) -> str:
    """The docstrings and the longer comments of Python code in their order, without statements of
    licences and without what is no sentences; an empty line between two of them.
    """
    passages = []
    for m in TRIPLE_QUOTED.finditer(source):
        if _starts_line(source, m.start()):
            passages.append((m.start(), inspect.cleandoc(m[1])))
    for m in COMMENT.finditer(source):
        lines = [line.strip().lstrip("#:").removeprefix(" ") for line in m[0].splitlines()]
        if not _starts_line(source, m.start()):
            del lines[0]
        passages.append((m.start(), "\n".join(lines).strip()))
    return "\n\n".join(text for _, text in sorted(passages) if _is_prose(text)) + "\n"


def _starts_line(source: str, at: int) -> bool:
    return source[source.rfind("\n", 0, at) + 1 : at].strip() in ("", "r")


def _is_prose(text: str) -> bool:
    marks = len(text.encode().translate(None, SENTENCE))
    long_enough = len(text) >= SHORTEST_PASSAGE
    return long_enough and marks <= MARKS * len(text) and not COPYRIGHT.search(text)


def _read(file: File, limit: int) -> bytes:
    path = file.root / file.path
    if not path.is_file():  # a pipe would be waited for
        return b""
    with open(path, "rb") as f:
        data = f.read(LARGEST_SOURCE if file.kind == "docstrings" else limit + 1)
    if file.kind == "docstrings":
        return docstrings_and_comments(data.decode()).encode()
    return data.partition(b"\n\n")[2] if file.kind == "metadata" else data


def read_text(file: File, limit: int) -> str | None:
    """The file's text, cut at a line end where longer than `limit` bytes; None for binary, minified
    or data-like content. Of Python files it may be the prose alone, of metadata the description.
    """
    try:
        data = file.text.encode() or _read(file, limit)
        if len(data) > limit:
            data = data[: data.rfind(b"\n", 0, limit) + 1]
        text = data.decode()
    except (OSError, UnicodeError):
        return None
    digits = sum(map(text.count, "0123456789"))
    is_data = "\0" in text or digits > MOST_DIGITS * len(text)
    is_data |= max(map(len, text.split("\n"))) > LONGEST_LINE
    return None if is_data or len(data) < SMALLEST_FILE else text


def remember(text: str, seen: set[int]) -> bool:
    """Add the document's lines to those `seen`; False, and nothing added, where at least half of
    them were: a copy or near copy (vendored packages, licences, generated code).
    """
    lines = {hash(line) for line in map(str.strip, text.split("\n")) if len(line) >= 20}
    if len(lines) < 3 or len(lines & seen) >= NEAR_DUPLICATE * len(lines):
        return False
    seen |= lines
    return True


def held_out_distributions(
    files: Iterable[File], wanted_bytes: float, limit: int, seed: int
) -> set[str]:
    """Distributions in the order of a seeded hash of their names until they hold `wanted_bytes`,
    none counted for over an eighth.
    """
    size: Counter[str] = Counter()
    for file in files:
        size[file.distribution] += min(file.expected_bytes, limit)
    chosen, total = set(), 0.0
    for name in sorted(size, key=lambda n: _hash(seed, n)):
        if total < wanted_bytes and name != STANDARD_LIBRARY and size[name] <= GIANT:
            chosen.add(name)
            total += min(size[name], wanted_bytes / 8)
    return chosen


def choose(
    files: Iterable[File], budget: dict[str, int], limit: int, seen: set[int], seed: int
) -> list[tuple[File, str]]:
    """Files with their text up to `budget[kind]` bytes, always the next from the distribution that
    gave least so far.

    So large distributions (torch, sympy) fill what the many small ones leave, in equal shares.
    """
    waiting: dict[str, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(files, key=lambda f: _hash(seed, f.path)):
        waiting[file.kind][file.distribution].append(file)
    chosen = []
    for kind, bytes_left in budget.items():
        queues = waiting[kind]
        heap = [(0, name) for name in sorted(queues)]  # sorted, so a heap
        while heap and bytes_left > 0:
            given, name = heapq.heappop(heap)
            file = queues[name].pop()
            text = read_text(file, limit)
            if text is not None and remember(text, seen):
                chosen.append((file, text))
                size = len(text.encode())
                given, bytes_left = given + size, bytes_left - size
            if queues[name]:
                heapq.heappush(heap, (given, name))
    return chosen


def read_installation(
    budget: dict[str, int], heldout_share: float, limit: int, seed: int
) -> list[tuple[File, str, str]]:
    """(file, text, split), shuffled. Held-out files are judged last, so none of them has half of
    its lines in training text.
    """
    files = list(installed_files())
    heldout_budget = {kind: int(1.2 * heldout_share * size) for kind, size in budget.items()}
    heldout = held_out_distributions(files, 2.0 * sum(heldout_budget.values()), limit, seed)
    seen, result = set(), []
    for split, allowed in (("train", budget), ("heldout", heldout_budget)):
        own = [f for f in files if (f.distribution in heldout) == (split == "heldout")]
        result += [(*found, split) for found in choose(own, allowed, limit, seen, seed)]
    random.Random(seed).shuffle(result)
    return result


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
