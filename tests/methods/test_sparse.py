"""Sparse: packing changes no number, costs the bytes it says, trains adapters, and its files and refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, sparse
from minedge.compress.sparse import Sparse
from minedge.errors import MinedgeFormatError, UsageError
from minedge.model.engine import Engine
from minedge.model.linears import kind_from_dict
from minedge.ops.numpy_ops import sparse as sparse_ops
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"


def pruned_weight(rows: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(rows, width)).astype(np.float32)
    return np.where(rng.random(weight.shape) < rng.random((rows, 1)), weight, 0).astype(np.float32)


def contents(m: minedge.Model) -> tuple:
    """All but the order of the arrays."""
    return {name: a.tobytes() for name, a in m.params.items()}, m.linears, m.trainable_names


@pytest.mark.parametrize("dtype", sparse.DTYPES)
def test_kind_is_its_equations(dtype, monkeypatch):
    weight = pruned_weight(37, 40).astype(dtype).astype(np.float32)
    kind = Sparse(np.count_nonzero(weight), dtype)
    params = kind.pack("w", weight, NUMPY)
    assert {k: (a.shape, str(a.dtype)) for k, a in params.items()} == kind.shapes("w", 37, 40)
    assert kind.dense(params, "w", NUMPY).tobytes() == weight.tobytes()
    ids = np.array([[3, 0], [36, 3]])
    np.testing.assert_array_equal(kind.rows(ids, params, "w", NUMPY), weight[ids])
    x, dout = np.random.default_rng(6).normal(size=(2, 3, 40)), np.random.default_rng(7).normal(size=(2, 3, 37))
    y, cache = kind.forward(x, params, "w", NUMPY)
    np.testing.assert_allclose(y, np.einsum("bti,oi->bto", x, weight), rtol=1e-9, atol=1e-9)
    dx, grads = kind.backward(dout, cache, params, "w", NUMPY, frozenset())
    np.testing.assert_allclose(dx, np.einsum("bto,oi->bti", dout, weight), rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(sparse_ops, "TILE", 40 * 5)  # the same from tiles of five rows
    np.testing.assert_allclose(kind.forward(x, params, "w", NUMPY)[0], y, rtol=1e-12)
    np.testing.assert_allclose(kind.backward(dout, cache, params, "w", NUMPY, frozenset())[0], dx, rtol=1e-9, atol=1e-9)
    assert grads == {} and kind_from_dict(kind.to_dict()) == kind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packing_changes_no_number(backend, architecture):
    pruned = prune.nm(model(architecture, backend))
    before = fingerprint(pruned)
    packed = sparse.pack(pruned)
    assert fingerprint(pruned) == before
    np.testing.assert_allclose(packed.logits(tokens()), pruned.logits(tokens()), rtol=1e-4, atol=1e-4)
    assert contents(sparse.unpack(packed)) == contents(pruned)
    assert fingerprint(sparse.pack(packed)) == fingerprint(packed)
    assert contents(prune.densify(packed)) == contents(prune.densify(pruned))


@pytest.mark.parametrize("dtype, bits", [("float32", 32), ("float16", 16)])
def test_bytes_are_those_of_mask_and_kept_weights(dtype, bits):
    """One bit a weight, `bits` a kept one, and eight bytes a row."""
    packed = sparse.pack(prune.nm(model()), dtype)
    rows = sum(packed.params[f"{name}.starts"].nbytes for name in sparse.report(packed))
    weights = sum(row["weights"] for row in sparse.report(packed).values())
    assert packed.nbytes()["linear"] == weights * (1 + bits / 2) / 8 + rows
    assert sum(row["resident_bytes"] for row in sparse.report(packed).values()) == packed.nbytes()["linear"]
    assert {row["density"] for row in sparse.report(packed).values()} == {0.5}


def test_generate_runs_on_the_engine():
    packed = sparse.pack(prune.magnitude(model(backend="c"), 0.6))
    assert Engine.why_not(packed) == ""
    assert Engine.why_not(sparse.unpack(packed)) == ""  # as a dense matrix with zeros


def test_lora_and_mezo_train_over_it():
    """The base is frozen, and a small step against the adapter's gradient lowers the loss by its slope."""
    adapted = with_random_adapters(lora.add(sparse.pack(prune.magnitude(model(), 0.5)), r=4, target="all"))
    loss, grads = adapted.loss_and_grads(tokens())
    assert set(grads) == adapted.trainable_names
    slope = sum(float(np.square(g.astype(np.float64)).sum()) for g in grads.values())
    scale = np.float32(0.05 / np.sqrt(slope))
    stepped = adapted.with_params({**adapted.params, **{n: adapted.params[n] - scale * g for n, g in grads.items()}})
    assert loss - stepped.loss(tokens()) == pytest.approx(slope * scale, rel=0.3)
    own = adapted.trainable()
    before = {n: a.copy() for n, a in own.params.items()}
    mezo.MeZO(lr=1e-3).step(own, tokens())
    assert {n for n, a in own.params.items() if a.tobytes() != before[n].tobytes()} == own.trainable_names


