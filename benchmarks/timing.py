"""Alternating timings: every contender once per round, so that a noisy machine disturbs all of
them alike.
"""

import statistics
import time
from collections.abc import Callable


def rates(
    contenders: dict[str, Callable[[], object]], items: int, rounds: int = 7, repeats: int = 3
) -> dict[str, dict[str, float]]:
    """Median and quartiles of items per second for each contender, over `rounds` rounds of
    `repeats` calls each.

    A contender that returns a float has timed its own round, elsewhere.
    """
    for function in contenders.values():
        function()
    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            began = time.perf_counter()
            result = function()
            if not isinstance(result, float):
                for _ in range(repeats - 1):
                    function()
                result = items * repeats / (time.perf_counter() - began)
            seen[name].append(result)
    return {
        name: dict(zip(("low", "median", "high"), statistics.quantiles(values, n=4), strict=True))
        for name, values in seen.items()
    }


def case(measured: dict[str, dict[str, float]], baseline: str) -> dict:
    """Rates, and their medians in units of the baseline's."""
    ratios = {name: ratio(measured, name, baseline) for name in measured}
    return {"rates": measured, "ratios": ratios}


def ratio(contenders: dict[str, dict[str, float]], name: str, baseline: str) -> float:
    return contenders[name]["median"] / contenders[baseline]["median"]
