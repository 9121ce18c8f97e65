"""minedge tutorial: list the tutorials, open one in JupyterLab or as a page, run one."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from minedge import lessons
from minedge.cli.console import Console
from minedge.cli.parser import integer
from minedge.cli.text import duration
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """List the tutorials; open a copy of one in JupyterLab, or as a web page with --html; run one and keep
the executed notebook. A copy is yours to change: the packaged one stays as it is. Opening and running need the
notebook tools: pip install 'minedge[notebook]'."""
EXAMPLES = (
    "minedge tutorial list",
    "minedge tutorial open 3",
    "minedge tutorial open mezo --html --out mezo.html",
    "minedge tutorial run 3 --out mine.ipynb",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="list|open|run", choices=("list", "open", "run"), help="what to do")
    parser.add_argument("tutorial", nargs="?", metavar="N", help="number or name of the tutorial, for open and run")
    parser.add_argument("--out", "-o", metavar="FILE", help="the copy to write (default: its name, in this folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    parser.add_argument("--html", action="store_true", help="open: a web page in place of a notebook")
    parser.add_argument("--seed", type=integer(0), metavar="N", help="run: another seed than 0")


def run(args: argparse.Namespace, console: Console) -> int:
    allowed = {"open": {"out", "overwrite", "html"}, "run": {"out", "overwrite", "seed"}}
    for option in ("out", "overwrite", "html", "seed"):
        value = getattr(args, option)
        if value is not None and value is not False and option not in allowed.get(args.action, set()):
            raise UsageError(f"--{option}: {args.action} has no such option; see minedge tutorial --help")
    if args.action == "list":
        if args.tutorial is not None:
            raise UsageError(f"list: expected nothing more, got {args.tutorial}")
        return _list(console)
    if args.tutorial is None:
        raise UsageError(f"expected a tutorial, as in minedge tutorial {args.action} 3; see minedge tutorial list")
    lesson = lessons.find(args.tutorial)
    suffix = ".html" if args.html and args.action == "open" else ".ipynb"
    out = Path(args.out).expanduser() if args.out else Path(lesson.name + suffix)
    if out.is_dir():
        out = out / (lesson.name + suffix)
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out: the folder {str(out.parent)!r} does not exist; make it first")
    if out.resolve() == lesson.notebook.resolve():
        raise UsageError("--out: that is the tutorial itself; choose another file or folder")
    return (_open if args.action == "open" else _run)(args, console, lesson, out)


def _list(console: Console) -> int:
    known = lessons.lessons()
    console.table(["", "tutorial", "about"], [[x.number, x.name, x.title] for x in known], left=3)
    console.note("minedge tutorial open N, or minedge tutorial run N; the sources are in " + str(lessons.folder()))
    console.result([{"number": x.number, "name": x.name, "title": x.title, "path": str(x.notebook)} for x in known])
    return 0


def _refuse(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UsageError(f"--out: {str(out)!r} exists already; choose another name, or replace it with --overwrite")


def _open(args: argparse.Namespace, console: Console, lesson: lessons.Lesson, out: Path) -> int:
    if args.html:
        _refuse(out, args.overwrite)
        lessons.need("nbconvert")
        from nbconvert import HTMLExporter

        out.write_text(HTMLExporter().from_filename(str(lesson.notebook))[0], encoding="utf-8")
        console.out(f"the page is {out}; open it in a web browser (which fetches MathJax to draw the formulas)")
        console.result({"tutorial": lesson.name, "page": str(out)})
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        raise UsageError(
            "JupyterLab is not installed here: pip install 'minedge[notebook]' (from the source folder: pip install "
            f"'.[notebook]'). The notebook is {lesson.notebook}; as a web page: minedge tutorial open "
            f"{lesson.number} --html"
        )
    if out.exists() and not args.overwrite:
        console.note(f"{out} exists already and opens as you left it (--overwrite brings back the original)")
    else:
        import nbformat
        from nbformat.sign import NotebookNotary

        notebook: Any = nbformat.read(lesson.notebook, as_version=4)
        nbformat.write(notebook, out)
        NotebookNotary().sign(notebook)  # ours, so that JupyterLab shows its plots at once
    console.result({"tutorial": lesson.name, "notebook": str(out)})
    console.note(f"opening {out} in JupyterLab (Ctrl-C here ends it)")
    home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return subprocess.call(
        [sys.executable, "-m", "jupyterlab", str(out)],
        env={**lessons.ONE_BLAS_THREAD, **os.environ, "PYTHONPATH": path},
    )


def _run(args: argparse.Namespace, console: Console, lesson: lessons.Lesson, out: Path) -> int:
    _refuse(out, args.overwrite)
    lessons.need("nbformat", "nbclient", "ipykernel", "matplotlib")
    import nbformat

    notebook: Any = nbformat.read(lesson.notebook, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    env = {} if args.seed is None else {"MINEDGE_TUTORIAL_SEED": str(args.seed)}
    if args.backend:
        env["MINEDGE_BACKEND"] = args.backend
    console.note(f"tutorial {lesson.number}: {lesson.title} ({cells} cells)")
    began = time.monotonic()
    try:
        with console.progress(cells, every=1) as bar:
            lessons.execute(notebook, out.absolute().parent, env, lambda done: bar.update(done, "cells"))
    except lessons.LessonFailed as error:
        nbformat.write(notebook, out)
        raise lessons.LessonFailed(f"tutorial {lesson.number}, {error}; the copy up to there is {out}") from None
    nbformat.write(notebook, out)
    seconds = time.monotonic() - began
    console.out(f"{out}: executed in {duration(seconds)}, every figure inside its stated range")
    console.result({"tutorial": lesson.name, "notebook": str(out), "seconds": seconds})
    return 0
