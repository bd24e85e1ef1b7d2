#!/usr/bin/env bash
# Builds the container image and tries it, without a Docker engine: buildah with chroot isolation, on a
# base system that debootstrap makes from the package sources this machine uses. Needs root (sudo).
# The base is kept in build/image. Usage: tests/image/run.sh [DOCKERFILE]
# The last line is "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/../.."
DOCKERFILE=${1:-Dockerfile}
TARGET=cpu
BASE_NAME=docker.io/library/debian:bookworm-slim # what "FROM debian:bookworm-slim" means to buildah
SUITE=bookworm
FOLDER=$PWD/build/image

if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then exec sudo -n --preserve-env=http_proxy,https_proxy,no_proxy "$0" "$@"; fi
  echo "skipped: building an image needs root"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi

store=$(mktemp -d /var/tmp/bisup-image-XXXXXX)
server_job=
passed=0 failed=0

build_tool() { buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }

cleanup() {
  if [ -n "$server_job" ]; then kill "$server_job" 2>/dev/null; wait "$server_job" 2>/dev/null; fi
  build_tool rm --all >/dev/null 2>&1
  rm -rf "$store"
}
trap cleanup EXIT

finish() {
  echo "$passed passed, $failed failed"
  [ $failed = 0 ]
  exit
}

check() { # WHAT COMMAND...
  local what=$1
  shift
  if "$@"; then
    echo "ok: $what"
    passed=$((passed + 1))
  else
    echo "FAILED: $what"
    failed=$((failed + 1))
  fi
}

must() { # WHAT COMMAND...: the rest makes no sense without it
  local before=$failed
  check "$@"
  if [ $failed != "$before" ]; then
    if [ -f "$store/log" ]; then tail -n 60 "$store/log"; fi
    finish
  fi
}

# ---- Base image -------------------------------------------------------------------------------------

# "URI SUITE COMPONENT" of the machine's own sources for this suite.
sources() {
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$SUITE" '$2 == suite || $2 == suite "-updates" || $2 == suite "-security"' | sort -u
}

make_base() {
  local system=$store/base mirror
  mirror=$(sources | awk -v suite="$SUITE" '$2 == suite && $3 == "main" { print $1; exit }')
  if [ -z "$mirror" ]; then
    echo "this machine's apt has no source for Debian $SUITE"
    return 1
  fi
  debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$system" "$mirror" >"$store/log" 2>&1 || return 1
  sources | sed 's/^/deb /' >"$system/etc/apt/sources.list"
  # How this machine reaches its mirror (proxies and such) holds inside as well.
  apt-config dump | grep -E '^Acquire::(http|https|Check|Retries|ForceIPv)' >"$system/etc/apt/apt.conf.d/90machine"
  if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/ca-certificates.crt"
  fi
  rm -rf "$system"/var/cache/apt/archives/*.deb "$system"/var/lib/apt/lists/*
  mkdir -p "$FOLDER"
  tar -C "$system" -cf "$FOLDER/base.tar.part" . && mv "$FOLDER/base.tar.part" "$FOLDER/base.tar"
  rm -rf "$system"
}

import_base() {
  local container
  container=$(build_tool from scratch) || return 1
  build_tool add -q "$container" "$FOLDER/base.tar" / >/dev/null &&
    build_tool config --cmd bash "$container" &&
    build_tool commit -q --rm "$container" "$BASE_NAME" >/dev/null
}

# ---- Build -------------------------------------------------------------------------------------------

build_image() { # Docker's format, since OCI's has no HEALTHCHECK
  build_tool bud --isolation chroot --pull-never --layers=false --format docker --target "$TARGET" \
    -t bisup:test -f "$DOCKERFILE" . </dev/null >"$store/log" 2>&1
}

setting() { build_tool inspect --type image --format "{{$1}}" bisup:test; }

is_not_root() { [ -n "$user" ] && [ "${user%%:*}" != 0 ] && [ "${user%%:*}" != root ]; }

# ---- Run ---------------------------------------------------------------------------------------------

in_container() { build_tool run --isolation chroot --env BISUP_PORT="$port" "$container" -- "$@"; }

get() { curl -fsS --noproxy '*' --max-time 60 "http://127.0.0.1:$port$1" "${@:2}"; }

wait_until_ready() {
  local i
  for i in $(seq 120); do
    if get /health >/dev/null 2>&1; then return 0; fi
    if ! kill -0 "$server_job" 2>/dev/null; then return 1; fi
    sleep 0.5
  done
  return 1
}

# The process of the server: the one below the buildah command whose program is bisup.
server_process() {
  local queue=("$server_job") pid
  while [ ${#queue[@]} -gt 0 ]; do
    pid=${queue[0]}
    queue=("${queue[@]:1}")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = bisup ]; then
      echo "$pid"
      return 0
    fi
    mapfile -t -O ${#queue[@]} queue < <(cat /proc/"$pid"/task/*/children 2>/dev/null | tr ' ' '\n' | grep .)
  done
  return 1
}

