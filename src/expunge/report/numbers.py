"""Numbers for people: three significant digits, shares as percentages, small p-values as powers of ten."""

from __future__ import annotations

import math

from expunge.report.schema import Interval

SHARES = frozenset({"prob", "probability", "share", "fraction", "rate", "accuracy", "percent", "rouge"})
P_VALUES = frozenset({"p", "p-value", "p_value", "pvalue", "log10 p"})
LOGARITHMIC = P_VALUES | {"perplexity", "ppl"}
MINUS = "\u2212"


def is_share(unit: str) -> bool:
    """True for values in [0, 1] that people read as percentages."""
    return unit.lower() in SHARES


def is_p(unit: str) -> bool:
    return unit.lower() in P_VALUES


def is_log(unit: str) -> bool:
    """True for values that are compared by ratio, not by difference."""
    return unit.lower() in LOGARITHMIC


def significant(value: float, digits: int = 3) -> str:
    """`0.0412`, `12.3`, `4,120`, `4.35e-25`; exact zero is `0`."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")  # round first: 9.996 has two digits before the point
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{decimals}f}"
    return (MINUS if value < 0 else "") + text


def percent(value: float, *, whole: bool = False) -> str:
    """`97.3 %`, `3.4 %`; below 0.1 % two digits. `whole` drops decimals, for levels and powers.

    Tiny shares do not become powers of ten (`< 0.01 %`), and 99.97 % is not rounded up to all (`> 99.9 %`).
    """
    hundred = value * 100
    if whole and hundred == round(hundred):
        return f"{hundred:.0f} %"
    if hundred == 100:
        return "100 %"
    if 0 < abs(hundred) < 0.01:
        return f"{'<' if value > 0 else '>'} {MINUS if value < 0 else ''}0.01 %"
    if 99.95 <= hundred < 100:
        return "> 99.9 %"
    return f"{_fixed(hundred, _percent_decimals(hundred))} %"


def number(value: float | None, unit: str = "") -> str:
    """A value in its unit, without interval."""
    if value is None:
        return "n/a"
    return percent(value) if is_share(unit) else significant(value)


def interval(ci: Interval | None, unit: str = "") -> str:
    """`95.9–98.4` (in percent for shares), `−0.3 to 0.5` when a bound is negative, empty without interval."""
    if ci is None:
        return ""
    low, high = _bounds(ci, unit)
    return f"{low}–{high}" if ci[0] >= 0 and "e" not in low + high else f"{low} to {high}"


def with_interval(value: float | None, ci: Interval | None, unit: str = "") -> str:
    """`97.3 % (95.9–98.4)`."""
    span = interval(ci, unit)
    return f"{number(value, unit)} ({span})" if span else number(value, unit)


def difference(value: float | None, ci: Interval | None = None, unit: str = "") -> str:
    """A signed difference, as exact as its interval is narrow: `+1.2 points` for shares (percentage points)."""
    if value is None:
        return "n/a"
    scale = 100 if is_share(unit) else 1
    text = _as_wide(value * scale, ci, scale)
    return _signed(value, text) + (" points" if is_share(unit) else "")


def difference_interval(ci: Interval | None, unit: str = "") -> str:
    """`−0.3 to +2.1`."""
    if ci is None:
        return ""
    low, high = _bounds(ci, unit)
    return f"{_signed(ci[0], low)} to {_signed(ci[1], high)}"


def margin(value: float | None, unit: str = "") -> str:
    """`± 5 points`."""
    if value is None:
        return "n/a"
    text = _trim(significant(value * 100 if is_share(unit) else value))
    return f"± {text} points" if is_share(unit) else f"± {text}"


def p_value(value: float) -> str:
    """`p = 0.034`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {significant(value, 2)}"


def count(value: float) -> str:
    """`1,234` up to a million, then `12.3 M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{significant(value / size)} {letter}"
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `1 h 12 min`."""
    if value < 100:
        return f"{significant(value, 3 if value >= 1 else 2)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _percent_decimals(hundred: float) -> int:
    size = abs(hundred)
    return 1 if size >= 0.1 or size == 0 else 1 - math.floor(math.log10(size))


def _bounds(ci: Interval, unit: str) -> tuple[str, str]:
    """Both bounds with as many decimals as their distance deserves: two digits of it."""
    if is_p(unit):
        return significant(ci[0]), significant(ci[1])
    scale = 100 if is_share(unit) else 1
    return _as_wide(ci[0] * scale, ci, scale), _as_wide(ci[1] * scale, ci, scale)


def _as_wide(value: float, ci: Interval | None, scale: int) -> str:
    width = abs(ci[1] - ci[0]) * scale if ci is not None else math.nan
    if not math.isfinite(value) or (scale == 100 and value == 100):
        return significant(value)
    if not math.isfinite(width) or width == 0:
        return _fixed(value, 1) if scale == 100 and (abs(value) >= 0.1 or value == 0) else significant(value)
    decimals = 1 - math.floor(math.log10(width))
    if decimals > 4 or abs(value) >= 1e6:
        return significant(value)
    return _fixed(value, max(1 if scale == 100 and width > 0.2 else 0, decimals))


def _fixed(value: float, decimals: int) -> str:
    text = f"{abs(value):,.{decimals}f}"
    if not text.strip("0.,"):
        return "0" if value == 0 or decimals else text
    return (MINUS if value < 0 else "") + text


def _signed(value: float, text: str) -> str:
    return text if value <= 0 or text == "0" else f"+{text}"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
