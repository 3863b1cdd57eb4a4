"""How a number is written: one function per kind, used everywhere. `None`, from a NaN, is "not
defined".
"""

from collections.abc import Callable
from decimal import Decimal
from functools import wraps

NOT_DEFINED = "not defined"
NONE = "–"  # a cell that cannot have a value
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _defined(write: Callable[..., str]) -> Callable[..., str]:
    @wraps(write)
    def checked(x: float | None, *options: int) -> str:
        return NOT_DEFINED if x is None else write(x, *options)

    return checked


@_defined
def count(n: float) -> str:
    """A whole number with thousands separated: 1,020,000."""
    return f"{round(n):,}"


@_defined
def number(x: float, digits: int = 3) -> str:
    """`digits` significant digits, never an exponent and never fewer than the whole number has:
    0.0213, 17.4, 24,512.
    """
    if x == 0 or abs(x) >= 10**digits:
        return f"{x:,.0f}"
    return f"{Decimal(f'{x:.{digits - 1}e}'):,f}"


@_defined
def short(x: float, digits: int = 2) -> str:
    """At most `digits` significant digits, no zeros at the end, never an exponent: 0.5, 0.013."""
    return f"{x:.0f}" if abs(x) >= 10**digits else f"{Decimal(f'{x:.{digits}g}'):f}"


@_defined
def decimal(x: float) -> str:
    """As the feature page writes it: `short` with three digits, thousands apart by a thin space."""
    return f"{Decimal(short(x, 3)):,f}".replace(",", "\u2009")


@_defined
def signed(x: float) -> str:
    """`number` with its sign: +0.0213, −0.12."""
    return ("−" if x < 0 else "+") + number(abs(x))


@_defined
def exact(x: float) -> str:
    """A value as it was set or reported, without digits that nobody measured: 0.003, 3.5, 24.7."""
    return f"{x:,.10f}".rstrip("0").rstrip(".")


@_defined
def percent(share: float) -> str:
    """A share in per cent: one decimal from 10 % on, else three significant digits; 100 % only for
    (nearly) exactly all.
    """
    if share == 0 or abs(share - 1) < 5e-7:
        return f"{100 * share:.0f} %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{number(100 * share)} %" if abs(share) < 0.1 else f"{100 * share:.1f} %"


@_defined
def nats(x: float) -> str:
    """A loss in nats per token, three decimals; the unit stands beside it or in the table's
    head.
    """
    return f"{x:.3f}"


@_defined
def small(x: float, digits: int = 3) -> str:
    """`digits` significant digits, in powers of ten below 0.001, and two there: 3.1 × 10⁻⁷."""
    if x == 0 or abs(x) >= 1e-3:
        return number(x, digits)
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(RAISED)}"


@_defined
def millions(n: float) -> str:
    """A large count as `3.00 million`; below a million the count itself."""
    return count(n) if n < 1e6 else f"{number(n / 1e6)} million"


@_defined
def gib(size: float) -> str:
    """Bytes as `16.0 GiB`."""
    return f"{number(size / 2**30)} GiB"


@_defined
def duration(seconds: float) -> str:
    """A measured time: 1.2 s, 12 s, 5 min 12 s, 10 h 54 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@_defined
def about(seconds: float) -> str:
    """An expected time as roughly as it is known: tens of seconds, minutes, or hours."""
    if seconds < 55:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def interval(low: float | None, high: float | None, write: Callable[..., str] = number) -> str:
    """The ends of an interval, each as `write` has it: 0.61 to 0.64."""
    return f"{write(low)} to {write(high)}"
