"""How long an optimizer step takes: operations and bytes of the simulated step at stated rates.

Parts are added as if nothing overlapped, communication included: what NCCL takes from the compute
units and from the memory costs about as much as hiding it saves. Public measurements of one model
on one, two and four H200 (KempnerForge's table of April 2026) leave no room for more.

Efficiencies are the same for every device and run. Those of attention and memory are
``llm_train.plan.roofline``'s; that of matrix products is what five published runs on H200, H100 and
A100 have on average (``tests/plan/test_published.py``). The roofline's 0.75, of single kernels at
large shapes, predicts all five too fast, by 8 to 19 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llm_train.model.network import Transformer
from llm_train.model.network.base import Network
from llm_train.model.network.mlp import default_hidden
from llm_train.plan.devices import Accelerator
from llm_train.plan.formula import State
from llm_train.plan.roofline import (
    ATTENTION_EFFICIENCY,
    MEMORY_EFFICIENCY,
    Shape,
    elementwise_bytes,
    forward_elementwise_bytes,
    loss_bytes,
)
from llm_train.plan.simulate import Measured

PRODUCTS_EFFICIENCY = 0.68
"""Of the dense peak: matrix products in a whole training step."""

FUSED = 0.3
"""Share of the bytes of operators one by one that compiled ones move, where it is not counted."""

_OPERATOR_SECONDS = 8e-6
"""Of the host for one operator without a compiler; a fifth of it with one."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one micro-batch is, per rank.

    Attributes:
        products: operations of matrix products, recomputed ones included.
        attention: operations of attention, likewise.
        recomputed: operations of both that are run a second time.
        moved: bytes of everything else.
        operators: launched by the host.
    """

    products: float
    attention: float
    recomputed: float
    moved: float
    operators: float


def work(
    with_policy: Measured,
    without: Measured,
    network: Network,
    *,
    compiled: bool,
    sequence: int,
    micro_batch: int,
    tensor: int,
) -> Work:
    """One micro-batch from steps of two, simulated with a recompute policy and without one."""
    repeated = [(with_policy[key] - without[key]) / 2 for key in ("products", "attention")]
    moved = with_policy["moved"] / 2
    if compiled:
        moved = _fused(with_policy, without, network, sequence, micro_batch)
    return Work(
        products=with_policy["products"] / 2 / tensor,
        attention=with_policy["attention"] / 2 / tensor,
        recomputed=sum(repeated) / tensor,
        moved=moved / tensor,
        operators=with_policy["operators"] / 2 / (5 if compiled else 1),
    )


def _fused(
    with_policy: Measured, without: Measured, network: Network, sequence: int, micro_batch: int
) -> float:
    """Bytes of compiled element-wise work; recomputation repeats the forward's share of it."""
    if not isinstance(network, Transformer):
        return FUSED * with_policy["moved"] / 2
    shape = shape_of(network, sequence, micro_batch)
    # What a policy recomputes of element-wise work, as a share of every block's.
    again = with_policy["moved"] - without["moved"]
    share = min(1.0, max(0.0, again / without["moved_forward"]))
    per_token = elementwise_bytes(shape) + loss_bytes(shape)
    return (per_token + share * forward_elementwise_bytes(shape)) * sequence * micro_batch


def shape_of(network: Transformer, sequence: int, micro_batch: int) -> Shape:
    """The roofline's view of a network."""
    return Shape(
        layers=network.layers,
        width=network.width,
        heads=network.heads,
        kv_heads=network.kv_heads or network.heads,
        mlp_width=network.mlp_width or default_hidden(network.activation, network.width),
        gated=network.activation == "swiglu",
        rotary=network.positions == "rotary",
        vocab=network.padded_vocab_size,
        tied=network.tied,
        sequence=sequence,
        micro_batch=micro_batch,
    )


def step_seconds(
    each: Work,
    held: State,
    device: Accelerator,
    precision: str,
    *,
    micro_batches: int,
    communication: float,
) -> dict[str, float]:
    """Seconds of an optimizer step by part."""
    peak = device.peak_flops(precision)
    memory = MEMORY_EFFICIENCY * device.bytes_per_second
    total = each.products + each.attention
    # Recomputation is mostly products; its seconds are its share of the operations.
    busy = each.products / (PRODUCTS_EFFICIENCY * peak)
    attention = each.attention / (ATTENTION_EFFICIENCY * peak)
    again = each.recomputed / total * (busy + attention) if total else 0.0
    share = 1 - each.recomputed / total if total else 1.0
    parts = {
        "matrix products": micro_batches * busy * share,
        "attention": micro_batches * attention * share,
        "recomputation": micro_batches * again,
        "element-wise": micro_batches * each.moved / memory,
        # Weight, gradient (clipped, then used) and state are read and written, copies written.
        "optimizer": (2 * held.parameters + 3 * held.gradients + 2 * held.optimizer + held.copies)
        / memory,
        "communication": communication,
    }
    host = micro_batches * each.operators * _OPERATOR_SECONDS
    idle = host - sum(parts.values())
    parts["waiting for the host"] = max(0.0, idle)
    return parts


def summary(
    parts: dict[str, float],
    device: Accelerator,
    precision: str,
    *,
    tokens_per_step: int,
    steps: int,
    ranks: int,
    flops_per_token: float,
) -> dict[str, Any]:
    """What people ask: tokens per second, MFU, days, GPU-hours, energy."""
    seconds = math.fsum(parts.values())
    rate = tokens_per_step / seconds
    hours = seconds * steps / 3600
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": rate,
        "tokens_per_second_per_gpu": rate / ranks,
        "mfu": rate * flops_per_token / (ranks * device.peak_flops(precision)),
        "days": hours / 24,
        "gpu_hours": hours * ranks,
        "energy_mwh": hours * ranks * device.watts / 1e6,
    }
