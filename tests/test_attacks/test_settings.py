"""Settings that cannot be meant: each is refused by its name before anything is loaded or
written.
"""

import time

import pytest
import yaml

from sae_lib import settings
from tests.test_attacks.attack import assert_refused

BOMB = "{a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}"

NAMES = [
    ("sae.d_say=8", "did you mean d_sae?"),
    ("sae", "expected section.key=value"),
    ("=1", "--set '=1'"),
    ("", "--set ''"),
    ("=", "--set '='"),
    (".=1", "setting '' does not exist"),
    ("sae.=1", "setting 'sae.' does not exist"),
    ("sae..d_sae=1", "setting 'sae.' does not exist"),
    ("sae.d_sae.x=1", "sae.d_sae is a single value"),
    ("SAE.d_sae=1", "setting 'SAE' does not exist"),
    (" sae.d_sae=1", "setting ' sae' does not exist"),
    ("sae.d_sae\n=1", "does not exist"),
    ("x" * 100_000 + "=1", "does not exist"),
    ("sae." + "x" * 100_000 + "=1", "does not exist"),
    ("sae." * 5000 + "d_sae=1", "does not exist"),
    ("__class__=1", "setting '__class__' does not exist"),
    ("sae.model_config=1", "setting 'sae.model_config' does not exist"),
    ("lm.model_fields={}", "setting 'lm.model_fields' does not exist"),
    ("profile=smoke", "--profile"),
    ("sae=[1,2]", "sae is a section"),
    ("prompts={}", "prompts is a section"),
    ("last_mlp=1", "last_mlp is a section"),
]

