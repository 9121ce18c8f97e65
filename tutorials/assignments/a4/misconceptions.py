"""Wrong ideas that a4 knows, each as a change of a solved file, which then computes what the idea gives."""

from __future__ import annotations

from minedge.course.properties import Misconception

PERTURB = (
    "        return self.ops.perturb("
    "weight, noise.eps, noise.seed, noise.step, noise.sample, self._ids[name], start=start)\n"
)
NAMED = (
    "        if name not in self._ids:\n            return self.params[name]\n"
    "        return self._perturb(name, self.params[name], 0)\n"
)
MADE = "            made[low:high] = self._perturb(name, weight[first:last], first * width)\n"
PLUS = "            plus = _loss(looks, batches, Noise(s.seed, t, s.eps, model.trainable_names, sample))\n"
MINUS = "            minus = _loss(looks, batches, Noise(s.seed, t, -s.eps, model.trainable_names, sample))\n"
GRAD = "projected_grad = float(np.float32((plus - minus) / (2 * s.eps)))"
TOTAL = "    return math.fsum(total for total, _ in pairs) / math.fsum(weight for _, weight in pairs)\n"
DECAY = "        decay = 1 - lr * s.weight_decay if weight.ndim >= 2 else 1.0\n"
SCALE = "            scale = -lr * projected_grad / s.n_samples\n"
STEP = "            ops.perturb_(weight, decay if sample == 0 else 1.0, scale, s.seed, t, sample, ids[name])\n"
REPLAY = "        _update_(new, log.settings, t, log.projected_grads[t * n : (t + 1) * n])\n"
SEEN = ("perturbed", "part")
# +eps, -2 eps, +eps on the weights themselves, as the paper's code does it
IN_PLACE = """            from minedge.model.noise import tensor_id

            def shift(times, model=model, s=s, t=t, sample=sample):
                for name in sorted(model.trainable_names):
                    w = model.params[name]
                    model.ops.perturb_(w, 1.0, times * s.eps, s.seed, t, sample, tensor_id(name))

            still = Noise(s.seed, t, s.eps, frozenset(), sample)
            shift(1)
            plus = _loss(model, batches, still)
            shift(-2)
            minus = _loss(model, batches, still)
            shift(1)
"""


def idea(name, call, hint, *change, file="mezo.py"):
    return Misconception(name, call, hint, file=file, change=tuple(change))


def seen(name, call, hint, *change):
    return idea(name, call, hint, *change, file="noise.py")


