"""The engine gives the bits of the readable decoder on the C tier, however tokens and sequences are put together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minedge import quant
from minedge.errors import UsageError
from minedge.model.engine import Engine
from minedge.ops import c_ops
from minedge.ops.c_ops.attention_decode import Cache
from minedge.ops.numpy_ops.attention_decode import KV_DTYPES, kv_round
from tests.engine.models import ARCHITECTURES, KINDS, make, readable

ISAS = ["c"] + [f"c:{name}" for name, supported in c_ops.isas() if supported]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=6)
@given(data=st.data())
def test_engine_is_the_readable_decoder_bit_for_bit(architecture, kind, data):
    head_dim = data.draw(st.sampled_from([16, 20, 64]), "head_dim")
    heads, groups = data.draw(st.sampled_from([(2, 1), (2, 2), (3, 1), (6, 3)]), "heads")
    if architecture == "gpt2":
        sizes = dict(n_head=4)
    else:
        sizes = dict(n_head=heads, n_kv_head=groups, head_dim=head_dim)
        if "int4" in kind:
            sizes["head_dim"] = 64
    sizes["tie_embeddings"] = data.draw(st.booleans(), "tied")
    model = make(architecture, kind, backend=data.draw(st.sampled_from(ISAS), "isa"), **sizes)
    T = data.draw(st.sampled_from([1, 2, 5, 17, 33]), "T")
    tokens = np.random.default_rng(T).integers(0, 37, (2, T))
    kv_dtype = data.draw(st.sampled_from(KV_DTYPES), "kv_dtype")
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, T - 1)), max_size=3), "cuts") - {T})
    want = readable(model, tokens, cuts, kv_dtype)
    engine = Engine(model, 2, T, kv_dtype, chunk=data.draw(st.sampled_from([1, 3, 7, 256]), "chunk"))
    assert same(engine.step(tokens, last=T).reshape(want.shape), want)
    assert engine.lengths == [T, T]


@pytest.mark.parametrize("kind", ["dense", "int4, embedding too"])
def test_one_token_and_many_sequences_and_one(kind):
    """Cut anywhere, in company of any length: a sequence's logits are those it has alone."""
    model = make(kind=kind)
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 37, n).tolist() for n in (30, 1, 17, 30)]
    alone = [Engine(model, 1, 30).step([ids], last=30) for ids in lists]
    for ids, want in zip(lists, alone, strict=True):
        engine = Engine(model, 1, 30)
        assert same(np.concatenate([engine.step([[token]]) for token in ids]), want)
    together = Engine(model, 4, 30, chunk=11)
    assert same(together.step(lists, last=30), np.concatenate(alone))
    ragged = Engine(model, 4, 30)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, 30, 4):  # some have nothing new in some steps
        rows = [ids[start : start + 4] for ids in lists]
        out, at = ragged.step(rows, last=4), 0
        for part, row in zip(parts, rows, strict=True):
            part.append(out[at : at + len(row)])
            at += len(row)
    for part, want in zip(parts, alone, strict=True):
        assert same(np.concatenate(part), want)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_threads_change_no_bit(kv_dtype):
    """Also past a span of attention, where threads share one query's keys."""
    model = make(kind="int4, embedding too", context_length=700, n_head=6, n_kv_head=3, head_dim=64)
    tokens = np.random.default_rng(1).integers(0, 37, (1, 700))
    before, seen = c_ops.threads(), set()
    try:
        for n in (1, 2, 3, 4, 7, 8):
            c_ops.set_threads(n)
            engine = Engine(model, 1, 700, kv_dtype)
            out = [engine.step(tokens[:, :690]), *(engine.step(tokens[:, t : t + 1]) for t in range(690, 697))]
            out.append(engine.step(tokens[:, 697:], last=3))
            seen.add(np.concatenate(out).tobytes())
    finally:
        c_ops.set_threads(before)
    assert len(seen) == 1
    assert same(np.frombuffer(seen.pop(), np.float32).reshape(-1, 37), readable(model, tokens, [], kv_dtype)[0, 689:])


