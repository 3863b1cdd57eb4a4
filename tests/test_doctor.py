import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from sae_lib import settings
from sae_lib.errors import SettingsError
from suite import doctor, drawing, estimate, memory_plan, project
from suite.doctor import Check, Needs

CPU, GPU = Needs(disk=1, memory=1), Needs(disk=1, memory=1, gpu=True, hub=True)


@pytest.fixture
def versions(monkeypatch, tmp_path):
    """packages() on faked installed versions against faked pins."""

    def run(pins: str, installed: dict[str, str]) -> dict[str, Check]:
        def version(name):
            if name not in installed:
                raise PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(project, "version", version)
        (tmp_path / "requirements.txt").write_text(pins)
        return {c.name: c for c in doctor.packages(tmp_path / "requirements.txt")}

    return run


def test_each_pin_is_compared_with_what_is_installed(versions):
    pins = "# a comment\ntorch==2.13.0\nnumpy==2.4.6  # why\n\neinops==0.8.2\n"
    found = versions(pins, {"torch": "2.13.0+cpu", "numpy": "2.4.5"})
    assert found["torch"] == Check("torch", True, "2.13.0+cpu", "make install")
    assert (found["numpy"].ok, found["numpy"].found) == (False, "2.4.5, but 2.4.6 is pinned")
    assert (found["einops"].ok, found["einops"].found) == (False, "not installed, 0.8.2 is pinned")


def test_a_version_that_only_begins_like_the_pin_is_off(versions):
    assert not versions("torch==2.1.3", {"torch": "2.1.30"})["torch"].ok


def test_report_shows_every_failure_with_its_fix_and_what_cannot_run():
    checks = [
        Check("torch", False, "1.0, but 2.0 is pinned", "make install"),
        Check("Chromium", False, "none found", "apt-get install chromium", needed=False),
        Check("hub", False, "out of reach", "a way to the internet", needed=False),
        Check("free disk", True, "9 GiB"),
    ]
    lines = doctor.report(checks, "laptop").splitlines()
    assert [line[:6] for line in lines] == [
        "[FAIL]",
        "      ",
        "[FAIL]",
        "      ",
        "[--]  ",
        "[OK]  ",
        "Profil",
    ]
    assert "make install" in lines[1] and "apt-get install chromium" in lines[3]
    assert "not needed" in lines[4]
    assert lines[-1] == "Profile laptop cannot run as it is: torch."
    assert not doctor.can_run(checks)
    assert doctor.can_run(checks[1:])
    assert doctor.report(checks[1:], "laptop").endswith("Profile laptop has all that it needs.")


@pytest.mark.parametrize(("why", "found"), [("", "draws figures"), ("it hangs", "it hangs")])
def test_chromium_is_tried_and_not_only_found(monkeypatch, why, found):
    """How it is tried, and on what browsers that fails: test_no_browser.py."""
    monkeypatch.setattr(drawing, "probe", lambda: why)
    check = doctor.chromium()
    assert (check.ok, check.found, check.needed) == (not why, found, False)
    assert "apt-get install chromium" in check.fix


