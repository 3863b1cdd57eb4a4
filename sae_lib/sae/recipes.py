"""Named training recipes, which `recipes.yaml` lists: one differs from another in its values, and
there is one training loop for all.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from sae_lib.errors import SettingsError, shown
from sae_lib.sae.objective import Objective
from sae_lib.settings import RECIPE_VALUES, SAESettings, Settings, parse_yaml

TABLE = Path(__file__).with_name("recipes.yaml")


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
    moments: Literal["zero", "kept"] = "zero"  # Adam's, of the weights that are resampled
    lr_warmup: float = 0.0  # share of training over which the rate rises again after each


@dataclass(frozen=True)
class Recipe:
    """How an autoencoder is initialised, trained and kept in shape."""

    name: str
    source: str
    differences: tuple[str, ...]  # to the source
    batch: int
    lr: float
    # λ, the weight of the sparsity penalty, whatever the `penalty`; what a step measures as l1 is
    # the sum Σ_f f without a weight
    l1: float
    # what the loss takes of the squared errors of an input's dimensions: their sum, or their mean
    # (the sum with weight 1 / d_in); over the batch always the mean
    mse: Literal["sum", "mean"]
    # train on s·x with mean ‖s·x‖² = d_in; s is folded into the weights at the end
    scale_activations: bool
    init: Literal["small_tied", "independent", "torch_linear"]  # see initialise.py
    decoder_norm: Literal["features", "dimensions", "free"]  # what has unit norm after every step
    b_dec: Literal["mean", "random"] = "mean"  # where it starts
    positions: Literal["all", "one"] = "all"  # of each row of text that are trained on
    resampling: Resampling | None = None
    architecture: Literal["standard", "topk", "batchtopk", "jumprelu"] = "standard"
    penalty: Literal["l1", "l1_norm", "l0", "none"] = "l1"  # see objective.py
    k: int = 0  # topk, batchtopk: active features per activation
    aux: float = 0.0  # weight of the auxiliary loss of dead features, see objective.py
    tied: bool = False  # the encoder is the decoder's transpose throughout
    threshold_init: float = 0.0  # jumprelu
    bandwidth: float = 0.0  # jumprelu
    # shares of the features that reconstruct alone as well, see objective.py; all do anyway
    prefixes: tuple[float, ...] = ()
    transcoder: Literal["", "plain", "skip"] = ""  # of an MLP, see transcoder.py
    decoder_init: float = 1.0  # small_tied: norm of the features …
    encoder_init: float = 0.1  # … and of the encoder's, which point the same way
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = None
    lr_warmup: float = 0.0  # share of training
    lr_decay: float = 0.0  # last share of training, linearly to zero
    l1_warmup: float = 0.0
    # what stays random, for sanity baselines (Korznikov et al. 2026): "soft_decoder" lets features
    # turn up to `SOFT_FROZEN`; nothing is resampled
    frozen: Literal["", "decoder", "soft_decoder", "encoder"] = ""
    size: float = 1.0  # √(d_in / the width that λ and the rate were chosen at), see `at_width`
    # held-out checks without a better FVU + L0 / d_in after which training stops; 0: never
    patience: int = 0

    def objective(self, d_in: int, share: float = 1.0, d_sae: int = 1) -> Objective:
        """The loss for inputs of width `d_in`, with λ at this `share` of `l1`; `d_sae` says how
        many features the prefixes are shares of.
        """
        mse = 1.0 if self.mse == "sum" else 1 / d_in
        nested = {*(max(1, round(part * d_sae)) for part in self.prefixes), d_sae}
        prefixes = tuple(sorted(nested)) if self.prefixes else ()
        return Objective(mse, self.l1 * share, self.penalty, self.bandwidth, self.aux, prefixes)


def read_recipes(table: Path = TABLE, known: Mapping[str, Recipe] | None = None) -> dict:
    """The recipes of a file such as `recipes.yaml` by name; its `like` may name `known` ones."""
    recipes: dict[str, Recipe] = {}
    for name, values in parse_yaml(table.read_text("utf-8")).items():
        like = (
            asdict(({**(known or {}), **recipes})[values.pop("like")]) if "like" in values else {}
        )
        recipes[name] = Recipe(**like | values | {"name": name})
    return recipes


RECIPES = read_recipes()
BRICKEN_2023, WARD_2024 = RECIPES["bricken_2023"], RECIPES["ward_2024"]


def rate(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """The share, from 0 to 1, at which the learning rate (or λ) stands in a step: it rises linearly
    over the first `warmup` of training and falls linearly to zero over the last `decay`. Not the
    learning rate itself, which is `recipe.lr` times this, times the factor "rate" that
    `optimiser.parameter_groups` gives some of the weights.
    """
    up = (step + 1) / max(1, round(warmup * n_steps))
    down = (n_steps - step) / max(1, round(decay * n_steps)) if decay else 1.0
    return min(1.0, up, down)


def is_resampling_step(recipe: Recipe, step: int, n_steps: int) -> bool:
    r = recipe.resampling
    if r is None or step >= n_steps:
        return False
    is_periodic = r.every > 0 and step % r.every == 0
    return is_periodic or step in {round(share * n_steps) for share in r.at}


def rate_after_resampling(recipe: Recipe, step: int, n_steps: int) -> float:
    """The further share of the learning rate in a step, which rises linearly from the last step at
    which features were due to be resampled; 1 without `resampling.lr_warmup`.
    """
    steps = round(recipe.resampling.lr_warmup * n_steps) if recipe.resampling else 0
    recent = range(step, max(0, step - steps), -1)
    last = next((s for s in recent if is_resampling_step(recipe, s, n_steps)), None)
    return 1.0 if last is None else (step - last + 1) / steps


def of_recipe(sae: SAESettings, name: str) -> SAESettings:
    """The same autoencoder by another recipe, at that recipe's own values: its units differ."""
    return sae.model_copy(
        update={"recipe": name, "resample_at": None} | dict.fromkeys(RECIPE_VALUES)
    )


