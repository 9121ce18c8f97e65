"""PyTorch on the same weights and tokens: training, decoding, prefill, MeZO; eager, each in its best usual form.

GPT-2 shapes train in a model written out here, leaner than the transformers package's; all others run in that
package's own class, as its users do, with scaled_dot_product_attention. torch.compile is slower at these sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minedge.bench import tasks_mezo, tasks_text, tasks_train
from minedge.bench.jobs import config_of
from minedge.bench.worker import Clock, Subject

__all__ = ["Step", "decode", "imports", "load", "mezo", "mezo_step", "prefill", "train"]


def imports(job: Mapping[str, Any]) -> None:
    """torch with its threads set; the model classes."""
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama


def load(path: str, dtype: str = "float32") -> Any:
    """The transformers model of a folder."""
    import torch
    import transformers

    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=kind, attn_implementation="sdpa")
    return model.eval()


class Step(Subject):
    """`step(i)` -> loss, on the batch of that number."""

    def __init__(self, job: Mapping[str, Any], step: Callable[[int], float], settings: str, passes: float):
        config, sizes = config_of(job), job["sizes"]
        batch, length = sizes["batch_size"], sizes["seq_len"]
        self.step, self.steps = step, 0
        self.settings = f"{settings}; {batch} x {length}"
        macs = passes * tasks_train.pass_macs(config, batch, length)
        self.facts = {"amount": float(batch * length), "unit": "tokens/s", "macs": macs, "arithmetic": "float"}
        self.outputs = {"losses": [self._next() for _ in range(2)]}

    def _next(self) -> float:
        self.steps += 1
        return self.step(self.steps - 1)

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._next()


def adamw_step(job: Mapping[str, Any], model: Any, loss_of: Callable[[Any], Any], settings: Mapping[str, Any]) -> Any:
    """Forward, backward, clipping, fused AdamW with decay on matrices only, as `minedge.train` has it."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings["learning_rate"],
        betas=betas,
        eps=settings["adam_eps"],
        fused=True,
    )
    sizes = job["sizes"]
    batches = tasks_train.batches_of(config_of(job), sizes["batch_size"], sizes["seq_len"])
    data = [torch.tensor(b) for b in batches]

    def step(i: int) -> float:
        loss = loss_of(data[i % len(data)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings["clip"])
        optimizer.step()
        return float(loss.item())

    return step


def shifted_loss(model: Any) -> Callable[[Any], Any]:
    """Cross-entropy of predicting tokens[:, 1:] from tokens[:, :-1]: no scores are computed that are thrown away."""
    from torch.nn import functional

    def loss_of(tokens: Any) -> Any:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    return loss_of


def train(job: Mapping[str, Any]) -> Subject:
    """All weights."""
    import torch

    config = config_of(job)
    if config.architecture == "gpt2":
        from minedge.bench.torch_gpt2 import build

        model, loss_of = build(config, job["files"]["dense"])
        name = "GPT-2 written out"
    else:
        model = load(job["files"]["dense"])
        model.requires_grad_(True)  # in eval mode: no dropout
        loss_of, name = shifted_loss(model), f"transformers {_version('transformers')}"
    step = adamw_step(job, model, loss_of, tasks_train.FULL)
    return Step(job, step, f"torch {torch.__version__} eager, {name}, sdpa, fused AdamW, float32", 3)


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


class _Decode(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import torch

        self.torch, config = torch, config_of(job)
        self.prompt = torch.tensor([job["given"].get("prompt") or tasks_text.prompt_of(config, tasks_text.SHORT)])
        given = job["given"]["ids"]
        dtype = _faster(lambda kind: self._trial(load(job["files"]["flat"], kind)))
        self.model = load(job["files"]["flat"], dtype)
        self.settings = f"torch {torch.__version__}, transformers generate with its cache, {dtype} (the faster of two)"
        size = {"float32": 4.0, "bfloat16": 2.0}[dtype]
        work = tasks_text.text_work(config, 1, self.prompt.shape[1] + 16, int4=False)
        self.facts = {"amount": 1.0, "unit": "tokens/s", **work, "bytes": work["bytes"] * size / 4}
        exact = self.model if dtype == "float32" else load(job["files"]["flat"])
        tokens = torch.cat([self.prompt, torch.tensor([given[:-1]], dtype=torch.long)], 1)
        with torch.no_grad():
            logits = exact(input_ids=tokens, use_cache=False).logits[0, -len(given) :].float().numpy()
        self.outputs = {"gaps": tasks_text.gaps(logits, given)}

    def _trial(self, model: Any) -> None:
        self._generate(model, 4)

    def _generate(self, model: Any, n: int) -> None:
        with self.torch.no_grad():
            model.generate(self.prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)

    def run(self, units: int, clock: Clock) -> None:
        import time

        begun = time.perf_counter()
        self._generate(self.model, 1)  # reads the prompt: taken off, since generate gives its tokens all at once
        prompt = time.perf_counter() - begun
        with clock.running():
            self._generate(self.model, units + 1)
        clock.seconds -= min(prompt, clock.seconds / 2)


def _faster(work: Callable[[str], Any]) -> str:
    """Which dtype does the work faster, the second time."""
    import time

    found = {}
    for dtype in ("float32", "bfloat16"):
        work(dtype)
        begun = time.perf_counter()
        work(dtype)
        found[dtype] = time.perf_counter() - begun
    return min(found, key=lambda name: found[name])


def decode(job: Mapping[str, Any]) -> Subject:
    """Greedy `generate`."""
    return _Decode(job)


class _Prefill(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import torch

        self.torch, config = torch, config_of(job)
        length, given = job["sizes"]["length"], job["given"]["long_ids"]
        self.tokens = torch.tensor([tasks_text.prompt_of(config, length)])
        models = {kind: load(job["files"]["flat"], kind) for kind in ("float32", "bfloat16")}
        dtype = _faster(lambda kind: self._pass(models[kind]))
        logits = self._pass(models["float32"]).float().numpy()
        self.model = models.pop(dtype)
        models.clear()
        self.settings = f"torch {torch.__version__}, transformers, {dtype} (the faster of two), last scores only"
        self.facts = {
            "amount": float(length),
            "unit": "tokens/s",
            **tasks_text.text_work(config, length, length, False),
        }
        self.outputs = {"gaps": tasks_text.gaps(logits, given)}

    def _pass(self, model: Any) -> Any:
        with self.torch.no_grad():
            return model(input_ids=self.tokens, use_cache=True, logits_to_keep=1).logits[:, -1]

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._pass(self.model).argmax(-1).item()


def prefill(job: Mapping[str, Any]) -> Subject:
    """One pass that fills a cache."""
    return _Prefill(job)


def mezo_step(model: Any, loss_of: Callable[[Any], Any], lr: float, eps: float) -> Callable[[Any, int], float]:
    """The published recipe (arXiv:2305.17333, Algorithm 1): weights moved in place by +eps, -2 eps, +eps, each time
    with the same numbers drawn again from the seed, then the update with them once more.
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]

    def move(seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in trained:
            z = torch.normal(0.0, 1.0, p.shape, generator=generator, dtype=p.dtype)
            p.data.add_(z, alpha=scale)

    def step(tokens: Any, seed: int) -> float:
        with torch.no_grad():
            move(seed, eps)
            plus = float(loss_of(tokens))
            move(seed, -2 * eps)
            minus = float(loss_of(tokens))
            move(seed, eps)
            move(seed, -lr * (plus - minus) / (2 * eps))
        return (plus + minus) / 2

    return step


def mezo(job: Mapping[str, Any]) -> Subject:
    """All weights."""
    import torch

    model = load(job["files"]["dense"]).requires_grad_(True)
    name = f"torch {torch.__version__} eager, transformers, the published recipe, float32"
    return mezo_subject(job, model, name)


def mezo_subject(job: Mapping[str, Any], model: Any, settings: str) -> Subject:
    """A MeZO competitor over the parameters of `model` that ask for gradients."""
    import torch

    sizes = job["sizes"]
    tokens = torch.tensor(tasks_train.batches_of(config_of(job), sizes["batch_size"], sizes["seq_len"])[0])
    loss_of = shifted_loss(model)
    step = mezo_step(model, loss_of, tasks_mezo.LR, tasks_mezo.EPS)
    with torch.no_grad():
        loss = float(loss_of(tokens))
    subject = Step(job, lambda i: step(tokens, i), settings, 2)
    subject.outputs = {"loss": loss}
    return subject
