"""One validated settings object; profiles are YAML files, overrides (`overrides.py`) are `section.key=value`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from sae_lib.errors import SettingsError
from sae_lib.overrides import apply

PROFILES_FOLDER = Path(__file__).parent / "profiles"
PROFILES = ("smoke", "laptop", "runpod")
RECIPE_VALUES = (
    "batch",
    "lr",
    "l1",
    "k",
    "tied",
    "lr_warmup",
    "lr_decay",
    "l1_warmup",
)  # settings of `sae` that override a value of its recipe


Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSettings(Section):
    source: str = "installation"  # installation, files:PATH_OR_GLOB or hub:DATASET
    revision: str | None = None  # of a hub data set
    train_tokens: PositiveInt = 12_500_000  # at most; fewer where the corpus is smaller
    heldout_tokens: PositiveInt = 1_200_000
    max_file_bytes: PositiveInt = 60_000  # installation: a longer file is cut at a line end
    max_kind_bytes: dict[
        str, int
    ] = {  # installation: bytes per kind of file; a kind not named is left out
        "py": 38_000_000,
        "pyi": 2_000_000,
        "header": 5_000_000,
        "markdown": 3_000_000,
        "rst": 3_000_000,
        "text": 3_000_000,
        "html": 2_000_000,
        "json": 2_000_000,
        "metadata": 2_000_000,
        "licence": 1_000_000,
    }
    shuffle_buffer: PositiveInt = 10_000  # hub: documents held for the streamed shuffle


class TokenizerSettings(Section):
    source: str = "train"  # train, or a hub name or local folder such as gpt2
    vocab_size: int = Field(4096, ge=257)  # of a trained one: 256 bytes, <|endoftext|>, merges
    train_bytes: PositiveInt = 20_000_000  # of text that the merges are learned from


class LanguageModelSettings(Section):
    source: str = (
        "train"  # train, or a hub name or local folder with a trained causal language model
    )
    architecture: Literal["gpt2", "llama"] = "gpt2"
    n_layer: PositiveInt = 1
    d_model: PositiveInt = 128
    n_heads: PositiveInt = 8
    d_mlp: PositiveInt = 512
    context: int = Field(128, ge=2)  # tokens per row
    train_tokens: PositiveInt = 9_000_000
    batch: PositiveInt = 64  # rows per step
    lr: float = Field(8e-4, gt=0)
    final_lr: float = Field(0.1, ge=0, le=1)  # share of lr at the end of the cosine
    warmup: float = Field(0.05, ge=0, le=1)  # share of the steps
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eval_every: PositiveInt = 100  # steps
    checkpoint_every: PositiveInt = 250  # steps
    checkpoint_gb: float = Field(
        40.0, gt=0
    )  # of disk: the last two checkpoints are kept while both fit, else one
    eval_rows: PositiveInt = 512

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self


class SAESettings(Section):
    """What to train on what; None leaves a value to the recipe (see `sae_lib/recipes.py`)."""

    recipe: str = "bricken_2023"
    compare: tuple[str, ...] = ("ward_2024",)  # further recipes that notebook 03 trains beside it
    widths: tuple[PositiveInt, ...] = ()  # further d_sae that notebook 03 trains the recipe with
    hook_name: str = "blocks.0.mlp.hook_post"
    d_sae: PositiveInt = 4096
    activations: PositiveInt = 3_000_000
    resampling: bool = True
    dead_window: PositiveInt = 500_000  # activations that a feature must be silent to count as dead
    resampling_inputs: PositiveInt = 65_536  # activations scored when dead features are resampled
    batch: PositiveInt | None = None
    lr: float | None = Field(None, gt=0)
    l1: float | None = Field(None, ge=0)  # λ, whatever the recipe's penalty
    k: PositiveInt | None = None  # topk, batchtopk
    tied: bool | None = None  # the encoder is the decoder's transpose; ReLU recipes
    lr_warmup: Share | None = None  # the first share of training, linearly up …
    lr_decay: Share | None = None  # … and the last, linearly down to zero
    l1_warmup: Share | None = None
    resample_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None  # shares of training
    patience: NonNegativeInt | None = (
        None  # held-out checks without improvement after which training stops; 0: never
    )
    seed: int | None = None  # of the autoencoder alone; None: the run's
    precision: Literal["auto", "float32", "bfloat16"] = (
        "float32"  # of the features' activations in training, and of all products in dense steps
    )
    buffer_rows: PositiveInt = 1024  # rows of text harvested and shuffled together
    log_every: PositiveInt = 50  # steps
    check_every: PositiveInt = 250  # steps, where training may stop early
    checkpoint_every: PositiveInt = 500  # steps
    checkpoint_gb: float = Field(
        40.0, gt=0
    )  # of disk: the last two checkpoints are kept while both fit, else one


class EvaluationSettings(Section):
    tokens: PositiveInt = 1_020_000  # held-out tokens for densities and dead features
    loss_tokens: PositiveInt = 131_072  # held-out tokens for cross-entropy and KL


class FeatureSettings(Section):
    top_k: PositiveInt = 20
    context: PositiveInt = 24  # tokens shown before the strongest one
    after: PositiveInt = 12  # and after it
    logits: PositiveInt = 10
    samples: PositiveInt = 3  # examples drawn from each tenth of a feature's range of activations
    keep_marked: bool = False  # count first tokens, padding and outlying norms (attention sinks) among the top examples too


class InterpretabilitySettings(Section):
    """Rules for when a unit fires, and what they are scored against."""

    tokens: PositiveInt = 200_000  # held-out tokens of each half, at most
    features: PositiveInt | None = None  # at most so many features; None: all
    units: PositiveInt = 256  # at most so many of every other kind
    conditions: int = Field(4, ge=1, le=8)  # of a rule, at most
    values: PositiveInt = 6  # of a condition, at most
    min_active: PositiveInt = 20  # activations in either half below which a unit is not scored
    untrained_activations: int = Field(
        200_000, ge=0
    )  # that the autoencoder of an untrained model is trained on; 0: leave it out
    clusters: PositiveInt = 120  # groups of features
    seed: int | None = None  # of splits and draws; None: the run's


class PromptSettings(Section):
    prompts: tuple[str, ...] = (
        "def __init__(self, ",
        "The licensee shall ",
        "import numpy as np\n",
        "## Installation\n",
    )
    new_tokens: PositiveInt = 48
    temperature: float = Field(0.8, gt=0)


class ExplainSettings(Section):
    """Explanations by a chat model, and how well they predict; where the model is comes from the environment (`sae_lib/interpretability/chat.py`)."""

    features: PositiveInt = 20
    baselines: tuple[Literal["neuron_matched", "neuron"], ...] = (
        "neuron_matched",
        "neuron",
    )  # at the density of a feature, and as they are
    examples: int = Field(
        16, ge=2
    )  # shown for an explanation: half of them the strongest, half drawn at random
    test_examples: PositiveInt = 10  # of each answer, in each of the two tests
    batch: PositiveInt = 5  # judged in one request
    rating: bool = False  # also ask for a rating from 1 to 5
    temperature: float | None = Field(0.0, ge=0)  # null: the endpoint's own
    answer_tokens: PositiveInt = 400  # at most; a model that thinks aloud needs thousands
    timeout: float = Field(60.0, gt=0)  # seconds
    attempts: PositiveInt = 4  # per request
    max_requests: PositiveInt = (
        2000  # per call, as all three limits; what the cache answers costs nothing
    )
    max_tokens: PositiveInt = 2_000_000
    max_cost: float | None = Field(None, gt=0)
    price_prompt: float | None = Field(None, ge=0)  # per million tokens, in any currency
    price_answer: float | None = Field(None, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _prices(self):
        if (
            (self.price_prompt is None) != (self.price_answer is None)
            or self.max_cost is not None
            and self.price_prompt is None
        ):
            raise ValueError(
                "max_cost needs both price_prompt and price_answer, and each of these needs the other"
            )
        return self


class LastMLPSettings(Section):
    """Notebook 05: the last layer's MLP of a deeper model."""

    lm: LanguageModelSettings = LanguageModelSettings(architecture="llama", n_layer=4)
    sae: SAESettings = SAESettings(compare=())
    tokenizer: TokenizerSettings | None = None  # None: the run's own
    train_tokens: PositiveInt | None = (
        None  # of text for it, where its tokeniser makes tokens of its own; None: as many as the run
    )


