"""Text to token ids through the `tokenizers` library, loaded only when a tokenizer is really used.

A tokenizer brings along what its folder says about it (tokenizer_config.json, the chat template), and writes it again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minedge.data.chat_template import MAX_SOURCE, ChatTemplate, from_settings
from minedge.errors import MinedgeFormatError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["END_OF_TEXT", "Tokenizer", "library_errors"]

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<|im_end|>", "<|end_of_text|>", "<eos>")
_TEMPLATE_FILE = "chat_template.jinja"
_SPACE = "\u2581"  # how SentencePiece writes a space
_START_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever the tokenizers library makes of a damaged file as `MinedgeFormatError`: it raises bare Exception, and a
    panic of its compiled code is not even that.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise MinedgeFormatError(f"{what} ({' '.join(str(error).split())[:300]})") from None


class Tokenizer:
    """Text to token ids and back. `eos_id` separates documents, `bos_id` starts one; they are often the same.

    settings       tokenizer_config.json as it was read; written again by `save`
    chat_template  the Jinja2 source of the template that messages go through, or None
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token: str | None = None,
        bos_token: str | None = None,
        chat_template: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.settings = dict(settings or {})
        self.eos_token = eos_token or self._first_of(_END_NAMES)
        self.bos_token = bos_token or self._first_of(_START_NAMES) or self.eos_token
        named = dict(from_settings(self.settings.get("chat_template")))
        self._template_in_settings = named.get("default") or next(iter(named.values()), None)
        self.chat_template = chat_template or self._template_in_settings

    @property
    def chat(self) -> ChatTemplate | None:
        """The chat template with this tokenizer's special tokens, or None where there is none."""
        if not self.chat_template:
            return None
        tokens = {key: _spelled(value) for key, value in self.settings.items() if key.endswith("_token")}
        if not self.settings:
            tokens = {"eos_token": self.eos_token, "bos_token": self.bos_token}
        return ChatTemplate(self.chat_template, {key: text for key, text in tokens.items() if text is not None})

    @property
    def special_tokens(self) -> frozenset[str]:
        """The special tokens as a text spells them; `encode` gives each its own id."""
        return frozenset(t.content for t in self.backend.get_added_tokens_decoder().values() if t.special)

    def _first_of(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if self.backend.token_to_id(name) is not None), None)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to continue: after `bos_id` where `adds_bos`, unless the text itself
        begins with it, as a chat template writes it.
        """
        ids, bos = self.encode(text), self.bos_id
        return [bos, *ids] if bos is not None and self.adds_bos and ids[:1] != [bos] else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_continuation(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for texts that stand in the middle of running text: where the tokenizer would put a space before
        each (SentencePiece's way), it does not.
        """
        return [e.ids for e in self._unprefixed.encode_batch(list(texts), add_special_tokens=False)]

    @cached_property
    def _unprefixed(self) -> tokenizers.Tokenizer:
        """The backend, or its copy without the step that puts a space before a text."""
        normalizer, cut = self.backend.normalizer, self.backend.pre_tokenizer
        text = "a" if normalizer is None else normalizer.normalize_str("a")
        words = [(text, None)] if cut is None else cut.pre_tokenize_str(text)
        if not words or not words[0][0].startswith(_SPACE):
            return self.backend
        data = json.loads(self.backend.to_str())
        data["normalizer"] = _without_prefix(data["normalizer"])
        data["pre_tokenizer"] = _without_prefix(data["pre_tokenizer"])
        return type(self.backend).from_str(json.dumps(data))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """The text of ids that follow others: a SentencePiece decoder takes the first space off whatever it is given,
        so a token before them is decoded too, and its text cut off.
        """
        # Twice, for a space alone gives no text either. What cuts a character in two would not be cut off cleanly.
        for token in reversed(before):
            twice = self.decode([token, token])
            if not twice:  # a special token: the text starts after it
                break
            if "\ufffd" not in twice:
                return self.decode([token, *ids])[len(self.decode([token])) :]
        return self.decode(ids)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        return self.backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-text token, None if the vocabulary has none."""
        return None if self.eos_token is None else self.backend.token_to_id(self.eos_token)

    @property
    def bos_id(self) -> int | None:
        """Id of the token a document starts with."""
        return None if self.bos_token is None else self.backend.token_to_id(self.bos_token)

    @property
    def adds_bos(self) -> bool:
        """Whether a text is to be read after the `bos_id`: the settings say so, or else the tokenizer puts it there."""
        bos, said = self.bos_id, self.settings.get("add_bos_token")
        if bos is None or self.settings.get("bos_token", "") is None:
            return False
        if isinstance(said, bool):
            return said
        plain, whole = (self.backend.encode("a", add_special_tokens=special).ids[:1] for special in (False, True))
        return whole == [bos] != plain

    @property
    def start_id(self) -> int | None:
        """Id that rows of text start with: `bos_id` where texts start with it, otherwise `eos_id`."""
        unused = self.settings.get("bos_token", "") is None or self.settings.get("add_bos_token") is False
        return self.bos_id if self.adds_bos or (self.bos_token in _START_NAMES and not unused) else self.eos_id

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
        """Learn a byte-level BPE of exactly `vocab_size` ids; the first special token ends texts.

        Digits stand alone, so that numbers are spelled rather than memorized; a word carries the space before it, and
        runs of spaces (indentation) are tokens of their own. The same texts give the same tokenizer.
        """
        import tokenizers as hf

        texts = list(texts)
        backend = hf.Tokenizer(hf.models.BPE())
        backend.pre_tokenizer = hf.pre_tokenizers.Sequence(
            [
                hf.pre_tokenizers.Digits(individual_digits=True),
                hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        backend.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special),
            show_progress=False,
            initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(texts, trainer=trainer, length=len(texts))
        return cls(backend, eos_token=special[0] if special else None)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = dict(self.settings) or {
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        same = Tokenizer(self.backend, _spelled(settings.get("eos_token")), _spelled(settings.get("bos_token")))
        for key in ("bos_token", "eos_token"):  # what a reader would find by itself stays as it was written
            if not self.settings or getattr(same, key) != getattr(self, key):
                settings[key] = getattr(self, key)
        _replace(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        if self.chat_template and self.chat_template != self._template_in_settings:
            _replace(folder / _TEMPLATE_FILE, self.chat_template)
        _replace(folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder with tokenizer.json (or that file); tokenizer_config.json may name the special tokens."""
        import tokenizers as hf

        path = Path(folder)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise MinedgeFormatError(f"{file}: no tokenizer there; a model folder needs tokenizer.json")
        with library_errors(f"{file}: not a tokenizer that the tokenizers library can read"):
            backend = hf.Tokenizer.from_file(str(file))
        settings_file = file.parent / "tokenizer_config.json"
        settings: object = {}
        if settings_file.is_file():
            try:
                settings = json.loads(settings_file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise MinedgeFormatError(f"{settings_file}: expected JSON ({error})") from None
        if not isinstance(settings, dict):
            raise MinedgeFormatError(f"{settings_file}: expected a JSON object, got {type(settings).__name__}")
        return cls(
            backend,
            eos_token=_spelled(settings.get("eos_token")),
            bos_token=_spelled(settings.get("bos_token")),
            chat_template=_template_file(file.parent / _TEMPLATE_FILE),
            settings=settings,
        )


def _without_prefix(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of tokenizer.json less what puts a space before a text."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never", "add_prefix_space": False}
    for key in ("normalizers", "pretokenizers"):
        if key in step:
            return {**step, key: [kept for part in step[key] if (kept := _without_prefix(part)) is not None]}
    return step


def _spelled(entry: object) -> str | None:
    """A special token's text; older files wrap it as {"content": ...}."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _template_file(path: Path) -> str | None:
    """The template that lies in a file of its own, as newer folders have it; it goes before tokenizer_config.json's."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_SOURCE:
        raise MinedgeFormatError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_SOURCE}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MinedgeFormatError(f"{path}: expected UTF-8 text, byte {error.start} is not") from None


def _replace(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a reader never meets half a tokenizer."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
