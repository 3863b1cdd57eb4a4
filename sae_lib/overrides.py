"""What `--set section.key=value` means: a value for one setting; a name that does not exist is refused with those that do."""

import re
from typing import Any, get_args

from pydantic import BaseModel

from sae_lib import plain_yaml
from sae_lib.errors import SettingsError
from sae_lib.settings_errors import shown, unknown

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def apply(data: dict[str, Any], override: str, settings: type[BaseModel]) -> None:
    """Write one `section.key=value` into plain `data` for `settings`; `SettingsError` that names what does not exist, and what does."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(
            f"--set {shown(override)}: expected section.key=value, for example sae.d_sae=8192"
        )
    if key == "profile":
        raise SettingsError(
            f"--set profile={shown(text)}: choose a profile with --profile, for example --profile smoke"
        )
    path, kind = _find(key, settings)
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
        return plain_yaml.parse(text)
    except ValueError as error:
        raise SettingsError(
            f"{name}: found {shown(text)} ({error}); expected a number, text or list, for example 8192, 1e-3 or [ward_2024]"
        ) from None


def _text(name: str, text: str) -> str:
    """Text as it was given; a control character or a lone surrogate in it is refused, since no file, model or device has one."""
    if not text or CONTROL.search(text) or any("\ud800" <= c <= "\udfff" for c in text):
        raise SettingsError(
            f"{name}: found {shown(text)}; expected text without control characters, in UTF-8"
        )
    return text


def _find(key: str, settings: type[BaseModel]) -> tuple[list[str], Any]:
    """The path to the setting that a key names, and the type of that setting."""
    model, path = settings, key.split(".")
    for depth, part in enumerate(path):
        parent = ".".join(path[:depth])
        if model is None:
            raise SettingsError(
                f"{shown(key)}: {parent} is a single value, it has no setting {shown(part)}"
            )
        if part not in model.model_fields:
            full = ".".join(path[: depth + 1])
            raise SettingsError(unknown(full, parent, list(model.model_fields)))
        kind = model.model_fields[part].annotation
        model = _section(kind)
    if model is None:
        return path, kind
    if "source" not in model.model_fields:
        raise SettingsError(
            f"{key} is a section; set one of its values: {', '.join(f'{key}.{f}' for f in model.model_fields)}"
        )
    return [*path, "source"], str


def _section(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
