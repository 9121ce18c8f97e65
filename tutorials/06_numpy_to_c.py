# %% [markdown]
# # 6. From NumPy to C: one product up the ladder
#
# After this notebook you can
#
# - follow one 4-bit matrix-vector product from Python through scalar and SIMD C to threads,
# - measure what your machine's memory and arithmetic can do, and draw its roofline,
# - say for each step whether arithmetic or memory held it back,
# - explain why generating one token at a time is slow, whatever the kernel.
#
# It runs in about 10 seconds on two cores, without a network, from seed 0, and needs a C compiler
# (`cc`). Speeds are those of the machine at hand, so the figures it states, with their ranges,
# are ratios, and wide. They are in the first code cell; a run that leaves a range stops with an
# error.
#
# Paper: Williams, Waterman and Patterson, *Roofline*, Communications of the ACM 52(4), 2009.

# %%
import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minedge.ops
from minedge.lessons import kernel_sources
from minedge.ops import c_ops, numpy_ops
from minedge.teaching import Expected, best_time, plot, seed, show, show_c

SEED = seed()
expect = Expected(
    {
        "largest difference of any step from NumPy / its bound": (0, 1),
        "scalar C / Python (speed)": (50, 20000),
        "scalar C / NumPy (speed)": (0.05, 50),
        "unrolled / scalar (speed)": (0.2, 12),
        "SIMD / unrolled (speed)": (1, 100),
        "threads / SIMD (speed)": (0.1, 64),
        "operations a byte, int4 product with one vector": (3.55, 3.56),
        "int4 / float32 product, both by the package (speed)": (0.5, 40),
        "64 vectors at once / one (operations a second)": (0.2, 200),
    }
)

# %% [markdown]
# ## The product
#
# Weights are 4-bit codes in blocks of 32 with a scale each (tutorial 5), activations are int8
# with a scale per 32. One output is
#
# $$ y_o = \sum_b s_{ob}\, t_b \sum_{j < 32} (\mathrm{code}_{obj} - 8)\, x_{bj}, $$
#
# an integer dot product per block and two float factors. All steps of the ladder compute exactly
# this. A block's codes take 16 bytes and its scale 4 here, so a weight costs 0.625 bytes and two
# operations, a multiplication and an addition: 3.2 operations a byte. (The package keeps the
# scale in float16: 0.5625 bytes, 3.56 operations a byte.)
#
# We take a matrix of 20 MB, which does not fit into the caches of most boards and laptops, as a
# language model's matrices do not.

