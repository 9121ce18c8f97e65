"""Errors and warnings that come from the API name what the user typed."""

from __future__ import annotations

import json

import pytest

import minedge
from minedge.cli.parser import Parser, argument_of, in_options
from tests.cli.conftest import QUICK_TRAIN


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("convert tinny o", "SRC: expected 'bundled'"),
        ("convert tiny adapter", "DST: 'adapter' exists already"),
        ("convert tiny tiny --overwrite", "DST: 'tiny' is what is read"),
        ("convert run o", "SRC: 'run' is a run that trained an adapter; merge it into its base first: minedge fuse"),
        ("convert big o --type f16", "--type: 'model.norm.weight' holds"),
        ("convert adapted o.gguf", "SRC: model.layers.0"),
        ("quantize -m tinny --out o", "--model: expected 'bundled'"),
        ("quantize -m tiny --group-size 48 --out o", "--group-size: expected 32"),
        ("quantize -m tiny --type nf4 --group-size 48 --out o", "--group-size: expected 32"),
        ("quantize -m tiny --group-size 64 --strict --out o", "--group-size 64 does not divide width 96"),
        ("prune -m tiny --target q_prj --out o", "--target: no matrix"),
        ("prune -m tiny --nm 2:5 --out o", "--nm: 5 does not divide the width 64"),
        ("prune -m pruned --sparsity 0.3 --out o", "--sparsity: the model is pruned further already"),
        ("prune -m pruned --nm 3:4 --out o", "--nm: the model is pruned further already"),
        ("fuse -m tiny --adapter-path a=adapter --weights b=1 --out o", "--weights: the model has no adapter 'b'"),
        ("fuse -m tiny --adapter-path a.b=adapter --out o", "--adapter-path: expected a name"),
        ("fuse -m tiny --adapter-path adapter --adapter-path adapter --out o", "--adapter-path: the model has one"),
        ("generate -m tiny -p x --stop ", "--stop: expected"),
        ("generate -m tiny -p x --draft-model tinny", "--draft-model: expected 'bundled'"),
        ("generate -m tiny -p x --draft-model bundled", "--draft-model: expected the model's vocabulary"),
        ("generate -m tiny -p x -p long", "--prompt 2 of 2: "),
        ("generate -m tiny --prompts prompts.txt", "--prompts 2 of 2: "),
        ("train --iters 5 --warmup 6", "--warmup: expected at most"),
        ("train --int8-activations", "--int8-activations: "),
        ("train --lora-rank 999", "--lora-rank: expected at most"),
        ("train --lora-target q_prj", "--lora-target: no matrix"),
        ("train --method mezo --learning-rate 2 --weight-decay 1", "--weight-decay: expected"),
        ("train --data nowhere.txt", "--data: no file"),
        ("train --data labels.tsv --label-words good=nice", "--label-words: expected a word for every label"),
        ("train --data labels.tsv --template {text}", "--template: expected"),
        ("plan -m tiny --lora-rank 65", "--lora-rank: expected at most"),
        ("eval -m tiny --data nowhere.txt", "--data: no file"),
        ("inspect tinny", "FILE_OR_DIR: expected"),
        ("course check adapter --task a", "adapter: no course.json"),
        ("course grade adapter --points points.json", "--points: no assignment has a task 'a9.9'"),
    ],
)
def test_the_argument_is_named_as_it_is_typed(words, says, home, cli):
    (home / "prompts.txt").write_text("x\n" + "long " * 300)
    (home / "points.json").write_text('{"a9.9": 1}')
    model = minedge.load("tiny")
    if "adapted" in words:
        minedge.lora.add(model, r=2).save("adapted")
    if "pruned" in words:
        minedge.prune.magnitude(model, 0.75).save("pruned")
    if "big" in words:
        big = {**model.params, "model.norm.weight": model.params["model.norm.weight"] * 1e9}
        model.with_params(big).save("big", dtype="float32")
    if "run" in words.split():
        assert cli(*QUICK_TRAIN, "--iters", "1", "--out", "run").code == 0
    verb, *rest = words.split(" ")
    rest = ["long " * 300 if word == "long" else word for word in rest]
    start = (*QUICK_TRAIN[1:], "--out", "o") if verb == "train" else ()
    result = cli(verb, *start, *rest)
    assert result.code in (2, 3), result
    assert f"error: {says}" in result.err.splitlines()[-1], result.err


def test_what_a_resumed_run_had_is_named_as_it_is_typed(home, cli):
    assert cli(*QUICK_TRAIN, "--iters", "2", "--out", "run").code == 0
    for words, says in (
        (("--method", "mezo"), "--method: the run in run has 'lora', got 'mezo'"),
        (("--lora-rank", "3"), "--lora-rank, --lora-alpha, --lora-target: the run"),
    ):
        result = cli(*QUICK_TRAIN, "--iters", "2", "--out", "run", "--resume", "auto", *words)
        assert result.code == 2 and f"error: {says}" in result.err, result.err


def test_warnings_name_it_too(home, cli):
    result = cli("quantize", "-m", "tiny", "--out", "q", "--type", "nf4", "--group-size", "64")
    assert "minedge quantize: warning: --group-size 64 does not divide width 96" in result.err


def test_what_is_no_argument_stays():
    parser = Parser("x", "", ())
    parser.add_argument("--group-size")
    for text in ("the run folder x is in use", "x/y.json: expected", "", "r: expected", "strange 1", ": x"):
        assert in_options(text, parser, {}) == text
    assert in_options("block_size: 3", parser, {}) == "--group-size: 3"
    assert in_options("group_size 3: x", parser, {"group_size": "G"}) == "G 3: x"
    assert argument_of("prompt cache: x") == "prompt cache" and argument_of("nothing here") == ""


def test_an_unknown_backend_is_refused_before_anything_is_loaded(home, cli):
    result = cli("generate", "-m", "no-such-model", "-p", "x", "--backend", "numppy", "--json")
    assert result.code == 2 and "argument --backend: expected one of numpy" in result.err
    assert json.loads(cli("plan", "-m", "tiny", "--backend", "numpy", "--json").out)["model"]
