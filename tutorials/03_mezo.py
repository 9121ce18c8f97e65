# %% [markdown]
# # 3. MeZO: fine-tuning with forward passes only
#
# After this notebook you can
#
# - derive the gradient estimate of MeZO and check it against backpropagation,
# - predict its noise from the number of parameters, for Gaussian and for spherical perturbations,
# - say why it works on a pretrained model with a prompt, and why it fails from scratch,
# - measure what it saves in memory, and replay a whole run from a file of less than 2 KB.
#
# It runs in about 40 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# Paper: Malladi et al., *Fine-Tuning Language Models with Just Forward Passes*, arXiv:2305.17333.
# The estimate is SPSA (Spall, 1992).

# %%
import matplotlib.pyplot as plt
import numpy as np

import minedge
from minedge import ledger, mezo
from minedge.data.loaders import load_data
from minedge.finetune.evaluate import evaluate_task
from minedge.finetune.optim import AdamW
from minedge.model.noise import Noise, Perturbed, tensor_ids
from minedge.teaching import Expected, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "correlation of g with z . gradient, 20 draws": (0.999, 1.0),
        "relative error of g at the best eps": (0, 0.001),
        "second moment, Gaussian z, d = 8, n = 1": (9.7, 10.3),
        "second moment, spherical z, d = 8, n = 1": (7.8, 8.2),
        "second moment, Gaussian z, d = 8, n = 4": (3.15, 3.35),
        "second moment, spherical z, d = 8, n = 4": (2.68, 2.82),
        "steps to a tenth of the loss, 1,000 curved directions": (1900, 2700),
        "steps to a tenth of the loss, 10 curved directions of 1,000": (15, 50),
        "label loss taken off by MeZO, pretrained (nats)": (0.8, 3),
        "label loss taken off by MeZO, from scratch (nats)": (-0.3, 0.6),
        "label loss taken off by AdamW, from scratch (nats)": (4, 5.5),
        "peak memory of a step, full / MeZO": (1.8, 4),
        "bytes of the run's file": (500, 700),
        "weights that change by +eps, -2 eps, +eps (%)": (38, 46),
    }
)

# %% [markdown]
# ## The equation
#
# Draw $z \sim \mathcal N(0, I)$, one number per parameter, and look at the loss on both sides of
# $w$:
#
# $$ g = \frac{L(w + \epsilon z) - L(w - \epsilon z)}{2 \epsilon} \approx z \cdot \nabla L(w), \qquad
#    w \leftarrow w - \eta\, g\, z . $$
#
# $g$ is one number: the slope of the loss along $z$, a random directional derivative. The step
# goes along $z$, which has nothing to do with the gradient, but on average it is right, because
# $\mathbb E[z z^\top] = I$:
#
# $$ \mathbb E[g z] \approx \mathbb E[z z^\top] \nabla L = \nabla L . $$
#
# Here is the step as it stands in the package. `Noise` names a perturbation; nothing is written
# to the weights.

# %%
show(mezo.MeZO.step, doc=False)

# %% [markdown]
# The perturbed weights are a view. Reading a tensor through it makes $w + \epsilon z$ on the
# spot, from a generator that gives number $i$ of tensor $t$ at step $s$ directly; afterwards the
# array is dropped.

# %%
show(Perturbed.__getitem__, Perturbed._perturb, doc=False)

# %% [markdown]
# ## Is it the slope?
#
# The bundled model (1.8 million parameters) can still be differentiated, so we can compare $g$
# with $z \cdot \nabla L$. The data are a task: from which of eight families of modules does a
# docstring come? The prompt is the text and `Topic:`, the answer one word, and the loss is on
# that word.

# %%
model = minedge.load("bundled")
data = load_data("stdlib-task")
train = data.pack("train", model.tokenizer, 64)
batch = train.batch(0, 8, SEED)
loss, grads = model.loss_and_grads(*batch)
ids = tensor_ids(model.trainable_names)


def slope_by_backprop(step: int) -> float:
    """z . gradient, for the z of this step."""
    z = {
        name: model.ops.normal(SEED, step, 0, ids[name], 0, grad.size)
        for name, grad in grads.items()
    }
    return sum(float(z[name].astype(np.float64) @ grad.ravel()) for name, grad in grads.items())


def slope_by_two_losses(step: int, eps: float) -> float:
    """g, from two forward passes."""
    plus = model.loss(*batch, noise=Noise(SEED, step, eps, model.trainable_names))
    minus = model.loss(*batch, noise=Noise(SEED, step, -eps, model.trainable_names))
    return (plus - minus) / (2 * eps)


