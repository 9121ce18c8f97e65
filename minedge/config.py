"""What a model is made of: `Config`, the sizes and options, and `Architecture`, the table that maps roles to
checkpoint names.

The transformer knows roles (q, k, v or a fused qkv; gate/up/down or fc/proj; norms). Checkpoints know names. The
tables here are the only place where the two meet, so tensors keep the names Hugging Face gave them and adapters made
elsewhere fit.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["ARCHITECTURES", "Architecture", "Config", "did_you_mean", "integer"]


def did_you_mean(word: str, known: list[str]) -> str:
    """A clause to append to an error, ` (did you mean 'x'?)`, or the empty string where nothing is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def integer(name: str, value: Any, low: int = 1, expected: str = "") -> int:
    """`value`, an integer of any type (NumPy's too), as an int; `UsageError` naming the argument for anything else,
    truth values included.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low:
        raise UsageError(f"{name}: expected {expected or f'an integer >= {low}'}, got {value!r}")
    return number


@dataclass(frozen=True)
class Architecture:
    """Names of one checkpoint family. `layer` holds `{i}`; the roles below it are relative to a layer."""

    embed: str
    layer: str
    norm1: str
    norm2: str
    final_norm: str
    attn_out: str
    attn_in: tuple[str, ...]  # three names (q, k, v), or one fused name whose rows are q, k, v in turn
    mlp_in: tuple[str, ...]  # (gate, up) or (fc,)
    mlp_out: str
    head: str = "lm_head"
    positions: str | None = None  # learned positions
    q_norm: str | None = None
    k_norm: str | None = None
    norm: str = "rms"  # "rms" or "layer"
    activation: str = "swiglu"  # "swiglu" or "gelu"
    attn_in_bias: bool = False
    other_bias: bool = False  # bias on the output projection, the MLP and (with LayerNorm) the norms
    conv1d: bool = False  # linear weights lie (in, out) on disk
    hf_class: str = ""


_LLAMA_NAMES: dict[str, Any] = dict(
    embed="model.embed_tokens",
    layer="model.layers.{i}",
    norm1="input_layernorm",
    norm2="post_attention_layernorm",
    final_norm="model.norm",
    attn_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(**_LLAMA_NAMES, hf_class="LlamaForCausalLM"),
    "qwen2": Architecture(**_LLAMA_NAMES, attn_in_bias=True, hf_class="Qwen2ForCausalLM"),
    "qwen3": Architecture(
        **_LLAMA_NAMES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", hf_class="Qwen3ForCausalLM"
    ),
    "gpt2": Architecture(
        embed="transformer.wte",
        positions="transformer.wpe",
        layer="transformer.h.{i}",
        norm1="ln_1",
        norm2="ln_2",
        final_norm="transformer.ln_f",
        attn_in=("attn.c_attn",),
        attn_out="attn.c_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        norm="layer",
        activation="gelu",
        attn_in_bias=True,
        other_bias=True,
        conv1d=True,
        hf_class="GPT2LMHeadModel",
    ),
}


MAX_HEAD_DIM = 1024  # what the kernels keep of a head on the stack; published models have up to 256


@dataclass(frozen=True)
class Config:
    """Sizes and options of one decoder. Widths count floats, `context_length` counts tokens.

    Raises `UsageError` (a `ValueError`) where sizes contradict each other.
    """

    vocab_size: int
    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    context_length: int
    n_kv_head: int = 0  # 0: as many as n_head
    head_dim: int = 0  # 0: n_embd / n_head
    architecture: str = "llama"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] | None = None  # items of the checkpoint's rope_scaling, sorted
    attn_in_bias: bool | None = None  # None: as the architecture has it
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: tuple[tuple[str, Any], ...] = field(
        default=(), repr=False
    )  # other keys of config.json, written back unchanged

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            known = sorted(ARCHITECTURES)
            raise UsageError(
                f"architecture: expected one of {', '.join(known)}, got {self.architecture!r}"
                f"{did_you_mean(str(self.architecture), known)}"
            )
        set_ = object.__setattr__
        for name in ("vocab_size", "n_layer", "n_embd", "n_head", "n_inner", "context_length"):
            set_(self, name, integer(name, getattr(self, name), 1, "a positive integer"))
        if self.n_kv_head == 0:
            set_(self, "n_kv_head", self.n_head)
        if self.head_dim == 0:
            if self.n_embd % self.n_head:
                raise UsageError(f"n_head: {self.n_head} does not divide n_embd {self.n_embd}; give head_dim")
            set_(self, "head_dim", self.n_embd // self.n_head)
        if self.attn_in_bias is None:
            set_(self, "attn_in_bias", self.arch.attn_in_bias)
        if self.n_kv_head < 1 or self.n_head % self.n_kv_head:
            raise UsageError(f"n_kv_head: expected a divisor of n_head {self.n_head}, got {self.n_kv_head}")
        if self.head_dim < 1 or (self.uses_rotary and self.head_dim % 2):
            raise UsageError(f"head_dim: rotary positions turn pairs, expected an even number, got {self.head_dim}")
        if self.head_dim > MAX_HEAD_DIM:
            raise UsageError(f"head_dim: expected at most {MAX_HEAD_DIM}, got {self.head_dim}")
        if not self.norm_eps > 0:
            raise UsageError(f"norm_eps: expected a positive number, got {self.norm_eps!r}")
        if self.rope_scaling is not None:
            kind = dict(self.rope_scaling).get("rope_type", dict(self.rope_scaling).get("type"))
            if kind not in ("linear", "llama3"):
                raise UsageError(f"rope_scaling: expected type 'linear' or 'llama3', got {kind!r}")

    @property
    def arch(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    @property
    def uses_rotary(self) -> bool:
        return self.arch.positions is None

    @property
    def q_width(self) -> int:
        return self.n_head * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_head * self.head_dim

    def layer_name(self, i: int, role: str) -> str:
        """Full module name of `role` (a field of `Architecture`'s per-layer names) in layer `i`."""
        return f"{self.arch.layer.format(i=i)}.{role}"

    @property
    def eos_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that config.json holds."""
        out: dict[str, Any] = dict(self.extra)
        names = _GPT2_KEYS if self.architecture == "gpt2" else _LLAMA_KEYS
        out.update({hf: getattr(self, ours) for ours, hf in names.items()})
        out.update(
            model_type=self.architecture,
            architectures=[self.arch.hf_class],
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=self.bos_token_id,
            eos_token_id=list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
        )
        if self.architecture == "gpt2":
            out["activation_function"] = "gelu_new"
        else:
            out["hidden_act"] = "silu"
            out["rope_scaling"] = dict(self.rope_scaling) if self.rope_scaling else None
        if self.architecture == "llama":
            out["attention_bias"] = self.attn_in_bias
            out["mlp_bias"] = False
        return out

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> Config:
        """Read what config.json holds; `MinedgeFormatError` names the key that is missing or asks for what minedge
        lacks.
        """
        kind = data.get("model_type")
        if kind not in ARCHITECTURES:
            raise MinedgeFormatError(
                f"config.json: model_type: expected one of {', '.join(sorted(ARCHITECTURES))}, got {kind!r}"
                f"{did_you_mean(str(kind), list(ARCHITECTURES))}"
            )
        names = _GPT2_KEYS if kind == "gpt2" else _LLAMA_KEYS
        optional = {"n_kv_head", "head_dim", "n_inner", "rope_theta", "norm_eps"}
        values: dict[str, Any] = {"architecture": kind}
        for ours, hf in names.items():
            if data.get(hf) is not None:
                values[ours] = data[hf]
            elif ours not in optional:
                raise MinedgeFormatError(f"config.json: key {hf!r} is missing")
        if kind == "gpt2":
            values.setdefault("n_inner", 4 * values["n_embd"])
            _require(data, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
            _require(data, "scale_attn_by_inverse_layer_idx", (False,), False)
        else:
            if "n_inner" not in values:
                raise MinedgeFormatError("config.json: key 'intermediate_size' is missing")
            values.setdefault("norm_eps", 1e-6)
            _require(data, "hidden_act", ("silu",), "silu")
            _require(data, "mlp_bias", (False,), False)
            rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
            if isinstance(data.get("rope_parameters"), Mapping) and "rope_theta" in data["rope_parameters"]:
                values["rope_theta"] = float(data["rope_parameters"]["rope_theta"])
            scaling = rope.get("rope_type", rope.get("type", "default"))
            if scaling != "default":
                values["rope_scaling"] = tuple(sorted(rope.items()))
            if data.get("use_sliding_window") or (
                data.get("sliding_window") and kind == "llama"  # Qwen's configs name a window they do not use
            ):
                raise MinedgeFormatError(
                    "config.json: sliding-window attention would change results and is not supported"
                )
            if kind == "llama" and data.get("attention_bias"):
                raise MinedgeFormatError("config.json: attention_bias with an output bias is not supported for llama")
        values["tie_embeddings"] = bool(data.get("tie_word_embeddings", kind == "gpt2"))
        values["bos_token_id"] = data.get("bos_token_id")
        eos = data.get("eos_token_id")
        values["eos_token_id"] = tuple(eos) if isinstance(eos, list) else eos
        used = set(names.values()) | _HANDLED_KEYS
        values["extra"] = tuple((k, v) for k, v in data.items() if k not in used)
        try:
            return cls(**values)
        except (UsageError, TypeError) as error:
            raise MinedgeFormatError(f"config.json: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require(data: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> None:
    if data.get(key, default) not in allowed:
        raise MinedgeFormatError(f"config.json: {key}: expected {' or '.join(map(repr, allowed))}, got {data[key]!r}")


_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_inner": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
_GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_inner": "n_inner",
    "context_length": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}
_HANDLED_KEYS = {
    "model_type", "architectures", "tie_word_embeddings", "bos_token_id", "eos_token_id", "hidden_act", "rope_scaling",
    "attention_bias", "mlp_bias", "activation_function", "minedge",
}  # fmt: skip
assert {f.name for f in fields(Config)} >= set(_LLAMA_KEYS)
