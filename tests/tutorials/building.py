"""tutorials/build.py as a module, and notebooks made by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat

ROOT = Path(__file__).parents[2]


def load_build() -> ModuleType:
    """build.py is a script beside the package: import it by its path."""
    spec = importlib.util.spec_from_file_location("tutorials_build", ROOT / "tutorials" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(*sources: str) -> Any:
    """A notebook of code cells; a source that begins with '# ' and a capital is a heading."""
    cells = [nbformat.v4.new_markdown_cell(s) if s.startswith("# ") else nbformat.v4.new_code_cell(s) for s in sources]
    return nbformat.v4.new_notebook(cells=cells)
