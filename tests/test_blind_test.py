"""The blind test of names, with readers whose answers are planted."""

import json
import re

import pytest

from sae_lib.errors import UserError
from suite import blind_test

SEED = 5


def answer(folder, name: str, answers: list) -> None:
    (folder / f"{name}.yaml").write_text("".join(f"- {of}\n" for of in answers))


def sheets(text: str) -> list[list[str]]:
    """The examples of each unit."""
    parts = re.split(r"(?m)^## ", text.partition("## The names")[0])[1:]
    return [re.findall(r"(?m)^- .*$", part) for part in parts]


def test_readers_who_know_are_right_and_guessers_are_not(small_run, tmp_path):
    units = blind_test._units(small_run, SEED)
    known = {u["item"]: f"{u['kind']} {u['number']}" for u in units}
    assert "names.md" in blind_test.proceed(small_run, tmp_path, "nobody", SEED)
    first = sheets((tmp_path / "names.md").read_text())
    assert len(first) == len(units) and {u["kind"] for u in units} == set(blind_test.KINDS)
    unnamed = units[0]["item"]
    answer(tmp_path, "names", (known | {unnamed: "None"}).values())

    said = blind_test.proceed(small_run, tmp_path, "nobody", SEED)
    assert "match_range.md" in said and "match_strong.md" in said
    text = (tmp_path / "match_strong.md").read_text()
    names = re.findall(r"(?m)^\d+\\?\. (.*)$", text.partition("## The names")[2])
    assert len(names) == len(units) - 1 and known[unnamed] not in names
    for unit, examples in zip(shown_of(small_run, unnamed), sheets(text), strict=True):
        assert examples != first[unit["item"] - 1]  # what the first has not seen

    right = [known[u["item"]] for u in shown_of(small_run, unnamed)]
    numbers = [names.index(name) + 1 for name in right]
    answer(tmp_path, "match_strong", numbers)
    answer(tmp_path, "match_range", numbers[1:] + numbers[:1])
    assert "match_weak.md" in blind_test.proceed(small_run, tmp_path, "nobody", SEED)
    answer(tmp_path, "match_weak", numbers)
    blind_test.proceed(small_run, tmp_path, "a test", SEED)
    path = small_run.results_folder / "study_blind.json"
    found = json.loads(path.read_text())
    path.unlink()  # the run is other tests' too
    for kind, of in found["kinds"].items():
        missing = kind == units[0]["kind"]
        assert of["named"] == of["drawn"] - missing == of["strong"]["right"]
        assert of["range"]["right"] == 0 and of["range"]["p"] == 1
        assert of["strong"]["p"] < 0.001 and of["strong"]["expected"] == pytest.approx(0.5, abs=0.1)
    assert found["by"] == "a test"


def shown_of(run, unnamed: int) -> list[dict]:
    """The units in the order of the second sheets."""
    import numpy as np

    units = blind_test._units(run, SEED)
    named = sorted(u["item"] for u in units if u["item"] != unnamed)
    return [units[i - 1] for i in np.random.default_rng((SEED, 1)).permutation(named)]


@pytest.mark.parametrize("bad", ["a: 1", "[a, b]", "{", "- a"])
def test_an_incomplete_answer_is_named(small_run, tmp_path, bad):
    (tmp_path / "names.yaml").write_text(bad)
    with pytest.raises(UserError, match=r"names\.yaml"):
        blind_test.proceed(small_run, tmp_path, "nobody", SEED)


def test_a_match_is_the_number_of_a_name(small_run, tmp_path):
    units = blind_test._units(small_run, SEED)
    answer(tmp_path, "names", ["a"] * len(units))
    for wrong in (0, len(units) + 1, "true", "one"):
        answer(tmp_path, "match_range", [wrong] * len(units))
        with pytest.raises(UserError, match=r"match_range\.yaml is no list .* numbers of names"):
            blind_test.proceed(small_run, tmp_path, "nobody", SEED)