def test_only_the_wanted_logits_are_made():
    model = make()
    tokens = np.random.default_rng(2).integers(0, 37, (2, 12))
    every = Engine(model, 2, 12).step(tokens, last=12).reshape(2, 12, 37)
    for last in (0, 1, 3, 20):
        engine = Engine(model, 2, 12, chunk=5)
        got = engine.step(tokens, last=last)
        assert same(got, every[:, 12 - min(last, 12) :].reshape(-1, 37))
        assert engine.lengths == [12, 12]


def test_truncate_forgets():
    model = make()
    ids = list(range(20))
    engine = Engine(model, 1, 20)
    engine.step([[*ids[:8], *ids[30:20:-1], 3, 3, 3]])
    engine.truncate(8)
    assert same(engine.step([ids[8:]]), Engine(model, 1, 20).step([ids]))


@pytest.mark.parametrize("D", [4, 16, 20, 64])
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_cache_rounds_as_specified(dtype, D):
    """Stored in pieces, at every place of a panel; the padding stays zero."""
    from minedge.ops.c_ops.native import ffi, floats, lib

    rng = np.random.default_rng(3)
    for isa, supported in enumerate(ok for _, ok in c_ops.isas()):
        if not supported:
            continue
        k, v = rng.normal(0, 3, (2, 37, 2, D)).astype(np.float32)
        k[5, 1] = 0
        v[6, 0, 1:] = 1e-40  # a scale that is denormal
        k[7, 0, 0], v[8, 1, 0] = 1e30, 65519.0  # beyond float16, and its largest
        k[9, 0] = np.float32(127) * np.arange(D) / max(D - 1, 1) / 2  # ends in halves
        cache, group = Cache(2, 40, 2, D, dtype), ffi.new("struct me_rows[1]")
        for start, stop in ((0, 1), (1, 17), (17, 37)):
            group[0] = (0, stop - start, start, 1)
            rows = [np.ascontiguousarray(a[start:stop]) for a in (k, v)]
            lib.me_cache_store(isa, cache.pointer, floats(rows[0]), floats(rows[1]), group, 1, 2, D)
        for got, want in zip(cache.unpacked(1, 37), (k, v), strict=True):
            assert same(got, np.ascontiguousarray(kv_round(want, dtype)))
        assert not cache.k[0].any() and not cache.v[0].any() and not cache.v[1, :, :, :, D:].any()


def test_what_the_engine_cannot_run_is_said():
    model = make()
    assert Engine.why_not(model) == ""
    assert "nf4" in Engine.why_not(quant.nf4(model, 32))
    assert "numpy" in Engine.why_not(model.with_backend("numpy"))
    wide = model.with_params({k: v.astype(np.float64) for k, v in model.params.items()})
    assert "float64" in Engine.why_not(wide)
    with pytest.raises(UsageError, match=r"the engine cannot run it: .*nf4"):
        Engine(quant.nf4(model, 32))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(batch=0), "batch"),
        (dict(max_length=0), "max_length"),
        (dict(max_length=41), "1 to 40"),
        (dict(kv_dtype="float8"), "kv_dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        Engine(make(), **arguments)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([[1], [2]], "expected 1 sequences, got 2"),
        ([[37]], "0..36"),
        ([[-1, 2]], "0..36"),
        ([[1] * 9], "sequence 0 holds 2 of 10, no room for 9"),
    ],
)
def test_bad_tokens_are_named_and_nothing_is_read(tokens, words):
    engine = Engine(make(), 1, 10)
    engine.step([[1, 2]])
    with pytest.raises(UsageError, match=words):
        engine.step(tokens)
    assert engine.lengths == [2]


def test_one_token_too_many_is_named_too():
    """A token alone takes a short way, which leaves to the long one what it cannot read."""
    engine = Engine(make(), 1, 3)
    engine.step([[1, 2]])
    engine.step([[3]])
    with pytest.raises(UsageError, match="sequence 0 holds 3 of 3, no room for 1"):
        engine.step([[4]])
    assert engine.lengths == [3]


def test_logits_of_a_step_are_not_those_of_the_next():
    engine, other = Engine(make(), 1, 10), Engine(make(), 1, 10)
    first = engine.step([[1]])
    kept = first.copy()
    second = engine.step([[2]])
    assert same(first, kept) and not same(first, second)
    assert same(other.step([[1, 2]], last=2), np.concatenate([first, second]))
