"""Which linear kinds may stand inside which, what each method does to each kind, and why not where it may not: data,
not code.

`LoRA(Int4(32), r=8, lora_alpha=16)` is legal, `Masked(Int4(32))` is not. Kinds check `WRAPS` when they are made, so a
file cannot smuggle in what an argument could not; the verbs (`quant.int4`, `prune.magnitude`, `lora.add`, ...) check
`APPLIES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from minedge.config import Config, did_you_mean
from minedge.errors import UsageError
from minedge.model.linears import LinearKind, core
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes

__all__ = [
    "APPLIES",
    "WRAPS",
    "Rule",
    "adapters",
    "check_applies",
    "check_base",
    "default_trainable",
    "select",
    "with_core",
]


class Rule(NamedTuple):
    """`legal`, and either what comes out of it or the reason against it."""

    legal: bool
    why: str


# (outer kind, inner kind): may `outer` have `inner` as its base?
WRAPS: dict[tuple[str, str], Rule] = {
    ("lora", "dense"): Rule(True, "LoRA as its paper has it"),
    ("lora", "int4"): Rule(True, "QLoRA's form: the codes are frozen, the adapter is float32"),
    ("lora", "int8"): Rule(True, "the codes are frozen, the adapter is float32"),
    ("lora", "float16"): Rule(True, "the 16 bits are frozen, the adapter is float32"),
    ("lora", "bfloat16"): Rule(True, "the 16 bits are frozen, the adapter is float32"),
    ("lora", "masked"): Rule(True, "the base stays pruned, the adapter is dense"),
    ("lora", "sparse"): Rule(True, "the packed weights are frozen, the adapter is dense"),
    ("dora", "sparse"): Rule(True, "the packed weights are frozen; lengths are those of the pruned rows"),
    ("masked", "sparse"): Rule(False, "it is a pruned matrix already"),
    ("lora", "nf4"): Rule(True, "QLoRA as its paper has it"),
    ("lora", "lora"): Rule(True, "several adapters, told apart by name; their changes add up"),
    ("lora", "dora"): Rule(
        True, "several adapters; DoRA's change is that of the weight below all adapters, and adds up"
    ),
    ("dora", "dense"): Rule(True, "DoRA as its paper has it"),
    ("dora", "int4"): Rule(True, "the codes are frozen, direction and lengths are trained in float32"),
    ("dora", "int8"): Rule(True, "the codes are frozen, direction and lengths are trained in float32"),
    ("dora", "nf4"): Rule(True, "QDoRA: the codes are frozen, direction and lengths are trained in float32"),
    ("dora", "float16"): Rule(True, "the 16 bits are frozen, direction and lengths are trained in float32"),
    ("dora", "bfloat16"): Rule(True, "the 16 bits are frozen, direction and lengths are trained in float32"),
    ("dora", "masked"): Rule(True, "the base stays pruned; lengths are those of the pruned rows"),
    ("dora", "lora"): Rule(True, "several adapters, told apart by name; their changes add up"),
    ("dora", "dora"): Rule(True, "several adapters, told apart by name; their changes add up"),
    ("masked", "dense"): Rule(True, "a pruned matrix"),
    ("masked", "int4"): Rule(False, "prune first, then quantize: pruned zeros become code 8, which reads as exactly 0"),
    ("masked", "int8"): Rule(False, "prune first, then quantize: pruned zeros become code 0, which reads as exactly 0"),
    ("masked", "nf4"): Rule(False, "prune first, then quantize: 0 is one of NF4's values, so pruned zeros stay 0"),
    ("masked", "float16"): Rule(False, "prune first, then round: pruned zeros stay exactly 0"),
    ("masked", "bfloat16"): Rule(False, "prune first, then round: pruned zeros stay exactly 0"),
    ("masked", "masked"): Rule(False, "prune again instead: the new mask replaces the old one"),
    ("masked", "lora"): Rule(False, "the mask belongs to the base inside: LoRA(Masked(Dense))"),
    ("masked", "dora"): Rule(False, "the mask belongs to the base inside: DoRA(Masked(Dense))"),
}

# (method, kind of the matrix): what comes out. Adapters are looked through: a method works on the base inside, and
# keeps them.
APPLIES: dict[tuple[str, str], Rule] = {
    ("int4", "dense"): Rule(True, "Int4"),
    ("int4", "masked"): Rule(True, "Int4; pruned weights keep reading as exactly 0, the mask itself is dropped"),
    # Matrices that are of the very kind asked for stay as they are where others are packed, such as an embedding.
    ("int4", "int4"): Rule(False, "it is quantized already and a second rounding adds error; start from float weights"),
    ("int4", "nf4"): Rule(False, "it is quantized already and a second rounding adds error; start from float weights"),
    ("int4", "int8"): Rule(True, "Int4; the 8-bit rounding before it is 16 times finer"),
    ("int8", "dense"): Rule(True, "Int8"),
    ("int8", "masked"): Rule(True, "Int8; pruned weights keep reading as exactly 0, the mask itself is dropped"),
    ("int8", "int4"): Rule(False, "it is in 4 bits already, and 8 bits for the same values would only take more"),
    ("int8", "nf4"): Rule(False, "it is in 4 bits already, and 8 bits for the same values would only take more"),
    ("int8", "int8"): Rule(True, "unchanged"),
    ("nf4", "dense"): Rule(True, "NF4"),
    ("nf4", "masked"): Rule(True, "NF4; pruned weights keep reading as exactly 0, the mask itself is dropped"),
    ("nf4", "int4"): Rule(False, "it is quantized already and a second rounding adds error; start from float weights"),
    ("nf4", "nf4"): Rule(False, "it is quantized already and a second rounding adds error; start from float weights"),
    ("nf4", "int8"): Rule(True, "NF4; the 8-bit rounding before it is 16 times finer"),
    ("int4", "float16"): Rule(True, "Int4; the rounding to 16 bits before it is far finer"),
    ("int8", "float16"): Rule(True, "Int8; the rounding to 16 bits before it is far finer"),
    ("nf4", "float16"): Rule(True, "NF4; the rounding to 16 bits before it is far finer"),
    ("prune", "float16"): Rule(False, "its weights are frozen in 16 bits already; prune before rounding"),
    ("densify", "float16"): Rule(True, "unchanged"),
    ("merge", "float16"): Rule(True, "Float16, rounded again, with a warning that says what it costs"),
    ("int4", "bfloat16"): Rule(True, "Int4; the rounding to 16 bits before it is far finer"),
    ("int8", "bfloat16"): Rule(True, "Int8; the rounding to 16 bits before it is far finer"),
    ("nf4", "bfloat16"): Rule(True, "NF4; the rounding to 16 bits before it is far finer"),
    ("prune", "bfloat16"): Rule(False, "its weights are frozen in 16 bits already; prune before rounding"),
    ("densify", "bfloat16"): Rule(True, "unchanged"),
    ("merge", "bfloat16"): Rule(True, "BFloat16, rounded again, with a warning that says what it costs"),
    ("float16", "dense"): Rule(True, "Float16"),
    ("float16", "masked"): Rule(True, "Float16; pruned weights keep reading as exactly 0, the mask itself is dropped"),
    ("float16", "int4"): Rule(False, "it is in 4 bits already, and 16 bits for the same values would only take more"),
    ("float16", "int8"): Rule(False, "it is in 8 bits already, and 16 bits for the same values would only take more"),
    ("float16", "nf4"): Rule(False, "it is in 4 bits already, and 16 bits for the same values would only take more"),
    ("float16", "float16"): Rule(True, "unchanged"),
    ("float16", "bfloat16"): Rule(False, "it is in 16 bits already; start from float weights"),
    ("bfloat16", "dense"): Rule(True, "BFloat16"),
    ("bfloat16", "masked"): Rule(True, "BFloat16; pruned weights keep reading as exactly 0, the mask is dropped"),
    ("bfloat16", "int4"): Rule(False, "it is in 4 bits already, and 16 bits for the same values would only take more"),
    ("bfloat16", "int8"): Rule(False, "it is in 8 bits already, and 16 bits for the same values would only take more"),
    ("bfloat16", "nf4"): Rule(False, "it is in 4 bits already, and 16 bits for the same values would only take more"),
    ("bfloat16", "bfloat16"): Rule(True, "unchanged"),
    ("bfloat16", "float16"): Rule(False, "it is in 16 bits already; start from float weights"),
    ("prune", "dense"): Rule(True, "Masked(Dense)"),
    ("prune", "masked"): Rule(True, "Masked(Dense) with a new mask; what was pruned is 0 and goes first"),
    ("prune", "int4"): Rule(False, "its weights are 4-bit codes already; prune before quantizing"),
    ("prune", "nf4"): Rule(False, "its weights are 4-bit codes already; prune before quantizing"),
    ("prune", "int8"): Rule(False, "its weights are 8-bit codes already; prune before quantizing"),
    ("prune", "sparse"): Rule(
        False, "its weights are packed; prune and recover first, or call minedge.sparse.unpack(model)"
    ),
    ("densify", "sparse"): Rule(True, "Dense with zeros"),
    ("merge", "sparse"): Rule(
        True, "Sparse with the same mask, with a warning: what the adapter changed under it is lost"
    ),
    **{
        (method, "sparse"): Rule(True, f"{kind}; pruned weights keep reading as exactly 0, the mask itself is dropped")
        for method, kind in (
            ("int4", "Int4"),
            ("int8", "Int8"),
            ("nf4", "NF4"),
            ("float16", "Float16"),
            ("bfloat16", "BFloat16"),
        )
    },
    ("pack", "masked"): Rule(True, "Sparse"),
    ("pack", "sparse"): Rule(True, "unchanged, but for the dtype of its values"),
    **{
        ("pack", kind): Rule(False, "no matrix of this model is pruned; prune it first, which needs float weights")
        for kind in ("dense", "int4", "int8", "nf4", "float16", "bfloat16")
    },
    ("densify", "dense"): Rule(True, "unchanged"),
    ("densify", "masked"): Rule(True, "Dense with zeros"),
    ("densify", "int4"): Rule(True, "unchanged"),
    ("densify", "nf4"): Rule(True, "unchanged"),
    ("densify", "int8"): Rule(True, "unchanged"),
    ("merge", "dense"): Rule(True, "Dense, within float32 rounding"),
    ("merge", "int4"): Rule(True, "Int4, quantized again, with a warning that says what it costs"),
    ("merge", "nf4"): Rule(True, "NF4, quantized again, with a warning that says what it costs"),
    ("merge", "int8"): Rule(True, "Int8, quantized again, with a warning that says what it costs"),
    ("merge", "masked"): Rule(
        True, "Masked with the same mask, with a warning: what the adapter changed under it is lost"
    ),
}


def check_base(outer: str, base: LinearKind) -> None:
    """Raise `UsageError` with the reason unless `outer` may have `base` inside."""
    if not isinstance(base, LinearKind):
        raise UsageError(f"base: expected a linear kind, got {type(base).__name__}")
    rule = WRAPS.get((outer, base.kind), Rule(False, "this combination is not defined"))
    if not rule.legal:
        raise UsageError(f"{outer} over {base.kind}: {rule.why}")


def check_applies(method: str, kind: LinearKind, name: str) -> None:
    """Raise `UsageError` with the reason unless `method` may be applied to the matrix `name` of this kind."""
    rule = APPLIES.get((method, core(kind).kind), Rule(False, "this combination is not defined"))
    if not rule.legal:
        raise UsageError(f"{method} on {name} ({core(kind).kind}): {rule.why}")


def adapters(kind: Any) -> list[Any]:
    """The adapters on top of a matrix, outermost first."""
    return [kind, *adapters(kind.base)] if kind.is_adapter else []


def with_core(kind: Any, new: LinearKind) -> Any:
    """`kind` with what lies below its adapters replaced by `new`."""
    return replace(kind, base=with_core(kind.base, new)) if kind.is_adapter else new


def select(config: Config, targets: str | Iterable[str] | None, argument: str) -> list[str]:
    """Module names that `targets` mean, in model order.

    A target is a module's name or the end of one ("q_proj", "attn.c_proj"), as in PEFT; "all" or None means every
    matrix except the embedding and the head. A target that matches nothing is a `UsageError` with the nearest names.
    """
    known = list(linear_shapes(config))
    inner = [name for name in known if name not in (config.arch.embed, config.arch.head)]
    if targets is None:
        return inner
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise UsageError(f"{argument}: expected at least one module name, got none")
    chosen: set[str] = set()
    for target in wanted:
        found = inner if target == "all" else [n for n in known if n == target or n.endswith(f".{target}")]
        if not found:
            leaves = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in known))
            raise UsageError(
                f"{argument}: no matrix of this {config.architecture} model is called {target!r}"
                f"{did_you_mean(str(target), [*leaves, *known])}; expected 'all' or some of {', '.join(leaves)}"
            )
        chosen.update(found)
    return [name for name in known if name in chosen]


def default_trainable(model: Model, linears: Mapping[str, LinearKind], params: Mapping) -> frozenset[str]:
    """What a freshly loaded model trains: every float array, but of a linear only what its kind calls trainable."""
    names = {key for key, array in params.items() if array.dtype.kind == "f"}
    for name, shape in linear_shapes(model.config).items():
        names -= set(linears[name].shapes(name, *shape)) - set(linears[name].trainable(name))
    return frozenset(names)