exact = np.array([slope_by_backprop(step) for step in range(20)])
estimate = np.array([slope_by_two_losses(step, 1e-3) for step in range(20)])
expect("correlation of g with z . gradient, 20 draws", np.corrcoef(exact, estimate)[0, 1])

widths = np.logspace(-7, -1, 7)
errors = [
    np.sqrt(np.mean([(slope_by_two_losses(step, eps) - exact[step]) ** 2 for step in range(4)]))
    / exact.std()
    for eps in widths
]
expect("relative error of g at the best eps", min(errors))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(exact, estimate, "o", color="tab:blue")
left.axline((0, 0), slope=1, color="grey", linewidth=1, label="equal")
left.set(
    xlabel="z . gradient (nats per unit of eps)",
    ylabel="g (nats per unit of eps)",
    title="20 draws, eps = 0.001",
)
left.legend()
right.loglog(widths, errors, "o-", color="tab:red")
right.set(xlabel="eps", ylabel="error of g / spread of g", title="the choice of eps")
plot(
    figure,
    "Figure 1. Left: two forward passes give the slope along z that backpropagation gives. "
    "Right: with a small eps the rounding of the two losses is divided by a small number; with "
    "a large one the curvature of the loss shows.",
)

# %% [markdown]
# ## What it costs: variance
#
# $g z$ points along a random direction, so nearly all of its length is noise. With $n$ draws
# averaged, in $d$ dimensions,
#
# $$ \mathbb E \left| \frac1n \sum_j g_j z_j \right|^2 = \frac{d + n + 1}{n} |\nabla L|^2 \quad\text{(Gaussian } z),
#    \qquad \frac{d + n - 1}{n} |\nabla L|^2 \quad (|z| = \sqrt d). $$
#
# The second is the paper's Lemma 2, with $z$ on a sphere; the first is what code computes that
# draws Gaussian numbers, theirs and ours. The difference is $\mathbb E |z|^4$: a Gaussian $z$ is
# sometimes longer, and then both $g$ and the step are. We measure both laws. By symmetry the
# gradient may be the first axis.


# %%
def second_moment(d: int, n: int, spherical: bool, trials: int = 20_000) -> float:
    """Mean of |estimate|^2 over many estimates of a gradient of length 1."""
    rng = np.random.default_rng([SEED, d, n])
    total = np.zeros((trials, d))
    for _ in range(n):
        z = rng.standard_normal((trials, d))
        if spherical:
            z *= np.sqrt(d) / np.linalg.norm(z, axis=1, keepdims=True)
        total += z[:, :1] * z / n  # g is z's first number
    return float((total**2).sum(axis=1).mean())


expect("second moment, Gaussian z, d = 8, n = 1", second_moment(8, 1, False, 200_000))
expect("second moment, spherical z, d = 8, n = 1", second_moment(8, 1, True, 200_000))
expect("second moment, Gaussian z, d = 8, n = 4", second_moment(8, 4, False, 100_000))
expect("second moment, spherical z, d = 8, n = 4", second_moment(8, 4, True, 100_000))

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
dims = np.array([2, 4, 8, 16, 32])
for n, colour in ((1, "tab:blue"), (4, "tab:orange")):
    axis.plot(dims, (dims + n + 1) / n, "-", color=colour, label=f"(d + n + 1) / n, n = {n}")
    axis.plot(dims, (dims + n - 1) / n, "--", color=colour, label=f"(d + n - 1) / n, n = {n}")
    axis.plot(dims, [second_moment(d, n, False) for d in dims], "o", color=colour)
    axis.plot(
        dims, [second_moment(d, n, True) for d in dims], "s", color=colour, fillstyle="none"
    )
axis.set(
    xlabel="dimensions d",
    ylabel="mean squared length of the estimate\n(squared length of the gradient = 1)",
)
axis.legend()
plot(
    figure,
    "Figure 2. Both laws, measured: dots are Gaussian z, squares are z on the sphere of radius "
    "sqrt(d).",
)

# %% [markdown]
# ## Then how can it train 30 billion parameters?
#
# One step changes a quadratic loss with curvature $H$ on average by
#
# $$ -\eta |\nabla L|^2 + \tfrac{\eta^2}{2}
#    \left( 2 \nabla L^\top H \nabla L + |\nabla L|^2 \operatorname{tr} H \right) . $$
#
# The second term is what limits $\eta$, and it has $\operatorname{tr} H$ in it, not $d$:
# directions in which the loss is flat cost nothing. The paper's Theorem 1 says so with the
# *effective rank* $r = \operatorname{tr} H / \lambda_{max}$: MeZO is about $r$ times slower than
# gradient descent. It argues that near a good solution, with a prompt that makes the task look
# like pretraining, $r$ is small.
#
# An experiment with both answers. $L = \frac12 \sum_i h_i w_i^2$ in $d$ dimensions, once with all
# $h_i = 1$ and once with ten that are 1 and the others 0; each with its best $\eta = 1 /
# (\operatorname{tr} H + 2)$.


