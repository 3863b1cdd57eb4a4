"""Named training recipes, as data. A recipe differs from another in its values; there is one
training loop for all.
"""

from dataclasses import dataclass, replace
from typing import Literal

from sae_lib.errors import SettingsError, shown
from sae_lib.sae.objective import Objective
from sae_lib.settings import RECIPE_VALUES, SAESettings, Settings


@dataclass(frozen=True)
class Resampling:
    """When features count as dead, and how they are given a new start."""

    at: tuple[float, ...] = ()  # shares of training …
    every: int = 0  # … or every so many steps, to the end
    # dead: silent on so many fresh activations; 0: silent on the training stream for
    # `sae.dead_window`
    fresh_sample: int = 0
    encoder_scale: float = 0.2  # new encoder norm as a share of the alive features' mean norm
    centred: bool = True  # the new direction is x − b_dec, else x


@dataclass(frozen=True)
class Recipe:
    """How an autoencoder is initialised, trained and kept in shape."""

    name: str
    source: str
    differences: tuple[str, ...]  # to the source
    batch: int
    lr: float
    l1: float  # λ, the weight of the sparsity penalty
    mse: Literal["sum", "mean"]  # over the input's dimensions; the mean over the batch always
    scale_activations: (
        bool  # train on s·x with mean ‖s·x‖² = d_in, folded into the weights at the end
    )
    init: Literal["small_tied", "torch_linear"]
    decoder_norm: Literal["features", "dimensions", "free"]  # what has unit norm after every step
    resampling: Resampling | None = None
    architecture: Literal["standard", "topk", "batchtopk", "jumprelu"] = "standard"
    penalty: Literal["l1", "l1_norm", "l0", "none"] = "l1"  # see objective.py
    k: int = 0  # topk, batchtopk: active features per activation
    tied: bool = False  # the encoder is the decoder's transpose throughout
    threshold_init: float = 0.0  # jumprelu
    bandwidth: float = 0.0  # jumprelu
    decoder_init: float = 1.0  # small_tied: norm of the features …
    encoder_init: float = 0.1  # … and of the encoder's, which point the same way
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = None
    lr_warmup: float = 0.0  # share of training
    lr_decay: float = 0.0  # last share of training, linearly to zero
    l1_warmup: float = 0.0
    patience: int = (
        0  # held-out checks without a better FVU + L0 / d_in after which training stops; 0: never
    )

    def objective(self, d_in: int, share: float = 1.0) -> Objective:
        """The loss, with the penalty at `share` of its weight."""
        return Objective(
            1.0 if self.mse == "sum" else 1 / d_in, self.l1 * share, self.penalty, self.bandwidth
        )


BRICKEN_2023 = Recipe(
    name="bricken_2023",
    source="Bricken et al. 2023, Towards Monosemanticity, appendix on training",
    differences=(
        (
            "activations are scaled so that their mean squared norm is d_in, so that λ carries"
            " over from model to model"
        ),
        "b_dec starts at the mean of the data instead of its geometric median",
        (
            "the encoder starts at 0.1 times the transposed decoder, instead of independently: few"
            " features die and the reconstruction is better"
        ),
        (
            "learning rate, λ and the number of activations are our own: the settings of the run"
            " say which"
        ),
        (
            "batches of 1024 instead of 8192; the learning rate is warmed up over 5 % of training"
            " and λ over 10 %, and the rate falls linearly to zero over the last 30 %"
        ),
        (
            "resampling at 20, 40 and 60 % of training instead of at four fixed steps; a feature"
            " is dead after `sae.dead_window` silent activations instead of 12 500 steps of 8192"
        ),
        (
            "`sae.resampling_inputs` inputs are scored instead of 819 200, by their squared"
            " reconstruction error without the L1 term; the new directions are x − b_dec, so that"
            " the feature fires on the input it was drawn from"
        ),
    ),
    batch=1024,
    lr=8e-3,
    l1=2.2,
    mse="sum",
    scale_activations=True,
    init="small_tied",
    decoder_norm="features",
    resampling=Resampling(at=(0.2, 0.4, 0.6)),
    lr_warmup=0.05,
    lr_decay=0.3,
    l1_warmup=0.1,
)

