"""Autoencoders of every architecture, their inputs and our reconstructions, for another tool to
open: `python write_folders.py FOLDER`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sae_lib.sae.autoencoder import SparseAutoencoder


def main(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for architecture in ("standard", "topk", "batchtopk", "jumprelu"):
        sae = SparseAutoencoder(64, 256, architecture, k=8 if "topk" in architecture else 0)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.normal_(generator=generator)
            if architecture in ("batchtopk", "jumprelu"):
                sae.threshold[:] = (
                    6.0 if architecture == "batchtopk" else torch.rand(256, generator=generator) * 8
                )
        sae.for_inference()
        sae.save(
            folder / architecture,
            {
                "model_name": "none",
                "hook_name": "blocks.0.mlp.hook_post",
                "context_size": 128,
                "prepend_bos": False,
                "dataset_path": "none",
            },
        )
        x = torch.randn(1000, 64, generator=generator)
        save_file(
            {"x": x, "features": sae.encode(x).detach(), "reconstruction": sae(x).detach()},
            folder / architecture / "ours.safetensors",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
