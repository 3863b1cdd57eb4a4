"""An autoencoder in dictionary_learning's format: `ae.pt` (a state dict) and `config.json`."""

import io
import json
from pathlib import Path

import torch

from sae_lib.errors import SettingsError
from sae_lib.files import write_atomically
from sae_lib.sae.autoencoder import SparseAutoencoder


@torch.no_grad()
def to_dictionary_learning(sae: SparseAutoencoder, folder: Path) -> Path:
    """Write `folder/ae.pt` and `folder/config.json`; jumprelu only with one threshold for all
    features, as batchtopk leaves it.
    """
    weights = {
        "encoder.weight": sae.W_enc_T,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
    }
    trainer: dict[str, object] = {"activation_dim": sae.d_in, "dict_size": sae.d_sae}
    if sae.architecture == "standard":
        weights["bias"] = sae.b_dec
        trainer["dict_class"] = "AutoEncoder"
    else:
        threshold = torch.tensor(-1.0) if sae.architecture == "topk" else sae.threshold[0]
        if sae.architecture == "jumprelu" and not torch.equal(
            sae.threshold, threshold.expand(sae.d_sae)
        ):
            raise SettingsError(
                "export: dictionary_learning's BatchTopKSAE has one threshold for all features,"
                " and this jumprelu autoencoder has one for each feature; open its folder with"
                " SAELens instead"
            )
        k = sae.k or 1  # with a threshold of its own, BatchTopKSAE does not use k
        weights |= {
            "b_dec": sae.b_dec,
            "k": torch.tensor(k, dtype=torch.int32),
            "threshold": threshold,
        }
        trainer |= {
            "dict_class": "AutoEncoderTopK" if sae.architecture == "topk" else "BatchTopKSAE",
            "k": k,
        }
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    torch.save(state, packed := io.BytesIO())
    write_atomically(folder / "ae.pt", packed.getvalue())
    write_atomically(folder / "config.json", json.dumps({"trainer": trainer}, indent=1))
    return folder
