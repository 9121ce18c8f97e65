"""Wrong ideas that a2 knows, each as a change of the solved file, which then computes what the idea gives."""

from __future__ import annotations

from minedge.course.properties import Misconception

ATTENTION = ("attention_forward", "attention_both")
HIDDEN = "hidden"
BACK = ("model_backward", "frozen_below")
DX_NORM = "    dx = _norm_backward(dn, norm_cache, run, name)\n"
ROTATE_K = "        k, kr = ops.rotary_forward(k, cos, sin)\n"
ROTATE_Q = "        q, qr = ops.rotary_forward(q, cos, sin)\n"
BACK_ROTATE = "        dq, dk = ops.rotary_backward(dq, qr), ops.rotary_backward(dk, kr)\n"
Y_PLUS_X = "    y += x  # y is the fresh array of the block's last product, owned here\n"


def idea(name, call, hint, *change, file="transformer.py"):
    return Misconception(name, call, hint, file=file, change=tuple(change))


MISCONCEPTIONS = [
    idea(
        "fan_out_gradients_lost", "fan_out_backward",
        "only the first matrix's gradient came back; the input went into all of them, so their gradients add up.",
        ("        dx += part  # a fresh array of the first backward, owned here\n", "        pass\n"),
    ),
    idea(
        "fan_out_gradients_averaged", "fan_out_backward", "the gradients were averaged over the matrices; they add up.",
        ("        dx += part  # a fresh array of the first backward, owned here\n    return dx",
         "        dx += part\n    return dx / (1 + len(rest))"),
    ),
    idea(
        "rotary_on_values", ATTENTION, "values were rotated too; only queries and keys carry positions.",
        (ROTATE_K, ROTATE_K + "        v = ops.rotary_forward(v, cos, sin)[0]\n"),
    ),
    idea(
        "rotary_on_queries_only", ATTENTION,
        "keys were not rotated: what counts is the difference of the query's and the key's position.",
        (ROTATE_K, "        kr = qr\n"),
    ),
    idea(
        "rotary_forgotten", ATTENTION, "neither queries nor keys were rotated: attention does not know positions.",
        (ROTATE_Q, "        qr = (cos, sin)\n"), (ROTATE_K, "        kr = (cos, sin)\n"),
    ),
    idea(
        "cache_position_ignored", ATTENTION,
        "with a past the positions began at 0 again; the first new token stands at run.kv.length.",
        ("start = run.kv.length if run.kv else 0\n        cos", "start = 0\n        cos"),
    ),
    idea(
        "past_ignored", ATTENTION, "the past was stored but not attended to: append returns keys and values of all.",
        ("        k, v = run.kv.append(i, k, v)", "        run.kv.append(i, k, v)"),
    ),
    idea(
        "norm_after_rotary", ATTENTION,
        "q and k were normed after the rotation; the norm's weights differ along D, so the order matters.",
        ("    if a.q_norm and a.k_norm:  # over head_dim\n"
         "        q, qn = ops.rms_norm_forward(q, run.p[f\"{run.name(i, a.q_norm)}.weight\"], config.norm_eps)\n"
         "        k, kn = ops.rms_norm_forward(k, run.p[f\"{run.name(i, a.k_norm)}.weight\"], config.norm_eps)\n", ""),
        (ROTATE_K, ROTATE_K + "    if a.q_norm and a.k_norm:\n"
         "        q, qn = ops.rms_norm_forward(q, run.p[f\"{run.name(i, a.q_norm)}.weight\"], config.norm_eps)\n"
         "        k, kn = ops.rms_norm_forward(k, run.p[f\"{run.name(i, a.k_norm)}.weight\"], config.norm_eps)\n"),
    ),
    idea(
        "head_norm_forgotten", ATTENTION, "Qwen3's norms over q and k (a.q_norm, a.k_norm) were left out.",
        ("    if a.q_norm and a.k_norm:  # over head_dim\n",
         "    if a.q_norm and a.k_norm:\n        q, k = q + 0, k + 0\n    if False:\n"),
    ),
    idea(
        "rotary_backward_forgotten", "attention_backward", "the rotation was not undone: dq and dk are still turned.",
        (BACK_ROTATE, "        pass\n"),
    ),
    idea(
        "rotary_backward_forwards", "attention_backward",
        "the gradients were turned forwards once more; a rotation's transpose turns back.",
        (BACK_ROTATE, "        dq, dk = ops.rotary_forward(dq, *qr)[0], ops.rotary_forward(dk, *kr)[0]\n"),
    ),
    idea(
        "head_norm_backward_forgotten", "attention_backward", "the backward of the norms over q and k was left out.",
        ("        dq = _norm_backward(dq, qn, run, run.name(i, a.q_norm))\n"
         "        dk = _norm_backward(dk, kn, run, run.name(i, a.k_norm))\n", "        pass\n"),
    ),
    idea(
        "fused_order", "attention_backward",
        "the fused matrix's gradient was put together in another order than its rows have: q, k, v.",
        ("douts = [np.concatenate(douts, axis=-1)]", "douts = [np.concatenate(douts[::-1], axis=-1)]"),
    ),
    idea(
        "gate_and_up_swapped", "mlp_forward", "gate and up were exchanged: silu works on the gate.",
        ("h, act = _activation(a, parts, run.ops)", "h, act = _activation(a, parts[::-1], run.ops)"),
    ),
    idea(
        "activation_forgotten", "mlp_forward",
        "there is no activation: the MLP came out linear in its inputs' product.",
        ("h, act = _activation(a, parts, run.ops)",
         "h, act = (parts[0] * parts[1] if len(parts) == 2 else parts[0]), tuple(parts)"),
    ),
    idea(
        "gate_and_up_gradients_swapped", "mlp_backward", "the gradients of gate and up were exchanged.",
        ("    del dh\n", "    del dh\n    douts = douts[::-1]\n"),
    ),
    idea(
        "residual_of_normed", "residual_forward",
        "the normed input was added; the residual stream adds x itself, which nothing ever rescales.",
        (Y_PLUS_X, "    y += n\n"),
    ),
    idea(
        "residual_forgotten", "residual_forward", "x was not added: a layer adds to the residual stream.",
        (Y_PLUS_X, ""),
    ),
    idea(
        "norm_forgotten", "residual_forward", "the block got x itself; it reads the normed x.",
        ("    y, cache = block[0](n, run, i)\n", "    y, cache = block[0](x, run, i)\n"),
    ),
    idea(
        "norm_after_block", "residual_forward",
        "the norm came after the sum; here it comes before the block (pre-norm), and the sum is left alone.",
        ("    y, cache = block[0](n, run, i)\n" + Y_PLUS_X,
         "    y, cache = block[0](x, run, i)\n    y = _norm_forward(x + y, run, run.name(i, norm))[0]\n"),
    ),
    idea(
        "skip_gradient_forgotten", "residual_backward",
        "the gradient came back through the block only; x also went past it, so dout itself is part of dx.",
        ("    dx += dout  # inverts x + block(norm(x)); dx is fresh, owned here\n", ""),
    ),
    *(
        idea(
            "norm_backward_forgotten", "residual_backward",
            "the norm's backward was left out between block and stream.", (DX_NORM, change),
        )
        for change in ("    dx = dn + 0\n", "    _norm_backward(dn, norm_cache, run, name)\n    dx = dn + 0\n")
    ),
    idea(
        "block_gradient_lost", "residual_backward",
        "only dout came back: the gradient through norm and block is missing.",
        (DX_NORM, "    dx = 0 * _norm_backward(dn, norm_cache, run, name)\n"),
    ),
    idea(
        "final_norm_missing", HIDDEN, "the final norm was left out.",
        ("    x, c_norm = _norm_forward(x, run, a.final_norm)", "    c_norm = _norm_forward(x, run, a.final_norm)[1]"),
    ),
    idea(
        "positions_missing", HIDDEN, "GPT-2's learned positions (a.positions) were not added.",
        ("        x = x + Dense().rows(np.arange(start,", "        x = x + 0 * Dense().rows(np.arange(start,"),
    ),
    idea(
        "positions_restart", HIDDEN,
        "with a past the learned positions began at 0 again; the first new token stands at kv.length.",
        ("        start = kv.length if kv else 0\n        x = x", "        start = 0\n        x = x"),
    ),
    idea(
        "first_layer_again", HIDDEN, "every layer used the first layer's weights.",
        ("        x, first = _residual_forward(x, run, a.norm1, _ATTENTION, i)\n"
         "        x, second = _residual_forward(x, run, a.norm2, _MLP, i)\n",
         "        x, first = _residual_forward(x, run, a.norm1, _ATTENTION, 0)\n"
         "        x, second = _residual_forward(x, run, a.norm2, _MLP, 0)\n"),
    ),
    idea(
        "cache_not_advanced", HIDDEN, "the cache was not advanced: the next call would write over these tokens.",
        ("        kv.advance(tokens.shape[1])", "        pass"),
    ),
    idea(
        "embedding_gradient_forgotten", BACK,
        "the embedding got no gradient from the input side: it is looked up there as well.",
        ("        run.grads.update(linears[a.embed].rows_backward(dx, tokens, p, a.embed, ops, wanted))\n",
         "        grads_ = linears[a.embed].rows_backward(0 * dx, tokens, p, a.embed, ops, wanted)\n"
         "        run.grads.update(grads_)\n"),
    ),
    idea(
        "positions_gradient_of_one_row", BACK,
        "the positions' gradient came from the first row of the batch; every row used them, so it is summed over B.",
        ("rows_backward(dx.sum(axis=0), where", "rows_backward(dx[0], where"),
    ),
    idea(
        "final_norm_backward_forgotten", BACK, "the final norm's backward was left out.",
        ("    dx = _norm_backward(dx, c_norm, run, a.final_norm)\n",
         "    _norm_backward(dx, c_norm, run, a.final_norm)\n    dx = dx + 0\n"),
    ),
    idea(
        "tied_gradient_overwritten", ("add_grads", *BACK),
        "of a name in both dicts one gradient was lost; a tied matrix is used twice, so its gradients add up.",
        ("            grads[name] += grad\n", "            grads[name] = grad\n"),
    ),
    idea(
        "frequency_half_exponent", "tables",
        "the exponent is half of what it should be: pair i of D/2 turns by theta^(-i / (D/2)).",
        ("frequency = theta ** (-np.arange(half) / half)", "frequency = theta ** (-np.arange(half) / (2 * half))"),
        file="rotary.py",
    ),
    idea(
        "positions_from_one", "tables", "positions began at 1; the token at position 0 is not turned.",
        ("angle = np.arange(length)[:, None]", "angle = np.arange(1, length + 1)[:, None]"), file="rotary.py",
    ),
    idea(
        "cos_and_sin_swapped", "tables", "cos and sin were exchanged.",
        ("np.cos(angle).astype(np.float32), np.sin(angle)", "np.sin(angle).astype(np.float32), np.cos(angle)"),
        file="rotary.py",
    ),
]  # fmt: skip
