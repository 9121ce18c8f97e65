"""Small JSON files out of untrusted hands."""

from __future__ import annotations

import math

import pytest

from minedge.errors import MinedgeFormatError
from minedge.io.jsonfile import dump_json, parse_json

BAD = {
    b'{"a": 1, "a": 1}': "'a' occurs twice",
    b'{"b": {"a": 1, "a": 1}}': "'a' occurs twice",
    b'{"a": NaN}': "NaN is not JSON",
    b'{"a": -Infinity}': "-Infinity is not JSON",
    b"[1]": "expected a JSON object, got list",
    b"": "not valid JSON",
    b'{"a": 1} x': "not valid JSON",
    b'{"a": "\xff"}': "not valid JSON",
    b"\xef\xbb\xbf{}": "not valid JSON",
    b'{"a": ' + b"9" * 5000 + b"}": "not valid JSON",
    b'{"a":' * 33: "nested deeper than 32 levels",
    b'{"a":' + b"[" * 1_000_000: "nested deeper than 32 levels",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_json(text: bytes) -> None:
    with pytest.raises(MinedgeFormatError, match=f"there: .*{BAD[text]}"):
        parse_json(text, "there")


def test_brackets_inside_strings_are_no_depth() -> None:
    value = {"a": "[" * 100, "b": '\\"[{' * 100, "c": {"\\": "}"}}
    assert parse_json(dump_json(value), "there") == value


def test_numbers_that_are_not_finite_only_where_allowed() -> None:
    value = parse_json(b'{"a": Infinity, "b": -Infinity, "c": NaN}', "there", constants=True)
    assert value["a"] == math.inf and value["b"] == -math.inf and math.isnan(value["c"])
