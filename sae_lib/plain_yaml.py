"""YAML as plain data: null, true, false, numbers, text, lists and mappings; no aliases, tags, dates
or repeated keys. Unquoted words mean what they mean in YAML 1.2: 1e-4 is a number, 010 is ten, and
2024-01-01, 1:30 and yes are text.
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

    def construct_mapping(self, node, deep=False):
        data = {}
        for key, value in node.value:
            name = self.construct_object(key)
            if not isinstance(name, str) or name in data:
                raise ValueError(f"key {str(name)[:40]!r} is repeated, or is not text")
            data[name] = self.construct_object(value)
        return data

    def construct_scalar(self, node):
        node.value.encode()  # "\\ud800" spells what is no character
        word = node.value
        if node.style is not None:
            return word
        if word.lower() in WORDS:
            return WORDS[word.lower()]
        if WHOLE.fullmatch(word):
            if len(word) > 100:
                raise ValueError(f"a whole number of {len(word):,} digits is too long")
            return int(word)
        return float(word) if NUMBER.fullmatch(word) else word


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; `ValueError` that says in one line what is wrong with it."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters are too long; at most {LONGEST:,} are read")
    try:
        text.encode()
        return yaml.load(text, _Loader)
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: half a surrogate pair") from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except yaml.YAMLError as error:
        parts = [getattr(error, name, None) for name in ("context", "problem", "reason")]
        raise ValueError(f"not valid YAML ({' '.join(filter(None, parts))})") from None
