# %% [markdown]
# # 7. Will it fit? The memory of training, before it is used
#
# After this notebook you can
#
# - add up by hand what a training step needs, and find the same in the package's prediction,
# - compare prediction and measurement for full fine-tuning, LoRA, LoRA on int4 (QLoRA's form) and
#   MeZO,
# - say which model can be trained how on a board with N GB,
# - name the two places where such a prediction, or the method chosen by it, goes wrong.
#
# It runs in about 10 seconds on two cores, without a network, from seed 0. The figures it states,
# with their ranges, are in the first code cell; a run that leaves a range stops with an error.
#
# Papers: Loshchilov and Hutter, arXiv:1711.05101 (AdamW); Hu et al., arXiv:2106.09685; Dettmers
# et al., arXiv:2305.14314; Malladi et al., arXiv:2305.17333 (MeZO).

# %%
import matplotlib.pyplot as plt
import numpy as np

import minedge
from minedge import ledger, lora, mezo, quant
from minedge.compress.int4 import Int4
from minedge.finetune.optim import AdamW
from minedge.model.linears import Dense
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.teaching import Expected, plot, seed, show

SEED = seed()
expect = Expected(
    {
        "bytes a parameter, full fine-tuning without activations": (20.5, 20.53),
        "measured / predicted, full": (0.85, 1.3),
        "measured / predicted, LoRA": (0.85, 1.4),
        "measured / predicted, LoRA on int4": (0.85, 1.6),
        "measured / predicted, MeZO": (0.85, 1.6),
        "1.1 billion parameters, full (GB)": (21.5, 22.5),
        "1.1 billion parameters, MeZO over LoRA on int4 (GB)": (0.6, 0.7),
        "full / MeZO, 1.1 billion parameters": (2.3, 2.6),
        "saving of LoRA against full at 64 tokens a step (factor)": (4.2, 5),
        "saving of LoRA against full at 8,192 tokens a step (factor)": (1.2, 1.4),
    }
)

# %% [markdown]
# ## The sum
#
# With $N$ weights in float32 and $T$ of them trained, a step holds at its peak, in bytes,
#
# $$ \underbrace{4 N}_{\text{weights}} + \underbrace{4 T}_{\text{trained copies}}
#    + \underbrace{8 T}_{\text{AdamW: } m, v} + \underbrace{4 T}_{\text{gradients}}
#    + \text{activations} + \text{logits} + \text{what lives for one call.} $$
#
# The trained copies are this package's choice: training never changes the model it was given.
# Activations grow with the tokens of a step, $B \times T$, and with the layers; the rest does
# not. MeZO has no $m$, $v$, gradients and no activations that wait for a backward. LoRA makes $T$
# small and leaves the activations. A quantized base makes $4N$ into $0.56 N$: half a byte for the
# code of a weight, and two bytes for the scale of every 32.
#
# The package walks through a step with sizes in the place of arrays and notes the largest sum:

# %%
show(ledger.plan, doc=False)

# %%
config = minedge.Config(
    vocab_size=4096,
    n_layer=6,
    n_embd=384,
    n_head=6,
    n_inner=1024,
    context_length=512,
    tie_embeddings=True,
)
for method in ("full", "mezo"):
    print(minedge.plan(config, method, batch_size=2, seq_len=128), end="\n\n")

count = sum(
    int(np.prod(shape))
    for shape, _ in param_shapes(config, {n: Dense() for n in linear_shapes(config)}).values()
)
parts = minedge.plan(config, "full", 2, 128).parts
fixed = sum(
    parts.get(name, 0) for name in ("weights", "trained copies", "optimizer", "gradients")
)
expect("bytes a parameter, full fine-tuning without activations", fixed / count)

# %% [markdown]
# Twenty bytes a parameter, $4 + 4 + 8 + 4$, and a half: the embedding is also the output matrix
# (`tie_embeddings`), so it gets a gradient from both ends, and the two stand side by side until
# they are added. That is 4 bytes for each of its $4096 \cdot 384$ numbers, 0.52 for each of the
# 12.2 million parameters.
#
# ## Predicted and measured
#
# Now a model of this shape is made and trained for one step with each method, and the growth of
# the process is measured: the highest resident memory while the step ran, less what was there
# before. The interpreter and its libraries are in neither number.

# %%
model = minedge.init(config, seed=SEED)
tokens = np.random.default_rng(SEED).integers(0, config.vocab_size, (2, 128))
packed = quant.int4(model)
adapters = dict(r=8, lora_alpha=16, target="all", seed=SEED)


