#!/usr/bin/env bash
# The CUDA table on a real card, within 9 minutes: builds what it needs and nothing else (nvcc, cmake and a C compiler; no network, no other
# package), runs the parity suite, the same under compute-sanitizer where that is installed, then the bench.
#   tests/gpu.sh [OUTPUT-FOLDER]       default: build-gpu/results. suite.log, memcheck-*.log, racecheck-*.log, bench.json, summary.txt
# Exit: 0 all passed, 1 something failed, 77 there is no card (it was compiled all the same).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${ESPALIER_GPU_BUILD:-$root/build-gpu}
out=${1:-$build/results}
start=$SECONDS limit=520
mkdir -p "$build" "$out" || exit 1
: >"$out/summary.txt"

say() { printf '[%3d s] %s\n' $((SECONDS - start)) "$*" | tee -a "$out/summary.txt" >&2; }
# within SECONDS-AT-MOST LOG COMMAND...: no longer than what is left of the nine minutes
within() {
  local most=$1 log=$2 left=$((limit - (SECONDS - start)))
  shift 2
  [ "$left" -gt 5 ] || { say "no time left for: $*"; return 124; }
  timeout $((most < left ? most : left)) "$@" >"$log" 2>&1
}

command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || { say "nvcc was not found, on PATH or in /usr/local/cuda/bin"; exit 1; }
{ uname -srm; nvcc --version | tail -n 2; nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader; date -u +%F; } >"$out/machine.txt" 2>&1
# One architecture when the card is known, which is faster to compile; else all of them.
arch=()
if cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) && [[ $cap =~ ^[0-9]+$ ]]; then
  arch=("-DCMAKE_CUDA_ARCHITECTURES=$cap")
fi
within 60 "$out/configure.log" cmake -S "$root/tests/cuda/bare" -B "$build" -DCMAKE_BUILD_TYPE=Release "${arch[@]}" || { say "cmake failed: $out/configure.log"; exit 1; }
within 300 "$out/build.log" cmake --build "$build" --parallel "$(nproc)" || { say "the build failed: $out/build.log"; exit 1; }
say "built"

failed=0
within 120 "$out/suite.log" "$build/cuda_card"
code=$?
[ $code -ne 77 ] || { say "$(tail -n 1 "$out/suite.log")"; exit 77; }
[ $code -eq 0 ] || failed=1
say "suite: exit $code, $(tail -n 1 "$out/suite.log")"

# The tests that fill the card's memory on purpose are told from errors by --report-api-errors no; racecheck takes minutes, so its groups run side by side.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    groups=(all)
    [ $tool = memcheck ] || groups=(device rows matmul attention sparse model engine)
    pids=()
    for group in "${groups[@]}"; do
      within 110 "$out/$tool-$group.log" compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 "$build/cuda_card" ${group/all/} &
      pids+=($!)
    done
    for i in "${!pids[@]}"; do
      wait "${pids[$i]}"
      code=$?
      [ $code -eq 0 ] || [ $code -eq 124 ] || failed=1 # 124: no time, which the summary says
      say "$tool, ${groups[$i]}: exit $code, $(tail -n 1 "$out/$tool-${groups[$i]}.log")"
    done
  done
else
  say "compute-sanitizer is not installed: memcheck and racecheck were not run"
fi

left=$((limit - (SECONDS - start) - 20))
if within "$left" "$out/bench.log" sh -c "'$build/cuda_bench' $((left > 30 ? left - 20 : 10)) >'$out/bench.json'"; then
  say "bench: $out/bench.json"
else
  failed=1
  say "bench failed: $(tail -n 1 "$out/bench.log")"
fi
exit $failed
