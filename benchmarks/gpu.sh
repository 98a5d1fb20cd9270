#!/usr/bin/env bash
# Everything that needs a GPU, in one command, offline, in under 9 minutes:
#
#   benchmarks/gpu.sh OUT [STAGE ...] [--seconds N]
#
# The stages run in this order, all of them by default. Each has a time limit, so that a run that is cut short
# still leaves what was done. `bench` gets the time that the others leave.
#
#   build      the operators for this GPU alone, in place, with line numbers for the checkers
#   smoke      every operator once, and its gradients, against the CPU
#   tests      the tests that take a device, side by side; those that compile with torch.compile come last
#   bench      what this GPU can do at most, then benchmarks/bench_cuda.py
#   ncu        instructions and bandwidth of three kernels, where Nsight Compute is installed
#   memcheck   compute-sanitizer over the operators of `smoke`, without PyTorch's caching allocator
#   racecheck  the same for races in shared memory
#
# It needs a PyTorch with CUDA, the CUDA toolkit, a C++ compiler, and Python 3.10 or newer with its headers
# and the packages that mach_ext needs. Wheels of what is missing may lie in wheels/ beside this checkout's
# files or in $MACH_WHEELS. $PYTHON names another Python than python3.
#
# OUT gets at most eight files: summary.json, cuda.md with the tables, and six logs. A second call with the
# same OUT adds to summary.json.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
export PYTHONPATH="$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
case "${1:-}" in "" | -* | /*) ;; *) set -- "$PWD/$1" "${@:2}" ;; esac
cd "$root" || exit 1
exec "${PYTHON:-python3}" -m gpu "$@"
