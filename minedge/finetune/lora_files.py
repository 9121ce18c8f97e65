"""LoRA adapters on a model and in PEFT's files: which a model has, saving one, checking one that is to be put on."""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

import numpy as np

from minedge.compress.compositions import adapters
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.adapter_config import Scale, patterns_of
from minedge.io.adapters import read_adapter, write_adapter
from minedge.model.hashes import weights_hash
from minedge.model.linears import kind_class
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes

__all__ = ["base_hash", "load_adapter", "named_adapters", "refuse_second", "save_adapter"]

M = TypeVar("M", bound=Model)


def named_adapters(model: Model, adapter: str | None) -> list[tuple[str, Any]]:
    """(module name, adapter) of every adapter, or of those called `adapter`; `UsageError` if there is none."""
    layers = [(name, layer) for name, kind in model.linears.items() for layer in adapters(kind)]
    found = [(name, layer) for name, layer in layers if adapter in (None, layer.adapter)]
    if not found and layers:
        have = ", ".join(sorted({layer.adapter for _, layer in layers}))
        raise UsageError(f"adapter: expected one of this model's ({have}), got {adapter!r}")
    if not found:
        raise UsageError("model: it has no adapter; minedge.lora.add or load_adapter puts one on")
    return found


def refuse_second(model: Model, adapter: str) -> None:
    """`UsageError` if the model has an adapter of this name."""
    if any(layer.adapter == adapter for kind in model.linears.values() for layer in adapters(kind)):
        raise UsageError(f"adapter: the model has one called {adapter!r} already; choose another name or merge it")


def base_hash(model: Model) -> str:
    """Fingerprint of the weights below all adapters."""
    own = {key for name, kind in model.linears.items() for layer in adapters(kind) for key in layer.names(name)}
    return weights_hash({key: array for key, array in model.params.items() if key not in own})


def save_adapter(model: Model, path: str | PathLike[str], overwrite: bool = False, adapter: str | None = None) -> None:
    """Write an adapter as PEFT does, with the fingerprint of the weights it belongs to.

    `adapter` may be left out if there is only one. Where its rank or alpha is not the same on every matrix, the file
    says so by patterns. Raises `UsageError` for a model without adapters, or a folder that exists unless `overwrite`.
    """
    layers = named_adapters(model, adapter)
    names = sorted({layer.adapter for _, layer in layers})
    if len(names) > 1:
        raise UsageError(f"adapter: expected one of {', '.join(names)}, as the model has several")
    if len({(layer.kind, layer.use_rslora) for _, layer in layers}) > 1:
        raise UsageError(f"adapter: {names[0]!r} is of several kinds, which one adapter file cannot hold")
    scales = {name: Scale(layer.r, layer.lora_alpha) for name, layer in layers}
    (r, lora_alpha), rank_pattern, alpha_pattern = patterns_of(scales)
    write_adapter(
        path,
        {key: model.params[key] for name, layer in layers for key in layer.names(name)},
        r,
        lora_alpha,
        _targets(model, [name for name, _ in layers]),
        base_model_name=model.name,
        fingerprint=base_hash(model),
        overwrite=overwrite,
        fan_in_fan_out=model.config.arch.conv1d,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        use_rslora=layers[0][1].use_rslora,
        use_dora=layers[0][1].kind == "dora",
    )


def load_adapter(model: M, path: str | PathLike[str], adapter: str = "default", any_base: bool = False) -> M:
    """A new model with the adapter from `path` on top, as the only thing it trains.

    Raises `MinedgeFormatError` for a file that is damaged or does not fit the model's matrices, `UsageError` if it
    was trained on other weights; `any_base=True` allows that, for instance to put what was trained over int4 weights
    onto the float weights.
    """
    refuse_second(model, adapter)
    config, arrays = _read_for(model, path, adapter, any_base)
    cls, linears = kind_class("dora" if config.get("use_dora") else "lora"), dict(model.linears)
    for name, (r, lora_alpha) in config["modules"].items():
        linears[name] = cls(linears[name], r, lora_alpha, adapter, use_rslora=bool(config.get("use_rslora")))
    return model.with_params({**model.params, **arrays}, linears, frozenset(arrays))


def _read_for(
    model: Model, path: str | PathLike[str], adapter: str, any_base: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An adapter's configuration and matrices, checked against the model."""
    config, arrays = read_adapter(path, adapter)
    trained_on = config["base_fingerprint"]
    if not any_base and trained_on is not None and trained_on != base_hash(model):
        raise UsageError(
            f"{path}: this adapter was trained on other weights than those of {model.name!r}: on "
            f"{config.get('base_model_name_or_path')!r}, perhaps quantized or pruned; load it on that model "
            "(in Python, any_base=True puts it on this one all the same)"
        )
    shapes = linear_shapes(model.config)
    for key, array in arrays.items():
        name, side = key.split(".lora_")
        if name not in shapes or name == model.config.arch.embed:
            raise MinedgeFormatError(f"{path}: it changes {name!r}, a matrix that {model.name!r} cannot adapt")
        out_features, in_features = shapes[name]
        r = config["modules"][name].r
        expected: tuple[int, ...] = {"A": (r, in_features), "B": (out_features, r)}.get(side[0], (out_features,))
        if array.shape != expected:
            raise MinedgeFormatError(f"{path}: {key}: expected shape {expected} for {model.name!r}, got {array.shape}")
    return config, arrays


def _targets(model: Model, modules: list[str]) -> list[str]:
    """`modules` as PEFT lists them: by last name where all of that name are adapted, else in full."""
    left_out = {name.rsplit(".", 1)[-1] for name in model.linears if name not in modules}
    leaves = {name: name.rsplit(".", 1)[-1] for name in modules}
    return sorted({name if leaf in left_out else leaf for name, leaf in leaves.items()})
