"""Stheno's path at its true shape, without a GPU and with random weights:

    python -m benchmarks.rehearsal write|train|resume|evaluate [--folder F] [--tiny]

Each call is a process of its own, so that its peak of memory is its own too, and adds its part to
`rehearsal.json` in the folder. `write` makes Llama-3-8B's architecture with random weights (16 GB
in bfloat16) as sharded safetensors, one layer after the other; the others go through the stages of
notebook 05: `train` harvests the last MLP and is killed after its first checkpoint, `resume` goes
on from it, `evaluate` measures. `--tiny` is the same in miniature, which a test does. Only the
tokens are few: 2048 to train on, and of them 512 for the scale and 256 for the median norm.
"""

import argparse
import json
import re
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import processors

from benchmarks import memory
from sae_lib import checkpoints
from sae_lib.features import evaluation
from sae_lib.model import activations
from sae_lib.sae import initialise
from sae_lib.text.tokenizer import END, train_tokenizer
from suite import memory_plan, stages
from suite.report.machine import machine
from suite.runs import Run

LLAMA_3_8B = transformers.LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_theta=500_000.0,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
TINY = transformers.LlamaConfig(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
SPREAD = 0.02  # standard deviation of the weights


class Killed(Exception):
    pass


def write_model(config: transformers.LlamaConfig, folder: Path) -> dict[str, float]:
    """The model's folder as the hub has it; no more than one layer is in memory."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shards: dict[str, dict[str, torch.Size]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        layer = re.search(r"layers\.(\d+)\.", name)
        shards[f"layer{layer[1]}" if layer else name.replace(".", "-")][name] = tensor.shape
    folder.mkdir(parents=True, exist_ok=True)
    generator, index, n_bytes = torch.Generator().manual_seed(0), {}, 0
    for number, (_, shapes) in enumerate(shards.items(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        for tensor in made.values():
            if tensor.dim() > 1:  # the scales of RMSNorm stay 1
                tensor.normal_(0, SPREAD, generator=generator)
        save_file(made, folder / file, {"format": "pt"})
        index |= dict.fromkeys(made, file)
        n_bytes += sum(tensor.nbytes for tensor in made.values())
    listed = {"metadata": {"total_size": n_bytes}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    config.save_pretrained(folder)
    write_tokenizer(folder)
    return {"shards": len(shards), "GB": n_bytes / 1e9}


def write_tokenizer(folder: Path) -> None:
    """One that begins every text with BOS, as Llama 3's does."""
    texts = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    tokenizer = train_tokenizer(texts, 600)
    begin = [(END, tokenizer.bos_token_id)]
    template = processors.TemplateProcessing(single=f"{END} $A", special_tokens=begin)
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)


def open_run(folder: Path, tiny: bool) -> Run:
    """The run of notebook 05 at `runpod`, on that model and with as little text as will do."""
    activations.REFERENCE_TOKENS, initialise.STATISTICS_ROWS = 256, 4
    config = TINY if tiny else LLAMA_3_8B
    context, rows, d_sae = (32, 32, 256) if tiny else (128, 16, 16_384)
    tokens = rows * context
    changes = {
        "corpus.source": "installation",
        "corpus.revision": "null",
        "corpus.max_kind_bytes": "{py: 200000}",
        "corpus.heldout_tokens": tokens,
        "evaluation.tokens": 256,
        "evaluation.loss_tokens": 128,
        "last_mlp.train_tokens": tokens,
        "last_mlp.dialogues": "null",
        "last_mlp.lm.source": folder / "model",
        "last_mlp.lm.context": context,
        "last_mlp.tokenizer.source": folder / "model",
        "last_mlp.sae.hook_name": f"blocks.{config.num_hidden_layers - 1}.mlp.hook_post",
        "last_mlp.sae.d_sae": d_sae,
        "last_mlp.sae.k": 16 if tiny else 64,
        "last_mlp.sae.batch": tokens // 4,
        "last_mlp.sae.activations": tokens,  # four steps
        "last_mlp.sae.buffer_rows": rows,
        "last_mlp.sae.checkpoint_every": 2,
        "device": "cpu",
    }
    overrides = [f"{name}={value}" for name, value in changes.items()]
    return stages.open_run("runpod", folder / "run", overrides).last_mlp()


