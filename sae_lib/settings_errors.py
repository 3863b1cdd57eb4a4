"""What is wrong with a setting, in one line of plain English: its name, what was found, and what is expected."""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a section (name: value)",
    "null": "null",
}
LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def shown(found: Any) -> str:
    """A value in at most 60 characters of one line, so that no message is long and no secret is shown whole."""
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown(full: str, parent: str, exist: list[str]) -> str:
    """That a setting does not exist, with a similar name and all that do."""
    near = difflib.get_close_matches(full.rpartition(".")[2][:100], exist, 1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    has = f"{parent} has" if parent else "the settings have"
    return f"setting {shown(full)} does not exist{hint} {has}: {', '.join(exist)}"


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that pydantic found wrong with the data of `model`."""
    found = error.errors(include_url=False)[0]
    *parents, last = found["loc"] or ("",)
    parent, name = ".".join(map(str, parents)), ".".join(map(str, found["loc"]))[:100]
    if found["type"] == "value_error":
        return f"{name}: {found['ctx']['error']}" if name else str(found["ctx"]["error"])
    schema = model.model_json_schema()
    if found["type"] == "extra_forbidden":
        return unknown(name, parent, list(_at(schema, schema, parents)["properties"]))
    return f"{name}: found {shown(found['input'])}; expected {_expected(_at(schema, schema, found['loc']))}"


def _at(node: dict, root: dict, path: Any) -> dict:
    """The part of a JSON schema that describes the value at `path`."""
    for option in (node, *node.get("anyOf", ())):
        if reference := option.get("$ref"):
            return _at(root["$defs"][reference.rpartition("/")[2]], root, path)
    if not path:
        return node
    options = [node, *node.get("anyOf", ())]
    for inner in options:
        below = inner.get("properties", {}).get(path[0]) or inner.get("items")
        below = below or inner.get("additionalProperties")
        if isinstance(below, dict):
            return _at(below, root, path[1:])
    return node


def _expected(schema: dict) -> str:
    if options := schema.get("anyOf"):
        return ", or ".join(_expected(option) for option in options)
    if "enum" in schema or "const" in schema:
        return f"one of {', '.join(map(str, schema.get('enum') or [schema['const']]))}"
    text = KINDS[schema["type"]]
    if "maxLength" in schema:
        text += f" of at most {schema['maxLength']:,} characters"
    if "items" in schema:
        text += (
            f" of {schema.get('minItems', 0)} to {schema['maxItems']:,}"
            if "maxItems" in schema
            else ""
        )
        return f"{text}, each {_expected(schema['items'])}"
    limits = [f"{words} {schema[key]:,}" for key, words in LIMITS.items() if key in schema]
    return " ".join([text, " and ".join(limits)]).strip()
