"""`Model`: a config, named arrays, a kind per matrix, a tokenizer and a backend. A value, not a process: nothing in
it changes.

Arrays are read-only and shared freely between models. `trainable()` gives a model that owns writable copies of just
the arrays it trains, which is what optimizers ask for; everything else returns a new model and leaves the old one as
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.errors import UsageError
from minedge.model import generate as _generate
from minedge.model import speculative, transformer
from minedge.model.both_sides import both_losses
from minedge.model.head_loss import head_loss, head_loss_and_grads, head_row_losses
from minedge.model.linears import Dense, LinearKind
from minedge.model.noise import Noise
from minedge.model.session import Session
from minedge.ops import Ops
from minedge.ops import get as get_ops

__all__ = ["Model", "read_only"]

Array = NDArray[Any]
Self = TypeVar("Self", bound="Model")


def read_only(array: Array) -> Array:
    """The array, or a view of it that refuses writes."""
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        return array  # the same object: what was made from it (tiles.py) is found again
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True)
class Model:
    """A decoder that can be evaluated, differentiated and sampled.

    config           sizes and options
    params           name -> array, Hugging Face names, weights (out, in)
    linears          module name -> linear kind
    trainable_names  what training changes
    tokenizer        encode / decode, or None
    backend          "numpy", "numba", "c", ... or None for the default
    """

    config: Config
    params: Mapping[str, Array]
    linears: Mapping[str, LinearKind]
    trainable_names: frozenset[str] = frozenset()
    tokenizer: Any = None
    backend: str | None = None
    name: str = field(default="model", compare=False)  # how messages and files call it

    @property
    def ops(self) -> Ops:
        return get_ops(self.backend)

    # --- values -----------------------------------------------------------------------------------------------------

    def logits(self, tokens: Array) -> Array:
        """tokens int (B, T) -> float32 (B, T, V): row t scores what follows token t."""
        tokens = self.check_tokens(tokens)
        out, _ = transformer.forward(self.config, self.params, self.linears, tokens, self.ops, keep_cache=False)
        return out

    def loss(self, tokens: Array, loss_mask: Array | None = None, noise: Noise | None = None) -> float:
        """Mean cross-entropy in nats of predicting tokens[:, t] from tokens[:, :t].

        tokens (B, T). loss_mask (B, T): mask[:, t] weighs the prediction of token t; column 0 is ignored; None weighs
        all alike.
        """
        total, weight = self.loss_sum(tokens, loss_mask, noise)
        return total / weight

    def loss_sum(
        self, tokens: Array, loss_mask: Array | None = None, noise: Noise | None = None
    ) -> tuple[float, float]:
        """(sum of mask * cross-entropy, sum of mask): adds up exactly over micro-batches. Raises where the mask is
        all zero.
        """
        inputs, targets, weights = self._shifted(tokens, loss_mask)
        model = (self.config, self.params, self.linears)
        x, _ = transformer.forward_hidden(*model, inputs, self.ops, noise, keep_cache=False)
        loss = head_loss(*model, self.ops, x.reshape(len(targets), -1), targets, weights, noise)
        return loss, float(weights.sum(dtype=np.float64))

    def row_losses(self, tokens: Array, loss_mask: Array | None = None) -> tuple[Array, Array]:
        """`loss_sum` of each row, float64: (B,) sums of mask * cross-entropy, (B,) sums of mask."""
        inputs, targets, weights = self._shifted(tokens, loss_mask)
        model = (self.config, self.params, self.linears)
        x, _ = transformer.forward_hidden(*model, inputs, self.ops, keep_cache=False)
        losses = head_row_losses(*model, self.ops, x.reshape(len(targets), -1), targets, weights, inputs.shape[1])
        return losses, weights.reshape(inputs.shape).sum(axis=1, dtype=np.float64)

    def loss_sums(
        self, tokens: Array, loss_mask: Array | None, noise: Noise, int8: bool = False
    ) -> tuple[float, float, float]:
        """`loss_sum` at w + eps z and at w - eps z, bit for bit, and the sum of mask; z of each tensor is made once.
        `int8` takes int4 and int8 matrices' products over activations rounded to int8.
        """
        inputs, targets, weights = self._shifted(tokens, loss_mask)
        model = (self.config, self.params, self.linears)
        above, below = both_losses(*model, inputs, targets, weights, self.ops, noise, int8)
        return above, below, float(weights.sum(dtype=np.float64))

    def token_losses(self, tokens: Array) -> Array:
        """Cross-entropy in nats of each predicted token, float64 (B, T-1): entry [b, t] is that of tokens[b, t + 1]."""
        inputs, targets, _ = self._shifted(tokens, None)
        logits = self.logits(inputs).reshape(len(targets), -1).astype(np.float64)
        top = logits.max(axis=-1)
        lse = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
        return (lse - logits[np.arange(len(targets)), targets]).reshape(inputs.shape)

    def loss_and_grads(
        self,
        tokens: Array,
        loss_mask: Array | None = None,
        normalizer: float | None = None,
        checkpoint: bool = False,
    ) -> tuple[float, dict[str, Array]]:
        """`loss`, and its gradient for every trainable name. `normalizer` replaces the sum of the mask as divisor;
        `checkpoint` keeps only the inputs of half-layers for backward: the same bits in less memory and more time.

        With one normalizer for all micro-batches their losses and gradients add up to those of the whole batch.
        """
        inputs, targets, weights = self._shifted(tokens, loss_mask)
        if normalizer is None:
            normalizer = float(weights.sum(dtype=np.float64))
        weights = (weights / normalizer).astype(weights.dtype)
        model, ops, wanted = (self.config, self.params, self.linears), self.ops, self.trainable_names
        x, cache = transformer.forward_hidden(*model, inputs, ops, checkpoint=checkpoint)
        assert cache is not None
        x = x.reshape(len(targets), -1)
        loss, dx, grads = head_loss_and_grads(*model, ops, x, targets, weights, wanted)
        del x
        dx = dx.reshape(*inputs.shape, -1)
        more = transformer.backward_hidden(dx, cache, self.config, self.linears, ops, wanted)
        return loss, transformer.add_grads_(grads, more)

    def _shifted(self, tokens: Array, loss_mask: Array | None) -> tuple[Array, Array, Array]:
        """-> inputs (B, T-1), targets (B*(T-1),), weights (B*(T-1),)."""
        tokens = self.check_tokens(tokens, extra=1)
        if tokens.shape[1] < 2:
            raise UsageError(f"tokens: a loss needs at least 2 tokens a row, got {tokens.shape[1]}")
        wide = next(iter(self.params.values())).dtype == np.float64
        dtype = np.float64 if wide else np.float32
        if loss_mask is None:
            weights = np.ones(tokens[:, 1:].size, dtype)
        else:
            mask = np.asarray(loss_mask)
            if mask.shape != tokens.shape:
                raise UsageError(f"loss_mask: expected the shape of tokens {tokens.shape}, got {mask.shape}")
            weights = np.ascontiguousarray(mask[:, 1:]).ravel().astype(dtype)
            if not np.isfinite(weights).all() or not weights.any():
                raise UsageError("loss_mask: expected finite weights, at least one of them not zero after column 0")
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]).ravel(), weights

    def check_tokens(self, tokens: Array, extra: int = 0) -> Array:
        """tokens as int64 (B, T); raises `UsageError` for a wrong type or shape, ids out of range, or more than the
        context holds.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.size == 0:
            raise UsageError(f"tokens: expected a non-empty (B, T) array, got shape {tokens.shape}")
        if not np.issubdtype(tokens.dtype, np.integer):
            raise UsageError(f"tokens: expected integers, got {tokens.dtype}")
        limit = self.config.context_length + extra
        if tokens.shape[1] > limit:
            raise UsageError(
                f"tokens: {tokens.shape[1]} a row exceed the model's context of {self.config.context_length}; "
                "shorten or split the text"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise UsageError(f"tokens: expected ids in 0..{self.config.vocab_size - 1} (vocab_size), got {bad}")
        return np.ascontiguousarray(tokens, dtype=np.int64)

    # --- text -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | list[str],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | list[str] | None = None,
        seed: int = 0,
        stream: bool = False,
        draft_model: Model | None = None,
        n_draft: int = 4,
        draft_counts: speculative.DraftCounts | None = None,
        kv_dtype: str | None = None,
        session: Session | None = None,
    ) -> str | list[str] | Iterator[str]:
        """Continue `prompt`; the continuation as text, or its pieces as they come with `stream`. Ends at EOS or a
        stop string. A list of prompts is continued side by side, to a list of the texts each would get alone.

        temperature 0 takes the likeliest token; top_k, top_p, min_p cut the distribution in that order before sampling.
        With a draft_model of the same vocabulary, `n_draft` tokens at a time are guessed by it and checked in one pass:
        the same greedy text, or draws from the same distribution, sooner if the draft is much faster and often right
        (minedge/model/speculative.py). draft_counts, if given, is told how often it was.

        kv_dtype "float32", "float16" or "int8": what keys and values of the past are kept in; None takes float16 for
        models of integer products and float32 for others. A `Session` of this model spares what it has read before.
        """
        _generate.check_prompt(prompt)
        settings = _generate.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        drafted: Callable[[list[int]], Iterator[int]] | None = None
        if draft_model is not None:
            speculative.check_draft(self, draft_model, n_draft)
            if kv_dtype is not None or session is not None:
                raise UsageError("draft_model: kv_dtype and session have no effect with it; leave them out")
            drafted = partial(
                speculative.generate_ids_speculative, self, draft_model, max_tokens=max_tokens, n_draft=n_draft,
                s=settings, counts=draft_counts,
            )  # fmt: skip
        if isinstance(prompt, str):
            pieces = _generate.generate_text(self, prompt, max_tokens, settings, stop, drafted, kv_dtype, session)
            return pieces if stream else "".join(pieces)
        if stream or session is not None:
            raise UsageError("prompt: expected one text, not a list, with stream or session")
        if drafted is None:
            return _generate.generate_texts(self, prompt, max_tokens, settings, stop, kv_dtype)
        return ["".join(_generate.generate_text(self, one, max_tokens, settings, stop, drafted)) for one in prompt]

    # --- other models -----------------------------------------------------------------------------------------------

    def with_backend(self: Self, backend: str | None) -> Self:
        """The same model on another backend; arrays are shared."""
        get_ops(backend)
        return replace(self, backend=backend)

    def with_params(
        self: Self,
        params: Mapping[str, Array],
        linears: Mapping[str, LinearKind] | None = None,
        trainable_names: frozenset[str] | None = None,
    ) -> Self:
        """A model with these arrays (made read-only), and other kinds or trainable names where given."""
        frozen = {name: read_only(array) for name, array in params.items()}
        names = self.trainable_names if trainable_names is None else trainable_names
        return replace(
            self,
            params=frozen,
            linears=dict(self.linears if linears is None else linears),
            trainable_names=names & frozenset(frozen),
        )

    def trainable(self: Self, names: frozenset[str] | None = None) -> Self:
        """A model that owns writable copies of its trainable arrays (or of `names`); all others stay shared and
        read-only.
        """
        names = self.trainable_names if names is None else frozenset(names)
        unknown = sorted(names - set(self.params))
        if unknown:
            raise UsageError(f"names: expected names of this model's arrays, got {unknown[0]!r}")
        fixed = sorted(n for n in names if self.params[n].dtype.kind != "f")
        if fixed:
            raise UsageError(f"names: {fixed[0]!r} holds {self.params[fixed[0]].dtype} codes, which cannot be trained")
        params = {name: np.array(a) if name in names else read_only(a) for name, a in self.params.items()}
        return replace(self, params=params, trainable_names=names)

    def freeze(self: Self) -> Self:
        """The same arrays, read-only: how a trained model is handed on."""
        return self.with_params(self.params)

    def require_trainable(self) -> None:
        """Raise `UsageError` unless this model came from `trainable()`: optimizers change arrays in place."""
        if not self.trainable_names:
            raise UsageError(
                "model: it has no trainable arrays; add an adapter (minedge.lora.add) or name some in trainable()"
            )
        if not all(self.params[name].flags.writeable for name in self.trainable_names):
            raise UsageError("model: its arrays are read-only; pass model.trainable(), which owns copies to change")

    # --- facts ------------------------------------------------------------------------------------------------------

    def nbytes(self) -> dict[str, int]:
        """Resident bytes from the real buffers: "embedding", "linear", "head", "other", "total", and "kind:<name>"
        per linear kind.
        """
        embed, head = self.config.arch.embed, self.config.arch.head
        out = {"embedding": 0, "linear": 0, "head": 0, "other": 0, "total": 0}
        shapes = transformer.linear_shapes(self.config)
        owner = {key: name for name, shape in shapes.items() for key in self.linears[name].shapes(name, *shape)}
        for key, array in self.params.items():
            name = owner.get(key)
            part = {None: "other", embed: "embedding", head: "head"}.get(name, "linear")
            out[part] += array.nbytes
            out["total"] += array.nbytes
            if name is not None:
                kind = f"kind:{self.linears[name].kind}"
                out[kind] = out.get(kind, 0) + array.nbytes
        return out

    def n_params(self, trainable: bool = False) -> int:
        """Number of weights (of the dense shapes, whatever the packing), or of the trainable ones."""
        if trainable:
            return sum(self.params[name].size for name in self.trainable_names)
        dense = {name: Dense() for name in transformer.linear_shapes(self.config)}
        return sum(int(np.prod(shape)) for shape, _ in transformer.param_shapes(self.config, dense).values())

    def __repr__(self) -> str:
        kinds = ", ".join(sorted({kind.kind for kind in self.linears.values()}))
        return (
            f"Model({self.name!r}, {self.config.architecture}, {self.n_params():,} parameters, "
            f"{len(self.trainable_names)} trainable arrays, kinds: {kinds}, backend: {self.backend or 'default'})"
        )