def train_until_killed(run: Run) -> dict[str, Any]:
    """Harvest and training, ended by a kill once the first checkpoint is written."""
    save, found = checkpoints.save_checkpoint, {}

    def save_then_die(folder: Path, step: int, tensors: dict, *rest: Any) -> None:
        save(folder, step, tensors, *rest)
        found.update(step=step, GB=sum(tensor.nbytes for tensor in tensors.values()) / 1e9)
        raise Killed

    checkpoints.save_checkpoint = save_then_die
    try:
        run.path("autoencoder")
    except Killed:
        return {"checkpoint": found, "dtype": str(stages.hook(run).model.dtype)}
    finally:
        checkpoints.save_checkpoint = save
    raise RuntimeError("there was no checkpoint")


def resume(run: Run) -> dict[str, Any]:
    """The rest of the steps, from the checkpoint."""
    run.path("autoencoder")
    return {"curve": run.summary("autoencoder")["curve"], "left out": left_out(run)}


def left_out(run: Run) -> dict[str, float]:
    """Shares of the tokens that are no text's activations."""
    return stages.hook(run).left_out.shares


def measure(run: Run) -> dict[str, Any]:
    """The measures of notebook 05, on few tokens."""
    rows = run.get("tokens").rows("heldout", run.settings.lm.context)
    both = {name: run.get("dictionary", name) for name in ("topk", "neurons")}
    found = evaluation.evaluate(stages.hook(run), both, rows, run.settings.evaluation)["topk"]
    names = ("fvu", "l0_mean", "recovered_zero", "recovered_mean", "kl", "ce_clean", "ce_zero")
    return {name: found[name] for name in names}


PARTS = {"train": train_until_killed, "resume": resume, "evaluate": measure}


class Memory:
    """The peaks of what a process holds itself and of what it has mapped of files, in GB, sampled;
    the kernel drops the latter where memory is short.
    """

    def __init__(self):
        self.peak = {"own": 0.0, "mapped files": 0.0}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            now = {"own": memory.status("RssAnon"), "mapped files": memory.status("RssFile")}
            self.peak = {name: max(self.peak[name], n / 1e9) for name, n in now.items()}

    def __enter__(self) -> dict[str, float]:
        self.thread.start()
        return self.peak

    def __exit__(self, *_: Any) -> None:
        self.ended.set()
        self.thread.join()


def measured(part: str, folder: Path, tiny: bool) -> dict[str, Any]:
    """A part's findings, its seconds and its peaks of memory beside the plan."""
    began, watch = time.perf_counter(), Memory()
    with watch:
        if part == "write":
            found = write_model(TINY if tiny else LLAMA_3_8B, folder / "model")
        else:
            run = open_run(folder, tiny)
            found = PARTS[part](run)
    found |= {"seconds": time.perf_counter() - began, "peak GB": watch.peak}
    if part != "write":
        found["planned GB"] = planned(run, "evaluation" if part == "evaluate" else "training topk")
    return found


def planned(run: Run, stage: str) -> float:
    """Of the stage; in training without dead features, which so few steps do not make."""
    s = run.settings
    gb = memory_plan.stages(s, gpu=False)[stage] / 1e9
    if stage == "evaluation":
        return gb
    d_in = memory_plan.HUB_MODEL["d_mlp"]
    alive = s.sae.model_copy(update={"recipe": "bricken_2023", "k": None, "resampling": False})
    steps = [memory_plan.training_step(d_in, sae, gpu=False) for sae in (s.sae, alive)]
    return gb - memory_plan.FRAGMENTS * (steps[0] - steps[1]) / 1e9


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("write", *PARTS))
    parser.add_argument("--folder", type=Path, default=Path("runs/rehearsal"))
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    found = measured(given.part, given.folder, given.tiny)
    file = given.folder / "rehearsal.json"
    results = json.loads(file.read_text()) if file.exists() else {"machine": machine()}
    results[given.part] = found
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({given.part: found}))
    return found


if __name__ == "__main__":
    main()
