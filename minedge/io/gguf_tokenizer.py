"""Tokenizers in GGUF metadata, both ways.

Two sorts: "gpt2", byte-level byte-pair encoding with a list of merges, and "llama", SentencePiece's with scores. What
comes before the merges, how a text is cut into words, a GGUF file only names (`tokenizer.ggml.pre`), so the names
that are known here are the tokenizers that can be read and written.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from minedge.data.tokenizer import Tokenizer, library_errors
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import sentencepiece as spm

__all__ = ["read_tokenizer", "tokenizer_metadata"]

# Of a model's file, for each token and each merge: the smallest real ones (a vocabulary of 50,257 over a width of 64 in
# 4 bits) have 38.
_BYTES_EACH = 32

# Regular expressions of the published tokenizers: how Llama 3 and Qwen 2 cut a text into words.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REGEX = {"llama-bpe": _SPLIT % "{1,3}", "qwen2": _SPLIT % ""}
_SAME = {  # other names for the same cut
    "default": "gpt-2", "gpt2": "gpt-2", "phi-2": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2", "jais": "gpt-2",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "megrez": "qwen2",
    "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm", "exaone": "smollm",
}  # fmt: skip


def read_tokenizer(file: Any, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of an open `GGUFFile`, or None where it has none or (with a warning) one that is not known.

    Raises MinedgeFormatError where the lists contradict each other or the vocabulary's size.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind is None or kind in ("no_vocab", "none"):
        return None
    where, prefix = file.path, "tokenizer.ggml."
    pre = file.get(prefix + "pre", str)
    if pre is None and kind == "gpt2":
        text = f"{where}: key 'tokenizer.ggml.pre' is missing; words are cut as GPT-2 cuts them"
        warnings.warn(text, UserWarning, stacklevel=5)
    pre = _SAME.get(pre or "default", pre)
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and pre not in ("gpt-2", "smollm", *_REGEX)):
        what = f"tokenizer of type {kind!r}" if kind not in ("gpt2", "llama") else f"tokenizer.ggml.pre {pre!r}"
        warnings.warn(f"{where}: {what} is not known; the model comes without a tokenizer", UserWarning, stacklevel=5)
        return None
    # Counted before any list is made: a number or a string takes several times its bytes as an object.
    listed = {
        name: getattr(file.header.metadata.get(prefix + name), "count", 0)
        for name in ("tokens", "token_type", "scores", "merges")
    }
    if listed["tokens"] > vocab_size:
        raise MinedgeFormatError(f"{where}: {listed['tokens']} tokens, but the embedding has {vocab_size} rows")
    for name in ("token_type", "scores"):
        if listed[name] not in (0, listed["tokens"]):
            raise MinedgeFormatError(
                f"{where}: key '{prefix}{name}': {listed[name]} values for {listed['tokens']} tokens"
            )
    if (listed["tokens"] + listed["merges"]) * _BYTES_EACH > file.header.file_size and file.header.tensors:
        raise MinedgeFormatError(
            f"{where}: {listed['tokens']} tokens and {listed['merges']} merges are too many for a model of "
            f"{file.header.file_size} bytes"
        )
    tokens = file.array(prefix + "tokens", str)
    if tokens is None:
        raise MinedgeFormatError(f"{where}: key 'tokenizer.ggml.tokens' is missing")
    types = file.array(prefix + "token_type", int) or [spm.NORMAL] * len(tokens)
    scores = file.array(prefix + "scores", float) or [0.0] * len(tokens)
    bos, eos = (file.get(f"{prefix}{name}_token_id", int) for name in ("bos", "eos"))
    if kind == "llama":
        space, add_bos = (file.get(prefix + key, bool) for key in ("add_space_prefix", "add_bos_token"))
        found = spm.build(tokens, scores, types, where, bos, eos, space is not False, add_bos is not False)
    else:
        merges = _merges(file.array(prefix + "merges", str) or [], where)
        add_bos = file.get(prefix + "add_bos_token", bool) is True
        found = _byte_level(tokens, types, merges, pre, (bos, eos), add_bos, where)
    found.chat_template = file.get("tokenizer.chat_template", str)
    return found


def _merges(lines: list[str], where: str) -> list[tuple[str, str]]:
    pairs = []
    for line in lines:
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise MinedgeFormatError(f"{where}: key 'tokenizer.ggml.merges': expected 'a b', got {line[:80]!r}")
        pairs.append((left, right))
    return pairs


def _byte_level(
    tokens: list[str], types: list[int], merges: list[tuple[str, str]], pre: str, ends: tuple[Any, Any], add_bos: bool,
    where: str,
) -> Tokenizer:  # fmt: skip
    import tokenizers as hf

    vocab = spm.check_vocabulary(tokens, types, where)
    for left, right in merges:
        missing = next((part for part in (left, right, left + right) if part not in vocab), None)
        if missing is not None:
            raise MinedgeFormatError(f"{where}: key 'tokenizer.ggml.merges': no token {missing[:80]!r}")
    with library_errors(f"{where}: not a vocabulary that the tokenizers library takes"):
        backend = hf.Tokenizer(hf.models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    words = hf.pre_tokenizers
    if pre in _REGEX:
        cut = [words.Split(hf.Regex(_REGEX[pre]), "isolated"), words.ByteLevel(add_prefix_space=False, use_regex=False)]
        backend.pre_tokenizer = words.Sequence(cut)
    elif pre == "smollm":
        byte_level = words.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = words.Sequence([words.Digits(individual_digits=True), byte_level])
    else:
        backend.pre_tokenizer = words.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = hf.decoders.ByteLevel()
    return spm.finish(backend, tokens, types, *ends, add_bos)


# ---------------------------------------------------------------- writing


def tokenizer_metadata(tokenizer: Any, vocab_size: int) -> dict[str, tuple[str, Any]]:
    """Key -> (type, value) of what llama.cpp needs to know; UsageError for a tokenizer that GGUF has no form for."""
    data = json.loads(tokenizer.backend.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"tokenizer: expected byte-pair encoding, got {model.get('type')}; GGUF export has no form for it"
        )
    added = {entry["id"]: entry for entry in data["added_tokens"]}
    tokens, types = [], []
    by_id = {i: piece for piece, i in model["vocab"].items()}
    by_id.update({i: entry["content"] for i, entry in added.items()})
    for i in range(vocab_size):
        piece = by_id.get(i, f"[PAD{i}]")
        tokens.append(piece)
        types.append(_type(piece, i, by_id, added, model))
    out: dict[str, tuple[str, Any]] = {}
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if _is_byte_level(data):
        out["model"] = ("string", "gpt2")
        out["pre"] = ("string", _pre_name(data))
        out["merges"] = ("array", [f"{left} {right}" for left, right in merges])
    else:
        out["model"] = ("string", "llama")
        out["pre"] = ("string", "default")
        out["scores"] = ("array", _scores(tokens, merges))
        out["add_space_prefix"] = ("bool", _prepends_space(data))
    out["tokens"] = ("array", tokens)
    out["token_type"] = ("array", types)
    for name, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if token_id is not None:
            out[f"{name}_token_id"] = ("uint32", token_id)
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        out["unknown_token_id"] = ("uint32", model["vocab"][unknown])
    out["add_bos_token"] = ("bool", tokenizer.adds_bos)
    out["add_eos_token"] = ("bool", False)
    named = {f"tokenizer.ggml.{key}": value for key, value in out.items()}
    if tokenizer.chat_template:
        named["tokenizer.chat_template"] = ("string", tokenizer.chat_template)
    return named


def _type(piece: str, i: int, by_id: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    if i not in by_id:
        return spm.UNUSED
    if piece == model.get("unk_token"):
        return spm.UNKNOWN
    if i in added:
        return spm.CONTROL if added[i]["special"] else spm.USER_DEFINED
    return spm.BYTE if model.get("byte_fallback") and len(piece) == 6 and piece.startswith("<0x") else spm.NORMAL


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Minus the rank of the first merge that makes a piece: joins by score then come in the order of the merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(piece, 0)) for piece in tokens]


def _parts(entry: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be one, a sequence, or none."""
    if not entry:
        return []
    return entry[key] if entry.get("type") == "Sequence" else [entry]


def _is_byte_level(data: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(data["pre_tokenizer"], "pretokenizers"))


def _prepends_space(data: dict[str, Any]) -> bool:
    """Whether a text gets a space in front: as a normalizer, or by Metaspace."""
    for part in _parts(data["normalizer"], "normalizers"):
        if part["type"] == "Prepend":
            return True
    return any(
        part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never"
        for part in _parts(data["pre_tokenizer"], "pretokenizers")
    )


def _pre_name(data: dict[str, Any]) -> str:
    parts = _parts(data["pre_tokenizer"], "pretokenizers")
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = parts[0].get("pattern", {}).get("Regex")
        for name, regex in _REGEX.items():
            if pattern == regex:
                return name
    raise UsageError(
        f"tokenizer: GGUF has names only for the ways of GPT-2, SmolLM, Llama 3 and Qwen 2 to cut words, got {kinds}; "
        "without tokenizer.json the model is written without it, and llama.cpp takes --override-kv tokenizer.ggml.pre"
    )
