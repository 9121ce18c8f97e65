"""GPT-2 in PyTorch for training: fused q, k, v, scaled_dot_product_attention, a head tied to the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minedge.config import Config

__all__ = ["build"]


def build(config: Config, path: str) -> tuple[Any, Callable[[Any], Any]]:
    """(model, tokens (B, T + 1) -> loss), with the weights of a folder."""
    import torch
    from torch import nn
    from torch.nn import functional

    import minedge

    weights = minedge.load(path, backend="numpy").params
    C, H = config.n_embd, config.n_head

    def linear(name: str) -> Any:
        layer = nn.Linear(*weights[f"{name}.weight"].shape[::-1])
        layer.weight.data.copy_(torch.tensor(weights[f"{name}.weight"]))
        layer.bias.data.copy_(torch.tensor(weights[f"{name}.bias"]))
        return layer

    class Block(nn.Module):
        def __init__(self, i: int):
            super().__init__()
            name = f"transformer.h.{i}"
            self.ln_1, self.ln_2 = nn.LayerNorm(C, config.norm_eps), nn.LayerNorm(C, config.norm_eps)
            self.c_attn, self.c_proj = linear(f"{name}.attn.c_attn"), linear(f"{name}.attn.c_proj")
            self.c_fc, self.mlp_proj = linear(f"{name}.mlp.c_fc"), linear(f"{name}.mlp.c_proj")

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, H, C // H).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(C, dim=2))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, C), nn.Embedding(config.context_length, C)
            self.wte.weight.data.copy_(torch.tensor(weights["transformer.wte.weight"]))
            self.wpe.weight.data.copy_(torch.tensor(weights["transformer.wpe.weight"]))
            self.h = nn.ModuleList(Block(i) for i in range(config.n_layer))
            self.ln_f = nn.LayerNorm(C, config.norm_eps)

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.h:
                x = block(x)
            logits = functional.linear(self.ln_f(x), self.wte.weight)
            return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    model = GPT()
    return model, lambda tokens: model(tokens[:, :-1], tokens[:, 1:])
