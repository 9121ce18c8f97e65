"""What c_ops refuses: the kernels themselves check nothing."""

from __future__ import annotations

import numpy as np
import pytest

from minedge.ops import c_ops
from tests.kernels.cases import CASES, arrays, bits_of, outputs

IN_PLACE = {"adamw_": (0, 2, 3), "perturb_": (0,), "mask_apply_": (0,)}  # positions of the arrays that change
FREE_WIDTH = {  # positions of the arrays whose last axis may have any length
    **dict.fromkeys(
        ("gelu_forward", "sum_squares", "perturb", "perturb_", "perturb_both", "bias_backward", "half_widen"), (0,)
    ),
    **dict.fromkeys(("cross_entropy_forward", "cross_entropy_backward"), (0,)),
    "embedding_forward": (0, 1),
    "half_linear_backward": (1,),
}


def replaced(args: tuple, target: np.ndarray, by: object) -> tuple:
    """args with one array exchanged."""
    return tuple(replaced(a, target, by) if isinstance(a, tuple) else (by if a is target else a) for a in args)


def case(name: str) -> tuple:
    return CASES[name](np.random.default_rng(0), 12)


@pytest.mark.parametrize("name", [n for n in CASES if any(True for _ in arrays(case(n)))])
def test_wrong_types(name):
    op = c_ops.load()[name]
    args = case(name)
    for a in list(arrays(args)):
        with pytest.raises((TypeError, ValueError)):
            op(*replaced(args, a, a.astype(np.complex128)))
        with pytest.raises((TypeError, ValueError, AttributeError)):
            op(*replaced(args, a, a.tolist()))
        if a.dtype == np.float32 and not name.startswith("sparse"):
            with pytest.raises(TypeError, match="float32"):
                op(*replaced(args, a, a.astype(np.float64)))
            with pytest.raises(TypeError):
                op(*replaced(args, a, a.astype(">f4")))


@pytest.mark.parametrize("name", [n for n in CASES if any(True for _ in arrays(case(n)))])
def test_wrong_shapes(name):
    """Eight columns too many in any one array (a mask holds eight per byte) are noticed, where another fixes them."""
    op = c_ops.load()[name]
    args = case(name)
    for position, a in enumerate(list(arrays(args))):
        if name in FREE_WIDTH and position in FREE_WIDTH[name]:
            continue
        longer = np.concatenate([a] + [a[..., :1]] * 8, axis=-1)
        with pytest.raises((ValueError, IndexError)):
            op(*replaced(args, a, longer))


@pytest.mark.parametrize("name", CASES)
def test_views_and_misaligned_arrays_give_the_same_bits(name):
    """Inputs that a kernel cannot read in place are copied; in-place arguments are refused."""
    op = c_ops.load()

    def run(args: tuple) -> bytes:  # a cache holds the copies that were made: compare what was computed
        result = outputs(name, op, args)
        return bits_of(result[0] if name.endswith("_forward") else result)

    want = run(case(name))
    for spoil in (strided, misaligned):
        args = case(name)
        for position, a in enumerate(list(arrays(args))):
            odd = replaced(args, a, spoil(a))
            if position in IN_PLACE.get(name, ()):
                with pytest.raises(ValueError, match="contiguous"):
                    op[name](*odd)
            elif name not in IN_PLACE:
                assert run(odd) == want, (position, spoil)


def strided(a: np.ndarray) -> np.ndarray:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape) if a.dtype.itemsize > 1 else strided(a)
    view[...] = a
    return view


@pytest.mark.parametrize("name", IN_PLACE)
def test_read_only_in_place(name):
    op = c_ops.load()[name]
    for position in IN_PLACE[name]:
        args = case(name)
        list(arrays(args))[position].flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            op(*args)


def test_read_only_inputs_are_fine():
    for name in set(CASES) - set(IN_PLACE):
        args = case(name)
        for a in arrays(args):
            a.flags.writeable = False
        c_ops.load()[name](*args)


def test_overlap_in_place():
    pool = np.ones(40, np.float32)
    op = c_ops.load()["adamw_"]
    with pytest.raises(ValueError, match="share memory"):
        op(pool[:10], pool[20:30], pool[5:15], np.ones(10, np.float32), 1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
    with pytest.raises(ValueError, match="share memory"):
        op(pool[:10], pool[:10], np.ones(10, np.float32), np.ones(10, np.float32), 1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
    op(pool[:10], pool[10:20], pool[20:30], pool[30:], 1e-3, 0.9, 0.999, 1e-8, 0.0, 1)  # neighbours do not overlap


def test_ids_out_of_range():
    ops, w = c_ops.load(), np.ones((4, 8), np.float32)
    for bad in (-1, 4, 2**40):
        with pytest.raises(IndexError, match=r"0\.\.3"):
            ops["embedding_forward"](np.array([0, bad]), w)
        with pytest.raises(IndexError, match=r"0\.\.3"):
            ops["cross_entropy_forward"](np.ones((2, 4), np.float32), np.array([0, bad]), np.ones(2, np.float32))


def test_noise_ranges():
    ops = c_ops.load()
    for bad in (
        (2**64, 0, 0, 0, 0, 1),
        (0, -1, 0, 0, 0, 1),
        (0, 0, 2**32, 0, 0, 1),
        (0, 0, 0, 0, -1, 1),
        (0, 0, 0, 0, 2**34, 1),
    ):
        with pytest.raises(ValueError, match="expected"):
            ops["normal"](*bad)


def test_attention_uses_a_longer_cache_where_it_lies():
    rng = np.random.default_rng(0)
    ops = c_ops.load()
    k, v = (rng.standard_normal((3, 50, 2, 16), dtype=np.float32) for _ in range(2))
    q = rng.standard_normal((3, 7, 4, 16), dtype=np.float32)
    out, cache = ops["attention_forward"](q, k[:, :20], v[:, :20])
    assert cache[1].base is k
    want, dense_cache = ops["attention_forward"](q, k[:, :20].copy(), v[:, :20].copy())
    assert out.tobytes() == want.tobytes()
    assert bits_of(ops["attention_backward"](out, cache)) == bits_of(ops["attention_backward"](out, dense_cache))


@pytest.mark.parametrize("isa", [name for name, supported in c_ops.isas() if supported])
def test_a_query_that_no_key_answers_gets_no_number(isa):
    """Every score minus infinity: 0 / 0, as in the specification, and never what the stack held."""
    q, k, v = (
        np.ones((1, 2, 1, 16), np.float32),
        np.full((1, 300, 1, 16), -np.inf, np.float32),
        np.ones((1, 300, 1, 16)),
    )
    for rows in (1, 2):
        out = c_ops.load(isa)["cached_attention"](q[:, :rows], k, v.astype(np.float32))
        assert np.isnan(out).all()


def test_group_sizes_and_instruction_sets():
    with pytest.raises(ValueError, match="group_size"):
        c_ops.load()["int4_quantize"](np.ones((2, 64), np.float32), 16)
    with pytest.raises(ValueError, match="isa"):
        c_ops.load("avx9")
    with pytest.raises(ValueError, match="threads"):
        c_ops.set_threads(0)
