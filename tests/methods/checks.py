"""The properties that the methods' papers state, as functions of the code under test.

The tests call them with the package's code; tests/mutants calls them with the same code with one bug planted in it, and
expects every bug to be found.
"""

from __future__ import annotations

import numpy as np

from minedge.gradcheck import check_backward
from tests.methods.common import NUMPY, UNIT, fingerprint, model, random_base, tokens

# --- LoRA -----------------------------------------------------------------------------------------------------------


def lora_is_its_equation(lora) -> None:
    """out = base(x) + (alpha / r) x A^T B^T, rsLoRA (alpha / sqrt(r)), by loops over float64 sums."""
    rng = np.random.default_rng(0)
    for r, alpha, rooted in [(1, 1.0, False), (3, 12.0, False), (4, 2.0, False), (4, 2.0, True)]:
        kind = lora.LoRA(r=r, lora_alpha=alpha, use_rslora=rooted)
        params = random_base(kind.base, 5, 7, rng)
        a_name, b_name = kind.names("w")
        A, B = params[a_name], params[b_name] = rng.normal(size=(r, 7)), rng.normal(size=(5, r))
        x = rng.normal(size=(2, 3, 7))
        out, _ = kind.forward(x, params, "w", NUMPY)
        W = params["w.weight"] + alpha / (np.sqrt(r) if rooted else r) * sum(np.outer(B[:, i], A[i]) for i in range(r))
        expected = np.einsum("bti,oi->bto", x, W)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(kind.dense(params, "w", NUMPY), W, rtol=1e-12, atol=1e-12)


def lora_backward_inverts_forward(lora, base) -> None:
    """Every gradient, by differences in float64; square matrices, so that swapped names would fit."""
    rng = np.random.default_rng(1)
    kind = lora.LoRA(base, r=32, lora_alpha=80.0)
    params = random_base(base, 32, 32, rng)
    frozen = {"w.qweight", "w.scales", "w.half", "w.mask", "w.absmax", "w.nested_absmax", "w.nested_offset"}
    names = [*kind.names("w"), *sorted(params.keys() - frozen)]
    arrays = [rng.normal(size=(32, 32)), rng.normal(size=(32, 32)), *(params[n] for n in names[2:])]
    wanted = frozenset(names)

    def forward(x, A, B, *weights):
        seen = {**params, **dict(zip(names, (A, B, *weights), strict=True))}
        out, cache = kind.forward(x, seen, "w", NUMPY)
        return out, (cache, seen)

    def backward(dout, cache):
        dx, grads = kind.backward(dout, cache[0], cache[1], "w", NUMPY, wanted)
        assert set(grads) == wanted
        return (dx, *(grads[n] for n in names))

    check_backward(forward, backward, [rng.normal(size=(2, 3, 32)), *arrays]).raise_if_wrong()


def lora_starts_as_the_base(lora) -> None:
    """B = 0: the logits are the base's bit for bit; A is as kaiming_uniform(a = sqrt 5) draws it, no two A alike."""
    base = model()
    before = fingerprint(base)
    adapted = lora.add(base, r=16, target="all", seed=3)
    assert adapted.logits(tokens()).tobytes() == base.logits(tokens()).tobytes()
    assert fingerprint(base) == before
    a = {name: array for name, array in adapted.params.items() if ".lora_A." in name}
    assert len({array.tobytes() for array in a.values()}) == len(a)
    for name, array in a.items():
        bound = 1 / np.sqrt(array.shape[1])
        assert np.abs(array).max() <= bound
        # uniform: standard deviation bound / sqrt 3; of n draws it varies by less than 1 / sqrt n of itself
        assert abs(array.std() * np.sqrt(3) / bound - 1) < 4 / np.sqrt(array.size), name


def lora_merged_equals_unmerged(lora) -> None:
    """Merged and unmerged products differ by rounding only.

    Either is a sum of at most n = in + r + 2 products, so each is within n u (|x| |W|^T + s |x| |A|^T |B|^T) of the
    exact value (u the unit of float32; Higham, Accuracy and Stability, 3.5), and the two within twice that.
    """
    rng = np.random.default_rng(4)
    for r, alpha, out, width in [(1, 8, 9, 33), (8, 4, 64, 96), (3, 30, 40, 20)]:
        kind = lora.LoRA(r=r, lora_alpha=alpha)
        params = random_base(kind.base, out, width, rng, dtype=np.float32)
        for name, (shape, _) in kind.shapes("w", out, width).items():
            params.setdefault(name, rng.normal(size=shape).astype(np.float32))
        A, B = (params[name].astype(np.float64) for name in kind.names("w"))
        x = rng.normal(size=(6, width)).astype(np.float32)
        unmerged, _ = kind.forward(x, params, "w", NUMPY)
        merged, _ = NUMPY.linear_forward(x, kind.dense(params, "w", NUMPY))
        size = np.abs(x) @ (np.abs(params["w.weight"]).T + alpha / r * np.abs(A).T @ np.abs(B).T)
        assert (np.abs(merged - unmerged) <= 2 * (width + r + 2) * UNIT * size).all()


