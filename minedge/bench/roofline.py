"""A roofline plot as SVG: multiply-adds per byte read across, multiply-adds per second up, both by powers of ten.

The slanted roof is what memory bandwidth allows, the flat ones what the arithmetic does. A point far below its roof
is bound by something else: instructions, or calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from minedge.bench.machine import Limit
from minedge.bench.run import Report
from minedge.bench.stats import spread
from minedge.finetune.curve import INK, LEFT, WIDTH, svg_frame

__all__ = ["roofline_svg"]

HEIGHT, RIGHT, TOP, BOTTOM = 460, 20, 44, 92  # pixels; the last three are margins
GRID, FAINT = "#e6e6e6", "#999999"
COLORS = {"minedge": "#2f6db5", "llama.cpp": "#d1622b", "torch": "#7a5195", "peft": "#4f9d69", "onnxruntime": "#b8860b"}


def roofline_svg(report: Report) -> str:
    """The picture of the largest number of threads that was measured."""
    threads = max(report.limits, default=0)
    limit, points = report.limits.get(threads), _points(report, threads)
    title = f"{report.machine['processor']}, {threads} thread{'s' * (threads != 1)}"
    if limit is None or not limit.read:
        middle = f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">the machine was not measured</text>'
        return svg_frame([middle], title, HEIGHT, TOP - 16)
    return svg_frame(_drawing(limit, points), title, HEIGHT, TOP - 16)


def _points(report: Report, threads: int) -> list[tuple[float, float, str, str]]:
    """(multiply-adds per byte, per second, who, label) of everything that counts and states both."""
    out = []
    for result in report.results:
        for run in result.runs:
            work = run.facts
            if run.counts and run.job.threads == threads and work.get("macs") and work.get("bytes"):
                rate = work["macs"] / spread(run.seconds).median
                label = f"{result.name} {result.shape}".strip()
                out.append((work["macs"] / work["bytes"], rate, run.job.who, label))
    return out


def _drawing(limit: Limit, points: Sequence[tuple[float, float, str, str]]) -> list[str]:
    roofs = {"float32": limit.float_macs, "int8": limit.int8_macs}
    roofs = {name: top for name, top in roofs.items() if top}
    top = max([*roofs.values(), *(rate for _, rate, _, _ in points), limit.read])
    xs, ys = [x for x, *_ in points] or [1.0], [y for _, y, *_ in points] or [top]
    x_low, x_high = _decades(min(*xs, 0.5), max(*xs, 2 * top / limit.read))
    y_low, y_high = _decades(min(*ys, 10**x_low * limit.read), top)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts, bottom = [], HEIGHT - BOTTOM
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        at = place(10**x_low, 10.0**power)[1]
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{10.0 ** (power - 9):g}</text>')
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        at = place(10.0**power, 10**y_low)[0]
        parts.append(f'<path d="M{at} {bottom}v5" stroke="{INK}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 19}" text-anchor="middle">{10.0**power:g}</text>')
    tallest = max(roofs.values(), default=top)
    x0 = max(10**x_low, 10**y_low / limit.read)
    start, corner = place(x0, x0 * limit.read), place(min(tallest / limit.read, 10**x_high), tallest)
    parts.append(f'<path d="M{start[0]} {start[1]}L{corner[0]} {corner[1]}" stroke="{INK}" stroke-width="1.6"/>')
    parts.append(f'<text x="{start[0] + 40}" y="{start[1] - 6}" fill="{INK}">read {limit.read / 1e9:.1f} GB/s</text>')
    for name, roof in roofs.items():
        x, y = place(roof / limit.read, roof)
        parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="{INK}" stroke-width="1.6" fill="none"/>')
        text = f"{name} {roof / 1e9:.0f} G multiply-adds/s"
        parts.append(f'<text x="{WIDTH - RIGHT - 4}" y="{y - 6}" text-anchor="end">{text}</text>')
    heights = [place(1.0, roof)[1] for roof in roofs.values()]
    parts += _marks([(*place(x, y), who, label) for x, y, who, label in points], heights)
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" stroke="{INK}" fill="none"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">multiply-adds per byte read</text>')
    half = (TOP + bottom) / 2
    turned = f'x="16" y="{half}" text-anchor="middle" transform="rotate(-90 16 {half})"'
    parts.append(f"<text {turned}>G multiply-adds per second</text>")
    parts.append(_legend({who for _, _, who, _ in points}))
    return parts


def _marks(points: Sequence[tuple[float, float, str, str]], roofs: Sequence[float]) -> list[str]:
    """Dots; minedge's carry their part's name, once each, moved down where a roof or another name stands."""
    parts: list[str] = []
    named: dict[str, tuple[float, float]] = {}
    for x, y, who, label in points:
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{COLORS.get(who, FAINT)}"/>')
        if who != "minedge" or label in named:
            continue
        at = y + (14 if any(abs(y - roof) < 8 for roof in roofs) else 4)
        while any(abs(at - other) < 10 and abs(x - across) < 120 for across, other in named.values()):
            at += 10
        named[label] = (x, at)
        side, shift = ("end", -8) if x > WIDTH * 0.7 else ("start", 8)
        parts.append(f'<text x="{x + shift}" y="{at}" text-anchor="{side}" font-size="10">{escape(label)}</text>')
    return parts


def _decades(low: float, high: float) -> tuple[float, float]:
    """Logarithms a little outside [low, high]."""
    a, b = math.log10(low), math.log10(high)
    pad = max(0.15, 0.05 * (b - a))
    return a - pad, b + pad


def _legend(who: set[str]) -> str:
    parts, x = [], LEFT
    for name in (name for name in COLORS if name in who):
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 22}" r="4" fill="{COLORS[name]}"/>')
        parts.append(f'<text x="{x + 9}" y="{HEIGHT - 18}">{escape(name)}</text>')
        x += 110
    return "".join(parts)
