"""The table of compositions is what the code does: every pair of kinds, every method on every kind."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest

from minedge import lora, prune, quant, sparse
from minedge.compress.compositions import APPLIES, WRAPS
from minedge.compress.half import BFloat16, Float16
from minedge.compress.int4 import Int4
from minedge.compress.int8 import Int8
from minedge.compress.nf4 import NF4
from minedge.compress.prune import Masked
from minedge.compress.sparse import Sparse
from minedge.errors import UsageError
from minedge.finetune.dora import DoRA
from minedge.finetune.lora import LoRA
from minedge.model.linears import Dense, core
from tests.methods.common import fingerprint, model, tokens

KINDS = {
    "dense": Dense(),
    "int4": Int4(),
    "int8": Int8(),
    "nf4": NF4(),
    "masked": Masked(),
    "float16": Float16(),
    "bfloat16": BFloat16(),
    "sparse": Sparse(),
    "lora": LoRA(adapter="inner"),
    "dora": DoRA(adapter="inner"),
}
OUTER = {"lora": LoRA, "dora": DoRA, "masked": Masked}
MODELS = {
    "dense": lambda m: m,
    "int4": quant.int4,
    "int8": quant.int8,
    "nf4": lambda m: quant.nf4(m, 32),
    "masked": prune.magnitude,
    "float16": quant.half,
    "bfloat16": lambda m: quant.half(m, "bfloat16"),
    "sparse": lambda m: sparse.pack(prune.magnitude(m)),
}
METHODS = {
    "nf4": lambda m: quant.nf4(m, block_size=64 if core(m.linears[Q]) == NF4(32) else 32),
    "int4": lambda m: quant.int4(m, group_size=64 if core(m.linears[Q]) == Int4(32) else 32),
    "int8": quant.int8,
    "float16": quant.half,
    "bfloat16": lambda m: quant.half(m, "bfloat16"),
    "prune": prune.magnitude,
    "densify": prune.densify,
    "pack": sparse.pack,
    "merge": lambda m: lora.merge(lora.add(m)),
}
Q = "model.layers.0.self_attn.q_proj"


def test_every_pair_has_a_rule():
    assert set(WRAPS) == set(itertools.product(OUTER, KINDS))
    assert set(APPLIES) == set(itertools.product(METHODS, MODELS))


@pytest.mark.parametrize("outer, inner", sorted(WRAPS))
def test_wrapping(outer, inner):
    rule = WRAPS[outer, inner]
    if rule.legal:
        assert OUTER[outer](KINDS[inner]).base == KINDS[inner]
    else:
        with pytest.raises(UsageError, match=rule.why.split(":")[0]):
            OUTER[outer](KINDS[inner])


@pytest.mark.parametrize("method, kind", sorted(APPLIES))
@pytest.mark.parametrize("adapted", [False, True])
def test_applying(method, kind, adapted):
    rule = APPLIES[method, kind]
    start = MODELS[kind](model())
    if adapted:
        start = lora.add(start, adapter="kept", r=2, target="all")
        start = lora.set_active(start, False)  # merging leaves it alone, everything else works below it
    before = fingerprint(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not rule.legal:
            with pytest.raises(UsageError, match=rule.why.split(";")[0]):
                METHODS[method](start)
            return
        after = METHODS[method](start)
    assert fingerprint(start) == before
    outside = after.linears[Q]
    inside = outside.base if adapted else outside
    expected = rule.why.split(" ")[0].split("(")[0].strip(";,").lower()
    assert inside.kind == (kind if expected == "unchanged" else expected)
    assert outside.is_adapter == adapted
    assert np.isfinite(after.loss(tokens()))


def test_a_file_gets_its_kinds_without_an_import(tmp_path):
    """A fresh process that only loads knows the kinds that the file names."""
    lora.add(prune.magnitude(model(), names="q_proj")).save(tmp_path / "m")
    code = "import sys, minedge; print(minedge.load(sys.argv[1], backend='numpy').linears[sys.argv[2]].kind)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m"), Q], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "lora"
