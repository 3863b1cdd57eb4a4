"""The direction of imports: `sae_lib` measures and knows no run folder, and no module imports
another in a circle.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
DEEPEST = 11
TALLEST = {"sae_lib/sae/training.py fit": 60}  # the loop that people read first; all others: 50


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    graph = grimp.build_graph("sae_lib", "suite", cache_dir=None)
    return {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_finds_nothing(command):
    """Layout, lines of at most 100 characters, functions of at most seven parameters."""
    given = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]


def test_imports_go_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]


def test_no_import_leads_back(imports):
    found, above = set(), []

    def visit(module: str) -> None:
        assert module not in above, " imports ".join([*above, module])
        if module not in found:
            above.append(module)
            for other in imports[module]:
                visit(other)
            above.pop()
            found.add(module)

    for module in imports:
        visit(module)


def test_the_tower_of_imports_is_low(imports):
    @cache
    def level(module: str) -> int:
        return 1 + max((level(other) for other in imports[module]), default=0)

    levels = {module: level(module) for module in imports}
    assert max(levels.values()) <= DEEPEST, sorted(levels.items(), key=lambda x: -x[1])[:5]


def test_functions_are_short():
    for path in sorted(p for folder in ("sae_lib", "suite") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                name = f"{path.relative_to(ROOT)} {node.name}"
                height = node.end_lineno - node.lineno + 1
                assert height <= TALLEST.get(name, 50), f"{name} has {height} lines"
