"""The loop: what it learns, keeps, writes, refuses, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

import minedge
from minedge.compress.half import half
from minedge.errors import DivergedError, Interrupted, UsageError
from minedge.finetune import metrics
from minedge.finetune.curve import curve_svg, nice_ticks
from minedge.finetune.train_config import TrainConfig
from minedge.io.checkpoint import latest_checkpoint, list_checkpoints
from minedge.model.hashes import weights_hash
from minedge.model.linears import Dense
from tests.finetune import tiny


def train(method="full", iters=12, data=None, model=None, **more):
    options = {**tiny.options(method, iters), **more}
    return minedge.train(model or tiny.model(), data or tiny.data(), method, **options)


def losses(path):
    return [r["loss"] for r in metrics.read(path / "metrics.jsonl") if "loss" in r]


@pytest.mark.parametrize("method", ["full", "lora", "mezo"])
def test_training_lowers_the_loss_and_leaves_the_given_model_alone(method, tmp_path):
    model = tiny.model(seed=1, backend="c")
    before = weights_hash(model.params)
    more = {"iters": 60, "eval_every": 30, "save_every": 0}
    if method == "mezo":
        more.update(learning_rate=2e-3, iters=100, eval_every=50)
    result = train(method, model=model, out=tmp_path / "run", **more)
    assert weights_hash(model.params) == before
    assert type(result) is type(model)
    valid = [r["valid_loss"] for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "valid_loss" in r]
    assert min(valid) < valid[0] - {"full": 0.5, "lora": 0.04, "mezo": 0.01}[method]
    assert not any(a.flags.writeable for a in result.params.values())


def test_the_state_with_the_best_validation_loss_is_returned(tmp_path):
    """Overfit on purpose: training data that contradict the validation data, so the start is best."""
    rng = np.random.default_rng(0)
    noise = tiny.PackedText(rng.integers(0, tiny.VOCAB, 400), 0, 17, 400)
    model = train(data=tiny.data(), iters=60)
    events = []
    kept = train(model=model, data=(noise, tiny.data()[1]), iters=20, warmup=0, on_event=events.append)
    assert weights_hash(kept.params) == weights_hash(model.params)  # nothing was better than what came in
    stopped = train(model=model, data=(noise, tiny.data()[1]), iters=50, warmup=0, patience=2, on_event=events.append)
    assert weights_hash(stopped.params) == weights_hash(model.params)
    assert [e.kind for e in events[-2:]] == ["stopped", "done"] and events[-1].step == 8


@pytest.mark.parametrize("out", [None, "run"])
def test_best_in_the_middle_is_the_same_in_memory_and_on_disk(tmp_path, out):
    """A high constant rate makes late evaluations worse; both ways of keeping the best give the best one's loss."""
    valid = tiny.data()[1]
    found = []
    result = train(
        iters=40, learning_rate=0.15, schedule="constant", warmup=0, out=out and tmp_path / out, on_event=found.append
    )
    evaluations = [e for e in found if e.kind == "eval"]
    best = min(e.valid_loss for e in evaluations)
    assert found[-1].best["loss"] == best
    sums = [result.loss_sum(*b) for b in valid.eval_batches(4)]
    assert sum(s for s, _ in sums) / sum(w for _, w in sums) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("method", ["full", "lora", "mezo"])
def test_resume_is_bit_identical(method, tmp_path):
    whole = train(method, 20, out=tmp_path / "whole")

    def stop(event):
        if event.kind == "step" and event.step in (3, 11):
            raise KeyboardInterrupt

    for step in (3, 11):
        with pytest.raises(Interrupted, match="resume") as info:
            train(method, 20, out=tmp_path / "run", resume="auto", on_event=stop)
        assert info.value.exit_code == 130
        assert latest_checkpoint(tmp_path / "run").name == f"step-{step:08d}"
    again = train(method, 20, out=tmp_path / "run", resume="auto")
    assert weights_hash(again.params) == weights_hash(whole.params)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    finished = train(method, 20, out=tmp_path / "run", resume="auto")  # a finished run only gives its result
    assert weights_hash(finished.params) == weights_hash(whole.params)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    def stop(event):
        if event.kind == "step" and event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM at step 5"):
        train(out=tmp_path / "run", on_event=stop)
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(Interrupted, match="nothing was saved"):
        train(on_event=stop)


