"""Plant a bug: one text in one module of the package is replaced, the module is run again under the changed source,
and the changed functions stand in for the real ones. Nothing outside the returned object notices.
"""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any, NamedTuple

__all__ = ["Mutant", "MutatedOps", "mutated_module", "mutated_ops"]


class Mutant(NamedTuple):
    """`old` -> `new` in the source of `module`; `check` names the property (op_checks.CHECKS) that must notice."""

    name: str
    module: str
    old: str
    new: str
    check: str


class MutatedOps:
    """The functions of a mutated module, and the real ones for everything else."""

    def __init__(self, ops: Any, module: types.ModuleType):
        self._ops, self._module = ops, module

    def __getattr__(self, op: str) -> Any:
        return getattr(self._module, op) if op in self._module.__all__ else getattr(self._ops, op)


def mutated_module(name: str, old: str, new: str) -> types.ModuleType:
    """Module `name` with the one place that reads `old` reading `new`. AssertionError where there is not exactly one
    such place.
    """
    source = inspect.getsource(importlib.import_module(name))
    found = source.count(old)
    assert found == 1, f"{name}: expected {old!r} once, found it {found} times; adapt the mutant to the changed source"
    module = types.ModuleType(name)
    exec(compile(source.replace(old, new), f"<{name}, mutated>", "exec"), module.__dict__)
    return module


def mutated_ops(mutant: Mutant, ops: Any) -> MutatedOps:
    return MutatedOps(ops, mutated_module(f"minedge.ops.numpy_ops.{mutant.module}", mutant.old, mutant.new))
