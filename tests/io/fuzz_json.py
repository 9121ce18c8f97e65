"""Mutants of JSON files: tokenizer.json, adapter_config.json beside its weights, config.json of a model folder."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

import minedge
from minedge.config import Config
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError
from minedge.io import hf, hf_write
from minedge.io.adapters import read_adapter, write_adapter
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.ops import get
from tests.io.fuzz_common import TEXTS, Format, is_whole

__all__ = ["adapters", "configs", "packed_pruned", "tokenizer_json"]

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 1.5, 1 << 31, 1 << 64, 10**30, -0.0, 1e300, "", "a", "é", "llama", "LORA",
    "x" * 300, [], [1], ["a"], [["a", "b"]], {}, {"type": "BPE"}, {"a": 1}, {"kind": "int4", "group_size": 32},
]  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = list(value.items())[:16] if isinstance(value, dict) else list(enumerate(value[:4]))
    found = [(*at, key) for key, _ in inside]
    return found + [p for key, v in inside if isinstance(v, (dict, list)) for p in _places(v, (*at, key))]


def _json_mutant(rng: random.Random, good_text: str, places: list[tuple[Any, ...]]) -> bytes:
    """One or two values replaced, left out or moved, or a few characters of the text changed."""
    value = json.loads(good_text)
    for _ in range(rng.randint(1, 2)):
        place, part = rng.choice(places), value
        try:
            for key in place[:-1]:
                part = part[key]
            if rng.random() < 0.25:
                del part[place[-1]]
            elif rng.random() < 0.15 and isinstance(part, dict):
                part[rng.choice(["", "a", "use_magic", "minedge", "head_dim"])] = part.pop(place[-1])
            else:
                part[place[-1]] = copy.deepcopy(rng.choice(_VALUES))  # a later change may go into it
        except (KeyError, IndexError, TypeError):  # an earlier change has taken the place away
            continue
    text = bytearray(json.dumps(value).encode())
    if rng.random() < 0.15:
        at = rng.randrange(len(text) + 1)
        text[at : at + rng.randint(0, 3)] = rng.choice([*TEXTS, b"[" * 50, b"\\u0000"])
    return bytes(text)


def tokenizer_json(folder: Path) -> Format:
    made = Tokenizer.train_bpe(["a small text about small texts, and some more of it " * 20], 280)
    text = made.backend.to_str()
    places = _places(json.loads(text))

    def one(rng: random.Random, folder: Path) -> bool:
        (folder / "tokenizer.json").write_bytes(_json_mutant(rng, text, places))
        (folder / "tokenizer_config.json").write_bytes(
            _json_mutant(rng, '{"eos_token": "<|endoftext|>", "chat_template": "a"}', [("eos_token",), ("x",)])
        )
        try:
            read = Tokenizer.load(folder)
        except MinedgeFormatError:
            return False
        assert isinstance(read.decode(read.encode("Is it whole? 1 + 1 = 2, \u00e9\u4e2d\n")), str)
        return True

    return one


def adapters(folder: Path) -> Format:
    rng_, paths = np.random.default_rng(0), ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    params = {f"{p}.lora_A.default.weight": rng_.normal(size=(4, 32)).astype("f4") for p in paths}
    params |= {f"{p}.lora_B.default.weight": rng_.normal(size=(16, 4)).astype("f4") for p in paths}
    home = folder / "a"
    write_adapter(home, params, 4, 16, ["q_proj", "v_proj"], "some/base", "f" * 64, rank_pattern={"k_proj": 2},
                  alpha_pattern={r"layers\.\d+\.self_attn\.v_proj": 8})  # fmt: skip
    text, weights = (home / "adapter_config.json").read_text(), (home / "adapter_model.safetensors").read_bytes()
    places = _places(json.loads(text))

    def one(rng: random.Random, folder: Path) -> bool:
        config, data = text.encode(), bytearray(weights)
        if rng.random() < 0.8:
            config = _json_mutant(rng, text, places)
        else:
            at = rng.randrange(8, 600)
            data[at : at + 1] = rng.choice(b'0123456789.,:[]{}"ABab_\\').to_bytes(1, "little")
        (home / "adapter_config.json").write_bytes(config)
        (home / "adapter_model.safetensors").write_bytes(data)
        try:
            found, arrays = read_adapter(home)
        except MinedgeFormatError:
            return False
        assert found["modules"]
        for path, scale in found["modules"].items():
            a, b = (arrays[f"{path}.lora_{side}.default.weight"] for side in "AB")
            assert len(a) == b.shape[1] == scale.r and abs(scale.lora_alpha) < float("inf")
        return True

    return one


def configs(folder: Path) -> Format:
    sizes = dict(vocab_size=16, n_layer=2, n_embd=32, n_head=4, n_kv_head=2, n_inner=32, context_length=8)
    scaling = (("factor", 2.0), ("rope_type", "linear"))
    config, rng_ = Config(**sizes, rope_scaling=scaling), np.random.default_rng(0)  # type: ignore[arg-type]
    linears: dict[str, Any] = dict.fromkeys(linear_shapes(config), Dense())
    params = {name: rng_.normal(size=s).astype("f4") for name, (s, _) in param_shapes(config, linears).items()}
    home = folder / "m"
    hf_write.write_model(home, config, params, linears, trainable_names=["model.norm.weight"])
    text = (home / "config.json").read_text()
    places = [*_places(json.loads(text)), ("minedge", "linears"), ("rope_parameters",), ("sliding_window",)]

    def one(rng: random.Random, folder: Path) -> bool:
        (home / "config.json").write_bytes(_json_mutant(rng, text, places))
        try:
            config, params, linears, _ = hf.read_model(home)
            names = hf.read_trainable_names(home)
        except MinedgeFormatError:
            return False
        is_whole(config, params, linears)
        assert names is None or isinstance(names, frozenset)
        return True

    return one


def packed_pruned(folder: Path) -> Format:
    """A folder with a packed pruned matrix: config.json, or bytes of the mask and values, are changed. What is accepted
    must multiply as its dense form.
    """
    sizes = dict(vocab_size=16, n_layer=1, n_embd=16, n_head=2, n_kv_head=2, n_inner=16, context_length=8)
    model = minedge.sparse.pack(minedge.prune.magnitude(minedge.init(Config(**sizes), backend="numpy"), 0.5))
    home = folder / "m"
    model.save(home)
    text, weights = (home / "config.json").read_text(), (home / "model.safetensors").read_bytes()
    name = "model.layers.0.mlp.up_proj"
    places = [p for p in _places(json.loads(text)["minedge"], ("minedge",)) if "linears" in p and name in p]
    x = np.ones((2, 16), np.float32)

    def one(rng: random.Random, folder: Path) -> bool:
        blob = bytearray(weights)
        if rng.random() < 0.5:
            blob[-rng.randint(1, len(blob) // 2)] ^= 1 << rng.randrange(8)
        (home / "model.safetensors").write_bytes(blob)
        (home / "config.json").write_bytes(_json_mutant(rng, text, places) if rng.random() < 0.5 else text.encode())
        try:
            config, params, linears, _ = hf.read_model(home)
        except MinedgeFormatError:
            return False
        is_whole(config, params, linears)
        ops, kind = get("numpy"), linears[name]
        with np.errstate(all="ignore"):
            want = x @ kind.dense(params, name, ops).T
            np.testing.assert_allclose(kind.forward(x, params, name, ops)[0], want, rtol=1e-5, atol=1e-5)
        return True

    return one
