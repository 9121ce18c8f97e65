"""What benchmarks/train_vs_torch.py measures: one training step of each task, in minedge and in PyTorch.

PyTorch gets its best eager form: scaled_dot_product_attention, fused AdamW, no dropout; torch.compile is slower at
these sizes. The Llama shape is transformers' own model, its adapter peft's, MeZO the recipe of the paper's authors:
weights moved in place by +eps z, -2 eps z, +eps z and the update, z drawn again from its seed each time.

A maker returns {"step": f}, where f(i) does step i and returns its loss. minedge's MeZO also has "forward" (one loss)
and "generate" (z of every trained number, once): a step should cost little more than two of each.
"""

from __future__ import annotations

import os

import numpy as np

LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.99), 1e-8, 0.1, 1.0
MEZO_LR, MEZO_EPS = 1e-6, 1e-3
GPT2 = dict(vocab_size=65, architecture="gpt2")
SMOLLM = dict(
    vocab_size=49_152, n_layer=30, n_embd=576, n_head=9, n_kv_head=3, n_inner=1536, context_length=2048,
    tie_embeddings=True,
)  # fmt: skip
TINYLLAMA = dict(
    vocab_size=32_000, n_layer=22, n_embd=2048, n_head=32, n_kv_head=4, n_inner=5632, context_length=2048,
    tie_embeddings=False,
)  # fmt: skip
TASKS = {
    # method, config, batch, tokens a row that are predicted
    "small": ("full", dict(GPT2, n_layer=4, n_embd=128, n_head=4, n_inner=512, context_length=64), 12, 64),
    "large": ("full", dict(GPT2, n_layer=6, n_embd=384, n_head=6, n_inner=1536, context_length=256), 64, 256),
    "lora-135m": ("lora", SMOLLM, 1, 256),
    "mezo-135m": ("mezo", SMOLLM, 1, 256),
    "mezo-lora-135m": ("mezo-lora", SMOLLM, 1, 256),
    "mezo-lora-int4-1.1b": ("mezo-lora-int4", TINYLLAMA, 1, 256),
}
WITHOUT_PEER = ("mezo-lora-int4-1.1b",)  # PyTorch has no int4 product for a CPU that is worth a comparison


def config_and_batches(task):
    import minedge

    _, sizes, batch, tokens = TASKS[task]
    rng = np.random.default_rng(0)
    config = minedge.Config(**sizes)
    return config, [rng.integers(0, config.vocab_size, (batch, tokens + 1)) for _ in range(4)]


def weights_of(config):
    """The same numbers for everybody, a tensor at a time: float32, N(0, 0.02) as in minedge.init."""
    from minedge.model.linears import Dense
    from minedge.model.shapes import linear_shapes, param_shapes

    rng = np.random.default_rng(0)
    linears = {name: Dense() for name in linear_shapes(config)}
    for name, (shape, _) in param_shapes(config, linears).items():
        value = rng.standard_normal(shape, np.float32) if len(shape) > 1 else np.full(shape, 50, np.float32)
        value *= np.float32(0.02)
        yield name, np.zeros(shape, np.float32) if name.endswith(".bias") else value


def minedge_model(config, method, tier):
    """Dense, or int4 matrix by matrix, so that no float32 model of that size ever stands in memory."""
    import minedge
    from minedge.compress.int4 import Int4
    from minedge.model.linears import Dense
    from minedge.model.shapes import linear_shapes

    shapes = linear_shapes(config)
    linears = {name: Int4(32) if method.endswith("int4") else Dense() for name in shapes}
    ops, params = minedge.ops.get(tier), {}
    for name, value in weights_of(config):
        module = name.removesuffix(".weight")
        params.update(linears[module].pack(module, value, ops) if module in shapes else {name: value})
    model = minedge.Model(config, params, linears, frozenset(params), backend=tier).freeze()
    if method in ("lora", "mezo-lora", "mezo-lora-int4"):
        model = minedge.lora.add(model, r=8, lora_alpha=16, target=("q_proj", "v_proj"))
    return model.trainable()