# %%
def steps_to_a_tenth(d: int, curved: int) -> int:
    """MeZO steps until the loss is a tenth of what it was."""
    rng = np.random.default_rng([SEED, d, curved])
    h = np.zeros(d)
    h[:curved] = 1
    w, lr = rng.standard_normal(d), 1 / (curved + 2)
    start, step = 0.5 * (h * w * w).sum(), 0
    while 0.5 * (h * w * w).sum() > start / 10:
        z = rng.standard_normal(d)
        w -= lr * (z @ (h * w)) * z  # on a quadratic g is exactly z . gradient
        step += 1
    return step


dims = [10, 30, 100, 300, 1000]
every = [steps_to_a_tenth(d, d) for d in dims]
ten = [steps_to_a_tenth(d, 10) for d in dims]
expect("steps to a tenth of the loss, 1,000 curved directions", every[-1])
expect("steps to a tenth of the loss, 10 curved directions of 1,000", ten[-1])

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.loglog(dims, every, "o-", label="all d directions curved")
axis.loglog(dims, ten, "s-", label="10 directions curved")
axis.set(xlabel="dimensions d", ylabel="steps to a tenth of the loss")
axis.legend()
plot(figure, "Figure 3. Dimensions cost nothing as long as the loss is flat in them.")

# %% [markdown]
# ## On a language model
#
# Three runs of as many steps on the task: MeZO from the pretrained model; MeZO from random
# weights of the same shape; and AdamW with gradients from the same random weights, to see that
# there is something to learn. The loss is that of the label word on held-out examples, in nats.

# %%
STEPS, EVERY = 48, 12
examples = data.task.examples("test")[:64]
scratch = minedge.init(model.config, model.tokenizer, seed=SEED)


def label_loss(candidate: minedge.Model) -> float:
    return evaluate_task(candidate, data.task, examples, 64).label_loss


def run_mezo(start: minedge.Model, lr: float) -> tuple[mezo.MeZO, minedge.Model, list[float]]:
    trained = start.trainable()
    optimizer = mezo.MeZO(lr=lr, eps=1e-3, seed=SEED)
    losses = [label_loss(trained)]
    for step in range(STEPS):
        optimizer.step(trained, *train.batch(step, 8, SEED))
        if (step + 1) % EVERY == 0:
            losses.append(label_loss(trained))
    return optimizer, trained, losses


def run_adamw(start: minedge.Model, lr: float) -> list[float]:
    trained = start.trainable()
    optimizer, losses = AdamW(trained, clip=1.0), [label_loss(trained)]
    for step in range(STEPS):
        optimizer.step(trained.loss_and_grads(*train.batch(step, 8, SEED))[1], lr)
        if (step + 1) % EVERY == 0:
            losses.append(label_loss(trained))
    return losses


optimizer, tuned, pretrained_curve = run_mezo(model, 2e-5)
scratch_curve = run_mezo(scratch, 2e-5)[2]
adamw_curve = run_adamw(scratch, 1e-3)

expect(
    "label loss taken off by MeZO, pretrained (nats)", pretrained_curve[0] - pretrained_curve[-1]
)
expect("label loss taken off by MeZO, from scratch (nats)", scratch_curve[0] - scratch_curve[-1])
expect("label loss taken off by AdamW, from scratch (nats)", adamw_curve[0] - adamw_curve[-1])

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
steps = np.arange(0, STEPS + 1, EVERY)
axis.plot(steps, pretrained_curve, "o-", label="MeZO, pretrained")
axis.plot(steps, scratch_curve, "s-", label="MeZO, from scratch")
axis.plot(steps, adamw_curve, "^-", color="grey", label="AdamW, from scratch")
axis.axhline(
    np.log(8), color="black", linewidth=0.8, linestyle=":", label="guessing among the 8 words"
)
axis.set(xlabel="step", ylabel="loss of the label word (nats)", ylim=(0, None))
axis.legend()
plot(
    figure,
    "Figure 4. Both start near the loss of guessing among all tokens. From the pretrained "
    "weights MeZO finds the label words; from random ones it hardly moves.",
)

