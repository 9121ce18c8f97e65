"""Model folders as Hugging Face writes them, read strictly; hf_write.py writes them.

config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer.json, generation_config.json.
`param_shapes` says which tensors there must be: one missing, unknown or of another shape is an error, and nothing is
allocated before that is known. What minedge adds stands in config.json under the key "minedge": the kinds of the
linears that are not dense, the trainable names, and a format version. Linear kinds say how they are stored
(`to_storage`), so a pruned matrix takes the space of what is left of it.

On disk GPT-2's weights lie (in, out), as its Conv1D has them; in memory every weight lies (out, in).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import minedge.ops
from minedge.config import Config
from minedge.errors import MinedgeError, MinedgeFormatError
from minedge.io.atomic import recover_dir
from minedge.io.hf_weights import Stored, member, open_weights
from minedge.io.jsonfile import read_json
from minedge.model.linears import LinearKind, Shapes, core, dense_kind, kind_from_dict
from minedge.model.shapes import linear_shapes, param_shapes

__all__ = [
    "FILE_DTYPE_KEYS", "FORMAT_VERSION", "Repack", "Rows", "check_ids", "check_tokenizer", "lies_transposed",
    "read_config", "read_generation_config", "read_model", "read_trainable_names",
]  # fmt: skip

FORMAT_VERSION = 1
# What makes another kind of a dense matrix while it is read: (config, name, (out, in), rows) -> the kind and its
# arrays, or None to keep it as it is. rows(step, widen) gives its rows as `SafetensorsFile.rows` does.
Rows = Callable[[int, Callable[[np.ndarray], np.ndarray]], Iterator[tuple[slice, np.ndarray]]]
Repack = Callable[[Config, str, tuple[int, int], Rows], "tuple[LinearKind, dict[str, np.ndarray]] | None"]
_FLOATS = {"F16", "BF16", "F32", "F64"}
_EXACT = {
    "uint8": "U8",
    "int8": "I8",
    "float16": "F16",
    "uint16": "U16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}
_MAX_LAYERS = 1_000  # tables have entries for each
_PER_LAYER = 9  # tensors, at least: two norms and seven matrices
FILE_DTYPE_KEYS = ("torch_dtype", "dtype")  # older and newer name; of the file, not the model
# What values of the wrong type in a config.json can provoke on their way through the dataclasses.
_BAD_CONFIG = (MinedgeError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError, RecursionError)


def read_model(
    path: str | os.PathLike[str], with_tokenizer: bool = True, repack: Repack | None = None
) -> tuple[Config, dict[str, np.ndarray], dict[str, LinearKind], Any]:
    """Read a model folder: config, read-only params (floats widened to float32), linears, tokenizer or None.

    `repack` may make another kind of each dense matrix from its rows, so that the whole matrix never stands in float32.
    Raises MinedgeFormatError, naming file and key or tensor, for anything that is missing, unknown or contradictory.
    """
    folder = Path(path)
    config, data = _read_sizes(folder)
    with contextlib.ExitStack() as stack:
        tensors = open_weights(folder, config, stack)
        if _PER_LAYER * config.n_layer > len(tensors):  # before the tables that have entries for each layer
            raise MinedgeFormatError(
                f"{folder}: tensors missing: {len(tensors)} in all for the {config.n_layer} layers of config.json"
            )
        linears = _read_linears(folder, config, data)
        params = _read_params(folder, config, linears, tensors, repack)
    return config, params, linears, _read_tokenizer(folder, config) if with_tokenizer else None


def read_config(path: str | os.PathLike[str]) -> tuple[Config, dict[str, LinearKind]]:
    """Read config.json alone: the sizes, and the kind of every linear."""
    folder = Path(path)
    config, data = _read_sizes(folder)
    return config, _read_linears(folder, config, data)


def _read_sizes(folder: Path) -> tuple[Config, dict[str, Any]]:
    recover_dir(folder)
    if not os.path.isdir(folder):
        raise MinedgeFormatError(f"{folder}: no such folder; expected one with config.json and model.safetensors")
    file = member(folder, "config.json")
    data = {key: value for key, value in read_json(file).items() if key not in FILE_DTYPE_KEYS}
    if data.get("quantization_config"):
        raise MinedgeFormatError(f"{file}: quantization_config: weights quantized by other tools are not supported")
    try:
        layers = data.get("num_hidden_layers", data.get("n_layer", 0))
        if isinstance(layers, int) and layers > _MAX_LAYERS:
            raise MinedgeFormatError(f"{layers} layers, expected at most {_MAX_LAYERS}")
        return Config.from_hf(data), data
    except _BAD_CONFIG as error:
        raise MinedgeFormatError(f"{file}: {str(error).removeprefix('config.json: ')}") from error


def _read_linears(folder: Path, config: Config, data: Mapping[str, Any]) -> dict[str, LinearKind]:
    try:
        shapes = linear_shapes(config)
        linears = dict.fromkeys(shapes, dense_kind())
        for name, kind in _own_part(data).get("linears", {}).items():
            if name not in shapes:
                raise MinedgeFormatError(f"minedge.linears: the model has no {name!r}")
            linears[name] = kind_from_dict(kind)
            linears[name].shapes(name, *shapes[name])  # a kind refuses widths it cannot have
    except _BAD_CONFIG as error:
        raise MinedgeFormatError(f"{folder / 'config.json'}: {str(error).removeprefix('config.json: ')}") from error
    return linears


def read_trainable_names(path: str | os.PathLike[str]) -> frozenset[str] | None:
    """The names that training changed, if the folder was written with them; not checked against the params."""
    file = member(Path(path), "config.json")
    try:
        names = _own_part(read_json(file)).get("trainable_names")
        return None if names is None else frozenset(names)
    except _BAD_CONFIG as error:
        raise MinedgeFormatError(f"{file}: {error}") from error


def read_generation_config(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """generation_config.json, or None where there is none."""
    file = member(Path(path), "generation_config.json")
    return read_json(file) if os.path.exists(file) else None


def _own_part(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What minedge added to config.json, of a version this one can read."""
    own = data.get("minedge", {})
    if own and own.get("format_version") != FORMAT_VERSION:
        got = own.get("format_version")
        raise MinedgeFormatError(f"minedge.format_version: expected {FORMAT_VERSION}, got {got!r}; is minedge too old?")
    return own


