"""`load(pack=...)`: packed while its file is read, byte for byte what the verbs make of the whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge import quant
from minedge.compress import packing
from minedge.errors import UsageError
from tests.methods import common, pack_checks


@pytest.mark.parametrize("backend", common.BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_packed_while_reading_is_the_verbs_model(architecture, dtype, backend, tmp_path):
    pack_checks.packs_as_the_verb_does(packing, tmp_path, architecture, dtype, backend)


@pytest.mark.parametrize("kind", list(pack_checks.VERBS), ids=str)
@pytest.mark.parametrize("embeddings", [False, True])
def test_every_kind(kind, embeddings, tmp_path):
    pack_checks.packs_as_the_verb_does(packing, tmp_path, kinds=[kind], embeddings=embeddings, tie_embeddings=False)


def test_bfloat16_weights_are_widened_exactly(tmp_path):
    from minedge.io.safetensors import SafetensorsFile, write

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, (7, 32)).astype(np.uint16)
    write(tmp_path / "m.safetensors", {"w": bits})
    raw = (tmp_path / "m.safetensors").read_bytes().replace(b'"U16"', b'"BF16"')
    size = int.from_bytes(raw[:8], "little") + 1
    (tmp_path / "m.safetensors").write_bytes(size.to_bytes(8, "little") + raw[8:])
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        parts = list(file.rows("w", 3, common.NUMPY.half_widen))
    assert [part for part, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    want = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), want)


def test_what_the_kind_does_not_fit_stays_and_is_named(tmp_path):
    common.model(n_inner=80).save(tmp_path / "m")
    with pytest.warns(UserWarning, match="group_size 32 does not divide width 80 of"):
        packed = minedge.load(tmp_path / "m", pack=quant.Int4(32))
    kinds = {name.rsplit(".", 1)[-1]: kind.kind for name, kind in packed.linears.items()}
    assert kinds["down_proj"] == "dense" and kinds["up_proj"] == "int4"
    with pytest.raises(UsageError, match="does not divide"):
        minedge.load(tmp_path / "m", pack=quant.Int4(32), strict=True)


def test_a_source_that_is_packed_already(tmp_path):
    quant.int4(common.model()).save(tmp_path / "m")
    assert minedge.load(tmp_path / "m", pack=quant.Int4(32)).linears == minedge.load(tmp_path / "m").linears
    with pytest.raises(UsageError, match="int4"):
        minedge.load(tmp_path / "m", pack=quant.Int4(64))


@pytest.mark.parametrize("pack", ["int4", 4, common.DENSE], ids=str)
def test_what_packs_nothing_is_refused(pack):
    with pytest.raises(UsageError, match=r"^pack: expected a kind such as minedge.quant.Int4\(32\), got"):
        minedge.load("bundled", pack=pack)


def test_weights_without_a_scale_are_named(tmp_path):
    model, name = common.model(), "model.layers.1.mlp.up_proj"
    weight = model.params[f"{name}.weight"].copy()
    weight[-1, -1] = np.nan
    model.with_params({**model.params, f"{name}.weight": weight}).save(tmp_path / "m")
    with pytest.raises(UsageError, match=f"{name}: weights that are not finite"):
        minedge.load(tmp_path / "m", pack=quant.Int4(32))


_MEASURE = """
import resource, sys
from minedge.cli import main
main(["quantize", "--model", sys.argv[1], "--embeddings", "--out", sys.argv[2]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in kilobytes")
def test_the_command_takes_the_memory_of_its_result(tmp_path: Path):
    """Whole process; beside the result stand the interpreter (under 60 MB), a tile and what the pool needs."""
    sizes = dict(vocab_size=8192, n_layer=8, n_embd=1024, n_head=16, n_kv_head=8, n_inner=4096, context_length=64)
    minedge.init(minedge.config.Config(**sizes), backend="numpy").save(tmp_path / "m", dtype="float16")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "m"), str(tmp_path / "q")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    peak, result = int(done.stdout.split()[-1]), (tmp_path / "q" / "model.safetensors").stat().st_size
    print(f"{peak / 1e6:.0f} MB for a result of {result / 1e6:.0f} MB")
    assert peak < 1.3 * result + 60e6
