import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_everything_runs_on_a_simulated_gpu():
    """Every mismatch of devices and every needless wait that CUDA would have; about 30 s."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "tests/on_fake_gpu.py", "tests/on_simulated_gpu.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
