"""minedge fuse with several adapters and over quantized weights, and quantize --type nf4 and --bits 8."""

from __future__ import annotations

import json

import numpy as np
import pytest

import minedge


def make_adapter(base, path, seed, **options):
    adapted = minedge.lora.add(minedge.load(base), r=2, seed=seed, **options)
    rng = np.random.default_rng(seed)
    changed = {
        n: rng.normal(0, 0.1, a.shape).astype(np.float32) if ".lora_B." in n else a for n, a in adapted.params.items()
    }
    minedge.lora.save_adapter(adapted.with_params(changed), path)


def run(cli, *words):
    result = cli(*words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_weighted_sum_of_two_adapters(home, cli):
    make_adapter("tiny", "b", 7, target="all", use_rslora=True)
    two = ("--adapter-path", "a=adapter", "--adapter-path", "b=b")
    report = run(cli, "fuse", "-m", "tiny", *two, "--weights", "a=0.7,b=-0.3", "--out", "f", "--verify")
    assert report["largest_logit_difference"] < 1e-4 and report["same_next_token"] > 0.99
    assert report["weights"] == {"a": 0.7, "b": -0.3} and "requantizing" not in report
    assert report["merged_matrices"] == 14 and report["merged_arrays"] == 2 * (4 + 14)
    both = minedge.load("tiny")
    for name, path in (("a", "adapter"), ("b", "b")):
        both = minedge.lora.load_adapter(both, path, adapter=name)
    expected = minedge.lora.merge(both, {"a": 0.7, "b": -0.3})
    fused = minedge.load("f")
    assert all(fused.params[n].tobytes() == a.tobytes() for n, a in expected.params.items())
    whole = run(cli, "fuse", "-m", "tiny", *two, "--weights", "a=1,b=1", "--out", "g", "--verify")
    assert whole["largest_logit_difference"] < 1e-4


@pytest.mark.parametrize("method", [{}, {"use_dora": True}])
@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_what_rounding_again_costs(home, cli, kind, method):
    run(cli, "quantize", "-m", "tiny", "--type", kind, "--group-size", "32", "--out", "q")
    make_adapter("q", "a", 3, target="all", **method)
    report = run(cli, "fuse", "-m", "q", "--adapter-path", "a", "--out", "f", "--verify")
    cost = report["requantizing"]
    assert cost["kinds"] == [kind] and 0.01 < cost["lost"] <= cost["worst"]["lost"] and cost["largest_weight_error"] > 0
    assert report["largest_logit_difference"] > 1e-4
    adapted = minedge.lora.load_adapter(minedge.load("q"), "a")
    assert cost["largest_weight_error"] == minedge.lora.merge_error(adapted)
    text = cli("fuse", "-m", "q", "--adapter-path", "a", "--out", "g", "--verify")
    assert f"into {kind} again loses" in text.out and f"merging into {kind} weights loses up to" in text.err


@pytest.mark.parametrize(
    "words, says",
    [
        (["--weights", "a"], ["--weights", "a=0.7"]),
        (["--weights", "a=much"], ["--weights", "a=0.7"]),
        (["--weights", "b=1"], ["no adapter 'b'", "it has a"]),
        (["--adapter-path", "a=adapter"], ["called 'a' already"]),
        (["--adapter-path", "nowhere"], ["--adapter-path", "'nowhere' does not exist"]),
    ],
)
def test_refusals(home, cli, words, says):
    result = cli("fuse", "-m", "tiny", "--adapter-path", "a=adapter", "--out", "f", *words)
    assert result.code == 2 and all(text in result.err for text in says), result.err
    assert not (home / "f").exists()


def test_part_of_a_dora_adapter_is_merged_and_verified(home, cli):
    """Its change is of no low rank, so it is compared as it stands: beside the weight, times its number."""
    make_adapter("tiny", "d", 5, target="all", use_dora=True)
    make_adapter("tiny", "l", 6, target="all")
    words = ("fuse", "-m", "tiny", "--adapter-path", "d=d", "--adapter-path", "l=l")
    whole = run(cli, *words, "--out", "whole", "--verify")
    assert whole["largest_logit_difference"] < 1e-4
    part = run(cli, *words, "--weights", "d=0.5,l=-0.25", "--out", "part", "--verify")
    assert part["largest_logit_difference"] < 1e-4 < 1e-3 * part["largest_logit"]
    one = run(cli, *words, "--weights", "d=0.5", "--out", "one", "--verify")  # the other stays beside the weights
    assert one["largest_logit_difference"] < 1e-4
    assert minedge.lora.count(minedge.load("one")) == minedge.lora.count(
        minedge.lora.load_adapter(minedge.load("tiny"), "l")
    )
    tokens = np.arange(24).reshape(2, 12)
    both = minedge.lora.load_adapter(minedge.lora.load_adapter(minedge.load("tiny"), "d", "d"), "l", "l")
    assert np.abs(both.logits(tokens) - minedge.load("part").logits(tokens)).max() > 1e-3  # the numbers count


def test_quantize_to_nf4(home, cli):
    report = run(cli, "quantize", "-m", "tiny", "--type", "nf4", "--out", "q")
    assert (report["type"], report["group_size"]) == ("nf4", 64)
    assert set(report["dense_linears"]) == {
        "model.embed_tokens", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj",
    }  # fmt: skip
    packed = minedge.load("q")
    assert packed.linears["model.layers.0.mlp.up_proj"].to_dict() == {
        "kind": "nf4", "block_size": 64, "double_quant": True,
    }  # fmt: skip
    run(cli, "quantize", "-m", "tiny", "--type", "nf4", "--no-double-quant", "--group-size", 32, "--out", "p")
    assert minedge.load("p").linears["model.layers.0.mlp.down_proj"].double_quant is False
    tuned = run(cli, "train", "-m", "q", "--data", "text.txt", "--iters", "2", "--batch-size", "2", "--use-dora",
                "--use-rslora", "--lora-rank", "2", "--max-seq-length", "16", "--out", "t")  # fmt: skip
    assert tuned["config"]["lora"]["use_dora"] and tuned["config"]["lora"]["use_rslora"]
    adapted = minedge.lora.load_adapter(packed, "t/adapter")
    assert adapted.linears["model.layers.0.self_attn.q_proj"].kind == "dora"
    for words, says in (
        (["--type", "nf4", "--scale", "mse"], "--scale"),
        (["--no-double-quant"], "--no-double-quant"),
        (["--type", "nf5"], "did you mean 'nf4'"),
    ):
        result = cli("quantize", "-m", "tiny", "--out", "z", *words)
        assert result.code == 2 and says in result.err, result.err


def test_quantize_to_int8_and_draft_with_it(home, cli):
    report = run(cli, "quantize", "-m", "tiny", "--bits", "8", "--embeddings", "--out", "q")
    assert (report["type"], report["bits"], report["group_size"], report["dense_linears"]) == ("int8", 8, 32, [])
    assert report["linear_bytes_after"] / report["linear_bytes_before"] == (1 + 2 / 32) / 4
    assert run(cli, "quantize", "-m", "tiny", "--type", "int8", "--out", "p")["bits"] == 8
    run(cli, "convert", "q", "q.gguf")
    assert minedge.load("q.gguf").linears == minedge.load("q").linears
    for words, says in (
        (["--bits", "8", "--type", "int4"], "int4 has 4-bit codes"),
        (["--bits", "8", "--group-size", "64"], "--group-size"),
        (["--bits", "8", "--scale", "mse"], "--scale"),
        (["--bits", "5"], "--bits: expected 4 or 8"),
    ):
        result = cli("quantize", "-m", "tiny", "--out", "z", *words)
        assert result.code == 2 and says in result.err, result.err
    words = ("generate", "-m", "tiny", "-p", "The quick", "--max-tokens", "30")
    plain, drafted = run(cli, *words), run(cli, *words, "--draft-model", "q", "--num-draft-tokens", 3)
    assert drafted["text"] == plain["text"] and drafted["generated_tokens"] == plain["generated_tokens"] == 30
    draft = drafted["draft"]
    assert draft["passes"] + draft["accepted"] == 30
    assert draft["accepted_share"] == draft["accepted"] / draft["proposed"] > 0.5
    assert drafted["settings"]["num_draft_tokens"] == 3 and draft["model"]["name"] == "q" and "draft" not in plain
    assert "guesses accepted" in cli(*words, "--draft-model", "q").err
    drawn = [run(cli, *words, "--draft-model", "q", "--temp", 1, "--seed", seed)["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for more, says in (
        (["--num-draft-tokens", "3"], "--num-draft-tokens: belongs to --draft-model"),
        (["--draft-model", "bundled"], "vocabulary"),
    ):
        result = cli(*words, *more)
        assert result.code == 2 and says in result.err, result.err
