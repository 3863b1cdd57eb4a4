"""What is off on this machine: one check per package version, device, disk, memory, browser,
network and token, each with how to fix it. Only the standard library is imported up front, so that
it can tell of any other package's absence.
"""

import os
import platform
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sae_lib.errors import SettingsError
from sae_lib.text.hub import reach_hub
from suite import project

INSTALL = "make install"
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")  # of a container
NEWER_BUILD = (
    "a CUDA build of torch for this card that this driver can run, or a newer driver: "
    "runpod_setup.sh chooses one"
)


@dataclass(frozen=True)
class Needs:
    """What a profile takes, in GiB; estimated from its settings for runpod, with room to spare
    for the others.
    """

    disk: int | float
    memory: int | float
    gpu: bool = False
    hub: bool = False


NEEDS = {"smoke": Needs(0.5, 2), "laptop": Needs(2, 4), "runpod": Needs(100, 48, True, hub=True)}


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True  # by the profile: only these decide whether it can run


def check(profile: str = "laptop") -> list[Check]:
    """Every check, in the order of the report; `needed` follows the profile. Takes a few
    seconds, 40 at the very most.
    """
    if profile not in NEEDS:
        raise SettingsError(f"--profile {profile!r} does not exist; there are: {', '.join(NEEDS)}")
    needs, answer = NEEDS[profile], ["no answer within 6 s"]
    # looking up a name has no time-out
    thread = threading.Thread(target=lambda: answer.append(reach_hub()), daemon=True)
    thread.start()
    newer = sys.version_info >= (3, 11)
    fix = "3.11 or newer: PYTHON=python3.12 make clean install"
    checks = [
        Check("Python", newer, platform.python_version(), fix),
        *packages(project.root() / "requirements.txt"),
        kernel(),
        device(needs),
        *([gpu_memory(profile), rented(profile)] if needs.gpu else []),
        disk(needs),
        memory(needs),
        chromium(),
    ]
    thread.join(6)
    return [*checks, hub(needs, answer[-1]), token()]


def can_run(checks: list[Check]) -> bool:
    return all(c.ok for c in checks if c.needed)


def report(checks: list[Check], profile: str = "laptop") -> str:
    """One line per check, under each failure how to fix it, and whether the profile can run."""
    lines = []
    for c in checks:
        if c.ok or (not c.needed and c.name in ("hub", "hub token")):
            tag, more = ("[OK]  ", "") if c.ok else ("[--]  ", "; not needed by this profile")
            lines.append(f"{tag} {c.name:<18} {c.found}{more}")
        else:
            lines += [f"[FAIL] {c.name:<18} {c.found}", f"{'':25} to fix it: {c.fix}"]
    missing = ", ".join(c.name for c in checks if c.needed and not c.ok)
    verdict = f"cannot run as it is: {missing}" if missing else "has all that it needs"
    return "\n".join([*lines, f"Profile {profile} {verdict}."])


def packages(requirements: Path) -> list[Check]:
    """One check per pin; a local part such as +cpu does not count as a difference."""
    checks = []
    for name, pin in project.pins(requirements).items():
        found = project.installed(name)
        ok = found is not None and found.split("+")[0] == pin
        off = f"{found}, but" if found else "not installed,"
        checks.append(Check(name, ok, found if ok else f"{off} {pin} is pinned", INSTALL))
    return checks


def kernel() -> Check:
    """The kernel that papermill starts must be this interpreter, not one that another
    installation registered.
    """
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        argv = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except Exception as error:
        return Check("kernel python3", False, f"{type(error).__name__}: {error}", INSTALL)
    mine = argv in ("python", "python3") or Path(argv).absolute() == Path(sys.executable).absolute()
    found = sys.executable if mine else argv
    fix = f"{sys.executable} -m ipykernel install --sys-prefix"
    return Check("kernel python3", mine, found, fix)


def device(needs: Needs) -> Check:
    """The device that `device: auto` takes; on a CPU its threads and whether bfloat16 products
    are worth it.
    """
    try:
        import torch

        from sae_lib.device import fast_bfloat16
    except Exception as error:  # a broken binary raises OSError, a missing one ImportError
        return Check("device", False, f"torch does not import: {error}", INSTALL)
    fix = "a GPU, which this profile is made for; without one: --profile laptop"
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        fast = "yes" if torch.cuda.is_bf16_supported() else "no"
        found = f"{torch.cuda.get_device_name()}, {total:.0f} GiB, bfloat16 {fast}"
        why_not = no_kernel(torch)
        return Check("device", not why_not, found + why_not, NEWER_BUILD)
    fast = "fast" if fast_bfloat16() else "no faster than float32"
    found = f"CPU, {torch.get_num_threads()} threads, bfloat16 products {fast}"
    if shutil.which("nvidia-smi"):
        found += f"; torch {torch.__version__} sees no GPU although there is nvidia-smi"
        fix = NEWER_BUILD
    return Check("device", not needs.gpu, found, fix)