# %%
ROWS, WIDTH = 8192, 4096
BLOCKS = WIDTH // 32
rng = np.random.default_rng(SEED)
codes = rng.integers(0, 256, (ROWS, WIDTH // 2), dtype=np.uint8)
scales = rng.uniform(0.001, 0.01, (ROWS, BLOCKS)).astype(np.float16)
vector = rng.standard_normal(WIDTH).astype(np.float32)
xq, xscales = numpy_ops.int8_quantize(vector[None])
xsums = xq.reshape(BLOCKS, 32).astype(np.int32).sum(axis=1, dtype=np.int32)
wide_scales = scales.astype(np.float32)
print(f"{codes.nbytes + wide_scales.nbytes:,} bytes of weights")
expect("operations a byte, int4 product with one vector", 2 / (16 + 2) * 32)

# %% [markdown]
# ## Steps 1 and 2: Python, NumPy
#
# In Python, number by number, on 4 rows. Then NumPy, on 256: it works on whole arrays, and writes
# every intermediate one to memory. `best_time` takes the fastest of several runs, because other
# programs only ever make a run slower.


# %%
def python_rows(rows: int) -> list[float]:
    out = []
    for o in range(rows):
        total = 0.0
        for b in range(BLOCKS):
            part = 0
            for j in range(16):
                byte = int(codes[o, 16 * b + j])
                part += ((byte & 15) - 8) * int(xq[0, 32 * b + j])
                part += ((byte >> 4) - 8) * int(xq[0, 32 * b + j + 16])
            total += float(wide_scales[o, b]) * float(xscales[0, b]) * part
        out.append(total)
    return out


show(numpy_ops.int4_int8_partials, doc=False)
seconds = {}  # of the whole product
seconds["Python"] = best_time(lambda: python_rows(4), 2) * ROWS / 4


def numpy_rows(rows: int) -> np.ndarray:
    partial = numpy_ops.int4_int8_partials(xq, codes[:rows]).astype(np.float32)[0]
    return (partial * wide_scales[:rows] * xscales).sum(axis=1)


seconds["NumPy"] = best_time(lambda: numpy_rows(256), 5) * ROWS / 256

# %% [markdown]
# ## Steps 3 to 6: C
#
# The same in C, four times: the formula; four rows at a time, with the $-8$ taken out of the
# inner loop; vector instructions that multiply 32 bytes at once (AVX2 here on x86, NEON on ARM);
# and threads that share the rows.

# %%
show_c("ladder/int4_ladder.c", "void product_scalar")
show_c("ladder/int4_ladder.c", "SIMD void product_simd")

# %%
compiler = shutil.which("cc")
if compiler is None:
    raise RuntimeError(
        "this tutorial compiles C: install a compiler, on Debian with apt install gcc"
    )
build = tempfile.TemporaryDirectory()
library_file = Path(build.name) / "ladder.so"
flags = ["-std=gnu11", "-O2", "-fno-tree-vectorize", "-ffp-contract=off"]
flags += ["-fPIC", "-shared", "-pthread"]
source = kernel_sources() / "ladder" / "int4_ladder.c"
subprocess.run([compiler, *flags, str(source), "-o", str(library_file)], check=True)
library = ctypes.CDLL(str(library_file))


class Product(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "q", "scales", "x", "xscales", "xsums")]
    _fields_ += [("rows", ctypes.c_int64), ("blocks", ctypes.c_int64)]


y = np.empty(ROWS, np.float32)
pointers = [a.ctypes.data for a in (y, codes, wide_scales, xq, xscales, xsums)]
product = Product(*pointers, ROWS, BLOCKS)
THREADS = c_ops.threads()  # as many as this process may use
first, last, threads = ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(THREADS)
steps = {
    "scalar C": lambda: library.product_scalar(ctypes.byref(product), first, last),
    "unrolled": lambda: library.product_unrolled(ctypes.byref(product), first, last),
    "SIMD": lambda: library.product_simd(ctypes.byref(product), first, last),
    "threads": lambda: library.product_threads(ctypes.byref(product), threads),
}

# %% [markdown]
# Each step must give NumPy's numbers: the integer parts are exact, and the sum over blocks in
# float32 may differ by the roundings of $n$ additions, at most about $n\, 2^{-24}$ of the sum of
# magnitudes.

# %%
check = 256
reference = numpy_rows(check)
partial = np.abs(numpy_ops.int4_int8_partials(xq, codes[:check])[0]).astype(np.float64)
bound = 2 * (BLOCKS + 40) * 2.0**-24 * (partial * wide_scales[:check] * xscales).sum(axis=1)
worst = (np.abs(np.array(python_rows(4)) - reference[:4]) / bound[:4]).max()
for name, work in steps.items():
    y[:] = np.nan
    work()
    assert np.isfinite(y).all()
    worst = max(worst, float((np.abs(y[:check] - reference) / bound).max()))
    seconds[name] = best_time(work)
expect("largest difference of any step from NumPy / its bound", worst)
expect("scalar C / Python (speed)", seconds["Python"] / seconds["scalar C"])
expect("scalar C / NumPy (speed)", seconds["NumPy"] / seconds["scalar C"])
expect("unrolled / scalar (speed)", seconds["scalar C"] / seconds["unrolled"])
expect("SIMD / unrolled (speed)", seconds["unrolled"] / seconds["SIMD"])
expect("threads / SIMD (speed)", seconds["SIMD"] / seconds["threads"])

# %% [markdown]
# ## What the machine can do
#
# Two limits. How fast can memory be read? We add up a large array, which does little else; the
# best of one thread and all threads counts. How fast can it calculate? A product of two square
# matrices uses each number many times.

# %%
large = np.ones(24_000_000, np.float32)  # 96 MB


def read_with_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(np.max, np.array_split(large, THREADS)))


bandwidth = large.nbytes / min(best_time(lambda: np.max(large)), best_time(read_with_threads))
square = rng.standard_normal((1024, 1024)).astype(np.float32)
ops = minedge.ops.get()
blas = best_time(lambda: square @ square, 3)
own = best_time(lambda: ops.linear_forward(square, square), 3)
arithmetic = 2 * 1024**3 / min(blas, own)
print(f"memory: {bandwidth / 1e9:.0f} GB/s")
print(f"float32 arithmetic: {arithmetic / 1e9:.0f} billion operations/s")

# %% [markdown]
# ## The roofline
#
# A program that does $I$ operations for each byte it reads can reach at most
# $\min(\text{arithmetic}, I \cdot \text{bandwidth})$. That is a roof: a slope, then a ceiling.
# Beside the ladder go the package's own products: float32 with one vector, int4 with one vector,
# and int4 with 64 at once, as when a prompt is read.

