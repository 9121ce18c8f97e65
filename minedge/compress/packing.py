"""What the verbs that store a whole model in fewer bits have in common, and the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from minedge.compress.compositions import check_applies, with_core
from minedge.config import Config
from minedge.errors import UsageError
from minedge.io.hf import Repack, Rows
from minedge.model.linears import LinearKind, core, dense_kind
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes
from minedge.ops import Ops
from minedge.ops.memory import Slabs

__all__ = ["argument_of", "dequantize", "pack_linears", "while_reading"]

M = TypeVar("M", bound=Model)
Pack = Callable[[str, Any, Ops], dict[str, Any]]
TILE = 1 << 18  # weights that stand in float32 at a time while a file is read: a megabyte, as caches hold
STEPS = ("group_size", "block_size", "width_step")  # what kinds call the number that must divide a matrix's width


def pack_linears(
    model: M,
    kind: LinearKind,
    argument: str,
    embeddings: bool,
    strict: bool,
    pack: Pack | None = None,
    rest: bool = False,
) -> M:
    """A new model whose linear weights are of `kind`, adapters kept on top; all other arrays are shared.

    argument  the field of `kind` that must divide a matrix's width, such as "group_size"; a matrix where it does not
              stays as it is, and one warning, or with `strict` a `UsageError`, lists them
    pack      (name, weight, ops) -> parameters; None: `kind.pack`
    rest      `while_reading` was here before: nothing left to do is no error
    """
    skip = () if embeddings else (model.config.arch.embed,)
    shapes = {name: shape for name, shape in linear_shapes(model.config).items() if name not in skip}
    size = getattr(kind, argument)
    odd = [name for name, (_, width) in shapes.items() if width % size]
    if odd:
        widths = ", ".join(map(str, sorted({shapes[name][1] for name in odd})))
        message = f"{argument} {size} does not divide width {widths} of {', '.join(odd)}"
        if strict:
            raise UsageError(f"{message}; choose another, or leave strict off to keep them as they are")
        warnings.warn(f"{message}: left as they are", UserWarning, stacklevel=3)
    ops, params, linears = model.ops, dict(model.params), dict(model.linears)
    for name, shape in shapes.items():
        inside = core(linears[name])
        if name in odd or inside == kind:  # stays as it is
            continue
        check_applies(kind.kind, inside, name)
        made = (pack or kind.pack)(name, inside.dense(params, name, ops), ops)
        for key in inside.shapes(name, *shape):
            del params[key]
        params.update(made)
        linears[name] = with_core(linears[name], kind)
    if not rest and linears == model.linears and len(odd) < len(shapes):  # nothing done: refused where packing twice is
        check_applies(kind.kind, kind, "every matrix")
    return model.with_params(params, linears)


def while_reading(kind: LinearKind, embeddings: bool, ops: Ops) -> Repack:
    """For `hf.read_model`: its dense matrices become `kind` as their rows come, `TILE` weights at a time, or matrix by
    matrix where the kind needs a whole one. What the kind cannot be made of stays; `pack_linears` with `rest` says so.
    """
    step = getattr(kind, argument_of(kind))
    slabs: list[Slabs] = []

    def repack(config: Config, name: str, shape: tuple[int, int], rows: Rows) -> Any:
        out, width = shape
        if not slabs:  # the first matrix: now the model's size is known
            slabs.append(Slabs(sum(o * w for o, w in linear_shapes(config).values()) // 2))
        if width % step or (name == config.arch.embed and not embeddings):
            return None
        made = {key: slabs[0].empty(s, np.dtype(dtype)) for key, (s, dtype) in kind.shapes(name, out, width).items()}
        for part, weight in rows(max(1, TILE // width) if kind.by_rows else out, ops.half_widen):
            for key, array in kind.pack(name, weight, ops).items():
                made[key][part if kind.by_rows else ...] = array
        return kind, made

    return repack


def argument_of(kind: LinearKind) -> str:
    """The field of a kind that must divide a matrix's width. Raises `UsageError` for what packs nothing."""
    name = next((name for name in STEPS if hasattr(kind, name)), None)
    if name is None:
        raise UsageError(f"pack: expected a kind such as minedge.quant.Int4(32), got {kind!r}")
    return name


def dequantize(model: M) -> M:
    """A new model whose packed matrices (Int4, Int8, NF4) are float32 arrays of the same values, so that they can be
    pruned, or trained whole; adapters stay on top. What was not packed is shared with `model`.

    Without adapters the new arrays are trainable, as those of a model that never was packed; with adapters the
    trainable names stay.
    """
    ops, params, linears = model.ops, dict(model.params), dict(model.linears)
    names, made = model.trainable_names, set()
    for name, shape in linear_shapes(model.config).items():
        inside = core(linears[name])
        if inside.trainable(name):
            continue
        for key in inside.shapes(name, *shape):
            del params[key]
        params[f"{name}.weight"] = inside.dense(model.params, name, ops)
        made.add(f"{name}.weight")
        linears[name] = with_core(linears[name], dense_kind())
    if not any(kind.is_adapter for kind in linears.values()):
        names = names | made
    return model.with_params(params, linears, names)
