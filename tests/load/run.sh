#!/usr/bin/env bash
# Load test: tests/load/run.sh [PORT]   (variables: SECONDS_EACH=10 CONNECTIONS=16 BISUP=... MODEL=...)
#
# Sends /health, chats and streamed chats with wrk to the server at PORT, and prints a table. Where no
# server answers, it starts its own and ends it afterwards. Exit status 1 if any request failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
PORT=${1:-8080}
TIME=${SECONDS_EACH:-10}
CONNECTIONS=${CONNECTIONS:-16}
BISUP=${BISUP:-build/release/bisup}
MODEL=${MODEL:-models/demo}
url=http://127.0.0.1:$PORT
out=$(mktemp)
server=
finish() {
  if [ -n "$server" ]; then kill "$server" && wait "$server"; fi
  rm -f "$out"
}
trap finish EXIT

answers() { curl -fs -o /dev/null --max-time 2 "$url/health"; }

if ! answers; then
  if [ ! -x "$BISUP" ]; then
    echo "no server answers at $url, and $BISUP is not built: run 'make run' or 'make all' first" >&2
    exit 1
  fi
  "$BISUP" serve "$MODEL" --port "$PORT" --no-log-requests 2>/dev/null &
  server=$!
  for _ in $(seq 300); do
    if answers; then break; fi
    sleep 0.1
  done
  answers || { echo "the server did not start; try: $BISUP serve $MODEL --port $PORT" >&2; exit 1; }
fi

printf '%s: %s connections, %s s each\n\n' "$url" "$CONNECTIONS" "$TIME"
printf '%-12s %12s %10s %10s %10s %10s %8s\n' case requests/s average 50% 90% 99% errors
failed=0
for name in health chat chat_stream; do
  # Two threads are enough to load the server and leave cores to it.
  wrk -t2 -c"$CONNECTIONS" -d"${TIME}s" --timeout 30s --latency -s "tests/load/$name.lua" "$url" >"$out" 2>&1
  awk -v name="$name" '
    /^ *Latency/ && !average       { average = $2 }
    /^ *50%/                       { p50 = $2 }
    /^ *90%/                       { p90 = $2 }
    /^ *99%/                       { p99 = $2 }
    /^Requests\/sec/               { rate = $2 }
    /^ *Socket errors:/            { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
    /^ *Non-2xx or 3xx responses:/ { errors += $NF }
    /^incomplete /                 { errors++ }
    END {
      printf "%-12s %12s %10s %10s %10s %10s %8d\n", name, rate, average, p50, p90, p99, errors
      exit errors > 0 || rate + 0 == 0
    }' "$out" || { failed=1; grep -m 3 "^incomplete\|errors\|Non-2xx\|unable" "$out"; }
done
exit $failed
