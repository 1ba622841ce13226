"""How long an optimizer step takes: operations and bytes of the simulated step at stated rates.

Parts are added as if nothing overlapped, communication included: what NCCL takes from the compute
units and from the memory costs about as much as hiding it saves. Public measurements of one model
on one, two and four H200 (KempnerForge's table of April 2026) leave no room for more.

Efficiencies are the same for every device and run. Those of attention and memory are assumptions,
taken from what public kernels reach at large shapes; that of matrix products is what five published
runs on H200, H100 and A100 have on average (``tests/plan/test_published.py``). The 0.75 of
``benchmarks/roofline.py``, of single kernels at large shapes, predicts all five too fast, by 8 to
19 %.
"""

from __future__ import annotations

import math

from llm_train.plan.watch import Measured
from llm_train.runtime.devices import Device
from llm_train.trainer.strategy.cost import Transfer

PRODUCTS_EFFICIENCY = 0.68
"""Of the dense peak: matrix products in a whole training step."""

ATTENTION_EFFICIENCY = 0.5
"""Of the dense peak, causal, forward and backward together: FlashAttention 3 and cuDNN."""

MEMORY_EFFICIENCY = 0.85
"""Of the memory's bandwidth: fused element-wise kernels on tensors of many megabytes."""

LINK_EFFICIENCY = 0.8
"""Of a link's bandwidth: NCCL's large transfers."""

FUSED = 0.3
"""Part of the bytes of operators one by one that compiled ones move, where it is not counted."""

OPERATOR_SECONDS = 8e-6
"""What the host needs to launch one operator."""

FASTER_LAUNCHES = 5
"""How many times fewer launches compiled blocks need."""

_LATENCY = 15e-6  # seconds of a collective
_LATENCY_PER_NODE = 5e-6


def operations(found: Measured) -> float:
    """Of matrix products and of attention."""
    return found["products"] + found["attention"]


def transfer_seconds(transfer: Transfer, device: Device, per_node: int) -> float:
    """At the bandwidth of the slowest link on the way, nothing hidden."""
    if transfer.ranks == 1:
        return 0.0
    nodes = math.ceil(transfer.ranks * transfer.stride / per_node)
    bandwidth, latency = device.link, _LATENCY
    if nodes > 1:
        # Rings enter a node through every adapter whose GPU is of the group.
        adapters = max(1, min(transfer.ranks, per_node // transfer.stride))
        bandwidth = min(device.link, adapters * device.network)
        latency += _LATENCY_PER_NODE * nodes
    return transfer.through_rank / (LINK_EFFICIENCY * bandwidth) + transfer.calls * latency
