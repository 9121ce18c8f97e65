"""Wrong ideas that a3 knows, each as a change of the solved file, which then computes what the idea gives."""

from __future__ import annotations

from minedge.course.properties import Misconception

SCALING = "        return self.lora_alpha / math.sqrt(self.r) if self.use_rslora else self.lora_alpha / self.r\n"
OWN = 'own: Shapes = {a_name: ((self.r, in_features), "float32"), b_name: ((out_features, self.r), "float32")}'
BOUND = "        bound = 1 / math.sqrt(in_features)\n"
START = "        return {a_name: a, b_name: np.zeros((out_features, self.r), np.float32)}\n"
CHANGE = "        out += change  # a fresh array of the base's, owned here\n"
DX_A = "        dx += dx_a  # x went into the base and into A\n"
DA = "ops.linear_backward(dh * self.scaling, a_cache, need_dweight=a_name in wanted)"
PRODUCT = "        return (self.scaling * params[b_name]) @ params[a_name]\n"
FACTOR = "            weight = weight + factor * layer.change(model.params, name, ops)\n"
WITHOUT = "        after, linears[name] = base.dense(params, name, ops), without(kind, layers)\n"
BACK = ("vjp", "backward")


def idea(name, call, hint, *change):
    return Misconception(name, call, hint, file="lora.py", change=tuple(change))


