#!/usr/bin/env bash
# Run the kernel tests on emulated ARM CPUs. Correctness and dispatch only: emulation says nothing about speed.
#   usage: arm_tests.sh CPU [CPU ...]        CPU as `qemu-aarch64 -cpu help` lists: cortex-a53, cortex-a72, cortex-a76, max
#   ARM_ROOT   where the emulated machine's files live (kept between runs); PYTHON  a Python with setuptools and cffi
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${ARM_ROOT:-/var/tmp/minedge-arm}
python=${PYTHON:-python3}
cd "$here"
bash .ci/arm_root.sh "$cache"

# A cross build in a copy of its own, so that the x86 extension in the checkout stays what it is.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z minedge kernels tests setup.py pyproject.toml README.md LICENSE | xargs -0 cp --parents -t "$copy" 2>/dev/null
cd "$copy"
_PYTHON_HOST_PLATFORM=linux-aarch64 CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" CFLAGS="" LDFLAGS="" \
  "$python" setup.py -q build_ext --inplace
file -b minedge/_kernels*.so 2>/dev/null | grep -q aarch64 || readelf -h minedge/_kernels*.so | grep -q AArch64

for cpu in "$@"; do
  echo "== emulated $cpu"
  # Threads: two are enough to cross the pool's paths; every extra one costs emulation time.
  # One test stays out: qemu-user 7.2 itself fails an assertion when a process with threads forks (accel/tcg/cpu-exec.c).
  # The emulated Python inherits this environment (qemu's own -E splits values at commas).
  PYTHONPATH="$copy:$cache/site" MINEDGE_EXPECT_BACKENDS=numpy,c MINEDGE_EXPECT_ISAS=scalar,neon MINEDGE_THREADS=2 \
    OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 MINEDGE_EMULATOR="qemu-aarch64 -cpu $cpu -L $cache/root" \
    qemu-aarch64 -cpu "$cpu" -L "$cache/root" \
    "$cache/root/usr/bin/python3.11" -m pytest -p no:cacheprovider tests/kernels tests/noise \
    --deselect tests/kernels/test_threads.py::test_a_forked_child_can_use_the_pool
done
