"""`python -m benchmarks`: measure, write results.json beside this file, print one table."""

import json
from pathlib import Path

import torch

from benchmarks import end_to_end, language_model_step, sae_step, scaling
from sae_lib.report.machine import machine


def rows(result: dict):
    for case, values in result.get("cases", {"": result}).items():
        for name, rate in values["rates"].items():
            yield f"{result['what']}{', ' + case if case else ''}", name, f"{rate['median']:,.0f} {result['unit']}", f"{values['ratios'][name]:.2f}"


def main() -> None:
    results = {"machine": machine(), "threads": torch.get_num_threads()} | {m.__name__.split(".")[-1]: m.run() for m in (language_model_step, sae_step, end_to_end, scaling)}
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("| benchmark | contender | median | times the first |\n|---|---|---|---|")
    for result in results.values():
        if isinstance(result, dict) and "what" in result:
            for row in rows(result):
                print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
