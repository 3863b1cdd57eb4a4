"""What the stages of a run take of a GPU's memory, or of this machine's, counted from its settings;
tests hold the counts against full-size runs in which no number is computed (tests/on_fake_gpu.py),
and benchmarks/rehearsal.py against one on a CPU.
"""

from bisect import bisect_left

from sae_lib.device import in_float32
from sae_lib.features import clamping, firing, hook_comparison, weights
from sae_lib.features.evaluation import LOSS_ROWS_AT_ONCE
from sae_lib.model.activations import BYTES_AT_ONCE, ROWS_AT_ONCE
from sae_lib.sae.initialise import STATISTICS_ROWS, STATISTICS_VALUES
from sae_lib.sae.recipes import resolve, variants
from sae_lib.settings import SAESettings, Settings
from suite.estimate import KNOWN
from suite.runs import last_mlp_settings

GB = 1e9
FLOAT, HALF = 4, 2  # bytes
# (copies of a weight matrix [d_sae, d_in] in float32, and of a batch's activations [batch, d_sae])
# that exist at the peak of a step: while the optimiser moves the weights, in the backward pass, and
# there with the auxiliary loss of TopK when all features are dead
OPTIMISER, BACKWARD, AUXILIARY = (9.0, 0.0), (6.6, 2.0), (10.2, 2.6)
# … and of a sparse step, as a CPU makes it
SPARSE, SPARSE_AUXILIARY = (9.6, 1.5), (12.2, 2.6)
COMPARED_ROWS = 64  # of text, on which notebook 05 compares hooks
KEPT = 0.8 * GB  # by the driver and libraries
FRAGMENTS = 1.05
HUB_MODEL = KNOWN["hub_model"]


def model_shape(s: Settings, gpu: bool = True) -> tuple[float, int, int]:
    """(bytes of the language model, its vocabulary, the widest of its tensors per token, that of
    the MLP); those of a model of the hub are assumed. On a CPU it takes nothing where it stays in
    its files, see `device.in_float32`.
    """
    if s.lm.source != "train":
        held = FLOAT if in_float32(HUB_MODEL["parameters"]) else 0
        value = HALF if gpu else held
        return value * HUB_MODEL["parameters"], HUB_MODEL["vocab"], HUB_MODEL["d_mlp"]
    layer = s.lm.d_model * (4 * s.lm.d_model + 3 * s.lm.d_mlp)
    vocab = max(s.tokenizer.vocab_size, 50_257 * (s.tokenizer.source != "train"))
    return FLOAT * (s.lm.n_layer * layer + 2 * vocab * s.lm.d_model), vocab, s.lm.d_mlp


def training_step(d_in: int, sae: SAESettings, gpu: bool = True) -> float:
    """Bytes of an autoencoder, its optimiser and a step with all that it makes."""
    recipe = resolve(sae)
    moments, auxiliary = (OPTIMISER, BACKWARD), AUXILIARY
    if not gpu:
        moments, auxiliary = (SPARSE,), SPARSE_AUXILIARY
    moments += (auxiliary,) if recipe.aux else ()
    each = (
        weights * d_in * sae.d_sae + acts * recipe.batch * sae.d_sae for weights, acts in moments
    )
    return FLOAT * (max(each) + recipe.batch * d_in)


