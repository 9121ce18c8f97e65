"""Peers that are installed do the same work as minedge: tiny shapes, every part. Run where torch and the others are:

python -m pytest -m oracle tests/bench
"""

from __future__ import annotations

import json

import pytest

from minedge.bench import peers, tasks_product
from minedge.bench.parts import part
from minedge.cli import main
from minedge.config import Config

pytestmark = pytest.mark.oracle
OPTIONS = ("--rounds", "1", "--turn", "0.01", "--threads", "1", "--time-limit", "300", "--json")
ARCHITECTURES = {
    "llama": Config(97, 2, 64, 2, 96, 64),
    "qwen2": Config(97, 2, 64, 2, 96, 64, n_kv_head=1, architecture="qwen2"),
    "gpt2": Config(97, 2, 64, 2, 256, 64, architecture="gpt2"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_peers_agree_with_minedge(capfd, tmp_path, name):
    """Losses before and after an update, scores of greedy tokens, quantized codes."""
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURES[name].to_hf()))
    parts = "decode,prefill,start,train,lora,mezo,mezo-lora,quantize"
    code = main(["bench", "--shape", str(tmp_path), "--only", parts, "--vs", "all", "--max-seq-length", "16", *OPTIONS])
    out, err = capfd.readouterr()
    assert code == 0, err
    report = json.loads(out)
    met = set()
    for result in report["results"]:
        for run in result["runs"]:
            assert run["counts"], (result["part"], run["label"], run["error"], run["check"])
            met.add(run["who"])
    assert met == {"minedge", *peers.PEERS} - set(report["not_installed"]) - {"onnxruntime"}


def test_products_of_peers_are_right(capfd, monkeypatch):
    """ONNX Runtime and ggml on small matrices: other layouts of the same codes."""
    small = {"width": 256, "matrices": 3}
    for name in ("matvec", "matmul"):
        whole = part(name)
        entries = tuple(type(e)(**{**e.__dict__, "sizes": {**e.sizes, **small}}) for e in whole.entries)
        monkeypatch.setitem(tasks_product.PARTS, name, type(whole)(**{**whole.__dict__, "entries": entries}))
    assert main(["bench", "--only", "matvec,matmul", "--vs", "all", *OPTIONS]) == 0
    report = json.loads(capfd.readouterr().out)
    for result in report["results"]:
        assert all(run["counts"] for run in result["runs"]), result
