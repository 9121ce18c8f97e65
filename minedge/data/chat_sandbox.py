"""Jinja2's immutable sandbox for templates that come out of a model's files.

The sandbox keeps a program from reaching out: no attributes that lead to Python's insides, no changes to what it is
given, ranges of at most 100,000. What it lacks is a bound on memory: a template of a few bytes can ask for a text of
terabytes. Here every way to make a long text out of short ones is bounded (products, sums, joins, replacements), and
those that chat templates have no use for (padding to a width, formatting) are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import compiler, ext, filters, nodes, sandbox

__all__ = ["MAX_TEXT", "RefusalError", "environment"]

MAX_TEXT = 4 << 20  # characters; a context of a million tokens is about that long
_LARGE = 1 << 32
_GONE_METHODS = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "encode"}
_GONE_FILTERS = ("center", "filesizeformat", "format", "pprint", "random", "urlize", "wordwrap", "xmlattr")


class RefusalError(Exception):
    """What a template says with raise_exception."""


@lru_cache(maxsize=1)
def environment() -> Any:
    """The one environment of all templates, set up as transformers does: block tags leave no lines behind."""
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols], finalize=_bounded)
    made.filters.update(tojson=_to_json, replace=_replaced, join=_joined, string=_string, indent=_indented)
    for name in _GONE_FILTERS:
        made.filters.pop(name, None)
    made.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    made.globals.pop("lipsum", None)
    return made


class _BoundedConcat(compiler.CodeGenerator):
    """Compiles `a ~ b` to a call that looks at the lengths first."""

    def visit_Concat(self, node: nodes.Concat, frame: compiler.Frame) -> None:  # noqa: N802 - Jinja2's name for it
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedConcat
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    @staticmethod
    def concatenated(parts: Iterable[Any]) -> str:
        return _joined(list(parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [x for x in (left, right) if isinstance(x, (str, list, tuple))]
        if sized and operator == "%":
            raise sandbox.SecurityError("formatting with % is not allowed")
        if sized and operator == "*":
            text, times = (left, right) if sized[0] is left else (right, left)
            if not isinstance(text, str):
                raise sandbox.SecurityError("* of a list is not allowed")
            _check(len(text) * times if isinstance(times, int) else 0)
        if sized and operator == "+":
            _check(sum(map(len, sized)))
        if not sized and operator in ("*", "**") and not (abs(left) < _LARGE and abs(right) < _LARGE):
            raise sandbox.SecurityError(f"{operator} of numbers that are too large")
        if operator == "**" and abs(right) > 64:
            raise sandbox.SecurityError("** with an exponent that is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name in _GONE_METHODS:
                raise sandbox.SecurityError(f"{name} of a text is not allowed")
            if name == "replace":
                return _replaced(owner, *args, **kwargs)
            if name == "join":
                return _joined(list(*args), owner)
        return super().call(context, obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GONE_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Generation(ext.Extension):
    """{% generation %}...{% endgeneration %} around what the model writes; marks both ends where that is asked."""

    tags = {"generation"}  # noqa: RUF012 - Jinja2's own way to declare it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, context: Any, caller: Any) -> str:
        mark = context.get("generation_mark") or ""
        return f"{mark}{caller()}{mark}"


def _check(length: int) -> None:
    if length > MAX_TEXT:
        raise sandbox.SecurityError(f"a text of more than {MAX_TEXT} characters")


def _bounded(value: Any) -> Any:
    """The value, once it is certain that it can be written out: lists in lists may stand for more than they hold."""
    if isinstance(value, (list, tuple, dict)):
        waiting, seen = [value], 0
        while waiting:
            each = waiting.pop()
            seen += 1
            _check(seen)
            if isinstance(each, dict):
                waiting.extend(each.values())
            elif isinstance(each, (list, tuple)):
                waiting.extend(each)
            elif isinstance(each, str):
                seen += len(each)
    return value


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(_bounded(value))


def _joined(parts: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    """The filter and the method `join`, and `~`."""
    if attribute is not None:
        parts = [part[attribute] for part in parts]
    texts = [_string(part) for part in parts]
    _check(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replaced(text: Any, old: str, new: str, count: int | None = None) -> str:
    """The filter and the method `replace`."""
    text, count = _string(text), -1 if count is None else count
    found = text.count(old)
    _check(len(text) + len(new) * (found if count < 0 else min(found, count)))
    return text.replace(old, new, count)


def _indented(text: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text = _string(text)
    _check(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    return filters.do_indent(text, width, first, blank)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Plain JSON: Jinja2's own filter writes it for HTML, with <, > and & escaped."""
    if indent is not None and not 0 <= indent <= 16:
        raise ValueError(f"tojson: expected an indent of 0 to 16, got {indent}")
    keys = {key: more[key] for key in ("separators", "sort_keys") if key in more}
    return json.dumps(_bounded(value), ensure_ascii=ensure_ascii, indent=indent, **keys)


def _refuse(message: Any = "") -> None:
    raise RefusalError(str(message)[:500])


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(str(format)[:100])
