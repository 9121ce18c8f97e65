r"""How good is a model? Loss and bits per byte on text, accuracy and label-word loss on a task, each with its
standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.data.packing import PackedData
from minedge.data.task import Example, Task, candidates
from minedge.errors import UsageError
from minedge.model import transformer
from minedge.model.model import Model

__all__ = ["Paired", "TaskResult", "TextResult", "evaluate_task", "evaluate_text", "paired"]

BATCH = 16


@dataclass(frozen=True)
class TextResult:
    """Loss in nats a token, its standard error over rows (NaN for a single one), perplexity, and bits a UTF-8 byte
    (comparable across tokenizers).
    """

    loss: float
    loss_se: float
    n_tokens: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.n_tokens / math.log(2) / self.n_bytes if self.n_bytes else math.nan


def evaluate_text(model: Model, packed: PackedData, batch_size: int = BATCH, max_batches: int = 0) -> TextResult:
    """Mean cross-entropy over every token of `packed`, each predicted once. `max_batches` 0 means all."""
    sums: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    for tokens, mask in packed.eval_batches(batch_size):
        total, weight = model.row_losses(tokens, mask)
        sums.append(total)
        weights.append(weight)
        if len(sums) == max_batches:
            break
    if not sums:
        raise UsageError("data: there is nothing to evaluate")
    s, w = np.concatenate(sums), np.concatenate(weights)
    s, w = s[w > 0], w[w > 0]
    loss, n = float(s.sum() / w.sum()), len(w)
    # a ratio estimate: the spread of each row around the common mean, rows taken as independent
    se = math.sqrt(n / (n - 1) * ((s - loss * w) ** 2).sum()) / float(w.sum()) if n > 1 else math.nan
    share = float(w.sum()) / max(1, getattr(packed, "n_tokens", 0)) if max_batches else 1.0
    n_bytes = round(getattr(packed, "n_bytes", 0) * min(1.0, share))
    return TextResult(loss, se, round(float(w.sum())), n_bytes)


@dataclass(frozen=True)
class TaskResult:
    """Per example: was the likeliest label word the true one, the cross-entropy of the true word in nats, and the index
    of the likeliest one.
    """

    correct: NDArray[np.bool_]
    label_losses: NDArray[np.float64]
    said: NDArray[np.int64] | None = None

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def accuracy_se(self) -> float:
        return float(self.correct.std(ddof=1) / math.sqrt(self.n)) if self.n > 1 else math.nan

    @property
    def label_loss(self) -> float:
        return float(self.label_losses.mean())

    @property
    def label_loss_se(self) -> float:
        return float(self.label_losses.std(ddof=1) / math.sqrt(self.n)) if self.n > 1 else math.nan


def evaluate_task(
    model: Model, task: Task, examples: tuple[Example, ...], max_len: int, batch_size: int = 2 * BATCH
) -> TaskResult:
    """Score every example by the likelihood of its label words (arXiv:2305.17333, App. E.2: no sampling, no parsing).

    Examples are taken in order of length, so that a batch pads little; results come back in the order given.
    """
    if not examples:
        raise UsageError(f"task {task.name!r}: there are no examples to evaluate")
    if model.tokenizer is None:
        raise UsageError("model: it has no tokenizer, which a task of texts needs")
    order = np.argsort([len(e.text) for e in examples], kind="stable")
    correct = np.zeros(len(examples), bool)
    losses = np.zeros(len(examples))
    said = np.zeros(len(examples), np.int64)
    ops = model.ops
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = candidates(task, model.tokenizer, [examples[i] for i in part], max_len)
        inputs = model.check_tokens(batch.tokens)
        if batch.label_ids is None or batch.last is None:
            scores = batch.scores(model.logits(inputs))  # (B, K) log-probabilities
            losses[part] = -scores[np.arange(len(part)), batch.gold]
        else:  # one-token label words: only one position a row needs logits
            x, _ = transformer.forward_hidden(model.config, model.params, model.linears, inputs, ops, keep_cache=False)
            last = np.ascontiguousarray(x[np.arange(len(part)), batch.last])  # (B, C)
            logits, _ = transformer.head_forward(model.config, model.params, model.linears, last, ops)
            wide = logits.astype(np.float64)
            top = wide.max(axis=-1)
            lse = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
            scores = wide[:, batch.label_ids] - lse[:, None]
            losses[part] = -scores[np.arange(len(part)), batch.gold]
        said[part] = scores.argmax(axis=-1)
        correct[part] = said[part] == batch.gold
    return TaskResult(correct, losses, said)


@dataclass(frozen=True)
class Paired:
    """Mean of the per-example differences between two models, and its standard error."""

    difference: float
    se: float

    @property
    def in_se(self) -> float:
        """The difference counted in standard errors; 0 where both are 0."""
        if self.se == 0:
            return math.copysign(math.inf, self.difference) if self.difference else 0.0
        return self.difference / self.se


def paired(after: Any, before: Any) -> Paired:
    """Difference `after - before` of two arrays over the same examples; pairing removes what the examples have in
    common.
    """
    d = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise UsageError(f"paired: expected two equally long 1-D arrays of at least 2, got shape {d.shape}")
    return Paired(float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d))))
