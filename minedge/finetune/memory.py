r"""Memory of a pass, counted without running it: the lines of model/transformer.py with sizes in the place of arrays.

The forward and backward passes are walked in their own order. `hold` is an array that comes to life, `free` one
that dies, `spike` one that lives for a call; a `Trace` keeps the highest total and what it was made of.

Legend: N = B T positions; X, Q, K, I bytes of an array (N, n_embd), (N, q_width), (N, kv_width), (N, n_inner).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from minedge.config import Config
from minedge.finetune.memory_needs import F, need_of
from minedge.model.both_sides import together
from minedge.model.head_loss import LOGIT_TILE, both_rows, tile_rows, training_rows
from minedge.model.linears import LinearKind
from minedge.model.shapes import head_name, linear_shapes, param_shapes

__all__ = ["Trace", "array_bytes", "inference", "training_step"]

_ITEMSIZE = {"float32": 4, "float16": 2, "uint16": 2, "int8": 1, "uint8": 1, "float64": 8, "int64": 8}


def array_bytes(config: Config, linears: Mapping[str, LinearKind]) -> dict[str, int]:
    """Bytes of every parameter array."""
    return {name: prod(shape) * _ITEMSIZE[dtype] for name, (shape, dtype) in param_shapes(config, linears).items()}


class Trace:
    """Live bytes by part, and the highest sum of them so far."""

    def __init__(self) -> None:
        self.live: Counter[str] = Counter()
        self.peak, self.parts, self.moment = 0, dict[str, int](), ""
        self.where = ""

    def hold(self, part: str, size: int) -> int:
        self.live[part] += size
        self.spike(0)
        return size

    def free(self, part: str, size: int) -> None:
        self.live[part] -= size

    def spike(self, size: int) -> None:
        total = sum(self.live.values()) + size
        if total > self.peak:
            self.peak, self.moment = total, self.where
            self.parts = {**{k: v for k, v in self.live.items() if v}, **({"transient": size} if size else {})}


# --- the passes -------------------------------------------------------------------------------------------------------


class _Walk:
    """One model at one shape: the pieces of transformer.py, forward and backward."""

    def __init__(self, trace: Trace, config: Config, linears: Mapping[str, LinearKind], B: int, T: int, tier: str):
        self.t, self.config, self.linears, self.tier = trace, config, linears, tier
        self.B, self.T, self.N = B, T, B * T
        self.X, self.Q, self.K, self.I = (
            F * self.N * width for width in (config.n_embd, config.q_width, config.kv_width, config.n_inner)
        )
        self.R = F * self.N * (2 if config.arch.norm == "layer" else 1)  # rstd, and mean
        self.shapes = linear_shapes(config)
        self.bytes = array_bytes(config, linears)
        self.wanted: frozenset[str] = frozenset()
        self.noisy: frozenset[str] = frozenset()
        self.together = False  # MeZO's two sides as one batch: B counts both
        self.checkpoint = False

    @property
    def stream(self) -> int:
        """What goes from half a layer to the next: in MeZO's two looks that of both."""
        return 2 * self.X if self.noisy and not self.together else self.X

    def scores(self, count: float) -> int:
        """The (T, T) matrices that only the specification makes."""
        return int(count * F * self.B * self.config.n_head * self.T * self.T) if self.tier == "numpy" else 0

    def elementwise(self, size: int, count: int) -> int:
        """Temporaries of NumPy's expressions."""
        return count * size if self.tier == "numpy" else 0

    def own(self, name: str) -> dict[str, int]:
        """Arrays of one matrix."""
        keys = [*self.linears[name].shapes(name, *self.shapes[name]), f"{name}.bias"]
        return {key: self.bytes[key] for key in keys if key in self.bytes}

    def linear(self, name: str, keep: bool) -> int:
        """Forward of a matrix: what it keeps. The output is counted by the caller."""
        out, width = self.shapes[name]
        need = need_of(self.linears[name], self.N, out, width, self.tier)
        perturbed = max((size for key, size in self.own(name).items() if key in self.noisy), default=0)
        if self.together:  # a kind without a product of its own makes one side's after the other, and then stacks them
            own = type(self.linears[name]).both is not LinearKind.both
            perturbed = 0 if own else 2 * perturbed + F * self.N * out
        biased = F * self.N * out if f"{name}.bias" in self.bytes else 0
        self.t.spike(F * self.N * out + max(need.forward + perturbed, biased))
        return need.kept if keep else 0

    def linear_backward(self, name: str) -> None:
        """Backward of a matrix: its gradients stay. The input's gradient is counted by the caller."""
        out, width = self.shapes[name]
        self.t.spike(F * self.N * width + need_of(self.linears[name], self.N, out, width, self.tier).backward)
        self.t.hold("gradients", sum(size for key, size in self.own(name).items() if key in self.wanted))

    def made(self, i: int, roles: tuple[str, ...]) -> int:
        """Perturbed copies that wait for the other of MeZO's two sides by the end of half a layer."""
        if self.together:
            return 0
        names = [self.config.layer_name(i, role) for role in roles]
        return sum(size for name in names for key, size in self.own(name).items() if key in self.noisy)

    def norm_gradients(self, i: int, *roles: str | None) -> None:
        names = [f"{self.config.layer_name(i, role)}{s}" for role in roles if role for s in (".weight", ".bias")]
        self.t.hold("gradients", sum(self.bytes[name] for name in names if name in self.wanted))

    # Each half of a layer returns what it keeps beside its input; the output (X) replaces the input as the live stream.

    def attention(self, i: int, keep: bool) -> int:
        t, c, a = self.t, self.config, self.config.arch
        t.where = f"forward, attention of layer {i}"
        waiting = t.hold("perturbed", self.made(i, (*a.attn_in, a.attn_out)))
        held = t.hold("activations", self.X + self.R)  # the norm's output
        t.spike(self.elementwise(self.X, 2))
        for role in a.attn_in:
            held += t.hold("activations", self.linear(c.layer_name(i, role), keep))
            held += t.hold("activations", F * self.N * self.shapes[c.layer_name(i, role)][0])
        if len(a.attn_in) == 1:
            t.spike(self.Q + 2 * self.K)
        if a.q_norm:
            grown = self.Q + self.K + F * self.N * (c.n_head + c.n_kv_head)
            t.spike(grown)
            held += t.hold("activations", grown if keep else 0)
        if c.uses_rotary:
            t.spike(self.Q + self.elementwise(self.Q, 2))
        t.spike(self.scores(3))
        held += t.hold("activations", self.Q + F * self.N * c.n_head)  # output and log-sum-exp
        held += t.hold("activations", self.linear(c.layer_name(i, a.attn_out), keep))
        t.free("perturbed", waiting)
        return self.close(held, keep)

    def mlp(self, i: int, keep: bool) -> int:
        t, c, a = self.t, self.config, self.config.arch
        t.where = f"forward, MLP of layer {i}"
        waiting = t.hold("perturbed", self.made(i, (*a.mlp_in, a.mlp_out)))
        held = t.hold("activations", self.X + self.R)
        t.spike(self.elementwise(self.X, 2))
        for role in a.mlp_in:
            held += t.hold("activations", self.linear(c.layer_name(i, role), keep) + self.I)
        t.spike(self.elementwise(self.I, 4))
        t.hold("activations", self.I)  # the activation's output, made again in backward
        held += t.hold("activations", self.linear(c.layer_name(i, a.mlp_out), keep))
        t.free("activations", self.I)
        t.free("perturbed", waiting)
        return self.close(held, keep)

    def trains(self, i: int, roles: tuple[str, ...]) -> bool:
        """Whether any of these matrices, which share an input, has an array that is trained."""
        prefixes = tuple(f"{self.config.layer_name(i, role)}." for role in roles)
        return any(name.startswith(prefixes) for name in self.wanted)

    def close(self, held: int, keep: bool) -> int:
        """The end of a half: its output takes the stream's place; its input stays for backward, the norm's output
        does not.
        """
        self.t.hold("activations", self.X)
        self.t.free("activations", self.X)
        held -= self.X
        if not keep:
            self.t.free("activations", held + self.X)
            return 0
        if self.checkpoint:
            self.t.free("activations", held - self.R)
            return self.R + self.X
        return held + self.X

    def hidden(self, keep: bool) -> list[int]:
        """forward_hidden; returns what every half keeps. One X, the final norm's output, stays live."""
        self.t.where = "forward, embedding"
        self.t.hold("activations", self.stream)
        if self.config.arch.positions:
            self.t.spike(self.X)
        halves = []
        for i in range(self.config.n_layer):
            halves += [self.attention(i, keep), self.mlp(i, keep)]
        self.t.where = "forward, final norm"
        self.t.hold("activations", self.X + self.R)
        if not keep:
            self.t.free("activations", self.X + self.R)
        return halves

    def half_backward(self, i: int, kept: int, norm: str) -> None:
        arch = self.config.arch
        first = norm == arch.norm1
        if self.checkpoint:  # the forward of this half again; its own output is dropped
            self.checkpoint = False
            again = (self.attention if first else self.mlp)(i, True)
            self.checkpoint = True
            self.t.free("activations", self.R + self.X)  # counted twice: what the half starts from
            kept = again
        normed = self.X if self.trains(i, arch.attn_in if first else arch.mlp_in) else 0
        self.t.hold("activations", normed)  # made again
        (self.attention_backward if first else self.mlp_backward)(i)
        self.t.free("activations", normed)
        self.t.hold("activations", self.X)  # gradient of the norm's output
        self.t.spike(self.X + self.elementwise(self.X, 3))  # and of its input
        self.norm_gradients(i, norm)
        self.t.free("activations", kept + self.X)

    def mlp_backward(self, i: int) -> None:
        t, c, a = self.t, self.config, self.config.arch
        t.where = f"backward, MLP of layer {i}"
        again = t.hold("activations", self.I if self.trains(i, (a.mlp_out,)) else 0)
        self.linear_backward(c.layer_name(i, a.mlp_out))
        t.hold("activations", self.I)
        t.free("activations", again)
        t.spike(self.elementwise(self.I, 4))
        held = t.hold("activations", len(a.mlp_in) * self.I)
        t.free("activations", self.I)
        for role in a.mlp_in:
            self.linear_backward(c.layer_name(i, role))
            held += t.hold("activations", self.X)
        t.free("activations", held)

    def attention_backward(self, i: int) -> None:
        t, c, a = self.t, self.config, self.config.arch
        t.where = f"backward, attention of layer {i}"
        self.linear_backward(c.layer_name(i, a.attn_out))
        held = t.hold("activations", self.Q)
        t.spike(self.scores(4))
        held += t.hold("activations", self.Q + 2 * self.K)
        t.spike(self.Q + (self.K if c.uses_rotary else 0))
        self.norm_gradients(i, a.q_norm, a.k_norm)
        if len(a.attn_in) == 1:
            held += t.hold("activations", self.Q + 2 * self.K)
        for role in a.attn_in:
            self.linear_backward(c.layer_name(i, role))
            held += t.hold("activations", self.X)
        t.free("activations", held)


