#!/usr/bin/env bash
# Checks the sources: formatting, the include table, clang-tidy, cppcheck. Exit status 1 on any finding.
# Usage: tools/lint.sh [FILE...]   (without files: all that git knows or does not ignore)
set -uo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then files=("$@")
else
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cc' '*.cu' '*.cuh' |
    while read -r file; do if [ -f "$file" ]; then echo "$file"; fi; done)
fi
c_files=() sources=()
for file in "${files[@]}"; do
  case $file in
    *.c) c_files+=("$file") sources+=("$file") ;;
    *.cc) sources+=("$file") ;;
  esac
done
jobs=$(nproc)
failed=()

step() { # NAME COMMAND...
  local name=$1 started=$SECONDS
  shift
  if "$@"; then echo "$name: no findings ($((SECONDS - started)) s)"
  else
    echo "$name: FAILED ($((SECONDS - started)) s)"
    failed+=("$name")
  fi
}

check_format() {
  local unformatted
  unformatted=$(printf '%s\0' "${files[@]}" | xargs -0 clang-format --dry-run 2>&1 |
    sed -n 's/^\([^ :]*\):[0-9]*:[0-9]*: .*clang-format.*/\1/p' | sort -u)
  if [ -z "$unformatted" ]; then return 0; fi
  printf '%s: not formatted; run make format\n' $unformatted
  return 1
}

check_scripts() { # shell scripts at least parse
  local script result=0
  while read -r script; do bash -n "$script" || result=1; done < <(
    git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
  return $result
}

check_tidy() { printf '%s\0' "${sources[@]}" | xargs -0 -n 1 -P "$jobs" tools/tidy_one.sh; }

check_cppcheck() {
  cppcheck --quiet --std=c11 --language=c -I. -D_GNU_SOURCE -j "$jobs" --enable=warning,portability,performance \
    --inline-suppr --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=invalidPointerCast \
    --error-exitcode=1 --template='{file}:{line}: {severity}: {message} [{id}]' "${c_files[@]}"
}

step "clang-format" check_format
step "includes, names and lengths" python3 tools/check_includes.py "${files[@]}"
step "shell syntax" check_scripts
if [ ${#c_files[@]} -gt 0 ]; then step "cppcheck" check_cppcheck; fi
if [ ${#sources[@]} -gt 0 ]; then step "clang-tidy" check_tidy; fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'lint: failed:'
  printf ' %s;' "${failed[@]}"
  echo
  exit 1
fi
echo "lint: ${#files[@]} files, no findings"
