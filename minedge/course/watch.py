"""Whose code answers: notices when the library's solution does what a student's function was asked for.

It goes by what runs, not by the text: an import, importlib, sys.modules, another tier. It is seen in two ways: a name
of the student's file that is the library's function itself, and a call of the library's function below the own one
of that name, the first time it is asked. It is a remark for a reader, not a fence: a function of another name in
between hides the call. Functions that the checks put in the place of other blanks are neither.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import minedge

__all__ = ["Watch"]


class Watch:
    """files: the student's, name -> path. homes: file name -> the path of the library's source that it was cut from.

    taken   "functions" of the library that answered, as "layers.rms_norm_forward"
    """

    def __init__(self, files: Mapping[str, Path], homes: Mapping[str, str]):
        self.taken: set[str] = set()
        self._own = {str(path) for path in files.values()}
        self._homes = {name: os.path.realpath(path) for name, path in homes.items()}
        ops = os.path.join(os.path.dirname(os.path.realpath(minedge.__file__)), "ops") + os.sep
        # An op stands in several tiers, each under the same name.
        self._tiers = ops if any(path.startswith(ops) for path in self._homes.values()) else ""
        self._asked: set[str] = set()

    def imported(self, file: str, module: types.ModuleType) -> None:
        """Note names of the student's `module` that are functions of the file it was cut from."""
        home = self._homes.get(file)
        for name, value in list(vars(module).items()):
            methods = list(vars(value).values()) if inspect.isclass(value) else []
            if home is not None and any(_file_of(part) == home for part in (value, *methods)):
                self.taken.add(f"{Path(file).stem}.{name}")

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Watch what runs inside, the first time for each `name`: the cases begin with the smallest, and watching
        takes time.
        """
        if name in self._asked or not self._homes:
            yield
            return
        self._asked.add(name)
        sys.setprofile(self._entered)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _entered(self, frame: types.FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not self._is_home(code.co_filename):
            return
        caller = frame.f_back
        while caller is not None:
            if caller.f_code.co_name == code.co_name and caller.f_code.co_filename in self._own:
                self.taken.add(f"{Path(caller.f_code.co_filename).stem}.{code.co_name}")
                return
            caller = caller.f_back

    def _is_home(self, file: str) -> bool:
        file = os.path.realpath(file)
        return file in self._homes.values() or bool(self._tiers and file.startswith(self._tiers))


def _file_of(value: Any) -> str:
    """The file that a function's code stands in, "" for anything else."""
    with contextlib.suppress(Exception):  # a student's object may answer anything
        code = inspect.unwrap(value).__code__
        return os.path.realpath(code.co_filename)
    return ""
