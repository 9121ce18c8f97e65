"""Pruning: exact counts, patterns, masks that survive training, files that shrink."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, quant
from minedge.compress.prune import Masked
from minedge.errors import MinedgeFormatError, UsageError
from minedge.gradcheck import check_backward
from minedge.model.linears import Dense, kind_from_dict
from minedge.ops import get
from tests.methods import checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, random_base, tokens

LAYERS = [name for name in model().linears if "layers" in name]


def test_count_is_exact_under_ties_and_pruning_is_idempotent():
    checks.prune_count_is_exact(prune)


def test_nm_holds_in_every_group():
    checks.prune_nm_holds_in_every_group(prune)


def test_neither_product_nor_gradient_sees_what_is_under_the_mask():
    checks.prune_equals_zeroed_weights(prune)


def test_gradients_by_differences():
    rng = np.random.default_rng(0)
    kind = Masked()
    params = random_base(kind, 7, 11, rng)

    def forward(x, weight):
        seen = {**params, "w.weight": weight}
        out, cache = kind.forward(x, seen, "w", NUMPY)
        return out, (cache, seen)

    def backward(dout, cache):
        dx, grads = kind.backward(dout, *cache, "w", NUMPY, frozenset({"w.weight"}))
        return dx, grads["w.weight"]

    check_backward(forward, backward, [rng.normal(size=(2, 3, 11)), params["w.weight"]]).raise_if_wrong()


def test_pruned_embedding_passes_gradients_to_kept_rows_only():
    rng = np.random.default_rng(1)
    kind, ids = Masked(), np.array([[1, 4, 1], [0, 2, 4]])
    params = random_base(kind, 6, 5, rng)

    def forward(weight):
        seen = {**params, "w.weight": weight}
        return kind.rows(ids, seen, "w", NUMPY), seen

    def backward(dout, seen):
        return kind.rows_backward(dout, ids, seen, "w", NUMPY, frozenset({"w.weight"}))["w.weight"]

    check_backward(forward, backward, [params["w.weight"]]).raise_if_wrong()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("verb", ["layer", "global", "nm"])
def test_pruned_model_is_the_model_with_zeros(backend, verb):
    base = model(backend=backend)
    before = fingerprint(base)
    pruned = prune.nm(base) if verb == "nm" else prune.magnitude(base, 0.5, verb)
    assert fingerprint(base) == before
    zeroed = {f"{n}.weight": base.params[f"{n}.weight"] * mask(pruned, n) for n in LAYERS}
    for name, weight in zeroed.items():
        np.testing.assert_array_equal(pruned.params[name], weight)
    dense = base.with_params({**base.params, **zeroed})
    assert pruned.logits(tokens()).tobytes() == dense.logits(tokens()).tobytes()
    assert prune.densify(pruned).logits(tokens()).tobytes() == dense.logits(tokens()).tobytes()
    assert np.shares_memory(pruned.params["model.embed_tokens.weight"], base.params["model.embed_tokens.weight"])


def test_global_takes_more_where_weights_are_small():
    base = model()
    small, large = (f"model.layers.0.mlp.{role}_proj" for role in ("up", "gate"))
    params = {**base.params, f"{small}.weight": base.params[f"{small}.weight"] * np.float32(0.01)}
    rows = prune.report(prune.magnitude(base.with_params(params), 0.3, "global"))
    assert rows[small]["density"] < 0.02 < 0.5 < rows[large]["density"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("over", ["weights", "adapter"])
@pytest.mark.parametrize("how", ["adamw", "mezo"])
def test_masks_survive_training(backend, over, how):
    """Decay, momentum and MeZO's noise would write under the mask: it stays exactly zero, and what is kept moves."""
    base = prune.magnitude(model(backend=backend), 0.5)
    trained = (base if over == "weights" else lora.add(base, r=2, target="all")).trainable()
    moments = {n: (np.zeros_like(trained.params[n]), np.zeros_like(trained.params[n])) for n in trained.trainable_names}
    mezo_step = mezo.MeZO(lr=1e-3, eps=1e-3, weight_decay=0.1)
    for step in range(1, 4):
        if how == "mezo":
            mezo_step.step(trained, tokens())
            continue
        _, grads = trained.loss_and_grads(tokens())
        for name, grad in grads.items():
            trained.ops.adamw_(trained.params[name], grad, *moments[name], 1e-2, 0.9, 0.999, 1e-8, 0.1, step)
        for name, kind in trained.linears.items():
            kind.constrain_(trained.params, name, trained.ops)
    for name in LAYERS:
        weight, kept = trained.params[f"{name}.weight"], mask(base, name)
        assert not weight[~kept].any()
        assert trained.params[f"{name}.mask"].tobytes() == base.params[f"{name}.mask"].tobytes()
        moved = weight[kept] != base.params[f"{name}.weight"][kept]
        assert moved.mean() > 0.9 if over == "weights" else not moved.any()


