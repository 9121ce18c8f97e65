"""What a competitor is told, as data that goes through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minedge.config import Config

__all__ = ["Job", "config_of"]


@dataclass(frozen=True)
class Job:
    """One competitor in one part.

    who       "minedge", or a peer's name
    label     how tables call it: "minedge c:avx2", "llama.cpp F16"
    maker     "module:function" that makes the `worker.Subject`
    threads   CPUs it is kept on, and threads it may use
    backend   of minedge
    config    the model's sizes, as `Config` takes them
    sizes     further numbers: batch_size, seq_len, ...
    files     kind -> path of the weights (weights.py)
    given     outputs of the first competitor, to compare with on the spot
    python    the interpreter of a peer; "" for this one
    """

    who: str
    label: str
    maker: str
    threads: int
    backend: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    python: str = ""

    def with_given(self, given: Mapping[str, Any]) -> Job:
        """The same job with the first competitor's outputs."""
        return replace(self, given=dict(given))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def config_of(job: Mapping[str, Any]) -> Config:
    """The `Config` of a job's JSON form: lists were tuples."""
    tupled: dict[str, Any] = {
        key: tuple(map(_tuple, v)) if isinstance(v, list) else v for key, v in job["config"].items()
    }
    return Config(**tupled)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
