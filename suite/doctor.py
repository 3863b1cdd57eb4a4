"""What is off on this machine: one check per package version, device, disk, memory, browser,
network and token, each with how to fix it. Only the standard library is imported up front, so that
it can tell of any other package's absence.
"""

import os
import platform
import shutil
import sys
import threading
import timeit
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sae_lib.errors import SettingsError
from sae_lib.text.hub import reach_hub
from suite import project

INSTALL = "make install"
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What a profile takes, in GiB; estimated from its settings for runpod, with room to spare
    for the others.
    """

    disk: int | float
    memory: int | float
    gpu: int | float = 0  # 0: runs on a CPU
    hub: bool = False


NEEDS = {"smoke": Needs(0.5, 2), "laptop": Needs(2, 4), "runpod": Needs(100, 48, gpu=44, hub=True)}


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
    needs = NEEDS[profile]
    answer: list[str] = []
    thread = threading.Thread(
        target=lambda: answer.append(reach_hub()), daemon=True
    )  # looking up a name has no time-out
    thread.start()
    checks = [
        python(),
        *packages(project.root() / "requirements.txt"),
        kernel(),
        device(needs),
        disk(needs),
        memory(needs),
        chromium(),
    ]
    thread.join(6)
    return [*checks, hub(needs, answer[0] if answer else "no answer within 6 s"), token(needs)]


def can_run(checks: list[Check]) -> bool:
    return all(c.ok for c in checks if c.needed)


def report(checks: list[Check], profile: str = "laptop") -> str:
    """One line per check, under each failure how to fix it, and whether the profile can run."""
    lines = []
    for c in checks:
        optional = not c.needed and c.name in ("hub", "hub token")
        tag = "[OK]  " if c.ok else "[--]  " if optional else "[FAIL]"
        lines.append(
            f"{tag} {c.name:<18} "
            f"{c.found}{'; not needed by this profile' if optional and not c.ok else ''}"
        )
        if not c.ok and not optional:
            lines.append(f"{'':25} to fix it: {c.fix}")
    missing = [c.name for c in checks if c.needed and not c.ok]
    verdict = f"cannot run as it is: {', '.join(missing)}" if missing else "has all that it needs"
    lines.append(f"Profile {profile} {verdict}.")
    return "\n".join(lines)


def python() -> Check:
    return Check(
        "Python",
        sys.version_info >= (3, 11),
        platform.python_version(),
        "3.11 or newer: PYTHON=python3.12 make clean install",
    )


def packages(requirements: Path) -> list[Check]:
    """One check per pin; a local part such as +cpu does not count as a difference."""
    checks = []
    for line in requirements.read_text().splitlines():
        name, equals, pin = line.partition("#")[0].strip().partition("==")
        if not equals:
            continue
        try:
            found = version(name)
            ok = found.split("+")[0] == pin
            checks.append(
                Check(name, ok, found if ok else f"{found}, but {pin} is pinned", INSTALL)
            )
        except PackageNotFoundError:
            checks.append(Check(name, False, f"not installed, {pin} is pinned", INSTALL))
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
    return Check(
        "kernel python3",
        mine,
        sys.executable if mine else argv,
        f"{sys.executable} -m ipykernel install --sys-prefix",
    )


def device(needs: Needs) -> Check:
    """The device that `device: auto` takes; on a CPU its threads and whether bfloat16 products
    are worth it.
    """
    try:
        import torch
    except Exception as error:  # a broken binary raises OSError, a missing one ImportError
        return Check("device", False, f"torch does not import: {error}", INSTALL)
    fix = (
        f"the {needs.gpu:g} GiB GPU that this profile is made for; smaller: --set "
        "last_mlp.sae.d_sae=16384, or --profile laptop"
    )
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        found = (
            f"{torch.cuda.get_device_name()}, {total:.0f} GiB, bfloat16 "
            f"{'yes' if torch.cuda.is_bf16_supported() else 'no'}"
        )
        return Check("device", total >= needs.gpu, found, fix)
    if torch.backends.mps.is_available():
        return Check("device", not needs.gpu, "Apple GPU (MPS)", fix)
    speed = _product_seconds(torch, torch.float32) / _product_seconds(torch, torch.bfloat16)
    found = (
        f"CPU, {torch.get_num_threads()} threads, bfloat16 products at {speed:.2g} times the "
        "speed of float32"
    )
    if shutil.which("nvidia-smi"):
        found += f"; torch {torch.__version__} sees no GPU although there is nvidia-smi"
        fix = (
            "a CUDA build of torch that this driver can run, or a newer driver: runpod_setup.sh "
            "chooses one"
        )
    return Check("device", not needs.gpu, found, fix)


def disk(needs: Needs, folder: str | Path = ".") -> Check:
    free = shutil.disk_usage(folder).free / GIB
    return Check(
        "free disk",
        free >= needs.disk,
        f"{free:.1f} GiB, {needs.disk:g} needed",
        "free some, or run elsewhere: --run DIR",
    )


def memory(needs: Needs, limit: Path = Path("/sys/fs/cgroup")) -> Check:
    """Free memory: the machine's, or what the container may still take where that is less."""
    try:
        import psutil
    except ImportError:
        return Check("free memory", False, "psutil is missing", INSTALL)
    free = psutil.virtual_memory().available
    try:
        free = min(
            free,
            int((limit / "memory.max").read_text()) - int((limit / "memory.current").read_text()),
        )
    except (OSError, ValueError):  # no container, or "max": no limit
        pass
    free /= GIB
    return Check(
        "free memory",
        free >= needs.memory,
        f"{free:.1f} GiB, {needs.memory:g} needed",
        "close programs, or --profile smoke",
    )


def chromium() -> Check:
    """Whether Chromium draws a figure, tried as a run tries it."""
    from suite import drawing

    why = drawing.probe()
    fix = f"figures are plainer until: {drawing.FIX}"
    return Check("Chromium", not why, why or "draws figures", fix, needed=False)


def hub(needs: Needs, reached: str) -> Check:
    return Check(
        "hub",
        reached.startswith("reached"),
        reached,
        "a way to the internet (https_proxy, HF_ENDPOINT)",
        needed=needs.hub,
    )


def token(needs: Needs) -> Check:
    """Whether there is a token, never what it is."""
    fix = "gated models and enough requests per hour: export HF_TOKEN=…, or .venv/bin/hf auth login"
    try:
        from huggingface_hub import get_token

        there = bool(get_token())
    except ImportError:
        there = bool(os.environ.get("HF_TOKEN"))
    source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the hub's own login"
    return Check(
        "hub token", there, f"present, from {source}" if there else "none", fix, needed=needs.hub
    )


def _product_seconds(torch, dtype) -> float:
    a = torch.ones(512, 512, dtype=dtype)
    return min(timeit.repeat(lambda: a @ a, number=1, repeat=5))
