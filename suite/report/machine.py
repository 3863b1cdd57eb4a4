"""Where and with what a run was made: recorded when it runs, quoted by the report whenever and
wherever it is rendered.
"""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from suite import project


def machine() -> dict[str, Any]:
    """CPU, cores, memory, GPU, torch's threads, date, operating system, versions of everything
    pinned, git commit: for `results/run.json`.
    """
    import psutil
    import torch

    gpu = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "name": properties.name,
            "bytes": properties.total_memory,
            "number": torch.cuda.device_count(),
        }
    elif torch.backends.mps.is_available():
        gpu = {"name": "Apple GPU (mps)", "bytes": None, "number": 1}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(project.find()),
        "commit": commit(project.find()),
    }


def cpu_model() -> str:
    """The processor's own name, or the architecture where the system does not tell."""
    try:
        if found := re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        ):
            return found[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        try:
            return subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine()


def versions(root: Path | None) -> dict[str, str | None]:
    """The installed version of every pinned package; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for line in (root / "requirements.txt").read_text().splitlines() if root else []:
        name, pinned, _ = line.partition("#")[0].strip().partition("==")
        if pinned:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
    return found


def commit(folder: Path | None) -> str | None:
    """The commit that the code is at, marked where tracked files differ from it; None without
    git.
    """
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(
            status, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} with uncommitted changes" if changed else head
