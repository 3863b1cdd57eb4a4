"""Sparse autoencoders on the toy model, where the truth is known: do they find the five directions,
and how short are the outputs?
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lib.progress import tqdm
from sae_lib.toy import models as toy
from sae_lib.toy.experiments import SMOKE, Size, run
from sae_lib.toy.metrics import represented

Hidden = Float[Tensor, "instance d_in sample"]
Latents = Float[Tensor, "instance latent sample"]
Weights = Float[Tensor, "instance d_in feature"]
Flags = Bool[Tensor, " instance"]
DENSITY, L1, RECOVERED, D_SAE = 0.025, 0.2, 0.95, 5
SIZES = {
    "smoke": SMOKE,
    "laptop": Size(2000, 256, 4e-3, seeds=16),
    "full": Size(20000, lr=1e-3, seeds=16),
}
# Whether silent latents are resampled, and whether the encoder starts as the decoder's transpose.
VARIANTS = {"without": (False, False), "with": (True, False), "transposed": (False, True)}


class ToyAutoencoder(nn.Module):
    """Independent autoencoders side by side: `f = ReLU(W_enc (h − b_dec) + b_enc)`, `ĥ = W_dec f +
    b_dec`, samples as columns.

    The encoder starts as the decoder's transpose where `transposed`, elsewhere on its own (Xavier-
    normal).
    """

    def __init__(self, d_in: int, d_sae: int, transposed: Flags):
        super().__init__()
        generator, n = torch.Generator().manual_seed(0), len(transposed)
        decoder, encoder = (torch.randn(n, d_in, d_sae, generator=generator) for _ in range(2))
        decoder = F.normalize(decoder, dim=1)
        own = encoder * math.sqrt(2 / (d_in + d_sae))
        encoder = torch.where(transposed[:, None, None], decoder, own)
        self.W_dec, self.W_enc = nn.Parameter(decoder), nn.Parameter(encoder.mT.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(n, d_sae, 1))
        self.b_dec = nn.Parameter(torch.zeros(n, d_in, 1))

    def encode(self, h: Hidden) -> Latents:
        """Latent activations."""
        return torch.relu(torch.baddbmm(self.b_enc, self.W_enc, h - self.b_dec))

    def decode(self, f: Latents) -> Hidden:
        """Reconstructions."""
        return torch.baddbmm(self.b_dec, self.W_dec, f)


@torch.no_grad()
def resample(
    sae: ToyAutoencoder,
    dead: Bool[Tensor, "instance latent"],
    h: Hidden,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
) -> None:
    """Point each dead latent at an input drawn with probability ∝ squared error², encoder at 0.2 of
    the live norm (Bricken et al. 2023).

    Adam's memory of the replaced weights is cleared.
    """
    if not bool(dead.any()):
        return
    error = (sae.decode(sae.encode(h)) - h).square().sum(1)
    drawn = torch.multinomial(error.square() + 1e-20, dead.shape[1], generator=generator)
    direction = (h - sae.b_dec).gather(2, drawn[:, None, :].expand(-1, h.shape[1], -1))
    direction, live = F.normalize(direction, dim=1), ~dead
    norm = (sae.W_enc.norm(dim=2) * live).sum(1) / live.sum(1).clamp(min=1)
    norm[~live.any(1)] = 1
    for parameter, mask, value in (
        (sae.W_dec, dead[:, None], direction),
        (sae.W_enc, dead[..., None], 0.2 * norm[:, None, None] * direction.mT),
        (sae.b_enc, dead[..., None], torch.zeros(())),
    ):
        parameter.copy_(torch.where(mask, value, parameter))
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moment].masked_fill_(mask, 0)


def pentagons(preset: str, n: int) -> Weights:
    """Weights of n toy models with all five features represented, repeated where there are fewer;
    where there are none (a run too short), those with the lowest losses stand in.
    """
    trained = run("pentagons", preset)[""]
    W = trained.W[0][trained.losses[0].argsort()]
    full = W[represented(W).all(-1)]
    pool = full if len(full) else W
    return pool[torch.arange(n) % len(pool)]


def train_autoencoders(
    W: Weights,
    resampling: Flags,
    transposed: Flags,
    size: Size,
) -> ToyAutoencoder:
    """Train one autoencoder on each toy model's hidden layer; those with `resampling` revive silent
    latents.

    L = mean (h − ĥ)² + 0.2 Σ f, unit decoder. Resampled every eighth of the run: latents silent in
    the fiftieth before it.
    """
    generator = torch.Generator().manual_seed(1)
    features = toy.Features(W.shape[-1], DENSITY)
    sae = ToyAutoencoder(W.shape[1], D_SAE, transposed)
    optimizer = torch.optim.Adam(sae.parameters(), lr=size.lr, fused=True)
    every, window = max(size.steps // 8, 2), max(size.steps // 40, 1)
    fired = torch.zeros(len(W), D_SAE, dtype=torch.bool)
    steps = range(size.steps)
    for step in tqdm(steps, desc="toy autoencoders", leave=False, mininterval=1.0, disable=None):
        h = W @ features.sample(len(W), size.batch, generator, streams=size.seeds)
        if step % every == 0 and step:
            resample(sae, ~fired & resampling[:, None], h, optimizer, generator)
        if step % every == every - window:
            fired.zero_()
        f = sae.encode(h)
        if step % every >= every - window:
            fired |= (f > 0).any(2)
        errors = F.mse_loss(sae.decode(f), h, reduction="none")
        loss = errors.sum() / h[0].numel() + L1 * f.sum() / size.batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
    return sae


def recovery(
    decoder: Float[Tensor, "instance d_in latent"], W: Weights
) -> Float[Tensor, "instance feature"]:
    """For each true direction the largest cosine with a decoder direction."""
    return (F.normalize(W, dim=1).mT @ F.normalize(decoder, dim=1)).amax(-1)


@torch.no_grad()
def measure(sae: ToyAutoencoder, W: Weights) -> dict[str, Tensor]:
    """Firing rates, output/input norm, recovered directions, and output norm for one feature of
    rising strength.
    """
    generator = torch.Generator().manual_seed(99)
    h = W @ toy.Features(W.shape[-1], DENSITY).sample(len(W), 20000, generator, streams=1)
    f = sae.encode(h)
    norms, outputs = h.norm(dim=1), (sae.W_dec @ f).norm(dim=1)
    single = W[..., None] * torch.linspace(0, 1, 21)  # one feature alone at each strength
    alone = (sae.W_dec @ sae.encode(single.flatten(2))).norm(dim=1)
    return {
        "recovered": recovery(sae.W_dec, W) > RECOVERED,
        "rate": (f > 0).float().mean(2),
        "norm_ratio": (outputs * (norms > 0)).sum(1) / norms.sum(1),
        "decoder": sae.W_dec.detach(),
        "single_input": single.norm(dim=1),
        "single_output": alone.unflatten(1, single.shape[2:]),
    }


def autoencoder(preset: str) -> dict:
    """Five latents on the 5 → 2 pentagon: without resampling, with it, and started with the encoder
    as the decoder's transpose.
    """
    size = SIZES[preset]
    W = pentagons(preset, size.seeds)
    every = W.repeat(len(VARIANTS), 1, 1)
    resampling, transposed = torch.tensor(list(VARIANTS.values())).repeat_interleave(len(W), 0).T
    result = measure(train_autoencoders(every, resampling, transposed, size), every)
    out = {"W": W, "instances": len(W)}
    for name, part in zip(VARIANTS, torch.arange(len(every)).split(len(W)), strict=True):
        found = out[name] = {key: value[part] for key, value in result.items()}
        found["all_five"] = int(found["recovered"].all(1).sum())
        found["dead"] = int((found["rate"] == 0).sum())
    return out
