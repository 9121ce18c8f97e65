"""A fingerprint of weights: what a MeZO log, an adapter and a checkpoint name their base model by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

__all__ = ["weights_hash"]

_CHUNK = 1 << 20  # elements hashed at a time, so that a strided or byte-swapped tensor is never copied whole


def weights_hash(params: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 (64 hex digits) over sorted names, dtypes, shapes and little-endian bytes of `params`.

    Equal on every machine for equal bits; +0.0 and -0.0 differ, and so do a float16 array and its float32 copy.

    >>> weights_hash({"a": np.zeros(2, np.float32)})[:16]
    '969c37c9c7963aeb'
    """
    digest = hashlib.sha256(b"minedge weights 1\n")
    for name in sorted(params):
        array = np.asarray(params[name])
        dtype = array.dtype.newbyteorder("<")
        # The lengths make the header unambiguous: no name can be mistaken for another tensor's bytes.
        head = f"{name}\0{dtype.str}\0{','.join(map(str, array.shape))}".encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        for start in range(0, array.size, _CHUNK):
            digest.update(np.ascontiguousarray(flat[start : start + _CHUNK], dtype=dtype).data)
    return digest.hexdigest()