def minedge_steps(task, tier):
    from minedge.finetune.mezo import MeZO
    from minedge.finetune.optim import AdamW, accumulate
    from minedge.model.noise import tensor_id

    config, batches = config_and_batches(task)
    method = TASKS[task][0]
    model = minedge_model(config, method, tier)
    if method.startswith("mezo"):
        optimizer = MeZO(lr=MEZO_LR, eps=MEZO_EPS)

        def generate(i):
            for name in sorted(model.trainable_names):
                size = model.params[name].size
                for start in range(0, size, 1 << 22):
                    model.ops.normal(0, i, 0, tensor_id(name), start, min(1 << 22, size - start))

        return {
            "step": lambda i: optimizer.step(model, batches[i % 4]),
            "forward": lambda i: model.loss(batches[i % 4]),
            "generate": generate,
        }
    optimizer = AdamW(model, *BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP)

    def step(i):
        loss, grads = accumulate(model, [(batches[i % 4], None)])
        optimizer.step(grads, LR)
        return loss

    return {"step": step}


def torch_steps(task):
    import torch
    from torch.nn import functional as F  # noqa: N812 - its usual name

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config, batches = config_and_batches(task)
    method, data = TASKS[task][0], [torch.tensor(b) for b in batches]
    model = _gpt2(config) if config.architecture == "gpt2" else _llama(config)
    if method in ("lora", "mezo-lora"):
        model = _with_adapter(model, config)

    def loss_of(i):
        tokens = data[i % 4]
        logits = model(tokens[:, :-1])
        logits = getattr(logits, "logits", logits)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    trained = [p for p in model.parameters() if p.requires_grad]
    if method.startswith("mezo"):
        return {"step": _mezo(trained, loss_of)}
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LR, betas=BETAS, eps=EPS, fused=True)

    def step(i):
        loss = loss_of(i)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        return loss.item()

    return {"step": step}


def _mezo(trained, loss_of):
    import torch

    def move(seed, scale):
        generator = torch.Generator().manual_seed(seed)
        for p in trained:
            p.add_(torch.normal(mean=0.0, std=1.0, size=p.shape, generator=generator), alpha=scale)

    @torch.no_grad()
    def step(i):
        move(i, MEZO_EPS)
        plus = loss_of(i).item()
        move(i, -2 * MEZO_EPS)
        minus = loss_of(i).item()
        move(i, MEZO_EPS)
        move(i, -MEZO_LR * (plus - minus) / (2 * MEZO_EPS))
        return (plus + minus) / 2

    return step


def _llama(config):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.n_embd, intermediate_size=config.n_inner,
            num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.context_length, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_embeddings, attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights_of(config):
            own[name].copy_(torch.from_numpy(value))
    return model


def _with_adapter(model, config):
    import torch
    from peft import LoraConfig, get_peft_model

    import minedge
    from minedge.model.linears import Dense
    from minedge.model.shapes import linear_shapes

    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    kind, ops = minedge.lora.LoRA(Dense(), r=8), minedge.ops.get("numpy")
    shapes = linear_shapes(config)
    for name, p in model.named_parameters():
        if "lora_A" in name:  # the start of minedge's adapter, so that the losses can be compared
            module = name.removeprefix("base_model.model.").split(".lora_A")[0]
            start = kind.start({}, module, shapes[module], 0, ops)[f"{module}.lora_A.default.weight"]
            p.data.copy_(torch.from_numpy(start))
    return model


def _gpt2(config):
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    weights = dict(weights_of(config))
    C, H = config.n_embd, config.n_head

    def linear(name):
        layer = nn.Linear(*weights[f"{name}.weight"].shape[::-1])
        layer.weight.data.copy_(torch.tensor(weights[f"{name}.weight"]))
        layer.bias.data.copy_(torch.tensor(weights[f"{name}.bias"]))
        return layer

    class Block(nn.Module):
        def __init__(self, i):
            super().__init__()
            name = f"transformer.h.{i}"
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.c_attn, self.c_proj = linear(f"{name}.attn.c_attn"), linear(f"{name}.attn.c_proj")
            self.c_fc, self.mlp_proj = linear(f"{name}.mlp.c_fc"), linear(f"{name}.mlp.c_proj")

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, H, C // H).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, C), nn.Embedding(config.context_length, C)
            self.wte.weight.data.copy_(torch.tensor(weights["transformer.wte.weight"]))
            self.wpe.weight.data.copy_(torch.tensor(weights["transformer.wpe.weight"]))
            self.h = nn.ModuleList(Block(i) for i in range(config.n_layer))
            self.ln_f = nn.LayerNorm(C)

        def forward(self, tokens):
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.h:
                x = block(x)
            return F.linear(self.ln_f(x), self.wte.weight)

    return GPT()
