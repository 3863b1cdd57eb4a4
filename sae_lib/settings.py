"""One validated settings object; profiles are YAML files, overrides are `section.key=value`."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sae_lib.errors import SettingsError, shown
from sae_lib.user_input import apply, first_problem, parse_yaml

PROFILES_FOLDER = Path(__file__).parent / "profiles"
PROFILES = ("smoke", "laptop", "runpod")
# settings of `sae` that override a value of its recipe
RECIPE_VALUES = ("batch", "lr", "l1", "k", "tied", "init", "lr_warmup", "lr_decay", "l1_warmup")


def whole(least: int, most: int) -> Any:
    """The type of a whole number in this range."""
    return Annotated[int, Field(ge=least, le=most)]


def real(least: float, most: float) -> Any:
    """The type of a number in this range."""
    return Annotated[float, Field(ge=least, le=most)]


def positive(most: float) -> Any:
    """The type of a number above 0 and at most this."""
    return Annotated[float, Field(gt=0, le=most)]


# Upper bounds are far above what any machine can use: they catch a slip of the keyboard before it
# becomes a MemoryError.
Share = real(0, 1)
Amount = whole(1, 10**13)  # of tokens, activations or bytes
Width = whole(1, 2**24)  # of a matrix
Steps = whole(1, 10**9)
Count = whole(1, 10**6)
Few = whole(1, 10**4)
Thousand = whole(1, 1000)
Rate = positive(10)  # of learning
Weight = real(0, 10**6)  # of a penalty
Gigabytes = positive(10**6)
Temperature = real(1e-3, 100)  # logits / temperature must stay finite
ColdTemperature = real(0, 100)  # 0: the most probable token
Price = real(0, 10**9)
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=4096)]
Precision = Literal["auto", "float32", "bfloat16"]
# mixed with the text: hub:DATASET@COMMIT or files:PATH, see `sae_lib/text/dialogues.py`
Dialogues = Annotated[Text | None, Field(exclude_if=lambda value: value is None)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info) -> Any:
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            return str(value).lower()  # which no number, list or section is: refused as such
        return value


class CorpusSettings(Section):
    source: Text = "installation"  # installation, files:PATH_OR_GLOB or hub:DATASET
    revision: Text | None = None  # of a hub data set
    dialogues: Dialogues = None
    train_tokens: Amount = 12_500_000  # at most; fewer where the corpus is smaller
    heldout_tokens: Amount = 1_200_000
    max_file_bytes: Amount = 60_000  # installation: a longer file is cut at a line end
    # installation: bytes per kind of file; a kind not named is left out
    max_kind_bytes: dict[str, Amount] = {
        "docstrings": 30_000_000,
        "py": 14_000_000,
        "pyi": 1_000_000,
        "header": 3_000_000,
        "markdown": 3_000_000,
        "rst": 3_000_000,
        "text": 3_000_000,
        "html": 2_000_000,
        "json": 1_000_000,
        "metadata": 2_000_000,
        "licence": 1_000_000,
    }
    shuffle_buffer: Count = 10_000  # hub: documents held for the streamed shuffle


class TokenizerSettings(Section):
    source: Text = "train"  # train, or a hub name or local folder such as gpt2
    vocab_size: whole(257, 2**22) = 4096  # of a trained one: 256 bytes, <|endoftext|>, merges
    train_bytes: Amount = 20_000_000  # of text that the merges are learned from


class LanguageModelSettings(Section):
    source: Text = "train"  # or a hub name or local folder with a trained causal language model
    revision: Text | None = None  # of a model of the hub: branch, tag or commit; None: its newest
    architecture: Literal["gpt2", "llama"] = "gpt2"
    # "ward_2024", for gpt2: scaled by 1/√d_model and without an output projection
    attention: Literal["standard", "ward_2024"] = "standard"
    n_layer: Thousand = 1
    d_model: Width = 128
    n_heads: Few = 8
    d_mlp: Width = 512
    context: whole(2, 2**20) = 128  # tokens per row
    train_tokens: Amount = 9_000_000
    batch: Count = 64  # rows per step
    lr: Rate = 8e-4
    final_lr: Share = 0.1  # share of lr at the end of the cosine
    warmup: Share = 0.05  # share of the steps
    weight_decay: real(0, 100) = 0.0
    grad_clip: positive(10**6) = 1.0
    precision: Precision = "auto"
    eval_every: Steps = 100  # steps
    checkpoint_every: Steps = 250  # steps
    checkpoint_gb: Gigabytes = 40.0  # the last two checkpoints are kept while both fit, else one
    eval_rows: Count = 512

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.attention != "standard" and self.architecture != "gpt2":
            raise ValueError(f"attention {self.attention} needs architecture gpt2")
        return self


class SAESettings(Section):
    """What to train on what; None leaves a value to the recipe (see `sae_lib/sae/recipes.py`)."""

    recipe: Text = "bricken_2023"
    # further recipes, and further d_sae, that notebook 03 trains beside it
    compare: Annotated[tuple[Text, ...], Field(max_length=50)] = ("ward_2024",)
    widths: Annotated[tuple[Width, ...], Field(max_length=50)] = ()
    hook_name: Text = "blocks.0.mlp.hook_post"
    d_sae: Width = 4096
    activations: Amount = 3_000_000
    resampling: bool = True
    # A feature that fired on none of the last so many training activations is dead. Recipes with
    # `resampling.fresh_sample` resample what fires on none of a sample drawn afresh instead.
    dead_window: Amount = 500_000
    resampling_inputs: Amount = 65_536  # activations scored when dead features are resampled
    batch: Width | None = None
    lr: Rate | None = None
    l1: Weight | None = None  # λ, whatever the recipe's penalty
    k: Width | None = None  # topk, batchtopk
    tied: bool | None = None  # the encoder is the decoder's transpose; ReLU recipes
    # How the weights start. small_tied: random features of one norm, the encoder their transpose at
    # a smaller one; independent: the same features, an encoder drawn on its own; torch_linear: as
    # `nn.Linear` draws both. See `sae_lib/sae/initialise.py`.
    init: Literal["small_tied", "independent", "torch_linear"] | None = None
    lr_warmup: Share | None = None  # the first share of training, linearly up …
    lr_decay: Share | None = None  # … and the last, linearly down to zero
    l1_warmup: Share | None = None
    # shares of training
    resample_at: (
        Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=1000)] | None
    ) = None
    # held-out checks without improvement after which training stops; 0: never
    patience: whole(0, 10**6) | None = None
    # keep this part of the weights random: a sanity baseline
    frozen: Literal["decoder", "soft_decoder", "encoder"] | None = None
    seed: Seed | None = None  # of the autoencoder alone; None: the run's
    # d_in at which lr and λ were chosen: they are carried over to the hook's own; None: not
    tuned_at: Width | None = None
    # activations longer than so many times the median norm (attention sinks) are left out of scale,
    # training and measures, with those of special tokens; None: all count
    outlier_norm: Annotated[float, Field(gt=1, le=10**6)] | None = None
    # Of matrix products in training; weights, gradients and Adam's moments are always float32. In
    # bfloat16 a sparse step makes x @ W_enc alone, a dense one all products of the loss and its
    # gradient; `gradients` in `sae_lib/sae/engine/sparse_step.py` says when a step is which.
    precision: Precision = "float32"
    buffer_rows: Count = 1024  # rows of text harvested and shuffled together
    log_every: Steps = 50  # steps
    check_every: Steps = 250  # steps, where training may stop early
    checkpoint_every: Steps = 500  # steps
    checkpoint_gb: Gigabytes = 40.0  # the last two checkpoints are kept while both fit, else one

    @field_validator("hook_name")
    @classmethod
    def _after_the_activation_function(cls, name: str) -> str:
        mlp, inside, _ = name.partition("mlp.hook_pre")
        if inside:
            raise ValueError(
                "features before the activation function push no logit directly, which clamping"
                f" and the feature table are about; use {mlp}mlp.hook_post"
            )
        return name


class EvaluationSettings(Section):
    tokens: Amount = 1_020_000  # held-out tokens for densities and dead features
    loss_tokens: Amount = 131_072  # held-out tokens for cross-entropy and KL


class FeatureSettings(Section):
    top_k: Few = 20
    context: Few = 24  # tokens shown before the strongest one
    after: Few = 12  # and after it
    logits: Few = 10
    samples: Few = 3  # examples drawn from each tenth of a feature's range of activations
    # count first tokens, padding and outlying norms (attention sinks) among the top examples too
    keep_marked: bool = False


class InterpretabilitySettings(Section):
    """Rules for when a unit fires, and what they are scored against."""

    tokens: Amount = 200_000  # held-out tokens of each half, at most
    features: Width | None = None  # at most so many features; None: all
    units: Count = 256  # at most so many of every other kind
    conditions: whole(1, 8) = 4  # of a rule, at most
    values: Few = 6  # of a condition, at most
    min_active: Amount = 20  # activations in either half below which a unit is not scored
    # also the autoencoder of an untrained model, of the same settings as the run's own
    untrained: bool = True
    clusters: Few = 120  # groups of features
    seed: Seed | None = None  # of splits and draws; None: the run's


class PromptSettings(Section):
    prompts: Annotated[
        tuple[Annotated[str, Field(max_length=10**6)], ...], Field(min_length=1, max_length=1000)
    ] = (
        "def __init__(self, ",
        "The licensee shall ",
        "import numpy as np\n",
        "## Installation\n",
    )
    new_tokens: Count = 48
    temperature: Temperature = 0.8


class ExplainSettings(Section):
    """Explanations by a chat model, and how well they predict; where the model is comes from the
    environment (`suite/chat.py`).
    """

    features: Count = 20
    # neurons at the density of a feature, and as they are
    baselines: tuple[Literal["neuron_matched", "neuron"], ...] = ("neuron_matched", "neuron")
    # shown for an explanation: half of them the strongest, half drawn at random
    examples: whole(2, 1000) = 16
    test_examples: Thousand = 10  # of each answer, in each of the two tests
    batch: Thousand = 5  # judged in one request
    rating: bool = False  # also ask for a rating from 1 to 5
    temperature: ColdTemperature | None = 0.0  # null: the endpoint's own
    answer_tokens: Count = 400  # at most; a model that thinks aloud needs thousands
    timeout: positive(86_400) = 60.0  # seconds for one request, whole
    attempts: whole(1, 100) = 4  # per request
    max_requests: Steps = 2000  # per call, as all three limits; cached answers cost nothing
    max_tokens: Amount = 2_000_000
    max_cost: positive(10**9) | None = None
    price_prompt: Price | None = None  # per million tokens, in any currency
    price_answer: Price | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _prices(self):
        absent = [price is None for price in (self.price_prompt, self.price_answer)]
        if any(absent) and not (all(absent) and self.max_cost is None):
            raise ValueError(
                "max_cost needs both price_prompt and price_answer, and each of these needs the "
                "other"
            )
        return self


class LastMLPSettings(Section):
    """Notebook 05: the last layer's MLP of a deeper model."""

    lm: LanguageModelSettings = LanguageModelSettings(architecture="llama", n_layer=4)
    sae: SAESettings = SAESettings(compare=())
    tokenizer: TokenizerSettings | None = None  # None: the run's own
    # of text for it, where its tokeniser makes tokens of its own; None: as many as the run
    train_tokens: Amount | None = None
    dialogues: Dialogues = None


