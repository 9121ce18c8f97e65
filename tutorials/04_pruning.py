# %% [markdown]
# # 4. Pruning: leaving weights out
#
# After this notebook you can
#
# - prune by magnitude, per matrix, globally, and in patterns such as 2:4, to an exact count,
# - read a curve of loss against sparsity, and recover part of the loss by training under the
#   mask,
# - compute when a pruned file is smaller than a dense or a 4-bit one,
# - measure when it is also faster, which is much later.
#
# It runs in about 30 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# Papers: Han et al., arXiv:1506.02626 (magnitude pruning); Mishra et al., arXiv:2104.08378 (2:4);
# Sun et al., arXiv:2306.11695 (Wanda, and the table quoted below).

# %%
from functools import partial

import matplotlib.pyplot as plt
import numba
import numpy as np

import minedge
from minedge import prune
from minedge.data.loaders import load_data
from minedge.finetune.optim import AdamW
from minedge.teaching import Expected, best_time, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "loss of the dense model (nats)": (3.5, 3.6),
        "loss added at 50%, per matrix (nats)": (0.14, 0.19),
        "loss added at 50%, global (nats)": (0.17, 0.23),
        "loss added at 50%, random weights (nats)": (4, 6.5),
        "loss added by 2:4 (nats)": (0.32, 0.4),
        "loss added at 80%, per matrix (nats)": (2.5, 3),
        "loss added at 80%, after 40 steps under the mask (nats)": (0.42, 0.68),
        "zeros after training under the mask (%)": (79.99, 80.01),
        "zeros after training without it (%)": (0, 0.5),
        "file of a half-pruned matrix / dense float16": (0.5625, 0.5625),
        "sparsity at which the file is below int4's (%)": (78, 79),
        "sparse product at 50%, time / dense": (0.4, 60),
        "sparse product at 98%, time / dense": (0.005, 1.5),
        "half of the neurons gone, time / dense": (0.1, 0.9),
    }
)

# %% [markdown]
# ## The equation
#
# Pruning multiplies a weight matrix by a mask, element by element: of $n$ weights the
# $\mathrm{round}(s\,n)$ of smallest magnitude get 0, the others 1.
#
# $$ h = (M \circ W)\, x . $$
#
# The count is exact here. Reference code compares with a threshold and removes every weight that
# is equal to it, so with ties it removes more than it was asked for.

# %%
show(prune._without_smallest)

# %% [markdown]
# The mask is part of the model. The forward uses it, the backward applies it to the gradient, and
# after an optimizer step `constrain_` sets pruned weights back to zero:

# %%
show(prune.Masked.forward, prune.Masked.backward, prune.Masked.constrain_)

# %% [markdown]
# ## Loss against sparsity
#
# Per matrix every matrix loses the same share. Globally all weights compete, so matrices with
# small weights lose more. As a reference, the same share of weights chosen at random.

# %%
model = minedge.load("bundled")
data = load_data("stdlib")
text = data.pack("test", model.tokenizer, 128)
held_out = [batch for batch, _ in zip(text.eval_batches(16), range(2), strict=False)]
matrices = sorted(
    name for name, array in model.params.items() if "layers" in name and array.ndim == 2
)


def loss_of(candidate: minedge.Model) -> float:
    candidate = prune.densify(candidate)  # the same numbers without applying the mask at each use
    sums = [candidate.loss_sum(*batch) for batch in held_out]
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


def without_random(sparsity: float) -> minedge.Model:
    rng = np.random.default_rng(SEED)
    params = {
        name: model.params[name] * (rng.random(model.params[name].shape) >= sparsity)
        for name in matrices
    }
    return model.with_params(
        {**model.params, **{k: v.astype(np.float32) for k, v in params.items()}}
    )


base = loss_of(model)
expect("loss of the dense model (nats)", base)
shares = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9]
layer = [loss_of(prune.magnitude(model, s)) - base for s in shares]
everywhere = [loss_of(prune.magnitude(model, s, scope="global")) - base for s in shares]
at_random = [loss_of(without_random(s)) - base for s in shares]
expect("loss added at 50%, per matrix (nats)", layer[2])
expect("loss added at 50%, global (nats)", everywhere[2])
expect("loss added at 50%, random weights (nats)", at_random[2])
expect("loss added at 80%, per matrix (nats)", layer[4])

