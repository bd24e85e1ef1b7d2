#!/usr/bin/env bash
# Runs clang-tidy on one source with the flags the Makefile gives it; silent without findings.
set -uo pipefail
source=$1
flags=(-D_GNU_SOURCE -I.)
case $source in
  *.cc) flags+=(-std=c++17) ;;
  *) flags+=(-std=c11) ;;
esac
case $source in
  *_avx2.c) flags+=(-mavx2 -mfma -mf16c) ;;
  *_avx512.c) flags+=(-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c) ;;
esac
# Promises of functions in other files; the file that defines the function must not see them.
if [ "$source" != common/status.c ]; then flags+=(-include tools/analyzer.h); fi
# Standard error has only "N warnings generated" unless clang-tidy itself fails, which its status tells.
if ! output=$(clang-tidy --quiet "$source" -- "${flags[@]}" 2>&1); then
  printf '%s\n' "$output" | grep -v -E 'warnings? (and [0-9]+ errors? )?generated|^Suppressed|^Use -header-filter|treated as error'
  exit 1
fi