# %% [markdown]
# This is the place where it breaks. From random weights AdamW finds within a few dozen steps
# which eight words are answers; MeZO with the same data has hardly moved, and another learning
# rate does not help (question 2). The paper's results are fine-tuning results, and with a prompt:
# on SST-2 OPT-13B goes from 58.8% zero-shot to 91.4% with MeZO and 92.0% with full fine-tuning.
#
# ## What it saves: memory
#
# MeZO keeps no activations, no gradients and no optimizer state. The package predicts the peak
# before a step and measures it afterwards; both count what comes on top of the model.

# %%
wide = load_data("stdlib").pack("train", model.tokenizer, 256)
tokens, _ = wide.batch(0, 8, SEED)


def peak_of(work) -> int:
    work()  # the first call also loads what stays
    growths = []
    for _ in range(3):  # what the C library keeps differs: the least is the step's own
        with ledger.measure() as used:
            work()
        growths.append(used.growth)
    return min(growths)


def full_step() -> None:
    trained = model.trainable()
    AdamW(trained).step(trained.loss_and_grads(tokens)[1], 1e-4)


def mezo_step() -> None:
    mezo.MeZO(lr=1e-6, seed=SEED).step(model.trainable(), tokens)


# On a model this small the C library's kept memory adds 10 to 25 MB to what is predicted.
full, forward_only = peak_of(full_step), peak_of(mezo_step)
weights = model.nbytes()["total"]
for name, measured in (("full", full), ("mezo", forward_only)):
    predicted = minedge.plan(model, name, 8, 256).peak - weights
    print(f"{name}: measured {measured / 1e6:.1f} MB, predicted {predicted / 1e6:.1f} MB")
expect("peak memory of a step, full / MeZO", full / forward_only)

# %% [markdown]
# ## A run in a file
#
# Every $z$ follows from the seed, the step and the tensor's name, so the run is one float32 per
# step. The file and the starting weights give the tuned weights back: no data, no forward pass,
# the same bits on every machine.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "run.mezo"
    mezo.save_log(optimizer.log, path)
    expect("bytes of the run's file", path.stat().st_size)
    again = mezo.replay(model, mezo.load_log(path))
identical = all(np.array_equal(again.params[name], tuned.params[name]) for name in model.params)
size = sum(array.nbytes for array in tuned.params.values())
print(f"{size:,} bytes of weights, replayed bit for bit: {identical}")
assert identical

# %% [markdown]
# That works because the weights are never perturbed in place. The authors' code adds $\epsilon
# z$, subtracts $2 \epsilon z$ and adds $\epsilon z$ again; in float32 that does not lead back.

# %%
before = np.concatenate([a.ravel() for a in model.params.values()])
z = np.random.default_rng(SEED).standard_normal(before.size, dtype=np.float32)
eps = np.float32(1e-3)
after = ((before + eps * z) - np.float32(2) * eps * z) + eps * z
expect("weights that change by +eps, -2 eps, +eps (%)", 100 * np.mean(before != after))

# %% [markdown]
# ## Questions
#
# **1.** A model has $d = 1.3 \cdot 10^9$ parameters. By which factor is the squared length of
# MeZO's estimate larger than that of the gradient, with one draw and with 100? Why does the
# learning rate not have to be smaller by that factor?
#
# <details><summary>Answer</summary>
#
# $(d + n + 1)/n$: about $1.3 \cdot 10^9$ and $1.3 \cdot 10^7$. The step size is limited by $\eta
# \operatorname{tr} H / 2$, how much the loss bends along the steps taken, and that counts only
# directions in which it bends (Figure 3). Where the effective rank is a few hundred, a learning
# rate a few hundred times smaller than gradient descent's is enough.
#
# </details>
#
# **2.** Run `run_mezo(scratch, lr)` for learning rates from 1e-6 to 1e-3. Is there one with which
# it learns from scratch?
#
# <details><summary>Answer</summary>
#
# No. With 2e-5 and 5e-5 the loss creeps down by some 0.2 nats, with 2e-4 it rises. It is not that
# steps must be smaller than on the pretrained model, which rises from 1e-4 on already. A step
# lowers the loss by $\eta |\nabla L|^2$ in expectation: compute $|\nabla L|^2$ on the first batch
# of both. From random weights it is several times smaller.
#
# </details>
#
# **3.** The figure with eps has a left branch. What sets its height, and how would float64 losses
# move it?
#
# <details><summary>Answer</summary>
#
# Each loss carries a rounding error $\delta$, so $g$ carries $\delta / (\sqrt 2\, \epsilon)$:
# slope $-1$ in the plot. The weights $w + \epsilon z$ are rounded to float32 too. With float64
# throughout, $\delta$ falls by about $5 \cdot 10^8$, the branch moves down by that factor, and
# the best eps becomes much smaller.
#
# </details>

# %%
expect.report()
