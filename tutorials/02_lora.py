# %% [markdown]
# # 2. LoRA: fine-tuning with low-rank changes
#
# After this notebook you can
#
# - write down LoRA and count what it trains,
# - see in the singular values of a real fine-tuning update why a low rank is enough, and when it
#   is not,
# - choose rank and alpha, knowing what each does,
# - say what merging an adapter costs in float32, float16 and int4.
#
# It runs in about 40 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# Paper: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import minedge
from minedge import lora
from minedge.data.loaders import load_data
from minedge.finetune.optim import AdamW
from minedge.teaching import Expected, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "trained by r = 8 on q and v of GPT-3 (millions)": (37.7, 37.8),
        "label loss of the pretrained model (nats)": (7.5, 7.6),
        "label loss after full fine-tuning (nats)": (1.8, 2.6),
        "energy of the update in its 4 largest directions (%)": (50, 67),
        "energy of the weights in their 4 largest directions (%)": (21, 23),
        "fall in loss kept by a rank-4 update (%)": (90, 108),
        "label loss after LoRA, r = 1 (nats)": (1.9, 3.3),
        "label loss after LoRA, r = 16 (nats)": (1.6, 3.3),
        "text loss of the pretrained model (nats)": (3.5, 3.6),
        "text loss, its matrices cut to rank 4 (nats)": (15, 17),
        "text loss, its matrices cut to rank 64 (nats)": (5.5, 6),
        "largest logit difference after merging, float32": (0, 0.0002),
        "change lost by merging into float16 (%)": (0.1, 0.3),
        "change lost by merging into int4 (%)": (45, 75),
    }
)

# %% [markdown]
# ## The equation
#
# A weight $W$ (out, in) stays as it is. Beside it go two small matrices, $A$ (r, in) and $B$
# (out, r), and only they are trained (Eq. 3 of the paper):
#
# $$ h = W x + \frac{\alpha}{r} B A x . $$
#
# $A$ starts random and $B$ at zero, so at the first step the model is the one you had. In the
# package:

# %%
show(lora.LoRA.forward, lora.LoRA.backward)

# %% [markdown]
# One adapter trains $r \,(\text{in} + \text{out})$ numbers. For GPT-3 (96 layers, width 12,288),
# on the query and value matrices:


# %%
def trained(r: int, layers: int, width: int, matrices: int = 2) -> int:
    return layers * matrices * r * (width + width)


print(f"r = 1: {trained(1, 96, 12288):,}, the paper's 4.7 million of 175 billion")
expect("trained by r = 8 on q and v of GPT-3 (millions)", trained(8, 96, 12288) / 1e6)

# %% [markdown]
# ## Why a low rank is enough: a real update
#
# We fine-tune all 28 matrices of the bundled model's layers on a task (from which of eight
# families of modules is this docstring?), and look at what has changed, $\Delta W = W_{after} -
# W_{before}$. The loss is that of the label's word on 128 examples that are not trained on.

# %%
STEPS = 18
model = minedge.load("bundled")
data = load_data("stdlib-task")
train = data.pack("train", model.tokenizer, 64)
test = list(data.pack("test", model.tokenizer, 64).eval_batches(32))[:2]
matrices = frozenset(
    name for name, array in model.params.items() if "layers" in name and array.ndim == 2
)


def test_loss(candidate: minedge.Model) -> float:
    sums = [candidate.loss_sum(*batch) for batch in test]
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


def fine_tune(
    start: minedge.Model,
    lr: float,
    names: frozenset[str] | None = None,
    batches=train,
    steps=STEPS,
):
    tuned = start.trainable(names)
    optimizer = AdamW(tuned, clip=1.0)
    for step in range(steps):
        _, grads = tuned.loss_and_grads(*batches.batch(step, 8, SEED))
        optimizer.step(grads, lr * min(1.0, (step + 1) / 5))
    return tuned.freeze()


full = fine_tune(model, 1e-3, matrices)
update = {name: full.params[name] - model.params[name] for name in sorted(matrices)}
before, after = test_loss(model), test_loss(full)
expect("label loss of the pretrained model (nats)", before)
expect("label loss after full fine-tuning (nats)", after)


# %% [markdown]
# The singular values of $\Delta W$ say how many directions it uses: the share of its squared
# length ("energy") in the largest few. Beside them the weights themselves, which are far from low
# rank, and a random matrix.


# %%
def energy(matrix: np.ndarray) -> np.ndarray:
    """Share of the squared length in the 1, 2, 3 .. largest singular directions."""
    s = np.linalg.svd(matrix, compute_uv=False) ** 2
    return np.cumsum(s) / s.sum()


