"""A sparse autoencoder on the toy model, where the truth is known: does it find the five directions, and how short are its outputs?"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lib.progress import tqdm
from sae_lib.toy import models as toy
from sae_lib.toy.experiments import Size, plain, size_of, train_grid

SIZES: dict[str, tuple[Size, Size, Size]] = {
    "autoencoder": (
        Size(1, 2, 60, 128, 1e-3),
        Size(1, 16, 3000, 256, 3e-3),
        Size(1, 16, 20000, 1024, 1e-3),
    ),
}
DENSITY, L1, RECOVERED = 0.025, 0.2, 0.95


class ToyAutoencoder(nn.Module):
    """Independent autoencoders side by side: `f = ReLU(W_enc (h − b_dec) + b_enc)`, `ĥ = W_dec f + b_dec`, samples as columns.

    The encoder starts as the decoder's transpose where `transposed`, elsewhere on its own (Xavier-normal).
    """

    def __init__(
        self,
        n_instances: int,
        d_in: int,
        d_sae: int,
        transposed: Bool[Tensor, " instance"],
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        decoder, encoder = (
            torch.randn(n_instances, d_in, d_sae, generator=generator, device=generator.device)
            for _ in range(2)
        )
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
        encoder = torch.where(
            transposed.to(decoder.device)[:, None, None],
            decoder,
            encoder * math.sqrt(2 / (d_in + d_sae)),
        )
        self.W_dec, self.W_enc = nn.Parameter(decoder), nn.Parameter(encoder.mT.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(n_instances, d_sae, 1))
        self.b_dec = nn.Parameter(torch.zeros(n_instances, d_in, 1))

    def encode(
        self, h: Float[Tensor, "instance d_in sample"]
    ) -> Float[Tensor, "instance latent sample"]:
        """Latent activations."""
        return torch.relu(torch.baddbmm(self.b_enc, self.W_enc, h - self.b_dec))

    def decode(
        self, f: Float[Tensor, "instance latent sample"]
    ) -> Float[Tensor, "instance d_in sample"]:
        """Reconstructions."""
        return torch.baddbmm(self.b_dec, self.W_dec, f)


@torch.no_grad()
def resample(
    sae: ToyAutoencoder,
    dead: Bool[Tensor, "instance latent"],
    h: Float[Tensor, "instance d_in sample"],
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
) -> None:
    """Point each dead latent at an input drawn with probability ∝ squared error², encoder at 0.2 of the live norm (Bricken et al. 2023).

    Adam's memory of the replaced weights is cleared.
    """
    if not bool(dead.any()):
        return
    error = (sae.decode(sae.encode(h)) - h).square().sum(1)
    drawn = torch.multinomial(error.square() + 1e-20, dead.shape[1], generator=generator)
    direction = (h - sae.b_dec).gather(2, drawn[:, None, :].expand(-1, h.shape[1], -1))
    direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-12)
    norms, live = sae.W_enc.norm(dim=2), ~dead
    live_norm = torch.where(
        live.any(1), (norms * live).sum(1) / live.sum(1).clamp(min=1), torch.ones_like(norms[:, 0])
    )
    new = {
        "W_dec": (direction, dead[:, None, :]),
        "W_enc": (0.2 * live_norm[:, None, None] * direction.mT, dead[:, :, None]),
        "b_enc": (torch.zeros_like(sae.b_enc), dead[:, :, None]),
    }
    for name, (value, mask) in new.items():
        parameter = getattr(sae, name)
        parameter.copy_(torch.where(mask, value, parameter))
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moment].masked_fill_(mask, 0)


def base_model(size: Size, want: int) -> tuple[Float[Tensor, "instance 2 5"], int, int]:
    """Weights of `want` toy models (5 → 2, p = 0.025, equal importance) with all five features represented; how many of how many did.

    Where fewer do, they are repeated; where none does (a run too short), the lowest losses stand in.
    """
    trained = train_grid(
        Size(1, 2 * want, min(size.steps, 2000), size.batch, 1e-2), torch.tensor([DENSITY]), 5, 2
    )
    W = trained.W[0][trained.losses[0].argsort()]
    full = toy.represented(W).all(-1)
    pool = W[full] if bool(full.any()) else W
    return pool[torch.arange(want) % len(pool)], int(full.sum()), len(W)


def train_autoencoders(
    W: Float[Tensor, "instance d_in feature"],
    resampling: Bool[Tensor, " instance"],
    transposed: Bool[Tensor, " instance"],
    size: Size,
    d_sae: int = 5,
    seed: int = 0,
) -> ToyAutoencoder:
    """Train one autoencoder on each toy model's hidden layer; those with `resampling` revive silent latents.

    L = mean (h − ĥ)² + 0.2 Σ f, unit decoder. Resampled every eighth of the run: latents silent in the fiftieth before it.
    """
    generator = torch.Generator(W.device).manual_seed(seed + 1)
    features = toy.Features(W.shape[-1], DENSITY)
    sae = ToyAutoencoder(len(W), W.shape[1], d_sae, transposed, seed)
    optimizer = torch.optim.Adam(sae.parameters(), lr=size.lr, fused=True)
    every, window = max(size.steps // 8, 2), max(size.steps // 40, 1)
    fired = torch.zeros(len(W), d_sae, dtype=torch.bool, device=W.device)
    for step in tqdm(
        range(size.steps), desc="toy autoencoders", leave=False, mininterval=1.0, disable=None
    ):
        h = W @ features.sample(len(W), size.batch, generator)
        if step % every == 0 and step:
            resample(sae, ~fired & resampling[:, None], h, optimizer, generator)
        if step % every == every - window:
            fired.zero_()
        f = sae.encode(h)
        fired |= (f > 0).any(2)
        loss = (sae.decode(f) - h).square().mean((1, 2)) + L1 * f.sum(1).mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return sae


@torch.no_grad()
def recovery(
    decoder: Float[Tensor, "instance d_in latent"], W: Float[Tensor, "instance d_in feature"]
) -> Float[Tensor, "instance feature"]:
    """For each true direction the largest cosine with a decoder direction."""
    unit = lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)  # noqa: E731
    return (unit(W).mT @ unit(decoder)).amax(-1)


@torch.no_grad()
def measure(sae: ToyAutoencoder, W: Float[Tensor, "instance d_in feature"]) -> dict:
    """Dead latents, firing rate of the live ones, output/input norm, and output norm for one feature of rising strength."""
    generator = torch.Generator(W.device).manual_seed(99)
    h = W @ toy.Features(W.shape[-1], DENSITY).sample(len(W), 20000, generator)
    f = sae.encode(h)
    rate = (f > 0).float().mean(2)
    active = h.norm(dim=1) > 0
    output = (sae.W_dec @ f).norm(dim=1)
    strength = torch.linspace(0, 1, 21)
    single = W[:, :, :, None] * strength  # one feature alone at each strength
    alone = sae.W_dec @ sae.encode(single.flatten(2))
    cosine = recovery(sae.W_dec, W)
    return {
        "cosine": cosine,
        "recovered": (cosine > RECOVERED).sum(1),
        "dead": (rate == 0).sum(1),
        "rate": rate,
        "norm_ratio": (output * active).sum(1) / (h.norm(dim=1) * active).sum(1),
        "decoder": sae.W_dec,
        "single_input": single.norm(dim=1),
        "single_output": alone.norm(dim=1).unflatten(1, single.shape[2:]),
    }


VARIANTS = {
    "without": (False, False),
    "with": (True, False),
    "transposed": (False, True),
}  # (resampling, encoder starts as decoder's transpose)


def autoencoder(preset: str) -> dict:
    """Five latents on the 5 → 2 pentagon: without resampling, with it, and started with the encoder as the decoder's transpose."""
    size = size_of("autoencoder", preset, SIZES)
    W, n_full, n_base = base_model(size, n := size.seeds)
    every = W.repeat(len(VARIANTS), 1, 1)
    resampling, transposed = (
        torch.tensor([v[i] for v in VARIANTS.values()]).repeat_interleave(n) for i in range(2)
    )
    result = measure(train_autoencoders(every, resampling, transposed, size), every)
    out = {"W": W, "base_five": [n_full, n_base], "p": DENSITY, "l1": L1, "instances": n}
    for i, name in enumerate(VARIANTS):
        mine = {k: v[i * n : (i + 1) * n] for k, v in result.items()}
        all_five = int((mine["recovered"] == W.shape[-1]).sum())
        live = mine["rate"][mine["rate"] > 0]
        best = int(mine["cosine"].amin(1).argmax())
        out[name] = {
            k: mine[k] for k in ("cosine", "recovered", "dead", "norm_ratio", "decoder")
        } | {
            "all_five": [all_five, n, *toy.wilson(all_five, n)],
            "dead_latents": [int(mine["dead"].sum()), mine["rate"].numel()],
            "median_rate": live.median() if len(live) else 0.0,
            "best": best,
            "single_input": mine["single_input"][best],
            "single_output": mine["single_output"][best],
        }
    return plain(out)
