"""Shared fixtures: jaxtyping's shapes are checked at run time, and one small trained run serves
many tests.
"""

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the import hook looks it up as an attribute)
from suite import stages

install_import_hook(["sae_lib", "suite"], "tests.typecheck.check")

SHARED = (
    Path(__file__).resolve().parents[2] / "shared"
)  # development data; tests that need it are skipped where it is absent

SMALL_RUN = pytest.StashKey()

# two workers share the cores: rules are learned in this process, and not in two further ones that
# each import the library first
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

# These drive other programs: Chromium, JupyterLab, kernels, torchrun, processes that are killed.
# When the system ends one of those, a second attempt decides; the summary lists every first one.
SECOND_ATTEMPT = {
    "test_browser",
    "test_concurrency",
    "test_distributed",
    "test_headless",
    "test_kill",
    "test_lab",
    "test_setup",
    "test_single_file",
}


# The files that take longest, which workers begin with: else one works on the last of them while
# the other has nothing left to do.
LONGEST = (
    "test_pipeline",
    "test_escaping",
    "test_kill",
    "test_distributed",
    "test_single_file",
    "test_report",
    "test_deviations",
    "test_lab",
    "test_browser",
    "test_headless",
    "test_studies",
    "test_explain",
    "test_faults",
    "test_concurrency",
    "test_gpu",
    "test_one_page",
    "test_sanity",
    "test_transcoder",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # by number of tests, which says nothing of their time


def pytest_collection_modifyitems(items):
    rank = {stem: i for i, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))  # else as they were
    for item in items:
        if item.path.stem in SECOND_ATTEMPT:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """A few hundred real documents: modules of the standard library, one file each."""
    folder = tmp_path_factory.mktemp("text")
    stdlib = Path(sys.modules["os"].__file__).parent
    files = sorted(
        p
        for name in ("json", "email", "http", "xml", "unittest", "asyncio", "logging")
        for p in (stdlib / name).rglob("*.py")
    )
    for i, path in enumerate(p for p in files if p.stat().st_size > 500):
        (folder / f"{i:03d}_{path.stem}.py").write_text(
            path.read_text(encoding="utf-8")[:20_000], encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="session")
def small_overrides(text_folder) -> list[str]:
    return [
        f"corpus=files:{text_folder}",
        "corpus.train_tokens=150000",
        "corpus.heldout_tokens=20000",
        "lm.train_tokens=100000",
        "sae.activations=40000",
        "sae.resampling_inputs=8192",
        "sae.compare=[]",
        "sae.widths=[]",
        "evaluation.tokens=8192",
        "evaluation.loss_tokens=2048",
    ]


@pytest.fixture(scope="session")
def small_run(small_overrides, tmp_path_factory, request):
    """A `smoke` run on those files with everything trained once: tokens, language model,
    autoencoder.
    """

    run = stages.open_run("smoke", tmp_path_factory.mktemp("runs") / "small", small_overrides)
    run.path("autoencoder")
    request.session.stash[SMALL_RUN] = run
    return run


@pytest.fixture(scope="module", autouse=True)
def _fresh_objects(request):
    """What one module's tests did to a loaded model or autoencoder does not reach the next
    module.
    """
    yield
    run = request.session.stash.get(SMALL_RUN, None)
    if run is not None:
        run._loaded.clear()


@pytest.fixture(scope="module")
def hook(small_run):

    return stages.hook(small_run)


@pytest.fixture(scope="session")
def chromium():
    """Headless Chromium. Tests that need it fail where it is absent: what a reader sees is not
    left untested.
    """
    from choreographer.browsers.chromium import Chromium
    from playwright.sync_api import sync_playwright

    found = Chromium.find_browser(skip_local=False)
    assert found, (
        "no Chromium found, and these tests look at pages in one; to fix it: scripts/chromium.sh "
        "--download, or apt-get install chromium"
    )
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A tab in which nothing is asked of a network, nothing fails, nothing is refused by the
    page's policy.
    """
    tab, wrong = chromium.new_page(viewport={"width": 1280, "height": 900}), []
    quiet = ("file:", "about:", "blob:")
    tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(quiet) else None)
    tab.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    yield tab
    assert wrong == []
    tab.close()


def pytest_terminal_summary(terminalreporter):
    """Why a test had a second attempt: a cause that nobody sees is not removed."""
    for report in terminalreporter.stats.get("rerun", []):
        said = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        terminalreporter.write_line(f"second attempt of {report.nodeid}: {' '.join(said[:3])}")
