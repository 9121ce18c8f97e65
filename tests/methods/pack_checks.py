"""What packing while reading has to do, for packing.py and for its mutants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import minedge
from minedge import quant
from minedge.io import hf
from minedge.model.linears import LinearKind
from tests.methods import common

__all__ = ["VERBS", "packs_as_the_verb_does"]

VERBS: dict[LinearKind, Callable[..., Any]] = {
    quant.Int4(32): lambda model, **more: quant.int4(model, 32, **more),
    quant.Int8(): quant.int8,
    quant.NF4(32): lambda model, **more: quant.nf4(model, 32, **more),
    quant.Float16(): lambda model, **more: quant.half(model, "float16", **more),
    quant.BFloat16(): lambda model, **more: quant.half(model, "bfloat16", **more),
}


def packs_as_the_verb_does(
    module: Any,
    folder: Path,
    architecture: str = "llama",
    dtype: str = "float16",
    backend: str = "numpy",
    kinds: Iterable[LinearKind] = (quant.Int4(32), quant.Int8()),
    embeddings: bool = True,
    **changes: Any,
) -> None:
    """Kinds, arrays and trainable names, with tiles that end inside a matrix: 300 weights are 4 rows of 64, 3 of 96."""
    common.model(architecture, backend=backend, **changes).save(folder / "m", dtype=dtype)
    tile, module.TILE = module.TILE, 300
    try:
        for kind in kinds:
            want = VERBS[kind](minedge.load(folder / "m", backend=backend), embeddings=embeddings)
            repack = module.while_reading(kind, embeddings, want.ops)
            _, params, linears, _ = hf.read_model(folder / "m", repack=repack)
            assert linears == want.linears
            assert sorted(params) == sorted(want.params)
            for key, array in want.params.items():
                assert (params[key].dtype, params[key].tobytes()) == (array.dtype, array.tobytes()), key
            assert not any(array.flags.writeable for array in params.values())
            loaded = minedge.load(folder / "m", backend=backend, pack=kind, embeddings=embeddings)
            # the order of arrays is the file's, not the verb's: all but the last entry
            assert common.fingerprint(loaded)[:-1] == common.fingerprint(want)[:-1]
    finally:
        module.TILE = tile
