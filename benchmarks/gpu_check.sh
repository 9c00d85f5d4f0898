#!/usr/bin/env bash
# Checks everything that needs a GPU, in ten minutes: gpu_check.py says what, and takes the same options.
#
#   benchmarks/gpu_check.sh --out gpu.json              # on the first CUDA device
#   WHEELS=wheels benchmarks/gpu_check.sh --out gpu.json  # where there is no network: what is missing, from a folder of wheels
#   benchmarks/gpu_check.sh --rehearse                  # the same on a CPU, with small models, in two minutes
#
# It uses the repository it is in. PYTHON names the interpreter; by default that of .venv, or python3. It needs torch,
# transformers and what `foveate[lab]` has besides, but neither weights nor network. flash-attn is used if it is installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
fi
path=$root/src:$root/packages/reference/src
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
    path=$path:$site
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 "$python" "$root/benchmarks/gpu_check.py" "$@"