# %% [markdown]
# Hardware can use regular patterns. In 2:4 two of every four neighbours are kept, so an index
# takes two bits and a fixed place. The pattern costs some choice: two large weights that sit with
# two other large ones have to go.

# %%
patterns = [(2, 4), (4, 8), (8, 16), (16, 32)]
by_pattern = [loss_of(prune.nm(model, n, m)) - base for n, m in patterns]
expect("loss added by 2:4 (nats)", by_pattern[0])

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
percent = [100 * s for s in shares]
left.plot(percent, layer, "o-", label="smallest per matrix")
left.plot(percent, everywhere, "s-", label="smallest anywhere")
left.plot(percent, at_random, "^--", color="grey", label="random")
left.set(xlabel="weights removed (%)", ylabel="loss added (nats a token)", ylim=(0, None))
left.legend()
right.bar(
    [f"{n}:{m}" for n, m in patterns] + ["free"], [*by_pattern, layer[2]], color="tab:orange"
)
right.set(xlabel="pattern, half of the weights removed", ylabel="loss added (nats a token)")
plot(
    figure,
    "Figure 1. Left: size says which weights matter. Right: patterns of small blocks cost "
    "most; 'free' is any half of each matrix.",
)

# %% [markdown]
# For comparison, LLaMA-7B on WikiText, as the Wanda paper reports: dense perplexity 5.68; half of
# the weights gone by magnitude 17.29, by Wanda 7.26, by SparseGPT 7.22; with 2:4, Wanda 11.53 and
# SparseGPT 11.00. Size alone is a crude measure there: those methods also look at what the
# weights are multiplied with.
#
# On this model pruning globally costs more than per matrix: sizes of weights are not comparable
# between matrices (question 1).
#
# ## Recovery
#
# Training under the mask lets the remaining weights take over. 80% of the weights go, then 40
# steps on the corpus, once under the mask and once with the zeros as an ordinary starting point.


# %%
def trained(start: minedge.Model, steps: int = 40) -> minedge.Model:
    pruned, batches = start.trainable(), data.pack("train", model.tokenizer, 128)
    optimizer = AdamW(pruned, clip=1.0)
    for step in range(steps):
        _, grads = pruned.loss_and_grads(*batches.batch(step, 8, SEED))
        optimizer.step(grads, 1e-3 * min(1.0, (step + 1) / 5))
    return pruned.freeze()


def zeros(candidate: minedge.Model) -> float:
    return 100 * float(
        np.mean(np.concatenate([candidate.params[name].ravel() == 0 for name in matrices]))
    )


pruned = prune.magnitude(model, 0.8)
recovered, dense_again = trained(pruned), trained(prune.densify(pruned))
expect("loss added at 80%, after 40 steps under the mask (nats)", loss_of(recovered) - base)
expect("zeros after training under the mask (%)", zeros(recovered))
expect("zeros after training without it (%)", zeros(dense_again))

# %% [markdown]
# This is one place where it breaks: without the mask in the optimizer step the first update makes
# the model dense again, and a file that was called pruned is not.
#
# ## When is the file smaller?
#
# A pruned float16 matrix is stored as one bit a weight and the values that are left:
# $\frac{1}{16} + (1 - s)$ of the dense float16 matrix. Int4 takes $4.5 / 16$ of it whatever the
# weights are. The two meet at $s = 1 + 1/16 - 4.5/16$.

