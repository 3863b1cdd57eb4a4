"""A training step of EleutherAI's sparsify with its Triton kernels, in an environment of its own: a
line on stdin asks for one timed round.

Usage: python sparsify_worker.py D_IN D_SAE K ACTIVATIONS.npy DEVICE
Prints "ready", then for every line read the activations per second of that round. The step is that
of its trainer: forward, backward, unit decoder, with the Adam that it offers.
"""

import importlib
import sys
import time

import numpy as np
import torch

REPEATS = 30
# the package eai-sparsify; that named sparsify is another one, and no release could be pinned here
sparsify = importlib.import_module("sparsify")


def main() -> None:
    d_in, d_sae, k, device = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[5]
    x = torch.from_numpy(np.load(sys.argv[4])).to(device)
    sae = sparsify.SparseCoder(
        d_in, sparsify.SparseCoderConfig(num_latents=d_sae, k=k), device=device
    )
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-12, fused=True)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def finished() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = finished()
        for _ in range(REPEATS):
            step()
        print(len(x) * REPEATS / (finished() - began), flush=True)


if __name__ == "__main__":
    main()