def tensors(s: Settings, gpu: bool = True) -> dict[str, float]:
    """Bytes of tensors at the peak of each stage of one model and its autoencoders."""
    (model, vocab, d_mlp), context = model_shape(s, gpu), s.lm.context
    d_model = s.lm.d_model if s.lm.source == "train" else HUB_MODEL["d_model"]
    d_in = d_mlp if "mlp.hook_p" in s.sae.hook_name else d_model
    value = FLOAT if s.lm.source == "train" else HALF
    chunk = s.sae.buffer_rows * context * d_in * value
    rows = s.sae.buffer_rows if gpu else min(s.sae.buffer_rows, ROWS_AT_ONCE)
    forward = 8 * d_mlp * value * rows * context
    forward = min(BYTES_AT_ONCE, forward) if gpu else forward
    first = min(STATISTICS_ROWS * context * d_in, STATISTICS_VALUES)
    # in the model's precision, in float32, and those of them that are kept
    found = {"start": max(forward + value * first, (2 * FLOAT + 1.5 * value) * first)}
    dictionaries, widest = FLOAT * d_in**2, d_in  # the neurons'
    for name, sae in variants(s).items():
        matrix = FLOAT * d_in * sae.d_sae
        step = training_step(d_in, sae, gpu)
        # on a GPU a chunk is harvested while the one before is trained on
        found[f"training {name}"] = step + (1 + gpu) * chunk + forward
        of_weights = (
            2 * matrix,
            matrix + 2 * FLOAT * weights.AT_ONCE * sae.d_sae,
            FLOAT * (d_model * (vocab + d_in) + 3 * weights.AT_ONCE * vocab),
        )
        found[f"features of {name}"] = 3 * matrix + max(of_weights)
        dictionaries, widest = dictionaries + 2 * matrix, max(widest, sae.d_sae)
    n = firing.rows_at_once(firing.ROWS_AT_ONCE, widest * context) * context
    n_loss = firing.rows_at_once(LOSS_ROWS_AT_ONCE, vocab * context) * context
    # features of a batch thrice, or the neurons above zero with their places; log-probabilities
    # clean and changed, and three tables as large for their divergence
    fire = min(n, s.evaluation.tokens) * max(3 * widest + 2 * d_in, 6 * d_in)
    loss = min(n_loss, s.evaluation.loss_tokens) * 5 * vocab
    found["evaluation"] = dictionaries + FLOAT * max(fire, loss)
    n = min(clamping.ROWS_AT_ONCE, s.clamping.rows) * context
    places = 2 * s.clamping.rows * clamping.PER_ROW * vocab
    clamped = 2 * d_in * s.sae.d_sae + places + n * 3 * (s.sae.d_sae + d_in)
    found["clamping"] = FLOAT * clamped
    n = COMPARED_ROWS * context + 7 * hook_comparison.SCALED_ON
    found["comparing hooks"] = FLOAT * d_in * (n + 7 * d_in)
    return {name: model + size for name, size in found.items()}


def stages(s: Settings, gpu: bool = True) -> dict[str, float]:
    """`tensors`, and what else is taken beside them."""
    return {name: FRAGMENTS * size + KEPT for name, size in tensors(s, gpu).items()}


def peak(s: Settings) -> tuple[str, float]:
    """(the stage that takes most, its bytes)."""
    return max(stages(s).items(), key=lambda item: item[1])


def parts(s: Settings) -> dict[str, Settings]:
    """The run's own settings, and those of the last MLP of the deeper model."""
    return {"": s, "last_mlp.": last_mlp_settings(s)}


def widest(s: Settings, have: float) -> int:
    """The most features, a multiple of 1024, of which everything fits; 0 where none do."""

    def exceeds(n: int) -> bool:
        narrower = s.sae.model_copy(update={"d_sae": n, "widths": ()})
        return peak(s.model_copy(update={"sae": narrower}))[1] > have

    widths = range(1024, 1 << 22, 1024)
    return 1024 * bisect_left(widths, True, key=exceeds)


def report(s: Settings) -> str:
    """The plan in lines: the largest stage of each part."""
    named = {prefix or "1-layer model": peak(part) for prefix, part in parts(s).items()}
    each = (f"{name.strip('.')} {size / GB:.0f} GB ({of})" for name, (of, size) in named.items())
    return "; ".join(each)


def advice(s: Settings, have: float) -> str:
    """What to do on a card of `have` bytes where the plan does not fit; "" where it does."""
    said = []
    for prefix, part in parts(s).items():
        if peak(part)[1] <= have:
            continue
        if n := widest(part, have):
            said.append(f"--set {prefix}sae.d_sae={n} fits")
        else:
            said.append(
                f"{prefix}lm does not fit beside any autoencoder: an 8-bit copy of it, or one that"
                " accelerate keeps partly in the machine's memory (neither is built in), a smaller"
                f" model with --set {prefix}lm.source=…, or a larger card"
            )
    return "; ".join(said)
