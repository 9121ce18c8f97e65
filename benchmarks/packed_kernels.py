"""Packed-weight kernels against the machine and against ONNX Runtime's MatMulNBits, in one process, in alternation.

    python benchmarks/packed_kernels.py --threads 1 --peer          # --only int4,q8,half,noise --shape 4096x4096

One row: gigabytes of weights and scales a second, over copies of the matrix that together exceed every cache, beside
the read bandwidth of the same run (dot products of long float32 vectors). Many rows: 2 * rows * out * in a second.
A line is the median of the rounds with their 10th and 90th percentile and the best round, which says more than the
median where the machine has other work; a ratio is the median of the rounds' ratios.
Outputs are compared with the NumPy specification before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

Timed = Callable[[int], None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--groups", default="32,128")
    parser.add_argument("--only", default="int4,q8,half,noise")
    parser.add_argument("--peer", action="store_true", help="also ONNX Runtime, if installed")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--seconds", type=float, default=1.0, help="per line")
    parser.add_argument("--megabytes", type=int, default=128, help="weights that a one-row line goes through")
    return parser.parse_args()


def rounds(competitors: dict[str, Timed], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each competitor, round by round; call(i) does the work once, i says which copy."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for call in competitors.values():
        call(0)
    end, i = time.perf_counter() + seconds * len(competitors), 0
    while time.perf_counter() < end or i < 5:
        for name, call in competitors.items():
            calls, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < 0.004 or calls == 0:
                call(i + calls)
                calls += 1
            times[name].append(spent / calls)
        i += 7
    return times


def report(title: str, amount: float, unit: str, times: dict[str, list[float]]) -> None:
    first = next(iter(times))
    for name, spent in times.items():
        rate = sorted(amount / t / 1e9 for t in spent)
        low, high = rate[len(rate) // 10], rate[-1 - len(rate) // 10]
        ratio = statistics.median(b / a for a, b in zip(times[first], spent, strict=True))
        best = min(spent) / min(times[first])
        beside = "" if name == first else f"   {first} is {ratio:.2f} x as fast, best against best {best:.2f} x"
        shown = f"{statistics.median(rate):7.2f} {unit} ({low:.2f}-{high:.2f}, best {rate[-1]:.2f})"
        print(f"{title:26} {name:12} {shown}{beside}", flush=True)


def read_bandwidth(threads: int) -> Timed:
    parts = [np.ones(1 << 25, np.float32) for _ in range(threads)]  # 128 MiB each

    def call(_: int) -> None:
        workers = [threading.Thread(target=np.dot, args=(p, p)) for p in parts[1:]]
        for worker in workers:
            worker.start()
        np.dot(parts[0], parts[0])
        for worker in workers:
            worker.join()

    return call


def onnx_product(x: np.ndarray, weights: list, group: int, threads: int, accuracy: int = 4) -> Timed:
    """MatMulNBits with int8 activations (its fastest); weights as (qweight, scales) of ours, in its layout."""
    import onnxruntime
    from onnx import TensorProto, helper

    runs, floats = [], TensorProto.FLOAT
    for qweight, scales in weights:
        out, width = qweight.shape[0], qweight.shape[1] * 2
        blocks = qweight.reshape(out, -1, 16)
        codes = np.concatenate([blocks & 15, blocks >> 4], axis=-1).reshape(out, -1)
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(out, width // group, group // 2)
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=width, N=out, bits=4, block_size=group,
            accuracy_level=accuracy,
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (len(x), out))],
            [
                helper.make_tensor("w", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True),
                helper.make_tensor("s", floats, (scales.size,), scales.astype(np.float32).tobytes(), raw=True),
            ],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        runs.append((session, binding))

    def call(i: int) -> None:
        session, binding = runs[i % len(runs)]
        session.run_with_iobinding(binding)

    call.output = lambda: (call(0), runs[0][1].copy_outputs_to_cpu()[0])[1]  # type: ignore[attr-defined]
    return call


def agree(name: str, got: np.ndarray, want: np.ndarray, allowed: float) -> None:
    error = np.abs(got - want).max() / np.abs(want).max()
    if not error <= allowed:
        raise SystemExit(f"{name}: wrong by {error:.2e} of the largest value, nothing was timed")


def int4_lines(options: argparse.Namespace, ops, out: int, width: int, rng: np.random.Generator) -> None:
    from minedge.ops import numpy_ops

    for group in map(int, options.groups.split(",")):
        bytes_one = out * width // 2 + out * width // group * 2
        copies = max(1, options.megabytes * 2**20 // bytes_one)
        weights = [
            (rng.integers(0, 256, (out, width // 2), dtype=np.uint8),
             (rng.random((out, width // group), np.float32) * 0.01).astype(np.float16))
            for _ in range(copies)
        ]  # fmt: skip
        for rows in map(int, options.rows.split(",")):
            x = rng.standard_normal((rows, width), dtype=np.float32)
            some = weights[:1] if rows > 8 else weights
            competitors: dict[str, Timed] = {"minedge": _over(ops.int4_int8_linear, x, some, group)}
            want = numpy_ops.int4_int8_linear(x[:2], weights[0][0][:64], weights[0][1][:64], group)
            agree("minedge", ops.int4_int8_linear(x, *weights[0], group)[:2, :64], want, 1e-5)
            if options.peer:
                competitors["onnxruntime"] = call = onnx_product(x, some, group, options.threads)
                agree("onnxruntime", call.output()[:2, :64], want, 2e-2)  # type: ignore[attr-defined]
            times = rounds(competitors, options.seconds)
            if rows > 8:
                report(f"int4 group {group}, {rows} rows", 2 * rows * out * width, "GFLOP/s", times)
            else:
                report(f"int4 group {group}, {rows} row", bytes_one, "GB/s", times)


def _over(op, x, weights, *rest) -> Timed:
    return lambda i: op(x, *weights[i % len(weights)], *rest)


def q8_lines(options: argparse.Namespace, ops, out: int, width: int, rng: np.random.Generator) -> None:
    bytes_one = out * width + out * width // 16
    copies = max(1, options.megabytes * 2**20 // bytes_one)
    weights = [
        (rng.integers(-127, 128, (out, width), dtype=np.int8),
         (rng.random((out, width // 32), np.float32) * 0.01).astype(np.float16))
        for _ in range(copies)
    ]  # fmt: skip
    for rows in map(int, options.rows.split(",")):
        x = rng.standard_normal((rows, width), dtype=np.float32)
        times = rounds({"minedge": _over(ops.q8_int8_linear, x, weights)}, options.seconds)
        unit = ("GFLOP/s", 2 * rows * out * width) if rows > 8 else ("GB/s", bytes_one)
        report(f"q8, {rows} rows", unit[1], unit[0], times)


def half_lines(options: argparse.Namespace, ops, out: int, width: int, rng: np.random.Generator) -> None:
    copies = max(1, options.megabytes * 2**20 // (2 * out * width))
    weights = [(rng.standard_normal((out, width), dtype=np.float32).astype(np.float16),) for _ in range(copies)]
    for rows in map(int, options.rows.split(",")):
        x = rng.standard_normal((rows, width), dtype=np.float32)
        times = rounds({"minedge": _over(ops.half_linear_forward, x, weights)}, options.seconds)
        unit = ("GFLOP/s", 2 * rows * out * width) if rows > 8 else ("GB/s", 2 * out * width)
        report(f"float16, {rows} rows", unit[1], unit[0], times)


def noise_lines(options: argparse.Namespace, ops) -> None:
    n = 1 << 18
    weight = np.zeros(n, np.float32)
    times = rounds({"normal": lambda i: ops.normal(1, i, 0, 5, 0, n)}, options.seconds)
    report("noise: normal", n, "G/s", times)
    times = rounds({"perturb_": lambda i: ops.perturb_(weight, 1.0, 1e-3, 1, i, 0, 5)}, options.seconds)
    report("noise: perturb_", n, "G/s", times)


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))
    import minedge.ops
    from minedge.ops import c_ops

    c_ops.set_threads(options.threads)
    ops, rng = minedge.ops.get(f"c:{options.isa}" if options.isa else "c"), np.random.default_rng(0)
    out, width = map(int, options.shape.split("x"))
    only = options.only.split(",")
    print(f"{ops.spec}, {options.threads} threads, {out} x {width}, {time.strftime('%Y-%m-%d')}")
    bandwidth = rounds({"read": read_bandwidth(options.threads)}, options.seconds)
    report("read bandwidth", options.threads * 2**27, "GB/s", bandwidth)
    if "int4" in only:
        int4_lines(options, ops, out, width, rng)
    if "q8" in only:
        q8_lines(options, ops, out, width, rng)
    if "half" in only:
        half_lines(options, ops, out, width, rng)
    if "noise" in only:
        noise_lines(options, ops)


if __name__ == "__main__":
    main()
