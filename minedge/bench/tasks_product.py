"""Int4 matrix products on their own: a chain of 4096 x 4096 matrices, too many for the caches, one token or 64.

Every competitor has the same codes and scales in its own layout, brought there outside the time (a weight is loaded
once and multiplied many times), and multiplies by rounded activations (int8, one scale
per 32). Its first product is compared with the float64 product of the weights as they read. Rounding x ~ N(0, 1) in
groups of 32 to steps of max|x| / 127 errs by max|x| / 127 / sqrt(12) of its deviation, and the largest of 32 normal
numbers is about 2.1: 0.5% of the product's deviation. `RTOL` is twice that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.worker import Clock, Subject

__all__ = ["PARTS", "RTOL", "WIDTH", "exact", "facts_of", "imports", "inputs", "matrix", "product", "weights"]

WIDTH, MATRICES = 4096, 28  # 28 x 9.4 MB: nothing of a round is left in the cache when the next begins
RTOL = 0.01


def imports(job: Mapping[str, Any]) -> None:
    """The ops of the backend."""
    from minedge.ops import get

    get(job["backend"])


def weights(group: int, width: int = WIDTH) -> tuple[Any, Any]:
    """Codes 0..15 (out, in), and scales float16 (out, in / group) of random sign, so that x and W x have one variance.

    The first matrix; `matrix` i of the chain has its rows turned by i.
    """
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (width, width), np.uint8)
    sign = rng.integers(0, 2, (width, width // group), np.int8) * 2 - 1
    return codes, (sign * np.float32((21.5 * width) ** -0.5)).astype(np.float16)


def matrix(first: Any, i: int) -> Any:
    """Codes or scales of matrix i: none equals another, or a library could keep one in the place of all."""
    return np.roll(first, i, axis=0)


def inputs(tokens: int, width: int = WIDTH) -> Any:
    """x (tokens, width), float32."""
    return np.random.default_rng(4).standard_normal((tokens, width), np.float32)


def exact(codes: Any, scales: Any, x: Any) -> Any:
    """The product in float64."""
    group = codes.shape[1] // scales.shape[1]
    dense = (codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), group, axis=1)
    return x.astype(np.float64) @ dense.T


def error_of(found: Any, codes: Any, scales: Any, x: Any) -> float:
    """Root of the mean squared error over the product's deviation, of the first 64 outputs."""
    right = exact(codes[:64], scales[:64], x)
    return float(np.sqrt(((found[:, :64] - right) ** 2).mean()) / right.std())


def facts_of(tokens: int, group: int, width: int, matrices: int) -> dict[str, Any]:
    """Bytes and multiply-adds of the chain; one token's rate in bytes, many tokens' in operations."""
    n = float(matrices * width * width)
    size = n * (0.5 + 2 / group)
    rate = {"amount": size / 1e9, "unit": "GB/s"} if tokens == 1 else {"amount": 2e-9 * n * tokens, "unit": "GFLOP/s"}
    return {**rate, "bytes": size, "macs": n * tokens, "arithmetic": "int8"}


class _Product(Subject):
    def __init__(self, job: Mapping[str, Any]):
        from minedge.ops import get

        sizes = job["sizes"]
        width, matrices = sizes.get("width", WIDTH), sizes.get("matrices", MATRICES)
        self.tokens, self.group, self.ops = sizes["tokens"], sizes["group"], get(job["backend"])
        codes, scales = weights(self.group, width)
        blocks = codes.reshape(width, -1, 32)
        packed = (blocks[..., :16] | (blocks[..., 16:] << 4)).reshape(width, -1)
        self.chain = [self._tiles(matrix(packed, i), matrix(scales, i)) for i in range(matrices)]
        self.width = width
        self.x = inputs(self.tokens, width)
        self.settings = f"int4 group {self.group} in tiles of 16 rows, int8 activations; {self.ops.spec}"
        self.facts = facts_of(self.tokens, self.group, width, matrices)
        first = self.ops.int4_tile_linear(self.x, *self.chain[0], width)
        self.outputs = {"error": error_of(first, codes, scales, self.x)}

    def _tiles(self, qweight: Any, scales: Any) -> tuple[Any, Any]:
        """On huge pages where the engine would put them there."""
        from minedge.model.tiles import tiles

        return tiles([(qweight, scales)])[0] if self.ops.name == "c" else self.ops.int4_tile(qweight, scales)

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                x = self.x
                for codes, tile_scales in self.chain:
                    x = self.ops.int4_tile_linear(x, codes, tile_scales, self.width)


def product(job: Mapping[str, Any]) -> Subject:
    """Through the ops, a call per matrix."""
    return _Product(job)


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    return outputs["error"] <= RTOL, f"{outputs['error']:.2%} from the float64 product"


_OURS, _ORT = "minedge.bench.tasks_product:product", "minedge.bench.peers_onnxruntime:product"
_ENTRIES = (
    Entry("minedge", _OURS, (), "group 32", {"group": 32}),
    Entry("minedge", _OURS, (), "group 128", {"group": 128}, alone=True),
    Entry("onnxruntime", _ORT, (), "block 32", {"group": 32}),
    Entry("onnxruntime", _ORT, (), "block 128", {"group": 128}),
    Entry("llama.cpp", "minedge.bench.peers_ggml:product", (), "ggml Q4_0", {"group": 32}),
)
PARTS = {
    "matvec": Part(
        "matvec",
        f"int4 matrix ({WIDTH} x {WIDTH}) times one token, {MATRICES} in turn, so that weights come from memory; "
        "everyone's weights reordered beforehand",
        _ENTRIES,
        _check,
        sizes={"tokens": 1},
        shaped=False,
    ),
    "matmul": Part("matmul", "the same matrices times 64 tokens", _ENTRIES, _check, sizes={"tokens": 64}, shaped=False),
}
