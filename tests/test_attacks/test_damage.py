"""A changed byte anywhere in a run folder is refused by name, by every command that reads it."""

import pytest

from tests.test_attacks.attack import assert_refused
from tests.test_attacks.conftest import arguments

CLAMP = "clamp word --feature 0 --value 1 --new-tokens 0"
SAE, LM = "saes/bricken_2023/sae_weights.safetensors", "language_model/model.safetensors"
TABLE = "features/bricken_2023/features.parquet"
CASES = [
    ("report", "results/evaluation.json"),
    ("report", "results/clusters.json"),
    ("stage evaluate", "results/evaluation.json"),
    ("stage evaluate", SAE),
    ("stage sae", LM),
    ("stage sae", SAE),
    ("stage corpus", "tokens/train.npy"),
    ("stage corpus", "tokens/made_from.json"),
    ("stage features", TABLE),
    ("stage score", "interpretability/bricken_2023/scores.parquet"),
    ("stage clusters", "clusters/bricken_2023/clusters.parquet"),
    ("stage corpus", "settings.yaml"),
    ("browser", TABLE),
    ("browser", SAE),
    ("browser", LM),
    ("browser", "interpretability/bricken_2023/scores.parquet"),
    (CLAMP, SAE),
    (CLAMP, LM),
    (CLAMP, TABLE),
    (CLAMP, "tokens/tokenizer/tokenizer.json"),
]


def flip(path) -> None:
    """One bit of the last digit (in text: another digit), or of the byte in the middle."""
    data = bytearray(path.read_bytes())
    text = path.suffix in (".json", ".yaml")
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()] if text else []
    data[places[-1] if places else len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("command", "file"), CASES, ids=[f"{c[:14]} {f}" for c, f in CASES])
def test_a_flipped_byte_is_refused_by_name(command, file, copied, text_folder):
    flip(copied / file)
    if file == "language_model/model.safetensors" and command == "stage sae":
        (copied / "saes").rename(copied / ".gone")  # a finished autoencoder needs no model
    names = str(copied) if file in ("settings.yaml", "tokens/made_from.json") else file
    assert_refused(arguments(command, copied, text_folder), copied.parent, names)


def test_a_flipped_byte_is_not_exported(copied):
    flip(copied / SAE)
    folder = str((copied / SAE).parent)
    assert_refused(["export", folder, str(copied.parent / "out")], copied.parent, SAE)


@pytest.mark.parametrize(
    "file", ["settings.yaml", "tokens/made_from.json", "results/clusters.json"]
)
@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00", "[" * 100_000, "{a: {}}"])
def test_another_shape_is_refused_by_name(content, file, copied, text_folder):
    (copied / file).write_text(content)
    assert_refused(arguments("report", copied, text_folder), copied.parent, str(copied)) if (
        file != "tokens/made_from.json"
    ) else assert_refused(arguments("stage corpus", copied, text_folder), copied.parent, "tokens")


def test_an_alias_bomb_is_refused(copied, text_folder):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (copied / "settings.yaml").write_text("\n".join(lines))
    assert_refused(arguments("stage corpus", copied, text_folder), copied.parent, "settings.yaml")