runs_as_user() { [ "$(awk '/^Uid:/ { print $2 }' "/proc/$(server_process)/status")" = "${user%%:*}" ]; }

chat() {
  get /v1/chat/completions -H 'content-type: application/json' -d '{
    "messages": [
      {"role": "system", "content": "You are the assistant of Red Harbor, a bakery. We open at 7 in the morning."},
      {"role": "user", "content": "When do you open?"}],
    "temperature": 0, "max_tokens": 40}' >"$store/answer" || return 1
  echo "    $(head -c 600 "$store/answer")"
  python3 - "$store/answer" <<'PYTHON'
import json, sys
answer = json.load(open(sys.argv[1]))
choice = answer["choices"][0]
assert answer["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
assert choice["message"]["content"].strip() == "We open at 7 in the morning.", "another answer"
PYTHON
}

stops_cleanly() {
  local pid status
  pid=$(server_process) || return 1
  kill -TERM "$pid"
  timeout 60 tail --pid="$server_job" -f /dev/null || return 1
  wait "$server_job"
  status=$?
  server_job=
  [ $status = 0 ]
}

# ---- All together ------------------------------------------------------------------------------------

if [ -f "$FOLDER/base.tar" ]; then echo "base image: build/image/base.tar, made before"
else must "debootstrap makes a base system" make_base; fi
must "the base becomes an image" import_base
started=$SECONDS
must "the Dockerfile builds" build_image
user=$(setting .Docker.Config.User)
check "the image's user is not root ($user)" is_not_root

container=$(build_tool from --pull-never bisup:test)
mount=$(build_tool mount "$container")
base_size=$(stat -c %s "$FOLDER/base.tar")
echo "built in $((SECONDS - started)) s; $(du -sm "$mount" | cut -f1) MB in all, of which $((base_size >> 20)) MB are the base"
mapfile -t entry < <(setting 'range .Docker.Config.Entrypoint}}{{println .}}{{end' | grep .)
mapfile -t command < <(setting 'range .Docker.Config.Cmd}}{{println .}}{{end' | grep .)
mapfile -t health < <(setting 'range .Docker.Config.Healthcheck.Test}}{{println .}}{{end' | grep .)
check "it has a health check (${health[*]})" [ "${health[0]:-}" = CMD ]

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
in_container "${entry[@]}" "${command[@]}" </dev/null >"$store/log" 2>&1 &
server_job=$!
must "the server starts and is ready" wait_until_ready
check "it runs as the image's user" runs_as_user
check "the health check succeeds" in_container "${health[@]:1}"
check "it answers a chat request" chat
check "SIGTERM ends it with exit status 0" stops_cleanly
if in_container "${health[@]:1}" >/dev/null 2>&1; then result=1; else result=0; fi
check "without a server the health check fails" [ "$result" = 0 ]
if [ $failed != 0 ]; then cat "$store/log"; fi
finish
