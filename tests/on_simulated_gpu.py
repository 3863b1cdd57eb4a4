"""Everything that touches tensors, on a simulated GPU: `test_gpu.py` starts this file in a process
of its own, since torch keeps the device for the rest of the process.
"""

import pytest
import torch

from benchmarks import gpu as benchmark
from benchmarks import saelens
from sae_lib import checkpoints
from sae_lib.features import clamping
from sae_lib.features.hook_comparison import compare_hooks
from sae_lib.model import activations, language_model
from sae_lib.model.activations import ActivationBuffer, ActivationTable
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Directions
from sae_lib.sae.engine import captured, sparse_step
from sae_lib.sae.objective import Objective
from sae_lib.settings import SAESettings
from suite import prompts, stages
from suite.browser.kernel import Model
from tests import simulated_gpu

SMALL = [
    "lm.train_tokens=40000",
    "sae.activations=20000",
    "sae.dead_window=4000",
    "sae.widths=[]",
    "sae.compare=[topk,batchtopk,jumprelu]",
    "evaluation.tokens=8192",
    "evaluation.loss_tokens=2048",
    "interpretability.tokens=4096",
    "interpretability.min_active=3",
    "interpretability.features=24",
    "interpretability.units=8",
    "prompts.new_tokens=3",
    "last_mlp.lm.train_tokens=10000",
    "last_mlp.sae.activations=10000",
    "last_mlp.sae.dead_window=2000",
]
STEPS, LOG_EVERY = 36, 12


@pytest.fixture(scope="module", autouse=True)
def gpu():
    with simulated_gpu.simulated(pytest.MonkeyPatch()) as log:
        yield log


