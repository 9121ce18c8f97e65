"""A loss curve as SVG, written by hand: axes, ticks, grid, legend, in plain shapes that every browser shows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from typing import Any

from minedge.io.atomic import atomic_write

__all__ = ["INK", "LEFT", "WIDTH", "curve_svg", "nice_ticks", "svg_frame", "write_curve"]

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 52  # margins, pixels
TRAIN, SMOOTH, VALID, INK, GRID = "#b8cbe6", "#2f6db5", "#d1622b", "#333333", "#e6e6e6"
Points = Sequence[tuple[float, float]]


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high] with about `count` steps.

    >>> nice_ticks(0.3, 9.4)
    [2.0, 4.0, 6.0, 8.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    gap = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    first = math.ceil(low / gap - 1e-9)
    return [round(i * gap, 12) for i in range(first, math.floor(high / gap + 1e-9) + 1)]


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """Exponential moving average with the start's bias removed."""
    out, mean, weight, keep = [], 0.0, 0.0, 1.0 - 1.0 / window
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def thinned(points: Points, most: int = 600) -> Points:
    """At most about `most` points: more than that is no picture but a large file."""
    step = max(1, math.ceil(len(points) / most))
    return list(points[::step]) + ([points[-1]] if (len(points) - 1) % step else [])


def curve_svg(records: Sequence[dict[str, Any]], title: str = "Training loss") -> str:
    """The records of metrics.jsonl as a picture: loss of every step, its moving average, validation loss."""
    train = _points(records, "loss")
    valid = _points(records, "valid_loss")
    smooth = smoothed(train, max(2, min(100, len(train) // 20))) if train else []
    if not train and not valid:
        return svg_frame([f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no steps yet</text>'], title)
    xs = [x for x, _ in [*train, *valid]]
    ys = [y for _, y in [*train, *valid]]
    x_low, x_high = min(0.0, *xs), max(max(xs), 1.0)
    # A few wild steps must not flatten the rest: the top is the highest smoothed or validation loss and a little more.
    y_low, y_high = min(ys), max([y for _, y in [*smooth, *valid]])
    pad = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    y_low, y_high = y_low - pad, y_high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (min(y, y_high) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = []
    bottom = HEIGHT - BOTTOM
    for y in nice_ticks(y_low, y_high):
        at = place(x_low, y)[1]
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{y:g}</text>')
    for x in nice_ticks(x_low, x_high):
        at = place(x, y_low)[0]
        parts.append(f'<path d="M{at} {bottom}v5" stroke="{INK}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 19}" text-anchor="middle">{x:,.10g}</text>')
    parts.append(_line([place(x, y) for x, y in thinned(train)], TRAIN, 1.0))
    if len(train) >= 40:
        parts.append(_line([place(x, y) for x, y in thinned(smooth)], SMOOTH, 1.8))
    parts.append(_line([place(x, y) for x, y in thinned(valid)], VALID, 1.8))
    parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{VALID}"/>' for x, y in (place(*p) for p in thinned(valid, 60))]
    if valid:
        best = min(valid, key=lambda p: p[1])
        x, y = place(*best)
        parts.append(f'<circle cx="{x}" cy="{y}" r="5.5" fill="none" stroke="{VALID}" stroke-width="1.6"/>')
        side, shift = ("end", -9) if x > WIDTH * 0.6 else ("start", 9)
        # Above the point, on the side where there is room.
        parts.append(
            f'<text x="{x + shift}" y="{y - 10}" text-anchor="{side}" fill="{VALID}">'
            f"best {best[1]:.4g} at {best[0]:,.10g}</text>"
        )
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" stroke="{INK}" fill="none"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">nats per token</text>'
    )
    parts.append(
        _legend([("train", TRAIN if len(train) < 40 else SMOOTH)] * bool(train) + [("validation", VALID)] * bool(valid))
    )
    return svg_frame(parts, title)


def write_curve(path: str | os.PathLike[str], records: Sequence[dict[str, Any]], title: str = "Training loss") -> None:
    """Write `curve_svg` to a file, atomically."""
    atomic_write(path, curve_svg(records, title).encode())


def _points(records: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(r["step"]), float(r[key])) for r in records if r.get(key) is not None and math.isfinite(r[key])]


def _line(points: Points, color: str, width: float) -> str:
    at = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{at}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"/>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts, x = [], WIDTH - RIGHT - 110 * len(entries)
    for label, color in entries:
        parts.append(f'<path d="M{x} {TOP - 16}h22" stroke="{color}" stroke-width="2.4"/>')
        parts.append(f'<text x="{x + 28}" y="{TOP - 12}">{escape(label)}</text>')
        x += 110
    return "".join(parts)


def svg_frame(parts: Sequence[str], title: str, height: int = HEIGHT, title_y: int = TOP - 12) -> str:
    """The shapes as a document of WIDTH x `height` pixels on white, the title above them."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="{title_y}" font-size="15" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
