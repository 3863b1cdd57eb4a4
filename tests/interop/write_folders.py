"""Autoencoders and transcoders of every architecture, their inputs and our reconstructions, for
another tool to open: `python write_folders.py FOLDER`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.transcoder import Transcoder


def main(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    made = {
        kind: SparseAutoencoder(64, 256, kind, k=8 if "topk" in kind else 0)
        for kind in ("standard", "topk", "batchtopk", "jumprelu")
    }
    made |= {name: Transcoder(64, 256, **of) for name, of in Transcoder.SAVED_AS.items()}
    for name, sae in made.items():
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.normal_(generator=generator)
            if hasattr(sae, "threshold"):
                sae.threshold[:] = (
                    6.0 if name == "batchtopk" else torch.rand(256, generator=generator) * 8
                )
        sae.for_inference()
        sae.save(
            folder / name,
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
            folder / name / "ours.safetensors",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
