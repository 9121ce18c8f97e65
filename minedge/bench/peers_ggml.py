"""ggml's own matrix product, llama.cpp's engine room, on the matrices of tasks_product.py in Q4_0.

The libraries come with the llama-cpp-python package. Weights go to the CPU backend's repacking buffer where this
processor has one (rows interleaved for its instructions), as llama.cpp does when it loads a model; the chain is one
graph, so that nothing of Python stands between two products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench import tasks_product
from minedge.bench.worker import Clock, Subject

__all__ = ["imports", "product"]

_F32, _Q4_0, _WEIGHTS = 0, 2, 1  # ggml_type, ggml_backend_buffer_usage


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Library:
    """ggml's functions as attributes; every one returns and takes pointers unless told otherwise."""

    def __init__(self) -> None:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        self._files = [ctypes.CDLL(str(folder / f"lib{name}.so")) for name in ("ggml-base", "ggml-cpu", "ggml")]

    def call(self, name: str, *values: Any) -> Any:
        """Call `name`; int arguments are 64 bits wide unless given as a ctypes value."""
        function = next(getattr(file, name) for file in self._files if hasattr(file, name))
        function.restype = ctypes.c_void_p
        function.argtypes = None
        return function(*[ctypes.c_void_p(v) if isinstance(v, int) else v for v in values])


def imports(job: Mapping[str, Any]) -> None:
    """The libraries."""
    _Library()


def _blocks(codes: Any, scales: Any) -> bytes:
    """Q4_0: per 32 weights the float16 scale, then 16 bytes, code j low and code j + 16 high."""
    parts = codes.reshape(len(codes), -1, 32)
    packed = parts[..., :16] | (parts[..., 16:] << 4)
    raw = np.ascontiguousarray(scales, "<f2").view(np.uint8).reshape(*scales.shape, 2)
    return np.concatenate([raw, packed], axis=-1).tobytes()


class _Product(Subject):
    def __init__(self, job: Mapping[str, Any]):
        sizes = job["sizes"]
        width, matrices = sizes.get("width", tasks_product.WIDTH), sizes.get("matrices", tasks_product.MATRICES)
        tokens = sizes["tokens"]
        codes, scales = tasks_product.weights(32, width)
        x = tasks_product.inputs(tokens, width)
        self.lib = lib = _Library()
        self.backend = lib.call("ggml_backend_cpu_init")
        lib.call("ggml_backend_cpu_set_n_threads", self.backend, ctypes.c_int(job["threads"]))
        plain = lib.call("ggml_backend_cpu_buffer_type")
        special, name = self._repacking(plain)
        n = ctypes.c_int64
        weights = self._context(matrices)
        matrix = [
            lib.call("ggml_new_tensor_2d", weights, ctypes.c_int(_Q4_0), n(width), n(width)) for _ in range(matrices)
        ]
        held = lib.call("ggml_backend_alloc_ctx_tensors_from_buft", weights, special)
        if not held:
            raise RuntimeError("ggml cannot allocate the matrices")
        lib.call("ggml_backend_buffer_set_usage", held, ctypes.c_int(_WEIGHTS))
        for i, tensor in enumerate(matrix):
            self._set(tensor, _blocks(tasks_product.matrix(codes, i), tasks_product.matrix(scales, i)))
        work = self._context(4 * matrices + 64)
        start = lib.call("ggml_new_tensor_2d", work, ctypes.c_int(_F32), n(width), n(tokens))
        chain = [start]
        for tensor in matrix:
            chain.append(lib.call("ggml_mul_mat", work, tensor, chain[-1]))
        self.graph = lib.call("ggml_new_graph", work)
        lib.call("ggml_build_forward_expand", self.graph, chain[-1])
        if not lib.call("ggml_backend_alloc_ctx_tensors_from_buft", work, plain):
            raise RuntimeError("ggml cannot allocate the vectors")
        self._set(start, x.tobytes())
        self._compute()
        first = ctypes.create_string_buffer(x.nbytes)
        lib.call("ggml_backend_tensor_get", chain[1], first, ctypes.c_size_t(0), ctypes.c_size_t(x.nbytes))
        found = np.frombuffer(first.raw, np.float32).reshape(tokens, width)
        self.settings = f"Q4_0 in {name}, one graph"
        self.facts = tasks_product.facts_of(tokens, 32, width, matrices)
        self.outputs = {"error": tasks_product.error_of(found, codes, scales, x)}

    def _context(self, tensors: int) -> Any:
        init = next(getattr(file, "ggml_init") for file in self.lib._files if hasattr(file, "ggml_init"))  # noqa: B009
        init.restype, init.argtypes = ctypes.c_void_p, [_InitParams]
        return init(_InitParams(tensors * 1024 + (1 << 20), None, True))

    def _repacking(self, plain: int) -> tuple[int, str]:
        """The first of the CPU's extra buffer types that repacks, and its name; the plain one where there is none."""
        lib = self.lib
        registry = lib.call("ggml_backend_cpu_reg")
        device = lib.call("ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0))
        found = lib.call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        if not found:
            return plain, "plain memory"
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
        i = 0
        while listed and listed[i]:
            name = ctypes.string_at(lib.call("ggml_backend_buft_name", listed[i])).decode()
            if "REPACK" in name.upper() or "AARCH64" in name.upper():
                return listed[i], f"its repacking buffer ({name})"
            i += 1
        return plain, "plain memory"

    def _set(self, tensor: int, data: bytes) -> None:
        size = ctypes.c_size_t(len(data))
        self.lib.call("ggml_backend_tensor_set", tensor, ctypes.c_char_p(data), ctypes.c_size_t(0), size)

    def _compute(self) -> None:
        if (self.lib.call("ggml_backend_graph_compute", self.backend, self.graph) or 0) & 0xFFFFFFFF:
            raise RuntimeError("ggml_backend_graph_compute failed")

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._compute()


def product(job: Mapping[str, Any]) -> Subject:
    """The chain as one graph."""
    return _Product(job)
