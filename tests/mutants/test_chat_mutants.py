"""Bugs planted in chat templates and conversations, one at a time: the tests of tests/data find every one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minedge.data import chat_sandbox, chat_template, conversations
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError
from tests.data import test_chat_template as tests
from tests.mutants.planting import mutated_module


def talker() -> Tokenizer:
    found = Tokenizer.train_bpe(["four and five it is. user assistant system " * 20], 300, tests.SPECIAL)
    found.chat_template = tests.CHATML
    return found


def answers() -> None:
    for mark in tests.test_answers_are_found.pytestmark:
        for source, said in mark.args[1]:
            tests.test_answers_are_found(source, said)


def marked() -> None:
    """An answer that only the template's own marks can find: it does not stand in the text as it was given."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}{% else %}"
        "{% generation %}{{ m.content | upper }}{{ messages | length }};{% endgeneration %}{% endif %}{% endfor %}"
    )
    text, spans = conversations.answer_spans(chat_template.ChatTemplate(source), tests.TALK)
    assert [text[a:b] for a, b in spans] == ["FOUR4;", "FIVE IT IS.4;"]


def weights() -> None:
    tests.test_only_answers_weigh(talker())
    for length in (8, 14, 20):
        tests.test_a_long_conversation_keeps_its_end(talker(), length)


def plain() -> None:
    tests.test_plain_text_without_a_template()
    tests.test_a_model_without_a_template_learns_plain_lines(talker())


def refuses(source: str) -> Callable[[], None]:
    def check() -> None:
        with pytest.raises(MinedgeFormatError):
            chat_template.ChatTemplate(source).render(tests.TALK)

    return check


MUTANTS: dict[str, tuple[str, str, str, Callable[[], Any]]] = {
    "an answer includes the question": ("conversations", "start = len(before)\n", "start = 0\n", answers),
    "an answer ends before its end token": (
        "conversations", "return end + _common(tail, text[end:])", "return end", answers),
    "white space after the end is scored": (
        "conversations", "(start, bare if ends else end)", "(start, end)", answers),
    "generation blocks are passed over": ("conversations", "if template.marks_answers:", "if False:", marked),
    "every token weighs": ("conversations", "first < end and max(last, first + 1) > start", "True", weights),
    "the last token is cut": ("conversations", "stop - (seq_len - 1)", "stop - seq_len", weights),
    "the first token is lost": (
        "conversations", "[ids[0], *ids[kept]], [0.0, *weights[kept]]", "ids[kept], weights[kept]", weights),
    "no end of text": (
        "conversations", "[first, *ids, end], [0.0, *weights, weights[-1]]", "[first, *ids], [0.0, *weights]", plain),
    "roles are not written": ("conversations", "text += role + message", 'text += "" + message', plain),
    "products are not bounded": (
        "chat_sandbox", "_check(len(text) * times if isinstance(times, int) else 0)", "pass",
        refuses("{% set x = 'a' * 5000000 %}"),
    ),
    "sums are not bounded": (
        "chat_sandbox", "_check(sum(map(len, sized)))", "pass",
        refuses("{% set x = 'a' * 4000000 %}{% set x = x + x %}"),
    ),
    "joins are not bounded": (
        "chat_sandbox", "_check(sum(map(len, texts)) + len(separator) * len(texts))", "pass",
        refuses("{% set x = 'a' * 4000000 %}{% set x = x ~ x %}"),
    ),
    "replacements are not bounded": (
        "chat_sandbox", "_check(len(text) + len(new) * (found if count < 0 else min(found, count)))", "pass",
        refuses("{% set x = ('a' * 4000000).replace('a', 'bb') %}"),
    ),
    "methods are let through": (
        "chat_sandbox", "if name in _GONE_METHODS:", "if False:",
        refuses("{% set x = '{:5}'.format(1) %}"),
    ),
    "the output is not bounded": (
        "chat_template", "if length > MAX_OUTPUT:", "if False:",
        refuses("{% set x = 'a' * 4000000 %}{{ x }}{{ x }}"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Templates are compiled once and kept; neither a mutant nor the real module may meet the other's."""
    kept = (chat_sandbox.environment, chat_template._compiled)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short, old, new, check = MUTANTS[name]
    real = importlib.import_module(f"minedge.data.{short}")
    mutant = mutated_module(real.__name__, old, new)
    places = [m for key, m in list(sys.modules.items()) if key.startswith("minedge.data") or m is tests]
    own = {key: vars(real)[key] for key in real.__all__}
    for key, value in own.items():
        for place in places:
            if vars(place).get(key) is value:
                monkeypatch.setattr(place, key, vars(mutant)[key])
    with pytest.raises((Exception, pytest.fail.Exception)):
        check()


@pytest.mark.parametrize("name", MUTANTS)
def test_without_a_planted_bug_the_checks_pass(name: str) -> None:
    MUTANTS[name][3]()
