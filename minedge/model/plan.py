r"""The plan: a decoder as a flat list of steps on named buffers, made from a config and the linear kinds.

`transformer.py` is what the steps mean; the plan is the same thing with every loop and every choice already taken, so
that an interpreter (kernels/engine.c) can run it without knowing what a Llama is. It holds no arrays and can be read:

    >>> from minedge.config import Config
    >>> from minedge.model.linears import Dense
    >>> from minedge.model.shapes import linear_shapes
    >>> config = Config(vocab_size=9, n_layer=1, n_embd=4, n_head=1, n_inner=8, context_length=6)
    >>> plan = compile_plan(config, {name: Dense() for name in linear_shapes(config)})
    >>> print(plan.listing()[1])
      1  n       rms_norm    x                   model.layers.0.input_layernorm.weight  n=4 group=1 value=1e-05

Legend: a buffer has one row a token; a `codes` buffer holds activations rounded to int8, with a scale for 32 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minedge.config import Config
from minedge.model.linears import LinearKind
from minedge.model.shapes import has_bias, head_name, linear_shapes

__all__ = ["Buffer", "Lacks", "Plan", "Step", "compile_plan"]

BLOCK = 32  # activations that share a scale


class Lacks(Exception):  # noqa: N818  (a reason, not a failure: the readable model runs instead)
    """What a model has that no step exists for."""


@dataclass(frozen=True)
class Buffer:
    """Rows of `width` numbers, float32 or int8 codes."""

    width: int
    dtype: str = "float32"  # or "codes"


@dataclass(frozen=True)
class Step:
    """`out = op(inputs, params)`. Sizes n, m, group and value mean what minedge_kernels.h says at the op's name."""

    op: str
    out: str
    inputs: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    n: int = 0
    m: int = 0
    group: int = 0
    value: float = 0.0
    layer: int = -1  # which layer's keys and values: steps "store" and "attention"

    @property
    def width(self) -> int:
        """Numbers that it writes a token."""
        if self.op in ("rms_norm", "attention"):
            return self.n * self.group
        return self.m * (self.n if self.op == "rotary" else 1) or self.n

    def __str__(self) -> str:
        sizes = " ".join(f"{k}={v:g}" for k, v in vars(self).items() if k in ("n", "m", "group", "value") and v)
        layer = f"cache {self.layer} " if self.layer >= 0 else ""
        names = f"{layer}{', '.join(self.params)}"
        return f"{self.out:<7} {self.op:<11} {', '.join(self.inputs):<19} {names}  {sizes}".rstrip()


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they run, and the buffers they name."""

    steps: tuple[Step, ...]
    buffers: Mapping[str, Buffer]

    def listing(self) -> list[str]:
        """One line a step."""
        return [f"{i:>3}  {step}" for i, step in enumerate(self.steps)]

    def __str__(self) -> str:
        widths = ", ".join(
            f"{name} {b.width}{' int8' if b.dtype == 'codes' else ''}" for name, b in self.buffers.items()
        )
        return "\n".join([f"buffers (numbers a token): {widths}", *self.listing()])


@dataclass
class _Builder:
    """Steps so far. Remembers which buffers have their codes made, so that q, k and v share one rounding."""

    config: Config
    linears: Mapping[str, LinearKind]
    steps: list[Step] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    rounded: set[str] = field(default_factory=set)
    later: list[Callable[[], None]] = field(default_factory=list)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = linear_shapes(self.config)

    def add(self, op: str, out: str, inputs: tuple[str, ...] = (), params: tuple[str, ...] = (), **sizes: Any) -> None:
        self.rounded.discard(out)
        self.steps.append(Step(op, out, inputs, params, **sizes))

    def buffer(self, name: str, width: int, dtype: str = "float32") -> str:
        """The buffer's name; the widest use counts."""
        known = self.buffers.get(name)
        self.buffers[name] = Buffer(max(width, known.width if known else 0), dtype)
        return name

    def codes(self, x: str, width: int) -> str:
        """x as int8 codes, made once for all that read them."""
        name = self.buffer(f"{x}.int8", width, "codes")
        if x not in self.rounded:
            self.add("quantize", name, (x,), n=width)
            self.rounded.add(x)
        return name

    # --- linear layers ----------------------------------------------------------------------------------------------

    def linear(self, x: str, *pairs: tuple[str, str]) -> None:
        """For each (name, out): out = the matrix `name` times x, by the rule of its kind, and its bias. What the rules
        put off comes after all products, so that those stand in a row and can share one job.
        """
        for name, out in pairs:
            m, n = self.shapes[name]
            self.product(self.linears[name], x, name, self.buffer(out, m), n, m)
        for add in self.later:
            add()
        self.later.clear()
        for name, out in pairs:
            if has_bias(self.config, name):
                self.add("bias", out, (out,), (f"{name}.bias",), m=self.buffers[out].width)

    def product(self, kind: LinearKind, x: str, name: str, out: str, n: int, m: int) -> None:
        rule = PRODUCTS.get(kind.kind)
        if rule is None:
            raise Lacks(f"{name} is {kind.kind}, which the engine has no product for")
        rule(self, kind, x, name, out, n, m)

    def norm(self, x: str, name: str, out: str, width: int, group: int = 1) -> None:
        params: tuple[str, ...] = (f"{name}.weight",)
        op = "rms_norm"
        if self.config.arch.norm == "layer":
            op, params = "layer_norm", (f"{name}.weight", f"{name}.bias")
        self.add(op, self.buffer(out, width * group), (x,), params, n=width, group=group, value=self.config.norm_eps)

    # --- the decoder ------------------------------------------------------------------------------------------------

    def embed(self) -> None:
        a, C = self.config.arch, self.config.n_embd
        kind = self.linears[a.embed]
        if kind.kind not in ROWS:
            raise Lacks(f"{a.embed} is {kind.kind}, of which the engine cannot look up rows")
        op, suffixes = ROWS[kind.kind]
        group = getattr(kind, "group_size", int(kind.kind == "bfloat16"))
        self.add(op, self.buffer("x", C), (), tuple(f"{a.embed}.{s}" for s in suffixes), n=C, group=group)
        if a.positions:
            self.add("positions", "x", ("x",), (f"{a.positions}.weight",), n=C)

    def attention(self, i: int) -> None:
        """x += attn_out(attention(rotary(q), rotary(k), v)), q, k, v from norm1(x)."""
        config, a = self.config, self.config.arch
        C, H, KV, D = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
        self.norm("x", config.layer_name(i, a.norm1), "n", C)
        parts = {"q": config.q_width, "k": config.kv_width, "v": config.kv_width}
        if len(a.attn_in) == 1:
            self.linear("n", (config.layer_name(i, a.attn_in[0]), "qkv"))
            start = 0
            for out, width in parts.items():
                self.add("columns", self.buffer(out, width), ("qkv",), n=sum(parts.values()), m=width, group=start)
                start += width
        else:
            names = [config.layer_name(i, role) for role in a.attn_in]
            self.linear("n", *zip(names, parts, strict=True))
        if a.q_norm and a.k_norm:
            self.norm("q", config.layer_name(i, a.q_norm), "q", D, H)
            self.norm("k", config.layer_name(i, a.k_norm), "k", D, KV)
        if config.uses_rotary:
            self.add("rotary", "q", ("q",), ("rotary.cos", "rotary.sin"), n=D, m=H)
            self.add("rotary", "k", ("k",), ("rotary.cos", "rotary.sin"), n=D, m=KV)
        self.add("store", "cache", ("k", "v"), n=D, m=KV, layer=i)
        self.add("attention", self.buffer("y", H * D), ("q", "cache"), n=D, m=KV, group=H, layer=i)
        self.linear("y", (config.layer_name(i, a.attn_out), "z"))
        self.add("add", "x", ("z", "x"), n=C)

    def mlp(self, i: int) -> None:
        """x += mlp_out(act(mlp_in(norm2(x))))."""
        config, a = self.config, self.config.arch
        self.norm("x", config.layer_name(i, a.norm2), "n", config.n_embd)
        if a.activation == "swiglu":
            names = [config.layer_name(i, role) for role in a.mlp_in]
            self.linear("n", *zip(names, ("gate", "up"), strict=True))
            self.add("swiglu", self.buffer("h", config.n_inner), ("gate", "up"), n=config.n_inner)
        else:
            self.linear("n", (config.layer_name(i, a.mlp_in[0]), "up"))
            self.add("gelu", self.buffer("h", config.n_inner), ("up",), n=config.n_inner)
        self.linear("h", (config.layer_name(i, a.mlp_out), "z"))
        self.add("add", "x", ("z", "x"), n=config.n_embd)

    def head(self) -> None:
        """Logits of the rows that are asked for: the norm works row by row, so it can come after the choice."""
        self.add("pick", self.buffer("last", self.config.n_embd), ("x",), n=self.config.n_embd)
        self.norm("last", self.config.arch.final_norm, "last_n", self.config.n_embd)
        self.linear("last_n", (head_name(self.config), "logits"))


