"""How long an optimizer step takes: operations and bytes of the simulated step at stated rates.

Parts are added as if nothing overlapped, communication included: what NCCL takes from the compute
units and from the memory costs about as much as hiding it saves. Public measurements of one model
on one, two and four H200 (KempnerForge's table of April 2026) leave no room for more.

Efficiencies are the same for every device and run. Those of attention and memory are
``llm_train.plan.roofline``'s; that of matrix products is what five published runs on H200, H100 and
A100 have on average (``tests/plan/test_published.py``). The 0.75 of ``benchmarks/roofline.py``, of
single kernels at large shapes, predicts all five too fast, by 8 to 19 %.
"""

from __future__ import annotations

import math

from llm_train.model.network import Transformer
from llm_train.model.network.base import Network
from llm_train.plan.roofline import (
    ATTENTION_EFFICIENCY,
    MEMORY_EFFICIENCY,
    elementwise_bytes,
    forward_elementwise_bytes,
    loss_bytes,
)
from llm_train.plan.simulate import Measured
from llm_train.runtime.devices import Device
from llm_train.trainer.strategy.cost import StateBytes, Transfer

PRODUCTS_EFFICIENCY = 0.68
"""Of the dense peak: matrix products in a whole training step."""

LINK_EFFICIENCY = 0.8
"""Of a link's bandwidth: NCCL's large transfers."""

_FUSED = 0.3  # of the bytes of operators one by one, compiled ones move; where it is not counted
_OPERATOR_SECONDS = 8e-6  # the host needs to launch one operator
_FASTER_LAUNCHES = 5  # fewer launches of compiled blocks
_LATENCY = 15e-6  # seconds of a collective
_LATENCY_PER_NODE = 5e-6


def moved_bytes(
    found: Measured,
    plain: Measured,
    network: Network,
    *,
    compiled: bool,
    sequence: int,
    micro_batch: int,
) -> float:
    """Bytes that element-wise work of a micro-batch moves; recomputed work moves them again.

    Args:
        found: a step of two micro-batches under a recompute policy.
        plain: the same without one.
        network: compiled Transformers are counted by formula.
        compiled: whether blocks are.
        sequence: positions of a sample.
        micro_batch: samples.
    """
    if not compiled:
        return found["moved"] / 2
    if not isinstance(network, Transformer):
        return _FUSED * found["moved"] / 2
    # What a policy recomputes of element-wise work, as a share of every block's.
    share = min(1.0, max(0.0, (found["moved"] - plain["moved"]) / plain["moved_forward"]))
    per_token = elementwise_bytes(network) + loss_bytes(network)
    return (per_token + share * forward_elementwise_bytes(network)) * sequence * micro_batch


def operations(found: Measured) -> float:
    """Of matrix products and of attention."""
    return found["products"] + found["attention"]


def step_seconds(
    found: Measured,
    plain: Measured,
    held: StateBytes,
    device: Device,
    precision: str,
    *,
    moved: float,
    compiled: bool,
    tensor: int,
    micro_batches: int,
    communication: float,
) -> dict[str, float]:
    """Seconds of an optimizer step by part.

    Args:
        found: a step of two micro-batches under the recompute policy.
        plain: the same without one.
        held: what the optimizer reads and writes.
        device: of the rank.
        precision: of the Trainer.
        moved: bytes of a micro-batch's element-wise work.
        compiled: whether blocks are.
        tensor: ranks that share a micro-batch.
        micro_batches: of the step.
        communication: seconds that are sent.
    """
    peak, memory = device.peak_flops(precision), MEMORY_EFFICIENCY * device.bytes_per_second
    # Everything found is of two micro-batches and a whole tensor group.
    each = micro_batches / 2 / tensor
    total = operations(found)
    products = each * found["products"] / (PRODUCTS_EFFICIENCY * peak)
    attention = each * found["attention"] / (ATTENTION_EFFICIENCY * peak)
    # Recomputation is mostly products; its seconds are its share of the operations.
    again = (total - operations(plain)) / total if total else 0.0
    parts = {
        "matrix products": products * (1 - again),
        "attention": attention * (1 - again),
        "recomputation": (products + attention) * again,
        "element-wise": micro_batches * moved / tensor / memory,
        # Weight, gradient (clipped, then used) and state are read and written, copies written.
        "optimizer": (2 * held.parameters + 3 * held.gradients + 2 * held.optimizer + held.copies)
        / memory,
        "communication": communication,
    }
    launches = found["operators"] / 2 / (_FASTER_LAUNCHES if compiled else 1)
    idle = micro_batches * launches * _OPERATOR_SECONDS - sum(parts.values())
    return parts | {"waiting for the host": max(0.0, idle)}


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