def no_kernel(torch) -> str:
    """Why this build of torch computes nothing on the GPU; "" where a kernel was launched and did
    what it should.
    """
    capability, built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if not built_for_card(capability, built_for):
        card = "sm_{}{}".format(*capability)
        return f"; torch {torch.__version__} has no kernels for {card}: {' '.join(built_for)}"
    try:
        found = torch.ones(1000, device="cuda").cumsum(0).sum().item()
    except RuntimeError as error:
        return f"; a kernel fails: {str(error).splitlines()[0]}"
    return "" if found == 500_500 else f"; a kernel computed {found} in place of 500500"


def built_for_card(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a build runs on a card: compiled for its generation and no later step of it
    (sm_80 runs on 8.6), or as code that the driver compiles (compute_80 runs on all from 8.0).
    """
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        later = (major, minor) <= capability
        if later and (kind == "compute" or major == capability[0]):
            return True
    return False


def gpu_memory(profile: str, have: int | None = None) -> Check:
    """The memory plan of the profile against the card's memory, `have` bytes or the one here."""
    try:
        import torch

        from sae_lib.settings import load
        from suite import memory_plan
    except Exception as error:
        return Check("GPU memory", False, f"{error}", INSTALL)
    settings = load(profile)
    plan = memory_plan.report(settings)
    if have is None and not torch.cuda.is_available():
        return Check("GPU memory", False, f"no GPU; planned: {plan}", "a GPU", needed=False)
    have = have or torch.cuda.get_device_properties(0).total_memory
    advice = memory_plan.advice(settings, have)
    return Check("GPU memory", not advice, f"{have / 1e9:.0f} GB; planned: {plan}", advice)


def rented(profile: str) -> Check:
    """Hours and dollars of the whole profile on rented cards that its memory plan fits, of which
    the cheapest has to be within the assessment's budget.
    """
    try:
        from sae_lib.settings import load
        from suite import estimate, memory_plan
    except Exception as error:
        return Check("rented cards", False, f"{error}", INSTALL, needed=False)
    settings, budget, said, least = load(profile), estimate.KNOWN["budget"], [], float("inf")
    for name, card in estimate.KNOWN["cards"].items():
        if memory_plan.advice(settings, card["gb"] * 1e9):
            continue
        hours = estimate.on_card(settings, name) / 3600
        least = min(least, hours * card["dollars"])
        said.append(f"{name} {hours:.1f} h, {hours * card['dollars']:.0f} dollars")
    found = f"{'; '.join(said) or 'too small'} (estimated, of {budget} dollars)"
    return Check("rented cards", least <= budget, found, "train on less", needed=False)


def disk(needs: Needs) -> Check:
    free = shutil.disk_usage(".").free
    return _enough("free disk", free, needs.disk, "free some, or run elsewhere: --run DIR")


def memory(needs: Needs) -> Check:
    """Free memory: the machine's, or what the container may still take where that is less."""
    try:
        import psutil
    except ImportError:
        return Check("free memory", False, "psutil is missing", INSTALL)
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or "max": no limit
        most, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, most - used)
    return _enough("free memory", free, needs.memory, "close programs, or --profile smoke")


def _enough(name: str, free: int, needed: float, fix: str) -> Check:
    found = f"{free / GIB:.1f} GiB, {needed:g} needed"
    return Check(name, free >= needed * GIB, found, fix)


def chromium() -> Check:
    """Whether Chromium draws a figure, tried as a run tries it."""
    from suite import drawing

    why = drawing.probe()
    fix = f"figures are plainer until: {drawing.FIX}"
    return Check("Chromium", not why, why or "draws figures", fix, needed=False)


def hub(needs: Needs, reached: str) -> Check:
    fix = "a way to the internet (https_proxy, HF_ENDPOINT)"
    return Check("hub", reached.startswith("reached"), reached, fix, needs.hub)


def token() -> Check:
    """Whether there is a token, never what it is. No profile needs one: nothing in them is
    gated.
    """
    fix = "for gated models alone: export HF_TOKEN=…, or .venv/bin/hf auth login"
    found = "present, from HF_TOKEN" if os.environ.get("HF_TOKEN") else ""
    with suppress(ImportError):
        from huggingface_hub import get_token

        found = found or ("present, from the hub's own login" if get_token() else "")
    return Check("hub token", bool(found), found or "none", fix, needed=False)
