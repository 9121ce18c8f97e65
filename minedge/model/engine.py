"""The engine: a plan (plan.py) on real arrays, run by the C interpreter one call a step.

    engine = Engine(model, max_length=100)
    logits = engine.step([[1, 2, 3]])          # reads three tokens of one sequence, scores what follows
    logits = engine.step([[4]])                # and one more

It owns the buffers and the caches, keeps the weights' arrays alive, and checks everything before a pointer leaves: C
checks nothing. The numbers are those of `transformer.forward(..., int8=True, kv=KVCache(...))` on the C tier, bit for
bit: however the tokens are cut into steps, however many sequences run side by side, on any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import integer
from minedge.errors import UsageError
from minedge.model.kvcache import check_room
from minedge.model.plan import BLOCK, Lacks, Plan, Step, compile_plan
from minedge.model.rotary import rotary_tables
from minedge.model.shapes import param_shapes
from minedge.model.tiles import Tiles, tiles
from minedge.ops import c_ops

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["CHUNK", "Engine"]

Array = NDArray[Any]

CHUNK = 256  # rows of one call: enough to share what unpacking weights costs, few enough to stop soon
PARTS = 1 << 20  # floats for attention's partial results over a long past


class Engine:
    """A model ready to read tokens: `batch` sequences of up to `max_length` tokens each, at first empty.

    kv_dtype  "float32", "float16" or "int8": what keys and values are kept in
    lengths   tokens read so far, per sequence
    """

    def __init__(
        self, model: Model, batch: int = 1, max_length: int | None = None, kv_dtype: str = "float32",
        chunk: int = CHUNK,
    ):  # fmt: skip
        reason = self.why_not(model)
        if reason:
            raise UsageError(f"model: the engine cannot run it: {reason}")
        batch = integer("batch", batch, 1, "a number of sequences >= 1")
        config = model.config
        max_length = config.context_length if max_length is None else max_length
        check_room(config, max_length, kv_dtype)
        from minedge.ops.c_ops.attention_decode import Cache
        from minedge.ops.c_ops.native import ffi, lib

        self._ffi, self._lib = ffi, lib
        self.config, self.batch, self.max_length, self.kv_dtype = config, batch, max_length, kv_dtype
        self.lengths = [0] * batch
        self.plan: Plan = compile_plan(config, model.linears)
        self._isa = [name for name, _ in c_ops.isas()].index(model.ops.isa)
        self._rows = min(max(chunk, 1), batch * max_length)
        self._alive: list[Any] = []  # what C holds pointers to
        self.caches = Cache.layers(config.n_layer, batch, max_length, config.n_kv_head, config.head_dim, kv_dtype)
        self._arrays: dict[str, Array] = dict(model.params)
        names = [step.params for step in self.plan.steps if step.op == "int4"]
        matrices = [(self._arrays[qweight], self._arrays[scales]) for qweight, scales in names]
        self.tiles: dict[tuple[str, ...], Tiles] = dict(zip(names, tiles(matrices), strict=True))
        if config.uses_rotary:
            self._arrays["rotary.cos"], self._arrays["rotary.sin"] = rotary_tables(config)
        self.buffers: dict[str, tuple[Array, ...]] = {}
        self._pointers: dict[str, Any] = {name: self._buffer(name) for name in self.plan.buffers if name != "logits"}
        self._scratch = self._pointer(np.empty(self._rows * 2 * max(config.n_head, 1), np.float32), "float *")
        self._parts = np.empty(PARTS, np.float32)
        self._steps = self._bind()
        self._batch = ffi.new("struct me_batch *")
        self._ids = np.zeros(self._rows, np.int64)
        self._picks = np.zeros(self._rows, np.int64)
        self._groups = ffi.new("struct me_rows[]", batch)
        self._batch.tokens, self._batch.picks = (self._pointer(a, "int64_t *") for a in (self._ids, self._picks))
        self._batch.groups = self._groups
        self.seconds: Array | None = None  # per step, where `profile` asked for it

    @staticmethod
    def why_not(model: Model) -> str:
        """Why the engine cannot run this model, "" where it can. The readable model runs then."""
        if not c_ops.available():
            return f"it needs the C kernels: {c_ops.why_not()}"
        if model.ops.name != "c":
            return f"the backend is {model.ops.spec}, the engine belongs to c"
        try:
            compile_plan(model.config, model.linears)
        except Lacks as reason:
            return str(reason)
        for name, (shape, dtype) in param_shapes(model.config, model.linears).items():
            array = model.params.get(name)
            if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
                got = "nothing" if array is None else f"{array.dtype} {array.shape}"
                return f"{name}: expected {dtype} {shape}, got {got}"
        return ""

    # --- reading tokens ---------------------------------------------------------------------------------------------

    def step(self, tokens: Sequence[Sequence[int]] | Array, last: int = 1) -> Array:
        """Read the next tokens of every sequence; logits of each one's `last` tokens.

        tokens  (B, T), or a list of B lists; a sequence with no new tokens gets none and has no logits
        ->      float32 (rows, V): `last` rows a sequence that got tokens, in their order, fewer where it got fewer

        Raises `UsageError` for ids out of range or more tokens than the cache holds; nothing is read then.
        """
        if self.batch == 1 and last == 1 and len(tokens) == 1 and len(tokens[0]) == 1:
            token, past = int(tokens[0][0]), self.lengths[0]
            if 0 <= token < self.config.vocab_size and past < self.max_length:
                return self._next(token, past)  # anything else is told below what is wrong with it
        lists = [np.asarray(row, dtype=np.int64).reshape(-1) for row in tokens]
        if len(lists) != self.batch:
            raise UsageError(f"tokens: expected {self.batch} sequences, got {len(lists)}")
        if isinstance(last, bool) or not isinstance(last, int) or last < 0:
            raise UsageError(f"last: expected a number >= 0, got {last!r}")
        for slot, ids in enumerate(lists):
            if self.lengths[slot] + len(ids) > self.max_length:
                raise UsageError(
                    f"tokens: sequence {slot} holds {self.lengths[slot]} of {self.max_length}, no room for {len(ids)}"
                )
            if len(ids) and (ids.min() < 0 or ids.max() >= self.config.vocab_size):
                bad = ids[(ids < 0) | (ids >= self.config.vocab_size)][0]
                raise UsageError(f"tokens: expected ids in 0..{self.config.vocab_size - 1} (vocab_size), got {bad}")
        out = np.empty((sum(min(last, len(ids)) for ids in lists), self.config.vocab_size), np.float32)
        done = 0
        for pieces in _cut([len(ids) for ids in lists], self._rows):
            done += self._run(lists, pieces, last, out[done:])
        return out

    def _next(self, token: int, past: int) -> Array:
        """`step` of one token of the only sequence, checked. Between two tokens of a text the weights have pushed all
        that Python last used out of the caches, so each line here counts ten times what it does in a loop of its own.
        """
        batch, out = self._batch, np.empty((1, self.config.vocab_size), np.float32)
        self._ids[0], self._picks[0] = token, 0
        self._groups[0] = (0, 1, past, 0)
        batch.N = batch.n_groups = batch.n_picks = 1
        self._write_to(out)
        self._call(0, len(self.plan.steps))
        self.lengths[0] = past + 1
        return out

    def _run(
        self, lists: list[Array], pieces: list[tuple[int, int, int]], last: int, out: Array, which: slice | None = None
    ) -> int:
        """One call: for each piece (slot, start, stop) of `lists`. Returns how many rows of `out` it filled."""
        batch, first = self._batch, 0
        picks: list[int] = []
        for i, (slot, start, stop) in enumerate(pieces):
            self._groups[i] = (first, stop - start, self.lengths[slot], slot)
            self._ids[first : first + stop - start] = lists[slot][start:stop]
            wanted = max(start, len(lists[slot]) - last)
            picks += range(first + wanted - start, first + stop - start)
            first += stop - start
        self._picks[: len(picks)] = picks
        batch.N, batch.n_groups, batch.n_picks = first, len(pieces), len(picks)
        first, end = 0, len(self.plan.steps)
        if picks:
            self._write_to(out)
        else:
            end = self._pick  # nobody asks: the rest would make logits
        if which is not None:
            first, end = which.start, which.stop
        self._call(first, end)
        for slot, start, stop in pieces:
            self.lengths[slot] += stop - start
        return len(picks)

    def _write_to(self, logits: Array) -> None:
        pointer = self._ffi.from_buffer("float[]", logits)
        for i in self._logits:
            self._steps[i].out = pointer

    def _call(self, first: int, end: int) -> None:
        if self._lib.me_engine_run(self._isa, self._steps + first, end - first, self._batch):
            raise MemoryError("engine: no memory for a matrix product's packed operands")

    def trace(self, tokens: Array) -> list[tuple[Step, tuple[Array, ...]]]:
        """Read the next tokens (1, T) of the only sequence one step at a time: every step with a copy of what it wrote
        (codes come as codes and scales; "store" as all the cache holds, float32 k and v (S, KV, D)).
        """
        ids = np.ascontiguousarray(tokens, np.int64).reshape(-1)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        found: list[tuple[Step, tuple[Array, ...]]] = []
        past = self.lengths[0]
        for i, step in enumerate(self.plan.steps):
            self.lengths[0] = past
            self._run([ids], [(0, 0, len(ids))], len(ids), out, slice(i, i + 1))
            if step.op == "store":
                arrays: tuple[Array, ...] = self.caches[step.layer].unpacked(0, past + len(ids))
            elif step.out == "logits":
                arrays = (out,)
            else:
                wide = self.plan.buffers[step.out].width
                arrays = tuple(
                    a.reshape(-1)[: len(ids) * step.width * a.shape[1] // wide].copy() for a in self.buffers[step.out]
                )
            found.append((step, arrays))
        return found

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget what a sequence holds from position `length` on."""
        self.lengths[slot] = min(self.lengths[slot], length)

    def profile(self) -> dict[str, float]:
        """Seconds per op since the last call; the first call starts the clock."""
        totals: dict[str, float] = {}
        if self.seconds is not None:
            for step, seconds in zip(self.plan.steps, self.seconds, strict=True):
                totals[step.op] = totals.get(step.op, 0.0) + float(seconds)
        self.seconds = np.zeros(len(self.plan.steps))
        self._batch.seconds = self._ffi.from_buffer("double[]", self.seconds)
        return totals

    @property
    def nbytes(self) -> int:
        """Bytes of caches, buffers and tiles, which the model's engines share; the weights' arrays are the model's
        own, and what of them lies in a file needs no memory beside its tiles.
        """
        buffers = sum(matrix.nbytes for matrix in {id(t): t for t in self.tiles.values()}.values())
        buffers += sum(a.nbytes for arrays in self.buffers.values() for a in arrays)
        return buffers + self._parts.nbytes + sum(cache.nbytes for cache in self.caches)

    # --- binding ----------------------------------------------------------------------------------------------------

    def _pointer(self, array: Array, ctype: str = "void *") -> Any:
        """A pointer to a contiguous, aligned array, which stays alive with the engine."""
        view = self._ffi.from_buffer(array)
        self._alive.append((array, view))
        return self._ffi.cast(ctype, view)

    def _buffer(self, name: str) -> Any:
        rows, buffer = self._rows, self.plan.buffers[name]
        if buffer.dtype == "float32":
            arrays: tuple[Array, ...] = (np.empty((rows, buffer.width), np.float32),)
            self.buffers[name] = arrays
            return self._pointer(arrays[0])
        blocks = buffer.width // BLOCK
        arrays = (
            np.empty((rows, buffer.width), np.int8), np.empty((rows, blocks), np.float32),
            np.empty((rows, blocks), np.int32),
        )  # fmt: skip
        self.buffers[name] = arrays
        tiles = np.empty(rows // 8 * blocks * 320 + 64, np.uint8)  # rows in eights, turned over: struct me_x8
        self._alive.append(tiles)
        start = -tiles.__array_interface__["data"][0] % 64
        codes = self._ffi.new("struct me_codes *")
        codes[0] = (
            *(self._pointer(a, t) for a, t in zip(arrays, ("int8_t *", "float *", "int32_t *"), strict=True)),
            self._pointer(tiles[start:]),
        )
        self._alive.append(codes)
        return codes

    def _bind(self) -> Any:
        """The plan as an array of struct me_step."""
        steps = self._ffi.new("struct me_step[]", len(self.plan.steps))
        ops = [step.op for step in self.plan.steps]
        self._pick = ops.index("pick")
        self._logits = [i for i, step in enumerate(self.plan.steps) if step.out == "logits"]
        params: dict[str, Any] = {}
        for i, (c, step) in enumerate(zip(steps, self.plan.steps, strict=True)):
            c.op = getattr(self._lib, f"ME_OP_{step.op.upper()}")
            c.picked = i > self._pick
            c.n, c.m, c.group, c.value, c.scratch = step.n, step.m, step.group, step.value, self._scratch
            if step.op == "attention":
                c.scratch, c.size = self._ffi.cast("float *", self._ffi.from_buffer(self._parts)), PARTS
            for side, name in zip(("x", "y"), step.inputs, strict=False):
                setattr(c, side, self._named(name, step.layer))
            if step.op == "int4":
                c.w, c.w2 = (self._pointer(a) for a in self.tiles[step.params])
            for side, name in zip(("w", "w2", "w3"), () if step.op == "int4" else step.params, strict=False):
                if name not in params:
                    array = self._arrays[name]
                    if not (array.flags.c_contiguous and array.flags.aligned):
                        array = np.array(array, order="C")  # a mapped file may put it at any byte
                    params[name] = self._pointer(array)
                setattr(c, side, params[name])
            if step.out != "logits":
                c.out = self._named(step.out, step.layer)
        return steps

    def _named(self, name: str, layer: int) -> Any:
        return self.caches[layer].pointer if name == "cache" else self._pointers[name]


def _cut(lengths: list[int], rows: int) -> list[list[tuple[int, int, int]]]:
    """Pieces (sequence, start, stop) of sequences of these lengths, in order, `rows` tokens to a call."""
    calls: list[list[tuple[int, int, int]]] = []
    free = 0
    for slot, length in enumerate(lengths):
        start = 0
        while start < length:
            if free == 0:
                calls.append([])
                free = rows
            stop = min(length, start + free)
            calls[-1].append((slot, start, stop))
            free -= stop - start
            start = stop
    return calls
