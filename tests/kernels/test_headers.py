"""Every kernel's file opens with what a student needs: the loop it replaces, what it costs in instructions, what was
measured and which limit that stands against; in its own first comment or in that of a file which it names.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
PARTS = {
    "a loop": re.compile(r"for \(|for each |for \w[\w, ]*:"),
    "a count of instructions": re.compile(
        r"\d[^.]*\binstructions|[Ii]nstructions[^.]*\d|\b[Pp]er \d+ (weights|numbers)\b"
    ),
    "a figure": re.compile(r"\d (x|times|ns|ms|GB/s|GFLOP/s|nanoseconds)\b"),
    "its machine": re.compile(r"AMD EPYC|Zen [34]"),
    "its date": re.compile(r"20\d\d-\d\d-\d\d"),
    "a limit": re.compile(r"[Ll]imit"),
}
# Settings, vectors, declarations
NOT_KERNELS = {"isa.h", "vec.h", "internal.h", "minedge_kernels.h", "sparse_tables.h"}
FILES = sorted(
    str(path.relative_to(KERNELS))
    for path in (*KERNELS.glob("*/*.[ch]"), *KERNELS.glob("*.h"))
    if path.name not in NOT_KERNELS
)


def first_comment(text):
    """The comment that a file opens with, or ""."""
    found = re.match(r"/\*.*?\*/", text, re.DOTALL)
    return found[0] if found else ""


def named(comment, folder):
    """Files of kernels/ that a comment in `folder` names: beside it, or from the top."""
    for name in re.findall(r"(?:\w+/)?\w+\.[ch]\b", comment):
        places = (KERNELS / folder / name, KERNELS / name, KERNELS / "scalar" / name)
        yield from (str(path.relative_to(KERNELS)) for path in [p for p in places if p.is_file()][:1])


@functools.cache
def reach(file):
    """The first comments of a file and of all files that they name, as one text."""
    texts, waiting = {}, [file]
    while waiting:
        one = waiting.pop()
        texts[one] = first_comment((KERNELS / one).read_text(encoding="utf-8"))
        waiting += [other for other in named(texts[one], Path(one).parent) if other not in texts]
    return "\n".join(texts.values())


def missing(text):
    return [part for part, pattern in PARTS.items() if not pattern.search(text)]


@pytest.mark.parametrize("file", FILES)
def test_a_kernel_says_what_it_replaces_costs_and_reaches(file):
    assert not missing(reach(file))


def test_a_comment_that_only_names_the_file_is_found_out():
    assert missing("/* Products of int4 weights. */") == list(PARTS)
    assert first_comment("#include <x.h>\n/* late */") == ""
