"""`explain` with an address, a key or a model that cannot be used: refused before anything is
loaded.
"""

import pytest

from suite import stages
from tests.test_attacks.attack import assert_refused, run_command

KEY = "sk-secret-0123456789abcdef"
ADDRESSES = [
    "hunter2",
    "http://",
    "https://",
    "://hunter2",
    "ftp://hunter2/v1",
    "file:///etc/hunter2",
    "javascript:hunter2",
    "https://user:hunter2@host/v1",
    "https://hunter2@host/v1",
    "https://host/v1?key=hunter2",
    "https://host/v1#hunter2",
    "http://host:hunter2/v1",
    "http://host:0/v1",
    "http://host:99999/v1",
    "http://host:-1/v1",
    "http://[hunter2/v1",
    "http://[::1/v1",
    "http://a..hunter2/v1",
    "http://.hunter2/v1",
    "http://hun ter2/v1",
    "http://hunter2\\x/v1",
    "http://" + "hunter2" * 20 + "/v1",
    "http://host/hunter2\x07",
    "http://host/hunter2\n/v1",
    "http://\udcffhunter2/v1",
    "http://%68unter2/v1",
    "[1, hunter2]",
]
KEYS = [f"{KEY} x", f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x07", f"{KEY}\udcff"]
MODELS = ["x\x07", "x\ny", "\udcff", "x" * 5000]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function (address, model, key) that sets the environment; the run is there, and holds
    nothing yet.
    """
    stages.open_run("smoke", tmp_path / "run").claim()

    def use(address: str = "http://127.0.0.1:9/v1", model: str = "m", key: str = "") -> None:
        for name, value in (("BASE_URL", address), ("MODEL", model), ("API_KEY", key)):
            monkeypatch.setenv(f"SAE_LLM_{name}", value)

    return use


EXPLAIN = ["explain", "--profile", "smoke", "--run", "run"]


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
def test_an_address_that_is_none_is_refused_and_not_shown(address, made, tmp_path):
    made(address)
    assert_refused(EXPLAIN, tmp_path, "SAE_LLM_BASE_URL")
    assert "hunter2" not in run_command(EXPLAIN, tmp_path).err


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_a_key_that_is_none_is_refused_and_not_shown(key, made, tmp_path):
    made(key=key)
    assert_refused(EXPLAIN, tmp_path, "SAE_LLM_API_KEY")
    assert KEY not in run_command(EXPLAIN, tmp_path).err


@pytest.mark.parametrize("model", MODELS, ids=range(len(MODELS)))
def test_a_model_s_name_that_is_none_is_refused(model, made, tmp_path):
    made(model=model)
    assert_refused(EXPLAIN, tmp_path, "SAE_LLM_MODEL")
    made()
    assert_refused([*EXPLAIN, "--model", model], tmp_path, "--model")


@pytest.mark.parametrize(
    ("option", "value"), [("--features", "-1"), ("--features", "x"), ("--features", "1000000000")]
)
def test_an_option_of_explain_is_refused(option, value, made, tmp_path):
    made()
    assert_refused([*EXPLAIN, option, value], tmp_path, option)


@pytest.mark.parametrize(
    "model", ["~nosuchuser/model", "no/such/folder", "/", ".", "x" * 199, "x" * 999]
)
def test_a_local_model_that_is_none_is_refused(model, made, tmp_path):
    made(address="")
    assert_refused([*EXPLAIN, "--model", model], tmp_path, model[:50])
