"""The language model: its loss, its schedule, its training, and what happens when training is
cut short.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib import checkpoints
from sae_lib.errors import ArtefactError, CorpusError, ModelError, TrainingError
from sae_lib.model import language_model
from sae_lib.model import loss as model_loss
from sae_lib.settings import LanguageModelSettings
from sae_lib.text import hub
from suite import stages
from suite.runs import Run
from suite.stages import STAGES


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    vocab=st.integers(2, 50),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_chunked_loss_and_gradients_are_those_of_torch(n, d, vocab, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(n, d, generator=g, requires_grad=True),
        torch.randn(vocab, d, generator=g, requires_grad=True),
    )
    targets = torch.randint(vocab, (n,), generator=g)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = model_loss.LinearCrossEntropy.apply(hidden, weight, targets, chunk)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(3 * loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_loss_is_hugging_faces_own(architecture):
    s = LanguageModelSettings(
        architecture=architecture, n_layer=2, d_model=16, n_heads=2, d_mlp=24, context=10
    )
    model = language_model.build(s, 30, 0)
    tokens = torch.randint(30, (3, 11))
    hf = F.cross_entropy(
        model(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(language_model.next_token_loss(model, tokens), hf)


def test_model_is_the_originals_shape():
    model = language_model.build(LanguageModelSettings(), 4096, 0)
    config = model.config
    assert (
        config.n_layer,
        config.n_embd,
        config.n_inner,
        config.n_head,
        config.n_positions,
        config.activation_function,
    ) == (1, 128, 512, 8, 128, "relu")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_schedule_warms_up_peaks_and_decays():
    rates = [language_model.schedule(i, 100, 0.1, 0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(
        0.1, abs=0.001
    )
    assert rates[55] == pytest.approx(0.55)


def test_every_epoch_sees_every_row_once_in_another_order():
    steps = [language_model.rows_of_step(i, 23, 5, 0).tolist() for i in range(8)]
    first, second = sum(steps[:4], []), sum(steps[4:], [])
    assert len(set(first)) == 20 and len(set(second)) == 20 and first != second


def test_training_learns_and_records_what_it_did(small_run):
    summary = small_run.summary("language_model")
    curve = summary["curve"]
    assert (
        curve[-1]["heldout"] < curve[0]["heldout"] < 6.94
    )  # ln 1024 = 6.93: what knowing nothing costs
    assert (
        summary["tokens"] == curve[-1]["tokens"]
        and len(summary["density"]) == small_run.settings.lm.d_mlp
    )
    assert all(0 <= d <= 1 for d in summary["density"])


def test_density_is_the_share_of_positions_where_the_neuron_fires(small_run, hook):

    s = small_run.settings.lm.model_copy(update={"eval_rows": 8})
    tokens = small_run.get("tokens")
    rows = torch.from_numpy(tokens.rows("heldout", s.context + 1)[[0, -1]].astype("int64"))
    _, density = language_model.evaluate(hook.model, tokens, s.model_copy(update={"eval_rows": 2}))
    torch.testing.assert_close(density, (hook.activations(rows[:, :-1]) > 0).float().mean((0, 1)))


class Killed(Exception):
    pass


def test_interrupted_training_ends_with_the_same_weights_bit_for_bit(
    small_run, tmp_path, monkeypatch
):
    overrides = {
        "lm": small_run.settings.lm.model_copy(
            update={"train_tokens": 32 * 64 * 12, "checkpoint_every": 5, "eval_every": 4}
        )
    }
    settings_ = small_run.settings.model_copy(update=overrides)
    whole, broken = (
        Run(settings_, tmp_path / name, STAGES, parent=small_run) for name in ("whole", "broken")
    )
    whole.path("language_model")
    save = checkpoints.save_checkpoint

    def save_then_die(folder, step, *rest):
        save(folder, step, *rest)
        if step == 10:
            raise Killed

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        broken.path("language_model")
    assert not (broken.folder / "language_model").exists(), (
        "half a model must not look like a whole one"
    )
    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    broken.path("language_model")
    a, b = (run.get("language_model").state_dict() for run in (whole, broken))
    assert all(torch.equal(a[k], b[k]) for k in a)
    curves = [
        [{k: v for k, v in p.items()} for p in run.summary("language_model")["curve"]]
        for run in (whole, broken)
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    "budget, left, beside", [(7_000, [3], [2]), (10_000, [2, 3], [2]), (15_000, [2, 3], [1, 2])]
)
def test_checkpoints_stay_within_their_budget_even_while_one_is_written(
    tmp_path, monkeypatch, budget, left, beside
):
    """A checkpoint is 4 kB: one and the new one, two but not while a third is written, or all
    three.
    """
    there, write = [], checkpoints.write_atomically
    monkeypatch.setattr(
        checkpoints,
        "write_atomically",
        lambda path, content: (there.append(checkpoints.steps(tmp_path)), write(path, content)),
    )
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(
            tmp_path, step, {"w": torch.arange(1000.0)}, {"x": step}, {"seed": 0}, budget=budget
        )
    assert (
        checkpoints.steps(tmp_path) == left
        and len(list(tmp_path.iterdir())) == 2 * len(left)
        and there[-1] == beside
    )


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_flipped_byte_in_a_checkpoint_is_refused_by_name(tmp_path, suffix):
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(
            tmp_path, step, {"w": torch.arange(10.0)}, {"x": step, "curve": [0.5]}, {"seed": 0}
        )
    assert checkpoints.steps(tmp_path) == [2, 3], "the last two are kept"
    with pytest.raises(ArtefactError, match="seed: 0 in the folder, 1 now"):
        checkpoints.load_checkpoint(tmp_path, {"seed": 1})
    path = tmp_path / f"step-00000003.{suffix}"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ArtefactError, match=rf"step-00000003.{suffix}.* damaged"):
            checkpoints.load_checkpoint(tmp_path, {"seed": 0})
    for file in tmp_path.glob("step-00000003.*"):
        file.unlink()
    assert checkpoints.load_checkpoint(tmp_path, {"seed": 0})[2]["x"] == 2


def test_too_little_text_for_one_batch_is_an_error(text_folder, tmp_path):
    run = stages.open_run(
        "smoke", tmp_path / "r", [f"corpus=files:{text_folder}/00*.py", "lm.batch=100000"]
    )
    with pytest.raises(CorpusError, match="lm.batch"):
        run.path("language_model")
    assert not (tmp_path / "r/language_model").exists()


def test_models_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no/such-model.*local folder"):
        language_model.open_model("no/such-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelError, match="model.safetensors"):
        language_model.open_model(str(tmp_path))


def test_a_gated_model_asks_for_the_token():
    message = hub.problem(OSError("403 Client Error. Access to model a/b is gated"))
    assert "HF_TOKEN" in message and "accept its terms" in message


def test_an_exploding_loss_ends_training_with_its_causes(small_run, tmp_path):
    lm = small_run.settings.lm.model_copy(
        update={"lr": 1e4, "grad_clip": 1e6, "warmup": 0.0, "checkpoint_every": 3}
    )
    run = Run(
        small_run.settings.model_copy(update={"lm": lm}),
        tmp_path / "wild",
        STAGES,
        parent=small_run,
    )
    with pytest.raises(
        TrainingError,
        match=r"language model: the loss is .* at step \d+ .*likely causes: lm.lr 10000.0",
    ):
        run.path("language_model")
    assert not (run.folder / "language_model").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_attention_that_looks_for_no_packed_rows_gives_the_same_numbers(architecture):
    """What a GPU's host does not wait for; the positions of these rows are 0, 1, 2 … anyway."""
    torch.manual_seed(0)
    settings_ = LanguageModelSettings(architecture=architecture, n_layer=2, d_model=32, d_mlp=64)
    model = language_model.build(settings_, 100, 0).eval()
    ids = torch.randint(100, (3, 20))
    expected = model(input_ids=ids).logits
    assert torch.equal(language_model.without_waits(model)(input_ids=ids).logits, expected)
