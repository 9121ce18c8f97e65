"""Numbers and names as text a person reads, and tables without any terminal magic."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["count", "duration", "json_value", "number", "plain_table", "printable", "size"]

# C0 and C1 control characters, except tab and newline: in a terminal they could move the cursor or change its title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with control characters as U+FFFD: models and files may hold any bytes, a terminal obeys some of them."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def size(n: float) -> str:
    """Bytes in decimal units, as drives and downloads are sold: 1234567 -> '1.23 MB'."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        n /= 1000
        if n < 999.5 or unit == "TB":
            break
    return f"{n:.{2 if n < 9.995 else 1 if n < 99.95 else 0}f} {unit}"


def count(n: int) -> str:
    """12345 -> '12,345'."""
    return f"{n:,}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; '?' where unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def number(value: Any) -> str:
    """A table cell: floats with four digits after the point, whole numbers with commas, None as '-'."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> str:
    """Columns padded with spaces; those in `right` are set flush right."""
    cells = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def json_value(value: Any) -> Any:
    """`value` as strict JSON can hold it: arrays become lists, NaN and infinities null, other objects text."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return json_value(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
