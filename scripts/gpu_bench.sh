#!/usr/bin/env bash
# Tests and benchmarks on one GPU: scripts/gpu_bench.sh [WHEELS_DIR] [OPTIONS of python -m benchmarks.gpu]
#   scripts/gpu_bench.sh wheels --minutes 9 --only throughput,peers --nanogpt nanoGPT
# WHEELS_DIR holds what the machine lacks and cannot download; its wheels are installed as they are.
# SKIP_TESTS=1 leaves the tests out, where minutes are few. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || {
  echo "there is no NVIDIA GPU here; python -m benchmarks.gpu --rehearse needs none" >&2
  exit 2
}
if [[ $# -gt 0 && -d "$1" ]]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --find-links "$1" "$1"/*.whl
  shift
fi
"$PYTHON" -c 'import torch, llm_train.cli; assert torch.cuda.is_available(), "torch sees no GPU"'
failed=0
if [[ -z "${SKIP_TESTS:-}" ]]; then
  "$PYTHON" -m pytest -m gpu || failed=$?
fi
"$PYTHON" -m benchmarks.gpu "$@"
exit "$failed"
