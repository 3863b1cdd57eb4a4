"""README and docs: links resolve, and the commands that they name exist."""

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from suite.__main__ import app
from suite.report import check

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.name != "report.pdf":  # published with the report
            assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    text, known = page.read_text(), get_command(app).commands
    for line in re.findall(r"(?:-m suite|`suite) ([^`\n|]+)", text):
        words = line.split("#")[0].split()
        if words[0] not in known:
            assert words[0].startswith("-"), line
            continue
        options = {o for p in known[words[0]].params for o in p.opts + p.secondary_opts}
        used = {w.split("=")[0] for w in words if w.startswith("--")}
        assert used <= options | {"--help"}, line
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"`(?:PYTHON=\S+ )?make ([\w-]+)", text)) <= targets


def test_the_readme_begins_with_one_screen():
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert len(first.splitlines()) < 45
    for needed in ("make run", "make test", "docs/page.png", "report/figures/", "minutes"):
        assert needed in first


def test_the_citation_names_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert cited["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


def test_every_line_of_the_committed_report_follows_from_its_results():
    assert check.check(ROOT) > 500
