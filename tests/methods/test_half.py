"""Float16 and BFloat16: rounding errors, products, every verb over them, LoRA training, files."""

from __future__ import annotations

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, quant
from minedge.compress.half import BFloat16, Float16
from minedge.errors import UsageError
from minedge.model.linears import kind_from_dict
from minedge.ops.numpy_ops import half as half_ops
from tests.methods import checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"
KINDS = {"float16": (Float16(), 11, 2.0**-25), "bfloat16": (BFloat16(), 8, 2.0**-134)}
pytestmark = pytest.mark.parametrize("dtype", KINDS)


def test_kind_is_its_equations(dtype, monkeypatch):
    kind, bits, smallest = KINDS[dtype]
    rng = np.random.default_rng(4)
    weight = (rng.normal(size=(37, 41)) * np.exp(rng.normal(0, 4, (37, 1)))).astype(np.float32)
    params = kind.pack("w", weight, NUMPY)
    assert {k: (a.shape, str(a.dtype)) for k, a in params.items()} == kind.shapes("w", 37, 41)
    assert sum(a.nbytes for a in params.values()) == 2 * weight.size
    read = kind.dense(params, "w", NUMPY)
    assert (np.abs(read - weight) <= np.abs(weight) * 2.0**-bits + smallest).all()
    assert kind.pack("w", read, NUMPY)["w.half"].tobytes() == params["w.half"].tobytes()
    ids = np.array([[3, 0], [36, 3]])
    np.testing.assert_array_equal(kind.rows(ids, params, "w", NUMPY), read[ids])
    x, dout = rng.normal(size=(2, 3, 41)), rng.normal(size=(2, 3, 37))
    y, cache = kind.forward(x, params, "w", NUMPY)
    np.testing.assert_allclose(y, np.einsum("bti,oi->bto", x, read), rtol=1e-9, atol=1e-9)
    dx, grads = kind.backward(dout, cache, params, "w", NUMPY, frozenset())
    np.testing.assert_allclose(dx, np.einsum("bto,oi->bti", dout, read), rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(half_ops, "TILE", 41 * 5)  # the same from tiles of five rows
    np.testing.assert_allclose(kind.forward(x, params, "w", NUMPY)[0], y, rtol=1e-12)
    np.testing.assert_allclose(kind.backward(dout, cache, params, "w", NUMPY, frozenset())[0], dx, rtol=1e-9, atol=1e-9)
    assert grads == {} and kind_from_dict(kind.to_dict()) == kind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_model(backend, architecture, dtype):
    m = model(architecture, backend)
    before = fingerprint(m)
    packed = quant.half(m, dtype)
    assert fingerprint(m) == before
    assert set(packed.linears.values()) == {KINDS[dtype][0]}
    for part in ("embedding", "linear"):
        assert 2 * packed.nbytes()[part] == m.nbytes()[part]
    dense = quant.dequantize(packed)
    np.testing.assert_allclose(packed.logits(tokens()), dense.logits(tokens()), rtol=1e-4, atol=1e-4)
    assert fingerprint(quant.half(packed, dtype)) == fingerprint(packed)
    kept = quant.half(m, dtype, embeddings=False)
    assert kept.linears[m.config.arch.embed].kind == "dense"


def test_lora_and_mezo_train_over_it(dtype):
    """The base is frozen, and a small step against the adapter's gradient lowers the loss by its slope."""
    adapted = with_random_adapters(lora.add(quant.half(model(), dtype), r=4, target="all"))
    loss, grads = adapted.loss_and_grads(tokens())
    assert set(grads) == adapted.trainable_names
    slope = sum(float(np.square(g.astype(np.float64)).sum()) for g in grads.values())
    scale = np.float32(0.05 / np.sqrt(slope))
    stepped = adapted.with_params({**adapted.params, **{n: adapted.params[n] - scale * g for n, g in grads.items()}})
    assert loss - stepped.loss(tokens()) == pytest.approx(slope * scale, rel=0.3)
    checks.lora_backward_inverts_forward(lora, KINDS[dtype][0])
    own = adapted.trainable()
    before = {n: a.copy() for n, a in own.params.items()}
    mezo.MeZO(lr=1e-3).step(own, tokens())
    assert {n for n, a in own.params.items() if a.tobytes() != before[n].tobytes()} == own.trainable_names


def test_pruned_weights_stay_zero_and_files_keep_every_bit(dtype, tmp_path):
    packed = quant.half(lora.add(prune.magnitude(model(), 0.5), r=2), dtype)
    read = packed.linears[Q].base.dense(packed.params, Q, packed.ops)
    assert np.count_nonzero(read) <= read.size / 2
    packed.save(tmp_path / "m")
    loaded = minedge.load(tmp_path / "m")
    assert loaded.linears == packed.linears
    assert {n: a.tobytes() for n, a in loaded.params.items()} == {n: a.tobytes() for n, a in packed.params.items()}


def test_refusals(dtype):
    with pytest.raises(UsageError, match="did you mean"):
        quant.half(model(), dtype.replace("1", "l"))
    m = model()
    weight = m.params[f"{Q}.weight"].copy()
    weight[0, 0] = 1e5 if dtype == "float16" else np.inf
    with pytest.raises(UsageError, match="beyond"):
        quant.half(m.with_params({**m.params, f"{Q}.weight": weight}), dtype)
