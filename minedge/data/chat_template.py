"""Chat templates: the Jinja2 programs that turn messages into the text a model was taught to answer.

A template comes with the model, so it is code out of a file: it runs in the sandbox of chat_sandbox.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["MAX_OUTPUT", "MAX_SOURCE", "ChatTemplate", "Message", "from_settings"]

Message = Mapping[str, Any]  # {"role": ..., "content": ...}, and what else a template may ask for

MAX_OUTPUT = 4 << 20  # characters in all
MAX_SOURCE = 1 << 20


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the special tokens it may name ({"bos_token": "<s>", ...})."""

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation; with `add_generation_prompt`, up to where the model's answer starts.

        Raises UsageError where the template refuses the messages or Jinja2 is not installed, MinedgeFormatError where
        the template itself is at fault.
        """
        return self._render(messages, add_generation_prompt)

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the parts of it (start, end) that the template says the model wrote: its
        {% generation %} blocks. Most templates have none.
        """
        mark = f"\ue000{secrets.token_hex(8)}\ue001"  # random, so that no message can hold it
        pieces = self._render(messages, False, mark).split(mark)
        text, spans = "", []
        for i, piece in enumerate(pieces):  # every second piece lies between two marks
            if i % 2 and piece:
                spans.append((len(text), len(text) + len(piece)))
            text += piece
        return text, spans

    @property
    def marks_answers(self) -> bool:
        """Whether the template has {% generation %} blocks."""
        return "endgeneration" in self.source

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, mark: str = "") -> str:
        if len(self.source) > MAX_SOURCE:
            raise MinedgeFormatError(f"chat template: {len(self.source)} characters, expected at most {MAX_SOURCE}")
        template = _compiled(self.source)
        values = {**self.tokens, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        values.update(tools=None, documents=None, generation_mark=mark)
        pieces, length = [], 0
        try:
            for piece in template.generate(**values):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_OUTPUT:
                    raise OverflowError(f"it makes more than {MAX_OUTPUT} characters")
        except Exception as error:  # whatever a program out of a file can raise, running out of memory included
            if type(error).__name__ == "RefusalError":
                raise UsageError(f"chat template: it refuses these messages: {_one_line(error)}") from None
            raise MinedgeFormatError(f"chat template: {_one_line(error)}") from None
        return "".join(pieces)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    try:
        import jinja2
    except ImportError:
        raise UsageError(
            "chat template: it needs Jinja2, which is not installed; pip install 'minedge[chat]', or go without the "
            "template: --no-chat-template"
        ) from None
    from minedge.data.chat_sandbox import environment

    try:
        return environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise MinedgeFormatError(f"chat template, line {error.lineno}: {_one_line(error)}") from None
    except Exception as error:  # such as nesting too deep for Python's compiler
        raise MinedgeFormatError(f"chat template: it cannot be compiled: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def from_settings(entry: Any) -> Iterator[tuple[str, str]]:
    """(name, source) of the templates in tokenizer_config.json's `chat_template`: one text, or a list of named ones."""
    if isinstance(entry, str):
        yield "default", entry
    elif isinstance(entry, list):
        for each in entry:
            if isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str):
                yield each["name"], each["template"]
