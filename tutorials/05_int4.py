# %% [markdown]
# # 5. Int4: weights in four bits
#
# After this notebook you can
#
# - quantize a matrix to four bits by hand and bound the error of every weight,
# - choose group size and bits from a measured curve of loss against bits,
# - show how outliers ruin a group, on a model that computes exactly the same function,
# - multiply in integers, and say what merging an adapter into 4-bit weights costs.
#
# It runs in about 20 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# The format is GGML's Q4_0. Papers: Dettmers et al., arXiv:2305.14314 (QLoRA); Lin et al.,
# arXiv:2306.00978 (AWQ, on salient channels); Dettmers et al., arXiv:2208.07339 (LLM.int8,
# outliers in activations).

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import minedge
from minedge import lora, quant
from minedge.data.loaders import load_data
from minedge.finetune.evaluate import paired
from minedge.finetune.optim import AdamW
from minedge.model import transformer
from minedge.ops import numpy_ops as ops
from minedge.teaching import Expected, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "largest error of a weight / its bound": (0.99, 1.0001),
        "Gaussian groups in which something clips (%)": (14, 16),
        "rms error / |d| where nothing clips": (0.28, 0.29),
        "loss of the model, float32 (nats)": (3.5, 3.6),
        "loss added by 2 bits (nats)": (0.17, 0.24),
        "loss added by int4, group 32 (nats)": (-0.006, 0.003),
        "its standard error (nats)": (0.002, 0.005),
        "outlier channels: change of the float model's loss (nats)": (0, 0.001),
        "outlier channels: loss added by int4 (nats)": (0.4, 3),
        "int8 activations: largest error / its bound": (0.1, 0.3),
        "int8 activations: loss added (nats)": (-0.002, 0.003),
        "adapter on int4: label loss taken off (nats)": (4, 6),
        "merged into int4: share of the change lost in weights (%)": (35, 60),
        "merged into int4: share given back (%)": (-5, 6),
    }
)

# %% [markdown]
# ## The equation
#
# A row is cut into groups of 32 weights. Each group stores one scale $d$ (float16) and a code of
# four bits per weight: 4.5 bits a weight in all. With $m$ the weight of largest magnitude, sign
# included:
#
# $$ d = \frac{m}{-8}, \qquad q = \min\!\left(15, \left\lfloor \frac{x}{d} + 8.5 \right\rfloor\right), \qquad
#    \hat x = d \,(q - 8) . $$
#
# Sixteen codes are not symmetric around zero: they reach from $-8 d$ to $+7 d$. The rule gives
# the end that reaches further to the largest weight, which is then exact up to the rounding of
# $d$ to float16. In the package:

# %%
show(ops.int4_quantize, ops.int4_dequantize, doc=False)

# %% [markdown]
# ## How wrong can a weight be?
#
# Rounding to the nearest multiple of $d$ errs by at most $|d| / 2$. On the far side, where
# $x / d > 7.5$, the code is clipped to 15 and the error reaches $|d|$. And $d$ itself is rounded
# to float16, which $q - 8$ multiplies:
#
# $$ |\hat x - x| \le |q - 8|\,|d_{16} - d| + \begin{cases} |d| / 2 & x / d \le 7.5 \\ |d| & \text{else.} \end{cases} $$
#
# We hold every weight of the bundled model to it, and look at the errors of Gaussian numbers.

# %%
model = minedge.load("bundled")
matrices = sorted(
    name for name, array in model.params.items() if "layers" in name and array.ndim == 2
)


def errors(weight: np.ndarray, group: int = 32):
    """Error, bound and d of every weight, each (groups, group)."""
    qweight, scales = ops.int4_quantize(weight, group)
    x = weight.reshape(-1, group).astype(np.float64)
    rounded = ops.int4_dequantize(qweight, scales, group).reshape(-1, group)
    m = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d, d16 = m / -8, scales.reshape(-1, 1).astype(np.float64)
    steps = rounded / np.where(d16 == 0, 1, d16)  # q - 8
    bound = np.abs(steps) * np.abs(d16 - d) + np.where(x / d <= 7.5, 0.5, 1.0) * np.abs(d)
    return rounded - x, bound, d


worst = 0.0
for name in matrices:
    error, bound, _ = errors(model.params[name])
    worst = max(worst, float((np.abs(error) / bound).max()))
