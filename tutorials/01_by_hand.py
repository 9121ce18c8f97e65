# %% [markdown]
# # 1. A language model by hand: forward, backward, gradient check, training
#
# After this notebook you can
#
# - read a decoder's forward pass and its backward pass, line against line,
# - derive the backward of a layer and prove it right with one call,
# - find a planted error in a gradient, and name an error that no gradient check finds,
# - train a small model and judge its loss against what counting words achieves.
#
# It runs in about 30 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# Papers: Vaswani et al., arXiv:1706.03762 (attention); Zhang and Sennrich, arXiv:1910.07467
# (RMSNorm); Shazeer, arXiv:2002.05202 (SwiGLU); Su et al., arXiv:2104.09864 (rotary positions).

# %%
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

import minedge
from minedge.data.loaders import load_data
from minedge.finetune.optim import AdamW
from minedge.gradcheck import check_backward
from minedge.model import transformer
from minedge.ops import numpy_ops as ops
from minedge.teaching import Expected, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "gradient check, largest relative error of six ops (log10)": (-14, -10),
        "gradient check of a backward without its mean term": (0.02, 2),
        "gradient check of a backward without 1 / sqrt(D)": (0.49, 0.51),
        "whole model: best relative error of a slope, float64 (log10)": (-13, -7.5),
        "loss of random weights (nats)": (7.1, 7.25),
        "loss of the word frequencies (nats)": (6.1, 6.2),
        "loss after training (nats)": (5.6, 5.95),
        "training loss when attention sees the future (nats)": (1.5, 4.8),
        "the same weights with the mask on (nats)": (7, 13),
    }
)

# %% [markdown]
# ## What is computed
#
# A language model gives every next token a probability, given those before it. Training makes the
# mean of $-\log p(x_t \mid x_1 \dots x_{t-1})$ small, in nats a token. The model is a stream $x$
# of one vector per position, to which every half-layer adds something:
#
# $$ x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}(x)) . $$
#
# In the package each half-layer is a forward and the backward that inverts it. The forward
# returns what the backward will need, its cache:

# %%
show(transformer._residual_forward, transformer._residual_backward)

# %% [markdown]
# $y = x + f(n(x))$ has the derivative $dx = dy + n'^\top f'^\top dy$: the backward calls the
# inner backwards in reverse order and adds the gradient that came straight through. There is no
# tape and no automatic differentiation anywhere in the package: every op is such a pair.
#
# ## One layer, derived
#
# RMSNorm scales a vector of $C$ numbers to unit mean square: $y_i = x_i\, \rho\, w_i$ with $\rho
# = (\frac1C \sum_j x_j^2 + \epsilon)^{-1/2}$. Since $\partial \rho / \partial x_k = -\rho^3 x_k /
# C$, with $n = \rho x$ and $dn = dy \cdot w$:
#
# $$ dx_k = \rho \left( dn_k - n_k \cdot \tfrac1C \sum_i dn_i\, n_i \right), \qquad dw_i = dy_i\, n_i . $$
#
# The second term is the part of the gradient that would only stretch $x$, which the norm undoes.
# The code:

# %%
show(ops.rms_norm_forward, ops.rms_norm_backward, doc=False)

# %% [markdown]
# Attention, Eq. 1 of its paper: each position mixes the values $v$ of the positions before it,
# with weights $p = \mathrm{softmax}(q k^\top / \sqrt D)$. Backwards, with $dp = dy\, v^\top$ and
# $ds = p \circ (dp - \textstyle\sum p \circ dp) / \sqrt D$, come $dq = ds\, k$, $dk = ds^\top q$,
# $dv = p^\top dy$.

# %%
show(ops.attention_forward, ops.attention_backward, doc=False)

# %% [markdown]
# ## Is the backward the derivative of the forward?
#
# `check_backward` draws a random output gradient and a random direction $v$, and compares two
# numbers: the slope of the output along $v$, measured by differences of the forward in float64,
# and $dx \cdot v$ from the backward. A random direction touches every element, so one wrong term
# shows.

# %%
rng = np.random.default_rng(SEED)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


angles = np.outer(np.arange(5), [1.0, 0.1])
weights = np.full(6, 1 / 6)
checks = {
    "rms_norm": (ops.rms_norm_forward, ops.rms_norm_backward, [normal(2, 3, 8), normal(8), 1e-5]),
    "linear": (ops.linear_forward, ops.linear_backward, [normal(3, 8), normal(5, 8)]),
    "swiglu": (ops.swiglu_forward, ops.swiglu_backward, [normal(3, 8), normal(3, 8)]),
    "rotary": (
        lambda x: ops.rotary_forward(x, np.cos(angles), np.sin(angles)),
        ops.rotary_backward,
        [normal(1, 5, 2, 4)],
    ),
    "attention": (
        ops.attention_forward,
        ops.attention_backward,
        [normal(1, 5, 4, 4), normal(1, 5, 2, 4), normal(1, 5, 2, 4)],
    ),
    "cross_entropy": (
        lambda logits: ops.cross_entropy_forward(logits, np.arange(6), weights),
        ops.cross_entropy_backward,
        [normal(6, 9)],
    ),
}
worst = {
    name: check_backward(f, b, arguments).max_error for name, (f, b, arguments) in checks.items()
}
for name, error in worst.items():
    print(f"{name:14} relative error {error:.1e}")
