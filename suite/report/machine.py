"""Where and with what a run was made: recorded when it runs, quoted by the report whenever and
wherever it is rendered.
"""

import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite import project


def machine() -> dict[str, Any]:
    """CPU, cores, memory, GPU, torch's threads, date, operating system, versions of everything
    pinned, git commit: for `results/run.json`.
    """
    import joblib
    import psutil
    import torch

    gpu = None
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        number = torch.cuda.device_count()
        gpu = {"name": found.name, "bytes": found.total_memory, "number": number}
    root = project.find()
    pins = project.pins(root / "requirements.txt") if root else ()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": joblib.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: project.installed(name) for name in pins},
        "commit": commit(root),
    }


def cpu_model() -> str:
    """The processor's own name, or the architecture where the system does not tell."""
    known = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", known.read_text() if known.exists() else "")
    found = named[1].strip() if named else _output("sysctl", "-n", "machdep.cpu.brand_string")
    return found or platform.processor() or platform.machine()


def commit(folder: Path | None) -> str | None:
    """The commit that the code is at, marked where tracked files differ from it; None without
    git.
    """
    head = _output("git", "rev-parse", "--short=12", "HEAD", cwd=folder)
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", cwd=folder)
    return f"{head} with uncommitted changes" if head and changed else head


def _output(*command: str, cwd: Path | None = None) -> str | None:
    """What a command prints; None where it does not exist or fails."""
    try:
        how = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        return subprocess.run(command, cwd=cwd, **how).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
