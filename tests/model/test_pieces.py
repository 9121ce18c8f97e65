"""Text piece by piece against what each kind of tokenizer is by definition, broken characters included."""

from __future__ import annotations

import pytest

from minedge.model import pieces
from tests.model import pieces_checks as checks


@pytest.mark.parametrize("name", checks.__all__)
def test_pieces(name):
    getattr(checks, name)(pieces)


def test_random_tokens_that_never_make_a_character():
    broken = [3 + 0xE6, 3 + 0xBC] * 3
    assert checks.printed(pieces, checks.SPM, [], [*broken, checks.SPM.encode("cat")[0]]) == "\ufffd" * 6 + " cat"
    assert checks.printed(pieces, checks.SPM, [], [3 + 0xC3, 3 + 0xA9, 3 + 0xC3]) == "\u00e9\ufffd"