expect("gradient check, largest relative error of six ops (log10)", np.log10(max(worst.values())))

# %% [markdown]
# Two planted mistakes, both common: RMSNorm without its second term (as if $\rho$ were a
# constant), and attention whose backward forgets $1 / \sqrt D$.


# %%
def without_mean_term(dout, cache):
    _, weight, rstd = cache
    return dout * weight * rstd[..., None], ops.rms_norm_backward(dout, cache)[1]


def without_scale(dout, cache):
    dq, dk, dv = ops.attention_backward(dout, cache)
    return dq * 2, dk * 2, dv  # D = 4


report = check_backward(ops.rms_norm_forward, without_mean_term, checks["rms_norm"][2])
print(report)
expect("gradient check of a backward without its mean term", report.max_error)
report = check_backward(ops.attention_forward, without_scale, checks["attention"][2])
print(report)
expect("gradient check of a backward without 1 / sqrt(D)", report.max_error)

# %% [markdown]
# ## The whole model
#
# The same check on a complete model: the slope of its loss along a random direction in all its
# weights. The step $h$ of the differences matters: a large one sees the curvature (error $\sim
# h^2$), a small one divides rounding by $h$.

# %%
bundled = minedge.load("bundled")
tokenizer = bundled.tokenizer
config = minedge.Config(
    vocab_size=tokenizer.vocab_size,
    n_layer=2,
    n_embd=64,
    n_head=4,
    n_inner=160,
    context_length=64,
    tie_embeddings=True,
)
small = minedge.init(config, tokenizer, seed=SEED, backend="numpy")
tokens = np.random.default_rng(SEED).integers(0, config.vocab_size, (2, 16))


def errors_of_slope(dtype, steps) -> list[float]:
    model = small.with_params({name: array.astype(dtype) for name, array in small.params.items()})
    direction = {
        name: np.random.default_rng([SEED, i]).standard_normal(array.shape).astype(dtype)
        for i, (name, array) in enumerate(model.params.items())
    }
    grads = model.loss_and_grads(tokens)[1]
    claimed = sum(
        float((grads[name].astype(np.float64) * direction[name]).sum()) for name in grads
    )

    def loss(t: float) -> float:
        return model.with_params(
            {name: array + dtype(t) * direction[name] for name, array in model.params.items()}
        ).loss(tokens)

    return [abs((loss(h) - loss(-h)) / (2 * h) / claimed - 1) for h in steps]


steps = np.logspace(-8, -1, 15)
double, single = errors_of_slope(np.float64, steps), errors_of_slope(np.float32, steps)
expect("whole model: best relative error of a slope, float64 (log10)", np.log10(min(double)))

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.loglog(steps, double, "o-", label="float64")
axis.loglog(steps, single, "s-", label="float32")
axis.set(xlabel="step h along the direction (weight units)", ylabel="relative error of the slope")
axis.legend()
plot(
    figure,
    "Figure 1. Differences against backpropagation on a whole model. In float32 rounding "
    "swallows the evidence before the error gets small, which is why gradient checks run in "
    "float64.",
)

# %% [markdown]
# ## Training
#
# The text is what every Python installation carries, its documentation; the tokenizer is the
# bundled model's. Before training, the loss is about $\ln V$, guessing among $V$ tokens. A model
# that only knows how often each token occurs reaches the entropy of the frequencies: below that
# it has to look at context.

# %%
data = load_data("stdlib")
train, test = (data.pack(part, tokenizer, 64) for part in ("train", "test"))
held_out = [batch for batch, _ in zip(test.eval_batches(32), range(4), strict=False)]


def test_loss(model: minedge.Model) -> float:
    sums = [model.loss_sum(*batch) for batch in held_out]
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


def fit(start: minedge.Model, lr: float, steps: int) -> tuple[minedge.Model, list[float]]:
    model, losses = start.trainable(), []
    optimizer = AdamW(model, clip=1.0)
    for step in range(steps):
        loss, grads = model.loss_and_grads(*train.batch(step, 16, SEED))
        optimizer.step(grads, lr * min(1.0, (step + 1) / 10))
        losses.append(loss)
    return model.freeze(), losses


