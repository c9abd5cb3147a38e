#!/usr/bin/env bash
# Install the client libraries that tests/live/test_clients.py runs (clients.in), at the versions in clients.lock.
#
#   scripts/install_clients.sh      into AUXOT_CLIENTS_VENV, by default ~/.auxot/clients-venv
#
# They stand apart from the packages for tests and checks: they are heavy, and want other versions of what we use.
# PYTHON names another Python (3.11 or newer). Your pip configuration holds. Does nothing when the lock has not changed.
set -euo pipefail

venv="${AUXOT_CLIENTS_VENV:-$HOME/.auxot/clients-venv}"
lock="$(cd "$(dirname "$0")" && pwd)/clients.lock"

if cmp --silent "$lock" "$venv/installed.lock"; then
    exit 0
fi
echo "Installing the client libraries into $venv: about 450 MB."
"${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install --require-hashes --requirement "$lock" || {
    echo "error: pip could not install the client libraries: is its index reachable from here?" >&2
    exit 1
}
cp "$lock" "$venv/installed.lock"
