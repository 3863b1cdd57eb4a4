"""Settings that cannot be meant."""

import pytest

from tests.test_attacks.attack import assert_refused

SETTINGS = [
    ("sae.d_say=8", "sae.d_say"),
    ("sae.d_sae=-1", "sae.d_sae"),
]


@pytest.mark.parametrize(
    ("override", "names"), SETTINGS, ids=[override for override, _ in SETTINGS]
)
def test_a_setting_is_refused_by_name(override, names, tmp_path):
    assert_refused(["stage", "corpus", "--profile", "smoke", "--set", override], tmp_path, names)