counts = np.bincount(train.stream, minlength=config.vocab_size) + 1.0
frequencies = counts / counts.sum()
unigram = float(-np.log(frequencies[test.stream]).mean())
start = small.with_backend(None)
expect("loss of random weights (nats)", test_loss(start))
expect("loss of the word frequencies (nats)", unigram)
trained, losses = fit(start, 5e-3, 150)
expect("loss after training (nats)", test_loss(trained))
print(f"ln V = {np.log(config.vocab_size):.3f}")
print(repr(trained.generate("Return the", max_tokens=30, temperature=0.7, seed=SEED)))

# %% [markdown]
# ## Where it breaks, first: the learning rate
#
# Everything above can be right and training still fails.

# %%
rates = [1e-4, 1e-3, 5e-3, 3e-2, 3e-1]
ends = [losses if lr == 5e-3 else fit(start, lr, 50)[1] for lr in rates]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(losses)
left.axhline(np.log(config.vocab_size), color="grey", linestyle=":", label="ln V: guessing")
left.axhline(unigram, color="tab:orange", linestyle="--", label="word frequencies")
left.set(xlabel="step", ylabel="training loss (nats a token)")
left.legend()
right.semilogx(rates, [np.mean(run[40:50]) for run in ends], "o-")
right.set(xlabel="learning rate", ylabel="loss at steps 41 to 50 (nats a token)")
plot(
    figure,
    "Figure 2. Left: training. Right: too small a rate gets nowhere in 50 steps, too large a "
    "one destroys.",
)

# %% [markdown]
# ## Where it breaks, second: what no gradient check sees
#
# A position must not see the tokens it is to predict: scores of future keys are set to $-\infty$
# before the softmax. We take that line out, forwards and backwards. The gradient check passes,
# because the backward still belongs to the forward. Training looks wonderful: the model learns to
# copy the next token from the future. With the mask on, it knows nothing.


# %%
def scores_without_mask(q, k):
    B, T, H, D = q.shape
    groups = q.reshape(B, T, k.shape[2], H // k.shape[2], D)
    return np.einsum("btkgd,bskd->bkgts", groups, k, optimize=True) / np.sqrt(D).astype(q.dtype)


with mock.patch("minedge.ops.numpy_ops.attention._scores", scores_without_mask):
    report = check_backward(ops.attention_forward, ops.attention_backward, checks["attention"][2])
    print(f"gradient check without the mask: {report.max_error:.1e}")
    assert report.ok
    leaky, leaky_losses = fit(small, 5e-3, 150)
expect("training loss when attention sees the future (nats)", np.mean(leaky_losses[-10:]))
expect("the same weights with the mask on (nats)", test_loss(leaky))

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(losses, label="with the causal mask")
axis.plot(leaky_losses, label="without: sees what it predicts")
axis.axhline(unigram, color="tab:orange", linestyle="--", linewidth=1, label="word frequencies")
axis.set(xlabel="step", ylabel="training loss (nats a token)", ylim=(0, None))
axis.legend()
plot(figure, "Figure 3. A training loss that is too good to be true is not.")

# %% [markdown]
# A test that does find it asks for the property itself: changing token $t$ must not change the
# logits before $t$.

# %%
changed = tokens.copy()
changed[:, 10] = (changed[:, 10] + 1) % config.vocab_size
a, b = trained.logits(tokens), trained.logits(changed)
print("positions whose logits changed:", np.flatnonzero((a != b).any(axis=(0, 2))))
assert not (a != b)[:, :10].any()

# %% [markdown]
# ## Questions
#
# **1.** `rms_norm_backward` keeps $\rho$ in its cache but not $n = \rho x$. What does that save,
# and what does it cost?
#
# <details><summary>Answer</summary>
#
# $n$ has as many numbers as $x$; $\rho$ has one per position. $x$ is kept anyway, so a whole
# array is saved per norm, for one multiplication per number in the backward. Memory for
# activations is most of what training needs (tutorial 7).
#
# </details>
#
# **2.** The loss of random weights is close to $\ln V$. What would a much larger value tell you?
#
# <details><summary>Answer</summary>
#
# That the logits are already spread out at random, so the model is confidently wrong: weights
# drawn too large, or a norm missing before the head. The first steps would then only undo this.
#
# </details>
#
# **3.** Why does a check along one random direction find an error in a single element of a large
# gradient, and which errors does it miss?
#
# <details><summary>Answer</summary>
#
# The direction has a component of about 1 in every element, so an error in one element changes
# the sum by that error. It is compared with the size of the whole gradient, though: a mistake
# below a millionth of it passes. Elements that matter little need a check of their own, with
# other arguments fixed; several shapes and several directions help.
#
# </details>

# %%
expect.report()