def compile_plan(config: Config, linears: Mapping[str, LinearKind]) -> Plan:
    """The steps of one pass over new tokens. Raises `Lacks` where a kind has no step."""
    b = _Builder(config, linears)
    b.embed()
    for i in range(config.n_layer):
        b.attention(i)
        b.mlp(i)
    b.head()
    return Plan(tuple(b.steps), b.buffers)


# --- what each kind becomes -----------------------------------------------------------------------------------------


def _dense(b: _Builder, kind: LinearKind, x: str, name: str, out: str, n: int, m: int) -> None:
    b.add("dense", out, (x,), (f"{name}.weight",), n=n, m=m)


def _int4(b: _Builder, kind: Any, x: str, name: str, out: str, n: int, m: int) -> None:
    b.add("int4", out, (b.codes(x, n),), (f"{name}.qweight", f"{name}.scales"), n=n, m=m, group=kind.group_size)


def _lora(b: _Builder, kind: Any, x: str, name: str, out: str, n: int, m: int) -> None:
    """base(x) + (scaling * x A^T) B^T, the adapter beside the base."""
    b.product(kind.base, x, name, out, n, m)
    if not kind.active:
        return

    def add() -> None:
        low, change = b.buffer("lora.low", kind.r), b.buffer("lora.out", m)
        a_name, b_name = kind.names(name)
        b.add("dense", low, (x,), (a_name,), n=n, m=kind.r)
        b.add("scale", low, (low,), n=kind.r, value=float(kind.scaling))
        b.add("dense", change, (low,), (b_name,), n=kind.r, m=m)
        b.add("add", out, (out, change), n=m)

    b.later.append(add)


