"""Commands, options and arguments that cannot be meant: refused before a model is loaded."""

import subprocess
import sys

import pytest

from tests import ROOT
from tests.test_attacks.attack import assert_refused

USAGE = [
    (["frobnicate"], "frobnicate"),
    (["stage"], "Missing argument"),
    (["stage", "nothing"], "'nothing'"),
    (["stage", "corpus", "lm"], "lm"),
    (["stage", "corpus", "--frob"], "--frob"),
    (["stage", "corpus", "--set"], "--set"),
    (["stage", "corpus", "--set", "sae.l1=2", "x" * 5000], "xxx"),
    (["study", "nothing"], "'nothing'"),
    (["export"], "Missing argument"),
    (["export", "a"], "Missing argument"),
    (["doctor", "--profile", "../x"], "'../x'"),
    (["run", "--only", "99"], "99"),
    (["run", "--only", "x"], "--only x"),
    (["run", "--only", "03,,99"], "99"),
    (["run", "--only", "\ud800"], "--only"),
]

SWEEPS = [
    ([], "no setting has several values"),
    (["sae.l1=1"], "no setting has several values"),
    (["sae.l1=,"], "'sae.l1=,'"),
    (["sae.l1=1,,2"], "'sae.l1=1,,2'"),
    (["sae.l1=1,2,"], "'sae.l1=1,2,'"),
    (["sae.l1=1,1"], "'sae.l1=1,1'"),
    (["sae.l1=1,2", "sae.l1=3,4"], "'sae.l1=3,4'"),
    (["sae.l1=1,x"], "sae.l1: found 'x'"),
    (["sae.l1=1,nan"], "sae.l1: found 'nan'"),
    (["sae.seed=0,-1"], "sae.seed: found -1"),
    (["sae.nothing=1,2"], "sae.nothing"),
    (["sae.recipe=topk,no_such"], "sae.recipe: 'no_such'"),
    (["sae.d_sae=8,1000000000"], "sae.d_sae: found 1000000000"),
    (["lm.lr=1e-3,1e-4"], "no setting has several values"),
    (["lm.lr=1e-3,1e-4", "sae.l1=1,2"], "lm.lr: found '1e-3,1e-4'"),
    (["sae.k=4,8", "sae.recipe=topk,batchtopk", "sae.d_sae=2,64"], "sae.k: 4 active"),
    ([f"sae.{n}={','.join(map(str, range(1, 1001)))}" for n in ("seed", "k")], "1,000,000 points"),
    (["sae=1,2"], "no setting has several values"),
    (["sae.=1,2"], "sae."),
]

ONE = ["--feature", "1", "--value", "1"]
CLAMPS = [
    (["--feature", "1", "--value", "nan", "x"], "--value"),
    (["--feature", "1", "--value", "inf", "x"], "--value"),
    (["--feature", "1", "--value", "1e300", "x"], "--value"),
    (["--feature", "1", "--value", "-1e300", "x"], "--value"),
    (["--feature", "1", "--value", "x", "x"], "--value"),
    (["--feature", "-1", "--value", "1", "x"], "--feature"),
    (["--feature", "x", "--value", "1", "x"], "--feature"),
    (["--feature", "1.5", "--value", "1", "x"], "--feature"),
    (["--value", "1", "x"], "--feature"),
    (["--feature", "1", "x"], "--value"),
    (["--feature", "1", "--feature", "1", "--value", "1", "x"], "feature 1 is clamped twice"),
    (["--feature", "1", *ONE[2:], "--value", "2", "x"], "found 2"),
    (["--feature", "1", "--feature", "2", *["--value", "1"] * 3, "x"], "found 3"),
    ([*ONE, "--how", "ablate", "x"], "takes no value"),
    ([*ONE, "--how", "push", "x"], "--how"),
    ([*ONE, "--position", "x", "x"], "--position"),
    ([*ONE, "--temperature", "inf", "x"], "--temperature"),
    ([*ONE, "--temperature", "nan", "x"], "--temperature"),
    ([*ONE, "--temperature", "-1", "x"], "--temperature"),
    ([*ONE, "--temperature", "1e300", "x"], "--temperature"),
    ([*ONE, "--new-tokens", "-1", "x"], "--new-tokens"),
    ([*ONE, "--new-tokens", "1000000000", "x"], "--new-tokens"),
    ([*ONE, "--seed", "-1", "x"], "--seed"),
    ([*ONE, "--seed", str(2**63), "x"], "--seed"),
    ([*ONE, "--seed", "9" * 5000, "x"], "--seed"),
    ([*ONE, ""], "the prompt has 0 characters"),
    ([*ONE, "x" * 1_000_001], "the prompt has 1,000,001 characters"),
    ([*ONE, "\ud800"], "the prompt '\\ud800'"),
    ([*ONE], "prompt"),
    ([*ONE, "x", "y"], "y"),
]
WHYS = [
    (["--feature", "-1", "x"], "--feature"),
    (["--feature", "x", "x"], "--feature"),
    (["x"], "--feature"),
    (["--feature", "1", "--position", "x", "x"], "--position"),
    (["--feature", "1", ""], "the prompt has 0 characters"),
    (["--feature", "1"], "text"),
]

ALL = [
    (["sweep", "--profile", "smoke", *[p for o in sets for p in ("--set", o)]], names)
    for sets, names in SWEEPS
]
ALL += [(["clamp", "--profile", "smoke", *given], names) for given, names in CLAMPS]
ALL += [(["why", "--profile", "smoke", *given], names) for given, names in WHYS]


@pytest.mark.parametrize(
    ("arguments", "names"),
    USAGE + ALL,
    ids=[f"{i}-{' '.join(a)[-40:]!r}" for i, (a, _) in enumerate(USAGE + ALL)],
)
def test_a_command_is_refused(arguments, names, tmp_path):
    assert_refused(arguments, tmp_path, names)


LIGHT = """
import sys
from suite.__main__ import main
try:
    main()
except SystemExit as ended:
    print(ended.code, *sorted({"torch", "pandas", "papermill", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["stage", "corpus", "--set", "sae.d_say=1"],
        ["run", "--set", "sae.d_sae=-1"],
        ["clamp", "--feature", "1", "--value", "nan", "x"],
    ],
)
def test_a_mistake_is_told_before_slow_imports(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout == "2\n", done.stdout + done.stderr
