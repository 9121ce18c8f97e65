#!/usr/bin/env bash
# Run the kernel tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer: any report ends the run.
#   PYTHON  a Python with setuptools, cffi, numpy, pytest and hypothesis
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cd "$here"
git ls-files -z minedge kernels tests setup.py pyproject.toml README.md LICENSE | xargs -0 cp --parents -t "$copy" 2>/dev/null
cd "$copy"
# The extension is loaded into an uninstrumented Python, so the sanitizers' libraries go in first.
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
CFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --inplace
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# Python itself never frees everything, so leaks are not looked for; a deliberate segmentation fault stays one.
export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:verify_asan_link_order=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH="$copy" PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1 MINEDGE_THREADS=3
export MINEDGE_EXPECT_BACKENDS=numpy,c

# A build that finds nothing must be able to find something: NumPy's arrays lie in instrumented memory, one float too far is seen.
echo "== the sanitizer bites"
if "$python" - <<'PY' 2> "$copy/report"
import numpy as np
from minedge._kernels import ffi, lib
x = np.zeros(7, np.float32)
out = np.zeros(7, np.float32)
lib.me_gelu_forward(0, ffi.cast("float *", out.ctypes.data), ffi.cast("float *", x.ctypes.data), 8)
PY
then
  echo "an over-read went unnoticed"
  exit 1
fi
grep -q "ERROR: AddressSanitizer" "$copy/report" || { head -20 "$copy/report"; exit 1; }
echo "== kernel tests"
"$python" -m pytest -p no:cacheprovider tests/kernels tests/noise "$@"
