"""Bugs planted in the readers and writers of GGUF and llama2.c, one at a time: the tests of tests/io find every one.

The mutated module's functions stand in wherever the package has imported the real ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from minedge.errors import MinedgeFormatError

# Loaded before a mutant is, so that none keeps one.
from minedge.io import gguf, gguf_write, jsonfile, llama2c, safetensors  # noqa: F401
from minedge.io.gguf_types import TYPES
from tests.io import test_gguf, test_gguf_bad, test_jsonfile, test_llama2c, test_safetensors
from tests.io.gguf_files import BAD, HEADER_RULES
from tests.mutants.planting import mutated_module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def types(path: Path) -> None:
    for code, kind in TYPES.items():
        if kind.dequantize:
            test_gguf.test_dequantizers_equal_the_packages_on_any_bytes(code)


def sizes(path: Path) -> None:
    test_gguf.test_block_sizes_are_the_packages()


def there_and_back(path: Path) -> None:
    for i, name in enumerate(test_gguf.CONFIGS):
        (path / str(i)).mkdir()
        test_gguf.test_hugging_face_to_gguf_and_back_changes_nothing(name, path / str(i))


def written(path: Path) -> None:
    for i, name in enumerate(test_gguf.CONFIGS):
        test_gguf.test_names_are_the_packages(name)
        for dtype in ("f16", "q4_0"):
            (path / f"{i}{dtype}").mkdir()
            test_gguf.test_tensors_are_byte_equal_to_the_packages_quantization(name, dtype, path / f"{i}{dtype}")


def int4(path: Path) -> None:
    for group_size in (32, 64):
        (path / str(group_size)).mkdir()
        test_gguf.test_int4_exports_without_loss(group_size, path / str(group_size))
    test_gguf.test_a_packed_q4_0_matrix_is_the_packages_values_bit_for_bit(path)


def scaling(path: Path) -> None:
    test_gguf.test_llama3_scaling_is_found_without_our_own_key(path)


def tokenizers(path: Path) -> None:
    for pre in ("smollm", "gpt-2", "llama-bpe", "qwen2"):
        (path / pre).mkdir()
        test_gguf.test_byte_level_tokenizers_come_back(pre, path / pre)
    test_gguf.test_sentencepiece_vocabularies_join_by_score_and_come_back(path)
    test_gguf.test_scores_need_not_be_sorted_and_ties_go_by_id()


def tinyllamas(path: Path) -> None:
    test_llama2c.test_logits_are_those_of_the_format(11, path)
    test_llama2c.test_logits_are_those_of_the_format(-11, path)


def refusals(path: Path) -> None:
    for name, make in BAD.items():
        made = make()
        (path / "m.gguf").write_bytes(made if isinstance(made, bytes) else made.build())
        with pytest.raises(MinedgeFormatError):
            (gguf.GGUFFile if name in HEADER_RULES else gguf.read_model)(path / "m.gguf")
            pytest.fail(name)


def gguf_memory(path: Path) -> None:
    test_gguf_bad.test_many_small_entries_stay_below_four_times_the_file(path)


def header_memory(path: Path) -> None:
    test_safetensors.test_many_small_tensors_stay_below_four_times_the_file(path, 0)


def json_memory(path: Path) -> None:
    for text in ("[],", '"%x":0,'):
        test_jsonfile.test_values_of_few_characters_stay_below_four_times_the_text(text, 40_000)


# name: module, what stands there, what the mutant has instead, the check that must fail
MUTANTS: dict[str, tuple[str, str, str, Callable[[Path], None]]] = {
    "nibbles swapped": ("gguf_types", "[part & 0x0F, part >> 4]", "[part >> 4, part & 0x0F]", types),
    "Q4_0 not centred": ("gguf_types", "(codes.astype(np.float32) - 8)", "(codes.astype(np.float32) - 7)", types),
    "fifth bits from the high end": (
        "gguf_types", 'np.unpackbits(high, axis=1, bitorder="little")', "np.unpackbits(high, axis=1)", types),
    "K scales without their upper bits": ("gguf_types", "(c & 15) | ((a >> 6) << 4)", "(c & 15)", types),
    "K minima from the scales' bits": ("gguf_types", "(c >> 4) | ((b >> 6) << 4)", "(c >> 4) | ((a >> 6) << 4)", types),
    "K minima added": ("gguf_types", "(scale * codes - minimum).reshape(len(blocks), 256)\n\n\ndef _q5_k",
                       "(scale * codes + minimum).reshape(len(blocks), 256)\n\n\ndef _q5_k", types),
    "Q6_K shifts in another order": (
        "gguf_types", "np.array([0, 2, 4, 6], np.uint8)", "np.array([0, 4, 2, 6], np.uint8)", types),
    "Q6_K scales unsigned": ("gguf_types", '_as("i1", blocks[:, 192:208])', '_as("u1", blocks[:, 192:208])', types),
    "Q5_1 two bytes short": ("gguf_types", '"Q5_1", 32, 24', '"Q5_1", 32, 22', sizes),
    "permutation forgotten": ("gguf_names", 'if config.architecture != "llama" or', "if True or", written),
    "permutation for qwen too": ("gguf_names", 'if config.architecture != "llama" or', "if", written),
    "permutation of v as well": (
        "gguf_names", "endswith(config.arch.attn_in[:2])", "endswith(config.arch.attn_in)", written),
    "gate and up swapped": (
        "gguf_names", '"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"',
        '"mlp.gate_proj": "ffn_up", "mlp.up_proj": "ffn_gate"', written),
    "head always tied": ("gguf_names", '"output.weight" not in names', "True", there_and_back),
    "head_dim from the width": (
        "gguf_names", 'get(f"{arch}.attention.key_length", int) or', "0 or", there_and_back),
    "theta left at its default": (
        "gguf_names", 'positive(f"{arch}.rope.freq_base", 10000.0)', "10000.0", there_and_back),
    "factors not inverted": (
        "gguf_names", "(1 / ((1 - blend) / factor + blend))", "((1 - blend) / factor + blend)", scaling),
    "rows scattered as they come": (
        "gguf", "out[slice(first, first + count) if rows is None else rows[first : first + count]] = values",
        "out[first : first + count] = values", there_and_back),
    "packed rows scattered as they come": (
        "gguf", "slice(first, first + count) if rows is None else rows[first : first + count]\n            blocks",
        "slice(first, first + count)\n            blocks", int4),
    "scale after the codes": ("gguf_write", "[raw, codes], axis=-1", "[codes, raw], axis=-1", int4),
    "larger groups not repeated": (
        "gguf_write", "codes.shape[1] // scales.shape[1], axis=1", "codes.shape[1] // scales.shape[1], axis=0", int4),
    "norms in the matrices' type": ("gguf_write", '("F32", params[key].shape', '("F16", params[key].shape', written),
    "worst score first": ("sentencepiece", "(-scores[i], i, left, right)", "(scores[i], i, left, right)", tokenizers),
    "bytes as plain pieces": ("gguf_tokenizer", "spm.BYTE if model", "spm.NORMAL if model", tokenizers),
    "digits not alone": ("gguf_tokenizer", "words.Digits(individual_digits=True)", "words.Digits()", tokenizers),
    "no space in front": ("gguf_tokenizer", "space is not False", "False", tokenizers),
    "llama2.c's down and up swapped": (
        "llama2c", "yield layers(a.mlp_out), (C, config.n_inner)\n    yield layers(up), (config.n_inner, C)",
        "yield layers(up), (config.n_inner, C)\n    yield layers(a.mlp_out), (C, config.n_inner)", tinyllamas),
    "llama2.c's rows left interleaved": (
        "llama2c", "endswith(config.arch.attn_in[:2])", "endswith('nothing')", tinyllamas),
    "llama2.c's rotary tables forgotten": (
        "llama2c", "yield [None, None], (config.context_length, config.head_dim // 2)", "yield [], (1, 1)", tinyllamas),
    "truth values unchecked": ("gguf_header", "if code == _BOOL and value > 1", "if False", refusals),
    "array counts unchecked": (
        "gguf_header", 'cursor.need(count * width, f"{what}, an array of {count} elements,")',
        "count = count if count * width < 1 << 60 else 0", refusals),
    "shapes in 64 bits": (
        "gguf_header", "nbytes = prod(shape) //", "nbytes = (prod(shape) & 0xFFFFFFFFFFFFFFFF) //", refusals),
    "overlaps unchecked": ("gguf_header", "if offset != expected", "if False", refusals),
    "end unchecked": ("gguf_header", "if cursor.size > _round_up(position, alignment)", "if False", refusals),
    "twins unchecked": ("gguf_header", "if key in metadata", "if False", refusals),
    "unknown tensors ignored": ("gguf", "(found.keys() - wanted.keys(), ", "(set(), ", refusals),
    "names of any number": ("safetensors_header", "if self.left < for_now", "if False", header_memory),
    "JSON values of any number": ("jsonfile", "if cost > 4 * len(data) + _FREE", "if False", json_memory),
    "tokens of any number": (
        "gguf_tokenizer", 'if listed[name] not in (0, listed["tokens"])',
        'if len(file.array(prefix + name, dict(scores=float).get(name, int)) or []) not in (0, listed["tokens"])',
        gguf_memory),
    "shapes unchecked": ("gguf", "if found[name].shape != tuple(shape)", "if False", refusals),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, old, new, check = MUTANTS[name]
    real = importlib.import_module(f"minedge.io.{short}")
    mutant = mutated_module(real.__name__, old, new)
    places = [m for key, m in list(sys.modules.items()) if key.startswith(("minedge.io", "tests.io", __name__))]
    own = {k: v for k, v in vars(real).items() if k == "TYPES" or getattr(v, "__module__", None) == real.__name__}
    for key, value in own.items():
        for place in places:
            if vars(place).get(key) is value:
                monkeypatch.setattr(place, key, vars(mutant)[key])
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(tmp_path)


@pytest.mark.parametrize("check", sorted({m[3] for m in MUTANTS.values()}, key=lambda c: c.__name__))
def test_without_a_planted_bug_the_checks_pass(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)
