"""Where GGUF and Hugging Face checkpoints meet: tensor names, metadata keys, the order of rotary rows.

GGUF calls layer 3's query projection "blk.3.attn_q", Hugging Face "model.layers.3.self_attn.q_proj". GGUF's llama
pairs rotary elements (2i, 2i + 1) where Hugging Face pairs (i, i + head_dim/2), so the rows of q and k stand in
another order; Qwen's and GPT-2's do not. Llama 3's scaled frequencies are a tensor in GGUF, "rope_freqs", whose
element i divides frequency i, and four numbers in config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.errors import MinedgeFormatError, UsageError
from minedge.model.shapes import linear_shapes

__all__ = [
    "ROPE_FREQS", "config_from_metadata", "gguf_name", "metadata_from_config", "rope_factors", "rotary_rows",
]  # fmt: skip

ROPE_FREQS = "rope_freqs.weight"
OWN_ROPE = "minedge.rope_scaling"  # the four numbers as JSON: they do not follow from the tensor alone
_MAX_LAYERS = 10_000

_ROLES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm", "ln_2": "ffn_norm",
}  # fmt: skip

# Metadata of an architecture that would change results, and the values under which it does not.
_MUST_BE_OFF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (),
    "attention.logit_softcapping": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
}


def gguf_name(config: Config, key: str) -> str:
    """Name of one of our parameters, "model.layers.3.self_attn.q_proj.weight", in a GGUF file."""
    a = config.arch
    module, _, suffix = key.rpartition(".")
    outer = {a.embed: "token_embd", a.final_norm: "output_norm", a.head: "output", a.positions: "position_embd"}
    if module in outer:
        return f"{outer[module]}.{suffix}"
    number, _, role = module.removeprefix(a.layer.format(i="")).partition(".")
    return f"blk.{number}.{_ROLES[role]}.{suffix}"


def rotary_rows(config: Config, module: str) -> NDArray[np.int64] | None:
    """For each row of `module` in a GGUF file, its row in memory; None where the order is the same."""
    if config.architecture != "llama" or not module.endswith(config.arch.attn_in[:2]):
        return None
    width, D = linear_shapes(config)[module][0], config.head_dim
    # In memory a head's rows are (2, D/2), first halves of the pairs and then second ones; in the file (D/2, 2).
    rows: Any = np.arange(width).reshape(-1, 2, D // 2).swapaxes(1, 2).reshape(-1)
    return rows


def rope_factors(config: Config) -> NDArray[np.float32]:
    """Llama 3's divisors of the rotary frequencies, (D/2,), as converters store them in `rope_freqs`."""
    s = dict(config.rope_scaling or ())
    return _factors(
        config, s["factor"], s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
    )


