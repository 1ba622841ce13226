"""What a run compares itself with at its tenth step: numbers by formula, in a moment, on any rank.

Nothing is simulated: the process group of the run may exist already. Activations, the peak and the
time of a step need seconds, so they come out of what the verb ``plan`` wrote before.
"""

from __future__ import annotations

import json
from pathlib import Path

from llm_train.errors import ConfigError
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
    held = state(weights, placing, optimizer, settings.precision, accumulation=accumulation)
    return {
        "parameters": held.parameters,
        "copies": held.copies,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
    }


def planned(path: Path, settings: Settings) -> dict[str, float]:
    """Peak bytes and seconds of a step, from the file that ``plan --json`` wrote.

    Raises:
        ConfigError: no such file, or the plan of another run.
    """
    try:
        configured = json.loads(path.read_text(encoding="utf-8"))["configured"]
        found = {"peak": configured["bytes"]["peak"], "step": configured["seconds_per_step"]}
        about = {key: configured[key] for key in ("strategy", "layout", "micro_batch")}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--plan={path} is not what plan --json writes ({type(error).__name__}); "
            f"make it with: llm-train plan -c FILE.yaml --json {path}"
        ) from error
    placing = placing_of(settings)
    own = {
        "strategy": str(placing),
        "layout": vars(placing.layout),
        "micro_batch": settings.batch.per_device,
    }
    if not settings.on_cuda:
        raise ConfigError(f"--plan={path} has no effect on a CPU, since plans are made for GPUs")
    for key, value in own.items():
        if about[key] != value:
            raise ConfigError(
                f"--plan={path} was made for {key}={about[key]}, and this run has {value}; plan "
                "it again with the same options"
            )
    return found
