#!/usr/bin/env bash
# Runs reproduce.py with the program $1 in a virtual environment that has what plots need.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$1
shift
venv=build/venv-reproduce
wanted=tools/reproduce/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$venv/installed.txt"
fi
exec "$venv/bin/python" tools/reproduce/reproduce.py --program "$program" "$@"