class ClampingSettings(Section):
    """Notebook 06: features held at chosen values."""

    # drawn among those with a clear effect on the logits, beside those drawn among all
    features: Few = 2
    # of a sweep, in multiples of the feature's maximum
    values: Annotated[
        tuple[real(-1000, 1000), ...],
        Field(min_length=1, max_length=1000),
    ] = (0.0, 0.5, 1.0, 2.0, 4.0)
    ranked: Count = 100  # features drawn among all and ranked among random directions
    rows: Count = 16  # of held-out text, measured at 16 places each
    draws: Few = 5  # random directions, and other features, that a feature is held against
    new_tokens: Count = 40
    temperature: ColdTemperature = 0.8


class ToySettings(Section):
    preset: Literal["smoke", "laptop", "full"] = "laptop"


class Settings(Section):
    profile: Literal["smoke", "laptop", "runpod"] = "laptop"
    seed: Seed = 0
    device: Text = "auto"  # auto, cpu, cuda, cuda:1
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
        last = self.last_mlp.lm, self.last_mlp.tokenizer or self.tokenizer
        for name, lm, tokenizer in (("", self.lm, self.tokenizer), ("last_mlp.", *last)):
            if lm.source != "train" and tokenizer.source == "train":
                raise ValueError(
                    f"{name}lm.source={lm.source} needs a tokeniser that matches it: "
                    f"add --set {name}tokenizer={lm.source}"
                )
        return self