def mean_energy(arrays) -> np.ndarray:
    """The mean over matrices, of their first 64 directions."""
    return np.mean([energy(array)[:64] for array in arrays], axis=0)


of_update = mean_energy(update.values())
of_weights = mean_energy(model.params[name] for name in update)
of_noise = mean_energy(
    np.random.default_rng(SEED).standard_normal(array.shape) for array in update.values()
)
expect("energy of the update in its 4 largest directions (%)", 100 * of_update[3])
expect("energy of the weights in their 4 largest directions (%)", 100 * of_weights[3])

# %% [markdown]
# Energy is not yet usefulness. So we cut the update to its best rank-$r$ approximation, matrix by
# matrix (Eckart and Young: keep the $r$ largest singular values), put it on the pretrained
# weights and measure the loss.


# %%
def cut(matrix: np.ndarray, r: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :r] * s[:r]) @ v[:r]


ranks = [1, 2, 4, 8, 16, 32]
losses = []
for r in ranks:
    changed = {
        name: model.params[name] + cut(array, r).astype(np.float32)
        for name, array in update.items()
    }
    losses.append(test_loss(model.with_params({**model.params, **changed})))
expect("fall in loss kept by a rank-4 update (%)", 100 * (before - losses[2]) / (before - after))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
count = np.arange(1, 65)
left.plot(count, 100 * of_update, label="update of full fine-tuning")
left.plot(count, 100 * of_weights, label="pretrained weights")
left.plot(count, 100 * of_noise, color="grey", linestyle="--", label="random matrices")
left.set(
    xlabel="directions",
    ylabel="energy (%)",
    ylim=(0, 101),
    title="singular values, mean of 28 matrices",
)
left.legend()
right.semilogx(ranks, losses, "o-", base=2, label="update cut to rank r")
right.axhline(before, color="grey", linestyle="--", label="pretrained")
right.axhline(after, color="tab:green", label="whole update")
right.set(
    xlabel="rank r",
    ylabel="label loss (nats)",
    ylim=(0, None),
    title="what a cut update is worth",
)
right.set_xticks(ranks, [str(r) for r in ranks])
right.legend()
plot(
    figure,
    "Figure 1. A fine-tuning update has a few strong directions, the weights have not; and "
    "those few directions carry nearly all of what was learned.",
)

# %% [markdown]
# A caution: guessing among the eight words costs $\ln 8 = 2.08$ nats. What so few steps teach is
# mainly which eight words are answers, and that is a change in few directions indeed.
#
# ## Rank and alpha
#
# Now train adapters of different rank directly, with the same number of steps, and one rank with
# different alpha. The change is $\frac{\alpha}{r} B A$: alpha scales it as a whole, so it acts
# much like a learning rate for the adapter. Dividing by $r$ is there so that a rank can be
# changed without tuning the step size again.


# %%
def adapted_loss(r: int, alpha: float) -> float:
    adapted = lora.add(model, r=r, lora_alpha=alpha, target="all", seed=SEED)
    return test_loss(fine_tune(adapted, 3e-3))


ranks = [1, 4, 16]
by_rank = [adapted_loss(r, 2 * r) for r in ranks]
expect("label loss after LoRA, r = 1 (nats)", by_rank[0])
expect("label loss after LoRA, r = 16 (nats)", by_rank[-1])
alphas = [0.5, 2, 8, 128]
by_alpha = [by_rank[1] if alpha == 8 else adapted_loss(4, alpha) for alpha in alphas]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
left.semilogx(ranks, by_rank, "o-", base=2)
left.axhline(after, color="tab:green", label="full fine-tuning")
left.set(xlabel="rank r (alpha = 2 r)", ylabel="label loss (nats)")
left.set_xticks(ranks, [str(r) for r in ranks])
left.legend()
right.semilogx(alphas, by_alpha, "s-", base=2, color="tab:orange")
right.axhline(before, color="grey", linestyle="--", label="pretrained")
right.set(xlabel="alpha (rank 4)", ylim=(0, 1.1 * max(before, *by_alpha)))
right.set_xticks(alphas, [f"{a:g}" for a in alphas])
right.legend()
plot(
    figure,
    "Figure 2. Left: the rank hardly matters here. Right: alpha does, as a step size does.",
)

# %% [markdown]
# ## Where it breaks: what is not low rank
#
# A fine-tuning update is low rank because the model could nearly do the task before. What
# pretraining put into the same matrices is another matter: Figure 1 shows their energy spread
# over many directions. We cut the pretrained weights themselves to rank $r$, leave embedding and
# norms as they are, and measure the loss on text. An adapter of that rank on an empty base could
# do no better.

