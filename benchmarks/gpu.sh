#!/usr/bin/env bash
# Everything that needs a GPU, in one command, offline, in under 9 minutes:
#
#   benchmarks/gpu.sh OUT [STAGE ...]
#
# STAGE, all of them by default, in this order; each has a time limit, so that a run that is cut short still
# leaves what was done:
#
#   build      the operators for this GPU alone, in place
#   cuda       tests/ops/test_cuda.py, what only a GPU can show
#   tests      every other test that takes a device, on the GPU
#   memcheck   compute-sanitizer over the small ones of tests/ops/test_cuda.py; where it refuses the device, as on
#   racecheck  some virtual machines, summary.json says so
#   bench      the ceilings of this GPU, then benchmarks/bench_cuda.py
#
# Needs: nvcc, and Python with its headers and the packages that are named below. Wheels of what is missing
# may lie in wheels/ beside this checkout's files or in $MACH_WHEELS; Captum, for a few tests, may be missing.
# Writes into OUT: summary.json, a log for each stage, cuda.csv, cuda.md.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUT [build|cuda|tests|memcheck|racecheck|bench ...]}")
shift
STAGES=" ${*:-build cuda tests memcheck racecheck bench} "
mkdir -p "$OUT"
declare -A RESULT

# The last line of stderr and summary.json say why nothing was run.
give_up() {
  echo "gpu.sh: $1" >&2
  printf '{"error": "%s"}\n' "$1" >"$OUT/summary.json"
  exit 1
}

summary() {
  local text="" name
  for name in "${!RESULT[@]}"; do text+="${text:+, }\"$name\": ${RESULT[$name]}"; done
  printf '{%s}\n' "$text" >"$OUT/summary.json"
}

# stage NAME SECONDS COMMAND...: runs it, for at most what is left of 9 minutes; keeps its output and how it
# ended.
stage() {
  local name=$1 limit=$2 start=$SECONDS left=$((530 - SECONDS)) note=""
  shift 2
  case $STAGES in *" $name "*) ;; *) return 0 ;; esac
  limit=$((limit < left ? limit : left))
  RESULT[$name]='"cut"'
  summary
  if ((limit <= 0)); then return 1; fi
  echo "=== $name"
  timeout --signal=TERM --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  tail -n 15 "$OUT/$name.log"
  if grep -q "Device not supported" "$OUT/$name.log"; then
    note=', "note": "compute-sanitizer does not work on this machine; nothing was checked"'
  fi
  RESULT[$name]="{\"exit\": $code, \"seconds\": $((SECONDS - start)), \"limit\": $limit$note}"
  summary
  return "$code"
}

PYTHON=${PYTHON:-python3}
command -v nvcc >/dev/null || export PATH="$PATH:/usr/local/cuda/bin"
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
export PYTHONPATH="$PWD:$SITE" PYTHONUNBUFFERED=1 CI=1 MACH_CUDA=1
WHEELS=${MACH_WHEELS:-wheels}
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl
fi
MISSING=$("$PYTHON" - <<'PY'
import importlib.util as find, re, shutil, sysconfig
from importlib.metadata import version
from pathlib import Path
modules = "numpy scipy sklearn safetensors tqdm jinja2 matplotlib pytest hypothesis pybind11 setuptools"
missing = [name for name in ("torch", *modules.split()) if find.find_spec(name) is None]
programs = ("cmake", "ninja", "nvcc", "g++")
missing += [name for name in programs if not (shutil.which(name) or find.find_spec(name))]
if "setuptools" not in missing and int(re.match(r"\d+", version("setuptools"))[0]) < 77:
    missing.append("setuptools>=77 (here: " + version("setuptools") + ")")  # pyproject.toml's license
if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
    missing.append("Python.h")
print(", ".join(missing))
PY
) || give_up "$PYTHON does not work"
[ -z "$MISSING" ] || give_up "missing: $MISSING"
TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())") ||
  give_up "no CUDA GPU that this PyTorch can use; nothing to do"
export TORCH_CUDA_ARCH_LIST

# Other versions' warnings are no failures here: -W default.
test_on_gpu=("$PYTHON" -m pytest -v --tb=short -W default -p no:cacheprovider)
sanitize=(compute-sanitizer --error-exitcode 9 --print-limit 20 --report-api-errors no)
small=(tests/ops/test_cuda.py -x -k "not graph and not memory and not large and not trains and not compiles")

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
stage build 140 "$PYTHON" setup.py --quiet egg_info build_ext --inplace || exit 1
stage cuda 70 "${test_on_gpu[@]}" tests/ops/test_cuda.py
stage tests 70 "${test_on_gpu[@]}" tests -k cuda --continue-on-collection-errors \
  --ignore tests/ops/test_cuda.py --ignore tests/ops/test_cuda_shim.py --ignore tests/test_build.py
stage memcheck 40 "${sanitize[@]}" --tool memcheck "${test_on_gpu[@]}" "${small[@]}"
stage racecheck 30 "${sanitize[@]}" --tool racecheck "${test_on_gpu[@]}" "${small[@]}"
stage bench 180 "${test_on_gpu[@]}" benchmarks/bench_cuda.py -s --results "$OUT"
if [ -f "$OUT/cuda.csv" ]; then
  "$PYTHON" benchmarks/table.py --cuda "$OUT/cuda.csv" | tee "$OUT/cuda.md"
fi
cat "$OUT/summary.json"
