"""What the cells of the tutorials use: the package's own source shown, figures held to their ranges, plots as SVG.

In a notebook results are displayed; in a plain Python script they are printed, so that `python tutorials/03_mezo.py`
runs too.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FIGURES_MIME", "Expected", "best_time", "plot", "seed", "show", "show_c"]

FIGURES_MIME = "application/vnd.minedge.figures+json"
_ROOT = Path(__file__).resolve().parents[1]


def seed() -> int:
    """The seed of this run: 0, or MINEDGE_TUTORIAL_SEED, with which the stated ranges are tested on other seeds."""
    return int(os.environ.get("MINEDGE_TUTORIAL_SEED", "0"))


def best_time(work: Callable[[], object], repeats: int = 7, seconds: float = 0.0) -> float:
    """Seconds of the fastest of `repeats` runs, or of as many as fit into `seconds` if that is more, after one to warm
    up: other programs only ever make a run slower.
    """
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < repeats or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def show(*objects: Any, doc: bool = True) -> None:
    """Display the source of functions or classes as they stand in the package; `doc=False` leaves docstrings out."""
    parts = []
    for thing in objects:
        text = textwrap.dedent(inspect.getsource(thing)).rstrip()
        file = Path(inspect.getsourcefile(thing) or "").resolve()
        place = file.relative_to(_ROOT).as_posix() if file.is_relative_to(_ROOT) else file.name
        parts.append(f"# {place}\n{text if doc else _without_docstrings(text)}")
    _display_code("\n\n\n".join(parts), "python")


def show_c(file: str, start: str) -> None:
    """Display one function of a C kernel: from the line of kernels/`file` that begins with `start` to its closing
    brace, with the comment above it.
    """
    from minedge.lessons import kernel_sources

    lines = (kernel_sources() / file).read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(start)), None)
    if first is None:
        raise ValueError(f"start: no line of kernels/{file} begins with {start!r}")
    last = next(i for i in range(first, len(lines)) if lines[i] == "}")
    while first and lines[first - 1].startswith(("//", "/*", " *")):
        first -= 1
    _display_code("\n".join([f"// kernels/{file}", *lines[first : last + 1]]), "c")


def _without_docstrings(text: str) -> str:
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            lines[first - 1 : last] = [""] * (last - first + 1)  # keeps the other nodes' line numbers
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r":\n\n+", ":\n", re.sub(r"\n{4,}", "\n\n\n", text))


class Expected:
    """The figures that a tutorial states, with their ranges, and those that this run found.

    >>> expect = Expected({"loss after": (2.9, 3.3)})
    >>> expect("loss after", 3.14159)
    loss after: 3.142 (stated: 2.9 to 3.3)

    A figure outside its range raises AssertionError, an unknown name KeyError. `report()` at the end displays the table
    and raises where a figure was never measured.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]]):
        self.ranges = dict(ranges)
        self.found: dict[str, float] = {}

    def __call__(self, name: str, value: float) -> None:
        if name not in self.ranges:
            raise KeyError(f"{name!r} is not among the stated figures")
        low, high = self.ranges[name]
        self.found[name] = float(f"{float(value):.4g}")
        print(f"{name}: {value:,.4g} (stated: {low:,g} to {high:,g})")
        if not low <= value <= high:
            raise AssertionError(f"{name}: {value:.6g} lies outside the stated range {low:g} to {high:g}")

    def report(self) -> None:
        """Display every figure with its range."""
        missing = [name for name in self.ranges if name not in self.found]
        if missing:
            raise AssertionError(f"stated, but not measured in this run: {', '.join(missing)}")
        rows = [
            (name, f"{self.found[name]:,.4g}", f"{low:,g} to {high:,g}") for name, (low, high) in self.ranges.items()
        ]
        plain = "\n".join(f"{name}: {value} (stated: {limits})" for name, value, limits in rows)
        table = "| figure | this run | stated |\n|:--|--:|--:|\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        _display({"text/markdown": table, "text/plain": plain, FIGURES_MIME: self.found})


def plot(figure: Any, caption: str) -> None:
    """Display a matplotlib figure as SVG with a caption, and close it. The same figure gives the same bytes."""
    import matplotlib
    import matplotlib.pyplot as plt

    file = io.StringIO()
    # Text stays text: small files, and readers can search and copy it. A fixed salt keeps the ids inside equal.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minedge"}):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = file.getvalue()
    svg = "\n".join(line.rstrip() for line in svg[svg.index("<svg") :].splitlines())
    svg = svg.replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)  # never wider than its page
    _display({"image/svg+xml": svg, "text/plain": f"[{caption}]"})
    _display({"text/markdown": f"*{caption}*", "text/plain": caption})


def _display_code(text: str, language: str) -> None:
    # where the assignments cut their blanks means nothing here
    text = "\n".join(line for line in text.splitlines() if not re.match(r"\s*(#|//|/\*) (BEGIN|END) SOLUTION", line))
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import get_lexer_by_name
    except ImportError:
        _display({"text/plain": text})
        return
    # Styles stand inside, so that the code looks the same in JupyterLab and on a page; long lines wrap.
    style = "font-family: monospace; font-size: 11.5px; line-height: 1.35; white-space: pre-wrap; margin: 0"
    page = highlight(text, get_lexer_by_name(language), HtmlFormatter(noclasses=True, prestyles=style))
    _display({"text/html": page, "text/plain": text})


def _display(bundle: dict[str, Any]) -> None:
    """To the notebook, or in a script as text."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        print(bundle["text/plain"])
        return
    from IPython.display import display

    display(bundle, raw=True)
