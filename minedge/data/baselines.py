r"""What a classifier without a language model reaches: the majority class, and logistic regression on a bag of words.

The words x (n,F) of a text are weighted log(1 + count) * idf and scaled to length one. With K labels

    p = softmax(x W + b),   loss = mean(-log p[label]) + l2/2 * ||W||^2,   dW = x^T (p - onehot) / n + l2 * W

is convex, so plain gradient descent with Nesterov's momentum from zero finds the same answer on every machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minedge.data.task import Example, Task

__all__ = ["bag_of_words_accuracy", "majority_accuracy"]

_WORD = re.compile(r"[A-Za-z_]{2,}")


def majority_accuracy(task: Task) -> float:
    """The best that one and the same answer can reach: the share of the commonest label among the test examples."""
    labels = [e.label for e in task.examples("test")]
    return max(Counter(labels).values()) / len(labels)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class _Sparse:
    """A matrix (n_rows, n_columns) as its nonzero entries."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def times(self, dense: np.ndarray) -> np.ndarray:
        """self @ dense, a column of dense at a time."""
        return np.stack([np.bincount(self.rows, self.values * d[self.columns], self.shape[0]) for d in dense.T], axis=1)

    def transposed_times(self, dense: np.ndarray) -> np.ndarray:
        """self.T @ dense."""
        return np.stack([np.bincount(self.columns, self.values * d[self.rows], self.shape[1]) for d in dense.T], axis=1)


def _features(examples: Sequence[Example], index: dict[str, int], idf: np.ndarray) -> _Sparse:
    entries = [
        (i, index[word], np.log1p(count) * idf[index[word]])
        for i, example in enumerate(examples)
        for word, count in sorted(Counter(_words(example.text)).items())
        if word in index
    ]
    rows = np.array([e[0] for e in entries], np.int64)
    values = np.array([e[2] for e in entries], np.float64)
    norms = np.sqrt(np.bincount(rows, values**2, len(examples)))
    return _Sparse(rows, np.array([e[1] for e in entries], np.int64), values / norms[rows], (len(examples), len(index)))


def _fit(x: _Sparse, labels: np.ndarray, n_labels: int, l2: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    onehot = np.eye(n_labels)[labels]
    W, b = np.zeros((x.shape[1], n_labels)), np.zeros(n_labels)
    step_W, step_b = np.zeros_like(W), np.zeros_like(b)
    # Rows have length 1 and the softmax's curvature is at most 1/2, so 1 / (1/2 + 1/2 + l2) is a safe step.
    lr, momentum = 1.0 / (1.0 + l2), 0.95
    for _ in range(steps):
        ahead = W + momentum * step_W
        logits = x.times(ahead) + b + momentum * step_b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        dlogits = (p - onehot) / len(labels)
        step_W = momentum * step_W - lr * (x.transposed_times(dlogits) + l2 * ahead)
        step_b = momentum * step_b - lr * dlogits.sum(0)
        W, b = W + step_W, b + step_b
    return W, b


def bag_of_words_accuracy(task: Task, l2: Sequence[float] = (1e-4, 3e-4, 1e-3), steps: int = 200) -> float:
    """Test accuracy of multinomial logistic regression on words; `l2` is chosen on the validation part."""
    parts = {part: task.examples(part) for part in ("train", "valid", "test")}
    counts = Counter(word for e in parts["train"] for word in set(_words(e.text)))
    index = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n > 1))}
    idf = np.array([np.log(len(parts["train"]) / counts[word]) for word in index])
    x = {part: _features(examples, index, idf) for part, examples in parts.items()}
    y = {part: np.array([e.label for e in examples], np.int64) for part, examples in parts.items()}

    choice = "valid" if parts["valid"] else "train"
    best = (-1.0, 0.0)
    for strength in l2:
        W, b = _fit(x["train"], y["train"], len(task.labels), strength, steps)
        accuracy = {part: float(np.mean((x[part].times(W) + b).argmax(1) == y[part])) for part in (choice, "test")}
        best = max(best, (accuracy[choice], accuracy["test"]), key=lambda pair: pair[0])
    return best[1]