WARD_2024 = Recipe(
    name="ward_2024",
    source="J. Ward, Monosemanticity at Home, 2024 (public notebook)",
    differences=(
        (
            "kept: the decoder is normalised along the wrong axis (unit rows over features, not"
            " unit features)"
        ),
        (
            "kept: a feature is dead when it fires on none of 9 856 fresh activations, tested"
            " every 1000 steps to the end of training"
        ),
        "kept: mean-over-dimensions squared error against a summed L1",
        (
            "kept: b_dec starts at random and nothing is normalised at the start; activations are"
            " not scaled"
        ),
        "not kept: all positions of a row are used, not one in 128",
        (
            "not kept: the language model is ours (attention scaled by 1/√d_head, with an output"
            " projection)"
        ),
        (
            "not kept: top examples are the true top, and losses are measured on held-out text"
            " with one threshold, f > 0"
        ),
    ),
    batch=896,
    lr=1e-4,
    l1=0.003,
    mse="mean",
    scale_activations=False,
    init="torch_linear",
    decoder_norm="dimensions",
    resampling=Resampling(every=1000, fresh_sample=9856, centred=False),
)

APRIL_2024 = Recipe(
    name="april_2024",
    source="Anthropic, Circuits Updates April 2024, Update on how we train SAEs",
    differences=(
        "b_dec starts at the mean of the data instead of zero",
        "learning rate, λ, the batch of 1024 and the number of activations are our own",
        (
            "features start with norm 0.1 and the encoder equal to their transpose, as published"
            " for d_sae well above d_in"
        ),
    ),
    batch=1024,
    lr=4e-3,
    l1=2.2,
    mse="sum",
    scale_activations=True,
    init="small_tied",
    decoder_norm="free",
    penalty="l1_norm",
    decoder_init=0.1,
    encoder_init=0.1,
    grad_clip=1.0,
    lr_warmup=0.05,
    lr_decay=0.2,
    l1_warmup=0.05,
)

TOPK = Recipe(
    name="topk",
    source="Gao et al. 2024, Scaling and evaluating sparse autoencoders",
    differences=(
        (
            "no auxiliary loss keeps features alive, and none are resampled: with a small encoder"
            " they are never among the largest, with a whole one reconstruction got worse"
        ),
        (
            "the encoder starts at 0.1 times the transposed decoder; learning rate, batch and k"
            " are our own"
        ),
    ),
    batch=1024,
    lr=4e-3,
    l1=0.0,
    mse="sum",
    scale_activations=True,
    init="small_tied",
    decoder_norm="features",
    architecture="topk",
    penalty="none",
    k=16,
    lr_warmup=0.05,
    lr_decay=0.3,
)

BATCHTOPK = replace(
    TOPK,
    name="batchtopk",
    source="Bussmann et al. 2024, BatchTopK sparse autoencoders",
    differences=(
        *TOPK.differences,
        (
            "the threshold of inference is a moving average of the smallest chosen activation of a"
            " batch; saved as a jumprelu autoencoder, as SAELens does"
        ),
    ),
    architecture="batchtopk",
)

JUMPRELU = Recipe(
    name="jumprelu",
    source=(
        "Rajamanoharan et al. 2024, Jumping ahead: improving reconstruction fidelity with JumpReLU"
        " sparse autoencoders"
    ),
    differences=(
        (
            "thresholds are learned themselves instead of their logarithms, and their gradient has"
            " z/ε where the paper has θ/ε (within the rectangle the two are at most ε/2 apart)"
        ),
        (
            "the encoder starts at 0.1 times the transposed decoder; learning rate, λ, bandwidth"
            " and batch are our own"
        ),
    ),
    batch=1024,
    lr=4e-3,
    l1=1.0,
    mse="sum",
    scale_activations=True,
    init="small_tied",
    decoder_norm="features",
    architecture="jumprelu",
    penalty="l0",
    threshold_init=0.1,
    bandwidth=0.2,
    lr_warmup=0.05,
    lr_decay=0.3,
    l1_warmup=0.1,
)

TIED = replace(
    BRICKEN_2023,
    name="tied",
    source=(
        "Cunningham et al. 2023, Sparse autoencoders find highly interpretable features in"
        " language models"
    ),
    differences=(
        (
            "unit features, b_dec and the scaling as in `bricken_2023`; learning rate, λ, batch,"
            " resampling and the rule for stopping are our own"
        ),
    ),
    tied=True,
    lr_decay=0.0,
    patience=4,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (BRICKEN_2023, WARD_2024, APRIL_2024, TOPK, BATCHTOPK, JUMPRELU, TIED)
}


