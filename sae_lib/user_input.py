"""What a user writes: YAML as plain data, and `section.key=value` overrides of settings; every
mistake is named.
"""

import difflib
import re
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sae_lib.errors import SettingsError, shown

# --- YAML: null, true, false, numbers, text, lists and mappings; no aliases, tags, dates or
# repeated keys. Unquoted words mean what they mean in YAML 1.2: 1e-4 is a number, 010 is ten, and
# 2024-01-01, 1:30 and yes are text.

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


# --- overrides

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def apply(model: type[BaseModel], data: dict[str, Any], override: str) -> None:
    """Write one `section.key=value` into plain `data` for a `model` of settings; `SettingsError`
    that names what does not exist, and what does.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(
            f"--set {shown(override)}: expected section.key=value, for example sae.d_sae=8192"
        )
    if key == "profile":
        raise SettingsError(
            f"--set profile={shown(text)}: choose a profile with --profile, for example "
            "--profile smoke"
        )
    path, kind = _find(model, key)
    target = data
    for part in path[:-1]:
        target[part] = dict(target.get(part) or {})
        target = target[part]
    is_text = kind is str or kind == str | None and text != "null"
    target[path[-1]] = _text(key, text) if is_text else value(key, text)


def value(name: str, text: str) -> Any:
    """The plain value of a `name=text` of the command line; `SettingsError` that names it."""
    try:
        if not text:
            raise ValueError("no value")
        return parse_yaml(text)
    except ValueError as error:
        raise SettingsError(
            f"{name}: found {shown(text)} ({error}); expected a number, text or list, for example "
            "8192, 1e-3 or [ward_2024]"
        ) from None


def _text(name: str, text: str) -> str:
    """Text as it was given; a control character or a lone surrogate in it is refused, since no
    file, model or device has one.
    """
    if not text or CONTROL.search(text) or any("\ud800" <= c <= "\udfff" for c in text):
        raise SettingsError(
            f"{name}: found {shown(text)}; expected text without control characters, in UTF-8"
        )
    return text


def _find(model: type[BaseModel], key: str) -> tuple[list[str], Any]:
    """The path to the setting that a key names, and the type of that setting."""
    path = key.split(".")
    for depth, part in enumerate(path):
        parent = ".".join(path[:depth])
        if model is None:
            raise SettingsError(
                f"{shown(key)}: {parent} is a single value, it has no setting {shown(part)}"
            )
        if part not in model.model_fields:
            exist = list(model.model_fields)
            near = difflib.get_close_matches(part[:100], exist, 1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            has = f"{parent} has" if parent else "the settings have"
            raise SettingsError(
                f"setting {shown('.'.join(path[: depth + 1]))} does not exist{hint} "
                f"{has}: {', '.join(exist)}"
            )
        kind = model.model_fields[part].annotation
        model = _section(kind)
    if model is None:
        return path, kind
    if "source" not in model.model_fields:
        values = ", ".join(f"{key}.{field}" for field in model.model_fields)
        raise SettingsError(f"{key} is a section; set one of its values: {values}")
    return [*path, "source"], str


def _section(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def first_problem(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that pydantic found wrong with the data."""
    found = error.errors(include_url=False)[0]
    name = ".".join(map(str, found["loc"]))[:100]
    if found["type"] == "value_error":
        return f"{name}: {found['ctx']['error']}".removeprefix(": ")
    if found["type"] == "extra_forbidden":
        _find(model, name)  # says which settings there are
    expected = found["msg"].partition("should ")[2].replace("tuple", "list")
    return f"{name}: found {shown(found['input'])}; it should {expected or 'not be there'}"
