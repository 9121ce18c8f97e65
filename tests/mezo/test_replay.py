"""A run is a small file that gives the same bits everywhere, and nothing else passes for one."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from test_step import batch, tiny, weight_bytes

import minedge.ops
from minedge.errors import MinedgeFormatError, UsageError
from minedge.finetune.mezo import Log, MeZO, Settings, load_log, replay, save_log


def run(steps: int = 3, architecture: str = "llama", backend: str = "numpy", **settings):
    """A base model, the model after some steps, and the optimizer."""
    base = tiny(architecture, backend)
    model, opt = base.trainable(), MeZO(**{"lr": 1e-2, "seed": 4, "weight_decay": 0.1, "n_samples": 2, **settings})
    for t in range(steps):
        opt.step(model, batch(seed=t))
    return base, model, opt


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_replay_is_bit_identical_on_every_tier(architecture, tier_ops, tmp_path):
    """Trained on one tier, replayed on each: the losses may differ between tiers, what is made of them may not."""
    base, model, opt = run(architecture=architecture, backend=tier_ops.spec, schedule="linear", total_steps=5)
    save_log(opt.log, tmp_path / "run.mezo")
    log = load_log(tmp_path / "run.mezo")
    for backend in [name for name, reason in minedge.ops.available().items() if not reason]:
        again = replay(base.with_backend(backend), log)
        assert weight_bytes(again) == weight_bytes(model), backend
        assert not any(array.flags.writeable for array in again.params.values())


def test_replay_is_bit_identical_with_any_number_of_threads():
    base, model, opt = run()
    if "c" not in minedge.ops.available() or minedge.ops.available()["c"]:
        return  # the generator's own thread test covers what is here
    from minedge.ops import c_ops

    before = c_ops.threads()
    try:
        for threads in (1, 2, 3, 4, 7):
            c_ops.set_threads(threads)
            assert weight_bytes(replay(base.with_backend("c"), opt.log)) == weight_bytes(model)
    finally:
        c_ops.set_threads(before)


def test_replay_of_some_trainable_arrays():
    names = frozenset({"model.norm.weight", "model.layers.1.mlp.up_proj.weight"})
    base = tiny()
    chosen = base.with_params(base.params, trainable_names=names)
    model, opt = chosen.trainable(), MeZO(lr=1e-2)
    opt.step(model, batch())
    assert weight_bytes(replay(chosen, opt.log)) == weight_bytes(model)
    with pytest.raises(UsageError, match="trainable names"):
        replay(base, opt.log)


def test_replay_on_other_weights_is_refused():
    _, model, opt = run()
    for other in (tiny(seed=1), model):
        with pytest.raises(UsageError, match="SHA-256"):
            replay(other, opt.log)


def test_replay_catches_a_changed_number():
    base, model, opt = run()
    opt.log.projected_grads[2] *= 1.001
    assert weight_bytes(replay(base, opt.log)) != weight_bytes(model)


def test_thousand_steps_are_under_8_kilobytes(tmp_path):
    grads = np.random.default_rng(0).normal(size=1000).astype(np.float32).tolist()
    settings = Settings(
        1.2345678901234567e-6, 1.2345678901234567e-3, 2**64 - 1, 0.012345678901234567, 1, "linear", 10**9
    )
    log = Log(settings, "a" * 64, "b" * 64, grads)
    save_log(log, tmp_path / "run.mezo")
    assert (tmp_path / "run.mezo").stat().st_size < 8000
    assert load_log(tmp_path / "run.mezo") == log


def test_resume_is_exact():
    base, straight, opt = run(steps=5)
    model, first = base.trainable(), MeZO(lr=1e-2, seed=4, weight_decay=0.1, n_samples=2)
    for t in range(2):
        first.step(model, batch(seed=t))
    state = first.state_dict()
    state["log"] = json.loads(json.dumps(state["log"]))
    saved = model.freeze()
    second = MeZO(lr=1e-2, seed=4, weight_decay=0.1, n_samples=2)
    second.load_state_dict(state)
    resumed = saved.trainable()
    for t in range(2, 5):
        second.step(resumed, batch(seed=t))
    assert weight_bytes(resumed) == weight_bytes(straight)
    assert second.log == opt.log
    assert weight_bytes(replay(base, second.log)) == weight_bytes(straight)


def test_resume_before_the_first_step():
    opt = MeZO()
    opt.load_state_dict(MeZO().state_dict())
    assert opt.log == MeZO().log


def test_resume_with_other_hyperparameters_is_refused():
    state = MeZO(lr=1e-3).state_dict()
    with pytest.raises(UsageError, match="lr"):
        MeZO(lr=2e-3).load_state_dict(state)


def test_an_empty_record_is_not_saved(tmp_path):
    with pytest.raises(UsageError, match="log"):
        save_log(MeZO().log, tmp_path / "run.mezo")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- files that are no log


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "run.mezo"
    save_log(Log(Settings(n_samples=2), "0" * 64, "f" * 64, [1.0, -2.5, 0.0, 3e-38]), path)
    return path


def assert_refused(path, data: bytes, match: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(MinedgeFormatError, match=match) as caught:
        load_log(path)
    assert str(path) in str(caught.value)


def test_truncation_at_every_byte_is_refused(good):
    data = good.read_bytes()
    for length in range(len(data)):
        assert_refused(good, data[:length])


def test_every_changed_byte_is_refused(good):
    data = good.read_bytes()
    for at in range(len(data)):
        for flip in (1, 0x80):
            assert_refused(good, data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


def test_trailing_bytes_are_refused(good):
    data = good.read_bytes()
    for extra in (b"\0", b"\0" * 4, data):
        assert_refused(good, data + extra)


def forged(good, changes: dict, numbers: bytes | None = None) -> bytes:
    """A file with a right checksum and another header, as a careless or hostile writer makes it."""
    data = good.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    header = {**json.loads(data[16 : 16 + length]), **changes}
    text = json.dumps({key: value for key, value in header.items() if value != "drop"}).encode()
    body = data[16 + length : -4] if numbers is None else numbers
    made = data[:12] + struct.pack("<I", len(text)) + text + body
    return made + struct.pack("<I", zlib.crc32(made))


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": "drop"}, {"lr": -1}, {"lr": None}, {"lr": "1"}, {"lr": 10**400}, {"eps": 0}, {"seed": 1.5},
        {"seed": 2**64}, {"schedule": []}, {"schedule": "cosine"}, {"total_steps": -1}, {"n_samples": 3},
        {"n_samples": 0}, {"n_samples": True}, {"weight_decay": 1e7}, {"unknown": 1}, {"generator_version": 2},
        {"generator_version": True},
        {"count": 2}, {"count": 4.0}, {"count": None}, {"base_sha256": ""}, {"base_sha256": "0" * 63 + "g"},
        {"base_sha256": 7}, {"trainable_sha256": "F" * 64},
    ],
)  # fmt: skip
def test_headers_that_contradict_are_refused(good, changes):
    key = next(iter(changes))
    assert_refused(good, forged(good, changes), match="header|specification" if key != "n_samples" else None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(good, value):
    assert_refused(good, forged(good, {}, np.array([1, 2, 3, value], "<f4").tobytes()), match="finite")


def test_forged_file_without_a_change_is_read(good):
    good.write_bytes(forged(good, {}))
    assert load_log(good).projected_grads == [1.0, -2.5, 0.0, float(np.float32(3e-38))]


def test_header_that_is_no_json_object_is_refused(good):
    for text in (b"[]", b"{", b'{"lr": 1, "lr": 1}', b"\xff", b'{"lr": NaN}'):
        made = b"MEZOLOG\n" + struct.pack("<II", 1, len(text)) + text
        assert_refused(good, made + struct.pack("<I", zlib.crc32(made)), match="header")


def test_missing_files_folders_and_foreign_files_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(MinedgeFormatError):
            load_log(path)
    assert_refused(tmp_path / "x", b"", match="not a MeZO log")
    assert_refused(tmp_path / "x", b"GGUF" + b"\0" * 64, match="not a MeZO log")
