"""How a number is written in the report: one function per kind, used everywhere. `None`, from a NaN, is "not defined"."""

import math

NOT_DEFINED = "not defined"
NONE = "–"  # a cell that cannot have a value


def count(n: float | None) -> str:
    """A whole number with thousands separated: 1,020,000."""
    return NOT_DEFINED if n is None else f"{round(n):,}"


def number(x: float | None, digits: int = 3) -> str:
    """`digits` significant digits, never an exponent and never fewer than the whole number has: 0.0213, 17.4, 24,512."""
    if x is None:
        return NOT_DEFINED
    if x == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(x))))
    rounded = round(x, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(
        math.log10(abs(x))
    ):  # 9.996 → 10.0
        decimals = max(0, decimals - 1)
    return f"{rounded:,.{decimals}f}"


def signed(x: float | None) -> str:
    """`number` with its sign: +0.0213, −0.12."""
    return NOT_DEFINED if x is None else ("−" if x < 0 else "+") + number(abs(x))


def exact(x: float | None) -> str:
    """A value as it was set or reported, without digits that nobody measured: 0.003, 3.5, 24.7."""
    return NOT_DEFINED if x is None else f"{x:,.10f}".rstrip("0").rstrip(".")


def percent(share: float | None) -> str:
    """A share in per cent: one decimal from 10 % on, else three significant digits; 100 % only for (nearly) exactly all."""
    if share is None:
        return NOT_DEFINED
    if share == 0 or abs(share - 1) < 5e-7:
        return f"{100 * share:.0f} %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{number(100 * share)} %" if abs(share) < 0.1 else f"{100 * share:.1f} %"


def nats(x: float | None) -> str:
    """A loss in nats per token, three decimals; the unit stands beside it or in the table's head."""
    return NOT_DEFINED if x is None else f"{x:.3f}"


def small(x: float | None, digits: int = 3) -> str:
    """`digits` significant digits, in powers of ten below 0.001, and two there: 3.1 × 10⁻⁷."""
    if x is None or x == 0 or abs(x) >= 1e-3:
        return number(x, digits)
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def millions(n: float | None) -> str:
    """A large count as `3.00 million`; below a million the count itself."""
    return count(n) if n is None or n < 1e6 else f"{number(n / 1e6)} million"


def duration(seconds: float | None) -> str:
    """12 s, 5 min 12 s, 10 h 54 min."""
    if seconds is None:
        return NOT_DEFINED
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def gib(size: float | None) -> str:
    return NOT_DEFINED if size is None else f"{number(size / 2**30)} GiB"
