#!/usr/bin/env bash
# Runs the tests of a build: tests/run.sh build/MODE [PATTERN]
#
# Test groups are the cmocka programs of tests/unit, tests/*/test_*.py, tests/*/run_test.sh and
# tests/clients/run.sh; with PATTERN (a regular expression) only those whose name matches.
# The scripts get the program's path in BISUP, and end with a line "N passed, N failed[, N skipped]";
# a line "skipped: WHY" before it gives a reason. One line is shown for each group, the whole output
# of one that fails, and at the end the sums. Exit status 1 if anything failed or nothing ran.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  echo "usage: tests/run.sh build/MODE [PATTERN]" >&2
  exit 2
fi
OUT=$1
PATTERN=${2:-}
LIMIT=600 # seconds for one group

export BISUP="$PWD/$OUT/bisup"
# Allocations that a test asks to be impossible must give NULL, as they do without the sanitizer.
export ASAN_OPTIONS="allocator_may_return_null=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="allocator_may_return_null=1:${TSAN_OPTIONS:-}"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
total_passed=0 total_failed=0 total_skipped=0
failures=() skips=()

now() { date +%s%N; }

# Prints "passed failed skipped" and then the reasons of skips, from the TAP output of a cmocka program.
# Fewer results than planned mean that the program ended in the middle: one more failure.
count_tap() { # STATUS
  awk -v status="$1" '
    /^1\.\.[0-9]+$/                 { planned += substr($0, 4); next }
    /^not ok [0-9]+ # SKIP /        { skipped++; sub(/^not ok [0-9]+ # SKIP /, ""); why[skipped] = $0 ": " (before == "" ? "no reason given" : before); before = ""; next }
    /^not ok [0-9]+ /               { failed++; before = ""; next }
    /^ok [0-9]+ /                   { passed++; before = ""; next }
    /^#/                            { next }
                                    { sub(/^skipped: */, ""); before = $0 }
    END {
      if (passed + failed + skipped < planned || planned == 0 || (status != 0 && !failed)) failed++
      printf "%d %d %d\n", passed, failed, skipped
      for (i = 1; i <= skipped; i++) print why[i]
    }' "$log/out"
}

# The same for a script: its last line has the numbers.
count_script() { # STATUS
  local last='^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$'
  local passed=0 failed=1 skipped=0
  if [[ $(tail -n 1 "$log/out") =~ $last ]]; then
    passed=${BASH_REMATCH[1]} failed=${BASH_REMATCH[2]} skipped=${BASH_REMATCH[4]:-0}
    if [ "$1" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
    if [ $((passed + failed + skipped)) = 0 ]; then failed=1; fi
  fi
  echo "$passed $failed $skipped"
  sed -n 's/^skipped: *//p' "$log/out"
}

run_group() { # NAME tap|script COMMAND...
  local name=$1 kind=$2 started status passed failed skipped reason note
  shift 2
  if [[ ! $name =~ $PATTERN ]]; then return; fi
  started=$(now)
  if [ "$kind" = tap ]; then
    CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 10 $LIMIT "$@" </dev/null >"$log/out" 2>"$log/err"
  else
    timeout -k 10 $LIMIT "$@" </dev/null >"$log/out" 2>&1
  fi
  status=$?
  "count_$kind" $status >"$log/counts"
  read -r passed failed skipped <"$log/counts"
  note=""
  if [ "$skipped" -gt 0 ]; then note=", $skipped skipped"; fi
  printf '%-44s %4d passed, %d failed%s  (%s s)\n' "$name" "$passed" "$failed" "$note" \
    "$(awk -v ns=$(($(now) - started)) 'BEGIN { printf "%.1f", ns / 1e9 }')"
  while read -r reason; do skips+=("$name: $reason"); done < <(tail -n +2 "$log/counts")
  if [ "$failed" -gt 0 ]; then
    note=""
    if [ "$status" = 124 ]; then note=" (stopped after $LIMIT s)"
    elif [ "$status" -gt 128 ]; then note=" (ended by signal $((status - 128)))"
    elif [ "$status" != 0 ]; then note=" (exit status $status)"; fi
    failures+=("$name$note")
    echo "---- output of $name$note"
    cat "$log/out"
    if [ "$kind" = tap ]; then cat "$log/err"; fi
    echo "---- end of $name"
  fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  total_skipped=$((total_skipped + skipped))
}

shopt -s nullglob
for source in tests/unit/test_*.c; do
  name=$(basename "$source" .c)
  run_group "unit/$name" tap "$OUT/tests/unit/$name"
done
for script in tests/*/test_*.py; do
  name=${script#tests/}
  run_group "${name%.py}" script python3 "$script"
done
for script in tests/clients/run.sh tests/*/run_test.sh; do
  if [ -f "$script" ]; then run_group "$(basename "$(dirname "$script")")" script bash "$script"; fi
done

echo
if [ ${#skips[@]} -gt 0 ]; then printf 'skipped: %s\n' "${skips[@]}"; fi
if [ ${#failures[@]} -gt 0 ]; then printf 'FAILED: %s\n' "${failures[@]}"; fi
ran=$((total_passed + total_failed + total_skipped))
if [ $ran = 0 ]; then echo "no test ran${PATTERN:+ (nothing matches '$PATTERN')}"; fi
summary="$total_passed passed, $total_failed failed"
if [ $total_skipped -gt 0 ]; then summary="$summary, $total_skipped skipped"; fi
echo "$summary"
[ "$total_failed" = 0 ] && [ $ran -gt 0 ]
