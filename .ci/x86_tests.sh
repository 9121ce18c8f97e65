#!/usr/bin/env bash
# Run the kernel tests on emulated x86 CPUs: the choice of instruction set, and that nothing newer runs where it must not.
#   usage: x86_tests.sh CPU [CPU ...]        Nehalem (no AVX), Haswell (AVX2); qemu-user knows no AVX-512
#   PYTHON  a Python with minedge's test extra, its extension built in this checkout
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
if ! command -v qemu-x86_64 >/dev/null; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq qemu-user
fi
export PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1 MINEDGE_THREADS=2 MINEDGE_EXPECT_BACKENDS=numpy,c
for cpu in "$@"; do
  left_out=()
  case $cpu in
    Nehalem | Westmere | SandyBridge) isas=scalar ;;
    # qemu-user 7.2 reads more than the instruction asks for in some AVX and F16C loads (vcvtph2ps), so guard pages are left to the hardware
    # and the sanitizers there.
    *) isas=scalar,avx2; left_out=(--ignore tests/kernels/test_memory.py) ;;
  esac
  echo "== emulated $cpu, expecting $isas"
  emulator="qemu-x86_64 -cpu $cpu"
  # The emulator must refuse what the CPU lacks, or a wrong choice would pass unseen: 132 is SIGILL.
  refused=avx512
  [ $isas != scalar ] || refused=avx2
  code=0
  $emulator "$python" - $refused <<'PY' >/dev/null 2>&1 || code=$?
import sys
from minedge._kernels import ffi, lib
isa = {ffi.string(lib.me_isa_name(i)).decode(): i for i in range(lib.me_isa_count())}.get(sys.argv[1])
if isa is None:
    sys.exit(3)
new = ffi.new
lib.me_int4_int8_linear(isa, new("float[8]"), new("int32_t[2]"), new("int8_t[64]"), new("float[2]"), new("uint8_t[256]"),
                        new("uint16_t[16]"), 32, 1, 8, 64)
PY
  [ $code != 3 ] || { echo "this build has no $refused: the compiler did not know its flags"; exit 1; }
  [ $code = 132 ] || { echo "$refused code ran on $cpu (exit code $code)"; exit 1; }
  # One test stays out: qemu-user 7.2 itself fails an assertion when a process with threads forks (accel/tcg/cpu-exec.c).
  MINEDGE_EXPECT_ISAS=$isas MINEDGE_EMULATOR="$emulator" $emulator "$python" -m pytest -p no:cacheprovider tests/kernels tests/noise \
    --deselect tests/kernels/test_threads.py::test_a_forked_child_can_use_the_pool \
    ${left_out[@]+"${left_out[@]}"}
done
