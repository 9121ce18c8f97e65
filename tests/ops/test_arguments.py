"""What every tier does with its arguments: leaves them alone, takes any strides, refuses what it cannot work on."""

from __future__ import annotations

import numpy as np
import pytest
from tiers import EXPECTED

import minedge.ops

FAST = [name for name in EXPECTED if name != "numpy"]


def _calls(ops, dtype=np.float32):
    """op -> (arguments, the op whose cache comes first or None)."""
    rng = np.random.default_rng(3)
    f = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    ids = rng.integers(0, 9, (2, 3))
    packed, scales = ops.int4_quantize(f(5, 64).astype(np.float32), 32)
    codes, absmax = ops.nf4_quantize(f(5, 64).astype(np.float32), 32)
    bits = np.packbits(rng.random(15) < 0.5, bitorder="little")
    calls = {
        "embedding": ((ids, f(9, 4)), f(2, 3, 4)),
        "linear": ((f(2, 3, 4), f(5, 4)), f(2, 3, 5)),
        "bias": ((f(2, 3, 4), f(4)), f(2, 3, 4)),
        "rms_norm": ((f(2, 3, 4), f(4), 1e-5), f(2, 3, 4)),
        "layer_norm": ((f(2, 3, 4), f(4), f(4), 1e-5), f(2, 3, 4)),
        "rotary": ((f(2, 3, 2, 4), f(3, 2), f(3, 2)), f(2, 3, 2, 4)),
        "swiglu": ((f(2, 3, 4), f(2, 3, 4)), f(2, 3, 4)),
        "gelu": ((f(2, 3, 4),), f(2, 3, 4)),
        "attention": ((f(2, 3, 4, 6), f(2, 3, 2, 6), f(2, 3, 2, 6)), f(2, 3, 4, 6)),
        "cross_entropy": ((f(6, 9), rng.integers(0, 9, 6), np.abs(f(6))), 0.5),
        "int4_linear": ((f(2, 3, 64), packed, scales, 32), f(2, 3, 5)),
        "nf4_linear": ((f(2, 3, 64), codes, absmax, 32), f(2, 3, 5)),
    }
    plain = {
        "int8_quantize": (f(2, 64),),
        "int4_int8_linear": (f(2, 64), packed, scales, 32),
        "mask_apply": (f(3, 5), bits),
        "sum_squares": (f(7),),
        "perturb": (f(3, 5), 0.1, 1, 2, 3, 4),
        "perturb_both": (f(3, 5), 0.1, 1, 2, 3, 4),
        "linear_both": (f(2, 3, 5), f(4, 5), 0.1, 1, 2, 3, 4),
    }
    return calls, plain


def _arrays(value):
    if isinstance(value, np.ndarray):
        return [value]
    return [a for part in value for a in _arrays(part)] if isinstance(value, tuple) else []


def _read_only(args):
    for a in _arrays(args):
        a.flags.writeable = False
    return args


@pytest.mark.parametrize("backend", EXPECTED)
def test_read_only_arguments_are_enough_and_stay_as_they_were(backend):
    ops = minedge.ops.get(backend)
    calls, plain = _calls(ops)
    for name, (args, dout) in calls.items():
        before = [a.copy() for a in _arrays((args, dout))]
        out, cache = getattr(ops, f"{name}_forward")(*_read_only(args))
        grads = getattr(ops, f"{name}_backward")(*_read_only((dout, cache)))
        for old, new in zip(before, _arrays((args, dout)), strict=True):
            assert old.tobytes() == new.tobytes(), f"{name} changed an argument"
        for a in _arrays((out, grads)):
            assert a.flags.c_contiguous and a.dtype == np.float32, f"{name}: result {a.dtype}, {a.flags}"
    for name, args in plain.items():
        getattr(ops, name)(*_read_only(args))