def load(profile: str = "laptop", overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Settings of a profile with `section.key=value` overrides; raises `SettingsError` for anything
    unknown or impossible.

    An override of `sae.recipe` (or `last_mlp.sae.recipe`) by another recipe than the profile's also
    drops the values that the profile sets of `RECIPE_VALUES` (batch, lr, l1, …): they were chosen
    for its own recipe. Then the other recipe's own hold, or what further overrides set.
    """
    if profile not in PROFILES:
        known = ", ".join(PROFILES)
        raise SettingsError(f"profile {shown(profile)} does not exist; there are: {known}")
    data = parse_yaml((PROFILES_FOLDER / f"{profile}.yaml").read_text())
    data["profile"] = profile
    for section, prefix in ((data, ""), (data["last_mlp"], "last_mlp.")):
        sae, setting = section["sae"], f"{prefix}sae.recipe="
        if any(o.startswith(setting) and o != setting + sae["recipe"] for o in overrides):
            # the profile's values were chosen for its own recipe
            section["sae"] = {name: sae[name] for name in sae if name not in RECIPE_VALUES}
    for override in overrides:
        apply(Settings, data, override)
    return validate(data)


def validate(data: dict[str, Any]) -> Settings:
    """A `Settings` from plain data; the first problem becomes a `SettingsError` that names the
    setting.
    """
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(first_problem(Settings, error)) from None
