#!/usr/bin/env bash
# One process per device, on one node or several: scripts/torchrun.sh VERB [OPTIONS]
#   scripts/torchrun.sh fit -c configs/quickstart.yaml --trainer.strategy=fsdp
#   NODES=2 HOST=node1:29500 scripts/torchrun.sh fit -c FILE.yaml     (the same on each of the nodes)
# PROCESSES: on this node; without it, one per CUDA device, or one on a machine without any.
# NODES: how many nodes (1). HOST: address of one of them and a port that is free there.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; }
if [[ $# -eq 0 ]]; then
  echo "usage: [PROCESSES=N] [NODES=M HOST=ADDRESS:PORT] scripts/torchrun.sh VERB [OPTIONS]" >&2
  exit 2
fi
rendezvous=(--standalone)
if [[ ${NODES:-1} -gt 1 ]]; then
  if [[ ${HOST:-} != *:* ]]; then
    echo "NODES=$NODES needs HOST=ADDRESS:PORT, the same on every node" >&2
    exit 2
  fi
  rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$HOST" --rdzv-id "$HOST")
fi
if [[ -z ${PROCESSES:-} ]]; then
  PROCESSES=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
# Told to stop, torchrun kills its processes after 30 s unless this says otherwise; saving may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
exec torchrun "${rendezvous[@]}" --nproc-per-node "$PROCESSES" -m llm_train "$@"
