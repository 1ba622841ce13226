#!/usr/bin/env bash
# One process per device of this machine: scripts/torchrun.sh VERB [OPTIONS]
#   scripts/torchrun.sh fit -c configs/quickstart.yaml --trainer.strategy=fsdp
# PROCESSES says how many; without it, one per CUDA device, or one on a machine without any.
set -euo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: [PROCESSES=N] scripts/torchrun.sh VERB [-c FILE.yaml ...] [--key=value ...]" >&2
  exit 2
fi
if [[ -z "${PROCESSES:-}" ]]; then
  PROCESSES=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
exec torchrun --standalone --nproc-per-node "$PROCESSES" -m llm_train "$@"
