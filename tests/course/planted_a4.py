"""Wrong ideas planted into a4's solution; HIDDEN has them in other words."""

from __future__ import annotations

from tests.course.planted import Planted, from_changes, load

__all__ = ["HIDDEN", "PLANTED"]

PLANTED = from_changes(load("a4"))

LOOKS = """            plus = _loss(looks, batches, Noise(s.seed, t, s.eps, model.trainable_names, sample))
            minus = _loss(looks, batches, Noise(s.seed, t, -s.eps, model.trainable_names, sample))
            with np.errstate(over="ignore", invalid="ignore"):  # reported below, as an error
                projected_grad = float(np.float32((plus - minus) / (2 * s.eps)))
                scale = np.float32(s.learning_rate(t) * projected_grad)
"""
OTHER = """            def look(side, at, who, draw):
                return _loss(model, batches, Noise(step=at, seed=s.seed, sample=draw, names=who, eps=side * s.eps))

            everybody = model.trainable_names
            plus, minus = {looks}
            slope = {slope}
            projected_grad = float(np.float32(slope))
            scale = np.float32(slope * s.learning_rate(t))
"""
BOTH = "look(1, t, everybody, sample), look(-1, t, everybody, sample)"
SLOPE = "0.5 * (plus - minus) / s.eps"
UPDATE = """        decay = 1 - lr * s.weight_decay if weight.ndim >= 2 else 1.0
        for sample, projected_grad in enumerate(projected_grads):
            scale = -lr * projected_grad / s.n_samples
            ops.perturb_(weight, decay if sample == 0 else 1.0, scale, s.seed, t, sample, ids[name])
"""
BY_HAND = """        from minedge.ops import numpy_ops

        if {shrink}:
            weight *= 1 - lr * s.weight_decay
        for draw in range(len(projected_grads)):
            z = numpy_ops.normal(s.seed, {step}, draw, {tensor}, 0, weight.size).reshape(weight.shape)
            weight {sign}= (lr * projected_grads[draw] / {count}) * z.astype(weight.dtype)
"""
ROWS = """        for low, high in _runs(wanted):  # one call for each run of neighbouring rows
            first, last = int(wanted[low]), int(wanted[high - 1]) + 1
            made[low:high] = self._perturb(name, weight[first:last], first * width)
"""
REPLAY = """    for t in range(log.steps):
        _update_(new, log.settings, t, log.projected_grads[t * n : (t + 1) * n])
"""
TOTAL = "    return math.fsum(total for total, _ in pairs) / math.fsum(weight for _, weight in pairs)\n"


def looks(looks=BOTH, slope=SLOPE):
    return OTHER.format(looks=looks, slope=slope)


def update(shrink="weight.ndim > 1", step="t", tensor="ids[name]", sign="-", count="s.n_samples"):
    return BY_HAND.format(shrink=shrink, step=step, tensor=tensor, sign=sign, count=count)


HIDDEN = [
    Planted(
        "row_number_as_start", "noise.py", ROWS,
        "        for at, row in enumerate(wanted.tolist()):\n"
        "            made[at] = self._perturb(name, weight[row], row)\n",
    ),
    Planted(
        "rows_from_zero", "noise.py", ROWS,
        "        for low, high in _runs(wanted):\n            chunk = weight[wanted[low:high]]\n"
        "            made[low:high] = self._perturb(name, chunk, 0)\n",
    ),
    Planted(
        "fresh_noise_on_the_way_back", "mezo.py", LOOKS,
        looks("look(1, t, everybody, sample), look(-1, t + 1, everybody, sample)"),
    ),
    Planted(
        "one_sided", "mezo.py", LOOKS,
        looks("look(1, t, everybody, sample), look(0, t, everybody, sample)", "(plus - minus) / s.eps"),
    ),
    Planted("two_forgotten", "mezo.py", LOOKS, looks(slope="(plus - minus) * (1 / s.eps)")),
    Planted("sides_exchanged", "mezo.py", LOOKS, looks(slope="-(plus - minus) / s.eps / 2")),
    Planted(
        "samples_share_noise", "mezo.py", LOOKS, looks("(look(side, t, everybody, 0) for side in (1, -1))")
    ),
    Planted(
        "everything_perturbed", "mezo.py", LOOKS,
        looks("(look(side, t, frozenset(list(model.params)), sample) for side in (1, -1))"),
    ),
    Planted(
        "micro_batches_averaged", "mezo.py", TOTAL,
        "    means = np.array([summed / count for summed, count in pairs])\n    return float(means.mean())\n",
    ),
    Planted("uphill", "mezo.py", UPDATE, update(sign="+")),
    Planted("samples_not_averaged", "mezo.py", UPDATE, update(count="1")),
    Planted("other_noise_in_the_update", "mezo.py", UPDATE, update(step="t + 1")),
    Planted("one_direction_for_all_tensors", "mezo.py", UPDATE, update(tensor="0")),
    Planted("norms_decayed", "mezo.py", UPDATE, update(shrink="s.weight_decay > 0")),
    Planted(
        "record_not_grouped", "mezo.py", REPLAY,
        "    numbers = list(log.projected_grads)\n    for t in range(log.steps):\n"
        "        _update_(new, log.settings, t, numbers[t:][:n])\n",
    ),
    Planted(
        "steps_from_one", "mezo.py", REPLAY,
        "    grouped = np.reshape(log.projected_grads, (-1, n))\n"
        "    for t, row in enumerate(grouped.tolist(), start=1):\n        _update_(new, log.settings, t, row)\n",
    ),
]  # fmt: skip
