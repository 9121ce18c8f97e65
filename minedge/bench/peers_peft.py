"""PEFT on the same base, adapter and tokens: LoRA steps, and MeZO over the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minedge.bench import peers_torch, tasks_train
from minedge.bench.jobs import config_of
from minedge.bench.weights import RANK, lora_target
from minedge.bench.worker import Subject

__all__ = ["imports", "lora", "mezo"]


def imports(job: Mapping[str, Any]) -> None:
    """torch, transformers, peft."""
    peers_torch.imports(job)
    import peft.tuners.lora  # noqa: F401


def lora(job: Mapping[str, Any]) -> Subject:
    """The adapter's file, trained."""
    import peft
    import torch

    base = peers_torch.load(job["files"]["dense"])
    model = peft.PeftModel.from_pretrained(base, job["files"]["lora"], is_trainable=True)
    model.eval()  # no dropout; GPT-2's configuration has some
    step = peers_torch.adamw_step(job, model, peers_torch.shifted_loss(model), tasks_train.ADAPTER)
    name = f"peft {peft.__version__}, torch {torch.__version__} eager, sdpa, fused AdamW, rank {RANK}, float32"
    return peers_torch.Step(job, step, name, 2)


def mezo(job: Mapping[str, Any]) -> Subject:
    """The published MeZO recipe over a new adapter's matrices."""
    import peft
    import torch

    config = config_of(job)
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=lora_target(config), lora_dropout=0.0, task_type="CAUSAL_LM",
        fan_in_fan_out=config.architecture == "gpt2",
    )  # fmt: skip
    model = peft.get_peft_model(peers_torch.load(job["files"]["flat"]), settings).eval()
    name = f"peft {peft.__version__}, torch {torch.__version__} eager, rank {RANK} over float32 weights"
    return peers_torch.mezo_subject(job, model, name)