def with_gradients(start) -> None:
    trained = start.trainable()
    AdamW(trained).step(trained.loss_and_grads(tokens)[1], 1e-4)


def forward_only(start) -> None:
    mezo.MeZO(lr=1e-6, seed=SEED).step(start.trainable(), tokens)


runs = {
    "full": (model, "full", with_gradients),
    "LoRA": (lora.add(model, **adapters), "lora", with_gradients),
    "LoRA on int4": (lora.add(packed, **adapters), "lora", with_gradients),
    "MeZO": (model, "mezo", forward_only),
}
predicted, measured = {}, {}
for name, (start, method, step) in runs.items():
    weights = start.nbytes()["total"]
    step(start)  # the first step also loads what stays
    with ledger.measure() as used:
        step(start)
    predicted[name] = minedge.plan(start, method, *tokens.shape).peak / 1e6
    measured[name] = (used.growth + weights) / 1e6
    expect(f"measured / predicted, {name}", measured[name] / predicted[name])

figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
places = np.arange(len(runs))
axis.bar(places - 0.2, predicted.values(), 0.4, label="predicted")
axis.bar(places + 0.2, measured.values(), 0.4, label="measured")
axis.set_xticks(places, list(runs))
axis.set(ylabel="peak of one step (MB)")
axis.legend()
plot(
    figure,
    "Figure 1. A model of 12 million parameters, 2 rows of 128 tokens. What is measured above "
    "the prediction is memory that the C library keeps for later, some 10 to 20 MB.",
)

# %% [markdown]
# ## A model of your choice on your board
#
# For the shapes below no memory is needed at all: a plan takes a `Config`. Change `SHAPES`,
# `ROWS` and `BOARDS` to what you have. A board's memory is not all yours: the system keeps some,
# here 0.7 GB.

# %%
SHAPES = {
    "SmolLM2-135M": dict(
        vocab_size=49152, n_layer=30, n_embd=576, n_head=9, n_kv_head=3, n_inner=1536
    ),
    "Qwen2.5-0.5B": dict(
        vocab_size=151936, n_layer=24, n_embd=896, n_head=14, n_kv_head=2, n_inner=4864
    ),
    "TinyLlama-1.1B": dict(
        vocab_size=32000,
        n_layer=22,
        n_embd=2048,
        n_head=32,
        n_kv_head=4,
        n_inner=5632,
        tie_embeddings=False,
    ),
}
BOARDS = {
    "Raspberry Pi 4, 4 GB": 4,
    "phone, 6 GB": 6,
    "Raspberry Pi 5, 8 GB": 8,
    "laptop, 16 GB": 16,
}
ROWS, TOKENS, SYSTEM_GB = 1, 256, 0.7


def int4_of(shape: minedge.Config) -> Model:
    """A model with int4 matrices whose arrays take no memory: all elements are one zero."""
    kinds = {name: Int4(32) for name in linear_shapes(shape)}  # embedding and head too
    params = {
        name: np.broadcast_to(np.zeros((), dtype), size)
        for name, (size, dtype) in param_shapes(shape, kinds).items()
    }
    return Model(shape, params, kinds, frozenset(name for name in params if "norm" in name))


table = {}
for name, sizes in SHAPES.items():
    shape = minedge.Config(context_length=2048, **sizes)
    small, adapter = int4_of(shape), {"r": 8, "lora_alpha": 16, "target": ("q_proj", "v_proj")}
    table[name] = {
        "full": minedge.plan(shape, "full", ROWS, TOKENS),
        "LoRA": minedge.plan(shape, "lora", ROWS, TOKENS, lora=adapter),
        "MeZO": minedge.plan(shape, "mezo", ROWS, TOKENS),
        "LoRA on int4": minedge.plan(small, "lora", ROWS, TOKENS, lora=adapter),
        "MeZO over LoRA on int4": minedge.plan(small, "mezo", ROWS, TOKENS, lora=adapter),
    }

for board, memory in BOARDS.items():
    print(board)
    for name, plans in table.items():
        fits = [method for method, plan in plans.items() if plan.peak / 1e9 <= memory - SYSTEM_GB]
        print(f"  {name:15} {', '.join(fits) or 'nothing'}")

big = {method: plan.peak / 1e9 for method, plan in table["TinyLlama-1.1B"].items()}
expect("1.1 billion parameters, full (GB)", big["full"])
expect("1.1 billion parameters, MeZO over LoRA on int4 (GB)", big["MeZO over LoRA on int4"])
expect("full / MeZO, 1.1 billion parameters", big["full"] / big["MeZO"])

figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
methods = list(next(iter(table.values())))
for i, method in enumerate(methods):
    heights = [plans[method].peak / 1e9 for plans in table.values()]
    axis.bar(np.arange(len(table)) + (i - 2) * 0.16, heights, 0.16, label=method)
for board, memory in BOARDS.items():
    axis.axhline(memory - SYSTEM_GB, color="black", linewidth=0.8, linestyle="--")
    axis.text(-0.42, (memory - SYSTEM_GB) * 1.04, board, fontsize=7)
axis.set_xticks(np.arange(len(table)), list(table))
axis.set(ylabel="peak (GB)", yscale="log")
axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8)
plot(
    figure,
    "Figure 2. Predicted peak of one step, 1 row of 256 tokens; dashed: what a board leaves "
    "free.",
)

# %% [markdown]
# The MeZO paper reports, for OPT in 16 bits at 400 tokens: 1.3 billion parameters take 4 GB with
# MeZO and 27 GB with full fine-tuning, 13 billion 26 and 316, 30 billion 58 and 633. The ratio is
# smaller here, 2.4, because this package keeps the model it was given beside the one it trains.
#
# ## Where it breaks
#
# **The method.** LoRA is chosen to save memory, but it saves $T$, not activations. With many
# tokens a step those are nearly all there is.

# %%
shape = minedge.Config(context_length=2048, **SHAPES["SmolLM2-135M"])
rows = [1, 2, 4, 8, 16, 32]
curves = {}
for label, method in (("full", "full"), ("LoRA", "lora"), ("MeZO", "mezo")):
    given = {"r": 8, "lora_alpha": 16} if method == "lora" else None
    sizes = [(1, 64), *((r, 256) for r in rows)]
    curves[label] = [minedge.plan(shape, method, r, t, lora=given).peak / 1e9 for r, t in sizes]
at = [r * t for r, t in sizes]
expect(
    "saving of LoRA against full at 64 tokens a step (factor)",
    curves["full"][0] / curves["LoRA"][0],
)
expect(
    "saving of LoRA against full at 8,192 tokens a step (factor)",
    curves["full"][-1] / curves["LoRA"][-1],
)

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (label, values), marker in zip(curves.items(), "os^", strict=True):
    axis.loglog(at, values, f"{marker}-", label=label)
axis.set(xlabel="tokens a step", ylabel="predicted peak (GB)")
axis.legend()
plot(
    figure,
    "Figure 3. SmolLM2-135M's shape. Fewer rows a batch with gradient accumulation move a run "
    "to the left.",
)

# %% [markdown]
# **The prediction.** It counts what the package allocates. The interpreter with its libraries (60
# to 120 MB) and memory that the C library keeps come on top. For the bundled model that is more
# than the model:

# %%
bundled = minedge.load("bundled")
peak = minedge.plan(bundled, "mezo", 1, 64).peak
print(f"predicted for the bundled model, MeZO, 1 x 64 tokens: {peak / 1e6:.1f} MB")
print(f"this process holds 60 MB or more: {ledger.resident_bytes() > 60e6}")

# %% [markdown]
# ## Questions
#
# **1.** Full fine-tuning of a model takes 20 bytes a parameter here. Which of the four terms
# could go without changing a bit of the result, and which only by changing the method?
#
# <details><summary>Answer</summary>
#
# The copy: whoever does not need the old model could train in place, 16 bytes. Gradients could be
# applied and dropped layer by layer during the backward, except that clipping by the global norm
# needs them all first. The moments are AdamW; SGD has none.
#
# </details>
#
# **2.** Why does MeZO over LoRA on int4 need hardly more than running the int4 model?
#
# <details><summary>Answer</summary>
#
# It trains only the adapter, keeps no activations beyond the layer at work, and perturbs one
# small tensor at a time. What is left is the packed weights, one layer's activations and a tile
# of logits.
#
# </details>
#
# **3.** A run fits at 2 rows of 1,024 tokens but not at 4. You want 4 rows a step. What do you
# do, and what does it cost?
#
# <details><summary>Answer</summary>
#
# Two micro-batches of 2 rows with gradient accumulation: the losses are summed with the right
# weights, so the step is the same up to rounding. It costs one more set of gradients in memory
# and no more arithmetic.
#
# </details>

# %%
expect.report()
