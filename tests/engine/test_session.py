"""Sessions: what was read is not read again and changes no number, in memory and through a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minedge import quant
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import safetensors
from minedge.io.prompt_cache import load_session, save_session
from minedge.model.generate import Sampling, generate_ids, generate_many
from minedge.model.session import Session
from tests.engine.models import make
from tests.model.test_generate import Letters

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]
KIND = "int4, embedding too"


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_only_what_is_new_is_read(backend):
    model = make(kind="dense", backend=backend)
    session = Session(model)
    for text, read in (
        (TEXT, 8), (TEXT, 1), ([*TEXT, 7], 1), ([*TEXT[:5], 8, 8], 2), (TEXT[:3], 1), ([30], 1), (TEXT, 8),
    ):  # fmt: skip
        got = session.read(text)
        assert session.reads[-1] == read, text
        fresh = Session(model).read(text)
        if backend == "c":
            assert got.tobytes() == fresh.tobytes()
        else:
            np.testing.assert_allclose(got, fresh, atol=1e-4)


def test_text_with_a_session_is_the_text_without():
    model = replace(make(kind=KIND), tokenizer=Letters())
    session = Session(model)
    for prompt in ("abc", "abcdef", "ab", "xyz"):
        for temperature in (0.0, 1.5):
            want = model.generate(prompt, 12, temperature=temperature)
            assert model.generate(prompt, 12, temperature=temperature, session=session) == want
    with pytest.raises(UsageError, match="session: expected one of this model"):
        list(generate_ids(make(seed=1), TEXT, 3, Sampling(), session=session))


@pytest.mark.parametrize("kind", ["dense", KIND])
@pytest.mark.parametrize("backend", ["c", "numba"])
def test_prompts_side_by_side_give_the_texts_they_give_alone(kind, backend):
    model = make(kind=kind, backend=backend)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 37, n).tolist() for n in (5, 1, 30, 40, 12)]
    s = Sampling(1.2, seed=3)
    alone = [list(generate_ids(model, prompt, 15, s)) for prompt in prompts]
    assert [len(ids) for ids in alone] == [15, 15, 10, 0, 15]
    assert generate_many(model, prompts, 15, s) == alone
    eos = alone[0][4]
    ending = replace(model, config=replace(model.config, eos_token_id=eos))
    assert generate_many(ending, prompts, 15, s) == [list(generate_ids(ending, prompt, 15, s)) for prompt in prompts]
    assert generate_many(model, prompts, 0, s) == [[]] * 5


def test_lists_of_prompts_become_lists_of_texts():
    model = replace(make(kind=KIND), tokenizer=Letters())
    prompts = [c * (i % 4 + 1) for i, c in enumerate("abcdefghijkl")]  # more than go side by side
    want = [model.generate(prompt, 15, temperature=1.0) for prompt in prompts]
    assert model.generate(prompts, 15, temperature=1.0) == want
    stop = want[3][2:4]
    stopped = [model.generate(prompt, 15, temperature=1.0, stop=stop) for prompt in prompts]
    assert model.generate(prompts, 15, temperature=1.0, stop=stop) == stopped != want
    assert model.generate(prompts[:3], 9, draft_model=model) == [model.generate(p, 9) for p in prompts[:3]]
    assert model.generate([], 9) == []
    with pytest.raises(UsageError, match="not a list"):
        model.generate(prompts, stream=True)


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_a_session_survives_its_file(tmp_path, kv_dtype):
    model, path = make(kind=KIND), tmp_path / "prompt.cache"
    session = Session(model, kv_dtype=kv_dtype)
    long = [*TEXT, *range(20)]
    session.read(long)
    save_session(session, path)
    again = load_session(model, path, kv_dtype=kv_dtype)
    assert again.ids == long
    text = [*long, 5, 6]
    assert again.read(text).tobytes() == Session(model, kv_dtype=kv_dtype).read(text).tobytes()
    assert again.reads == [2]
    shorter = load_session(model, path, max_length=10, kv_dtype=kv_dtype)
    assert shorter.ids == long[:10]


def test_a_file_of_another_model_is_refused(tmp_path):
    model, path = make(kind=KIND), tmp_path / "prompt.cache"
    session = Session(model)
    session.read(TEXT)
    save_session(session, path)
    changed = model.with_params({**model.params, "model.norm.weight": model.params["model.norm.weight"] * 2})
    others = (make(kind=KIND, seed=1), make(), changed, make(kind=KIND, rope_theta=9.0))
    for other in others:
        with pytest.raises(UsageError, match="made by another model"):
            load_session(other, path, kv_dtype="float16")
    with pytest.raises(UsageError, match="keeps float16, this run int8"):
        load_session(model, path, kv_dtype="int8")
    for odd in (quant.nf4(make(), 32), make(backend="numpy")):
        with pytest.raises(UsageError, match="needs the engine"):
            load_session(odd, path)
        with pytest.raises(UsageError, match="needs the engine"):
            save_session(Session(odd), tmp_path / "x")


def test_damaged_files_are_refused(tmp_path):
    model, path = make(kind=KIND), tmp_path / "prompt.cache"
    session = Session(model)
    session.read(TEXT)
    save_session(session, path)
    good = safetensors.read(path)
    metadata = dict(safetensors.read_header(path).metadata)

    def refused(words: str, tensors: dict = good, **changes: str) -> None:
        safetensors.write(path, tensors, {**metadata, **changes})
        with pytest.raises(MinedgeFormatError, match=words):
            load_session(model, path)

    refused("expected a 'minedge prompt cache 1', got format 'other'", format="other")
    refused("expected a tensor 'tokens'", {k: v for k, v in good.items() if k != "tokens"})
    refused("expected a tensor 'tokens'", {**good, "tokens": good["tokens"].astype(np.int32)})
    refused("tensor 'layers.1.v'", {**good, "layers.1.v": good["layers.1.v"][:, :1]})
    refused("tensor 'layers.0.k'", {**good, "layers.0.k": good["layers.0.k"].astype(np.float32)})
    refused("tensor 'layers.2.k'", {**good, "layers.2.k": good["layers.1.k"]})
    refused("expected ids in 0..36", {**good, "tokens": good["tokens"] + 30})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MinedgeFormatError):
        load_session(model, path)


def test_a_code_that_no_store_makes_is_refused(tmp_path):
    """Sums of integers are bounded for codes in -127..127."""
    model, path = make(kind=KIND), tmp_path / "prompt.cache"
    session = Session(model, kv_dtype="int8")
    session.read(TEXT)
    save_session(session, path)
    tensors = safetensors.read(path)
    tensors["layers.1.k"] = np.full_like(tensors["layers.1.k"], -128)
    safetensors.write(path, tensors, dict(safetensors.read_header(path).metadata))
    with pytest.raises(MinedgeFormatError, match=r"'layers\.1\.k': expected codes in -127\.\.127"):
        load_session(model, path, kv_dtype="int8")


def test_reading_on_is_reading_the_longer_text():
    model = make(kind="int4")
    one, other = Session(model), Session(model)
    one.read([1, 2, 3])
    other.read([1, 2, 3])
    for token in (4, 5):
        assert one.read_on([token]).tobytes() == other.read([*other.ids, token]).tobytes()
    assert one.ids == other.ids == [1, 2, 3, 4, 5] and one.reads == other.reads == [3, 1, 1]


def test_the_likeliest_token_is_the_same_with_and_without_the_chain():
    """Temperature 0 takes a short way; a penalty, of tokens of which there are none, the long one."""
    from minedge.model.generate import Sampling, next_token

    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = np.round(rng.normal(0, 1, 20), 1).astype(np.float32)  # with ties
        long = next_token(logits, np.array([], np.int64), Sampling(repetition_penalty=1.5), rng)
        assert next_token(logits, np.array([3]), Sampling(), rng) == long


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupt_between_two_tokens_loses_nothing(after, monkeypatch):
    """Ctrl-C arrives before or after the engine's call, never inside: what was read stays, the text goes on from it."""
    model = make(kind=KIND)
    whole = list(generate_ids(model, TEXT, 12, Sampling()))
    for late in (False, True):
        session, made = Session(model), []
        call, calls = session.reader._call, [0]

        def interrupted(first: int, end: int, call=call, calls=calls, late=late) -> None:
            calls[0] += 1
            if late:
                call(first, end)
            if calls[0] == after + 1:
                raise KeyboardInterrupt
            if not late:
                call(first, end)

        monkeypatch.setattr(session.reader, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for token in generate_ids(model, TEXT, 12, Sampling(), session=session):
                made.append(token)
        assert len(made) == after and made == whole[:after]
        monkeypatch.undo()
        rest = list(generate_ids(model, [*TEXT, *made], 12 - after, Sampling(), session=session))
        assert made + rest == whole
