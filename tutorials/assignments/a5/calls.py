"""What a5 asks of the student's masks.py and prune.py; runs beside them.

The pieces of prune.py are called on plain arrays: where a piece would use another task's function, the library's stands
in, so that tasks are tested one by one.
"""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import numpy as np

from minedge.ops import get

OPS = get("numpy")


@contextlib.contextmanager
def _replaced(**names):
    """Other functions under these names in the student's prune.py."""
    module = sys.modules["student_prune"]
    old = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(old)


def _params(weight, bits):
    return {"w.weight": weight, "w.mask": bits}


def bits_of_mask(student, mask):
    return {"bits": student.prune._bits(mask)}


def mask_of_bits(student, bits, shape):
    return {"mask": student.masks._unpack(bits, tuple(shape))}


def mask_apply(student, weight, bits):
    return {"out": student.masks.mask_apply(weight, bits)}


def mask_apply_(student, weight, bits):
    weight = weight.copy()
    returned = student.masks.mask_apply_(weight, bits)
    return {"weight": weight, "returned": returned}


def without_smallest(student, weights, sparsity):
    masks = student.prune._without_smallest(list(weights), sparsity)
    return {"masks": list(masks), "removed": int(sum(np.count_nonzero(~np.asarray(mask, bool)) for mask in masks))}


def magnitude(student, weights, sparsity):
    found = {f"w{i}": weight for i, weight in enumerate(weights)}
    with _replaced(_weights=lambda model, names: found, _with_masks=lambda model, weights, masks, pattern: masks):
        return {scope: list(student.prune.magnitude(None, sparsity, scope)) for scope in ("layer", "global")}


def nm(student, weight, n, m):
    with _replaced(
        _weights=lambda model, names: {"w": weight}, _with_masks=lambda model, weights, masks, pattern: masks
    ):
        masks = student.prune.nm(None, n, m)
    return {"mask": masks[0]}


def masked_forward(student, x, weight, bits):
    kind, params = student.prune.Masked(), _params(weight, bits)
    out, cache = kind.forward(x, params, "w", OPS)
    return {"dense": kind.dense(params, "w", OPS), "out": out, "cache": list(cache)}


def masked_backward(student, dout, cache):
    x, weight, bits = cache
    dx, grads = student.prune.Masked().backward(dout, (x,), _params(weight, bits), "w", OPS, frozenset({"w.weight"}))
    return {"dx": dx, "dweight": grads["w.weight"]}


def masked_backward_frozen(student, dout, x, weight, bits):
    dx, grads = student.prune.Masked().backward(dout, (x,), _params(weight, bits), "w", OPS, frozenset())
    return {"dx": dx, "grads": dict(grads)}


def masked_rows_backward(student, dout, ids, weight, bits):
    wanted = frozenset({"w.weight"})
    return dict(student.prune.Masked().rows_backward(dout, ids, _params(weight, bits), "w", OPS, wanted))


def constrain(student, weight, bits, writeable):
    weight = weight.copy()
    weight.flags.writeable = writeable
    student.prune.Masked().constrain_(_params(weight, bits), "w", OPS)
    return {"weight": weight}


def sparse_pack(student, weight, bits):
    return {"values": student.masks.sparse_pack(weight, bits)}


def sparse_unpack(student, values, bits, shape):
    return {"out": student.masks.sparse_unpack(values, bits, tuple(shape))}


def report(student, weight, bits, pattern):
    shape = weight.shape
    model = SimpleNamespace(
        config=None, params=_params(weight, bits), linears={"w": student.prune.Masked(pattern=pattern)}
    )
    with _replaced(linear_shapes=lambda config: {"w": shape}):
        return {"report": student.prune.report(model)["w"]}
