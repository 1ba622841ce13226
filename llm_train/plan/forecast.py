"""What a run compares itself with at its tenth step: numbers by formula, in a moment, on any rank.

Nothing is simulated: the process group of the run may exist already. Activations, the peak and the
time of a step are left to the verb ``plan``, which needs seconds.
"""

from __future__ import annotations

from llm_train.check.trainer import precision_of
from llm_train.plan.formula import state, weights_of
from llm_train.plan.placing import placing_of
from llm_train.settings import Settings


def forecast(settings: Settings, accumulation: int) -> dict[str, float]:
    """Bytes on one rank by part; empty where the formula is not about the device's memory."""
    placing = placing_of(settings)
    if placing.kind.startswith("zero") or placing.offload:
        return {}  # DeepSpeed keeps its own tensors, and host memory is not the device's
    optimizer = settings.task.optimizer_config
    weights = weights_of(settings.task.network_config)
    held = state(weights, placing, optimizer, precision_of(settings), accumulation=accumulation)
    return {
        "parameters": held.parameters,
        "copies": held.copies,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
    }
