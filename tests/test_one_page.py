"""Notebook 00 is a second implementation: on the same weights and tokens it computes what the
library computes.
"""

import ast
import json
import re

import nbformat
import numpy as np
import pytest
import torch

from sae_lib.features import evaluation
from sae_lib.features import feature_table as features
from sae_lib.model import activations, language_model
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.engine.sparse_step import gradients
from sae_lib.sae.objective import Objective
from sae_lib.sae.recipes import BRICKEN_2023
from sae_lib.sae.resampling import resample
from sae_lib.settings import FeatureSettings
from suite import headless
from tests import ROOT
from tests.test_pipeline import sae_lib
from tests.test_sparse_step import random_sae

NOTEBOOK = ROOT / "notebooks" / "00_in_one_page.ipynb"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
CODE = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Page:
    """The notebook's functions and classes, without running what they are used for."""

    def __init__(self):
        body = [n for cell in CODE for n in ast.parse(cell.source).body]
        wanted = ast.Module([n for n in body if isinstance(n, DEFINITIONS)], [])
        exec(compile(wanted, str(NOTEBOOK), "exec"), vars(self))


def close(found, expected, tolerance=1e-4):
    """Equal up to `tolerance` times the largest expected value."""
    found, expected = (torch.as_tensor(t).detach().float() for t in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max())


@pytest.fixture(scope="module")
def page():
    return Page()


@pytest.fixture(scope="module")
def model(page, hook):
    """The notebook's transformer with the weights of the library's."""
    theirs, block = hook.model, hook.model.transformer.h[0]
    config = theirs.config
    model = page.Transformer(
        config.vocab_size, config.n_positions, config.n_embd, config.n_head, config.n_inner
    )
    same = {"norm_attn": block.ln_1, "norm_mlp": block.ln_2, "norm_head": theirs.transformer.ln_f}
    same |= {"embed": theirs.transformer.wte, "position": theirs.transformer.wpe}
    same |= {"head": theirs.lm_head}
    transposed = {"qkv": block.attn.c_attn, "attn_out": block.attn.c_proj}
    transposed |= {"mlp_in": block.mlp.c_fc, "mlp_out": block.mlp.c_proj}
    state = {f"{k}.{n}": p for k, m in same.items() for n, p in m.named_parameters()}
    state |= {
        f"{k}.{n}": p.T if p.dim() == 2 else p
        for k, m in transposed.items()
        for n, p in m.named_parameters()
    }
    model.load_state_dict(state)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def rows(small_run):
    tokens = small_run.get("tokens").rows("heldout", small_run.settings.lm.context)
    return tokens[:96].astype(np.int64)


def twin(page, theirs):
    """The notebook's autoencoder with the weights of one of the library's."""
    sae = page.SparseAutoencoder(theirs.b_dec.detach(), theirs.d_sae)
    with torch.no_grad():
        for name in WEIGHTS:
            getattr(sae, name).copy_(getattr(theirs, name))
    return sae


@pytest.fixture(scope="module")
def pair(page, small_run):
    theirs = SparseAutoencoder.load(small_run.path("autoencoder"))  # resampled below
    return twin(page, theirs).requires_grad_(False), theirs


def test_logits_loss_and_activations(page, model, hook, rows):
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        close(model(tokens)[0], hook.model(input_ids=tokens).logits)
    close(page.next_token_loss(model, tokens), language_model.next_token_loss(hook.model, tokens))
    close(page.harvest(model, tokens), activations.harvest(hook, rows[:, :-1]))


def unit_features():
    """One of the library's autoencoders whose penalty weighs as much as its error, and inputs
    for it.
    """
    sae, x = random_sae(16, 64, 0, bias=-0.5), torch.randn(200, 16)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae, x


def test_the_loss_of_the_autoencoder_and_its_gradients(page):
    theirs, x = unit_features()
    sae = twin(page, theirs)
    loss, f = page.sae_loss(sae, x, 4.0)
    loss.backward()
    measured = gradients(theirs, x, Objective(1.0, 4.0, "l1"))
    close(loss, measured.squared_error + 4.0 * measured.l1)
    close((f > 0).sum(1).float().mean(), measured.l0)
    for name in ("b_enc", "W_dec", "b_dec"):
        close(getattr(sae, name).grad, getattr(theirs, name).grad)
    close(sae.W_enc.grad, theirs.W_enc_T.grad.T)


def test_an_update_keeps_features_at_unit_length(page):
    theirs, x = unit_features()
    sae = twin(page, theirs)
    page.sae_loss(sae, x, 4.0)[0].backward()
    gradients(theirs, x, Objective(1.0, 4.0, "l1"))
    page.sae_update(sae, torch.optim.SGD(sae.parameters(), 0.1))
    training.update(theirs, torch.optim.SGD(theirs.parameters(), 0.1), BRICKEN_2023)
    for name in WEIGHTS:
        close(getattr(sae, name), getattr(theirs, name))


def test_a_fresh_autoencoder_starts_along_its_decoder_as_the_recipe_says(page):
    sae = page.SparseAutoencoder(torch.arange(16.0), 64)
    close(sae.W_dec.norm(dim=1), torch.full((64,), BRICKEN_2023.decoder_init))
    close(sae.W_enc, BRICKEN_2023.encoder_init * sae.W_dec.T)
    assert torch.equal(sae.b_dec, torch.arange(16.0)) and not sae.b_enc.any()


