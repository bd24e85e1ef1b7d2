#!/usr/bin/env bash
# Installs Debian packages: install_packages.sh [--if-missing] PACKAGE...
# Says what it does; uses sudo when not root; on other systems prints the list and stops
# only where --if-missing cannot tell that everything is there.
set -euo pipefail
if_missing=0
if [ "${1:-}" = --if-missing ]; then if_missing=1; shift; fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  if [ $if_missing = 1 ]; then exit 0; fi
  echo "This is not a Debian system. Install the equivalents of these Debian 12 packages:"
  printf '  %s\n' "$@"
  exit 1
fi

missing=()
for package in "$@"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  [ $if_missing = 1 ] || echo "All packages are installed already."
  exit 0
fi

sudo=
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These packages are missing, and installing them needs root: ${missing[*]}" >&2
    exit 1
  fi
  sudo=sudo
fi
echo "Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
