"""Where the tutorials lie, and how a notebook is executed: shared by `minedge tutorial` and tutorials/build.py."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedge.errors import MinedgeError, UsageError

__all__ = ["Lesson", "LessonFailed", "execute", "find", "folder", "kernel_sources", "lessons", "need", "tidy"]

# The tutorials' matrices are small. BLAS gains nothing from a second thread there, and where other programs run its
# threads wait for one another in loops: minutes in place of half a minute.
ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CELL_SECONDS = 600  # a cell that takes longer hangs
_NAME = re.compile(r"(\d\d)_(\w+)\.py")
_TITLE = re.compile(r"^# # (?:\d+\.? *)?(.+)$", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class LessonFailed(MinedgeError):  # noqa: N818 - the name says what happened
    """A cell of a notebook raised, hung or killed its kernel; the message names the cell."""

    exit_code = 1


@dataclass(frozen=True)
class Lesson:
    """One tutorial. `source` is the percent-format script, `notebook` its executed copy, generated from it."""

    number: int
    name: str
    title: str
    source: Path

    @property
    def notebook(self) -> Path:
        return self.source.with_suffix(".ipynb")


def _place(name: str, marker: str) -> Path:
    """A folder of the source tree that an installed package carries inside itself. Beside the package it comes first:
    whoever has the source tree may be editing it.
    """
    package = Path(__file__).resolve().parent
    for place in (package.parent / name, package / name):
        if (place / marker).is_file():
            return place
    raise UsageError(
        f"{name}: expected the folder {package / name}, found none; this copy of minedge was installed without it: "
        "install it again from its source folder or wheel"
    )


def folder() -> Path:
    """The folder that holds NN_topic.py, NN_topic.ipynb and assignments/. UsageError where there is none."""
    return _place("tutorials", "build.py")


def kernel_sources() -> Path:
    """The folder of the C kernels' sources (kernels/ of the source tree). UsageError where there is none."""
    return _place("kernels", "minedge_kernels.h")


def lessons() -> list[Lesson]:
    """Every tutorial, by number."""
    found = []
    for path in sorted(folder().glob("[0-9][0-9]_*.py")):
        name = _NAME.fullmatch(path.name)
        title = _TITLE.search(path.read_text(encoding="utf-8"))
        if name and title:
            found.append(Lesson(int(name[1]), path.stem, title[1].strip(), path))
    return found


def find(text: str) -> Lesson:
    """The tutorial of a number ("3", "03") or name ("mezo", "03_mezo"). UsageError with what there is."""
    known = lessons()
    for lesson in known:
        if text in (str(lesson.number), f"{lesson.number:02}", lesson.name, lesson.name[3:]):
            return lesson
    there = ", ".join(f"{lesson.number} ({lesson.name[3:]})" for lesson in known)
    raise UsageError(f"tutorial: expected one of {there}, got {text!r}")


def need(*packages: str) -> None:
    """UsageError that says what to install where a package is not there."""
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this needs {', '.join(missing)}, not installed here; install the notebook tools: "
            "pip install 'minedge[notebook]' (from the source folder: pip install '.[notebook]')"
        )


def execute(
    notebook: Any, where: Path, env: Mapping[str, str] | None = None, on_cell: Callable[[int], None] | None = None
) -> None:
    """Run every cell of an nbformat notebook in place, in a fresh kernel of this Python with `where` as its folder.

    Outputs and numbers of an earlier execution go first, so that all there are afterwards are of this one.
    on_cell hears the number of code cells done. Raises `LessonFailed` at the first cell that raises (its output stays
    in the notebook), `UsageError` where nbclient or a kernel is not installed.
    """
    need("nbclient", "ipykernel")
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    home = str(Path(__file__).resolve().parents[1])  # so that the kernel imports this minedge, installed or not
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    at = [0]

    def started(cell: Any, cell_index: int) -> None:
        at[0] = cell_index

    def done(cell: Any, cell_index: int, execute_reply: Any) -> None:
        if on_cell is not None and cell in code:
            on_cell(code.index(cell) + 1)

    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(where)}}, on_cell_start=started, on_cell_executed=done,
    )  # fmt: skip
    try:
        client.execute(env={**ONE_BLAS_THREAD, **os.environ, "PYTHONPATH": path, **(env or {})})
    except NoSuchKernel:
        raise UsageError("no Jupyter kernel 'python3' for this Python; pip install ipykernel") from None
    except CellExecutionError as error:
        said = " ".join(_COLOURS.sub("", f"{error.ename}: {error.evalue}").split())
        raise LessonFailed(f"{_where(notebook, at[0])}: {said}") from None
    except CellTimeoutError:
        raise LessonFailed(f"{_where(notebook, at[0])}: no end within {CELL_SECONDS} s") from None
    except (DeadKernelError, AssertionError):  # nbclient stumbles over a kernel that was ended from outside
        raise LessonFailed(f"{_where(notebook, at[0])}: the kernel died (out of memory?)") from None
    except RuntimeError as error:  # of a kernel that does not start
        raise LessonFailed(f"the kernel did not start: {error}") from None


def _where(notebook: Any, index: int) -> str:
    first = notebook.cells[index].source.strip().splitlines() or [""]
    return f"cell {index + 1} of {len(notebook.cells)} ({first[0][:60]!r})"


def tidy(notebook: Any) -> None:
    """Take out of an executed notebook what differs from run to run without saying anything, in place."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02}"
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        merged: list[Any] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue  # what a library warns of on one machine, with its paths
            if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        cell.outputs = merged