def test_l0_fvu_and_density(page, model, pair, hook, rows):
    ours, theirs = pair
    fvu, density = page.measure(ours, page.harvest(model, torch.from_numpy(rows)))
    expected = evaluation.density_and_error(hook, {"it": theirs}, rows[:, :-1])[0]["it"]
    close(fvu, expected["fvu"])
    close(density.sum(), expected["l0_mean"])
    close(density, expected["density"])
    assert 0 < fvu < 1 and density.sum() > 1


def test_loss_recovered(page, model, pair, hook, rows):
    ours, theirs = pair
    found = page.loss_recovered(model, ours, torch.from_numpy(rows))
    expected = evaluation.loss_recovered(hook, {"it": theirs}, rows, torch.zeros(theirs.d_in))
    close(found, expected["it"]["recovered_zero"])


def test_resampling_writes_the_same_rows_and_forgets_the_same_moments(page):
    theirs, x = random_sae(16, 64, 3, bias=0.0), torch.randn(500, 16)
    sae, dead = twin(page, theirs), torch.zeros(64, dtype=torch.bool)
    dead[[3, 20, 21, 50]] = True
    adams = [torch.optim.Adam(s.parameters(), 1e-3) for s in (sae, theirs)]
    for s, adam in zip((sae, theirs), adams, strict=True):
        for parameter in s.parameters():
            parameter.grad = torch.ones_like(parameter)
        adam.step()
    before = sae.W_dec.detach().clone()
    page.resample(sae, adams[0], dead, x, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    touched = resample(theirs, adams[1], dead, x, BRICKEN_2023.resampling, generator)
    assert touched == 4 and ((sae.W_dec != before).any(1) == dead).all()
    for name in WEIGHTS:
        close(getattr(sae, name), getattr(theirs, name))
    for moment in ("exp_avg", "exp_avg_sq"):
        for name in ("b_enc", "W_dec", "b_dec"):
            pair = (adams[0].state[getattr(sae, name)], adams[1].state[getattr(theirs, name)])
            close(pair[0][moment], pair[1][moment])
        close(adams[0].state[sae.W_enc][moment], adams[1].state[theirs.W_enc_T][moment].T)
    page.resample(sae, adams[0], torch.zeros_like(dead), x)
    close(sae.W_dec, theirs.W_dec)


def test_the_top_examples_of_every_feature(page, model, pair, hook, rows, small_run):
    ours, theirs = pair
    acts, inputs = page.harvest(model, torch.from_numpy(rows)), rows[:, :-1]
    settings = FeatureSettings(top_k=6, keep_marked=True)
    tokenizer = small_run.get("tokens").tokenizer
    table, examples = features.build(hook, theirs, inputs, tokenizer, settings)
    examples = examples.to_pandas()
    examples = examples[examples["tenth"] < 0].groupby("feature")
    often = [f for f in table.index[table["n_active"] >= 6] if f in examples.groups]
    assert len(often) > 20
    for feature in often:
        tokens, strength = page.top_examples(ours, acts, feature, 6)
        expected = examples.get_group(feature).sort_values("rank")
        close(strength[tokens], expected["activation"].to_numpy())
        places = (expected["row"] * inputs.shape[1] + expected["position"]).tolist()
        close(strength[places], strength[tokens])  # tokens with equal activations may change places
        assert len(set(places)) == len(set(tokens)) == 6


# --- the notebook itself ---


def lines_of_code(source: str) -> int:
    """Lines that are neither empty nor comment nor docstring."""
    tree = ast.parse(source)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    strings = [n.body[0] for n in documented if ast.get_docstring(n)]
    left_out = {i for n in strings for i in range(n.lineno, n.end_lineno + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(x.strip()) and x.strip()[0] != "#" and i not in left_out for i, x in lines)


def test_it_is_one_page_without_the_library():
    assert sum(lines_of_code(c.source) for c in CODE if "tags" not in c.metadata) <= 200
    assert all(len(c.source.splitlines()) <= 30 for c in CODE)
    assert all(len(line) <= 100 for c in CODE for line in c.source.splitlines())
    assert not any("sae_lib" in c.source or c.outputs or c.execution_count for c in CODE)
    assert [c.metadata.get("tags") for c in CODE].count(["parameters"]) == 1


def test_it_runs_alone_and_only_on_demand(tmp_path):
    assert NOTEBOOK not in headless.notebooks() and headless.notebooks("00") == [NOTEBOOK]
    command = ["run", "--profile", "smoke", "--only", "00", "--run", tmp_path / "run"]
    done = sae_lib(*command, "--set", "sae.d_sae=300")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results/one_page.json").read_text())
    assert results["sae.d_sae"] == 300 and len(results["features"]) == 10
    assert 0 < results["loss_recovered"] <= 1 and (tmp_path / "run/results/one_page.html").exists()
    executed = nbformat.read(tmp_path / "run/notebooks/00_in_one_page.ipynb", 4)
    shown = [o for c in executed.cells for o in c.get("outputs", []) if "data" in o]
    html = next(o.data["text/html"] for o in shown if "<b>Feature" in o.data.get("text/html", ""))
    text = re.sub(r'</?(?:p|b|pre|span)(?: style="background:rgba\([\d.,]+\)")?>', "", html)
    assert "<" not in text and html.count("<span") > 500
    assert not any("http" in o.data.get("text/html", "")[:2000] for o in shown)


def test_an_override_that_it_does_not_have_is_refused():
    cell = next(c.source for c in CODE if c.source.startswith("settings"))
    names = {"profile": "smoke", "overrides": ["sae.d_sae=300"]}
    exec(cell, names)
    assert names["d_sae"] == 300
    with pytest.raises(AssertionError, match="sae.l1 is none of tokenizer.vocab_size, lm"):
        exec(cell, {"profile": "smoke", "overrides": ["sae.l1=3"]})
