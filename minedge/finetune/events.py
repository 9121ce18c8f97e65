"""What a run tells its caller, and how it hears that it should stop."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Event", "Signals"]


@dataclass(frozen=True)
class Event:
    """What `on_event` is told. `kind` says which fields hold something:

    start     step, iters, n_trainable            resumed    step, path           warning   message
    step      loss, lr, grad_norm, tokens_per_s, eta (seconds)                    eval      valid_loss, best
    saved     path                                stopped    message (early stop) done      step, best, path, seconds
    """

    kind: str
    step: int = 0
    iters: int = 0
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    eta: float | None = None
    valid_loss: float | None = None
    best: dict[str, Any] | None = None  # {"step", "loss"} of the best validation loss so far
    n_trainable: int | None = None
    path: str | None = None
    seconds: float | None = None
    message: str | None = None


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a note that the loop reads between steps; a second one acts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: Any) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
