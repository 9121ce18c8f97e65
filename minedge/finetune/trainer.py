"""The training loop: `train(model, data, "full" | "lora" | "mezo", ...)` gives a new model; the old stays as it was.

    tuned = minedge.train(model, data, "lora", iters=300, out="runs/first", on_event=print)

A run that is stopped or killed at any moment goes on with `resume="auto"` and ends with the same bits as one that was
not, as long as backend, build and threads are the same; where they differ it says so. This is possible because batches,
adapters and perturbations are pure functions of (seed, step), and everything else that changes is in the checkpoint.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minedge.errors import DivergedError, Interrupted, MinedgeFormatError, UsageError
from minedge.finetune.evaluate import evaluate_text
from minedge.finetune.events import Event, Signals
from minedge.finetune.heap import keep_freed_memory
from minedge.finetune.methods import make_method, where_not_finite
from minedge.finetune.prepare import packed_parts, start_model, trained_adapter
from minedge.finetune.run import RunFolder, differences, environment
from minedge.finetune.train_config import TrainConfig
from minedge.io import checkpoint
from minedge.model.hashes import weights_hash

__all__ = ["Event", "TrainConfig", "train"]

_STATE_VERSION = 1
_FIXED = ("method", "lora")  # settings without which a checkpoint means nothing


def train(
    model: Any,
    data: Any,
    method: str = "full",
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    config: TrainConfig | None = None,
    **options: Any,
) -> Any:
    """Train a copy of `model` on `data` and return it in the state with the best validation loss (else the last).

    data      what `minedge.data.loaders.load_data` opens ("stdlib", "stdlib-task", a file, a folder), or an object with
              splits `train` and (may be None) `valid`, or a pair of them; a split has `pack(tokenizer, seq_len)`, or is
              packed already (minedge/data/packing.py)
    method    "full": AdamW on the model's trainable arrays; "lora": on an adapter, added if there is none;
              "mezo": two forward passes a step and no gradients, on the adapter or else the trainable arrays
    out       folder for checkpoints, metrics.jsonl, loss.svg and the result; None keeps nothing
    resume    "auto": go on from the newest checkpoint in `out`, or start where there is none; or a run, or a checkpoint
    on_event  called with an `Event` at every step; raising KeyboardInterrupt in it stops the run like Ctrl-C
    options   see `TrainConfig`

    Raises `UsageError` for settings, `DivergedError` (naming step and layer; earlier checkpoints stay), `Interrupted`
    after Ctrl-C or SIGTERM, once the step in progress is done and saved.
    """
    settings = TrainConfig.of({"method": method, **options}) if config is None else config
    with RunFolder.open(out, resume) as folder, Signals() as signals, keep_freed_memory():
        return _Trainer(model, data, settings, folder, on_event, signals).run(resume)


class _Trainer:
    """One run: what stays the same during it, and (below the blank line) what a checkpoint has to hold."""

    def __init__(self, model: Any, data: Any, config: TrainConfig, folder: RunFolder, on_event: Any, signals: Signals):
        config = config.for_model(model)
        self.config, self.folder, self.on_event, self.signals = config, folder, on_event, signals
        if config.seq_len - 1 > model.config.context_length:  # the last token of a row is only predicted
            longest = model.config.context_length + 1
            raise UsageError(f"seq_len: expected at most {longest} for this model's context, got {config.seq_len}")
        self.train_data, self.valid_data, self.data_info = packed_parts(data, model.tokenizer, config.seq_len)
        self.start_model = start_model(model, config)  # where the run starts from; shares its arrays with `model`
        self.model = self.start_model.trainable()  # what is trained
        self.method = make_method(self.model, config)
        self.names = sorted(self.model.trainable_names)
        self.base_sha256 = weights_hash(self.start_model.params) if folder.path else ""
        self.environment = environment(self.model.ops)
        self.began = time.monotonic()
        self.kept: tuple[int, dict[str, np.ndarray]] | None = (
            None  # copy of the best weights where nothing goes to disk
        )

        self.step = 0
        self.best: dict[str, Any] | None = None  # {"step", "loss"}
        self.bad_evals = 0
        self.stopped = False
        self.tokens = 0
        self.seconds = 0.0  # of earlier processes

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, resume: Any) -> Any:
        c = self.config
        found = self.folder.find(resume)
        if found is not None:
            self._load(found)
        self.folder.begin(self._header(), self.step if found is not None else -1)
        self.emit("start", n_trainable=sum(self.model.params[n].size for n in self.names))
        if found is not None:
            self.emit("resumed", path=str(found))
        elif self.valid_data is not None and c.eval_every:
            self._evaluate()  # the model as it came is the first candidate
        first, start = self.step, time.monotonic()
        saved_at = self.step if found is not None else -1
        while self.step < c.iters and not self.stopped:
            self._check_interrupt(saved_at)
            self._step(first, start)
            last = self.step == c.iters
            better = False
            if self.valid_data is not None and c.eval_every and (last or self.step % c.eval_every == 0):
                better = self._evaluate()
            if last or better or self.stopped or (c.save_every and self.step % c.save_every == 0):
                self._save()
                saved_at = self.step
        return self._finish()

    def _step(self, first: int, start: float) -> None:
        c, index = self.config, self.step
        begun = time.monotonic()
        batches = [self.train_data.batch(index * c.grad_accum + j, c.batch_size, c.seed) for j in range(c.grad_accum)]
        try:
            with np.errstate(all="ignore"):  # what is not finite is an error below, not a warning
                loss, norm = self.method.step(index, batches)
        except DivergedError as error:
            raise self._diverged(index, error) from None
        self.step += 1
        now, tokens = time.monotonic(), sum(rows.shape[0] * (rows.shape[1] - 1) for rows, _ in batches)
        self.tokens += tokens
        values = {
            "loss": loss,
            "lr": self.method.rate(index),
            "grad_norm": norm,
            "tokens_per_s": tokens / max(now - begun, 1e-9),
        }
        self.folder.record(
            step=self.step, **values, tokens=self.tokens, seconds=round(self.seconds + now - self.began, 3)
        )
        eta = (now - start) / (self.step - first) * (c.iters - self.step)
        self.emit("step", **values, eta=eta)

    def _evaluate(self) -> bool:
        """Measure validation loss; True where it is the best yet. Sets `stopped` when patience ends."""
        c = self.config
        with np.errstate(all="ignore"):
            loss = evaluate_text(self.model, self.valid_data, c.batch_size, c.eval_batches).loss
        self.folder.record(step=self.step, valid_loss=loss)
        if not math.isfinite(loss):
            where = where_not_finite(self.model, itertools.islice(self.valid_data.eval_batches(c.batch_size), 8))
            raise self._diverged(self.step, DivergedError(f"the validation loss is {loss}; not finite first: {where}"))
        better = self.best is None or loss < self.best["loss"]
        if better:
            self.best, self.bad_evals = {"step": self.step, "loss": loss}, 0
            if self.folder.path is None and self.step:
                self.kept = self.step, {name: self.model.params[name].copy() for name in self.names}
        else:
            self.bad_evals += 1
            self.stopped = bool(c.patience) and self.bad_evals >= c.patience
        self.emit("eval", valid_loss=loss)
        if self.stopped:
            self.emit("stopped", message=f"no better validation loss in {self.bad_evals} evaluations")
        return better

    # --- state --------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        bad = [name for name in self.names if not np.isfinite(self.model.params[name]).all()]
        if bad:  # never let a broken state become the newest checkpoint
            raise self._diverged(self.step, DivergedError(f"the weights {bad[0]} are not finite after the update"))
        arrays, numbers = self.method.state_dict()
        arrays = {**arrays, **{f"w.{name}": self.model.params[name] for name in self.names}}
        state = {
            "format_version": _STATE_VERSION,
            "step": self.step,
            "config": self.config.to_dict(),
            "base_sha256": self.base_sha256,
            "environment": self.environment,
            "optimizer": numbers,
            # Batches and perturbations come from counters, so a seed and a step are all the state that there is.
            "generators": {"kind": "counter", "seed": self.config.seed, "step": self.step},
            "data": {"cursor": self.step * self.config.grad_accum, "train_tokens": int(self.train_data.n_tokens)},
            "best": self.best,
            "bad_evals": self.bad_evals,
            "stopped": self.stopped,
            "tokens": self.tokens,
            "seconds": self.seconds + time.monotonic() - self.began,
        }
        path = self.folder.save(self.step, arrays, state, self.config.keep, self.best["step"] if self.best else None)
        if path is not None:
            self.emit("saved", path=str(path))

    def _load(self, path: Path) -> None:
        arrays, state = checkpoint.load_checkpoint(path)
        if state.get("format_version") != _STATE_VERSION:
            raise MinedgeFormatError(
                f"{path}: state version {state.get('format_version')!r}, this minedge reads {_STATE_VERSION}"
            )
        old, new = state["config"], self.config.to_dict()
        for key in _FIXED:
            if old.get(key) != new[key]:
                raise UsageError(
                    f"{key}: the run in {path.parent} has {old.get(key)!r}, got {new[key]!r}; use that or a new folder"
                )
        if self.base_sha256 and state["base_sha256"] != self.base_sha256:
            raise UsageError(f"model: its weights are not those that the run in {path.parent} started from")
        if state["data"]["train_tokens"] != int(self.train_data.n_tokens):
            had = state["data"]["train_tokens"]
            raise UsageError(f"data: the run in {path.parent} has {had} tokens, got {self.train_data.n_tokens}")
        for name in self.names:
            saved, own = arrays.get(f"w.{name}"), self.model.params[name]
            if saved is None or saved.shape != own.shape:
                raise UsageError(f"model: the checkpoint {path} does not hold its trainable array {name}")
            own[...] = saved
        self.method.load_state_dict(arrays, state["optimizer"])
        self.step, self.best, self.bad_evals = int(state["step"]), state["best"], int(state["bad_evals"])
        self.stopped, self.tokens, self.seconds = bool(state["stopped"]), int(state["tokens"]), float(state["seconds"])
        same = {"grad_checkpoint": None}  # costs time and memory, changes no bit
        changed = differences(state["environment"], self.environment) + differences(old | same, new | same)
        if changed:
            self.emit("warning", message="resumed, but not bit for bit as without a stop: " + "; ".join(changed))

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": _STATE_VERSION,
            "config": self.config.to_dict(),
            "environment": self.environment,
            "model": {"name": self.start_model.name, "sha256": self.base_sha256, **self.start_model.config.to_dict()},
            "n_params": self.start_model.n_params(),
            "n_trainable": sum(self.model.params[n].size for n in self.names),
            "data": {
                "train_tokens": int(self.train_data.n_tokens),
                "valid": self.valid_data is not None,
                **self.data_info,
            },
        }

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _finish(self) -> Any:
        """The best model; its artifacts go to the folder."""
        at = self.best["step"] if self.best else self.step
        if at == self.step:
            trained = {name: self.model.params[name] for name in self.names}
        elif at == 0:
            trained = {}  # nothing was better than what came in
        elif self.kept is not None:
            trained = self.kept[1]
        else:
            trained = self.folder.weights(at, self.names)
        result = self.start_model.with_params({**self.start_model.params, **trained})
        path = self._write_result(result, at)
        self.emit("done", path=path, seconds=self.seconds + time.monotonic() - self.began)
        return result

    def _write_result(self, result: Any, at: int) -> str | None:
        folder = self.folder.path
        if folder is None:
            return None
        if self.config.method == "mezo" and at:
            from minedge.finetune.mezo import save_log

            log = self.method.optimizer.log  # type: ignore[attr-defined]
            short = type(log)(
                log.settings, log.base_sha256, log.trainable_sha256, log.projected_grads[: at * log.settings.n_samples]
            )
            save_log(short, folder / "mezo.log")
        adapter = trained_adapter(result)
        if adapter is not None:
            from minedge.finetune import lora

            lora.save_adapter(result, folder / "adapter", overwrite=True, adapter=adapter)
            return str(folder / "adapter")
        if hasattr(result, "save"):
            result.save(folder / "model", overwrite=True)
            return str(folder / "model")
        return str(folder)

    def _check_interrupt(self, saved_at: int) -> None:
        if self.signals.name is None:
            return
        if self.folder.path is None:
            raise Interrupted(
                f"stopped by {self.signals.name} at step {self.step}; nothing was saved, as no output folder was given"
            )
        if saved_at != self.step:
            self._save()
        raise Interrupted(
            f"stopped by {self.signals.name} at step {self.step} of {self.config.iters}; saved in {self.folder.path}, "
            "go on with the same command and --resume auto (in Python: resume='auto')"
        )

    def _diverged(self, step: int, error: Exception) -> DivergedError:
        newest = self.folder.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return DivergedError(
            f"training diverged at step {step}: {error}; {kept}; try a lower learning_rate or a longer warmup"
        )

    def emit(self, kind: str, **values: Any) -> None:
        if self.on_event is None:
            return
        try:
            self.on_event(Event(kind, self.step, self.config.iters, best=self.best, **values))
        except KeyboardInterrupt:
            self.signals.name = "KeyboardInterrupt"