MISCONCEPTIONS = [
    idea(
        "alpha_not_divided", "scaling", "lora_alpha was not divided by r: the change would grow with the rank.",
        (SCALING, "        return float(self.lora_alpha)\n"),
    ),
    idea(
        "scaling_upside_down", "scaling", "r was divided by lora_alpha; it is lora_alpha / r.",
        (SCALING, "        return (math.sqrt(self.r) if self.use_rslora else self.r) / self.lora_alpha\n"),
    ),
    idea(
        "rslora_ignored", "scaling", "use_rslora was ignored: with it lora_alpha is divided by the square root of r.",
        (SCALING, "        return self.lora_alpha / self.r\n"),
    ),
    idea(
        "factors_transposed", "shapes", "a factor lies the other way round: A is (r, in) and B is (out, r).",
        (OWN, 'f = "float32"\n        own = {a_name: ((in_features, self.r), f), b_name: ((self.r, out_features), f)}'),
    ),
    idea(
        "factors_exchanged", "shapes", "A and B were exchanged: A reads the input, (r, in); B writes the output.",
        (OWN, 'f = "float32"\n        own = {b_name: ((self.r, in_features), f), a_name: ((out_features, self.r), f)}'),
    ),
    idea(
        "base_shapes_forgotten", "shapes", "the base's own parameters are missing: the frozen weight is still there.",
        ("        return {**self.base.shapes(name, out_features, in_features), **own}\n\n    def start",
         "        return own\n\n    def start"),
    ),
    idea(
        "inactive_trained", "trainable", "an adapter that is not active is not trained.",
        ("return self.names(name) if self.active else ()", "return self.names(name)"),
    ),
    idea(
        "base_trained", "trainable", "the base's weight is in the list; LoRA freezes it.",
        ("return self.names(name) if self.active else ()",
         "return (*self.base.trainable(name), *self.names(name)) if self.active else ()"),
    ),
    idea(
        "b_not_zero", "start",
        "B does not start at zero: before the first step the adapted model would already differ from the base.",
        (START, "        b = rng.uniform(-bound, bound, (out_features, self.r)).astype(np.float32)\n"
                "        return {a_name: a, b_name: b}\n"),
    ),
    idea(
        "a_zero", "start",
        "A starts at zero like B: then both gradients are zero for ever (each is a product with the other factor).",
        (START, "        return {a_name: 0 * a, b_name: np.zeros((out_features, self.r), np.float32)}\n"),
    ),
    idea(
        "bound_not_rooted", "start", "A's bound is 1 / in; it is one over the square root of in.",
        (BOUND, "        bound = 1 / in_features\n"),
    ),
    idea(
        "bound_of_rank", "start", "A's bound was taken from r; it belongs to the width that A reads, in.",
        (BOUND, "        bound = 1 / math.sqrt(self.r)\n"),
    ),
    idea(
        "scaling_forgotten", "forward", "the change was not scaled.",
        ("ops.linear_forward(h * self.scaling, params[b_name])", "ops.linear_forward(h, params[b_name])"),
    ),
    idea(
        "scaled_twice", "forward", "the change was scaled twice.", (CHANGE, "        out += change * self.scaling\n"),
    ),
    idea(
        "inactive_added", "forward", "an adapter that is not active was added all the same.",
        ("        if not self.active:\n            return out, (base_cache,)\n        a_name", "        a_name"),
    ),
    idea(
        "base_forgotten", "forward", "only the change came out: the base's output is missing.",
        (CHANGE, "        out = change\n"),
    ),
    idea(
        "scaling_lost_on_the_way_back", BACK,
        "A's gradient and the adapter's part of dx lack the scaling: h was scaled before it met B.",
        (DA, "ops.linear_backward(dh, a_cache, need_dweight=a_name in wanted)"),
    ),
    idea(
        "db_scaled_twice", BACK,
        "B's gradient was scaled twice: the cache already holds h * scaling.",
        ("        dx += dx_a  # x went into the base and into A\n",
         DX_A + "        db = None if db is None else db * self.scaling\n"),
    ),
    idea(
        "adapter_path_lost", BACK, "dx lacks the adapter's part: x went into the base and into A.",
        (DX_A, "        dx = dx + 0\n"),
    ),
    idea(
        "base_path_lost", BACK, "dx lacks the base's part: x went into the base and into A.",
        (DX_A, "        dx = dx_a\n"),
    ),
    idea(
        "unwanted_gradients", "backward", "a gradient was made that nobody asked for: see `wanted`.",
        ("        dh, db = ops.linear_backward(dout, b_cache, need_dweight=b_name in wanted)",
         "        dh, db = ops.linear_backward(dout, b_cache)"),
        (DA, "ops.linear_backward(dh * self.scaling, a_cache)"),
    ),
    idea(
        "change_unscaled", "dense", "the change was not scaled.",
        (PRODUCT, "        return params[b_name] @ params[a_name]\n"),
    ),
    idea(
        "change_transposed", "dense", "the change came out transposed: B A is (out, in), like the weight.",
        (PRODUCT, "        return ((self.scaling * params[b_name]) @ params[a_name]).T\n"),
        ("return weight + self.change(params, name, ops)", "return weight + self.change(params, name, ops).T"),
    ),
    idea(
        "dense_ignores_active", "dense", "an adapter that is not active was added to the weight.",
        ("return weight + self.change(params, name, ops) if self.active else weight",
         "return weight + self.change(params, name, ops)"),
    ),
    idea(
        "dense_without_base", "dense", "the effective weight is the base's plus the change, not the change alone.",
        ("return weight + self.change(params, name, ops) if self.active else weight",
         "return self.change(params, name, ops) if self.active else weight"),
    ),
    idea(
        "merge_factor_ignored", "merge", "the factors were ignored: each adapter's change counts times its own.",
        (FACTOR, FACTOR.replace("factor * ", "")),
    ),
    idea(
        "merge_subtracted", "merge", "the change was subtracted.", (FACTOR, FACTOR.replace("weight + ", "weight - ")),
    ),
    idea(
        "one_adapter_merged", "merge", "of several adapters only the last was merged: each adds to the weight so far.",
        (FACTOR, FACTOR.replace("weight = weight", "weight = before")),
    ),
    idea(
        "adapter_left_beside", "merge",
        "the weight took the change in, but the adapter still stands beside it: its change now counts twice.",
        (WITHOUT, "        after = base.dense(params, name, ops)\n"),
        ("            del params[key]\n        error", "            params[key]\n        error"),
    ),
]  # fmt: skip
