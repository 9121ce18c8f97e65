"""Wrong ideas planted into a2's solution; HIDDEN has them in other words."""

from __future__ import annotations

from tests.course.planted import Planted, from_changes, load

__all__ = ["HIDDEN", "PLANTED"]

PLANTED = from_changes(load("a2"))

FILE = "transformer.py"
FAN = """    dx, *rest = [
        _linear_backward(d, c, run, run.name(i, role)) for role, d, c in zip(roles, douts, caches, strict=True)
    ]
    for part in rest:
        dx += part  # a fresh array of the first backward, owned here
    return dx
"""
ROTATE = """        start = run.kv.length if run.kv else 0
        cos, sin = (table[start : start + T] for table in rotary_tables(config))
        q, qr = ops.rotary_forward(q, cos, sin)
        k, kr = ops.rotary_forward(k, cos, sin)
"""
RESIDUAL = """    n, norm_cache = _norm_forward(x, run, run.name(i, norm))
    y, cache = block[0](n, run, i)
    y += x  # y is the fresh array of the block's last product, owned here
"""
RESIDUAL_BACK = """    dn = block[1](dout, block_cache, run, i)
    dx = _norm_backward(dn, norm_cache, run, name)
    dx += dout  # inverts x + block(norm(x)); dx is fresh, owned here
    return dx
"""
MLP = """    parts, in_caches = _fan_out(x, run, i, a.mlp_in)
    h, act = _activation(a, parts, run.ops)  # (B, T, n_inner)
    out, out_cache = _linear_forward(h, run, run.name(i, a.mlp_out))
"""
BACK_ROTATE = "        dq, dk = ops.rotary_backward(dq, qr), ops.rotary_backward(dk, kr)\n"
ADD = """        if name in grads:
            grads[name] += grad
        else:
            grads[name] = grad
"""

HIDDEN = [
    Planted(
        "fan_out_gradients_lost", FILE, FAN,
        "    back = {}\n    for at, role in enumerate(roles):\n"
        "        back[role] = _linear_backward(douts[at], caches[at], run, run.name(i, role))\n"
        "    return back[roles[0]]\n",
    ),
    Planted(
        "fan_out_gradients_averaged", FILE, FAN,
        "    names = [run.name(i, role) for role in roles]\n"
        "    pieces = [_linear_backward(*two, run, name) for *two, name in zip(douts, caches, names)]\n"
        "    return np.stack(pieces).mean(axis=0)\n",
    ),
    Planted(
        "cache_position_ignored", FILE, ROTATE,
        "        c_table, s_table = rotary_tables(config)\n        where = np.arange(T)\n"
        "        q, qr = ops.rotary_forward(q, c_table[where], s_table[where])\n"
        "        k, kr = ops.rotary_forward(k, c_table[where], s_table[where])\n",
    ),
    Planted(
        "rotary_on_queries_only", FILE, ROTATE,
        "        at = 0 if run.kv is None else run.kv.length\n"
        "        tables = [t[at:][:T] for t in rotary_tables(config)]\n"
        "        turned, qr = ops.rotary_forward(q, *tables)\n        q, kr = turned, qr\n",
    ),
    Planted(
        "rotary_on_values", FILE, ROTATE,
        "        at = 0 if run.kv is None else run.kv.length\n"
        "        tables = [t[at:][:T] for t in rotary_tables(config)]\n"
        "        (q, qr), (k, kr), (v, _) = (ops.rotary_forward(y, *tables) for y in (q, k, v))\n",
    ),
    Planted("rotary_backward_forgotten", FILE, BACK_ROTATE, "        dq, dk = dq.copy(), dk.copy()\n"),
    Planted(
        "rotary_backward_forwards", FILE, BACK_ROTATE,
        "        c, s = (t[:, None].astype(dq.dtype) for t in qr)\n"
        "        both = [np.split(d, 2, axis=-1) for d in (dq, dk)]\n"
        "        dq, dk = (np.concatenate([x * c - y * s, x * s + y * c], axis=-1) for x, y in both)\n",
    ),
    Planted(
        "gate_and_up_swapped", FILE, MLP,
        "    made, in_caches = _fan_out(x, run, i, a.mlp_in)\n    made.reverse()\n"
        "    h, act = run.ops.swiglu_forward(*made) if len(made) == 2 else run.ops.gelu_forward(*made)\n"
        "    out, out_cache = _linear_forward(h, run, run.name(i, a.mlp_out))\n",
    ),
    Planted(
        "residual_of_normed", FILE, RESIDUAL,
        "    x, norm_cache = _norm_forward(x, run, run.name(i, norm))\n    n = x\n"
        "    added, cache = block[0](n, run, i)\n    y = np.add(added, x)\n",
    ),
    Planted(
        "norm_after_block", FILE, RESIDUAL,
        "    inner, cache = block[0](x, run, i)\n    n = inner + x\n"
        "    y, norm_cache = _norm_forward(n, run, run.name(i, norm))\n",
    ),
    Planted(
        "skip_gradient_forgotten", FILE, RESIDUAL_BACK,
        "    return _norm_backward(block[1](dout, block_cache, run, i), norm_cache, run, name)\n",
    ),
    Planted(
        "norm_backward_forgotten", FILE, RESIDUAL_BACK,
        "    through = block[1](dout, block_cache, run, i)\n    _norm_backward(through, norm_cache, run, name)\n"
        "    return np.add(through, dout)\n",
    ),
    Planted(
        "positions_restart", FILE, "        start = kv.length if kv else 0\n        x = x + Dense()",
        "        start = tokens.shape[1] - tokens.shape[1]\n        x = x + Dense()",
    ),
    Planted("tied_gradient_overwritten", FILE, ADD, "        grads.update([(name, grad)])\n"),
    Planted(
        "frequency_half_exponent", "rotary.py", "    frequency = theta ** (-np.arange(half) / half)\n",
        "    dim = 2 * half\n    frequency = np.array([theta ** (-pair / dim) for pair in range(half)])\n",
    ),
]  # fmt: skip
