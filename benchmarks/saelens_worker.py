"""SAELens' standard trainer step, in SAELens' own environment: a line on stdin asks for one timed
round.

Usage: python saelens_worker.py D_IN D_SAE BATCH L1_COEFFICIENT ACTIVATIONS.npy WEIGHTS_FOLDER
DEVICE
Prints "ready", then for every line read the activations per second of that round. `WEIGHTS_FOLDER`
(SAELens' layout) is where it starts from.
"""

import sys
import time

import numpy as np
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

REPEATS = 3


def main() -> None:
    d_in, d_sae, batch = map(int, sys.argv[1:4])
    l1, device = float(sys.argv[4]), sys.argv[7]
    x = torch.from_numpy(np.load(sys.argv[5]))[:batch].to(device)
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=d_in, d_sae=d_sae, l1_coefficient=l1, apply_b_dec_to_input=True
        )
    )
    with torch.no_grad():
        for name, tensor in load_file(f"{sys.argv[6]}/sae_weights.safetensors").items():
            getattr(sae, name).copy_(tensor)
    sae.to(device)
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device=device,
        autocast=device != "cpu",
        lr=1e-12,
        lr_end=1e-12,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter([]))

    def finished() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    trainer.step(x)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = finished()
        for _ in range(REPEATS):
            trainer.step(x)
        print(batch * REPEATS / (finished() - began), flush=True)


if __name__ == "__main__":
    main()