@pytest.mark.parametrize("backend", EXPECTED)
def test_strided_arguments_give_the_numbers_of_their_copies(backend):
    ops = minedge.ops.get(backend)

    def strided(a):
        if not isinstance(a, np.ndarray) or a.dtype != np.float32:
            return a
        room = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
        room[..., ::2] = a
        return room[..., ::2]

    calls, plain = _calls(ops)
    for name, (args, dout) in calls.items():
        results = []
        for change in (lambda a: a, strided):
            out, cache = getattr(ops, f"{name}_forward")(*map(change, args))
            grads = getattr(ops, f"{name}_backward")(change(dout), cache)
            results.append([out, *(grads if isinstance(grads, tuple) else (grads,))])
        for plain_result, result in zip(*results, strict=True):
            np.testing.assert_allclose(result, plain_result, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, args in plain.items():
        first, second = (getattr(ops, name)(*map(change, args)) for change in (lambda a: a, strided))
        for a, b in zip(_arrays((first,)), _arrays((second,)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("backend", FAST)
def test_float64_is_refused_with_a_clear_message(backend):
    ops = minedge.ops.get(backend)
    calls, plain = _calls(ops, np.float64)
    for name, (args, dout) in calls.items():
        with pytest.raises(TypeError, match="float32"):
            getattr(ops, f"{name}_forward")(*args)
        cache = getattr(ops, f"{name}_forward")(*[a.astype(np.float32) if a_is_float(a) else a for a in args])[1]
        if name != "cross_entropy":  # its dout is a number
            with pytest.raises(TypeError, match="float32"):
                getattr(ops, f"{name}_backward")(dout, cache)
    for name, args in plain.items():
        with pytest.raises(TypeError, match="float32"):
            getattr(ops, name)(*args)


def a_is_float(a):
    return isinstance(a, np.ndarray) and a.dtype == np.float64


@pytest.mark.parametrize("backend", FAST)
def test_in_place_ops_refuse_what_they_cannot_write(backend):
    ops = minedge.ops.get(backend)
    bits = np.array([0b1010], np.uint8)
    frozen, view = np.ones(4, np.float32), np.ones(8, np.float32)[::2]
    frozen.flags.writeable = False
    state = [np.zeros(4, np.float32) for _ in range(3)]
    for bad in (frozen, view):
        for call in (
            lambda w: ops.mask_apply_(w, bits),
            lambda w: ops.perturb_(w, 1.0, 0.1, 1, 2, 3, 4),
            lambda w: ops.adamw_(w, *state, 1e-3, 0.9, 0.99, 1e-8, 0.0, 1),
        ):
            with pytest.raises(ValueError):
                call(bad)


@pytest.mark.parametrize("backend", EXPECTED)
def test_indices_out_of_range_are_errors_not_memory(backend):
    ops = minedge.ops.get(backend)
    weight, logits = np.ones((4, 2), np.float32), np.ones((2, 4), np.float32)
    for bad in (4, -5, 10**9):
        with pytest.raises((IndexError, ValueError)):
            ops.embedding_forward(np.array([0, bad]), weight)
        with pytest.raises((IndexError, ValueError)):
            ops.cross_entropy_forward(logits, np.array([0, bad]), np.ones(2, np.float32))


@pytest.mark.parametrize("backend", FAST)
def test_wrong_shapes_are_errors_not_memory(backend):
    ops = minedge.ops.get(backend)
    f = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    packed, scales = ops.int4_quantize(f(4, 64), 32)
    for call in (
        lambda: ops.rms_norm_forward(f(3, 4), f(5), 1e-5),
        lambda: ops.linear_both(f(2, 3, 4), f(5, 6), 0.1, 1, 2, 3, 4),
        lambda: ops.linear_both(f(3, 3, 4), f(5, 4), 0.1, 1, 2, 3, 4),
        lambda: ops.layer_norm_forward(f(3, 4), f(4), f(5), 1e-5),
        lambda: ops.rotary_forward(f(1, 3, 2, 4), f(2, 2), f(2, 2)),
        lambda: ops.swiglu_forward(f(3, 4), f(4, 4)),
        lambda: ops.attention_forward(f(1, 3, 2, 4), f(1, 2, 2, 4), f(1, 2, 2, 4)),  # fewer keys than queries
        lambda: ops.attention_forward(f(1, 3, 3, 4), f(1, 3, 2, 4), f(1, 3, 2, 4)),  # heads that do not divide
        lambda: ops.cross_entropy_forward(f(3, 4), np.zeros(2, np.int64), f(3)),
        lambda: ops.adamw_(f(4), f(5), f(4), f(4), 1e-3, 0.9, 0.99, 1e-8, 0.0, 1),
        lambda: ops.int4_quantize(f(4, 48), 32),
        lambda: ops.int4_dequantize(packed, scales[:, :1], 32),
        lambda: ops.int4_int8_linear(f(1, 32), packed, scales, 32),
        lambda: ops.nf4_quantize(f(4, 48), 32),
        lambda: ops.nf4_quantize(f(4, 48), 24),
        lambda: ops.nf4_dequantize(packed, f(4, 1), 32),
        lambda: ops.nf4_linear_forward(f(1, 32), packed, f(4, 2), 32),
        lambda: ops.q8_quantize(f(4, 48)),
        lambda: ops.q8_dequantize(np.zeros((4, 64), np.int8), scales[:, :1]),
        lambda: ops.mask_apply(f(3, 5), np.zeros(1, np.uint8)),
        lambda: ops.sparse_unpack(f(3), np.array([1], np.uint8), (8,)),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("backend", EXPECTED)
def test_empty_batches_pass_through(backend):
    ops = minedge.ops.get(backend)
    empty, weight = np.zeros((0, 4), np.float32), np.ones(4, np.float32)
    out, cache = ops.rms_norm_forward(empty, weight, 1e-5)
    dx, dweight = ops.rms_norm_backward(empty, cache)
    assert out.shape == dx.shape == (0, 4) and np.array_equal(dweight, np.zeros(4))
    assert ops.normal(1, 2, 3, 4, 5, 0).shape == (0,)
    assert ops.sum_squares(empty) == 0.0
