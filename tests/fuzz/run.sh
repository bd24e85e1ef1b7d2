#!/usr/bin/env bash
# Runs the fuzz targets of a build: tests/fuzz/run.sh build/MODE SECONDS [TARGET...]
#
# Each target runs for SECONDS on tests/fuzz/corpus/<target> and on what earlier runs found, which is
# kept in build/fuzz/corpus; 0 seconds only replays both. An input that fails goes to build/fuzz/crashes.
# The last line is "N passed, N failed". 'make fuzz' builds the targets first.
set -uo pipefail
cd "$(dirname "$0")/../.."
if [ $# -lt 2 ]; then
  echo "usage: tests/fuzz/run.sh build/MODE SECONDS [TARGET...]" >&2
  exit 2
fi
OUT=$1
TIME=$2
shift 2
if [ $# -gt 0 ]; then targets=("$@")
else
  targets=()
  for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    targets+=("${name#fuzz_}")
  done
fi
export ASAN_OPTIONS="allocator_may_return_null=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"

passed=0 failed=0
for target in "${targets[@]}"; do
  seeds=tests/fuzz/corpus/$target found=build/fuzz/corpus/$target log=build/fuzz/$target.log
  mkdir -p "$found" build/fuzz/crashes
  if [ -z "$(ls -A "$seeds" 2>/dev/null)" ]; then
    echo "$target: FAILED: $seeds has no files"
    failed=$((failed + 1))
    continue
  fi
  if [ "$TIME" = 0 ]; then limit=(-runs=0); else limit=("-max_total_time=$TIME"); fi
  # 25 s for one input and 2 GB: far more than any input needs, also on a busy machine.
  if "$OUT/tests/fuzz/fuzz_$target" "${limit[@]}" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1 \
    "-artifact_prefix=build/fuzz/crashes/$target-" "$found" "$seeds" </dev/null >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: no failure in ${runs:-?} runs"
    passed=$((passed + 1))
  else
    echo "$target: FAILED (the input is in build/fuzz/crashes; the log is $log)"
    tail -n 60 "$log"
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