def _storage_shapes(config: Config, linears: Mapping[str, LinearKind]) -> tuple[Shapes, dict[str, tuple[str, ...]]]:
    """Shapes of every tensor in a file, and which of them belong to which linear."""
    in_memory, stored, owned = param_shapes(config, linears), {}, {}
    for name, widths in linear_shapes(config).items():
        kind = linears[name]
        shapes = kind.storage_shapes(name, *widths) or kind.shapes(name, *widths)
        for key in kind.shapes(name, *widths):
            in_memory.pop(key)
        stored.update(shapes)
        owned[name] = tuple(shapes)
    return {**stored, **in_memory}, owned


def lies_transposed(config: Config, key: str, shape: tuple[int, ...]) -> bool:
    name = key.removesuffix(".weight")
    outer = (config.arch.embed, config.arch.head, config.arch.positions)
    return (
        config.arch.conv1d
        and key.endswith(".weight")
        and name not in outer
        and shape == linear_shapes(config).get(name)
    )


def _read_params(
    folder: Path, config: Config, linears: dict[str, LinearKind], tensors: dict[str, Stored], repack: Repack | None
) -> dict[str, np.ndarray]:
    """The arrays; of the matrices that `repack` takes, `linears` gets the new kind."""
    shapes, owned = _storage_shapes(config, linears)
    tied_head = tensors.pop(f"{config.arch.head}.weight", None) if config.tie_embeddings else None
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        also = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise MinedgeFormatError(f"{folder}: tensor {missing[0]!r}{also} missing, which config.json asks for")
    if unknown:
        also = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise MinedgeFormatError(f"{folder}: tensor {unknown[0]!r}{also} unknown to this architecture and its options")
    transposed = {key for key, (shape, _) in shapes.items() if lies_transposed(config, key, shape)}
    for key, (shape, dtype) in shapes.items():
        _check_tensor(tensors[key], shape[::-1] if key in transposed else shape, dtype)

    def load(keys: Iterable[str]) -> dict[str, np.ndarray]:
        out = {}
        for key in keys:
            stored = tensors[key]
            dtype = np.float32 if shapes[key][1] == "float32" else None
            turned = (stored.name,) if key in transposed else ()
            out[key] = stored.file.read([stored.name], dtype, turned)[stored.name]
        return out

    def rows(key: str, step: int, widen: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
        if key in transposed:  # its rows are the file's columns: whole
            return iter([(slice(None), load([key])[key])])
        return tensors[key].file.rows(tensors[key].name, step, widen)

    # An engine makes tiles of these and reads the rows no more (model/tiles.py): they need no memory of their own.
    int4 = [name for name in owned if core(linears[name]).kind == "int4"]
    mapped = {f"{name}.{part}" for name in int4 for part in ("qweight", "scales")}
    ops, params = minedge.ops.get("numpy"), {}
    for name, (out_features, in_features) in linear_shapes(config).items():
        if repack is not None and linears[name] == dense_kind():
            packed = repack(config, name, (out_features, in_features), functools.partial(rows, owned[name][0]))
            if packed is not None:
                linears[name] = packed[0]
                params.update(packed[1])
                continue
        try:
            held = {key: tensors[key].file.view(tensors[key].name) for key in owned[name] if key in mapped}
            held.update(load(key for key in owned[name] if key not in mapped))
            made = linears[name].from_storage(held, name, out_features, in_features, ops)
        except (ValueError, TypeError, IndexError) as error:
            raise MinedgeFormatError(f"{folder}: tensors of {name!r}: {error}") from error
        params.update(made)
    params.update(load(shapes.keys() - set().union(*owned.values())))
    params = {key: params[key] for key in param_shapes(config, linears)}
    for array in params.values():
        array.flags.writeable = False
    if tied_head is not None:
        _check_tied_head(tied_head, tensors.get(f"{config.arch.embed}.weight"))
    return params


def _check_tensor(stored: Stored, shape: tuple[int | None, ...], dtype: str) -> None:
    info, where = stored.info, f"{stored.file.path}: tensor {stored.name!r}"
    fits = len(info.shape) == len(shape) and all(b in (None, a) for a, b in zip(info.shape, shape, strict=True))
    if not fits:
        wanted = [b if b is not None else "any" for b in shape]
        raise MinedgeFormatError(f"{where}: expected shape {wanted} by config.json, got {list(info.shape)}")
    allowed = _FLOATS if dtype == "float32" else {_EXACT[dtype]}
    if info.dtype not in allowed:
        raise MinedgeFormatError(f"{where}: expected {' or '.join(sorted(allowed))} elements, got {info.dtype}")


def _check_tied_head(head: Stored, embedding: Stored | None) -> None:
    """Some files hold a tied head all the same; it must be the embedding, or the model's results would not be the
    file's.
    """
    if embedding is None or head.info.shape != embedding.info.shape:
        same = False
    else:
        first, second = (stored.file.read([stored.name])[stored.name] for stored in (head, embedding))
        same = np.array_equal(first, second, equal_nan=True)
    if not same:
        raise MinedgeFormatError(
            f"{head.file.path}: tensor {head.name!r} differs from the embedding, yet config.json ties them"
        )


def _read_tokenizer(folder: Path, config: Config) -> Any:
    from minedge.data.tokenizer import Tokenizer

    for name in ("tokenizer_config.json", "chat_template.jinja"):
        member(folder, name)
    if not member(folder, "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.load(folder)
    check_tokenizer(tokenizer, config, f"{folder / 'tokenizer.json'}")
    return tokenizer


def check_tokenizer(tokenizer: Any, config: Config, where: str) -> None:
    """MinedgeFormatError for a tokenizer with ids that the model has no embedding of."""
    # Ids may have gaps, so the largest one decides, not their number.
    check_ids(max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0), config, where)


def check_ids(largest: int, config: Config, where: str) -> None:
    """`check_tokenizer` where only the largest id is known."""
    if largest >= config.vocab_size:
        raise MinedgeFormatError(
            f"{where}: ids up to {largest}, but vocab_size is {config.vocab_size}; another model's tokenizer?"
        )