def test_adapter_on_a_pruned_base_is_dense():
    adapted = prune.magnitude(lora.add(model(), r=2), 0.5)
    kind = adapted.linears["model.layers.0.self_attn.q_proj"]
    assert kind == lora.LoRA(Masked(Dense()), r=2)
    assert adapted.trainable_names == lora.add(model(), r=2).trainable_names
    opened = prune.densify(adapted)
    assert opened.linears["model.layers.0.self_attn.q_proj"] == lora.LoRA(Dense(), r=2)
    assert not any(name.endswith(".mask") for name in opened.params)


@pytest.mark.parametrize("dtype, limit", [(np.float16, 0.57), (np.float32, 0.54)])
def test_packed_form_is_smaller(dtype, limit):
    base = model()
    pruned = prune.magnitude(base, 0.5)
    dense = stored = 0
    for name in LAYERS:
        params = {k: v.astype(dtype) if k.endswith(".weight") else v for k, v in pruned.params.items()}
        tensors = pruned.linears[name].to_storage(params, name, NUMPY)
        assert set(tensors) == {f"{name}.mask", f"{name}.values"}
        dense += base.params[f"{name}.weight"].size * np.dtype(dtype).itemsize
        stored += sum(array.nbytes for array in tensors.values())
    assert stored / dense <= limit
    rows = prune.report(pruned)
    if dtype == np.float32:
        assert sum(row["stored_bytes"] for row in rows.values()) == stored
    assert sum(row["resident_bytes"] for row in rows.values()) == pruned.nbytes()["linear"] > dense * 0.99


@pytest.mark.parametrize("verb", ["magnitude", "nm", "lora"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_saved_and_loaded(tmp_path, verb, dtype):
    base = model()
    pruned = prune.nm(base) if verb == "nm" else prune.magnitude(base, 0.5)
    if verb == "lora":
        pruned = lora.add(pruned, r=2)
    pruned.save(tmp_path / "m", dtype=dtype)
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert again.linears == pruned.linears
    for name in LAYERS:
        assert again.params[f"{name}.mask"].tobytes() == pruned.params[f"{name}.mask"].tobytes()
    if dtype is None:
        assert again.logits(tokens()).tobytes() == pruned.logits(tokens()).tobytes()
    base.save(tmp_path / "dense", dtype=dtype)
    smaller = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert smaller < (tmp_path / "dense" / "model.safetensors").stat().st_size


def test_contradictory_storage_is_refused():
    kind, weight = Masked(), np.ones((3, 3), np.float32)
    weight[1] = 0
    params = kind.pack("w", weight, NUMPY)
    stored = kind.to_storage(params, "w", NUMPY)
    back = kind.from_storage(stored, "w", 3, 3, NUMPY)
    assert {k: v.tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in params.items()}
    tail = stored["w.mask"].copy()
    tail[-1] |= 0x80  # a bit beyond the ninth weight
    with pytest.raises(ValueError, match="beyond 9 weights"):
        kind.from_storage({**stored, "w.mask": tail}, "w", 3, 3, NUMPY)
    with pytest.raises(ValueError, match="kept weights"):
        kind.from_storage({**stored, "w.values": stored["w.values"][:-1]}, "w", 3, 3, NUMPY)


def test_no_weights_removed_at_sparsity_zero():
    base = model()
    pruned = prune.magnitude(base, 0)
    assert all(row["density"] == 1 for row in prune.report(pruned).values())
    assert pruned.logits(tokens()).tobytes() == base.logits(tokens()).tobytes()


def test_names_choose_the_matrices():
    pruned = prune.magnitude(model(), 0.5, names=["q_proj", "model.layers.1.mlp.up_proj"])
    expected = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    assert list(prune.report(pruned)) == expected
    tied = prune.magnitude(model(), 0.5, names="embed_tokens")
    assert list(prune.report(tied)) == ["model.embed_tokens"]
    assert np.isfinite(tied.loss(tokens()))


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 2, float("nan"), "0.5", None, True])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(UsageError, match="sparsity: expected a number in"):
        prune.magnitude(model(), sparsity)


