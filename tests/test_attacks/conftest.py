"""One finished run, as small as the settings allow, that many tests copy and then damage."""

import contextlib
import io
import shutil

import pytest

from tests.test_attacks.attack import run_command

TINY = [
    "corpus.train_tokens=60000",
    "corpus.heldout_tokens=20000",
    "tokenizer.vocab_size=400",
    "tokenizer.train_bytes=100000",
    "lm.train_tokens=20000",
    "lm.checkpoint_every=2",
    "sae.activations=20000",
    "sae.d_sae=32",
    "sae.checkpoint_every=4",
    "sae.resampling_inputs=2048",
    "sae.compare=[]",
    "sae.widths=[]",
    "evaluation.tokens=4096",
    "evaluation.loss_tokens=512",
    "interpretability.tokens=8000",
    "interpretability.units=8",
    "interpretability.features=16",
    "interpretability.untrained=false",
    "interpretability.clusters=3",
]
STAGES = ("corpus", "lm", "sae", "evaluate", "features", "score", "clusters", "report")


def arguments(command: str, folder, text_folder, *more: str) -> list[str]:
    """A command on the tiny run's settings."""
    sets = [part for o in [f"corpus=files:{text_folder}", *TINY] for part in ("--set", o)]
    return [*command.split(), "--profile", "smoke", "--run", str(folder), *sets, *more]


@pytest.fixture(scope="session")
def finished(text_folder, tmp_path_factory):
    """The folder of a run whose stages are all made."""
    folder = tmp_path_factory.mktemp("attacked") / "finished"
    for stage in ("evaluate", "features", "clusters", "report"):
        with contextlib.redirect_stderr(io.StringIO()):
            done = run_command(arguments(f"stage {stage}", folder, text_folder), folder.parent)
        assert done.status == 0, done.err
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, alone in its folder, so that nothing is taken over from a run beside it."""
    shutil.copytree(finished, tmp_path / "alone" / "run")
    return tmp_path / "alone" / "run"
