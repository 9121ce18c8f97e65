"""Loading needs little more memory than what it loads: one process each, its high-water mark less the import's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]

_MAKE = """
import sys, minedge
from minedge.config import Config
config = Config(vocab_size=8192, n_layer=8, n_embd=1024, n_head=16, n_kv_head=8, n_inner=4096, context_length=64)
model = minedge.init(config, backend="numpy")
if sys.argv[2] == "hf":
    model.save(sys.argv[1], dtype="float16")
else:
    model.save_gguf(sys.argv[1], sys.argv[2])
"""
_LOAD = """
import sys, warnings, numpy, tokenizers, minedge
from minedge.io import sources
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
warnings.simplefilter("ignore")
before = peak()
model = minedge.load(sys.argv[1], backend="numpy")
print(model.nbytes()["total"], peak() - before)
"""


@pytest.mark.parametrize("kind", ["hf", "f32", "f16", "q8_0"])
def test_loading_peaks_under_1_15_times_the_result(kind: str, tmp_path: Path, run_python) -> None:
    made = run_python(_MAKE, str(tmp_path / "m"), kind)
    assert made.returncode == 0, made.stderr
    loaded = run_python(_LOAD, str(tmp_path / "m"))
    assert loaded.returncode == 0, loaded.stderr
    size, used = map(int, loaded.stdout.split())
    assert size > (140e6 if kind == "q8_0" else 500e6)  # Q8_0 stays packed
    print(f"{kind}: {used / size:.3f} of {size:,} bytes")
    assert used < 1.15 * size
