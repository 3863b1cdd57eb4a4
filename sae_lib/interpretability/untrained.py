"""A null for everything said of features: an autoencoder, same recipe, on a language model that never learned anything."""

import json
from pathlib import Path

import torch

from sae_lib import checkpoints, hub, language_model, training
from sae_lib.activations import HookPoint
from sae_lib.autoencoder import SparseAutoencoder
from sae_lib.device import device_of
from sae_lib.runs import Run, checkpoints_of, keep_freed_memory, writing
from sae_lib.settings import SAESettings
from sae_lib.tokens import open_tokens


def untrained_model(run: Run):
    """The run's language model as it would be before training, on its device: its own configuration with random weights."""
    import transformers

    s, tokenizer = run.settings.lm, open_tokens(run).tokenizer
    torch.manual_seed(run.settings.seed)
    if s.source == "train":
        model = language_model.build(s, len(tokenizer), tokenizer.eos_token_id)
    else:
        config = transformers.AutoConfig.from_pretrained(
            s.source, local_files_only=not hub.reached()
        )
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=config.dtype or torch.float32
        )
    return model.to(device_of(run)).eval().requires_grad_(False)


def shortened(sae: SAESettings, activations: int) -> SAESettings:
    """The same recipe on fewer activations, with all that is measured in activations in proportion."""
    part = min(1.0, activations / sae.activations)
    return sae.model_copy(
        update={
            "activations": round(sae.activations * part),
            "dead_window": max(1, int(sae.dead_window * part)),
        }
    )


def untrained_autoencoder(
    run: Run, sae: SAESettings, name: str
) -> tuple[HookPoint, SparseAutoencoder]:
    """(hook of the untrained model, autoencoder trained there) for `interpretability.untrained_activations`, made where it is not there."""
    hook, folder = (
        HookPoint(untrained_model(run), sae.hook_name),
        run.folder / "interpretability" / f"untrained-{name}",
    )
    settings = shortened(sae, run.settings.interpretability.untrained_activations)
    made_from = training.sae_made_from(run, settings) | {"language_model": "untrained"}
    with run.making(folder, made_from) as missing:
        if missing:
            _train(run, hook, settings, folder, made_from)
    return hook, SparseAutoencoder.load(folder, device_of(run))


def _train(run: Run, hook: HookPoint, settings: SAESettings, folder: Path, made_from: dict) -> None:
    keep_freed_memory()
    torch.set_flush_denormal(True)
    try:
        with checkpoints.finish_the_step("untrained") as interrupted:
            trained, summary = training.fit(
                hook,
                open_tokens(run).rows("train", run.settings.lm.context),
                settings,
                run.settings.seed,
                checkpoints_of(folder),
                made_from,
                interrupted=interrupted,
            )
            with writing(folder, made_from) as out:
                trained.save(out, {"hook_name": settings.hook_name, "model_name": "untrained"})
                (out / "training.json").write_text(json.dumps(summary, indent=1))
    finally:
        torch.set_flush_denormal(False)
