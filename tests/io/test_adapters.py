"""PEFT's adapter format, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.adapters import read_adapter, write_adapter

PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def _params(adapter: str = "default", r: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out = {}
    for path, width in zip(PATHS, (32, 16), strict=True):
        out[f"{path}.lora_A.{adapter}.weight"] = rng.normal(size=(r, 32)).astype(np.float32)
        out[f"{path}.lora_B.{adapter}.weight"] = rng.normal(size=(width, r)).astype(np.float32)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", _params(), 4, 16, ["q_proj", "v_proj"], "some/base", "f" * 64)
    return tmp_path / "a"


def test_round_trip_under_another_name(folder: Path) -> None:
    config, params = read_adapter(folder, adapter="other")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 16, ["q_proj", "v_proj"])
    assert config["base_fingerprint"] == "f" * 64 and config["base_model_name_or_path"] == "some/base"
    expected = _params("other")
    assert params.keys() == expected.keys()
    assert all(params[k].tobytes() == expected[k].tobytes() for k in params)


def test_the_same_adapter_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for i in range(5):
        write_adapter(tmp_path / str(i), _params(), 4, 16, ["v_proj", "q_proj"], "some/base", "f" * 64)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / str(i) / file).read_bytes() == (folder / file).read_bytes()


def test_the_files_are_what_peft_writes(folder: Path) -> None:
    stored = load_file(folder / "adapter_model.safetensors")
    assert sorted(stored) == sorted(f"base_model.model.{path}.lora_{side}.weight" for path in PATHS for side in "AB")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["bias"] == "none"
    assert "minedge" not in config and "base_fingerprint" not in config  # keys that older peft versions refuse


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    """The configuration that peft 0.13 writes, in float16 and without our fingerprint."""
    folder = tmp_path / "p"
    folder.mkdir()
    stored = {k.replace(".default", ""): a.astype(np.float16) for k, a in _params().items()}
    save_file({f"base_model.model.{k}": a for k, a in stored.items()}, folder / "adapter_model.safetensors")
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "x", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8,
        "lora_dropout": 0.1, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "peft_type": "LORA", "r": 4, "rank_pattern": {}, "revision": None, "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    got, params = read_adapter(folder)
    assert got["base_fingerprint"] is None and got["lora_alpha"] == 8
    assert all(a.dtype == np.float32 for a in params.values())
    assert np.array_equal(params[f"{PATHS[0]}.lora_A.default.weight"], stored[f"{PATHS[0]}.lora_A.weight"])


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "another method": {"peft_type": "IA3"},
    "r 0": {"r": 0},
    "r not the matrices'": {"r": 8},
    "r a float": {"r": 4.0},
    "r true": {"r": True},
    "r vast": {"r": 10**30},
    "alpha a string": {"lora_alpha": "16"},
    "alpha missing": {"lora_alpha": None},
    "targets missing": {"target_modules": None},
    "targets empty": {"target_modules": []},
    "targets of numbers": {"target_modules": [1]},
    "targets that leave one out": {"target_modules": ["q_proj"]},
    "biases trained": {"bias": "all"},
    "modules saved whole": {"modules_to_save": ["lm_head"]},
    "ranks by pattern that the matrices do not have": {"rank_pattern": {"q_proj": 2}},
    "a rank of 0 by pattern": {"rank_pattern": {"gate_proj": 0}},
    "a rank by pattern that is no number": {"rank_pattern": {"gate_proj": "4"}},
    "an alpha by pattern that is not finite": {"alpha_pattern": {"q_proj": float("inf")}},
    "patterns that are a list": {"alpha_pattern": ["q_proj"]},
    "a pattern that takes exponential time": {"alpha_pattern": {"(a+)+b": 2}},
    "a pattern that takes long": {"alpha_pattern": {".*.*.*x": 2}},
    "a pattern that is damaged": {"alpha_pattern": {"[z-a]": 2}},
    "a pattern that is vast": {"alpha_pattern": {"q" * 300: 2}},
    "rsLoRA that is no switch": {"use_rslora": "yes"},
    "DoRA without its vectors": {"use_dora": True},
    "a variant of LoRA": {"kasa_config": {"beta": 1}},
    "an option not yet invented": {"use_magic": True},
    "an initialisation that changes the base": {"init_lora_weights": "pissa"},
    "layers copied": {"layer_replication": [[0, 2]]},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configurations_that_mean_something_else_are_refused(folder: Path, name: str) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **BAD_CONFIGS[name]}))
    with pytest.raises(MinedgeFormatError, match=str(folder)):
        read_adapter(folder)


_A = f"base_model.model.{PATHS[0]}.lora_A.weight"
BAD_TENSORS: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "no partner": lambda t: t.pop(_A),
    "none at all": lambda t: t.clear(),
    "unknown name": lambda t: t.update(x=np.ones((4, 4))),
    "magnitude vector of DoRA": lambda t: t.update({_A.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(4)}),
    "embedding adapter": lambda t: t.update({_A.replace("lora_A.weight", "lora_embedding_A"): np.ones((4, 32))}),
    "name with a line end": lambda t: t.update({_A + "\n": t.pop(_A)}),
    "name with a path": lambda t: t.update({_A.replace("layers", "../x"): t.pop(_A)}),
    "transposed": lambda t: t.update({_A: np.ascontiguousarray(t[_A].T)}),
    "flat": lambda t: t.update({_A: t[_A].reshape(-1)}),
    "integers": lambda t: t.update({_A: np.ones((4, 32), np.int32)}),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(folder: Path, name: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    BAD_TENSORS[name](tensors)
    save_file(tensors, file)
    with pytest.raises(MinedgeFormatError, match=str(folder)):
        read_adapter(folder)


@pytest.mark.parametrize("own", ["x", "[]", '{"format_version": 2}', '{"format_version": 1, "base_fingerprint": 1}'])
def test_a_fingerprint_that_cannot_be_read_is_refused(folder: Path, own: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, {"minedge": own})
    with pytest.raises(MinedgeFormatError, match=r"minedge"):
        read_adapter(folder)


def test_ranks_and_alphas_by_pattern(tmp_path: Path) -> None:
    """The first pattern that fits counts, as in peft; a name's end is enough, and a dot begins it."""
    params = {k: (a[:2] if ".lora_A." in k else a[:, :2]) if "v_proj" in k else a for k, a in _params().items()}
    patterns: dict[str, Any] = dict(rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.\d+\.self_attn.v_proj": 3.5})
    write_adapter(tmp_path / "a", params, 4, 16, ["q_proj", "v_proj"], **patterns)
    config, got = read_adapter(tmp_path / "a")
    assert config["modules"] == {PATHS[0]: (4, 16), PATHS[1]: (2, 3.5)}
    assert all(got[k].tobytes() == params[k].tobytes() for k in params)
    for pattern, alpha in {"proj": 16, "q_proj|v_proj": 16, ".*proj": 1, "(q_proj|v_proj)": 1, "^v_proj": 16}.items():
        file = tmp_path / "a" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "alpha_pattern": {pattern: 1}}))
        if pattern == "q_proj|v_proj":  # alternatives without brackets: not among the simple ones
            with pytest.raises(MinedgeFormatError, match="alpha_pattern"):
                read_adapter(tmp_path / "a")
        else:
            assert read_adapter(tmp_path / "a")[0]["modules"][PATHS[1]] == (2, alpha), pattern


