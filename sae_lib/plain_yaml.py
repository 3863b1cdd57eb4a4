"""YAML as plain data: null, true, false, numbers, text, lists and mappings. No aliases, tags, dates or repeated keys.

Unquoted words mean what they mean in YAML 1.2: 1e-4 is a number, 010 is ten, and 2024-01-01, 1:30 and yes are text.
"""

import re
from typing import Any

import yaml

LONGEST = 200_000  # characters
WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)([eE][-+]?[0-9]+)?")


class _Loader(yaml.BaseLoader):
    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ValueError("anchors (&name) and aliases (*name) are not supported")
        if event.tag is not None:
            raise ValueError("tags (!name) are not supported")
        return super().compose_node(parent, index)


def parse(text: str) -> Any:
    """The value of a YAML text; `ValueError` that says in one line what is wrong with it."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters are too long; at most {LONGEST:,} are read")
    try:
        text.encode()
        return _value(_Loader(text).get_single_node())
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: half a surrogate pair") from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except yaml.YAMLError as error:
        parts = [getattr(error, name, None) for name in ("context", "problem", "reason")]
        raise ValueError(f"not valid YAML ({' '.join(filter(None, parts))})") from None


def _value(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        data = {}
        for key, value in ((_value(k), v) for k, v in node.value):
            if not isinstance(key, str) or key in data:
                raise ValueError(f"key {str(key)[:40]!r} is repeated, or is not text")
            data[key] = _value(value)
        return data
    if node is None:
        return None
    node.value.encode()  # "\\ud800" spells what is no character
    return _word(node.value) if node.style is None else node.value


def _word(word: str) -> Any:
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    if WHOLE.fullmatch(word):
        if len(word) > 100:
            raise ValueError(f"a whole number of {len(word):,} digits is too long")
        return int(word)
    return float(word) if NUMBER.fullmatch(word) else word
