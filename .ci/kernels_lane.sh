#!/usr/bin/env bash
# The second lane of .ci/run: the kernel tests where a wrong byte or a wrong instruction ends them, and fuzzing of file readers.
#   usage: kernels_lane.sh CHECKOUT      a clone of its own; an environment is made in it
set -euo pipefail
cd "$1"
step() { printf '\n--- %s (%s s)\n' "$*" "$SECONDS"; }
step "environment"
python3 -m venv .venv
.venv/bin/pip install -q "setuptools>=77" -e '.[test]'
export PYTHON=$PWD/.venv/bin/python

step "AddressSanitizer and UndefinedBehaviorSanitizer"
bash .ci/sanitize.sh
if [ "$(uname -m)" = x86_64 ]; then
  step "kernels on emulated ARM CPUs"
  bash .ci/arm_tests.sh cortex-a53 cortex-a72 cortex-a76 max
  step "kernels on emulated x86 CPUs"
  bash .ci/x86_tests.sh Nehalem Haswell
fi

step "fuzzing: 100,000 mutants of safetensors files, against the library, and shares of that of the other formats"
MINEDGE_FUZZ=100000 timeout 600 .venv/bin/python -m pytest -m campaign tests/io/test_fuzz.py --durations=0 -rP
