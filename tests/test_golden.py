"""Golden values: a tiny run whose tokens, weights and results must not change unless somebody means
to change them.

Tokens are compared by their hashes on every machine. On a machine that recorded its values, weights
are compared bit for bit and results to six digits; on any other, results must be near the recorded
ones. To record this machine's values on purpose:

    python -m tests.test_golden
"""

import hashlib
import json
import os
import random
import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from suite import stages

FILE = Path(__file__).with_name("golden.json")
RECIPES = "bricken_2023 ward_2024 april_2024 topk batchtopk jumprelu tied".split()
MEASURES = "l0_mean fvu dead_share density_median ce_clean ce_spliced ce_zero kl".split()
OVERRIDES = [
    "corpus.train_tokens=24000",
    "corpus.heldout_tokens=4000",
    "tokenizer.vocab_size=320",
    "lm.train_tokens=60000",
    "lm.precision=float32",
    "sae.d_sae=128",
    "sae.activations=24000",
    "sae.batch=256",
    "sae.l1=8",
    "sae.dead_window=2000",
    "sae.resampling_inputs=4096",
    f"sae.compare={json.dumps(RECIPES[1:])}",
    "sae.widths=[]",
    "evaluation.tokens=4000",
    "evaluation.loss_tokens=4000",
]


def machine() -> str:
    """What the last bits of a sum depend on besides the code: torch, the processor, and the
    instructions that it may use.
    """
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    cpu = re.findall(r"(?m)^(?:vendor_id|cpu family|model|model name)\s*: (.*)$", cpuinfo)[:4]
    limits = [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join(filter(None, [f"torch {torch.__version__}", *cpu, capability, *limits]))


def write_texts(folder: Path) -> None:
    """Forty documents of code-like text, the same on every machine."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(60)]
    forms = ["def {}({}):\n", "    return {}.{}\n", "    {} = [{}, 1]\n", "import {} as {}\n"]
    folder.mkdir()
    for i in range(40):
        lines = [draw.choice(forms).format(*draw.choices(words, k=2)) for _ in range(160)]
        (folder / f"{i}.py").write_text("".join(lines), encoding="utf-8")


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def weights_of(folder: Path) -> str:
    tensors = load_file(next(folder.glob("*.safetensors")))
    return sha256(*(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)))


def measured(folder: Path) -> dict[str, dict]:
    """Trains the tiny run on one thread: hashes of its tokens and weights, and what evaluation
    finds.
    """

    write_texts(folder / "text")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = stages.open_run(
            "smoke", folder / "run", [f"corpus=files:{folder / 'text'}", *OVERRIDES]
        )
        results = run.results("evaluation")
    finally:
        torch.set_num_threads(threads)
    tokens, events = run.get("tokens"), run.summary("autoencoder")["resampling"]
    weights = {name: weights_of(run.folder / "saes" / name) for name in RECIPES}
    heldout = {name: {m: round(results[name][m], 6) for m in MEASURES} for name in RECIPES}
    return {
        "tokens": {s: sha256(getattr(tokens, s).tobytes()) for s in ("train", "heldout")},
        "weights": {"language_model": weights_of(run.folder / "language_model")} | weights,
        "results": heldout | {"resampled": {str(e["step"]): e["resampled"] for e in events}},
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text())


def test_tokens_are_the_recorded_ones_on_every_machine(found, golden):
    for name, recorded in golden.items():
        assert found["tokens"] == recorded["tokens"], name


def test_weights_and_results_are_the_recorded_ones(found, golden):
    if machine() not in golden:
        pytest.skip(f"no values recorded on {machine()!r}; to do so: python -m tests.test_golden")
    assert found == golden[machine()], "if this was meant to change: python -m tests.test_golden"


def test_results_are_near_those_of_every_machine(found, golden):
    assert sum(found["results"]["resampled"].values()) > 0, "the tiny run resamples nothing"
    for machine_name, recorded in golden.items():
        for name in RECIPES:
            expected = pytest.approx(recorded["results"][name], rel=0.05, abs=0.01)
            assert found["results"][name] == expected, (machine_name, name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
        recorded[machine()] = measured(Path(scratch))
    FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"recorded in {FILE}: {machine()}")