def test_resume_says_where_it_is_not_the_same(tmp_path):
    train(out=tmp_path / "run", iters=6)
    events = []
    train(out=tmp_path / "run", iters=9, resume="auto", on_event=events.append, learning_rate=0.5)
    warning = next(e.message for e in events if e.kind == "warning")
    assert "iters: 6 -> 9" in warning and "learning_rate" in warning
    train(out=tmp_path / "run", iters=12, resume="auto", on_event=events.append, model=tiny.model(backend="c"))
    assert any("tier: 'numpy' -> 'c'" in e.message for e in events if e.kind == "warning")
    with pytest.raises(UsageError, match="not those that the run"):
        train(out=tmp_path / "run", resume="auto", model=tiny.model(seed=9))
    with pytest.raises(UsageError, match="method"):
        train("mezo", out=tmp_path / "run", resume="auto")
    with pytest.raises(UsageError, match="data"):
        train(out=tmp_path / "run", resume="auto", data=(tiny.stream(900), None))


def test_resume_from_another_folder(tmp_path):
    whole = train(out=tmp_path / "a", iters=12)
    middle = next(path for step, path in list_checkpoints(tmp_path / "a") if step < 12)
    again = train(out=tmp_path / "b", iters=12, resume=middle)
    assert weights_hash(whole.params) == weights_hash(again.params)
    assert (tmp_path / "b" / "model").is_dir()


def test_a_folder_in_use_is_not_written_over(tmp_path):
    train(out=tmp_path / "run", iters=3)
    with pytest.raises(UsageError, match="holds a run already"):
        train(out=tmp_path / "run", iters=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    for resume in (None, "auto"):
        with pytest.raises(UsageError, match="holds other things"):
            train(out=tmp_path / "other", iters=3, resume=resume)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="give out"):
        train(iters=3, resume="auto")
    with pytest.raises(UsageError, match="does not exist"):
        train(iters=3, out=tmp_path / "new", resume=tmp_path / "nowhere")


def test_divergence_names_step_and_layer_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        DivergedError, match=r"step \d+.*(layers|weights|gradient|loss).*last good checkpoint is"
    ) as info:
        train(iters=40, learning_rate=1e30, warmup=0, save_every=1, schedule="constant", out=tmp_path / "run", clip=0.0)
    assert info.value.exit_code == 4
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is None or all(
        np.isfinite(a).all() for a in minedge.io.checkpoint.load_checkpoint(newest)[0].values()
    )


def test_a_poisoned_layer_is_named():
    model = tiny.model()
    params = dict(model.params)
    name = "model.layers.1.mlp.up_proj.weight"
    params[name] = np.full_like(params[name], 3e38)
    with pytest.raises(DivergedError, match=r"step 0.*output of model\.layers\.1"):
        train(model=model.with_params(params))
    params[name][0, 0] = np.nan
    with pytest.raises(DivergedError, match=r"weights model\.layers\.1\.mlp\.up_proj"):
        train(model=model.with_params(params))


