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


def percent(value: float, *, sign: bool = True) -> str:
    """`97.3 %`; tiny shares do not become powers of ten: `< 0.01 %`."""
    hundred = value * 100
    if 0 < abs(hundred) < 0.01:
        text = "< 0.01" if value > 0 else f"> {MINUS}0.01"
    elif 99.95 <= hundred < 100:
        text = "> 99.9"  # "100" would claim more than was seen
    else:
        text = significant(hundred)
    return f"{text} %" if sign else text


def number(value: float | None, unit: str = "") -> str:
    """A value in its unit, without interval."""
    if value is None:
        return "n/a"
    if is_share(unit):
        return percent(value)
    return significant(value)


def interval(ci: Interval | None, unit: str = "") -> str:
    """`95.9–98.4` (in percent for shares), `−0.3 to 0.5` when a bound is negative, empty without interval."""
    if ci is None:
        return ""
    low, high = (significant(round(bound * 100, 2) if is_share(unit) else bound) for bound in ci)
    plain = ci[0] >= 0 and all(text[0].isdigit() for text in (low, high)) and "e-" not in low + high
    return f"{low}–{high}" if plain else f"{low} to {high}"


def with_interval(value: float | None, ci: Interval | None, unit: str = "") -> str:
    """`97.3 % (95.9–98.4)`."""
    span = interval(ci, unit)
    return f"{number(value, unit)} ({span})" if span else number(value, unit)


def difference(value: float | None, unit: str = "", *, word: str = "points") -> str:
    """A signed difference: `+1.2 points` for shares (percentage points)."""
    if value is None:
        return "n/a"
    scaled = value * 100 if is_share(unit) else value
    text = _change(scaled, 1 if is_share(unit) else None)
    text = text if text.startswith(MINUS) or text == "0" else f"+{text}"
    return f"{text} {word}" if is_share(unit) else text


def difference_interval(ci: Interval | None, unit: str = "") -> str:
    """`−0.3 to +2.1`."""
    return "" if ci is None else " to ".join(difference(bound, unit, word="").strip() for bound in ci)


def margin(value: float | None, unit: str = "", *, word: str = "points") -> str:
    """`± 5 points`."""
    if value is None:
        return "n/a"
    text = _trim(significant(value * 100 if is_share(unit) else value))
    return f"± {text} {word}" if is_share(unit) else f"± {text}"


def count(value: float) -> str:
    """`1,234` up to a million, then `12.3 M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{significant(value / size)} {letter}"
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `1 h 12 min`."""
    if value < 100:
        return f"{significant(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _change(value: float, decimals: int | None) -> str:
    """Differences of percentages keep one decimal: `12.3`, `0.4`; others three significant digits."""
    if decimals is None or not math.isfinite(value):
        return significant(value)
    if abs(value) < 0.05:
        return significant(value, 1) if abs(value) >= 0.001 else "0"
    return (MINUS if value < 0 else "") + f"{abs(value):.{decimals}f}"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
