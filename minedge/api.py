"""Where models come from and go to: `load`, `init`, `save`. The only module that knows both models and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minedge.config import Config, did_you_mean
from minedge.errors import MinedgeFormatError, UsageError
from minedge.model import model as _model
from minedge.model import transformer
from minedge.model.linears import Dense
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
        from minedge.io import hf

        usual = self.trainable_names == default_trainable(self, self.linears, self.params)
        hf.write_model(
            path, self.config, self.params, self.linears, self.tokenizer, dtype, overwrite=overwrite,
            trainable_names=None if usual else sorted(self.trainable_names),
        )  # fmt: skip


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


def load(source: str | Path, backend: str | None = None) -> Model:
    """Open a model: "bundled", or a Hugging Face directory. Every float array is trainable until an adapter or
    packing says otherwise.

    Raises `UsageError` for an unknown name (with the nearest), `MinedgeFormatError` for files that are missing,
    damaged or foreign.
    """
    from minedge.compress.compositions import default_trainable
    from minedge.io import hf

    get_ops(backend)
    if str(source) in BUNDLED:
        path = bundled_path()
    else:
        path = Path(source).expanduser()
        if not path.exists():
            near = did_you_mean(str(source), [*BUNDLED, *_siblings(path)])
            raise UsageError(
                f"model: expected 'bundled' or a model directory, got {str(source)!r}, which does not exist{near}"
            )
    if not path.is_dir():
        raise MinedgeFormatError(
            f"{path}: expected a model directory with config.json and model.safetensors, got a file"
        )
    config, params, linears, tokenizer = hf.read_model(path)
    model = Model(config, {}, linears, tokenizer=tokenizer, backend=backend, name=str(source))
    names = hf.read_trainable_names(path)
    if names is None:
        names = default_trainable(model, linears, params)
    return model.with_params(params, trainable_names=names)


def _siblings(path: Path) -> list[str]:
    parent = path.parent
    return [str(parent / p.name) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
