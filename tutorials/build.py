"""Make the notebooks from the sources: NN_topic.py (percent format) -> executed NN_topic.ipynb beside it.

    python tutorials/build.py             all of them
    python tutorials/build.py 3 mezo      some of them, by number or name
    python tutorials/build.py --check     execute all and compare with the notebooks that are there; write nothing
    python tutorials/build.py --text 3    only prose has changed: take it over, keep the outputs, execute nothing

Needs the notebook tools (pip install '.[notebook]'). Every tutorial holds its own figures to the ranges it states, so
one that executes is right; --check also wants the notebooks beside the sources to have the same cells and the same
kinds of output.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_root = Path(__file__).resolve().parents[1]
if (_root / "minedge").is_dir():  # the source tree, maybe not installed; inside an installed package it is not
    sys.path.insert(0, str(_root))

from minedge import lessons
from minedge.errors import MinedgeError
from minedge.teaching import FIGURES_MIME


def cells_of(source: Path) -> Any:
    """The notebook that a source describes, not yet executed."""
    lessons.need("jupytext")
    import jupytext

    notebook: Any = jupytext.read(source, fmt="py:percent")
    lessons.tidy(notebook)
    return notebook


def stated(notebook: Any) -> dict[str, tuple[float, float]]:
    """The ranges that a tutorial states: the literal in its cell `expect = Expected({...})`."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "Expected(" in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Expected":
                    return ast.literal_eval(node.args[0])
    return {}


def figures(notebook: Any) -> dict[str, float]:
    """The figures that an executed notebook found."""
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", ()):
            if FIGURES_MIME in output.get("data", {}):
                return dict(output["data"][FIGURES_MIME])
    return {}


def differences(wanted: Any, found: Any) -> list[str]:
    """Where a committed notebook is not what its source gives: other cells, figures outside the stated ranges, outputs
    of another kind. Empty where all is well. `wanted` is executed, or fresh from `cells_of`.
    """
    if len(wanted.cells) != len(found.cells):
        return [f"{len(found.cells)} cells, the source has {len(wanted.cells)}"]
    problems = []
    for i, (a, b) in enumerate(zip(wanted.cells, found.cells, strict=True), 1):
        if (a.cell_type, a.source, a.metadata) != (b.cell_type, b.source, b.metadata):
            problems.append(f"cell {i} is not that of the source")
        elif a.cell_type == "code" and a.execution_count is not None and _kinds(a) != _kinds(b):
            problems.append(f"cell {i} now gives {_kinds(a)}, the notebook has {_kinds(b)}")
    ranges, values = stated(found), figures(found)
    if set(ranges) != set(values):
        problems.append(f"it states {sorted(ranges)} and shows {sorted(values)}")
    for name, (low, high) in ranges.items():
        if name in values and not low <= values[name] <= high:
            problems.append(f"{name}: {values[name]:g} is outside {low:g} to {high:g}")
    return problems


def take_over(fresh: Any, executed: Any) -> bool:
    """Give the code cells of `fresh` the outputs of `executed`, in place; False, with nothing done, where any code cell
    is another one than it was.
    """
    new, old = ([cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (fresh, executed))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for a, b in zip(new, old, strict=True):
        a.outputs, a.execution_count = b.outputs, b.execution_count
    return True


def _kinds(cell: Any) -> list[str]:
    return [" ".join([output.output_type, *sorted(output.get("data", ()))]) for output in cell.outputs]


def main() -> int:
    """Build or check; the exit code is 1 where a tutorial failed or a notebook is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tutorials", nargs="*", help="numbers or names; all without")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--text", action="store_true", help="take over changed prose, execute nothing")
    args = parser.parse_args()
    import nbformat

    bad = 0
    for lesson in [lessons.find(text) for text in args.tutorials] or lessons.lessons():
        notebook, began = cells_of(lesson.source), time.monotonic()
        if args.text:
            found = nbformat.read(lesson.notebook, as_version=4)
            if take_over(notebook, found):
                nbformat.write(notebook, lesson.notebook)
            else:
                print(f"{lesson.name}: code has changed, which has to be executed", flush=True)
                bad += 1
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                lessons.execute(notebook, Path(scratch))
        except MinedgeError as error:
            print(f"{lesson.name}: FAILED, {error}", flush=True)
            bad += 1
            continue
        lessons.tidy(notebook)
        problems: list[str] = []
        if not args.check:
            nbformat.write(notebook, lesson.notebook)
        elif not lesson.notebook.is_file():
            problems = ["there is no notebook; run tutorials/build.py"]
        else:
            problems = differences(notebook, nbformat.read(lesson.notebook, as_version=4))
        for problem in problems:
            print(f"{lesson.name}.ipynb: {problem}", flush=True)
        bad += bool(problems)
        print(f"{lesson.name}: {time.monotonic() - began:.0f} s", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