# %%
stream = load_data("stdlib").pack("test", model.tokenizer, 128)
held_out = [batch for batch, _ in zip(stream.eval_batches(16), range(2), strict=False)]


def text_loss(candidate: minedge.Model) -> float:
    sums = [candidate.loss_sum(*batch) for batch in held_out]
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


text_ranks, text_losses = [4, 16, 64, 128], []
for r in text_ranks:
    changed = {name: cut(model.params[name], r) for name in matrices}
    text_losses.append(text_loss(model.with_params({**model.params, **changed})))
whole = text_loss(model)
expect("text loss of the pretrained model (nats)", whole)
expect("text loss, its matrices cut to rank 4 (nats)", text_losses[0])
expect("text loss, its matrices cut to rank 64 (nats)", text_losses[2])

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.semilogx(text_ranks, text_losses, "o-", base=2, label="pretrained weights cut to rank r")
axis.axhline(whole, color="tab:green", label="whole weights")
axis.set(xlabel="rank r (of at most 192)", ylabel="loss on text (nats a token)")
axis.set_xticks(text_ranks, [str(r) for r in text_ranks])
axis.legend()
plot(figure, "Figure 3. Pretraining does not fit into a few directions; compare Figure 1, right.")

# %% [markdown]
# ## Merging, and what it costs
#
# $W + \frac{\alpha}{r} B A$ is a matrix like any other, so an adapter can be merged and costs
# nothing when the model runs. But the sum is rounded to the format of $W$. In float32 that is
# harmless. In float16 the spacing of numbers near $W$ is about $|W| / 2000$, and the change is
# small against $W$; in int4 the spacing is larger than most changes.

# %%
adapted = lora.add(model, r=4, lora_alpha=8, target="all", seed=SEED)
adapted = fine_tune(adapted, 3e-3)
tokens = test[0][0][:4]
merged = lora.merge(adapted)
difference = np.abs(merged.logits(tokens) - adapted.logits(tokens)).max()
expect("largest logit difference after merging, float32", difference)


def lost(rounded) -> float:
    """Length of the rounding error over that of the change, over all matrices, in percent."""
    error = change = 0.0
    for name in matrices:
        weight, sum_ = rounded(model.params[name]), merged.params[name] - model.params[name]
        error += ((rounded(weight + sum_) - (weight + sum_)).astype(np.float64) ** 2).sum()
        change += (sum_.astype(np.float64) ** 2).sum()
    return 100 * float(np.sqrt(error / change))


expect(
    "change lost by merging into float16 (%)",
    lost(lambda w: w.astype(np.float16).astype(np.float32)),
)
on_int4 = minedge.quant.int4(adapted)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    merged_int4 = lora.merge(on_int4)
print(said[0].message)
costs = lora.merge_costs(on_int4).values()
share = np.sqrt(sum(cost.error**2 for cost in costs) / sum(cost.change**2 for cost in costs))
expect("change lost by merging into int4 (%)", 100 * share)

# %% [markdown]
# The package keeps an adapter beside int4 weights unless you ask, and then says what is lost.
# Tutorial 5 measures what that does to the loss.
#
# ## Questions
#
# **1.** The paper gives 0.35 million trained parameters for GPT-2 medium (24 layers, width 1,024)
# with r = 4 on query and value. What does the formula say?
#
# <details><summary>Answer</summary>
#
# $24 \cdot 2 \cdot 4 \cdot 2048 = 393{,}216$. The paper's table does not follow from its own
# formula; for GPT-2 large (36 layers, 1,280) it gives 0.77 million where the formula gives
# 737,280. A published number is worth recomputing.
#
# </details>
#
# **2.** Why does $B$ start at zero, and why not $A$ as well?
#
# <details><summary>Answer</summary>
#
# With $B = 0$ the model starts as it was. The gradient of $B$ is proportional to $A x$, that of
# $A$ to $B^\top$ times the gradient of the output. If both were zero, both gradients would be,
# and nothing would ever be learned.
#
# </details>
#
# **3.** You double $r$ and keep alpha. What happens to the size of the first steps with AdamW?
# And with alpha $= 2 r$?
#
# <details><summary>Answer</summary>
#
# AdamW moves every number of $B$ by about the learning rate, whatever its gradient. $B A x$ sums
# over $r$ terms, random in sign at first, so it grows like $\sqrt r$, and the factor $\alpha / r$
# is halved: the change is smaller by $\sqrt 2$. With alpha $= 2 r$ the factor stays 2 and the
# change grows by $\sqrt 2$. rsLoRA (arXiv:2312.03732) divides by $\sqrt r$ for this reason.
#
# </details>

# %%
expect.report()
