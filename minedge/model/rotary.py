"""The angles of rotary positions (arXiv:2104.09864), made once for each shape and scaling."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config

__all__ = ["rotary_tables"]

Array = NDArray[Any]


def rotary_tables(config: Config) -> tuple[Array, Array]:
    """cos and sin (context_length, D/2) of this config's rotary positions, read-only."""
    return _rotary_tables_of(config.rope_theta, config.head_dim // 2, config.context_length, config.rope_scaling)


@functools.lru_cache(maxsize=32)
def _rotary_tables_of(theta: float, half: int, length: int, scaling: tuple | None) -> tuple[Array, Array]:
    """cos and sin of position * frequency, float32 (length, D/2), frequency_i = theta^(-i / (D/2)), computed in
    float64.
    """
    # BEGIN SOLUTION a2.8
    frequency = theta ** (-np.arange(half) / half)
    # END SOLUTION
    if scaling:
        s = dict(scaling)
        if s.get("rope_type", s.get("type")) == "linear":
            frequency = frequency / s["factor"]
        else:  # llama3: slow turns are stretched by `factor`, fast ones kept, those between blended
            turns = s["original_max_position_embeddings"] * frequency / (2 * np.pi)
            low, high = s["low_freq_factor"], s["high_freq_factor"]
            blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
            frequency = (1 - blend) * frequency / s["factor"] + blend * frequency
    # BEGIN SOLUTION a2.8
    angle = np.arange(length)[:, None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    # END SOLUTION
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin
