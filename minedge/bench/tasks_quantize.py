"""Quantization: a float16 checkpoint in, int4 weights in a file out, embedding and head included."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.worker import Clock, Subject

__all__ = ["PARTS", "codes_of", "file_bytes", "imports", "quantize", "reference"]

ROWS = 64  # of one matrix, whose codes are compared


def imports(job: Mapping[str, Any]) -> None:
    """What reading, packing and writing import."""
    import safetensors.numpy  # noqa: F401

    from minedge.ops import get

    get(job["backend"])


def file_bytes(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())


def codes_of(model: Any) -> list[int]:
    """Codes and scales of the last layer's output matrix, its first rows, as bytes."""
    config = model.config
    name = config.layer_name(config.n_layer - 1, config.arch.mlp_out)
    qweight, scales = model.params[f"{name}.qweight"][:ROWS], model.params[f"{name}.scales"][:ROWS]
    return np.frombuffer(qweight.tobytes() + np.ascontiguousarray(scales).tobytes(), np.uint8).tolist()


class _Quantize(Subject):
    def __init__(self, job: Mapping[str, Any]):
        self.source, self.backend = Path(job["files"]["half"]), job["backend"]
        self.folder = Path(tempfile.mkdtemp(prefix="minedge-bench-", dir=self.source.parent))
        size = file_bytes(self.source)
        self.settings = f"{size / 1e6:.0f} MB of float16 from the page cache; {self.backend or 'default backend'}"
        self.facts = {"amount": size / 1e9, "unit": "GB/s read"}
        model = self._once()
        self.facts["result_bytes"] = model.nbytes()["total"]
        self.outputs = {"codes": codes_of(model)}

    def _once(self) -> Any:
        import minedge

        packed = minedge.quant.int4(minedge.load(self.source, backend=self.backend), embeddings=True)
        packed.save(self.folder / "int4", overwrite=True)
        return packed

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._once()

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def quantize(job: Mapping[str, Any]) -> Subject:
    """Load, pack, save."""
    return _Quantize(job)


def reference(job: Mapping[str, Any]) -> Subject:
    """The specification's codes of the same rows."""
    import minedge
    from minedge.ops import get

    model = minedge.load(job["files"]["half"], backend="numpy")
    config = model.config
    name = config.layer_name(config.n_layer - 1, config.arch.mlp_out)
    weight = model.linears[name].dense(model.params, name, model.ops)[:ROWS]
    qweight, scales = get("numpy").int4_quantize(np.ascontiguousarray(weight, np.float32), 32)
    subject = Subject()
    subject.outputs = {"codes": np.frombuffer(qweight.tobytes() + scales.tobytes(), np.uint8).tolist()}
    return subject


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    mine, theirs = np.array(outputs["codes"]), np.array(other["codes"])
    same = float((mine == theirs).mean()) if mine.shape == theirs.shape else 0.0
    against = "the NumPy specification's" if who == "minedge" else "minedge's"
    if who == "minedge":
        return same == 1.0, f"{len(mine):,} bytes of codes and scales, {same:.2%} equal to {against}"
    return same > 0.99, f"{same:.2%} of {len(mine):,} bytes of codes and scales equal to {against}"


_OURS = "minedge.bench.tasks_quantize"
PARTS = {
    "quantize": Part(
        "quantize",
        "a float16 checkpoint to a file of int4 weights (load, pack, save), every matrix",
        (
            Entry("minedge", f"{_OURS}:quantize", ("half",)),
            Entry("llama.cpp", "minedge.bench.peers_llama:quantize", ("half_gguf",), "Q4_0"),
        ),
        _check,
        f"{_OURS}:reference",
    )
}
