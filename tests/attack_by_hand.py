"""30 kills and 20 concurrent pairs over all stages end with the artefacts of an undisturbed run.

python -m tests.attack_by_hand [FOLDER] [SEED]
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import ROOT
from tests.test_attacks.conftest import STAGES, arguments

KILLS, PAIRS = 30, 20
VOLATILE = ("seconds", "per_second", "sha256", "report.html", "report.md", "report.pdf")
LEFT = (".partial", ".lock", ".checkpoints")


def text(folder: Path) -> Path:
    """Documents from the standard library."""
    folder.mkdir(parents=True)
    for path in sorted((Path(os.__file__).parent / "unittest").glob("*.py")):
        (folder / path.name).write_text(path.read_text(encoding="utf-8")[:20_000])
    for path in sorted((Path(os.__file__).parent / "email").glob("*.py")):
        (folder / f"email_{path.name}").write_text(path.read_text(encoding="utf-8")[:20_000])
    return folder


def start(stage: str, run: Path, texts: Path) -> subprocess.Popen:
    """The stage in a process group of its own, so that a kill takes its workers too."""
    return subprocess.Popen(
        [sys.executable, "-m", "suite", *arguments(f"stage {stage}", run, texts)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, what: str) -> str:
    said = process.communicate(timeout=900)[1]
    if process.returncode != 0 or "Traceback" in said:
        sys.exit(f"{what}: status {process.returncode}\n{said[-3000:]}")
    return said


def without_volatile(value):
    """What a repeated computation has to give again: everything but times and hashes of them."""
    if isinstance(value, dict):
        return {k: without_volatile(v) for k, v in value.items() if not k.endswith(VOLATILE)}
    return [without_volatile(v) for v in value] if isinstance(value, list) else value


def hashes(run: Path) -> dict[str, str]:
    """By file; of JSON without times, of records without the hashes of files that hold times."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name, data = path.relative_to(run).as_posix(), path.read_bytes()
        if name.endswith(VOLATILE) or name.startswith("figures/"):
            continue
        if path.suffix == ".json":
            value = without_volatile(json.loads(data))
            if path.name == "made_from.json":
                value["files"].pop("training.json", None)
            data = json.dumps(value, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def compare(run: Path, expected: dict[str, str], what: str) -> None:
    if left := [str(p) for p in run.rglob(".*") if p.name.endswith(LEFT)]:
        sys.exit(f"{what}: left behind {left}")
    found = hashes(run)
    differ = [k for k in found | expected if found.get(k) != expected.get(k)]
    if differ:
        sys.exit(f"{what}: {len(differ)} files differ: {differ[:10]}")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    chance, texts = random.Random(seed), text(folder / "text")
    print(f"{folder}, seed {seed}", flush=True)
    began, whole, times = time.monotonic(), folder / "whole" / "run", {}
    for stage in STAGES:
        since = time.monotonic()
        finish(start(stage, whole, texts), stage)
        times[stage] = time.monotonic() - since
    expected = hashes(whole)
    print(f"whole: {len(expected)} files, {time.monotonic() - began:.0f} s", flush=True)
    killed, broken = dict.fromkeys(STAGES, 0), folder / "broken" / "run"
    while sum(killed.values()) < KILLS:
        for stage in STAGES:
            process = start(stage, broken, texts)
            try:
                process.wait(chance.uniform(0.3, 1.0) * times[stage])
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed[stage] += 1
            process.communicate()
            finish(start(stage, broken, texts), f"{stage} after a kill")
        compare(broken, expected, "after kills")
        shutil.rmtree(broken)
        print(f"{sum(killed.values())} kills {killed}: identical", flush=True)
    pairs, waited = 0, 0
    while pairs < PAIRS:
        both = folder / "both" / str(pairs)
        for stage in STAGES:
            two = [
                start(stage, both, texts),
                start(chance.choice((stage, "clusters")), both, texts),
            ]
            waited += sum("waiting for" in finish(p, f"two at {stage}") for p in two)
            pairs += 1
        compare(both, expected, "after pairs")
        shutil.rmtree(both)
        print(f"{pairs} pairs, {waited} waited: identical", flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
