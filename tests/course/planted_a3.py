"""Wrong ideas planted into a3's solution; HIDDEN has them in other words."""

from __future__ import annotations

from tests.course.planted import Planted, from_changes, load

__all__ = ["HIDDEN", "PLANTED"]

PLANTED = from_changes(load("a3"))

FILE = "lora.py"
SCALING = "        return self.lora_alpha / math.sqrt(self.r) if self.use_rslora else self.lora_alpha / self.r\n"
START = """        bound = 1 / math.sqrt(in_features)
        a = rng.uniform(-bound, bound, (self.r, in_features)).astype(np.float32)
        return {a_name: a, b_name: np.zeros((out_features, self.r), np.float32)}
"""
FORWARD = """        h, a_cache = ops.linear_forward(x, params[a_name])  # (..., r)
        change, b_cache = ops.linear_forward(h * self.scaling, params[b_name])  # (..., out)
        out += change  # a fresh array of the base's, owned here
        return out, (base_cache, a_cache, b_cache)
"""
BACKWARD = """\
        dh, db = ops.linear_backward(dout, b_cache, need_dweight=b_name in wanted)  # inverts h * scaling -> change
        dx_a, da = ops.linear_backward(dh * self.scaling, a_cache, need_dweight=a_name in wanted)  # inverts x -> h
        dx += dx_a  # x went into the base and into A
        grads.update({key: grad for key, grad in ((a_name, da), (b_name, db)) if grad is not None})
        return dx, grads
"""
BY_HAND = """        x, down = a_cache
        scaled, up = b_cache
        flat = dout.reshape(-1, dout.shape[-1])
        back = flat @ up * {scale}
        own = dict()
        own[a_name] = back.T @ x.reshape(-1, x.shape[-1])
        own[b_name] = flat.T @ scaled.reshape(-1, scaled.shape[-1]){twice}
        grads.update((key, own[key]) for key in own if key in wanted)
        return {dx}, grads
"""
PRODUCT = "        return (self.scaling * params[b_name]) @ params[a_name]\n"
MERGE = """        for layer, factor in layers:
            weight = weight + factor * layer.change(model.params, name, ops)
"""
FULL = "dx + (back @ down).reshape(x.shape)"


def by_hand(scale="self.scaling", twice="", dx=FULL):
    return BY_HAND.format(scale=scale, twice=twice, dx=dx)


HIDDEN = [
    Planted(
        "alpha_not_divided", FILE, SCALING, "        strength = self.lora_alpha\n        return 1.0 * strength\n"
    ),
    Planted("rslora_ignored", FILE, SCALING, "        return (1 / self.r) * self.lora_alpha\n"),
    Planted(
        "b_not_zero", FILE, START,
        "        width = in_features ** -0.5\n"
        "        first = np.float32(rng.uniform(-width, width, size=(self.r, in_features)))\n"
        "        second = np.float32(rng.uniform(-width, width, size=(out_features, self.r)))\n"
        "        return dict(zip((a_name, b_name), (first, second)))\n",
    ),
    Planted(
        "bound_not_rooted", FILE, START,
        "        first = rng.uniform(-1 / in_features, 1 / in_features, (self.r, in_features))\n"
        "        return {b_name: np.zeros((out_features, self.r), 'f'), a_name: first.astype('f')}\n",
    ),
    Planted(
        "scaling_forgotten", FILE, FORWARD,
        "        low = x @ params[a_name].T\n        return out + low @ params[b_name].T, (base_cache, (), ())\n",
    ),
    Planted(
        "scaled_twice", FILE, FORWARD,
        "        low = self.scaling * (x @ params[a_name].T)\n        high = low @ params[b_name].T\n"
        "        return out + self.scaling * high, (base_cache, (), ())\n",
    ),
    Planted(
        "base_forgotten", FILE, FORWARD,
        "        return x @ self.change(params, name, ops).T, (base_cache, (), ())\n",
    ),
    Planted("scaling_lost_on_the_way_back", FILE, BACKWARD, by_hand(scale="1.0")),
    Planted("db_scaled_twice", FILE, BACKWARD, by_hand(twice=" * self.scaling")),
    Planted("adapter_path_lost", FILE, BACKWARD, by_hand(dx="dx")),
    Planted("base_path_lost", FILE, BACKWARD, by_hand(dx="(back @ down).reshape(x.shape)")),
    Planted(
        "change_unscaled", FILE, PRODUCT,
        "        return np.einsum('or,ri->oi', params[b_name], params[a_name])\n",
    ),
    Planted(
        "merge_factor_ignored", FILE, MERGE,
        "        for pair in layers:\n            weight = np.add(weight, pair[0].change(model.params, name, ops))\n",
    ),
    Planted(
        "merge_subtracted", FILE, MERGE,
        "        total = sum(times * one.change(model.params, name, ops) for one, times in layers)\n"
        "        weight = weight - total\n",
    ),
]  # fmt: skip
