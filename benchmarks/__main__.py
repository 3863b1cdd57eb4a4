"""`python -m benchmarks [NAME …]`: measure, keep the results in results.json beside this file,
print one table.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch

from suite.report.machine import machine

SPEED = ("language_model_step", "sae_step", "end_to_end", "scaling")  # run when no name is given
NAMES = (*SPEED, "ground_truth", "feature_table")
RESULTS = Path(__file__).parent / "results.json"


def rows(result: dict):
    for case, values in result.get("cases", {"": result}).items():
        for name, rate in values["rates"].items():
            yield (
                f"{result['what']}{', ' + case if case else ''}",
                name,
                f"{rate['median']:,.0f} {result['unit']}",
                f"{values['ratios'][name]:.2f}",
            )


def main(names: list[str]) -> None:
    if unknown := set(names) - set(NAMES):
        sys.exit(
            f"benchmarks: {', '.join(sorted(unknown))} does not exist; there are: "
            f"{', '.join(NAMES)}"
        )
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() and names else {}
    here = {"machine": machine(), "threads": torch.get_num_threads()}
    measured = {
        name: import_module(f"benchmarks.{name}").run() | ({"measured on": here} if names else {})
        for name in names or SPEED
    }
    RESULTS.write_text(json.dumps((kept or here) | measured, indent=1) + "\n")
    print("| benchmark | contender | median | times the first |\n|---|---|---|---|")
    for result in measured.values():
        if "what" in result:
            for row in rows(result):
                print("| " + " | ".join(row) + " |")
        else:
            print(
                json.dumps(
                    {key: value for key, value in result.items() if key != "measured on"}, indent=1
                )
            )


if __name__ == "__main__":
    main(sys.argv[1:])
