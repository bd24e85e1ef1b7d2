#!/usr/bin/env bash
# Runs the official OpenAI Python client against the program ($BISUP, $MODEL). The client is installed
# into a virtual environment in build/venv the first time; without a network the tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=build/venv
wanted=tests/clients/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt"; then
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"; } 2>&1; then
    echo "skipped: the openai package cannot be installed here (see above)"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
  fi
  cp "$wanted" "$venv/installed.txt"
fi
exec "$venv/bin/python" tests/clients/check_openai_client.py "$@"
