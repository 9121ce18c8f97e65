"""What a5 tests. The references are the library's own functions; cases are drawn anew for every seed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np

from minedge.compress import prune
from minedge.course.properties import Gradient, Property
from minedge.ops import get
from minedge.ops.numpy_ops import masks

OPS = get("numpy")
SHAPES = ((3, 7), (1, 1), (2, 4), (1, 8), (5, 9), (16, 33))


def packed(mask):
    return prune._bits(mask)


def random_mask(rng, shape):
    """Neither empty nor full where there is room for both, and unlike its own mirror image."""
    mask = rng.random(shape) < 0.6
    mask.flat[0], mask.flat[-1] = True, mask.size == 1
    return mask


def mask_cases(rng):
    for shape in SHAPES:
        yield {"mask": random_mask(rng, shape)}
    yield {"mask": np.zeros((3, 4), bool)}
    yield {"mask": np.ones((3, 5), bool)}


def bits_cases(rng):
    for case in mask_cases(rng):
        yield {"bits": packed(case["mask"]), "shape": list(case["mask"].shape)}


def apply_cases(rng, special=True):
    for shape in SHAPES:
        yield {"weight": rng.standard_normal(shape).astype(np.float32), "bits": packed(random_mask(rng, shape))}
    if special:  # what training may leave under a mask
        for value in (np.nan, np.inf, -np.inf):
            weight, mask = rng.standard_normal((4, 9)).astype(np.float32), random_mask(rng, (4, 9))
            weight[~mask & (rng.random((4, 9)) < 0.5)] = value
            yield {"weight": weight, "bits": packed(mask)}


def in_place(weight, bits):
    weight = weight.copy()
    masks.mask_apply_(weight, bits)
    return {"weight": weight, "returned": None}


def distinct(rng, *shape):
    """No two magnitudes alike, both signs."""
    values = rng.permutation(math.prod(shape)) + 1.0
    return (values * rng.choice([-1.0, 1.0], values.shape) / 8).reshape(shape).astype(np.float32)


def tied(rng, *shape):
    return rng.integers(-2, 3, shape).astype(np.float32)


def smallest_cases(rng):
    yield {"weights": [distinct(rng, 3, 4)], "sparsity": 0.25}
    yield {"weights": [distinct(rng, 3, 4)], "sparsity": 0.35}  # 4.2 weights
    yield {"weights": [distinct(rng, 3, 4)], "sparsity": 0.3}  # 3.6 weights
    yield {"weights": [distinct(rng, 2, 5)], "sparsity": 0.25}  # 2.5 weights: round(2.5) is 2
    yield {"weights": [np.float32([[1, 1, 1, 1], [-1, 1, -1, 1]])], "sparsity": 0.375}
    yield {"weights": [distinct(rng, 2, 6) / 4, distinct(rng, 3, 2)], "sparsity": 0.4}
    for sparsity in (0.0, 0.2, 0.5, 0.9):
        yield {"weights": [tied(rng, 5, 8), tied(rng, 3, 3), distinct(rng, 4, 4)], "sparsity": sparsity}
    yield {"weights": [rng.standard_normal((40, 50)).astype(np.float32)], "sparsity": 0.731}


def smallest(weights, sparsity):
    found = prune._without_smallest(weights, sparsity)
    return {"masks": found, "removed": round(sparsity * sum(w.size for w in weights))}


def scope_cases(rng):
    for weights in ([distinct(rng, 2, 4) / 4, distinct(rng, 3, 4)], [tied(rng, 4, 8), distinct(rng, 6, 5)]):
        for sparsity in (0.5, 0.3):
            yield {"weights": weights, "sparsity": sparsity}


def by_scope(weights, sparsity):
    each = [prune._without_smallest([weight], sparsity)[0] for weight in weights]
    return {"layer": each, "global": prune._without_smallest(weights, sparsity)}


def nm_cases(rng):
    yield {"weight": distinct(rng, 8, 8), "n": 1, "m": 4}
    yield {"weight": distinct(rng, 4, 12), "n": 2, "m": 4}
    yield {"weight": tied(rng, 4, 8), "n": 2, "m": 4}
    yield {"weight": np.ones((2, 8), np.float32), "n": 3, "m": 4}
    yield {"weight": tied(rng, 6, 32), "n": 5, "m": 8}
    yield {"weight": rng.standard_normal((16, 64)).astype(np.float32), "n": 2, "m": 4}


def nm(weight, n, m):
    found = []
    with (
        mock.patch.object(prune, "_weights", lambda model, names: {"w": weight}),
        mock.patch.object(prune, "_with_masks", lambda model, weights, masks, pattern: found.extend(masks)),
    ):
        prune.nm(None, n, m)
    return {"mask": found[0]}


def layer_cases(rng):
    for batch, out, width in (((3,), 4, 5), ((), 1, 1), ((2, 3), 7, 11)):
        weight = rng.standard_normal((out, width))  # not zero under the mask: that is how it comes from an optimizer
        yield {
            "x": rng.standard_normal((*batch, width)), "weight": weight, "bits": packed(random_mask(rng, weight.shape)),
        }  # fmt: skip


def masked_forward(x, weight, bits):
    dense = masks.mask_apply(weight, bits)
    return {"dense": dense, "out": x @ dense.T, "cache": [x]}


def backward_cases(rng):
    for case in layer_cases(rng):
        yield {"dout": rng.standard_normal((*case["x"].shape[:-1], len(case["weight"]))), **case}


def masked_backward(dout, cache):
    x, weight, bits = cache
    dx, grads = prune.Masked().backward(dout, (x,), {"w.weight": weight, "w.mask": bits}, "w", OPS, {"w.weight"})
    return {"dx": dx, "dweight": grads["w.weight"]}


def masked_backward_frozen(dout, x, weight, bits):
    return {"dx": dout @ masks.mask_apply(weight, bits), "grads": {}}


def rows_cases(rng):
    for ids in (np.array([1, 3, 1]), np.array([[0, 2], [4, 4]])):
        weight = rng.standard_normal((5, 6))
        yield {
            "dout": rng.standard_normal((*ids.shape, 6)), "ids": ids, "weight": weight,
            "bits": packed(random_mask(rng, weight.shape)),
        }  # fmt: skip


def masked_rows_backward(dout, ids, weight, bits):
    dweight = np.zeros_like(weight)
    np.add.at(dweight, ids, dout)
    return {"w.weight": masks.mask_apply(dweight, bits)}


def constrain_cases(rng):
    for writeable in (True, False):
        for case in apply_cases(rng):
            yield {**case, "writeable": writeable}


def constrain(weight, bits, writeable):
    return {"weight": masks.mask_apply(weight, bits) if writeable else weight}


def pack_cases(rng):
    yield from apply_cases(rng, special=False)
    weight = rng.integers(-1, 2, (4, 6)).astype(np.float32)  # kept weights that are 0
    yield {"weight": weight, "bits": packed(random_mask(rng, weight.shape))}
    yield {"weight": weight, "bits": packed(np.zeros(weight.shape, bool))}


def unpack_cases(rng):
    for case in pack_cases(rng):
        yield {**sparse_pack(**case), "bits": case["bits"], "shape": list(case["weight"].shape)}


def sparse_pack(weight, bits):
    return {"values": masks.sparse_pack(weight, bits)}


def report_cases(rng):
    for shape, dtype, pattern in (((5, 7), np.float32, "unstructured"), ((8, 16), np.float16, "2:4")):
        weight, mask = rng.standard_normal(shape).astype(dtype), random_mask(rng, shape)
        weight[mask & (rng.random(shape) < 0.2)] = 0  # kept, and zero
        yield {"weight": weight, "bits": packed(mask), "pattern": pattern}


def report(weight, bits, pattern):
    kind = prune.Masked(pattern=pattern)
    model = SimpleNamespace(config=None, params={"w.weight": weight, "w.mask": bits}, linears={"w": kind})
    with mock.patch.object(prune, "linear_shapes", lambda config: {"w": weight.shape}):
        return {"report": prune.report(model)["w"]}


PROPERTIES = [
    Property("a5.1", "bits_of_mask", mask_cases, lambda mask: {"bits": packed(mask)}, "row order, lowest bit first"),
    Property(
        "a5.1", "mask_of_bits", bits_cases, lambda bits, shape: {"mask": masks._unpack(bits, tuple(shape))},
        "the way back, without the bits beyond n",
    ),
    Property(
        "a5.2", "mask_apply", apply_cases, lambda weight, bits: {"out": masks.mask_apply(weight, bits)},
        "zero where the bit is not set, whatever stood there", 0,
    ),
    Property("a5.2", "mask_apply_", apply_cases, in_place, "the same, in place", 0),
    Property("a5.3", "without_smallest", smallest_cases, smallest, "exactly round(sparsity * n), ties by index"),
    Property("a5.3", "magnitude", scope_cases, by_scope, "a share of each matrix, or of all together"),
    Property("a5.4", "nm", nm_cases, nm, "n of every m neighbours along a row"),
    Property("a5.5", "masked_forward", layer_cases, masked_forward, "what lies under the mask is not seen"),
    Gradient(
        "a5.5", "masked_backward", layer_cases, lambda x, weight, bits: (
            x @ masks.mask_apply(weight, bits).T, (x, weight, bits)
        ), masked_backward, ("x", "weight"), "both masks in the backward pass",
    ),
    Property("a5.5", "masked_backward_frozen", backward_cases, masked_backward_frozen, "no gradient that nobody wants"),
    Property("a5.5", "masked_rows_backward", rows_cases, masked_rows_backward, "an embedding's gradient is masked too"),
    Property("a5.5", "constrain", constrain_cases, constrain, "zero again after a step; read-only arrays stay", 0),
    Property("a5.6", "sparse_pack", pack_cases, sparse_pack, "the kept weights alone, in row order", 0),
    Property(
        "a5.6", "sparse_unpack", unpack_cases,
        lambda values, bits, shape: {"out": masks.sparse_unpack(values, bits, tuple(shape))}, "the way back", 0,
    ),
    Property("a5.6", "report", report_cases, report, "what is counted: weights, density, bytes"),
]  # fmt: skip
