"""GGUF files both ways, against the gguf package: names, row orders, bytes, dequantizers, tokenizers."""

from __future__ import annotations

import struct
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf as oracle
import numpy as np
import pytest
from gguf import GGMLQuantizationType as QuantType

import minedge
from minedge.compress import prune, quant
from minedge.config import Config
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeError, MinedgeFormatError, UsageError
from minedge.finetune import lora
from minedge.io import gguf, gguf_tokenizer, sentencepiece
from minedge.io.gguf_names import gguf_name, rope_factors
from minedge.io.gguf_types import TYPES
from minedge.model.shapes import linear_shapes, param_shapes
from tests.io.gguf_files import good

LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(n_kv_head=2, bos_token_id=1, eos_token_id=2),
    "llama untied, linear scaling": dict(
        tie_embeddings=False, rope_scaling=(("factor", 2.0), ("rope_type", "linear")), rope_theta=5e5
    ),
    "llama with llama3 scaling": dict(
        rope_scaling=tuple(sorted({**LLAMA3, "rope_type": "llama3"}.items())), head_dim=16, rope_theta=1e4
    ),
    "qwen2": dict(architecture="qwen2", n_kv_head=2, eos_token_id=(1, 2), norm_eps=1e-6, rope_theta=1e6),
    "qwen3": dict(architecture="qwen3", head_dim=32, n_kv_head=2, tie_embeddings=False),
    "gpt2": dict(architecture="gpt2"),
}
DTYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def _model(name: str = "llama", tokenizer: Any = None, **more: Any) -> minedge.Model:
    sizes = dict(vocab_size=288, n_layer=2, n_embd=64, n_head=4, n_inner=96, context_length=64)
    model = minedge.init(Config(**{**sizes, **CONFIGS[name], **more}), tokenizer, backend="numpy")
    rng = np.random.default_rng(0)
    return model.with_params({k: rng.normal(0, 0.1, a.shape).astype(a.dtype) for k, a in model.params.items()})


def _tokens(model: minedge.Model) -> np.ndarray:
    return np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 40))


def _load(path: Path) -> minedge.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return minedge.load(path, backend="numpy")


def _permuted(config: Config, key: str, weight: np.ndarray) -> np.ndarray:
    """Rows of q and k as GGUF's llama wants them: the formula of its converter."""
    if config.architecture != "llama" or not key.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = len(weight) // config.head_dim
    return weight.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)


# ---------------------------------------------------------------- element types


def test_block_sizes_are_the_packages() -> None:
    for code, kind in TYPES.items():
        assert QuantType(code).name == kind.name
        assert oracle.GGML_QUANT_SIZES[QuantType(code)] == (kind.block, kind.nbytes)


@pytest.mark.parametrize("code", [code for code, kind in TYPES.items() if kind.dequantize])
def test_dequantizers_equal_the_packages_on_any_bytes(code: int) -> None:
    blocks = np.random.default_rng(code).integers(0, 256, (4000, TYPES[code].nbytes), np.uint8)
    with np.errstate(all="ignore"):  # random scales overflow, and some are NaN
        theirs = oracle.quants.dequantize(blocks, QuantType(code))
        ours = TYPES[code].dequantize(blocks)
    assert ours.dtype == np.float32
    assert ours.tobytes() == theirs.reshape(ours.shape).tobytes()


