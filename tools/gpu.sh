#!/usr/bin/env bash
# All that a machine with a GPU can tell: build for CUDA, run the tests, look for bad memory accesses, measure.
#
#   tools/gpu.sh [FOLDER]    results go to FOLDER (benchmarks/results)
#
# In an environment that has a torch built for CUDA, nvcc, ninja and the packages of requirements/test.txt and demo.txt
# (matplotlib and tqdm are enough of the latter). PYTHON chooses the interpreter. What is missing is skipped, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export DDU_WITH_CUDA=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}

section() {
  printf '\n== %s\n' "$*"
}

section build
"$python" setup.py --quiet build_ext --inplace

section tests
"$python" -m pytest -q tests

section compute-sanitizer
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    # PYTORCH_NO_CUDA_MEMORY_CACHING: every tensor is an allocation of its own, so that its bounds are seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" tools/sanitized_calls.py
  done
else
  echo "compute-sanitizer is not there: skipped"
fi

section benchmark
"$python" -m benchmarks --device cuda --convolution --output "$results/cuda"