def rate(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Share of the peak value: linear up over the first `warmup`, linear down to zero over the
    last `decay` of training.
    """
    up = (step + 1) / max(1, round(warmup * n_steps))
    down = (n_steps - step) / max(1, round(decay * n_steps)) if decay else 1.0
    return min(1.0, up, down)


def is_resampling_step(recipe: Recipe, step: int, n_steps: int) -> bool:
    r = recipe.resampling
    return (
        bool(r)
        and step < n_steps
        and (
            step in {round(share * n_steps) for share in r.at}
            or (r.every > 0 and step % r.every == 0)
        )
    )


def of_recipe(sae: SAESettings, name: str) -> SAESettings:
    """The same autoencoder by another recipe, at that recipe's own values: its units differ."""
    return sae.model_copy(
        update={"recipe": name, "resample_at": None} | dict.fromkeys(RECIPE_VALUES)
    )


def uses(recipe: Recipe, name: str) -> bool:
    """Whether a setting of `sae` changes anything for this recipe."""
    has_penalty = recipe.penalty != "none"
    has = {"k": recipe.k > 0, "l1": has_penalty, "l1_warmup": has_penalty}
    return (has | {"tied": recipe.architecture == "standard"}).get(name, True)


def resolve(sae: SAESettings) -> Recipe:
    """The recipe that the settings name, with the values that they override."""
    if sae.recipe not in RECIPES:
        raise SettingsError(
            f"sae.recipe: {shown(sae.recipe)} does not exist; there are: {', '.join(RECIPES)}"
        )
    recipe = RECIPES[sae.recipe]
    for name in RECIPE_VALUES:
        if getattr(sae, name) and not uses(recipe, name):
            used_by = ", ".join(other.name for other in RECIPES.values() if uses(other, name))
            raise SettingsError(
                f"sae.{name}: recipe {recipe.name} does not use it; recipes that do: {used_by}"
            )
    if sae.resample_at is not None and not sae.resampling:
        raise SettingsError("sae.resample_at: has no effect with sae.resampling=false; drop one")
    if sae.resample_at is not None:
        recipe = replace(
            recipe,
            resampling=replace(recipe.resampling or Resampling(), at=sae.resample_at, every=0),
        )
    at = recipe.resampling.at if sae.resampling and recipe.resampling else ()
    if at and max(at) * sae.activations < sae.dead_window:
        raise SettingsError(
            f"sae.dead_window: no feature can be silent for {sae.dead_window:,} activations before"
            f" the last resampling, at {max(at):.0%} of "
            f"sae.activations={sae.activations:,}; set a smaller window, or sae.resampling=false"
        )
    if (sae.k or recipe.k) > sae.d_sae:
        raise SettingsError(
            f"sae.k: {sae.k or recipe.k} active features exceed sae.d_sae={sae.d_sae}"
        )
    given = {
        key: value
        for key in (*RECIPE_VALUES, "patience")
        if (value := getattr(sae, key)) is not None
    }
    return replace(recipe, **given, resampling=recipe.resampling if sae.resampling else None)


def variants(settings: Settings) -> dict[str, SAESettings]:
    """The autoencoders a run trains, by name: its recipe, the same without resampling and at
    other widths, and other recipes.
    """
    main = settings.sae
    chosen = {main.recipe: main}
    if main.resampling and resolve(main).resampling and main.compare:
        chosen[f"{main.recipe}-no_resampling"] = main.model_copy(
            update={"resampling": False, "resample_at": None}
        )
    for name in main.compare:
        if name not in RECIPES:
            raise SettingsError(
                f"sae.compare: recipe {shown(name)} does not exist; there are: {', '.join(RECIPES)}"
            )
        chosen.setdefault(name, of_recipe(main, name))
    for width in main.widths:
        chosen[f"{main.recipe}-d_sae_{width}"] = main.model_copy(update={"d_sae": width})
    for sae in chosen.values():
        resolve(sae)
    return chosen


def variant(settings: Settings, name: str) -> SAESettings:
    """One of `variants`; `SettingsError` that lists them where there is none of that name."""
    if name not in (found := variants(settings)):
        raise SettingsError(
            f"this run has no autoencoder {shown(name)}; it has: {', '.join(found)}"
        )
    return found[name]
