"""Model folders: what is written is read back exactly, and only what fits is read at all."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minedge
from minedge.compress import prune, quant, sparse
from minedge.config import Config
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError, UsageError
from minedge.finetune import lora
from minedge.io import hf, hf_write, safetensors
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes

CONFIGS = {
    "llama": dict(tie_embeddings=True, n_kv_head=2),
    "llama untied, scaled rope": dict(
        tie_embeddings=False, rope_scaling=(("factor", 2.0), ("rope_type", "linear")), rope_theta=5e5
    ),
    "qwen2": dict(architecture="qwen2", n_kv_head=2, eos_token_id=(1, 2)),
    "qwen3": dict(architecture="qwen3", head_dim=16, tie_embeddings=False),
    "gpt2": dict(architecture="gpt2", n_inner=128),
}


def _config(name: str = "llama") -> Config:
    sizes = dict(vocab_size=300, n_layer=2, n_embd=32, n_head=4, n_inner=96, context_length=64)
    return Config(**{**sizes, **CONFIGS[name]})


def _model(name: str = "llama", tokenizer: Any = None) -> minedge.Model:
    config = _config(name)
    rng = np.random.default_rng(0)
    model = minedge.init(config, tokenizer, backend="numpy")
    return model.with_params({k: rng.normal(size=a.shape).astype(a.dtype) for k, a in model.params.items()})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(["a small text about small texts, and some more of it " * 20], 280)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A good model folder, for tests that damage it."""
    _model(tokenizer=tokenizer).save(tmp_path / "model")
    return tmp_path / "model"


def _same(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].tobytes() == b[key].tobytes(), key


def _edit_json(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text())
    data.update(changes)
    file.write_text(json.dumps(data))


