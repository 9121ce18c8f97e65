"""Where models come from and go to: `load`, `init`, `save`. The only module that knows both models and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minedge.config import Config, did_you_mean
from minedge.errors import UsageError
from minedge.model import model as _model
from minedge.model import transformer
from minedge.model.linears import Dense, LinearKind
from minedge.ops import get as get_ops

__all__ = ["Model", "bundled_path", "init", "load"]

BUNDLED = ("bundled",)


class Model(_model.Model):
    """A `minedge.model.Model` that can be saved."""

    def save(self, path: str | Path, dtype: str | None = None, overwrite: bool = False) -> None:
        """Write a Hugging Face model directory that `load` opens again with its linear kinds.

        dtype "float16" or "float32" stores dense weights so; None keeps what is in memory. Written whole or not at
        all; a folder that exists is refused unless `overwrite`.
        """
        from minedge.compress.compositions import default_trainable
        from minedge.io import hf_write

        usual = self.trainable_names == default_trainable(self, self.linears, self.params)
        hf_write.write_model(
            path, self.config, self.params, self.linears, self.tokenizer, dtype, overwrite=overwrite,
            trainable_names=None if usual else sorted(self.trainable_names),
        )  # fmt: skip

    def save_gguf(self, path: str | Path, dtype: str = "keep", overwrite: bool = False) -> None:
        """Write a GGUF file, which llama.cpp opens, with the tokenizer in it; needs the extra `minedge[gguf]`.

        dtype "f32", "f16", "q8_0" or "q4_0" for all matrices; "keep" writes int4 ones as Q4_0, int8 ones as Q8_0,
        those of 16 bits as they are and others as F32, so that nothing is lost. Written whole or not at all; a file
        that exists is refused unless `overwrite`.
        """
        from minedge.io import gguf_write

        if Path(path).exists() and not overwrite:
            raise UsageError(f"the output file {path} exists already; choose another name, or pass overwrite=True")
        gguf_write.write_model(
            path, self.config, self.params, self.linears, self.tokenizer, dtype, name=Path(self.name).name or "model"
        )


def init(config: Config, tokenizer: Any = None, seed: int = 0, backend: str | None = None) -> Model:
    """A model with random weights, all of them trainable; see `transformer.init_params` for the distribution."""
    get_ops(backend)
    linears = {name: Dense() for name in transformer.linear_shapes(config)}
    params = transformer.init_params(config, linears, seed)
    model = Model(config, {}, linears, tokenizer=tokenizer, backend=backend, name="random")
    return model.with_params(params, trainable_names=frozenset(params))


def bundled_path() -> Path:
    """Folder of the checkpoint that comes with the package."""
    return Path(__file__).parent / "assets" / "bundled"


def load(
    source: str | Path,
    backend: str | None = None,
    with_tokenizer: bool = True,
    pack: LinearKind | None = None,
    embeddings: bool = False,
    strict: bool = False,
) -> Model:
    """Open a model: "bundled", a Hugging Face directory, a .gguf file, a llama2.c .bin (its tokenizer beside it), or
    the hub id of a model in the local Hugging Face cache. Every float array is trainable until an adapter or packing
    says otherwise. `with_tokenizer=False` leaves the tokenizer, which compiled code of another library reads, unopened.

    `pack`, such as `minedge.quant.Int4(32)`, makes every matrix of that kind (with `embeddings` the embedding, too):
    the model that `minedge.quant.int4` makes of it, but a Hugging Face directory is packed as it is read, in the memory
    of the result. `strict` as there.

    Raises `UsageError` for an unknown name (with the nearest), `MinedgeFormatError` for files that are missing,
    damaged or foreign.
    """
    from minedge.compress import packing
    from minedge.compress.compositions import default_trainable
    from minedge.io import sources

    get_ops(backend)
    path = bundled_path() if str(source) in BUNDLED else Path(source).expanduser()
    if not path.exists():
        cached = sources.in_hub_cache(str(source))
        if cached is None:
            near = did_you_mean(str(source), [*BUNDLED, *_siblings(path)])
            raise UsageError(
                "model: expected 'bundled', a model directory, a .gguf file, a llama2.c .bin, or a hub id in the local "
                f"Hugging Face cache ({sources.hub_cache()}), got {str(source)!r}, which does not exist{near}"
            )
        path = cached
    repack = None if pack is None else packing.while_reading(pack, embeddings, get_ops(backend))
    config, params, linears, tokenizer, names = sources.read_any(path, with_tokenizer, repack)
    model = Model(config, {}, linears, tokenizer=tokenizer, backend=backend, name=str(source))
    if names is None:
        names = default_trainable(model, linears, params)
    model = model.with_params(params, trainable_names=names)
    if pack is None:
        return model
    return packing.pack_linears(model, pack, packing.argument_of(pack), embeddings, strict, rest=True)


def _siblings(path: Path) -> list[str]:
    parent = path.parent
    if not parent.is_dir():
        return []
    return [str(parent / p.name) for p in parent.iterdir() if p.is_dir() or p.suffix in (".gguf", ".bin")]
