"""Small JSON files out of untrusted hands."""

from __future__ import annotations

import contextlib
import json
import math
import tracemalloc

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


@pytest.mark.parametrize("count", [5_000, 40_000])
@pytest.mark.parametrize("text", ["[],", "{},", "1,", "0.5,", '"bc",', '{"b":1},', '"%x":0,', '"%x":[],', "😀"])
def test_values_of_few_characters_stay_below_four_times_the_text(text: str, count: int) -> None:
    """And 4 MB, which is what the files beside the weights of real models may take."""
    inside = "".join(text % i if "%" in text else text for i in range(count)).rstrip(",")
    if text == "😀":
        data = '{"a": "' + "a" * count * 4 + inside[0] + '"}'
    else:
        data = "{" + inside + "}" if "%" in text else '{"a": [' + inside + "]}"
    raw = data.encode()
    tracemalloc.start()
    try:
        with contextlib.suppress(MinedgeFormatError):
            assert parse_json(raw, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(raw) + (4 << 20)


def test_the_index_of_a_large_model_is_no_attack() -> None:
    """Llama 3.1 405B has 1,138 tensors; here are five times as many."""
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(5_690)]
    data = json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00191.safetensors")}, indent=2)
    assert len(parse_json(data.encode(), "x")["weight_map"]) == len(names)
