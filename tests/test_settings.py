"""Settings: profiles load, overrides reach their place, mistakes are named."""

import pytest

from sae_lib import settings
from sae_lib.errors import SettingsError


@pytest.mark.parametrize("profile", settings.PROFILES)
def test_profiles_are_valid(profile):
    assert settings.load(profile).profile == profile


def test_runpod_is_the_originals_scale():
    s = settings.load("runpod")
    assert (s.lm.n_layer, s.lm.d_model, s.lm.d_mlp, s.lm.n_heads, s.lm.context) == (
        1,
        128,
        512,
        8,
        128,
    )
    assert (s.sae.d_sae, s.sae.activations, s.tokenizer.source) == (4096, 89_600_000, "gpt2")
    assert s.corpus.source == "hub:monology/pile-uncopyrighted" and len(s.corpus.revision) == 40


def test_overrides_reach_their_place():
    s = settings.load(
        "laptop",
        [
            "sae.d_sae=8192",
            "sae.lr=1e-4",
            "corpus=files:a/b=c",
            "sae.compare=[]",
            "last_mlp.lm.n_layer=6",
            "sae.resampling=false",
        ],
    )
    assert (
        s.sae.d_sae,
        s.sae.lr,
        s.corpus.source,
        s.sae.compare,
        s.last_mlp.lm.n_layer,
        s.sae.resampling,
    ) == (8192, 1e-4, "files:a/b=c", (), 6, False)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sae.d_say=1", ["sae.d_say", "d_sae"]),
        (
            "sae.d_sae=0",
            ["sae.d_sae: found 0; it should be greater than or equal to 1"],
        ),
        ("sae.d_sae=many", ["sae.d_sae", "many"]),
        ("sae=3", ["sae.recipe", "sae.d_sae"]),
        ("lm.lr.x=1", ["lm.lr", "'x'"]),
        ("lm.n_heads=7", ["128", "7"]),
        ("nonsense", ["section.key=value"]),
        ("sae.compare=[", ["sae.compare"]),
        ("sae.compare=[bricken_2023", ["sae.compare"]),
        ("profile=smoke", ["--profile smoke"]),
        ("lm.source=gpt2", ["tokenizer=gpt2"]),
        ("last_mlp.lm.source=some/llama", ["last_mlp.tokenizer=some/llama"]),
    ],
)
def test_mistakes_are_named(override, named):
    with pytest.raises(SettingsError) as error:
        settings.load("laptop", [override])
    assert all(part in str(error.value) for part in named)


def test_unknown_profile_lists_the_profiles():
    with pytest.raises(SettingsError, match="smoke, laptop, runpod"):
        settings.load("desktop")


def test_a_profile_s_values_are_those_of_its_own_recipe():
    assert settings.load("laptop").sae.l1 is not None
    assert settings.load("laptop", ["sae.recipe=bricken_2023"]) == settings.load("laptop")
    other = settings.load("laptop", ["sae.l1=0.01", "sae.recipe=ward_2024"]).sae
    assert other.recipe == "ward_2024" and other.l1 == 0.01
    assert settings.load("laptop", ["sae.recipe=ward_2024"]).sae.l1 is None
    assert settings.load("laptop", ["last_mlp.sae.recipe=topk"]).last_mlp.sae.lr is None