def test_a_packed_q4_0_matrix_is_the_packages_values_bit_for_bit(tmp_path: Path) -> None:
    file = good()
    (tmp_path / "m.gguf").write_bytes(file.build())
    model = _load(tmp_path / "m.gguf")
    name = "model.layers.0.mlp.up_proj"
    assert model.linears[name].to_dict() == {"kind": "int4", "group_size": 32}
    raw = np.frombuffer(file.tensor("blk.0.ffn_up.weight").data, np.uint8).reshape(32, 18)
    ours = model.linears[name].dense(model.params, name, model.ops)
    assert np.array_equal(ours, oracle.quants.dequantize(raw, QuantType.Q4_0))


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16"])
def test_a_model_of_any_type_reads_as_the_package_reads_it(kind: str, tmp_path: Path) -> None:
    model, rng = _model(n_embd=256, n_inner=256), np.random.default_rng(0)
    config, qtype = model.config, QuantType[kind]
    block, nbytes = oracle.GGML_QUANT_SIZES[qtype]
    model.save_gguf(tmp_path / "plain.gguf", "f32")
    plain = oracle.GGUFReader(tmp_path / "plain.gguf")
    writer = oracle.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, entry in plain.fields.items():
        if name.startswith("llama."):
            value = entry.contents()
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    expected = {}
    for tensor in plain.tensors:
        shape = tuple(int(n) for n in tensor.shape[::-1])
        if len(shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        raw = rng.integers(0, 256, (shape[0], shape[1] // block * nbytes), np.uint8)
        raw.reshape(-1, nbytes)[:, 1::2] &= 0x3F  # keep the float16 scales finite
        writer.add_tensor(tensor.name, raw, raw_dtype=qtype)
        expected[tensor.name] = oracle.quants.dequantize(raw, qtype).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if kind in ("BF16", "Q8_0"):
        read = minedge.load(tmp_path / "m.gguf", backend="numpy")
    else:
        with pytest.warns(UserWarning, match=rf"15 of {kind}\) become float32"):
            read = minedge.load(tmp_path / "m.gguf", backend="numpy")
    for module in linear_shapes(config):
        key = f"{module}.weight"
        assert (read.linears[module].kind == "int8") == (kind == "Q8_0")
        weight = read.linears[module].dense(read.params, module, read.ops)
        assert np.array_equal(_permuted(config, key, weight), expected[gguf_name(config, key)]), key


def test_chunks_join_seamlessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    model.save_gguf(tmp_path / "a.gguf", "f16")
    quant.int4(model, embeddings=True).save_gguf(tmp_path / "b.gguf", "keep")
    whole = [_load(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    monkeypatch.setattr(gguf, "_CHUNK", 300)  # a row or two of most tensors, less than one of some
    for before, name in zip(whole, ("a.gguf", "b.gguf"), strict=True):
        after = _load(tmp_path / name)
        assert all(after.params[key].tobytes() == array.tobytes() for key, array in before.params.items())
        assert not any(array.flags.writeable for array in after.params.values())


# ---------------------------------------------------------------- models there and back


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_to_gguf_and_back_changes_nothing(name: str, tmp_path: Path) -> None:
    model = _model(name)
    model.save(tmp_path / "hf")
    minedge.load(tmp_path / "hf").save_gguf(tmp_path / "m.gguf", "f32")
    back = _load(tmp_path / "m.gguf")
    assert replace(back.config, extra=()) == model.config
    assert all(back.params[key].tobytes() == array.tobytes() for key, array in model.params.items())
    assert back.params.keys() == model.params.keys() and back.trainable_names == model.trainable_names
    assert np.abs(back.logits(_tokens(model)) - model.logits(_tokens(model))).max() <= 1e-5
    back.save(tmp_path / "hf2")
    assert minedge.load(tmp_path / "hf2").config == minedge.load(tmp_path / "hf").config


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_the_packages(name: str) -> None:
    config = _model(name).config
    arch = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gpt2": "GPT2"}[config.architecture]
    theirs = oracle.get_tensor_name_map(oracle.MODEL_ARCH[arch], config.n_layer)
    for key in param_shapes(config, _model(name).linears):
        module = key.rpartition(".")[0]
        known = theirs.get_name(module) or theirs.get_name(module.removeprefix("transformer."))
        assert gguf_name(config, key).rpartition(".")[0] == known, key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_are_byte_equal_to_the_packages_quantization(name: str, dtype: str, tmp_path: Path) -> None:
    model = _model(name)
    model.save_gguf(tmp_path / "m.gguf", dtype)
    file = {t.name: t for t in oracle.GGUFReader(tmp_path / "m.gguf").tensors}
    matrices = {gguf_name(model.config, f"{module}.weight") for module in linear_shapes(model.config)}
    for key, array in model.params.items():
        tensor = file.pop(gguf_name(model.config, key))
        wanted = QuantType[DTYPES[dtype]] if tensor.name in matrices else QuantType.F32  # norms, biases, positions
        assert tensor.tensor_type == wanted, tensor.name
        theirs = oracle.quants.quantize(np.ascontiguousarray(_permuted(model.config, key, array)), wanted)
        assert np.asarray(tensor.data).tobytes() == theirs.tobytes(), tensor.name
        assert tuple(tensor.shape[::-1]) == array.shape
    assert set(file) == ({"rope_freqs.weight"} if name == "llama with llama3 scaling" else set())


def test_the_permutation_turns_interleaved_rotary_into_half_split_rotary() -> None:
    """q . k is the same whether pairs are (i, i + D/2) on our rows or (2i, 2i + 1) on GGUF's."""
    config, rng = _model().config, np.random.default_rng(0)
    D, x = config.head_dim, rng.normal(size=64)
    w = rng.normal(size=(64, 64))
    half, angle = w @ x, rng.normal(size=D // 2)
    inter = _permuted(config, "q_proj.weight", w) @ x
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = half.reshape(4, 2, D // 2).transpose(1, 0, 2)
    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    even, odd = inter.reshape(4, D // 2, 2).transpose(2, 0, 1)
    assert np.allclose(turned, np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1))


@pytest.mark.parametrize("group_size", [32, 64])
def test_int4_exports_without_loss(group_size: int, tmp_path: Path) -> None:
    model = quant.int4(_model(n_inner=128), group_size=group_size, embeddings=True)
    for dtype in ("keep", "q4_0"):
        model.save_gguf(tmp_path / "m.gguf", dtype, overwrite=True)
        back = _load(tmp_path / "m.gguf")
        for module, kind in model.linears.items():
            assert back.linears[module].to_dict() == {"kind": "int4", "group_size": 32}
            ours, theirs = (m.linears[module].dense(m.params, module, m.ops) for m in (model, back))
            assert ours.tobytes() == theirs.tobytes(), (module, kind)
            if group_size == 32:
                same = (f"{module}.qweight", f"{module}.scales")
                assert all(back.params[key].tobytes() == model.params[key].tobytes() for key in same)
        assert np.array_equal(back.logits(_tokens(model)), model.logits(_tokens(model)))


def test_q8_0_stays_packed_and_exports_without_loss(tmp_path: Path) -> None:
    """GGUF -> Int8 -> GGUF gives the file's bytes; what the package quantizes and what we quantize are the same."""
    model = _model()
    model.save_gguf(tmp_path / "a.gguf", "q8_0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = minedge.load(tmp_path / "a.gguf", backend="numpy")
    assert {kind.to_dict()["kind"] for kind in back.linears.values()} == {"int8"}
    ours = quant.int8(model, embeddings=True)
    assert all(back.params[key].tobytes() == array.tobytes() for key, array in ours.params.items())
    for dtype in ("keep", "q8_0"):
        back.save_gguf(tmp_path / "b.gguf", dtype, overwrite=True)
        readers = [oracle.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf")]
        a, b = ({t.name: np.asarray(t.data).tobytes() for t in reader.tensors} for reader in readers)
        assert a == b
        assert readers[1].fields["general.file_type"].contents() == 7


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = _model()
    for dtype in ("q8_0", "q4_0"):
        model.save_gguf(tmp_path / "m.gguf", dtype, overwrite=True)
        tensor = next(t for t in oracle.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.0.ffn_up.weight")
        data = bytearray((tmp_path / "m.gguf").read_bytes())
        data[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.inf).tobytes()
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(MinedgeFormatError, match=r"'blk\.0\.ffn_up\.weight' has a scale that is not finite"):
            minedge.load(tmp_path / "bad.gguf")


def test_keep_leaves_dense_matrices_as_they_are(tmp_path: Path) -> None:
    model = quant.int4(_model())
    model.save_gguf(tmp_path / "m.gguf")
    back = _load(tmp_path / "m.gguf")
    assert back.linears == model.linears and back.linears["model.embed_tokens"].kind == "dense"
    assert all(back.params[key].tobytes() == array.tobytes() for key, array in model.params.items())


@pytest.mark.parametrize(("dtype", "qtype", "number"), [("float16", "F16", 1), ("bfloat16", "BF16", 32)])
def test_keep_leaves_matrices_of_16_bits_as_they_are(dtype: str, qtype: str, number: int, tmp_path: Path) -> None:
    model = quant.half(_model(), dtype)
    model.save_gguf(tmp_path / "m.gguf")
    reader = oracle.GGUFReader(tmp_path / "m.gguf")
    up = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    half = model.params["model.layers.0.mlp.up_proj.half"]
    assert up.tensor_type.name == qtype and np.asarray(up.data).tobytes() == half.tobytes()
    assert reader.fields["general.file_type"].parts[-1][0] == number
    back = _load(tmp_path / "m.gguf")
    assert np.array_equal(back.logits(_tokens(model)), model.logits(_tokens(model)))


def test_keep_says_what_grows_and_that_there_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no form for nf4: those matrices are written as F32"):
        quant.nf4(_model()).save_gguf(tmp_path / "m.gguf")
    with pytest.warns(UserWarning, match="the model has no tokenizer"):
        _model().save_gguf(tmp_path / "n.gguf")


def test_our_int4_is_the_q4_0_of_the_package(tmp_path: Path) -> None:
    model = _model()
    quant.int4(model, embeddings=True).save_gguf(tmp_path / "a.gguf", "keep")
    model.save_gguf(tmp_path / "b.gguf", "q4_0")
    readers = [oracle.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    a, b = ({t.name: np.asarray(t.data).tobytes() for t in reader.tensors} for reader in readers)
    assert a == b


def test_a_pruned_matrix_is_written_with_its_zeros(tmp_path: Path) -> None:
    model = prune.magnitude(_model(), 0.5)
    model.save_gguf(tmp_path / "m.gguf", "f32")
    back = _load(tmp_path / "m.gguf")
    assert np.array_equal(back.logits(_tokens(model)), model.logits(_tokens(model)))
    assert (back.params["model.layers.0.mlp.up_proj.weight"] == 0).mean() == pytest.approx(0.5, abs=0.01)


def test_an_adapter_has_to_be_merged_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="merge it first"):
        lora.add(_model(), r=2).save_gguf(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_odd_widths_fall_back_to_f16_with_a_warning(tmp_path: Path) -> None:
    model = _model(n_inner=90)
    with pytest.warns(UserWarning, match=r"no multiple of 32, written as F16: model.layers.0.mlp.down_proj"):
        model.save_gguf(tmp_path / "m.gguf", "q4_0")
    types = {t.name: t.tensor_type.name for t in oracle.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize(("dtype", "value"), [("f16", 1e5), ("f16", np.nan), ("q4_0", 1e6), ("q8_0", np.inf)])
def test_values_a_type_cannot_hold_are_refused(dtype: str, value: float, tmp_path: Path) -> None:
    model = _model()
    name = "model.layers.1.mlp.up_proj.weight"
    broken = model.params[name].copy()
    broken[3, 5] = value
    with pytest.raises(UsageError, match=r"blk\.1\.ffn_up"):
        model.with_params({**model.params, name: broken}).save_gguf(tmp_path / "m.gguf", dtype)
    assert not list(tmp_path.iterdir())


def test_arguments_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="expected one of keep, f32, f16, q8_0, q4_0, got 'q5_k'"):
        _model().save_gguf(tmp_path / "m.gguf", "q5_k")
    (tmp_path / "there.gguf").write_bytes(b"x")
    with pytest.raises(UsageError, match="exists already"):
        _model().save_gguf(tmp_path / "there.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MinedgeError, match=r"pip install 'minedge\[gguf\]'"):
        _model().save_gguf(tmp_path / "m.gguf")


# ---------------------------------------------------------------- metadata


def test_llama3_scaling_is_found_without_our_own_key(tmp_path: Path) -> None:
    """Files of other writers have the divisors alone; the published models' numbers follow from them."""
    published = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    scaling = tuple(sorted({**published, "rope_type": "llama3"}.items()))
    model = _model(rope_scaling=scaling, head_dim=64, rope_theta=5e5, n_head=2)
    model.save_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(data.replace(b"minedge.rope_scaling", b"another.rope_scaling"))
    assert dict(_load(tmp_path / "other.gguf").config.rope_scaling or ()) == dict(scaling)
    expected = []
    for frequency in 5e5 ** (-np.arange(0, 64, 2) / 64):  # wavelength by wavelength, as converters do it
        turns = 8192 * frequency / (2 * np.pi)
        smooth = (turns - 1) / 3
        expected.append(1 if turns > 4 else 32 if turns < 1 else 1 / ((1 - smooth) / 32 + smooth))
    assert np.allclose(rope_factors(model.config), expected, rtol=1e-6)
    assert {1.0, 32.0} < set(expected) and len(set(expected)) > 4


def test_metadata_has_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["a small text about small texts, and some more of it " * 20], 280)
    _model(tokenizer=tokenizer).save_gguf(tmp_path / "m.gguf", "q8_0")
    fields = oracle.GGUFReader(tmp_path / "m.gguf").fields
    keys = (
        "context_length embedding_length block_count feed_forward_length attention.head_count attention.head_count_kv"
    )
    keys += " attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count vocab_size"
    assert {f"llama.{key}" for key in keys.split()} <= set(fields)
    content = {key: field.contents() for key, field in fields.items()}
    assert content["general.architecture"] == "llama" and content["general.file_type"] == 7
    assert content["tokenizer.ggml.model"] == "gpt2" and content["tokenizer.ggml.pre"] == "smollm"
    assert len(content["tokenizer.ggml.tokens"]) == len(content["tokenizer.ggml.token_type"]) == 288
    assert content["tokenizer.ggml.token_type"][0] == oracle.TokenType.CONTROL
    assert content["tokenizer.ggml.token_type"][-1] == oracle.TokenType.UNUSED  # the model has 288 rows, 280 tokens
    assert content["tokenizer.ggml.eos_token_id"] == 2 and content["tokenizer.ggml.bos_token_id"] == 1


# ---------------------------------------------------------------- tokenizers

TEXTS = [
    "Once upon a time, there were 12 small texts -- weren't there?",
    "  two  spaces\n\n\tand a tab ", "naïve café 漢字 😀",
    "I'll SHE'LL x=3.14159;", "", " ", "<|endoftext|> inside",
]  # fmt: skip


def _byte_level(pre: Any) -> Tokenizer:
    """A tokenizer with joins across digits, words and spaces, so that it matters where `pre` cuts."""
    import tokenizers as hf

    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=284, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    pieces = ["'LL", "we're", "12", "123", "1234", "  x", " x", "\n\n x", "of,", " 1", "  of"]
    backend.train_from_iterator([piece for piece in pieces for _ in range(9)], trainer)
    backend.pre_tokenizer = pre
    return Tokenizer(backend)


def _pre_tokenizers() -> dict[str, Any]:
    import tokenizers as hf

    words = hf.pre_tokenizers
    plain = words.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {name: words.Split(hf.Regex(regex), "isolated") for name, regex in gguf_tokenizer._REGEX.items()}
    return {
        "smollm": words.Sequence([words.Digits(individual_digits=True), words.ByteLevel(add_prefix_space=False)]),
        "gpt-2": words.ByteLevel(add_prefix_space=False),
        **{name: words.Sequence([cut, plain]) for name, cut in cuts.items()},
    }


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_tokenizers_come_back(pre: str, tmp_path: Path) -> None:
    every = {name: _byte_level(cut) for name, cut in _pre_tokenizers().items()}
    assert len({tuple(t.encode("we're x 1234  of'LL\n\n x")) for t in every.values()}) == len(every)
    tokenizer = every[pre]
    _model(tokenizer=tokenizer, bos_token_id=0, eos_token_id=0).save_gguf(tmp_path / "m.gguf")
    assert oracle.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    back = _load(tmp_path / "m.gguf").tokenizer
    for text in [*TEXTS, "we're x 1234  of'LL\n\n x"]:
        assert back.encode(text) == tokenizer.encode(text), text
        assert back.decode(back.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (back.eos_id, back.bos_id, back.eos_token) == (0, 0, "<|endoftext|>")


def _pieces() -> tuple[list[str], list[float], list[int]]:
    words = ["▁t", "he", "▁the", "er", "▁the" + "re", "re", "▁a", "in", "▁tex", "ts", "ex", "tex"]
    pieces = ["<unk>", "<s>", "</s>", *(sentencepiece.byte_piece(b) for b in range(256)), *words]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(letters))]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    return pieces + letters, scores, types


def _joined_by_score(text: str, pieces: list[str], scores: list[float], types: list[int]) -> list[int]:
    """SentencePiece's rule, as llama2.c has it: join the best-scored pair, the first of equals, until none joins."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    symbols = ["▁", *text.replace(" ", "▁")]
    while True:
        pairs = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(symbols))
                 if a + b in ids and types[ids[a + b]] == 1]  # fmt: skip
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    out = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [ids[sentencepiece.byte_piece(b)] for b in symbol.encode()]
    return out


def test_sentencepiece_vocabularies_join_by_score_and_come_back(tmp_path: Path) -> None:
    pieces, scores, types = _pieces()
    tokenizer = sentencepiece.build(pieces, scores, types, "here", bos_id=1, eos_id=2)
    model = _model(tokenizer=tokenizer, vocab_size=len(pieces) + 5, bos_token_id=1, eos_token_id=2)
    model.save_gguf(tmp_path / "m.gguf")
    back = _load(tmp_path / "m.gguf").tokenizer
    for text in ("there the texts in a", "the  there", "naïve 漢字 T", "theretexts"):
        expected = _joined_by_score(text, pieces, scores, types)
        assert tokenizer.encode(text) == back.encode(text) == expected, text
        assert back.decode(expected) == text
    assert (back.bos_id, back.eos_id) == (1, 2)
    assert back.backend.encode("the").ids[0] == 1  # add_bos_token came along
    content = {key: field.contents() for key, field in oracle.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert content["tokenizer.ggml.model"] == "llama" and content["tokenizer.ggml.add_space_prefix"] is True
    assert content["tokenizer.ggml.unknown_token_id"] == 0
    assert content["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]


@pytest.mark.parametrize("said", [True, False])
def test_bos_that_only_the_settings_ask_for_comes_along(said: bool, tmp_path: Path) -> None:
    made = sentencepiece.build(*_pieces(), "here", bos_id=1, eos_id=2, add_bos=False)
    tokenizer = Tokenizer(made.backend, "</s>", "<s>", settings={"add_bos_token": said})
    _model(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size, bos_token_id=1, eos_token_id=2).save_gguf(
        tmp_path / "m.gguf"
    )
    assert _load(tmp_path / "m.gguf").tokenizer.adds_bos is said


def test_scores_need_not_be_sorted_and_ties_go_by_id() -> None:
    pieces = ["<unk>", "a", "b", "c", "ab", "bc", "abc"]
    for scores, expected in (([0, 0, 0, 0, -2, -1, -3], [1, 5]), ([0, 0, 0, 0, -1, -2, -3], [4, 3])):
        whole = sentencepiece.build(pieces, [float(s) for s in scores], [2, 1, 1, 1, 1, 1, 5], "x", None, None, False)
        assert whole.encode("abc") == expected


def test_tokenizers_without_a_form_in_gguf_are_refused(tmp_path: Path) -> None:
    import tokenizers as hf

    unigram = Tokenizer(hf.Tokenizer(hf.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)))
    with pytest.raises(UsageError, match="byte-pair encoding, got Unigram"):
        _model(tokenizer=unigram).save_gguf(tmp_path / "m.gguf")
    words = hf.pre_tokenizers
    odd = _byte_level(words.Sequence([words.Punctuation(), words.ByteLevel()]))
    with pytest.raises(UsageError, match=r"\['Punctuation', 'ByteLevel'\]"):
        _model(tokenizer=odd).save_gguf(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_a_model_with_an_unknown_tokenizer_comes_without(tmp_path: Path) -> None:
    for key, value in (("model", "bert"), ("pre", "tekken")):
        file = good().set("tokenizer.ggml.model", 8, "gpt2").set(f"tokenizer.ggml.{key}", 8, value)
        (tmp_path / "m.gguf").write_bytes(file.build())
        with pytest.warns(UserWarning, match=f"{value}' is not known; the model comes without a tokenizer"):
            assert minedge.load(tmp_path / "m.gguf", backend="numpy").tokenizer is None


def test_a_file_that_does_not_say_how_words_are_cut_is_read_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(good().set("tokenizer.ggml.model", 8, "gpt2").build())
    with pytest.warns(UserWarning, match=r"'tokenizer\.ggml\.pre' is missing; words are cut as GPT-2"):
        assert minedge.load(tmp_path / "m.gguf", backend="numpy").tokenizer.token_id("ab") == 6


def test_a_stored_key_may_have_any_type(tmp_path: Path) -> None:
    file = good()
    for code, value in enumerate((b"\1", b"\1", b"\1\0", b"\1\0", bytes(4), bytes(4), struct.pack("<f", 1), b"\1")):
        file.set(f"other.{code}", code, value)
    file.set("other.10", 10, bytes(8)).set("other.11", 11, bytes(8)).set("other.12", 12, bytes(8))
    (tmp_path / "m.gguf").write_bytes(file.build())
    with gguf.GGUFFile(tmp_path / "m.gguf") as read:
        assert read.get("other.7", bool) is True and read.get("other.6", float) == 1.0
        assert read.get("nothing", int) is None and read.array("nothing", int) is None
        for key, kind in (("other.7", int), ("other.6", str), ("general.architecture", int)):
            with pytest.raises(MinedgeFormatError, match=f"key '{key}': expected {kind.__name__}"):
                read.get(key, kind)
        with pytest.raises(MinedgeFormatError, match="array of str"):
            read.array("tokenizer.ggml.scores", str)
        with pytest.raises(MinedgeFormatError, match="tensor 'x' is missing"):
            read.read("x")
        with pytest.raises(MinedgeFormatError, match="expected a Q4_0 or Q8_0 matrix, got F32"):
            read.read_packed("output_norm.weight")
    (tmp_path / "v2.gguf").write_bytes((tmp_path / "m.gguf").read_bytes().replace(b"GGUF\3", b"GGUF\2", 1))
    assert _load(tmp_path / "v2.gguf").config.n_layer == 1
