"""SAELens opens the folders of `write_folders.py`, computes what we compute, and its own copy
opens here again: `python open_in_saelens.py FOLDER`.
"""

import sys
from pathlib import Path

import torch
from sae_lens import SAE, __version__
from safetensors.torch import load_file


def main(folder: Path) -> None:
    for path in sorted(p for p in folder.iterdir() if (p / "ours.safetensors").exists()):
        ours, sae = load_file(path / "ours.safetensors"), SAE.load_from_disk(str(path))
        with torch.no_grad():
            features = sae.encode(ours["x"])
            difference = max(
                (features - ours["features"]).abs().max().item(),
                (sae(ours["x"]) - ours["reconstruction"]).abs().max().item(),
            )
        assert difference < 1e-3 and ours["features"].gt(0).any(), (
            f"{path.name}: largest difference {difference:.2g}"
        )
        assert sae.cfg.metadata.hook_name == "blocks.0.mlp.hook_post", "metadata was dropped"
        sae.save_model(str(path / "saelens"))
        print(
            f"SAELens {__version__} {path.name}: opened as {sae.cfg.architecture()}, largest "
            f"difference {difference:.1e}, L0 {ours['features'].gt(0).sum(1).float().mean():.1f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
