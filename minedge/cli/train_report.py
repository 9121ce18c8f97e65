"""What `minedge train` prints: the plan before, progress during, and figures before and after at the end."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

from minedge.cli.common import disk_bytes, model_facts
from minedge.cli.console import Console, Progress
from minedge.cli.text import count, duration, size
from minedge.ledger import measure, plan

__all__ = ["Report"]


class Report:
    """Listens to a run. A context manager around it, so that the progress bar ends however the run does."""

    def __init__(self, args: argparse.Namespace, console: Console, model: Any, dataset: Any, config: Any):
        self.args, self.console, self.model, self.dataset, self.config = args, console, model, dataset, config
        self.progress: Progress | None = None
        self.first = 0
        self.losses: list[float] = []
        self.valid: list[tuple[int, float]] = []
        self.speeds: list[float] = []
        self.facts: dict[str, Any] = {}
        self.predicted = self.measured = 0

    def plan(self) -> None:
        """Print what is going to happen."""
        c, note = self.config, self.console.note
        self.predicted = plan(
            self.model,
            c.method,
            c.batch_size,
            c.seq_len,
            lora=c.lora,
            grad_accum=c.grad_accum,
            grad_checkpoint=c.grad_checkpoint,
            backend=self.model.backend,
        ).peak
        trained, total = self.model.n_params(trainable=True), self.model.n_params()
        note(f"model       {self.model!r}")
        note(f"training    {count(trained)} of {count(total)} parameters ({trained / total:.2%})")
        linears = self.model.linears
        frozen = [name for name, kind in linears.items() if not kind.trainable(name)]
        if frozen and not c.lora and not any(kind.is_adapter for kind in linears.values()):
            kinds = " and ".join(sorted({linears[name].kind for name in frozen}))
            warnings.warn(
                f"{len(frozen)} of {len(linears)} matrices are {kinds} and stay as they are; "
                "--method lora trains an adapter on them",
                UserWarning,
                stacklevel=2,
            )
        note(f"data        {self.dataset.name}, rows of {c.seq_len} tokens, {c.batch_size * c.grad_accum} rows a step")
        how = f"{c.method}, {count(c.iters)} steps, learning rate {c.learning_rate:g} {c.schedule}"
        note(f"method      {how}" + (f", adapter {dict(c.lora)}" if c.lora else ""))
        note(f"output      {self.args.out}")
        note(f"peak memory {size(self.predicted)} predicted, without the interpreter and its libraries")

    def __enter__(self) -> Report:
        self._memory = measure()
        self._used = self._memory.__enter__()
        self.progress = self.console.progress(self.config.iters, self.args.steps_per_report or 0).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.progress is not None:
            self.progress.__exit__(*error)
        self._memory.__exit__(None, None, None)
        # The model stood in memory before; the prediction counts it.
        self.measured = self._used.growth + self.model.nbytes()["total"]

    def event(self, e: Any) -> None:
        """One `Event` of the trainer."""
        handler = getattr(self, f"_on_{e.kind}", None)
        if handler is not None and self.progress is not None:
            handler(e, self.progress)

    def _on_start(self, e: Any, progress: Progress) -> None:
        self.facts["trainable"] = e.n_trainable
        self.first = e.step
        progress.start_at(e.step)

    def _on_resumed(self, e: Any, progress: Progress) -> None:
        self.facts["resumed_at"] = e.step
        self.valid = [v for v in _past_validations(Path(self.args.out).expanduser()) if v[0] <= e.step]
        progress.line(f"resumed     at step {e.step} from {e.path}")

    def _on_warning(self, e: Any, progress: Progress) -> None:
        progress.line(f"warning     {e.message}")

    def _on_step(self, e: Any, progress: Progress) -> None:
        self.losses.append(e.loss)
        self.speeds.append(e.tokens_per_s)
        recent = sorted(self.speeds[-10:])
        if e.step == self.first + min(5, max(1, (self.config.iters - self.first) // 2)):
            progress.line(
                f"time        about {duration(progress.eta(e.step))} for {count(self.config.iters - e.step)} more steps"
            )
        progress.update(e.step, f"loss {e.loss:.4f}  {recent[len(recent) // 2]:,.0f} tokens/s")

    def _on_eval(self, e: Any, progress: Progress) -> None:
        best = min((loss for _, loss in self.valid), default=math.inf)
        self.valid.append((e.step, e.valid_loss))
        progress.line(
            f"step {e.step}/{e.iters}  validation loss {e.valid_loss:.4f}"
            + ("" if e.valid_loss < best else f" (best {best:.4f})")
        )

    def _on_stopped(self, e: Any, progress: Progress) -> None:
        self.facts["stopped_early"] = e.message
        progress.line(f"stopped     {e.message}")

    def _on_done(self, e: Any, progress: Progress) -> None:
        self.facts.update(step=e.step, best=e.best, result=e.path, seconds=e.seconds)

    def finish(self, tuned: Any) -> None:
        """Print the end of the run, and the JSON document."""
        out, report = self.console.out, {**self.facts, **self._losses()}
        speed = sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else None
        report |= {
            "out": str(self.args.out),
            "method": self.config.method,
            "parameters": tuned.n_params(),
            "predicted_peak_bytes": self.predicted,
            "measured_peak_bytes": self.measured,
            "tokens_per_s": speed,
            "config": self.config.to_dict(),
            "model": model_facts(tuned),
        }
        out()
        what = "validation loss" if self.valid else "training loss"
        before, after = report["loss_before"], report["loss_after"]
        if before is not None and after is not None:
            best = report.get("best")
            at = f" (step {best['step']}, the best)" if best else ""
            if best and best["step"] == 0:
                at = "; no step was better than the start, so the result is the model as it was given"
            out(f"{what.ljust(16)}{before:.4f} before, {after:.4f} after{at}")
        out(f"peak memory     {size(self.predicted)} predicted, {size(self.measured)} measured")
        rate = f", {speed:,.0f} tokens/s" if speed else ""
        out(f"time            {duration(report.get('seconds') or math.nan)}{rate}")
        self._saved(report)
        self.console.result(report)

    def _losses(self) -> dict[str, Any]:
        if self.valid:
            steps = {"valid_losses": [{"step": step, "loss": loss} for step, loss in self.valid]}
            best = (self.facts.get("best") or {}).get("loss", self.valid[-1][1])
            return {"loss_before": self.valid[0][1], "loss_after": best, "loss_kind": "validation", **steps}
        n = max(1, len(self.losses) // 10)
        means = [sum(part) / len(part) if part else None for part in (self.losses[:n], self.losses[-n:])]
        return {"loss_before": means[0], "loss_after": means[1], "loss_kind": "training"}

    def _saved(self, report: dict[str, Any]) -> None:
        folder = Path(self.args.out).expanduser()
        names = ("model", "adapter", "mezo.log", "metrics.jsonl", "loss.svg")
        report["saved"] = {name: disk_bytes(folder / name) for name in names if (folder / name).exists()}
        for name, n in report["saved"].items():
            self.console.out(f"saved           {folder / name} ({size(n)})")
        if "adapter" in report["saved"]:
            base = f"--model {self.args.model} " if self.args.model != "bundled" else ""
            self.console.out(
                f"try             minedge generate {base}--adapter-path {folder / 'adapter'} --prompt 'The'"
            )
        elif "model" in report["saved"]:
            self.console.out(f"try             minedge generate --model {folder / 'model'} --prompt 'The'")


def _past_validations(folder: Path) -> list[tuple[int, float]]:
    """(step, validation loss) of a run so far, from its metrics.jsonl: what "before" and "best" mean after a resume."""
    try:
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [(r["step"], r["valid_loss"]) for r in records if "valid_loss" in r]
