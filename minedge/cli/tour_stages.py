"""The tour's experiment: one base model, seven stages, every figure measured as it goes. `tour.py` prints it.

Step counts, learning rates and seeds are fixed below, so results do not depend on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minedge import ledger
from minedge.api import bundled_path
from minedge.cli.common import disk_bytes
from minedge.compress import int4, prune
from minedge.data.baselines import bag_of_words_accuracy, majority_accuracy
from minedge.data.loaders import load_data
from minedge.data.seen import without_seen
from minedge.finetune import lora, mezo
from minedge.finetune.evaluate import TaskResult, evaluate_task, evaluate_text, paired
from minedge.finetune.trainer import train
from minedge.ops import available

__all__ = ["MAX_LEN", "PROMPT", "RECIPE", "Stage", "Tour"]

MAX_LEN = 96  # tokens of a task example
TEXT_LEN = 256
TEXT_BATCHES, TEXT_BATCH = 12, 8  # test text that loss is measured on
PROMPT = "Return a new"
NEW_TOKENS = 40
SPEED_TOKENS = 32

# What each stage runs; `minedge train` takes the same settings.
RECIPE: dict[str, dict[str, Any]] = {
    "lora": dict(
        method="lora", iters=150, batch_size=16, seq_len=MAX_LEN, learning_rate=5e-3, warmup=10,
        lora={"r": 2, "lora_alpha": 4, "target": "all"},
    ),
    "mezo": dict(method="mezo", iters=300, batch_size=16, seq_len=MAX_LEN, learning_rate=2e-5, eps=1e-3),
    "mezo_int4": dict(
        method="mezo", iters=300, batch_size=16, seq_len=MAX_LEN, learning_rate=2e-4, schedule="linear", eps=1e-2,
        lora={"r": 16, "lora_alpha": 32, "target": "all"},
    ),
    "prune_recovered": dict(method="full", iters=50, batch_size=8, seq_len=TEXT_LEN, learning_rate=1e-3, warmup=5),
}  # fmt: skip
SPARSITY = 0.5
GROUP_SIZE = 32


@dataclass
class Stage:
    """One line of the table. Bytes and seconds are measured; None where a figure has no meaning for the stage."""

    stage: str
    title: str
    loss: float
    loss_se: float
    accuracy: float
    accuracy_se: float
    label_loss: float
    label_loss_se: float
    n_test: int
    disk_bytes: int
    resident_bytes: int
    tokens_per_s: float
    tokens_per_s_by_backend: dict[str, float]
    text: str
    trained_params: int = 0
    trained_share: float = 0.0
    peak_bytes: int | None = None  # measured while training or compressing, the model included, the libraries not
    predicted_peak_bytes: int | None = None
    accuracy_change: float | None = None
    accuracy_change_se: float | None = None
    label_loss_change: float | None = None
    label_loss_change_se: float | None = None
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tour:
    """Runs the stages in order. `say(text)` hears what happens, `progress(iters)` gives a context with `.update(step,
    facts)`.
    """

    def __init__(
        self,
        base: Any,
        out: Path,
        seed: int,
        say: Callable[[str], None],
        progress: Callable[[int], Any],
        backends: list[str],
    ):
        self.base, self.out, self.seed, self.say, self.progress = base, out, seed, say, progress
        self.backends = backends
        self.stages: list[Stage] = []
        self.baselines: dict[str, float] = {}
        self.base_task: TaskResult | None = None
        self.highest_peak = 0  # of the process, over all stages

    def run(self) -> None:
        self.read_data()
        self.base_stage()
        self.lora_stage()
        self.mezo_stage()
        self.mezo_int4_stage()
        self.prune_stages()
        self.int4_stage()

    # --- data -------------------------------------------------------------------------------------------------------

    def read_data(self) -> None:
        began = time.perf_counter()
        self.corpus = without_seen(load_data("stdlib"), bundled_path())
        self.task_data = without_seen(load_data("stdlib-task"), bundled_path())
        assert self.task_data.task is not None
        self.task = self.task_data.task
        self.examples = self.task.examples("test")
        self.text = self.corpus.pack("test", self.base.tokenizer, TEXT_LEN)
        self.baselines = {
            "majority": majority_accuracy(self.task),
            "bag_of_words": bag_of_words_accuracy(self.task),
        }
        info = self.corpus.info
        self.say(
            f"data: the standard library's own text (Python {info['python']}), {info['train_bytes']:,} bytes to train "
            f"on, {info['test_bytes']:,} to test; task: from which of {len(self.task.labels)} module families comes a "
            f"docstring? {len(self.task.examples('train')):,} examples to train on, {len(self.examples):,} to test "
            f"({time.perf_counter() - began:.0f} s)"
        )

    # --- stages -----------------------------------------------------------------------------------------------------

    def base_stage(self) -> None:
        self.say("base: the bundled model as it comes")
        tokens, mask = next(iter(self.text.eval_batches(TEXT_BATCH)))
        self.base.loss(tokens, mask)  # the first pass also loads libraries, which is not the model's memory
        predicted = ledger.plan(self.base, "inference", batch_size=len(tokens), seq_len=tokens.shape[1]).peak
        peak = self._peak(lambda: self.base.loss(tokens, mask), self.base)[1]
        self._measure("base", "base model", self.base, peak=peak, predicted=predicted)

    def lora_stage(self) -> None:
        r = RECIPE["lora"]
        self.say(f"lora: rank {r['lora']['r']} on every matrix, {r['iters']} steps of AdamW on the task")
        model, facts = self._train("lora", self.base, self.task_data)
        lora.save_adapter(model, self.out / "lora-adapter")
        self._measure("lora", "LoRA", model, **facts)

    def mezo_stage(self) -> None:
        r = RECIPE["mezo"]
        self.say(f"mezo: all weights, {r['iters']} steps of two forward passes each")
        model, facts = self._train("mezo", self.base, self.task_data)
        facts["notes"] = self._replays(model, self.out / "mezo" / "mezo.log")
        self._measure("mezo", "MeZO", model, **facts)

    def mezo_int4_stage(self) -> None:
        r = RECIPE["mezo_int4"]
        self.say(
            f"mezo_int4: the base in int4, an adapter of rank {r['lora']['r']} on every matrix, {r['iters']} steps of "
            "two forward passes each"
        )
        start = lora.add(int4.int4(self.base, GROUP_SIZE), **r["lora"], seed=self.seed)
        model, facts = self._train("mezo_int4", start, self.task_data)
        self._measure("mezo_int4", "MeZO + LoRA on int4", model, **facts)

    def prune_stages(self) -> None:
        self.say(f"prune: the smallest {SPARSITY:.0%} of each matrix to zero")
        pruned, peak = self._peak(lambda: prune.magnitude(self.base, SPARSITY), self.base)
        self._measure("prune", f"pruned {SPARSITY:.0%}", pruned, peak=peak, notes=self._pruned_bytes(pruned))
        self.say(f"prune_recovered: {RECIPE['prune_recovered']['iters']} steps on the corpus, the masks kept")
        model, facts = self._train("prune_recovered", pruned, self.corpus)
        facts["notes"] = self._pruned_bytes(model)
        self._measure("prune_recovered", "pruned, fine-tuned", model, **facts)

    def int4_stage(self) -> None:
        self.say(f"int4: every linear weight in 4 bits, groups of {GROUP_SIZE}")
        model, peak = self._peak(lambda: int4.int4(self.base, GROUP_SIZE), self.base)
        whole = int4.int4(self.base, GROUP_SIZE, embeddings=True)
        linear, dense = model.nbytes()["linear"], self.base.nbytes()["linear"]
        notes = {
            "linear_bytes": linear,
            "linear_bytes_float32": dense,
            "linear_ratio": linear / dense,
            "loss_with_int4_embeddings": evaluate_text(whole, self.text, TEXT_BATCH, TEXT_BATCHES).loss,
            "resident_bytes_with_int4_embeddings": whole.nbytes()["total"],
        }
        self._measure("int4", "int4", model, peak=peak, notes=notes)

    # --- measuring --------------------------------------------------------------------------------------------------

    def _train(self, stage: str, model: Any, data: Any) -> tuple[Any, dict[str, Any]]:
        """Train as the recipe says; -> the new model, and what `_measure` wants to know about the run."""
        r = RECIPE[stage]
        packed = data.pack("train", self.base.tokenizer, r["seq_len"])  # beforehand: data is not the method's memory
        first: list[int] = []
        with self.progress(r["iters"]) as bar:

            def on_event(event: Any) -> None:
                if event.kind == "start":
                    first.append(event.n_trainable)
                elif event.kind == "step":
                    bar.update(event.step, f"loss {event.loss:.4f}  {event.tokens_per_s or 0:,.0f} tokens/s")

            options: dict[str, Any] = {**r, "seed": self.seed, "eval_every": 0, "save_every": 0}
            folder = self.out / stage if stage == "mezo" else None  # where the log of the run goes
            tuned, peak = self._peak(
                lambda: train(model, (packed, None), out=folder, on_event=on_event, **options), model
            )
        predicted = ledger.plan(model, r["method"], r["batch_size"], r["seq_len"], lora=r.get("lora")).peak
        return tuned, {"peak": peak, "predicted": predicted, "trained": first[0]}

    def _peak(self, work: Callable[[], Any], model: Any) -> tuple[Any, int]:
        """Run `work` on `model`: -> its result, and the most bytes it held, the model's own included, the libraries'
        not.
        """
        with ledger.measure() as used:
            result = work()
        self.highest_peak = max(self.highest_peak, used.peak)
        return result, used.growth + model.nbytes()["total"]

    def _measure(
        self,
        stage: str,
        title: str,
        model: Any,
        peak: int | None = None,
        predicted: int | None = None,
        trained: int = 0,
        notes: dict[str, Any] | None = None,
    ) -> None:
        began = time.perf_counter()
        text = evaluate_text(model, self.text, TEXT_BATCH, TEXT_BATCHES)
        task = evaluate_task(model, self.task, self.examples, MAX_LEN)
        if self.base_task is None:
            self.base_task = task
        path = self.out / f"{stage}-model"
        model.save(path, dtype="float16")
        speeds = {name: self._speed(model, name) for name in self.backends}
        s = Stage(
            stage, title, text.loss, text.loss_se, task.accuracy, task.accuracy_se, task.label_loss, task.label_loss_se,
            task.n, disk_bytes(path / "model.safetensors"), model.nbytes()["total"],
            speeds[model.ops.name], speeds, model.generate(PROMPT, max_tokens=NEW_TOKENS, temperature=0.0),
            trained, trained / model.n_params(), peak, predicted, notes=notes or {},
        )  # fmt: skip
        if stage != "base":
            accuracy = paired(task.correct, self.base_task.correct)
            label = paired(task.label_losses, self.base_task.label_losses)
            s.accuracy_change, s.accuracy_change_se = accuracy.difference, accuracy.se
            s.label_loss_change, s.label_loss_change_se = label.difference, label.se
        s.seconds = time.perf_counter() - began
        self.stages.append(s)
        self.say(f"  {summary(s)}")

    def _speed(self, model: Any, backend: str) -> float:
        """Tokens generated a second, greedy, after a first run that compiles and warms up."""
        # a pruned matrix applies its mask at every use; without masks the same zeros give the same text at dense speed
        other = prune.densify(model).with_backend(backend)
        other.generate(PROMPT, max_tokens=2)
        ids = len(other.tokenizer.encode(PROMPT))
        began = time.perf_counter()
        made = len(other.tokenizer.encode(PROMPT + other.generate(PROMPT, max_tokens=SPEED_TOKENS))) - ids
        return max(made, 1) / (time.perf_counter() - began)

    def _replays(self, model: Any, path: Path) -> dict[str, Any]:
        """Replay the run from its log on every backend: how many bytes, and are the weights the same to the bit?"""
        log = mezo.load_log(path)
        same = {}
        for name in self.backends:
            again = mezo.replay(self.base.with_backend(name), log)
            same[name] = all(np.array_equal(again.params[k], model.params[k]) for k in model.params)
        size = path.stat().st_size
        verdict = "bit-identical" if all(same.values()) else f"DIFFERENT: {same}"
        self.say(f"  the whole run is a file of {size:,} bytes; replayed on {', '.join(same)}: {verdict}")
        return {"log_bytes": size, "replay_bit_identical": same}

    def _pruned_bytes(self, model: Any) -> dict[str, Any]:
        """Bytes of the pruned tensors in the file against the same tensors dense in the file's float16."""
        facts = prune.report(model).values()
        weights, kept = sum(f["weights"] for f in facts), sum(f["kept"] for f in facts)
        bits = sum((f["weights"] + 7) // 8 for f in facts)
        return {"pruned_weights": weights, "kept": kept, "stored_ratio": (2 * kept + bits) / (2 * weights)}


def summary(s: Stage) -> str:
    """A stage in one line."""
    line = f"loss {s.loss:.4f}, accuracy {s.accuracy:.1%}, label loss {s.label_loss:.3f}"
    if s.accuracy_change is not None and s.label_loss_change is not None:
        line += (
            f" (against the base: {s.accuracy_change:+.1%} ± {s.accuracy_change_se:.1%},"
            f" {s.label_loss_change:+.3f} ± {s.label_loss_change_se:.3f})"
        )
    return line


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Warnings that the tour itself explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def usable_backends() -> list[str]:
    """numpy, numba and c, those that work here."""
    reasons = available()
    return [name for name in ("numpy", "numba", "c") if not reasons[name]]
