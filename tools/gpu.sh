#!/usr/bin/env bash
# All that a machine with a GPU can tell: build for CUDA and without, run the tests that use it, check memory accesses,
# make random calls, measure.
#
#   tools/gpu.sh [FOLDER]    results go to FOLDER (benchmarks/results); takes five to ten minutes
#
# In an environment that has a torch built for CUDA, nvcc, ninja and the packages of requirements/test.txt and demo.txt
# (matplotlib and tqdm are enough of the latter). PYTHON chooses the interpreter, SECONDS_EACH the time of a measurement.
# Test files and checkers run side by side. A part that fails is reported, the others run all the same, and the script
# fails in the end. Without compute-sanitizer that part is skipped, and said.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
seconds=${SECONDS_EACH:-0.05}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export DDU_WITH_CUDA=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
logs=$(mktemp -d)
plain=$(mktemp -d)
trap 'rm -rf "$logs" "$plain"' EXIT
mkdir -p "$results"
failed=()

section() {
  printf '\n== %s (%d s)\n' "$*" "$SECONDS"
}

section build
"$python" setup.py --quiet build_ext --inplace || exit

# start NAME COMMAND...: in the background, with its output in a file. finish waits for all that were started.
started=()
start() {
  local name=$1
  shift
  "$@" > "$logs/$name" 2>&1 &
  started+=("$name:$!")
}

finish() {
  local entry name status
  for entry in "${started[@]}"; do
    name=${entry%:*}
    status=0
    wait "${entry##*:}" || status=$?
    if [[ $name == test_* && $status == 5 ]]; then  # pytest: none of the file's tests uses CUDA
      continue
    fi
    printf '%s: %s\n' "$name" "$(tail -n 1 "$logs/$name")"
    if ((status != 0)); then
      failed+=("$name")
      tail -n 100 "$logs/$name"
    fi
  done
  started=()
}

# A build without CUDA, in a folder of its own, takes CUDA tensors.
without_cuda() {
  cp -r setup.py pyproject.toml README.md LICENSE requirements csrc ddu_ops "$plain"
  (cd "$plain" && rm -f ddu_ops/*.so && DDU_WITH_CUDA=0 "$python" setup.py --quiet build_ext --inplace) &&
    DDU_WITHOUT_CUDA=$plain "$python" -m pytest -q -k without_cuda -p no:cacheprovider tests/interop/test_devices.py
}

section tests and compute-sanitizer
start "without CUDA" without_cuda
start soak "$python" tools/soak.py --seconds 60 --device cuda
start fuzz "$python" tools/fuzz.py --seconds 60 --device cuda --corpus "$logs/corpus"
for file in $(find tests -name 'test_*.py' | sort); do
  name=$(basename "$file" .py)
  start "$name" "$python" -m pytest -q -k cuda -p no:cacheprovider "$file"
done
tools=(memcheck racecheck initcheck synccheck)
if command -v compute-sanitizer > /dev/null; then
  for tool in "${tools[@]}"; do
    # PYTORCH_NO_CUDA_MEMORY_CACHING: every tensor is an allocation of its own, so that its bounds are seen.
    start "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" tools/sanitized_calls.py
  done
else
  echo "compute-sanitizer is not there: skipped"
  tools=()
fi
finish
if ((${#tools[@]})); then
  {
    "$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__, sep=", ")'
    compute-sanitizer --version | tail -n 1
    for tool in "${tools[@]}"; do
      printf '\n$ PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool %s python3 tools/sanitized_calls.py\n' "$tool"
      tail -n 20 "$logs/$tool"
    done
  } > "$results/compute_sanitizer.txt"
fi

section benchmark
"$python" -m benchmarks --device cuda --seconds "$seconds" --output "$results/cuda" || failed+=(benchmark)
"$python" -m benchmarks --device cuda --seconds "$seconds" --core --maps smooth --dtypes float32 float16 \
  --output "$results/cuda_core" || failed+=("benchmark of other axes, offsets and padding modes")
"$python" -m benchmarks --device cuda --seconds "$seconds" --convolution --workloads S1 F1 --maps smooth \
  --dtypes float32 float16 --output "$results/cuda_convolution" || failed+=("benchmark of convolutions")
"$python" -m benchmarks.deform --device cuda --seconds "$seconds" --dtypes float16 float32 \
  --output "$results/cuda_deform.md" || failed+=("benchmark of deformable convolutions")
"$python" -m benchmarks.sums --device cuda --seconds "$seconds" --output "$results/cuda_sums.md" ||
  failed+=("benchmark of sums")
"$python" -m benchmarks --device cuda --overhead --output "$results/overhead_cuda" || failed+=("overhead")

section "several GPUs"
if [ "$("$python" -c 'import torch; print(torch.cuda.device_count())')" -ge 2 ]; then
  "$python" -m torch.distributed.run --nproc-per-node 2 -m benchmarks.distributed \
    --output "$results/distributed_cuda" || failed+=("several GPUs")
else
  echo "one GPU: skipped"
fi

section "done"
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