def _factors(config: Config, factor: float, low: float, high: float, original: float) -> NDArray[np.float32]:
    half = config.head_dim // 2
    turns = original * config.rope_theta ** (-np.arange(half) / half) / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def _llama3_scaling(config: Config, found: NDArray[np.float32], own: str | None, where: str) -> dict[str, Any]:
    """The four numbers that make these divisors: the ones minedge wrote beside them, or Llama 3's with some length."""
    trials: Iterator[dict[str, Any]] = iter(())
    if own is not None:
        try:
            stored = json.loads(own)
            trials = iter([{key: float(stored[key]) for key in _ROPE_KEYS}])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MinedgeFormatError(f"{where}: key {OWN_ROPE!r}: {error}") from None
    elif found.shape == (config.head_dim // 2,) and np.isfinite(found).all() and found.max() > 0:
        factor = float(found.max())
        lengths = [2.0**n for n in (13, *range(4, 13), *range(14, 24))]
        trials = (dict(zip(_ROPE_KEYS, (factor, 1.0, 4.0, length), strict=True)) for length in lengths)
    for s in trials:
        with np.errstate(all="ignore"):
            if s["high_freq_factor"] == s["low_freq_factor"]:
                continue
            made = _factors(config, *(s[key] for key in _ROPE_KEYS))
        if made.shape == found.shape and np.allclose(made, found, rtol=1e-5, atol=0):
            length = s["original_max_position_embeddings"]
            return {**s, "original_max_position_embeddings": int(length) if length == int(length) else length}
    raise MinedgeFormatError(f"{where}: tensor {ROPE_FREQS!r} holds divisors that are not Llama 3's scaling")


_ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def config_from_metadata(
    get: Callable[[str, type], Any], names: dict[str, tuple[int, ...]], rope: NDArray[np.float32] | None, where: str
) -> Config:
    """The Config of a file; `get(key, type)` gives a metadata value or None, `names` the tensors' shapes.

    Raises MinedgeFormatError for what is missing or asks for something minedge lacks.
    """

    def need(key: str, kind: type) -> Any:
        value = get(key, kind)
        if value is None:
            raise MinedgeFormatError(f"{where}: key {key!r} is missing")
        return value

    def positive(key: str, default: float | None = None) -> float:
        """A float32 as the decimal number its writer meant: 1e-5, not 9.999999747378752e-06."""
        value = need(key, float) if default is None else get(key, float)
        if value is None:
            return float(default or 0.0)
        if not (value > 0 and isfinite(value)):
            raise MinedgeFormatError(f"{where}: key {key!r}: expected a positive number, got {value!r}")
        return float(f"{value:.7g}")

    arch = need("general.architecture", str)
    if arch not in ("llama", "qwen2", "qwen3", "gpt2"):
        raise MinedgeFormatError(
            f"{where}: key 'general.architecture': expected llama, qwen2, qwen3 or gpt2, got {arch!r}"
        )
    if get("split.count", int) not in (None, 0, 1):
        raise MinedgeFormatError(f"{where}: one part of a model in several files; join them (llama-gguf-split --merge)")
    for key, off in _MUST_BE_OFF.items():
        value = get(f"{arch}.{key}", object)
        if value is not None and value not in off:
            raise MinedgeFormatError(f"{where}: key '{arch}.{key}': {value!r} would change results; not supported")
    embed = names.get("token_embd.weight")
    if embed is None or len(embed) != 2:
        raise MinedgeFormatError(f"{where}: tensor 'token_embd.weight' (vocabulary, width) is missing")
    layers, n_head, width = (
        need(f"{arch}.{k}", int) for k in ("block_count", "attention.head_count", "embedding_length")
    )
    if not 1 <= layers <= min(_MAX_LAYERS, len(names)):  # the tables that follow have entries for each
        raise MinedgeFormatError(f"{where}: key '{arch}.block_count': {layers} layers in {len(names)} tensors")
    if get(f"{arch}.vocab_size", int) not in (None, embed[0]):
        raise MinedgeFormatError(f"{where}: key '{arch}.vocab_size': the embedding has {embed[0]} rows")
    values: dict[str, Any] = dict(
        architecture=arch, vocab_size=embed[0], n_layer=layers, n_embd=width, n_head=n_head,
        n_inner=need(f"{arch}.feed_forward_length", int), context_length=need(f"{arch}.context_length", int),
        tie_embeddings="output.weight" not in names,
    )  # fmt: skip
    epsilon = "layer_norm_epsilon" if arch == "gpt2" else "layer_norm_rms_epsilon"
    values["norm_eps"] = positive(f"{arch}.attention.{epsilon}")
    if arch != "gpt2":
        values["n_kv_head"] = get(f"{arch}.attention.head_count_kv", int) or n_head
        values["rope_theta"] = positive(f"{arch}.rope.freq_base", 10000.0)
        values["head_dim"] = get(f"{arch}.attention.key_length", int) or (width // n_head if n_head > 0 else 0)
        for key in ("attention.value_length", "rope.dimension_count"):
            if get(f"{arch}.{key}", int) not in (None, values["head_dim"]):
                raise MinedgeFormatError(f"{where}: key '{arch}.{key}': expected head_dim {values['head_dim']}")
        scaling = get(f"{arch}.rope.scaling.type", str)
        factor = positive(f"{arch}.rope.scaling.factor", 1.0)
        if scaling == "linear" and factor != 1.0:
            values["rope_scaling"] = (("factor", factor), ("rope_type", "linear"))
        elif scaling not in (None, "none", "linear") and factor != 1.0:
            raise MinedgeFormatError(f"{where}: key '{arch}.rope.scaling.type': {scaling!r} is not supported")
    bos, *ends = (get(f"tokenizer.ggml.{key}_token_id", int) for key in ("bos", "eos", "eot", "eom"))
    values["bos_token_id"] = bos if bos is not None and 0 <= bos < embed[0] else None
    ends = list(dict.fromkeys(end for end in ends if end is not None and 0 <= end < embed[0]))
    values["eos_token_id"] = None if not ends else ends[0] if len(ends) == 1 else tuple(ends)
    try:
        config = Config(**values)
        if rope is not None:
            if arch == "gpt2" or config.rope_scaling is not None:
                raise UsageError(f"tensor {ROPE_FREQS!r} beside another scaling")
            found = _llama3_scaling(config, rope, get(OWN_ROPE, str), where)
            values["rope_scaling"] = tuple(sorted({**found, "rope_type": "llama3"}.items()))
            config = Config(**values)
    except (UsageError, TypeError, ArithmeticError) as error:
        raise MinedgeFormatError(f"{where}: metadata: {error}") from None
    return config


def metadata_from_config(config: Config) -> dict[str, tuple[str, Any]]:
    """Key -> (type, value) of what describes the architecture; tokenizers and names are somebody else's."""
    arch = config.architecture
    out: dict[str, tuple[str, Any]] = {
        "context_length": ("uint32", config.context_length),
        "embedding_length": ("uint32", config.n_embd),
        "block_count": ("uint32", config.n_layer),
        "feed_forward_length": ("uint32", config.n_inner),
        "attention.head_count": ("uint32", config.n_head),
        "vocab_size": ("uint32", config.vocab_size),
    }
    if arch == "gpt2":
        out["attention.layer_norm_epsilon"] = ("float32", config.norm_eps)
    else:
        out["attention.head_count_kv"] = ("uint32", config.n_kv_head)
        out["attention.layer_norm_rms_epsilon"] = ("float32", config.norm_eps)
        out["rope.freq_base"] = ("float32", config.rope_theta)
        out["rope.dimension_count"] = ("uint32", config.head_dim)
        out["attention.key_length"] = out["attention.value_length"] = ("uint32", config.head_dim)
    named = {f"{arch}.{key}": value for key, value in out.items()}
    s = dict(config.rope_scaling or ())
    if s.get("rope_type", s.get("type")) == "linear":
        named[f"{arch}.rope.scaling.type"] = ("string", "linear")
        named[f"{arch}.rope.scaling.factor"] = ("float32", s["factor"])
    elif s:
        named[OWN_ROPE] = ("string", json.dumps({key: s[key] for key in _ROPE_KEYS}))
    return named