def _int8(b: _Builder, kind: Any, x: str, name: str, out: str, n: int, m: int) -> None:
    b.add("int8", out, (b.codes(x, n),), (f"{name}.qweight", f"{name}.scales"), n=n, m=m, group=kind.group_size)


def _half(b: _Builder, kind: Any, x: str, name: str, out: str, n: int, m: int) -> None:
    b.add("half", out, (x,), (f"{name}.half",), n=n, m=m, group=int(kind.kind == "bfloat16"))


def _sparse(b: _Builder, kind: Any, x: str, name: str, out: str, n: int, m: int) -> None:
    params = (f"{name}.mask", f"{name}.values", f"{name}.starts")
    b.add("sparse", out, (x,), params, n=n, m=m, group=kind.dtype == "float16")


Rule = Callable[[_Builder, Any, str, str, str, int, int], None]
PRODUCTS: dict[str, Rule] = {
    "dense": _dense, "int4": _int4, "int8": _int8, "float16": _half, "bfloat16": _half, "sparse": _sparse,
    "lora": _lora,
    "masked": _dense,  # what its mask takes out is zero in the array already
}  # fmt: skip
# Embeddings: the step, and the arrays it reads.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense": ("rows_dense", ("weight",)),
    "int4": ("rows_int4", ("qweight", "scales")),
    "int8": ("rows_int8", ("qweight", "scales")),
    "float16": ("rows_half", ("half",)),
    "bfloat16": ("rows_half", ("half",)),
}