def test_other_bad_arguments():
    base = model()
    with pytest.raises(UsageError, match='scope: expected "layer" or "global"'):
        prune.magnitude(base, 0.5, scope="row")
    with pytest.raises(UsageError, match=r"no matrix .* called 'q_prj' \(did you mean 'q_proj'\?\)"):
        prune.magnitude(base, 0.5, names="q_prj")
    for n, m in [(0, 4), (4, 4), (5, 4), (2, 0), (-1, 4)]:
        with pytest.raises(UsageError, match="expected n:m"):
            prune.nm(base, n, m)
    with pytest.raises(UsageError, match="does not divide the width 64"):
        prune.nm(base, 2, 5)
    with pytest.raises(UsageError, match="prune before quantizing"):
        prune.magnitude(quant.int4(base), 0.5)
    bad = base.params["model.layers.0.mlp.up_proj.weight"].copy()
    bad[0, 0] = np.nan
    with pytest.raises(UsageError, match="finite"):
        prune.magnitude(base.with_params({**base.params, "model.layers.0.mlp.up_proj.weight": bad}), 0.5)


def test_kinds_a_file_may_not_name():
    assert kind_from_dict(Masked(pattern="2:4").to_dict()) == Masked(pattern="2:4")
    for data in (
        {"kind": "masked", "base": {"kind": "int4", "group_size": 32}},
        {"kind": "masked", "base": {"kind": "masked", "base": {"kind": "dense"}}},
        {"kind": "masked", "base": 3},
        {"kind": "masked", "pattern": "4:2"},
        {"kind": "masked", "pattern": ["2:4"]},
    ):
        with pytest.raises(MinedgeFormatError):
            kind_from_dict(data)


def test_perturbed_weights_stay_pruned():
    """MeZO's view perturbs every weight; the loss is that of the perturbed kept weights over zeros."""
    from minedge.model.noise import Noise, Perturbed

    pruned = prune.magnitude(model(), 0.5)
    noise = Noise(seed=3, step=1, eps=0.05, names=frozenset(f"{n}.weight" for n in LAYERS))
    seen = Perturbed(pruned.params, noise, get("numpy"))
    weights = {f"{n}.weight": seen[f"{n}.weight"] * mask(pruned, n) for n in LAYERS}
    moved = replace(prune.densify(pruned), params={**prune.densify(pruned).params, **weights})
    assert pruned.loss(tokens(), noise=noise) == moved.loss(tokens())


def mask(m, name: str) -> np.ndarray:
    return checks.bits(m, name).reshape(m.params[f"{name}.weight"].shape)


def test_a_looser_pruning_is_refused():
    """Its mask would count weights as kept that are zeros: nothing comes back, and reports would say it had."""
    pruned = prune.magnitude(model(), 0.75)
    says = "the model is pruned further already: of .* would keep .*; remove a share of 0.75 or more"
    for name, looser in (
        ("sparsity", lambda: prune.magnitude(pruned, 0.5)),
        ("sparsity", lambda: prune.magnitude(pruned, 0.5, "global")),
        ("sparsity", lambda: prune.magnitude(pruned, 0)),
        ("n", lambda: prune.nm(pruned, 2, 4)),
        ("sparsity", lambda: prune.magnitude(lora.add(pruned, r=2), 0.5)),
    ):
        with pytest.raises(UsageError, match=f"^{name}: {says}"):
            looser()
    kept = {name: row["kept"] for name, row in prune.report(pruned).items()}
    for same in (prune.magnitude(pruned, 0.75), prune.nm(pruned, 1, 4), prune.magnitude(prune.nm(model()), 0.5)):
        assert all(row["kept"] >= kept[name] for name, row in prune.report(same).items())
    some = prune.magnitude(model(), 0.75, names="q_proj")
    assert prune.magnitude(some, 0.5, names="v_proj").linears.keys() == pruned.linears.keys()
    assert prune.magnitude(prune.densify(pruned), 0.5).n_params() == pruned.n_params()