def test_what_would_be_left_out_is_refused_with_the_way_out(folder: Path) -> None:
    file = folder / "adapter_config.json"
    for change, message in (({"modules_to_save": ["lm_head"]}, "without them, or merge"), ({"bias": "all"}, "'none'")):
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(MinedgeFormatError, match=message):
            read_adapter(folder)
        file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": None, "bias": "none"}))


def test_magnitude_vectors_of_dora(tmp_path: Path) -> None:
    params = _params()
    for path, width in zip(PATHS, (32, 16), strict=True):
        params[f"{path}.lora_magnitude_vector.default.weight"] = np.arange(width, dtype=np.float32)
    write_adapter(tmp_path / "a", params, 4, 16, ["q_proj", "v_proj"], use_dora=True, use_rslora=True)
    assert f"base_model.model.{PATHS[0]}.lora_magnitude_vector" in load_file(tmp_path / "a/adapter_model.safetensors")
    config, got = read_adapter(tmp_path / "a")
    assert (config["use_dora"], config["use_rslora"]) == (True, True)
    assert got.keys() == params.keys() and all(got[k].tobytes() == params[k].tobytes() for k in params)
    for bad in (np.ones(8), np.ones((32, 1)), None):
        tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
        name = f"base_model.model.{PATHS[0]}.lora_magnitude_vector"
        tensors.pop(name)
        if bad is not None:
            tensors[name] = bad.astype(np.float32)
        (tmp_path / "b").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "b" / "adapter_model.safetensors")
        (tmp_path / "b" / "adapter_config.json").write_bytes((tmp_path / "a" / "adapter_config.json").read_bytes())
        with pytest.raises(MinedgeFormatError, match="magnitude_vector"):
            read_adapter(tmp_path / "b")


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MinedgeFormatError, match="no such folder"):
        read_adapter(tmp_path / "missing")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(MinedgeFormatError, match="never read"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(MinedgeFormatError, match=r"adapter_config\.json"):
        read_adapter(folder)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    good: dict[str, Any] = dict(params=_params(), r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    bad = [
        {"r": 3}, {"r": 0}, {"lora_alpha": float("nan")}, {"target_modules": ["q_proj"]}, {"params": {}},
        {"dtype": "int8"},
        {"params": {"x.weight": np.ones((4, 4))}}, {"params": {**_params(), **_params("second")}},
        {"params": dict(list(_params().items())[:3])},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(UsageError):
            write_adapter(tmp_path / "a", **{**good, **change})
    assert list(tmp_path.iterdir()) == []
    write_adapter(tmp_path / "a", **good)
    with pytest.raises(UsageError, match="exists already"):
        write_adapter(tmp_path / "a", **good)
    write_adapter(tmp_path / "a", **good, dtype="float16", overwrite=True)
    assert load_file(tmp_path / "a" / "adapter_model.safetensors")[_A].dtype == np.float16
