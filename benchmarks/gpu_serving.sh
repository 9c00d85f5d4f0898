#!/usr/bin/env bash
# Measures the vLLM plugin on a GPU, in ten minutes: the load curve of load.py, with CUDA graphs and without, and whether answers
# are the same with both.
#
#   benchmarks/gpu_serving.sh --json load.json   # on the first CUDA device
#   benchmarks/gpu_serving.sh --rehearse         # the same on a CPU, with small models
#
# It uses the repository it is in. PYTHON names the interpreter; by default that of .venv-vllm, or python3. It needs vLLM, openai
# and what `foveate[lab]` has besides, but neither weights nor network.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ ! -x "$root/.venv-vllm/bin/python" ] || python=$root/.venv-vllm/bin/python
fi
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$root/src:$root/packages/reference/src${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$root/benchmarks/load.py" --gpu --repeats 2 --minutes 9 "$@"
