"""llama.cpp through the llama-cpp-python package, on a GGUF file that holds minedge's own int4 codes and scales.

Its C functions are called directly (the package's `Llama` class would add Python's time to every token). Threads as
given; flash attention on or off, whichever is faster here; weights repacked for this processor where it does that.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench import tasks_quantize, tasks_text
from minedge.bench.jobs import config_of
from minedge.bench.worker import Clock, Subject
from minedge.config import Config

__all__ = ["Engine", "decode", "imports", "prefill", "quantize", "start"]

_KEPT: list[Any] = []  # callbacks that C holds on to


def imports(job: Mapping[str, Any]) -> None:
    """The library, silenced; its errors come back as return values."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def silent(level: int, text: bytes, data: Any) -> None:
        pass

    _KEPT.append(silent)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()


class Engine:
    """A model and a context of the C library."""

    def __init__(self, path: str, config: Config, threads: int, context: int, flash: bool):
        import llama_cpp as lib

        self.lib, self.vocab = lib, config.vocab_size
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot open {path}")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, min(context, 2048), 512
        options.n_threads = options.n_threads_batch = threads
        if hasattr(options, "flash_attn_type"):
            options.flash_attn_type = int(flash)
        else:
            options.flash_attn = flash
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens")

    def clear(self) -> None:
        """Forget all tokens."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def forget(self, length: int) -> bool:
        """Keep the first `length` tokens; False where there are none."""
        memory = self.lib.llama_get_memory(self.context)
        if self.lib.llama_memory_seq_pos_max(memory, 0) < 0:
            return False
        return bool(self.lib.llama_memory_seq_rm(memory, 0, length, -1))

    def read(self, tokens: Sequence[int]) -> None:
        """Append tokens; scores of the last one."""
        step = int(self.lib.llama_n_batch(self.context))
        for start in range(0, len(tokens), step):
            part = (ctypes.c_int32 * len(tokens[start : start + step]))(*tokens[start : start + step])
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(part, len(part))) != 0:
                raise RuntimeError("llama_decode failed")

    def scores(self) -> Any:
        """Of the last token read, float32 (V,), a view of the library's memory."""
        pointer = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab,))

    def close(self) -> None:
        """Free both."""
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def _faster(make: Callable[[bool], Engine], work: Callable[[Engine], Any]) -> tuple[Engine, bool]:
    """The engine with flash attention on or off, whichever does the work sooner the second time."""
    found: dict[bool, float] = {}
    for flash in (True, False):
        engine = make(flash)
        work(engine)
        begun = time.perf_counter()
        work(engine)
        found[flash] = time.perf_counter() - begun
        engine.close()
    best = min(found, key=lambda flash: found[flash])
    return make(best), best


def _settings(job: Mapping[str, Any], flash: bool) -> str:
    import llama_cpp

    kind = "Q4_0, every matrix" if "q4_0" in job["files"] else "F16"
    return f"{kind}, flash attention {'on' if flash else 'off'} (the faster), llama-cpp-python {llama_cpp.__version__}"


def _path(job: Mapping[str, Any]) -> str:
    return str(job["files"].get("q4_0") or job["files"]["f16"])