VALUES = [
    ("sae.d_sae=", "sae.d_sae: found '' (no value)"),
    ("sae.d_sae=-1", "sae.d_sae: found -1; it should be greater than or equal to 1"),
    ("sae.d_sae=0", "sae.d_sae: found 0"),
    ("sae.d_sae=1.5", "sae.d_sae: found 1.5"),
    ("sae.d_sae=true", "sae.d_sae: found 'true'"),
    ("sae.d_sae=null", "sae.d_sae: found None"),
    ("sae.d_sae=~", "sae.d_sae: found None"),
    ("sae.d_sae=many", "sae.d_sae: found 'many'"),
    ("sae.d_sae=0x10", "sae.d_sae: found '0x10'"),
    ("sae.d_sae=1:30", "sae.d_sae: found '1:30'"),
    ("sae.d_sae=[8]", "sae.d_sae: found [8]"),
    ("sae.d_sae={a: 1}", "sae.d_sae: found {'a': 1}"),
    ("sae.d_sae=2024-99-99", "sae.d_sae: found '2024-99-99'"),
    ("sae.d_sae=2024-01-01", "sae.d_sae: found '2024-01-01'"),
    ("sae.d_sae=9999-12-31T23:59:60Z", "sae.d_sae: found"),
    ("sae.d_sae=!!set {a, b}", "tags"),
    ("sae.d_sae=!!binary aGVsbG8=", "tags"),
    ("sae.d_sae=!!timestamp 2024-99-99", "tags"),
    ("sae.d_sae=!!int 8", "tags"),
    ("sae.d_sae=!x 8", "tags"),
    ("sae.compare=!!python/object/apply:os.system [id]", "tags"),
    ("sae.compare=!!python/name:os.system", "tags"),
    ("sae.compare=!!python/tuple [topk]", "tags"),
    ("sae.compare=[&a topk, *a]", "aliases"),
    (f"corpus.max_kind_bytes={BOMB}", "aliases"),
    ("sae.compare=" + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
    ("sae.compare=" + "[" * 10_000, "nested too deeply"),
    ("sae.compare=" + "{a: " * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
    ("sae.compare=[" + "topk," * 60 + "]", "sae.compare: found"),
    ("sae.compare=[" + "topk," * 50_000 + "]", "characters are too long"),
    ("sae.compare=[topk", "sae.compare: found '[topk' (not valid YAML"),
    ("sae.compare=topk]", "sae.compare: found 'topk]'"),
    ("sae.compare={a: 1}", "sae.compare: found {'a': 1}"),
    ("sae.compare=topk", "sae.compare: found 'topk'; it should be a valid list"),
    ("sae.compare=[[topk]]", "sae.compare.0: found ['topk']"),
    ("sae.compare=[1]", "sae.compare.0: found 1"),
    ("sae.compare=[null]", "sae.compare.0: found None"),
    ("sae.compare=[no_such]", "sae.compare: recipe 'no_such' does not exist"),
    ("sae.compare=topk\n---\ntied", "sae.compare"),
    ("sae.d_sae=8\x00", "sae.d_sae"),
    ("sae.d_sae=\x1b[31m8", "sae.d_sae"),
    ("sae.d_sae=\ud800", "half a surrogate pair"),
    ("sae.recipe=\udcff", "sae.recipe"),
    ('prompts.prompts=["\\ud800"]', "half a surrogate pair"),
    ("corpus.max_kind_bytes={py: 1, py: 2}", "'py' is repeated"),
    ("corpus.max_kind_bytes={py: -1}", "corpus.max_kind_bytes.py: found -1"),
    ("corpus.max_kind_bytes={py: x}", "corpus.max_kind_bytes.py: found 'x'"),
    ("corpus.max_kind_bytes={1: 2}", "key '1'"),
    ("corpus.max_kind_bytes={? [a] : 2}", "is repeated, or is not text"),
    ("corpus.max_kind_bytes=5", "corpus.max_kind_bytes: found 5"),
    ("corpus=", "corpus: found ''"),
    ("corpus=files:a\x00b", "corpus: found 'files:a\\x00b'"),
    ("corpus=" + "x" * 5000, "corpus.source: found"),
    ("tokenizer=", "tokenizer: found ''"),
    ("device=", "device: found ''"),
    ("device=\n", "device: found"),
    ("device=tpu", "device: 'tpu'"),
    ("device=cuda:99", "device: 'cuda:99'"),
    ("device=cpu:0", "device: 'cpu:0'"),
    ("lm.architecture=mamba", "lm.architecture: found 'mamba'; it should be 'gpt2' or 'llama'"),
    ("lm.precision=float16", "lm.precision: found 'float16'"),
    ("toy.preset=huge", "toy.preset: found 'huge'"),
    ("explain.baselines=[x]", "explain.baselines.0: found 'x'"),
    ("explain.rating=maybe", "explain.rating: found 'maybe'; it should be a valid boolean"),
    ("sae.hook_name=blocks.0.nothing", "hook name 'blocks.0.nothing'"),
    ("sae.hook_name=blocks.7.mlp.hook_post", "blocks.7.mlp.hook_post"),
    ("sae.hook_name=blocks.0.mlp.hook_pre", "sae.hook_name: features before the activation"),
    ("last_mlp.sae.hook_name=blocks.3.mlp.hook_pre", "last_mlp.sae.hook_name: features before"),
    (
        "last_mlp.sae.hook_name=blocks.3.mlp.hook_pre_linear",
        "last_mlp.sae.hook_name: features before",
    ),
    ("sae.hook_name=" + "x" * 5000, "sae.hook_name: found"),
    ("explain.max_cost=1", "max_cost needs both"),
    ("explain.price_prompt=1", "price_prompt"),
    ("lm.n_heads=7", "d_model 32 is not a multiple of n_heads 7"),
    ("last_mlp.lm.n_heads=5", "last_mlp.lm: d_model 32"),
    ("lm.source=gpt2", "tokenizer=gpt2"),
    ("prompts.prompts=[]", "prompts.prompts: found []"),
    ("prompts.prompts=[1]", "prompts.prompts.0: found 1"),
    ("prompts.prompts=hello", "prompts.prompts: found 'hello'"),
    ("clamping.values=[]", "clamping.values: found []"),
    ("clamping.values=[1e300]", "clamping.values.0: found 1e+300"),
]

NOT_FINITE = [
    (f"{name}={value}", name)
    for name in ("sae.lr", "sae.l1", "lm.lr", "lm.checkpoint_gb", "prompts.temperature")
    for value in ("nan", ".nan", "inf", "-.inf", "1e999")
] + [(f"clamping.values=[0, {v}]", "clamping.values.1: found") for v in ("nan", ".inf", "1e999")]

SEEDS = [
    (f"{name}={value}", f"{name}: found {value}; it should be {limit}")
    for name in ("seed", "sae.seed", "interpretability.seed", "explain.seed", "last_mlp.sae.seed")
    for value, limit in {
        -1: "greater than or equal to 0",
        2**63: "less than 9223372036854775808",
        10**30: "less than 9223372036854775808",
    }.items()
] + [("seed=" + "9" * 5000, "5,000 digits"), ("seed=1" + "0" * 4299, "4,300 digits")]

HUGE = [
    (f"{name}={10**value}", f"{name}: found")
    for name, value in {
        "sae.d_sae": 9,
        "last_mlp.sae.d_sae": 9,
        "tokenizer.vocab_size": 9,
        "lm.d_model": 9,
        "lm.d_mlp": 9,
        "lm.n_layer": 9,
        "lm.n_heads": 9,
        "lm.context": 9,
        "lm.batch": 9,
        "lm.train_tokens": 14,
        "lm.eval_every": 12,
        "lm.checkpoint_every": 12,
        "lm.eval_rows": 9,
        "sae.batch": 9,
        "sae.k": 9,
        "sae.buffer_rows": 9,
        "sae.activations": 14,
        "sae.patience": 9,
        "sae.log_every": 12,
        "corpus.train_tokens": 14,
        "corpus.shuffle_buffer": 9,
        "features.top_k": 9,
        "features.context": 9,
        "features.after": 9,
        "features.logits": 9,
        "features.samples": 9,
        "interpretability.units": 9,
        "interpretability.clusters": 9,
        "interpretability.values": 9,
        "prompts.new_tokens": 9,
        "clamping.rows": 9,
        "clamping.draws": 9,
        "explain.answer_tokens": 9,
        "explain.timeout": 9,
        "explain.attempts": 9,
        "explain.batch": 9,
    }.items()
]

WITHOUT_EFFECT = [
    (["sae.recipe=topk", "sae.l1=2"], "sae.l1: recipe topk does not use it"),
    (["sae.recipe=batchtopk", "sae.l1=2"], "sae.l1: recipe batchtopk does not use it"),
    (["sae.recipe=topk", "sae.l1_warmup=0.1"], "sae.l1_warmup: recipe topk"),
    (["sae.recipe=topk", "sae.tied=true"], "sae.tied: recipe topk"),
    (["sae.recipe=jumprelu", "sae.tied=true"], "sae.tied: recipe jumprelu"),
    (["sae.recipe=jumprelu", "sae.k=8"], "sae.k: recipe jumprelu"),
    (["sae.k=8"], "sae.k: recipe bricken_2023"),
    (["last_mlp.sae.k=8"], "last_mlp.sae.k: recipe bricken_2023"),
    (["sae.recipe=topk", "sae.k=300"], "sae.k: 300 active features exceed sae.d_sae=256"),
    (["sae.resampling=false", "sae.resample_at=[0.5]"], "sae.resample_at: has no effect"),
    (["sae.resample_at=[0]"], "sae.resample_at.0: found 0"),
    (["sae.recipe=no_such"], "sae.recipe: 'no_such' does not exist"),
    (["sae.dead_window=10000000"], "sae.dead_window"),
]

FOR_NO_MEMORY = [
    (["sae.d_sae=16777216", "lm.d_mlp=1048576"], "sae.d_sae, sae.widths or lm.d_mlp: "),
    (["last_mlp.sae.d_sae=16777216", "last_mlp.lm.d_mlp=1048576"], "last_mlp.sae.d_sae, "),
    (["sae.widths=[16777216]", "lm.d_mlp=1048576"], "GiB of memory are needed"),
    (["lm.d_model=16777216"], "lm.d_model, lm.d_mlp or lm.n_layer: "),
    (["sae.d_sae=16000000", "features.top_k=10000"], "GiB of memory are needed"),
]

ALL = (
    [([o], names) for o, names in NAMES + VALUES + NOT_FINITE + SEEDS + HUGE]
    + WITHOUT_EFFECT
    + FOR_NO_MEMORY
)


@pytest.mark.parametrize(
    ("overrides", "names"), ALL, ids=[f"{i}-{' '.join(o)[:50]!r}" for i, (o, _) in enumerate(ALL)]
)
def test_a_setting_is_refused_by_name(overrides, names, tmp_path):
    given = [part for o in overrides for part in ("--set", o)]
    assert_refused(["stage", "corpus", "--profile", "smoke", *given], tmp_path, names)


@pytest.mark.parametrize("profile", ["desktop", "", "../settings", "smoke.yaml", "/", "x" * 5000])
def test_an_unknown_profile_is_refused(profile, tmp_path):
    assert_refused(["stage", "corpus", "--profile", profile], tmp_path, "smoke, laptop, runpod")


SECRET = "sk-" + "0123456789abcdef" * 8


def test_a_long_value_is_not_shown_whole(tmp_path):
    for override in (f"sae.d_sae={SECRET}", f"sae.{SECRET}=1", f"{SECRET}=1", SECRET):
        with pytest.raises(settings.SettingsError) as error:
            settings.load("smoke", [override])
        assert SECRET[:60] not in str(error.value)


BAD_RECORDS = {
    "a bomb": "a: &a [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)),
    "billion laughs": "\n".join(
        f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'lol'}]" for i in range(12)
    ),
    "a tag": "!!python/object/apply:os.system [id]",
    "deep": "[" * 10_000,
    "a list": "[1, 2]",
    "nothing": "",
    "a number": "7",
    "not YAML": "a: b: c",
    "not UTF-8": b"\xff\xfe\x00",
    "a NUL": b"a: \x00",
    "twice": "seed: 0\nseed: 0",
    "long": "a: " + "x" * 10**6,
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_damaged_record_of_settings_is_refused(case, tmp_path):
    data = BAD_RECORDS[case]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.yaml").write_bytes(data.encode() if type(data) is str else data)
    began = time.process_time()
    assert_refused(
        ["stage", "corpus", "--profile", "smoke", "--run", "run"], tmp_path, "run/settings.yaml"
    )
    assert time.process_time() - began < 5


def test_plain_yaml_reads_what_settings_are_written_as():
    for profile in settings.PROFILES:
        data = settings.load(profile, ["sae.lr=1e-5", "corpus=files:ü \u2713 #: x"])
        data = data.model_dump(mode="json")
        assert settings.parse_yaml(yaml.safe_dump(data, sort_keys=False)) == data
    assert settings.parse_yaml("[010, 1e-4, 1_000, -.5, yes, '8', null, True, 2024-01-01]") == [
        *(10, 1e-4, 1000, -0.5, "yes", "8", None, True, "2024-01-01")
    ]


def test_the_largest_seed_is_a_seed():
    assert settings.load("smoke", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