def inference(
    trace: Trace, config: Config, linears: Mapping[str, LinearKind], B: int, T: int, tier: str, noisy: frozenset[str]
) -> None:
    """`Model.loss_sum` of tokens with T predicted positions a row, or `loss_sums` where arrays are `noisy`: forward,
    then logits tile by tile.
    """
    at_once = bool(noisy) and together(config, linears, noisy, B * T, tier)
    walk = _Walk(trace, config, linears, 2 * B if at_once else B, T, tier)
    walk.noisy, walk.together = noisy, at_once
    walk.hidden(keep=False)
    trace.where = "logits"
    head, V = head_name(config), config.vocab_size
    if at_once:
        rows = min(B * T, both_rows(config, B * T))
        trace.spike(F * 2 * rows * (config.n_embd + V))
        trace.free("activations", walk.stream)
        return
    perturbed = sum(size for key, size in walk.own(head).items() if key in noisy)
    rows = tile_rows(walk.N, LOGIT_TILE // V)
    tile = F * rows * V + (F * rows * config.n_embd if rows < walk.N else 0)
    unpacked = need_of(linears[head], rows, *walk.shapes[head], tier).forward
    trace.spike(perturbed + tile + max(unpacked, walk.elementwise(F * rows * V, 2)))
    trace.free("activations", walk.stream)


def training_step(
    trace: Trace,
    config: Config,
    linears: Mapping[str, LinearKind],
    B: int,
    T: int,
    tier: str,
    wanted: frozenset[str],
    checkpoint: bool = False,
) -> None:
    """`Model.loss_and_grads`: forward that keeps, loss, backward. The gradients stay live at the end."""
    walk = _Walk(trace, config, linears, B, T, tier)
    walk.wanted, walk.checkpoint = wanted, checkpoint
    halves = walk.hidden(keep=True)
    a, head = config.arch, head_name(config)
    trace.where = "logits and their gradient"
    rows = tile_rows(walk.N, training_rows(config, wanted))
    logits, tile = F * rows * config.vocab_size, F * rows * config.n_embd
    need = need_of(linears[head], rows, *walk.shapes[head], tier)
    trace.hold("activations", walk.X)  # gradient of the final norm's output
    trace.spike(logits + need.forward)
    trace.hold("activations", need.kept)
    trace.hold("logits", 2 * logits)
    trace.spike(walk.elementwise(logits, 1))
    trace.free("logits", logits)
    gradients = sum(size for key, size in walk.own(head).items() if key in wanted)
    trace.hold("gradients", gradients)
    trace.spike(tile + need.backward + (gradients if rows < walk.N else 0))  # one tile's gradients beside their sum
    trace.free("logits", logits)
    trace.hold("activations", walk.X)  # gradient of its input
    trace.hold("gradients", sum(walk.bytes.get(f"{a.final_norm}{s}", 0) for s in (".weight", ".bias")))
    trace.free("activations", need.kept + 2 * walk.X + walk.R)  # the final norm's input and output
    for i in reversed(range(config.n_layer)):
        walk.half_backward(i, halves.pop(), a.norm2)
        walk.half_backward(i, halves.pop(), a.norm1)
    trace.where = "backward, embedding"
    names = [f"{a.embed}.weight", f"{a.positions}.weight"]
    inputs = sum(walk.bytes.get(name, 0) for name in names if name in wanted)
    trace.hold("gradients", inputs)
    if head == a.embed and f"{head}.weight" in wanted:  # tied: head's and embedding's gradients become one
        trace.free("gradients", walk.bytes[f"{head}.weight"])
    trace.free("activations", 2 * walk.X)
