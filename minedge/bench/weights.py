"""Random weights of a shape on disk, made once and read by every competitor, so that all compute the same numbers.

dense   Hugging Face folder, float32: training, LoRA, MeZO
half    the same in float16: what quantization starts from
half_gguf   the same as a GGUF file
int4    minedge's folder with every matrix in int4, embedding and head included
q4_0    the int4 weights as a GGUF file: the same codes and scales
f16     the int4 weights as a GGUF file in float16, so that its texts are those of the others
flat    the int4 weights as a Hugging Face folder in float16, likewise
lora    a PEFT adapter of rank 8 on queries and values of `dense`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench.jobs import Job, config_of
from minedge.bench.measure import ask
from minedge.bench.shapes import Shape
from minedge.bench.worker import Subject
from minedge.config import Config
from minedge.errors import MinedgeError, UsageError

__all__ = ["KINDS", "RANK", "Store", "imports", "lora_target", "make"]

SEED, RANK = 0, 8
GGUF = ("q4_0", "f16", "half_gguf")
CODE_STD = 4.64  # standard deviation of code - 8 for uniform codes 0..15: sqrt(21.5)


class Store:
    """Weights of one shape below `folder`, made when they are first asked for."""

    def __init__(self, shape: Shape, folder: Path, say: Callable[[str], None], limit: float):
        self.shape, self.folder, self.say, self.limit = shape, folder, say, limit

    def get(self, kind: str) -> str:
        """The path of one kind. Raises `Failed` or `MinedgeError` where it cannot be made."""
        path = self.folder / f"{self.shape.name}-{kind}{'.gguf' if kind in GGUF else ''}"
        if not path.exists():
            base = {"q4_0": "int4", "f16": "int4", "flat": "int4", "lora": "dense", "half_gguf": "half"}.get(kind, "")
            files = {base: self.get(base)} if base else {}
            self.say(f"making random weights: {self.shape.name}, {kind}")
            need = bytes_needed(self.shape.config, kind)
            free = shutil.disk_usage(self.folder).free
            if free < 1.1 * need:
                raise MinedgeError(
                    f"weights: {need / 1e9:.1f} GB needed in {self.folder}, {free / 1e9:.1f} free; "
                    "choose another folder with --weights"
                )
            sizes = {"kind": kind, "path": str(path)}
            ask(
                Job("minedge", kind, "minedge.bench.weights:make", threads=_cpus(), backend="numpy",
                    config=self.shape.config.to_dict(), sizes=sizes, files=files),
                self.limit,
            )  # fmt: skip
        return str(path)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bytes_needed(config: Config, kind: str) -> int:
    """About as many as the files of that kind take."""
    from minedge.model.shapes import linear_shapes

    weights = sum(out * width for out, width in linear_shapes(config).values())
    return int(weights * {"dense": 4, "half": 2, "f16": 2, "flat": 2, "half_gguf": 2, "lora": 0.1}.get(kind, 0.57)) + (
        1 << 20
    )


def imports(job: Mapping[str, Any]) -> None:
    """Nothing that would be counted."""


def make(job: Mapping[str, Any]) -> Subject:
    """The maker's process: writes one kind."""
    KINDS[job["sizes"]["kind"]](config_of(job), Path(job["sizes"]["path"]), job["files"])
    return Subject()


def _dense(config: Config, path: Path, files: Mapping[str, str], dtype: str = "float32") -> None:
    import minedge

    minedge.init(config, seed=SEED, backend="numpy").save(path, dtype=dtype)


def _half(config: Config, path: Path, files: Mapping[str, str]) -> None:
    _dense(config, path, files, "float16")


def _int4(config: Config, path: Path, files: Mapping[str, str]) -> None:
    """Random codes and scales instead of rounded random weights: the same distribution of codes' products, and no
    float32 copy. A scale's sign is random too, which takes out the codes' mean of -0.5.
    """
    from minedge.api import Model
    from minedge.compress.int4 import Int4
    from minedge.model.linears import Dense
    from minedge.model.shapes import linear_shapes, param_shapes

    wide = [name for name, (_, width) in linear_shapes(config).items() if width % 32]
    if wide:
        raise UsageError(f"--shape: {wide[0]} has a width that 32 does not divide; it has no int4 form")
    linears: Any = {name: Int4(32) for name in linear_shapes(config)}
    rng = np.random.default_rng(SEED)
    a, params = config.arch, {}
    for name, (shape, dtype) in param_shapes(config, linears).items():
        if dtype == "uint8":
            params[name] = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        elif dtype == "float16":
            writes = name.removesuffix(".scales").endswith((a.attn_out, a.mlp_out))
            std = 0.02 / (2 * config.n_layer) ** 0.5 if writes else 0.02
            sign = rng.integers(0, 2, shape, np.int8) * 2 - 1
            params[name] = (sign * np.float32(std / CODE_STD)).astype(np.float16)
        elif name.endswith(".bias"):
            params[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            params[name] = np.ones(shape, np.float32)
        else:
            params[name] = rng.normal(0, 0.02, shape).astype(np.float32)
    empty = Model(config, {}, {name: Dense() for name in linears}, backend="numpy", name="random")
    replace(empty.with_params(params, linears, frozenset())).save(path)


def _flat(config: Config, path: Path, files: Mapping[str, str]) -> None:
    import minedge
    from minedge.model.linears import Dense

    model = minedge.load(files["int4"])
    params, linears = dict(model.params), dict(model.linears)
    for name, kind in model.linears.items():
        weight = kind.dense(params, name, model.ops)
        for key in kind.shapes(name, *weight.shape):
            del params[key]
        params[f"{name}.weight"], linears[name] = weight, Dense()
    model.with_params(params, linears).save(path, dtype="float16")


def _gguf(base: str, dtype: str) -> Callable[[Config, Path, Mapping[str, str]], None]:
    def write(config: Config, path: Path, files: Mapping[str, str]) -> None:
        import minedge

        minedge.load(files[base]).save_gguf(path, dtype=dtype)

    return write


def _lora(config: Config, path: Path, files: Mapping[str, str]) -> None:
    import minedge

    model = minedge.load(files["dense"], backend="numpy")
    adapted = minedge.lora.add(model, r=RANK, lora_alpha=2 * RANK, target=lora_target(config), seed=SEED)
    minedge.lora.save_adapter(adapted, path)


def lora_target(config: Config) -> list[str]:
    """Queries and values, or the matrix that holds both."""
    names = [role.rsplit(".", 1)[-1] for role in config.arch.attn_in]
    return names if len(names) == 1 else [names[0], names[2]]


KINDS: Mapping[str, Callable[[Config, Path, Mapping[str, str]], None]] = {
    "dense": _dense,
    "half": _half,
    "half_gguf": _gguf("half", "f16"),
    "int4": _int4,
    "q4_0": _gguf("int4", "keep"),
    "f16": _gguf("int4", "f16"),
    "flat": _flat,
    "lora": _lora,
}
