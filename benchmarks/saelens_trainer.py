"""SAELens' own trainer on a file of activations, in SAELens' own environment.

Usage: python saelens_trainer.py D_SAE BATCH LR L1_COEFFICIENT ACTIVATIONS.npy OUT_FOLDER The
schedule is that of our recipes: the rate warmed up over 5 % and falling linearly over the last 30
%, the penalty warmed up over 10 %; b_dec starts at the mean of the data, which SAELens leaves at
zero.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


def main() -> None:
    d_sae, batch, lr, l1, x, out = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        float(sys.argv[4]),
        np.load(sys.argv[5], mmap_mode="r"),
        Path(sys.argv[6]),
    )
    torch.manual_seed(0)
    n_steps = len(x) // batch
    warm_up = {"l1_warm_up_steps": n_steps // 10}
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=x.shape[1], d_sae=d_sae, l1_coefficient=l1, apply_b_dec_to_input=True, **warm_up
        )
    )
    with torch.no_grad():
        sae.b_dec.copy_(torch.from_numpy(x[: 64 * batch].mean(0)))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=n_steps * batch,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=0.0,
        lr_scheduler_name="constant",
        lr_warm_up_steps=n_steps // 20,
        lr_decay_steps=3 * n_steps // 10,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
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
