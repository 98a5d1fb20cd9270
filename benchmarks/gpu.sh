#!/usr/bin/env bash
# Everything that needs a GPU, in one command, offline, in under 9 minutes:
#
#   benchmarks/gpu.sh OUT [STAGE ...]
#
# STAGE, all of them by default, in this order; each has a time limit, so that a run that is cut short still
# leaves what was done:
#
#   build      the operators for this GPU alone, in place
#   tests      every test that takes a device, on the GPU
#   sanitizer  compute-sanitizer (memcheck, racecheck) over the small ones of tests/test_cuda.py; where it
#              refuses the device, as on some virtual machines, it says so
#   bench      the ceilings of this GPU, then benchmarks/bench_cuda.py
#
# Needs: Python with torch >= 2.11 (CUDA), NumPy, SciPy, scikit-learn, safetensors, tqdm, pytest, hypothesis,
# pybind11, cmake, ninja, setuptools; nvcc. Wheels of what is missing may lie in wheels/ beside this checkout's
# files or in $MACH_WHEELS. Writes into OUT: summary.json, a log for each stage, cuda.json, cuda.md.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUT [build|tests|sanitizer|bench ...]}")
shift
STAGES=("${@:-build tests sanitizer bench}")
mkdir -p "$OUT"

PYTHON=${PYTHON:-python3}
command -v nvcc >/dev/null || export PATH="$PATH:/usr/local/cuda/bin"
SITE=$(mktemp -d)
export PYTHONPATH="$PWD:$SITE" PYTHONUNBUFFERED=1 CI=1 MACH_CUDA=1
WHEELS=${MACH_WHEELS:-wheels}
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl
fi
TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())") || {
  echo "gpu.sh: no CUDA GPU that this PyTorch can use; nothing to do" >&2
  echo '{"error": "no CUDA GPU"}' >"$OUT/summary.json"
  exit 1
}
export TORCH_CUDA_ARCH_LIST

# stage NAME SECONDS COMMAND...: runs it, for at most what is left of 9 minutes; keeps its output and how it
# ended.
declare -A RESULT
stage() {
  local name=$1 limit=$2 start=$SECONDS left=$((530 - SECONDS))
  shift 2
  case " ${STAGES[*]} " in *" $name "*) ;; *) return 0 ;; esac
  limit=$((limit < left ? limit : left))
  RESULT[$name]="\"cut\""
  summary
  if ((limit <= 0)); then return 1; fi
  echo "=== $name"
  timeout --signal=TERM --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  tail -n 15 "$OUT/$name.log"
  RESULT[$name]="{\"exit\": $code, \"seconds\": $((SECONDS - start)), \"limit\": $limit}"
  summary
  return "$code"
}

summary() {
  local text="" name
  for name in "${!RESULT[@]}"; do text+="${text:+, }\"$name\": ${RESULT[$name]}"; done
  printf '{%s}\n' "$text" >"$OUT/summary.json"
}

sanitizer() {
  local tool code=0
  for tool in memcheck racecheck; do
    echo "--- $tool"
    timeout 45 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 --report-api-errors no \
      "$PYTHON" -m pytest tests/test_cuda.py -q -x -p no:cacheprovider \
      -k "not graph and not memory and not large and not trains and not compiles" || code=$?
  done
  if grep -q "Device not supported" "$OUT/sanitizer.log"; then
    echo "compute-sanitizer does not work on this machine; nothing was checked"
    return 0
  fi
  return "$code"
}
export -f sanitizer
export OUT PYTHON

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
stage build 150 "$PYTHON" setup.py --quiet egg_info build_ext --inplace || exit 1
stage tests 120 "$PYTHON" -m pytest tests -v --tb=short -k cuda -p no:cacheprovider \
  --continue-on-collection-errors --deselect tests/test_build.py
stage sanitizer 70 bash -c sanitizer
stage bench 180 "$PYTHON" -m pytest benchmarks/bench_cuda.py -v -s --tb=short --results "$OUT" -p no:cacheprovider
if [ -f "$OUT/cuda.json" ]; then
  "$PYTHON" benchmarks/table.py --cuda "$OUT/cuda.json" | tee "$OUT/cuda.md"
fi
cat "$OUT/summary.json"
rm -rf "$SITE"