def lora_inactive_is_not_merged(lora) -> None:
    base = model()
    adapted = lora.add(base, r=2, adapter="off")
    params = {n: a + np.float32(0.1) if n in adapted.trainable_names else a for n, a in adapted.params.items()}
    adapted = lora.set_active(adapted.with_params(params), False)
    merged = lora.merge(lora.add(adapted, r=2, adapter="on"))
    for name in base.params:
        np.testing.assert_array_equal(merged.params[name], base.params[name])
    assert "model.layers.0.self_attn.q_proj.lora_A.off.weight" in merged.params


# --- pruning --------------------------------------------------------------------------------------------------------


def prune_count_is_exact(prune) -> None:
    """round(sparsity n) weights go: those of smallest magnitude, among equals those of lowest index, as a sort says."""
    rng = np.random.default_rng(6)
    base = model(n_layer=1)
    names = [name for name in base.linears if "layers" in name]
    for draw in ("distinct", "ties", "equal"):
        for sparsity in (0, 0.003, 0.25, 0.5, 2 / 3, 0.9999):
            params = dict(base.params)
            for name in names:
                shape = params[f"{name}.weight"].shape
                values = {
                    "distinct": rng.normal(size=shape),
                    "ties": rng.integers(-3, 4, shape),
                    "equal": np.full(shape, -0.5),
                }[draw]
                params[f"{name}.weight"] = values.astype(np.float32)
            full = base.with_params(params)
            for scope in ("layer", "global"):
                pruned = prune.magnitude(full, sparsity, scope)
                groups = [names] if scope == "global" else [[name] for name in names]
                for group in groups:
                    weights = np.concatenate([params[f"{name}.weight"].ravel() for name in group])
                    kept = np.concatenate([bits(pruned, name) for name in group])
                    order = sorted(range(weights.size), key=lambda i: (abs(weights[i]), i))
                    expected = np.ones(weights.size, bool)
                    expected[order[: round(sparsity * weights.size)]] = False
                    np.testing.assert_array_equal(kept, expected)
                again = prune.magnitude(pruned, sparsity, scope)
                assert fingerprint(again) == fingerprint(pruned)


def prune_nm_holds_in_every_group(prune) -> None:
    base = model(n_layer=1)
    for n, m in [(2, 4), (1, 2), (1, 4), (4, 8), (7, 8)]:
        pruned = prune.nm(base, n, m)
        for name in (name for name in base.linears if "layers" in name):
            weight = np.abs(base.params[f"{name}.weight"])
            kept = bits(pruned, name).reshape(-1, m)
            assert (kept.sum(axis=1) == n).all()
            groups = weight.reshape(-1, m)
            smallest_kept = np.where(kept, groups, np.inf).min(axis=1)
            largest_gone = np.where(kept, -np.inf, groups).max(axis=1)
            assert (smallest_kept >= largest_gone).all()
        assert fingerprint(prune.nm(pruned, n, m)) == fingerprint(pruned)


