"""A process's own peak of memory (Linux). `ru_maxrss` will not do: a child starts with that of
the process it was forked from.
"""

import re
from pathlib import Path


def start() -> int:
    """Forget the peak so far; the memory held now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    """The most memory held since `start`, in bytes."""
    return status("VmHWM")


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
