"""Builds the optional C kernels; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import runpy
import tempfile

from setuptools import find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

build_ffi = runpy.run_path(os.path.join("kernels", "build_ffi.py"))


class BuildKernels(build_ext):
    """Compiles each instruction set's files with its own flags: setuptools knows flags per extension only."""

    def build_extension(self, ext):
        # The extension is optional, so a failed compile would ship what an earlier build left behind: remove it first.
        for left in (self.get_ext_fullpath(ext.name), os.path.join(self.build_lib, self.get_ext_filename(ext.name))):
            if os.path.exists(left):
                os.remove(left)
        # A cross build names its target through the compiler's platform tag, e.g. _PYTHON_HOST_PLATFORM=linux-aarch64.
        machine = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rsplit("-", 1)[-1]
        for isa, (sources, flags) in build_ffi["isa_sources"](machine).items():
            if not self.compiles(build_ffi["PROBES"].get(isa, ""), flags):
                print(f"minedge: this compiler does not know {isa}: built without it")
                ext.define_macros.append((f"ME_WITHOUT_{isa.upper()}", "1"))
                continue
            ext.extra_objects += self.compiler.compile(
                sources,
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)

    def compiles(self, text, flags):
        """Whether the compiler takes `text` with `flags`; no text: no doubt about it."""
        if not text:
            return True
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.c")
            with open(source, "w", encoding="ascii") as f:
                f.write(text)
            try:
                self.compiler.compile([source], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True


# Folders of the source tree that an installed package carries inside itself (minedge/lessons.py finds them in both).
CARRIED = ("tutorials", "kernels")

setup(
    packages=[
        *find_namespace_packages(include=["minedge*"]),
        *(f"minedge.{name}" for name in CARRIED),
        *(f"minedge.{name}.{below}" for name in CARRIED for below in find_namespace_packages(name)),
    ],
    package_dir={f"minedge.{name}": name for name in CARRIED},
    cffi_modules=["kernels/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
