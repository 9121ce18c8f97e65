"""NF4: the paper's codes and sizes, every verb over it, QLoRA training, files."""

from __future__ import annotations

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, quant
from minedge.compress import nf4
from minedge.compress.nf4 import NF4, constant_bits
from minedge.errors import MinedgeFormatError, UsageError
from minedge.model.linears import kind_from_dict
from minedge.ops import get
from tests.methods import checks, nf4_checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"


def wide(architecture="llama", backend="numpy", **changes):
    """A model whose every width is a multiple of 64."""
    return model(architecture, backend, n_inner=128, **changes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_vectors(backend):
    nf4_checks.nf4_golden_vectors(get(backend))


def test_kind_is_the_papers():
    nf4_checks.nf4_kind_is_the_paper(nf4)


def test_double_quantized_constants_take_0_127_bits():
    """QLoRA, sec. 3: 8/64 + 32/(64 * 256) = 0.127 bits a weight, instead of 32/64 = 0.5; here from real buffers."""
    m = minedge.init(minedge.Config(vocab_size=256, n_layer=1, n_embd=512, n_head=8, n_inner=2048, context_length=16))
    small, plain = quant.nf4(m, embeddings=True), quant.nf4(m, double_quant=False, embeddings=True)
    assert constant_bits(plain) == 0.5
    assert constant_bits(small) == pytest.approx(0.126953125, abs=5e-4)
    weights = sum(2 * a.size for n, a in small.params.items() if n.endswith(".qweight"))
    rest = sum(a.nbytes for n, a in small.params.items() if n.endswith(".nested_offset"))
    assert (constant_bits(small) * weights / 8 - rest) * 8 / weights == 0.126953125


def test_values_are_used_alike_where_int4s_are_not():
    """Sec. 3: of normal weights each of NF4's values takes a like share, so its codes carry more of their 4 bits, and
    with blocks of one size its error is smaller.
    """
    weight = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)

    def bits(codes):
        share = np.bincount(codes.ravel(), minlength=16) / codes.size
        return -(share * np.log2(np.where(share, share, 1))).sum()

    (q, absmax), (q4, scales) = NUMPY.nf4_quantize(weight, 64), NUMPY.int4_quantize(weight, 64)
    assert bits(np.stack([q >> 4, q & 15])) > 3.85 > 3.75 > bits(np.stack([q4 >> 4, q4 & 15]))
    nf4_error = np.square(weight - NUMPY.nf4_dequantize(q, absmax, 64)).mean()
    assert nf4_error < 0.95 * np.square(weight - NUMPY.int4_dequantize(q4, scales, 64)).mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_model(backend, architecture):
    m = wide(architecture, backend)
    before = fingerprint(m)
    packed = quant.nf4(m)
    assert fingerprint(m) == before
    embed = m.config.arch.embed
    assert {n for n, k in packed.linears.items() if k != NF4()} == {embed}
    dense = m.with_params(
        {
            **m.params,
            **{f"{n}.weight": k.dense(packed.params, n, NUMPY) for n, k in packed.linears.items() if n != embed},
        }
    )
    np.testing.assert_allclose(packed.logits(tokens()), dense.logits(tokens()), rtol=1e-4, atol=1e-4)
    numpy_packed = quant.nf4(wide(architecture))
    for name, array in numpy_packed.params.items():
        np.testing.assert_array_equal(array, packed.params[name])
    with pytest.raises(UsageError, match="quantized already"):
        quant.nf4(packed)
    all_packed = quant.nf4(m, embeddings=True)
    assert all_packed.nbytes()["embedding"] < 0.2 * m.nbytes()["embedding"] + 2000
    assert np.isfinite(all_packed.loss(tokens()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_more_than_one_tile(backend):
    """Wider than what is dense at a time, and not a multiple of it."""
    from minedge.ops.numpy_ops.nf4 import TILE

    rng, ops = np.random.default_rng(0), get(backend)
    out, width = TILE // 512 + 37, 512
    q = rng.integers(0, 256, (out, width // 2), dtype=np.uint8)
    a = rng.random((out, width // 64), dtype=np.float32) / 16
    x, dout = rng.normal(size=(2, 3, width)).astype(np.float32), rng.normal(size=(2, 3, out)).astype(np.float32)
    W = NUMPY.nf4_dequantize(q, a, 64).astype(np.float64)
    y, cache = ops.nf4_linear_forward(x, q, a, 64)
    np.testing.assert_allclose(y, x @ W.T, atol=1e-4)
    np.testing.assert_allclose(ops.nf4_linear_backward(dout, cache), dout @ W, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_qlora_trains(backend):
    """A frozen NF4 base, gradients of the adapter by differences, and a loss that falls."""
    packed = quant.nf4(wide(backend=backend))
    adapted = with_random_adapters(lora.add(packed, r=4, target="all"))
    loss, grads = adapted.loss_and_grads(tokens())
    assert set(grads) == adapted.trainable_names
    scale = 0.05 / np.sqrt(sum(float(np.square(g).sum()) for g in grads.values()))
    stepped = adapted.with_params(
        {**adapted.params, **{n: adapted.params[n] - np.float32(scale) * g for n, g in grads.items()}}
    )
    slope = sum(float(np.square(g.astype(np.float64)).sum()) for g in grads.values()) * scale
    assert stepped.loss(tokens()) < loss and loss - stepped.loss(tokens()) == pytest.approx(slope, rel=0.3)
    assert all(n not in adapted.trainable_names for n in packed.params)


def test_gradients_by_differences():
    checks.lora_backward_inverts_forward(lora, NF4(32))


def test_mezo_over_it():
    adapted = lora.add(quant.nf4(wide()), r=2).trainable()
    before = {n: a.copy() for n, a in adapted.params.items()}
    mezo.MeZO(lr=1e-3).step(adapted, tokens())
    assert {n for n, a in adapted.params.items() if a.tobytes() != before[n].tobytes()} == adapted.trainable_names


def test_adapters_stay_on_top_and_pruned_weights_stay_zero():
    adapted = with_random_adapters(lora.add(prune.magnitude(wide(), 0.5), r=2))
    packed = quant.nf4(adapted)
    assert packed.linears[Q].base == NF4()
    weight = packed.linears[Q].base.dense(packed.params, Q, NUMPY)
    assert not weight[adapted.params[f"{Q}.weight"] == 0].any()
    assert np.abs(packed.logits(tokens()) - adapted.logits(tokens())).max() < 5


def test_merging_says_what_it_costs():
    adapted = with_random_adapters(lora.add(quant.nf4(wide()), r=2))
    with pytest.warns(UserWarning, match=r"merging into nf4 weights loses up to \d+%"):
        merged = lora.merge(adapted)
    assert merged.linears[Q] == NF4() and lora.merge_error(adapted) > 0


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("double", [True, False])
def test_saved_and_loaded(tmp_path, dtype, double):
    """Every bit of codes and scales, also where the rest of the file is in float16."""
    packed = quant.nf4(wide(), double_quant=double, embeddings=True)
    packed.save(tmp_path / "m", dtype=dtype)
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert again.linears == packed.linears
    for name in packed.params:
        if dtype is None or any(part in name for part in ("qweight", "absmax", "nested")):
            assert again.params[name].tobytes() == packed.params[name].tobytes(), name
    lora.save_adapter(lora.add(packed, r=2), tmp_path / "a")
    if dtype is None:
        assert lora.load_adapter(again, tmp_path / "a").linears[Q].base == NF4(64, double)


def test_widths_that_do_not_fit():
    with pytest.warns(UserWarning, match=r"block_size 64 does not divide width 96 of .*down_proj: left as they are"):
        packed = quant.nf4(model())
    assert packed.linears["model.layers.0.mlp.down_proj"].kind == "dense" and packed.linears[Q] == NF4()
    with pytest.raises(UsageError, match="choose another, or leave strict off"):
        quant.nf4(model(), strict=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"block_size": 48}, "block_size: expected 32, 64"),
        ({"block_size": 64.0}, "block_size"),
        ({"double_quant": 1}, "double_quant"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        quant.nf4(wide(), **arguments)
    with pytest.raises(MinedgeFormatError):
        kind_from_dict({**NF4().to_dict(), **arguments})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad):
    m = wide()
    weight = m.params[f"{Q}.weight"].copy()
    weight[3, 5] = bad
    with pytest.raises(UsageError, match="not finite"):
        quant.nf4(m.with_params({**m.params, f"{Q}.weight": weight}))


def test_kind_as_json():
    assert kind_from_dict(NF4(128, False).to_dict()) == NF4(128, False)
