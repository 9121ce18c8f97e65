"""Bugs planted in the methods, one at a time: the checks of tests/methods find every one.

A mutant is a module's source with one line changed, run as a module of its own. A mutant whose line is no longer there
fails, so the list cannot go stale in silence.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from minedge.compress import int4, int8, nf4, packing, prune
from minedge.finetune import dora, lora, lora_several
from minedge.model import linears, pieces, speculative
from minedge.model.linears import Dense
from minedge.ops.numpy_ops import int4 as int4_ops
from minedge.ops.numpy_ops import nf4 as nf4_ops
from minedge.ops.numpy_ops import q8 as q8_ops
from tests.methods import checks, dora_checks, int8_checks, nf4_checks, pack_checks, several_checks
from tests.model import pieces_checks, speculative_checks
from tests.mutants.planting import mutated_module


def gradients(module):
    checks.lora_backward_inverts_forward(module, Dense())


def dora_equation(module):
    dora_checks.dora_is_its_equation(module, Dense())


def dora_gradients(module):
    dora_checks.dora_backward_inverts_forward(module, Dense())


def dora_over_lora_gradients(module):
    dora_checks.dora_backward_inverts_forward(module, lora.LoRA(Dense(), r=2, adapter="inner"))


def stacking(module):
    """lora.py's verbs with lora_several's `stack` replaced."""
    several_checks.stacking_is_exact(SimpleNamespace(add=lora.add, stack=module.stack))


def packing_while_reading(module):
    with tempfile.TemporaryDirectory() as folder:
        pack_checks.packs_as_the_verb_does(module, Path(folder))


def error_bound(module):
    import numpy as np

    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    checks.int4_error_is_bounded(module, weight, 32)


# name: module, what stands there, what the mutant has instead, the checks of which one at least must fail
MUTANTS = {
    "every tile in the first one's place": (
        packing, "made[key][part if kind.by_rows else ...] = array", "made[key][: len(array)] = array",
        [packing_while_reading]),
    "the embedding left out": (
        packing, "name == config.arch.embed and not embeddings", "name == config.arch.embed", [packing_while_reading]),
    "alpha not divided by r": (
        lora, "else self.lora_alpha / self.r", "else self.lora_alpha", [checks.lora_is_its_equation]),
    "B starts away from zero": (
        lora, "np.zeros((out_features, self.r), np.float32)", "np.full((out_features, self.r), 1e-6, np.float32)",
        [checks.lora_starts_as_the_base]),
    "A starts with the bound of the rank": (
        lora, "1 / math.sqrt(in_features)", "1 / math.sqrt(self.r)", [checks.lora_starts_as_the_base]),
    "every A starts with the same numbers": (
        lora, "[int(seed), tensor_id(a_name)]", "[int(seed)]", [checks.lora_starts_as_the_base]),
    "A and B swapped in backward": (
        lora, "((a_name, da), (b_name, db))", "((b_name, da), (a_name, db))", [gradients]),
    "scaling missing from A's gradient": (
        lora, "ops.linear_backward(dh * self.scaling, a_cache", "ops.linear_backward(dh, a_cache", [gradients]),
    "dx without the adapter's part": (lora, "dx += dx_a", "dx += 0 * dx_a", [gradients]),
    "inactive adapters merged too": (
        lora, "layers = chosen(kind, factors)", "layers = [(layer, 1.0) for layer in adapters(kind)]",
        [checks.lora_inactive_is_not_merged]),
    "rsLoRA's scaling without the root": (
        lora, "self.lora_alpha / math.sqrt(self.r) if", "self.lora_alpha / self.r if", [checks.lora_is_its_equation]),
    "lengths without scaling": (
        dora, "v = (self.scaling * params[b_name])", "v = params[b_name]", [dora_equation]),
    "DoRA without lengths": (
        dora, "g = _divided(params[m_name], length, 1)", "g = params[m_name]", [dora_equation, dora_gradients]),
    "squared lengths": (dora, "return np.sqrt(np.einsum", "return np.abs(np.einsum", [dora_equation]),
    "lengths of the base alone": (
        dora, "v = self.direction(params, name, ops)[1]", "v = self.direction(params, name, ops)[0]", [dora_equation]),
    "lengths start at one": (
        dora, "self.lengths({**params, **own}, name, ops).astype(np.float32)", "np.ones(shape[0], np.float32)",
        [dora_checks.dora_starts_as_the_base]),
    "the length's gradient not divided": (dora, "dm = _divided(dg, length, 0)", "dm = dg", [dora_gradients]),
    "gradients not scaled by g": (dora, "dtotal = dout * g", "dtotal = dout * 1", [dora_gradients]),
    "g applied to the low-rank part alone": (
        dora, "if self.base.is_adapter else g * total", "if self.base.is_adapter else plain + g * (total - plain)",
        [dora_equation, dora_gradients]),
    "inner adapters scaled too": (
        dora, "out = out - plain + g * total if", "out = g * (total + out - plain) if", [dora_over_lora_gradients]),
    "gradient of the base below inner adapters forgotten": (
        dora, "dx += dx_core", "dx += 0 * dx_core", [dora_over_lora_gradients]),
    "even code low": (
        nf4_ops, "codes[:, ::2] << 4 | codes[:, 1::2]", "codes[:, 1::2] << 4 | codes[:, ::2]",
        [nf4_checks.nf4_golden_vectors]),
    "a value of the codebook": (nf4_ops, "0.5626170039176941", "0.5526170039176941", [nf4_checks.nf4_golden_vectors]),
    "codebook without its zero": (nf4_ops, "0.0, 0.07958", "0.002, 0.07958", [nf4_checks.nf4_golden_vectors]),
    "scales of the whole row": (
        nf4_ops, "np.abs(x).max(axis=-1)", "np.abs(x).max(axis=(-1, -2))[:, None]", [nf4_checks.nf4_golden_vectors]),
    "pairs swapped when read": (
        nf4_ops, "np.repeat(CODEBOOK, 16), np.tile(CODEBOOK, 16)", "np.tile(CODEBOOK, 16), np.repeat(CODEBOOK, 16)",
        [nf4_checks.nf4_golden_vectors]),
    "scales kept in 32 bits": (
        nf4, "if not self.double_quant:\n            return {f\"{name}.qweight\": qweight",
        "if True:\n            return {f\"{name}.qweight\": qweight", [nf4_checks.nf4_kind_is_the_paper]),
    "scales of another row": (
        nf4, "rows[:, None] * codes.shape[1] +", "rows[:, None] * 0 +", [nf4_checks.nf4_kind_is_the_paper]),
    "nested scale of the first block for all": (
        nf4, "position = None if rows is None else", "position = np.zeros(codes.shape, int) if rows is None else",
        [nf4_checks.nf4_kind_is_the_paper]),
    "stacked without scaling": (
        lora_several, "factor * layer.scaling * params.pop", "factor * params.pop", [stacking]),
    "stacked without weights": (
        lora_several, "factor * layer.scaling * params.pop", "layer.scaling * params.pop", [stacking]),
    "stacked with the rank's scaling again": (
        lora_several, "r=r, lora_alpha=r, adapter", "r=r, lora_alpha=1, adapter", [stacking]),
    "factors stacked in different order": (
        lora_several, "side_b.append(", "side_b.insert(0, ", [stacking]),
    "merged without scaling": (
        lora, "(self.scaling * params[b_name]) @", "params[b_name] @", [checks.lora_merged_equals_unmerged]),
    "threshold removes all ties": (
        prune, "keep[size < threshold] = False", "keep[size <= threshold] = False", [checks.prune_count_is_exact]),
    "one weight too many": (
        prune, "remove = round(sparsity * size.size)", "remove = round(sparsity * size.size) + 1",
        [checks.prune_count_is_exact]),
    "count truncated instead of rounded": (
        prune, "remove = round(sparsity * size.size)", "remove = int(sparsity * size.size)",
        [checks.prune_count_is_exact]),
    "ties from the end": (
        prune, "ties[: remove - np.count_nonzero(~keep)]", "ties[::-1][: remove - np.count_nonzero(~keep)]",
        [checks.prune_count_is_exact]),
    "sign instead of magnitude": (
        prune, "np.concatenate([np.abs(weight).ravel()", "np.concatenate([weight.ravel()",
        [checks.prune_count_is_exact]),
    "mask not applied to the gradient": (
        prune, "{key: ops.mask_apply(dweight, params[f\"{name}.mask\"])}", "{key: dweight}",
        [checks.prune_equals_zeroed_weights]),
    "mask not applied to the weight": (
        prune, "return ops.mask_apply(params[f\"{name}.weight\"], params[f\"{name}.mask\"])",
        "return params[f\"{name}.weight\"]", [checks.prune_equals_zeroed_weights]),
    "constraint forgotten": (
        prune, "ops.mask_apply_(weight, params[f\"{name}.mask\"])", "pass", [checks.prune_equals_zeroed_weights]),
    "n of m removed instead of kept": (
        prune, "order[:, : m - n]", "order[:, : n]", [checks.prune_nm_holds_in_every_group]),
    "largest of m removed": (prune, "order[:, : m - n]", "order[:, n:]", [checks.prune_nm_holds_in_every_group]),
    "8-bit halves to even": (
        q8_ops, "whole = np.trunc(scaled)", "whole = np.rint(scaled)", [int8_checks.int8_bytes_are_ggml_q8_0]),
    "half added before truncating": (
        q8_ops, "whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)",
        "whole = np.trunc(scaled + np.copysign(F32(0.5), scaled))", [int8_checks.int8_bytes_are_ggml_q8_0]),
    "8-bit codes divided instead of multiplied": (
        q8_ops, "scaled = x * inverse[..., None]", "scaled = np.where(d != 0, 1, 0)[..., None] * x / d[..., None]",
        [int8_checks.int8_bytes_are_ggml_q8_0]),
    "gradients of the last tile alone": (
        int8, "dx += ops.linear_forward", "dx = ops.linear_forward", [int8_checks.int8_kind_is_its_equations]),
    "scales of other rows of the embedding": (
        int8, 'params[f"{name}.scales"][flat]', 'params[f"{name}.scales"][flat[::-1]]',
        [int8_checks.int8_kind_is_its_equations]),
    "a guess fewer than asked for": (
        speculative, "n = min(n_draft,", "n = min(n_draft - 1,", [speculative_checks.counts_are_those_of_a_replay]),
    "refused guesses counted as accepted": (
        speculative, "counts.accepted += right", "counts.accepted += i < len(guesses)",
        [speculative_checks.counts_are_those_of_a_replay]),
    "the draft does not read its own guesses": (
        speculative, "text = [*seen, *guesses]", "text = [*seen, *guesses[:-1], *seen[-1:]] if guesses else seen",
        [speculative_checks.counts_are_those_of_a_replay]),
    "a guess kept without asking": (
        speculative, "if not right:", "if not right and i == len(guesses):",
        [speculative_checks.text_is_the_targets_own]),
    "the target's token after a wrong guess lost": (
        speculative, "            yield token\n", "            if right: yield token\n",
        [speculative_checks.text_is_the_targets_own]),
    "a guess kept as often as the target says it": (
        speculative, "rng.random() * q[guess] < p[guess]", "rng.random() < p[guess]",
        [speculative_checks.choice_has_the_targets_distribution]),
    "a refused guess replaced by a draw from all": (
        speculative, "rest = np.maximum(p - q, 0.0)", "rest = p",
        [speculative_checks.choice_has_the_targets_distribution]),
    "a token too many": (
        speculative, "left - 1, room", "left, room", [speculative_checks.text_is_the_targets_own]),
    "end of text ignored": (
        speculative, "            if token in eos:", "            if False:",
        [speculative_checks.end_of_text_ends_it]),
    "half a character given": (
        pieces, "safe = len(self.text.rstrip(CUT))", "safe = len(self.text)", [pieces_checks.pieces_are_the_text]),
    "half a character settled": (
        pieces, "if safe == len(self.text) > 0:", "if self.text:", [pieces_checks.pieces_are_the_text]),
    "everything decoded again": (
        pieces, "if safe == len(self.text) > 0:", "if False:", [pieces_checks.few_tokens_are_decoded_again]),
    "the space after a settled text lost": (
        pieces, "self.before, self.open = self._anchor, []", "self.before, self.open = [], []",
        [pieces_checks.pieces_are_the_text]),
    "a settled text given twice": (
        pieces, "self.settled = self.text = self.text[self.sent :]", "self.settled = self.text",
        [pieces_checks.nothing_is_taken_back]),
    "the beginning of a stop text given": (
        pieces, "self.certain = safe - max(", "self.certain = safe - 0 * max(", [pieces_checks.a_stop_text_ends_it]),
    "nibbles swapped when packed": (
        int4_ops, "packed = q[..., :16] | (q[..., 16:] << 4)", "packed = (q[..., :16] << 4) | q[..., 16:]",
        [checks.int4_every_byte_round_trips, checks.int4_bytes_are_ggml_q4_0]),
    "scale from the mean": (
        int4_ops, "d = np.take_along_axis(x, where, axis=-1) / np.float32(-8)",
        "d = np.abs(x).mean(axis=-1, keepdims=True) / np.float32(-3)",
        [checks.int4_bytes_are_ggml_q4_0]),
    "symmetric scale": (
        int4_ops, "/ np.float32(-8)", "/ np.float32(-7)", [checks.int4_bytes_are_ggml_q4_0]),
    "truncated instead of rounded": (int4_ops, "np.float32(8.5)", "np.float32(8)", [error_bound]),
    "divided instead of multiplied": (  # other bytes in a few blocks of 100,000
        int4_ops, "codes = x * inverse + np.float32(8.5)", "codes = np.where(d != 0, x / d, 0) + np.float32(8.5)",
        [checks.int4_bytes_are_ggml_q4_0]),
    "signs lost": (
        int4_ops, "np.take_along_axis(x, where, axis=-1) / ", "np.abs(np.take_along_axis(x, where, axis=-1)) / ",
        [checks.int4_bytes_are_ggml_q4_0]),
    "codes wrap instead of saturating": (
        int4_ops, "np.clip(np.trunc(codes), 0, 15)", "(np.trunc(codes).astype(int) & 15)", [error_bound]),
}  # fmt: skip


@pytest.fixture
def kinds_restored():
    before = dict(linears._KINDS)
    yield
    linears._KINDS.clear()
    linears._KINDS.update(before)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_found(name, kinds_restored):
    module, old, new, found_by = MUTANTS[name]
    mutant = mutated_module(module.__name__, old, new)
    for check in found_by:
        with pytest.raises(AssertionError):
            check(mutant)


@pytest.mark.parametrize("check, module", sorted(
    {(check, module) for module, _, _, found_by in MUTANTS.values() for check in found_by},
    key=lambda pair: (pair[0].__name__, pair[1].__name__)))  # fmt: skip
def test_original_passes_under_the_same_loader(check, module, kinds_restored):
    """The mutants fail for their bug, not for being loaded this way."""
    check(mutated_module(module.__name__, "from __future__ import annotations", "from __future__ import annotations"))


def test_mse_search_that_keeps_the_worst_is_found(kinds_restored):
    import numpy as np

    weight = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)

    def error(module):
        q, s = module.mse_quantize(weight, 32, checks.NUMPY)
        return float(np.square(weight - checks.NUMPY.int4_dequantize(q, s, 32)).sum())

    worst = mutated_module(int4.__name__, "better = error < best_error", "better = error > best_error")
    assert error(int4) < error(worst)
