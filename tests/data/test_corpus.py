"""The built-in corpus: parsed, never run; clean; the same every time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minedge.data import corpus
from minedge.errors import MinedgeError


def test_reading_the_library_imports_and_runs_nothing():
    # `this` prints when imported, `antigravity` opens a browser: neither may happen, nor any library module be loaded.
    code = (
        "import sys; from minedge.data import corpus; before = set(sys.modules); n = len(corpus.passages());"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(n > 4000, 'this' in sys.modules, 'antigravity' in sys.modules,"
        " 'pydoc_data.topics' in sys.modules, 'tkinter' in new)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "False", "False"]
    assert done.stderr == ""


def test_a_hostile_source_is_read_not_run(tmp_path):
    mark = tmp_path / "ran"
    source = f'"""A module whose body would write a file if it were run by anyone."""\nopen({str(mark)!r}, "w")\n'
    found = list(corpus.read_passages([("evil", source.encode()), ("broken", b"def (:"), ("binary", b"\x00\xff")]))
    assert [p.text for p in found] == ["A module whose body would write a file if it were run by anyone."]
    assert not mark.exists()


def test_docstrings_have_place_and_kind():
    source = b'''
class A:
    """A."""
    if True:
        def f(self):
            """B."""
            def inner():
                """C."""
try:
    async def g():
        """D."""
except ImportError:
    def h():
        "E."
'''
    assert list(corpus.docstrings(source)) == [
        ("A", "class", "A."),
        ("A.f", "function", "B."),
        ("A.f.inner", "function", "C."),
        ("g", "function", "D."),
        ("h", "function", "E."),
    ]


def test_clean_dedents_and_rejects():
    raw = (
        "The first line of it.\n\n\tAn indented line with \u201cquotes\u201d.   \n"
        "    =====\n\n\n\n    More of the text.\n    "
    )
    text = corpus.clean(raw)
    assert text == 'The first line of it.\n\n    An indented line with "quotes".\n\nMore of the text.'
    assert corpus.clean("Too short.") is None
    assert corpus.clean("0x12 0x34 0x56 0x78 " * 10) is None
    assert corpus.clean("\u0422\u0435\u043a\u0441\u0442 \u043d\u0435 " * 20) is None


def test_doctests_leave_and_the_prose_around_them_stays():
    lines = (
        "Add two numbers.",
        "",
        "  >>> add(1, 2)",
        "  3",
        "",
        "  >>> for i in x:",
        "  ...     f(i)",
        "",
        "It is exact: 1 >>> 2.",
    )
    assert [line for line in corpus.without_doctests(lines) if line] == [lines[0], lines[-1]]
    assert all(not line.lstrip().startswith(">>> ") for p in corpus.passages() for line in p.text.split("\n"))


def test_split_long_keeps_every_block():
    text = "\n\n".join(f"block {i} " + "x" * 90 for i in range(60))
    parts = corpus.split_long(text, 500)
    assert "\n\n".join(parts) == text
    assert max(map(len, parts)) <= 500


def test_a_paragraph_stands_in_one_topic_only():
    topics = [p.text.lower() for p in corpus.passages() if p.kind == "topic"]
    blocks = [" ".join(b.split()) for text in topics for b in text.split("\n\n") if len(b) > 80]
    assert len(blocks) == len(set(blocks))


def test_topics_are_read_as_a_literal():
    source = b"# -*- coding: utf-8 -*-\ntopics = {'if': 'The \"if\" statement'}\n"
    assert corpus.topics(source) == {"if": 'The "if" statement'}
    with pytest.raises(ValueError):
        corpus.topics(b"topics = {'if': __import__('os').getcwd()}")


def test_an_interpreter_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(MinedgeError, match="standard library's sources"):
        corpus.passages.__wrapped__()  # past the cache
