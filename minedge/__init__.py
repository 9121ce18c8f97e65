"""minedge fine-tunes, compresses and runs small language models on the CPU at hand.

    import minedge
    model = minedge.load("bundled")
    print(model.generate("The os module", max_tokens=40))

Names below load on first use, so importing the package is quick and compiles nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    import minedge.gradcheck as gradcheck
    from minedge.api import Model, init, load
    from minedge.compress import prune, quant, sparse
    from minedge.config import Config
    from minedge.errors import BackendError, DivergedError, MinedgeError, MinedgeFormatError, UsageError
    from minedge.finetune import lora, mezo
    from minedge.finetune.trainer import train
    from minedge.ledger import plan

_HOME = {
    "Model": "minedge.api",
    "init": "minedge.api",
    "load": "minedge.api",
    "Config": "minedge.config",
    "BackendError": "minedge.errors",
    "DivergedError": "minedge.errors",
    "MinedgeError": "minedge.errors",
    "MinedgeFormatError": "minedge.errors",
    "UsageError": "minedge.errors",
    "train": "minedge.finetune.trainer",
    "plan": "minedge.ledger",
}
_MODULES = {
    "gradcheck": "minedge.gradcheck",
    "lora": "minedge.finetune.lora",
    "mezo": "minedge.finetune.mezo",
    "prune": "minedge.compress.prune",
    "quant": "minedge.compress.quant",
    "sparse": "minedge.compress.sparse",
}

__all__ = [
    "BackendError",
    "Config",
    "DivergedError",
    "MinedgeError",
    "MinedgeFormatError",
    "Model",
    "UsageError",
    "gradcheck",
    "init",
    "load",
    "lora",
    "mezo",
    "plan",
    "prune",
    "quant",
    "sparse",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'minedge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