MISCONCEPTIONS = [
    seen(
        "all_names_perturbed", "perturbed",
        "tensors that the noise does not name were perturbed or copied; they are params' own arrays.",
        (NAMED, "        from minedge.model.noise import tensor_id\n\n"
         "        self._ids = {name: tensor_id(name) for name in self.params}\n"
         "        return self._perturb(name, self.params[name], 0)\n"),
    ),
    seen(
        "eps_squared", SEEN, "eps was applied twice: perturb already multiplies z by its scale.",
        (PERTURB, PERTURB.replace("noise.eps,", "noise.eps * noise.eps,")),
    ),
    seen(
        "eps_forgotten", SEEN, "z was added as it is, without eps.", (PERTURB, PERTURB.replace("noise.eps,", "1.0,"))
    ),
    seen(
        "one_noise_for_all_tensors", SEEN,
        "every tensor got the same z: the tensor's number, self._ids[name], has to reach the generator.",
        (PERTURB, PERTURB.replace("self._ids[name]", "0")),
    ),
    seen(
        "step_ignored", SEEN, "z does not depend on the step: every step would try the same direction.",
        (PERTURB, PERTURB.replace("noise.step", "0")),
    ),
    seen(
        "sample_ignored", SEEN, "z does not depend on the sample: n draws would be one draw, n times.",
        (PERTURB, PERTURB.replace("noise.sample", "0")),
    ),
    seen(
        "start_ignored", "part",
        "the part's numbers began at the tensor's first element; `start` says where the part begins.",
        (PERTURB, PERTURB.replace("start=start", "start=0")),
    ),
    seen(
        "row_number_as_start", "rows",
        "the row's number was taken as the first element; row r begins at element r * width.",
        (MADE, MADE.replace("first * width", "first")),
    ),
    seen(
        "row_number_as_start", "rows",
        "the row's number was taken as the first element; row r begins at element r * width.",
        (MADE, "            for row in range(first, last):\n"
         "                made[low + row - first] = self._perturb(name, weight[row], row)\n"),
    ),
    seen(
        "rows_from_zero", "rows",
        "each stretch of rows got the numbers of the tensor's beginning; row r begins at element r * width.",
        (MADE, MADE.replace("first * width", "0")),
    ),
    seen(
        "rows_not_perturbed", "rows", "the rows came out as they are, without the noise.",
        (MADE, "            made[low:high] = weight[first:last]\n"),
    ),
    seen(
        "repeated_rows_differ", "rows",
        "the rows were numbered by their place in ids, not by their own number: the same token got other numbers.",
        ("        return made[place.reshape(ids.shape)]",
         "        flat = [self._perturb(name, weight[i], at * width) for at, i in enumerate(ids.ravel())]\n"
         "        return np.stack(flat).reshape(*ids.shape, width)"),
    ),
    idea(
        "fresh_noise_on_the_way_back", "looks",
        "the second look drew other noise: both sides need the same z, so the same seed, step and sample.",
        (MINUS, MINUS.replace("s.seed", "s.seed + 1")),
    ),
    idea(
        "fresh_noise_on_the_way_back", "looks",
        "the second look drew other noise: both sides need the same z, so the same seed, step and sample.",
        (MINUS, MINUS.replace("s.seed, t,", "s.seed, t + 1,")),
    ),
    idea(
        "one_sided", "looks",
        "the second look was at w itself; MeZO looks at both sides, w + eps z and w - eps z: the error is eps^2 then.",
        (MINUS, MINUS.replace("-s.eps, model.trainable_names", "s.eps, frozenset()")),
        (GRAD, GRAD.replace("(2 * s.eps)", "s.eps")),
    ),
    idea(
        "two_forgotten", "looks", "the difference was divided by eps; the two looks are 2 eps apart.",
        (GRAD, GRAD.replace("(2 * s.eps)", "s.eps")),
    ),
    idea(
        "not_divided_by_eps", "looks", "the difference of the losses was not divided by 2 eps.",
        (GRAD, GRAD.replace(" / (2 * s.eps)", "")),
    ),
    idea(
        "sides_exchanged", "looks", "the difference has the wrong sign: it is plus minus minus.",
        (GRAD, GRAD.replace("(plus - minus)", "(minus - plus)")),
    ),
    idea(
        "samples_share_noise", "looks",
        "all draws of a step used the same z: the sample's number has to reach the noise.",
        (PLUS, PLUS.replace("names, sample", "names, 0")), (MINUS, MINUS.replace("names, sample", "names, 0")),
    ),
    idea(
        "steps_share_noise", "looks", "every step used the same z: the step's number has to reach the noise.",
        (PLUS, PLUS.replace("s.seed, t,", "s.seed, 0,")), (MINUS, MINUS.replace("s.seed, t,", "s.seed, 0,")),
    ),
    idea(
        "everything_perturbed", "looks", "weights that are not trained were perturbed as well.",
        (PLUS, PLUS.replace("model.trainable_names", "frozenset(model.params)")),
        (MINUS, MINUS.replace("model.trainable_names", "frozenset(model.params)")),
    ),
    idea(
        "weights_drift", "restored",
        "the weights were written to look, and adding and subtracting eps z does not give back the same bits. "
        "Pass a Noise instead: nothing is written, nothing has to be restored.",
        (PLUS + MINUS, IN_PLACE),
    ),
    idea(
        "micro_batches_averaged", "batch_loss",
        "the micro-batches' mean losses were averaged; one with more tokens has to count more: sum over sum.",
        (TOTAL, "    return math.fsum(total / weight for total, weight in pairs) / len(pairs)\n"),
    ),
    idea(
        "losses_summed", "batch_loss", "the losses were summed and not divided by the sum of the weights.",
        (TOTAL, "    return math.fsum(total for total, _ in pairs)\n"),
    ),
    idea(
        "only_first_micro_batch", "batch_loss", "only the first micro-batch counted.",
        (TOTAL, "    return pairs[0][0] / pairs[0][1]\n"),
    ),
    idea(
        "uphill", "update", "the step goes uphill: it is minus lr * g along z.",
        (SCALE, SCALE.replace("-lr", "lr")),
    ),
    idea(
        "samples_not_averaged", "update", "the draws were added up, not averaged: divide by n_samples.",
        (SCALE, SCALE.replace(" / s.n_samples", "")),
    ),
    idea(
        "eps_in_the_update", "update", "the step was scaled by eps as well; eps is only how far the looks are apart.",
        (SCALE, SCALE.replace("-lr *", "-lr * s.eps *")),
    ),
    idea(
        "learning_rate_forgotten", "update", "the step was not scaled by the learning rate.",
        (SCALE, SCALE.replace("-lr *", "-1 *")),
    ),
    idea(
        "other_noise_in_the_update", "update",
        "the step went along other noise than the looks: g belongs to the z of this step and sample.",
        (STEP, STEP.replace("s.seed, t, sample", "s.seed, t + 1, sample")),
    ),
    idea(
        "other_noise_in_the_update", "update",
        "the step went along other noise than the looks: g belongs to the z of this step and sample.",
        (STEP, STEP.replace("s.seed, t, sample", "s.seed + 1, t, sample")),
    ),
    idea(
        "update_ignores_sample", "update", "all draws of the step went along the first draw's z.",
        (STEP, STEP.replace("s.seed, t, sample", "s.seed, t, 0")),
    ),
    idea(
        "one_direction_for_all_tensors", "update",
        "every tensor moved along the same z: ids[name] has to be passed on.",
        (STEP, STEP.replace("ids[name]", "0")),
    ),
    idea(
        "norms_decayed", "update", "norm weights and biases were decayed; decay is for matrices (ndim >= 2).",
        (DECAY, "        decay = 1 - lr * s.weight_decay\n"),
    ),
    idea(
        "decay_per_sample", "update", "the decay was applied with every draw; it belongs to the step, once.",
        (STEP, STEP.replace("decay if sample == 0 else 1.0", "decay")),
    ),
    idea(
        "decay_without_lr", "update", "the decay lacks the learning rate: w shrinks by lr * weight_decay a step.",
        (DECAY, DECAY.replace("lr * s.weight_decay", "s.weight_decay")),
    ),
    idea(
        "decay_forgotten", "update", "weight_decay was ignored.", (DECAY, "        decay = 1.0\n")
    ),
    idea(
        "record_not_grouped", "replayed",
        "with several draws a step the record was read one number a step; n_samples numbers belong to each.",
        (REPLAY, "        _update_(new, log.settings, t, log.projected_grads[t : t + n])\n"),
    ),
    idea(
        "steps_from_one", "replayed", "the steps were numbered from 1; the run's first step is step 0.",
        (REPLAY, REPLAY.replace("log.settings, t,", "log.settings, t + 1,")),
    ),
    idea(
        "replayed_backwards", "replayed",
        "the last step came first: the numbers belong to the steps in the order in which they were taken.",
        (REPLAY, "        back = log.steps - 1 - t\n"
         "        _update_(new, log.settings, t, log.projected_grads[back * n : (back + 1) * n])\n"),
    ),
    idea(
        "not_frozen", "replayed", "the weights of the new model can be written; freeze it.",
        ("    return new.freeze()\n", "    return new\n"),
    ),
]  # fmt: skip