def prune_equals_zeroed_weights(prune) -> None:
    """Whatever stands under the mask, a trained or a perturbed value, the product and the gradient do not see it."""
    rng = np.random.default_rng(7)
    kind = prune.Masked()
    params = random_base(kind, 6, 9, rng)
    keep = np.unpackbits(params["w.mask"], count=54, bitorder="little").reshape(6, 9).astype(bool)
    assert 0 < keep.sum() < 54
    clean = params["w.weight"] * keep
    dirty = {**params, "w.weight": clean + ~keep * rng.normal(size=(6, 9))}
    x, dout = rng.normal(size=(4, 9)), rng.normal(size=(4, 6))
    out, cache = kind.forward(x, dirty, "w", NUMPY)
    np.testing.assert_allclose(out, np.einsum("ni,oi->no", x, clean), rtol=1e-12, atol=1e-12)
    dx, grads = kind.backward(dout, cache, dirty, "w", NUMPY, frozenset({"w.weight"}))
    np.testing.assert_allclose(dx, np.einsum("no,oi->ni", dout, clean), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grads["w.weight"], np.einsum("no,ni->oi", dout, x) * keep, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(kind.dense(dirty, "w", NUMPY), clean)
    trained = {**dirty, "w.weight": dirty["w.weight"].copy()}
    kind.constrain_(trained, "w", NUMPY)
    np.testing.assert_array_equal(trained["w.weight"], clean)


def bits(m, name: str) -> np.ndarray:
    """A pruned matrix's mask, flat; all True where there is none."""
    size = m.params[f"{name}.weight"].size
    return np.unpackbits(m.params[f"{name}.mask"], count=size, bitorder="little").astype(bool)


# --- int4 -----------------------------------------------------------------------------------------------------------


def int4_bytes_are_ggml_q4_0(int4_ops, blocks: int = 100_000) -> None:
    """Byte for byte what the gguf package makes, once scale and codes of each block of 32 stand next to each other."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rng = np.random.default_rng(11)
    weight = rng.normal(size=(blocks // 100, 3200)) * np.exp(rng.normal(0, 3, (blocks // 100, 1)))
    weight = weight.astype(np.float32)
    # Half of them as bfloat16 has them, as real checkpoints do: only on such a coarse grid does w / d fall on the edge
    # between two codes, where multiplying by 1 / d in float32 and dividing come out differently.
    coarse = weight[: len(weight) // 2].view(np.uint32)
    coarse &= np.uint32(0xFFFF0000)
    weight[:7, :320] = np.round(weight[:7, :320])  # ties and zeros
    weight[5], weight[6, 32:64] = 0, 0.25
    qweight, scales = int4_ops.int4_quantize(weight, 32)
    ours = np.concatenate([scales.reshape(-1, 1).view(np.uint8), qweight.reshape(-1, 16)], axis=1)
    theirs = quantize(weight, GGMLQuantizationType.Q4_0).reshape(-1, 18)
    np.testing.assert_array_equal(ours, theirs)


def int4_every_byte_round_trips(int4_ops) -> None:
    """Byte j of a block holds column j low and column j + 16 high; every byte in every place survives a round trip.

    A group that holds code 0 has -8 d as its largest magnitude, so quantizing what was dequantized finds the same d.
    """
    for group_size in (32, 64, 128):
        blocks = group_size // 32
        for place in range(15):
            qweight = np.zeros((256, blocks * 16), np.uint8)
            qweight[:, place] = np.arange(256)
            scales = np.full((256, 1), -0.375, np.float16)
            weight = int4_ops.int4_dequantize(qweight, scales, group_size)
            expected = np.full((256, group_size), -0.375 * -8)
            expected[:, place] = -0.375 * (np.arange(256) % 16 - 8.0)
            expected[:, place + 16] = -0.375 * (np.arange(256) // 16 - 8.0)
            np.testing.assert_array_equal(weight, expected)
            again, scales_again = int4_ops.int4_quantize(weight, group_size)
            np.testing.assert_array_equal(again, qweight)
            np.testing.assert_array_equal(scales_again, scales)


def int4_error_is_bounded(int4_ops, weight: np.ndarray, group_size: int) -> None:
    """|w - read| <= |d|/2 where w/d <= 7.5, else |d|; plus |code - 8| |f16(d) - d|. All in float64, with d = m / -8."""
    qweight, scales = int4_ops.int4_quantize(weight, group_size)
    read = int4_ops.int4_dequantize(qweight, scales, group_size).astype(np.float64)
    groups = weight.astype(np.float64).reshape(len(weight), -1, group_size)
    where = np.abs(groups).argmax(-1)[..., None]
    d = np.take_along_axis(groups, where, -1) / -8
    d16 = scales.astype(np.float64)[..., None]
    # w/d in 7.5 .. 8 clips to 7: half a step and the rest; float32 rounding of w/d + 8.5 moves an edge by 16.5 units
    ratio = np.divide(groups, d, out=np.zeros_like(groups), where=d != 0)
    slack = 4 * 16.5 * UNIT * np.abs(d)
    bound = np.where(ratio <= 7.5, np.abs(d) / 2, np.abs(d)) + 8 * np.abs(d16 - d) + slack
    assert (np.abs(read.reshape(groups.shape) - groups) <= bound).all()