def _edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_of_every_architecture(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    model = _model(name, tokenizer)
    model.save(tmp_path / "m")
    config, params, linears, loaded = hf.read_model(tmp_path / "m")
    assert config == model.config
    assert linears == model.linears
    _same(params, model.params)
    assert not any(array.flags.writeable for array in params.values())
    assert all(array.flags.c_contiguous for array in params.values())
    assert loaded.encode("some more text") == tokenizer.encode("some more text")
    model.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "m" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


KINDS: dict[str, Callable[[Any], Any]] = {
    "int4": lambda m: quant.int4(m, group_size=32, embeddings=True),
    "masked": lambda m: prune.magnitude(m, sparsity=0.5),
    "2:4": lambda m: prune.nm(m, 2, 4),
    "packed": lambda m: sparse.pack(prune.magnitude(m, sparsity=0.6)),
    "packed 2:4 float16": lambda m: sparse.pack(prune.nm(m, 2, 4), "float16"),
    "lora": lambda m: lora.add(m, r=4, target="all"),
    "lora over int4": lambda m: lora.add(quant.int4(m), r=4, target="all"),
    "lora over masked": lambda m: lora.add(prune.magnitude(m, sparsity=0.5), r=4, target="all"),
    "two adapters": lambda m: lora.add(lora.add(m, r=4, target="all"), r=2, target="all", adapter="second"),
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_every_kind(tmp_path: Path, kind: str, architecture: str) -> None:
    model = KINDS[kind](_model(architecture))
    model.save(tmp_path / "m")
    config, params, linears, _ = hf.read_model(tmp_path / "m")
    assert config == model.config and linears == model.linears
    _same(params, model.params)
    tokens = np.arange(12).reshape(2, 6)
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert np.array_equal(again.logits(tokens), model.logits(tokens))


def test_saved_kinds_load_in_a_new_process(tmp_path: Path, run_python: Any) -> None:
    lora.add(quant.int4(prune.magnitude(_model())), r=2).save(tmp_path / "m")
    code = "import sys, minedge; print(minedge.load(sys.argv[1], backend='numpy').linears[sys.argv[2]])"
    result = run_python(code, str(tmp_path / "m"), "model.layers.0.self_attn.q_proj")
    assert result.stdout.startswith("LoRA(base=Int4("), result.stderr


def test_a_pruned_file_is_smaller(tmp_path: Path) -> None:
    """Half the values and one bit each: (16 * 0.5 + 1) / 16 in float16, (32 * 0.5 + 1) / 32 in float32."""
    model = _model("llama")
    pruned = prune.magnitude(model, sparsity=0.5)
    for dtype, expected in (("float16", 0.5625), ("float32", 0.53125)):
        model.save(tmp_path / f"dense {dtype}", dtype=dtype)
        pruned.save(tmp_path / f"pruned {dtype}", dtype=dtype)
        dense = safetensors.read_header(tmp_path / f"dense {dtype}" / "model.safetensors").tensors
        packed = safetensors.read_header(tmp_path / f"pruned {dtype}" / "model.safetensors").tensors
        names = [name for name, kind in pruned.linears.items() if kind != Dense()]
        before = sum(dense[f"{n}.weight"].end - dense[f"{n}.weight"].begin for n in names)
        after = sum(
            packed[f"{n}.{part}"].end - packed[f"{n}.{part}"].begin for n in names for part in ("mask", "values")
        )
        assert after / before == expected


def test_float16_files_widen_on_load(tmp_path: Path) -> None:
    model = _model("gpt2")
    model.save(tmp_path / "m", dtype="float16")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    params = hf.read_model(tmp_path / "m")[1]
    _same(params, {key: a.astype(np.float16).astype(np.float32) for key, a in model.params.items()})
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "float16"


def test_gpt2_weights_lie_as_conv1d_has_them(tmp_path: Path) -> None:
    model = _model("gpt2")
    model.save(tmp_path / "m")
    stored, name = load_file(tmp_path / "m" / "model.safetensors"), "transformer.h.0.attn.c_attn.weight"
    assert stored[name].shape == (32, 96) and model.params[name].shape == (96, 32)
    assert np.array_equal(stored[name].T, model.params[name])
    assert stored["transformer.wte.weight"].shape == (300, 32)  # an embedding, not a Conv1D


def test_gpt2_as_openai_published_it(tmp_path: Path) -> None:
    """Names without "transformer.", and the causal masks as buffers."""
    model = _model("gpt2")
    model.save(tmp_path / "m")

    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
        tensors["h.0.attn.masked_bias"] = np.float32(-1e4)[None]

    _edit_tensors(tmp_path / "m", edit)
    _same(hf.read_model(tmp_path / "m")[1], model.params)


def test_other_keys_of_config_json_survive(folder: Path, tmp_path: Path) -> None:
    _edit_json(folder / "config.json", pad_token_id=0, my_note={"a": [1, 2]}, dtype="bfloat16")
    minedge.load(folder, backend="numpy").save(tmp_path / "again")
    data = json.loads((tmp_path / "again" / "config.json").read_text())
    assert data["pad_token_id"] == 0 and data["my_note"] == {"a": [1, 2]}
    assert data["dtype"] == data["torch_dtype"] == "float32"  # what the new file holds


def test_trainable_names_and_generation_config_are_kept(tmp_path: Path) -> None:
    m = _model()
    hf_write.write_model(
        tmp_path / "m", m.config, m.params, m.linears, generation_config={"top_p": 0.9}, trainable_names={"b", "a"}
    )
    assert hf.read_trainable_names(tmp_path / "m") == frozenset("ab")
    assert hf.read_generation_config(tmp_path / "m") == {"top_p": 0.9}
    hf_write.write_model(tmp_path / "n", m.config, m.params, m.linears)
    assert hf.read_trainable_names(tmp_path / "n") is None
    assert hf.read_generation_config(tmp_path / "n") == {"bos_token_id": None, "eos_token_id": None}
    assert hf.read_model(tmp_path / "n")[3] is None


# ---------------------------------------------------------------- shards


def _shard(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    _write_index(folder, weight_map)
    return weight_map


def _write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_one_model(folder: Path) -> None:
    whole = hf.read_model(folder)[1]
    _shard(folder)
    _same(hf.read_model(folder)[1], whole)


def test_bad_shards(folder: Path, tmp_path: Path) -> None:
    weight_map = _shard(folder)
    first = sorted(weight_map)[0]
    outside = tmp_path / "outside.safetensors"
    save_file(load_file(folder / weight_map[first]), outside)
    os.symlink(outside, folder / "link.safetensors")
    renamed = {
        "../outside.safetensors",
        str(outside),
        "",
        ".",
        "..",
        "sub/x",
        "a\\b",
        "link.safetensors",
        "a\0b",
        "missing",
    }
    bad: list[Any] = [{**weight_map, first: name} for name in renamed]
    bad += [{**weight_map, first: 1}, [], None, "x", {}, {**weight_map, "unknown.weight": weight_map[first]}]
    bad += [
        {k: v for k, v in weight_map.items() if k != first},
        {**weight_map, first: weight_map[sorted(weight_map)[1]]},
    ]
    for changed in bad:
        _write_index(folder, changed)
        with pytest.raises(MinedgeFormatError):
            hf.read_model(folder)
    _write_index(folder, weight_map)
    hf.read_model(folder)


def test_links_of_the_hugging_face_cache_are_followed_and_no_others(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--me--tiny"
    snapshot = cache / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in os.listdir(folder):
        os.rename(folder / file, cache / "blobs" / f"hash of {file}")
        os.symlink(f"../../blobs/hash of {file}", snapshot / file)
    assert hf.read_model(snapshot)[0].n_layer == 2
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        os.rename(cache / "blobs" / f"hash of {file}", tmp_path / file)
        (snapshot / file).unlink()
        os.symlink(tmp_path / file, snapshot / file)
        with pytest.raises(MinedgeFormatError, match=r"leads out"):
            hf.read_model(snapshot)
        os.rename(tmp_path / file, snapshot / file)


# ---------------------------------------------------------------- strictness

_Q = "model.layers.1.self_attn.q_proj.weight"
BAD_TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "missing": (lambda t: t.pop(_Q), f"'{_Q}' missing"),
    "unknown": (lambda t: t.update(extra=np.ones(1)), "'extra' unknown"),
    "a bias too much": (lambda t: t.update({_Q.replace("weight", "bias"): np.ones(32, np.float32)}), "unknown"),
    "transposed": (lambda t: t.update({_Q: np.ones((16, 32), np.float32)}), r"expected shape \[32, 32\]"),
    "flat": (lambda t: t.update({_Q: t[_Q].reshape(-1)}), "expected shape"),
    "one more dimension": (lambda t: t.update({_Q: t[_Q][None]}), "expected shape"),
    "empty": (lambda t: t.update({_Q: t[_Q][:0]}), "expected shape"),
    "integers": (lambda t: t.update({_Q: np.ones((32, 32), np.int32)}), "got I32"),
    "a layer too many": (lambda t: t.update({_Q.replace("1", "2"): t[_Q]}), "unknown"),
    "another embedding as head": (lambda t: t.update({"lm_head.weight": np.ones((300, 32), np.float32)}), "differs"),
    "a small head": (lambda t: t.update({"lm_head.weight": np.ones((3, 32), np.float32)}), "differs"),
    "too large for float32": (lambda t: t.update({_Q: np.full((32, 32), 1e300)}), "too large"),
    "nothing": (lambda t: t.clear(), "missing"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit(folder: Path, name: str) -> None:
    edit, message = BAD_TENSORS[name]
    _edit_tensors(folder, edit)
    with pytest.raises(MinedgeFormatError, match=message):
        hf.read_model(folder)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(folder: Path) -> None:
    before = hf.read_model(folder)[1]
    _edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    _same(hf.read_model(folder)[1], before)


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "unknown architecture": {"model_type": "mamba"},
    "architecture a list": {"model_type": []},
    "no architecture": {"model_type": None},
    "width of a string": {"hidden_size": "32"},
    "width a list": {"hidden_size": [32]},
    "width zero": {"hidden_size": 0},
    "width missing": {"hidden_size": None},
    "heads do not divide": {"num_attention_heads": 5, "head_dim": None},
    "kv heads zero": {"num_key_value_heads": -1},
    "layers a float": {"num_hidden_layers": 2.0},
    "a billion layers": {"num_hidden_layers": 10**9},
    "layers beyond 64 bits": {"num_hidden_layers": 10**30},
    "another width": {"hidden_size": 64},
    "another vocabulary": {"vocab_size": 301},
    "a vast vocabulary": {"vocab_size": 10**15},
    "untied, but no head": {"tie_word_embeddings": False},
    "eps a string": {"rms_norm_eps": "small"},
    "eps NaN": {"rms_norm_eps": float("nan")},
    "rope_scaling a number": {"rope_scaling": 3},
    "rope_scaling a list": {"rope_scaling": [1]},
    "rope_scaling unknown": {"rope_scaling": {"rope_type": "yarn"}},
    "sliding window": {"use_sliding_window": True},
    "activation": {"hidden_act": "gelu"},
    "activation a list": {"hidden_act": ["silu"]},
    "quantized by others": {"quantization_config": {"quant_method": "gptq"}},
    "own part a list": {"minedge": [1]},
    "own part of a newer version": {"minedge": {"format_version": 2}},
    "own part without version": {"minedge": {"linears": {}}},
    "linears a list": {"minedge": {"format_version": 1, "linears": [1]}},
    "linear unknown": {"minedge": {"format_version": 1, "linears": {"model.layers.9.x": {"kind": "dense"}}}},
    "kind unknown": {"minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "int3"}}}},
    "kind a list": {"minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": []}}}},
    "kind a string": {"minedge": {"format_version": 1, "linears": {"model.embed_tokens": "int4"}}},
    "kind without fields": {"minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "lora"}}}},
    "kind with a field too many": {
        "minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "dense", "x": 1}}}
    },
    "kind with a vast group": {
        "minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "int4", "group_size": 10**9}}}
    },
    "kind with group 0": {
        "minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "int4", "group_size": 0}}}
    },
    "kind whose tensors are not there": {
        "minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "int4", "group_size": 32}}}
    },
    "kind over a string": {
        "minedge": {"format_version": 1, "linears": {"model.embed_tokens": {"kind": "masked", "base": "x"}}}
    },
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configurations_that_do_not_fit(folder: Path, name: str) -> None:
    _edit_json(folder / "config.json", **BAD_CONFIGS[name])
    with pytest.raises(MinedgeFormatError) as caught:
        hf.read_model(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "\ufeff{}", "[" * 10**6, '{"a":' * 10**5, "9" * 10**5],
    ids=range(10),
)
def test_config_json_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(MinedgeFormatError, match=r"config\.json"):
        hf.read_model(folder)


def test_config_json_that_is_vast(folder: Path) -> None:
    os.truncate(folder / "config.json", 1 << 40)  # a hole: no bytes on the disk
    with pytest.raises(MinedgeFormatError, match=r"expected at most"):
        hf.read_model(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(MinedgeFormatError, match=file.replace(".", r"\.")):
        hf.read_model(folder)


def test_pickles_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(MinedgeFormatError, match=r"save_pretrained"):
        hf.read_model(folder)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(MinedgeFormatError):
            hf.read_model(path)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(400)]
    other = Tokenizer.train_bpe([" ".join(words)] * 3, 320)
    assert other.vocab_size == 320
    other.save(folder)
    with pytest.raises(MinedgeFormatError, match=r"ids up to 319, but vocab_size is 300"):
        hf.read_model(folder)
    small = replace(_model(), tokenizer=Tokenizer.load(folder))
    with pytest.raises(MinedgeFormatError, match=r"vocab_size is 300"):
        small.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(MinedgeFormatError, match=r"tokenizer\.json"):
        hf.read_model(folder)


# A mask whose bits and values do not agree is a file that contradicts itself.
def test_pruned_tensors_that_contradict_each_other(tmp_path: Path) -> None:
    prune.magnitude(_model(), sparsity=0.5).save(tmp_path / "m")
    values = "model.layers.0.mlp.up_proj.values"
    _edit_tensors(tmp_path / "m", lambda t: t.update({values: t[values][:-1]}))
    with pytest.raises(MinedgeFormatError, match=r"up_proj"):
        hf.read_model(tmp_path / "m")


# ---------------------------------------------------------------- writing


def test_an_existing_folder_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    before = {file: (folder / file).read_bytes() for file in os.listdir(folder)}
    with pytest.raises(UsageError, match=r"exists already"):
        _model("gpt2").save(folder)
    assert {file: (folder / file).read_bytes() for file in os.listdir(folder)} == before
    _model("gpt2").save(folder, overwrite=True)
    assert hf.read_model(folder)[0].architecture == "gpt2" and "tokenizer.json" not in os.listdir(folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds no model"):
        _model().save(tmp_path / "home", overwrite=True)
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"also holds thesis\.txt"):
        _model().save(folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "x"


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    m = _model()
    name = "model.norm.weight"
    bad = [
        {**m.params, "x": np.ones(1)},
        {k: a for k, a in m.params.items() if k != name},
        {**m.params, name: np.ones(3, np.float32)},
        {**m.params, name: np.ones(32, np.int32)},
    ]
    for params in bad:
        with pytest.raises(UsageError, match=r"params: "):
            hf_write.write_model(tmp_path / "m", m.config, params, m.linears)
    with pytest.raises(UsageError, match=r"dtype"):
        m.save(tmp_path / "m", dtype="int8")
    with pytest.raises(UsageError, match=r"holds 70000, too large for float16"):
        m.with_params({**m.params, name: np.full(32, 7e4, np.float32)}).save(tmp_path / "m", dtype="float16")
    assert os.listdir(tmp_path) == []


def test_what_is_written_is_what_param_shapes_says(tmp_path: Path) -> None:
    for name in CONFIGS:
        m = _model(name)
        m.save(tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors")
        assert stored.keys() == param_shapes(m.config, dict.fromkeys(linear_shapes(m.config), Dense())).keys()


def test_layers_that_are_not_there_cost_nothing(folder: Path) -> None:
    """Tables have entries for every layer, so they are made once it is certain that there are tensors for them."""
    _edit_json(folder / "config.json", num_hidden_layers=1_000)
    size = sum(path.stat().st_size for path in folder.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(MinedgeFormatError, match="tensors missing: 20 in all for the 1000 layers"):
            hf.read_model(folder)
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()
