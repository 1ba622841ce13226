"""How long an optimizer step takes: operations and bytes of the simulated step at stated rates.

Parts are added as if nothing overlapped, communication included: what NCCL takes from the compute
units and from the memory costs about as much as hiding it saves. Public measurements of one model
on one, two and four H200 (KempnerForge's table of April 2026) leave no room for more.

Rates of kernels were measured on one H200 (``benchmarks/results``, torch 2.11) and fitted by
``benchmarks/fractions.py``; how much slower products are within a step is what the measured steps
of 124M and 1B and five published runs on H200, H100 and A100 have in common
(``tests/plan/test_published.py``). docs/performance.md compares them all.
"""

import math

from llm_train.plan.operators import Measured
from llm_train.runtime.devices import Device
from llm_train.trainer.strategy.cost import Transfer

PRODUCTS_EFFICIENCY = 0.901
"""Of the dense peak: matrix products alone, but for their reads and writes."""

PRODUCTS_BANDWIDTH = 1.27
"""Of the memory's bandwidth: those reads and writes, mostly hidden. A product of width 768 has so
many that it reaches 0.55 to 0.72 of the peak, and one of width 4096 0.82."""

IN_A_STEP = 0.88
"""Of these rates: products of a whole step. Kernels were measured in bursts, between which a device
at its power limit recovers."""

ATTENTION_COST = 1.53
"""Inverse efficiency of causal attention, forward and backward, where heads are wide and samples
long. Counted are twice as many operations in backward as in forward; kernels do two and a half
times as many."""

ATTENTION_WIDTH = 62.3
"""What it rises by, over the width of a head: exponentials, no fewer for narrow heads."""

ATTENTION_AREA = 127000.0
"""What it rises by, over head width x sequence: reads, writes, and tiles that the diagonal cuts."""

ATTENTION_PEAK = 989.5e12
"""For which the two above were measured: what is not a product is no faster where products are."""

MEMORY_EFFICIENCY = 0.57
"""Of the memory's bandwidth: fused element-wise kernels and fused AdamW. In the profile of a step
of 124M, GELU, norms and AdamW lie between 0.54 and 0.61."""

COPY_EFFICIENCY = 0.88
"""Of the memory's bandwidth: a copy, and operators that do as little."""

LINK_EFFICIENCY = 0.8
"""Of a link's bandwidth: NCCL's large transfers."""

FUSED = 0.3
"""Part of the bytes of operators one by one that compiled ones move, where it is not counted."""

OPERATOR_SECONDS = 8e-6
"""What the host needs to launch one operator."""

FASTER_LAUNCHES = 5
"""How many times fewer launches compiled blocks need."""

GAP_SECONDS = 2e-6
"""Between two kernels, on the device: 2.0 ms of 1,017 launches in the same profile."""

_LATENCY = 15e-6  # seconds of a collective
_LATENCY_PER_NODE = 5e-6


def operations(found: Measured) -> float:
    """Of matrix products and of attention."""
    return found["products"] + found["attention"]


def products_seconds(found: Measured, device: Device, dtype: str) -> float:
    """Of all matrix products."""
    alone = found["products"] / (PRODUCTS_EFFICIENCY * device.peak_flops(dtype))
    alone += found["moved_by_products"] / (PRODUCTS_BANDWIDTH * device.bytes_per_second)
    return alone / IN_A_STEP


def attention_seconds(found: Measured, device: Device, dtype: str) -> float:
    """Of all attention, each at its head's width and its sequence."""
    slow = ATTENTION_WIDTH * found["attention over width"]
    slow += ATTENTION_AREA * found["attention over area"]
    return ATTENTION_COST * found["attention"] / device.peak_flops(dtype) + slow / ATTENTION_PEAK


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