def uses(recipe: Recipe, name: str) -> bool:
    """Whether a setting of `sae` changes anything for this recipe."""
    has_penalty = recipe.penalty != "none"
    has = {"k": recipe.k > 0, "l1": has_penalty, "l1_warmup": has_penalty}
    has |= {"tied": recipe.architecture == "standard", "init": not recipe.tied}
    return has.get(name, True)


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
    resampling = recipe.resampling if sae.resampling and not sae.frozen else None
    if sae.resample_at is not None:
        if not sae.resampling:
            raise SettingsError(
                "sae.resample_at: has no effect with sae.resampling=false; drop one"
            )
        resampling = replace(resampling or Resampling(), at=sae.resample_at, every=0)
    at = resampling.at if resampling else ()
    if at and max(at) * sae.activations < sae.dead_window:
        raise SettingsError(
            f"sae.dead_window: no feature can be silent for {sae.dead_window:,} activations before"
            f" the last resampling, at {max(at):.0%} of sae.activations={sae.activations:,}; "
            "set a smaller window, or sae.resampling=false"
        )
    given = {name: getattr(sae, name) for name in (*RECIPE_VALUES, "patience", "frozen")}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = replace(recipe, **given, resampling=resampling)
    if recipe.k > sae.d_sae:
        raise SettingsError(f"sae.k: {recipe.k} active features exceed sae.d_sae={sae.d_sae}")
    return recipe


def at_width(recipe: Recipe, tuned_at: int | None, d_in: int) -> Recipe:
    """The recipe with λ and learning rates carried over from the width `tuned_at`, where they were
    chosen, to `d_in`; unchanged for None. `SettingsError` for a recipe that does not scale
    activations.

    Scaled activations have the norm √d_in, and the features' activations grow with it. Let r be
    √(d_in / tuned_at). From one width to the other the squared error grows by r², the sum of the
    features' activations (L1) by r, and their number (L0) not at all. So that penalty and error
    stay in proportion, λ is multiplied by r for an L1 penalty and by r² for L0. A jumprelu's
    threshold and bandwidth are compared with the features' activations and are multiplied by r.
    `size` is r: how the learning rates follow from it says `optimiser.parameter_groups`.
    """
    if tuned_at is None:
        return recipe
    if not recipe.scale_activations:
        raise SettingsError(
            f"sae.tuned_at: recipe {recipe.name} keeps the activations' own units, so that no rule"
            " carries its λ over to another width; leave it out"
        )
    ratio = math.sqrt(d_in / tuned_at)
    return replace(
        recipe,
        size=ratio,
        l1=recipe.l1 * (ratio**2 if recipe.penalty == "l0" else ratio),
        threshold_init=recipe.threshold_init * ratio,
        bandwidth=recipe.bandwidth * ratio,
    )


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


def training_fingerprint(sae: SAESettings) -> dict:
    """The settings that the trained weights depend on, with what they leave to the recipe."""
    no_effect = {"compare", "widths", "checkpoint_every", "checkpoint_gb", "resample_at"}
    # what came later, and changes nothing where it is not set
    no_effect |= {name for name in ("tuned_at", "outlier_norm") if getattr(sae, name) is None}
    values = asdict(resolve(sae))
    later = [name for name in ("prefixes", "transcoder") if not values[name]]
    for name in ("name", "source", "differences", *later):
        del values[name]
    if values["resampling"]:  # these came later, too
        default = asdict(Resampling())
        for name in ("moments", "lr_warmup"):
            if values["resampling"][name] == default[name]:
                del values["resampling"][name]
    return sae.model_dump(mode="json", exclude=no_effect) | values