expect("largest error of a weight / its bound", worst)

gaussian = np.random.default_rng(SEED).standard_normal((2000, 320)).astype(np.float32)
error, _, d = errors(gaussian)
clipped = (gaussian.reshape(-1, 32) / d > 7.5).any(axis=1)
expect("Gaussian groups in which something clips (%)", 100 * clipped.mean())
relative = (error / d).ravel()
inside = relative[np.repeat(~clipped, 32)]
expect("rms error / |d| where nothing clips", np.sqrt(np.mean(inside**2)))

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.hist(relative, bins=150, range=(-1, 1), log=True, color="tab:blue")
axis.set(xlabel="error / d", ylabel="weights")
plot(
    figure,
    "Figure 1. Errors of Gaussian weights in units of their scale: uniform within half a step, "
    "as rounding errors are, with a tail to -1 from the side that clips.",
)

# %% [markdown]
# A uniform error on $[-d/2, d/2]$ has the standard deviation $d / \sqrt{12} \approx 0.289\, d$.
# The peak at 0 is the largest weight of each group, which is exact up to the rounding of $d$ to
# float16.
#
# ## Loss against bits
#
# Four bits are a choice. The same rule with $b$ bits has $d = m / -2^{b-1}$. We round all 28
# matrices of the model's layers with 2 to 6 bits and groups of 32, and with 4 bits in other
# groups, and measure the loss on held-out text.

# %%
text = load_data("stdlib").pack("test", model.tokenizer, 128)
held_out = [batch for batch, _ in zip(text.eval_batches(16), range(2), strict=False)]


def losses_of(candidate: minedge.Model) -> np.ndarray:
    """The mean loss of each row of text, (32,)."""
    sums = [candidate.row_losses(*batch) for batch in held_out]
    return np.concatenate([total / weight for total, weight in sums])


