"""llama.cpp opens the GGUF files written here: the same token ids, the same greedy text.

Runs where llama-cpp-python is installed: python -m pytest -m oracle tests/oracle/test_llama_cpp.py
Last figures (llama-cpp-python 0.3.36): ids and greedy text equal for the bundled model (byte-level tokenizer) and
stories260K (SentencePiece) in F32, F16, Q8_0 and Q4_0.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import minedge

pytestmark = pytest.mark.oracle
PROMPTS = {"bundled": "Return the", "models/stories260K": "Once upon a time"}


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("source", PROMPTS)
def test_llama_cpp_writes_the_same_text(source: str, dtype: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    data, prompt = os.environ.get("MINEDGE_DATA"), PROMPTS[source]
    if source != "bundled" and not data:
        pytest.skip("MINEDGE_DATA is not set")
    model = minedge.load(source if source == "bundled" else Path(data or "") / source, backend="numpy")
    model.save_gguf(tmp_path / "m.gguf", dtype)
    ours = minedge.load(tmp_path / "m.gguf", backend="numpy")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, n_threads=1, verbose=False)
    for text in (prompt, "It's 12,345 — é\n  two  spaces"):
        assert theirs.tokenize(text.encode(), add_bos=False) == ours.tokenizer.encode(text)
    count = 24 if dtype in ("f32", "f16") else 4  # rounding inside quantized products may turn a near tie later
    found = theirs(prompt, max_tokens=count, temperature=0.0, top_k=1)["choices"][0]["text"]
    assert found == ours.generate(prompt, max_tokens=count)
