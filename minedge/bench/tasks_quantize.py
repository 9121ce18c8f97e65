"""Quantization: a float16 checkpoint in, int4 weights in a file out, embedding and head included.

What minedge's users type is measured: each time a process of `minedge quantize`, its start and imports included, and
the peak of its whole memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench.jobs import config_of
from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.worker import Clock, Subject

__all__ = ["PARTS", "codes_of", "file_bytes", "imports", "quantize", "reference"]

ROWS = 64  # of one matrix, whose codes are compared; of all others the first and the last


def imports(job: Mapping[str, Any]) -> None:
    """What the command imports; not counted as its work's memory."""
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
        self.settings = f"minedge quantize, {size / 1e6:.0f} MB of float16 in the page cache; "
        self.settings += self.backend or "default backend"
        self._once()
        out = self.folder / "int4"
        self.facts = {
            "amount": size / 1e9,
            "unit": "GB/s read",
            "result_bytes": (out / "model.safetensors").stat().st_size,
        }
        with _opened(out, config_of(job)) as tensors:
            self.outputs = _compared(config_of(job), lambda name, rows: _codes(tensors, name, rows))

    def _once(self) -> None:
        command = [sys.executable, "-m", "minedge", "quantize", "--model", str(self.source), "--embeddings"]
        command += ["--out", str(self.folder / "int4"), "--overwrite"]
        command += ["--backend", self.backend] if self.backend else []
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._once()

    def peak_bytes(self) -> int:
        """Of the largest of the commands so far, or of this process where the system does not say."""
        with contextlib.suppress(ImportError):
            import resource

            return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return super().peak_bytes()

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def quantize(job: Mapping[str, Any]) -> Subject:
    """Load, pack, save."""
    return _Quantize(job)


@contextlib.contextmanager
def _opened(folder: str | Path, config: Any) -> Iterator[Mapping[str, Any]]:
    from minedge.io.hf_weights import open_weights

    with contextlib.ExitStack() as stack:
        yield open_weights(Path(folder), config, stack)


def _array(tensors: Mapping[str, Any], name: str) -> Any:
    return tensors[name].file.read([tensors[name].name])[tensors[name].name]


def _codes(tensors: Mapping[str, Any], name: str, rows: Any) -> bytes:
    """Codes and scales of some rows of a packed matrix."""
    parts = (_array(tensors, f"{name}.{key}")[rows] for key in ("qweight", "scales"))
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def _compared(config: Any, codes: Any) -> dict[str, Any]:
    """codes(name, rows) of the last layer's output matrix, its first rows, as numbers; and one digest over the first
    and the last row of every matrix. In a file GPT-2's matrices lie as in memory once they are packed.
    """
    from minedge.model.shapes import linear_shapes

    last, ends = config.layer_name(config.n_layer - 1, config.arch.mlp_out), hashlib.sha256()
    for name, (out, _) in sorted(linear_shapes(config).items()):
        ends.update(codes(name, [0, out - 1]))
    return {"codes": np.frombuffer(codes(last, slice(ROWS)), np.uint8).tolist(), "ends": ends.hexdigest()}


def reference(job: Mapping[str, Any]) -> Subject:
    """The specification's codes of the same rows, from the same file."""
    from minedge.io.hf import lies_transposed
    from minedge.ops import get

    config, subject = config_of(job), Subject()
    with _opened(job["files"]["half"], config) as tensors:

        def codes(name: str, rows: Any) -> bytes:
            weight = _array(tensors, f"{name}.weight")
            if lies_transposed(config, f"{name}.weight", weight.shape[::-1]):
                weight = weight.T
            made = get("numpy").int4_quantize(np.ascontiguousarray(weight[rows], np.float32), 32)
            return b"".join(part.tobytes() for part in made)

        subject.outputs = _compared(config, codes)
    return subject


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    mine, theirs = np.array(outputs["codes"]), np.array(other["codes"])
    same = float((mine == theirs).mean()) if mine.shape == theirs.shape else 0.0
    against = "the NumPy specification's" if who == "minedge" else "minedge's"
    if who == "minedge":
        ends = outputs["ends"] == other["ends"]
        every = "equal" if ends else "NOT equal"
        text = f"{len(mine):,} bytes of codes and scales, {same:.2%} equal to {against}; first and last rows of every "
        return same == 1.0 and ends, f"{text}matrix {every}"
    return same > 0.99, f"{same:.2%} of {len(mine):,} bytes of codes and scales equal to {against}"


_OURS = "minedge.bench.tasks_quantize"
PARTS = {
    "quantize": Part(
        "quantize",
        "a float16 checkpoint to a file of int4 weights, every matrix; of minedge the whole command",
        (
            Entry("minedge", f"{_OURS}:quantize", ("half",)),
            Entry("llama.cpp", "minedge.bench.peers_llama:quantize", ("half_gguf",), "Q4_0"),
        ),
        _check,
        f"{_OURS}:reference",
    )
}
