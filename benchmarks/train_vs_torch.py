"""Training steps: minedge's tiers against PyTorch, the same weights and tokens; time and memory, ratios with spread.

    python benchmarks/train_vs_torch.py --torch-python OTHER_VENV/bin/python      # all tasks, the c tier
    python benchmarks/train_vs_torch.py --torch-python ... --tasks lora-135m,mezo-135m
    python benchmarks/train_vs_torch.py --torch-python ... --tasks small --tiers c,numba,numpy --threads 1

Every competitor is a process that waits on a pipe, so that no thread pool disturbs another; rounds alternate, and a
claim is the median of the ratios round by round, with the smallest and the largest beside it. Full and LoRA steps are
forward, backward, clipping by the global norm, AdamW. The losses of the first steps have to agree, or nothing is
measured. Peak memory is that of the process during the measured steps, libraries and weights included.
"""

from __future__ import annotations

import argparse
import contextlib
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
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINEDGE_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


def worker(name, task):
    """One competitor's process."""
    from training_steps import minedge_steps, torch_steps

    if name == "torch":
        return answer(torch_steps(task))
    from minedge.finetune.heap import keep_freed_memory

    work = minedge_steps(task, name)  # outside: what building the model has freed is not kept
    with keep_freed_memory():  # as `minedge.train` does around its loop
        return answer(work)


def answer(work):
    """Says the losses of two steps, before and after an update; then answers each line "what n" with the time of n."""
    print(json.dumps([work["step"](i) for i in range(2)]), flush=True)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # building the model is not what is measured
    i = 2
    for line in sys.stdin:
        what, count = line.split()
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(count)):
            work[what](i)
            i += 1
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        with open("/proc/self/status") as status:
            peak = next(int(row.split()[1]) for row in status if row.startswith("VmHWM:"))
        print(json.dumps([seconds, cpu, peak * 1024]), flush=True)


class Competitor:
    def __init__(self, name, task, python, threads):
        command = [python, str(Path(__file__).resolve()), "--worker", name, "--tasks", task]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        self.name, self.times, self.cpu, self.peak = name, [], [], 0
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses = json.loads(self.process.stdout.readline())

    def run(self, steps):
        seconds, cpu, self.peak = self.ask("step", steps)
        self.times.append(seconds / steps)
        self.cpu.append(cpu / steps)

    def ask(self, what, count):
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(task, tiers, python, rounds, seconds, threads):
    from training_steps import TASKS, WITHOUT_PEER

    names = tiers if task in WITHOUT_PEER else [*tiers, "torch"]
    everyone = [Competitor(t, task, python if t == "torch" else sys.executable, threads) for t in names]
    last, method = everyone[-1], TASKS[task][0]
    for one in everyone:  # MeZO's random numbers differ: its losses are those of other neighbours
        if not np.allclose(one.losses, last.losses, rtol=2e-3 if method == "mezo" else 2e-4):
            raise SystemExit(f"{one.name} computes something else than {last.name}: {one.losses}, {last.losses}")
    for one in everyone:
        one.run(1)
    steps = {one.name: max(1, round(seconds / one.times[0])) for one in everyone}
    for one in everyone:
        one.times.clear()
        one.cpu.clear()
    for _ in range(rounds):
        for one in everyone:
            one.run(steps[one.name])
    tokens = TASKS[task][2] * TASKS[task][3]
    result = {"task": task, "threads": threads, "rounds": rounds}
    for one in everyone:
        result[one.name] = {
            "step_s": rounded(statistics.median(one.times)),
            "tokens_per_s": rounded(tokens / statistics.median(one.times)),
            "peak_mb": round(one.peak / 1e6),
        }
        if one is not last:
            # Rounds are neighbours in time, so the ratio round by round is steadier than the ratio of medians. With
            # one thread the ratio of CPU seconds says the same and does not mind what else runs on the machine.
            result[one.name] |= {
                "times_faster": spread(last.times, one.times),
                "times_faster_in_cpu_seconds": spread(last.cpu, one.cpu),
                "memory_share": round(one.peak / last.peak, 3),
            }
        if method.startswith("mezo") and one.name != "torch":
            result[one.name] |= parts_of_mezo(one, rounds)
    for one in everyone:
        one.close()
    return result


def parts_of_mezo(one, rounds):
    """What a step is made of, measured in turn with more steps: a forward pass, and z of all trained numbers."""
    found = {"step": [], "forward": [], "generate": []}
    for _ in range(rounds):
        for what, times in found.items():
            times.append(one.ask(what, 1)[0])
    step, forward, generate = (statistics.median(times) for times in found.values())
    forwards = [a / b for a, b in zip(found["step"], found["forward"], strict=True)]
    return {
        "forward_s": rounded(forward),
        "generate_s": rounded(generate),
        "step_in_forwards": rounded(statistics.median(forwards)),
        "step_over_2_forwards_and_2_generations": rounded(step / (2 * forward + 2 * generate)),
    }


def spread(theirs, ours):
    """[median, smallest, largest] of the ratios round by round."""
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    return [rounded(statistics.median(ratios)), rounded(min(ratios)), rounded(max(ratios))]


def rounded(x):
    return float(f"{x:.4g}")


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    from training_steps import TASKS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch, transformers, peft")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--tiers", default="c")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each competitor in each round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = [task for task in args.tasks.split(",") if task not in TASKS]
    if unknown:
        parser.error(f"--tasks: expected some of {', '.join(TASKS)}, got {unknown[0]!r}")
    if args.worker:
        return worker(args.worker, args.tasks)
    machine = {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}
    print(json.dumps({**machine, "date": time.strftime("%F")}), flush=True)
    for task in args.tasks.split(","):
        found = compare(task, args.tiers.split(","), args.torch_python, args.rounds, args.seconds, args.threads)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