@pytest.fixture(scope="module")
def run(text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gpu"
    corpus = [f"corpus=files:{text_folder}", "corpus.train_tokens=60000"]
    run = stages.open_run("smoke", folder, [*corpus, "corpus.heldout_tokens=16000", *SMALL])
    run.path("autoencoder")
    return run


def test_the_simulated_device_refuses_what_cuda_refuses(gpu):
    x, sae = torch.randn(8, 4), SparseAutoencoder(4, 8).to(simulated_gpu.DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        sae(x)
    gpu.reset()
    (sae(x.to(simulated_gpu.DEVICE)) > 0).any().item()
    assert any("_local_scalar_dense" in line for line in gpu.waits)


STAGES = ["evaluation", "prompts", "features", "scores", "clusters", "untrained", "circuits"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage(run, stage, monkeypatch):
    monkeypatch.setattr(stages, "CIRCUIT_TOKENS", 1024)
    assert run.get("language_model").device == run.get("autoencoder").W_dec.device
    assert run.get("autoencoder").W_dec.device == simulated_gpu.DEVICE
    run.path(stage) if stages.STAGES[stage].folder else run.results(stage)


def test_the_last_mlp(run):
    """Notebook 05."""
    last = run.last_mlp()
    last.results("evaluation")
    last.path("features")
    hook, rows = stages.hook(last), stages.heldout_rows(last, 512)
    outlying = activations.leave_out(hook, rows, [0], 10.0)
    compare_hooks([hook], rows)
    assert outlying.device == simulated_gpu.DEVICE


@pytest.mark.parametrize("name", ["neurons", "random", "principal", "topk"])
def test_a_feature_table(run, name):
    run.path("features", name)
    assert run.get("dictionary", name).W_dec.device == simulated_gpu.DEVICE


def test_clamping(run):
    context = stages.clamp_context(run)
    maxima = clamping.drawn_maxima(context, 2, 0)
    feature = next(iter(maxima))
    clamping.against_null(context, feature, 2, 0)
    clamping.clamp_ranks(context.positions, context.dictionary, maxima, 0)
    rows = stages.heldout_rows(run, 512)
    clamping.ablation_losses(context.hook, context.dictionary, rows, [feature], 2, 1)
    for how in ("pin", "scale", "ablate"):
        clamp = {"feature": feature, "how": how, "value": 1.0}
        Model(run).clamp("import numpy as", [clamp], how == "pin", new_tokens=2)


def test_the_pages_questions(run):
    kernel = Model(run)
    assert kernel.activations("import numpy as np", 1)["ids"]
    kernel.context(0, 1, ablate=True)


def test_an_untrained_model_and_a_sampled_text(run):
    hook = stages.untrained_hook(run)
    ids, acts, _ = prompts.generate(hook, run.get("tokens").tokenizer, "import", 3, 0.8, 0)
    assert len(ids) == len(acts)


def test_thresholds_at_densities_that_were_counted_on_the_cpu():
    """Notebook 04 once died of this on every GPU."""
    x = torch.randn(400, 12).to(simulated_gpu.DEVICE)
    density = torch.linspace(0.01, 0.3, 12)
    matched = Directions(torch.eye(12).to(x.device), x.mean(0)).at_density(x, density)
    found = (matched.encode(x) > 0).float().mean(0).cpu()
    assert (found - density).abs().max() <= 1 / 400


# --- what the host waits for ---


def planted_fit(gpu, monkeypatch, recipe: str, folder=None, **changes):
    """Train on a planted table: (autoencoder, per step the waits, kernels and uploads)."""
    table = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    hook = ActivationTable(table.to(simulated_gpu.DEVICE))
    rows = torch.randint(64, (256, 16), generator=torch.Generator().manual_seed(1)).numpy()
    chosen = {"d_sae": 32, "batch": 64, "activations": STEPS * 64, "log_every": LOG_EVERY}
    chosen |= {"dead_window": 640, "buffer_rows": 64, "resampling": False, "precision": "auto"}
    settings = SAESettings(recipe=recipe, compare=(), **(chosen | changes))
    seen = []

    class Bar:
        """In place of the progress bar: looks at the device's log when a step begins."""

        def __init__(self, steps, **_):
            self.steps = steps

        def __iter__(self):
            for step in self.steps:
                seen.append((gpu.waits.copy(), sum(gpu.kernels.values()), gpu.uploads.copy()))
                yield step

        def set_postfix(self, *_):
            pass

    monkeypatch.setattr(training, "tqdm", Bar)
    gpu.reset()
    store = checkpoints.CheckpointFolder(folder) if folder else None
    sae, _ = training.fit(hook, rows, settings, 0, store)
    return sae, seen


FITTED: dict[str, tuple] = {}  # by recipe: autoencoder, counts at each step, replays


def fitted(gpu, monkeypatch, recipe: str) -> tuple:
    """`planted_fit` of a recipe, made once."""
    if recipe not in FITTED:
        off = {"patience": 0} if recipe == "tied" else {}
        made = planted_fit(gpu, monkeypatch, recipe, **off)
        FITTED[recipe] = (*made, gpu.kernels["graph"])
    return FITTED[recipe]


RECIPES = "bricken_2023 ward_2024 april_2024 topk batchtopk jumprelu tied".split()


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_between_log_points_waits_for_the_device(gpu, monkeypatch, recipe):
    _, seen, _ = fitted(gpu, monkeypatch, recipe)
    for step, (before, after) in enumerate(zip(seen, seen[1:], strict=False)):
        waited = after[0] - before[0]
        # the first looks at its loss, and the one after a log point at what is dead
        logs = step == 0 or (step + 1) % LOG_EVERY < 2
        assert logs or not waited, f"step {step}: {dict(waited)}"


@pytest.mark.parametrize(("recipe", "most"), [("bricken_2023", 80), ("topk", 80)])
def test_a_step_launches_a_bounded_number_of_kernels(gpu, monkeypatch, recipe, most):
    """Of its own, then one graph with its inputs and the batch that is taken from the chunk."""
    _, seen, _ = fitted(gpu, monkeypatch, recipe)
    kernels = [after[1] - before[1] for before, after in zip(seen, seen[1:], strict=False)]
    assert min(kernels[: captured.WARM_UP]) <= most and min(kernels) <= 8, kernels


@pytest.mark.parametrize("recipe", ["bricken_2023", "april_2024", "batchtopk", "jumprelu", "tied"])
def test_a_captured_step_is_the_eager_one_bit_for_bit(gpu, monkeypatch, recipe):
    """As a function of tensors: batch, rate, λ and weights change from replay to replay."""
    off = {"patience": 0} if recipe == "tied" else {}
    replayed, _, replays = fitted(gpu, monkeypatch, recipe)
    assert replays == STEPS - captured.WARM_UP
    monkeypatch.setattr(captured, "WARM_UP", STEPS)
    eager, _ = planted_fit(gpu, monkeypatch, recipe, **off)
    assert not gpu.kernels["graph"]
    for (name, one), other in zip(replayed.named_parameters(), eager.parameters(), strict=True):
        assert torch.equal(one.cpu(), other.cpu()), name


def test_a_step_that_the_host_looks_into_cannot_be_captured(gpu):
    looks = captured.Captured(lambda x, dead=None: x * x.sum().item(), simulated_gpu.DEVICE)
    with pytest.raises(RuntimeError, match="capturing"):
        for _ in range(captured.WARM_UP + 1):
            looks(torch.ones(2).to(simulated_gpu.DEVICE))


def test_a_chunk_is_uploaded_in_two_pieces_that_nobody_waits_for(gpu, monkeypatch):
    _, seen, _ = fitted(gpu, monkeypatch, "bricken_2023")
    of_chunks = seen[-1][2] - seen[0][2]
    assert set(of_chunks) == {"device.py:upload"}
    assert of_chunks["device.py:upload"] <= 2 * -(-STEPS // 16)
    assert not any("upload" in line for line in (seen[-1][0] - seen[0][0]))


def test_no_more_than_two_chunks_exist_at_a_time(gpu, monkeypatch):
    chunk = 64 * 64 * 512 * 4
    monkeypatch.setattr(activations, "BYTES_AT_ONCE", chunk // 4)
    hook = ActivationTable(torch.randn(16, 512).to(simulated_gpu.DEVICE))
    rows = torch.randint(16, (256, 64)).numpy()
    buffer = iter(ActivationBuffer(hook, rows, 64, 64, 0))
    before = gpu.live
    gpu.reset()
    for _ in range(4 * 64):
        next(buffer)
    assert 2 * chunk < gpu.peak - before < 2.6 * chunk  # a part of one is being harvested


def test_a_harvest_and_a_language_model_step_do_not_wait(gpu, run):
    hook, rows = stages.hook(run), run.get("tokens").rows("train", 64)[:200]
    gpu.reset()
    activations.harvest(hook, rows)
    assert not gpu.waits
    tokens = torch.from_numpy(rows.astype("int64")).to(hook.device)
    gpu.reset()
    language_model.next_token_loss(hook.model, tokens, torch.bfloat16)
    assert not gpu.waits


def test_a_training_that_was_killed_goes_on_with_other_threads(gpu, monkeypatch, tmp_path):
    class Killed(Exception):
        pass

    whole, _ = planted_fit(gpu, monkeypatch, "bricken_2023", tmp_path / "whole")
    save = checkpoints.save_checkpoint

    def save_then_die(folder, step, *rest):
        save(folder, step, *rest)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save_checkpoint", save_then_die)
        planted_fit(gpu, patch, "bricken_2023", tmp_path / "broken", checkpoint_every=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    again, seen = planted_fit(gpu, monkeypatch, "bricken_2023", tmp_path / "broken")
    torch.set_num_threads(threads)
    assert len(seen) == STEPS - 20
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu())


def test_a_dense_step_makes_five_products(gpu):
    """Two forward, and one for each of the three gradients that are as large as the weights."""
    sae = SparseAutoencoder(16, 32).to(simulated_gpu.DEVICE)
    x = torch.randn(64, 16).to(simulated_gpu.DEVICE)
    gpu.reset()
    sparse_step.gradients(sae, x, Objective(1.0, 0.1), torch.bfloat16)
    products = {name: n for name, n in gpu.kernels.items() if name in ("mm", "addmm", "bmm")}
    assert sum(products.values()) == 5, products


@pytest.mark.parametrize("part", benchmark.PARTS)
def test_the_benchmark_runs_whole(part, monkeypatch, tmp_path):
    """What it does on a GPU alone, too: the device's memory, and no wait within a step."""
    monkeypatch.setattr(saelens, "available", lambda package: False)
    miniature = ["--tiny", "--device", simulated_gpu.NAME, "--out", str(tmp_path)]
    found = benchmark.main([part, *miniature])
    failed = {name: case for name, case in found.items() if {"failed", "left out"} & set(case)}
    assert not failed
    if part == "checks":
        assert set(found["waits"].values()) == {"nothing waits"}
        assert found["resume"]["killed and resumed"] < 1e-5


def test_a_wait_within_a_step_is_an_error_of_the_benchmark(monkeypatch):
    step = training.training_step

    def waits(state, *rest, **how):
        measured = step(state, *rest, **how)
        return measured._replace(l0=torch.tensor(measured.l0.item()))

    monkeypatch.setattr(training, "training_step", waits)
    monkeypatch.setattr(benchmark, "WARM_UP", 0)
    with pytest.raises(RuntimeError, match="synchronizing operation"):
        benchmark.no_wait(benchmark.TINY, simulated_gpu.DEVICE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gradient_is_that_of_the_cpu(recipe):
    """The GPU's path through autograd against the CPU's own, in float32."""
    sae = SparseAutoencoder(16, 32, "topk" if "topk" in recipe else "standard", 4)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x, objective = torch.randn(20, 16), Objective(1.0, 0.3)
    sparse_step.gradients(sae, x, objective)
    expected = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad(set_to_none=True)
    sae = sae.to(simulated_gpu.DEVICE)
    sparse_step.gradients(sae, x.to(simulated_gpu.DEVICE), objective)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), expected[name], rtol=1e-4, atol=1e-4)
