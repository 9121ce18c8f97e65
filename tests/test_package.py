"""The package as a whole: what importing it loads, that its names exist, and that imports go one way."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import minedge

ROOT = Path(__file__).parent.parent
HEAVY = ("numba", "tokenizers", "safetensors", "rich", "llvmlite", "huggingface_hub")


def loaded_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running `code`."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(out.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import minedge", "import minedge.cli; minedge.cli.main(['--version'])"])
def test_importing_loads_nothing_heavy(code):
    assert not loaded_after(code) & set(HEAVY)


def test_computing_on_numpy_needs_no_numba():
    code = (
        "import minedge, numpy as np\n"
        "c = minedge.Config(vocab_size=11, n_layer=1, n_embd=8, n_head=2, n_inner=16, context_length=8)\n"
        "minedge.init(c, backend='numpy').loss_and_grads(np.zeros((1, 5), int))"
    )
    assert not loaded_after(code) & set(HEAVY)


def test_public_names_exist():
    for name in minedge.__all__:
        assert getattr(minedge, name) is not None
    assert set(minedge.__all__) <= set(dir(minedge))


def test_every_module_says_what_it_exports():
    for info in pkgutil.walk_packages(minedge.__path__, "minedge."):
        if info.name == "minedge._kernels":
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            known = hasattr(module, name) or importlib.util.find_spec(f"{info.name}.{name}")  # or a submodule
            assert known, f"{info.name}.__all__ names {name}, which is not there"


def test_imports_go_one_way():
    """The contracts stand in pyproject.toml."""
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(tool), "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