def _scored(engine: Engine, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Gaps (tasks_text.gaps) of another's tokens, teacher-forced, a token at a time."""
    engine.clear()
    engine.read(prompt)
    rows = [engine.scores().copy()]
    for token in ids[:-1]:
        engine.read([token])
        rows.append(engine.scores().copy())
    return tasks_text.gaps(np.array(rows), list(ids))


class _Decode(Subject):
    def __init__(self, job: Mapping[str, Any]):
        config = config_of(job)
        length = job["sizes"]["context"]
        self.prompt = tasks_text.prompt_of(config, length)
        self.most = 256 if config.uses_rotary else min(256, config.context_length - length)

        def trial(engine: Engine) -> None:
            if not engine.forget(length):
                engine.read(self.prompt)
            for _ in range(8):
                engine.read([int(engine.scores().argmax())])

        size = length + self.most
        self.engine, flash = _faster(lambda f: Engine(_path(job), config, job["threads"], size, f), trial)
        self.settings = _settings(job, flash)
        self.facts = {"amount": 1.0, "unit": "tokens/s", **tasks_text.text_work(config, 1, length + 16)}
        self.outputs = {"gaps": _scored(self.engine, job["given"]["prompt"], job["given"]["ids"])}
        self._read_prompt()

    def _read_prompt(self) -> None:
        self.engine.clear()
        self.engine.read(self.prompt)
        self.first = int(self.engine.scores().argmax())

    def run(self, units: int, clock: Clock) -> None:
        while units > 0:
            n, token = min(units, self.most - 1), self.first
            self.engine.forget(len(self.prompt))
            with clock.running():
                for _ in range(n):
                    self.engine.read([token])
                    token = int(self.engine.scores().argmax())
            units -= n


def decode(job: Mapping[str, Any]) -> Subject:
    """Greedy, one token at a time."""
    return _Decode(job)


class _Prefill(Subject):
    def __init__(self, job: Mapping[str, Any]):
        config, length = config_of(job), job["sizes"]["length"]
        self.tokens = tasks_text.prompt_of(config, length)
        self.engine, flash = _faster(lambda f: Engine(_path(job), config, job["threads"], length + 8, f), self._trial)
        self.settings = _settings(job, flash)
        work = tasks_text.text_work(config, length, length, "q4_0" in job["files"])
        if "f16" in job["files"]:
            work["bytes"] /= 2
        self.facts = {"amount": float(length), "unit": "tokens/s", **work}
        self.outputs = {"gaps": _scored(self.engine, self.tokens, job["given"]["long_ids"])}

    def _trial(self, engine: Engine) -> None:
        engine.clear()
        engine.read(self.tokens[:128])  # enough to tell the two apart, a fraction of a pass

    def _pass(self, engine: Engine) -> int:
        engine.clear()
        engine.read(self.tokens)
        return int(engine.scores().argmax())

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._pass(self.engine)


def prefill(job: Mapping[str, Any]) -> Subject:
    """One batch."""
    return _Prefill(job)


class _Start(Subject):
    def __init__(self, job: Mapping[str, Any]):
        self.job, self.config = job, config_of(job)
        self.prompt = tasks_text.prompt_of(self.config, tasks_text.SHORT)
        self.settings = _settings(job, True).replace(" (the faster)", "")
        self.facts = {"amount": 1.0, "unit": "s", "seconds": True}
        engine = self._engine()
        self.outputs = {"gaps": _scored(engine, self.prompt, job["given"]["ids"])}
        engine.close()

    def _engine(self) -> Engine:
        return Engine(_path(self.job), self.config, self.job["threads"], 64, True)

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                engine = self._engine()
                engine.read(self.prompt)
                engine.scores().argmax()
                engine.close()


def start(job: Mapping[str, Any]) -> Subject:
    """Open the file, read a short prompt, give one token."""
    return _Start(job)


class _Quantize(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import llama_cpp

        self.lib, self.source = llama_cpp, Path(job["files"]["half_gguf"])
        self.target = self.source.with_name(f"{self.source.stem}-quantized.gguf")
        self.options = llama_cpp.llama_model_quantize_default_params()
        self.options.nthread, self.options.ftype, self.options.pure = job["threads"], 2, True  # 2: mostly Q4_0
        self.options.output_tensor_type = self.options.token_embedding_type = 2
        size = tasks_quantize.file_bytes(self.source)
        self.settings = f"llama_model_quantize, pure Q4_0, from {size / 1e6:.0f} MB of F16 in the page cache"
        self.facts = {"amount": size / 1e9, "unit": "GB/s read"}
        self._once()
        self.facts["result_bytes"] = self.target.stat().st_size
        self.outputs = {"codes": self._codes()}

    def _once(self) -> None:
        done = self.lib.llama_model_quantize(str(self.source).encode(), str(self.target).encode(), self.options)
        if done != 0:
            raise RuntimeError(f"llama_model_quantize failed with {done}")

    def _codes(self) -> list[int]:
        import minedge

        return tasks_quantize.codes_of(minedge.load(self.target, backend="numpy"))

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._once()

    def __del__(self) -> None:
        self.target.unlink(missing_ok=True)


def quantize(job: Mapping[str, Any]) -> Subject:
    """F16 to Q4_0, file to file."""
    return _Quantize(job)
