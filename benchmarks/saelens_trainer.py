"""SAELens' own trainers on a file of activations, in SAELens' own environment.

Usage: python saelens_trainer.py SPECIFICATION.json ACTIVATIONS.npy OUT_FOLDER
The specification has `architecture`, `d_sae`, `batch`, `activations` (how many are trained on),
`lr`, `seed`, `threads`, `dead_feature_window` in steps, and further `values` of SAELens'
configuration. The schedule is that of our recipes: the rate warmed up over 5 % and falling linearly
over the last 30 %, a penalty warmed up over 10 %; b_dec starts at the mean of the data, which
SAELens leaves at zero.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer

WARM_UP = {"standard": "l1_warm_up_steps", "jumprelu": "l0_warm_up_steps"}


def main() -> None:
    wanted, x, out = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3])
    architecture, batch = wanted["architecture"], wanted["batch"]
    x, n_steps = np.load(x, mmap_mode="r"), wanted["activations"] // wanted["batch"]
    torch.manual_seed(wanted["seed"])
    torch.set_num_threads(wanted["threads"])
    kind, config = get_sae_training_class(architecture)
    values = wanted["values"] | {"d_in": x.shape[1], "d_sae": wanted["d_sae"]}
    if architecture in WARM_UP:
        values[WARM_UP[architecture]] = n_steps // 10
    sae = kind(config(apply_b_dec_to_input=True, **values))
    with torch.no_grad():
        sae.b_dec.copy_(torch.from_numpy(x[: 64 * batch].mean(0)))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=n_steps * batch,
        device="cpu",
        autocast=False,
        lr=wanted["lr"],
        lr_end=0.0,
        lr_scheduler_name="constant",
        lr_warm_up_steps=n_steps // 20,
        lr_decay_steps=3 * n_steps // 10,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        train_batch_size_samples=batch,
        dead_feature_window=wanted["dead_feature_window"],
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    batches = (torch.from_numpy(np.array(x[i * batch : (i + 1) * batch])) for i in range(n_steps))
    began = time.perf_counter()
    trained = SAETrainer(cfg=config, sae=sae, data_provider=batches).fit()
    seconds = time.perf_counter() - began
    trained.save_inference_model(out)
    (out / "seconds.json").write_text(
        json.dumps({"seconds": seconds, "activations_per_second": n_steps * batch / seconds})
    )


if __name__ == "__main__":
    main()