def test_a_finite_loss_with_an_infinite_gradient_is_caught(monkeypatch):
    from minedge.model.model import Model

    original, calls = Model.loss_and_grads, []

    def poisoned(self, *args, **kwargs):
        loss, grads = original(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 5:
            grads["model.norm.weight"][3] = np.inf
        return loss, grads

    monkeypatch.setattr(Model, "loss_and_grads", poisoned)
    with pytest.raises(DivergedError, match=r"step 2: the gradient of model\.norm\.weight"):  # 2 micro-batches a step
        train()


def test_pruned_weights_stay_zero():
    model = minedge.prune.magnitude(tiny.model(seed=2), sparsity=0.5)
    zeros = {name: a == 0 for name, a in model.params.items() if name.endswith("_proj.weight")}
    result = train(model=model, iters=8)
    changed = 0
    for name, zero in zeros.items():
        assert (result.params[name][zero] == 0).all()
        changed += (result.params[name] != model.params[name]).sum()
    assert zeros and changed > 1000


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    events = []
    train(iters=40, learning_rate=0.2, schedule="constant", warmup=0, out=tmp_path / "run", on_event=events.append)
    best = events[-1].best["step"]
    steps = {step for step, _ in list_checkpoints(tmp_path / "run")}
    assert len(steps) <= 3 and (best in steps or best == 0) and 40 in steps


def test_a_run_leaves_its_record(tmp_path):
    out = tmp_path / "run"
    train(iters=10, out=out)
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["iters"] == 10 and record["environment"]["tier"] == "numpy"
    assert [r["step"] for r in metrics.read(out / "metrics.jsonl") if "loss" in r] == list(range(1, 11))
    ElementTree.fromstring((out / "loss.svg").read_text())
    assert minedge.load(out / "model").config.vocab_size == tiny.VOCAB


def test_events_tell_progress():
    events = []
    train(iters=5, on_event=events.append)
    steps = [e for e in events if e.kind == "step"]
    assert [e.step for e in steps] == [1, 2, 3, 4, 5]
    assert all(e.loss and e.lr and e.tokens_per_s > 0 and e.eta >= 0 and e.iters == 5 for e in steps)
    assert events[0].kind == "start" and events[0].n_trainable == tiny.model().n_params()
    assert events[-1].kind == "done"


def test_metrics_survive_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        metrics.append(path, {"step": step, "loss": float("nan") if step == 2 else 1.0})
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    assert [r["step"] for r in metrics.read(path)] == [0, 1, 2, 3, 4]
    assert metrics.read(path)[2]["loss"] is None
    assert [r["step"] for r in metrics.truncate(path, 3)] == [0, 1, 2, 3]
    metrics.append(path, {"step": 4, "loss": 2.0})
    assert [r["step"] for r in metrics.read(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"lora": {"rank": 3}}, "unknown setting 'rank'"),
        ({"iters": 0}, "iters: expected an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"beta1": 1.0}, "beta1"),
        ({"eps": 0}, "eps"),
        ({"warmup": 9, "iters": 5}, "warmup"),
        ({"method": "mezo", "warmup": 2}, "warmup"),
        ({"method": "mezo", "schedule": "cosine"}, "schedule"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.of(options)


def test_wrong_data_is_named(tmp_path):
    model = tiny.model()
    for data, message in [
        (7, "data: expected"),
        ((None, None), "got none"),
        (minedge.data.packing.Texts(("some text",)), "tokenizer"),
        (str(tmp_path / "missing.txt"), "no file or folder"),
    ]:
        with pytest.raises(UsageError, match=message):
            minedge.train(model, data, iters=1, seq_len=9)
    with pytest.raises(UsageError, match="seq_len: expected at most 33"):
        minedge.train(model, tiny.data(), iters=1, seq_len=34)


def test_config_goes_through_json():
    config = TrainConfig(method="lora", lora={"r": 4, "target": ("q_proj",)})
    assert TrainConfig.of(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig("full").weight_decay == 0.1


def test_curve_is_well_formed_for_any_record():
    for records in ([], [{"step": 1, "loss": 2.0}], [{"step": 0, "valid_loss": 1.0}], [{"step": 1, "loss": None}]):
        ElementTree.fromstring(curve_svg(records, "a < b & c"))
    many = [{"step": i, "loss": 5 / (1 + i)} for i in range(100_000)]
    assert len(curve_svg(many)) < 60_000
    assert nice_ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and nice_ticks(5, 5)


def test_mezos_learning_rate_depends_on_what_it_trains():
    sizes = dict(vocab_size=64, n_layer=1, n_embd=32, n_head=2, n_inner=64, context_length=16)
    small = minedge.init(minedge.Config(**sizes), backend="numpy")
    large = SimpleNamespace(linears=small.linears, n_params=lambda: 135_000_000)
    adapted = minedge.lora.add(small, r=2)
    mezo, lora = TrainConfig("mezo"), TrainConfig("mezo", lora={"r": 2})
    assert mezo.learning_rate is None
    assert mezo.for_model(large).learning_rate == 1e-6 and lora.for_model(large).learning_rate == 1e-4
    assert mezo.for_model(small).learning_rate == pytest.approx(1e-5)
    assert mezo.for_model(adapted).learning_rate == lora.for_model(small).learning_rate == pytest.approx(1e-3)
    assert TrainConfig("mezo", learning_rate=0.5).for_model(small).learning_rate == 0.5
    assert TrainConfig("full").for_model(small).learning_rate == 3e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["numpy", "numba", "c"])
def test_an_adapter_trains_over_sixteen_bit_weights(dtype, backend):
    """Loss and gradients are those over float32 arrays of the same rounded weights; the plan counts two bytes each."""
    config = minedge.Config(vocab_size=64, n_layer=2, n_embd=32, n_head=2, n_inner=64, context_length=16)
    narrow = half(minedge.init(config, backend=backend), dtype)
    tokens = np.random.default_rng(0).integers(0, 64, (3, 9))
    names = {name: kind.dense(narrow.params, name, narrow.ops) for name, kind in narrow.linears.items()}
    rest = {name: array for name, array in narrow.params.items() if not name.endswith(".half")}
    wide = minedge.Model(
        config, {**rest, **{f"{name}.weight": array for name, array in names.items()}},
        {name: Dense() for name in names}, backend=backend,
    ).freeze()  # fmt: skip
    found = []
    for model in (narrow, wide):
        adapted = minedge.lora.add(model, r=2)
        rng = np.random.default_rng(1)  # B away from zero, so that A has a gradient
        moved = {n: rng.normal(0, 0.1, adapted.params[n].shape).astype("f4") for n in sorted(adapted.trainable_names)}
        found.append(adapted.with_params({**adapted.params, **moved}).loss_and_grads(tokens))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, grad in found[0][1].items():
        np.testing.assert_allclose(grad, found[1][1][name], rtol=1e-4, atol=1e-6 * np.abs(grad).max() + 1e-9)
    assert (
        minedge.plan(narrow, "lora", 2, 9).parts["weights"] == narrow.nbytes()["total"] < wide.nbytes()["total"] * 0.6
    )
