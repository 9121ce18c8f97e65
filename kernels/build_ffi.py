"""Declares the extension `minedge._kernels` to cffi (API mode); minedge_kernels.h is the only source of its prototypes.

`isa_sources` is shared with setup.py, which compiles each folder with its own flags.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from cffi import FFI

__all__ = ["COMPILE_ARGS", "PROBES", "ffibuilder", "isa_sources"]

HERE = Path(__file__).resolve().parent
# No -march=native: one wheel for all. No contraction: a fused multiply-add is written out where it is meant (vec.h).
COMPILE_ARGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-pthread", "-fvisibility=hidden", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# The compiler's own vectors stay at 256 bits (some would widen them, and processors then lower their clock for loops
# that win nothing by it): 512 bits are written out where they were measured.
AVX512 = [*(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")), "-mprefer-vector-width=256"]
ISA_FLAGS = {"avx2": AVX2, "avx512": [*AVX2, *AVX512], "neon": []}
X86, ARM = ["avx2", "avx512"], ["neon"]
ISAS_OF_MACHINE = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}
# Compilers older than the package's other needs (gcc 7) do not know these: setup.py tries the file, and goes without.
PROBES = {
    "avx512": "#include <immintrin.h>\n__m512i f(__m512i a, __m512i b) { return _mm512_dpbusd_epi32(a, a, b); }\n",
}


def isa_sources(machine: str) -> dict[str, tuple[list[str], list[str]]]:
    """Instruction set -> (C files relative to the project, flags), for those beyond scalar that `machine` may have."""
    return {isa: (_files(isa), ISA_FLAGS[isa]) for isa in ISAS_OF_MACHINE.get(machine, [])}


def _files(folder: str) -> list[str]:
    return sorted(f"kernels/{path.relative_to(HERE).as_posix()}" for path in (HERE / folder).glob("*.c"))


def _declarations() -> str:
    """The header without its preprocessor lines, which cffi does not read."""
    text = (HERE / "minedge_kernels.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "minedge._kernels",
    '#include "minedge_kernels.h"',
    sources=_files(".") + _files("scalar"),
    include_dirs=["kernels"],
    extra_compile_args=COMPILE_ARGS,
    libraries=["m"] if platform.system() != "Windows" else [],
    optional=True,  # no compiler: the package installs without it and says so when it runs
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
