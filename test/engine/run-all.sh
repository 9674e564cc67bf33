#!/usr/bin/env bash
# `npm run test:engine`: the tests with a real vLLM, which needs no GPU. LAYERCAST_VLLM names another version than the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash deploy/setup.sh --dev
venv=$(bash deploy/engine-venv.sh | tail -n 1)
LAYERCAST_ENGINE_PYTHON="$venv/bin/python" node_modules/.bin/vitest run --project engine "$@"
