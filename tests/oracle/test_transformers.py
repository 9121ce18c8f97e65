"""Parity with transformers: the same files, the same logits, the same greedy text, in both directions.

Needs an environment of its own, `pip install -e '.[oracle,gguf]' pytest hypothesis`, and runs with
`python -m pytest -m oracle tests/oracle`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import minedge  # noqa: E402
from minedge.data.tokenizer import Tokenizer  # noqa: E402

V, LENGTH = 300, 48
SIZES = dict(
    vocab_size=V, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "llama, untied": ("Llama", dict(num_key_value_heads=4, tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "llama, one key head": ("Llama", dict(num_key_value_heads=1)),
    "llama, head_dim apart": ("Llama", dict(num_key_value_heads=2, head_dim=32)),
    "llama, theta": ("Llama", dict(num_key_value_heads=2, rope_theta=5e5)),
    "llama, linear": ("Llama", dict(num_key_value_heads=2, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "llama, llama3": ("Llama", dict(num_key_value_heads=2, rope_scaling=LLAMA3)),
    "qwen2, tied": ("Qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen2, untied": ("Qwen2", dict(num_key_value_heads=4, tie_word_embeddings=False, rope_theta=1e6)),
    "qwen2, unused window": ("Qwen2", dict(num_key_value_heads=2, use_sliding_window=False, sliding_window=8)),
    "qwen3, tied": ("Qwen3", dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    "qwen3, head_dim apart": ("Qwen3", dict(num_key_value_heads=2, head_dim=32, tie_word_embeddings=False)),
    "qwen3, heads of 128": ("Qwen3", dict(num_key_value_heads=2, head_dim=128)),
    "gpt2": ("GPT2", dict(n_inner=None)),
    "gpt2, n_inner": ("GPT2", dict(n_inner=80)),
}


def _theirs(name: str, seed: int = 0) -> Any:
    family, options = CONFIGS[name]
    if family == "GPT2":
        sizes = dict(
            vocab_size=V, n_embd=64, n_layer=3, n_head=4, n_positions=1024, bos_token_id=0, eos_token_id=0, **options
        )
        config, kind = transformers.GPT2Config(**sizes), transformers.GPT2LMHeadModel
    else:
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
        kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(seed)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # norms of 1, biases of 0 and tiny matrices would hide mistakes
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (3, LENGTH))


def _their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(_tokens())).logits.float().numpy()


def _close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 1  # or a tolerance of 1e-4 would say little
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(["a small text about small texts, and some more of it, 1 2 3. " * 20], V - 10)


@pytest.mark.parametrize("backend", ["numpy", "numba", "c"])
@pytest.mark.parametrize("name", CONFIGS)
def test_their_folder_gives_their_logits(name: str, backend: str, tmp_path: Path) -> None:
    theirs = _theirs(name)
    theirs.save_pretrained(tmp_path / "m")
    ours = minedge.load(tmp_path / "m", backend=backend)
    _close(ours.logits(_tokens()), _their_logits(theirs))


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_gives_our_logits_there(name: str, tmp_path: Path) -> None:
    _theirs(name).save_pretrained(tmp_path / "m")
    ours = minedge.load(tmp_path / "m", backend="numpy")
    ours.save(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    _close(ours.logits(_tokens()), _their_logits(theirs))


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, untied", "qwen3, tied", "gpt2"])
def test_greedy_text_is_equal(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = _theirs(name)
    theirs.save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    ours = minedge.load(tmp_path / "m", backend="numpy")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for prompt in ("a small", "texts about 1 2", "and"):
        ids = other(prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == ours.tokenizer.encode(prompt)
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        expected = other.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert ours.generate(prompt, max_tokens=40) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_half_precision_and_shards(name: str, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(name).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    _close(minedge.load(tmp_path / "m", backend="numpy").logits(_tokens()), _their_logits(wide))


def test_what_would_change_results_is_refused(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "sliding": dict(family="Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0),
        "rope_scaling|yarn": dict(family="Llama", rope_scaling=dict(rope_type="yarn", factor=4.0)),
        "attention_bias": dict(family="Llama", attention_bias=True),
        "mlp_bias": dict(family="Llama", mlp_bias=True),
        "hidden_act": dict(family="Llama", hidden_act="gelu"),
    }
    for i, (says, options) in enumerate(cases.items()):
        family = options.pop("family")
        config = getattr(transformers, f"{family}Config")(**{**SIZES, "num_key_value_heads": 2, **options})
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / str(i))
        with pytest.raises(minedge.errors.MinedgeFormatError, match=says):
            minedge.load(tmp_path / str(i), backend="numpy")


@pytest.mark.parametrize("dtype", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama, tied", "llama, untied", "qwen2, untied", "qwen3, heads of 128", "gpt2"])
def test_transformers_reads_our_gguf_files(name: str, dtype: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A reader of GGUF that is not ours and not the gguf package's: names, row order, blocks and metadata.

    It ignores qwen3's head_dim and gpt2's context_length, so these are its defaults here, 128 and 1024.
    """
    pytest.importorskip("gguf")
    _theirs(name).save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    ours = minedge.load(tmp_path / "m", backend="numpy")
    (tmp_path / "g").mkdir()
    ours.save_gguf(tmp_path / "g" / "m.gguf", dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "g", gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = minedge.load(tmp_path / "g" / "m.gguf", backend="numpy")
    _close(back.logits(_tokens()), _their_logits(theirs))
    if dtype == "f32":
        _close(ours.logits(_tokens()), _their_logits(theirs))