# %%
OPERATIONS = 2 * ROWS * WIDTH
dense = rng.standard_normal((ROWS // 4, WIDTH)).astype(np.float32)
float_time = best_time(lambda: ops.linear_forward(vector[None], dense)) * 4
int4_time = best_time(lambda: ops.int4_int8_linear(vector[None], codes, scales, 32))
many = rng.standard_normal((64, WIDTH)).astype(np.float32)
many_time = best_time(lambda: ops.int4_int8_linear(many, codes, scales, 32), 3) / 64
expect("int4 / float32 product, both by the package (speed)", float_time / int4_time)
expect("64 vectors at once / one (operations a second)", int4_time / many_time)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
names = list(seconds)
speeds = [OPERATIONS / seconds[name] / 1e9 for name in names]
left.barh(names[::-1], speeds[::-1], color="tab:blue")
left.axvline(3.2 * bandwidth / 1e9, color="tab:red", label="limit of memory")
left.set(xscale="log", xlabel="billion operations a second", title="the ladder")
left.legend(loc="upper right")
intensity = np.logspace(-1, 3, 100)
right.loglog(
    intensity,
    np.minimum(arithmetic, intensity * bandwidth) / 1e9,
    color="black",
    label="roof (float32)",
)
for name, marker in (("scalar C", "v"), ("unrolled", "<"), ("SIMD", ">"), ("threads", "^")):
    right.loglog(3.2, OPERATIONS / seconds[name] / 1e9, marker, label=name)
right.loglog(0.5, OPERATIONS / float_time / 1e9, "s", label="package, float32, 1 vector")
right.loglog(3.56, OPERATIONS / int4_time / 1e9, "o", label="package, int4, 1 vector")
right.loglog(64 * 3.56, OPERATIONS / many_time / 1e9, "D", label="package, int4, 64 vectors")
right.set(
    xlabel="operations a byte of weights",
    ylabel="billion operations a second",
    title="the roofline",
)
right.legend(fontsize=8)
plot(
    figure,
    "Figure 1. Left: each step of the ladder, and the speed at which memory delivers the "
    "weights. Right: the same under this machine's roof. Integer operations on bytes can "
    "exceed the float32 ceiling: a vector holds four times as many.",
)

# %% [markdown]
# NumPy may be ahead of scalar C: its loops are vector code too, and 256 rows fit into the cache,
# intermediate arrays included. Vector instructions in C leave it behind.
#
# Read the roofline from left to right. Scalar code lies far below the roof: arithmetic holds it
# back, memory waits. Vector code comes close to the slope: from there on only reading fewer bytes
# helps, which is why four bits are faster than 32 with one vector. A point above the slope says
# that the matrix, or part of it, was still in a cache when it was read again: some processors for
# servers have room for all of it.
#
# ## Where it breaks
#
# Generating text is one vector at a time, and no kernel gets above the slope once a model is
# larger than the caches: one of $n$ bytes takes at least $n / \text{bandwidth}$ seconds a token.
# More threads do not help once memory is busy. With 64 vectors each weight is used 64 times and
# the point moves to the right: the tokens of a prompt are read as fast as the arithmetic allows,
# those of an answer wait for memory. (On a machine whose cores are busy with other work
# arithmetic is short in both cases, and the two come out alike.)

# %%
for name, size in (
    ("1.1 billion weights, float32", 4.4e9),
    ("1.1 billion weights, int4", 0.62e9),
):
    print(f"{name}: at most {bandwidth / size:.1f} tokens a second on this machine")

# %% [markdown]
# ## Questions
#
# **1.** Why does the unrolled step subtract $8 \sum x$ once per block, and what does the row have
# to do with it?
#
# <details><summary>Answer</summary>
#
# $\sum (c_j - 8) x_j = \sum c_j x_j - 8 \sum x_j$. The second sum does not depend on the row, so
# it is made once for all 8,192 rows, and the inner loop loses a subtraction per weight. It also
# lets SIMD multiply unsigned codes with signed activations, the only form that AVX2 has for
# bytes.
#
# </details>
#
# **2.** Your threads step may be hardly faster than SIMD. How do you find out whether memory is
# the reason?
#
# <details><summary>Answer</summary>
#
# Compare bytes per second with the measured bandwidth, or repeat with a matrix that fits into the
# cache (say 512 rows): if threads help there, memory was the limit. If they do not help there
# either, starting threads costs too much, or the other cores are busy.
#
# </details>
#
# **3.** How many vectors at once does an int4 product need until arithmetic limits it, on your
# machine?
#
# <details><summary>Answer</summary>
#
# Where the slope meets the ceiling: $I = \text{arithmetic} / \text{bandwidth}$ operations a byte,
# so about $I / 3.56$ vectors. With 100 billion operations/s and 20 GB/s that is 5 operations a
# byte: two vectors are enough for float32 arithmetic; with integer instructions some more.
#
# </details>

# %%
expect.report()