def test_merging_keeps_the_mask():
    packed = sparse.pack(prune.magnitude(model(), 0.5))
    with pytest.warns(UserWarning, match="merging into sparse weights"):
        merged = lora.merge(with_random_adapters(lora.add(packed, r=2)))
    assert merged.linears[Q] == packed.linears[Q]
    assert merged.params[f"{Q}.mask"].tobytes() == packed.params[f"{Q}.mask"].tobytes()
    assert merged.params[f"{Q}.values"].tobytes() != packed.params[f"{Q}.values"].tobytes()


@pytest.mark.parametrize("dtype", sparse.DTYPES)
def test_files_keep_every_bit_and_are_those_of_a_pruned_model(tmp_path, dtype):
    packed = sparse.pack(lora.add(prune.nm(model()), r=2), dtype)
    packed.save(tmp_path / "m")
    loaded = minedge.load(tmp_path / "m", backend="numpy")
    assert loaded.linears == packed.linears
    assert {n: a.tobytes() for n, a in loaded.params.items()} == {n: a.tobytes() for n, a in packed.params.items()}
    sparse.unpack(packed).save(tmp_path / "pruned", dtype=None)
    if dtype == "float32":
        same = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("m", "pruned")]
        assert same[0] == same[1]


def test_contradictory_storage_is_refused():
    weight = pruned_weight(5, 16)
    kind = Sparse(np.count_nonzero(weight))
    stored = kind.to_storage(kind.pack("w", weight, NUMPY), "w", NUMPY)
    for part, change in (("w.mask", lambda a: a | np.uint8(255)), ("w.values", lambda a: a[:-1])):
        with pytest.raises(ValueError, match="expected kept"):
            kind.from_storage({**stored, part: change(stored[part])}, "w", 5, 16, NUMPY)


def test_refusals():
    with pytest.raises(UsageError, match="no matrix of this model is pruned"):
        sparse.pack(model())
    with pytest.raises(UsageError, match="did you mean"):
        sparse.pack(prune.magnitude(model()), "float61")
    big = prune.magnitude(model(), 0.5)
    weight = big.params[f"{Q}.weight"] * np.float32(1e9)
    with pytest.raises(UsageError, match="beyond float16"):
        sparse.pack(big.with_params({**big.params, f"{Q}.weight": weight}), "float16")
    with pytest.raises(UsageError, match="unpack"):
        prune.magnitude(sparse.pack(big), 0.7)
    for data in ({"kept": -1}, {"kept": 1.5}, {"dtype": "int8"}, {"pattern": "4:2"}, {"more": 1}):
        with pytest.raises(MinedgeFormatError):
            kind_from_dict({"kind": "sparse", **data})
    with pytest.raises(UsageError, match="at most 64"):
        Sparse(65).shapes("w", 8, 8)
    with pytest.raises(UsageError, match="multiple of 8"):
        Sparse(5).shapes("w", 8, 12)