def rounded_to(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    x = weight.reshape(-1, group)
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / -(2.0 ** (bits - 1))
    q = np.clip(np.floor(x / np.where(d == 0, 1, d) + 2.0 ** (bits - 1) + 0.5), 0, 2**bits - 1)
    d16 = d.astype(np.float16).astype(np.float32)
    return (d16 * (q - 2.0 ** (bits - 1))).astype(np.float32).reshape(weight.shape)


def with_bits(bits: int, group: int) -> minedge.Model:
    changed = {name: rounded_to(model.params[name], bits, group) for name in matrices}
    return model.with_params({**model.params, **changed})


base = losses_of(model)
expect("loss of the model, float32 (nats)", base.mean())


def added(candidate: minedge.Model):
    """The mean difference to the float32 model, row by row, and its standard error."""
    return paired(losses_of(candidate), base)


all_bits = [2, 3, 4, 5, 6]
by_bits = [added(with_bits(bits, 32)) for bits in all_bits]
expect("loss added by 2 bits (nats)", by_bits[0].difference)
packed = quant.int4(model)
by_int4 = added(packed)
expect("loss added by int4, group 32 (nats)", by_int4.difference)
expect("its standard error (nats)", by_int4.se)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # widths that a group does not divide stay dense
    others = {
        "4 bits, groups of 64": (4.25, added(with_bits(4, 64))),
        "NF4, blocks of 64": (4.127, added(quant.nf4(model))),
        "int8": (8.5, added(quant.int8(model))),
    }
print("loss added (nats), and its standard error")
for name, loss in [(f"{b} bits", x) for b, x in zip(all_bits, by_bits, strict=True)] + [
    (name, loss) for name, (_, loss) in others.items()
]:
    print(f"  {name:20} {loss.difference:7.4f} ± {loss.se:.4f}")

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.errorbar(
    [b + 0.5 for b in all_bits],
    [loss.difference for loss in by_bits],
    [2 * loss.se for loss in by_bits],
    fmt="o-",
    capsize=3,
    label="b bits, groups of 32",
)
for (name, (bits, loss)), marker in zip(others.items(), "s^v", strict=True):
    axis.errorbar([bits], [loss.difference], [2 * loss.se], fmt=marker, capsize=3, label=name)
axis.axhline(0, color="black", linewidth=0.8)
axis.set(xlabel="bits a weight, scales included", ylabel="loss added (nats a token)")
axis.legend()
plot(
    figure,
    "Figure 2. Two and three bits cost much; from four bits on the model is as good as in "
    "float32, as far as this text can tell. Bars are two standard errors of the difference, row "
    "by row: rows differ much in their loss and little in what rounding adds.",
)

# %% [markdown]
# Halving the step halves the error, and a loss near its minimum rises with the square of the
# error: a factor of about 4 from three bits to two. By that rule four bits would cost a quarter
# of what three do, about a hundredth of a nat, and five a quarter of that. What was measured is
# smaller. The rule is a second-order estimate: it leaves out the gradient, which is not zero on
# text that the model was not trained on, so a small change can even lower the loss.
#
# ## Where it breaks: outliers
#
# One large weight makes the step of its whole group coarse. In large language models a few
# channels of the activations are much larger than the others (LLM.int8). The weights need not be,
# but a scale can be moved from a channel's activations into the weights that multiply it. That
# gives the bundled model outlier weights without changing what it computes. In front of each
# matrix stands a norm with a weight per channel: divide that by $s$ and multiply the matrix's
# column by $s$, and the product is the same.


# %%
def with_outliers(s: float, channels: int = 4) -> minedge.Model:
    """The same function, with a few input channels of each layer's matrices scaled up."""
    params = {name: array.copy() for name, array in model.params.items()}
    for i in range(model.config.n_layer):
        layer = f"model.layers.{i}"
        picked = np.random.default_rng([SEED, i]).choice(
            model.config.n_embd, channels, replace=False
        )
        for norm, users in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            params[f"{layer}.{norm}.weight"][picked] /= s
            for user in users:
                params[f"{layer}.{user}.weight"][:, picked] *= s
    return model.with_params(params)


scales = [1, 4, 16, 64]
floats = [losses_of(with_outliers(s)).mean() for s in scales]
by_size = {
    g: [added(quant.int4(with_outliers(s), g)).difference for s in scales] for g in (32, 64)
}
expect(
    "outlier channels: change of the float model's loss (nats)",
    np.abs(np.array(floats) - base.mean()).max(),
)
expect("outlier channels: loss added by int4 (nats)", by_size[32][-1])

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for group, added in by_size.items():
    axis.loglog(scales, np.maximum(added, 1e-3), "o-", label=f"int4, groups of {group}")
axis.set(xlabel="size of 4 of 192 channels (1 = as trained)", ylabel="loss added (nats a token)")
axis.legend()
plot(
    figure,
    "Figure 3. The float model computes the same for every size. Its int4 form does not: the "
    "outliers' neighbours are rounded away, and with larger groups there are more neighbours. "
    "Values below 0.001 are drawn there.",
)

# %% [markdown]
# AWQ uses the same freedom in the same direction, moderately: it scales the weight columns that
# matter up, those whose input is large, and their input down, with a factor per channel that it
# searches. While the step of the group hardly grows, those columns are rounded more finely for
# their size (Llama-2-7B, groups of 128: perplexity 5.73 with plain rounding, 5.60 with AWQ, 5.47
# in float16).
#
# ## Activations in int8
#
# When decoding, the input is rounded too, to int8 with a scale per 32 numbers, and the products
# are summed in integers. Each input is wrong by at most half a step, so an output is wrong by at
# most $\sum_i |w_i| \cdot d_i / 2$.

# %%
show(ops.int8_quantize, ops.int4_int8_linear, doc=False)

# %%
rng = np.random.default_rng(SEED)
name = matrices[0].removesuffix(".weight")
qweight, scales4 = packed.params[f"{name}.qweight"], packed.params[f"{name}.scales"]
x = rng.standard_normal((64, qweight.shape[1] * 2)).astype(np.float32)
exact = ops.int4_linear_forward(x, qweight, scales4, 32)[0]
integer = ops.int4_int8_linear(x, qweight, scales4, 32)
steps = np.repeat(ops.int8_quantize(x)[1], 32, axis=1)
bound = steps / 2 @ np.abs(ops.int4_dequantize(qweight, scales4, 32)).T
expect("int8 activations: largest error / its bound", (np.abs(integer - exact) / bound).max())


def losses_of_int4(int8: bool) -> np.ndarray:
    """The mean loss of each row in the int4 model, with float or int8 activations."""
    rows = []
    for tokens, mask in held_out:
        logits, _ = transformer.forward(
            packed.config,
            packed.params,
            packed.linears,
            tokens[:, :-1],
            packed.ops,
            int8=int8,
            keep_cache=False,
        )
        logits = logits.astype(np.float64)
        top = logits.max(axis=-1)
        lse = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
        chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        rows.append(((lse - chosen) * mask[:, 1:]).sum(axis=1) / mask[:, 1:].sum(axis=1))
    return np.concatenate(rows)


rounded = paired(losses_of_int4(True), losses_of_int4(False))
expect("int8 activations: loss added (nats)", rounded.difference)
print(f"with a standard error of {rounded.se:.4f}")

# %% [markdown]
# ## What 4-bit merging costs
#
# An adapter is trained on top of the int4 model, as in QLoRA: codes have no gradient, the adapter
# has. Beside the weights it works as trained. Merged, the sum is rounded to four bits again, and
# changes smaller than half a step round away.

# %%
data = load_data("stdlib-task")
train = data.pack("train", model.tokenizer, 64)
tests = list(data.pack("test", model.tokenizer, 64).eval_batches(32))[:2]


def label_loss(candidate: minedge.Model) -> float:
    sums = [candidate.loss_sum(*batch) for batch in tests]
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


adapted = lora.add(packed, r=4, lora_alpha=8, target="all", seed=SEED).trainable()
optimizer = AdamW(adapted, clip=1.0)
for step in range(40):
    _, grads = adapted.loss_and_grads(*train.batch(step, 8, SEED))
    optimizer.step(grads, 3e-3 * min(1.0, (step + 1) / 5))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # merge says what it loses; here it is measured
    merged = lora.merge(adapted.freeze())
costs = lora.merge_costs(adapted.freeze()).values()
share = np.sqrt(sum(cost.error**2 for cost in costs) / sum(cost.change**2 for cost in costs))
expect("merged into int4: share of the change lost in weights (%)", 100 * share)
before, beside, after = label_loss(packed), label_loss(adapted), label_loss(merged)
print(f"label loss: {before:.3f} before, {beside:.3f} beside, {after:.3f} merged")
expect("adapter on int4: label loss taken off (nats)", before - beside)
expect("merged into int4: share given back (%)", 100 * (after - beside) / (before - beside))

# %% [markdown]
# Weight by weight the merge is rough: the rounding error is a good part of what the adapter
# changes. The loss hardly notices here, because errors of many weights average out in a product,
# as they did when the model was quantized. That is no guarantee (question 3), so `merge` says
# what it loses.
#
# ## Questions
#
# **1.** Why does $d = m / -8$ keep the sign of $m$? What would change with $d = |m| / 7$?
#
# <details><summary>Answer</summary>
#
# The codes reach one step further on one side. With the sign, that side is always the one of the
# largest weight, which is then exact up to the rounding of $d$ to float16; the step is $|m|/8$.
# With $|m|/7$ nothing clips and both ends are covered, but every step is 8/7 as wide, so the mean
# squared error of all other weights grows: by $(8/7)^2 - 1$, 31%, at most, for the clipping that
# goes away gives some of it back. Measured on Gaussian groups of 32, it is 27%.
#
# </details>
#
# **2.** A matrix of 4096 x 4096 has one weight in each row that is 50 times as large as the
# others. Estimate the relative error of the other weights of its group, and the share of weights
# concerned with groups of 32 and of 128.
#
# <details><summary>Answer</summary>
#
# The step is 50/8, about six times the size of an ordinary weight: all others in the group round
# to zero, an error of 100%. One group per row: 32 of 4096 weights, 0.8%, or 128 of 4096, 3.1%.
#
# </details>
#
# **3.** Figure 2 says that int4 costs this model almost nothing. Why is that no promise for
# yours?
#
# <details><summary>Answer</summary>
#
# It is small and was trained for little time, so its weights are nearly Gaussian, without outlier
# channels (Figure 3 shows the difference they make), and its loss is far from what its size could
# reach: knowledge that sits in fine differences is not there to lose. Measure: `minedge
# quantize`, then `minedge eval`.
#
# </details>

# %%
expect.report()
