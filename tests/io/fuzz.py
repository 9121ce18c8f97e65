"""Structure-aware fuzzing: for every format mutants of good files, and what must hold for those that are accepted.

A format is a function that makes one mutant from a random generator, writes it, reads it and says whether it was
accepted. Anything but MinedgeFormatError, a whole model, or agreement with the other library is an AssertionError.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.io import fuzz_binary, fuzz_json
from tests.io.fuzz_common import Format

__all__ = ["FORMATS", "SHARES", "run", "scratch"]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is such a thing: a file is written and read for every mutant."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="minedge-fuzz-", dir=memory)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def run(name: str, count: int, seed: int, every: int = 50) -> int:
    """How many of `count` mutants are accepted. The memory of each `every`-th is measured: below four times its files
    and 192 KB (for tokenizers of compiled code, what Python has of them).
    """
    rng, accepted = random.Random(seed), 0
    with scratch() as folder:
        made = FORMATS[name](folder)
        made(random.Random(0), folder)  # what is imported and kept on first use is not a mutant's
        for i in range(count):
            state = rng.getstate()
            if i % every:
                accepted += made(rng, folder)
                continue
            accepted += made(rng, folder)
            rng.setstate(state)
            tracemalloc.start()
            try:
                made(rng, folder)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            assert peak < 4 * size + (192 << 10), (name, seed, i, peak, size)
    return accepted


FORMATS: dict[str, Callable[[Path], Format]] = {
    "safetensors": fuzz_binary.safetensors_files,
    "gguf": fuzz_binary.gguf_files,
    "llama2c": fuzz_binary.llama2c_models,
    "vocabularies": fuzz_binary.vocabularies,
    "tokenizer.json": fuzz_json.tokenizer_json,
    "adapters": fuzz_json.adapters,
    "config.json": fuzz_json.configs,
    "packed pruned": fuzz_json.packed_pruned,
}
# Mutants of each for one of safetensors, and how many of a thousand are accepted at least: fewer would mean that the
# mutations are too wild to show anything.
SHARES: dict[str, tuple[float, int]] = {
    "safetensors": (1.0, 10),
    "gguf": (0.5, 10),
    "llama2c": (0.2, 1),
    "vocabularies": (0.2, 10),
    "tokenizer.json": (0.1, 10),
    "adapters": (0.2, 10),
    "config.json": (0.2, 10),
    "packed pruned": (0.1, 100),
}

if __name__ == "__main__":  # python -m tests.io.fuzz COUNT SEED: a campaign by hand, format by format
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    for name, (share, _) in SHARES.items():
        tried = int(count * share)
        print(f"{name}: {tried:,} tried, {run(name, tried, seed):,} accepted", flush=True)