# %%
half = prune.magnitude(model, 0.5)
facts = prune.report(half).values()
stored = sum(fact["kept"] * 2 + (fact["weights"] + 7) // 8 for fact in facts)
expect(
    "file of a half-pruned matrix / dense float16",
    stored / sum(2 * fact["weights"] for fact in facts),
)
expect("sparsity at which the file is below int4's (%)", 100 * (1 + 1 / 16 - 4.5 / 16))

# %% [markdown]
# ## When is it faster?
#
# Generating text multiplies matrices with one vector at a time, and the time goes into reading
# the weights. So a smaller matrix could be a faster one, if skipping cost nothing. It does not:
# with arbitrary places each value needs an index (8 bytes for 4), the vector is read here and
# there, and no vector instruction fits. We measure the usual sparse format, a row's values and
# column numbers side by side, against NumPy's dense product.


# %%
@numba.njit(cache=False)
def sparse_product(starts, columns, values, x, out):
    for row in range(len(out)):
        total = np.float32(0)
        for k in range(starts[row], starts[row + 1]):
            total += values[k] * x[columns[k]]
        out[row] = total


def best_of_half_a_second(work) -> float:
    return best_time(work, repeats=9, seconds=0.5)


N = 2048
rng = np.random.default_rng(SEED)
weight = rng.standard_normal((N, N)).astype(np.float32)
x, out = rng.standard_normal(N).astype(np.float32), np.empty(N, np.float32)
dense = best_of_half_a_second(lambda: weight @ x)
measured = [0.5, 0.75, 0.9, 0.95, 0.98]
ratios = []
for s in measured:
    kept = np.abs(weight) > np.quantile(np.abs(weight), s)
    starts = np.concatenate([[0], kept.sum(axis=1).cumsum()])
    columns, values = np.nonzero(kept)[1].astype(np.int32), weight[kept]
    arguments = (starts, columns, values, x, out)
    ratios.append(best_of_half_a_second(partial(sparse_product, *arguments)) / dense)
    assert np.allclose(out, (weight * kept) @ x, atol=1e-2)
narrow = np.ascontiguousarray(weight[: N // 2])
structured = best_of_half_a_second(lambda: narrow @ x) / dense
expect("sparse product at 50%, time / dense", ratios[0])
expect("sparse product at 98%, time / dense", ratios[-1])
expect("half of the neurons gone, time / dense", structured)

figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
grid = np.linspace(0, 0.98, 50)
axis.semilogy(
    100 * grid, 2 * (1 - grid), color="grey", linestyle="--", label="bytes read, sparse / dense"
)
axis.semilogy([100 * s for s in measured], ratios, "o-", label="time, sparse / dense")
axis.semilogy([50], [structured], "s", color="tab:green", label="time, half of the rows removed")
axis.axhline(1, color="black", linewidth=0.8)
axis.set(xlabel="weights removed (%)", ylabel="ratio to the dense product")
axis.legend()
plot(
    figure,
    "Figure 2. With weights removed anywhere, reading less does not mean being faster until "
    "nearly all are gone. Whole rows removed are faster at once. Ratios are those of the "
    "machine that ran this.",
)

# %% [markdown]
# Hence the practice: unstructured pruning for the size of a file, patterns where the hardware
# knows them, whole heads or neurons for speed, and four bits (tutorial 5) where both are wanted,
# since codes lie in order and are read in order. In between stands a form that the package has as
# well (`minedge prune --pack`): a bit a weight says which are left, so there are no indices to
# read, and a kernel of its own puts the values in their places. `minedge bench --only sparse`
# measures from which density on it is the faster one on your machine.
#
# ## Questions
#
# **1.** Two matrices of the same shape; the weights of the second are those of the first times
# 0.01. What do per-matrix and global pruning at 50% do to them?
#
# <details><summary>Answer</summary>
#
# Per matrix: each loses its smaller half. Globally the second loses nearly everything before the
# first loses anything. If a norm follows the second, its scale did not matter to the function at
# all: magnitude is no measure across layers whose scale is free.
#
# </details>
#
# **2.** At which sparsity is a pruned float32 file smaller than a dense float32 one, with the bit
# mask and with a column number of 16 bits per kept weight?
#
# <details><summary>Answer</summary>
#
# Bit mask: $\frac{1}{32} + (1 - s) < 1$, from $s > 3.1\%$. Column numbers: $(1 - s)(4 + 2) < 4$,
# from $s > 33\%$. They are equal where 16 (1 - s) = 1, at 94%: beyond that numbers are shorter
# than the mask.
#
# </details>
#
# **3.** Why is the mask applied to the gradient as well, if `constrain_` sets pruned weights to
# zero after every step anyway?
#
# <details><summary>Answer</summary>
#
# The forward computes $M \circ W$, so the derivative with respect to a pruned weight is zero:
# anything else would not be the gradient. In practice it would also enter the norm that clipping
# divides by, and AdamW's moments.
#
# </details>

# %%
expect.report()