class ClampingSettings(Section):
    """Notebook 06: features held at chosen values."""

    features: PositiveInt = (
        2  # drawn among those with a clear effect on the logits, beside those drawn among all
    )
    values: tuple[float, ...] = (
        0.0,
        0.5,
        1.0,
        2.0,
        4.0,
    )  # of a sweep, in multiples of the feature's maximum
    rows: PositiveInt = 16  # of held-out text, measured at 16 places each
    draws: PositiveInt = 5  # random directions, and other features, that a feature is held against
    new_tokens: PositiveInt = 40
    temperature: float = Field(0.8, ge=0)


class ToySettings(Section):
    preset: Literal["smoke", "laptop", "full"] = "laptop"


class Settings(Section):
    profile: Literal["smoke", "laptop", "runpod"] = "laptop"
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    lm: LanguageModelSettings = LanguageModelSettings()
    sae: SAESettings = SAESettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    features: FeatureSettings = FeatureSettings()
    interpretability: InterpretabilitySettings = InterpretabilitySettings()
    prompts: PromptSettings = PromptSettings()
    last_mlp: LastMLPSettings = LastMLPSettings()
    clamping: ClampingSettings = ClampingSettings()
    explain: ExplainSettings = ExplainSettings()
    toy: ToySettings = ToySettings()

    @model_validator(mode="after")
    def _tokeniser_fits(self):
        for name, lm, tokenizer in (
            ("", self.lm, self.tokenizer),
            ("last_mlp.", self.last_mlp.lm, self.last_mlp.tokenizer or self.tokenizer),
        ):
            if lm.source != "train" and tokenizer.source == "train":
                raise ValueError(
                    f"{name}lm.source={lm.source} needs a tokeniser that matches it: add --set {name}tokenizer={lm.source}"
                )
        return self


def load(profile: str = "laptop", overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Settings of a profile with `section.key=value` overrides; raises `SettingsError` for anything unknown or impossible."""
    if profile not in PROFILES:
        raise SettingsError(f"profile {profile!r} does not exist; there are: {', '.join(PROFILES)}")
    data = yaml.safe_load((PROFILES_FOLDER / f"{profile}.yaml").read_text())
    data["profile"] = profile
    for section, prefix in ((data, ""), (data["last_mlp"], "last_mlp.")):
        others = [
            o
            for o in overrides
            if o.startswith(f"{prefix}sae.recipe=")
            and o != f"{prefix}sae.recipe={section['sae']['recipe']}"
        ]
        if others:  # the profile's values are those of its own recipe
            section["sae"] = {
                name: value for name, value in section["sae"].items() if name not in RECIPE_VALUES
            }
    for override in overrides:
        apply(data, override, Settings)
    return validate(data)


def validate(data: dict[str, Any]) -> Settings:
    """A `Settings` from plain data; the first problem becomes a `SettingsError` that names the setting."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise SettingsError(f"{name}: {first['msg']} (found {first['input']!r})") from None