def test_a_hub_out_of_reach(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    reached = doctor.reach_hub()
    assert reached.startswith("http://127.0.0.1:9 out of reach")
    assert not doctor.can_run([doctor.hub(GPU, reached)])
    assert doctor.can_run([doctor.hub(CPU, reached)])


def test_a_hub_that_answers_even_with_an_error_is_reached(monkeypatch, httpd):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", httpd)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert doctor.reach_hub() == f"reached {httpd}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.reach_hub() == "HF_HUB_OFFLINE is set"


@pytest.fixture
def httpd():
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    present = doctor.token()
    assert (present.ok, present.found) == (True, "present, from HF_TOKEN")
    assert "hf_secret" not in doctor.report([present])


def test_no_profile_needs_a_token_as_nothing_is_gated(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert not doctor.token().ok and doctor.can_run([doctor.token()])


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((10, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "sm_100", "sm_120"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_a_build_is_compared_with_the_card(capability, built_for, runs):
    assert doctor.built_for_card(capability, built_for) == runs


class FakeGPU:
    """Stands for `torch` on a pod whose build does not fit, or whose kernel computes `total`."""

    __version__, cuda = "2.13.0+cu126", property(lambda self: self)

    def __init__(self, capability, total):
        self.capability, self.total = capability, total

    def get_device_capability(self):
        return self.capability

    def get_arch_list(self):
        return ["sm_80", "sm_90"]

    def ones(self, n, device):
        if self.total is None:
            raise RuntimeError("no kernel image is available for execution on the device\nmore")
        return self

    def cumsum(self, dim):
        return self

    def sum(self):
        return self

    def item(self):
        return self.total


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (FakeGPU((10, 0), 500_500), "has no kernels for sm_100: sm_80 sm_90"),
        (FakeGPU((9, 0), None), "a kernel fails: no kernel image is available"),
        (FakeGPU((9, 0), 7), "a kernel computed 7 in place of 500500"),
        (FakeGPU((9, 0), 500_500), ""),
    ],
)
def test_a_kernel_is_launched(gpu, said):
    found = doctor.no_kernel(gpu)
    assert said in found and bool(found) == bool(said)


@pytest.mark.parametrize(("card", "ok"), [(24, False), (48, False), (80, True), (141, True)])
def test_the_memory_plan_is_held_against_the_card(card, ok):
    check = doctor.gpu_memory("runpod", int(card * 1e9))
    assert check.ok == ok and "planned: 1-layer model" in check.found
    assert "last_mlp" in check.found and "GB (training topk)" in check.found
    if card == 24:
        assert "8-bit" in check.fix and "accelerate" in check.fix
    if card == 48:
        n = int(re.search(r"--set last_mlp.sae.d_sae=(\d+) fits", check.fix)[1])
        assert 14_336 < n < 57_344
        s = memory_plan.parts(settings.load("runpod", [f"last_mlp.sae.d_sae={n}"]))["last_mlp."]
        assert memory_plan.peak(s)[1] <= 48e9 < memory_plan.peak(wider(s))[1]


def test_hours_and_dollars_of_cards_that_fit(monkeypatch):
    check = doctor.rented("runpod")
    assert check.found in (project.root() / "docs" / "install.md").read_text()
    assert check.ok and not check.needed
    assert re.search(r"H200 \d\.\d h, \d+ dollars; .*of 50 dollars", check.found)
    cards = {"small": dict(gb=24, tflops=100, tb=1, dollars=1)}
    monkeypatch.setitem(estimate.KNOWN, "cards", cards)
    assert not doctor.rented("runpod").ok


def test_on_a_cpu_a_model_too_large_for_float32_stays_in_its_files(monkeypatch):
    last = memory_plan.parts(settings.load("runpod"))["last_mlp."]
    on_gpu = memory_plan.stages(last)["training topk"]
    held = {}
    for gb in (24, 128):
        monkeypatch.setattr("sae_lib.device.memory_of", lambda device, gb=gb: gb * 1e9)
        held[gb] = memory_plan.stages(last, gpu=False)["training topk"]
    assert held[128] - held[24] == pytest.approx(1.05 * 4 * 8.03e9, rel=1e-3)
    assert held[24] < on_gpu


def wider(s):
    return s.model_copy(update={"sae": s.sae.model_copy(update={"d_sae": s.sae.d_sae + 1024})})


def test_twice_the_width_needs_a_card_of_141_gb():
    s = settings.load("runpod", ["last_mlp.sae.d_sae=114688"])
    assert not memory_plan.advice(s, 141e9) and memory_plan.advice(s, 80e9)


def test_memory_is_what_the_container_may_still_take(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{int(2.5 * 2**30)}\n")
    check = doctor.memory(CPU)
    assert not check.ok and check.found == "0.5 GiB, 1 needed"
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory(Needs(0, 0)).found != check.found


def test_too_little_disk():
    assert not doctor.disk(Needs(disk=10**9, memory=0)).ok
    assert doctor.disk(Needs(disk=0, memory=0)).ok


def test_a_cpu_does_for_profiles_without_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.device(CPU).ok and "bfloat16" in doctor.device(CPU).found
    assert not doctor.device(GPU).ok


def test_a_kernel_of_another_installation_is_named(monkeypatch, tmp_path):
    """Such as a conda base that registered its own python3 in the home folder."""
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["/usr/other/python", "-m", "ipykernel_launcher"], "display_name": "x", '
        '"language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    check = doctor.kernel()
    assert (check.ok, check.found) == (False, "/usr/other/python")
    assert "ipykernel install" in check.fix


def test_an_unknown_profile_is_named():
    with pytest.raises(SettingsError, match="smoke, laptop, runpod"):
        doctor.check("desktop")


def test_needs_exist_for_every_profile():
    from sae_lib.settings import PROFILES

    assert tuple(doctor.NEEDS) == PROFILES


def test_command_line_prints_one_line_and_status_2_for_an_unknown_profile():
    done = subprocess.run(
        [sys.executable, "-m", "suite", "doctor", "--profile", "desktop"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --profile 'desktop'") and done.stderr.count("\n") == 1


def test_command_line_status_says_whether_the_profile_can_run(monkeypatch):
    from typer.testing import CliRunner

    from suite.__main__ import app

    monkeypatch.setattr(
        doctor, "check", lambda profile: [Check("torch", profile == "smoke", "x", "y")]
    )
    assert CliRunner().invoke(app, ["doctor", "--profile", "smoke"]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
