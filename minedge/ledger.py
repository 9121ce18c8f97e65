r"""How much memory will it take, and how much did it take?

    print(minedge.plan(model, "lora", batch_size=8, seq_len=256))    # before: bytes by part, at the moment of the peak
    with minedge.ledger.measure() as used: ...                       # after: what the process really used
    used.peak

The prediction walks the passes line by line (finetune/memory.py) with sizes in the place of arrays. It counts what
minedge allocates; the interpreter and its libraries (some 60 to 120 MB) come on top and are the same for every method,
and so does freed memory that the C library keeps for later (glibc: at most 64 MB).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minedge.compress.int4 import Int4
from minedge.config import Config, did_you_mean, integer
from minedge.errors import UsageError
from minedge.finetune.memory import Trace, array_bytes, inference, training_step
from minedge.finetune.memory_files import loading, packing, saving
from minedge.finetune.prepare import start_model
from minedge.finetune.train_config import TrainConfig
from minedge.model.linears import Dense
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.ops import get as get_ops

__all__ = [
    "FILE_PLANS", "PLANS", "Measured", "Plan", "give_back", "measure", "peak_bytes", "plan", "plan_files", "reset_peak",
    "resident_bytes",
]  # fmt: skip

PLANS = ("inference", "generate", "full", "lora", "mezo")
FILE_PLANS = ("load", "save", "int4")


@dataclass(frozen=True)
class Plan:
    """Predicted bytes at the moment when most are in use.

    parts    "weights" (the model as given), "trained copies", "optimizer", "gradients", "activations" (kept for
             backward, or live in forward), "logits", "kv cache", "perturbed" (MeZO's copies), "transient" (arrays that
             live for one call); they add up to `peak`
    moment   where in a step the peak is
    """

    method: str
    batch_size: int
    seq_len: int
    backend: str
    n_trainable: int
    peak: int
    moment: str
    parts: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**self.__dict__, "parts": dict(self.parts)}

    def __str__(self) -> str:
        lines = [f"{name:<16}{size / 1e6:>12,.1f} MB" for name, size in self.parts.items()]
        total = f"{'peak':<16}{self.peak / 1e6:>12,.1f} MB   ({self.moment})"
        rows = f", batch {self.batch_size} x {self.seq_len}" if self.batch_size else ""
        return "\n".join([f"{self.method}{rows}, {self.backend}", *lines, total])


def plan(
    model: Model | Config,
    method: str,
    batch_size: int,
    seq_len: int,
    *,
    lora: Mapping[str, Any] | None = None,
    grad_accum: int = 1,
    grad_checkpoint: bool = False,
    keeps_best: bool = False,
    backend: str | None = None,
) -> Plan:
    """Predict the peak memory of `method` on rows of `seq_len` tokens, `batch_size` of them at a time.

    model       a Model, or a Config (a dense float32 model of that shape that does not exist yet)
    method      "inference" (a loss), "generate" (`seq_len`: prompt and answer), or as in `train` "full", "lora", "mezo"
    lora        adapter settings as in `train`; used where the model has no adapter
    keeps_best  training without an output folder but with validation data keeps a copy of the best weights

    Raises `UsageError` for a method it does not know.
    """
    if method not in PLANS:
        near = did_you_mean(str(method), list(PLANS))
        raise UsageError(f"method: expected one of {', '.join(PLANS)}, got {method!r}{near}")
    batch_size, seq_len = integer("batch_size", batch_size), integer("seq_len", seq_len, 2)
    grad_accum = integer("grad_accum", grad_accum)
    given = _without_memory(model) if isinstance(model, Config) else model
    ops = get_ops(backend if backend is not None else given.backend)
    trace, config = Trace(), given.config
    trace.where = "at rest"
    trace.hold("weights", sum(array_bytes(config, given.linears).values()))
    T = seq_len - 1 if method != "generate" else seq_len  # the last token of a row is only predicted
    if method in ("inference", "generate"):
        if method == "generate":
            trace.hold("kv cache", 2 * 4 * config.n_layer * batch_size * seq_len * config.kv_width)
        inference(trace, config, given.linears, batch_size, T, ops.name, frozenset())
        return _made(method, batch_size, seq_len, ops.spec, 0, trace)
    started = start_model(given, TrainConfig(method=method, lora=lora))
    linears, names = started.linears, started.trainable_names
    sizes = array_bytes(config, linears)
    trained = sum(sizes[name] for name in names)
    added = sum(size for name, size in sizes.items() if name not in given.params)
    trace.hold("trained copies", trained + added + (trained if keeps_best else 0))
    if method == "mezo":
        inference(trace, config, linears, batch_size, T, ops.name, names)
    else:
        trace.hold("optimizer", 2 * trained)
        for _ in range(
            min(grad_accum, 2)
        ):  # from the second micro-batch on a sum of gradients waits beside the new ones
            training_step(trace, config, linears, batch_size, T, ops.name, names, grad_checkpoint)
        trace.where = "update"
        largest = max(sizes[name] for name in names)
        trace.spike(6 * largest if ops.name == "numpy" else 0)  # the temporaries of adamw_'s last line
    n_trainable = sum(int(np.prod(param_shapes(config, linears)[name][0])) for name in names)
    return _made(method, batch_size, seq_len, ops.spec, n_trainable, trace)


def plan_files(
    model: Model | Config, verb: str, dtype: str | None = None, group_size: int = 32, backend: str | None = None
) -> Plan:
    """Predict the peak memory of "load" (a folder that holds `model`), "save" (as `dtype`, see `Model.save`) or "int4"
    (with this `group_size`, the dense model still in use). Of a Config: dense float32.

    Raises `UsageError` for another verb.
    """
    if verb not in FILE_PLANS:
        near = did_you_mean(str(verb), list(FILE_PLANS))
        raise UsageError(f"verb: expected one of {', '.join(FILE_PLANS)}, got {verb!r}{near}")
    given = _without_memory(model) if isinstance(model, Config) else model
    ops = get_ops(backend if backend is not None else given.backend)
    trace, config, linears = Trace(), given.config, given.linears
    trace.where = verb
    if verb == "load":
        loading(trace, config, linears)
    elif verb == "save":
        saving(trace, config, linears, dtype)
    else:
        packing(trace, config, linears, Int4(group_size), ops.name)
    return _made(verb, 0, 0, ops.spec, 0, trace)


def _made(method: str, batch_size: int, seq_len: int, spec: str, n_trainable: int, trace: Trace) -> Plan:
    return Plan(method, batch_size, seq_len, spec, n_trainable, trace.peak, trace.moment, trace.parts)


def _without_memory(config: Config) -> Model:
    """A model whose arrays all read one zero: it has names and shapes and takes no memory."""
    linears = {name: Dense() for name in linear_shapes(config)}
    zero = np.zeros((), np.float32)
    params = {name: np.broadcast_to(zero, shape) for name, (shape, _) in param_shapes(config, linears).items()}
    return Model(config, params, linears, frozenset(params))


# --- measuring --------------------------------------------------------------------------------------------------------


def reset_peak() -> bool:
    """Let the process's peak begin again at what it holds now (Linux); False where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most memory this process has held: VmHWM on Linux (since `reset_peak`), getrusage elsewhere; 0 if unknown."""
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def resident_bytes() -> int:
    """What the process holds now (VmRSS); the peak so far where the system does not say."""
    found = _status("VmRSS")
    return peak_bytes() if found is None else found


def _status(key: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
    except (OSError, StopIteration, ValueError):
        return None


def give_back() -> None:
    """Return freed memory to the system: what the C library keeps for later would hide what a block asks for anew."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Measured:
    """Filled when the block of `measure` ends: `peak` of the process, `growth` above what it held at the beginning."""

    before: int = 0
    peak: int = 0
    growth: int = 0
    exact: bool = True  # False: the system could not reset the peak, so an earlier one may hide this one


@contextlib.contextmanager
def measure() -> Iterator[Measured]:
    """Measure the peak memory of a block."""
    give_back()
    found = Measured(exact=reset_peak())
    found.before = resident_bytes()
    try:
        yield found
    finally:
        found.peak = peak_bytes()
        found.growth = max(0, found.peak - found.before)
