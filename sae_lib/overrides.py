"""What `--set section.key=value` means: a value put in its place, with a near name offered for one that does not exist."""

import difflib
from contextlib import suppress
from typing import Any

import yaml
from pydantic import BaseModel

from sae_lib.errors import SettingsError


def apply(data: dict[str, Any], override: str, settings: type[BaseModel]) -> None:
    """Write one `section.key=value` into plain `data` for `settings`; `SettingsError` that names what does not exist, and what does."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(
            f"--set {override!r}: expected section.key=value, for example sae.d_sae=8192"
        )
    if key == "profile":
        raise SettingsError(f"--set {override}: a profile is chosen with --profile {text}")
    model = settings
    path = key.split(".")
    for depth, part in enumerate(path):
        if part not in model.model_fields:
            raise SettingsError(
                _unknown(
                    ".".join(path[: depth + 1]),
                    ".".join(path[:depth]),
                    part,
                    list(model.model_fields),
                )
            )
        inner = _section(model.model_fields[part].annotation)
        if inner is None and depth + 1 < len(path):
            raise SettingsError(
                f"{key}: {'.'.join(path[: depth + 1])} is a single value, it has no setting {path[depth + 1]!r}"
            )
        model = inner or model
    if inner is not None:
        if "source" not in inner.model_fields:
            raise SettingsError(
                f"{key} is a section; set one of its values: {', '.join(f'{key}.{f}' for f in inner.model_fields)}"
            )
        path.append("source")
    target = data
    for part in path[:-1]:
        target[part] = dict(target.get(part) or {})
        target = target[part]
    target[path[-1]] = (
        text if path[-1] in ("source", "recipe", "hook_name") else _number_or_yaml(key, text)
    )


def _number_or_yaml(key: str, text: str) -> Any:
    with suppress(ValueError):
        if "e" in text.lower():  # YAML 1.1 reads 1e-4 as text
            return float(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise SettingsError(
            f"{key}: {text!r} is not a number, text or list, for example 8192, 1e-3 or [ward_2024]"
        ) from None


def _section(annotation: Any) -> type[BaseModel] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _unknown(full: str, parent: str, part: str, exist: list[str]) -> str:
    near = difflib.get_close_matches(part, exist, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"setting {full!r} does not exist{hint} {parent or 'the settings'} has: {', '.join(exist)}"
    )
