"""Training steps per second: minedge's tiers against PyTorch eager, one GPT-2, the same weights and tokens.

    python benchmarks/train_vs_torch.py --torch-python OTHER_VENV/bin/python      # --shapes small,large --tiers c

Every competitor is a process that waits on a pipe, so that no thread pool disturbs another; rounds alternate, and a
claim is the median of the ratios round by round. A step is: forward, backward, clipping by the global norm, AdamW. The
losses of the first steps have to agree, or nothing is measured. PyTorch gets its best eager form:
scaled_dot_product_attention, fused AdamW, no dropout; torch.compile is slower at these sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    # layers, width, heads, batch, tokens, vocabulary
    "small": (4, 128, 4, 12, 64, 65),
    "large": (6, 384, 6, 64, 256, 65),
}
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.99), 1e-8, 0.1, 1.0


def config_and_batches(shape):
    import minedge

    layers, width, heads, batch, tokens, vocab = SHAPES[shape]
    config = minedge.Config(
        vocab_size=vocab, n_layer=layers, n_embd=width, n_head=heads, n_inner=4 * width, context_length=tokens,
        architecture="gpt2",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    return config, [rng.integers(0, vocab, (batch, tokens + 1)) for _ in range(4)]


def minedge_step(shape, tier):
    import minedge
    from minedge.finetune.optim import AdamW, accumulate

    config, batches = config_and_batches(shape)
    model = minedge.init(config, backend=tier).trainable()
    optimizer = AdamW(model, *BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP)

    def step(i):
        loss, grads = accumulate(model, [(batches[i % len(batches)], None)])
        optimizer.step(grads, LR)
        return loss

    return step


def torch_step(shape):
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - its usual name

    import minedge

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config, batches = config_and_batches(shape)
    weights = minedge.init(config, backend="numpy").params
    C, H = config.n_embd, config.n_head

    def linear(name):
        layer = nn.Linear(*weights[f"{name}.weight"].shape[::-1])
        layer.weight.data.copy_(torch.tensor(weights[f"{name}.weight"]))
        layer.bias.data.copy_(torch.tensor(weights[f"{name}.bias"]))
        return layer

    class Block(nn.Module):
        def __init__(self, i):
            super().__init__()
            name = f"transformer.h.{i}"
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.c_attn, self.c_proj = linear(f"{name}.attn.c_attn"), linear(f"{name}.attn.c_proj")
            self.c_fc, self.mlp_proj = linear(f"{name}.mlp.c_fc"), linear(f"{name}.mlp.c_proj")

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, H, C // H).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, C), nn.Embedding(config.context_length, C)
            self.wte.weight.data.copy_(torch.tensor(weights["transformer.wte.weight"]))
            self.wpe.weight.data.copy_(torch.tensor(weights["transformer.wpe.weight"]))
            self.h = nn.ModuleList(Block(i) for i in range(config.n_layer))
            self.ln_f = nn.LayerNorm(C)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    model = GPT()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    data = [torch.tensor(b) for b in batches]

    def step(i):
        tokens = data[i % len(data)]
        loss = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def worker(name, shape):
    """One competitor's process."""
    if name == "torch":
        return answer(torch_step(shape))
    from minedge.finetune.heap import keep_freed_memory

    with keep_freed_memory():  # as `minedge.train` does around its loop
        return answer(minedge_step(shape, name))


def answer(step):
    """Says the losses of two steps, before and after an update; then answers each line "n" with the time of n steps."""
    print(json.dumps([step(i) for i in range(2)]), flush=True)
    i = 2
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step(i)
            i += 1
        with open("/proc/self/status") as status:
            peak = next(int(row.split()[1]) for row in status if row.startswith("VmHWM:"))
        print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu, peak * 1024]), flush=True)


class Competitor:
    def __init__(self, name, shape, python, threads):
        command = [python, str(Path(__file__).resolve()), "--worker", name, "--shapes", shape]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        for key in (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "MINEDGE_THREADS",
            "NUMBA_NUM_THREADS",
        ):
            env[key] = str(threads)
        self.name, self.times, self.cpu, self.peak = name, [], [], 0
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses = json.loads(self.process.stdout.readline())

    def run(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds, cpu, self.peak = json.loads(self.process.stdout.readline())
        self.times.append(seconds / steps)
        self.cpu.append(cpu / steps)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(shape, tiers, python, rounds, seconds, threads):
    everyone = [Competitor(t, shape, python if t == "torch" else sys.executable, threads) for t in [*tiers, "torch"]]
    for one in everyone:
        if not np.allclose(one.losses, everyone[-1].losses, rtol=2e-4):
            raise SystemExit(f"{one.name} computes something else than torch: {one.losses}, {everyone[-1].losses}")
    tokens = SHAPES[shape][3] * SHAPES[shape][4]
    for one in everyone:
        one.run(1)
    steps = {one.name: max(1, round(seconds / one.times[0])) for one in everyone}
    for one in everyone:
        one.times.clear()
        one.cpu.clear()
    for _ in range(rounds):
        for one in everyone:
            one.run(steps[one.name])
    rates = {one.name: tokens / statistics.median(one.times) for one in everyone}
    # Rounds are neighbours in time, so the ratio round by round is steadier than the ratio of medians. With one thread
    # the ratio of CPU seconds says the same and does not mind what else runs on the machine.
    last = everyone[-1]
    ratios = {one.name: ratio(last.times, one.times) for one in everyone}
    cpu_ratios = {one.name: ratio(last.cpu, one.cpu) for one in everyone}
    result = {
        "shape": dict(zip(("layers", "width", "heads", "batch", "tokens", "vocab"), SHAPES[shape], strict=True)),
        "threads": threads,
        "tokens_per_s": {k: round(v, 1) for k, v in rates.items()},
        "ratio_to_torch": ratios,
        "cpu_seconds_ratio": cpu_ratios,
        "peak_mb": {one.name: round(one.peak / 1e6) for one in everyone},
    }
    for one in everyone:
        one.close()
    return result


def ratio(theirs, ours):
    return round(statistics.median(t / o for t, o in zip(theirs, ours, strict=True)), 3)


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--shapes", default="small,large")
    parser.add_argument("--tiers", default="c,numba,numpy")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each competitor in each round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.shapes)
    load = os.getloadavg()[0]
    machine = {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": load,
        "date": time.strftime("%F"),
    }
    print(json.dumps(machine), flush=True)
    for shape in args.shapes.split(","):
        tiers = args.tiers.split(",")
        found = compare(shape, tiers, args.torch_python, args.rounds, args.seconds, args.threads)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
